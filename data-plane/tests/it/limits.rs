//! Limits of what clients do (broker spec §5), each in 3.1.1 and 5.0. Those of a rate are so slow that nothing comes
//! back while a test runs: `3:3600` is three.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use tbmq_data_plane::{ClientRateLimitConfig, Config, RateLimitConfig};
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Ack, Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
};
use tbmq_proto::{
    topic::Catalogue,
    wire::{NodeApplied, Role},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    bus::TestBus,
    client::{Client, connect_packet, publish, text},
    credentials,
    gate::last_applied,
    persistent::{acknowledge, lasting, published},
    plane::{Plane, config, put, until},
    tls::Files,
    web_socket,
};

const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::V311, ProtocolVersion::V5];

const INCOMING: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"IncomingRate\"}";
const OUTGOING: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"OutgoingRate\"}";
const TOTAL: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"TotalRate\"}";
const PERSISTED: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"DevicePersistedRate\"}";
const BYTES: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"IncomingBytes\"}";
const CONNECTIONS: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"ConnectionRate\"}";
const ADDRESS_RATE: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"AddressConnectionRate\"}";
const ADDRESS: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"AddressConnections\"}";
const APPLICATIONS: &str = "tbmq_mqtt_client_limits_reached_total{limit=\"ApplicationClients\"}";
const DROPPED: &str = "tbmq_mqtt_messages_dropped_total{reason=\"RateLimit\"}";

async fn plane(change: impl FnOnce(&mut Config)) -> Plane {
    let mut config = config();
    // Proxies announce clients of other machines.
    config.auth.mqtt_anonymous_enabled = true;
    change(&mut config);
    Plane::with(TestBus::new(), config).await
}

fn each_client(limit: &str) -> ClientRateLimitConfig {
    ClientRateLimitConfig { enabled: true, client_config: limit.parse().unwrap() }
}

fn all(limit: &str) -> RateLimitConfig {
    RateLimitConfig { enabled: true, config: limit.parse().unwrap() }
}

/// A client with a session that outlives its connection.
async fn lasting_client(plane: &Plane, version: ProtocolVersion, client_id: &str) -> Client {
    let connect = match version {
        ProtocolVersion::V5 => lasting(client_id, 100),
        _ => Connect { clean_start: false, ..connect_packet(version, client_id) },
    };
    Client::with(plane.address, connect).await.0
}

/// Another data plane says that it lives, and has so many sessions; the plane has heard of it.
async fn another_node(plane: &Plane, sessions: u64) {
    let other = NodeApplied {
        service_id: "node-2".to_owned(),
        role: Role::DataPlane.into(),
        time_ms: tbmq_service::time::now_ms(),
        sessions,
        ..NodeApplied::default()
    };
    let topic = Catalogue::default().node_applied();
    put(&plane.bus, &topic, "node-2", Some(&other.encode_to_vec()), None).await;
    until(|| plane.metric("tbmq_node_data_plane_peers") == 1).await;
}

/// Asserts that the server closes without a word.
async fn is_cut(mut stream: TcpStream) {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    // Or resets, where bytes of ours were not read.
    read.await.expect("closed in time").ok();
    assert!(answer.is_empty(), "{answer:?}");
}

/// Publishes from 1 on at QoS 1, and asserts that each is taken.
async fn publishes(publisher: &mut Client, topic: &str, count: u16) {
    for id in 1..=count {
        publisher.publish(topic, Qos::AtLeastOnce, id, "x").await;
        assert!(!publisher.puback().await.reason.is_error());
    }
}

