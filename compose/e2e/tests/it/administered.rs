//! Sessions, subscriptions and retained messages as an operator sees and changes them: through gRPC and tbmqctl, with the
//! all-in-one and with two data planes over Kafka.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tbmq_e2e::deployment::{Deployment, Layout, Plane};
use tbmq_harness::{Need, client::Client, kafka::Kafka, postgres::Postgres, process, ready};
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Ack, Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
};
use tbmq_proto::control::{
    ClearSessionRequest, GetSessionRequest, ListSessionsRequest, SessionFilter, Subscription,
    UpdateSubscriptionsRequest, session_service_client::SessionServiceClient,
};
use tonic::{Code, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(60);

/// A deployment, and where two clients connect: at two data planes if there are.
struct World {
    deployment: Deployment,
    here: SocketAddr,
    there: SocketAddr,
    nodes: usize,
}

impl World {
    fn standalone() -> Result<Self> {
        let deployment = Deployment::standalone()?;
        let here = deployment.mqtt();
        Ok(Self { deployment, here, there: here, nodes: 1 })
    }

    fn over_kafka() -> Result<Self> {
        let deployment = Layout::of(1, 2, 0).start(Kafka::shared(), Postgres::shared())?;
        let here = deployment.address(Plane::Data.nth(1), "mqtt")?;
        let there = deployment.address(Plane::Data.nth(2), "mqtt")?;
        Ok(Self { deployment, here, there, nodes: 2 })
    }

    fn run(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let folder = process::data_dir()?;
        let server = format!("http://{}", self.deployment.grpc());
        let output = process::run("tbmqctl", arguments, &[("TBMQCTL_SERVER", &server)], folder.path())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().context("killed")?, text(&output.stdout), text(&output.stderr)))
    }

    /// What tbmqctl prints.
    fn tell(&self, arguments: &[&str]) -> Result<String> {
        let (code, stdout, stderr) = self.run(arguments)?;
        ensure!(code == 0, "{arguments:?} ended with {code}: {stderr}");
        Ok(stdout)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.tell(&[arguments, &["-o", "json"]].concat())?)?)
    }

    /// Client ids of `session list` with these options.
    fn listed(&self, options: &[&str]) -> Result<Vec<String>> {
        let told = self.tell(&[&["session", "list", "-o", "name"][..], options].concat())?;
        Ok(told.lines().map(str::to_owned).collect())
    }

    async fn sessions(&self) -> Result<SessionServiceClient<Channel>> {
        let address = format!("http://{}", self.deployment.grpc());
        Ok(SessionServiceClient::new(Channel::from_shared(address)?.connect().await?))
    }

    /// Waits until all data planes answer.
    async fn ready(&self) -> Result<()> {
        until("all data planes have a session", || {
            let nodes = self.json(&["node", "list"])?;
            let data = nodes
                .as_array()
                .into_iter()
                .flatten()
                .filter(|node| node["role"] == "DATA_PLANE" && node["session"] == true);
            Ok(data.count() == self.nodes)
        })
        .await
    }
}

