//! The Kafka sink against a real Kafka behind a stage that keeps answers back.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};
use serde_json::{Map, Value, json};
use tbmq_harness::{
    Need,
    kafka::{Kafka as Server, KafkaOptions},
    postgres::free_port,
};

use super::{Kafka, proxy::Proxy};
use crate::{
    conformance::{Behaviour, Fixture, SECRET, answer, context, message, message_of},
    sink::{Outcome, Sink, SinkKind, SinkState},
    sinks::{SinkSettings, egress::Egress},
};

/// Fixtures that the server has a listener for, each behind a stage of its own.
const STAGES: usize = 32;

const WAIT: Duration = Duration::from_secs(10);

struct Cluster {
    server: Server,
    /// Where a stage listens, and where it passes on to.
    stages: Vec<(SocketAddr, SocketAddr)>,
    taken: AtomicUsize,
}

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        assert!(tbmq_harness::ready("the Kafka sink", &[Need::Kafka]), "these tests need Kafka");
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let (plain, controller) = (address(), address());
        let stages: Vec<_> = (0..STAGES).map(|_| (address(), address())).collect();
        let mut listeners = format!("PLAINTEXT://{plain},CONTROLLER://{controller}");
        let mut advertised = format!("PLAINTEXT://{plain}");
        let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
        for (i, (stage, upstream)) in stages.iter().enumerate() {
            write!(listeners, ",S{i}://{upstream}").unwrap();
            write!(advertised, ",S{i}://{stage}").unwrap();
            write!(protocols, ",S{i}:PLAINTEXT").unwrap();
        }
        let properties = [
            ("controller.quorum.voters", format!("1@{controller}")),
            ("listeners", listeners),
            ("advertised.listeners", advertised),
            ("listener.security.protocol.map", protocols),
            ("inter.broker.listener.name", "PLAINTEXT".to_owned()),
            ("num.network.threads", "1".to_owned()),
        ];
        let properties = properties.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let options = KafkaOptions { port: Some(plain.port()), properties, ..KafkaOptions::default() };
        let server = Server::start(options).expect("Kafka starts");
        Cluster { server, stages, taken: AtomicUsize::new(0) }
    })
}

struct KafkaFixture {
    kind: Arc<Kafka>,
    proxy: Proxy,
    bootstrap: String,
    topic: String,
    /// Reads the topic past the stage.
    direct: BaseConsumer,
    received: Mutex<Vec<Bytes>>,
    /// Messages that had arrived when answers were kept back.
    before: i64,
}

async fn fixture() -> KafkaFixture {
    let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
    let number = cluster.taken.fetch_add(1, Ordering::Relaxed);
    let (stage, upstream) = cluster.stages[number];
    let topic = format!("conformance-{number}");
    create_topic(&topic).await;
    let direct: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.server.bootstrap())
        .set("group.id", &topic)
        // The wrapper's `poll` returns without a record when a commit was answered.
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
    direct.assign(&partitions).unwrap();
    KafkaFixture {
        kind: Arc::new(Kafka::new(SinkSettings::default())),
        proxy: Proxy::start(stage, upstream),
        bootstrap: stage.to_string(),
        topic,
        direct,
        received: Mutex::default(),
        before: 0,
    }
}

