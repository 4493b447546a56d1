//! Statistics and the backlog.

use tbmq_proto::control::{IntegrationStats, Lag};

use super::{
    super::Look,
    super::json::{seconds, time},
    facts,
    grid::grid,
    or_dash, shown,
};
use crate::commands::top::Row;

/// All about what one integration has done and what waits.
pub(crate) fn stats(given: &str, stats: &IntegrationStats) -> String {
    let counters = stats.counters.unwrap_or_default();
    let lag = stats.lag.unwrap_or_default();
    // Known from the second look on.
    let rate = |rate: Option<f64>| or_dash(rate.map(|rate| format!("{rate:.1}/s")));
    facts([
        ("Integration", given.to_owned()),
        ("Written", counters.written.to_string()),
        ("Delivered", counters.delivered.to_string()),
        ("Rejected", counters.rejected.to_string()),
        ("Skipped", counters.skipped.to_string()),
        ("Dead-lettered", counters.dead_lettered.to_string()),
        ("Expired", counters.expired.to_string()),
        ("Retries", counters.retries.to_string()),
        ("Written now", rate(stats.written_per_second)),
        ("Settled now", rate(stats.settled_per_second)),
        ("Lag", stats.lag.as_ref().map(backlog).unwrap_or_default()),
        ("Drained in", lag.time_to_drain.as_ref().map(|time| span(seconds(time))).unwrap_or_default()),
        ("Oldest kept until", time(lag.kept_until).unwrap_or_default()),
        ("Topic removed", time(lag.topic_removal_time).unwrap_or_default()),
        ("Looked at", time(stats.time).unwrap_or_default()),
    ])
}

/// How much waits, and for how long.
pub(super) fn backlog(lag: &Lag) -> String {
    if lag.messages == 0 {
        "0 messages".to_owned()
    } else {
        format!("{} messages, the oldest {} old", lag.messages, span(lag.seconds))
    }
}

/// NAME, TYPE, PHASE, WRITTEN/S, DELIVERED/S, FAILED/S, LAG, OLDEST, DRAINED IN; wide: counters and UID.
pub(crate) fn top(rows: &[Row], look: Look) -> String {
    let mut header =
        vec!["NAME", "TYPE", "PHASE", "WRITTEN/S", "DELIVERED/S", "FAILED/S", "LAG", "OLDEST", "DRAINED IN"];
    if look.wide {
        header.extend(["WRITTEN", "DELIVERED", "REJECTED", "SKIPPED", "DEAD", "EXPIRED", "RETRIES", "UID"]);
    }
    let rows = rows.iter().map(|row| {
        let rate = |rate: Option<f64>| or_dash(rate.map(|rate| format!("{rate:.1}")));
        let lag = row.lag.as_ref();
        let mut cells = vec![
            row.display_name.clone(),
            row.kind.clone(),
            shown(&row.status).to_owned(),
            rate(row.written),
            rate(row.delivered),
            rate(row.failed),
            or_dash(lag.map(|lag| lag.messages.to_string())),
            or_dash(lag.filter(|lag| lag.messages > 0).map(|lag| span(lag.seconds))),
            or_dash(lag.and_then(|lag| lag.time_to_drain.as_ref()).map(|time| span(seconds(time)))),
        ];
        if look.wide {
            let counters = &row.counters;
            let numbers = [
                counters.written,
                counters.delivered,
                counters.rejected,
                counters.skipped,
                counters.dead_lettered,
                counters.expired,
                counters.retries,
            ];
            cells.extend(numbers.map(|number| number.to_string()));
            cells.push(row.name.trim_start_matches("integrations/").to_owned());
        }
        cells
    });
    grid(&header, rows, look.coloured)
}

/// A time in its two greatest units.
pub(super) fn span(seconds: f64) -> String {
    if !(0.0..1e15).contains(&seconds) {
        return "-".to_owned();
    }
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    if days > 0 {
        format!("{days} d {hours} h")
    } else if hours > 0 {
        format!("{hours} h {minutes} min")
    } else {
        format!("{minutes} min {} s", whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_their_lines_before_they_are_known() {
        let lines = |of: &IntegrationStats| stats("demo", of).lines().count();
        let known = IntegrationStats {
            written_per_second: Some(0.0),
            settled_per_second: Some(2.5),
            ..IntegrationStats::default()
        };
        let unknown = IntegrationStats::default();
        assert_eq!(lines(&known), lines(&unknown));
        let shown = stats("demo", &unknown);
        let line = shown.lines().find(|line| line.starts_with("Settled now:")).unwrap();
        assert_eq!(line.split_whitespace().last(), Some("-"));
    }

    #[test]
    fn a_span_has_its_two_greatest_units() {
        let spans = [0.0, 1.25, 59.9, 60.0, 3599.0, 3600.0, 90_000.0, -1.0, f64::NAN].map(span);
        let expected =
            ["0.0 s", "1.2 s", "59.9 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "1 d 1 h", "-", "-"];
        assert_eq!(spans, expected);
    }
}
