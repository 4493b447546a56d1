//! Shared subscriptions: of all members of `$share/<name>/<filter>` one gets each message (MQTT 5.0 §4.8.2), and 3.x
//! clients may be members too, as with TBMQ (broker spec §2.7). What no member that is connected takes waits in the
//! queue of the group ([`group_queue`](crate::group_queue)), if a session of a member outlives its connection.

use std::sync::Arc;

use indexmap::IndexMap;
use parking_lot::Mutex;
use tbmq_mqtt::{
    packet::Qos,
    session::{Delivery, Message, Options},
};

use crate::{
    group_queue::GroupQueue,
    mailbox::{Mailbox, Pushed},
    queues::Keep,
};

/// One shared subscription.
#[derive(Debug)]
pub(crate) struct Group {
    /// Never used twice by a process.
    pub(crate) number: u64,
    /// The whole filter.
    pub(crate) filter: Arc<str>,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    /// By the number of the connection.
    all: IndexMap<u64, (Arc<Mailbox>, Options)>,
    /// Whose turn it is.
    next: usize,
    queue: Option<Arc<GroupQueue>>,
    /// There is something in the queue, or on its way there or from there: what comes goes behind it.
    is_queued: bool,
}

/// Who gets a message.
#[derive(Debug)]
pub(crate) enum Given {
    /// A member that is connected.
    Taken,
    /// It belongs into the queue of a member that is connected, or of the group.
    Keep(Keep),
    /// No member takes it.
    Nobody,
}

/// Who gets a message of the group's queue.
#[derive(Debug)]
pub(crate) enum Handed {
    /// A member that is connected.
    Taken,
    /// It belongs into the queue of a member that is connected.
    Keep(Keep),
    /// No member that is connected has room now: the queue will be told.
    NoRoom,
    /// No member is connected: the queue will be told.
    Nobody,
}

impl Group {
    pub(crate) fn new(number: u64, filter: &str) -> Self {
        Self { number, filter: filter.into(), members: Mutex::default() }
    }

    /// Adds a member, or gives it other options; `true` when it is new.
    pub(crate) fn join(&self, mailbox: &Arc<Mailbox>, options: Options) -> bool {
        let mut members = self.members.lock();
        let is_new = members.all.insert(mailbox.number, (mailbox.clone(), options)).is_none();
        if let Some(queue) = &members.queue
            && members.is_queued
        {
            queue.mailbox.room();
        }
        is_new
    }

    /// Takes a member away. Nothing is left with it afterwards. Tells whether it was one, and whether others are left.
    pub(crate) fn leave(&self, connection: u64) -> (bool, bool) {
        let mut members = self.members.lock();
        let was_member = members.all.swap_remove(&connection).is_some();
        if members.all.capacity() > 4 * members.all.len() + 16 {
            members.all.shrink_to_fit();
        }
        (was_member, !members.all.is_empty())
    }

    /// Gives the group a queue if it has members and none yet, and returns it.
    pub(crate) fn begin_queue<T>(
        &self,
        begin: impl FnOnce() -> (T, Arc<GroupQueue>),
    ) -> Option<(T, Arc<GroupQueue>)> {
        let mut members = self.members.lock();
        if members.queue.is_some() || members.all.is_empty() {
            return None;
        }
        let (with, queue) = begin();
        members.queue = Some(queue.clone());
        Some((with, queue))
    }

    /// Whether there is something in the queue, or on its way there or from there.
    pub(crate) fn is_queued(&self) -> bool {
        self.members.lock().is_queued
    }

    /// There is something in the queue that was just begun.
    pub(crate) fn found_queued(&self) {
        self.members.lock().is_queued = true;
    }

    /// Takes the queue away.
    pub(crate) fn end_queue(&self) -> Option<Arc<GroupQueue>> {
        let mut members = self.members.lock();
        members.is_queued = false;
        members.queue.take()
    }

