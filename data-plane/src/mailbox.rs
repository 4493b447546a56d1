//! What others leave for a session's task: deliveries, outcomes of the bus, commands, another connection. Bounded, and
//! empty memory when idle (architecture §4.23).

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tbmq_auth::credentials::ClientType;
use tbmq_mqtt::{
    packet::{ProtocolVersion, Qos, ReasonCode, Text},
    session::{Delivery, End, Options, Summary},
};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    auth::{Access, Bearer, Verdict},
    backlog::{Backlog, Next},
    link::Visitor,
    session_store::{Seq, Session},
};

/// One session's mailbox, through all its connections.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// The session's number, never used twice by a process.
    pub(crate) number: u64,
    client: Mutex<Option<Arc<Client>>>,
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
    pub(crate) client_type: ClientType,
    /// By what it was let in, for people; empty: everybody is.
    pub(crate) details: Box<str>,
    pub(crate) peer: Option<SocketAddr>,
    /// Of this connection.
    pub(crate) session_id: Uuid,
    /// Ms since 1970.
    pub(crate) connected_ms: i64,
    /// Ms since 1970; 0 while it is connected.
    pub(crate) disconnected_ms: AtomicI64,
    pub(crate) filters: AtomicUsize,
}

impl Client {
    /// How many topic filters it has.
    pub(crate) fn filters(&self) -> usize {
        self.filters.load(Ordering::Relaxed)
    }

    /// Since when its session is without a connection, ms since 1970.
    pub(crate) fn away_since_ms(&self) -> Option<i64> {
        Some(self.disconnected_ms.load(Ordering::Relaxed)).filter(|ms| *ms != 0)
    }

    /// Whether this is its session id, or any may be.
    pub(crate) fn is_session(&self, wanted: Option<Uuid>) -> bool {
        wanted.is_none_or(|wanted| wanted == self.session_id)
    }
}

/// The topic filters of a client with their options.
pub(crate) type Filters = Vec<(Text, Options)>;

/// What others want of a session. Who asks may go away; a question that is dropped has no answer.
#[derive(Debug)]
pub(crate) enum Question {
    /// Which filters it has.
    Filters(oneshot::Sender<Filters>),
    /// All about it.
    Tell(oneshot::Sender<Told>),
    /// To end, if it has no connection, and this id.
    Clear(Option<Uuid>, oneshot::Sender<Cleared>),
    /// To have these filters from now on, if it has this id.
    Assign(Option<Uuid>, Filters, oneshot::Sender<Assigned>),
}

/// All about a session.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) filters: Filters,
    pub(crate) summary: Summary,
    pub(crate) will: Option<ToldWill>,
    /// How its client is connected, if it is.
    pub(crate) transport: &'static str,
    pub(crate) common_names: Arc<[Box<str>]>,
    /// What its queue holds, if it has one, once that is known.
    pub(crate) queue: Option<oneshot::Receiver<Queued>>,
}

/// A will that is to be published.
#[derive(Debug)]
pub(crate) struct ToldWill {
    pub(crate) topic: Text,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) payload_bytes: usize,
    /// Ms since 1970.
    pub(crate) due_at_ms: Option<i64>,
}

/// What a session's queue holds, what is in flight included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// What became of a session that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cleared {
    Done,
    /// Its client is, or is about to be, connected.
    Connected,
    /// It has another id.
    Replaced,
}

/// What became of filters that a session was to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Assigned {
    Done,
    /// It has another id.
    Replaced,
    /// Something of it is being kept.
    Busy,
    /// Why it can't have them.
    Refused(String),
}

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
    /// Of a session that outlives its connections.
    backlog: Option<Box<Backlog>>,
    /// The number of the publish whose outcome the connection waits for; those of later ones are no reason to wake it.
    /// `None`: each is.
    awaited: Option<u64>,
    /// Queues of groups that wait until there is room here.
    callers: Vec<Arc<Mailbox>>,
    /// There is no connection.
    is_away: bool,
    is_closed: bool,
}

