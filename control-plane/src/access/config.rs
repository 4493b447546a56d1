//! Settings of who may call, and how connections are secured.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_service::config::Secret;

use super::role::Role;

/// Who may call.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AuthConfig {
    /// Whether callers must show who they are; absent: when there is a way to do so (an admin token, a key for JWTs, or
    /// roles of client certificates). `true` with none of these: the API tokens of the database alone; `false`: nobody is
    /// asked.
    pub enabled: Option<bool>,
    /// Whether the API may be served to other machines without authentication.
    pub insecure: bool,
    /// A token with the role ADMIN, with which the first API token is made; at least 16 characters.
    pub admin_token: Secret,
    /// A file that holds the admin token.
    pub admin_token_file: Option<PathBuf>,
    /// JSON Web Tokens.
    pub jwt: JwtConfig,
    /// How long entries of the audit log are kept; 0: for ever.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub audit_ttl: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            enabled: None,
            insecure: false,
            admin_token: Secret::default(),
            admin_token_file: None,
            jwt: JwtConfig::default(),
            audit_ttl: Duration::from_hours(90 * 24),
        }
    }
}

/// JSON Web Tokens, sent as `authorization: Bearer <JWT>`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct JwtConfig {
    /// Secret of HS256; at least 32 bytes.
    pub secret: Secret,
    /// A file that holds the secret of HS256.
    pub secret_file: Option<PathBuf>,
    /// A file with a public key in PEM: RSA (RS256 and up, PS256 and up), EC (ES256, ES384) or Ed25519 (EdDSA).
    pub key_file: Option<PathBuf>,
    /// A file or `http(s)` URL of a JSON Web Key Set.
    pub jwks: Option<String>,
    /// How often the key set is read again.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub jwks_refresh: Duration,
    /// What `iss` must be; absent: not looked at.
    pub issuer: Option<String>,
    /// What `aud` must hold, one of them; none: not looked at.
    pub audience: Vec<String>,
    /// The claim that holds the role or a list of roles; dots lead into objects.
    pub role_claim: String,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            secret: Secret::default(),
            secret_file: None,
            key_file: None,
            jwks: None,
            jwks_refresh: Duration::from_mins(5),
            issuer: None,
            audience: Vec::new(),
            role_claim: "tbmq_role".to_owned(),
        }
    }
}

impl JwtConfig {
    /// Whether there is a key.
    pub(crate) fn is_given(&self) -> bool {
        !self.secret.expose().is_empty()
            || self.secret_file.is_some()
            || self.key_file.is_some()
            || self.jwks.is_some()
    }
}

/// TLS of the gRPC server: on when there is a certificate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsConfig {
    /// File with the certificate chain, in PEM.
    pub pem_cert: Option<PathBuf>,
    /// File with its private key, in PEM.
    pub pem_key: Option<PathBuf>,
    /// File with the authorities that client certificates must be of, in PEM.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must have a certificate of these.
    pub client_auth: ClientAuth,
    /// `name=ROLE`: the role of the client whose certificate has this common name or alternative name; one `*` in the
    /// name stands for anything. The first that fits counts.
    pub client_roles: Vec<ClientRole>,
    /// How often the files are looked at; a change is taken over without a restart, and bad new ones are
    /// warned about and change nothing.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub reload_interval: Duration,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            pem_cert: None,
            pem_key: None,
            client_ca: None,
            client_auth: ClientAuth::Required,
            client_roles: Vec::new(),
            reload_interval: Duration::from_secs(10),
        }
    }
}

/// Whether clients must have a certificate; of no meaning without authorities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAuth {
    /// A client may have one, and a token instead.
    Optional,
    /// A connection without one is refused.
    #[default]
    Required,
}

/// Whose certificate gives which role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct ClientRole {
    /// Name, with one `*` at most.
    pub(crate) pattern: String,
    pub(crate) role: Role,
}

impl ClientRole {
    /// Whether the pattern fits this name.
    pub(crate) fn fits(&self, name: &str) -> bool {
        match self.pattern.split_once('*') {
            Some((head, tail)) => {
                name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
            }
            None => self.pattern == name,
        }
    }
}

impl FromStr for ClientRole {
    type Err = InvalidClientRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidClientRole(text.to_owned());
        let (pattern, role) = text.rsplit_once('=').ok_or_else(invalid)?;
        let pattern = pattern.trim();
        if pattern.is_empty() || pattern.matches('*').count() > 1 {
            return Err(invalid());
        }
        Ok(Self { pattern: pattern.to_owned(), role: role.parse().map_err(|_| invalid())? })
    }
}

/// A text is not `name=ROLE`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not name=ROLE, with one * in the name at most and a role of VIEWER, OPERATOR, EDITOR, ADMIN, NODE"
)]
pub struct InvalidClientRole(String);

impl TryFrom<String> for ClientRole {
    type Error = InvalidClientRole;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClientRole> for String {
    fn from(role: ClientRole) -> Self {
        role.to_string()
    }
}

impl fmt::Display for ClientRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_whole_names() {
        let fits =
            |pattern: &str, name: &str| format!("{pattern}=NODE").parse::<ClientRole>().unwrap().fits(name);
        for (pattern, name, expected) in [
            ("dp1", "dp1", true),
            ("dp1", "dp10", false),
            ("dp*", "dp10", true),
            ("dp*", "cp1", false),
            ("*.tbmq", "dp1.tbmq", true),
            ("*.tbmq", "tbmq", false),
            ("a*a", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_role_of_clients_is_read_and_shown_as_written() {
        let role: ClientRole = "CN=x=admin".parse().unwrap();
        assert_eq!((role.pattern.as_str(), role.role), ("CN=x", Role::Admin));
        assert_eq!(role.to_string(), "CN=x=ADMIN");
        for text in ["admin", "=ADMIN", "a=ROOT", "a*b*=ADMIN"] {
            assert!(text.parse::<ClientRole>().is_err(), "{text}");
        }
    }
}
