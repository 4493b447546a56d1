//! PUBLISH: what is taken from a client, and what is delivered (§3.3, §4.6, §4.7).

use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId, Value},
    packet::{Ack, Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, Unsubscribe},
    session::{End, Limits, Message},
    topic,
};

use super::{VERSIONS, assert_closed};
use crate::wire::{Wire, connect, delivery, message, publish, subscribe, subscription};

fn sent(answers: &[Packet]) -> &Publish {
    match answers {
        [Packet::Publish(publish)] => publish,
        other => panic!("{other:?}"),
    }
}

/// A PUBLISH that came in, as it goes out to a 5.0 client.
fn forwarded(publish: Publish) -> Publish {
    let mut from = Wire::connected(ProtocolVersion::V5);
    from.send(&Packet::Publish(publish));
    let message: Message = from.published.pop().unwrap();
    sent(&Wire::connected(ProtocolVersion::V5).deliver(delivery(message))).clone()
}

/// [MQTT-3.3.1-2] [MQTT5-3.3.1-2]
#[test]
fn dup_at_qos_0_is_malformed_and_never_written() {
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        let answers = wire.bytes(&[0x38, 4, 0, 1, b'a', 0]);
        assert_closed(&wire, &answers, ReasonCode::MalformedPacket, "DUP at QoS 0");
        let mut odd = publish("a", Qos::AtMostOnce, 0);
        odd.dup = true;
        assert_eq!(crate::encoded(&Packet::Publish(odd), version)[0], 0x30);
    }
}

/// [MQTT-3.3.1-3] [MQTT-4.3.1-1] [MQTT5-3.3.1-3] [MQTT5-4.3.1-1]
#[test]
fn dup_of_the_publisher_goes_to_nobody() {
    for version in VERSIONS {
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let mut from = Wire::connected(version);
            from.send(&Packet::Publish(Publish { dup: true, ..publish("a", qos, 1) }));
            for to in [Qos::AtMostOnce, qos] {
                let mut delivery = delivery(from.published[0].clone());
                delivery.qos = to;
                let answers = Wire::connected(version).deliver(delivery);
                let sent = sent(&answers);
                assert_eq!((sent.dup, sent.qos), (false, to));
            }
        }
    }
}

/// [MQTT-3.3.2-2] [MQTT-4.7.1-1] [MQTT-4.7.3-1] [MQTT5-3.3.2-2] [MQTT5-4.7.0-1]
#[test]
fn a_topic_name_with_a_wildcard_or_none_at_all_is_published_to_nobody() {
    for name in ["a/+", "+", "#", "a/#", "a+b", "a#"] {
        let mut old = Wire::connected(ProtocolVersion::V311);
        old.send(&Packet::Publish(publish(name, Qos::AtMostOnce, 0)));
        assert_eq!((old.published.len(), old.end.is_some()), (0, true), "{name}");
        let mut new = Wire::connected(ProtocolVersion::V5);
        let refused = Ack::new(1, ReasonCode::TopicNameInvalid);
        let answers = new.send(&Packet::Publish(publish(name, Qos::AtLeastOnce, 1)));
        assert_eq!((answers, new.published.len()), (vec![Packet::PubAck(refused)], 0), "{name}");
    }
    for version in VERSIONS {
        let mut wire = Wire::connected(version);
        let answers = wire.send(&Packet::Publish(publish("", Qos::AtMostOnce, 0)));
        assert_closed(&wire, &answers, ReasonCode::ProtocolError, "no topic");
        assert_eq!(wire.published, []);
    }
}

/// [MQTT-4.7.3-4] [MQTT5-4.7.3-4]
#[test]
fn names_and_filters_are_compared_as_they_are() {
    // é in one code point and in two, a ligature and its letters, cases, and separators at the ends.
    let pairs = [
        ("\u{e9}", "e\u{301}"),
        ("\u{fb01}", "fi"),
        ("a", "A"),
        ("a", "/a"),
        ("a", "a/"),
        ("a/b", "a//b"),
        ("a", "a "),
    ];
    for (one, other) in pairs {
        assert!(topic::matches(one, one) && topic::matches(other, other));
        assert!(!topic::matches(one, other) && !topic::matches(other, one), "{one:?} {other:?}");
        let mut wire = Wire::connected(ProtocolVersion::V5);
        wire.send(&Packet::Publish(publish(one, Qos::AtMostOnce, 0)));
        assert_eq!(&*wire.published[0].topic, one);
    }
}

