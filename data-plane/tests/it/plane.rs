//! A running data plane, and the control plane's half of its topics.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prost::Message as _;
use tbmq_bus::{
    Bus as _, Header, Outgoing, Reader, ReaderConfig, ReaderEvent, Record, Start, TopicPartition,
    WriterConfig, spec_of, write,
};
use tbmq_data_plane::{Config, Context, Running, start};
use tbmq_proto::{
    ids::IntegrationId,
    integration::PublishIntegrationMsgProto,
    queue::{ClientSubscriptionsProto, SubscriptionOptionsProto, TopicSubscriptionProto},
    topic::{Catalogue, REVISION_HEADER, Topic},
};
use tbmq_service::{admin::Health, identity::Identity, metrics::Metrics, trace::Tracer};

use crate::bus::TestBus;

pub(crate) struct Plane {
    pub(crate) bus: Arc<TestBus>,
    pub(crate) address: SocketAddr,
    pub(crate) running: Running,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
}

pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.listener.tcp.bind_address = "127.0.0.1".parse().unwrap();
    config.listener.tcp.bind_port = 0;
    config.listener.ws.enabled = false;
    config
}

pub(crate) fn context(bus: &Arc<TestBus>) -> Context {
    Context {
        bus: bus.clone(),
        catalogue: Catalogue::default(),
        replication_factor: 1,
        identity: Identity::of("data-plane", Some("node-1")),
        metrics: Metrics::default(),
        health: Health::default(),
        tracer: Tracer::off(),
        sessions: None,
    }
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::with(TestBus::new(), config()).await
    }

    pub(crate) async fn with(bus: Arc<TestBus>, config: Config) -> Self {
        let context = context(&bus);
        Self::within(bus, config, context).await
    }

    pub(crate) async fn within(bus: Arc<TestBus>, config: Config, context: Context) -> Self {
        let (metrics, health) = (context.metrics.clone(), context.health.clone());
        let running = start(config, context).await.unwrap();
        let address = running.addresses()[0].1;
        Self { bus, address, running, metrics, health }
    }

    /// Where it listens with this scheme.
    pub(crate) fn at(&self, scheme: &str) -> SocketAddr {
        self.running.addresses().into_iter().find(|(found, _)| *found == scheme).unwrap().1
    }

    /// The value of a counter or gauge by its line's beginning.
    pub(crate) fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.encode();
        text.lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))
            .map_or(0, |value| value.parse().unwrap())
    }

    /// An integration with a topic and these filters, once the plane has applied it.
    pub(crate) async fn integration(&self, number: u128, filters: &[&str]) -> IntegrationId {
        let before = self.metric("tbmq_subscriptions_integrations");
        let id = integration(&self.bus, number, filters).await;
        until(|| self.metric("tbmq_subscriptions_integrations") > before).await;
        id
    }

    /// Reads this many records of an integration from its beginning.
    pub(crate) async fn records(
        &self,
        id: IntegrationId,
        count: usize,
    ) -> Vec<(Record, PublishIntegrationMsgProto)> {
        let mut reader = self.reader(id).await;
        let mut all = Vec::new();
        while all.len() < count {
            let event =
                tokio::time::timeout(Duration::from_secs(20), reader.next()).await.expect("records in time");
            if let ReaderEvent::Batch { records, .. } = event {
                all.extend(records.into_iter().map(|record| {
                    let decoded =
                        PublishIntegrationMsgProto::decode(record.value.clone().unwrap_or_default()).unwrap();
                    (record, decoded)
                }));
            }
        }
        assert_eq!(all.len(), count);
        all
    }

    pub(crate) async fn reader(&self, id: IntegrationId) -> Box<dyn Reader> {
        let mut reader = self.bus.reader(ReaderConfig::new("test", None)).await.unwrap();
        let topic = Catalogue::default().messages(id, 1).name;
        reader.add(&TopicPartition::new(topic, 0), Start::Earliest);
        reader
    }

    /// Records in an integration's topic now.
    pub(crate) async fn count(&self, id: IntegrationId) -> u64 {
        let partition = TopicPartition::new(Catalogue::default().messages(id, 1).name, 0);
        let bounds = self.bus.admin().bounds(&[partition]).await.unwrap();
        bounds[0].end - bounds[0].start
    }
}

/// What the control plane does when an integration is created.
pub(crate) async fn integration(bus: &TestBus, number: u128, filters: &[&str]) -> IntegrationId {
    let id = IntegrationId(uuid::Uuid::from_u128(number));
    bus.admin().create_topic(&spec_of(&Catalogue::default().messages(id, 1), 1)).await.unwrap();
    filter_record(bus, &id.to_string(), Some(filters), 1).await;
    id
}

/// Writes a record of integration filters; `None`: a tombstone.
pub(crate) async fn filter_record(bus: &TestBus, key: &str, filters: Option<&[&str]>, revision: u64) {
    let value = filters.map(|filters| {
        let subscriptions = filters.iter().map(|filter| TopicSubscriptionProto {
            topic: (*filter).to_owned(),
            qos: 1,
            share_name: None,
            options: Some(SubscriptionOptionsProto::default()),
            subscription_id: None,
        });
        ClientSubscriptionsProto { subscriptions: subscriptions.collect(), source: Some(1) }.encode_to_vec()
    });
    let topic = Catalogue::default().integration_subscriptions();
    put(bus, &topic, key, value.as_deref(), Some(&revision.to_string())).await;
}

/// Writes a record as another process does, with this revision in its headers, if any; without a value: a tombstone.
pub(crate) async fn put(
    bus: &TestBus,
    topic: &Topic,
    key: &str,
    value: Option<&[u8]>,
    revision: Option<&str>,
) {
    bus.admin().create_topic(&spec_of(topic, 1)).await.unwrap();
    let writer = bus.inner.writer(WriterConfig::new("another process")).await.unwrap();
    let header = revision.map(|revision| Header::text(REVISION_HEADER, revision));
    let record = Outgoing { partition: None, key: Some(key.as_bytes()), value, headers: header.as_slice() };
    write(&*writer, &writer.topic(&topic.name), record).await.unwrap();
}

/// Waits until a condition holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("the condition holds in time");
}
