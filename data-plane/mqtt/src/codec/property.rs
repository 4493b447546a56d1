//! Properties of MQTT 5.0 (§2.2.2): checked once when they are read, then kept as the bytes they are.

use std::{fmt, ops::Range};

use bytes::{BufMut, Bytes, BytesMut};

use super::{DecodeError, frame};
use crate::packet::{ReasonCode, Text};

/// How a property's value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Byte,
    TwoBytes,
    FourBytes,
    Varint,
    Text,
    Binary,
    Pair,
}

/// Packets that carry properties, as bits, so that a table can say where a property may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u16);

impl Place {
    /// CONNECT.
    pub const CONNECT: Self = Self(1);
    /// CONNACK.
    pub const CONNACK: Self = Self(1 << 1);
    /// PUBLISH.
    pub const PUBLISH: Self = Self(1 << 2);
    /// The will of a CONNECT.
    pub const WILL: Self = Self(1 << 3);
    /// PUBACK, PUBREC, PUBREL, PUBCOMP.
    pub const ACK: Self = Self(1 << 4);
    /// SUBSCRIBE.
    pub const SUBSCRIBE: Self = Self(1 << 5);
    /// SUBACK and UNSUBACK.
    pub const SUBACK: Self = Self(1 << 6);
    /// UNSUBSCRIBE.
    pub const UNSUBSCRIBE: Self = Self(1 << 7);
    /// DISCONNECT.
    pub const DISCONNECT: Self = Self(1 << 8);
    /// AUTH.
    pub const AUTH: Self = Self(1 << 9);

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

macro_rules! properties {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $shape:ident, $($place:ident)|+;)*) => {
        /// A property.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum PropertyId { $($(#[$doc])* $name = $id,)* }

        impl PropertyId {
            fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// A bit of its own; identifiers are below 64.
            fn bit(self) -> u64 {
                1 << (self as u8)
            }

            fn shape(self) -> Shape {
                match self { $(Self::$name => Shape::$shape,)* }
            }

            fn places(self) -> Place {
                match self { $(Self::$name => Place(0)$(.and(Place::$place))+,)* }
            }
        }
    };
}

properties! {
    /// 0x01
    PayloadFormatIndicator = 0x01, Byte, PUBLISH | WILL;
    /// 0x02, seconds
    MessageExpiryInterval = 0x02, FourBytes, PUBLISH | WILL;
    /// 0x03
    ContentType = 0x03, Text, PUBLISH | WILL;
    /// 0x08
    ResponseTopic = 0x08, Text, PUBLISH | WILL;
    /// 0x09
    CorrelationData = 0x09, Binary, PUBLISH | WILL;
    /// 0x0B
    SubscriptionIdentifier = 0x0B, Varint, PUBLISH | SUBSCRIBE;
    /// 0x11, seconds; 0xFFFFFFFF = never
    SessionExpiryInterval = 0x11, FourBytes, CONNECT | CONNACK | DISCONNECT;
    /// 0x12
    AssignedClientIdentifier = 0x12, Text, CONNACK;
    /// 0x13, seconds
    ServerKeepAlive = 0x13, TwoBytes, CONNACK;
    /// 0x15
    AuthenticationMethod = 0x15, Text, CONNECT | CONNACK | AUTH;
    /// 0x16
    AuthenticationData = 0x16, Binary, CONNECT | CONNACK | AUTH;
    /// 0x17
    RequestProblemInformation = 0x17, Byte, CONNECT;
    /// 0x18, seconds
    WillDelayInterval = 0x18, FourBytes, WILL;
    /// 0x19
    RequestResponseInformation = 0x19, Byte, CONNECT;
    /// 0x1A
    ResponseInformation = 0x1A, Text, CONNACK;
    /// 0x1C
    ServerReference = 0x1C, Text, CONNACK | DISCONNECT;
    /// 0x1F
    ReasonString = 0x1F, Text, CONNACK | ACK | SUBACK | DISCONNECT | AUTH;
    /// 0x21
    ReceiveMaximum = 0x21, TwoBytes, CONNECT | CONNACK;
    /// 0x22
    TopicAliasMaximum = 0x22, TwoBytes, CONNECT | CONNACK;
    /// 0x23
    TopicAlias = 0x23, TwoBytes, PUBLISH;
    /// 0x24
    MaximumQos = 0x24, Byte, CONNACK;
    /// 0x25
    RetainAvailable = 0x25, Byte, CONNACK;
    /// 0x26
    UserProperty = 0x26, Pair, CONNECT | CONNACK | PUBLISH | WILL | ACK | SUBSCRIBE | SUBACK | UNSUBSCRIBE | DISCONNECT | AUTH;
    /// 0x27, bytes
    MaximumPacketSize = 0x27, FourBytes, CONNECT | CONNACK;
    /// 0x28
    WildcardSubscriptionAvailable = 0x28, Byte, CONNACK;
    /// 0x29
    SubscriptionIdentifierAvailable = 0x29, Byte, CONNACK;
    /// 0x2A
    SharedSubscriptionAvailable = 0x2A, Byte, CONNACK;
}

