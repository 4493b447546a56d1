//! CONNECT: what can be accepted, what CONNACK says, and how a connection begins.

use std::sync::Arc;

use bytes::BytesMut;

use super::{
    Aliases, Effect, End, Exchange, KeepAlive, Limits, Login, Now, Phase, Proven, Reception, Session,
    is_reserved, refusal as refusal_packet, will,
};
use crate::{
    codec::{
        encode,
        property::{Properties, PropertiesBuilder, PropertyId},
    },
    packet::{ConnAck, Connect, Packet, ProtocolVersion, ReasonCode, Text, Will},
    topic,
};

/// A CONNECT that can be accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    version: ProtocolVersion,
    client_id: Arc<str>,
    clean_start: bool,
    pub(super) keep_alive_s: u16,
    /// The client has asked for a session that outlives its connection.
    wants_expiry: bool,
    /// How long it does, in seconds.
    expiry_s: u32,
    /// Reason strings may be sent with acknowledgements.
    wants_problems: bool,
    will: Option<Box<Will>>,
    /// Topic aliases that the client takes and the server uses.
    aliases_max: u16,
    /// Unacknowledged deliveries that the client takes.
    window: u16,
    packet_bytes_max: Option<u32>,
    told: Told,
    /// By which the client proves who it is.
    pub(super) method: Option<Text>,
    /// What the client has proven.
    pub(super) proven: Proven,
    /// What the client is told.
    connack: ConnAck,
}

impl Session {
    /// Handles the first packet. `assigned` makes a client id that nobody has. What can be accepted asks who the client
    /// is ([`Effect::Authenticate`]).
    pub fn connect(
        &mut self,
        now: Now,
        connect: &Connect,
        assigned: impl FnOnce() -> String,
        out: &mut Vec<Effect>,
    ) {
        self.version = Some(connect.version);
        match check(connect, &self.limits, assigned) {
            Ok(accepted) => {
                self.client_id = accepted.client_id.clone();
                self.packet_bytes_max = accepted.packet_bytes_max;
                self.accepted = Some(Box::new(accepted));
                self.exchange = Exchange::Judging;
                out.push(Effect::Authenticate);
            }
            Err(reason) => {
                out.extend(refusal_packet(connect, reason).map(Effect::Send));
                self.close(now, End::Refused, out);
            }
        }
    }

    /// Goes on with a CONNECT of a client that is who it says.
    pub(super) fn accept(&mut self, now: Now, proven: Proven, out: &mut Vec<Effect>) {
        let Some(accepted) = &mut self.accepted else { return };
        match accepted.prove(proven, &self.limits) {
            Ok(()) => out.push(Effect::Admit { resume: !accepted.clean_start }),
            Err(reason) => self.refuse_connect(now, reason, out),
        }
    }

    /// Begins a new session: nothing was there that goes on.
    pub fn open(&mut self, now: Now, out: &mut Vec<Effect>) {
        if let Some(accepted) = self.accepted.take_if(|_| self.exchange == Exchange::None)
            && matches!(self.phase, Phase::Connecting { .. })
        {
            self.begin(now, *accepted, false, out);
        }
    }

    /// Refuses a CONNECT that can't be admitted.
    pub fn refuse_connect(&mut self, now: Now, reason: ReasonCode, out: &mut Vec<Effect>) {
        if let Some(accepted) = self.accepted.take()
            && matches!(self.phase, Phase::Connecting { .. })
        {
            let refusal = refusal(reason);
            if fits(&refusal, accepted.version, accepted.packet_bytes_max) {
                out.push(Effect::Send(Packet::ConnAck(refusal)));
            }
            self.close(now, End::Refused, out);
        }
    }

    /// Goes on with a parked session on a new connection, whose CONNECT was accepted before, from a client of which this
    /// is proven. What was in flight is sent again; a will that was not due yet is never published (MQTT5-3.1.3-9);
    /// filters that the client may not have any more are taken away.
    ///
    /// `limits` are those of the listener that the connection came by.
    pub fn resume(
        &mut self,
        now: Now,
        limits: Arc<Limits>,
        connect: &Connect,
        proven: Proven,
        out: &mut Vec<Effect>,
    ) {
        if !self.is_parked() {
            return;
        }
        self.limits = limits;
        let accepted = check(connect, &self.limits, String::new).and_then(|mut accepted| {
            accepted.prove(proven, &self.limits)?;
            Ok(accepted)
        });
        match accepted {
            Ok(accepted) => self.begin(now, accepted, true, out),
            Err(reason) => {
                out.extend(refusal_packet(connect, reason).map(Effect::Send));
                out.push(Effect::Close(End::Refused));
            }
        }
    }

