//! The control plane's end of the validation exchange (architecture §4.3, §4.19).
//!
//! An exchange is one question of a caller. It is asked under a first request id and, as long as no executor has
//! answered, again every [`ASK_EVERY`] under a new one: another key, so another partition and perhaps another
//! executor, which need not be in restoration. One deadline holds for all, the first reply wins, and every request key
//! that was written is withdrawn once the exchange has ended.
//!
//! Invariant: every exchange that enters leaves exactly once, as one of [`End`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroUsize,
    time::Duration,
};

use uuid::Uuid;

use crate::{Millis, wire::ValidationReply};

/// How long a request may stay unanswered before the next is sent.
pub const ASK_EVERY: Duration = Duration::from_secs(5);

/// A request that could not be answered within this time before the deadline is not sent.
pub const TIME_TO_ANSWER: Duration = Duration::from_secs(2);

/// The pending exchanges of one control plane.
#[derive(Debug)]
pub struct Validations {
    limit: NonZeroUsize,
    pending: BTreeMap<ExchangeId, Pending>,
    /// Request id → its exchange; per pending exchange at most one for each [`ASK_EVERY`] of its patience.
    requests: BTreeMap<Uuid, ExchangeId>,
    timers: BTreeSet<(Millis, ExchangeId)>,
    outbox: VecDeque<Step>,
}

/// An exchange: the id of its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub Uuid);

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the request of `exchange` under this id, with this deadline.
    Send {
        /// The exchange.
        exchange: ExchangeId,
        /// Id and key of the request.
        request: Uuid,
        /// When the exchange ends at the latest.
        deadline: Millis,
    },
    /// Write a tombstone for this request key.
    Withdraw {
        /// The exchange that has ended.
        exchange: ExchangeId,
        /// Key of the request.
        request: Uuid,
    },
    /// Tell the caller.
    Ended {
        /// The exchange.
        exchange: ExchangeId,
        /// How it ended.
        end: End,
    },
}

/// How an exchange ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// An executor answered.
    Answered(ValidationReply),
    /// Nobody answered in time, or the caller went away.
    Expired,
    /// No request was written, or the bus has not confirmed any in time.
    Undelivered(String),
}

/// There are too many exchanges at once; nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} validations are pending already")]
pub struct TooManyPending {
    /// The limit.
    pub limit: NonZeroUsize,
}

#[derive(Debug)]
struct Pending {
    deadline: Millis,
    /// When the timer of this exchange rings: for the next request, or at the deadline.
    alarm: Millis,
    /// Whether the bus has confirmed a request.
    written: bool,
    /// Requests that were sent and did not fail.
    alive: Vec<Uuid>,
    /// Every request that was sent: each may have been written.
    sent: Vec<Uuid>,
}

impl Validations {
    /// A machine that holds at most `limit` exchanges.
    pub fn new(limit: NonZeroUsize) -> Self {
        Self {
            limit,
            pending: BTreeMap::new(),
            requests: BTreeMap::new(),
            timers: BTreeSet::new(),
            outbox: VecDeque::new(),
        }
    }

    /// Starts an exchange that ends after `patience` at the latest. `id` is a fresh random id for its first request.
    ///
    /// # Errors
    /// When the limit is reached.
    pub fn request(
        &mut self,
        now: Millis,
        id: Uuid,
        patience: Duration,
    ) -> Result<ExchangeId, TooManyPending> {
        if self.pending.len() >= self.limit.get() {
            return Err(TooManyPending { limit: self.limit });
        }
        let exchange = ExchangeId(id);
        let deadline = now + patience;
        let alarm = next_alarm(now, deadline);
        let pending = Pending { deadline, alarm, written: false, alive: vec![id], sent: vec![id] };
        self.pending.insert(exchange, pending);
        self.requests.insert(id, exchange);
        self.timers.insert((alarm, exchange));
        self.outbox.push_back(Step::Send { exchange, request: id, deadline });
        Ok(exchange)
    }

    /// Takes a reply; `false` when nobody waits for it (any more).
    pub fn reply(&mut self, reply: ValidationReply) -> bool {
        let Some(exchange) = self.requests.get(&reply.id).copied() else { return false };
        self.end(exchange, End::Answered(reply));
        true
    }

