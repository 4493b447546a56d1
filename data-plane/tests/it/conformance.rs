//! Statements of the standards that need more than one connection.

use tbmq_mqtt::{
    codec::property::{Properties, PropertyId},
    packet::{Ack, ConnAck, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
};

use crate::{
    client::{self, Client, connect_packet, publish, subscription, text},
    persistent::{acknowledge, connected, cut, lasting, published},
    plane::Plane,
};

const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::V311, ProtocolVersion::V5];

/// [MQTT-3.3.2-3] [MQTT-3.3.5-1] [MQTT-4.7.2-1] [MQTT5-3.3.2-3] [MQTT5-3.3.4-2] [MQTT5-4.7.2-1]
#[tokio::test]
async fn a_message_comes_at_the_highest_quality_of_the_filters_that_match_and_only_if_one_does() {
    let plane = Plane::start().await;
    for version in VERSIONS {
        let mut client = Client::connected(plane.address, version, "c").await;
        for (filter, qos) in [
            ("a/#", Qos::AtMostOnce),
            ("a/+", Qos::ExactlyOnce),
            ("+/b", Qos::AtLeastOnce),
            ("b/+/c", Qos::AtLeastOnce),
            ("#", Qos::AtMostOnce),
        ] {
            client.subscribed(filter, qos).await;
        }
        let mut publisher = Client::connected(plane.address, version, "publisher").await;
        for (topic, expected) in [
            ("a/b", Some(Qos::ExactlyOnce)),
            ("x/b", Some(Qos::AtLeastOnce)),
            ("a/b/c", Some(Qos::AtMostOnce)),
            ("b/b/c", Some(Qos::AtLeastOnce)),
            ("$own/b", None),
        ] {
            publisher.publish(topic, Qos::ExactlyOnce, 1, "x").await;
            assert_eq!(publisher.next().await.map(|packet| matches!(packet, Packet::PubRec(_))), Some(true));
            publisher.send(Packet::PubRel(Ack::new(1, ReasonCode::Success))).await;
            publisher.next().await;
            if let Some(qos) = expected {
                let message = client.message().await;
                assert_eq!((&*message.topic, message.qos), (topic, qos), "{version:?}");
            } else {
                client.hears_nothing().await;
            }
        }
    }
}

/// [MQTT-3.10.4-2] [MQTT5-3.10.4-2]
#[tokio::test]
async fn nothing_comes_after_an_unsubscription() {
    let plane = Plane::start().await;
    for version in VERSIONS {
        let mut client = Client::connected(plane.address, version, "c").await;
        client.subscribed("a/+", Qos::AtMostOnce).await;
        client.publish("a/b", Qos::AtMostOnce, 0, "x").await;
        client.message().await;
        client.unsubscribe(&["a/+"]).await;
        client.publish("a/b", Qos::AtMostOnce, 0, "x").await;
        client.hears_nothing().await;
    }
}

/// [MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT5-4.6.0-5] [MQTT5-4.6.0-6]
#[tokio::test]
async fn each_publishers_messages_come_in_their_order_at_every_quality() {
    const COUNT: u16 = 300;
    let plane = Plane::start().await;
    for version in VERSIONS {
        for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
            let mut subscriber = Client::connected(plane.address, version, "subscriber").await;
            subscriber.subscribed("ordered/+", qos).await;
            let mut publishers = Vec::new();
            for name in ["ordered/one", "ordered/two"] {
                publishers.push((name, Client::connected(plane.address, version, name).await));
            }
            for number in 1..=COUNT {
                for (topic, publisher) in &mut publishers {
                    let mut message = publish(topic, qos, number, "");
                    message.payload = number.to_string().into();
                    publisher.send(Packet::Publish(message)).await;
                }
            }
            let mut next = [1, 1];
            while next != [COUNT + 1, COUNT + 1] {
                let message = subscriber.message().await;
                if let Some(id) = message.packet_id {
                    subscriber.send(Packet::PubAck(Ack::new(id, ReasonCode::Success))).await;
                }
                let of = usize::from(&*message.topic == "ordered/two");
                assert_eq!(text(&message), next[of].to_string(), "{version:?} {qos:?} {}", &*message.topic);
                next[of] += 1;
            }
        }
    }
}

