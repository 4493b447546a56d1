//! The executors' half of the protocol for one kind: membership, claims, the lease, restoration, shards
//! (architecture §4.17-19). What is ours is decided by [`Ownership`].

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tbmq_bus::{
    Bus, Commit, Membership, MembershipConfig, MembershipEvent, Reader, ReaderConfig, ReaderEvent, Record,
    Release, Start, TopicPartition, Writer, spec_of,
};
use tbmq_integration::{
    Millis,
    lifecycle::End,
    ownership::{self, Ownership, Renewal},
    restore::{self, Step},
    stats::{Admission, LIMIT_TEXT},
    wire::{Change, Desired, Target},
};
use tbmq_proto::{
    ids::{Kind, ShardId},
    integration::{ErrorEvent, native_event::Body},
    topic::REVISION_HEADER,
};
use tbmq_service::{admin::Component, drain::Drain, identity::Superseded};
use tokio::{
    sync::watch,
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::MissedTickBehavior,
};

use crate::{
    commands::Commands,
    executor::Shared,
    lease::Lease,
    owners::{self, Claims},
    runner::{Order, Shard},
    traced,
};

/// The first and the longest pause between two attempts to reach the bus.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long leaving the group may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Renewals of the lease in a session timeout.
const RENEWALS: u32 = 10;

type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;

/// A newer process that has taken over tells of itself within this time.
const NEWER_PATIENCE: Duration = Duration::from_secs(7);

/// The membership is over: another process with our service id has taken it.
struct Fenced {
    group: Group,
    reason: String,
}

/// What a group needs.
pub(crate) struct Group {
    pub(crate) shared: Arc<Shared>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) writer: Arc<dyn Writer>,
    pub(crate) kind: Kind,
    pub(crate) commands: Commands,
    pub(crate) health: Component,
    pub(crate) drain: Drain,
}

impl Group {
    /// Serves the kind until the drain, then hands everything over; ends when a newer process has our service id.
    pub(crate) async fn run(mut self) -> Result<(), Superseded> {
        loop {
            let fenced = match self.serve().await {
                Ok(()) => return Ok(()),
                Err(fenced) => fenced,
            };
            let Fenced { group, reason } = *fenced;
            group.health.down(reason.clone());
            tokio::select! {
                superseded = group.shared.newer.seen() => return Err(superseded),
                () = group.drain.begun() => return Ok(()),
                // It may have been an older one that had lost its place: it ends once it hears of us.
                () = tokio::time::sleep(NEWER_PATIENCE) => {
                    tracing::warn!(kind = %group.kind, reason, "taken over, but by no newer process; joining again");
                }
            }
            self = group;
        }
    }

