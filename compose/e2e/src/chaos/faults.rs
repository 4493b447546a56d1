//! Injecting a fault and healing it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use http::StatusCode;
use tbmq_harness::http_sink::Mode;
use tokio::{task::block_in_place, time::sleep};

use super::{
    disk::Disk,
    plan::{Fault, Round},
    world::{INTEGRATIONS, World},
};
use crate::instance::Instance;

/// What Debian's package `libfaketime` installs.
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// How long a deleted topic may take to be gone.
const DELETION: Duration = Duration::from_secs(30);

/// Acknowledgements that were under way to publishers when a topic was gone.
const UNDER_WAY: Duration = Duration::from_millis(200);

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Injected {
    /// To whom, and what is worth telling.
    pub(super) note: String,
    /// What must not be.
    pub(super) findings: Vec<String>,
    /// The integration whose messages went with their topic, and when that was complete.
    pub(super) deleted: Option<(usize, Instant)>,
}

impl Injected {
    fn noted(note: impl ToString) -> Self {
        Self { note: note.to_string(), ..Self::default() }
    }
}

/// Why a fault can't be injected on this machine.
pub(super) fn impediment(fault: Fault) -> Option<String> {
    match fault {
        Fault::DiskFull => Disk::mount().err().map(|error| format!("no small file system: {error:#}")),
        Fault::ClockStep(_) if faketime().is_none() => {
            Some("the Debian package libfaketime is not installed".to_owned())
        }
        _ => None,
    }
}

fn faketime() -> Option<PathBuf> {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let folders = [Path::new("/usr/lib").join(triple), PathBuf::from("/usr/lib")];
    folders.into_iter().map(|folder| folder.join(FAKETIME)).find(|path| path.exists())
}

/// The file that says how far a process's clock is off.
fn clock(world: &World, instance: Instance) -> PathBuf {
    world.folder.join(format!("{instance}.clock"))
}

