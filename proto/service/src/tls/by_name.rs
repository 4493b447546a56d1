//! Several certificates at one address: a client says which host it means (SNI).

use std::{collections::HashMap, sync::Arc};

use rustls::{
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use webpki::EndEntityCert;

/// Certificates by the names in them.
#[derive(Debug)]
pub(super) struct ByName {
    /// For clients that name no host, or one that is in none of the others.
    default: Arc<CertifiedKey>,
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    pub(super) fn new(default: CertifiedKey) -> Self {
        Self { default: Arc::new(default), named: HashMap::new() }
    }

    /// Adds a certificate under its names; the first that has a name keeps it.
    ///
    /// # Errors
    /// It names no host.
    pub(super) fn add(&mut self, key: CertifiedKey) -> Result<(), &'static str> {
        let key = Arc::new(key);
        let names = key.cert.first().map(names).unwrap_or_default();
        if names.is_empty() {
            return Err("the certificate names no host");
        }
        for name in names {
            self.named.entry(name).or_insert_with(|| key.clone());
        }
        Ok(())
    }

    fn find(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        let host = host.to_ascii_lowercase();
        self.named.get(&host).or_else(|| {
            let (_, parent) = host.split_once('.')?;
            self.named.get(&format!("*.{parent}"))
        })
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = hello.server_name().and_then(|host| self.find(host));
        Some(found.unwrap_or(&self.default).clone())
    }
}

fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_dns_names().map(str::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn key(names: &[&str]) -> CertifiedKey {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(vec![certificate.der().clone()], private, &provider).unwrap()
    }

    #[test]
    fn a_host_finds_its_own_certificate_before_one_for_many() {
        let mut all = ByName::new(key(&["default"]));
        let many = key(&["*.example.com", "example.com"]);
        let own = key(&["Mqtt.example.com"]);
        let (many_is, own_is) = (many.cert.clone(), own.cert.clone());
        all.add(many).unwrap();
        all.add(own).unwrap();
        let found = |host: &str| all.find(host).map(|key| key.cert.clone());
        assert_eq!(found("mqtt.EXAMPLE.com"), Some(own_is));
        for host in ["example.com", "other.example.com"] {
            assert_eq!(found(host), Some(many_is.clone()), "{host}");
        }
        for host in ["a.b.example.com", "com", "example.org", "*.example.org", ""] {
            assert_eq!(found(host), None, "{host}");
        }
        assert_eq!(all.add(key(&["192.0.2.1"])), Err("the certificate names no host"));
    }
}
