//! SCRAM and JSON Web Tokens as libraries that we did not write have them: scramp and PyJWT, with Paho for Python.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tbmq_e2e::deployment::Deployment;
use tbmq_harness::{Need, libraries::Library, ready};
use tbmq_mqtt::packet::{ProtocolVersion, ReasonCode};

use super::broker::{Broker, may_publish, refused_with};
use crate::clients::agent::Program;

/// A secret that both sides know.
const SECRET: &str = "a-secret-of-more-than-32-bytes-for-hmac";

fn connect(broker: &Broker, client: &str, version: u8, rest: &Value) -> Value {
    let mut command = json!({ "do": "connect", "client": client, "version": version, "clean": true,
        "url": format!("mqtt://{}", broker.deployment.mqtt()) });
    let (Some(command_fields), Some(rest)) = (command.as_object_mut(), rest.as_object()) else {
        unreachable!("both are objects")
    };
    command_fields.extend(rest.clone());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn scramp_and_the_broker_prove_themselves_to_each_other() -> Result<()> {
    let library = Library::PahoPython;
    if !ready("scramp_and_the_broker_prove_themselves_to_each_other", &[Need::Library(library)]) {
        return Ok(());
    }
    let broker = Broker::new(Deployment::standalone()?)?;
    let mut agent = Program::start(library)?;
    for (user, algorithm) in [("u256", "sha-256"), ("u512", "sha-512")] {
        broker.tell(
            &[
                "credentials",
                "create",
                "scram",
                user,
                "--username",
                user,
                "--password-file",
                "pw",
                "--algorithm",
                algorithm,
            ],
            &["allow both scram/${username}/#"],
        )?;
    }
    let scram = |user: &str, mechanism: &str, password: &str| json!({ "scram": { "mechanism": mechanism, "username": user, "password": password } });
    // Disabled, it lets nobody in.
    let refused = agent.ask(&connect(&broker, "a", 5, &scram("u256", "SCRAM-SHA-256", "s3same")));
    ensure!(refused.is_err(), "{refused:?}");
    broker.tell(&["auth", "enable", "scram"], &[])?;
    for (client, user, mechanism) in [("a", "u256", "SCRAM-SHA-256"), ("b", "u512", "SCRAM-SHA-512")] {
        let good = scram(user, mechanism, "s3same");
        agent.ask(&connect(&broker, client, 5, &good)).with_context(|| mechanism.to_owned())?;
        for (user, mechanism, password) in
            [(user, mechanism, "wrong"), ("nobody", mechanism, "s3same"), (user, "SCRAM-SHA-1", "s3same")]
        {
            let bad = agent.ask(&connect(&broker, "bad", 5, &scram(user, mechanism, password)));
            ensure!(bad.is_err(), "{user} with {mechanism} and {password}: {bad:?}");
        }
        let filter = format!("scram/{user}/#");
        let subscribe = json!({ "do": "subscribe", "client": client, "filter": filter, "qos": 1 });
        assert_eq!(agent.ask(&subscribe)?["granted"], 1);
        let again = json!({ "do": "authenticate", "client": client, "scram": good["scram"] });
        agent.ask(&again).context("a second proof")?;
        let topic = format!("scram/{user}/x");
        let publish = json!({ "do": "publish", "client": client, "topic": topic, "payload": "p", "qos": 1, "retain": false });
        agent.ask(&publish)?;
        assert_eq!(agent.ask(&json!({ "do": "receive", "client": client }))?["topic"], *topic);
        agent.ask(&json!({ "do": "disconnect", "client": client }))?;
    }
    // The keys that TBMQ keeps of RFC 7677's example.
    let value = json!({ "userName": "user", "salt": "W22ZaJ0SNY7soEsUEjb6gQ==", "algorithm": "SHA_256",
        "storedKey": "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=", "serverKey": "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=" });
    let old = json!({ "name": "old", "clientType": "DEVICE", "credentialsType": "SCRAM", "credentialsValue": value.to_string() });
    broker.write("tbmq.json", &old.to_string())?;
    broker.tell(&["credentials", "import", "--from", "tbmq", "tbmq.json"], &[])?;
    broker
        .eventually(&["credentials", "get", "old"], |one| one["observedRevision"] == one["revision"])
        .await?;
    agent.ask(&connect(&broker, "old", 5, &scram("user", "SCRAM-SHA-256", "pencil"))).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_by_pyjwt_let_in_as_providers_are_enabled_and_ordered() -> Result<()> {
    let library = Library::PahoPython;
    if !ready("tokens_by_pyjwt_let_in_as_providers_are_enabled_and_ordered", &[Need::Library(library)]) {
        return Ok(());
    }
    let broker = Broker::new(Deployment::standalone()?)?;
    let mut agent = Program::start(library)?;
    let configuration = json!({
        "type": "JWT", "defaultClientType": "DEVICE",
        "jwtVerifierConfiguration": { "jwtVerifierType": "ALGORITHM_BASED",
            "jwtSignAlgorithmConfiguration": { "algorithm": "HMAC_BASED", "secret": SECRET } },
        "authClaims": { "sub": "${username}" },
        "authRules": { "pubAuthRulePatterns": ["jwt/.*"], "subAuthRulePatterns": ["jwt/.*"] },
    });
    broker.write("jwt.json", &configuration.to_string())?;
    broker.tell(&["auth", "update", "jwt", "-f", "jwt.json"], &[])?;
    let shown = broker.tell(&["auth", "get", "jwt", "-o", "json"], &[])?;
    ensure!(!shown.contains(SECRET), "the secret is shown: {shown}");
    broker.tell(
        &["credentials", "create", "basic", "basic", "--username", "basic", "--password-file", "pw"],
        &["allow both #"],
    )?;
    broker.tell(&["auth", "enable", "basic"], &[])?;

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let mut token = |claims: Value, secret: &str| -> Result<String> {
        let command = json!({ "do": "token", "claims": claims, "secret": secret, "algorithm": "HS256" });
        Ok(agent.ask(&command)?["token"].as_str().context("no token")?.to_owned())
    };
    let good = token(json!({ "sub": "ann", "exp": now + 600 }), SECRET)?;
    let expired = token(json!({ "sub": "ann", "exp": now - 600 }), SECRET)?;
    let foreign =
        token(json!({ "sub": "ann", "exp": now + 600 }), "another-secret-of-more-than-32-bytes-too")?;
    let login = Some(("ann", good.as_str()));
    let refused = broker.connect("jwt", ProtocolVersion::V5, login).await;
    refused_with(refused, ReasonCode::NotAuthorized).context("JWT is not enabled yet")?;

    broker.tell(&["auth", "enable", "jwt"], &[])?;
    broker.tell(&["auth", "order", "set", "jwt", "basic"], &[])?;
    let order = broker.json(&["auth", "order", "get"])?;
    assert_eq!(order["priorities"], json!(["JWT", "MQTT_BASIC", "X_509", "HTTP"]));
    for (version, level) in [(ProtocolVersion::V31, 3), (ProtocolVersion::V311, 4), (ProtocolVersion::V5, 5)]
    {
        let rest = json!({ "username": "ann", "password": good });
        agent.ask(&connect(&broker, "paho", level, &rest)).with_context(|| format!("{version:?}"))?;
        agent.ask(&json!({ "do": "disconnect", "client": "paho" }))?;
        for (name, password) in [("ann", &expired), ("ann", &foreign), ("bob", &good)] {
            let refused = broker.connect("jwt", version, Some((name, password.as_str()))).await;
            refused_with(refused, ReasonCode::NotAuthorized).with_context(|| format!("{name} {password}"))?;
        }
    }
    let mut client = broker.connect("jwt", ProtocolVersion::V5, login).await?;
    ensure!(may_publish(&mut client, "jwt/a").await?);
    ensure!(!may_publish(&mut client, "other").await?);
    // Who has no token is asked for a password next, and all reasons are told.
    broker.connect("basic", ProtocolVersion::V5, Some(("basic", "s3same"))).await?.disconnect().await?;
    refused_with(
        broker.connect("guess", ProtocolVersion::V5, Some(("basic", "guess"))).await,
        ReasonCode::NotAuthorized,
    )?;
    let seen = broker.eventually(&["unauthorized", "get", "guess"], |one| one["reason"].is_string()).await?;
    let reason = seen["reason"].as_str().unwrap_or_default();
    let (jwt, basic) = reason.split_once(" | ").with_context(|| reason.to_owned())?;
    ensure!(jwt.starts_with("JWT") && basic.starts_with("MQTT_BASIC"), "{reason}");

    broker.tell(&["auth", "disable", "jwt"], &[])?;
    refused_with(broker.connect("late", ProtocolVersion::V5, login).await, ReasonCode::NotAuthorized)
        .context("JWT is disabled again")
}
