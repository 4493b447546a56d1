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
        Subscription, Will,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Longer than anything that should happen takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    version: ProtocolVersion,
    buffer: BytesMut,
}

pub(crate) fn connect_packet(version: ProtocolVersion, client_id: &str) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive: 0,
        client_id: client_id.into(),
        will: None,
        username: None,
        password: None,
        properties: Properties::NONE,
    }
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
    Subscription {
        filter: filter.into(),
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: tbmq_mqtt::packet::RetainHandling::Send,
    }
}

impl Client {
    /// A connection without CONNECT.
    pub(crate) async fn open(address: SocketAddr, version: ProtocolVersion) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, version, buffer: BytesMut::new() }
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
        client.send(Packet::Connect(Box::new(connect))).await;
        match client.next().await {
            Some(Packet::ConnAck(connack)) if connack.reason == ReasonCode::Success => (client, connack),
            other => panic!("not accepted: {other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        codec::encode(&packet, self.version, &mut bytes);
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

    pub(crate) async fn publish(&mut self, topic: &str, qos: Qos, packet_id: u16, payload: &'static str) {
        self.send(Packet::Publish(publish(topic, qos, packet_id, payload))).await;
    }

    pub(crate) async fn puback(&mut self) -> Ack {
        match self.next().await {
            Some(Packet::PubAck(ack)) => ack,
            other => panic!("no PUBACK: {other:?}"),
        }
    }

    pub(crate) async fn message(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("no PUBLISH: {other:?}"),
        }
    }

    /// Asserts that the server says this DISCONNECT and closes.
    pub(crate) async fn is_told(&mut self, reason: ReasonCode) {
        assert_eq!(self.next().await, Some(Packet::Disconnect(Disconnect::new(reason))));
        assert_eq!(self.next().await, None);
    }
}

pub(crate) fn text(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.payload).unwrap()
}

pub(crate) fn number(connack: &ConnAck, id: PropertyId) -> Option<u32> {
    connack.properties.number(id)
}
