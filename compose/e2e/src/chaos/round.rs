//! One round, from the first publish to its verdict.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tbmq_bus::{Bus, TopicPartition};
use tbmq_proto::control::Integration;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::{
    faults,
    plan::{Fault, Round},
    report::Outcome,
    tally::Tally,
    world::{MOVING, World},
};
use crate::{api::Api, instance::Plane};

/// Pause between two looks at the system: nothing tells but asking.
const PAUSE: Duration = Duration::from_millis(50);

/// How far a commit that Kafka took late may set an offset back: what is delivered between two commits, and some.
const LATE_MAX: u64 = 500;

/// A committed offset that was lower than the one before.
#[derive(Debug)]
struct SetBack {
    by: u64,
    text: String,
}

/// The marks' clock.
fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Runs a round. The outcome says whether the system can go on.
pub(super) async fn run(world: &mut World, round: &Round, patience: Duration, number: &mut u64) -> Outcome {
    let mut outcome = Outcome::of(round);
    if let Err(error) = try_run(world, round, patience, number, &mut outcome).await {
        outcome.findings.push(format!("{error:#}"));
        outcome.has_recovered = false;
    }
    outcome
}

async fn try_run(
    world: &mut World,
    round: &Round,
    patience: Duration,
    number: &mut u64,
    outcome: &mut Outcome,
) -> Result<()> {
    faults::prepare(world, round).await.context("before the round")?;
    let first = world.publishers.next();
    let (tally, load) = world.begin()?;
    let offsets = Offsets::watch(Arc::clone(&world.bus), world)?;
    let updates = Updates::begin(world, *number)?;
    sleep(round.after).await;

    let at = Instant::now();
    tally.hold_down();
    match faults::inject(world, round).await {
        Ok(injected) => {
            outcome.note = injected.note;
            outcome.findings.extend(injected.findings);
            if let Some((index, gone)) = injected.deleted {
                tally.excuse(index, gone);
            }
        }
        Err(error) => outcome.findings.push(format!("while injecting: {error:#}")),
    }
    tally.healed();
    let healed = Instant::now();
    let healed_ns = now_ns();
    tally.look_for_sent_after(healed_ns);
    let recovered = recover(world, &tally, (healed, healed_ns), patience, outcome).await;
    outcome.first = tally.first_after().map(|first| first.saturating_duration_since(healed));
    outcome.lasted = healed.duration_since(at);
    let (accepted, refused, last) = updates.end().await?;
    *number = last;
    (outcome.updates, outcome.updates_failed) = (accepted, refused);
    if recovered {
        last_update(world, &tally, number, patience).await.context("the last update")?;
        outcome.has_recovered = true;
    }
    // Also after a failure everything begun is to be acknowledged, and to arrive.
    world.publishers.end(&tally, load).await?;
    let settled = settle(world, &tally, patience).await;
    outcome.counts = tally.close(&first);
    for set_back in offsets.end().await? {
        // A commit that was on its way when Kafka went, or when its sender froze, may come late, after the next owner's
        // (ARCHITECTURE, "Ownership"). It repeats what was delivered meanwhile, and the next commit overwrites it.
        let late_max = match round.fault {
            Fault::KafkaRestart | Fault::KafkaKill | Fault::DiskFull => LATE_MAX,
            Fault::Freeze(Plane::Executor) => outcome.counts.acknowledged as u64,
            _ => 0,
        };
        if set_back.by <= late_max {
            outcome.note = format!("{}; a late commit: {}", outcome.note, set_back.text);
        } else {
            outcome.findings.push(set_back.text);
        }
    }
    settled?;
    outcome.restarts.extend(faults::clean_up(world, round).context("after the round")?);
    Ok(())
}

/// Waits until everything acknowledged until now has arrived, every publisher's messages arrive, and both control
/// planes show every integration as running. Tells whether that came true in time.
async fn recover(
    world: &mut World,
    tally: &Tally,
    (healed, healed_ns): (Instant, u64),
    patience: Duration,
    outcome: &mut Outcome,
) -> bool {
    let deadline = healed + patience;
    let mut drained = false;
    loop {
        match world.supervise() {
            Ok(restarted) => outcome.restarts.extend(restarted),
            Err(error) => outcome.findings.push(format!("{error:#}")),
        }
        drained = drained || (tally.missing(healed).is_empty() && tally.silent_since(healed_ns).is_empty());
        if drained && outcome.drained.is_none() {
            outcome.drained = Some(healed.elapsed());
        }
        let active = if drained { world.is_active().await } else { Ok(()) };
        if drained && active.is_ok() {
            outcome.recovered = Some(healed.elapsed());
            return true;
        }
        if Instant::now() > deadline {
            let missing = brief(&tally.missing(healed));
            let silent = tally.silent_since(healed_ns);
            outcome.findings.push(format!(
                "not as before within {patience:?}: acknowledged before the healing and missing: {missing}; \
                 nothing newer arrives of publishers {silent:?}; {active:?}"
            ));
            return false;
        }
        sleep(PAUSE).await;
    }
}

/// Waits until everything acknowledged has arrived, and every partition is committed to its end.
async fn settle(world: &World, tally: &Tally, patience: Duration) -> Result<()> {
    let end = Instant::now();
    let deadline = end + patience;
    while !tally.missing(end).is_empty() {
        anyhow::ensure!(
            Instant::now() < deadline,
            "at rest these are missing {patience:?} after the load: {}",
            brief(&tally.missing(end))
        );
        sleep(PAUSE).await;
    }
    loop {
        match world.is_settled().await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.context("at rest")),
            Err(_) => sleep(4 * PAUSE).await,
        }
    }
}

