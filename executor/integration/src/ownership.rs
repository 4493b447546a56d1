//! Which downlink partitions of one kind are ours, and whether we may act on them (architecture §4.18).
//!
//! The group assigns a partition; a claim on the topic of owners tells everyone, and the claim's offset is the epoch;
//! the lease tells that it still holds: the group's coordinator took a commit from us, as a member of its present
//! generation, not longer ago than two thirds of the session timeout. Nobody else can have been assigned anything of
//! ours within that time.
//!
//! Invariants: a partition begins only after its claim was written; it runs under one epoch at a time, and never again
//! under an earlier one; a later claim of another process stops it, and only a renewal that was sent after that claim
//! had been seen (so that it is we who are in the group, and the claim came late) lets it be claimed anew.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::Millis;

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a claim for each of these, then say [`Ownership::claimed`] with the same number.
    Claim {
        /// Tells this attempt from others of the same partitions.
        attempt: u64,
        /// The partitions.
        partitions: Vec<u32>,
    },
    /// The partition is ours under this epoch: restore it, and run what it holds.
    Begin {
        /// The partition.
        partition: u32,
        /// Offset of our claim.
        epoch: u64,
    },
    /// Another process has claimed the partition: stop what runs at once, and commit nothing.
    Stop {
        /// The partition.
        partition: u32,
    },
}

/// A renewal of the lease that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    number: u64,
    sent: Millis,
}

/// The assigned partitions of one kind.
#[derive(Debug)]
pub struct Ownership {
    lease_for: Duration,
    lease_until: Millis,
    held: BTreeMap<u32, Holding>,
    attempts: u64,
    renewals: u64,
    outbox: VecDeque<Step>,
}

#[derive(Debug)]
struct Holding {
    phase: Phase,
    /// The highest epoch of another process's claim since the assignment; `None`: no such claim.
    foreign: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Claiming {
        attempt: u64,
    },
    Held {
        epoch: u64,
    },
    /// With the number of the last renewal that had been sent when the other claim was seen.
    Superseded {
        after: u64,
    },
}

impl Ownership {
    /// Nothing is assigned. A member that is silent for `session_timeout` loses its partitions.
    pub fn new(session_timeout: Duration) -> Self {
        Self {
            lease_for: session_timeout * 2 / 3,
            lease_until: Millis(0),
            held: BTreeMap::new(),
            attempts: 0,
            renewals: 0,
            outbox: VecDeque::new(),
        }
    }

    /// The group has assigned these, in addition to what is assigned already.
    pub fn assigned(&mut self, partitions: impl IntoIterator<Item = u32>) {
        self.claim(partitions.into_iter().collect());
    }

    /// The claim of an attempt was written at this offset. Says nothing new about a partition that is not being
    /// claimed by that attempt any more.
    pub fn claimed(&mut self, attempt: u64, partition: u32, epoch: u64) {
        let renewals = self.renewals;
        let Some(holding) = self.held.get_mut(&partition) else { return };
        if holding.phase != (Phase::Claiming { attempt }) {
            return;
        }
        if holding.foreign.is_some_and(|foreign| foreign > epoch) {
            holding.phase = Phase::Superseded { after: renewals };
        } else {
            holding.phase = Phase::Held { epoch };
            self.outbox.push_back(Step::Begin { partition, epoch });
        }
    }

    /// Another process's claim was read from the topic of owners.
    pub fn contested(&mut self, partition: u32, epoch: u64) {
        let renewals = self.renewals;
        let Some(holding) = self.held.get_mut(&partition) else { return };
        if holding.foreign.is_some_and(|foreign| foreign >= epoch) {
            return;
        }
        holding.foreign = Some(epoch);
        if let Phase::Held { epoch: own } = holding.phase
            && own < epoch
        {
            holding.phase = Phase::Superseded { after: renewals };
            self.outbox.push_back(Step::Stop { partition });
        }
    }

    /// These are ours no more: revoked or lost.
    pub fn gone(&mut self, partitions: impl IntoIterator<Item = u32>) {
        for partition in partitions {
            self.held.remove(&partition);
        }
        if self.held.is_empty() {
            self.lease_until = Millis(0);
        }
    }

    /// Begins a renewal: the driver sends a commit as a member of the group now. `None` while nothing is assigned.
    pub fn renew(&mut self, now: Millis) -> Option<Renewal> {
        if self.held.is_empty() {
            return None;
        }
        self.renewals += 1;
        Some(Renewal { number: self.renewals, sent: now })
    }

    /// The group took the commit of this renewal.
    pub fn renewed(&mut self, renewal: Renewal) {
        if self.held.is_empty() {
            return;
        }
        self.lease_until = self.lease_until.max(renewal.sent + self.lease_for);
        let is_late = |holding: &Holding| matches!(holding.phase, Phase::Superseded { after } if after < renewal.number);
        let again: Vec<u32> = self
            .held
            .iter()
            .filter(|(_, holding)| is_late(holding))
            .map(|(partition, _)| *partition)
            .collect();
        if !again.is_empty() {
            self.claim(again);
        }
    }

    /// Until when messages may be handed to sinks and offsets may be committed.
    pub fn lease_until(&self) -> Millis {
        self.lease_until
    }

    /// The epoch under which a partition is held, if it is.
    pub fn epoch(&self, partition: u32) -> Option<u64> {
        match self.held.get(&partition)?.phase {
            Phase::Held { epoch } => Some(epoch),
            Phase::Claiming { .. } | Phase::Superseded { .. } => None,
        }
    }