/// [MQTT-3.1.3-6] [MQTT5-3.1.3-6] [MQTT5-3.1.3-7] [MQTT5-3.2.2-16]
#[tokio::test]
async fn every_client_without_an_id_gets_one_of_its_own() {
    let plane = Plane::start().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let (mut client, connack) =
            Client::with(plane.address, connect_packet(ProtocolVersion::V5, "")).await;
        let id = connack.properties.text(PropertyId::AssignedClientIdentifier).unwrap().to_string();
        client.hears_nothing().await;
        clients.push((id, client));
        let (mut old, _) = Client::with(plane.address, connect_packet(ProtocolVersion::V311, "")).await;
        old.hears_nothing().await;
        clients.push((String::new(), old));
    }
    // Nobody was taken over by a later one.
    for (_, client) in &mut clients {
        client.hears_nothing().await;
    }
    let mut ids: Vec<_> = clients.iter().map(|(id, _)| id).filter(|id| !id.is_empty()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20);
    // The id that was told is the client's own.
    let taken = clients[0].0.clone();
    let _second = Client::v5(plane.address, &taken).await;
    clients[0].1.is_told(ReasonCode::SessionTakenOver).await;
}

/// [MQTT-3.1.2-24] [MQTT-3.1.4-2] [MQTT-3.1.2-8] [MQTT-3.14.4-3] [MQTT-3.1.2-10]
#[tokio::test]
async fn an_older_client_is_cut_off_where_a_newer_one_is_told() {
    let plane = Plane::start().await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("wills", Qos::AtMostOnce).await;
    let with_will = |payload, keep_alive| Connect {
        will: Some(client::will("wills", payload)),
        keep_alive,
        ..connect_packet(ProtocolVersion::V311, "old")
    };
    let (mut silent, _) = Client::with(plane.address, with_will("silent", 1)).await;
    assert_eq!(silent.next().await, None, "closed without a packet");
    assert_eq!(text(&watcher.message().await), "silent");
    let (mut first, _) = Client::with(plane.address, with_will("taken over", 0)).await;
    let (mut second, _) = Client::with(plane.address, with_will("said goodbye", 0)).await;
    assert_eq!(first.next().await, None, "closed without a packet");
    assert_eq!(text(&watcher.message().await), "taken over");
    second.send(Packet::Disconnect(Disconnect::new(ReasonCode::Success))).await;
    assert_eq!(second.next().await, None);
    watcher.hears_nothing().await;
}

/// [MQTT-3.1.0-2] [MQTT-3.1.4-5] [MQTT-4.8.0-1] [MQTT5-3.1.4-6]
#[tokio::test]
async fn what_follows_a_violation_on_the_same_connection_reaches_nobody() {
    let plane = Plane::start().await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("#", Qos::AtMostOnce).await;
    for version in VERSIONS {
        let mut refused = connect_packet(version, "");
        refused.clean_start = false;
        if version.is_v5() {
            refused.properties = tbmq_mqtt::codec::property::PropertiesBuilder::new()
                .text(PropertyId::AuthenticationMethod, "m")
                .build();
        }
        let mut client = Client::open(plane.address, version).await;
        client
            .send_all(&[
                Packet::Connect(Box::new(refused)),
                Packet::Publish(publish("t", Qos::AtMostOnce, 0, "after a refusal")),
            ])
            .await;
        assert!(
            matches!(client.next().await, Some(Packet::ConnAck(ConnAck { reason, .. })) if reason.is_error())
        );
        assert_eq!(client.next().await, None);
        let mut client = Client::connected(plane.address, version, "twice").await;
        client
            .send_all(&[
                Packet::Publish(publish("t", Qos::AtMostOnce, 0, "before")),
                Packet::Connect(Box::new(connect_packet(version, "twice"))),
                Packet::Publish(publish("t", Qos::AtMostOnce, 0, "after a second CONNECT")),
            ])
            .await;
        let last = client.next().await.map(|packet| match packet {
            Packet::Disconnect(goodbye) => goodbye.reason,
            other => panic!("{other:?}"),
        });
        assert_eq!(last, version.is_v5().then_some(ReasonCode::ProtocolError));
        let message: Publish = watcher.message().await;
        assert_eq!(text(&message), "before");
        watcher.hears_nothing().await;
    }
}