    /// All that was taken from the queue is where it belongs. When nothing else is in it or comes, messages need not go
    /// through it any more.
    pub(crate) fn drained(&self) {
        let mut members = self.members.lock();
        if members.queue.as_ref().is_some_and(|queue| queue.is_drained()) {
            members.is_queued = false;
        }
    }

    /// Leaves a message with the member whose turn it is, or the next one that is connected and has room. When there is
    /// none, or others wait already, what comes at QoS 1 and 2 belongs into the group's queue.
    pub(crate) fn deliver(&self, message: &Arc<Message>) -> Given {
        let mut members = self.members.lock();
        if members.is_queued
            && message.qos != Qos::AtMostOnce
            && let Some(queue) = &members.queue
        {
            return Given::Keep(self.behind(queue, message));
        }
        self.give(&mut members, message)
    }

    /// As [`Group::deliver`], but not behind those that wait: it came before them.
    pub(crate) fn deliver_again(&self, message: &Arc<Message>) -> Given {
        self.give(&mut self.members.lock(), message)
    }

    fn give(&self, members: &mut Members, message: &Arc<Message>) -> Given {
        match members.offer(message, &self.filter, false) {
            Handed::Taken => return Given::Taken,
            Handed::Keep(keep) => return Given::Keep(keep),
            Handed::NoRoom | Handed::Nobody => {}
        }
        if message.qos != Qos::AtMostOnce
            && let Some(queue) = &members.queue
            && members.all.values().any(|(mailbox, _)| mailbox.is_kept())
        {
            let keep = self.behind(queue, message);
            members.is_queued = true;
            return Given::Keep(keep);
        }
        Given::Nobody
    }

    /// Hands a message of the queue to a member that is connected and has room.
    pub(crate) fn hand(&self, message: &Arc<Message>) -> Handed {
        self.members.lock().offer(message, &self.filter, true)
    }

    /// A message at the end of the queue: as it was published, for whoever gets it.
    fn behind(&self, queue: &Arc<GroupQueue>, message: &Arc<Message>) -> Keep {
        let delivery = Delivery {
            message: message.clone(),
            qos: message.qos,
            retain: message.retain,
            identifiers: Vec::new(),
            group: Some(self.filter.clone()),
        };
        queue.keep(delivery)
    }

    /// How many members there are, and at most `max` of them.
    pub(crate) fn first_members(&self, max: usize) -> (usize, Vec<(Arc<Mailbox>, Options)>) {
        let members = self.members.lock();
        (members.all.len(), members.all.values().take(max).cloned().collect())
    }

    /// Calls `found` for each member until it says `false`; tells whether it always said `true`.
    pub(crate) fn members(&self, mut found: impl FnMut(&Arc<Mailbox>, &Options) -> bool) -> bool {
        self.members.lock().all.values().all(|(mailbox, options)| found(mailbox, options))
    }
}

impl Members {
    /// Offers a message to members in their turn.
    fn offer(&mut self, message: &Arc<Message>, filter: &Arc<str>, is_queued: bool) -> Handed {
        let Self { all, next, queue, .. } = self;
        let queue = queue.as_ref().map(|queue| &queue.mailbox);
        let mut is_somebody_here = false;
        for _ in 0..all.len() {
            let index = *next % all.len();
            *next = index + 1;
            let (mailbox, options) = &all[index];
            let delivery = Delivery {
                message: message.clone(),
                qos: options.qos.min(message.qos),
                retain: message.retain && options.retain_as_published,
                identifiers: options.identifier.into_iter().collect(),
                group: Some(filter.clone()),
            };
            match mailbox.offer(delivery, queue, is_queued) {
                Pushed::Queued => return Handed::Taken,
                Pushed::Keep(session, delivery) => {
                    return Handed::Keep(Keep { mailbox: mailbox.clone(), session, delivery, coming: None });
                }
                Pushed::Dropped => is_somebody_here = true,
                Pushed::Away => {}
            }
        }
        if is_somebody_here { Handed::NoRoom } else { Handed::Nobody }
    }
}
