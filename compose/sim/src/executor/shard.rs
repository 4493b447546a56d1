//! One shard: the lifecycle machine, the sink, and the pack machines of its message partitions.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tbmq_bus::{Bus as _, Commit, ReaderEvent, Record, Start, TopicPartition, Writer};
use tbmq_integration::{
    Millis,
    entity::{AckStrategy, Delivery, Document},
    lifecycle::{End, Event, Lifecycle, Step},
    pack::{self, Answer, Item, Notice, Settled, Ticket, Unfit},
    stall::{self, Stall},
    wire::{Change, CommitMetadata, Desired},
};
use tbmq_proto::{
    ids::ShardId,
    integration::{ComponentLifecycleEventProto, LifecycleEvent, native_event::Body},
};

use super::{
    letters::Letters,
    uplink::{Uplink, refusal},
};
use crate::{
    Bug,
    books::{Fate, Invariant, Place, publish_of},
    env::{Env, note},
    net::Host,
    remote::{Mode, Sink},
    settings::{CREDITS, STALLED_AFTER, STOP_TIMEOUT, WINDOW},
};

/// Whether messages may be handed over and offsets may be committed now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate {
    pub(super) is_open: bool,
}

/// A message as the sink takes it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) place: Place,
    pub(super) record: Arc<Record>,
}

/// One shard's actor.
pub(super) struct Shard {
    pub(super) id: ShardId,
    /// Its downlink partition.
    pub(super) partition: u32,
    pub(super) epoch: u64,
    lifecycle: Lifecycle,
    end: Option<End>,
    latest: Option<Desired>,
    starting: Option<Desired>,
    look_at: Millis,
    running: Option<Running>,
    stopping: Option<Stopping>,
    /// The topic was made anew: what was committed is void.
    from_begin: bool,
    seq: u64,
    readings: Vec<((TopicPartition, usize), Start)>,
    pauses: Vec<(TopicPartition, bool)>,
}

struct Running {
    desired: Desired,
    sink: Sink,
    lanes: Vec<Lane>,
    has_gone: bool,
    letters: Letters,
    stall: Stall,
}

#[derive(Clone, Copy)]
struct Stopping {
    deadline: Millis,
    flush: Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Wanted,
    Asked { until: Millis },
    Done,
}

/// One message partition.
struct Lane {
    at: TopicPartition,
    creation: u64,
    pack: pack::Partition<Message>,
    /// As it stood where this one begins.
    metadata: CommitMetadata,
    begin: u64,
    read: u64,
    inbox: VecDeque<ReaderEvent>,
    is_paused: bool,
    committed: Option<u64>,
    /// How messages left, as counted here.
    settled: Settled,
    /// Attempts that were handed over and have not timed out.
    open: Vec<(Ticket, u64)>,
    /// Attempts that each message has had, and how many it is to have: without a limit if `None`.
    attempts: BTreeMap<u64, u32>,
    attempts_max: Option<u32>,
    dead_letters: bool,
    generation: u64,
}

impl Shard {
    pub(super) fn new(id: ShardId, partition: u32, epoch: u64, lifecycle: Lifecycle) -> Self {
        Self {
            id,
            partition,
            epoch,
            lifecycle,
            end: None,
            latest: None,
            starting: None,
            look_at: Millis(0),
            running: None,
            stopping: None,
            from_begin: false,
            seq: 0,
            readings: Vec::new(),
            pauses: Vec::new(),
        }
    }

    pub(super) fn desire(&mut self, desired: Desired) {
        self.latest = Some(desired.clone());
        self.lifecycle.desire(desired);
    }

    pub(super) fn end(&mut self, end: End) {
        if self.end != Some(End::Lost) {
            self.end = Some(end);
        }
        self.lifecycle.end(end);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.end == Some(End::Lost)
    }

    /// What is to run although this one has ended.
    pub(super) fn successor(&self) -> Option<Desired> {
        let is_wanted = |desired: &&Desired| matches!(desired.change, Change::Apply { .. });
        self.latest.as_ref().filter(|_| self.end.is_none()).filter(is_wanted).cloned()
    }

