//! What is printed, and written into the page of results.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;

use super::{Case, Idle, Measured, Options, Outcome, Storm, matching::Matched};
use crate::page::median;

/// Begins the section of the page.
pub(super) const HEADING: &str = "## The MQTT broker";

/// CPU µs for a message, or a delivery of a fan-out, in an earlier comparison with a generator of the same kind on a
/// machine of the same kind: Mosquitto 2.1.2 and rumqttd 0.20. Theirs were 20 → 1 and 1 → 50.
fn others(case: &str) -> [&'static str; 2] {
    match case {
        "qos0" => ["2.10", "1.90"],
        "qos1" => ["4.36", "4.30"],
        "qos2" => ["8.97", "7.07"],
        "pairs" => ["4.89", "3.09"],
        "fan-in" => ["5.27 (20 → 1)", "2.94 (20 → 1)"],
        "fan-out-100" | "fan-out-1000" => ["3.08 (1 → 50)", "0.64 (1 → 50)"],
        _ => ["", ""],
    }
}

pub(super) struct Report {
    head: String,
    pub(super) brokers: Vec<String>,
    /// What each broker did.
    pub(super) cases: Vec<(Case, Vec<Measured>)>,
    pub(super) storms: Vec<Vec<Storm>>,
    pub(super) idle: Vec<Idle>,
    pub(super) matched: Option<Matched>,
}

impl Outcome {
    fn rate(&self) -> f64 {
        self.deliveries as f64 / self.elapsed.as_secs_f64()
    }

    fn each(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.deliveries.max(1) as f64
    }
}

/// One run, as it is printed when it is over.
pub(super) fn line(outcome: &Outcome) -> String {
    format!(
        "{:.0} deliveries/s, CPU {:.2} µs each (generator {:.2} µs), lost {}, out of order {}",
        outcome.rate(),
        outcome.each(outcome.broker),
        outcome.each(outcome.generator),
        outcome.lost,
        outcome.misplaced
    )
}

/// The median of the rounds' ratios of the first broker to another.
fn ratio<T>(ours: &[T], theirs: &[T], value: impl Fn(&T) -> f64) -> f64 {
    median(ours.iter().zip(theirs).map(|(ours, theirs)| value(ours) / value(theirs)))
}

