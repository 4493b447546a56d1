//! One message partition on the executor: from records to outcomes and commits (spec §4.5, architecture §4.20-21).
//!
//! What one poll took is a pack. Its messages are submitted within a window, each with its own attempts; the
//! strategy says what happens to those that fail or get no answer in time. Failures are told as [`Notice`]s.
//!
//! Invariants: every message leaves exactly once, as delivered, rejected, skipped or expired;
//! [`Partition::commit_position`] is never beyond a message that has not left; of each submitted attempt exactly one
//! answer counts, the first one or the timeout.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use crate::{Millis, entity::AckStrategy, stats::Processor};

/// How messages are delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What happens to messages that fail or time out.
    pub strategy: AckStrategy,
    /// Further attempts with [`AckStrategy::RetryAll`]; 0 = without end.
    pub retries: u32,
    /// Wait before each further attempt.
    pub pause: Duration,
    /// From submission to answer, at most.
    pub attempt_timeout: Duration,
    /// What must not overtake what.
    pub ordering: Ordering,
    /// Messages in flight, at most; as many more wait here.
    pub window_messages: usize,
    /// Bytes held here above which nothing more is wanted.
    pub window_bytes: usize,
}

impl Default for Settings {
    /// The seed's defaults: skip, 5 retries, 1 s pause, 30 s timeout.
    fn default() -> Self {
        Self {
            strategy: AckStrategy::SkipAll,
            retries: 5,
            pause: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(30),
            ordering: Ordering::None,
            window_messages: 128,
            window_bytes: 4 << 20,
        }
    }
}

/// What must not overtake what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// Anything may.
    None,
    /// Messages of one key keep their order: one is in flight, and a retry blocks its key only.
    Key,
}

/// The driver's number for an attempt: lane (8 bits), message (40 bits), attempt (16 bits).
pub type Ticket = u64;

const MESSAGE_MASK: u64 = (1 << 40) - 1;

/// The lane of a ticket, as given to [`Partition::new`].
pub fn lane_of(ticket: Ticket) -> u8 {
    (ticket >> 56) as u8
}

/// A record as it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<M> {
    /// Its offset.
    pub offset: u64,
    /// Hash of its key, for [`Ordering::Key`].
    pub key: u64,
    /// Its bytes.
    pub weight: usize,
    /// Epoch ms after which it is not to be delivered; 0 or less: never.
    pub expires_at_ms: i64,
    /// The message; `None` when the record can't be understood, and is skipped.
    pub message: Option<M>,
}

/// A sink's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The remote end confirmed.
    Delivered,
    /// Failed; another attempt may succeed.
    Retry {
        /// Wait at least so long.
        after: Option<Duration>,
        /// What happened.
        text: String,
    },
    /// Failed for good.
    Rejected {
        /// What happened.
        text: String,
    },
}

/// Something to tell people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An attempt failed, or the message can't be delivered at all.
    Failed {
        /// Offset of the message.
        offset: u64,
        /// What happened.
        text: String,
        /// Whether another attempt follows.
        is_retried: bool,
    },
    /// Messages ran out of time before they were delivered; counted since the last such notice.
    Expired {
        /// Offset of the first.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Retention removed records before they were read.
    Gap {
        /// First offset that is missing.
        from: u64,
        /// First offset that is there.
        to: u64,
    },
}

/// How messages left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The remote end confirmed.
    pub delivered: u64,
    /// No attempt could have succeeded.
    pub rejected: u64,
    /// Given up as the strategy says, or not understood.
    pub skipped: u64,
    /// Too old, or removed by retention.
    pub expired: u64,
}

impl Settled {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.delivered + self.rejected + self.skipped + self.expired
    }
}

