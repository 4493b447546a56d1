//! A minimal MQTT 5 client: enough to publish and to subscribe by hand.

use std::{collections::HashSet, num::NonZeroU16, path::PathBuf, time::Duration};

use bytes::{Bytes, BytesMut};
use clap::Args;
use tbmq_mqtt::{
    codec::{
        Limits, decode, encode,
        property::{Properties, PropertyId},
    },
    packet::{
        Ack, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, RetainHandling,
        Subscribe, Subscription, Text,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use uuid::Uuid;

use crate::{failure::Failure, password};

/// The server hears from us at least so often.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Larger packets are refused.
const PACKET_BYTES_MAX: usize = 64 << 20;

/// Which broker, and as whom.
#[derive(Clone, Debug, Args)]
pub(super) struct Broker {
    /// Address of the MQTT broker
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "TBMQCTL_BROKER",
        hide_env_values = true,
        default_value = "127.0.0.1:1883"
    )]
    broker: String,
    /// Client id; a new one each time when absent
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// User name
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Password
    #[arg(long, value_name = "PASSWORD", env = "TBMQCTL_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// File with the password; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,
}

impl Broker {
    fn password(&self) -> Result<Option<String>, Failure> {
        match &self.password_file {
            Some(file) => password::of_file(file).map(Some),
            None => Ok(self.password.clone()),
        }
    }
}

/// A connection after CONNACK.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    buffer: BytesMut,
    address: String,
    patience: Duration,
    packet_id: NonZeroU16,
    /// QoS 2 messages that were handed out and not yet released: at most one per packet id.
    unreleased: HashSet<u16>,
}

