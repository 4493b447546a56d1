//! Plants faults in any bus: for simulation, and to show that a checker would catch a broken one.
//!
//! Nothing happens until a [`Fault`] is planted. What is left to chance is drawn from the seed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{
    Admin, BatchRecord, Bus, Commit, Completion, CompletionQueue, Error, FencedWriter, Membership,
    MembershipConfig, MembershipEvent, Outgoing, Reader, ReaderConfig, ReaderEvent, Record, Start,
    SubmitError, Ticket, TopicHandle, TopicPartition, Writer, WriterConfig, Written,
};

/// Outcomes that a writer may have under way; beyond that it says [`SubmitError::BusFull`].
const OUTCOMES: usize = 1 << 16;

/// Keys whose first record a reader remembers for [`Fault::StaleRecords`].
const STALE_KEYS: usize = 1024;

/// What goes wrong while it is planted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Outcomes of submitted records come so much later.
    DelayOutcomes(Duration),
    /// Of a thousand submitted records so many are not written, and their outcome is [`Error::Unavailable`].
    FailWrites(u16),
    /// Of a thousand submitted records so many are written although their outcome is [`Error::Unavailable`].
    UncertainWrites(u16),
    /// Of a thousand submitted records so many are acknowledged at once and never written.
    AcknowledgeUnwritten(u16),
    /// This topic has no room.
    TopicFull(String),
    /// No topic has room.
    BusFull,
    /// Fenced writers can't write.
    FailFencedWrites,
    /// Readers don't tell of gaps.
    SwallowGaps,
    /// Every commit is so much higher than it should be.
    CommitAhead(u64),
    /// Readers of this topic find the first value that they have seen of a key in the place of later ones.
    StaleRecords(String),
    /// Commits can't be made.
    FailCommits,
}

/// A bus with faults.
#[derive(Debug)]
pub struct FaultBus {
    inner: Arc<dyn Bus>,
    faults: Arc<Faults>,
}

/// The switchboard.
#[derive(Debug)]
struct Faults {
    planted: Mutex<Vec<Fault>>,
    random: Mutex<u64>,
    /// How often each group was told to lose its members.
    losses: Mutex<HashMap<String, u64>>,
    lost: Notify,
}

impl FaultBus {
    /// Wraps a bus; without faults at first.
    pub fn new(inner: Arc<dyn Bus>, seed: u64) -> Arc<Self> {
        let faults = Faults {
            planted: Mutex::default(),
            random: Mutex::new(seed),
            losses: Mutex::default(),
            lost: Notify::new(),
        };
        Arc::new(Self { inner, faults: Arc::new(faults) })
    }

    /// Plants a fault.
    pub fn plant(&self, fault: Fault) {
        self.faults.planted.lock().push(fault);
    }

    /// Takes all faults out.
    pub fn clear(&self) {
        self.faults.planted.lock().clear();
    }

    /// Makes every present member of a group lose what it holds; each joins again by its next call.
    pub fn lose_memberships(&self, group: &str) {
        *self.faults.losses.lock().entry(group.to_owned()).or_default() += 1;
        self.faults.lost.notify_waiters();
    }
}

impl Faults {
    fn find<T>(&self, which: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        self.planted.lock().iter().find_map(which)
    }

    fn has(&self, fault: &Fault) -> bool {
        self.planted.lock().contains(fault)
    }

    /// True so many times of a thousand.
    fn chance(&self, permille: u16) -> bool {
        // SplitMix64.
        let mut random = self.random.lock();
        *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % 1000 < u64::from(permille)
    }

    fn strikes(&self, permille: impl Fn(&Fault) -> Option<u16>) -> bool {
        self.find(permille).is_some_and(|permille| self.chance(permille))
    }

    fn spoil(&self, mut commits: Vec<Commit>) -> Result<Vec<Commit>, Error> {
        if self.has(&Fault::FailCommits) {
            return Err(planted());
        }
        let ahead = self.find(|fault| if let Fault::CommitAhead(by) = fault { Some(*by) } else { None });
        for commit in &mut commits {
            commit.offset += ahead.unwrap_or(0);
        }
        Ok(commits)
    }

    fn losses(&self, group: &str) -> u64 {
        self.losses.lock().get(group).copied().unwrap_or(0)
    }
}

fn planted() -> Error {
    Error::Unavailable("planted fault".to_owned())
}

