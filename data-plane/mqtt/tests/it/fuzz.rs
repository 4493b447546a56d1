//! Damaged packets, for as long as `TBMQ_FUZZ_SECONDS` says, from `TBMQ_FUZZ_SEED`: `cargo xtask fuzz` and the gate set
//! them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tbmq_mqtt::{
    codec::{
        self,
        property::{PropertiesBuilder, PropertyId},
    },
    packet::{Connect, Packet, ProtocolVersion, Qos, ReasonCode},
    session::{End, Limits},
    topic,
};

use crate::{
    mutate::{Mutator, corpus},
    wire::{METHOD, Wire, answer, connect, delivery, message},
};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Repeats a step, which returns how many inputs it has tried, until the time is over, and tells the seed of the one
/// that failed.
#[expect(clippy::print_stdout, reason = "the figures are what a longer run is for")]
fn repeat(what: &str, step: impl Fn(&mut Mutator) -> u64) {
    let mut tried = 0;
    let end = Instant::now() + Duration::from_secs(setting("TBMQ_FUZZ_SECONDS", 2));
    let first = setting("TBMQ_FUZZ_SEED", 1);
    for seed in first.. {
        let Ok(count) = catch_unwind(AssertUnwindSafe(|| step(&mut Mutator::new(seed)))) else {
            panic!("TBMQ_FUZZ_SEED={seed} TBMQ_FUZZ_SECONDS=0 does it again");
        };
        tried += count;
        if Instant::now() >= end {
            println!("{tried} {what} in {} runs, seeds {first} to {seed}", seed - first + 1);
            return;
        }
    }
}

const VERSIONS: [(&str, ProtocolVersion); 2] = [("v311", ProtocolVersion::V311), ("v5", ProtocolVersion::V5)];

/// [MQTT5-4.13.1-1]
#[test]
fn damaged_bytes_are_refused_or_are_packets_that_can_be_written_and_read_again() {
    let corpora = VERSIONS.map(|(name, version)| (version, corpus(name)));
    repeat("damaged packets decoded", |mutator| {
        for _ in 0..100 {
            let (version, corpus) = mutator.pick(&corpora);
            let bytes = mutator.packet(corpus);
            let known = (bytes.first().is_none_or(|first| first >> 4 != 1)).then_some(*version);
            let mut buffer = BytesMut::from(&bytes[..]);
            match codec::decode(&mut buffer, known, &codec::Limits::default()) {
                Ok(Some(packet)) => {
                    let version =
                        if let Packet::Connect(connect) = &packet { connect.version } else { *version };
                    let again = crate::decode(&crate::encoded(&packet, version), known);
                    assert_eq!(again, Ok(Some(packet)));
                }
                Ok(None) => assert_eq!(&buffer[..], &bytes[..], "an incomplete packet stays where it is"),
                Err(error) => assert!(error.reason.is_error()),
            }
        }
        100
    });
}

/// What a session may grow to in these tests.
fn limits() -> Limits {
    Limits {
        receive_maximum: 5,
        topic_alias_max: 3,
        receive_maximum_v3: 4,
        delayed_max: 6,
        delayed_ttl_ms: 20_000,
        subscriptions_max: 4,
        ..Limits::default()
    }
}

fn opened(mutator: &mut Mutator, version: ProtocolVersion, corpus: &[Vec<u8>]) -> Wire {
    let mut wire = Wire::with_limits(limits());
    if mutator.one_in(4) {
        wire.bytes(&mutator.packet(corpus));
        return wire;
    }
    let mut properties = PropertiesBuilder::new();
    if mutator.one_in(2) {
        properties = properties.number(PropertyId::ReceiveMaximum, 1 + mutator.below(4) as u32);
        properties = properties.number(PropertyId::MaximumPacketSize, 40 + mutator.below(60) as u32);
        properties = properties.number(PropertyId::TopicAliasMaximum, mutator.below(3) as u32);
    }
    if mutator.one_in(2) {
        properties = properties.number(PropertyId::SessionExpiryInterval, mutator.below(60) as u32);
    }
    let by_method = version.is_v5() && mutator.one_in(3);
    if by_method {
        properties = properties.text(PropertyId::AuthenticationMethod, METHOD);
    }
    if mutator.one_in(3) {
        wire.allowed = Some("t");
    }
    let properties = properties.build();
    let keep_alive = mutator.below(3) as u16 * 10;
    let is_v5 = version.is_v5();
    let connect = Connect { clean_start: mutator.one_in(2), ..connect(version) };
    let properties = if is_v5 { properties } else { connect.properties.clone() };
    wire.send(&Packet::Connect(Box::new(Connect { keep_alive, properties, ..connect })));
    if by_method && !mutator.one_in(8) {
        wire.send(&answer(b"secret", ReasonCode::ContinueAuthentication));
    }
    wire
}

