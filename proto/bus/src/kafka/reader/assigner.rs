//! The thread of a reader, which does what may wait.
//!
//! librdkafka keeps the leader epochs of a topic for as long as a client lives and ignores lower ones, also those of a
//! topic that was deleted and created anew, which count from 0: every fetch from it would be refused. A consumer that
//! meets such a topic is replaced by a new one, which reads on where the former was.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
};
use tokio::sync::mpsc;

use super::{Command, Current, EVENTS, Native, Numbered, Ready, Tap};
use crate::{
    Error, ReaderConfig, ReaderEvent, Start, TopicPartition,
    kafka::{
        aside, error,
        ffi::{self, Batches, ClientQueue, PartitionQueue},
        offsets::bounds,
    },
};

/// How often the thread looks whether its topics are still there, at the most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// With fewer partitions than this a fetch costs so little that the owner says how long it waits.
const FEW: usize = 32;

/// How long a paused partition keeps what was fetched of it, at least. A shard that is merely slower than its messages
/// come is paused for milliseconds; one whose remote end is away, for hours.
const KEPT: Duration = Duration::from_secs(1);

/// Topics that a consumer may know and not read any more, before it is replaced: it forgets none.
const FORMER_TOPICS: usize = 10_000;

/// What the thread knows of a partition.
#[derive(Debug)]
struct Position {
    number: u64,
    tap: Arc<Mutex<Tap>>,
    /// Where to begin while the offset that is wanted next is not known.
    start: Offset,
    /// Id of the topic, once it is known.
    topic_id: Option<String>,
    /// Not read from since then.
    paused_at: Option<Instant>,
}

impl Position {
    /// Where to read on.
    fn offset(&self) -> Offset {
        self.tap.lock().next.map_or(self.start, |next| Offset::Offset(next as i64))
    }

    fn is_assigned(&self) -> bool {
        self.tap.lock().queue.is_some()
    }

    /// Keeps the topic's id if it is the first; `false` when it is another one.
    fn learn(&mut self, id: &str) -> bool {
        if id.is_empty() {
            return true;
        }
        self.topic_id.get_or_insert_with(|| id.to_owned()) == id
    }
}

/// The thread. What belongs to a consumer goes before it.
pub(super) struct Assigner {
    of_client: ClientQueue,
    partitions: HashMap<TopicPartition, Position>,
    /// Which partition has a number.
    numbers: HashMap<u64, TopicPartition>,
    ready: Arc<Ready>,
    /// Partitions that are paused and assigned, and how many may be.
    kept: usize,
    kept_most: usize,
    consumer: Native,
    client: ClientConfig,
    current: Current,
    outbox: mpsc::Sender<Numbered>,
    /// Topics of partitions that were added just now.
    fresh: BTreeSet<Arc<str>>,
    /// Ids of the topics that the consumer has met.
    known: HashMap<Arc<str>, String>,
    /// When the consumer is to be replaced.
    renew_at: Option<Instant>,
    /// How long the broker may keep a fetch that finds nothing: with few partitions, and now.
    few_wait_ms: u32,
    wait_ms: u32,
    /// Topics that are still to be looked at before it begins with the first again.
    to_look: Vec<Arc<str>>,
    next_look: Instant,
}

impl Drop for Assigner {
    fn drop(&mut self) {
        // The reader may keep its taps for longer than the consumer lives.
        for position in self.partitions.values() {
            let queue = position.tap.lock().queue.take();
            drop(queue);
        }
    }
}

