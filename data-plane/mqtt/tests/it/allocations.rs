//! What is done for each message takes no memory of its own.

use allocation_counter::measure;
use bytes::{Bytes, BytesMut};
use tbmq_mqtt::{
    codec::{
        self, Limits,
        property::{PropertiesBuilder, PropertyId},
    },
    packet::{Packet, Publish, Qos},
    tree::Tree,
};

use crate::VERSIONS;

fn publish(qos: Qos) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: "area/7/device/42/temperature".into(),
        packet_id: (qos != Qos::AtMostOnce).then_some(7),
        properties: PropertiesBuilder::new()
            .number(PropertyId::MessageExpiryInterval, 60)
            .text(PropertyId::ContentType, "application/json")
            .build(),
        payload: Bytes::from(vec![b'x'; 256]),
    })
}

#[test]
fn a_publish_is_read_and_written_without_an_allocation() {
    for version in VERSIONS {
        for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let packet = publish(qos);
            let mut bytes = BytesMut::with_capacity(1 << 20);
            let written = measure(|| (0..1000).for_each(|_| codec::encode(&packet, version, &mut bytes)));
            assert_eq!(written.count_total, 0, "{version:?} {qos:?}");
            let read = measure(|| {
                for _ in 0..1000 {
                    let read = codec::decode(&mut bytes, Some(version), &Limits::default()).unwrap();
                    assert!(matches!(read, Some(Packet::Publish(_))));
                }
            });
            // The buffer begins to be shared.
            assert!(read.count_total <= 1, "{version:?} {qos:?}: {read:?}");
            assert!(bytes.is_empty());
        }
    }
}

#[test]
fn a_topic_is_matched_without_an_allocation() {
    let mut tree = Tree::new();
    for number in 0..10_000_u32 {
        tree.insert(&format!("area/{}/device/{number}/temperature", number % 7), number, ());
        tree.insert(&format!("area/+/device/{number}/#"), number, ());
    }
    let mut found = 0;
    let matched = measure(|| tree.matching("area/0/device/42/temperature", |_, ()| found += 1));
    assert_eq!((matched.count_total, found), (0, 2));
}
