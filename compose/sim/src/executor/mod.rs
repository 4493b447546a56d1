//! An executor: membership, claims, the lease, restoration, shards; commits, validations, events.

mod letters;
mod shard;
mod uplink;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use tbmq_bus::{
    Bus as _, Commit, CompletionQueue, MembershipEvent, Outgoing, Reader, ReaderConfig, ReaderEvent, Record,
    Release, Start, TopicPartition, Writer, WriterConfig, fault::Fault,
};
use tbmq_integration::{
    Millis,
    lifecycle::{End, Lifecycle, Reinit},
    ownership::{self, Ownership, Renewal},
    restore::{self, Step},
    wire::Desired,
};
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    topic::{Catalogue, REVISION_HEADER},
    wire::OwnerClaim,
};

use self::{
    shard::{Gate, Shard},
    uplink::Uplink,
};
use crate::{
    Bug,
    books::Invariant,
    env::{Env, note},
    net::{Host, Member, Weather},
    settings::{CALL_MAX, SESSION, SHARDS_MAX, STOP_TIMEOUT},
};

/// Number of a shard's actor within its process.
type Actor = u64;

/// An executor.
pub(crate) struct Executor {
    pub(crate) host: Host,
    writer: Arc<dyn Writer>,
    member: Member,
    ownership: Ownership,
    renewing: Option<(Renewal, Millis)>,
    renewed_at: Millis,
    claims: BTreeMap<u64, Claiming>,
    completions: Arc<CompletionQueue>,
    tickets: BTreeMap<u64, (u64, u32)>,
    next_ticket: u64,
    owners: Box<dyn Reader>,
    owners_at: TopicPartition,
    downlink: Box<dyn Reader>,
    downlink_topic: Arc<str>,
    owned: BTreeMap<u32, Owned>,
    actors: BTreeMap<Actor, Shard>,
    next_actor: Actor,
    handing_over: Vec<HandingOver>,
    messages: Box<dyn Reader>,
    /// Who reads a message partition: the latest that has asked for it.
    readings: BTreeMap<TopicPartition, (Actor, usize)>,
    committing: Option<Committing>,
    flushes: BTreeSet<Actor>,
    uplink: Uplink,
    /// Another process has our service id.
    pub(crate) is_over: bool,
}

/// An assigned partition.
#[derive(Default)]
struct Owned {
    epoch: u64,
    restoration: Option<restore::Partition>,
    shards: BTreeMap<ShardId, Actor>,
}

/// An attempt to claim.
struct Claiming {
    partitions: Vec<u32>,
    epochs: BTreeMap<u32, u64>,
    left: usize,
    is_failed: bool,
    retry_at: Option<Millis>,
}

/// Partitions whose shards are stopping.
struct HandingOver {
    partitions: Vec<u32>,
    actors: Vec<Actor>,
    deadline: Millis,
    _release: Release,
}

/// A commit that was checked and is on its way.
struct Committing {
    checked: Millis,
    /// How often the process had been frozen then.
    freezes: u64,
    /// Some of it was lost since.
    is_overtaken: bool,
    commits: Vec<(Actor, usize, Commit)>,
    flushed: BTreeSet<Actor>,
}

