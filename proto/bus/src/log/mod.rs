//! The log model that `memory` and `embedded` share: topics, offsets, groups, retention, compaction, fencing.
//!
//! All that is written takes one road, the appender's ([`append`]): it gives offsets, hands one group of changes to
//! the storage, and makes them visible only when the storage has them. What a reader sees is never taken back, and
//! many writers share one sync. A log without storage goes that road on the thread of whoever writes, and its house is
//! kept by a task, so that it is as deterministic as the runtime that it lives in, virtual time included; one with a
//! storage has a thread for each. The newest records stay in memory, so a reader that keeps up never asks the storage.

mod admin;
mod append;
mod clean;
mod group;
mod membership;
mod overview;
mod partition;
mod reader;
mod record;
pub(crate) mod storage;
mod writer;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior},
};

pub(crate) use self::record::cumulative;
use self::{
    append::{Job, Pending, Waiter},
    group::Group,
    membership::LogMembership,
    partition::{Limits, Partition, Topic},
    reader::LogReader,
    storage::{Image, Storage, TopicId},
    writer::{LogFencedWriter, LogWriter},
};
use crate::{
    Admin, Bus, Commit, Error, FencedWriter, Membership, MembershipConfig, Reader, ReaderConfig,
    TopicPartition, Writer, WriterConfig,
};

/// How often deadlines and sessions are looked after.
const TICK: Duration = Duration::from_millis(100);

/// How often retention and compaction look around.
const CLEAN_EVERY: Duration = Duration::from_secs(30);

/// How long a request waits for the log, at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the time in epoch ms.
pub(crate) type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The clock of the system.
pub(crate) fn system_clock() -> Clock {
    let epoch = std::time::UNIX_EPOCH;
    Arc::new(move || epoch.elapsed().map_or(0, |since| since.as_millis() as i64))
}

/// A clock that begins at the system's time and goes on with tokio's, which may be virtual.
pub(crate) fn runtime_clock() -> Clock {
    let (epoch_ms, begun) = (system_clock()(), Instant::now());
    Arc::new(move || epoch_ms + begun.elapsed().as_millis() as i64)
}

/// A log, as the adapters hold it and their writers and readers share it. Its threads end when the last one is gone.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    core: Arc<Core>,
    alive: Arc<Alive>,
}

/// The state of a log.
struct Core {
    storage: Box<dyn Storage>,
    clock: Clock,
    topics: RwLock<BTreeMap<Arc<str>, Arc<Topic>>>,
    groups: Mutex<BTreeMap<String, Group>>,
    /// The highest number that a forgotten group has given to a member or a grant: whoever still has one must not be
    /// taken for a member of the next group of that name.
    group_numbers: AtomicU64,
    commits: Mutex<Commits>,
    /// Epochs of fenced writers. Not stored: no writer outlives the process.
    fences: Mutex<HashMap<String, u64>>,
    /// Held by whoever appends.
    appender: Mutex<Appender>,
    pending: Mutex<Pending>,
    arrived: Condvar,
    /// The submitted records that are being written, so that their deadlines hold even while a disk stalls.
    executing: Mutex<Vec<Option<Waiter>>>,
    cache: Cache,
    /// What is no longer part of the log but still in the storage.
    garbage: Mutex<VecDeque<Garbage>>,
    stopped: Mutex<bool>,
    stop: Condvar,
}

type Commits = HashMap<String, HashMap<(TopicId, u32), (u64, String)>>;

#[derive(Debug)]
struct Appender {
    next_topic: TopicId,
    /// Spreads records that have neither key nor partition.
    turn: u32,
}

#[derive(Debug)]
enum Garbage {
    Topic(TopicId),
    Range { topic: TopicId, partition: u32, from: u64, to: u64 },
}

/// The newest records of all partitions, oldest first.
#[derive(Debug)]
struct Cache {
    limit: usize,
    used: AtomicUsize,
    order: Mutex<VecDeque<Cached>>,
}

#[derive(Debug)]
struct Cached {
    partition: Arc<Partition>,
    through: u64,
    bytes: usize,
}

impl Cache {
    /// Notes what was put into a partition, and drops the oldest when it is too much.
    fn note(&self, partition: &Arc<Partition>, through: u64, bytes: usize) {
        let mut used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut order = self.order.lock();
        order.push_back(Cached { partition: Arc::clone(partition), through, bytes });
        while used > self.limit {
            let Some(oldest) = order.pop_front() else { return };
            oldest.partition.evict(oldest.through);
            used = self.used.fetch_sub(oldest.bytes, Ordering::Relaxed) - oldest.bytes;
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("storage", &self.storage).finish_non_exhaustive()
    }
}

/// Ends the threads when dropped.
#[derive(Debug)]
struct Alive {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.core.begin_stop();
    }
}

