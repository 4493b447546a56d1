//! Several messages in one request.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Http, HttpFixture, Received, Reply, Server, configuration, messages, sink};
use crate::{
    conformance::{Behaviour, Fixture, answer, message, message_of, traced, traceparent},
    sink::{Outcome, SinkKind},
};

/// The fixture of messages alone, with batches of up to four.
struct BatchFixture(HttpFixture);

async fn fixture() -> BatchFixture {
    let server = Server::start(|_| Reply::of(200)).await;
    server.weigh(|received| payloads(received).len());
    BatchFixture(HttpFixture(server))
}

crate::conformance::suite!(super::fixture);

fn payloads(received: &Received) -> Vec<Bytes> {
    let items: Vec<String> = serde_json::from_slice(&received.body).unwrap();
    items.iter().map(|item| STANDARD.decode(item).unwrap().into()).collect()
}

fn in_fours(mut configuration: Map<String, Value>) -> Map<String, Value> {
    let batch = json!({"format": "JSON_ARRAY", "maxCount": 4, "maxDelayMs": 5});
    configuration.insert("batch".to_owned(), batch);
    configuration
}

#[async_trait]
impl Fixture for BatchFixture {
    fn kind(&self) -> Arc<dyn SinkKind> {
        self.0.kind()
    }

    fn client_configuration(&self) -> Map<String, Value> {
        in_fours(self.0.client_configuration())
    }

    fn impatient_configuration(&self) -> Map<String, Value> {
        in_fours(self.0.impatient_configuration())
    }

    fn configuration_at(&self, address: SocketAddr) -> Map<String, Value> {
        in_fours(self.0.configuration_at(address))
    }

    fn secretive_configuration(&self) -> Map<String, Value> {
        in_fours(self.0.secretive_configuration())
    }

    async fn behave(&mut self, behaviour: Behaviour) {
        self.0.behave(behaviour).await;
    }

    async fn held(&mut self, count: usize) {
        self.0.held(count).await;
    }

    fn received(&self) -> Vec<Bytes> {
        messages(&self.0.0).iter().flat_map(payloads).collect()
    }
}

