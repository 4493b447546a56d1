//! Sessions of MQTT clients and commands to data planes, through any of two control planes: the data planes are real.

use std::{net::SocketAddr, time::Duration};

use tbmq_harness::{
    client::Client,
    proxy::{Mode, Proxy},
};
use tbmq_mqtt::packet::{Packet, ProtocolVersion, Qos, ReasonCode};
use tbmq_proto::{
    control::{
        DisconnectSessionRequest, DrainNodeRequest, ExplainTopicRequest, GetSessionRequest, ListNodesRequest,
        ListSessionsRequest, ListSessionsResponse, ListSubscriptionsRequest, Node, Session,
        explain_topic_response::ClientMatch, session_service_client::SessionServiceClient,
    },
    node::{
        ControlMessage, Drain, Draining, ForwardRequest, Hello, NodeMessage, NodeReply, NodeRequest,
        control_message, node_forward_service_client::NodeForwardServiceClient, node_message,
        node_reply::Reply, node_request,
    },
};
use tbmq_service::{admin::Health, identity::Identity, metrics::Metrics, trace::Tracer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::support::{Cluster, ControlPlane, Verdict, eventually, fields, integration, reason};

/// A data plane that looks for its control plane at `control`.
pub(crate) async fn data_plane(cluster: &Cluster, id: &str, control: SocketAddr) -> tbmq_data_plane::Running {
    let mut config = tbmq_data_plane::Config::default();
    config.listener.tcp.bind_address = [127, 0, 0, 1].into();
    config.listener.tcp.bind_port = 0;
    config.listener.ws.enabled = false;
    config.mqtt.drain_spread = Duration::from_millis(100);
    config.control.grpc.endpoints = vec![format!("http://{control}")];
    let context = tbmq_data_plane::Context {
        bus: cluster.bus.clone(),
        catalogue: cluster.catalogue.clone(),
        replication_factor: 1,
        identity: Identity::of("data-plane", Some(id)),
        metrics: Metrics::default(),
        health: Health::default(),
        tracer: Tracer::off(),
        sessions: None,
    };
    tbmq_data_plane::start(config, context).await.unwrap()
}

pub(crate) fn grpc(plane: &ControlPlane) -> SocketAddr {
    plane.running.addresses()[0].1
}

pub(crate) fn mqtt(plane: &tbmq_data_plane::Running) -> SocketAddr {
    plane.addresses()[0].1
}

pub(crate) async fn five(plane: &tbmq_data_plane::Running, id: &str) -> Client {
    Client::connect(mqtt(plane), id, ProtocolVersion::V5).await.unwrap()
}

pub(crate) async fn is_told(client: &mut Client, reason: ReasonCode) {
    match client.receive().await.unwrap() {
        Packet::Disconnect(disconnect) => assert_eq!(disconnect.reason, reason),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn still_served(client: &mut Client) {
    client.send(&Packet::PingReq).await.unwrap();
    assert_eq!(client.receive().await.unwrap(), Packet::PingResp);
}

pub(crate) fn sessions(plane: &ControlPlane) -> SessionServiceClient<Channel> {
    SessionServiceClient::new(plane.channel.clone())
}

pub(crate) async fn list(
    plane: &ControlPlane,
    request: ListSessionsRequest,
) -> Result<ListSessionsResponse, Status> {
    sessions(plane).list_sessions(request).await.map(tonic::Response::into_inner)
}

/// Everything, page by page, as `client@node`.
async fn all(plane: &ControlPlane, page_size: i32, text_search: &str) -> Vec<String> {
    let mut request =
        ListSessionsRequest { page_size, text_search: text_search.to_owned(), ..Default::default() };
    let mut found = Vec::new();
    loop {
        let page = list(plane, request.clone()).await.unwrap();
        assert_eq!(page.silent_nodes, [""; 0]);
        found.extend(page.sessions.into_iter().map(|one| format!("{}@{}", one.client_id, one.service_id)));
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

pub(crate) async fn get(plane: &ControlPlane, client_id: &str) -> Result<Session, Status> {
    let request = GetSessionRequest { client_id: client_id.to_owned() };
    sessions(plane).get_session(request).await.map(tonic::Response::into_inner)
}

async fn disconnect(plane: &ControlPlane, client_id: &str) -> Result<(), Status> {
    let request = DisconnectSessionRequest { client_id: client_id.to_owned(), ..Default::default() };
    sessions(plane).disconnect_session(request).await.map(tonic::Response::into_inner)
}

async fn drain(plane: &ControlPlane, service_id: &str) -> Result<Node, Status> {
    let request = DrainNodeRequest { service_id: service_id.to_owned() };
    plane.nodes.clone().drain_node(request).await.map(tonic::Response::into_inner)
}

async fn nodes(plane: &ControlPlane) -> Vec<Node> {
    plane.nodes.clone().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes
}

pub(crate) async fn registered(plane: &ControlPlane, id: &str) {
    let is = |node: &Node| node.service_id == id && node.session && node.system_info.is_some();
    eventually("the data plane has a session", async || nodes(plane).await.iter().any(is)).await;
}

/// A data plane played by the test.
struct Played {
    sender: mpsc::Sender<NodeMessage>,
    stream: Streaming<ControlMessage>,
    incarnation: String,
}

impl Played {
    async fn register(plane: &ControlPlane, id: &str, capabilities: &[&str]) -> Self {
        let (sender, receiver) = mpsc::channel(4);
        let incarnation = Uuid::now_v7().to_string();
        let hello = Hello {
            service_id: id.to_owned(),
            incarnation: incarnation.clone(),
            version: "0.9".to_owned(),
            capabilities: capabilities.iter().map(|text| (*text).to_owned()).collect(),
            ..Hello::default()
        };
        sender.send(NodeMessage { message: Some(node_message::Message::Hello(hello)) }).await.unwrap();
        let stream =
            plane.sessions.clone().session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let mut played = Self { sender, stream, incarnation };
        let welcome = played.stream.message().await.unwrap().unwrap().message;
        assert!(matches!(welcome, Some(control_message::Message::Welcome(_))), "{welcome:?}");
        played
    }

    async fn request(&mut self) -> NodeRequest {
        match self.stream.message().await.unwrap().unwrap().message {
            Some(control_message::Message::Request(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&self, id: u64, reply: Reply) {
        let reply = NodeReply { id, reply: Some(reply) };
        let message = NodeMessage { message: Some(node_message::Message::Reply(reply)) };
        self.sender.send(message).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_control_plane_finds_every_client_and_ends_it() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let (one, two) =
        (data_plane(&cluster, "dp1", grpc(&first)).await, data_plane(&cluster, "dp2", grpc(&second)).await);
    registered(&second, "dp1").await;
    registered(&first, "dp2").await;
    let mut a = five(&one, "a").await;
    let mut b = five(&two, "b").await;
    let mut c = five(&one, "c").await;
    let (_here, _there) = (five(&one, "both").await, five(&two, "both").await);
    a.subscribe("x/+", Qos::AtLeastOnce).await.unwrap();

    let expected = ["a@dp1", "b@dp2", "both@dp1", "both@dp2", "c@dp1"];
    for plane in [&first, &second] {
        for page_size in [0, 1, 2, 3, 1000] {
            assert_eq!(all(plane, page_size, "").await, expected, "pages of {page_size}");
        }
        assert_eq!(all(plane, 2, "BO").await, ["both@dp1", "both@dp2"]);
        let of_two = ListSessionsRequest { service_id: "dp2".to_owned(), ..Default::default() };
        let of_two = list(plane, of_two).await.unwrap();
        assert_eq!(of_two.sessions.iter().map(|one| &one.client_id).collect::<Vec<_>>(), ["b", "both"]);
        let session = get(plane, "a").await.unwrap();
        assert_eq!((session.service_id.as_str(), session.protocol_version), ("dp1", 5));
        assert_eq!((session.subscription_count, session.keep_alive_seconds), (1, 60));
        assert_eq!(get(plane, "both").await.unwrap().service_id, "dp2", "it has connected there last");
        let request = ListSubscriptionsRequest { client_id: "a".to_owned() };
        let found = sessions(plane).list_subscriptions(request).await.unwrap().into_inner().subscriptions;
        assert_eq!((found.len(), found[0].filter.as_str(), found[0].qos), (1, "x/+", 1));
    }

    // Each through the one that does not hold the session.
    disconnect(&second, "a").await.unwrap();
    is_told(&mut a, ReasonCode::AdministrativeAction).await;
    disconnect(&first, "b").await.unwrap();
    is_told(&mut b, ReasonCode::AdministrativeAction).await;
    disconnect(&first, "both").await.unwrap();
    assert_eq!(all(&first, 0, "").await, ["c@dp1"], "it is ended wherever it was");
    still_served(&mut c).await;

    for plane in [&first, &second] {
        let missing = ListSubscriptionsRequest { client_id: "a".to_owned() };
        for status in [
            get(plane, "a").await.unwrap_err(),
            disconnect(plane, "a").await.unwrap_err(),
            sessions(plane).list_subscriptions(missing).await.unwrap_err(),
        ] {
            assert_eq!(reason(&status), (Code::NotFound, "NOT_FOUND".to_owned()));
            let details = status.get_error_details();
            let resource = details.resource_info().unwrap();
            assert_eq!(
                (resource.resource_type.as_str(), resource.resource_name.as_str()),
                ("tbmq.control.v1.Session", "a")
            );
        }
    }
    one.drain().await;
    two.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_with_their_field() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let listing = |change: fn(&mut ListSessionsRequest)| {
        let mut request = ListSessionsRequest::default();
        change(&mut request);
        request
    };
    for (request, field) in [
        (listing(|request| request.page_size = -1), "page_size"),
        (listing(|request| request.page_token = "x".to_owned()), "page_token"),
        (listing(|request| request.text_search = "x".repeat(70_000)), "text_search"),
        (listing(|request| request.service_id = "cp1".to_owned()), "service_id"),
    ] {
        let status = list(&plane, request).await.unwrap_err();
        assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![field.to_owned()]));
    }
    let status = list(&plane, listing(|request| request.service_id = "dp9".to_owned())).await.unwrap_err();
    assert_eq!(reason(&status), (Code::NotFound, "NOT_FOUND".to_owned()));
    for client_id in ["", &"x".repeat(70_000)] {
        for status in
            [get(&plane, client_id).await.unwrap_err(), disconnect(&plane, client_id).await.unwrap_err()]
        {
            assert_eq!(fields(&status), ["client_id"]);
        }
    }
    for topic in ["", "a/+", "#", "a\0"] {
        let request = ExplainTopicRequest { topic: topic.to_owned() };
        let status = plane.integrations.clone().explain_topic(request).await.unwrap_err();
        assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["topic".to_owned()]));
    }
    assert_eq!(fields(&drain(&plane, "").await.unwrap_err()), ["service_id"]);
    // A token belongs to its question.
    let _played = Played::register(&plane, "dp1", &[]).await;
    let status = drain(&plane, "dp9").await.unwrap_err();
    assert_eq!(reason(&status), (Code::NotFound, "NOT_FOUND".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_explained_by_integrations_and_clients() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let _executor = cluster.executor(Verdict::Accept).await;
    let one = data_plane(&cluster, "dp1", grpc(&first)).await;
    registered(&second, "dp1").await;
    let with = |name: &str, filters: &str| {
        let mut wanted = integration(name);
        wanted.configuration_json = wanted.configuration_json.replace(r#"["a/#","b/+"]"#, filters);
        wanted
    };
    let both = first.create_from(with("both", r##"["a/#","#","b"]"##)).await.unwrap();
    let off = first.create_from(with("off", r#"["a/+"]"#)).await.unwrap();
    first.enable(&off.name, false).await.unwrap();
    first.create_from(with("other", r#"["$SYS/#","c"]"#)).await.unwrap();
    let mut client = five(&one, "c1").await;
    client.subscribe("a/b", Qos::ExactlyOnce).await.unwrap();
    client.subscribe("#", Qos::AtMostOnce).await.unwrap();

    let explain = async |topic: &str| {
        let request = ExplainTopicRequest { topic: topic.to_owned() };
        let answer = second.integrations.clone().explain_topic(request).await.unwrap().into_inner();
        assert_eq!(answer.silent_nodes, [""; 0]);
        let integrations: Vec<(String, bool, Vec<String>)> = answer
            .integrations
            .into_iter()
            .map(|found| (found.display_name, found.enabled, found.filters))
            .collect();
        (integrations, answer.clients)
    };
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let by = |filter: &str, qos| ClientMatch {
        service_id: "dp1".to_owned(),
        client_id: "c1".to_owned(),
        filter: filter.to_owned(),
        qos,
        share_name: String::new(),
    };
    assert_eq!(
        explain("a/b").await,
        (
            vec![("both".to_owned(), true, texts(&["a/#", "#"])), ("off".to_owned(), false, texts(&["a/+"]))],
            vec![by("#", 0), by("a/b", 2)]
        )
    );
    assert_eq!(explain("$SYS/x").await, (vec![("other".to_owned(), true, texts(&["$SYS/#"]))], vec![]));
    let request = ExplainTopicRequest { topic: "b".to_owned() };
    let answer = first.integrations.clone().explain_topic(request).await.unwrap().into_inner();
    assert_eq!(answer.integrations[0].name, both.name);
    still_served(&mut client).await;
    one.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_is_drained_through_another_replica_and_stays_up() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    cluster.say_alive("ie1", tbmq_proto::wire::Role::Executor, &["HTTP"], None).await;
    let one = data_plane(&cluster, "dp1", grpc(&first)).await;
    registered(&second, "dp1").await;
    let mut client = five(&one, "c").await;
    let node = drain(&second, "dp1").await.unwrap();
    assert_eq!((node.service_id.as_str(), node.draining, node.connections), ("dp1", true, 1));
    is_told(&mut client, ReasonCode::UseAnotherServer).await;
    drop(client);
    assert!(Client::connect(mqtt(&one), "d", ProtocolVersion::V5).await.is_err());
    for plane in [&first, &second] {
        eventually("both know it", async || {
            let found = nodes(plane).await.into_iter().find(|node| node.service_id == "dp1").unwrap();
            found.live && found.session && found.draining
        })
        .await;
    }
    assert!(drain(&first, "dp1").await.unwrap().draining, "and again");
    eventually("executors are known", async || {
        nodes(&first).await.iter().any(|node| node.service_id == "ie1")
    })
    .await;
    for other in ["cp2", "ie1"] {
        let status = drain(&first, other).await.unwrap_err();
        assert_eq!(reason(&status), (Code::FailedPrecondition, "NOT_A_DATA_PLANE".to_owned()));
        assert!(status.message().contains("SIGTERM"), "{}", status.message());
    }
    // What each tells of its machine.
    for node in nodes(&first).await.iter().filter(|node| node.service_id != "ie1") {
        let system = node.system_info.as_ref().unwrap();
        assert!(
            system.cpu_count > 0 && system.total_memory_bytes > 0 && system.total_disk_bytes > 0,
            "{node:?}"
        );
        assert!(system.cpu_percent <= 100 && system.memory_percent <= 100 && system.disk_percent <= 100);
    }
    one.drain().await;
}

#[tokio::test]
async fn while_no_data_plane_is_known_no_client_is_said_to_be_absent() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let request = GetSessionRequest { client_id: "c".to_owned() };
    let status = sessions(&plane).get_session(request).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "NODE_UNREACHABLE".to_owned()));
    assert!(status.message().starts_with("no data plane is known"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_ends_calls_under_way_and_no_client_notices() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let mut played = Played::register(&first, "dp1", &["commands"]).await;
    let calling = tokio::spawn({
        let request = DisconnectSessionRequest { client_id: "c".to_owned(), ..Default::default() };
        let mut client = sessions(&second);
        async move { client.disconnect_session(request).await }
    });
    let asked = played.request().await;
    assert!(
        matches!(asked.request, Some(node_request::Request::Disconnect(wanted)) if wanted.client_id == "c")
    );
    drop(played);
    let status = calling.await.unwrap().unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "NODE_UNREACHABLE".to_owned()));
    for part in ["dp1", "may have been carried out"] {
        assert!(status.message().contains(part), "{}", status.message());
    }

    // The same with a real one, which finds its way back.
    let proxy = Proxy::start(grpc(&first)).await.unwrap();
    let two = data_plane(&cluster, "dp2", proxy.address()).await;
    registered(&second, "dp2").await;
    let mut client = five(&two, "c").await;
    assert_eq!(get(&second, "c").await.unwrap().service_id, "dp2");
    proxy.set_mode(Mode::Down).await.unwrap();
    eventually("its session has ended", async || {
        nodes(&second).await.iter().any(|node| node.service_id == "dp2" && !node.session)
    })
    .await;
    let status = get(&second, "c").await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "NODE_UNREACHABLE".to_owned()));
    assert!(status.message().contains("dp2") && status.message().contains("CONTROL_GRPC_ENDPOINTS"));
    let page = list(&second, ListSessionsRequest::default()).await.unwrap();
    assert_eq!((page.sessions, page.silent_nodes), (vec![], vec!["dp2".to_owned()]));
    still_served(&mut client).await;
    proxy.set_mode(Mode::Passing).await.unwrap();
    eventually("it is found again", async || get(&second, "c").await.is_ok()).await;
    still_served(&mut client).await;
    two.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_data_plane_is_named_before_the_callers_time_is_over() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let mut played = Played::register(&first, "dp1", &["commands"]).await;
    for plane in [&first, &second] {
        let mut request = Request::new(ListSessionsRequest::default());
        request.set_timeout(Duration::from_secs(3));
        let page = sessions(plane).list_sessions(request).await.unwrap().into_inner();
        assert_eq!((page.sessions, page.silent_nodes), (vec![], vec!["dp1".to_owned()]));
        let asked = played.request().await;
        assert!((1..3_000).contains(&asked.timeout_ms), "the caller's time: {}", asked.timeout_ms);
        // Too late: the next question gets its own answer.
        played.answer(asked.id, Reply::Draining(Draining { connections: 99 })).await;
        let mut request = Request::new(DrainNodeRequest { service_id: "dp1".to_owned() });
        request.set_timeout(Duration::from_secs(3));
        let status = plane.nodes.clone().drain_node(request).await.unwrap_err();
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "NODE_TIMEOUT".to_owned()));
        let late = played.request().await;
        let draining = tokio::spawn({
            let mut nodes = plane.nodes.clone();
            async move { nodes.drain_node(DrainNodeRequest { service_id: "dp1".to_owned() }).await }
        });
        let asked = played.request().await;
        played.answer(late.id, Reply::Draining(Draining { connections: 98 })).await;
        played.answer(asked.id, Reply::Draining(Draining { connections: 3 })).await;
        assert_eq!(draining.await.unwrap().unwrap().into_inner().connections, 3);
    }
    assert!(first.metrics.encode().contains("tbmq_control_node_answers_dropped_total 4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_without_the_capability_is_refused_clearly() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let _played = Played::register(&first, "old", &[]).await;
    for plane in [&first, &second] {
        let status = drain(plane, "old").await.unwrap_err();
        assert_eq!(reason(&status), (Code::FailedPrecondition, "NODE_UNSUPPORTED".to_owned()));
        for part in ["old", "0.9", "upgrade"] {
            assert!(status.message().contains(part), "{}", status.message());
        }
        let page = list(plane, ListSessionsRequest::default()).await.unwrap();
        assert_eq!(page.silent_nodes, ["old"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_one_hop_and_no_further() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let mut played = Played::register(&first, "dp1", &["commands"]).await;
    let forward = |incarnation: &str| ForwardRequest {
        service_id: "dp1".to_owned(),
        incarnation: incarnation.to_owned(),
        request: Some(NodeRequest {
            id: 7,
            timeout_ms: 5_000,
            request: Some(node_request::Request::Drain(Drain {})),
        }),
    };
    let to = |plane: &ControlPlane| NodeForwardServiceClient::new(plane.channel.clone());
    // The second knows where it is, and does not pass it on.
    let own = played.incarnation.clone();
    for (plane, incarnation) in [(&second, own.as_str()), (&first, "another")] {
        let status = to(plane).forward(forward(incarnation)).await.unwrap_err();
        assert_eq!(reason(&status), (Code::FailedPrecondition, "NOT_HELD".to_owned()));
    }
    let empty = ForwardRequest { request: None, ..forward(&own) };
    assert_eq!(fields(&to(&first).forward(empty).await.unwrap_err()), ["request"]);
    let forwarding = tokio::spawn({
        let (mut client, request) = (to(&first), forward(&own));
        async move { client.forward(request).await }
    });
    let asked = played.request().await;
    assert_ne!(asked.id, 7, "ids are of the session");
    played.answer(asked.id, Reply::Draining(Draining { connections: 1 })).await;
    let reply = forwarding.await.unwrap().unwrap().into_inner().reply.unwrap();
    assert_eq!(reply, NodeReply { id: 7, reply: Some(Reply::Draining(Draining { connections: 1 })) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_died_with_a_session_is_named() {
    let cluster = Cluster::new();
    let unreachable = |config: &mut tbmq_control_plane::Config| {
        config.control.grpc.advertised_address = Some("127.0.0.1:1".to_owned().try_into().unwrap());
    };
    let first = cluster.control_plane_with("cp1", unreachable).await;
    let second = cluster.control_plane("cp2").await;
    let _played = Played::register(&first, "dp1", &["commands"]).await;
    let status = drain(&second, "dp1").await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "NODE_UNREACHABLE".to_owned()));
    for part in ["dp1", "cp1", "http://127.0.0.1:1", "CONTROL_GRPC_ADVERTISED_ADDRESS"] {
        assert!(status.message().contains(part), "{}", status.message());
    }
    let announced = nodes(&second).await.into_iter().find(|node| node.service_id == "cp1").unwrap();
    assert_eq!(announced.addresses, ["http://127.0.0.1:1"]);
}
