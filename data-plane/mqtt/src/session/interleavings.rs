//! Random interleavings of publishing, acknowledging, breaking and resuming, between the session machine and a client
//! that does what the standard asks of it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::{
    tests::{START, connect_packet, message, opened, publish},
    *,
};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A message for the client is put into its queue.
    Enqueue(Qos),
    /// The server sends as much of the queue as it may.
    Pump,
    /// The client handles a packet.
    ToClient,
    /// The server handles a packet.
    ToServer,
    /// The client publishes.
    Publish(Qos),
    /// The oldest record that is being written is written, or the newest.
    Written { oldest: bool },
    /// The connection breaks, with what is under way on it.
    Cut,
    /// The client connects again, and takes this many unacknowledged messages.
    Resume(u16),
    /// The session is stored and another process goes on with it.
    Restart,
}

fn qos() -> impl Strategy<Value = Qos> {
    prop_oneof![Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => qos().prop_map(Step::Enqueue),
        4 => Just(Step::Pump),
        8 => Just(Step::ToClient),
        8 => Just(Step::ToServer),
        3 => qos().prop_map(Step::Publish),
        3 => any::<bool>().prop_map(|oldest| Step::Written { oldest }),
        1 => Just(Step::Cut),
        2 => (1..5_u16).prop_map(Step::Resume),
        1 => Just(Step::Restart),
    ]
}

/// What the client keeps of a publish of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Publish(Qos, u32),
    Pubrel,
}

/// The client, the server's session, its queue, and the wires between them.
#[derive(Debug)]
struct World {
    session: Session,
    is_connected: bool,
    to_client: VecDeque<Packet>,
    to_server: VecDeque<Packet>,
    // The server's side.
    queue: BTreeMap<u64, (Qos, u32)>,
    enqueued: Vec<(Qos, u32)>,
    /// As far as the session was given the queue.
    given: u64,
    ids: HashMap<u16, u64>,
    writing: VecDeque<u64>,
    taken: Vec<(Qos, u32)>,
    // The client's side.
    got: Vec<(Qos, u32)>,
    held: HashSet<u16>,
    window: u16,
    unanswered: usize,
    published: Vec<(Qos, u32)>,
    unacknowledged: Vec<(u16, Sent)>,
    last_id: u16,
}

fn connect(window: u16) -> Connect {
    let properties = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, NEVER_S)
        .number(PropertyId::ReceiveMaximum, u32::from(window))
        .build();
    Connect { clean_start: false, properties, ..connect_packet(ProtocolVersion::V5) }
}

fn payload(number: u32) -> Bytes {
    number.to_be_bytes().to_vec().into()
}

fn number(payload: &Bytes) -> u32 {
    u32::from_be_bytes(payload[..].try_into().unwrap())
}

impl World {
    fn new() -> Self {
        let (session, _) = opened(&connect(3), Limits::default());
        Self {
            session,
            is_connected: true,
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            queue: BTreeMap::new(),
            enqueued: Vec::new(),
            given: 0,
            ids: HashMap::new(),
            writing: VecDeque::new(),
            taken: Vec::new(),
            got: Vec::new(),
            held: HashSet::new(),
            window: 3,
            unanswered: 0,
            published: Vec::new(),
            unacknowledged: Vec::new(),
            last_id: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Enqueue(qos) => {
                let seq = self.enqueued.len() as u64 + 1;
                let entry = (qos, seq as u32);
                self.queue.insert(seq, entry);
                self.enqueued.push(entry);
            }
            Step::Pump => self.pump(),
            Step::ToClient => {
                if let Some(packet) = self.to_client.pop_front() {
                    self.client(packet);
                }
            }
            Step::ToServer => {
                if let Some(packet) = self.to_server.pop_front() {
                    self.server(|session, out| session.packet(START, packet, out));
                }
            }
            Step::Publish(qos) => self.publish(qos),
            Step::Written { oldest } => {
                let number = if oldest { self.writing.pop_front() } else { self.writing.pop_back() };
                if let Some(number) = number {
                    self.server(|session, out| session.written(START, number, Ok(()), out));
                }
            }
            Step::Cut => {
                if self.is_connected {
                    self.server(|session, out| session.end(START, End::Network, out));
                    self.is_connected = false;
                    self.to_client.clear();
                    self.to_server.clear();
                }
            }
            Step::Resume(window) => self.resume(window),
            Step::Restart => {
                // What is being written is not known to anybody else.
                if let Some(state) = self.session.state(START).filter(|_| self.writing.is_empty()) {
                    self.session = Session::restored(Arc::default(), START, state);
                }
            }
        }
    }

    fn pump(&mut self) {
        while self.session.window_room() > 0 {
            let Some((seq, (qos, number))) =
                self.queue.range(self.given + 1..).next().map(|(seq, entry)| (*seq, *entry))
            else {
                return;
            };
            self.given = seq;
            let message = Message { payload: payload(number), ..Message::clone(&message(qos)) };
            let delivery = Delivery {
                message: Arc::new(message),
                qos,
                retain: false,
                identifiers: Vec::new(),
                group: None,
            };
            self.server(|session, out| session.deliver_queued(START, seq, delivery, out));
        }
    }