/// One message partition. `M` is the message as the sink takes it.
#[derive(Debug)]
pub struct Partition<M> {
    settings: Settings,
    lane: u8,
    /// From the first message that has not left.
    entries: VecDeque<Entry<M>>,
    /// Number of `entries[0]`.
    base: u64,
    ready: VecDeque<u64>,
    waiting: BTreeSet<(Millis, u64)>,
    /// In order of submission, so by deadline; attempts that were answered stay until they are at the front.
    deadlines: VecDeque<(Millis, Ticket)>,
    /// With [`Ordering::Key`]: keys with a message under way, and what waits behind it.
    keys: HashMap<u64, VecDeque<u64>>,
    packs: VecDeque<Pack>,
    pack_base: u64,
    in_flight: usize,
    unsettled: usize,
    bytes: usize,
    position: Option<u64>,
    seen: u64,
    settled: Settled,
    processor: Processor,
    late: u64,
    notices: VecDeque<Notice>,
}

#[derive(Debug)]
struct Entry<M> {
    offset: u64,
    key: u64,
    weight: usize,
    expires_at_ms: i64,
    pack: u64,
    attempts: u32,
    state: State,
    message: Option<M>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// May be submitted.
    Ready,
    /// Behind another one of its key.
    Blocked,
    InFlight,
    /// Until the next attempt.
    Waiting,
    Left,
}

#[derive(Clone, Copy, Debug)]
enum Exit {
    Delivered,
    Rejected,
    Skipped,
    Expired,
}

/// For the counters of iterations: a round is the n-th attempt of all messages of a pack that need one.
#[derive(Debug, Default)]
struct Pack {
    unsettled: usize,
    /// Rounds that are counted as failed.
    failed_rounds: u32,
    /// The last round so far.
    last_round: u32,
    /// The last round in which a message was given up.
    given_up_in: u32,
}

impl<M: Clone> Partition<M> {
    /// A partition that has read nothing. `lane` tells the partitions of a shard apart in tickets.
    pub fn new(settings: Settings, lane: u8) -> Self {
        Self {
            settings,
            lane,
            entries: VecDeque::new(),
            base: 0,
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            deadlines: VecDeque::new(),
            keys: HashMap::new(),
            packs: VecDeque::new(),
            pack_base: 0,
            in_flight: 0,
            unsettled: 0,
            bytes: 0,
            position: None,
            seen: 0,
            settled: Settled::default(),
            processor: Processor::default(),
            late: 0,
            notices: VecDeque::new(),
        }
    }

    /// Takes what one poll returned. Offsets that were taken before are left out.
    pub fn take(&mut self, items: impl IntoIterator<Item = Item<M>>) {
        let pack = self.pack_base + self.packs.len() as u64;
        self.packs.push_back(Pack::default());
        for item in items {
            if self.position.is_some_and(|position| item.offset < position) {
                continue;
            }
            self.position = Some(item.offset + 1);
            self.seen += 1;
            let number = self.base + self.entries.len() as u64;
            let mut entry = Entry {
                offset: item.offset,
                key: item.key,
                weight: item.weight,
                expires_at_ms: item.expires_at_ms,
                pack,
                attempts: 0,
                state: State::Ready,
                message: item.message,
            };
            if entry.message.is_none() {
                entry.state = State::Left;
                self.settled.skipped += 1;
                self.entries.push_back(entry);
                continue;
            }
            if self.settings.ordering == Ordering::Key {
                if let Some(behind) = self.keys.get_mut(&item.key) {
                    behind.push_back(number);
                    entry.state = State::Blocked;
                } else {
                    self.keys.insert(item.key, VecDeque::new());
                }
            }
            if entry.state == State::Ready {
                self.ready.push_back(number);
            }
            self.unsettled += 1;
            self.bytes += item.weight;
            self.packs.back_mut().expect("pushed above").unsettled += 1;
            self.entries.push_back(entry);
        }
        self.trim();
    }

    /// Retention removed what lies from `from` to below `to`.
    pub fn gap(&mut self, from: u64, to: u64) {
        let from = self.position.map_or(from, |position| from.max(position));
        if to > from {
            self.seen += to - from;
            self.settled.expired += to - from;
            self.position = Some(to);
            self.notices.push_back(Notice::Gap { from, to });
        }
    }

    /// The bus says that there is nothing below `position` beyond what was taken (compaction, transaction markers).
    pub fn reached(&mut self, position: u64) {
        self.position = Some(self.position.map_or(position, |held| held.max(position)));
    }

