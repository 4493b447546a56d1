//! `$SYS` and other topics that begin with `$`.

use std::{collections::BTreeMap, time::Duration};

use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Packet, ProtocolVersion, Publish, Qos, ReasonCode, Subscription},
};

use crate::{
    bus::TestBus,
    client::{Client, publish, subscription, text},
    plane::{Plane, config},
};

async fn plane(interval: Duration) -> Plane {
    let mut config = config();
    config.mqtt.sys_interval = interval;
    Plane::with(TestBus::new(), config).await
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_new_subscription_gets_the_figures_and_established_ones_what_changes() {
    let plane = plane(Duration::from_millis(50)).await;
    let mut client = Client::v5(plane.address, "c").await;
    client.send(Packet::Publish(Publish { retain: true, ..publish("a", Qos::AtMostOnce, 0, "x") })).await;
    client.subscribed("$share/g/a", Qos::AtMostOnce).await;
    let wanted =
        Subscription { retain_as_published: true, ..subscription("$SYS/broker/#", Qos::AtLeastOnce) };
    client.subscribe(vec![wanted], Properties::NONE).await;
    let mut figures: BTreeMap<String, String> = BTreeMap::new();
    let is_there = |figures: &BTreeMap<String, String>, name: &str, value: &str| {
        figures.get(&format!("$SYS/broker/{name}")).is_some_and(|found| found == value)
    };
    while ![
        ("clients/connected", "1"),
        ("clients/total", "1"),
        ("clients/maximum", "1"),
        ("subscriptions/count", "2"),
        ("shared_subscriptions/count", "1"),
        ("retained messages/count", "1"),
        ("publish/messages/received", "1"),
        ("messages/received", "4"),
        ("uptime", "1 seconds"),
    ]
    .iter()
    .all(|(name, value)| is_there(&figures, name, value))
    {
        let message = client.message().await;
        assert!(message.retain && message.qos == Qos::AtMostOnce, "{message:?}");
        figures.insert(message.topic.to_string(), text(&message).to_owned());
    }
    assert!(figures["$SYS/broker/version"].starts_with("TBMQ version "), "{figures:?}");
    assert_eq!(figures.len(), 16);
    for name in ["bytes/received", "bytes/sent", "messages/sent", "publish/messages/sent"] {
        let value: u64 = figures[&format!("$SYS/broker/{name}")].parse().unwrap();
        assert!(value > 0, "{name}");
    }
}

/// [MQTT-4.7.2-1] [MQTT5-4.7.2-1]
#[tokio::test]
async fn filters_that_begin_with_a_wildcard_get_no_topics_that_begin_with_a_dollar() {
    let plane = plane(NEVER).await;
    let mut client = Client::v5(plane.address, "c").await;
    for filter in ["#", "+/broker/version", "+/#", "+/+"] {
        client.subscribed(filter, Qos::AtMostOnce).await;
    }
    client
        .send(Packet::Publish(Publish { retain: true, ..publish("$own/b", Qos::AtLeastOnce, 1, "x") }))
        .await;
    assert!(!client.puback().await.reason.is_error());
    client.subscribed("#", Qos::AtMostOnce).await;
    client.hears_nothing().await;
    client.subscribed("$own/+", Qos::AtMostOnce).await;
    assert_eq!(text(&client.message().await), "x");
    client.subscribed("$SYS/broker/version", Qos::AtMostOnce).await;
    assert!(text(&client.message().await).starts_with("TBMQ version "));
}

/// [MQTT-4.7.2-1] [MQTT5-4.7.2-1]
#[tokio::test]
async fn clients_may_not_publish_to_sys() {
    let plane = plane(NEVER).await;
    let mut client = Client::v5(plane.address, "c").await;
    for topic in ["$SYS/broker/version", "$SYS"] {
        let packet = Publish { retain: true, ..publish(topic, Qos::AtLeastOnce, 1, "forged") };
        client.send(Packet::Publish(packet)).await;
        assert_eq!(client.puback().await.reason, ReasonCode::TopicNameInvalid);
    }
    client.subscribed("$SYS/broker/version", Qos::AtMostOnce).await;
    assert!(text(&client.message().await).starts_with("TBMQ version "));
    let mut old = Client::connected(plane.address, ProtocolVersion::V311, "old").await;
    old.publish("$SYS/x", Qos::AtLeastOnce, 1, "forged").await;
    assert_eq!(old.next().await, None);
}

#[tokio::test]
async fn an_interval_of_0_means_no_figures() {
    let plane = plane(Duration::ZERO).await;
    let mut client = Client::v5(plane.address, "c").await;
    client.subscribed("$SYS/#", Qos::AtMostOnce).await;
    client.hears_nothing().await;
}