#[async_trait]
impl Bus for FaultBus {
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error> {
        let inner = self.inner.writer(config).await?;
        let (sender, receiver) = mpsc::channel(OUTCOMES);
        tokio::spawn(forward(receiver));
        Ok(Arc::new(FaultWriter { inner, faults: Arc::clone(&self.faults), outcomes: sender }))
    }

    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error> {
        let inner = self.inner.fenced_writer(name).await?;
        Ok(Box::new(FaultFencedWriter { inner, faults: Arc::clone(&self.faults) }))
    }

    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error> {
        let inner = self.inner.reader(config).await?;
        Ok(Box::new(FaultReader { inner, faults: Arc::clone(&self.faults), first: HashMap::new() }))
    }

    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error> {
        let inner = self.inner.membership(config.clone()).await?;
        let (bus, faults) = (Arc::clone(&self.inner), Arc::clone(&self.faults));
        let losses = faults.losses(&config.group);
        Ok(Box::new(FaultMembership {
            bus,
            config,
            inner: Some(inner),
            faults,
            held: BTreeSet::new(),
            losses,
        }))
    }

    fn admin(&self) -> Arc<dyn Admin> {
        self.inner.admin()
    }
}

#[derive(Debug)]
struct FaultWriter {
    inner: Arc<dyn Writer>,
    faults: Arc<Faults>,
    outcomes: mpsc::Sender<Outcome>,
}

/// An outcome on its way; all of a writer's go through one task, so their order stays.
#[derive(Debug)]
struct Outcome {
    ticket: Ticket,
    source: Source,
    delay: Duration,
    target: Arc<CompletionQueue>,
}

#[derive(Debug)]
enum Source {
    Planted(Result<Written, Error>),
    Bus { queue: Arc<CompletionQueue>, is_hidden: bool },
}

async fn forward(mut outcomes: mpsc::Receiver<Outcome>) {
    let mut batch = Vec::new();
    while let Some(Outcome { ticket, source, delay, target }) = outcomes.recv().await {
        let result = match source {
            Source::Planted(result) => result,
            Source::Bus { queue, is_hidden } => {
                queue.wait(&mut batch).await;
                let found = batch.pop().map_or_else(|| Err(planted()), |done| done.result);
                if is_hidden { Err(planted()) } else { found }
            }
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        target.push([Completion { ticket, result }]);
    }
}

impl Writer for FaultWriter {
    fn topic(&self, name: &str) -> TopicHandle {
        self.inner.topic(name)
    }

    fn submit(
        &self,
        topic: &TopicHandle,
        record: Outgoing<'_>,
        ticket: Ticket,
        completions: &Arc<CompletionQueue>,
    ) -> Result<(), SubmitError> {
        let faults = &self.faults;
        let is_full = |fault: &Fault| matches!(fault, Fault::TopicFull(name) if **name == **topic.name());
        if faults.find(|fault| is_full(fault).then_some(())).is_some() {
            return Err(SubmitError::TopicFull);
        }
        if faults.has(&Fault::BusFull) {
            return Err(SubmitError::BusFull);
        }
        let slot = self.outcomes.try_reserve().map_err(|_| SubmitError::BusFull)?;
        let source = if faults
            .strikes(|fault| if let Fault::FailWrites(of) = fault { Some(*of) } else { None })
        {
            Source::Planted(Err(planted()))
        } else if faults
            .strikes(|fault| if let Fault::AcknowledgeUnwritten(of) = fault { Some(*of) } else { None })
        {
            Source::Planted(Ok(Written { partition: record.partition.unwrap_or(0), offset: 0 }))
        } else {
            let queue = CompletionQueue::new();
            self.inner.submit(topic, record, ticket, &queue)?;
            let hides = |fault: &Fault| if let Fault::UncertainWrites(of) = fault { Some(*of) } else { None };
            Source::Bus { queue, is_hidden: faults.strikes(hides) }
        };
        let delay = faults.find(|fault| if let Fault::DelayOutcomes(by) = fault { Some(*by) } else { None });
        let target = Arc::clone(completions);
        slot.send(Outcome { ticket, source, delay: delay.unwrap_or_default(), target });
        Ok(())
    }

    fn in_flight_bytes(&self) -> usize {
        self.inner.in_flight_bytes()
    }
}

#[derive(Debug)]
struct FaultFencedWriter {
    inner: Box<dyn FencedWriter>,
    faults: Arc<Faults>,
}

#[async_trait]
impl FencedWriter for FaultFencedWriter {
    async fn write(&mut self, batch: Vec<BatchRecord>) -> Result<Vec<Written>, Error> {
        if self.faults.has(&Fault::FailFencedWrites) {
            return Err(planted());
        }
        self.inner.write(batch).await
    }
}

#[derive(Debug)]
struct FaultReader {
    inner: Box<dyn Reader>,
    faults: Arc<Faults>,
    /// The first value of each key of a topic with stale records.
    first: HashMap<(TopicPartition, Bytes), Record>,
}

impl FaultReader {
    fn make_stale(&mut self, partition: &TopicPartition, records: &mut [Record]) {
        for record in records {
            let Some(key) = record.key.clone() else { continue };
            let place = (partition.clone(), key);
            if let Some(first) = self.first.get(&place) {
                *record = Record { offset: record.offset, ..first.clone() };
            } else if self.first.len() < STALE_KEYS {
                self.first.insert(place, record.clone());
            }
        }
    }
}

#[async_trait]
impl Reader for FaultReader {
    fn add(&mut self, partition: &TopicPartition, start: Start) {
        self.inner.add(partition, start);
    }

    fn remove(&mut self, partition: &TopicPartition) {
        self.inner.remove(partition);
    }

    fn pause(&mut self, partition: &TopicPartition) {
        self.inner.pause(partition);
    }

    fn resume(&mut self, partition: &TopicPartition) {
        self.inner.resume(partition);
    }

    async fn next(&mut self) -> ReaderEvent {
        loop {
            match self.inner.next().await {
                ReaderEvent::Gap { .. } if self.faults.has(&Fault::SwallowGaps) => {}
                ReaderEvent::Batch { partition, mut records } => {
                    let is_stale = |fault: &Fault| matches!(fault, Fault::StaleRecords(name) if **name == *partition.topic);
                    if self.faults.find(|fault| is_stale(fault).then_some(())).is_some() {
                        self.make_stale(&partition, &mut records);
                    }
                    return ReaderEvent::Batch { partition, records };
                }
                other => return other,
            }
        }
    }

    async fn commit(&mut self, commits: Vec<Commit>) -> Result<(), Error> {
        self.inner.commit(self.faults.spoil(commits)?).await
    }

    async fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        self.inner.committed(partitions).await
    }
}

