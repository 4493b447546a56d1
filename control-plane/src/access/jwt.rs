//! JSON Web Tokens: of a fixed key, or of a key set that is read again from time to time.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};
use serde_json::Value;
use tokio::sync::Notify;

use super::{config::JwtConfig, file, role::Role};

/// By how much clocks may differ.
const LEEWAY_SEC: u64 = 30;

/// Keys of a set that are looked at.
const KEYS_MAX: usize = 100;

/// Bytes of a key set.
const SET_BYTES_MAX: usize = 1 << 20;

/// How long a key set may take to be fetched.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two fetches of a set at least, whatever asks for them.
const FETCH_PAUSE: Duration = Duration::from_secs(5);

/// Checks tokens.
pub(crate) struct Jwt {
    config: JwtConfig,
    fixed: Vec<Key>,
    set: Option<Set>,
}

/// A key, and what may be signed with it.
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// A key set somewhere else.
struct Set {
    source: Source,
    keys: ArcSwap<Vec<Key>>,
    /// A token named a key that is not known.
    wanted: Notify,
}

enum Source {
    File(std::path::PathBuf),
    Url { url: reqwest::Url, client: reqwest::Client },
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) subject: String,
    /// The highest of the roles it names; nodes count as the lowest.
    pub(crate) role: Option<Role>,
    /// Epoch seconds.
    pub(crate) expires_sec: i64,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Jwt {
    /// Reads the keys that are in files.
    ///
    /// # Errors
    /// A text that names the setting.
    pub(crate) fn open(config: &JwtConfig) -> Result<Self, String> {
        let mut fixed = Vec::new();
        let secret = match &config.secret_file {
            Some(path) => file::text(path, "TBMQ_AUTH_JWT_SECRET_FILE")?.trim_end().to_owned(),
            None => config.secret.expose().to_owned(),
        };
        if !secret.is_empty() {
            if secret.len() < 32 {
                return Err("TBMQ_AUTH_JWT_SECRET must have at least 32 bytes, as HS256 asks".to_owned());
            }
            let key = DecodingKey::from_secret(secret.as_bytes());
            fixed.push(Key { id: None, algorithms: vec![Algorithm::HS256], key });
        }
        if let Some(path) = &config.key_file {
            let pem = file::text(path, "TBMQ_AUTH_JWT_KEY_FILE")?;
            fixed.push(public_key(pem.as_bytes()).ok_or_else(|| {
                format!(
                    "TBMQ_AUTH_JWT_KEY_FILE: {} holds no public key of RSA, EC (P-256, P-384) or Ed25519 in PEM",
                    path.display()
                )
            })?);
        }
        let set = config.jwks.as_deref().map(Set::open).transpose()?;
        Ok(Self { config: config.clone(), fixed, set })
    }

    /// Checks signature and times, issuer and audience as set. Does not wait.
    ///
    /// # Errors
    /// Why the token is not accepted.
    pub(crate) fn check(&self, token: &str) -> Result<Claims, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| "it can't be read".to_owned())?;
        let algorithm = header.alg;
        let validation = self.validation(algorithm);
        let mut problem = None;
        let held = self.set.as_ref().map(|set| set.keys.load_full());
        let keys = self.fixed.iter().chain(held.iter().flat_map(|keys| keys.iter()));
        for key in keys.filter(|key| key.fits(algorithm, header.kid.as_deref())) {
            match jsonwebtoken::decode::<Value>(token, &key.key, &validation) {
                Ok(data) => return self.read(&data.claims),
                Err(error) => problem = Some(error),
            }
        }
        match problem {
            Some(error) => Err(error.to_string()),
            None => {
                if let Some(set) = &self.set {
                    set.wanted.notify_one();
                }
                let id = header.kid.map(|id| format!(" with id {id:?}")).unwrap_or_default();
                Err(format!("there is no key{id} for {algorithm:?}"))
            }
        }
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_SEC;
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &self.config.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if self.config.audience.is_empty() {
            validation.validate_aud = false;
        } else {
            validation.set_audience(&self.config.audience);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn read(&self, claims: &Value) -> Result<Claims, String> {
        let expires = claims.get("exp").and_then(Value::as_f64).ok_or("it has no exp")?;
        let role = self.config.role_claim.split('.').try_fold(claims, |at, name| at.get(name));
        let names: Vec<&str> = match role {
            Some(Value::String(name)) => vec![name.as_str()],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let mut roles: Vec<Role> = names.iter().filter_map(|name| name.parse().ok()).collect();
        roles.sort_by_key(|role| (*role != Role::Node, *role));
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        Ok(Claims { subject: subject.to_owned(), role: roles.last().copied(), expires_sec: expires as i64 })
    }

    /// Keeps the key set up to date; never ends.
    pub(crate) async fn follow(&self, failed: impl Fn()) {
        let Some(set) = &self.set else { return std::future::pending().await };
        loop {
            match set.source.read().await {
                Ok(keys) => {
                    tracing::debug!(keys = keys.len(), "keys of JWTs read");
                    set.keys.store(Arc::new(keys));
                }
                Err(error) => {
                    failed();
                    tracing::warn!(
                        error,
                        "the keys of JWTs (TBMQ_AUTH_JWT_JWKS) can't be read; the old ones stay"
                    );
                }
            }
            tokio::time::sleep(FETCH_PAUSE).await;
            let again = if set.keys.load().is_empty() { Duration::ZERO } else { self.config.jwks_refresh };
            tokio::select! {
                () = tokio::time::sleep(again.saturating_sub(FETCH_PAUSE)) => {}
                () = set.wanted.notified() => {}
            }
        }
    }
}

impl Key {
    fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithms.contains(&algorithm)
            && match (&self.id, id) {
                (Some(own), Some(wanted)) => own == wanted,
                _ => true,
            }
    }
}

