use bytes::Bytes;
use tbmq_bus::{Bus as _, WriterConfig, memory::MemoryBus, spec_of};
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::Qos,
};
use tbmq_proto::topic::Catalogue;

use super::*;

const NOW_MS: i64 = 1_700_000_000_000;

/// The retained messages of a node, and what its writer has handed to the bus.
struct Node {
    retained: Retained,
    written: Vec<Record>,
}

fn read_message(record: &Record) -> Option<(Text, Message)> {
    let wire::Read { topic, message, .. } = wire::read(record).unwrap()?;
    Some((topic, message?))
}

impl Node {
    async fn new(service_id: &str, messages: usize, bytes: usize) -> Self {
        let writer = MemoryBus::new().writer(WriterConfig::new("test")).await.unwrap();
        let limits = Limits { messages: messages.try_into().unwrap(), bytes: bytes.try_into().unwrap() };
        let topic = writer.topic("tbmq.msg.retained");
        let retained = Retained::new(topic, service_id, limits, Metrics::default());
        Self { retained, written: Vec::new() }
    }

    fn publish(&mut self, message: Message) -> Result<(), Full> {
        let route = self.retained.publish(&Arc::new(message.clone()), NOW_MS)?;
        let written = self.retained.record(&message, route.purpose, NOW_MS);
        let outgoing = written.outgoing();
        self.written.push(Record {
            offset: self.written.len() as u64,
            timestamp_ms: NOW_MS,
            key: outgoing.key.map(Bytes::copy_from_slice),
            value: outgoing.value.map(Bytes::copy_from_slice),
            headers: outgoing.headers.to_vec(),
        });
        Ok(())
    }

    fn read(&self, record: &Record) {
        self.retained.apply(&TopicPartition::new("tbmq.msg.retained", 0), record);
    }

    /// Topics and payloads that a new subscription gets.
    fn shown(&self, filter: &str, now_ms: i64) -> Vec<String> {
        let (mut search, mut all) = (Search::new(filter), Vec::new());
        while !search.is_over() {
            self.retained.advance(&mut search, now_ms, |message| {
                all.push(format!("{}={}", &*message.topic, std::str::from_utf8(&message.payload).unwrap()));
                ControlFlow::Continue(())
            });
        }
        all
    }

    fn all(&self) -> Vec<String> {
        self.shown("#", NOW_MS)
    }
}

fn message(topic: &str, payload: &'static str) -> Message {
    Message {
        publisher: "p".into(),
        packet_id: 0,
        qos: Qos::AtLeastOnce,
        retain: true,
        topic: topic.into(),
        payload: payload.into(),
        properties: Properties::NONE,
        expires_at_ms: None,
    }
}

#[tokio::test]
async fn what_is_published_here_is_shown_until_its_record_was_read_and_then_the_order_of_the_bus_counts() {
    let mut node = Node::new("own", 10, 1 << 20).await;
    let mut other = Node::new("other", 10, 1 << 20).await;
    node.publish(message("a", "1")).unwrap();
    node.publish(message("a", "2")).unwrap();
    assert_eq!(node.all(), ["a=2"]);
    node.read(&node.written[0]);
    assert_eq!(node.all(), ["a=2"], "not back to an older one");
    // Another node's record is before the last one of ours on the bus, and one is behind it.
    other.publish(message("a", "3")).unwrap();
    other.publish(message("a", "4")).unwrap();
    node.read(&other.written[0]);
    assert_eq!(node.all(), ["a=2"]);
    node.read(&node.written[1]);
    assert_eq!(node.all(), ["a=2"]);
    node.read(&other.written[1]);
    assert_eq!(node.all(), ["a=4"]);
    // Both come to the same.
    for record in [&node.written[0], &other.written[0], &node.written[1], &other.written[1]] {
        other.read(record);
    }
    assert_eq!(other.all(), ["a=4"]);
}

