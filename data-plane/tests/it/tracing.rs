use tbmq_bus::{Error, Record, SubmitError};
use tbmq_mqtt::{
    codec::property::PropertiesBuilder,
    packet::{Packet, ProtocolVersion, Publish, Qos},
};
use tbmq_service::trace::{Finished, Recorded, TraceContext, Traces, config::OtelConfig};

use crate::{
    bus::{Mode, TestBus},
    client::{Client, publish, text},
    plane::{Plane, config, context, until},
};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A data plane whose spans are kept.
async fn traced(otel: &OtelConfig) -> (Plane, Recorded) {
    let (traces, recorded) = Traces::record(otel);
    let bus = TestBus::new();
    let mut context = context(&bus);
    context.tracer = traces.tracer("data-plane", "node-1").unwrap();
    (Plane::within(bus, config(), context).await, recorded)
}

fn with_parent(topic: &str, traceparent: &str) -> Publish {
    let properties = PropertiesBuilder::new()
        .user("other", "1")
        .user("traceparent", traceparent)
        .user("tracestate", "vendor=x")
        .build();
    Publish { properties, ..publish(topic, Qos::AtLeastOnce, 7, "hello") }
}

async fn named(recorded: &Recorded, name: &str, count: usize) -> Vec<Finished> {
    let found = || recorded.spans().into_iter().filter(|span| span.data.name == name).collect::<Vec<_>>();
    until(|| found().len() >= count).await;
    assert_eq!(found().len(), count);
    found()
}

fn context_of(record: &Record) -> TraceContext {
    TraceContext::read(|name| record.header(name)).expect("the record carries a context")
}

#[tokio::test]
async fn the_trace_of_an_mqtt_5_client_goes_on_in_each_record() {
    let (plane, recorded) = traced(&OtelConfig::default()).await;
    let one = plane.integration(1, &["t/#"]).await;
    let other = plane.integration(2, &["t/+"]).await;
    let mut client = Client::v5(plane.address, "device-1").await;
    client.send(Packet::Publish(with_parent("t/1", PARENT))).await;
    client.puback().await;
    let records = [plane.records(one, 1).await.remove(0), plane.records(other, 1).await.remove(0)];

    let published = named(&recorded, "publish", 1).await.remove(0);
    let sent = named(&recorded, "send", 2).await;
    let parent = TraceContext::parse(PARENT).unwrap();
    assert_eq!(published.context().trace_id(), parent.trace_id());
    assert_eq!(published.data.parent_span_id, parent.span_id());
    assert_eq!(&*published.service, "tbmq-data-plane");
    assert_eq!(published.attribute("messaging.system"), "mqtt");
    assert_eq!(published.attribute("messaging.destination.name"), "t/1");
    assert_eq!(published.attribute("messaging.client.id"), "device-1");
    for (record, message) in records {
        let context = context_of(&record);
        assert_eq!(context.trace_id(), parent.trace_id());
        assert_eq!(context.state(), Some("vendor=x"));
        let send = sent.iter().find(|span| span.context().span_id() == context.span_id()).expect("its span");
        assert_eq!(send.data.parent_span_id, published.context().span_id());
        assert!(send.attribute("messaging.destination.name").starts_with("tbmq.msg.ie."));
        assert!(send.data.end_time <= published.data.end_time);
        // What the client has said is forwarded as ever.
        let properties = message.publish_msg_proto.unwrap().user_properties;
        assert_eq!(properties.len(), 3);
        assert_eq!(properties[1].value, PARENT);
    }
}

