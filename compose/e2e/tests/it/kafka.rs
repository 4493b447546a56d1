//! What an operator sees of topics, groups and lags, and what he may delete, while messages wait and flow.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tbmq_bus::{Bus, Outgoing, WriterConfig, spec_of, write};
use tbmq_e2e::{
    api::http_with,
    deployment::{Deployment, Plane},
    work,
};
use tbmq_harness::{
    Need,
    client::Plan,
    http_sink::{HttpSink, Mode},
    kafka::Kafka,
    postgres::Postgres,
    process, ready,
};
use tbmq_proto::{
    control::{
        DeleteConsumerGroupRequest, GroupLag, ListGroupLagsRequest, kafka_service_client::KafkaServiceClient,
    },
    ids::IntegrationId,
};
use tonic::{Code, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `tbmqctl`; exit code, stdout, stderr.
fn tbmqctl(deployment: &Deployment, arguments: &[&str]) -> Result<(i32, String, String)> {
    let (server, folder) = (format!("http://{}", deployment.grpc()), process::data_dir()?);
    let output = process::run("tbmqctl", arguments, &[("TBMQCTL_SERVER", &server)], folder.path())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().context("killed")?, text(&output.stdout), text(&output.stderr)))
}

/// What a command that succeeds prints as JSON.
fn read(deployment: &Deployment, arguments: &[&str]) -> Result<Vec<Value>> {
    let began = Instant::now();
    loop {
        let (code, stdout, stderr) = tbmqctl(deployment, &[arguments, &["-o", "json"]].concat())?;
        if code == 0 {
            return Ok(serde_json::from_str(&stdout)?);
        }
        // A busy Kafka may not answer in time.
        let is_busy = code == 3 || stderr.contains("DEPENDENCY_UNAVAILABLE");
        ensure!(is_busy && began.elapsed() < PATIENCE, "{arguments:?} ended with {code}: {stderr}");
    }
}

/// A command that the server refuses for this reason.
fn refused(deployment: &Deployment, arguments: &[&str], reason: &str) -> Result<()> {
    let (code, _, stderr) = tbmqctl(deployment, arguments)?;
    ensure!(
        code == 1 && stderr.contains(&format!("reason: {reason}")),
        "{arguments:?} ended with {code}: {stderr}"
    );
    Ok(())
}

async fn service(deployment: &Deployment) -> Result<KafkaServiceClient<Channel>> {
    let channel = Channel::from_shared(format!("http://{}", deployment.grpc()))?.connect().await?;
    Ok(KafkaServiceClient::new(channel))
}

