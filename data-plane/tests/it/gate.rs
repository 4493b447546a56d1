use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tbmq_bus::{Bus as _, ReaderConfig, ReaderEvent, Start, TopicPartition};
use tbmq_mqtt::packet::{Qos, ReasonCode};
use tbmq_proto::{
    topic::Catalogue,
    wire::{NodeApplied, Role},
};

use crate::{
    bus::TestBus,
    client::Client,
    plane::{Plane, config, context, filter_record, integration, raw_filter_record, until},
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
    raw_filter_record(&bus, "not an id", Some(b""), "1").await;
    raw_filter_record(&bus, &key, Some(b"\xff\xff\xff"), "1").await;
    raw_filter_record(&bus, &key, Some(b""), "many").await;
    filter_record(&bus, &key, Some(&["a/#/b"]), 1).await;
    let id = integration(&bus, 2, &["a"]).await;
    let plane = Plane::with(bus, config()).await;
    assert_eq!(plane.metric("tbmq_subscriptions_bad_records_total"), 4);
    raw_filter_record(&plane.bus, "another", None, "1").await;
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