    /// Whether an attempt to claim is still of use.
    pub fn is_claiming(&self, attempt: u64) -> bool {
        self.held.values().any(|holding| holding.phase == Phase::Claiming { attempt })
    }

    /// Everything that is assigned.
    pub fn partitions(&self) -> impl Iterator<Item = u32> {
        self.held.keys().copied()
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Step> {
        self.outbox.pop_front()
    }

    fn claim(&mut self, partitions: Vec<u32>) {
        self.attempts += 1;
        let attempt = self.attempts;
        for partition in &partitions {
            self.held.insert(*partition, Holding { phase: Phase::Claiming { attempt }, foreign: None });
        }
        self.outbox.push_back(Step::Claim { attempt, partitions });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(9);

    fn steps(ownership: &mut Ownership) -> Vec<Step> {
        std::iter::from_fn(|| ownership.poll()).collect()
    }

    fn claim(attempt: u64, partitions: &[u32]) -> Step {
        Step::Claim { attempt, partitions: partitions.to_vec() }
    }

    /// Holds partition 7 under epoch 3.
    fn holding() -> Ownership {
        let mut ownership = Ownership::new(SESSION);
        ownership.assigned([7]);
        ownership.claimed(1, 7, 3);
        assert_eq!(steps(&mut ownership), [claim(1, &[7]), Step::Begin { partition: 7, epoch: 3 }]);
        ownership
    }

    #[test]
    fn a_partition_begins_once_its_claim_is_written() {
        let mut ownership = Ownership::new(SESSION);
        ownership.assigned([1, 2]);
        assert_eq!(steps(&mut ownership), [claim(1, &[1, 2])]);
        ownership.claimed(1, 2, 10);
        assert_eq!(steps(&mut ownership), [Step::Begin { partition: 2, epoch: 10 }]);
        assert_eq!((ownership.epoch(1), ownership.epoch(2)), (None, Some(10)));
    }

    #[test]
    fn a_claim_that_comes_back_after_the_partition_has_gone_begins_nothing() {
        let mut ownership = Ownership::new(SESSION);
        ownership.assigned([1]);
        ownership.gone([1]);
        assert!(!ownership.is_claiming(1));
        ownership.claimed(1, 1, 10);
        ownership.assigned([1]);
        ownership.claimed(1, 1, 10);
        assert_eq!(steps(&mut ownership), [claim(1, &[1]), claim(2, &[1])], "the first attempt is void");
    }

    #[test]
    fn the_lease_counts_from_when_the_renewal_was_sent() {
        let mut ownership = holding();
        assert_eq!(ownership.lease_until(), Millis(0), "an assignment alone is no lease");
        let first = ownership.renew(Millis(100)).unwrap();
        let second = ownership.renew(Millis(400)).unwrap();
        ownership.renewed(second);
        assert_eq!(ownership.lease_until(), Millis(6400));
        ownership.renewed(first);
        assert_eq!(ownership.lease_until(), Millis(6400), "a late answer takes nothing back");
    }

    #[test]
    fn without_partitions_there_is_no_lease() {
        let mut ownership = holding();
        let renewal = ownership.renew(Millis(100)).unwrap();
        ownership.renewed(renewal);
        ownership.gone([7]);
        assert_eq!((ownership.lease_until(), ownership.renew(Millis(200))), (Millis(0), None));
        ownership.renewed(renewal);
        assert_eq!(ownership.lease_until(), Millis(0));
    }

    #[test]
    fn a_later_claim_stops_it_and_an_earlier_one_does_not() {
        let mut ownership = holding();
        ownership.contested(7, 2);
        ownership.contested(8, 9);
        assert_eq!(steps(&mut ownership), []);
        ownership.contested(7, 4);
        ownership.contested(7, 4);
        assert_eq!(steps(&mut ownership), [Step::Stop { partition: 7 }]);
        assert_eq!(ownership.epoch(7), None);
    }

    #[test]
    fn a_claim_that_was_overtaken_before_it_was_confirmed_begins_nothing() {
        let mut ownership = Ownership::new(SESSION);
        ownership.assigned([7]);
        ownership.contested(7, 4);
        ownership.claimed(1, 7, 3);
        assert_eq!(steps(&mut ownership), [claim(1, &[7])]);
        let mut ownership = Ownership::new(SESSION);
        ownership.assigned([7]);
        ownership.contested(7, 4);
        ownership.claimed(1, 7, 5);
        assert_eq!(steps(&mut ownership).len(), 2, "ours is the later one");
    }

    #[test]
    fn only_a_renewal_sent_after_the_other_claim_lets_it_be_claimed_anew() {
        let mut ownership = holding();
        let before = ownership.renew(Millis(100)).unwrap();
        ownership.contested(7, 4);
        steps(&mut ownership);
        ownership.renewed(before);
        assert_eq!(steps(&mut ownership), [], "it was sent when nobody knew");
        let after = ownership.renew(Millis(200)).unwrap();
        ownership.renewed(after);
        assert_eq!(steps(&mut ownership), [claim(2, &[7])]);
        ownership.claimed(2, 7, 5);
        assert_eq!(steps(&mut ownership), [Step::Begin { partition: 7, epoch: 5 }]);
        ownership.contested(7, 4);
        assert_eq!(steps(&mut ownership), [], "read again, it is history");
    }
}
