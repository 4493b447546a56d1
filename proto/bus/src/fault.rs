//! Plants faults in any bus: for simulation, and to show that a checker would catch a broken one.
//!
//! Nothing happens until a [`Fault`] is planted. What is left to chance is drawn from the seed.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::{
    Admin, BatchRecord, Bus, Commit, Completion, CompletionQueue, Error, FencedWriter, Membership,
    MembershipConfig, MembershipEvent, Outgoing, Reader, ReaderConfig, ReaderEvent, Record, Release, Start,
    SubmitError, Ticket, TopicHandle, TopicPartition, Writer, WriterConfig, Written,
};

/// Outcomes that a writer may have under way for a topic; beyond that it says [`SubmitError::BusFull`].
const OUTCOMES: usize = 1 << 16;

/// Keys whose first record a reader remembers for [`Fault::StaleRecords`].
const STALE_KEYS: usize = 1024;

/// What goes wrong while it is planted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Outcomes of submitted records come no sooner than so long after the submission.
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
    /// Commits are made, and answered so much later.
    DelayCommitAnswers(Duration),
    /// Commits are made, and answered when this is taken out.
    WithholdCommitAnswers,
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
    planted: Mutex<Vec<Planted>>,
    random: Mutex<u64>,
    /// How often each group was told to lose its members.
    losses: Mutex<BTreeMap<String, u64>>,
    /// How often each group's members with an instance id were told that they are fenced.
    fences: Mutex<BTreeMap<(String, String), u64>>,
    /// Something was taken out, or members were told something.
    changed: Notify,
}

type Topics = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// A fault, and the topics that it is for; all if there is nothing that tells them.
struct Planted {
    fault: Fault,
    topics: Option<Topics>,
}

impl fmt::Debug for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planted").field("fault", &self.fault).finish_non_exhaustive()
    }
}

impl FaultBus {
    /// Wraps a bus; without faults at first.
    pub fn new(inner: Arc<dyn Bus>, seed: u64) -> Arc<Self> {
        let faults = Faults {
            planted: Mutex::default(),
            random: Mutex::new(seed),
            losses: Mutex::default(),
            fences: Mutex::default(),
            changed: Notify::new(),
        };
        Arc::new(Self { inner, faults: Arc::new(faults) })
    }

    /// Plants a fault for all topics.
    pub fn plant(&self, fault: Fault) {
        self.faults.planted.lock().push(Planted { fault, topics: None });
    }

    /// Plants a fault for some topics. A batch, or several commits together, are struck if one of their topics is.
    pub fn plant_for(&self, fault: Fault, topics: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.faults.planted.lock().push(Planted { fault, topics: Some(Box::new(topics)) });
    }

    /// Takes a fault out, however often it was planted.
    pub fn lift(&self, fault: &Fault) {
        self.faults.planted.lock().retain(|planted| planted.fault != *fault);
        self.faults.changed.notify_waiters();
    }

    /// Takes all faults out.
    pub fn clear(&self) {
        self.faults.planted.lock().clear();
        self.faults.changed.notify_waiters();
    }

    /// Makes every present member of a group lose what it holds; each joins again by its next call.
    pub fn lose_memberships(&self, group: &str) {
        *self.faults.losses.lock().entry(group.to_owned()).or_default() += 1;
        self.faults.changed.notify_waiters();
    }

    /// Makes the present members of a group with this instance id believe that another one has taken it over. What
    /// they held stays with the id for the rest of the session.
    pub fn fence_memberships(&self, group: &str, instance_id: &str) {
        *self.faults.fences.lock().entry((group.to_owned(), instance_id.to_owned())).or_default() += 1;
        self.faults.changed.notify_waiters();
    }
}

impl Faults {
    fn find<T>(&self, topic: &str, which: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let planted = self.planted.lock();
        let here =
            planted.iter().filter(|planted| planted.topics.as_ref().is_none_or(|is_meant| is_meant(topic)));
        here.map(|planted| &planted.fault).find_map(which)
    }

