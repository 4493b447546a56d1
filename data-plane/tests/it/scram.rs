//! SCRAM as enhanced authentication (MQTT 5.0 §4.12, broker spec §4.6), end to end.

use base64::prelude::*;
use ring::{digest, hmac, pbkdf2};
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Connect, Disconnect, Packet, ProtocolVersion, Qos, ReasonCode},
};

use crate::{
    client::{Client, connect_packet, text},
    credentials::{all, bus_with, publish, scram},
    plane::{Plane, config},
};

const METHOD: &str = "SCRAM-SHA-256";

/// A client's half of RFC 5802, written from the RFC.
struct Prover {
    bare: String,
    server_signature: Vec<u8>,
}

fn hmac_of(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

impl Prover {
    fn new(user_name: &str) -> Self {
        Self { bare: format!("n={user_name},r=clientnonce"), server_signature: Vec::new() }
    }

    fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.bare).into_bytes()
    }

    fn last(&mut self, server_first: &[u8], password: &str) -> Vec<u8> {
        let server_first = std::str::from_utf8(server_first).unwrap();
        let part = |name: &str| server_first.split(',').find_map(|part| part.strip_prefix(name)).unwrap();
        let (nonce, salt, iterations) = (part("r="), part("s="), part("i="));
        assert!(nonce.starts_with("clientnonce") && nonce.len() > "clientnonce".len());
        let (mut salted, salt) = ([0; 32], BASE64_STANDARD.decode(salt).unwrap());
        let (algorithm, rounds) = (pbkdf2::PBKDF2_HMAC_SHA256, iterations.parse().unwrap());
        pbkdf2::derive(algorithm, rounds, &salt, password.as_bytes(), &mut salted);
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{server_first},{without_proof}", self.bare);
        let client_key = hmac_of(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        let signature = hmac_of(stored_key.as_ref(), message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(one, other)| one ^ other).collect();
        self.server_signature = hmac_of(&hmac_of(&salted, b"Server Key"), message.as_bytes());
        format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)).into_bytes()
    }

    /// The server has proved that it knows the password, too.
    fn believes(&self, properties: &Properties) {
        assert_eq!(properties.text(PropertyId::AuthenticationMethod).as_deref(), Some(METHOD));
        let expected = format!("v={}", BASE64_STANDARD.encode(&self.server_signature));
        let data = properties.binary(PropertyId::AuthenticationData).unwrap();
        assert_eq!(std::str::from_utf8(&data).unwrap(), expected);
    }
}

fn properties(method: &str, data: &[u8]) -> Properties {
    PropertiesBuilder::new()
        .text(PropertyId::AuthenticationMethod, method)
        .binary(PropertyId::AuthenticationData, data)
        .build()
}

fn auth(reason: ReasonCode, method: &str, data: &[u8]) -> Packet {
    Packet::Auth(Disconnect { reason, properties: properties(method, data) })
}

async fn plane() -> Plane {
    let bus = bus_with(&["SCRAM"]).await;
    scram(&bus, "user", 1, "pencil", &[all("mine/#")]).await;
    scram(&bus, "other", 1, "pen", &[all("#")]).await;
    Plane::with(bus, config()).await
}

async fn challenged(client: &mut Client) -> Vec<u8> {
    match client.next().await {
        Some(Packet::Auth(auth)) => {
            assert_eq!(auth.reason, ReasonCode::ContinueAuthentication);
            assert_eq!(auth.properties.text(PropertyId::AuthenticationMethod).as_deref(), Some(METHOD));
            auth.properties.binary(PropertyId::AuthenticationData).unwrap().to_vec()
        }
        other => panic!("no challenge: {other:?}"),
    }
}

/// A client that has named a user, and was challenged.
async fn begun(plane: &Plane, user_name: &str, client_id: &str) -> (Client, Prover, Vec<u8>) {
    let prover = Prover::new(user_name);
    let mut client = Client::open(plane.address, ProtocolVersion::V5).await;
    let connect = Connect {
        properties: properties(METHOD, &prover.first()),
        ..connect_packet(ProtocolVersion::V5, client_id)
    };
    client.send(Packet::Connect(Box::new(connect))).await;
    let server_first = challenged(&mut client).await;
    (client, prover, server_first)
}

