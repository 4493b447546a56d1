//! Restoration, lifecycle and message partitions over a model of the bus, driven from one seed, with faults: crashes,
//! hand-overs, records read twice, stale records, commits that fail, answers that come late or never, gaps.
//!
//! After each step the invariants of architecture §5.4, §5.10 and §5.11 are checked; at the end, without faults,
//! everything must settle. A failing seed is printed; each seed is run twice and must leave the same trace.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, time::Duration};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tbmq_integration::{
    Millis,
    entity::AckStrategy,
    lifecycle::{End, Event, Lifecycle, Reinit, State, Step},
    pack::{self, Answer, Item, Notice, Ordering, Ticket},
    restore,
    wire::{Cause, Change, Desired, Target, encode_desired},
};
use tbmq_proto::ids::{IntegrationId, ShardId};
use uuid::Uuid;

const SEEDS: std::ops::Range<u64> = 0..300;
const STEPS: usize = 600;
const INTEGRATIONS: u128 = 3;
const SHARDS_MAX: usize = 16;

/// How a message left, as the world knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Delivered,
    GivenUp,
    Removed,
}

/// What outlives an executor: the bus, and the remote end.
#[derive(Debug, Default)]
struct Bus {
    downlink: Vec<(Vec<u8>, Option<Bytes>, String)>,
    topics: BTreeMap<ShardId, Topic>,
}

#[derive(Debug, Default)]
struct Topic {
    generation: u64,
    start: u64,
    messages: Vec<Fate>,
    committed: Option<(u64, u64)>,
    /// What the control plane wants, by its own books.
    wanted: Option<Desired>,
}

/// One process.
struct Executor {
    restoration: restore::Partition,
    read: usize,
    shards: BTreeMap<ShardId, Shard>,
    leaving: bool,
}

struct Shard {
    lifecycle: Lifecycle,
    starting: Option<Desired>,
    running: Option<Running>,
    stopping: bool,
    started_revision: u64,
    words: Vec<Event>,
}

struct Running {
    desired: Desired,
    partition: pack::Partition<u64>,
    /// Where this run began, and where the reader is.
    begin: u64,
    read: u64,
    in_flight: Vec<(Ticket, u64)>,
    /// Attempts that were given up; their answers come late.
    given_up: Vec<Ticket>,
    strategy: AckStrategy,
}

struct Sim {
    rng: StdRng,
    now: Millis,
    bus: Bus,
    revision: u64,
    executor: Option<Executor>,
    calm: bool,
    trace: Vec<String>,
}

fn shard(n: u128) -> ShardId {
    ShardId::first(IntegrationId(Uuid::from_u128(n)))
}

impl Sim {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Millis(0),
            bus: Bus::default(),
            revision: 0,
            executor: None,
            calm: false,
            trace: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<String> {
        for _ in 0..STEPS {
            self.step();
            self.check();
        }
        self.calm = true;
        for _ in 0..20_000 {
            self.calm_step();
            self.check();
            if self.is_settled() {
                self.check_settled();
                return self.trace;
            }
        }
        panic!("it never settles: {:?}", self.bus.topics);
    }