#[tokio::test]
async fn without_a_parent_a_trace_begins_here() {
    let (plane, recorded) = traced(&OtelConfig::default()).await;
    let id = plane.integration(1, &["t"]).await;
    let mut old = Client::connected(plane.address, ProtocolVersion::V311, "old").await;
    old.publish("t", Qos::AtLeastOnce, 1, "a").await;
    old.puback().await;
    let mut new = Client::v5(plane.address, "new").await;
    new.send(Packet::Publish(with_parent("t", "no context"))).await;
    new.puback().await;
    let published = named(&recorded, "publish", 2).await;
    let records = plane.records(id, 2).await;
    for (published, (record, _)) in published.iter().zip(&records) {
        assert_eq!(published.data.parent_span_id.to_string(), "0000000000000000");
        assert_eq!(context_of(record).trace_id(), published.context().trace_id());
    }
    assert_ne!(published[0].context().trace_id(), published[1].context().trace_id());
}

#[tokio::test]
async fn what_is_not_sampled_leaves_no_span_and_no_header() {
    let (plane, recorded) = traced(&OtelConfig::default()).await;
    let id = plane.integration(1, &["t"]).await;
    let mut client = Client::v5(plane.address, "c").await;
    let not_sampled = format!("{}0", &PARENT[..PARENT.len() - 1]);
    client.send(Packet::Publish(with_parent("t", &not_sampled))).await;
    client.puback().await;
    assert!(plane.records(id, 1).await[0].0.headers.is_empty());
    assert!(recorded.spans().is_empty());
}

#[tokio::test]
async fn an_untraced_plane_adds_no_header_and_forwards_what_a_client_says() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["t"]).await;
    let mut subscriber = Client::v5(plane.address, "s").await;
    subscriber.subscribed("t", Qos::AtMostOnce).await;
    let mut client = Client::v5(plane.address, "c").await;
    let sent = with_parent("t", PARENT);
    client.send(Packet::Publish(sent.clone())).await;
    client.puback().await;
    assert!(plane.records(id, 1).await[0].0.headers.is_empty());
    let got = subscriber.message().await;
    assert_eq!((text(&got), got.properties), ("hello", sent.properties));
}

#[tokio::test]
async fn a_record_that_is_not_written_is_an_error() {
    let (plane, recorded) = traced(&OtelConfig::default()).await;
    plane.integration(1, &["t"]).await;
    let mut client = Client::v5(plane.address, "c").await;
    plane.bus.control.set(Mode::Fail(Error::Unavailable("away".to_owned())));
    client.publish("t", Qos::AtLeastOnce, 1, "a").await;
    client.puback().await;
    plane.bus.control.set(Mode::Full(SubmitError::TopicFull));
    client.publish("t", Qos::AtLeastOnce, 2, "b").await;
    client.puback().await;
    let sent = named(&recorded, "send", 2).await;
    assert!(sent.iter().all(Finished::is_error));
    let classes: Vec<_> = sent.iter().map(|span| span.attribute("error.type")).collect();
    assert_eq!(classes, ["unavailable", "topic_full"]);
    named(&recorded, "publish", 2).await;
}

#[tokio::test]
async fn a_publish_lasts_until_its_record_is_durable() {
    let (plane, recorded) = traced(&OtelConfig::default()).await;
    plane.integration(1, &["t"]).await;
    plane.bus.control.set(Mode::Keep);
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("t", Qos::AtLeastOnce, 1, "a").await;
    until(|| plane.bus.control.kept() == 1).await;
    assert!(recorded.spans().is_empty());
    plane.bus.control.give(0, Ok(()));
    client.puback().await;
    named(&recorded, "publish", 1).await;
}

#[tokio::test]
async fn a_long_topic_is_cut_in_the_attribute() {
    let (plane, recorded) = traced(&OtelConfig::default()).await;
    let mut client = Client::v5(plane.address, "c").await;
    let topic = "é".repeat(4_000);
    client.publish(&topic, Qos::AtLeastOnce, 1, "a").await;
    client.puback().await;
    let published = named(&recorded, "publish", 1).await.remove(0);
    assert_eq!(published.data.name, "publish");
    assert_eq!(published.attribute("messaging.destination.name"), "é".repeat(128));
}