    pub(super) fn running_revision(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.desired.revision)
    }

    /// Carries out what the lifecycle says; `true` when it has ended.
    pub(super) fn steps(&mut self, env: &mut Env, process: (&str, &str), uplink: &mut Uplink) -> bool {
        while let Some(step) = self.lifecycle.poll() {
            match step {
                Step::Start(desired) => {
                    if self.starting.is_some() || self.running.is_some() {
                        env.books
                            .violate(Invariant::OneOwner, format!("{} is started while it runs", self.id));
                    }
                    env.books.started(
                        format!("{} {} {}", process.0, process.1, self.epoch),
                        self.id,
                        desired.revision,
                    );
                    self.starting = Some(desired);
                    self.look_at = env.now;
                }
                Step::Stop => {
                    self.starting = None;
                    self.stopping = Some(Stopping { deadline: env.now + STOP_TIMEOUT, flush: Flush::Wanted });
                }
                Step::Tell(event) => self.tell(env, process, uplink, event),
                Step::End => return true,
            }
        }
        false
    }

    fn tell(&mut self, env: &mut Env, process: (&str, &str), uplink: &mut Uplink, event: Event) {
        note!(env, "{} {}: {event:?}", process.0, self.id);
        let (word, error) = match event {
            Event::Started => {
                self.from_begin = false;
                (ComponentLifecycleEventProto::Started, None)
            }
            Event::Stopped => (ComponentLifecycleEventProto::Stopped, None),
            Event::Failed { text } => (ComponentLifecycleEventProto::Failed, Some(text)),
            Event::Reinit => (ComponentLifecycleEventProto::Reinit, None),
            Event::Stalled { text } => (ComponentLifecycleEventProto::Stalled, Some(text)),
            Event::Resumed => (ComponentLifecycleEventProto::Resumed, None),
        };
        let success = word != ComponentLifecycleEventProto::Failed;
        let body = Body::Lifecycle(LifecycleEvent { event: word.into(), success, error });
        let revision = self.lifecycle.desired().map_or(0, |desired| desired.revision);
        self.seq += 1;
        uplink.tell(env, process, self.id, (self.epoch, self.seq), revision, body);
    }

    /// One wake of the actor.
    pub(super) fn work(&mut self, env: &mut Env, host: &Host, writer: &dyn Writer, gate: Gate) {
        self.lifecycle.tick(env.now);
        if self.stopping.is_none() {
            self.start(env, host);
        }
        let (id, epoch, is_stopping) = (self.id, self.epoch, self.stopping.is_some());
        let Some(running) = &mut self.running else { return };
        for lane in &mut running.lanes {
            lane.pack.tick(env.now);
            lane.reap(env);
        }
        for _ in 0..WINDOW {
            let Some((attempt, answer)) = running.sink.answer(env, id.integration) else { break };
            let lane = &mut running.lanes[usize::from(pack::lane_of(attempt.ticket))];
            lane.answered(env, attempt.ticket, attempt.place, answer);
        }
        running.bury(env, writer, epoch);
        if is_stopping {
            return;
        }
        for lane in &mut running.lanes {
            if let Err(reason) = lane.take(env, id, &mut self.pauses) {
                note!(env, "{} {id}: the topic is gone: {reason}", host.service);
                running.has_gone = true;
            }
        }
        if running.has_gone {
            self.from_begin = true;
            self.lifecycle.restart();
            return;
        }
        if gate.is_open && !self.is_lost() {
            self.submit(env, host);
        }
        if let Some(running) = &mut self.running {
            let has_work = running.lanes.iter().any(|lane| lane.pack.unsettled() > 0);
            let confirmed = running.lanes.iter().map(|lane| lane.pack.confirmed()).sum();
            match running.stall.observe(env.now, has_work, confirmed) {
                Some(stall::Change::Stalled) => {
                    env.books.counts.stalls += 1;
                    self.lifecycle.stalled("nothing gets through".to_owned());
                }
                Some(stall::Change::Resumed) => self.lifecycle.resumed(),
                None => {}
            }
        }
        let breaks = if env.remote.mode(env.now, id.integration) == Mode::Flapping { 10 } else { 300 };
        if env.mishap(breaks) {
            self.lifecycle.broken(env.now, "broke".to_owned());
        }
    }

    fn submit(&mut self, env: &mut Env, host: &Host) {
        let Some(running) = &mut self.running else { return };
        let mut handed = 0;
        for lane in &mut running.lanes {
            while let Some((ticket, message)) = lane.pack.next(env.wall_ms()) {
                let place = message.place;
                lane.pack.submitted(env.now);
                lane.open.push((ticket, place.offset));
                let attempts = lane.attempts.entry(place.offset).or_default();
                *attempts += 1;
                if lane.attempts_max.is_some_and(|most| *attempts > most) {
                    let text = format!("{}: attempt {attempts} of {}", lane.at, place.offset);
                    env.books.violate(Invariant::Attempts, text);
                }
                running.sink.submit(env.now, ticket, place);
                env.books.handed_over(self.id, self.epoch, &host.service, &host.incarnation);
                handed += 1;
            }
        }
        if handed > 0 {
            note!(env, "{} {}: hands {handed} over under {}", host.service, self.id, self.epoch);
        }
    }

    // --- start and stop ------------------------------------------------------------------------------------------

    fn start(&mut self, env: &mut Env, host: &Host) {
        if self.starting.is_none() || env.now < self.look_at || host.is_away() {
            return;
        }
        let Some(desired) = self.starting.clone() else { return };
        let Change::Apply { target, .. } = &desired.change else { return };
        if env.mishap(15) {
            self.starting = None;
            self.lifecycle.failed(env.now, "refused".to_owned());
            return;
        }
        if refusal(&target.configuration).is_some() {
            env.books.violate(Invariant::Accepted, format!("{} runs what was refused", self.id));
        }
        let admin = host.bus.admin();
        let topic: Arc<str> = env.net.messages(self.id.integration, 1).name.into();
        let found = env.net.ask(admin.topic(&topic)).ok().flatten();
        let Some(found) = found else {
            // The control plane makes it.
            self.look_at = env.now + Duration::from_millis(100);
            return;
        };
        let own = (0..found.partitions).filter(|index| index % desired.shard_count == self.id.index);
        let partitions: Vec<_> = own.map(|index| TopicPartition::new(Arc::clone(&topic), index)).collect();
        let group = env.net.catalogue.messages_group();
        let commits = env.net.ask(admin.committed(&group, &partitions)).unwrap_or_default();
        self.starting = None;
        let creation = env.books.creation_of(&found.id);
        let delivery = Document::parse(&target.configuration).map(|document| document.delivery);
        let delivery = delivery.unwrap_or_default();
        let settings = settings_of(env, &delivery);
        if settings.dead_letters {
            let spec = env.net.dead_letters(self.id.integration);
            env.net.ask(admin.create_topic(&spec)).expect("a legal topic");
            env.books.grave_made(&env.net, self.id.integration);
        }
        let mut lanes = Vec::new();
        for (index, at) in partitions.into_iter().enumerate() {
            let commit = commits.iter().find(|commit| commit.partition == at);
            let valid = |commit: &Commit| {
                let metadata = CommitMetadata::from_text(&commit.metadata).unwrap_or_default();
                let is_valid = env.has(Bug::TrustOldCommits) || metadata.is_of(desired.generation, &found.id);
                (is_valid && !self.from_begin).then_some((commit.offset, metadata.totals))
            };
            let (begin, totals) = commit.and_then(valid).unwrap_or_default();
            let metadata = CommitMetadata {
                generation: desired.generation,
                epoch: self.epoch,
                topic: found.id.clone(),
                totals,
                oldest_ms: None,
            };
            note!(env, "{} {}: reads {at} from {begin}", host.service, self.id);
            self.readings.push(((at.clone(), index), Start::Offset(begin)));
            lanes.push(Lane {
                at,
                creation,
                pack: pack::Partition::new(settings.clone(), index as u8),
                metadata,
                begin,
                read: begin,
                inbox: VecDeque::new(),
                is_paused: false,
                committed: None,
                settled: Settled::default(),
                open: Vec::new(),
                attempts: BTreeMap::new(),
                attempts_max: attempts_max(&delivery),
                dead_letters: settings.dead_letters,
                generation: desired.generation,
            });
        }
        self.running = Some(Running {
            desired,
            sink: Sink::default(),
            lanes,
            has_gone: false,
            letters: Letters::default(),
            stall: Stall::new(STALLED_AFTER),
        });
        self.lifecycle.started(env.now);
    }

    /// Whether what runs can be closed, or flushed; `Some(true)`: it is abandoned.
    pub(super) fn is_stopped(&self, env: &Env) -> Option<bool> {
        let stopping = self.stopping?;
        let Some(running) = &self.running else { return Some(true) };
        if self.is_lost() {
            return Some(true);
        }
        let is_over = env.now >= stopping.deadline;
        let in_flight: usize = running.lanes.iter().map(|lane| lane.pack.in_flight()).sum();
        if in_flight + running.letters.len() > 0 && !is_over {
            return None;
        }
        match stopping.flush {
            Flush::Wanted => Some(false),
            Flush::Asked { until } => (env.now >= until).then_some(true),
            Flush::Done => Some(true),
        }
    }

    /// Whether it is to be committed before it is closed; says so once.
    pub(super) fn wants_flush(&mut self) -> bool {
        match &mut self.stopping {
            Some(stopping) if stopping.flush == Flush::Wanted => {
                stopping.flush = Flush::Asked { until: stopping.deadline + STOP_TIMEOUT };
                true
            }
            _ => false,
        }
    }

    /// Its last commit was asked for.
    pub(super) fn is_flushing(&self) -> bool {
        self.stopping.is_some_and(|stopping| stopping.flush != Flush::Wanted)
    }

    pub(super) fn flushed(&mut self, is_done: bool) {
        if let Some(stopping) = &mut self.stopping
            && (is_done || matches!(stopping.flush, Flush::Asked { .. }))
        {
            stopping.flush = Flush::Done;
        }
    }

    pub(super) fn close(&mut self, env: &mut Env) {
        self.abandon(env);
        self.running = None;
        self.stopping = None;
        self.readings.clear();
        self.lifecycle.stopped(env.now);
    }

    /// What was in flight has no outcome here; the remote end may have taken it all the same.
    pub(super) fn abandon(&self, env: &mut Env) {
        if let Some(running) = self.running.as_ref().filter(|running| running.sink.len() > 0) {
            note!(env, "{}: {} are abandoned", self.id, running.sink.len());
        }
    }

    // --- reading and committing ----------------------------------------------------------------------------------

    pub(super) fn take_readings(&mut self) -> Vec<((TopicPartition, usize), Start)> {
        std::mem::take(&mut self.readings)
    }

    pub(super) fn take_pauses(&mut self) -> Vec<(TopicPartition, bool)> {
        std::mem::take(&mut self.pauses)
    }

    /// `true`: that was the last that fits.
    pub(super) fn deliver(&mut self, lane: usize, event: ReaderEvent) -> bool {
        let Some(lane) = self.running.as_mut().and_then(|running| running.lanes.get_mut(lane)) else {
            return false;
        };
        lane.inbox.push_back(event);
        lane.is_paused = lane.inbox.len() >= CREDITS;
        lane.is_paused
    }

    /// What is to be committed, by lane.
    pub(super) fn due(&self) -> Vec<(usize, Commit)> {
        let Some(running) = &self.running else { return Vec::new() };
        let due = running.lanes.iter().enumerate().filter_map(|(index, lane)| {
            let offset = lane.pack.commit_position().filter(|offset| lane.committed != Some(*offset))?;
            let commit = Commit { partition: lane.at.clone(), offset, metadata: lane.metadata().to_text() };
            Some((index, commit))
        });
        due.collect()
    }

    pub(super) fn committed(&mut self, lane: usize, offset: u64) {
        if let Some(lane) = self.running.as_mut().and_then(|running| running.lanes.get_mut(lane)) {
            lane.committed = Some(offset);
        }
    }

    // --- what is looked at ---------------------------------------------------------------------------------------

    pub(super) fn is_drained(&self, env: &Env) -> bool {
        let Some(running) = &self.running else { return false };
        self.stopping.is_none()
            && running.lanes.iter().all(|lane| {
                let end = env.books.end(self.id.integration, lane.creation, lane.at.partition);
                lane.read == end && lane.pack.unsettled() == 0 && lane.committed.unwrap_or(lane.begin) == end
            })
    }

    pub(super) fn check(&self, env: &mut Env) {
        let Some(running) = &self.running else { return };
        let open: usize = running.lanes.iter().map(|lane| lane.open.len()).sum();
        let in_flight: usize = running.lanes.iter().map(|lane| lane.pack.in_flight()).sum();
        if open != in_flight {
            let text = format!("{}: {in_flight} in flight, {open} handed over", self.id);
            env.books.violate(Invariant::Books, text);
        }
        for lane in &running.lanes {
            lane.check(env, self.id);
        }
    }
}

