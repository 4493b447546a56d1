//! Credentials objects that several kinds share (spec §6.1), secrets, and the TLS settings made of them.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use tbmq_integration::entity::Violation;

/// A text that is never printed. In a schema it is marked `writeOnly`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; not for logs, errors or answers.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "writeOnly": true })
    }
}

/// How a sink shows who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum Credentials {
    /// Not at all.
    #[default]
    #[serde(rename = "anonymous")]
    Anonymous,
    /// By user name and password.
    #[serde(rename = "basic")]
    Basic {
        /// The user name.
        #[serde(default)]
        username: Option<String>,
        /// The password.
        #[serde(default)]
        password: Option<Secret>,
    },
    /// By certificates as PEM text.
    #[serde(rename = "cert.PEM", rename_all = "camelCase")]
    Pem {
        /// Certificates to trust, instead of the system's; several may stand one after another.
        #[serde(default)]
        ca_cert: Option<String>,
        /// The client certificate, followed by its chain; needs `privateKey`.
        #[serde(default)]
        cert: Option<String>,
        /// The client certificate's key: PKCS#8, PKCS#1 or SEC1; RSA or EC.
        #[serde(default)]
        private_key: Option<Secret>,
        /// The password of an encrypted PKCS#8 key.
        #[serde(default)]
        private_key_password: Option<Secret>,
        /// The name of the file that `caCert` was read from; for people.
        #[serde(default)]
        ca_cert_file_name: Option<String>,
        /// The name of the file that `cert` was read from; for people.
        #[serde(default)]
        cert_file_name: Option<String>,
        /// The name of the file that `privateKey` was read from; for people.
        #[serde(default)]
        private_key_file_name: Option<String>,
    },
}

/// What stands in every text about TLS settings that can't be used: TBMQ's whole text.
const FAILED: &str = "Creating TLS factory failed!";

impl Credentials {
    /// Lists the problems of `cert.PEM`; `path` is the path of the credentials object.
    pub fn check(&self, path: &str) -> Vec<Violation> {
        match self.material() {
            Ok(Some(material)) => match material.config() {
                Ok(_) => Vec::new(),
                Err(text) => vec![Violation::new(path, text)],
            },
            Ok(None) => Vec::new(),
            Err(problems) => problems
                .into_iter()
                .map(|(field, text)| Violation::new(format!("{path}.{field}"), text))
                .collect(),
        }
    }

    /// TLS settings of their own; `None`: those of the system will do ([`system_tls`]).
    ///
    /// # Errors
    /// A text for people when the PEM texts can't be used; [`Credentials::check`] finds the same.
    pub fn tls(&self) -> Result<Option<ClientConfig>, String> {
        match self.material() {
            Ok(None) => Ok(None),
            Ok(Some(material)) => material.config().map(Some),
            Err(problems) => {
                Err(problems.into_iter().next().map_or_else(|| FAILED.to_owned(), |(_, text)| text))
            }
        }
    }

    /// TLS settings of their own, else those of the system.
    ///
    /// # Errors
    /// As [`Credentials::tls`] and [`system_tls`].
    pub fn tls_or_system(&self) -> Result<ClientConfig, String> {
        self.tls()?.map_or_else(system_tls, Ok)
    }

    /// What the PEM texts hold, or all their problems by field.
    fn material(&self) -> Result<Option<Material>, Vec<(&'static str, String)>> {
        let Self::Pem { ca_cert, cert, private_key, private_key_password, .. } = self else {
            return Ok(None);
        };
        let mut problems = Vec::new();
        let mut read = |field: &'static str, text: &Option<String>| {
            let text = text.as_deref().map(unescaped).filter(|text| !text.trim().is_empty())?;
            match certificates(&text) {
                Ok(certificates) => Some(certificates),
                Err(text) => {
                    problems.push((field, text));
                    None
                }
            }
        };
        let roots = read("caCert", ca_cert);
        let chain = read("cert", cert);
        let key =
            private_key.as_ref().map(|key| unescaped(key.expose())).filter(|key| !key.trim().is_empty());
        let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.trim().is_empty());
        let identity = match (given(cert), key) {
            (true, Some(key)) => {
                let password = private_key_password.as_ref().map(Secret::expose).unwrap_or_default();
                match (chain, private_key_of(&key, password)) {
                    (Some(chain), Ok(key)) => Some((chain, key)),
                    (None, Ok(_)) => None,
                    (_, Err((field, text))) => {
                        problems.push((field, text));
                        None
                    }
                }
            }
            (true, None) => {
                problems.push(("privateKey", format!("{FAILED} a client certificate needs its private key")));
                None
            }
            (false, Some(_)) => {
                problems.push(("cert", format!("{FAILED} a private key needs its certificate")));
                None
            }
            (false, None) => None,
        };
        if problems.is_empty() { Ok(Some(Material { roots, identity })) } else { Err(problems) }
    }
}

