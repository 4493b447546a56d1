//! Bytes that the standards refuse, and the reason that they are refused for.

use bytes::BytesMut;
use tbmq_mqtt::{
    codec::{self, Limits},
    packet::{
        ProtocolVersion::{self, V5, V31, V311},
        ReasonCode::{
            self, MalformedPacket, PacketTooLarge, ProtocolError, TopicAliasInvalid,
            UnsupportedProtocolVersion,
        },
    },
};

use crate::decode;

fn check(table: &[(&str, Option<ProtocolVersion>, &[u8], ReasonCode)]) {
    for (what, version, bytes, expected) in table {
        let found = decode(bytes, *version).map_err(|error| error.reason);
        assert_eq!(found, Err(*expected), "{what}");
    }
}

#[test]
fn headers_are_refused_for_their_reason() {
    check(&[
        ("type 0", Some(V5), b"\x00\0", MalformedPacket),
        ("AUTH in 3.1.1", Some(V311), b"\xf0\0", MalformedPacket),
        ("AUTH in 3.1", Some(V31), b"\xf0\0", MalformedPacket),
        ("flags of PUBREL", Some(V5), b"\x60\x02\0\x01", MalformedPacket),
        ("flags of SUBSCRIBE", Some(V311), b"\x80\x06\0\x01\0\x01a\0", MalformedPacket),
        ("flags of UNSUBSCRIBE", Some(V311), b"\xaa\x05\0\x01\0\x01a", MalformedPacket),
        ("flags of PINGREQ", Some(V5), b"\xc1\0", MalformedPacket),
        ("flags of CONNECT", None, b"\x11\0", MalformedPacket),
        ("length of five bytes", Some(V5), b"\x30\x80\x80\x80\x80\x01", MalformedPacket),
        ("length not in the fewest bytes", Some(V5), b"\xc0\x80\0", MalformedPacket),
        ("PINGREQ with a body", Some(V311), b"\xc0\x01\0", MalformedPacket),
        ("not CONNECT first", None, b"\xc0\0", ProtocolError),
        ("a text protocol", None, b"GET / HTTP/1.1", ProtocolError),
        ("a second CONNECT", Some(V311), b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01c", ProtocolError),
    ]);
}

#[test]
fn a_connect_is_refused_for_its_reason() {
    check(&[
        ("another protocol", None, b"\x10\x0d\0\x04MQTX\x04\x02\0\x3c\0\x01c", UnsupportedProtocolVersion),
        ("level 6", None, b"\x10\x0d\0\x04MQTT\x06\x02\0\x3c\0\x01c", UnsupportedProtocolVersion),
        ("MQTT of level 3", None, b"\x10\x0d\0\x04MQTT\x03\x02\0\x3c\0\x01c", UnsupportedProtocolVersion),
        ("reserved flag", None, b"\x10\x0d\0\x04MQTT\x04\x03\0\x3c\0\x01c", MalformedPacket),
        ("will QoS without will", None, b"\x10\x0d\0\x04MQTT\x04\x0a\0\x3c\0\x01c", MalformedPacket),
        ("will retain without will", None, b"\x10\x0d\0\x04MQTT\x04\x22\0\x3c\0\x01c", MalformedPacket),
        ("will QoS 3", None, b"\x10\x13\0\x04MQTT\x04\x1e\0\x3c\0\x01c\0\x01w\0\x01p", MalformedPacket),
        ("password alone in 3.1.1", None, b"\x10\x10\0\x04MQTT\x04\x42\0\x3c\0\x01c\0\x01p", MalformedPacket),
        ("user name missing in 3.1.1", None, b"\x10\x0d\0\x04MQTT\x04\x82\0\x3c\0\x01c", MalformedPacket),
        ("client id not UTF-8", None, b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01\xff", MalformedPacket),
        ("client id with U+0000", None, b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01\0", MalformedPacket),
        ("bytes after its end", None, b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x01cx", MalformedPacket),
        ("too short", None, b"\x10\x05\0\x04MQT", MalformedPacket),
        ("receive maximum 0", None, b"\x10\x11\0\x04MQTT\x05\x02\0\x3c\x03\x21\0\0\0\x01c", ProtocolError),
        ("packet size 0", None, b"\x10\x13\0\x04MQTT\x05\x02\0\x3c\x05\x27\0\0\0\0\0\x01c", ProtocolError),
        (
            "will delay not in will",
            None,
            b"\x10\x13\0\x04MQTT\x05\x02\0\x3c\x05\x18\0\0\0\0\0\x01c",
            MalformedPacket,
        ),
        ("a flag of 2", None, b"\x10\x10\0\x04MQTT\x05\x02\0\x3c\x02\x17\x02\0\x01c", ProtocolError),
        (
            "data without method",
            None,
            b"\x10\x12\0\x04MQTT\x05\x02\0\x3c\x04\x16\0\x01x\0\x01c",
            ProtocolError,
        ),
    ]);
}

#[test]
fn a_publish_is_refused_for_its_reason() {
    check(&[
        ("QoS 3", Some(V5), b"\x36\x06\0\x01a\0\x01\0", MalformedPacket),
        ("DUP at QoS 0", Some(V311), b"\x38\x03\0\x01a", MalformedPacket),
        ("packet id 0", Some(V311), b"\x32\x05\0\x01a\0\0", ProtocolError),
        ("no packet id", Some(V311), b"\x32\x04\0\x01a\0", MalformedPacket),
        ("topic longer than the packet", Some(V311), b"\x30\x03\0\x02a", MalformedPacket),
        ("surrogate in the topic", Some(V311), b"\x30\x05\0\x03\xed\xa0\x80", MalformedPacket),
        ("no property length", Some(V5), b"\x30\x03\0\x01a", MalformedPacket),
        ("properties longer than the packet", Some(V5), b"\x30\x04\0\x01a\x05", MalformedPacket),
        ("unknown property", Some(V5), b"\x30\x06\0\x01a\x02\x04\0", MalformedPacket),
        ("a CONNECT's property", Some(V5), b"\x30\x07\0\x01a\x03\x21\0\x01", MalformedPacket),
        ("property cut off", Some(V5), b"\x30\x06\0\x01a\x02\x23\0", MalformedPacket),
        ("alias 0", Some(V5), b"\x30\x07\0\x01a\x03\x23\0\0", TopicAliasInvalid),
        ("alias twice", Some(V5), b"\x30\x0a\0\x01a\x06\x23\0\x01\x23\0\x01", ProtocolError),
        ("payload format 2", Some(V5), b"\x30\x06\0\x01a\x02\x01\x02", ProtocolError),
        ("wildcard in response topic", Some(V5), b"\x30\x08\0\x01a\x04\x08\0\x01#", ProtocolError),
        ("empty response topic", Some(V5), b"\x30\x07\0\x01a\x03\x08\0\0", ProtocolError),
        ("subscription identifier 0", Some(V5), b"\x30\x06\0\x01a\x02\x0b\0", ProtocolError),
        ("user property not UTF-8", Some(V5), b"\x30\x0b\0\x01a\x07\x26\0\x01\xff\0\x01v", MalformedPacket),
    ]);
}

#[test]
fn other_packets_are_refused_for_their_reason() {
    check(&[
        ("PUBACK of id 0", Some(V311), b"\x40\x02\0\0", ProtocolError),
        ("PUBACK of 3.1.1 with a reason", Some(V311), b"\x40\x03\0\x01\0", MalformedPacket),
        ("PUBACK with an unknown reason", Some(V5), b"\x40\x03\0\x01\x05", MalformedPacket),
        ("PUBACK with another packet's reason", Some(V5), b"\x40\x03\0\x01\x8e", ProtocolError),
        ("PUBREL with another packet's reason", Some(V5), b"\x62\x03\0\x01\x87", ProtocolError),
        ("SUBSCRIBE without filter", Some(V311), b"\x82\x02\0\x01", ProtocolError),
        ("SUBSCRIBE of id 0", Some(V311), b"\x82\x06\0\0\0\x01a\0", ProtocolError),
        ("SUBSCRIBE without options", Some(V311), b"\x82\x05\0\x01\0\x01a", MalformedPacket),
        ("5.0 options in 3.1.1", Some(V311), b"\x82\x06\0\x01\0\x01a\x04", MalformedPacket),
        ("reserved options", Some(V5), b"\x82\x07\0\x01\0\0\x01a\x40", MalformedPacket),
        ("QoS 3", Some(V5), b"\x82\x07\0\x01\0\0\x01a\x03", ProtocolError),
        ("retain handling 3", Some(V5), b"\x82\x07\0\x01\0\0\x01a\x30", ProtocolError),
        ("identifier twice", Some(V5), b"\x82\x0b\0\x01\x04\x0b\x01\x0b\x01\0\x01a\0", ProtocolError),
        ("UNSUBSCRIBE without filter", Some(V5), b"\xa2\x03\0\x01\0", ProtocolError),
        ("SUBACK of 3.1.1 with a 5.0 code", Some(V311), b"\x90\x03\0\x01\x87", ProtocolError),
        ("SUBACK without result", Some(V311), b"\x90\x02\0\x01", ProtocolError),
        ("UNSUBACK of 3.1.1 with a code", Some(V311), b"\xb0\x03\0\x01\0", MalformedPacket),
        ("CONNACK with reserved flags", Some(V311), b"\x20\x02\x02\0", MalformedPacket),
        ("CONNACK of 3.1.1 with code 6", Some(V311), b"\x20\x02\0\x06", MalformedPacket),
        ("refusal with a session", Some(V311), b"\x20\x02\x01\x05", ProtocolError),
        ("DISCONNECT of 3.1.1 with a body", Some(V311), b"\xe0\x01\0", MalformedPacket),
        ("DISCONNECT with another's reason", Some(V5), b"\xe0\x01\x18", ProtocolError),
        ("DISCONNECT with a bad property", Some(V5), b"\xe0\x05\0\x03\x21\0\x01", MalformedPacket),
        ("AUTH with another's reason", Some(V5), b"\xf0\x01\x87", ProtocolError),
        ("AUTH data without method", Some(V5), b"\xf0\x06\x18\x04\x16\0\x01x", ProtocolError),
    ]);
}

#[test]
fn a_packet_that_is_too_large_is_refused_before_its_body_arrives() {
    let limits = Limits { packet_bytes: 1_024 };
    // 2 bytes of length: 1,021 and 3 are just allowed, 1,022 and 3 are not.
    let mut allowed = BytesMut::from(&b"\x30\xfd\x07"[..]);
    assert_eq!(codec::decode(&mut allowed, Some(V311), &limits), Ok(None));
    let capacity = allowed.capacity();
    assert!(capacity < 1_024, "{capacity} bytes were reserved");
    let mut refused = BytesMut::from(&b"\x30\xfe\x07"[..]);
    let error = codec::decode(&mut refused, Some(V311), &limits).unwrap_err();
    assert_eq!(error.reason, PacketTooLarge);
}

#[test]
fn what_the_first_byte_tells_is_refused_with_it() {
    for (version, first) in
        [(None, 0x30), (None, b'G'), (Some(V311), 0x10), (Some(V311), 0xf0), (Some(V5), 0x60)]
    {
        assert!(decode(&[first], version).is_err(), "{first:#x}");
    }
}
