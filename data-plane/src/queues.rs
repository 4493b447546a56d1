//! The way to the session store and back: changes go there in batches, in their order, and what came of them goes to
//! the mailboxes of those who wait for it.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tbmq_mqtt::{packet::ReasonCode, session::Delivery};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    backlog::Wanted,
    group_queue::Coming,
    mailbox::{Kept, Mailbox, Outcome, Queued},
    metrics::{Drop as Dropped, Metrics, Refusal},
    session_store::{
        self as store, Action, Change, Error, InFlight, ReadLimit, Record, Seq, Session, SessionStore,
        StoredWill, delivery,
    },
    worker::Clock,
};

/// What is read at once.
pub(crate) const READ: ReadLimit = ReadLimit { records: 256, bytes: 512 << 10 };

/// The pause before a store that could not be read is read again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Changes of one call.
const BATCH_MAX: usize = 1024;

/// The queues of all persistent sessions.
#[derive(Debug)]
pub(crate) struct Queues {
    store: Arc<dyn SessionStore>,
    clock: Clock,
    metrics: Metrics,
    /// The next epoch that is given.
    next_epoch: AtomicU64,
    /// Bytes of records on their way to the store; more are refused.
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

/// What has not been taken up yet. Records are bounded by their bytes, all else by what is in the queues.
#[derive(Debug, Default)]
struct Waiting {
    steps: Vec<Step>,
    reads: Vec<Read>,
    /// Of records that are taken up but not answered, too.
    record_bytes: usize,
    is_busy: bool,
}

#[derive(Debug)]
enum Step {
    Open(Session),
    /// What is in the queue is dropped: to be counted.
    Discard(Session),
    /// Somebody wants to know what is in the queue.
    Tell(Session, oneshot::Sender<Queued>),
    Change(Change, Then),
}

/// Who waits for a change.
#[derive(Debug)]
enum Then {
    Nobody,
    Session(Waiter),
    Publisher(Ticket),
    Both(Keep, Ticket),
    /// A group's queue, which hands the message to a member.
    Group(Keep, Ticket),
}

/// A delivery that belongs into a queue.
#[derive(Debug)]
pub(crate) struct Keep {
    /// The mailbox of the session, or group.
    pub(crate) mailbox: Arc<Mailbox>,
    /// Whose queue.
    pub(crate) session: Session,
    pub(crate) delivery: Delivery,
    /// Of a group's queue.
    pub(crate) coming: Option<Coming>,
}

/// The publish that a change belongs to.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// The publisher.
    pub(crate) mailbox: Arc<Mailbox>,
    /// The number of its publish.
    pub(crate) number: Option<u64>,
    /// Bytes that are in flight until then.
    pub(crate) bytes: usize,
}

/// A session that waits until something of it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    /// The session's.
    pub(crate) mailbox: Arc<Mailbox>,
    /// Under which number it waits.
    pub(crate) wait: u64,
}

impl Waiter {
    /// Tells it.
    pub(crate) fn tell(&self, is_kept: bool) {
        self.mailbox.settle(Outcome::Kept(Kept { wait: self.wait, is_kept }));
    }
}

#[derive(Debug)]
struct Read {
    mailbox: Arc<Mailbox>,
    wanted: Wanted,
}

