//! Retained messages: all in memory, and on a compacted topic of the bus that every data plane reads completely before
//! it serves anything (architecture §4.22).
//!
//! The order of the records is the truth. What a client of this node publishes is shown at once, so that no subscriber
//! misses it between its delivery and its record: until the node has read its own records of a topic back, that topic
//! shows what was published here last.

use std::{collections::BTreeSet, num::NonZeroUsize, ops::ControlFlow, sync::Arc};

use parking_lot::RwLock;
use tbmq_bus::{CompletionQueue, Header, Outgoing, Record, TopicHandle, TopicPartition, Writer};
use tbmq_mqtt::{
    packet::{Qos, Text},
    retained::{Search, Topics},
    session::Message,
};
use tbmq_proto::topic::SERVICE_ID_HEADER;

use crate::{
    metrics::Metrics,
    route::{Purpose, Route},
};

pub(crate) mod replay;
mod wire;

/// Names that are looked at in one go, and expired messages that are removed in one.
const SLICE: usize = 512;

/// What a retained message takes beside its texts, about.
const OVERHEAD_BYTES: usize = 384;

/// How much may be retained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) messages: NonZeroUsize,
    pub(crate) bytes: NonZeroUsize,
}

/// The retained messages.
#[derive(Debug)]
pub(crate) struct Retained {
    inner: RwLock<Inner>,
    limits: Limits,
    keep: Arc<Route>,
    forget: Arc<Route>,
    service: Header,
    metrics: Metrics,
}

