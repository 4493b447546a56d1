//! Packets of MQTT 3.1, 3.1.1 and 5.0 in one form.
//!
//! Payloads, topics and properties are slices of the buffer they were read from: what outlives the request is to be
//! copied out of it ([`Text::detached`], [`Properties::detached`]).

use std::{fmt, ops::Deref};

use bytes::Bytes;

use crate::codec::property::Properties;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProtocolVersion {
    /// MQTT 3.1 (`MQIsdp`, level 3).
    V31,
    /// MQTT 3.1.1 (`MQTT`, level 4).
    V311,
    /// MQTT 5.0 (`MQTT`, level 5).
    V5,
}

impl ProtocolVersion {
    /// Whether packets carry properties and reason codes.
    pub fn is_v5(self) -> bool {
        self == Self::V5
    }

    /// The protocol level that CONNECT carries: 3, 4 or 5.
    pub fn level(self) -> u8 {
        match self {
            Self::V31 => 3,
            Self::V311 => 4,
            Self::V5 => 5,
        }
    }

    /// From its protocol level; `None` for any other.
    pub fn from_level(level: u8) -> Option<Self> {
        [Self::V31, Self::V311, Self::V5].into_iter().find(|version| version.level() == level)
    }
}

/// A quality of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Qos {
    /// QoS 0.
    #[default]
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce,
    /// QoS 2.
    ExactlyOnce,
}

impl Qos {
    /// From its two bits; `None` for 3.
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }

    /// 0, 1 or 2.
    pub fn bits(self) -> u8 {
        self as u8
    }
}

/// UTF-8 text that is a slice of a buffer: no U+0000, at most 65,535 bytes (MQTT-1.5.4).
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(Bytes);

impl Text {
    /// From bytes; `None` when they are not UTF-8, hold U+0000, or are too long.
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        std::str::from_utf8(&bytes).is_ok_and(Self::fits).then_some(Self(bytes))
    }

    /// Around bytes that were checked before, so that they are not checked twice.
    pub(crate) fn checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Whether MQTT can express a text: no U+0000, at most 65,535 bytes.
    pub(crate) fn fits(text: &str) -> bool {
        u16::try_from(text.len()).is_ok() && !text.as_bytes().contains(&0)
    }

    /// The bytes. Cheaper than the text, which is checked again whenever it is looked at.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Bytes of the text.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A copy that does not keep the read buffer alive.
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was made")
    }
}

impl From<&str> for Text {
    /// # Panics
    /// When the text holds U+0000 or is longer than 65,535 bytes: for texts of our own.
    fn from(text: &str) -> Self {
        Self::from_bytes(Bytes::copy_from_slice(text.as_bytes())).expect("a text of ours fits")
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// CONNECT.
    Connect(Box<Connect>),
    /// CONNACK.
    ConnAck(ConnAck),
    /// PUBLISH.
    Publish(Publish),
    /// PUBACK.
    PubAck(Ack),
    /// PUBREC.
    PubRec(Ack),
    /// PUBREL.
    PubRel(Ack),
    /// PUBCOMP.
    PubComp(Ack),
    /// SUBSCRIBE.
    Subscribe(Subscribe),
    /// SUBACK.
    SubAck(SubAck),
    /// UNSUBSCRIBE.
    Unsubscribe(Unsubscribe),
    /// UNSUBACK.
    UnsubAck(SubAck),
    /// PINGREQ.
    PingReq,
    /// PINGRESP.
    PingResp,
    /// DISCONNECT.
    Disconnect(Disconnect),
    /// AUTH (5.0).
    Auth(Disconnect),
}

/// CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// The version that the client speaks.
    pub version: ProtocolVersion,
    /// Clean session (3.x) or clean start (5.0).
    pub clean_start: bool,
    /// Seconds; 0 = off.
    pub keep_alive: u16,
    /// Empty: the server is to choose one.
    pub client_id: Text,
    /// The will.
    pub will: Option<Will>,
    /// User name.
    pub username: Option<Text>,
    /// Password; never printed.
    pub password: Option<Bytes>,
    /// Properties; empty in 3.x.
    pub properties: Properties,
}

