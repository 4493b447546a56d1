//! The client's side of an MQTT session, without I/O: from messages to bytes, from packets to outcomes.
//!
//! Each submitted ticket is an [`Entry`] until it is answered. Entries are sent in the order of their submission; what a
//! lost connection leaves without an answer is sent anew on the next one, in that order again, before anything younger
//! (a clean session remembers nothing). So an outage costs no message, whatever the delivery policy of the integration
//! says about failures (spec UP-19), and while it lasts no entry grows old.
//!
//! Three things answer an entry before its acknowledgement: it can't be published at all; nothing came for it within the
//! attempt's timeout; or it lost its connection [`LOSSES_MAX`] times. The last is for brokers that close the connection
//! on a publish that they don't like, which would be sent anew for ever. So that the others are not suspected with it,
//! an entry that has lost its connection [`SUSPECT_AFTER`] times is sent alone.
//!
//! A packet id whose entry was answered by the timeout stays taken until its acknowledgement comes or the connection
//! ends: the standard forbids to use it again, and the broker still counts it. When half of the window is lost so, the
//! connection is given up.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tbmq_integration::Millis;
use tbmq_mqtt::{
    codec::{self, property::PropertyId},
    packet::{Ack, Disconnect, Packet, Qos, ReasonCode},
};

use super::publisher::{Peer, Publisher};
use crate::sink::{Busy, Message, Outcome, SinkState, Ticket};

/// Bytes that wait for the socket, above which nothing more is encoded or read.
const OUTPUT_BYTES: usize = 256 << 10;

/// Lost connections after which an entry is sent alone.
const SUSPECT_AFTER: u8 = 2;

/// Lost connections after which an entry is answered.
const LOSSES_MAX: u8 = 3;

/// What a session is told about itself.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Tickets without an answer at most, above 0.
    pub window: usize,
    /// From an entry's turn on a connection to its acknowledgement, at most.
    pub attempt_timeout: Duration,
    /// From the loss of a connection to the next attempt; `None`: there is none.
    pub reconnect: Option<Duration>,
    /// Without a packet for so long, a PINGREQ is sent; zero: never.
    pub keep_alive: Duration,
    /// How long a PINGREQ may go without an answer.
    pub ping_timeout: Duration,
}

/// The session. Time is an argument; it never waits.
#[derive(Debug)]
pub(super) struct Session {
    settings: Settings,
    publisher: Publisher,
    link: Link,
    /// Tickets without an answer, by order of submission.
    entries: BTreeMap<u64, Entry>,
    /// Order of the next submission.
    next: u64,
    /// Entries from here on were not sent on this connection.
    unsent: u64,
    /// Packet ids in use on this connection; those of entries that are answered already, too.
    flights: HashMap<u16, Flight>,
    /// Packet ids whose entries were answered without them.
    abandoned: usize,
    last_packet_id: u16,
    /// Publishes of QoS 0 that the socket does not have yet: where they end among the bytes of this connection.
    unwritten: VecDeque<(u64, u64)>,
    output: BytesMut,
    /// Bytes of this connection that the socket took.
    written: u64,
    answers: VecDeque<(Ticket, Outcome)>,
    is_finishing: bool,
}

#[derive(Debug)]
enum Link {
    Online(Online),
    Away {
        reason: String,
        /// `None`: an attempt is under way.
        retry_at: Option<Millis>,
    },
    Broken {
        reason: String,
    },
}

#[derive(Debug)]
struct Online {
    peer: Peer,
    /// Zero: off.
    keep_alive: Duration,
    sent_at: Millis,
    received_at: Millis,
    /// A PINGREQ is out, and has to be answered by then.
    answer_by: Option<Millis>,
}

impl Online {
    /// When a PINGREQ is due, or its answer.
    fn deadline(&self) -> Option<Millis> {
        let ping_at = || {
            let idle_since = self.sent_at.min(self.received_at);
            (!self.keep_alive.is_zero()).then(|| idle_since + self.keep_alive)
        };
        self.answer_by.or_else(ping_at)
    }
}

#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    message: Message,
    /// When the attempt is over; counts only while there is a connection.
    deadline: Millis,
    /// Connections that ended while it was on its way.
    losses: u8,
}

#[derive(Debug)]
struct Flight {
    entry: u64,
    step: Step,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// PUBACK.
    Ack,
    /// PUBREC.
    Receive,
    /// PUBCOMP.
    Complete,
}

impl Session {
    /// A session that is connected.
    pub(super) fn new(settings: Settings, publisher: Publisher, now: Millis, peer: Peer) -> Self {
        let link = Link::Away { reason: String::new(), retry_at: None };
        let mut session = Self {
            settings,
            publisher,
            link,
            entries: BTreeMap::new(),
            next: 0,
            unsent: 0,
            flights: HashMap::new(),
            abandoned: 0,
            last_packet_id: 0,
            unwritten: VecDeque::new(),
            output: BytesMut::new(),
            written: 0,
            answers: VecDeque::new(),
            is_finishing: false,
        };
        session.connected(now, peer);
        session
    }