impl Set {
    /// A file is read at once, so that a bad one is told at the start; a URL may come up later.
    fn open(place: &str) -> Result<Self, String> {
        let is_url = place.starts_with("https://") || place.starts_with("http://");
        let (source, keys) = if is_url {
            let url = place.parse().map_err(|error| format!("TBMQ_AUTH_JWT_JWKS: {place:?}: {error}"))?;
            (Source::Url { url, client: client()? }, Vec::new())
        } else {
            let path = Path::new(place);
            let keys = parse(file::text(path, "TBMQ_AUTH_JWT_JWKS")?.as_bytes())
                .map_err(|error| format!("TBMQ_AUTH_JWT_JWKS: {place}: {error}"))?;
            (Source::File(path.to_owned()), keys)
        };
        Ok(Self { source, keys: ArcSwap::from_pointee(keys), wanted: Notify::new() })
    }
}

impl Source {
    async fn read(&self) -> Result<Vec<Key>, String> {
        match self {
            Self::File(path) => parse(&tokio::fs::read(path).await.map_err(|error| error.to_string())?),
            Self::Url { url, client } => {
                let fetch = async {
                    let mut response = client.get(url.clone()).send().await?.error_for_status()?;
                    let mut body = Vec::new();
                    while let Some(chunk) = response.chunk().await? {
                        body.extend_from_slice(&chunk);
                        if body.len() > SET_BYTES_MAX {
                            break;
                        }
                    }
                    Ok::<_, reqwest::Error>(body)
                };
                let body = fetch.await.map_err(|error| chain(&error))?;
                if body.len() > SET_BYTES_MAX {
                    return Err(format!("the key set has more than {SET_BYTES_MAX} bytes"));
                }
                parse(&body)
            }
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn client() -> Result<reqwest::Client, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls_platform_verifier::Verifier::new(provider.clone())
        .map_err(|error| format!("the system's trusted certificates can't be read: {error}"))?;
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(FETCH_TIMEOUT)
        .build()
        .map_err(|error| chain(&error))
}

/// The signing keys of a set; keys that serve something else are left out.
fn parse(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: JwkSet = serde_json::from_slice(text).map_err(|error| format!("not a key set: {error}"))?;
    let keys: Vec<Key> = set.keys.iter().filter_map(key_of).take(KEYS_MAX).collect();
    if keys.is_empty() {
        return Err("the key set holds no public key of RSA, EC (P-256, P-384) or Ed25519".to_owned());
    }
    Ok(keys)
}

fn key_of(jwk: &Jwk) -> Option<Key> {
    if matches!(&jwk.common.public_key_use, Some(used) if *used != PublicKeyUse::Signature) {
        return None;
    }
    let possible: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa.algorithms(),
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        // A secret has no place in a public set.
        _ => return None,
    };
    let algorithms = match jwk.common.key_algorithm {
        Some(named) => {
            let named = Algorithm::try_from(named).ok()?;
            possible.iter().copied().filter(|algorithm| *algorithm == named).collect()
        }
        None => possible.to_vec(),
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { id: jwk.common.key_id.clone(), algorithms, key })
}

fn public_key(pem: &[u8]) -> Option<Key> {
    let key = DecodingKey::from_rsa_pem(pem)
        .or_else(|_| DecodingKey::from_ec_pem(pem))
        .or_else(|_| DecodingKey::from_ed_pem(pem))
        .ok()?;
    Some(Key { id: None, algorithms: key.family().algorithms().to_vec(), key })
}

#[cfg(test)]
mod tests;
