//! Which spans a message, its attempts, and a question have.

use serde_json::json;
use tbmq_bus::{Bus as _, Header, ReaderConfig, ReaderEvent, Start, TopicPartition};
use tbmq_integration::wire::RequestType;
use tbmq_proto::{ids::IntegrationId, integration::ComponentLifecycleEventProto as Word};
use tbmq_service::trace::{Finished, Recorded, SpanKind, TraceContext, Traces, config::OtelConfig};

use crate::world::{World, new_id};

/// A `traceparent` of a sampled producer, one trace for each number.
fn producer(number: u32) -> String {
    format!("00-{number:032x}-b7ad6b7169203331-01")
}

async fn world() -> (World, Recorded) {
    let (traces, recorded) = Traces::record(&OtelConfig::default());
    let mut world = World::new().await;
    world.tracer = traces.tracer("executor", "ie1").unwrap();
    (world, recorded)
}

/// The spans of a trace once its message has left: those of attempts in order, then that of the message.
async fn trace(world: &World, recorded: &Recorded, number: u32) -> Vec<Finished> {
    let id = TraceContext::parse(&producer(number)).unwrap().trace_id();
    let own =
        || recorded.spans().into_iter().filter(|span| span.context().trace_id() == id).collect::<Vec<_>>();
    let ended = async {
        while own().last().is_none_or(|span| span.data.name != "process") {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), ended).await;
    waited.unwrap_or_else(|_| panic!("trace {number} has only {:?}", own()));
    let spans = own();
    let (process, attempts) = spans.split_last().unwrap();
    assert_eq!(process.data.span_kind, SpanKind::Consumer);
    assert_eq!(process.data.parent_span_id.to_string(), "b7ad6b7169203331");
    for attempt in attempts {
        assert_eq!((&*attempt.data.name, &attempt.data.span_kind), ("deliver", &SpanKind::Client));
        assert_eq!(attempt.data.parent_span_id, process.context().span_id());
    }
    // What the sink was given are the places of the attempts.
    let offset: u64 = process.attribute("messaging.kafka.offset").parse().unwrap();
    let state = world.state.subscribe();
    let handed: Vec<_> =
        state.borrow().traced.iter().filter(|(at, _)| *at == offset).map(|(_, text)| text.clone()).collect();
    assert_eq!(handed, attempts.iter().map(|attempt| attempt.context().traceparent()).collect::<Vec<_>>());
    spans
}

async fn integration(world: &World, delivery: &serde_json::Value) -> IntegrationId {
    let id = new_id();
    world.create_messages(id).await;
    world.apply_with(id, true, 1, delivery).await;
    id
}

fn told(span: &Finished) -> [String; 4] {
    ["tbmq.attempt.number", "tbmq.attempt.outcome", "tbmq.outcome", "error.type"]
        .map(|key| span.attribute(key))
}

#[tokio::test]
async fn each_attempt_is_a_span_below_that_of_its_message() {
    let (world, recorded) = world().await;
    let delivery = json!({ "ackStrategy": "RETRY_ALL", "retries": 2, "pauseBetweenRetriesSec": 0 });
    let id = integration(&world, &delivery).await;
    world.publish_traced(id, "a", &producer(1)).await;
    world.publish_traced(id, "retry 1", &producer(2)).await;
    world.publish_traced(id, "retry 9", &producer(3)).await;
    world.publish_traced(id, "reject it", &producer(4)).await;
    world.publish(id, ["not traced".to_owned()]).await;
    let executor = world.executor("ie1").await;

    let delivered = trace(&world, &recorded, 1).await;
    assert_eq!(told(&delivered[0]), ["1", "delivered", "", ""]);
    assert_eq!(told(&delivered[1]), ["", "", "delivered", ""]);
    assert!(!delivered.iter().any(Finished::is_error));
    assert_eq!(delivered[1].attribute("messaging.destination.name"), world.catalogue.messages(id, 1).name);
    assert_eq!(delivered[1].attribute("tbmq.integration_id"), id.to_string());
    assert_eq!(delivered[0].data.span_context.trace_state().header(), "vendor=x");
    assert_eq!(&*delivered[1].service, "tbmq-executor");

    let retried = trace(&world, &recorded, 2).await;
    assert_eq!(told(&retried[0]), ["1", "retried", "", "status"]);
    assert_eq!(told(&retried[1]), ["2", "delivered", "", ""]);
    assert_eq!(told(&retried[2]), ["", "", "delivered", ""]);
    assert_eq!(retried.iter().map(Finished::is_error).collect::<Vec<_>>(), [true, false, false]);

    let skipped = trace(&world, &recorded, 3).await;
    assert_eq!(skipped.len(), 4);
    assert_eq!(told(&skipped[2]), ["3", "given_up", "", "status"]);
    assert_eq!(told(&skipped[3]), ["", "", "skipped", "status"]);
    assert!(skipped[3].is_error());

    let rejected = trace(&world, &recorded, 4).await;
    assert_eq!(told(&rejected[0]), ["1", "given_up", "", "status"]);
    assert_eq!(told(&rejected[1]), ["", "", "rejected", "status"]);

    world.until("the one that is not traced", |state| state.delivered(id).len() == 3).await;
    executor.drain().await;
    assert_eq!(recorded.spans().len(), 2 + 3 + 4 + 2, "nothing begins here");
}

