//! From a message to a PUBLISH, and what the broker allows (spec §6.4.4).

use bytes::Bytes;
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{ConnAck, ProtocolVersion, Publish, Qos, Text},
    topic,
};

use super::config::Checked;
use crate::{
    sink::{self, Message, Outcome},
    sinks::envelope::{Envelope, Payload},
};

/// The longest packet that MQTT can express.
pub(super) const PACKET_BYTES_MAX: usize = 5 + 268_435_455;

/// Publishes of QoS 2 that a broker of MQTT 3.x is given before it has completed the first. It has no words to say how
/// many it takes. Mosquitto closes the connection at the next publish of QoS 1 or 2 when 20 are open.
const EXCHANGES_MAX_V3: u16 = 16;

/// What a broker said about itself in its CONNACK; the standard's defaults where it said nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// Publishes of QoS 1 and 2 without an answer, at most.
    pub receive_maximum: u16,
    /// Publishes of QoS 2 among them, at most.
    pub exchanges_max: u16,
    /// Bytes of a packet, at most.
    pub packet_bytes_max: usize,
    /// The highest quality of service that it takes.
    pub qos_max: Qos,
    /// Whether it takes the retain flag.
    pub retains: bool,
    /// Seconds of the keep alive that it wants instead of ours.
    pub keep_alive: Option<u16>,
}

impl Peer {
    pub(super) fn of(connack: &ConnAck, version: ProtocolVersion) -> Self {
        let number = |id| connack.properties.number(id);
        let receive_maximum = number(PropertyId::ReceiveMaximum).map_or(u16::MAX, |number| number as u16);
        Self {
            receive_maximum,
            exchanges_max: if version.is_v5() { receive_maximum } else { EXCHANGES_MAX_V3 },
            packet_bytes_max: number(PropertyId::MaximumPacketSize)
                .map_or(PACKET_BYTES_MAX, |number| (number as usize).min(PACKET_BYTES_MAX)),
            qos_max: number(PropertyId::MaximumQos)
                .and_then(|number| Qos::from_bits(number as u8))
                .unwrap_or(Qos::ExactlyOnce),
            retains: number(PropertyId::RetainAvailable) != Some(0),
            keep_alive: number(PropertyId::ServerKeepAlive).map(|number| number as u16),
        }
    }
}

/// How the messages of an integration are published.
#[derive(Debug)]
pub(super) struct Publisher {
    pub version: ProtocolVersion,
    /// `None`: each message's own, as with the next two.
    topic: Option<Text>,
    qos: Option<Qos>,
    retain: Option<bool>,
    /// `None`: payloads go as they are.
    envelope: Option<Envelope>,
}

impl Publisher {
    pub(super) fn new(checked: &Checked, envelope: Envelope) -> Self {
        let config = &checked.config;
        Self {
            version: checked.version,
            topic: (!config.use_msg_topic_name).then(|| config.topic_name.as_str().into()),
            qos: checked.qos,
            retain: (!config.use_msg_retain).then_some(config.retained),
            envelope: (!config.send_only_msg_payload).then_some(envelope),
        }
    }

    /// The quality of service of a message: what is wanted, or the most that the broker takes.
    pub(super) fn qos(&self, message: &Message, peer: &Peer) -> Qos {
        let own = message.publish.publish_msg_proto.as_ref().map_or(0, |publish| publish.qos);
        // A number that is none was not written by a data plane; confirmed delivery can't be wrong.
        let own = || u8::try_from(own).ok().and_then(Qos::from_bits).unwrap_or(Qos::AtLeastOnce);
        self.qos.unwrap_or_else(own).min(peer.qos_max)
    }

    /// The place of the attempt in its trace, for an MQTT 5 broker.
    fn properties(&self, message: &Message) -> Properties {
        let Some(trace) = message.trace.as_ref().filter(|_| self.version.is_v5()) else {
            return Properties::NONE;
        };
        let properties = PropertiesBuilder::new();
        trace.fields().fold(properties, |properties, (name, text)| properties.user(name, &text)).build()
    }

    /// The PUBLISH of a message, without a packet id.
    ///
    /// # Errors
    /// [`Outcome::Rejected`] when the message has no topic that can be published to.
    pub(super) fn publish(&self, message: &Message, peer: &Peer) -> Result<Publish, Outcome> {
        let publish = message.publish.publish_msg_proto.as_ref();
        let topic = match &self.topic {
            Some(topic) => topic.clone(),
            None => {
                let name = publish.map_or("", |publish| publish.topic_name.as_str());
                topic::check_name(name, &topic::Rules::default())
                    .ok()
                    .and_then(|()| Text::from_bytes(Bytes::copy_from_slice(name.as_bytes())))
                    .ok_or_else(|| Outcome::Rejected {
                        class: "topic",
                        text: format!("{name:?} is no topic that can be published to"),
                    })?
            }
        };
        let retain = self.retain.unwrap_or_else(|| publish.is_some_and(|publish| publish.retain));
        let payload = sink::payload(message);
        let payload = match &self.envelope {
            None => payload,
            Some(envelope) => envelope.write(&message.publish, &Payload::Base64(&payload)).into(),
        };
        Ok(Publish {
            dup: false,
            qos: self.qos(message, peer),
            retain: retain && peer.retains,
            topic,
            packet_id: None,
            properties: self.properties(message),
            payload,
        })
    }
}
