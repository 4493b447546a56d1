//! The MQTT sink against real brokers, Mosquitto and our own, each behind a proxy that keeps answers back or is away.

use std::{
    collections::HashSet,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use serde_json::{Map, Value, json};
use tbmq_harness::{
    Need,
    client::Client,
    mosquitto::{Broker as Mosquitto, BrokerOptions},
    process::{Process, data_dir},
    proxy::{Mode, Proxy},
    ready,
};
use tbmq_mqtt::packet::{Ack, Connect, Packet, ProtocolVersion, Qos, ReasonCode};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

use super::{Mqtt, SOON, configuration_for, impatient};
use crate::{
    conformance::{Behaviour, Fixture},
    sink::SinkKind,
    sinks::SinkSettings,
};

/// Longer than any test.
const EVER: Duration = Duration::from_secs(3600);

/// A broker that the fixtures of a test process share as long as there is one.
trait Server: Send + Sync {
    fn address(&self) -> SocketAddr;
}

impl Server for Mosquitto {
    fn address(&self) -> SocketAddr {
        Mosquitto::address(self)
    }
}

/// Our own broker, all planes in one process.
struct Tbmq {
    process: Process,
    _data: TempDir,
}

impl Tbmq {
    fn start() -> Self {
        let data = data_dir().unwrap();
        let mut environment = vec![
            ("TBMQ_DATA_DIR".to_owned(), data.path().display().to_string()),
            ("TCP_NETTY_MAX_PAYLOAD_SIZE".to_owned(), (2 << 20).to_string()),
        ];
        for port in
            ["LISTENER_TCP_BIND_PORT", "LISTENER_WS_BIND_PORT", "CONTROL_GRPC_BIND_PORT", "HTTP_BIND_PORT"]
        {
            environment.push((port.to_owned(), "0".to_owned()));
        }
        let process = Process::start("tbmq", &[], &environment, &["mqtt"]).unwrap();
        Self { process, _data: data }
    }
}

impl Server for Tbmq {
    fn address(&self) -> SocketAddr {
        self.process.address("mqtt")
    }
}

/// The server that runs, or a new one. Blocks until it listens.
fn shared<S>(running: &Mutex<Weak<S>>, start: impl FnOnce() -> S) -> Arc<S> {
    let mut running = running.lock();
    running.upgrade().unwrap_or_else(|| {
        let server = Arc::new(start());
        *running = Arc::downgrade(&server);
        server
    })
}

async fn on_mosquitto() -> RealFixture {
    static RUNNING: Mutex<Weak<Mosquitto>> = Mutex::new(Weak::new());
    let start = || {
        assert!(ready("the MQTT sink", &[Need::MosquittoBroker]), "these tests need Mosquitto");
        // By default it takes 20 at once; the suite has a burst of 60.
        let lines = vec!["max_inflight_messages 100".to_owned()];
        Mosquitto::start(&BrokerOptions { lines, ..BrokerOptions::default() }).unwrap()
    };
    RealFixture::start(move || shared(&RUNNING, start)).await
}

mod mosquitto {
    crate::conformance::suite!(super::super::on_mosquitto);
}

async fn on_tbmq() -> RealFixture {
    static RUNNING: Mutex<Weak<Tbmq>> = Mutex::new(Weak::new());
    RealFixture::start(|| shared(&RUNNING, Tbmq::start)).await
}

mod tbmq {
    crate::conformance::suite!(super::super::on_tbmq);
}

/// Runs proxies and subscribers beside the tests, which block while they wait for a subscriber.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
}

async fn beside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    runtime().spawn(work).await.unwrap()
}

/// Payloads that a subscriber of the broker got.
#[derive(Default)]
struct Arrived {
    payloads: Mutex<Vec<Bytes>>,
    changed: Condvar,
}

impl Arrived {
    /// Waits until it is so; blocks.
    fn until(&self, is_so: impl Fn(&[Bytes]) -> bool, what: &str) -> Vec<Bytes> {
        let deadline = Instant::now() + SOON;
        let mut payloads = self.payloads.lock();
        while !is_so(&payloads) {
            let is_late = self.changed.wait_until(&mut payloads, deadline).timed_out();
            assert!(!is_late, "{what} arrive, among {}", payloads.len());
        }
        payloads.clone()
    }
}

