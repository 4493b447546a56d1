//! The system with its peers, and all rounds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use tbmq_bus::{Bus, TopicPartition};
use tbmq_harness::{
    kafka::{Kafka, KafkaOptions},
    ledger::Mark,
    postgres::Postgres,
};
use tbmq_proto::control::Integration;
use tokio::{task::block_in_place, time::sleep};

use super::{
    Fault, Options,
    peer::{Arrivals, Peer},
    report::{Outcome, Report},
    status::Watch,
};
use crate::{
    api::{self, Api},
    chaos::{
        load::{Load, Publishers},
        tally::{Share, Tally},
    },
    deployment::{Deployment, Layout},
    instance::Plane,
    work,
};

/// Pause between two looks at the tally.
const PAUSE: Duration = Duration::from_millis(20);

/// How long all is well before a fault.
const BEFORE: Duration = Duration::from_secs(2);

/// A stall is to be shown within 5 s, its way to the control plane included. The executor's default.
pub(super) const STALLED_AFTER: &str = "4s";

/// What peers report to: one round's tally after the other.
type Current = Arc<Mutex<Arc<Tally>>>;

struct World {
    // Dropped in this order: processes before what they use.
    deployment: Deployment,
    bus: Arc<dyn Bus>,
    peers: Vec<Peer>,
    api: Api,
    /// In the order of the peers.
    integrations: Vec<Integration>,
    publishers: Publishers,
    current: Current,
    _kafka: Kafka,
    _postgres: Postgres,
}

/// Runs a round for each fault, on a multi-threaded runtime. `say` hears of each outcome.
///
/// # Errors
/// When the system can't be started or used; what the rounds find is in the report.
pub async fn run(options: &Options, mut say: impl FnMut(&Outcome)) -> Result<Report> {
    let mut world = World::start(options).await.context("starting the system")?;
    let mut report = Report { options: options.clone(), outcomes: Vec::new() };
    for fault in &options.faults {
        let outcomes = world.round(*fault, options).await.with_context(|| format!("round {fault}"))?;
        outcomes.iter().for_each(&mut say);
        report.outcomes.extend(outcomes);
    }
    block_in_place(|| world.deployment.drain_all()).context("at the end")?;
    for peer in world.peers {
        peer.end().await;
    }
    Ok(report)
}

fn tally(options: &Options) -> Arc<Tally> {
    let accounts: Vec<_> = options.kinds.iter().map(|kind| (kind.name(), Share::All)).collect();
    Arc::new(Tally::new(options.publishers, &accounts))
}

impl World {
    async fn start(options: &Options) -> Result<Self> {
        let (kafka, postgres, deployment) = block_in_place(|| {
            let kafka = Kafka::start(KafkaOptions::default())?;
            let postgres = Postgres::start()?;
            let mut layout = Layout::default().logs(&options.logs).own_setting(
                Plane::Executor,
                "TBMQ_IE_STALLED_AFTER",
                STALLED_AFTER,
            );
            if let Some(level) = &options.log_level {
                layout = layout.setting("TBMQ_LOG", level);
            }
            let deployment = layout.start(&kafka, &postgres)?;
            anyhow::Ok((kafka, postgres, deployment))
        })?;
        let current: Current = Arc::new(Mutex::new(tally(options)));
        let mut peers = Vec::new();
        for (index, kind) in options.kinds.iter().enumerate() {
            let current = Arc::clone(&current);
            let arrivals: Arrivals = Arc::new(move |mark: Mark, at: Instant| {
                let tally = Arc::clone(&current.lock());
                tally.delivered(index, mark, at);
            });
            peers.push(Peer::start(*kind, arrivals).await?);
        }
        let mut api = deployment.api()?;
        let mut integrations = Vec::new();
        for peer in &peers {
            let name = peer.kind.name();
            let configuration = peer.client_configuration();
            let integration = api::integration(name, name, &["load/#"], &configuration, api::RETRY_FOR_EVER);
            let created = api.create_active(integration).await;
            integrations.push(created.with_context(|| format!("creating the integration of {name}"))?);
        }
        Ok(Self {
            bus: deployment.bus()?,
            deployment,
            peers,
            api,
            integrations,
            publishers: Publishers::new(options.publishers, options.rate, options.patience),
            current,
            _kafka: kafka,
            _postgres: postgres,
        })
    }

