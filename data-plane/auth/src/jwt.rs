//! JSON Web Tokens: keys, and whether a token is one of theirs and holds now.
//!
//! A key says itself which algorithms it serves: what the token's header asks for never turns a public key into a
//! secret. There is no algorithm `none`.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Validation,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};
use ring::digest::{Context, SHA256};
use serde_json::Value;

#[cfg(test)]
mod tests;

/// Keys of a set that are looked at.
pub const KEYS_MAX: usize = 100;

/// Bytes of a secret at least, as HS256 asks.
pub const SECRET_BYTES_MIN: usize = 32;

/// A key, and what may be signed with it.
pub struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// What a token must say besides being signed and in time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What `iss` must be; absent: not looked at.
    pub issuer: Option<String>,
    /// What `aud` must hold, one of them; none: not looked at.
    pub audience: Vec<String>,
    /// By how many seconds clocks may differ.
    pub leeway_s: u32,
    /// Whether a token without `exp` is refused.
    pub expiry_required: bool,
}

/// Why a key can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// A secret that can be guessed.
    #[error("a secret has at least {SECRET_BYTES_MIN} bytes, as HS256 asks")]
    ShortSecret,
    /// Not a public key that is known.
    #[error("it holds no public key of RSA, EC (P-256, P-384) or Ed25519 in PEM")]
    NotPublic,
}

/// Why a key set can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSet {
    /// No JSON, or not that of a key set.
    #[error("not a key set: {0}")]
    Unreadable(serde_json::Error),
    /// Not one key that tokens may be signed with.
    #[error("the key set holds no public key of RSA, EC (P-256, P-384) or Ed25519")]
    NoKeys,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a signed token, or its algorithm is unknown.
    #[error("it can't be read")]
    Unreadable,
    /// Its header asks for what this side does not know (`crit`).
    #[error("its header asks for extensions")]
    Extended,
    /// None of the keys has its id and algorithm: a newer set may have.
    #[error("there is no key{} for {algorithm:?}", id.as_ref().map(|id| format!(" with id {id:?}")).unwrap_or_default())]
    NoKey {
        /// `kid` of its header.
        id: Option<String>,
        /// `alg` of its header.
        algorithm: Algorithm,
    },
    /// Someone else has signed it.
    #[error("its signature is not of the key")]
    Signature,
    /// `iss` is another.
    #[error("its issuer is another")]
    Issuer,
    /// `aud` holds none that is meant.
    #[error("it is for another audience")]
    Audience,
    /// A claim that is needed is missing, or is no number or text where there should be one.
    #[error("it has no {0} that can be read")]
    Claim(String),
    /// `exp` has passed.
    #[error("it has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("it is not valid yet")]
    TooEarly,
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// All of it; an object.
    pub all: Value,
    /// `exp`, in epoch seconds.
    pub expires_s: Option<i64>,
}

/// By which key a token was signed. Of the key it has only a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    algorithm: Algorithm,
    /// `kid` of its header.
    id: Option<Box<str>>,
    key: [u8; 32],
}

impl std::fmt::Debug for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signed")
            .field("algorithm", &self.algorithm)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// A secret of HS256, and of HS384 and HS512 if it has as many bits (RFC 7518 §3.2).
    ///
    /// # Errors
    /// [`InvalidKey::ShortSecret`].
    pub fn secret(secret: &[u8]) -> Result<Self, InvalidKey> {
        let algorithms = match secret.len() {
            ..SECRET_BYTES_MIN => return Err(InvalidKey::ShortSecret),
            SECRET_BYTES_MIN..48 => vec![Algorithm::HS256],
            48..64 => vec![Algorithm::HS256, Algorithm::HS384],
            64.. => vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512],
        };
        Ok(Self { id: None, algorithms, key: DecodingKey::from_secret(secret) })
    }

    /// A public key in PEM.
    ///
    /// # Errors
    /// [`InvalidKey::NotPublic`].
    pub fn public(pem: &[u8]) -> Result<Self, InvalidKey> {
        let key = DecodingKey::from_rsa_pem(pem)
            .or_else(|_| DecodingKey::from_ec_pem(pem))
            .or_else(|_| DecodingKey::from_ed_pem(pem))
            .map_err(|_| InvalidKey::NotPublic)?;
        Ok(Self { id: None, algorithms: key.family().algorithms().to_vec(), key })
    }

    /// The signing keys of a JSON Web Key Set; keys that serve something else are left out.
    ///
    /// # Errors
    /// See [`InvalidSet`].
    pub fn set(text: &[u8]) -> Result<Vec<Self>, InvalidSet> {
        let set: JwkSet = serde_json::from_slice(text).map_err(InvalidSet::Unreadable)?;
        let keys: Vec<Self> = set.keys.iter().filter_map(Self::of).take(KEYS_MAX).collect();
        if keys.is_empty() { Err(InvalidSet::NoKeys) } else { Ok(keys) }
    }

    fn of(jwk: &Jwk) -> Option<Self> {
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
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
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
        Some(Self { id: jwk.common.key_id.clone(), algorithms, key })
    }

    /// Tells keys apart.
    fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Context::new(&SHA256);
        let parts: [&[u8]; 2] = match self.key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => [bytes, &[]],
            DecodingKeyKind::RsaModulusExponent { n, e } => [n, e],
        };
        for part in parts {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithms.contains(&algorithm)
            && match (&self.id, id) {
                (Some(own), Some(wanted)) => own == wanted,
                _ => true,
            }
    }
}

