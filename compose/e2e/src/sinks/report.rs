//! What came of it: a line per fault and kind, the table, and the part of `FAULTS.md`.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use tbmq_harness::ledger::Audit;

use super::{Fault, Kind, Options, run};

/// What one fault of one kind's peer came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What happened.
    pub fault: Fault,
    /// To whose peer.
    pub kind: Kind,
    /// Messages acknowledged to publishers in the round.
    pub acknowledged: usize,
    /// Of these, how many were not delivered.
    pub lost: usize,
    /// Deliveries of what had been delivered before.
    pub duplicates: usize,
    /// The longest time without a delivery.
    pub pause: Duration,
    /// From the fault until the status said that the integration is stalled.
    pub stalled: Option<Duration>,
    /// From the healing to the first delivery.
    pub first: Option<Duration>,
    /// From the healing until everything acknowledged before had been delivered.
    pub drained: Option<Duration>,
    /// From the healing until the status said that the integration runs; zero when it did all the time.
    pub running: Option<Duration>,
    /// What the status said of the stall.
    pub said: String,
    /// The reasons that the status gave, in order.
    pub shown: String,
    /// What must not be.
    pub findings: Vec<String>,
}

impl Outcome {
    /// Compares with what is wanted.
    pub(super) fn judge(&mut self, options: &Options, audit: Option<&Audit>) {
        let mut findings = Vec::new();
        let is_late = |time: Option<Duration>, limit| time.is_none_or(|time| time > limit);
        if self.fault.is_total() && is_late(self.stalled, options.stalled_within) {
            findings.push(format!("it is not shown as stalled within {:?}", options.stalled_within));
        }
        if is_late(self.first, options.recovered_within) {
            findings.push(format!(
                "nothing is delivered within {:?} after the healing",
                options.recovered_within
            ));
        }
        if is_late(self.drained, options.patience) {
            findings.push(format!("not all is delivered within {:?} after the healing", options.patience));
        }
        if self.running.is_none() {
            findings.push("it is not shown as running at the end".to_owned());
        }
        match audit {
            Some(audit) if audit.is_clean() => {}
            Some(audit) => findings.push(format!("ledger: {audit}")),
            None => findings.push("the ledger has no account".to_owned()),
        }
        self.findings = findings;
    }

    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_clean() { "ok" } else { "FAILED" };
        write!(
            f,
            "{:<14} {:<6} {verdict:<6} {} acknowledged, {} lost, {} duplicates; pause {:.1} s, stalled shown after {} s, \
             first delivery after {} s, drained after {} s, running shown after {} s [{}]",
            self.fault,
            self.kind,
            self.acknowledged,
            self.lost,
            self.duplicates,
            self.pause.as_secs_f64(),
            seconds(self.stalled),
            seconds(self.first),
            seconds(self.drained),
            seconds(self.running),
            self.shown,
        )?;
        if !self.said.is_empty() {
            write!(f, "\n    stalled: {}", self.said)?;
        }
        for finding in &self.findings {
            write!(f, "\n    found: {finding}")?;
        }
        Ok(())
    }
}

