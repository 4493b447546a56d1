//! What the holder of the lease does: opens the fenced writer, reconciles, follows marks and lives, watches topics.
//!
//! Every await of the real relayer is a place where it may stall: here each is a turn of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tbmq_bus::{BatchRecord, Bus as _, CompletionQueue, Error, FencedWriter, Header, Outgoing, Written};
use tbmq_integration::{
    Millis,
    cleanup::{Goal, Stage, Step},
    entity::Document,
    wire::{self, Change, Desired, Target},
};
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    partition::for_shard,
    queue::{ClientSubscriptionsProto, SubscriptionsSourceProto, TopicSubscriptionProto},
    topic::REVISION_HEADER,
};

use super::{Replica, reconcile};
use crate::{
    Bug,
    env::{Env, note, short},
    settings::DOWNLINK_PARTITIONS,
    sql::{Life, Mark, Row},
};

/// How often the leader looks for topics and for what is to be parked.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Pause after a failure of the bus.
const PAUSE: Duration = Duration::from_millis(500);

/// What a holder of the lease has.
pub(super) struct Lead {
    pub(super) fencing: u64,
    /// When a renewal was tried.
    pub(super) tried: Millis,
    pub(super) renewed: Millis,
    writer: Option<Box<dyn FencedWriter>>,
    is_reconciled: bool,
    relay: Relay,
    lives: VecDeque<Life>,
    looked: Millis,
    /// Generation and id of the message topics that were seen.
    topics: BTreeMap<IntegrationId, (u64, String)>,
    paused_until: Millis,
}

/// How far one round of marks has come.
enum Relay {
    Idle,
    /// Rows were read, lives not yet.
    Rows(Vec<(Mark, Option<Row>)>),
    Prepared(Vec<Prepared>),
    Written(Vec<(Mark, u64)>),
}

struct Prepared {
    mark: Mark,
    revision: u64,
    records: Vec<BatchRecord>,
}

impl Lead {
    pub(super) fn new(fencing: u64, now: Millis) -> Self {
        Self {
            fencing,
            tried: now,
            renewed: now,
            writer: None,
            is_reconciled: false,
            relay: Relay::Idle,
            lives: VecDeque::new(),
            looked: now,
            topics: BTreeMap::new(),
            paused_until: now,
        }
    }

    pub(super) fn is_about_to_write(&self) -> Option<IntegrationId> {
        match &self.relay {
            Relay::Prepared(prepared) => prepared.first().map(|prepared| prepared.mark.id),
            _ => None,
        }
    }

    /// Begins anew with a writer of its own.
    fn reset(&mut self, now: Millis) {
        self.writer = None;
        self.is_reconciled = false;
        self.relay = Relay::Idle;
        self.lives.clear();
        self.paused_until = now + PAUSE;
    }
}

impl Replica {
    pub(super) fn work_as_leader(&mut self, env: &mut Env) {
        let Some(mut lead) = self.lead.take() else { return };
        if env.now < lead.paused_until || env.sql.is_down {
            self.lead = Some(lead);
            return;
        }
        match self.work(env, &mut lead) {
            Ok(()) => self.lead = Some(lead),
            Err(Error::Fenced(reason)) => {
                env.books.counts.fenced_writes += 1;
                self.resign(env, &format!("is fenced: {reason}"));
            }
            Err(error) => {
                note!(env, "{}: the relayer's writer failed: {error}", self.host.service);
                lead.reset(env.now);
                self.lead = Some(lead);
            }
        }
    }

