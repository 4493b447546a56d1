//! Persistent MQTT sessions across the end of the process, as it comes: SIGKILL, at any moment.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Stdio,
    time::Duration,
};

use bytes::BytesMut;
use tbmq_mqtt::{
    codec::{self, property::Properties},
    packet::{Ack, Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, Subscribe, Subscription},
};

use super::{Started, tbmq};

const VERSION: ProtocolVersion = ProtocolVersion::V311;

fn start(data_dir: &Path) -> Started {
    Started::new(tbmq(data_dir).stderr(Stdio::null()))
}

pub(super) struct Client {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Client {
    /// Connects, and tells whether there was a session.
    pub(super) fn connect(tbmq: &Started, client_id: &str, clean_start: bool) -> (Self, bool) {
        let stream = TcpStream::connect(tbmq.address("mqtt")).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let mut client = Self { stream, buffer: BytesMut::new() };
        let connect = Connect { clean_start, ..Connect::new(VERSION, client_id) };
        client.send(&Packet::Connect(Box::new(connect)));
        match client.next() {
            Some(Packet::ConnAck(connack)) if connack.reason == ReasonCode::Success => {
                (client, connack.session_present)
            }
            other => panic!("not accepted: {other:?}"),
        }
    }

    fn subscribe(&mut self, filter: &str) {
        let subscriptions = vec![Subscription::new(filter, Qos::ExactlyOnce)];
        self.send(&Packet::Subscribe(Subscribe::new(1, subscriptions)));
        match self.next() {
            Some(Packet::SubAck(suback)) => assert_eq!(suback.reasons, [ReasonCode::GrantedQos2]),
            other => panic!("no SUBACK: {other:?}"),
        }
    }

    /// The process may be gone already.
    pub(super) fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        codec::encode(packet, VERSION, &mut bytes);
        self.stream.write_all(&bytes).ok();
    }

    /// The next packet, as long as the connection is there.
    pub(super) fn next(&mut self) -> Option<Packet> {
        loop {
            let limits = codec::Limits::default();
            if let Some(packet) = codec::decode(&mut self.buffer, Some(VERSION), &limits).expect("a packet") {
                return Some(packet);
            }
            let mut read = [0; 4096];
            match self.stream.read(&mut read) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&read[..count]),
                Err(error) => {
                    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "nothing comes");
                    return None;
                }
            }
        }
    }
}

/// A receiver as the standard wants it: keeps the ids of QoS 2 publishes until they are released, over all connections.
#[derive(Default)]
struct Receiver {
    unreleased: BTreeMap<u16, String>,
    /// How often each message came.
    got: BTreeMap<String, u32>,
}

impl Receiver {
    fn take(&mut self, client: &mut Client, packet: Packet) {
        match packet {
            Packet::Publish(publish) => {
                let payload = String::from_utf8(publish.payload.to_vec()).expect("text");
                let packet_id = publish.packet_id.expect("above QoS 0");
                let ack = Ack::new(packet_id, ReasonCode::Success);
                if publish.qos == Qos::AtLeastOnce {
                    self.got.entry(payload).or_default();
                    return client.send(&Packet::PubAck(ack));
                }
                if let Some(held) = self.unreleased.get(&packet_id) {
                    assert_eq!((held, publish.dup), (&payload, true), "one id, two messages");
                } else {
                    *self.got.entry(payload.clone()).or_default() += 1;
                    self.unreleased.insert(packet_id, payload);
                }
                client.send(&Packet::PubRec(ack));
            }
            Packet::PubRel(ack) => {
                self.unreleased.remove(&ack.packet_id);
                client.send(&Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success)));
            }
            Packet::PingResp => {}
            other => panic!("{other:?}"),
        }
    }
}

/// [MQTT-3.1.2-5] [MQTT-4.1.0-1] [MQTT-4.3.2-2] [MQTT-4.3.3-1] [MQTT-4.3.3-2] [MQTT-4.4.0-1]
#[test]
fn what_tbmq_acknowledged_before_it_was_killed_arrives_and_qos_2_exactly_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut tbmq = start(folder.path());
    let mut acknowledged = Vec::new();
    let mut here = Receiver::default();
    for client_id in ["away", "here"] {
        let (mut client, was_there) = Client::connect(&tbmq, client_id, false);
        assert!(!was_there);
        client.subscribe("t/#");
    }
    for round in 0..4_u32 {
        let (mut client, was_there) = Client::connect(&tbmq, "here", false);
        assert!(was_there, "round {round}");
        let mut receiver = std::mem::take(&mut here);
        let receiving = std::thread::spawn(move || {
            while let Some(packet) = client.next() {
                receiver.take(&mut client, packet);
            }
            receiver
        });
        let (mut publisher, _) = Client::connect(&tbmq, "publisher", true);
        for id in 1..=200 + 20 * round as u16 {
            let qos = if id % 2 == 0 { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
            let payload = format!("{round}/{id}");
            let publish = Publish {
                dup: false,
                qos,
                retain: false,
                topic: "t/1".into(),
                packet_id: Some(id),
                properties: Properties::NONE,
                payload: payload.into(),
            };
            publisher.send(&Packet::Publish(publish));
            // Always some on their way.
            if id > 30 {
                match publisher.next() {
                    Some(Packet::PubAck(ack) | Packet::PubRec(ack)) => {
                        acknowledged.push(format!("{round}/{}", ack.packet_id));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        // SIGKILL.
        drop(tbmq);
        here = receiving.join().unwrap();
        tbmq = start(folder.path());
    }
    let mut away = Receiver::default();
    for (client_id, receiver) in [("here", &mut here), ("away", &mut away)] {
        let (mut client, was_there) = Client::connect(&tbmq, client_id, false);
        assert!(was_there, "{client_id}");
        while !acknowledged.iter().all(|payload| receiver.got.contains_key(payload)) {
            let packet = client.next().expect("more comes");
            receiver.take(&mut client, packet);
        }
        let twice: Vec<_> = receiver.got.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{client_id} got {twice:?}");
    }
}
