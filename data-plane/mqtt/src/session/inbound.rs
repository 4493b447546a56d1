//! Publishes of a client: which of them still wait for their records, and which packet ids are in use.

use std::collections::{HashMap, VecDeque};

use crate::packet::{Qos, ReasonCode};

/// QoS 1 and 2 publishes between their arrival and PUBACK or PUBCOMP.
///
/// Invariant: acknowledgements become due in the order of the publishes.
#[derive(Debug)]
pub(super) struct Inbound {
    max: usize,
    /// Number of the first entry of `waiting`.
    first: u64,
    waiting: VecDeque<Waiting>,
    /// QoS 2 packet ids before PUBREL; at most 65,535.
    exactly_once: HashMap<u16, Stage>,
    at_least_once: usize,
}

#[derive(Debug)]
struct Waiting {
    packet_id: u16,
    qos: Qos,
    is_routed: bool,
    /// Records submitted less records written; below 0 while outcomes are ahead of `routed`.
    records: i64,
    reason: ReasonCode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its records are being written.
    Writing,
    /// PUBREC was sent.
    Recorded,
}

/// What a publish is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A new one.
    New(u64),
    /// A repeated QoS 2 publish whose PUBREC will follow.
    Pending,
    /// A repeated QoS 2 publish whose PUBREC was sent.
    Recorded,
}

/// More publishes than the announced Receive Maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exceeded;

/// What a PUBREL met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Released {
    Known,
    Unknown,
    /// PUBREC was not sent yet.
    TooEarly,
}

/// An acknowledgement that is to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) packet_id: u16,
    pub(super) qos: Qos,
    pub(super) reason: ReasonCode,
}

impl Inbound {
    pub(super) fn new(max: u16) -> Self {
        Self {
            max: usize::from(max.max(1)),
            first: 0,
            waiting: VecDeque::new(),
            exactly_once: HashMap::new(),
            at_least_once: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= self.max
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a QoS 1 or 2 publish in; `strict` for a client that was told the maximum.
    pub(super) fn receive(&mut self, packet_id: u16, qos: Qos, strict: bool) -> Result<Received, Exceeded> {
        if qos == Qos::ExactlyOnce {
            match self.exactly_once.get(&packet_id) {
                Some(Stage::Writing) => return Ok(Received::Pending),
                Some(Stage::Recorded) => return Ok(Received::Recorded),
                None => {}
            }
        }
        if strict && self.at_least_once + self.exactly_once.len() >= self.max {
            return Err(Exceeded);
        }
        if qos == Qos::ExactlyOnce {
            self.exactly_once.insert(packet_id, Stage::Writing);
        } else {
            self.at_least_once += 1;
        }
        let number = self.first + self.waiting.len() as u64;
        self.waiting.push_back(Waiting {
            packet_id,
            qos,
            is_routed: false,
            records: 0,
            reason: ReasonCode::Success,
        });
        Ok(Received::New(number))
    }

    pub(super) fn routed(&mut self, number: u64, records: u32, matched: bool) {
        if let Some(waiting) = self.entry(number) {
            waiting.is_routed = true;
            waiting.records += i64::from(records);
            if !matched && waiting.reason == ReasonCode::Success {
                waiting.reason = ReasonCode::NoMatchingSubscribers;
            }
        }
    }

    pub(super) fn written(&mut self, number: u64, result: Result<(), ReasonCode>) {
        if let Some(waiting) = self.entry(number) {
            waiting.records -= 1;
            if let Err(reason) = result {
                waiting.reason = reason;
            }
        }
    }

    pub(super) fn refuse(&mut self, number: u64, reason: ReasonCode) {
        if let Some(waiting) = self.entry(number) {
            waiting.reason = reason;
        }
    }

    /// The next acknowledgement, if the oldest publish has all its outcomes.
    pub(super) fn next_due(&mut self) -> Option<Due> {
        if !self.waiting.front().is_some_and(|oldest| oldest.is_routed && oldest.records == 0) {
            return None;
        }
        let oldest = self.waiting.pop_front()?;
        self.first += 1;
        if self.waiting.is_empty() {
            // An idle connection keeps no buffer (architecture §4.23).
            self.waiting = VecDeque::new();
        }
        if oldest.qos == Qos::ExactlyOnce {
            if oldest.reason.is_error() {
                // MQTT 5.0 §4.3.3: the id is free again.
                self.exactly_once.remove(&oldest.packet_id);
            } else {
                self.exactly_once.insert(oldest.packet_id, Stage::Recorded);
            }
        } else {
            self.at_least_once -= 1;
        }
        Some(Due { packet_id: oldest.packet_id, qos: oldest.qos, reason: oldest.reason })
    }

    pub(super) fn release(&mut self, packet_id: u16) -> Released {
        match self.exactly_once.get(&packet_id) {
            Some(Stage::Recorded) => {
                self.exactly_once.remove(&packet_id);
                Released::Known
            }
            Some(Stage::Writing) => Released::TooEarly,
            None => Released::Unknown,
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Waiting> {
        let index = number.checked_sub(self.first)?;
        self.waiting.get_mut(usize::try_from(index).ok()?)
    }
}
