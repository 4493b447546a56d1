//! Deliveries to a client: its window, packet ids, what waits for its acknowledgements, and what is sent again when it
//! comes back.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{Dropped, Effect, Limits, Message, Now, alias::Given};
use crate::{
    codec::{
        frame::varint_length,
        property::{Properties, PropertiesBuilder, PropertyId},
        publish_length,
    },
    packet::{Ack, Packet, ProtocolVersion, Publish, Qos, ReasonCode, Text},
};

/// Packet ids that there are.
const IDS: usize = 65_535;

/// One message for one client; the message is shared with all others who get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: Arc<Message>,
    /// The lower of the publisher's and the subscription's.
    pub qos: Qos,
    /// The retain flag to be sent.
    pub retain: bool,
    /// Identifiers of all subscriptions that matched (5.0).
    pub identifiers: Vec<u32>,
    /// The whole filter of the shared subscription whose member gets it.
    pub group: Option<Arc<str>>,
}

/// How far a delivery has come that is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// PUBLISH at QoS 1 was sent.
    Puback,
    /// PUBLISH at QoS 2 was sent.
    Pubrec,
    /// PUBREL was sent.
    Pubcomp,
}

/// A delivery that outlives its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Its packet id.
    pub packet_id: u16,
    /// How far it has come.
    pub stage: Stage,
    /// Its place in the session's queue, if it came from there.
    pub seq: Option<u64>,
    /// The message; not needed any more once PUBREL was sent.
    pub delivery: Option<Delivery>,
}

/// What the client of a connection takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reception {
    pub(super) version: ProtocolVersion,
    /// Unacknowledged deliveries.
    pub(super) window: u16,
    /// Bytes of a packet.
    pub(super) packet_bytes_max: Option<u32>,
    /// Topic aliases.
    pub(super) aliases_max: u16,
    /// Bytes of a topic that is worth one.
    pub(super) alias_topic_bytes_min: usize,
    /// As [`Limits::shared_bytes_max`].
    pub(super) shared_bytes_max: usize,
}

/// QoS 1 and 2 deliveries between PUBLISH and PUBACK or PUBCOMP, and those that wait for a place among them.
///
/// Invariants: no packet id is given while it is in flight; on one connection no more than the window is sent and
/// neither acknowledged nor refused; what was in flight on an earlier connection is sent before anything new.
#[derive(Debug)]
pub(super) struct Outbound {
    reception: Reception,
    /// Deliveries that may still be sent on this connection (MQTT 5.0 §4.9).
    quota: u16,
    in_flight: HashMap<u16, Flight>,
    last_id: u16,
    /// Whether the session outlives the connection, so that what is in flight has to be kept.
    keeps: bool,
    sent: u64,
    /// Of messages of shared subscriptions that are in flight and in no queue.
    shared_bytes: usize,
    /// Packet ids whose PUBLISH is to be sent again, in the order in which it was sent first.
    again: VecDeque<u16>,
    /// At most [`Limits::delayed_max`], with the time after which they are dropped.
    delayed: VecDeque<(u64, Delivery)>,
    aliases: Given,
}

#[derive(Debug)]
struct Flight {
    stage: Stage,
    /// It was sent on this connection and takes a place in the window.
    is_counted: bool,
    kept: Option<Box<Kept>>,
}

#[derive(Debug)]
struct Kept {
    /// Greater when it came later to its stage.
    order: u64,
    seq: Option<u64>,
    delivery: Option<Delivery>,
}

/// An acknowledgement of the wrong kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrongStage;

