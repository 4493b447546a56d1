//! Listeners side by side, and their limits.

use std::time::{Duration, Instant};

use tbmq_data_plane::Config;
use tbmq_mqtt::{
    codec::property::PropertyId,
    packet::{Packet, ProtocolVersion, Qos, ReasonCode},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    bus::TestBus,
    client::{Client, connect_packet, number, text},
    plane::{Plane, config, until},
    tls::Files,
    web_socket,
};

/// A listener of each kind, and a second one for TCP.
fn all(files: &Files) -> Config {
    let mut config = config();
    config.listener.ssl = files.listener();
    config.listener.ws = web_socket::listener();
    config.listener.wss = files.listener();
    config.listener.wss.web_socket = config.listener.ws.web_socket.clone();
    config.listener.more = vec![config.listener.tcp.clone()];
    config
}

/// [MQTT5-4.2.0-1]
#[tokio::test]
async fn clients_of_all_listeners_reach_each_other() {
    let files = Files::new();
    let plane = Plane::with(TestBus::new(), all(&files)).await;
    let schemes: Vec<_> = plane.running.addresses().into_iter().map(|(scheme, _)| scheme).collect();
    assert_eq!(schemes, ["mqtt", "mqtts", "ws", "wss", "mqtt"]);
    let mut listener = Client::v5(plane.address, "listener").await;
    listener.subscribed("a", Qos::AtMostOnce).await;
    let second = plane.running.addresses()[4].1;
    let mut client = Client::v5(second, "second").await;
    client.publish("a", Qos::AtMostOnce, 0, "from the second").await;
    assert_eq!(text(&listener.message().await), "from the second");
    let mut web = web_socket::client(web_socket::open(plane.at("ws"), &[]).await);
    web.connect(connect_packet(ProtocolVersion::V5, "web")).await;
    web.publish("a", Qos::AtMostOnce, 0, "from the web").await;
    assert_eq!(text(&listener.message().await), "from the web");
}

#[tokio::test]
async fn each_listener_has_its_own_limit_of_packets() {
    let mut config = config();
    config.listener.more = vec![config.listener.tcp.clone()];
    config.listener.more[0].netty.max_payload_size = 100.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let small = plane.running.addresses()[1].1;
    for (address, limit) in [(plane.address, 65_541), (small, 105)] {
        let connect = connect_packet(ProtocolVersion::V5, "c");
        let (mut client, connack) = Client::with(address, connect).await;
        assert_eq!(number(&connack, PropertyId::MaximumPacketSize), Some(limit));
        client.publish("a", Qos::AtLeastOnce, 1, "x".repeat(200).leak()).await;
        if limit > 200 {
            assert_eq!(client.puback().await.packet_id, 1);
        } else {
            client.is_told(ReasonCode::PacketTooLarge).await;
        }
    }
}

