//! kill -9 in the middle of the load: nothing acknowledged is lost.

use std::time::Duration;

use anyhow::Result;
use tbmq_harness::{
    Need, client::Plan, http_sink::HttpSink, kafka::Kafka, ledger::Audit, postgres::Postgres, ready,
};

use tbmq_e2e::{
    api::http,
    deployment::{Deployment, Plane},
    work,
};

const PUBLISHERS: u32 = 20;
const EACH: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(120);

/// Publishes at full speed, kills `victim` in the middle, starts it again, waits until all has arrived, and audits.
async fn killed(mut deployment: Deployment, victim: Plane) -> Result<Audit> {
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("road", &["load/#"], &sink.url("in"))).await?;
    let total = u64::from(PUBLISHERS) * EACH;
    let load = tokio::spawn(work::publish(Plan::new(deployment.mqtt(), "load/a", EACH), PUBLISHERS));
    // In the middle: some have arrived, most have not.
    sink.wait_for(total as usize / 5, PATIENCE).await?;
    deployment.kill(victim)?;
    deployment.start(victim)?;
    let acknowledged = load.await??;
    assert_eq!(acknowledged.len() as u64, total);
    work::await_different(&sink, total as usize, PATIENCE).await?;
    deployment.drain_all()?;
    let bus = deployment.bus()?;
    let uid = integration.uid.parse()?;
    let ledger = work::ledger(&bus, &deployment.catalogue(), uid, &acknowledged, ("in", &sink)).await?;
    let audit = ledger.audit();
    audit.assert_clean();
    println!("killed {victim:?}: {audit}");
    Ok(audit)
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_all_in_one_loses_nothing_acknowledged() -> Result<()> {
    for _ in 0..3 {
        let audit = killed(Deployment::standalone()?, Plane::All).await?;
        assert!(audit.arrived >= audit.acknowledged);
    }
    Ok(())
}

async fn killing_a_plane(test: &str, victim: Plane) -> Result<()> {
    if ready(test, &[Need::Kafka, Need::Postgres]) {
        killed(Deployment::planes(Kafka::shared(), Postgres::shared())?, victim).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_data_plane_loses_nothing_acknowledged() -> Result<()> {
    killing_a_plane("killing_the_data_plane_loses_nothing_acknowledged", Plane::Data).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_executor_loses_nothing_acknowledged() -> Result<()> {
    killing_a_plane("killing_the_executor_loses_nothing_acknowledged", Plane::Executor).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_control_plane_disturbs_no_message() -> Result<()> {
    killing_a_plane("killing_the_control_plane_disturbs_no_message", Plane::Control).await
}
