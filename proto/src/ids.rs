//! Ids as newtypes.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// The id of an integration: its text is the canonical lower-case UUID with hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntegrationId(pub Uuid);

impl IntegrationId {
    /// From the two halves that TBMQ's messages carry.
    pub fn from_halves(msb: i64, lsb: i64) -> Self {
        Self(Uuid::from_u64_pair(msb.cast_unsigned(), lsb.cast_unsigned()))
    }

    /// The two halves (MSB, LSB), big-endian two's complement.
    pub fn halves(self) -> (i64, i64) {
        halves(self.0)
    }
}

/// The two halves (MSB, LSB) of any UUID, as TBMQ's messages carry it.
pub fn halves(uuid: Uuid) -> (i64, i64) {
    let (msb, lsb) = uuid.as_u64_pair();
    (msb.cast_signed(), lsb.cast_signed())
}

impl fmt::Display for IntegrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for IntegrationId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// One shard of an integration: the unit of ownership. Shard `index` of `count` owns the message partitions `p`
/// with `p % count == index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId {
    /// The integration.
    pub integration: IntegrationId,
    /// Index, from 0.
    pub index: u32,
}

impl ShardId {
    /// The first (and, with one shard, only) shard.
    pub fn first(integration: IntegrationId) -> Self {
        Self { integration, index: 0 }
    }

    /// The key of this shard's record on the downlink topic: `<id>` for shard 0, `<id>/<i>` for the others.
    pub fn downlink_key(self) -> String {
        if self.index == 0 {
            self.integration.to_string()
        } else {
            format!("{}/{}", self.integration, self.index)
        }
    }

    /// Reads a downlink key; `None` when it is not one.
    pub fn from_downlink_key(key: &str) -> Option<Self> {
        let (id, index) = match key.split_once('/') {
            Some((id, index)) => (id, index.parse().ok().filter(|index| *index > 0)?),
            None => (key, 0),
        };
        Some(Self { integration: id.parse().ok()?, index })
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.integration, self.index)
    }
}

/// An integration's kind, such as `HTTP`: upper case on the wire and in the API, lower case in topic names. 1 to 64
/// of `A-Z`, `0-9`, `_`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(Box<str>);

/// A text that can't be a kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an integration type: 1 to 64 of A-Z, 0-9 and _, beginning with a letter")]
pub struct InvalidKind(pub String);

impl Kind {
    /// The upper-case name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Kind {
    type Err = InvalidKind;

    fn from_str(text: &str) -> Result<Self, InvalidKind> {
        let legal = (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        if legal { Ok(Self(text.into())) } else { Err(InvalidKind(text.to_owned())) }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The stable id of a process's role: `TB_SERVICE_ID`, else `<hostname>-<role>`. 1 to 128 of the characters that
/// Kafka allows in topic names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(Box<str>);

/// A text that can't be a service id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a service id: 1 to 128 of a-z, A-Z, 0-9, '.', '_' and '-'")]
pub struct InvalidServiceId(pub String);

impl ServiceId {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceId {
    type Err = InvalidServiceId;

    fn from_str(text: &str) -> Result<Self, InvalidServiceId> {
        let legal = (1..=128).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if legal { Ok(Self(text.into())) } else { Err(InvalidServiceId(text.to_owned())) }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
