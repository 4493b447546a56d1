//! Packets → bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    frame::{put_binary, put_varint, varint_length},
    property::Properties,
};
use crate::packet::{
    Ack, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, SubAck, Subscribe,
    Unsubscribe,
};

/// Appends a packet as `version` writes it.
pub fn encode(packet: &Packet, version: ProtocolVersion, into: &mut BytesMut) {
    let v5 = version.is_v5();
    match packet {
        Packet::Connect(connect) => encode_connect(connect, into),
        Packet::ConnAck(connack) => {
            let length = 2 + if v5 { properties_length(&connack.properties) } else { 0 };
            begin(into, 0x20, length);
            // 3.1 has no such flag, and a refusal has no session (MQTT-3.2.2-6).
            let is_present = connack.session_present
                && connack.reason == ReasonCode::Success
                && version != ProtocolVersion::V31;
            into.put_u8(u8::from(is_present));
            into.put_u8(if v5 { connack.reason.byte() } else { connack.reason.connect_return_code() });
            if v5 {
                put_properties(into, &connack.properties);
            }
        }
        Packet::Publish(publish) => encode_publish(publish, version, into),
        Packet::PubAck(ack) => encode_ack(0x40, ack, v5, into),
        Packet::PubRec(ack) => encode_ack(0x50, ack, v5, into),
        Packet::PubRel(ack) => encode_ack(0x62, ack, v5, into),
        Packet::PubComp(ack) => encode_ack(0x70, ack, v5, into),
        Packet::Subscribe(subscribe) => encode_subscribe(subscribe, v5, into),
        Packet::SubAck(suback) => encode_suback(0x90, suback, v5, into),
        Packet::Unsubscribe(unsubscribe) => encode_unsubscribe(unsubscribe, v5, into),
        Packet::UnsubAck(suback) => encode_suback(0xb0, suback, v5, into),
        Packet::PingReq => into.put_slice(&[0xc0, 0]),
        Packet::PingResp => into.put_slice(&[0xd0, 0]),
        Packet::Disconnect(disconnect) => encode_disconnect(0xe0, disconnect, v5, into),
        Packet::Auth(auth) => encode_disconnect(0xf0, auth, v5, into),
    }
}

fn begin(into: &mut BytesMut, first: u8, length: usize) {
    into.reserve(5 + length);
    into.put_u8(first);
    put_varint(into, length as u32);
}

fn properties_length(properties: &Properties) -> usize {
    let length = properties.bytes().len();
    varint_length(length) + length
}

fn put_properties(into: &mut BytesMut, properties: &Properties) {
    put_varint(into, properties.bytes().len() as u32);
    into.put_slice(properties.bytes());
}

fn encode_connect(connect: &Connect, into: &mut BytesMut) {
    let v5 = connect.version.is_v5();
    let name = if connect.version == ProtocolVersion::V31 { "MQIsdp" } else { "MQTT" };
    let mut body = BytesMut::new();
    put_binary(&mut body, name.as_bytes());
    body.put_u8(connect.version.level());
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        flags |= 0b100 | will.qos.bits() << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6 | u8::from(connect.username.is_some()) << 7;
    body.put_u8(flags);
    body.put_u16(connect.keep_alive);
    if v5 {
        put_properties(&mut body, &connect.properties);
    }
    put_binary(&mut body, connect.client_id.bytes());
    if let Some(will) = &connect.will {
        if v5 {
            put_properties(&mut body, &will.properties);
        }
        put_binary(&mut body, will.topic.bytes());
        put_binary(&mut body, &will.payload);
    }
    if let Some(username) = &connect.username {
        put_binary(&mut body, username.bytes());
    }
    if let Some(password) = &connect.password {
        put_binary(&mut body, password);
    }
    begin(into, 0x10, body.len());
    into.put_slice(&body);
}

/// Bytes that a PUBLISH takes, header included.
pub fn publish_length(publish: &Publish, version: ProtocolVersion) -> usize {
    let body = publish_body_length(publish, version);
    1 + varint_length(body) + body
}

fn publish_body_length(publish: &Publish, version: ProtocolVersion) -> usize {
    let packet_id = if publish.qos == Qos::AtMostOnce { 0 } else { 2 };
    let properties = if version.is_v5() { properties_length(&publish.properties) } else { 0 };
    2 + publish.topic.len() + packet_id + properties + publish.payload.len()
}

fn encode_publish(publish: &Publish, version: ProtocolVersion, into: &mut BytesMut) {
    // MQTT-3.3.1-2: no DUP at QoS 0.
    let dup = publish.dup && publish.qos != Qos::AtMostOnce;
    let first = 0x30 | u8::from(dup) << 3 | publish.qos.bits() << 1 | u8::from(publish.retain);
    begin(into, first, publish_body_length(publish, version));
    put_binary(into, publish.topic.bytes());
    if publish.qos != Qos::AtMostOnce {
        into.put_u16(publish.packet_id.unwrap_or_default());
    }
    if version.is_v5() {
        put_properties(into, &publish.properties);
    }
    into.put_slice(&publish.payload);
}

