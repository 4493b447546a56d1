//! A data plane: reads the filters, matches publishes, writes records, acknowledges.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use tbmq_bus::{
    Bus as _, CompletionQueue, Error, Outgoing, Reader, ReaderConfig, ReaderEvent, Record, Start,
    TopicHandle, TopicPartition, Writer, WriterConfig,
};
use tbmq_integration::Millis;
use tbmq_mqtt::tree::Tree;
use tbmq_proto::{
    ids::IntegrationId,
    integration::PublishIntegrationMsgProto,
    queue::{ClientSubscriptionsProto, PublishMsgProto},
    topic::REVISION_HEADER,
    wire::{AppliedPosition, NodeApplied, Role},
};

use crate::{
    Bug,
    books::Invariant,
    env::{Env, note, short},
    net::Host,
};

/// Time between two records about what was applied, at most.
const APPLIED_EVERY: Duration = Duration::from_secs(5);

/// Publishes under way, at most: a client's window.
const PUBLISHES_MAX: usize = 64;

/// A data plane.
pub(crate) struct DataPlane {
    pub(crate) host: Host,
    reader: Box<dyn Reader>,
    writer: Arc<dyn Writer>,
    applied_topic: TopicHandle,
    completions: Arc<CompletionQueue>,
    filters: TopicPartition,
    tree: Tree<IntegrationId, ()>,
    held: BTreeMap<IntegrationId, Held>,
    /// Integrations seen since the topic is read from its beginning; `None` once it was read completely.
    seen: Option<BTreeSet<IntegrationId>>,
    position: u64,
    /// Where the filters ended at the start.
    end_at_start: u64,
    is_known: bool,
    publishes: BTreeMap<u64, Publish>,
    order: VecDeque<u64>,
    tickets: BTreeMap<u64, u64>,
    next_ticket: u64,
    applied_told: Option<(u64, Millis)>,
}

struct Held {
    revision: u64,
    filters: Vec<String>,
    topic: TopicHandle,
}

/// A publish that waits for its records.
struct Publish {
    integrations: Vec<IntegrationId>,
    left: usize,
    is_failed: bool,
}

impl DataPlane {
    pub(crate) fn start(env: &mut Env, host: Host) -> Self {
        let net = &env.net;
        let reader = net.ask(host.bus.reader(ReaderConfig::new("filters", None)));
        let mut reader = reader.expect("the memory bus has readers");
        let writer = net.ask(host.bus.writer(WriterConfig::new("publishes")));
        let writer = writer.expect("the memory bus has writers");
        let filters = TopicPartition::new(net.catalogue.integration_subscriptions().name, 0);
        reader.add(&filters, Start::Earliest);
        let bounds = net.ask(tbmq_bus::Bus::admin(&*net.memory).bounds(std::slice::from_ref(&filters)));
        let applied_topic = writer.topic(&net.catalogue.node_applied().name);
        note!(env, "{} {} starts", host.service, host.incarnation);
        Self {
            host,
            reader,
            writer,
            applied_topic,
            completions: CompletionQueue::new(),
            filters,
            tree: Tree::new(),
            held: BTreeMap::new(),
            seen: Some(BTreeSet::new()),
            position: 0,
            end_at_start: bounds.expect("the topic of filters exists")[0].end,
            is_known: env.bug == Some(Bug::ServeEarly),
            publishes: BTreeMap::new(),
            order: VecDeque::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            applied_told: None,
        }
    }

    /// The revision whose filters are in the tree.
    pub(crate) fn revision(&self, id: IntegrationId) -> Option<u64> {
        self.held.get(&id).map(|held| held.revision)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.publishes.is_empty()
    }

    pub(crate) fn turn(&mut self, env: &mut Env, action: u32) {
        match action % 4 {
            0 => self.read(env),
            1 | 2 => self.complete(env),
            _ => self.tell_applied(env),
        }
    }

    pub(crate) fn turn_all(&mut self, env: &mut Env) {
        for action in [0, 1, 3] {
            self.turn(env, action);
        }
    }

    /// A client's PUBLISH at QoS 1.
    pub(crate) fn publish(&mut self, env: &mut Env, number: u64, topic: &str) {
        if !self.is_known || self.publishes.len() >= PUBLISHES_MAX {
            return;
        }
        env.books.counts.published += 1;
        if self.position < self.end_at_start {
            let text = format!("{} serves at {} of {}", self.host.service, self.position, self.end_at_start);
            env.books.violate(Invariant::KnownBeforeServed, text);
        }
        let mut integrations = Vec::new();
        self.tree.matching(topic, |id, ()| integrations.push(*id));
        integrations.sort_unstable();
        integrations.dedup();
        let record = PublishIntegrationMsgProto {
            publish_msg_proto: Some(PublishMsgProto {
                client_id: "client".to_owned(),
                payload: number.to_be_bytes().to_vec().into(),
                qos: 1,
                topic_name: topic.to_owned(),
                ..PublishMsgProto::default()
            }),
            tbmq_node: self.host.service.clone(),
            timestamp: env.wall_ms(),
            expires_at_ms: 0,
        };
        let value = record.encode_to_vec();
        let mut publish = Publish { integrations, left: 0, is_failed: false };
        for id in &publish.integrations {
            let outgoing =
                Outgoing { partition: None, key: Some(topic.as_bytes()), value: Some(&value), headers: &[] };
            self.next_ticket += 1;
            match self.writer.submit(&self.held[id].topic, outgoing, self.next_ticket, &self.completions) {
                Ok(()) => {
                    publish.left += 1;
                    self.tickets.insert(self.next_ticket, number);
                }
                Err(_) => publish.is_failed = true,
            }
        }
        note!(env, "{} publish {number} on {topic} to {}", self.host.service, publish.integrations.len());
        if env.has(Bug::AcknowledgeEarly) {
            env.books.acknowledged(&env.net, number, &publish.integrations);
            return;
        }
        self.publishes.insert(number, publish);
        self.order.push_back(number);
    }

