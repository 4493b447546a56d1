//! Bytes → packets.

use bytes::{Buf as _, BytesMut};

use super::{
    DecodeError, Limits,
    frame::{self, Body},
    property::{Place, Properties},
};
use crate::packet::{
    Ack, ConnAck, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, RetainHandling,
    SubAck, Subscribe, Subscription, Text, Unsubscribe, Will,
};

/// Takes the next packet off the front of `buffer`; `None` when it is not complete yet.
///
/// `version` is what CONNECT said; `None` before it (then only CONNECT is understood). Nothing is reserved: the caller
/// reads as it likes, and a header that announces too much is an error at once.
///
/// # Errors
/// The connection is to be closed; the buffer's content is of no use any more.
pub fn decode(
    buffer: &mut BytesMut,
    version: Option<ProtocolVersion>,
    limits: &Limits,
) -> Result<Option<Packet>, DecodeError> {
    next(buffer, version, *limits).map_err(|error| version.map_or(error, |version| error.of(version)))
}

fn next(
    buffer: &mut BytesMut,
    version: Option<ProtocolVersion>,
    limits: Limits,
) -> Result<Option<Packet>, DecodeError> {
    let Some(first) = buffer.first() else { return Ok(None) };
    let (packet_type, flags) = (first >> 4, first & 0x0f);
    check_first(packet_type, flags, version)?;
    let Some(header) = frame::header(buffer, limits)? else { return Ok(None) };
    if buffer.len() < header.total_length {
        return Ok(None);
    }
    let mut bytes = buffer.split_to(header.total_length).freeze();
    bytes.advance(header.header_length);
    let mut body = Body::new(bytes);
    let Some(version) = version else {
        return connect(body).map(|connect| Some(Packet::Connect(Box::new(connect))));
    };
    let packet = match packet_type {
        2 => Packet::ConnAck(connack(&mut body, version)?),
        3 => Packet::Publish(publish(&mut body, flags, version)?),
        4 => Packet::PubAck(ack(&mut body, version, is_publish_reason)?),
        5 => Packet::PubRec(ack(&mut body, version, is_publish_reason)?),
        6 => Packet::PubRel(ack(&mut body, version, is_release_reason)?),
        7 => Packet::PubComp(ack(&mut body, version, is_release_reason)?),
        8 => Packet::Subscribe(subscribe(&mut body, version)?),
        9 => Packet::SubAck(suback(&mut body, version, false)?),
        10 => Packet::Unsubscribe(unsubscribe(&mut body, version)?),
        11 => Packet::UnsubAck(suback(&mut body, version, true)?),
        12 => Packet::PingReq,
        13 => Packet::PingResp,
        14 => Packet::Disconnect(disconnect(&mut body, version, Place::DISCONNECT, is_disconnect_reason)?),
        15 => Packet::Auth(disconnect(&mut body, version, Place::AUTH, is_auth_reason)?),
        _ => return Err(NO_SUCH_TYPE),
    };
    body.end()?;
    Ok(Some(packet))
}

const NO_SUCH_TYPE: DecodeError = DecodeError::malformed("a packet type that this version does not have");

/// Refuses what the first byte of a packet tells already, so that nobody waits for its body.
fn check_first(packet_type: u8, flags: u8, version: Option<ProtocolVersion>) -> Result<(), DecodeError> {
    match (packet_type, version) {
        (1, None) => {}
        (_, None) => return Err(DecodeError::protocol("the first packet must be CONNECT")),
        (0, _) => return Err(NO_SUCH_TYPE),
        (1, _) => return Err(DecodeError::protocol("a second CONNECT")),
        (15, Some(version)) if !version.is_v5() => return Err(NO_SUCH_TYPE),
        // They are unused in 3.1, but for DUP, which a resent SUBSCRIBE, UNSUBSCRIBE or PUBREL has there.
        (_, Some(ProtocolVersion::V31)) => return Ok(()),
        _ => {}
    }
    // MQTT-2.1.3-1: reserved flags have fixed values.
    let expected = match packet_type {
        3 => return Ok(()),
        6 | 8 | 10 => 0b0010,
        _ => 0,
    };
    if flags == expected {
        Ok(())
    } else {
        Err(DecodeError::malformed("reserved flags of the header are set"))
    }
}

fn properties(body: &mut Body, version: ProtocolVersion, place: Place) -> Result<Properties, DecodeError> {
    // Most packets have none, and say so with one byte.
    if version.is_v5() && !body.skip_zero() {
        Properties::check(body.property_bytes()?, place)
    } else {
        Ok(Properties::NONE)
    }
}

