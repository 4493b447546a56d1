//! The peers that integrations deliver to, each behind a proxy.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use http::StatusCode;
use serde_json::{Value, json};
use tbmq_bus::{
    Bus, CleanupPolicy, ReaderConfig, ReaderEvent, Start, TopicPartition, TopicSpec,
    kafka::{KafkaBus, KafkaConfig},
};
use tbmq_harness::{
    client::Client,
    http_sink::{HttpSink, Received},
    kafka::{Kafka, KafkaOptions},
    ledger::Mark,
    mosquitto::{Broker, BrokerOptions},
    postgres::free_port,
    proxy::{Mode, Proxy},
};
use tbmq_mqtt::packet::{Ack, Connect, Packet, ProtocolVersion, Qos, ReasonCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::{JoinHandle, block_in_place},
};

use super::{Fault, Kind};

/// The topic that Kafka's integration writes to.
const TOPIC: &str = "delivered";

/// How long a connection lives while they are cut.
const CUT_AFTER: Duration = Duration::from_secs(1);

/// How long Kafka refuses, and how long it does not, in turn.
const TURN: Duration = Duration::from_secs(1);

/// What hears of each arrival.
pub(super) type Arrivals = Arc<dyn Fn(Mark, Instant) + Send + Sync>;

/// A peer, its proxy, and what reads from it past the proxy.
pub(super) struct Peer {
    pub(super) kind: Kind,
    proxy: Proxy,
    server: Server,
}

enum Server {
    Http(HttpSink),
    Mqtt { reader: Reader, _broker: Broker },
    Kafka { refusing: Option<Refusing>, reader: Reader, kafka: Kafka },
}

/// A task that ends when dropped.
struct Reader(JoinHandle<()>);

impl Reader {
    /// Reads until an error, which is fatal for the round: what arrives later is missing.
    fn spawn(kind: Kind, reading: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self(tokio::spawn(async move {
            if let Err(error) = reading.await {
                eprintln!("nothing is read any more of what {kind} delivers: {error:#}");
            }
        }))
    }
}