impl Executor {
    pub(crate) fn start(env: &mut Env, host: Host) -> Self {
        let net = &env.net;
        let reader = |name: &str, group: Option<String>| {
            let mut config = ReaderConfig::new(name, group);
            config.batch_records = 3;
            net.ask(host.bus.reader(config)).expect("the memory bus has readers")
        };
        let writer =
            net.ask(host.bus.writer(WriterConfig::new("uplink"))).expect("the memory bus has writers");
        let downlink_topic = net.catalogue.downlink(&net.kind).name;
        let group = net.catalogue.downlink_group(&net.kind);
        let member = Member::join(net, &host, env.now, group, downlink_topic.clone());
        let mut owners = reader("owners", None);
        let owners_at = TopicPartition::new(net.catalogue.owners().name, 0);
        owners.add(&owners_at, Start::Earliest);
        let uplink = Uplink::new(env, &*writer);
        let mut executor = Self {
            member,
            ownership: Ownership::new(SESSION),
            renewing: None,
            renewed_at: env.now,
            claims: BTreeMap::new(),
            completions: CompletionQueue::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            owners,
            owners_at,
            downlink: reader("downlink", None),
            downlink_topic: downlink_topic.into(),
            owned: BTreeMap::new(),
            actors: BTreeMap::new(),
            next_actor: 0,
            handing_over: Vec::new(),
            messages: reader("messages", Some(net.catalogue.messages_group())),
            readings: BTreeMap::new(),
            committing: None,
            flushes: BTreeSet::new(),
            uplink,
            writer,
            host,
            is_over: false,
        };
        note!(env, "{} {} starts", executor.host.service, executor.host.incarnation);
        match env.bug {
            Some(Bug::SwallowGaps) => executor.host.bugs.push(Fault::SwallowGaps),
            Some(Bug::CommitAhead) => executor.host.bugs.push(Fault::CommitAhead(1)),
            _ => {}
        }
        executor.host.set_weather(Weather::Clear);
        executor
    }

    pub(crate) fn member(&mut self) -> &mut Member {
        &mut self.member
    }

    pub(crate) fn turn(&mut self, env: &mut Env, action: u32) {
        match action % 16 {
            0 => self.poll_membership(env),
            1 => self.read_owners(env),
            2 => self.read_downlink(env),
            3 | 4 => self.read_messages(env),
            5 => self.collect_commits(env),
            6 => self.commit(env),
            7 => self.renew(env),
            8 => self.finish_renewal(env),
            9 => self.complete_claims(env),
            10 => self.uplink.work(env, &self.host, &*self.writer, self.ownership.partitions().count()),
            11 => self.hand_over(env),
            _ => self.progress_any(env),
        }
        self.act(env);
    }

    pub(crate) fn turn_all(&mut self, env: &mut Env) {
        for action in [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11] {
            self.turn(env, action);
        }
        self.progress_all(env);
        self.act(env);
    }

    // --- what is ours --------------------------------------------------------------------------------------------

    /// Hears what the group says. Called whenever time passes: the client has a thread of its own for this.
    pub(crate) fn poll_membership(&mut self, env: &mut Env) {
        if self.host.is_away() || env.now < self.host.deaf_until {
            return;
        }
        while let Some(event) = self.member.poll(&env.net, env.now) {
            note!(env, "{} hears {event:?}", self.host.service);
            match event {
                MembershipEvent::Assigned(partitions) => {
                    for partition in &partitions {
                        self.owned.insert(partition.partition, Owned::default());
                    }
                    self.ownership.assigned(partitions.iter().map(|partition| partition.partition));
                    self.start_renewal(env);
                }
                MembershipEvent::Revoked { partitions, release } => {
                    let partitions: Vec<u32> = partitions.iter().map(|at| at.partition).collect();
                    let mut actors = Vec::new();
                    for partition in &partitions {
                        actors.extend(self.forget(*partition, End::HandOver));
                    }
                    let deadline = env.now + STOP_TIMEOUT * 2 + Duration::from_secs(1);
                    self.handing_over.push(HandingOver { partitions, actors, deadline, _release: release });
                }
                MembershipEvent::Lost(partitions) => {
                    let partitions: Vec<u32> = partitions.iter().map(|at| at.partition).collect();
                    for partition in &partitions {
                        self.forget(*partition, End::Lost);
                    }
                    self.lose_handing_over(&partitions);
                    self.ownership.gone(partitions);
                }
                MembershipEvent::Fenced { reason } => {
                    note!(env, "{} {} is over: {reason}", self.host.service, self.host.incarnation);
                    let partitions: Vec<u32> = self.ownership.partitions().collect();
                    for partition in &partitions {
                        self.forget(*partition, End::Lost);
                    }
                    self.lose_handing_over(&partitions);
                    self.ownership.gone(partitions);
                    self.is_over = true;
                }
            }
            self.act(env);
        }
    }

