//! Bytes written by hand from the standards.

use bytes::Bytes;
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{
        Ack, ConnAck, Connect, Disconnect, Packet,
        ProtocolVersion::{self, V5, V31, V311},
        Publish, Qos, ReasonCode, RetainHandling, SubAck, Subscribe, Subscription, Unsubscribe, Will,
    },
};

use crate::{decode, encoded, known};

fn check(packet: &Packet, version: ProtocolVersion, bytes: &[u8]) {
    assert_eq!(&encoded(packet, version)[..], bytes, "{version:?} {packet:?}");
    assert_eq!(decode(bytes, known(packet, version)), Ok(Some(packet.clone())), "{version:?}");
}

fn reason_string() -> Properties {
    PropertiesBuilder::new().text(PropertyId::ReasonString, "x").build()
}

fn connect(version: ProtocolVersion) -> Connect {
    Connect { keep_alive: 60, ..Connect::new(version, "c") }
}

#[test]
fn connect_is_written_as_each_version_says() {
    let packet = |version| Packet::Connect(Box::new(connect(version)));
    check(&packet(V31), V31, b"\x10\x0f\0\x06MQIsdp\x03\x02\0\x3c\0\x01c");
    check(&packet(V311), V311, b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01c");
    check(&packet(V5), V5, b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01c");
}

/// [MQTT-3.1.3-1] [MQTT5-3.1.3-1]
#[test]
fn a_connect_with_everything_keeps_the_standards_order() {
    let mut full = Connect {
        will: Some(Will {
            qos: Qos::AtLeastOnce,
            retain: true,
            topic: "w".into(),
            payload: Bytes::from_static(b"p"),
            properties: Properties::NONE,
        }),
        username: Some("u".into()),
        password: Some(Bytes::from_static(b"s")),
        ..connect(V311)
    };
    check(
        &Packet::Connect(Box::new(full.clone())),
        V311,
        b"\x10\x19\0\x04MQTT\x04\xee\0\x3c\0\x01c\0\x01w\0\x01p\0\x01u\0\x01s",
    );
    full.version = V5;
    full.properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 10).build();
    full.will.as_mut().unwrap().properties =
        PropertiesBuilder::new().number(PropertyId::WillDelayInterval, 5).build();
    check(
        &Packet::Connect(Box::new(full)),
        V5,
        b"\x10\x25\0\x04MQTT\x05\xee\0\x3c\x05\x11\0\0\0\x0a\0\x01c\x05\x18\0\0\0\x05\0\x01w\0\x01p\0\x01u\0\x01s",
    );
}

/// [MQTT-3.2.2-4] [MQTT5-3.2.2-1] [MQTT5-3.2.2-6]
#[test]
fn connack_carries_a_return_code_or_a_reason_code() {
    let packet = |session_present, reason| {
        Packet::ConnAck(ConnAck { session_present, reason, properties: Properties::NONE })
    };
    check(&packet(false, ReasonCode::Success), V31, b"\x20\x02\0\0");
    check(&packet(true, ReasonCode::Success), V311, b"\x20\x02\x01\0");
    check(&packet(false, ReasonCode::NotAuthorized), V311, b"\x20\x02\0\x05");
    check(&packet(true, ReasonCode::Success), V5, b"\x20\x03\x01\0\0");
    check(&packet(false, ReasonCode::NotAuthorized), V5, b"\x20\x03\0\x87\0");
    // MQTT 3.1 has no session-present flag, and a refusal never has a session.
    assert_eq!(&encoded(&packet(true, ReasonCode::Success), V31)[..], b"\x20\x02\0\0");
    assert_eq!(&encoded(&packet(true, ReasonCode::Banned), V5)[..], b"\x20\x03\0\x8a\0");
}

/// [MQTT-2.3.1-5] [MQTT-3.3.2-1] [MQTT5-2.2.1-2] [MQTT5-2.2.2-1] [MQTT5-3.3.2-1]
#[test]
fn publish_has_its_flags_and_fields_in_place() {
    let mut publish = Publish {
        dup: false,
        qos: Qos::AtMostOnce,
        retain: true,
        topic: "a/b".into(),
        packet_id: None,
        properties: Properties::NONE,
        payload: Bytes::from_static(b"hi"),
    };
    for version in [V31, V311] {
        check(&Packet::Publish(publish.clone()), version, b"\x31\x07\0\x03a/bhi");
    }
    check(&Packet::Publish(publish.clone()), V5, b"\x31\x08\0\x03a/b\0hi");
    publish = Publish { dup: true, qos: Qos::ExactlyOnce, packet_id: Some(0x1234), ..publish };
    for version in [V31, V311] {
        check(&Packet::Publish(publish.clone()), version, b"\x3d\x09\0\x03a/b\x12\x34hi");
    }
    publish.properties = PropertiesBuilder::new().number(PropertyId::TopicAlias, 7).user("k", "v").build();
    check(&Packet::Publish(publish), V5, b"\x3d\x14\0\x03a/b\x12\x34\x0a\x23\0\x07\x26\0\x01k\0\x01vhi");
}

#[test]
fn acknowledgements_leave_out_what_may_be_left_out() {
    type Kind = (u8, fn(Ack) -> Packet, ReasonCode);
    let kinds: [Kind; 4] = [
        (0x40, Packet::PubAck, ReasonCode::QuotaExceeded),
        (0x50, Packet::PubRec, ReasonCode::QuotaExceeded),
        (0x62, Packet::PubRel, ReasonCode::PacketIdentifierNotFound),
        (0x70, Packet::PubComp, ReasonCode::PacketIdentifierNotFound),
    ];
    for (first, packet, error) in kinds {
        for version in [V31, V311, V5] {
            check(&packet(Ack::new(1, ReasonCode::Success)), version, &[first, 2, 0, 1]);
        }
        check(&packet(Ack::new(1, error)), V5, &[first, 3, 0, 1, error.byte()]);
        let mut ack = Ack::new(1, error);
        ack.properties = reason_string();
        check(&packet(ack), V5, &[first, 8, 0, 1, error.byte(), 4, 0x1f, 0, 1, b'x']);
        // 3.x has no place for the reason.
        assert_eq!(&encoded(&packet(Ack::new(1, error)), V311)[..], [first, 2, 0, 1]);
    }
}

#[test]
fn subscribe_and_unsubscribe_are_written_as_each_version_says() {
    let mut subscribe = Subscribe::new(10, vec![Subscription::new("a/#", Qos::AtLeastOnce)]);
    let unsubscribe =
        Unsubscribe { packet_id: 11, filters: vec!["a".into(), "b".into()], properties: Properties::NONE };
    for version in [V31, V311] {
        check(&Packet::Subscribe(subscribe.clone()), version, b"\x82\x08\0\x0a\0\x03a/#\x01");
        check(&Packet::Unsubscribe(unsubscribe.clone()), version, b"\xa2\x08\0\x0b\0\x01a\0\x01b");
    }
    check(&Packet::Unsubscribe(unsubscribe), V5, b"\xa2\x09\0\x0b\0\0\x01a\0\x01b");
    let one = &mut subscribe.subscriptions[0];
    (one.no_local, one.retain_as_published, one.retain_handling) = (true, true, RetainHandling::DoNotSend);
    subscribe.properties = PropertiesBuilder::new().number(PropertyId::SubscriptionIdentifier, 300).build();
    check(&Packet::Subscribe(subscribe), V5, b"\x82\x0c\0\x0a\x03\x0b\xac\x02\0\x03a/#\x2d");
}

/// [MQTT-3.9.3-2]
#[test]
fn suback_tells_old_clients_of_one_failure_only() {
    let ack = |reasons: &[ReasonCode]| SubAck {
        packet_id: 10,
        reasons: reasons.to_vec(),
        properties: Properties::NONE,
    };
    let (granted, failure) = (ReasonCode::GrantedQos2, ReasonCode::UnspecifiedError);
    for version in [V31, V311] {
        check(&Packet::SubAck(ack(&[granted, failure])), version, b"\x90\x04\0\x0a\x02\x80");
        let refused = Packet::SubAck(ack(&[granted, ReasonCode::NotAuthorized]));
        assert_eq!(&encoded(&refused, version)[..], b"\x90\x04\0\x0a\x02\x80");
        check(&Packet::UnsubAck(ack(&[])), version, b"\xb0\x02\0\x0a");
        let unsubscribed = Packet::UnsubAck(ack(&[ReasonCode::Success]));
        assert_eq!(&encoded(&unsubscribed, version)[..], b"\xb0\x02\0\x0a");
    }
    check(&Packet::SubAck(ack(&[granted, ReasonCode::NotAuthorized])), V5, b"\x90\x05\0\x0a\0\x02\x87");
    check(&Packet::UnsubAck(ack(&[ReasonCode::NoSubscriptionExisted])), V5, b"\xb0\x04\0\x0a\0\x11");
}

#[test]
fn packets_without_a_body_are_two_bytes() {
    for version in [V31, V311, V5] {
        check(&Packet::PingReq, version, b"\xc0\0");
        check(&Packet::PingResp, version, b"\xd0\0");
        check(&Packet::Disconnect(Disconnect::new(ReasonCode::Success)), version, b"\xe0\0");
    }
}

#[test]
fn disconnect_and_auth_carry_reason_and_properties() {
    check(&Packet::Disconnect(Disconnect::new(ReasonCode::SessionTakenOver)), V5, b"\xe0\x01\x8e");
    let packet = Disconnect { reason: ReasonCode::ServerShuttingDown, properties: reason_string() };
    check(&Packet::Disconnect(packet), V5, b"\xe0\x06\x8b\x04\x1f\0\x01x");
    let properties = PropertiesBuilder::new()
        .text(PropertyId::AuthenticationMethod, "m")
        .binary(PropertyId::AuthenticationData, &[0xff])
        .build();
    let packet = Disconnect { reason: ReasonCode::ContinueAuthentication, properties };
    check(&Packet::Auth(packet), V5, b"\xf0\x0a\x18\x08\x15\0\x01m\x16\0\x01\xff");
}

#[test]
fn a_property_length_of_zero_may_be_written_out() {
    for (bytes, expected) in [
        (&b"\x40\x04\0\x01\0\0"[..], Packet::PubAck(Ack::new(1, ReasonCode::Success))),
        (b"\xe0\x02\0\0", Packet::Disconnect(Disconnect::new(ReasonCode::Success))),
    ] {
        assert_eq!(decode(bytes, Some(V5)), Ok(Some(expected)));
    }
}

#[test]
fn mqtt_3_1_clients_may_do_what_3_1_allowed() {
    // A resent SUBSCRIBE has DUP there, and a user name may be announced and then be missing.
    assert!(decode(b"\x8a\x06\0\x0a\0\x01a\x01", Some(V31)).unwrap().is_some());
    let Some(Packet::Connect(connect)) = decode(b"\x10\x0f\0\x06MQIsdp\x03\xc2\0\x3c\0\x01c", None).unwrap()
    else {
        panic!("no CONNECT")
    };
    assert_eq!((connect.username, connect.password), (None, None));
}

#[test]
fn properties_that_mqtt_cannot_express_are_left_out() {
    let long = "x".repeat(65_536);
    let properties = PropertiesBuilder::new()
        .text(PropertyId::ContentType, "a\0b")
        .binary(PropertyId::CorrelationData, long.as_bytes())
        .user("k", &long)
        .user("k", "v")
        .build();
    assert_eq!(properties.bytes()[..], *b"\x26\0\x01k\0\x01v");
}
