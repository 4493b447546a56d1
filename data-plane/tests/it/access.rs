//! What clients may do, by the rules of the credentials by which they came.

use std::time::{Duration, Instant};

use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{
        Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, SubAck, Subscribe,
        Subscription,
    },
};

use crate::{
    client::{Client, VERSIONS, connect_packet, publish, subscription, text, will},
    credentials::{self, all, basic, bus_with, of, removed},
    persistent::cut,
    plane::{Plane, config},
    restart::{Ending, Site},
};

/// A plane where `admin` may do everything and `device` what is below `mine/`.
async fn plane() -> Plane {
    Plane::with(bus().await, config()).await
}

async fn bus() -> std::sync::Arc<crate::bus::TestBus> {
    let bus = bus_with(&["MQTT_BASIC"]).await;
    basic(&bus, "admin", 1, None, &[all("#")]).await;
    let low = credentials::subscribe("low/#", Qos::AtLeastOnce);
    basic(&bus, "device", 1, None, &[all("mine/#"), low]).await;
    bus
}

async fn watcher(plane: &Plane) -> Client {
    let (mut watcher, _) = Client::with(plane.address, of("admin", ProtocolVersion::V5)).await;
    watcher.subscribed("#", Qos::ExactlyOnce).await;
    watcher
}

async fn device(plane: &Plane, version: ProtocolVersion) -> Client {
    Client::with(plane.address, of("device", version)).await.0
}

/// What the server answers to a CONNECT that it refuses, after which it closes.
async fn refusal(plane: &Plane, connect: Connect) -> ReasonCode {
    let mut client = Client::open(plane.address, connect.version).await;
    client.send(Packet::Connect(Box::new(connect))).await;
    match client.next().await {
        Some(Packet::ConnAck(connack)) => {
            assert!(!connack.session_present);
            assert_eq!(client.next().await, None);
            connack.reason
        }
        other => panic!("no CONNACK: {other:?}"),
    }
}

#[tokio::test]
async fn what_a_5_0_client_may_not_publish_is_told_and_reaches_nobody() {
    let plane = plane().await;
    let mut watcher = watcher(&plane).await;
    let mut device = device(&plane, ProtocolVersion::V5).await;
    device.publish("other", Qos::AtMostOnce, 0, "no").await;
    device.publish("other", Qos::AtLeastOnce, 1, "no").await;
    assert_eq!(device.puback().await.reason, ReasonCode::NotAuthorized);
    device.publish("other", Qos::ExactlyOnce, 2, "no").await;
    assert_eq!(device.pubrec().await.reason, ReasonCode::NotAuthorized);
    let retained = Publish { retain: true, ..publish("other", Qos::AtLeastOnce, 1, "no") };
    device.send(Packet::Publish(retained)).await;
    assert_eq!(device.puback().await.reason, ReasonCode::NotAuthorized);
    // An alias stands for what it stands for.
    let aliased = |topic: &str, payload| {
        let properties = PropertiesBuilder::new().number(PropertyId::TopicAlias, 1).build();
        Packet::Publish(Publish { properties, ..publish(topic, Qos::AtLeastOnce, 1, payload) })
    };
    for (packet, reason) in [
        (aliased("other", "no"), ReasonCode::NotAuthorized),
        (aliased("", "no"), ReasonCode::NotAuthorized),
        (aliased("mine/a", "yes"), ReasonCode::Success),
        (aliased("", "yes, too"), ReasonCode::Success),
    ] {
        device.send(packet).await;
        assert_eq!(device.puback().await.reason, reason);
    }
    for expected in ["yes", "yes, too"] {
        assert_eq!(text(&watcher.message().await), expected);
        watcher.send(Packet::PubAck(tbmq_mqtt::packet::Ack::new(1, ReasonCode::Success))).await;
    }
    watcher.hears_nothing().await;
    let (mut late, _) = Client::with(
        plane.address,
        Connect { username: Some("admin".into()), ..connect_packet(ProtocolVersion::V5, "late") },
    )
    .await;
    late.subscribed("other", Qos::AtMostOnce).await;
    late.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"NotAuthorized\"}"), 1);
}

#[tokio::test]
async fn a_3_x_client_is_closed_for_what_it_may_not_publish() {
    let plane = plane().await;
    let mut watcher = watcher(&plane).await;
    for version in [ProtocolVersion::V31, ProtocolVersion::V311] {
        for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let mut device = device(&plane, version).await;
            device.publish("other", qos, 1, "no").await;
            assert_eq!(device.next().await, None, "{version:?} {qos:?}");
        }
    }
    watcher.hears_nothing().await;
}

