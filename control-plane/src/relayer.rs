//! The relayer (architecture §4.7): what is in the store is written to the bus, by one control plane at a time.
//!
//! A lease elects it, and a fenced writer keeps a stalled predecessor from writing over its successor. The holder
//! first reconciles, then follows dirty marks, moves topics on in their lives, and does the jobs of `jobs.rs`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use tbmq_bus::{BatchRecord, FencedWriter, Header, TopicPartition, TopicSpec, Written};
use tbmq_integration::{
    Millis,
    cleanup::{Goal, Stage, Step},
    entity::Document,
    wire::{self, Change, Desired, Target},
};
use tbmq_proto::{
    ids::{IntegrationId, Kind, ShardId},
    partition,
    queue::{
        ClientSubscriptionsProto, SubscriptionOptionsProto, SubscriptionsSourceProto, TopicSubscriptionProto,
    },
    topic::REVISION_HEADER,
};
use tokio::sync::{Mutex, Notify};

use crate::{
    auth,
    fault::Point,
    jobs,
    plane::Plane,
    store::{self, Lease, Life, Mark, Observed, Projection, Row},
    watchdog::Watchdog,
};

/// Name of the lease.
pub(crate) const LEASE: &str = "relayer";

/// A holder that has not renewed for so long has lost the lease.
const LEASE_FOR: Duration = Duration::from_secs(10);

/// How often to look for marks that other replicas have left, and without others that are known.
const LOOK: Duration = Duration::from_millis(20);
const LOOK_ALONE: Duration = Duration::from_millis(250);

/// Integrations whose marks are followed in one round.
const BATCH_MARKS: u64 = 128;

/// Bytes of one batch, unless the records of one mark alone have more.
const BATCH_BYTES: usize = 8 << 20;

/// Integrations that are looked up, and topics that are deleted, at once.
const CALLS: usize = 8;

/// Why the relayer stopped leading.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Bus(#[from] tbmq_bus::Error),
}

impl Error {
    /// Somebody else leads now.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(self, Self::Bus(tbmq_bus::Error::Fenced(_)))
    }
}

/// Contends for the lease and relays while holding it. Ends when draining begins, giving the lease back.
pub(crate) async fn run(plane: Arc<Plane>) {
    let holder = format!("{}/{}", plane.identity.service_id, plane.identity.incarnation);
    let mut seen: Option<(Observed, Instant)> = None;
    loop {
        let attempt = tokio::select! {
            attempt = contend(&plane, &holder, &mut seen) => attempt,
            () = plane.drain.begun() => return,
        };
        match attempt {
            Ok(Some(lease)) => {
                tracing::info!(fencing = lease.fencing, "this control plane relays");
                plane.metrics.leading.set(1);
                lead(&plane, &holder, lease).await;
                plane.metrics.leading.set(0);
                if plane.drain.is_draining() {
                    return;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "can't look at the relayer's lease"),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = plane.drain.begun() => return,
        }
    }
}

async fn contend(
    plane: &Plane,
    holder: &str,
    seen: &mut Option<(Observed, Instant)>,
) -> Result<Option<Lease>, store::Error> {
    let observed = plane.store.observe_lease(LEASE).await?;
    let since = match seen {
        Some((before, since)) if *before == observed => *since,
        _ => Instant::now(),
    };
    *seen = Some((observed.clone(), since));
    let own_past = observed.holder.split_once('/').is_some_and(|(id, incarnation)| {
        id == plane.identity.service_id && incarnation < plane.identity.incarnation.as_str()
    });
    if observed.holder.is_empty() || own_past || since.elapsed() >= LEASE_FOR {
        return plane.store.take_lease(LEASE, &observed, holder).await;
    }
    Ok(None)
}

/// Holds the lease until it is lost, fenced, or given back.
async fn lead(plane: &Arc<Plane>, holder: &str, lease: Lease) {
    let renewing = async {
        let mut lease = lease;
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(LEASE_FOR / 4).await;
            match plane.store.renew_lease(LEASE, &mut lease, holder).await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, "can't renew the relayer's lease"),
            }
            // Two thirds: the successor may begin to count a little earlier.
            if renewed.elapsed() > LEASE_FOR * 2 / 3 {
                return;
            }
        }
    };
    tokio::select! {
        () = renewing => tracing::warn!(fencing = lease.fencing, "the relayer's lease is lost"),
        () = Box::pin(work(plane)) => {}
        () = plane.drain.begun() => {
            if let Err(error) = plane.store.release_lease(LEASE, lease).await {
                tracing::debug!(%error, "the lease was not given back");
            }
        }
    }
}

