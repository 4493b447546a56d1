//! What an operator sees of sessions, subscriptions and retained messages, and does to them, as a control plane asks it.

use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Packet, Publish, Qos, ReasonCode, RetainHandling, Subscription},
};
use tbmq_proto::{
    control::{ConnectionState, RetainedMessageFilter, SessionFilter, SubscriptionFilter},
    node::{
        ClearRetained, CountSessions, EndSessions, FindSessions, GetRetained, GroupMember, QueryGroups,
        QueryRetained, QuerySessions, QuerySubscriptions, RetainedPage, SessionDetail, SessionReference,
        SessionTally, SetSubscriptions, SubscriptionInfo, SubscriptionPage, node_reply::Reply,
        node_request::Request as Wanted, sessions_ended::Result as Ended,
    },
};

use crate::{
    bus::{Mode, TestBus},
    client::{Client, publish, subscription, text, will},
    commands::Controlled,
    persistent::{connected, cut, lasting, published},
    plane::{Plane, config, until},
};

fn reference(client_id: &str, session_id: &str) -> SessionReference {
    SessionReference { client_id: client_id.to_owned(), session_id: session_id.to_owned() }
}

async fn ended(node: &mut Controlled, clear: bool, client_id: &str, session_id: &str) -> Ended {
    let sessions = vec![reference(client_id, session_id)];
    match node.ask(Wanted::EndSessions(EndSessions { sessions, clear })).await {
        Reply::Ended(ended) => ended.results().next().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn listed(node: &mut Controlled, states: &[ConnectionState]) -> Vec<String> {
    let states = states.iter().map(|state| i32::from(*state)).collect();
    let filter = Some(SessionFilter { states, ..SessionFilter::default() });
    match node
        .ask(Wanted::QuerySessions(QuerySessions { filter, limit: 10, ..QuerySessions::default() }))
        .await
    {
        Reply::SessionPage(page) => page.sessions.into_iter().map(|one| one.client_id).collect(),
        other => panic!("{other:?}"),
    }
}

fn wanted(filter: &str, qos: u32) -> SubscriptionInfo {
    SubscriptionInfo { filter: filter.to_owned(), qos, ..SubscriptionInfo::default() }
}

async fn set(node: &mut Controlled, client_id: &str, subscriptions: &[SubscriptionInfo]) -> Reply {
    let session = Some(reference(client_id, ""));
    node.ask(Wanted::SetSubscriptions(SetSubscriptions { session, subscriptions: subscriptions.to_vec() }))
        .await
}

#[tokio::test]
async fn a_session_without_a_connection_is_told_with_its_queue_and_its_end() {
    let mut node = Controlled::start(|_| {}).await;
    let mut connect = lasting("away", 1000);
    connect.username = Some("u".into());
    let delay = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, 500).build();
    connect.will = Some(tbmq_mqtt::packet::Will { properties: delay, ..will("w", "gone") });
    let mut client = connected(&node.plane, connect, false).await;
    client.subscribed("t/#", Qos::AtLeastOnce).await;
    let here = node.found("away").await.session.unwrap();
    assert!(!here.disconnected && here.persistent && here.disconnect_time.is_none());
    let details = here.details.unwrap();
    assert_eq!((details.transport.as_str(), details.expiry_seconds), ("TCP", 1000));
    assert_eq!((details.expire_time, details.queued_messages), (None, 0));
    assert!(details.receive_maximum > 0);
    assert_eq!(details.will.unwrap().due_time, None);

    cut(&node.plane, client).await;
    let mut publisher = Client::v5(node.plane.address, "publisher").await;
    for id in 1..=3 {
        published(&mut publisher, "t/1", Qos::AtLeastOnce, id, "x").await;
    }
    let away = node.found("away").await;
    assert_eq!(away.subscriptions, [wanted("t/#", 1)]);
    let session = away.session.unwrap();
    let seconds = |time: Option<prost_types::Timestamp>| time.unwrap().seconds;
    assert!(session.disconnected && seconds(session.disconnect_time) >= seconds(session.connect_time));
    assert_eq!((session.session_id, session.username), (here.session_id, "u".to_owned()));
    let details = session.details.unwrap();
    assert_eq!((details.queued_messages, details.in_flight), (3, 0));
    assert!(details.queued_bytes > 0);
    let left = |time: Option<prost_types::Timestamp>| {
        time.unwrap().seconds - session.disconnect_time.unwrap().seconds
    };
    assert!((999..=1001).contains(&left(details.expire_time)), "{details:?}");
    let will = details.will.unwrap();
    assert_eq!((will.topic.as_str(), will.qos, will.payload_bytes), ("w", 1, 4));
    assert!((499..=501).contains(&left(will.due_time)));

    assert_eq!(listed(&mut node, &[]).await, ["away", "publisher"]);
    assert_eq!(listed(&mut node, &[ConnectionState::Disconnected]).await, ["away"]);
    assert_eq!(listed(&mut node, &[ConnectionState::Connected]).await, ["publisher"]);
    let Reply::Tally(tally) = node.ask(Wanted::CountSessions(CountSessions {})).await else { panic!() };
    assert_eq!(tally, SessionTally { connected: 1, disconnected: 1, devices: 2, applications: 0 });
    let client_ids = vec!["nobody".to_owned(), "away".to_owned()];
    let Reply::Sessions(found) = node.ask(Wanted::FindSessions(FindSessions { client_ids })).await else {
        panic!()
    };
    assert_eq!(found.sessions.len(), 1);
    // Another connection has another session id.
    let _client = connected(&node.plane, lasting("away", 1000), true).await;
    let again = node.found("away").await.session.unwrap();
    assert!(!again.disconnected && again.session_id != found.sessions[0].session_id);
}

#[tokio::test]
async fn a_session_is_cleared_only_while_its_client_is_away_and_nothing_of_it_is_left() {
    let mut node = Controlled::start(|_| {}).await;
    let mut publisher = Client::v5(node.plane.address, "publisher").await;
    publisher.subscribed("w", Qos::AtMostOnce).await;
    let mut connect = lasting("c", 1000);
    let delay = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, 500).build();
    connect.will = Some(tbmq_mqtt::packet::Will { properties: delay, ..will("w", "over") });
    let mut client = connected(&node.plane, connect, false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    let session_id = node.found("c").await.session.unwrap().session_id;
    assert_eq!(ended(&mut node, true, "c", "").await, Ended::Connected);
    assert_eq!(ended(&mut node, true, "nobody", "").await, Ended::Unspecified);
    let other = "11111111-1111-4111-8111-111111111111";
    assert_eq!(ended(&mut node, false, "c", other).await, Ended::Replaced);
    client.hears_nothing().await;
    assert_eq!(ended(&mut node, false, "c", &session_id).await, Ended::Ended);
    client.is_told(ReasonCode::AdministrativeAction).await;
    until(|| node.plane.metric("tbmq_mqtt_sessions_parked") == 1).await;
    published(&mut publisher, "t", Qos::AtLeastOnce, 1, "queued").await;
    assert_eq!(ended(&mut node, false, "c", "").await, Ended::Unspecified, "it has no connection");
    assert_eq!(ended(&mut node, true, "c", other).await, Ended::Replaced);
    assert_eq!(ended(&mut node, true, "c", "no id").await, Ended::Replaced);
    assert_eq!(ended(&mut node, true, "c", &session_id).await, Ended::Ended);
    assert_eq!(text(&publisher.message().await), "over", "with the session its will is due");
    assert_eq!(node.found("c").await, SessionDetail::default());
    assert_eq!(node.plane.metric("tbmq_mqtt_sessions_parked"), 0);
    let mut client = connected(&node.plane, lasting("c", 1000), false).await;
    client.hears_nothing().await;
    assert_eq!(node.found("c").await.session.unwrap().details.unwrap().queued_messages, 0);
}

#[tokio::test]
async fn subscriptions_are_replaced_without_a_packet_with_and_without_a_connection() {
    let mut node = Controlled::start(|_| {}).await;
    let mut publisher = Client::v5(node.plane.address, "publisher").await;
    let retained = Publish { retain: true, ..publish("new/1", Qos::AtLeastOnce, 9, "retained") };
    publisher.send(Packet::Publish(retained)).await;
    publisher.puback().await;
    let mut clean = Client::v5(node.plane.address, "clean").await;
    let mut kept = connected(&node.plane, lasting("kept", 1000), false).await;
    for client in [&mut clean, &mut kept] {
        client.subscribed("old", Qos::AtLeastOnce).await;
    }
    let identified = SubscriptionInfo { identifier: Some(7), ..wanted("new/#", 1) };
    let shared = SubscriptionInfo { share_name: "g".to_owned(), ..wanted("jobs", 1) };
    for client_id in ["clean", "kept"] {
        let Reply::Session(detail) = set(&mut node, client_id, &[identified.clone(), shared.clone()]).await
        else {
            panic!("refused")
        };
        assert_eq!(detail.subscriptions, [shared.clone(), identified.clone()]);
        assert_eq!(detail.session.unwrap().subscription_count, 2);
    }
    published(&mut publisher, "old", Qos::AtLeastOnce, 1, "no more").await;
    for client in [&mut clean, &mut kept] {
        client.hears_nothing().await;
    }
    published(&mut publisher, "new/2", Qos::AtLeastOnce, 2, "live").await;
    for client in [&mut clean, &mut kept] {
        let message = client.message().await;
        assert_eq!(
            (text(&message), message.properties.number(PropertyId::SubscriptionIdentifier)),
            ("live", Some(7))
        );
    }

    cut(&node.plane, kept).await;
    let Reply::Session(detail) = set(&mut node, "kept", &[wanted("away", 2)]).await else {
        panic!("refused")
    };
    assert_eq!(detail.session.unwrap().subscription_count, 1);
    published(&mut publisher, "away", Qos::AtLeastOnce, 3, "queued").await;
    published(&mut publisher, "new/3", Qos::AtLeastOnce, 4, "not any more").await;
    let mut kept = connected(&node.plane, lasting("kept", 1000), true).await;
    // What was in flight comes first, again.
    let mut texts = vec![text(&kept.message().await).to_owned()];
    texts.push(text(&kept.message().await).to_owned());
    assert_eq!(texts, ["live", "queued"]);
    kept.hears_nothing().await;
    assert_eq!(set(&mut node, "nobody", &[]).await, Reply::Session(SessionDetail::default()));
    let Reply::Error(error) = set(&mut node, "clean", &[wanted("a/#/b", 0)]).await else { panic!() };
    assert!(error.contains("a/#/b"), "{error}");
    assert!(
        matches!(set(&mut node, "clean", &[]).await, Reply::Session(detail) if detail.subscriptions.is_empty())
    );
}

#[tokio::test]
async fn subscriptions_of_all_clients_are_filtered_and_paged() {
    let mut node = Controlled::start(|_| {}).await;
    let special = Subscription {
        filter: "b/+".into(),
        qos: Qos::ExactlyOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
    };
    let mut clients = Vec::new();
    for id in ["Pump-1", "pump-2", "valve"] {
        let mut client = connected(&node.plane, lasting(id, 100), false).await;
        let all = ["a", "c", "$share/g/b", "$share/h/b"].map(|filter| subscription(filter, Qos::AtLeastOnce));
        client.subscribe(all.to_vec(), Properties::NONE).await;
        if id == "valve" {
            let identifier = PropertiesBuilder::new().number(PropertyId::SubscriptionIdentifier, 9).build();
            client.subscribe(vec![special.clone()], identifier).await;
        }
        clients.push(client);
    }
    // One of them has no connection.
    cut(&node.plane, clients.remove(0)).await;
    let mut query = async |filter: SubscriptionFilter, limit: u32| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let wanted = QuerySubscriptions { filter: Some(filter.clone()), after, limit };
            let Reply::Subscriptions(SubscriptionPage { subscriptions, next }) =
                node.ask(Wanted::QuerySubscriptions(wanted)).await
            else {
                panic!()
            };
            assert!(subscriptions.len() <= limit as usize);
            found.extend(subscriptions.into_iter().map(|one| {
                let subscription = one.subscription.unwrap();
                format!("{} {}{}", one.client_id, subscription.share_name, subscription.filter)
            }));
            after = next;
            if after.is_none() {
                return found;
            }
        }
    };
    let none = SubscriptionFilter::default;
    let all = query(none(), 1000).await;
    assert_eq!(all.len(), 13);
    assert_eq!(all[..5], ["Pump-1 gb", "Pump-1 hb", "Pump-1 a", "Pump-1 c", "pump-2 gb"]);
    for limit in [1, 2, 5] {
        assert_eq!(query(none(), limit).await, all, "{limit} a page");
    }
    let cases = [
        (8, SubscriptionFilter { client_id: "PUMP".to_owned(), ..none() }),
        (7, SubscriptionFilter { filter: "b".to_owned(), ..none() }),
        (3, SubscriptionFilter { share_name: "h".to_owned(), ..none() }),
        (1, SubscriptionFilter { qos: vec![2], ..none() }),
        (12, SubscriptionFilter { no_local: Some(false), ..none() }),
        (1, SubscriptionFilter { retain_as_published: Some(true), ..none() }),
        (1, SubscriptionFilter { retain_handling: vec![1, 2], ..none() }),
        (1, SubscriptionFilter { identifier: Some(9), ..none() }),
        (0, SubscriptionFilter { identifier: Some(9), qos: vec![0], ..none() }),
    ];
    for (count, filter) in cases {
        assert_eq!(query(filter.clone(), 3).await.len(), count, "{filter:?}");
    }
    let groups = async |node: &mut Controlled, wanted: QueryGroups| match node
        .ask(Wanted::QueryGroups(wanted))
        .await
    {
        Reply::Groups(page) => page,
        other => panic!("{other:?}"),
    };
    let page = groups(&mut node, QueryGroups { limit: 1, ..QueryGroups::default() }).await;
    assert!(page.more);
    let member = |client_id: &str, disconnected| GroupMember {
        client_id: client_id.to_owned(),
        client_type: "DEVICE".to_owned(),
        disconnected,
        qos: 1,
    };
    assert_eq!((page.groups[0].filter.as_str(), page.groups[0].member_count), ("$share/g/b", 3));
    assert_eq!(
        page.groups[0].members,
        [member("Pump-1", true), member("pump-2", false), member("valve", false)]
    );
    let after = page.groups[0].filter.clone();
    let page = groups(&mut node, QueryGroups { after, limit: 1, ..QueryGroups::default() }).await;
    assert_eq!((page.groups[0].filter.as_str(), page.more), ("$share/h/b", false));
    for (share_name, filter, client_id, count) in
        [("h", "", "", 1), ("", "b", "", 2), ("", "x", "", 0), ("", "", "VALV", 2), ("", "", "nobody", 0)]
    {
        let [share_name, filter, client_id] = [share_name, filter, client_id].map(str::to_owned);
        let wanted = QueryGroups { share_name, filter, client_id, limit: 10, ..QueryGroups::default() };
        assert_eq!(groups(&mut node, wanted.clone()).await.groups.len(), count, "{wanted:?}");
    }
}

