//! SUBSCRIBE and UNSUBSCRIBE (§3.8 to §3.11).

use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Ack, Packet, ProtocolVersion, Qos, ReasonCode, SubAck, Unsubscribe},
    session::{Effect, Limits},
    topic::Rules,
};

use super::{VERSIONS, assert_closed};
use crate::wire::{Wire, connect, delivery, message, subscribe, subscription};

fn unsubscribe(packet_id: u16, filters: &[&str]) -> Packet {
    let filters = filters.iter().map(|filter| (*filter).into()).collect();
    Packet::Unsubscribe(Unsubscribe { packet_id, filters, properties: Properties::NONE })
}

fn suback(answers: Vec<Packet>) -> SubAck {
    match answers.into_iter().next() {
        Some(Packet::SubAck(ack) | Packet::UnsubAck(ack)) => ack,
        other => panic!("{other:?}"),
    }
}

/// [MQTT-2.3.1-7] [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-5] [MQTT-3.9.3-1] [MQTT-3.9.3-2]
/// [MQTT5-2.2.1-6] [MQTT5-3.8.4-1] [MQTT5-3.8.4-2] [MQTT5-3.8.4-6] [MQTT5-3.8.4-7] [MQTT5-3.9.3-1]
#[test]
fn every_subscribe_is_answered_with_its_packet_id_and_a_code_for_each_filter_in_their_order() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        for packet_id in [1, 256, 65_535] {
            let wanted = vec![
                subscription("a", Qos::ExactlyOnce),
                subscription("a/#/b", Qos::AtMostOnce),
                subscription("+/b", Qos::AtMostOnce),
                subscription("", Qos::AtMostOnce),
                subscription("c/#", Qos::AtLeastOnce),
            ];
            let suback = suback(wire.send(&subscribe(packet_id, wanted)));
            assert_eq!(suback.packet_id, packet_id);
            let invalid =
                if version.is_v5() { ReasonCode::TopicFilterInvalid } else { ReasonCode::UnspecifiedError };
            let expected =
                [ReasonCode::GrantedQos2, invalid, ReasonCode::Success, invalid, ReasonCode::GrantedQos1];
            assert_eq!(suback.reasons, expected);
        }
    }
}

/// [MQTT-2.3.1-7] [MQTT-3.10.4-4] [MQTT-3.10.4-5]
/// [MQTT5-2.2.1-6] [MQTT5-3.10.4-4] [MQTT5-3.10.4-5] [MQTT5-3.11.3-1]
#[test]
fn every_unsubscribe_is_answered_with_its_packet_id_even_if_nothing_was_removed() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        wire.send(&subscribe(1, vec![subscription("b", Qos::AtMostOnce)]));
        for (packet_id, second) in [(7, ReasonCode::Success), (8, ReasonCode::NoSubscriptionExisted)] {
            let unsuback = suback(wire.send(&unsubscribe(packet_id, &["a", "b"])));
            assert_eq!(unsuback.packet_id, packet_id);
            let expected = [ReasonCode::NoSubscriptionExisted, second];
            assert_eq!(unsuback.reasons, if version.is_v5() { &expected[..] } else { &[] });
        }
    }
}

/// [MQTT-3.8.3-3] [MQTT-3.10.3-2] [MQTT5-3.8.3-2] [MQTT5-3.10.3-2]
#[test]
fn a_request_without_a_filter_closes() {
    for version in VERSIONS {
        let bodies: [&[u8]; 2] = if version.is_v5() {
            [b"\x82\x03\0\x01\0", b"\xa2\x03\0\x01\0"]
        } else {
            [b"\x82\x02\0\x01", b"\xa2\x02\0\x01"]
        };
        for bytes in bodies {
            let mut wire = Wire::connected(version);
            let answers = wire.bytes(bytes);
            assert_closed(&wire, &answers, ReasonCode::ProtocolError, "no filter");
        }
    }
}

/// [MQTT-3.8.3-4] [MQTT5-3.8.3-5]
#[test]
fn all_256_values_of_the_options_are_taken_or_refused_as_the_standard_says() {
    for options in 0..=255_u8 {
        let qos = options & 0b11;
        let mut old = Wire::connected(ProtocolVersion::V311);
        old.bytes(&[0x82, 6, 0, 1, 0, 1, b'a', options]);
        assert_eq!(old.end.is_none(), options < 3, "{options:#b}");
        let mut new = Wire::connected(ProtocolVersion::V5);
        let answers = new.bytes(&[0x82, 7, 0, 1, 0, 0, 1, b'a', options]);
        if options & 0b1100_0000 != 0 {
            assert_closed(&new, &answers, ReasonCode::MalformedPacket, "reserved bits");
        } else if qos == 3 || options & 0b11_0000 == 0b11_0000 {
            assert_closed(&new, &answers, ReasonCode::ProtocolError, "QoS or retain handling 3");
        } else {
            assert_eq!(suback(answers).reasons[0].byte(), qos, "{options:#b}");
        }
    }
}