/// [MQTT-3.8.4-6] [MQTT5-3.8.4-8] [MQTT5-3.8.4-3] [MQTT-3.8.4-3]
#[tokio::test]
async fn a_replaced_subscription_delivers_once_at_its_new_quality() {
    let plane = Plane::start().await;
    for version in VERSIONS {
        let mut client = Client::connected(plane.address, version, "c").await;
        client.subscribed("t", Qos::ExactlyOnce).await;
        let reasons = client.subscribe(vec![subscription("t", Qos::AtMostOnce)], Properties::NONE).await;
        assert_eq!(reasons, [ReasonCode::Success]);
        client.publish("t", Qos::AtMostOnce, 0, "x").await;
        assert_eq!(client.message().await.qos, Qos::AtMostOnce);
        client.hears_nothing().await;
    }
}

/// [MQTT5-3.2.2-15]
#[tokio::test]
async fn an_announced_packet_size_is_the_one_that_is_kept() {
    let plane = Plane::start().await;
    let (mut client, connack) = Client::with(plane.address, connect_packet(ProtocolVersion::V5, "c")).await;
    let max = connack.properties.number(PropertyId::MaximumPacketSize).unwrap() as usize;
    let of = |size: usize, version| {
        let mut large = publish("t", Qos::AtLeastOnce, 1, "");
        large.payload = vec![0; max / 2].into();
        let rest = size - tbmq_mqtt::codec::publish_length(&large, version);
        large.payload = vec![0; max / 2 + rest].into();
        assert_eq!(tbmq_mqtt::codec::publish_length(&large, version), size);
        Packet::Publish(large)
    };
    client.send(of(max, ProtocolVersion::V5)).await;
    client.puback().await;
    client.send(of(max + 1, ProtocolVersion::V5)).await;
    client.is_told(ReasonCode::PacketTooLarge).await;
    let mut old = Client::connected(plane.address, ProtocolVersion::V311, "old").await;
    old.send(of(max, ProtocolVersion::V311)).await;
    old.puback().await;
    old.send(of(max + 1, ProtocolVersion::V311)).await;
    assert_eq!(old.next().await, None);
}

/// [MQTT5-3.3.2-4] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-20]
#[tokio::test]
async fn messages_cross_between_all_versions_with_what_both_can_say() {
    let plane = Plane::start().await;
    let properties = tbmq_mqtt::codec::property::PropertiesBuilder::new()
        .number(PropertyId::PayloadFormatIndicator, 1)
        .text(PropertyId::ContentType, "text/plain")
        .text(PropertyId::ResponseTopic, "answers")
        .binary(PropertyId::CorrelationData, &[0, 0xff])
        .user("k", "v")
        .build();
    for from in client::VERSIONS {
        for to in client::VERSIONS {
            let mut subscriber = Client::connected(plane.address, to, "subscriber").await;
            subscriber.subscribed("t", Qos::AtMostOnce).await;
            let mut publisher = Client::connected(plane.address, from, "publisher").await;
            let mut packet = publish("t", Qos::AtLeastOnce, 1, "x");
            if from.is_v5() {
                packet.properties = properties.clone();
            }
            publisher.send(Packet::Publish(packet)).await;
            let message = subscriber.message().await;
            let both = from.is_v5() && to.is_v5();
            assert_eq!(message.properties, if both { properties.clone() } else { Properties::NONE });
            assert_eq!((&*message.topic, text(&message)), ("t", "x"), "{from:?} {to:?}");
        }
    }
}

/// A client of this version whose session outlives its connection, if it does not start clean.
fn staying(version: ProtocolVersion, clean_start: bool) -> Connect {
    let properties = if version.is_v5() { lasting("c", 100).properties } else { Properties::NONE };
    Connect { clean_start, properties, ..connect_packet(version, "c") }
}

