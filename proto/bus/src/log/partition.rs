//! Topics, their partitions, and the tail of each partition that is kept in memory.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    reader::Slot,
    record,
    storage::{FoundPartition, Positions, TopicId},
};
use crate::{CleanupPolicy, TopicPartition, TopicSpec};

/// A topic that exists, or existed.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) id: TopicId,
    pub(crate) name: Arc<str>,
    pub(crate) limits: Limits,
    /// As it was created with.
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) partitions: Box<[Arc<Partition>]>,
    deleted: AtomicBool,
}

/// How a topic keeps its records, read from its settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) policy: CleanupPolicy,
    /// `retention.ms`; `None` keeps for ever.
    pub(crate) retention_ms: Option<i64>,
    /// `retention.bytes` of a partition; `None` is no limit.
    pub(crate) retention_bytes: Option<u64>,
    /// `max.compaction.lag.ms`.
    pub(crate) compaction_lag_ms: Option<i64>,
    /// `min.cleanable.dirty.ratio`.
    pub(crate) dirty_ratio: f64,
    /// `delete.retention.ms`: how long a tombstone is kept.
    pub(crate) tombstone_ms: i64,
}

impl Limits {
    /// Reads the settings that count, with Kafka's defaults; a bad value is named.
    pub(crate) fn of(spec: &TopicSpec) -> Result<Self, String> {
        let text = |name: &str| {
            let found = spec.settings.iter().rev().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str())
        };
        let number = |name: &str, default: i64| match text(name) {
            None => Ok(default),
            Some(value) => {
                value.parse::<i64>().map_err(|_| format!("{name} of topic {} is {value:?}", spec.name))
            }
        };
        let dirty_ratio = match text("min.cleanable.dirty.ratio") {
            None => 0.5,
            Some(value) => {
                let ratio = value.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
                ratio
                    .ok_or_else(|| format!("min.cleanable.dirty.ratio of topic {} is {value:?}", spec.name))?
            }
        };
        Ok(Self {
            policy: spec.policy,
            retention_ms: Some(number("retention.ms", 604_800_000)?).filter(|ms| *ms >= 0),
            retention_bytes: u64::try_from(number("retention.bytes", -1)?).ok(),
            compaction_lag_ms: Some(number("max.compaction.lag.ms", i64::MAX)?).filter(|ms| *ms != i64::MAX),
            dirty_ratio,
            tombstone_ms: number("delete.retention.ms", 86_400_000)?,
        })
    }
}

impl Topic {
    pub(crate) fn new(id: TopicId, spec: &TopicSpec, limits: Limits, found: &[FoundPartition]) -> Self {
        let name: Arc<str> = spec.name.as_str().into();
        let partition = |index: u32| {
            let found = found.get(index as usize).copied().unwrap_or_default();
            Arc::new(Partition::new(id, TopicPartition::new(Arc::clone(&name), index), found))
        };
        let partitions = (0..spec.partitions).map(partition).collect();
        let settings = spec.settings.clone();
        Self { id, name, limits, settings, partitions, deleted: AtomicBool::new(false) }
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Marks it as deleted and tells its readers.
    pub(crate) fn delete(&self) {
        self.deleted.store(true, Ordering::Release);
        for partition in &self.partitions {
            partition.delete();
        }
    }
}

/// A partition.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) topic: TopicId,
    pub(crate) name: TopicPartition,
    /// Next offset and bytes written, what is being written included; used by the appender only.
    next: AtomicU64,
    cumulative: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    start: u64,
    end: u64,
    cleaned_to: u64,
    deleted: bool,
    /// The records from `cached_from` on, those that were compacted away left out.
    cache: VecDeque<(u64, Bytes)>,
    cached_from: u64,
    slots: Vec<Arc<Slot>>,
    /// How often records were removed.
    removals: u64,
    measured: Option<Measured>,
}

/// What the records of a partition weighed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// How often records had been removed when this was begun.
    pub(crate) removals: u64,
    /// Bytes that had ever been written.
    pub(crate) written: u64,
    /// Bytes of the records that were there.
    pub(crate) size: u64,
}

/// What is found at a position.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// The topic was deleted, or the position lies beyond the end.
    Gone(String),
    /// Retention was faster; this is the lowest offset kept.
    Gap(u64),
    /// Nothing more up to the end, which this is.
    End(u64),
    /// Encoded records, at least one.
    Records(Vec<(u64, Bytes)>),
    /// The storage has to be asked for what lies below this offset.
    Cold(u64),
}

impl Partition {
    fn new(topic: TopicId, name: TopicPartition, found: FoundPartition) -> Self {
        let Positions { start, next, cleaned_to } = found.positions;
        let state = State {
            start,
            end: next,
            cleaned_to,
            deleted: false,
            cache: VecDeque::new(),
            cached_from: next,
            slots: Vec::new(),
            removals: 0,
            measured: None,
        };
        Self {
            topic,
            name,
            next: AtomicU64::new(next),
            cumulative: AtomicU64::new(found.cumulative),
            state: Mutex::new(state),
        }
    }

