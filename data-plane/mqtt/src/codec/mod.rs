//! Bytes ⇄ packets.
//!
//! [`decode`] takes whole packets off the front of a buffer and allocates nothing for a PUBLISH; [`encode`] appends a
//! packet. Both directions of every packet are there: the command line and the tests are clients.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod frame;
pub mod property;

pub use decode::decode;
pub use encode::{EncodedPublish, encode, publish_length};

use crate::packet::{ProtocolVersion, ReasonCode};

/// What a decoder accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a packet, header included. Checked on the header, before anything is reserved or waited for.
    pub packet_bytes: usize,
}

impl Default for Limits {
    /// 256 MiB and 5 bytes: what the standard can express.
    fn default() -> Self {
        Self { packet_bytes: 5 + 268_435_455 }
    }
}

/// Why bytes are not a packet. The connection is to be closed; a 5.0 client is told [`DecodeError::reason`] first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} (reason 0x{:02X})", reason.byte())]
pub struct DecodeError {
    /// The reason code for CONNACK or DISCONNECT.
    pub reason: ReasonCode,
    /// What is wrong.
    pub text: &'static str,
    /// What the client speaks: `None` when it has not said so yet, or speaks none of ours.
    pub version: Option<ProtocolVersion>,
}

impl DecodeError {
    pub(crate) const fn new(reason: ReasonCode, text: &'static str) -> Self {
        Self { reason, text, version: None }
    }

    pub(crate) const fn malformed(text: &'static str) -> Self {
        Self::new(ReasonCode::MalformedPacket, text)
    }

    pub(crate) const fn protocol(text: &'static str) -> Self {
        Self::new(ReasonCode::ProtocolError, text)
    }

    /// In a packet of this version.
    pub(crate) const fn of(mut self, version: ProtocolVersion) -> Self {
        self.version = Some(version);
        self
    }
}