/// [MQTT-3.1.2-4] [MQTT-3.1.2-6] [MQTT-3.1.4-3] [MQTT-3.2.2-1] [MQTT-3.2.2-2] [MQTT-3.2.2-3]
/// [MQTT5-3.1.2-4] [MQTT5-3.1.2-5] [MQTT5-3.1.2-6] [MQTT5-3.1.4-4] [MQTT5-3.2.2-2] [MQTT5-3.2.2-3]
#[tokio::test]
async fn clean_start_decides_whether_a_session_goes_on() {
    let plane = Plane::start().await;
    for version in VERSIONS {
        // With 5.0 what begins clean may last, too; with 3.1.1 it ends with its connection.
        let lasts = version.is_v5();
        for (clean_start, is_present) in
            [(false, false), (false, true), (true, false), (false, lasts), (false, true), (true, false)]
        {
            let mut client = connected(&plane, staying(version, clean_start), is_present).await;
            client.publish("t", Qos::AtMostOnce, 0, "x").await;
            if is_present {
                assert_eq!(text(&client.message().await), "x", "the subscription has stayed");
            } else {
                client.hears_nothing().await;
                client.subscribed("t", Qos::AtLeastOnce).await;
            }
            client.leave().await;
        }
        connected(&plane, connect_packet(version, "c"), false).await.leave().await;
    }
}

/// [MQTT-3.1.2-7]
#[tokio::test]
async fn a_retained_message_stays_when_its_publishers_session_ends() {
    let plane = Plane::start().await;
    for (topic, clean_start) in [("a/clean", true), ("a/lasting", false)] {
        let mut publisher = connected(&plane, staying(ProtocolVersion::V311, clean_start), false).await;
        let retained = Publish { retain: true, ..publish(topic, Qos::AtLeastOnce, 1, "kept") };
        publisher.send(Packet::Publish(retained)).await;
        publisher.puback().await;
        publisher.leave().await;
    }
    // The lasting session ends here.
    connected(&plane, connect_packet(ProtocolVersion::V311, "c"), false).await.leave().await;
    let mut client = Client::connected(plane.address, ProtocolVersion::V311, "late").await;
    client.subscribed("a/+", Qos::AtMostOnce).await;
    for topic in ["a/clean", "a/lasting"] {
        let message = client.message().await;
        assert_eq!((&*message.topic, text(&message), message.retain), (topic, "kept", true));
    }
}

/// [MQTT5-4.8.2-4]
#[tokio::test]
async fn a_qos_2_delivery_of_a_shared_subscription_is_completed_with_the_member_that_it_began_with() {
    let plane = Plane::start().await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let mut member = connected(&plane, lasting("member", 100), false).await;
    member.subscribed("$share/g/t", Qos::ExactlyOnce).await;
    published(&mut publisher, "t", Qos::ExactlyOnce, 1, "begun").await;
    published(&mut publisher, "t", Qos::ExactlyOnce, 2, "half done").await;
    let begun = member.message().await;
    let half_done = member.message().await;
    acknowledge_first(&mut member, &half_done).await;
    let mut other = Client::v5(plane.address, "other").await;
    other.subscribed("$share/g/t", Qos::ExactlyOnce).await;
    cut(&plane, member).await;
    other.hears_nothing().await;
    let mut member = connected(&plane, lasting("member", 100), true).await;
    let half_done = Ack::new(half_done.packet_id.unwrap(), ReasonCode::Success);
    assert_eq!(member.next().await, Some(Packet::PubRel(half_done.clone())));
    member.send(Packet::PubComp(half_done)).await;
    let again = member.message().await;
    assert_eq!((text(&again), again.packet_id, again.dup), ("begun", begun.packet_id, true));
    acknowledge(&mut member, &again).await;
    member.hears_nothing().await;
    other.hears_nothing().await;
}

/// PUBREC, and PUBREL is heard.
async fn acknowledge_first(client: &mut Client, message: &Publish) {
    let ack = Ack::new(message.packet_id.unwrap(), ReasonCode::Success);
    client.send(Packet::PubRec(ack.clone())).await;
    assert_eq!(client.next().await, Some(Packet::PubRel(ack)));
}
