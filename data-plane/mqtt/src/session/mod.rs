//! What a server does with packets: one [`Session`] per connection, a machine without I/O.
//!
//! Time is an argument ([`Now`]), what is to be done comes out as [`Effect`]s in the order in which it is to be done,
//! and everything that can grow has a limit in [`Limits`].
//!
//! ```text
//!  packet ──► Session ──► Effect::Publish { number, message } ──► driver routes, submits records
//!                ▲                                                     │
//!                └── routed(number, records) ◄── written(number, ok) ◄─┘   then PUBACK / PUBREC, in order
//! ```
//!
//! Every session is a clean one: nothing outlives the connection, CONNACK says `session present = 0` and, to a 5.0
//! client, a session expiry interval of 0. A will is therefore due as soon as the connection ends, whatever its delay:
//! the session ends with it (MQTT 5.0 §3.1.3.2.2).

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use crate::{
    codec::{
        DecodeError,
        property::{Properties, PropertiesBuilder, PropertyId},
    },
    packet::{
        Ack, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, RetainHandling, SubAck,
        Subscribe, Text, Unsubscribe, Will,
    },
    topic,
};

mod alias;
mod connect;
mod inbound;
mod keepalive;
mod outbound;
mod will;

use alias::Aliases;
use inbound::Inbound;
use keepalive::KeepAlive;
pub use outbound::Delivery;
use outbound::Outbound;

/// The time: a monotonic clock for deadlines and the wall clock for message expiry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back, from any origin.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970.
    pub epoch_ms: i64,
}

/// What a session may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the connection to a complete CONNECT, in ms.
    pub connect_timeout_ms: u64,
    /// The longest keep alive that a 5.0 client gets, in seconds; 3.x clients can't be told.
    pub keep_alive_max_s: u16,
    /// Unacknowledged QoS 1 and 2 publishes of a client: announced to 5.0 clients, enforced by not reading on for 3.x.
    pub receive_maximum: u16,
    /// Bytes of a packet, announced to 5.0 clients. The decoder enforces it.
    pub packet_bytes: u32,
    /// Topic aliases that a client may use.
    pub topic_alias_max: u16,
    /// Unacknowledged QoS 1 and 2 deliveries to a 3.x client; a 5.0 client says it itself.
    pub receive_maximum_v3: u16,
    /// Deliveries that wait for the client's acknowledgements.
    pub delayed_max: usize,
    /// How long they wait, in ms.
    pub delayed_ttl_ms: u64,
    /// Topic filters of a client.
    pub subscriptions_max: usize,
    /// Bytes of a 3.1 client's id.
    pub client_id_v31_max: usize,
    /// Rules for topics.
    pub rules: topic::Rules,
    /// Response Information for 5.0 clients that ask for it; empty: none.
    pub response_information: String,
}

impl Default for Limits {
    /// TBMQ's defaults (spec §1), and 10 s for CONNECT.
    fn default() -> Self {
        Self {
            connect_timeout_ms: 10_000,
            keep_alive_max_s: 600,
            receive_maximum: 1000,
            packet_bytes: 65_536,
            topic_alias_max: 10,
            receive_maximum_v3: 65_535,
            delayed_max: 1000,
            delayed_ttl_ms: 600_000,
            subscriptions_max: 1000,
            client_id_v31_max: 1024,
            rules: topic::Rules::default(),
            response_information: String::new(),
        }
    }
}

/// A message on its way from a publisher to whoever gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Client id of the publisher.
    pub publisher: Arc<str>,
    /// Its packet id; 0 at QoS 0 and for a will.
    pub packet_id: u16,
    /// As published.
    pub qos: Qos,
    /// As published.
    pub retain: bool,
    /// The topic, alias resolved.
    pub topic: Text,
    /// The payload.
    pub payload: Bytes,
    /// The properties that are forwarded: no topic alias, no expiry, no subscription identifier.
    pub properties: Properties,
    /// When it expires, ms since 1970.
    pub expires_at_ms: Option<i64>,
}

impl Message {
    /// A copy that does not keep the read buffer alive.
    pub fn detached(&self) -> Self {
        Self {
            topic: self.topic.detached(),
            payload: Bytes::copy_from_slice(&self.payload),
            properties: self.properties.detached(),
            ..self.clone()
        }
    }
}