struct RealFixture {
    proxy: Proxy,
    /// Nothing else is published to it.
    topic: String,
    arrived: Arc<Arrived>,
    _subscriber: JoinSet<()>,
    /// Publishes that the broker had acknowledged when answers began to be held.
    before: u64,
    /// Goes last.
    _server: Arc<dyn Server>,
}

impl RealFixture {
    async fn start<S: Server + 'static>(server: impl FnOnce() -> Arc<S> + Send + 'static) -> Self {
        static FIXTURES: AtomicUsize = AtomicUsize::new(0);
        let server = tokio::task::spawn_blocking(server).await.unwrap();
        let topic = format!("conformance/{}", FIXTURES.fetch_add(1, Ordering::Relaxed));
        let address = server.address();
        let proxy = beside(async move { Proxy::mqtt(address).await.unwrap() }).await;
        let arrived = Arc::new(Arrived::default());
        let filter = topic.clone();
        let mut client = beside(async move { subscriber(address, &filter).await }).await;
        let mut subscriber = JoinSet::new();
        let into = arrived.clone();
        let collecting = async move {
            // The broker ends with the last fixture.
            while let Ok(packet) = client.receive_within(EVER).await {
                let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
                let id = publish.packet_id.expect("published and subscribed with QoS 1");
                into.payloads.lock().push(publish.payload);
                into.changed.notify_all();
                if client.send(&Packet::PubAck(Ack::new(id, ReasonCode::Success))).await.is_err() {
                    return;
                }
            }
        };
        subscriber.spawn_on(collecting, runtime().handle());
        Self { proxy, topic, arrived, _subscriber: subscriber, before: 0, _server: server }
    }

    fn configuration(&self, changes: &Value) -> Map<String, Value> {
        let mut configuration = configuration_for(self.proxy.address(), changes);
        configuration.insert("clientId".to_owned(), self.topic.replace('/', "_").into());
        configuration.insert("useMsgTopicName".to_owned(), false.into());
        configuration.insert("topicName".to_owned(), self.topic.clone().into());
        configuration
    }
}

async fn subscriber(broker: SocketAddr, topic: &str) -> Client {
    let connect =
        Connect::new(ProtocolVersion::V311, format!("{}_subscriber", topic.replace('/', "_")).as_str());
    let (mut client, connack) = Client::connect_with(broker, connect).await.unwrap();
    assert_eq!(connack.reason, ReasonCode::Success);
    client.subscribe(topic, Qos::AtLeastOnce).await.unwrap();
    client
}

#[async_trait]
impl Fixture for RealFixture {
    fn kind(&self) -> Arc<dyn SinkKind> {
        Arc::new(Mqtt::new(SinkSettings::default()))
    }

    fn client_configuration(&self) -> Map<String, Value> {
        self.configuration(&json!({}))
    }

    fn impatient_configuration(&self) -> Map<String, Value> {
        self.client_configuration()
    }

    fn impatient_kind(&self) -> Arc<dyn SinkKind> {
        Arc::new(Mqtt::new(impatient()))
    }

    fn configuration_at(&self, address: SocketAddr) -> Map<String, Value> {
        self.configuration(&json!({"port": address.port(), "connectTimeoutSec": 1}))
    }

    fn notices_absence(&self) -> bool {
        true
    }

    async fn behave(&mut self, behaviour: Behaviour) {
        let mode = match behaviour {
            Behaviour::Confirm => Mode::Passing,
            Behaviour::Hold => Mode::HoldingAnswers,
            Behaviour::Away => Mode::Down,
        };
        self.before = *self.proxy.acknowledged().borrow();
        self.proxy.set_mode(mode).await.unwrap();
    }

    async fn held(&mut self, count: usize) {
        let all = self.before + count as u64;
        self.proxy.acknowledged().wait_for(|acknowledged| *acknowledged >= all).await.unwrap();
    }

    /// The broker tells the subscriber later than it acknowledges; what it acknowledged is waited for.
    fn received(&self) -> Vec<Bytes> {
        let acknowledged = *self.proxy.acknowledged().borrow();
        let are_there = |payloads: &[Bytes]| payloads.len() as u64 >= acknowledged;
        self.arrived.until(are_there, &format!("{acknowledged} acknowledged messages"))
    }

    /// What came twice, because its acknowledgement was lost, would count for another.
    async fn all_arrived(&mut self, different: usize) {
        let are_there = |payloads: &[Bytes]| payloads.iter().collect::<HashSet<_>>().len() >= different;
        self.arrived.until(are_there, &format!("{different} different messages"));
    }
}