/// Works until fenced. Faults of bus and store are waited out.
async fn work(plane: &Arc<Plane>) {
    loop {
        let mut pause = Duration::from_millis(100);
        let writer = loop {
            match plane.bus.fenced_writer(&plane.catalogue.relayer()).await {
                Ok(writer) => break writer,
                Err(error) => {
                    tracing::warn!(%error, "can't open the relayer's writer");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        };
        let relayer = Relayer::new(plane.clone(), writer);
        let mut watchdog = Watchdog::default();
        // What lies on the bus is put in order before anything is added to it.
        if let Err(error) = watchdog.round(&relayer).await {
            tracing::warn!(%error, "reconciliation failed; it is tried again soon");
            if error.is_fenced() {
                return;
            }
        }
        let error = tokio::select! {
            error = relayer.follow_marks::<Integrations>() => error,
            error = relayer.follow_marks::<auth::relay::Kept>() => error,
            error = relayer.follow_lives() => error,
            error = jobs::run(&relayer) => error,
            error = watchdog.run(&relayer) => error,
        };
        plane.metrics.relay_failures.inc();
        tracing::warn!(%error, "the relayer's writer failed");
        if error.is_fenced() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Writes what the store holds onto the bus.
#[derive(Debug)]
pub(crate) struct Relayer {
    pub(crate) plane: Arc<Plane>,
    writer: Mutex<Box<dyn FencedWriter>>,
    /// Held from reading a life to writing the subscription that follows from it, so that a withdrawal and a
    /// subscription of one integration are written in the order of the store.
    pub(crate) order: Mutex<()>,
}

/// An integration that has a dirty mark.
struct Marked {
    row: Row,
    life: Life,
}

/// Rows of the store that are written to the bus, mark by mark, in the order of their revisions.
pub(crate) trait Kept {
    /// What a mark is of.
    type Key: Ord + Clone + fmt::Display + Send;
    type Mark: Clone + Send + Sync;

    /// Marks that are followed in one round.
    const MARKS: u64;
    /// Marks were read; their records are on the bus; the store says so.
    const POINTS: [Point; 3];

    /// What a mark is of, and its revision.
    fn key(mark: &Self::Mark) -> (Self::Key, u64);

    /// There may be marks.
    fn dirty(plane: &Plane) -> &Notify;

    fn marks(plane: &Plane, limit: u64)
    -> impl Future<Output = Result<Vec<Self::Mark>, store::Error>> + Send;

    /// Makes records ready, in the order of the marks.
    fn prepare(
        relayer: &Relayer,
        marks: Vec<Self::Mark>,
    ) -> impl Future<Output = Result<Vec<Ready<Self::Mark>>, Error>> + Send;

    /// Notes what was written; of a row that is gone nothing is.
    fn written(
        plane: &Plane,
        done: Vec<(Self::Mark, Option<Projection>)>,
    ) -> impl Future<Output = Result<(), store::Error>> + Send;
}

/// What a mark stands for; `None`: nothing to write, or not now.
pub(crate) type Ready<M> = (M, Result<Option<Prepared<M>>, Error>);

/// Marks that can't be followed now, with their revisions, wait here until their time.
pub(crate) type Deferred<K> = BTreeMap<<K as Kept>::Key, (u64, Instant)>;

/// The records of one mark.
pub(crate) struct Prepared<M> {
    pub(crate) mark: M,
    pub(crate) revision: u64,
    /// The one that nodes have to apply is the first.
    pub(crate) records: Vec<BatchRecord>,
    /// The row is gone: its records are the last that is known of it.
    pub(crate) is_gone: bool,
}

/// Integrations: of each the subscription, then one downlink record for each shard.
#[derive(Debug)]
pub(crate) enum Integrations {}

impl Kept for Integrations {
    type Key = IntegrationId;
    type Mark = Mark;

    const MARKS: u64 = BATCH_MARKS;
    const POINTS: [Point; 3] = [Point::Marked, Point::Written, Point::Noted];

    fn key(mark: &Mark) -> (IntegrationId, u64) {
        (mark.integration, mark.revision)
    }

    fn dirty(plane: &Plane) -> &Notify {
        &plane.dirty
    }

    async fn marks(plane: &Plane, limit: u64) -> Result<Vec<Mark>, store::Error> {
        plane.store.marks(limit).await
    }

    async fn prepare(relayer: &Relayer, marks: Vec<Mark>) -> Result<Vec<Ready<Mark>>, Error> {
        relayer.prepare(marks).await
    }

    async fn written(plane: &Plane, done: Vec<(Mark, Option<Projection>)>) -> Result<(), store::Error> {
        let done: Vec<_> = done.into_iter().filter_map(|(mark, at)| Some((mark, at?))).collect();
        plane.store.projected(&done, tbmq_service::time::now_ms()).await?;
        plane.projected.told(done.iter().map(|(mark, projection)| (mark.integration, *projection)));
        Ok(())
    }
}

impl Relayer {
    pub(crate) fn new(plane: Arc<Plane>, writer: Box<dyn FencedWriter>) -> Self {
        Self { plane, writer: Mutex::new(writer), order: Mutex::default() }
    }

    /// Writes a batch; creates our topics when one is missing.
    pub(crate) async fn write(&self, batch: Vec<BatchRecord>) -> Result<Vec<Written>, tbmq_bus::Error> {
        let mut writer = self.writer.lock().await;
        match writer.write(batch.clone()).await {
            Err(tbmq_bus::Error::UnknownTopic(topic)) => {
                tracing::warn!(%topic, "a configuration topic is missing and is created");
                self.plane.forget_downlinks();
                self.plane.ensure(&self.plane.catalogue.integration_subscriptions()).await?;
                for kind in self.plane.all_kinds() {
                    self.plane.ensure_downlink(&kind).await?;
                }
                self.plane.ensure_auth().await?;
                writer.write(batch).await
            }
            other => other,
        }
    }

    /// Follows dirty marks until something fails.
    async fn follow_marks<K: Kept>(&self) -> Error {
        let mut deferred = Deferred::<K>::new();
        loop {
            deferred.retain(|_, (_, until)| *until > Instant::now());
            match self.relay_round::<K>(&mut deferred).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) if matches!(&error, Error::Store(_)) => {
                    tracing::warn!(%error, "can't follow dirty marks");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(error) => return error,
            }
            // Other replicas leave marks without a word.
            let alone = self.plane.nodes.live_control_planes() < 2;
            tokio::select! {
                () = K::dirty(&self.plane).notified() => {}
                () = tokio::time::sleep(if alone { LOOK_ALONE } else { LOOK }) => {}
            }
        }
    }

    /// Follows one batch of marks; `true` when there may be more.
    pub(crate) async fn relay_round<K: Kept>(&self, deferred: &mut Deferred<K>) -> Result<bool, Error> {
        let plane = &self.plane;
        let mut marks = K::marks(plane, K::MARKS + deferred.len() as u64).await?;
        marks.retain(|mark| {
            let (key, revision) = K::key(mark);
            deferred.get(&key).is_none_or(|(held, _)| *held != revision)
        });
        if marks.is_empty() {
            return Ok(false);
        }
        let [marked, on_bus, noted] = K::POINTS;
        plane.faults.pass(marked).await;
        let _order = self.order.lock().await;
        let mut ready = Vec::new();
        for (mark, result) in K::prepare(self, marks).await? {
            match result {
                Ok(Some(prepared)) => ready.push(prepared),
                Ok(None) => {
                    let (key, revision) = K::key(&mark);
                    deferred.insert(key, (revision, Instant::now() + Duration::from_millis(200)));
                }
                Err(Error::Bus(error @ tbmq_bus::Error::Refused(_))) => {
                    self.defer::<K>(deferred, &mark, &error);
                }
                Err(error) => return Err(error),
            }
        }
        if ready.is_empty() {
            return Ok(false);
        }
        for group in groups(&ready) {
            let done = self.write_group::<K>(group, deferred).await?;
            plane.faults.pass(on_bus).await;
            let count = done.len() as u64;
            K::written(plane, done).await?;
            plane.faults.pass(noted).await;
            plane.metrics.projections.inc_by(count);
        }
        Ok(true)
    }

    /// Writes the records of several marks in one batch.
    async fn write_group<K: Kept>(
        &self,
        group: &[Prepared<K::Mark>],
        deferred: &mut Deferred<K>,
    ) -> Result<Vec<(K::Mark, Option<Projection>)>, Error> {
        let batch = group.iter().flat_map(|prepared| prepared.records.clone()).collect();
        match self.write(batch).await {
            Ok(written) => {
                let mut written = written.as_slice();
                let finish = |prepared: &Prepared<K::Mark>| {
                    let (own, rest) = written.split_at(prepared.records.len().min(written.len()));
                    written = rest;
                    finished(prepared, own)
                };
                Ok(group.iter().map(finish).collect())
            }
            // One record of the batch can't be written: the others must not suffer.
            Err(tbmq_bus::Error::Refused(_)) => {
                let mut done = Vec::new();
                for prepared in group {
                    match self.write(prepared.records.clone()).await {
                        Ok(written) => done.push(finished(prepared, &written)),
                        Err(error @ tbmq_bus::Error::Refused(_)) => {
                            self.defer::<K>(deferred, &prepared.mark, &error);
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(done)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn defer<K: Kept>(&self, deferred: &mut Deferred<K>, mark: &K::Mark, error: &tbmq_bus::Error) {
        let (key, revision) = K::key(mark);
        tracing::error!(%error, what = %key, revision, "configuration can't be written");
        self.plane.metrics.relay_failures.inc();
        deferred.insert(key, (revision, Instant::now() + Duration::from_secs(30)));
    }

    /// Makes the topics of marked integrations exist, all together, and their records ready, in the order of the marks.
    /// `None`: nothing to write, or not now.
    async fn prepare(&self, marks: Vec<Mark>) -> Result<Vec<Ready<Mark>>, Error> {
        let plane = &self.plane;
        let mut marked = self.marked(&marks).await?;
        let is_without_topic = |marked: &Marked| marked.life.life.stage == Stage::Create;
        let (mut without, specs): (Vec<Life>, Vec<TopicSpec>) = marked
            .values()
            .filter(|marked| is_without_topic(marked))
            .map(|marked| {
                let topic = plane.catalogue.messages(marked.row.id, marked.life.shards);
                (marked.life.clone(), plane.spec_of(&topic))
            })
            .unzip();
        let mut failed: HashMap<IntegrationId, tbmq_bus::Error> = HashMap::new();
        if !specs.is_empty() {
            let created = plane.admin.create_topics(&specs).await;
            plane.faults.pass(Point::TopicsCreated).await;
            for (life, created) in without.iter_mut().zip(created) {
                match created {
                    Ok(_) => life.life.created(),
                    Err(error) => drop(failed.insert(life.integration, error)),
                }
            }
            without.retain(|life| !failed.contains_key(&life.integration));
            let saved = plane.store.save_lives(&mut without).await?;
            plane.faults.pass(Point::TopicsNoted).await;
            for (life, is_saved) in without.into_iter().zip(saved) {
                let id = life.integration;
                // Changed meanwhile: the mark is looked at again.
                let Some(marked) = marked.get_mut(&id).filter(|_| is_saved) else {
                    drop(marked.remove(&id));
                    continue;
                };
                marked.life = life;
            }
        }
        let mut all = Vec::with_capacity(marks.len());
        for mark in marks {
            let prepared = match (failed.remove(&mark.integration), marked.remove(&mark.integration)) {
                (Some(error), _) => Err(error.into()),
                (None, Some(marked)) => self.prepare_one(mark, &marked).await,
                (None, None) => Ok(None),
            };
            all.push((mark, prepared));
        }
        Ok(all)
    }

    /// What these marks stand for. The marks of deleted integrations are cleared.
    async fn marked(&self, marks: &[Mark]) -> Result<HashMap<IntegrationId, Marked>, Error> {
        let plane = &self.plane;
        let ids: Vec<IntegrationId> = marks.iter().map(|mark| mark.integration).collect();
        let (rows, lives) = tokio::try_join!(plane.store.find_all(&ids), plane.store.lives(&ids))?;
        let mut lives: HashMap<IntegrationId, Life> =
            lives.into_iter().map(|life| (life.integration, life)).collect();
        let mut marked = HashMap::with_capacity(rows.len());
        for row in rows {
            if let Some(life) = lives.remove(&row.id) {
                marked.insert(row.id, Marked { row, life });
            }
        }
        for mark in marks.iter().filter(|mark| !marked.contains_key(&mark.integration)) {
            // Its life says what is left to do.
            plane.store.clear_mark(*mark).await?;
            plane.faults.pass(Point::MarkCleared).await;
            plane.restless.notify_one();
        }
        Ok(marked)
    }

    /// Makes the records of a marked integration ready. `None`: not now.
    async fn prepare_one(
        &self,
        mark: Mark,
        Marked { row, life }: &Marked,
    ) -> Result<Option<Prepared<Mark>>, Error> {
        if life.life.goal == Goal::Keep && life.life.stage == Stage::Delete {
            // The deletion is completed first, then the topic is created anew.
            self.plane.restless.notify_one();
            return Ok(None);
        }
        self.plane.ensure_downlink(&row.kind).await?;
        let mut records = vec![self.subscription(row, life)];
        records.extend(self.desired(row, life));
        Ok(Some(Prepared { mark, revision: row.revision, records, is_gone: false }))
    }

    /// The subscription record that a row stands for.
    pub(crate) fn subscription(&self, row: &Row, life: &Life) -> BatchRecord {
        let value = life.life.is_subscribed().then(|| subscriptions_of(&row.configuration));
        self.subscription_record(row.id, row.revision, value)
    }

    pub(crate) fn subscription_record(
        &self,
        id: IntegrationId,
        revision: u64,
        value: Option<Bytes>,
    ) -> BatchRecord {
        BatchRecord {
            topic: self.plane.catalogue.integration_subscriptions().name.into(),
            partition: Some(0),
            key: Some(Bytes::from(id.to_string())),
            value,
            headers: vec![Header::text(REVISION_HEADER, revision.to_string())],
        }
    }

    /// The downlink records that a row stands for, in the order of shards.
    pub(crate) fn desired(&self, row: &Row, life: &Life) -> Vec<BatchRecord> {
        // As it is stored: the same row makes the same bytes.
        let (configuration, sealed) = match &row.parted {
            Some(parted) => (parted.plain.clone(), Some(parted.sealed.clone())),
            None => (row.configuration.as_str().into(), None),
        };
        let target = Target { name: row.name.as_str().into(), enabled: row.enabled, configuration, sealed };
        let change = Change::Apply { cause: row.cause, target };
        self.downlink_records(life, row.revision, Some(&change))
    }

    /// One downlink record for each shard, in their order; tombstones without a change.
    fn downlink_records(&self, life: &Life, revision: u64, change: Option<&Change>) -> Vec<BatchRecord> {
        let partitions = self.plane.downlink_partitions(&life.kind);
        let record = |index| {
            let shard = ShardId { integration: life.integration, index };
            let value = change.map(|change| {
                wire::encode_desired(&Desired {
                    shard,
                    shard_count: life.shards,
                    kind: life.kind.clone(),
                    revision,
                    generation: life.life.generation,
                    change: change.clone(),
                })
            });
            let partition = partition::for_shard(&shard, life.shards, partitions);
            self.downlink_record(&life.kind, partition, shard, revision, value)
        };
        (0..life.shards).map(record).collect()
    }

    pub(crate) fn downlink_record(
        &self,
        kind: &Kind,
        partition: u32,
        shard: ShardId,
        revision: u64,
        value: Option<Bytes>,
    ) -> BatchRecord {
        BatchRecord {
            topic: self.plane.catalogue.downlink(kind).name.into(),
            partition: Some(partition),
            key: Some(Bytes::from(shard.downlink_key())),
            value,
            headers: vec![Header::text(REVISION_HEADER, revision.to_string())],
        }
    }

    /// Moves topics on in their lives until something fails.
    async fn follow_lives(&self) -> Error {
        let mut nodes = self.plane.nodes.changes();
        loop {
            nodes.borrow_and_update();
            let waits_for_nodes = match self.life_round().await {
                Ok(Progress { again: true, .. }) => continue,
                Ok(progress) => progress.waits_for_nodes,
                Err(Error::Store(error)) => {
                    tracing::warn!(%error, "can't look after topics");
                    false
                }
                Err(error) => return error,
            };
            tokio::select! {
                () = self.plane.restless.notified() => {}
                changed = nodes.changed(), if waits_for_nodes => if changed.is_err() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                },
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    /// Takes one step of every life that is on its way.
    pub(crate) async fn life_round(&self) -> Result<Progress, Error> {
        let lives = self.plane.store.restless_lives().await?;
        let steps: Vec<Result<Progress, Error>> =
            stream::iter(lives).map(|life| self.life_step(life)).buffer_unordered(CALLS).collect().await;
        let mut progress = Progress::default();
        for step in steps {
            let step = step?;
            progress.again |= step.again;
            progress.waits_for_nodes |= step.waits_for_nodes;
        }
        Ok(progress)
    }

    async fn life_step(&self, mut life: Life) -> Result<Progress, Error> {
        let plane = &self.plane;
        let id = life.integration;
        let now = Millis(tbmq_service::time::now_ms() as u64);
        let subscriptions = plane.catalogue.integration_subscriptions().name;
        match life.life.step(now) {
            Step::Withdraw => {
                let _order = self.order.lock().await;
                if plane.store.life(id).await?.as_ref() != Some(&life) {
                    return Ok(Progress { again: true, waits_for_nodes: false });
                }
                let revision = match life.life.goal {
                    Goal::Remove => life.revision,
                    Goal::Park | Goal::Keep => {
                        plane.store.find(id).await?.map_or(life.revision, |row| row.revision)
                    }
                };
                let written = self.write(vec![self.subscription_record(id, revision, None)]).await?;
                plane.faults.pass(Point::Withdrawn).await;
                life.life.withdrawn(written.first().map_or(0, |written| written.offset + 1));
            }
            Step::AwaitNodes(position) => {
                if !plane.nodes.behind(&subscriptions, 0, position).is_empty() {
                    return Ok(Progress { again: false, waits_for_nodes: true });
                }
                life.life.nodes_applied(now);
            }
            Step::Dismiss => {
                plane.ensure_downlink(&life.kind).await?;
                self.write(self.downlink_records(&life, life.revision, Some(&Change::Deleted))).await?;
                plane.faults.pass(Point::Dismissed).await;
                life.life.dismissed(now);
            }
            Step::AwaitStop => {
                let statuses = plane.store.statuses(&[id]).await?;
                let has_stopped =
                    |shard| statuses.iter().any(|status| status.shard == shard && status.event == "STOPPED");
                if !(0..life.shards).all(has_stopped) && !plane.nodes.executors_of(&life.kind).is_empty() {
                    return Ok(Progress::default());
                }
                life.life.stopped();
            }
            Step::Delete => {
                if life.life.stage != Stage::Delete {
                    // From here on the topic may be gone, also for a successor.
                    life.life.deleting();
                    if !plane.store.save_life(&mut life).await? {
                        return Ok(Progress { again: true, waits_for_nodes: false });
                    }
                    plane.faults.pass(Point::LifeMoved).await;
                }
                if plane.topic_deletion {
                    plane.admin.delete_topic(&plane.catalogue.messages(id, life.shards).name).await?;
                    tracing::info!(integration = %id, goal = ?life.life.goal, "message topic deleted");
                } else {
                    tracing::info!(integration = %id, "message topic kept: topics may not be deleted");
                }
                plane.faults.pass(Point::TopicDeleted).await;
                life.life.deleted(now);
            }
            Step::Forget => {
                plane.ensure_downlink(&life.kind).await?;
                self.write(self.downlink_records(&life, life.revision, None)).await?;
                plane.faults.pass(Point::Forgotten).await;
                plane.store.bury(id).await?;
                return Ok(Progress::default());
            }
            Step::Create | Step::Rest => return Ok(Progress::default()),
        }
        plane.store.save_life(&mut life).await?;
        plane.faults.pass(Point::LifeMoved).await;
        if life.life.stage == Stage::Create {
            plane.dirty.notify_one();
        }
        Ok(Progress { again: true, waits_for_nodes: false })
    }
}

/// What a round of lives has brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Something moved, so more may be possible.
    pub(crate) again: bool,
    /// Something waits for nodes.
    pub(crate) waits_for_nodes: bool,
}

/// Parts the records into batches that are not too large.
fn groups<M>(mut ready: &[Prepared<M>]) -> impl Iterator<Item = &[Prepared<M>]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |prepared: &&Prepared<M>| {
            bytes += prepared
                .records
                .iter()
                .filter_map(|record| Some(record.value.as_ref()?.len()))
                .sum::<usize>();
            bytes <= BATCH_BYTES
        };
        let count = ready.iter().take_while(fits).count().max(1);
        let (group, rest) = ready.split_at_checked(count)?;
        ready = rest;
        Some(group)
    })
}

fn finished<M: Clone>(prepared: &Prepared<M>, written: &[Written]) -> (M, Option<Projection>) {
    let (partition, position) =
        written.first().map_or((0, 0), |written| (written.partition, written.offset + 1));
    let projection = Projection { revision: prepared.revision, partition, position };
    (prepared.mark.clone(), (!prepared.is_gone).then_some(projection))
}

/// The value of a subscription record.
pub(crate) fn subscriptions_of(configuration: &str) -> Bytes {
    // A saved document was checked; what TBMQ's coercions let through has the same filters here as there.
    let filters = Document::parse(configuration).map(|document| document.topic_filters).unwrap_or_default();
    let filters: BTreeSet<String> = filters.into_iter().collect();
    let subscriptions = filters
        .into_iter()
        .map(|topic| TopicSubscriptionProto {
            topic,
            qos: 1,
            share_name: None,
            options: Some(SubscriptionOptionsProto::default()),
            subscription_id: None,
        })
        .collect();
    ClientSubscriptionsProto { subscriptions, source: Some(SubscriptionsSourceProto::Integration.into()) }
        .encode_to_vec()
        .into()
}

/// The only partition of a topic.
pub(crate) fn only_partition(topic: &str) -> TopicPartition {
    TopicPartition::new(topic, 0)
}

#[cfg(test)]
mod tests {
    use tbmq_bus::{Bus, ReaderConfig, ReaderEvent, Start, memory::MemoryBus};

    use super::*;
    use crate::testing::{new, plane, relayer};

    async fn revisions(bus: &MemoryBus, topic: &str) -> Vec<u64> {
        let mut reader = bus.reader(ReaderConfig::new("test", None)).await.unwrap();
        reader.add(&only_partition(topic), Start::Earliest);
        let mut revisions = Vec::new();
        loop {
            match reader.next().await {
                ReaderEvent::Batch { records, .. } => revisions.extend(
                    records
                        .iter()
                        .map(|record| record.header(REVISION_HEADER).unwrap().parse::<u64>().unwrap()),
                ),
                ReaderEvent::End { .. } => return revisions,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_stalled_relayer_cannot_write_an_older_revision_after_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let bus = MemoryBus::new();
        let (first, second) =
            (plane(folder.path(), &bus, "cp1").await, plane(folder.path(), &bus, "cp2").await);
        let topic = first.catalogue.integration_subscriptions().name;
        let old = relayer(&first).await;
        let row = first.store.create(new("one"), first.saved(None)).await.unwrap();
        let mut deferred = BTreeMap::new();
        assert!(old.relay_round::<Integrations>(&mut deferred).await.unwrap());
        assert_eq!(revisions(&bus, &topic).await, [row.revision]);

        // It has read the row and stalls before it writes.
        let life = first.store.life(row.id).await.unwrap().unwrap();
        let stale = [vec![old.subscription(&row, &life)], old.desired(&row, &life)].concat();
        let successor = relayer(&second).await;
        let newer = second.store.set_enabled(row.id, None, false, second.saved(None)).await.unwrap();
        assert!(successor.relay_round::<Integrations>(&mut deferred).await.unwrap());

        let error = old.write(stale).await.unwrap_err();
        assert!(matches!(error, tbmq_bus::Error::Fenced(_)), "{error}");
        assert_eq!(revisions(&bus, &topic).await, [row.revision, newer.revision]);
        let newest = second.store.restart(row.id, None, second.saved(None)).await;
        assert!(newest.is_err(), "it is disabled");
        second.store.set_enabled(row.id, None, true, second.saved(None)).await.unwrap();
        let error = old.relay_round::<Integrations>(&mut deferred).await.unwrap_err();
        assert!(error.is_fenced(), "{error}");
        assert_eq!(second.store.marks(10).await.unwrap().len(), 1, "the mark is left to the successor");
    }

    #[tokio::test]
    async fn a_lease_is_taken_over_only_when_it_stands_still_or_was_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let bus = MemoryBus::new();
        let (first, second) =
            (plane(folder.path(), &bus, "cp1").await, plane(folder.path(), &bus, "cp2").await);
        let lease = contend(&first, "cp1/1", &mut None).await.unwrap().expect("nobody has it");
        let mut seen = None;
        assert_eq!(contend(&second, "cp2/0", &mut seen).await.unwrap(), None);
        // It has stood still since before the lease's length.
        let (observed, _) = seen.take().unwrap();
        let long_ago = Instant::now().checked_sub(LEASE_FOR).unwrap();
        let mut standing = Some((observed.clone(), long_ago));
        let taken = contend(&second, "cp2/0", &mut standing).await.unwrap().expect("it stands still");
        assert_eq!(taken.fencing, lease.fencing + 1);
        // A later start of the same control plane need not wait.
        let again = plane(folder.path(), &bus, "cp2").await;
        assert!(contend(&again, "cp2/1", &mut None).await.unwrap().is_some());
    }
}
