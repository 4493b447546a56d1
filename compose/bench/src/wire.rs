//! MQTT on a socket with as few writes as can be: what is queued leaves when everything that was read is dealt with.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use tbmq_mqtt::{
    codec::{self, Limits, property::Properties},
    packet::{Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, Subscribe, Subscription},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// What our own clients speak.
const VERSION: ProtocolVersion = ProtocolVersion::V311;

/// One end of a connection.
pub(crate) struct Wire {
    stream: TcpStream,
    version: Option<ProtocolVersion>,
    read: BytesMut,
    write: BytesMut,
}

impl Wire {
    /// The server's end: the first packet is a CONNECT.
    pub(crate) fn accepted(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, version: None, read: BytesMut::new(), write: BytesMut::new() })
    }

    /// The client's end, with a clean session and without keep alive.
    pub(crate) async fn connect(broker: SocketAddr, client_id: &str) -> Result<Self> {
        let mut wire = Self::accepted(TcpStream::connect(broker).await?)?;
        wire.version = Some(VERSION);
        wire.queue(&Packet::Connect(Box::new(Connect::new(VERSION, client_id))));
        match wire.next().await? {
            Some(Packet::ConnAck(connack)) if connack.reason == ReasonCode::Success => Ok(wire),
            other => bail!("CONNECT was answered with {other:?}"),
        }
    }

    /// Subscribes at QoS 1 and waits for the SUBACK.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> Result<()> {
        let subscription = Subscription::new(filter, Qos::AtLeastOnce);
        let subscribe = Subscribe::new(1, vec![subscription]);
        self.queue(&Packet::Subscribe(subscribe));
        match self.next().await? {
            Some(Packet::SubAck(suback)) if suback.reasons.iter().all(|reason| !reason.is_error()) => Ok(()),
            other => bail!("SUBSCRIBE was answered with {other:?}"),
        }
    }

    /// Publishes at QoS 1 with a window, and waits until all are acknowledged. The message of a number is its topic and
    /// its payload.
    pub(crate) async fn publish(
        &mut self,
        count: u64,
        window: u64,
        message: impl Fn(u64) -> (String, Bytes),
    ) -> Result<()> {
        let (mut sent, mut acknowledged) = (0, 0);
        while acknowledged < count {
            while sent < count && sent - acknowledged < window {
                let (topic, payload) = message(sent);
                let packet_id = (sent % u64::from(u16::MAX)) as u16 + 1;
                self.queue(&Packet::Publish(Publish {
                    dup: false,
                    qos: Qos::AtLeastOnce,
                    retain: false,
                    topic: topic.as_str().into(),
                    packet_id: Some(packet_id),
                    properties: Properties::NONE,
                    payload,
                }));
                sent += 1;
            }
            match self.next().await?.context("the broker closed the connection")? {
                Packet::PubAck(ack) => ensure!(!ack.reason.is_error(), "a publish was refused: {ack:?}"),
                other => bail!("{other:?} instead of a PUBACK"),
            }
            acknowledged += 1;
        }
        Ok(())
    }

    /// Queues a packet; it leaves with the next wait for something to read.
    pub(crate) fn queue(&mut self, packet: &Packet) {
        codec::encode(packet, self.version.unwrap_or(VERSION), &mut self.write);
    }

    /// The next packet; `None` when the other end has closed.
    pub(crate) async fn next(&mut self) -> Result<Option<Packet>> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(Some(packet));
            }
            self.flush().await?;
            if self.read_some().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next packet of what was read.
    pub(crate) fn buffered(&mut self) -> Result<Option<Packet>> {
        let packet = codec::decode(&mut self.read, self.version, &Limits::default())?;
        if let Some(Packet::Connect(connect)) = &packet {
            self.version = Some(connect.version);
        }
        Ok(packet)
    }

    /// Writes what is queued.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        if !self.write.is_empty() {
            self.stream.write_all(&self.write).await?;
            self.write.clear();
        }
        Ok(())
    }

    /// Waits for more to read. Cancel-safe.
    pub(crate) async fn fill(&mut self) -> Result<()> {
        ensure!(self.read_some().await? > 0, "the broker closed the connection");
        Ok(())
    }

    async fn read_some(&mut self) -> Result<usize> {
        self.read.reserve(64 << 10);
        Ok(self.stream.read_buf(&mut self.read).await?)
    }
}