impl Log {
    /// Opens a log over a storage that holds `image`. Panics outside of a runtime if the storage keeps nothing.
    pub(crate) fn open(
        storage: Box<dyn Storage>,
        image: Image,
        cache: usize,
        clock: Clock,
    ) -> Result<Self, Error> {
        let durable = storage.is_durable();
        let core = Arc::new(Core {
            storage,
            clock,
            topics: RwLock::default(),
            groups: Mutex::default(),
            group_numbers: AtomicU64::new(0),
            commits: Mutex::default(),
            fences: Mutex::default(),
            appender: Mutex::new(Appender { next_topic: 1, turn: 0 }),
            pending: Mutex::default(),
            arrived: Condvar::new(),
            executing: Mutex::default(),
            cache: Cache { limit: cache, used: AtomicUsize::new(0), order: Mutex::default() },
            garbage: Mutex::default(),
            stopped: Mutex::new(false),
            stop: Condvar::new(),
        });
        core.take_over(&mut core.appender.lock(), image);
        for topic in core.topics.read().values() {
            // What a crash left below the start.
            core.garbage.lock().extend(topic.partitions.iter().filter_map(|partition| {
                let to = partition.positions().start;
                let garbage =
                    Garbage::Range { topic: topic.id, partition: partition.name.partition, from: 0, to };
                (to > 0).then_some(garbage)
            }));
        }
        let mut threads = Vec::new();
        if durable {
            threads.push(spawn("bus-housekeeper", &core, Core::keep_house)?);
            threads.push(spawn("bus-appender", &core, Core::run_appender)?);
        } else {
            tokio::spawn(keep_house(Arc::downgrade(&core)));
        }
        let alive = Arc::new(Alive { core: Arc::clone(&core), threads: Mutex::new(threads) });
        Ok(Self { core, alive })
    }

    /// Writes what was submitted, ends the threads and releases the storage; afterwards everything fails.
    pub(crate) async fn close(&self) {
        self.core.begin_stop();
        let (core, threads) = (Arc::clone(&self.core), std::mem::take(&mut *self.alive.threads.lock()));
        let closing = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the log has panicked");
                }
            }
            core.storage.close();
        });
        if let Err(error) = closing.await {
            tracing::error!(%error, "closing the log failed");
        }
    }

    /// For tests: while held, nothing that is submitted is written, and writers fill up.
    pub(crate) fn hold(&self, held: bool) {
        self.core.hold(held);
    }

    /// For tests: ends the sessions of a client's members of a group.
    pub(crate) fn expire(&self, group: &str, client_id: &str) -> bool {
        self.core.expire(group, client_id)
    }

    /// Applies retention and compaction at once, however little there is to gain.
    pub(crate) async fn clean(&self) -> Result<(), Error> {
        self.look(|core| core.clean(true)).await
    }

    /// Does what may read much, off the async threads when it reads from a disk.
    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let core = Arc::clone(&self.core);
        if !core.storage.is_durable() {
            return work(&core);
        }
        let looking = tokio::task::spawn_blocking(move || work(&core));
        looking.await.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
    }

    /// Has a job done and waits for the answer.
    async fn ask<T: Send + 'static>(&self, job: impl FnOnce(append::Reply<T>) -> Job) -> Result<T, Error> {
        let (sender, answer) = oneshot::channel();
        // Whoever asked may have gone.
        self.core.dispatch(job(Box::new(move |result| drop(sender.send(result)))));
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Unavailable("the log is closed".to_owned())),
            Err(_) => Err(Error::Unavailable(format!("the log gave no answer within {PATIENCE:?}"))),
        }
    }

    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Vec<Commit> {
        let commits = self.core.commits.lock();
        let Some(commits) = commits.get(group) else { return Vec::new() };
        let found = partitions.iter().filter_map(|partition| {
            let topic = self.core.topic(&partition.topic)?;
            let (offset, metadata) = commits.get(&(topic.id, partition.partition))?;
            Some(Commit { partition: partition.clone(), offset: *offset, metadata: metadata.clone() })
        });
        found.collect()
    }
}

/// Looks after a log without a storage, on tokio's time.
async fn keep_house(core: Weak<Core>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_clean = Instant::now() + CLEAN_EVERY;
    loop {
        ticks.tick().await;
        let Some(core) = core.upgrade().filter(|core| !*core.stopped.lock()) else { return };
        core.tend(&mut next_clean);
    }
}

fn spawn(name: &str, core: &Arc<Core>, run: fn(&Core)) -> Result<JoinHandle<()>, Error> {
    let core = Arc::clone(core);
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&core));
    thread.map_err(|error| Error::Unavailable(format!("thread {name} can't be started: {error}")))
}

