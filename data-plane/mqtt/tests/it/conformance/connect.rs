//! CONNECT and CONNACK (§3.1, §3.2).

use std::collections::BTreeSet;

use bytes::{BufMut as _, BytesMut};
use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{ConnAck, Connect, Packet, ProtocolVersion, Qos, ReasonCode},
    session::{End, Limits},
};

use super::{VERSIONS, assert_closed};
use crate::{
    encoded,
    wire::{Wire, connect, publish, subscribe, subscription, will},
};

fn connack(answers: &[Packet]) -> &ConnAck {
    match answers.first() {
        Some(Packet::ConnAck(connack)) => connack,
        other => panic!("{other:?}"),
    }
}

/// [MQTT-3.1.0-1] [MQTT5-3.1.0-1] [MQTT5-3.14.0-1]
#[test]
fn any_other_first_packet_closes_without_a_word() {
    for first in (0..16_u8).filter(|packet_type| *packet_type != 1) {
        for rest in [&b"\0"[..], b"\x02\0\x01", b"\x05\0\x01a\0x"] {
            let mut wire = Wire::open();
            let answers = wire.bytes(&[&[first << 4], rest].concat());
            assert_eq!((answers.as_slice(), wire.end), (&[][..], Some(End::Protocol)), "{first}");
        }
    }
}

/// [MQTT-3.1.0-2] [MQTT5-3.1.0-2]
#[test]
fn a_second_connect_closes() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        let again = encoded(&Packet::Connect(Box::new(connect(version))), version);
        let answers = wire.bytes(&again);
        assert_closed(&wire, &answers, ReasonCode::ProtocolError, "a second CONNECT");
    }
}

/// [MQTT-3.1.2-1] [MQTT-3.1.2-2] [MQTT5-3.1.2-1] [MQTT5-3.1.2-2]
#[test]
fn another_protocol_name_or_level_is_not_processed_but_told_and_closed() {
    for (name, level) in
        [("MQTX", 4), ("mqtt", 5), ("MQTT", 0), ("MQTT", 3), ("MQTT", 6), ("MQTT", 255), ("MQIsdp", 4)]
    {
        let mut wire = Wire::open();
        let mut bytes = BytesMut::new();
        bytes.put_slice(&[0x10, 9 + name.len() as u8, 0, name.len() as u8]);
        bytes.put_slice(name.as_bytes());
        bytes.put_slice(&[level, 2, 0, 0, 0, 1, b'c']);
        wire.bytes(&bytes);
        assert_eq!(wire.written, [&b"\x20\x02\0\x01"[..]], "{name} {level}");
        assert_eq!(wire.end, Some(End::Protocol), "{name} {level}");
    }
}

/// The payload that the connect flags announce, field by field.
fn fields(flags: u8, version: ProtocolVersion) -> Vec<Vec<u8>> {
    let text = |text: &str| [&[0, text.len() as u8][..], text.as_bytes()].concat();
    let mut fields = vec![text("id")];
    if flags & 0b100 != 0 {
        let properties: &[u8] = if version.is_v5() { &[0] } else { &[] };
        fields.push([properties, &text("will/topic")].concat());
        fields.push(text("will"));
    }
    if flags & 0b1000_0000 != 0 {
        fields.push(text("user"));
    }
    if flags & 0b100_0000 != 0 {
        fields.push(text("secret"));
    }
    fields
}

fn connect_bytes(flags: u8, version: ProtocolVersion, fields: &[Vec<u8>]) -> Vec<u8> {
    let (level, properties): (u8, &[u8]) = if version.is_v5() { (5, &[0]) } else { (4, &[]) };
    let body = [b"\0\x04MQTT", &[level, flags, 0, 0][..], properties, &fields.concat()].concat();
    [&[0x10, body.len() as u8][..], &body].concat()
}