/// [MQTT5-3.3.2-4] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-17] [MQTT5-3.3.2-18] [MQTT5-3.3.2-20]
#[test]
fn what_a_publisher_says_of_its_message_is_forwarded_as_it_is() {
    let properties = PropertiesBuilder::new()
        .user("b", "1")
        .number(PropertyId::PayloadFormatIndicator, 1)
        .user("a", "2")
        .text(PropertyId::ContentType, "text/plain; charset=\u{fc}")
        .text(PropertyId::ResponseTopic, "answers/\u{fc}")
        .user("b", "")
        .binary(PropertyId::CorrelationData, &[0, 0xff, 7])
        .user("b", "1")
        .build();
    let original = Publish { properties: properties.clone(), ..publish("t", Qos::AtMostOnce, 0) };
    assert_eq!(forwarded(original).properties, properties);
    // Beside what the server replaces, too.
    let mut with_alias = PropertiesBuilder::new().number(PropertyId::TopicAlias, 1);
    with_alias = with_alias.number(PropertyId::MessageExpiryInterval, 60);
    with_alias = properties.iter().fold(with_alias, |builder, (id, value)| builder.copy(id, &value));
    let original = Publish { properties: with_alias.build(), ..publish("t", Qos::AtMostOnce, 0) };
    let replaced = [PropertyId::TopicAlias, PropertyId::MessageExpiryInterval];
    let found = forwarded(original).properties;
    let found: Vec<(PropertyId, Value)> = found.iter().filter(|(id, _)| !replaced.contains(id)).collect();
    assert_eq!(found, properties.iter().collect::<Vec<_>>());
}

/// [MQTT5-3.3.2-14] [MQTT5-4.7.3-1]
#[test]
fn a_response_topic_is_a_topic_name() {
    for (name, is_taken) in [("a/b", true), ("a/+", false), ("#", false), ("", false)] {
        let mut wire = Wire::connected(ProtocolVersion::V5);
        let properties = PropertiesBuilder::new().text(PropertyId::ResponseTopic, name).build();
        let answers = wire.send(&Packet::Publish(Publish { properties, ..publish("t", Qos::AtMostOnce, 0) }));
        assert_eq!(wire.published.len(), usize::from(is_taken), "{name}");
        if !is_taken {
            assert_closed(&wire, &answers, ReasonCode::ProtocolError, name);
        }
    }
}

/// [MQTT5-3.3.2-5] [MQTT5-3.3.2-6]
#[test]
fn the_time_that_is_left_is_told_and_nothing_is_delivered_after_it() {
    let mut from = Wire::connected(ProtocolVersion::V5);
    let properties = PropertiesBuilder::new().number(PropertyId::MessageExpiryInterval, 10).build();
    from.send(&Packet::Publish(Publish { properties, ..publish("t", Qos::AtLeastOnce, 1) }));
    for (waited_s, left) in [(0, Some(10)), (3, Some(7)), (9, Some(1)), (11, None), (1000, None)] {
        let mut to = Wire::connected(ProtocolVersion::V5);
        to.wait(waited_s * 1000);
        let answers = to.deliver(delivery(from.published[0].clone()));
        let told =
            answers.first().map(|_| sent(&answers).properties.number(PropertyId::MessageExpiryInterval));
        assert_eq!(told.flatten(), left, "after {waited_s} s");
        assert_eq!(answers.len(), usize::from(left.is_some()));
    }
}

fn aliased(topic: &str, alias: u32) -> Packet {
    let properties = PropertiesBuilder::new().number(PropertyId::TopicAlias, alias).build();
    Packet::Publish(Publish { properties, ..publish(topic, Qos::AtMostOnce, 0) })
}

/// [MQTT5-3.3.2-12] [MQTT5-3.2.2-17] [MQTT5-3.3.2-9] [MQTT5-3.3.2-8]
#[test]
fn every_announced_topic_alias_is_taken_and_no_other() {
    for max in [1, 10, 65_535_u16] {
        let mut wire = Wire::with_limits(Limits { topic_alias_max: max, ..Limits::default() });
        let answers = wire.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5))));
        let Packet::ConnAck(connack) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!(connack.properties.number(PropertyId::TopicAliasMaximum), Some(u32::from(max)));
        for alias in 1..=u32::from(max) {
            wire.send(&aliased(&format!("t/{alias}"), alias));
        }
        for alias in 1..=u32::from(max) {
            wire.send(&aliased("", alias));
            assert_eq!(&*wire.published.last().unwrap().topic, format!("t/{alias}"));
        }
        assert_eq!(wire.published.len(), 2 * usize::from(max));
    }
    for alias in [0, 11] {
        let mut wire = Wire::connected(ProtocolVersion::V5);
        let answers = wire.send(&aliased("t", alias));
        assert_closed(&wire, &answers, ReasonCode::TopicAliasInvalid, "an alias that was not announced");
    }
}

/// [MQTT5-3.2.2-18]
#[test]
fn where_no_alias_was_announced_none_is_taken() {
    let mut wire = Wire::with_limits(Limits { topic_alias_max: 0, ..Limits::default() });
    wire.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5))));
    let answers = wire.send(&aliased("t", 1));
    assert_closed(&wire, &answers, ReasonCode::TopicAliasInvalid, "no alias");
}

/// [MQTT5-3.3.2-7]
#[test]
fn a_topic_alias_of_another_connection_is_unknown() {
    let mut first = Wire::connected(ProtocolVersion::V5);
    first.send(&aliased("t", 1));
    let mut second = Wire::connected(ProtocolVersion::V5);
    let answers = second.send(&aliased("", 1));
    assert_closed(&second, &answers, ReasonCode::ProtocolError, "an alias without a topic");
}