    /// What was being handed over is lost instead: another assignment of it is not to be given up for this one.
    fn lose_handing_over(&mut self, partitions: &[u32]) {
        for handing_over in &mut self.handing_over {
            if handing_over.partitions.iter().any(|partition| partitions.contains(partition)) {
                if let Some(committing) = &mut self.committing {
                    committing.is_overtaken = true;
                }
                handing_over.partitions.retain(|partition| !partitions.contains(partition));
                for actor in &handing_over.actors {
                    if let Some(shard) = self.actors.get_mut(actor) {
                        shard.end(End::Lost);
                    }
                }
            }
        }
    }

    /// Stops what runs of a partition; the actors that do.
    fn forget(&mut self, partition: u32, end: End) -> Vec<Actor> {
        self.downlink.remove(&TopicPartition::new(Arc::clone(&self.downlink_topic), partition));
        self.uplink.set_applied(partition, None);
        let Some(owned) = self.owned.remove(&partition) else { return Vec::new() };
        for actor in owned.shards.values() {
            if let Some(shard) = self.actors.get_mut(actor) {
                shard.end(end);
            }
        }
        if let Some(committing) = self.committing.as_mut().filter(|_| end == End::Lost) {
            committing.is_overtaken = true;
        }
        owned.shards.into_values().collect()
    }

    fn act(&mut self, env: &mut Env) {
        while let Some(step) = self.ownership.poll() {
            match step {
                ownership::Step::Claim { attempt, partitions } => self.claim(env, attempt, partitions),
                ownership::Step::Begin { partition, epoch } => {
                    env.books.counts.claims += 1;
                    let at = TopicPartition::new(Arc::clone(&self.downlink_topic), partition);
                    let bounds = env.net.ask(self.host.bus.admin().bounds(std::slice::from_ref(&at)));
                    let end = bounds.expect("the downlink topic exists")[0].end;
                    let Some(owned) = self.owned.get_mut(&partition) else { continue };
                    note!(env, "{} owns {partition} under {epoch}", self.host.service);
                    owned.epoch = epoch;
                    env.books.began(&env.net, self.host.process(epoch));
                    let end = if env.has(Bug::RestoreEarly) { 0 } else { end };
                    owned.restoration = Some(restore::Partition::new(end, SHARDS_MAX));
                    self.downlink.add(&at, Start::Earliest);
                }
                ownership::Step::Stop { partition } if self.owned.contains_key(&partition) => {
                    note!(env, "{} is superseded in {partition}", self.host.service);
                    env.books.counts.superseded += 1;
                    self.forget(partition, End::Lost);
                    self.owned.insert(partition, Owned::default());
                }
                ownership::Step::Stop { .. } => {}
            }
        }
    }

    fn claim(&mut self, env: &mut Env, attempt: u64, partitions: Vec<u32>) {
        let claim = OwnerClaim {
            service_id: self.host.service.clone(),
            incarnation: self.host.incarnation.clone(),
            time_ms: env.wall_ms(),
        };
        let value = claim.encode_to_vec();
        let topic = self.writer.topic(&self.owners_at.topic);
        let mut claiming =
            Claiming { epochs: BTreeMap::new(), left: 0, is_failed: false, retry_at: None, partitions };
        for partition in &claiming.partitions {
            let key = Catalogue::owner_key(&env.net.kind, *partition);
            let record =
                Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
            self.next_ticket += 1;
            match self.writer.submit(&topic, record, self.next_ticket, &self.completions) {
                Ok(()) => {
                    claiming.left += 1;
                    self.tickets.insert(self.next_ticket, (attempt, *partition));
                }
                Err(_) => claiming.is_failed = true,
            }
        }
        self.claims.insert(attempt, claiming);
    }

