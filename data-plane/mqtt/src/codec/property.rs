//! Properties of MQTT 5.0 (§2.2.2): checked once when they are read, then kept as the bytes they are.

use std::fmt;

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
    /// Malformed: an unknown property, a bad length, text that is not UTF-8. Protocol error: a property that may not
    /// stand here or twice, or whose value the standard forbids.
    pub(crate) fn check(bytes: Bytes, place: Place) -> Result<Self, DecodeError> {
        let properties = Self(bytes);
        let mut seen = 0_u64;
        let mut at = 0;
        while at < properties.0.len() {
            let (id, value, next) = properties.read(at)?;
            if !id.places().contains(place) {
                return Err(DecodeError::protocol("a property that may not stand in this packet"));
            }
            let bit = 1_u64 << (id as u8);
            // The server may send several subscription identifiers in a PUBLISH (MQTT-3.3.4-3); a client none.
            let may_repeat = id == PropertyId::UserProperty
                || id == PropertyId::SubscriptionIdentifier && place == Place::PUBLISH;
            if seen & bit != 0 && !may_repeat {
                return Err(DecodeError::protocol("a property stands twice"));
            }
            seen |= bit;
            check_value(id, &value)?;
            at = next;
        }
        Ok(properties)
    }

    /// The checked bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A copy that does not keep the read buffer alive.
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (PropertyId, Value)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= self.0.len() {
                return None;
            }
            let (id, value, next) = self.read(at).ok()?;
            at = next;
            Some((id, value))
        })
    }

    /// The first value of a property.
    pub fn get(&self, wanted: PropertyId) -> Option<Value> {
        if self.0.is_empty() {
            return None;
        }
        self.iter().find(|(id, _)| *id == wanted).map(|(_, value)| value)
    }

    /// The first value of a numeric property.
    pub fn number(&self, wanted: PropertyId) -> Option<u32> {
        match self.get(wanted)? {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }

    /// The first value of a text property.
    pub fn text(&self, wanted: PropertyId) -> Option<Text> {
        match self.get(wanted)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The first value of a binary property.
    pub fn binary(&self, wanted: PropertyId) -> Option<Bytes> {
        match self.get(wanted)? {
            Value::Binary(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// User properties in order.
    pub fn user_properties(&self) -> impl Iterator<Item = (Text, Text)> + '_ {
        self.iter().filter_map(|(_, value)| match value {
            Value::Pair(name, value) => Some((name, value)),
            _ => None,
        })
    }

    fn read(&self, at: usize) -> Result<(PropertyId, Value, usize), DecodeError> {
        let bytes = &self.0;
        // Every identifier of the standard fits one byte of the variable byte integer.
        let id = PropertyId::from_byte(bytes[at]).ok_or(DecodeError::malformed("an unknown property"))?;
        let at = at + 1;
        let number = |length: usize| -> Result<(Value, usize), DecodeError> {
            let end = at + length;
            let digits = bytes.get(at..end).ok_or(DecodeError::malformed("a property ends too early"))?;
            Ok((Value::Number(digits.iter().fold(0, |value, digit| value << 8 | u32::from(*digit))), end))
        };
        let (value, next) = match id.shape() {
            Shape::Byte => number(1)?,
            Shape::TwoBytes => number(2)?,
            Shape::FourBytes => number(4)?,
            Shape::Varint => match frame::varint(&bytes[at..])? {
                Some((value, length)) => (Value::Number(value), at + length),
                None => return Err(DecodeError::malformed("a property ends too early")),
            },
            Shape::Text => {
                let (text, next) = self.text_at(at)?;
                (Value::Text(text), next)
            }
            Shape::Binary => {
                let (binary, next) = self.binary_at(at)?;
                (Value::Binary(binary), next)
            }
            Shape::Pair => {
                let (name, next) = self.text_at(at)?;
                let (value, next) = self.text_at(next)?;
                (Value::Pair(name, value), next)
            }
        };
        Ok((id, value, next))
    }

    fn binary_at(&self, at: usize) -> Result<(Bytes, usize), DecodeError> {
        let early = DecodeError::malformed("a property ends too early");
        let length = self.0.get(at..at + 2).ok_or(early)?;
        let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        if end > self.0.len() {
            return Err(early);
        }
        Ok((self.0.slice(at + 2..end), end))
    }

    fn text_at(&self, at: usize) -> Result<(Text, usize), DecodeError> {
        let (bytes, next) = self.binary_at(at)?;
        let text = Text::from_bytes(bytes).ok_or(DecodeError::malformed("a text is not UTF-8"))?;
        Ok((text, next))
    }
}

fn check_value(id: PropertyId, value: &Value) -> Result<(), DecodeError> {
    let Value::Number(number) = value else { return Ok(()) };
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
        f.debug_map()
            .entries(self.iter().filter(|(id, _)| *id != PropertyId::AuthenticationData))
            .finish()
    }
}

/// Writes properties, in the order of the calls.
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
        self.0.put_u8(id as u8);
        frame::put_binary(&mut self.0, value.as_bytes());
        self
    }

    /// Adds a binary property.
    #[must_use]
    pub fn binary(mut self, id: PropertyId, value: &[u8]) -> Self {
        debug_assert_eq!(id.shape(), Shape::Binary);
        self.0.put_u8(id as u8);
        frame::put_binary(&mut self.0, value);
        self
    }

    /// Adds a user property.
    #[must_use]
    pub fn user(mut self, name: &str, value: &str) -> Self {
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
