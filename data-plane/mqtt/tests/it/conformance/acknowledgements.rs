//! The exchanges of QoS 1 and 2 in both directions, and flow control (§4.3, §4.6, 5.0 §4.9).

use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Ack, Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
    session::{End, Message},
};

use super::{VERSIONS, assert_closed};
use crate::wire::{Wire, connect, delivery, message, publish, subscribe, subscription};

fn ok(packet_id: u16) -> Ack {
    Ack::new(packet_id, ReasonCode::Success)
}

fn sent(answers: &[Packet]) -> &Publish {
    match answers {
        [Packet::Publish(publish)] => publish,
        other => panic!("{other:?}"),
    }
}

/// Delivers a message, and returns the packet id under which it was sent.
fn delivered(wire: &mut Wire, qos: Qos) -> u16 {
    let answers = wire.deliver(delivery(message("t", qos)));
    let publish = sent(&answers);
    assert_eq!((publish.qos, publish.dup), (qos, false));
    publish.packet_id.unwrap()
}

/// [MQTT-2.3.1-6] [MQTT-3.3.4-1] [MQTT-4.3.2-2] [MQTT5-2.2.1-5] [MQTT5-3.3.4-1] [MQTT5-4.3.2-4] [MQTT5-4.3.3-8]
#[test]
fn a_publish_is_answered_as_its_quality_asks_with_its_packet_id() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        assert_eq!(wire.send(&Packet::Publish(publish("t", Qos::AtMostOnce, 0))), []);
        for id in [1, 2, 255, 256, 65_535] {
            let answers = wire.send(&Packet::Publish(publish("t", Qos::AtLeastOnce, id)));
            assert_eq!(answers, [Packet::PubAck(ok(id))]);
            let answers = wire.send(&Packet::Publish(publish("t", Qos::ExactlyOnce, id)));
            assert_eq!(answers, [Packet::PubRec(ok(id))]);
            assert_eq!(wire.send(&Packet::PubRel(ok(id))), [Packet::PubComp(ok(id))]);
        }
        assert_eq!(wire.published.len(), 11);
    }
}

/// [MQTT-4.3.2-2] [MQTT5-4.3.2-5]
#[test]
fn after_puback_the_packet_id_means_a_new_message_even_with_dup() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        for dup in [false, true, true, false] {
            wire.send(&Packet::Publish(Publish { dup, ..publish("t", Qos::AtLeastOnce, 1) }));
        }
        assert_eq!(wire.published.len(), 4, "{version:?}");
    }
}

/// [MQTT-4.3.3-2] [MQTT5-4.3.3-10] [MQTT5-4.3.3-11] [MQTT5-4.3.3-12]
#[test]
fn until_pubrel_a_qos_2_publish_is_taken_once_and_afterwards_it_is_new() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        for round in 1..3 {
            for dup in [false, true, false, true] {
                let again = Publish { dup, ..publish("t", Qos::ExactlyOnce, 7) };
                assert_eq!(wire.send(&Packet::Publish(again)), [Packet::PubRec(ok(7))]);
            }
            assert_eq!(wire.published.len(), round, "{version:?}");
            assert_eq!(wire.send(&Packet::PubRel(ok(7))), [Packet::PubComp(ok(7))]);
        }
    }
}

/// [MQTT5-4.3.3-9] [MQTT5-4.4.0-2]
#[test]
fn a_refused_qos_2_publish_frees_its_packet_id() {
    let mut wire = Wire::connected(ProtocolVersion::V5);
    let refused = publish("$SYS/x", Qos::ExactlyOnce, 7);
    let answers = wire.send(&Packet::Publish(refused));
    assert_eq!(answers, [Packet::PubRec(Ack::new(7, ReasonCode::TopicNameInvalid))]);
    wire.send(&Packet::Publish(publish("t", Qos::ExactlyOnce, 7)));
    assert_eq!(wire.published.len(), 1);
}

/// [MQTT5-4.3.3-13]
#[test]
fn a_qos_2_exchange_goes_on_after_the_message_expired() {
    let mut wire = Wire::connected(ProtocolVersion::V5);
    let properties = PropertiesBuilder::new().number(PropertyId::MessageExpiryInterval, 1).build();
    let answers = wire.send(&Packet::Publish(Publish { properties, ..publish("t", Qos::ExactlyOnce, 7) }));
    assert_eq!(answers, [Packet::PubRec(ok(7))]);
    wire.wait(10_000);
    assert_eq!(wire.send(&Packet::PubRel(ok(7))), [Packet::PubComp(ok(7))]);
}

