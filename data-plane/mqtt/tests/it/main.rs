//! The codec and the tree from outside: known bytes, refused bytes, and properties that hold for all packets.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod allocations;
mod arbitrary;
mod conformance;
mod fuzz;
mod golden;
mod malformed;
mod mutate;
mod roundtrip;
mod tree;
mod wire;

use bytes::BytesMut;
use tbmq_mqtt::{
    codec::{self, DecodeError, Limits},
    packet::{Packet, ProtocolVersion},
};

const VERSIONS: [ProtocolVersion; 3] = [ProtocolVersion::V31, ProtocolVersion::V311, ProtocolVersion::V5];

fn encoded(packet: &Packet, version: ProtocolVersion) -> BytesMut {
    let mut bytes = BytesMut::new();
    codec::encode(packet, version, &mut bytes);
    bytes
}

/// What a connection of this version knows when the packet arrives: before CONNECT it knows none.
fn known(packet: &Packet, version: ProtocolVersion) -> Option<ProtocolVersion> {
    (!matches!(packet, Packet::Connect(_))).then_some(version)
}

fn decode(bytes: &[u8], version: Option<ProtocolVersion>) -> Result<Option<Packet>, DecodeError> {
    codec::decode(&mut BytesMut::from(bytes), version, &Limits::default())
}
