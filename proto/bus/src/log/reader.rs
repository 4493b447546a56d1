//! Readers: a queue of the partitions that have something, and one batch at a time from each.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{
    Log,
    append::Job,
    partition::{Lookup, Partition},
    record,
    storage::Range,
};
use crate::{Commit, Error, Reader, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};

/// Partitions that the storage is asked for at a time.
const COLD_READS: usize = 4;

/// How long a reader waits before it asks a failed storage again.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// A reader's place at a partition.
pub(super) struct Slot {
    number: u64,
    queued: AtomicBool,
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Each slot at most once.
    ready: Mutex<VecDeque<Arc<Slot>>>,
    waker: AtomicWaker,
}

impl Slot {
    /// Claims the right to [`Slot::enqueue`] it; `false` when it stands in the queue already.
    pub(super) fn mark(&self) -> bool {
        !self.queued.swap(true, Ordering::AcqRel)
    }

    /// Puts it into its reader's queue and wakes the reader.
    pub(super) fn enqueue(slot: &Arc<Self>) {
        slot.queue.ready.lock().push_back(Arc::clone(slot));
        slot.queue.waker.wake();
    }

    fn wake(slot: &Arc<Self>) {
        if slot.mark() {
            Self::enqueue(slot);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.number).finish()
    }
}

/// A reader of the log.
#[derive(Debug)]
pub(super) struct LogReader {
    log: Log,
    config: ReaderConfig,
    queue: Arc<Queue>,
    readings: HashMap<u64, Reading>,
    numbers: HashMap<TopicPartition, u64>,
    next_number: u64,
    cold: JoinSet<Cold>,
    /// Waiting for one of the cold reads to end.
    cold_queue: VecDeque<u64>,
}

/// A partition that is being read.
#[derive(Debug)]
struct Reading {
    name: TopicPartition,
    /// `None` when there was no such partition.
    partition: Option<Arc<Partition>>,
    slot: Arc<Slot>,
    position: u64,
    paused: bool,
    end_told: bool,
    /// The storage is being asked.
    is_cold: bool,
    /// What the storage answered while the partition was paused.
    stash: Vec<(u64, Bytes)>,
}

/// The storage's answer.
#[derive(Debug)]
struct Cold {
    number: u64,
    to: u64,
    found: Result<Vec<(u64, Bytes)>, String>,
}

