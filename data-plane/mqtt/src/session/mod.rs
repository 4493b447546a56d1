//! What a server does with packets: one [`Session`] per client, a machine without I/O that may live through several
//! connections.
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
//! ```text
//!  Connecting ──connect()──► Authenticate ──authenticated()──► Admit ──open()──► Connected ──► Close ──► over, when
//!                              │      ▲                          │                 ▲            │      it does not
//!                 challenge() AUTH   Prove              the session of before    resume()       │      outlive it
//!                              └──────┘                                            └─────────── parked ──tick()──►
//!                                                                                               will, then Over
//! ```
//!
//! A parked session keeps its filters, what is in flight in both directions with its packet ids, and its will until
//! that is due. What waits to be sent to it is not here but in the driver's queue: the machine is given as much of it
//! as the client's window takes ([`Session::window_room`]), says what it has sent ([`Effect::InFlight`]), and what the
//! client has acknowledged ([`Effect::Settled`]).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::{
    codec::{
        DecodeError,
        decode::is_connect_reason,
        encode,
        property::{Properties, PropertiesBuilder, PropertyId},
    },
    packet::{Ack, Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, RetainHandling, Text, Will},
    small_map::SmallMap,
    topic,
};

mod access;
mod alias;
mod auth;
mod connect;
mod ending;
mod inbound;
mod keepalive;
mod outbound;
mod outside;
mod state;
mod subscribing;
mod will;

pub use access::Access;
use alias::Aliases;
pub use auth::Proven;
use auth::{Exchange, Login};
use inbound::Inbound;
use keepalive::KeepAlive;
pub use outbound::{Delivery, InFlight, Stage};
use outbound::{Outbound, Reception};
pub use outside::{NotAssigned, Summary};
pub use state::State;

/// The time: a monotonic clock for deadlines and the wall clock for message expiry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back, from any origin.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970.
    pub epoch_ms: i64,
}

impl Now {
    /// The wall clock's time when the monotonic clock showed, or will show, this.
    pub fn epoch_ms_of(&self, monotonic_ms: u64) -> i64 {
        self.epoch_ms + (monotonic_ms.cast_signed() - self.monotonic_ms.cast_signed())
    }
}