/// What a subscriber wants for one filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The highest quality of service.
    pub qos: Qos,
    /// Not its own messages.
    pub no_local: bool,
    /// The retain flag as published; else 0.
    pub retain_as_published: bool,
    /// When retained messages are sent.
    pub retain_handling: RetainHandling,
    /// The identifier that goes with deliveries.
    pub identifier: Option<u32>,
}

/// What the driver is to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write this packet. Before the version is known: as 3.1.1.
    Send(Packet),
    /// Register this connection under [`Session::client_id`]; an older one of that id is taken over
    /// ([`End::TakenOver`]).
    Admit,
    /// Route this message. With a number, the driver answers with [`Session::routed`] and, for each record that it
    /// submitted, [`Session::written`]; without one (QoS 0 and wills) nobody waits.
    Publish {
        /// The number under which the session awaits the outcome.
        number: Option<u64>,
        /// The message, sliced from the read buffer.
        message: Message,
    },
    /// Add, or replace, a filter.
    Subscribe {
        /// The filter, on its own memory.
        filter: Text,
        /// Its options.
        options: Options,
    },
    /// Take a filter away.
    Unsubscribe {
        /// The filter.
        filter: Text,
    },
    /// Something was dropped: count it.
    Dropped(Dropped),
    /// Close the connection when what was sent is written. The last effect of a session; its filters are to be taken
    /// away ([`Session::filters`]).
    Close(End),
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// It is larger than the client accepts.
    TooLarge,
    /// It expired before it could be sent.
    Expired,
    /// It waited too long for the client's acknowledgements.
    Delayed,
    /// A QoS 0 publish with a topic that is not allowed.
    InvalidTopic,
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The client said DISCONNECT.
    Client,
    /// The connection broke.
    Network,
    /// CONNECT was refused.
    Refused,
    /// No CONNECT in time.
    ConnectTimeout,
    /// The client was silent for 1.5 times its keep alive.
    KeepAlive,
    /// Another connection took the client id over.
    TakenOver,
    /// The client sent what it must not send, or what can't be read.
    Protocol,
    /// A publish could not be kept, and a 3.x client can't be told in another way.
    PublishRefused,
    /// The client does not keep up with what it subscribed to.
    SlowConsumer,
    /// The server stops.
    ShuttingDown,
    /// The server takes no clients any more: another one does.
    Moved,
    /// An operator has ended it.
    Administrative,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting { deadline_ms: u64 },
    Connected,
    Closed,
}

/// One client's connection.
///
/// Invariants: a PUBACK or PUBREC without error leaves only after every record of its message was written, in the
/// order of the publishes; after [`Effect::Close`] no effect follows.
#[derive(Debug)]
pub struct Session {
    limits: Arc<Limits>,
    phase: Phase,
    version: Option<ProtocolVersion>,
    client_id: Arc<str>,
    had_expiry: bool,
    will: Option<Box<Will>>,
    keep_alive: KeepAlive,
    aliases: Aliases,
    inbound: Inbound,
    outbound: Outbound,
    filters: HashMap<Text, Options>,
}

impl Session {
    /// A connection that has not sent CONNECT yet.
    pub fn new(limits: Arc<Limits>, now: Now) -> Self {
        Self {
            phase: Phase::Connecting { deadline_ms: now.monotonic_ms + limits.connect_timeout_ms },
            version: None,
            client_id: Arc::from(""),
            had_expiry: false,
            will: None,
            keep_alive: KeepAlive::off(now.monotonic_ms),
            aliases: Aliases::new(limits.topic_alias_max),
            inbound: Inbound::new(limits.receive_maximum),
            outbound: Outbound::default(),
            filters: HashMap::new(),
            limits,
        }
    }

