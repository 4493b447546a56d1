//! The control plane's end of the validation exchange (architecture §4.3, §4.19).
//!
//! An exchange is one question of a caller. It is asked under a first request id and, when no executor has answered
//! after [`SECOND_REQUEST_AFTER`], once more under a second one: another key, so another partition and perhaps another
//! executor, which need not be in restoration. One deadline holds for both, the first reply wins, and every request
//! key that was written is withdrawn once the exchange has ended.
//!
//! Invariant: every exchange that enters leaves exactly once, as one of [`End`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroUsize,
    time::Duration,
};

use uuid::Uuid;

use crate::{Millis, wire::ValidationReply};

/// How long the first request may stay unanswered before the second is sent.
pub const SECOND_REQUEST_AFTER: Duration = Duration::from_secs(5);

/// The pending exchanges of one control plane.
#[derive(Debug)]
pub struct Validations {
    limit: NonZeroUsize,
    pending: BTreeMap<ExchangeId, Pending>,
    /// Request id → its exchange; at most two per pending exchange.
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
    /// When the timer of this exchange rings: for the second request, or at the deadline.
    alarm: Millis,
    second: Option<Uuid>,
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

    /// Starts an exchange that ends after `patience` at the latest. `ids` are fresh random ids for its two requests.
    ///
    /// # Errors
    /// When the limit is reached.
    pub fn request(
        &mut self,
        now: Millis,
        ids: [Uuid; 2],
        patience: Duration,
    ) -> Result<ExchangeId, TooManyPending> {
        if self.pending.len() >= self.limit.get() {
            return Err(TooManyPending { limit: self.limit });
        }
        let exchange = ExchangeId(ids[0]);
        let deadline = now + patience;
        let alarm = deadline.min(now + SECOND_REQUEST_AFTER);
        let pending = Pending {
            deadline,
            alarm,
            second: Some(ids[1]),
            written: false,
            alive: vec![ids[0]],
            sent: vec![ids[0]],
        };
        self.pending.insert(exchange, pending);
        self.requests.insert(ids[0], exchange);
        self.timers.insert((alarm, exchange));
        self.outbox.push_back(Step::Send { exchange, request: ids[0], deadline });
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

    /// Lets time pass: sends second requests and ends what is at its deadline.
    pub fn tick(&mut self, now: Millis) {
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
            pending.alarm = pending.deadline;
            self.timers.insert((pending.deadline, exchange));
            if let Some(second) = pending.second.take() {
                pending.alive.push(second);
                pending.sent.push(second);
                self.requests.insert(second, exchange);
                let deadline = pending.deadline;
                self.outbox.push_back(Step::Send { exchange, request: second, deadline });
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn ids(n: u128) -> [Uuid; 2] {
        [id(2 * n), id(2 * n + 1)]
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
        let exchange = machine.request(Millis(0), ids(1), PATIENCE).unwrap();
        assert!(machine.reply(reply(id(2))));
        assert!(!machine.reply(reply(id(2))), "the second reply finds nobody");
        machine.tick(Millis(100_000));
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
    fn after_five_seconds_the_second_request_goes_out_under_a_new_id_and_the_old_deadline() {
        let mut machine = machine(8);
        let exchange = machine.request(Millis(1_000), ids(1), PATIENCE).unwrap();
        assert_eq!(machine.next_deadline(), Some(Millis(6_000)));
        machine.tick(Millis(5_999));
        drain(&mut machine);
        machine.tick(Millis(6_000));
        assert_eq!(drain(&mut machine), [Step::Send { exchange, request: id(3), deadline: Millis(31_000) }]);
        assert_eq!(machine.next_deadline(), Some(Millis(31_000)));
        // The first reply wins, whichever request it answers; both keys are withdrawn.
        assert!(machine.reply(reply(id(2))));
        assert!(!machine.reply(reply(id(3))));
        assert_eq!(
            drain(&mut machine),
            [
                Step::Withdraw { exchange, request: id(2) },
                Step::Withdraw { exchange, request: id(3) },
                Step::Ended { exchange, end: End::Answered(reply(id(2))) },
            ]
        );
    }

    #[test]
    fn a_reply_after_the_deadline_is_dropped() {
        let mut machine = machine(8);
        let exchange = machine.request(Millis(0), ids(1), Duration::from_millis(30)).unwrap();
        machine.written(id(2));
        machine.tick(Millis(30));
        assert!(!machine.reply(reply(id(2))));
        assert_eq!(drain(&mut machine).last(), Some(&Step::Ended { exchange, end: End::Expired }));
    }

    #[test]
    fn a_request_that_the_bus_never_confirmed_was_not_delivered() {
        let mut machine = machine(8);
        let exchange = machine.request(Millis(0), ids(1), PATIENCE).unwrap();
        machine.tick(Millis(30_000));
        let last = drain(&mut machine).pop();
        assert!(matches!(last, Some(Step::Ended { exchange: e, end: End::Undelivered(_) }) if e == exchange));
    }

    #[test]
    fn the_limit_refuses_and_sends_nothing() {
        let mut machine = machine(1);
        machine.request(Millis(0), ids(1), PATIENCE).unwrap();
        drain(&mut machine);
        assert!(machine.request(Millis(0), ids(2), PATIENCE).is_err());
        assert_eq!(drain(&mut machine), []);
    }

    #[test]
    fn a_failed_write_ends_the_exchange_only_when_no_other_request_is_out() {
        let mut machine = machine(2);
        let first = machine.request(Millis(0), ids(1), PATIENCE).unwrap();
        machine.undelivered(id(2), "away");
        let steps = drain(&mut machine);
        assert_eq!(
            steps.last(),
            Some(&Step::Ended { exchange: first, end: End::Undelivered("away".into()) })
        );
        machine.request(Millis(0), ids(2), PATIENCE).unwrap();
        machine.tick(Millis(5_000));
        machine.undelivered(id(4), "away");
        assert_eq!(machine.pending(), 1);
        assert!(machine.reply(reply(id(5))));
    }

    #[derive(Clone, Debug)]
    enum Input {
        Request(u8),
        Reply(u8, bool),
        Undelivered(u8, bool),
        Written(u8, bool),
        Cancel(u8),
        Pass(u16),
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            any::<u8>().prop_map(|n| Input::Request(n % 16)),
            (any::<u8>(), any::<bool>()).prop_map(|(n, second)| Input::Reply(n % 16, second)),
            (any::<u8>(), any::<bool>()).prop_map(|(n, second)| Input::Undelivered(n % 16, second)),
            (any::<u8>(), any::<bool>()).prop_map(|(n, second)| Input::Written(n % 16, second)),
            any::<u8>().prop_map(|n| Input::Cancel(n % 16)),
            (0..8_000_u16).prop_map(Input::Pass),
        ]
    }

    proptest! {
        #[test]
        fn every_request_leaves_exactly_once(inputs in prop::collection::vec(input(), 0..200)) {
            let mut machine = machine(5);
            let mut now = Millis(0);
            let mut generation = 0_u128;
            let mut current: HashMap<u8, u128> = HashMap::new();
            let mut entered: Vec<ExchangeId> = Vec::new();
            let mut ended: HashMap<ExchangeId, usize> = HashMap::new();
            let mut keys: HashMap<Uuid, i32> = HashMap::new();
            let mut observe = |machine: &mut Validations| {
                for step in drain(machine) {
                    match step {
                        Step::Send { request, .. } => *keys.entry(request).or_default() += 1,
                        Step::Withdraw { request, .. } => *keys.entry(request).or_default() -= 1,
                        Step::Ended { exchange, .. } => *ended.entry(exchange).or_default() += 1,
                    }
                }
            };
            for input in inputs {
                match input {
                    Input::Request(slot) => {
                        generation += 1;
                        if let Ok(exchange) = machine.request(now, ids(generation), PATIENCE) {
                            entered.push(exchange);
                            current.insert(slot, generation);
                        }
                    }
                    Input::Reply(slot, second) => if let Some(n) = current.get(&slot) {
                        machine.reply(reply(ids(*n)[usize::from(second)]));
                    },
                    Input::Undelivered(slot, second) => if let Some(n) = current.get(&slot) {
                        machine.undelivered(ids(*n)[usize::from(second)], "x");
                    },
                    Input::Written(slot, second) => if let Some(n) = current.get(&slot) {
                        machine.written(ids(*n)[usize::from(second)]);
                    },
                    Input::Cancel(slot) => if let Some(n) = current.get(&slot) {
                        machine.cancel(ExchangeId(ids(*n)[0]));
                    },
                    Input::Pass(ms) => {
                        now = now + Duration::from_millis(u64::from(ms));
                        machine.tick(now);
                    }
                }
                observe(&mut machine);
                prop_assert!(machine.pending() <= 5);
            }
            machine.tick(now + PATIENCE);
            observe(&mut machine);
            prop_assert_eq!(machine.pending(), 0);
            prop_assert_eq!(machine.next_deadline(), None);
            prop_assert!(machine.requests.is_empty());
            for exchange in entered {
                prop_assert_eq!(ended.get(&exchange), Some(&1));
            }
            prop_assert!(keys.values().all(|balance| *balance == 0), "every key written is withdrawn once");
        }
    }
}
