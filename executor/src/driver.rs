//! The executors' half of the protocol for one kind: membership, ownership claims, restoration, shards
//! (architecture §4.17-19).

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use prost::Message as _;
use tbmq_bus::{
    Bus, CompletionQueue, Membership, MembershipConfig, MembershipEvent, Outgoing, Reader, ReaderConfig,
    ReaderEvent, Record, Release, Start, TopicPartition, Writer, spec_of,
};
use tbmq_integration::{
    lifecycle::End,
    restore::{self, Step},
    wire::{Change, Desired},
};
use tbmq_proto::{
    ids::{Kind, ShardId},
    topic::{Catalogue, REVISION_HEADER},
    wire::OwnerClaim,
};
use tbmq_service::{admin::Component, drain::Drain};
use tokio::{
    sync::watch,
    task::{AbortHandle, Id, JoinError, JoinSet},
};

use crate::{
    commands::Commands,
    executor::Shared,
    runner::{Order, Shard},
};

/// The first and the longest pause between two attempts to reach the bus.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long leaving the group may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;

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
    /// Serves the kind until the drain, then hands everything over.
    pub(crate) async fn run(self) {
        let drain = self.drain.clone();
        let (mut pause, longest) = PAUSE;
        let driver = loop {
            let opened = tokio::select! {
                opened = self.open() => opened,
                () = drain.begun() => return,
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
                () = drain.begun() => return,
            }
        };
        driver.run(drain).await;
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
            session_timeout: shared.config.queue.integration_downlink.session_timeout,
        };
        Ok((self.bus.membership(config).await?, reader))
    }
}

struct Driver {
    group: Group,
    topic: Arc<str>,
    membership: Box<dyn Membership>,
    reader: Box<dyn Reader>,
    owned: HashMap<u32, Owned>,
    preparing: FuturesUnordered<Future<Vec<Prepared>>>,
    handing_over: FuturesUnordered<Future<()>>,
    actors: JoinSet<()>,
    by_task: HashMap<Id, (u32, ShardId)>,
    assignments: u64,
}

/// An assigned partition.
struct Owned {
    /// Tells this assignment from earlier ones of the same partition.
    assignment: u64,
    epoch: u64,
    /// `None` until the claim is written.
    restoration: Option<restore::Partition>,
    shards: HashMap<ShardId, Handle>,
}

/// The driver's end of a shard.
struct Handle {
    orders: watch::Sender<Order>,
    kind: Kind,
    seq: Arc<AtomicU64>,
    task: Id,
    abort: AbortHandle,
}

/// A partition whose claim is written.
struct Prepared {
    partition: u32,
    assignment: u64,
    epoch: u64,
    end: u64,
}

impl Driver {
    fn new(group: Group, membership: Box<dyn Membership>, reader: Box<dyn Reader>) -> Self {
        group.health.up();
        Self {
            topic: group.shared.catalogue.downlink(&group.kind).name.into(),
            group,
            membership,
            reader,
            owned: HashMap::new(),
            preparing: FuturesUnordered::new(),
            handing_over: FuturesUnordered::new(),
            actors: JoinSet::new(),
            by_task: HashMap::new(),
            assignments: 0,
        }
    }

    async fn run(mut self, drain: Drain) {
        loop {
            tokio::select! {
                () = drain.begun() => break,
                event = self.membership.next() => self.membership_event(event),
                event = self.reader.next() => self.reader_event(event).await,
                Some(prepared) = self.preparing.next() => self.prepared(prepared),
                Some(()) = self.handing_over.next() => {}
                Some(ended) = self.actors.join_next_with_id() => self.ended(ended),
            }
        }
        self.leave().await;
    }

    fn membership_event(&mut self, event: MembershipEvent) {
        match event {
            MembershipEvent::Assigned(partitions) => self.assigned(partitions),
            MembershipEvent::Revoked { partitions, release } => {
                tracing::info!(kind = %self.group.kind, partitions = partitions.len(), "handing partitions over");
                self.hand_over(partitions.iter().map(|partition| partition.partition), Some(release));
            }
            MembershipEvent::Lost(partitions) => {
                self.lost(partitions.iter().map(|partition| partition.partition).collect());
            }
            MembershipEvent::Fenced { reason } => {
                tracing::error!(kind = %self.group.kind, reason, "another executor has this service id");
                self.lost(self.owned.keys().copied().collect());
            }
        }
    }