    /// The next attempt, if there is one and the window has room. It is not begun until [`Partition::submitted`].
    /// `wall_ms` is the time since 1970, for messages that expire.
    pub fn next(&mut self, wall_ms: i64) -> Option<(Ticket, &M)> {
        if self.in_flight >= self.settings.window_messages {
            return None;
        }
        let number = loop {
            let number = *self.ready.front()?;
            let entry = self.entry(number);
            if entry.expires_at_ms <= 0 || wall_ms < entry.expires_at_ms {
                break number;
            }
            let offset = entry.offset;
            self.ready.pop_front();
            match self.notices.back_mut() {
                Some(Notice::Expired { count, .. }) => *count += 1,
                _ => self.notices.push_back(Notice::Expired { first: offset, count: 1 }),
            }
            self.leave(number, Exit::Expired);
        };
        let lane = self.lane;
        let entry = self.entry(number);
        let message = entry.message.as_ref().expect("a message is kept until it has left");
        Some((ticket(lane, number, entry.attempts + 1), message))
    }

    /// The attempt that [`Partition::next`] returned was handed to the sink.
    pub fn submitted(&mut self, now: Millis) {
        let Some(number) = self.ready.pop_front() else { return };
        let deadline = now + self.settings.attempt_timeout;
        let lane = self.lane;
        let entry = self.entry(number);
        entry.state = State::InFlight;
        entry.attempts += 1;
        let ticket = ticket(lane, number, entry.attempts);
        let (pack, round) = (entry.pack, entry.attempts);
        self.deadlines.push_back((deadline, ticket));
        self.in_flight += 1;
        self.processor.total += 1;
        let pack = self.pack(pack);
        pack.last_round = pack.last_round.max(round);
        // One attempt without an answer at the front must not let the answered ones behind it pile up.
        if self.deadlines.len() > 1024 + 4 * self.in_flight {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines.retain(|(_, ticket)| self.under_way(*ticket).is_some());
            self.deadlines = deadlines;
        }
    }

    /// An answer of the sink. One that comes after the attempt's timeout is counted as late and changes nothing.
    pub fn answered(&mut self, now: Millis, ticket: Ticket, answer: Answer) {
        let Some(number) = self.under_way(ticket) else {
            self.late += 1;
            return;
        };
        self.in_flight -= 1;
        match answer {
            Answer::Delivered => {
                self.processor.successful += 1;
                self.leave(number, Exit::Delivered);
            }
            Answer::Rejected { text } => {
                self.processor.failed += 1;
                self.give_up(number, text, Exit::Rejected);
            }
            Answer::Retry { after, text } => {
                if self.has_attempts_left(number) {
                    self.processor.tmp_failed += 1;
                    self.try_again(now, number, after, text);
                } else {
                    self.processor.failed += 1;
                    self.give_up(number, text, Exit::Skipped);
                }
            }
        }
    }

    /// Time has passed: attempts without an answer time out, waiting ones become ready.
    pub fn tick(&mut self, now: Millis) {
        while let Some(&(deadline, ticket)) = self.deadlines.front() {
            let under_way = self.under_way(ticket);
            if under_way.is_some() && deadline > now {
                break;
            }
            self.deadlines.pop_front();
            let Some(number) = under_way else { continue };
            self.in_flight -= 1;
            let text = format!("no answer within {} ms", self.settings.attempt_timeout.as_millis());
            if self.has_attempts_left(number) {
                self.processor.tmp_timeout += 1;
                self.try_again(now, number, None, text);
            } else {
                self.processor.timeout += 1;
                self.give_up(number, text, Exit::Skipped);
            }
        }
        while let Some(&(at, number)) = self.waiting.first() {
            if at > now {
                break;
            }
            self.waiting.pop_first();
            self.entry(number).state = State::Ready;
            // The oldest first: it holds the commit back.
            self.ready.push_front(number);
        }
    }