    /// Takes a message, also while the broker is away, or says [`Busy`].
    pub(super) fn submit(&mut self, now: Millis, message: Message, ticket: Ticket) -> Result<(), Busy> {
        if self.entries.len() + self.answers.len() + self.abandoned >= self.limit() {
            return Err(Busy);
        }
        let deadline = now + self.settings.attempt_timeout;
        self.entries.insert(self.next, Entry { ticket, message, deadline, losses: 0 });
        self.next += 1;
        self.send(now);
        Ok(())
    }

    /// Tickets that are taken at most. What the broker would not take belongs to the driver, where no attempt's clock
    /// runs for it.
    fn limit(&self) -> usize {
        match &self.link {
            Link::Online(online) => self.settings.window.min(usize::from(online.peer.receive_maximum)),
            Link::Away { .. } | Link::Broken { .. } => self.settings.window,
        }
    }

    /// The next answer.
    pub(super) fn poll_outcome(&mut self) -> Option<(Ticket, Outcome)> {
        self.answers.pop_front()
    }

    pub(super) fn state(&self) -> SinkState {
        match &self.link {
            Link::Online(_) => SinkState::Ready,
            Link::Away { reason, .. } => SinkState::Away { reason: reason.clone() },
            Link::Broken { reason } => SinkState::Broken { reason: reason.clone() },
        }
    }

    pub(super) fn is_online(&self) -> bool {
        matches!(self.link, Link::Online(_))
    }

    /// Whether an attempt to connect is due; then it counts as begun.
    pub(super) fn begins_attempt(&mut self, now: Millis) -> bool {
        match &mut self.link {
            Link::Away { retry_at, .. } if !self.is_finishing => {
                retry_at.take_if(|retry_at| *retry_at <= now).is_some()
            }
            _ => false,
        }
    }

    /// The attempt failed.
    pub(super) fn refused(&mut self, now: Millis, reason: String) {
        self.link = match self.settings.reconnect {
            Some(period) => Link::Away { reason, retry_at: Some(now + period) },
            None => Link::Broken { reason },
        };
    }

    /// The broker accepted.
    pub(super) fn connected(&mut self, now: Millis, peer: Peer) {
        let keep_alive =
            peer.keep_alive.map_or(self.settings.keep_alive, |seconds| Duration::from_secs(seconds.into()));
        self.link =
            Link::Online(Online { peer, keep_alive, sent_at: now, received_at: now, answer_by: None });
        let deadline = now + self.settings.attempt_timeout;
        self.entries.values_mut().for_each(|entry| entry.deadline = deadline);
        self.send(now);
    }

    /// The connection ended; does nothing when there is none.
    pub(super) fn lost(&mut self, now: Millis, reason: String) {
        if !self.is_online() {
            return;
        }
        let suspects: Vec<u64> = self
            .entries
            .range_mut(..self.unsent)
            .filter_map(|(order, entry)| {
                entry.losses += 1;
                (entry.losses >= LOSSES_MAX).then_some(*order)
            })
            .collect();
        for order in suspects {
            let text = format!("the connection was lost {LOSSES_MAX} times under this message: {reason}");
            self.answer(order, retry("disconnected", text));
        }
        self.unsent = self.entries.first_key_value().map_or(self.next, |(order, _)| *order);
        self.flights.clear();
        self.abandoned = 0;
        self.unwritten.clear();
        self.output = BytesMut::new();
        self.written = 0;
        self.refused(now, reason);
    }

    /// Bytes for the socket.
    pub(super) fn output(&self) -> &[u8] {
        &self.output
    }

    /// The socket took so many of them.
    pub(super) fn wrote(&mut self, now: Millis, count: usize) {
        self.output.advance(count);
        if self.output.is_empty() && self.output.capacity() > OUTPUT_BYTES {
            // An idle connection owns no large buffer.
            self.output = BytesMut::new();
        }
        self.written += count as u64;
        self.send(now);
    }

    /// Everything that the socket took has left the process: publishes of QoS 0 are done.
    pub(super) fn flushed(&mut self, now: Millis) {
        while let Some((end, order)) = self.unwritten.front().copied()
            && end <= self.written
        {
            self.unwritten.pop_front();
            self.answer(order, Outcome::Delivered);
        }
        // It may have been sent alone.
        self.send(now);
    }

    /// Whether packets should be read: not while their answers pile up here.
    pub(super) fn reads(&self) -> bool {
        self.output.len() < OUTPUT_BYTES
    }