    fn note(&mut self, what: String) {
        self.trace.push(format!("{} {what}", self.now.0));
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..6 => self.configure(),
            6..26 => self.publish(),
            26..28 => self.remove_by_retention(),
            28..30 => {
                self.note("crash".to_owned());
                self.executor = None;
            }
            30..32 => {
                if let Some(executor) = &mut self.executor {
                    executor.leaving = true;
                    executor.shards.values_mut().for_each(|shard| shard.lifecycle.end(End::HandOver));
                }
                self.note("hand over".to_owned());
            }
            32..40 => self.pass(),
            _ => self.work(),
        }
    }

    fn calm_step(&mut self) {
        if self.rng.random_range(0..10) == 0 { self.pass() } else { self.work() }
    }

    // --- the control plane and the publishers -------------------------------------------------------------------

    fn configure(&mut self) {
        let id = shard(self.rng.random_range(0..INTEGRATIONS));
        self.revision += 1;
        let revision = self.revision;
        let topic = self.bus.topics.entry(id).or_default();
        if topic.wanted.as_ref().is_some_and(|desired| desired.change == Change::Deleted) {
            return;
        }
        let roll = self.rng.random_range(0..20);
        let change = if roll == 0 && topic.wanted.is_some() {
            Change::Deleted
        } else {
            // A topic of a new generation begins anew; only a disabled integration is parked.
            let is_parked = matches!(
                &topic.wanted,
                Some(Desired { change: Change::Apply { target, .. }, .. }) if !target.enabled
            );
            // The control plane waits until the executor has applied that before it deletes the topic.
            let end = self.bus.downlink.len();
            let is_idle = self.executor.as_ref().is_none_or(|executor| {
                executor.read == end
                    && executor
                        .shards
                        .get(&id)
                        .is_none_or(|shard| shard.running.is_none() && shard.starting.is_none())
            });
            if topic.generation == 0 || (is_parked && is_idle && roll < 4) {
                topic.generation += 1;
                topic.start = 0;
                topic.messages.clear();
            }
            let enabled = roll > 5;
            let strategy = ["SKIP_ALL", "RETRY_ALL"].choose(&mut self.rng).expect("there are two");
            let target =
                Target { name: "n".into(), enabled, configuration: (*strategy).into(), sealed: None };
            let cause = if roll == 19 { Cause::Reinit } else { Cause::Updated };
            Change::Apply { cause, target }
        };
        let generation = topic.generation;
        let kind = "HTTP".parse().expect("a kind");
        let desired = Desired { shard: id, shard_count: 1, kind, revision, generation, change };
        topic.wanted = Some(desired.clone());
        self.note(format!("configure {desired:?}"));
        let key = id.downlink_key().into_bytes();
        self.bus.downlink.push((key.clone(), Some(encode_desired(&desired)), revision.to_string()));
        // A relayer that was stalled writes an older state once more, and someone writes garbage.
        match self.rng.random_range(0..6) {
            0 => {
                let old = self.rng.random_range(0..self.bus.downlink.len());
                let old = self.bus.downlink[old].clone();
                self.bus.downlink.push(old);
            }
            1 => self.bus.downlink.push((key, Some(Bytes::from_static(b"\xff")), String::new())),
            _ => {}
        }
    }

    fn publish(&mut self) {
        let id = shard(self.rng.random_range(0..INTEGRATIONS));
        let count = self.rng.random_range(1..6);
        let Some(topic) = self.bus.topics.get_mut(&id).filter(|topic| topic.generation > 0) else { return };
        topic.messages.extend(std::iter::repeat_n(Fate::Open, count));
        self.note(format!("publish {count} to {id}"));
    }

    fn remove_by_retention(&mut self) {
        let id = shard(self.rng.random_range(0..INTEGRATIONS));
        let Some(topic) = self.bus.topics.get_mut(&id) else { return };
        let end = topic.messages.len() as u64;
        topic.start = self.rng.random_range(topic.start..=end);
        let start = topic.start;
        // What an executor holds already may still be delivered.
        self.note(format!("retention removes below {start} of {id}"));
    }

    // --- the executor's driver ----------------------------------------------------------------------------------

    fn pass(&mut self) {
        let millis = self.rng.random_range(1..400);
        self.now = self.now + Duration::from_millis(millis);
        let now = self.now;
        let Some(executor) = &mut self.executor else { return };
        for (id, shard) in &mut executor.shards {
            shard.lifecycle.tick(now);
            if let Some(running) = &mut shard.running {
                running.partition.tick(now);
                running.reap(self.bus.topics.get_mut(id).expect("what runs has a topic"));
            }
        }
    }

    fn work(&mut self) {
        let end = self.bus.downlink.len();
        let Some(mut executor) = self.executor.take() else {
            self.note("start".to_owned());
            let restoration = restore::Partition::new(end as u64, SHARDS_MAX);
            self.executor = Some(Executor { restoration, read: 0, shards: BTreeMap::new(), leaving: false });
            return;
        };
        let choice = self.rng.random_range(0..4);
        if choice == 0 && !executor.leaving {
            self.read_downlink(&mut executor);
        }
        let ids: Vec<_> = executor.shards.keys().copied().collect();
        if let Some(id) = ids.choose(&mut self.rng).copied() {
            let shard = executor.shards.get_mut(&id).expect("chosen from its keys");
            if self.drive(id, shard) {
                executor.shards.remove(&id);
            }
        }
        if !(executor.leaving && executor.shards.is_empty()) {
            self.executor = Some(executor);
        }
    }

    fn read_downlink(&mut self, executor: &mut Executor) {
        let mut steps = Vec::new();
        if executor.read == self.bus.downlink.len() {
            steps = executor.restoration.end(executor.read as u64);
        } else {
            if !self.calm && executor.read > 0 && self.rng.random_range(0..10) == 0 {
                executor.read -= 1;
            }
            let (key, value, revision) = &self.bus.downlink[executor.read];
            let revision = (!revision.is_empty()).then_some(revision.as_str());
            let record =
                executor.restoration.record(executor.read as u64, Some(key), value.as_ref(), revision);
            executor.read += 1;
            match record {
                Ok(step) => steps.extend(step),
                Err(error) => self.note(format!("skipped: {error}")),
            }
        }
        for step in steps {
            let restore::Step::Apply(desired) = step else {
                panic!("nobody asks or withdraws here: {step:?}")
            };
            self.note(format!("apply {} revision {}", desired.shard, desired.revision));
            let shard = executor.shards.entry(desired.shard).or_insert_with(|| Shard {
                lifecycle: Lifecycle::new(Some(Reinit {
                    first: Duration::from_millis(200),
                    longest: Duration::from_secs(1),
                    seed: 1,
                })),
                starting: None,
                running: None,
                stopping: false,
                started_revision: 0,
                words: Vec::new(),
            });
            shard.lifecycle.desire(desired);
        }
    }

    /// Does one thing for a shard; `true` when it has ended.
    fn drive(&mut self, id: ShardId, shard: &mut Shard) -> bool {
        while let Some(step) = shard.lifecycle.poll() {
            self.note(format!("{id}: {step:?}"));
            match step {
                Step::Start(desired) => {
                    assert!(shard.starting.is_none() && shard.running.is_none(), "at most one runs (§5.11)");
                    assert!(desired.revision >= shard.started_revision, "no older state is started");
                    shard.started_revision = desired.revision;
                    shard.starting = Some(desired);
                }
                Step::Stop => {
                    shard.starting = None;
                    shard.stopping = true;
                }
                Step::Tell(event) => shard.words.push(event),
                Step::End => {
                    assert!(shard.starting.is_none() && shard.running.is_none(), "it ended while it ran");
                    return true;
                }
            }
        }
        if shard.stopping {
            self.stop(id, shard);
        } else if let Some(desired) = shard.starting.take() {
            self.start(id, shard, desired);
        } else if let Some(running) = &mut shard.running {
            let fate = self.bus.topics.get_mut(&id).expect("what runs has a topic");
            let noted = running.work(&mut self.rng, self.now, fate, self.calm);
            if !self.calm && self.rng.random_range(0..300) == 0 {
                shard.lifecycle.broken(self.now, "broke".to_owned());
            }
            self.note(format!("{id}: {noted}"));
        }
        false
    }

    fn start(&mut self, id: ShardId, shard: &mut Shard, desired: Desired) {
        if !self.calm && self.rng.random_range(0..8) == 0 {
            shard.lifecycle.failed(self.now, "refused".to_owned());
            return;
        }
        let topic = &self.bus.topics[&id];
        let begin = match topic.committed {
            Some((offset, generation)) if generation == desired.generation => offset,
            _ => 0,
        };
        let Change::Apply { target, .. } = &desired.change else { panic!("started something deleted") };
        assert!(target.enabled, "started something disabled");
        let strategy =
            if &*target.configuration == "SKIP_ALL" { AckStrategy::SkipAll } else { AckStrategy::RetryAll };
        let settings = pack::Settings {
            strategy,
            retries: 0,
            pause: Duration::from_millis(20),
            attempt_timeout: Duration::from_millis(200),
            ordering: if self.rng.random() { Ordering::Key } else { Ordering::None },
            window_messages: 4,
            window_bytes: 1_000,
            dead_letters: false,
        };
        shard.running = Some(Running {
            partition: pack::Partition::new(settings, 0),
            begin,
            read: begin,
            in_flight: Vec::new(),
            given_up: Vec::new(),
            strategy,
            desired,
        });
        shard.lifecycle.started(self.now);
    }

    fn stop(&mut self, id: ShardId, shard: &mut Shard) {
        if let Some(running) = &mut shard.running {
            let topic = self.bus.topics.get_mut(&id).expect("what runs has a topic");
            // Some answers still come, the others are abandoned: nothing of theirs may be committed (UP-8).
            if !running.in_flight.is_empty() && self.rng.random_range(0..4) != 0 {
                running.answer(&mut self.rng, self.now, topic, self.calm);
                return;
            }
            running.commit(topic);
            shard.running = None;
        }
        shard.stopping = false;
        shard.lifecycle.stopped(self.now);
    }

    // --- what must hold -----------------------------------------------------------------------------------------

    fn check(&self) {
        for (id, topic) in &self.bus.topics {
            if let Some((offset, generation)) = topic.committed
                && generation == topic.generation
            {
                let open = topic.messages.iter().take(offset as usize).position(|fate| *fate == Fate::Open);
                assert_eq!(
                    open, None,
                    "{id}: {offset} is committed, but an earlier one has no outcome (§5.4)"
                );
            }
        }
        let Some(executor) = &self.executor else { return };
        for (id, shard) in &executor.shards {
            let Some(running) = &shard.running else { continue };
            let topic = &self.bus.topics[id];
            assert_eq!(running.desired.generation, topic.generation, "{id}: reads a topic that is gone");
            let end = topic.messages.len() as u64;
            let partition = &running.partition;
            let settled = partition.settled().total();
            let unread = end - running.read;
            assert_eq!(
                end - running.begin,
                settled + partition.unsettled() as u64 + unread,
                "{id}: end - start = settled + in flight + queued (§5.10)"
            );
            assert_eq!(partition.in_flight(), running.in_flight.len(), "{id}: one answer for each attempt");
            assert!(partition.in_flight() <= 4 && partition.commit_position().is_none_or(|at| at <= end));
        }
    }

    fn is_settled(&mut self) -> bool {
        let Some(executor) = &mut self.executor else { return false };
        let is_restored = executor.restoration.is_restored() && executor.read == self.bus.downlink.len();
        let wanted = self.bus.topics.values().filter_map(|topic| Some((topic, topic.wanted.as_ref()?)));
        let mut all = wanted.filter_map(|(topic, desired)| match &desired.change {
            Change::Apply { target, .. } if target.enabled => Some((topic, desired)),
            _ => None,
        });
        let shards = &executor.shards;
        let enabled: Vec<_> = all.by_ref().map(|(_, desired)| desired.shard).collect();
        let no_other =
            shards.iter().all(|(id, shard)| enabled.contains(id) || shard.lifecycle.state() == State::Idle);
        is_restored
            && !executor.leaving
            && no_other
            && enabled.iter().all(|id| {
                let topic = &self.bus.topics[id];
                let end = topic.messages.len() as u64;
                shards
                    .get(id)
                    .and_then(|shard| shard.running.as_ref())
                    .is_some_and(|running| running.read == end && running.partition.unsettled() == 0)
                    && topic.committed == Some((end, topic.generation))
            })
    }

    fn check_settled(&self) {
        let executor = self.executor.as_ref().expect("settled");
        for (id, topic) in &self.bus.topics {
            let Some(running) = executor.shards.get(id).and_then(|shard| shard.running.as_ref()) else {
                continue;
            };
            assert_eq!(Some(running.desired.revision), topic.wanted.as_ref().map(|wanted| wanted.revision));
            assert!(
                !topic.messages.contains(&Fate::Open),
                "{id}: something is neither delivered nor given up"
            );
        }
    }
}