/// Asks for the lag of a message topic until it is so many messages.
async fn await_lag(deployment: &Deployment, topic: &str, messages: u64) -> Result<GroupLag> {
    let mut client = service(deployment).await?;
    let began = Instant::now();
    loop {
        let request = ListGroupLagsRequest { text_search: topic.to_owned(), ..Default::default() };
        let lag = match client.list_group_lags(request).await {
            Ok(found) => found.into_inner().group_lags.into_iter().find(|lag| lag.topic == topic),
            // A busy Kafka may not answer in time.
            Err(status) if status.code() == Code::Unavailable && began.elapsed() < PATIENCE => continue,
            Err(status) => return Err(status.into()),
        };
        if let Some(lag) = lag.as_ref().filter(|lag| lag.lag_messages == messages) {
            return Ok(lag.clone());
        }
        ensure!(began.elapsed() < PATIENCE, "not {messages} but {lag:?} wait");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Leaves the topic of an integration that nobody knows, with a message in it.
async fn leave_orphan(bus: &Arc<dyn Bus>, deployment: &Deployment) -> Result<String> {
    let topic = deployment.catalogue().messages(IntegrationId(uuid::Uuid::now_v7()), 1);
    bus.admin().create_topic(&spec_of(&topic, 1)).await?;
    let writer = bus.writer(WriterConfig::new("test")).await?;
    let record = Outgoing { partition: Some(0), key: None, value: Some(b"forgotten"), headers: &[] };
    write(&*writer, &writer.topic(&topic.name), record).await?;
    Ok(topic.name)
}

/// A file log can be opened by one process at a time.
async fn leave_orphan_in(deployment: &mut Deployment, is_standalone: bool) -> Result<String> {
    if !is_standalone {
        return leave_orphan(&deployment.bus()?, deployment).await;
    }
    deployment.drain(Plane::All)?;
    let log = deployment.embedded_bus()?;
    let bus: Arc<dyn Bus> = log.clone();
    let topic = leave_orphan(&bus, deployment).await?;
    drop(bus);
    log.close().await;
    deployment.start(Plane::All)?;
    Ok(topic)
}

async fn story(mut deployment: Deployment, is_standalone: bool) -> Result<()> {
    let sink = HttpSink::start().await?;
    let mut api = deployment.api()?;
    let delivery = r#"{"ackStrategy":"RETRY_ALL","retries":0,"pauseBetweenRetriesSec":0,"packProcessingTimeoutMs":2000}"#;
    let integration = api.create_active(http_with("pumps", &["k/#"], &sink.url("in"), delivery)).await?;
    let topic = deployment.catalogue().messages(integration.uid.parse()?, 1).name;
    let group = deployment.catalogue().downlink_group(&"HTTP".parse()?);

    // The remote end hangs: what was published waits, no more and no less.
    sink.set_mode(Mode::BlackHole).await?;
    work::publish(Plan::new(deployment.mqtt(), "k/a", 20), 1).await?;
    let lag = await_lag(&deployment, &topic, 20).await?;
    assert_eq!(
        (lag.integration.as_str(), lag.integration_display_name.as_str()),
        (&*integration.name, "pumps")
    );
    ensure!(lag.lag_seconds.is_some_and(|age| age < PATIENCE.as_secs_f64()), "{lag:?}");
    let rows = read(&deployment, &["kafka", "lag", "--waiting", "--search", "PUMPS"])?;
    let seen: Vec<_> = rows.iter().map(|row| (&row["topic"], &row["lagMessages"])).collect();
    assert_eq!(seen, [(&Value::from(topic.as_str()), &Value::from(20))]);
    sink.set_mode(Mode::Serving).await?;
    await_lag(&deployment, &topic, 0).await?;
    work::await_different(&sink, 20, PATIENCE).await?;

    // Executors are in the group that shares integrations among them.
    refused(&deployment, &["kafka", "delete-group", &group, "--yes"], "GROUP_IN_USE")?;
    let shown = &read(&deployment, &["kafka", "groups", "--search", &group])?[0];
    ensure!(shown["state"] == "STABLE" && shown["memberCount"].as_u64() > Some(0), "{shown}");

    // An orphan goes, while messages wait beside it in the topic of an integration.
    let orphan = leave_orphan_in(&mut deployment, is_standalone).await?;
    let mut api = deployment.api()?;
    api.await_phase(&integration.name, tbmq_proto::control::integration_status::Phase::Active).await?;
    sink.set_mode(Mode::BlackHole).await?;
    work::publish(Plan::new(deployment.mqtt(), "k/a", 10).first(20), 1).await?;
    await_lag(&deployment, &topic, 10).await?;
    let orphans = || {
        let found = read(&deployment, &["kafka", "topics", "--owner", "orphan"])?;
        anyhow::Ok(
            found.into_iter().map(|one| (one["topic"].clone(), one["sizeBytes"].clone())).collect::<Vec<_>>(),
        )
    };
    let found = orphans()?;
    ensure!(
        found.len() == 1 && found[0].0 == orphan && found[0].1.as_u64() > Some(0),
        "{found:?}, not {orphan}"
    );
    refused(&deployment, &["kafka", "delete-orphans", &topic, "--yes"], "TOPIC_IN_USE")?;
    refused(&deployment, &["kafka", "delete-orphans", &orphan, &topic, "--yes"], "TOPIC_IN_USE")?;
    assert_eq!(read(&deployment, &["kafka", "delete-orphans", "--dry-run"])?.len(), 1);
    assert_eq!(orphans()?.len(), 1, "it was only asked");
    assert_eq!(read(&deployment, &["kafka", "delete-orphans", "--yes"])?[0]["topic"], orphan);
    assert_eq!(orphans()?, []);
    assert_eq!(read(&deployment, &["kafka", "topics", "--search", &topic])?[0]["owner"], "INTEGRATION");
    sink.set_mode(Mode::Serving).await?;
    work::await_different(&sink, 30, PATIENCE).await?;
    await_lag(&deployment, &topic, 0).await?;
    let (code, shown, stderr) = tbmqctl(&deployment, &["kafka", "cluster"])?;
    ensure!(code == 0 && !shown.contains("not known"), "{shown}{stderr}");

    if !is_standalone {
        deployment.drain(Plane::Executor)?;
        let mut client = service(&deployment).await?;
        let began = Instant::now();
        let name = format!("consumerGroups/{group}");
        while let Err(status) = client
            .delete_consumer_group(DeleteConsumerGroupRequest { name: name.clone(), validate_only: false })
            .await
        {
            ensure!(status.code() == Code::FailedPrecondition && began.elapsed() < PATIENCE, "{status}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(read(&deployment, &["kafka", "groups", "--search", &group])?, [Value::Null; 0]);
        refused(&deployment, &["kafka", "delete-group", &group, "--yes"], "NOT_FOUND")?;
    }
    deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn lags_orphans_and_groups_are_told_and_ruled_over_kafka() -> Result<()> {
    if !ready("lags_orphans_and_groups_are_told_and_ruled_over_kafka", &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    Box::pin(story(Deployment::planes(Kafka::shared(), Postgres::shared())?, false)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lags_orphans_and_groups_are_told_and_ruled_over_the_embedded_log() -> Result<()> {
    Box::pin(story(Deployment::standalone()?, true)).await
}
