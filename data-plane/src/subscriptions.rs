//! Integration filters: read completely before anything is served, followed afterwards (architecture §4.8, §4.22).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;
use prost::Message as _;
use tbmq_bus::{Admin, Reader, ReaderConfig, ReaderEvent, Record, Start, TopicPartition, spec_of};
use tbmq_mqtt::topic::{self, Rules};
use tbmq_proto::{
    ids::{IntegrationId, ServiceId},
    queue::ClientSubscriptionsProto,
    topic::REVISION_HEADER,
};
use tbmq_service::{admin::Component, identity::Superseded};
use tokio::sync::watch;

use crate::{Context, metrics::Metrics, peers::Peers, route::Router};

/// How often the end of the topic is asked for.
const CONFIRM_PERIOD: Duration = Duration::from_secs(5);

/// Without a confirmed position for so long, the plane is degraded.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two tries to reach the bus.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Reads integration filters into the router.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    reader: Box<dyn Reader>,
    filters: TopicPartition,
    applier: Applier,
    peers: Peers,
    position: Arc<AtomicU64>,
    changed: watch::Sender<u64>,
    context: Context,
    metrics: Metrics,
}

impl Subscriptions {
    /// Makes sure that the topics exist and reads all filters there are. Waits for the bus as long as it takes, telling
    /// `component` why.
    pub(crate) async fn open(
        context: &Context,
        service: &ServiceId,
        router: Arc<Router>,
        metrics: Metrics,
        component: &Component,
    ) -> anyhow::Result<Self> {
        let catalogue = &context.catalogue;
        let topics = [catalogue.integration_subscriptions(), catalogue.node_applied()];
        for topic in &topics {
            let spec = spec_of(topic, context.replication_factor);
            while let Err(error) = context.bus.admin().create_topic(&spec).await {
                tracing::warn!(%error, topic = topic.name, "can't prepare a topic");
                component.down(format!("can't prepare topic {}: {error}", topic.name));
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        component.down("reading the filters of integrations");
        let config =
            ReaderConfig::new(catalogue.client_id("integration-subscriptions-consumer", service), None);
        let mut reader = context.bus.reader(config).await?;
        let [filters, applied] = topics.map(|topic| TopicPartition::new(topic.name, 0));
        reader.add(&filters, Start::Earliest);
        reader.add(&applied, Start::Earliest);
        let mut opened = Self {
            reader,
            filters,
            applier: Applier::new(router, metrics.clone()),
            peers: Peers::new(&context.identity),
            position: Arc::default(),
            changed: watch::channel(0).0,
            context: context.clone(),
            metrics,
        };
        // Nobody can supersede us before we have caught up with what is known of nodes.
        while !matches!(opened.step().await, Some(Seen::Complete)) {}
        component.up();
        tracing::info!(
            position = opened.position.load(Ordering::Relaxed),
            integrations = opened.applier.revisions.len(),
            "integration filters are known"
        );
        Ok(opened)
    }

    /// The position below which everything is applied, as it changes.
    pub(crate) fn positions(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Name of the topic that the positions belong to.
    pub(crate) fn topic(&self) -> &str {
        &self.filters.topic
    }

    /// What [`confirm`] needs.
    pub(crate) fn confirmation(&self) -> Confirmation {
        Confirmation {
            admin: self.context.bus.admin(),
            partition: self.filters.clone(),
            position: self.position.clone(),
        }
    }

    /// Follows the topic; returns only when a newer incarnation of our service id has taken over.
    pub(crate) async fn run(mut self) -> Superseded {
        loop {
            if let Some(Seen::Superseded(superseded)) = self.step().await {
                return superseded;
            }
        }
    }

    /// Handles one event.
    async fn step(&mut self) -> Option<Seen> {
        match self.reader.next().await {
            ReaderEvent::Batch { partition, records } if partition == self.filters => {
                for record in &records {
                    self.applier.apply(&partition, record);
                }
                if let Some(last) = records.last() {
                    self.advance(last.offset + 1);
                }
            }
            ReaderEvent::End { partition, position } if partition == self.filters => {
                self.advance(position);
                return Some(Seen::Complete);
            }
            ReaderEvent::Gap { partition, from, to } if partition == self.filters => {
                // Compaction leaves no gaps; somebody deleted records of configuration.
                tracing::warn!(%partition, from, to, "records of integration filters are gone");
            }
            ReaderEvent::Gone { partition, reason } => {
                // What is known stays known: until the control plane has written everything again, an empty topic says
                // nothing, and a publish that is acknowledged without its route would be lost.
                tracing::warn!(%partition, %reason, "topic was deleted; reading it anew");
                self.reopen(&partition).await;
            }
            ReaderEvent::Batch { records, .. } => {
                let superseded: Vec<_> =
                    records.iter().filter_map(|record| self.peers.note(record, Instant::now())).collect();
                let (live, is_new) = self.peers.live(Instant::now());
                self.metrics.peers.set(live as i64);
                if is_new {
                    tracing::warn!(
                        peers = live,
                        "cluster: integrations only; clients of other data planes are not reached"
                    );
                }
                return superseded.into_iter().next_back().map(Seen::Superseded);
            }
            ReaderEvent::End { .. } => self.peers.caught_up(),
            ReaderEvent::Gap { .. } => {}
        }
        None
    }

    async fn reopen(&mut self, partition: &TopicPartition) {
        let catalogue = &self.context.catalogue;
        let topic = if *partition == self.filters {
            catalogue.integration_subscriptions()
        } else {
            catalogue.node_applied()
        };
        let spec = spec_of(&topic, self.context.replication_factor);
        while let Err(error) = self.context.bus.admin().create_topic(&spec).await {
            tracing::warn!(%error, topic = topic.name, "can't prepare a topic");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        self.reader.add(partition, Start::Earliest);
    }

    fn advance(&self, position: u64) {
        self.position.store(position, Ordering::Release);
        self.changed.send_replace(position);
    }
}

/// What an event meant beyond itself.
#[derive(Debug)]
enum Seen {
    /// All filters there were are known.
    Complete,
    /// A newer process with our service id is at work.
    Superseded(Superseded),
}

/// Puts records into the router.
#[derive(Debug)]
struct Applier {
    router: Arc<Router>,
    metrics: Metrics,
    /// The revision held for each integration that has filters.
    revisions: HashMap<IntegrationId, u64>,
}

impl Applier {
    fn new(router: Arc<Router>, metrics: Metrics) -> Self {
        Self { router, metrics, revisions: HashMap::new() }
    }

    fn apply(&mut self, partition: &TopicPartition, record: &Record) {
        match read(record) {
            Ok(change) => self.change(change),
            Err(reason) => {
                self.metrics.bad_records.inc();
                tracing::warn!(%partition, offset = record.offset, reason, "bad record skipped");
            }
        }
    }

    fn change(&mut self, Change { id, revision, filters }: Change) {
        if self.revisions.get(&id).is_some_and(|held| revision < *held) {
            self.metrics.stale_records.inc();
            return;
        }
        if filters.is_empty() {
            self.revisions.remove(&id);
        } else {
            self.revisions.insert(id, revision);
        }
        let integrations = self.router.set_integration(id, filters);
        self.metrics.integrations.set(integrations as i64);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Change {
    id: IntegrationId,
    revision: u64,
    /// None: withdrawn.
    filters: Vec<String>,
}

fn read(record: &Record) -> Result<Change, String> {
    let key = record.key.as_deref().ok_or("no key")?;
    let key = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8")?;
    let id: IntegrationId = key.parse().map_err(|_| format!("the key {key:?} is not an integration id"))?;
    let revision = match record.headers.iter().find(|header| &*header.name == REVISION_HEADER) {
        Some(_) => record
            .header(REVISION_HEADER)
            .and_then(|text| text.parse().ok())
            .ok_or("the header revision is not a number")?,
        None => 0,
    };
    let value = record.value.as_deref().unwrap_or_default();
    let decoded = ClientSubscriptionsProto::decode(value).map_err(|error| error.to_string())?;
    let filters: Vec<String> =
        decoded.subscriptions.into_iter().map(|subscription| subscription.topic).collect();
    for filter in &filters {
        topic::check_filter(filter, &Rules::default())
            .map_err(|error| format!("filter {filter:?}: {error}"))?;
    }
    Ok(Change { id, revision, filters })
}

/// What tells how far the topic is written.
#[derive(Debug)]
pub(crate) struct Confirmation {
    admin: Arc<dyn Admin>,
    partition: TopicPartition,
    position: Arc<AtomicU64>,
}

/// Tells `component` and `degraded` when the position was not confirmed for 30 s, and when it is again; does not
/// return. What is known is served all the while.
pub(crate) async fn confirm(confirmation: Confirmation, component: Component, degraded: Gauge) {
    let Confirmation { admin, partition, position } = confirmation;
    let origin = tokio::time::Instant::now();
    let mut confirmed = Confirmed::default();
    loop {
        tokio::time::sleep(CONFIRM_PERIOD).await;
        let position = || position.load(Ordering::Acquire);
        if confirmed.wants_end(origin.elapsed(), position()) {
            match admin.bounds(std::slice::from_ref(&partition)).await {
                Ok(bounds) => {
                    confirmed.await_end(bounds.first().map_or(0, |bounds| bounds.end));
                    confirmed.wants_end(origin.elapsed(), position());
                }
                Err(error) => tracing::debug!(%error, %partition, "can't ask for the end"),
            }
        }
        match confirmed.change(origin.elapsed()) {
            Some(true) => {
                let text = format!("no confirmed position of {partition} for 30 s (position {})", position());
                tracing::warn!(%partition, position = position(), "position is not confirmed");
                component.down(text);
                degraded.set(1);
            }
            Some(false) => {
                tracing::info!(%partition, "position is confirmed again");
                component.up();
                degraded.set(0);
            }
            None => {}
        }
    }
}

/// When it was last known that everything written was applied. Times count from any origin.
#[derive(Debug, Default)]
struct Confirmed {
    at: Duration,
    /// An end that was seen and not reached yet.
    wanted: Option<u64>,
    is_late: bool,
}

impl Confirmed {
    /// Whether the topic's end is to be asked for: the last one is reached. An end that was reached is confirmed, even
    /// if the topic has grown meanwhile.
    fn wants_end(&mut self, now: Duration, position: u64) -> bool {
        if self.wanted.is_some_and(|end| position >= end) {
            self.wanted = None;
            self.at = now;
        }
        self.wanted.is_none()
    }

    fn await_end(&mut self, end: u64) {
        self.wanted = Some(end);
    }

    /// Whether it is late, if that has changed.
    fn change(&mut self, now: Duration) -> Option<bool> {
        let is_late = now.saturating_sub(self.at) > CONFIRM_PATIENCE;
        let was_late = std::mem::replace(&mut self.is_late, is_late);
        (is_late != was_late).then_some(is_late)
    }
}

#[cfg(test)]
mod tests {
    use tbmq_bus::{Bus as _, Outgoing, WriterConfig, memory::MemoryBus, write};
    use tbmq_proto::topic::Catalogue;
    use tbmq_service::admin::Health;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_position_is_late_after_30_s_behind_an_end_and_well_once_that_end_is_reached() {
        let mut confirmed = Confirmed::default();
        assert!(confirmed.wants_end(s(5), 10));
        confirmed.await_end(10);
        assert!(confirmed.wants_end(s(5), 10), "confirmed at 5 s");
        confirmed.await_end(12);
        assert!(!confirmed.wants_end(s(30), 11));
        assert_eq!(confirmed.change(s(35)), None);
        assert_eq!(confirmed.change(s(36)), Some(true));
        assert_eq!(confirmed.change(s(40)), None);
        assert!(confirmed.wants_end(s(45), 12));
        assert_eq!(confirmed.change(s(45)), Some(false));
    }

    #[tokio::test]
    async fn a_plane_is_degraded_after_30_s_without_a_confirmed_position_and_well_by_itself() {
        let bus = MemoryBus::new();
        let topic = Catalogue::default().integration_subscriptions();
        bus.admin().create_topic(&spec_of(&topic, 1)).await.unwrap();
        let writer = bus.writer(WriterConfig::new("test")).await.unwrap();
        let record = Outgoing { partition: Some(0), key: Some(b"k"), value: Some(b"v"), headers: &[] };
        write(&*writer, &writer.topic(&topic.name), record).await.unwrap();
        let (health, degraded) = (Health::default(), Gauge::<i64>::default());
        let component = health.component("integration-subscriptions");
        component.up();
        let position = Arc::new(AtomicU64::new(0));
        let partition = TopicPartition::new(topic.name, 0);
        let confirmation = Confirmation { admin: bus.admin(), partition, position: position.clone() };
        tokio::time::pause();
        let confirming = tokio::spawn(confirm(confirmation, component, degraded.clone()));
        tokio::time::sleep(s(29)).await;
        assert_eq!((health.is_up(), degraded.get()), (true, 0));
        tokio::time::sleep(s(7)).await;
        assert_eq!(degraded.get(), 1);
        let [(name, reason)] = &health.down()[..] else { panic!("{:?}", health.down()) };
        assert_eq!(name, "integration-subscriptions");
        assert!(reason.contains("for 30 s (position 0)"), "{reason}");
        position.store(1, Ordering::Release);
        tokio::time::sleep(s(6)).await;
        assert_eq!((health.is_up(), degraded.get()), (true, 0));
        confirming.abort();
    }

    #[test]
    fn a_bus_that_does_not_say_where_the_end_is_makes_the_position_late() {
        let mut confirmed = Confirmed::default();
        for now in [5, 10, 30] {
            assert!(confirmed.wants_end(s(now), 10));
            assert_eq!(confirmed.change(s(now)), None);
        }
        assert_eq!(confirmed.change(s(31)), Some(true));
    }
}