impl Inner {
    /// Whether the connection can do something with an outcome now: publishes are acknowledged in their order.
    fn is_awaited(&self, outcome: &Outcome) -> bool {
        match (outcome, self.awaited) {
            (Outcome::Record { number: Some(number), result: Ok(()), .. }, Some(awaited)) => {
                *number <= awaited
            }
            _ => true,
        }
    }

    /// Queues a delivery; `false` when there is no room.
    fn push(&mut self, delivery: Delivery, limits: QueueLimits) -> bool {
        let bytes = weight(&delivery);
        let is_full = self.deliveries.len() >= limits.messages
            || !self.deliveries.is_empty() && self.delivery_bytes + bytes > limits.bytes;
        if !is_full {
            self.delivery_bytes += bytes;
            self.deliveries.push_back(delivery);
        }
        !is_full
    }

    /// Notes that a group's queue waits until there is room here.
    fn note_caller(&mut self, queue: &Arc<Mailbox>) {
        if self.callers.iter().all(|caller| caller.number != queue.number) {
            self.callers.push(queue.clone());
        }
    }

    /// Who is to be told that there is room for what goes through the session's queue.
    fn callers_of_backlog(&mut self) -> Vec<Arc<Mailbox>> {
        let has_room = self.backlog.as_ref().is_some_and(|backlog| backlog.has_room());
        if has_room { std::mem::take(&mut self.callers) } else { Vec::new() }
    }
}

fn call(callers: Vec<Arc<Mailbox>>) {
    for caller in callers {
        caller.room();
    }
}

/// Everything but deliveries.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    /// Outcomes of records; at most as many as the connection has in flight.
    pub(crate) outcomes: Vec<Outcome>,
    /// A deadline has passed.
    pub(crate) is_due: bool,
    /// The bus, or a member of a group, may have room again.
    pub(crate) has_room: bool,
    /// A QoS 1 or 2 delivery found no place.
    pub(crate) has_overflowed: bool,
    /// To end.
    pub(crate) command: Option<End>,
    /// Somebody wants to know something of the session, or to change it.
    pub(crate) question: Option<Box<Question>>,
    /// Another connection that the session is to go on with.
    pub(crate) visitor: Option<Box<Visitor>>,
    /// What is to become of the CONNECT.
    pub(crate) verdict: Option<Box<Verdict>>,
    /// What the client may do from now on.
    pub(crate) access: Option<Box<Regrant>>,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
            && !self.is_due
            && !self.has_room
            && !self.has_overflowed
            && self.command.is_none()
            && self.question.is_none()
            && self.visitor.is_none()
            && self.verdict.is_none()
            && self.access.is_none()
    }
}

/// What a client may do from now on.
#[derive(Debug)]
pub(crate) struct Regrant {
    /// If it is there by this.
    pub(crate) bearer: Arc<Bearer>,
    pub(crate) access: Access,
    /// When it is to be disconnected, ms since 1970.
    pub(crate) until_ms: Option<i64>,
}

/// What became of what the connection has given to others.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// Of one record of a publish.
    Record {
        /// The session's number of the publish; `None` when nobody waits.
        number: Option<u64>,
        /// Bytes that are no longer in flight.
        bytes: usize,
        /// Whether it was written.
        result: Result<(), ReasonCode>,
    },
    /// Of something of the session itself.
    Kept(Kept),
}

/// Whether something of a session is kept now that it waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// Under which number it waits.
    pub(crate) wait: u64,
    /// Whether it is.
    pub(crate) is_kept: bool,
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits for the connection's task.
    Queued,
    /// There was no room, or no session any more.
    Dropped,
    /// The client is away, and nothing of QoS 0 is kept for it.
    Away,
    /// It belongs into the session's queue.
    Keep(Session, Delivery),
}

impl Mailbox {
    pub(crate) fn new(number: u64, limits: QueueLimits) -> Self {
        Self { number, client: Mutex::default(), limits, inner: Mutex::default(), waker: AtomicWaker::new() }
    }

    /// Notes who has connected.
    pub(crate) fn introduce(&self, client: Client) {
        *self.client.lock() = Some(Arc::new(client));
    }