/// A property's value, borrowed or sliced from the properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A byte, two bytes, four bytes, or a variable byte integer.
    Number(u32),
    /// UTF-8 text.
    Text(Text),
    /// Bytes.
    Binary(Bytes),
    /// A user property.
    Pair(Text, Text),
}

/// The properties of a packet, as their checked bytes without the length before them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(Bytes);

impl Properties {
    /// None.
    pub const NONE: Self = Self(Bytes::new());

    /// Checks the properties of a packet.
    ///
    /// # Errors
    /// Malformed: an unknown property, one of another packet, a bad length, text that is not UTF-8. Protocol error: a
    /// property that stands twice, whose value the standard forbids, or that needs another one.
    pub(crate) fn check(bytes: Bytes, place: Place) -> Result<Self, DecodeError> {
        let mut seen = 0_u64;
        let mut at = 0;
        while at < bytes.len() {
            let (id, raw, next) = read(&bytes, at)?;
            if !id.places().contains(place) {
                // §2.2.2.2
                return Err(DecodeError::malformed("a property that may not stand in this packet"));
            }
            // The server may send several subscription identifiers in a PUBLISH (MQTT-3.3.4-3); a client none.
            let may_repeat = id == PropertyId::UserProperty
                || id == PropertyId::SubscriptionIdentifier && place == Place::PUBLISH;
            if seen & id.bit() != 0 && !may_repeat {
                return Err(DecodeError::protocol("a property stands twice"));
            }
            seen |= id.bit();
            match raw {
                Raw::Number(number) => check_number(id, number)?,
                Raw::Text(text) => check_text(id, &bytes[text])?,
                Raw::Binary(_) => {}
                Raw::Pair(name, value) => {
                    check_text(id, &bytes[name])?;
                    check_text(id, &bytes[value])?;
                }
            }
            at = next;
        }
        let (data, method) = (PropertyId::AuthenticationData, PropertyId::AuthenticationMethod);
        if seen & data.bit() != 0 && seen & method.bit() == 0 {
            // §3.1.2.11.10
            return Err(DecodeError::protocol("authentication data without a method"));
        }
        Ok(Self(bytes))
    }