    fn complete_claims(&mut self, env: &mut Env) {
        if self.claims.is_empty() {
            return;
        }
        env.net.settle();
        let mut outcomes = Vec::new();
        self.completions.take(&mut outcomes);
        for outcome in outcomes {
            let Some((attempt, partition)) = self.tickets.remove(&outcome.ticket) else { continue };
            let Some(claiming) = self.claims.get_mut(&attempt) else { continue };
            claiming.left -= 1;
            match outcome.result {
                Ok(written) => drop(claiming.epochs.insert(partition, written.offset)),
                Err(_) => claiming.is_failed = true,
            }
        }
        let done: Vec<u64> = self
            .claims
            .iter()
            .filter(|(_, claiming)| claiming.left == 0)
            .map(|(attempt, _)| *attempt)
            .collect();
        for attempt in done {
            let Some(mut claiming) = self.claims.remove(&attempt) else { continue };
            if !claiming.is_failed {
                for (partition, epoch) in claiming.epochs {
                    self.ownership.claimed(attempt, partition, epoch);
                }
            } else if self.ownership.is_claiming(attempt) {
                // A claim that nobody needs would only disturb the next owner.
                match claiming.retry_at {
                    Some(at) if at <= env.now => self.claim(env, attempt, claiming.partitions),
                    Some(_) => drop(self.claims.insert(attempt, claiming)),
                    None => {
                        claiming.retry_at = Some(env.now + Duration::from_millis(100));
                        self.claims.insert(attempt, claiming);
                    }
                }
            }
        }
    }

    fn read_owners(&mut self, env: &mut Env) {
        if self.host.is_away() {
            return;
        }
        let Some(ReaderEvent::Batch { records, .. }) = env.net.poll(self.owners.next()) else { return };
        for record in records {
            let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            let partition = key.and_then(|key| key.rsplit_once('/')?.1.parse().ok());
            let claim = record.value.clone().and_then(|value| OwnerClaim::decode(value).ok());
            if let (Some(partition), Some(claim)) = (partition, claim)
                && claim.incarnation != self.host.incarnation
            {
                self.ownership.contested(partition, record.offset);
                self.act(env);
            }
        }
    }

    // --- the lease -----------------------------------------------------------------------------------------------

    fn renew(&mut self, env: &mut Env) {
        if env.now.since(self.renewed_at) >= SESSION / 10 {
            self.start_renewal(env);
        }
    }

    fn start_renewal(&mut self, env: &Env) {
        if self.renewing.is_none() {
            self.renewed_at = env.now;
            self.renewing = self.ownership.renew(env.now).map(|renewal| (renewal, env.now));
        }
    }

    /// The bus takes the commit, sooner or later.
    fn finish_renewal(&mut self, env: &mut Env) {
        let Some((renewal, _)) = self.renewing.take() else { return };
        let position = |partition| {
            let owned = self.owned.get(&partition);
            owned.and_then(|owned| owned.restoration.as_ref()).map_or(0, restore::Partition::position)
        };
        let commits = self.ownership.partitions().map(|partition| Commit {
            partition: TopicPartition::new(Arc::clone(&self.downlink_topic), partition),
            offset: position(partition),
            metadata: String::new(),
        });
        let commits: Vec<Commit> = commits.collect();
        if commits.is_empty() {
            return;
        }
        match self.member.commit(&env.net, env.now, commits) {
            Ok(()) => self.ownership.renewed(renewal),
            Err(error) => note!(env, "{} has no renewal: {error}", self.host.service),
        }
    }

    /// Carries out what must not take longer. Called whenever time passes.
    pub(crate) fn finish_calls(&mut self, env: &mut Env) {
        if self.renewing.is_some_and(|(_, sent)| env.now.since(sent) >= CALL_MAX) {
            self.finish_renewal(env);
            self.act(env);
        }
        if self.committing.as_ref().is_some_and(|commit| env.now.since(commit.checked) >= CALL_MAX) {
            self.commit(env);
        }
    }

    fn gate(&self, env: &Env) -> Gate {
        Gate { is_open: env.now < self.ownership.lease_until() || env.has(Bug::IgnoreLease) }
    }

    // --- configuration -------------------------------------------------------------------------------------------

