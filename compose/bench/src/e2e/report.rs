//! What is printed, and written into the page of results.

use std::fmt;

use hdrhistogram::Histogram;

use super::{Floor, Options, Pass, quantiles_ms};
use crate::page::median;

/// Begins the section of the page.
pub(super) const HEADING: &str = "## MQTT QoS 1 → bus → executor → HTTP or Kafka";

/// Messages at a fixed rate.
pub(super) struct Paced {
    /// Per second, as planned.
    pub(super) rate: f64,
    /// What the bare producer waited for acknowledgements, without anything else running; none where there is no Kafka.
    pub(super) floor_us: Option<Histogram<u64>>,
    pub(super) pass: Pass,
}

/// What one sink did in one round.
pub(super) struct Round {
    pub(super) floor: Floor,
    /// What the bare Kafka clients take from data plane to executor, CPU µs per message; none where there is no Kafka, or
    /// another spread.
    pub(super) bus_us: Option<f64>,
    pub(super) flat_out: Pass,
    pub(super) paced: Vec<Paced>,
}

impl Round {
    fn passes(&self) -> impl Iterator<Item = &Pass> {
        std::iter::once(&self.flat_out).chain(self.paced.iter().map(|paced| &paced.pass))
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pass { end_to_end_ms: _, lost, repeated, .. } = &self.flat_out;
        write!(
            f,
            "{:.0}/s end to end, own CPU {:.1} µs ({}), floor {:.0}/s and {:.1} µs, {lost} lost, {repeated} twice",
            self.flat_out.rate(),
            self.flat_out.own_us(),
            spent(&self.flat_out),
            self.floor.rate,
            self.floor.us,
        )?;
        if let Some(us) = self.bus_us {
            write!(f, ", bus's floor {us:.1} µs")?;
        }
        for Paced { rate, floor_us, pass } in &self.paced {
            let [p50, p99, _] = pass.end_to_end_ms;
            let puback = pass.puback_ms()[1];
            write!(f, "; at {rate:.0}/s p50 {p50:.1}, p99 {p99:.1}, PUBACK p99 {puback:.1} ms")?;
            if let Some(us) = floor_us {
                write!(f, " (bare producer {:.1})", quantiles_ms(us)[1])?;
            }
        }
        Ok(())
    }
}

fn spent(pass: &Pass) -> String {
    let each = pass.spent.iter().map(|spent| {
        format!("{} {:.1} µs, {:.0} MB", spent.name, spent.us, spent.resident_bytes as f64 / 1e6)
    });
    each.collect::<Vec<_>>().join(" · ")
}

/// One sink over one bus with so many integrations.
pub(super) struct Row {
    pub(super) sink: &'static str,
    pub(super) bus: &'static str,
    pub(super) integrations: u32,
    pub(super) rounds: Vec<Round>,
}

impl Row {
    fn median(&self, value: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(value))
    }

    fn name(&self) -> String {
        format!("{} | {}", self.sink, self.bus)
    }

    /// Medians for each process.
    fn of_each(&self, value: impl Fn(&super::Spent) -> f64, digits: usize) -> String {
        let names = self.rounds.first().map(|round| &round.flat_out.spent[..]).unwrap_or_default();
        let each = names.iter().enumerate().map(|(at, spent)| {
            let value = self.median(|round| value(&round.flat_out.spent[at]));
            format!("{} {value:.digits$}", spent.name)
        });
        each.collect::<Vec<_>>().join(" · ")
    }
}