    fn begin(&mut self, now: Now, accepted: Accepted, is_present: bool, out: &mut Vec<Effect>) {
        let Accepted { version, method, proven, mut connack, .. } = accepted;
        self.phase = Phase::Connected;
        self.version = Some(version);
        self.had_expiry = accepted.wants_expiry;
        self.expiry_s = accepted.expiry_s;
        self.is_persistent = is_present || self.expiry_s > 0;
        self.wants_problems = accepted.wants_problems;
        self.packet_bytes_max = accepted.packet_bytes_max;
        self.will = accepted.will;
        self.keep_alive = KeepAlive::new(accepted.keep_alive_s, now.monotonic_ms);
        self.aliases = Aliases::new(self.limits.topic_alias_max);
        self.inbound.begin(self.limits.receive_maximum);
        self.login = Login::new(now, method, proven);
        self.judge_filters(out);
        // MQTT-3.2.2-2, MQTT-3.2.2-3; the flag is not there in 3.1.
        connack.session_present = is_present && version != ProtocolVersion::V31;
        out.push(Effect::Send(Packet::ConnAck(connack)));
        let reception = Reception {
            version,
            window: accepted.window,
            packet_bytes_max: accepted.packet_bytes_max,
            aliases_max: accepted.aliases_max,
            alias_topic_bytes_min: self.limits.alias_topic_bytes_min,
            shared_bytes_max: self.limits.shared_bytes_max,
        };
        self.outbound.begin(reception, self.is_persistent, now, out);
    }
}

impl Accepted {
    /// Takes in what the client has proven: decides whether it may have its will, and what it is told.
    fn prove(&mut self, proven: Proven, limits: &Limits) -> Result<(), ReasonCode> {
        self.proven = proven;
        if let (Some(will), Some(access)) = (&self.will, &mut self.proven.access)
            && !access.may_publish(&will.topic, will.qos, will.retain)
        {
            return Err(ReasonCode::NotAuthorized);
        }
        if !self.version.is_v5() {
            return Ok(());
        }
        for is_terse in [false, true] {
            self.connack.properties = self.properties(limits, is_terse);
            if fits(&self.connack, self.version, self.packet_bytes_max) {
                return Ok(());
            }
        }
        Err(ReasonCode::PacketTooLarge)
    }

    /// What a 5.0 client is told (spec §1.7); `is_terse`: only what differs from what the client takes for granted, for
    /// those who take only small packets.
    fn properties(&self, limits: &Limits, is_terse: bool) -> Properties {
        let Self { told, .. } = self;
        let mut builder = PropertiesBuilder::new()
            .number(PropertyId::ReceiveMaximum, u32::from(limits.receive_maximum))
            .number(PropertyId::MaximumPacketSize, limits.packet_bytes);
        if !limits.retain_available || !is_terse {
            builder = builder.number(PropertyId::RetainAvailable, u32::from(limits.retain_available));
        }
        if told.has_other_expiry || !is_terse {
            builder = builder.number(PropertyId::SessionExpiryInterval, self.expiry_s);
        }
        if told.has_other_keep_alive || !is_terse {
            builder = builder.number(PropertyId::ServerKeepAlive, u32::from(self.keep_alive_s));
        }
        if !is_terse {
            builder = builder
                .number(PropertyId::TopicAliasMaximum, u32::from(limits.topic_alias_max))
                .number(PropertyId::SubscriptionIdentifierAvailable, 1)
                .number(PropertyId::SharedSubscriptionAvailable, 1);
        }
        if told.is_assigned {
            builder = builder.text(PropertyId::AssignedClientIdentifier, &self.client_id);
        }
        if told.wants_response && !limits.response_information.is_empty() && !is_terse {
            builder = builder.text(PropertyId::ResponseInformation, &limits.response_information);
        }
        if let Some(method) = &self.method {
            // MQTT 5.0 §3.2.2.3.17
            builder = builder.text(PropertyId::AuthenticationMethod, method);
            if let Some(data) = &self.proven.data {
                builder = builder.binary(PropertyId::AuthenticationData, data);
            }
        }
        builder.build()
    }
}

/// What a 5.0 client is told only if it differs from what it wants.
#[derive(Clone, Copy, Debug)]
struct Told {
    has_other_keep_alive: bool,
    has_other_expiry: bool,
    is_assigned: bool,
    wants_response: bool,
}

