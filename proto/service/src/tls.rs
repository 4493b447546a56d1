//! TLS of a server: certificates, keys, authorities and their revocations come from files, and come anew when these
//! change.

mod by_name;
mod not_after;
mod revocations;
mod trust;

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

use self::{by_name::ByName, revocations::List, trust::Timeless};
pub use self::{
    not_after::{End, NotAfter},
    trust::Trust,
};
use crate::{config::Secret, file};

/// The shortest pause between two looks at the files.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// A file, and the setting that names it, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where it is.
    pub path: PathBuf,
    /// The setting's name.
    pub setting: String,
}

impl Named {
    /// A file under the name of its setting.
    pub fn new(setting: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), setting: setting.into() }
    }

    fn text(&self) -> Result<String, String> {
        file::text(&self.path, &self.setting)
    }
}

/// Whether clients show a certificate; of no meaning without authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked for one.
    None,
    /// They may have none; one that they show must be good.
    Optional,
    /// A handshake without one fails.
    Required,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Certificate chain, in PEM.
    pub certificate: Named,
    /// Its private key, in PEM.
    pub key: Named,
    /// Password of the private key, if that is encrypted.
    pub key_password: Secret,
}

/// What a server's TLS is made of.
#[derive(Clone, Debug)]
pub struct Source {
    /// The server's certificate.
    pub own: Pair,
    /// Further certificates, for clients that ask for a host that is named in one of them.
    pub more: Vec<Pair>,
    /// Authorities that client certificates must be of, in PEM.
    pub client_ca: Option<Named>,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
    /// Lists of revoked certificates, in PEM; if there are any, every authority on a client's path must have one.
    pub client_crls: Vec<Named>,
    /// Whether client certificates count that are not valid yet, or not any more.
    pub skips_validity: bool,
    /// The versions that are spoken.
    pub versions: &'static [&'static SupportedProtocolVersion],
    /// Cipher suites by their names at IANA; empty: all that there are.
    pub cipher_suites: Vec<String>,
    /// Names of application protocols; empty: the extension is not answered.
    pub alpn: Vec<Vec<u8>>,
}

/// What the files hold.
#[derive(Clone, PartialEq, Eq)]
struct Material {
    /// Chain and key.
    own: (String, String),
    more: Vec<(String, String)>,
    client_ca: Option<String>,
    client_crls: Vec<String>,
}

/// How clients are verified in a handshake, and what about them after it.
struct Clients {
    verifier: Arc<dyn ClientCertVerifier>,
    trust: Trust,
    lists: Vec<List>,
}

/// What the next handshake uses.
#[derive(Debug)]
pub struct Current {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    /// For the certificate that a client has shown in it; `None`: clients are not asked for one.
    pub trust: Option<Trust>,
    /// Until when the certificates are valid that are shown in it.
    pub ends: Vec<End>,
    lists: Vec<List>,
}

/// What whoever follows the files is told.
#[derive(Debug)]
pub enum Told<'a> {
    /// This is in use: at the beginning, and when the files have changed.
    InUse(&'a Current),
    /// The files have changed and can't be used; told once for each reason.
    Refused,
    /// Of so many more lists of revoked certificates is the next one overdue (of fewer: below 0).
    Overdue(i64),
}

/// A server's TLS, as its files last held it. Clones share it.
#[derive(Clone)]
pub struct ServerTls {
    source: Arc<Source>,
    current: Arc<ArcSwap<Current>>,
    read: Material,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files. Blocks while they are read.
    ///
    /// # Errors
    /// A text that names the setting.
    pub fn open(source: Source) -> Result<Self, String> {
        let read = Material::read(&source)?;
        let current = Arc::new(ArcSwap::from_pointee(read.build(&source)?));
        Ok(Self { source: Arc::new(source), current, read })
    }

    /// What the next handshake uses.
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Takes over what changes in the files, and looks at them at this interval (50 ms at least). What can't be used
    /// changes nothing. Lists of revoked certificates count although the next one is overdue. Never ends.
    pub async fn follow(mut self, interval: Duration, tell: impl Fn(Told<'_>)) {
        tell(Told::InUse(&self.current()));
        let mut refused = None;
        let mut overdue = Vec::new();
        loop {
            let before = std::mem::replace(&mut overdue, revocations::overdue(&self.current().lists));
            for list in overdue.iter().filter(|list| !before.contains(list)) {
                list.warn();
            }
            if overdue.len() != before.len() {
                tell(Told::Overdue(overdue.len() as i64 - before.len() as i64));
            }
            tokio::time::sleep(interval.max(PAUSE_MIN)).await;
            let source = self.source.clone();
            let found = tokio::task::spawn_blocking(move || Material::read(&source)).await;
            let found = found.unwrap_or_else(|error| Err(error.to_string()));
            let built = match &found {
                Ok(found) if *found == self.read => {
                    refused = None;
                    continue;
                }
                Ok(found) => found.build(&self.source),
                Err(error) => Err(error.clone()),
            };
            let setting = &self.source.own.certificate.setting;
            match (built, found) {
                (Ok(built), Ok(found)) => {
                    tell(Told::InUse(&built));
                    self.current.store(Arc::new(built));
                    self.read = found;
                    refused = None;
                    tracing::info!(setting, "certificates were read anew");
                }
                (Err(error), _) if refused.as_ref() != Some(&error) => {
                    tell(Told::Refused);
                    tracing::warn!(error, setting, "new certificates can't be used; the old ones stay");
                    refused = Some(error);
                }
                _ => {}
            }
        }
    }
}

impl Material {
    fn read(source: &Source) -> Result<Self, String> {
        Ok(Self {
            own: source.own.text()?,
            more: source.more.iter().map(Pair::text).collect::<Result<_, _>>()?,
            client_ca: source.client_ca.as_ref().map(Named::text).transpose()?,
            client_crls: source.client_crls.iter().map(Named::text).collect::<Result<_, _>>()?,
        })
    }

