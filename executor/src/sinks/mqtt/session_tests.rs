//! The session against a broker in memory: by hand, and through random interleavings.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;
use serde_json::{Map, json};
use tbmq_mqtt::{
    codec::{Limits, decode},
    packet::ProtocolVersion,
};

use super::*;
use crate::{
    conformance,
    sinks::{SinkSettings, envelope::Envelope, mqtt::config},
};

const ATTEMPT: Duration = Duration::from_secs(30);
const RECONNECT: Duration = Duration::from_secs(5);

fn settings(window: usize) -> Settings {
    Settings {
        window,
        attempt_timeout: ATTEMPT,
        reconnect: Some(RECONNECT),
        keep_alive: Duration::ZERO,
        ping_timeout: Duration::from_secs(10),
    }
}

fn publisher(version: u32) -> Publisher {
    let configuration = json!({
        "sendOnlyMsgPayload": true, "host": "h", "port": 1, "clientId": "c", "connectTimeoutSec": 1,
        "mqttVersion": version, "useMsgTopicName": true, "useMsgQoS": true,
    });
    let checked = config::read(configuration.as_object().unwrap(), &SinkSettings::default()).config.unwrap();
    Publisher::new(&checked, Envelope::new("ie", &Map::new()))
}

fn peer(receive_maximum: u16) -> Peer {
    Peer {
        receive_maximum,
        exchanges_max: receive_maximum,
        packet_bytes_max: 1 << 20,
        qos_max: Qos::ExactlyOnce,
        retains: true,
        keep_alive: None,
    }
}

fn message(number: u64, qos: i32) -> Message {
    let mut message = conformance::message(number);
    Arc::make_mut(&mut message.publish).publish_msg_proto.as_mut().unwrap().qos = qos;
    message
}

/// A publish as the broker holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    packet_id: u16,
    ticket: Ticket,
    /// `None`: QoS 1.
    is_released: Option<bool>,
}

/// A session, its broker, and what is known of both.
struct World {
    session: Session,
    now: Millis,
    window: usize,
    receive_maximum: u16,
    /// Bytes on their way to the broker.
    pipe: BytesMut,
    held: Vec<Held>,
    /// The last publish of this connection.
    last: Option<Ticket>,
    /// Tickets for which the broker has confirmed.
    confirmed: BTreeSet<Ticket>,
    qos: BTreeMap<Ticket, i32>,
    answers: BTreeMap<Ticket, Outcome>,
    pings: usize,
}

impl World {
    fn new(window: usize, receive_maximum: u16) -> Self {
        Self::of(settings(window), receive_maximum)
    }

    fn of(settings: Settings, receive_maximum: u16) -> Self {
        let window = settings.window;
        let session = Session::new(settings, publisher(5), Millis(0), peer(receive_maximum));
        Self {
            session,
            now: Millis(0),
            window,
            receive_maximum,
            pipe: BytesMut::new(),
            held: Vec::new(),
            last: None,
            confirmed: BTreeSet::new(),
            qos: BTreeMap::new(),
            answers: BTreeMap::new(),
            pings: 0,
        }
    }

    /// Submits the next ticket; `false`: busy.
    fn submit(&mut self, qos: i32) -> bool {
        let ticket = self.qos.len() as u64;
        let open = self.qos.len() - self.answers.len();
        let is_taken = self.session.submit(self.now, message(ticket, qos), ticket).is_ok();
        if is_taken {
            assert!(open < self.window, "no more tickets than the window");
            self.qos.insert(ticket, qos);
        }
        is_taken
    }

    /// The socket takes some bytes, and the broker reads what is complete.
    fn write(&mut self, count: usize) {
        let count = count.min(self.session.output().len());
        self.pipe.extend_from_slice(&self.session.output()[..count]);
        self.session.wrote(self.now, count);
        self.session.flushed(self.now);
        self.read();
    }

