//! Several control planes: one leads, the other takes over, and what a stalled one returns with changes nothing
//! (architecture §4.7).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tbmq_bus::{Bus, CleanupPolicy, Outgoing, TopicSpec, WriterConfig, write};
use tbmq_e2e::{
    api::http,
    deployment::{Deployment, Layout, Plane},
    instance::Instance,
    work,
};
use tbmq_harness::{
    Need,
    client::Plan,
    http_sink::HttpSink,
    kafka::{Kafka, KafkaOptions},
    postgres::Postgres,
    process::Signal,
    ready,
};
use tbmq_proto::{
    control::integration_status::Phase,
    topic::{Catalogue, DOWNLINK_PARTITIONS, REVISION_HEADER},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds that nothing tells of but asking.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await? {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn leads(deployment: &Deployment, instance: Instance) -> bool {
    let metrics = deployment.metrics(instance).unwrap_or_default();
    metrics.lines().any(|line| line == "tbmq_control_leading 1")
}

async fn leader(deployment: &Deployment) -> Result<(Instance, Instance)> {
    let [first, second] = [Plane::Control.nth(1), Plane::Control.nth(2)];
    until("a control plane leads", async || Ok(leads(deployment, first) || leads(deployment, second)))
        .await?;
    Ok(if leads(deployment, first) { (first, second) } else { (second, first) })
}

/// Configuration topics that Kafka compacts as soon as it can.
async fn create_eager_topics(bus: &dyn Bus, catalogue: &Catalogue) -> Result<()> {
    let downlink = catalogue.downlink(&"HTTP".parse()?).name;
    for (name, partitions) in
        [(catalogue.integration_subscriptions().name, 1), (downlink, DOWNLINK_PARTITIONS)]
    {
        let settings =
            [("segment.ms", "500"), ("min.cleanable.dirty.ratio", "0.0"), ("max.compaction.lag.ms", "1000")];
        let spec = TopicSpec {
            name,
            partitions,
            replication_factor: 1,
            policy: CleanupPolicy::Compact,
            settings: settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        bus.admin().create_topic(&spec).await?;
    }
    Ok(())
}

/// Revisions that lie on a topic under a key, oldest first.
async fn revisions(bus: &std::sync::Arc<dyn Bus>, topic: &str, key: &str) -> Result<Vec<u64>> {
    let all = work::read_topic(bus, topic).await?;
    let own = all.values().flatten().filter(|record| record.key.as_deref() == Some(key.as_bytes()));
    own.map(|record| Ok(record.header(REVISION_HEADER).context("no revision")?.parse()?)).collect()
}

/// Rolls the segments of a topic and waits until only one record of the key is left.
async fn compacted(
    bus: &std::sync::Arc<dyn Bus>,
    topic: &str,
    partitions: u32,
    key: &str,
) -> Result<Vec<u64>> {
    let writer = bus.writer(WriterConfig::new("roller")).await?;
    let handle = writer.topic(topic);
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Kafka rolls a segment only when something is appended.
        for partition in 0..partitions {
            let record = Outgoing {
                partition: Some(partition),
                key: Some(b"00000000-0000-0000-0000-000000000000"),
                value: None,
                headers: &[],
            };
            write(&*writer, &handle, record).await?;
        }
        let left = revisions(bus, topic, key).await?;
        if left.len() == 1 {
            return Ok(left);
        }
        ensure!(Instant::now() < deadline, "{topic} is not compacted: revisions {left:?}");
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_frozen_relayer_returns_with_never_covers_a_newer_revision() -> Result<()> {
    let test = "what_a_frozen_relayer_returns_with_never_covers_a_newer_revision";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let properties = [("log.cleaner.backoff.ms", "200"), ("group.initial.rebalance.delay.ms", "0")];
    let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let kafka = Kafka::start(KafkaOptions { properties, ..KafkaOptions::default() })?;
    let mut deployment = Layout::of(2, 1, 1).prepare(&kafka, Postgres::shared())?;
    let (bus, catalogue) = (deployment.bus()?, deployment.catalogue());
    create_eager_topics(&*bus, &catalogue).await?;
    deployment.start_all()?;
    let (leading, other) = leader(&deployment).await?;
    let sink = HttpSink::start().await?;
    let mut api = deployment.api_of(leading)?;
    let first = api.create_active(http("road", &["a/#"], &sink.url("in"))).await?;

    // The SQL commit is done; what is to be written can't get through.
    kafka.signal(Signal::STOP)?;
    let update = tokio::spawn({
        let (mut api, mut integration) = (deployment.api_of(leading)?, first.clone());
        integration.configuration_json = integration.configuration_json.replace("a/#", "b/#");
        integration.etag.clear();
        async move { api.update(integration).await }
    });
    let mut stale = first.clone();
    until("the update is in the store", async || {
        stale = api.get(&first.name).await?;
        Ok(stale.revision > first.revision)
    })
    .await?;
    deployment.freeze(leading)?;
    update.abort();
    kafka.signal(Signal::CONT)?;

    until("the other one leads", async || Ok(leads(&deployment, other))).await?;
    let mut api = deployment.api_of(other)?;
    let mut integration = api.get(&first.name).await?;
    assert_eq!(integration.revision, stale.revision, "the truth is in SQL");
    integration.configuration_json = integration.configuration_json.replace("b/#", "c/#");
    let newest = api.update(integration).await?;
    deployment.thaw(leading)?;
    until("the frozen one leads no more", async || Ok(!leads(&deployment, leading))).await?;
    api.await_phase(&first.name, Phase::Active).await?;

    let downlink = catalogue.downlink(&"HTTP".parse()?).name;
    let subscriptions = catalogue.integration_subscriptions().name;
    for (topic, partitions) in [(&downlink, DOWNLINK_PARTITIONS), (&subscriptions, 1)] {
        let all = revisions(&bus, topic, &first.uid).await?;
        assert!(all.is_sorted(), "an older revision lies after a newer one on {topic}: {all:?}");
        assert_eq!(compacted(&bus, topic, partitions, &first.uid).await?, [newest.revision]);
    }
    deployment.drain_all()?;
    deployment.start_all()?;
    let mut api = deployment.api_of(other)?;
    // The executor and the data plane.
    api.await_integration(&first.name, PATIENCE, |found| {
        let holders = found.status.iter().flat_map(|status| &status.holders);
        holders.filter(|holder| holder.observed_revision == newest.revision).count() == 2
    })
    .await?;
    work::publish(Plan::new(deployment.mqtt(), "b/x", 10), 1).await?;
    work::publish(Plan::new(deployment.mqtt(), "c/x", 10).first(10), 1).await?;
    work::await_different(&sink, 10, PATIENCE).await?;
    let arrived = work::delivered(&sink.received());
    assert!(
        arrived.iter().all(|mark| mark.sequence >= 10),
        "what the newest revision does not match: {arrived:?}"
    );
    deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn either_control_plane_validates_and_a_killed_leader_is_replaced_within_15_s() -> Result<()> {
    let test = "either_control_plane_validates_and_a_killed_leader_is_replaced_within_15_s";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = Layout::of(2, 1, 1).start(Kafka::shared(), Postgres::shared())?;
    let (leading, other) = leader(&deployment).await?;
    let sink = HttpSink::start().await?;
    for (number, instance) in [leading, other].into_iter().enumerate() {
        let name = format!("by {instance}");
        let filter = format!("{number}/#");
        deployment.api_of(instance)?.create_active(http(&name, &[&filter], &sink.url("in"))).await?;
    }
    deployment.kill(leading)?;
    let killed = Instant::now();
    until("the other one leads", async || Ok(leads(&deployment, other))).await?;
    let elapsed = killed.elapsed();
    println!("the other one leads after {elapsed:?}");
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
    let mut api = deployment.api_of(other)?;
    api.create_active(http("afterwards", &["after/#"], &sink.url("in"))).await?;
    work::publish(Plan::new(deployment.mqtt(), "after/x", 10), 1).await?;
    work::await_different(&sink, 10, PATIENCE).await?;
    deployment.start(leading)?;
    let mut api = deployment.api_of(leading)?;
    api.create_active(http("again", &["again/#"], &sink.url("in"))).await?;
    deployment.drain_all()
}