#[tokio::test]
async fn what_a_client_publishes_beyond_its_limit_is_refused_and_nobody_else_is_affected() {
    let plane = plane(|config| config.mqtt.rate_limits.incoming_publish = each_client("3:3600")).await;
    let mut subscriber = Client::v5(plane.address, "subscriber").await;
    subscriber.subscribed("#", Qos::AtLeastOnce).await;
    let mut good = Client::v5(plane.address, "good").await;
    let mut bad = Client::v5(plane.address, "bad").await;
    publishes(&mut bad, "bad", 3).await;

    bad.publish("bad", Qos::AtLeastOnce, 4, "x").await;
    assert_eq!(bad.puback().await, Ack::new(4, ReasonCode::QuotaExceeded));
    bad.publish("bad", Qos::ExactlyOnce, 5, "x").await;
    assert_eq!(bad.pubrec().await, Ack::new(5, ReasonCode::QuotaExceeded));
    bad.publish("bad", Qos::AtMostOnce, 0, "x").await;
    bad.hears_nothing().await;
    assert_eq!((plane.metric(INCOMING), plane.metric(DROPPED)), (3, 1));

    publishes(&mut good, "good", 3).await;
    for topic in ["bad", "bad", "bad", "good", "good", "good"] {
        let message = subscriber.message().await;
        assert_eq!(&*message.topic, topic);
        acknowledge(&mut subscriber, &message).await;
    }
    subscriber.hears_nothing().await;
}

#[tokio::test]
async fn a_client_of_3_1_1_that_publishes_beyond_its_limit_is_closed_with_its_will() {
    let plane = plane(|config| config.mqtt.rate_limits.incoming_publish = each_client("3:3600")).await;
    let mut subscriber = Client::v5(plane.address, "subscriber").await;
    subscriber.subscribed("will", Qos::AtMostOnce).await;
    for (count, qos) in [(1, Qos::AtMostOnce), (2, Qos::AtLeastOnce), (3, Qos::ExactlyOnce)] {
        let will = Some(crate::client::will("will", "over"));
        let connect = Connect { will, ..connect_packet(ProtocolVersion::V311, "bad") };
        let (mut bad, _) = Client::with(plane.address, connect).await;
        publishes(&mut bad, "bad", 3).await;
        bad.publish("bad", qos, 4, "x").await;
        assert_eq!(bad.next().await, None, "{qos:?}");
        assert_eq!(text(&subscriber.message().await), "over");
        assert_eq!(plane.metric(INCOMING), count);
    }
    until(|| plane.metric("tbmq_mqtt_connections_ended_total{reason=\"PublishRefused\"}") == 3).await;
}

#[tokio::test]
async fn a_repeated_publish_is_answered_although_the_limit_is_reached_and_a_refused_one_keeps_no_packet_id() {
    let plane = plane(|config| config.mqtt.rate_limits.incoming_publish = each_client("1:3600")).await;
    let mut client = Client::v5(plane.address, "c").await;
    client.publish("t", Qos::ExactlyOnce, 1, "x").await;
    assert!(!client.pubrec().await.reason.is_error());
    let again = Publish { dup: true, ..publish("t", Qos::ExactlyOnce, 1, "x") };
    client.send(Packet::Publish(again)).await;
    assert_eq!(client.pubrec().await, Ack::new(1, ReasonCode::Success));
    client.send(Packet::PubRel(Ack::new(1, ReasonCode::Success))).await;
    assert_eq!(client.next().await, Some(Packet::PubComp(Ack::new(1, ReasonCode::Success))));
    for _ in 0..2 {
        client.publish("t", Qos::ExactlyOnce, 2, "x").await;
        assert_eq!(client.pubrec().await, Ack::new(2, ReasonCode::QuotaExceeded));
    }
}

#[tokio::test]
async fn the_alias_of_a_refused_publish_counts_nevertheless() {
    let plane = plane(|config| config.mqtt.rate_limits.incoming_publish = each_client("1:3600")).await;
    let mut client = Client::v5(plane.address, "c").await;
    let alias = || PropertiesBuilder::new().number(PropertyId::TopicAlias, 1).build();
    client.publish("t", Qos::AtLeastOnce, 1, "x").await;
    client.puback().await;
    let named = Publish { properties: alias(), ..publish("t", Qos::AtLeastOnce, 2, "x") };
    client.send(Packet::Publish(named)).await;
    assert_eq!(client.puback().await, Ack::new(2, ReasonCode::QuotaExceeded));
    let aliased = Publish { properties: alias(), ..publish("", Qos::AtLeastOnce, 3, "x") };
    client.send(Packet::Publish(aliased)).await;
    assert_eq!(client.puback().await, Ack::new(3, ReasonCode::QuotaExceeded));
}

