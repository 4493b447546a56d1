//! The durable bus of one process: the log model over fjall, an LSM tree with a journal.
//!
//! Records lie in one keyspace under (topic id, partition, offset), big-endian, so that a partition's records lie side
//! by side in their order. All else lies in a second, small keyspace. A group of changes is one batch of the journal:
//! whole or not there after a crash, synced once.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::{Buf as _, BufMut as _, Bytes};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::{Mutex, RwLock};

use crate::{
    Admin, Bus, CleanupPolicy, Error, FencedWriter, Membership, MembershipConfig, Reader, ReaderConfig,
    TopicSpec, Writer, WriterConfig,
    log::{
        Log,
        storage::{Change, FoundCommit, FoundPartition, Image, Positions, Range, Storage, TopicId},
        system_clock,
    },
};

/// What an acknowledged record survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Power loss: every group of writes is synced to the disk before it is acknowledged.
    #[default]
    Power,
    /// The death of the process, not of the machine.
    Process,
}

/// The settings of an [`EmbeddedBus`].
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The folder that holds everything; it is created.
    pub path: PathBuf,
    /// What an acknowledged record survives.
    pub durability: Durability,
    /// Bytes of newest records that are kept in memory, so that a reader that keeps up never asks the disk.
    pub cache_bytes: usize,
}

impl EmbeddedConfig {
    /// Survives power loss; 32 MiB of newest records in memory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), durability: Durability::default(), cache_bytes: 32 << 20 }
    }
}

/// The durable bus of one process.
#[derive(Debug)]
pub struct EmbeddedBus {
    log: Log,
}

impl EmbeddedBus {
    /// Opens the log in its folder. Blocks for as long as recovery takes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when another process has the folder open, or it can't be read or written.
    pub fn open(config: EmbeddedConfig) -> Result<Arc<Self>, Error> {
        let cache_bytes = config.cache_bytes;
        let (storage, image) = Fjall::open(config).map_err(Error::Unavailable)?;
        let log = Log::open(Box::new(storage), image, cache_bytes, system_clock())?;
        Ok(Arc::new(Self { log }))
    }

    /// Writes what was submitted and releases the folder; afterwards everything fails with [`Error::Unavailable`].
    pub async fn close(&self) {
        self.log.close().await;
    }

    /// For tests: while held, nothing that is submitted is written, so writers fill up and deadlines pass.
    pub fn hold(&self, held: bool) {
        self.log.hold(held);
    }

    /// For tests: ends the session of a client's members of a group, as if they had been silent for too long. `false`
    /// when there is none.
    pub fn expire(&self, group: &str, client_id: &str) -> bool {
        self.log.expire(group, client_id)
    }

    /// Applies retention and compaction at once, however little there is to gain.
    pub async fn clean_now(&self) -> Result<(), Error> {
        self.log.clean().await
    }
}

#[async_trait]
impl Bus for EmbeddedBus {
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error> {
        self.log.writer(config).await
    }

    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error> {
        self.log.fenced_writer(name).await
    }

    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error> {
        self.log.reader(config).await
    }

    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error> {
        self.log.membership(config).await
    }

    fn admin(&self) -> Arc<dyn Admin> {
        self.log.admin()
    }
}

/// Version of the format on disk.
const FORMAT: u8 = 1;

/// Records that are removed in one batch.
const REMOVE_STEP: usize = 4096;

/// Time between two attempts to open a failed storage.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

/// How long the lock of a storage that was just given up may still be held by its threads.
const UNLOCK_WITHIN: Duration = Duration::from_secs(5);

/// fjall as a storage.
struct Fjall {
    path: PathBuf,
    persist: PersistMode,
    /// `None` after a failure until it is opened again, and once it is closed.
    open: RwLock<Option<Open>>,
    recovery: Mutex<Recovery>,
}

#[derive(Default)]
struct Recovery {
    is_broken: bool,
    is_closed: bool,
    last_attempt: Option<Instant>,
}

struct Open {
    database: Database,
    records: Keyspace,
    meta: Keyspace,
}

impl fmt::Debug for Fjall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fjall")
            .field("path", &self.path)
            .field("persist", &self.persist)
            .finish_non_exhaustive()
    }
}

