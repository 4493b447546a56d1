//! One shard: an actor that drives the lifecycle machine, the sink and the pack machines of its message partitions.

mod dead_letters;
mod events;
mod running;
mod start;

use std::{
    future::Future,
    hash::{BuildHasher as _, RandomState},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tbmq_integration::{
    Millis,
    lifecycle::{self, End, Event, Lifecycle, Reinit, Step},
    pack,
    stall::{self, Stall},
    stats::{Collector, Processor},
    wire::{Change, CommitMetadata, Desired},
};
use tbmq_proto::{
    ids::{Kind, ShardId},
    integration::{ComponentLifecycleEventProto, LifecycleEvent, StatisticsEvent, native_event::Body},
};
use tokio::sync::watch;

pub(crate) use self::start::{listed, metadata, read};
use self::{
    dead_letters::{DeadLetters, Origin},
    running::{Lane, Running, Wake, progress},
    start::{Started, start},
};
use crate::{
    executor::Shared,
    lease::Lease,
    metrics::{Tally, Tracked},
    traced,
    uplink::Teller,
};

/// What the driver wants of a shard: only the latest counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    pub(crate) desired: Option<Desired>,
    pub(crate) end: Option<End>,
}

/// One shard.
pub(crate) struct Shard {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: ShardId,
    pub(crate) kind: Kind,
    pub(crate) epoch: u64,
    pub(crate) lease: Lease,
    pub(crate) orders: watch::Receiver<Order>,
    pub(crate) teller: Teller,
    /// Why its predecessor ended by itself; the shard begins as failed.
    pub(crate) crash: Option<String>,
}

impl Shard {
    /// Runs until it is told to end.
    pub(crate) async fn run(self) {
        let config = &self.shared.config.integrations;
        let longest = Duration::from_millis(config.reinit.frequency);
        let reinit = config.reinit.enabled.then(|| Reinit {
            // What crashes is not to crash ever faster.
            first: if self.crash.is_some() { longest } else { config.reinit.backoff },
            longest,
            seed: RandomState::new().hash_one(self.id),
        });
        let every =
            config.statistics.enabled.then(|| Duration::from_millis(config.statistics.persist_frequency));
        let states = StateGauge {
            shared: self.shared.clone(),
            kind: self.kind.clone(),
            counted: None,
            is_stalled: false,
        };
        Actor {
            _tracked: self.shared.metrics.track(self.id.integration),
            lifecycle: Lifecycle::new(reinit),
            collector: Collector::new(every),
            starting: None,
            running: None,
            restart: Restart::No,
            states,
            shard: self,
        }
        .run()
        .await;
    }
}

type Starting = Pin<Box<dyn Future<Output = Result<Started, String>> + Send>>;

struct Actor {
    shard: Shard,
    lifecycle: Lifecycle,
    collector: Collector,
    starting: Option<Starting>,
    running: Option<Running>,
    restart: Restart,
    states: StateGauge,
    /// The integration's series live as long as a shard of it does.
    _tracked: Tracked,
}

/// Whether commits of the topic are void although the generation says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    No,
    /// The topic was gone, or shorter than what was committed: it was created anew behind the control plane's back.
    FromBegin,
}

impl Actor {
    async fn run(mut self) {
        self.order();
        if let Some(text) = self.shard.crash.take()
            && self.lifecycle.state() == lifecycle::State::Starting
        {
            // The start that is asked for here is answered at once by the predecessor's failure.
            while self.lifecycle.poll().is_some() {}
            self.lifecycle.failed(self.now(), text);
        }
        loop {
            while let Some(step) = self.lifecycle.poll() {
                match step {
                    Step::Start(desired) => {
                        let start = start(self.shard.shared.clone(), self.shard.id, desired, self.restart);
                        self.starting = Some(Box::pin(start));
                    }
                    Step::Stop => {
                        self.starting = None;
                        self.stop().await;
                        self.lifecycle.stopped(self.now());
                    }
                    Step::Tell(event) => self.tell(event),
                    Step::End => return,
                }
            }
            self.states.set(self.lifecycle.state());
            self.wait().await;
        }
    }

