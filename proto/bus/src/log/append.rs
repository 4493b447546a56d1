//! The road of everything that is written.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Appender, Core, Garbage,
    group::{Group, MemberId, MemberQueue},
    partition::{Limits, Partition, Topic},
    reader::Slot,
    record,
    storage::{Change, Positions, TopicId},
    writer::{InFlight, WriterTopic},
};
use crate::{
    BatchRecord, CleanupPolicy, Commit, Completion, CompletionQueue, Error, Outgoing, Ticket, TopicPartition,
    TopicSpec, Written,
};

/// A group is written before its linger is over when it has this many bytes.
const EARLY_BYTES: usize = 1 << 20;

/// Bytes of one group, at most (but one record at least).
const GROUP_BYTES: usize = 8 << 20;

/// Bytes of one record, at most.
const RECORD_BYTES: usize = 64 << 20;

/// Bytes of a commit's metadata, at most.
const METADATA_BYTES: usize = 4096;

/// How an answer gets back.
pub(super) type Reply<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;

/// What is asked for, other than a submitted record.
pub(super) enum Job {
    Batch { writer: String, epoch: u64, records: Vec<BatchRecord>, reply: Reply<Vec<Written>> },
    Commit { group: String, commits: Vec<Commit>, member: Option<Member>, reply: Reply<()> },
    Fence { name: String, reply: Reply<u64> },
    CreateTopics { specs: Vec<TopicSpec>, reply: Reply<Vec<Result<bool, Error>>> },
    DeleteTopic { name: String, reply: Reply<bool> },
    DeleteGroup { name: String, reply: Reply<bool> },
    AdvanceStart { partition: Arc<Partition>, start: u64, reply: Reply<()> },
    Compact { partition: Arc<Partition>, removed: Vec<u64>, cleaned_to: u64, reply: Reply<()> },
    Ping { reply: Reply<()> },
}

/// Who commits as a member.
pub(super) type Member = (MemberId, Arc<MemberQueue>);

/// A submitted record.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) partition: Option<u32>,
    pub(super) bytes: Vec<u8>,
    pub(super) waiter: Waiter,
}

/// Who waits for the outcome of a submitted record.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) ticket: Ticket,
    pub(super) completions: Arc<CompletionQueue>,
    pub(super) deadline: Instant,
    /// Held until just before the outcome is pushed.
    pub(super) in_flight: InFlight,
}

/// What waits for the appender. Records are bounded by the budgets of their writers, jobs by their callers, who wait.
#[derive(Default)]
pub(super) struct Pending {
    jobs: Vec<Job>,
    records: VecDeque<Entry>,
    bytes: usize,
    /// When the records are to be written at the latest.
    due: Option<Instant>,
    earliest_deadline: Option<Instant>,
    held: bool,
    closed: bool,
}

impl Pending {
    pub(super) fn close(&mut self) {
        self.closed = true;
    }
}

/// A record that has got its place.
struct Placed {
    partition: Arc<Partition>,
    offset: u64,
    bytes: Bytes,
}

/// What is to be done when a group is written, or has failed.
enum Then {
    Batch { reply: Reply<Vec<Written>>, written: Vec<Written> },
    Commit { group: String, commits: Vec<(Arc<Partition>, Commit)>, member: Option<Member>, reply: Reply<()> },
}

fn closed() -> Error {
    Error::Unavailable("the log is closed".to_owned())
}

impl Core {
    /// Takes a submitted record.
    pub(super) fn submit(&self, entry: Entry, linger: Duration) {
        if self.storage.is_durable() {
            self.enqueue(entry, linger);
            return;
        }
        let mut appender = self.appender.lock();
        let pending = self.pending.lock();
        if pending.held || pending.closed {
            drop(pending);
            self.enqueue(entry, linger);
            return;
        }
        drop(pending);
        self.execute(&mut appender, Vec::new(), vec![entry]);
    }

