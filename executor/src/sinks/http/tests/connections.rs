//! Connections, between requests and among integrations.

use std::{sync::Arc, time::Duration};

use ::http::Method;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    super::{
        client::{Endpoint, Load, Origins},
        config,
        connections::{KEPT, LOOK_EVERY, Origin},
    },
    Http, Reply, Server, class_and_text, configuration, outcome, raw_peer, sink, sink_of,
};
use crate::{conformance::message, sink::Outcome, sinks::SinkSettings};

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::start(|_| Reply { body: Bytes::from_static(b"ok"), ..Reply::of(200) }).await;
    let mut sink = sink(&server.url("/"), json!({})).await;
    for number in 0..200 {
        assert_eq!(outcome(&mut *sink, message(number)).await, Outcome::Delivered);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn integrations_that_send_to_the_same_place_share_connections() {
    let server = Server::start(|_| Reply::of(200)).await;
    let kind = Http::new(SinkSettings::default());
    let mut one = sink_of(&kind, &server.url("/one"), json!({}), 50).await;
    let mut other = sink_of(&kind, &server.url("/other"), json!({}), 50).await;
    for number in 0..4 {
        assert_eq!(outcome(&mut *one, message(number)).await, Outcome::Delivered);
        assert_eq!(outcome(&mut *other, message(number)).await, Outcome::Delivered);
    }
    assert_eq!(server.connections(), 1);
}

/// An endpoint, and what it sends over.
pub(super) fn endpoint(url: &str, changes: Value) -> (Endpoint, Arc<Origin>) {
    let settings = SinkSettings::default();
    let checked = config::read(&configuration(url, changes), &settings).config.expect("it is right");
    let origin = Origins::new(&settings).origin(&checked).unwrap();
    (Endpoint::new(Arc::clone(&origin), Method::POST, &checked, Duration::from_secs(10)), origin)
}

pub(super) async fn send(endpoint: &Endpoint) -> Outcome {
    endpoint.send(endpoint.request(Load::default()), Instant::now() + Duration::from_secs(10)).await
}

/// Waits until there is no connection that could take a request.
pub(super) async fn none_usable(origin: &Origin) {
    let none = async {
        while origin.usable() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), none).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_the_endpoint_has_closed_costs_no_attempt() {
    let server = Server::start(|_| Reply::of(200)).await;
    let (endpoint, origin) = endpoint(&server.url("/"), json!({}));
    assert_eq!(send(&endpoint).await, Outcome::Delivered);
    assert_eq!(origin.usable(), 1);
    server.stop().await;
    none_usable(&origin).await;
    server.listen().await;
    assert_eq!(send(&endpoint).await, Outcome::Delivered);
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_connection_without_requests_is_given_up() {
    let server = Server::start(|_| Reply::of(200)).await;
    let (endpoint, origin) = endpoint(&server.url("/"), json!({}));
    assert_eq!(send(&endpoint).await, Outcome::Delivered);
    given_up_in_time(&origin).await;
    // And there is somebody to look at the next.
    assert_eq!(send(&endpoint).await, Outcome::Delivered);
    given_up_in_time(&origin).await;
}

async fn given_up_in_time(origin: &Origin) {
    tokio::time::pause();
    let begin = Instant::now();
    while origin.usable() > 0 {
        tokio::time::advance(LOOK_EVERY / 5).await;
        assert!(begin.elapsed() < 2 * KEPT, "it is still there");
    }
    let kept = begin.elapsed();
    assert!((KEPT..KEPT + 2 * LOOK_EVERY).contains(&kept), "{kept:?}");
    tokio::time::resume();
}

#[tokio::test]
async fn a_connection_whose_answer_is_not_at_its_end_is_not_used_again() {
    let url = raw_peer(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\nx").await;
    let (endpoint, origin) = endpoint(&url, json!({"maxInMemoryBufferSizeInKb": 1}));
    for _ in 0..2 {
        assert_eq!(class_and_text(send(&endpoint).await).0, "response");
        assert_eq!(origin.usable(), 0);
    }
}
