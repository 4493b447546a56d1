//! `tbmqctl try publish` and `try subscribe` against a broker that is played by the test.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    thread::JoinHandle,
};

use bytes::{Bytes, BytesMut};
use tbmq_mqtt::{
    codec::{Limits, decode, encode, property::Properties},
    packet::{Ack, ConnAck, Packet, ProtocolVersion, Publish, Qos, ReasonCode, SubAck},
};

use crate::{stderr, tbmqctl};

struct Peer {
    stream: TcpStream,
    buffer: BytesMut,
    version: Option<ProtocolVersion>,
}

impl Peer {
    fn receive(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) =
                decode(&mut self.buffer, self.version, &Limits::default()).expect("tbmqctl speaks MQTT 5")
            {
                return Some(packet);
            }
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes).expect("a connection");
            if read == 0 {
                return None;
            }
            self.buffer.extend_from_slice(&bytes[..read]);
        }
    }

    fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        encode(packet, ProtocolVersion::V5, &mut bytes);
        self.stream.write_all(&bytes).expect("a connection");
    }

    /// Answers CONNECT.
    fn accept(listener: &TcpListener, reason: ReasonCode) -> Self {
        let (stream, _) = listener.accept().expect("a connection");
        let mut peer = Self { stream, buffer: BytesMut::new(), version: None };
        assert!(matches!(peer.receive(), Some(Packet::Connect(connect)) if connect.clean_start));
        peer.version = Some(ProtocolVersion::V5);
        peer.send(&Packet::ConnAck(ConnAck {
            session_present: false,
            reason,
            properties: Properties::default(),
        }));
        peer
    }
}

/// Plays a broker for one connection.
fn broker<T: Send + 'static>(
    play: impl FnOnce(TcpListener) -> T + Send + 'static,
) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("mqtt://{}", listener.local_addr().expect("a bound address"));
    (address, std::thread::spawn(|| play(listener)))
}

#[test]
fn messages_are_published_one_after_the_other_and_each_is_acknowledged() {
    for (qos, expected) in
        [("0", vec![None; 3]), ("1", vec![Some(1), Some(2), Some(3)]), ("2", vec![Some(1), Some(2), Some(3)])]
    {
        let (address, played) = broker(|listener| {
            let mut peer = Peer::accept(&listener, ReasonCode::Success);
            let mut published = Vec::new();
            loop {
                match peer.receive() {
                    Some(Packet::Publish(publish)) => {
                        assert_eq!((&*publish.topic, &publish.payload[..]), ("a/b", &b"hello"[..]));
                        published.push(publish.packet_id);
                        let Some(id) = publish.packet_id else { continue };
                        let ack = Ack::new(id, ReasonCode::Success);
                        peer.send(&if publish.qos == Qos::AtLeastOnce {
                            Packet::PubAck(ack)
                        } else {
                            Packet::PubRec(ack)
                        });
                    }
                    Some(Packet::PubRel(ack)) => {
                        peer.send(&Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success)));
                    }
                    Some(Packet::Disconnect(_)) => return published,
                    other => panic!("{other:?}"),
                }
            }
        });
        let arguments = [
            "try",
            "publish",
            "--topic",
            "a/b",
            "--message",
            "hello",
            "--count",
            "3",
            "--qos",
            qos,
            "--broker",
            &address,
        ];
        let output = tbmqctl(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stderr(&output), "published 3 messages to a/b\n");
        assert_eq!(played.join().unwrap(), expected);
    }
}

#[test]
fn a_refused_message_is_exit_code_1_and_names_the_reason() {
    let (address, played) = broker(|listener| {
        let mut peer = Peer::accept(&listener, ReasonCode::Success);
        if let Some(Packet::Publish(Publish { packet_id: Some(id), .. })) = peer.receive() {
            peer.send(&Packet::PubAck(Ack::new(id, ReasonCode::QuotaExceeded)));
        }
    });
    let output = tbmqctl(&["try", "publish", "-t", "a", "-m", "x", "--broker", &address]).output().unwrap();
    played.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("refused the message: QuotaExceeded (0x97)"), "{}", stderr(&output));
}

