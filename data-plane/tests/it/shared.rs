//! Shared subscriptions.

use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Ack, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
};

use crate::{
    client::{Client, connect_packet, publish, subscription, text},
    plane::{Plane, until},
};

async fn acknowledge(client: &mut Client, message: &Publish) {
    client.send(Packet::PubAck(Ack::new(message.packet_id.unwrap(), ReasonCode::Success))).await;
}

/// Publishes these payloads at QoS 1 and waits for each acknowledgement.
async fn published(publisher: &mut Client, topic: &str, payloads: &[&'static str]) {
    for (packet_id, payload) in (1..).zip(payloads) {
        publisher.publish(topic, Qos::AtLeastOnce, packet_id, payload).await;
        assert_eq!(publisher.puback().await.packet_id, packet_id);
    }
}

/// [MQTT5-4.8.2-3]
#[tokio::test]
async fn members_of_all_versions_take_turns_each_at_its_own_quality() {
    let plane = Plane::start().await;
    let mut old = Client::connected(plane.address, ProtocolVersion::V311, "old").await;
    old.subscribed("$share/g/a/+", Qos::AtMostOnce).await;
    let mut new = Client::v5(plane.address, "new").await;
    let properties = PropertiesBuilder::new().number(PropertyId::SubscriptionIdentifier, 7).build();
    new.subscribe(vec![subscription("$share/g/a/+", Qos::AtLeastOnce)], properties).await;
    // Another group, and one who shares with nobody, get everything.
    let mut alone = Client::v5(plane.address, "alone").await;
    alone.subscribed("$share/h/#", Qos::AtMostOnce).await;
    alone.subscribed("a/b", Qos::AtMostOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    published(&mut publisher, "a/b", &["1", "2", "3", "4"]).await;
    for expected in ["1", "3"] {
        let message = old.message().await;
        assert_eq!((text(&message), message.qos), (expected, Qos::AtMostOnce));
    }
    for expected in ["2", "4"] {
        let message = new.message().await;
        assert_eq!((text(&message), message.qos), (expected, Qos::AtLeastOnce));
        assert_eq!(message.properties.number(PropertyId::SubscriptionIdentifier), Some(7));
    }
    for expected in ["1", "1", "2", "2", "3", "3", "4", "4"] {
        assert_eq!(text(&alone.message().await), expected);
    }
    old.hears_nothing().await;
    new.hears_nothing().await;
}

/// [MQTT5-4.8.2-5]
#[tokio::test]
async fn what_a_member_did_not_acknowledge_goes_to_another_in_order() {
    let plane = Plane::start().await;
    let mut connect = connect_packet(ProtocolVersion::V5, "leaves");
    connect.properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, 2).build();
    let (mut leaves, _) = Client::with(plane.address, connect).await;
    leaves.subscribed("$share/g/a", Qos::ExactlyOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    published(&mut publisher, "a", &["acknowledged"]).await;
    let message = leaves.message().await;
    acknowledge(&mut leaves, &message).await;
    publisher.publish("a", Qos::ExactlyOnce, 9, "begun at 2").await;
    assert!(matches!(publisher.next().await, Some(Packet::PubRec(_))));
    assert_eq!(text(&leaves.message().await), "begun at 2");
    published(&mut publisher, "a", &["sent", "waits", "waits, too"]).await;
    assert_eq!(text(&leaves.message().await), "sent");
    let mut stays = Client::v5(plane.address, "stays").await;
    stays.subscribed("$share/g/a", Qos::AtLeastOnce).await;
    drop(leaves);
    for expected in ["sent", "waits", "waits, too"] {
        let message = stays.message().await;
        assert_eq!((text(&message), message.dup), (expected, false));
    }
    stays.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_delivered_again_total"), 3);
}

#[tokio::test]
async fn a_group_whose_members_have_all_left_is_gone() {
    let plane = Plane::start().await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let mut member = Client::v5(plane.address, "member").await;
    member.subscribed("$share/g/a", Qos::AtLeastOnce).await;
    published(&mut publisher, "a", &["unacknowledged"]).await;
    assert_eq!(text(&member.message().await), "unacknowledged");
    drop(member);
    until(|| plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"NoMember\"}") == 1).await;
    publisher.publish("a", Qos::AtLeastOnce, 5, "nobody").await;
    assert_eq!(publisher.puback().await.reason, ReasonCode::NoMatchingSubscribers);
}

/// A subscription is known by its share name and its filter. [MQTT-3.10.4-1] [MQTT5-3.10.4-1]
#[tokio::test]
async fn one_client_may_have_a_filter_alone_and_in_two_groups() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    for filter in ["a", "$share/g/a", "$share/h/a"] {
        client.subscribed(filter, Qos::AtMostOnce).await;
    }
    client.publish("a", Qos::AtMostOnce, 0, "x").await;
    for _ in 0..3 {
        assert_eq!(text(&client.message().await), "x");
    }
    assert_eq!(
        client.unsubscribe(&["a", "$share/g/a", "$share/x/a"]).await,
        [ReasonCode::Success, ReasonCode::Success, ReasonCode::NoSubscriptionExisted]
    );
    client.publish("a", Qos::AtMostOnce, 0, "y").await;
    assert_eq!(text(&client.message().await), "y");
    client.hears_nothing().await;
}

