//! Several executors and control planes, frozen and killed: what is ours is fenced (architecture §4.7, §4.18).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tbmq_bus::{Admin, Commit, ReaderConfig, TopicPartition, spec_of};
use tbmq_e2e::{
    api::{Api, http, http_with},
    deployment::{Deployment, Layout, Plane},
    instance::Instance,
    work,
};
use tbmq_harness::{Need, client::Plan, http_sink::HttpSink, kafka::Kafka, postgres::Postgres, ready};
use tbmq_proto::{
    control::{Integration, event::Body, integration_status::Phase},
    ids::IntegrationId,
};
use tokio::task::JoinHandle;

const SESSION: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(120);

/// Messages in flight per partition, as executors have it by default.
const WINDOW: usize = 128;

fn layout(control_planes: u32, executors: u32) -> Layout {
    Layout::of(control_planes, 1, executors)
        .setting("TBMQ_IE_SESSION_TIMEOUT", format!("{}s", SESSION.as_secs()))
        .setting("TBMQ_IE_MSG_COMMIT_INTERVAL", "100ms")
}

/// What is seen of one integration from outside, again and again.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Committed offsets, as they changed.
    committed: Vec<u64>,
    /// Owners and epochs, as the status named them.
    owners: Vec<(String, u64)>,
}

