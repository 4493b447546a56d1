//! The port: what every adapter promises.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{future::BoxFuture, task::AtomicWaker};
use parking_lot::Mutex;

use crate::overview::{ClusterInfo, GroupDetails, TopicDetails};

/// One partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Name of the topic.
    pub topic: Arc<str>,
    /// Index of the partition, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: impl Into<Arc<str>>, partition: u32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A name and a value that travel with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Name of the header.
    pub name: Arc<str>,
    /// Its bytes; UTF-8 text in all of our own headers.
    pub value: Bytes,
}

impl Header {
    /// A header with a text value.
    pub fn text(name: &str, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: Bytes::from(value.into()) }
    }
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: u64,
    /// When it was written, epoch ms.
    pub timestamp_ms: i64,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone, and so is an empty value on a compacted topic.
    pub value: Option<Bytes>,
    /// Its headers in the writer's order.
    pub headers: Vec<Header>,
}

impl Record {
    /// The value of the first header with this name, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|header| &*header.name == name)?;
        std::str::from_utf8(&header.value).ok()
    }

    /// Bytes that this record counts for in a budget.
    pub fn weight(&self) -> usize {
        let headers: usize = self.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + headers + 64
    }
}

/// A record to be written, borrowed: the hot path copies it once, into the adapter.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The partition; `None` chooses by `tbmq_proto::partition::for_key`, or any partition without a key.
    pub partition: Option<u32>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value; `None` writes a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: &'a [Header],
}

