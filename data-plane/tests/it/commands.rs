//! What a control plane asks a node for over its session.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Connect, ProtocolVersion, Qos, ReasonCode, RetainHandling, Subscription},
};
use tbmq_proto::node::{
    ClientMatch, ControlMessage, Disconnect, Disconnected, Drain, GetSession, Heartbeat, ListSessions, Match,
    NodeMessage, NodeRequest, SessionDetail, SubscriptionInfo, control_message,
    node_message::Message,
    node_reply::Reply,
    node_request::Request as Wanted,
    node_session_service_server::{NodeSessionService, NodeSessionServiceServer},
};
use tokio::{
    net::TcpStream,
    sync::{Mutex, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    bus::{Mode, TestBus},
    client::{Client, VERSIONS, connect_packet, publish, subscription},
    credentials,
    plane::{Plane, config, until},
};

/// A control plane that holds one session after the other.
#[derive(Clone)]
struct Stub {
    sessions: mpsc::Sender<Session>,
}

/// A session as the control plane sees it.
struct Session {
    messages: Streaming<NodeMessage>,
    outbox: mpsc::Sender<Result<ControlMessage, Status>>,
    next: u64,
    heartbeats: Vec<Heartbeat>,
}

#[tonic::async_trait]
impl NodeSessionService for Stub {
    type SessionStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbox, receiver) = mpsc::channel(256);
        let session = Session { messages: request.into_inner(), outbox, next: 1, heartbeats: Vec::new() };
        self.sessions.send(session).await.unwrap();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

pub(crate) struct Controlled {
    pub(crate) plane: Plane,
    session: Session,
    later: Arc<Mutex<mpsc::Receiver<Session>>>,
}

impl Controlled {
    pub(crate) async fn start(configure: impl FnOnce(&mut tbmq_data_plane::Config)) -> Self {
        Self::over(TestBus::new(), configure).await
    }

    pub(crate) async fn over(
        bus: Arc<TestBus>,
        configure: impl FnOnce(&mut tbmq_data_plane::Config),
    ) -> Self {
        let (sessions, mut opened) = mpsc::channel(4);
        let address = serve(Stub { sessions }).await;
        let mut config = config();
        config.control.grpc.endpoints = vec![format!("http://{address}")];
        configure(&mut config);
        let plane = Plane::with(bus, config).await;
        let mut session = opened.recv().await.unwrap();
        let Some(Message::Hello(hello)) = session.hear().await else { panic!("no hello") };
        assert_eq!(hello.capabilities, ["commands"]);
        Self { plane, session, later: Arc::new(Mutex::new(opened)) }
    }

    pub(crate) async fn ask(&mut self, request: Wanted) -> Reply {
        self.session.ask(request).await
    }

    pub(crate) async fn found(&mut self, client_id: &str) -> SessionDetail {
        match self.ask(Wanted::GetSession(GetSession { client_id: client_id.to_owned() })).await {
            Reply::Session(found) => found,
            other => panic!("{other:?}"),
        }
    }

    async fn list(&mut self, after: &str, text: &str, limit: u32) -> (Vec<String>, bool) {
        let wanted = ListSessions { after: after.to_owned(), text_search: text.to_owned(), limit };
        match self.ask(Wanted::ListSessions(wanted)).await {
            Reply::Sessions(list) => {
                (list.sessions.into_iter().map(|session| session.client_id).collect(), list.more)
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Session {
    async fn hear(&mut self) -> Option<Message> {
        let heard = tokio::time::timeout(Duration::from_secs(20), self.messages.message()).await;
        heard.expect("the node says something").unwrap().and_then(|message| message.message)
    }

    async fn send(&mut self, request: Wanted, timeout_ms: u32) -> u64 {
        let id = self.next;
        self.next += 1;
        let request = NodeRequest { id, timeout_ms, request: Some(request) };
        let message = Some(control_message::Message::Request(request));
        self.outbox.send(Ok(ControlMessage { message })).await.unwrap();
        id
    }

    /// The next answer; heartbeats are kept.
    async fn reply(&mut self) -> (u64, Reply) {
        loop {
            match self.hear().await.expect("the session is there") {
                Message::Reply(reply) => return (reply.id, reply.reply.unwrap()),
                Message::Heartbeat(heartbeat) => self.heartbeats.push(heartbeat),
                Message::Hello(_) => panic!("a second hello"),
            }
        }
    }

    async fn ask(&mut self, request: Wanted) -> Reply {
        let id = self.send(request, 10_000).await;
        let (answered, reply) = self.reply().await;
        assert_eq!(answered, id);
        reply
    }
}

async fn serve(stub: Stub) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tonic::transport::Server::builder()
        .add_service(NodeSessionServiceServer::new(stub))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(async move { serving.await.unwrap() });
    address
}

fn disconnect(client_id: &str) -> Wanted {
    Wanted::Disconnect(Disconnect { client_id: client_id.to_owned() })
}

#[tokio::test]
async fn a_session_is_told_as_the_client_made_it() {
    let mut node = Controlled::start(|_| {}).await;
    let mut connect = connect_packet(ProtocolVersion::V5, "c1");
    connect.username = Some("alice".into());
    connect.keep_alive = 601;
    let (mut client, _) = Client::with(node.plane.address, connect).await;
    let wanted = Subscription {
        filter: "b/+".into(),
        qos: Qos::ExactlyOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
    };
    client.subscribe(vec![wanted, subscription("a/#", Qos::AtLeastOnce)], Properties::NONE).await;

    let detail = node.found("c1").await;
    let session = detail.session.unwrap();
    let age_ms = tbmq_service::time::now_ms() - session.connect_time.unwrap().seconds * 1000;
    assert!((0..60_000).contains(&age_ms), "{age_ms}");
    assert_eq!(session.peer_address, client.stream.local_addr().unwrap().to_string());
    assert_eq!((session.client_id.as_str(), session.username.as_str()), ("c1", "alice"));
    assert_eq!((session.protocol_version, session.clean_start), (5, true));
    assert_eq!(session.keep_alive_seconds, 600, "what applies");
    assert_eq!(session.subscription_count, 2);
    assert_eq!((session.client_type.as_str(), session.authentication.as_str()), ("DEVICE", ""));
    let plain = SubscriptionInfo { filter: "a/#".to_owned(), qos: 1, ..SubscriptionInfo::default() };
    let special = SubscriptionInfo {
        filter: "b/+".to_owned(),
        qos: 2,
        share_name: String::new(),
        no_local: true,
        retain_as_published: true,
        retain_handling: 2,
        identifier: None,
    };
    assert_eq!(detail.subscriptions, [plain, special]);
    assert_eq!(node.found("nobody").await, SessionDetail::default());
    drop(client);
    until(|| node.plane.metric("tbmq_mqtt_connections") == 0).await;
    assert_eq!(node.found("c1").await, SessionDetail::default(), "it has gone");
}

#[tokio::test]
async fn a_session_tells_by_which_credential_its_client_was_let_in_and_as_what() {
    let bus = credentials::bus_with(&["MQTT_BASIC"]).await;
    credentials::basic(&bus, "device", 1, None, &[credentials::all("#")]).await;
    credentials::application(&bus, "app").await;
    let mut node = Controlled::over(bus, |_| {}).await;
    for version in VERSIONS {
        // A session of 3.x goes on with each of them, and tells of the one that has it now.
        for (user_name, client_type) in [("device", "DEVICE"), ("app", "APPLICATION"), ("device", "DEVICE")] {
            let connect = credentials::of(user_name, version);
            let connect = Connect { client_id: "c".into(), clean_start: false, ..connect };
            let (client, _) = Client::with(node.plane.address, connect).await;
            let session = node.found("c").await.session.unwrap();
            assert_eq!(session.protocol_version, u32::from(version.level()));
            assert_eq!(session.client_type, client_type);
            assert_eq!(session.authentication, format!("MQTT_BASIC: of {user_name}"));
            client.leave().await;
        }
    }
}

#[tokio::test]
async fn sessions_are_listed_in_the_order_of_their_ids() {
    let mut node = Controlled::start(|_| {}).await;
    let mut clients = Vec::new();
    // More than one slice.
    for number in 0..600 {
        let version = if number % 2 == 0 { ProtocolVersion::V5 } else { ProtocolVersion::V311 };
        clients.push(Client::connected(node.plane.address, version, &format!("Sensor-{number:04}")).await);
    }
    for id in ["a", "ä", "Z"] {
        clients.push(Client::v5(node.plane.address, id).await);
    }
    assert_eq!(node.list("", "", 2).await, (vec!["Sensor-0000".to_owned(), "Sensor-0001".to_owned()], true));
    let rest = ["Z", "a", "ä"].map(str::to_owned).to_vec();
    assert_eq!(node.list("Sensor-0599", "", 3).await, (rest.clone(), false));
    assert_eq!(node.list("Sensor-05990", "", 1000).await, (rest, false), "an id that nobody has");
    assert_eq!(node.list("ä", "", 1000).await, (Vec::new(), false));
    assert_eq!(node.list("", "sENSOR-0599", 10).await, (vec!["Sensor-0599".to_owned()], false));
    assert_eq!(node.list("", "Ä", 10).await, (vec!["ä".to_owned()], false));
    let (all, more) = node.list("", "", u32::MAX).await;
    assert_eq!((all.len(), more), (603, false));
    assert!(all.is_sorted());
}

#[tokio::test]
async fn an_answer_is_bounded_however_long_ids_are() {
    let mut node = Controlled::start(|_| {}).await;
    let mut clients = Vec::new();
    for number in 0..40 {
        let id = format!("{number:02}{}", "x".repeat(60_000));
        clients.push(Client::v5(node.plane.address, &id).await);
    }
    let (mut listed, mut after, mut pages) = (0, String::new(), 0);
    loop {
        let (ids, more) = node.list(&after, "", 1000).await;
        listed += ids.len();
        pages += 1;
        let Some(last) = ids.into_iter().next_back().filter(|_| more) else { break };
        after = last;
    }
    // Each id stands in its place as well.
    assert_eq!((listed, pages), (40, 5));
}

#[tokio::test]
async fn a_client_that_is_disconnected_is_told_why_and_may_come_back() {
    let mut node = Controlled::start(|_| {}).await;
    let mut five = Client::v5(node.plane.address, "five").await;
    let mut old = Client::connected(node.plane.address, ProtocolVersion::V311, "old").await;
    five.subscribed("a", Qos::AtMostOnce).await;
    for id in ["five", "old"] {
        assert_eq!(node.ask(disconnect(id)).await, Reply::Disconnected(Disconnected { found: true }));
        assert_eq!(
            node.ask(disconnect(id)).await,
            Reply::Disconnected(Disconnected { found: false }),
            "at once it is there no more"
        );
    }
    five.is_told(ReasonCode::AdministrativeAction).await;
    assert_eq!(old.next().await, None, "a 3.x client is only closed");
    let _again = Client::v5(node.plane.address, "five").await;
    assert_eq!(node.found("five").await.session.unwrap().subscription_count, 0);
}

#[tokio::test]
async fn who_gets_a_topic_is_told_without_a_message() {
    let mut node = Controlled::start(|_| {}).await;
    node.plane.integration(1, &["a/#"]).await;
    let mut two = Client::v5(node.plane.address, "two").await;
    let mut one = Client::v5(node.plane.address, "one").await;
    two.subscribed("a/+", Qos::AtLeastOnce).await;
    two.subscribed("#", Qos::AtMostOnce).await;
    one.subscribed("a/b", Qos::ExactlyOnce).await;
    one.subscribed("c", Qos::ExactlyOnce).await;
    let wanted = |topic: &str, limit| Wanted::Match(Match { topic: topic.to_owned(), limit });
    let found = |client_id: &str, filter: &str, qos| ClientMatch {
        client_id: client_id.to_owned(),
        filter: filter.to_owned(),
        qos,
        share_name: String::new(),
    };
    let Reply::Matches(list) = node.ask(wanted("a/b", 1000)).await else { panic!() };
    assert_eq!(list.matches, [found("one", "a/b", 2), found("two", "#", 0), found("two", "a/+", 1)]);
    assert!(!list.more);
    let Reply::Matches(list) = node.ask(wanted("a/b", 2)).await else { panic!() };
    assert_eq!((list.matches.len(), list.more), (2, true));
    let Reply::Matches(list) = node.ask(wanted("$SYS/x", 1000)).await else { panic!() };
    assert_eq!(list.matches, []);
    let Reply::Error(error) = node.ask(wanted("a/+", 1000)).await else { panic!() };
    assert!(error.contains("wildcards"), "{error}");
    for client in [&mut one, &mut two] {
        client.hears_nothing().await;
    }
    assert_eq!(node.plane.metric("tbmq_mqtt_messages_published_total"), 0);
}

#[tokio::test]
async fn a_drained_node_sends_its_clients_away_takes_no_new_ones_and_stays_up() {
    let mut node = Controlled::start(|config| config.mqtt.drain_spread = Duration::from_millis(400)).await;
    node.plane.integration(1, &["a"]).await;
    node.plane.bus.control.set(Mode::Keep);
    let mut busy = Client::v5(node.plane.address, "busy").await;
    busy.send(tbmq_mqtt::packet::Packet::Publish(publish("a", Qos::AtLeastOnce, 7, "x"))).await;
    until(|| node.plane.bus.control.kept() == 1).await;
    let mut clients = Vec::new();
    for number in 0..8 {
        clients.push(Client::v5(node.plane.address, &format!("c{number}")).await);
    }
    let mut old = Client::connected(node.plane.address, ProtocolVersion::V311, "old").await;
    // It has said nothing yet.
    let mut silent = Client::open(node.plane.address, ProtocolVersion::V5).await;
    until(|| node.plane.metric("tbmq_mqtt_connections") == 11).await;
    assert!(node.plane.health.is_up());

    let began = std::time::Instant::now();
    let Reply::Draining(draining) = node.ask(Wanted::Drain(Drain {})).await else { panic!() };
    assert_eq!(draining.connections, 11);
    let Some(Message::Heartbeat(heartbeat)) = node.session.hear().await else { panic!("no heartbeat") };
    assert!(heartbeat.draining);
    for client in &mut clients {
        client.is_told(ReasonCode::UseAnotherServer).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(150), "not all at once: {:?}", began.elapsed());
    assert_eq!(old.next().await, None);
    assert_eq!(silent.next().await, None);
    assert!(TcpStream::connect(node.plane.address).await.is_err(), "the port is closed");
    let down = node.plane.health.down();
    assert!(
        down.iter().any(|(name, reason)| name == "mqtt-listeners" && reason.contains("draining")),
        "{down:?}"
    );
    // What was under way is acknowledged first.
    node.plane.bus.control.give(0, Ok(()));
    assert_eq!(busy.puback().await.packet_id, 7);
    busy.is_told(ReasonCode::UseAnotherServer).await;
    drop((busy, clients, old, silent));
    until(|| node.plane.metric("tbmq_mqtt_connections") == 0).await;
    // It still answers, and may be told again.
    assert_eq!(node.list("", "", 10).await, (Vec::new(), false));
    let Reply::Draining(draining) = node.ask(Wanted::Drain(Drain {})).await else { panic!() };
    assert_eq!(draining.connections, 0);
    tokio::time::timeout(Duration::from_secs(20), node.plane.running.drain()).await.unwrap();
}

#[tokio::test]
async fn what_comes_too_late_or_too_much_is_not_done() {
    let mut node = Controlled::start(|_| {}).await;
    let mut client = Client::v5(node.plane.address, "c").await;
    // Its time is over before its turn.
    node.session.send(disconnect("c"), 0).await;
    let strange = NodeRequest { id: 77, timeout_ms: 10_000, request: None };
    let message = Some(control_message::Message::Request(strange));
    node.session.outbox.send(Ok(ControlMessage { message })).await.unwrap();
    let (id, reply) = node.session.reply().await;
    assert!(matches!(reply, Reply::Error(text) if id == 77 && text.contains("does not know")));
    client.hears_nothing().await;

    // The session breaks while requests are under way; clients notice nothing, and a new session answers.
    let wanted = || Wanted::GetSession(GetSession { client_id: "c".to_owned() });
    for _ in 0..10 {
        node.session.send(wanted(), 10_000).await;
    }
    let later = node.later.clone();
    let mut later = later.lock().await;
    let old = node.session;
    drop(old);
    let mut session = tokio::time::timeout(Duration::from_secs(20), later.recv()).await.unwrap().unwrap();
    assert!(matches!(session.hear().await, Some(Message::Hello(_))));
    client.hears_nothing().await;
    let Reply::Session(found) = session.ask(wanted()).await else { panic!() };
    assert_eq!(found.session.unwrap().client_id, "c");
}
