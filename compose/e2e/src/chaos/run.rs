//! All rounds.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    faults,
    plan::{Fault, draw},
    report::{Outcome, Report},
    round,
    world::World,
};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides everything that is drawn.
    pub seed: u64,
    /// How many rounds.
    pub rounds: u32,
    /// Only these of them, by number; empty: all.
    pub only: Vec<u32>,
    /// What is drawn from.
    pub faults: Vec<Fault>,
    /// Publishes per second in all.
    pub rate: u64,
    /// Publishers.
    pub publishers: u32,
    /// An executor that is silent for so long loses its integrations; a freeze lasts up to three times that.
    pub session_timeout: Duration,
    /// Within this time after the healing everything must be as before, and within this time after the load everything
    /// must have arrived.
    pub patience: Duration,
    /// Where the processes' logs go.
    pub logs: PathBuf,
    /// What they log (`TBMQ_LOG`), such as `info,tbmq_executor=debug`; their default when absent.
    pub log_level: Option<String>,
}

impl Options {
    /// Every fault, 10 publishers with 200 messages per second in all, a session timeout of 6 s.
    pub fn new(seed: u64, rounds: u32, logs: PathBuf) -> Self {
        Self {
            seed,
            rounds,
            only: Vec::new(),
            faults: Fault::ALL.to_vec(),
            rate: 200,
            publishers: 10,
            session_timeout: Duration::from_secs(6),
            patience: Duration::from_secs(90),
            logs,
            log_level: None,
        }
    }
}

/// Runs the rounds of a seed, on a multi-threaded runtime. `say` hears of each outcome. After a round that the system
/// did not recover from, a new system is started.
///
/// # Errors
/// When a system can't be started; what the rounds find is in the report.
pub async fn run(options: &Options, mut say: impl FnMut(&Outcome)) -> Result<Report> {
    let mut plan = draw(options.seed, options.rounds, &options.faults, options.session_timeout);
    plan.retain(|round| options.only.is_empty() || options.only.contains(&round.number));
    let mut left_out: BTreeMap<Fault, String> = BTreeMap::new();
    for round in &plan {
        if let Some(why) = faults::impediment(round.fault) {
            left_out.insert(round.fault, why);
        }
    }
    plan.retain(|round| !left_out.contains_key(&round.fault));
    let needs_disk = plan.iter().any(|round| round.fault == Fault::DiskFull);
    let mut report = Report { options: options.clone(), outcomes: Vec::new(), left_out };
    let mut world: Option<World> = None;
    let mut number = 0;
    for planned in &plan {
        let mut current = if let Some(world) = world.take() {
            world
        } else {
            let folder = options.logs.join(format!("from-round-{}", planned.number));
            World::start(options, &folder, needs_disk).await.context("starting the system")?
        };
        let outcome = round::run(&mut current, planned, options.patience, &mut number).await;
        say(&outcome);
        if outcome.has_recovered {
            world = Some(current);
        } else {
            tokio::task::block_in_place(|| drop(current));
        }
        report.outcomes.push(outcome);
    }
    if let Some(mut world) = world {
        tokio::task::block_in_place(|| world.deployment.drain_all()).context("at the end")?;
    }
    Ok(report)
}
