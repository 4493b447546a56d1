//! Texts (3.1.1 §1.5.3, 5.0 §1.5.4, §1.5.7).

use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Packet, ProtocolVersion, Qos, ReasonCode, Unsubscribe},
};

use super::{VERSIONS, assert_closed};
use crate::{
    encoded,
    wire::{Wire, connect, publish, subscribe, subscription, will},
};

/// Stands in for the text that is tried.
const MARK: &str = "QQQQ";

/// Four bytes each that are no text: a bad byte, surrogates, an overlong form, beyond U+10FFFF, cut off, U+0000.
const BAD: [&[u8; 4]; 8] = [
    b"aa\xffa",
    b"a\xed\xa0\x80",
    b"a\xed\xbf\xbf",
    b"\xc0\xaf\xc0\xaf",
    b"\xf5\x80\x80\x80",
    b"a\xe2\x82a",
    b"a\0aa",
    b"aa\xc0\x80",
];

/// Puts every bad text where the mark stands in a packet, and asserts that this closes the connection.
#[track_caller]
fn check(packet: &Packet, version: ProtocolVersion, what: &str) {
    let bytes = encoded(packet, version);
    let at =
        bytes.windows(4).position(|window| window == MARK.as_bytes()).expect("the mark is in the packet");
    for bad in BAD {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(bad);
        let what = format!("{what} {version:?} {bad:?}");
        if matches!(packet, Packet::Connect(_)) {
            let mut wire = Wire::open();
            let answers = wire.bytes(&bytes);
            assert!(wire.end.is_some(), "{what}");
            assert!(answers.iter().all(|answer| matches!(answer, Packet::ConnAck(_))), "{what}");
            assert_eq!(wire.published, [], "{what}");
        } else {
            let mut wire = Wire::connected(version);
            let answers = wire.bytes(&bytes);
            assert_closed(&wire, &answers, ReasonCode::MalformedPacket, &what);
            assert_eq!((wire.published.len(), wire.filters.len()), (0, 0), "{what}");
        }
    }
}

fn text(id: PropertyId) -> Properties {
    PropertiesBuilder::new().text(id, MARK).build()
}

/// [MQTT-1.5.3-1] [MQTT-1.5.3-2] [MQTT-3.1.3-4] [MQTT-3.1.3-10] [MQTT-3.1.3-11]
/// [MQTT5-1.5.4-1] [MQTT5-1.5.4-2] [MQTT5-3.1.3-4] [MQTT5-3.1.3-11] [MQTT5-3.1.3-12]
#[test]
fn client_id_will_topic_and_user_name_are_texts() {
    for version in VERSIONS {
        let mut client_id = connect(version);
        client_id.client_id = MARK.into();
        let mut will_topic = connect(version);
        will_topic.will = Some(will(MARK));
        let mut username = connect(version);
        username.username = Some(MARK.into());
        for (what, connect) in [("client id", client_id), ("will topic", will_topic), ("user name", username)]
        {
            check(&Packet::Connect(Box::new(connect)), version, what);
        }
    }
}

/// [MQTT-1.5.3-1] [MQTT-1.5.3-2] [MQTT-3.3.2-1] [MQTT-3.8.3-1] [MQTT-3.10.3-1] [MQTT-4.7.3-2]
/// [MQTT5-1.5.4-1] [MQTT5-1.5.4-2] [MQTT5-3.3.2-1] [MQTT5-3.8.3-1] [MQTT5-3.10.3-1] [MQTT5-4.7.3-2]
#[test]
fn topic_names_and_filters_are_texts() {
    for version in VERSIONS {
        check(&Packet::Publish(publish(MARK, Qos::AtMostOnce, 0)), version, "topic");
        let second = vec![subscription("a", Qos::AtMostOnce), subscription(MARK, Qos::AtMostOnce)];
        check(&subscribe(1, second), version, "filter");
        let filters = vec!["a".into(), MARK.into()];
        let unsubscribe = Unsubscribe { packet_id: 1, filters, properties: Properties::NONE };
        check(&Packet::Unsubscribe(unsubscribe), version, "filter to remove");
    }
}

/// [MQTT5-1.5.7-1] [MQTT5-3.3.2-13] [MQTT5-3.3.2-19]
#[test]
fn response_topic_content_type_and_both_parts_of_a_user_property_are_texts() {
    let with = |properties| {
        let mut publish = publish("t", Qos::AtMostOnce, 0);
        publish.properties = properties;
        Packet::Publish(publish)
    };
    check(&with(text(PropertyId::ResponseTopic)), ProtocolVersion::V5, "response topic");
    check(&with(text(PropertyId::ContentType)), ProtocolVersion::V5, "content type");
    check(&with(PropertiesBuilder::new().user(MARK, "v").build()), ProtocolVersion::V5, "name");
    check(&with(PropertiesBuilder::new().user("k", MARK).build()), ProtocolVersion::V5, "value");
    let mut with_method = connect(ProtocolVersion::V5);
    with_method.properties = text(PropertyId::AuthenticationMethod);
    check(&Packet::Connect(Box::new(with_method)), ProtocolVersion::V5, "authentication method");
}

/// [MQTT-1.5.3-3] [MQTT5-1.5.4-3]
#[test]
fn a_byte_order_mark_stays_where_it_is() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        for topic in ["\u{feff}a", "a\u{feff}", "a/\u{feff}b"] {
            wire.send(&Packet::Publish(publish(topic, Qos::AtMostOnce, 0)));
            assert_eq!(&*wire.published.pop().unwrap().topic, topic);
            wire.send(&subscribe(1, vec![subscription(topic, Qos::AtMostOnce)]));
        }
        assert_eq!(wire.has(), ["a/\u{feff}b", "a\u{feff}", "\u{feff}a"]);
    }
}
