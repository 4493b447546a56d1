//! One shard: an actor that drives the lifecycle machine, the sink and the pack machines of its message partitions.

use std::{
    collections::hash_map::DefaultHasher,
    future::{Future, poll_fn},
    hash::{Hash, Hasher},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use serde_json::{Map, Value};
use tbmq_bus::{Record, Start, TopicPartition};
use tbmq_integration::{
    Millis,
    entity::{Document, Violation},
    lifecycle::{self, End, Event, Lifecycle, Step},
    pack::{self, Answer, Item, Notice},
    stats::{Admission, Collector, LIMIT_TEXT, Processor},
    wire::{Change, CommitMetadata, Desired},
};
use tbmq_proto::{
    ids::{Kind, ShardId},
    integration::{
        ComponentLifecycleEventProto, ErrorEvent, LifecycleEvent, PublishIntegrationMsgProto,
        StatisticsEvent, native_event::Body,
    },
};
use tokio::sync::watch;

use crate::{
    executor::Shared,
    lease::Lease,
    lookup::Found,
    messages::{Delivery, Registration},
    sink::{Message, Outcome, Sink, SinkContext, SinkState},
    uplink::Teller,
};

/// Answers of a sink that are taken per wake, so that one shard does not hold a thread.
const ANSWERS_PER_WAKE: usize = 512;

/// The first and the longest pause between two looks for a topic.
const LOOKUP_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

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
        let reinit = config.reinit.enabled.then(|| Duration::from_millis(config.reinit.frequency));
        let every =
            config.statistics.enabled.then(|| Duration::from_millis(config.statistics.persist_frequency));
        let states = StateGauge { shared: self.shared.clone(), kind: self.kind.clone(), counted: None };
        Actor {
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
}

/// Whether commits of the topic are void although the generation says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    No,
    /// The topic was gone, or shorter than what was committed: it was created anew behind the control plane's back.
    FromBegin,
}

/// What a start results in.
struct Started {
    sink: Box<dyn Sink>,
    settings: pack::Settings,
    partitions: Vec<(TopicPartition, Start)>,
    generation: u64,
    /// The bus's id of the message topic.
    topic_id: String,
    revision: u64,
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
                    Step::End => {
                        if self.end_wanted() == Some(End::Deleted) {
                            self.shard.shared.metrics.forget(self.shard.id.integration);
                        }
                        return;
                    }
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
            topic: started.topic_id,
        }
        .to_text();
        let mut lanes = Vec::with_capacity(started.partitions.len());
        for (index, (partition, start)) in started.partitions.into_iter().enumerate() {
            let pack = pack::Partition::new(started.settings.clone(), index as u8);
            let lease = self.shard.lease.clone();
            let registration = shared.messages.add(partition, start, metadata.clone(), lease).await;
            let lane = Lane {
                pack,
                registration,
                credits: 0,
                told: Processor::default(),
                told_late: 0,
                told_settled: pack::Settled::default(),
            };
            lanes.push(lane);
        }
        self.running = Some(Running {
            sink: started.sink,
            lanes,
            ordering: started.settings.ordering,
            revision: started.revision,
            is_away: false,
            is_blocked: false,
            is_leaseless: false,
            is_stopping: false,
            held_bytes: 0,
            lease: self.shard.lease.clone(),
            shared,
        });
        self.collector.start(self.now());
        self.lifecycle.started();
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
            Wake::Broken { reason } => self.lifecycle.broken(reason),
            Wake::Gone { reason } => {
                tracing::info!(shard = %self.shard.id, reason, "the message topic is gone; looking for it again");
                self.restart = Restart::FromBegin;
                self.lifecycle.restart();
            }
        }
    }

    /// Submits what may be submitted, and tells what has happened.
    async fn pump(&mut self) {
        let Some(running) = &mut self.running else { return };
        running.submit(self.shard.shared.clock.now());
        for lane in &mut running.lanes {
            if let Some(position) = lane.pack.commit_position() {
                lane.registration.settled(position);
            }
            for _ in 0..std::mem::take(&mut lane.credits) {
                lane.registration.credit().await;
            }
        }
        self.report();
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
                shared.metrics.processor(self.shard.id.integration, &before, &after);
                shared.metrics.count("msgUplink", true, self.shard.kind.as_str(), delivered);
                shared.metrics.count("msgUplink", false, self.shard.kind.as_str(), errors);
            }
            let (late, settled) = (lane.pack.late(), lane.pack.settled());
            shared.metrics.late_answers.inc_by(late - std::mem::replace(&mut lane.told_late, late));
            let settled_before = std::mem::replace(&mut lane.told_settled, settled);
            if settled_before != settled {
                shared.metrics.settled(self.shard.id.integration, &settled_before, &settled);
            }
            while let Some(notice) = lane.pack.poll_notice() {
                let event = error_event(lane.registration.partition(), notice);
                let admission = shared.admit(self.shard.id.integration);
                let event = match admission {
                    Admission::Pass => event,
                    Admission::PassNotice => ErrorEvent { error: LIMIT_TEXT.to_owned(), ..event },
                    Admission::Suppress => {
                        shared.metrics.error_events_suppressed.inc();
                        continue;
                    }
                };
                self.shard.teller.tell(running.revision, Body::Error(event));
            }
        }
        let before = std::mem::replace(&mut running.held_bytes, held);
        shared.held_bytes.fetch_add(held, Ordering::Relaxed);
        shared.held_bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Stops what runs: waits for what is in flight, commits, closes. When the shard is lost it does neither, and
    /// whatever has no outcome by then is not committed (UP-8).
    async fn stop(&mut self) {
        let shared = self.shard.shared.clone();
        if let Some(running) = &mut self.running {
            running.is_stopping = true;
        }
        let deadline = shared.clock.now() + shared.config.destroy_timeout();
        while self.running.as_ref().is_some_and(|running| running.in_flight() > 0)
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
            }
            self.report();
            if now >= deadline {
                break;
            }
        }
        self.report();
        let is_lost = self.end_wanted() == Some(End::Lost);
        if let Some(running) = self.running.take() {
            if !is_lost {
                for lane in &running.lanes {
                    if let Some(position) = lane.pack.commit_position() {
                        lane.registration.settled(position);
                    }
                }
                let registrations = running.lanes.iter().map(|lane| &lane.registration);
                // A bus that is away must not hold the shard: what is not committed is delivered again.
                let flush = shared.messages.flush(registrations);
                if tokio::time::timeout(shared.config.destroy_timeout(), flush).await != Ok(true) {
                    tracing::warn!(shard = %self.shard.id, "stopped without a commit; some messages will be repeated");
                }
            }
            let Running { sink, lanes, held_bytes, .. } = running;
            shared.held_bytes.fetch_sub(held_bytes, Ordering::Relaxed);
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
        };
        let event = LifecycleEvent { event: word.into(), success: error.is_none(), error };
        self.shard.teller.tell(revision, Body::Lifecycle(event));
    }
}