impl Fjall {
    fn open(config: EmbeddedConfig) -> Result<(Self, Image), String> {
        let path = config.path;
        std::fs::create_dir_all(&path).map_err(|error| at(&path, error))?;
        let open = open(&path).map_err(|error| match error {
            fjall::Error::Locked => at(&path, "another process has it open"),
            other => at(&path, other),
        })?;
        let persist = match config.durability {
            Durability::Power => PersistMode::SyncData,
            Durability::Process => PersistMode::Buffer,
        };
        let image = open.load().map_err(|error| at(&path, error))?;
        let storage = Self { path, persist, open: RwLock::new(Some(open)), recovery: Mutex::default() };
        Ok((storage, image))
    }

    fn with<T>(&self, act: impl FnOnce(&Open) -> Result<T, Problem>) -> Result<T, String> {
        let open = self.open.read();
        let open = open.as_ref().ok_or_else(|| at(&self.path, "not open"))?;
        act(open).map_err(|error| at(&self.path, error))
    }
}

fn at(path: &Path, problem: impl fmt::Display) -> String {
    format!("the log in {}: {problem}", path.display())
}

/// What can go wrong with an open storage.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Engine(#[from] fjall::Error),
    #[error("entry {0:?} can't be read")]
    Unreadable(Vec<u8>),
    #[error("its format has version {0}, this program knows version {FORMAT}")]
    Format(u8),
}

fn open(path: &Path) -> fjall::Result<Open> {
    let database = Database::builder(path)
        .worker_threads(2)
        .cache_size(16 << 20)
        .max_journaling_size(256 << 20)
        .manual_journal_persist(true)
        .open()?;
    let options = |bytes| move || KeyspaceCreateOptions::default().max_memtable_size(bytes);
    let records = database.keyspace("records", options(32 << 20))?;
    let meta = database.keyspace("meta", options(4 << 20))?;
    Ok(Open { database, records, meta })
}

/// First bytes of the keys of the second keyspace.
mod letter {
    pub(super) const COMMIT: u8 = b'c';
    pub(super) const GARBAGE: u8 = b'g';
    pub(super) const NEXT_TOPIC: u8 = b'n';
    pub(super) const POSITIONS: u8 = b'p';
    pub(super) const TOPIC: u8 = b't';
    pub(super) const VERSION: u8 = b'v';
}

fn record_key(topic: TopicId, partition: u32, offset: u64) -> [u8; 20] {
    let mut key = [0; 20];
    key[..8].copy_from_slice(&topic.to_be_bytes());
    key[8..12].copy_from_slice(&partition.to_be_bytes());
    key[12..].copy_from_slice(&offset.to_be_bytes());
    key
}

fn offset_of(key: &[u8]) -> Option<u64> {
    key.get(12..20)?.try_into().ok().map(u64::from_be_bytes)
}

fn topic_key(letter: u8, topic: TopicId) -> Vec<u8> {
    let mut key = vec![letter];
    key.put_u64(topic);
    key
}

fn partition_key(letter: u8, topic: TopicId, partition: u32) -> Vec<u8> {
    let mut key = topic_key(letter, topic);
    key.put_u32(partition);
    key
}

fn commit_key(topic: TopicId, partition: u32, group: &str) -> Vec<u8> {
    let mut key = partition_key(letter::COMMIT, topic, partition);
    key.extend_from_slice(group.as_bytes());
    key
}

impl Open {
    fn apply(&self, changes: Vec<Change>, persist: PersistMode) -> Result<(), Problem> {
        let mut batch = self.database.batch().durability(Some(persist));
        for change in changes {
            match change {
                Change::Record { topic, partition, offset, bytes } => {
                    batch.insert(&self.records, record_key(topic, partition, offset), &bytes[..]);
                }
                // Weak: a record's key is written only once.
                Change::Remove { topic, partition, offset } => {
                    batch.remove_weak(&self.records, record_key(topic, partition, offset));
                }
                Change::Topic { id, spec } => {
                    batch.insert(&self.meta, topic_key(letter::TOPIC, id), encode_topic(&spec));
                    batch.insert(&self.meta, [letter::NEXT_TOPIC], (id + 1).to_be_bytes());
                }
                Change::RemoveTopic { id } => {
                    batch.insert(&self.meta, topic_key(letter::GARBAGE, id), []);
                    batch.remove(&self.meta, topic_key(letter::TOPIC, id));
                    for letter in [letter::POSITIONS, letter::COMMIT] {
                        for entry in self.meta.prefix(topic_key(letter, id)) {
                            batch.remove(&self.meta, entry.key()?);
                        }
                    }
                }
                Change::Positions { topic, partition, positions } => {
                    let mut value = Vec::with_capacity(24);
                    value.put_u64(positions.start);
                    value.put_u64(positions.next);
                    value.put_u64(positions.cleaned_to);
                    batch.insert(&self.meta, partition_key(letter::POSITIONS, topic, partition), value);
                }
                Change::RemoveCommit { group, topic, partition } => {
                    batch.remove(&self.meta, commit_key(topic, partition, &group));
                }
                Change::Commit { group, topic, partition, offset, metadata } => {
                    let key = commit_key(topic, partition, &group);
                    let mut value = Vec::with_capacity(8 + metadata.len());
                    value.put_u64(offset);
                    value.extend_from_slice(metadata.as_bytes());
                    batch.insert(&self.meta, key, value);
                }
            }
        }
        Ok(batch.commit()?)
    }

