//! CONNECT with a JSON Web Token as password: TBMQ's JWT provider (broker spec §4.7), with issuer, audience and the end
//! of a token besides.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    acl::{Acl, Identity, RuleSet},
    credentials::ClientType,
    external::{Accepted, AuthRules, Credentials, Endpoint, Hidden, Invalid, Outcome},
    jwt::{self, Key, Refused, Rules, Signed},
};

#[cfg(test)]
mod tests;

/// The secret that TBMQ has published as its default.
const PUBLISHED_SECRET: &str = "please-change-this-32-char-jwt-secret";

/// Seconds between two readings of a key set at least, and by default.
const REFRESH_S_MIN: u64 = 300;

/// Seconds that clocks may differ by at most.
const LEEWAY_S_MAX: u32 = 600;

/// Bytes of a token's claims that are kept, so that its client can be judged again.
pub const CLAIMS_BYTES_MAX: usize = 4096;

/// Patterns that a token may bring: they are compiled for every CONNECT.
pub const PATTERNS_MAX: usize = 100;

/// The configuration as TBMQ writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    #[serde(rename = "type")]
    _type: Option<String>,
    #[serde(default)]
    default_client_type: ClientType,
    jwt_verifier_configuration: Verifier,
    #[serde(default)]
    auth_claims: Option<Map<String, Value>>,
    #[serde(default)]
    client_type_claims: Option<Map<String, Value>>,
    #[serde(default)]
    auth_rules: Option<AuthRules>,
    #[serde(default)]
    pub_auth_rule_claim: Option<String>,
    #[serde(default)]
    sub_auth_rule_claim: Option<String>,
    // TBMQ has none of these.
    #[serde(default)]
    issuer: Option<String>,
    #[serde(default)]
    audience: Vec<String>,
    #[serde(default = "leeway")]
    leeway: u32,
    #[serde(default)]
    disconnect_at_expiry: bool,
}

/// As the library that TBMQ uses.
fn leeway() -> u32 {
    60
}

#[derive(Deserialize)]
#[serde(tag = "jwtVerifierType", deny_unknown_fields)]
enum Verifier {
    #[serde(rename = "ALGORITHM_BASED", rename_all = "camelCase")]
    Algorithm { jwt_sign_algorithm_configuration: Algorithm },
    #[serde(rename = "JWKS", rename_all = "camelCase")]
    Jwks {
        endpoint: String,
        #[serde(default)]
        headers: Option<Map<String, Value>>,
        #[serde(default = "refresh")]
        refresh_interval: u64,
        #[serde(default)]
        credentials: Option<Credentials>,
    },
}

fn refresh() -> u64 {
    REFRESH_S_MIN
}

#[derive(Deserialize)]
#[serde(tag = "algorithm", deny_unknown_fields)]
enum Algorithm {
    #[serde(rename = "HMAC_BASED")]
    Hmac { secret: Hidden },
    #[serde(rename = "PEM_KEY", rename_all = "camelCase")]
    Pem {
        #[serde(rename = "publicPemKeyFileName", default)]
        _file_name: Option<String>,
        public_pem_key: String,
    },
}

/// Judges tokens.
#[derive(Debug)]
pub struct Provider {
    keys: Keys,
    rules: Rules,
    client_type: ClientType,
    auth_claims: Vec<(String, String)>,
    client_type_claims: Vec<(String, String)>,
    defaults: AuthRules,
    /// The defaults compiled, for tokens that bring no rules.
    default_set: RuleSet,
    publish_claim: Option<String>,
    subscribe_claim: Option<String>,
    ends_at_expiry: bool,
}

/// Where keys come from.
#[derive(Debug)]
pub enum Keys {
    /// From the configuration.
    Fixed(Vec<Key>),
    /// From a key set elsewhere, which is read again at this interval.
    Set {
        /// Where it is.
        endpoint: Endpoint,
        /// 300 s at least.
        refresh: Duration,
    },
}

/// What is kept of a token that was accepted, for its client to be judged again: not the token, by which others could
/// come.
pub struct Kept {
    /// JSON; `None`: it has more than [`CLAIMS_BYTES_MAX`].
    claims: Option<Box<str>>,
    signed: Signed,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("signed", &self.signed).finish_non_exhaustive()
    }
}

/// What is said about a token.
#[derive(Debug)]
pub struct Judgement {
    /// Never [`Outcome::Refused`]: another provider may know the client by its password.
    pub outcome: Outcome,
    /// Of a token that is accepted.
    pub kept: Option<Kept>,
    /// The token names a key that is not there: a key set is to be read again.
    pub key_is_unknown: bool,
}

