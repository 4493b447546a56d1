//! What of a persistent session's queue is at hand for its connection: the queue itself lies in the session store.
//!
//! ```text
//!            appended           appended, no room               at the end of the queue
//!  Live ────────────────► Live ──────────────────► Behind ──► Reading ─────────────────► Live
//!                                                    ▲          │ there is more
//!                                                    └──────────┘
//! ```

use std::collections::VecDeque;

use tbmq_mqtt::session::Delivery;

use crate::{
    mailbox::weight,
    session_store::{Seq, Session},
};

/// Messages at hand.
const MESSAGES_MAX: usize = 512;

/// Their bytes.
const BYTES_MAX: usize = 1 << 20;

/// The next messages of a queue.
///
/// Invariant: what is taken are records of the queue in their order, each once.
#[derive(Debug)]
pub(crate) struct Backlog {
    session: Session,
    /// The last record that was taken; all before it were, too.
    taken: Seq,
    at_hand: VecDeque<(Seq, Delivery)>,
    bytes: usize,
    state: State,
    /// The number of the last reading: what an earlier one has found is not all any more.
    reading: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is no connection.
    Away,
    /// Behind what is at hand there is more in the store.
    Behind,
    /// The store is being read; what is appended meanwhile is at hand, unless it is missed.
    Reading { has_missed: bool },
    /// All is at hand.
    Live,
}

/// Where more is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// At hand.
    More,
    /// In the store: to be read now.
    Read(Wanted),
    /// It will be told.
    Wait,
}

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) session: Session,
    /// After this record.
    pub(crate) after: Seq,
    /// Of the reading, to be given back with what came of it.
    pub(crate) number: u64,
}

impl Backlog {
    /// The backlog of a queue that is empty.
    pub(crate) fn new(session: Session) -> Self {
        Self { session, taken: 0, at_hand: VecDeque::new(), bytes: 0, state: State::Live, reading: 0 }
    }

    /// Under which name the queue is kept.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// A record was appended to the queue. Records come in their order.
    pub(crate) fn appended(&mut self, seq: Seq, delivery: Delivery) {
        let has_room = self.at_hand.len() < MESSAGES_MAX && self.bytes < BYTES_MAX;
        match &mut self.state {
            State::Away | State::Behind | State::Reading { has_missed: true } => {}
            State::Reading { has_missed } if !has_room => *has_missed = true,
            State::Live if !has_room => self.state = State::Behind,
            State::Reading { .. } | State::Live => self.push(seq, delivery),
        }
    }

    /// What was read, and whether it was all: instead of what is at hand, which is newer, or in front of it.
    pub(crate) fn read(&mut self, number: u64, records: Vec<(Seq, Delivery)>, next_after: Option<Seq>) {
        let State::Reading { has_missed } = self.state else { return };
        if number != self.reading {
            return;
        }
        let newer = std::mem::take(&mut self.at_hand);
        self.bytes = 0;
        let mut last = self.taken;
        for (seq, delivery) in records {
            if seq > last {
                last = seq;
                self.push(seq, delivery);
            }
        }
        if has_missed || next_after.is_some() {
            self.state = State::Behind;
            if self.at_hand.is_empty() {
                // All that was read has expired.
                self.taken = next_after.unwrap_or_default().max(self.taken);
            }
            return;
        }
        self.state = State::Live;
        for (seq, delivery) in newer {
            if seq > last {
                self.push(seq, delivery);
            }
        }
    }

    /// The store could not be read: it is to be tried again.
    pub(crate) fn not_read(&mut self, number: u64) {
        if matches!(self.state, State::Reading { .. }) && number == self.reading {
            self.at_hand.clear();
            self.bytes = 0;
            self.state = State::Behind;
        }
    }

