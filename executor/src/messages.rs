//! Messages of all integrations: one reader, and one commit per interval (architecture §4.16).
//!
//! The reader's task hands each batch to its shard and never waits for one: a shard has [`CREDITS`], and its
//! partition is paused while they are used up; only then does the shard tell when it has taken one. Commits go through
//! a second client of the same group, so that a slow commit delays no message.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tbmq_bus::{Commit, Error, Reader, ReaderEvent, Record, Start, TopicPartition};
use tbmq_integration::wire::{CommitMetadata, Totals};
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use crate::{lease::Lease, metrics::Metrics};

/// Deliveries that a shard may have waiting.
const CREDITS: usize = 3;

/// Commands that may wait for the reader's task, and hand-overs for the committer's.
const COMMANDS: usize = 1_024;

/// How often what is committed is compared with what was: a commit of an earlier owner may have come late.
const VERIFY_EVERY: Duration = Duration::from_secs(30);

/// Nothing is committed yet.
const NONE: u64 = u64::MAX;

/// How far a partition has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Everything below was settled.
    pub(crate) position: u64,
    /// What became of it.
    pub(crate) totals: Totals,
    /// When the record at the position was written, if it is held.
    pub(crate) oldest_ms: Option<i64>,
}

/// What a shard receives.
#[derive(Debug)]
pub(crate) enum Delivery {
    Records(Vec<Record>),
    End(u64),
    Gap { from: u64, to: u64 },
    Gone(String),
}

/// The messages of all integrations. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    commands: mpsc::Sender<Command>,
    flushes: mpsc::Sender<Flush>,
    board: Arc<Board>,
}

#[derive(Debug)]
enum Command {
    Add {
        number: u64,
        partition: TopicPartition,
        start: Start,
        inbox: mpsc::Sender<Delivery>,
        is_paused: Paused,
    },
    Remove {
        number: u64,
        partition: TopicPartition,
    },
    Credit {
        number: u64,
        partition: TopicPartition,
    },
}

/// Set while a partition is paused until its shard has room.
type Paused = Arc<AtomicBool>;

#[derive(Debug)]
struct Flush {
    slots: Vec<Arc<Slot>>,
    done: oneshot::Sender<bool>,
}

/// What is to be committed, by registration.
#[derive(Debug, Default)]
struct Board {
    slots: Mutex<HashMap<u64, Arc<Slot>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Slot {
    partition: TopicPartition,
    /// Without what changes with each commit.
    metadata: CommitMetadata,
    lease: Lease,
    progress: Mutex<Option<Progress>>,
    committed: AtomicU64,
}

impl Slot {
    /// What is due, if anything is, and still ours to commit.
    fn due(&self) -> Option<Commit> {
        let Progress { position, totals, oldest_ms } = (*self.progress.lock())?;
        let is_due = position != self.committed.load(Ordering::Acquire) && self.lease.holds();
        is_due.then(|| {
            let metadata = CommitMetadata { totals, oldest_ms, ..self.metadata.clone() };
            Commit { partition: self.partition.clone(), offset: position, metadata: metadata.to_text() }
        })
    }

    fn is_committed(&self) -> bool {
        let progress = *self.progress.lock();
        progress.is_none_or(|progress| progress.position == self.committed.load(Ordering::Acquire))
    }
}

/// One partition that is being read. Ends when dropped; what was not committed by then is not.
#[derive(Debug)]
pub(crate) struct Registration {
    messages: Messages,
    number: u64,
    slot: Arc<Slot>,
    inbox: mpsc::Receiver<Delivery>,
    is_paused: Paused,
}

impl Registration {
    pub(crate) fn partition(&self) -> &TopicPartition {
        &self.slot.partition
    }