impl LogReader {
    pub(super) fn new(log: Log, config: ReaderConfig) -> Self {
        Self {
            log,
            config,
            queue: Arc::default(),
            readings: HashMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
            cold: JoinSet::new(),
            cold_queue: VecDeque::new(),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<ReaderEvent> {
        self.queue.waker.register(cx.waker());
        loop {
            while let Poll::Ready(Some(answer)) = self.cold.poll_join_next(cx) {
                match answer {
                    Ok(answer) => {
                        if let Some(event) = self.answered(answer) {
                            return Poll::Ready(event);
                        }
                    }
                    Err(error) => tracing::error!(%error, "a read of the log has panicked"),
                }
            }
            let Some(slot) = self.queue.ready.lock().pop_front() else { return Poll::Pending };
            // From here on a change of the partition puts it in again.
            slot.queued.store(false, Ordering::Release);
            if let Some(event) = self.look(slot.number) {
                return Poll::Ready(event);
            }
        }
    }

    /// Looks what a partition has.
    fn look(&mut self, number: u64) -> Option<ReaderEvent> {
        let reading = self.readings.get_mut(&number)?;
        if reading.is_cold {
            return None;
        }
        let Some(partition) = reading.partition.clone() else {
            return Some(self.gone(number, "the topic or partition does not exist".to_owned()));
        };
        if reading.paused {
            let Lookup::Gone(reason) = partition.lookup(reading.position, 1, 0) else { return None };
            return Some(self.gone(number, reason));
        }
        if !reading.stash.is_empty() {
            let stash = std::mem::take(&mut reading.stash);
            // Retention may have been faster; then what was read ahead is looked at anew.
            if reading.position >= partition.positions().start
                && let Some(event) = self.batch(number, stash)
            {
                return Some(event);
            }
        }
        let reading = self.readings.get_mut(&number)?;
        let bytes = self.config.partition_budget_bytes.min(self.config.budget_bytes);
        match partition.lookup(reading.position, self.config.batch_records, bytes) {
            Lookup::Records(records) => self.batch(number, records),
            Lookup::Gone(reason) => Some(self.gone(number, reason)),
            Lookup::Gap(to) => {
                let from = std::mem::replace(&mut reading.position, to);
                Slot::wake(&reading.slot);
                Some(ReaderEvent::Gap { partition: reading.name.clone(), from, to })
            }
            Lookup::End(end) => {
                let moved = std::mem::replace(&mut reading.position, end) != end;
                let told = std::mem::replace(&mut reading.end_told, true);
                (moved || !told).then(|| ReaderEvent::End { partition: reading.name.clone(), position: end })
            }
            Lookup::Cold(to) => {
                self.ask_storage(number, &partition, to);
                None
            }
        }
    }

    fn ask_storage(&mut self, number: u64, partition: &Arc<Partition>, to: u64) {
        let Some(reading) = self.readings.get_mut(&number) else { return };
        if self.cold.len() >= COLD_READS {
            self.cold_queue.push_back(number);
            return;
        }
        reading.is_cold = true;
        let range = Range {
            topic: partition.topic,
            partition: partition.name.partition,
            from: reading.position,
            to,
            records: self.config.batch_records,
            bytes: self.config.partition_budget_bytes.min(self.config.budget_bytes / COLD_READS),
        };
        let core = Arc::clone(&self.log.core);
        self.cold.spawn_blocking(move || Cold { number, to, found: core.storage.read(range) });
    }

    fn answered(&mut self, answer: Cold) -> Option<ReaderEvent> {
        while let Some(next) = self.cold_queue.pop_front() {
            if let Some(reading) = self.readings.get(&next) {
                Slot::wake(&reading.slot);
                break;
            }
        }
        let reading = self.readings.get_mut(&answer.number)?;
        reading.is_cold = false;
        match answer.found {
            Ok(records) if records.is_empty() => {
                // All of it was compacted away, or is below the start by now, which the next look tells.
                let start = reading.partition.as_ref().map_or(0, |partition| partition.positions().start);
                if reading.position >= start {
                    reading.position = reading.position.max(answer.to);
                    reading.end_told = false;
                }
                Slot::wake(&reading.slot);
                None
            }
            Ok(records) if reading.paused => {
                reading.stash = records;
                // The topic may be gone by now.
                Slot::wake(&reading.slot);
                None
            }
            Ok(records) => {
                let start = reading.partition.as_ref().map_or(0, |partition| partition.positions().start);
                if reading.position < start {
                    Slot::wake(&reading.slot);
                    return None;
                }
                self.batch(answer.number, records)
            }
            Err(error) => {
                tracing::warn!(%error, partition = %reading.name, "reading the log failed and is tried again");
                let slot = Arc::clone(&reading.slot);
                tokio::spawn(async move {
                    tokio::time::sleep(RETRY_AFTER).await;
                    Slot::wake(&slot);
                });
                None
            }
        }
    }

    /// Hands records out and moves on; more is looked for after the other partitions.
    fn batch(&mut self, number: u64, found: Vec<(u64, Bytes)>) -> Option<ReaderEvent> {
        let reading = self.readings.get_mut(&number)?;
        reading.position = found.last().map_or(reading.position, |(offset, _)| offset + 1);
        reading.end_told = false;
        Slot::wake(&reading.slot);
        let name = reading.name.clone();
        let decode = |(offset, bytes): (u64, Bytes)| {
            let record = record::decode(offset, &bytes);
            if record.is_none() {
                tracing::error!(partition = %name, offset, "a damaged record is skipped");
            }
            record
        };
        let records: Vec<Record> = found.into_iter().filter_map(decode).collect();
        (!records.is_empty()).then_some(ReaderEvent::Batch { partition: name, records })
    }

    fn gone(&mut self, number: u64, reason: String) -> ReaderEvent {
        let reading = self.readings.remove(&number).expect("the caller has just found it");
        self.numbers.remove(&reading.name);
        if let Some(partition) = &reading.partition {
            partition.unsubscribe(&reading.slot);
        }
        ReaderEvent::Gone { partition: reading.name, reason }
    }
}

#[async_trait]
impl Reader for LogReader {
    fn add(&mut self, partition: &TopicPartition, start: Start) {
        if self.numbers.contains_key(partition) {
            return;
        }
        self.next_number += 1;
        let number = self.next_number;
        let slot = Slot { number, queued: AtomicBool::new(false), queue: Arc::clone(&self.queue) };
        let slot = Arc::new(slot);
        let found = self.log.core.partition(partition).ok();
        let positions = found.as_ref().map(|found| {
            found.subscribe(Arc::clone(&slot));
            found.positions()
        });
        let position = match start {
            Start::Offset(offset) => offset,
            Start::Earliest => positions.map_or(0, |positions| positions.start),
            Start::Latest => positions.map_or(0, |positions| positions.next),
        };
        Slot::wake(&slot);
        let reading = Reading {
            name: partition.clone(),
            partition: found,
            slot,
            position,
            paused: false,
            end_told: false,
            is_cold: false,
            stash: Vec::new(),
        };
        self.readings.insert(number, reading);
        self.numbers.insert(partition.clone(), number);
    }

    fn remove(&mut self, partition: &TopicPartition) {
        let reading = self.numbers.remove(partition).and_then(|number| self.readings.remove(&number));
        if let Some(Reading { partition: Some(partition), slot, .. }) = reading {
            partition.unsubscribe(&slot);
        }
    }

    fn pause(&mut self, partition: &TopicPartition) {
        let reading = self.numbers.get(partition).and_then(|number| self.readings.get_mut(number));
        if let Some(reading) = reading {
            reading.paused = true;
        }
    }

    fn resume(&mut self, partition: &TopicPartition) {
        let reading = self.numbers.get(partition).and_then(|number| self.readings.get_mut(number));
        if let Some(reading) = reading {
            reading.paused = false;
            Slot::wake(&reading.slot);
        }
    }

    async fn next(&mut self) -> ReaderEvent {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    async fn commit(&mut self, commits: Vec<Commit>) -> Result<(), Error> {
        let group = self.group()?;
        self.log.ask(|reply| Job::Commit { group, commits, member: None, reply }).await
    }

    async fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        Ok(self.log.committed(&self.group()?, partitions))
    }
}

impl LogReader {
    fn group(&self) -> Result<String, Error> {
        let none = || Error::Refused(format!("reader {} has no group", self.config.client_id));
        self.config.group.clone().ok_or_else(none)
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        for reading in self.readings.values() {
            if let Some(partition) = &reading.partition {
                partition.unsubscribe(&reading.slot);
            }
        }
    }
}
