//! The PROXY protocol in front of MQTT.

use std::time::Duration;

use tbmq_mqtt::packet::{Packet, ProtocolVersion};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    bus::TestBus,
    client::{Client, connect_packet},
    commands::Controlled,
    plane::{Plane, config, until},
    tls::Files,
};

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 1883\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x13\x88\x07\x5b";
const V2_6: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\
    \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x13\x88\x07\x5b";

async fn plane(connect_timeout: Duration) -> Plane {
    let mut config = config();
    config.listener.proxy_protocol_enabled = true;
    config.mqtt.connect_timeout = connect_timeout;
    Plane::with(TestBus::new(), config).await
}

#[tokio::test]
async fn the_client_is_who_the_header_says_and_what_follows_is_mqtt() {
    let mut node = Controlled::start(|config| {
        config.listener.tcp.proxy_protocol_enabled = Some(true);
        config.auth.mqtt_anonymous_enabled = true;
    })
    .await;
    for (id, header, source) in
        [("one", V1, "192.0.2.7:5000"), ("two", V2, "192.0.2.7:5000"), ("six", V2_6, "[2001:db8::7]:5000")]
    {
        // At once, byte by byte, and together with CONNECT.
        for pieces in [header.chunks(header.len()), header.chunks(1)] {
            let mut client = Client::open(node.plane.address, ProtocolVersion::V5).await;
            for piece in pieces {
                client.stream.write_all(piece).await.unwrap();
            }
            client.connect(connect_packet(ProtocolVersion::V5, id)).await;
            assert_eq!(node.found(id).await.session.unwrap().peer_address, source);
        }
    }
    let mut stream = TcpStream::connect(node.plane.address).await.unwrap();
    stream.write_all(&[V2, b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"].concat()).await.unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await.unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
}

#[tokio::test]
async fn a_connection_without_a_good_header_is_closed() {
    let plane = plane(Duration::from_secs(10)).await;
    let too_long = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".as_slice(), &[0; 5000]].concat();
    let cases: [&[u8]; 6] = [
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        b"PROXY TCP4 nobody nobody 1 2\r\n",
        &[b'P'; 200],
        &too_long,
    ];
    for bytes in cases {
        let mut stream = TcpStream::connect(plane.address).await.unwrap();
        // The server may have closed before everything was written.
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        assert_eq!(answer, b"", "{bytes:?}");
    }
    until(|| plane.metric("tbmq_mqtt_handshakes_failed_total{reason=\"Proxy\"}") == 6).await;
    assert_eq!(plane.metric("tbmq_mqtt_connections_ended_total{reason=\"Protocol\"}"), 0);
}

#[tokio::test]
async fn an_unfinished_header_is_cut_at_the_connect_timeout() {
    let plane = plane(Duration::from_millis(200)).await;
    for bytes in [b"".as_slice(), &V1[..20], &V2[..20]] {
        let mut stream = TcpStream::connect(plane.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "{bytes:?}");
    }
    assert_eq!(plane.metric("tbmq_mqtt_handshakes_failed_total{reason=\"TimedOut\"}"), 3);
}

#[tokio::test]
async fn a_header_that_nobody_asked_for_is_no_mqtt() {
    let plane = Plane::start().await;
    let mut client = Client::open(plane.address, ProtocolVersion::V5).await;
    client.stream.write_all(V1).await.unwrap();
    client.send(Packet::Connect(Box::new(connect_packet(ProtocolVersion::V5, "c")))).await;
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn the_header_comes_before_tls_and_a_listener_may_differ_from_the_others() {
    let files = Files::new();
    let mut node = Controlled::start(|config| {
        config.listener.proxy_protocol_enabled = true;
        config.auth.mqtt_anonymous_enabled = true;
        config.listener.ssl = files.listener();
        config.listener.more = vec![files.listener()];
        config.listener.more[0].proxy_protocol_enabled = Some(false);
    })
    .await;
    let mut socket = TcpStream::connect(node.plane.at("mqtts")).await.unwrap();
    socket.write_all(V1).await.unwrap();
    let mut client = Client::over(files.shake_over(socket).await.unwrap(), ProtocolVersion::V5);
    client.connect(connect_packet(ProtocolVersion::V5, "proxied")).await;
    assert_eq!(node.found("proxied").await.session.unwrap().peer_address, "192.0.2.7:5000");

    let direct = node.plane.running.addresses().pop().unwrap().1;
    let socket = TcpStream::connect(direct).await.unwrap();
    let own = socket.local_addr().unwrap().to_string();
    let mut client = Client::over(files.shake_over(socket).await.unwrap(), ProtocolVersion::V5);
    client.connect(connect_packet(ProtocolVersion::V5, "direct")).await;
    assert_eq!(node.found("direct").await.session.unwrap().peer_address, own);
}
