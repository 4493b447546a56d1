//! The Kafka sink against a real Kafka with logins and TLS.

use std::{
    fs,
    future::poll_fn,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
};
use serde_json::{Map, Value, json};
use tbmq_executor::{
    sink::{Message, Outcome, ProbeReport, Sink, SinkContext, SinkKind as _, SinkState},
    sinks::{SinkSettings, kafka::Kafka},
};
use tbmq_harness::{
    Need,
    kafka::{Kafka as Server, KafkaOptions, SecuredKafka},
};
use tbmq_integration::wire::Target;
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    integration::PublishIntegrationMsgProto,
    queue::PublishMsgProto,
};
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(30);

const PASSWORD: &str = SecuredKafka::PASSWORD;

async fn secured_server() -> &'static SecuredKafka {
    assert!(tbmq_harness::ready("the Kafka sink", &[Need::Kafka]), "these tests need Kafka");
    tokio::task::spawn_blocking(SecuredKafka::shared).await.unwrap()
}

/// Makes a topic with one partition and a name of its own.
async fn new_topic(server: &Server) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let topic = format!("sink-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", server.bootstrap()).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    let created = admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    topic
}

#[derive(Debug, PartialEq, Eq)]
struct Record {
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
}

/// What lies in a topic of [`new_topic`], at least so many.
fn records(server: &Server, topic: &str, count: usize) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", server.bootstrap())
        .set("group.id", "test")
        // The wrapper's `poll` returns without a record when a commit was answered.
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&partitions).unwrap();
    let mut records = Vec::new();
    while records.len() < count
        || (records.len() as i64) < consumer.fetch_watermarks(topic, 0, WAIT).unwrap().1
    {
        let Some(message) = consumer.poll(WAIT) else {
            let held = consumer.fetch_watermarks(topic, 0, WAIT).unwrap();
            panic!("{} of {count} records were read, offsets {held:?} are there", records.len());
        };
        let message = message.unwrap();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter().collect::<Vec<_>>());
        records.push(Record {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().expect("no tombstones").to_vec(),
            headers: headers.map(|header| (header.key.to_owned(), header.value.unwrap().to_vec())).collect(),
        });
    }
    records
}

fn message(payload: impl Into<bytes::Bytes>) -> Message {
    let publish = PublishMsgProto {
        client_id: "client".into(),
        topic_name: "topic".into(),
        payload: payload.into(),
        ..PublishMsgProto::default()
    };
    let publish = PublishIntegrationMsgProto {
        publish_msg_proto: Some(publish),
        ..PublishIntegrationMsgProto::default()
    };
    Message { publish: Arc::new(publish), partition: 0, offset: 0, trace: None }
}

fn context() -> SinkContext {
    SinkContext {
        shard: ShardId { integration: IntegrationId(Uuid::from_u128(1)), index: 0 },
        topic: "messages".into(),
        target: Target { name: "k".into(), enabled: true, configuration: "{}".into(), sealed: None },
        metadata: Arc::new(Map::new()),
        executor_id: "ie".into(),
        window: 100,
    }
}

fn configuration(bootstrap: &str, topic: &str, changes: Value) -> Map<String, Value> {
    let mut configuration = json!({
        "sendOnlyMsgPayload": true, "bootstrapServers": bootstrap, "topic": topic, "acks": "all",
    });
    for (field, value) in changes.as_object().unwrap() {
        configuration[field] = value.clone();
    }
    configuration.as_object().unwrap().clone()
}

/// A sink that has found out whether it is ready.
async fn sink(configuration: &Map<String, Value>) -> Box<dyn Sink> {
    let kind = Kafka::new(SinkSettings::default());
    let mut sink = kind.connect(configuration, context()).await.unwrap();
    let settled = poll_fn(|cx| {
        assert!(sink.poll_outcome(cx).is_pending());
        if let SinkState::Away { .. } = sink.state() { Poll::Pending } else { Poll::Ready(()) }
    });
    tokio::time::timeout(WAIT, settled).await.expect("the brokers answer");
    sink
}

async fn answer(sink: &mut dyn Sink) -> (u64, Outcome) {
    tokio::time::timeout(WAIT, poll_fn(|cx| sink.poll_outcome(cx))).await.expect("an answer comes")
}

/// Has messages delivered whose payloads are their numbers.
async fn deliver(sink: &mut dyn Sink, count: u64) {
    for number in 0..count {
        sink.submit(message(number.to_string()), number).unwrap();
    }
    for _ in 0..count {
        assert_eq!(answer(sink).await.1, Outcome::Delivered);
    }
}

fn jaas(module: &str, password: &str) -> String {
    let password = password.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "org.apache.kafka.common.security.{}.{module}LoginModule required username=\"u\" password=\"{password}\";",
        module.to_lowercase()
    )
}

