//! TLS, as librdkafka's `ssl.…` properties say.

use std::{fs, path::Path, sync::Arc};

use pkcs8::EncryptedPrivateKeyInfo;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _,
    },
};

use super::super::KafkaConfig;

/// What is understood here. Others restrict what librdkafka does, or are read by OpenSSL alone.
const KNOWN: [&str; 8] = [
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
];

/// What a client of brokers trusts, and the certificate it shows.
///
/// # Errors
/// For people: the property that can't be used, and why.
pub(super) fn config(config: &KafkaConfig) -> Result<ClientConfig, String> {
    let mut names = config.properties.iter().map(|(name, _)| name.as_str());
    if let Some(name) = names.find(|name| name.starts_with("ssl.") && !KNOWN.contains(name)) {
        return Err(format!("{name} is for librdkafka alone"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = verifier(config, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some(chain) = pem(config, "ssl.certificate.pem", "ssl.certificate.location")? else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("the client's certificate", &chain)?;
    let key = pem(config, "ssl.key.pem", "ssl.key.location")?.ok_or("ssl.key.location is missing")?;
    let key = private_key(&key, config.property(&["ssl.key.password"]))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| format!("the client's certificate: {error}"))
}

/// What a property holds, or the file that the other one names.
fn pem(config: &KafkaConfig, own: &str, file: &str) -> Result<Option<String>, String> {
    if let Some(text) = config.property(&[own]) {
        return Ok(Some(text.to_owned()));
    }
    let Some(path) = config.property(&[file]) else { return Ok(None) };
    fs::read_to_string(path).map(Some).map_err(|error| format!("{file} {path}: {error}"))
}

fn certificates(what: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = found.map_err(|error| format!("{what}: {error}"))?;
    if found.is_empty() { Err(format!("{what}: no certificate in PEM")) } else { Ok(found) }
}

fn private_key(text: &str, password: Option<&str>) -> Result<PrivateKeyDer<'static>, String> {
    let failed = |error: String| format!("the client's key: {error}");
    // A certificate may be in the same file.
    let Some(start) = text.find("-----BEGIN ENCRYPTED PRIVATE KEY") else {
        return PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| failed(error.to_string()));
    };
    let password = password.ok_or_else(|| failed("ssl.key.password is missing".to_owned()))?;
    let (_, document) =
        pkcs8::SecretDocument::from_pem(text[start..].trim()).map_err(|error| failed(error.to_string()))?;
    let plain = EncryptedPrivateKeyInfo::try_from(document.as_bytes())
        .and_then(|encrypted| encrypted.decrypt(password))
        .map_err(|error| failed(error.to_string()))?;
    Ok(PrivatePkcs8KeyDer::from(plain.as_bytes().to_vec()).into())
}

fn verifier(
    config: &KafkaConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let inner = authorities(config, provider)?;
    let says = |name: &str, values: &[&str]| {
        config.property(&[name]).is_some_and(|value| values.contains(&value.to_ascii_lowercase().as_str()))
    };
    let trusts = if says("enable.ssl.certificate.verification", &["false", "f", "0"]) {
        Trusts::Anybody
    } else if says("ssl.endpoint.identification.algorithm", &["none"]) {
        Trusts::AnyName
    } else {
        return Ok(inner);
    };
    Ok(Arc::new(Lenient { inner, trusts }))
}

/// Whoever is signed for by what is configured, or else by what the machine trusts.
fn authorities(
    config: &KafkaConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let location = config.property(&["ssl.ca.location"]).filter(|location| *location != "probe");
    if location.is_some_and(|location| Path::new(location).is_dir()) {
        return Err("ssl.ca.location is a folder, which librdkafka alone can read".to_owned());
    }
    let file = location
        .map(|path| fs::read_to_string(path).map_err(|error| format!("ssl.ca.location {path}: {error}")));
    let texts = [config.property(&["ssl.ca.pem"]).map(str::to_owned), file.transpose()?];
    if texts.iter().all(Option::is_none) {
        let machine = rustls_platform_verifier::Verifier::new(Arc::clone(provider));
        return Ok(Arc::new(machine.map_err(|error| error.to_string())?));
    }
    let mut roots = RootCertStore::empty();
    for text in texts.into_iter().flatten() {
        for certificate in certificates("the authorities", &text)? {
            roots.add(certificate).map_err(|error| format!("the authorities: {error}"))?;
        }
    }
    let own = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    Ok(own.map_err(|error| error.to_string())?)
}

#[derive(Debug)]
enum Trusts {
    /// `ssl.endpoint.identification.algorithm` is `none`.
    AnyName,
    /// `enable.ssl.certificate.verification` is `false`.
    Anybody,
}

/// Looks less closely, as it is told to.
#[derive(Debug)]
struct Lenient {
    inner: Arc<dyn ServerCertVerifier>,
    trusts: Trusts,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match (&self.trusts, verified) {
            // The name is looked at last, when the chain is found good.
            (
                Trusts::AnyName,
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )),
            )
            | (Trusts::Anybody, Err(_)) => Ok(ServerCertVerified::assertion()),
            (_, verified) => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_name_and_an_issuer_are_looked_at_unless_they_need_not_be() {
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let named = |issuer: &Authority| {
            let (params, key) =
                (CertificateParams::new(["broker".to_owned()]).unwrap(), KeyPair::generate().unwrap());
            params.signed_by(&key, issuer).unwrap().der().clone()
        };
        let (good, foreign) = (named(&ours), named(&theirs));
        let verified = |further: &[(&str, &str)], certificate: &CertificateDer<'_>, name: &str| {
            let pem = ours.pem();
            let properties = [&[("ssl.ca.pem", pem.as_str())], further].concat();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let verifier = verifier(&KafkaConfig::with(&properties), &provider).unwrap();
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()).is_ok()
        };
        let cases = [&good, &foreign].map(|one| ["broker", "other"].map(|name| (one, name)));
        let outcomes = |further: &[(&str, &str)]| {
            cases.map(|row| row.map(|(certificate, name)| verified(further, certificate, name)))
        };
        assert_eq!(outcomes(&[]), [[true, false], [false, false]]);
        let any_name = [("ssl.endpoint.identification.algorithm", "none")];
        assert_eq!(outcomes(&any_name), [[true, true], [false, false]]);
        let anybody = [("enable.ssl.certificate.verification", "false")];
        assert_eq!(outcomes(&anybody), [[true, true], [true, true]]);
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_property_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().to_str().unwrap();
        let missing = format!("{folder}/none.pem");
        let certificate = authority("ours").pem();
        let key = (
            "ssl.key.pem",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        let own = ("ssl.certificate.pem", certificate.as_str());
        for (properties, expected) in [
            (vec![("ssl.keystore.location", "x.p12")], "ssl.keystore.location is for librdkafka alone"),
            (vec![("ssl.ca.location", folder)], "ssl.ca.location is a folder"),
            (vec![("ssl.ca.location", &missing)], "ssl.ca.location"),
            (vec![("ssl.ca.pem", "no certificate")], "the authorities: no certificate in PEM"),
            (vec![("ssl.certificate.location", &missing)], "ssl.certificate.location"),
            (vec![own], "ssl.key.location is missing"),
            (vec![own, key], "ssl.key.password is missing"),
            (vec![own, key, ("ssl.key.password", "hunter2")], "the client's key: "),
        ] {
            let error = config(&KafkaConfig::with(&properties)).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
    }
}
