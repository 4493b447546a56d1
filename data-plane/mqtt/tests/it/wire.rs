//! One connection of a server without its network: the codec and the session machine, joined as a driver joins them.

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};
use tbmq_mqtt::{
    codec::{
        self,
        property::{Properties, PropertiesBuilder, PropertyId},
    },
    packet::{
        Ack, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, SubAck, Subscribe,
        Subscription, Will,
    },
    session::{Access, Delivery, Dropped, Effect, End, Limits, Message, Now, Proven, Session},
};

/// The one method that is known.
pub(crate) const METHOD: &str = "WORD";

/// Allows what is about topics that begin so, at most at QoS 1.
#[derive(Debug)]
pub(crate) struct Below(pub(crate) &'static str);

impl Access for Below {
    fn may_publish(&mut self, topic: &str, qos: Qos, _: bool) -> bool {
        topic.starts_with(self.0) && qos <= Qos::AtLeastOnce
    }

    fn grant(&mut self, filter: &str, qos: Qos) -> Option<Qos> {
        filter.starts_with(self.0).then(|| qos.min(Qos::AtLeastOnce))
    }
}

const START: Now = Now { monotonic_ms: 1_000_000, epoch_ms: 1_700_000_000_000 };

/// A connection to a server. What is published is taken at once.
pub(crate) struct Wire {
    pub(crate) session: Session,
    pub(crate) now: Now,
    limits: Arc<Limits>,
    /// What topics that the client may do something with begin with; `None`: it may do everything.
    pub(crate) allowed: Option<&'static str>,
    version: Option<ProtocolVersion>,
    buffer: BytesMut,
    /// The place of the last message of the session's queue.
    last_seq: u64,
    /// Those that are done with.
    settled: BTreeSet<u64>,
    /// Messages that the client, or its will, has published.
    pub(crate) published: Vec<Message>,
    /// What became of filters: added, or taken away.
    pub(crate) filters: Vec<Effect>,
    /// Why the server has closed.
    pub(crate) end: Option<End>,
    /// What the server wrote, packet by packet.
    pub(crate) written: Vec<Bytes>,
}

impl Wire {
    /// A connection on which nothing was said yet.
    pub(crate) fn open() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        let limits = Arc::new(limits);
        Self {
            session: Session::new(limits.clone(), START),
            now: START,
            limits,
            allowed: None,
            last_seq: 0,
            settled: BTreeSet::new(),
            version: None,
            buffer: BytesMut::new(),
            published: Vec::new(),
            filters: Vec::new(),
            end: None,
            written: Vec::new(),
        }
    }

    /// A connection whose CONNECT was accepted.
    pub(crate) fn connected(version: ProtocolVersion) -> Self {
        Self::with(connect(version))
    }

    pub(crate) fn with(connect: Connect) -> Self {
        let mut wire = Self::open();
        let answers = wire.send(&Packet::Connect(Box::new(connect)));
        assert!(matches!(&answers[..], [Packet::ConnAck(connack)] if connack.reason == ReasonCode::Success));
        wire
    }

    /// The client writes a packet. Returns what the server answers.
    pub(crate) fn send(&mut self, packet: &Packet) -> Vec<Packet> {
        let version = match packet {
            Packet::Connect(connect) => connect.version,
            _ => self.version.unwrap_or(ProtocolVersion::V311),
        };
        let bytes = crate::encoded(packet, version);
        self.bytes(&bytes)
    }

    /// The client writes bytes. Returns what the server answers.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Vec<Packet> {
        self.buffer.extend_from_slice(bytes);
        let mut answers = Vec::new();
        while self.end.is_none() {
            let mut effects = Vec::new();
            match codec::decode(&mut self.buffer, self.session.version(), &codec::Limits::default()) {
                Ok(None) => break,
                Ok(Some(Packet::Connect(connect))) if self.session.version().is_none() => {
                    self.version = Some(connect.version);
                    self.session.connect(self.now, &connect, || "assigned".to_owned(), &mut effects);
                }
                Ok(Some(packet)) => self.session.packet(self.now, packet, &mut effects),
                Err(error) => self.session.malformed(self.now, error, &mut effects),
            }
            answers.extend(self.carry_out(effects));
        }
        answers
    }

    /// A message is there for the client.
    pub(crate) fn deliver(&mut self, delivery: Delivery) -> Vec<Packet> {
        let mut effects = Vec::new();
        self.session.deliver(self.now, delivery, &mut effects);
        self.carry_out(effects)
    }

    /// A message is there in the session's queue, for a client that has room for it.
    pub(crate) fn deliver_queued(&mut self, delivery: Delivery) -> Vec<Packet> {
        let mut effects = Vec::new();
        if self.session.is_persistent() && self.session.window_room() > 0 {
            self.last_seq += 1;
            self.session.deliver_queued(self.now, self.last_seq, delivery, &mut effects);
        }
        self.carry_out(effects)
    }

    /// The client of a parked session comes with another connection, on which it writes this first.
    pub(crate) fn come_back(&mut self, bytes: &[u8]) -> Vec<Packet> {
        let mut buffer = BytesMut::from(bytes);
        let Ok(Some(Packet::Connect(connect))) = codec::decode(&mut buffer, None, &codec::Limits::default())
        else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        if !self.session.is_parked() {
            return Vec::new();
        }
        if connect.clean_start {
            self.session.discard(self.now, &mut effects);
        } else {
            self.end = None;
            self.buffer.clear();
            self.version = Some(connect.version);
            let proven = self.proven(None);
            self.session.resume(self.now, self.limits.clone(), &connect, proven, &mut effects);
        }
        self.carry_out(effects)
    }

    /// So many ms go by.
    pub(crate) fn wait(&mut self, ms: u64) -> Vec<Packet> {
        self.now.monotonic_ms += ms;
        self.now.epoch_ms += ms as i64;
        let mut effects = Vec::new();
        self.session.tick(self.now, &mut effects);
        self.carry_out(effects)
    }

    /// The connection ends.
    pub(crate) fn end(&mut self, end: End) -> Vec<Packet> {
        let mut effects = Vec::new();
        self.session.end(self.now, end, &mut effects);
        self.carry_out(effects)
    }

    /// Does what a driver does. What is written must be what a client can read, whole and well-formed.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<Packet> {
        let mut answers = Vec::new();
        for effect in effects {
            // A parked session has its will, and its own end, before it, and may lose filters.
            let is_late = matches!(
                effect,
                Effect::Publish { number: None, .. }
                    | Effect::Dropped(Dropped::NotAuthorized)
                    | Effect::Released { .. }
                    | Effect::Over
            ) || self.session.is_parked()
                && matches!(effect, Effect::Unsubscribe { .. } | Effect::Restrict { .. });
            assert!(self.end.is_none() || is_late, "{effect:?} after the end");
            match effect {
                Effect::Send(packet) => {
                    let version = self.session.version().unwrap_or(ProtocolVersion::V311);
                    let bytes = crate::encoded(&packet, version);
                    let read = crate::decode(&bytes, Some(version)).unwrap().unwrap();
                    self.written.push(bytes.freeze());
                    answers.push(without_words(read));
                }
                Effect::Publish { number, message } => {
                    self.published.push(message);
                    if let Some(number) = number {
                        let mut more = Vec::new();
                        self.session.routed(self.now, number, 0, true, &mut more);
                        answers.extend(self.carry_out(more));
                    }
                }
                Effect::Close(end) => self.end = Some(end),
                effect
                @ (Effect::Subscribe { .. } | Effect::Restrict { .. } | Effect::Unsubscribe { .. }) => {
                    self.filters.push(effect);
                }
                Effect::Authenticate => answers.extend(self.judge(None)),
                Effect::Prove { data, .. } => answers.extend(self.judge(Some(&data))),
                Effect::Admit { .. } => {
                    let mut more = Vec::new();
                    self.session.open(self.now, &mut more);
                    answers.extend(self.carry_out(more));
                }
                Effect::InFlight { seq, packet_id, .. } => {
                    assert!(packet_id > 0 && !self.settled.contains(&seq), "{seq} {packet_id}");
                }
                Effect::Settled { seq } => {
                    assert!(seq <= self.last_seq && self.settled.insert(seq), "{seq} is settled again");
                }
                Effect::Dropped(_) | Effect::Released { .. } | Effect::Over => {}
            }
        }
        answers
    }

    /// Judges as a driver does that knows one method, by which a client says `secret` after it was asked for it; without
    /// a method everybody is let in.
    fn judge(&mut self, data: Option<&[u8]>) -> Vec<Packet> {
        let mut effects = Vec::new();
        let (now, method) = (self.now, self.session.authentication_method().cloned());
        match (method.as_deref(), data) {
            (None, _) => {
                let proven = self.proven(None);
                self.session.authenticated(now, proven, &mut effects);
            }
            (Some(METHOD), None) => self.session.challenge(now, b"say it", &mut effects),
            (Some(METHOD), Some(b"secret")) => {
                let proven = self.proven(Some("you are welcome"));
                self.session.authenticated(now, proven, &mut effects);
            }
            (Some(METHOD), Some(b"again")) => self.session.challenge(now, b"say it again", &mut effects),
            (Some(METHOD), Some(_)) => {
                self.session.not_authenticated(now, ReasonCode::NotAuthorized, &mut effects);
            }
            _ => self.session.not_authenticated(now, ReasonCode::BadAuthenticationMethod, &mut effects),
        }
        self.carry_out(effects)
    }

    fn proven(&self, data: Option<&'static str>) -> Proven {
        let access = self.allowed.map(|allowed| Box::new(Below(allowed)) as Box<dyn Access>);
        Proven { access, data: data.map(Bytes::from), until_ms: None }
    }

    /// From now on the client may do something with these topics only.
    pub(crate) fn regrant(&mut self, allowed: &'static str) -> Vec<Packet> {
        let mut effects = Vec::new();
        self.allowed = Some(allowed);
        self.session.regrant(self.proven(None).access, &mut effects);
        self.carry_out(effects)
    }

    /// The filters that the client has.
    pub(crate) fn has(&self) -> Vec<String> {
        let mut filters: Vec<_> = self.session.filters().map(|(filter, _)| filter.to_string()).collect();
        filters.sort();
        filters
    }
}