    async fn serve(self) -> Result<(), Box<Fenced>> {
        let drain = self.drain.clone();
        let (mut pause, longest) = PAUSE;
        let driver = loop {
            let opened = tokio::select! {
                opened = self.open() => opened,
                () = drain.begun() => return Ok(()),
            };
            match opened {
                Ok((membership, reader)) => break Driver::new(self, membership, reader),
                Err(error) => {
                    tracing::warn!(kind = %self.kind, %error, "can't join the group of the executors");
                    self.health.down(error.to_string());
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(longest),
                () = drain.begun() => return Ok(()),
            }
        };
        driver.run(drain).await
    }

    async fn open(&self) -> Result<(Box<dyn Membership>, Box<dyn Reader>), tbmq_bus::Error> {
        let shared = &self.shared;
        let topic = shared.catalogue.downlink(&self.kind);
        for topic in [&topic, &shared.catalogue.owners()] {
            shared.admin.create_topic(&spec_of(topic, shared.replication_factor)).await?;
        }
        let stem = format!("{}-ie-downlink-consumer", self.kind.as_str().to_ascii_lowercase());
        let client_id = shared.catalogue.client_id(&stem, &shared.service_id);
        let reader = self.bus.reader(ReaderConfig::new(client_id.clone(), None)).await?;
        let config = MembershipConfig {
            group: shared.catalogue.downlink_group(&self.kind),
            client_id,
            instance_id: Some(shared.identity.service_id.clone()),
            topics: vec![topic.name],
            session_timeout: self.session_timeout(),
        };
        Ok((self.bus.membership(config).await?, reader))
    }

    fn session_timeout(&self) -> Duration {
        self.shared.config.queue.integration_downlink.session_timeout
    }

    fn shards_max(&self) -> usize {
        self.shared.config.queue.integration_downlink.shards_per_partition_max.get()
    }
}

struct Driver {
    group: Group,
    topic: Arc<str>,
    membership: Box<dyn Membership>,
    reader: Box<dyn Reader>,
    ownership: Ownership,
    /// What the shards look at.
    lease: Lease,
    lease_until: watch::Sender<Millis>,
    claims: watch::Receiver<Claims>,
    owned: HashMap<u32, Owned>,
    claiming: FuturesUnordered<Future<Claimed>>,
    renewing: Option<BoxFuture<'static, (Renewal, Result<(), tbmq_bus::Error>)>>,
    remaking: FuturesUnordered<Future<u32>>,
    handing_over: FuturesUnordered<Future<HandedOver>>,
    /// Partitions whose shards are being stopped for the next owner.
    leaving: HashMap<u32, Leaving>,
    hand_overs: u64,
    actors: JoinSet<()>,
    by_task: HashMap<Id, (u32, ShardId)>,
    /// When partitions were assigned whose restoration has not been told yet.
    restoring_since: Option<Millis>,
}

/// An assigned partition.
#[derive(Default)]
struct Owned {
    epoch: u64,
    /// Its end when it was claimed.
    end: u64,
    /// `None` until the claim is written.
    restoration: Option<restore::Partition>,
    shards: HashMap<ShardId, Handle>,
    /// What the group has as our position.
    committed: Option<u64>,
}

impl Owned {
    fn is_restored(&self) -> bool {
        self.restoration.as_ref().is_some_and(restore::Partition::is_restored)
    }
}

/// The driver's end of a shard.
struct Handle {
    orders: watch::Sender<Order>,
    kind: Kind,
    seq: Arc<AtomicU64>,
    task: Id,
    abort: AbortHandle,
}

/// What came of an attempt to claim.
struct Claimed {
    attempt: u64,
    partitions: Vec<TopicPartition>,
    /// The epoch of each, and where it ended then; `None`: not written.
    written: Option<Vec<(u64, u64)>>,
    /// Before the next try.
    pause: Duration,
}

/// A partition that is being handed over.
struct Leaving {
    /// By which hand-over.
    number: u64,
    shards: Vec<watch::Sender<Order>>,
}

/// Partitions whose shards have stopped; they are the next owner's when this is dropped.
struct HandedOver {
    number: u64,
    partitions: Vec<u32>,
    _release: Option<Release>,
}

impl Driver {
    fn new(group: Group, membership: Box<dyn Membership>, reader: Box<dyn Reader>) -> Self {
        group.health.up();
        let (lease_until, lease) = Lease::new(group.shared.clock);
        let claims = group.shared.owners.of(&group.kind).expect("every served kind has its claims");
        Self {
            topic: group.shared.catalogue.downlink(&group.kind).name.into(),
            ownership: Ownership::new(group.session_timeout()),
            group,
            membership,
            reader,
            lease,
            lease_until,
            claims,
            owned: HashMap::new(),
            claiming: FuturesUnordered::new(),
            renewing: None,
            remaking: FuturesUnordered::new(),
            handing_over: FuturesUnordered::new(),
            leaving: HashMap::new(),
            hand_overs: 0,
            actors: JoinSet::new(),
            by_task: HashMap::new(),
            restoring_since: None,
        }
    }

    async fn run(mut self, drain: Drain) -> Result<(), Box<Fenced>> {
        let mut ticks = tokio::time::interval(self.group.session_timeout() / RENEWALS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.act();
            tokio::select! {
                () = drain.begun() => break,
                event = self.membership.next() => if let Err(reason) = self.membership_event(event) {
                    return Err(Box::new(Fenced { group: self.group, reason }));
                },
                event = self.reader.next() => self.reader_event(event),
                changed = self.claims.changed() => if changed.is_ok() { self.contest() },
                Some(claimed) = self.claiming.next() => self.claimed(claimed),
                (renewal, result) = renewed(&mut self.renewing) => self.renewed(renewal, result),
                Some(partition) = self.remaking.next() => self.read_again(partition),
                Some(handed_over) = self.handing_over.next() => self.handed_over(&handed_over),
                Some(ended) = self.actors.join_next_with_id() => self.ended(ended),
                _ = ticks.tick() => {
                    self.tell_health();
                    self.renew();
                }
            }
        }
        self.leave(ticks).await;
        Ok(())
    }

