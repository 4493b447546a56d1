//! Who may connect: records on the bus, clients on sockets, codes of CONNACK.

use std::net::SocketAddr;

use bytes::Bytes;
use tbmq_auth::scram::Algorithm;
use tbmq_data_plane::ClientAuth;
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{ConnAck, Connect, Disconnect, Packet, ProtocolVersion, Qos, ReasonCode},
};
use tbmq_proto::topic::{Catalogue, Topic};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    bus::TestBus,
    client::{Client, VERSIONS, connect_packet},
    plane::{self, Plane, config},
    samples::{
        KeyValue, allow, basic, blocked_client, cheap, client_final, client_first, credentials, provider,
        scram, x509,
    },
    tls::{Files, shake},
};

/// Writes a record that says its revision itself, if at all.
pub(crate) async fn put(bus: &TestBus, topic: &Topic, key: &str, value: Option<&[u8]>) {
    plane::put(bus, topic, key, value, None).await;
}

pub(crate) async fn put_credentials(bus: &TestBus, records: &[KeyValue]) {
    for (key, value) in records {
        put(bus, &Catalogue::default().credentials(), key, Some(value)).await;
    }
}

pub(crate) async fn put_settings(bus: &TestBus, records: &[KeyValue]) {
    for (key, value) in records {
        put(bus, &Catalogue::default().auth_settings(), key, Some(value)).await;
    }
}

/// The answer to a CONNECT, whatever it is.
pub(crate) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<S>,
    connect: Connect,
) -> ConnAck {
    client.send(Packet::Connect(Box::new(connect))).await;
    match client.next().await {
        Some(Packet::ConnAck(connack)) => connack,
        other => panic!("no CONNACK: {other:?}"),
    }
}

/// CONNACK's code; of a 3.x client that of its own list, as 5.0 calls it.
async fn code(address: SocketAddr, connect: Connect) -> ReasonCode {
    let mut client = Client::open(address, connect.version).await;
    let ConnAck { reason, session_present, .. } = answer(&mut client, connect).await;
    if reason.is_error() {
        assert!(!session_present);
        assert_eq!(client.next().await, None, "a refused client is disconnected");
    }
    reason
}

pub(crate) fn with_password(
    version: ProtocolVersion,
    client_id: &str,
    user_name: &str,
    password: Option<&'static str>,
) -> Connect {
    let mut connect = connect_packet(version, client_id);
    connect.username = Some(user_name.into());
    connect.password = password.map(|password| Bytes::from_static(password.as_bytes()));
    connect
}

/// What 3.x clients are told.
pub(crate) fn told(version: ProtocolVersion, reason: ReasonCode) -> ReasonCode {
    match reason {
        _ if version == ProtocolVersion::V5 => reason,
        ReasonCode::Banned => ReasonCode::NotAuthorized,
        other => other,
    }
}

fn properties(method: &str, data: Option<&str>) -> Properties {
    let properties = PropertiesBuilder::new().text(PropertyId::AuthenticationMethod, method);
    data.into_iter()
        .fold(properties, |all, data| all.binary(PropertyId::AuthenticationData, data.as_bytes()))
        .build()
}

pub(crate) fn with_method(client_id: &str, method: &str, data: Option<&str>) -> Connect {
    let mut connect = connect_packet(ProtocolVersion::V5, client_id);
    connect.properties = properties(method, data);
    connect
}

pub(crate) fn auth(reason: ReasonCode, method: &str, data: &str) -> Packet {
    Packet::Auth(Disconnect { reason, properties: properties(method, Some(data)) })
}

/// Authentication Data of AUTH 0x18.
pub(crate) async fn challenge<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) -> String {
    match client.next().await {
        Some(Packet::Auth(auth)) if auth.reason == ReasonCode::ContinueAuthentication => {
            let data = auth.properties.binary(PropertyId::AuthenticationData).unwrap();
            String::from_utf8(data.to_vec()).unwrap()
        }
        other => panic!("no challenge: {other:?}"),
    }
}

/// Connects by SCRAM; the answer, and the Authentication Data that proves the server.
async fn by_scram(
    address: SocketAddr,
    algorithm: Algorithm,
    user: &str,
    password: &str,
) -> (Client, ConnAck, String) {
    let (method, first) = (algorithm.method(), client_first(user));
    let mut client = Client::open(address, ProtocolVersion::V5).await;
    client.send(Packet::Connect(Box::new(with_method("scram", method, Some(&first))))).await;
    let server_first = challenge(&mut client).await;
    let (answer, expected) = client_final(algorithm, password, &first, &server_first);
    client.send(auth(ReasonCode::ContinueAuthentication, method, &answer)).await;
    match client.next().await {
        Some(Packet::ConnAck(connack)) => (client, connack, expected),
        other => panic!("no CONNACK: {other:?}"),
    }
}

