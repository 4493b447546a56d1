//! The queue of a shared subscription: what no member that is connected takes waits there, in its order, for whoever is
//! connected first (broker spec §2.7).
//!
//! ```text
//!             nobody takes it                       a member is connected and has room
//!  publisher ────────────────► queue of the group ─────────────────────────────────────► mailbox of the client
//!                              in the session store                                 └──► queue of its session
//! ```
//!
//! A group of which a session is that outlives its connections has such a queue, under a name that no client can have,
//! and a task that hands over what is in it. While something is in it all that comes at QoS 1 and 2 goes behind it. A
//! message leaves the queue once a member has it, in its mailbox or its own queue: after a crash in between it is
//! handed over once more.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tbmq_mqtt::session::{Delivery, End};

use crate::{
    backlog::Next,
    group::{Group, Handed},
    mailbox::{Mail, Mailbox, Outcome, weight},
    plane::Plane,
    queues::{Keep, Queues, Ticket},
    session_store::{Seq, Session},
    worker::Worker,
};

/// Messages on their way into the queues of members.
const HANDED_MAX: usize = 256;

/// Messages of one turn, so that a long queue leaves time for others.
const MESSAGES_PER_TURN: usize = 256;

/// The pause after something could not be put into a member's queue.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The queue of one group.
#[derive(Debug)]
pub(crate) struct GroupQueue {
    /// Wakes the task, and has at hand what comes next.
    pub(crate) mailbox: Arc<Mailbox>,
    /// Under which name it is stored.
    session: Session,
    /// Messages on their way into it.
    coming: AtomicUsize,
}

/// A message on its way into the queue, until it is there, or can't be.
#[derive(Debug)]
pub(crate) struct Coming(Arc<GroupQueue>);

impl Drop for Coming {
    fn drop(&mut self) {
        if self.0.coming.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.mailbox.due();
        }
    }
}

impl GroupQueue {
    /// A delivery that belongs to the end of the queue.
    pub(crate) fn keep(self: &Arc<Self>, delivery: Delivery) -> Keep {
        self.coming.fetch_add(1, Ordering::AcqRel);
        let (mailbox, session) = (self.mailbox.clone(), self.session.clone());
        Keep { mailbox, session, delivery, coming: Some(Coming(self.clone())) }
    }

    /// Whether nothing is in it that was not taken, and nothing comes.
    pub(crate) fn is_drained(&self) -> bool {
        // What has come is counted as coming until it is at hand.
        self.coming.load(Ordering::Acquire) == 0 && self.mailbox.is_drained()
    }

    /// The group has no members any more: what is in the queue is dropped.
    pub(crate) fn end(&self, queues: &Queues) {
        self.mailbox.close();
        self.mailbox.end(End::Administrative);
        queues.discard(&self.session);
    }
}

/// The name of a group's queue: no client id has a NUL (MQTT-1.5.3-2).
pub(crate) fn name(filter: &str) -> String {
    format!("\0{filter}")
}

/// Gives a group an empty queue, unless it has one.
pub(crate) fn begin(plane: &Arc<Plane>, group: &Arc<Group>) {
    start(plane, group, || {
        let session = Session::new(name(&group.filter), plane.queues.epoch());
        plane.queues.open(&session);
        session
    });
}

/// Goes on with the queue that a group had, which is open.
pub(crate) fn go_on(plane: &Arc<Plane>, group: &Arc<Group>, session: Session, is_empty: bool) {
    if let Some(queue) = start(plane, group, || session)
        && !is_empty
    {
        group.found_queued();
        queue.mailbox.room();
    }
}

fn start(plane: &Arc<Plane>, group: &Arc<Group>, open: impl FnOnce() -> Session) -> Option<Arc<GroupQueue>> {
    let (worker, queue) = group.begin_queue(|| {
        let (session, (worker, mailbox)) = (open(), plane.seat());
        mailbox.keep_away(session.clone());
        (worker, Arc::new(GroupQueue { mailbox, session, coming: AtomicUsize::new(0) }))
    })?;
    let task = Task {
        plane: plane.clone(),
        worker,
        group: group.clone(),
        queue: queue.clone(),
        mail: Mail::default(),
        is_away: true,
        next: None,
        taken: 0,
        handed: 0,
        settled: Vec::new(),
        has_failed: false,
        is_ending: false,
    };
    plane.track(task.run());
    Some(queue)
}

