//! Clients whom somebody outside knows: by tokens, or by an HTTP service; and strangers whom nobody knows.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use prost::Message as _;
use serde_json::{Value, json};
use tbmq_harness::http_sink::{HttpSink, Mode};
use tbmq_mqtt::packet::{Connect, Packet, ProtocolVersion, Qos, ReasonCode};
use tbmq_proto::{
    topic::Catalogue,
    wire::{AuthProvider, AuthProviders, AuthSetting, auth_setting::Setting},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    bus::TestBus,
    client::{Client, VERSIONS, connect_packet},
    plane::{Plane, config, put, until},
};

const SECRET: &str = "a secret of thirty-two bytes, or more";

/// What the control plane does when a setting changes.
async fn set(bus: &TestBus, key: &str, revision: u64, setting: Setting) {
    let topic = Catalogue::default().auth_settings();
    let value = AuthSetting { revision, setting: Some(setting) }.encode_to_vec();
    put(bus, &topic, key, Some(&value), Some(&revision.to_string())).await;
}

async fn enable(bus: &TestBus, name: &str, configuration: &Value) {
    configure(bus, name, 1, configuration).await;
}

/// Enables a provider with this configuration.
pub(crate) async fn configure(bus: &TestBus, name: &str, revision: u64, configuration: &Value) {
    let configuration_json = configuration.to_string();
    let provider = AuthProvider { r#type: name.to_owned(), enabled: true, configuration_json, sealed: None };
    set(bus, &format!("provider/{name}"), revision, Setting::Provider(provider)).await;
}

pub(crate) fn jwt() -> Value {
    json!({
        "type": "JWT",
        "defaultClientType": "DEVICE",
        "jwtVerifierConfiguration": {
            "jwtVerifierType": "ALGORITHM_BASED",
            "jwtSignAlgorithmConfiguration": { "algorithm": "HMAC_BASED", "secret": SECRET },
        },
        "authClaims": { "sub": "${clientId}" },
        "authRules": { "pubAuthRulePatterns": ["allowed/.*"], "subAuthRulePatterns": [] },
        "pubAuthRuleClaim": "publish",
        "leeway": 0,
        "disconnectAtExpiry": true,
    })
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) fn token(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::default(), claims, &key).unwrap()
}

pub(crate) fn claims(client_id: &str) -> Value {
    json!({ "sub": client_id, "exp": now_s() + 600 })
}

pub(crate) fn with_password(version: ProtocolVersion, client_id: &str, password: &str) -> Connect {
    let mut connect = connect_packet(version, client_id);
    // 3.1.1 has no password without a user name.
    connect.username = Some("u".into());
    connect.password = Some(password.to_owned().into());
    connect
}

pub(crate) async fn asked(plane: &Plane, connect: Connect) -> (Client<TcpStream>, ReasonCode) {
    let mut client = Client::open(plane.address, connect.version).await;
    client.send(Packet::Connect(Box::new(connect))).await;
    match client.next().await {
        Some(Packet::ConnAck(connack)) => (client, connack.reason),
        other => panic!("no CONNACK: {other:?}"),
    }
}

/// [MQTT-3.1.4-2] [MQTT5-3.1.4-2]
#[tokio::test]
async fn a_token_lets_its_client_in_and_no_other() {
    let bus = TestBus::new();
    enable(&bus, "JWT", &jwt()).await;
    let plane = Plane::with(bus, config()).await;
    for version in VERSIONS {
        let good = token(&claims("c"));
        let (mut client, reason) = asked(&plane, with_password(version, "c", &good)).await;
        assert_eq!(reason, ReasonCode::Success, "{version:?}");
        client.hears_nothing().await;
        let expired = token(&json!({ "sub": "c", "exp": now_s() - 1 }));
        let endless = token(&json!({ "sub": "c" }));
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJjIiwiZXhwIjo5OTk5OTk5OTk5fQ.";
        for (client_id, password) in
            [("other", &*good), ("c", &good[1..]), ("c", &expired), ("c", &endless), ("c", none), ("c", "")]
        {
            let (mut client, reason) = asked(&plane, with_password(version, client_id, password)).await;
            assert_eq!(reason, ReasonCode::NotAuthorized, "{version:?} {client_id} {password}");
            assert_eq!(client.next().await, None);
        }
        let (_, reason) = asked(&plane, connect_packet(version, "c")).await;
        assert_eq!(reason, ReasonCode::NotAuthorized, "{version:?}");
        client.hears_nothing().await;
    }
}