impl Running {
    /// Writes dead letters.
    fn bury(&mut self, env: &mut Env, writer: &dyn Writer, epoch: u64) {
        for lane in &mut self.lanes {
            while let Some(letter) = lane.pack.poll_dead_letter() {
                self.letters.put(letter, lane.generation, epoch);
            }
        }
        for (ticket, offset) in self.letters.work(env, writer) {
            if let Some(lane) = self.lanes.get_mut(usize::from(pack::lane_of(ticket))) {
                lane.dead_lettered(env, ticket, offset);
            }
        }
    }
}

impl Lane {
    fn metadata(&self) -> CommitMetadata {
        let totals = self.metadata.totals.and(self.pack.settled_in_order(), 0);
        CommitMetadata { totals, oldest_ms: self.pack.oldest_ms(), ..self.metadata.clone() }
    }

    /// Takes what has come; `Err`: the topic is gone.
    fn take(
        &mut self,
        env: &mut Env,
        id: ShardId,
        pauses: &mut Vec<(TopicPartition, bool)>,
    ) -> Result<(), String> {
        while self.pack.wants_more()
            && let Some(event) = self.inbox.pop_front()
        {
            let (creation, partition) = (self.creation, self.at.partition);
            let place = |offset| Place { id: id.integration, creation, partition, offset };
            match event {
                ReaderEvent::Batch { records, .. } => {
                    let items: Vec<_> = records
                        .iter()
                        .map(|record| Item {
                            offset: record.offset,
                            key: publish_of(record).unwrap_or(0) % 3,
                            weight: 10,
                            timestamp_ms: record.timestamp_ms,
                            expires_at_ms: 0,
                            message: Message {
                                place: place(record.offset),
                                record: Arc::new(record.clone()),
                            },
                            unfit: publish_of(record)
                                .is_none()
                                .then(|| Box::new(Unfit { class: "unreadable", text: String::new() })),
                            is_watched: false,
                        })
                        .collect();
                    self.read = records.last().map_or(self.read, |record| record.offset + 1);
                    self.pack.take(env.now, items);
                }
                ReaderEvent::End { position, .. } => {
                    self.read = position;
                    self.pack.reached(position);
                }
                ReaderEvent::Gap { from, to, .. } => {
                    self.read = to;
                    self.pack.gap(from, to);
                    self.reap_gap(env, place(from), to);
                }
                ReaderEvent::Gone { reason, .. } => return Err(reason),
            }
        }
        if self.is_paused && self.inbox.len() < CREDITS {
            self.is_paused = false;
            pauses.push((self.at.clone(), false));
        }
        Ok(())
    }