/// [MQTT5-3.1.2-26] [MQTT5-3.1.2-27] [MQTT5-3.3.2-8] [MQTT5-3.3.2-11]
#[test]
fn a_client_gets_no_topic_alias_above_its_maximum_and_none_without_one() {
    for max in [None, Some(0), Some(2)] {
        let mut connect = connect(ProtocolVersion::V5);
        if let Some(max) = max {
            connect.properties = PropertiesBuilder::new().number(PropertyId::TopicAliasMaximum, max).build();
        }
        let mut wire = Wire::with(connect);
        for round in 0..3 {
            for topic in 0..5 {
                let long = format!("{topic}/{}", "x".repeat(60));
                let answers = wire.deliver(delivery(message(&long, Qos::AtMostOnce)));
                let publish = sent(&answers);
                let alias = publish.properties.number(PropertyId::TopicAlias);
                assert!(alias.is_none_or(|alias| alias > 0 && alias <= max.unwrap_or(0)), "{alias:?}");
                assert!(!publish.topic.is_empty() || alias.is_some() && round > 0);
            }
        }
    }
}

/// [MQTT5-3.3.4-6]
#[test]
fn a_subscription_identifier_of_a_client_closes() {
    let mut wire = Wire::connected(ProtocolVersion::V5);
    let properties = PropertiesBuilder::new().number(PropertyId::SubscriptionIdentifier, 1).build();
    let answers = wire.send(&Packet::Publish(Publish { properties, ..publish("t", Qos::AtMostOnce, 0) }));
    assert_closed(&wire, &answers, ReasonCode::ProtocolError, "subscription identifier");
    assert_eq!(wire.published, []);
}

/// [MQTT5-3.2.2-15]
#[test]
fn a_packet_above_the_announced_size_closes() {
    let limits = tbmq_mqtt::codec::Limits { packet_bytes: 100 };
    for (payload, is_taken) in [(94, true), (95, false)] {
        let mut large = publish("t", Qos::AtMostOnce, 0);
        large.payload = vec![0; payload].into();
        let mut bytes = crate::encoded(&Packet::Publish(large), ProtocolVersion::V5);
        assert_eq!(bytes.len() <= 100, is_taken, "{} bytes", bytes.len());
        let read = tbmq_mqtt::codec::decode(&mut bytes, Some(ProtocolVersion::V5), &limits);
        assert_eq!(
            read.map(|_| ()).map_err(|error| error.reason),
            if is_taken { Ok(()) } else { Err(ReasonCode::PacketTooLarge) }
        );
    }
}

/// [MQTT5-3.1.2-24] [MQTT5-3.1.2-25]
#[test]
fn a_message_of_exactly_the_clients_maximum_is_sent_and_one_byte_more_is_not() {
    let properties = PropertiesBuilder::new().number(PropertyId::MaximumPacketSize, 100).build();
    let mut wire = Wire::with(Connect { properties, ..connect(ProtocolVersion::V5) });
    for (payload, is_sent) in [(92, true), (93, false), (10_000, false), (92, true)] {
        let message = Message { payload: vec![0; payload].into(), ..message("t", Qos::AtLeastOnce) };
        let answers = wire.deliver(delivery(message));
        assert_eq!(answers.len(), usize::from(is_sent), "{payload}");
        if let [Packet::Publish(publish)] = &answers[..] {
            assert_eq!(wire.written.last().unwrap().len(), 100);
            let ack = Ack::new(publish.packet_id.unwrap(), ReasonCode::Success);
            wire.send(&Packet::PubAck(ack));
        }
    }
}

/// [MQTT5-3.1.2-24]
#[test]
fn who_takes_only_smaller_packets_than_an_answer_is_told_that_or_closed_without_a_word() {
    let connect = |max| {
        let properties = PropertiesBuilder::new().number(PropertyId::MaximumPacketSize, max).build();
        Connect { properties, ..connect(ProtocolVersion::V5) }
    };
    for (max, bytes) in [(1, 0), (4, 0), (5, 5), (12, 5)] {
        let mut wire = Wire::open();
        wire.send(&Packet::Connect(Box::new(connect(max))));
        let written: usize = wire.written.iter().map(bytes::Bytes::len).sum();
        assert_eq!((written, wire.end), (bytes, Some(End::Refused)), "{max}");
    }
    for (filters, is_answered) in [(59, true), (60, false)] {
        for is_subscribe in [true, false] {
            let mut wire = Wire::with(connect(64));
            let answers = if is_subscribe {
                wire.send(&subscribe(1, vec![subscription("a", Qos::AtMostOnce); filters]))
            } else {
                let filters = vec!["a".into(); filters];
                wire.send(&Packet::Unsubscribe(Unsubscribe {
                    packet_id: 1,
                    filters,
                    properties: Properties::NONE,
                }))
            };
            if is_answered {
                assert_eq!((wire.written.last().unwrap().len(), wire.end), (64, None));
            } else {
                assert_closed(&wire, &answers, ReasonCode::PacketTooLarge, "a large answer");
                assert_eq!((answers.len(), wire.filters.len()), (1, 0));
            }
        }
    }
}
