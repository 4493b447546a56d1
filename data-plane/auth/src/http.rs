//! CONNECT that an HTTP service judges: TBMQ's HTTP provider (broker spec §4.8), without the call itself.
//!
//! The template of a request is JSON that has been read before anything is filled in: what a client says stays within
//! the text that it fills, and is never looked at for placeholders again.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use crate::{
    acl::{Acl, Identity, RuleSet},
    credentials::ClientType,
    external::{Accepted, AuthRules, Credentials, Endpoint, Invalid, Outcome},
};

#[cfg(test)]
mod tests;

/// Failures in a row after which the service is left alone.
const FAILURES_MAX: u32 = 5;

/// How long it is left alone.
const REST_MS: i64 = 10_000;

/// The configuration as TBMQ writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    #[serde(rename = "type")]
    _type: Option<String>,
    #[serde(default = "url")]
    rest_endpoint_url: String,
    #[serde(default)]
    request_method: Method,
    #[serde(default)]
    headers: Option<Map<String, Value>>,
    #[serde(default)]
    credentials: Option<Credentials>,
    #[serde(default)]
    request_body: Option<Value>,
    #[serde(default = "timeout")]
    read_timeout_ms: u64,
    #[serde(default = "parallel")]
    max_parallel_requests_count: usize,
    #[serde(default = "buffer")]
    max_in_memory_buffer_size_in_kb: usize,
    #[serde(default)]
    default_client_type: ClientType,
    #[serde(default)]
    auth_rules: Option<AuthRules>,
}

fn url() -> String {
    "http://localhost:8080".to_owned()
}

fn timeout() -> u64 {
    5000
}

fn parallel() -> usize {
    100
}

fn buffer() -> usize {
    256
}

/// How the service is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// With the template as JSON.
    #[default]
    Post,
    /// With the template's fields in the query.
    Get,
}

/// Makes requests, and reads answers.
#[derive(Debug)]
pub struct Provider {
    endpoint: Endpoint,
    method: Method,
    template: Map<String, Value>,
    limits: Limits,
    client_type: ClientType,
    defaults: RuleSet,
}

/// What a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the request to the whole answer.
    pub timeout: Duration,
    /// Calls at a time.
    pub parallel: usize,
    /// Bytes of an answer.
    pub answer_bytes: usize,
}

/// Who asks to be let in.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// Client id, user name, and the common name of its own certificate.
    pub identity: Identity<'a>,
    /// The password of its CONNECT.
    pub password: Option<&'a [u8]>,
}

/// One call.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// How.
    pub method: Method,
    /// Where; of GET with the query.
    pub url: Url,
    /// JSON; of POST.
    pub body: Option<String>,
}

/// The password is no text, as the template wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password is not UTF-8")]
pub struct NotText;

/// What the service answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    result: Said,
    client_type: Option<ClientType>,
    auth_rules: Option<AuthRules>,
}

#[derive(Clone, Copy, Deserialize)]
enum Said {
    #[serde(rename = "success", alias = "SUCCESS")]
    Success,
    #[serde(rename = "failure", alias = "FAILURE")]
    Failure,
    #[serde(rename = "skipped", alias = "SKIPPED")]
    Skipped,
}

impl Provider {
    /// Reads the configuration.
    ///
    /// # Errors
    /// The first thing that is wrong with it; secrets are not told.
    pub fn parse(json: &str) -> Result<Self, Invalid> {
        let config: Config = serde_json::from_str(json)?;
        let endpoint = Endpoint::new(
            "restEndpointUrl",
            &config.rest_endpoint_url,
            config.headers.unwrap_or_default(),
            config.credentials.unwrap_or_default(),
        )?;
        let within = |field, value: usize, max: usize| match value {
            0 => Err(Invalid::field(field, "1 at least")),
            _ if value > max => Err(Invalid::field(field, format!("at most {max}"))),
            _ => Ok(value),
        };
        let timeout_ms = within("readTimeoutMs", config.read_timeout_ms as usize, 60_000)?;
        let parallel = within("maxParallelRequestsCount", config.max_parallel_requests_count, 10_000)?;
        let kb = within("maxInMemoryBufferSizeInKb", config.max_in_memory_buffer_size_in_kb, 10_240)?;
        let defaults = config.auth_rules.unwrap_or_default().set();
        Ok(Self {
            endpoint,
            method: config.request_method,
            template: template(config.request_body)?,
            limits: Limits {
                timeout: Duration::from_millis(timeout_ms as u64),
                parallel,
                answer_bytes: kb * 1024,
            },
            client_type: config.default_client_type,
            defaults: defaults.map_err(|error| Invalid::field("authRules", error))?,
        })
    }

    /// How the service is called.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What a call may take.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The call for a client.
    ///
    /// # Errors
    /// [`NotText`].
    pub fn request(&self, asker: &Asker<'_>) -> Result<Request, NotText> {
        let filled = self.template.iter().map(|(name, value)| Ok((name, asker.fill(value)?)));
        let filled = filled.collect::<Result<Vec<_>, NotText>>()?;
        let mut url = self.endpoint.url.clone();
        let body = match self.method {
            Method::Post => {
                let body: Map<String, Value> =
                    filled.into_iter().map(|(name, value)| (name.clone(), value)).collect();
                Some(Value::Object(body).to_string())
            }
            Method::Get => {
                let mut query = url.query_pairs_mut();
                for (name, value) in filled {
                    match value {
                        Value::Null => {}
                        Value::String(text) => _ = query.append_pair(name, &text),
                        other => _ = query.append_pair(name, &other.to_string()),
                    }
                }
                None
            }
        };
        Ok(Request { method: self.method, url, body })
    }

