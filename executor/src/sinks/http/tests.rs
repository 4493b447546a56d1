//! The HTTP sink against a server of its own.

use std::{future::poll_fn, net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use ::http::Method;
use async_trait::async_trait;
use bytes::Bytes;
use pkcs8::pkcs5::pbes2;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::{Map, Value, json};
use tbmq_integration::wire::Target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, timeout},
};

use super::{
    Http,
    client::{Endpoint, Load, Origins},
    config,
    server::{Received, Reply, Server},
};
use crate::{
    conformance::{Behaviour, Fixture, SECRET, answer, context, message, traced, traceparent},
    sink::{Message, Outcome, Sink, SinkKind},
    sinks::{SinkSettings, credentials, egress::Egress},
};

mod batches;
mod connections;
mod h2;

struct HttpFixture(Server);

async fn fixture() -> HttpFixture {
    HttpFixture(Server::start(|_| Reply::of(200)).await)
}

crate::conformance::suite!(super::fixture);

#[async_trait]
impl Fixture for HttpFixture {
    fn kind(&self) -> Arc<dyn SinkKind> {
        Arc::new(Http::new(SinkSettings::default()))
    }

    fn client_configuration(&self) -> Map<String, Value> {
        configuration(&self.0.url("/hook"), json!({}))
    }

    fn impatient_configuration(&self) -> Map<String, Value> {
        configuration(&self.0.url("/hook"), json!({"readTimeoutMs": 200}))
    }

    fn configuration_at(&self, address: SocketAddr) -> Map<String, Value> {
        configuration(&format!("http://{address}/hook"), json!({"readTimeoutMs": 200}))
    }

    fn secretive_configuration(&self) -> Map<String, Value> {
        let url = format!("{}?token={SECRET}", self.0.url("/hook"));
        let credentials = json!({"type": "basic", "username": "user", "password": SECRET});
        configuration(&url, json!({"credentials": credentials, "headers": {"X-Api-Key": SECRET}}))
    }

    async fn behave(&mut self, behaviour: Behaviour) {
        if behaviour == Behaviour::Away {
            self.0.stop().await;
        } else {
            self.0.hold(behaviour == Behaviour::Hold);
            self.0.listen().await;
        }
    }

    async fn held(&mut self, count: usize) {
        self.0.held(count).await;
    }

    fn received(&self) -> Vec<Bytes> {
        messages(&self.0).into_iter().map(|received| received.body).collect()
    }
}

/// What was received except checks.
fn messages(server: &Server) -> Vec<Received> {
    server.received().into_iter().filter(|received| received.method != "HEAD").collect()
}

/// A configuration that sends payloads as they are, with changes.
fn configuration(url: &str, changes: Value) -> Map<String, Value> {
    let mut configuration = json!({
        "sendOnlyMsgPayload": true, "restEndpointUrl": url, "maxInMemoryBufferSizeInKb": 256,
    });
    for (field, value) in changes.as_object().unwrap() {
        configuration[field] = value.clone();
    }
    configuration.as_object().unwrap().clone()
}

async fn sink_of(kind: &Http, url: &str, changes: Value, window: usize) -> Box<dyn Sink> {
    kind.connect(&configuration(url, changes), context(window)).await.unwrap()
}

async fn sink(url: &str, changes: Value) -> Box<dyn Sink> {
    sink_of(&Http::new(SinkSettings::default()), url, changes, 50).await
}

/// The outcome of one message.
async fn outcome(sink: &mut dyn Sink, message: Message) -> Outcome {
    sink.submit(message, 1).unwrap();
    answer(sink).await.1
}

fn retry(class: &'static str, text: impl Into<String>) -> Outcome {
    Outcome::Retry { after: None, class, text: text.into() }
}

fn class_and_text(outcome: Outcome) -> (&'static str, String) {
    match outcome {
        Outcome::Delivered => ("delivered", String::new()),
        Outcome::Retry { class, text, .. } | Outcome::Rejected { class, text } => (class, text),
    }
}

/// A peer that answers every connection with the same bytes and then says nothing more.
async fn raw_peer(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut streams = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(answer).await.unwrap();
            streams.push(stream);
        }
    });
    url
}