    fn lost(&mut self, partitions: Vec<u32>) {
        tracing::warn!(kind = %self.group.kind, partitions = partitions.len(), "lost partitions");
        for partition in partitions {
            let Some(owned) = self.forget(partition) else { continue };
            // They see it at once, and nothing waits for them.
            for handle in owned.shards.into_values() {
                handle.orders.send_modify(|order| order.end = Some(End::Lost));
                self.handing_over.push(Box::pin(async move { handle.orders.closed().await }));
            }
        }
    }

    fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        self.assignments += 1;
        let assignment = self.assignments;
        tracing::info!(kind = %self.group.kind, partitions = partitions.len(), "got partitions");
        for partition in &partitions {
            let owned = Owned { assignment, epoch: 0, restoration: None, shards: HashMap::new() };
            self.owned.insert(partition.partition, owned);
        }
        let (shared, writer) = (self.group.shared.clone(), self.group.writer.clone());
        let kind = self.group.kind.clone();
        self.preparing.push(Box::pin(prepare(shared, writer, kind, partitions, assignment)));
    }

    fn prepared(&mut self, prepared: Vec<Prepared>) {
        let limit = self.group.shared.config.queue.integration_downlink.shards_per_partition_max.get();
        for Prepared { partition, assignment, epoch, end } in prepared {
            let Some(owned) = self.owned.get_mut(&partition) else { continue };
            if owned.assignment == assignment {
                owned.epoch = epoch;
                owned.restoration = Some(restore::Partition::new(end, limit));
                self.reader.add(&TopicPartition::new(self.topic.clone(), partition), Start::Earliest);
            }
        }
    }

    async fn reader_event(&mut self, event: ReaderEvent) {
        match event {
            ReaderEvent::Batch { partition, records } => {
                for record in records {
                    self.record(&partition, record);
                }
                self.applied(partition.partition);
            }
            ReaderEvent::End { partition, position } => {
                let partition = partition.partition;
                let restoration = self.owned.get_mut(&partition).and_then(|owned| owned.restoration.as_mut());
                let Some(restoration) = restoration else { return };
                for step in restoration.end(position) {
                    self.step(partition, step);
                }
                self.applied(partition);
            }
            // A compacted topic: what was removed was superseded.
            ReaderEvent::Gap { partition, from, to } => tracing::debug!(%partition, from, to, "a gap"),
            ReaderEvent::Gone { partition, reason } => {
                tracing::error!(%partition, reason, "the downlink topic is gone; making it anew");
                let shared = &self.group.shared;
                let spec = spec_of(&shared.catalogue.downlink(&self.group.kind), shared.replication_factor);
                if let Err(error) = shared.admin.create_topic(&spec).await {
                    tracing::warn!(%error, "can't create the downlink topic");
                    tokio::time::sleep(PAUSE.0).await;
                }
                let limit = shared.config.queue.integration_downlink.shards_per_partition_max.get();
                if let Some(owned) = self.owned.get_mut(&partition.partition) {
                    // What runs goes on; the control plane's repair writes the records again.
                    owned.restoration = Some(restore::Partition::new(0, limit));
                    self.reader.add(&partition, Start::Earliest);
                }
            }
        }
    }

    fn record(&mut self, partition: &TopicPartition, record: Record) {
        let owned = self.owned.get_mut(&partition.partition);
        let Some(restoration) = owned.and_then(|owned| owned.restoration.as_mut()) else { return };
        let revision = record.header(REVISION_HEADER);
        let result =
            restoration.record(record.offset, record.key.as_deref(), record.value.as_ref(), revision);
        match result {
            Ok(Some(step)) => self.step(partition.partition, step),
            Ok(None) => {}
            Err(error) => {
                self.group.shared.metrics.bad_record("downlink");
                tracing::warn!(%partition, offset = record.offset, %error, "skipped a bad record");
            }
        }
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
            Step::Answer(request) => self.group.commands.put(&self.group.shared, request),
            Step::Withdraw(shard) => {
                let owned = self.owned.get(&partition);
                if let Some(handle) = owned.and_then(|owned| owned.shards.get(&shard)) {
                    handle.orders.send_modify(|order| order.end = Some(End::Deleted));
                }
            }
            Step::Apply(desired) => {
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

    fn forget(&mut self, partition: u32) -> Option<Owned> {
        self.reader.remove(&TopicPartition::new(self.topic.clone(), partition));
        self.group.shared.applied.remove(&self.topic, partition);
        self.owned.remove(&partition)
    }

    /// Stops all shards of these partitions; `release` is dropped when they have committed and ended.
    fn hand_over(&mut self, partitions: impl Iterator<Item = u32>, release: Option<Release>) {
        let partitions: Vec<_> = partitions.collect();
        let owned: Vec<_> = partitions.into_iter().filter_map(|partition| self.forget(partition)).collect();
        let handles: Vec<_> = owned.into_iter().flat_map(|owned| owned.shards.into_values()).collect();
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
            drop(release);
        }));
    }

    async fn leave(mut self) {
        self.group.health.down("draining");
        let partitions: Vec<_> = self.owned.keys().copied().collect();
        self.hand_over(partitions.into_iter(), None);
        let bound = self.group.shared.config.integrations.destroy.forced_shutdown_timeout_ms;
        let all = async { while self.handing_over.next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_millis(bound), all).await.is_err() {
            tracing::warn!(kind = %self.group.kind, "integrations did not stop in time and are abandoned");
            self.actors.abort_all();
        }
        if tokio::time::timeout(LEAVE_TIMEOUT, self.membership.leave()).await.is_err() {
            tracing::warn!(kind = %self.group.kind, "the group could not be left in time");
        }
    }
}