/// A PUBLISH that was encoded once for several receivers: packet id and DUP are patched in when it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPublish {
    bytes: Bytes,
    /// Where the packet id stands; `None` at QoS 0.
    packet_id_at: Option<usize>,
}

impl EncodedPublish {
    /// Encodes a PUBLISH; its packet id and DUP do not matter.
    pub fn new(publish: &Publish, version: ProtocolVersion) -> Self {
        let mut bytes = BytesMut::with_capacity(publish_length(publish, version));
        encode_publish(publish, version, &mut bytes);
        let body = publish_body_length(publish, version);
        let packet_id_at =
            (publish.qos != Qos::AtMostOnce).then(|| 1 + varint_length(body) + 2 + publish.topic.len());
        Self { bytes: bytes.freeze(), packet_id_at }
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a PUBLISH has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Appends it with this packet id (ignored at QoS 0) and DUP flag.
    pub fn write(&self, packet_id: u16, dup: bool, into: &mut BytesMut) {
        let start = into.len();
        into.put_slice(&self.bytes);
        if let Some(at) = self.packet_id_at {
            into[start + at..start + at + 2].copy_from_slice(&packet_id.to_be_bytes());
            into[start] = into[start] & !0b1000 | u8::from(dup) << 3;
        }
    }
}

fn encode_ack(first: u8, ack: &Ack, v5: bool, into: &mut BytesMut) {
    let with_properties = v5 && !ack.properties.is_empty();
    let with_reason = v5 && (with_properties || ack.reason.byte() != 0);
    let properties = if with_properties { properties_length(&ack.properties) } else { 0 };
    begin(into, first, 2 + usize::from(with_reason) + properties);
    into.put_u16(ack.packet_id);
    if with_reason {
        into.put_u8(ack.reason.byte());
    }
    if with_properties {
        put_properties(into, &ack.properties);
    }
}

fn encode_subscribe(subscribe: &Subscribe, v5: bool, into: &mut BytesMut) {
    let filters: usize = subscribe.subscriptions.iter().map(|one| 3 + one.filter.len()).sum();
    begin(into, 0x82, 2 + filters + if v5 { properties_length(&subscribe.properties) } else { 0 });
    into.put_u16(subscribe.packet_id);
    if v5 {
        put_properties(into, &subscribe.properties);
    }
    for one in &subscribe.subscriptions {
        put_binary(into, one.filter.bytes());
        let mut options = one.qos.bits();
        if v5 {
            options |= u8::from(one.no_local) << 2
                | u8::from(one.retain_as_published) << 3
                | (one.retain_handling as u8) << 4;
        }
        into.put_u8(options);
    }
}

fn encode_suback(first: u8, suback: &SubAck, v5: bool, into: &mut BytesMut) {
    // A 3.x UNSUBACK has no codes, and a 3.x SUBACK knows one failure only.
    let codes = if v5 || first == 0x90 { suback.reasons.len() } else { 0 };
    begin(into, first, 2 + codes + if v5 { properties_length(&suback.properties) } else { 0 });
    into.put_u16(suback.packet_id);
    if v5 {
        put_properties(into, &suback.properties);
    }
    for reason in suback.reasons.iter().take(codes) {
        into.put_u8(if !v5 && reason.is_error() { 0x80 } else { reason.byte() });
    }
}

fn encode_unsubscribe(unsubscribe: &Unsubscribe, v5: bool, into: &mut BytesMut) {
    let filters: usize = unsubscribe.filters.iter().map(|filter| 2 + filter.len()).sum();
    begin(into, 0xa2, 2 + filters + if v5 { properties_length(&unsubscribe.properties) } else { 0 });
    into.put_u16(unsubscribe.packet_id);
    if v5 {
        put_properties(into, &unsubscribe.properties);
    }
    for filter in &unsubscribe.filters {
        put_binary(into, filter.bytes());
    }
}

fn encode_disconnect(first: u8, disconnect: &Disconnect, v5: bool, into: &mut BytesMut) {
    let with_properties = v5 && !disconnect.properties.is_empty();
    let with_reason = v5 && (with_properties || disconnect.reason.byte() != 0);
    let properties = if with_properties { properties_length(&disconnect.properties) } else { 0 };
    begin(into, first, usize::from(with_reason) + properties);
    if with_reason {
        into.put_u8(disconnect.reason.byte());
    }
    if with_properties {
        put_properties(into, &disconnect.properties);
    }
}
