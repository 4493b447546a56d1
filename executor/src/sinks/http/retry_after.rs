//! The header `Retry-After` (RFC 9110 §10.2.3): seconds, or a date in one of HTTP's three forms.

use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, header};

/// The longest wait that an endpoint may ask for.
const MAX: Duration = Duration::from_hours(1);

/// The wait that an answer asks for, at most an hour.
pub(super) fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    wait(text.trim(), SystemTime::now())
}

fn wait(text: &str, now: SystemTime) -> Option<Duration> {
    let asked = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds ask for more than the limit.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(asked.min(MAX))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn waits_are_seconds_or_until_a_date_and_have_a_bound() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_700);
        let seconds = |number| Some(Duration::from_secs(number));
        for (text, expected) in [
            ("120", seconds(120)),
            ("0", seconds(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", seconds(77)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", seconds(77)),
            ("Sun Nov  6 08:49:37 1994", seconds(77)),
            ("Sun, 06 Nov 1994 08:48:00 GMT", seconds(0)),
            ("3601", seconds(3600)),
            ("99999999999999999999", seconds(3600)),
            ("Mon, 06 Nov 1995 08:49:37 GMT", seconds(3600)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(wait(text, now), expected, "{text:?}");
        }
    }
}