/// Too many deliveries wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Outbound {
    /// One that takes nothing before [`Outbound::begin`].
    pub(super) fn new() -> Self {
        let reception = Reception {
            version: ProtocolVersion::V311,
            window: 0,
            packet_bytes_max: None,
            aliases_max: 0,
            alias_topic_bytes_min: 0,
            shared_bytes_max: 0,
        };
        Self {
            reception,
            quota: 0,
            in_flight: HashMap::new(),
            last_id: 0,
            keeps: false,
            sent: 0,
            shared_bytes: 0,
            again: VecDeque::new(),
            delayed: VecDeque::new(),
            aliases: Given::default(),
        }
    }

    /// What a store has kept, in the order in which it was sent.
    pub(super) fn restored(in_flight: Vec<InFlight>) -> Self {
        let mut outbound = Self::new();
        for InFlight { packet_id, stage, seq, delivery } in in_flight {
            outbound.sent += 1;
            let kept = Some(Box::new(Kept { order: outbound.sent, seq, delivery }));
            outbound.in_flight.insert(packet_id, Flight { stage, is_counted: false, kept });
            outbound.last_id = packet_id;
        }
        outbound
    }

    /// A connection begins: PUBREL for what is past PUBREC, and then PUBLISH with DUP for the rest, each in the order
    /// of before (MQTT-4.4.0-1, MQTT-4.6.0-1, MQTT-4.6.0-4) and as far as the window allows.
    pub(super) fn begin(&mut self, reception: Reception, keeps: bool, now: Now, out: &mut Vec<Effect>) {
        self.reception = reception;
        self.quota = reception.window;
        self.keeps = keeps;
        self.aliases = Given::new(reception.aliases_max);
        let mut flights: Vec<(u64, u16, Stage)> = Vec::with_capacity(self.in_flight.len());
        for (packet_id, flight) in &mut self.in_flight {
            flight.is_counted = false;
            flights.push((flight.kept.as_ref().map_or(0, |kept| kept.order), *packet_id, flight.stage));
        }
        flights.sort_unstable_by_key(|(order, ..)| *order);
        self.again = flights
            .iter()
            .filter(|(.., stage)| *stage != Stage::Pubcomp)
            .map(|(_, packet_id, _)| *packet_id)
            .collect();
        for (_, packet_id, _) in flights.iter().filter(|(.., stage)| *stage == Stage::Pubcomp) {
            out.push(Effect::Send(Packet::PubRel(Ack::new(*packet_id, ReasonCode::Success))));
        }
        self.send_waiting(now, out);
    }

    /// What is in flight, in the order in which it came to its stage.
    pub(super) fn in_flight(&self) -> Vec<InFlight> {
        let mut flights: Vec<_> = self
            .in_flight
            .iter()
            .filter_map(|(packet_id, flight)| Some((packet_id, flight.stage, flight.kept.as_deref()?)))
            .collect();
        flights.sort_unstable_by_key(|(.., kept)| kept.order);
        flights
            .into_iter()
            .map(|(packet_id, stage, kept)| InFlight {
                packet_id: *packet_id,
                stage,
                seq: kept.seq,
                delivery: kept.delivery.clone(),
            })
            .collect()
    }

    /// How much is in flight.
    pub(super) fn flights(&self) -> usize {
        self.in_flight.len()
    }

    /// What the client takes, once a connection has begun.
    pub(super) fn reception(&self) -> Option<&Reception> {
        (self.reception.window > 0).then_some(&self.reception)
    }

    /// Whether the client takes a SUBACK or UNSUBACK with so many reasons (MQTT-3.1.2-24 of 5.0).
    pub(super) fn takes_answer(&self, reasons: usize) -> bool {
        let body = 3 + reasons;
        self.reception.packet_bytes_max.is_none_or(|max| 1 + varint_length(body) + body <= max as usize)
    }

    /// Deliveries that may still be delayed.
    pub(super) fn room(&self, limits: &Limits) -> usize {
        limits.delayed_max.saturating_sub(self.delayed.len())
    }

    /// Deliveries that would be sent at once.
    pub(super) fn window_room(&self) -> usize {
        if self.delayed.is_empty() && self.again.is_empty() && self.has_memory() {
            usize::from(self.quota).min(IDS - self.in_flight.len())
        } else {
            0
        }
    }

    /// Whether more may be kept for other members of shared subscriptions.
    fn has_memory(&self) -> bool {
        self.shared_bytes == 0 || self.shared_bytes < self.reception.shared_bytes_max
    }

    /// Offers to others what is in flight at QoS 1, or waits, of shared subscriptions.
    pub(super) fn hand_over_shared(
        &mut self,
        mut taken: impl FnMut(&Delivery) -> bool,
        out: &mut Vec<Effect>,
    ) {
        let is_shared = |delivery: &Delivery| delivery.group.is_some();
        let mut sent: Vec<(u64, u16)> = self
            .in_flight
            .iter()
            .filter(|(_, flight)| flight.stage == Stage::Puback)
            .filter_map(|(packet_id, flight)| Some((packet_id, flight.kept.as_ref()?)))
            .filter(|(_, kept)| kept.delivery.as_ref().is_some_and(is_shared))
            .map(|(packet_id, kept)| (kept.order, *packet_id))
            .collect();
        sent.sort_unstable();
        for (_, packet_id) in sent {
            let kept = self.in_flight.get(&packet_id).and_then(|flight| flight.kept.as_ref());
            if kept.and_then(|kept| kept.delivery.as_ref()).is_some_and(&mut taken) {
                self.remove(packet_id, out);
            }
        }
        self.delayed.retain(|(_, delivery)| !is_shared(delivery) || !taken(delivery));
    }

    pub(super) fn deliver(
        &mut self,
        now: Now,
        delivery: Delivery,
        seq: Option<u64>,
        limits: &Limits,
        out: &mut Vec<Effect>,
    ) -> Result<(), Overflow> {
        if delivery.qos == Qos::AtMostOnce || self.window_room() > 0 {
            self.send(now, delivery, seq, out);
        } else if self.room(limits) > 0 {
            self.delayed.push_back((now.monotonic_ms + limits.delayed_ttl_ms, delivery));
        } else {
            return Err(Overflow);
        }
        Ok(())
    }

    pub(super) fn puback(&mut self, packet_id: u16, out: &mut Vec<Effect>) -> Result<(), WrongStage> {
        self.finish(packet_id, Stage::Puback, out)
    }

    pub(super) fn pubcomp(&mut self, packet_id: u16, out: &mut Vec<Effect>) -> Result<(), WrongStage> {
        self.finish(packet_id, Stage::Pubcomp, out)
    }

    /// The reason for a PUBREL; `None` when the client refused the message, which ends the exchange (MQTT-4.3.3-4).
    pub(super) fn pubrec(
        &mut self,
        packet_id: u16,
        reason: ReasonCode,
        out: &mut Vec<Effect>,
    ) -> Result<Option<ReasonCode>, WrongStage> {
        match self.in_flight.get_mut(&packet_id) {
            Some(Flight { stage: Stage::Pubrec, .. }) if reason.is_error() => {
                self.remove(packet_id, out);
                Ok(None)
            }
            Some(Flight { stage: Stage::Pubcomp, .. }) => Ok(Some(ReasonCode::Success)),
            Some(flight @ Flight { stage: Stage::Pubrec, .. }) => {
                flight.stage = Stage::Pubcomp;
                if let Some(kept) = &mut flight.kept {
                    self.sent += 1;
                    kept.order = self.sent;
                    kept.delivery = None;
                    if let Some(seq) = kept.seq {
                        out.push(Effect::InFlight { seq, packet_id, stage: Stage::Pubcomp });
                    }
                }
                // It may have been answered before it was sent again.
                self.again.retain(|id| *id != packet_id);
                Ok(Some(ReasonCode::Success))
            }
            Some(Flight { stage: Stage::Puback, .. }) => Err(WrongStage),
            None => Ok(Some(ReasonCode::PacketIdentifierNotFound)),
        }
    }

    /// Sends what waits, as far as the window allows.
    pub(super) fn send_waiting(&mut self, now: Now, out: &mut Vec<Effect>) {
        while self.quota > 0
            && let Some(packet_id) = self.again.pop_front()
        {
            self.send_again(now, packet_id, out);
        }
        while self.quota > 0 && self.again.is_empty() && self.in_flight.len() < IDS && self.has_memory() {
            let Some((deadline_ms, delivery)) = self.delayed.pop_front() else { break };
            if now.monotonic_ms >= deadline_ms {
                out.push(Effect::Dropped(Dropped::Delayed));
            } else {
                self.send(now, delivery, None, out);
            }
        }
        // An idle connection keeps no buffer (architecture §4.23).
        if self.delayed.is_empty() && self.delayed.capacity() > 0 {
            self.delayed = VecDeque::new();
        }
        if self.again.is_empty() && self.again.capacity() > 0 {
            self.again = VecDeque::new();
        }
    }

    fn finish(&mut self, packet_id: u16, expected: Stage, out: &mut Vec<Effect>) -> Result<(), WrongStage> {
        match self.in_flight.get(&packet_id) {
            Some(flight) if flight.stage == expected => {
                self.remove(packet_id, out);
                Ok(())
            }
            Some(_) => Err(WrongStage),
            // A late answer to an exchange that is over does no harm.
            None => Ok(()),
        }
    }

    fn remove(&mut self, packet_id: u16, out: &mut Vec<Effect>) {
        let Some(flight) = self.in_flight.remove(&packet_id) else { return };
        if flight.is_counted {
            self.quota = self.quota.saturating_add(1).min(self.reception.window);
        } else if !self.again.is_empty() {
            self.again.retain(|id| *id != packet_id);
        }
        match flight.kept.as_deref() {
            Some(Kept { seq: Some(seq), .. }) => out.push(Effect::Settled { seq: *seq }),
            Some(Kept { delivery: Some(delivery), .. }) if !self.keeps => {
                self.shared_bytes = self.shared_bytes.saturating_sub(weight(delivery));
            }
            _ => {}
        }
    }

    fn send(&mut self, now: Now, delivery: Delivery, seq: Option<u64>, out: &mut Vec<Effect>) {
        let expires_at_ms = delivery.message.expires_at_ms;
        if expires_at_ms.is_some_and(|expires_at_ms| now.epoch_ms > expires_at_ms) {
            return drop_it(Dropped::Expired, seq, out);
        }
        let Some(mut publish) = self.publish(now, &delivery) else {
            // MQTT5-3.1.2-25: as if it had been delivered.
            return drop_it(Dropped::TooLarge, seq, out);
        };
        if delivery.qos != Qos::AtMostOnce {
            let packet_id = self.free_id();
            publish.packet_id = Some(packet_id);
            let stage = if delivery.qos == Qos::AtLeastOnce { Stage::Puback } else { Stage::Pubrec };
            let is_shared = delivery.group.is_some() && stage == Stage::Puback;
            if is_shared && !self.keeps {
                self.shared_bytes += weight(&delivery);
            }
            let kept = (self.keeps || is_shared).then(|| {
                self.sent += 1;
                Box::new(Kept { order: self.sent, seq, delivery: Some(delivery) })
            });
            self.in_flight.insert(packet_id, Flight { stage, is_counted: true, kept });
            self.quota -= 1;
            if let Some(seq) = seq {
                out.push(Effect::InFlight { seq, packet_id, stage });
            }
        }
        out.push(Effect::Send(Packet::Publish(publish)));
    }

    fn send_again(&mut self, now: Now, packet_id: u16, out: &mut Vec<Effect>) {
        let delivery = self
            .in_flight
            .get(&packet_id)
            .and_then(|flight| flight.kept.as_ref())
            .and_then(|kept| kept.delivery.clone());
        // Its first delivery has begun, so that it does not expire any more (MQTT 5.0 §3.3.2.3.3).
        if let Some(publish) = delivery.and_then(|delivery| self.publish(now, &delivery)) {
            if let Some(flight) = self.in_flight.get_mut(&packet_id) {
                flight.is_counted = true;
            }
            self.quota -= 1;
            // MQTT-3.3.1-1
            let publish = Publish { dup: true, packet_id: Some(packet_id), ..publish };
            out.push(Effect::Send(Packet::Publish(publish)));
        } else {
            out.push(Effect::Dropped(Dropped::TooLarge));
            self.remove(packet_id, out);
        }
    }

    /// The packet, without its id; `None` when it is larger than the client takes.
    fn publish(&mut self, now: Now, delivery: &Delivery) -> Option<Publish> {
        let Reception { version, packet_bytes_max, alias_topic_bytes_min, .. } = self.reception;
        let message = &delivery.message;
        let mut publish = Publish {
            dup: false,
            qos: delivery.qos,
            retain: delivery.retain,
            topic: message.topic.clone(),
            packet_id: None,
            properties: if version.is_v5() { properties(delivery, now, None) } else { Properties::NONE },
            payload: message.payload.clone(),
        };
        let fits = |publish: &Publish| {
            packet_bytes_max.is_none_or(|max| publish_length(publish, version) <= max as usize)
        };
        if self.reception.aliases_max > 0 && publish.topic.len() >= alias_topic_bytes_min {
            if let Some(alias) = self.aliases.get(&publish.topic) {
                publish.topic = Text::default();
                publish.properties = properties(delivery, now, Some(alias));
                return fits(&publish).then_some(publish);
            }
            if let Some(alias) = self.aliases.next() {
                let named = Publish { properties: properties(delivery, now, Some(alias)), ..publish.clone() };
                // The alias makes it 3 bytes longer.
                if fits(&named) {
                    self.aliases.give(&named.topic);
                    return Some(named);
                }
            }
        }
        fits(&publish).then_some(publish)
    }

    /// A packet id that is not in use. There is one: a delivery is only sent while fewer than 65,535 are in flight.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// About how many bytes of memory a delivery holds.
