//! How fast a backlog grows and shrinks, from looks at it that others have asked for.

use std::{collections::VecDeque, sync::Arc, time::Duration};

/// Looks that are remembered, at most.
const SAMPLES_MAX: usize = 16;

/// The least time between two of them, and the least time that a rate is taken over.
const APART: Duration = Duration::from_secs(1);

/// Older ones say nothing of now.
const MEMORY: Duration = Duration::from_mins(1);

/// Messages a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) written_per_second: f64,
    pub(super) settled_per_second: f64,
}

/// What was seen of one integration lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    /// The bus's id of the topic, and its generation.
    topic: (Arc<str>, u64),
    seen: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    written: u64,
    settled: u64,
}

impl Samples {
    /// Takes a look, and tells the rates since the oldest that is remembered, if that was long enough ago. `now` is
    /// counted from any beginning.
    pub(super) fn add(
        &mut self,
        topic: (Arc<str>, u64),
        now: Duration,
        written: u64,
        settled: u64,
    ) -> Option<Rates> {
        let went_back = |last: &Sample| last.written > written || last.settled > settled;
        if self.topic != topic || self.seen.back().is_some_and(went_back) {
            self.topic = topic;
            self.seen.clear();
        }
        while self.seen.front().is_some_and(|oldest| now.saturating_sub(oldest.at) > MEMORY) {
            self.seen.pop_front();
        }
        let rates = self.seen.front().and_then(|oldest| {
            let seconds = now.checked_sub(oldest.at).filter(|over| *over >= APART)?.as_secs_f64();
            Some(Rates {
                written_per_second: (written - oldest.written) as f64 / seconds,
                settled_per_second: (settled - oldest.settled) as f64 / seconds,
            })
        });
        if self.seen.back().is_none_or(|last| now.saturating_sub(last.at) >= APART) {
            if self.seen.len() == SAMPLES_MAX {
                self.seen.pop_front();
            }
            self.seen.push_back(Sample { at: now, written, settled });
        }
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(id: &str, generation: u64) -> (Arc<str>, u64) {
        (id.into(), generation)
    }

    fn rates(written_per_second: f64, settled_per_second: f64) -> Option<Rates> {
        Some(Rates { written_per_second, settled_per_second })
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn rates_need_two_looks_that_lie_apart_and_are_of_the_last_seconds() {
        let mut samples = Samples::default();
        let mut add = |seconds, written, settled| samples.add(topic("a", 1), at(seconds), written, settled);
        assert_eq!(add(10.0, 100, 50), None);
        assert_eq!(add(10.5, 200, 60), None, "too close");
        assert_eq!(add(12.0, 300, 60), rates(100.0, 5.0), "since the first");
        for second in 13..40 {
            add(f64::from(second), 300, 60);
        }
        assert_eq!(add(40.0, 300, 60), rates(0.0, 0.0), "the burst is long over");
        assert_eq!(add(200.0, 400, 70), None, "nobody has looked for a while");
        assert_eq!(add(202.0, 404, 70), rates(2.0, 0.0));
    }

    #[test]
    fn another_topic_and_numbers_that_go_back_begin_anew() {
        let mut samples = Samples::default();
        let mut add = |topic, seconds, written| samples.add(topic, at(seconds), written, written);
        add(topic("a", 1), 0.0, 10);
        assert_eq!(add(topic("a", 2), 2.0, 20), None);
        assert_eq!(add(topic("b", 2), 4.0, 30), None);
        assert_eq!(add(topic("b", 2), 6.0, 20), None, "it went back");
        assert_eq!(add(topic("b", 2), 8.0, 30), rates(5.0, 5.0));
    }

    #[test]
    fn what_is_remembered_is_limited() {
        let mut samples = Samples::default();
        for i in 0..1_000_u32 {
            samples.add(topic("a", 1), at(f64::from(i) * 1.1), 0, 0);
            assert!(samples.seen.len() <= SAMPLES_MAX);
        }
    }
}
