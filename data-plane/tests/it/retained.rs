//! Retained messages.

use tbmq_bus::{Bus as _, Error, ReaderConfig, ReaderEvent, Record, Start, SubmitError, TopicPartition};
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{
        Ack, Packet, ProtocolVersion, Publish, Qos, ReasonCode, RetainHandling, Subscribe, Subscription,
    },
};
use tbmq_proto::topic::Catalogue;

use crate::{
    bus::{Mode, TestBus},
    client::{Client, VERSIONS, connect_packet, number, publish, subscription, text, will},
    plane::{Plane, config, put, until},
};

fn retained(topic: &str, qos: Qos, payload: &'static str) -> Publish {
    Publish { retain: true, ..publish(topic, qos, 1, payload) }
}

/// Publishes at QoS 1 with RETAIN and waits for the acknowledgement.
async fn retain(client: &mut Client, topic: &str, payload: &'static str) {
    client.send(Packet::Publish(retained(topic, Qos::AtLeastOnce, payload))).await;
    assert!(!client.puback().await.reason.is_error());
}

/// The next messages as `topic=payload`, each of which must have the retain flag.
async fn heard(client: &mut Client, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..count {
        let message = client.message().await;
        assert!(message.retain, "{message:?}");
        all.push(format!("{}={}", &*message.topic, text(&message)));
    }
    all
}

async fn records(bus: &TestBus) -> Vec<Record> {
    let mut reader = bus.reader(ReaderConfig::new("test", None)).await.unwrap();
    reader.add(&TopicPartition::new(Catalogue::default().retained().name, 0), Start::Earliest);
    let mut all = Vec::new();
    loop {
        match reader.next().await {
            ReaderEvent::Batch { records, .. } => all.extend(records),
            ReaderEvent::End { .. } => return all,
            other => panic!("{other:?}"),
        }
    }
}

/// [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-8] [MQTT-3.3.1-9] [MQTT-3.3.1-12] [MQTT5-3.3.1-5] [MQTT5-3.3.1-8]
/// [MQTT5-3.3.1-9] [MQTT5-3.3.1-12]
#[tokio::test]
async fn a_new_subscription_gets_the_last_retained_message_of_each_topic_after_its_suback() {
    let plane = Plane::start().await;
    for version in VERSIONS {
        let mut publisher = Client::connected(plane.address, version, "publisher").await;
        let mut established = Client::connected(plane.address, version, "established").await;
        established.subscribed("a/#", Qos::AtMostOnce).await;
        if version != ProtocolVersion::V31 {
            assert_eq!(heard(&mut established, 2).await, ["a/b=new", "a/c=only"]);
        }
        for (topic, payload) in [("a/b", "old"), ("a/b", "new"), ("a/c", "only"), ("b", "other")] {
            retain(&mut publisher, topic, payload).await;
        }
        publisher.publish("a/b", Qos::AtLeastOnce, 2, "not retained").await;
        publisher.puback().await;
        for expected in ["old", "new", "only", "not retained"] {
            let message = established.message().await;
            assert_eq!((text(&message), message.retain), (expected, false));
        }
        let mut new = Client::connected(plane.address, version, "new").await;
        new.subscribed("+/+", Qos::AtMostOnce).await;
        assert_eq!(heard(&mut new, 2).await, ["a/b=new", "a/c=only"]);
        new.hears_nothing().await;
    }
    assert_eq!(plane.metric("tbmq_mqtt_retained_messages"), 3);
}

/// [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT5-3.3.1-6] [MQTT5-3.3.1-7]
#[tokio::test]
async fn an_empty_retained_message_is_delivered_and_removes_the_one_that_was_there() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    retain(&mut client, "a", "x").await;
    client.subscribed("a", Qos::AtMostOnce).await;
    assert_eq!(heard(&mut client, 1).await, ["a=x"]);
    client.send(Packet::Publish(retained("a", Qos::AtMostOnce, ""))).await;
    let message = client.message().await;
    assert_eq!((text(&message), message.retain), ("", false));
    client.subscribed("a", Qos::AtMostOnce).await;
    client.hears_nothing().await;
    until(|| plane.metric("tbmq_mqtt_retained_messages") == 0).await;
}

/// [MQTT-3.3.1-7]
#[tokio::test]
async fn a_retained_message_of_qos_0_replaces_the_one_before() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    retain(&mut client, "a", "1").await;
    client.send(Packet::Publish(retained("a", Qos::AtMostOnce, "0"))).await;
    client.subscribed("a", Qos::AtLeastOnce).await;
    assert_eq!(heard(&mut client, 1).await, ["a=0"]);
}