/// [MQTT-2.3.1-4] [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT5-2.2.1-4] [MQTT5-4.3.2-1] [MQTT5-4.3.2-2] [MQTT5-4.3.3-1] [MQTT5-4.3.3-2]
#[test]
fn deliveries_have_packet_ids_that_are_not_0_and_not_in_use() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        // These stay unacknowledged while the ids go round.
        let kept = [delivered(&mut wire, Qos::AtLeastOnce), delivered(&mut wire, Qos::ExactlyOnce)];
        let released = delivered(&mut wire, Qos::ExactlyOnce);
        wire.send(&Packet::PubRec(ok(released)));
        for _ in 0..65_600 {
            let id = delivered(&mut wire, Qos::AtLeastOnce);
            assert!(id != 0 && id != released && !kept.contains(&id), "{id} is in use");
            wire.send(&Packet::PubAck(ok(id)));
        }
    }
}

/// A 5.0 client that lets this many deliveries wait for its acknowledgement.
fn with_window(window: u32) -> Wire {
    let properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, window).build();
    Wire::with(Connect { properties, ..connect(ProtocolVersion::V5) })
}

/// Whether a place in the window of 1 is free: then the message is sent.
fn is_free(wire: &mut Wire) -> bool {
    !wire.deliver(delivery(message("next", Qos::AtLeastOnce))).is_empty()
}

/// [MQTT5-4.3.2-3] [MQTT5-4.3.3-3] [MQTT5-4.3.3-5] [MQTT5-3.3.4-9] [MQTT5-4.9.0-1] [MQTT5-4.9.0-2]
#[test]
fn a_delivery_counts_until_puback_or_pubcomp_or_a_refusal() {
    let mut wire = with_window(1);
    let id = delivered(&mut wire, Qos::AtLeastOnce);
    assert!(!is_free(&mut wire));
    assert_eq!(sent(&wire.send(&Packet::PubAck(ok(id)))).topic.bytes()[..], *b"next");

    let mut wire = with_window(1);
    let id = delivered(&mut wire, Qos::ExactlyOnce);
    assert!(!is_free(&mut wire));
    assert_eq!(wire.send(&Packet::PubRec(ok(id))), [Packet::PubRel(ok(id))]);
    assert!(!is_free(&mut wire));
    assert_eq!(sent(&wire.send(&Packet::PubComp(ok(id)))).topic.bytes()[..], *b"next");

    for (qos, refusal) in
        [(Qos::AtLeastOnce, Packet::PubAck as fn(Ack) -> Packet), (Qos::ExactlyOnce, Packet::PubRec)]
    {
        let mut wire = with_window(1);
        let id = delivered(&mut wire, qos);
        assert!(!is_free(&mut wire));
        let answers = wire.send(&refusal(Ack::new(id, ReasonCode::QuotaExceeded)));
        assert_eq!(sent(&answers).topic.bytes()[..], *b"next", "a refusal is an acknowledgement");
    }
}

/// [MQTT5-3.3.4-10] [MQTT5-4.9.0-3]
#[test]
fn with_a_full_window_everything_but_publish_goes_on() {
    let mut wire = with_window(1);
    let id = delivered(&mut wire, Qos::ExactlyOnce);
    assert!(!is_free(&mut wire));
    assert_eq!(wire.send(&Packet::PingReq), [Packet::PingResp]);
    assert_eq!(wire.send(&Packet::Publish(publish("t", Qos::AtLeastOnce, 9))), [Packet::PubAck(ok(9))]);
    assert_eq!(wire.send(&Packet::Publish(publish("t", Qos::ExactlyOnce, 9))), [Packet::PubRec(ok(9))]);
    assert_eq!(wire.send(&Packet::PubRel(ok(9))), [Packet::PubComp(ok(9))]);
    assert!(matches!(
        wire.send(&subscribe(3, vec![subscription("a", Qos::AtMostOnce)]))[..],
        [Packet::SubAck(_)]
    ));
    assert_eq!(wire.send(&Packet::PubRec(ok(id))), [Packet::PubRel(ok(id))]);
    // QoS 0 has no window.
    assert_eq!(wire.deliver(delivery(message("t", Qos::AtMostOnce))).len(), 1);
}