/// Everything that was measured.
pub(super) struct Report {
    head: String,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        let Options {
            publishers, window, size, topics, rounds, warm_up, warm_up_s, linger_ms, paced_s, ..
        } = options;
        let head = format!(
            "`cargo xtask bench e2e`: {publishers} publishers with at most {window} unacknowledged messages each, {size} bytes, bare \
             payloads, RETRY_ALL without end, spread over {topics} MQTT topics. Up to ten integrations get the same load, more get one \
             after Zipf (the n-th 1/n of the first). Over Kafka: one data plane, one executor, one control plane, one node of Kafka 3.9.1 \
             with replication factor 1, which a Kafka sink writes to as well (acks all, linger {linger_ms} ms, one partition), PostgreSQL 15; \
             embedded: all of `tbmq`, whose log syncs to the disk before each acknowledgement. Medians of {rounds} rounds, in which the \
             sinks have their turns, after {warm_up} messages and {warm_up_s} s at each rate that do not count. The floor is the bare client library (reqwest with 128 \
             requests in flight; the Kafka client of the sink), with the same bodies and the same far end, just before. The bus's floor is \
             what the bare Kafka clients take to produce and consume as many messages over as many topics, with as many unacknowledged and the data plane's linger. CPU is user and system time per message, \
             memory is resident after the load. Latencies are at fixed rates (an open loop, {paced_s} s each): end to end from the publisher's \
             clock to the sink's (Kafka: its time of appending, whole ms), PUBACK from the write of the PUBLISH. Beside that stands what the bare producer waits for Kafka at the same rate, \
             over as many topics as there are integrations, with the data plane's linger of 1 ms and nothing else running, just before."
        );
        Self { head, rows: Vec::new() }
    }

    pub(super) fn lost(&self) -> u64 {
        let rounds = self.rows.iter().flat_map(|row| &row.rounds);
        rounds.flat_map(Round::passes).map(|pass| pass.lost).sum()
    }

    fn repeated(&self) -> u64 {
        let rounds = self.rows.iter().flat_map(|row| &row.rounds);
        rounds.flat_map(Round::passes).map(|pass| pass.repeated).sum()
    }

    fn rates(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| sink | bus | integrations | end to end, messages/s | acknowledged/s | of the floor's rate | own CPU µs per message | \
             floor's CPU µs | bus's floor, CPU µs | CPU µs of each | generator · far end | resident MB |\n|{}",
            "---|".repeat(12)
        )?;
        for row in &self.rows {
            let mut bus = "-".to_owned();
            if row.rounds.iter().all(|round| round.bus_us.is_some()) {
                bus = format!("{:.1}", row.median(|round| round.bus_us.unwrap_or(f64::NAN)));
            }
            writeln!(
                f,
                "| {} | {} | **{:.0}** | {:.0} | {:.2} | **{:.1}** | {:.1} | {} | {} | {:.1} · {:.1} | {} |",
                row.name(),
                row.integrations,
                row.median(|round| round.flat_out.rate()),
                row.median(|round| round.flat_out.acknowledged_rate()),
                row.median(|round| round.flat_out.rate() / round.floor.rate),
                row.median(|round| round.flat_out.own_us()),
                row.median(|round| round.floor.us),
                bus,
                row.of_each(|spent| spent.us, 1),
                row.median(|round| round.flat_out.generator_us),
                row.median(|round| round.flat_out.far_end_us),
                row.of_each(|spent| spent.resident_bytes as f64 / 1e6, 0),
            )?;
        }
        Ok(())
    }

    fn latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| sink | bus | messages/s | end to end, p50 / p99 / p99.9 ms | PUBACK, p50 / p99 / p99.9 ms | bare producer's acknowledgement, ms | CPU µs of each |\n|{}",
            "---|".repeat(7)
        )?;
        for row in &self.rows {
            let Some(first) = row.rounds.first() else { continue };
            for at in 0..first.paced.len() {
                let of = |value: &dyn Fn(&Paced) -> [f64; 3]| {
                    let [p50, p99, p999] =
                        [0, 1, 2].map(|which| row.median(|round| value(&round.paced[at])[which]));
                    format!("{p50:.1} / **{p99:.1}** / {p999:.1}")
                };
                // None over another bus.
                let mut acknowledged = "-".to_owned();
                if first.paced[at].floor_us.is_some() {
                    acknowledged = of(&|paced| paced.floor_us.as_ref().map_or([f64::NAN; 3], quantiles_ms));
                }
                let cpu: Vec<String> = (0..first.flat_out.spent.len())
                    .map(|which| {
                        let us = row.median(|round| round.paced[at].pass.spent[which].us);
                        format!("{} {us:.1}", first.flat_out.spent[which].name)
                    })
                    .collect();
                writeln!(
                    f,
                    "| {} | {:.0} | {} | {} | {} | {} |",
                    row.name(),
                    row.median(|round| round.paced[at].rate),
                    of(&|paced| paced.pass.end_to_end_ms),
                    of(&|paced| paced.pass.puback_ms()),
                    acknowledged,
                    cpu.join(" · ")
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADING}\n\n{}\n", self.head)?;
        self.rates(f)?;
        writeln!(f)?;
        self.latencies(f)?;
        writeln!(f, "\nLost: {}. Arrived twice: {}.", self.lost(), self.repeated())
    }
}