async fn started(starting: &mut Option<Starting>) -> Result<Started, String> {
    match starting {
        Some(start) => start.await,
        None => std::future::pending().await,
    }
}

async fn progress(running: &mut Option<Running>, clock: Clock) -> Wake {
    match running {
        Some(running) => running.progress(clock).await,
        None => std::future::pending().await,
    }
}

/// A started shard.
struct Running {
    sink: Box<dyn Sink>,
    lanes: Vec<Lane>,
    ordering: pack::Ordering,
    revision: u64,
    is_away: bool,
    /// The sink said that it is busy.
    is_blocked: bool,
    /// Something waits for the lease.
    is_leaseless: bool,
    is_stopping: bool,
    held_bytes: usize,
    lease: Lease,
    shared: Arc<Shared>,
}

struct Lane {
    pack: pack::Partition<Message>,
    registration: Registration,
    /// Deliveries taken since the last pump.
    credits: usize,
    told: Processor,
    told_late: u64,
    told_settled: pack::Settled,
}

enum Wake {
    Progress,
    Broken { reason: String },
    Gone { reason: String },
}

impl Running {
    /// Waits until the sink or the reader has something. Cancel-safe.
    async fn progress(&mut self, clock: Clock) -> Wake {
        let mut is_first = true;
        poll_fn(|cx| {
            let mut has_progress = false;
            let mut answers = 0;
            while let Poll::Ready((ticket, outcome)) = self.sink.poll_outcome(cx) {
                has_progress = true;
                if let Some(lane) = self.lanes.get_mut(usize::from(pack::lane_of(ticket))) {
                    lane.pack.answered(clock.now(), ticket, answer(outcome));
                }
                answers += 1;
                if answers == ANSWERS_PER_WAKE {
                    break;
                }
            }
            match self.sink.state() {
                SinkState::Broken { reason } if !self.is_stopping => {
                    return Poll::Ready(Wake::Broken { reason });
                }
                SinkState::Ready if self.is_away => {
                    self.is_away = false;
                    has_progress = true;
                }
                SinkState::Away { reason } if !self.is_away => {
                    tracing::info!(reason, "the remote end is away; the message topic is paused");
                    self.is_away = true;
                }
                _ => {}
            }
            if !self.is_away && !self.is_stopping {
                for lane in &mut self.lanes {
                    // The process's budget holds back only those that have something in hand.
                    let budget = self.shared.config.queue.integration_msg.budget_bytes.get();
                    while lane.pack.wants_more()
                        && (lane.pack.unsettled() == 0
                            || self.shared.held_bytes.load(Ordering::Relaxed) < budget)
                        && let Poll::Ready(Some(delivery)) = lane.registration.poll(cx)
                    {
                        has_progress = true;
                        lane.credits += 1;
                        if let Err(reason) = lane.take(delivery, self.ordering, &self.shared) {
                            return Poll::Ready(Wake::Gone { reason });
                        }
                    }
                }
            }
            // A wake without an answer may mean that there is room.
            if has_progress || (self.is_blocked && !is_first) {
                return Poll::Ready(Wake::Progress);
            }
            is_first = false;
            Poll::Pending
        })
        .await
    }

