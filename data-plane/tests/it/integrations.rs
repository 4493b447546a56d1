use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Ack, Packet, ProtocolVersion, Qos, ReasonCode},
};

use crate::{
    bus::Mode,
    client::{Client, publish},
    plane::{Plane, filter_record, until},
};

#[tokio::test]
async fn a_publish_is_one_record_per_integration_however_many_filters_match() {
    let plane = Plane::start().await;
    let one = plane.integration(1, &["a/#", "a/+", "a/b"]).await;
    let other = plane.integration(2, &["+/b"]).await;
    let silent = plane.integration(3, &["c"]).await;
    let mut client = Client::v5(plane.address, "device").await;
    let mut packet = publish("a/b", Qos::ExactlyOnce, 300, "payload");
    packet.retain = true;
    packet.properties =
        PropertiesBuilder::new().user("k", "v").number(PropertyId::MessageExpiryInterval, 60).build();
    client.send(Packet::Publish(packet)).await;
    assert_eq!(client.next().await, Some(Packet::PubRec(Ack::new(300, ReasonCode::Success))));
    for id in [one, other] {
        let records = plane.records(id, 1).await;
        let (record, message) = &records[0];
        assert_eq!(record.key.as_deref(), Some(b"a/b".as_slice()));
        assert!(record.headers.is_empty());
        assert_eq!(message.tbmq_node, "node-1");
        let left_ms = message.expires_at_ms - message.timestamp;
        assert!((59_000..=60_000).contains(&left_ms), "{left_ms}");
        let published = message.publish_msg_proto.as_ref().unwrap();
        assert_eq!(
            (
                &*published.client_id,
                published.packet_id,
                &*published.payload,
                published.retain,
                published.qos
            ),
            ("device", 300, b"payload".as_slice(), true, 2)
        );
        assert_eq!(published.topic_name, "a/b");
        assert_eq!((&*published.user_properties[0].key, &*published.user_properties[0].value), ("k", "v"));
        assert_eq!(plane.count(id).await, 1);
    }
    assert_eq!(plane.count(silent).await, 0);
}

#[tokio::test]
async fn a_repeated_qos_2_publish_is_recorded_once() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["a"]).await;
    let mut client = Client::connected(plane.address, ProtocolVersion::V311, "c").await;
    let ack = Ack::new(4, ReasonCode::Success);
    for dup in [false, true] {
        let mut packet = publish("a", Qos::ExactlyOnce, 4, "x");
        packet.dup = dup;
        client.send(Packet::Publish(packet)).await;
        assert_eq!(client.next().await, Some(Packet::PubRec(ack.clone())));
    }
    client.send(Packet::PubRel(ack.clone())).await;
    assert_eq!(client.next().await, Some(Packet::PubComp(ack)));
    assert_eq!(plane.count(id).await, 1);
    client.publish("a", Qos::ExactlyOnce, 4, "y").await;
    assert!(matches!(client.next().await, Some(Packet::PubRec(_))));
    assert_eq!(plane.count(id).await, 2);
}

#[tokio::test]
async fn acknowledgements_wait_for_the_bus_and_leave_in_the_order_of_the_publishes() {
    let plane = Plane::start().await;
    plane.integration(1, &["a"]).await;
    plane.bus.control.set(Mode::Keep);
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("a", Qos::AtLeastOnce, 11, "1").await;
    client.publish("a", Qos::ExactlyOnce, 12, "2").await;
    client.publish("a", Qos::AtLeastOnce, 13, "3").await;
    // Nobody gets this one: it waits for the others all the same.
    client.publish("nobody", Qos::AtLeastOnce, 14, "4").await;
    until(|| plane.bus.control.kept() == 3).await;
    client.hears_nothing().await;
    plane.bus.control.give(2, Ok(()));
    client.hears_nothing().await;
    plane.bus.control.give(1, Ok(()));
    client.hears_nothing().await;
    plane.bus.control.give(0, Ok(()));
    assert_eq!(client.next().await, Some(Packet::PubAck(Ack::new(11, ReasonCode::Success))));
    assert_eq!(client.next().await, Some(Packet::PubRec(Ack::new(12, ReasonCode::Success))));
    assert_eq!(client.next().await, Some(Packet::PubAck(Ack::new(13, ReasonCode::Success))));
    assert_eq!(client.next().await, Some(Packet::PubAck(Ack::new(14, ReasonCode::NoMatchingSubscribers))));
}

#[tokio::test]
async fn deliveries_to_clients_do_not_wait_for_the_bus() {
    let plane = Plane::start().await;
    plane.integration(1, &["a"]).await;
    plane.bus.control.set(Mode::Keep);
    let mut subscriber = Client::v5(plane.address, "subscriber").await;
    subscriber.subscribed("a", Qos::AtMostOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    publisher.publish("a", Qos::AtLeastOnce, 1, "x").await;
    subscriber.message().await;
    publisher.hears_nothing().await;
}

#[tokio::test]
async fn filters_are_followed_and_an_older_revision_changes_nothing() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["a"]).await;
    let integrations = || plane.metric("tbmq_subscriptions_integrations");
    let mut client = Client::v5(plane.address, "c").await;
    let reason = async |client: &mut Client, topic: &str| {
        client.publish(topic, Qos::AtLeastOnce, 1, "x").await;
        client.puback().await.reason
    };
    filter_record(&plane.bus, &id.to_string(), Some(&["b"]), 7).await;
    filter_record(&plane.bus, &id.to_string(), Some(&["a"]), 6).await;
    until(|| plane.metric("tbmq_subscriptions_stale_records_total") == 1).await;
    assert_eq!(reason(&mut client, "a").await, ReasonCode::NoMatchingSubscribers);
    assert_eq!(reason(&mut client, "b").await, ReasonCode::Success);
    filter_record(&plane.bus, &id.to_string(), None, 8).await;
    until(|| integrations() == 0).await;
    assert_eq!(reason(&mut client, "b").await, ReasonCode::NoMatchingSubscribers);
    assert_eq!(plane.count(id).await, 1);
}

#[tokio::test]
async fn thousands_of_pipelined_publishes_are_all_recorded_in_order() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["#"]).await;
    let mut client = Client::connected(plane.address, ProtocolVersion::V311, "c").await;
    let (mut sent, mut acknowledged) = (0_u16, 0);
    while acknowledged < 5000 {
        while sent < 5000 && sent - acknowledged < 2000 {
            sent += 1;
            client.publish("t", Qos::AtLeastOnce, sent, "x").await;
        }
        acknowledged += 1;
        assert_eq!(client.puback().await.packet_id, acknowledged);
    }
    let records = plane.records(id, 5000).await;
    let ids: Vec<_> =
        records.iter().map(|(_, record)| record.publish_msg_proto.as_ref().unwrap().packet_id).collect();
    assert_eq!(ids, (1..=5000).collect::<Vec<_>>());
}