/// [MQTT-3.9.3-2] [MQTT5-3.9.3-1]
#[tokio::test]
async fn a_subscription_is_granted_as_far_as_the_rules_go_and_brings_nothing_else() {
    let plane = plane().await;
    let mut admin = Client::with(plane.address, of("admin", ProtocolVersion::V5)).await.0;
    for topic in ["other", "mine/kept"] {
        let kept = Publish { retain: true, ..publish(topic, Qos::AtLeastOnce, 1, "kept") };
        admin.send(Packet::Publish(kept)).await;
        admin.puback().await;
    }
    for version in VERSIONS {
        let mut device = device(&plane, version).await;
        let filters = ["#", "+", "other", "mine/#", "$share/g/#", "$share/g/other", "low/#", "a/#/b"];
        let subscriptions: Vec<Subscription> =
            filters.iter().map(|filter| subscription(filter, Qos::ExactlyOnce)).collect();
        device.send(Packet::Subscribe(Subscribe::new(1, subscriptions))).await;
        let Some(Packet::SubAck(SubAck { reasons, .. })) = device.next().await else { panic!("no SUBACK") };
        let codes: Vec<u8> = reasons.iter().map(|reason| reason.byte()).collect();
        let (refused, invalid) = if version.is_v5() { (0x87, 0x8f) } else { (0x80, 0x80) };
        assert_eq!(codes, [refused, refused, refused, 2, refused, refused, 1, invalid], "{version:?}");
        assert_eq!(&*device.message().await.topic, "mine/kept");
        admin.publish("other", Qos::AtMostOnce, 0, "no").await;
        admin.publish("low/x", Qos::AtMostOnce, 0, "yes").await;
        assert_eq!(text(&device.message().await), "yes");
        device.hears_nothing().await;
    }
}

#[tokio::test]
async fn a_connect_with_a_will_that_the_client_may_not_publish_is_refused() {
    let plane = plane().await;
    for version in VERSIONS {
        let connect = |topic| Connect { will: Some(will(topic, "gone")), ..of("device", version) };
        assert_eq!(refusal(&plane, connect("other")).await, ReasonCode::NotAuthorized, "{version:?}");
        Client::with(plane.address, connect("mine/will")).await.0.leave().await;
    }
}

/// [MQTT5-3.2.2-7]
#[tokio::test]
async fn who_is_not_let_in_leaves_the_session_of_that_client_id_as_it_is() {
    let site = Site { bus: bus().await, ..Site::new() };
    let secret = tbmq_auth::password::hash(b"secret", [7; 16]);
    basic(&site.bus, "owner", 1, Some(secret), &[all("#")]).await;
    let plane = site.start().await;
    let mut watcher = watcher(&plane).await;
    let owner = |password: &'static str, version: ProtocolVersion, clean_start| Connect {
        password: Some(password.into()),
        clean_start,
        ..of("owner", version)
    };
    let expiry = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 1000).build();
    let first = Connect {
        will: Some(will("wills", "gone")),
        properties: expiry.clone(),
        ..owner("secret", ProtocolVersion::V5, false)
    };
    let (mut client, connack) = Client::with(plane.address, first).await;
    assert!(!connack.session_present);
    client.subscribed("t", Qos::AtLeastOnce).await;
    for version in VERSIONS {
        for clean_start in [false, true] {
            let wrong = owner("wrong", version, clean_start);
            assert_eq!(refusal(&plane, wrong).await, ReasonCode::NotAuthorized, "{version:?}");
            let unknown =
                Connect { username: Some("nobody".into()), ..owner("secret", version, clean_start) };
            assert_eq!(refusal(&plane, unknown).await, ReasonCode::NotAuthorized, "{version:?}");
        }
    }
    client.hears_nothing().await;
    watcher.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_connections_ended_total{reason=\"TakenOver\"}"), 0);
    // Nor while it is away.
    client.send(Packet::Disconnect(Disconnect::new(ReasonCode::Success))).await;
    assert_eq!(client.next().await, None);
    assert_eq!(refusal(&plane, owner("wrong", ProtocolVersion::V311, true)).await, ReasonCode::NotAuthorized);
    let again = Connect { properties: expiry, ..owner("secret", ProtocolVersion::V5, false) };
    let (mut client, connack) = Client::with(plane.address, again).await;
    assert!(connack.session_present);
    watcher.publish("t", Qos::AtLeastOnce, 1, "kept").await;
    assert_eq!(text(&client.message().await), "kept");
}

/// [MQTT5-3.1.4-5]
#[tokio::test]
async fn what_comes_before_the_verdict_waits_for_it() {
    let bus = bus().await;
    let secret = tbmq_auth::password::hash(b"secret", [7; 16]);
    basic(&bus, "owner", 1, Some(secret), &[all("#")]).await;
    let plane = Plane::with(bus, config()).await;
    let mut watcher = watcher(&plane).await;
    for (password, is_right) in [("wrong", false), ("secret", true)] {
        let connect = Connect { password: Some(password.into()), ..of("owner", ProtocolVersion::V5) };
        let mut client = Client::open(plane.address, ProtocolVersion::V5).await;
        client
            .send_all(&[
                Packet::Connect(Box::new(connect)),
                Packet::Subscribe(Subscribe::new(1, vec![subscription("t", Qos::AtMostOnce)])),
                Packet::Publish(publish("t", Qos::AtMostOnce, 0, "early")),
                Packet::PingReq,
            ])
            .await;
        let Some(Packet::ConnAck(connack)) = client.next().await else { panic!("no CONNACK") };
        assert_eq!(connack.reason == ReasonCode::Success, is_right);
        if is_right {
            assert!(matches!(client.next().await, Some(Packet::SubAck(_))));
            // A delivery has no place among answers.
            let (one, other) = (client.next().await, client.next().await);
            let is_early = |packet: &Option<Packet>| matches!(packet, Some(Packet::Publish(publish)) if text(publish) == "early");
            assert!(is_early(&one) || is_early(&other), "{one:?} {other:?}");
            assert!([&one, &other].contains(&&Some(Packet::PingResp)), "{one:?} {other:?}");
            assert_eq!(text(&watcher.message().await), "early");
        } else {
            assert_eq!(client.next().await, None);
            watcher.hears_nothing().await;
        }
    }
}