/// The bodies, and their content type, in which some payloads arrive in batches of two.
async fn bodies(changes: Value, sent: &[&'static [u8]]) -> (Vec<String>, Option<String>) {
    let server = Server::start(|_| Reply::of(200)).await;
    let mut sink = sink(&server.url("/"), changes).await;
    for (number, payload) in (0..).zip(sent) {
        sink.submit(message_of(number, Bytes::from_static(payload)), number).unwrap();
    }
    for _ in sent {
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
    }
    let received = server.received();
    let mut bodies: Vec<_> =
        received.iter().map(|received| String::from_utf8_lossy(&received.body).into_owned()).collect();
    bodies.sort_unstable();
    let content_type = received[0].headers.get("content-type");
    (bodies, content_type.map(|value| value.to_str().unwrap().to_owned()))
}

#[tokio::test]
async fn bodies_are_arrays_or_lines_of_what_would_be_sent_alone() {
    let json: &[&[u8]] = &[b"{\"a\": 1}", b" 2 ", b"\"x\\ny\""];
    let text: &[&[u8]] = &[b"a \"b\"", b"c", b""];
    for (format, content, payloads, expected, content_type) in [
        ("JSON_ARRAY", "JSON", json, ["[\"x\\ny\"]", "[{\"a\":1},2]"], Some("application/json")),
        ("JSON_ARRAY", "TEXT", text, ["[\"\"]", "[\"a \\\"b\\\"\",\"c\"]"], Some("application/json")),
        ("JSON_ARRAY", "BINARY", text, ["[\"\"]", "[\"YSAiYiI=\",\"Yw==\"]"], Some("application/json")),
        ("LINES", "JSON", json, ["\"x\\ny\"\n", "{\"a\":1}\n2\n"], Some("application/x-ndjson")),
        ("LINES", "TEXT", text, ["\n", "a \"b\"\nc\n"], Some("text/plain;charset=UTF-8")),
        ("LINES", "BINARY", text, ["\n", "a \"b\"\nc\n"], None),
    ] {
        let changes = json!({
            "payloadContentType": content, "batch": {"format": format, "maxCount": 2, "maxDelayMs": 1}
        });
        let (bodies, of_type) = bodies(changes, payloads).await;
        assert_eq!(bodies, expected, "{format} {content}");
        assert_eq!(of_type.as_deref(), content_type, "{format} {content}");
    }
}

#[tokio::test]
async fn envelopes_stand_in_arrays_and_lines() {
    for (format, content_type) in [("JSON_ARRAY", "application/json"), ("LINES", "application/x-ndjson")] {
        let changes = json!({
            "sendOnlyMsgPayload": false, "batch": {"format": format, "maxCount": 2}
        });
        let (bodies, of_type) = bodies(changes, &[b"hi", b"you"]).await;
        assert_eq!((bodies.len(), of_type.as_deref()), (1, Some(content_type)));
        let envelopes: Vec<Value> = if format == "LINES" {
            bodies[0].lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        } else {
            serde_json::from_str(&bodies[0]).unwrap()
        };
        let payloads: Vec<_> =
            envelopes.iter().map(|envelope| envelope["payload"].as_str().unwrap()).collect();
        assert_eq!(payloads, ["aGk=", "eW91"]);
    }
}

#[tokio::test]
async fn a_body_has_no_more_bytes_than_allowed() {
    let batch = json!({"format": "JSON_ARRAY", "maxBytes": 7, "maxDelayMs": 1});
    let changes = json!({"payloadContentType": "JSON", "batch": batch});
    assert_eq!(bodies(changes, &[b"11", b"222", b"33", b"444"]).await.0, ["[11]", "[222]", "[33]", "[444]"]);
    let batch = json!({"format": "JSON_ARRAY", "maxBytes": 8, "maxDelayMs": 1});
    let changes = json!({"payloadContentType": "JSON", "batch": batch});
    assert_eq!(bodies(changes, &[b"11", b"222", b"33", b"444"]).await.0, ["[11,222]", "[33,444]"]);
}

#[tokio::test]
async fn a_poison_message_does_not_sink_its_neighbours() {
    let server = Server::start(|received| {
        let is_poisoned = received.body.windows(6).any(|word| word == b"poison");
        Reply::of(if is_poisoned { 422 } else { 200 })
    })
    .await;
    let changes = json!({"payloadContentType": "TEXT", "batch": {"format": "LINES", "maxCount": 16}});
    let mut sink = sink(&server.url("/"), changes).await;
    for number in 0..16 {
        let payload = if number == 11 { "poison".into() } else { number.to_string().into() };
        sink.submit(message_of(number, payload), number).unwrap();
    }
    for _ in 0..16 {
        let (ticket, outcome) = answer(&mut *sink).await;
        assert_eq!(matches!(outcome, Outcome::Rejected { class: "status", .. }), ticket == 11, "{outcome:?}");
        assert_eq!(outcome == Outcome::Delivered, ticket != 11, "{outcome:?}");
    }
    let taken =
        server.received().into_iter().filter(|received| !received.body.windows(6).any(|w| w == b"poison"));
    let mut lines: Vec<u64> = taken
        .flat_map(|received| {
            let text = String::from_utf8(received.body.to_vec()).unwrap();
            text.lines().map(|line| line.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect();
    lines.sort_unstable();
    assert!(lines.into_iter().eq((0..16).filter(|number| *number != 11)), "each neighbour arrives once");
    assert_eq!(server.received().len(), 9, "one batch, and twice four halves");
}

#[tokio::test]
async fn batches_are_off_unless_asked_for_and_their_limits_are_checked() {
    let server = Server::start(|_| Reply::of(200)).await;
    let mut alone = sink(&server.url("/"), json!({"batch": {"maxCount": 9}})).await;
    alone.submit(message(7), 7).unwrap();
    assert_eq!(answer(&mut *alone).await, (7, Outcome::Delivered));
    assert_eq!(server.received()[0].body, "7");
    let changes = json!({
        "requestMethod": "GET",
        "batch": {"format": "LINES", "maxCount": 0, "maxBytes": 100_000_000, "maxDelayMs": -1, "size": 1}
    });
    let violations =
        Http::new(crate::sinks::SinkSettings::default()).check(&configuration(&server.url("/"), changes));
    let paths: Vec<_> = violations.iter().map(|violation| violation.path.as_str()).collect();
    assert_eq!(
        paths,
        ["maxCount", "maxBytes", "maxDelayMs", "size", "format"]
            .map(|f| format!("clientConfiguration.batch.{f}"))
    );
}

#[tokio::test]
async fn keys_are_the_same_for_the_same_messages_only() {
    let server = Server::start(|_| Reply::of(503)).await;
    let changes =
        json!({"idempotencyKey": true, "batch": {"format": "LINES", "maxCount": 2, "maxDelayMs": 1}});
    let mut sink = sink(&server.url("/"), changes).await;
    let mut keys = Vec::new();
    for numbers in [[1, 2], [1, 2], [1, 3]] {
        for number in numbers {
            sink.submit(message(number), number).unwrap();
        }
        for _ in numbers {
            answer(&mut *sink).await;
        }
        keys.push(server.received().pop().unwrap().headers["idempotency-key"].to_str().unwrap().to_owned());
    }
    assert_eq!(keys[0], keys[1]);
    assert_ne!(keys[0], keys[2]);
    assert!(keys[0].starts_with("00000000-0000-0000-0000-000000000001-batch-"), "{}", keys[0]);
    sink.submit(message(9), 9).unwrap();
    answer(&mut *sink).await;
    let alone = server.received().pop().unwrap().headers["idempotency-key"].to_str().unwrap().to_owned();
    assert!(
        alone.ends_with("-tbmq.msg.ie.00000000-0000-0000-0000-000000000001-0-9-1742554969254"),
        "{alone}"
    );
}

#[tokio::test]
async fn a_batch_has_the_place_of_its_first_message_that_is_traced() {
    let server = Server::start(|_| Reply::of(200)).await;
    let batch = json!({ "batch": { "format": "JSON_ARRAY", "maxCount": 3, "maxDelayMs": 60_000 } });
    let mut sink = sink(&server.url("/hook"), batch).await;
    for (ticket, message) in (1..).zip([message(1), traced(2), traced(3)]) {
        sink.submit(message, ticket).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
    }
    let received = messages(&server);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].headers["traceparent"], traceparent(2));
}
