//! One message partition on the executor: from records to outcomes and commits (spec §4.5, architecture §4.20-21).
//!
//! What one poll took is a pack. Its messages are submitted within a window, each with its own attempts; the
//! strategy says what happens to those that fail or get no answer in time. Failures are told as [`Notice`]s.
//!
//! Invariants: every message leaves exactly once, as delivered, rejected, skipped, dead-lettered or expired;
//! [`Partition::commit_position`] is never beyond a message that has not left; of each submitted attempt exactly one
//! answer counts, the first one or the timeout; with dead letters a message that is given up on stays until its letter
//! is written.

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
    /// Messages in flight, at most. As many more wait to be submitted; [`HELD_PER_WINDOW`] windows are held in all.
    pub window_messages: usize,
    /// Bytes held here above which nothing more is wanted.
    pub window_bytes: usize,
    /// Whether a message that is given up on is to be written elsewhere before it leaves.
    pub dead_letters: bool,
}

/// Messages held here that wait for another one (of their key, or below them), in windows: what one slow message can
/// hold up without holding up the rest.
pub const HELD_PER_WINDOW: usize = 16;

/// Class of an attempt without an answer in time.
pub const CLASS_TIMEOUT: &str = "timeout";

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
            dead_letters: false,
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
    /// When it was written, epoch ms.
    pub timestamp_ms: i64,
    /// Epoch ms after which it is not to be delivered; 0 or less: never.
    pub expires_at_ms: i64,
    /// The message.
    pub message: M,
    /// Why it is not to be submitted at all, if so: it is given up on at once.
    pub unfit: Option<Box<Unfit>>,
    /// Whether [`Sighting`]s of it are wanted.
    pub is_watched: bool,
}

/// Why a record can't be delivered, whatever the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// A word for metrics: `unreadable`, `size`, ...
    pub class: &'static str,
    /// What is wrong, for people.
    pub text: String,
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
        /// A word for metrics.
        class: &'static str,
        /// What happened.
        text: String,
    },
    /// Failed for good.
    Rejected {
        /// A word for metrics.
        class: &'static str,
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
        /// A word for metrics.
        class: &'static str,
        /// What happened.
        text: String,
        /// Whether another attempt follows.
        is_retried: bool,
    },
    /// A record was given up on without an attempt.
    Unfit {
        /// Its offset.
        offset: u64,
        /// A word for metrics.
        class: &'static str,
        /// What is wrong with it.
        text: String,
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

/// What became of a watched message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// An attempt failed, or the message can't be delivered at all.
    Failed {
        /// A word for metrics.
        class: &'static str,
        /// What happened.
        text: String,
        /// Whether another attempt follows.
        is_retried: bool,
    },
    /// It has left; nothing comes after that.
    Left(Exit),
}

/// What keeps another pack away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As many messages wait to be submitted as may be in flight.
    Window,
    /// [`Settings::window_bytes`].
    Bytes,
    /// Too many wait for one that has not left.
    Held,
}

/// How messages left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The remote end confirmed.
    pub delivered: u64,
    /// No attempt could have succeeded.
    pub rejected: u64,
    /// Given up as the strategy says, or not fit to be submitted.
    pub skipped: u64,
    /// Given up for any reason, and written to the dead letters.
    pub dead_lettered: u64,
    /// Too old, or removed by retention.
    pub expired: u64,
}

impl Settled {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.delivered + self.rejected + self.skipped + self.dead_lettered + self.expired
    }

    fn count(&mut self, exit: Exit) {
        match exit {
            Exit::Delivered => self.delivered += 1,
            Exit::Rejected => self.rejected += 1,
            Exit::Skipped => self.skipped += 1,
            Exit::DeadLettered => self.dead_lettered += 1,
            Exit::Expired => self.expired += 1,
        }
    }
}

/// A message that was given up on, to be written elsewhere; answered by [`Partition::dead_lettered`] or
/// [`Partition::not_dead_lettered`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter<M> {
    /// For the answer.
    pub ticket: Ticket,
    /// Its offset.
    pub offset: u64,
    /// The message.
    pub message: M,
    /// A word for metrics.
    pub class: &'static str,
    /// Why it was given up on.
    pub text: String,
    /// Attempts that were made.
    pub attempts: u32,
    /// When the first one began; when it was taken, if there was none.
    pub first: Millis,
    /// When the last one ended.
    pub last: Millis,
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
    /// The remote end is known to be away.
    is_away: bool,
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
    /// Those of `settled` that lie below everything that has not left.
    settled_in_order: Settled,
    processor: Processor,
    /// Answers by which the remote end confirmed that it is at work.
    confirmed: u64,
    late: u64,
    notices: VecDeque<Notice>,
    sightings: VecDeque<(M, Sighting)>,
    letters: VecDeque<DeadLetter<M>>,
}