/// A few of the missing, and how many they are.
fn brief(missing: &BTreeMap<String, Vec<super::tally::Id>>) -> String {
    let one = |(name, ids): (&String, &Vec<super::tally::Id>)| {
        let few: Vec<String> = ids.iter().take(20).map(|(p, s)| format!("{p}:{s}")).collect();
        format!("{name} {} ({}{})", ids.len(), few.join(" "), if ids.len() > 20 { " …" } else { "" })
    };
    let all: Vec<String> = missing.iter().map(one).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// An update through each control plane must be accepted, and the last one must be what runs.
async fn last_update(world: &mut World, tally: &Tally, number: &mut u64, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut revision = 0;
    for index in 0..world.apis.len() {
        *number += 1;
        loop {
            let document = world.document(MOVING, *number)?;
            let call = world.apis[index].update(document);
            match tokio::time::timeout(CALL, call).await.map_err(|_| "no answer".to_owned()) {
                Ok(Ok(updated)) => {
                    anyhow::ensure!(updated.revision > revision, "revision {} came again", updated.revision);
                    revision = updated.revision;
                    break;
                }
                answer if Instant::now() > deadline => {
                    anyhow::bail!("control-{} does not accept an update: {answer:?}", index + 1)
                }
                _ => sleep(4 * PAUSE).await,
            }
        }
    }
    while !tally.has_path(MOVING, *number) {
        anyhow::ensure!(
            Instant::now() < deadline,
            "update {number} (revision {revision}) was accepted, but nothing arrives there"
        );
        sleep(PAUSE).await;
    }
    Ok(())
}

/// How long an update may take before the next one is tried.
const CALL: Duration = Duration::from_secs(15);

/// Updates of the moving integration, one after the other, through the control planes in turn.
struct Updates {
    stop: watch::Sender<bool>,
    task: JoinHandle<(u32, u32, u64)>,
}

impl Updates {
    fn begin(world: &World, number: u64) -> Result<Self> {
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let apis = world.apis.clone();
        // Only the end of the path differs.
        let document = world.document(MOVING, u64::MAX)?;
        let task = tokio::spawn(async move {
            let (mut accepted, mut failed, mut number) = (0, 0, number);
            loop {
                // One every two seconds: a restart of the sink each time, and room between them.
                let pause = tokio::time::timeout(Duration::from_secs(2), stopped.wait_for(|stop| *stop));
                if pause.await.is_ok() {
                    return (accepted, failed, number);
                }
                number += 1;
                let mut api: Api = apis[number as usize % apis.len()].clone();
                let mut changed: Integration = document.clone();
                changed.configuration_json =
                    changed.configuration_json.replace(&u64::MAX.to_string(), &number.to_string());
                match tokio::time::timeout(CALL, api.update(changed)).await {
                    Ok(Ok(_)) => accepted += 1,
                    Ok(Err(_)) | Err(_) => failed += 1,
                }
            }
        });
        Ok(Self { stop, task })
    }

    /// Accepted, failed, and the last number.
    async fn end(self) -> Result<(u32, u32, u64)> {
        self.stop.send_replace(true);
        Ok(self.task.await?)
    }
}

/// Watches that no committed offset goes back while its topic lives.
struct Offsets {
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<SetBack>>,
}

impl Offsets {
    fn watch(bus: Arc<dyn Bus>, world: &World) -> Result<Self> {
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let group = world.deployment.catalogue().messages_group();
        let partitions: Vec<TopicPartition> = world.partitions()?.into_iter().map(|(_, p)| p).collect();
        let names: Vec<String> = partitions.iter().map(|p| p.topic.to_string()).collect();
        let task = tokio::spawn(async move {
            let admin = bus.admin();
            let mut highest: HashMap<TopicPartition, u64> = HashMap::new();
            let mut ids: HashMap<String, String> = HashMap::new();
            let mut findings = Vec::new();
            loop {
                let pause = tokio::time::timeout(Duration::from_millis(500), stopped.wait_for(|stop| *stop));
                if pause.await.is_ok() {
                    return findings;
                }
                // While Kafka or a topic is away there is nothing to see.
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let Ok(before) = admin.describe(&names).await else { continue };
                let Ok(commits) = admin.committed(&group, &partitions).await else { continue };
                let Ok(after) = admin.describe(&names).await else { continue };
                if before != after {
                    continue;
                }
                for commit in commits {
                    let topic = after.iter().flatten().find(|info| info.name == *commit.partition.topic);
                    let Some(topic) = topic else { continue };
                    let id = ids.entry(topic.name.clone()).or_insert_with(|| topic.id.clone());
                    if *id != topic.id {
                        // It was created anew in this round; commits of both creations look alike here.
                        continue;
                    }
                    let seen = highest.entry(commit.partition.clone()).or_default();
                    if commit.offset < *seen {
                        let (partition, offset) = (&commit.partition, commit.offset);
                        let text = format!("the offset of {partition} went back from {seen} to {offset}");
                        findings.push(SetBack { by: *seen - offset, text });
                    }
                    *seen = commit.offset;
                }
            }
        });
        Ok(Self { stop, task })
    }

    async fn end(self) -> Result<Vec<SetBack>> {
        self.stop.send_replace(true);
        Ok(self.task.await?)
    }
}
