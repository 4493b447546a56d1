//! A bus whose message writer does what a test tells it: keeps outcomes back, fails, is full.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tbmq_bus::{
    Admin, Bounds, Bus, ClusterInfo, Commit, Completion, CompletionQueue, Error, FencedWriter, GroupDetails,
    Membership, MembershipConfig, Outgoing, Reader, ReaderConfig, SubmitError, Ticket, TopicDetails,
    TopicHandle, TopicInfo, TopicPartition, TopicSpec, Writer, WriterConfig, Written, memory::MemoryBus,
};

/// What the message writer does with the next records.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mode {
    /// Writes them.
    #[default]
    Pass,
    /// Takes them and keeps the outcomes until the test gives them.
    Keep,
    /// Takes them and fails at once.
    Fail(Error),
    /// Takes none.
    Full(SubmitError),
}

#[derive(Debug)]
pub(crate) struct TestBus {
    pub(crate) inner: Arc<MemoryBus>,
    pub(crate) control: Arc<Control>,
    /// What the writer of sessions does.
    pub(crate) sessions: Arc<Control>,
    /// The administrator can't be reached.
    pub(crate) is_away: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) mode: Mutex<Mode>,
    /// Mode of the topics whose name contains this text; the others pass.
    pub(crate) only: Mutex<Option<String>>,
    kept: Mutex<Vec<(Ticket, Arc<CompletionQueue>)>>,
    pub(crate) submitted: AtomicUsize,
    pub(crate) refused: AtomicUsize,
}

impl Control {
    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    pub(crate) fn kept(&self) -> usize {
        self.kept.lock().len()
    }

    /// Gives the outcome of the kept record at this index.
    pub(crate) fn give(&self, index: usize, result: Result<(), Error>) {
        let (ticket, completions) = self.kept.lock().remove(index);
        let result = result.map(|()| Written { partition: 0, offset: 0 });
        completions.push([Completion { ticket, result }]);
    }
}

impl TestBus {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryBus::new(),
            control: Arc::default(),
            sessions: Arc::default(),
            is_away: Arc::default(),
        })
    }
}

#[async_trait]
impl Bus for TestBus {
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error> {
        let controls = [("ie-msg-producer", &self.control), ("client-session-producer", &self.sessions)];
        let control = controls.into_iter().find(|(name, _)| config.client_id.contains(name));
        let control = control.map(|(_, control)| control.clone());
        let inner = self.inner.writer(config).await?;
        Ok(match control {
            Some(control) => Arc::new(TestWriter { inner, control }),
            None => inner,
        })
    }

    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error> {
        self.inner.fenced_writer(name).await
    }

    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error> {
        self.inner.reader(config).await
    }

    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error> {
        self.inner.membership(config).await
    }

    fn admin(&self) -> Arc<dyn Admin> {
        Arc::new(TestAdmin { inner: self.inner.admin(), is_away: self.is_away.clone() })
    }
}

#[derive(Debug)]
struct TestAdmin {
    inner: Arc<dyn Admin>,
    is_away: Arc<AtomicBool>,
}

impl TestAdmin {
    fn reached(&self) -> Result<&dyn Admin, Error> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(Error::Unavailable("nobody answers".to_owned()));
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl Admin for TestAdmin {
    async fn create_topics(&self, specs: &[TopicSpec]) -> Vec<Result<bool, Error>> {
        match self.reached() {
            Ok(admin) => admin.create_topics(specs).await,
            Err(error) => vec![Err(error); specs.len()],
        }
    }

    async fn delete_topic(&self, name: &str) -> Result<bool, Error> {
        self.reached()?.delete_topic(name).await
    }

    async fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicInfo>>, Error> {
        self.reached()?.describe(names).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, Error> {
        self.reached()?.topics().await
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>, Error> {
        self.reached()?.bounds(partitions).await
    }

    async fn delete_records(&self, partition: &TopicPartition, before: u64) -> Result<(), Error> {
        self.reached()?.delete_records(partition, before).await
    }

    async fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        self.reached()?.committed(group, partitions).await
    }

    async fn cluster(&self) -> Result<ClusterInfo, Error> {
        self.reached()?.cluster().await
    }

    async fn topic_details(&self) -> Result<Vec<TopicDetails>, Error> {
        self.reached()?.topic_details().await
    }

    async fn groups(&self) -> Result<Vec<GroupDetails>, Error> {
        self.reached()?.groups().await
    }

    async fn group_commits(&self, groups: &[&str]) -> Vec<Result<Vec<Commit>, Error>> {
        match self.reached() {
            Ok(admin) => admin.group_commits(groups).await,
            Err(error) => vec![Err(error); groups.len()],
        }
    }

    async fn delete_group(&self, name: &str) -> Result<bool, Error> {
        self.reached()?.delete_group(name).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.reached()?.ping().await
    }
}

#[derive(Debug)]
struct TestWriter {
    inner: Arc<dyn Writer>,
    control: Arc<Control>,
}

impl Writer for TestWriter {
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
        let applies = self.control.only.lock().as_ref().is_none_or(|only| topic.name().contains(only));
        let mode = if applies { self.control.mode.lock().clone() } else { Mode::Pass };
        match mode {
            Mode::Full(error) => {
                self.control.refused.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
            Mode::Pass => self.inner.submit(topic, record, ticket, completions)?,
            Mode::Keep => self.control.kept.lock().push((ticket, completions.clone())),
            Mode::Fail(error) => completions.push([Completion { ticket, result: Err(error) }]),
        }
        self.control.submitted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn in_flight_bytes(&self) -> usize {
        self.inner.in_flight_bytes()
    }
}
