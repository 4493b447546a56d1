use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Ack, Packet, ProtocolVersion, Qos, ReasonCode, Subscription},
};

use crate::{
    bus::TestBus,
    client::{Client, connect_packet, publish, subscription, text},
    plane::{Plane, config, until},
};

/// [MQTT-3.3.4-1] [MQTT-3.8.4-6] [MQTT-4.5.0-1] [MQTT-7.1.1-1]
/// [MQTT5-3.3.4-1] [MQTT5-3.8.4-8] [MQTT5-4.5.0-1] [MQTT5-4.2.0-1]
#[tokio::test]
async fn a_message_arrives_at_the_lower_quality_of_both_sides() {
    let plane = Plane::start().await;
    for (number, version) in [ProtocolVersion::V311, ProtocolVersion::V5].into_iter().enumerate() {
        let mut publisher = Client::connected(plane.address, version, "publisher").await;
        for published in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
            for wanted in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
                let mut subscriber = Client::connected(plane.address, version, "subscriber").await;
                let topic = format!("t/{number}/{}/{}", published.bits(), wanted.bits());
                subscriber.subscribed(&topic, wanted).await;
                publisher.publish(&topic, published, 9, "x").await;
                match published {
                    Qos::AtMostOnce => {}
                    Qos::AtLeastOnce => {
                        assert_eq!(publisher.puback().await, Ack::new(9, ReasonCode::Success));
                    }
                    Qos::ExactlyOnce => {
                        let ack = Ack::new(9, ReasonCode::Success);
                        assert_eq!(publisher.next().await, Some(Packet::PubRec(ack.clone())));
                        publisher.send(Packet::PubRel(ack.clone())).await;
                        assert_eq!(publisher.next().await, Some(Packet::PubComp(ack)));
                    }
                }
                let message = subscriber.message().await;
                assert_eq!((text(&message), message.qos), ("x", published.min(wanted)));
                match message.packet_id {
                    Some(id) if message.qos == Qos::ExactlyOnce => {
                        let ack = Ack::new(id, ReasonCode::Success);
                        subscriber.send(Packet::PubRec(ack.clone())).await;
                        assert_eq!(subscriber.next().await, Some(Packet::PubRel(ack.clone())));
                        subscriber.send(Packet::PubComp(ack)).await;
                    }
                    Some(id) => subscriber.send(Packet::PubAck(Ack::new(id, ReasonCode::Success))).await,
                    None => {}
                }
                subscriber.hears_nothing().await;
            }
        }
    }
}

/// [MQTT5-3.3.4-2] [MQTT5-3.3.4-3] [MQTT5-3.3.4-4] [MQTT5-3.3.4-5]
#[tokio::test]
async fn overlapping_filters_give_one_delivery_with_all_identifiers() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    let identifier =
        |number| PropertiesBuilder::new().number(PropertyId::SubscriptionIdentifier, number).build();
    client.subscribe(vec![subscription("a/#", Qos::AtMostOnce)], identifier(1)).await;
    client.subscribe(vec![subscription("a/+", Qos::AtLeastOnce)], identifier(2)).await;
    client.publish("a/b", Qos::AtLeastOnce, 1, "x").await;
    let mut message = None;
    for _ in 0..2 {
        if let Some(Packet::Publish(publish)) = client.next().await {
            message = Some(publish);
        }
    }
    let message = message.unwrap();
    assert_eq!(message.qos, Qos::AtLeastOnce);
    let mut identifiers: Vec<_> = message
        .properties
        .iter()
        .filter(|(id, _)| *id == PropertyId::SubscriptionIdentifier)
        .map(|(_, value)| format!("{value:?}"))
        .collect();
    identifiers.sort();
    assert_eq!(identifiers, ["Number(1)", "Number(2)"]);
    client.hears_nothing().await;
}

/// [MQTT5-3.3.1-12] [MQTT5-3.3.1-13] [MQTT5-3.3.2-17] [MQTT5-3.3.2-18] [MQTT5-3.3.2-20] [MQTT5-3.8.3-3]
#[tokio::test]
async fn subscription_options_and_properties_are_honoured() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    let mut other = Client::v5(plane.address, "other").await;
    let own = Subscription { no_local: true, ..subscription("own", Qos::AtMostOnce) };
    let kept = Subscription { retain_as_published: true, ..subscription("kept", Qos::AtMostOnce) };
    client.subscribe(vec![own, kept, subscription("plain", Qos::AtMostOnce)], Properties::NONE).await;
    client.publish("own", Qos::AtMostOnce, 0, "mine").await;
    client.hears_nothing().await;
    other.publish("own", Qos::AtMostOnce, 0, "another's").await;
    assert_eq!(text(&client.message().await), "another's");
    let properties = PropertiesBuilder::new()
        .user("b", "1")
        .number(PropertyId::MessageExpiryInterval, 60)
        .text(PropertyId::ContentType, "text/plain")
        .user("a", "2")
        .user("b", "3")
        .build();
    for (topic, retain) in [("kept", true), ("plain", false)] {
        let mut packet = publish(topic, Qos::AtMostOnce, 0, "x");
        packet.retain = true;
        packet.properties = properties.clone();
        other.send(Packet::Publish(packet)).await;
        let message = client.message().await;
        assert_eq!(message.retain, retain, "{topic}");
        assert_eq!(message.properties.number(PropertyId::MessageExpiryInterval), Some(60));
        assert_eq!(&*message.properties.text(PropertyId::ContentType).unwrap(), "text/plain");
        let pairs: Vec<_> =
            message.properties.user_properties().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["b=1", "a=2", "b=3"]);
    }
}

