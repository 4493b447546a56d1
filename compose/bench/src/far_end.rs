//! What the messages arrive at: a counting process, or a topic of Kafka that is counted afterwards.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};
use tbmq_bus::{
    Bus, CleanupPolicy, ReaderConfig, ReaderEvent, Start, TopicPartition, TopicSpec,
    kafka::{KafkaBus, KafkaConfig},
};
use tbmq_harness::{
    kafka::{Kafka, KafkaOptions},
    ledger::Mark,
    mosquitto::{Broker, BrokerOptions},
    process::Usage,
};

use crate::{
    page,
    peer::{Peer, Role, Seen},
};

/// Pause between two looks at the end of a topic.
const LOOK: Duration = Duration::from_millis(20);

/// Without a further record for so long, what is missing counts as lost.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where messages are delivered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// An HTTP server over hyper.
    Http,
    /// A broker that does nothing but acknowledge.
    Mqtt,
    /// Mosquitto, with a subscriber at QoS 1 that counts.
    Mosquitto,
    /// A topic of a Kafka that is not the bus.
    Kafka,
}

impl Kind {
    /// The integration's type.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Mqtt | Self::Mosquitto => "MQTT",
            Self::Kafka => "KAFKA",
        }
    }

    /// Messages that make a measurement of some seconds.
    pub(crate) fn messages(self) -> u64 {
        match self {
            Self::Http | Self::Mosquitto => 200_000,
            Self::Mqtt => 400_000,
            Self::Kafka => 1_000_000,
        }
    }

    /// As it is printed.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Mqtt => "MQTT, counting broker",
            Self::Mosquitto => "MQTT, Mosquitto",
            Self::Kafka => "Kafka",
        }
    }
}

/// A running far end.
pub(crate) enum FarEnd {
    Process(Peer),
    Mosquitto { broker: Broker, subscriber: Peer },
    Kafka(Topic),
}