fn is_valid(flags: u8, version: ProtocolVersion) -> bool {
    let will_qos = flags >> 3 & 0b11;
    let has_will = flags & 0b100 != 0;
    flags & 1 == 0
        && will_qos != 3
        && (has_will || will_qos == 0 && flags & 0b10_0000 == 0)
        && (version.is_v5() || flags & 0b1000_0000 != 0 || flags & 0b100_0000 == 0)
}

/// All 256 values of the flags, each with the payload that they announce.
///
/// [MQTT-3.1.2-3] [MQTT-3.1.2-9] [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT-3.1.2-22]
/// [MQTT-3.1.3-1] [MQTT-3.1.3-3]
/// [MQTT5-3.1.2-3] [MQTT5-3.1.2-9] [MQTT5-3.1.2-11] [MQTT5-3.1.2-12] [MQTT5-3.1.2-13] [MQTT5-3.1.3-1] [MQTT5-3.1.3-3]
#[test]
fn connect_flags_are_taken_exactly_when_the_standard_allows_them() {
    for version in VERSIONS {
        for flags in 0..=255 {
            let bytes = connect_bytes(flags, version, &fields(flags, version));
            let read = crate::decode(&bytes, None);
            if !is_valid(flags, version) {
                let error = read.unwrap_err();
                assert_eq!(
                    (error.reason, error.version),
                    (ReasonCode::MalformedPacket, Some(version)),
                    "{flags:#b}"
                );
                continue;
            }
            let Ok(Some(Packet::Connect(read))) = read else { panic!("{version:?} {flags:#b}: {read:?}") };
            assert_eq!((&*read.client_id, read.clean_start), ("id", flags & 0b10 != 0));
            let will = read
                .will
                .as_ref()
                .map(|will| (&*will.topic, &will.payload[..], will.qos.bits(), will.retain));
            let expected = (flags & 0b100 != 0).then_some((
                "will/topic",
                &b"will"[..],
                flags >> 3 & 0b11,
                flags & 0b10_0000 != 0,
            ));
            assert_eq!(will, expected, "{flags:#b}");
            assert_eq!(read.username.as_deref(), (flags & 0b1000_0000 != 0).then_some("user"));
            assert_eq!(read.password.as_deref(), (flags & 0b100_0000 != 0).then_some(&b"secret"[..]));
        }
    }
}

/// [MQTT-3.1.2-18] [MQTT-3.1.2-19] [MQTT-3.1.2-20] [MQTT-3.1.2-21] [MQTT-3.1.2-9] [MQTT-3.1.2-11]
/// [MQTT5-3.1.2-16] [MQTT5-3.1.2-17] [MQTT5-3.1.2-18] [MQTT5-3.1.2-19] [MQTT5-3.1.2-9]
#[test]
fn a_payload_with_a_field_more_or_less_than_the_flags_say_is_refused() {
    for version in VERSIONS {
        for flags in (0..=255).filter(|flags| is_valid(*flags, version)) {
            let all = fields(flags, version);
            let less = &all[..all.len() - 1];
            let more = [&all[..], &[b"\0\x01x".to_vec()]].concat();
            for (what, fields) in [("less", less), ("more", &more)] {
                let read = crate::decode(&connect_bytes(flags, version, fields), None);
                assert_eq!(read.unwrap_err().reason, ReasonCode::MalformedPacket, "{what} {flags:#b}");
            }
        }
    }
}

/// [MQTT-3.1.4-1] [MQTT-3.2.2-6] [MQTT5-3.1.4-1] [MQTT5-3.1.2-3]
#[test]
fn a_malformed_connect_closes_and_only_version_5_is_told_why() {
    for flags in [0b11, 0b1_1110, 0b1000_0010] {
        let mut old = Wire::open();
        let answers = old.bytes(&connect_bytes(flags, ProtocolVersion::V311, &[b"\0\x01c".to_vec()]));
        assert_eq!((answers.len(), old.end), (0, Some(End::Protocol)));
        let mut new = Wire::open();
        let answers = new.bytes(&connect_bytes(flags, ProtocolVersion::V5, &[b"\0\x01c".to_vec()]));
        assert_eq!(connack(&answers).reason, ReasonCode::MalformedPacket);
        assert_eq!((answers.len(), new.end), (1, Some(End::Protocol)));
    }
}