/// Waits until a question has this answer.
async fn until(what: &str, asked: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !asked()? {
        ensure!(began.elapsed() < PATIENCE, "{what}: it never came to that");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn connect(broker: SocketAddr, client_id: &str, username: &str) -> Result<(Client, bool)> {
    let properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 3600).build();
    let connect = Connect {
        clean_start: false,
        properties,
        keep_alive: 60,
        username: (!username.is_empty()).then(|| username.into()),
        ..Connect::new(ProtocolVersion::V5, client_id)
    };
    let (client, connack) = Client::connect_with(broker, connect).await?;
    ensure!(connack.reason == ReasonCode::Success, "{connack:?}");
    Ok((client, connack.session_present))
}

async fn publish(client: &mut Client, topic: &str, retain: bool, payload: &'static str) -> Result<()> {
    let publish = Publish {
        dup: false,
        qos: Qos::AtLeastOnce,
        retain,
        topic: topic.into(),
        packet_id: Some(1),
        properties: Properties::NONE,
        payload: payload.into(),
    };
    client.send(&Packet::Publish(publish)).await?;
    match client.receive().await? {
        Packet::PubAck(ack) if !ack.reason.is_error() => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// What comes before the answer to a ping, acknowledged.
async fn heard(client: &mut Client) -> Result<Vec<String>> {
    client.send(&Packet::PingReq).await?;
    let mut all = Vec::new();
    loop {
        match client.receive().await? {
            Packet::Publish(publish) => {
                if let Some(packet_id) = publish.packet_id {
                    client.send(&Packet::PubAck(Ack::new(packet_id, ReasonCode::Success))).await?;
                }
                all.push(String::from_utf8(publish.payload.to_vec())?);
            }
            Packet::PingResp => return Ok(all),
            other => bail!("{other:?}"),
        }
    }
}

async fn filters_and_pages(world: &World) -> Result<()> {
    let mut clients = Vec::new();
    for number in 0..7 {
        let broker = if number % 2 == 0 { world.here } else { world.there };
        let username = if number < 3 { "alice" } else { "" };
        let (mut client, _) = connect(broker, &format!("c{number}"), username).await?;
        for filter in 0..number {
            client.subscribe(&format!("s/{filter}"), Qos::AtLeastOnce).await?;
        }
        clients.push(client);
    }
    // The last two go.
    clients.truncate(5);
    until("two are away", || Ok(world.listed(&["--state", "disconnected"])? == ["c5", "c6"])).await?;
    let cases: [(&[&str], &[&str]); 8] = [
        (&[], &["c0", "c1", "c2", "c3", "c4", "c5", "c6"]),
        (&["--state", "connected", "--search", "C4"], &["c4"]),
        (&["--subscriptions", ">=5"], &["c5", "c6"]),
        (&["--subscriptions", "!=0", "--username", "ALICE"], &["c1", "c2"]),
        (&["--type", "application"], &[]),
        (&["--clean-start", "false", "--address", "127.0.0.0/8", "--until", "1d"], &[]),
        (&["--sort", "subscription_count desc", "--limit", "2"], &["c6", "c5"]),
        (&["--sort", "username desc", "--limit", "3", "--since", "1h"], &["c2", "c1", "c0"]),
    ];
    for (options, expected) in cases {
        assert_eq!(world.listed(options)?, expected, "{options:?}");
    }
    let mut sessions = world.sessions().await?;
    let (mut paged, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListSessionsRequest {
            page_size: 2,
            page_token,
            filter: Some(SessionFilter { clean_start: Some(false), ..Default::default() }),
            order_by: "connect_time desc".to_owned(),
            ..Default::default()
        };
        let page = sessions.list_sessions(request).await?.into_inner();
        ensure!(page.silent_nodes.is_empty() && page.sessions.len() <= 2);
        paged.extend(page.sessions.into_iter().map(|one| one.client_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, ["c6", "c5", "c4", "c3", "c2", "c1", "c0"]);
    let counts = world.json(&["session", "counts"])?;
    assert_eq!((&counts["connected"], &counts["disconnected"]), (&5.into(), &2.into()));
    // In bulk, first as a question.
    let dry = world.tell(&["session", "disconnect", "--search", "c", "--dry-run"])?;
    assert_eq!(dry, "5 clients would be disconnected\n");
    assert_eq!(world.tell(&["session", "disconnect", "--search", "c", "--yes"])?, "disconnected 5 clients\n");
    for client in &mut clients {
        match client.receive().await? {
            Packet::Disconnect(told) => assert_eq!(told.reason, ReasonCode::AdministrativeAction),
            other => bail!("{other:?}"),
        }
    }
    until("all are away", || Ok(world.listed(&["--state", "disconnected"])?.len() == 7)).await?;
    assert_eq!(world.tell(&["session", "clear", "--all", "--yes"])?, "cleared 7 sessions\n");
    assert_eq!(world.listed(&[])?, [""; 0]);
    Ok(())
}

async fn clearing(world: &World) -> Result<()> {
    let (mut client, _) = connect(world.there, "pump", "").await?;
    client.subscribe("t", Qos::AtLeastOnce).await?;
    let (code, _, stderr) = world.run(&["session", "clear", "pump"])?;
    ensure!(code == 1 && stderr.contains("disconnect it first"), "{code} {stderr}");
    world.tell(&["session", "disconnect", "pump"])?;
    until("it is away", || Ok(world.listed(&["--state", "disconnected"])? == ["pump"])).await?;
    let (mut publisher, _) = connect(world.there, "publisher", "").await?;
    publish(&mut publisher, "t", false, "queued").await?;
    let got = world.json(&["session", "get", "pump"])?;
    assert_eq!((&got["state"], &got["details"]["queuedMessages"]), (&"DISCONNECTED".into(), &1.into()));
    let mut sessions = world.sessions().await?;
    let other = ClearSessionRequest { client_id: "pump".to_owned(), session_id: "other".to_owned() };
    let status = sessions.clear_session(other).await.err().context("another session was cleared")?;
    assert_eq!(status.code(), Code::Aborted);
    let session_id = got["sessionId"].as_str().context("no session id")?;
    world.tell(&["session", "clear", "pump", "--session-id", session_id])?;
    let missing = sessions.get_session(GetSessionRequest { client_id: "pump".to_owned() }).await;
    assert_eq!(missing.err().context("it is there")?.code(), Code::NotFound);
    let (mut client, was_there) = connect(world.there, "pump", "").await?;
    ensure!(!was_there, "its session is there");
    assert_eq!(heard(&mut client).await?, [""; 0], "its queue is gone");
    world.tell(&["session", "disconnect", "pump", "publisher"])?;
    until("both are away", || Ok(world.listed(&["--state", "disconnected"])?.len() == 2)).await?;
    world.tell(&["session", "clear", "pump", "publisher"])?;
    Ok(())
}

async fn subscriptions(world: &World) -> Result<()> {
    let (mut here, _) = connect(world.here, "here", "").await?;
    let (mut there, _) = connect(world.there, "there", "").await?;
    for client in [&mut here, &mut there] {
        client.subscribe("$share/workers/jobs/+", Qos::AtLeastOnce).await?;
        client.subscribe("old/#", Qos::AtLeastOnce).await?;
    }
    let all = world.json(&["subscription", "list", "--filter", "old"])?;
    assert_eq!(all.as_array().context("no list")?.len(), 2);
    let groups = world.json(&["subscription", "groups", "--share", "work"])?;
    assert_eq!((&groups[0]["filter"], &groups[0]["memberCount"]), (&"jobs/+".into(), &2.into()));

    let (mut publisher, _) = connect(world.there, "publisher", "").await?;
    publish(&mut publisher, "new/1", true, "retained").await?;
    let set = ["subscription", "set", "there", "--filter", "new/#", "--qos", "1", "--yes"];
    ensure!(world.tell(&set)?.contains("new/#"));
    assert_eq!(heard(&mut there).await?, [""; 0], "no packet comes of it");
    publish(&mut publisher, "old/1", false, "not any more").await?;
    publish(&mut publisher, "new/2", false, "live").await?;
    assert_eq!(heard(&mut there).await?, ["live"]);
    let filter = Subscription { filter: "away".to_owned(), qos: 1, ..Subscription::default() };
    drop(there);
    until("it is away", || Ok(world.listed(&["--state", "disconnected"])? == ["there"])).await?;
    let request = UpdateSubscriptionsRequest {
        client_id: "there".to_owned(),
        subscriptions: vec![filter],
        ..UpdateSubscriptionsRequest::default()
    };
    world.sessions().await?.update_subscriptions(request).await?;
    publish(&mut publisher, "away", false, "queued").await?;
    publish(&mut publisher, "new/3", false, "not any more").await?;
    let (mut there, was_there) = connect(world.there, "there", "").await?;
    ensure!(was_there);
    let mut got = Vec::new();
    while got.is_empty() {
        got = heard(&mut there).await?;
    }
    assert_eq!(got, ["queued"]);
    Ok(())
}

async fn retained(world: &World) -> Result<()> {
    let (mut publisher, _) = connect(world.here, "publisher", "").await?;
    for (topic, payload) in [("r/a", "one"), ("r/b", "two"), ("r/c/d", "three")] {
        publish(&mut publisher, topic, true, payload).await?;
    }
    until("all are known", || {
        Ok(world.tell(&["retained", "list", "r/#", "-o", "name"])? == "r/a\nr/b\nr/c/d\n")
    })
    .await?;
    assert_eq!(world.tell(&["retained", "list", "r/+", "--payload", "tw", "-o", "name"])?, "r/b\n");
    let got = world.json(&["retained", "get", "r/a"])?;
    assert_eq!((&got["payload"], &got["publisher"]), (&"one".into(), &"publisher".into()));
    world.tell(&["retained", "delete", "r/a"])?;
    assert_eq!(world.run(&["retained", "get", "r/a"])?.0, 1);
    assert_eq!(world.tell(&["retained", "clear", "r/c/#", "--yes"])?, "deleted 1 retained messages\n");
    // A new subscriber at the other node, once it has read so far.
    let began = Instant::now();
    loop {
        let (mut late, _) = connect(world.there, "late", "").await?;
        late.subscribe("r/#", Qos::AtMostOnce).await?;
        let mut got = heard(&mut late).await?;
        // One that was slow to come comes after the answer to the ping.
        if got.is_empty() {
            got = heard(&mut late).await?;
        }
        if got == ["two"] {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "{got:?}");
    }
}

async fn all(world: &World) -> Result<()> {
    world.ready().await?;
    filters_and_pages(world).await?;
    clearing(world).await?;
    subscriptions(world).await?;
    retained(world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_rules_sessions_and_retained_messages_of_the_all_in_one() -> Result<()> {
    all(&World::standalone()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_rules_sessions_and_retained_messages_of_two_data_planes_over_kafka() -> Result<()> {
    let test = "an_operator_rules_sessions_and_retained_messages_of_two_data_planes_over_kafka";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut world = World::over_kafka()?;
    all(&world).await?;
    world.deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_and_what_was_cleared_is_so_after_sigkill() -> Result<()> {
    let mut world = World::standalone()?;
    world.ready().await?;
    for client_id in ["kept", "cleared"] {
        let (mut client, _) = connect(world.here, client_id, "").await?;
        client.subscribe("old", Qos::AtLeastOnce).await?;
    }
    until("both are away", || Ok(world.listed(&["--state", "disconnected"])?.len() == 2)).await?;
    world.tell(&["subscription", "set", "kept", "--filter", "new", "--qos", "1", "--yes"])?;
    world.tell(&["session", "clear", "cleared"])?;
    world.deployment.kill(Plane::All)?;
    world.deployment.start(Plane::All)?;
    world.ready().await?;
    assert_eq!(world.listed(&[])?, ["kept"]);
    let (mut publisher, _) = connect(world.here, "publisher", "").await?;
    publish(&mut publisher, "new", false, "queued").await?;
    publish(&mut publisher, "old", false, "not any more").await?;
    let (mut client, was_there) = connect(world.here, "kept", "").await?;
    ensure!(was_there);
    let mut got = Vec::new();
    while got.is_empty() {
        got = heard(&mut client).await?;
    }
    assert_eq!(got, ["queued"]);
    Ok(())
}