#[tokio::test]
async fn a_request_looks_like_tbmqs() {
    let server = Server::start(|_| Reply::of(200)).await;
    let changes = json!({
        "sendOnlyMsgPayload": false, "headers": {"Content-Type": "application/json", "X-Test": "yes"}
    });
    let mut sink = sink(&server.url("/hook?d={\"a\": 12}&e=%20"), changes).await;
    assert_eq!(outcome(&mut *sink, message(7)).await, Outcome::Delivered);
    let received = &server.received()[0];
    assert_eq!(received.method, "POST");
    assert_eq!(received.uri, "/hook?d=%7B%22a%22:%2012%7D&e=%20");
    assert_eq!(received.headers["host"], server.address.to_string());
    assert_eq!(received.headers["accept"], "*/*");
    assert_eq!(received.headers["content-type"], "application/json");
    assert_eq!(received.headers["x-test"], "yes");
    assert_eq!(received.headers["content-length"], received.body.len().to_string());
    assert_eq!(
        received.body,
        r#"{"payload":"Nw==","topicName":"topic/1","clientId":"client","eventType":"PUBLISH_MSG","qos":1,"retain":false,"tbmqIeNode":"ie","tbmqNode":"node","ts":1742554969254,"props":{},"metadata":{"integrationName":"under test"}}"#
    );
}

#[tokio::test]
async fn a_traced_message_takes_its_place_along_unless_the_configured_headers_set_one() {
    let server = Server::start(|_| Reply::of(200)).await;
    let sent = async |changes: Value, message: Message| {
        let mut sink = sink(&server.url("/x"), changes).await;
        assert_eq!(outcome(&mut *sink, message).await, Outcome::Delivered);
        let headers = server.received().pop().unwrap().headers;
        ["traceparent", "tracestate"].map(|name| {
            let all: Vec<_> =
                headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect();
            all.join("|")
        })
    };
    assert_eq!(sent(json!({}), traced(3)).await, [traceparent(3), "vendor=x".to_owned()]);
    assert_eq!(sent(json!({}), message(3)).await, ["", ""]);
    let own = json!({ "headers": { "Traceparent": "ours" } });
    assert_eq!(sent(own, traced(3)).await, ["ours", ""]);
}

#[tokio::test]
async fn only_post_and_put_carry_a_body() {
    let server = Server::start(|_| Reply::of(200)).await;
    for (method, body) in [("POST", "5"), ("PUT", "5"), ("GET", ""), ("DELETE", "")] {
        let mut sink = sink(&server.url("/x"), json!({"requestMethod": method})).await;
        assert_eq!(outcome(&mut *sink, message(5)).await, Outcome::Delivered);
        let received = server.received().pop().unwrap();
        assert_eq!((received.method.as_str(), &received.body[..]), (method, body.as_bytes()));
    }
}