/// [MQTT-4.3.3-1] [MQTT5-4.3.3-4] [MQTT5-4.3.3-6] [MQTT5-4.3.3-7]
#[test]
fn pubrec_is_answered_by_pubrel_never_by_publish_even_after_the_expiry() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        let expires_at_ms = Some(wire.now.epoch_ms + 1000);
        let expiring = Message { expires_at_ms, ..message("t", Qos::ExactlyOnce) };
        let answers = wire.deliver(delivery(expiring));
        let id = sent(&answers).packet_id.unwrap();
        wire.wait(5000);
        for _ in 0..3 {
            assert_eq!(wire.send(&Packet::PubRec(ok(id))), [Packet::PubRel(ok(id))]);
            assert_eq!(wire.wait(60_000), []);
        }
        assert_eq!(wire.send(&Packet::PubComp(ok(id))), []);
    }
}

/// [MQTT-4.6.0-4] [MQTT5-4.6.0-4]
#[test]
fn pubrels_leave_in_the_order_of_the_pubrecs() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        let ids: Vec<_> = (0..4).map(|_| delivered(&mut wire, Qos::ExactlyOnce)).collect();
        let order = [ids[2], ids[0], ids[3], ids[1]];
        let mut bytes = bytes::BytesMut::new();
        for id in order {
            bytes.extend(crate::encoded(&Packet::PubRec(ok(id)), version));
        }
        assert_eq!(wire.bytes(&bytes), order.map(|id| Packet::PubRel(ok(id))));
    }
}

/// [MQTT-4.6.0-6] [MQTT5-4.6.0-5]
#[test]
fn messages_of_one_quality_leave_in_the_order_in_which_they_came_through_a_full_window() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut wire = with_window(3);
        let mut sent: Vec<(String, u16)> = Vec::new();
        let mut note = |answers: Vec<Packet>| {
            for answer in answers {
                if let Packet::Publish(publish) = answer {
                    sent.push((publish.topic.to_string(), publish.packet_id.unwrap()));
                }
            }
            sent.clone()
        };
        for number in 0..20 {
            note(wire.deliver(delivery(message(&format!("{number:02}"), qos))));
        }
        let mut acknowledged = 0;
        loop {
            // The newest of those on their way is acknowledged first.
            let on_their_way = note(Vec::new());
            if acknowledged == on_their_way.len() {
                break;
            }
            for (_, id) in on_their_way[acknowledged..].iter().rev() {
                if qos == Qos::ExactlyOnce {
                    wire.send(&Packet::PubRec(ok(*id)));
                    note(wire.send(&Packet::PubComp(ok(*id))));
                } else {
                    note(wire.send(&Packet::PubAck(ok(*id))));
                }
            }
            acknowledged = on_their_way.len();
        }
        let topics: Vec<_> = note(Vec::new()).into_iter().map(|(topic, _)| topic).collect();
        assert_eq!(topics, (0..20).map(|number| format!("{number:02}")).collect::<Vec<_>>(), "{qos:?}");
    }
}

/// [MQTT5-3.3.4-7]
#[test]
fn more_unacknowledged_publishes_than_announced_close() {
    let mut wire = Wire::with_limits(tbmq_mqtt::session::Limits { receive_maximum: 3, ..Default::default() });
    wire.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5))));
    for id in 1..4 {
        assert_eq!(wire.send(&Packet::Publish(publish("t", Qos::ExactlyOnce, id))), [Packet::PubRec(ok(id))]);
    }
    let answers = wire.send(&Packet::Publish(publish("t", Qos::ExactlyOnce, 4)));
    assert_closed(&wire, &answers, ReasonCode::ReceiveMaximumExceeded, "a fourth");
    assert_eq!(wire.published.len(), 3);
}

/// [MQTT-3.3.5-2] [MQTT5-4.13.2-1]
#[test]
fn a_publish_that_is_not_allowed_is_told_to_version_5_and_closes_an_older_connection() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        wire.regrant("mine/");
        let answers = wire.send(&Packet::Publish(publish("t", Qos::AtLeastOnce, 7)));
        if version.is_v5() {
            assert_eq!(answers, [Packet::PubAck(Ack::new(7, ReasonCode::NotAuthorized))]);
            assert_eq!(wire.end, None);
        } else {
            assert_eq!((answers, wire.end), (Vec::new(), Some(End::NotAuthorized)));
        }
        assert_eq!(wire.published, []);
    }
}

/// Too few bytes for some reason strings.
const SMALL: usize = 32;