/// A packet as a client sees it that reads no reason strings. Where they may stand is looked at in what was written.
fn without_words(packet: Packet) -> Packet {
    let plain = |properties: &Properties| {
        let has_words = properties.get(PropertyId::ReasonString).is_some();
        assert!(!has_words || properties.iter().count() == 1, "{properties:?}");
        if has_words { Properties::NONE } else { properties.clone() }
    };
    match packet {
        Packet::PubAck(ack) => Packet::PubAck(Ack { properties: plain(&ack.properties), ..ack }),
        Packet::PubRec(ack) => Packet::PubRec(Ack { properties: plain(&ack.properties), ..ack }),
        Packet::SubAck(suback) => Packet::SubAck(SubAck { properties: plain(&suback.properties), ..suback }),
        Packet::Disconnect(goodbye) => {
            Packet::Disconnect(Disconnect { properties: plain(&goodbye.properties), ..goodbye })
        }
        other => other,
    }
}

pub(crate) fn connect(version: ProtocolVersion) -> Connect {
    Connect::new(version, "c")
}

/// An AUTH by the method that is known.
pub(crate) fn answer(data: &[u8], reason: ReasonCode) -> Packet {
    let properties = PropertiesBuilder::new()
        .text(PropertyId::AuthenticationMethod, METHOD)
        .binary(PropertyId::AuthenticationData, data)
        .build();
    Packet::Auth(Disconnect { reason, properties })
}