impl Reader {
    async fn end(&mut self) {
        self.0.abort();
        // That it was aborted is no news.
        drop((&mut self.0).await);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Peer {
    /// Starts a peer, a proxy before it, and a reader behind it.
    pub(super) async fn start(kind: Kind, arrivals: Arrivals) -> Result<Self> {
        match kind {
            Kind::Http => Self::http(arrivals).await,
            Kind::Mqtt => Self::mqtt(arrivals).await,
            Kind::Kafka => Self::kafka(arrivals).await,
        }
        .with_context(|| format!("starting the peer of {kind}"))
    }

    async fn http(arrivals: Arrivals) -> Result<Self> {
        let observer = move |received: Received| {
            if let Some(mark) = Mark::parse(&received.body).filter(|_| received.status.is_success()) {
                arrivals(mark, received.at);
            }
        };
        let sink = HttpSink::observed(observer).await?;
        let proxy = Proxy::start(sink.address()).await?;
        Ok(Self { kind: Kind::Http, proxy, server: Server::Http(sink) })
    }

    async fn mqtt(arrivals: Arrivals) -> Result<Self> {
        // It keeps whatever its subscriber has not taken yet.
        let lines = ["max_queued_messages 0", "max_inflight_messages 0"].map(str::to_owned).to_vec();
        let options = BrokerOptions { lines, ..BrokerOptions::default() };
        let broker = block_in_place(|| Broker::start(&options))?;
        let mut client = subscriber(broker.address()).await?;
        let reading = async move {
            loop {
                let packet = client.receive_within(Duration::MAX).await?;
                let Packet::Publish(publish) = packet else { continue };
                if let Some(mark) = Mark::parse(&publish.payload) {
                    arrivals(mark, Instant::now());
                }
                if let Some(packet_id) = publish.packet_id {
                    client.send(&Packet::PubAck(Ack::new(packet_id, ReasonCode::Success))).await?;
                }
            }
        };
        let proxy = Proxy::mqtt(broker.address()).await?;
        let server = Server::Mqtt { reader: Reader::spawn(Kind::Mqtt, reading), _broker: broker };
        Ok(Self { kind: Kind::Mqtt, proxy, server })
    }

    async fn kafka(arrivals: Arrivals) -> Result<Self> {
        let address = || Ok::<_, anyhow::Error>(SocketAddr::from(([127, 0, 0, 1], free_port()?)));
        let (direct, proxied, controller) = (address()?, address()?, address()?);
        let proxy = Proxy::start(proxied).await?;
        // Clients of the proxied listener are told to come through the proxy, wherever they go.
        let properties = [
            ("controller.quorum.voters", format!("1@{controller}")),
            ("listeners", format!("PLAINTEXT://{direct},PROXIED://{proxied},CONTROLLER://{controller}")),
            ("advertised.listeners", format!("PLAINTEXT://{direct},PROXIED://{}", proxy.address())),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned(),
            ),
            ("inter.broker.listener.name", "PLAINTEXT".to_owned()),
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned()),
            ("allow.everyone.if.no.acl.found", "true".to_owned()),
        ];
        let properties = properties.map(|(key, value)| (key.to_owned(), value)).to_vec();
        let options = KafkaOptions { port: Some(direct.port()), properties, ..KafkaOptions::default() };
        let kafka = block_in_place(|| Kafka::start(options))?;
        let bus = KafkaBus::new(KafkaConfig::new(kafka.bootstrap()))?;
        let spec = TopicSpec {
            name: TOPIC.to_owned(),
            partitions: 1,
            replication_factor: 1,
            policy: CleanupPolicy::Delete,
            settings: Vec::new(),
        };
        bus.admin().create_topic(&spec).await?;
        // Else nobody may do anything with a topic as soon as it has a list.
        Acl::Create.send(&kafka.bootstrap(), Operation::All, Permission::Allow).await?;
        let mut reader = bus.reader(ReaderConfig::new("delivered", None)).await?;
        reader.add(&TopicPartition::new(TOPIC, 0), Start::Earliest);
        let reading = async move {
            // The bus lives as long as its reader.
            let _bus = bus;
            loop {
                match reader.next().await {
                    ReaderEvent::Batch { records, .. } => {
                        let now = Instant::now();
                        let values = records.iter().filter_map(|record| record.value.as_deref());
                        values.filter_map(Mark::parse).for_each(|mark| arrivals(mark, now));
                    }
                    ReaderEvent::End { .. } => {}
                    other => bail!("{other:?}"),
                }
            }
        };
        let server = Server::Kafka { refusing: None, reader: Reader::spawn(Kind::Kafka, reading), kafka };
        Ok(Self { kind: Kind::Kafka, proxy, server })
    }

    /// `clientConfiguration` of the integration that delivers here: bare payloads, and the shortest timeouts that the
    /// kind has.
    pub(super) fn client_configuration(&self) -> Value {
        let address = self.proxy.address();
        match self.kind {
            Kind::Http => json!({
                "restEndpointUrl": format!("http://{address}/in"), "requestMethod": "POST", "sendOnlyMsgPayload": true,
                "payloadContentType": "BINARY", "maxInMemoryBufferSizeInKb": 256, "readTimeoutMs": 1000,
            }),
            Kind::Mqtt => json!({
                "host": address.ip(), "port": address.port(), "sendOnlyMsgPayload": true, "clientId": "under-fire",
                "credentials": {"type": "anonymous"}, "ssl": false, "mqttVersion": 5, "useMsgTopicName": true,
                "useMsgQoS": true, "useMsgRetain": true, "connectTimeoutSec": 1, "reconnectPeriodSec": 1,
                "keepAliveSec": 1,
            }),
            Kind::Kafka => json!({
                "bootstrapServers": address.to_string(), "topic": TOPIC, "sendOnlyMsgPayload": true, "acks": "-1",
                "compression": "none", "otherProperties": {
                    "request.timeout.ms": "1000", "socket.connection.setup.timeout.ms": "1000",
                    "reconnect.backoff.max.ms": "200",
                },
            }),
        }
    }