/// The quality of a retained message is the lower one of its own and the subscription's, and its properties come with
/// it. [MQTT5-3.3.2-4] [MQTT5-3.3.2-6] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-17] [MQTT5-3.3.2-20]
#[tokio::test]
async fn a_retained_message_comes_as_it_was_published() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut packet = retained(&format!("q/{}", qos.bits()), qos, "x");
        packet.properties = PropertiesBuilder::new()
            .number(PropertyId::PayloadFormatIndicator, 1)
            .number(PropertyId::MessageExpiryInterval, 60)
            .text(PropertyId::ContentType, "text/plain")
            .text(PropertyId::ResponseTopic, "answers")
            .binary(PropertyId::CorrelationData, b"7")
            .user("b", "1")
            .user("a", "2")
            .build();
        client.send(Packet::Publish(packet)).await;
    }
    assert!(matches!(client.next().await, Some(Packet::PubAck(_))));
    assert!(matches!(client.next().await, Some(Packet::PubRec(_))));
    let identifier = PropertiesBuilder::new().number(PropertyId::SubscriptionIdentifier, 9).build();
    client.subscribe(vec![subscription("q/+", Qos::AtLeastOnce)], identifier).await;
    for (topic, qos) in [("q/0", Qos::AtMostOnce), ("q/1", Qos::AtLeastOnce), ("q/2", Qos::AtLeastOnce)] {
        let message = client.message().await;
        assert_eq!((&*message.topic, message.qos, message.retain), (topic, qos, true));
        let properties = &message.properties;
        assert_eq!(properties.number(PropertyId::SubscriptionIdentifier), Some(9));
        assert_eq!(properties.number(PropertyId::PayloadFormatIndicator), Some(1));
        assert!((55..=60).contains(&properties.number(PropertyId::MessageExpiryInterval).unwrap()));
        assert_eq!(&*properties.text(PropertyId::ContentType).unwrap(), "text/plain");
        assert_eq!(&*properties.text(PropertyId::ResponseTopic).unwrap(), "answers");
        assert_eq!(properties.binary(PropertyId::CorrelationData).as_deref(), Some(b"7".as_slice()));
        let pairs: Vec<_> = properties.user_properties().map(|(name, _)| name.to_string()).collect();
        assert_eq!(pairs, ["b", "a"]);
    }
}

async fn subscribes(client: &mut Client, wanted: Subscription) {
    let reasons = client.subscribe(vec![wanted], Properties::NONE).await;
    assert!(!reasons[0].is_error());
}

/// [MQTT5-3.3.1-9] [MQTT5-3.3.1-10] [MQTT5-3.3.1-11] [MQTT5-3.8.4-4] [MQTT-3.8.4-3]
#[tokio::test]
async fn retain_handling_says_whether_a_subscription_gets_retained_messages() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    retain(&mut client, "a", "x").await;
    let with = |retain_handling| Subscription { retain_handling, ..subscription("a", Qos::AtMostOnce) };
    subscribes(&mut client, with(RetainHandling::DoNotSend)).await;
    client.hears_nothing().await;
    subscribes(&mut client, with(RetainHandling::SendIfNew)).await;
    client.hears_nothing().await;
    for _ in 0..2 {
        subscribes(&mut client, with(RetainHandling::Send)).await;
        assert_eq!(heard(&mut client, 1).await, ["a=x"]);
    }
    client.unsubscribe(&["a"]).await;
    subscribes(&mut client, with(RetainHandling::SendIfNew)).await;
    assert_eq!(heard(&mut client, 1).await, ["a=x"]);
    // A 3.x client gets them each time.
    let mut old = Client::connected(plane.address, ProtocolVersion::V311, "old").await;
    for _ in 0..2 {
        old.subscribed("a", Qos::AtMostOnce).await;
        assert_eq!(heard(&mut old, 1).await, ["a=x"]);
    }
}

/// [MQTT5-3.8.3-3]
#[tokio::test]
async fn a_client_that_wants_none_of_its_own_messages_gets_none_that_are_retained() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    let mut other = Client::v5(plane.address, "other").await;
    retain(&mut client, "a/own", "x").await;
    retain(&mut other, "a/other", "x").await;
    let no_local = Subscription { no_local: true, ..subscription("a/#", Qos::AtMostOnce) };
    subscribes(&mut client, no_local).await;
    assert_eq!(heard(&mut client, 1).await, ["a/other=x"]);
    client.hears_nothing().await;
}