    fn load(&self) -> Result<Image, Problem> {
        match self.meta.get([letter::VERSION])?.as_deref() {
            None => {
                let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
                batch.insert(&self.meta, [letter::VERSION], [FORMAT]);
                batch.commit()?;
            }
            Some([FORMAT]) => {}
            Some(other) => return Err(Problem::Format(other.first().copied().unwrap_or_default())),
        }
        let mut image = Image::default();
        if let Some(next) = self.meta.get([letter::NEXT_TOPIC])? {
            image.next_topic =
                (&next[..]).try_get_u64().map_err(|_| Problem::Unreadable(vec![letter::NEXT_TOPIC]))?;
        }
        for entry in self.meta.prefix([letter::TOPIC]) {
            let (key, value) = entry.into_inner()?;
            let id = (&key[1..]).try_get_u64().ok();
            let (id, spec) = id.zip(decode_topic(&value)).ok_or_else(|| Problem::Unreadable(key.to_vec()))?;
            let partitions =
                (0..spec.partitions).map(|partition| self.find(id, partition)).collect::<Result<_, _>>()?;
            image.topics.push((id, spec, partitions));
        }
        for entry in self.meta.prefix([letter::COMMIT]) {
            let (key, value) = entry.into_inner()?;
            let commit = decode_commit(&key, &value).ok_or_else(|| Problem::Unreadable(key.to_vec()))?;
            image.commits.push(commit);
        }
        for entry in self.meta.prefix([letter::GARBAGE]) {
            let key = entry.key()?;
            let id = (&key[1..]).try_get_u64().map_err(|_| Problem::Unreadable(key.to_vec()))?;
            image.garbage.push(id);
        }
        Ok(image)
    }

    fn find(&self, topic: TopicId, partition: u32) -> Result<FoundPartition, Problem> {
        let mut found = FoundPartition::default();
        let key = partition_key(letter::POSITIONS, topic, partition);
        if let Some(value) = self.meta.get(&key)? {
            let mut value = &value[..];
            let mut number = || value.try_get_u64().map_err(|_| Problem::Unreadable(key.clone()));
            found.positions = Positions { start: number()?, next: number()?, cleaned_to: number()? };
        }
        let all =
            record_key(topic, partition, found.positions.start)..=record_key(topic, partition, u64::MAX);
        if let Some(last) = self.records.range(all).next_back() {
            let (key, value) = last.into_inner()?;
            let offset = offset_of(&key).ok_or_else(|| Problem::Unreadable(key.to_vec()))?;
            found.positions.next = found.positions.next.max(offset + 1);
            found.cumulative = crate::log::cumulative(&value);
        }
        Ok(found)
    }

    fn remove(&self, from: [u8; 20], to: [u8; 20]) -> Result<(), Problem> {
        let mut from = from;
        loop {
            let keys = self.records.range(from..to).take(REMOVE_STEP).map(fjall::Guard::key);
            let keys = keys.collect::<fjall::Result<Vec<_>>>()?;
            let Some(last) = keys.last() else { return Ok(()) };
            // The next step needn't look at what this one has removed.
            from = last[..].try_into().map_err(|_| Problem::Unreadable(last.to_vec()))?;
            let is_last = keys.len() < REMOVE_STEP;
            let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
            for key in keys {
                batch.remove_weak(&self.records, key);
            }
            batch.commit()?;
            if is_last {
                return Ok(());
            }
        }
    }
}

impl Storage for Fjall {
    fn is_durable(&self) -> bool {
        true
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), String> {
        let applied = self.with(|open| open.apply(changes, self.persist));
        if applied.is_err() {
            self.recovery.lock().is_broken = true;
        }
        applied
    }

    fn is_broken(&self) -> bool {
        self.recovery.lock().is_broken
    }

