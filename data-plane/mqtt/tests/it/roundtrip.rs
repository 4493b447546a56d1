//! What holds for all packets and for all bytes.

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*, sample::Index};
use tbmq_mqtt::{
    codec::{
        self, EncodedPublish, Limits,
        property::{Properties, PropertiesBuilder, PropertyId},
    },
    packet::{Packet, ProtocolVersion, Publish, Qos, Text},
    session::Message,
};

use crate::{arbitrary, decode, encoded, known};

/// Feeds chunks to a decoder as a connection does.
fn read(chunks: &[&[u8]]) -> Vec<Packet> {
    let (mut buffer, mut version, mut packets) = (BytesMut::new(), None, Vec::new());
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        while let Some(packet) = codec::decode(&mut buffer, version, &Limits::default()).unwrap() {
            if let Packet::Connect(connect) = &packet {
                version = Some(connect.version);
            }
            packets.push(packet);
        }
    }
    assert!(buffer.is_empty(), "bytes are left");
    packets
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn what_was_encoded_is_decoded((version, packet) in arbitrary::packet()) {
        let bytes = encoded(&packet, version);
        prop_assert_eq!(decode(&bytes, known(&packet, version)), Ok(Some(packet)));
    }

    #[test]
    fn properties_are_read_as_they_were_built((_, publish) in arbitrary::publish()) {
        let copy = publish.properties.iter().fold(PropertiesBuilder::new(), |all, (id, value)| {
            all.copy(id, &value)
        });
        prop_assert_eq!(copy.build(), publish.properties);
    }

    #[test]
    fn it_does_not_matter_where_a_stream_is_split(
        (version, packets) in arbitrary::stream(),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let mut bytes = BytesMut::new();
        for packet in &packets {
            codec::encode(packet, version, &mut bytes);
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(read(&chunks), packets);
    }

    #[test]
    fn a_part_of_a_packet_is_no_packet((version, packet) in arbitrary::packet(), cut in any::<Index>()) {
        let bytes = encoded(&packet, version);
        let part = &bytes[..cut.index(bytes.len())];
        prop_assert_eq!(decode(part, known(&packet, version)), Ok(None));
    }

    #[test]
    fn a_publish_encoded_once_is_written_as_if_encoded_again(
        (version, publish) in arbitrary::publish(),
        id in 1_u16..,
        dup in any::<bool>(),
    ) {
        let has_id = publish.qos != Qos::AtMostOnce;
        let once = EncodedPublish::new(&publish, version);
        let mut written = BytesMut::from(&b"before"[..]);
        once.write(id, dup, &mut written);
        let again = Publish { dup: dup && has_id, packet_id: has_id.then_some(id), ..publish };
        prop_assert_eq!(once.len(), codec::publish_length(&again, version));
        prop_assert_eq!(&written[6..], &encoded(&Packet::Publish(again), version)[..]);
    }

    #[test]
    fn bytes_of_any_kind_do_not_panic(bytes in vec(any::<u8>(), 0..200), version in 0..4_usize) {
        let version = crate::VERSIONS.get(version).copied();
        if let Err(error) = decode(&bytes, version) {
            prop_assert!(error.reason.is_error());
        }
    }

    #[test]
    fn a_damaged_packet_does_not_panic_and_what_is_read_of_it_is_encodable(
        (version, packet) in arbitrary::packet(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&packet, version);
        let length = bytes.len();
        for (at, byte) in &damage {
            bytes[at.index(length)] = *byte;
        }
        if let Ok(Some(read)) = decode(&bytes, known(&packet, version)) {
            let version = if let Packet::Connect(connect) = &read { connect.version } else { version };
            prop_assert_eq!(decode(&encoded(&read, version), known(&read, version)), Ok(Some(read)));
        }
    }
}

#[test]
fn a_stream_read_byte_by_byte_gives_the_same_packets() {
    let bytes: &[u8] = b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01c\x32\x07\0\x01a\0\x01\0x\xc0\0\xe0\0";
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(&single), read(&[bytes]));
    assert_eq!(read(&single).len(), 4);
}

/// [MQTT5-1.5.5-1]
#[test]
fn a_length_at_each_width_is_read_back() {
    for length in [0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
        let publish = Publish {
            dup: false,
            qos: Qos::AtMostOnce,
            retain: false,
            topic: "t".into(),
            packet_id: None,
            properties: Properties::NONE,
            payload: vec![0; length].into(),
        };
        let packet = Packet::Publish(publish);
        let bytes = encoded(&packet, ProtocolVersion::V311);
        assert_eq!(decode(&bytes, Some(ProtocolVersion::V311)), Ok(Some(packet)));
    }
}

#[test]
fn a_detached_message_is_the_same_in_memory_of_its_own() {
    let read = Bytes::from_static(b"a/bpayload");
    let message = Message {
        publisher: "publisher".into(),
        packet_id: 7,
        qos: Qos::ExactlyOnce,
        retain: true,
        topic: Text::from_bytes(read.slice(..3)).unwrap(),
        payload: read.slice(3..),
        properties: PropertiesBuilder::new().text(PropertyId::ContentType, "text/plain").build(),
        expires_at_ms: Some(1),
    };
    let detached = message.detached();
    assert_eq!(detached, message);
    assert!(!read.as_ptr_range().contains(&detached.topic.bytes().as_ptr()));
    assert!(!read.as_ptr_range().contains(&detached.payload.as_ptr()));
    let empty = Message { topic: "a".into(), payload: Bytes::new(), properties: Properties::NONE, ..message };
    assert_eq!(empty.detached(), empty);
}