/// Watches until it is dropped.
struct Observer {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    fn start(mut api: Api, admin: Arc<dyn Admin>, group: String, topic: String, name: String) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn({
            let seen = seen.clone();
            async move {
                let partition = [TopicPartition::new(topic, 0)];
                loop {
                    if let Ok(commits) = admin.committed(&group, &partition).await
                        && let Some(commit) = commits.first()
                    {
                        let mut seen = lock(&seen);
                        if seen.committed.last() != Some(&commit.offset) {
                            seen.committed.push(commit.offset);
                        }
                    }
                    if let Ok(integration) = api.get(&name).await
                        && let Some(owner) = owner_of(&integration)
                    {
                        let mut seen = lock(&seen);
                        if seen.owners.last() != Some(&owner) {
                            seen.owners.push(owner);
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        Self { seen, task }
    }

    fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

/// Service id and epoch of the executor that the status names for the first shard.
fn owner_of(integration: &Integration) -> Option<(String, u64)> {
    let holders = &integration.status.as_ref()?.holders;
    let holder = holders.iter().find(|holder| holder.role == "EXECUTOR" && holder.shard == 0)?;
    Some((holder.service_id.clone(), holder.ownership_epoch))
}

/// Asks until the status names an active owner that `is_wanted` likes.
async fn await_owner(api: &mut Api, name: &str, is_wanted: impl Fn(&str) -> bool) -> Result<(String, u64)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let integration = api.await_phase(name, Phase::Active).await?;
        if let Some(owner) = owner_of(&integration).filter(|(service_id, _)| is_wanted(service_id)) {
            return Ok(owner);
        }
        ensure!(Instant::now() < deadline, "no such owner: {integration:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn executor(deployment: &Deployment, service_id: &str) -> Result<Instance> {
    let all = deployment.instances(Plane::Executor);
    all.into_iter().find(|one| one.to_string() == service_id).with_context(|| format!("no {service_id}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_frozen_and_returns_repeats_at_most_what_was_in_flight() -> Result<()> {
    let test = "an_owner_that_was_frozen_and_returns_repeats_at_most_what_was_in_flight";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    const RATE: u64 = 100;
    let mut deployment = layout(1, 2).start(Kafka::shared(), Postgres::shared())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("frozen", &["load/#"], &sink.url("in"))).await?;
    let (name, uid): (_, IntegrationId) = (integration.name.clone(), integration.uid.parse()?);
    let (catalogue, bus) = (deployment.catalogue(), deployment.bus()?);
    let topic = catalogue.messages(uid, 1).name;
    let observer =
        Observer::start(deployment.api()?, bus.admin(), catalogue.messages_group(), topic, name.clone());

    // Long enough for everything below: freeze 18 s, return, kill, session timeout.
    let total = RATE * 60;
    let load =
        tokio::spawn(work::publish(Plan::new(deployment.mqtt(), "load/a", total / 2).rate(RATE / 2), 2));
    sink.wait_for(300, PATIENCE).await?;
    let (first, first_epoch) = await_owner(&mut api, &name, |_| true).await?;
    let frozen = executor(&deployment, &first)?;
    deployment.freeze(frozen)?;
    let begun = Instant::now();
    let (second, second_epoch) = await_owner(&mut api, &name, |owner| owner != first).await?;
    ensure!(second_epoch > first_epoch);
    tokio::time::sleep((3 * SESSION).saturating_sub(begun.elapsed())).await;
    deployment.thaw(frozen)?;
    // It is back in the group: it answers for itself again.
    sink.wait_for(sink.count() + 300, PATIENCE).await?;
    let (owner, _) = await_owner(&mut api, &name, |_| true).await?;
    let victim = executor(&deployment, &owner)?;
    deployment.kill(victim)?;
    let (last, last_epoch) = await_owner(&mut api, &name, |other| other != owner).await?;
    let acknowledged = load.await??;
    work::await_different(&sink, total as usize, PATIENCE).await?;

    let seen = observer.seen();
    drop(observer);
    assert!(seen.committed.is_sorted(), "an offset went back: {:?}", seen.committed);
    let epochs: Vec<u64> = seen.owners.iter().map(|(_, epoch)| *epoch).collect();
    assert!(epochs.is_sorted(), "the status named an owner that another one had replaced: {:?}", seen.owners);
    assert_eq!(seen.owners.last(), Some(&(last, last_epoch)));
    assert!(seen.owners.iter().any(|(owner, _)| *owner == second));
    deployment.drain_all()?;
    let ledger = work::ledger(&bus, &catalogue, uid, &acknowledged, ("in", &sink)).await?;
    let audit = ledger.audit();
    audit.assert_clean();
    // Twice: what was in flight, and what was answered since the last commit.
    let moves = seen.owners.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
    let at_most = moves * (WINDOW + RATE as usize / 2);
    println!("{audit}; owners {:?}", seen.owners);
    assert!(
        audit.duplicates_at_sinks as usize <= at_most,
        "{} duplicates, more than {at_most}",
        audit.duplicates_at_sinks
    );
    Ok(())
}

/// An integration whose shards are on as many executors; tries several, since keys fall where they fall, and executors
/// that come one after the other share the partitions unevenly.
async fn spread(api: &mut Api, url: &str, shards: usize) -> Result<(Integration, BTreeMap<u32, String>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut integration = http(&format!("spread {attempt}"), &["load/#"], url);
        let document = integration.configuration_json.clone();
        integration.configuration_json = document.replacen('{', &format!(r#"{{"shards":{shards},"#), 1);
        let created = api.create_active(integration).await?;
        let holders = shard_holders(&api.get(&created.name).await?);
        let executors: std::collections::BTreeSet<&String> = holders.values().collect();
        if executors.len() == shards {
            return Ok((created, holders));
        }
        api.delete(&created.name).await?;
        ensure!(
            Instant::now() < deadline,
            "none of {attempt} integrations had its {shards} shards on {shards} executors; the last: {holders:?}"
        );
    }
}

fn shard_holders(integration: &Integration) -> BTreeMap<u32, String> {
    let holders = integration.status.iter().flat_map(|status| &status.holders);
    holders
        .filter(|holder| holder.role == "EXECUTOR")
        .map(|holder| (holder.shard, holder.service_id.clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_shards_on_four_executors_work_in_parallel_and_a_kill_moves_one() -> Result<()> {
    let test = "four_shards_on_four_executors_work_in_parallel_and_a_kill_moves_one";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = layout(1, 4).start(Kafka::shared(), Postgres::shared())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    // All four have partitions once each has claimed some.
    let (integration, before) = spread(&mut api, &sink.url("in"), 4).await?;
    let uid: IntegrationId = integration.uid.parse()?;

    // A slow remote end: one executor alone would need the window's time for each 128.
    sink.script(|_, _, _| (http::StatusCode::OK, Duration::from_millis(200)));
    let publishers = 40;
    let mut acknowledged = Vec::new();
    let mut loads = tokio::task::JoinSet::new();
    for publisher in 0..publishers {
        // A topic each, so that all partitions get some.
        let plan = Plan::new(deployment.mqtt(), &format!("load/{publisher}"), 50).by(publisher);
        loads.spawn(tbmq_harness::client::publish_all(plan));
    }
    while let Some(load) = loads.join_next().await {
        acknowledged.extend(load??);
    }
    work::await_different(&sink, 50 * publishers as usize, PATIENCE).await?;
    let bus = deployment.bus()?;
    let per_partition = work::read_topic(&bus, &deployment.catalogue().messages(uid, 4).name).await?;
    assert_eq!(per_partition.len(), 4);
    assert!(per_partition.values().all(|records| !records.is_empty()), "every shard has some");
    // Each shard's messages arrive from the beginning on, none waits for another shard's.
    let arrived = work::delivered(&sink.received());
    let first_half: std::collections::BTreeSet<u32> =
        arrived[..arrived.len() / 2].iter().map(|mark| mark.publisher).collect();
    for (partition, records) in &per_partition {
        let of_it = records.iter().filter_map(work::mark_of).any(|mark| first_half.contains(&mark.publisher));
        assert!(of_it, "partition {partition} waited for the others");
    }

    let victim = executor(&deployment, &before[&2])?;
    let starts_before = starts(&mut api, &integration.name).await?;
    deployment.kill(victim)?;
    let deadline = Instant::now() + PATIENCE;
    let after = loop {
        let current = api.await_phase(&integration.name, Phase::Active).await?;
        let holders = shard_holders(&current);
        if holders.len() == 4 && holders[&2] != before[&2] {
            break holders;
        }
        ensure!(Instant::now() < deadline, "shard 2 did not move: {holders:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for shard in [0, 1, 3] {
        assert_eq!(after[&shard], before[&shard], "shard {shard} stays where it is");
    }
    let starts_after = starts(&mut api, &integration.name).await?;
    for shard in [0, 1, 3] {
        assert_eq!(starts_after[&shard], starts_before[&shard], "shard {shard} was not disturbed");
    }
    deployment.drain_all()
}

/// STARTED events of each shard.
async fn starts(api: &mut Api, name: &str) -> Result<BTreeMap<u32, usize>> {
    let mut counts = BTreeMap::new();
    for event in api.lifecycle(name).await? {
        if matches!(&event.body, Some(Body::Lifecycle(lifecycle)) if lifecycle.event == "STARTED") {
            *counts.entry(event.shard).or_default() += 1;
        }
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_removed_from_a_backlog_is_counted_expired_and_told_once() -> Result<()> {
    let test = "what_retention_removed_from_a_backlog_is_counted_expired_and_told_once";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = layout(1, 1).start(Kafka::shared(), Postgres::shared())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api.create_active(http("late", &["load/#"], &sink.url("in"))).await?;
    let uid: IntegrationId = integration.uid.parse()?;
    work::publish(Plan::new(deployment.mqtt(), "load/a", 100), 1).await?;
    work::await_different(&sink, 100, PATIENCE).await?;
    deployment.drain(Plane::Executor)?;
    let backlog = work::publish(Plan::new(deployment.mqtt(), "load/a", 1000).first(100), 1).await?;
    assert_eq!(backlog.len(), 1000);
    let bus = deployment.bus()?;
    let partition = TopicPartition::new(deployment.catalogue().messages(uid, 1).name, 0);
    // What Kafka's own retention does, at a moment of our choice.
    bus.admin().delete_records(&partition, 500).await?;
    deployment.start(Plane::Executor)?;
    work::await_different(&sink, 100 + 600, PATIENCE).await?;

    let deadline = Instant::now() + PATIENCE;
    let group = deployment.catalogue().messages_group();
    loop {
        let commits = bus.admin().committed(&group, std::slice::from_ref(&partition)).await?;
        if commits.first().is_some_and(|commit| commit.offset == 1100) {
            break;
        }
        ensure!(Instant::now() < deadline, "not committed to the end: {commits:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let metrics = deployment.metrics(Plane::Executor)?;
    let settled = |outcome: &str| -> u64 {
        let label = format!("outcome=\"{outcome}\"");
        let is_it =
            |line: &&str| line.starts_with("tbmq_executor_settled_messages_total{") && line.contains(&label);
        let values =
            metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum()
    };
    // Since this executor's start: end − committed = settled, to the unit (architecture §5.10).
    assert_eq!(
        (settled("expired"), settled("delivered"), settled("rejected"), settled("skipped")),
        (400, 600, 0, 0)
    );
    let errors = api.errors(&integration.name).await?;
    assert_eq!(errors.len(), 1, "one event: {errors:?}");
    let text = format!("{:?}", errors[0]);
    assert!(text.contains("offsets 100 to 499") && text.contains("400"), "{text}");
    deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_topic_that_was_deleted_and_made_anew_is_skipped() -> Result<()> {
    let test = "nothing_of_a_topic_that_was_deleted_and_made_anew_is_skipped";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = layout(1, 1).start(Kafka::shared(), Postgres::shared())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let integration = api
        .create_active(http_with(
            "anew",
            &["load/#"],
            &sink.url("in"),
            r#"{"ackStrategy":"RETRY_ALL","retries":0}"#,
        ))
        .await?;
    let uid: IntegrationId = integration.uid.parse()?;
    work::publish(Plan::new(deployment.mqtt(), "load/a", 500), 1).await?;
    work::await_different(&sink, 500, PATIENCE).await?;
    deployment.drain(Plane::Executor)?;
    // The control plane would repair it by itself, and raise the generation; this is about the executor alone.
    deployment.drain(Plane::Control)?;
    let (bus, catalogue) = (deployment.bus()?, deployment.catalogue());
    let (topic, group) = (catalogue.messages(uid, 1), catalogue.messages_group());
    let partition = TopicPartition::new(topic.name.clone(), 0);
    let old = bus.admin().committed(&group, std::slice::from_ref(&partition)).await?;
    assert_eq!(old.first().map(|commit| commit.offset), Some(500));
    bus.admin().delete_topic(&topic.name).await?;
    bus.admin().create_topic(&spec_of(&topic, 1)).await?;
    // Kafka forgets the commits of a deleted topic; one that was on its way comes back.
    let mut committer = bus.reader(ReaderConfig::new("late", Some(group))).await?;
    let stale: Vec<Commit> = old.clone();
    committer.commit(stale).await?;
    work::publish(Plan::new(deployment.mqtt(), "load/a", 800).first(500), 1).await?;
    deployment.start(Plane::Executor)?;
    work::await_different(&sink, 500 + 800, PATIENCE).await?;
    deployment.start(Plane::Control)?;
    deployment.drain_all()
}
