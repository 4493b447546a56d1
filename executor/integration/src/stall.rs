//! Whether anything gets through a running sink (architecture §4.20).

use std::time::Duration;

use crate::Millis;

/// A sink that has something to deliver, or whose remote end is away, and has shown no progress for a while.
///
/// Progress is what the remote end confirms; that attempts fail or messages are given up on is none.
#[derive(Debug)]
pub struct Stall {
    patience: Duration,
    /// Since when it has had something to do, or had its last progress.
    since: Option<Millis>,
    confirmed: u64,
    is_told: bool,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing has got through for the patience.
    Stalled,
    /// Something got through, or there is nothing left to do.
    Resumed,
}

impl Stall {
    /// A sink that has just started, to be reported after `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: None, confirmed: 0, is_told: false }
    }

    /// Takes what is seen now: whether there is something to do, and how many answers the remote end has confirmed so
    /// far.
    pub fn observe(&mut self, now: Millis, has_work: bool, confirmed: u64) -> Option<Change> {
        if !has_work {
            self.since = None;
        } else if confirmed != self.confirmed {
            self.since = Some(now);
        } else {
            self.since.get_or_insert(now);
        }
        self.confirmed = confirmed;
        let is_stalled = self.since.is_some_and(|since| since + self.patience <= now);
        if is_stalled == self.is_told {
            return None;
        }
        self.is_told = is_stalled;
        Some(if is_stalled { Change::Stalled } else { Change::Resumed })
    }

    /// Whether it was reported.
    pub fn is_stalled(&self) -> bool {
        self.is_told
    }

    /// When [`Stall::observe`] may have something to report although nothing happens.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.since.filter(|_| !self.is_told).map(|since| since + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Stall {
        Stall::new(Duration::from_secs(5))
    }

    #[test]
    fn no_progress_for_the_patience_is_told_once_and_the_next_progress_too() {
        let mut stall = machine();
        assert_eq!(stall.observe(Millis(1_000), true, 0), None);
        assert_eq!(stall.next_deadline(), Some(Millis(6_000)));
        assert_eq!(stall.observe(Millis(5_999), true, 0), None);
        assert_eq!(stall.observe(Millis(6_000), true, 0), Some(Change::Stalled));
        assert_eq!((stall.next_deadline(), stall.is_stalled()), (None, true));
        assert_eq!(stall.observe(Millis(60_000), true, 0), None);
        assert_eq!(stall.observe(Millis(60_001), true, 1), Some(Change::Resumed));
        assert_eq!(stall.observe(Millis(65_001), true, 1), Some(Change::Stalled));
    }

    #[test]
    fn slow_progress_is_progress_and_idleness_is_no_stall() {
        let mut stall = machine();
        for second in 0..60 {
            assert_eq!(stall.observe(Millis(second * 4_000), true, second), None);
        }
        assert_eq!(stall.observe(Millis(240_000), false, 60), None);
        assert_eq!(stall.next_deadline(), None);
        assert_eq!(stall.observe(Millis(900_000), true, 60), None, "it has just got something to do");
    }

    #[test]
    fn one_that_has_nothing_left_is_not_stalled_any_more() {
        let mut stall = machine();
        stall.observe(Millis(0), true, 0);
        assert_eq!(stall.observe(Millis(5_000), true, 0), Some(Change::Stalled));
        assert_eq!(stall.observe(Millis(5_001), false, 0), Some(Change::Resumed));
    }
}