    fn enqueue(&self, entry: Entry, linger: Duration) {
        let mut pending = self.pending.lock();
        if pending.closed {
            drop(pending);
            finish(entry.waiter, Err(closed()));
            return;
        }
        let due = Instant::now() + linger;
        let sooner = pending.due.is_none_or(|current| due < current);
        let was_small = pending.bytes < EARLY_BYTES;
        pending.bytes += entry.bytes.len();
        let deadline = entry.waiter.deadline;
        pending.earliest_deadline =
            Some(pending.earliest_deadline.map_or(deadline, |earliest| earliest.min(deadline)));
        pending.records.push_back(entry);
        if sooner {
            pending.due = Some(due);
        }
        let wake = sooner || (was_small && pending.bytes >= EARLY_BYTES);
        drop(pending);
        if wake {
            self.arrived.notify_one();
        }
    }

    /// Has a job done: here and now by a log without a storage, otherwise by the appender's thread.
    pub(super) fn dispatch(&self, job: Job) {
        if self.storage.is_durable() {
            let mut pending = self.pending.lock();
            if pending.closed {
                drop(pending);
                refuse(job, &closed());
                return;
            }
            pending.jobs.push(job);
            drop(pending);
            self.arrived.notify_one();
        } else if self.pending.lock().closed {
            refuse(job, &closed());
        } else {
            self.execute(&mut self.appender.lock(), vec![job], Vec::new());
        }
    }

    /// Holds submitted records back, or lets them go.
    pub(super) fn hold(&self, held: bool) {
        if self.storage.is_durable() {
            self.pending.lock().held = held;
            self.arrived.notify_one();
            return;
        }
        // Under the appender's lock, so that nothing that is submitted from now on overtakes what was held.
        let mut appender = self.appender.lock();
        let mut pending = self.pending.lock();
        pending.held = held;
        if held {
            return;
        }
        let records = pending.records.drain(..).collect();
        pending.bytes = 0;
        (pending.due, pending.earliest_deadline) = (None, None);
        drop(pending);
        self.execute(&mut appender, Vec::new(), records);
    }

    /// Writes group after group until the log is closed.
    pub(super) fn run_appender(&self) {
        while let Some((jobs, records)) = self.next_group() {
            self.execute(&mut self.appender.lock(), jobs, records);
        }
    }

    fn next_group(&self) -> Option<(Vec<Job>, Vec<Entry>)> {
        let mut pending = self.pending.lock();
        loop {
            let now = Instant::now();
            let has_records = !pending.records.is_empty() && (!pending.held || pending.closed);
            let ready =
                pending.closed || pending.bytes >= EARLY_BYTES || pending.due.is_some_and(|due| due <= now);
            if !pending.jobs.is_empty() || (has_records && ready) {
                break;
            }
            if pending.closed {
                return None;
            }
            match pending.due.filter(|_| has_records) {
                Some(due) => drop(self.arrived.wait_until(&mut pending, due.into_std())),
                None => self.arrived.wait(&mut pending),
            }
        }
        let jobs = std::mem::take(&mut pending.jobs);
        if pending.held && !pending.closed {
            return Some((jobs, Vec::new()));
        }
        if pending.bytes <= GROUP_BYTES {
            let records = std::mem::take(&mut pending.records).into();
            pending.bytes = 0;
            (pending.due, pending.earliest_deadline) = (None, None);
            return Some((jobs, records));
        }
        let mut bytes = 0;
        let mut records = Vec::new();
        while let Some(entry) = pending.records.pop_front() {
            bytes += entry.bytes.len();
            records.push(entry);
            if bytes >= GROUP_BYTES {
                break;
            }
        }
        // What is left has waited for its time already.
        pending.bytes -= bytes;
        Some((jobs, records))
    }

    /// Gives the records whose deadline has passed their outcome.
    pub(super) fn expire_deadlines(&self, now: Instant) {
        let late = || Error::Unavailable("not written before the deadline".to_owned());
        let mut expired = Vec::new();
        {
            let mut executing = self.executing.lock();
            for slot in executing.iter_mut() {
                if slot.as_ref().is_some_and(|waiter| waiter.deadline <= now) {
                    expired.extend(slot.take());
                }
            }
        }
        let mut pending = self.pending.lock();
        if pending.earliest_deadline.is_some_and(|deadline| deadline <= now) {
            let (late, kept): (VecDeque<_>, VecDeque<_>) =
                pending.records.drain(..).partition(|entry| entry.waiter.deadline <= now);
            pending.records = kept;
            pending.bytes = pending.records.iter().map(|entry| entry.bytes.len()).sum();
            pending.earliest_deadline = pending.records.iter().map(|entry| entry.waiter.deadline).min();
            if pending.records.is_empty() {
                pending.due = None;
            }
            expired.extend(late.into_iter().map(|entry| entry.waiter));
        }
        drop(pending);
        for waiter in expired {
            finish(waiter, Err(late()));
        }
    }