#[tokio::test]
async fn a_tokens_rules_hold_and_the_client_goes_when_it_ends() {
    let bus = TestBus::new();
    enable(&bus, "JWT", &jwt()).await;
    let plane = Plane::with(bus, config()).await;
    let exp = now_s() + 3;
    for (id, claims, may) in [
        ("default", json!({ "sub": "default", "exp": exp }), ["allowed/x", "own/x"]),
        ("own", json!({ "sub": "own", "exp": exp, "publish": ["own/.*"] }), ["own/x", "allowed/x"]),
    ] {
        let connect = with_password(ProtocolVersion::V5, id, &token(&claims));
        let (mut client, reason) = asked(&plane, connect).await;
        assert_eq!(reason, ReasonCode::Success);
        for (topic, is_allowed) in [(may[0], true), (may[1], false)] {
            client.publish(topic, Qos::AtLeastOnce, 1, "x").await;
            assert_eq!(
                client.puback().await.reason == ReasonCode::NotAuthorized,
                !is_allowed,
                "{id} {topic}"
            );
        }
        if id == "own" {
            client.is_told(ReasonCode::NotAuthorized).await;
            assert!(now_s() >= exp);
        }
    }
}

pub(crate) fn http(sink: &HttpSink) -> Value {
    json!({
        "type": "HTTP",
        "restEndpointUrl": sink.url("/auth"),
        "readTimeoutMs": 300,
        "authRules": { "pub": [".*"], "sub": [".*"] },
    })
}

#[tokio::test]
async fn a_service_lets_clients_in_and_one_that_fails_lets_nobody_in() {
    let sink = HttpSink::start().await.unwrap();
    let bus = TestBus::new();
    enable(&bus, "HTTP", &http(&sink)).await;
    let plane = Plane::with(bus, config()).await;
    for version in VERSIONS {
        let (mut client, reason) = asked(&plane, with_password(version, "c", "hush")).await;
        assert_eq!(reason, ReasonCode::Success, "{version:?}");
        client.hears_nothing().await;
    }
    let body: Value = serde_json::from_slice(&sink.received()[0].body).unwrap();
    assert_eq!(body, json!({ "clientId": "c", "username": "u", "password": "hush" }));
    for mode in [Mode::Answering(reqwest::StatusCode::FORBIDDEN), Mode::BlackHole, Mode::Down] {
        sink.set_mode(mode).await.unwrap();
        for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
            let (_, reason) = asked(&plane, with_password(version, "c", "hush")).await;
            assert_eq!(reason, ReasonCode::NotAuthorized, "{version:?} {mode:?}");
        }
    }
    // Once more, and it is left alone: clients are told at once.
    let (_, reason) = asked(&plane, with_password(ProtocolVersion::V5, "c", "hush")).await;
    assert_eq!(reason, ReasonCode::NotAuthorized);
    let (_, reason) = asked(&plane, with_password(ProtocolVersion::V5, "c", "hush")).await;
    assert_eq!(reason, ReasonCode::NotAuthorized);
    assert_eq!(plane.metric("tbmq_auth_http_calls_total{outcome=\"Resting\"}"), 1);
    assert_eq!(plane.metric("tbmq_auth_http_calls_total{outcome=\"TimedOut\"}"), 2);
}