    /// The version, once CONNECT has told it.
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.version
    }

    /// The client id; empty before CONNECT.
    pub fn client_id(&self) -> &Arc<str> {
        &self.client_id
    }

    /// Whether CONNECT was accepted and the session has not ended.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// Whether [`Effect::Close`] was given.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The filters that the client has, with their options.
    pub fn filters(&self) -> impl ExactSizeIterator<Item = (&Text, &Options)> {
        self.filters.iter()
    }

    /// The keep alive that applies, in seconds; 0: none.
    pub fn keep_alive_s(&self) -> u16 {
        self.keep_alive.interval_s()
    }

    /// Whether no further packet should be read until publishes are acknowledged: a 3.x client can't be told how much
    /// it may send.
    pub fn is_saturated(&self) -> bool {
        self.version != Some(ProtocolVersion::V5) && self.inbound.is_full()
    }

    /// Whether publishes wait for their records to be written.
    pub fn has_unacknowledged(&self) -> bool {
        !self.inbound.is_idle()
    }

    /// How many more deliveries find room for certain.
    pub fn delivery_room(&self) -> usize {
        if self.is_connected() { self.outbound.room(&self.limits) } else { 0 }
    }

    /// When [`Session::tick`] is to be called, on the monotonic clock; it may rise silently with each packet.
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::Connecting { deadline_ms } => Some(deadline_ms),
            Phase::Connected => self.keep_alive.deadline_ms(),
            Phase::Closed => None,
        }
    }

    /// Ends the session if the client was silent for too long.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Connecting { deadline_ms } if now.monotonic_ms >= deadline_ms => {
                self.end(now, End::ConnectTimeout, out);
            }
            Phase::Connected if self.keep_alive.is_over(now.monotonic_ms) => {
                self.end(now, End::KeepAlive, out);
            }
            _ => {}
        }
    }

    /// The server stops reading: the client's silence is not its fault (architecture §4.14).
    pub fn pause_keep_alive(&mut self) {
        self.keep_alive.pause();
    }

    /// The server reads again.
    pub fn resume_keep_alive(&mut self, now: Now) {
        self.keep_alive.resume(now.monotonic_ms);
    }

    /// Handles the first packet. `assigned` makes a client id that nobody has.
    pub fn connect(
        &mut self,
        now: Now,
        connect: &Connect,
        assigned: impl FnOnce() -> String,
        out: &mut Vec<Effect>,
    ) {
        self.version = Some(connect.version);
        self.keep_alive = KeepAlive::off(now.monotonic_ms);
        match connect::check(connect, &self.limits, assigned) {
            Ok(accepted) => {
                self.phase = Phase::Connected;
                self.client_id = accepted.client_id;
                self.had_expiry =
                    connect.properties.number(PropertyId::SessionExpiryInterval).is_some_and(|s| s > 0);
                self.will = connect.will.as_ref().map(|will| Box::new(will::kept(will)));
                self.keep_alive = KeepAlive::new(accepted.keep_alive_s, now.monotonic_ms);
                self.outbound = Outbound::new(accepted.window, accepted.packet_bytes_max);
                out.push(Effect::Admit);
                out.push(Effect::Send(Packet::ConnAck(accepted.connack)));
            }
            Err(reason) => {
                out.push(Effect::Send(Packet::ConnAck(connect::refusal(reason))));
                self.close(End::Refused, out);
            }
        }
    }

    /// Handles any packet after the first.
    pub fn packet(&mut self, now: Now, packet: Packet, out: &mut Vec<Effect>) {
        if self.phase != Phase::Connected {
            return;
        }
        self.keep_alive.heard(now.monotonic_ms);
        match packet {
            Packet::Publish(publish) => self.publish(now, publish, out),
            Packet::PubRel(ack) => match self.inbound.release(ack.packet_id) {
                inbound::Released::Known => {
                    out.push(Effect::Send(Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success))));
                }
                inbound::Released::Unknown => {
                    let reason = ReasonCode::PacketIdentifierNotFound;
                    out.push(Effect::Send(Packet::PubComp(Ack::new(ack.packet_id, reason))));
                }
                inbound::Released::TooEarly => self.fail(now, ReasonCode::ProtocolError, End::Protocol, out),
            },
            Packet::PubAck(ack) => self.acknowledged(now, |outbound| outbound.puback(ack.packet_id), out),
            Packet::PubRec(ack) => self.pubrec(now, &ack, out),
            Packet::PubComp(ack) => self.acknowledged(now, |outbound| outbound.pubcomp(ack.packet_id), out),
            Packet::Subscribe(subscribe) => self.subscribe(now, &subscribe, out),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe, out),
            Packet::PingReq => out.push(Effect::Send(Packet::PingResp)),
            Packet::Disconnect(disconnect) => self.disconnected(now, &disconnect, out),
            // Only servers send these, and there is no authentication exchange to go on with.
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp
            | Packet::Auth(_) => self.fail(now, ReasonCode::ProtocolError, End::Protocol, out),
        }
    }

    /// The bytes that came are not a packet: ends this session, with the reason for a 5.0 client.
    pub fn malformed(&mut self, now: Now, error: DecodeError, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Connecting { .. }) {
            // Who is not speaking MQTT gets no answer; who speaks another version of it does (MQTT-3.1.2-2).
            if error.reason == ReasonCode::UnsupportedProtocolVersion {
                out.push(Effect::Send(Packet::ConnAck(connect::refusal(error.reason))));
            }
            self.close(End::Protocol, out);
            return;
        }
        self.fail(now, error.reason, End::Protocol, out);
    }

    /// The message with this number was submitted as this many records; `matched` when anybody gets it.
    pub fn routed(&mut self, now: Now, number: u64, records: u32, matched: bool, out: &mut Vec<Effect>) {
        self.inbound.routed(number, records, matched);
        self.acknowledge(now, out);
    }

    /// A record of the message with this number was written, or not and why. Unknown numbers are ignored.
    pub fn written(&mut self, now: Now, number: u64, result: Result<(), ReasonCode>, out: &mut Vec<Effect>) {
        self.inbound.written(number, result);
        self.acknowledge(now, out);
    }

    /// The message with this number can't be kept: as a record that was not written.
    pub fn refuse(&mut self, number: u64, reason: ReasonCode) {
        self.inbound.refuse(number, reason);
    }

    /// Delivers a message, or keeps it until the client has acknowledged earlier ones. A client that leaves no room
    /// any more is disconnected.
    pub fn deliver(&mut self, now: Now, delivery: Delivery, out: &mut Vec<Effect>) {
        if self.phase != Phase::Connected {
            return;
        }
        let version = self.version.unwrap_or(ProtocolVersion::V311);
        if self.outbound.deliver(now, delivery, version, &self.limits, out).is_err() {
            self.end(now, End::SlowConsumer, out);
        }
    }

    /// Ends the session for a reason of the driver's, telling a 5.0 client why and publishing the will where one is
    /// due.
    pub fn end(&mut self, now: Now, end: End, out: &mut Vec<Effect>) {
        let reason = match end {
            _ if self.phase != Phase::Connected => return self.close(end, out),
            End::KeepAlive => Some(ReasonCode::KeepAliveTimeout),
            End::TakenOver => Some(ReasonCode::SessionTakenOver),
            End::ShuttingDown => Some(ReasonCode::ServerShuttingDown),
            End::Moved => Some(ReasonCode::UseAnotherServer),
            End::Administrative => Some(ReasonCode::AdministrativeAction),
            End::SlowConsumer => Some(ReasonCode::QuotaExceeded),
            End::Protocol => Some(ReasonCode::ProtocolError),
            End::PublishRefused | End::Refused | End::ConnectTimeout => Some(ReasonCode::UnspecifiedError),
            End::Client | End::Network => None,
        };
        match reason {
            Some(reason) => self.fail(now, reason, end, out),
            None => {
                self.publish_will(now, out);
                self.close(end, out);
            }
        }
    }

    fn fail(&mut self, now: Now, reason: ReasonCode, end: End, out: &mut Vec<Effect>) {
        if self.phase == Phase::Closed {
            return;
        }
        // A 3.x client can only be told by closing.
        if self.version == Some(ProtocolVersion::V5) {
            out.push(Effect::Send(Packet::Disconnect(Disconnect::new(reason))));
        }
        self.publish_will(now, out);
        self.close(end, out);
    }

    fn publish_will(&mut self, now: Now, out: &mut Vec<Effect>) {
        if let Some(will) = self.will.take() {
            let message = will::message(*will, self.client_id.clone(), now);
            out.push(Effect::Publish { number: None, message });
        }
    }

    fn close(&mut self, end: End, out: &mut Vec<Effect>) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            out.push(Effect::Close(end));
        }
    }

    fn disconnected(&mut self, now: Now, disconnect: &Disconnect, out: &mut Vec<Effect>) {
        let expiry = disconnect.properties.number(PropertyId::SessionExpiryInterval).unwrap_or(0);
        if expiry > 0 && !self.had_expiry {
            // MQTT 5.0 §3.14.2.2.2
            return self.fail(now, ReasonCode::ProtocolError, End::Protocol, out);
        }
        if disconnect.reason == ReasonCode::Success {
            self.will = None;
        }
        self.end(now, End::Client, out);
    }

    fn publish(&mut self, now: Now, mut publish: Publish, out: &mut Vec<Effect>) {
        let forwarded = match forwarded(&mut publish, &mut self.aliases, now) {
            Ok(forwarded) => forwarded,
            Err(reason) => return self.fail(now, reason, End::Protocol, out),
        };
        let is_valid =
            topic::check_name(&publish.topic, &self.limits.rules).is_ok() && !is_reserved(&publish.topic);
        let number = match publish.packet_id {
            Some(packet_id) => {
                match self.inbound.receive(packet_id, publish.qos, self.version == Some(ProtocolVersion::V5))
                {
                    Ok(inbound::Received::New(number)) => Some(number),
                    Ok(inbound::Received::Pending) => return,
                    Ok(inbound::Received::Recorded) => {
                        out.push(Effect::Send(Packet::PubRec(Ack::new(packet_id, ReasonCode::Success))));
                        return;
                    }
                    Err(inbound::Exceeded) => {
                        return self.fail(now, ReasonCode::ReceiveMaximumExceeded, End::Protocol, out);
                    }
                }
            }
            None => None,
        };
        if !is_valid {
            match number {
                Some(number) => {
                    self.inbound.refuse(number, ReasonCode::TopicNameInvalid);
                    self.inbound.routed(number, 0, true);
                    self.acknowledge(now, out);
                }
                None if self.version == Some(ProtocolVersion::V5) => {
                    out.push(Effect::Dropped(Dropped::InvalidTopic));
                }
                None => self.fail(now, ReasonCode::TopicNameInvalid, End::Protocol, out),
            }
            return;
        }
        let message = Message {
            publisher: self.client_id.clone(),
            packet_id: publish.packet_id.unwrap_or(0),
            qos: publish.qos,
            retain: publish.retain,
            topic: publish.topic,
            payload: publish.payload,
            properties: forwarded.properties,
            expires_at_ms: forwarded.expires_at_ms,
        };
        out.push(Effect::Publish { number, message });
    }

    /// Sends the acknowledgements that are due.
    fn acknowledge(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.phase != Phase::Connected {
            return;
        }
        let is_v5 = self.version == Some(ProtocolVersion::V5);
        while let Some(due) = self.inbound.next_due() {
            if due.reason.is_error() && !is_v5 {
                let end = if due.reason == ReasonCode::TopicNameInvalid {
                    End::Protocol
                } else {
                    End::PublishRefused
                };
                return self.fail(now, due.reason, end, out);
            }
            let ack = Ack::new(due.packet_id, due.reason);
            out.push(Effect::Send(match due.qos {
                Qos::ExactlyOnce => Packet::PubRec(ack),
                _ => Packet::PubAck(ack),
            }));
        }
    }

    fn acknowledged(
        &mut self,
        now: Now,
        acknowledge: impl FnOnce(&mut Outbound) -> Result<(), outbound::WrongStage>,
        out: &mut Vec<Effect>,
    ) {
        if acknowledge(&mut self.outbound).is_err() {
            return self.fail(now, ReasonCode::ProtocolError, End::Protocol, out);
        }
        self.send_delayed(now, out);
    }

    fn pubrec(&mut self, now: Now, ack: &Ack, out: &mut Vec<Effect>) {
        match self.outbound.pubrec(ack.packet_id, ack.reason) {
            Ok(Some(reason)) => {
                out.push(Effect::Send(Packet::PubRel(Ack::new(ack.packet_id, reason))));
            }
            Ok(None) => self.send_delayed(now, out),
            Err(outbound::WrongStage) => self.fail(now, ReasonCode::ProtocolError, End::Protocol, out),
        }
    }

    fn send_delayed(&mut self, now: Now, out: &mut Vec<Effect>) {
        let version = self.version.unwrap_or(ProtocolVersion::V311);
        self.outbound.send_delayed(now, version, out);
    }

    fn subscribe(&mut self, now: Now, subscribe: &Subscribe, out: &mut Vec<Effect>) {
        let identifier = subscribe.properties.number(PropertyId::SubscriptionIdentifier);
        let mut reasons = Vec::with_capacity(subscribe.subscriptions.len());
        for wanted in &subscribe.subscriptions {
            let shared = topic::shared(&wanted.filter);
            if wanted.no_local && wanted.filter.starts_with("$share/") {
                // MQTT-3.8.3-4
                return self.fail(now, ReasonCode::ProtocolError, End::Protocol, out);
            }
            reasons.push(match shared {
                Ok(Some(_)) => ReasonCode::SharedSubscriptionsNotSupported,
                Ok(None) if topic::check_filter(&wanted.filter, &self.limits.rules).is_ok() => {
                    let is_new = !self.filters.contains_key(&wanted.filter);
                    if is_new && self.filters.len() >= self.limits.subscriptions_max {
                        ReasonCode::QuotaExceeded
                    } else {
                        let filter = wanted.filter.detached();
                        let options = Options {
                            qos: wanted.qos,
                            no_local: wanted.no_local,
                            retain_as_published: wanted.retain_as_published,
                            retain_handling: wanted.retain_handling,
                            identifier,
                        };
                        self.filters.insert(filter.clone(), options);
                        out.push(Effect::Subscribe { filter, options });
                        match wanted.qos {
                            Qos::AtMostOnce => ReasonCode::Success,
                            Qos::AtLeastOnce => ReasonCode::GrantedQos1,
                            Qos::ExactlyOnce => ReasonCode::GrantedQos2,
                        }
                    }
                }
                Ok(None) | Err(_) => ReasonCode::TopicFilterInvalid,
            });
        }
        let suback = SubAck { packet_id: subscribe.packet_id, reasons, properties: Properties::NONE };
        out.push(Effect::Send(Packet::SubAck(suback)));
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe, out: &mut Vec<Effect>) {
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            reasons.push(if self.filters.remove(filter).is_some() {
                out.push(Effect::Unsubscribe { filter: filter.detached() });
                ReasonCode::Success
            } else {
                ReasonCode::NoSubscriptionExisted
            });
        }
        let unsuback = SubAck { packet_id: unsubscribe.packet_id, reasons, properties: Properties::NONE };
        out.push(Effect::Send(Packet::UnsubAck(unsuback)));
    }
}