    fn work(&mut self, env: &mut Env, lead: &mut Lead) -> Result<(), Error> {
        if lead.writer.is_none() {
            if self.host.is_away() {
                return Err(Error::Unavailable("away".to_owned()));
            }
            let name = env.net.catalogue.relayer();
            lead.writer = Some(env.net.ask(self.host.bus.fenced_writer(&name))?);
            note!(env, "{} has the relayer's writer", self.host.service);
            return Ok(());
        }
        if !lead.is_reconciled {
            lead.is_reconciled = true;
            return reconcile::reconcile(self, env, lead);
        }
        // Not while a round of marks is under way: a mark that is left again must not be cleared with it.
        if env.now.since(lead.looked) >= LOOK_EVERY && matches!(lead.relay, Relay::Idle) {
            lead.looked = env.now;
            env.sql.park_disabled(env.now);
            return self.look_for_topics(env, lead);
        }
        let choice = if env.is_calm { env.now.0 / 50 } else { rand::Rng::random(&mut env.rng) };
        if choice.is_multiple_of(2) { self.follow_marks(env, lead) } else { self.follow_lives(env, lead) }
    }

    /// The message topic of a live life is missing, or another one has its name: the bus has lost it.
    fn look_for_topics(&mut self, env: &mut Env, lead: &mut Lead) -> Result<(), Error> {
        if self.host.is_away() {
            return Err(Error::Unavailable("away".to_owned()));
        }
        let lives: Vec<Life> =
            env.sql.lives().filter(|life| life.life.stage == Stage::Live).cloned().collect();
        let mut seen = BTreeMap::new();
        for mut life in lives {
            let name = env.net.messages(life.id, life.shards).name;
            let generation = life.life.generation;
            let before = lead.topics.get(&life.id).filter(|(before, _)| *before == generation);
            match env.net.ask(self.host.bus.admin().topic(&name))? {
                Some(topic) if before.is_none_or(|(_, before)| *before == topic.id) => {
                    seen.insert(life.id, (generation, topic.id));
                    continue;
                }
                Some(_) => life.life.replaced(),
                None => life.life.lost(),
            }
            note!(env, "{} misses the topic of {}", self.host.service, short(life.id));
            if env.sql.save_life(&mut life) {
                env.sql.mark_again(life.id, u64::MAX);
            }
        }
        lead.topics = seen;
        Ok(())
    }

    // --- marks ---------------------------------------------------------------------------------------------------

    fn follow_marks(&mut self, env: &mut Env, lead: &mut Lead) -> Result<(), Error> {
        match std::mem::replace(&mut lead.relay, Relay::Idle) {
            Relay::Idle => {
                let marks = env.sql.marks();
                if !marks.is_empty() {
                    let rows = marks.into_iter().map(|mark| (mark, env.sql.row(mark.id).cloned()));
                    lead.relay = Relay::Rows(rows.collect());
                }
            }
            Relay::Rows(rows) => {
                let mut ready = Vec::new();
                for (mark, row) in rows {
                    ready.extend(self.prepare(env, mark, row)?);
                }
                if !ready.is_empty() {
                    lead.relay = Relay::Prepared(ready);
                }
            }
            Relay::Prepared(ready) => {
                let batch = ready.iter().flat_map(|prepared| prepared.records.clone()).collect();
                self.write(env, lead, batch)?;
                let done = ready.iter().map(|prepared| (prepared.mark, prepared.revision)).collect();
                note!(env, "{} has written {done:?}", self.host.service);
                lead.relay = Relay::Written(done);
            }
            Relay::Written(done) => env.sql.set_projected(&done),
        }
        Ok(())
    }

    fn prepare(&mut self, env: &mut Env, mark: Mark, row: Option<Row>) -> Result<Option<Prepared>, Error> {
        let (Some(row), Some(mut life)) = (row, env.sql.life(mark.id).cloned()) else {
            env.sql.clear_mark(mark);
            return Ok(None);
        };
        if life.life.stage == Stage::Create {
            self.create_topic(env, life.id, life.shards)?;
            life.life.created();
            if !env.sql.save_life(&mut life) {
                return Ok(None);
            }
        }
        if life.life.goal == Goal::Keep && life.life.stage == Stage::Delete {
            return Ok(None);
        }
        let mut records = vec![subscription(env, &row, &life)];
        records.extend(desired(env, &row, &life));
        Ok(Some(Prepared { mark, revision: row.revision, records }))
    }

