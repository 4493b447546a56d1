//! Headers, flags, lengths, packet ids and reason codes.

use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Packet, ProtocolVersion, Qos, ReasonCode},
};

use super::{VERSIONS, assert_closed};
use crate::{
    decode, encoded,
    wire::{Wire, publish},
};

/// A packet of every type that a client may send after CONNECT, but PUBLISH, as bytes.
fn requests(version: ProtocolVersion) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> =
        [&b"\x40\x02\0\x01"[..], b"\x50\x02\0\x01", b"\x62\x02\0\x01", b"\x70\x02\0\x01"]
            .into_iter()
            .chain([&b"\xc0\0"[..], b"\xe0\0"])
            .map(<[u8]>::to_vec)
            .collect();
    if version.is_v5() {
        all.extend(
            [&b"\x82\x07\0\x01\0\0\x01a\0"[..], b"\xa2\x06\0\x01\0\0\x01a", b"\xf0\0"].map(<[u8]>::to_vec),
        );
    } else {
        all.extend([&b"\x82\x06\0\x01\0\x01a\0"[..], b"\xa2\x05\0\x01\0\x01a"].map(<[u8]>::to_vec));
    }
    all
}

/// [MQTT-2.2.2-1] [MQTT-2.2.2-2] [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1]
/// [MQTT5-2.1.3-1] [MQTT5-3.6.1-1] [MQTT5-3.8.1-1] [MQTT5-3.10.1-1] [MQTT5-3.14.1-1] [MQTT5-3.15.1-1]
#[test]
fn any_other_flags_of_a_header_are_malformed() {
    for version in VERSIONS {
        for request in requests(version) {
            for flags in 0..16 {
                let mut bytes = request.clone();
                bytes[0] = bytes[0] & 0xf0 | flags;
                if bytes[0] == request[0] {
                    continue;
                }
                let mut wire = Wire::connected(version);
                let answers = wire.bytes(&bytes);
                let what = format!("{version:?} {:#x}", bytes[0]);
                assert_closed(&wire, &answers, ReasonCode::MalformedPacket, &what);
            }
        }
    }
}

/// [MQTT-3.3.1-4] [MQTT5-3.3.1-4]
#[test]
fn qos_3_is_malformed() {
    for version in VERSIONS {
        for flags in [0x36, 0x37, 0x3e, 0x3f] {
            let mut wire = Wire::connected(version);
            let answers = wire.bytes(&[flags, 0x06, 0, 1, b'a', 0, 1, 0]);
            assert_closed(&wire, &answers, ReasonCode::MalformedPacket, "QoS 3");
            assert_eq!(wire.published, []);
        }
    }
}

/// [MQTT5-1.5.5-1]
#[test]
fn a_number_that_is_not_written_in_the_fewest_bytes_is_malformed() {
    let mut wire = Wire::connected(ProtocolVersion::V5);
    wire.bytes(b"\x82\x09\0\x01\x02\x0b\x7f\0\x01a\0");
    assert_eq!((wire.end, wire.has()), (None, vec!["a".to_owned()]));
    for (what, bytes) in [
        ("length of a packet", &b"\xc0\x80\0"[..]),
        ("length of a packet", b"\xc0\x80\x80\0"),
        ("length of a packet", b"\xc0\x80\x80\x80\0"),
        ("length of five bytes", b"\x30\x80\x80\x80\x80\x01"),
        ("length of properties", b"\x82\x08\0\x01\x80\0\0\x01a\0"),
        ("subscription identifier", b"\x82\x0a\0\x01\x03\x0b\x81\0\0\x01a\0"),
    ] {
        let mut wire = Wire::connected(ProtocolVersion::V5);
        let answers = wire.bytes(bytes);
        assert_closed(&wire, &answers, ReasonCode::MalformedPacket, what);
    }
}

/// [MQTT-2.3.1-1] [MQTT5-2.2.1-3]
#[test]
fn a_packet_id_of_0_closes_the_connection() {
    for version in VERSIONS {
        let mut all = requests(version);
        all.retain(|bytes| bytes.len() > 2);
        all.push(if version.is_v5() {
            b"\x32\x06\0\x01a\0\x01\0".to_vec()
        } else {
            b"\x32\x05\0\x01a\0\x01".to_vec()
        });
        for mut bytes in all {
            let at = if bytes[0] == 0x32 { 5 } else { 2 };
            bytes[at..at + 2].fill(0);
            let mut wire = Wire::connected(version);
            let answers = wire.bytes(&bytes);
            assert_closed(&wire, &answers, ReasonCode::ProtocolError, &format!("{version:?} {bytes:?}"));
        }
    }
}

