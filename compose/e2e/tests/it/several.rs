//! Several of each plane are one system.

use std::time::Duration;

use anyhow::Result;
use tbmq_e2e::{
    api::http,
    deployment::{Layout, Plane},
    work,
};
use tbmq_harness::{Need, client::Plan, http_sink::HttpSink, kafka::Kafka, postgres::Postgres, ready};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn two_of_each_plane_serve_the_same_integrations_and_are_all_among_the_nodes() -> Result<()> {
    if !ready(
        "two_of_each_plane_serve_the_same_integrations_and_are_all_among_the_nodes",
        &[Need::Kafka, Need::Postgres],
    ) {
        return Ok(());
    }
    let mut deployment = Layout::of(2, 2, 2).start(Kafka::shared(), Postgres::shared())?;
    let mut first = deployment.api_of(Plane::Control.nth(1))?;
    let mut second = deployment.api_of(Plane::Control.nth(2))?;
    let all = ["control-1", "control-2", "data-1", "data-2", "executor-1", "executor-2"];
    let is_live = |nodes: &[tbmq_proto::control::Node], id: &str| {
        nodes.iter().any(|node| node.service_id == id && node.live)
    };
    first.await_nodes(|nodes| all.iter().all(|id| is_live(nodes, id))).await?;

    let sink = HttpSink::start().await?;
    let integration = second.create_active(http("shared", &["s/#"], &sink.url("in"))).await?;
    let holder = first.await_holder(&integration.name, 0, |holder| !holder.service_id.is_empty()).await?;
    assert!(holder.service_id.starts_with("executor-"), "{holder:?}");
    for (publisher, data) in deployment.instances(Plane::Data).into_iter().enumerate() {
        let plan = Plan::new(deployment.address(data, "mqtt")?, "s/a", 10).first(10 * publisher as u64);
        work::publish(plan, 1).await?;
    }
    work::await_different(&sink, 20, PATIENCE).await?;
    deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_stands_still_while_it_is_frozen_and_its_twin_has_ports_of_its_own() -> Result<()> {
    if !ready(
        "a_process_stands_still_while_it_is_frozen_and_its_twin_has_ports_of_its_own",
        &[Need::Kafka, Need::Postgres],
    ) {
        return Ok(());
    }
    let mut deployment = Layout::default().prepare(Kafka::shared(), Postgres::shared())?;
    deployment.start(Plane::Control)?;
    let mut api = deployment.api()?;
    deployment.freeze(Plane::Control)?;
    let silent = tokio::time::timeout(Duration::from_millis(300), api.list_nodes()).await;
    assert!(silent.is_err(), "{silent:?}");
    deployment.thaw(Plane::Control)?;
    api.await_nodes(|nodes| nodes.iter().any(|node| node.live)).await?;

    let twin = deployment.twin(Plane::Control)?;
    assert_ne!(twin.address("grpc"), deployment.grpc());
    assert_eq!(twin.admin("/livez")?.0, 200);
    twin.kill()
}