/// `61 / 120 / 300` µs of ns.
fn percentiles(latency: &Histogram<u64>) -> String {
    let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
    format!("{:.0} / {:.0} / {:.0}", at(0.5), at(0.99), at(0.999))
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        let head = format!(
            "`cargo xtask bench mqtt`: all of `tbmq` without an integration, and Debian's Mosquitto without its log and without \
             a limit of queued messages, {} rounds in turn with the same generator: one thread, MQTT 5.0, payloads of {} bytes, \
             at most 20 unacknowledged messages of a publisher (QoS 1 and 2), and at most 400 (QoS 0), 20, 10 (fan-in), 20 or 4 \
             (fan-out) that not all subscribers have. Rates and CPU time (user and system, of the broker's process) are medians \
             as fast as it goes, per message or per delivery of a fan-out; a ratio is the median of the rounds' ratios, \
             tbmq to Mosquitto. Latencies are from write to read at a fixed rate, p50 / p99 / p99.9, with the time that the \
             generator takes to read all copies. The figures of Mosquitto 2.1.2 and rumqttd 0.20 are of an earlier comparison.",
            options.rounds, options.size
        );
        Self {
            head,
            brokers: Vec::new(),
            cases: Vec::new(),
            storms: Vec::new(),
            idle: Vec::new(),
            matched: None,
        }
    }

    /// What our broker has lost or mixed up.
    pub(super) fn lost(&self) -> u64 {
        self.cases.iter().filter_map(|(_, measured)| measured.first()).map(lost).sum()
    }

    fn loads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| case |")?;
        for name in &self.brokers {
            write!(f, " {name}: deliveries/s | CPU µs | lost |")?;
        }
        let has_other = self.brokers.len() > 1;
        let ratios = if has_other { " ratio: rate | CPU, target 0.50 |" } else { "" };
        writeln!(f, "{ratios} Mosquitto 2.1.2: CPU µs | rumqttd 0.20: CPU µs |")?;
        let columns = 1 + 3 * self.brokers.len() + if has_other { 4 } else { 2 };
        writeln!(f, "|{}", "---|".repeat(columns))?;
        for (case, all) in &self.cases {
            write!(f, "| {} |", case.title)?;
            for measured in all {
                let rate = median(measured.rounds.iter().map(Outcome::rate));
                let cpu = median(measured.rounds.iter().map(|one| one.each(one.broker)));
                write!(f, " {rate:.0} | {cpu:.2} | {} |", lost(measured))?;
            }
            if let [ours, theirs, ..] = &all[..] {
                let rate = ratio(&ours.rounds, &theirs.rounds, Outcome::rate);
                let cpu = ratio(&ours.rounds, &theirs.rounds, |one| one.each(one.broker));
                write!(f, " {rate:.2} | **{cpu:.2}** |")?;
            }
            let [mosquitto, rumqttd] = others(case.name);
            writeln!(f, " {mosquitto} | {rumqttd} |")?;
        }
        Ok(())
    }

    fn latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n| latency, µs | messages/s |")?;
        for name in &self.brokers {
            write!(f, " {name}: p50 / p99 / p99.9 |")?;
        }
        writeln!(f, "\n|---|---|{}", "---|".repeat(self.brokers.len()))?;
        for (case, all) in &self.cases {
            write!(f, "| {} | {} |", case.title, case.rate)?;
            for measured in all {
                write!(f, " {} |", percentiles(&measured.latency))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn connections(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n| connections |")?;
        for name in &self.brokers {
            write!(f, " {name} |")?;
        }
        let ratio = if self.brokers.len() > 1 { " ratio |" } else { "" };
        let columns = self.brokers.len() + if ratio.is_empty() { 2 } else { 3 };
        writeln!(f, "{ratio} target |\n|{}", "---|".repeat(columns))?;
        if let Some(storm) = self.storms.first().and_then(|storms| storms.first()) {
            let rate = |one: &Storm| one.connects as f64 / one.elapsed.as_secs_f64();
            let cpu = |one: &Storm| one.broker.as_secs_f64() * 1e6 / one.connects as f64;
            self.storm_row(f, &format!("{} connects, 64 at once: per second", storm.connects), rate)?;
            self.storm_row(f, "CPU µs per connect", cpu)?;
        }
        let Some(ours) = self.idle.first() else { return Ok(()) };
        for (index, (count, _)) in ours.at.iter().enumerate() {
            write!(f, "| bytes per idle connection with one subscription, {count} of them |")?;
            let each: Vec<f64> = self
                .idle
                .iter()
                .filter_map(|idle| idle.bytes_each().nth(index))
                .map(|(_, bytes)| bytes)
                .collect();
            each.iter().try_for_each(|bytes| write!(f, " {bytes:.0} |"))?;
            if let [ours, theirs, ..] = each[..] {
                write!(f, " {:.2} |", ours / theirs)?;
            }
            writeln!(f, " 4096 (Mosquitto 2.1.2: 6,056; rumqttd: 36,000 and more) |")?;
        }
        Ok(())
    }

    fn storm_row(
        &self,
        f: &mut fmt::Formatter<'_>,
        title: &str,
        value: impl Fn(&Storm) -> f64,
    ) -> fmt::Result {
        write!(f, "| {title} |")?;
        for storms in &self.storms {
            write!(f, " {:.0} |", median(storms.iter().map(&value)))?;
        }
        if let [ours, theirs, ..] = &self.storms[..] {
            write!(f, " {:.2} |", ratio(ours, theirs, &value))?;
        }
        writeln!(f, " |")
    }
}

fn lost(measured: &Measured) -> u64 {
    measured.lost + measured.rounds.iter().map(|one| one.lost + one.misplaced).sum::<u64>()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADING}\n\n{}\n", self.head)?;
        if !self.cases.is_empty() {
            self.loads(f)?;
            self.latencies(f)?;
        }
        if !self.storms.is_empty() || !self.idle.is_empty() {
            self.connections(f)?;
        }
        if let Some(matched) = &self.matched {
            let at = |quantile| matched.lookups.value_at_quantile(quantile);
            writeln!(
                f,
                "\nMatching among {} filters (three of ten with a wildcard), in one thread: a lookup p50 **{} ns**, p99 **{} ns** \
                 (target 2,000), p99.9 {} ns, of which {} ns are the clock's; {:.0} ns each in a row, {:.1} filters found by each; \
                 {} bytes per filter; added in {:.2} s.",
                matched.filters,
                at(0.5),
                at(0.99),
                at(0.999),
                matched.clock_ns,
                matched.mean_ns,
                matched.found_per_lookup,
                matched.bytes_per_filter,
                matched.insert.as_secs_f64()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds() {
        assert!((ratio(&[1.0, 4.0, 9.0], &[2.0, 2.0, 3.0], |one| *one) - 2.0).abs() < f64::EPSILON);
    }
}
