//! HTTP/2, agreed on by ALPN.

use std::sync::Arc;

use ::http::Version;
use serde_json::{Value, json};

use futures_util::future::join_all;

use super::{
    Authority, Reply, Server,
    connections::{endpoint, none_usable, send},
    probed, sink, stages,
};
use crate::{
    conformance::{answer, message},
    sink::Outcome,
};

async fn server(authority: &Authority, protocols: &[&str], status: u16) -> Server {
    let mut config = Arc::unwrap_or_clone(authority.server_config(false));
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Server::with_tls(move |_| Reply::of(status), Some(Arc::new(config))).await
}

fn trusting(authority: &Authority) -> Value {
    json!({"credentials": {"type": "cert.PEM", "caCert": authority.pem()}})
}

#[tokio::test]
async fn many_requests_share_one_connection() {
    let authority = Authority::new();
    let server = server(&authority, &["h2", "http/1.1"], 200).await;
    let mut sink = sink(&server.url("/hook?x=1"), trusting(&authority)).await;
    sink.submit(message(0), 0).unwrap();
    assert_eq!(answer(&mut *sink).await, (0, Outcome::Delivered));
    server.hold(true);
    for number in 1..=30 {
        sink.submit(message(number), number).unwrap();
    }
    tokio::select! {
        () = server.held(30) => {}
        (ticket, outcome) = answer(&mut *sink) => panic!("{ticket} was answered: {outcome:?}"),
    }
    server.hold(false);
    for _ in 0..30 {
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
    }
    assert_eq!(server.connections(), 1);
    let received = server.received();
    assert_eq!(received.len(), 31);
    assert!(received.iter().all(|received| received.version == Version::HTTP_2));
    assert_eq!(received[0].uri.path_and_query().unwrap(), "/hook?x=1");
    assert_eq!(received[0].body, "0");
}

#[tokio::test]
async fn a_peer_without_http_2_gets_http_1() {
    let authority = Authority::new();
    for protocols in [&["http/1.1"][..], &[]] {
        let server = server(&authority, protocols, 200).await;
        let mut sink = sink(&server.url("/"), trusting(&authority)).await;
        sink.submit(message(0), 0).unwrap();
        assert_eq!(answer(&mut *sink).await, (0, Outcome::Delivered));
        assert_eq!(server.received()[0].version, Version::HTTP_11);
    }
}

#[tokio::test]
async fn statuses_mean_the_same() {
    let authority = Authority::new();
    for (status, is_final) in [(422, true), (404, false), (503, false)] {
        let server = server(&authority, &["h2"], status).await;
        let mut sink = sink(&server.url("/"), trusting(&authority)).await;
        sink.submit(message(0), 0).unwrap();
        let (_, outcome) = answer(&mut *sink).await;
        assert_eq!(matches!(outcome, Outcome::Rejected { .. }), is_final, "{outcome:?}");
        assert_ne!(outcome, Outcome::Delivered);
    }
}

#[tokio::test]
async fn a_check_tells_what_was_agreed_on() {
    let authority = Authority::new();
    let server = server(&authority, &["h2", "http/1.1"], 200).await;
    let (names, error) = probed(&server.url("/"), trusting(&authority)).await;
    let all = ["resolve", "connect", "tls", "authenticate", "response"].map(|name| (name, true));
    assert_eq!((names, error), (stages(&all), None));
    assert_eq!(server.received()[0].version, Version::HTTP_2);
}

#[tokio::test]
async fn one_connection_takes_the_place_of_one_that_was_closed() {
    let authority = Authority::new();
    let server = server(&authority, &["h2"], 200).await;
    let (endpoint, origin) = endpoint(&server.url("/"), trusting(&authority));
    assert_eq!(send(&endpoint).await, Outcome::Delivered);
    for connections in 1..3 {
        let outcomes = join_all((0..20).map(|_| send(&endpoint))).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered), "{outcomes:?}");
        assert_eq!((origin.usable(), server.connections()), (1, connections));
        server.stop().await;
        none_usable(&origin).await;
        server.listen().await;
    }
    assert!(server.received().iter().all(|request| request.version == Version::HTTP_2));
    assert!(server.received().iter().all(|request| !request.headers.contains_key("host")));
}