    /// Does everything in one go: jobs that change topics one by one, all others and the records as one group.
    fn execute(&self, appender: &mut Appender, jobs: Vec<Job>, records: Vec<Entry>) {
        if self.storage.is_broken() {
            self.recover(appender);
        }
        let mut group = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job {
                Job::Fence { name, reply } => {
                    let mut fences = self.fences.lock();
                    let epoch = fences.entry(name).or_default();
                    *epoch += 1;
                    reply(Ok(*epoch));
                }
                Job::CreateTopics { specs, reply } => reply(Ok(self.create_topics(appender, specs))),
                Job::DeleteTopic { name, reply } => reply(self.delete_topic(appender, &name)),
                Job::DeleteGroup { name, reply } => reply(self.delete_group(appender, &name)),
                Job::AdvanceStart { partition, start, reply } => {
                    reply(self.advance_start(appender, &partition, start));
                }
                Job::Compact { partition, removed, cleaned_to, reply } => {
                    reply(self.compact(appender, &partition, &removed, cleaned_to));
                }
                Job::Ping { reply } => {
                    let broken = || Error::Unavailable("the log's storage has failed".to_owned());
                    reply(if self.storage.is_broken() { Err(broken()) } else { Ok(()) });
                }
                grouped => group.push(grouped),
            }
        }
        if !group.is_empty() || !records.is_empty() {
            self.write_group(appender, group, records);
        }
    }

    fn write_group(&self, appender: &mut Appender, jobs: Vec<Job>, entries: Vec<Entry>) {
        let now_ms = (self.clock)();
        let mut placed = Vec::with_capacity(entries.len());
        let mut changes = Vec::with_capacity(entries.len());
        let mut then = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job {
                Job::Batch { writer, epoch, records, reply } => {
                    match self.place_batch(appender, now_ms, &writer, epoch, records, &mut placed) {
                        Ok(written) => then.push(Then::Batch { reply, written }),
                        Err(error) => reply(Err(error)),
                    }
                }
                Job::Commit { group, commits, member, reply } => {
                    match self.check_commit(&group, commits, member.as_ref()) {
                        Ok(commits) => {
                            changes.extend(commits.iter().map(|(partition, commit)| Change::Commit {
                                group: group.clone(),
                                topic: partition.topic,
                                partition: partition.name.partition,
                                offset: commit.offset,
                                metadata: commit.metadata.clone(),
                            }));
                            then.push(Then::Commit { group, commits, member, reply });
                        }
                        Err(error) => reply(Err(error)),
                    }
                }
                other => refuse(other, &Error::Refused("not a job for a group".to_owned())),
            }
        }
        let mut results: Vec<Result<Written, Error>> = Vec::with_capacity(entries.len());
        let mut waiters = Vec::with_capacity(entries.len());
        for entry in entries {
            results.push(self.place(
                appender,
                now_ms,
                entry.waiter.in_flight.topic(),
                entry.partition,
                entry.bytes,
                &mut placed,
            ));
            waiters.push(Some(entry.waiter));
        }
        changes.extend(placed.iter().map(|placed| Change::Record {
            topic: placed.partition.topic,
            partition: placed.partition.name.partition,
            offset: placed.offset,
            bytes: placed.bytes.clone(),
        }));
        *self.executing.lock() = waiters;
        let failure = self.apply(appender, changes).err();
        if failure.is_none() {
            self.publish(placed);
        } else {
            for placed in &placed {
                placed.partition.take_back();
            }
        }
        let waiters = std::mem::take(&mut *self.executing.lock());
        complete(waiters, results, failure.as_ref());
        for then in then {
            match then {
                Then::Batch { reply, written } => reply(failure.clone().map_or(Ok(written), Err)),
                Then::Commit { group, commits, member, reply } => {
                    reply(match &failure {
                        Some(error) => Err(error.clone()),
                        None => self.committed_now(group, commits, member.as_ref()),
                    });
                }
            }
        }
    }

    /// Gives a submitted record its place.
    fn place(
        &self,
        appender: &mut Appender,
        now_ms: i64,
        handle: &WriterTopic,
        wanted: Option<u32>,
        bytes: Vec<u8>,
        placed: &mut Vec<Placed>,
    ) -> Result<Written, Error> {
        let topic = handle.resolve(|name| self.topic(name))?;
        let index = choose(appender, &topic, wanted, record::key(&bytes))?;
        Ok(put(&topic.partitions[index as usize], now_ms, bytes, placed))
    }

    fn place_batch(
        &self,
        appender: &mut Appender,
        now_ms: i64,
        writer: &str,
        epoch: u64,
        records: Vec<BatchRecord>,
        placed: &mut Vec<Placed>,
    ) -> Result<Vec<Written>, Error> {
        if self.fences.lock().get(writer) != Some(&epoch) {
            return Err(Error::Fenced(format!("a newer writer {writer} exists")));
        }
        // All are checked before the first one gets a place.
        let checked: Vec<_> = records
            .iter()
            .map(|record| {
                let topic = self.topic(&record.topic);
                let topic = topic.ok_or_else(|| Error::UnknownTopic(record.topic.to_string()))?;
                let index = choose(appender, &topic, record.partition, record.key.as_deref())?;
                let outgoing = Outgoing {
                    partition: None,
                    key: record.key.as_deref(),
                    value: record.value.as_deref(),
                    headers: &record.headers,
                };
                Ok((Arc::clone(&topic.partitions[index as usize]), encode(&outgoing)?))
            })
            .collect::<Result<_, Error>>()?;
        Ok(checked.into_iter().map(|(partition, bytes)| put(&partition, now_ms, bytes, placed)).collect())
    }

    fn check_commit(
        &self,
        group: &str,
        commits: Vec<Commit>,
        member: Option<&Member>,
    ) -> Result<Vec<(Arc<Partition>, Commit)>, Error> {
        let partitions: Vec<TopicPartition> = commits.iter().map(|commit| commit.partition.clone()).collect();
        self.check_member(group, &partitions, member)?;
        let check = |commit: Commit| {
            if commit.metadata.len() > METADATA_BYTES {
                let bytes = commit.metadata.len();
                let text =
                    format!("metadata of {} has {bytes} bytes, more than {METADATA_BYTES}", commit.partition);
                return Err(Error::Refused(text));
            }
            Ok((self.partition(&commit.partition)?, commit))
        };
        commits.into_iter().map(check).collect()
    }

    fn check_member(
        &self,
        name: &str,
        partitions: &[TopicPartition],
        member: Option<&Member>,
    ) -> Result<(), Error> {
        let Some((id, queue)) = member else { return Ok(()) };
        let groups = self.groups.lock();
        if groups.get(name).is_some_and(|group| group.holds(*id, queue, partitions)) {
            return Ok(());
        }
        Err(Error::Fenced(format!("group {name} has moved on without this member")))
    }

    /// Makes stored commits visible. Whether the membership still holds is looked at again: the answer is to prove it.
    fn committed_now(
        &self,
        group: String,
        commits: Vec<(Arc<Partition>, Commit)>,
        member: Option<&Member>,
    ) -> Result<(), Error> {
        let partitions: Vec<_> = commits.iter().map(|(partition, _)| partition.name.clone()).collect();
        let held = self.check_member(&group, &partitions, member);
        if !commits.is_empty() {
            let mut all = self.commits.lock();
            let of_group = all.entry(group).or_default();
            for (partition, commit) in commits {
                of_group
                    .insert((partition.topic, partition.name.partition), (commit.offset, commit.metadata));
            }
        }
        held
    }

    /// Makes records visible and wakes their readers, each once.
    fn publish(&self, placed: Vec<Placed>) {
        let mut woken: Vec<Arc<Slot>> = Vec::new();
        let mut placed = placed.into_iter().peekable();
        while let Some(first) = placed.next() {
            let partition = first.partition;
            let (mut through, mut bytes) = (first.offset, first.bytes.len());
            let mut run = vec![(first.offset, first.bytes)];
            while let Some(next) = placed.next_if(|next| Arc::ptr_eq(&next.partition, &partition)) {
                (through, bytes) = (next.offset, bytes + next.bytes.len());
                run.push((next.offset, next.bytes));
            }
            partition.publish(run.into_iter(), &mut woken);
            if self.storage.is_durable() {
                self.cache.note(&partition, through, bytes);
            }
        }
        woken.iter().for_each(Slot::enqueue);
    }

    /// Has the storage apply changes; after a failure opens it again and takes over what it has.
    fn apply(&self, appender: &mut Appender, changes: Vec<Change>) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let Err(error) = self.storage.apply(changes) else { return Ok(()) };
        tracing::error!(%error, "writing the log failed");
        self.recover(appender);
        Err(Error::Unavailable(error))
    }

    fn recover(&self, appender: &mut Appender) {
        match self.storage.recover() {
            Ok(Some(image)) => {
                tracing::info!("the log was opened again");
                self.take_over(appender, image);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "the log could not be opened again; the next write tries anew");
            }
        }
    }

    fn create_topics(&self, appender: &mut Appender, specs: Vec<TopicSpec>) -> Vec<Result<bool, Error>> {
        let (mut changes, mut fresh) = (Vec::new(), BTreeMap::new());
        let mut prepare = |spec: TopicSpec| {
            spec.check()?;
            if self.topic(&spec.name).is_some() || fresh.contains_key(spec.name.as_str()) {
                return Ok(false);
            }
            let limits = Limits::of(&spec).map_err(Error::Refused)?;
            let id = appender.next_topic;
            appender.next_topic += 1;
            let topic = Arc::new(Topic::new(id, &spec, limits, &[]));
            fresh.insert(Arc::clone(&topic.name), topic);
            changes.push(Change::Topic { id, spec });
            Ok(true)
        };
        let mut results: Vec<_> = specs.into_iter().map(&mut prepare).collect();
        if changes.is_empty() {
            return results;
        }
        match self.apply(appender, changes) {
            Ok(()) => {
                self.topics.write().append(&mut fresh);
                self.rebalance_all();
            }
            // One that is told to exist may be among them.
            Err(error) => results.iter_mut().filter(|result| result.is_ok()).for_each(|result| {
                *result = Err(error.clone());
            }),
        }
        results
    }

    fn delete_topic(&self, appender: &mut Appender, name: &str) -> Result<bool, Error> {
        let Some(topic) = self.topic(name) else { return Ok(false) };
        self.apply(appender, vec![Change::RemoveTopic { id: topic.id }])?;
        self.topics.write().remove(name);
        topic.delete();
        for commits in self.commits.lock().values_mut() {
            commits.retain(|(id, _), _| *id != topic.id);
        }
        self.garbage.lock().push_back(Garbage::Topic(topic.id));
        self.rebalance_all();
        Ok(true)
    }

    fn delete_group(&self, appender: &mut Appender, name: &str) -> Result<bool, Error> {
        let members = self.groups.lock().get(name).map_or(0, Group::len);
        if members > 0 {
            return Err(Error::Refused(format!("group {name} has {members} members")));
        }
        let Some(commits) = self.commits.lock().get(name).cloned() else { return Ok(false) };
        let remove = |(topic, partition): &(TopicId, u32)| Change::RemoveCommit {
            group: name.to_owned(),
            topic: *topic,
            partition: *partition,
        };
        self.apply(appender, commits.keys().map(remove).collect())?;
        self.commits.lock().remove(name);
        Ok(true)
    }

    fn advance_start(&self, appender: &mut Appender, partition: &Partition, start: u64) -> Result<(), Error> {
        let (topic, index) = (partition.topic, partition.name.partition);
        let now = partition.positions();
        if start <= now.start {
            return Ok(());
        }
        if start > now.next {
            let text = format!("offset {start} of {} lies beyond its end {}", partition.name, now.next);
            return Err(Error::Refused(text));
        }
        let positions = Positions { start, ..now };
        self.apply(appender, vec![Change::Positions { topic, partition: index, positions }])?;
        partition.advance_start(start);
        self.garbage.lock().push_back(Garbage::Range { topic, partition: index, from: now.start, to: start });
        Ok(())
    }

    fn compact(
        &self,
        appender: &mut Appender,
        partition: &Partition,
        removed: &[u64],
        cleaned_to: u64,
    ) -> Result<(), Error> {
        let (topic, index) = (partition.topic, partition.name.partition);
        let positions = Positions { cleaned_to, ..partition.positions() };
        let mut changes = vec![Change::Positions { topic, partition: index, positions }];
        changes.extend(removed.iter().map(|offset| Change::Remove {
            topic,
            partition: index,
            offset: *offset,
        }));
        self.apply(appender, changes)?;
        partition.compacted(removed, cleaned_to);
        Ok(())
    }
}