    async fn wait(&mut self) {
        let deadline = self.next_deadline();
        let clock = self.shard.shared.clock;
        let is_waiting = self.running.as_ref().is_some_and(|running| running.is_leaseless);
        tokio::select! {
            changed = self.shard.orders.changed() => match changed {
                Ok(()) => self.order(),
                // The driver is gone without a word: the same as losing the shard.
                Err(_) => self.lifecycle.end(End::Lost),
            },
            result = started(&mut self.starting) => {
                self.starting = None;
                match result {
                    Ok(started) => self.begin(started).await,
                    Err(text) => self.lifecycle.failed(self.now(), text),
                }
            }
            wake = progress(&mut self.running, clock) => self.progressed(wake).await,
            () = self.shard.lease.regained(), if is_waiting => self.pump().await,
            () = clock.sleep_until(deadline), if deadline.is_some() => self.tick().await,
        }
    }

    fn now(&self) -> Millis {
        self.shard.shared.clock.now()
    }

    fn next_deadline(&mut self) -> Option<Millis> {
        let running = self.running.as_mut().and_then(Running::next_deadline);
        [running, self.lifecycle.next_deadline(), self.collector.next_deadline()].into_iter().flatten().min()
    }

    fn order(&mut self) {
        let order = self.shard.orders.borrow_and_update().clone();
        if let Some(desired) = order.desired {
            self.lifecycle.desire(desired);
        }
        if let Some(end) = order.end {
            self.lifecycle.end(end);
        }
    }

    fn end_wanted(&self) -> Option<End> {
        let order = self.shard.orders.borrow();
        let is_deleted = order.desired.as_ref().is_some_and(|desired| desired.change == Change::Deleted);
        order.end.or_else(|| is_deleted.then_some(End::Deleted))
    }

    async fn begin(&mut self, started: Started) {
        let shared = self.shard.shared.clone();
        let metadata = CommitMetadata {
            generation: started.generation,
            epoch: self.shard.epoch,
            topic: started.topic_id.clone(),
            ..CommitMetadata::default()
        };
        let settings = started.settings;
        let origin = traced::Origin {
            tracer: shared.tracer.clone(),
            shard: self.shard.id,
            kind: self.shard.kind.clone(),
            group: shared.catalogue.messages_group().into(),
        };
        let mut lanes = Vec::with_capacity(started.partitions.len());
        for (index, (partition, start, before)) in started.partitions.into_iter().enumerate() {
            let pack = pack::Partition::new(settings.clone(), index as u8);
            let lease = self.shard.lease.clone();
            let registration = shared.messages.add(partition, start, metadata.clone(), lease).await;
            let lane = Lane {
                pack,
                registration,
                before,
                ordering: settings.ordering,
                keeps_records: settings.dead_letters,
                origin: origin.clone(),
                has_taken: false,
                limited: None,
                told: Processor::default(),
                told_late: 0,
                told_settled: pack::Settled::default(),
            };
            lanes.push(lane);
        }
        let (revision, generation, epoch) = (started.revision, started.generation, self.shard.epoch);
        let dead_letters = settings.dead_letters.then(|| {
            let origin = Origin { generation, revision, epoch };
            DeadLetters::new(&shared, self.shard.id, origin, started.poll_interval)
        });
        self.running = Some(Running {
            sink: started.sink,
            lanes,
            revision,
            away: None,
            is_blocked: false,
            is_leaseless: false,
            is_stopping: false,
            is_over_budget: false,
            held_bytes: 0,
            in_hand: shared.metrics.in_hand(self.shard.id.integration),
            tally: Tally::new(self.shard.id.integration, self.shard.kind.as_str()),
            timings: shared.metrics.timings(self.shard.kind.as_str()),
            stall: Stall::new(shared.config.integrations.stalled_after),
            last_failure: None,
            dead_letters,
            lease: self.shard.lease.clone(),
            shared,
        });
        self.collector.start(self.now());
        self.lifecycle.started(self.now());
    }

    async fn tick(&mut self) {
        let now = self.now();
        self.lifecycle.tick(now);
        if let Some(statistics) = self.collector.due(now) {
            self.tell_statistics(statistics);
        }
        if let Some(running) = &mut self.running {
            running.lanes.iter_mut().for_each(|lane| lane.pack.tick(now));
            self.pump().await;
        }
    }

    async fn progressed(&mut self, wake: Wake) {
        match wake {
            Wake::Progress => self.pump().await,
            Wake::Broken { reason } => self.lifecycle.broken(self.now(), reason),
            Wake::Gone { reason } => {
                tracing::info!(shard = %self.shard.id, reason, "the message topic is gone; looking for it again");
                self.restart = Restart::FromBegin;
                self.lifecycle.restart();
            }
        }
    }