/// What `cert.PEM` holds, taken apart.
struct Material {
    /// `None`: trust the system's.
    roots: Option<Vec<CertificateDer<'static>>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Material {
    fn config(self) -> Result<ClientConfig, String> {
        let failed = |error: rustls::Error| format!("{FAILED} {error}");
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(failed)?;
        let builder = match self.roots {
            Some(certificates) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates {
                    roots.add(certificate).map_err(failed)?;
                }
                builder.with_root_certificates(roots)
            }
            None => builder.dangerous().with_custom_certificate_verifier(system_verifier()?),
        };
        match self.identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(failed),
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

/// The cryptography of every sink.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: Mutex<Option<Arc<CryptoProvider>>> = Mutex::new(None);
    PROVIDER.lock().get_or_insert_with(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// The system's trust, read once and shared by all sinks; a failure is tried anew the next time.
fn system_verifier() -> Result<Arc<rustls_platform_verifier::Verifier>, String> {
    static VERIFIER: Mutex<Option<Arc<rustls_platform_verifier::Verifier>>> = Mutex::new(None);
    let mut shared = VERIFIER.lock();
    if let Some(verifier) = &*shared {
        return Ok(verifier.clone());
    }
    let verifier = rustls_platform_verifier::Verifier::new(provider())
        .map_err(|error| format!("{FAILED} the system's trusted certificates can't be read: {error}"))?;
    Ok(shared.insert(Arc::new(verifier)).clone())
}

/// TLS settings that trust what the system trusts, without a client certificate.
///
/// # Errors
/// A text for people when the system's certificates can't be read.
pub fn system_tls() -> Result<ClientConfig, String> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("{FAILED} {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(system_verifier()?)
        .with_no_client_auth())
}

/// TLS settings that trust nobody: for connections that use no TLS at all.
pub fn no_tls() -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// PEM that came through a form or shell with `\n` instead of line ends (spec UP-24).
fn unescaped(text: &str) -> String {
    if text.contains('\n') { text.to_owned() } else { text.replace("\\r", "").replace("\\n", "\n") }
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{FAILED} not a certificate in PEM: {error:?}"))?;
    if certificates.is_empty() {
        return Err(format!("{FAILED} there is no `BEGIN CERTIFICATE` in the text"));
    }
    Ok(certificates)
}

/// The first private key of a PEM text, or field and text of the problem.
fn private_key_of(text: &str, password: &str) -> Result<PrivateKeyDer<'static>, (&'static str, String)> {
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        if password.is_empty() {
            return Err((
                "privateKeyPassword",
                format!("{FAILED} the private key is encrypted; its password is missing"),
            ));
        }
        let start = text.find("-----BEGIN ENCRYPTED PRIVATE KEY").unwrap_or_default();
        let (_, document) = pkcs8::SecretDocument::from_pem(text[start..].trim())
            .map_err(|error| ("privateKey", format!("{FAILED} not a private key in PEM: {error}")))?;
        let encrypted = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes())
            .map_err(|error| ("privateKey", format!("{FAILED} not an encrypted PKCS#8 key: {error}")))?;
        let plain = encrypted.decrypt(password).map_err(|error| {
            ("privateKeyPassword", format!("{FAILED} the private key can't be decrypted: {error}"))
        })?;
        return Ok(PrivateKeyDer::Pkcs8(plain.as_bytes().to_vec().into()));
    }
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        // The key derivation of this old form is a single round of MD5; nobody should rely on it.
        return Err((
            "privateKey",
            format!(
                "{FAILED} the private key has the old OpenSSL encryption; convert it with \
                 `openssl pkcs8 -topk8 -v2 aes-256-cbc -in old.pem -out new.pem`"
            ),
        ));
    }
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| {
        let reason = match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                "there is no `BEGIN PRIVATE KEY`, `BEGIN RSA PRIVATE KEY` or `BEGIN EC PRIVATE KEY` in the text"
                    .to_owned()
            }
            // Not the error's own text: it may hold parts of what was read.
            _ => "not a private key in PEM".to_owned(),
        };
        ("privateKey", format!("{FAILED} {reason}"))
    })
}