    /// Takes outcomes, and acknowledges in the order of the publishes.
    fn complete(&mut self, env: &mut Env) {
        let mut outcomes = Vec::new();
        if !self.tickets.is_empty() {
            env.net.settle();
            self.completions.take(&mut outcomes);
        }
        for outcome in outcomes {
            let Some(number) = self.tickets.remove(&outcome.ticket) else { continue };
            let Some(publish) = self.publishes.get_mut(&number) else { continue };
            publish.left -= 1;
            publish.is_failed |= outcome.result.is_err();
        }
        while let Some(number) = self.order.front().copied() {
            if self.publishes[&number].left > 0 {
                break;
            }
            self.order.pop_front();
            let publish = self.publishes.remove(&number).expect("what stands in the order is there");
            if publish.is_failed {
                note!(env, "{} refuses {number}", self.host.service);
            } else {
                note!(env, "{} acknowledges {number}", self.host.service);
                env.books.acknowledged(&env.net, number, &publish.integrations);
            }
        }
        if self.tickets.len() > PUBLISHES_MAX * 16 {
            env.books.violate(Invariant::Bounds, "records under way at a data plane");
        }
    }

    fn read(&mut self, env: &mut Env) {
        if self.host.is_away() {
            return;
        }
        match env.net.poll(self.reader.next()) {
            Some(ReaderEvent::Batch { records, .. }) => {
                for record in &records {
                    self.apply(env, record);
                    self.position = record.offset + 1;
                }
            }
            Some(ReaderEvent::End { position, .. }) => {
                self.position = position;
                if let Some(seen) = self.seen.take() {
                    let gone: Vec<_> = self.held.keys().filter(|id| !seen.contains(id)).copied().collect();
                    for id in gone {
                        self.set(env, id, 0, Vec::new());
                    }
                }
                if !self.is_known {
                    note!(env, "{} serves", self.host.service);
                }
                self.is_known = true;
            }
            Some(ReaderEvent::Gone { .. }) => {
                self.seen = Some(BTreeSet::new());
                self.reader.add(&self.filters, Start::Earliest);
            }
            Some(ReaderEvent::Gap { .. }) | None => {}
        }
    }

    fn apply(&mut self, env: &mut Env, record: &Record) {
        let Some(id) = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()?.parse().ok())
        else {
            return;
        };
        let revision = record.header(REVISION_HEADER).and_then(|text| text.parse().ok()).unwrap_or(0);
        let value = record.value.clone().unwrap_or_default();
        let Ok(decoded) = ClientSubscriptionsProto::decode(value) else { return };
        if self.revision(id).is_some_and(|held| revision < held) {
            return;
        }
        if let Some(seen) = &mut self.seen {
            seen.insert(id);
        }
        let filters = decoded.subscriptions.into_iter().map(|subscription| subscription.topic).collect();
        self.set(env, id, revision, filters);
    }

    fn set(&mut self, env: &mut Env, id: IntegrationId, revision: u64, filters: Vec<String>) {
        note!(env, "{} holds {} {revision} {filters:?}", self.host.service, short(id));
        if let Some(held) = self.held.remove(&id) {
            for filter in &held.filters {
                self.tree.remove(filter, &id);
            }
        }
        for filter in &filters {
            self.tree.insert(filter, id, ());
        }
        if !filters.is_empty() {
            let topic = self.writer.topic(&env.net.messages(id, 1).name);
            self.held.insert(id, Held { revision, filters, topic });
        }
    }

    fn tell_applied(&mut self, env: &mut Env) {
        let is_due = self
            .applied_told
            .is_none_or(|(position, at)| position != self.position || env.now.since(at) >= APPLIED_EVERY);
        if !is_due {
            return;
        }
        self.applied_told = Some((self.position, env.now));
        let applied = NodeApplied {
            service_id: self.host.service.clone(),
            role: Role::DataPlane.into(),
            incarnation: self.host.incarnation.clone(),
            positions: vec![AppliedPosition {
                topic: self.filters.topic.to_string(),
                partition: 0,
                position: self.position,
            }],
            time_ms: env.wall_ms(),
            ..NodeApplied::default()
        };
        let value = applied.encode_to_vec();
        let record = Outgoing {
            partition: None,
            key: Some(self.host.service.as_bytes()),
            value: Some(&value),
            headers: &[],
        };
        // Told again in a while, whatever becomes of it.
        let result: Result<(), Error> = self
            .writer
            .submit(&self.applied_topic, record, 0, &CompletionQueue::new())
            .map_err(|error| Error::Unavailable(error.to_string()));
        if result.is_err() {
            self.applied_told = None;
        }
    }
}