#[tokio::test]
async fn dead_letters_and_timeouts_are_told() {
    let (world, recorded) = world().await;
    let delivery = json!({ "deadLetter": true, "packProcessingTimeoutMs": 200, "ackStrategy": "SKIP_ALL" });
    let id = integration(&world, &delivery).await;
    world.publish_traced(id, "reject it", &producer(1)).await;
    let topic = world.catalogue.messages(id, 1).name;
    let headers = [Header::text("traceparent", producer(2))];
    world.put(&topic, b"unreadable", b"\xff", &headers).await;
    world.publish_traced(id, "hang", &producer(3)).await;
    let executor = world.executor("ie1").await;
    let hung = trace(&world, &recorded, 3).await;
    assert_eq!(told(&hung[0]), ["1", "given_up", "", "timeout"]);
    assert_eq!(told(&hung[1]), ["", "", "dead_lettered", "timeout"]);
    let rejected = trace(&world, &recorded, 1).await;
    assert_eq!(told(&rejected[1]), ["", "", "dead_lettered", "status"]);
    let unreadable = trace(&world, &recorded, 2).await;
    assert_eq!(unreadable.len(), 1);
    assert_eq!(told(&unreadable[0]), ["", "", "dead_lettered", "unreadable"]);

    // The letters are part of their traces.
    let mut reader = world.bus.reader(ReaderConfig::new("test", None)).await.unwrap();
    let letters = world.catalogue.dead_letters(id).name;
    reader.add(&TopicPartition::new(letters, 0), Start::Earliest);
    let mut letters = Vec::new();
    while letters.len() < 3 {
        if let ReaderEvent::Batch { records, .. } = reader.next().await {
            letters.extend(records.iter().map(|letter| letter.header("traceparent").unwrap().to_owned()));
        }
    }
    letters.sort_unstable();
    assert_eq!(letters, [1, 2, 3].map(producer));
    executor.drain().await;
}

#[tokio::test]
async fn a_question_is_a_span_below_that_of_who_asks() {
    let (world, recorded) = world().await;
    let executor = world.executor("ie1").await;
    // Questions that were asked before an executor was there are not answered.
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    world.until_word(id, Word::Started, revision).await;
    world.ask_traced(RequestType::CheckConnection, &json!({}), &producer(1)).await;
    world.ask_traced(RequestType::Validate, &json!({ "bad": 1 }), &producer(2)).await;
    world.ask(RequestType::Validate, &json!({}), 0).await;
    world.until("three answers", |state| state.replies.len() == 3).await;
    executor.drain().await;
    let mut spans = recorded.spans();
    spans.sort_by_key(|span| span.context().trace_id().to_string());
    assert_eq!(spans.iter().map(|span| &*span.data.name).collect::<Vec<_>>(), ["validate", "validate"]);
    for (number, span) in (1..).zip(&spans) {
        let parent = TraceContext::parse(&producer(number)).unwrap();
        assert_eq!(
            (span.context().trace_id(), span.data.parent_span_id),
            (parent.trace_id(), parent.span_id())
        );
    }
    assert_eq!(spans.iter().map(Finished::is_error).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn an_untraced_executor_looks_at_no_header() {
    let world = World::new().await;
    let id = integration(&world, &json!({})).await;
    world.publish_traced(id, "a", &producer(1)).await;
    let executor = world.executor("ie1").await;
    world.until("the message", |state| state.delivered(id).len() == 1).await;
    assert!(world.state.borrow().traced.is_empty());
    executor.drain().await;
}
