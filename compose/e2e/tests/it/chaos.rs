//! A few rounds of the fault tool, and every round that once failed.

use anyhow::Result;
use tbmq_e2e::{
    chaos::{
        plan::Fault,
        report::Outcome,
        run::{Options, run},
    },
    deployment::Plane,
};
use tbmq_harness::{Need, ready};

/// Seed, beginnings of the names of the faults that were drawn from (`""`: all), and numbers of the rounds that failed
/// once.
const ONCE_FAILED: &[(u64, &[&str], &[u32])] = &[
    (1, &[""], &[10, 20]),
    (2, &[""], &[2, 4, 11, 18, 22]),
    (5, &["kafka", "disk", "configuration"], &[1, 7]),
    (7, &["configuration", "kafka-restart"], &[11, 12]),
    (8, &["configuration", "kafka-restart", "kafka-kill"], &[3, 4]),
];

async fn judge(options: Options) -> Result<()> {
    let report = run(&options, |outcome| println!("{outcome}")).await?;
    assert_eq!(report.outcomes.iter().map(Outcome::lost).sum::<usize>(), 0);
    assert!(report.is_clean(), "seed {}", options.seed);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn five_rounds_with_every_plane_killed_a_freeze_and_kafka_restarted_lose_nothing() -> Result<()> {
    if !ready(
        "five_rounds_with_every_plane_killed_a_freeze_and_kafka_restarted_lose_nothing",
        &[Need::Kafka, Need::Postgres],
    ) {
        return Ok(());
    }
    let logs = tempfile::tempdir()?;
    let mut options = Options::new(1, 5, logs.path().to_owned());
    options.faults = vec![
        Fault::Kill(Plane::Control),
        Fault::Kill(Plane::Data),
        Fault::Kill(Plane::Executor),
        Fault::Freeze(Plane::Executor),
        Fault::KafkaRestart,
    ];
    judge(options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_that_once_failed_lose_nothing() -> Result<()> {
    if !ready("rounds_that_once_failed_lose_nothing", &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    for (seed, faults, rounds) in ONCE_FAILED {
        let logs = tempfile::tempdir()?;
        let last = rounds.iter().copied().max().unwrap_or(0);
        let options = Options {
            only: rounds.to_vec(),
            faults: faults.iter().copied().flat_map(Fault::named).collect(),
            ..Options::new(*seed, last, logs.path().to_owned())
        };
        judge(options).await?;
    }
    Ok(())
}