#[tokio::test]
async fn deliveries_at_qos_0_beyond_a_clients_limit_are_dropped_and_those_at_qos_1_are_not() {
    for version in VERSIONS {
        let plane = plane(|config| config.mqtt.rate_limits.outgoing_publish = each_client("3:3600")).await;
        let mut full = Client::connected(plane.address, version, "full").await;
        full.subscribed("much/+", Qos::AtLeastOnce).await;
        let mut other = Client::connected(plane.address, version, "other").await;
        other.subscribed("much/1", Qos::AtLeastOnce).await;
        let mut publisher = Client::v5(plane.address, "publisher").await;
        for topic in ["much/1", "much/2", "much/1", "much/2", "much/1"] {
            publisher.publish(topic, Qos::AtMostOnce, 0, "0").await;
        }
        published(&mut publisher, "much/1", Qos::AtLeastOnce, 1, "1").await;
        for expected in ["0", "0", "0", "1"] {
            for client in [&mut full, &mut other] {
                let message = client.message().await;
                assert_eq!(text(&message), expected);
                if message.packet_id.is_some() {
                    acknowledge(client, &message).await;
                }
            }
        }
        full.hears_nothing().await;
        assert_eq!((plane.metric(OUTGOING), plane.metric(DROPPED)), (2, 2), "{version:?}");
    }
}

#[tokio::test]
async fn beyond_the_limit_of_all_messages_the_first_receivers_get_one_and_then_it_is_refused() {
    for version in VERSIONS {
        let plane = plane(|config| config.mqtt.rate_limits.total = all("5:3600")).await;
        let mut subscribers = Vec::new();
        for id in ["a", "b", "c"] {
            let mut client = Client::connected(plane.address, version, id).await;
            client.subscribed("t", Qos::AtMostOnce).await;
            subscribers.push(client);
        }
        let mut publisher = Client::connected(plane.address, version, "publisher").await;
        // Three, and two.
        publishes(&mut publisher, "t", 2).await;
        for (client, count) in subscribers.iter_mut().zip([2, 2, 1]) {
            for _ in 0..count {
                client.message().await;
            }
            client.hears_nothing().await;
        }
        assert_eq!((plane.metric(TOTAL), plane.metric(DROPPED)), (1, 1));
        publisher.publish("t", Qos::AtLeastOnce, 3, "x").await;
        if version == ProtocolVersion::V5 {
            assert_eq!(publisher.puback().await, Ack::new(3, ReasonCode::QuotaExceeded));
            publisher.publish("t", Qos::ExactlyOnce, 4, "x").await;
            assert_eq!(publisher.pubrec().await, Ack::new(4, ReasonCode::QuotaExceeded));
            publisher.publish("t", Qos::AtMostOnce, 0, "x").await;
            publisher.hears_nothing().await;
            assert_eq!((plane.metric(TOTAL), plane.metric(DROPPED)), (4, 2));
        } else {
            assert_eq!(publisher.next().await, None);
            assert_eq!((plane.metric(TOTAL), plane.metric(DROPPED)), (2, 1));
        }
        for client in &mut subscribers {
            client.hears_nothing().await;
        }
    }
}

#[tokio::test]
async fn into_as_many_queues_as_the_limit_allows_a_message_goes_and_the_surplus_is_dropped() {
    for version in VERSIONS {
        let plane = plane(|config| config.mqtt.rate_limits.device_persisted_messages = all("3:3600")).await;
        let mut clients = Vec::new();
        for id in ["a", "b"] {
            let mut client = lasting_client(&plane, version, id).await;
            client.subscribed("t", Qos::AtLeastOnce).await;
            clients.push(client);
        }
        // Whoever has no queue is not counted.
        let mut clean = Client::connected(plane.address, version, "clean").await;
        clean.subscribed("t", Qos::AtLeastOnce).await;
        let mut publisher = Client::connected(plane.address, version, "publisher").await;
        // At QoS 0 nothing is put into a queue.
        publisher.publish("t", Qos::AtMostOnce, 0, "x").await;
        publishes(&mut publisher, "t", 3).await;
        for (client, counts) in clients.iter_mut().chain([&mut clean]).zip([[1, 2], [1, 1], [1, 3]]) {
            for _ in 0..counts.iter().sum() {
                let message = client.message().await;
                if message.packet_id.is_some() {
                    acknowledge(client, &message).await;
                }
            }
            client.hears_nothing().await;
        }
        assert_eq!((plane.metric(PERSISTED), plane.metric(DROPPED)), (3, 3), "{version:?}");
    }
}

