//! The wall clock at the edge; machines get time as an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// By how much the clock may be set back at once.
const SET_BACK_MAX_MS: i64 = 5_000;

/// How often the clocks are compared.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Milliseconds since 1970 (UTC); negative before.
pub fn now_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

/// Completes when the system's clock is set back by more than 5 s at once, as seen from the monotonic clock; tells by
/// how much. Cancel-safe.
pub(crate) async fn set_back() -> Duration {
    let mut last = (now_ms(), Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = (now_ms(), Instant::now());
        if let Some(step) = step_back(last.0, now.0, now.1 - last.1) {
            return step;
        }
        last = now;
    }
}

/// By how much the clock was set back between two looks, if that is too much.
fn step_back(before_ms: i64, now_ms: i64, elapsed: Duration) -> Option<Duration> {
    let back_ms = before_ms + elapsed.as_millis() as i64 - now_ms;
    (back_ms > SET_BACK_MAX_MS).then(|| Duration::from_millis(back_ms.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_step_back_counts() {
        let elapsed = Duration::from_secs(1);
        assert_eq!(step_back(10_000, 11_000, elapsed), None);
        assert_eq!(step_back(10_000, 900_000, elapsed), None, "forward, or asleep");
        assert_eq!(step_back(10_000, 6_000, elapsed), None, "5 s");
        assert_eq!(step_back(10_000, 5_999, elapsed), Some(Duration::from_millis(5_001)));
    }

    #[test]
    fn the_clock_counts_milliseconds_of_this_century() {
        assert!((1_700_000_000_000..4_100_000_000_000).contains(&now_ms()));
    }
}