/// [MQTT-3.1.3-5] [MQTT5-3.1.3-5]
#[test]
fn client_ids_of_1_to_23_digits_and_letters_are_taken() {
    const LETTERS: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for version in VERSIONS {
        let ids =
            (0..LETTERS.len() - 22).map(|at| &LETTERS[at..at + 23]).chain((1..23).map(|end| &LETTERS[..end]));
        for id in ids {
            let wire = Wire::with(Connect { client_id: id.into(), ..connect(version) });
            assert_eq!(&**wire.session.client_id(), id);
        }
    }
}

/// A CONNECT that is refused, by an empty client id that may not be, or an authentication that is not there.
fn refused(version: ProtocolVersion) -> Connect {
    let mut connect = connect(version);
    if version.is_v5() {
        connect.properties = PropertiesBuilder::new().text(PropertyId::AuthenticationMethod, "m").build();
    } else {
        (connect.client_id, connect.clean_start) = ("".into(), false);
    }
    connect
}

/// [MQTT-3.1.4-5] [MQTT-3.2.2-4] [MQTT-3.2.2-5] [MQTT5-3.1.4-6] [MQTT5-3.2.2-6] [MQTT5-3.2.2-7]
#[test]
fn after_a_refusal_the_connection_is_closed_and_what_follows_is_not_processed() {
    for version in VERSIONS {
        let mut bytes = encoded(&Packet::Connect(Box::new(refused(version))), version);
        bytes.extend(encoded(&Packet::Publish(publish("t", Qos::AtLeastOnce, 1)), version));
        bytes.extend(encoded(&Packet::PingReq, version));
        let mut wire = Wire::open();
        let answers = wire.bytes(&bytes);
        assert_eq!(
            (answers.len(), wire.published.len(), wire.end),
            (1, 0, Some(End::Refused)),
            "{version:?}"
        );
        let connack = connack(&answers);
        assert!(connack.reason.is_error() && !connack.session_present);
    }
}

/// [MQTT-3.1.4-4] [MQTT-3.2.0-1] [MQTT-3.2.2-1] [MQTT5-3.1.4-5] [MQTT5-3.2.0-1] [MQTT5-3.2.0-2] [MQTT5-3.2.2-2]
#[test]
fn the_first_answer_is_the_only_connack_even_to_a_client_that_does_not_wait_for_it() {
    for version in VERSIONS {
        let mut bytes = BytesMut::new();
        for packet in [
            Packet::Connect(Box::new(connect(version))),
            Packet::PingReq,
            subscribe(1, vec![subscription("t", Qos::AtMostOnce)]),
            Packet::Publish(publish("t", Qos::AtLeastOnce, 2)),
        ] {
            bytes.extend(encoded(&packet, version));
        }
        let mut wire = Wire::open();
        let answers = wire.bytes(&bytes);
        let first = connack(&answers);
        assert_eq!((first.reason, first.session_present), (ReasonCode::Success, false));
        assert!(
            matches!(answers[1..], [Packet::PingResp, Packet::SubAck(_), Packet::PubAck(_)]),
            "{answers:?}"
        );
    }
}

/// [MQTT5-3.2.2-9] [MQTT5-3.2.2-10] [MQTT5-3.2.2-12] [MQTT5-3.2.2-13]
#[test]
fn every_quality_and_retain_are_there_and_so_no_limit_of_them_is_told() {
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut wire = Wire::open();
        let mut will = will("w");
        (will.qos, will.retain) = (qos, true);
        let connect = Connect { will: Some(will), ..connect(ProtocolVersion::V5) };
        let answers = wire.send(&Packet::Connect(Box::new(connect)));
        let told = connack(&answers);
        assert_eq!(told.reason, ReasonCode::Success);
        assert_eq!(told.properties.number(PropertyId::MaximumQos), None);
        assert_ne!(told.properties.number(PropertyId::RetainAvailable), Some(0));
        let answers = wire.send(&subscribe(1, vec![subscription("t", qos)]));
        assert!(matches!(&answers[..], [Packet::SubAck(suback)] if suback.reasons[0].byte() == qos.bits()));
    }
}