/// Hands over what is in the queue.
struct Task {
    plane: Arc<Plane>,
    worker: Arc<Worker>,
    group: Arc<Group>,
    queue: Arc<GroupQueue>,
    mail: Mail,
    /// No member is connected, as far as is known.
    is_away: bool,
    /// Nobody had room for it.
    next: Option<(Seq, Delivery)>,
    /// All up to this record were handed over.
    taken: Seq,
    /// Of them those that are on their way.
    handed: usize,
    /// Those that have arrived.
    settled: Vec<Seq>,
    /// Some have not, and are to be handed over again.
    has_failed: bool,
    is_ending: bool,
}

/// What is next.
enum Turn {
    End,
    Pause,
}

impl Task {
    async fn run(mut self) {
        let (worker, mailbox) = (self.worker.clone(), self.queue.mailbox.clone());
        worker.enter(&mailbox);
        if self.plane.is_draining() {
            mailbox.end(End::ShuttingDown);
        }
        while let Turn::Pause = poll_fn(|cx| self.poll(cx)).await {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        worker.leave(mailbox.number, None);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        self.queue.mailbox.register(cx.waker());
        self.take_mail();
        if self.is_ending || self.has_failed {
            self.settle();
            if self.handed > 0 {
                return Poll::Pending;
            }
            if self.is_ending {
                return Poll::Ready(Turn::End);
            }
            self.has_failed = false;
            self.next = None;
            // What has arrived is settled: the rest is read again.
            self.taken = 0;
            self.queue.mailbox.rewind(0);
            self.queue.mailbox.resume();
            return Poll::Ready(Turn::Pause);
        }
        let has_more = self.hand_over();
        self.settle();
        if has_more {
            cx.waker().wake_by_ref();
        } else if self.handed == 0 && self.next.is_none() {
            self.group.drained();
        }
        Poll::Pending
    }

    fn take_mail(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        if self.queue.mailbox.take(&mut mail) {
            for outcome in mail.outcomes.drain(..) {
                if let Outcome::Record { number: Some(seq), result, .. } = outcome {
                    self.handed -= 1;
                    match result {
                        Ok(()) => self.settled.push(seq),
                        Err(_) => self.has_failed = true,
                    }
                }
            }
            if mail.has_room && self.is_away && self.group.is_queued() {
                self.is_away = false;
                self.queue.mailbox.resume();
            }
            if mail.command == Some(End::Administrative) {
                // Nothing is told to a queue that is closed.
                self.handed = 0;
            }
            self.is_ending |= mail.command.is_some();
        }
        self.mail = Mail { outcomes: mail.outcomes, ..Mail::default() };
    }

    /// Hands over what is at hand. Returns whether to go on at once.
    fn hand_over(&mut self) -> bool {
        let mut taken = Vec::new();
        for _ in 0..MESSAGES_PER_TURN {
            if self.has_failed {
                return true;
            }
            if self.is_away || self.handed >= HANDED_MAX {
                return false;
            }
            if self.next.is_none() {
                let next = self.queue.mailbox.take_queued(1, usize::MAX, &mut taken);
                self.next = taken.pop();
                match next {
                    Next::Read(wanted) => self.plane.queues.read(&self.queue.mailbox, wanted),
                    Next::More | Next::Wait => {}
                }
            }
            let Some((seq, delivery)) = self.next.take() else { return false };
            match self.group.hand(&delivery.message) {
                Handed::Taken => {
                    self.plane.metrics.delivered.inc();
                    self.settled.push(seq);
                }
                Handed::Keep(keep) => self.put(seq, keep),
                Handed::NoRoom => {
                    self.next = Some((seq, delivery));
                    return false;
                }
                Handed::Nobody => {
                    self.is_away = true;
                    self.queue.mailbox.rewind(self.taken);
                    return false;
                }
            }
            self.taken = seq;
        }
        true
    }

    /// Puts a message into a member's own queue.
    fn put(&mut self, seq: Seq, keep: Keep) {
        let bytes = weight(&keep.delivery);
        let ticket = Ticket { mailbox: self.queue.mailbox.clone(), number: Some(seq), bytes };
        match self.plane.queues.hand_over(keep, ticket) {
            Ok(()) => self.handed += 1,
            Err(_) => self.has_failed = true,
        }
    }

    /// Takes what has arrived out of the queue.
    fn settle(&mut self) {
        if self.settled.is_empty() {
            return;
        }
        let settled = std::mem::take(&mut self.settled);
        let is_all = self.handed == 0 && !self.has_failed;
        // With what has expired before it.
        let (through, settled) = if is_all { (self.taken, Vec::new()) } else { (0, settled) };
        self.plane.queues.handed_over(&self.queue.session, through, settled);
    }
}
