//! Who may connect and what they may do, ruled through gRPC and `tbmqctl` while clients are connected, on the embedded bus
//! and on Kafka with PostgreSQL.

mod broker;
mod independent;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tbmq_e2e::deployment::Deployment;
use tbmq_harness::{Need, kafka::Kafka, postgres::Postgres, ready};
use tbmq_mqtt::packet::{Packet, ProtocolVersion, ReasonCode};
use tbmq_proto::control::{
    AccessRule, BasicCredentials, CreateCredentialsRequest, Credentials, DeleteCredentialsRequest,
    GetCredentialsRequest, ListCredentialsRequest, UpdateCredentialsRequest,
    access_rule::{Action, Effect, Topic},
    credentials::Proof,
};
use tonic::Code;

use self::broker::{Broker, may_publish, refused_with, subscribed};

/// How long a change may take to reach connected clients (issue: "within a second").
const AT_ONCE: Duration = Duration::from_secs(1);

/// Lets nobody in by chance: each claim has users and clients of its own.
async fn everything(deployment: Deployment) -> Result<()> {
    let mut broker = Broker::new(deployment)?;
    who_comes_first_time(&mut broker).await.context("from anonymous to authenticated")?;
    rules_follow(&mut broker).await.context("rules follow")?;
    a_deleted_credential_ends_its_clients(&mut broker).await.context("a deleted credential")?;
    blocked_clients_are_out_until_they_are_not(&mut broker).await.context("blocked clients")?;
    refusals_are_remembered(&mut broker).await.context("refusals")?;
    the_services_keep_their_word(&mut broker).await.context("the services")?;
    what_tbmq_had_works_here(&mut broker).await.context("what TBMQ had")?;
    broker.deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_connect_is_ruled_while_clients_are_connected_on_the_embedded_bus() -> Result<()> {
    everything(Deployment::standalone()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_connect_is_ruled_while_clients_are_connected_on_kafka_and_postgresql() -> Result<()> {
    let name = "who_may_connect_is_ruled_while_clients_are_connected_on_kafka_and_postgresql";
    if !ready(name, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    everything(Deployment::planes(Kafka::shared(), Postgres::shared())?).await
}

/// From a broker that asks nobody to one that asks everybody.
async fn who_comes_first_time(broker: &mut Broker) -> Result<()> {
    // As long as no provider is enabled.
    broker.connect("anyone", ProtocolVersion::V311, None).await?.disconnect().await?;
    broker.tell(
        &["credentials", "create", "basic", "pumps", "--username", "pumps", "--password-file", "pw"],
        &["allow both pumps/${clientId}/#"],
    )?;
    broker.tell(&["auth", "enable", "basic", "scram"], &[])?;
    let list = broker.json(&["auth", "list"])?;
    ensure!(list[0]["type"] == "MQTT_BASIC" && list[0]["enabled"] == true, "{list}");

    for (version, reason) in [
        (ProtocolVersion::V31, ReasonCode::NotAuthorized),
        (ProtocolVersion::V311, ReasonCode::NotAuthorized),
        (ProtocolVersion::V5, ReasonCode::NotAuthorized),
    ] {
        refused_with(broker.connect("c1", version, None).await, reason).context("without a password")?;
        let wrong = Some(("pumps", "wrong"));
        refused_with(broker.connect("c1", version, wrong).await, reason).context("with a wrong password")?;
        let unknown = Some(("nobody", "s3same"));
        refused_with(broker.connect("c1", version, unknown).await, reason).context("with an unknown name")?;
        broker.connect("c1", version, Some(("pumps", "s3same"))).await?.disconnect().await?;
    }

    let mut client = broker.connect("c1", ProtocolVersion::V5, Some(("pumps", "s3same"))).await?;
    ensure!(may_publish(&mut client, "pumps/c1/level").await?);
    ensure!(!may_publish(&mut client, "pumps/c2/level").await?);
    assert_eq!(subscribed(&mut client, "pumps/c1/#").await?, ReasonCode::GrantedQos1);
    for filter in ["pumps/#", "#", "pumps/+/x", "$share/g/pumps/#"] {
        assert_eq!(subscribed(&mut client, filter).await?, ReasonCode::NotAuthorized, "{filter}");
    }
    client.disconnect().await
}

/// A change applies to clients that are connected, within a second.
async fn rules_follow(broker: &mut Broker) -> Result<()> {
    let mut client = broker.connect("c1", ProtocolVersion::V5, Some(("pumps", "s3same"))).await?;
    ensure!(!may_publish(&mut client, "tanks/a").await?);
    broker.tell(&["credentials", "update", "pumps", "--add-rule", "allow publish tanks/#"], &[])?;
    let told = Instant::now();
    while !may_publish(&mut client, "tanks/a").await? {
        ensure!(told.elapsed() < AT_ONCE, "the new rule is not there after {:?}", told.elapsed());
    }
    // Denial wins, and comes as fast.
    broker.tell(&["credentials", "update", "pumps", "--add-rule", "deny publish tanks/a"], &[])?;
    let told = Instant::now();
    while may_publish(&mut client, "tanks/a").await? {
        ensure!(told.elapsed() < AT_ONCE, "the denial is not there after {:?}", told.elapsed());
    }
    ensure!(may_publish(&mut client, "tanks/b").await?);
    client.disconnect().await
}

async fn a_deleted_credential_ends_its_clients(broker: &mut Broker) -> Result<()> {
    broker.tell(
        &["credentials", "create", "basic", "brief", "--username", "brief", "--password-file", "pw"],
        &["allow both brief/#"],
    )?;
    let login = Some(("brief", "s3same"));
    let mut new = broker.connect("brief-5", ProtocolVersion::V5, login).await?;
    let mut old = broker.connect("brief-4", ProtocolVersion::V311, login).await?;
    let mut other = broker.connect("c1", ProtocolVersion::V5, Some(("pumps", "s3same"))).await?;
    broker.tell(&["credentials", "delete", "brief", "--yes"], &[])?;
    match new.receive_within(AT_ONCE).await.context("the client is still there")? {
        Packet::Disconnect(told) => assert_eq!(told.reason, ReasonCode::NotAuthorized),
        packet => anyhow::bail!("{packet:?} instead of a DISCONNECT"),
    }
    let ended = old.receive_within(AT_ONCE).await.expect_err("3.1.1 has nothing to be told by");
    ensure!(ended.to_string().contains("closed the connection"), "{ended:#}");
    other.send(&Packet::PingReq).await?;
    assert_eq!(other.receive().await?, Packet::PingResp, "another credential's client stays");
    refused_with(broker.connect("brief-5", ProtocolVersion::V5, login).await, ReasonCode::NotAuthorized)?;
    other.disconnect().await
}

async fn blocked_clients_are_out_until_they_are_not(broker: &mut Broker) -> Result<()> {
    let login = Some(("pumps", "s3same"));
    for (client_id, who) in [
        ("block-1", &["--client-id", "block-1"][..]),
        ("block-2", &["--pattern", "block-2.*", "--of", "client-id"]),
        ("block-3", &["--username", "pumps"]),
        ("block-4", &["--address", "127.0.0.0/8"]),
    ] {
        let mut client = broker.connect(client_id, ProtocolVersion::V5, login).await?;
        let create = [&["blocked", "create", "-o", "name"], who].concat();
        let name = broker.tell(&create, &[])?.trim().to_owned();
        match client.receive_within(AT_ONCE).await.with_context(|| format!("{who:?}: still there"))? {
            Packet::Disconnect(told) => assert_eq!(told.reason, ReasonCode::AdministrativeAction, "{who:?}"),
            packet => anyhow::bail!("{packet:?} instead of a DISCONNECT"),
        }
        for (version, reason) in
            [(ProtocolVersion::V311, ReasonCode::NotAuthorized), (ProtocolVersion::V5, ReasonCode::Banned)]
        {
            refused_with(broker.connect(client_id, version, login).await, reason)?;
        }
        let listed = broker.json(&["blocked", "list"])?;
        ensure!(listed[0]["status"] == "ACTIVE" && listed[0]["name"] == name, "{listed}");
        broker.tell(&["blocked", "delete", &name], &[])?;
        broker.eventually_connects(client_id, login).await.with_context(|| format!("{who:?} is over"))?;
    }
    // One that ends by itself.
    broker.tell(&["blocked", "create", "--client-id", "block-5", "--expires", "2s"], &[])?;
    refused_with(broker.connect("block-5", ProtocolVersion::V5, login).await, ReasonCode::Banned)?;
    broker.eventually_connects("block-5", login).await.context("its time is over")
}

async fn refusals_are_remembered(broker: &mut Broker) -> Result<()> {
    for _ in 0..2 {
        let refused = broker.connect("guess", ProtocolVersion::V5, Some(("pumps", "guess"))).await;
        refused_with(refused, ReasonCode::NotAuthorized)?;
    }
    let seen = broker
        .eventually(&["unauthorized", "get", "guess"], |one| one["count"].as_u64() == Some(2))
        .await
        .context("two refusals")?;
    ensure!(seen["reason"].as_str().is_some_and(|reason| reason.contains("MQTT_BASIC")), "{seen}");
    ensure!(
        seen["userName"] == "pumps" && seen["passwordProvided"] == true && seen["tlsUsed"] == false,
        "{seen}"
    );
    ensure!(seen["address"].as_str().is_some_and(|address| address.starts_with("127.0.0.1")), "{seen}");
    broker.connect("guess", ProtocolVersion::V5, Some(("pumps", "s3same"))).await?.disconnect().await?;
    let of_guess =
        |list: &Value| list.as_array().is_some_and(|all| all.iter().all(|one| one["clientId"] != "guess"));
    broker.eventually(&["unauthorized", "list"], of_guess).await.context("it is forgotten on success")?;
    broker.tell(&["unauthorized", "clear", "--yes"], &[])?;
    broker.eventually(&["unauthorized", "list"], |list| *list == json!([])).await.context("cleared").map(drop)
}

/// The contract of the services, as far as no flag of `tbmqctl` shows it.
async fn the_services_keep_their_word(broker: &mut Broker) -> Result<()> {
    let mut client = broker.credentials().await?;
    let rule = AccessRule {
        effect: Effect::Allow.into(),
        action: Action::Publish.into(),
        topic: Some(Topic::Filter("grpc/#".to_owned())),
        ..AccessRule::default()
    };
    let basic = BasicCredentials {
        user_name: Some("grpc".to_owned()),
        password: Some("s3same".to_owned()),
        rules: vec![rule],
        ..BasicCredentials::default()
    };
    let credentials = Credentials {
        display_name: "grpc".to_owned(),
        proof: Some(Proof::Basic(basic)),
        ..Credentials::default()
    };
    let request = CreateCredentialsRequest {
        credentials: Some(credentials.clone()),
        request_id: "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
        ..CreateCredentialsRequest::default()
    };
    let created = client.create_credentials(request.clone()).await?.into_inner();
    assert_eq!(created.credentials_id, "username|grpc");
    assert_eq!(created.observed_revision, created.revision, "all data planes have it");
    ensure!(!format!("{created:?}").contains("s3same"), "{created:?}");
    let again = client.create_credentials(request.clone()).await?.into_inner();
    assert_eq!(again.name, created.name, "a call that is sent twice creates one");
    let taken = CreateCredentialsRequest { request_id: String::new(), ..request };
    assert_eq!(client.create_credentials(taken).await.unwrap_err().code(), Code::AlreadyExists);

    let login = Some(("grpc", "s3same"));
    let mut connected = broker.connect("grpc", ProtocolVersion::V5, login).await.context("at once")?;
    ensure!(may_publish(&mut connected, "grpc/a").await?);
    let listed = client.list_credentials(ListCredentialsRequest {
        user_name: "GRP".to_owned(),
        ..ListCredentialsRequest::default()
    });
    assert_eq!(listed.await?.into_inner().credentials.len(), 1);

    let renamed = Credentials { display_name: "renamed".to_owned(), ..created.clone() };
    let update = |credentials: &Credentials| UpdateCredentialsRequest {
        credentials: Some(credentials.clone()),
        ..UpdateCredentialsRequest::default()
    };
    let updated = client.update_credentials(update(&renamed)).await?.into_inner();
    ensure!(updated.revision > created.revision, "{updated:?}");
    assert_eq!(client.update_credentials(update(&renamed)).await.unwrap_err().code(), Code::Aborted);
    broker
        .connect("grpc-2", ProtocolVersion::V5, login)
        .await
        .context("the password stays")?
        .disconnect()
        .await?;

    let delete = |etag: &str| DeleteCredentialsRequest {
        name: created.name.clone(),
        etag: etag.to_owned(),
        ..DeleteCredentialsRequest::default()
    };
    assert_eq!(client.delete_credentials(delete(&created.etag)).await.unwrap_err().code(), Code::Aborted);
    client.delete_credentials(delete(&updated.etag)).await?;
    let gone = client.get_credentials(GetCredentialsRequest { name: created.name.clone() });
    assert_eq!(gone.await.unwrap_err().code(), Code::NotFound);
    Ok(())
}

/// Hashes and keys of TBMQ, whose passwords nobody tells us.
async fn what_tbmq_had_works_here(broker: &mut Broker) -> Result<()> {
    // The hash is a test vector of jBCrypt, the keys are those of RFC 7677.
    let basic = json!({ "userName": "old", "password": "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        "authRules": { "pubAuthRulePatterns": ["\\Qold.x\\E/\\d+"], "subAuthRulePatterns": [] } });
    let scram = json!({ "userName": "user", "salt": "W22ZaJ0SNY7soEsUEjb6gQ==", "algorithm": "SHA_256",
        "storedKey": "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=", "serverKey": "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        "authRules": { "pubAuthRulePatterns": [".*"], "subAuthRulePatterns": [".*"] } });
    let bad = json!({ "userName": "bad", "authRules": { "pubAuthRulePatterns": ["a(?=b)"] } });
    let of_tbmq = |name: &str, kind: &str, value: &Value| json!({ "name": name, "clientType": "DEVICE", "credentialsType": kind, "credentialsValue": value.to_string() });
    let all = json!([
        of_tbmq("old", "MQTT_BASIC", &basic),
        of_tbmq("bad", "MQTT_BASIC", &bad),
        of_tbmq("old scram", "SCRAM", &scram),
    ]);
    broker.write("tbmq.json", &all.to_string())?;
    let import = ["credentials", "import", "--from", "tbmq", "tbmq.json"];
    let (code, stdout, stderr) = broker.run(&[&import[..], &["--dry-run"]].concat())?;
    ensure!(code == 1 && stderr.contains("dry run: nothing was saved"), "{code}: {stdout}{stderr}");
    let (code, stdout, stderr) = broker.run(&import)?;
    ensure!(code == 1 && stderr.starts_with("2 imported, 1 refused"), "{code}: {stdout}{stderr}");
    ensure!(stdout.contains("refused  bad") && stdout.contains("a(?=b)"), "{stdout}");
    broker.eventually_connects("old", Some(("old", "U*U"))).await?;
    refused_with(
        broker.connect("old", ProtocolVersion::V5, Some(("old", "U*V"))).await,
        ReasonCode::NotAuthorized,
    )?;
    let mut client = broker.connect("old", ProtocolVersion::V5, Some(("old", "U*U"))).await?;
    ensure!(may_publish(&mut client, "old.x/17").await?);
    ensure!(!may_publish(&mut client, "oldyx/17").await?);
    assert_eq!(subscribed(&mut client, "old.x/17").await?, ReasonCode::NotAuthorized);
    client.disconnect().await?;
    let (code, _, stderr) = broker.run(&import)?;
    ensure!(code == 1 && stderr.starts_with("2 here already, 1 refused"), "{stderr}");
    Ok(())
}
