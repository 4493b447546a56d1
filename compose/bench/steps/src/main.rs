//! Single steps of a message's road, without I/O: `tbmq-steps <step> <times>` does one so many times, `tbmq-steps` lists
//! them, one a line.
//!
//! `cargo xtask instructions` runs each under callgrind with two numbers of times; the difference is what one takes, to
//! the instruction, on any machine. A message is 256 bytes at QoS 1 on a topic of four levels, as in `bench e2e`.
#![allow(clippy::print_stdout, reason = "its steps are told on stdout")]

use std::{hint::black_box, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tbmq_integration::{
    Millis,
    entity::AckStrategy,
    pack::{Answer, Item, Ordering, Partition, Settings},
};
use tbmq_mqtt::{
    codec::{
        self, EncodedPublish,
        property::{Properties, PropertiesBuilder},
    },
    packet::{Ack, Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
    session::{Delivery, Effect, Limits, Message, Now, Proven, Session},
    tree::Tree,
};
use tbmq_proto::{integration::PublishIntegrationMsgProto, queue::PublishMsgProto};

/// Does a step so many times.
type Step = fn(u64) -> Result<()>;

/// The steps by name.
const STEPS: [(&str, Step); 11] = [
    ("decode-publish", |times| decode(times, &publish(Properties::NONE))),
    ("decode-publish-properties", |times| decode(times, &publish(properties()))),
    ("encode-puback", encode_puback),
    ("encode-delivery", encode_delivery),
    ("match-1-filter", |times| matching(times, 1)),
    ("match-100000-filters", |times| matching(times, 100_000)),
    ("session-publish", session_publish),
    ("session-deliver", session_deliver),
    ("record-decode", record_decode),
    ("pack", |times| pack(times, Ordering::None)),
    ("pack-by-key", |times| pack(times, Ordering::Key)),
];

const TOPIC: &str = "bench/http/0/4711";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let names = |between: &str| STEPS.map(|(name, _)| name).join(between);
    let (name, times) = match &arguments[..] {
        [] => {
            println!("{}", names("\n"));
            return Ok(());
        }
        [name, times] => (name, times),
        _ => bail!("usage: tbmq-steps [STEP TIMES]; steps: {}", names(" ")),
    };
    let (_, step) = STEPS
        .iter()
        .find(|(known, _)| known == name)
        .with_context(|| format!("no step {name:?}: {}", names(" ")))?;
    step(times.parse().with_context(|| format!("{times:?} is not a number of times"))?)
}

fn publish(properties: Properties) -> Publish {
    Publish {
        dup: false,
        qos: Qos::AtLeastOnce,
        retain: false,
        topic: TOPIC.into(),
        packet_id: Some(7),
        properties,
        payload: Bytes::from(vec![b'x'; 256]),
    }
}

fn properties() -> Properties {
    PropertiesBuilder::new().user("unit", "kWh").user("site", "north-7").build()
}

/// Ten packets in a buffer, as they come from a busy socket.
fn decode(times: u64, publish: &Publish) -> Result<()> {
    let mut ten = BytesMut::new();
    for _ in 0..10 {
        codec::encode(&Packet::Publish(publish.clone()), ProtocolVersion::V5, &mut ten);
    }
    let mut buffer = BytesMut::with_capacity(16 << 10);
    for _ in 0..times / 10 {
        buffer.extend_from_slice(&ten);
        while let Some(packet) =
            codec::decode(&mut buffer, Some(ProtocolVersion::V5), &codec::Limits::default())?
        {
            black_box(packet);
        }
    }
    Ok(())
}

fn encode_puback(times: u64) -> Result<()> {
    let mut into = BytesMut::with_capacity(64);
    for number in 0..times {
        into.clear();
        let ack = Ack::new((number % 60_000) as u16 + 1, ReasonCode::Success);
        codec::encode(black_box(&Packet::PubAck(ack)), ProtocolVersion::V5, &mut into);
    }
    ensure!(!into.is_empty() || times == 0);
    Ok(())
}

/// One encoding for all receivers, and a receiver's own bytes of it.
fn encode_delivery(times: u64) -> Result<()> {
    let publish = publish(Properties::NONE);
    for _ in 0..times {
        black_box(EncodedPublish::new(black_box(&publish), ProtocolVersion::V5).len());
    }
    Ok(())
}

fn matching(times: u64, filters: u64) -> Result<()> {
    let mut tree: Tree<u64, u64> = Tree::new();
    tree.insert("bench/http/0/#", 0, 0);
    for number in 1..filters {
        tree.insert(&format!("area/{}/device/{number}/sensor/+", number % 1_000), number, number);
    }
    let mut found = 0;
    for _ in 0..times {
        tree.matching(black_box(TOPIC), |_, _| found += 1);
    }
    ensure!(found == times, "{found} of {times} were found");
    Ok(())
}

const NOW: Now = Now { monotonic_ms: 1_000, epoch_ms: 1_742_554_969_254 };

fn session() -> Session {
    let mut session = Session::new(Arc::new(Limits::default()), NOW);
    let mut out = Vec::new();
    let connect = Connect::new(ProtocolVersion::V5, "device-1");
    session.connect(NOW, &connect, String::new, &mut out);
    session.authenticated(NOW, Proven::default(), &mut out);
    session.open(NOW, &mut out);
    session
}

/// From the packet to its PUBACK, with one record.
fn session_publish(times: u64) -> Result<()> {
    let (mut session, mut out) = (session(), Vec::new());
    let publish = publish(Properties::NONE);
    for _ in 0..times {
        session.packet(NOW, Packet::Publish(publish.clone()), &mut out);
        let Some(Effect::Publish { number: Some(number), .. }) = out.pop() else {
            bail!("the publish is not routed")
        };
        session.routed(NOW, number, 1, true, &mut out);
        session.written(NOW, number, Ok(()), &mut out);
        ensure!(matches!(out[..], [Effect::Send(Packet::PubAck(_))]), "{out:?} instead of a PUBACK");
        out.clear();
    }
    Ok(())
}

/// From the delivery to its acknowledgement by the client.
fn session_deliver(times: u64) -> Result<()> {
    let (mut session, mut out) = (session(), Vec::new());
    let message = Arc::new(Message {
        publisher: "device-2".into(),
        packet_id: 7,
        qos: Qos::AtLeastOnce,
        retain: false,
        topic: TOPIC.into(),
        payload: Bytes::from(vec![b'x'; 256]),
        properties: Properties::NONE,
        expires_at_ms: None,
    });
    for _ in 0..times {
        let delivery = Delivery {
            message: message.clone(),
            qos: Qos::AtLeastOnce,
            retain: false,
            identifiers: Vec::new(),
            group: None,
        };
        session.deliver(NOW, delivery, &mut out);
        let Some(Effect::Send(Packet::Publish(sent))) = out.pop() else { bail!("nothing was sent") };
        let packet_id = sent.packet_id.context("QoS 1 has a packet id")?;
        session.packet(NOW, Packet::PubAck(Ack::new(packet_id, ReasonCode::Success)), &mut out);
        out.clear();
    }
    Ok(())
}

/// What the executor reads.
fn record_decode(times: u64) -> Result<()> {
    let record = Bytes::from(
        PublishIntegrationMsgProto {
            publish_msg_proto: Some(PublishMsgProto {
                client_id: "device-1".into(),
                packet_id: 7,
                payload: vec![b'x'; 256].into(),
                qos: 1,
                topic_name: TOPIC.into(),
                ..PublishMsgProto::default()
            }),
            tbmq_node: "data".into(),
            timestamp: NOW.epoch_ms,
            expires_at_ms: 0,
        }
        .encode_to_vec(),
    );
    for _ in 0..times {
        black_box(PublishIntegrationMsgProto::decode(record.clone())?);
    }
    Ok(())
}

/// A message through the pack machine: taken, submitted, delivered, committed; a hundred in each poll, of as many keys
/// that no other poll has: where a table puts them differs from run to run, and so evens out.
fn pack(times: u64, ordering: Ordering) -> Result<()> {
    let settings = Settings { strategy: AckStrategy::RetryAll, retries: 0, ordering, ..Settings::default() };
    let mut partition = Partition::new(settings, 0);
    let mut tickets = Vec::new();
    let now = Millis(1_000);
    for poll in 0..times / 100 {
        let items = (poll * 100..poll * 100 + 100).map(|offset| Item {
            offset,
            key: offset,
            weight: 300,
            timestamp_ms: NOW.epoch_ms,
            expires_at_ms: 0,
            is_watched: false,
            message: (),
            unfit: None,
        });
        partition.take(now, items);
        while let Some((ticket, ())) = partition.next(NOW.epoch_ms) {
            partition.submitted(now);
            tickets.push(ticket);
        }
        for ticket in tickets.drain(..) {
            partition.answered(now, ticket, Answer::Delivered);
        }
        black_box(partition.commit_position());
    }
    ensure!(partition.settled().delivered == times / 100 * 100);
    Ok(())
}