    /// The next delivery; to be followed by [`Registration::credit`].
    pub(crate) fn poll(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Delivery>> {
        self.inbox.poll_recv(cx)
    }

    /// Deliveries were taken: more may come. Waits for the reader's task, which waits for no shard.
    pub(crate) async fn credit(&self) {
        // Either this sees that the partition is paused, or who pauses it that there is room.
        fence(Ordering::SeqCst);
        if self.is_paused.load(Ordering::Relaxed) {
            let command = Command::Credit { number: self.number, partition: self.slot.partition.clone() };
            // Without a reader the process is going down.
            self.messages.commands.send(command).await.ok();
        }
    }

    /// What is settled: it is committed with the next interval.
    pub(crate) fn settled(&self, progress: Progress) {
        *self.slot.progress.lock() = Some(progress);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.messages.board.slots.lock().remove(&self.number);
        self.inbox.close();
        let command = Command::Remove { number: self.number, partition: self.slot.partition.clone() };
        // Full: the reader's task finds the closed inbox itself.
        self.messages.commands.try_send(command).ok();
    }
}

impl Messages {
    /// The two tasks are to be run by the caller.
    pub(crate) fn new(
        reader: Box<dyn Reader>,
        committer: Box<dyn Reader>,
        interval: Duration,
        metrics: Metrics,
    ) -> (Self, impl Future<Output = ()> + Send, impl Future<Output = ()> + Send) {
        let (commands, commands_in) = mpsc::channel(COMMANDS);
        let (flushes, flushes_in) = mpsc::channel(COMMANDS);
        let board = Arc::new(Board::default());
        let dispatcher = Dispatcher { reader, commands: commands_in, readings: HashMap::new() };
        let committing = commit(committer, flushes_in, board.clone(), interval, metrics);
        (Self { commands, flushes, board }, dispatcher.run(), committing)
    }

    /// Begins to read a partition. Its commits carry `metadata` and what is told with [`Registration::settled`], and
    /// are made while the lease holds.
    pub(crate) async fn add(
        &self,
        partition: TopicPartition,
        start: Start,
        metadata: CommitMetadata,
        lease: Lease,
    ) -> Registration {
        let number = self.board.next.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot {
            partition: partition.clone(),
            metadata,
            lease,
            progress: Mutex::new(None),
            committed: AtomicU64::new(NONE),
        });
        self.board.slots.lock().insert(number, slot.clone());
        let (to, inbox) = mpsc::channel(CREDITS);
        let is_paused = Paused::default();
        let registration =
            Registration { messages: self.clone(), number, slot, inbox, is_paused: is_paused.clone() };
        self.commands.send(Command::Add { number, partition, start, inbox: to, is_paused }).await.ok();
        registration
    }

    /// Commits these now; `false` when the bus did not take it, or they are not ours any more.
    pub(crate) async fn flush(&self, registrations: impl Iterator<Item = &Registration>) -> bool {
        let slots: Vec<_> = registrations.map(|registration| registration.slot.clone()).collect();
        let (done, result) = oneshot::channel();
        if self.flushes.send(Flush { slots, done }).await.is_err() {
            return false;
        }
        result.await.unwrap_or(false)
    }
}

#[derive(Debug)]
struct Dispatcher {
    reader: Box<dyn Reader>,
    commands: mpsc::Receiver<Command>,
    readings: HashMap<TopicPartition, Reading>,
}

#[derive(Debug)]
struct Reading {
    number: u64,
    inbox: mpsc::Sender<Delivery>,
    /// What did not fit; short, since the partition is paused then.
    overflow: VecDeque<Delivery>,
    is_paused: Paused,
}

impl Dispatcher {
    async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                event = self.reader.next() => self.event(event),
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Add { number, partition, start, inbox, is_paused } => {
                // A predecessor may not have been removed yet.
                self.reader.remove(&partition);
                self.reader.add(&partition, start);
                let reading = Reading { number, inbox, overflow: VecDeque::new(), is_paused };
                self.readings.insert(partition, reading);
            }
            Command::Remove { number, partition } => {
                if self.readings.get(&partition).is_some_and(|reading| reading.number == number) {
                    self.readings.remove(&partition);
                    self.reader.remove(&partition);
                }
            }
            Command::Credit { number, partition } => {
                if self.readings.get(&partition).is_some_and(|reading| reading.number == number) {
                    self.fill(&partition);
                }
            }
        }
    }

    /// Gives a shard what it has room for, and reads on if that is all.
    fn fill(&mut self, partition: &TopicPartition) {
        let Some(reading) = self.readings.get_mut(partition) else { return };
        while let Some(delivery) = reading.overflow.pop_front() {
            if let Err(error) = reading.inbox.try_send(delivery) {
                reading.overflow.push_front(error.into_inner());
                break;
            }
        }
        let has_room = reading.overflow.is_empty() && reading.inbox.capacity() > 0;
        if has_room && reading.is_paused.swap(false, Ordering::Relaxed) {
            self.reader.resume(partition);
        }
    }

    fn event(&mut self, event: ReaderEvent) {
        let (partition, delivery) = match event {
            ReaderEvent::Batch { partition, records } => (partition, Delivery::Records(records)),
            ReaderEvent::End { partition, position } => (partition, Delivery::End(position)),
            ReaderEvent::Gap { partition, from, to } => (partition, Delivery::Gap { from, to }),
            ReaderEvent::Gone { partition, reason } => (partition, Delivery::Gone(reason)),
        };
        let Some(reading) = self.readings.get_mut(&partition) else { return };
        if reading.overflow.is_empty() {
            match reading.inbox.try_send(delivery) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(delivery)) => reading.overflow.push_back(delivery),
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    self.readings.remove(&partition);
                    self.reader.remove(&partition);
                    return;
                }
            }
        } else {
            reading.overflow.push_back(delivery);
        }
        let is_full = reading.inbox.capacity() == 0 || !reading.overflow.is_empty();
        if is_full && !reading.is_paused.swap(true, Ordering::Relaxed) {
            self.reader.pause(&partition);
            fence(Ordering::SeqCst);
            // It may have taken one before it could see that.
            self.fill(&partition);
        }
    }
}

