//! Seed → rounds. Pure, and stable: the same seed means the same rounds in every later version, as long as the list of
//! faults stays the same.

use std::{fmt, str::FromStr, time::Duration};

use crate::instance::Plane;

/// What may happen to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// kill -9 of a process, started again some time later.
    Kill(Plane),
    /// SIGSTOP for up to three session timeouts, then SIGCONT.
    Freeze(Plane),
    /// A second process with a service id that is in use.
    Twin(Plane),
    /// The wall clock of one process jumps, and back.
    ClockStep(Plane),
    /// Kafka is stopped cleanly and started again.
    KafkaRestart,
    /// Kafka is killed and started again.
    KafkaKill,
    /// PostgreSQL is stopped cleanly and started again.
    PostgresRestart,
    /// PostgreSQL is killed and started again.
    PostgresKill,
    /// The file system of Kafka's logs is full for a while.
    DiskFull,
    /// A sink refuses connections.
    SinkDown,
    /// A sink takes requests and never answers.
    SinkBlackHole,
    /// A sink answers 500.
    SinkFailing,
    /// The message topic of an integration is deleted.
    MessagesDeleted,
    /// A topic of configurations is deleted.
    ConfigurationDeleted,
}

impl Fault {
    /// All of them. The order is part of what a seed means: add at the end.
    pub const ALL: [Self; 22] = [
        Self::Kill(Plane::Control),
        Self::Kill(Plane::Data),
        Self::Kill(Plane::Executor),
        Self::Freeze(Plane::Control),
        Self::Freeze(Plane::Data),
        Self::Freeze(Plane::Executor),
        Self::Twin(Plane::Control),
        Self::Twin(Plane::Data),
        Self::Twin(Plane::Executor),
        Self::ClockStep(Plane::Control),
        Self::ClockStep(Plane::Data),
        Self::ClockStep(Plane::Executor),
        Self::KafkaRestart,
        Self::KafkaKill,
        Self::PostgresRestart,
        Self::PostgresKill,
        Self::DiskFull,
        Self::SinkDown,
        Self::SinkBlackHole,
        Self::SinkFailing,
        Self::MessagesDeleted,
        Self::ConfigurationDeleted,
    ];

    /// Those whose name begins with `text`: `kill` is three of them.
    pub fn named(text: &str) -> Vec<Self> {
        Self::ALL.into_iter().filter(|fault| fault.to_string().starts_with(text)).collect()
    }

    /// The shortest and the longest time between the fault and its healing, in ms.
    fn lasts_ms(self, session_timeout: Duration) -> (u64, u64) {
        let session_timeout = session_timeout.as_millis() as u64;
        match self {
            Self::Kill(_) => (0, 3_000),
            Self::Freeze(_) => (500, 3 * session_timeout),
            // At most: it ends when one of the two is gone.
            Self::Twin(_) => (15_000, 15_000),
            Self::ClockStep(_) => (3_000, 8_000),
            Self::KafkaRestart | Self::KafkaKill | Self::PostgresRestart | Self::PostgresKill => (0, 8_000),
            Self::DiskFull => (2_000, 6_000),
            Self::SinkDown | Self::SinkBlackHole | Self::SinkFailing => (2_000, 12_000),
            Self::MessagesDeleted | Self::ConfigurationDeleted => (0, 0),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, plane) = match self {
            Self::Kill(plane) => ("kill", Some(plane)),
            Self::Freeze(plane) => ("freeze", Some(plane)),
            Self::Twin(plane) => ("twin", Some(plane)),
            Self::ClockStep(plane) => ("clock-step", Some(plane)),
            Self::KafkaRestart => ("kafka-restart", None),
            Self::KafkaKill => ("kafka-kill", None),
            Self::PostgresRestart => ("postgres-restart", None),
            Self::PostgresKill => ("postgres-kill", None),
            Self::DiskFull => ("disk-full", None),
            Self::SinkDown => ("sink-down", None),
            Self::SinkBlackHole => ("sink-black-hole", None),
            Self::SinkFailing => ("sink-500", None),
            Self::MessagesDeleted => ("messages-deleted", None),
            Self::ConfigurationDeleted => ("configuration-deleted", None),
        };
        f.write_str(what)?;
        plane.map_or(Ok(()), |plane| write!(f, "-{}", plane.name()))
    }
}