    fn now(&self) -> Millis {
        self.group.shared.clock.now()
    }

    /// `Err`: the membership is over, and why.
    fn membership_event(&mut self, event: MembershipEvent) -> Result<(), String> {
        match event {
            MembershipEvent::Assigned(partitions) => self.assigned(&partitions),
            MembershipEvent::Revoked { partitions, release } => {
                tracing::info!(kind = %self.group.kind, partitions = partitions.len(), "handing partitions over");
                let partitions = partitions.iter().map(|partition| partition.partition).collect();
                self.hand_over(partitions, Some(release));
            }
            MembershipEvent::Lost(partitions) => {
                tracing::warn!(kind = %self.group.kind, partitions = partitions.len(), "lost partitions");
                self.lost(partitions.iter().map(|partition| partition.partition).collect());
            }
            MembershipEvent::Fenced { reason } => {
                self.lost(self.ownership.partitions().collect());
                return Err(reason);
            }
        }
        Ok(())
    }

    fn assigned(&mut self, partitions: &[TopicPartition]) {
        tracing::info!(kind = %self.group.kind, partitions = partitions.len(), "got partitions");
        for partition in partitions {
            // It can only be assigned again if it was lost before it was handed over.
            self.forget(partition.partition);
            self.owned.insert(partition.partition, Owned::default());
        }
        self.restoring_since.get_or_insert_with(|| self.group.shared.clock.now());
        self.ownership.assigned(partitions.iter().map(|partition| partition.partition));
        self.renew();
    }

    /// Takes these away from their shards, who see it at once; nothing waits for them.
    fn lost(&mut self, partitions: Vec<u32>) {
        for partition in &partitions {
            self.forget(*partition);
        }
        self.ownership.gone(partitions);
    }

    /// Carries out what was decided.
    fn act(&mut self) {
        while let Some(step) = self.ownership.poll() {
            match step {
                ownership::Step::Claim { attempt, partitions } => {
                    let partitions = partitions
                        .into_iter()
                        .map(|partition| TopicPartition::new(self.topic.clone(), partition));
                    self.claim(attempt, partitions.collect(), Duration::ZERO);
                }
                ownership::Step::Begin { partition, epoch } => {
                    let limit = self.group.shards_max();
                    let Some(owned) = self.owned.get_mut(&partition) else { continue };
                    owned.epoch = epoch;
                    owned.restoration = Some(restore::Partition::new(owned.end, limit));
                    self.reader.add(&TopicPartition::new(self.topic.clone(), partition), Start::Earliest);
                }
                // One that is being handed over anyway is not begun again either.
                ownership::Step::Stop { partition } if self.owned.contains_key(&partition) => {
                    tracing::warn!(kind = %self.group.kind, partition, "another executor has claimed a partition");
                    self.group.shared.metrics.superseded_claims.inc();
                    self.forget(partition);
                    self.owned.insert(partition, Owned::default());
                }
                ownership::Step::Stop { .. } => {}
            }
        }
        self.lease_until.send_if_modified(|until| {
            std::mem::replace(until, self.ownership.lease_until()) != self.ownership.lease_until()
        });
    }

    fn claim(&mut self, attempt: u64, partitions: Vec<TopicPartition>, pause: Duration) {
        let (shared, writer) = (self.group.shared.clone(), self.group.writer.clone());
        self.claiming.push(Box::pin(claim(
            shared,
            writer,
            self.group.kind.clone(),
            attempt,
            partitions,
            pause,
        )));
    }

