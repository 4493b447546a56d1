//! Reading: one consumer for all partitions, each of which has a queue of its own, emptied by the reader's owner itself,
//! many records at a time: librdkafka rings when an empty one has got something, and no thread of ours stands between.
//!
//! What may wait is done by a thread ([`assigner`]): partitions are added, removed, paused and resumed there, errors
//! looked into, and topics looked at. It shares with the reader what both must agree on, the [`Tap`] of each partition.
//! What a reader is told of a partition that was removed (or removed and added again) has another number, and what it
//! is told of a paused one is put aside until it is resumed.
//!
//! A consumer has one fetch on its way to a broker, and that asks for all partitions whose queues have room. When there is
//! none for a busy one at that moment, the fetch asks for the idle ones alone, and the broker keeps it for
//! `fetch.wait.max.ms` since they have nothing: so long the busy one gets nothing new. So a queue has room for several
//! fetches, and a partition that is paused for a moment keeps its queue.

mod assigner;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, mpsc::Sender},
    task::Poll,
};

use async_trait::async_trait;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rdkafka::{
    consumer::{BaseConsumer, DefaultConsumerContext},
    error::RDKafkaErrorCode,
};
use tokio::sync::mpsc;

use self::assigner::Assigner;
use super::{
    KafkaConfig, blocking,
    ffi::{Batches, Found, PartitionQueue},
    offsets::{commit, committed},
};
use crate::{Commit, Error, Reader, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};

type Native = Arc<BaseConsumer<DefaultConsumerContext>>;

/// The consumer that is in use; the thread replaces it.
type Current = Arc<Mutex<Native>>;

/// What the thread tells that may wait for the caller.
const EVENTS: usize = 64;

/// Records of a partition that are handed out at once, at the most: what is fetched waits in librdkafka, whose budget
/// counts it, and not decoded where it goes.
const HANDED_OUT: usize = 128;

/// Fetches that the queue of a partition has room for.
const FETCHES: usize = 4;

#[derive(Debug)]
enum Command {
    Add(TopicPartition, Start, u64, Arc<Mutex<Tap>>),
    Remove(TopicPartition),
    Pause(TopicPartition),
    Resume(TopicPartition),
    /// An error was found in the partition with this number.
    Look(u64, RDKafkaErrorCode),
    End,
}

/// Where the records of a partition come out, and how many have.
#[derive(Debug, Default)]
struct Tap {
    /// There while the partition is assigned. Goes before the consumer.
    queue: Option<PartitionQueue>,
    /// The offset that is wanted next; `None` while librdkafka looks for the start.
    next: Option<u64>,
    end_told: Option<u64>,
}

/// Partitions that may have something, by number, in turn.
#[derive(Debug, Default)]
struct Ready {
    /// Unbounded in type only: a partition rings again only when it was emptied.
    numbers: Mutex<VecDeque<u64>>,
    waker: AtomicWaker,
}

impl Ready {
    fn line_up(&self, number: u64) {
        self.numbers.lock().push_back(number);
        self.waker.wake();
    }
}

/// An event of a partition, with the number under which the partition was added.
#[derive(Debug)]
struct Numbered {
    number: u64,
    event: ReaderEvent,
}

/// A reader over Kafka.
pub(super) struct KafkaReader {
    config: ReaderConfig,
    consumer: Current,
    /// Unbounded in type only: an entry for each call of the reader's owner, taken at once, and each error.
    inbox: Sender<Command>,
    events: mpsc::Receiver<Numbered>,
    ready: Arc<Ready>,
    batches: Batches,
    found: Vec<Found>,
    readings: HashMap<TopicPartition, Reading>,
    /// Which partition has a number.
    numbers: HashMap<u64, TopicPartition>,
    /// Found, or put aside and resumed, and not handed out yet: ahead of what is found next.
    pending: VecDeque<ReaderEvent>,
    next_number: u64,
}

#[derive(Debug)]
struct Reading {
    number: u64,
    paused: bool,
    /// Found before it was paused: bounded by what is taken at once.
    aside: VecDeque<ReaderEvent>,
    tap: Arc<Mutex<Tap>>,
}

