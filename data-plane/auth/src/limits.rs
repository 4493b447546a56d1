//! How often something may happen: TBMQ's `count:seconds[,count:seconds…]`, all of which must hold.
//!
//! Each is a bucket that holds `count` and fills continuously, as the generic cell rate algorithm: its state is one
//! number, and an idle one has none. (`governor` does the same, but reads its own clock, can't ask several buckets
//! without taking from one when another refuses, and grants all or nothing where TBMQ grants a part.)

use std::{fmt, hash::Hash, num::NonZeroUsize, str::FromStr};

use quick_cache::unsync::Cache;
use smallvec::SmallVec;

/// Parts of a rate limit.
pub const PARTS_MAX: usize = 8;

/// The highest rate: above it, rounding to nanoseconds would be wrong by more than a hundredth.
pub const PER_SECOND_MAX: u64 = 10_000_000;

/// The longest time: 30 days.
pub const SECONDS_MAX: u64 = 30 * 24 * 3600;

/// A rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    parts: SmallVec<[Part; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    count: u64,
    seconds: u64,
}

/// Why a text is no rate limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not of the form.
    #[error("{0:?} is not count:seconds, as in 10:1,300:60")]
    Form(String),
    /// 0.
    #[error("{0:?}: a rate limit of nothing lets nothing pass; switch the limit off instead")]
    Zero(String),
    /// More than [`PER_SECOND_MAX`] or [`SECONDS_MAX`].
    #[error("{0:?}: at most {PER_SECOND_MAX} a second, over at most {SECONDS_MAX} seconds")]
    TooLarge(String),
    /// More than [`PARTS_MAX`].
    #[error("a rate limit has at most {PARTS_MAX} parts")]
    TooMany,
}

impl FromStr for RateLimit {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts = text.split(',').map(|part| part.trim().parse()).collect::<Result<SmallVec<_>, _>>()?;
        if parts.len() > PARTS_MAX { Err(Invalid::TooMany) } else { Ok(Self { parts }) }
    }
}

impl FromStr for Part {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        let (count, seconds) = text
            .split_once(':')
            .and_then(|(count, seconds)| number(count).zip(number(seconds)))
            .ok_or_else(|| Invalid::Form(text.to_owned()))?;
        if count == 0 || seconds == 0 {
            return Err(Invalid::Zero(text.to_owned()));
        }
        if seconds > SECONDS_MAX || count > seconds.saturating_mul(PER_SECOND_MAX) {
            return Err(Invalid::TooLarge(text.to_owned()));
        }
        Ok(Self { count, seconds })
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.parts.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{}:{}", part.count, part.seconds)?;
        }
        Ok(())
    }
}

impl Part {
    /// Time in which one more is allowed. Rounded up, so that the limit is never exceeded.
    fn interval_ns(self) -> u64 {
        (self.seconds * 1_000_000_000).div_ceil(self.count)
    }

    /// How many are allowed, of a bucket that is full again at `full_at_ns`.
    fn room(self, now_ns: u64, full_at_ns: u64) -> u64 {
        let taken = full_at_ns.saturating_sub(now_ns).div_ceil(self.interval_ns());
        self.count.saturating_sub(taken)
    }
}

/// What was taken of a [`RateLimit`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// When each part is full again, ns of the clock of `now_ms`; missing: now.
    full_at_ns: SmallVec<[u64; 2]>,
}

impl RateLimit {
    /// Takes up to `wanted`, as many as all parts allow, and says how many. `now_ms` is of a clock that never goes
    /// back.
    pub fn take_up_to(&self, taken: &mut Taken, now_ms: u64, wanted: u64) -> u64 {
        self.take_share(taken, now_ms, wanted, 1)
    }

    /// As [`RateLimit::take_up_to`] for one of so many who share the limit evenly and do not know of each other: each
    /// that is taken here costs as much as one with all of them. Nobody gets less than one at a time.
    pub fn take_share(&self, taken: &mut Taken, now_ms: u64, wanted: u64, sharers: u64) -> u64 {
        let now_ns = now_ms.saturating_mul(1_000_000);
        taken.full_at_ns.resize(self.parts.len(), 0);
        let cost = |part: &Part| sharers.clamp(1, part.count);
        let parts = self.parts.iter().zip(&taken.full_at_ns);
        let rooms = parts.map(|(part, full)| part.room(now_ns, *full) / cost(part));
        let granted = rooms.min().map_or(wanted, |room| room.min(wanted));
        if granted > 0 {
            self.charge(taken, now_ns, |part| granted.saturating_mul(cost(part)));
        }
        granted
    }