async fn create_topic(topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", cluster().server.bootstrap()).create().unwrap();
    let topic = NewTopic::new(topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "4000000");
    let created = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

crate::conformance::suite!(super::fixture);

#[async_trait]
impl Fixture for KafkaFixture {
    fn kind(&self) -> Arc<dyn SinkKind> {
        self.kind.clone()
    }

    fn client_configuration(&self) -> Map<String, Value> {
        self.configuration(json!({}))
    }

    fn impatient_configuration(&self) -> Map<String, Value> {
        self.configuration(json!({"otherProperties": {"delivery.timeout.ms": "900"}}))
    }

    fn configuration_at(&self, address: SocketAddr) -> Map<String, Value> {
        let other = json!({"delivery.timeout.ms": "900"});
        self.configuration(json!({"bootstrapServers": address.to_string(), "otherProperties": other}))
    }

    fn secretive_configuration(&self) -> Map<String, Value> {
        let jaas = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"user\" password=\"{SECRET}\";"
        );
        let other = json!({
            "security.protocol": "PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.jaas.config": jaas,
            "ssl.key.password": SECRET, "ssl.truststore.password": SECRET, "of.another.client": SECRET,
        });
        self.configuration(json!({"otherProperties": other, "kafkaHeaders": {"X-Api-Key": SECRET}}))
    }

    fn notices_absence(&self) -> bool {
        true
    }

    async fn behave(&mut self, behaviour: Behaviour) {
        if behaviour == Behaviour::Hold {
            self.before = self.arrived();
        }
        self.proxy.behave(behaviour);
    }

    async fn held(&mut self, count: usize) {
        while self.arrived() - self.before < count as i64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn received(&self) -> Vec<Bytes> {
        let end = self.arrived();
        let mut received = self.received.lock();
        while (received.len() as i64) < end {
            let message = self.direct.poll(WAIT).expect("what has arrived can be read").unwrap();
            received.push(Bytes::copy_from_slice(message.payload().unwrap_or_default()));
        }
        received.clone()
    }
}

impl KafkaFixture {
    fn arrived(&self) -> i64 {
        self.direct.fetch_watermarks(&self.topic, 0, WAIT).unwrap().1
    }

    /// A configuration that sends payloads as they are, with changes.
    fn configuration(&self, changes: Value) -> Map<String, Value> {
        let mut configuration = json!({
            "sendOnlyMsgPayload": true, "bootstrapServers": self.bootstrap, "topic": self.topic, "acks": "all",
            // Five requests at once are on their way at most: what is held must fit into them.
            "linger": 20,
        });
        for (field, value) in changes.as_object().unwrap() {
            configuration[field] = value.clone();
        }
        configuration.as_object().unwrap().clone()
    }

    async fn sink(&self, changes: Value) -> Box<dyn Sink> {
        self.kind.connect(&self.configuration(changes), context(50)).await.unwrap()
    }
}

/// Waits for a state, as the driver does: woken by the sink.
async fn until(sink: &mut dyn Sink, is_wanted: impl Fn(&SinkState) -> bool) -> SinkState {
    let state = std::future::poll_fn(|cx| {
        if let std::task::Poll::Ready(answer) = sink.poll_outcome(cx) {
            panic!("{answer:?} instead of a new state");
        }
        let state = sink.state();
        if is_wanted(&state) { std::task::Poll::Ready(state) } else { std::task::Poll::Pending }
    });
    tokio::time::timeout(2 * WAIT, state).await.expect("the state comes")
}

fn is_ready(state: &SinkState) -> bool {
    *state == SinkState::Ready
}

fn is_away(state: &SinkState) -> bool {
    matches!(state, SinkState::Away { .. })
}

#[tokio::test]
async fn a_cluster_that_goes_away_is_noticed_and_so_is_its_return() {
    let fixture = fixture().await;
    let mut sink = fixture.sink(json!({})).await;
    until(&mut *sink, is_ready).await;
    for _ in 0..2 {
        fixture.proxy.behave(Behaviour::Away);
        let SinkState::Away { reason } = until(&mut *sink, is_away).await else { panic!("away") };
        assert!(reason.contains(&fixture.bootstrap), "{reason}");
        let start = std::time::Instant::now();
        fixture.proxy.behave(Behaviour::Confirm);
        until(&mut *sink, is_ready).await;
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    sink.close(WAIT).await;
}

#[tokio::test]
async fn a_start_without_brokers_waits_for_them() {
    let fixture = fixture().await;
    fixture.proxy.behave(Behaviour::Away);
    let mut sink = fixture.sink(json!({})).await;
    assert!(is_away(&sink.state()));
    fixture.proxy.behave(Behaviour::Confirm);
    until(&mut *sink, is_ready).await;
    sink.submit(message(1), 1).unwrap();
    assert_eq!(answer(&mut *sink).await, (1, Outcome::Delivered));
}

#[tokio::test]
async fn equal_settings_share_a_client_and_others_do_not() {
    let fixture = fixture().await;
    let first = fixture.sink(json!({})).await;
    let second = fixture.sink(json!({"sendOnlyMsgPayload": false, "key": "k", "bufferMemory": 9999})).await;
    let third = fixture.sink(json!({"linger": 21})).await;
    assert!(format!("{:?}", fixture.kind.producers).contains("open: 2"), "{:?}", fixture.kind.producers);
    drop((first, second));
    let fourth = fixture.sink(json!({"linger": 22})).await;
    assert!(format!("{:?}", fixture.kind.producers).contains("open: 2"), "{:?}", fixture.kind.producers);
    drop((third, fourth));
}

#[tokio::test]
async fn a_sink_whose_buffer_is_full_leaves_its_neighbour_alone() {
    let mut fixture = fixture().await;
    let mut full = fixture.sink(json!({"bufferMemory": 1000})).await;
    let mut neighbour = fixture.sink(json!({})).await;
    until(&mut *full, is_ready).await;
    until(&mut *neighbour, is_ready).await;
    fixture.behave(Behaviour::Hold).await;
    let mut taken = 0;
    while full.submit(message(taken), taken).is_ok() {
        taken += 1;
        assert!(taken < 20, "1000 bytes are full");
    }
    assert!(taken > 2);
    neighbour.submit(message(100), 100).unwrap();
    fixture.held(taken as usize + 1).await;
    fixture.behave(Behaviour::Confirm).await;
    assert_eq!(answer(&mut *neighbour).await, (100, Outcome::Delivered));
    for _ in 0..taken {
        assert_eq!(answer(&mut *full).await.1, Outcome::Delivered);
    }
    assert_eq!(full.submit(message(1), 1), Ok(()), "answers made room");
}

#[tokio::test]
async fn a_stalled_cluster_leaves_other_integrations_alone() {
    let (mut stalled_end, mut other_end) = (fixture().await, fixture().await);
    // One process has one kind.
    other_end.kind = stalled_end.kind.clone();
    let mut stalled = stalled_end.sink(json!({})).await;
    let mut other = other_end.sink(json!({"linger": 0})).await;
    until(&mut *stalled, is_ready).await;
    until(&mut *other, is_ready).await;
    stalled_end.behave(Behaviour::Hold).await;
    for ticket in 0..50 {
        stalled.submit(message(ticket), ticket).unwrap();
    }
    stalled_end.held(1).await;
    for ticket in 0..500 {
        other.submit(message(ticket), ticket).unwrap();
        assert_eq!(answer(&mut *other).await, (ticket, Outcome::Delivered));
    }
    stalled_end.behave(Behaviour::Confirm).await;
    for _ in 0..50 {
        assert_eq!(answer(&mut *stalled).await.1, Outcome::Delivered);
    }
}

#[tokio::test]
async fn a_message_larger_than_the_buffer_or_the_topic_allows_is_rejected() {
    let fixture = fixture().await;
    let sized = |bytes: usize| message_of(0, vec![b'x'; bytes].into());
    let mut small = fixture.sink(json!({"bufferMemory": 1000})).await;
    small.submit(sized(1000), 1).unwrap();
    let (_, outcome) = answer(&mut *small).await;
    let text = "The message is 1128 bytes, more than the buffer memory of 1000".to_owned();
    assert_eq!(outcome, Outcome::Rejected { class: "payload", text });
    let mut sink = fixture.sink(json!({})).await;
    until(&mut *sink, is_ready).await;
    sink.submit(sized(5_000_000), 2).unwrap();
    let (_, outcome) = answer(&mut *sink).await;
    assert!(matches!(outcome, Outcome::Rejected { class: "payload", .. }), "{outcome:?}");
    sink.submit(sized(2_000_000), 3).unwrap();
    assert_eq!(answer(&mut *sink).await, (3, Outcome::Delivered));
}

#[tokio::test]
async fn a_missing_topic_is_retried_and_found_once_it_is_there() {
    let fixture = fixture().await;
    let topic = format!("{}-late", fixture.topic);
    let mut sink = fixture.sink(json!({"topic": topic})).await;
    until(&mut *sink, is_ready).await;
    for ticket in 0..2 {
        sink.submit(message(ticket), ticket).unwrap();
        let (_, outcome) = answer(&mut *sink).await;
        let Outcome::Retry { class: "topic", text, after: Some(_) } = outcome else { panic!("{outcome:?}") };
        assert!(text.starts_with(&topic), "{text}");
    }
    create_topic(&topic).await;
    let delivered = async {
        loop {
            sink.submit(message(9), 9).unwrap();
            if answer(&mut *sink).await == (9, Outcome::Delivered) {
                return;
            }
        }
    };
    tokio::time::timeout(WAIT, delivered).await.expect("the topic is found");
}

#[tokio::test]
async fn brokers_that_the_cluster_names_are_looked_at_before_the_first_message() {
    let fixture = fixture().await;
    let checked = super::config::read(&fixture.client_configuration(), &SinkSettings::default(), "ie");
    let settings = super::settings(&checked.config.unwrap(), WAIT);
    let forbidding = Egress::new(false, Vec::new(), Vec::new());
    let producer = fixture.kind.producers.join(&settings, &forbidding).unwrap();
    let inbox = Arc::new(super::Inbox::new(fixture.topic.clone()));
    producer.register(&inbox);
    let state = std::future::poll_fn(|cx| {
        inbox.waker.register(cx.waker());
        match producer.state() {
            SinkState::Away { .. } => std::task::Poll::Pending,
            state => std::task::Poll::Ready(state),
        }
    });
    let state = tokio::time::timeout(WAIT, state).await.unwrap();
    let SinkState::Broken { reason } = state else { panic!("{state:?}") };
    let expected = format!("Kafka broker {}: 127.0.0.1 must not be connected to", fixture.bootstrap);
    assert!(reason.starts_with(&expected), "{reason}");
    let another = fixture.kind.producers.join(&settings, &forbidding).unwrap();
    assert!(!Arc::ptr_eq(&producer, &another), "what is broken is not shared any more");
}

#[tokio::test]
async fn the_check_names_the_stage_that_failed_and_the_peers_words() {
    let fixture = fixture().await;
    let probe = |changes: Value| {
        let configuration = fixture.configuration(changes);
        let kind = fixture.kind.clone();
        async move { kind.probe(&configuration, &context(1), WAIT).await }
    };
    let stages = |report: &crate::sink::ProbeReport| {
        report.stages.iter().map(|stage| (stage.name.clone(), stage.ok)).collect::<Vec<_>>()
    };
    let named = |stages: &[(&str, bool)]| {
        stages.iter().map(|(name, ok)| ((*name).to_owned(), *ok)).collect::<Vec<_>>()
    };
    let report = probe(json!({})).await;
    assert_eq!(
        stages(&report),
        named(&[("resolve", true), ("connect", true), ("topic", true)]),
        "{report:?}"
    );
    let report = probe(json!({"topic": "no-such-topic"})).await;
    assert_eq!(
        stages(&report),
        named(&[("resolve", true), ("connect", true), ("topic", false)]),
        "{report:?}"
    );
    assert_eq!(report.error.as_deref(), Some("Configured topic is missing on the external brokers!"));
    let report = probe(json!({"bootstrapServers": "127.0.0.1:1"})).await;
    assert_eq!(stages(&report), named(&[("resolve", true), ("connect", false)]), "{report:?}");
    assert!(report.error.unwrap().contains("Connection refused"));
    let report = probe(json!({"bootstrapServers": "no.such.host.invalid:1"})).await;
    assert_eq!(stages(&report), named(&[("resolve", false)]), "{report:?}");
    assert!(report.error.unwrap().starts_with("Failed to resolve 'no.such.host.invalid'"));
}