fn stages(report: &ProbeReport) -> Vec<(&str, bool)> {
    report.stages.iter().map(|stage| (stage.name.as_str(), stage.ok)).collect()
}

#[tokio::test]
async fn every_compression_and_every_kind_of_acknowledgement_delivers() {
    let SecuredKafka { server, folder, .. } = secured_server().await;
    for (acks, compression, codec) in [
        ("all", "none", 0),
        ("-1", "gzip", 1),
        ("1", "snappy", 2),
        ("0", "lz4", 3),
        ("all", "zstd", 4),
        ("0", "none", 0),
    ] {
        let topic = new_topic(server).await;
        let changes = json!({"acks": acks, "compression": compression, "linger": 5});
        let mut sink = sink(&configuration(&server.bootstrap(), &topic, changes)).await;
        deliver(&mut *sink, 100).await;
        let mut values: Vec<_> =
            records(server, &topic, 100).into_iter().map(|record| record.value).collect();
        values.sort();
        let mut expected: Vec<_> = (0..100).map(|number| number.to_string().into_bytes()).collect();
        expected.sort();
        assert_eq!(values, expected, "acks {acks}, compression {compression}");
        let segment: PathBuf = [&format!("logs/{topic}-0"), "00000000000000000000.log"].iter().collect();
        let batch = fs::read(folder.path().join(segment)).unwrap();
        // The attributes of a batch, whose lowest bits tell its compression.
        assert_eq!(batch[22] & 7, codec, "acks {acks}, compression {compression}");
    }
}

#[tokio::test]
async fn key_headers_and_payload_arrive_as_they_are() {
    let server = &secured_server().await.server;
    let topic = new_topic(server).await;
    let changes = json!({
        "key": "schlüssel", "kafkaHeaders": {"z": "aé€", "a": ""}, "kafkaHeadersCharset": "UTF-16"
    });
    let mut sink = sink(&configuration(&server.bootstrap(), &topic, changes)).await;
    let payloads = [vec![], vec![0xff, 0, 0x80], vec![b'x'; 1_000_000]];
    for (i, payload) in payloads.iter().enumerate() {
        sink.submit(message(payload.clone()), i as u64).unwrap();
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
    }
    let records = records(server, &topic, payloads.len());
    let headers =
        vec![("z".to_owned(), vec![0xfe, 0xff, 0, 0x61, 0, 0xe9, 0x20, 0xac]), ("a".to_owned(), vec![])];
    let expected =
        payloads.map(|value| Record { key: Some("schlüssel".into()), value, headers: headers.clone() });
    assert_eq!(records, expected);
}

