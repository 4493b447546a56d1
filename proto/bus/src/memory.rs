//! The bus in memory: for tests and simulation. What it holds goes with it.
//!
//! What is submitted is written, and answered, before `submit` returns, on the caller's thread. There are no other
//! threads, and all time is tokio's: deadlines, sessions, retention, and timestamps unless a clock is given. So a
//! simulation on one thread with `tokio::time::pause` runs the same way every time; give it a clock with a fixed
//! beginning for the same timestamps, too.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{
    Admin, Bus, Error, FencedWriter, Membership, MembershipConfig, Reader, ReaderConfig, Writer,
    WriterConfig,
    log::{
        Clock, Log, runtime_clock,
        storage::{Image, Nothing},
    },
};

/// A bus in memory.
pub struct MemoryBus {
    log: Log,
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryBus")
    }
}

impl MemoryBus {
    /// An empty bus.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new() -> Arc<Self> {
        Self::open(runtime_clock())
    }

    /// An empty bus with a clock of its own, in epoch ms, for timestamps, retention and compaction.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn with_clock(clock: impl Fn() -> i64 + Send + Sync + 'static) -> Arc<Self> {
        Self::open(Arc::new(clock))
    }

    fn open(clock: Clock) -> Arc<Self> {
        let log = Log::open(Box::new(Nothing), Image::default(), usize::MAX, clock);
        Arc::new(Self { log: log.expect("a log without a storage has nothing that can fail") })
    }

    /// For tests: while held, nothing that is submitted is written, so writers fill up and deadlines pass.
    pub fn hold(&self, held: bool) {
        self.log.hold(held);
    }

    /// For tests: ends the session of a client's members of a group, as if they had been silent for too long. `false`
    /// when there is none.
    pub fn expire(&self, group: &str, client_id: &str) -> bool {
        self.log.expire(group, client_id)
    }

    /// Applies retention and compaction at once, however little there is to gain.
    pub async fn clean_now(&self) -> Result<(), Error> {
        self.log.clean().await
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error> {
        self.log.writer(config).await
    }

    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error> {
        self.log.fenced_writer(name).await
    }

    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error> {
        self.log.reader(config).await
    }

    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error> {
        self.log.membership(config).await
    }

    fn admin(&self) -> Arc<dyn Admin> {
        self.log.admin()
    }
}