    /// For the appender: takes the next offset; also returns the bytes written so far, this record included.
    pub(crate) fn take_offset(&self, bytes: usize) -> (u64, u64) {
        let cumulative = self.cumulative.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        (self.next.fetch_add(1, Ordering::Relaxed), cumulative)
    }

    /// For the appender: takes back the offsets that were not published.
    pub(crate) fn take_back(&self) {
        self.next.store(self.state.lock().end, Ordering::Relaxed);
    }

    /// Bytes ever written.
    pub(crate) fn cumulative(&self) -> u64 {
        self.cumulative.load(Ordering::Relaxed)
    }

    /// Makes records visible and notes the readers that are to be woken.
    pub(crate) fn publish(&self, records: impl Iterator<Item = (u64, Bytes)>, woken: &mut Vec<Arc<Slot>>) {
        let mut state = self.state.lock();
        for (offset, bytes) in records {
            state.end = offset + 1;
            state.cache.push_back((offset, bytes));
        }
        woken.extend(state.slots.iter().filter(|slot| slot.mark()).cloned());
    }

    /// Takes over what a reopened storage holds: records that were written although their writer was told otherwise.
    pub(crate) fn catch_up(&self, found: FoundPartition) {
        let mut state = self.state.lock();
        if found.positions.next > state.end {
            state.end = found.positions.next;
            state.cached_from = state.end;
            state.cache.clear();
            state.removals += 1;
            self.cumulative.store(found.cumulative, Ordering::Relaxed);
        }
        state.start = state.start.max(found.positions.start);
        self.next.store(state.end, Ordering::Relaxed);
        state.slots.iter().filter(|slot| slot.mark()).for_each(Slot::enqueue);
    }

    /// What is at a position.
    pub(crate) fn lookup(&self, position: u64, records: usize, bytes: usize) -> Lookup {
        let state = self.state.lock();
        if state.deleted {
            return Lookup::Gone(format!("topic {} was deleted", self.name.topic));
        }
        if position < state.start {
            return Lookup::Gap(state.start);
        }
        if position > state.end {
            let end = state.end;
            return Lookup::Gone(format!("offset {position} of {} lies beyond its end {end}", self.name));
        }
        if position < state.cached_from {
            return Lookup::Cold(state.cached_from.min(state.end));
        }
        let first = state.cache.partition_point(|(offset, _)| *offset < position);
        let mut weight = 0;
        let found: Vec<_> = state
            .cache
            .range(first..)
            .take(records)
            .take_while(|(_, record)| {
                let fits = weight == 0 || weight + record.len() <= bytes;
                weight += record.len();
                fits
            })
            .cloned()
            .collect();
        if found.is_empty() { Lookup::End(state.end) } else { Lookup::Records(found) }
    }

    /// Adds a reader's slot; it is due at once.
    pub(crate) fn subscribe(&self, slot: Arc<Slot>) {
        self.state.lock().slots.push(slot);
    }

    /// Removes a reader's slot.
    pub(crate) fn unsubscribe(&self, slot: &Arc<Slot>) {
        self.state.lock().slots.retain(|other| !Arc::ptr_eq(other, slot));
    }

    /// Start, end and how far it is compacted.
    pub(crate) fn positions(&self) -> Positions {
        let state = self.state.lock();
        Positions { start: state.start, next: state.end, cleaned_to: state.cleaned_to }
    }

    /// Raises the start.
    pub(crate) fn advance_start(&self, start: u64) {
        let mut state = self.state.lock();
        state.start = state.start.max(start);
        state.removals += 1;
        let first = state.start;
        let gone = state.cache.partition_point(|(offset, _)| *offset < first);
        state.cache.drain(..gone);
    }

    /// Forgets compacted records.
    pub(crate) fn compacted(&self, removed: &[u64], cleaned_to: u64) {
        let mut state = self.state.lock();
        state.cache.retain(|(offset, _)| removed.binary_search(offset).is_err());
        state.cleaned_to = cleaned_to;
        state.removals += u64::from(!removed.is_empty());
    }

    /// How often records were removed, and what they weighed then if that was measured.
    pub(crate) fn measured(&self) -> (u64, Option<Measured>) {
        let state = self.state.lock();
        (state.removals, state.measured.filter(|measured| measured.removals == state.removals))
    }

    /// Remembers what the records weigh.
    pub(crate) fn remember(&self, measured: Measured) {
        self.state.lock().measured = Some(measured);
    }

    /// Drops the cached records up to and including an offset.
    pub(crate) fn evict(&self, through: u64) {
        let mut state = self.state.lock();
        let gone = state.cache.partition_point(|(offset, _)| *offset <= through);
        state.cache.drain(..gone);
        state.cached_from = state.cached_from.max(through + 1);
        if state.cache.is_empty() {
            state.cache.shrink_to_fit();
        }
    }

    fn delete(&self) {
        let mut state = self.state.lock();
        state.deleted = true;
        state.cache.clear();
        state.slots.drain(..).filter(|slot| slot.mark()).for_each(|slot| Slot::enqueue(&slot));
    }
}

/// Bytes that lie between the starts of two records of a partition.
pub(crate) fn bytes_before(record: &[u8]) -> u64 {
    record::cumulative(record).saturating_sub(record.len() as u64)
}