    fn create_topic(&mut self, env: &mut Env, id: IntegrationId, shards: u32) -> Result<(), Error> {
        if self.host.is_away() || env.mishap(30) {
            return Err(Error::Unavailable("planted".to_owned()));
        }
        let spec = env.net.messages(id, shards);
        if env.net.ask(self.host.bus.admin().create_topic(&spec))? {
            env.books.topic_created(&env.net, id, shards);
            note!(env, "{} creates the topic of {}", self.host.service, short(id));
        }
        // The topic is there, but the answer is lost.
        if env.mishap(30) { Err(Error::Unavailable("planted".to_owned())) } else { Ok(()) }
    }

    pub(super) fn write(
        &mut self,
        env: &mut Env,
        lead: &mut Lead,
        batch: Vec<BatchRecord>,
    ) -> Result<Vec<Written>, Error> {
        if env.has(Bug::RelayUnfenced) {
            return self.write_unfenced(env, &batch);
        }
        let writer = lead.writer.as_mut().ok_or_else(|| Error::Unavailable("no writer".to_owned()))?;
        let written = env.net.ask(writer.write(batch))?;
        // It is written, but the answer is lost.
        if env.mishap(25) { Err(Error::Unavailable("planted".to_owned())) } else { Ok(written) }
    }

    fn write_unfenced(&mut self, env: &mut Env, batch: &[BatchRecord]) -> Result<Vec<Written>, Error> {
        let completions = CompletionQueue::new();
        for record in batch {
            let topic = self.writer.topic(&record.topic);
            let outgoing = Outgoing {
                partition: record.partition,
                key: record.key.as_deref(),
                value: record.value.as_deref(),
                headers: &record.headers,
            };
            self.writer.submit(&topic, outgoing, 0, &completions).ok();
        }
        env.net.settle();
        let mut outcomes = Vec::new();
        completions.take(&mut outcomes);
        outcomes.into_iter().map(|outcome| outcome.result).collect()
    }

    // --- lives ---------------------------------------------------------------------------------------------------

    fn follow_lives(&mut self, env: &mut Env, lead: &mut Lead) -> Result<(), Error> {
        let Some(life) = lead.lives.pop_front() else {
            lead.lives = env.sql.restless_lives().into();
            return Ok(());
        };
        self.life_step(env, lead, life)
    }

    fn life_step(&mut self, env: &mut Env, lead: &mut Lead, mut life: Life) -> Result<(), Error> {
        let (id, now, generation) = (life.id, env.now, life.life.generation);
        match life.life.step(now) {
            Step::Withdraw => {
                // A round of marks that has read this life writes first.
                if !matches!(lead.relay, Relay::Idle) || env.sql.life(id) != Some(&life) {
                    return Ok(());
                }
                let revision = match life.life.goal {
                    Goal::Remove => life.revision,
                    Goal::Park | Goal::Keep => env.sql.row(id).map_or(life.revision, |row| row.revision),
                };
                let written = self.write(env, lead, vec![subscription_record(env, id, revision, None)])?;
                life.life.withdrawn(written.first().map_or(0, |written| written.offset + 1));
            }
            Step::AwaitNodes(position) => {
                if self.behind(env, position) {
                    return Ok(());
                }
                life.life.nodes_applied(now);
            }
            Step::Dismiss => {
                let batch = downlink_records(env, &life, life.revision, generation, Some(&Change::Deleted));
                self.write(env, lead, batch)?;
                life.life.dismissed(now);
            }
            Step::AwaitStop => {
                let statuses = env.sql.statuses_of(id);
                let has_stopped =
                    !statuses.is_empty() && statuses.iter().all(|status| status.event == "STOPPED");
                if !has_stopped && self.has_executors(env) {
                    return Ok(());
                }
                life.life.stopped();
            }
            Step::Delete => {
                if life.life.stage != Stage::Delete {
                    life.life.deleting();
                    if !env.sql.save_life(&mut life) {
                        return Ok(());
                    }
                }
                self.delete_topic(env, &life)?;
                life.life.deleted(now);
            }
            Step::Forget => {
                let batch = downlink_records(env, &life, life.revision, generation, None);
                self.write(env, lead, batch)?;
                env.sql.bury(id);
                return Ok(());
            }
            Step::Create | Step::Rest => return Ok(()),
        }
        let is_saved = env.sql.save_life(&mut life);
        note!(env, "{}: life of {} is {:?}, saved {is_saved}", self.host.service, short(id), life.life);
        Ok(())
    }