    fn read_downlink(&mut self, env: &mut Env) {
        if self.host.is_away() {
            return;
        }
        match env.net.poll(self.downlink.next()) {
            Some(ReaderEvent::Batch { partition, records }) => {
                for record in records {
                    self.downlink_record(env, partition.partition, &record);
                }
            }
            Some(ReaderEvent::End { partition, position }) => {
                let restoration =
                    self.owned.get_mut(&partition.partition).and_then(|owned| owned.restoration.as_mut());
                let steps = restoration.map(|restoration| restoration.end(position)).unwrap_or_default();
                for step in steps {
                    self.step(env, partition.partition, step);
                }
                self.tell_applied(partition.partition);
            }
            _ => {}
        }
    }

    fn downlink_record(&mut self, env: &mut Env, partition: u32, record: &Record) {
        let owned = self.owned.get_mut(&partition);
        let Some(restoration) = owned.and_then(|owned| owned.restoration.as_mut()) else { return };
        let revision = record.header(REVISION_HEADER);
        let result =
            restoration.record(record.offset, record.key.as_deref(), record.value.as_ref(), revision);
        let early = if env.has(Bug::RestoreEarly) { restoration.end(record.offset + 1) } else { Vec::new() };
        match result {
            Ok(step) => {
                for step in step.into_iter().chain(early) {
                    self.step(env, partition, step);
                }
            }
            Err(error) => note!(env, "{} skips a record: {error}", self.host.service),
        }
        self.tell_applied(partition);
    }

    fn tell_applied(&mut self, partition: u32) {
        let restoration = self.owned.get(&partition).and_then(|owned| owned.restoration.as_ref());
        if let Some(restoration) = restoration.filter(|restoration| restoration.is_restored()) {
            self.uplink.set_applied(partition, Some(restoration.position()));
        }
    }

    fn step(&mut self, env: &mut Env, partition: u32, step: Step) {
        match step {
            Step::Answer(request) => self.uplink.ask(env, request),
            Step::Withdraw(shard) => {
                let actor = self.owned.get(&partition).and_then(|owned| owned.shards.get(&shard));
                if let Some(shard) = actor.and_then(|actor| self.actors.get_mut(actor)) {
                    shard.end(End::Deleted);
                }
            }
            Step::Apply(desired) => self.apply(env, partition, desired),
        }
    }

    fn apply(&mut self, env: &mut Env, partition: u32, desired: Desired) {
        note!(env, "{} applies {} revision {}", self.host.service, desired.shard, desired.revision);
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        if let Some(shard) = owned.shards.get(&desired.shard).and_then(|actor| self.actors.get_mut(actor)) {
            shard.desire(desired);
            return;
        }
        self.next_actor += 1;
        owned.shards.insert(desired.shard, self.next_actor);
        let lifecycle = Lifecycle::new(Some(Reinit {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(4),
            seed: self.next_actor,
        }));
        let mut shard = Shard::new(desired.shard, partition, owned.epoch, lifecycle);
        shard.desire(desired);
        self.actors.insert(self.next_actor, shard);
    }

    /// Releases what has stopped.
    fn hand_over(&mut self, env: &mut Env) {
        let now = env.now;
        for handing_over in &self.handing_over {
            if handing_over.deadline <= now {
                for actor in &handing_over.actors {
                    self.actors.remove(actor);
                    self.readings.retain(|_, (reader, _)| reader != actor);
                }
            }
        }
        let actors = &self.actors;
        let (done, still): (Vec<_>, Vec<_>) = std::mem::take(&mut self.handing_over)
            .into_iter()
            .partition(|handing_over| handing_over.actors.iter().all(|actor| !actors.contains_key(actor)));
        self.handing_over = still;
        for handing_over in done {
            note!(env, "{} has handed {:?} over", self.host.service, handing_over.partitions);
            self.ownership.gone(handing_over.partitions);
        }
    }

    // --- shards --------------------------------------------------------------------------------------------------

    fn progress_any(&mut self, env: &mut Env) {
        if self.actors.is_empty() {
            return;
        }
        let index = rand::Rng::random_range(&mut env.rng, 0..self.actors.len());
        let actor = self.actors.keys().copied().nth(index);
        if let Some(actor) = actor {
            self.progress(env, actor);
        }
    }