/// What a fault needs before the load begins.
pub(super) async fn prepare(world: &mut World, round: &Round) -> Result<()> {
    let Fault::ClockStep(plane) = round.fault else { return Ok(()) };
    let victim = world.victim(plane, round.victim);
    let file = clock(world, victim);
    std::fs::write(&file, "+0")?;
    let library = faketime().context("libfaketime is missing")?;
    preload(world, victim, Some((&library, &file)))?;
    restart(world, victim)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(why) = world.is_active().await {
        if Instant::now() > deadline {
            bail!("after the restart of {victim} with libfaketime: {why}");
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Has a process look at the time through libfaketime from its next start on, or no more.
fn preload(world: &mut World, victim: Instance, by: Option<(&Path, &Path)>) -> Result<()> {
    let text = |path: &Path| path.display().to_string();
    // A step moves the wall clock only; and the file is read anew each second.
    let settings = [
        ("LD_PRELOAD", by.map(|(library, _)| text(library))),
        ("FAKETIME_TIMESTAMP_FILE", by.map(|(_, file)| text(file))),
        ("FAKETIME_DONT_FAKE_MONOTONIC", by.map(|_| "1".to_owned())),
        ("FAKETIME_CACHE_DURATION", by.map(|_| "1".to_owned())),
    ];
    for (key, value) in settings {
        world.deployment.set(victim, key, value.as_deref())?;
    }
    Ok(())
}

fn restart(world: &mut World, instance: Instance) -> Result<()> {
    block_in_place(|| {
        world.deployment.drain(instance)?;
        world.deployment.start(instance)
    })
}

/// Takes away what a fault needed. Returns what is worth telling.
pub(super) fn clean_up(world: &mut World, round: &Round) -> Result<Option<String>> {
    let Fault::ClockStep(plane) = round.fault else { return Ok(None) };
    let victim = world.victim(plane, round.victim);
    preload(world, victim, None)?;
    block_in_place(|| {
        // Timed waits of the Kafka client are for the wall clock: one that began before a step back lasts that much
        // longer, and so may a drain. That is told, and not judged: nothing is lost by it.
        let drained = world.deployment.drain(victim);
        world.deployment.start(victim)?;
        Ok(drained.err().map(|_| format!("{victim} did not drain within 30 s after its clock was set back")))
    })
}

/// Whether a process ends by itself within a few seconds.
async fn ended(world: &mut World, instance: Instance) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(4);
    while Instant::now() < deadline {
        if !world.deployment.is_running(instance)? {
            return Ok(true);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(false)
}

/// Injects the fault, waits as long as it lasts, and heals it. What was stopped answers again then.
pub(super) async fn inject(world: &mut World, round: &Round) -> Result<Injected> {
    match round.fault {
        Fault::Kill(plane) => {
            let victim = world.victim(plane, round.victim);
            block_in_place(|| world.deployment.kill(victim))?;
            sleep(round.lasts).await;
            block_in_place(|| world.deployment.start(victim))?;
            Ok(Injected::noted(victim))
        }
        Fault::Freeze(plane) => {
            let victim = world.victim(plane, round.victim);
            world.deployment.freeze(victim)?;
            sleep(round.lasts).await;
            world.deployment.thaw(victim)?;
            Ok(Injected::noted(victim))
        }
        Fault::Twin(plane) => twin(world, world.victim(plane, round.victim), round.lasts).await,
        Fault::ClockStep(plane) => {
            let victim = world.victim(plane, round.victim);
            let mut note = format!("{victim} by {:+} s", round.step_s);
            for (by, back, pause) in
                [(round.step_s, round.step_s < 0, round.lasts), (0, round.step_s > 0, Duration::ZERO)]
            {
                std::fs::write(clock(world, victim), format!("{by:+}"))?;
                // A process over Kafka ends itself when its clock is set back; whoever runs it starts it anew, and by
                // the true clock.
                if back && ended(world, victim).await? {
                    preload(world, victim, None)?;
                    block_in_place(|| world.deployment.start(victim))?;
                    note.push_str(", ended by itself and was started anew");
                    break;
                }
                sleep(pause).await;
            }
            Ok(Injected::noted(note))
        }
        Fault::KafkaRestart | Fault::KafkaKill => {
            let is_kill = round.fault == Fault::KafkaKill;
            let stop = Instant::now();
            block_in_place(|| if is_kill { world.kafka.kill() } else { world.kafka.stop() })?;
            let stopped = stop.elapsed();
            sleep(round.lasts).await;
            let start = Instant::now();
            block_in_place(|| world.kafka.launch())?;
            let (stopped, started) = (stopped.as_secs_f64(), start.elapsed().as_secs_f64());
            Ok(Injected::noted(format!("ended in {stopped:.1} s, started in {started:.1} s")))
        }
        Fault::PostgresRestart | Fault::PostgresKill => {
            let is_kill = round.fault == Fault::PostgresKill;
            block_in_place(|| if is_kill { world.postgres.kill() } else { world.postgres.stop() })?;
            sleep(round.lasts).await;
            block_in_place(|| world.postgres.launch())?;
            Ok(Injected::default())
        }
        Fault::DiskFull => disk_full(world, round.lasts).await,
        Fault::SinkDown => sink(world, round, Mode::Down).await,
        Fault::SinkBlackHole => sink(world, round, Mode::BlackHole).await,
        Fault::SinkFailing => sink(world, round, Mode::Answering(StatusCode::INTERNAL_SERVER_ERROR)).await,
        Fault::MessagesDeleted => {
            let index = round.victim as usize % INTEGRATIONS.len();
            let topic = world.messages(index)?;
            let partitions: Vec<u32> = (0..topic.partitions).collect();
            let gone = delete(world, &topic.name, &partitions).await?;
            let deleted = Some((index, gone + UNDER_WAY));
            Ok(Injected { deleted, ..Injected::noted(INTEGRATIONS[index].0) })
        }
        Fault::ConfigurationDeleted => {
            let catalogue = world.deployment.catalogue();
            let topics = [catalogue.downlink(&"HTTP".parse()?), catalogue.integration_subscriptions()];
            let topic = &topics[round.victim as usize % topics.len()];
            let partitions: Vec<u32> = (0..topic.partitions).collect();
            delete(world, &topic.name, &partitions).await?;
            let name = topic.name.split_once('.').map_or(topic.name.as_str(), |(_, rest)| rest);
            Ok(Injected::noted(name))
        }
    }
}

async fn sink(world: &World, round: &Round, mode: Mode) -> Result<Injected> {
    let index = round.victim as usize % INTEGRATIONS.len();
    world.sinks[index].set_mode(mode).await?;
    sleep(round.lasts).await;
    world.sinks[index].set_mode(Mode::Serving).await?;
    Ok(Injected::noted(INTEGRATIONS[index].0))
}

/// Architecture §4.27: the newer process wins, and the older ends by itself.
async fn twin(world: &mut World, victim: Instance, patience: Duration) -> Result<Injected> {
    let start = Instant::now();
    let mut newer = block_in_place(|| world.deployment.twin(victim))?;
    let mut injected = Injected::default();
    loop {
        if !world.deployment.is_running(victim)? {
            injected.note = format!("{victim}: the older ended after {:.1} s", start.elapsed().as_secs_f64());
            break;
        }
        if newer.has_ended()? {
            injected.note = format!("{victim}: the newer ended");
            injected.findings.push(format!("the newer {victim} ended:\n{}", newer.output()));
            break;
        }
        if start.elapsed() > patience {
            injected.note = format!("{victim}: both ran");
            injected.findings.push(format!("the older {victim} did not end within {patience:?}"));
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    // Under the newer one alone things go on for a moment before the first is back.
    sleep(Duration::from_secs(2)).await;
    block_in_place(|| newer.kill())?;
    if !world.deployment.is_running(victim)? {
        block_in_place(|| world.deployment.start(victim))?;
    }
    Ok(injected)
}

/// Kafka ends by itself when it can't write.
async fn disk_full(world: &World, lasts: Duration) -> Result<Injected> {
    let disk = world.disk.as_ref().context("Kafka's data lie on no small disk")?;
    disk.fill()?;
    let start = Instant::now();
    let mut ended = None;
    while start.elapsed() < lasts || (ended.is_none() && start.elapsed() < 3 * lasts) {
        if ended.is_none() && !world.kafka.is_running()? {
            ended = Some(start.elapsed());
        }
        sleep(Duration::from_millis(50)).await;
    }
    disk.free()?;
    let Some(after) = ended else {
        return Ok(Injected::noted("Kafka did not notice"));
    };
    block_in_place(|| {
        world.kafka.kill()?;
        world.kafka.launch()
    })?;
    Ok(Injected::noted(format!("Kafka ended after {:.1} s", after.as_secs_f64())))
}

/// Deletes a topic. Returns when all of it was gone from the server (or there again under another id).
async fn delete(world: &World, topic: &str, partitions: &[u32]) -> Result<Instant> {
    let before: Vec<_> = partitions.iter().map(|n| world.kafka.stored_topic_id(topic, *n)).collect();
    world.bus.admin().delete_topic(topic).await?;
    let deadline = Instant::now() + DELETION;
    let is_there =
        |(n, id): (&u32, &Option<String>)| id.is_some() && world.kafka.stored_topic_id(topic, *n) == *id;
    while partitions.iter().zip(&before).any(is_there) {
        if Instant::now() > deadline {
            bail!("{topic} is still there {DELETION:?} after its deletion");
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(Instant::now())
}
