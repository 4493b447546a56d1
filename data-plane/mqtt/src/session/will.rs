//! The will: kept from CONNECT until the connection ends without DISCONNECT 0x00.

use std::sync::Arc;

use bytes::Bytes;

use super::{Message, Now, without};
use crate::{codec::property::PropertyId, packet::Will};

/// A will that does not keep the read buffer alive.
pub(super) fn kept(will: &Will) -> Will {
    Will {
        qos: will.qos,
        retain: will.retain,
        topic: will.topic.detached(),
        payload: Bytes::copy_from_slice(&will.payload),
        properties: will.properties.detached(),
    }
}

/// How long after the connection it is published, in seconds.
pub(super) fn delay_s(will: &Will) -> u32 {
    will.properties.number(PropertyId::WillDelayInterval).unwrap_or(0)
}

/// The message that it becomes when it is due: its expiry counts from then (MQTT 5.0 §3.1.3.2.4).
pub(super) fn message(will: Will, publisher: Arc<str>, now: Now) -> Message {
    let expiry_s = will.properties.number(PropertyId::MessageExpiryInterval);
    Message {
        publisher,
        packet_id: 0,
        qos: will.qos,
        retain: will.retain,
        topic: will.topic,
        payload: will.payload,
        properties: without(
            &will.properties,
            &[PropertyId::WillDelayInterval, PropertyId::MessageExpiryInterval],
        ),
        expires_at_ms: expiry_s.map(|s| now.epoch_ms + i64::from(s) * 1000),
    }
}