#[tokio::test]
async fn content_types_are_added_only_where_none_is_configured() {
    let server = Server::start(|_| Reply::of(200)).await;
    for (changes, expected) in [
        (json!({"payloadContentType": "BINARY"}), None),
        (json!({"payloadContentType": "TEXT"}), Some("text/plain;charset=UTF-8")),
        (json!({"payloadContentType": "JSON"}), Some("application/json")),
        (json!({"payloadContentType": "TEXT", "headers": {"content-type": "a/b"}}), Some("a/b")),
        (
            json!({"payloadContentType": "JSON", "headers": {"content-type": "application/x+json"}}),
            Some("application/x+json"),
        ),
    ] {
        let mut sink = sink(&server.url("/x"), changes).await;
        assert_eq!(outcome(&mut *sink, message(5)).await, Outcome::Delivered);
        let received = server.received().pop().unwrap();
        let types: Vec<_> = received.headers.get_all("content-type").iter().collect();
        assert_eq!(types, expected.into_iter().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_message_that_makes_no_body_is_rejected_without_a_request() {
    let server = Server::start(|_| Reply::of(200)).await;
    let changes = json!({"sendOnlyMsgPayload": false, "headers": {"Content-Type": "text/plain"}});
    let mut sink = sink(&server.url("/x"), changes).await;
    assert_eq!(
        outcome(&mut *sink, message(5)).await,
        Outcome::Rejected {
            class: "content-type",
            text: "Content type 'text/plain' not supported for bodyType=com.fasterxml.jackson.databind.node.ObjectNode"
                .to_owned()
        }
    );
    assert_eq!(server.received().len(), 0);
}

#[tokio::test]
async fn the_status_decides() {
    let server = Server::start(|received| Reply {
        body: Bytes::from_static(b"some body"),
        ..Reply::of(received.uri.path()[1..].parse().unwrap())
    })
    .await;
    for status in [200, 201, 202, 299] {
        let mut sink = sink(&server.url(&format!("/{status}")), json!({})).await;
        assert_eq!(outcome(&mut *sink, message(1)).await, Outcome::Delivered, "{status}");
    }
    for (status, is_final) in
        [400, 405, 411, 413, 414, 415, 422, 431].map(|status| (status, true)).into_iter().chain(
            [401, 403, 404, 408, 409, 410, 429, 499, 500, 501, 502, 503, 504, 599]
                .map(|status| (status, false)),
        )
    {
        let mut sink = sink(&server.url(&format!("/{status}?token=s3cret")), json!({})).await;
        let outcome = outcome(&mut *sink, message(1)).await;
        assert_eq!(matches!(outcome, Outcome::Rejected { .. }), is_final, "{status}");
        let (class, text) = class_and_text(outcome);
        assert_eq!(class, "status");
        assert!(text.starts_with(&status.to_string()), "{text}");
        assert!(text.ends_with(&format!(" from POST {}", server.url(&format!("/{status}")))), "{text}");
    }
    let mut sink = sink(&server.url("/404"), json!({})).await;
    let text = format!("404 Not Found from POST {}", server.url("/404"));
    assert_eq!(outcome(&mut *sink, message(1)).await, retry("status", text));
}

#[tokio::test]
async fn no_content_is_success() {
    let server = Server::start(|_| Reply::of(204)).await;
    let mut sink = sink(&server.url("/"), json!({})).await;
    assert_eq!(outcome(&mut *sink, message(1)).await, Outcome::Delivered);
}

#[tokio::test]
async fn an_overloaded_endpoint_may_say_how_long_to_wait() {
    let server = Server::start(|received| Reply {
        headers: vec![("retry-after", "7".to_owned())],
        ..Reply::of(received.uri.path()[1..].parse().unwrap())
    })
    .await;
    for (status, expected) in [(429, Some(7)), (503, Some(7)), (500, Some(7)), (302, Some(7))] {
        let mut sink = sink(&server.url(&format!("/{status}")), json!({})).await;
        let Outcome::Retry { after, .. } = outcome(&mut *sink, message(1)).await else { panic!("{status}") };
        assert_eq!(after, expected.map(Duration::from_secs), "{status}");
    }
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_not_followed() {
    let server = Server::start(|_| Reply {
        headers: vec![("location", "/other".to_owned()), ("set-cookie", "s3cret".to_owned())],
        body: Bytes::from_static(b"over there"),
        ..Reply::of(302)
    })
    .await;
    let mut sink = sink(&server.url("/"), json!({})).await;
    let (class, text) = class_and_text(outcome(&mut *sink, message(1)).await);
    assert_eq!(class, "status");
    assert!(!text.contains("s3cret"));
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["metadata"]["location"], "/other");
    assert_eq!(
        (&value["status"], &value["statusCode"], &value["statusReason"], &value["error_body"]),
        (&json!("FOUND"), &json!("302"), &json!("Found"), &json!("over there"))
    );
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_a_failure_even_for_200() {
    let server = Server::start(|received| Reply {
        body: vec![b'x'; received.uri.path()[1..].parse().unwrap()].into(),
        ..Reply::of(200)
    })
    .await;
    let changes = json!({"maxInMemoryBufferSizeInKb": 1});
    let mut fits = sink(&server.url("/1024"), changes.clone()).await;
    assert_eq!(outcome(&mut *fits, message(1)).await, Outcome::Delivered);
    let text = |url: &str| {
        let url = url.to_owned();
        retry(
            "response",
            format!(
                "200 OK from POST {url}, but response failed with cause: Exceeded limit on max bytes to buffer : 1024"
            ),
        )
    };
    let url = server.url("/1025");
    let mut known = sink(&url, changes.clone()).await;
    assert_eq!(outcome(&mut *known, message(1)).await, text(&url));
    // Without a length the answer is cut off while it is read.
    static CHUNKED: &[u8] = &{
        let mut bytes = [b'x'; 4096];
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1000\r\n";
        let mut i = 0;
        while i < head.len() {
            bytes[i] = head[i];
            i += 1;
        }
        bytes
    };
    let url = raw_peer(CHUNKED).await;
    let mut unknown = sink(&url, changes).await;
    assert_eq!(outcome(&mut *unknown, message(1)).await, text(&url));
}

#[tokio::test]
async fn an_endpoint_that_falls_silent_is_given_up_after_the_read_timeout() {
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"] {
        let url = raw_peer(answer).await;
        let mut sink = sink(&url, json!({"readTimeoutMs": 150})).await;
        let start = Instant::now();
        let expected = retry("timeout", format!("no answer from POST {url} within 150 ms"));
        assert_eq!(outcome(&mut *sink, message(1)).await, expected);
        assert!(start.elapsed() >= Duration::from_millis(150));
    }
}

#[tokio::test]
async fn without_a_read_timeout_an_attempt_ends_with_the_drivers_timeout() {
    let url = raw_peer(b"").await;
    let kind =
        Http::new(SinkSettings { attempt_timeout: Duration::from_millis(150), ..SinkSettings::default() });
    let mut own = sink_of(&kind, &url, json!({}), 1).await;
    let expected = |ms| retry("timeout", format!("no answer from POST {url} within {ms} ms"));
    assert_eq!(outcome(&mut *own, message(1)).await, expected(150));
    // A document may set its own.
    let document = json!({
        "topicFilters": ["a"], "clientConfiguration": {}, "delivery": {"packProcessingTimeoutMs": 70}
    });
    let mut context = context(1);
    context.target = Target { configuration: document.to_string().into(), ..context.target };
    let mut sink = kind.connect(&configuration(&url, json!({})), context).await.unwrap();
    assert_eq!(outcome(&mut *sink, message(1)).await, expected(70));
}

#[tokio::test]
async fn a_refused_connection_and_an_unknown_host_are_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut refused = sink(&format!("http://{address}/none"), json!({})).await;
    let expected = retry("connect", format!("Connection refused: /{address}"));
    assert_eq!(outcome(&mut *refused, message(1)).await, expected);
    let mut unknown = sink("http://no-such-host.invalid/", json!({})).await;
    let (class, text) = class_and_text(outcome(&mut *unknown, message(1)).await);
    assert_eq!(class, "resolve");
    assert!(text.starts_with("Failed to resolve 'no-such-host.invalid': "), "{text}");
}

#[tokio::test]
async fn an_answer_that_is_torn_is_tried_again_and_names_no_query() {
    let url = raw_peer(b"nonsense\r\n\r\n").await;
    let mut sink = sink(&format!("{url}?token=s3cret"), json!({})).await;
    let (class, text) = class_and_text(outcome(&mut *sink, message(1)).await);
    assert_eq!(class, "connection");
    assert!(text.ends_with(&format!(" from POST {url}")) && !text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_limit_on_parallel_requests_is_kept_and_all_are_sent() {
    let server = Server::start(|_| Reply::of(200)).await;
    let mut sink = sink(&server.url("/"), json!({"maxParallelRequestsCount": 3})).await;
    for number in 0..50 {
        sink.submit(message(number), number).unwrap();
    }
    let mut tickets = Vec::new();
    for _ in 0..50 {
        let (ticket, outcome) = answer(&mut *sink).await;
        assert_eq!(outcome, Outcome::Delivered);
        tickets.push(ticket);
    }
    tickets.sort_unstable();
    assert!(tickets.into_iter().eq(0..50));
    assert!(server.open_max() <= 3, "{}", server.open_max());
}

#[tokio::test]
async fn a_message_that_waits_too_long_for_a_slot_is_never_sent() {
    let server = Server::start(|_| Reply::of(200)).await;
    server.hold(true);
    let changes = json!({"maxParallelRequestsCount": 2, "readTimeoutMs": 200});
    let mut sink = sink(&server.url("/x"), changes).await;
    for number in 0..6 {
        sink.submit(message(number), number).unwrap();
    }
    let mut unsent = Vec::new();
    for _ in 0..6 {
        let (ticket, outcome) = answer(&mut *sink).await;
        let (class, text) = class_and_text(outcome);
        assert_eq!(class, "timeout");
        if text.starts_with("Timeout during waiting for reply!") {
            assert!(text.ends_with("was not sent: no free slot within 200 ms"), "{text}");
            unsent.push(ticket);
        }
    }
    assert_eq!(unsent, [2, 3, 4, 5]);
    // The slots are free again, and what was given up does not come after.
    server.hold(false);
    assert_eq!(outcome(&mut *sink, message(9)).await, Outcome::Delivered);
    let mut bodies: Vec<_> = messages(&server).into_iter().map(|received| received.body).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["0", "1", "9"]);
}

#[tokio::test]
async fn what_the_driver_has_given_up_is_not_sent_either() {
    let server = Server::start(|_| Reply::of(200)).await;
    server.hold(true);
    let kind =
        Http::new(SinkSettings { attempt_timeout: Duration::from_millis(200), ..SinkSettings::default() });
    let mut sink = sink_of(&kind, &server.url("/x"), json!({"maxParallelRequestsCount": 1}), 3).await;
    for number in 0..3 {
        sink.submit(message(number), number).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(class_and_text(answer(&mut *sink).await.1).0, "timeout");
    }
    server.hold(false);
    assert_eq!(outcome(&mut *sink, message(9)).await, Outcome::Delivered);
    assert_eq!(messages(&server).into_iter().map(|received| received.body).collect::<Vec<_>>(), ["0", "9"]);
}

#[tokio::test]
async fn the_pool_of_the_process_limits_requests_and_a_full_window_is_never_refused() {
    let server = Server::start(|_| Reply::of(200)).await;
    let settings =
        SinkSettings { http_pool_max_connections: NonZeroUsize::new(4), ..SinkSettings::default() };
    let mut sink = sink_of(&Http::new(settings), &server.url("/"), json!({}), 64).await;
    for number in 0..64 {
        sink.submit(message(number), number).unwrap();
    }
    for _ in 0..64 {
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
    }
    assert!(server.open_max() <= 4, "{}", server.open_max());
}

#[tokio::test]
async fn a_crowded_executor_sends_fewer_requests_at_once_and_all_when_it_has_time_again() {
    let server = Server::start(|_| Reply::of(200)).await;
    let kind = Http::new(SinkSettings::default());
    let mut sink = sink_of(&kind, &server.url("/"), json!({}), 64).await;
    for _ in 0..2 {
        kind.crowd.hold(1.0);
        let fewer = async {
            loop {
                for number in 0..64 {
                    sink.submit(message(number), number).unwrap();
                }
                let are_16 = format!("{sink:?}").contains("running: 16");
                for _ in 0..64 {
                    assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
                }
                if are_16 {
                    break;
                }
            }
        };
        timeout(Duration::from_secs(30), fewer).await.expect("the number falls");
        kind.crowd.hold(0.0);
        server.hold(true);
        for number in 0..64 {
            sink.submit(message(number), number).unwrap();
        }
        // Nothing is answered, so only the sink's own clock can notice.
        let (held, waits) = (server.held(64), poll_fn(|cx| sink.poll_outcome(cx)));
        tokio::select! {
            () = held => {}
            answer = waits => panic!("{answer:?}"),
        }
        server.hold(false);
        for _ in 0..64 {
            assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
        }
    }
}

/// A certificate authority, and a server certificate for the loopback.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate and key, both PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn server_config(&self, demands_certificate: bool) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue("127.0.0.1");
        let builder = ServerConfig::builder_with_provider(credentials::provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if demands_certificate {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), credentials::provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        Arc::new(
            builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap(),
        )
    }
}

#[tokio::test]
async fn only_the_configured_authority_is_trusted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::with_tls(|_| Reply::of(200), Some(authority.server_config(false))).await;
    let trusting = |pem: String| json!({"credentials": {"type": "cert.PEM", "caCert": pem}});
    for pem in [authority.pem(), stranger.pem() + &authority.pem(), authority.pem().replace('\n', "\\n")] {
        let mut trusted = sink(&server.url("/"), trusting(pem)).await;
        assert_eq!(outcome(&mut *trusted, message(1)).await, Outcome::Delivered);
    }
    let mut untrusted = sink(&server.url("/"), trusting(stranger.pem())).await;
    let (class, text) = class_and_text(outcome(&mut *untrusted, message(1)).await);
    assert_eq!(class, "tls");
    assert!(
        text.starts_with(&format!("TLS with {} failed: invalid peer certificate", server.address)),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_certificate_is_shown_with_plain_and_encrypted_keys() {
    let authority = Authority::new();
    let server = Server::with_tls(|_| Reply::of(200), Some(authority.server_config(true))).await;
    let (certificate, key) = authority.issue("client");
    let (_, plain) = pkcs8::SecretDocument::from_pem(&key).unwrap();
    let parameters = pbes2::Parameters::pbkdf2_sha256_aes256cbc(1000, b"salty salt", &[7; 16]).unwrap();
    let encrypted = pkcs8::PrivateKeyInfo::try_from(plain.as_bytes())
        .unwrap()
        .encrypt_with_params(parameters, "pass")
        .unwrap()
        .to_pem("ENCRYPTED PRIVATE KEY", pkcs8::LineEnding::LF)
        .unwrap()
        .to_string();
    let shown = |key: &str, password: &str| {
        json!({"credentials": {
            "type": "cert.PEM", "caCert": authority.pem(), "cert": certificate, "privateKey": key,
            "privateKeyPassword": password, "certFileName": "c.pem",
        }})
    };
    let sec1 = pkcs8::PrivateKeyInfo::try_from(plain.as_bytes()).unwrap().private_key;
    let sec1 = pkcs8::der::pem::encode_string("EC PRIVATE KEY", pkcs8::LineEnding::LF, sec1).unwrap();
    for (key, password) in [(key.as_str(), ""), (&encrypted, "pass"), (&sec1, "")] {
        let mut sink = sink(&server.url("/"), shown(key, password)).await;
        assert_eq!(outcome(&mut *sink, message(1)).await, Outcome::Delivered);
        assert_eq!(server.received().pop().unwrap().client_certificates, 1);
    }
    let texts = |changes: Value| -> Vec<String> {
        let violations = Http::new(SinkSettings::default()).check(&configuration(&server.url("/"), changes));
        violations.iter().map(ToString::to_string).collect()
    };
    let path = "clientConfiguration.credentials";
    let failed = "Creating TLS factory failed!";
    let wrong = texts(shown(&encrypted, "wrong"));
    assert!(
        wrong[0].starts_with(&format!("{path}.privateKeyPassword: {failed} the private key can't be")),
        "{wrong:?}"
    );
    assert_eq!(
        texts(shown(&encrypted, "")),
        [format!(
            "{path}.privateKeyPassword: {failed} the private key is encrypted; its password is missing"
        )]
    );
    assert_eq!(
        texts(shown("", "")),
        [format!("{path}.privateKey: {failed} a client certificate needs its private key")]
    );
    let (_, other_key) = authority.issue("other");
    let mismatch = texts(shown(&other_key, ""));
    assert_eq!(mismatch.len(), 1);
    assert!(mismatch[0].starts_with(&format!("{path}: {failed} ")), "{mismatch:?}");
    assert_eq!(
        texts(json!({"credentials": {"type": "cert.PEM", "caCert": "x", "cert": "y", "privateKey": "z"}})),
        [
            format!("{path}.caCert: {failed} there is no `BEGIN CERTIFICATE` in the text"),
            format!("{path}.cert: {failed} there is no `BEGIN CERTIFICATE` in the text"),
            format!(
                "{path}.privateKey: {failed} there is no `BEGIN PRIVATE KEY`, `BEGIN RSA PRIVATE KEY` or `BEGIN EC PRIVATE KEY` in the text"
            ),
        ]
    );
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----";
    assert!(texts(shown(old, "pass"))[0].contains("convert it with `openssl pkcs8 -topk8"));
}

#[tokio::test]
async fn basic_credentials_are_sent() {
    let server = Server::start(|_| Reply::of(200)).await;
    let changes = json!({"credentials": {"type": "basic", "username": "Aladdin", "password": "open sesame"}});
    let mut sink = sink(&server.url("/"), changes).await;
    assert_eq!(outcome(&mut *sink, message(1)).await, Outcome::Delivered);
    assert_eq!(server.received()[0].headers["authorization"], "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    assert!(!format!("{sink:?}").contains("QWxh"));
}

/// An endpoint whose configuration was accepted before the rules were these.
async fn sent_with(egress: &Egress, url: &str) -> Outcome {
    let checked =
        config::read(&configuration(url, json!({})), &SinkSettings::default()).config.expect("it is right");
    let settings = SinkSettings { egress: egress.clone(), ..SinkSettings::default() };
    let origin = Origins::new(&settings).origin(&checked).unwrap();
    let endpoint = Endpoint::new(origin, Method::POST, &checked, Duration::from_secs(10));
    endpoint.send(endpoint.request(Load::default()), Instant::now() + Duration::from_secs(10)).await
}

#[tokio::test]
async fn egress_rules_hold_for_the_address_that_a_name_has() {
    let server = Server::start(|_| Reply::of(200)).await;
    let url = format!("http://localhost:{}/", server.address.port());
    let strict = Egress::new(false, Vec::new(), Vec::new());
    let (class, text) = class_and_text(sent_with(&strict, &url).await);
    assert_eq!(class, "egress");
    assert!(text.contains("127.0.0.1 must not be connected to: it is local"), "{text}");
    let denied = Egress::new(true, Vec::new(), vec!["127.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()]);
    assert_eq!(class_and_text(sent_with(&denied, &url).await).0, "egress");
    assert_eq!(server.connections(), 0);
    let listed = Egress::new(false, vec!["127.0.0.1".parse().unwrap()], Vec::new());
    assert_eq!(sent_with(&listed, &url).await, Outcome::Delivered);
}

#[tokio::test]
async fn a_check_refuses_what_egress_rules_refuse() {
    let egress = Egress::new(true, Vec::new(), vec!["127.0.0.0/8".parse().unwrap()]);
    let kind = Http::new(SinkSettings { egress, ..SinkSettings::default() });
    let server = Server::start(|_| Reply::of(200)).await;
    let violations = kind.check(&configuration(&server.url("/"), json!({})));
    assert_eq!(
        violations.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "clientConfiguration.restEndpointUrl: 127.0.0.1 must not be connected to: TBMQ_IE_EGRESS_DENY holds 127.0.0.0/8"
        ]
    );
}

async fn probed(url: &str, changes: Value) -> (Vec<(String, bool)>, Option<String>) {
    let kind = Http::new(SinkSettings::default());
    let report = kind.probe(&configuration(url, changes), &context(1), Duration::from_secs(10)).await;
    (report.stages.into_iter().map(|stage| (stage.name, stage.ok)).collect(), report.error)
}

fn stages(names: &[(&str, bool)]) -> Vec<(String, bool)> {
    names.iter().map(|(name, ok)| ((*name).to_owned(), *ok)).collect()
}

#[tokio::test]
async fn a_check_sends_head_with_headers_and_credentials() {
    let server = Server::start(|_| Reply::of(200)).await;
    let changes = json!({
        "headers": {"X-Test": "yes"}, "credentials": {"type": "basic", "username": "a", "password": "b"}
    });
    assert_eq!(
        probed(&server.url("/hook"), changes).await,
        (stages(&[("resolve", true), ("connect", true), ("authenticate", true), ("response", true)]), None)
    );
    let received = server.received();
    assert_eq!(received.len(), 1);
    assert_eq!((received[0].method.as_str(), received[0].uri.path()), ("HEAD", "/hook"));
    assert_eq!(received[0].headers["x-test"], "yes");
    assert_eq!(received[0].headers["authorization"], "Basic YTpi");
    assert_eq!(received[0].body, "");
}

#[tokio::test]
async fn a_check_tells_the_stage_that_failed() {
    let server = Server::start(|received| Reply::of(received.uri.path()[1..].parse().unwrap())).await;
    assert_eq!(
        probed(&server.url("/404"), json!({})).await,
        (
            stages(&[("resolve", true), ("connect", true), ("authenticate", true), ("response", false)]),
            Some(format!("404 Not Found from HEAD {}", server.url("/404")))
        )
    );
    assert_eq!(
        probed(&server.url("/405"), json!({})).await.1,
        Some(format!(
            "405 Method Not Allowed from HEAD {} (the check sends HEAD; the endpoint may still take messages)",
            server.url("/405")
        ))
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    // TBMQ's own text.
    assert_eq!(
        probed(&format!("http://{address}/none"), json!({})).await,
        (stages(&[("resolve", true), ("connect", false)]), Some(format!("Connection refused: /{address}")))
    );
    let (names, error) = probed("http://no-such-host.invalid/", json!({})).await;
    assert_eq!(names, stages(&[("resolve", false)]));
    assert!(error.unwrap().starts_with("Failed to resolve 'no-such-host.invalid': "));
    assert_eq!(
        probed("nowhere", json!({"maxInMemoryBufferSizeInKb": 0})).await,
        (
            Vec::new(),
            Some(
                "Max response size (KB) must be greater than 0; Transport scheme(protocol) must be provided!"
                    .to_owned()
            )
        )
    );
}

#[tokio::test]
async fn a_check_tells_when_credentials_are_missing_or_wrong() {
    let server = Server::start(|received| match received.headers.get("authorization") {
        None => Reply {
            headers: vec![("www-authenticate", "Basic realm=\"hooks\"".to_owned())],
            ..Reply::of(401)
        },
        Some(value) if value == "Basic YTpi" => Reply::of(200),
        Some(_) => Reply::of(403),
    })
    .await;
    let url = server.url("/");
    let refused = stages(&[("resolve", true), ("connect", true), ("authenticate", false)]);
    let text = format!("401 Unauthorized from HEAD {url}: Basic realm=\"hooks\"");
    assert_eq!(probed(&url, json!({})).await, (refused.clone(), Some(text)));
    let basic =
        |password: &str| json!({"credentials": {"type": "basic", "username": "a", "password": password}});
    assert_eq!(probed(&url, basic("c")).await, (refused, Some(format!("403 Forbidden from HEAD {url}"))));
    assert_eq!(probed(&url, basic("b")).await.1, None);
}

#[tokio::test]
async fn a_key_tells_a_repetition() {
    let server = Server::start(|_| Reply::of(503)).await;
    let mut sink = sink(&server.url("/"), json!({"idempotencyKey": true})).await;
    for number in [7, 7, 8] {
        assert_ne!(outcome(&mut *sink, message(number)).await, Outcome::Delivered);
    }
    let keys: Vec<_> = server
        .received()
        .iter()
        .map(|received| received.headers["idempotency-key"].to_str().unwrap().to_owned())
        .collect();
    let id = "00000000-0000-0000-0000-000000000001";
    let key = |offset| format!("{id}-tbmq.msg.ie.{id}-0-{offset}-1742554969254");
    assert_eq!(keys, [key(7), key(7), key(8)]);
    let changes = json!({"idempotencyKey": true, "headers": {"Idempotency-Key": "mine"}});
    let violations = Http::new(SinkSettings::default()).check(&configuration(&server.url("/"), changes));
    assert_eq!(
        violations.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["clientConfiguration.idempotencyKey: the header Idempotency-Key is configured already"]
    );
}

#[tokio::test]
async fn a_check_of_https_has_a_stage_for_tls() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::with_tls(|_| Reply::of(200), Some(authority.server_config(false))).await;
    let trusting = |pem: String| json!({"credentials": {"type": "cert.PEM", "caCert": pem}});
    assert_eq!(
        probed(&server.url("/"), trusting(authority.pem())).await,
        (stages(&["resolve", "connect", "tls", "authenticate", "response"].map(|name| (name, true))), None)
    );
    let (names, error) = probed(&server.url("/"), trusting(stranger.pem())).await;
    assert_eq!(names, stages(&[("resolve", true), ("connect", true), ("tls", false)]));
    let error = error.unwrap();
    assert!(error.starts_with(&format!("TLS with {} failed: ", server.address)), "{error}");
}

#[tokio::test]
async fn a_check_ends_at_its_deadline() {
    let url = raw_peer(b"").await;
    let kind = Http::new(SinkSettings::default());
    let (configuration, context) = (configuration(&url, json!({})), context(1));
    let probe = kind.probe(&configuration, &context, Duration::from_millis(200));
    let report = timeout(Duration::from_secs(10), probe).await.unwrap();
    assert!(report.error.is_some());
    assert_eq!(
        report.stages.last().map(|stage| (stage.name.as_str(), stage.ok)),
        Some(("authenticate", false))
    );
}