    /// Lets a fault begin.
    pub(super) async fn strike(&mut self, fault: Fault) -> Result<()> {
        match (fault, &mut self.server) {
            (Fault::Down, _) => self.proxy.set_mode(Mode::Down).await,
            (Fault::BlackHole, _) => self.proxy.set_mode(Mode::BlackHole).await,
            (Fault::Reconnecting, _) => self.proxy.set_mode(Mode::Cutting(CUT_AFTER)).await,
            (Fault::RefusingHalf, Server::Mqtt { .. }) => self.proxy.set_mode(Mode::RefusingHalf).await,
            (Fault::RefusingHalf, Server::Http(sink)) => {
                let count = AtomicU64::new(0);
                sink.script(move |_, _, _| {
                    let is_refused = count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
                    let status = if is_refused { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
                    (status, Duration::ZERO)
                });
                Ok(())
            }
            (Fault::RefusingHalf, Server::Kafka { kafka, refusing, .. }) => {
                *refusing = Some(Refusing::begin(kafka.bootstrap()));
                Ok(())
            }
        }
    }

    /// Ends whatever fault there is.
    pub(super) async fn heal(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Http(sink) => sink.script(|_, _, _| (StatusCode::OK, Duration::ZERO)),
            Server::Mqtt { .. } => {}
            Server::Kafka { refusing, .. } => {
                if let Some(refusing) = refusing.take() {
                    refusing.end().await?;
                }
            }
        }
        self.proxy.set_mode(Mode::Passing).await
    }

    /// Ends the reader before what it reads from.
    pub(super) async fn end(mut self) {
        if let Server::Mqtt { reader, .. } | Server::Kafka { reader, .. } = &mut self.server {
            reader.end().await;
        }
    }
}

async fn subscriber(broker: SocketAddr) -> Result<Client> {
    let connect = Connect::new(ProtocolVersion::V5, "reader");
    let (mut client, connack) = Client::connect_with(broker, connect).await?;
    ensure!(connack.reason == ReasonCode::Success, "Mosquitto answers {:?}", connack.reason);
    client.subscribe("#", Qos::AtLeastOnce).await?;
    Ok(client)
}

/// Kafka refuses every write for a while, and takes them again, in turn: the right to write is taken away.
struct Refusing {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

impl Refusing {
    fn begin(bootstrap: String) -> Self {
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let task = tokio::spawn(async move {
            loop {
                for change in [Acl::Create, Acl::Delete] {
                    change.send(&bootstrap, Operation::Write, Permission::Deny).await?;
                    if tokio::time::timeout(TURN, stopped.wait_for(|stop| *stop)).await.is_ok() {
                        return Acl::Delete.send(&bootstrap, Operation::Write, Permission::Deny).await;
                    }
                }
            }
        });
        Self { stop, task }
    }

    async fn end(self) -> Result<()> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

/// A change of the topic's access control list: `CreateAcls` or `DeleteAcls`, which look alike.
#[derive(Clone, Copy)]
enum Acl {
    Create = 30,
    Delete = 31,
}

#[derive(Clone, Copy)]
enum Operation {
    All = 2,
    Write = 4,
}

#[derive(Clone, Copy)]
enum Permission {
    Deny = 2,
    Allow = 3,
}

impl Acl {
    /// Changes what everyone may do. By a request of its own: Kafka's tool would start a JVM each time.
    async fn send(self, bootstrap: &str, operation: Operation, permission: Permission) -> Result<()> {
        const VERSION: i16 = 1;
        const TOPIC_RESOURCE: u8 = 2;
        const LITERAL: u8 = 3;
        let mut request = Vec::new();
        let string = |request: &mut Vec<u8>, text: &str| -> Result<()> {
            request.extend(i16::try_from(text.len())?.to_be_bytes());
            request.extend(text.as_bytes());
            Ok(())
        };
        request.extend((self as i16).to_be_bytes());
        request.extend(VERSION.to_be_bytes());
        // Correlation id, and the number of changes.
        request.extend(0_i32.to_be_bytes());
        string(&mut request, "faults")?;
        request.extend(1_i32.to_be_bytes());
        request.push(TOPIC_RESOURCE);
        string(&mut request, TOPIC)?;
        request.push(LITERAL);
        string(&mut request, "User:ANONYMOUS")?;
        string(&mut request, "*")?;
        request.extend([operation as u8, permission as u8]);

        let mut stream = TcpStream::connect(bootstrap).await?;
        stream.write_i32(i32::try_from(request.len())?).await?;
        stream.write_all(&request).await?;
        let mut response = vec![0; usize::try_from(stream.read_i32().await?)?];
        stream.read_exact(&mut response).await?;
        // Correlation id, throttle time and the number of results come before the error code.
        let code = response.get(12..14).context("a short answer")?;
        ensure!(code == [0, 0], "Kafka answers a change of its access control list with the error {code:?}");
        Ok(())
    }
}
