//! Counters of message processing, statistics events, and the limit on error events (spec §4.6, §8).

use std::{
    collections::{BTreeMap, VecDeque},
    str::FromStr,
    time::Duration,
};

use tbmq_proto::ids::IntegrationId;

use crate::Millis;

/// TBMQ's counters of one integration. At rest, and per attempt:
/// `total = successful + tmp_timeout + tmp_failed + timeout + failed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Attempts begun, so that a retry counts once more (UP-20).
    pub total: u64,
    /// Attempts that delivered.
    pub successful: u64,
    /// Attempts without an answer in time that are tried again.
    pub tmp_timeout: u64,
    /// Attempts that failed and are tried again.
    pub tmp_failed: u64,
    /// Last attempts without an answer in time.
    pub timeout: u64,
    /// Last attempts that failed.
    pub failed: u64,
    /// Packs whose last round had no failure.
    pub successful_iterations: u64,
    /// Rounds of packs with at least one failure.
    pub failed_iterations: u64,
}

impl Processor {
    /// Adds what was counted between `before` and `after`.
    pub fn add_difference(&mut self, before: &Self, after: &Self) {
        self.total += after.total - before.total;
        self.successful += after.successful - before.successful;
        self.tmp_timeout += after.tmp_timeout - before.tmp_timeout;
        self.tmp_failed += after.tmp_failed - before.tmp_failed;
        self.timeout += after.timeout - before.timeout;
        self.failed += after.failed - before.failed;
        self.successful_iterations += after.successful_iterations - before.successful_iterations;
        self.failed_iterations += after.failed_iterations - before.failed_iterations;
    }

    /// Names and values, as TBMQ's metric `integrationProcessor` labels them.
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("totalMsgs", self.total),
            ("successfulMsgs", self.successful),
            ("tmpTimeout", self.tmp_timeout),
            ("tmpFailed", self.tmp_failed),
            ("timeoutMsgs", self.timeout),
            ("failedMsgs", self.failed),
            ("successfulIterations", self.successful_iterations),
            ("failedIterations", self.failed_iterations),
        ]
    }
}

/// What a statistics event says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Messages delivered since the last event.
    pub processed: u64,
    /// Attempts that failed since the last event.
    pub errors: u64,
}

/// Collects statistics of one shard, and says when to tell them.
#[derive(Clone, Debug)]
pub struct Collector {
    current: Statistics,
    every: Option<Duration>,
    next: Option<Millis>,
}

impl Collector {
    /// Tells every so often, first after one period; `None`: never by time.
    pub fn new(every: Option<Duration>) -> Self {
        Self { current: Statistics::default(), every, next: None }
    }

    /// The integration runs from now on: periods begin.
    pub fn start(&mut self, now: Millis) {
        self.next = self.every.map(|every| now + every);
    }

    /// Adds to the counters.
    pub fn add(&mut self, processed: u64, errors: u64) {
        self.current.processed += processed;
        self.current.errors += errors;
    }

    /// When [`Collector::due`] has something to tell.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.next
    }

    /// What a period ends with, zeros included; the counters begin anew.
    pub fn due(&mut self, now: Millis) -> Option<Statistics> {
        let (next, every) = (self.next?, self.every?);
        if now < next {
            return None;
        }
        // At a fixed rate, but after a long sleep only once.
        self.next = Some(if now < next + every { next + every } else { now + every });
        Some(std::mem::take(&mut self.current))
    }

    /// The integration stops: what was not told yet, unless there is nothing to tell.
    pub fn stop(&mut self) -> Option<Statistics> {
        self.next = None;
        let last = std::mem::take(&mut self.current);
        (last != Statistics::default()).then_some(last)
    }
}

/// How many error events may pass, such as `5000:3600,100:60`: 5000 an hour and 100 a minute; all must admit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates(Vec<(u64, Duration)>);

/// A text that is no list of rates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of <count>:<seconds>, such as 5000:3600,100:60")]
pub struct InvalidRates(String);

impl FromStr for Rates {
    type Err = InvalidRates;

    fn from_str(text: &str) -> Result<Self, InvalidRates> {
        let rate = |part: &str| -> Option<(u64, Duration)> {
            let (count, seconds) = part.split_once(':')?;
            let seconds: u64 = seconds.trim().parse().ok().filter(|seconds| *seconds > 0)?;
            Some((count.trim().parse().ok()?, Duration::from_secs(seconds)))
        };
        let rates: Option<Vec<_>> = text.split(',').map(rate).collect();
        rates.map(Self).ok_or_else(|| InvalidRates(text.to_owned()))
    }
}

/// Whether an error event may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// As it is.
    Pass,
    /// Instead of it, once, an event that says that the limit is reached.
    PassNotice,
    /// No.
    Suppress,
}

/// The text of the event at [`Admission::PassNotice`].
pub const LIMIT_TEXT: &str = "Integration error rate limits reached!";