impl Connect {
    /// A CONNECT with a clean start, and without keep alive, will, credentials and properties.
    pub fn new(version: ProtocolVersion, client_id: impl Into<Text>) -> Self {
        Self {
            version,
            clean_start: true,
            keep_alive: 0,
            client_id: client_id.into(),
            will: None,
            username: None,
            password: None,
            properties: Properties::NONE,
        }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("clean_start", &self.clean_start)
            .field("keep_alive", &self.keep_alive)
            .field("client_id", &self.client_id)
            .field("will", &self.will)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("properties", &self.properties)
            .finish()
    }
}

/// What is published when a client goes without DISCONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// Its quality of service.
    pub qos: Qos,
    /// Its retain flag.
    pub retain: bool,
    /// Its topic.
    pub topic: Text,
    /// Its payload.
    pub payload: Bytes,
    /// Its properties; empty in 3.x.
    pub properties: Properties,
}

/// CONNACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnAck {
    /// The server had a session.
    pub session_present: bool,
    /// The result; written as a return code to 3.x clients.
    pub reason: ReasonCode,
    /// Properties; not written to 3.x clients.
    pub properties: Properties,
}

/// PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// A resend.
    pub dup: bool,
    /// Its quality of service.
    pub qos: Qos,
    /// Its retain flag.
    pub retain: bool,
    /// Its topic; may be empty in 5.0 when a topic alias is there.
    pub topic: Text,
    /// Its packet id: `Some` and not 0 exactly at QoS 1 and 2.
    pub packet_id: Option<u16>,
    /// Its properties; empty in 3.x.
    pub properties: Properties,
    /// Its payload.
    pub payload: Bytes,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The packet id of the PUBLISH.
    pub packet_id: u16,
    /// The result; not written to 3.x clients.
    pub reason: ReasonCode,
    /// Properties; not written to 3.x clients.
    pub properties: Properties,
}

impl Ack {
    /// An acknowledgement without properties.
    pub fn new(packet_id: u16, reason: ReasonCode) -> Self {
        Self { packet_id, reason, properties: Properties::default() }
    }
}

/// What becomes of retained messages when a subscription is made (5.0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetainHandling {
    /// Send them.
    #[default]
    Send,
    /// Send them if the subscription is new.
    SendIfNew,
    /// Do not send them.
    DoNotSend,
}

/// One topic filter of a SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The filter.
    pub filter: Text,
    /// The highest quality of service wanted.
    pub qos: Qos,
    /// Not the client's own messages (5.0).
    pub no_local: bool,
    /// Keep the retain flag (5.0).
    pub retain_as_published: bool,
    /// Retained messages (5.0).
    pub retain_handling: RetainHandling,
}

impl Subscription {
    /// One that gets retained messages, without 5.0's other options.
    pub fn new(filter: impl Into<Text>, qos: Qos) -> Self {
        Self {
            filter: filter.into(),
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        }
    }
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// Its packet id, not 0.
    pub packet_id: u16,
    /// At least one.
    pub subscriptions: Vec<Subscription>,
    /// Properties; empty in 3.x.
    pub properties: Properties,
}

impl Subscribe {
    /// One without properties.
    pub fn new(packet_id: u16, subscriptions: Vec<Subscription>) -> Self {
        Self { packet_id, subscriptions, properties: Properties::NONE }
    }
}

/// SUBACK or UNSUBACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubAck {
    /// The packet id of the request.
    pub packet_id: u16,
    /// One result for each filter; an UNSUBACK to a 3.x client has none.
    pub reasons: Vec<ReasonCode>,
    /// Properties; not written to 3.x clients.
    pub properties: Properties,
}

/// UNSUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Its packet id, not 0.
    pub packet_id: u16,
    /// At least one.
    pub filters: Vec<Text>,
    /// Properties; empty in 3.x.
    pub properties: Properties,
}

/// DISCONNECT, or AUTH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// Why; not written to 3.x clients.
    pub reason: ReasonCode,
    /// Properties; not written to 3.x clients.
    pub properties: Properties,
}

