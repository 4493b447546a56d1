//! MQTT over WebSocket.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tbmq_data_plane::{Config, ListenerConfig, WebSocketConfig};
use tbmq_mqtt::{
    codec,
    packet::{Disconnect, Packet, ProtocolVersion, Qos, ReasonCode},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        handshake::client::Response,
        http::{HeaderValue, StatusCode},
        protocol::{
            CloseFrame,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};

use crate::{
    bus::TestBus,
    client::{Client, connect_packet, publish, subscription, text, will},
    commands::Controlled,
    plane::{Plane, config, until},
    tls::{Files, shake},
};

pub(crate) type Opened<S> = Result<(WebSocketStream<S>, Response), Error>;

pub(crate) fn listener() -> ListenerConfig {
    ListenerConfig {
        bind_address: "127.0.0.1".parse().unwrap(),
        bind_port: 0,
        web_socket: Some(WebSocketConfig::default()),
        ..ListenerConfig::default()
    }
}

fn with_web_socket() -> Config {
    let mut config = config();
    config.listener.ws = listener();
    config
}

async fn plane() -> Plane {
    Plane::with(TestBus::new(), with_web_socket()).await
}

/// Opens a WebSocket over this stream with these headers.
pub(crate) async fn open_over<S>(stream: S, path: &str, headers: &[(&'static str, &'static str)]) -> Opened<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = format!("ws://localhost{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
    tokio_tungstenite::client_async(request, stream).await
}

pub(crate) async fn open(
    address: SocketAddr,
    headers: &[(&'static str, &'static str)],
) -> WebSocketStream<TcpStream> {
    let socket = TcpStream::connect(address).await.unwrap();
    open_over(socket, "/mqtt", headers).await.unwrap().0
}

const OFFER: &[(&str, &str)] = &[("sec-websocket-protocol", "mqtt")];

fn bytes_of(packets: &[Packet]) -> Bytes {
    let mut bytes = BytesMut::new();
    for packet in packets {
        codec::encode(packet, ProtocolVersion::V5, &mut bytes);
    }
    bytes.freeze()
}

fn connect(client_id: &str) -> Packet {
    Packet::Connect(Box::new(connect_packet(ProtocolVersion::V5, client_id)))
}

/// The client of packets over a WebSocket: each write is a message, and every message that comes must be binary.
pub(crate) fn client<S>(socket: WebSocketStream<S>) -> Client<DuplexStream>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Client::over(stream(socket), ProtocolVersion::V5)
}

/// What is sent and comes in messages as a stream of bytes.
pub(crate) fn stream<S>(mut socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, mut far) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let mut written = BytesMut::new();
        loop {
            tokio::select! {
                read = far.read_buf(&mut written) => {
                    if read.unwrap() == 0 || socket.send(Message::Binary(written.split().freeze())).await.is_err() {
                        return;
                    }
                }
                came = socket.next() => match came {
                    Some(Ok(Message::Binary(bytes))) => far.write_all(&bytes).await.unwrap(),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(other)) => panic!("{other:?}"),
                }
            }
        }
    });
    near
}

/// The next message; `None`: the server has closed.
async fn heard(socket: &mut WebSocketStream<TcpStream>) -> Option<Message> {
    let next = tokio::time::timeout(Duration::from_secs(20), socket.next());
    next.await.expect("something comes in time").map(|came| came.expect("a proper end"))
}

