//! Certificates of clients: which ones count, and whose names are on the path that was verified.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{Cert, EndEntityCert, KeyUsage};

/// Authorities of clients.
#[derive(Clone, Debug)]
pub struct Trust {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) skips_validity: bool,
}

impl Trust {
    /// The subjects along the verified path: of the client's own certificate, of those that have signed it one after the
    /// other, and of the authority. What else the client has sent proves nothing, and is not among them.
    ///
    /// # Errors
    /// No path is good (any more).
    pub fn subjects(&self, chain: &[CertificateDer<'_>]) -> Result<Vec<DistinguishedName>, webpki::Error> {
        self.path(chain, UnixTime::now()).map(|(subjects, _)| subjects)
    }

    /// The subjects, and a time at which all of them are valid: now, unless that is not looked at.
    fn path(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Vec<DistinguishedName>, UnixTime), webpki::Error> {
        let (leaf, others) = chain.split_first().ok_or(webpki::Error::BadDer)?;
        let leaf = EndEntityCert::try_from(leaf)?;
        let mut time = now;
        let mut tries = 0..=chain.len();
        loop {
            let verified = leaf.verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                &self.roots.roots,
                others,
                time,
                KeyUsage::client_auth(),
                None,
                None,
            );
            let may_try = self.skips_validity && tries.next().is_some();
            match verified {
                Ok(path) => {
                    let between = path.intermediate_certificates().map(Cert::subject);
                    let all =
                        [leaf.subject()].into_iter().chain(between).chain([path.anchor().subject.as_ref()]);
                    return Ok((all.map(DistinguishedName::in_sequence).collect(), time));
                }
                Err(webpki::Error::CertExpired { not_after, .. }) if may_try => time = not_after,
                Err(webpki::Error::CertNotValidYet { not_before, .. }) if may_try => time = not_before,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Takes certificates that are not valid now, if there was a time when their path was.
#[derive(Debug)]
pub(super) struct Timeless {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) trust: Trust,
}

impl ClientCertVerifier for Timeless {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = [end_entity].into_iter().chain(intermediates).cloned().collect();
        let (_, time) = self.trust.path(&chain, now).map_err(|error| {
            // As rustls would say, which is what the client is told.
            match self.inner.verify_client_cert(end_entity, intermediates, now) {
                Err(own) => own,
                Ok(_) => CertificateError::Other(rustls::OtherError(Arc::new(error))).into(),
            }
        })?;
        self.inner.verify_client_cert(end_entity, intermediates, time)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
