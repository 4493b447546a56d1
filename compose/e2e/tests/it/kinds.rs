//! Integrations of each kind, made through the control plane.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use tbmq_bus::{
    Bus, CleanupPolicy, TopicSpec,
    kafka::{KafkaBus, KafkaConfig},
};
use tbmq_e2e::{
    api::{self, Api},
    deployment::Deployment,
    work,
};
use tbmq_harness::{
    Need,
    client::Plan,
    kafka::Kafka,
    ledger::Mark,
    mosquitto::{self, Broker, BrokerOptions},
    postgres::free_port,
    ready,
};
use tbmq_proto::control::Integration;

const COUNT: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(60);

fn mqtt(broker: SocketAddr) -> Integration {
    let client = json!({
        "host": broker.ip(), "port": broker.port(), "sendOnlyMsgPayload": true, "clientId": "of-tbmq",
        "credentials": {"type": "anonymous"}, "ssl": false, "mqttVersion": 4, "topicName": "", "useMsgTopicName": true,
        "useMsgQoS": true, "useMsgRetain": true, "connectTimeoutSec": 10, "reconnectPeriodSec": 5, "keepAliveSec": 60,
    });
    api::integration("MQTT", "to mosquitto", &["s/#"], &client, api::RETRY_FOR_EVER)
}

fn kafka(bootstrap: &str, topic: &str) -> Integration {
    let client = json!({
        "bootstrapServers": bootstrap, "topic": topic, "sendOnlyMsgPayload": true, "key": "k", "acks": "-1",
        "compression": "none", "kafkaHeaders": {"from": "tbmq"},
    });
    api::integration("KAFKA", "to kafka", &["s/#"], &client, api::RETRY_FOR_EVER)
}

/// What was tried and whether it went well, and whether all did.
async fn checked(
    api: &mut Api,
    integration: Integration,
) -> Result<(Vec<(String, bool)>, Result<(), String>)> {
    let response = api.check(integration).await?;
    assert!(!response.executor_id.is_empty());
    let stages = response.stages.into_iter().map(|stage| (stage.name, stage.ok)).collect();
    Ok((stages, if response.ok { Ok(()) } else { Err(response.error) }))
}

fn stages(all: &[(&str, bool)]) -> Vec<(String, bool)> {
    all.iter().map(|(name, ok)| ((*name).to_owned(), *ok)).collect()
}

fn nobody() -> Result<SocketAddr> {
    Ok(([127, 0, 0, 1], free_port()?).into())
}

fn sequences(marks: impl Iterator<Item = Mark>) -> BTreeSet<u64> {
    marks.map(|mark| mark.sequence).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_mqtt_integration_delivers_to_mosquitto_and_its_connection_is_checked_in_stages() -> Result<()> {
    if !ready(
        "an_mqtt_integration_delivers_to_mosquitto_and_its_connection_is_checked_in_stages",
        &[Need::MosquittoBroker, Need::Mosquitto],
    ) {
        return Ok(());
    }
    let broker = Broker::start(&BrokerOptions::default())?;
    let deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let (tried, result) = checked(&mut api, mqtt(broker.address())).await?;
    assert_eq!(tried, stages(&[("resolve", true), ("connect", true), ("authenticate", true)]));
    assert_eq!(result, Ok(()));
    let nobody = nobody()?;
    let (tried, result) = checked(&mut api, mqtt(nobody)).await?;
    assert_eq!(tried, stages(&[("resolve", true), ("connect", false)]));
    assert!(result.is_err_and(|text| text.contains(&nobody.to_string())));

    let subscriber = mosquitto::subscribe(broker.address(), "5", 1, "#", u32::try_from(COUNT)?)?;
    api.create_active(mqtt(broker.address())).await?;
    work::publish(Plan::new(deployment.mqtt(), "s/a", COUNT), 1).await?;
    let messages = tokio::task::spawn_blocking(|| subscriber.messages()).await??;
    let payloads = messages.iter().filter_map(|line| line.strip_prefix("s/a "));
    let arrived = sequences(payloads.filter_map(|payload| Mark::parse(payload.as_bytes())));
    assert_eq!(arrived, (0..COUNT).collect(), "{messages:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_integration_delivers_to_a_topic_and_its_connection_is_checked_in_stages() -> Result<()> {
    const TOPIC: &str = "from-tbmq";
    if !ready(
        "a_kafka_integration_delivers_to_a_topic_and_its_connection_is_checked_in_stages",
        &[Need::Kafka],
    ) {
        return Ok(());
    }
    let server = tokio::task::spawn_blocking(Kafka::shared).await?;
    let bus = KafkaBus::new(KafkaConfig::new(server.bootstrap()))?;
    let spec = TopicSpec {
        name: TOPIC.to_owned(),
        partitions: 2,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: Vec::new(),
    };
    bus.admin().create_topic(&spec).await?;
    let deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let (tried, result) = checked(&mut api, kafka(&server.bootstrap(), TOPIC)).await?;
    assert_eq!(tried, stages(&[("resolve", true), ("connect", true), ("topic", true)]));
    assert_eq!(result, Ok(()));
    let (tried, result) = checked(&mut api, kafka(&server.bootstrap(), "nowhere")).await?;
    assert_eq!(tried, stages(&[("resolve", true), ("connect", true), ("topic", false)]));
    // TBMQ's words (spec §6.5.3).
    assert_eq!(result, Err("Configured topic is missing on the external brokers!".to_owned()));
    let (tried, result) = checked(&mut api, kafka(&nobody()?.to_string(), TOPIC)).await?;
    assert_eq!(tried, stages(&[("resolve", true), ("connect", false)]));
    assert!(result.is_err());

    api.create_active(kafka(&server.bootstrap(), TOPIC)).await?;
    work::publish(Plan::new(deployment.mqtt(), "s/a", COUNT), 1).await?;
    let bus: std::sync::Arc<dyn Bus> = bus;
    let records = tokio::time::timeout(PATIENCE, async {
        loop {
            let records: Vec<_> = work::read_topic(&bus, TOPIC).await?.into_values().flatten().collect();
            if records.len() as u64 >= COUNT {
                return anyhow::Ok(records);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await??;
    let values = records.iter().filter_map(|record| Mark::parse(record.value.as_deref()?));
    assert_eq!(sequences(values), (0..COUNT).collect());
    let is_whole = |record: &tbmq_bus::Record| {
        record.key.as_deref() == Some(b"k") && record.header("from") == Some("tbmq")
    };
    assert!(records.iter().all(is_whole), "{records:?}");
    Ok(())
}

/// Fields that a kind does not know, or values out of their range, are all named at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_mqtt_or_kafka_integration_is_told_field_by_field() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let of = |kind: &str, client: &Value| api::integration(kind, kind, &["s/#"], client, api::RETRY_FOR_EVER);
    let cases = [
        (
            of("MQTT", &json!({"host": "", "port": 0, "clientId": "", "mqttVersion": 7})),
            &["host", "port", "clientId", "mqttVersion"][..],
        ),
        (
            of("KAFKA", &json!({"bootstrapServers": "nonsense", "topic": "", "acks": "2"})),
            &["bootstrapServers", "topic", "acks"][..],
        ),
    ];
    for (integration, fields) in cases {
        let refused = api.create(integration).await.unwrap_err();
        let details = tonic_types::StatusExt::get_details_bad_request(&refused).unwrap();
        let named: Vec<_> =
            details.field_violations.iter().map(|violation| violation.field.as_str()).collect();
        for field in fields {
            assert!(named.iter().any(|name| name.ends_with(field)), "{field} is not among {named:?}");
        }
    }
    Ok(())
}