impl FarEnd {
    pub(crate) async fn start(kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Http => Self::Process(Peer::start(Role::Http).await?),
            Kind::Mqtt => Self::Process(Peer::start(Role::Broker).await?),
            Kind::Mosquitto => {
                // Unlimited: it would drop messages for the subscriber, or wait for each of its acknowledgements.
                let limits = ["max_inflight_messages 0", "max_queued_messages 0", "set_tcp_nodelay true"];
                let lines = limits.map(str::to_owned).to_vec();
                let options = BrokerOptions { lines, ..BrokerOptions::default() };
                let broker = tokio::task::block_in_place(|| Broker::start(&options))?;
                let subscriber = Peer::start(Role::Subscriber { broker: broker.address() }).await?;
                Self::Mosquitto { broker, subscriber }
            }
            Kind::Kafka => {
                let kafka = tokio::task::spawn_blocking(|| Kafka::start(KafkaOptions::default())).await??;
                Self::Kafka(Topic::on(Arc::new(kafka), "bench").await?)
            }
        })
    }

    /// Where a client connects to.
    pub(crate) fn address(&self) -> Result<std::net::SocketAddr> {
        match self {
            Self::Process(peer) | Self::Mosquitto { subscriber: peer, .. } => Ok(peer.address()),
            Self::Kafka(topic) => Ok(topic.kafka.bootstrap().parse()?),
        }
    }

    /// The far end's part of an integration's `clientConfiguration`.
    pub(crate) fn client_configuration(&self, kind: Kind, settings: &KafkaSettings) -> Result<Value> {
        let address = self.address()?;
        Ok(match self {
            Self::Kafka(topic) => json!({
                "sendOnlyMsgPayload": true,
                "bootstrapServers": address,
                "topic": topic.name,
                "acks": settings.acks,
                "linger": settings.linger_ms,
                "batchSize": settings.batch_size,
                "compression": "none",
            }),
            _ if kind == Kind::Http => json!({
                "sendOnlyMsgPayload": true,
                "restEndpointUrl": format!("http://{address}/in"),
                "maxInMemoryBufferSizeInKb": 256,
            }),
            _ => json!({
                "sendOnlyMsgPayload": true,
                "host": address.ip().to_string(),
                "port": address.port(),
                "useMsgTopicName": true,
                "clientId": "bench-integration",
                "mqttVersion": 4,
                "qos": 1,
                "useMsgQoS": false,
                "useMsgRetain": false,
                "connectTimeoutSec": 10,
                "reconnectPeriodSec": 1,
                "keepAliveSec": 60,
            }),
        })
    }

    /// The far end's topic is to be a new one, if it has any.
    pub(crate) async fn renew(&mut self) -> Result<()> {
        match self {
            Self::Kafka(topic) => topic.renew().await,
            Self::Process(_) | Self::Mosquitto { .. } => Ok(()),
        }
    }

    /// Begins a new count: so many messages, whose sequences are not below `first`.
    pub(crate) async fn expect(&mut self, messages: u64, first: u64) -> Result<()> {
        match self {
            Self::Process(peer) | Self::Mosquitto { subscriber: peer, .. } => {
                peer.expect(messages, first).await
            }
            Self::Kafka(topic) => topic.expect(messages, first).await,
        }
    }

    /// Waits until the first message has arrived. Returns how many have when this is known: a topic is only looked at now
    /// and then.
    pub(crate) async fn first(&mut self) -> Result<u64> {
        match self {
            Self::Process(peer) | Self::Mosquitto { subscriber: peer, .. } => peer.first().await.map(|()| 1),
            Self::Kafka(topic) => topic.grown_to(topic.from + 1).await.map(|end| end - topic.from),
        }
    }

    /// Waits until everything has arrived, or nothing comes any more. To be called after [`FarEnd::first`].
    pub(crate) async fn done(&mut self) -> Result<Seen> {
        match self {
            Self::Process(peer) | Self::Mosquitto { subscriber: peer, .. } => peer.done().await,
            Self::Kafka(topic) => topic.done().await,
        }
    }

    /// CPU time of what the sink talks to, and of the subscriber beside it.
    pub(crate) fn cpu(&self) -> Result<[Duration; 2]> {
        Ok(match self {
            Self::Process(peer) => [peer.cpu()?, Duration::ZERO],
            Self::Mosquitto { broker, subscriber } => [Usage::of(broker.pid())?.cpu, subscriber.cpu()?],
            Self::Kafka(topic) => [Usage::of(topic.kafka.pid())?.cpu, Duration::ZERO],
        })
    }
}

/// How a producer is told to work, ours and the bare one.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct KafkaSettings {
    /// Acknowledgements that the Kafka sink asks for.
    #[arg(long, default_value = "all")]
    pub(crate) acks: String,
    /// How long its records wait for others, ms.
    #[arg(long, default_value_t = 5)]
    pub(crate) linger_ms: u32,
    /// Bytes of its batches.
    #[arg(long, default_value_t = 131_072)]
    pub(crate) batch_size: u32,
}

/// A topic of one partition. Nobody reads it until it has everything.
pub(crate) struct Topic {
    kafka: Arc<Kafka>,
    bus: Arc<KafkaBus>,
    /// Of the names.
    prefix: &'static str,
    pub(crate) name: String,
    number: u32,
    /// Where the count begins.
    from: u64,
    expected: u64,
    /// Sequences below are of an earlier count.
    first: u64,
}

impl Topic {
    pub(crate) async fn on(kafka: Arc<Kafka>, prefix: &'static str) -> Result<Self> {
        let bus = KafkaBus::new(KafkaConfig::new(kafka.bootstrap()))?;
        let name = String::new();
        let mut topic = Self { kafka, bus, prefix, name, number: 0, from: 0, expected: 0, first: 0 };
        topic.renew().await?;
        Ok(topic)
    }