/// [MQTT-3.8.4-3] [MQTT5-3.8.4-3]
#[test]
fn the_same_filter_again_replaces_the_subscription() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        wire.send(&subscribe(1, vec![subscription("a/+", Qos::AtLeastOnce)]));
        let answers = wire.send(&subscribe(2, vec![subscription("a/+", Qos::AtMostOnce)]));
        assert_eq!(suback(answers).reasons, [ReasonCode::Success]);
        let filters: Vec<_> =
            wire.session.filters().map(|(filter, options)| (filter.to_string(), options.qos)).collect();
        assert_eq!(filters, [("a/+".to_owned(), Qos::AtMostOnce)]);
        assert!(!wire.filters.iter().any(|effect| matches!(effect, Effect::Unsubscribe { .. })), "a gap");
    }
}

/// [MQTT-3.8.4-4] [MQTT-3.10.4-6] [MQTT5-3.8.4-5] [MQTT5-3.10.4-6]
#[test]
fn several_filters_in_one_request_do_what_several_requests_do() {
    let wanted = [
        subscription("a", Qos::AtMostOnce),
        subscription("a", Qos::ExactlyOnce),
        subscription("a/#/b", Qos::AtMostOnce),
        subscription("b", Qos::AtLeastOnce),
    ];
    let unwanted = ["b", "c", "b", "a"];
    for version in VERSIONS {
        let (mut together, mut apart) = (Wire::connected(version), Wire::connected(version));
        let at_once = suback(together.send(&subscribe(1, wanted.to_vec()))).reasons;
        let one_by_one: Vec<_> = wanted
            .iter()
            .flat_map(|one| suback(apart.send(&subscribe(1, vec![one.clone()]))).reasons)
            .collect();
        assert_eq!(at_once, one_by_one);
        assert_eq!(together.filters, apart.filters);
        let at_once = suback(together.send(&unsubscribe(2, &unwanted))).reasons;
        let one_by_one: Vec<_> =
            unwanted.iter().flat_map(|one| suback(apart.send(&unsubscribe(2, &[one]))).reasons).collect();
        assert_eq!(at_once, one_by_one);
        assert_eq!((&together.filters, together.has()), (&apart.filters, vec![]));
    }
}

/// [MQTT-3.10.4-1] [MQTT-3.10.4-2] [MQTT5-3.10.4-1] [MQTT5-3.10.4-2]
#[test]
fn only_a_filter_that_is_equal_byte_by_byte_is_removed() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        wire.send(&subscribe(
            1,
            vec![subscription("a/+", Qos::AtMostOnce), subscription("a/b", Qos::AtMostOnce)],
        ));
        for other in ["a/#", "A/+", "a/c", "#", "+/b", "a/+/", "a"] {
            wire.send(&unsubscribe(2, &[other]));
        }
        assert_eq!(wire.has(), ["a/+", "a/b"]);
        wire.send(&unsubscribe(3, &["a/+"]));
        assert_eq!(wire.has(), ["a/b"]);
        assert_eq!(wire.filters.last(), Some(&Effect::Unsubscribe { filter: "a/+".into() }));
    }
}

/// [MQTT-3.10.4-3] [MQTT5-3.10.4-3]
#[test]
fn deliveries_that_have_begun_are_completed_after_an_unsubscription() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        wire.send(&subscribe(1, vec![subscription("t", Qos::ExactlyOnce)]));
        let answers = wire.deliver(delivery(message("t", Qos::ExactlyOnce)));
        let [Packet::Publish(publish)] = &answers[..] else { panic!("{answers:?}") };
        let ack = Ack::new(publish.packet_id.unwrap(), ReasonCode::Success);
        wire.send(&unsubscribe(2, &["t"]));
        assert_eq!(wire.send(&Packet::PubRec(ack.clone())), [Packet::PubRel(ack.clone())]);
        assert_eq!(wire.send(&Packet::PubComp(ack)), []);
        assert_eq!(wire.end, None);
    }
}

/// The only filter with a wildcard that can be switched off is `#`.
///
/// [MQTT-3.8.3-2]
#[test]
fn wildcards_are_taken_and_the_one_that_is_switched_off_is_refused() {
    let rules = Rules { root_wildcard: false, ..Rules::default() };
    for version in VERSIONS {
        let mut wire = Wire::with_limits(Limits { rules, ..Limits::default() });
        wire.send(&Packet::Connect(Box::new(connect(version))));
        let wanted = ["#", "+", "a/#", "+/b/#"].map(|filter| subscription(filter, Qos::AtMostOnce));
        let reasons = suback(wire.send(&subscribe(1, wanted.to_vec()))).reasons;
        let refused: Vec<_> = reasons.iter().map(|reason| reason.is_error()).collect();
        assert_eq!(refused, [true, false, false, false]);
    }
}

/// [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.3-1] [MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT5-4.7.3-1]
#[test]
fn a_filter_with_a_misplaced_wildcard_or_without_a_character_is_refused() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        for filter in ["", "a#", "a/#/", "#/a", "##", "a/b#", "+a", "a+", "a/+b/c", "++"] {
            let answers = wire.send(&subscribe(1, vec![subscription(filter, Qos::AtMostOnce)]));
            assert!(suback(answers).reasons[0].is_error(), "{filter}");
        }
        assert_eq!((wire.has(), wire.end), (vec![], None));
        for filter in ["#", "/#", "a/#", "+", "/+", "+/+/#", "a/+/b", "/"] {
            let answers = wire.send(&subscribe(1, vec![subscription(filter, Qos::AtMostOnce)]));
            assert_eq!(suback(answers).reasons, [ReasonCode::Success], "{filter}");
        }
    }
}
