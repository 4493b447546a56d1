//! Integration filters: read completely before anything is served, followed afterwards (architecture §4.8, §4.22).

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prost::Message as _;
use tbmq_bus::{Admin, Reader, ReaderConfig, ReaderEvent, Record, Start, TopicPartition, spec_of};
use tbmq_mqtt::topic::{self, Rules};
use tbmq_proto::{
    ids::{IntegrationId, ServiceId},
    queue::ClientSubscriptionsProto,
    topic::REVISION_HEADER,
    wire::{NodeApplied, Role},
};
use tbmq_service::admin::Component;
use tokio::sync::watch;

use crate::{Context, metrics::Metrics, route::Router};

/// How often the end of the topic is asked for.
const CONFIRM_PERIOD: Duration = Duration::from_secs(5);

/// Without a confirmed position for so long, the plane is degraded.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(30);

/// A node that is silent for so long is not live.
const PEER_PATIENCE: Duration = Duration::from_secs(15);

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
            peers: Peers::new(service.as_str()),
            position: Arc::default(),
            changed: watch::channel(0).0,
            context: context.clone(),
            metrics,
        };
        while !opened.step().await {}
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

    /// Follows the topic; does not return.
    pub(crate) async fn run(mut self) {
        loop {
            self.step().await;
        }
    }

    /// Handles one event; `true` when all filters there were are known.
    async fn step(&mut self) -> bool {
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
                self.applier.complete();
                self.advance(position);
                return true;
            }
            ReaderEvent::Gap { partition, from, to } if partition == self.filters => {
                // Compaction leaves no gaps; somebody deleted records of configuration.
                tracing::warn!(%partition, from, to, "records of integration filters are gone");
            }
            ReaderEvent::Gone { partition, reason } => {
                tracing::warn!(%partition, %reason, "topic was deleted; reading it anew");
                self.reopen(&partition).await;
            }
            ReaderEvent::Batch { records, .. } => {
                for record in &records {
                    self.peers.note(record, Instant::now());
                }
                let (live, is_new) = self.peers.live(Instant::now());
                self.metrics.peers.set(live as i64);
                if is_new {
                    tracing::warn!(
                        peers = live,
                        "cluster: integrations only; clients of other data planes are not reached"
                    );
                }
            }
            ReaderEvent::End { .. } | ReaderEvent::Gap { .. } => {}
        }
        false
    }

    async fn reopen(&mut self, partition: &TopicPartition) {
        let catalogue = &self.context.catalogue;
        let topic = if *partition == self.filters {
            self.applier.begin();
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

/// Puts records into the router.
#[derive(Debug)]
struct Applier {
    router: Arc<Router>,
    metrics: Metrics,
    /// The revision held for each integration that has filters.
    revisions: HashMap<IntegrationId, u64>,
    /// Integrations seen since [`Applier::begin`]; `None` once the topic was read completely.
    seen: Option<HashSet<IntegrationId>>,
}

impl Applier {
    fn new(router: Arc<Router>, metrics: Metrics) -> Self {
        Self { router, metrics, revisions: HashMap::new(), seen: Some(HashSet::new()) }
    }

    /// The topic is read from its beginning again.
    fn begin(&mut self) {
        self.revisions.clear();
        self.seen = Some(HashSet::new());
    }

    /// The topic was read to its end: what was not seen is no more.
    fn complete(&mut self) {
        let Some(seen) = self.seen.take() else { return };
        for id in self.router.integrations() {
            if !seen.contains(&id) {
                self.router.set_integration(id, Vec::new());
            }
        }
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
        if let Some(seen) = &mut self.seen {
            seen.insert(id);
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

/// Tells `component` when the position was not confirmed for 30 s; does not return.
pub(crate) async fn confirm(confirmation: Confirmation, component: Component) {
    let Confirmation { admin, partition, position } = confirmation;
    let mut confirmed = Instant::now();
    let mut wanted: Option<u64> = None;
    let mut is_degraded = false;
    loop {
        tokio::time::sleep(CONFIRM_PERIOD).await;
        // An end is confirmed when it was reached, even if the topic has grown meanwhile.
        let is_reached = |end: u64| position.load(Ordering::Acquire) >= end;
        if wanted.is_none_or(is_reached) {
            if wanted.is_some() {
                confirmed = Instant::now();
            }
            let bounds = admin.bounds(std::slice::from_ref(&partition)).await;
            wanted = bounds.ok().and_then(|bounds| bounds.first().map(|bounds| bounds.end));
            if wanted.is_some_and(is_reached) {
                confirmed = Instant::now();
            }
        }
        let is_late = confirmed.elapsed() > CONFIRM_PATIENCE;
        if is_late != is_degraded {
            is_degraded = is_late;
            if is_late {
                let position = position.load(Ordering::Acquire);
                let text = format!("no confirmed position of {partition} for 30 s (position {position})");
                tracing::warn!("{text}");
                component.down(text);
            } else {
                tracing::info!(%partition, "position is confirmed again");
                component.up();
            }
        }
    }
}

/// Other data planes, as `tbmq.node.applied` tells.
#[derive(Debug)]
struct Peers {
    own_id: String,
    last_seen: HashMap<String, Instant>,
    had_peers: bool,
}

impl Peers {
    fn new(own_id: &str) -> Self {
        Self { own_id: own_id.to_owned(), last_seen: HashMap::new(), had_peers: false }
    }

    fn note(&mut self, record: &Record, now: Instant) {
        let Ok(node) = NodeApplied::decode(record.value.as_deref().unwrap_or_default()) else { return };
        let is_old = tbmq_service::time::now_ms() - node.time_ms > PEER_PATIENCE.as_millis() as i64;
        if node.role != Role::DataPlane as i32 || node.service_id == self.own_id {
            return;
        }
        if node.leaving || is_old {
            self.last_seen.remove(&node.service_id);
        } else {
            self.last_seen.insert(node.service_id, now);
        }
    }

    /// How many are live, and whether these are the first.
    fn live(&mut self, now: Instant) -> (usize, bool) {
        self.last_seen.retain(|_, seen| now.duration_since(*seen) < PEER_PATIENCE);
        let has_peers = !self.last_seen.is_empty();
        let is_new = has_peers && !self.had_peers;
        self.had_peers = has_peers;
        (self.last_seen.len(), is_new)
    }
}