#[tokio::test]
async fn a_full_listener_closes_new_connections_and_leaves_the_others_alone() {
    let mut config = config();
    config.listener.more = vec![config.listener.tcp.clone()];
    config.listener.more[0].connections_max = 1;
    let plane = Plane::with(TestBus::new(), config).await;
    let limited = plane.running.addresses()[1].1;
    let first = Client::v5(limited, "first").await;
    let mut second = Client::open(limited, ProtocolVersion::V5).await;
    assert_eq!(second.next().await, None);
    assert_eq!(plane.metric("tbmq_mqtt_connection_limit_reached_total"), 1);
    let _other = Client::v5(plane.address, "other").await;
    drop(first);
    let is_free = async {
        loop {
            let mut third = Client::open(limited, ProtocolVersion::V5).await;
            third.send(Packet::Connect(Box::new(connect_packet(ProtocolVersion::V5, "third")))).await;
            if third.next().await.is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_free).await.expect("a place is free again");
}

#[tokio::test]
async fn a_connection_that_shakes_hands_has_a_place_and_gives_it_back() {
    let files = Files::new();
    let mut config = all(&files);
    config.mqtt.connections_max = 1.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let silent = TcpStream::connect(plane.at("mqtts")).await.unwrap();
    until(|| plane.metric("tbmq_mqtt_connections_accepted_total") == 1).await;
    let mut refused = Client::open(plane.address, ProtocolVersion::V5).await;
    assert_eq!(refused.next().await, None);
    assert_eq!(plane.metric("tbmq_mqtt_connection_limit_reached_total"), 1);
    drop(silent);
    let is_free = async {
        loop {
            let mut client = Client::open(plane.address, ProtocolVersion::V5).await;
            client.send(Packet::Connect(Box::new(connect_packet(ProtocolVersion::V5, "c")))).await;
            if client.next().await.is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_free).await.expect("a place is free again");
}

#[tokio::test]
async fn connections_over_the_accept_rate_wait_and_are_served_then() {
    let mut config = config();
    config.listener.tcp.accept_rate_max = 20;
    let plane = Plane::with(TestBus::new(), config).await;
    let begun = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::open(plane.address, ProtocolVersion::V5).await);
    }
    for (index, client) in clients.iter_mut().enumerate() {
        client.connect(connect_packet(ProtocolVersion::V5, &index.to_string())).await;
    }
    // A tenth of a second's worth and the one that is due come at once; the others 50 ms apart.
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert!(plane.metric("tbmq_mqtt_accept_rate_reached_total") > 0);
}

#[tokio::test]
async fn who_never_reads_is_bounded_on_every_listener_and_holds_up_nobody() {
    let files = Files::new();
    let mut config = all(&files);
    config.mqtt.outbound_queue_bytes_max = (1 << 20).try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let mut tls = Client::over(
        files.shake_over(TcpStream::connect(plane.at("mqtts")).await.unwrap()).await.unwrap(),
        ProtocolVersion::V5,
    );
    let mut web = web_socket::client(web_socket::open(plane.at("ws"), &[]).await);
    tls.connect(connect_packet(ProtocolVersion::V5, "tls")).await;
    tls.subscribed("tls", Qos::AtMostOnce).await;
    web.connect(connect_packet(ProtocolVersion::V5, "web")).await;
    web.subscribed("web", Qos::AtMostOnce).await;
    let mut reader = Client::v5(plane.address, "reader").await;
    reader.subscribed("#", Qos::AtMostOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let payload: &'static str = "x".repeat(60_000).leak();
    let dropped = || plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"QueueFull\"}");
    for topic in ["tls", "web"] {
        let before = dropped();
        while dropped() == before {
            publisher.publish(topic, Qos::AtLeastOnce, 1, payload).await;
            publisher.puback().await;
            assert_eq!(text(&reader.message().await).len(), payload.len());
        }
    }
    // Once it reads, it gets what was kept, and goes on.
    publisher.publish("web", Qos::AtMostOnce, 0, "last").await;
    while text(&web.message().await) != "last" {
        publisher.publish("web", Qos::AtMostOnce, 0, "last").await;
    }
}

#[tokio::test]
async fn a_drain_closes_every_listener_and_whoever_shakes_hands() {
    let files = Files::new();
    let plane = Plane::with(TestBus::new(), all(&files)).await;
    let addresses = plane.running.addresses();
    let mut silent = TcpStream::connect(plane.at("mqtts")).await.unwrap();
    let mut half = TcpStream::connect(plane.at("ws")).await.unwrap();
    half.write_all(b"GET /mqtt HTTP/1.1\r\n").await.unwrap();
    let stream = files.shake_over(TcpStream::connect(plane.at("mqtts")).await.unwrap()).await.unwrap();
    let mut client = Client::over(stream, ProtocolVersion::V5);
    client.connect(connect_packet(ProtocolVersion::V5, "c")).await;
    let drained = tokio::spawn(plane.running.drain());
    client.is_told(ReasonCode::ServerShuttingDown).await;
    drop(client);
    drained.await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(half.read(&mut [0; 1]).await.unwrap(), 0);
    for (_, address) in addresses {
        assert!(TcpStream::connect(address).await.is_err(), "{address}");
    }
}
