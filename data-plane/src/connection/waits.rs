//! How long publishers wait for PUBACK and PUBREC, and who has a will: what a connection measures.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use tbmq_service::{
    metrics::Durations,
    trace::{Span, TraceContext},
};

use super::Connection;

/// Kept when nobody waits, so that one publish at a time costs no allocation.
const CAPACITY_KEPT: usize = 4;

/// Publishes that are not acknowledged, in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Waits(VecDeque<Wait>);

#[derive(Debug)]
struct Wait {
    number: u64,
    since: Instant,
    /// If it is traced.
    trace: Option<Box<TraceContext>>,
}

impl Waits {
    /// A publish with this number was read at this time.
    pub(super) fn begin(&mut self, number: u64, since: Instant, span: Option<&Arc<Span>>) {
        let trace = span.map(|span| Box::new(span.context().clone()));
        self.0.push_back(Wait { number, since, trace });
    }

    /// All with lower numbers are acknowledged.
    pub(super) fn end_below(&mut self, number: u64, durations: &Durations) {
        if self.0.front().is_none_or(|first| first.number >= number) {
            return;
        }
        let now = Instant::now();
        while let Some(wait) = self.0.pop_front_if(|wait| wait.number < number) {
            durations.observe_traced(now.saturating_duration_since(wait.since), wait.trace.as_deref());
        }
        if self.0.is_empty() && self.0.capacity() > CAPACITY_KEPT {
            self.0 = VecDeque::new();
        }
    }

    /// They will never be acknowledged to anybody.
    pub(super) fn clear(&mut self) {
        self.0 = VecDeque::new();
    }
}

impl Connection {
    /// Measures what this turn has done.
    pub(super) fn measure(&mut self) {
        if self.link.is_some() {
            self.waits.end_below(self.session.acknowledged_below(), &self.plane.metrics.puback);
        } else {
            self.waits.clear();
        }
        self.tell_whether_it_has_a_will(self.session.will().is_some());
    }

    /// Counts the session among those with a will, or no more.
    pub(super) fn tell_whether_it_has_a_will(&mut self, has_will: bool) {
        if std::mem::replace(&mut self.has_will, has_will) != has_will {
            self.plane.metrics.last_wills.inc_by(if has_will { 1 } else { -1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_acknowledged_is_measured_and_once() {
        let (mut waits, durations) = (Waits::default(), Durations::new());
        let since = Instant::now();
        for number in 3..103 {
            waits.begin(number, since, None);
        }
        waits.end_below(3, &durations);
        assert_eq!(durations.count(), 0);
        waits.end_below(5, &durations);
        waits.end_below(5, &durations);
        assert_eq!(durations.count(), 2);
        waits.end_below(103, &durations);
        assert_eq!((durations.count(), waits.0.capacity()), (100, 0), "nothing is kept of a burst");
    }
}
