//! What every adapter promises, as tests over a [`Fixture`]; [`contract!`] instantiates them all for one adapter.
//!
//! Servers may be shared by all tests of a run: every test takes its own topics and groups ([`Fixture::unique`]),
//! expects rising and not adjacent offsets, and waits on conditions within [`within`].

use std::{future::Future, sync::Arc, time::Duration};

use tbmq_bus::{
    Admin, BatchRecord, Bounds, Bus, CleanupPolicy, Commit, Completion, CompletionQueue, Error, FencedWriter,
    Membership, MembershipConfig, MembershipEvent, Outgoing, Reader, ReaderConfig, ReaderEvent, Record,
    Start, SubmitError, TopicPartition, TopicSpec, Writer, WriterConfig, Written, write,
};

/// Key of the records that [`Fixture::force_compaction`] may write; the tests overlook them.
pub(crate) const FILLER_KEY: &[u8] = b"filler";

/// An adapter under test.
pub(crate) trait Fixture: Sized {
    /// Starts or finds the bus; `None` skips the test, after the fixture has said why.
    async fn start() -> Option<Self>;

    /// The bus.
    fn bus(&self) -> Arc<dyn Bus>;

    /// A name that no other test uses.
    fn unique(&self, what: &str) -> String {
        format!("{what}-{}", uuid::Uuid::now_v7().simple())
    }

    /// How long a single expectation may take.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// Settings of a compacted topic with which [`Fixture::force_compaction`] acts soon.
    fn compaction_settings(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Does what makes the adapter compact this partition soon. The test calls it again and again until what it
    /// reads is compacted. May write records with [`FILLER_KEY`].
    async fn force_compaction(&self, partition: &TopicPartition);

    /// Holds outcomes back, if the adapter can; otherwise the writer's linger has to do.
    fn hold_writes(&self, _held: bool) {}

    /// Makes the session of a member expire; `false` when the adapter can't.
    async fn expire_session(&self, _group: &str, _client_id: &str) -> bool {
        false
    }

    /// The same data behind a newly opened bus, after the old one was closed; `None` when the adapter keeps nothing.
    async fn reopen(&mut self) -> Option<Arc<dyn Bus>> {
        None
    }
}

/// Waits for a future, at most so long.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {limit:?} in vain for: {what}"),
    }
}

/// Instantiates the suite for a [`Fixture`].
macro_rules! contract {
    ($fixture:ty) => {
        crate::contract::contract! { @tests $fixture:
            records_are_read_in_the_order_of_submission
        }
    };
    (@tests $fixture:ty: $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(mut fixture) = <$fixture as crate::contract::Fixture>::start().await else { return };
                crate::contract::within(
                    std::time::Duration::from_secs(120),
                    "the whole test",
                    crate::contract::$name(&mut fixture),
                )
                .await;
            }
        )*
    };
}
pub(crate) use contract;