/// [MQTT-3.1.2-24] [MQTT5-3.1.2-22] [MQTT5-3.2.2-22]
#[test]
fn the_keep_alive_that_was_told_or_asked_for_is_kept_one_and_a_half_times() {
    let limits = Limits { keep_alive_max_s: 60, ..Limits::default() };
    for (version, asked_s, applies_s) in [
        (ProtocolVersion::V311, 10, 10),
        (ProtocolVersion::V311, 100, 100),
        (ProtocolVersion::V5, 10, 10),
        (ProtocolVersion::V5, 100, 60),
    ] {
        let mut wire = Wire::with_limits(limits.clone());
        let answers =
            wire.send(&Packet::Connect(Box::new(Connect { keep_alive: asked_s, ..connect(version) })));
        let told = connack(&answers).properties.number(PropertyId::ServerKeepAlive);
        assert_eq!(told.unwrap_or_else(|| asked_s.into()), applies_s);
        wire.wait(u64::from(applies_s) * 1400);
        assert_eq!(wire.send(&Packet::PingReq), [Packet::PingResp]);
        wire.wait(u64::from(applies_s) * 1500 - 1);
        assert_eq!(wire.end, None, "{version:?} {asked_s}");
        let answers = wire.wait(1);
        assert_closed(&wire, &answers, ReasonCode::KeepAliveTimeout, "a silent client");
        assert_eq!(wire.end, Some(End::KeepAlive));
    }
    let mut wire = Wire::connected(ProtocolVersion::V311);
    wire.wait(86_400_000);
    assert_eq!(wire.end, None, "no keep alive, no end");
}

/// [MQTT-3.12.4-1] [MQTT5-3.12.4-1]
#[test]
fn every_ping_is_answered() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        assert_eq!(wire.bytes(b"\xc0\0\xc0\0"), [Packet::PingResp, Packet::PingResp]);
    }
}

/// [MQTT5-3.1.2-28]
#[test]
fn response_information_is_told_only_to_who_asks() {
    for (asked, told) in [(None, None), (Some(0), None), (Some(1), Some("info"))] {
        let limits = Limits { response_information: "info".to_owned(), ..Limits::default() };
        let mut wire = Wire::with_limits(limits);
        let mut connect = connect(ProtocolVersion::V5);
        if let Some(asked) = asked {
            let builder = PropertiesBuilder::new();
            connect.properties = builder.number(PropertyId::RequestResponseInformation, asked).build();
        }
        let answers = wire.send(&Packet::Connect(Box::new(connect)));
        assert_eq!(connack(&answers).properties.text(PropertyId::ResponseInformation).as_deref(), told);
    }
}

/// [MQTT-4.1.0-1] [MQTT-4.1.0-2] [MQTT5-4.1.0-1]
#[test]
fn what_a_session_holds_is_there_as_long_as_its_connection() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        wire.send(&subscribe(
            1,
            vec![subscription("a", Qos::AtMostOnce), subscription("b/#", Qos::ExactlyOnce)],
        ));
        wire.send(&Packet::Publish(publish("t", Qos::ExactlyOnce, 7)));
        let before: BTreeSet<_> = wire.has().into_iter().collect();
        for _ in 0..30 {
            wire.wait(86_400_000);
        }
        assert_eq!(wire.has().into_iter().collect::<BTreeSet<_>>(), before);
        // The packet id of the QoS 2 publish is still known: it is not published again.
        wire.send(&Packet::Publish(publish("t", Qos::ExactlyOnce, 7)));
        assert_eq!(wire.published.len(), 1, "{version:?}");
    }
}
