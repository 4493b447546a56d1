//! A started shard: the sink, the pack machines of its message partitions, and its dead letters.

use std::{
    collections::hash_map::DefaultHasher,
    future::poll_fn,
    hash::{Hash, Hasher},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message as _;
use tbmq_bus::{Record, TopicPartition};
use tbmq_integration::{
    Millis,
    pack::{self, Answer, Item, Limit, Sighting, Unfit},
    stall::{self, Stall},
    stats::Processor,
    wire::Totals,
};
use tbmq_proto::integration::PublishIntegrationMsgProto;

use super::{
    Clock,
    dead_letters::{DeadLetters, Written},
};
use crate::{
    executor::Shared,
    lease::Lease,
    messages::{Delivery, Progress, Registration},
    metrics::{InHand, Tally, Timings},
    sink::{Message, Outcome, Sink, SinkState},
    traced::{Origin, Traced},
};

/// Answers of a sink that are taken per wake, so that one shard does not hold a thread.
const ANSWERS_PER_WAKE: usize = 512;

/// Messages that share one look at the clock.
const PER_LOOK: usize = 16;

/// Class of a record that is no message.
const CLASS_UNREADABLE: &str = "unreadable";

/// Class of a message beyond a limit of the executor.
const CLASS_LIMIT: &str = "limit";

/// A started shard.
pub(super) struct Running {
    pub(super) sink: Box<dyn Sink>,
    pub(super) lanes: Vec<Lane>,
    pub(super) revision: u64,
    /// Why the remote end is away, if it is.
    pub(super) away: Option<String>,
    /// The sink said that it is busy.
    pub(super) is_blocked: bool,
    /// Something waits for the lease.
    pub(super) is_leaseless: bool,
    pub(super) is_stopping: bool,
    /// The process's budget of bytes keeps something away.
    pub(super) is_over_budget: bool,
    pub(super) held_bytes: usize,
    pub(super) in_hand: InHand,
    pub(super) tally: Tally,
    pub(super) timings: Timings,
    pub(super) stall: Stall,
    /// The text of the last attempt that failed.
    pub(super) last_failure: Option<String>,
    pub(super) dead_letters: Option<DeadLetters>,
    pub(super) lease: Lease,
    pub(super) shared: Arc<Shared>,
}

/// One message partition.
pub(super) struct Lane {
    pub(super) pack: pack::Partition<Held>,
    pub(super) registration: Registration,
    /// What earlier owners have counted.
    pub(super) before: Totals,
    pub(super) ordering: pack::Ordering,
    pub(super) keeps_records: bool,
    pub(super) origin: Origin,
    /// Deliveries were taken since the last pump.
    pub(super) has_taken: bool,
    /// The limit that keeps more away.
    pub(super) limited: Option<Limit>,
    pub(super) told: Processor,
    pub(super) told_late: u64,
    pub(super) told_settled: pack::Settled,
}

/// A message in the pack machine.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// `None` when the record can't be understood.
    message: Option<Message>,
    /// The record that it came in, if it may become a dead letter.
    pub(super) record: Option<Arc<Record>>,
    /// When the sink got it last.
    submitted: Option<Instant>,
    trace: Option<Arc<Traced>>,
}

impl Held {
    /// The sink has answered, by a look at both clocks.
    fn answered(&self, outcome: &Outcome, (now, now_ms): (Instant, i64), timings: &Timings) {
        let (Some(message), Some(submitted)) = (&self.message, self.submitted) else { return };
        let trace = self.trace.as_ref().map(|trace| trace.context());
        let since_publish = Duration::from_millis((now_ms - message.publish.timestamp).max(0).unsigned_abs());
        timings.answered(outcome, now.saturating_duration_since(submitted), since_publish, trace.as_ref());
    }
}

pub(super) enum Wake {
    Progress,
    Broken { reason: String },
    Gone { reason: String },
}

/// Waits until what runs, if anything does, has something. Cancel-safe.
pub(super) async fn progress(running: &mut Option<Running>, clock: Clock) -> Wake {
    match running {
        Some(running) => running.progress(clock).await,
        None => std::future::pending().await,
    }
}