/// [MQTT5-3.3.1-13]
#[tokio::test]
async fn retain_as_published_keeps_the_flag_for_established_subscriptions() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    let wanted = Subscription { retain_as_published: true, ..subscription("a", Qos::AtMostOnce) };
    subscribes(&mut client, wanted).await;
    client.send(Packet::Publish(retained("a", Qos::AtMostOnce, "x"))).await;
    assert!(client.message().await.retain);
    client.publish("a", Qos::AtMostOnce, 0, "x").await;
    assert!(!client.message().await.retain);
}

/// MQTT 5.0 §4.8.2: retained messages are not sent to a shared subscription when it is made.
#[tokio::test]
async fn a_shared_subscription_gets_no_retained_messages() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    retain(&mut client, "a", "x").await;
    client.subscribed("$share/g/a", Qos::AtMostOnce).await;
    client.hears_nothing().await;
}

/// [MQTT-3.1.2-17] [MQTT5-3.1.2-15]
#[tokio::test]
async fn a_will_is_retained_when_it_says_so() {
    let plane = Plane::start().await;
    let mut connect = connect_packet(ProtocolVersion::V5, "c");
    connect.will = Some(tbmq_mqtt::packet::Will { retain: true, ..will("wills", "gone") });
    drop(Client::with(plane.address, connect).await);
    until(|| plane.metric("tbmq_mqtt_retained_messages") == 1).await;
    let mut client = Client::v5(plane.address, "watcher").await;
    client.subscribed("wills", Qos::AtMostOnce).await;
    assert_eq!(heard(&mut client, 1).await, ["wills=gone"]);
}

#[tokio::test]
async fn retained_messages_survive_a_restart() {
    let bus = TestBus::new();
    let first = Plane::with(bus.clone(), config()).await;
    let mut client = Client::v5(first.address, "c").await;
    for topic in ["a", "b"] {
        retain(&mut client, topic, "x").await;
    }
    retain(&mut client, "a", "").await;
    drop(client);
    first.running.drain().await;
    let second = Plane::with(bus, config()).await;
    assert!(second.health.is_up(), "{:?}", second.health.down());
    let mut client = Client::v5(second.address, "c").await;
    client.subscribed("#", Qos::AtMostOnce).await;
    assert_eq!(heard(&mut client, 1).await, ["b=x"]);
    client.hears_nothing().await;
}

/// Architecture §5.2: the acknowledgement waits for the record.
#[tokio::test]
async fn a_retained_message_is_acknowledged_when_the_bus_has_it_and_shown_at_once() {
    let plane = Plane::start().await;
    plane.bus.control.set(Mode::Keep);
    let mut client = Client::v5(plane.address, "c").await;
    client.send(Packet::Publish(retained("a", Qos::AtLeastOnce, "x"))).await;
    client.subscribed("a", Qos::AtMostOnce).await;
    assert_eq!(heard(&mut client, 1).await, ["a=x"]);
    client.hears_nothing().await;
    plane.bus.control.give(0, Err(Error::Unavailable("late".to_owned())));
    assert_eq!(client.puback().await.reason, ReasonCode::UnspecifiedError);
    // It is not retained, and nobody gets it any more.
    client.subscribed("a", Qos::AtMostOnce).await;
    client.hears_nothing().await;
    assert_eq!(records(&plane.bus).await, []);
}

#[tokio::test]
async fn a_full_topic_of_retained_messages_refuses_them() {
    let plane = Plane::start().await;
    plane.bus.control.set(Mode::Full(SubmitError::TopicFull));
    let mut client = Client::v5(plane.address, "c").await;
    client.send(Packet::Publish(retained("a", Qos::AtLeastOnce, "x"))).await;
    assert_eq!(client.puback().await.reason, ReasonCode::QuotaExceeded);
    client.publish("a", Qos::AtLeastOnce, 2, "not retained").await;
    assert_eq!(client.puback().await.reason, ReasonCode::NoMatchingSubscribers);
    assert_eq!(plane.metric("tbmq_mqtt_retained_messages"), 0);
}