    /// Has the session do something, and carries out what it wants.
    fn server(&mut self, act: impl FnOnce(&mut Session, &mut Vec<Effect>)) {
        let mut out = Vec::new();
        act(&mut self.session, &mut out);
        while !out.is_empty() {
            for effect in std::mem::take(&mut out) {
                match effect {
                    Effect::Send(packet) => self.to_client.push_back(packet),
                    Effect::Publish { number: Some(entry), message } => {
                        self.taken.push((message.qos, number(&message.payload)));
                        self.writing.push_back(entry);
                        self.session.routed(START, entry, 1, true, &mut out);
                    }
                    Effect::InFlight { seq, packet_id, .. } => {
                        let other = self.ids.insert(packet_id, seq);
                        assert!(other.is_none_or(|other| other == seq), "{packet_id} is in flight already");
                    }
                    Effect::Settled { seq } => {
                        assert!(self.queue.remove(&seq).is_some(), "{seq} is settled twice");
                        self.ids.retain(|_, other| *other != seq);
                    }
                    Effect::Released { .. } | Effect::Close(End::Network) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn client(&mut self, packet: Packet) {
        match packet {
            Packet::Publish(publish) => {
                let packet_id = publish.packet_id.unwrap();
                let entry = (publish.qos, number(&publish.payload));
                self.unanswered += 1;
                assert!(self.unanswered <= usize::from(self.window), "more than the window");
                if publish.qos == Qos::ExactlyOnce {
                    if self.held.insert(packet_id) {
                        self.got.push(entry);
                    } else {
                        assert!(publish.dup, "{packet_id} is not released yet");
                    }
                    self.to_server.push_back(Packet::PubRec(Ack::new(packet_id, ReasonCode::Success)));
                } else {
                    self.got.push(entry);
                    self.unanswered -= 1;
                    self.to_server.push_back(Packet::PubAck(Ack::new(packet_id, ReasonCode::Success)));
                }
            }
            Packet::PubRel(ack) => {
                self.held.remove(&ack.packet_id);
                self.unanswered = self.unanswered.saturating_sub(1);
                let ack = Ack::new(ack.packet_id, ReasonCode::Success);
                self.to_server.push_back(Packet::PubComp(ack));
            }
            Packet::PubAck(ack) | Packet::PubComp(ack) => {
                self.unacknowledged.retain(|(packet_id, _)| *packet_id != ack.packet_id);
            }
            Packet::PubRec(ack) => {
                assert_eq!(ack.reason, ReasonCode::Success);
                if let Some((_, sent)) =
                    self.unacknowledged.iter_mut().find(|(packet_id, _)| *packet_id == ack.packet_id)
                {
                    *sent = Sent::Pubrel;
                }
                self.to_server.push_back(Packet::PubRel(Ack::new(ack.packet_id, ReasonCode::Success)));
            }
            Packet::ConnAck(connack) => assert!(connack.session_present),
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, qos: Qos) {
        // Few ids, so that they come round.
        let Some(packet_id) = (1..=4)
            .map(|step| (self.last_id + step) % 4 + 1)
            .find(|packet_id| self.unacknowledged.iter().all(|(other, _)| other != packet_id))
        else {
            return;
        };
        self.last_id = packet_id;
        let number = self.published.len() as u32;
        self.published.push((qos, number));
        self.unacknowledged.push((packet_id, Sent::Publish(qos, number)));
        if self.is_connected {
            let packet = Publish { payload: payload(number), ..publish(qos, packet_id) };
            self.to_server.push_back(Packet::Publish(packet));
        }
    }

    fn resume(&mut self, window: u16) {
        if self.is_connected {
            return;
        }
        self.is_connected = true;
        self.window = window;
        self.unanswered = 0;
        self.server(|session, out| {
            session.resume(START, session.limits.clone(), &connect(window), Proven::default(), out);
        });
        for (packet_id, sent) in &self.unacknowledged {
            self.to_server.push_back(match sent {
                Sent::Publish(qos, number) => Packet::Publish(Publish {
                    dup: true,
                    payload: payload(*number),
                    ..publish(*qos, *packet_id)
                }),
                Sent::Pubrel => Packet::PubRel(Ack::new(*packet_id, ReasonCode::Success)),
            });
        }
    }

    /// Lets everything come to its end.
    fn settle(&mut self) {
        self.step(Step::Resume(2));
        loop {
            self.pump();
            let before = (self.to_client.len(), self.to_server.len(), self.writing.len());
            if before == (0, 0, 0) {
                return;
            }
            for step in [Step::ToClient, Step::ToServer, Step::Written { oldest: true }] {
                self.step(step);
            }
        }
    }
}

fn check(expected: &[(Qos, u32)], got: &[(Qos, u32)]) {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let of = |all: &[(Qos, u32)]| -> Vec<u32> {
            all.iter().filter(|(other, _)| *other == qos).map(|(_, number)| *number).collect()
        };
        let mut arrived = of(got);
        if qos == Qos::AtLeastOnce {
            // What counts is the first time.
            let mut seen = HashSet::new();
            arrived.retain(|number| seen.insert(*number));
        }
        assert_eq!(arrived, of(expected), "{qos:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT-4.3.3-2] [MQTT-4.6.0-5] [MQTT5-4.3.2-1] [MQTT5-4.3.3-1] [MQTT5-4.6.0-5]
    #[test]
    fn no_message_is_lost_none_of_qos_2_comes_twice_and_no_packet_id_in_flight_is_given_again(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        check(&world.enqueued, &world.got);
        check(&world.published, &world.taken);
        prop_assert!(world.queue.is_empty() && world.ids.is_empty() && world.unacknowledged.is_empty());
    }
}