    fn reap_gap(&mut self, env: &mut Env, from: Place, to: u64) {
        let mut is_told = false;
        while let Some(notice) = self.pack.poll_notice() {
            if let Notice::Gap { from: first, to: last } = notice {
                is_told |= first <= from.offset && last == to;
                self.settled.expired += last - first;
            }
        }
        if is_told {
            env.books.removed(from, to);
        } else {
            env.books.violate(
                Invariant::Books,
                format!("{}: a gap from {} to {to} is not told", self.at, from.offset),
            );
        }
    }

    /// Attempts that have timed out have no answer that counts.
    fn reap(&mut self, env: &mut Env) {
        while let Some(notice) = self.pack.poll_notice() {
            let Notice::Failed { offset, is_retried, .. } = notice else { continue };
            let Some(at) = self.open.iter().position(|(_, open)| *open == offset) else {
                env.books.violate(Invariant::Books, format!("{}: {offset} has failed unasked", self.at));
                continue;
            };
            self.open.swap_remove(at);
            if !is_retried {
                self.given_up(env, offset);
                self.leave(env, offset, Fate::Skipped);
            }
        }
    }

    fn answered(&mut self, env: &mut Env, ticket: Ticket, place: Place, answer: Answer) {
        let late = self.pack.late();
        let is_rejected = matches!(answer, Answer::Rejected { .. });
        let is_delivered = answer == Answer::Delivered;
        self.pack.answered(env.now, ticket, answer);
        if self.pack.late() > late {
            return;
        }
        let offset = place.offset;
        self.open.retain(|(open, _)| *open != ticket);
        if is_delivered {
            self.settled.delivered += 1;
            env.books.settled(place, Fate::Delivered);
        }
        while let Some(notice) = self.pack.poll_notice() {
            if notice.is_given_up_of(offset) {
                if !is_rejected {
                    self.given_up(env, offset);
                }
                self.leave(env, offset, if is_rejected { Fate::Rejected } else { Fate::Skipped });
            }
        }
    }