/// A CONNACK that says no.
pub(super) fn refusal(reason: ReasonCode) -> ConnAck {
    ConnAck { session_present: false, reason, properties: Properties::NONE }
}

/// Whether the client takes a CONNACK of this size (MQTT5-3.1.2-24). All other answers but AUTH and those to filters
/// are smaller.
pub(super) fn fits(connack: &ConnAck, version: ProtocolVersion, bytes_max: Option<u32>) -> bool {
    let Some(max) = bytes_max else { return true };
    let mut bytes = BytesMut::new();
    encode(&Packet::ConnAck(connack.clone()), version, &mut bytes);
    bytes.len() <= max as usize
}

/// How long the session is to outlive the connection, in seconds: as the client wants, and as it gets.
pub(super) fn expiry_s(connect: &Connect, limits: &Limits) -> (u32, u32) {
    if connect.version.is_v5() {
        let wanted_s = connect.properties.number(PropertyId::SessionExpiryInterval).unwrap_or(0);
        (wanted_s, wanted_s.min(limits.session_expiry_max_s))
    } else if connect.clean_start {
        (0, 0)
    } else {
        (limits.session_expiry_v3_s, limits.session_expiry_v3_s)
    }
}

/// Checks a CONNECT that could be decoded. `assigned` makes a client id that nobody has.
fn check(
    connect: &Connect,
    limits: &Limits,
    assigned: impl FnOnce() -> String,
) -> Result<Accepted, ReasonCode> {
    let is_v5 = connect.version.is_v5();
    let method = connect.properties.text(PropertyId::AuthenticationMethod);
    if method.is_none() && connect.properties.get(PropertyId::AuthenticationData).is_some() {
        // MQTT 5.0 §3.1.2.11.10
        return Err(ReasonCode::ProtocolError);
    }
    let is_assigned = connect.client_id.is_empty();
    if is_assigned && !is_v5 && !connect.clean_start {
        // MQTT-3.1.3-8; a 5.0 client is told the id that it gets.
        return Err(ReasonCode::ClientIdentifierNotValid);
    }
    if connect.version == ProtocolVersion::V31 && connect.client_id.len() > limits.client_id_v31_max {
        return Err(ReasonCode::ClientIdentifierNotValid);
    }
    if let Some(will) = &connect.will
        && (topic::check_name(&will.topic, &limits.rules).is_err() || is_reserved(&will.topic))
    {
        return Err(ReasonCode::TopicNameInvalid);
    }
    if is_v5 && !limits.retain_available && connect.will.as_ref().is_some_and(|will| will.retain) {
        // MQTT5-3.2.2-13
        return Err(ReasonCode::RetainNotSupported);
    }
    let client_id: Arc<str> = if is_assigned { assigned().into() } else { Arc::from(&*connect.client_id) };
    let keep_alive_s =
        if is_v5 { connect.keep_alive.min(limits.keep_alive_max_s) } else { connect.keep_alive };
    let window = if is_v5 {
        // The decoder refuses 0.
        connect.properties.number(PropertyId::ReceiveMaximum).map_or(u16::MAX, |window| window as u16)
    } else {
        limits.receive_maximum_v3.max(1)
    };
    let number = |id| connect.properties.number(id);
    let (wanted_s, expiry_s) = expiry_s(connect, limits);
    Ok(Accepted {
        version: connect.version,
        clean_start: connect.clean_start,
        keep_alive_s,
        wants_expiry: wanted_s > 0,
        expiry_s,
        wants_problems: number(PropertyId::RequestProblemInformation) != Some(0),
        will: connect.will.as_ref().map(|will| Box::new(will::kept(will))),
        aliases_max: number(PropertyId::TopicAliasMaximum)
            .map_or(0, |max| max as u16)
            .min(limits.topic_alias_max),
        window,
        packet_bytes_max: number(PropertyId::MaximumPacketSize),
        told: Told {
            has_other_keep_alive: keep_alive_s != connect.keep_alive,
            has_other_expiry: expiry_s != wanted_s,
            is_assigned,
            wants_response: number(PropertyId::RequestResponseInformation) == Some(1),
        },
        method: method.map(|method| method.detached()),
        proven: Proven::default(),
        connack: ConnAck {
            session_present: false,
            reason: ReasonCode::Success,
            properties: Properties::NONE,
        },
        client_id,
    })
}