#[tokio::test]
async fn a_service_that_says_nothing_holds_up_nobody_else() {
    let sink = HttpSink::start().await.unwrap();
    sink.set_mode(Mode::BlackHole).await.unwrap();
    let bus = TestBus::new();
    let mut service = http(&sink);
    service["readTimeoutMs"] = json!(60_000);
    enable(&bus, "HTTP", &service).await;
    enable(&bus, "JWT", &jwt()).await;
    let order = AuthProviders { priorities: vec!["JWT".to_owned(), "HTTP".to_owned()] };
    set(&bus, "providers", 1, Setting::Providers(order)).await;
    let plane = Plane::with(bus, config()).await;
    let mut waiting = Vec::new();
    for number in 0..150 {
        let mut client = Client::open(plane.address, ProtocolVersion::V5).await;
        let connect = with_password(ProtocolVersion::V5, &format!("w{number}"), "no token");
        client.send(Packet::Connect(Box::new(connect))).await;
        waiting.push(client);
    }
    // As many of one address as may wait, and the others are refused.
    until(|| plane.metric("tbmq_auth_http_calls_total{outcome=\"Full\"}") == 50).await;
    let begun = Instant::now();
    let (mut client, reason) =
        asked(&plane, with_password(ProtocolVersion::V5, "c", &token(&claims("c")))).await;
    assert_eq!(reason, ReasonCode::Success);
    client.publish("allowed/x", Qos::AtLeastOnce, 1, "x").await;
    client.puback().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// A connection through a proxy, which says that the client is at this address.
async fn announced(plane: &Plane, version: ProtocolVersion, address: &str) -> Client<TcpStream> {
    let mut client = Client::open(plane.address, version).await;
    let header = format!("PROXY TCP4 {address} 192.0.2.1 5000 1883\r\n");
    client.stream.write_all(header.as_bytes()).await.unwrap();
    client
}

async fn is_let_in(plane: &Plane, version: ProtocolVersion, address: &str) -> ReasonCode {
    let mut client = announced(plane, version, address).await;
    client.send(Packet::Connect(Box::new(connect_packet(version, "c")))).await;
    match client.next().await {
        Some(Packet::ConnAck(connack)) => connack.reason,
        other => panic!("no CONNACK: {other:?}"),
    }
}

#[tokio::test]
async fn strangers_come_in_without_credentials_only_if_that_is_wanted() {
    for is_public in [false, true] {
        let mut config = config();
        config.listener.proxy_protocol_enabled = true;
        config.auth.mqtt_anonymous_enabled = is_public;
        let plane = Plane::with(TestBus::new(), config).await;
        for version in VERSIONS {
            let expected = if is_public { ReasonCode::Success } else { ReasonCode::NotAuthorized };
            assert_eq!(is_let_in(&plane, version, "192.0.2.7").await, expected, "{version:?}");
            assert_eq!(is_let_in(&plane, version, "127.0.0.1").await, ReasonCode::Success, "{version:?}");
        }
    }
}

#[tokio::test]
async fn only_proxies_that_are_trusted_say_where_a_client_is() {
    let plane = |trusted: &str| {
        let mut config = config();
        config.listener.proxy_protocol_enabled = true;
        config.listener.trusted_proxies = vec![trusted.to_owned()];
        Plane::with(TestBus::new(), config)
    };
    let trusting = plane("127.0.0.0/8").await;
    assert_eq!(is_let_in(&trusting, ProtocolVersion::V5, "127.0.0.1").await, ReasonCode::Success);
    let wary = plane("10.0.0.0/8").await;
    let mut spoofed = announced(&wary, ProtocolVersion::V5, "127.0.0.1").await;
    let connect = Packet::Connect(Box::new(connect_packet(ProtocolVersion::V5, "c")));
    spoofed.send(connect).await;
    // It is cut, and what it has sent is not read: the end may be a reset.
    assert_eq!(spoofed.stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    until(|| wary.metric("tbmq_mqtt_handshakes_failed_total{reason=\"Proxy\"}") == 1).await;
}