/// Everything that a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was to be done.
    pub options: Options,
    /// Fault by fault, kind by kind.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.outcomes.iter().all(Outcome::is_clean)
    }

    /// The table, in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| fault | kind | acknowledged | lost | duplicates | longest pause s | stalled shown s | first delivery s | drained s | running shown s |\n\
             |---|---|---|---|---|---|---|---|---|---|\n",
        );
        for one in &self.outcomes {
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {:.1} | {} | {} | {} | {} |",
                one.fault,
                one.kind,
                one.acknowledged,
                one.lost,
                one.duplicates,
                one.pause.as_secs_f64(),
                seconds(one.stalled),
                seconds(one.first),
                seconds(one.drained),
                seconds(one.running),
            )
            .expect("a string takes what is written");
        }
        text
    }

    /// The part of `FAULTS.md`, without its heading.
    pub fn page(&self) -> String {
        let options = &self.options;
        let verdict = match self.outcomes.iter().filter(|one| !one.is_clean()).count() {
            0 => "Every round was clean.".to_owned(),
            failed => format!("{failed} of {} failed; their lines are below.", self.outcomes.len()),
        };
        let failed: Vec<String> =
            self.outcomes.iter().filter(|one| !one.is_clean()).map(ToString::to_string).collect();
        let failed =
            if failed.is_empty() { String::new() } else { format!("\n```\n{}\n```\n", failed.join("\n")) };
        format!(
            "One process per plane, and a peer for each kind: an HTTP server, Mosquitto, and a second Kafka, each behind a TCP proxy. {publishers} publishers send {rate} messages/s in all at QoS 1\n\
to one integration of each kind with RETRY_ALL without end and the shortest timeouts that the kind has: HTTP reads for 1 s; MQTT connects, pings and waits between two attempts for 1 s;\n\
Kafka's requests and connections have 1 s, with 0.2 s at most between two attempts. Each fault strikes all peers at once and lasts {lasting:?}. {verdict}\n\n\
{table}\n\
* **down**: connections end and new ones are refused. **black-hole**: connections are accepted, bytes are swallowed, nothing is closed or answered; a connection that fell into the hole stays in it\n\
\x20 after the healing. **refusing-half**: HTTP answers every second request with 500, a proxy before Mosquitto every second PUBLISH with Quota exceeded, Kafka everything with\n\
\x20 TOPIC_AUTHORIZATION_FAILED for a second of every two. **reconnecting**: each connection is cut after a second.\n\
* **lost**: acknowledged to a publisher and not delivered. **duplicates**: delivered again: what was under way when a connection ended. **longest pause**: the longest time\n\
\x20 without a delivery.\n\
* **stalled shown**: from the fault until the status says STALLED; required within {stalled:?} while nothing gets through, `-` where something did. The executor\n\
\x20 reports it after {after} (`TBMQ_IE_STALLED_AFTER`, as by default), so that its way to the status is included.\n\
* **first delivery**: from the healing; required within {recovered:?}. **drained**: until everything acknowledged before the healing is delivered. **running shown**: until the status says RUNNING;\n\
\x20 0.0 where it did all the time.\n\
{failed}",
            publishers = options.publishers,
            rate = options.rate,
            lasting = options.lasting,
            table = self.table(),
            stalled = options.stalled_within,
            after = run::STALLED_AFTER,
            recovered = options.recovered_within,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn outcome(fault: Fault) -> Outcome {
        Outcome {
            fault,
            kind: Kind::Mqtt,
            acknowledged: 10,
            lost: 0,
            duplicates: 1,
            pause: SECOND,
            stalled: Some(4 * SECOND),
            first: Some(SECOND),
            drained: Some(SECOND),
            running: Some(SECOND),
            said: String::new(),
            shown: String::new(),
            findings: Vec::new(),
        }
    }

    fn judged(mut outcome: Outcome) -> usize {
        outcome.judge(&Options::new("logs".into()), Some(&Audit::default()));
        outcome.findings.len()
    }

    #[test]
    fn what_is_late_or_never_comes_is_found() {
        let good = outcome(Fault::Down);
        assert_eq!(judged(good.clone()), 0);
        assert_eq!(judged(Outcome { stalled: Some(6 * SECOND), ..good.clone() }), 1);
        assert_eq!(judged(Outcome { stalled: None, ..good.clone() }), 1);
        assert_eq!(judged(Outcome { stalled: None, ..outcome(Fault::RefusingHalf) }), 0);
        assert_eq!(judged(Outcome { first: Some(3 * SECOND), ..good.clone() }), 1);
        assert_eq!(judged(Outcome { first: None, drained: None, running: None, ..good }), 3);
    }

    #[test]
    fn a_message_that_the_ledger_misses_is_found() {
        let mut ledger = tbmq_harness::ledger::Ledger::new();
        ledger.expect_sink("MQTT", false);
        ledger.acknowledged(tbmq_harness::ledger::Mark::new(0, 0));
        let mut lossy = outcome(Fault::Down);
        lossy.judge(&Options::new("logs".into()), Some(&ledger.audit()));
        assert!(!lossy.is_clean(), "{lossy}");
    }

    #[test]
    fn the_table_has_a_row_per_fault_and_kind() {
        let outcomes = Fault::ALL.map(outcome).to_vec();
        let report = Report { options: Options::new("logs".into()), outcomes };
        assert_eq!(report.table().lines().count(), 6);
        assert!(report.table().contains("| black-hole | MQTT | 10 | 0 | 1 | 1.0 | 4.0 | 1.0 | 1.0 | 1.0 |"));
    }
}