impl Provider {
    /// Reads the configuration.
    ///
    /// # Errors
    /// The first thing that is wrong with it; secrets are not told.
    pub fn parse(json: &str) -> Result<Self, Invalid> {
        let config: Config = serde_json::from_str(json)?;
        let keys = Keys::of(config.jwt_verifier_configuration)?;
        if config.leeway > LEEWAY_S_MAX {
            return Err(Invalid::field("leeway", format!("at most {LEEWAY_S_MAX} seconds")));
        }
        let defaults = config.auth_rules.unwrap_or_default();
        let default_set = defaults.set().map_err(|error| Invalid::field("authRules", error))?;
        let is_named = |claim: &String| !claim.is_empty();
        Ok(Self {
            keys,
            rules: Rules {
                issuer: config.issuer,
                audience: config.audience,
                leeway_s: config.leeway,
                expiry_required: config.disconnect_at_expiry,
            },
            client_type: config.default_client_type,
            auth_claims: expected("authClaims", config.auth_claims)?,
            client_type_claims: expected("clientTypeClaims", config.client_type_claims)?,
            defaults,
            default_set,
            publish_claim: config.pub_auth_rule_claim.filter(is_named),
            subscribe_claim: config.sub_auth_rule_claim.filter(is_named),
            ends_at_expiry: config.disconnect_at_expiry,
        })
    }

    /// Where keys come from.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Judges the password of a CONNECT with these keys. Takes about 0.1 ms; a token with patterns in its claims takes as
    /// long as these take to compile, [`PATTERNS_MAX`] at most: not for a thread that others wait for.
    pub fn judge(
        &self,
        password: Option<&[u8]>,
        keys: &[Key],
        identity: &Identity<'_>,
        now_ms: i64,
    ) -> Judgement {
        let token = match password.map(str::from_utf8) {
            Some(Ok(token)) => token,
            Some(Err(_)) => return Judgement::skipped("the password is no token".to_owned()),
            None => return Judgement::skipped("there is no password".to_owned()),
        };
        let (claims, signed) = match jwt::check_signed(token, keys, &self.rules, now_ms.div_euclid(1000)) {
            Ok(checked) => checked,
            Err(refused) => {
                let key_is_unknown = matches!(refused, Refused::NoKey { .. });
                return Judgement { key_is_unknown, ..Judgement::skipped(format!("the token: {refused}")) };
            }
        };
        match self.accept(&claims, identity) {
            Ok(accepted) => {
                let claims = Some(claims.all.to_string()).filter(|text| text.len() <= CLAIMS_BYTES_MAX);
                let kept = Some(Kept { claims: claims.map(String::into_boxed_str), signed });
                Judgement { outcome: Outcome::Accepted(accepted), kept, key_is_unknown: false }
            }
            Err(reason) => Judgement::skipped(reason),
        }
    }

    /// Judges a client again that has come by a token, whose times are not looked at once more. Takes microseconds; for
    /// claims with patterns as long as [`Provider::judge`].
    ///
    /// # Errors
    /// Why the token would not be accepted now, for operators.
    pub fn judge_again(
        &self,
        kept: &Kept,
        keys: &[Key],
        identity: &Identity<'_>,
    ) -> Result<Accepted, String> {
        let Some(text) = &kept.claims else {
            return Err(format!("the token's claims had more than {CLAIMS_BYTES_MAX} bytes"));
        };
        let claims = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let claims = jwt::check_again(claims, &kept.signed, keys, &self.rules)
            .map_err(|refused| format!("the token: {refused}"))?;
        self.accept(&claims, identity)
    }