    fn submit(&mut self, now: Millis) {
        self.is_blocked = false;
        self.is_leaseless = false;
        if self.is_away || self.is_stopping {
            return;
        }
        let wall_ms = tbmq_service::time::now_ms();
        for lane in &mut self.lanes {
            while let Some((ticket, message)) = lane.pack.next(wall_ms) {
                // For each message: a process may be frozen at any point.
                if !self.lease.holds() {
                    self.is_leaseless = true;
                    return;
                }
                if self.sink.submit(message.clone(), ticket).is_err() {
                    self.is_blocked = true;
                    return;
                }
                lane.pack.submitted(now);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.pack.in_flight()).sum()
    }

    fn next_deadline(&mut self) -> Option<Millis> {
        self.lanes.iter_mut().filter_map(|lane| lane.pack.next_deadline()).min()
    }
}

impl Lane {
    /// Takes a delivery; `Err`: the topic is gone.
    fn take(&mut self, delivery: Delivery, ordering: pack::Ordering, shared: &Shared) -> Result<(), String> {
        match delivery {
            Delivery::Records(records) => {
                let partition = self.registration.partition();
                self.pack.take(records.into_iter().map(|record| item(record, partition, ordering, shared)));
            }
            Delivery::End(position) => self.pack.reached(position),
            Delivery::Gap { from, to } => self.pack.gap(from, to),
            Delivery::Gone(reason) => return Err(reason),
        }
        Ok(())
    }
}

fn item(
    record: Record,
    partition: &TopicPartition,
    ordering: pack::Ordering,
    shared: &Shared,
) -> Item<Message> {
    let decoded = PublishIntegrationMsgProto::decode(record.value.clone().unwrap_or_default());
    let publish =
        decoded.map_err(|error| error.to_string()).and_then(|publish| match publish.publish_msg_proto {
            Some(_) => Ok(publish),
            None => Err("publishMsgProto is missing".to_owned()),
        });
    let message = match publish {
        Ok(publish) => Some(Message {
            publish: Arc::new(publish),
            partition: partition.partition,
            offset: record.offset,
        }),
        Err(error) => {
            shared.metrics.bad_record("msg");
            tracing::warn!(%partition, offset = record.offset, error, "skipped a message that can't be understood");
            None
        }
    };
    let key = match ordering {
        pack::Ordering::None => 0,
        pack::Ordering::Key => {
            let mut hasher = DefaultHasher::new();
            record.key.as_ref().map(Bytes::as_ref).hash(&mut hasher);
            hasher.finish()
        }
    };
    let expires_at_ms = message.as_ref().map_or(0, |message| message.publish.expires_at_ms);
    Item { offset: record.offset, key, weight: record.weight(), expires_at_ms, message }
}

fn answer(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Delivered => Answer::Delivered,
        Outcome::Retry { after, text, .. } => Answer::Retry { after, text: said(text) },
        Outcome::Rejected { text, .. } => Answer::Rejected { text: said(text) },
    }
}

/// TBMQ's text for an error without one.
fn said(text: String) -> String {
    if text.is_empty() { "Unspecified server error".to_owned() } else { text }
}

fn error_event(partition: &TopicPartition, notice: Notice) -> ErrorEvent {
    match notice {
        Notice::Failed { offset, text, is_retried } => {
            tracing::debug!(%partition, offset, is_retried, error = text, "a message was not delivered");
            ErrorEvent { method: "onMsgProcess".to_owned(), error: text, count: 1 }
        }
        Notice::Expired { first, count } => ErrorEvent {
            method: "expired".to_owned(),
            error: format!(
                "{count} messages of {partition}, from offset {first} on, expired before delivery"
            ),
            count,
        },
        Notice::Gap { from, to } => {
            tracing::warn!(%partition, from, to, "retention removed messages before they were delivered");
            ErrorEvent {
                method: "expired".to_owned(),
                error: format!(
                    "retention removed offsets {from} to {} of {partition} before delivery",
                    to - 1
                ),
                count: to - from,
            }
        }
    }
}

