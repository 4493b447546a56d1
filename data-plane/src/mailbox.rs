//! What others leave for a connection's task: deliveries, outcomes of the bus, commands. Bounded, and empty memory when
//! idle (architecture §4.23).

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tbmq_mqtt::{
    packet::{ProtocolVersion, Qos, ReasonCode, Text},
    session::{Delivery, End, Options},
};
use tokio::sync::oneshot;

/// One connection's mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// The connection's number, never used twice by a process.
    pub(crate) number: u64,
    client: OnceLock<Box<Client>>,
    limits: QueueLimits,
    inner: Mutex<Inner>,
    waker: AtomicWaker,
}

/// Who has connected.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: Arc<str>,
    pub(crate) username: Option<Text>,
    pub(crate) version: ProtocolVersion,
    pub(crate) clean_start: bool,
    /// As it applies; 0: none.
    pub(crate) keep_alive_s: u16,
    pub(crate) peer: Option<SocketAddr>,
    /// Ms since 1970.
    pub(crate) connected_ms: i64,
    pub(crate) filters: AtomicUsize,
}

impl Client {
    /// How many topic filters it has.
    pub(crate) fn filters(&self) -> usize {
        self.filters.load(Ordering::Relaxed)
    }
}

/// The topic filters of a client with their options.
pub(crate) type Filters = Vec<(Text, Options)>;

/// How much may wait for one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug, Default)]
struct Inner {
    deliveries: VecDeque<Delivery>,
    delivery_bytes: usize,
    mail: Mail,
    is_closed: bool,
}

/// Everything but deliveries.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    /// Outcomes of records; at most as many as the connection has in flight.
    pub(crate) outcomes: Vec<Outcome>,
    /// A deadline has passed.
    pub(crate) is_due: bool,
    /// The bus may have room again.
    pub(crate) has_room: bool,
    /// A QoS 1 or 2 delivery found no place.
    pub(crate) has_overflowed: bool,
    /// To end.
    pub(crate) command: Option<End>,
    /// Somebody wants to know the client's filters.
    pub(crate) question: Option<oneshot::Sender<Filters>>,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
            && !self.is_due
            && !self.has_room
            && !self.has_overflowed
            && self.command.is_none()
            && self.question.is_none()
    }
}

/// What became of one record of a connection's publish.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// The session's number of the publish; `None` when nobody waits.
    pub(crate) number: Option<u64>,
    /// Bytes that are no longer in flight.
    pub(crate) bytes: usize,
    /// Whether it was written.
    pub(crate) result: Result<(), ReasonCode>,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits for the connection's task.
    Queued,
    /// There was no room, or no connection any more.
    Dropped,
}

impl Mailbox {
    pub(crate) fn new(number: u64, limits: QueueLimits) -> Self {
        Self { number, client: OnceLock::new(), limits, inner: Mutex::default(), waker: AtomicWaker::new() }
    }

    /// Notes who has connected; only the first time counts.
    pub(crate) fn introduce(&self, client: Client) {
        self.client.get_or_init(|| Box::new(client));
    }

    /// Who has connected, once CONNECT was accepted.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.client.get().map(|client| &**client)
    }

    /// Leaves a delivery. When there is no room, a QoS 0 delivery is dropped, and a better one makes the connection
    /// end.
    pub(crate) fn deliver(&self, delivery: Delivery) -> Pushed {
        let mut inner = self.inner.lock();
        if inner.is_closed {
            return Pushed::Dropped;
        }
        let bytes = weight(&delivery);
        let is_full = inner.deliveries.len() >= self.limits.messages
            || !inner.deliveries.is_empty() && inner.delivery_bytes + bytes > self.limits.bytes;
        let pushed = if is_full {
            if delivery.qos != Qos::AtMostOnce {
                inner.mail.has_overflowed = true;
            }
            Pushed::Dropped
        } else {
            inner.delivery_bytes += bytes;
            inner.deliveries.push_back(delivery);
            Pushed::Queued
        };
        drop(inner);
        self.waker.wake();
        pushed
    }

    /// Leaves an outcome.
    pub(crate) fn settle(&self, outcome: Outcome) {
        let mut inner = self.inner.lock();
        if !inner.is_closed {
            inner.mail.outcomes.push(outcome);
            drop(inner);
            self.waker.wake();
        }
    }

    /// Tells that a deadline has passed.
    pub(crate) fn due(&self) {
        self.inner.lock().mail.is_due = true;
        self.waker.wake();
    }

    /// Tells that the bus may have room again.
    pub(crate) fn room(&self) {
        self.inner.lock().mail.has_room = true;
        self.waker.wake();
    }

    /// Tells the connection to end.
    pub(crate) fn end(&self, end: End) {
        let mut inner = self.inner.lock();
        // What ends the connection at once can't wait for a drain.
        if inner.mail.command.is_none_or(is_patient) {
            inner.mail.command = Some(end);
        }
        drop(inner);
        self.waker.wake();
    }

    /// Asks for the client's filters. The question is dropped when the connection has ended, or another is asked.
    pub(crate) fn ask_filters(&self, question: oneshot::Sender<Filters>) {
        let mut inner = self.inner.lock();
        if !inner.is_closed {
            inner.mail.question = Some(question);
            drop(inner);
            self.waker.wake();
        }
    }

    /// The task to be woken; to be called before the mail is taken.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Swaps what is there into `mail`, which must be empty; `false` when there is nothing.
    pub(crate) fn take(&self, mail: &mut Mail) -> bool {
        let mut inner = self.inner.lock();
        if inner.mail.is_empty() {
            return false;
        }
        std::mem::swap(&mut inner.mail, mail);
        true
    }

    /// Takes at most `max` deliveries, and no further one once they have `bytes`; `true` when there are more.
    pub(crate) fn take_deliveries(&self, max: usize, bytes: usize, into: &mut Vec<Delivery>) -> bool {
        let mut inner = self.inner.lock();
        let mut taken = 0;
        while into.len() < max && taken < bytes {
            let Some(delivery) = inner.deliveries.pop_front() else { break };
            taken += weight(&delivery);
            into.push(delivery);
        }
        inner.delivery_bytes -= taken;
        let has_more = !inner.deliveries.is_empty();
        if !has_more && inner.deliveries.capacity() > 64 {
            inner.deliveries = VecDeque::new();
        }
        has_more
    }

    /// Takes nothing any more. Returns how many deliveries are dropped.
    pub(crate) fn close(&self) -> usize {
        let mut inner = self.inner.lock();
        inner.is_closed = true;
        inner.mail = Mail::default();
        std::mem::take(&mut inner.deliveries).len()
    }
}

/// Whether acknowledgements that are under way come before this end.
pub(crate) fn is_patient(end: End) -> bool {
    matches!(end, End::ShuttingDown | End::Moved)
}

fn weight(delivery: &Delivery) -> usize {
    let message = &delivery.message;
    message.topic.len() + message.payload.len() + message.properties.bytes().len() + 64
}