    /// The strategy gives a message up: it must have had all its attempts.
    fn given_up(&self, env: &mut Env, offset: u64) {
        let had = self.attempts.get(&offset).copied();
        if had != self.attempts_max {
            let text =
                format!("{}: {offset} is given up on after {had:?} of {:?}", self.at, self.attempts_max);
            env.books.violate(Invariant::Attempts, text);
        }
    }

    /// It leaves, unless a dead letter is to be written first.
    fn leave(&mut self, env: &mut Env, offset: u64, fate: Fate) {
        if self.dead_letters {
            return;
        }
        match fate {
            Fate::Rejected => self.settled.rejected += 1,
            _ => self.settled.skipped += 1,
        }
        if let Some(place) = self.place(env, offset) {
            env.books.settled(place, fate);
        }
    }

    /// Its dead letter is written.
    fn dead_lettered(&mut self, env: &mut Env, ticket: Ticket, offset: u64) {
        self.pack.dead_lettered(ticket);
        self.settled.dead_lettered += 1;
        if let Some(place) = self.place(env, offset) {
            env.books.dead_lettered(&env.net, place, self.generation);
        }
    }

    fn place(&self, env: &Env, offset: u64) -> Option<Place> {
        let id = env.net.catalogue.integration_of_messages(&self.at.topic)?;
        Some(Place { id, creation: self.creation, partition: self.at.partition, offset })
    }

