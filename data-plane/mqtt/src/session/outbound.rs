//! Deliveries to a client: its window, packet ids, and what waits for its acknowledgements.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{Dropped, Effect, Limits, Message, Now};
use crate::{
    codec::{
        property::{Properties, PropertiesBuilder, PropertyId},
        publish_length,
    },
    packet::{Packet, ProtocolVersion, Publish, Qos, ReasonCode},
};

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
}

/// QoS 1 and 2 deliveries between PUBLISH and PUBACK or PUBCOMP, and those that wait for a place among them.
///
/// There is no resending: the session ends with the connection.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    window: u16,
    packet_bytes_max: Option<u32>,
    /// At most `window`.
    in_flight: HashMap<u16, Stage>,
    last_id: u16,
    /// At most [`Limits::delayed_max`], with the time after which they are dropped.
    delayed: VecDeque<(u64, Delivery)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// PUBLISH at QoS 1 was sent.
    Puback,
    /// PUBLISH at QoS 2 was sent.
    Pubrec,
    /// PUBREL was sent.
    Pubcomp,
}

/// An acknowledgement of the wrong kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrongStage;

/// Too many deliveries wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Outbound {
    pub(super) fn new(window: u16, packet_bytes_max: Option<u32>) -> Self {
        Self { window, packet_bytes_max, ..Self::default() }
    }

    /// Deliveries that may still be delayed.
    pub(super) fn room(&self, limits: &Limits) -> usize {
        limits.delayed_max.saturating_sub(self.delayed.len())
    }

    pub(super) fn deliver(
        &mut self,
        now: Now,
        delivery: Delivery,
        version: ProtocolVersion,
        limits: &Limits,
        out: &mut Vec<Effect>,
    ) -> Result<(), Overflow> {
        let must_wait = delivery.qos != Qos::AtMostOnce
            && (self.in_flight.len() >= usize::from(self.window) || !self.delayed.is_empty());
        if !must_wait {
            self.send(now, &delivery, version, out);
        } else if self.room(limits) > 0 {
            self.delayed.push_back((now.monotonic_ms + limits.delayed_ttl_ms, delivery));
        } else {
            return Err(Overflow);
        }
        Ok(())
    }

    pub(super) fn puback(&mut self, packet_id: u16) -> Result<(), WrongStage> {
        self.finish(packet_id, Stage::Puback)
    }

    pub(super) fn pubcomp(&mut self, packet_id: u16) -> Result<(), WrongStage> {
        self.finish(packet_id, Stage::Pubcomp)
    }

    /// The reason for a PUBREL; `None` when the client refused the message, which ends the exchange (MQTT-4.3.3-4).
    pub(super) fn pubrec(
        &mut self,
        packet_id: u16,
        reason: ReasonCode,
    ) -> Result<Option<ReasonCode>, WrongStage> {
        match self.in_flight.get_mut(&packet_id) {
            Some(Stage::Pubrec) if reason.is_error() => {
                self.in_flight.remove(&packet_id);
                Ok(None)
            }
            Some(stage @ (Stage::Pubrec | Stage::Pubcomp)) => {
                *stage = Stage::Pubcomp;
                Ok(Some(ReasonCode::Success))
            }
            Some(Stage::Puback) => Err(WrongStage),
            None => Ok(Some(ReasonCode::PacketIdentifierNotFound)),
        }
    }

    pub(super) fn send_delayed(&mut self, now: Now, version: ProtocolVersion, out: &mut Vec<Effect>) {
        while self.in_flight.len() < usize::from(self.window) {
            let Some((deadline_ms, delivery)) = self.delayed.pop_front() else { break };
            if now.monotonic_ms >= deadline_ms {
                out.push(Effect::Dropped(Dropped::Delayed));
            } else {
                self.send(now, &delivery, version, out);
            }
        }
        if self.delayed.is_empty() && self.delayed.capacity() > 0 {
            self.delayed = VecDeque::new();
        }
    }

    fn finish(&mut self, packet_id: u16, expected: Stage) -> Result<(), WrongStage> {
        match self.in_flight.get(&packet_id) {
            Some(stage) if *stage == expected => {
                self.in_flight.remove(&packet_id);
                Ok(())
            }
            Some(_) => Err(WrongStage),
            // A late answer to an exchange that is over does no harm.
            None => Ok(()),
        }
    }

    fn send(&mut self, now: Now, delivery: &Delivery, version: ProtocolVersion, out: &mut Vec<Effect>) {
        let message = &delivery.message;
        if message.expires_at_ms.is_some_and(|expires_at_ms| now.epoch_ms > expires_at_ms) {
            out.push(Effect::Dropped(Dropped::Expired));
            return;
        }
        let mut publish = Publish {
            dup: false,
            qos: delivery.qos,
            retain: delivery.retain,
            topic: message.topic.clone(),
            packet_id: None,
            properties: if version.is_v5() { properties(delivery, now) } else { Properties::NONE },
            payload: message.payload.clone(),
        };
        let is_too_large =
            self.packet_bytes_max.is_some_and(|max| publish_length(&publish, version) > max as usize);
        if is_too_large {
            // MQTT-3.1.2-25: as if it had been delivered.
            out.push(Effect::Dropped(Dropped::TooLarge));
            return;
        }
        if delivery.qos != Qos::AtMostOnce {
            let packet_id = self.free_id();
            let stage = if delivery.qos == Qos::AtLeastOnce { Stage::Puback } else { Stage::Pubrec };
            self.in_flight.insert(packet_id, stage);
            publish.packet_id = Some(packet_id);
        }
        out.push(Effect::Send(Packet::Publish(publish)));
    }

    /// A packet id that is not in use. There is one: the window is at most 65,535, the number of ids, and one place in
    /// it is free.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// The publisher's properties, the time that is left (MQTT-3.3.2-6), and the subscriptions' identifiers.
fn properties(delivery: &Delivery, now: Now) -> Properties {
    let message = &delivery.message;
    if message.expires_at_ms.is_none() && delivery.identifiers.is_empty() {
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
    delivery
        .identifiers
        .iter()
        .fold(builder, |builder, identifier| builder.number(PropertyId::SubscriptionIdentifier, *identifier))
        .build()
}