pub(crate) fn known() -> Vec<KeyValue> {
    vec![
        credentials(1, 1, basic("u", Some(cheap("secret")), vec![allow("#")])),
        credentials(2, 1, basic("open", None, vec![allow("#")])),
        credentials(3, 1, x509("device", vec![allow("#")])),
        credentials(4, 1, scram(Algorithm::Sha256, "s256", "pencil", vec![allow("#")])),
        credentials(5, 1, scram(Algorithm::Sha512, "s512", "pencil", vec![allow("#")])),
    ]
}

async fn plane(providers: &[&str]) -> Plane {
    let bus = TestBus::new();
    put_credentials(&bus, &known()).await;
    let settings: Vec<_> = providers.iter().map(|name| provider(name, "")).collect();
    put_settings(&bus, &settings).await;
    Plane::with(bus, config()).await
}

/// [MQTT-3.2.2-4]
/// [MQTT-3.2.2-5]
/// [MQTT5-3.1.4-2]
/// [MQTT5-3.2.2-6]
/// [MQTT5-3.2.2-7]
#[tokio::test]
async fn by_password_those_are_let_in_who_know_it_in_every_version_of_mqtt() {
    let plane = plane(&["MQTT_BASIC"]).await;
    for version in VERSIONS {
        for (user, password, expected) in [
            ("u", Some("secret"), ReasonCode::Success),
            ("u", Some("Secret"), ReasonCode::NotAuthorized),
            ("u", Some(""), ReasonCode::NotAuthorized),
            ("u", None, ReasonCode::NotAuthorized),
            ("unknown", Some("secret"), ReasonCode::NotAuthorized),
            ("open", Some("whatever"), ReasonCode::Success),
            ("open", None, ReasonCode::Success),
        ] {
            let connect = with_password(version, "matrix", user, password);
            assert_eq!(code(plane.address, connect).await, expected, "{version:?} {user} {password:?}");
        }
        let anonymous = connect_packet(version, "matrix");
        assert_eq!(code(plane.address, anonymous).await, ReasonCode::NotAuthorized, "{version:?}");
    }
    let count = |outcome: &str| {
        plane.metric(&format!("tbmq_auth_answers_total{{provider=\"Basic\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((count("Success"), count("Skipped")), (9, 15));
    assert_eq!(plane.metric("tbmq_auth_refused_total{reason=\"NotAuthorized\"}"), 15);
    assert_eq!(plane.metric("tbmq_auth_credentials"), 5);
}

#[tokio::test]
async fn without_a_provider_everyone_is_let_in_in_every_version_of_mqtt() {
    let plane = plane(&[]).await;
    for version in VERSIONS {
        for connect in
            [connect_packet(version, "anybody"), with_password(version, "anybody", "u", Some("wrong"))]
        {
            assert_eq!(code(plane.address, connect).await, ReasonCode::Success, "{version:?}");
        }
    }
}

#[tokio::test]
async fn by_certificate_those_are_let_in_whose_chain_has_the_common_name() {
    let files = Files::new();
    let bus = TestBus::new();
    put_credentials(&bus, &known()).await;
    put_settings(&bus, &[provider("X_509", "{}"), provider("MQTT_BASIC", "")]).await;
    let config = files.config(|tls| {
        tls.client_auth = ClientAuth::Want;
        tls.client_ca = Some(files.path("ca.pem"));
    });
    let plane = Plane::with(bus, config).await;
    for version in VERSIONS {
        for (name, user, expected) in [
            (Some("device"), None, ReasonCode::Success),
            (Some("device"), Some(("u", "wrong")), ReasonCode::Success),
            (Some("other"), None, ReasonCode::NotAuthorized),
            (Some("other"), Some(("u", "secret")), ReasonCode::Success),
            (None, None, ReasonCode::NotAuthorized),
            (None, Some(("u", "secret")), ReasonCode::Success),
        ] {
            let identity = name.map(|name| files.clients.issue(name));
            let stream = shake(plane.at("mqtts"), &files.server, identity).await.unwrap();
            let mut client = Client::over(stream, version);
            let connect = match user {
                Some((user, password)) => with_password(version, "tls", user, Some(password)),
                None => connect_packet(version, "tls"),
            };
            let reason = answer(&mut client, connect).await.reason;
            assert_eq!(reason, expected, "{version:?} {name:?} {user:?}");
        }
        // Without TLS nobody has a certificate.
        let plain = connect_packet(version, "plain");
        assert_eq!(code(plane.address, plain).await, ReasonCode::NotAuthorized, "{version:?}");
    }
}

/// [MQTT5-4.12.0-2]
/// [MQTT5-4.12.0-4]
/// [MQTT5-4.12.0-5]
#[tokio::test]
async fn by_scram_those_are_let_in_who_know_the_password_and_the_server_proves_that_it_does() {
    let plane = plane(&["SCRAM"]).await;
    for (algorithm, user) in [(Algorithm::Sha256, "s256"), (Algorithm::Sha512, "s512")] {
        let (mut client, connack, expected) = by_scram(plane.address, algorithm, user, "pencil").await;
        assert_eq!(connack.reason, ReasonCode::Success);
        let told = connack.properties.text(PropertyId::AuthenticationMethod);
        assert_eq!(told.as_deref(), Some(algorithm.method()));
        let proof = connack.properties.binary(PropertyId::AuthenticationData);
        assert_eq!(proof.as_deref(), Some(expected.as_bytes()));
        client.subscribed("a", Qos::AtMostOnce).await;
        let other = if algorithm == Algorithm::Sha256 { "s512" } else { "s256" };
        for (user, password) in [(user, "pencils"), ("nobody", "pencil"), (other, "pencil")] {
            let (_, connack, _) = by_scram(plane.address, algorithm, user, password).await;
            assert_eq!(connack.reason, ReasonCode::NotAuthorized, "{user} {password}");
        }
    }
}

/// [MQTT5-4.12.0-1]
#[tokio::test]
async fn mistakes_with_methods_have_their_codes() {
    let plane = plane(&["SCRAM"]).await;
    let first = client_first("s256");
    for (method, data, expected) in [
        ("PLAIN", Some("x"), ReasonCode::BadAuthenticationMethod),
        ("PLAIN", None, ReasonCode::BadAuthenticationMethod),
        ("SCRAM-SHA-1", Some("x"), ReasonCode::BadAuthenticationMethod),
        ("SCRAM-SHA-256", None, ReasonCode::UnspecifiedError),
        ("SCRAM-SHA-256", Some("nonsense"), ReasonCode::NotAuthorized),
    ] {
        let connect = with_method("mistaken", method, data);
        assert_eq!(code(plane.address, connect).await, expected, "{method} {data:?}");
    }
    // Those who name no method are not let in although no other provider is enabled.
    for version in VERSIONS {
        let connect = with_password(version, "mistaken", "s256", Some("pencil"));
        assert_eq!(code(plane.address, connect).await, ReasonCode::NotAuthorized);
    }
    for (reply, expected) in [
        (("SCRAM-SHA-512", "c=biws"), ReasonCode::BadAuthenticationMethod),
        (("SCRAM-SHA-256", "nonsense"), ReasonCode::NotAuthorized),
    ] {
        let mut client = Client::open(plane.address, ProtocolVersion::V5).await;
        let connect = with_method("mistaken", "SCRAM-SHA-256", Some(&first));
        client.send(Packet::Connect(Box::new(connect))).await;
        challenge(&mut client).await;
        client.send(auth(ReasonCode::ContinueAuthentication, reply.0, reply.1)).await;
        match client.next().await {
            Some(Packet::ConnAck(connack)) => assert_eq!(connack.reason, expected, "{reply:?}"),
            other => panic!("{other:?}"),
        }
    }
    let disabled = self::plane(&["MQTT_BASIC"]).await;
    let connect = with_method("mistaken", "SCRAM-SHA-256", Some(&first));
    assert_eq!(code(disabled.address, connect).await, ReasonCode::NotAuthorized);
}

#[tokio::test]
async fn who_is_blocked_is_told_so_whatever_it_proves() {
    let bus = TestBus::new();
    put_credentials(&bus, &known()).await;
    put_settings(&bus, &[provider("MQTT_BASIC", "")]).await;
    let (key, value) = blocked_client("matrix", 0);
    put(&bus, &Catalogue::default().blocked_clients(), &key, Some(&value)).await;
    let plane = Plane::with(bus, config()).await;
    for version in VERSIONS {
        let connect = with_password(version, "matrix", "u", Some("secret"));
        assert_eq!(code(plane.address, connect).await, told(version, ReasonCode::Banned), "{version:?}");
        let other = with_password(version, "other", "u", Some("secret"));
        assert_eq!(code(plane.address, other).await, ReasonCode::Success, "{version:?}");
    }
    assert_eq!(plane.metric("tbmq_auth_refused_total{reason=\"Blocked\"}"), 3);
}

#[tokio::test]
async fn a_client_that_is_refused_takes_nothing_from_the_one_that_has_the_client_id() {
    let plane = plane(&["MQTT_BASIC"]).await;
    for version in VERSIONS {
        let connect = with_password(ProtocolVersion::V5, "victim", "u", Some("secret"));
        let mut victim = Client::with(plane.address, connect).await.0;
        victim.subscribed("a", Qos::AtLeastOnce).await;
        let thief = with_password(version, "victim", "u", Some("guessed"));
        assert_eq!(code(plane.address, thief).await, ReasonCode::NotAuthorized);
        victim.publish("a", Qos::AtLeastOnce, 1, "still here").await;
        assert_eq!(victim.puback().await.reason, ReasonCode::Success);
        victim.message().await;
        victim.leave().await;
    }
}