    /// When [`Partition::tick`] has something to do.
    pub fn next_deadline(&mut self) -> Option<Millis> {
        while let Some(&(_, ticket)) = self.deadlines.front()
            && self.under_way(ticket).is_none()
        {
            self.deadlines.pop_front();
        }
        let timeout = self.deadlines.front().map(|(at, _)| *at);
        let retry = self.waiting.first().map(|(at, _)| *at);
        [timeout, retry].into_iter().flatten().min()
    }

    /// Everything below has left, or was never there. `None`: nothing is known yet.
    pub fn commit_position(&self) -> Option<u64> {
        self.entries.front().map_or(self.position, |entry| Some(entry.offset))
    }

    /// Whether there is room for another pack.
    pub fn wants_more(&self) -> bool {
        self.unsettled - self.in_flight < self.settings.window_messages
            && self.bytes < self.settings.window_bytes
            // What left behind one that has not: bounded, however long that one is tried.
            && self.entries.len() < 16 * self.settings.window_messages.max(64)
    }

    /// Attempts that wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Messages that have not left, those in flight included.
    pub fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// Bytes of the messages that have not left.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records that were taken or found missing: always `settled().total() + unsettled()`.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// How messages left.
    pub fn settled(&self) -> Settled {
        self.settled
    }

    /// TBMQ's counters.
    pub fn processor(&self) -> Processor {
        self.processor
    }

    /// Answers that came after their attempt had timed out, or that nobody had asked for.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// The next thing to tell. To be drained after each input.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    fn entry(&mut self, number: u64) -> &mut Entry<M> {
        &mut self.entries[(number - self.base) as usize]
    }

    fn pack(&mut self, pack: u64) -> &mut Pack {
        &mut self.packs[(pack - self.pack_base) as usize]
    }

    /// The number of the message whose current attempt this is.
    fn under_way(&self, ticket: Ticket) -> Option<u64> {
        let distance = ((ticket >> 16).wrapping_sub(self.base)) & MESSAGE_MASK;
        let entry = self.entries.get(usize::try_from(distance).ok()?)?;
        let is_current = entry.state == State::InFlight
            && entry.attempts & 0xffff == (ticket & 0xffff) as u32
            && lane_of(ticket) == self.lane;
        is_current.then_some(self.base + distance)
    }

    fn has_attempts_left(&mut self, number: u64) -> bool {
        let attempts = self.entry(number).attempts;
        match self.settings.strategy {
            AckStrategy::SkipAll => false,
            AckStrategy::RetryAll => self.settings.retries == 0 || attempts <= self.settings.retries,
        }
    }

    fn try_again(&mut self, now: Millis, number: u64, after: Option<Duration>, text: String) {
        let at = now + after.unwrap_or_default().max(self.settings.pause);
        let entry = self.entry(number);
        entry.state = State::Waiting;
        let (offset, pack, round) = (entry.offset, entry.pack, entry.attempts);
        self.waiting.insert((at, number));
        let pack = self.pack(pack);
        if round > pack.failed_rounds {
            pack.failed_rounds = round;
            self.processor.failed_iterations += 1;
        }
        self.notices.push_back(Notice::Failed { offset, text, is_retried: true });
    }

    fn give_up(&mut self, number: u64, text: String, exit: Exit) {
        let entry = self.entry(number);
        let (offset, pack, round) = (entry.offset, entry.pack, entry.attempts);
        let pack = self.pack(pack);
        pack.given_up_in = pack.given_up_in.max(round);
        self.notices.push_back(Notice::Failed { offset, text, is_retried: false });
        self.leave(number, exit);
    }

    fn leave(&mut self, number: u64, exit: Exit) {
        match exit {
            Exit::Delivered => self.settled.delivered += 1,
            Exit::Rejected => self.settled.rejected += 1,
            Exit::Skipped => self.settled.skipped += 1,
            Exit::Expired => self.settled.expired += 1,
        }
        let entry = self.entry(number);
        entry.state = State::Left;
        entry.message = None;
        let (key, weight, pack) = (entry.key, entry.weight, entry.pack);
        self.bytes -= weight;
        self.unsettled -= 1;
        if self.settings.ordering == Ordering::Key
            && let Some(behind) = self.keys.get_mut(&key)
        {
            if let Some(next) = behind.pop_front() {
                self.entry(next).state = State::Ready;
                self.ready.push_back(next);
            } else {
                self.keys.remove(&key);
            }
        }
        self.pack(pack).unsettled -= 1;
        self.trim();
    }

    /// Removes what has left from the front, and counts packs that are done.
    fn trim(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.state == State::Left) {
            self.entries.pop_front();
            self.base += 1;
        }
        while let Some(pack) = self.packs.front()
            && pack.unsettled == 0
        {
            if pack.last_round > 0 {
                if pack.given_up_in < pack.last_round {
                    self.processor.successful_iterations += 1;
                } else if pack.given_up_in > pack.failed_rounds {
                    self.processor.failed_iterations += 1;
                }
            }
            self.packs.pop_front();
            self.pack_base += 1;
        }
    }
}