fn connect(mut body: Body) -> Result<Connect, DecodeError> {
    let name = body.text()?;
    let level = body.byte()?;
    let version = match (&*name, level) {
        ("MQIsdp", 3) => ProtocolVersion::V31,
        ("MQTT", 4) => ProtocolVersion::V311,
        ("MQTT", 5) => ProtocolVersion::V5,
        ("MQTT" | "MQIsdp", _) => {
            let text = "a protocol level that is not 3, 4 or 5";
            return Err(DecodeError::new(ReasonCode::UnsupportedProtocolVersion, text));
        }
        _ => {
            let text = "the protocol name is not MQTT";
            return Err(DecodeError::new(ReasonCode::UnsupportedProtocolVersion, text));
        }
    };
    connect_of(version, body).map_err(|error| error.of(version))
}

/// What follows the protocol level.
fn connect_of(version: ProtocolVersion, mut body: Body) -> Result<Connect, DecodeError> {
    let flags = body.byte()?;
    if flags & 1 != 0 {
        // MQTT-3.1.2-3
        return Err(DecodeError::malformed("the reserved flag of CONNECT is set"));
    }
    let has_will = flags & 0b100 != 0;
    let will_qos = Qos::from_bits(flags >> 3 & 0b11).ok_or(DecodeError::malformed("the will's QoS is 3"))?;
    let will_retain = flags & 0b10_0000 != 0;
    if !has_will && (will_qos != Qos::AtMostOnce || will_retain) {
        // MQTT-3.1.2-11, MQTT-3.1.2-13
        return Err(DecodeError::malformed("will flags without a will"));
    }
    let has_password = flags & 0b100_0000 != 0;
    let has_username = flags & 0b1000_0000 != 0;
    if has_password && !has_username && !version.is_v5() {
        // MQTT 3.1.1, MQTT-3.1.2-22
        return Err(DecodeError::malformed("a password without a user name"));
    }
    let keep_alive = body.two_bytes()?;
    let connect_properties = properties(&mut body, version, Place::CONNECT)?;
    let client_id = body.text()?;
    let will = if has_will {
        let will_properties = properties(&mut body, version, Place::WILL)?;
        let topic = body.text()?;
        let payload = body.binary()?;
        Some(Will { qos: will_qos, retain: will_retain, topic, payload, properties: will_properties })
    } else {
        None
    };
    // In 3.1 the length of the packet takes precedence over these two flags.
    let is_left_out = |body: &Body| version == ProtocolVersion::V31 && body.is_empty();
    let username = if has_username && !is_left_out(&body) { Some(body.text()?) } else { None };
    let password = if has_password && !is_left_out(&body) { Some(body.binary()?) } else { None };
    body.end()?;
    Ok(Connect {
        version,
        clean_start: flags & 0b10 != 0,
        keep_alive,
        client_id,
        will,
        username,
        password,
        properties: connect_properties,
    })
}

fn connack(body: &mut Body, version: ProtocolVersion) -> Result<ConnAck, DecodeError> {
    // The byte is unused in 3.1.
    let flags = body.byte()? * u8::from(version != ProtocolVersion::V31);
    if flags > 1 {
        return Err(DecodeError::malformed("reserved flags of CONNACK are set"));
    }
    let reason = if version.is_v5() {
        reason(body, is_connect_reason)?
    } else {
        let code = ReasonCode::from_connect_return_code(body.byte()?);
        code.ok_or(DecodeError::malformed("a return code that the standard does not have"))?
    };
    if flags == 1 && reason != ReasonCode::Success {
        // MQTT-3.2.2-6
        return Err(DecodeError::protocol("a refusal with a session"));
    }
    Ok(ConnAck {
        session_present: flags == 1,
        reason,
        properties: properties(body, version, Place::CONNACK)?,
    })
}

fn publish(body: &mut Body, flags: u8, version: ProtocolVersion) -> Result<Publish, DecodeError> {
    // MQTT-3.3.1-4
    let qos = Qos::from_bits(flags >> 1 & 0b11).ok_or(DecodeError::malformed("QoS 3"))?;
    let dup = flags & 0b1000 != 0;
    if dup && qos == Qos::AtMostOnce {
        // MQTT-3.3.1-2
        return Err(DecodeError::malformed("DUP at QoS 0"));
    }
    let topic = body.text()?;
    let packet_id = if qos == Qos::AtMostOnce { None } else { Some(body.packet_id()?) };
    let properties = properties(body, version, Place::PUBLISH)?;
    Ok(Publish { dup, qos, retain: flags & 1 != 0, topic, packet_id, properties, payload: body.rest() })
}

fn ack(body: &mut Body, version: ProtocolVersion, is_allowed: fn(u8) -> bool) -> Result<Ack, DecodeError> {
    let packet_id = body.packet_id()?;
    // Reason code and properties may both be left out (MQTT 5.0 §3.4.2.1).
    if !version.is_v5() || body.is_empty() {
        return Ok(Ack::new(packet_id, ReasonCode::Success));
    }
    let reason = reason(body, is_allowed)?;
    let properties = if body.is_empty() { Properties::NONE } else { properties(body, version, Place::ACK)? };
    Ok(Ack { packet_id, reason, properties })
}