/// A text that names no fault.
#[derive(Debug)]
pub struct UnknownFault(String);

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = Fault::ALL.iter().map(ToString::to_string).collect();
        write!(f, "{:?} is no fault: {}", self.0, all.join(", "))
    }
}

impl std::error::Error for UnknownFault {}

/// Several faults by the beginning of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family(pub Vec<Fault>);

impl FromStr for Family {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let faults = Fault::named(text);
        if faults.is_empty() { Err(UnknownFault(text.to_owned())) } else { Ok(Self(faults)) }
    }
}

/// One round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// From 1.
    pub number: u32,
    /// What happens.
    pub fault: Fault,
    /// From the first publish to the fault.
    pub after: Duration,
    /// From the fault to its healing, where the fault does not end by itself.
    pub lasts: Duration,
    /// To whom: taken modulo the number of candidates.
    pub victim: u32,
    /// How far a clock jumps, s; negative is backwards.
    pub step_s: i64,
}

/// Draws rounds: the faults are dealt like cards, so that after `faults.len()` rounds each was there once.
///
/// # Panics
/// When `faults` is empty.
pub fn draw(seed: u64, rounds: u32, faults: &[Fault], session_timeout: Duration) -> Vec<Round> {
    let mut random = Random(seed);
    let mut deck: Vec<Fault> = Vec::new();
    let mut all = Vec::new();
    for number in 1..=rounds {
        if deck.is_empty() {
            deck = faults.to_vec();
        }
        let fault = deck.swap_remove(random.below(deck.len() as u64) as usize);
        let (shortest, longest) = fault.lasts_ms(session_timeout);
        all.push(Round {
            number,
            fault,
            after: Duration::from_millis(1_000 + random.below(3_000)),
            lasts: Duration::from_millis(shortest + random.below(longest - shortest + 1)),
            victim: random.below(1 << 16) as u32,
            step_s: random.below(7_200) as i64 - 3_600,
        });
    }
    all
}

/// `SplitMix64`: few lines that will not change under a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`. The bias of the modulo does not matter here.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SESSION: Duration = Duration::from_secs(6);

    #[test]
    fn a_seed_always_means_the_same_rounds() {
        assert_eq!(draw(7, 50, &Fault::ALL, SESSION), draw(7, 50, &Fault::ALL, SESSION));
        assert_ne!(draw(7, 50, &Fault::ALL, SESSION), draw(8, 50, &Fault::ALL, SESSION));
        // Pinned: a seed that once failed must stay the one that failed.
        let faults: Vec<String> =
            draw(7, 4, &Fault::ALL, SESSION).iter().map(|round| round.fault.to_string()).collect();
        assert_eq!(faults, ["kafka-kill", "twin-control", "freeze-control", "freeze-executor"]);
    }

    #[test]
    fn more_rounds_do_not_change_the_first_ones() {
        let (few, many) = (draw(3, 10, &Fault::ALL, SESSION), draw(3, 40, &Fault::ALL, SESSION));
        assert_eq!(few[..], many[..10]);
    }

    #[test]
    fn every_fault_is_dealt_once_before_any_is_dealt_twice() {
        let rounds = draw(1, 44, &Fault::ALL, SESSION);
        for deck in rounds.chunks(22) {
            assert_eq!(deck.iter().map(|round| round.fault).collect::<BTreeSet<_>>().len(), 22);
        }
    }

    #[test]
    fn a_freeze_lasts_at_most_three_session_timeouts() {
        let rounds = draw(5, 200, &[Fault::Freeze(Plane::Executor)], SESSION);
        let longest = rounds.iter().map(|round| round.lasts).max().unwrap();
        assert!(longest <= 3 * SESSION && longest > 2 * SESSION, "{longest:?}");
    }

    #[test]
    fn a_family_is_named_by_the_beginning_of_its_names() {
        let family: Family = "freeze".parse().unwrap();
        assert_eq!(family.0, [Plane::Control, Plane::Data, Plane::Executor].map(Fault::Freeze));
        assert!("frobnicate".parse::<Family>().unwrap_err().to_string().contains("kill-control"));
    }
}