    /// Who has connected last, once CONNECT was accepted.
    pub(crate) fn client(&self) -> Option<Arc<Client>> {
        self.client.lock().clone()
    }

    /// Whether this client has connected.
    pub(crate) fn is_of(&self, client_id: &str) -> bool {
        self.client().is_some_and(|client| &*client.id == client_id)
    }

    /// The session outlives its connections from now on: its deliveries at QoS 1 and 2 go into this empty queue.
    pub(crate) fn keep(&self, session: Session) {
        self.inner.lock().backlog = Some(Box::new(Backlog::new(session)));
    }

    /// As [`Mailbox::keep`], for a session that has no connection, and perhaps a queue.
    pub(crate) fn keep_away(&self, session: Session) {
        let mut backlog = Backlog::new(session);
        backlog.park();
        let mut inner = self.inner.lock();
        inner.backlog = Some(Box::new(backlog));
        inner.is_away = true;
    }

    /// Whether the session outlives its connections.
    pub(crate) fn is_kept(&self) -> bool {
        self.inner.lock().backlog.is_some()
    }

    /// Under which name the session is kept.
    pub(crate) fn kept_as(&self) -> Option<Session> {
        self.inner.lock().backlog.as_ref().map(|backlog| backlog.session().clone())
    }

    /// The connection is gone.
    pub(crate) fn park(&self) {
        let mut inner = self.inner.lock();
        inner.is_away = true;
        if let Some(backlog) = &mut inner.backlog {
            backlog.park();
        }
    }

    /// There is a connection again.
    pub(crate) fn resume(&self) {
        let mut inner = self.inner.lock();
        inner.is_away = false;
        if let Some(backlog) = &mut inner.backlog {
            backlog.resume();
        }
        let callers = std::mem::take(&mut inner.callers);
        drop(inner);
        call(callers);
    }

    /// Whether all that is in the queue was taken.
    pub(crate) fn is_drained(&self) -> bool {
        self.inner.lock().backlog.as_ref().is_none_or(|backlog| backlog.is_drained())
    }

    /// Takes what is at hand of shared subscriptions in the session's queue; the connection is about to go.
    pub(crate) fn take_shared(&self) -> Vec<(Seq, Delivery)> {
        self.inner.lock().backlog.as_mut().map(|backlog| backlog.take_shared()).unwrap_or_default()
    }

    /// Nobody takes what the queue has: what was taken after this record is to be taken again.
    pub(crate) fn rewind(&self, taken: Seq) {
        let mut inner = self.inner.lock();
        inner.is_away = true;
        if let Some(backlog) = &mut inner.backlog {
            backlog.rewind(taken);
        }
    }

    /// The session is over. Returns under which name it was kept.
    pub(crate) fn forget(&self) -> Option<Session> {
        let mut inner = self.inner.lock();
        inner.is_away = false;
        inner.backlog.take().map(|backlog| backlog.session().clone())
    }

    /// A delivery stands in the session's queue now.
    pub(crate) fn stored(&self, seq: Seq, delivery: Delivery) {
        self.with_backlog(|backlog| backlog.appended(seq, delivery));
    }

    /// What was read of the session's queue, and where to read on.
    pub(crate) fn read(&self, number: u64, records: Vec<(Seq, Delivery)>, next_after: Option<Seq>) {
        self.with_backlog(|backlog| backlog.read(number, records, next_after));
    }

    /// The session's queue could not be read.
    pub(crate) fn not_read(&self, number: u64) {
        self.with_backlog(|backlog| backlog.not_read(number));
    }

    fn with_backlog(&self, act: impl FnOnce(&mut Backlog)) {
        let mut inner = self.inner.lock();
        let Some(backlog) = &mut inner.backlog else { return };
        act(backlog);
        let has_more = backlog.has_more();
        let callers = inner.callers_of_backlog();
        drop(inner);
        if has_more {
            self.waker.wake();
        }
        call(callers);
    }