    /// What an answer means. Compiles the patterns that it brings: not for a thread that others wait for.
    pub fn judge(&self, status: u16, body: &[u8], identity: &Identity<'_>) -> Outcome {
        if !(200..300).contains(&status) {
            return Outcome::Skipped(format!("the HTTP service answered {status}").into());
        }
        let answer = if body.trim_ascii().is_empty() {
            Answer { result: Said::Success, client_type: None, auth_rules: None }
        } else {
            match serde_json::from_slice::<Answer>(body) {
                Ok(answer) => answer,
                Err(error) => {
                    let (line, column) = (error.line(), error.column());
                    let reason =
                        format!("the HTTP service's answer can't be read at line {line}, column {column}");
                    return Outcome::Skipped(reason.into());
                }
            }
        };
        match answer.result {
            Said::Failure => return Outcome::Refused("the HTTP service refused".into()),
            Said::Skipped => return Outcome::Skipped("the HTTP service skipped".into()),
            Said::Success => {}
        }
        let acl = match &answer.auth_rules {
            Some(rules) => rules.acl(identity),
            None => Acl::new([&self.defaults], identity),
        };
        match acl {
            Ok(acl) => Outcome::Accepted(Accepted {
                client_type: answer.client_type.unwrap_or(self.client_type),
                acl,
                expires_at_ms: None,
            }),
            Err(error) => Outcome::Skipped(format!("the HTTP service's rules: {error}").into()),
        }
    }
}

/// A JSON object, or a text that holds one.
fn template(body: Option<Value>) -> Result<Map<String, Value>, Invalid> {
    let invalid = |reason: &dyn std::fmt::Display| Invalid::field("requestBody", reason);
    let body = match body {
        Some(Value::String(text)) if !text.trim().is_empty() => {
            serde_json::from_str(&text).map_err(|error| invalid(&error))?
        }
        None | Some(Value::Null | Value::String(_)) => serde_json::json!({
            "clientId": "${clientId}", "username": "${username}", "password": "${password}",
        }),
        Some(other) => other,
    };
    match body {
        Value::Object(template) => Ok(template),
        _ => Err(invalid(&"it is no JSON object")),
    }
}

impl std::fmt::Debug for Asker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Asker<'_> {
    /// The value of the placeholder that a text begins with, and the rest of the text.
    fn value<'t>(&self, text: &'t str) -> Option<(Result<Option<&str>, NotText>, &'t str)> {
        let password = || self.password.map(|bytes| str::from_utf8(bytes).map_err(|_| NotText)).transpose();
        let Identity { client_id, user_name, common_name } = self.identity;
        let rest = |name: &str| text.strip_prefix(name);
        rest("${clientId}")
            .map(|rest| (Ok(Some(client_id)), rest))
            .or_else(|| rest("${username}").map(|rest| (Ok(user_name), rest)))
            .or_else(|| rest("${password}").map(|rest| (password(), rest)))
            .or_else(|| rest("${commonName}").map(|rest| (Ok(common_name), rest)))
    }

    fn fill(&self, value: &Value) -> Result<Value, NotText> {
        Ok(match value {
            Value::String(text) => self.fill_text(text)?,
            Value::Array(all) => all.iter().map(|value| self.fill(value)).collect::<Result<_, _>>()?,
            Value::Object(all) => {
                let all = all.iter().map(|(name, value)| Ok((name.clone(), self.fill(value)?)));
                Value::Object(all.collect::<Result<_, NotText>>()?)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        })
    }

    /// A text that is a placeholder alone is null without a value; within a text that is nothing.
    fn fill_text(&self, text: &str) -> Result<Value, NotText> {
        if let Some((value, "")) = self.value(text) {
            return Ok(value?.into());
        }
        let (mut filled, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(at) = rest.find("${") {
            filled.push_str(&rest[..at]);
            rest = &rest[at..];
            match self.value(rest) {
                Some((value, after)) => {
                    filled.push_str(value?.unwrap_or_default());
                    rest = after;
                }
                None => {
                    filled.push_str("${");
                    rest = &rest[2..];
                }
            }
        }
        filled.push_str(rest);
        Ok(filled.into())
    }
}

/// Leaves a service alone that fails: after 5 failures in a row for 10 s, and then one call tells whether it is well.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    /// Epoch ms.
    closed_until: i64,
}

impl Breaker {
    /// Whether the service may be called.
    pub fn may_call(&mut self, now_ms: i64) -> bool {
        if self.failures < FAILURES_MAX {
            return true;
        }
        if now_ms < self.closed_until {
            return false;
        }
        // The others wait for what becomes of this one.
        self.closed_until = now_ms + REST_MS;
        true
    }

    /// It has answered.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It has not, or not well. Whether it is left alone from now on.
    pub fn failed(&mut self, now_ms: i64) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            self.closed_until = now_ms + REST_MS;
        }
        self.failures == FAILURES_MAX
    }
}
