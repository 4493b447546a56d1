//! Writers: budgets, and the way to the appender.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Log,
    append::{Entry, Job, Waiter, encode, finish},
    partition::Topic,
};
use crate::{
    BatchRecord, CompletionQueue, Error, FencedWriter, Outgoing, SubmitError, Ticket, TopicHandle, Writer,
    WriterConfig, Written,
};

/// Handles kept before those that nobody uses are dropped.
const HANDLES: usize = 1024;

/// A writer of the log.
#[derive(Debug)]
pub(super) struct LogWriter {
    log: Log,
    config: WriterConfig,
    in_flight: Arc<AtomicUsize>,
    handles: Mutex<Handles>,
}

#[derive(Debug)]
struct Handles {
    by_name: HashMap<Arc<str>, Arc<WriterTopic>>,
    prune_at: usize,
}

/// What a handle refers to.
#[derive(Debug)]
pub(super) struct WriterTopic {
    name: Arc<str>,
    in_flight: AtomicUsize,
    resolved: Mutex<Option<Arc<Topic>>>,
}

impl WriterTopic {
    /// The topic as it is now.
    pub(super) fn resolve(&self, look_up: impl Fn(&str) -> Option<Arc<Topic>>) -> Result<Arc<Topic>, Error> {
        let mut resolved = self.resolved.lock();
        if let Some(topic) = resolved.as_ref().filter(|topic| !topic.is_deleted()) {
            return Ok(Arc::clone(topic));
        }
        *resolved = look_up(&self.name);
        resolved.clone().ok_or_else(|| Error::UnknownTopic(self.name.to_string()))
    }
}

/// Bytes that count against both budgets until this is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    bytes: usize,
    topic: Arc<WriterTopic>,
    writer: Arc<AtomicUsize>,
}

impl InFlight {
    pub(super) fn topic(&self) -> &WriterTopic {
        &self.topic
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.topic.in_flight.fetch_sub(self.bytes, Ordering::AcqRel);
        self.writer.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl LogWriter {
    pub(super) fn new(log: Log, config: WriterConfig) -> Self {
        let handles = Handles { by_name: HashMap::new(), prune_at: HANDLES };
        Self { log, config, in_flight: Arc::default(), handles: Mutex::new(handles) }
    }

    fn handle(&self, name: &str) -> Arc<WriterTopic> {
        let mut handles = self.handles.lock();
        if let Some(found) = handles.by_name.get(name) {
            return Arc::clone(found);
        }
        if handles.by_name.len() >= handles.prune_at {
            handles.by_name.retain(|_, handle| Arc::strong_count(handle) > 1);
            handles.prune_at = (handles.by_name.len() * 2).max(HANDLES);
        }
        let name: Arc<str> = name.into();
        let handle = WriterTopic {
            name: Arc::clone(&name),
            in_flight: AtomicUsize::new(0),
            resolved: Mutex::default(),
        };
        let handle = Arc::new(handle);
        handles.by_name.insert(name, Arc::clone(&handle));
        handle
    }

    /// Takes bytes from both budgets. A record that is larger than a budget passes when nothing else is in flight.
    fn reserve(&self, bytes: usize, topic: &Arc<WriterTopic>) -> Result<InFlight, SubmitError> {
        let of_topic = topic.in_flight.fetch_add(bytes, Ordering::AcqRel);
        let of_writer = self.in_flight.fetch_add(bytes, Ordering::AcqRel);
        let in_flight = InFlight { bytes, topic: Arc::clone(topic), writer: Arc::clone(&self.in_flight) };
        if of_topic > 0 && of_topic + bytes > self.config.topic_budget_bytes {
            return Err(SubmitError::TopicFull);
        }
        if of_writer > 0 && of_writer + bytes > self.config.budget_bytes {
            return Err(SubmitError::BusFull);
        }
        Ok(in_flight)
    }
}

impl Writer for LogWriter {
    fn topic(&self, name: &str) -> TopicHandle {
        let handle = self.handle(name);
        TopicHandle::new(Arc::clone(&handle.name), Arc::new(handle))
    }

    fn submit(
        &self,
        topic: &TopicHandle,
        record: Outgoing<'_>,
        ticket: Ticket,
        completions: &Arc<CompletionQueue>,
    ) -> Result<(), SubmitError> {
        let headers: usize = record.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers + 64;
        let in_flight = match topic.state::<Arc<WriterTopic>>() {
            Some(handle) => self.reserve(bytes, handle)?,
            // A handle of another adapter: its name is what counts.
            None => self.reserve(bytes, &self.handle(topic.name()))?,
        };
        let deadline = Instant::now() + self.config.deadline;
        let waiter = Waiter { ticket, completions: Arc::clone(completions), deadline, in_flight };
        match encode(&record) {
            Ok(bytes) => {
                self.log
                    .core
                    .submit(Entry { partition: record.partition, bytes, waiter }, self.config.linger);
            }
            Err(error) => finish(waiter, Err(error)),
        }
        Ok(())
    }

    fn in_flight_bytes(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }
}

/// The only writer of its name.
#[derive(Debug)]
pub(super) struct LogFencedWriter {
    log: Log,
    name: String,
    epoch: u64,
}

impl LogFencedWriter {
    pub(super) fn new(log: Log, name: String, epoch: u64) -> Self {
        Self { log, name, epoch }
    }
}

#[async_trait]
impl FencedWriter for LogFencedWriter {
    async fn write(&mut self, batch: Vec<BatchRecord>) -> Result<Vec<Written>, Error> {
        let (writer, epoch) = (self.name.clone(), self.epoch);
        self.log.ask(|reply| Job::Batch { writer, epoch, records: batch, reply }).await
    }
}
