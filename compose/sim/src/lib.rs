//! A deployment in one thread: two control planes, two executors and a data plane over the memory bus, driven from one
//! seed, in virtual time, with faults; what must never happen (architecture §5) is checked after each step.
//!
//! The processes are thin drivers around the real machines of `tbmq-integration` and the real subscription tree; the
//! bus is the real memory bus behind the real fault wrapper. What is modelled: the store (`sql.rs`), and the remote ends
//! (`remote.rs`). A driver's awaits are places where it may stall, die or be overtaken, so each is a turn of its own.
//!
//! At the end faults stop, and everything must settle: each enabled integration runs its newest revision on exactly one
//! executor, which its status names, and every message has exactly one fate. Then the bus is compacted and every
//! process is started anew, and it must settle once more.
//!
//! [`Bug`]s can be planted to see that they are found.
//!
//! A seed belongs to one version of this crate: whatever draws more or less from it changes what it means.
#![warn(missing_docs)]

mod books;
mod control;
mod data;
mod env;
mod executor;
mod net;
mod remote;
mod settings;
mod sql;
mod trace;
mod world;

use std::{fmt, panic::AssertUnwindSafe, str::FromStr};

pub use crate::{
    books::{Counts, Invariant, Violation},
    trace::Trace,
};

/// A bug that is planted, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Executors hand over and commit without looking at their lease.
    IgnoreLease,
    /// Every commit is one too far.
    CommitAhead,
    /// The relayer writes without a fence.
    RelayUnfenced,
    /// The data plane acknowledges what it has submitted.
    AcknowledgeEarly,
    /// Readers do not tell what retention has removed.
    SwallowGaps,
    /// The data plane serves before it has read the filters.
    ServeEarly,
    /// The control plane saves what no executor has accepted.
    SaveUnasked,
    /// Executors begin where somebody has committed, whatever topic that was.
    TrustOldCommits,
    /// Executors make one attempt more than the document says.
    RetryOnceMore,
    /// Executors run what they have restored before they have come to the end.
    RestoreEarly,
    /// Executors commit above a message whose dead letter is not written yet.
    BuryUnwritten,
}

impl Bug {
    /// All of them, with the invariant that each breaks.
    pub const ALL: &[(Self, &str, Invariant)] = &[
        (Self::IgnoreLease, "ignore-lease", Invariant::OneOwner),
        (Self::CommitAhead, "commit-ahead", Invariant::CommitAboveOpen),
        (Self::RelayUnfenced, "relay-unfenced", Invariant::RevisionsRise),
        (Self::AcknowledgeEarly, "acknowledge-early", Invariant::Acknowledged),
        (Self::SwallowGaps, "swallow-gaps", Invariant::Books),
        (Self::ServeEarly, "serve-early", Invariant::KnownBeforeServed),
        (Self::SaveUnasked, "save-unasked", Invariant::Accepted),
        (Self::TrustOldCommits, "trust-old-commits", Invariant::CommitAboveOpen),
        (Self::RetryOnceMore, "retry-once-more", Invariant::Attempts),
        (Self::RestoreEarly, "restore-early", Invariant::Restored),
        (Self::BuryUnwritten, "bury-unwritten", Invariant::DeadLetters),
    ];
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.iter().find(|(bug, ..)| bug == self);
        f.write_str(found.map_or("unknown", |(_, name, _)| name))
    }
}

impl FromStr for Bug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, name, _)| *name == text);
        let names = || Self::ALL.iter().map(|(_, name, _)| *name).collect::<Vec<_>>().join(", ");
        found.map(|(bug, ..)| *bug).ok_or_else(|| format!("{text:?} is none of {}", names()))
    }
}

/// How to run a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A bug to be planted.
    pub bug: Option<Bug>,
    /// Whether the lines of the trace are kept, or only their hash.
    pub keeps_lines: bool,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What happened.
    pub trace: Trace,
    /// What it has gone through.
    pub counts: Counts,
    /// What must not have happened, if it did; the run ended there.
    pub violation: Option<Violation>,
}

/// Runs a seed once.
pub fn run(seed: u64, options: Options) -> Report {
    let mut world = world::World::new(seed, options);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    let mut report = world.report();
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = text.unwrap_or_else(|| "a panic without a text".to_owned());
        report.violation = Some(Violation { invariant: Invariant::NoPanic, text });
    }
    report
}

/// Runs a seed twice: the runs must be equal.
pub fn run_twice(seed: u64, options: Options) -> Report {
    let mut first = run(seed, options);
    let second = run(seed, options);
    if first != second && first.violation.is_none() {
        let text = format!(
            "{} lines with hash {:016x}, then {} with {:016x}",
            first.trace.length(),
            first.trace.hash(),
            second.trace.length(),
            second.trace.hash()
        );
        first.violation = Some(Violation { invariant: Invariant::Repeats, text });
    }
    first
}
