//! Sessions, subscriptions and retained messages of two real data planes, through a control plane that holds the session
//! of one of them.

use tbmq_data_plane::Running;
use tbmq_harness::client::Client;
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Ack, Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
};
use tbmq_proto::control::{
    ClearRetainedMessagesRequest, ClearSessionRequest, ClearSessionsRequest, ConnectionState,
    DeleteRetainedMessageRequest, DisconnectSessionRequest, DisconnectSessionsRequest,
    GetRetainedMessageRequest, GetSessionCountsRequest, ListRetainedMessagesRequest, ListSessionsRequest,
    ListSharedSubscriptionsRequest, RetainedMessageFilter, SearchSubscriptionsRequest, SessionFilter,
    Subscription, SubscriptionCount, UpdateSubscriptionsRequest,
    retained_message_service_client::RetainedMessageServiceClient,
};
use tonic::{Code, Status};

use crate::{
    nodes::{data_plane, five, get, grpc, is_told, list, mqtt, registered, sessions, still_served},
    support::{Cluster, ControlPlane, eventually, fields, reason},
};

struct World {
    first: ControlPlane,
    second: ControlPlane,
    one: Running,
    two: Running,
    _cluster: Cluster,
}

async fn world() -> World {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let (one, two) =
        (data_plane(&cluster, "dp1", grpc(&first)).await, data_plane(&cluster, "dp2", grpc(&second)).await);
    for (plane, node) in [(&second, "dp1"), (&first, "dp2"), (&first, "dp1")] {
        registered(plane, node).await;
    }
    World { first, second, one, two, _cluster: cluster }
}

/// A client whose session outlives its connection, and whether there was one.
async fn lasting(plane: &Running, client_id: &str) -> (Client, bool) {
    let properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 1000).build();
    let connect = Connect { clean_start: false, properties, ..Connect::new(ProtocolVersion::V5, client_id) };
    let (client, connack) = Client::connect_with(mqtt(plane), connect).await.unwrap();
    (client, connack.session_present)
}

async fn publish(client: &mut Client, topic: &str, retain: bool, payload: &'static str) {
    let publish = Publish {
        dup: false,
        qos: Qos::AtLeastOnce,
        retain,
        topic: topic.into(),
        packet_id: Some(1),
        properties: Properties::NONE,
        payload: payload.into(),
    };
    client.send(&Packet::Publish(publish)).await.unwrap();
    match client.receive().await.unwrap() {
        Packet::PubAck(ack) => assert!(!ack.reason.is_error()),
        other => panic!("{other:?}"),
    }
}