    fn write_all(&mut self) {
        while !self.session.output().is_empty() {
            self.write(usize::MAX);
        }
    }

    fn read(&mut self) {
        while let Some(packet) =
            decode(&mut self.pipe, Some(ProtocolVersion::V5), &Limits::default()).expect("packets are sent")
        {
            match packet {
                Packet::Publish(publish) => {
                    let ticket = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
                    assert!(self.last < Some(ticket), "{ticket} after {:?}: in order, once", self.last);
                    self.last = Some(ticket);
                    let Some(packet_id) = publish.packet_id else { continue };
                    assert!(
                        self.held.iter().all(|held| held.packet_id != packet_id),
                        "{packet_id} is in use"
                    );
                    let is_released = (publish.qos == Qos::ExactlyOnce).then_some(false);
                    self.held.push(Held { packet_id, ticket, is_released });
                    assert!(
                        self.held.len() <= usize::from(self.receive_maximum),
                        "the Receive Maximum is kept"
                    );
                }
                Packet::PubRel(ack) => {
                    // Without one it is the answer to a PUBREC that was said twice.
                    if let Some(held) = self.held.iter_mut().find(|held| held.packet_id == ack.packet_id) {
                        assert!(held.is_released.is_some(), "QoS 1 is not released");
                        held.is_released = Some(true);
                    }
                }
                Packet::PingReq => self.pings += 1,
                Packet::Disconnect(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The broker says the next thing about one of the publishes that it holds.
    fn acknowledge(&mut self, index: usize) {
        if self.held.is_empty() {
            return;
        }
        let index = index % self.held.len();
        let held = self.held[index];
        let ack = Ack::new(held.packet_id, ReasonCode::Success);
        let packet = match held.is_released {
            Some(false) => Packet::PubRec(ack),
            None | Some(true) => {
                self.held.remove(index);
                self.confirmed.insert(held.ticket);
                if held.is_released.is_some() { Packet::PubComp(ack) } else { Packet::PubAck(ack) }
            }
        };
        self.session.received(self.now, packet);
    }

    fn refuse(&mut self, reason: ReasonCode) {
        let held = self.held.remove(0);
        let ack = Ack::new(held.packet_id, reason);
        let packet = if held.is_released.is_some() { Packet::PubRec(ack) } else { Packet::PubAck(ack) };
        self.session.received(self.now, packet);
    }

    fn lose(&mut self) {
        self.session.lost(self.now, "lost".to_owned());
        self.pipe.clear();
        self.held.clear();
        self.last = None;
    }

    /// A due attempt to connect ends.
    fn dial(&mut self, is_accepted: bool) {
        if !self.session.begins_attempt(self.now) {
            return;
        }
        if is_accepted {
            self.session.connected(self.now, peer(self.receive_maximum));
        } else {
            self.session.refused(self.now, "refused".to_owned());
        }
    }

    fn advance(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.session.tick(self.now);
        if !self.session.is_online() {
            // What a tick gave up is gone for the broker, too.
            self.lose();
        }
    }

    fn poll(&mut self) {
        while let Some((ticket, outcome)) = self.session.poll_outcome() {
            if outcome == Outcome::Delivered && self.qos[&ticket] > 0 {
                assert!(self.confirmed.contains(&ticket), "{ticket} was confirmed");
            }
            assert_eq!(self.answers.insert(ticket, outcome), None, "{ticket} is answered once");
        }
    }

    /// Lets everything come to its end.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.poll();
            if self.answers.len() == self.qos.len() {
                return;
            }
            if !self.session.is_online() {
                self.advance(RECONNECT);
                self.dial(true);
            }
            self.write_all();
            self.acknowledge(0);
        }
        panic!("{} of {} are answered", self.answers.len(), self.qos.len());
    }

    fn answer(&mut self, ticket: Ticket) -> Option<&Outcome> {
        self.poll();
        self.answers.get(&ticket)
    }
}

#[test]
fn what_was_released_and_not_completed_is_sent_anew_on_a_new_connection() {
    let mut world = World::new(8, 8);
    assert!(world.submit(2));
    world.write_all();
    world.acknowledge(0);
    world.write_all();
    assert_eq!(world.held[0].is_released, Some(true));
    world.lose();
    assert!(matches!(world.session.state(), SinkState::Away { .. }));
    world.settle();
    assert_eq!(world.answer(0), Some(&Outcome::Delivered));
}

#[test]
fn an_outage_of_any_length_makes_no_message_old() {
    let mut world = World::new(8, 8);
    assert!(world.submit(1));
    world.write_all();
    world.lose();
    for _ in 0..100 {
        world.advance(ATTEMPT);
        world.dial(false);
    }
    assert_eq!(world.answer(0), None);
    world.settle();
    assert_eq!(world.answer(0), Some(&Outcome::Delivered));
}

#[test]
fn a_refused_attempt_is_followed_by_another_after_the_period() {
    let mut world = World::new(8, 8);
    world.lose();
    assert_eq!(world.session.next_deadline(), Some(Millis(0) + RECONNECT));
    assert!(!world.session.begins_attempt(Millis(0)));
    world.advance(RECONNECT);
    assert!(world.session.begins_attempt(world.now));
    assert!(!world.session.begins_attempt(world.now), "one attempt at a time");
    world.session.refused(world.now, "no".to_owned());
    assert_eq!(world.session.state(), SinkState::Away { reason: "no".to_owned() });
    assert_eq!(world.session.next_deadline(), Some(world.now + RECONNECT));
}

#[test]
fn a_packet_id_stays_taken_after_a_timeout_until_its_acknowledgement_comes() {
    let mut world = World::new(8, 8);
    assert!(world.submit(1));
    world.write_all();
    world.advance(ATTEMPT);
    assert!(matches!(world.answer(0), Some(Outcome::Retry { class: "timeout", .. })));
    let taken = (0..8).filter(|_| world.submit(1)).count();
    assert_eq!(taken, 7, "the broker still counts the first");
    world.write_all();
    assert_eq!(world.held.len(), 8);
    world.acknowledge(0);
    assert!(world.submit(1), "the late acknowledgement made room");
    world.settle();
    assert_eq!(world.answers.values().filter(|outcome| **outcome == Outcome::Delivered).count(), 8);
}

#[test]
fn a_broker_that_acknowledges_nothing_is_given_up() {
    let mut world = World::new(8, 8);
    for _ in 0..4 {
        assert!(world.submit(1));
    }
    world.write_all();
    world.advance(ATTEMPT);
    let reason = "the broker left 4 messages without acknowledgement".to_owned();
    assert_eq!(world.session.state(), SinkState::Away { reason });
    assert!(
        (0..4).all(|ticket| matches!(world.answer(ticket), Some(Outcome::Retry { class: "timeout", .. })))
    );
}

#[test]
fn qos_0_is_delivered_by_its_last_byte() {
    let mut world = World::new(8, 8);
    assert!(world.submit(0) && world.submit(0));
    let length = world.session.output().len() / 2;
    world.write(length - 1);
    assert_eq!(world.answer(0), None);
    world.write(1);
    assert_eq!(world.answer(0), Some(&Outcome::Delivered));
    assert_eq!(world.answer(1), None);
    world.lose();
    world.settle();
    assert_eq!(world.answer(1), Some(&Outcome::Delivered));
}

#[test]
fn a_refused_qos_2_publish_frees_its_packet_id() {
    let mut world = World::new(1, 1);
    assert!(world.submit(2));
    world.write_all();
    world.refuse(ReasonCode::QuotaExceeded);
    assert!(matches!(world.answer(0), Some(Outcome::Retry { class: "refused", .. })));
    assert!(world.submit(2));
    world.settle();
    assert_eq!(world.answer(1), Some(&Outcome::Delivered));
}

#[test]
fn exchanges_of_qos_2_have_a_limit_of_their_own_and_keep_the_order() {
    let mut world = World::new(8, 8);
    world.session.connected(world.now, Peer { exchanges_max: 2, ..peer(8) });
    for qos in [2, 1, 2, 2, 1] {
        assert!(world.submit(qos));
    }
    world.write_all();
    let sent = |world: &World| world.held.iter().map(|held| held.ticket).collect::<Vec<_>>();
    assert_eq!(sent(&world), [0, 1, 2], "the last, of QoS 1, does not overtake");
    world.acknowledge(0);
    world.write_all();
    world.acknowledge(0);
    world.write_all();
    assert_eq!(sent(&world), [1, 2, 3, 4]);
}

#[test]
fn acknowledgements_that_nobody_waits_for_change_nothing() {
    let mut world = World::new(8, 8);
    world.session.received(world.now, Packet::PubAck(Ack::new(7, ReasonCode::Success)));
    world.session.received(world.now, Packet::PubComp(Ack::new(7, ReasonCode::Success)));
    assert!(world.session.output().is_empty() && world.session.is_online());
    world.session.received(world.now, Packet::PubRec(Ack::new(7, ReasonCode::Success)));
    let mut sent = BytesMut::from(world.session.output());
    let packet = decode(&mut sent, Some(ProtocolVersion::V5), &Limits::default()).unwrap();
    assert_eq!(packet, Some(Packet::PubRel(Ack::new(7, ReasonCode::PacketIdentifierNotFound))));
}

#[test]
fn an_acknowledgement_of_another_quality_ends_the_connection() {
    let mut world = World::new(8, 8);
    assert!(world.submit(2));
    world.write_all();
    let id = world.held[0].packet_id;
    world.session.received(world.now, Packet::PubAck(Ack::new(id, ReasonCode::Success)));
    assert!(!world.session.is_online());
    assert_eq!(world.answer(0), None);
}

#[test]
fn a_suspect_is_sent_alone() {
    let mut world = World::new(8, 8);
    for _ in 0..3 {
        assert!(world.submit(1));
    }
    for losses in 1..=3 {
        world.write_all();
        let expected = if losses == 3 { 1 } else { 3 };
        assert_eq!(world.held.len(), expected, "after {} losses", losses - 1);
        world.lose();
        world.advance(RECONNECT);
        world.dial(true);
    }
    assert!(matches!(world.answer(0), Some(Outcome::Retry { class: "disconnected", .. })));
    world.settle();
    assert!((1..3).all(|ticket| world.answer(ticket) == Some(&Outcome::Delivered)));
}

#[test]
fn what_waits_behind_a_suspect_of_qos_0_is_sent_when_that_is_written() {
    let mut world = World::new(8, 8);
    assert!(world.submit(0) && world.submit(0));
    for _ in 0..2 {
        world.lose();
        world.advance(RECONNECT);
        world.dial(true);
    }
    world.write_all();
    assert!((0..2).all(|ticket| world.answer(ticket) == Some(&Outcome::Delivered)));
}

#[test]
fn pings_go_out_when_either_side_is_quiet_and_an_answer_is_awaited() {
    let second = Duration::from_secs(1);
    let mut world = World::of(Settings { keep_alive: 10 * second, ..settings(8) }, 8);
    world.advance(9 * second);
    assert!(world.submit(0));
    world.write_all();
    assert_eq!(world.pings, 0);
    // The broker said nothing for the whole time, although we did not keep quiet.
    world.advance(second);
    world.write_all();
    assert_eq!(world.pings, 1);
    world.advance(9 * second);
    assert!(world.session.is_online());
    world.session.received(world.now, Packet::PingResp);
    world.advance(10 * second);
    world.write_all();
    assert_eq!(world.pings, 2);
    world.advance(10 * second);
    assert!(!world.session.is_online());
}

#[test]
fn the_brokers_keep_alive_wins() {
    let mut world = World::of(Settings { keep_alive: Duration::from_secs(60), ..settings(8) }, 8);
    world.session.connected(world.now, Peer { keep_alive: Some(5), ..peer(8) });
    assert_eq!(world.session.next_deadline(), Some(Millis(5000)));
    world.session.connected(world.now, Peer { keep_alive: Some(0), ..peer(8) });
    assert_eq!(world.session.next_deadline(), None);
}

#[test]
fn publishes_of_the_broker_are_acknowledged_and_passed_over() {
    let mut world = World::new(8, 8);
    let publish = |qos, packet_id| {
        Packet::Publish(tbmq_mqtt::packet::Publish {
            dup: false,
            qos,
            retain: false,
            topic: "t".into(),
            packet_id,
            properties: codec::property::Properties::NONE,
            payload: bytes::Bytes::new(),
        })
    };
    world.session.received(world.now, publish(Qos::AtMostOnce, None));
    world.session.received(world.now, publish(Qos::AtLeastOnce, Some(1)));
    world.session.received(world.now, publish(Qos::ExactlyOnce, Some(2)));
    world.session.received(world.now, Packet::PubRel(Ack::new(2, ReasonCode::Success)));
    let mut sent = BytesMut::from(world.session.output());
    let mut packets = Vec::new();
    while let Some(packet) = decode(&mut sent, Some(ProtocolVersion::V5), &Limits::default()).unwrap() {
        packets.push(packet);
    }
    let ack = |id| Ack::new(id, ReasonCode::Success);
    assert_eq!(packets, [Packet::PubAck(ack(1)), Packet::PubRec(ack(2)), Packet::PubComp(ack(2))]);
}

#[derive(Clone, Debug)]
enum Op {
    Submit(i32),
    Write(usize),
    Acknowledge(usize),
    Lose,
    Dial(bool),
    Advance(u64),
    Poll,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..3).prop_map(Op::Submit),
        4 => (1_usize..60).prop_map(Op::Write),
        4 => (0_usize..8).prop_map(Op::Acknowledge),
        1 => Just(Op::Lose),
        2 => any::<bool>().prop_map(Op::Dial),
        1 => (0_u64..40_000).prop_map(Op::Advance),
        2 => Just(Op::Poll),
    ]
}