fn weight(delivery: &Delivery) -> usize {
    let Message { topic, payload, properties, .. } = &*delivery.message;
    size_of::<Message>() + topic.len() + payload.len() + properties.bytes().len()
}

fn drop_it(reason: Dropped, seq: Option<u64>, out: &mut Vec<Effect>) {
    out.push(Effect::Dropped(reason));
    if let Some(seq) = seq {
        out.push(Effect::Settled { seq });
    }
}

/// The publisher's properties, the time that is left (MQTT-3.3.2-6), the topic's alias, and the subscriptions'
/// identifiers.
fn properties(delivery: &Delivery, now: Now, alias: Option<u16>) -> Properties {
    let message = &delivery.message;
    if message.expires_at_ms.is_none() && delivery.identifiers.is_empty() && alias.is_none() {
        return message.properties.clone();
    }
    let mut builder = message
        .properties
        .iter()
        .fold(PropertiesBuilder::new(), |builder, (id, value)| builder.copy(id, &value));
    if let Some(expires_at_ms) = message.expires_at_ms {
        let left_ms = (expires_at_ms - now.epoch_ms).max(0);
        let left_s = u32::try_from((left_ms + 999) / 1000).unwrap_or(u32::MAX);
        builder = builder.number(PropertyId::MessageExpiryInterval, left_s);
    }
    if let Some(alias) = alias {
        builder = builder.number(PropertyId::TopicAlias, u32::from(alias));
    }
    delivery
        .identifiers
        .iter()
        .fold(builder, |builder, identifier| builder.number(PropertyId::SubscriptionIdentifier, *identifier))
        .build()
}
