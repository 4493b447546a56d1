//! Publishes of a client: which of them still wait for their records, and which packet ids are in use.

use std::collections::{HashMap, VecDeque};

use crate::packet::{Qos, ReasonCode};

/// QoS 1 and 2 publishes between their arrival and PUBACK or PUBCOMP.
///
/// Invariants: acknowledgements become due in the order of the publishes; a QoS 2 packet id is taken once until it is
/// released, however many connections that takes.
#[derive(Debug)]
pub(super) struct Inbound {
    max: usize,
    /// Number of the first entry of `waiting`.
    first: u64,
    waiting: VecDeque<Waiting>,
    /// QoS 2 packet ids before PUBREL; at most 65,535.
    exactly_once: HashMap<u16, Held>,
    /// Publishes of this connection that are neither acknowledged nor refused (MQTT 5.0 §4.9).
    outstanding: usize,
}

#[derive(Debug)]
struct Waiting {
    packet_id: u16,
    qos: Qos,
    is_routed: bool,
    /// Records submitted less records written; below 0 while outcomes are ahead of `routed`.
    records: i64,
    reason: ReasonCode,
    /// Its connection is gone: its acknowledgement goes to nobody.
    is_silent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    stage: Stage,
    /// It came, or came again, on this connection.
    is_counted: bool,
    /// The number of its entry in `waiting`, as long as it is there.
    number: u64,
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
    /// To be told to nobody.
    pub(super) is_silent: bool,
}

impl Inbound {
    pub(super) fn new(max: u16) -> Self {
        Self {
            max: usize::from(max.max(1)),
            first: 0,
            waiting: VecDeque::new(),
            exactly_once: HashMap::new(),
            outstanding: 0,
        }
    }

    /// What a store has kept: QoS 2 packet ids that the client has not released.
    pub(super) fn restored(max: u16, received: impl IntoIterator<Item = u16>) -> Self {
        let held = Held { stage: Stage::Recorded, is_counted: false, number: 0 };
        Self {
            exactly_once: received.into_iter().map(|packet_id| (packet_id, held)).collect(),
            ..Self::new(max)
        }
    }

    /// The connection is gone, and with it every acknowledgement that it is owed: the client sends again what it has
    /// seen none for.
    pub(super) fn park(&mut self) {
        self.outstanding = 0;
        self.waiting.iter_mut().for_each(|waiting| waiting.is_silent = true);
        self.exactly_once.values_mut().for_each(|held| held.is_counted = false);
    }

    /// A connection begins whose client is told this maximum.
    pub(super) fn begin(&mut self, max: u16) {
        self.max = usize::from(max.max(1));
    }

    /// QoS 2 packet ids that were recorded and not released, in ascending order.
    pub(super) fn received(&self) -> Vec<u16> {
        let mut ids: Vec<u16> = self.exactly_once.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= self.max
    }

    /// The number of the oldest publish that is not acknowledged, or of the next one.
    pub(super) fn acknowledged_below(&self) -> u64 {
        self.first
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a QoS 1 or 2 publish in; `strict` for a client that was told the maximum.
    pub(super) fn receive(
        &mut self,
        packet_id: u16,
        qos: Qos,
        dup: bool,
        strict: bool,
    ) -> Result<Received, Exceeded> {
        let held = self.exactly_once.get(&packet_id).copied().filter(|_| qos == Qos::ExactlyOnce);
        let is_again = match held {
            // The client repeats with DUP (MQTT-3.3.1-1). Without, on a new connection, it has seen the PUBCOMP that
            // our notes have lost, and this is another message.
            Some(Held { stage: Stage::Recorded, is_counted: false, .. }) => dup,
            Some(_) => true,
            None => false,
        };
        let is_counted = held.is_some_and(|held| held.is_counted);
        if strict && !is_counted && self.outstanding >= self.max {
            return Err(Exceeded);
        }
        if !is_counted {
            self.outstanding += 1;
        }
        if let Some(held) = held.filter(|_| is_again) {
            self.exactly_once.insert(packet_id, Held { is_counted: true, ..held });
            if held.stage == Stage::Recorded {
                return Ok(Received::Recorded);
            }
            if let Some(waiting) = self.entry(held.number) {
                waiting.is_silent = false;
            }
            return Ok(Received::Pending);
        }
        let number = self.first + self.waiting.len() as u64;
        if qos == Qos::ExactlyOnce {
            self.exactly_once.insert(packet_id, Held { stage: Stage::Writing, is_counted: true, number });
        }
        self.waiting.push_back(Waiting {
            packet_id,
            qos,
            is_routed: false,
            records: 0,
            reason: ReasonCode::Success,
            is_silent: false,
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
            self.recorded(&oldest);
        } else if !oldest.is_silent {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        let Waiting { packet_id, qos, reason, is_silent, .. } = oldest;
        Some(Due { packet_id, qos, reason, is_silent })
    }

    fn recorded(&mut self, publish: &Waiting) {
        if !publish.reason.is_error() {
            if let Some(held) = self.exactly_once.get_mut(&publish.packet_id) {
                held.stage = Stage::Recorded;
            }
            return;
        }
        // MQTT 5.0 §4.3.3: the id is free again.
        if self.exactly_once.remove(&publish.packet_id).is_some_and(|held| held.is_counted) {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
    }

    pub(super) fn release(&mut self, packet_id: u16) -> Released {
        match self.exactly_once.get(&packet_id) {
            Some(Held { stage: Stage::Recorded, is_counted, .. }) => {
                if *is_counted {
                    self.outstanding = self.outstanding.saturating_sub(1);
                }
                self.exactly_once.remove(&packet_id);
                Released::Known
            }
            Some(Held { stage: Stage::Writing, .. }) => Released::TooEarly,
            None => Released::Unknown,
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Waiting> {
        let index = number.checked_sub(self.first)?;
        self.waiting.get_mut(usize::try_from(index).ok()?)
    }
}
