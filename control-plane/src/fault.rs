//! Named places between two steps of a change, where a test has the control plane die.
//!
//! Each is passed between two things that outlive the process: a statement or commit in SQL, a record or topic on the
//! bus, an answer to the caller. In production nothing happens there.

use std::{fmt, sync::Arc};

/// Declares the places, so that none is missing among [`Point::ALL`].
macro_rules! points {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A place between two steps.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point { $($(#[$doc])* $name,)* }

        impl Point {
            /// Every place there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

points! {
    /// A call was checked; no executor was asked.
    Checked,
    /// The question to an executor is on the bus.
    Asked,
    /// An executor has accepted; nothing is saved.
    Validated,
    /// Everything is written in the transaction; it is not committed.
    Saving,
    /// It is committed; the relayer has not been told.
    Saved,
    /// The call waits no longer for nodes; it is not answered.
    Answering,
    /// The relayer has read the marks.
    Marked,
    /// Message topics exist; their lives do not say so.
    TopicsCreated,
    /// Lives say that the message topics exist; their records are not on the bus.
    TopicsNoted,
    /// Subscriptions and configurations are on the bus; the store does not say so.
    Written,
    /// The store says what was written; waiting calls have not been told.
    Noted,
    /// The relayer has read marks of credentials, settings or blocks.
    AuthMarked,
    /// Their records are on the bus; the store does not say so.
    AuthWritten,
    /// The store says what was written of them; waiting calls have not been told.
    AuthNoted,
    /// The mark of a deleted integration was cleared.
    MarkCleared,
    /// A withdrawal is on the bus; the life does not say so.
    Withdrawn,
    /// The deletion is on the downlink topic; the life does not say so.
    Dismissed,
    /// A message topic is deleted; its life does not say so.
    TopicDeleted,
    /// A life was moved on.
    LifeMoved,
    /// The deletion was tombstoned; the life is still there.
    Forgotten,
}

/// Decides at each place whether the process dies there.
type Hook = dyn Fn(Point) -> bool + Send + Sync;

/// What happens at the places; nothing unless a test says so.
#[derive(Clone, Default)]
pub struct Faults {
    hook: Option<Arc<Hook>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("armed", &self.hook.is_some()).finish()
    }
}

impl Faults {
    /// Asks `hook` at each place. Where it says yes, the task goes no further, for ever: it is for whoever said so to
    /// end everything else before anything else is done.
    pub fn at(hook: impl Fn(Point) -> bool + Send + Sync + 'static) -> Self {
        Self { hook: Some(Arc::new(hook)) }
    }

    /// Passes a place, or never returns.
    pub(crate) async fn pass(&self, point: Point) {
        if self.hook.as_ref().is_some_and(|hook| hook(point)) {
            std::future::pending::<()>().await;
        }
    }
}