async fn connected(plane: &Plane, client_id: &str) -> Client {
    let (mut client, mut prover, server_first) = begun(plane, "user", client_id).await;
    let last = prover.last(&server_first, "pencil");
    client.send(auth(ReasonCode::ContinueAuthentication, METHOD, &last)).await;
    match client.next().await {
        Some(Packet::ConnAck(connack)) => {
            assert_eq!(connack.reason, ReasonCode::Success);
            prover.believes(&connack.properties);
        }
        other => panic!("no CONNACK: {other:?}"),
    }
    client
}

async fn is_refused(client: &mut Client, reason: ReasonCode) {
    match client.next().await {
        Some(Packet::ConnAck(connack)) => assert_eq!(connack.reason, reason),
        other => panic!("no CONNACK: {other:?}"),
    }
    assert_eq!(client.next().await, None);
}

/// [MQTT5-4.12.0-2] [MQTT5-4.12.0-5]
#[tokio::test]
async fn client_and_server_prove_to_each_other_that_they_know_the_password() {
    let plane = plane().await;
    let mut client = connected(&plane, "c").await;
    client.subscribed("mine/#", Qos::AtMostOnce).await;
    client.publish("mine/a", Qos::AtMostOnce, 0, "x").await;
    assert_eq!(text(&client.message().await), "x");
    client.publish("other", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(client.puback().await.reason, ReasonCode::NotAuthorized);
}

/// [MQTT5-4.12.0-1] [MQTT5-4.12.0-4]
#[tokio::test]
async fn whatever_is_wrong_before_connack_has_its_code() {
    let plane = plane().await;
    let first = Prover::new("user").first();
    for (properties, reason) in [
        (properties("SCRAM-SHA-1", &first), ReasonCode::BadAuthenticationMethod),
        (properties(METHOD, b""), ReasonCode::UnspecifiedError),
        (properties(METHOD, b"y,,n=user"), ReasonCode::NotAuthorized),
        // The credential is of another mechanism of the same name: as if there were none.
        (
            PropertiesBuilder::new().text(PropertyId::AuthenticationMethod, METHOD).build(),
            ReasonCode::UnspecifiedError,
        ),
    ] {
        let mut client = Client::open(plane.address, ProtocolVersion::V5).await;
        let connect = Connect { properties, ..connect_packet(ProtocolVersion::V5, "c") };
        client.send(Packet::Connect(Box::new(connect))).await;
        is_refused(&mut client, reason).await;
    }
    for user_name in ["user", "nobody"] {
        let (mut client, mut prover, server_first) = begun(&plane, user_name, "c").await;
        let last = prover.last(&server_first, "wrong");
        client.send(auth(ReasonCode::ContinueAuthentication, METHOD, &last)).await;
        is_refused(&mut client, ReasonCode::NotAuthorized).await;
    }
    for (packet, reason) in [
        (
            auth(ReasonCode::ContinueAuthentication, "SCRAM-SHA-512", b"x"),
            ReasonCode::BadAuthenticationMethod,
        ),
        (auth(ReasonCode::ContinueAuthentication, METHOD, b""), ReasonCode::UnspecifiedError),
        (auth(ReasonCode::ReAuthenticate, METHOD, b"x"), ReasonCode::UnspecifiedError),
        (auth(ReasonCode::ContinueAuthentication, METHOD, b"nonsense"), ReasonCode::NotAuthorized),
        (Packet::PingReq, ReasonCode::ProtocolError),
    ] {
        let (mut client, ..) = begun(&plane, "user", "c").await;
        client.send(packet).await;
        is_refused(&mut client, reason).await;
    }
}

#[tokio::test]
async fn a_session_is_untouched_until_the_proof_is_there() {
    let plane = plane().await;
    let mut owner = connected(&plane, "c").await;
    owner.subscribed("mine/#", Qos::AtMostOnce).await;
    let (mut thief, mut prover, server_first) = begun(&plane, "user", "c").await;
    owner.hears_nothing().await;
    let last = prover.last(&server_first, "wrong");
    thief.send(auth(ReasonCode::ContinueAuthentication, METHOD, &last)).await;
    is_refused(&mut thief, ReasonCode::NotAuthorized).await;
    owner.hears_nothing().await;
    // Who knows the password takes it over.
    let mut second = connected(&plane, "c").await;
    owner.is_told(ReasonCode::SessionTakenOver).await;
    second.hears_nothing().await;
}

/// A client that has begun to authenticate again, and was challenged.
async fn begun_again(client: &mut Client, user_name: &str) -> (Prover, Vec<u8>) {
    let prover = Prover::new(user_name);
    client.send(auth(ReasonCode::ReAuthenticate, METHOD, &prover.first())).await;
    (prover, challenged(client).await)
}

async fn is_authenticated(client: &mut Client, prover: &Prover) {
    match client.next().await {
        Some(Packet::Auth(auth)) => {
            assert_eq!(auth.reason, ReasonCode::Success);
            prover.believes(&auth.properties);
        }
        other => panic!("no AUTH: {other:?}"),
    }
}

/// [MQTT5-4.12.1-1] [MQTT5-4.12.1-2]
#[tokio::test]
async fn a_connected_client_proves_again_who_it_is_and_goes_on_meanwhile() {
    let plane = plane().await;
    let mut client = connected(&plane, "c").await;
    client.subscribed("mine/#", Qos::AtMostOnce).await;
    for _ in 0..2 {
        let (mut prover, server_first) = begun_again(&mut client, "user").await;
        // It goes on with all else meanwhile.
        client.publish("mine/a", Qos::AtMostOnce, 0, "x").await;
        assert_eq!(text(&client.message().await), "x");
        let last = prover.last(&server_first, "pencil");
        client.send(auth(ReasonCode::ContinueAuthentication, METHOD, &last)).await;
        is_authenticated(&mut client, &prover).await;
    }
    client.publish("mine/a", Qos::AtMostOnce, 0, "y").await;
    assert_eq!(text(&client.message().await), "y");
    for (user_name, password, method) in
        [("user", "wrong", METHOD), ("other", "pen", METHOD), ("user", "pencil", "SCRAM-SHA-512")]
    {
        let mut client = connected(&plane, "again").await;
        let mut prover = Prover::new(user_name);
        client.send(auth(ReasonCode::ReAuthenticate, method, &prover.first())).await;
        if method == METHOD {
            let server_first = challenged(&mut client).await;
            let last = prover.last(&server_first, password);
            client.send(auth(ReasonCode::ContinueAuthentication, METHOD, &last)).await;
        }
        client.is_told(ReasonCode::NotAuthorized).await;
    }
}

/// Publishes until it may: its new rules have come.
async fn may_publish(client: &mut Client, topic: &str) {
    let patience = std::time::Instant::now();
    loop {
        client.publish(topic, Qos::AtLeastOnce, 1, "x").await;
        if client.puback().await.reason != ReasonCode::NotAuthorized {
            break;
        }
        assert!(patience.elapsed().as_secs() < 20);
    }
}

#[tokio::test]
async fn a_client_whose_rules_change_keeps_its_connection() {
    let plane = plane().await;
    let mut client = connected(&plane, "c").await;
    scram(&plane.bus, "user", 2, "pencil", &[publish("new")]).await;
    may_publish(&mut client, "new").await;
    client.hears_nothing().await;
}

#[tokio::test]
async fn a_connected_client_proves_again_who_it_is_by_its_changed_password_alone() {
    let plane = plane().await;
    let mut client = connected(&plane, "c").await;
    scram(&plane.bus, "user", 2, "eraser", &[publish("new")]).await;
    may_publish(&mut client, "new").await;
    let (mut prover, server_first) = begun_again(&mut client, "user").await;
    let last = prover.last(&server_first, "eraser");
    client.send(auth(ReasonCode::ContinueAuthentication, METHOD, &last)).await;
    is_authenticated(&mut client, &prover).await;
    may_publish(&mut client, "new").await;
    let (mut prover, server_first) = begun_again(&mut client, "user").await;
    let last = prover.last(&server_first, "pencil");
    client.send(auth(ReasonCode::ContinueAuthentication, METHOD, &last)).await;
    client.is_told(ReasonCode::NotAuthorized).await;
}