    fn has(&self, topic: &str, fault: &Fault) -> bool {
        self.find(topic, |planted| (planted == fault).then_some(())).is_some()
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

    fn strikes(&self, topic: &str, permille: impl Fn(&Fault) -> Option<u16>) -> bool {
        self.find(topic, permille).is_some_and(|permille| self.chance(permille))
    }

    fn spoil(&self, mut commits: Vec<Commit>) -> Result<Vec<Commit>, Error> {
        for commit in &mut commits {
            let topic = &commit.partition.topic;
            if self.has(topic, &Fault::FailCommits) {
                return Err(planted());
            }
            let ahead =
                self.find(topic, |fault| if let Fault::CommitAhead(by) = fault { Some(*by) } else { None });
            commit.offset += ahead.unwrap_or(0);
        }
        Ok(commits)
    }

    /// Keeps the answer to commits of these topics back, as the faults say.
    async fn keep_back(&self, topics: &[Arc<str>]) {
        let delay = |fault: &Fault| if let Fault::DelayCommitAnswers(by) = fault { Some(*by) } else { None };
        if let Some(delay) = topics.iter().find_map(|topic| self.find(topic, delay)) {
            tokio::time::sleep(delay).await;
        }
        loop {
            // Created before the look, so that no change slips in between.
            let changed = self.changed.notified();
            if !topics.iter().any(|topic| self.has(topic, &Fault::WithholdCommitAnswers)) {
                return;
            }
            changed.await;
        }
    }

    /// What members of a group were told so far.
    fn told(&self, config: &MembershipConfig) -> Told {
        let losses = self.losses.lock().get(&config.group).copied();
        let fences = config
            .instance_id
            .as_ref()
            .and_then(|instance| self.fences.lock().get(&(config.group.clone(), instance.clone())).copied());
        Told { losses: losses.unwrap_or(0), fences: fences.unwrap_or(0) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    losses: u64,
    fences: u64,
}

fn topics_of(commits: &[Commit]) -> Vec<Arc<str>> {
    commits.iter().map(|commit| Arc::clone(&commit.partition.topic)).collect()
}

fn planted() -> Error {
    Error::Unavailable("planted fault".to_owned())
}

#[async_trait]
impl Bus for FaultBus {
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error> {
        Ok(Arc::new(FaultWriter {
            inner: self.inner.writer(config).await?,
            faults: Arc::clone(&self.faults),
            runtime: Handle::current(),
            outcomes: Mutex::default(),
        }))
    }

    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error> {
        let inner = self.inner.fenced_writer(name).await?;
        Ok(Box::new(FaultFencedWriter { inner, faults: Arc::clone(&self.faults) }))
    }

    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error> {
        let inner = self.inner.reader(config).await?;
        Ok(Box::new(FaultReader { inner, faults: Arc::clone(&self.faults), first: BTreeMap::new() }))
    }

    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error> {
        let told = self.faults.told(&config);
        Ok(Box::new(FaultMembership {
            inner: Some(self.inner.membership(config.clone()).await?),
            bus: Arc::clone(&self.inner),
            faults: Arc::clone(&self.faults),
            config,
            held: Arc::default(),
            told,
            is_over: false,
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
    runtime: Handle,
    /// Outcomes on their way, by topic: those of one topic stay in order and delay no other's.
    outcomes: Mutex<BTreeMap<Arc<str>, mpsc::Sender<Outcome>>>,
}

impl FaultWriter {
    fn outcomes(&self, topic: &Arc<str>) -> mpsc::Sender<Outcome> {
        let mut outcomes = self.outcomes.lock();
        let sender = outcomes.entry(Arc::clone(topic)).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(OUTCOMES);
            self.runtime.spawn(forward(receiver));
            sender
        });
        sender.clone()
    }
}

#[derive(Debug)]
struct Outcome {
    ticket: Ticket,
    source: Source,
    not_before: Option<Instant>,
    target: Arc<CompletionQueue>,
}

#[derive(Debug)]
enum Source {
    Planted(Result<Written, Error>),
    Bus { queue: Arc<CompletionQueue>, is_hidden: bool },
}

async fn forward(mut outcomes: mpsc::Receiver<Outcome>) {
    let mut batch = Vec::new();
    while let Some(Outcome { ticket, source, not_before, target }) = outcomes.recv().await {
        let result = match source {
            Source::Planted(result) => result,
            Source::Bus { queue, is_hidden } => {
                queue.wait(&mut batch).await;
                let found = batch.pop().map_or_else(|| Err(planted()), |done| done.result);
                if is_hidden { Err(planted()) } else { found }
            }
        };
        if let Some(instant) = not_before {
            tokio::time::sleep_until(instant).await;
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
        let (faults, name) = (&self.faults, topic.name());
        let is_full =
            |fault: &Fault| matches!(fault, Fault::TopicFull(full) if **full == **name).then_some(());
        if faults.find(name, is_full).is_some() {
            return Err(SubmitError::TopicFull);
        }
        let outcomes = self.outcomes(name);
        let slot = outcomes.try_reserve().map_err(|_| SubmitError::BusFull)?;
        if faults.has(name, &Fault::BusFull) {
            return Err(SubmitError::BusFull);
        }
        let fails = |fault: &Fault| if let Fault::FailWrites(of) = fault { Some(*of) } else { None };
        let lies = |fault: &Fault| if let Fault::AcknowledgeUnwritten(of) = fault { Some(*of) } else { None };
        let source = if faults.strikes(name, fails) {
            Source::Planted(Err(planted()))
        } else if faults.strikes(name, lies) {
            Source::Planted(Ok(Written { partition: record.partition.unwrap_or(0), offset: 0 }))
        } else {
            let queue = CompletionQueue::new();
            self.inner.submit(topic, record, ticket, &queue)?;
            let hides = |fault: &Fault| if let Fault::UncertainWrites(of) = fault { Some(*of) } else { None };
            Source::Bus { queue, is_hidden: faults.strikes(name, hides) }
        };
        let delay = |fault: &Fault| if let Fault::DelayOutcomes(by) = fault { Some(*by) } else { None };
        let not_before = faults.find(name, delay).map(|delay| Instant::now() + delay);
        slot.send(Outcome { ticket, source, not_before, target: Arc::clone(completions) });
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
        if batch.iter().any(|record| self.faults.has(&record.topic, &Fault::FailFencedWrites)) {
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
    first: BTreeMap<(TopicPartition, Bytes), Record>,
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
                ReaderEvent::Gap { partition, .. }
                    if self.faults.has(&partition.topic, &Fault::SwallowGaps) => {}
                ReaderEvent::Batch { partition, mut records } => {
                    let topic = &partition.topic;
                    let is_stale = |fault: &Fault| {
                        matches!(fault, Fault::StaleRecords(name) if **name == **topic).then_some(())
                    };
                    if self.faults.find(topic, is_stale).is_some() {
                        self.make_stale(&partition, &mut records);
                    }
                    return ReaderEvent::Batch { partition, records };
                }
                other => return other,
            }
        }
    }

    async fn commit(&mut self, commits: Vec<Commit>) -> Result<(), Error> {
        let (topics, commits) = (topics_of(&commits), self.faults.spoil(commits)?);
        let result = self.inner.commit(commits).await;
        self.faults.keep_back(&topics).await;
        result
    }

    async fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        self.inner.committed(partitions).await
    }
}

#[derive(Debug)]
struct FaultMembership {
    bus: Arc<dyn Bus>,
    config: MembershipConfig,
    /// `None` between a loss and the next call, and once it is fenced.
    inner: Option<Box<dyn Membership>>,
    faults: Arc<Faults>,
    held: Arc<Mutex<Held>>,
    /// What was told before it joined, or that it has followed.
    told: Told,
    /// It was told that it is fenced.
    is_over: bool,
}

/// Partitions until they are lost, or revoked and released.
#[derive(Debug, Default)]
struct Held {
    /// With the number of the assignment, so that a late release touches no later one.
    partitions: BTreeMap<TopicPartition, u64>,
    assignments: u64,
}

impl Held {
    fn assigned(&mut self, partitions: &[TopicPartition]) {
        self.assignments += 1;
        let assignment = self.assignments;
        self.partitions.extend(partitions.iter().map(|partition| (partition.clone(), assignment)));
    }

    /// The assignments of these.
    fn of(&self, partitions: &[TopicPartition]) -> BTreeMap<TopicPartition, u64> {
        let found = |partition: &TopicPartition| {
            self.partitions.get(partition).map(|assignment| (partition.clone(), *assignment))
        };
        partitions.iter().filter_map(found).collect()
    }

    fn released(&mut self, revoked: &BTreeMap<TopicPartition, u64>) {
        self.partitions.retain(|partition, assignment| revoked.get(partition) != Some(assignment));
    }
}

#[async_trait]
impl Membership for FaultMembership {
    async fn next(&mut self) -> MembershipEvent {
        loop {
            let faults = Arc::clone(&self.faults);
            // Created before the look, so that nothing slips in between.
            let changed = faults.changed.notified();
            let told = self.faults.told(&self.config);
            if self.is_over {
                return std::future::pending().await;
            }
            if told.fences != self.told.fences {
                self.is_over = true;
                self.inner = None;
                return MembershipEvent::Fenced { reason: "planted fault".to_owned() };
            }
            if told.losses != self.told.losses {
                self.told = told;
                self.inner = None;
                let held = std::mem::take(&mut self.held.lock().partitions);
                return MembershipEvent::Lost(held.into_keys().collect());
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
                () = changed => continue,
            };
            match event {
                MembershipEvent::Assigned(partitions) => {
                    self.held.lock().assigned(&partitions);
                    return MembershipEvent::Assigned(partitions);
                }
                MembershipEvent::Revoked { partitions, release } => {
                    let (held, revoked) = (Arc::clone(&self.held), self.held.lock().of(&partitions));
                    let release = Release::new(move || {
                        held.lock().released(&revoked);
                        drop(release);
                    });
                    return MembershipEvent::Revoked { partitions, release };
                }
                MembershipEvent::Lost(partitions) => {
                    self.held.lock().partitions.retain(|partition, _| !partitions.contains(partition));
                    return MembershipEvent::Lost(partitions);
                }
                MembershipEvent::Fenced { reason } => return MembershipEvent::Fenced { reason },
            }
        }
    }

    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<(), Error>> {
        let commits = match self.faults.spoil(commits) {
            Ok(commits) => commits,
            Err(error) => return Box::pin(async { Err(error) }),
        };
        let (Some(inner), true) = (&self.inner, self.told == self.faults.told(&self.config)) else {
            return Box::pin(async { Err(Error::Fenced("planted loss of the membership".to_owned())) });
        };
        let (faults, topics, committing) =
            (Arc::clone(&self.faults), topics_of(&commits), inner.commit(commits));
        Box::pin(async move {
            let result = committing.await;
            faults.keep_back(&topics).await;
            result
        })
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
        create(&bus, "t").await;
        (bus, TopicPartition::new("t", 0))
    }

    async fn create(bus: &FaultBus, name: &str) {
        let spec = TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            replication_factor: 1,
            policy: CleanupPolicy::Delete,
            settings: Vec::new(),
        };
        bus.admin().create_topic(&spec).await.unwrap();
    }

    fn member(instance_id: Option<&str>) -> MembershipConfig {
        MembershipConfig {
            group: "g".to_owned(),
            client_id: "c".to_owned(),
            instance_id: instance_id.map(str::to_owned),
            topics: vec!["t".to_owned()],
            session_timeout: Duration::from_secs(10),
        }
    }

    fn commit(at: &TopicPartition, offset: u64) -> Vec<Commit> {
        vec![Commit { partition: at.clone(), offset, metadata: String::new() }]
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
        let mut member = bus.membership(member(None)).await.unwrap();
        assert!(matches!(member.next().await, MembershipEvent::Assigned(_)));
        bus.plant(Fault::CommitAhead(1));
        member.commit(commit(&at, 3)).await.unwrap();
        assert_eq!(bus.admin().committed("g", std::slice::from_ref(&at)).await, Ok(commit(&at, 4)));
        bus.lose_memberships("g");
        assert!(matches!(member.commit(commit(&at, 3)).await, Err(Error::Fenced(_))));
        assert!(matches!(member.next().await, MembershipEvent::Lost(lost) if lost == [at.clone()]));
        assert!(matches!(member.next().await, MembershipEvent::Assigned(_)));
        member.commit(commit(&at, 5)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_revoked_and_not_yet_released_is_lost_as_well() {
        let (bus, one) = bus().await;
        create(&bus, "u").await;
        let other = TopicPartition::new("u", 0);
        let topics = vec!["t".to_owned(), "u".to_owned()];
        let config = MembershipConfig { topics, ..member(None) };
        let mut first = bus.membership(config.clone()).await.unwrap();
        assert!(matches!(first.next().await, MembershipEvent::Assigned(all) if all.len() == 2));
        let second = bus.membership(config).await.unwrap();
        let MembershipEvent::Revoked { release, .. } = first.next().await else { panic!("one is to move") };
        bus.lose_memberships("g");
        let MembershipEvent::Lost(lost) = first.next().await else { panic!("all is lost") };
        assert_eq!(lost, [one, other]);
        drop((release, second));
    }

    #[tokio::test]
    async fn a_member_is_fenced_for_good_and_its_successor_takes_its_place() {
        let (bus, at) = bus().await;
        let mut older = bus.membership(member(Some("one"))).await.unwrap();
        assert!(matches!(older.next().await, MembershipEvent::Assigned(_)));
        bus.fence_memberships("g", "other");
        older.commit(commit(&at, 1)).await.unwrap();
        bus.fence_memberships("g", "one");
        assert!(matches!(older.commit(commit(&at, 2)).await, Err(Error::Fenced(_))));
        assert!(matches!(older.next().await, MembershipEvent::Fenced { .. }));
        let mut newer = bus.membership(member(Some("one"))).await.unwrap();
        assert!(matches!(newer.next().await, MembershipEvent::Assigned(_)));
        newer.commit(commit(&at, 3)).await.unwrap();
        assert!(matches!(older.commit(commit(&at, 4)).await, Err(Error::Fenced(_))));
        let more = tokio::time::timeout(Duration::from_millis(50), older.next()).await;
        assert!(more.is_err(), "{more:?} after the end");
    }

    #[tokio::test(start_paused = true)]
    async fn commits_are_made_and_answered_late_or_when_the_fault_is_gone() {
        let (bus, at) = bus().await;
        let mut member = bus.membership(member(None)).await.unwrap();
        assert!(matches!(member.next().await, MembershipEvent::Assigned(_)));
        bus.plant(Fault::DelayCommitAnswers(Duration::from_secs(7)));
        let begun = Instant::now();
        member.commit(commit(&at, 1)).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(7));
        bus.clear();
        bus.plant(Fault::WithholdCommitAnswers);
        let answer = tokio::spawn(member.commit(commit(&at, 2)));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!answer.is_finished());
        assert_eq!(bus.admin().committed("g", std::slice::from_ref(&at)).await, Ok(commit(&at, 2)));
        bus.lift(&Fault::WithholdCommitAnswers);
        assert_eq!(answer.await.unwrap(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_strikes_the_topics_that_it_is_planted_for() {
        let (bus, _) = bus().await;
        create(&bus, "u").await;
        let (writer, queue) = (bus.writer(WriterConfig::new("w")).await.unwrap(), CompletionQueue::new());
        let topics = ["t", "u"].map(|name| writer.topic(name));
        let outgoing = Outgoing { partition: None, key: Some(b"k"), value: Some(b"v"), headers: &[] };
        let outcomes = async || {
            let (begun, mut batch, mut all) = (Instant::now(), Vec::new(), Vec::new());
            for (ticket, topic) in topics.iter().enumerate() {
                writer.submit(topic, outgoing, ticket as u64, &queue).unwrap();
            }
            while all.len() < 2 {
                queue.wait(&mut batch).await;
                let done =
                    batch.drain(..).map(|one| (one.ticket, one.result.is_ok(), begun.elapsed().as_secs()));
                all.extend(done);
            }
            all
        };
        bus.plant_for(Fault::DelayOutcomes(Duration::from_secs(5)), |topic| topic == "t");
        assert_eq!(outcomes().await, [(1, true, 0), (0, true, 5)]);
        bus.clear();
        bus.plant_for(Fault::FailWrites(1000), |topic| topic == "u");
        let mut failed = outcomes().await;
        failed.sort_unstable();
        assert_eq!(failed, [(0, true, 0), (1, false, 0)]);
        bus.clear();
        bus.plant_for(Fault::FailCommits, |topic| topic == "u");
        let mut reader = bus.reader(ReaderConfig::new("r", Some("g".to_owned()))).await.unwrap();
        let [one, two] = ["t", "u"].map(|name| TopicPartition::new(name, 0));
        assert_eq!(reader.commit(commit(&one, 1)).await, Ok(()));
        assert!(reader.commit([commit(&one, 1), commit(&two, 1)].concat()).await.is_err());
    }
}