    /// A packet came.
    pub(super) fn received(&mut self, now: Millis, packet: Packet) {
        let Link::Online(online) = &mut self.link else { return };
        online.received_at = now;
        online.answer_by = None;
        match packet {
            Packet::PubAck(ack) => self.acknowledged(now, ack, Step::Ack),
            Packet::PubRec(ack) => self.acknowledged(now, ack, Step::Receive),
            Packet::PubComp(ack) => self.acknowledged(now, ack, Step::Complete),
            Packet::PingResp => {}
            // Nothing was subscribed to, but some brokers do that for their clients.
            Packet::Publish(publish) => match (publish.qos, publish.packet_id) {
                (Qos::AtLeastOnce, Some(id)) => {
                    self.put(now, &Packet::PubAck(Ack::new(id, ReasonCode::Success)));
                }
                (Qos::ExactlyOnce, Some(id)) => {
                    self.put(now, &Packet::PubRec(Ack::new(id, ReasonCode::Success)));
                }
                _ => {}
            },
            Packet::PubRel(ack) => {
                self.put(now, &Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success)));
            }
            Packet::Disconnect(disconnect) => {
                let said = said(disconnect.reason, disconnect.properties.text(PropertyId::ReasonString));
                self.lost(now, format!("the broker disconnected: {said}"));
            }
            _ => self.lost(now, "the broker sent a packet that only clients send".to_owned()),
        }
        self.send(now);
    }

    fn acknowledged(&mut self, now: Millis, ack: Ack, step: Step) {
        let id = ack.packet_id;
        match self.flights.get_mut(&id) {
            None if step == Step::Receive => {
                // MQTT 5.0 §4.3.3: the exchange is to be ended even so.
                let reason = ReasonCode::PacketIdentifierNotFound;
                self.put(now, &Packet::PubRel(Ack::new(id, reason)));
            }
            // Said twice; the first counted.
            None => {}
            Some(flight) if flight.step == step && step == Step::Receive && !ack.reason.is_error() => {
                flight.step = Step::Complete;
                self.put(now, &Packet::PubRel(Ack::new(id, ReasonCode::Success)));
            }
            Some(flight) if flight.step == Step::Complete && step == Step::Receive => {
                self.put(now, &Packet::PubRel(Ack::new(id, ReasonCode::Success)));
            }
            Some(flight) if flight.step == step => {
                let order = flight.entry;
                self.flights.remove(&id);
                if !self.answer(order, outcome_of(&ack)) {
                    self.abandoned -= 1;
                }
            }
            Some(_) => {
                self.lost(now, "the broker acknowledged a publish of another quality of service".to_owned());
            }
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Millis) {
        let Link::Online(online) = &mut self.link else { return };
        match (online.answer_by, online.deadline()) {
            (Some(answer_by), _) if answer_by <= now => {
                let waited = self.settings.ping_timeout.as_secs();
                return self.lost(now, format!("the broker gave no answer to a PINGREQ within {waited} s"));
            }
            (None, Some(ping_at)) if ping_at <= now => {
                online.answer_by = Some(now + self.settings.ping_timeout);
                self.put(now, &Packet::PingReq);
            }
            _ => {}
        }
        if self.give_up_late(now) {
            let abandoned = self.abandoned;
            if abandoned > 0 && abandoned * 2 >= self.limit() {
                let text = format!("the broker left {abandoned} messages without acknowledgement");
                return self.lost(now, text);
            }
            self.send(now);
        }
    }

    /// Answers the entries whose time is over; tells whether there were any.
    fn give_up_late(&mut self, now: Millis) -> bool {
        let waited = self.settings.attempt_timeout.as_millis();
        let mut has_late = false;
        // Deadlines are in the order of submission: a new connection gives all entries the same one.
        while let Some((order, entry)) = self.entries.first_key_value()
            && entry.deadline <= now
        {
            let order = *order;
            let is_sent = order < self.unsent;
            let unwritten = self.unwritten.iter().position(|(_, unwritten)| *unwritten == order);
            match unwritten {
                Some(index) => drop(self.unwritten.remove(index)),
                None => self.abandoned += usize::from(is_sent),
            }
            let text = if is_sent {
                format!("the broker did not acknowledge the message within {waited} ms")
            } else {
                format!("the broker left no room for the message within {waited} ms")
            };
            self.answer(order, retry("timeout", text));
            has_late = true;
        }
        has_late
    }

    /// When [`Session::tick`] or [`Session::begins_attempt`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        match &self.link {
            Link::Online(online) => {
                let first = self.entries.first_key_value().map(|(_, entry)| entry.deadline);
                [first, online.deadline()].into_iter().flatten().min()
            }
            Link::Away { retry_at, .. } => *retry_at,
            Link::Broken { .. } => None,
        }
    }

    /// Sends nothing more.
    pub(super) fn finish(&mut self) {
        self.is_finishing = true;
    }

    /// Whether something that was sent may still be answered.
    pub(super) fn waits(&self) -> bool {
        self.is_online() && self.entries.range(..self.unsent).next().is_some()
    }

    /// The tickets whose answers were not taken by [`Session::poll_outcome`].
    pub(super) fn unresolved(self) -> Vec<Ticket> {
        let answered = self.answers.into_iter().map(|(ticket, _)| ticket);
        self.entries.into_values().map(|entry| entry.ticket).chain(answered).collect()
    }

    /// The last packet, after [`Session::finish`]; `false`: there is no connection to send it on.
    pub(super) fn say_goodbye(&mut self, now: Millis) -> bool {
        self.put(now, &Packet::Disconnect(Disconnect::new(ReasonCode::Success)));
        self.is_online()
    }

    /// Encodes what the broker and the output have room for, in order.
    fn send(&mut self, now: Millis) {
        let Link::Online(Online { peer, .. }) = self.link else { return };
        while self.output.len() < OUTPUT_BYTES && !self.is_finishing {
            let Some((order, entry)) = self.entries.range(self.unsent..).next() else { return };
            let order = *order;
            let qos = self.publisher.qos(&entry.message, &peer);
            let is_confirmed = qos != Qos::AtMostOnce;
            let is_full = self.flights.len() >= usize::from(peer.receive_maximum)
                || qos == Qos::ExactlyOnce && self.exchanges() >= usize::from(peer.exchanges_max);
            if is_confirmed && is_full {
                return;
            }
            let earlier = self.entries.range(..order).next_back();
            let is_alone = |entry: &Entry| entry.losses >= SUSPECT_AFTER;
            if earlier.is_some_and(|(_, earlier)| is_alone(earlier) || is_alone(entry)) {
                return;
            }
            let mut publish = match self.publisher.publish(&entry.message, &peer) {
                Ok(publish) => publish,
                Err(outcome) => {
                    self.answer(order, outcome);
                    continue;
                }
            };
            let version = self.publisher.version;
            let bytes = codec::publish_length(&publish, version);
            if bytes > peer.packet_bytes_max {
                let most = peer.packet_bytes_max;
                let text = format!("the message takes {bytes} bytes; the broker takes at most {most}");
                self.answer(order, Outcome::Rejected { class: "size", text });
                continue;
            }
            if is_confirmed {
                let id = self.free_packet_id();
                publish.packet_id = Some(id);
                let step = if qos == Qos::ExactlyOnce { Step::Receive } else { Step::Ack };
                self.flights.insert(id, Flight { entry: order, step });
            }
            self.put(now, &Packet::Publish(publish));
            if !is_confirmed {
                self.unwritten.push_back((self.written + self.output.len() as u64, order));
            }
            self.unsent = order + 1;
        }
    }

    /// Publishes of QoS 2 that are not completed.
    fn exchanges(&self) -> usize {
        self.flights.values().filter(|flight| flight.step != Step::Ack).count()
    }

    /// The next packet id that is free. There is one: fewer than the 65,535 of a Receive Maximum are in use.
    fn free_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id % u16::MAX + 1;
            if !self.flights.contains_key(&self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }

    fn put(&mut self, now: Millis, packet: &Packet) {
        if let Link::Online(online) = &mut self.link {
            online.sent_at = now;
            codec::encode(packet, self.publisher.version, &mut self.output);
        }
    }

    /// Answers an entry; `false`: it has its answer already.
    fn answer(&mut self, order: u64, outcome: Outcome) -> bool {
        let Some(entry) = self.entries.remove(&order) else { return false };
        self.answers.push_back((entry.ticket, outcome));
        true
    }
}

fn retry(class: &'static str, text: String) -> Outcome {
    Outcome::Retry { after: None, class, text }
}

/// What an acknowledgement means for the message. The reasons for which the same message can never succeed are about
/// the message itself; the others are about the broker's state or its rules, which people change.
fn outcome_of(ack: &Ack) -> Outcome {
    if !ack.reason.is_error() {
        return Outcome::Delivered;
    }
    let said = said(ack.reason, ack.properties.text(PropertyId::ReasonString));
    let text = format!("the broker refused the message: {said}");
    match ack.reason {
        ReasonCode::TopicNameInvalid => Outcome::Rejected { class: "topic", text },
        ReasonCode::PayloadFormatInvalid => Outcome::Rejected { class: "payload", text },
        ReasonCode::PacketTooLarge => Outcome::Rejected { class: "size", text },
        _ => retry("refused", text),
    }
}

/// A reason code, and the broker's own words.
pub(super) fn said(reason: ReasonCode, words: Option<tbmq_mqtt::packet::Text>) -> String {
    let words = words.map(|words| format!(" ({})", &*words)).unwrap_or_default();
    format!("{reason:?} 0x{:02X}{words}", reason.byte())
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