    /// Takes note that the bus has confirmed a request.
    pub fn written(&mut self, request: Uuid) {
        let Some(exchange) = self.requests.get(&request) else { return };
        if let Some(pending) = self.pending.get_mut(exchange) {
            pending.written = true;
        }
    }

    /// Takes note that a request could not be written. The exchange goes on while another request of it is out.
    pub fn undelivered(&mut self, request: Uuid, reason: &str) {
        let Some(exchange) = self.requests.get(&request).copied() else { return };
        let Some(pending) = self.pending.get_mut(&exchange) else { return };
        pending.alive.retain(|id| *id != request);
        if pending.alive.is_empty() {
            self.end(exchange, End::Undelivered(reason.to_owned()));
        }
    }

    /// Ends an exchange whose caller has gone away.
    pub fn cancel(&mut self, exchange: ExchangeId) {
        self.end(exchange, End::Expired);
    }

    /// Lets time pass: asks again, and ends what is at its deadline. `next_id` gives a fresh random id for each request
    /// that is sent.
    pub fn tick(&mut self, now: Millis, mut next_id: impl FnMut() -> Uuid) {
        while let Some(&(alarm, exchange)) = self.timers.first() {
            if alarm > now {
                break;
            }
            let Some(pending) = self.pending.get_mut(&exchange) else {
                self.timers.remove(&(alarm, exchange));
                continue;
            };
            if pending.deadline <= now {
                // A bus that is away is told apart from a silent executor.
                let end = if pending.written {
                    End::Expired
                } else {
                    End::Undelivered("the bus has not confirmed the request".to_owned())
                };
                self.end(exchange, end);
                continue;
            }
            self.timers.remove(&(alarm, exchange));
            let deadline = pending.deadline;
            pending.alarm = next_alarm(now, deadline);
            self.timers.insert((pending.alarm, exchange));
            // A driver that comes late does not ask too late.
            if now + TIME_TO_ANSWER <= deadline {
                let request = next_id();
                pending.alive.push(request);
                pending.sent.push(request);
                self.requests.insert(request, exchange);
                self.outbox.push_back(Step::Send { exchange, request, deadline });
            }
        }
    }

    /// When [`Validations::tick`] is to be called next.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.timers.first().map(|(alarm, _)| *alarm)
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Step> {
        self.outbox.pop_front()
    }

    /// Number of exchanges that have not ended.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    fn end(&mut self, exchange: ExchangeId, end: End) {
        let Some(pending) = self.pending.remove(&exchange) else { return };
        self.timers.remove(&(pending.alarm, exchange));
        for request in pending.sent {
            self.requests.remove(&request);
            self.outbox.push_back(Step::Withdraw { exchange, request });
        }
        self.outbox.push_back(Step::Ended { exchange, end });
    }
}

