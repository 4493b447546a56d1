use std::{sync::atomic::Ordering, time::Duration};

use tbmq_bus::{Error, SubmitError};
use tbmq_mqtt::packet::{Ack, ProtocolVersion, Qos, ReasonCode};

use crate::{
    bus::{Mode, TestBus},
    client::{Client, connect_packet},
    plane::{Plane, config, context, until},
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
    assert_eq!(client.pubrec().await, Ack::new(2, ReasonCode::QuotaExceeded));
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

#[tokio::test]
async fn the_budget_of_a_topic_and_the_deadline_are_settings() {
    let mut config = config();
    config.mqtt.topic_in_flight_bytes_max = 1.try_into().unwrap();
    config.mqtt.produce_deadline = Duration::from_millis(300);
    let plane = Plane::with(TestBus::new(), config).await;
    plane.integration(1, &["a"]).await;
    // One record passes whatever its size, but no second beside it.
    plane.bus.inner.hold(true);
    let mut first = Client::v5(plane.address, "first").await;
    first.publish("a", Qos::AtLeastOnce, 1, "x").await;
    until(|| plane.metric("tbmq_mqtt_records_submitted_total") == 1).await;
    let mut second = Client::v5(plane.address, "second").await;
    second.publish("a", Qos::AtLeastOnce, 1, "y").await;
    assert_eq!(second.puback().await.reason, ReasonCode::QuotaExceeded);
    assert_eq!(plane.metric("tbmq_mqtt_records_refused_total{reason=\"TopicFull\"}"), 1);
    assert_eq!(first.puback().await.reason, ReasonCode::UnspecifiedError);
    assert_eq!(plane.metric("tbmq_mqtt_records_refused_total{reason=\"Unavailable\"}"), 1);
    plane.bus.inner.hold(false);
}

#[tokio::test]
async fn the_budget_of_the_node_is_a_setting() {
    let mut config = config();
    config.mqtt.node_in_flight_bytes_max = 1.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let (one, other) = (plane.integration(1, &["one"]).await, plane.integration(2, &["other"]).await);
    plane.bus.inner.hold(true);
    let mut first = Client::v5(plane.address, "first").await;
    first.publish("one", Qos::AtLeastOnce, 1, "x").await;
    until(|| plane.metric("tbmq_mqtt_records_submitted_total") == 1).await;
    let mut second = Client::v5(plane.address, "second").await;
    second.publish("other", Qos::AtLeastOnce, 1, "y").await;
    until(|| plane.metric("tbmq_mqtt_bus_full_total") > 0).await;
    assert_eq!(plane.metric("tbmq_mqtt_in_flight_limit_reached_total"), 0, "no connection's own limit");
    plane.bus.inner.hold(false);
    for client in [&mut first, &mut second] {
        assert_eq!(client.puback().await.reason, ReasonCode::Success);
    }
    assert_eq!((plane.count(one).await, plane.count(other).await), (1, 1));
}

#[tokio::test]
async fn a_deadline_that_is_too_short_to_be_kept_stops_the_start() {
    let bus = TestBus::new();
    let mut config = config();
    config.mqtt.produce_deadline = Duration::ZERO;
    let error = tbmq_data_plane::start(config, context(&bus)).await.unwrap_err();
    assert!(error.is::<tbmq_service::shell::Misconfigured>(), "{error}");
    assert!(error.to_string().contains("TBMQ_MQTT_PRODUCE_DEADLINE"), "{error}");
}

#[tokio::test]
async fn a_topic_that_does_not_answer_disturbs_no_other() {
    let plane = Plane::start().await;
    plane.integration(1, &["sick"]).await;
    let well = plane.integration(2, &["well"]).await;
    *plane.bus.control.only.lock() = Some("-000000000001".to_owned());
    plane.bus.control.set(Mode::Keep);
    let mut waiting = Client::v5(plane.address, "waiting").await;
    waiting.publish("sick", Qos::AtLeastOnce, 1, "x").await;
    waiting.publish("sick", Qos::AtMostOnce, 0, "x").await;
    until(|| plane.bus.control.kept() == 2).await;
    let mut other = Client::connected(plane.address, ProtocolVersion::V311, "other").await;
    for packet_id in 1..=100 {
        other.publish("well", Qos::AtLeastOnce, packet_id, "x").await;
        assert_eq!(other.puback().await.packet_id, packet_id);
    }
    assert_eq!(plane.count(well).await, 100);
    waiting.hears_nothing().await;
    for _ in 0..2 {
        plane.bus.control.give(0, Err(Error::Unavailable("late".to_owned())));
    }
    assert_eq!(waiting.puback().await, Ack::new(1, ReasonCode::UnspecifiedError));
    until(|| plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"BusRefused\"}") == 1).await;
    assert_eq!(plane.metric("tbmq_mqtt_sick_topics"), 0, "two misses are no illness");
}

#[tokio::test]
async fn while_the_bus_does_not_say_how_far_it_is_the_last_known_filters_serve() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["a"]).await;
    plane.bus.is_away.store(true, Ordering::Relaxed);
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("a", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::Success);
    plane.bus.is_away.store(false, Ordering::Relaxed);
    assert_eq!(plane.count(id).await, 1);
}