    fn build(&self, source: &Source) -> Result<Current, String> {
        let mut provider = rustls::crypto::ring::default_provider();
        restrict(&mut provider, &source.cipher_suites)?;
        let provider = Arc::new(provider);
        let own = &source.own.certificate.setting;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(source.versions)
            .map_err(|error| format!("{own}: {error}"))?;
        let clients = self.clients(source, &provider)?;
        let (builder, trust, lists) = match clients {
            Some(Clients { verifier, trust, lists }) => {
                (builder.with_client_cert_verifier(verifier), Some(trust), lists)
            }
            None => (builder.with_no_client_auth(), None, Vec::new()),
        };
        let first = source.own.load(&self.own, &provider)?;
        let mut ends = Vec::from_iter(End::of(&first.cert, &source.own.certificate));
        let mut resolver = ByName::new(first);
        for (pair, text) in source.more.iter().zip(&self.more) {
            let added = pair.load(text, &provider)?;
            ends.extend(End::of(&added.cert, &pair.certificate));
            let added = resolver.add(added);
            added.map_err(|reason| format!("{}: {reason}", pair.certificate.setting))?;
        }
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols.clone_from(&source.alpn);
        Ok(Current { config: Arc::new(config), trust, ends, lists })
    }

    /// How clients are verified; `None`: they are not asked for a certificate.
    fn clients(&self, source: &Source, provider: &Arc<CryptoProvider>) -> Result<Option<Clients>, String> {
        let (Some(text), Some(Named { setting, .. })) = (&self.client_ca, &source.client_ca) else {
            return Ok(None);
        };
        if source.client_auth == ClientAuth::None {
            return Ok(None);
        }
        let unusable = |error: &dyn std::fmt::Display| format!("{setting}: {error}");
        let mut roots = RootCertStore::empty();
        for certificate in certificates(text, setting)? {
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
        let roots = Arc::new(roots);
        let mut verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let mut lists = Vec::new();
        for (text, named) in self.client_crls.iter().zip(&source.client_crls) {
            let held: Vec<CertificateRevocationListDer<'_>> =
                of_pem(text, &named.setting, "list of revoked certificates")?;
            lists.extend(held.iter().filter_map(|list| List::read(list, named)));
            verifier = verifier.with_crls(held);
        }
        if source.client_auth == ClientAuth::Optional {
            verifier = verifier.allow_unauthenticated();
        }
        let inner = verifier.build().map_err(|error| match source.client_crls.first() {
            Some(named) => format!("{setting} and {}: {error}", named.setting),
            None => unusable(&error),
        })?;
        let (provider, skips_validity) = (provider.clone(), source.skips_validity);
        let trust = Trust { roots, provider, skips_validity };
        let verifier: Arc<dyn ClientCertVerifier> =
            if skips_validity { Arc::new(Timeless { inner, trust: trust.clone() }) } else { inner };
        Ok(Some(Clients { verifier, trust, lists }))
    }
}

impl Pair {
    fn text(&self) -> Result<(String, String), String> {
        Ok((self.certificate.text()?, self.key.text()?))
    }

    fn load(
        &self,
        (chain, key): &(String, String),
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, String> {
        let settings = (&self.certificate.setting, &self.key.setting);
        let chain = certificates(chain, settings.0)?;
        let key = private_key(key, settings.1, &self.key_password)?;
        CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| format!("{} and {} don't fit: {error}", settings.0, settings.1))
    }
}

/// Leaves only these cipher suites. rustls writes `TLS13_` where IANA writes `TLS_`.
fn restrict(provider: &mut CryptoProvider, names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    let known: Vec<_> = provider
        .cipher_suites
        .iter()
        .map(|suite| format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1))
        .collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(format!("unknown cipher suite {unknown:?}; known are {}", known.join(", ")));
    }
    let mut known = known.iter();
    provider.cipher_suites.retain(|_| known.next().is_some_and(|name| names.contains(name)));
    Ok(())
}