    /// Its server's address.
    pub(crate) fn server(&self) -> String {
        self.kafka.bootstrap()
    }

    async fn renew(&mut self) -> Result<()> {
        self.number += 1;
        self.name = format!("{}-{}", self.prefix, self.number);
        self.create(&self.name).await?;
        self.from = 0;
        Ok(())
    }

    async fn create(&self, name: &str) -> Result<()> {
        let spec = TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            replication_factor: 1,
            policy: CleanupPolicy::Delete,
            // The broker's clock tells when a record arrived.
            settings: vec![("message.timestamp.type".to_owned(), "LogAppendTime".to_owned())],
        };
        self.bus.admin().create_topic(&spec).await?;
        Ok(())
    }

    /// Creates so many topics beside it, and tells their names; those of another set are others.
    pub(crate) async fn siblings(&self, set: u64, count: u32) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for number in 0..count {
            let name = format!("{}-{set}-{number}", self.name);
            self.create(&name).await?;
            names.push(name);
        }
        Ok(names)
    }

    async fn expect(&mut self, messages: u64, first: u64) -> Result<()> {
        (self.from, self.expected, self.first) = (self.end().await?, messages, first);
        Ok(())
    }

    async fn end(&self) -> Result<u64> {
        let bounds = self.bus.admin().bounds(&[self.partition()]).await?;
        Ok(bounds.first().context("no bounds")?.end)
    }

    fn partition(&self) -> TopicPartition {
        TopicPartition::new(self.name.as_str(), 0)
    }

    /// Waits until the topic ends there, or no more records come. Returns where it ends.
    async fn grown_to(&self, records: u64) -> Result<u64> {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let end = self.end().await?;
            if end != seen {
                (seen, since) = (end, Instant::now());
            }
            if end >= records || since.elapsed() > PATIENCE {
                return Ok(end);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn done(&self) -> Result<Seen> {
        let mut wanted = self.from + self.expected;
        loop {
            let end = self.grown_to(wanted).await?;
            let seen = self.read(end).await?;
            if seen.different >= self.expected || end < wanted {
                return Ok(seen);
            }
            // Some came twice.
            wanted = end + self.expected - seen.different;
        }
    }

    /// What lies there. A latency ends when the server appended the record, by its clock of whole ms.
    async fn read(&self, end: u64) -> Result<Seen> {
        let mut reader = self.bus.reader(ReaderConfig::new("bench-count", None)).await?;
        reader.add(&self.partition(), Start::Offset(self.from));
        let (mut different, mut position) = (HashSet::new(), self.from);
        let mut arrived = 0;
        let mut times: Option<(i64, i64)> = None;
        let mut latency_us = page::latencies_us()?;
        while position < end {
            let event =
                tokio::time::timeout(PATIENCE, reader.next()).await.context("the sink's topic is silent")?;
            let ReaderEvent::Batch { records, .. } = event else {
                ensure!(matches!(event, ReaderEvent::End { .. }), "{event:?}");
                continue;
            };
            for record in records {
                position = record.offset + 1;
                let mark =
                    record.value.as_deref().and_then(Mark::parse).context("a record without a mark")?;
                if mark.sequence < self.first {
                    continue;
                }
                arrived += 1;
                if different.insert((mark.publisher, mark.sequence)) && mark.sent_ns > 0 {
                    let appended_ns = u64::try_from(record.timestamp_ms)? * 1_000_000;
                    latency_us.saturating_record(appended_ns.saturating_sub(mark.sent_ns) / 1_000);
                }
                let (first, _) = *times.get_or_insert((record.timestamp_ms, record.timestamp_ms));
                times = Some((first, record.timestamp_ms));
            }
        }
        let (first, last) = times.unwrap_or_default();
        let ms = |quantile: f64| latency_us.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Seen {
            arrived,
            different: different.len() as u64,
            elapsed: Duration::from_millis((last - first).max(1) as u64),
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            p999_ms: ms(0.999),
        })
    }
}