    /// Submits what may be submitted, and tells what has happened.
    async fn pump(&mut self) {
        let now = self.now();
        let Some(running) = &mut self.running else { return };
        running.submit(now);
        for lane in &mut running.lanes {
            lane.settle();
            if std::mem::take(&mut lane.has_taken) {
                lane.registration.credit().await;
            }
        }
        self.report();
        if let Some(running) = &mut self.running
            && let Some(change) = running.observe(now)
        {
            match change {
                stall::Change::Stalled => self.lifecycle.stalled(running.why_stalled()),
                stall::Change::Resumed => self.lifecycle.resumed(),
            }
            self.states.set_stalled(change == stall::Change::Stalled);
        }
    }

    /// Counters and error events of what has happened since the last report.
    fn report(&mut self) {
        let Some(running) = &mut self.running else { return };
        let shared = &self.shard.shared;
        let mut held = 0;
        for lane in &mut running.lanes {
            held += lane.pack.bytes();
            let (before, after) = (lane.told, lane.pack.processor());
            if before != after {
                lane.told = after;
                let delivered = after.successful - before.successful;
                let failed = |p: &Processor| p.failed + p.timeout + p.tmp_failed + p.tmp_timeout;
                let errors = failed(&after) - failed(&before);
                self.collector.add(delivered, errors);
                running.tally.processed(&shared.metrics, &before, &after);
                running.tally.uplink(&shared.metrics, delivered, errors);
            }
            let (late, settled) = (lane.pack.late(), lane.pack.settled());
            shared.metrics.late_answers.inc_by(late - std::mem::replace(&mut lane.told_late, late));
            let settled_before = std::mem::replace(&mut lane.told_settled, settled);
            if settled_before != settled {
                running.tally.settled(&shared.metrics, &settled_before, &settled);
            }
            let traced = lane.sight();
            let failure = events::tell_notices(
                shared,
                self.shard.id,
                self.shard.kind.as_str(),
                running.revision,
                &self.shard.teller,
                lane,
                &traced,
            );
            if failure.is_some() {
                running.last_failure = failure;
            }
        }
        let lanes = || running.lanes.iter().map(|lane| &lane.pack);
        running.in_hand.tell(
            lanes().map(pack::Partition::seen).sum(),
            lanes().map(|pack| pack.settled().total()).sum(),
            lanes().map(pack::Partition::in_flight).sum(),
            lanes().map(pack::Partition::unsettled).sum(),
        );
        let before = std::mem::replace(&mut running.held_bytes, held);
        shared.metrics.held_bytes.inc_by(held as i64 - before as i64);
    }

    /// Stops what runs: waits for what is in flight, commits, closes. When the shard is lost it does neither, and
    /// whatever has no outcome by then is not committed (UP-8).
    async fn stop(&mut self) {
        let shared = self.shard.shared.clone();
        if let Some(running) = &mut self.running {
            running.is_stopping = true;
        }
        let deadline = shared.clock.now() + shared.config.destroy_timeout();
        while self.running.as_ref().is_some_and(|running| running.unfinished() > 0)
            && self.end_wanted() != Some(End::Lost)
        {
            let next = self.running.as_mut().and_then(Running::next_deadline);
            let wake = next.map_or(deadline, |next| next.min(deadline));
            tokio::select! {
                changed = self.shard.orders.changed() => {
                    self.order();
                    if changed.is_err() {
                        break;
                    }
                }
                _ = progress(&mut self.running, shared.clock) => {}
                () = shared.clock.sleep_until(Some(wake)) => {}
            }
            let now = shared.clock.now();
            if let Some(running) = &mut self.running {
                running.lanes.iter_mut().for_each(|lane| lane.pack.tick(now));
                running.submit_letters(now);
            }
            self.report();
            if now >= deadline {
                break;
            }
        }
        self.report();
        self.states.set_stalled(false);
        let is_lost = self.end_wanted() == Some(End::Lost);
        if let Some(running) = self.running.take() {
            if !is_lost {
                running.lanes.iter().for_each(Lane::settle);
                let registrations = running.lanes.iter().map(|lane| &lane.registration);
                // A bus that is away must not hold the shard: what is not committed is delivered again.
                let flush = shared.messages.flush(registrations);
                if tokio::time::timeout(shared.config.destroy_timeout(), flush).await != Ok(true) {
                    tracing::warn!(shard = %self.shard.id, "stopped without a commit; some messages will be repeated");
                }
            }
            let Running { sink, lanes, held_bytes, .. } = running;
            shared.metrics.held_bytes.dec_by(held_bytes as i64);
            drop(lanes);
            // Everything in flight was waited for already.
            let unresolved = sink.close(Duration::ZERO).await.len();
            if unresolved > 0 {
                tracing::info!(shard = %self.shard.id, unresolved, "closed with messages in flight; they will be repeated");
            }
        }
        if let Some(statistics) = self.collector.stop()
            && !is_lost
        {
            self.tell_statistics(statistics);
        }
    }