    /// Takes at most `max` messages of the session's queue, and no further one once they have `bytes`.
    pub(crate) fn take_queued(&self, max: usize, bytes: usize, into: &mut Vec<(Seq, Delivery)>) -> Next {
        let mut inner = self.inner.lock();
        let next = inner.backlog.as_mut().map_or(Next::Wait, |backlog| backlog.take(max, bytes, into));
        let callers = inner.callers_of_backlog();
        drop(inner);
        call(callers);
        next
    }

    /// Whether there is something in the session's queue to be taken or read.
    pub(crate) fn has_queued(&self) -> bool {
        self.inner.lock().backlog.as_ref().is_some_and(|backlog| backlog.has_more())
    }

    /// Brings another connection; it comes back when there is no session any more. One that waits already is closed:
    /// this one takes it over.
    pub(crate) fn visit(&self, visitor: Box<Visitor>) -> Result<(), Box<Visitor>> {
        let mut inner = self.inner.lock();
        if inner.is_closed {
            return Err(visitor);
        }
        let earlier = inner.mail.visitor.replace(visitor);
        drop(inner);
        drop(earlier);
        self.waker.wake();
        Ok(())
    }

    /// Leaves a delivery, unless it belongs into the session's queue. When there is no room, a QoS 0 delivery is
    /// dropped, and a better one makes the connection end.
    pub(crate) fn deliver(&self, delivery: Delivery) -> Pushed {
        let mut inner = self.inner.lock();
        if inner.is_closed {
            return Pushed::Dropped;
        }
        let qos = delivery.qos;
        if let Some(backlog) = &inner.backlog
            && qos != Qos::AtMostOnce
        {
            return Pushed::Keep(backlog.session().clone(), delivery);
        }
        if inner.is_away {
            return Pushed::Away;
        }
        let pushed = if inner.push(delivery, self.limits) {
            Pushed::Queued
        } else {
            if qos != Qos::AtMostOnce {
                inner.mail.has_overflowed = true;
            }
            Pushed::Dropped
        };
        drop(inner);
        self.waker.wake();
        pushed
    }

    /// Leaves a delivery of a group if the client is connected and there is room for it: somebody else can take it.
    /// Otherwise the group's queue is told when there may be. What comes out of that queue needs room at hand, too, where
    /// it belongs into the session's own.
    pub(crate) fn offer(&self, delivery: Delivery, queue: Option<&Arc<Self>>, is_queued: bool) -> Pushed {
        let mut inner = self.inner.lock();
        if inner.is_closed {
            return Pushed::Away;
        }
        let pushed = if inner.is_away {
            Pushed::Away
        } else if let Some(backlog) = &inner.backlog
            && delivery.qos != Qos::AtMostOnce
        {
            if !is_queued || backlog.has_room() {
                Pushed::Keep(backlog.session().clone(), delivery)
            } else {
                Pushed::Dropped
            }
        } else if inner.push(delivery, self.limits) {
            Pushed::Queued
        } else {
            Pushed::Dropped
        };
        if let (Pushed::Away | Pushed::Dropped, Some(queue)) = (&pushed, queue) {
            inner.note_caller(queue);
        }
        drop(inner);
        if pushed == Pushed::Queued {
            self.waker.wake();
        }
        pushed
    }

    /// Leaves an outcome. Wakes the connection if it waits for this one.
    pub(crate) fn settle(&self, outcome: Outcome) {
        let mut inner = self.inner.lock();
        if !inner.is_closed {
            let is_awaited = inner.is_awaited(&outcome);
            inner.mail.outcomes.push(outcome);
            drop(inner);
            if is_awaited {
                self.waker.wake();
            }
        }
    }

    /// From now on the connection waits for the outcome of the publish with this number before it goes on; `None`: for
    /// each. Returns whether what it waits for is here already.
    pub(crate) fn await_outcome(&self, number: Option<u64>) -> bool {
        let mut inner = self.inner.lock();
        inner.awaited = number;
        inner.mail.outcomes.iter().any(|outcome| inner.is_awaited(outcome))
    }

    /// Whether there is nobody any more who takes anything.
    pub(crate) fn is_closed(&self) -> bool {
        self.inner.lock().is_closed
    }

