//! Several messages as one, for sinks whose remote ends like that: [`Batched`] makes a [`Sink`] of a [`BatchSink`]
//! (architecture §4.20).
//!
//! A batch is closed by count, bytes or time, whichever comes first. What becomes of it becomes of all its messages,
//! except that a rejected batch of several is halved and tried again, so that a message which nobody wants falls alone.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    num::NonZeroUsize,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::sink::{Busy, Message, Outcome, Sink, SinkState, Ticket};

/// A sink that can take several messages under one ticket.
pub trait BatchSink: Sink {
    /// A message as it will stand in a batch.
    type Item: AsRef<[u8]> + Send;

    /// Makes the item of a message, or tells why there is none.
    fn item(&self, message: &Message) -> Result<Self::Item, Outcome>;

    /// Takes some items as one or says [`Busy`]; never waits. `since` is when the first of their messages was
    /// submitted: a limit on the time of an attempt counts from there.
    fn submit_batch(&mut self, items: &[Self::Item], ticket: Ticket, since: Instant) -> Result<(), Busy>;
}

/// When a batch is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages, at most.
    pub count: NonZeroUsize,
    /// Bytes of the items and one more for each, at most; a larger one goes alone.
    pub bytes: usize,
    /// How long the first message waits for others.
    pub delay: Duration,
}

/// A sink that collects messages and hands them on in batches.
pub struct Batched<S: BatchSink> {
    sink: S,
    limits: Limits,
    /// Messages that were taken and not answered, at most.
    window: usize,
    taken: usize,
    /// What is being collected.
    open: Option<Batch<S::Item>>,
    /// Rings when the open batch has waited long enough.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Closed batches that the sink does not have yet, in the order of their messages.
    closed: VecDeque<Batch<S::Item>>,
    /// Batches that the sink has, by its tickets.
    sent: BTreeMap<Ticket, Batch<S::Item>>,
    next_ticket: Ticket,
    answers: VecDeque<(Ticket, Outcome)>,
    /// The task of the last pending poll.
    waker: Option<Waker>,
}

/// Never empty.
struct Batch<I> {
    tickets: Vec<Ticket>,
    items: Vec<I>,
    /// When the first of them was submitted.
    since: Instant,
    bytes: usize,
}

impl<S: BatchSink> fmt::Debug for Batched<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batched")
            .field("sink", &self.sink)
            .field("limits", &self.limits)
            .field("taken", &self.taken)
            .field("closed", &self.closed.len())
            .field("sent", &self.sent.len())
            .finish_non_exhaustive()
    }
}

impl<S: BatchSink> Batched<S> {
    /// Batches for a sink. `window` is what the driver has in flight at most; a batch does not wait for more.
    pub fn new(sink: S, limits: Limits, window: usize) -> Self {
        let window = window.max(1);
        let count = NonZeroUsize::new(limits.count.get().min(window)).unwrap_or(NonZeroUsize::MIN);
        Self {
            sink,
            limits: Limits { count, ..limits },
            window,
            taken: 0,
            open: None,
            alarm: None,
            closed: VecDeque::new(),
            sent: BTreeMap::new(),
            next_ticket: 0,
            answers: VecDeque::new(),
            waker: None,
        }
    }

    fn collect(&mut self, ticket: Ticket, item: S::Item) {
        let bytes = item.as_ref().len() + 1;
        if self.open.as_ref().is_some_and(|open| open.bytes + bytes > self.limits.bytes) {
            self.close_batch();
        }
        let open = self.open.get_or_insert_with(|| Batch {
            tickets: Vec::new(),
            items: Vec::new(),
            since: Instant::now(),
            bytes: 0,
        });
        open.tickets.push(ticket);
        open.items.push(item);
        open.bytes += bytes;
        if open.items.len() >= self.limits.count.get() || open.bytes >= self.limits.bytes {
            self.close_batch();
        }
    }

    fn close_batch(&mut self) {
        self.closed.extend(self.open.take());
    }

    /// Closes the open batch when it has waited long enough.
    fn poll_delay(&mut self, cx: &mut Context<'_>) {
        let Some(deadline) = self.open.as_ref().map(|open| open.since + self.limits.delay) else {
            self.alarm = None;
            return;
        };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        if alarm.as_mut().poll(cx).is_ready() {
            self.close_batch();
        }
    }

    /// Hands over what the sink has room for.
    fn send(&mut self) {
        while let Some(batch) = self.closed.front() {
            if self.sink.submit_batch(&batch.items, self.next_ticket, batch.since).is_err() {
                return;
            }
            self.sent.extend(self.closed.pop_front().map(|batch| (self.next_ticket, batch)));
            self.next_ticket += 1;
        }
    }

    fn settle(&mut self, ticket: Ticket, outcome: Outcome) {
        let Some(mut batch) = self.sent.remove(&ticket) else { return };
        if matches!(outcome, Outcome::Rejected { .. }) && batch.items.len() > 1 {
            let half = batch.items.len() / 2;
            let second = Batch {
                tickets: batch.tickets.split_off(half),
                items: batch.items.split_off(half),
                since: batch.since,
                bytes: 0,
            };
            // Before everything that was submitted later.
            self.closed.push_front(second);
            self.closed.push_front(batch);
            return;
        }
        self.answers.extend(batch.tickets.into_iter().map(|ticket| (ticket, outcome.clone())));
    }
}

#[async_trait]
impl<S: BatchSink> Sink for Batched<S> {
    fn submit(&mut self, message: Message, ticket: Ticket) -> Result<(), Busy> {
        if self.taken >= self.window {
            return Err(Busy);
        }
        self.taken += 1;
        match self.sink.item(&message) {
            Ok(item) => self.collect(ticket, item),
            Err(outcome) => self.answers.push_back((ticket, outcome)),
        }
        // Batches are handed over, and their time is watched, when this is polled.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                self.taken -= 1;
                return Poll::Ready(answer);
            }
            self.poll_delay(cx);
            self.send();
            match self.sink.poll_outcome(cx) {
                Poll::Ready((ticket, outcome)) => self.settle(ticket, outcome),
                Poll::Pending => {
                    self.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }

    fn state(&self) -> SinkState {
        self.sink.state()
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Vec<Ticket> {
        let Self { sink, open, closed, sent, answers, .. } = *self;
        let batches = open.into_iter().chain(closed).chain(sent.into_values());
        let unresolved =
            batches.flat_map(|batch| batch.tickets).chain(answers.into_iter().map(|(ticket, _)| ticket));
        let unresolved = unresolved.collect();
        // It answers for batches; their messages are counted already.
        Box::new(sink).close(deadline).await;
        unresolved
    }
}

#[cfg(test)]
mod tests;
