//! Until when a server's certificates are valid.

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Unit,
};
use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{Current, Named};
use crate::metrics::{Label, Registry};

/// The end of a file of certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The setting that names the file.
    pub setting: String,
    /// When the first certificate of the chain in it ends, in seconds since 1970.
    pub not_after: i64,
}

impl End {
    /// `None` when none of the chain can be read, which no handshake gets as far as.
    pub(super) fn of(chain: &[CertificateDer<'_>], file: &Named) -> Option<Self> {
        let ends = chain.iter().filter_map(|certificate| {
            let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
            Some(certificate.validity().not_after.timestamp())
        });
        Some(Self { setting: file.setting.clone(), not_after: ends.min()? })
    }
}

/// The gauge of them, by setting. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct NotAfter(Family<[(&'static str, String); 1], Gauge>);

impl NotAfter {
    /// Registers it under this name, to which `_seconds` is added.
    pub fn register(&self, name: &str, registry: &mut Registry) {
        registry.family_with_unit(
            name,
            "When the first certificate of the chain in a file of the server ends, since 1970",
            Unit::Seconds,
            vec![Label::bounded("setting", "settings that name a certificate of the server")],
            self.0.clone(),
        );
    }

    /// These are in use.
    pub fn set(&self, current: &Current) {
        for End { setting, not_after } in &current.ends {
            self.0.get_or_create(&[("setting", setting.clone())]).set(*not_after);
        }
    }
}
