//! Enhanced authentication (5.0 §4.12), with one method ([`METHOD`]).

use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Connect, Disconnect, Packet, ProtocolVersion, ReasonCode},
    session::End,
};

use super::assert_closed;
use crate::wire::{METHOD, Wire, answer, connect};

/// [MQTT5-4.12.0-1] [MQTT5-4.12.0-4] [MQTT5-3.1.4-2]
#[test]
fn a_method_that_is_not_there_is_told_and_closed() {
    let mut wire = Wire::open();
    let properties = PropertiesBuilder::new()
        .text(PropertyId::AuthenticationMethod, "SCRAM-SHA-1")
        .binary(PropertyId::AuthenticationData, b"first")
        .build();
    let connect = Connect { properties, ..connect(ProtocolVersion::V5) };
    let answers = wire.send(&Packet::Connect(Box::new(connect)));
    assert!(
        matches!(&answers[..], [Packet::ConnAck(connack)] if connack.reason == ReasonCode::BadAuthenticationMethod)
    );
    assert_eq!(wire.end, Some(End::Refused));
}

fn by_method() -> (Wire, Vec<Packet>) {
    let mut wire = Wire::open();
    let properties = PropertiesBuilder::new().text(PropertyId::AuthenticationMethod, METHOD).build();
    let connect = Connect { properties, ..connect(ProtocolVersion::V5) };
    let answers = wire.send(&Packet::Connect(Box::new(connect)));
    (wire, answers)
}

/// [MQTT5-4.12.0-2] [MQTT5-4.12.0-3] [MQTT5-4.12.0-5]
#[test]
fn a_method_asks_for_what_it_needs_before_connack_and_both_name_it() {
    let (mut wire, answers) = by_method();
    assert_eq!(answers, [answer(b"say it", ReasonCode::ContinueAuthentication)]);
    let answers = wire.send(&answer(b"again", ReasonCode::ContinueAuthentication));
    assert_eq!(answers, [answer(b"say it again", ReasonCode::ContinueAuthentication)]);
    let answers = wire.send(&answer(b"secret", ReasonCode::ContinueAuthentication));
    match &answers[..] {
        [Packet::ConnAck(connack)] => {
            assert_eq!(connack.reason, ReasonCode::Success);
            assert_eq!(connack.properties.text(PropertyId::AuthenticationMethod).as_deref(), Some(METHOD));
            let data = connack.properties.binary(PropertyId::AuthenticationData);
            assert_eq!(data.as_deref(), Some(&b"you are welcome"[..]));
        }
        other => panic!("{other:?}"),
    }
}

/// [MQTT5-4.12.0-4] [MQTT5-3.1.2-30]
#[test]
fn who_gives_no_proof_is_told_and_closed() {
    for (packet, reason) in [
        (answer(b"wrong", ReasonCode::ContinueAuthentication), ReasonCode::NotAuthorized),
        (answer(b"", ReasonCode::ContinueAuthentication), ReasonCode::UnspecifiedError),
        (Packet::PingReq, ReasonCode::ProtocolError),
    ] {
        let (mut wire, _) = by_method();
        let answers = wire.send(&packet);
        assert!(
            matches!(&answers[..], [Packet::ConnAck(connack)] if connack.reason == reason),
            "{answers:?}"
        );
        assert_eq!(wire.end, Some(End::Refused));
    }
}

/// [MQTT5-4.12.1-1] [MQTT5-4.12.1-2]
#[test]
fn a_client_proves_again_who_it_is_or_is_closed() {
    for (data, reason) in [(&b"secret"[..], ReasonCode::Success), (b"wrong", ReasonCode::NotAuthorized)] {
        let (mut wire, _) = by_method();
        wire.send(&answer(b"secret", ReasonCode::ContinueAuthentication));
        let answers = wire.send(&answer(b"again", ReasonCode::ReAuthenticate));
        assert_eq!(answers, [answer(b"say it again", ReasonCode::ContinueAuthentication)]);
        let answers = wire.send(&answer(data, ReasonCode::ContinueAuthentication));
        if reason == ReasonCode::Success {
            assert_eq!(answers, [answer(b"you are welcome", reason)]);
        } else {
            assert_closed(&wire, &answers, reason, "a wrong proof");
        }
    }
}

/// [MQTT5-4.12.0-6] [MQTT5-4.12.0-7] [MQTT5-4.12.1-1] [MQTT5-4.12.1-2]
#[test]
fn without_a_method_there_is_no_authentication_and_asking_for_it_again_closes() {
    for reason in [ReasonCode::Success, ReasonCode::ContinueAuthentication, ReasonCode::ReAuthenticate] {
        let mut wire = Wire::open();
        let answers = wire.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5))));
        match &answers[..] {
            [Packet::ConnAck(connack)] => {
                assert_eq!(connack.properties.get(PropertyId::AuthenticationMethod), None);
            }
            other => panic!("{other:?}"),
        }
        let properties = PropertiesBuilder::new().text(PropertyId::AuthenticationMethod, "m").build();
        let answers = wire.send(&Packet::Auth(Disconnect { reason, properties }));
        assert_closed(&wire, &answers, ReasonCode::ProtocolError, "AUTH without a method in CONNECT");
        assert_eq!(answers.len(), 1);
    }
}

/// [MQTT5-3.15.1-1]
#[test]
fn auth_is_no_packet_of_older_versions() {
    let mut wire = Wire::connected(ProtocolVersion::V311);
    wire.bytes(b"\xf0\0");
    assert_eq!((wire.end, wire.written.len()), (Some(End::Protocol), 1));
}