    /// Takes so many, also more than there are: what has come already can't be sent back. Returns for how many ms
    /// nothing more is to be let in.
    pub fn take_anyway(&self, taken: &mut Taken, now_ms: u64, count: u64) -> u64 {
        let now_ns = now_ms.saturating_mul(1_000_000);
        taken.full_at_ns.resize(self.parts.len(), 0);
        self.charge(taken, now_ns, |_| count);
        let overdrawn_ns = |(part, full): (&Part, &u64)| {
            full.saturating_sub(now_ns).saturating_sub(part.seconds * 1_000_000_000)
        };
        let longest_ns = self.parts.iter().zip(&taken.full_at_ns).map(overdrawn_ns).max();
        longest_ns.unwrap_or_default().div_ceil(1_000_000)
    }

    fn charge(&self, taken: &mut Taken, now_ns: u64, count: impl Fn(&Part) -> u64) {
        for (part, full) in self.parts.iter().zip(&mut taken.full_at_ns) {
            *full = (*full).max(now_ns).saturating_add(count(part).saturating_mul(part.interval_ns()));
        }
    }

    /// How many there are in a second, of the part that allows the fewest; rounded down.
    pub fn per_second(&self) -> u64 {
        self.parts.iter().map(|part| part.count / part.seconds).min().unwrap_or(u64::MAX)
    }

    /// Takes one, or nothing.
    pub fn take(&self, taken: &mut Taken, now_ms: u64) -> bool {
        self.take_up_to(taken, now_ms, 1) == 1
    }

    /// Takes so many, or nothing; for bytes.
    pub fn take_all(&self, taken: &mut Taken, now_ms: u64, wanted: u64) -> bool {
        let now_ns = now_ms.saturating_mul(1_000_000);
        let full = |at: usize| taken.full_at_ns.get(at).copied().unwrap_or_default();
        let fits = self.parts.iter().enumerate().all(|(at, part)| part.room(now_ns, full(at)) >= wanted);
        fits && self.take_up_to(taken, now_ms, wanted) == wanted
    }
}

/// One limit for each of many, as addresses: keeps the busiest of them up to a bound. One that is forgotten starts
/// again with all of its limit.
#[derive(Debug)]
pub struct Each<K> {
    limit: RateLimit,
    taken: Cache<K, Taken>,
}

impl<K: Hash + Eq> Each<K> {
    /// Keeps `bound` at most.
    pub fn new(limit: RateLimit, bound: NonZeroUsize) -> Self {
        Self { limit, taken: Cache::new(bound.get()) }
    }