    fn progress_all(&mut self, env: &mut Env) {
        let actors: Vec<Actor> = self.actors.keys().copied().collect();
        for actor in actors {
            self.progress(env, actor);
        }
    }

    fn progress(&mut self, env: &mut Env, actor: Actor) {
        let gate = self.gate(env);
        let Some(mut shard) = self.actors.remove(&actor) else { return };
        if self.steps(env, actor, &mut shard) {
            self.ended(env, &shard);
            return;
        }
        shard.work(env, &self.host, &*self.writer, gate);
        if let Some(is_abandoned) = shard.is_stopped(env) {
            if shard.wants_flush() && !is_abandoned {
                self.flushes.insert(actor);
            } else {
                self.flushes.remove(&actor);
                shard.close(env);
                self.readings.retain(|_, (reader, _)| *reader != actor);
            }
        }
        for (partition, start) in shard.take_readings() {
            // A predecessor may not have been removed yet.
            let lane = partition.1;
            self.messages.remove(&partition.0);
            self.messages.add(&partition.0, start);
            self.readings.insert(partition.0, (actor, lane));
        }
        for (partition, is_paused) in shard.take_pauses() {
            if self.readings.get(&partition).is_some_and(|(reader, _)| *reader == actor) {
                if is_paused { self.messages.pause(&partition) } else { self.messages.resume(&partition) }
            }
        }
        if self.steps(env, actor, &mut shard) {
            self.ended(env, &shard);
            return;
        }
        self.actors.insert(actor, shard);
    }

    /// Carries out what the lifecycle says; `true` when the shard has ended.
    fn steps(&mut self, env: &mut Env, actor: Actor, shard: &mut Shard) -> bool {
        let process = (self.host.service.as_str(), self.host.incarnation.as_str());
        let is_ended = shard.steps(env, process, &mut self.uplink);
        if is_ended {
            self.readings.retain(|_, (reader, _)| *reader != actor);
        }
        is_ended
    }

    fn ended(&mut self, env: &mut Env, shard: &Shard) {
        note!(env, "{}: {} has ended", self.host.service, shard.id);
        if let Some(owned) = self.owned.get_mut(&shard.partition)
            && owned.epoch == shard.epoch
        {
            owned.shards.remove(&shard.id);
            // What was asked for after it had ended needs a successor.
            if let Some(desired) = shard.successor() {
                self.apply(env, shard.partition, desired);
            }
        }
    }

    fn read_messages(&mut self, env: &mut Env) {
        if self.host.is_away() {
            return;
        }
        let Some(event) = env.net.poll(self.messages.next()) else { return };
        let partition = match &event {
            ReaderEvent::Batch { partition, .. }
            | ReaderEvent::End { partition, .. }
            | ReaderEvent::Gap { partition, .. }
            | ReaderEvent::Gone { partition, .. } => partition.clone(),
        };
        let Some((actor, lane)) = self.readings.get(&partition).copied() else { return };
        let Some(shard) = self.actors.get_mut(&actor) else { return };
        if shard.deliver(lane, event) {
            self.messages.pause(&partition);
        }
    }

    // --- commits -------------------------------------------------------------------------------------------------

    /// Checks the lease and takes what is due.
    fn collect_commits(&mut self, env: &mut Env) {
        if self.committing.is_some() {
            return;
        }
        let gate = self.gate(env);
        let flushed = std::mem::take(&mut self.flushes);
        let mut commits = Vec::new();
        if gate.is_open {
            for (actor, shard) in &self.actors {
                // What has been flushed once is not committed again: its successor may have begun.
                if !shard.is_lost() && (!shard.is_flushing() || flushed.contains(actor)) {
                    commits.extend(shard.due().into_iter().map(|(lane, commit)| (*actor, lane, commit)));
                }
            }
        }
        if !commits.is_empty() || !flushed.is_empty() {
            self.committing = Some(Committing {
                checked: env.now,
                freezes: self.host.freezes,
                is_overtaken: false,
                commits,
                flushed,
            });
        }
    }

