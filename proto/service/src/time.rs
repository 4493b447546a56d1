//! The wall clock at the edge; machines get time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 (UTC); negative before.
pub fn now_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_counts_milliseconds_of_this_century() {
        assert!((1_700_000_000_000..4_100_000_000_000).contains(&now_ms()));
    }
}