impl Assigner {
    /// Makes the consumer and the thread, which ends when it is told to or nobody can tell it anything any more.
    ///
    /// # Errors
    /// When the settings make no consumer, or there is no thread.
    pub(super) fn start(
        client: ClientConfig,
        config: &ReaderConfig,
        ready: Arc<Ready>,
        outbox: mpsc::Sender<Numbered>,
    ) -> Result<(Current, Sender<Command>), Error> {
        let consumer = create(&client)?;
        let current = Arc::new(Mutex::new(Arc::clone(&consumer)));
        #[expect(
            clippy::disallowed_methods,
            reason = "the owner must not wait; it sends once for each call and each error"
        )]
        let (inbox, commands) = std::sync::mpsc::channel();
        let assigner = Self {
            of_client: ClientQueue::of(&consumer),
            partitions: HashMap::new(),
            numbers: HashMap::new(),
            ready,
            kept: 0,
            kept_most: config.budget_bytes / config.partition_budget_bytes.max(1),
            consumer,
            client,
            current: Arc::clone(&current),
            outbox,
            fresh: BTreeSet::new(),
            known: HashMap::new(),
            renew_at: None,
            few_wait_ms: config.wait_ms,
            wait_ms: config.wait_ms,
            to_look: Vec::new(),
            next_look: Instant::now() + LOOK_EVERY,
        };
        std::thread::Builder::new()
            .name("kafka-reader".to_owned())
            .spawn(move || assigner.run(&commands))
            .map_err(|error| Error::Unavailable(format!("no thread for reading: {error}")))?;
        Ok((current, inbox))
    }

    fn run(mut self, commands: &Receiver<Command>) {
        while self.listen(commands) {
            if !self.fresh.is_empty() {
                self.learn();
            }
            if self.renew_at.is_some_and(|at| at <= Instant::now()) {
                self.renew();
            }
            if self.next_look <= Instant::now() && !self.look() {
                return;
            }
        }
    }

    /// Takes everything out of the inbox; waits for it while there is nothing to do. `false`: this is the end.
    fn listen(&mut self, commands: &Receiver<Command>) -> bool {
        loop {
            let patience = if self.fresh.is_empty() {
                let until = self.renew_at.map_or(self.next_look, |at| at.min(self.next_look));
                until.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            match commands.recv_timeout(patience) {
                Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    /// `false` when this is the end, or nobody listens any more.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Add(at, start, number, tap) => {
                let start = match start {
                    Start::Earliest => Offset::Beginning,
                    Start::Latest => Offset::End,
                    Start::Offset(offset) => {
                        tap.lock().next = Some(offset);
                        Offset::Offset(offset as i64)
                    }
                };
                self.fresh.insert(Arc::clone(&at.topic));
                let position = Position { number, tap, start, topic_id: None, paused_at: None };
                self.numbers.insert(number, at.clone());
                self.partitions.insert(at.clone(), position);
                self.assign(&at);
            }
            Command::Remove(at) => self.remove(&at),
            // Without librdkafka's own pause: that goes on behind the offset at which a partition's end was told, which may
            // be that of a record that was not read.
            Command::Pause(at) => {
                let Some(position) = self.partitions.get_mut(&at) else { return true };
                position.paused_at = Some(Instant::now());
                if position.is_assigned() {
                    self.kept += 1;
                    if self.kept > self.kept_most {
                        self.unassign(&at);
                    }
                }
            }
            Command::Resume(at) => {
                let Some(position) = self.partitions.get_mut(&at) else { return true };
                let was_paused = position.paused_at.take().is_some();
                if !position.is_assigned() {
                    self.assign(&at);
                } else if was_paused {
                    self.kept -= 1;
                }
            }
            Command::Look(number, error) => {
                if let Some(at) = self.numbers.get(&number).cloned() {
                    return self.trouble(at, error);
                }
            }
            Command::End => return false,
        }
        true
    }

    fn remove(&mut self, at: &TopicPartition) {
        self.unassign(at);
        if let Some(position) = self.partitions.remove(at) {
            self.numbers.remove(&position.number);
        }
    }

    /// Learns the ids of topics that were added, which a broker may not have heard of yet.
    fn learn(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        let Some(found) = self.describe(&fresh) else { return };
        for (at, position) in &mut self.partitions {
            if let Some((_, id)) = found.get(&*at.topic).filter(|_| fresh.contains(&at.topic)) {
                position.learn(id);
            }
        }
        for topic in fresh {
            if let Some((_, id)) = found.get(&*topic) {
                self.meet(topic, id);
            }
        }
    }

    /// Notices when the consumer knows a topic by another id.
    fn meet(&mut self, topic: Arc<str>, id: &str) {
        if id.is_empty() {
            return;
        }
        let is_another = self.known.insert(topic, id.to_owned()).is_some_and(|known| known != id);
        if is_another || self.known.len() > self.partitions.len() + FORMER_TOPICS {
            self.renew_at.get_or_insert_with(Instant::now);
        }
    }

    /// Replaces the consumer by one that knows nothing of former topics. What the former one has fetched and not told
    /// is fetched again.
    fn renew(&mut self) {
        // Nothing is taken from here on: it would be fetched and told again.
        let assigned = self.partitions.iter().filter_map(|(at, position)| {
            let queue = position.tap.lock().queue.take()?;
            Some((at.clone(), queue))
        });
        let former: Vec<(TopicPartition, PartitionQueue)> = assigned.collect();
        let mut list = TopicPartitionList::with_capacity(former.len());
        let renewed = create(&self.client).and_then(|consumer| {
            // Goes before the consumer when this fails.
            let mut queues = Vec::with_capacity(former.len());
            for (at, _) in &former {
                let position = &self.partitions[at];
                list.add_partition_offset(&at.topic, at.partition as i32, position.offset())
                    .map_err(|failure| error("positions", &failure))?;
                queues.push((at.clone(), self.queue(&consumer, at, position.number)));
            }
            consumer.incremental_assign(&list).map_err(|failure| error("assignment", &failure))?;
            Ok((consumer, queues))
        });
        let (consumer, queues) = match renewed {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::error!(%error, "a consumer could not be replaced; that is tried again");
                for (at, queue) in former {
                    self.open(&at, queue);
                }
                self.renew_at = Some(Instant::now() + LOOK_EVERY);
                return;
            }
        };
        tracing::info!(partitions = list.count(), wait_ms = self.wait_ms, "reading with a new consumer");
        drop(former);
        for (at, queue) in queues {
            if let Some(queue) = queue {
                self.open(&at, queue);
            }
        }
        let of_client = std::mem::replace(&mut self.of_client, ClientQueue::of(&consumer));
        let former = std::mem::replace(&mut self.consumer, Arc::clone(&consumer));
        *self.current.lock() = consumer;
        self.renew_at = None;
        let read: HashSet<&Arc<str>> = self.partitions.keys().map(|at| &at.topic).collect();
        self.known.retain(|topic, _| read.contains(topic));
        aside::end((of_client, former));
    }

    /// Looks whether topics are still there, and the same: librdkafka tells a consumer of records nothing about
    /// that, and reads on in a topic that was created anew.
    fn look(&mut self) -> bool {
        self.give_up_paused();
        let mut found = Vec::new();
        Batches::of(EVENTS).take_of_client(&self.of_client, &mut found);
        for found in found {
            tracing::warn!(?found, "the consumer reports what belongs to no partition");
        }
        let wait_ms = wait_ms(self.partitions.len(), self.wait_ms, self.few_wait_ms);
        if wait_ms != self.wait_ms {
            self.wait_ms = wait_ms;
            self.client.set("fetch.wait.max.ms", wait_ms.to_string());
            self.renew_at.get_or_insert_with(Instant::now);
        }
        if self.to_look.is_empty() {
            let all: BTreeSet<Arc<str>> = self.partitions.keys().map(|at| Arc::clone(&at.topic)).collect();
            self.to_look = all.into_iter().collect();
        }
        // Nothing is read meanwhile, and librdkafka looks for each of them among all topics (38 µs where there are ten
        // thousand): so many at a time.
        let rest = self.to_look.len().saturating_sub(ffi::DESCRIBED_TOGETHER);
        let topics: BTreeSet<Arc<str>> = self.to_look.split_off(rest).into_iter().collect();
        let found = self.describe(&topics);
        self.next_look = Instant::now() + LOOK_EVERY;
        let Some(found) = found else { return true };
        let (mut gone, mut met) = (Vec::new(), Vec::new());
        for (at, position) in self.partitions.iter_mut().filter(|(at, _)| topics.contains(&at.topic)) {
            let reason = match found.get(&*at.topic) {
                Some((partitions, id)) if at.partition < *partitions => {
                    let was_unknown = position.topic_id.is_none();
                    if position.learn(id) {
                        if was_unknown {
                            met.push((Arc::clone(&at.topic), id));
                        }
                        continue;
                    }
                    "the topic was created anew"
                }
                _ => "the topic does not exist",
            };
            gone.push((position.number, at.clone(), reason.to_owned()));
        }
        for (topic, id) in met {
            self.meet(topic, id);
        }
        gone.into_iter().all(|(number, at, reason)| self.gone(number, at, reason))
    }

    /// Partitions and ids of topics; `None` when there is no answer.
    fn describe(&self, topics: &BTreeSet<Arc<str>>) -> Option<HashMap<String, (u32, String)>> {
        let names = topics.iter().map(|topic| &**topic);
        let described = ffi::describe_topics(&self.consumer, names, Duration::from_secs(5)).ok()?;
        let found = described.into_iter().filter_map(|topic| match topic.error {
            None => Some((topic.name, (topic.partitions, topic.id))),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => None,
            // Something else is wrong with it: it is not gone.
            Some(_) => Some((topic.name, (u32::MAX, String::new()))),
        });
        Some(found.collect())
    }

    /// The queue of a partition that is to be assigned.
    fn queue(&self, consumer: &Native, at: &TopicPartition, number: u64) -> Option<PartitionQueue> {
        let ready = Arc::clone(&self.ready);
        PartitionQueue::of(consumer, &at.topic, at.partition, move || ready.line_up(number))
    }

    /// Lets the reader take from a partition.
    fn open(&self, at: &TopicPartition, queue: PartitionQueue) {
        let Some(position) = self.partitions.get(at) else { return };
        position.tap.lock().queue = Some(queue);
        // What was there already is no reason for the bell to ring.
        self.ready.line_up(position.number);
    }

    fn assign(&mut self, at: &TopicPartition) {
        let Some(position) = self.partitions.get(at) else { return };
        let offset = position.offset();
        let Some(queue) = self.queue(&self.consumer, at, position.number) else {
            return tracing::error!(partition = %at, "a topic has a name that Kafka forbids");
        };
        let mut list = TopicPartitionList::new();
        let result = list
            .add_partition_offset(&at.topic, at.partition as i32, offset)
            .and_then(|()| self.consumer.incremental_assign(&list));
        match result {
            Ok(()) => self.open(at, queue),
            Err(error) => tracing::error!(%error, partition = %at, "a partition could not be assigned"),
        }
    }

    fn unassign(&mut self, at: &TopicPartition) {
        let Some(position) = self.partitions.get(at) else { return };
        let Some(queue) = position.tap.lock().queue.take() else { return };
        self.kept -= usize::from(position.paused_at.is_some());
        let mut list = TopicPartitionList::new();
        list.add_partition(&at.topic, at.partition as i32);
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            tracing::warn!(%error, partition = %at, "a partition could not be given up");
        }
        drop(queue);
    }

    /// Gives up what has been paused for long.
    fn give_up_paused(&mut self) {
        let is_long = |position: &Position| position.paused_at.is_some_and(|at| at.elapsed() >= KEPT);
        let is_due = |position: &Position| is_long(position) && position.is_assigned();
        let due = self.partitions.iter().filter(|(_, position)| is_due(position));
        for at in due.map(|(at, _)| at.clone()).collect::<Vec<_>>() {
            self.unassign(&at);
        }
    }

    fn send(&self, number: u64, event: ReaderEvent) -> bool {
        self.outbox.blocking_send(Numbered { number, event }).is_ok()
    }

    fn trouble(&mut self, partition: TopicPartition, error: RDKafkaErrorCode) -> bool {
        use RDKafkaErrorCode as Code;
        let Some(position) = self.partitions.get(&partition) else { return true };
        let (number, wanted) = (position.number, position.tap.lock().next);
        match error {
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
                self.gone(number, partition, "the topic does not exist".to_owned())
            }
            Code::AutoOffsetReset | Code::OffsetOutOfRange => {
                let bounds = match bounds(&self.consumer, &partition, Duration::from_secs(5)) {
                    Ok(bounds) => bounds,
                    Err(Error::UnknownTopic(reason)) => return self.gone(number, partition, reason),
                    Err(error) => {
                        tracing::warn!(%error, %partition, "no bounds of a partition; it is tried again");
                        return self.again(&partition, wanted);
                    }
                };
                match wanted {
                    Some(from) if from > bounds.end => {
                        let reason = format!("offset {from} lies beyond the end {}", bounds.end);
                        self.gone(number, partition, reason)
                    }
                    Some(from) if from < bounds.start => {
                        let to = bounds.start;
                        let gap = ReaderEvent::Gap { partition: partition.clone(), from, to };
                        // Before what comes after it.
                        self.send(number, gap) && self.again(&partition, Some(to))
                    }
                    wanted => self.again(&partition, wanted),
                }
            }
            error => {
                // librdkafka goes on by itself.
                tracing::warn!(%error, %partition, "a partition can't be read for now");
                true
            }
        }
    }

    fn gone(&mut self, number: u64, partition: TopicPartition, reason: String) -> bool {
        self.remove(&partition);
        self.send(number, ReaderEvent::Gone { partition, reason })
    }

    /// Begins anew where reading had stopped.
    fn again(&mut self, partition: &TopicPartition, at: Option<u64>) -> bool {
        self.unassign(partition);
        if let Some(position) = self.partitions.get_mut(partition) {
            position.tap.lock().next = at;
            position.start = Offset::Beginning;
            // A paused one is assigned when it is resumed.
            if position.paused_at.is_none() {
                self.assign(partition);
            }
        }
        true
    }
}

