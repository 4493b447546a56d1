//! A replica of the control plane: calls, validations, events, what nodes have applied, and the lease.

mod lead;
mod reconcile;

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc, time::Duration};

use prost::Message as _;
use tbmq_bus::{
    Bus as _, Commit, CompletionQueue, MembershipEvent, Outgoing, Reader, ReaderConfig, ReaderEvent, Record,
    Start, TopicPartition, Writer, WriterConfig,
};
use tbmq_integration::{
    Millis,
    validation::{End, ExchangeId, Step, Validations},
    wire::{self, Cause, RequestType, ValidationRequest},
};
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    integration::{ComponentLifecycleEventProto, native_event::Body},
    wire::{NodeApplied, OwnerClaim, Role},
};
use uuid::Uuid;

use self::lead::Lead;
use crate::{
    Bug,
    books::Invariant,
    env::{Env, note, short},
    net::{Host, Member},
    settings::VALIDATIONS_MAX,
    sql::{Lease, Refused, Status},
};

/// How long a caller waits for an executor.
const PATIENCE: Duration = Duration::from_secs(10);

/// A holder that has not renewed for so long has lost the lease.
const LEASE_FOR: Duration = Duration::from_secs(10);

/// A node that was not seen for so long is not waited for.
const LIVE_FOR: Duration = Duration::from_secs(15);

/// What an operator asks for.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Create { id: IntegrationId, enabled: bool, configuration: String, shards: u32 },
    Update { id: IntegrationId, enabled: bool, configuration: String },
    SetEnabled { id: IntegrationId, enabled: bool },
    Restart { id: IntegrationId },
    Delete { id: IntegrationId },
}

/// A replica.
pub(crate) struct Replica {
    pub(crate) host: Host,
    writer: Arc<dyn Writer>,
    completions: Arc<CompletionQueue>,
    tickets: BTreeMap<u64, Uuid>,
    next_ticket: u64,
    validations: Validations,
    calls: BTreeMap<ExchangeId, Call>,
    /// How often each exchange has ended.
    ended: BTreeMap<ExchangeId, u32>,
    replies: Box<dyn Reader>,
    nodes_reader: Box<dyn Reader>,
    nodes: BTreeMap<String, Node>,
    owners_reader: Box<dyn Reader>,
    /// Epoch and owner by downlink partition.
    claims: BTreeMap<u32, (u64, String)>,
    uplink_member: Member,
    uplink_reader: Box<dyn Reader>,
    seen_lease: Option<(Lease, Millis)>,
    contended: Option<Millis>,
    lead: Option<Lead>,
    /// Another process has our service id.
    pub(crate) is_over: bool,
}

struct Node {
    applied: NodeApplied,
    seen: Millis,
}

impl Node {
    fn is_live(&self, now: Millis) -> bool {
        !self.applied.leaving && now.since(self.seen) < LIVE_FOR
    }
}

impl Replica {
    pub(crate) fn start(env: &mut Env, host: Host) -> Self {
        let net = &env.net;
        let admin = tbmq_bus::Bus::admin(&*net.memory);
        let replies_spec = net.replies(&host.service);
        net.ask(admin.create_topic(&replies_spec)).expect("a legal topic");
        let reader = |name: &str, group: Option<String>| {
            net.ask(host.bus.reader(ReaderConfig::new(name, group))).expect("the memory bus has readers")
        };
        let replies_at = TopicPartition::new(replies_spec.name, 0);
        let bounds = net.ask(admin.bounds(std::slice::from_ref(&replies_at))).expect("it was just created");
        let mut replies = reader("replies", None);
        replies.add(&replies_at, Start::Offset(bounds[0].end));
        let mut nodes_reader = reader("nodes", None);
        nodes_reader.add(&TopicPartition::new(net.catalogue.node_applied().name, 0), Start::Earliest);
        let mut owners_reader = reader("owners", None);
        owners_reader.add(&TopicPartition::new(net.catalogue.owners().name, 0), Start::Earliest);
        let group = net.catalogue.uplink_group();
        let uplink_reader = reader("uplink", Some(group.clone()));
        let uplink_member = Member::join(net, &host, env.now, group, net.catalogue.uplink().name);
        let writer =
            net.ask(host.bus.writer(WriterConfig::new("requests"))).expect("the memory bus has writers");
        note!(env, "{} {} starts", host.service, host.incarnation);
        Self {
            host,
            writer,
            completions: CompletionQueue::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            validations: Validations::new(NonZeroUsize::new(VALIDATIONS_MAX).expect("it is not 0")),
            calls: BTreeMap::new(),
            ended: BTreeMap::new(),
            replies,
            nodes_reader,
            nodes: BTreeMap::new(),
            owners_reader,
            claims: BTreeMap::new(),
            uplink_member,
            uplink_reader,
            seen_lease: None,
            contended: None,
            lead: None,
            is_over: false,
        }
    }