impl fmt::Debug for KafkaReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaReader").field("config", &self.config).finish_non_exhaustive()
    }
}

impl KafkaReader {
    pub(super) fn new(kafka: &KafkaConfig, config: ReaderConfig) -> Result<Self, Error> {
        let kibibytes = |bytes: usize| (bytes / 1024).max(1).to_string();
        let group = config.group.clone().unwrap_or_else(|| format!("{}-reader", config.client_id));
        let mut client = kafka.client(&config.client_id);
        client
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("queued.max.messages.kbytes", kibibytes(config.partition_budget_bytes))
            // Each record costs some hundred bytes that the budget does not count.
            .set("queued.min.messages", (config.batch_records * 2 * FETCHES).clamp(1, 10_000_000).to_string())
            .set(
                "fetch.message.max.bytes",
                (config.partition_budget_bytes / FETCHES).clamp(1, 1_000_000_000).to_string(),
            )
            .set("fetch.max.bytes", "16777216")
            .set("message.max.bytes", "16777216")
            .set("fetch.wait.max.ms", config.wait_ms.to_string())
            .set("fetch.queue.backoff.ms", "1")
            .set("fetch.error.backoff.ms", "100");
        let (outbox, events) = mpsc::channel(EVENTS);
        let ready = Arc::<Ready>::default();
        let (consumer, inbox) = Assigner::start(kafka.finish(client), &config, Arc::clone(&ready), outbox)?;
        Ok(Self {
            batches: Batches::of(config.batch_records.min(HANDED_OUT)),
            found: Vec::new(),
            config,
            consumer,
            inbox,
            events,
            ready,
            readings: HashMap::new(),
            numbers: HashMap::new(),
            pending: VecDeque::new(),
            next_number: 0,
        })
    }

    fn command(&self, command: Command) {
        // The thread lives as long as this reader; after that nobody wants anything.
        if self.inbox.send(command).is_err() {
            tracing::error!("the reader's thread has ended");
        }
    }

    /// Sorts what the thread tells out; `None` when nobody wants it, or not yet.
    fn accept(&mut self, Numbered { number, event }: Numbered) -> Option<ReaderEvent> {
        let at = partition_of(&event);
        let reading = self.readings.get_mut(at).filter(|reading| reading.number == number)?;
        if reading.paused && !matches!(event, ReaderEvent::Gone { .. }) {
            reading.aside.push_back(event);
            return None;
        }
        if matches!(event, ReaderEvent::Gone { .. }) {
            let at = at.clone();
            self.forget(&at);
        }
        Some(event)
    }

    /// `false` when it was not being read.
    fn forget(&mut self, at: &TopicPartition) -> bool {
        let Some(reading) = self.readings.remove(at) else { return false };
        self.numbers.remove(&reading.number);
        self.pending.retain(|event| partition_of(event) != at);
        true
    }

    /// Takes from a partition and notes what it found.
    fn take(&mut self, number: u64) {
        let Some(at) = self.numbers.get(&number) else { return };
        // A paused one is looked at when it is resumed.
        let Some(reading) = self.readings.get(at).filter(|reading| !reading.paused) else { return };
        let mut tap = reading.tap.lock();
        let Some(queue) = &tap.queue else { return };
        self.batches.take(queue, &mut self.found);
        if self.found.is_empty() {
            return;
        }
        self.ready.numbers.lock().push_back(number);
        let mut records = Vec::with_capacity(self.found.len());
        for found in self.found.drain(..) {
            match found {
                Found::Record(record) => {
                    (tap.next, tap.end_told) = (Some(record.offset + 1), None);
                    records.push(record);
                }
                Found::End(position) => {
                    tap.next = Some(position);
                    flush(at, &mut records, &mut self.pending);
                    // librdkafka tells again after each fetch that found nothing new.
                    if tap.end_told.replace(position) != Some(position) {
                        self.pending.push_back(ReaderEvent::End { partition: at.clone(), position });
                    }
                }
                Found::Error(error) => {
                    flush(at, &mut records, &mut self.pending);
                    // The thread lives as long as this reader.
                    self.inbox.send(Command::Look(number, error)).ok();
                }
            }
        }
        flush(at, &mut records, &mut self.pending);
    }
}