/// When to look after an exchange that has just asked.
fn next_alarm(now: Millis, deadline: Millis) -> Millis {
    let next = now + ASK_EVERY;
    if next + TIME_TO_ANSWER <= deadline { next } else { deadline }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    /// The id of the `nth` further request.
    fn further(nth: u128) -> Uuid {
        id(1_000_000 + nth)
    }

    /// Gives out [`further`] ids in their order.
    fn source() -> impl FnMut() -> Uuid {
        let mut ids = (0..).map(further);
        move || ids.next().expect("there is always one more")
    }

    fn none() -> Uuid {
        panic!("nothing is to be asked")
    }

    fn machine(limit: usize) -> Validations {
        Validations::new(NonZeroUsize::new(limit).unwrap())
    }

    fn reply(request: Uuid) -> ValidationReply {
        ValidationReply {
            id: request,
            error: None,
            violations: Vec::new(),
            stages: Vec::new(),
            executor: "ie".into(),
        }
    }

    fn drain(machine: &mut Validations) -> Vec<Step> {
        std::iter::from_fn(|| machine.poll()).collect()
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn an_answered_request_ends_once_and_its_key_is_withdrawn() {
        let mut machine = machine(8);
        let exchange = machine.request(Millis(0), id(2), PATIENCE).unwrap();
        assert!(machine.reply(reply(id(2))));
        assert!(!machine.reply(reply(id(2))), "the second reply finds nobody");
        machine.tick(Millis(100_000), none);
        assert_eq!(
            drain(&mut machine),
            [
                Step::Send { exchange, request: id(2), deadline: Millis(30_000) },
                Step::Withdraw { exchange, request: id(2) },
                Step::Ended { exchange, end: End::Answered(reply(id(2))) },
            ]
        );
        assert_eq!(machine.next_deadline(), None);
    }

    #[test]
    fn every_five_seconds_the_next_request_goes_out_under_a_new_id_and_the_old_deadline() {
        let mut machine = machine(8);
        let mut ids = source();
        let deadline = Millis(31_000);
        let exchange = machine.request(Millis(1_000), id(2), PATIENCE).unwrap();
        drain(&mut machine);
        for nth in 0..5 {
            let at = Millis(6_000 + 5_000 * nth);
            assert_eq!(machine.next_deadline(), Some(at));
            machine.tick(Millis(at.0 - 1), none);
            machine.tick(at, &mut ids);
            let send = Step::Send { exchange, request: further(nth.into()), deadline };
            assert_eq!(drain(&mut machine), [send]);
        }
        // The last at 26 s; one at 31 s would be too late.
        assert_eq!(machine.next_deadline(), Some(deadline));
        // The first reply wins, whichever request it answers; all keys are withdrawn.
        assert!(machine.reply(reply(further(1))));
        assert!(!machine.reply(reply(id(2))));
        let sent = std::iter::once(id(2)).chain((0..5).map(further));
        let mut expected: Vec<_> = sent.map(|request| Step::Withdraw { exchange, request }).collect();
        expected.push(Step::Ended { exchange, end: End::Answered(reply(further(1))) });
        assert_eq!(drain(&mut machine), expected);
    }

    #[test]
    fn nothing_is_asked_within_two_seconds_of_the_deadline() {
        // (patience, time of the look, whether it asks then)
        for (patience, look, asks) in
            [(7_000, 5_000, true), (6_999, 5_000, false), (10_000, 8_000, true), (10_000, 8_001, false)]
        {
            let mut machine = machine(1);
            machine.request(Millis(0), id(2), Duration::from_millis(patience)).unwrap();
            drain(&mut machine);
            machine.tick(Millis(look), source());
            assert_eq!(drain(&mut machine).len(), usize::from(asks), "{patience} {look}");
            assert_eq!(machine.next_deadline(), Some(Millis(patience)));
        }
    }

    #[test]
    fn a_reply_after_the_deadline_is_dropped() {
        let mut machine = machine(8);
        let exchange = machine.request(Millis(0), id(2), Duration::from_millis(30)).unwrap();
        machine.written(id(2));
        machine.tick(Millis(30), none);
        assert!(!machine.reply(reply(id(2))));
        assert_eq!(drain(&mut machine).last(), Some(&Step::Ended { exchange, end: End::Expired }));
    }

    #[test]
    fn a_request_that_the_bus_never_confirmed_was_not_delivered() {
        let mut machine = machine(8);
        let exchange = machine.request(Millis(0), id(2), PATIENCE).unwrap();
        machine.tick(Millis(30_000), none);
        let last = drain(&mut machine).pop();
        assert!(matches!(last, Some(Step::Ended { exchange: e, end: End::Undelivered(_) }) if e == exchange));
    }

    #[test]
    fn the_limit_refuses_and_sends_nothing() {
        let mut machine = machine(1);
        machine.request(Millis(0), id(2), PATIENCE).unwrap();
        drain(&mut machine);
        assert!(machine.request(Millis(0), id(4), PATIENCE).is_err());
        assert_eq!(drain(&mut machine), []);
    }

    #[test]
    fn a_failed_write_ends_the_exchange_only_when_no_other_request_is_out() {
        let mut machine = machine(2);
        let first = machine.request(Millis(0), id(2), PATIENCE).unwrap();
        machine.undelivered(id(2), "away");
        let steps = drain(&mut machine);
        assert_eq!(
            steps.last(),
            Some(&Step::Ended { exchange: first, end: End::Undelivered("away".into()) })
        );
        machine.request(Millis(0), id(4), PATIENCE).unwrap();
        machine.tick(Millis(5_000), source());
        machine.undelivered(id(4), "away");
        assert_eq!(machine.pending(), 1);
        assert!(machine.reply(reply(further(0))));
    }

    #[derive(Clone, Debug)]
    enum Input {
        Request(u8),
        Reply(u8, u8),
        Undelivered(u8, u8),
        Written(u8, u8),
        Cancel(u8),
        Pass(u16),
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            any::<u8>().prop_map(|n| Input::Request(n % 16)),
            (any::<u8>(), 0..8_u8).prop_map(|(n, nth)| Input::Reply(n % 16, nth)),
            (any::<u8>(), 0..8_u8).prop_map(|(n, nth)| Input::Undelivered(n % 16, nth)),
            (any::<u8>(), 0..8_u8).prop_map(|(n, nth)| Input::Written(n % 16, nth)),
            any::<u8>().prop_map(|n| Input::Cancel(n % 16)),
            (0..8_000_u16).prop_map(Input::Pass),
        ]
    }

    proptest! {
        #[test]
        fn every_request_leaves_exactly_once(inputs in prop::collection::vec(input(), 0..200)) {
            let mut machine = machine(5);
            let mut now = Millis(0);
            let mut next = 0_u128;
            let mut slots: HashMap<u8, ExchangeId> = HashMap::new();
            let mut entered: Vec<ExchangeId> = Vec::new();
            let mut ended: HashMap<ExchangeId, usize> = HashMap::new();
            let mut sent: HashMap<ExchangeId, Vec<Uuid>> = HashMap::new();
            let mut withdrawn: HashMap<Uuid, usize> = HashMap::new();
            let mut observe = |machine: &mut Validations, now: Millis, sent: &mut HashMap<ExchangeId, Vec<Uuid>>| {
                for step in drain(machine) {
                    match step {
                        Step::Send { exchange, request, deadline } => {
                            let requests = sent.entry(exchange).or_default();
                            assert!(requests.is_empty() || now + TIME_TO_ANSWER <= deadline);
                            assert!(!requests.contains(&request), "every id is new");
                            requests.push(request);
                            assert!(requests.len() <= 6);
                        }
                        Step::Withdraw { request, .. } => *withdrawn.entry(request).or_default() += 1,
                        Step::Ended { exchange, .. } => *ended.entry(exchange).or_default() += 1,
                    }
                }
            };
            for input in inputs {
                let find = |slot: u8, nth: u8| {
                    let requests = sent.get(slots.get(&slot)?)?;
                    requests.get(usize::from(nth) % requests.len()).copied()
                };
                let mut next_id = || {
                    next += 1;
                    id(next)
                };
                match input {
                    Input::Request(slot) => {
                        if let Ok(exchange) = machine.request(now, next_id(), PATIENCE) {
                            entered.push(exchange);
                            slots.insert(slot, exchange);
                        }
                    }
                    Input::Reply(slot, nth) => if let Some(request) = find(slot, nth) {
                        machine.reply(reply(request));
                    },
                    Input::Undelivered(slot, nth) => if let Some(request) = find(slot, nth) {
                        machine.undelivered(request, "x");
                    },
                    Input::Written(slot, nth) => if let Some(request) = find(slot, nth) {
                        machine.written(request);
                    },
                    Input::Cancel(slot) => if let Some(exchange) = slots.get(&slot) {
                        machine.cancel(*exchange);
                    },
                    Input::Pass(ms) => {
                        now = now + Duration::from_millis(u64::from(ms));
                        machine.tick(now, next_id);
                    }
                }
                observe(&mut machine, now, &mut sent);
                prop_assert!(machine.pending() <= 5);
            }
            now = now + PATIENCE;
            machine.tick(now, none);
            observe(&mut machine, now, &mut sent);
            prop_assert_eq!(machine.pending(), 0);
            prop_assert_eq!(machine.next_deadline(), None);
            prop_assert!(machine.requests.is_empty());
            prop_assert_eq!(sent.len(), entered.len());
            for exchange in &entered {
                prop_assert_eq!(ended.get(exchange), Some(&1));
            }
            for request in sent.values().flatten() {
                prop_assert_eq!(withdrawn.remove(request), Some(1), "every key written is withdrawn once");
            }
            prop_assert!(withdrawn.is_empty());
        }
    }
}