fn reason(body: &mut Body, is_allowed: fn(u8) -> bool) -> Result<ReasonCode, DecodeError> {
    let byte = body.byte()?;
    let code = ReasonCode::from_byte(byte)
        .ok_or(DecodeError::malformed("a reason code that the standard does not have"))?;
    if is_allowed(byte) { Ok(code) } else { Err(DecodeError::protocol("a reason code of another packet")) }
}

// Which reason codes a packet may carry (MQTT 5.0 §2.4).

pub(crate) fn is_connect_reason(code: u8) -> bool {
    matches!(code, 0 | 0x80..=0x8a | 0x8c | 0x90 | 0x95 | 0x97 | 0x99..=0x9d | 0x9f)
}

fn is_publish_reason(code: u8) -> bool {
    matches!(code, 0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
}

fn is_release_reason(code: u8) -> bool {
    matches!(code, 0 | 0x92)
}

fn is_subscribe_reason(code: u8) -> bool {
    matches!(code, 0..=2 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91 | 0x97 | 0x9e | 0xa1 | 0xa2)
}

/// MQTT 3.1.1, MQTT-3.9.3-2.
fn is_subscribe_return_code(code: u8) -> bool {
    matches!(code, 0..=2 | 0x80)
}

fn is_unsubscribe_reason(code: u8) -> bool {
    matches!(code, 0 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91)
}

fn is_disconnect_reason(code: u8) -> bool {
    matches!(code, 0 | 4 | 0x80..=0x83 | 0x87 | 0x89 | 0x8b..=0x90 | 0x93..=0xa2)
}

fn is_auth_reason(code: u8) -> bool {
    matches!(code, 0 | 0x18 | 0x19)
}

fn subscribe(body: &mut Body, version: ProtocolVersion) -> Result<Subscribe, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = properties(body, version, Place::SUBSCRIBE)?;
    let mut subscriptions = Vec::new();
    while !body.is_empty() {
        let filter = body.text()?;
        let options = body.byte()?;
        let reserved = if version.is_v5() { 0b1100_0000 } else { 0b1111_1100 };
        if options & reserved != 0 {
            // MQTT-3.8.3-5
            return Err(DecodeError::malformed("reserved bits of the subscription options are set"));
        }
        // §3.8.3.1 of 5.0 calls it a protocol error; MQTT-3.8.3-4 of 3.1.1 closes the connection as well.
        let qos = Qos::from_bits(options & 0b11).ok_or(DecodeError::protocol("QoS 3"))?;
        let retain_handling = match options >> 4 & 0b11 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            _ => return Err(DecodeError::protocol("retain handling 3")),
        };
        subscriptions.push(Subscription {
            filter,
            qos,
            no_local: options & 0b100 != 0,
            retain_as_published: options & 0b1000 != 0,
            retain_handling,
        });
    }
    if subscriptions.is_empty() {
        // MQTT-3.8.3-2
        return Err(DecodeError::protocol("SUBSCRIBE without a topic filter"));
    }
    Ok(Subscribe { packet_id, subscriptions, properties })
}

fn suback(body: &mut Body, version: ProtocolVersion, is_unsuback: bool) -> Result<SubAck, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = properties(body, version, Place::SUBACK)?;
    let mut reasons = Vec::new();
    if is_unsuback && !version.is_v5() {
        // Bytes that follow are found by the caller.
        return Ok(SubAck { packet_id, reasons, properties });
    }
    let is_allowed = match (is_unsuback, version.is_v5()) {
        (true, _) => is_unsubscribe_reason,
        (false, true) => is_subscribe_reason,
        (false, false) => is_subscribe_return_code,
    };
    while !body.is_empty() {
        reasons.push(reason(body, is_allowed)?);
    }
    if reasons.is_empty() {
        return Err(DecodeError::protocol("an acknowledgement of subscriptions without a result"));
    }
    Ok(SubAck { packet_id, reasons, properties })
}

fn unsubscribe(body: &mut Body, version: ProtocolVersion) -> Result<Unsubscribe, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = properties(body, version, Place::UNSUBSCRIBE)?;
    let mut filters: Vec<Text> = Vec::new();
    while !body.is_empty() {
        filters.push(body.text()?);
    }
    if filters.is_empty() {
        // MQTT-3.10.3-2
        return Err(DecodeError::protocol("UNSUBSCRIBE without a topic filter"));
    }
    Ok(Unsubscribe { packet_id, filters, properties })
}

fn disconnect(
    body: &mut Body,
    version: ProtocolVersion,
    place: Place,
    is_allowed: fn(u8) -> bool,
) -> Result<Disconnect, DecodeError> {
    if !version.is_v5() || body.is_empty() {
        return Ok(Disconnect::new(ReasonCode::Success));
    }
    let reason = reason(body, is_allowed)?;
    let properties = if body.is_empty() { Properties::NONE } else { properties(body, version, place)? };
    Ok(Disconnect { reason, properties })
}