    fn claimed(&mut self, Claimed { attempt, partitions, written, pause }: Claimed) {
        let Some(written) = written else {
            // A claim that nobody needs would only disturb the next owner.
            if self.ownership.is_claiming(attempt) {
                let (first, longest) = PAUSE;
                self.claim(attempt, partitions, (pause * 2).clamp(first, longest));
            }
            return;
        };
        for (partition, (epoch, end)) in partitions.iter().zip(written) {
            if let Some(owned) = self.owned.get_mut(&partition.partition) {
                owned.end = end;
            }
            self.ownership.claimed(attempt, partition.partition, epoch);
        }
    }

    fn contest(&mut self) {
        let claims = self.claims.borrow_and_update();
        let held: Vec<u32> = self.ownership.partitions().collect();
        for partition in held {
            if let Some(claim) = claims.get(&partition).filter(|claim| !claim.is_own) {
                self.ownership.contested(partition, claim.epoch);
            }
        }
    }

    /// Sends a renewal, unless one is on its way.
    fn renew(&mut self) {
        if self.renewing.is_some() {
            return;
        }
        let now = self.now();
        let Some(renewal) = self.ownership.renew(now) else { return };
        // Positions are for people to look at; that the group takes one of them is what counts.
        let mut commits = Vec::new();
        let mut spare = None;
        for partition in self.ownership.partitions() {
            let Some(owned) = self.owned.get(&partition) else { continue };
            let offset = owned.restoration.as_ref().map_or(0, restore::Partition::position);
            let partition = TopicPartition::new(self.topic.clone(), partition);
            let commit = Commit { partition, offset, metadata: String::new() };
            if owned.committed == Some(offset) { spare = Some(commit) } else { commits.push(commit) }
        }
        if commits.is_empty() {
            // Those whose shards are being handed over are committed no more, but still ours.
            let any = || self.ownership.partitions().next();
            let spare = spare.or_else(|| {
                let partition = TopicPartition::new(self.topic.clone(), any()?);
                Some(Commit { partition, offset: 0, metadata: String::new() })
            });
            commits.extend(spare);
        }
        for commit in &commits {
            if let Some(owned) = self.owned.get_mut(&commit.partition.partition) {
                owned.committed = Some(commit.offset);
            }
        }
        self.renewing = Some(self.membership.commit(commits).map(move |result| (renewal, result)).boxed());
    }

    fn renewed(&mut self, renewal: Renewal, result: Result<(), tbmq_bus::Error>) {
        self.renewing = None;
        match result {
            Ok(()) => self.ownership.renewed(renewal),
            Err(error) => {
                // A rebalance is under way, or the bus is away; what was lost is told by the membership.
                tracing::debug!(kind = %self.group.kind, %error, "the lease was not renewed");
                self.group.shared.metrics.renewals_failed.inc();
                self.owned.values_mut().for_each(|owned| owned.committed = None);
            }
        }
    }

    fn tell_health(&self) {
        let is_held = self.ownership.partitions().next().is_some();
        if is_held && self.ownership.lease_until() > Millis(0) && !self.lease.holds() {
            self.group.health.down("the group has not confirmed this executor for two thirds of the session timeout; deliveries wait");
        } else {
            self.group.health.up();
        }
    }

    fn reader_event(&mut self, event: ReaderEvent) {
        match event {
            ReaderEvent::Batch { partition, records } => {
                for record in records {
                    self.record(&partition, record);
                }
                self.applied(partition.partition);
            }
            ReaderEvent::End { partition, position } => {
                let partition = partition.partition;
                let Some(restoration) = self.restoration(partition) else { return };
                for step in restoration.end(position) {
                    self.step(partition, step);
                }
                self.applied(partition);
                self.tell_restored();
            }
            // A compacted topic: what was removed was superseded.
            ReaderEvent::Gap { partition, from, to } => tracing::debug!(%partition, from, to, "a gap"),
            ReaderEvent::Gone { partition, reason } => {
                tracing::error!(%partition, reason, "the downlink topic is gone; making it anew");
                if let Some(restoration) = self.restoration(partition.partition) {
                    restoration.gone();
                }
                let shared = self.group.shared.clone();
                let spec = spec_of(&shared.catalogue.downlink(&self.group.kind), shared.replication_factor);
                self.remaking.push(Box::pin(async move {
                    let (mut pause, longest) = PAUSE;
                    while let Err(error) = shared.admin.create_topic(&spec).await {
                        tracing::warn!(%error, "can't create the downlink topic");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(longest);
                    }
                    partition.partition
                }));
            }
        }
    }