#[tokio::test]
async fn a_limit_of_all_nodes_is_shared_with_another_one_that_lives() {
    let plane = plane(|config| config.mqtt.rate_limits.total = all("4:3600")).await;
    another_node(&plane, 0).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    publishes(&mut publisher, "t", 2).await;
    publisher.publish("t", Qos::AtLeastOnce, 3, "x").await;
    assert_eq!(publisher.puback().await.reason, ReasonCode::QuotaExceeded);
}

#[tokio::test]
async fn sessions_of_other_nodes_count_and_a_client_that_is_known_here_is_let_in() {
    for (version, refused) in [
        (ProtocolVersion::V311, ReasonCode::ServerUnavailable),
        (ProtocolVersion::V5, ReasonCode::QuotaExceeded),
    ] {
        let plane = plane(|config| config.mqtt.sessions_limit = 5).await;
        let known = lasting_client(&plane, version, "known").await;
        crate::persistent::cut(&plane, known).await;
        another_node(&plane, 4).await;
        let mut other = Client::open(plane.address, version).await;
        other.send(Packet::Connect(Box::new(connect_packet(version, "other")))).await;
        assert!(matches!(other.next().await, Some(Packet::ConnAck(connack)) if connack.reason == refused));
        assert_eq!(other.next().await, None);
        assert_eq!(plane.metric("tbmq_mqtt_sessions_limit_reached_total"), 1);
        lasting_client(&plane, version, "known").await.hears_nothing().await;
    }
}

/// A CONNECT that asks for a session that outlives its connection.
fn lasting_connect(user_name: &str, version: ProtocolVersion) -> Connect {
    let properties = match version {
        ProtocolVersion::V5 => lasting(user_name, 100).properties,
        _ => Properties::NONE,
    };
    Connect { clean_start: false, properties, ..credentials::of(user_name, version) }
}