    pub(crate) fn member(&mut self) -> &mut Member {
        &mut self.uplink_member
    }

    pub(crate) fn is_leading(&self) -> bool {
        self.lead.is_some()
    }

    /// It has read this from the store and not yet written it to the bus.
    pub(crate) fn is_about_to_write(&self) -> Option<IntegrationId> {
        self.lead.as_ref().and_then(Lead::is_about_to_write)
    }

    /// Nothing is pending.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.validations.pending() == 0
    }

    /// Who has claimed a downlink partition last.
    pub(crate) fn claimant(&self, partition: u32) -> Option<&(u64, String)> {
        self.claims.get(&partition)
    }

    pub(crate) fn turn(&mut self, env: &mut Env, action: u32) {
        match action % 10 {
            0 => self.validate(env),
            1 => self.complete(env),
            2 => self.read_replies(env),
            3 => self.read_nodes(env),
            4 => self.follow_uplink(env),
            5 => self.keep_lease(env),
            6 => self.read_owners(env),
            _ => self.work_as_leader(env),
        }
    }

    pub(crate) fn turn_all(&mut self, env: &mut Env) {
        for action in 0..10 {
            if action < 7 || self.is_leading() {
                self.turn(env, action);
            }
        }
    }

    // --- calls ---------------------------------------------------------------------------------------------------

    pub(crate) fn call(&mut self, env: &mut Env, call: Call) {
        note!(env, "{} is called: {call:?}", self.host.service);
        if env.sql.is_down {
            return;
        }
        let now = env.now;
        let result = match call {
            Call::Create { .. } | Call::Update { .. } => {
                if let Ok(exchange) = self.validations.request(now, env.uuid(), PATIENCE) {
                    self.calls.insert(exchange, call);
                    self.ended.insert(exchange, 0);
                }
                return;
            }
            Call::SetEnabled { id, enabled } => env.sql.change(id, |row| {
                let differs = row.enabled != enabled;
                switch(row, enabled, now);
                row.cause = Cause::Updated;
                Ok(differs)
            }),
            Call::Restart { id } => env.sql.change(id, |row| {
                row.cause = Cause::Reinit;
                if row.enabled { Ok(true) } else { Err(Refused::Disabled) }
            }),
            Call::Delete { id } => env.sql.delete(id),
        };
        note!(env, "{} answers {result:?}", self.host.service);
    }

    /// An executor was asked, or was not there.
    fn validated(&mut self, env: &mut Env, exchange: ExchangeId, end: &End) {
        let count = self.ended.entry(exchange).or_default();
        *count += 1;
        if *count > 1 {
            env.books.violate(Invariant::ValidationEndsOnce, format!("{exchange:?} has ended {count} times"));
        }
        let Some(call) = self.calls.remove(&exchange) else { return };
        let request = match end {
            End::Answered(reply) if reply.error.is_none() => Some(reply.id),
            _ if env.has(Bug::SaveUnasked) => None,
            _ => {
                note!(env, "{} refuses {call:?}: {end:?}", self.host.service);
                env.books.counts.rejected += 1;
                return;
            }
        };
        if env.sql.is_down {
            return;
        }
        let now = env.now;
        let result = match &call {
            Call::Create { id, enabled, configuration, shards } => {
                env.sql.create(now, *id, *enabled, configuration.clone(), *shards)
            }
            Call::Update { id, enabled, configuration } => env.sql.change(*id, |row| {
                switch(row, *enabled, now);
                row.configuration.clone_from(configuration);
                row.cause = Cause::Updated;
                Ok(true)
            }),
            _ => return,
        };
        note!(env, "{} saves {call:?}: {result:?}", self.host.service);
        if let (Ok(_), Call::Create { configuration, .. } | Call::Update { configuration, .. }) =
            (&result, &call)
        {
            env.books.saved(request, configuration);
        }
    }

    // --- validations ---------------------------------------------------------------------------------------------

    fn validate(&mut self, env: &mut Env) {
        self.validations.tick(env.now, || env.uuid());
        if self.validations.pending() > VALIDATIONS_MAX {
            env.books.violate(Invariant::Bounds, "pending validations");
        }
        while let Some(step) = self.validations.poll() {
            match step {
                Step::Send { exchange, request, deadline } => self.send(env, exchange, request, deadline),
                Step::Withdraw { request, .. } => {
                    let topic = self.writer.topic(&env.net.catalogue.downlink(&env.net.kind).name);
                    let key = request.to_string();
                    let record =
                        Outgoing { partition: None, key: Some(key.as_bytes()), value: None, headers: &[] };
                    // What is lost is found by the reconciler.
                    self.writer.submit(&topic, record, 0, &CompletionQueue::new()).ok();
                }
                Step::Ended { exchange, end } => self.validated(env, exchange, &end),
            }
        }
    }

    fn send(&mut self, env: &mut Env, exchange: ExchangeId, request: Uuid, deadline: Millis) {
        let Some(
            Call::Create { id, enabled, configuration, .. } | Call::Update { id, enabled, configuration },
        ) = self.calls.get(&exchange)
        else {
            return;
        };
        let message = ValidationRequest {
            id: request,
            reply_to: self.host.service.clone(),
            request_type: RequestType::Validate,
            integration: *id,
            kind: env.net.kind.clone(),
            name: "n".to_owned(),
            enabled: *enabled,
            configuration: configuration.clone(),
            sealed: None,
            created_ms: env.wall_ms(),
            deadline_ms: env.wall_ms() + deadline.since(env.now).as_millis() as i64,
        };
        let topic = self.writer.topic(&env.net.catalogue.downlink(&env.net.kind).name);
        let (key, value) = (request.to_string(), wire::encode_request(&message));
        let record =
            Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
        self.next_ticket += 1;
        note!(env, "{} asks {request}", self.host.service);
        match self.writer.submit(&topic, record, self.next_ticket, &self.completions) {
            Ok(()) => drop(self.tickets.insert(self.next_ticket, request)),
            Err(error) => self.validations.undelivered(request, &error.to_string()),
        }
    }

    fn complete(&mut self, env: &mut Env) {
        if self.tickets.is_empty() {
            return;
        }
        env.net.settle();
        let mut outcomes = Vec::new();
        self.completions.take(&mut outcomes);
        for outcome in outcomes {
            let Some(request) = self.tickets.remove(&outcome.ticket) else { continue };
            match outcome.result {
                Ok(_) => self.validations.written(request),
                Err(error) => self.validations.undelivered(request, &error.to_string()),
            }
        }
    }

    fn read_replies(&mut self, env: &mut Env) {
        for record in self.poll_records(env, |replica| &mut replica.replies) {
            let Some(Ok(reply)) = record.value.as_ref().map(wire::decode_reply) else { continue };
            let id = reply.id;
            let is_awaited = self.validations.reply(reply);
            note!(env, "{} has a reply to {id}: {is_awaited}", self.host.service);
        }
    }

    fn poll_records(&mut self, env: &Env, reader: impl Fn(&mut Self) -> &mut Box<dyn Reader>) -> Vec<Record> {
        if self.host.is_away() {
            return Vec::new();
        }
        match env.net.poll(reader(self).next()) {
            Some(ReaderEvent::Batch { records, .. }) => records,
            _ => Vec::new(),
        }
    }

    // --- what others tell ----------------------------------------------------------------------------------------

    fn read_nodes(&mut self, env: &mut Env) {
        for record in self.poll_records(env, |replica| &mut replica.nodes_reader) {
            let Some(Ok(applied)) = record.value.clone().map(NodeApplied::decode) else { continue };
            let known = self.nodes.get(&applied.service_id);
            if known.is_some_and(|known| known.applied.incarnation > applied.incarnation) {
                continue;
            }
            let age = (env.wall_ms() - record.timestamp_ms).max(0).cast_unsigned();
            let seen = Millis(env.now.0.saturating_sub(age));
            self.nodes.insert(applied.service_id.clone(), Node { applied, seen });
        }
    }

    /// Live data planes that have not passed this position of the filters.
    fn behind(&self, env: &Env, position: u64) -> bool {
        let topic = env.net.catalogue.integration_subscriptions().name;
        let late = |node: &Node| {
            let at = node.applied.positions.iter().find(|at| at.topic == topic);
            at.map_or(0, |at| at.position) < position
        };
        let mut planes = self.nodes.values().filter(|node| node.applied.role() == Role::DataPlane);
        planes.any(|node| node.is_live(env.now) && late(node))
    }

    fn has_executors(&self, env: &Env) -> bool {
        let mut nodes = self.nodes.values();
        nodes.any(|node| node.applied.role() == Role::Executor && node.is_live(env.now))
    }

    fn read_owners(&mut self, env: &mut Env) {
        for record in self.poll_records(env, |replica| &mut replica.owners_reader) {
            let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            let partition = key.and_then(|key| key.rsplit_once('/')?.1.parse().ok());
            let claim = record.value.clone().and_then(|value| OwnerClaim::decode(value).ok());
            if let (Some(partition), Some(claim)) = (partition, claim) {
                self.claims.insert(partition, (record.offset, claim.service_id));
            }
        }
    }

    fn follow_uplink(&mut self, env: &mut Env) {
        if self.host.is_away() {
            return;
        }
        while let Some(event) = self.uplink_member.poll(&env.net, env.now) {
            note!(env, "{} hears {event:?}", self.host.service);
            match event {
                MembershipEvent::Assigned(partitions) => {
                    let committed =
                        env.net.ask(self.uplink_reader.committed(&partitions)).unwrap_or_default();
                    for partition in &partitions {
                        let found = committed.iter().find(|commit| commit.partition == *partition);
                        let start = found.map_or(Start::Earliest, |commit| Start::Offset(commit.offset));
                        self.uplink_reader.add(partition, start);
                    }
                }
                MembershipEvent::Revoked { partitions, release } => {
                    for partition in &partitions {
                        self.uplink_reader.remove(partition);
                    }
                    drop(release);
                }
                MembershipEvent::Fenced { reason } => {
                    note!(env, "{} {} is over: {reason}", self.host.service, self.host.incarnation);
                    self.is_over = true;
                    return;
                }
                MembershipEvent::Lost(partitions) => {
                    for partition in &partitions {
                        self.uplink_reader.remove(partition);
                    }
                }
            }
        }
        // What the store can't take waits on the bus.
        if env.sql.is_down {
            return;
        }
        let Some(ReaderEvent::Batch { partition, records }) = env.net.poll(self.uplink_reader.next()) else {
            return;
        };
        let Some(last) = records.last().map(|record| record.offset) else { return };
        for record in &records {
            store_event(env, record);
        }
        let commit = Commit { partition, offset: last + 1, metadata: String::new() };
        // Not committed: read again, and stored once all the same.
        self.uplink_member.commit(&env.net, env.now, vec![commit]).ok();
    }

    // --- the lease -----------------------------------------------------------------------------------------------

    fn keep_lease(&mut self, env: &mut Env) {
        let now = env.now;
        if env.sql.is_down {
            if self.lead.as_ref().is_some_and(|lead| now.since(lead.renewed) > LEASE_FOR * 2 / 3) {
                self.resign(env, "has no store");
            }
            return;
        }
        if let Some(lead) = &mut self.lead {
            if now.since(lead.tried) < LEASE_FOR / 4 {
                return;
            }
            lead.tried = now;
            if env.sql.renew_lease(lead.fencing) {
                lead.renewed = now;
            } else {
                self.resign(env, "has lost the lease");
            }
            return;
        }
        if self.contended.is_some_and(|at| now.since(at) < Duration::from_secs(1)) {
            return;
        }
        self.contended = Some(now);
        let observed = env.sql.lease();
        let since = match &self.seen_lease {
            Some((before, since)) if *before == observed => *since,
            _ => now,
        };
        self.seen_lease = Some((observed.clone(), since));
        let own_past = observed.holder.split_once('/').is_some_and(|(id, incarnation)| {
            id == self.host.service && incarnation < self.host.incarnation.as_str()
        });
        if !(observed.holder.is_empty() || own_past || now.since(since) >= LEASE_FOR) {
            return;
        }
        let holder = format!("{}/{}", self.host.service, self.host.incarnation);
        if let Some(fencing) = env.sql.take_lease(&observed, &holder) {
            note!(env, "{} leads under {fencing}", self.host.service);
            self.lead = Some(Lead::new(fencing, now));
        }
    }

    fn resign(&mut self, env: &mut Env, why: &str) {
        note!(env, "{} {why}", self.host.service);
        self.lead = None;
        self.seen_lease = None;
    }
}

fn switch(row: &mut crate::sql::Row, enabled: bool, now: Millis) {
    row.disconnected = if enabled { None } else { row.disconnected.or(Some(now)) };
    row.enabled = enabled;
}

fn store_event(env: &mut Env, record: &Record) {
    let Some(Ok(Some((integration, event)))) = record.value.as_ref().map(wire::decode_event) else { return };
    let Ok(event_id) = Uuid::from_slice(&event.event_id) else { return };
    let status = match &event.body {
        Some(Body::Lifecycle(body)) => {
            let name = ComponentLifecycleEventProto::try_from(body.event).map_or("", |e| e.as_str_name());
            Some(Status {
                event: name.to_owned(),
                service: event.service_id.clone(),
                revision: event.revision,
                order: (event.ownership_epoch, event.incarnation.clone(), event.seq),
            })
        }
        _ => None,
    };
    let shard = ShardId { integration, index: event.shard };
    if let Some(status) = &status {
        note!(
            env,
            "{}/{} {} of {} under {:?}",
            short(integration),
            shard.index,
            status.event,
            status.service,
            status.order
        );
    }
    env.sql.store_event(event_id.as_u128(), shard, status);
}