    fn restoration(&mut self, partition: u32) -> Option<&mut restore::Partition> {
        self.owned.get_mut(&partition)?.restoration.as_mut()
    }

    /// The topic was made anew. What runs goes on; the control plane's repair writes the records again.
    fn read_again(&mut self, partition: u32) {
        if self.restoration(partition).is_some_and(restore::Partition::made_anew) {
            self.reader.add(&TopicPartition::new(self.topic.clone(), partition), Start::Earliest);
        }
    }

    /// Tells once that everything assigned is restored.
    fn tell_restored(&mut self) {
        if let Some(since) = self.restoring_since
            && self.owned.values().all(Owned::is_restored)
        {
            self.restoring_since = None;
            let shards: usize = self.owned.values().map(|owned| owned.shards.len()).sum();
            let elapsed = self.now().since(since);
            self.group.shared.metrics.restored(self.group.kind.as_str(), elapsed);
            tracing::info!(
                kind = %self.group.kind, partitions = self.owned.len(), shards, elapsed_ms = elapsed.as_millis(),
                "configuration is restored"
            );
        }
    }

    fn record(&mut self, partition: &TopicPartition, record: Record) {
        let Some(restoration) = self.restoration(partition.partition) else { return };
        let revision = record.header(REVISION_HEADER);
        let result =
            restoration.record(record.offset, record.key.as_deref(), record.value.as_ref(), revision);
        match result {
            Ok(Some(Step::Answer(request))) => {
                let shared = &self.group.shared;
                let parent = if shared.tracer.is_on() { traced::parent(&record) } else { None };
                self.group.commands.put(shared, request, parent.as_ref());
            }
            Ok(Some(step)) => self.step(partition.partition, step),
            Ok(None) => {}
            Err(error) => {
                self.group.shared.metrics.bad_record("downlink");
                tracing::warn!(%partition, offset = record.offset, %error, "skipped a bad record");
                self.tell_bad(partition, &record, &error);
            }
        }
    }

    /// Tells of a bad record under the integration that its key names.
    fn tell_bad(&self, partition: &TopicPartition, record: &Record, error: &restore::BadRecord) {
        let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        let Some(shard) = key.and_then(ShardId::from_downlink_key) else { return };
        let Some(owned) = self.owned.get(&partition.partition) else { return };
        let shared = &self.group.shared;
        let text = match shared.admit(shard.integration) {
            Admission::Pass => format!("record {partition}-{} can't be understood: {error}", record.offset),
            Admission::PassNotice => LIMIT_TEXT.to_owned(),
            Admission::Suppress => {
                shared.metrics.error_events_suppressed.inc();
                return;
            }
        };
        let seq = owned.shards.get(&shard).map(|handle| handle.seq.clone()).unwrap_or_default();
        let event = ErrorEvent { method: "onDownlink".to_owned(), error: text, count: 1 };
        shared.uplink.teller(shard, owned.epoch, seq).tell(0, Body::Error(event));
    }

    fn applied(&self, partition: u32) {
        let restoration = self.owned.get(&partition).and_then(|owned| owned.restoration.as_ref());
        if let Some(restoration) = restoration
            && restoration.is_restored()
        {
            self.group.shared.applied.set(&self.topic, partition, restoration.position());
        }
    }

    fn step(&mut self, partition: u32, step: Step) {
        match step {
            Step::Answer(request) => self.group.commands.put(&self.group.shared, request, None),
            Step::Withdraw(shard) => {
                let owned = self.owned.get(&partition);
                if let Some(handle) = owned.and_then(|owned| owned.shards.get(&shard)) {
                    handle.orders.send_modify(|order| order.end = Some(End::Deleted));
                }
            }
            Step::Apply(desired) => {
                self.warn_of_lost_key(&desired);
                let Some(owned) = self.owned.get_mut(&partition) else { return };
                match owned.shards.get(&desired.shard) {
                    // An ended actor is replaced when it is reaped.
                    Some(handle) => handle.orders.send_modify(|order| order.desired = Some(desired)),
                    None => {
                        let order = Order { desired: Some(desired.clone()), end: None };
                        self.spawn(partition, desired, order, Arc::default(), None);
                    }
                }
            }
        }
    }

