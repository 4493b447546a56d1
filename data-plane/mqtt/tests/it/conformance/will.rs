//! Wills (§3.1.2.5 and on, §3.14.4).

use tbmq_mqtt::{
    codec::property::PropertiesBuilder,
    packet::{Connect, Disconnect, Packet, ProtocolVersion, ReasonCode},
    session::End,
};

use super::VERSIONS;
use crate::wire::{Wire, connect, will};

fn with_will(version: ProtocolVersion) -> Wire {
    Wire::with(Connect { will: Some(will("w")), ..connect(version) })
}

/// [MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT5-3.1.2-7] [MQTT5-3.1.2-8] [MQTT5-3.1.2-10]
#[test]
fn a_will_is_published_once_when_the_connection_ends_without_disconnect() {
    for version in VERSIONS {
        for end in [End::Network, End::KeepAlive, End::TakenOver, End::Protocol, End::ShuttingDown] {
            let mut wire = with_will(version);
            assert_eq!(wire.published, []);
            wire.end(end);
            wire.end(End::Network);
            let topics: Vec<_> = wire.published.iter().map(|message| &*message.topic).collect();
            assert_eq!(topics, ["w"], "{version:?} {end:?}");
        }
        let mut wire = with_will(version);
        wire.bytes(b"\0\0");
        assert_eq!(wire.published.len(), 1, "a malformed packet is no DISCONNECT");
    }
}

/// [MQTT-3.1.2-10] [MQTT-3.14.4-3] [MQTT5-3.1.2-10] [MQTT5-3.14.4-3]
#[test]
fn disconnect_discards_the_will() {
    for version in VERSIONS {
        let mut wire = with_will(version);
        let answers = wire.send(&Packet::Disconnect(Disconnect::new(ReasonCode::Success)));
        assert_eq!((answers.len(), wire.end), (0, Some(End::Client)));
        wire.end(End::Network);
        assert_eq!(wire.published, [], "{version:?}");
    }
}

/// [MQTT-3.1.2-12]
#[test]
fn without_a_will_nothing_is_published_at_the_end() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        wire.end(End::Network);
        assert_eq!(wire.published, []);
    }
}

/// [MQTT-3.1.2-9] [MQTT-3.1.2-16] [MQTT-3.1.2-17] [MQTT5-3.1.2-14] [MQTT5-3.1.2-15]
#[test]
fn a_will_is_published_with_its_quality_and_retain_flag() {
    for version in VERSIONS {
        for qos in (0..3).filter_map(tbmq_mqtt::packet::Qos::from_bits) {
            for retain in [false, true] {
                let mut will = will("w");
                (will.qos, will.retain) = (qos, retain);
                let mut wire = Wire::with(Connect { will: Some(will), ..connect(version) });
                wire.end(End::Network);
                let message = &wire.published[0];
                assert_eq!((message.qos, message.retain, &message.payload[..]), (qos, retain, &b"gone"[..]));
            }
        }
    }
}

/// [MQTT5-3.1.3-10]
#[test]
fn a_wills_user_properties_keep_their_order() {
    let mut will = will("w");
    will.properties = PropertiesBuilder::new().user("b", "1").user("a", "2").user("b", "0").build();
    let mut wire = Wire::with(Connect { will: Some(will), ..connect(ProtocolVersion::V5) });
    wire.end(End::Network);
    let pairs = wire.published[0].properties.user_properties();
    let pairs: Vec<_> = pairs.map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(pairs, ["b=1", "a=2", "b=0"]);
}