#[tokio::test]
async fn connected_clients_have_their_new_rights_within_a_second() {
    let plane = plane().await;
    let mut admin = Client::with(plane.address, of("admin", ProtocolVersion::V5)).await.0;
    let mut device = device(&plane, ProtocolVersion::V5).await;
    device.subscribed("mine/#", Qos::AtLeastOnce).await;
    device.subscribed("low/#", Qos::AtLeastOnce).await;
    let changed = Instant::now();
    basic(&plane.bus, "device", 2, None, &[all("new/#"), credentials::subscribe("low/#", Qos::AtMostOnce)])
        .await;
    loop {
        device.publish("mine/a", Qos::AtLeastOnce, 1, "x").await;
        // Its own message, as long as it may have it.
        let reason = loop {
            match device.next().await {
                Some(Packet::PubAck(ack)) => break ack.reason,
                Some(Packet::Publish(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        if reason == ReasonCode::NotAuthorized {
            break;
        }
    }
    assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
    // What was on its way before.
    device.send(Packet::PingReq).await;
    while device.next().await != Some(Packet::PingResp) {}
    admin.publish("mine/a", Qos::AtLeastOnce, 1, "no").await;
    admin.puback().await;
    admin.publish("low/a", Qos::AtLeastOnce, 2, "less").await;
    admin.puback().await;
    let message = device.message().await;
    assert_eq!((text(&message), message.qos), ("less", Qos::AtMostOnce));
    device.hears_nothing().await;
    device.subscribed("new/a", Qos::AtLeastOnce).await;
}

#[tokio::test]
async fn who_loses_its_credential_is_disconnected_and_leaves_no_will() {
    let plane = plane().await;
    let mut watcher = watcher(&plane).await;
    let connect = |version, client_id: &str| Connect {
        will: Some(will("mine/will", "gone")),
        client_id: client_id.into(),
        ..of("device", version)
    };
    let (mut new, _) = Client::with(plane.address, connect(ProtocolVersion::V5, "new")).await;
    let (mut old, _) = Client::with(plane.address, connect(ProtocolVersion::V311, "old")).await;
    removed(&plane.bus, "device", 2).await;
    new.is_told(ReasonCode::NotAuthorized).await;
    assert_eq!(old.next().await, None);
    watcher.hears_nothing().await;
    assert_eq!(refusal(&plane, of("device", ProtocolVersion::V5)).await, ReasonCode::NotAuthorized);
    // Others stay.
    watcher.publish("t", Qos::AtMostOnce, 0, "x").await;
    assert_eq!(text(&watcher.message().await), "x");
}

#[tokio::test]
async fn a_session_that_is_kept_loses_the_filters_that_its_client_may_not_have_any_more() {
    let site = Site { bus: bus().await, ..Site::new() };
    let plane = site.start().await;
    let expiry = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 1000).build();
    let lasting =
        || Connect { clean_start: false, properties: expiry.clone(), ..of("device", ProtocolVersion::V5) };
    let (mut device, _) = Client::with(plane.address, lasting()).await;
    device.subscribed("mine/a", Qos::AtLeastOnce).await;
    device.subscribed("low/a", Qos::AtLeastOnce).await;
    cut(&plane, device).await;
    plane.end(Ending::Kill).await;
    basic(&site.bus, "device", 2, None, &[credentials::subscribe("low/#", Qos::AtLeastOnce)]).await;
    // Nobody knows now by what it came; its rights are judged when it comes again.
    let plane = site.start().await;
    let mut admin = Client::with(plane.address, of("admin", ProtocolVersion::V5)).await.0;
    let (mut device, connack) = Client::with(plane.address, lasting()).await;
    assert!(connack.session_present);
    for topic in ["mine/a", "low/a"] {
        admin.publish(topic, Qos::AtLeastOnce, 1, "x").await;
        admin.puback().await;
    }
    assert_eq!(&*device.message().await.topic, "low/a");
    cut(&plane, device).await;
    // As it was recorded.
    let plane = site.restart(plane, Ending::Kill).await;
    let mut admin = Client::with(plane.address, of("admin", ProtocolVersion::V5)).await.0;
    admin.publish("mine/a", Qos::AtLeastOnce, 1, "x").await;
    let reason = admin.puback().await.reason;
    assert_eq!(reason, ReasonCode::NoMatchingSubscribers);
}
