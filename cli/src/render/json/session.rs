//! Sessions of clients and their subscriptions.

use serde::{Deserialize, Serialize};
use tbmq_proto::control::{self, ConnectionState};

use super::time;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    client_id: String,
    state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    session_id: String,
    service_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    protocol_version: u32,
    clean_start: bool,
    keep_alive_seconds: u32,
    peer_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disconnect_time: Option<String>,
    persistent: bool,
    subscription_count: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    client_type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    authentication: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    expiry_seconds: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    will: Option<Will>,
    queued_messages: u64,
    queued_bytes: u64,
    in_flight: u64,
    received_in_flight: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    transport: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    common_names: Vec<String>,
    receive_maximum: u32,
    maximum_packet_size: u32,
    topic_alias_maximum: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Will {
    topic: String,
    qos: u32,
    retain: bool,
    payload_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_time: Option<String>,
}

impl From<&control::SessionDetails> for Details {
    fn from(from: &control::SessionDetails) -> Self {
        Self {
            expiry_seconds: from.expiry_seconds,
            expire_time: time(from.expire_time),
            will: from.will.as_ref().map(|will| Will {
                topic: will.topic.clone(),
                qos: will.qos,
                retain: will.retain,
                payload_bytes: will.payload_bytes,
                due_time: time(will.due_time),
            }),
            queued_messages: from.queued_messages,
            queued_bytes: from.queued_bytes,
            in_flight: from.in_flight,
            received_in_flight: from.received_in_flight,
            transport: from.transport.clone(),
            common_names: from.common_names.clone(),
            receive_maximum: from.receive_maximum,
            maximum_packet_size: from.maximum_packet_size,
            topic_alias_maximum: from.topic_alias_maximum,
        }
    }
}

fn state(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Connected => "CONNECTED",
        ConnectionState::Disconnected => "DISCONNECTED",
        ConnectionState::Unspecified => "",
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionCounts {
    connected: u64,
    disconnected: u64,
    total: u64,
    devices: u64,
    applications: u64,
}

impl From<&control::SessionCounts> for SessionCounts {
    fn from(from: &control::SessionCounts) -> Self {
        Self {
            connected: from.connected,
            disconnected: from.disconnected,
            total: from.total,
            devices: from.devices,
            applications: from.applications,
        }
    }
}

impl From<&control::Session> for Session {
    fn from(from: &control::Session) -> Self {
        Self {
            client_id: from.client_id.clone(),
            state: state(from.state()),
            session_id: from.session_id.clone(),
            service_id: from.service_id.clone(),
            username: from.username.clone(),
            protocol_version: from.protocol_version,
            clean_start: from.clean_start,
            keep_alive_seconds: from.keep_alive_seconds,
            peer_address: from.peer_address.clone(),
            connect_time: time(from.connect_time),
            disconnect_time: time(from.disconnect_time),
            persistent: from.persistent,
            subscription_count: from.subscription_count,
            client_type: from.client_type.clone(),
            authentication: from.authentication.clone(),
            details: from.details.as_ref().map(Details::from),
        }
    }
}

/// Read as well, so that what is printed can be given back.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Subscription {
    filter: String,
    #[serde(default)]
    qos: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    share_name: String,
    #[serde(default)]
    no_local: bool,
    #[serde(default)]
    retain_as_published: bool,
    #[serde(default)]
    retain_handling: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identifier: Option<u32>,
}

impl From<Subscription> for control::Subscription {
    fn from(from: Subscription) -> Self {
        let Subscription {
            filter,
            qos,
            share_name,
            no_local,
            retain_as_published,
            retain_handling,
            identifier,
        } = from;
        Self { filter, qos, share_name, no_local, retain_as_published, retain_handling, identifier }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClientSubscription {
    client_id: String,
    service_id: String,
    state: &'static str,
    subscription: Subscription,
}

impl From<&control::ClientSubscription> for ClientSubscription {
    fn from(from: &control::ClientSubscription) -> Self {
        Self {
            client_id: from.client_id.clone(),
            service_id: from.service_id.clone(),
            state: state(from.state()),
            subscription: from.subscription.as_ref().map(Subscription::from).unwrap_or_default(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SharedSubscription {
    share_name: String,
    filter: String,
    member_count: u64,
    members: Vec<Member>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    client_id: String,
    service_id: String,
    client_type: String,
    state: &'static str,
    qos: u32,
}

impl From<&control::SharedSubscription> for SharedSubscription {
    fn from(from: &control::SharedSubscription) -> Self {
        let member = |one: &control::SharedSubscriptionMember| Member {
            client_id: one.client_id.clone(),
            service_id: one.service_id.clone(),
            client_type: one.client_type.clone(),
            state: state(one.state()),
            qos: one.qos,
        };
        Self {
            share_name: from.share_name.clone(),
            filter: from.filter.clone(),
            member_count: from.member_count,
            members: from.members.iter().map(member).collect(),
        }
    }
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
            identifier: from.identifier,
        }
    }
}
