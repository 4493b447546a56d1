//! Executors come and go while integrations are created.

use anyhow::Result;
use tbmq_e2e::storm::{self, Storm};
use tbmq_harness::{Need, kafka::Kafka, postgres::Postgres, ready};

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_storm_leaves_each_integration_with_one_owner() -> Result<()> {
    let name = "a_rebalance_storm_leaves_each_integration_with_one_owner";
    if !ready(name, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let storm = Storm { integrations: 100, callers: 32, pause_ms: 1_000..3_000, seed: 4 };
    let report = storm::run(Kafka::shared(), Postgres::shared(), &storm).await?;
    println!("{report:?}");
    assert_eq!(report.owned.values().sum::<usize>(), 100);
    assert!(report.killed > 0 && report.added > 0 && report.drained > 0, "{report:?}");
    Ok(())
}
