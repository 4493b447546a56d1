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

/// The message that it becomes. Its delay ends with the session, which ends with the connection (see the module's
/// text), so it is due now; its expiry counts from now (MQTT 5.0 §3.1.3.2.4).
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