pub(crate) fn will(topic: &str) -> Will {
    Will {
        qos: Qos::AtLeastOnce,
        retain: false,
        topic: topic.into(),
        payload: Bytes::from_static(b"gone"),
        properties: Properties::NONE,
    }
}

pub(crate) fn publish(topic: &str, qos: Qos, packet_id: u16) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: topic.into(),
        packet_id: (qos != Qos::AtMostOnce).then_some(packet_id),
        properties: Properties::NONE,
        payload: Bytes::from_static(b"x"),
    }
}

pub(crate) fn subscription(filter: &str, qos: Qos) -> Subscription {
    Subscription::new(filter, qos)
}

pub(crate) fn subscribe(packet_id: u16, subscriptions: Vec<Subscription>) -> Packet {
    Packet::Subscribe(Subscribe::new(packet_id, subscriptions))
}

/// A message as another client might have published it.
pub(crate) fn message(topic: &str, qos: Qos) -> Message {
    Message {
        publisher: "other".into(),
        packet_id: 0,
        qos,
        retain: false,
        topic: topic.into(),
        payload: Bytes::from_static(b"x"),
        properties: Properties::NONE,
        expires_at_ms: None,
    }
}

pub(crate) fn delivery(message: Message) -> Delivery {
    Delivery {
        qos: message.qos,
        retain: false,
        identifiers: Vec::new(),
        group: None,
        message: Arc::new(message),
    }
}
