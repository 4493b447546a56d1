//! How long it takes to find who gets a message among a million filters, and what a filter costs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use tbmq_harness::process::Usage;
use tbmq_mqtt::tree::Tree;

/// Lookups that are timed one by one, and again all together.
const LOOKUPS: u64 = 1_000_000;

/// Areas that the devices are in.
const AREAS: u64 = 1_000;

/// What was measured.
pub(super) struct Matched {
    pub(super) filters: u64,
    pub(super) insert: Duration,
    pub(super) bytes_per_filter: u64,
    /// ns, with two looks at the clock.
    pub(super) lookups: Histogram<u64>,
    /// ns for two looks at the clock.
    pub(super) clock_ns: u64,
    /// ns for a lookup, without looks at the clock.
    pub(super) mean_ns: f64,
    pub(super) found_per_lookup: f64,
}

/// Seven of ten filters name a topic, the others have a wildcard of each kind. Eight of ten lie under a device, of which
/// there are as many in each area.
fn filter(number: u64) -> String {
    let (area, device) = (number % AREAS, number / AREAS / 10);
    match number / AREAS % 10 {
        sensor @ 0..7 => format!("area/{area}/device/{device}/sensor/{sensor}"),
        7 => format!("area/{area}/device/{device}/sensor/+"),
        8 => format!("area/{area}/device/{device}/#"),
        _ => format!("area/+/device/{device}/alarm/{area}"),
    }
}

fn topic(number: u64, filters: u64) -> String {
    let devices = (filters / AREAS / 10).max(1);
    let (area, device, sensor) = (number % AREAS, number / AREAS % devices, number / AREAS / devices % 10);
    format!("area/{area}/device/{device}/sensor/{sensor}")
}

pub(super) fn run(filters: u64) -> Result<Matched> {
    let resident = || Ok::<_, anyhow::Error>(Usage::of(std::process::id())?.resident_bytes);
    let before = resident()?;
    let mut tree: Tree<u64, u64> = Tree::new();
    let began = Instant::now();
    for number in 0..filters {
        tree.insert(&filter(number), number, number);
    }
    let insert = began.elapsed();
    let bytes_per_filter = resident()?.saturating_sub(before) / filters;

    // A step that is prime to all: topics come in an order that no cache expects.
    let topics: Vec<String> =
        (0..LOOKUPS).map(|number| topic(number * 7_368_787 % (10 * filters), filters)).collect();
    let mut found = 0_u64;
    let began = Instant::now();
    for topic in &topics {
        tree.matching(topic, |_, _| found += 1);
    }
    let mean_ns = began.elapsed().as_nanos() as f64 / LOOKUPS as f64;
    ensure!(found > 0, "no topic matched");

    let mut lookups = Histogram::new(3)?;
    let mut clock = Histogram::<u64>::new(3)?;
    for topic in &topics {
        let began = Instant::now();
        tree.matching(topic, |_, _| found += 1);
        lookups.record(began.elapsed().as_nanos() as u64)?;
        let began = Instant::now();
        clock.record(began.elapsed().as_nanos() as u64)?;
    }
    Ok(Matched {
        filters,
        insert,
        bytes_per_filter,
        lookups,
        clock_ns: clock.value_at_quantile(0.5),
        mean_ns,
        found_per_lookup: found as f64 / (2 * LOOKUPS) as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_are_looked_up_match_filters_of_each_kind() {
        let filters = 100_000;
        let mut tree = Tree::new();
        for number in 0..filters {
            tree.insert(&filter(number), number, number);
        }
        let mut found = Vec::new();
        tree.matching(&topic(0, filters), |number, _| {
            found.push(number / AREAS % 10);
        });
        found.sort_unstable();
        assert_eq!(found, [0, 7, 8]);
    }
}