    fn accept(&self, claims: &jwt::Claims, identity: &Identity<'_>) -> Result<Accepted, String> {
        let wrong = self.auth_claims.iter().find(|(name, value)| !says(claims, name, value, identity));
        if let Some((name, _)) = wrong {
            return Err(format!("the token's claim {name:?} is not as wanted"));
        }
        let is_other = !self.client_type_claims.is_empty()
            && self.client_type_claims.iter().all(|(name, value)| says(claims, name, value, identity));
        let client_type = match (self.client_type, is_other) {
            (ClientType::Device, false) | (ClientType::Application, true) => ClientType::Device,
            (ClientType::Application, false) | (ClientType::Device, true) => ClientType::Application,
        };
        let publish = patterns(claims, self.publish_claim.as_deref())?;
        let subscribe = patterns(claims, self.subscribe_claim.as_deref())?;
        let acl = if publish.is_none() && subscribe.is_none() {
            Acl::new([&self.default_set], identity)
        } else {
            let rules = AuthRules {
                publish: publish.or_else(|| self.defaults.publish.clone()),
                subscribe: subscribe.or_else(|| self.defaults.subscribe.clone()),
            };
            rules.acl(identity)
        };
        let acl = acl.map_err(|error| format!("the token's rules: {error}"))?;
        // Whoever is let in by the leeway stays as long.
        let until_s = claims.expires_s.filter(|_| self.ends_at_expiry);
        let expires_at_ms =
            until_s.map(|at_s| at_s.saturating_add(i64::from(self.rules.leeway_s)).saturating_mul(1000));
        Ok(Accepted { client_type, acl, expires_at_ms })
    }
}

impl Keys {
    fn of(verifier: Verifier) -> Result<Self, Invalid> {
        const ALGORITHM: &str = "jwtVerifierConfiguration.jwtSignAlgorithmConfiguration";
        match verifier {
            Verifier::Algorithm { jwt_sign_algorithm_configuration: algorithm } => {
                let key = match algorithm {
                    Algorithm::Hmac { secret } if secret.expose() == PUBLISHED_SECRET => {
                        return Err(Invalid::field(ALGORITHM, "the secret is TBMQ's published default"));
                    }
                    Algorithm::Hmac { secret } => Key::secret(secret.expose().as_bytes()),
                    Algorithm::Pem { public_pem_key, .. } => Key::public(public_pem_key.as_bytes()),
                };
                Ok(Self::Fixed(vec![key.map_err(|error| Invalid::field(ALGORITHM, error))?]))
            }
            Verifier::Jwks { endpoint, headers, refresh_interval, credentials } => {
                if refresh_interval < REFRESH_S_MIN {
                    let reason = format!("{REFRESH_S_MIN} seconds at least");
                    return Err(Invalid::field("jwtVerifierConfiguration.refreshInterval", reason));
                }
                let endpoint = Endpoint::new(
                    "jwtVerifierConfiguration.endpoint",
                    &endpoint,
                    headers.unwrap_or_default(),
                    credentials.unwrap_or_default(),
                )?;
                Ok(Self::Set { endpoint, refresh: Duration::from_secs(refresh_interval) })
            }
        }
    }
}

impl Judgement {
    fn skipped(reason: String) -> Self {
        Self { outcome: Outcome::Skipped(reason.into()), kept: None, key_is_unknown: false }
    }
}

/// Claims and what they must be.
fn expected(
    field: &'static str,
    claims: Option<Map<String, Value>>,
) -> Result<Vec<(String, String)>, Invalid> {
    let sample = Identity { client_id: "x", user_name: Some("x"), common_name: Some("x") };
    let of = |(name, value): (String, Value)| {
        let text = scalar(&value).ok_or_else(|| Invalid::field(field, format!("{name:?} is no text")))?;
        match sample.fill(&text, |value| Some(value.to_owned())) {
            Some(_) => Ok((name, text)),
            None => Err(Invalid::field(
                field,
                format!("{text:?}: placeholders are ${{clientId}}, ${{username}} and ${{cn}}"),
            )),
        }
    };
    claims.unwrap_or_default().into_iter().map(of).collect()
}

/// Whether the claim is the text, its placeholders filled.
fn says(claims: &jwt::Claims, name: &str, value: &str, identity: &Identity<'_>) -> bool {
    let expected = identity.fill(value, |value| Some(value.to_owned()));
    let found = claims.all.get(name).and_then(scalar);
    expected.is_some() && expected == found
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The patterns that a claim holds; `None`: the token has no such claim.
fn patterns(claims: &jwt::Claims, name: Option<&str>) -> Result<Option<Vec<String>>, String> {
    let Some((name, value)) = name.and_then(|name| Some((name, claims.all.get(name)?))) else {
        return Ok(None);
    };
    let all = value.as_array().filter(|all| all.len() <= PATTERNS_MAX);
    let texts = all.and_then(|all| all.iter().map(|text| text.as_str().map(ToOwned::to_owned)).collect());
    let texts: Option<Vec<String>> = texts;
    // To pass over rules that can't be read could widen what is allowed.
    texts
        .map(Some)
        .ok_or_else(|| format!("the token's claim {name:?} is no list of up to {PATTERNS_MAX} texts"))
}