/// [MQTT-2.3.1-5] [MQTT5-2.2.1-2]
#[test]
fn what_follows_the_topic_at_qos_0_is_no_packet_id() {
    let mut wire = Wire::connected(ProtocolVersion::V311);
    wire.bytes(b"\x30\x05\0\x01a\0\x07");
    assert_eq!(wire.published[0].payload[..], [0, 7]);
    let mut wire = Wire::connected(ProtocolVersion::V5);
    wire.bytes(b"\x30\x06\0\x01a\0\0\x07");
    assert_eq!(wire.published[0].payload[..], [0, 7]);
    for version in VERSIONS {
        let sent = crate::wire::delivery(crate::wire::message("a", Qos::AtMostOnce));
        assert!(
            matches!(&Wire::connected(version).deliver(sent)[..], [Packet::Publish(p)] if p.packet_id.is_none())
        );
    }
}

/// The reason codes of each packet (5.0 §3.4.2.1 and on), whoever sends them.
const CODES: [(u8, &[u8]); 9] = [
    (
        0x20,
        &[
            0, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8c, 0x90, 0x95, 0x97,
            0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9f,
        ],
    ),
    (0x40, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
    (0x50, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
    (0x62, &[0, 0x92]),
    (0x70, &[0, 0x92]),
    (0x90, &[0, 1, 2, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2]),
    (0xb0, &[0, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91]),
    (
        0xe0,
        &[
            0, 4, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x90, 0x93, 0x94, 0x95,
            0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1, 0xa2,
        ],
    ),
    (0xf0, &[0, 0x18, 0x19]),
];

/// What the server writes is read back by this decoder in all tests of this folder, so it keeps to the tables, too.
///
/// [MQTT5-3.2.2-8] [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [MQTT5-3.6.2-1] [MQTT5-3.7.2-1] [MQTT5-3.9.3-2] [MQTT5-3.11.3-2]
/// [MQTT5-3.14.2-1] [MQTT5-3.15.2-1]
#[test]
fn each_packet_has_the_reason_codes_of_its_table_and_no_others() {
    for (first, codes) in CODES {
        for code in 0..=255 {
            let bytes = match first {
                0x20 => vec![first, 3, 0, code, 0],
                0xe0 | 0xf0 => vec![first, 2, code, 0],
                0x90 | 0xb0 => vec![first, 4, 0, 1, 0, code],
                _ => vec![first, 4, 0, 1, code, 0],
            };
            let is_read = decode(&bytes, Some(ProtocolVersion::V5)).is_ok();
            assert_eq!(is_read, codes.contains(&code), "{first:#x} {code:#x}");
        }
    }
}

/// [MQTT5-2.2.2-1]
#[test]
fn no_properties_are_a_length_of_0_that_may_not_be_missing() {
    let publish = Packet::Publish(publish("a", Qos::AtMostOnce, 0));
    assert_eq!(&encoded(&publish, ProtocolVersion::V5)[..], b"\x30\x05\0\x01a\0x");
    let mut wire = Wire::connected(ProtocolVersion::V5);
    let answers = wire.bytes(b"\x30\x03\0\x01a");
    assert_closed(&wire, &answers, ReasonCode::MalformedPacket, "no property length");
}

/// Where each property may stand, and that only a user property and a server's subscription identifier may repeat.
///
/// [MQTT5-4.13.1-1]
#[test]
fn a_property_of_another_packet_and_a_second_one_are_refused() {
    let one = |id: PropertyId| match id {
        PropertyId::UserProperty => PropertiesBuilder::new().user("k", "v"),
        PropertyId::ContentType
        | PropertyId::ResponseTopic
        | PropertyId::AssignedClientIdentifier
        | PropertyId::AuthenticationMethod
        | PropertyId::ResponseInformation
        | PropertyId::ServerReference
        | PropertyId::ReasonString => PropertiesBuilder::new().text(id, "x"),
        PropertyId::CorrelationData => PropertiesBuilder::new().binary(id, b"x"),
        _ => PropertiesBuilder::new().number(id, 1),
    };
    use PropertyId as Id;
    let all = [
        (Id::PayloadFormatIndicator, "pw"),
        (Id::MessageExpiryInterval, "pw"),
        (Id::ContentType, "pw"),
        (Id::ResponseTopic, "pw"),
        (Id::CorrelationData, "pw"),
        (Id::SubscriptionIdentifier, "Ps"),
        (Id::SessionExpiryInterval, "cd"),
        (Id::AssignedClientIdentifier, ""),
        (Id::ServerKeepAlive, ""),
        (Id::AuthenticationMethod, "ca"),
        (Id::RequestProblemInformation, "c"),
        (Id::WillDelayInterval, "w"),
        (Id::RequestResponseInformation, "c"),
        (Id::ResponseInformation, ""),
        (Id::ServerReference, "d"),
        (Id::ReasonString, "kda"),
        (Id::ReceiveMaximum, "c"),
        (Id::TopicAliasMaximum, "c"),
        (Id::TopicAlias, "p"),
        (Id::MaximumQos, ""),
        (Id::RetainAvailable, ""),
        (Id::UserProperty, "PWCKSUDA"),
        (Id::MaximumPacketSize, "c"),
        (Id::WildcardSubscriptionAvailable, ""),
        (Id::SubscriptionIdentifierAvailable, ""),
        (Id::SharedSubscriptionAvailable, ""),
    ];
    for (id, places) in all {
        for place in "pwcksuda".chars() {
            let upper = place.to_ascii_uppercase();
            let is_allowed = places.contains(place) || places.contains(upper);
            let single = one(id).build();
            let read = |properties: &[u8]| {
                decode(&at(place, properties), (place != 'c' && place != 'w').then_some(ProtocolVersion::V5))
            };
            let found = read(single.bytes()).map_err(|error| error.reason);
            if is_allowed {
                assert!(matches!(found, Ok(Some(_))), "{id:?} in {place}: {found:?}");
            } else {
                assert_eq!(found, Err(ReasonCode::MalformedPacket), "{id:?} in {place}");
                continue;
            }
            let twice = [&single.bytes()[..], &single.bytes()[..]].concat();
            let found = read(&twice).map_err(|error| error.reason);
            if places.contains(upper) {
                assert!(matches!(found, Ok(Some(_))), "{id:?} twice in {place}");
            } else {
                assert_eq!(found, Err(ReasonCode::ProtocolError), "{id:?} twice in {place}");
            }
        }
    }
}

/// A packet with these properties: p PUBLISH, w will, c CONNECT, k PUBACK, s SUBSCRIBE, u UNSUBSCRIBE, d DISCONNECT,
/// a AUTH.
fn at(place: char, properties: &[u8]) -> Vec<u8> {
    let length = [properties.len() as u8];
    let of = |first: u8, before: &[u8], after: &[u8]| {
        let body = [before, &length, properties, after].concat();
        [&[first, body.len() as u8][..], &body].concat()
    };
    match place {
        'p' => of(0x30, b"\0\x01a", b""),
        'w' => of(0x10, b"\0\x04MQTT\x05\x06\0\0\0\0\x01c", b"\0\x01w\0\0"),
        'c' => of(0x10, b"\0\x04MQTT\x05\x02\0\0", b"\0\x01c"),
        'k' => of(0x40, b"\0\x01\0", b""),
        's' => of(0x82, b"\0\x01", b"\0\x01a\0"),
        'u' => of(0xa2, b"\0\x01", b"\0\x01a"),
        'd' => of(0xe0, b"\0", b""),
        _ => of(0xf0, b"\x18", b""),
    }
}

/// Topic, properties and payload of a PUBLISH lie in the read buffer: nothing is copied, and nothing allocated for them.
#[test]
fn a_publish_is_slices_of_the_read_buffer() {
    let mut publish = publish("a/topic", Qos::AtLeastOnce, 7);
    publish.properties = PropertiesBuilder::new().user("k", "v").build();
    publish.payload = vec![7; 256].into();
    let mut buffer = encoded(&Packet::Publish(publish.clone()), ProtocolVersion::V5);
    let range = buffer.as_ptr_range();
    let limits = tbmq_mqtt::codec::Limits::default();
    let Ok(Some(Packet::Publish(read))) =
        tbmq_mqtt::codec::decode(&mut buffer, Some(ProtocolVersion::V5), &limits)
    else {
        panic!("no PUBLISH")
    };
    assert_eq!(read, publish);
    for slice in [read.topic.bytes(), read.properties.bytes(), &read.payload] {
        assert!(range.contains(&slice.as_ptr()));
    }
}

/// [MQTT-7.0.0-2]
#[test]
fn a_conversation_of_bytes_from_the_standard_alone_is_understood() {
    let mut wire = Wire::open();
    wire.bytes(b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01c");
    wire.bytes(b"\x82\x06\0\x01\0\x01a\x01");
    wire.bytes(b"\x32\x06\0\x01a\0\x02x");
    wire.bytes(b"\xa2\x05\0\x03\0\x01a");
    wire.bytes(b"\xc0\0");
    wire.bytes(b"\xe0\0");
    let written: Vec<_> = wire.written.iter().map(|bytes| &bytes[..]).collect();
    let expected: [&[u8]; 5] =
        [b"\x20\x02\0\0", b"\x90\x03\0\x01\x01", b"\x40\x02\0\x02", b"\xb0\x02\0\x03", b"\xd0\0"];
    assert_eq!(written, expected);
    assert_eq!((wire.published.len(), wire.end.is_some()), (1, true));
}