#[tokio::test]
async fn logins_of_every_mechanism_deliver() {
    let SecuredKafka { server, login, login_tls, authority, .. } = secured_server().await;
    for (mechanism, module) in [("PLAIN", "Plain"), ("SCRAM-SHA-256", "Scram"), ("SCRAM-SHA-512", "Scram")] {
        let topic = new_topic(server).await;
        for (bootstrap, protocol, names) in [
            (login, "SASL_PLAINTEXT", &["resolve", "connect", "authenticate", "topic"][..]),
            (login_tls, "SASL_SSL", &["resolve", "connect", "tls", "authenticate", "topic"]),
        ] {
            let mut other = json!({
                "security.protocol": protocol, "sasl.mechanism": mechanism, "sasl.jaas.config": jaas(module, PASSWORD),
            });
            if protocol == "SASL_SSL" {
                other["ssl.truststore.type"] = "PEM".into();
                other["ssl.truststore.certificates"] = authority.as_str().into();
            }
            let configuration = configuration(bootstrap, &topic, json!({ "otherProperties": other }));
            let report = Kafka::new(SinkSettings::default()).probe(&configuration, &context(), WAIT).await;
            let expected: Vec<_> = names.iter().map(|name| (*name, true)).collect();
            assert_eq!(stages(&report), expected, "{mechanism} {protocol}: {report:?}");
            let mut sink = sink(&configuration).await;
            assert_eq!(sink.state(), SinkState::Ready, "{mechanism} {protocol}");
            deliver(&mut *sink, 10).await;
        }
        assert_eq!(records(server, &topic, 20).len(), 20, "{mechanism}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_shown() {
    let SecuredKafka { server, login, .. } = secured_server().await;
    let topic = new_topic(server).await;
    for (mechanism, module) in [("PLAIN", "Plain"), ("SCRAM-SHA-512", "Scram")] {
        let other = json!({
            "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": mechanism, "sasl.jaas.config": jaas(module, "hunter2")
        });
        let configuration = configuration(login, &topic, json!({ "otherProperties": other }));
        let report = Kafka::new(SinkSettings::default()).probe(&configuration, &context(), WAIT).await;
        let expected = [("resolve", true), ("connect", true), ("authenticate", false)];
        assert_eq!(stages(&report), expected, "{mechanism}: {report:?}");
        let error = report.error.clone().unwrap();
        assert!(error.contains("Authentication failed"), "{mechanism}: {error}");
        let sink = sink(&configuration).await;
        let SinkState::Broken { reason } = sink.state() else { panic!("{mechanism}: {:?}", sink.state()) };
        assert!(reason.contains("Authentication failed"), "{mechanism}: {reason}");
        assert!(!format!("{report:?}{reason}{sink:?}").contains("hunter2"), "{mechanism}");
    }
}

#[tokio::test]
async fn client_certificates_deliver_and_an_unknown_authority_is_told() {
    let SecuredKafka { server, tls, authority, certificate, key, .. } = secured_server().await;
    let topic = new_topic(server).await;
    let one_line = |pem: &str| pem.replace("\r\n", "\n").replace('\n', "\\n");
    let other = json!({
        "security.protocol": "SSL", "ssl.truststore.type": "PEM", "ssl.truststore.certificates": one_line(authority),
        "ssl.keystore.type": "PEM", "ssl.keystore.certificate.chain": one_line(certificate),
        "ssl.keystore.key": one_line(key), "ssl.endpoint.identification.algorithm": "https",
    });
    let kind = Kafka::new(SinkSettings::default());
    let trusting = configuration(tls, &topic, json!({ "otherProperties": other }));
    let report = kind.probe(&trusting, &context(), WAIT).await;
    let expected = [("resolve", true), ("connect", true), ("tls", true), ("topic", true)];
    assert_eq!(stages(&report), expected, "{report:?}");
    let mut delivering = sink(&trusting).await;
    deliver(&mut *delivering, 10).await;
    assert_eq!(records(server, &topic, 10).len(), 10);
    let mut other = other;
    // Not its authority.
    other["ssl.truststore.certificates"] = certificate.as_str().into();
    let distrusting = configuration(tls, &topic, json!({ "otherProperties": other }));
    let report = kind.probe(&distrusting, &context(), WAIT).await;
    assert_eq!(stages(&report), [("resolve", true), ("connect", true), ("tls", false)], "{report:?}");
    assert!(report.error.unwrap().contains("certificate verify failed"));
    let sink = sink(&distrusting).await;
    assert!(matches!(sink.state(), SinkState::Broken { .. }), "{:?}", sink.state());
}

#[tokio::test]
async fn a_broker_that_is_killed_and_comes_back_costs_no_message() {
    const MESSAGES: u64 = 3000;
    assert!(tbmq_harness::ready("the Kafka sink", &[Need::Kafka]), "this test needs Kafka");
    let start = || Arc::new(Server::start(KafkaOptions::default()).unwrap());
    let server = tokio::task::spawn_blocking(start).await.unwrap();
    let topic = new_topic(&server).await;
    let mut sink = sink(&configuration(&server.bootstrap(), &topic, json!({}))).await;
    let mut restart = None;
    let (mut next, mut again, mut delivered, mut was_away) = (0, Vec::new(), 0, false);
    while delivered < MESSAGES {
        if delivered > MESSAGES / 3 && restart.is_none() {
            // Before more is submitted: a sink that has nothing to send may not notice.
            let (ending, starting) = (server.clone(), server.clone());
            tokio::task::spawn_blocking(move || ending.kill().unwrap()).await.unwrap();
            restart = Some(tokio::task::spawn_blocking(move || starting.launch().unwrap()));
        }
        let is_ready = sink.state() == SinkState::Ready;
        was_away |= !is_ready;
        // Some are left for the time after the outage.
        let end = if was_away { MESSAGES } else { MESSAGES * 2 / 3 };
        while let Some(number) = again.pop().or_else(|| (is_ready && next < end).then_some(next)) {
            if !is_ready || sink.submit(message(number.to_string()), number).is_err() {
                if number != next {
                    again.push(number);
                }
                break;
            }
            next += u64::from(number == next);
        }
        // As the driver: woken by an answer or by a new state.
        let woken = poll_fn(|cx| match sink.poll_outcome(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if is_ready == (sink.state() == SinkState::Ready) => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
        });
        match tokio::time::timeout(2 * WAIT, woken).await.expect("it goes on") {
            None => {}
            Some((_, Outcome::Delivered)) => delivered += 1,
            Some((ticket, Outcome::Retry { .. })) => again.push(ticket),
            Some((ticket, outcome)) => panic!("{ticket}: {outcome:?}"),
        }
    }
    restart.expect("it was killed").await.unwrap();
    let mut values: Vec<u64> = records(&server, &topic, MESSAGES as usize)
        .iter()
        .map(|record| String::from_utf8_lossy(&record.value).parse().unwrap())
        .collect();
    values.sort_unstable();
    values.dedup();
    assert!(values.into_iter().eq(0..MESSAGES), "every message is there");
}
