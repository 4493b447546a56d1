//! CONNECT: what is accepted, and what CONNACK says.

use std::sync::Arc;

use super::{Limits, is_reserved};
use crate::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{ConnAck, Connect, ProtocolVersion, ReasonCode},
    topic,
};

/// An accepted CONNECT.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) client_id: Arc<str>,
    pub(super) keep_alive_s: u16,
    /// Unacknowledged deliveries that the client takes.
    pub(super) window: u16,
    /// Bytes of a packet that the client takes.
    pub(super) packet_bytes_max: Option<u32>,
    pub(super) connack: ConnAck,
}

/// A CONNACK that says no.
pub(super) fn refusal(reason: ReasonCode) -> ConnAck {
    ConnAck { session_present: false, reason, properties: Properties::NONE }
}

/// Checks a CONNECT that could be decoded. `assigned` makes a client id that nobody has.
pub(super) fn check(
    connect: &Connect,
    limits: &Limits,
    assigned: impl FnOnce() -> String,
) -> Result<Accepted, ReasonCode> {
    let is_v5 = connect.version.is_v5();
    if connect.properties.get(PropertyId::AuthenticationMethod).is_some() {
        return Err(ReasonCode::BadAuthenticationMethod);
    }
    if connect.properties.get(PropertyId::AuthenticationData).is_some() {
        // MQTT 5.0 §3.1.2.11.10
        return Err(ReasonCode::ProtocolError);
    }
    let is_assigned = connect.client_id.is_empty();
    if is_assigned && !is_v5 && !connect.clean_start {
        // MQTT-3.1.3-8; a 5.0 client is told the id that it gets.
        return Err(ReasonCode::ClientIdentifierNotValid);
    }
    if connect.version == ProtocolVersion::V31 && connect.client_id.len() > limits.client_id_v31_max {
        return Err(ReasonCode::ClientIdentifierNotValid);
    }
    if let Some(will) = &connect.will
        && (topic::check_name(&will.topic, &limits.rules).is_err() || is_reserved(&will.topic))
    {
        return Err(ReasonCode::TopicNameInvalid);
    }
    let client_id: Arc<str> = if is_assigned { assigned().into() } else { Arc::from(&*connect.client_id) };
    let keep_alive_s =
        if is_v5 { connect.keep_alive.min(limits.keep_alive_max_s) } else { connect.keep_alive };
    let window = if is_v5 {
        // The decoder refuses 0.
        connect.properties.number(PropertyId::ReceiveMaximum).map_or(u16::MAX, |window| window as u16)
    } else {
        limits.receive_maximum_v3.max(1)
    };
    let properties = if is_v5 {
        properties(connect, limits, keep_alive_s, is_assigned.then_some(&*client_id))
    } else {
        Properties::NONE
    };
    Ok(Accepted {
        client_id,
        keep_alive_s,
        window,
        packet_bytes_max: connect.properties.number(PropertyId::MaximumPacketSize),
        connack: ConnAck { session_present: false, reason: ReasonCode::Success, properties },
    })
}

/// What a 5.0 client is told (spec §1.7), and that shared subscriptions are not there yet. Retained messages are not
/// kept yet either, but a publish with RETAIN is taken and forwarded as such to integrations, so `Retain Available`
/// stays at its default: clients that were told 0 would have to be disconnected for it (MQTT-3.2.2-14).
fn properties(connect: &Connect, limits: &Limits, keep_alive_s: u16, assigned: Option<&str>) -> Properties {
    let mut builder = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, 0)
        .number(PropertyId::ReceiveMaximum, u32::from(limits.receive_maximum))
        .number(PropertyId::MaximumPacketSize, limits.packet_bytes)
        .number(PropertyId::TopicAliasMaximum, u32::from(limits.topic_alias_max))
        .number(PropertyId::SubscriptionIdentifierAvailable, 1)
        .number(PropertyId::SharedSubscriptionAvailable, 0)
        .number(PropertyId::ServerKeepAlive, u32::from(keep_alive_s));
    if let Some(client_id) = assigned {
        builder = builder.text(PropertyId::AssignedClientIdentifier, client_id);
    }
    let wants_response = connect.properties.number(PropertyId::RequestResponseInformation) == Some(1);
    if wants_response && !limits.response_information.is_empty() {
        builder = builder.text(PropertyId::ResponseInformation, &limits.response_information);
    }
    builder.build()
}