    fn delete_topic(&mut self, env: &mut Env, life: &Life) -> Result<(), Error> {
        if self.host.is_away() || env.mishap(30) {
            return Err(Error::Unavailable("planted".to_owned()));
        }
        let name = env.net.messages(life.id, life.shards).name;
        env.books.observe(&env.net);
        if env.net.ask(self.host.bus.admin().delete_topic(&name))? {
            env.books.topic_deleted(&env.net, life.id);
        }
        Ok(())
    }
}

/// The subscription record that a row stands for.
pub(super) fn subscription(env: &Env, row: &Row, life: &Life) -> BatchRecord {
    let value = life.life.is_subscribed().then(|| {
        let filters = Document::parse(&row.configuration).map(|document| document.topic_filters);
        let subscriptions = filters.unwrap_or_default().into_iter().map(|topic| TopicSubscriptionProto {
            topic,
            qos: 1,
            ..TopicSubscriptionProto::default()
        });
        let source = Some(SubscriptionsSourceProto::Integration.into());
        let value = ClientSubscriptionsProto { subscriptions: subscriptions.collect(), source };
        Bytes::from(value.encode_to_vec())
    });
    subscription_record(env, row.id, row.revision, value)
}

pub(super) fn subscription_record(
    env: &Env,
    id: IntegrationId,
    revision: u64,
    value: Option<Bytes>,
) -> BatchRecord {
    BatchRecord {
        topic: env.net.catalogue.integration_subscriptions().name.into(),
        partition: Some(0),
        key: Some(Bytes::from(id.to_string())),
        value,
        headers: vec![Header::text(REVISION_HEADER, revision.to_string())],
    }
}

/// The downlink records that a row stands for, one for each shard.
pub(super) fn desired(env: &Env, row: &Row, life: &Life) -> Vec<BatchRecord> {
    let target = Target {
        name: "n".into(),
        enabled: row.enabled,
        configuration: row.configuration.as_str().into(),
        sealed: None,
    };
    let change = Change::Apply { cause: row.cause, target };
    downlink_records(env, life, row.revision, life.life.generation, Some(&change))
}

fn downlink_records(
    env: &Env,
    life: &Life,
    revision: u64,
    generation: u64,
    change: Option<&Change>,
) -> Vec<BatchRecord> {
    let shards = (0..life.shards).map(|index| ShardId { integration: life.id, index });
    let record = |shard: ShardId| downlink_record(env, shard, life.shards, revision, generation, change);
    shards.map(record).collect()
}

pub(super) fn downlink_record(
    env: &Env,
    shard: ShardId,
    shard_count: u32,
    revision: u64,
    generation: u64,
    change: Option<&Change>,
) -> BatchRecord {
    let value = change.map(|change| {
        wire::encode_desired(&Desired {
            shard,
            shard_count,
            kind: env.net.kind.clone(),
            revision,
            generation,
            change: change.clone(),
        })
    });
    BatchRecord {
        topic: env.net.catalogue.downlink(&env.net.kind).name.into(),
        partition: Some(for_shard(&shard, shard_count, DOWNLINK_PARTITIONS)),
        key: Some(Bytes::from(shard.downlink_key())),
        value,
        headers: vec![Header::text(REVISION_HEADER, revision.to_string())],
    }
}
