//! Rolling restarts: each process drains and comes back, and no integration waits long (architecture §4.29).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tbmq_e2e::{
    api::http,
    deployment::{Deployment, Layout, Plane},
    work,
};
use tbmq_harness::{
    Need,
    client::{Plan, publish_all},
    http_sink::HttpSink,
    kafka::Kafka,
    ledger::Mark,
    postgres::Postgres,
    ready,
};
use tbmq_proto::control::integration_status::Phase;
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(120);
const INTEGRATIONS: u32 = 6;
/// Messages per second from each publisher; two publish to each integration.
const RATE: u64 = 20;
/// The longest time that an integration may get nothing.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Waits until every integration runs and every process answers for itself.
async fn settled(deployment: &Deployment, names: &[String]) -> Result<()> {
    for control in deployment.instances(Plane::Control) {
        let mut api = deployment.api_of(control)?;
        for name in names {
            api.await_phase(name, Phase::Active).await?;
        }
    }
    Ok(())
}

/// The longest time between two arrivals at each path, from `since` on.
fn pauses(sink: &HttpSink, since: Instant, until: Instant) -> BTreeMap<String, Duration> {
    let mut last: BTreeMap<String, Instant> =
        (0..INTEGRATIONS).map(|number| (format!("/{number}"), since)).collect();
    let mut pauses: BTreeMap<String, Duration> = BTreeMap::new();
    let mut note = |path: &str, from: Instant, to: Instant| {
        let longest = pauses.entry(path.to_owned()).or_default();
        *longest = (*longest).max(to.saturating_duration_since(from));
    };
    for one in sink.received().iter().filter(|one| one.at >= since && one.at <= until) {
        let before = last.insert(one.path.clone(), one.at).unwrap_or(since);
        note(&one.path, before, one.at);
    }
    for (path, at) in last {
        note(&path, at, until);
    }
    pauses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_each_plane_holds_no_integration_up_for_3_s() -> Result<()> {
    let test = "a_rolling_restart_of_each_plane_holds_no_integration_up_for_3_s";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = Layout::of(2, 2, 2).start(Kafka::shared(), Postgres::shared())?;
    let sink = HttpSink::start().await?;
    let mut names = Vec::new();
    for number in 0..INTEGRATIONS {
        let integration =
            http(&format!("roll {number}"), &[&format!("{number}/#")], &sink.url(&number.to_string()));
        names.push(deployment.api()?.create_active(integration).await?.name);
    }
    let mut loads: JoinSet<Result<Vec<Mark>>> = JoinSet::new();
    let seconds = 70;
    for number in 0..INTEGRATIONS {
        // Each integration is fed through both data planes: only an executor can hold it up.
        for data in 1..=2 {
            let broker = deployment.address(Plane::Data.nth(data), "mqtt")?;
            let plan = Plan::new(broker, &format!("{number}/a"), RATE * seconds).rate(RATE);
            loads.spawn(publish_all(plan.by(number * 2 + data - 1)));
        }
    }
    let warm = 50 * INTEGRATIONS as usize;
    sink.wait_for(warm, PATIENCE).await?;
    let mut longest = BTreeMap::new();
    for plane in [Plane::Executor, Plane::Data, Plane::Control] {
        for instance in deployment.instances(plane) {
            let since = Instant::now();
            deployment.drain(instance)?;
            deployment.start(instance)?;
            settled(&deployment, &names).await?;
            // What was moved back has arrived somewhere again.
            sink.wait_for(sink.count() + warm, PATIENCE).await?;
            let pauses = pauses(&sink, since, Instant::now());
            let worst = pauses.values().max().copied().unwrap_or_default();
            println!("{instance}: longest pause {worst:?}");
            longest.insert(instance, worst);
        }
    }
    let mut acknowledged = Vec::new();
    while let Some(load) = loads.join_next().await {
        acknowledged.extend(load??);
    }
    work::await_different(&sink, acknowledged.len(), PATIENCE).await?;
    for (instance, pause) in longest {
        ensure!(pause < PAUSE_MAX, "restarting {instance} held an integration up for {pause:?}");
    }
    deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_starts_and_serves_while_there_is_no_control_plane() -> Result<()> {
    let test = "a_data_plane_starts_and_serves_while_there_is_no_control_plane";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = Deployment::planes(Kafka::shared(), Postgres::shared())?;
    let sink = HttpSink::start().await?;
    deployment.api()?.create_active(http("kept", &["kept/#"], &sink.url("in"))).await?;
    deployment.kill(Plane::Control)?;
    work::publish(Plan::new(deployment.mqtt(), "kept/a", 100), 1).await?;
    work::await_different(&sink, 100, PATIENCE).await?;
    for plane in [Plane::Data, Plane::Executor] {
        deployment.kill(plane)?;
        deployment.start(plane)?;
    }
    work::publish(Plan::new(deployment.mqtt(), "kept/a", 100).first(100), 1).await?;
    work::await_different(&sink, 200, PATIENCE).await?;
    deployment.drain_all()
}