    fn check(&self, env: &mut Env, id: ShardId) {
        let creation = self.creation;
        let (pack, end) = (&self.pack, env.books.end(id.integration, creation, self.at.partition));
        let unsettled = pack.unsettled() as u64;
        let settled = pack.settled();
        if pack.seen() != self.read - self.begin || settled.total() + unsettled != self.read - self.begin {
            let text = format!(
                "{}: from {} to {} are {} settled and {unsettled} open",
                self.at,
                self.begin,
                self.read,
                settled.total()
            );
            env.books.violate(Invariant::Books, text);
        }
        if settled != self.settled {
            let text = format!("{}: {settled:?} is counted, {:?} has happened", self.at, self.settled);
            env.books.violate(Invariant::Books, text);
        }
        if env.books.creation(id.integration) == Some(creation) && self.read > end {
            env.books.violate(Invariant::Books, format!("{}: {} is read of {end}", self.at, self.read));
        }
        if pack.in_flight() > WINDOW || self.inbox.len() > CREDITS + 1 || pack.unsettled() > 16 * 64 {
            env.books.violate(Invariant::Bounds, format!("what {} holds", self.at));
        }
    }
}

trait GivenUp {
    fn is_given_up_of(&self, offset: u64) -> bool;
}

impl GivenUp for Notice {
    fn is_given_up_of(&self, at: u64) -> bool {
        matches!(self, Self::Failed { offset, is_retried: false, .. } if *offset == at)
    }
}

/// Attempts that a message is to have before it is given up on; `None`: it never is.
fn attempts_max(delivery: &Delivery) -> Option<u32> {
    match (delivery.ack_strategy, delivery.retries.unwrap_or(0)) {
        (Some(AckStrategy::RetryAll), 0) => None,
        (Some(AckStrategy::RetryAll), retries) => Some(retries + 1),
        _ => Some(1),
    }
}

fn settings_of(env: &Env, delivery: &Delivery) -> pack::Settings {
    let retries = delivery.retries.unwrap_or(0);
    pack::Settings {
        strategy: delivery.ack_strategy.unwrap_or(AckStrategy::SkipAll),
        retries: if env.has(Bug::RetryOnceMore) && retries > 0 { retries + 1 } else { retries },
        pause: Duration::from_millis(200),
        attempt_timeout: Duration::from_millis(2_000),
        ordering: delivery.ordering.unwrap_or(pack::Ordering::None),
        window_messages: WINDOW,
        window_bytes: 1_000,
        dead_letters: delivery.dead_letter,
    }
}