    /// Takes at most `max` messages, and no further one once they have `bytes`.
    pub(crate) fn take(&mut self, max: usize, bytes: usize, into: &mut Vec<(Seq, Delivery)>) -> Next {
        let mut taken = 0;
        if !matches!(self.state, State::Reading { .. }) {
            while into.len() < max && taken < bytes {
                let Some((seq, delivery)) = self.at_hand.pop_front() else { break };
                taken += weight(&delivery);
                self.taken = seq;
                into.push((seq, delivery));
            }
            self.bytes -= taken;
        }
        match self.state {
            State::Away | State::Reading { .. } => Next::Wait,
            State::Behind | State::Live if !self.at_hand.is_empty() => Next::More,
            State::Live => {
                // An idle connection keeps no buffer (architecture §4.23).
                self.at_hand = VecDeque::new();
                Next::Wait
            }
            State::Behind => {
                self.state = State::Reading { has_missed: false };
                self.reading += 1;
                let (session, after, number) = (self.session.clone(), self.taken, self.reading);
                Next::Read(Wanted { session, after, number })
            }
        }
    }

    /// Whether [`Backlog::take`] would do something.
    pub(crate) fn has_more(&self) -> bool {
        match self.state {
            State::Away | State::Reading { .. } => false,
            State::Behind => true,
            State::Live => !self.at_hand.is_empty(),
        }
    }

    /// Whether what is appended comes to hand, as far as half of the room goes.
    pub(crate) fn has_room(&self) -> bool {
        self.state == State::Live && self.at_hand.len() < MESSAGES_MAX / 2 && self.bytes < BYTES_MAX / 2
    }

    /// Whether all that is in the queue was taken.
    pub(crate) fn is_drained(&self) -> bool {
        self.state == State::Live && self.at_hand.is_empty()
    }

    /// Takes what is at hand of shared subscriptions, of a connection that is about to go.
    pub(crate) fn take_shared(&mut self) -> Vec<(Seq, Delivery)> {
        self.bytes = 0;
        let at_hand = std::mem::take(&mut self.at_hand);
        at_hand.into_iter().filter(|(_, delivery)| delivery.group.is_some()).collect()
    }

    /// As [`Backlog::park`]; what was taken after this record will be taken again.
    pub(crate) fn rewind(&mut self, taken: Seq) {
        self.taken = taken;
        self.park();
    }

    /// The connection is gone.
    pub(crate) fn park(&mut self) {
        self.at_hand = VecDeque::new();
        self.bytes = 0;
        self.state = State::Away;
    }

    /// There is a connection again.
    pub(crate) fn resume(&mut self) {
        self.state = State::Behind;
    }

