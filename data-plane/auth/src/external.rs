//! What providers have in common that know clients from outside: their configuration in TBMQ's form, and what they say
//! about a client.

use std::fmt;

use serde::Deserialize;
use url::Url;

use crate::{
    acl::{self, Acl, Action, Identity, Rule, RuleSet},
    credentials::ClientType,
};

/// Headers of a request.
pub const HEADERS_MAX: usize = 50;

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// No JSON, or not of this form.
    #[error("the configuration can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// One of its fields.
    #[error("{field}: {reason}")]
    Field {
        /// Path in the JSON.
        field: &'static str,
        /// What is wrong; without secrets.
        reason: String,
    },
}

impl Invalid {
    pub(crate) fn field(field: &'static str, reason: impl fmt::Display) -> Self {
        Self::Field { field, reason: reason.to_string() }
    }
}

/// What a provider says about a client.
#[derive(Debug)]
pub enum Outcome {
    /// It may come in.
    Accepted(Accepted),
    /// The provider can't tell: the next one is asked. The text is for operators.
    Skipped(Box<str>),
    /// It may not come in, whatever the next ones would say. The text is for operators.
    Refused(Box<str>),
}

/// A client that a provider lets in.
#[derive(Debug)]
pub struct Accepted {
    /// What it is treated as.
    pub client_type: ClientType,
    /// What it may do.
    pub acl: Acl,
    /// When it is to be disconnected, epoch ms.
    pub expires_at_ms: Option<i64>,
}

/// TBMQ's `authRules`: patterns of topics that may be published and of filters that may be subscribed to. None: nothing
/// is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthRules {
    /// Of topics.
    #[serde(rename = "pubAuthRulePatterns", alias = "pub", default)]
    pub publish: Option<Vec<String>>,
    /// Of filters.
    #[serde(rename = "subAuthRulePatterns", alias = "sub", default)]
    pub subscribe: Option<Vec<String>>,
}

impl AuthRules {
    /// As rules.
    ///
    /// # Errors
    /// The first pattern that can't be used.
    pub fn set(&self) -> Result<RuleSet, acl::Invalid> {
        let of = |action, patterns: &Option<Vec<String>>| {
            let patterns = patterns.clone().unwrap_or_default();
            patterns.into_iter().map(move |pattern| Rule::allow_regex(action, &pattern))
        };
        RuleSet::new(
            of(Action::Publish, &self.publish).chain(of(Action::Subscribe, &self.subscribe)).collect(),
        )
    }

    /// For one client.
    pub(crate) fn acl(&self, identity: &Identity<'_>) -> Result<Acl, acl::Invalid> {
        Acl::new([&self.set()?], identity)
    }
}

/// A text that is not shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Hidden(String);

impl Hidden {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How a server is called.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `http` or `https`, without credentials in it.
    pub url: Url,
    /// Names and values, which may be secrets.
    pub headers: Vec<(String, Hidden)>,
    /// Who calls.
    pub credentials: Credentials,
}

/// Who calls a server: TBMQ's forms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    #[serde(rename = "anonymous")]
    Anonymous,
    /// User name and password.
    #[serde(rename = "basic")]
    Basic {
        /// The user name.
        username: String,
        /// Its password.
        #[serde(default)]
        password: Hidden,
    },
    /// Certificates in PEM, as text.
    #[serde(rename = "cert.PEM")]
    Pem(Box<Pem>),
}

/// Certificates in PEM, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pem {
    /// Authorities that the server's certificate must be of; absent: those that the system trusts.
    pub ca_cert: Option<String>,
    /// For people.
    pub ca_cert_file_name: Option<String>,
    /// The own certificate with its chain.
    pub cert: Option<String>,
    /// For people.
    pub cert_file_name: Option<String>,
    /// Its private key.
    pub private_key: Option<Hidden>,
    /// For people.
    pub private_key_file_name: Option<String>,
    /// Password of the private key, if that is encrypted.
    pub password: Option<Hidden>,
}

impl Endpoint {
    /// Checks the parts; `field` is that of the URL.
    ///
    /// # Errors
    /// The first that is wrong.
    pub(crate) fn new(
        field: &'static str,
        url: &str,
        headers: serde_json::Map<String, serde_json::Value>,
        credentials: Credentials,
    ) -> Result<Self, Invalid> {
        let url: Url = url.parse().map_err(|error| Invalid::field(field, error))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(Invalid::field(field, "it must begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Invalid::field(field, "user name and password belong into credentials"));
        }
        if headers.len() > HEADERS_MAX {
            return Err(Invalid::field("headers", format!("there are more than {HEADERS_MAX}")));
        }
        let headers = headers
            .into_iter()
            .map(|(name, value)| {
                let value = value.as_str().ok_or_else(|| Invalid::field("headers", "values are texts"))?;
                let is_name = !name.is_empty()
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
                if !is_name || value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
                    return Err(Invalid::field("headers", format!("{name:?} can't be sent")));
                }
                Ok((name, Hidden::new(value)))
            })
            .collect::<Result<_, _>>()?;
        if let Credentials::Pem(pem) = &credentials
            && pem.cert.is_some() != pem.private_key.is_some()
        {
            return Err(Invalid::field("credentials", "cert and privateKey come together"));
        }
        Ok(Self { url, headers, credentials })
    }
}