impl Client {
    /// Connects with a clean start. No single wait is longer than `patience`.
    pub(super) async fn connect(broker: &Broker, patience: Duration) -> Result<Self, Failure> {
        let address = broker.broker.strip_prefix("mqtt://").unwrap_or(&broker.broker).to_owned();
        let unreachable = |text: String| {
            Failure::unreachable(format!("can't reach {address}: {text}")).hint(
                "is a broker running there? `tbmq` starts one at 127.0.0.1:1883; --broker or TBMQCTL_BROKER names another",
            )
        };
        let stream = timeout(patience, TcpStream::connect(&address))
            .await
            .map_err(|_| unreachable("it does not answer".to_owned()))?
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidInput => {
                    Failure::usage(format!("{address:?} is not an address of a broker, HOST:PORT"))
                }
                _ => unreachable(error.to_string()),
            })?;
        stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
        let client_id =
            broker.client_id.clone().unwrap_or_else(|| format!("tbmqctl-{}", Uuid::new_v4().simple()));
        let connect = Connect {
            version: ProtocolVersion::V5,
            clean_start: true,
            keep_alive: KEEP_ALIVE.as_secs() as u16,
            client_id: text(&client_id, "--client-id")?,
            will: None,
            username: broker.username.as_deref().map(|name| text(name, "--username")).transpose()?,
            password: broker.password()?.map(Bytes::from),
            properties: Properties::default(),
        };
        let mut client = Self {
            stream,
            buffer: BytesMut::new(),
            address,
            patience,
            packet_id: NonZeroU16::MIN,
            unreleased: HashSet::new(),
        };
        client.send(&Packet::Connect(Box::new(connect))).await?;
        match client.receive().await? {
            Packet::ConnAck(answer) if answer.reason.is_error() => {
                Err(client.not_let_in(&client_id, answer.reason, &answer.properties))
            }
            Packet::ConnAck(_) => Ok(client),
            other => Err(client.unexpected(&other)),
        }
    }

    /// Publishes and waits for the last acknowledgement of its quality of service.
    pub(super) async fn publish(
        &mut self,
        topic: &str,
        payload: Bytes,
        qos: Qos,
        retain: bool,
        properties: Properties,
    ) -> Result<ReasonCode, Failure> {
        let packet_id = (qos != Qos::AtMostOnce).then(|| self.take_packet_id());
        let topic = text(topic, "--topic")?;
        let publish = Publish { dup: false, qos, retain, topic, packet_id, properties, payload };
        self.send(&Packet::Publish(publish)).await?;
        let Some(packet_id) = packet_id else { return Ok(ReasonCode::Success) };
        loop {
            match self.receive().await? {
                Packet::PubAck(ack) | Packet::PubComp(ack) if ack.packet_id == packet_id => {
                    return self.settled(&ack).map(|()| ack.reason);
                }
                Packet::PubRec(ack) if ack.packet_id == packet_id => {
                    self.settled(&ack)?;
                    self.send(&Packet::PubRel(Ack::new(packet_id, ReasonCode::Success))).await?;
                }
                Packet::Disconnect(disconnect) => return Err(self.disconnected(&disconnect)),
                other => return Err(self.unexpected(&other)),
            }
        }
    }

    /// Subscribes and waits for the answer.
    pub(super) async fn subscribe(&mut self, filters: &[String], qos: Qos) -> Result<(), Failure> {
        let subscriptions = filters.iter().map(|filter| {
            Ok(Subscription {
                filter: text(filter, "--filter")?,
                qos,
                no_local: false,
                retain_as_published: true,
                retain_handling: RetainHandling::Send,
            })
        });
        let subscriptions = subscriptions.collect::<Result<Vec<_>, Failure>>()?;
        let packet_id = self.take_packet_id();
        self.send(&Packet::Subscribe(Subscribe::new(packet_id, subscriptions))).await?;
        match self.receive().await? {
            Packet::SubAck(answer) => {
                let refused = filters.iter().zip(&answer.reasons).find(|(_, reason)| reason.is_error());
                match refused {
                    Some((filter, reason)) => {
                        Err(self.refused(&format!("the filter {filter:?}"), *reason, &answer.properties))
                    }
                    None => Ok(()),
                }
            }
            Packet::Disconnect(disconnect) => Err(self.disconnected(&disconnect)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Waits for the next message, however long, and acknowledges it. Each QoS 2 message is handed out once.
    pub(super) async fn next(&mut self) -> Result<Publish, Failure> {
        loop {
            let Ok(packet) = timeout(KEEP_ALIVE / 2, self.read()).await else {
                self.send(&Packet::PingReq).await?;
                // Whatever comes shows that the other end lives; a message may come before the answer.
                let packet = self.receive().await?;
                if let Some(publish) = self.handle(packet).await? {
                    return Ok(publish);
                }
                continue;
            };
            if let Some(publish) = self.handle(packet?).await? {
                return Ok(publish);
            }
        }
    }

    /// Says goodbye.
    pub(super) async fn disconnect(mut self) -> Result<(), Failure> {
        self.send(&Packet::Disconnect(Disconnect::new(ReasonCode::Success))).await?;
        // Both ends know by now: a connection that is gone already is as good.
        self.stream.shutdown().await.ok();
        Ok(())
    }

    async fn handle(&mut self, packet: Packet) -> Result<Option<Publish>, Failure> {
        match packet {
            Packet::Publish(publish) => {
                let mut fresh = true;
                if let Some(packet_id) = publish.packet_id {
                    let ack = Ack::new(packet_id, ReasonCode::Success);
                    if publish.qos == Qos::ExactlyOnce {
                        fresh = self.unreleased.insert(packet_id);
                        self.send(&Packet::PubRec(ack)).await?;
                    } else {
                        self.send(&Packet::PubAck(ack)).await?;
                    }
                }
                Ok(fresh.then_some(publish))
            }
            Packet::PubRel(ack) => {
                self.unreleased.remove(&ack.packet_id);
                self.send(&Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success))).await?;
                Ok(None)
            }
            Packet::PingResp => Ok(None),
            Packet::Disconnect(disconnect) => Err(self.disconnected(&disconnect)),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn send(&mut self, packet: &Packet) -> Result<(), Failure> {
        let mut bytes = BytesMut::new();
        encode(packet, ProtocolVersion::V5, &mut bytes);
        match timeout(self.patience, self.stream.write_all(&bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.lost(&error.to_string())),
            Err(_) => Err(self.lost("it takes no more data")),
        }
    }

    /// The next packet, within the patience.
    async fn receive(&mut self) -> Result<Packet, Failure> {
        match timeout(self.patience, self.read()).await {
            Ok(packet) => packet,
            Err(_) => Err(self.lost("it did not answer in time")),
        }
    }

    /// The next packet. Cancel-safe: what was read stays in the buffer.
    async fn read(&mut self) -> Result<Packet, Failure> {
        let limits = Limits { packet_bytes: PACKET_BYTES_MAX };
        loop {
            match decode(&mut self.buffer, Some(ProtocolVersion::V5), &limits) {
                Ok(Some(packet)) => return Ok(packet),
                Ok(None) => {}
                Err(error) => return Err(self.lost(&format!("what it sent is not MQTT 5: {error}"))),
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(self.lost("it closed the connection")),
                Ok(_) => {}
                Err(error) => return Err(self.lost(&error.to_string())),
            }
        }
    }

    fn take_packet_id(&mut self) -> u16 {
        let id = self.packet_id;
        self.packet_id = id.checked_add(1).unwrap_or(NonZeroU16::MIN);
        id.get()
    }

    fn settled(&self, ack: &Ack) -> Result<(), Failure> {
        if ack.reason.is_error() {
            Err(self.refused("the message", ack.reason, &ack.properties))
        } else {
            Ok(())
        }
    }

    fn refused(&self, what: &str, reason: ReasonCode, properties: &Properties) -> Failure {
        Failure::refused(format!("{} refused {what}: {}", self.address, told(reason, properties)))
    }

    fn not_let_in(&self, client_id: &str, reason: ReasonCode, properties: &Properties) -> Failure {
        let failure = self.refused("the connection", reason, properties);
        match reason {
            // A broker does not tell a stranger why; it tells those who operate it.
            ReasonCode::NotAuthorized | ReasonCode::Banned | ReasonCode::BadUserNameOrPassword => {
                failure.hint(format!("`tbmqctl unauthorized get {client_id}` tells why"))
            }
            _ => failure,
        }
    }

    fn disconnected(&self, disconnect: &Disconnect) -> Failure {
        let why = told(disconnect.reason, &disconnect.properties);
        Failure::refused(format!("{} ended the connection: {why}", self.address))
    }

    fn lost(&self, why: &str) -> Failure {
        Failure::unreachable(format!("lost {}: {why}", self.address))
    }

    fn unexpected(&self, packet: &Packet) -> Failure {
        let name = format!("{packet:?}");
        let name = name.split(['(', ' ']).next().unwrap_or_default();
        Failure::unreachable(format!("{} sent {name}, which does not belong here", self.address))
    }
}

fn told(reason: ReasonCode, properties: &Properties) -> String {
    let code = format!("{reason:?} (0x{:02X})", reason.byte());
    match properties.text(PropertyId::ReasonString) {
        Some(text) => format!("{code}, {:?}", &*text),
        None => code,
    }
}

fn text(given: &str, argument: &str) -> Result<Text, Failure> {
    Text::from_bytes(Bytes::copy_from_slice(given.as_bytes()))
        .ok_or_else(|| Failure::usage(format!("{argument} is longer than 65535 bytes or holds U+0000")))
}

/// Reads 0, 1 or 2.
pub(super) fn qos(text: &str) -> Result<Qos, String> {
    text.parse()
        .ok()
        .and_then(Qos::from_bits)
        .ok_or_else(|| format!("{text:?} is not a quality of service: 0, 1 or 2"))
}