#[tokio::test]
async fn lasting_sessions_of_applications_are_limited_with_integrations_and_nobody_else_is() {
    for (version, refused) in [
        (ProtocolVersion::V311, ReasonCode::ServerUnavailable),
        (ProtocolVersion::V5, ReasonCode::QuotaExceeded),
    ] {
        let bus = credentials::bus_with(&["MQTT_BASIC"]).await;
        for user_name in ["app 1", "app 2", "app 3"] {
            credentials::application(&bus, user_name).await;
        }
        credentials::basic(&bus, "device", 1, None, &[credentials::all("#")]).await;
        let mut config = config();
        config.mqtt.application_clients_limit = 2;
        let plane = Plane::with(bus, config).await;
        plane.integration(1, &["a"]).await;
        let (first, _) = Client::with(plane.address, lasting_connect("app 1", version)).await;
        crate::persistent::cut(&plane, first).await;

        let mut second = Client::open(plane.address, version).await;
        second.send(Packet::Connect(Box::new(lasting_connect("app 2", version)))).await;
        assert!(matches!(second.next().await, Some(Packet::ConnAck(connack)) if connack.reason == refused));
        assert_eq!(second.next().await, None);
        assert_eq!(plane.metric(APPLICATIONS), 1);
        // Not an application, without a session that lasts, and known.
        Client::with(plane.address, lasting_connect("device", version)).await;
        Client::with(plane.address, credentials::of("app 3", version)).await;
        let (first, connack) = Client::with(plane.address, lasting_connect("app 1", version)).await;
        assert!(connack.session_present);
        first.leave().await;
        // Its session ends, and another one finds room.
        Client::with(plane.address, credentials::of("app 1", version)).await.0.leave().await;
        loop {
            let mut second = Client::open(plane.address, version).await;
            second.send(Packet::Connect(Box::new(lasting_connect("app 2", version)))).await;
            let Some(Packet::ConnAck(connack)) = second.next().await else { panic!("no CONNACK") };
            if connack.reason == ReasonCode::Success {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_publish_beyond_the_limit_is_not_looked_up_in_the_rules_and_a_forbidden_one_counts() {
    let bus = credentials::bus_with(&["MQTT_BASIC"]).await;
    credentials::basic(&bus, "device", 1, None, &[credentials::all("mine")]).await;
    let mut config = config();
    config.mqtt.rate_limits.incoming_publish = each_client("1:3600");
    let plane = Plane::with(bus, config).await;
    let connect = credentials::of("device", ProtocolVersion::V5);
    let (mut client, _) = Client::with(plane.address, connect).await;
    for (id, reason) in [(1, ReasonCode::NotAuthorized), (2, ReasonCode::QuotaExceeded)] {
        client.publish("theirs", Qos::AtLeastOnce, id, "x").await;
        assert_eq!(client.puback().await, Ack::new(id, reason));
    }
}

#[tokio::test]
async fn others_are_told_how_many_sessions_there_are() {
    let plane = Plane::start().await;
    let parked = lasting_client(&plane, ProtocolVersion::V5, "parked").await;
    crate::persistent::cut(&plane, parked).await;
    let _connected = Client::v5(plane.address, "connected").await;
    while last_applied(&plane.bus).await.sessions != 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn who_sends_bytes_too_fast_is_read_later_and_loses_neither_a_message_nor_its_connection() {
    let plane = Arc::new(
        plane(|config| {
            config.mqtt.rate_limits.incoming_bytes = Some("10000:1".parse().unwrap());
        })
        .await,
    );
    let mut floods = Vec::new();
    for version in VERSIONS {
        // Silent for longer than its keep alive, because nobody reads what it says.
        let connect = Connect { keep_alive: 1, ..connect_packet(version, &format!("fast {version:?}")) };
        let (mut client, _) = Client::with(plane.address, connect).await;
        floods.push(tokio::spawn(async move {
            let begun = Instant::now();
            let message = |id| {
                let packet =
                    Publish { payload: vec![0; 10_000].into(), ..publish("t", Qos::AtLeastOnce, id, "") };
                Packet::Publish(packet)
            };
            for id in 1..=3 {
                client.send(message(id)).await;
                assert!(!client.puback().await.reason.is_error());
            }
            client.hears_nothing().await;
            // What is more than a second's worth takes its time.
            assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
        }));
    }
    let mut other = Client::v5(plane.address, "other").await;
    until(|| plane.metric(BYTES) > 0).await;
    publishes(&mut other, "t", 10).await;
    assert!(floods.iter().all(|flood| !flood.is_finished()), "the other one did not wait for them");
    for flood in floods {
        flood.await.unwrap();
    }
}

#[tokio::test]
async fn connections_beyond_the_nodes_rate_are_closed_before_a_byte_is_read() {
    let files = Files::new();
    let plane = plane(|config| {
        config.mqtt.rate_limits.connections = Some("2:3600".parse().unwrap());
        config.listener.ssl = files.listener();
    })
    .await;
    let mut clients = Vec::new();
    for version in VERSIONS {
        clients.push(Client::connected(plane.address, version, &format!("{version:?}")).await);
    }
    is_cut(TcpStream::connect(plane.address).await.unwrap()).await;
    is_cut(TcpStream::connect(plane.at("mqtts")).await.unwrap()).await;
    assert_eq!(plane.metric(CONNECTIONS), 2);
    for client in &mut clients {
        client.hears_nothing().await;
    }
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_another_one_when_one_ends() {
    for version in VERSIONS {
        let plane = plane(|config| config.mqtt.address_connections_max = 2).await;
        let mut first = Client::connected(plane.address, version, "first").await;
        let second = Client::connected(plane.address, version, "second").await;
        is_cut(TcpStream::connect(plane.address).await.unwrap()).await;
        is_cut(TcpStream::connect(plane.address).await.unwrap()).await;
        assert_eq!(plane.metric(ADDRESS), 2);
        second.leave().await;
        until(|| plane.metric("tbmq_mqtt_connections") == 1).await;
        Client::connected(plane.address, version, "third").await;
        first.hears_nothing().await;
    }
}

/// A connection that a proxy passes on for this client.
async fn proxied(address: SocketAddr, client: &str) -> TcpStream {
    let family = if client.contains(':') { "TCP6 " } else { "TCP4 " };
    let own = if client.contains(':') { " 2001:db8:ffff::1" } else { " 192.0.2.1" };
    let mut stream = TcpStream::connect(address).await.unwrap();
    let header = ["PROXY ", family, client, own, " 5000 1883\r\n"].concat();
    stream.write_all(header.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_address_that_it_says_counts_before_tls() {
    let files = Files::new();
    let plane = plane(|config| {
        config.mqtt.address_connections_max = 1;
        config.listener.proxy_protocol_enabled = true;
        config.listener.ssl = files.listener();
    })
    .await;
    let mut clients = Vec::new();
    for (id, client) in
        [("a", "192.0.2.7"), ("b", "192.0.2.8"), ("c", "2001:db8::7"), ("d", "2001:db8:0:1::7")]
    {
        let mut client = Client::over(proxied(plane.address, client).await, ProtocolVersion::V5);
        client.connect(connect_packet(ProtocolVersion::V5, id)).await;
        clients.push(client);
    }
    for client in ["192.0.2.7", "2001:db8::8"] {
        is_cut(proxied(plane.address, client).await).await;
        is_cut(proxied(plane.at("mqtts"), client).await).await;
    }
    assert_eq!(plane.metric(ADDRESS), 4);
    for client in &mut clients {
        client.hears_nothing().await;
    }
}

#[tokio::test]
async fn an_address_has_a_rate_of_its_own() {
    let plane = plane(|config| {
        config.mqtt.rate_limits.address_connections = Some("2:3600".parse().unwrap());
        config.listener.proxy_protocol_enabled = true;
    })
    .await;
    for version in VERSIONS {
        let mut client = Client::over(proxied(plane.address, "192.0.2.7").await, version);
        client.connect(connect_packet(version, "c")).await;
        client.leave().await;
    }
    is_cut(proxied(plane.address, "192.0.2.7").await).await;
    assert_eq!(plane.metric(ADDRESS_RATE), 1);
    let mut other = Client::over(proxied(plane.address, "192.0.2.8").await, ProtocolVersion::V5);
    other.connect(connect_packet(ProtocolVersion::V5, "c")).await;
}

#[tokio::test]
async fn over_a_web_socket_the_address_that_is_forwarded_counts_where_it_is_trusted() {
    for is_trusted in [true, false] {
        let plane = plane(|config| {
            config.mqtt.address_connections_max = 1;
            config.listener.ws = web_socket::listener();
            config.listener.ws.web_socket.as_mut().unwrap().forward_headers_enabled = is_trusted;
        })
        .await;
        let first = [("sec-websocket-protocol", "mqtt"), ("x-forwarded-for", "192.0.2.7")];
        let other = [("sec-websocket-protocol", "mqtt"), ("x-forwarded-for", "192.0.2.8")];
        let mut here = web_socket::client(web_socket::open(plane.at("ws"), &first).await);
        here.connect(connect_packet(ProtocolVersion::V5, "here")).await;
        if is_trusted {
            let mut there = web_socket::client(web_socket::open(plane.at("ws"), &other).await);
            there.connect(connect_packet(ProtocolVersion::V5, "there")).await;
            let mut again = web_socket::client(web_socket::open(plane.at("ws"), &first).await);
            assert_eq!(again.next().await, None);
        } else {
            is_cut(TcpStream::connect(plane.at("ws")).await.unwrap()).await;
        }
        assert_eq!(plane.metric(ADDRESS), 1);
        here.hears_nothing().await;
    }
}

#[tokio::test]
async fn filters_of_a_client_are_limited_and_others_have_their_own() {
    for (version, refused) in [
        (ProtocolVersion::V311, ReasonCode::UnspecifiedError),
        (ProtocolVersion::V5, ReasonCode::QuotaExceeded),
    ] {
        let plane = plane(|config| config.mqtt.subscription.client_max = 1.try_into().unwrap()).await;
        let mut client = Client::connected(plane.address, version, "c").await;
        client.subscribed("a", Qos::AtMostOnce).await;
        let filters = vec![crate::client::subscription("b", Qos::AtMostOnce)];
        assert_eq!(client.subscribe(filters, Properties::NONE).await, [refused]);
        assert_eq!(plane.metric("tbmq_mqtt_client_limits_reached_total{limit=\"Subscriptions\"}"), 1);
        let mut other = Client::connected(plane.address, version, "other").await;
        other.subscribed("b", Qos::AtMostOnce).await;
    }
}
