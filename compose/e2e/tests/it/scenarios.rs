//! The scenarios of the seed, and what people rely on.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use tbmq_harness::{
    Need,
    client::{Client, Plan},
    http_sink::HttpSink,
    kafka::{Kafka, KafkaOptions},
    postgres::Postgres,
    ready,
};
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Packet, ProtocolVersion, Publish, Qos},
};
use tbmq_proto::{control::integration_status::Phase, ids::IntegrationId};
use tonic::Code;
use tonic_types::StatusExt as _;

use tbmq_e2e::{
    api::http,
    deployment::{Deployment, Plane},
    work,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn id(uid: &str) -> IntegrationId {
    uid.parse().unwrap()
}

fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

// Seed 000, "Validation Scenarios", 2 and 3; scenario 1 is below.
#[tokio::test(flavor = "multi_thread")]
async fn an_integration_is_validated_saved_subscribed_and_run() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;

    let mut bad = http("bad", &["s/#"], "not a url");
    let refused = api.create(bad.clone()).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "CONFIGURATION_REJECTED")
    );
    let violations = refused.get_details_bad_request().unwrap().field_violations;
    assert!(violations.iter().any(|violation| violation.field.contains("restEndpointUrl")), "{violations:?}");
    bad.display_name = "bad filter".to_owned();
    bad.configuration_json = bad.configuration_json.replace("s/#", "s/#/x");
    let refused = api.create(bad).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_INTEGRATION"));

    let integration = api.create_active(http("good", &["s/#"], &sink.url("in"))).await?;
    let acknowledged = work::publish(Plan::new(deployment.mqtt(), "s/a", 10), 1).await?;
    assert_eq!(acknowledged.len(), 10);
    work::await_different(&sink, 10, PATIENCE).await?;
    let events = api.lifecycle(&integration.name).await?;
    assert!(!events.is_empty());
    // Only the good one was saved.
    let all =
        api.integrations.list_integrations(tbmq_proto::control::ListIntegrationsRequest::default()).await?;
    assert_eq!(all.into_inner().integrations.len(), 1);
    Ok(())
}