impl Running {
    fn work(&mut self, rng: &mut StdRng, now: Millis, topic: &mut Topic, calm: bool) -> &'static str {
        match rng.random_range(0..6) {
            0 if self.partition.wants_more() => self.read(rng, now, topic),
            1 => {
                // A commit that fails leaves the old one.
                if calm || rng.random_range(0..4) != 0 {
                    self.commit(topic);
                    return "commit";
                }
                "commit failed"
            }
            2 | 3 => {
                while let Some((ticket, message)) = self.partition.next(0) {
                    self.in_flight.push((ticket, *message));
                    self.partition.submitted(now);
                }
                "submit"
            }
            4 if !self.given_up.is_empty() => {
                // Late: the remote end may have taken the message all the same.
                let ticket = self.given_up.swap_remove(rng.random_range(0..self.given_up.len()));
                let late = self.partition.late();
                self.partition.answered(now, ticket, Answer::Delivered);
                assert_eq!(self.partition.late(), late + 1);
                "late answer"
            }
            _ => self.answer(rng, now, topic, calm),
        }
    }

    fn read(&mut self, rng: &mut StdRng, now: Millis, topic: &mut Topic) -> &'static str {
        if self.read < topic.start {
            for fate in &mut topic.messages[self.read as usize..topic.start as usize] {
                if *fate == Fate::Open {
                    *fate = Fate::Removed;
                }
            }
            self.partition.gap(self.read, topic.start);
            self.read = topic.start;
            assert!(matches!(self.partition.poll_notice(), Some(Notice::Gap { .. })), "no gap is silent");
            return "gap";
        }
        let end = topic.messages.len() as u64;
        if self.read == end {
            self.partition.reached(end);
            return "end";
        }
        let to = rng.random_range(self.read + 1..=end);
        let from = self.read;
        let item = |offset: u64| Item {
            offset,
            key: offset % 3,
            weight: 10,
            timestamp_ms: 0,
            expires_at_ms: 0,
            message: offset,
            unfit: None,
            is_watched: false,
        };
        self.partition.take(now, (from..to).map(item));
        self.read = to;
        "read"
    }

    fn answer(&mut self, rng: &mut StdRng, now: Millis, topic: &mut Topic, calm: bool) -> &'static str {
        if self.in_flight.is_empty() {
            return "nothing to answer";
        }
        let (ticket, message) = self.in_flight.swap_remove(rng.random_range(0..self.in_flight.len()));
        let fate = &mut topic.messages[message as usize];
        let (answer, word) = match rng.random_range(0..10) {
            0 if !calm => (Answer::Rejected { class: "status", text: "no".to_owned() }, "rejected"),
            1 | 2 if !calm => {
                (Answer::Retry { after: None, class: "status", text: "down".to_owned() }, "failed")
            }
            _ => (Answer::Delivered, "delivered"),
        };
        match (&answer, self.strategy) {
            (Answer::Delivered, _) => *fate = Fate::Delivered,
            (Answer::Rejected { .. }, _) | (_, AckStrategy::SkipAll) if *fate == Fate::Open => {
                *fate = Fate::GivenUp;
            }
            _ => {}
        }
        self.partition.answered(now, ticket, answer);
        while self.partition.poll_notice().is_some() {}
        word
    }

    /// Attempts that have timed out have no answer that counts.
    fn reap(&mut self, topic: &mut Topic) {
        while let Some(notice) = self.partition.poll_notice() {
            let Notice::Failed { offset, is_retried, .. } = notice else { continue };
            let at = self.in_flight.iter().position(|(_, message)| *message == offset);
            let (ticket, message) = self.in_flight.swap_remove(at.expect("only what is in flight times out"));
            self.given_up.push(ticket);
            let fate = &mut topic.messages[message as usize];
            if !is_retried && *fate == Fate::Open {
                *fate = Fate::GivenUp;
            }
        }
    }

    fn commit(&self, topic: &mut Topic) {
        if let Some(position) = self.partition.commit_position() {
            topic.committed = Some((position, self.desired.generation));
        }
    }
}

#[test]
fn the_invariants_hold_for_every_seed_and_a_seed_repeats_itself() {
    for seed in SEEDS {
        let run = || std::panic::catch_unwind(AssertUnwindSafe(|| Sim::new(seed).run()));
        let Ok(first) = run() else { panic!("seed {seed} fails; its panic is above") };
        assert_eq!(Some(first), run().ok(), "seed {seed} does not repeat itself");
    }
}
