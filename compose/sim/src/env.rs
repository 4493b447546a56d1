//! What all processes of the simulation share: randomness, time, the bus, the store, the books.

use rand::{Rng as _, rngs::StdRng};
use tbmq_integration::Millis;
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

use crate::{Bug, books::Books, net::Net, remote::Remote, settings::EPOCH_MS, sql::Sql, trace::Trace};

/// The world without its processes.
pub(crate) struct Env {
    pub(crate) rng: StdRng,
    pub(crate) now: Millis,
    /// Faults have ended.
    pub(crate) is_calm: bool,
    pub(crate) bug: Option<Bug>,
    pub(crate) net: Net,
    pub(crate) sql: Sql,
    pub(crate) remote: Remote,
    pub(crate) books: Books,
    pub(crate) trace: Trace,
}

impl Env {
    /// True once in `n` times, while there are faults.
    pub(crate) fn mishap(&mut self, n: u32) -> bool {
        !self.is_calm && self.rng.random_range(0..n) == 0
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(self.rng.random())
    }

    pub(crate) fn wall_ms(&self) -> i64 {
        EPOCH_MS + self.now.0 as i64
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// A few letters that tell integrations apart.
pub(crate) fn short(id: IntegrationId) -> String {
    id.to_string()[..4].to_owned()
}

/// Writes a line of the trace.
macro_rules! note {
    ($env:expr, $($what:tt)*) => { $env.trace.line($env.now, format_args!($($what)*)) };
}
pub(crate) use note;