async fn commit(
    mut reader: Box<dyn Reader>,
    mut flushes: mpsc::Receiver<Flush>,
    board: Arc<Board>,
    interval: Duration,
    metrics: Metrics,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = tokio::time::interval(VERIFY_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting = Vec::new();
    loop {
        tokio::select! {
            biased;
            count = flushes.recv_many(&mut waiting, COMMANDS) => {
                if count == 0 {
                    return;
                }
                let slots: Vec<_> = waiting.iter().flat_map(|flush| flush.slots.iter().cloned()).collect();
                commit_slots(&mut *reader, &slots, &metrics).await;
                for flush in waiting.drain(..) {
                    let is_done = flush.slots.iter().all(|slot| slot.is_committed());
                    flush.done.send(is_done).ok();
                }
            }
            _ = looks.tick() => {
                let slots: Vec<_> = board.slots.lock().values().cloned().collect();
                verify(&mut *reader, &slots).await;
            }
            _ = ticks.tick() => {
                let slots: Vec<_> = board.slots.lock().values().cloned().collect();
                commit_slots(&mut *reader, &slots, &metrics).await;
            }
        }
    }
}

/// Has what was set back committed anew. An owner that froze between its lease's check and its commit may send that
/// commit when another one has committed more; what it costs is repeated, so it must not stay.
async fn verify(reader: &mut dyn Reader, slots: &[Arc<Slot>]) {
    let done = |slot: &&Arc<Slot>| slot.committed.load(Ordering::Acquire) != NONE && slot.lease.holds();
    let slots: HashMap<&TopicPartition, &Arc<Slot>> =
        slots.iter().filter(done).map(|slot| (&slot.partition, slot)).collect();
    if slots.is_empty() {
        return;
    }
    let partitions: Vec<TopicPartition> = slots.keys().map(|partition| (*partition).clone()).collect();
    match reader.committed(&partitions).await {
        Ok(commits) => {
            for commit in commits {
                let Some(slot) = slots.get(&commit.partition) else { continue };
                let ours = slot.committed.load(Ordering::Acquire);
                if commit.offset < ours {
                    tracing::warn!(partition = %slot.partition, found = commit.offset, ours, "a late commit set the offset back");
                    slot.committed.store(NONE, Ordering::Release);
                }
            }
        }
        // The next look is soon enough.
        Err(error) => tracing::debug!(%error, "can't read what is committed"),
    }
}

async fn commit_slots(reader: &mut dyn Reader, slots: &[Arc<Slot>], metrics: &Metrics) {
    let due: Vec<_> = slots.iter().filter_map(|slot| Some((slot, slot.due()?))).collect();
    if due.is_empty() {
        return;
    }
    match reader.commit(due.iter().map(|(_, commit)| commit.clone()).collect()).await {
        Ok(()) => {
            for (slot, commit) in due {
                slot.committed.store(commit.offset, Ordering::Release);
            }
        }
        Err(error @ Error::Unavailable(_)) => {
            metrics.commits_failed.inc();
            tracing::warn!(%error, partitions = due.len(), "can't commit; trying again");
        }
        Err(error) => {
            // One topic that was deleted must not keep the others from being committed.
            tracing::debug!(%error, "committing one by one");
            for slot in slots {
                let Some(commit) = slot.due() else { continue };
                let offset = commit.offset;
                if let Err(error) = reader.commit(vec![commit]).await {
                    metrics.commits_failed.inc();
                    tracing::warn!(%error, partition = %slot.partition, offset, "can't commit");
                } else {
                    slot.committed.store(offset, Ordering::Release);
                }
            }
        }
    }
}
