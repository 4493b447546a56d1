//! From counters at two times to rates, and which integrations come first. No I/O.

use std::{
    cmp::Reverse,
    collections::HashMap,
    time::{Duration, Instant},
};

use tbmq_proto::control::{
    Integration, IntegrationStats, IntegrationStatus, Lag, integration_stats::Counters,
};

use super::Sort;

/// One integration as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    /// `integrations/{uuid}`.
    pub(crate) name: String,
    pub(crate) display_name: String,
    pub(crate) kind: String,
    pub(crate) status: IntegrationStatus,
    /// Messages a second, since it was looked at before; `None` when nothing is known.
    pub(crate) written: Option<f64>,
    pub(crate) delivered: Option<f64>,
    /// Rejected, skipped, dead-lettered or expired.
    pub(crate) failed: Option<f64>,
    pub(crate) lag: Option<Lag>,
    pub(crate) counters: Counters,
}

/// Counters as they were at the last look.
#[derive(Debug, Default)]
pub(super) struct Samples {
    last: HashMap<String, (Counters, Instant)>,
}

impl Samples {
    /// The next look: rates come from the difference to the last, or from the server when there is none.
    pub(super) fn rows(
        &mut self,
        integrations: Vec<Integration>,
        stats: Vec<(IntegrationStats, Instant)>,
    ) -> Vec<Row> {
        let last = std::mem::take(&mut self.last);
        let mut stats: HashMap<_, _> =
            stats.into_iter().map(|(stats, at)| (stats.name.clone(), (stats, at))).collect();
        let mut rows = Vec::with_capacity(integrations.len());
        for integration in integrations {
            let Some((stats, at)) = stats.remove(&integration.name) else { continue };
            let counters = stats.counters.unwrap_or_default();
            let status = integration.status.unwrap_or_default();
            let mut row = Row {
                name: integration.name.clone(),
                display_name: integration.display_name,
                kind: integration.r#type,
                written: stats.written_per_second,
                delivered: stats.settled_per_second,
                failed: None,
                lag: stats.lag.or(status.lag),
                status,
                counters,
            };
            if let Some((before, then)) = last.get(&integration.name)
                && let Some(rates) = rates(before, &counters, at.duration_since(*then))
            {
                [row.written, row.delivered, row.failed] = rates.map(Some);
            }
            self.last.insert(integration.name, (counters, at));
            rows.push(row);
        }
        rows
    }
}

/// Written, delivered and failed per second; `None` when the counters began anew in between.
fn rates(before: &Counters, now: &Counters, between: Duration) -> Option<[f64; 3]> {
    let seconds = between.as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    let rate = |count: fn(&Counters) -> u64| Some(count(now).checked_sub(count(before))? as f64 / seconds);
    Some([rate(|counters| counters.written)?, rate(|counters| counters.delivered)?, rate(failed)?])
}

/// Messages that were settled in another way than delivered.
fn failed(counters: &Counters) -> u64 {
    [counters.rejected, counters.skipped, counters.dead_lettered, counters.expired]
        .into_iter()
        .fold(0, u64::saturating_add)
}

/// Keeps the first `limit` by what the list tells.
pub(super) fn choose(all: &mut Vec<Integration>, sort: Sort, limit: usize) {
    if sort == Sort::Lag {
        all.sort_by_key(|one| {
            let lag =
                one.status.as_ref().and_then(|status| status.lag.as_ref()).map_or(0, |lag| lag.messages);
            (Reverse(lag), one.display_name.clone())
        });
    }
    all.truncate(limit);
}

/// The greatest first, and those that are equal by name.
pub(super) fn sort(rows: &mut [Row], by: Sort) {
    let of = |row: &Row| match by {
        Sort::Lag => row.lag.as_ref().map_or(0.0, |lag| lag.messages as f64),
        Sort::Written => row.written.unwrap_or(0.0),
        Sort::Delivered => row.delivered.unwrap_or(0.0),
        Sort::Failed => row.failed.unwrap_or(0.0),
        Sort::Name => 0.0,
    };
    rows.sort_by(|a, b| of(b).total_cmp(&of(a)).then_with(|| a.display_name.cmp(&b.display_name)));
}

/// The line above the table.
pub(super) fn summary(rows: &[Row], interval: Duration) -> String {
    let sum = |rate: fn(&Row) -> Option<f64>| rows.iter().filter_map(rate).sum::<f64>();
    let lag = rows.iter().filter_map(|row| row.lag.as_ref()).map(|lag| lag.messages).sum::<u64>();
    format!(
        "{} integrations, {:.1} written/s, {:.1} delivered/s, {:.1} failed/s, {lag} waiting; every {interval:?}",
        rows.len(),
        sum(|row| row.written),
        sum(|row| row.delivered),
        sum(|row| row.failed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integration(name: &str, lag: u64) -> Integration {
        let lag = Lag { messages: lag, ..Lag::default() };
        Integration {
            name: name.to_owned(),
            display_name: name.to_owned(),
            status: Some(IntegrationStatus { lag: Some(lag), ..IntegrationStatus::default() }),
            ..Integration::default()
        }
    }

    fn stats(name: &str, written: u64, delivered: u64, skipped: u64) -> IntegrationStats {
        IntegrationStats {
            name: name.to_owned(),
            counters: Some(Counters { written, delivered, skipped, ..Counters::default() }),
            written_per_second: Some(0.5),
            ..IntegrationStats::default()
        }
    }

    #[test]
    fn rates_are_the_difference_of_two_looks() {
        let begin = Instant::now();
        let mut samples = Samples::default();
        let look = |samples: &mut Samples, stats, seconds| {
            samples.rows(vec![integration("a", 3)], vec![(stats, begin + Duration::from_secs(seconds))])
        };
        let first = look(&mut samples, stats("a", 100, 90, 0), 0);
        assert_eq!((first[0].written, first[0].failed), (Some(0.5), None), "as the server tells");
        let second = look(&mut samples, stats("a", 120, 104, 1), 2);
        assert_eq!(
            [second[0].written, second[0].delivered, second[0].failed],
            [Some(10.0), Some(7.0), Some(0.5)]
        );
        let anew = look(&mut samples, stats("a", 5, 5, 0), 4);
        assert_eq!(anew[0].written, Some(0.5), "counters that began anew tell nothing");
    }

    #[test]
    fn what_is_gone_is_left_out_and_forgotten() {
        let mut samples = Samples::default();
        let both = vec![integration("a", 0), integration("b", 0)];
        let rows = samples.rows(both, vec![(stats("b", 1, 1, 0), Instant::now())]);
        assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["b"]);
        samples.rows(vec![], vec![]);
        assert!(samples.last.is_empty());
    }

    #[test]
    fn the_greatest_come_first_and_equal_ones_by_name() {
        let row = |name: &str, written| Row { display_name: name.to_owned(), written, ..Row::default() };
        let mut rows = vec![row("c", Some(1.0)), row("b", None), row("a", Some(1.0)), row("d", Some(2.0))];
        sort(&mut rows, Sort::Written);
        let names: Vec<_> = rows.iter().map(|row| row.display_name.as_str()).collect();
        assert_eq!(names, ["d", "a", "c", "b"]);
        let mut all = vec![integration("a", 1), integration("b", 5), integration("c", 5)];
        choose(&mut all, Sort::Lag, 2);
        assert_eq!(all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    }
}