/// There is no room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Retained {
    pub(crate) fn new(topic: TopicHandle, service_id: &str, limits: Limits, metrics: Metrics) -> Self {
        Self {
            inner: RwLock::default(),
            limits,
            keep: Arc::new(Route::new(Purpose::Retain, topic.clone())),
            forget: Arc::new(Route::new(Purpose::Forget, topic)),
            service: Header::text(SERVICE_ID_HEADER, service_id),
            metrics,
        }
    }

    /// Shows a message that a client has published with RETAIN, or none when its payload is empty. A record is to be
    /// written by the route that is returned; if that fails, [`Retained::refused`] is to be called.
    ///
    /// Where there is no room, a message of QoS 0 still discards the one before it (MQTT-3.3.1-7).
    pub(crate) fn publish(&self, message: &Arc<Message>, now_ms: i64) -> Result<Arc<Route>, Full> {
        let mut inner = self.inner.write();
        let mut wanted = (!message.payload.is_empty()).then_some(message);
        if wanted.is_some() && inner.is_full_for(message, self.limits) {
            self.metrics.retained_limit_reached.inc();
            if message.qos != Qos::AtMostOnce || inner.shown(&message.topic).is_none() {
                return Err(Full);
            }
            wanted = None;
        }
        let kept = wanted.map(|message| Kept { message: message.clone(), created_ms: now_ms, is_ours: true });
        let route = if kept.is_some() { &self.keep } else { &self.forget };
        inner.publish(&message.topic, kept);
        self.note(&inner);
        Ok(route.clone())
    }

    /// A record that was to be written for this topic is not.
    pub(crate) fn refused(&self, topic: &Text) {
        let mut inner = self.inner.write();
        inner.change(topic, Slot::settle_one);
        self.note(&inner);
    }

    /// The record that a message with RETAIN is to give.
    pub(crate) fn record(&self, message: &Message, purpose: Purpose, now_ms: i64) -> wire::Written {
        wire::write(message, purpose == Purpose::Retain, &self.service, now_ms)
    }

    /// Applies a record of the topic.
    pub(crate) fn apply(&self, partition: &TopicPartition, record: &Record) {
        match wire::read(record) {
            Ok(Some(wire::Read { topic, message, created_ms })) => {
                let is_ours = record.headers.contains(&self.service);
                let kept = message.map(|message| Kept { message: Arc::new(message), created_ms, is_ours });
                let mut inner = self.inner.write();
                inner.change(&topic, |slot| slot.read(kept, is_ours));
                self.note(&inner);
            }
            // A name that clients can't publish to: of a release that kept other things here.
            Ok(None) => {}
            Err(reason) => {
                self.metrics.retained_bad_records.inc();
                tracing::warn!(%partition, offset = record.offset, reason, "bad retained message skipped");
            }
        }
    }

    /// Shows a figure of the broker itself under `$SYS/`: it is not on the bus, and no limit counts it.
    pub(crate) fn show_figure(&self, message: Arc<Message>) {
        let topic = message.topic.clone();
        let kept = Kept { message, created_ms: 0, is_ours: true };
        self.inner.write().figures.insert(&topic, kept);
    }

    /// Calls `found` for the next matches of a search that are not expired, until it breaks or it was enough for one go.
    pub(crate) fn advance(
        &self,
        search: &mut Search,
        now_ms: i64,
        mut found: impl FnMut(&Arc<Message>) -> ControlFlow<()>,
    ) {
        self.advance_kept(search, now_ms, |kept| found(&kept.message));
    }

    /// As [`Retained::advance`], with what is known beside the message.
    pub(crate) fn advance_kept(
        &self,
        search: &mut Search,
        now_ms: i64,
        mut found: impl FnMut(&Kept) -> ControlFlow<()>,
    ) {
        let inner = self.inner.read();
        if search.is_below("$SYS") {
            return inner.figures.advance(search, SLICE, found);
        }
        inner.topics.advance(search, SLICE, |slot| match &slot.shown {
            Some(kept) if !is_expired(&kept.message, now_ms) => found(kept),
            _ => ControlFlow::Continue(()),
        });
    }

    /// The message of a topic, unless it is expired.
    pub(crate) fn get(&self, topic: &str, now_ms: i64) -> Option<Kept> {
        let inner = self.inner.read();
        let kept = if topic.starts_with("$SYS/") {
            inner.figures.get(topic)
        } else {
            inner.topics.get(topic).and_then(|slot| slot.shown.as_ref())
        };
        kept.filter(|kept| !is_expired(&kept.message, now_ms)).cloned()
    }

    /// Removes these messages, where they are still shown, and waits until that is on the bus. Returns how many went.
    ///
    /// # Errors
    /// When the bus did not take all of it; those that it did not take stay.
    pub(crate) async fn remove(
        &self,
        writer: &dyn Writer,
        messages: Vec<Arc<Message>>,
    ) -> Result<usize, String> {
        let completions = CompletionQueue::new();
        let mut batch = Vec::new();
        let mut messages = messages.into_iter().peekable();
        let mut removed = 0;
        loop {
            let (sent, is_full) = self.remove_slice(writer, &mut messages, &completions);
            let mut missing = sent.len();
            let mut failure = is_full.then(|| "the bus is full; try again".to_owned());
            while missing > 0 {
                completions.wait(&mut batch).await;
                missing -= batch.len();
                for completion in batch.drain(..) {
                    match completion.result {
                        Ok(_) => removed += 1,
                        Err(error) => {
                            self.refused(&sent[completion.ticket as usize]);
                            failure = Some(format!("a retained message stays: {error}"));
                        }
                    }
                }
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            if messages.peek().is_none() {
                return Ok(removed);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Submits tombstones of some, under the lock, as [`Retained::sweep_slice`] does; tells whether the bus was full.
    fn remove_slice(
        &self,
        writer: &dyn Writer,
        messages: &mut impl Iterator<Item = Arc<Message>>,
        completions: &Arc<CompletionQueue>,
    ) -> (Vec<Text>, bool) {
        let mut inner = self.inner.write();
        let mut sent = Vec::new();
        for message in messages.take(SLICE) {
            // What was published meanwhile stays.
            if !inner.shown(&message.topic).is_some_and(|kept| Arc::ptr_eq(&kept.message, &message)) {
                continue;
            }
            if !self.submit_tombstone(&mut inner, writer, &message.topic, sent.len(), completions) {
                self.note(&inner);
                return (sent, true);
            }
            sent.push(message.topic.clone());
        }
        self.note(&inner);
        (sent, false)
    }

    /// Submits a tombstone and shows nothing any more; `false`: the bus is full, and nothing was done.
    fn submit_tombstone(
        &self,
        inner: &mut Inner,
        writer: &dyn Writer,
        topic: &Text,
        ticket: usize,
        completions: &Arc<CompletionQueue>,
    ) -> bool {
        let headers = std::slice::from_ref(&self.service);
        let tombstone = Outgoing { partition: None, key: Some(topic.bytes()), value: None, headers };
        let is_taken = writer.submit(self.forget.topic(), tombstone, ticket as u64, completions).is_ok();
        if is_taken {
            inner.publish(topic, None);
        }
        is_taken
    }

    /// How many messages are retained.
    pub(crate) fn len(&self) -> usize {
        self.inner.read().messages
    }

    /// How many topics are known, those included whose message is being removed.
    pub(crate) fn topics(&self) -> usize {
        self.inner.read().topics.len()
    }

    /// Removes what has expired. The node that has written a record removes it from the bus, too.
    pub(crate) async fn sweep(&self, writer: &dyn Writer, now_ms: i64) {
        let completions = CompletionQueue::new();
        let mut batch = Vec::new();
        loop {
            let (ours, goes_on) = self.sweep_slice(writer, now_ms, &completions);
            let mut missing = ours.len();
            while missing > 0 {
                completions.wait(&mut batch).await;
                missing -= batch.len();
                for completion in batch.drain(..) {
                    if let Err(error) = completion.result {
                        tracing::warn!(%error, "an expired retained message stays on the bus");
                        self.refused(&ours[completion.ticket as usize]);
                    }
                }
            }
            if !goes_on {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Removes some; returns the topics whose tombstones are on their way, and whether there may be more.
    ///
    /// Tombstones are submitted under the lock: what is published afterwards gets its record after them.
    fn sweep_slice(
        &self,
        writer: &dyn Writer,
        now_ms: i64,
        completions: &Arc<CompletionQueue>,
    ) -> (Vec<Text>, bool) {
        let mut inner = self.inner.write();
        let expired: Vec<Text> = inner
            .expiries
            .iter()
            .take(SLICE)
            .take_while(|(at_ms, _)| *at_ms <= now_ms)
            .map(|(_, topic)| topic.clone())
            .collect();
        let mut ours = Vec::new();
        let mut goes_on = expired.len() == SLICE;
        for topic in expired {
            if inner.shown(&topic).is_some_and(|kept| kept.is_ours) {
                if !self.submit_tombstone(&mut inner, writer, &topic, ours.len(), completions) {
                    // Later.
                    goes_on = false;
                    break;
                }
                ours.push(topic);
            } else {
                inner.change(&topic, |slot| slot.shown = None);
            }
            self.metrics.retained_expired.inc();
        }
        self.note(&inner);
        (ours, goes_on)
    }

    fn note(&self, inner: &Inner) {
        self.metrics.retained_messages.set(inner.messages as i64);
        self.metrics.retained_bytes.set(inner.bytes as i64);
    }
}

/// Whether a message's time is over.
fn is_expired(message: &Message, now_ms: i64) -> bool {
    message.expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
}

#[derive(Debug, Default)]
struct Inner {
    topics: Topics<Slot>,
    /// Every message that is shown and expires, by when.
    expiries: BTreeSet<(i64, Text)>,
    /// What the broker tells of itself, under `$SYS/`.
    figures: Topics<Kept>,
    /// Messages that are shown.
    messages: usize,
    /// What they take, about.
    bytes: usize,
}

/// What is known of one topic. Not empty.
#[derive(Debug, Default)]
struct Slot {
    /// What a subscriber gets.
    shown: Option<Kept>,
    /// While records of ours are on their way.
    ours: Option<Box<Ours>>,
}

/// A retained message.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) message: Arc<Message>,
    /// When it was published, ms since 1970; 0: not known.
    pub(crate) created_ms: i64,
    /// Its record is one of this node.
    is_ours: bool,
}

#[derive(Debug)]
struct Ours {
    /// Records that were neither read back nor refused.
    in_flight: usize,
    /// What the records that were read say.
    settled: Option<Kept>,
}

impl Slot {
    /// A record was read.
    fn read(&mut self, kept: Option<Kept>, is_ours: bool) {
        match &mut self.ours {
            Some(ours) => ours.settled = kept,
            None => self.shown = kept,
        }
        if is_ours {
            self.settle_one();
        }
    }

    /// A record of ours is not on its way any more.
    fn settle_one(&mut self) {
        let Some(ours) = &mut self.ours else { return };
        ours.in_flight -= 1;
        if ours.in_flight == 0 {
            self.shown = ours.settled.take();
            self.ours = None;
        }
    }
}

impl Inner {
    fn shown(&self, topic: &Text) -> Option<&Kept> {
        self.topics.get(topic)?.shown.as_ref()
    }

    fn is_full_for(&self, message: &Message, limits: Limits) -> bool {
        let old = self.shown(&message.topic);
        let bytes = self.bytes - old.map_or(0, |old| weight(&old.message)) + weight(message);
        bytes > limits.bytes.get() || old.is_none() && self.messages >= limits.messages.get()
    }

    /// Shows what is published here, until its record was read back.
    fn publish(&mut self, topic: &Text, kept: Option<Kept>) {
        self.change(topic, |slot| {
            let before = std::mem::replace(&mut slot.shown, kept);
            let ours = slot.ours.get_or_insert_with(|| Box::new(Ours { in_flight: 0, settled: before }));
            ours.in_flight += 1;
        });
    }

    /// Changes what is known of a topic, and all that follows from it.
    fn change(&mut self, topic: &Text, change: impl FnOnce(&mut Slot)) {
        let slot = self.topics.get_or_default(topic);
        let before = slot.shown.clone();
        change(slot);
        let after = slot.shown.clone();
        if after.is_none() && slot.ours.is_none() {
            self.topics.remove(topic);
        }
        if let Some(Kept { message, .. }) = before {
            self.messages -= 1;
            self.bytes -= weight(&message);
            if let Some(at_ms) = message.expires_at_ms {
                self.expiries.remove(&(at_ms, message.topic.clone()));
            }
        }
        if let Some(Kept { message, .. }) = after {
            self.messages += 1;
            self.bytes += weight(&message);
            if let Some(at_ms) = message.expires_at_ms {
                self.expiries.insert((at_ms, message.topic.clone()));
            }
        }
    }
}

// The key is a second copy of the topic.
fn weight(message: &Message) -> usize {
    2 * message.topic.len() + message.payload.len() + message.properties.bytes().len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests;