fn create(client: &ClientConfig) -> Result<Native, Error> {
    let consumer: BaseConsumer = client.create().map_err(|failure| error("consumer", &failure))?;
    Ok(Arc::new(consumer))
}

/// How long the broker may keep a fetch that finds nothing. A partition that is added waits as long; but each fetch names
/// all partitions, so that a thousand of them, looked for ten times a second, cost a sixth of a core at each end, and
/// the reader's part grows with their square.
fn wait_ms(partitions: usize, now_ms: u32, few_ms: u32) -> u32 {
    let of = |partitions| match partitions {
        0..FEW => few_ms,
        FEW..1_000 => 100,
        1_000..2_000 => 250,
        2_000..4_000 => 600,
        _ => 1_000,
    };
    // The consumer is replaced for this: not at each swing around a limit.
    let (wanted, with_twice) = (of(partitions), of(2 * partitions));
    if wanted < now_ms { with_twice.min(now_ms) } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetches_of_many_partitions_wait_longer_and_not_back_and_forth() {
        let mut now_ms = 0;
        let waits = [0, 999, 1_000, 600, 499, 3_999, 4_000, 2_000, 1_999, 499, 9_000, 0].map(|partitions| {
            now_ms = wait_ms(partitions, now_ms, 100);
            now_ms
        });
        assert_eq!(waits, [100, 100, 250, 250, 100, 600, 1_000, 1_000, 600, 100, 1_000, 100]);
        let mut now_ms = 0;
        let waits = [0, 31, 32, 31, 16, 15, 1_000].map(|partitions| {
            now_ms = wait_ms(partitions, now_ms, 10);
            now_ms
        });
        assert_eq!(waits, [10, 10, 100, 100, 100, 10, 250]);
    }
}
