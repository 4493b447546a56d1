//! Tokens, callers and the audit log.

use serde::Serialize;
use tbmq_proto::control::{self, AccessRole};

use super::time;

/// The role without the enum's prefix.
pub(crate) fn role(number: i32) -> &'static str {
    let role = AccessRole::try_from(number).unwrap_or_default();
    if role == AccessRole::Unspecified {
        "NONE"
    } else {
        role.as_str_name().trim_start_matches("ACCESS_ROLE_")
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Token {
    name: String,
    display_name: String,
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_time: Option<String>,
}

impl From<&control::Token> for Token {
    fn from(from: &control::Token) -> Self {
        Self {
            name: from.name.clone(),
            display_name: from.display_name.clone(),
            role: role(from.role),
            create_time: time(from.create_time),
            expire_time: time(from.expire_time),
            last_used_time: time(from.last_used_time),
        }
    }
}

/// The only view with a secret: it was made for the caller just now.
#[derive(Serialize)]
pub(crate) struct CreatedToken {
    #[serde(flatten)]
    token: Option<Token>,
    secret: String,
}

impl From<&control::CreateTokenResponse> for CreatedToken {
    fn from(from: &control::CreateTokenResponse) -> Self {
        Self { token: from.token.as_ref().map(Token::from), secret: from.secret.clone() }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Caller {
    principal: String,
    role: &'static str,
    server: String,
}

impl Caller {
    pub(crate) fn new(from: &control::Caller, server: &str) -> Self {
        Self { principal: from.principal.clone(), role: role(from.role), server: server.to_owned() }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuditEntry {
    uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    principal: String,
    role: &'static str,
    peer_address: String,
    method: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    etag_before: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    etag_after: String,
    result: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    service_id: String,
}

impl From<&control::AuditEntry> for AuditEntry {
    fn from(from: &control::AuditEntry) -> Self {
        Self {
            uid: from.uid.clone(),
            time: time(from.time),
            principal: from.principal.clone(),
            role: role(from.role),
            peer_address: from.peer_address.clone(),
            method: from.method.clone(),
            resource: from.resource.clone(),
            etag_before: from.etag_before.clone(),
            etag_after: from.etag_after.clone(),
            result: from.result.clone(),
            error: from.error.clone(),
            service_id: from.service_id.clone(),
        }
    }
}