/// The session machine in any order of packets, deliveries, silence, ends and returns. What it writes is read back,
/// nothing may follow its end, no message of its queue is done with twice ([`Wire`]), and it stays within its limits.
///
/// [MQTT5-4.13.1-1] [MQTT5-3.14.4-1]
#[test]
fn damaged_packets_leave_a_session_within_its_limits_and_its_answers_well_formed() {
    let corpora = VERSIONS.map(|(name, version)| (version, corpus(name)));
    repeat("steps of sessions", |mutator| {
        let (version, corpus) = mutator.pick(&corpora);
        let of = |types: &[u8]| -> Vec<Vec<u8>> {
            corpus.iter().filter(|packet| types.contains(&(packet[0] >> 4))).cloned().collect()
        };
        let (connects, harmless) = (of(&[1]), of(&[3, 4, 5, 6, 7, 8, 10, 12]));
        // A session that is to last gets few damaged packets.
        let damage = *mutator.pick(&[1, 1, 8, 32]);
        let next = |mutator: &mut Mutator| {
            if mutator.one_in(damage) { mutator.packet(corpus) } else { mutator.pick(&harmless).clone() }
        };
        let mut wire = opened(mutator, *version, corpus);
        for _ in 0..60 {
            match mutator.below(16) {
                kind @ 0..3 => {
                    let qos = Qos::from_bits(mutator.below(3) as u8).unwrap();
                    let delivery = delivery(message(&"t".repeat(1 + mutator.below(40)), qos));
                    if kind == 0 {
                        wire.deliver(delivery)
                    } else {
                        wire.deliver_queued(delivery)
                    };
                }
                3 if wire.session.is_parked() => drop(wire.come_back(&mutator.packet(&connects))),
                4 => drop(wire.wait(mutator.below(20_000) as u64)),
                5 if mutator.one_in(10) => {
                    drop(wire.end(*mutator.pick(&[End::Network, End::TakenOver, End::ShuttingDown])));
                }
                9 if mutator.one_in(4) => {
                    let allowed = *mutator.pick(&["", "t", "never/"]);
                    wire.regrant(allowed);
                }
                10 if mutator.one_in(4) => {
                    let data = *mutator.pick(&["secret", "again", "again", "wrong", ""]);
                    let reasons = [ReasonCode::ContinueAuthentication, ReasonCode::ReAuthenticate];
                    drop(wire.send(&answer(data.as_bytes(), *mutator.pick(&reasons))));
                }
                // Of a message that may be on its way.
                7 | 8 => {
                    let id = 1 + mutator.below(6) as u8;
                    drop(wire.bytes(&[*mutator.pick(&[0x40, 0x50, 0x70]), 2, 0, id]));
                }
                // In two parts, as the network may bring them.
                6 => {
                    let bytes = next(mutator);
                    let (first, second) = bytes.split_at(mutator.below(bytes.len() + 1));
                    wire.bytes(first);
                    wire.bytes(second);
                }
                _ => drop(wire.bytes(&next(mutator))),
            }
            assert!(wire.session.filters().len() <= 4);
            assert!(wire.session.delivery_room() <= 6);
            assert!(wire.session.is_closed() == wire.end.is_some());
            assert!(!wire.session.awaits_verdict());
            if let Some(allowed) = wire.allowed
                && (wire.session.is_connected() || wire.session.is_parked())
            {
                assert!(wire.has().iter().all(|filter| filter.starts_with(allowed)));
            }
        }
        for message in &wire.published {
            assert_eq!(topic::check_name(&message.topic, &topic::Rules::default()), Ok(()));
        }
        60
    });
}

/// Committed inputs are tried as they are, each in a session of its own.
#[test]
fn every_input_of_the_corpus_is_understood_or_refused() {
    for (name, version) in VERSIONS {
        for bytes in corpus(name) {
            let mut wire = if bytes[0] >> 4 == 1 { Wire::open() } else { Wire::connected(version) };
            wire.bytes(&bytes);
            wire.end(End::Network);
            assert!(wire.end.is_some());
        }
    }
}
