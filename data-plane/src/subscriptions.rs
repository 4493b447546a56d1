//! Integration filters: read completely before anything is served, followed afterwards (architecture §4.8, §4.22).

use std::{collections::HashMap, sync::Arc, time::Instant};

use prost::Message as _;
use tbmq_bus::{Reader, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};
use tbmq_mqtt::topic::{self, Rules};
use tbmq_proto::{
    ids::{IntegrationId, ServiceId},
    queue::ClientSubscriptionsProto,
    topic::REVISION_HEADER,
};
use tbmq_service::{admin::Component, identity::Superseded};

use crate::{
    Context,
    feed::prepare,
    metrics::Metrics,
    peers::Peers,
    plane::Plane,
    positions::{Changed, Positions},
    route::Router,
};

/// Reads integration filters into the router.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    reader: Box<dyn Reader>,
    filters: TopicPartition,
    applier: Applier,
    peers: Peers,
    positions: Positions,
    context: Context,
    plane: Arc<Plane>,
}

impl Subscriptions {
    /// Makes sure that the topics exist and reads all filters there are. Waits for the bus as long as it takes, telling
    /// `component` why.
    pub(crate) async fn open(
        context: &Context,
        service: &ServiceId,
        plane: &Arc<Plane>,
        changed: &Changed,
        component: &Component,
    ) -> anyhow::Result<Self> {
        let catalogue = &context.catalogue;
        let topics = [catalogue.integration_subscriptions(), catalogue.node_applied()];
        for topic in &topics {
            prepare(context, topic, Some(component)).await;
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
            positions: Positions::new([filters.clone()], changed),
            filters,
            applier: Applier::new(plane.router.clone(), plane.metrics.clone()),
            peers: Peers::new(&context.identity),
            context: context.clone(),
            plane: plane.clone(),
        };
        // Nobody can supersede us before we have caught up with what is known of nodes.
        while !matches!(opened.step().await, Some(Seen::Complete)) {}
        component.up();
        tracing::info!(
            position = opened.positions.in_all(),
            integrations = opened.applier.revisions.len(),
            "integration filters are known"
        );
        Ok(opened)
    }

    /// Below which everything is applied.
    pub(crate) fn positions(&self) -> Positions {
        self.positions.clone()
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
                    self.positions.advance(&partition, last.offset + 1);
                }
            }
            ReaderEvent::End { partition, position } if partition == self.filters => {
                self.positions.advance(&partition, position);
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
                let live = self.peers.live(Instant::now());
                self.plane.metrics.peers.set(live.count as i64);
                self.plane.limiter.note_peers(live.count);
                self.plane.registry.note_others(live.sessions);
                if live.is_new {
                    tracing::warn!(
                        peers = live.count,
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
        prepare(&self.context, &topic, None).await;
        self.reader.add(partition, Start::Earliest);
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
