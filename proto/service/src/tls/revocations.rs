//! Until when lists of revoked certificates are up to date. They count all the same later: an authority that is late with
//! its list must not lock all clients out. It is told, because what was revoked since is not known.

use rustls::pki_types::CertificateRevocationListDer;
use x509_parser::{prelude::FromDer as _, revocation_list::CertificateRevocationList, time::ASN1Time};

use super::Named;

/// A list that says when the next one comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List {
    file: Named,
    issuer: String,
    next_update: ASN1Time,
}

impl List {
    /// Reads a list of this file; `None`: it does not say when the next one comes.
    pub(super) fn read(list: &CertificateRevocationListDer<'_>, file: &Named) -> Option<Self> {
        let (_, list) = CertificateRevocationList::from_der(list).ok()?;
        Some(Self { file: file.clone(), issuer: list.issuer().to_string(), next_update: list.next_update()? })
    }

    pub(super) fn warn(&self) {
        tracing::warn!(
            setting = self.file.setting,
            file = %self.file.path.display(),
            issuer = self.issuer,
            next_update = %self.next_update,
            "a list of revoked certificates is out of date and counts all the same; the next one is overdue"
        );
    }
}

/// Those lists of which the next one is overdue.
pub(super) fn overdue(lists: &[List]) -> Vec<List> {
    let now = ASN1Time::now();
    lists.iter().filter(|list| list.next_update < now).cloned().collect()
}