    /// The bus takes the commit, sooner or later.
    fn commit(&mut self, env: &mut Env) {
        let Some(committing) = self.committing.take() else { return };
        let Committing { checked, freezes, is_overtaken, commits, flushed } = committing;
        // On its way when the process was frozen, or when the partition was lost.
        let is_window = freezes != self.host.freezes || is_overtaken;
        let mut is_done = true;
        for (actor, lane, commit) in commits {
            let (offset, partition) = (commit.offset, commit.partition.clone());
            let result = env.net.ask(self.messages.commit(vec![commit]));
            if let Err(error) = &result {
                note!(env, "{} can't commit {partition}: {error}", self.host.service);
                is_done = false;
                continue;
            }
            self.enter(env, &partition, is_window, checked);
            // It is committed, but the answer is lost.
            if env.mishap(40) {
                is_done = false;
            } else if let Some(shard) = self.actors.get_mut(&actor) {
                shard.committed(lane, offset);
            }
        }
        for actor in flushed {
            if let Some(shard) = self.actors.get_mut(&actor) {
                shard.flushed(is_done);
            }
        }
    }

    /// Enters into the books what the bus really has now.
    fn enter(&mut self, env: &mut Env, partition: &TopicPartition, is_window: bool, checked: Millis) {
        let admin = tbmq_bus::Bus::admin(&*env.net.memory);
        let group = env.net.catalogue.messages_group();
        let found = env.net.ask(admin.committed(&group, std::slice::from_ref(partition))).unwrap_or_default();
        let (Some(found), Some(id)) =
            (found.first(), env.net.catalogue.integration_of_messages(&partition.topic))
        else {
            return;
        };
        note!(
            env,
            "{} commits {partition} {} {} of {}",
            self.host.service,
            found.offset,
            found.metadata,
            checked.0
        );
        env.books.observe(&env.net);
        env.books.committed(id, partition.partition, found.offset, &found.metadata, is_window);
    }

    // --- what is looked at ---------------------------------------------------------------------------------------

    /// The process dies; the remote ends may have taken what was in flight.
    pub(crate) fn crash(&self, env: &mut Env) {
        for shard in self.actors.values() {
            shard.abandon(env);
        }
    }

    /// A commit was checked and not yet sent.
    pub(crate) fn is_about_to_commit(&self) -> bool {
        self.committing.as_ref().is_some_and(|committing| !committing.commits.is_empty())
    }

    /// Those that run a shard: revision and epoch of each.
    pub(crate) fn runners(&self, shard: ShardId) -> Vec<(u64, u64)> {
        let running = self.actors.values().filter(|actor| actor.id == shard);
        running.filter_map(|actor| Some((actor.running_revision()?, actor.epoch))).collect()
    }

    pub(crate) fn is_running(&self, id: IntegrationId) -> bool {
        self.actors.values().any(|actor| actor.id.integration == id && actor.running_revision().is_some())
    }

    /// Everything of this shard was read, settled and committed.
    pub(crate) fn is_drained(&self, env: &Env, shard: ShardId) -> bool {
        self.actors.values().any(|actor| actor.id == shard && actor.is_drained(env))
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.handing_over.is_empty()
            && self
                .owned
                .values()
                .all(|owned| owned.restoration.as_ref().is_some_and(restore::Partition::is_restored))
            && self.uplink.is_idle()
    }

    pub(crate) fn check(&self, env: &mut Env) {
        let mut running = BTreeSet::new();
        for shard in self.actors.values() {
            shard.check(env);
            if shard.running_revision().is_some() && !shard.is_lost() && !running.insert(shard.id) {
                let text = format!("{} runs {} twice", self.host.service, shard.id);
                env.books.violate(Invariant::OneOwner, text);
            }
        }
        if self.tickets.len() > 1_000 || self.claims.len() > 100 || self.actors.len() > 4 * SHARDS_MAX {
            env.books.violate(Invariant::Bounds, format!("what {} holds", self.host.service));
        }
        self.uplink.check(env);
    }
}