#[async_trait]
impl Bus for Log {
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error> {
        Ok(Arc::new(LogWriter::new(self.clone(), config)))
    }

    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error> {
        let epoch = self.ask(|reply| Job::Fence { name: name.to_owned(), reply }).await?;
        Ok(Box::new(LogFencedWriter::new(self.clone(), name.to_owned(), epoch)))
    }

    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(LogReader::new(self.clone(), config)))
    }

    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error> {
        Ok(Box::new(LogMembership::join(self.clone(), config)))
    }

    fn admin(&self) -> Arc<dyn Admin> {
        Arc::new(admin::LogAdmin(self.clone()))
    }
}

impl Core {
    fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().get(name).cloned()
    }

    fn partition(&self, name: &TopicPartition) -> Result<Arc<Partition>, Error> {
        let topic = self.topic(&name.topic);
        let found = topic.as_ref().and_then(|topic| topic.partitions.get(name.partition as usize));
        found.cloned().ok_or_else(|| Error::UnknownTopic(name.to_string()))
    }

    /// Brings what is in memory to what the storage holds, which may be more than was acknowledged.
    fn take_over(&self, appender: &mut Appender, image: Image) {
        appender.next_topic = appender.next_topic.max(image.next_topic);
        let mut topics = self.topics.write();
        let mut gone = std::mem::take(&mut *topics);
        for (id, spec, found) in image.topics {
            let known = gone.remove(spec.name.as_str()).filter(|topic| topic.id == id);
            let topic = if let Some(topic) = known {
                topic.partitions.iter().zip(&found).for_each(|(partition, found)| partition.catch_up(*found));
                topic
            } else {
                match Limits::of(&spec) {
                    Ok(limits) => Arc::new(Topic::new(id, &spec, limits, &found)),
                    // It was refused when it was created, so it is damaged.
                    Err(error) => {
                        tracing::error!(%error, topic = spec.name, "topic left out");
                        continue;
                    }
                }
            };
            topics.insert(Arc::clone(&topic.name), topic);
        }
        drop(topics);
        for topic in gone.into_values() {
            topic.delete();
        }
        let mut commits = Commits::new();
        for found in image.commits {
            let of_group = commits.entry(found.group).or_default();
            of_group.insert((found.topic, found.partition), (found.offset, found.metadata));
        }
        *self.commits.lock() = commits;
        self.garbage.lock().extend(image.garbage.into_iter().map(Garbage::Topic));
        self.rebalance_all();
    }

    fn rebalance_all(&self) {
        let mut groups = self.groups.lock();
        for group in groups.values_mut() {
            self.rebalance(group);
        }
    }

    fn rebalance(&self, group: &mut Group) {
        group.rebalance(Instant::now(), |topic| self.topic(topic).map(|topic| topic.partitions.len() as u32));
    }

    fn expire(&self, group: &str, client_id: &str) -> bool {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(group) else { return false };
        let members = group.members_named(client_id);
        for member in &members {
            group.expire(*member);
        }
        self.rebalance(group);
        !members.is_empty()
    }

    fn begin_stop(&self) {
        *self.stopped.lock() = true;
        self.stop.notify_all();
        self.pending.lock().close();
        self.arrived.notify_all();
    }

    /// Looks after a log until it is closed.
    fn keep_house(&self) {
        let mut next_clean = Instant::now() + CLEAN_EVERY;
        loop {
            {
                let mut stopped = self.stopped.lock();
                if !*stopped {
                    self.stop.wait_for(&mut stopped, TICK);
                }
                if *stopped {
                    return;
                }
            }
            self.tend(&mut next_clean);
        }
    }

    /// Looks after deadlines, sessions, retention, compaction and garbage.
    fn tend(&self, next_clean: &mut Instant) {
        let now = Instant::now();
        self.expire_deadlines(now);
        let mut groups = self.groups.lock();
        for group in groups.values_mut() {
            if group.tick(now) {
                self.rebalance(group);
            }
        }
        groups.retain(|_, group| {
            self.group_numbers.fetch_max(group.last_number(), Ordering::Relaxed);
            !group.is_empty()
        });
        drop(groups);
        self.collect_garbage();
        if now >= *next_clean {
            if let Err(error) = self.clean(false) {
                tracing::warn!(%error, "retention or compaction failed and is tried again later");
            }
            *next_clean = Instant::now() + CLEAN_EVERY;
        }
    }

    /// Removes from the storage what is no longer part of the log.
    fn collect_garbage(&self) {
        loop {
            let Some(garbage) = self.garbage.lock().pop_front() else { return };
            let removed = match &garbage {
                Garbage::Topic(topic) => self.storage.purge(*topic),
                Garbage::Range { topic, partition, from, to } => {
                    self.storage.remove(*topic, *partition, *from, *to)
                }
            };
            if let Err(error) = removed {
                tracing::warn!(%error, "removing old records failed and is tried again later");
                self.garbage.lock().push_front(garbage);
                return;
            }
            if *self.stopped.lock() {
                return;
            }
        }
    }
}