/// There is no room for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Queues {
    pub(crate) fn new(
        store: Arc<dyn SessionStore>,
        clock: Clock,
        metrics: Metrics,
        bytes_max: usize,
    ) -> Self {
        Self {
            store,
            clock,
            metrics,
            // Greater than those of a process before.
            next_epoch: AtomicU64::new(clock.now().epoch_ms.cast_unsigned()),
            bytes_max,
            waiting: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Where the queues lie.
    pub(crate) fn store(&self) -> &dyn SessionStore {
        &*self.store
    }

    /// An epoch for a session that begins: greater than all that were given before.
    pub(crate) fn epoch(&self) -> u64 {
        self.next_epoch.fetch_add(1, Ordering::Relaxed)
    }

    /// An epoch was given before by somebody.
    pub(crate) fn note_epoch(&self, epoch: u64) {
        self.next_epoch.fetch_max(epoch.saturating_add(1), Ordering::Relaxed);
    }

    /// Begins a session with an empty queue.
    pub(crate) fn open(&self, session: &Session) {
        self.push([Step::Open(session.clone()), change(session, Action::Clear, Then::Nobody)]);
    }

    /// As [`Queues::open`], with a will; the session is told when it is done.
    pub(crate) fn begin(&self, session: &Session, will: Option<StoredWill>, waiter: Waiter) {
        self.push([
            Step::Open(session.clone()),
            change(session, Action::Clear, Then::Nobody),
            change(session, Action::SetWill(will), Then::Session(waiter)),
        ]);
    }

    /// Keeps a will in place of the one before; the session is told if it waits.
    pub(crate) fn set_will(&self, session: &Session, will: Option<StoredWill>, waiter: Option<Waiter>) {
        let then = waiter.map_or(Then::Nobody, Then::Session);
        self.push([change(session, Action::SetWill(will), then)]);
    }

    /// Ends the queue of a group that has no members any more. What is in it is counted as dropped.
    pub(crate) fn discard(&self, session: &Session) {
        self.push([Step::Discard(session.clone()), change(session, Action::Remove, Then::Nobody)]);
    }

    /// Tells what is in the queue of a session that is open, after all that was changed before.
    pub(crate) fn tell(&self, session: &Session) -> oneshot::Receiver<Queued> {
        let (answer, answered) = oneshot::channel();
        self.push([Step::Tell(session.clone(), answer)]);
        answered
    }

    /// Ends a session.
    pub(crate) fn remove(&self, session: &Session) {
        self.push([change(session, Action::Remove, Then::Nobody)]);
    }

    /// Puts a delivery at the end of a queue; it comes to its mailbox, and the outcome to the publisher's, once it is
    /// kept.
    pub(crate) fn append(&self, keep: Keep, ticket: Ticket) -> Result<(), Full> {
        self.push_record(keep, ticket, Then::Both)
    }

    /// As [`Queues::append`], for a message of a group's queue: when the session is over, it is not kept, and stays
    /// where it is.
    pub(crate) fn hand_over(&self, keep: Keep, ticket: Ticket) -> Result<(), Full> {
        self.push_record(keep, ticket, Then::Group)
    }

    fn push_record(&self, keep: Keep, ticket: Ticket, then: fn(Keep, Ticket) -> Then) -> Result<(), Full> {
        let delivery = &keep.delivery;
        let record =
            Record { value: delivery::encode(delivery), expires_at_ms: delivery.message.expires_at_ms };
        {
            let mut waiting = self.waiting.lock();
            if waiting.record_bytes + ticket.bytes > self.bytes_max {
                return Err(Full);
            }
            waiting.record_bytes += ticket.bytes;
            let session = keep.session.clone();
            waiting.steps.push(change(&session, Action::Append(record), then(keep, ticket)));
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Notes that a QoS 2 publish of the client was taken.
    pub(crate) fn taken(&self, session: &Session, packet_id: u16, ticket: Ticket) {
        let action = Action::Received { taken: vec![packet_id], released: Vec::new() };
        self.push([change(session, action, Then::Publisher(ticket))]);
    }

    /// Notes that a QoS 2 publish of the client is done with.
    pub(crate) fn released(&self, session: &Session, packet_id: u16) {
        let action = Action::Received { taken: Vec::new(), released: vec![packet_id] };
        self.push([change(session, action, Then::Nobody)]);
    }

    /// Notes what the client has acknowledged, and what was sent to it; the session is told if it waits.
    pub(crate) fn acknowledge(
        &self,
        session: &Session,
        settled: Vec<Seq>,
        in_flight: Vec<(Seq, InFlight)>,
        waiter: Option<Waiter>,
    ) {
        let action = Action::Acknowledge { through: 0, settled, in_flight };
        self.push([change(session, action, waiter.map_or(Then::Nobody, Then::Session))]);
    }

    /// Notes what a group's queue has handed to members: these records, and all up to one of them.
    pub(crate) fn handed_over(&self, session: &Session, through: Seq, settled: Vec<Seq>) {
        let action = Action::Acknowledge { through, settled, in_flight: Vec::new() };
        self.push([change(session, action, Then::Nobody)]);
    }

    /// Reads a queue after a record; what is there comes to the mailbox.
    pub(crate) fn read(&self, mailbox: &Arc<Mailbox>, wanted: Wanted) {
        self.waiting.lock().reads.push(Read { mailbox: mailbox.clone(), wanted });
        self.wake.notify_one();
    }

    /// Whether something is on its way to the store.
    pub(crate) fn is_busy(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.is_busy || !waiting.steps.is_empty()
    }

    /// Serves until it is stopped; what waits then is still done.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut reads: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send + '_>>> =
            FuturesUnordered::new();
        loop {
            let (steps, wanted) = self.take();
            for read in wanted {
                reads.push(Box::pin(self.serve(read)));
            }
            if !steps.is_empty() {
                self.perform(steps).await;
                self.waiting.lock().is_busy = false;
                continue;
            }
            self.waiting.lock().is_busy = false;
            tokio::select! {
                () = self.wake.notified() => {}
                Some(()) = reads.next() => {}
                () = stop.cancelled() => {
                    let (steps, _) = self.take();
                    return self.perform(steps).await;
                }
            }
        }
    }

    fn push(&self, steps: impl IntoIterator<Item = Step>) {
        self.waiting.lock().steps.extend(steps);
        self.wake.notify_one();
    }

    fn take(&self) -> (Vec<Step>, Vec<Read>) {
        let mut waiting = self.waiting.lock();
        waiting.is_busy = true;
        (mem::take(&mut waiting.steps), mem::take(&mut waiting.reads))
    }

    /// Carries steps out in their order, as many as possible with one call.
    async fn perform(&self, steps: Vec<Step>) {
        let mut opened = Vec::new();
        let mut changes = Vec::new();
        let mut waiters = Vec::new();
        for step in steps {
            match step {
                Step::Open(session) => {
                    self.apply(&mut changes, &mut waiters).await;
                    opened.push(session);
                }
                Step::Discard(session) => {
                    self.open_all(&mut opened).await;
                    self.apply(&mut changes, &mut waiters).await;
                    let queued = self.queued(session).await.unwrap_or_default();
                    self.metrics.dropped_by(Dropped::NoMember, queued.messages as usize);
                }
                Step::Tell(session, answer) => {
                    self.open_all(&mut opened).await;
                    self.apply(&mut changes, &mut waiters).await;
                    if let Some(queued) = self.queued(session).await {
                        // Who has asked may have gone away.
                        answer.send(queued).ok();
                    }
                }
                Step::Change(change, then) => {
                    self.open_all(&mut opened).await;
                    changes.push(change);
                    waiters.push(then);
                    if changes.len() == BATCH_MAX {
                        self.apply(&mut changes, &mut waiters).await;
                    }
                }
            }
        }
        self.open_all(&mut opened).await;
        self.apply(&mut changes, &mut waiters).await;
    }

    async fn open_all(&self, sessions: &mut Vec<Session>) {
        if sessions.is_empty() {
            return;
        }
        for result in self.store.open(sessions).await {
            if let Err(error) = result {
                if let Error::Fenced { epoch } = error {
                    self.note_epoch(epoch);
                }
                self.metrics.session_store_failures.inc();
                tracing::warn!(%error, "can't open a session");
            }
        }
        sessions.clear();
    }

    async fn queued(&self, session: Session) -> Option<Queued> {
        // It is open: to open it again tells what is in it.
        let state = self.store.open(&[session]).await.pop()?.ok()?;
        Some(Queued { messages: state.records, bytes: state.bytes })
    }

    async fn apply(&self, changes: &mut Vec<Change>, waiters: &mut Vec<Then>) {
        if changes.is_empty() {
            return;
        }
        let results = self.store.apply(self.clock.now().epoch_ms, mem::take(changes)).await;
        let mut bytes = 0;
        for (then, result) in waiters.drain(..).zip(results) {
            match then {
                Then::Nobody => self.note(&result),
                Then::Session(waiter) => {
                    self.note(&result);
                    waiter.tell(result.is_ok());
                }
                Then::Publisher(ticket) => {
                    self.note(&result);
                    settle(ticket, result.is_ok());
                }
                Then::Both(keep, ticket) => {
                    bytes += ticket.bytes;
                    let is_kept = self.appended(keep, &result);
                    settle(ticket, is_kept);
                }
                Then::Group(keep, ticket) => {
                    bytes += ticket.bytes;
                    let is_over = matches!(result, Err(Error::Unknown | Error::Fenced { .. }));
                    let is_kept = !is_over && self.appended(keep, &result);
                    settle(ticket, is_kept);
                }
            }
        }
        self.waiting.lock().record_bytes -= bytes;
    }

    /// Returns whether the publisher may take the message for kept.
    fn appended(&self, keep: Keep, result: &Result<store::Outcome, Error>) -> bool {
        let Keep { mailbox, delivery, coming: _coming, .. } = keep;
        match result {
            Ok(store::Outcome::Appended { seq, dropped }) => {
                self.metrics.queued.inc();
                self.metrics.dropped_by(Dropped::QueueFull, *dropped as usize);
                mailbox.stored(*seq, delivery);
                true
            }
            Ok(_) => {
                self.metrics.dropped(Dropped::QueueFull);
                true
            }
            // The session is over.
            Err(Error::Unknown | Error::Fenced { .. }) => {
                self.metrics.dropped(Dropped::Disconnected);
                true
            }
            Err(Error::Unavailable(_)) => {
                self.metrics.session_store_failures.inc();
                self.metrics.refused(Refusal::Unavailable);
                false
            }
        }
    }

    fn note(&self, result: &Result<store::Outcome, Error>) {
        if let Err(error @ Error::Unavailable(_)) = result {
            self.metrics.session_store_failures.inc();
            tracing::warn!(%error, "can't change a session");
        }
    }

    /// A stored message; one that can't be read is counted and skipped.
    pub(crate) fn decoded(&self, seq: Seq, value: Bytes) -> Option<Delivery> {
        delivery::decode(value)
            .inspect_err(|error| {
                self.metrics.session_store_failures.inc();
                tracing::error!(%error, seq, "a stored message is skipped");
            })
            .ok()
    }

    async fn serve(&self, read: Read) {
        let Read { mailbox, wanted: Wanted { session, after, number } } = read;
        match self.store.read(self.clock.now().epoch_ms, &session, after, READ).await {
            Ok(page) => {
                self.metrics.dropped_by(Dropped::Expired, page.expired as usize);
                let records = page.records.into_iter().filter_map(|record| {
                    // What is in flight already is with the session machine.
                    if record.in_flight.is_some() {
                        return None;
                    }
                    Some((record.seq, self.decoded(record.seq, record.value)?))
                });
                mailbox.read(number, records.collect(), page.next_after);
            }
            Err(Error::Unavailable(reason)) => {
                self.metrics.session_store_failures.inc();
                tracing::warn!(%reason, "can't read a session's queue");
                tokio::time::sleep(RETRY_PAUSE).await;
                mailbox.not_read(number);
            }
            // The session is over, or somebody else's.
            Err(error @ (Error::Unknown | Error::Fenced { .. })) => {
                tracing::debug!(%error, client_id = &*session.client_id, "a queue is gone");
                mailbox.read(number, Vec::new(), None);
            }
        }
    }
}

fn change(session: &Session, action: Action, then: Then) -> Step {
    Step::Change(Change { session: session.clone(), action }, then)
}

fn settle(ticket: Ticket, is_kept: bool) {
    let Ticket { mailbox, number, bytes } = ticket;
    let result = if is_kept { Ok(()) } else { Err(ReasonCode::UnspecifiedError) };
    mailbox.settle(Outcome::Record { number, bytes, result });
}