proptest! {
    #[test]
    fn every_ticket_is_answered_once_in_any_interleaving(
        window in 1_usize..6,
        receive_maximum in 1_u16..6,
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut world = World::new(window, receive_maximum);
        for op in ops {
            match op {
                Op::Submit(qos) => drop(world.submit(qos)),
                Op::Write(count) => world.write(count),
                Op::Acknowledge(index) => world.acknowledge(index),
                Op::Lose => world.lose(),
                Op::Dial(is_accepted) => world.dial(is_accepted),
                Op::Advance(ms) => world.advance(Duration::from_millis(ms)),
                Op::Poll => world.poll(),
            }
        }
        world.settle();
        // Nothing is left behind: the whole window is free again.
        world.lose();
        world.advance(RECONNECT);
        world.dial(true);
        let room = window.min(usize::from(receive_maximum));
        prop_assert_eq!((0..=room).filter(|_| world.submit(1)).count(), room);
    }
}

#[test]
fn a_traced_message_takes_its_place_along_to_a_broker_of_mqtt_5() {
    let sent = |version, message: Message| {
        let publish = publisher(version).publish(&message, &peer(1)).unwrap();
        let pairs = publish.properties.user_properties();
        pairs.map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>()
    };
    let traced = || conformance::traced(3);
    let told = format!("traceparent: {}", conformance::traceparent(3));
    assert_eq!(sent(5, traced()), [&*told, "tracestate: vendor=x"]);
    assert!(sent(4, traced()).is_empty());
    assert!(sent(5, message(3, 1)).is_empty());
}