    /// The checked bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Around bytes that were checked before.
    pub(crate) fn checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// A copy that does not keep the read buffer alive.
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (PropertyId, Value)> + '_ {
        self.raw().map(|(id, raw)| (id, self.value(raw)))
    }

    /// The first value of a property.
    pub fn get(&self, wanted: PropertyId) -> Option<Value> {
        self.first(wanted).map(|raw| self.value(raw))
    }

    /// The first value of a numeric property.
    pub fn number(&self, wanted: PropertyId) -> Option<u32> {
        match self.first(wanted)? {
            Raw::Number(number) => Some(number),
            _ => None,
        }
    }

    /// The first value of a text property.
    pub fn text(&self, wanted: PropertyId) -> Option<Text> {
        match self.first(wanted)? {
            Raw::Text(text) => Some(Text::checked(self.0.slice(text))),
            _ => None,
        }
    }

    /// The first value of a binary property.
    pub fn binary(&self, wanted: PropertyId) -> Option<Bytes> {
        match self.first(wanted)? {
            Raw::Binary(bytes) => Some(self.0.slice(bytes)),
            _ => None,
        }
    }

    /// User properties in order.
    pub fn user_properties(&self) -> impl Iterator<Item = (Text, Text)> + '_ {
        let text = |range| Text::checked(self.0.slice(range));
        self.raw().filter_map(move |(_, raw)| match raw {
            Raw::Pair(name, value) => Some((text(name), text(value))),
            _ => None,
        })
    }

    /// All of them, by where their values stand: nothing is counted up for those that nobody asked for.
    fn raw(&self) -> impl Iterator<Item = (PropertyId, Raw)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= self.0.len() {
                return None;
            }
            let (id, raw, next) = read(&self.0, at).ok()?;
            at = next;
            Some((id, raw))
        })
    }

    fn first(&self, wanted: PropertyId) -> Option<Raw> {
        self.raw().find(|(id, _)| *id == wanted).map(|(_, raw)| raw)
    }

    fn value(&self, raw: Raw) -> Value {
        let text = |range| Text::checked(self.0.slice(range));
        match raw {
            Raw::Number(number) => Value::Number(number),
            Raw::Text(range) => Value::Text(text(range)),
            Raw::Binary(range) => Value::Binary(self.0.slice(range)),
            Raw::Pair(name, value) => Value::Pair(text(name), text(value)),
        }
    }
}

/// A property's value, by where it stands.
#[derive(Debug)]
enum Raw {
    Number(u32),
    Text(Range<usize>),
    Binary(Range<usize>),
    Pair(Range<usize>, Range<usize>),
}

const EARLY: DecodeError = DecodeError::malformed("a property ends too early");

/// Reads the property at `at`, which is inside, and where the next one begins. Texts are not checked.
fn read(bytes: &[u8], at: usize) -> Result<(PropertyId, Raw, usize), DecodeError> {
    // Every identifier of the standard fits one byte of the variable byte integer.
    let id = PropertyId::from_byte(bytes[at]).ok_or(DecodeError::malformed("an unknown property"))?;
    let at = at + 1;
    let number = |length: usize| {
        let digits = bytes.get(at..at + length).ok_or(EARLY)?;
        let value = digits.iter().fold(0, |value, digit| value << 8 | u32::from(*digit));
        Ok((Raw::Number(value), at + length))
    };
    let (raw, next) = match id.shape() {
        Shape::Byte => number(1)?,
        Shape::TwoBytes => number(2)?,
        Shape::FourBytes => number(4)?,
        Shape::Varint => {
            let (value, length) = frame::varint(&bytes[at..])?.ok_or(EARLY)?;
            (Raw::Number(value), at + length)
        }
        Shape::Text => {
            let range = read_range(bytes, at)?;
            (Raw::Text(range.clone()), range.end)
        }
        Shape::Binary => {
            let range = read_range(bytes, at)?;
            (Raw::Binary(range.clone()), range.end)
        }
        Shape::Pair => {
            let name = read_range(bytes, at)?;
            let value = read_range(bytes, name.end)?;
            let next = value.end;
            (Raw::Pair(name, value), next)
        }
    };
    Ok((id, raw, next))
}

/// Where the bytes lie whose two-byte length stands at `at`.
fn read_range(bytes: &[u8], at: usize) -> Result<Range<usize>, DecodeError> {
    let length = bytes.get(at..at + 2).ok_or(EARLY)?;
    let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if end > bytes.len() { Err(EARLY) } else { Ok(at + 2..end) }
}

fn check_text(id: PropertyId, bytes: &[u8]) -> Result<(), DecodeError> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| Text::fits(text));
    let text = text.ok_or(DecodeError::malformed("a text is not UTF-8"))?;
    if id == PropertyId::ResponseTopic && (text.is_empty() || text.contains(['#', '+'])) {
        // MQTT-3.3.2-14, MQTT-4.7.3-1
        return Err(DecodeError::protocol("the response topic is no topic name"));
    }
    Ok(())
}

