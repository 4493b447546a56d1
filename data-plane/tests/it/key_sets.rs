//! Tokens whose keys are a set on a server that does not show it to everyone (broker spec §10.1, `JwtJwksBasicAuth` and
//! `JwtJwksMtls`).

use std::time::Duration;

use serde_json::{Value, json};
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{ProtocolVersion, Qos, ReasonCode},
};
use tokio::net::TcpStream;

use crate::{
    bus::TestBus,
    client::{Client, VERSIONS, connect_packet, subscription, text},
    http_server::{Authority, Reply, Server},
    outside::{asked, claims, configure, jwt, with_password},
    plane::{Plane, config, until},
    signer::{self, Signer},
};

/// The JWT provider with the set at this place, which it asks for with these credentials.
fn by_set(url: &str, credentials: &Value) -> Value {
    let mut provider = jwt();
    provider["jwtVerifierConfiguration"] =
        json!({ "jwtVerifierType": "JWKS", "endpoint": url, "credentials": credentials });
    provider["authRules"]["subAuthRulePatterns"] = json!(["allowed/.*"]);
    provider
}

/// Asserts that nobody is let in by the keys of this set as long as it is asked for with wrong credentials, and with the
/// right ones whoever shows a token of it, who may do what the rules say.
async fn only_the_right_credentials_get_the_keys(url: &str, own: &Signer, wrong: &[Value], right: &Value) {
    let plane = Plane::with(TestBus::new(), config()).await;
    let failures = || plane.metric("tbmq_auth_key_set_failures_total");
    let with_token = |version, signer: &Signer| with_password(version, "c", &signer.token(&claims("c")));
    let mut revision = 1;
    for credentials in wrong {
        let before = failures();
        configure(&plane.bus, "JWT", revision, &by_set(url, credentials)).await;
        until(|| failures() > before).await;
        for version in VERSIONS {
            let (mut client, reason) = asked(&plane, with_token(version, own)).await;
            assert_eq!(reason, ReasonCode::NotAuthorized, "{version:?} {credentials}");
            assert_eq!(client.next().await, None);
        }
        revision += 1;
    }
    configure(&plane.bus, "JWT", revision, &by_set(url, right)).await;
    let read =
        async { while asked(&plane, with_token(ProtocolVersion::V5, own)).await.1 != ReasonCode::Success {} };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("the set is read in time");
    for version in VERSIONS {
        for connect in [connect_packet(version, "c"), with_token(version, &Signer::new("own"))] {
            assert_eq!(asked(&plane, connect).await.1, ReasonCode::NotAuthorized, "{version:?}");
        }
        let (client, reason) = asked(&plane, with_token(version, own)).await;
        assert_eq!(reason, ReasonCode::Success, "{version:?}");
        rules_hold(client, version).await;
    }
}

async fn rules_hold(mut client: Client<TcpStream>, version: ProtocolVersion) {
    let filters = ["allowed/x", "other"].map(|filter| subscription(filter, Qos::AtMostOnce)).to_vec();
    let refused = if version.is_v5() { ReasonCode::NotAuthorized } else { ReasonCode::UnspecifiedError };
    assert_eq!(client.subscribe(filters, Properties::NONE).await, [ReasonCode::Success, refused]);
    client.publish("allowed/x", Qos::AtMostOnce, 0, "x").await;
    assert_eq!(text(&client.message().await), "x");
    client.publish("other", Qos::AtLeastOnce, 1, "x").await;
    if version.is_v5() {
        assert_eq!(client.puback().await.reason, ReasonCode::NotAuthorized);
    } else {
        assert_eq!(client.next().await, None, "a 3.x client is only closed");
    }
}

#[tokio::test]
async fn a_key_set_behind_a_password_is_read_with_it() {
    let own = Signer::new("own");
    // `Basic u:p`.
    let guarded = Reply::Guarded("Basic dTpw".to_owned(), signer::set(&[&own]).to_string());
    let server = Server::start(guarded).await;
    let basic = |password| json!({ "type": "basic", "username": "u", "password": password });
    let wrong = [json!({ "type": "anonymous" }), basic("P")];
    only_the_right_credentials_get_the_keys(&server.url("/keys"), &own, &wrong, &basic("p")).await;
}

#[tokio::test]
async fn a_key_set_for_known_certificates_is_read_with_one_over_tls() {
    let (own, authority, stranger) = (Signer::new("own"), Authority::new(), Authority::new());
    let server = Server::secured(Reply::json(&signer::set(&[&own])), &authority).await;
    let pem = |trusted: &Authority, issuer: &Authority| {
        let (certificate, key) = issuer.issue("data plane");
        json!({ "type": "cert.PEM", "caCert": trusted.pem, "cert": certificate, "privateKey": key })
    };
    let wrong = [
        json!({ "type": "cert.PEM", "caCert": authority.pem }),
        pem(&authority, &stranger),
        pem(&stranger, &authority),
    ];
    let right = pem(&authority, &authority);
    only_the_right_credentials_get_the_keys(&server.secured_url("/keys"), &own, &wrong, &right).await;
}