    /// What runs goes on when its secrets are sealed anew: a key that is missing here would show with the next start only.
    fn warn_of_lost_key(&self, desired: &Desired) {
        if let Change::Apply { target: Target { sealed: Some(sealed), .. }, .. } = &desired.change
            && !self.group.shared.keys.ids().any(|id| id == sealed.key_id)
        {
            tracing::warn!(shard = %desired.shard, key = sealed.key_id, "secrets are sealed with a key that is not configured here");
        }
    }

    fn spawn(
        &mut self,
        partition: u32,
        desired: Desired,
        order: Order,
        seq: Arc<AtomicU64>,
        crash: Option<String>,
    ) {
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        let (orders, receiver) = watch::channel(order);
        let shared = self.group.shared.clone();
        let shard = Shard {
            teller: shared.uplink.teller(desired.shard, owned.epoch, seq.clone()),
            shared,
            id: desired.shard,
            kind: desired.kind.clone(),
            epoch: owned.epoch,
            lease: self.lease.clone(),
            orders: receiver,
            crash,
        };
        let abort = self.actors.spawn(shard.run());
        self.by_task.insert(abort.id(), (partition, desired.shard));
        let handle = Handle { orders, kind: desired.kind, seq, task: abort.id(), abort };
        owned.shards.insert(desired.shard, handle);
    }

    /// An actor has ended: as it was told, or by a panic of its sink.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let (task, crash) = match ended {
            Ok((task, ())) => (task, None),
            Err(error) => (error.id(), error.is_panic().then(|| panic_text(error))),
        };
        let Some((partition, shard)) = self.by_task.remove(&task) else { return };
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        if owned.shards.get(&shard).is_none_or(|handle| handle.task != task) {
            return;
        }
        let Some(handle) = owned.shards.remove(&shard) else { return };
        let order = handle.orders.borrow().clone();
        let crash = crash.map(|text| self.without_secrets(order.desired.as_ref(), text));
        if let Some(text) = &crash {
            self.group.shared.metrics.restarts_after_panic.inc();
            tracing::error!(%shard, kind = %handle.kind, error = text, "an integration crashed");
        }
        // What was asked for after it had ended, or what crashed, needs a successor.
        if let Some(desired) = &order.desired
            && order.end.is_none()
            && matches!(desired.change, Change::Apply { .. })
        {
            self.spawn(partition, desired.clone(), order.clone(), handle.seq, crash);
        }
    }

    /// The text of a panic.
    fn without_secrets(&self, desired: Option<&Desired>, text: String) -> String {
        let shared = &self.group.shared;
        match desired {
            Some(Desired { change: Change::Apply { target, .. }, shard, kind, .. }) => {
                match shared.open(shard.integration, target) {
                    Ok(target) => shared.redactor(kind, &target.configuration).clean(text),
                    Err(_) => text,
                }
            }
            _ => text,
        }
    }

    /// Ends the shards of a partition at once, as lost; also those that are being handed over.
    fn forget(&mut self, partition: u32) {
        let held = self.withdraw(partition).into_iter().map(|handle| handle.orders);
        let leaving = self.leaving.remove(&partition).map(|leaving| leaving.shards);
        for orders in held.chain(leaving.into_iter().flatten()) {
            orders.send_modify(|order| order.end = Some(End::Lost));
        }
    }

    /// Stops reading a partition and returns its shards.
    fn withdraw(&mut self, partition: u32) -> Vec<Handle> {
        self.reader.remove(&TopicPartition::new(self.topic.clone(), partition));
        self.group.shared.applied.remove(&self.topic, partition);
        self.owned.remove(&partition).map(|owned| owned.shards.into_values().collect()).unwrap_or_default()
    }

    /// Stops all shards of these partitions, which stay ours until they have committed and ended; then `release` is
    /// dropped.
    fn hand_over(&mut self, partitions: Vec<u32>, release: Option<Release>) {
        self.hand_overs += 1;
        let number = self.hand_overs;
        let mut handles = Vec::new();
        for partition in &partitions {
            let stopping = self.withdraw(*partition);
            let shards = stopping.iter().map(|handle| handle.orders.clone()).collect();
            self.leaving.insert(*partition, Leaving { number, shards });
            handles.extend(stopping);
        }
        for handle in &handles {
            handle.orders.send_modify(|order| order.end = Some(End::HandOver));
        }
        // One turn for what is in flight, one for the commit.
        let patience = 2 * self.group.shared.config.destroy_timeout() + Duration::from_secs(1);
        self.handing_over.push(Box::pin(async move {
            let all = async {
                for handle in &handles {
                    handle.orders.closed().await;
                }
            };
            if tokio::time::timeout(patience, all).await.is_err() {
                for handle in &handles {
                    tracing::warn!(kind = %handle.kind, "an integration did not stop in time and is abandoned");
                    handle.abort.abort();
                }
            }
            HandedOver { number, partitions, _release: release }
        }));
    }

    fn handed_over(&mut self, HandedOver { number, partitions, .. }: &HandedOver) {
        for partition in partitions {
            // Unless it was lost, and perhaps assigned again, meanwhile.
            if self.leaving.get(partition).is_some_and(|leaving| leaving.number == *number) {
                self.leaving.remove(partition);
                self.ownership.gone([*partition]);
            }
        }
    }

    async fn leave(mut self, mut ticks: tokio::time::Interval) {
        self.group.health.down("draining");
        let partitions: Vec<_> = self.owned.keys().copied().collect();
        self.hand_over(partitions, None);
        let bound = self.group.shared.config.integrations.destroy.forced_shutdown_timeout_ms;
        let deadline = tokio::time::Instant::now() + Duration::from_millis(bound);
        // What the group takes back meanwhile is let go with everything else.
        let mut releases = Vec::new();
        while !self.handing_over.is_empty() {
            self.act();
            tokio::select! {
                Some(handed_over) = self.handing_over.next() => self.handed_over(&handed_over),
                (renewal, result) = renewed(&mut self.renewing) => self.renewed(renewal, result),
                _ = ticks.tick() => self.renew(),
                event = self.membership.next() => match event {
                    MembershipEvent::Revoked { release, .. } => releases.push(release),
                    // They began nothing.
                    MembershipEvent::Assigned(_) => {}
                    event => if self.membership_event(event).is_err() {
                        break;
                    },
                },
                () = tokio::time::sleep_until(deadline) => {
                    tracing::warn!(kind = %self.group.kind, "integrations did not stop in time and are abandoned");
                    self.actors.abort_all();
                    break;
                }
            }
        }
        drop(releases);
        if tokio::time::timeout(LEAVE_TIMEOUT, self.membership.leave()).await.is_err() {
            tracing::warn!(kind = %self.group.kind, "the group could not be left in time");
        }
    }
}