    async fn round(&mut self, fault: Fault, options: &Options) -> Result<Vec<Outcome>> {
        let first = self.publishers.next();
        let tally = tally(options);
        *self.current.lock() = Arc::clone(&tally);
        let load = self.publishers.begin(vec![self.deployment.mqtt()], &tally);
        let everywhere = || (0..options.kinds.len()).all(|index| tally.first_arrival(index).is_some());
        within(options.patience, everywhere).await.context("something arrives everywhere")?;
        sleep(BEFORE).await;
        let mut watches = Vec::new();
        for integration in &self.integrations {
            watches.push(Watch::begin(self.api.clone(), integration.name.clone()).await?);
        }

        let struck = Instant::now();
        for peer in &mut self.peers {
            peer.strike(fault).await.with_context(|| format!("striking {}", peer.kind))?;
        }
        sleep(options.lasting).await;
        let mut healed = Vec::new();
        for (index, peer) in self.peers.iter_mut().enumerate() {
            tally.look_for_arrival(index);
            healed.push(Instant::now());
            peer.heal().await.with_context(|| format!("healing {}", peer.kind))?;
        }
        let drained = recover(&tally, &watches, &healed, options).await;
        let settled = self.end(&tally, load, options.patience).await;

        let counts = tally.close(&first);
        let mut outcomes = Vec::new();
        for (index, kind) in options.kinds.iter().enumerate() {
            let since = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(healed[index]));
            let stalled = watches[index].stalled();
            let mut outcome = Outcome {
                fault,
                kind: *kind,
                acknowledged: counts.acknowledged,
                lost: counts.lost_by(kind.name()),
                duplicates: counts.duplicates_of.get(kind.name()).copied().unwrap_or(0),
                pause: counts.pause_of.get(kind.name()).copied().unwrap_or_default(),
                stalled: stalled.as_ref().map(|(at, _)| at.saturating_duration_since(struck)),
                first: since(tally.first_arrival(index)),
                drained: since(drained[index]),
                running: since(watches[index].running()),
                said: stalled.map(|(_, text)| text).unwrap_or_default(),
                shown: watches[index].reasons(),
                findings: Vec::new(),
            };
            outcome.judge(options, counts.audits.get(kind.name()));
            if let Err(error) = &settled {
                outcome.findings.push(format!("at rest: {error:#}"));
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// Ends the load, and waits until everything has arrived and is committed.
    async fn end(&mut self, tally: &Tally, load: Load, patience: Duration) -> Result<()> {
        self.publishers.end(tally, load).await?;
        let end = Instant::now();
        within(patience, || tally.missing(end).is_empty()).await.context("everything arrives")?;
        let mut partitions = Vec::new();
        for integration in &self.integrations {
            let topic = self.deployment.catalogue().messages(integration.uid.parse()?, 1);
            let partition = |number| TopicPartition::new(topic.name.as_str(), number);
            partitions.extend((0..topic.partitions).map(partition));
        }
        loop {
            match work::is_settled(&self.bus, &self.deployment.catalogue(), &partitions).await {
                Ok(()) => return Ok(()),
                Err(error) if end.elapsed() > patience => return Err(error),
                Err(_) => sleep(10 * PAUSE).await,
            }
        }
    }
}

/// Waits until everywhere something has arrived since the healing, everything acknowledged before it has, and the status
/// says that the integration runs; or until patience ends. Returns when the second was so, by integration.
async fn recover(
    tally: &Tally,
    watches: &[Watch],
    healed: &[Instant],
    options: &Options,
) -> Vec<Option<Instant>> {
    let mut drained = vec![None; healed.len()];
    let last = healed.iter().max().copied().unwrap_or_else(Instant::now);
    while last.elapsed() < options.patience {
        for (index, drained) in drained.iter_mut().enumerate() {
            if drained.is_none() && !tally.missing(healed[index]).contains_key(options.kinds[index].name()) {
                *drained = Some(Instant::now());
            }
        }
        let is_back = |(index, watch): (usize, &Watch)| {
            drained[index].is_some() && watch.running().is_some() && tally.first_arrival(index).is_some()
        };
        if watches.iter().enumerate().all(is_back) {
            break;
        }
        sleep(PAUSE).await;
    }
    drained
}

async fn within(patience: Duration, done: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !done() {
        ensure!(Instant::now() < deadline, "not within {patience:?}");
        sleep(PAUSE).await;
    }
    Ok(())
}