/// What is written in a conversation with everything that may have a reason string.
fn conversation(wants_none: bool, max: usize) -> Vec<Vec<u8>> {
    let mut properties = PropertiesBuilder::new().number(PropertyId::MaximumPacketSize, max as u32);
    if wants_none {
        properties = properties.number(PropertyId::RequestProblemInformation, 0);
    }
    let mut wire = Wire::with(Connect { properties: properties.build(), ..connect(ProtocolVersion::V5) });
    let id = delivered(&mut wire, Qos::ExactlyOnce);
    wire.send(&Packet::PubRec(ok(id)));
    wire.send(&Packet::PubRec(ok(999)));
    wire.send(&Packet::PubRel(ok(999)));
    wire.send(&Packet::Publish(publish("a/+", Qos::AtLeastOnce, 1)));
    wire.send(&Packet::Publish(publish("a/+", Qos::ExactlyOnce, 2)));
    wire.send(&Packet::Publish(publish("t", Qos::ExactlyOnce, 3)));
    wire.send(&Packet::PubRel(ok(3)));
    wire.send(&subscribe(
        4,
        vec![subscription("a/#/b", Qos::AtMostOnce), subscription("c", Qos::AtMostOnce)],
    ));
    let filters = vec!["c".into(), "not there".into()];
    let unsubscribe = tbmq_mqtt::packet::Unsubscribe {
        packet_id: 5,
        filters,
        properties: PropertiesBuilder::new().build(),
    };
    wire.send(&Packet::Unsubscribe(unsubscribe));
    wire.bytes(b"\0\0");
    assert_eq!(wire.end, Some(End::Protocol));
    wire.written.iter().map(|bytes| bytes.to_vec()).collect()
}

/// Reason strings are left out where the packet would be too long with them. There are no user properties.
///
/// [MQTT5-3.1.2-29] [MQTT5-3.2.2-19] [MQTT5-3.2.2-20] [MQTT5-3.4.2-2] [MQTT5-3.4.2-3] [MQTT5-3.5.2-2] [MQTT5-3.5.2-3]
/// [MQTT5-3.6.2-2] [MQTT5-3.6.2-3] [MQTT5-3.7.2-2] [MQTT5-3.7.2-3] [MQTT5-3.9.2-1] [MQTT5-3.9.2-2]
/// [MQTT5-3.11.2-1] [MQTT5-3.11.2-2] [MQTT5-3.14.2-2] [MQTT5-3.14.2-3] [MQTT5-3.14.2-4] [MQTT5-3.15.2-2] [MQTT5-3.15.2-3]
#[test]
fn no_reason_string_or_user_property_goes_to_a_client_that_wants_none_or_takes_only_small_packets() {
    let whole = conversation(false, 1000);
    let too_long = whole.iter().filter(|bytes| bytes.len() > SMALL).count();
    assert!(too_long >= 3, "{whole:?}");
    for (wants_none, max) in [(false, 1000), (false, SMALL), (true, 1000), (true, SMALL)] {
        let written = conversation(wants_none, max);
        // CONNACK, PUBLISH, two PUBRELs, PUBCOMP, PUBACK, PUBREC, PUBREC, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT.
        assert_eq!(written.len(), 12);
        for (bytes, whole) in written.iter().zip(&whole) {
            assert!(bytes.len() <= max, "{bytes:?}");
            let packet = crate::decode(bytes, Some(ProtocolVersion::V5)).unwrap().unwrap();
            let properties = match &packet {
                Packet::ConnAck(connack) => &connack.properties,
                Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
                    &ack.properties
                }
                Packet::SubAck(suback) | Packet::UnsubAck(suback) => &suback.properties,
                Packet::Disconnect(disconnect) => &disconnect.properties,
                _ => continue,
            };
            assert_eq!(properties.user_properties().count(), 0, "{packet:?}");
            if let Packet::Disconnect(_) = &packet {
                assert_eq!(properties.number(PropertyId::SessionExpiryInterval), None);
            }
            // DISCONNECT may say why to whoever takes its length.
            let may_say = whole.len() <= max && (!wants_none || matches!(packet, Packet::Disconnect(_)));
            if !may_say {
                assert_eq!(properties.text(PropertyId::ReasonString), None, "{packet:?}");
            } else if !matches!(packet, Packet::ConnAck(_)) {
                assert_eq!(bytes, whole, "nothing is left out that fits");
            }
        }
    }
}