async fn renewed(
    renewing: &mut Option<BoxFuture<'static, (Renewal, Result<(), tbmq_bus::Error>)>>,
) -> (Renewal, Result<(), tbmq_bus::Error>) {
    match renewing {
        Some(renewing) => renewing.await,
        None => std::future::pending().await,
    }
}

/// Writes the claims, whose offsets are the ownership epochs, and takes the ends. Begins after `pause`.
async fn claim(
    shared: Arc<Shared>,
    writer: Arc<dyn Writer>,
    kind: Kind,
    attempt: u64,
    partitions: Vec<TopicPartition>,
    pause: Duration,
) -> Claimed {
    tokio::time::sleep(pause).await;
    let written = async {
        let epochs = owners::claim(&shared, &*writer, &kind, &partitions).await?;
        let bounds = shared.admin.bounds(&partitions).await?;
        Ok::<_, tbmq_bus::Error>(epochs.into_iter().zip(bounds.iter().map(|bounds| bounds.end)).collect())
    };
    let written = written.await.inspect_err(|error| {
        tracing::warn!(%kind, %error, "can't claim downlink partitions");
    });
    Claimed { attempt, partitions, written: written.ok(), pause }
}

fn panic_text(error: JoinError) -> String {
    let text = match error.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => {
                panic.downcast::<&str>().map_or_else(|_| "unknown".to_owned(), |text| (*text).to_owned())
            }
        },
        Err(error) => error.to_string(),
    };
    format!("the integration crashed: {text}")
}