/// The limit on error events of a whole process, shared by all integrations.
#[derive(Debug)]
pub struct ErrorLimiter {
    buckets: Vec<Bucket>,
    /// Integrations that were told of the limit, and until when they are not told again.
    told: BTreeMap<IntegrationId, Millis>,
    told_order: VecDeque<(Millis, IntegrationId)>,
    quiet: Duration,
    capacity: usize,
}

#[derive(Debug)]
struct Bucket {
    capacity: u64,
    period: Duration,
    left: u64,
    refill_at: Option<Millis>,
}

impl ErrorLimiter {
    /// Over the limit each integration is told once per `quiet`; `capacity` integrations are remembered at most.
    pub fn new(rates: &Rates, quiet: Duration, capacity: usize) -> Self {
        let bucket = |(capacity, period): &(u64, Duration)| Bucket {
            capacity: *capacity,
            period: *period,
            left: *capacity,
            refill_at: None,
        };
        Self {
            buckets: rates.0.iter().map(bucket).collect(),
            told: BTreeMap::new(),
            told_order: VecDeque::new(),
            quiet,
            capacity: capacity.max(1),
        }
    }

    /// Decides about one event of an integration.
    pub fn admit(&mut self, now: Millis, integration: IntegrationId) -> Admission {
        for bucket in &mut self.buckets {
            // The full capacity comes back at each period's end (interval refill).
            if bucket.refill_at.is_none_or(|at| at <= now) {
                bucket.left = bucket.capacity;
                bucket.refill_at = Some(now + bucket.period);
            }
        }
        if self.buckets.iter().all(|bucket| bucket.left > 0) {
            self.buckets.iter_mut().for_each(|bucket| bucket.left -= 1);
            return Admission::Pass;
        }
        while let Some(&(until, oldest)) = self.told_order.front() {
            if until > now && self.told_order.len() < self.capacity {
                break;
            }
            self.told_order.pop_front();
            self.told.remove(&oldest);
        }
        if self.told.contains_key(&integration) {
            return Admission::Suppress;
        }
        let until = now + self.quiet;
        self.told.insert(integration, until);
        self.told_order.push_back((until, integration));
        Admission::PassNotice
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> IntegrationId {
        IntegrationId(Uuid::from_u128(n))
    }

    fn limiter(rates: &str, capacity: usize) -> ErrorLimiter {
        ErrorLimiter::new(&rates.parse().unwrap(), Duration::from_secs(3600), capacity)
    }

    #[test]
    fn all_rates_must_admit_and_come_back_at_once() {
        let mut limiter = limiter("3:3600,2:60", 10);
        assert_eq!(limiter.admit(Millis(0), id(1)), Admission::Pass);
        assert_eq!(limiter.admit(Millis(1), id(1)), Admission::Pass);
        assert_eq!(limiter.admit(Millis(2), id(1)), Admission::PassNotice);
        assert_eq!(limiter.admit(Millis(3), id(1)), Admission::Suppress);
        assert_eq!(limiter.admit(Millis(4), id(2)), Admission::PassNotice, "each integration is told once");
        assert_eq!(limiter.admit(Millis(60_000), id(1)), Admission::Pass);
        assert_eq!(limiter.admit(Millis(60_001), id(1)), Admission::Suppress, "the hour's rate is used up");
        assert_eq!(limiter.admit(Millis(3_600_000), id(1)), Admission::Pass);
    }

    #[test]
    fn the_memory_of_who_was_told_is_limited() {
        let mut limiter = limiter("0:60", 2);
        for n in 1..=3 {
            assert_eq!(limiter.admit(Millis(0), id(n)), Admission::PassNotice);
            assert!(limiter.told.len() <= 2);
        }
    }

    #[test]
    fn rates_are_read_or_refused() {
        assert_eq!(
            " 5000:3600, 100:60".parse(),
            Ok(Rates(vec![(5000, Duration::from_secs(3600)), (100, Duration::from_secs(60))]))
        );
        for bad in ["", "5", "5:0", "x:1", "1:1,"] {
            assert!(bad.parse::<Rates>().is_err(), "{bad}");
        }
    }

    #[test]
    fn statistics_are_told_per_period_and_at_the_end() {
        let mut collector = Collector::new(Some(Duration::from_secs(1)));
        collector.start(Millis(0));
        collector.add(2, 1);
        assert_eq!(collector.due(Millis(999)), None);
        assert_eq!(collector.due(Millis(1000)), Some(Statistics { processed: 2, errors: 1 }));
        assert_eq!(collector.due(Millis(2500)), Some(Statistics::default()), "zeros are told by time");
        assert_eq!(collector.next_deadline(), Some(Millis(3000)));
        collector.add(1, 0);
        assert_eq!(collector.stop(), Some(Statistics { processed: 1, errors: 0 }));
        assert_eq!((collector.stop(), collector.due(Millis(9999))), (None, None));
    }
}