/// Checks signature, times, issuer and audience. Takes about 0.1 ms a key that fits.
///
/// # Errors
/// See [`Refused`]; of several keys, what the last one says.
pub fn check<'a>(
    token: &str,
    keys: impl IntoIterator<Item = &'a Key>,
    rules: &Rules,
    now_s: i64,
) -> Result<Claims, Refused> {
    check_signed(token, keys, rules, now_s).map(|(claims, _)| claims)
}

/// As [`check`]; says by which key it was signed, too.
///
/// # Errors
/// See [`check`].
pub fn check_signed<'a>(
    token: &str,
    keys: impl IntoIterator<Item = &'a Key>,
    rules: &Rules,
    now_s: i64,
) -> Result<(Claims, Signed), Refused> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| Refused::Unreadable)?;
    if header.crit.is_some() {
        return Err(Refused::Extended);
    }
    let (algorithm, id) = (header.alg, header.kid);
    let validation = rules.validation(algorithm);
    let mut problem = None;
    for key in keys.into_iter().filter(|key| key.fits(algorithm, id.as_deref())) {
        match jsonwebtoken::decode::<Value>(token, &key.key, &validation) {
            Ok(data) => {
                let claims = rules.in_time(data.claims, now_s)?;
                let id = id.map(String::into_boxed_str);
                return Ok((claims, Signed { algorithm, id, key: key.fingerprint() }));
            }
            Err(error) => problem = Some(Refused::from(error.into_kind())),
        }
    }
    Err(problem.unwrap_or(Refused::NoKey { id, algorithm }))
}

/// Checks again what a token says that was good before, by other keys and rules. Its times are not looked at: they were
/// when it came. Takes microseconds.
///
/// # Errors
/// See [`Refused`].
pub fn check_again<'a>(
    claims: Value,
    signed: &Signed,
    keys: impl IntoIterator<Item = &'a Key>,
    rules: &Rules,
) -> Result<Claims, Refused> {
    let Signed { algorithm, id, key } = signed;
    let mut fitting = keys.into_iter().filter(|key| key.fits(*algorithm, id.as_deref())).peekable();
    if fitting.peek().is_none() {
        return Err(Refused::NoKey { id: id.as_deref().map(ToOwned::to_owned), algorithm: *algorithm });
    }
    if !fitting.any(|fitting| fitting.fingerprint() == *key) {
        return Err(Refused::Signature);
    }
    if let Some(issuer) = &rules.issuer
        && !holds(&claims, "iss", std::slice::from_ref(issuer))?
    {
        return Err(Refused::Issuer);
    }
    if !rules.audience.is_empty() && !holds(&claims, "aud", &rules.audience)? {
        return Err(Refused::Audience);
    }
    let expires_s = time(&claims, "exp")?;
    if expires_s.is_none() && rules.expiry_required {
        return Err(Refused::Claim("exp".to_owned()));
    }
    Ok(Claims { all: claims, expires_s })
}

/// Whether a claim that is a text, or a list of texts, has one of these.
fn holds(claims: &Value, name: &str, wanted: &[String]) -> Result<bool, Refused> {
    let refused = || Refused::Claim(name.to_owned());
    let is_wanted = |text: &str| wanted.iter().any(|one| one == text);
    match claims.get(name).ok_or_else(refused)? {
        Value::String(text) => Ok(is_wanted(text)),
        Value::Array(all) => {
            let texts: Option<Vec<&str>> = all.iter().map(Value::as_str).collect();
            Ok(texts.ok_or_else(refused)?.into_iter().any(is_wanted))
        }
        _ => Err(refused()),
    }
}

impl Rules {
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        // Times are judged by the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let mut required = Vec::new();
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if self.audience.is_empty() {
            validation.validate_aud = false;
        } else {
            validation.set_audience(&self.audience);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn in_time(&self, claims: Value, now_s: i64) -> Result<Claims, Refused> {
        let leeway = i64::from(self.leeway_s);
        // What is no object would have no claims, and nothing to compare.
        if !claims.is_object() {
            return Err(Refused::Unreadable);
        }
        let expires_s = time(&claims, "exp")?;
        if expires_s.is_none() && self.expiry_required {
            return Err(Refused::Claim("exp".to_owned()));
        }
        if expires_s.is_some_and(|at| at.saturating_add(leeway) <= now_s) {
            return Err(Refused::Expired);
        }
        if time(&claims, "nbf")?.is_some_and(|at| at > now_s.saturating_add(leeway)) {
            return Err(Refused::TooEarly);
        }
        Ok(Claims { all: claims, expires_s })
    }
}

/// A time in epoch seconds, which may have a fraction.
fn time(claims: &Value, name: &str) -> Result<Option<i64>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => {
            let seconds = value.as_f64().ok_or_else(|| Refused::Claim(name.to_owned()))?;
            // Saturates.
            Ok(Some(seconds as i64))
        }
    }
}

impl From<ErrorKind> for Refused {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::MissingRequiredClaim(name) | ErrorKind::InvalidClaimFormat(name) => Self::Claim(name),
            ErrorKind::InvalidToken | ErrorKind::Base64(_) | ErrorKind::Json(_) | ErrorKind::Utf8(_) => {
                Self::Unreadable
            }
            // Or the key is of another curve.
            _ => Self::Signature,
        }
    }
}