/// Writes the claims, whose offsets are the ownership epochs, and takes the ends. Tries until it succeeds.
async fn prepare(
    shared: Arc<Shared>,
    writer: Arc<dyn Writer>,
    kind: Kind,
    partitions: Vec<TopicPartition>,
    assignment: u64,
) -> Vec<Prepared> {
    let (mut pause, longest) = PAUSE;
    loop {
        match claim(&shared, &*writer, &kind, &partitions).await {
            Ok(epochs) => match shared.admin.bounds(&partitions).await {
                Ok(bounds) => {
                    let each = partitions.iter().zip(epochs).zip(bounds);
                    return each
                        .map(|((partition, epoch), bounds)| Prepared {
                            partition: partition.partition,
                            assignment,
                            epoch,
                            end: bounds.end,
                        })
                        .collect();
                }
                Err(error) => tracing::warn!(%kind, %error, "can't take the ends of downlink partitions"),
            },
            Err(error) => tracing::warn!(%kind, %error, "can't claim downlink partitions"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

async fn claim(
    shared: &Shared,
    writer: &dyn Writer,
    kind: &Kind,
    partitions: &[TopicPartition],
) -> Result<Vec<u64>, tbmq_bus::Error> {
    let claim = OwnerClaim {
        service_id: shared.identity.service_id.clone(),
        incarnation: shared.identity.incarnation.clone(),
        time_ms: tbmq_service::time::now_ms(),
    };
    let value = Bytes::from(claim.encode_to_vec());
    let topic = writer.topic(&shared.catalogue.owners().name);
    let completions = CompletionQueue::new();
    let mut epochs = vec![0; partitions.len()];
    let mut submitted = 0;
    let mut failure = None;
    for (ticket, partition) in partitions.iter().enumerate() {
        let key = Catalogue::owner_key(kind, partition.partition);
        let record =
            Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
        match writer.submit(&topic, record, ticket as u64, &completions) {
            Ok(()) => submitted += 1,
            Err(error) => failure = Some(tbmq_bus::Error::Unavailable(error.to_string())),
        }
    }
    let mut outcomes = Vec::new();
    while submitted > 0 {
        completions.wait(&mut outcomes).await;
        for outcome in outcomes.drain(..) {
            submitted -= 1;
            match outcome.result {
                Ok(written) => epochs[outcome.ticket as usize] = written.offset,
                Err(error) => failure = Some(error),
            }
        }
    }
    failure.map_or(Ok(epochs), Err)
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