fn certificates(text: &str, setting: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    of_pem(text, setting, "certificate")
}

/// All of a kind that a PEM text holds; one at least.
fn of_pem<T: PemObject>(text: &str, setting: &str, kind: &str) -> Result<Vec<T>, String> {
    let all: Vec<_> = T::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{setting}: not a {kind} in PEM: {error:?}"))?;
    if all.is_empty() {
        return Err(format!("{setting}: the file holds no {kind} in PEM"));
    }
    Ok(all)
}

/// The private key of a PEM text; `setting` names it in messages, which hold no part of what was read.
///
/// # Errors
/// It is none, or its password does not fit.
pub fn private_key(text: &str, setting: &str, password: &Secret) -> Result<PrivateKeyDer<'static>, String> {
    const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY";
    let Some(start) = text.find(ENCRYPTED) else {
        return PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| format!("{setting}: the file holds no private key in PEM"));
    };
    if password.expose().is_empty() {
        return Err(format!("{setting}: the private key is encrypted, and there is no password"));
    }
    let unusable = |_| format!("{setting}: the file holds no encrypted private key in PKCS#8");
    let (_, document) = pkcs8::SecretDocument::from_pem(text[start..].trim())
        .map_err(|_| format!("{setting}: the file holds no private key in PEM"))?;
    let plain = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes())
        .map_err(unusable)?
        .decrypt(password.expose())
        .map_err(|_| format!("{setting}: the password does not fit the private key"))?;
    Ok(PrivateKeyDer::Pkcs8(plain.as_bytes().to_vec().into()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// Files of a certificate, with this key beside it.
    fn source(folder: &tempfile::TempDir, certificate: &str, key: &str) -> Source {
        let named = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Named::new(name.to_uppercase(), path)
        };
        Source {
            own: Pair {
                certificate: named("cert", certificate),
                key: named("key", key),
                key_password: Secret::default(),
            },
            more: Vec::new(),
            client_ca: None,
            client_auth: ClientAuth::None,
            client_crls: Vec::new(),
            skips_validity: false,
            versions: rustls::DEFAULT_VERSIONS,
            cipher_suites: Vec::new(),
            alpn: Vec::new(),
        }
    }

    fn made() -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (parameters.self_signed(&key).unwrap().pem(), key)
    }

    #[test]
    fn an_encrypted_key_needs_its_password() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = made();
        let plain = key.serialize_der();
        let encrypted = pkcs8::PrivateKeyInfo::try_from(plain.as_slice())
            .unwrap()
            .encrypt_with_params(
                pkcs8::pkcs5::pbes2::Parameters::pbkdf2_sha256_aes256cbc(1, b"salt salt", &[7; 16]).unwrap(),
                "open sesame",
            )
            .unwrap()
            .to_pem("ENCRYPTED PRIVATE KEY", pkcs8::LineEnding::LF)
            .unwrap();
        let mut source = source(&folder, &certificate, &encrypted);
        let opened = |password: &str, source: &mut Source| {
            source.own.key_password = Secret::new(password);
            ServerTls::open(source.clone()).map(drop)
        };
        assert_eq!(opened("open sesame", &mut source), Ok(()));
        assert_eq!(
            opened("wrong", &mut source).unwrap_err(),
            "KEY: the password does not fit the private key"
        );
        let missing = opened("", &mut source).unwrap_err();
        assert_eq!(missing, "KEY: the private key is encrypted, and there is no password");
    }

    #[test]
    fn a_problem_is_told_with_the_setting_and_without_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let ((certificate, key), (_, other)) = (made(), made());
        let of = |certificate: &str, key: &str| {
            ServerTls::open(source(&folder, certificate, key)).map(drop).unwrap_err()
        };
        assert!(of(&certificate, &other.serialize_pem()).starts_with("CERT and KEY don't fit"));
        assert_eq!(of(&certificate, "hush"), "KEY: the file holds no private key in PEM");
        assert_eq!(of("", &key.serialize_pem()), "CERT: the file holds no certificate in PEM");
    }

    #[test]
    fn cipher_suites_are_named_as_iana_does() {
        let mut provider = rustls::crypto::ring::default_provider();
        let all = provider.cipher_suites.len();
        restrict(&mut provider, &[]).unwrap();
        assert_eq!(provider.cipher_suites.len(), all);
        restrict(&mut provider, &["TLS_AES_256_GCM_SHA384".to_owned()]).unwrap();
        assert_eq!(provider.cipher_suites[0].suite(), rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
        assert_eq!(provider.cipher_suites.len(), 1);
        let unknown = restrict(&mut provider, &["TLS_RSA_WITH_RC4_128_MD5".to_owned()]).unwrap_err();
        assert!(unknown.contains("\"TLS_RSA_WITH_RC4_128_MD5\""), "{unknown}");
    }
}
