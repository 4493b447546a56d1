//! Connected clients and their subscriptions.

use serde::Serialize;
use tbmq_proto::control;

use super::time;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    client_id: String,
    service_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    protocol_version: u32,
    clean_start: bool,
    keep_alive_seconds: u32,
    peer_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_time: Option<String>,
    subscription_count: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    client_type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    authentication: String,
}

impl From<&control::Session> for Session {
    fn from(from: &control::Session) -> Self {
        Self {
            client_id: from.client_id.clone(),
            service_id: from.service_id.clone(),
            username: from.username.clone(),
            protocol_version: from.protocol_version,
            clean_start: from.clean_start,
            keep_alive_seconds: from.keep_alive_seconds,
            peer_address: from.peer_address.clone(),
            connect_time: time(from.connect_time),
            subscription_count: from.subscription_count,
            client_type: from.client_type.clone(),
            authentication: from.authentication.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Subscription {
    filter: String,
    qos: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    share_name: String,
    no_local: bool,
    retain_as_published: bool,
    retain_handling: u32,
}

impl From<&control::Subscription> for Subscription {
    fn from(from: &control::Subscription) -> Self {
        Self {
            filter: from.filter.clone(),
            qos: from.qos,
            share_name: from.share_name.clone(),
            no_local: from.no_local,
            retain_as_published: from.retain_as_published,
            retain_handling: from.retain_handling,
        }
    }
}