    fn push(&mut self, seq: Seq, delivery: Delivery) {
        self.bytes += weight(&delivery);
        self.at_hand.push_back((seq, delivery));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tbmq_mqtt::{codec::property::Properties, packet::Qos, session::Message};

    use super::*;

    fn delivery(bytes: usize) -> Delivery {
        let message = Message {
            publisher: "p".into(),
            packet_id: 0,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: "t".into(),
            payload: Bytes::from(vec![0; bytes]),
            properties: Properties::NONE,
            expires_at_ms: None,
        };
        Delivery {
            message: Arc::new(message),
            qos: Qos::AtLeastOnce,
            retain: false,
            identifiers: Vec::new(),
            group: None,
        }
    }

    fn session() -> Session {
        Session::new("c", 1)
    }

    fn read(after: Seq, number: u64) -> Next {
        Next::Read(Wanted { session: session(), after, number })
    }

    fn records(seqs: impl IntoIterator<Item = Seq>) -> Vec<(Seq, Delivery)> {
        seqs.into_iter().map(|seq| (seq, delivery(0))).collect()
    }

    fn take(backlog: &mut Backlog, max: usize) -> (Vec<Seq>, Next) {
        let mut into = Vec::new();
        let next = backlog.take(max, usize::MAX, &mut into);
        (into.into_iter().map(|(seq, _)| seq).collect(), next)
    }

    #[test]
    fn what_is_appended_is_at_hand() {
        let mut backlog = Backlog::new(session());
        backlog.appended(1, delivery(0));
        backlog.appended(2, delivery(0));
        assert!(backlog.has_more());
        assert_eq!(take(&mut backlog, 1), (vec![1], Next::More));
        assert_eq!(take(&mut backlog, 9), (vec![2], Next::Wait));
        assert!(!backlog.has_more());
    }

    #[test]
    fn what_has_no_room_is_read_in_its_order_with_what_comes_meanwhile_and_each_once() {
        let mut backlog = Backlog::new(session());
        let end = MESSAGES_MAX as Seq;
        for seq in 1..=end + 3 {
            backlog.appended(seq, delivery(0));
        }
        assert_eq!(take(&mut backlog, 9).1, Next::More);
        let (taken, next) = take(&mut backlog, usize::MAX);
        assert_eq!((taken.last(), next), (Some(&end), read(end, 1)));
        // While it reads: one that the reading sees, and one that it does not.
        backlog.appended(end + 4, delivery(0));
        backlog.appended(end + 5, delivery(0));
        assert_eq!((take(&mut backlog, 9), backlog.has_more()), ((vec![], Next::Wait), false));
        backlog.read(1, records(end + 1..=end + 4), None);
        let expected: Vec<Seq> = (end + 1..=end + 5).collect();
        assert_eq!(take(&mut backlog, 9), (expected, Next::Wait));
        backlog.appended(end + 6, delivery(0));
        assert_eq!(take(&mut backlog, 9), (vec![end + 6], Next::Wait));
    }

    #[test]
    fn a_queue_that_is_not_read_to_its_end_is_read_on() {
        let mut backlog = Backlog::new(session());
        backlog.park();
        backlog.appended(1, delivery(0));
        assert_eq!((take(&mut backlog, 9), backlog.has_more()), ((vec![], Next::Wait), false));
        backlog.resume();
        assert_eq!(take(&mut backlog, 9), (vec![], read(0, 1)));
        backlog.appended(5, delivery(0));
        backlog.read(1, records([1, 2]), Some(2));
        assert_eq!(take(&mut backlog, 9), (vec![1, 2], read(2, 2)));
        // All of a page has expired.
        backlog.read(2, vec![], Some(4));
        assert_eq!(take(&mut backlog, 9), (vec![], read(4, 3)));
        backlog.read(3, records([5]), None);
        assert_eq!(take(&mut backlog, 9), (vec![5], Next::Wait));
    }

    #[test]
    fn what_is_missed_while_reading_is_read() {
        let mut backlog = Backlog::new(session());
        backlog.park();
        backlog.resume();
        assert_eq!(take(&mut backlog, 9).1, read(0, 1));
        backlog.appended(1, delivery(BYTES_MAX));
        backlog.appended(2, delivery(0));
        backlog.appended(3, delivery(0));
        backlog.read(1, vec![], None);
        assert_eq!(take(&mut backlog, 9), (vec![], read(0, 2)));
        backlog.read(2, records([1, 2, 3]), None);
        assert_eq!(take(&mut backlog, 9), (vec![1, 2, 3], Next::Wait));
    }

    #[test]
    fn a_store_that_could_not_be_read_is_read_again() {
        let mut backlog = Backlog::new(session());
        backlog.park();
        backlog.resume();
        take(&mut backlog, 9);
        backlog.appended(1, delivery(0));
        backlog.not_read(1);
        assert_eq!(take(&mut backlog, 9), (vec![], read(0, 2)));
        backlog.park();
        // The answer comes too late.
        backlog.read(2, records([1]), None);
        assert!(!backlog.has_more());
    }

    #[test]
    fn what_a_reading_of_before_has_found_is_not_taken_for_all() {
        let mut backlog = Backlog::new(session());
        backlog.park();
        backlog.resume();
        assert_eq!(take(&mut backlog, 9).1, read(0, 1));
        backlog.park();
        backlog.appended(1, delivery(0));
        backlog.resume();
        assert_eq!(take(&mut backlog, 9).1, read(0, 2));
        backlog.read(1, vec![], None);
        backlog.not_read(1);
        assert!(!backlog.has_more() && !backlog.is_drained());
        backlog.read(2, records([1]), None);
        assert_eq!(take(&mut backlog, 9), (vec![1], Next::Wait));
        assert!(backlog.is_drained() && backlog.has_room());
    }

    #[test]
    fn what_was_taken_and_not_handed_over_is_taken_again() {
        let mut backlog = Backlog::new(session());
        for seq in 1..=3 {
            backlog.appended(seq, delivery(0));
        }
        assert_eq!(take(&mut backlog, 2).0, [1, 2]);
        backlog.rewind(1);
        assert!(!backlog.has_more() && !backlog.has_room() && !backlog.is_drained());
        backlog.resume();
        assert_eq!(take(&mut backlog, 9).1, read(1, 1));
    }
}