/// Connects what is desired. Waits for its message topic, and for the remote end where the kind says so.
async fn start(
    shared: Arc<Shared>,
    shard: ShardId,
    desired: Desired,
    restart: Restart,
) -> Result<Started, String> {
    let Change::Apply { target, .. } = &desired.change else { return Err("deleted".to_owned()) };
    let kind = shared.kind(&desired.kind)?.clone();
    let document = Document::parse(&target.configuration).map_err(|violations| listed(&violations))?;
    let violations = kind.check(&document.client_configuration);
    if !violations.is_empty() {
        return Err(listed(&violations));
    }
    // Kinds whose remote end keeps an order keep it; HTTP's does not (architecture §4.21).
    let ordering = if kind.name() == "HTTP" { pack::Ordering::None } else { pack::Ordering::Key };
    let settings = shared.config.pack(&document.delivery, ordering);
    let (found, partitions) = locate(&shared, shard, desired.shard_count).await?;
    let starts = partitions.iter().map(|partition| begin_at(&found, partition, desired.generation, restart));
    let partitions = partitions.iter().cloned().zip(starts).collect();
    let context = SinkContext {
        shard,
        topic: shared.catalogue.messages(shard.integration, desired.shard_count).name.into(),
        target: target.clone(),
        metadata: Arc::new(metadata(&target.name, &document)),
        executor_id: shared.executor_id.clone(),
        window: settings.window_messages,
    };
    // The semaphore is never closed.
    let _permit = shared.connects.acquire().await.ok();
    let sink = kind.connect(&document.client_configuration, context).await.map_err(|error| {
        if error.violations.is_empty() { said(error.text) } else { listed(&error.violations) }
    })?;
    Ok(Started {
        sink,
        settings,
        partitions,
        generation: desired.generation,
        topic_id: found.info.id,
        revision: desired.revision,
    })
}

/// The metadata that sinks write: the integration's name, overlaid by what the document says.
pub(crate) fn metadata(name: &str, document: &Document) -> Map<String, Value> {
    let name = ("integrationName".to_owned(), Value::from(name));
    let own = document.metadata.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
    std::iter::once(name).chain(own).collect()
}

/// All problems in one text, never empty (UP-9).
pub(crate) fn listed(violations: &[Violation]) -> String {
    let texts: Vec<_> = violations.iter().map(ToString::to_string).collect();
    said(texts.join("; "))
}

/// The message partitions of a shard. Waits until the topic is there: the control plane makes it.
async fn locate(
    shared: &Shared,
    shard: ShardId,
    shard_count: u32,
) -> Result<(Found, Vec<TopicPartition>), String> {
    let topic = shared.catalogue.messages(shard.integration, shard_count).name;
    let (mut pause, longest) = LOOKUP_PAUSE;
    let found = loop {
        match shared.lookup.find(&topic).await {
            Ok(Some(found)) => break found,
            Ok(None) => tracing::debug!(topic, "the message topic is not there yet"),
            Err(error) => tracing::debug!(topic, %error, "can't look for the message topic"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    };
    let count = found.info.partitions;
    let topic: Arc<str> = topic.into();
    let own = (0..count).filter(|partition| partition % shard_count == shard.index);
    let partitions: Vec<_> = own.map(|partition| TopicPartition::new(topic.clone(), partition)).collect();
    match partitions.len() {
        0 => Err(format!(
            "topic {topic} has {count} partitions, none of them for shard {shard} of {shard_count}"
        )),
        1..=256 => Ok((found, partitions)),
        more => Err(format!("topic {topic} has {more} partitions for one shard; at most 256 can be read")),
    }
}

/// Where to begin: at what was committed for this generation and this creation of the topic, else at its first record.
fn begin_at(found: &Found, partition: &TopicPartition, generation: u64, restart: Restart) -> Start {
    let committed = || {
        let commit = found.commits.iter().find(|commit| commit.partition == *partition)?;
        let metadata = CommitMetadata::from_text(&commit.metadata)?;
        metadata.is_of(generation, &found.info.id).then_some(commit.offset)
    };
    // Not `Earliest`: what retention removed before the first start is a gap, and no gap is silent.
    match restart {
        Restart::FromBegin => Start::Offset(0),
        Restart::No => Start::Offset(committed().unwrap_or(0)),
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

impl Drop for StateGauge {
    fn drop(&mut self) {
        self.set(lifecycle::State::Idle);
    }
}