/// Notes records that were found, if there are any.
fn flush(at: &TopicPartition, records: &mut Vec<Record>, into: &mut VecDeque<ReaderEvent>) {
    if !records.is_empty() {
        into.push_back(ReaderEvent::Batch { partition: at.clone(), records: std::mem::take(records) });
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to end.
        self.inbox.send(Command::End).ok();
    }
}

fn partition_of(event: &ReaderEvent) -> &TopicPartition {
    match event {
        ReaderEvent::Batch { partition, .. }
        | ReaderEvent::End { partition, .. }
        | ReaderEvent::Gap { partition, .. }
        | ReaderEvent::Gone { partition, .. } => partition,
    }
}

#[async_trait]
impl Reader for KafkaReader {
    fn add(&mut self, partition: &TopicPartition, start: Start) {
        if self.readings.contains_key(partition) {
            return;
        }
        self.next_number += 1;
        let (number, tap) = (self.next_number, Arc::<Mutex<Tap>>::default());
        let reading = Reading { number, paused: false, aside: VecDeque::new(), tap: Arc::clone(&tap) };
        self.readings.insert(partition.clone(), reading);
        self.numbers.insert(number, partition.clone());
        self.command(Command::Add(partition.clone(), start, number, tap));
    }

    fn remove(&mut self, partition: &TopicPartition) {
        if self.forget(partition) {
            self.command(Command::Remove(partition.clone()));
        }
    }

    fn pause(&mut self, partition: &TopicPartition) {
        if let Some(reading) = self.readings.get_mut(partition).filter(|reading| !reading.paused) {
            reading.paused = true;
            // What was not handed out yet goes back.
            let mut kept = VecDeque::new();
            for event in self.pending.drain(..) {
                if partition_of(&event) == partition {
                    reading.aside.push_back(event);
                } else {
                    kept.push_back(event);
                }
            }
            self.pending = kept;
            self.command(Command::Pause(partition.clone()));
        }
    }

    fn resume(&mut self, partition: &TopicPartition) {
        if let Some(reading) = self.readings.get_mut(partition).filter(|reading| reading.paused) {
            reading.paused = false;
            self.pending.append(&mut reading.aside);
            self.ready.line_up(reading.number);
            self.command(Command::Resume(partition.clone()));
        }
    }

    async fn next(&mut self) -> ReaderEvent {
        std::future::poll_fn(|cx| {
            self.ready.waker.register(cx.waker());
            loop {
                if let Some(event) = self.pending.pop_front() {
                    return Poll::Ready(event);
                }
                // In this order: what the thread has told before a partition was lined up comes before what is found there.
                let number = self.ready.numbers.lock().pop_front();
                if let Poll::Ready(Some(event)) = self.events.poll_recv(cx) {
                    if let Some(number) = number {
                        self.ready.numbers.lock().push_front(number);
                    }
                    let event = self.accept(event);
                    self.pending.extend(event);
                    continue;
                }
                match number {
                    Some(number) => self.take(number),
                    None => return Poll::Pending,
                }
            }
        })
        .await
    }

    async fn commit(&mut self, commits: Vec<Commit>) -> Result<(), Error> {
        if self.config.group.is_none() {
            return Err(Error::Refused("this reader has no group".to_owned()));
        }
        let consumer = Arc::clone(&self.consumer.lock());
        blocking(move || commit(&consumer, &commits)).await
    }

    async fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        if self.config.group.is_none() {
            return Err(Error::Refused("this reader has no group".to_owned()));
        }
        let (consumer, partitions) = (Arc::clone(&self.consumer.lock()), partitions.to_vec());
        blocking(move || committed(&consumer, &partitions)).await
    }
}