// Seed 000, "Validation Scenarios", 1.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_executor_nothing_is_saved_and_the_text_says_why() -> Result<()> {
    if !ready("without_an_executor_nothing_is_saved_and_the_text_says_why", &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = Deployment::planes_stopped(Kafka::shared(), Postgres::shared())?;
    deployment.start(Plane::Control)?;
    let mut api = deployment.api()?;
    let integration = http("lonely", &["s/#"], "http://127.0.0.1:9/in");
    let status = api.create_within(integration, Duration::from_secs(4)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let all =
        api.integrations.list_integrations(tbmq_proto::control::ListIntegrationsRequest::default()).await?;
    assert_eq!(all.into_inner().integrations.len(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_while_an_integration_is_disabled_arrives_once_it_is_enabled() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("later", &["s/#"], &sink.url("in"))).await?;
    api.disable(&integration.name).await?;
    api.await_phase(&integration.name, Phase::Disabled).await?;
    let acknowledged = work::publish(Plan::new(deployment.mqtt(), "s/a", 1_000), 1).await?;
    assert_eq!((acknowledged.len(), sink.count()), (1_000, 0));
    api.enable(&integration.name).await?;
    work::await_different(&sink, 1_000, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_to_an_integration_that_was_created_disabled_arrives_once_it_is_enabled()
-> Result<()> {
    let deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let mut integration = http("dormant", &["s/#"], &sink.url("in"));
    integration.enabled = false;
    let integration = api.create_active(integration).await?;
    work::publish(Plan::new(deployment.mqtt(), "s/a", 1_000), 1).await?;
    api.enable(&integration.name).await?;
    work::await_different(&sink, 1_000, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_filters_give_one_record_and_one_delivery() -> Result<()> {
    let mut deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("once", &["s/#", "s/+", "s/a"], &sink.url("in"))).await?;
    let acknowledged = work::publish(Plan::new(deployment.mqtt(), "s/a", 100), 1).await?;
    work::await_different(&sink, 100, PATIENCE).await?;
    deployment.drain_all()?;
    let bus = deployment.bus()?;
    let ledger =
        work::ledger(&bus, &deployment.catalogue(), id(&integration.uid), &acknowledged, ("in", &sink))
            .await?;
    let audit = ledger.audit();
    audit.assert_clean();
    assert_eq!((audit.on_bus, audit.duplicates_on_bus, audit.duplicates_at_sinks), (100, 0, 0), "{audit}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_update_leaves_the_running_integration_untouched_also_after_a_restart() -> Result<()> {
    if !ready(
        "a_rejected_update_leaves_the_running_integration_untouched_also_after_a_restart",
        &[Need::Kafka, Need::Postgres],
    ) {
        return Ok(());
    }
    let mut deployment = Deployment::planes(Kafka::shared(), Postgres::shared())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("steady", &["s/#"], &sink.url("in"))).await?;
    let mut worse = integration.clone();
    worse.configuration_json = worse.configuration_json.replace(&sink.url("in"), "nowhere");
    let refused = api.update(worse).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(api.get(&integration.name).await?.revision, integration.revision);
    work::publish(Plan::new(deployment.mqtt(), "s/a", 10), 1).await?;
    work::await_different(&sink, 10, PATIENCE).await?;

    // Every record but the newest of each key goes; what the rejected request left must not be the newest.
    let bus = deployment.bus()?;
    let downlink = deployment.catalogue().downlink(&"HTTP".parse().unwrap());
    let records = work::read_topic(&bus, &downlink.name).await?;
    let key = integration.uid.as_bytes();
    let newest = records.values().flatten().rfind(|record| record.key.as_deref() == Some(key)).unwrap();
    assert_eq!(newest.header("revision"), Some(integration.revision.to_string().as_str()));

    deployment.kill(Plane::Executor)?;
    deployment.start(Plane::Executor)?;
    work::publish(Plan::new(deployment.mqtt(), "s/a", 10).first(10), 1).await?;
    work::await_different(&sink, 20, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rejected_update_left_behind_never_survives_compaction_instead_of_the_configuration()
-> Result<()> {
    let mut deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("steady", &["s/#"], &sink.url("in"))).await?;
    let mut worse = integration.clone();
    worse.configuration_json = worse.configuration_json.replace(&sink.url("in"), "nowhere");
    assert_eq!(api.update(worse).await.unwrap_err().code(), Code::FailedPrecondition);
    deployment.drain_all()?;

    let bus = deployment.embedded_bus()?;
    bus.clean_now().await?;
    let downlink = deployment.catalogue().downlink(&"HTTP".parse().unwrap());
    let dynamic: std::sync::Arc<dyn tbmq_bus::Bus> = std::sync::Arc::clone(&bus) as _;
    let records = work::read_topic(&dynamic, &downlink.name).await?;
    let configurations: Vec<_> = records
        .values()
        .flatten()
        .filter(|record| record.key.as_deref() == Some(integration.uid.as_bytes()))
        .map(|record| record.header("revision").map(str::to_owned))
        .collect();
    assert_eq!(configurations, [Some(integration.revision.to_string())]);
    drop(dynamic);
    bus.close().await;
    drop(bus);

    deployment.start(Plane::All)?;
    work::publish(Plan::new(deployment.mqtt(), "s/a", 10), 1).await?;
    work::await_different(&sink, 10, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_kafka_turns_publishes_into_refusals_and_nothing_is_lost_when_it_is_back() -> Result<()> {
    if !ready(
        "a_dead_kafka_turns_publishes_into_refusals_and_nothing_is_lost_when_it_is_back",
        &[Need::Kafka, Need::Postgres],
    ) {
        return Ok(());
    }
    let kafka = tokio::task::spawn_blocking(|| Kafka::start(KafkaOptions::default())).await??;
    let mut deployment = Deployment::planes(&kafka, Postgres::shared())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("tough", &["s/#"], &sink.url("in"))).await?;
    let mut acknowledged = work::publish(Plan::new(deployment.mqtt(), "s/a", 10), 1).await?;
    work::await_different(&sink, 10, PATIENCE).await?;

    kafka.kill()?;
    let mut client = Client::connect(deployment.mqtt(), "probe", ProtocolVersion::V5).await?;
    let publish = Publish {
        dup: false,
        qos: Qos::AtLeastOnce,
        retain: false,
        topic: "s/a".into(),
        packet_id: Some(1),
        properties: Properties::NONE,
        payload: "into the void".into(),
    };
    client.send(&Packet::Publish(publish)).await?;
    match client.receive().await? {
        Packet::PubAck(ack) => assert!(ack.reason.is_error(), "{ack:?}"),
        other => panic!("{other:?}"),
    }

    kafka.launch()?;
    acknowledged.extend(work::publish(Plan::new(deployment.mqtt(), "s/a", 10).first(10), 1).await?);
    work::await_different(&sink, 20, PATIENCE).await?;
    deployment.drain_all()?;
    let bus = deployment.bus()?;
    let ledger =
        work::ledger(&bus, &deployment.catalogue(), id(&integration.uid), &acknowledged, ("in", &sink))
            .await?;
    ledger.audit().assert_clean();
    drop(bus);
    tokio::task::spawn_blocking(move || drop(kafka)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_integration_stops_and_its_topic_goes() -> Result<()> {
    let mut deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("brief", &["s/#"], &sink.url("in"))).await?;
    work::publish(Plan::new(deployment.mqtt(), "s/a", 5), 1).await?;
    work::await_different(&sink, 5, PATIENCE).await?;
    api.delete(&integration.name).await?;
    assert_eq!(api.get(&integration.name).await.unwrap_err().code(), Code::NotFound);
    // STOPPED is the owner's word that it is done; the topic goes after it.
    let stopped = async {
        loop {
            let events = api.lifecycle(&integration.name).await?;
            let is_stopped = |event: &tbmq_proto::control::Event| matches!(&event.body, Some(tbmq_proto::control::event::Body::Lifecycle(l)) if l.event == "STOPPED");
            if events.iter().any(is_stopped) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await??;
    work::publish(Plan::new(deployment.mqtt(), "s/a", 5).first(5), 1).await?;
    deployment.drain_all()?;
    assert_eq!(work::different(&sink.received()), 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_plane_is_among_the_nodes_with_what_it_serves() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let all = async {
        loop {
            let nodes = api.list_nodes().await?;
            let has = |role: &str| nodes.iter().any(|node| node.role == role && node.live);
            if ["CONTROL_PLANE", "DATA_PLANE", "EXECUTOR"].into_iter().all(has) {
                return anyhow::Ok(nodes);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let nodes = tokio::time::timeout(PATIENCE, all).await??;
    let executor = nodes.iter().find(|node| node.role == "EXECUTOR").unwrap();
    let kinds: BTreeSet<&str> = executor.kinds.iter().map(String::as_str).collect();
    assert_eq!(kinds, BTreeSet::from(["HTTP", "KAFKA", "MQTT"]));
    let mqtt = format!("mqtt://{}", deployment.mqtt());
    assert!(nodes.iter().any(|node| node.addresses.contains(&mqtt)), "{nodes:?}");
    Ok(())
}