/// Every byte of binary messages until the server says goodbye, and with which code it does.
async fn heard_to_the_end(mut socket: WebSocketStream<TcpStream>) -> (BytesMut, CloseCode) {
    let mut bytes = BytesMut::new();
    loop {
        match heard(&mut socket).await.expect("the server says goodbye") {
            Message::Binary(more) => bytes.extend_from_slice(&more),
            Message::Close(Some(close)) => {
                assert_eq!(heard(&mut socket).await, None);
                return (bytes, close.code);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// [MQTT-6.0.0-1] [MQTT5-6.0.0-1] [MQTT5-4.2.0-1]
#[tokio::test]
async fn messages_cross_between_web_socket_and_tcp_whatever_their_size() {
    let plane = plane().await;
    let mut plain = Client::v5(plane.address, "plain").await;
    plain.subscribed("up", Qos::AtLeastOnce).await;
    let mut web = client(open(plane.at("ws"), OFFER).await);
    web.connect(connect_packet(ProtocolVersion::V5, "web")).await;
    web.subscribed("down", Qos::AtLeastOnce).await;
    let big: &'static str = "x".repeat(60_000).leak();
    for payload in ["small", big] {
        web.publish("up", Qos::AtLeastOnce, 1, payload).await;
        assert_eq!(web.puback().await.reason, ReasonCode::Success);
        assert_eq!(text(&plain.message().await), payload);
        plain.publish("down", Qos::AtMostOnce, 0, payload).await;
        assert_eq!(text(&web.message().await), payload);
    }
    for _ in 0..100 {
        plain.publish("down", Qos::AtMostOnce, 0, big).await;
    }
    for _ in 0..100 {
        assert_eq!(text(&web.message().await).len(), big.len());
    }
}

#[tokio::test]
async fn messages_cross_secure_web_socket() {
    let files = Files::new();
    let mut config = config();
    config.listener.wss = files.listener();
    config.listener.wss.web_socket = Some(WebSocketConfig::default());
    let plane = Plane::with(TestBus::new(), config).await;
    let stream = shake(plane.at("wss"), &files.server, None).await.unwrap();
    let mut web = client(open_over(stream, "/mqtt", OFFER).await.unwrap().0);
    web.connect(connect_packet(ProtocolVersion::V5, "web")).await;
    web.subscribed("a", Qos::ExactlyOnce).await;
    web.publish("a", Qos::AtMostOnce, 0, "x").await;
    assert_eq!(text(&web.message().await), "x");
}

/// [MQTT-6.0.0-1] [MQTT5-6.0.0-1]
#[tokio::test]
async fn a_text_frame_ends_the_connection_with_its_will() {
    let plane = plane().await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("wills", Qos::AtMostOnce).await;
    for (message, code) in [
        (Message::text("\u{10}"), CloseCode::Unsupported),
        (Message::Frame(Frame::message(vec![0xff], OpCode::Data(Data::Text), true)), CloseCode::Unsupported),
    ] {
        let mut socket = open(plane.at("ws"), OFFER).await;
        let mut packet = connect_packet(ProtocolVersion::V5, "texter");
        packet.will = Some(will("wills", "gone"));
        socket.send(Message::Binary(bytes_of(&[Packet::Connect(Box::new(packet))]))).await.unwrap();
        assert!(matches!(heard(&mut socket).await, Some(Message::Binary(_))));
        socket.send(message).await.unwrap();
        let (mut bytes, found) = heard_to_the_end(socket).await;
        let last = codec::decode(&mut bytes, Some(ProtocolVersion::V5), &codec::Limits::default()).unwrap();
        assert_eq!(last, Some(Packet::Disconnect(Disconnect::new(ReasonCode::ProtocolError))));
        assert_eq!(found, code);
        assert_eq!(text(&watcher.message().await), "gone");
    }
    // Before CONNECT there is nobody to tell it to.
    let mut socket = open(plane.at("ws"), OFFER).await;
    socket.send(Message::text("CONNECT")).await.unwrap();
    let (bytes, code) = heard_to_the_end(socket).await;
    assert_eq!((bytes.len(), code), (0, CloseCode::Unsupported));
    assert_eq!(plane.metric("tbmq_mqtt_connections_ended_total{reason=\"Protocol\"}"), 3);
}

/// [MQTT-6.0.0-2] [MQTT5-6.0.0-2]
#[tokio::test]
async fn packets_need_not_end_where_frames_or_messages_end() {
    let plane = plane().await;
    let packets = bytes_of(&[
        connect("web"),
        Packet::Subscribe(tbmq_mqtt::packet::Subscribe {
            packet_id: 1,
            subscriptions: vec![subscription("a", Qos::AtMostOnce)],
            properties: codec::property::Properties::NONE,
        }),
        Packet::Publish(publish("a", Qos::AtMostOnce, 0, "one")),
        Packet::Publish(publish("a", Qos::AtMostOnce, 0, "two")),
    ]);
    let piece =
        |bytes: Bytes, code, is_last| Message::Frame(Frame::message(bytes, OpCode::Data(code), is_last));
    let all_in_one = vec![Message::Binary(packets.clone())];
    let bytewise = packets.iter().map(|byte| Message::Binary(vec![*byte].into())).collect();
    let mut fragments: Vec<_> = packets
        .chunks(5)
        .enumerate()
        .map(|(index, chunk)| {
            let code = if index == 0 { Data::Binary } else { Data::Continue };
            piece(Bytes::copy_from_slice(chunk), code, false)
        })
        .collect();
    // A control frame may come between, and a message may have no bytes.
    fragments.insert(3, Message::Ping(Bytes::new()));
    fragments.push(piece(Bytes::new(), Data::Continue, true));
    fragments.push(Message::Binary(Bytes::new()));
    for messages in [all_in_one, bytewise, fragments] {
        let mut socket = open(plane.at("ws"), OFFER).await;
        for message in messages {
            socket.feed(message).await.unwrap();
        }
        socket.flush().await.unwrap();
        let mut bytes = BytesMut::new();
        let mut payloads = Vec::new();
        while payloads.len() < 2 {
            match heard(&mut socket).await {
                Some(Message::Binary(more)) => bytes.extend_from_slice(&more),
                Some(Message::Pong(_)) => {}
                other => panic!("{other:?}"),
            }
            let limits = codec::Limits::default();
            while let Some(packet) = codec::decode(&mut bytes, Some(ProtocolVersion::V5), &limits).unwrap() {
                if let Packet::Publish(publish) = packet {
                    payloads.push(text(&publish).to_owned());
                }
            }
        }
        assert_eq!(payloads, ["one", "two"]);
    }
}

/// [MQTT-6.0.0-3] [MQTT-6.0.0-4] [MQTT5-6.0.0-3] [MQTT5-6.0.0-4]
#[tokio::test]
async fn the_sub_protocol_mqtt_is_selected_when_it_is_offered() {
    let plane = plane().await;
    for (offered, expected) in [
        (Some("mqtt"), Some("mqtt")),
        (Some("mqttv3.1, mqtt"), Some("mqtt")),
        (Some("mqttv3.1"), Some("mqttv3.1")),
        (Some("mqttv5"), Some("mqttv5")),
        // As with TBMQ: who offers nothing goes on without one.
        (None, None),
    ] {
        let headers: Vec<_> = offered.iter().map(|offered| ("sec-websocket-protocol", *offered)).collect();
        let socket = TcpStream::connect(plane.at("ws")).await.unwrap();
        let (socket, response) = open_over(socket, "/mqtt", &headers).await.unwrap();
        let selected = response.headers().get("sec-websocket-protocol").map(|name| name.to_str().unwrap());
        assert_eq!(selected, expected);
        client(socket).connect(connect_packet(ProtocolVersion::V5, "web")).await;
    }
    let socket = TcpStream::connect(plane.at("ws")).await.unwrap();
    let unknown = open_over(socket, "/mqtt", &[("sec-websocket-protocol", "soap")]).await;
    assert!(unknown.is_err(), "the client sees that nothing was agreed to");
}

#[tokio::test]
async fn another_path_is_not_found_and_what_is_no_web_socket_is_cut() {
    let plane = plane().await;
    for path in ["/", "/mqtt/", "/MQTT", "/api"] {
        let socket = TcpStream::connect(plane.at("ws")).await.unwrap();
        match open_over(socket, path, OFFER).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), StatusCode::NOT_FOUND),
            other => panic!("{path}: {:?}", other.map(|_| ())),
        }
    }
    let socket = TcpStream::connect(plane.at("ws")).await.unwrap();
    open_over(socket, "/mqtt?token=1", OFFER).await.unwrap();
    for bytes in [
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00\r\n\r\n".as_slice(),
        b"POST /mqtt HTTP/1.1\r\n\r\n",
        b"GET /mqtt HTTP/1.1\r\nhost: a\r\n\r\n",
        &vec![b'a'; 70_000],
    ] {
        let mut stream = TcpStream::connect(plane.at("ws")).await.unwrap();
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        assert_eq!(answer, b"");
    }
    until(|| plane.metric("tbmq_mqtt_handshakes_failed_total{reason=\"WebSocket\"}") == 8).await;
}

#[tokio::test]
async fn a_request_that_does_not_end_is_cut_at_the_connect_timeout() {
    let mut config = with_web_socket();
    config.mqtt.connect_timeout = Duration::from_secs(1);
    let plane = Plane::with(TestBus::new(), config).await;
    let mut stream = TcpStream::connect(plane.at("ws")).await.unwrap();
    stream.write_all(b"GET /mqtt HTTP/1.1\r\n").await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(plane.metric("tbmq_mqtt_handshakes_failed_total{reason=\"TimedOut\"}"), 1);
    let (bytes, code) = heard_to_the_end(open(plane.at("ws"), OFFER).await).await;
    assert_eq!((bytes.len(), code), (0, CloseCode::Normal));
}

#[tokio::test]
async fn a_frame_over_the_limit_is_refused_by_its_header_alone() {
    let plane = plane().await;
    let mut bystander = Client::v5(plane.address, "bystander").await;
    // 268 MB are announced, none of them comes.
    let mut header = vec![0x82, 0xff];
    header.extend(268_435_455_u64.to_be_bytes());
    header.extend([0; 4]);
    let mut socket = open(plane.at("ws"), OFFER).await;
    socket.get_mut().write_all(&header).await.unwrap();
    let (_, code) = heard_to_the_end(socket).await;
    assert_eq!(code, CloseCode::Size);
    // Many small frames of one message have the same limit.
    let mut socket = open(plane.at("ws"), OFFER).await;
    for index in 0..70 {
        let code = if index == 0 { Data::Binary } else { Data::Continue };
        let frame = Frame::message(vec![0; 1000], OpCode::Data(code), false);
        if socket.send(Message::Frame(frame)).await.is_err() {
            break;
        }
    }
    until(|| plane.metric("tbmq_mqtt_connections_ended_total{reason=\"Protocol\"}") == 2).await;
    // So has a frame without a mask, which no client may send.
    let mut socket = open(plane.at("ws"), OFFER).await;
    socket.get_mut().write_all(&[0x82, 0x01, 0x00]).await.unwrap();
    let (_, code) = heard_to_the_end(socket).await;
    assert_eq!(code, CloseCode::Protocol);
    bystander.hears_nothing().await;
}

#[tokio::test]
async fn a_ping_is_answered_and_a_close_is_the_end_of_the_network() {
    let plane = plane().await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("wills", Qos::AtMostOnce).await;
    let mut socket = open(plane.at("ws"), OFFER).await;
    let mut packet = connect_packet(ProtocolVersion::V5, "web");
    packet.will = Some(will("wills", "gone"));
    socket.send(Message::Binary(bytes_of(&[Packet::Connect(Box::new(packet))]))).await.unwrap();
    assert!(matches!(heard(&mut socket).await, Some(Message::Binary(_))));
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    assert_eq!(heard(&mut socket).await, Some(Message::Pong(Bytes::from_static(b"there?"))));
    let goodbye = CloseFrame { code: CloseCode::Away, reason: "page closed".into() };
    socket.send(Message::Close(Some(goodbye.clone()))).await.unwrap();
    assert_eq!(heard(&mut socket).await, Some(Message::Close(Some(goodbye))), "the answer is the same");
    assert_eq!(heard(&mut socket).await, None);
    assert_eq!(text(&watcher.message().await), "gone");
}

#[tokio::test]
async fn an_mqtt_disconnect_is_followed_by_a_close_frame() {
    let plane = plane().await;
    let mut socket = open(plane.at("ws"), OFFER).await;
    let packets = [connect("web"), Packet::Disconnect(Disconnect::new(ReasonCode::Success))];
    socket.send(Message::Binary(bytes_of(&packets))).await.unwrap();
    let (_, code) = heard_to_the_end(socket).await;
    assert_eq!(code, CloseCode::Normal);
}

#[tokio::test]
async fn the_forwarded_address_counts_when_the_listener_trusts_it() {
    for (is_trusted, is_proxied, proxy) in [
        (true, false, "127.0.0.1"),
        (false, false, "127.0.0.1"),
        (true, true, "127.0.0.1"),
        (true, false, "10.0.0.0/8"),
    ] {
        let is_known = proxy == "127.0.0.1";
        let mut node = Controlled::start(|config| {
            config.listener.ws = listener();
            config.listener.ws.web_socket.as_mut().unwrap().forward_headers_enabled = is_trusted;
            config.listener.ws.proxy_protocol_enabled = Some(is_proxied);
            config.listener.trusted_proxies = vec![proxy.to_owned()];
            config.auth.mqtt_anonymous_enabled = true;
        })
        .await;
        let mut socket = TcpStream::connect(node.plane.at("ws")).await.unwrap();
        let mut expected = socket.local_addr().unwrap().to_string();
        if is_trusted && is_known {
            "203.0.113.9".clone_into(&mut expected);
        }
        if is_proxied {
            socket.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 8084\r\n").await.unwrap();
            "192.0.2.7:5000".clone_into(&mut expected);
        }
        let headers = [("sec-websocket-protocol", "mqtt"), ("x-forwarded-for", "203.0.113.9, 10.0.0.1")];
        let mut client = client(open_over(socket, "/mqtt", &headers).await.unwrap().0);
        client.connect(connect_packet(ProtocolVersion::V5, "web")).await;
        assert_eq!(node.found("web").await.session.unwrap().peer_address, expected);
    }
}