impl Running {
    async fn progress(&mut self, clock: Clock) -> Wake {
        let mut is_first = true;
        poll_fn(|cx| {
            let mut has_progress = self.poll_answers(cx, clock);
            match self.sink.state() {
                SinkState::Broken { reason } if !self.is_stopping => {
                    return Poll::Ready(Wake::Broken { reason });
                }
                SinkState::Ready if self.away.is_some() => {
                    self.set_away(clock.now(), None);
                    has_progress = true;
                }
                SinkState::Away { reason } if self.away.is_none() => {
                    tracing::info!(reason, "the remote end is away; the message topic is paused");
                    self.set_away(clock.now(), Some(reason));
                    has_progress = true;
                }
                _ => {}
            }
            has_progress |= self.poll_letters(cx, clock);
            if self.away.is_none() && !self.is_stopping {
                match self.poll_deliveries(cx, clock.now()) {
                    Ok(any) => has_progress |= any,
                    Err(reason) => return Poll::Ready(Wake::Gone { reason }),
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

    fn set_away(&mut self, now: Millis, away: Option<String>) {
        for lane in &mut self.lanes {
            lane.pack.away(now, away.is_some());
        }
        self.away = away;
    }

    fn poll_answers(&mut self, cx: &mut Context<'_>, clock: Clock) -> bool {
        let mut answers = 0;
        let mut look = None;
        while answers < ANSWERS_PER_WAKE
            && let Poll::Ready((ticket, outcome)) = self.sink.poll_outcome(cx)
        {
            if answers % PER_LOOK == 0 {
                look = None;
            }
            answers += 1;
            if let Some(lane) = self.lanes.get_mut(usize::from(pack::lane_of(ticket))) {
                if let Some(held) = lane.pack.in_flight_mut(ticket) {
                    let look = look.get_or_insert_with(|| (Instant::now(), tbmq_service::time::now_ms()));
                    held.answered(&outcome, *look, &self.timings);
                }
                lane.pack.answered(clock.now(), ticket, answer(outcome));
            }
        }
        answers > 0
    }

    fn poll_letters(&mut self, cx: &mut Context<'_>, clock: Clock) -> bool {
        let mut has_progress = false;
        let Some(letters) = &mut self.dead_letters else { return false };
        while let Poll::Ready(done) = letters.poll(cx, clock.now()) {
            has_progress = true;
            for (ticket, written) in done {
                let Some(lane) = self.lanes.get_mut(usize::from(pack::lane_of(ticket))) else { continue };
                match written {
                    Written::Yes => lane.pack.dead_lettered(ticket),
                    Written::Never => lane.pack.not_dead_lettered(ticket),
                }
            }
        }
        has_progress
    }

    /// Takes what has been read; `Err`: the topic is gone.
    fn poll_deliveries(&mut self, cx: &mut Context<'_>, now: Millis) -> Result<bool, String> {
        let mut has_progress = false;
        let mut is_over_budget = false;
        let budget = self.shared.config.queue.integration_msg.budget_bytes.get() as i64;
        for lane in &mut self.lanes {
            loop {
                let limited = lane.pack.limit_reached();
                if lane.limited != limited {
                    lane.limited = limited;
                    if let Some(limit) = limited {
                        self.shared.metrics.limit_reached(name_of(limit));
                    }
                }
                if limited.is_some() {
                    break;
                }
                // The process's budget holds back only those that have something in hand.
                if lane.pack.unsettled() > 0 && self.shared.metrics.held_bytes.get() >= budget {
                    is_over_budget = true;
                    break;
                }
                let Poll::Ready(Some(delivery)) = lane.registration.poll(cx) else { break };
                has_progress = true;
                lane.has_taken = true;
                lane.take(now, delivery, &self.shared)?;
            }
        }
        if is_over_budget && !self.is_over_budget {
            self.shared.metrics.limit_reached("budget-bytes");
        }
        self.is_over_budget = is_over_budget;
        Ok(has_progress)
    }

    /// Hands over what may be handed over: letters to the bus, messages to the sink.
    pub(super) fn submit(&mut self, now: Millis) {
        self.submit_letters(now);
        self.is_blocked = false;
        self.is_leaseless = false;
        if self.away.is_some() || self.is_stopping {
            return;
        }
        let wall_ms = tbmq_service::time::now_ms();
        let (mut at, mut count) = (Instant::now(), 0);
        for lane in &mut self.lanes {
            while let Some((ticket, held)) = lane.pack.next(wall_ms) {
                // For each message: a process may be frozen at any point.
                if !self.lease.holds() {
                    self.is_leaseless = true;
                    return;
                }
                let mut message = held.message.clone().expect("what can't be understood is not submitted");
                message.trace = held.trace.as_ref().map(|trace| trace.attempt(ticket));
                if self.sink.submit(message, ticket).is_err() {
                    if let Some(trace) = &held.trace {
                        trace.not_attempted();
                    }
                    self.is_blocked = true;
                    return;
                }
                lane.pack.submitted(now);
                count += 1;
                if count % PER_LOOK == 0 {
                    at = Instant::now();
                }
                if let Some(held) = lane.pack.in_flight_mut(ticket) {
                    held.submitted = Some(at);
                }
            }
        }
    }

    pub(super) fn submit_letters(&mut self, now: Millis) {
        let Some(letters) = &mut self.dead_letters else { return };
        for lane in &mut self.lanes {
            while let Some(letter) = lane.pack.poll_dead_letter() {
                letters.put(now, lane.registration.partition(), letter);
            }
        }
        // Without a look at the lease: at worst a letter is written twice, as a message is delivered twice.
        letters.submit(now);
    }

    /// Whether it has begun or ceased to be stalled.
    pub(super) fn observe(&mut self, now: Millis) -> Option<stall::Change> {
        let has_work = self.away.is_some() || self.lanes.iter().any(|lane| lane.pack.unsettled() > 0);
        let confirmed = self.lanes.iter().map(|lane| lane.pack.confirmed()).sum();
        self.stall.observe(now, has_work, confirmed)
    }

    /// Why it is stalled, as far as it is known.
    pub(super) fn why_stalled(&self) -> String {
        if let Some(reason) = &self.away {
            return format!("the remote end is away: {reason}");
        }
        let patience = self.shared.config.integrations.stalled_after;
        let unsettled: usize = self.lanes.iter().map(|lane| lane.pack.unsettled()).sum();
        let mut text = format!(
            "no message was confirmed for {}, {unsettled} wait, {} of them for an answer",
            humantime(patience),
            self.in_flight()
        );
        if let Some(failure) = &self.last_failure {
            text.push_str("; the last attempt failed: ");
            text.push_str(failure);
        }
        text
    }

    pub(super) fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.pack.in_flight()).sum()
    }

    /// What a stop waits for: answers, and letters that are being written.
    pub(super) fn unfinished(&self) -> usize {
        self.in_flight() + self.dead_letters.as_ref().map_or(0, DeadLetters::len)
    }

    pub(super) fn next_deadline(&mut self) -> Option<Millis> {
        let lanes = self.lanes.iter_mut().filter_map(|lane| lane.pack.next_deadline()).min();
        let letters = self.dead_letters.as_ref().and_then(DeadLetters::next_deadline);
        let stall = self.stall.next_deadline().filter(|_| !self.is_stopping);
        [lanes, letters, stall].into_iter().flatten().min()
    }
}

impl Lane {
    /// Has what is settled committed with the next interval, and what became of it.
    pub(super) fn settle(&self) {
        let Some(position) = self.pack.commit_position() else { return };
        let processor = self.pack.processor();
        let totals =
            self.before.and(self.pack.settled_in_order(), processor.tmp_failed + processor.tmp_timeout);
        self.registration.settled(Progress { position, totals, oldest_ms: self.pack.oldest_ms() });
    }

    /// Has the spans of traced messages told what became of them. Returns those of which an attempt failed.
    pub(super) fn sight(&mut self) -> Vec<Arc<Traced>> {
        let mut failed = Vec::new();
        while let Some((held, sighting)) = self.pack.poll_sighting() {
            let Some(trace) = held.trace else { continue };
            if matches!(sighting, Sighting::Failed { .. }) {
                failed.push(trace.clone());
            }
            trace.saw(sighting);
        }
        failed
    }

    /// Takes a delivery; `Err`: the topic is gone.
    fn take(&mut self, now: Millis, delivery: Delivery, shared: &Shared) -> Result<(), String> {
        match delivery {
            Delivery::Records(records) => {
                let partition = self.registration.partition();
                let (ordering, keeps_records) = (self.ordering, self.keeps_records);
                let items = records.into_iter().map(|record| {
                    let trace = self.origin.arrived(&record, partition);
                    item(record, partition, ordering, keeps_records, trace, shared)
                });
                self.pack.take(now, items);
            }
            Delivery::End(position) => self.pack.reached(position),
            Delivery::Gap { from, to } => self.pack.gap(from, to),
            Delivery::Gone(reason) => return Err(reason),
        }
        Ok(())
    }
}

fn name_of(limit: Limit) -> &'static str {
    match limit {
        Limit::Window => "window-messages",
        Limit::Bytes => "window-bytes",
        Limit::Held => "held-messages",
    }
}

fn item(
    record: Record,
    partition: &TopicPartition,
    ordering: pack::Ordering,
    keeps_record: bool,
    trace: Option<Arc<Traced>>,
    shared: &Shared,
) -> Item<Held> {
    let (message, unfit) = match readable(&record, partition, shared) {
        Ok(message) => (Some(message), None),
        Err(unfit) => (None, Some(Box::new(unfit))),
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
    let (offset, weight, timestamp_ms) = (record.offset, record.weight(), record.timestamp_ms);
    let record = keeps_record.then(|| Arc::new(record));
    let is_watched = trace.is_some();
    let message = Held { message, record, submitted: None, trace };
    Item { offset, key, weight, timestamp_ms, expires_at_ms, message, unfit, is_watched }
}

/// The message of a record, if it can be understood and is within the limits.
fn readable(record: &Record, partition: &TopicPartition, shared: &Shared) -> Result<Message, Unfit> {
    let unreadable = |error: String| {
        shared.metrics.bad_record("msg");
        let text = format!("record {partition}-{} can't be understood: {error}", record.offset);
        Unfit { class: CLASS_UNREADABLE, text }
    };
    let publish = PublishIntegrationMsgProto::decode(record.value.clone().unwrap_or_default())
        .map_err(|error| unreadable(error.to_string()))?;
    let Some(message) = &publish.publish_msg_proto else {
        return Err(unreadable("publishMsgProto is missing".to_owned()));
    };
    let limits = &shared.config.queue.integration_msg;
    let beyond = |what: &'static str, is: usize, most: usize| {
        shared.metrics.limit_reached(what);
        let text =
            format!("record {partition}-{} is beyond the limit {what}: {is}, at most {most}", record.offset);
        Unfit { class: CLASS_LIMIT, text }
    };
    let (bytes, bytes_max) = (record.weight(), limits.message_bytes_max.get());
    if bytes > bytes_max {
        return Err(beyond("message-bytes", bytes, bytes_max));
    }
    let (headers, headers_max) = (message.user_properties.len(), limits.message_headers_max);
    if headers > headers_max {
        return Err(beyond("message-headers", headers, headers_max));
    }
    let (publish, partition) = (Arc::new(publish), partition.partition);
    Ok(Message { publish, partition, offset: record.offset, trace: None })
}

fn answer(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Delivered => Answer::Delivered,
        Outcome::Retry { after, class, text } => Answer::Retry { after, class, text: said(text) },
        Outcome::Rejected { class, text } => Answer::Rejected { class, text: said(text) },
    }
}

/// TBMQ's text for an error without one.
pub(super) fn said(text: String) -> String {
    if text.is_empty() { "Unspecified server error".to_owned() } else { text }
}

fn humantime(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}