impl Disconnect {
    /// One without properties.
    pub fn new(reason: ReasonCode) -> Self {
        Self { reason, properties: Properties::default() }
    }
}

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// Reason codes of MQTT 5.0 (§2.4).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum ReasonCode { $($(#[$doc])* $name = $code,)* }

        impl ReasonCode {
            /// From its byte; `None` when the standard has no such code.
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

reason_codes! {
    /// 0x00: success, normal disconnection, or granted QoS 0.
    Success = 0x00,
    /// 0x01: granted QoS 1.
    GrantedQos1 = 0x01,
    /// 0x02: granted QoS 2.
    GrantedQos2 = 0x02,
    /// 0x04: disconnect with will message.
    DisconnectWithWill = 0x04,
    /// 0x10: no matching subscribers.
    NoMatchingSubscribers = 0x10,
    /// 0x11: no subscription existed.
    NoSubscriptionExisted = 0x11,
    /// 0x18: continue authentication.
    ContinueAuthentication = 0x18,
    /// 0x19: re-authenticate.
    ReAuthenticate = 0x19,
    /// 0x80: unspecified error.
    UnspecifiedError = 0x80,
    /// 0x81: malformed packet.
    MalformedPacket = 0x81,
    /// 0x82: protocol error.
    ProtocolError = 0x82,
    /// 0x83: implementation specific error.
    ImplementationSpecificError = 0x83,
    /// 0x84: unsupported protocol version.
    UnsupportedProtocolVersion = 0x84,
    /// 0x85: client identifier not valid.
    ClientIdentifierNotValid = 0x85,
    /// 0x86: bad user name or password.
    BadUserNameOrPassword = 0x86,
    /// 0x87: not authorized.
    NotAuthorized = 0x87,
    /// 0x88: server unavailable.
    ServerUnavailable = 0x88,
    /// 0x89: server busy.
    ServerBusy = 0x89,
    /// 0x8A: banned.
    Banned = 0x8A,
    /// 0x8B: server shutting down.
    ServerShuttingDown = 0x8B,
    /// 0x8C: bad authentication method.
    BadAuthenticationMethod = 0x8C,
    /// 0x8D: keep alive timeout.
    KeepAliveTimeout = 0x8D,
    /// 0x8E: session taken over.
    SessionTakenOver = 0x8E,
    /// 0x8F: topic filter invalid.
    TopicFilterInvalid = 0x8F,
    /// 0x90: topic name invalid.
    TopicNameInvalid = 0x90,
    /// 0x91: packet identifier in use.
    PacketIdentifierInUse = 0x91,
    /// 0x92: packet identifier not found.
    PacketIdentifierNotFound = 0x92,
    /// 0x93: receive maximum exceeded.
    ReceiveMaximumExceeded = 0x93,
    /// 0x94: topic alias invalid.
    TopicAliasInvalid = 0x94,
    /// 0x95: packet too large.
    PacketTooLarge = 0x95,
    /// 0x96: message rate too high.
    MessageRateTooHigh = 0x96,
    /// 0x97: quota exceeded.
    QuotaExceeded = 0x97,
    /// 0x98: administrative action.
    AdministrativeAction = 0x98,
    /// 0x99: payload format invalid.
    PayloadFormatInvalid = 0x99,
    /// 0x9A: retain not supported.
    RetainNotSupported = 0x9A,
    /// 0x9B: QoS not supported.
    QosNotSupported = 0x9B,
    /// 0x9C: use another server.
    UseAnotherServer = 0x9C,
    /// 0x9D: server moved.
    ServerMoved = 0x9D,
    /// 0x9E: shared subscriptions not supported.
    SharedSubscriptionsNotSupported = 0x9E,
    /// 0x9F: connection rate exceeded.
    ConnectionRateExceeded = 0x9F,
    /// 0xA0: maximum connect time.
    MaximumConnectTime = 0xA0,
    /// 0xA1: subscription identifiers not supported.
    SubscriptionIdentifiersNotSupported = 0xA1,
    /// 0xA2: wildcard subscriptions not supported.
    WildcardSubscriptionsNotSupported = 0xA2,
}

impl ReasonCode {
    /// Its byte.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// Whether it tells of a failure: 0x80 and above.
    pub fn is_error(self) -> bool {
        self.byte() >= 0x80
    }

    /// The CONNACK return code that a 3.x client understands (MQTT 3.1.1 §3.2.2.3).
    pub fn connect_return_code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::UnsupportedProtocolVersion => 1,
            Self::ClientIdentifierNotValid => 2,
            Self::BadUserNameOrPassword => 4,
            Self::NotAuthorized | Self::Banned | Self::BadAuthenticationMethod => 5,
            _ => 3,
        }
    }

    /// The reason that a 3.x return code stands for; `None` when there is no such code.
    pub fn from_connect_return_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Success,
            1 => Self::UnsupportedProtocolVersion,
            2 => Self::ClientIdentifierNotValid,
            3 => Self::ServerUnavailable,
            4 => Self::BadUserNameOrPassword,
            5 => Self::NotAuthorized,
            _ => return None,
        })
    }
}