    /// As [`RateLimit::take`].
    pub fn take(&mut self, key: K, now_ms: u64) -> bool {
        if let Some(mut taken) = self.taken.get_mut(&key) {
            return self.limit.take(&mut taken, now_ms);
        }
        let mut taken = Taken::default();
        let granted = self.limit.take(&mut taken, now_ms);
        self.taken.insert(key, taken);
        granted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(text: &str) -> RateLimit {
        text.parse().unwrap()
    }

    #[test]
    fn tbmqs_defaults_are_read_and_printed_alike() {
        for text in ["10:1,300:60", "1000:1,50000:60", "100:1,1000:60", "1:1"] {
            assert_eq!(limit(text).to_string(), text);
        }
        assert_eq!(limit(" 10:1 , 300:60 "), limit("10:1,300:60"));
    }

    #[test]
    fn what_is_no_rate_limit_is_refused_with_the_part_that_is_wrong() {
        for (text, error) in [
            ("", "\"\" is not count:seconds"),
            ("10", "\"10\" is not count:seconds"),
            ("10:1,", "\"\" is not count:seconds"),
            ("10:1;300:60", "\"10:1;300:60\" is not count:seconds"),
            ("-1:1", "\"-1:1\" is not count:seconds"),
            ("+1:1", "\"+1:1\" is not count:seconds"),
            ("1:1.5", "\"1:1.5\" is not count:seconds"),
            ("10:1,0:60", "\"0:60\": a rate limit of nothing"),
            ("10:0", "\"10:0\": a rate limit of nothing"),
            ("10000001:1", "\"10000001:1\": at most 10000000 a second"),
            ("99999999999999999999999:1", "at most 10000000 a second"),
            ("1:2592001", "over at most 2592000 seconds"),
            ("1:1,1:1,1:1,1:1,1:1,1:1,1:1,1:1,1:1", "at most 8 parts"),
        ] {
            let found = text.parse::<RateLimit>().unwrap_err().to_string();
            assert!(found.contains(error), "{text}: {found}");
        }
    }

    #[test]
    fn a_bucket_holds_its_count_and_fills_continuously() {
        let limit = limit("10:1");
        let mut taken = Taken::default();
        let now = 5_000;
        assert_eq!((0..20).filter(|_| limit.take(&mut taken, now)).count(), 10);
        assert!(!limit.take(&mut taken, now + 99));
        assert!(limit.take(&mut taken, now + 100));
        assert!(!limit.take(&mut taken, now + 100));
        assert_eq!(limit.take_up_to(&mut taken, now + 600, 20), 5);
        assert_eq!(limit.take_up_to(&mut taken, now + 1_000_000, 20), 10);
    }

    #[test]
    fn all_parts_must_hold_and_one_that_refuses_takes_nothing_from_the_others() {
        let limit = limit("10:1,15:60");
        let mut taken = Taken::default();
        assert_eq!(limit.take_up_to(&mut taken, 0, 100), 10);
        assert_eq!(limit.take_up_to(&mut taken, 1_000, 100), 5);
        let before = taken.clone();
        for _ in 0..100 {
            assert!(!limit.take(&mut taken, 1_000));
        }
        assert_eq!(taken, before);
        assert!(limit.take(&mut taken, 4_000));
    }

    #[test]
    fn more_than_there_is_is_taken_whole_or_not() {
        let limit = limit("1000:1");
        let mut taken = Taken::default();
        assert!(!limit.take_all(&mut taken, 0, 1001));
        assert!(limit.take_all(&mut taken, 0, 700));
        assert!(!limit.take_all(&mut taken, 0, 301));
        assert!(limit.take_all(&mut taken, 0, 300));
        assert!(limit.take_all(&mut taken, 0, 0));
    }

    #[test]
    fn who_shares_a_limit_gets_a_part_of_it_and_one_at_least() {
        let limit = limit("100:10,3:1");
        for (sharers, granted) in [(1, 3), (2, 1), (3, 1), (4, 1), (1000, 1)] {
            assert_eq!(limit.take_share(&mut Taken::default(), 0, 100, sharers), granted, "{sharers}");
        }
        let (mut taken, mut sum) = (Taken::default(), 0);
        for now_ms in (0..100_000).step_by(10) {
            sum += limit.take_share(&mut taken, now_ms, 100, 4);
        }
        // A quarter of 3 at a time is less than one: it is one a second, and the other part allows 2.5.
        assert_eq!(sum, 100);
    }

    #[test]
    fn what_came_already_is_taken_and_paid_for_by_waiting() {
        let limit = limit("1000:1");
        let mut taken = Taken::default();
        assert_eq!(limit.take_anyway(&mut taken, 0, 1000), 0);
        assert_eq!(limit.take_anyway(&mut taken, 0, 500), 500);
        assert_eq!(limit.take_anyway(&mut taken, 500, 0), 0);
        assert_eq!(limit.take_anyway(&mut taken, 500, 3000), 3000);
        assert_eq!(limit.take_anyway(&mut taken, 100_000, 1000), 0);
        assert_eq!(limit.take_anyway(&mut taken, 100_000, u64::MAX), u64::MAX.div_ceil(1_000_000) - 101_000);
    }

    #[test]
    fn the_slowest_part_says_how_many_there_are_in_a_second() {
        assert_eq!(limit("10:1,300:60").per_second(), 5);
        assert_eq!(limit("59:60").per_second(), 0);
    }

    #[test]
    fn each_has_its_own_and_there_is_a_bound() {
        let mut each = Each::new(limit("1:60"), NonZeroUsize::new(100).unwrap());
        assert!(each.take(1, 0) && each.take(2, 0));
        assert!(!each.take(1, 0) && !each.take(2, 59_999));
        assert!(each.take(1, 60_000));
        for n in 0..100_000 {
            each.take(n, 0);
        }
        assert!(each.taken.len() <= 100);
    }

    proptest! {
        #[test]
        fn those_who_share_a_limit_take_no_more_than_it_together(
            count in 5_u64..50, sharers in 1_u64..5, steps in prop::collection::vec((0_u64..700, 0_u64..8), 1..100)
        ) {
            let limit = limit(&format!("{count}:1"));
            let mut taken = vec![Taken::default(); sharers as usize];
            let (mut now, mut sum) = (0, 0);
            for (pause, wanted) in steps {
                now += pause;
                for taken in &mut taken {
                    sum += limit.take_share(taken, now, wanted, sharers);
                }
                prop_assert!(sum <= count + count * now / 1000, "{} until {}", sum, now);
            }
        }

        #[test]
        fn no_window_has_more_than_a_full_bucket_and_what_has_flowed_in(
            count in 1_u64..50, seconds in 1_u64..5, steps in prop::collection::vec((0_u64..700, 0_u64..8), 1..200)
        ) {
            let limit = limit(&format!("{count}:{seconds}"));
            let mut taken = Taken::default();
            let mut now = 0;
            let mut granted: Vec<(u64, u64)> = Vec::new();
            for (pause, wanted) in steps {
                now += pause;
                let got = limit.take_up_to(&mut taken, now, wanted);
                prop_assert!(got <= wanted);
                granted.push((now, got));
                let mut sum = 0;
                for (at, got) in granted.iter().rev() {
                    sum += got;
                    let flowed = count * (now - at) / (seconds * 1000);
                    prop_assert!(sum <= count + flowed, "{} since {} until {}", sum, at, now);
                }
            }
            // And it is not stricter than it says: after its time all of it is there.
            prop_assert_eq!(limit.take_up_to(&mut taken, now + seconds * 1000 + 1, 1000), count);
        }
    }
}
