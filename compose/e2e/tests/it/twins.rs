//! Two processes with one service id: the newer goes on, the older ends and says why (architecture §4.27).

use std::time::Duration;

use anyhow::Result;
use tbmq_e2e::{
    api::http,
    deployment::{Layout, Plane},
    work,
};
use tbmq_harness::{Need, client::Plan, http_sink::HttpSink, kafka::Kafka, postgres::Postgres, ready};

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a second process beside the first one of a plane, and returns what that one said at its end.
async fn replaced(test: &str, plane: Plane) -> Result<()> {
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = Layout::of(1, 1, 1).start(Kafka::shared(), Postgres::shared())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("twins", &["load/#"], &sink.url("in"))).await?;
    work::publish(Plan::new(deployment.mqtt(), "load/a", 100), 1).await?;
    work::await_different(&sink, 100, PATIENCE).await?;

    let newer = deployment.twin(plane)?;
    let (status, output) = deployment.await_end(plane, PATIENCE)?;
    assert!(!status.success(), "it ends with {status}");
    let id = plane.nth(1).to_string();
    assert!(output.contains(&format!("service id {id}")) && output.contains("TB_SERVICE_ID"), "{output}");

    let broker = if plane == Plane::Data { newer.address("mqtt") } else { deployment.mqtt() };
    if plane == Plane::Control {
        api = tbmq_e2e::api::Api::connect(newer.address("grpc"))?;
        let mut changed = api.get(&integration.name).await?;
        changed.configuration_json = changed.configuration_json.replace("load/#", "after/#");
        api.update(changed).await?;
    }
    let topic = if plane == Plane::Control { "after/a" } else { "load/a" };
    work::publish(Plan::new(broker, topic, 100).first(100), 1).await?;
    work::await_different(&sink, 200, PATIENCE).await?;
    newer.drain(PATIENCE)?;
    deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_of_two_executors_with_one_id_goes_on() -> Result<()> {
    replaced("the_newer_of_two_executors_with_one_id_goes_on", Plane::Executor).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_of_two_data_planes_with_one_id_goes_on() -> Result<()> {
    replaced("the_newer_of_two_data_planes_with_one_id_goes_on", Plane::Data).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_of_two_control_planes_with_one_id_goes_on() -> Result<()> {
    replaced("the_newer_of_two_control_planes_with_one_id_goes_on", Plane::Control).await
}