/// Encodes a record, or says why it can't be written.
pub(super) fn encode(record: &Outgoing<'_>) -> Result<Vec<u8>, Error> {
    let bytes = record::encode(record)
        .ok_or_else(|| Error::Refused("a part of the record is too long".to_owned()))?;
    if bytes.len() > RECORD_BYTES {
        return Err(Error::Refused(format!(
            "the record has {} bytes, more than {RECORD_BYTES}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

fn choose(
    appender: &mut Appender,
    topic: &Topic,
    wanted: Option<u32>,
    key: Option<&[u8]>,
) -> Result<u32, Error> {
    if topic.limits.policy == CleanupPolicy::Compact && key.is_none() {
        return Err(Error::Refused(format!("a record of the compacted topic {} needs a key", topic.name)));
    }
    let count = topic.partitions.len() as u32;
    match (wanted, key) {
        (Some(index), _) if index < count => Ok(index),
        (Some(index), _) => Err(Error::UnknownTopic(format!("{}-{index}", topic.name))),
        (None, Some(key)) => Ok(tbmq_proto::partition::for_key(key, count)),
        (None, None) => {
            appender.turn = appender.turn.wrapping_add(1);
            Ok(appender.turn % count)
        }
    }
}

fn put(partition: &Arc<Partition>, now_ms: i64, mut bytes: Vec<u8>, placed: &mut Vec<Placed>) -> Written {
    let (offset, cumulative) = partition.take_offset(bytes.len());
    record::stamp(&mut bytes, now_ms, cumulative);
    placed.push(Placed { partition: Arc::clone(partition), offset, bytes: Bytes::from(bytes) });
    Written { partition: partition.name.partition, offset }
}

/// Pushes the outcomes of a group, each queue's as one batch. Those whose deadline has passed were given one already.
fn complete(waiters: Vec<Option<Waiter>>, results: Vec<Result<Written, Error>>, failure: Option<&Error>) {
    let mut queues: Vec<(Arc<CompletionQueue>, Vec<Completion>)> = Vec::new();
    for (waiter, result) in waiters.into_iter().zip(results) {
        let Some(waiter) = waiter else { continue };
        let result = match (result, failure) {
            (Ok(_), Some(failure)) => Err(failure.clone()),
            (result, _) => result,
        };
        let Waiter { ticket, completions, in_flight, .. } = waiter;
        drop(in_flight);
        let completion = Completion { ticket, result };
        match queues.iter_mut().rev().find(|(queue, _)| Arc::ptr_eq(queue, &completions)) {
            Some((_, batch)) => batch.push(completion),
            None => queues.push((completions, vec![completion])),
        }
    }
    for (queue, batch) in queues {
        queue.push(batch);
    }
}

/// Gives one record its outcome.
pub(super) fn finish(waiter: Waiter, result: Result<Written, Error>) {
    let Waiter { ticket, completions, in_flight, .. } = waiter;
    drop(in_flight);
    completions.push([Completion { ticket, result }]);
}

fn refuse(job: Job, error: &Error) {
    let error = error.clone();
    match job {
        Job::Batch { reply, .. } => reply(Err(error)),
        Job::Fence { reply, .. } => reply(Err(error)),
        Job::CreateTopics { reply, .. } => reply(Err(error)),
        Job::DeleteTopic { reply, .. } | Job::DeleteGroup { reply, .. } => reply(Err(error)),
        Job::Commit { reply, .. }
        | Job::AdvanceStart { reply, .. }
        | Job::Compact { reply, .. }
        | Job::Ping { reply } => reply(Err(error)),
    }
}
