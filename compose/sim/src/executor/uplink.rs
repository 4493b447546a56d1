//! What an executor tells: answers to requests, events, and that it lives.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tbmq_bus::{CompletionQueue, Outgoing, TopicHandle, Writer};
use tbmq_integration::{
    Millis,
    entity::Document,
    wire::{self, ValidationReply, ValidationRequest},
};
use tbmq_proto::{
    ids::ShardId,
    integration::{NativeEvent, native_event::Body},
    wire::{AppliedPosition, NodeApplied, Role},
};

use crate::{
    books::Invariant,
    env::{Env, note},
    net::Host,
    settings::{EVENTS_MAX, REQUESTS_MAX},
};

/// Events written together.
const BATCH: usize = 8;

/// Time between two signs of life, at most.
const APPLIED_EVERY: Duration = Duration::from_secs(5);

/// The uplink of one process.
pub(super) struct Uplink {
    topic: TopicHandle,
    applied_topic: TopicHandle,
    downlink: String,
    completions: Arc<CompletionQueue>,
    events: VecDeque<Event>,
    in_hand: Vec<Option<Event>>,
    answered: usize,
    requests: VecDeque<ValidationRequest>,
    applied: BTreeMap<u32, u64>,
    is_changed: bool,
    told: Option<Millis>,
}

struct Event {
    key: String,
    value: Bytes,
}

impl Uplink {
    pub(super) fn new(env: &Env, writer: &dyn Writer) -> Self {
        let catalogue = &env.net.catalogue;
        Self {
            topic: writer.topic(&catalogue.uplink().name),
            applied_topic: writer.topic(&catalogue.node_applied().name),
            downlink: catalogue.downlink(&env.net.kind).name,
            completions: CompletionQueue::new(),
            events: VecDeque::new(),
            in_hand: Vec::new(),
            answered: 0,
            requests: VecDeque::new(),
            applied: BTreeMap::new(),
            is_changed: true,
            told: None,
        }
    }

    pub(super) fn ask(&mut self, env: &mut Env, request: ValidationRequest) {
        let is_expired = request.deadline_ms > 0 && request.deadline_ms < env.wall_ms();
        // One too many: silence, and the control plane asks another executor.
        if !is_expired && self.requests.len() < REQUESTS_MAX {
            self.requests.push_back(request);
        }
    }

    pub(super) fn set_applied(&mut self, partition: u32, position: Option<u64>) {
        let before = match position {
            Some(position) => self.applied.insert(partition, position),
            None => self.applied.remove(&partition),
        };
        self.is_changed |= before != position;
    }

    /// Keeps an event until it is written.
    pub(super) fn tell(
        &mut self,
        env: &mut Env,
        process: (&str, &str),
        shard: ShardId,
        order: (u64, u64),
        revision: u64,
        body: Body,
    ) {
        let event = NativeEvent {
            event_id: Bytes::copy_from_slice(env.uuid().as_bytes()),
            shard: shard.index,
            revision,
            ownership_epoch: order.0,
            incarnation: process.1.to_owned(),
            seq: order.1,
            time_ms: env.wall_ms(),
            service_id: process.0.to_owned(),
            body: Some(body),
        };
        let value = wire::encode_event(shard.integration, event);
        self.events.push_back(Event { key: shard.integration.to_string(), value });
    }

    pub(super) fn work(&mut self, env: &mut Env, host: &Host, writer: &dyn Writer, owned: usize) {
        self.answer(env, host, writer);
        self.write_events(env, writer);
        self.tell_applied(env, host, writer, owned);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.events.is_empty() && self.in_hand.is_empty()
    }

    pub(super) fn check(&self, env: &mut Env) {
        if self.events.len() > EVENTS_MAX || self.requests.len() > REQUESTS_MAX {
            env.books.violate(Invariant::Bounds, "events or requests of an executor");
        }
    }

    fn answer(&mut self, env: &mut Env, host: &Host, writer: &dyn Writer) {
        let Some(request) = self.requests.pop_front() else { return };
        let error = refusal(&request.configuration);
        // It takes its time, or is lost with the worker.
        if env.mishap(10) {
            return;
        }
        if error.is_none() {
            env.books.accepted(request.id, &request.configuration);
        }
        let reply = ValidationReply {
            id: request.id,
            error,
            violations: Vec::new(),
            stages: Vec::new(),
            executor: host.service.clone(),
        };
        let topic = writer.topic(&env.net.replies(&request.reply_to).name);
        let (key, value) = (request.id.to_string(), wire::encode_reply(&reply));
        let record =
            Outgoing { partition: Some(0), key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
        note!(env, "{} answers {}: {:?}", host.service, request.id, reply.error);
        writer.submit(&topic, record, 0, &CompletionQueue::new()).ok();
    }

    fn write_events(&mut self, env: &mut Env, writer: &dyn Writer) {
        if self.in_hand.is_empty() {
            let count = self.events.len().min(BATCH);
            let batch: Vec<Event> = self.events.drain(..count).collect();
            self.answered = 0;
            for (ticket, event) in batch.iter().enumerate() {
                let record = Outgoing {
                    partition: None,
                    key: Some(event.key.as_bytes()),
                    value: Some(&event.value),
                    headers: &[],
                };
                // The budgets are far larger than a batch.
                writer.submit(&self.topic, record, ticket as u64, &self.completions).ok();
            }
            self.in_hand = batch.into_iter().map(Some).collect();
            return;
        }
        env.net.settle();
        let mut outcomes = Vec::new();
        self.completions.take(&mut outcomes);
        for outcome in outcomes {
            self.answered += 1;
            if outcome.result.is_ok()
                && let Some(event) = self.in_hand.get_mut(outcome.ticket as usize)
            {
                *event = None;
            }
        }
        if self.answered >= self.in_hand.len() {
            let failed: Vec<Event> = self.in_hand.drain(..).flatten().collect();
            for event in failed.into_iter().rev() {
                self.events.push_front(event);
            }
        }
    }

    fn tell_applied(&mut self, env: &mut Env, host: &Host, writer: &dyn Writer, owned: usize) {
        let is_due = self.told.is_none_or(|at| self.is_changed || env.now.since(at) >= APPLIED_EVERY);
        if !is_due {
            return;
        }
        self.told = Some(env.now);
        self.is_changed = false;
        let position = |(partition, position): (&u32, &u64)| AppliedPosition {
            topic: self.downlink.clone(),
            partition: *partition,
            position: *position,
        };
        let applied = NodeApplied {
            service_id: host.service.clone(),
            role: Role::Executor.into(),
            incarnation: host.incarnation.clone(),
            positions: self.applied.iter().map(position).collect(),
            time_ms: env.wall_ms(),
            kinds: vec![env.net.kind.to_string()],
            ..NodeApplied::default()
        };
        let value = applied.encode_to_vec();
        let key = host.service.as_bytes();
        let record = Outgoing { partition: None, key: Some(key), value: Some(&value), headers: &[] };
        note!(env, "{} lives with {owned} partitions", host.service);
        writer.submit(&self.applied_topic, record, 0, &CompletionQueue::new()).ok();
    }
}

/// Why an executor does not take a document.
pub(super) fn refusal(configuration: &str) -> Option<String> {
    match Document::parse(configuration) {
        Ok(document) if document.client_configuration.contains_key("refuse") => Some("refuse".to_owned()),
        Ok(_) => None,
        Err(violations) => violations.first().map(ToString::to_string),
    }
}