/// A session expiry interval that never ends (MQTT 5.0 §3.1.2.11.2).
pub const NEVER_S: u32 = u32::MAX;

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
    /// Bytes of unacknowledged QoS 1 deliveries of shared subscriptions, about, which are kept for other members: at the
    /// limit nothing more above QoS 0 is sent to a client without a queue.
    pub shared_bytes_max: usize,
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
    /// Whether messages are retained. When not, a 5.0 client that asks for it is refused; a 3.x client can't be told,
    /// and its message is an ordinary one.
    pub retain_available: bool,
    /// Response Information for 5.0 clients that ask for it; empty: none.
    pub response_information: String,
    /// The longest session expiry interval that a 5.0 client gets, in seconds; [`NEVER_S`]: whatever it wants.
    pub session_expiry_max_s: u32,
    /// How long the session of a 3.x client without `clean session` outlives its connection, in seconds;
    /// [`NEVER_S`]: for ever.
    pub session_expiry_v3_s: u32,
    /// Bytes of a topic for which a delivery uses an alias, where the client takes aliases. At most
    /// [`Limits::topic_alias_max`] topics of a connection get one.
    pub alias_topic_bytes_min: usize,
    /// Where 5.0 clients are sent when the server stops or takes no clients any more (Server Reference); empty: they
    /// are not told.
    pub server_reference: String,
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
            shared_bytes_max: 16 << 20,
            delayed_max: 1000,
            delayed_ttl_ms: 600_000,
            subscriptions_max: 1000,
            client_id_v31_max: 1024,
            rules: topic::Rules::default(),
            retain_available: true,
            response_information: String::new(),
            session_expiry_max_s: NEVER_S,
            session_expiry_v3_s: NEVER_S,
            alias_topic_bytes_min: 50,
            server_reference: String::new(),
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
    /// A copy that does not keep the read buffer alive, all in one piece of memory.
    pub fn detached(&self) -> Self {
        let parts = [self.topic.bytes(), self.properties.bytes(), &self.payload[..]];
        let mut rest = Bytes::from(parts.concat());
        let topic = Text::checked(rest.split_to(self.topic.len()));
        let properties = Properties::checked(rest.split_to(self.properties.bytes().len()));
        Self {
            publisher: self.publisher.clone(),
            packet_id: self.packet_id,
            qos: self.qos,
            retain: self.retain,
            topic,
            payload: rest,
            properties,
            expires_at_ms: self.expires_at_ms,
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
    /// CONNECT can be accepted if the client is who it says: the driver answers with [`Session::authenticated`],
    /// [`Session::challenge`] or [`Session::not_authenticated`], and gives the session no packet before
    /// ([`Session::awaits_verdict`]). Nothing was done yet that anybody else could notice.
    Authenticate,
    /// The client has sent AUTH: the driver answers as to [`Effect::Authenticate`].
    Prove {
        /// Its Authentication Data, never empty.
        data: Bytes,
        /// It begins to authenticate anew; else it answers a challenge.
        is_again: bool,
    },
    /// CONNECT is accepted: register this connection under [`Session::client_id`]. Another connection of that id is
    /// taken over ([`End::TakenOver`]), and the session that it has, or has left behind, goes on with this one
    /// ([`Session::resume`]) or is over ([`Session::discard`]). Without one, [`Session::open`] is to be called.
    Admit {
        /// A session that is there goes on.
        resume: bool,
    },
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
        /// The client had no subscription with this filter.
        is_new: bool,
    },
    /// Without the client's doing its options of a filter are these now: it may have less of it than it had, or was given it
    /// ([`Session::assign_filters`]). No retained messages are sent.
    Restrict {
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
    /// A delivery from the session's queue was sent, or has come further: keep it until it is settled.
    InFlight {
        /// Its place in the queue.
        seq: u64,
        /// Its packet id.
        packet_id: u16,
        /// How far it has come.
        stage: Stage,
    },
    /// A delivery from the session's queue is done with.
    Settled {
        /// Its place in the queue.
        seq: u64,
    },
    /// The client has released a QoS 2 publish, or it was refused: its packet id stands for another from now on. Only
    /// for sessions that outlive their connections.
    Released {
        /// The packet id.
        packet_id: u16,
    },
    /// Something was dropped: count it.
    Dropped(Dropped),
    /// Close the connection when what was sent is written. Unless the session is parked then
    /// ([`Session::is_parked`]), this is its last effect, and its filters are to be taken away
    /// ([`Session::filters`]).
    Close(End),
    /// The parked session is over: its filters, its queue and all that was kept of it are to be taken away.
    Over,
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
    /// A QoS 0 publish, or a will, that the client may not publish.
    NotAuthorized,
    /// A QoS 0 publish beyond a rate limit.
    RateLimit,
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
    /// A publish, or the end of a subscription, could not be kept, or is beyond a rate limit, and a 3.x client can't be
    /// told in another way.
    PublishRefused,
    /// The client does not keep up with what it subscribed to.
    SlowConsumer,
    /// The server stops.
    ShuttingDown,
    /// The server takes no clients any more: another one does.
    Moved,
    /// An operator has ended it.
    Administrative,
    /// The client has no right any more to be connected, or, of 3.x, to what it has published.
    NotAuthorized,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting {
        deadline_ms: u64,
    },
    Connected,
    /// Without a connection, until a time of the monotonic clock; `None`: for ever.
    Parked {
        expires_ms: Option<u64>,
        will_due_ms: Option<u64>,
    },
    Closed,
}

/// One client's session, with its connection if there is one.
///
/// Invariants: a PUBACK or PUBREC without error leaves only after every record of its message was written, in the
/// order of the publishes; after [`Effect::Close`] nothing is sent until [`Session::resume`]; no packet id stands for
/// two deliveries at a time.
#[derive(Debug)]
pub struct Session {
    limits: Arc<Limits>,
    phase: Phase,
    version: Option<ProtocolVersion>,
    client_id: Arc<str>,
    /// An accepted CONNECT that waits for [`Session::open`].
    accepted: Option<Box<connect::Accepted>>,
    /// The client has asked for a session that outlives its connection.
    had_expiry: bool,
    /// How long it does, in seconds.
    expiry_s: u32,
    /// It is, or goes on from, a session that outlives its connections.
    is_persistent: bool,
    wants_problems: bool,
    packet_bytes_max: Option<u32>,
    will: Option<Box<Will>>,
    keep_alive: KeepAlive,
    aliases: Aliases,
    inbound: Inbound,
    outbound: Outbound,
    filters: SmallMap<Text, Options>,
    exchange: Exchange,
    /// `None`: nothing was asked, and everything is allowed.
    login: Option<Box<Login>>,
}

impl Session {
    /// A connection that has not sent CONNECT yet.
    pub fn new(limits: Arc<Limits>, now: Now) -> Self {
        Self {
            phase: Phase::Connecting { deadline_ms: now.monotonic_ms + limits.connect_timeout_ms },
            version: None,
            client_id: Arc::from(""),
            accepted: None,
            had_expiry: false,
            expiry_s: 0,
            is_persistent: false,
            wants_problems: true,
            packet_bytes_max: None,
            will: None,
            keep_alive: KeepAlive::off(now.monotonic_ms),
            aliases: Aliases::new(limits.topic_alias_max),
            inbound: Inbound::new(limits.receive_maximum),
            outbound: Outbound::new(),
            filters: SmallMap::default(),
            exchange: Exchange::None,
            login: None,
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

    /// Whether there is no connection any more: [`Effect::Close`] was given.
    pub fn is_closed(&self) -> bool {
        self.is_parked() || self.phase == Phase::Closed
    }

    /// Whether the session has outlived its connection and waits for another.
    pub fn is_parked(&self) -> bool {
        matches!(self.phase, Phase::Parked { .. })
    }

    /// Whether deliveries at QoS 1 and 2 come from a queue that outlives the connection.
    pub fn is_persistent(&self) -> bool {
        self.is_persistent
    }

    /// How long the session outlives its connection, in seconds; 0: it does not, [`NEVER_S`]: for ever.
    pub fn expiry_s(&self) -> u32 {
        self.expiry_s
    }

    /// The filters that the client has, with their options.
    pub fn filters(&self) -> impl ExactSizeIterator<Item = (&Text, &Options)> {
        self.filters.iter()
    }

    /// The keep alive that applies, in seconds; 0: none.
    pub fn keep_alive_s(&self) -> u16 {
        self.accepted.as_ref().map_or_else(|| self.keep_alive.interval_s(), |accepted| accepted.keep_alive_s)
    }

    /// Whether no further packet should be read until publishes are acknowledged: a 3.x client can't be told how much
    /// it may send.
    pub fn is_saturated(&self) -> bool {
        self.version != Some(ProtocolVersion::V5) && self.inbound.is_full()
    }

    /// All publishes with lower numbers have been acknowledged, or never will be.
    pub fn acknowledged_below(&self) -> u64 {
        self.inbound.acknowledged_below()
    }

    /// Whether publishes wait for their records to be written.
    pub fn has_unacknowledged(&self) -> bool {
        !self.inbound.is_idle()
    }

    /// How many more deliveries find room for certain.
    pub fn delivery_room(&self) -> usize {
        if self.is_connected() { self.outbound.room(&self.limits) } else { 0 }
    }

    /// How many deliveries would be sent at once, at any quality of service.
    pub fn window_room(&self) -> usize {
        if self.is_connected() { self.outbound.window_room() } else { 0 }
    }

    /// Offers to others, oldest first, what the client leaves undone of shared subscriptions: what was sent at QoS 1 and
    /// not acknowledged, and what was not sent yet. What `taken` takes is no longer this session's. A message whose
    /// delivery at QoS 2 has begun goes to nobody else (MQTT-4.8.2-5).
    pub fn hand_over_shared(&mut self, taken: impl FnMut(&Delivery) -> bool, out: &mut Vec<Effect>) {
        self.outbound.hand_over_shared(taken, out);
    }

    /// The will that is still to be published, and when it is due without a connection, on the monotonic clock; `None`
    /// while the client is connected.
    pub fn will(&self) -> Option<(&Will, Option<u64>)> {
        let due_ms = match self.phase {
            Phase::Parked { will_due_ms, .. } => will_due_ms,
            _ => None,
        };
        self.will.as_deref().map(|will| (will, due_ms))
    }

    /// When [`Session::tick`] is to be called, on the monotonic clock; it may rise silently with each packet.
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::Connecting { deadline_ms } => Some(deadline_ms),
            Phase::Connected => self.keep_alive.deadline_ms().into_iter().chain(self.login_until_ms()).min(),
            Phase::Parked { expires_ms, will_due_ms } => expires_ms.into_iter().chain(will_due_ms).min(),
            Phase::Closed => None,
        }
    }

    /// Ends the connection if the client was silent for too long, or its login is over; publishes the will of a parked session when it is
    /// due, and ends the session when it expires.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Connecting { deadline_ms } if now.monotonic_ms >= deadline_ms => {
                self.end(now, End::ConnectTimeout, out);
            }
            Phase::Connected
                if self.login_until_ms().is_some_and(|until_ms| now.monotonic_ms >= until_ms) =>
            {
                self.fail(now, ReasonCode::NotAuthorized, End::NotAuthorized, out);
            }
            Phase::Connected if self.keep_alive.is_over(now.monotonic_ms) => {
                self.end(now, End::KeepAlive, out);
            }
            Phase::Parked { expires_ms: Some(expires_ms), .. } if now.monotonic_ms >= expires_ms => {
                self.discard(now, out);
            }
            Phase::Parked { expires_ms, will_due_ms: Some(due_ms) } if now.monotonic_ms >= due_ms => {
                self.phase = Phase::Parked { expires_ms, will_due_ms: None };
                self.send_will(now, out);
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

    /// Handles any packet after the first.
    pub fn packet(&mut self, now: Now, packet: Packet, out: &mut Vec<Effect>) {
        if self.phase != Phase::Connected {
            return self.answered(now, &packet, out);
        }
        self.keep_alive.heard(now.monotonic_ms);
        match packet {
            Packet::Publish(publish) => self.publish(now, publish, false, out),
            Packet::PubRel(ack) => match self.inbound.release(ack.packet_id) {
                inbound::Released::Known => {
                    self.released(ack.packet_id, out);
                    out.push(Effect::Send(Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success))));
                }
                inbound::Released::Unknown => {
                    let reason = ReasonCode::PacketIdentifierNotFound;
                    out.push(Effect::Send(Packet::PubComp(Ack::new(ack.packet_id, reason))));
                }
                inbound::Released::TooEarly => self.fail(now, ReasonCode::ProtocolError, End::Protocol, out),
            },
            Packet::PubAck(ack) => self.acknowledged(now, ack.packet_id, Outbound::puback, out),
            Packet::PubRec(ack) => self.pubrec(now, &ack, out),
            Packet::PubComp(ack) => self.acknowledged(now, ack.packet_id, Outbound::pubcomp, out),
            Packet::Subscribe(subscribe) => self.subscribe(now, &subscribe, out),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(now, &unsubscribe, out),
            Packet::PingReq => out.push(Effect::Send(Packet::PingResp)),
            Packet::Disconnect(disconnect) => self.disconnected(now, &disconnect, out),
            Packet::Auth(auth) => self.auth(now, &auth, out),
            // Only servers send these.
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => self.fail(now, ReasonCode::ProtocolError, End::Protocol, out),
        }
    }

    /// Takes a PUBLISH that is beyond a rate limit: refuses it (0x97), drops it at QoS 0, and closes a 3.x connection.
    /// One that is repeated is answered as if it were not.
    pub fn exceed(&mut self, now: Now, publish: Publish, out: &mut Vec<Effect>) {
        if self.phase == Phase::Connected {
            self.keep_alive.heard(now.monotonic_ms);
            self.publish(now, publish, true, out);
        }
    }

    /// The bytes that came are not a packet: ends this session, with the reason for a 5.0 client.
    pub fn malformed(&mut self, now: Now, error: DecodeError, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Connecting { .. }) {
            // Who is not speaking MQTT gets no answer, and neither does a malformed CONNECT of 3.x (MQTT-3.1.4-1); who
            // speaks another version is told so (MQTT-3.1.2-2), and 5.0 has a reason for all else.
            let is_v5 = error.version.is_some_and(ProtocolVersion::is_v5);
            if is_v5 || error.reason == ReasonCode::UnsupportedProtocolVersion {
                self.version = error.version;
                // What comes after CONNECT, while the client proves who it is, may be wrong in ways that only DISCONNECT has.
                let has_code = is_connect_reason(error.reason.byte());
                let reason = if has_code { error.reason } else { ReasonCode::ProtocolError };
                out.push(Effect::Send(Packet::ConnAck(connect::refusal(reason))));
            }
            self.close(now, End::Protocol, out);
            return;
        }
        self.fail_with(now, error.reason, Some(error.text), End::Protocol, out);
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
        if self.outbound.deliver(now, delivery, None, &self.limits, out).is_err() {
            self.end(now, End::SlowConsumer, out);
        }
    }

    /// Sends a message from the session's queue, where it stands at `seq`. To be called in the order of the queue and
    /// only while there is room for it ([`Session::window_room`]).
    pub fn deliver_queued(&mut self, now: Now, seq: u64, delivery: Delivery, out: &mut Vec<Effect>) {
        if self.phase == Phase::Connected
            && self.outbound.deliver(now, delivery, Some(seq), &self.limits, out).is_err()
        {
            self.end(now, End::SlowConsumer, out);
        }
    }

    /// Whether the client takes a packet of this size.
    fn fits(&self, packet: &Packet) -> bool {
        let version = self.version.unwrap_or(ProtocolVersion::V311);
        self.packet_bytes_max.is_none_or(|max| encoded_length(packet, version) <= max as usize)
    }

    /// A reason string for an acknowledgement, where the client wants to know (MQTT5-3.1.2-29) and takes its length.
    fn explained(&self, text: Option<&str>) -> Properties {
        match text {
            Some(text) if self.version == Some(ProtocolVersion::V5) && self.wants_problems => {
                let properties = PropertiesBuilder::new().text(PropertyId::ReasonString, text).build();
                let ack = Ack { properties, ..Ack::new(1, ReasonCode::UnspecifiedError) };
                if self.fits(&Packet::PubAck(ack.clone())) { ack.properties } else { Properties::NONE }
            }
            _ => Properties::NONE,
        }
    }

    fn released(&self, packet_id: u16, out: &mut Vec<Effect>) {
        if self.is_persistent {
            out.push(Effect::Released { packet_id });
        }
    }

    fn publish(&mut self, now: Now, mut publish: Publish, is_surplus: bool, out: &mut Vec<Effect>) {
        let forwarded = match forwarded(&mut publish, &mut self.aliases, now) {
            Ok(forwarded) => forwarded,
            Err(reason) => return self.fail(now, reason, End::Protocol, out),
        };
        if publish.retain && !self.limits.retain_available && self.version == Some(ProtocolVersion::V5) {
            // MQTT5-3.2.2-14
            return self.fail(now, ReasonCode::RetainNotSupported, End::Protocol, out);
        }
        let number = match publish.packet_id {
            Some(packet_id) => {
                let is_strict = self.version == Some(ProtocolVersion::V5);
                match self.inbound.receive(packet_id, publish.qos, publish.dup, is_strict) {
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
        let refused = if is_surplus { Err(ReasonCode::QuotaExceeded) } else { self.check_publish(&publish) };
        if let Err(reason) = refused {
            match number {
                Some(number) => {
                    self.inbound.refuse(number, reason);
                    self.inbound.routed(number, 0, true);
                    self.acknowledge(now, out);
                }
                None if self.version == Some(ProtocolVersion::V5) => {
                    out.push(Effect::Dropped(match reason {
                        ReasonCode::NotAuthorized => Dropped::NotAuthorized,
                        ReasonCode::QuotaExceeded => Dropped::RateLimit,
                        _ => Dropped::InvalidTopic,
                    }));
                }
                None => self.fail(now, reason, end_of(reason), out),
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

    /// Whether the client may publish this: to a topic that clients publish to, and that it is allowed to.
    fn check_publish(&mut self, publish: &Publish) -> Result<(), ReasonCode> {
        let name: &str = &publish.topic;
        if topic::check_name(name, &self.limits.rules).is_err() || is_reserved(name) {
            return Err(ReasonCode::TopicNameInvalid);
        }
        let may_publish =
            self.access().is_none_or(|access| access.may_publish(name, publish.qos, publish.retain));
        if may_publish { Ok(()) } else { Err(ReasonCode::NotAuthorized) }
    }

    /// Sends the acknowledgements that are due.
    fn acknowledge(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !self.is_connected() && !self.is_parked() {
            return;
        }
        let is_v5 = self.version == Some(ProtocolVersion::V5);
        while let Some(due) = self.inbound.next_due() {
            if due.qos == Qos::ExactlyOnce && due.reason.is_error() {
                self.released(due.packet_id, out);
            }
            if due.is_silent {
                continue;
            }
            if due.reason.is_error() && !is_v5 {
                return self.fail(now, due.reason, end_of(due.reason), out);
            }
            let properties = self.explained(explanation(due.reason));
            let ack = Ack { packet_id: due.packet_id, reason: due.reason, properties };
            out.push(Effect::Send(match due.qos {
                Qos::ExactlyOnce => Packet::PubRec(ack),
                _ => Packet::PubAck(ack),
            }));
        }
    }

    fn acknowledged(
        &mut self,
        now: Now,
        packet_id: u16,
        acknowledge: impl FnOnce(&mut Outbound, u16, &mut Vec<Effect>) -> Result<(), outbound::WrongStage>,
        out: &mut Vec<Effect>,
    ) {
        if acknowledge(&mut self.outbound, packet_id, out).is_err() {
            return self.fail(now, ReasonCode::ProtocolError, End::Protocol, out);
        }
        self.outbound.send_waiting(now, out);
    }

    fn pubrec(&mut self, now: Now, ack: &Ack, out: &mut Vec<Effect>) {
        match self.outbound.pubrec(ack.packet_id, ack.reason, out) {
            Ok(Some(reason)) => {
                out.push(Effect::Send(Packet::PubRel(Ack::new(ack.packet_id, reason))));
            }
            Ok(None) => self.outbound.send_waiting(now, out),
            Err(outbound::WrongStage) => self.fail(now, ReasonCode::ProtocolError, End::Protocol, out),
        }
    }
}

/// How a 3.x client ends whose publish is refused for this reason.
fn end_of(reason: ReasonCode) -> End {
    match reason {
        ReasonCode::TopicNameInvalid => End::Protocol,
        ReasonCode::NotAuthorized => End::NotAuthorized,
        _ => End::PublishRefused,
    }
}

/// What a client is told whose CONNECT is refused; nothing when it does not take as many bytes (MQTT5-3.1.2-24).
pub fn refusal(connect: &Connect, reason: ReasonCode) -> Option<Packet> {
    let refusal = connect::refusal(reason);
    let bytes_max = connect.properties.number(PropertyId::MaximumPacketSize);
    connect::fits(&refusal, connect.version, bytes_max).then_some(Packet::ConnAck(refusal))
}

/// How long the session that this CONNECT begins, or goes on with, is to outlive the connection, in seconds; 0: not at
/// all, [`NEVER_S`]: for ever.
pub fn expiry_s(connect: &Connect, limits: &Limits) -> u32 {
    connect::expiry_s(connect, limits).1
}

/// What a client is told about an error, beside its code.
fn explanation(reason: ReasonCode) -> Option<&'static str> {
    Some(match reason {
        ReasonCode::TopicNameInvalid => "clients may not publish to this topic",
        ReasonCode::TopicFilterInvalid => "a topic filter is not valid here",
        ReasonCode::NotAuthorized => "this client has no right to it",
        ReasonCode::QuotaExceeded => "a limit of this server is reached",
        ReasonCode::UnspecifiedError => "the message could not be kept for all who get it",
        _ => return None,
    })
}

fn encoded_length(packet: &Packet, version: ProtocolVersion) -> usize {
    let mut bytes = BytesMut::new();
    encode(packet, version, &mut bytes);
    bytes.len()
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
mod interleavings;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_access;
#[cfg(test)]
mod tests_authentication;
#[cfg(test)]
mod tests_persistent;