#[tokio::test]
async fn a_full_bus_delays_a_retained_message_and_one_that_never_gets_there_is_not_retained() {
    let plane = Plane::start().await;
    plane.bus.control.set(Mode::Full(SubmitError::BusFull));
    let mut client = Client::v5(plane.address, "c").await;
    client.send(Packet::Publish(retained("a", Qos::AtLeastOnce, "x"))).await;
    until(|| plane.metric("tbmq_mqtt_retained_messages") == 1).await;
    plane.bus.control.set(Mode::Pass);
    assert_eq!(client.puback().await.reason, ReasonCode::Success);
    plane.bus.control.set(Mode::Full(SubmitError::BusFull));
    client.send(Packet::Publish(retained("b", Qos::AtLeastOnce, "x"))).await;
    until(|| plane.metric("tbmq_mqtt_retained_messages") == 2).await;
    // The connection ends while its record waits: it is given up after 2 s.
    let _second = Client::v5(plane.address, "c").await;
    until(|| plane.metric("tbmq_mqtt_retained_messages") == 1).await;
    assert_eq!(records(&plane.bus).await.len(), 1);
}

#[tokio::test]
async fn what_there_is_no_room_for_is_refused_with_its_reason() {
    let mut config = config();
    config.mqtt.retain_msg.messages_max = 1.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let mut client = Client::v5(plane.address, "c").await;
    client.subscribed("b", Qos::AtMostOnce).await;
    retain(&mut client, "a", "x").await;
    client.send(Packet::Publish(retained("b", Qos::AtLeastOnce, "x"))).await;
    assert_eq!(client.puback().await.reason, ReasonCode::QuotaExceeded);
    client.hears_nothing().await;
    client.send(Packet::Publish(retained("b", Qos::AtMostOnce, "only delivered"))).await;
    assert_eq!(text(&client.message().await), "only delivered");
    retain(&mut client, "a", "y").await;
    retain(&mut client, "a", "").await;
    until(|| plane.metric("tbmq_mqtt_retained_messages") == 0).await;
    retain(&mut client, "b", "z").await;
    assert_eq!(text(&client.message().await), "z");
    assert_eq!(plane.metric("tbmq_mqtt_retained_limit_reached_total"), 2);
}

/// [MQTT5-3.2.2-13] [MQTT5-3.2.2-14]
#[tokio::test]
async fn a_server_that_retains_nothing_says_so_and_refuses_to() {
    let mut config = config();
    config.mqtt.retain_msg.available = false;
    let plane = Plane::with(TestBus::new(), config).await;
    let (mut client, connack) = Client::with(plane.address, connect_packet(ProtocolVersion::V5, "c")).await;
    assert_eq!(number(&connack, PropertyId::RetainAvailable), Some(0));
    client.send(Packet::Publish(retained("a", Qos::AtLeastOnce, "x"))).await;
    client.is_told(ReasonCode::RetainNotSupported).await;
    let mut connect = connect_packet(ProtocolVersion::V5, "will");
    connect.will = Some(tbmq_mqtt::packet::Will { retain: true, ..will("wills", "gone") });
    let mut refused = Client::open(plane.address, ProtocolVersion::V5).await;
    refused.send(Packet::Connect(Box::new(connect))).await;
    match refused.next().await {
        Some(Packet::ConnAck(connack)) => assert_eq!(connack.reason, ReasonCode::RetainNotSupported),
        other => panic!("{other:?}"),
    }
    // A 3.x client can't be told.
    let mut old = Client::connected(plane.address, ProtocolVersion::V311, "old").await;
    retain(&mut old, "a", "x").await;
    old.subscribed("a", Qos::AtMostOnce).await;
    old.hears_nothing().await;
}

/// [MQTT5-3.3.2-5]
#[tokio::test]
async fn an_expired_retained_message_is_not_sent_and_removed() {
    let mut config = config();
    config.mqtt.retain_msg.expiry_processing_period_ms = 20.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let mut client = Client::v5(plane.address, "c").await;
    for (topic, expiry_s) in [("a/now", 0), ("a/later", 60)] {
        let mut packet = retained(topic, Qos::AtLeastOnce, "x");
        packet.properties =
            PropertiesBuilder::new().number(PropertyId::MessageExpiryInterval, expiry_s).build();
        client.send(Packet::Publish(packet)).await;
        assert!(!client.puback().await.reason.is_error());
    }
    client.subscribed("a/#", Qos::AtMostOnce).await;
    assert_eq!(heard(&mut client, 1).await, ["a/later=x"]);
    until(|| plane.metric("tbmq_mqtt_retained_messages") == 1).await;
    client.hears_nothing().await;
    let all = records(&plane.bus).await;
    let tombstones: Vec<_> = all.iter().filter(|record| record.value.is_none()).collect();
    assert_eq!(tombstones.len(), 1);
    assert_eq!(tombstones[0].key.as_deref(), Some(b"a/now".as_slice()));
}