fn ticket(lane: u8, number: u64, attempt: u32) -> Ticket {
    u64::from(lane) << 56 | (number & MESSAGE_MASK) << 16 | u64::from(attempt & 0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(strategy: AckStrategy, retries: u32) -> Settings {
        Settings {
            strategy,
            retries,
            pause: Duration::from_millis(10),
            attempt_timeout: Duration::from_millis(100),
            window_messages: 4,
            ..Settings::default()
        }
    }

    fn item(offset: u64) -> Item<u64> {
        Item { offset, key: offset % 3, weight: 10, expires_at_ms: 0, message: Some(offset) }
    }

    fn partition(settings: Settings, offsets: std::ops::Range<u64>) -> Partition<u64> {
        let mut partition = Partition::new(settings, 7);
        partition.take(offsets.map(item));
        partition
    }

    /// Submits all that may be, and returns ticket and message of each.
    fn submit(partition: &mut Partition<u64>, now: Millis) -> Vec<(Ticket, u64)> {
        let mut submitted = Vec::new();
        while let Some((ticket, message)) = partition.next(now.0 as i64) {
            submitted.push((ticket, *message));
            partition.submitted(now);
        }
        submitted
    }

    fn messages(submitted: &[(Ticket, u64)]) -> Vec<u64> {
        submitted.iter().map(|(_, message)| *message).collect()
    }

    fn retry() -> Answer {
        Answer::Retry { after: None, text: "down".to_owned() }
    }

    #[test]
    fn the_commit_waits_for_the_oldest_and_the_window_is_kept() {
        let mut partition = partition(settings(AckStrategy::SkipAll, 0), 10..16);
        let sent = submit(&mut partition, Millis(0));
        assert_eq!(messages(&sent), [10, 11, 12, 13]);
        assert_eq!(partition.commit_position(), Some(10));
        partition.answered(Millis(1), sent[1].0, Answer::Delivered);
        assert_eq!(partition.commit_position(), Some(10));
        partition.answered(Millis(1), sent[0].0, Answer::Delivered);
        assert_eq!(partition.commit_position(), Some(12));
        assert_eq!(messages(&submit(&mut partition, Millis(1))), [14, 15]);
        assert_eq!(lane_of(sent[0].0), 7);
    }

    #[test]
    fn skip_all_gives_each_message_one_attempt_timeouts_too() {
        let mut partition = partition(settings(AckStrategy::SkipAll, 5), 0..3);
        let sent = submit(&mut partition, Millis(0));
        partition.answered(Millis(1), sent[0].0, retry());
        partition.answered(Millis(1), sent[1].0, Answer::Delivered);
        assert_eq!(partition.next_deadline(), Some(Millis(100)));
        partition.tick(Millis(100));
        assert_eq!(partition.settled(), Settled { delivered: 1, skipped: 2, ..Settled::default() });
        assert_eq!(
            partition.processor(),
            Processor {
                total: 3,
                successful: 1,
                timeout: 1,
                failed: 1,
                failed_iterations: 1,
                ..Processor::default()
            }
        );
        let notices: Vec<_> = std::iter::from_fn(|| partition.poll_notice()).collect();
        assert_eq!(
            notices,
            [
                Notice::Failed { offset: 0, text: "down".to_owned(), is_retried: false },
                Notice::Failed { offset: 2, text: "no answer within 100 ms".to_owned(), is_retried: false },
            ]
        );
        assert_eq!((partition.commit_position(), partition.next_deadline()), (Some(3), None));
    }

    #[test]
    fn retry_all_makes_as_many_attempts_as_it_says() {
        for retries in [1, 5] {
            let mut partition = partition(settings(AckStrategy::RetryAll, retries), 0..1);
            let mut attempts = 0;
            let mut now = Millis(0);
            while partition.unsettled() > 0 {
                for (ticket, _) in submit(&mut partition, now) {
                    attempts += 1;
                    partition.answered(now, ticket, retry());
                }
                now = partition.next_deadline().unwrap_or(now);
                partition.tick(now);
            }
            assert_eq!(attempts, retries + 1);
            assert_eq!(now, Millis(10 * u64::from(retries)), "a pause before each further attempt");
            let processor = partition.processor();
            assert_eq!((processor.tmp_failed, processor.failed), (u64::from(retries), 1));
            assert_eq!(
                (processor.successful_iterations, processor.failed_iterations),
                (0, u64::from(attempts))
            );
        }
    }

    #[test]
    fn no_limit_of_retries_goes_on_until_delivered() {
        let mut partition = partition(settings(AckStrategy::RetryAll, 0), 0..2);
        let mut now = Millis(0);
        for round in 0..70_000 {
            for (ticket, message) in submit(&mut partition, now) {
                let answer = if message == 0 || round == 69_999 { Answer::Delivered } else { retry() };
                partition.answered(now, ticket, answer);
            }
            while partition.poll_notice().is_some() {}
            assert_eq!(partition.commit_position(), Some(if round == 69_999 { 2 } else { 1 }));
            now = now + Duration::from_millis(10);
            partition.tick(now);
        }
        assert_eq!(partition.processor().successful_iterations, 1);
        assert_eq!(partition.processor().failed_iterations, 69_999);
    }

    #[test]
    fn a_sink_may_ask_for_a_longer_pause() {
        let mut partition = partition(settings(AckStrategy::RetryAll, 1), 0..1);
        let sent = submit(&mut partition, Millis(0));
        let after = Some(Duration::from_secs(9));
        partition.answered(Millis(0), sent[0].0, Answer::Retry { after, text: String::new() });
        assert_eq!(partition.next_deadline(), Some(Millis(9000)));
    }

    #[test]
    fn a_rejected_message_is_never_retried() {
        let mut partition = partition(settings(AckStrategy::RetryAll, 0), 0..1);
        let sent = submit(&mut partition, Millis(0));
        partition.answered(Millis(0), sent[0].0, Answer::Rejected { text: "no".to_owned() });
        assert_eq!(partition.settled(), Settled { rejected: 1, ..Settled::default() });
        assert_eq!((partition.commit_position(), partition.processor().failed), (Some(1), 1));
    }

    #[test]
    fn a_late_answer_changes_nothing_and_the_retry_has_a_new_ticket() {
        let mut partition = partition(settings(AckStrategy::RetryAll, 1), 0..1);
        let first = submit(&mut partition, Millis(0));
        partition.tick(Millis(100));
        partition.answered(Millis(101), first[0].0, Answer::Delivered);
        partition.tick(Millis(110));
        let second = submit(&mut partition, Millis(110));
        assert_ne!(first[0].0, second[0].0);
        partition.answered(Millis(111), first[0].0, Answer::Delivered);
        assert_eq!((partition.late(), partition.in_flight(), partition.commit_position()), (2, 1, Some(0)));
        partition.answered(Millis(111), second[0].0, Answer::Delivered);
        assert_eq!(partition.settled().delivered, 1);
    }

    #[test]
    fn a_gap_is_counted_and_told_once() {
        let mut partition = partition(settings(AckStrategy::SkipAll, 0), 0..1);
        partition.gap(1, 11);
        partition.gap(5, 11);
        assert_eq!(partition.commit_position(), Some(0), "the message before the gap is not settled");
        let sent = submit(&mut partition, Millis(0));
        partition.answered(Millis(0), sent[0].0, Answer::Delivered);
        assert_eq!(partition.commit_position(), Some(11));
        assert_eq!(partition.settled(), Settled { delivered: 1, expired: 10, ..Settled::default() });
        assert_eq!(partition.poll_notice(), Some(Notice::Gap { from: 1, to: 11 }));
        assert_eq!(partition.poll_notice(), None);
    }

    #[test]
    fn an_expired_message_is_not_submitted_again() {
        let mut partition = Partition::new(settings(AckStrategy::RetryAll, 0), 0);
        partition.take((0..3).map(|offset| Item { expires_at_ms: 50, ..item(offset) }));
        let sent = submit(&mut partition, Millis(49));
        partition.answered(Millis(49), sent[0].0, retry());
        partition.answered(Millis(49), sent[1].0, retry());
        partition.answered(Millis(49), sent[2].0, Answer::Delivered);
        while partition.poll_notice().is_some() {}
        partition.tick(Millis(60));
        assert_eq!(submit(&mut partition, Millis(60)), []);
        assert_eq!(partition.settled(), Settled { delivered: 1, expired: 2, ..Settled::default() });
        assert!(matches!(partition.poll_notice(), Some(Notice::Expired { count: 2, .. })));
    }

    #[test]
    fn an_unreadable_record_is_skipped_and_holds_nothing_back() {
        let mut partition = Partition::<u64>::new(settings(AckStrategy::SkipAll, 0), 0);
        partition.take([Item { message: None, ..item(4) }]);
        assert_eq!((partition.commit_position(), partition.settled().skipped), (Some(5), 1));
        partition.reached(8);
        assert_eq!(partition.commit_position(), Some(8));
    }

    #[test]
    fn with_key_order_one_of_a_key_is_in_flight_and_a_retry_blocks_its_key_only() {
        let mut settings = settings(AckStrategy::RetryAll, 0);
        settings.ordering = Ordering::Key;
        let mut partition = partition(settings, 0..6);
        let sent = submit(&mut partition, Millis(0));
        assert_eq!(messages(&sent), [0, 1, 2]);
        partition.answered(Millis(0), sent[0].0, retry());
        partition.answered(Millis(0), sent[1].0, Answer::Delivered);
        assert_eq!(messages(&submit(&mut partition, Millis(0))), [4]);
        partition.tick(Millis(10));
        assert_eq!(messages(&submit(&mut partition, Millis(10))), [0], "the failed one goes before 3");
    }

    #[test]
    fn it_wants_no_more_than_fits() {
        let mut partition =
            Partition::new(Settings { window_bytes: 25, ..settings(AckStrategy::SkipAll, 0) }, 0);
        assert!(partition.wants_more());
        partition.take((0..3).map(item));
        assert!(!partition.wants_more(), "bytes");
        let sent = submit(&mut partition, Millis(0));
        partition.answered(Millis(0), sent[0].0, Answer::Delivered);
        assert!(partition.wants_more());
    }

    #[derive(Clone, Debug)]
    enum Action {
        Take(u64),
        Gap(u64),
        Submit,
        Answer { which: usize, kind: u8 },
        Late { which: usize },
        Pass(u64),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            2 => (1..8_u64).prop_map(Action::Take),
            1 => (1..5_u64).prop_map(Action::Gap),
            3 => Just(Action::Submit),
            5 => (any::<usize>(), 0..4_u8).prop_map(|(which, kind)| Action::Answer { which, kind }),
            1 => any::<usize>().prop_map(|which| Action::Late { which }),
            2 => (1..150_u64).prop_map(Action::Pass),
        ]
    }

    proptest! {
        #[test]
        fn every_offset_leaves_once_and_the_commit_never_passes_one_that_has_not(
            actions in prop::collection::vec(action(), 1..200),
            retry_all in any::<bool>(),
            by_key in any::<bool>(),
            retries in prop::sample::select(vec![0_u32, 1, 5]),
        ) {
            let strategy = if retry_all { AckStrategy::RetryAll } else { AckStrategy::SkipAll };
            let mut settings = settings(strategy, retries);
            settings.ordering = if by_key { Ordering::Key } else { Ordering::None };
            let mut partition = Partition::new(settings, 1);
            let mut now = Millis(0);
            let mut end = 0;
            let mut open: Vec<(Ticket, u64)> = Vec::new();
            let mut answered: Vec<Ticket> = Vec::new();
            let mut delivered: Vec<u64> = Vec::new();
            let mut attempts: HashMap<u64, u32> = HashMap::new();
            let finish = actions.len();
            for step in 0.. {
                let action = match actions.get(step) {
                    Some(action) => action.clone(),
                    // Then everything is delivered, until nothing is left.
                    None if partition.unsettled() == 0 => break,
                    None if step > finish + 5_000 => return Err(TestCaseError::fail("it never ends")),
                    None => match step % 3 {
                        0 => Action::Submit,
                        1 => Action::Answer { which: 0, kind: 0 },
                        _ => Action::Pass(1),
                    },
                };
                match action {
                    Action::Take(count) if partition.wants_more() => {
                        partition.take((end..end + count).map(item));
                        end += count;
                    }
                    Action::Gap(count) => {
                        partition.gap(end, end + count);
                        end += count;
                    }
                    Action::Submit => {
                        for (ticket, message) in submit(&mut partition, now) {
                            prop_assert!(!answered.contains(&ticket) && open.iter().all(|(t, _)| *t != ticket));
                            if by_key {
                                prop_assert!(open.iter().all(|(_, other)| other % 3 != message % 3));
                            }
                            let attempts = attempts.entry(message).or_default();
                            *attempts += 1;
                            let limit = match (retry_all, retries) {
                                (false, _) => 1,
                                (true, 0) => u32::MAX,
                                (true, retries) => retries + 1,
                            };
                            prop_assert!(*attempts <= limit);
                            open.push((ticket, message));
                        }
                    }
                    Action::Answer { which, kind } if !open.is_empty() => {
                        let (ticket, message) = open.remove(which % open.len());
                        let answer = match kind {
                            0 | 1 => Answer::Delivered,
                            2 => retry(),
                            _ => Answer::Rejected { text: String::new() },
                        };
                        if answer == Answer::Delivered {
                            prop_assert!(!delivered.contains(&message));
                            delivered.push(message);
                        }
                        answered.push(ticket);
                        partition.answered(now, ticket, answer);
                    }
                    Action::Late { which } if !answered.is_empty() => {
                        let late = partition.late();
                        partition.answered(now, answered[which % answered.len()], Answer::Delivered);
                        prop_assert_eq!(partition.late(), late + 1);
                    }
                    Action::Pass(millis) => {
                        now = now + Duration::from_millis(millis);
                        partition.tick(now);
                        // Those that timed out get no answer that counts any more.
                        let timed_out: Vec<_> = open.iter().filter(|(t, _)| partition.under_way(*t).is_none()).copied().collect();
                        open.retain(|entry| !timed_out.contains(entry));
                        answered.extend(timed_out.iter().map(|(ticket, _)| *ticket));
                    }
                    _ => {}
                }
                while partition.poll_notice().is_some() {}
                prop_assert_eq!(partition.in_flight(), open.len());
                prop_assert_eq!(partition.seen(), end);
                prop_assert_eq!(partition.settled().total() + partition.unsettled() as u64, end);
                prop_assert_eq!(partition.settled().delivered, delivered.len() as u64);
                let commit = partition.commit_position().unwrap_or(0);
                prop_assert!(commit <= end && open.iter().all(|(_, message)| commit <= *message));
            }
            prop_assert_eq!(partition.commit_position().unwrap_or(0), end);
            prop_assert_eq!(partition.bytes(), 0);
            let p = partition.processor();
            prop_assert_eq!(p.total, p.successful + p.tmp_failed + p.tmp_timeout + p.failed + p.timeout);
        }
    }
}
