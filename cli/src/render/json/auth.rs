//! Providers, and clients that are not let in.

use serde::Serialize;
use serde_json::value::RawValue;
use tbmq_proto::control::{
    self,
    blocked_client::{RegexMatchTarget, Type},
};

use super::{raw, time};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Blocked {
    name: String,
    r#type: &'static str,
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    regex_match_target: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    status: &'static str,
}

impl From<&control::BlockedClient> for Blocked {
    fn from(from: &control::BlockedClient) -> Self {
        Self {
            name: from.name.clone(),
            r#type: blocked_type(from),
            value: from.value.clone(),
            regex_match_target: match_target(from),
            expire_time: time(from.expire_time),
            description: from.description.clone(),
            status: blocked_status(from),
        }
    }
}

/// What it is about, without the enum's prefix.
pub(crate) fn blocked_type(from: &control::BlockedClient) -> &'static str {
    from.r#type().as_str_name().trim_start_matches("TYPE_")
}

/// What a pattern is about, without the enum's prefix.
pub(crate) fn match_target(from: &control::BlockedClient) -> Option<&'static str> {
    let target = from.regex_match_target();
    let is_there = from.r#type() == Type::Regex && target != RegexMatchTarget::Unspecified;
    is_there.then(|| target.as_str_name().trim_start_matches("REGEX_MATCH_TARGET_"))
}

/// The status without the enum's prefix.
pub(crate) fn blocked_status(from: &control::BlockedClient) -> &'static str {
    from.status().as_str_name().trim_start_matches("STATUS_")
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unauthorized {
    client_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    user_name: String,
    address: String,
    password_provided: bool,
    tls_used: bool,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    count: u64,
}

impl From<&control::UnauthorizedClient> for Unauthorized {
    fn from(from: &control::UnauthorizedClient) -> Self {
        Self {
            client_id: from.client_id.clone(),
            user_name: from.user_name.clone(),
            address: from.address.clone(),
            password_provided: from.password_provided,
            tls_used: from.tls_used,
            reason: from.reason.clone(),
            time: time(from.time),
            count: from.count,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Provider {
    name: String,
    r#type: String,
    enabled: bool,
    configuration: Box<RawValue>,
    revision: u64,
    etag: String,
}

impl From<&control::AuthProvider> for Provider {
    fn from(from: &control::AuthProvider) -> Self {
        Self {
            name: from.name.clone(),
            r#type: provider_type(from).to_owned(),
            enabled: from.enabled,
            configuration: raw(&from.configuration_json),
            revision: from.revision,
            etag: from.etag.clone(),
        }
    }
}

/// TBMQ's name of a provider.
pub(crate) fn provider_type(from: &control::AuthProvider) -> &str {
    from.name.strip_prefix("authProviders/").unwrap_or(&from.name)
}

#[derive(Debug, Serialize)]
pub(crate) struct Order {
    priorities: Vec<String>,
    etag: String,
}

impl From<&control::AuthSettings> for Order {
    fn from(from: &control::AuthSettings) -> Self {
        Self { priorities: from.priorities.clone(), etag: from.etag.clone() }
    }
}