#[derive(Debug)]
struct FaultMembership {
    bus: Arc<dyn Bus>,
    config: MembershipConfig,
    /// `None` between a loss and the next call.
    inner: Option<Box<dyn Membership>>,
    faults: Arc<Faults>,
    held: BTreeSet<TopicPartition>,
    losses: u64,
}

#[async_trait]
impl Membership for FaultMembership {
    async fn next(&mut self) -> MembershipEvent {
        loop {
            // Created before the look at the count, so that no loss slips in between.
            let lost = self.faults.lost.notified();
            let losses = self.faults.losses(&self.config.group);
            if losses != self.losses {
                self.losses = losses;
                self.inner = None;
                return MembershipEvent::Lost(std::mem::take(&mut self.held).into_iter().collect());
            }
            let Some(inner) = &mut self.inner else {
                match self.bus.membership(self.config.clone()).await {
                    Ok(joined) => self.inner = Some(joined),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
                continue;
            };
            let event = tokio::select! {
                event = inner.next() => event,
                () = lost => continue,
            };
            match &event {
                MembershipEvent::Assigned(partitions) => self.held.extend(partitions.iter().cloned()),
                MembershipEvent::Revoked { partitions, .. } | MembershipEvent::Lost(partitions) => {
                    self.held.retain(|partition| !partitions.contains(partition));
                }
                MembershipEvent::Fenced { .. } => self.held.clear(),
            }
            return event;
        }
    }

    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<(), Error>> {
        let commits = match self.faults.spoil(commits) {
            Ok(commits) => commits,
            Err(error) => return Box::pin(async { Err(error) }),
        };
        match &self.inner {
            Some(inner) if self.losses == self.faults.losses(&self.config.group) => inner.commit(commits),
            _ => Box::pin(async { Err(Error::Fenced("planted loss of the membership".to_owned())) }),
        }
    }

    async fn leave(self: Box<Self>) {
        if let Some(inner) = self.inner {
            inner.leave().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CleanupPolicy, TopicSpec, memory::MemoryBus, write};

    async fn bus() -> (Arc<FaultBus>, TopicPartition) {
        let bus = FaultBus::new(MemoryBus::new(), 7);
        let spec = TopicSpec {
            name: "t".to_owned(),
            partitions: 1,
            replication_factor: 1,
            policy: CleanupPolicy::Delete,
            settings: Vec::new(),
        };
        bus.admin().create_topic(&spec).await.unwrap();
        (bus, TopicPartition::new("t", 0))
    }

    async fn put(bus: &FaultBus, value: &str) -> Result<Written, Error> {
        let writer = bus.writer(WriterConfig::new("w")).await?;
        let outgoing =
            Outgoing { partition: None, key: Some(b"k"), value: Some(value.as_bytes()), headers: &[] };
        write(&*writer, &writer.topic("t"), outgoing).await
    }

    async fn end(bus: &FaultBus, at: &TopicPartition) -> u64 {
        bus.admin().bounds(std::slice::from_ref(at)).await.unwrap()[0].end
    }

    #[tokio::test]
    async fn writes_fail_are_uncertain_or_acknowledged_in_vain() {
        let (bus, at) = bus().await;
        for (fault, is_acknowledged, is_written) in [
            (Fault::FailWrites(1000), false, false),
            (Fault::UncertainWrites(1000), false, true),
            (Fault::AcknowledgeUnwritten(1000), true, false),
            (Fault::DelayOutcomes(Duration::from_millis(1)), true, true),
        ] {
            let before = end(&bus, &at).await;
            bus.plant(fault.clone());
            assert_eq!(put(&bus, "v").await.is_ok(), is_acknowledged, "{fault:?}");
            bus.clear();
            assert_eq!(end(&bus, &at).await > before, is_written, "{fault:?}");
        }
        bus.plant(Fault::TopicFull("t".to_owned()));
        let writer = bus.writer(WriterConfig::new("w")).await.unwrap();
        let outgoing = Outgoing { partition: None, key: None, value: None, headers: &[] };
        let submitted = writer.submit(&writer.topic("t"), outgoing, 0, &CompletionQueue::new());
        assert_eq!(submitted, Err(SubmitError::TopicFull));
    }

    #[tokio::test]
    async fn readers_swallow_gaps_and_find_stale_records() {
        let (bus, at) = bus().await;
        for value in ["0", "1", "2", "3"] {
            put(&bus, value).await.unwrap();
        }
        bus.admin().delete_records(&at, 1).await.unwrap();
        bus.plant(Fault::SwallowGaps);
        bus.plant(Fault::StaleRecords("t".to_owned()));
        let mut reader = bus.reader(ReaderConfig::new("r", None)).await.unwrap();
        reader.add(&at, Start::Offset(0));
        let ReaderEvent::Batch { records, .. } = reader.next().await else { panic!("a gap is told") };
        let values: Vec<_> = records.iter().map(|record| record.value.clone().unwrap()).collect();
        assert_eq!(values, ["1", "1", "1"]);
        assert_eq!(records[2].offset, 3);
    }

    #[tokio::test]
    async fn commits_go_too_far_and_memberships_are_lost() {
        let (bus, at) = bus().await;
        let config = MembershipConfig {
            group: "g".to_owned(),
            client_id: "c".to_owned(),
            instance_id: None,
            topics: vec!["t".to_owned()],
            session_timeout: Duration::from_secs(10),
        };
        let mut member = bus.membership(config).await.unwrap();
        assert!(matches!(member.next().await, MembershipEvent::Assigned(_)));
        bus.plant(Fault::CommitAhead(1));
        let commit = |offset| vec![Commit { partition: at.clone(), offset, metadata: String::new() }];
        member.commit(commit(3)).await.unwrap();
        assert_eq!(bus.admin().committed("g", std::slice::from_ref(&at)).await, Ok(commit(4)));
        bus.lose_memberships("g");
        assert!(matches!(member.commit(commit(3)).await, Err(Error::Fenced(_))));
        assert!(matches!(member.next().await, MembershipEvent::Lost(lost) if lost == [at.clone()]));
        assert!(matches!(member.next().await, MembershipEvent::Assigned(_)));
        member.commit(commit(5)).await.unwrap();
    }
}
