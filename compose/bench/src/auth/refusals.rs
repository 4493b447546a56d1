//! Whether the time that a refusal takes tells if there is such a user.

use std::{fmt, time::Duration};

use anyhow::{Result, ensure};
use tbmq_mqtt::packet::ReasonCode;

use super::Broker;

/// Refusals of each kind; they alternate, one at a time.
const REFUSALS: u32 = 400;

/// How long refusals took, from the beginning of the connection to CONNACK.
pub(super) struct Refusals {
    /// Of users that there are, with a wrong password.
    known: Times,
    /// Of users that there are not.
    unknown: Times,
}

/// In the order of the attempts.
struct Times(Vec<Duration>);

impl Refusals {
    /// Guesses passwords, half of them of users that there are; no two have the same name, and no refusal is remembered.
    pub(super) async fn measure(broker: &Broker, users: u32) -> Result<Self> {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for number in 0..REFUSALS {
            // Each kind is as often first as second.
            let is_known_first = number.is_multiple_of(2);
            for is_known in [is_known_first, !is_known_first] {
                let user = if is_known { number % users } else { users + number };
                let (elapsed, reason) = broker.connect(user, Some("a guess")).await?;
                ensure!(reason == ReasonCode::NotAuthorized, "a guess is answered with {reason:?}");
                let times = if is_known { &mut known } else { &mut unknown };
                times.push(elapsed);
            }
        }
        Ok(Self { known: Times(known), unknown: Times(unknown) })
    }

    /// What the two kinds differ by.
    fn difference(&self) -> Duration {
        self.known.median().abs_diff(self.unknown.median())
    }
}

impl Times {
    fn quantile(&self, quantile: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = sorted.len().saturating_sub(1) as f64 * quantile;
        sorted.get(at.round() as usize).copied().unwrap_or_default()
    }

    fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// What two halves, taken in turn as the two kinds are, differ by, though they are alike: noise.
    fn noise(&self) -> Duration {
        let half = |is_first: bool| {
            let of_half = |(at, _): &(usize, &Duration)| (at / 2).is_multiple_of(2) == is_first;
            Self(self.0.iter().enumerate().filter(of_half).map(|(_, time)| *time).collect())
        };
        half(true).median().abs_diff(half(false).median())
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quartiles = [0.25, 0.75].map(|quantile| ms(self.quantile(quantile)));
        write!(f, "{:.2} ms ({:.2} to {:.2})", ms(self.median()), quartiles[0], quartiles[1])
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { known, unknown } = self;
        writeln!(
            f,
            "| a refusal, median (quartiles) of {REFUSALS} each in turn | no telling who is known | wrong password {known}, unknown \
             user {unknown}: **{:.2} ms** apart; noise, between halves of one kind: {:.2} and {:.2} ms |",
            ms(self.difference()),
            ms(known.noise()),
            ms(unknown.noise())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_differ_differ_by_more_than_their_halves() {
        let times =
            |from: u64| Times((0..400).map(|at| Duration::from_micros(from + at * 7 % 100)).collect());
        let alike = Refusals { known: times(20_000), unknown: times(20_000) };
        assert_eq!(alike.difference(), Duration::ZERO);
        let other = Refusals { known: times(20_000), unknown: times(5_000) };
        assert_eq!(other.difference(), Duration::from_millis(15));
        assert!(other.known.noise() < Duration::from_micros(10));
        let halves =
            Times((0..400).map(|at| Duration::from_millis(if at % 4 < 2 { 20 } else { 30 })).collect());
        assert_eq!(halves.noise(), Duration::from_millis(10));
        assert_eq!(halves.quantile(0.25), Duration::from_millis(20));
    }
}