/// A record of a [`FencedWriter::write`] batch.
#[derive(Clone, Debug)]
pub struct BatchRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// As in [`Outgoing::partition`].
    pub partition: Option<u32>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None` writes a tombstone.
    pub value: Option<Bytes>,
    /// Headers.
    pub headers: Vec<Header>,
}

/// Where a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

/// What went wrong, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The topic (or partition) does not exist; create it, or stop using it.
    #[error("topic {0} does not exist")]
    UnknownTopic(String),
    /// The bus can't be reached, or did not confirm in time; trying again may help. What was to be written may
    /// have been written all the same.
    #[error("the bus is unavailable: {0}")]
    Unavailable(String),
    /// A newer writer with the same identity, or a newer generation of the group, exists; stop.
    #[error("fenced: {0}")]
    Fenced(String),
    /// This record or request can never succeed.
    #[error("refused: {0}")]
    Refused(String),
}

/// The caller's number for a submitted record; it comes back with the outcome.
pub type Ticket = u64;

/// What became of one submitted record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The caller's number.
    pub ticket: Ticket,
    /// Where it was written (acknowledged by all in-sync replicas, or synced, as the adapter promises), or why not.
    pub result: Result<Written, Error>,
}

/// Why a record was not taken; nothing was done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// This topic has used up its budget of bytes in flight; other topics have not.
    #[error("the topic's budget of bytes in flight is used up")]
    TopicFull,
    /// The writer's budget is used up.
    #[error("the writer's budget of bytes in flight is used up")]
    BusFull,
}

/// The settings of a [`Writer`].
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// Client id, as in the topic catalogue.
    pub client_id: String,
    /// How long a record may wait for others to be sent with.
    pub linger: Duration,
    /// From submit to outcome, at most; later the outcome is [`Error::Unavailable`].
    pub deadline: Duration,
    /// Bytes in flight per topic.
    pub topic_budget_bytes: usize,
    /// Bytes in flight over all topics.
    pub budget_bytes: usize,
}

impl WriterConfig {
    /// The defaults of architecture §4.13-14: linger 5 ms, deadline 10 s, 4 MiB per topic, 256 MiB in all.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            linger: Duration::from_millis(5),
            deadline: Duration::from_secs(10),
            topic_budget_bytes: 4 << 20,
            budget_bytes: 256 << 20,
        }
    }
}

/// A topic that a [`Writer`] has looked up once, so that [`Writer::submit`] need not. Cheap to clone; a handle
/// stays valid while its topic is deleted and created anew.
#[derive(Clone)]
pub struct TopicHandle {
    name: Arc<str>,
    state: Arc<dyn Any + Send + Sync>,
}

impl TopicHandle {
    /// For adapters: a handle with the adapter's own state.
    pub fn new(name: Arc<str>, state: Arc<dyn Any + Send + Sync>) -> Self {
        Self { name, state }
    }

    /// The topic's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// For adapters: their own state, if this handle is theirs.
    pub fn state<T: 'static>(&self) -> Option<&T> {
        self.state.downcast_ref()
    }
}

impl fmt::Debug for TopicHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TopicHandle").field(&self.name).finish()
    }
}

/// Where outcomes arrive, in batches: one queue per worker, one wake per batch.
///
/// Its length is bounded by the writer's budget, since a record is in flight until its outcome is pushed here.
#[derive(Debug, Default)]
pub struct CompletionQueue {
    completions: Mutex<Vec<Completion>>,
    waker: AtomicWaker,
}

impl CompletionQueue {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// For adapters: appends outcomes and wakes the worker once.
    pub fn push(&self, batch: impl IntoIterator<Item = Completion>) {
        self.completions.lock().extend(batch);
        self.waker.wake();
    }

    /// Swaps all outcomes that are there into `into`, which it clears first; `false` when there were none.
    pub fn take(&self, into: &mut Vec<Completion>) -> bool {
        into.clear();
        std::mem::swap(&mut *self.completions.lock(), into);
        !into.is_empty()
    }

    /// Waits until there is at least one outcome, then takes all. One task may wait at a time; cancel-safe.
    pub async fn wait(&self, into: &mut Vec<Completion>) {
        std::future::poll_fn(|cx| {
            if self.take(into) {
                return std::task::Poll::Ready(());
            }
            self.waker.register(cx.waker());
            if self.take(into) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }
}

/// Appends records. Shared by threads; never waits.
///
/// Records of one topic and partition that are submitted one after the other are written in that order, and their
/// outcomes are pushed in that order. Every submitted record gets exactly one outcome.
pub trait Writer: Send + Sync + fmt::Debug {
    /// Looks a topic up once. Does not wait and does not fail: records of a topic that does not exist get
    /// [`Error::UnknownTopic`] as outcome.
    fn topic(&self, name: &str) -> TopicHandle;

    /// Takes a record, or says at once that there is no room for it. The outcome arrives on `completions`.
    fn submit(
        &self,
        topic: &TopicHandle,
        record: Outgoing<'_>,
        ticket: Ticket,
        completions: &Arc<CompletionQueue>,
    ) -> Result<(), SubmitError>;

    /// Bytes in flight over all topics.
    fn in_flight_bytes(&self) -> usize;
}

/// Writes records one at a time and waits for the outcome: for configuration, events, replies; not the hot path.
///
/// Waits for room when the writer is full.
pub async fn write(writer: &dyn Writer, topic: &TopicHandle, record: Outgoing<'_>) -> Result<Written, Error> {
    let completions = CompletionQueue::new();
    let mut pause = Duration::from_millis(1);
    while writer.submit(topic, record, 0, &completions).is_err() {
        // Neither budget has a waiter of its own: a full writer drains at the pace of the bus.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let mut batch = Vec::new();
    completions.wait(&mut batch).await;
    batch.pop().map_or_else(|| Err(Error::Unavailable("no outcome".to_owned())), |done| done.result)
}

/// Appends batches over several topics atomically, as the only writer of its name.
///
/// Opening one fences every older one of the same name, on every process: its next write fails with
/// [`Error::Fenced`] and leaves nothing that a reader could see.
#[async_trait]
pub trait FencedWriter: Send + fmt::Debug {
    /// Writes all records or none, and waits until they are durable. Results are in the order of the batch.
    async fn write(&mut self, batch: Vec<BatchRecord>) -> Result<Vec<Written>, Error>;
}

/// Where a [`Reader`] begins in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the lowest offset kept.
    Earliest,
    /// At the end.
    Latest,
    /// At this offset.
    Offset(u64),
}

/// The settings of a [`Reader`].
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// Client id, as in the topic catalogue.
    pub client_id: String,
    /// Group under which offsets are committed; `None`: this reader never commits.
    pub group: Option<String>,
    /// Bytes fetched ahead per partition.
    pub partition_budget_bytes: usize,
    /// Bytes fetched ahead over all partitions.
    pub budget_bytes: usize,
    /// Records per [`ReaderEvent::Batch`], at most.
    pub batch_records: usize,
    /// How long a server may keep a request that finds nothing, ms, while few partitions are read; with many it is longer.
    /// For so long a busy partition gets nothing new when it had no room at that moment.
    pub wait_ms: u32,
}

impl ReaderConfig {
    /// 1 MiB a partition, 256 MiB in all, 500 records a batch, 100 ms.
    pub fn new(client_id: impl Into<String>, group: Option<String>) -> Self {
        Self {
            client_id: client_id.into(),
            group,
            partition_budget_bytes: 1 << 20,
            budget_bytes: 256 << 20,
            batch_records: 500,
            wait_ms: 100,
        }
    }
}

/// What a [`Reader`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReaderEvent {
    /// Records of one partition in order, at least one. Offsets rise but need not be adjacent (compaction, markers).
    Batch {
        /// The partition.
        partition: TopicPartition,
        /// The records.
        records: Vec<Record>,
    },
    /// The reader has come to the end: everything below `position` was handed out or is not there. Sent once after
    /// each time of catching up, and right after `add` on a partition without readable records.
    End {
        /// The partition.
        partition: TopicPartition,
        /// The end, transaction markers and emptied ranges included.
        position: u64,
    },
    /// Records were removed by retention before they were read. Reading goes on at `to`.
    Gap {
        /// The partition.
        partition: TopicPartition,
        /// First offset that was wanted.
        from: u64,
        /// Lowest offset that is kept.
        to: u64,
    },
    /// The topic was deleted, or deleted and created anew, or the wanted offset lies beyond its end. The reader has
    /// removed the partition; look again (offsets of another [`TopicInfo::id`] mean nothing) and `add` it anew. When
    /// a topic is created anew and grows fast, Kafka may hand out some of its records first, from the old position
    /// on.
    Gone {
        /// The partition.
        partition: TopicPartition,
        /// What was found.
        reason: String,
    },
}

/// An offset to be committed, or as committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset to be read next.
    pub offset: u64,
    /// Text that is kept with it, at most 4 KiB; empty when there is none.
    pub metadata: String,
}

/// Reads the partitions that it is told to, with one client for all of them.
///
/// Each partition has a queue and a budget of its own: a paused or slow one delays no other. It reads committed
/// records only, and never changes its position by itself except as [`ReaderEvent::Gap`] says.
#[async_trait]
pub trait Reader: Send + fmt::Debug {
    /// Begins to read a partition; does nothing if it is being read. Does not wait.
    fn add(&mut self, partition: &TopicPartition, start: Start);

    /// Stops reading a partition; none of its events is returned afterwards.
    fn remove(&mut self, partition: &TopicPartition);

    /// Stops handing out records and ends of a partition, keeping its position; what was fetched stays within the budget.
    fn pause(&mut self, partition: &TopicPartition);

    /// Goes on where [`Reader::pause`] stopped.
    fn resume(&mut self, partition: &TopicPartition);

    /// Waits for the next event. Cancel-safe. Faults of the bus do not end it: it goes on when the bus is back.
    async fn next(&mut self) -> ReaderEvent;

    /// Commits offsets for the reader's group and waits until they are durable. All or an error; no membership needed.
    async fn commit(&mut self, commits: Vec<Commit>) -> Result<(), Error>;

    /// What is committed for the reader's group; partitions without a commit are left out.
    async fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error>;
}

/// The settings of a [`Membership`].
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// The group.
    pub group: String,
    /// Client id.
    pub client_id: String,
    /// Static member id (service id): a restart within the session timeout keeps its partitions.
    pub instance_id: Option<String>,
    /// Topics whose partitions are shared among the members. They should exist.
    pub topics: Vec<String>,
    /// A member that is silent for so long loses its partitions.
    pub session_timeout: Duration,
}

/// What a [`Membership`] tells.
#[derive(Debug)]
pub enum MembershipEvent {
    /// These partitions are ours now, in addition to those that already are.
    Assigned(Vec<TopicPartition>),
    /// These are to be handed over: stop work on them, commit, then drop `release`; nobody gets them before.
    Revoked {
        /// The partitions.
        partitions: Vec<TopicPartition>,
        /// Hands them over when dropped.
        release: Release,
    },
    /// These were taken away (the session expired): stop at once and commit nothing.
    Lost(Vec<TopicPartition>),
    /// Another member has taken over our instance id: all that was held is lost, without a [`MembershipEvent::Lost`]
    /// for it, and for good. Nothing follows, and every commit is [`Error::Fenced`].
    Fenced {
        /// What the bus says.
        reason: String,
    },
}

/// Hands revoked partitions over when dropped.
pub struct Release(Option<Box<dyn FnOnce() + Send>>);

impl Release {
    /// For adapters: what to do on drop.
    pub fn new(action: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(action)))
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(action) = self.0.take() {
            action();
        }
    }
}

impl fmt::Debug for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Release")
    }
}

/// Says which partitions of a group are ours; carries no data. Cooperative: only what moves is revoked.
#[async_trait]
pub trait Membership: Send + fmt::Debug {
    /// Waits for the next change. Cancel-safe.
    async fn next(&mut self) -> MembershipEvent;

    /// Commits as a member; [`Membership::next`] may be waited for meanwhile. [`Error::Fenced`] when the group has
    /// moved on without us or a partition is not ours; [`Error::Unavailable`] when the group is about to change or
    /// can't be reached: try again.
    ///
    /// A success of at least one commit proves that the membership held at some time after the call. Nothing is done
    /// before the first poll; when it is dropped, it is open whether it was done. Several may be under way, in no
    /// order. Ends within about two session timeouts.
    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<(), Error>>;

    /// Leaves the group, a static member too, handing over what is held and what is not released yet. Waits until the
    /// others may have it.
    ///
    /// A membership that is dropped without leaving has crashed: a static member keeps its place for its session.
    async fn leave(self: Box<Self>);
}

/// How a topic keeps its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// By age and size.
    Delete,
    /// The latest record of each key.
    Compact,
}

/// A topic to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Its partitions, at least 1.
    pub partitions: u32,
    /// Replicas of each partition.
    pub replication_factor: u16,
    /// How it keeps its records.
    pub policy: CleanupPolicy,
    /// Further settings under Kafka's names (`retention.ms`, `segment.bytes`, ...). Adapters that are not Kafka
    /// honour `retention.ms`, `retention.bytes`, `max.compaction.lag.ms` and `min.cleanable.dirty.ratio`.
    pub settings: Vec<(String, String)>,
}

/// Partitions of a topic, at most.
const PARTITIONS: u32 = 10_000;

impl TopicSpec {
    /// For adapters: what is wrong with it whatever the bus.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        let is_legal = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if self.name.is_empty() || self.name.len() > 249 || !self.name.chars().all(is_legal) {
            let text = "1 to 249 letters, digits, dots, underscores and hyphens";
            return Err(Error::Refused(format!("the name of a topic has {text}, not {:?}", self.name)));
        }
        if self.partitions == 0 || self.partitions > PARTITIONS {
            let text =
                format!("topic {} can't have {} partitions: 1 to {PARTITIONS}", self.name, self.partitions);
            return Err(Error::Refused(text));
        }
        Ok(())
    }
}

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: u32,
    /// Tells one creation of a topic from another of the same name; opaque, and the same for every process. Empty when
    /// the bus can't tell (Kafka older than 3.1).
    pub id: String,
}

/// First and last position of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The lowest offset that is kept.
    pub start: u64,
    /// The position after the last readable record, markers included.
    pub end: u64,
}

/// Creates, deletes and describes. Every call waits for the bus, at most 30 s.
#[async_trait]
pub trait Admin: Send + Sync + fmt::Debug {
    /// Creates topics, together, and waits until they can be written; does nothing with those that exist. One result
    /// for each in their order: `true` when it was created; what is wrong with one does not concern the others.
    async fn create_topics(&self, specs: &[TopicSpec]) -> Vec<Result<bool, Error>>;

    /// Creates one topic, as [`Admin::create_topics`] does.
    async fn create_topic(&self, spec: &TopicSpec) -> Result<bool, Error> {
        let no_result = || Err(Error::Unavailable("no result".to_owned()));
        self.create_topics(std::slice::from_ref(spec)).await.pop().unwrap_or_else(no_result)
    }

    /// Deletes a topic with its records; does nothing if it does not exist. `true` when it was deleted.
    async fn delete_topic(&self, name: &str) -> Result<bool, Error>;

    /// Topics in the order of their names, `None` for one that does not exist; asks once for all of them.
    async fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicInfo>>, Error>;

    /// One topic, if it exists.
    async fn topic(&self, name: &str) -> Result<Option<TopicInfo>, Error> {
        Ok(self.describe(&[name]).await?.pop().flatten())
    }

    /// All topics, by name.
    async fn topics(&self) -> Result<Vec<TopicInfo>, Error>;

    /// First and last positions; fails with [`Error::UnknownTopic`] when one does not exist.
    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>, Error>;

    /// Removes all records below an offset, as retention does.
    async fn delete_records(&self, partition: &TopicPartition, before: u64) -> Result<(), Error>;

    /// What a group has committed for these partitions; those without a commit are left out.
    async fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error>;

    /// The brokers, with their sizes as far as they are known.
    async fn cluster(&self) -> Result<ClusterInfo, Error>;

    /// All topics as they lie in the cluster, by name. One that is about to be deleted may be missing.
    async fn topic_details(&self) -> Result<Vec<TopicDetails>, Error>;

    /// All groups that have members or commits, by name.
    async fn groups(&self) -> Result<Vec<GroupDetails>, Error>;

    /// All that these groups have committed, by partition; one result for each in their order. Topics that were deleted
    /// may be among it. A group that does not exist has committed nothing.
    async fn group_commits(&self, groups: &[&str]) -> Vec<Result<Vec<Commit>, Error>>;

    /// Deletes a group with its commits; does nothing if it does not exist. `true` when it was deleted.
    /// [`Error::Refused`] while it has members.
    async fn delete_group(&self, name: &str) -> Result<bool, Error>;

    /// Tells whether the bus answers.
    async fn ping(&self) -> Result<(), Error>;
}

/// A bus: opens writers, readers and memberships.
#[async_trait]
pub trait Bus: Send + Sync + fmt::Debug {
    /// Opens a writer. Does not wait for the bus to be reachable.
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error>;

    /// Opens the only writer of this name and fences older ones. Waits for the bus.
    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error>;

    /// Opens a reader that reads nothing yet.
    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error>;

    /// Joins a group.
    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error>;

    /// The administrator.
    fn admin(&self) -> Arc<dyn Admin>;
}

/// The topic of a catalogue row, ready to be created with this many replicas.
pub fn spec_of(topic: &tbmq_proto::topic::Topic, replication_factor: u16) -> TopicSpec {
    TopicSpec {
        name: topic.name.clone(),
        partitions: topic.partitions,
        replication_factor,
        policy: match topic.policy {
            tbmq_proto::topic::Policy::Delete => CleanupPolicy::Delete,
            tbmq_proto::topic::Policy::Compact => CleanupPolicy::Compact,
        },
        settings: topic
            .settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}
