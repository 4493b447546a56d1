use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use prost::Message as _;
use tbmq_bus::{Bus as _, ReaderConfig, ReaderEvent, Start, TopicPartition};
use tbmq_mqtt::packet::{Qos, ReasonCode};
use tbmq_proto::{
    topic::Catalogue,
    wire::{NodeApplied, Role},
};
use tokio::net::TcpStream;

use crate::{
    bus::TestBus,
    client::Client,
    plane::{Plane, config, context, filter_record, integration, put, until},
};

/// The newest record that a data plane wrote about itself.
pub(crate) async fn last_applied(bus: &Arc<TestBus>) -> NodeApplied {
    let mut reader = bus.reader(ReaderConfig::new("test", None)).await.unwrap();
    reader.add(&TopicPartition::new(Catalogue::default().node_applied().name, 0), Start::Earliest);
    let mut last = NodeApplied::default();
    loop {
        match tokio::time::timeout(Duration::from_secs(20), reader.next()).await.unwrap() {
            ReaderEvent::Batch { records, .. } => {
                let value = records.last().unwrap().value.clone().unwrap();
                last = NodeApplied::decode(value).unwrap();
            }
            ReaderEvent::End { .. } => return last,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_first_publish_after_a_start_reaches_integrations_that_were_there_before() {
    let bus = TestBus::new();
    let id = integration(&bus, 1, &["a"]).await;
    for number in 2..700 {
        let key = uuid::Uuid::from_u128(number).to_string();
        filter_record(&bus, &key, Some(&["other"]), number as u64).await;
    }
    let plane = Plane::with(bus, config()).await;
    assert!(plane.health.is_up(), "{:?}", plane.health.down());
    assert_eq!(plane.metric("tbmq_subscriptions_integrations"), 699);
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("a", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::Success);
    assert_eq!(plane.count(id).await, 1);
}

#[tokio::test]
async fn bad_records_are_counted_and_skipped() {
    let bus = TestBus::new();
    let key = uuid::Uuid::from_u128(1).to_string();
    let topic = Catalogue::default().integration_subscriptions();
    put(&bus, &topic, "not an id", Some(b""), Some("1")).await;
    put(&bus, &topic, &key, Some(b"\xff\xff\xff"), Some("1")).await;
    put(&bus, &topic, &key, Some(b""), Some("many")).await;
    filter_record(&bus, &key, Some(&["a/#/b"]), 1).await;
    let id = integration(&bus, 2, &["a"]).await;
    let plane = Plane::with(bus, config()).await;
    assert_eq!(plane.metric("tbmq_subscriptions_bad_records_total"), 4);
    put(&plane.bus, &topic, "another", None, Some("1")).await;
    until(|| plane.metric("tbmq_subscriptions_bad_records_total") == 5).await;
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("a", Qos::AtLeastOnce, 1, "x").await;
    client.puback().await;
    assert_eq!(plane.count(id).await, 1);
}

#[tokio::test]
async fn what_is_applied_is_told() {
    let plane = Plane::start().await;
    plane.integration(1, &["a"]).await;
    plane.integration(2, &["a"]).await;
    let topic = Catalogue::default().integration_subscriptions().name;
    let applied = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let applied = last_applied(&plane.bus).await;
            if applied.positions.iter().any(|position| position.position == 2) {
                return applied;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!((&*applied.service_id, applied.role(), applied.leaving), ("node-1", Role::DataPlane, false));
    assert_eq!((&*applied.positions[0].topic, applied.positions[0].partition), (&*topic, 0));
    assert_eq!(applied.addresses, [format!("mqtt://{}", plane.address)]);
}

#[tokio::test]
async fn a_service_id_or_endpoint_that_can_not_be_used_stops_the_start() {
    let bus = TestBus::new();
    let mut bad = context(&bus);
    bad.identity.service_id = "a b".to_owned();
    let error = tbmq_data_plane::start(config(), bad).await.unwrap_err();
    assert!(error.to_string().contains("TB_SERVICE_ID"), "{error}");
    let mut config = config();
    config.control.grpc.endpoints = vec!["not a url".to_owned()];
    let error = tbmq_data_plane::start(config, context(&bus)).await.unwrap_err();
    assert!(error.is::<tbmq_service::shell::Misconfigured>(), "{error}");
    assert!(error.to_string().contains("not a url"), "{error}");
}

#[tokio::test]
async fn while_the_bus_is_away_at_the_start_nothing_listens_and_the_health_says_why() {
    let bus = TestBus::new();
    let id = integration(&bus, 1, &["a"]).await;
    bus.is_away.store(true, Ordering::Relaxed);
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = config();
    config.listener.tcp.bind_port = address.port();
    let context = context(&bus);
    let health = context.health.clone();
    let starting = tokio::spawn(tbmq_data_plane::start(config, context));
    until(|| health.down().iter().any(|(_, reason)| reason.contains("nobody answers"))).await;
    assert_eq!(health.down()[0].0, "integration-subscriptions");
    assert!(TcpStream::connect(address).await.is_err());
    bus.is_away.store(false, Ordering::Relaxed);
    let running = starting.await.unwrap().unwrap();
    assert!(health.is_up(), "{:?}", health.down());
    let mut client = Client::v5(address, "c").await;
    client.publish("a", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::Success);
    let partition = TopicPartition::new(Catalogue::default().messages(id, 1).name, 0);
    assert_eq!(bus.admin().bounds(&[partition]).await.unwrap()[0].end, 1);
    drop(running);
}

#[tokio::test]
async fn where_no_control_plane_ever_was_clients_are_served() {
    let mut config = config();
    config.control.grpc.endpoints = vec!["http://127.0.0.1:1".to_owned()];
    let plane = Plane::with(TestBus::new(), config).await;
    let mut client = Client::v5(plane.address, "c").await;
    client.subscribed("a", Qos::AtMostOnce).await;
    client.publish("a", Qos::AtMostOnce, 0, "x").await;
    client.message().await;
}

#[tokio::test]
async fn a_plane_started_anew_while_the_control_plane_is_away_serves_what_is_on_the_bus() {
    let mut config = config();
    config.control.grpc.endpoints = vec!["http://127.0.0.1:1".to_owned()];
    let before = Plane::with(TestBus::new(), config.clone()).await;
    let kept = before.integration(1, &["kept"]).await;
    let gone = before.integration(2, &["gone"]).await;
    filter_record(&before.bus, &gone.to_string(), None, 2).await;
    until(|| before.metric("tbmq_subscriptions_integrations") == 1).await;
    let bus = before.bus.clone();
    before.running.drain().await;
    let plane = Plane::with(bus, config).await;
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("kept", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::Success);
    client.publish("gone", Qos::AtLeastOnce, 2, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::NoMatchingSubscribers);
    assert_eq!((plane.count(kept).await, plane.count(gone).await), (1, 0));
}

#[tokio::test]
async fn filters_stay_known_when_their_topic_is_deleted_until_they_are_written_again() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["kept"]).await;
    let topic = Catalogue::default().integration_subscriptions();
    plane.bus.admin().delete_topic(&topic.name).await.unwrap();
    // The plane makes it anew, empty, and has read that once its position says so.
    while last_applied(&plane.bus).await.positions[0].position != 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("kept", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::Success);
    filter_record(&plane.bus, &id.to_string(), Some(&["moved"]), 2).await;
    let other = plane.integration(3, &["other"]).await;
    client.publish("moved", Qos::AtLeastOnce, 2, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::Success);
    client.publish("kept", Qos::AtLeastOnce, 3, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::NoMatchingSubscribers);
    assert_eq!((plane.count(id).await, plane.count(other).await), (2, 0));
}

#[tokio::test]
async fn the_older_of_two_processes_with_one_service_id_ends_itself_and_the_newer_goes_on() {
    let mut older = Plane::start().await;
    older.integration(1, &["a"]).await;
    let newer = Plane::with(older.bus.clone(), config()).await;
    let error = tokio::time::timeout(Duration::from_secs(20), older.running.failed()).await.unwrap();
    let told = last_applied(&older.bus).await;
    let text = error.to_string();
    for part in ["node-1", &*told.incarnation, "TB_SERVICE_ID of its own"] {
        assert!(text.contains(part), "{text}");
    }
    older.running.drain().await;
    let told = last_applied(&newer.bus).await;
    assert!(!told.leaving && told.addresses == [format!("mqtt://{}", newer.address)], "{told:?}");
    let mut client = Client::v5(newer.address, "c").await;
    client.publish("a", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::Success);
}

#[tokio::test]
async fn what_a_predecessor_with_a_fast_clock_left_behind_ends_nobody() {
    let bus = TestBus::new();
    let topic = Catalogue::default().node_applied();
    let left = NodeApplied {
        service_id: "node-1".to_owned(),
        role: Role::DataPlane.into(),
        incarnation: "ffffffff-ffff-7fff-bfff-ffffffffffff".to_owned(),
        ..NodeApplied::default()
    };
    let left = left.encode_to_vec();
    put(&bus, &topic, "node-1", Some(&left), None).await;
    let mut plane = Plane::with(bus, config()).await;
    // A living one, though, does: it is written after the start.
    until_told(&plane).await;
    put(&plane.bus, &topic, "node-1", Some(&left), None).await;
    let error = tokio::time::timeout(Duration::from_secs(20), plane.running.failed()).await.unwrap();
    assert!(error.to_string().contains("ffffffff-ffff"), "{error}");
}

/// Waits until the plane has said that it lives, and has read that.
async fn until_told(plane: &Plane) {
    plane.integration(1, &["a"]).await;
    while last_applied(&plane.bus).await.positions.iter().all(|position| position.position == 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