/// A client that takes 10 at a time, and slowly, gets a great many retained messages; others lose nothing by it.
#[tokio::test]
async fn a_great_many_retained_messages_come_at_the_pace_of_the_client() {
    const TOPICS: u16 = 5000;
    let mut config = config();
    config.mqtt.flow_control.delayed_queue_max_size = 4.try_into().unwrap();
    config.mqtt.outbound_queue_messages_max = 16.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    for number in 0..TOPICS {
        publisher.send(Packet::Publish(retained(&format!("t/{number}/x"), Qos::AtLeastOnce, "x"))).await;
        publisher.puback().await;
    }
    let mut connect = connect_packet(ProtocolVersion::V5, "slow");
    connect.properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, 10).build();
    let (mut slow, _) = Client::with(plane.address, connect).await;
    slow.subscribed("t/+/x", Qos::AtLeastOnce).await;
    let (mut heard, mut live) = (Vec::new(), 0);
    while heard.len() < usize::from(TOPICS) {
        let message = slow.message().await;
        if message.retain {
            heard.push(message.topic.to_string());
        } else {
            live += 1;
        }
        if heard.len() % 500 == 0 && live == heard.len() / 500 - 1 {
            // What is published meanwhile comes, too.
            publisher.publish("t/live/x", Qos::AtLeastOnce, 1, "live").await;
            assert!(!publisher.puback().await.reason.is_error());
        }
        slow.send(Packet::PubAck(Ack::new(message.packet_id.unwrap(), ReasonCode::Success))).await;
    }
    heard.sort_unstable();
    heard.dedup();
    assert_eq!(heard.len(), usize::from(TOPICS));
    assert!(live >= 8, "{live}");
    assert_eq!(plane.metric("tbmq_mqtt_connections_ended_total{reason=\"SlowConsumer\"}"), 0);
}

#[tokio::test]
async fn an_unsubscribe_ends_the_retained_messages_that_are_still_to_come() {
    let plane = Plane::start().await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    for number in 0..10 {
        retain(&mut publisher, &format!("t/{number}"), "x").await;
    }
    let mut connect = connect_packet(ProtocolVersion::V5, "c");
    connect.properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, 1).build();
    let (mut client, _) = Client::with(plane.address, connect).await;
    client.subscribed("#", Qos::AtLeastOnce).await;
    let first = client.message().await;
    client.unsubscribe(&["#"]).await;
    client.send(Packet::PubAck(Ack::new(first.packet_id.unwrap(), ReasonCode::Success))).await;
    client.hears_nothing().await;
}

/// Two filters of one SUBSCRIBE get theirs each, in their order.
#[tokio::test]
async fn each_subscription_of_a_subscribe_gets_its_retained_messages() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    for topic in ["a", "b"] {
        retain(&mut client, topic, "x").await;
    }
    let subscriptions = ["b", "+", "nobody"].map(|filter| subscription(filter, Qos::AtMostOnce)).to_vec();
    client
        .send(Packet::Subscribe(Subscribe { packet_id: 1, subscriptions, properties: Properties::NONE }))
        .await;
    assert!(matches!(client.next().await, Some(Packet::SubAck(_))));
    assert_eq!(heard(&mut client, 3).await, ["b=x", "a=x", "b=x"]);
    client.hears_nothing().await;
}

#[tokio::test]
async fn a_retained_message_that_another_node_has_written_is_shown() {
    let bus = TestBus::new();
    let topic = Catalogue::default().retained();
    let value = prost::Message::encode_to_vec(&tbmq_proto::queue::RetainedMsgProto {
        payload: "x".into(),
        qos: 1,
        topic: "a".to_owned(),
        ..Default::default()
    });
    for value in [b"\xff", &*value] {
        put(&bus, &topic, "a", Some(value), None).await;
    }
    let plane = Plane::with(bus, config()).await;
    assert_eq!(plane.metric("tbmq_mqtt_retained_messages"), 1);
    assert_eq!(plane.metric("tbmq_mqtt_retained_bad_records_total"), 1);
    let mut client = Client::v5(plane.address, "c").await;
    client.subscribed("a", Qos::AtMostOnce).await;
    assert_eq!(heard(&mut client, 1).await, ["a=x"]);
}