#[derive(Debug)]
struct Entry<M> {
    offset: u64,
    /// `None`: it waits for no other and none waits for it.
    key: Option<u64>,
    weight: usize,
    timestamp_ms: i64,
    expires_at_ms: i64,
    pack: u64,
    /// Records right behind it that retention removed before they were read.
    gap: u64,
    attempts: u32,
    /// When it was taken, then when its first attempt began.
    first: Millis,
    is_watched: bool,
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
    /// Until its dead letter is written.
    Parting,
    Left(Exit),
}

/// How a message left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The remote end confirmed.
    Delivered,
    /// No attempt could have succeeded.
    Rejected,
    /// Given up as the strategy says, or not fit to be submitted.
    Skipped,
    /// Given up for any reason, and written to the dead letters.
    DeadLettered,
    /// Too old.
    Expired,
}

/// Why an attempt failed.
struct Failure {
    class: &'static str,
    text: String,
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
            is_away: false,
            keys: HashMap::new(),
            packs: VecDeque::new(),
            pack_base: 0,
            in_flight: 0,
            unsettled: 0,
            bytes: 0,
            position: None,
            seen: 0,
            settled: Settled::default(),
            settled_in_order: Settled::default(),
            processor: Processor::default(),
            confirmed: 0,
            late: 0,
            notices: VecDeque::new(),
            sightings: VecDeque::new(),
            letters: VecDeque::new(),
        }
    }

    /// Takes what one poll returned. Offsets that were taken before are left out.
    pub fn take(&mut self, now: Millis, items: impl IntoIterator<Item = Item<M>>) {
        let pack = self.pack_base + self.packs.len() as u64;
        self.packs.push_back(Pack::default());
        let mut unfit = Vec::new();
        for item in items {
            if self.position.is_some_and(|position| item.offset < position) {
                continue;
            }
            self.position = Some(item.offset + 1);
            self.seen += 1;
            let number = self.base + self.entries.len() as u64;
            let is_keyed = self.settings.ordering == Ordering::Key && item.unfit.is_none();
            let mut entry = Entry {
                offset: item.offset,
                key: is_keyed.then_some(item.key),
                weight: item.weight,
                timestamp_ms: item.timestamp_ms,
                expires_at_ms: item.expires_at_ms,
                pack,
                gap: 0,
                attempts: 0,
                first: now,
                is_watched: item.is_watched,
                state: State::Ready,
                message: Some(item.message),
            };
            self.unsettled += 1;
            self.bytes += item.weight;
            self.packs.back_mut().expect("pushed above").unsettled += 1;
            if let Some(key) = entry.key {
                if let Some(behind) = self.keys.get_mut(&key) {
                    behind.push_back(number);
                    entry.state = State::Blocked;
                } else {
                    self.keys.insert(key, VecDeque::new());
                }
            }
            if let Some(problem) = item.unfit {
                unfit.push((number, problem));
            } else if entry.state == State::Ready {
                self.ready.push_back(number);
            }
            self.entries.push_back(entry);
        }
        for (number, problem) in unfit {
            self.refuse(now, number, *problem);
        }
        self.trim();
    }

    /// Retention removed what lies from `from` to below `to`.
    pub fn gap(&mut self, from: u64, to: u64) {
        let from = self.position.map_or(from, |position| from.max(position));
        if to > from {
            self.seen += to - from;
            self.settled.expired += to - from;
            match self.entries.back_mut() {
                Some(last) => last.gap += to - from,
                None => self.settled_in_order.expired += to - from,
            }
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
        if entry.attempts == 0 {
            entry.first = now;
        }
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

    /// The message of an attempt that waits for its answer.
    pub fn in_flight_mut(&mut self, ticket: Ticket) -> Option<&mut M> {
        let number = self.under_way(ticket)?;
        self.entry(number).message.as_mut()
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
                self.confirmed += 1;
                self.leave(number, Exit::Delivered);
            }
            Answer::Rejected { class, text } => {
                self.processor.failed += 1;
                self.confirmed += 1;
                self.give_up(now, number, Failure { class, text }, Exit::Rejected);
            }
            Answer::Retry { after, class, text } => {
                let failure = Failure { class, text };
                if self.has_attempts_left(number) {
                    self.processor.tmp_failed += 1;
                    self.try_again(now, number, after, failure);
                } else {
                    self.processor.failed += 1;
                    self.give_up(now, number, failure, Exit::Skipped);
                }
            }
        }
    }

    /// The dead letter with this ticket is written for good.
    pub fn dead_lettered(&mut self, ticket: Ticket) {
        if let Some(number) = self.number_of(ticket, State::Parting) {
            self.leave(number, Exit::DeadLettered);
        }
    }

    /// The dead letter with this ticket can never be written.
    pub fn not_dead_lettered(&mut self, ticket: Ticket) {
        if let Some(number) = self.number_of(ticket, State::Parting) {
            self.leave(number, Exit::Skipped);
        }
    }

    /// The remote end is known to be away, or is back. No attempt times out meanwhile: the sink may keep it until the
    /// remote end is back, and then it has its whole time again.
    pub fn away(&mut self, now: Millis, is_away: bool) {
        self.is_away = is_away;
        let deadline = now + self.settings.attempt_timeout;
        self.deadlines.iter_mut().for_each(|(at, _)| *at = deadline);
    }

    /// Time has passed: attempts without an answer time out, waiting ones become ready.
    pub fn tick(&mut self, now: Millis) {
        while let Some(&(deadline, ticket)) = self.deadlines.front().filter(|_| !self.is_away) {
            let under_way = self.under_way(ticket);
            if under_way.is_some() && deadline > now {
                break;
            }
            self.deadlines.pop_front();
            let Some(number) = under_way else { continue };
            self.in_flight -= 1;
            let text = format!("no answer within {} ms", self.settings.attempt_timeout.as_millis());
            let failure = Failure { class: CLASS_TIMEOUT, text };
            if self.has_attempts_left(number) {
                self.processor.tmp_timeout += 1;
                self.try_again(now, number, None, failure);
            } else {
                self.processor.timeout += 1;
                self.give_up(now, number, failure, Exit::Skipped);
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
        let timeout = self.deadlines.front().filter(|_| !self.is_away).map(|(at, _)| *at);
        let retry = self.waiting.first().map(|(at, _)| *at);
        [timeout, retry].into_iter().flatten().min()
    }

    /// Everything below has left, or was never there. `None`: nothing is known yet.
    pub fn commit_position(&self) -> Option<u64> {
        self.entries.front().map_or(self.position, |entry| Some(entry.offset))
    }

    /// How the messages below [`Partition::commit_position`] left: what a commit of that position may count, since
    /// those above it will be taken again by whoever begins there.
    pub fn settled_in_order(&self) -> Settled {
        self.settled_in_order
    }

    /// When the oldest message that has not left was written, epoch ms: the one at [`Partition::commit_position`].
    /// `None`: none is held.
    pub fn oldest_ms(&self) -> Option<i64> {
        self.entries.front().map(|entry| entry.timestamp_ms)
    }

    /// Whether there is room for another pack.
    pub fn wants_more(&self) -> bool {
        self.limit_reached().is_none()
    }

    /// Which limit keeps another pack away, if one does.
    pub fn limit_reached(&self) -> Option<Limit> {
        let window = self.settings.window_messages;
        if self.bytes >= self.settings.window_bytes {
            Some(Limit::Bytes)
        } else if self.ready.len() >= window {
            Some(Limit::Window)
        // What waits behind one that has not left, or has left behind it: bounded, however long that one is tried.
        } else if self.entries.len() >= HELD_PER_WINDOW * window.max(64) {
            Some(Limit::Held)
        } else {
            None
        }
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

    /// Answers by which the remote end showed that it is at work: it took a message, or refused it for good.
    pub fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Answers that came after their attempt had timed out, or that nobody had asked for.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// The next thing to tell. To be drained after each input.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// What became of the next watched message. To be drained after each input; empty unless [`Item::is_watched`].
    pub fn poll_sighting(&mut self) -> Option<(M, Sighting)> {
        self.sightings.pop_front()
    }

    /// The next message that is to be written elsewhere. To be drained after each input; empty unless
    /// [`Settings::dead_letters`].
    pub fn poll_dead_letter(&mut self) -> Option<DeadLetter<M>> {
        self.letters.pop_front()
    }

    fn entry(&mut self, number: u64) -> &mut Entry<M> {
        &mut self.entries[(number - self.base) as usize]
    }

    fn pack(&mut self, pack: u64) -> &mut Pack {
        &mut self.packs[(pack - self.pack_base) as usize]
    }

    /// The number of the message whose current attempt this is.
    fn under_way(&self, ticket: Ticket) -> Option<u64> {
        self.number_of(ticket, State::InFlight)
    }

    fn number_of(&self, ticket: Ticket, state: State) -> Option<u64> {
        let distance = ((ticket >> 16).wrapping_sub(self.base)) & MESSAGE_MASK;
        let entry = self.entries.get(usize::try_from(distance).ok()?)?;
        let is_current = entry.state == state
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

    fn try_again(&mut self, now: Millis, number: u64, after: Option<Duration>, failure: Failure) {
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
        self.sight_failure(number, &failure, true);
        let Failure { class, text } = failure;
        self.notices.push_back(Notice::Failed { offset, class, text, is_retried: true });
    }

    fn give_up(&mut self, now: Millis, number: u64, failure: Failure, exit: Exit) {
        let entry = self.entry(number);
        let (offset, pack, round) = (entry.offset, entry.pack, entry.attempts);
        let pack = self.pack(pack);
        pack.given_up_in = pack.given_up_in.max(round);
        self.sight_failure(number, &failure, false);
        let (class, text) = (failure.class, failure.text.clone());
        self.notices.push_back(Notice::Failed { offset, class, text, is_retried: false });
        self.part(now, number, failure, exit);
    }

    /// It counts as one attempt that has failed.
    fn refuse(&mut self, now: Millis, number: u64, unfit: Unfit) {
        self.processor.total += 1;
        self.processor.failed += 1;
        let entry = self.entry(number);
        let (offset, pack) = (entry.offset, entry.pack);
        let pack = self.pack(pack);
        pack.last_round = pack.last_round.max(1);
        pack.given_up_in = pack.given_up_in.max(1);
        let Unfit { class, text } = unfit;
        let failure = Failure { class, text };
        self.sight_failure(number, &failure, false);
        self.notices.push_back(Notice::Unfit { offset, class, text: failure.text.clone() });
        self.part(now, number, failure, Exit::Skipped);
    }

    fn sight_failure(&mut self, number: u64, failure: &Failure, is_retried: bool) {
        let entry = self.entry(number);
        if !entry.is_watched {
            return;
        }
        let message = entry.message.clone().expect("a message is kept until it has left");
        let sighting = Sighting::Failed { class: failure.class, text: failure.text.clone(), is_retried };
        self.sightings.push_back((message, sighting));
    }

    /// It has no attempts left: it leaves, now or once its dead letter is written.
    fn part(&mut self, now: Millis, number: u64, failure: Failure, exit: Exit) {
        if !self.settings.dead_letters {
            return self.leave(number, exit);
        }
        let lane = self.lane;
        let entry = self.entry(number);
        entry.state = State::Parting;
        let letter = DeadLetter {
            ticket: ticket(lane, number, entry.attempts),
            offset: entry.offset,
            message: entry.message.clone().expect("a message is kept until it has left"),
            class: failure.class,
            text: failure.text,
            attempts: entry.attempts,
            first: entry.first,
            last: now,
        };
        self.letters.push_back(letter);
    }

    fn leave(&mut self, number: u64, exit: Exit) {
        self.settled.count(exit);
        let entry = self.entry(number);
        entry.state = State::Left(exit);
        let (key, weight, pack, is_watched) = (entry.key, entry.weight, entry.pack, entry.is_watched);
        let message = entry.message.take();
        if is_watched {
            self.sightings.extend(message.map(|message| (message, Sighting::Left(exit))));
        }
        self.bytes -= weight;
        self.unsettled -= 1;
        if let Some(key) = key
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
        while let Some(Entry { state: State::Left(exit), gap, .. }) = self.entries.front() {
            self.settled_in_order.count(*exit);
            self.settled_in_order.expired += gap;
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
mod tests;