    /// Tells what is to become of the CONNECT; never [`Verdict::Later`].
    pub(crate) fn judged(&self, verdict: Verdict) {
        self.inner.lock().mail.verdict = Some(Box::new(verdict));
        self.waker.wake();
    }

    /// Tells what the client may do from now on, if it is still there by this: its subscriptions are to be judged again.
    pub(crate) fn regrant(&self, granted: Regrant) {
        self.inner.lock().mail.access = Some(Box::new(granted));
        self.waker.wake();
    }

    /// Tells that a deadline has passed.
    pub(crate) fn due(&self) {
        self.inner.lock().mail.is_due = true;
        self.waker.wake();
    }

    /// Tells that the bus, or a member of a group, may have room again.
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

    /// Asks the session something. The question is dropped when it is over, or another is asked.
    pub(crate) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        {
            let mut inner = self.inner.lock();
            if inner.is_closed {
                return None;
            }
            inner.mail.question = Some(Box::new(question(answer)));
        }
        self.waker.wake();
        answered.await.ok()
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
        let callers = if taken > 0 { std::mem::take(&mut inner.callers) } else { Vec::new() };
        drop(inner);
        call(callers);
        has_more
    }

    /// Takes nothing any more. Returns how many deliveries are dropped, and a connection that has come too late.
    pub(crate) fn close(&self) -> (usize, Option<Box<Visitor>>) {
        let mut inner = self.inner.lock();
        inner.is_closed = true;
        inner.backlog = None;
        inner.callers = Vec::new();
        drop(inner);
        self.abandon()
    }

    /// The process ends, and the session does not: what comes goes into its queue. Returns what [`Mailbox::close`] does.
    pub(crate) fn abandon(&self) -> (usize, Option<Box<Visitor>>) {
        let mut inner = self.inner.lock();
        let mail = std::mem::take(&mut inner.mail);
        (std::mem::take(&mut inner.deliveries).len(), mail.visitor)
    }
}

/// Whether acknowledgements that are under way come before this end.
pub(crate) fn is_patient(end: End) -> bool {
    matches!(end, End::ShuttingDown | End::Moved)
}

/// How many bytes a delivery counts for.
pub(crate) fn weight(delivery: &Delivery) -> usize {
    let message = &delivery.message;
    message.topic.len() + message.payload.len() + message.properties.bytes().len() + 64
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        task::{Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn outcome(number: Option<u64>, result: Result<(), ReasonCode>) -> Outcome {
        Outcome::Record { number, bytes: 1, result }
    }

    #[test]
    fn only_outcomes_that_the_connection_can_use_wake_it() {
        let mailbox = Mailbox::new(1, QueueLimits { messages: 1, bytes: 1 });
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let woken_by = |outcome| {
            mailbox.register(&waker);
            let before = wakes.0.load(Ordering::Relaxed);
            mailbox.settle(outcome);
            wakes.0.load(Ordering::Relaxed) > before
        };
        assert!(woken_by(outcome(Some(7), Ok(()))), "nothing was said");
        assert!(!mailbox.await_outcome(Some(5)));
        assert!(!woken_by(outcome(Some(6), Ok(()))));
        assert!(woken_by(outcome(Some(5), Ok(()))));
        assert!(woken_by(outcome(None, Ok(()))));
        assert!(woken_by(outcome(Some(6), Err(ReasonCode::UnspecifiedError))));
        assert!(woken_by(Outcome::Kept(Kept { wait: 9, is_kept: true })));
        let mut mail = Mail::default();
        assert!(mailbox.take(&mut mail));
        assert_eq!(mail.outcomes.len(), 6, "all are there");
    }

    #[test]
    fn what_came_before_it_was_waited_for_is_told() {
        let mailbox = Mailbox::new(1, QueueLimits { messages: 1, bytes: 1 });
        assert!(!mailbox.await_outcome(Some(5)));
        mailbox.settle(outcome(Some(6), Ok(())));
        assert!(!mailbox.await_outcome(Some(5)));
        assert!(mailbox.await_outcome(Some(6)));
        assert!(mailbox.await_outcome(None));
    }
}