async fn retain(client: &mut Client, topic: &str, qos: Qos, payload: &'static str) {
    let properties = PropertiesBuilder::new()
        .text(PropertyId::ContentType, "text/plain")
        .user("k", "v")
        .number(PropertyId::MessageExpiryInterval, 1000)
        .build();
    client
        .send(Packet::Publish(Publish { retain: true, properties, ..publish(topic, qos, 1, payload) }))
        .await;
    match client.next().await {
        Some(Packet::PubAck(ack)) => assert!(!ack.reason.is_error()),
        Some(Packet::PubRec(ack)) => {
            client
                .send(Packet::PubRel(tbmq_mqtt::packet::Ack::new(ack.packet_id, ReasonCode::Success)))
                .await;
            client.next().await;
        }
        other => panic!("{other:?}"),
    }
}

async fn retained(
    node: &mut Controlled,
    filter: RetainedMessageFilter,
    after: &str,
    limit: u32,
) -> RetainedPage {
    let wanted = QueryRetained { filter: Some(filter), after: after.to_owned(), limit, payload_bytes: 4 };
    match node.ask(Wanted::QueryRetained(wanted)).await {
        Reply::Retained(page) => page,
        other => panic!("{other:?}"),
    }
}

async fn cleared(
    node: &mut Controlled,
    topic_filter: &str,
    limit: u32,
    validate_only: bool,
) -> (u64, String) {
    let filter = Some(RetainedMessageFilter { topic_filter: topic_filter.to_owned(), ..Default::default() });
    let wanted = ClearRetained { filter, limit, validate_only, ..ClearRetained::default() };
    match node.ask(Wanted::ClearRetained(wanted)).await {
        Reply::RetainedCleared(cleared) => (cleared.count, cleared.next),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn retained_messages_are_filtered_paged_and_deleted_for_all_nodes() {
    let bus = TestBus::new();
    let mut node = Controlled::over(bus.clone(), |_| {}).await;
    let other = Plane::with(bus.clone(), config()).await;
    let mut publisher = Client::v5(node.plane.address, "publisher").await;
    let all = [("a", "alpha one"), ("a/b", "beta"), ("a/B/c", "gamma"), ("z", "omega one")];
    for (topic, payload) in all {
        retain(
            &mut publisher,
            topic,
            if topic == "z" { Qos::ExactlyOnce } else { Qos::AtLeastOnce },
            payload,
        )
        .await;
    }
    let now = tbmq_service::time::now_ms();
    let time = |ms: i64| Some(prost_types::Timestamp { seconds: (now + ms).div_euclid(1000), nanos: 0 });
    let none = RetainedMessageFilter::default;
    let page = retained(&mut node, none(), "", 10).await;
    let topics = |page: &RetainedPage| page.messages.iter().map(|one| one.topic.clone()).collect::<Vec<_>>();
    assert_eq!(
        (topics(&page), page.more),
        (vec!["a".into(), "a/B/c".into(), "a/b".into(), "z".into()], false)
    );
    let first = &page.messages[0];
    assert_eq!((&first.payload[..], first.payload_bytes, first.qos), (&b"alph"[..], 9, 1));
    assert_eq!(first.publisher, "publisher");
    assert!((now / 1000 - 60..=now / 1000).contains(&first.publish_time.unwrap().seconds));
    let mut paged = Vec::new();
    loop {
        let page = retained(&mut node, none(), paged.last().map_or("", String::as_str), 1).await;
        paged.extend(topics(&page));
        if !page.more {
            break;
        }
    }
    assert_eq!(paged, topics(&page));
    let cases = [
        (
            2,
            RetainedMessageFilter { topic_filter: "a/+/#".to_owned(), text_search: "b".to_owned(), ..none() },
        ),
        (1, RetainedMessageFilter { topic_filter: "+".to_owned(), text_search: "A".to_owned(), ..none() }),
        (2, RetainedMessageFilter { payload: "one".to_owned(), ..none() }),
        (1, RetainedMessageFilter { qos: vec![2], ..none() }),
        (4, RetainedMessageFilter { start_time: time(-60_000), end_time: time(60_000), ..none() }),
        (0, RetainedMessageFilter { start_time: time(60_000), ..none() }),
        (0, RetainedMessageFilter { end_time: time(-60_000), ..none() }),
    ];
    for (count, filter) in cases {
        assert_eq!(retained(&mut node, filter.clone(), "", 10).await.messages.len(), count, "{filter:?}");
    }
    let get = |topic: &str| Wanted::GetRetained(GetRetained { topic: topic.to_owned() });
    let Reply::RetainedFound(found) = node.ask(get("a")).await else { panic!() };
    let message = found.message.unwrap();
    assert_eq!(&message.payload[..], b"alpha one");
    let properties = message.properties.unwrap();
    assert_eq!(
        (properties.content_type.as_str(), properties.user_properties[0].key.as_str()),
        ("text/plain", "k")
    );
    let left_s = message.expire_time.unwrap().seconds - message.publish_time.unwrap().seconds;
    assert!((999..=1001).contains(&left_s), "{left_s}");

    assert_eq!(cleared(&mut node, "a/#", 10, true).await, (3, String::new()), "only counted");
    assert_eq!(retained(&mut node, none(), "", 10).await.messages.len(), 4);
    assert_eq!(cleared(&mut node, "nothing", 10, false).await, (0, String::new()));
    assert_eq!(cleared(&mut node, "a/b", 10, false).await, (1, String::new()), "a topic");
    assert_eq!(cleared(&mut node, "a/#", 1, false).await, (1, "a".to_owned()));
    let (count, _) = cleared(&mut node, "a/#", 10, false).await;
    assert_eq!(count, 1);
    until(|| other.metric("tbmq_mqtt_retained_messages") == 1).await;
    let mut late = Client::v5(other.address, "late").await;
    late.subscribed("#", Qos::AtMostOnce).await;
    assert_eq!(text(&late.message().await), "omega one");
    late.hears_nothing().await;
    let Reply::RetainedFound(found) = node.ask(get("a")).await else { panic!() };
    assert_eq!(found.message, None);
}

#[tokio::test]
async fn a_retained_message_that_the_bus_does_not_let_go_stays() {
    let mut node = Controlled::start(|_| {}).await;
    let mut publisher = Client::v5(node.plane.address, "publisher").await;
    retain(&mut publisher, "a", Qos::AtLeastOnce, "x").await;
    until(|| node.plane.metric("tbmq_mqtt_retained_messages") == 1).await;
    node.plane.bus.control.set(Mode::Keep);
    let control = node.plane.bus.control.clone();
    let clearing = async {
        let filter = Some(RetainedMessageFilter { topic_filter: "a".to_owned(), ..Default::default() });
        node.ask(Wanted::ClearRetained(ClearRetained { filter, limit: 1, ..ClearRetained::default() })).await
    };
    let refusing = async {
        until(|| control.kept() == 1).await;
        control.give(0, Err(tbmq_bus::Error::Unavailable("away".into())));
    };
    let (reply, ()) = tokio::join!(clearing, refusing);
    assert!(matches!(&reply, Reply::Error(text) if text.contains("away")), "{reply:?}");
    assert_eq!(retained(&mut node, RetainedMessageFilter::default(), "", 9).await.messages.len(), 1);
}
