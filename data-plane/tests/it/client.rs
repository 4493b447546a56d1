//! An MQTT client of packets: sends what it is told, and shows what comes.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use tbmq_mqtt::{
    codec::{
        self,
        property::{Properties, PropertyId},
    },
    packet::{
        Ack, ConnAck, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, Subscribe,
        Subscription, Unsubscribe, Will,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

pub(crate) const VERSIONS: [ProtocolVersion; 3] =
    [ProtocolVersion::V31, ProtocolVersion::V311, ProtocolVersion::V5];

/// Longer than anything that should happen takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: S,
    version: ProtocolVersion,
    buffer: BytesMut,
}

pub(crate) fn connect_packet(version: ProtocolVersion, client_id: &str) -> Connect {
    Connect::new(version, client_id)
}

pub(crate) fn will(topic: &str, payload: &'static str) -> Will {
    Will {
        qos: Qos::AtLeastOnce,
        retain: false,
        topic: topic.into(),
        payload: payload.into(),
        properties: Properties::NONE,
    }
}

pub(crate) fn publish(topic: &str, qos: Qos, packet_id: u16, payload: &'static str) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: topic.into(),
        packet_id: (qos != Qos::AtMostOnce).then_some(packet_id),
        properties: Properties::NONE,
        payload: Bytes::from_static(payload.as_bytes()),
    }
}

pub(crate) fn subscription(filter: &str, qos: Qos) -> Subscription {
    Subscription::new(filter, qos)
}

impl Client {
    /// A connection without CONNECT.
    pub(crate) async fn open(address: SocketAddr, version: ProtocolVersion) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream, version)
    }

    /// A client whose CONNECT was accepted.
    pub(crate) async fn connected(address: SocketAddr, version: ProtocolVersion, client_id: &str) -> Self {
        Self::with(address, connect_packet(version, client_id)).await.0
    }

    pub(crate) async fn v5(address: SocketAddr, client_id: &str) -> Self {
        Self::connected(address, ProtocolVersion::V5, client_id).await
    }

    pub(crate) async fn with(address: SocketAddr, connect: Connect) -> (Self, ConnAck) {
        let mut client = Self::open(address, connect.version).await;
        let connack = client.connect(connect).await;
        (client, connack)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A client without CONNECT over this stream.
    pub(crate) fn over(stream: S, version: ProtocolVersion) -> Self {
        Self { stream, version, buffer: BytesMut::new() }
    }

    /// Connects and is accepted.
    pub(crate) async fn connect(&mut self, connect: Connect) -> ConnAck {
        self.send(Packet::Connect(Box::new(connect))).await;
        match self.next().await {
            Some(Packet::ConnAck(connack)) if connack.reason == ReasonCode::Success => connack,
            other => panic!("not accepted: {other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, packet: Packet) {
        self.send_all(&[packet]).await;
    }

    /// Writes packets at once.
    pub(crate) async fn send_all(&mut self, packets: &[Packet]) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            codec::encode(packet, self.version, &mut bytes);
        }
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next packet; `None` when the server has closed.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(packet) =
                    codec::decode(&mut self.buffer, Some(self.version), &codec::Limits::default()).unwrap()
                {
                    return Some(packet);
                }
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
        .expect("something comes in time")
    }

    /// Asserts that nothing came before the answer to a ping: what the server has handled by then gave no packet.
    pub(crate) async fn hears_nothing(&mut self) {
        self.send(Packet::PingReq).await;
        assert_eq!(self.next().await, Some(Packet::PingResp));
    }

    pub(crate) async fn subscribe(
        &mut self,
        subscriptions: Vec<Subscription>,
        properties: Properties,
    ) -> Vec<ReasonCode> {
        self.send(Packet::Subscribe(Subscribe { packet_id: 1, subscriptions, properties })).await;
        match self.next().await {
            Some(Packet::SubAck(suback)) => suback.reasons,
            other => panic!("no SUBACK: {other:?}"),
        }
    }

    pub(crate) async fn subscribed(&mut self, filter: &str, qos: Qos) {
        let reasons = self.subscribe(vec![subscription(filter, qos)], Properties::NONE).await;
        assert!(!reasons[0].is_error(), "{reasons:?}");
    }

    /// What UNSUBACK says; nothing to a 3.x client.
    pub(crate) async fn unsubscribe(&mut self, filters: &[&str]) -> Vec<ReasonCode> {
        let filters = filters.iter().map(|filter| (*filter).into()).collect();
        let unsubscribe = Unsubscribe { packet_id: 5, filters, properties: Properties::NONE };
        self.send(Packet::Unsubscribe(unsubscribe)).await;
        match self.next().await {
            Some(Packet::UnsubAck(unsuback)) if unsuback.packet_id == 5 => unsuback.reasons,
            other => panic!("no UNSUBACK: {other:?}"),
        }
    }

    pub(crate) async fn publish(&mut self, topic: &str, qos: Qos, packet_id: u16, payload: &'static str) {
        self.send(Packet::Publish(publish(topic, qos, packet_id, payload))).await;
    }

    /// A PUBACK, without its words.
    pub(crate) async fn puback(&mut self) -> Ack {
        match self.next().await {
            Some(Packet::PubAck(ack)) => Ack::new(ack.packet_id, ack.reason),
            other => panic!("no PUBACK: {other:?}"),
        }
    }

    /// A PUBREC, without its words.
    pub(crate) async fn pubrec(&mut self) -> Ack {
        match self.next().await {
            Some(Packet::PubRec(ack)) => Ack::new(ack.packet_id, ack.reason),
            other => panic!("no PUBREC: {other:?}"),
        }
    }

    pub(crate) async fn message(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("no PUBLISH: {other:?}"),
        }
    }

    /// Asserts that the server says this DISCONNECT, with or without words, and closes.
    pub(crate) async fn is_told(&mut self, reason: ReasonCode) {
        match self.next().await {
            Some(Packet::Disconnect(disconnect)) => assert_eq!(disconnect.reason, reason),
            other => panic!("no DISCONNECT: {other:?}"),
        }
        assert_eq!(self.next().await, None);
    }

    /// Says goodbye, and waits until the server has closed.
    pub(crate) async fn leave(mut self) {
        self.send(Packet::Disconnect(Disconnect::new(ReasonCode::Success))).await;
        assert_eq!(self.next().await, None);
    }
}

pub(crate) fn text(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.payload).unwrap()
}

pub(crate) fn number(connack: &ConnAck, id: PropertyId) -> Option<u32> {
    connack.properties.number(id)
}
