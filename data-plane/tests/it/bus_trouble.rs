use std::{sync::atomic::Ordering, time::Duration};

use tbmq_bus::{Error, SubmitError};
use tbmq_mqtt::packet::{Ack, Packet, ProtocolVersion, Qos, ReasonCode};

use crate::{
    bus::{Mode, TestBus},
    client::{Client, connect_packet},
    plane::{Plane, config, until},
};

#[tokio::test]
async fn a_full_topic_refuses_version_5_closes_version_3_and_drops_qos_0() {
    let plane = Plane::start().await;
    plane.integration(1, &["full"]).await;
    plane.integration(2, &["well"]).await;
    *plane.bus.control.only.lock() = Some("-000000000001".to_owned());
    plane.bus.control.set(Mode::Full(SubmitError::TopicFull));
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("full", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(client.puback().await, Ack::new(1, ReasonCode::QuotaExceeded));
    client.publish("full", Qos::ExactlyOnce, 2, "x").await;
    assert_eq!(client.next().await, Some(Packet::PubRec(Ack::new(2, ReasonCode::QuotaExceeded))));
    // Another topic is none the worse for it.
    client.publish("well", Qos::AtLeastOnce, 3, "x").await;
    assert_eq!(client.puback().await, Ack::new(3, ReasonCode::Success));
    client.publish("full", Qos::AtMostOnce, 0, "x").await;
    client.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"BusRefused\"}"), 1);
    assert_eq!(plane.metric("tbmq_mqtt_records_refused_total{reason=\"TopicFull\"}"), 3);
    let mut old = Client::connected(plane.address, ProtocolVersion::V311, "old").await;
    old.publish("full", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(old.next().await, None);
}

#[tokio::test]
async fn a_record_that_is_not_written_is_never_acknowledged_as_if_it_were() {
    let plane = Plane::start().await;
    plane.integration(1, &["a"]).await;
    for error in [Error::Unavailable("late".to_owned()), Error::UnknownTopic("gone".to_owned())] {
        plane.bus.control.set(Mode::Fail(error));
        let mut client = Client::v5(plane.address, "c").await;
        client.publish("a", Qos::AtLeastOnce, 1, "x").await;
        assert_eq!(client.puback().await, Ack::new(1, ReasonCode::UnspecifiedError));
        let mut old = Client::connected(plane.address, ProtocolVersion::V311, "old").await;
        old.publish("a", Qos::ExactlyOnce, 1, "x").await;
        assert_eq!(old.next().await, None);
    }
}

#[tokio::test]
async fn a_full_bus_stops_reading_and_loses_nothing() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["a"]).await;
    plane.bus.control.set(Mode::Full(SubmitError::BusFull));
    let mut connect = connect_packet(ProtocolVersion::V5, "c");
    connect.keep_alive = 1;
    let (mut client, _) = Client::with(plane.address, connect).await;
    for packet_id in 1..=3 {
        client.publish("a", Qos::AtLeastOnce, packet_id, "x").await;
    }
    // Longer than the keep alive's patience, which does not run meanwhile: a second refusal tells that it is retried.
    tokio::time::sleep(Duration::from_millis(1800)).await;
    until(|| plane.bus.control.refused.load(Ordering::Relaxed) > 1).await;
    assert_eq!(plane.metric("tbmq_mqtt_connections"), 1);
    assert_eq!(plane.metric("tbmq_mqtt_messages_published_total"), 1, "the rest is not read");
    plane.bus.control.set(Mode::Pass);
    for packet_id in 1..=3 {
        assert_eq!(client.puback().await, Ack::new(packet_id, ReasonCode::Success));
    }
    assert_eq!(plane.count(id).await, 3);
}

#[tokio::test]
async fn a_client_with_too_much_in_flight_is_not_read() {
    let mut config = config();
    config.mqtt.in_flight_bytes_max = 10.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    plane.integration(1, &["a"]).await;
    plane.bus.control.set(Mode::Keep);
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("a", Qos::AtMostOnce, 0, "0123456789").await;
    client.publish("a", Qos::AtLeastOnce, 1, "x").await;
    until(|| plane.metric("tbmq_mqtt_in_flight_limit_reached_total") == 1).await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_published_total"), 1);
    plane.bus.control.give(0, Ok(()));
    until(|| plane.bus.control.kept() == 1).await;
    plane.bus.control.give(0, Ok(()));
    client.puback().await;
}

#[tokio::test]
async fn a_topic_that_misses_three_deadlines_is_only_probed_until_it_answers() {
    let plane = Plane::start().await;
    plane.integration(1, &["a"]).await;
    plane.bus.control.set(Mode::Fail(Error::Unavailable("late".to_owned())));
    let mut client = Client::v5(plane.address, "c").await;
    let publish = async |client: &mut Client| {
        client.publish("a", Qos::AtLeastOnce, 1, "x").await;
        client.puback().await.reason
    };
    for _ in 0..3 {
        assert_eq!(publish(&mut client).await, ReasonCode::UnspecifiedError);
    }
    assert_eq!(plane.metric("tbmq_mqtt_sick_topics"), 1);
    plane.bus.control.set(Mode::Pass);
    // Refused without the bus, until the next probe is due.
    assert_eq!(publish(&mut client).await, ReasonCode::UnspecifiedError);
    assert_eq!(plane.bus.control.submitted.load(Ordering::Relaxed), 3);
    while publish(&mut client).await != ReasonCode::Success {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(plane.metric("tbmq_mqtt_sick_topics"), 0);
    assert_eq!(publish(&mut client).await, ReasonCode::Success);
}