async fn message(client: &mut Client) -> String {
    match client.receive().await.unwrap() {
        Packet::Publish(publish) => {
            if let Some(packet_id) = publish.packet_id {
                client.send(&Packet::PubAck(Ack::new(packet_id, ReasonCode::Success))).await.unwrap();
            }
            String::from_utf8(publish.payload.to_vec()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

async fn is_away(plane: &ControlPlane, client_id: &str) {
    eventually("its connection is gone", async || {
        get(plane, client_id).await.is_ok_and(|one| one.state() == ConnectionState::Disconnected)
    })
    .await;
}

async fn listed(
    plane: &ControlPlane,
    order_by: &str,
    states: &[ConnectionState],
    page_size: i32,
) -> Vec<String> {
    let states = states.iter().map(|state| i32::from(*state)).collect();
    let mut request = ListSessionsRequest {
        page_size,
        order_by: order_by.to_owned(),
        filter: Some(SessionFilter { states, ..SessionFilter::default() }),
        ..ListSessionsRequest::default()
    };
    let mut found = Vec::new();
    loop {
        let page = list(plane, request.clone()).await.unwrap();
        found.extend(page.sessions.into_iter().map(|one| format!("{}@{}", one.client_id, one.service_id)));
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

async fn clear(plane: &ControlPlane, client_id: &str, session_id: &str) -> Result<(), Status> {
    let request = ClearSessionRequest { client_id: client_id.to_owned(), session_id: session_id.to_owned() };
    sessions(plane).clear_session(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_all_nodes_are_ordered_counted_and_what_was_left_behind_is_not_shown() {
    let world = world().await;
    let World { first, second, one, two, .. } = &world;
    let (mut a, _) = lasting(one, "a").await;
    a.subscribe("t", Qos::AtLeastOnce).await.unwrap();
    let mut b = five(two, "b").await;
    b.subscribe("t", Qos::AtLeastOnce).await.unwrap();
    b.subscribe("u", Qos::AtLeastOnce).await.unwrap();
    let _c = five(one, "c").await;
    drop(a);
    is_away(first, "a").await;
    for plane in [first, second] {
        for size in [1, 2, 10] {
            assert_eq!(listed(plane, "", &[], size).await, ["a@dp1", "b@dp2", "c@dp1"], "{size}");
            let by_count = listed(plane, "subscription_count desc", &[], size).await;
            assert_eq!(by_count, ["b@dp2", "a@dp1", "c@dp1"], "{size}");
            let by_time = listed(plane, "connect_time", &[], size).await;
            assert_eq!(by_time, ["a@dp1", "b@dp2", "c@dp1"], "{size}");
        }
        assert_eq!(listed(plane, "", &[ConnectionState::Disconnected], 10).await, ["a@dp1"]);
        let counts =
            sessions(plane).get_session_counts(GetSessionCountsRequest {}).await.unwrap().into_inner();
        assert_eq!((counts.connected, counts.disconnected, counts.total, counts.devices), (2, 1, 3, 3));
        assert_eq!(counts.silent_nodes, [""; 0]);
    }
    // The client goes on elsewhere: what is left here is no session of its own any more.
    let (a, _) = lasting(two, "a").await;
    assert_eq!(listed(first, "", &[], 1).await, ["a@dp2", "b@dp2", "c@dp1"]);
    assert_eq!(listed(first, "", &[ConnectionState::Disconnected], 10).await, [""; 0]);
    drop(a);
    eventually("it is parked at both", async || {
        listed(first, "", &[ConnectionState::Disconnected], 10).await == ["a@dp2"]
    })
    .await;
    clear(first, "a", "").await.unwrap();
    assert_eq!(listed(first, "", &[], 10).await, ["b@dp2", "c@dp1"], "all of it is gone");

    let refused = |order_by: &str, filter: SessionFilter| {
        list(
            first,
            ListSessionsRequest { order_by: order_by.to_owned(), filter: Some(filter), ..Default::default() },
        )
    };
    let none = SessionFilter::default;
    for (order_by, filter, field) in [
        ("color", none(), "order_by"),
        ("", SessionFilter { address: "10.3".to_owned(), ..none() }, "filter.address"),
        ("", SessionFilter { states: vec![9], ..none() }, "filter.states"),
        ("", SessionFilter { client_types: vec!["CAT".to_owned()], ..none() }, "filter.client_types"),
        (
            "",
            SessionFilter { subscription_count: Some(SubscriptionCount::default()), ..none() },
            "filter.subscription_count.operator",
        ),
    ] {
        assert_eq!(fields(&refused(order_by, filter).await.unwrap_err()), [field]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_only_as_they_were_seen() {
    let world = world().await;
    let World { first, second, one, two, .. } = &world;
    let (mut client, _) = lasting(one, "c").await;
    client.subscribe("t", Qos::AtLeastOnce).await.unwrap();
    let session_id = get(second, "c").await.unwrap().session_id;
    let disconnect = async |session_id: &str| {
        let request =
            DisconnectSessionRequest { client_id: "c".to_owned(), session_id: session_id.to_owned() };
        sessions(second).disconnect_session(request).await
    };
    let status = clear(second, "c", "").await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "SESSION_CONNECTED".to_owned()));
    assert!(status.message().contains("disconnect it first"), "{}", status.message());
    let status = disconnect("another").await.unwrap_err();
    assert_eq!(reason(&status), (Code::Aborted, "SESSION_MISMATCH".to_owned()));
    still_served(&mut client).await;
    disconnect(&session_id).await.unwrap();
    is_told(&mut client, ReasonCode::AdministrativeAction).await;
    is_away(second, "c").await;
    assert_eq!(reason(&disconnect(&session_id).await.unwrap_err()), (Code::NotFound, "NOT_FOUND".to_owned()));
    let status = clear(second, "c", "another").await.unwrap_err();
    assert_eq!(reason(&status), (Code::Aborted, "SESSION_MISMATCH".to_owned()));
    clear(second, "c", &session_id).await.unwrap();
    let status = clear(second, "c", "").await.unwrap_err();
    assert_eq!(reason(&status), (Code::NotFound, "NOT_FOUND".to_owned()));
    assert!(!lasting(one, "c").await.1, "nothing of the session is left");

    // Many, on both nodes.
    let mut clients = Vec::new();
    for number in 0..6 {
        let plane = if number % 2 == 0 { one } else { two };
        clients.push(lasting(plane, &format!("many-{number}")).await.0);
    }
    let end = async |validate_only| {
        let request = DisconnectSessionsRequest {
            text_search: "MANY".to_owned(),
            validate_only,
            ..DisconnectSessionsRequest::default()
        };
        sessions(first).disconnect_sessions(request).await.unwrap().into_inner()
    };
    assert_eq!((end(true).await.count, end(false).await.count), (6, 6));
    for client in &mut clients {
        is_told(client, ReasonCode::AdministrativeAction).await;
    }
    eventually("all are away", async || end(true).await.count == 0).await;
    let clear_many = async |validate_only, states: Vec<i32>| {
        let filter = Some(SessionFilter { states, ..SessionFilter::default() });
        let request = ClearSessionsRequest {
            filter,
            text_search: "many".to_owned(),
            validate_only,
            ..Default::default()
        };
        sessions(second).clear_sessions(request).await.map(tonic::Response::into_inner)
    };
    assert_eq!(clear_many(true, Vec::new()).await.unwrap().count, 6);
    let done = clear_many(false, Vec::new()).await.unwrap();
    assert_eq!((done.count, done.more, done.silent_nodes), (6, false, Vec::new()));
    assert_eq!(clear_many(false, Vec::new()).await.unwrap().count, 0);
    let refused = clear_many(true, vec![ConnectionState::Connected.into()]).await.unwrap_err();
    assert_eq!(fields(&refused), ["filter.states"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_found_and_set_wherever_the_client_is() {
    let world = world().await;
    let World { first, second, one, two, .. } = &world;
    let mut here = five(one, "here").await;
    let mut there = five(two, "there").await;
    for client in [&mut here, &mut there] {
        client.subscribe("$share/g/jobs", Qos::AtLeastOnce).await.unwrap();
        client.subscribe("a/#", Qos::AtMostOnce).await.unwrap();
    }
    for page_size in [1, 3, 100] {
        let mut request = SearchSubscriptionsRequest { page_size, ..Default::default() };
        let mut found = Vec::new();
        loop {
            let page = sessions(first).search_subscriptions(request.clone()).await.unwrap().into_inner();
            found.extend(page.subscriptions.into_iter().map(|one| {
                let subscription = one.subscription.unwrap();
                format!("{}@{} {}", one.client_id, one.service_id, subscription.filter)
            }));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(
            found,
            ["here@dp1 jobs", "here@dp1 a/#", "there@dp2 jobs", "there@dp2 a/#"],
            "{page_size}"
        );
    }
    let request = ListSharedSubscriptionsRequest::default();
    let groups = sessions(first).list_shared_subscriptions(request).await.unwrap().into_inner();
    let [group] = &groups.shared_subscriptions[..] else { panic!("{groups:?}") };
    assert_eq!((group.share_name.as_str(), group.filter.as_str(), group.member_count), ("g", "jobs", 2));
    let members: Vec<_> =
        group.members.iter().map(|one| format!("{}@{}", one.client_id, one.service_id)).collect();
    assert_eq!(members, ["here@dp1", "there@dp2"]);

    let update = async |client_id: &str, session_id: &str, filters: &[&str]| {
        let one = |filter: &&str| Subscription { filter: (*filter).to_owned(), qos: 1, ..Default::default() };
        let request = UpdateSubscriptionsRequest {
            client_id: client_id.to_owned(),
            subscriptions: filters.iter().map(one).collect(),
            session_id: session_id.to_owned(),
        };
        sessions(second).update_subscriptions(request).await.map(|answer| answer.into_inner().subscriptions)
    };
    assert_eq!(update("here", "", &["new", "b/+"]).await.unwrap().len(), 2);
    let mut publisher = five(one, "publisher").await;
    publish(&mut publisher, "a/1", false, "not any more").await;
    still_served(&mut here).await;
    publish(&mut publisher, "new", false, "live").await;
    assert_eq!(message(&mut here).await, "live");
    let status = update("here", "another", &[]).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Aborted, "SESSION_MISMATCH".to_owned()));
    assert_eq!(reason(&update("nobody", "", &[]).await.unwrap_err()).0, Code::NotFound);
    assert_eq!(fields(&update("here", "", &["a/#/b"]).await.unwrap_err()), ["subscriptions[0].filter"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_are_browsed_at_any_node_and_deleted_for_all() {
    let world = world().await;
    let World { first, one, two, .. } = &world;
    let mut client = RetainedMessageServiceClient::new(first.channel.clone());
    let mut publisher = five(one, "publisher").await;
    for (topic, payload) in [("a", "one"), ("a/b", "two"), ("a/c", "three"), ("z", "four")] {
        publish(&mut publisher, topic, true, payload).await;
    }
    let listed = async |topic_filter: &str, page_size| {
        let filter =
            Some(RetainedMessageFilter { topic_filter: topic_filter.to_owned(), ..Default::default() });
        let mut request = ListRetainedMessagesRequest { page_size, filter, ..Default::default() };
        let mut found = Vec::new();
        loop {
            let page = client.clone().list_retained_messages(request.clone()).await.unwrap().into_inner();
            found.extend(page.retained_messages.into_iter().map(|one| one.topic));
            if page.next_page_token.is_empty() {
                return found;
            }
            request.page_token = page.next_page_token;
        }
    };
    for size in [1, 3, 100] {
        assert_eq!(listed("", size).await, ["a", "a/b", "a/c", "z"], "{size}");
        assert_eq!(listed("a/+", size).await, ["a/b", "a/c"], "{size}");
    }
    let topic = || "a/b".to_owned();
    let found =
        client.get_retained_message(GetRetainedMessageRequest { topic: topic() }).await.unwrap().into_inner();
    assert_eq!((&found.payload[..], found.publisher.as_str()), (&b"two"[..], "publisher"));
    client.delete_retained_message(DeleteRetainedMessageRequest { topic: topic() }).await.unwrap();
    for status in [
        client.get_retained_message(GetRetainedMessageRequest { topic: topic() }).await.unwrap_err(),
        client.delete_retained_message(DeleteRetainedMessageRequest { topic: topic() }).await.unwrap_err(),
    ] {
        assert_eq!(reason(&status), (Code::NotFound, "NOT_FOUND".to_owned()));
    }
    let mut clear = async |validate_only| {
        let filter = Some(RetainedMessageFilter { topic_filter: "a/#".to_owned(), ..Default::default() });
        let request = ClearRetainedMessagesRequest { filter, validate_only };
        client.clear_retained_messages(request).await.unwrap().into_inner().count
    };
    assert_eq!([clear(true).await, clear(false).await, clear(false).await], [2, 2, 0]);
    // A new subscriber of the other node gets what is left, once that node has read so far.
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut late = five(two, &format!("late-{attempt}")).await;
        late.subscribe("#", Qos::AtMostOnce).await.unwrap();
        late.send(&Packet::PingReq).await.unwrap();
        let mut heard = Vec::new();
        loop {
            match late.receive().await.unwrap() {
                Packet::Publish(publish) => heard.push(String::from_utf8(publish.payload.to_vec()).unwrap()),
                Packet::PingResp => break,
                other => panic!("{other:?}"),
            }
        }
        if heard == ["four"] {
            break;
        }
        assert!(attempt < 200, "{heard:?}");
        tokio::task::yield_now().await;
    }
    let sys = DeleteRetainedMessageRequest { topic: "$SYS/broker/uptime".to_owned() };
    assert_eq!(fields(&client.delete_retained_message(sys).await.unwrap_err()), ["topic"]);
    let wild = GetRetainedMessageRequest { topic: "a/+".to_owned() };
    assert_eq!(fields(&client.get_retained_message(wild).await.unwrap_err()), ["topic"]);
}