fn check_number(id: PropertyId, number: u32) -> Result<(), DecodeError> {
    let is_flag = matches!(
        id,
        PropertyId::PayloadFormatIndicator
            | PropertyId::RequestProblemInformation
            | PropertyId::RequestResponseInformation
            | PropertyId::MaximumQos
            | PropertyId::RetainAvailable
            | PropertyId::WildcardSubscriptionAvailable
            | PropertyId::SubscriptionIdentifierAvailable
            | PropertyId::SharedSubscriptionAvailable
    );
    let must_not_be_zero = matches!(
        id,
        PropertyId::ReceiveMaximum | PropertyId::MaximumPacketSize | PropertyId::SubscriptionIdentifier
    );
    match number {
        0 if must_not_be_zero => Err(DecodeError::protocol("a property must not be 0")),
        0 if id == PropertyId::TopicAlias => {
            Err(DecodeError::new(ReasonCode::TopicAliasInvalid, "a topic alias must not be 0"))
        }
        2.. if is_flag => Err(DecodeError::protocol("a property must be 0 or 1")),
        _ => Ok(()),
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Authentication data are secrets.
        f.debug_map().entries(self.iter().filter(|(id, _)| *id != PropertyId::AuthenticationData)).finish()
    }
}

/// Writes properties, in the order of the calls. A value that MQTT cannot express, text with U+0000 or more than 65,535
/// bytes, is left out: its receiver would close the connection.
#[derive(Clone, Debug, Default)]
pub struct PropertiesBuilder(BytesMut);

impl PropertiesBuilder {
    /// No properties yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a numeric property in its own width.
    ///
    /// # Panics
    /// When the property is not numeric: a bug.
    #[must_use]
    pub fn number(mut self, id: PropertyId, value: u32) -> Self {
        self.0.put_u8(id as u8);
        match id.shape() {
            Shape::Byte => self.0.put_u8(value as u8),
            Shape::TwoBytes => self.0.put_u16(value as u16),
            Shape::FourBytes => self.0.put_u32(value),
            Shape::Varint => frame::put_varint(&mut self.0, value),
            other => panic!("{id:?} is {other:?}, not a number"),
        }
        self
    }

    /// Adds a text property.
    #[must_use]
    pub fn text(mut self, id: PropertyId, value: &str) -> Self {
        debug_assert_eq!(id.shape(), Shape::Text);
        if !Text::fits(value) {
            return self;
        }
        self.0.put_u8(id as u8);
        frame::put_binary(&mut self.0, value.as_bytes());
        self
    }

    /// Adds a binary property.
    #[must_use]
    pub fn binary(mut self, id: PropertyId, value: &[u8]) -> Self {
        debug_assert_eq!(id.shape(), Shape::Binary);
        if value.len() > usize::from(u16::MAX) {
            return self;
        }
        self.0.put_u8(id as u8);
        frame::put_binary(&mut self.0, value);
        self
    }

    /// Adds a user property.
    #[must_use]
    pub fn user(mut self, name: &str, value: &str) -> Self {
        if !Text::fits(name) || !Text::fits(value) {
            return self;
        }
        self.0.put_u8(PropertyId::UserProperty as u8);
        frame::put_binary(&mut self.0, name.as_bytes());
        frame::put_binary(&mut self.0, value.as_bytes());
        self
    }

    /// Copies a property with its value.
    #[must_use]
    pub fn copy(self, id: PropertyId, value: &Value) -> Self {
        match value {
            Value::Number(number) => self.number(id, *number),
            Value::Text(text) => self.text(id, text),
            Value::Binary(bytes) => self.binary(id, bytes),
            Value::Pair(name, value) => self.user(name, value),
        }
    }

    /// The properties.
    pub fn build(self) -> Properties {
        Properties(self.0.freeze())
    }
}