    fn tell_statistics(&self, statistics: tbmq_integration::stats::Statistics) {
        let event =
            StatisticsEvent { messages_processed: statistics.processed, errors_occurred: statistics.errors };
        self.shard.teller.tell(self.revision(), Body::Statistics(event));
    }

    fn revision(&self) -> u64 {
        self.lifecycle.desired().map_or(0, |desired| desired.revision)
    }

    fn tell(&mut self, event: Event) {
        let kind = self.shard.kind.as_str();
        let metrics = &self.shard.shared.metrics;
        let (shard, revision) = (self.shard.id, self.revision());
        let (word, error) = match event {
            Event::Started => {
                self.restart = Restart::No;
                metrics.count("start", true, kind, 1);
                tracing::info!(%shard, revision, "integration started");
                (ComponentLifecycleEventProto::Started, None)
            }
            Event::Stopped => {
                metrics.count("stop", true, kind, 1);
                tracing::info!(%shard, revision, "integration stopped");
                (ComponentLifecycleEventProto::Stopped, None)
            }
            Event::Failed { text } => {
                metrics.count("start", false, kind, 1);
                tracing::warn!(%shard, revision, error = text, "integration failed");
                (ComponentLifecycleEventProto::Failed, Some(text))
            }
            Event::Reinit => (ComponentLifecycleEventProto::Reinit, None),
            Event::Stalled { text } => {
                tracing::warn!(%shard, revision, reason = text, "integration is stalled");
                (ComponentLifecycleEventProto::Stalled, Some(text))
            }
            Event::Resumed => {
                tracing::info!(%shard, revision, "integration goes on");
                (ComponentLifecycleEventProto::Resumed, None)
            }
        };
        let success = word != ComponentLifecycleEventProto::Failed;
        let event = LifecycleEvent { event: word.into(), success, error };
        self.shard.teller.tell(revision, Body::Lifecycle(event));
    }
}

async fn started(starting: &mut Option<Starting>) -> Result<Started, String> {
    match starting {
        Some(start) => start.await,
        None => std::future::pending().await,
    }
}

/// The driver's clock: machines get milliseconds since the process began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(tokio::time::Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(tokio::time::Instant::now())
    }

    pub(crate) fn now(self) -> Millis {
        Millis(self.0.elapsed().as_millis() as u64)
    }

    /// `None`: never.
    async fn sleep_until(self, at: Option<Millis>) {
        match at {
            Some(at) => tokio::time::sleep_until(self.0 + Duration::from_millis(at.0)).await,
            None => std::future::pending().await,
        }
    }
}

/// Counts a shard among the started or failed ones of its kind, however it ends.
struct StateGauge {
    shared: Arc<Shared>,
    kind: Kind,
    counted: Option<bool>,
    is_stalled: bool,
}

impl StateGauge {
    fn set(&mut self, state: lifecycle::State) {
        let counted = match state {
            lifecycle::State::Started => Some(true),
            lifecycle::State::Failed => Some(false),
            _ => None,
        };
        let before = std::mem::replace(&mut self.counted, counted);
        if before == counted {
            return;
        }
        if let Some(is_success) = before {
            self.shared.metrics.states(is_success, self.kind.as_str(), -1);
        }
        if let Some(is_success) = counted {
            self.shared.metrics.states(is_success, self.kind.as_str(), 1);
        }
    }
}

impl StateGauge {
    fn set_stalled(&mut self, is_stalled: bool) {
        if std::mem::replace(&mut self.is_stalled, is_stalled) != is_stalled {
            self.shared.metrics.stalled(self.kind.as_str(), if is_stalled { 1 } else { -1 });
        }
    }
}

impl Drop for StateGauge {
    fn drop(&mut self) {
        self.set_stalled(false);
        self.set(lifecycle::State::Idle);
    }
}