#[test]
fn a_refused_connection_is_exit_code_1_and_a_broken_one_3() {
    let (address, played) = broker(|listener| drop(Peer::accept(&listener, ReasonCode::NotAuthorized)));
    let arguments =
        ["try", "subscribe", "-f", "#", "--broker", &address, "--client-id", "c", "--username", "u"];
    let output = tbmqctl(&arguments).output().unwrap();
    played.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("hint: `tbmqctl unauthorized get c` tells why"), "{}", stderr(&output));
    let (address, played) = broker(|listener| drop(Peer::accept(&listener, ReasonCode::Success)));
    let output = tbmqctl(&["try", "subscribe", "-f", "#", "--broker", &address]).output().unwrap();
    played.join().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let output = tbmqctl(&["try", "publish", "-t", "a/#", "-m", "x", "--broker", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn a_password_comes_from_a_file() {
    let (address, played) = broker(|listener| {
        let (stream, _) = listener.accept().expect("a connection");
        let mut peer = Peer { stream, buffer: BytesMut::new(), version: None };
        match peer.receive() {
            Some(Packet::Connect(connect)) => (connect.username, connect.password),
            other => panic!("{other:?} instead of a CONNECT"),
        }
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3same\n").unwrap();
    let mut arguments = vec!["try", "publish", "-t", "a", "-m", "x", "--broker", &address, "--username", "u"];
    arguments.extend(["--password-file", file.path().to_str().unwrap()]);
    tbmqctl(&arguments).output().unwrap();
    assert_eq!(played.join().unwrap(), (Some("u".into()), Some(Bytes::from_static(b"s3same"))));
}

#[test]
fn messages_of_every_quality_are_printed_once_and_acknowledged() {
    let (address, played) = broker(|listener| {
        let mut peer = Peer::accept(&listener, ReasonCode::Success);
        let Some(Packet::Subscribe(subscribe)) = peer.receive() else { panic!("no SUBSCRIBE") };
        assert_eq!(&*subscribe.subscriptions[0].filter, "a/#");
        peer.send(&Packet::SubAck(SubAck {
            packet_id: subscribe.packet_id,
            reasons: vec![ReasonCode::GrantedQos2],
            properties: Properties::default(),
        }));
        let publish = |qos, packet_id, dup| {
            Packet::Publish(Publish {
                dup,
                qos,
                retain: false,
                topic: "a/1".into(),
                packet_id,
                properties: Properties::default(),
                payload: Bytes::from(format!("{}", Qos::bits(qos))),
            })
        };
        peer.send(&publish(Qos::AtMostOnce, None, false));
        peer.send(&publish(Qos::ExactlyOnce, Some(7), false));
        assert_eq!(peer.receive(), Some(Packet::PubRec(Ack::new(7, ReasonCode::Success))));
        // A resend before the release is the same message.
        peer.send(&publish(Qos::ExactlyOnce, Some(7), true));
        assert_eq!(peer.receive(), Some(Packet::PubRec(Ack::new(7, ReasonCode::Success))));
        peer.send(&Packet::PubRel(Ack::new(7, ReasonCode::Success)));
        assert_eq!(peer.receive(), Some(Packet::PubComp(Ack::new(7, ReasonCode::Success))));
        peer.send(&publish(Qos::AtLeastOnce, Some(8), false));
        assert_eq!(peer.receive(), Some(Packet::PubAck(Ack::new(8, ReasonCode::Success))));
        assert!(matches!(peer.receive(), Some(Packet::Disconnect(_))));
    });
    let mut child =
        tbmqctl(&["try", "subscribe", "-f", "a/#", "-q", "2", "--count", "3", "--broker", &address])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "subscribed to a/#\n");
    let output = child.wait_with_output().unwrap();
    played.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "a/1 0\na/1 2\na/1 1\n");
}
