//! JSON Web Tokens: of a fixed key, or of a key set that is read again from time to time.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use serde_json::Value;
use tbmq_auth::jwt::{self, Key, Refused, Rules};
use tokio::sync::Notify;

use super::{config::JwtConfig, file, role::Role};

/// By how much clocks may differ.
const LEEWAY_SEC: u32 = 30;

/// Bytes of a key set.
const SET_BYTES_MAX: usize = 1 << 20;

/// How long a key set may take to be fetched.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two fetches of a set at least, whatever asks for them.
const FETCH_PAUSE: Duration = Duration::from_secs(5);

/// Checks tokens.
pub(crate) struct Jwt {
    config: JwtConfig,
    rules: Rules,
    fixed: Vec<Key>,
    set: Option<Set>,
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
            let key = Key::secret(secret.as_bytes());
            fixed.push(key.map_err(|error| format!("TBMQ_AUTH_JWT_SECRET: {error}"))?);
        }
        if let Some(path) = &config.key_file {
            let pem = file::text(path, "TBMQ_AUTH_JWT_KEY_FILE")?;
            let key = Key::public(pem.as_bytes());
            fixed.push(key.map_err(|error| format!("TBMQ_AUTH_JWT_KEY_FILE: {}: {error}", path.display()))?);
        }
        let set = config.jwks.as_deref().map(Set::open).transpose()?;
        let rules = Rules {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            leeway_s: LEEWAY_SEC,
            expiry_required: true,
        };
        Ok(Self { config: config.clone(), rules, fixed, set })
    }

    /// Checks signature and times, issuer and audience as set. Does not wait.
    ///
    /// # Errors
    /// Why the token is not accepted.
    pub(crate) fn check(&self, token: &str) -> Result<Claims, String> {
        let held = self.set.as_ref().map(|set| set.keys.load_full());
        let keys = self.fixed.iter().chain(held.iter().flat_map(|keys| keys.iter()));
        match jwt::check(token, keys, &self.rules, tbmq_service::time::now_ms() / 1_000) {
            Ok(claims) => Ok(self.read(&claims)),
            Err(refused) => {
                if let (Refused::NoKey { .. }, Some(set)) = (&refused, &self.set) {
                    set.wanted.notify_one();
                }
                Err(refused.to_string())
            }
        }
    }

    fn read(&self, claims: &jwt::Claims) -> Claims {
        let role = self.config.role_claim.split('.').try_fold(&claims.all, |at, name| at.get(name));
        let names: Vec<&str> = match role {
            Some(Value::String(name)) => vec![name.as_str()],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let mut roles: Vec<Role> = names.iter().filter_map(|name| name.parse().ok()).collect();
        roles.sort_by_key(|role| (*role != Role::Node, *role));
        let subject = claims.all.get("sub").and_then(Value::as_str).unwrap_or_default();
        Claims {
            subject: subject.to_owned(),
            role: roles.last().copied(),
            expires_sec: claims.expires_s.unwrap_or_default(),
        }
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

impl Set {
    /// A file is read at once, so that a bad one is told at the start; a URL may come up later.
    fn open(place: &str) -> Result<Self, String> {
        let is_url = place.starts_with("https://") || place.starts_with("http://");
        let (source, keys) = if is_url {
            let url = place.parse().map_err(|error| format!("TBMQ_AUTH_JWT_JWKS: {place:?}: {error}"))?;
            (Source::Url { url, client: client()? }, Vec::new())
        } else {
            let path = Path::new(place);
            let keys = Key::set(file::text(path, "TBMQ_AUTH_JWT_JWKS")?.as_bytes())
                .map_err(|error| format!("TBMQ_AUTH_JWT_JWKS: {place}: {error}"))?;
            (Source::File(path.to_owned()), keys)
        };
        Ok(Self { source, keys: ArcSwap::from_pointee(keys), wanted: Notify::new() })
    }
}

impl Source {
    async fn read(&self) -> Result<Vec<Key>, String> {
        match self {
            Self::File(path) => {
                let text = tokio::fs::read(path).await.map_err(|error| error.to_string())?;
                Key::set(&text).map_err(|error| error.to_string())
            }
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
                Key::set(&body).map_err(|error| error.to_string())
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

#[cfg(test)]
mod tests;