/// [MQTT5-3.8.3-4]
#[tokio::test]
async fn a_shared_subscription_with_no_local_is_a_protocol_error() {
    let plane = Plane::start().await;
    let mut client = Client::v5(plane.address, "c").await;
    let mut wanted = subscription("$share/g/a", Qos::AtMostOnce);
    wanted.no_local = true;
    client
        .send(Packet::Subscribe(tbmq_mqtt::packet::Subscribe {
            packet_id: 1,
            subscriptions: vec![wanted],
            properties: Properties::NONE,
        }))
        .await;
    client.is_told(ReasonCode::ProtocolError).await;
}

/// [MQTT5-4.8.2-6]
#[tokio::test]
async fn a_message_that_a_member_refuses_goes_to_nobody_else() {
    let plane = Plane::start().await;
    let mut refuses = Client::v5(plane.address, "refuses").await;
    refuses.subscribed("$share/g/a", Qos::AtLeastOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    published(&mut publisher, "a", &["x"]).await;
    let message = refuses.message().await;
    let mut other = Client::v5(plane.address, "other").await;
    other.subscribed("$share/g/a", Qos::AtLeastOnce).await;
    refuses.send(Packet::PubAck(Ack::new(message.packet_id.unwrap(), ReasonCode::UnspecifiedError))).await;
    refuses.hears_nothing().await;
    drop(refuses);
    until(|| plane.metric("tbmq_mqtt_connections") == 2).await;
    other.hears_nothing().await;
}

#[tokio::test]
async fn a_group_of_which_one_is_behind_serves_the_others_and_cuts_nobody() {
    let mut config = crate::plane::config();
    config.mqtt.outbound_queue_messages_max = 8.try_into().unwrap();
    config.mqtt.flow_control.delayed_queue_max_size = 1.try_into().unwrap();
    let plane = Plane::with(crate::bus::TestBus::new(), config).await;
    let mut connect = connect_packet(ProtocolVersion::V5, "slow");
    connect.properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, 1).build();
    let (mut slow, _) = Client::with(plane.address, connect).await;
    slow.subscribed("$share/g/a", Qos::AtLeastOnce).await;
    let mut quick = Client::v5(plane.address, "quick").await;
    quick.subscribed("$share/g/a", Qos::AtLeastOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let mut quick_has = 0;
    for _ in 0..60 {
        publisher.send(Packet::Publish(publish("a", Qos::AtLeastOnce, 1, "x"))).await;
        assert_eq!(publisher.puback().await.reason, ReasonCode::Success);
        // One in flight, one delayed and eight in the mailbox at most are left with the slow one.
        while plane.metric("tbmq_mqtt_messages_delivered_total") > quick_has + 10 {
            let message = quick.message().await;
            acknowledge(&mut quick, &message).await;
            quick_has += 1;
        }
    }
    assert_eq!(quick_has, 50);
    quick.hears_nothing().await;
    assert_eq!(text(&slow.message().await), "x");
    slow.hears_nothing().await;
}
