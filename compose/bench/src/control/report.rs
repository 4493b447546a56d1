//! What is printed, and written into the page of results.

use std::fmt;

use hdrhistogram::Histogram;

use super::{Measured, Options};

/// Begins the section of the page.
pub(super) const HEADING: &str = "## The control plane";

pub(super) struct Report {
    head: String,
    columns: Vec<(&'static str, Measured)>,
}

/// `p50 3.1, p99 9.9, max 12.0 ms` of µs.
pub(super) fn millis(took: &Histogram<u64>) -> String {
    let at = |quantile| took.value_at_quantile(quantile) as f64 / 1e3;
    format!("p50 {:.1}, p99 {:.1}, max {:.1} ms", at(0.5), at(0.99), took.max() as f64 / 1e3)
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        let head = format!(
            "`cargo xtask bench control`: {} HTTP integrations with a filter each, {} Create calls in flight, each validated by \
             an executor before it is saved and applied by every data plane before it returns. Over Kafka: one control plane, \
             {} data planes, {} executors. Then, with all of them there and ACTIVE: {} lists of a page of 100, one after the \
             other; {} updates of filter and URL, one after the other, each followed until every data plane and the executor \
             that runs it had applied it; {} watches, each over a connection of its own, of {} updates at {}/s, each of which ended \
             with exactly what is listed (a delay counts from the time that a change is stamped with before it is saved, to \
             1 ms); {} kills of the control plane (embedded: of all of `tbmq`), where *start* is from the start of the process \
             until it has answered a list of 100. PostgreSQL does not sync (`fsync=off`), SQLite does.",
            options.integrations,
            options.callers,
            options.data_planes,
            options.executors,
            options.lists,
            options.updates,
            options.watchers,
            options.watched_updates,
            options.watched_rate,
            options.restarts
        );
        Self { head, columns: Vec::new() }
    }

    pub(super) fn add(&mut self, name: &'static str, measured: Measured) {
        self.columns.push((name, measured));
    }

    fn row(
        &self,
        f: &mut fmt::Formatter<'_>,
        what: &str,
        target: &str,
        cell: impl Fn(&Measured) -> String,
    ) -> fmt::Result {
        let cells: Vec<String> = self.columns.iter().map(|(_, measured)| cell(measured)).collect();
        writeln!(f, "| {what} | {target} | {} |", cells.join(" | "))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADING}\n\n{}\n", self.head)?;
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        writeln!(f, "| | target | {} |", names.join(" | "))?;
        writeln!(f, "|---|---|{}", "---|".repeat(names.len()))?;
        self.row(f, "created", "100/s", |one| {
            let created = &one.created;
            format!(
                "**{:.0}/s** in {:.0} s; slowest tenth {:.0}/s",
                created.rate(),
                created.elapsed.as_secs_f64(),
                created.slowest
            )
        })?;
        self.row(f, "a Create call", "", |one| millis(&one.created.calls))?;
        self.row(f, "of which returned before every data plane had applied it", "", |one| {
            one.created.silent.to_string()
        })?;
        self.row(f, "all ACTIVE after the last answer", "", |one| {
            format!("{:.2} s", one.created.until_active.as_secs_f64())
        })?;
        self.row(f, "CPU for each", "", |one| {
            let cpu = one.created.cpu_ms.iter().map(|(name, ms)| format!("{name} {ms:.1} ms"));
            cpu.collect::<Vec<_>>().join(" · ")
        })?;
        self.row(f, "a page of 100", "p99 20 ms", |one| millis(&one.lists))?;
        self.row(f, "Update, applied by every data plane", "", |one| millis(&one.propagated.calls))?;
        self.row(f, "Update, applied everywhere", "p99 150 ms", |one| millis(&one.propagated.everywhere))?;
        self.row(f, "a change to each watch", "", |one| {
            let watched = &one.watched;
            let rate = f64::from(watched.updates) / watched.elapsed.as_secs_f64();
            format!("{} ({} messages, {rate:.0} updates/s)", millis(&watched.delays), watched.delays.len())
        })?;
        self.row(f, "start", "5 s", |one| {
            let starts = one.starts.iter().map(|took| format!("{:.2}", took.as_secs_f64()));
            format!("{} s", starts.collect::<Vec<_>>().join(" / "))
        })?;
        self.row(f, "resident, started again / before", "200 MiB", |one| {
            let [again, before] = one.resident_bytes.map(|bytes| bytes >> 20);
            format!("{again} / {before} MiB")
        })
    }
}