#[tokio::test]
async fn a_record_that_was_refused_shows_again_what_the_bus_has() {
    let mut node = Node::new("own", 10, 1 << 20).await;
    node.publish(message("a", "1")).unwrap();
    node.read(&node.written[0]);
    node.publish(message("a", "2")).unwrap();
    node.publish(message("b", "1")).unwrap();
    node.publish(message("a", "")).unwrap();
    assert_eq!(node.all(), ["b=1"]);
    node.retained.refused(&"a".into());
    node.retained.refused(&"b".into());
    assert_eq!(node.all(), Vec::<String>::new(), "another record of a is on its way");
    node.retained.refused(&"a".into());
    assert_eq!(node.all(), ["a=1"]);
    let inner = node.retained.inner.read();
    assert_eq!((inner.topics.len(), inner.messages), (1, 1));
}

/// [MQTT-3.3.1-10] [MQTT5-3.3.1-6] [MQTT5-3.3.1-7]
#[tokio::test]
async fn an_empty_payload_and_an_empty_record_remove_without_a_trace() {
    let mut node = Node::new("own", 10, 1 << 20).await;
    for payload in ["x", ""] {
        node.publish(message("a", payload)).unwrap();
    }
    assert_eq!(node.written[1].value, None, "a tombstone, so that the bus forgets the topic too");
    for record in node.written.clone() {
        node.read(&record);
    }
    node.publish(message("b", "x")).unwrap();
    node.read(&node.written[2]);
    // TBMQ's way to say it.
    node.read(&Record { value: Some(Bytes::new()), ..node.written[2].clone() });
    let inner = node.retained.inner.read();
    assert_eq!((inner.topics.len(), inner.messages, inner.bytes, inner.expiries.len()), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_message_without_room_is_refused_and_at_qos_0_still_discards_the_one_before() {
    let mut node = Node::new("own", 2, 4000).await;
    node.publish(message("a", "x")).unwrap();
    node.publish(message("b", "x")).unwrap();
    assert_eq!(node.publish(message("c", "x")), Err(Full));
    node.publish(message("b", "replaced")).unwrap();
    assert_eq!(node.all(), ["a=x", "b=replaced"]);
    let large = |topic, qos| Message { payload: vec![b'x'; 4000].into(), qos, ..message(topic, "") };
    assert_eq!(node.publish(large("a", Qos::ExactlyOnce)), Err(Full));
    assert_eq!(node.all(), ["a=x", "b=replaced"]);
    // [MQTT-3.3.1-7]
    node.publish(large("a", Qos::AtMostOnce)).unwrap();
    assert_eq!(node.all(), ["b=replaced"]);
    assert_eq!(node.publish(large("c", Qos::AtMostOnce)), Err(Full));
    assert_eq!(node.retained.metrics.retained_limit_reached.get(), 4);
}

#[tokio::test]
async fn the_record_says_all_of_a_message_and_when_it_expires() {
    let mut node = Node::new("own", 10, 1 << 20).await;
    let properties = PropertiesBuilder::new()
        .number(PropertyId::PayloadFormatIndicator, 0)
        .text(PropertyId::ContentType, "text/plain")
        .text(PropertyId::ResponseTopic, "answers")
        .binary(PropertyId::CorrelationData, &[0, 255])
        .user("b", "1")
        .user("a", "")
        .user("b", "2")
        .build();
    let full = Message {
        qos: Qos::ExactlyOnce,
        properties,
        expires_at_ms: Some(NOW_MS + 2500),
        ..message("a/b", "x")
    };
    node.publish(full.clone()).unwrap();
    let record = &node.written[0];
    assert_eq!(record.key.as_deref(), Some(b"a/b".as_slice()));
    assert_eq!(record.header("serviceId"), Some("own"));
    assert_eq!(&*record.headers[1].name, "messageExpiryInterval");
    assert_eq!(&*record.headers[1].value, [0, 0, 0, 3]);
    assert_eq!(read_message(record), Some(("a/b".into(), full)));
    // More seconds than a signed number holds.
    let long = Message { expires_at_ms: Some(NOW_MS + i64::from(u32::MAX) * 1000), ..message("c", "x") };
    node.publish(long.clone()).unwrap();
    assert_eq!(read_message(&node.written[1]), Some(("c".into(), long)));
}

#[tokio::test]
async fn bad_records_are_counted_and_skipped() {
    let mut node = Node::new("own", 10, 1 << 20).await;
    node.publish(message("a", "x")).unwrap();
    let good = node.written[0].clone();
    let bad = [
        Record { key: None, ..good.clone() },
        Record { key: Some(Bytes::from_static(b"\xff")), ..good.clone() },
        Record { key: Some(Bytes::from_static(b"a/+")), ..good.clone() },
        Record { key: Some(Bytes::from_static(b"another")), ..good.clone() },
        Record { value: Some(Bytes::from_static(b"\xff")), ..good.clone() },
        Record { headers: vec![Header::text("messageExpiryInterval", "5")], ..good.clone() },
    ];
    let reader = Node::new("reader", 10, 1 << 20).await;
    for record in &bad {
        reader.read(record);
    }
    assert_eq!(reader.retained.metrics.retained_bad_records.get(), bad.len() as u64);
    assert_eq!(reader.all(), Vec::<String>::new());
    reader.read(&Record { key: Some(Bytes::from_static(b"$SYS/tbmq/version")), ..good.clone() });
    reader.read(&good);
    assert_eq!(reader.retained.metrics.retained_bad_records.get(), bad.len() as u64);
    assert_eq!(reader.all(), ["a=x"]);
}

/// [MQTT5-3.3.2-5]
#[tokio::test]
async fn what_has_expired_is_not_shown_and_goes_from_memory_and_bus() {
    let bus = MemoryBus::new();
    let topic = Catalogue::default().retained();
    bus.admin().create_topic(&spec_of(&topic, 1)).await.unwrap();
    let writer = bus.writer(WriterConfig::new("test")).await.unwrap();
    let mut node = Node::new("own", 10, 1 << 20).await;
    let mut other = Node::new("other", 10, 1 << 20).await;
    for (name, after_ms) in [("a", 1000), ("b", 2000)] {
        let expiring = Message { expires_at_ms: Some(NOW_MS + after_ms), ..message(name, "x") };
        node.publish(expiring).unwrap();
    }
    other.publish(Message { expires_at_ms: Some(NOW_MS + 1000), ..message("c", "x") }).unwrap();
    node.publish(message("d", "x")).unwrap();
    for record in node.written.iter().chain(&other.written) {
        node.read(record);
    }
    assert_eq!(node.shown("#", NOW_MS + 999), ["a=x", "b=x", "c=x", "d=x"]);
    assert_eq!(node.shown("#", NOW_MS + 1000), ["b=x", "d=x"]);
    node.retained.sweep(&*writer, NOW_MS + 1000).await;
    assert_eq!(node.retained.len(), 2);
    assert_eq!(node.retained.metrics.retained_expired.get(), 2);
    let partition = TopicPartition::new(topic.name, 0);
    let bounds = bus.admin().bounds(&[partition]).await.unwrap();
    assert_eq!(bounds[0].end, 1, "the tombstone of a; c is the other node's");
    // Read back, nothing is left of it.
    node.read(&Record { value: None, ..node.written[0].clone() });
    assert_eq!(node.retained.inner.read().topics.len(), 2);
}

#[tokio::test]
async fn an_expired_message_that_the_bus_does_not_forget_is_tried_again() {
    // The topic does not exist.
    let writer = MemoryBus::new().writer(WriterConfig::new("test")).await.unwrap();
    let mut node = Node::new("own", 10, 1 << 20).await;
    node.publish(Message { expires_at_ms: Some(NOW_MS), ..message("a", "x") }).unwrap();
    node.read(&node.written[0]);
    for _ in 0..2 {
        node.retained.sweep(&*writer, NOW_MS).await;
        assert_eq!(node.retained.inner.read().expiries.len(), 1);
        assert_eq!(node.all(), Vec::<String>::new());
    }
}