/// Names that clients may not publish to: those of the server itself, and what looks like a shared filter.
fn is_reserved(topic: &str) -> bool {
    topic.starts_with('$')
        && ["$SYS", "$share"]
            .iter()
            .any(|tree| topic.strip_prefix(tree).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

struct Forwarded {
    properties: Properties,
    expires_at_ms: Option<i64>,
}

/// Resolves the topic alias, and splits what is forwarded as it is from what is not.
fn forwarded(publish: &mut Publish, aliases: &mut Aliases, now: Now) -> Result<Forwarded, ReasonCode> {
    let mut alias = None;
    let mut expiry_s = None;
    if !publish.properties.is_empty() {
        for (id, value) in publish.properties.iter() {
            match (id, value) {
                (PropertyId::TopicAlias, crate::codec::property::Value::Number(number)) => {
                    alias = Some(number);
                }
                (PropertyId::MessageExpiryInterval, crate::codec::property::Value::Number(s)) => {
                    expiry_s = Some(s);
                }
                // MQTT-3.3.4-6: only a server sends it.
                (PropertyId::SubscriptionIdentifier, _) => return Err(ReasonCode::ProtocolError),
                _ => {}
            }
        }
    }
    if let Some(alias) = alias {
        publish.topic = aliases.resolve(alias as u16, &publish.topic)?;
    } else if publish.topic.is_empty() {
        // MQTT 5.0 §3.3.2.1: an empty topic stands for an alias only. In 3.x it is just not a topic name.
        return Err(ReasonCode::ProtocolError);
    }
    let properties = if alias.is_none() && expiry_s.is_none() {
        publish.properties.clone()
    } else {
        without(&publish.properties, &[PropertyId::TopicAlias, PropertyId::MessageExpiryInterval])
    };
    Ok(Forwarded { properties, expires_at_ms: expiry_s.map(|s| now.epoch_ms + i64::from(s) * 1000) })
}

fn without(properties: &Properties, unwanted: &[PropertyId]) -> Properties {
    properties
        .iter()
        .filter(|(id, _)| !unwanted.contains(id))
        .fold(PropertiesBuilder::new(), |builder, (id, value)| builder.copy(id, &value))
        .build()
}

#[cfg(test)]
mod tests;