/// [MQTT5-3.8.4-6] [MQTT5-3.8.4-7] [MQTT5-3.9.3-1] [MQTT5-3.10.4-2] [MQTT5-3.11.3-1]
#[tokio::test]
async fn filters_are_answered_one_by_one() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    let wanted = ["a/+", "a/#/b", "$share/g/a"].map(|filter| subscription(filter, Qos::ExactlyOnce));
    assert_eq!(
        client.subscribe(wanted.to_vec(), Properties::NONE).await,
        [ReasonCode::GrantedQos2, ReasonCode::TopicFilterInvalid, ReasonCode::GrantedQos2]
    );
    assert_eq!(
        client.unsubscribe(&["a/+", "b"]).await,
        [ReasonCode::Success, ReasonCode::NoSubscriptionExisted]
    );
    client.publish("a/b", Qos::AtMostOnce, 0, "x").await;
    client.hears_nothing().await;
}

#[tokio::test]
async fn a_topic_alias_stands_for_its_topic() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    client.subscribed("long/topic", Qos::AtMostOnce).await;
    for topic in ["long/topic", ""] {
        let mut packet = publish(topic, Qos::AtMostOnce, 0, "x");
        packet.properties = PropertiesBuilder::new().number(PropertyId::TopicAlias, 3).build();
        client.send(Packet::Publish(packet)).await;
        let message = client.message().await;
        assert_eq!((&*message.topic, message.properties.is_empty()), ("long/topic", true));
    }
    let mut packet = publish("x", Qos::AtMostOnce, 0, "x");
    packet.properties = PropertiesBuilder::new().number(PropertyId::TopicAlias, 11).build();
    client.send(Packet::Publish(packet)).await;
    client.is_told(ReasonCode::TopicAliasInvalid).await;
}

/// [MQTT5-3.3.4-9] [MQTT5-4.9.0-2]
#[tokio::test]
async fn the_clients_receive_maximum_holds_deliveries_back() {
    let plane = Plane::start().await;
    let mut connect = connect_packet(ProtocolVersion::V5, "slow");
    connect.properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, 2).build();
    let (mut slow, _) = Client::with(plane.address, connect).await;
    slow.subscribed("t", Qos::AtLeastOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    for (id, payload) in [(1, "1"), (2, "2"), (3, "3")] {
        publisher.publish("t", Qos::AtLeastOnce, id, payload).await;
        publisher.puback().await;
    }
    let first = slow.message().await;
    assert_eq!((text(&first), text(&slow.message().await)), ("1", "2"));
    slow.hears_nothing().await;
    slow.send(Packet::PubAck(Ack::new(first.packet_id.unwrap(), ReasonCode::Success))).await;
    assert_eq!(text(&slow.message().await), "3");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_qos_0_and_is_disconnected_at_qos_1() {
    let mut config = config();
    config.mqtt.outbound_queue_messages_max = 4.try_into().unwrap();
    config.mqtt.outbound_queue_bytes_max = 1_000_000.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let mut stuck = Client::v5(plane.address, "stuck").await;
    stuck.subscribed("t/#", Qos::AtLeastOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let dropped = || plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"QueueFull\"}");
    let large = publish("t/0", Qos::AtMostOnce, 0, "");
    let payload = bytes::Bytes::from(vec![0; 60_000]);
    while dropped() == 0 {
        let packet = tbmq_mqtt::packet::Publish { payload: payload.clone(), ..large.clone() };
        publisher.send(Packet::Publish(packet)).await;
    }
    assert_eq!(plane.metric("tbmq_mqtt_connections"), 2);
    let mut id = 0;
    while plane.metric("tbmq_mqtt_connections_ended_total{reason=\"SlowConsumer\"}") == 0 {
        id += 1;
        publisher.publish("t/1", Qos::AtLeastOnce, id, "x").await;
        publisher.puback().await;
    }
    until(|| plane.metric("tbmq_mqtt_connections") == 1).await;
}

/// [MQTT5-3.1.2-24] [MQTT5-3.1.2-25]
#[tokio::test]
async fn a_message_larger_than_the_client_takes_is_not_sent_and_counted() {
    let plane = Plane::start().await;
    let mut connect = connect_packet(ProtocolVersion::V5, "small");
    connect.properties = PropertiesBuilder::new().number(PropertyId::MaximumPacketSize, 30).build();
    let (mut small, _) = Client::with(plane.address, connect).await;
    small.subscribed("t", Qos::AtLeastOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    publisher.publish("t", Qos::AtLeastOnce, 1, "this is longer than thirty bytes").await;
    publisher.puback().await;
    publisher.publish("t", Qos::AtLeastOnce, 2, "short").await;
    assert_eq!(text(&small.message().await), "short");
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"TooLarge\"}"), 1);
}