    fn recover(&self) -> Result<Option<Image>, String> {
        let mut recovery = self.recovery.lock();
        if recovery.is_closed || !recovery.is_broken {
            return Ok(None);
        }
        let now = Instant::now();
        if recovery.last_attempt.is_some_and(|last| now < last + REOPEN_AFTER) {
            return Ok(None);
        }
        recovery.last_attempt = Some(now);
        let mut handle = self.open.write();
        // The engine takes no writes after a failed one; its threads give the folder's lock back a little later.
        *handle = None;
        let opened = loop {
            match open(&self.path) {
                Err(fjall::Error::Locked) if now.elapsed() < UNLOCK_WITHIN => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => break other.map_err(|error| at(&self.path, error))?,
            }
        };
        let image = opened.load().map_err(|error| at(&self.path, error))?;
        *handle = Some(opened);
        recovery.is_broken = false;
        Ok(Some(image))
    }

    fn read(&self, range: Range) -> Result<Vec<(u64, Bytes)>, String> {
        let Range { topic, partition, from, to, records, bytes } = range;
        self.with(|open| {
            let mut found = Vec::new();
            let mut weight = 0;
            for entry in open
                .records
                .range(record_key(topic, partition, from)..record_key(topic, partition, to))
                .take(records)
            {
                let (key, value) = entry.into_inner()?;
                let offset = offset_of(&key).ok_or_else(|| Problem::Unreadable(key.to_vec()))?;
                weight += value.len();
                if weight > bytes && !found.is_empty() {
                    break;
                }
                found.push((offset, Bytes::copy_from_slice(&value)));
            }
            Ok(found)
        })
    }

    fn remove(&self, topic: TopicId, partition: u32, from: u64, to: u64) -> Result<(), String> {
        self.with(|open| open.remove(record_key(topic, partition, from), record_key(topic, partition, to)))
    }

    fn purge(&self, topic: TopicId) -> Result<(), String> {
        self.with(|open| {
            open.remove(record_key(topic, 0, 0), record_key(topic + 1, 0, 0))?;
            let mut batch = open.database.batch().durability(Some(PersistMode::Buffer));
            batch.remove(&open.meta, topic_key(letter::GARBAGE, topic));
            Ok(batch.commit()?)
        })
    }

    fn disk_bytes(&self) -> Result<Option<u64>, String> {
        self.with(|open| Ok(Some(open.database.disk_space()?)))
    }

    fn close(&self) {
        self.recovery.lock().is_closed = true;
        let open = self.open.write().take();
        if let Some(open) = open
            && let Err(error) = open.database.persist(PersistMode::SyncAll)
        {
            tracing::error!(%error, "the last sync of the log failed");
        }
    }
}

fn put_text(into: &mut Vec<u8>, text: &str) {
    into.put_u32(text.len() as u32);
    into.extend_from_slice(text.as_bytes());
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let length = from.try_get_u32().ok()? as usize;
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn encode_topic(spec: &TopicSpec) -> Vec<u8> {
    let mut into = Vec::new();
    put_text(&mut into, &spec.name);
    into.put_u32(spec.partitions);
    into.put_u16(spec.replication_factor);
    into.put_u8(match spec.policy {
        CleanupPolicy::Delete => 0,
        CleanupPolicy::Compact => 1,
    });
    into.put_u32(spec.settings.len() as u32);
    for (key, value) in &spec.settings {
        put_text(&mut into, key);
        put_text(&mut into, value);
    }
    into
}

fn decode_topic(mut from: &[u8]) -> Option<TopicSpec> {
    let from = &mut from;
    Some(TopicSpec {
        name: take_text(from)?,
        partitions: from.try_get_u32().ok()?,
        replication_factor: from.try_get_u16().ok()?,
        policy: match from.try_get_u8().ok()? {
            0 => CleanupPolicy::Delete,
            1 => CleanupPolicy::Compact,
            _ => return None,
        },
        settings: {
            let count = from.try_get_u32().ok()?;
            (0..count).map(|_| Some((take_text(from)?, take_text(from)?))).collect::<Option<_>>()?
        },
    })
}

fn decode_commit(mut key: &[u8], mut value: &[u8]) -> Option<FoundCommit> {
    key.advance(1);
    Some(FoundCommit {
        topic: key.try_get_u64().ok()?,
        partition: key.try_get_u32().ok()?,
        group: String::from_utf8(key.to_vec()).ok()?,
        offset: value.try_get_u64().ok()?,
        metadata: String::from_utf8(value.to_vec()).ok()?,
    })
}
