//! What came of it: a line per round, a table per fault, and the page `FAULTS.md`.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::Duration,
};

use super::{
    plan::{Fault, Round},
    run::Options,
    tally::Counts,
};

/// What one round came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was planned.
    pub round: Round,
    /// To whom it happened, and what is worth telling.
    pub note: String,
    /// Messages.
    pub counts: Counts,
    /// From the fault to its healing.
    pub lasted: Duration,
    /// From the healing until the first message sent after it had arrived at every integration.
    pub first: Option<Duration>,
    /// From the healing until everything acknowledged before had arrived and every publisher's messages arrived again.
    pub drained: Option<Duration>,
    /// From the healing until, besides, both control planes showed every integration as running.
    pub recovered: Option<Duration>,
    /// Updates of a configuration that were accepted during the round.
    pub updates: u32,
    /// And those that were not.
    pub updates_failed: u32,
    /// Processes that ended by themselves, or did not start.
    pub restarts: Vec<String>,
    /// What must not be, besides what the ledger finds.
    pub findings: Vec<String>,
    /// Whether the system can go on.
    pub has_recovered: bool,
}

impl Outcome {
    pub(super) fn of(round: &Round) -> Self {
        Self {
            round: round.clone(),
            note: String::new(),
            counts: Counts::default(),
            lasted: Duration::ZERO,
            first: None,
            drained: None,
            recovered: None,
            updates: 0,
            updates_failed: 0,
            restarts: Vec::new(),
            findings: Vec::new(),
            has_recovered: false,
        }
    }

    /// Acknowledged messages that did not arrive somewhere, whatever the reason.
    pub fn lost(&self) -> usize {
        self.counts.lost()
    }

    /// Whether nothing was lost and nothing else was found.
    pub fn is_clean(&self) -> bool {
        self.has_recovered
            && self.findings.is_empty()
            && self.counts.audits.values().all(tbmq_harness::ledger::Audit::is_clean)
    }
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_clean() { "ok" } else { "FAILED" };
        let (round, counts) = (&self.round, &self.counts);
        write!(f, "round {:>2} {:<22} {verdict:<6} ", round.number, round.fault.to_string())?;
        write!(
            f,
            "lasted {}, first {}, drained {}, recovered {}, pause {}; ",
            seconds(Some(self.lasted)),
            seconds(self.first),
            seconds(self.drained),
            seconds(self.recovered),
            seconds(Some(counts.pause)),
        )?;
        write!(
            f,
            "{} acknowledged, {} lost, {} excused, {} duplicates, {} refused, {} reconnects, updates {}+{}",
            counts.acknowledged,
            self.lost(),
            counts.excused,
            counts.duplicates,
            counts.refused,
            counts.reconnects,
            self.updates,
            self.updates_failed,
        )?;
        if !self.note.is_empty() {
            write!(f, " [{}]", self.note)?;
        }
        for (name, audit) in counts.audits.iter().filter(|(_, audit)| !audit.is_clean()) {
            let text = audit.to_string();
            let few = text.char_indices().nth(400).map_or(text.len(), |(at, _)| at);
            write!(f, "\n    ledger of {name}: {}", text[..few].replace('\n', " "))?;
        }
        for finding in &self.findings {
            write!(f, "\n    found: {finding}")?;
        }
        for restart in &self.restarts {
            write!(f, "\n    {restart}")?;
        }
        Ok(())
    }
}

/// Everything that a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was to be done.
    pub options: Options,
    /// Round by round.
    pub outcomes: Vec<Outcome>,
    /// Faults that this machine does not allow, and why.
    pub left_out: BTreeMap<Fault, String>,
}

/// Median and greatest of some times.
fn spread(times: impl Iterator<Item = Option<Duration>>) -> String {
    let mut all: Vec<Option<Duration>> = times.collect();
    // A time that never came is the greatest.
    all.sort_by_key(|time| time.unwrap_or(Duration::MAX));
    let (Some(median), Some(greatest)) = (all.get(all.len() / 2), all.last()) else {
        return "-".to_owned();
    };
    let number = |time: &Option<Duration>| {
        time.map_or_else(|| "never".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
    };
    format!("{} / {}", number(median), number(greatest))
}

impl Report {
    /// Whether every round was clean.
    pub fn is_clean(&self) -> bool {
        self.outcomes.iter().all(Outcome::is_clean)
    }

    /// The table per fault, in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| fault | rounds | acknowledged | lost | excused | duplicates | refused | lasted s | first new message s | recovery s | longest pause s |\n\
             |---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        let mut faults: Vec<Option<Fault>> = Fault::ALL.into_iter().map(Some).collect();
        faults.push(None);
        for fault in faults {
            let of: Vec<&Outcome> = self
                .outcomes
                .iter()
                .filter(|one| fault.is_none_or(|fault| one.round.fault == fault))
                .collect();
            if of.is_empty() {
                continue;
            }
            let name = fault.map_or_else(|| "**all**".to_owned(), |fault| fault.to_string());
            let sum = |count: fn(&Outcome) -> usize| of.iter().map(|one| count(one)).sum::<usize>();
            writeln!(
                text,
                "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                of.len(),
                sum(|one| one.counts.acknowledged),
                sum(Outcome::lost),
                sum(|one| one.counts.excused),
                sum(|one| one.counts.duplicates),
                sum(|one| one.counts.refused as usize),
                spread(of.iter().map(|one| Some(one.lasted))),
                spread(of.iter().map(|one| one.first)),
                spread(of.iter().map(|one| one.recovered)),
                spread(of.iter().map(|one| Some(one.counts.pause))),
            )
            .expect("a string takes what is written");
        }
        text
    }

    /// Faults that were left out, a line each.
    pub fn omissions(&self) -> String {
        let lines = self.left_out.iter().map(|(fault, why)| format!("* `{fault}` was left out: {why}\n"));
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Plane;

    #[test]
    fn median_and_greatest_count_what_never_came_as_the_greatest() {
        let times = [Some(3), None, Some(1)].map(|time| time.map(Duration::from_secs));
        assert_eq!(spread(times.into_iter()), "3.0 / never");
        assert_eq!(spread(std::iter::empty()), "-");
    }

    #[test]
    fn the_table_has_a_row_per_fault_and_one_for_all() {
        let options = Options::new(1, 2, "logs".into());
        let faults = [Fault::Kill(Plane::Data), Fault::KafkaKill];
        let rounds = super::super::plan::draw(1, 2, &faults, options.session_timeout);
        let outcomes = rounds.iter().map(Outcome::of).collect();
        let report = Report { options, outcomes, left_out: BTreeMap::new() };
        let table = report.table();
        let rows: Vec<&str> = table.lines().skip(2).filter_map(|line| line.split(' ').nth(1)).collect();
        assert_eq!(rows, ["kill-data", "kafka-kill", "**all**"]);
        assert!(!report.is_clean(), "rounds that did not recover are not clean");
    }
}
