//! The standards' statements, one by one, against the codec and the session machine.

mod acknowledgements;
mod authentication;
mod connect;
mod format;
mod publish;
mod subscribe;
mod text;
mod will;

use tbmq_mqtt::packet::{Disconnect, Packet, ProtocolVersion, ReasonCode};

use crate::wire::Wire;

const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::V311, ProtocolVersion::V5];

/// Asserts that the server has closed the connection, and has told a 5.0 client why as its last word.
#[track_caller]
fn assert_closed(wire: &Wire, answers: &[Packet], reason: ReasonCode, what: &str) {
    assert!(wire.end.is_some(), "{what}: the connection is open");
    let told = wire.session.version() == Some(ProtocolVersion::V5);
    let expected = Packet::Disconnect(Disconnect::new(reason));
    assert_eq!(answers.last(), told.then_some(&expected), "{what}");
}
