//! A scripted MQTT broker for tests, over the workspace's codec.

use std::{net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tbmq_harness::port::Port;
use tbmq_mqtt::{
    codec::{self, Limits, property::Properties},
    packet::{Ack, ConnAck, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::dial::Stream;

/// What is done with a PUBLISH when messages are not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// PUBACK or PUBREC with this reason.
    Acknowledge(ReasonCode),
    /// Nothing.
    Silence,
    /// The connection is closed.
    Close,
    /// DISCONNECT with this reason, and the connection is closed.
    Disconnect(ReasonCode),
}

type Script = Box<dyn Fn(&Publish) -> Reply + Send + Sync>;

/// Shared by all connections.
struct State {
    script: Mutex<Script>,
    connack: Mutex<ConnAck>,
    connects: Mutex<Vec<Connect>>,
    received: Mutex<Vec<Publish>>,
    /// Other packets than PUBLISH, in order.
    others: watch::Sender<Vec<Packet>>,
    /// Whether packets wait for their answers.
    is_held: watch::Sender<bool>,
    /// Publishes of QoS 1 and 2 that wait for their last answer, over all connections.
    open: watch::Sender<usize>,
    /// Answers PINGREQ.
    answers_pings: Mutex<bool>,
}

pub(super) struct Broker {
    pub address: SocketAddr,
    state: Arc<State>,
    port: Port,
}

impl Broker {
    /// Listens on a free port of the loopback, accepts everything and acknowledges everything.
    pub(super) async fn start() -> Self {
        Self::with_tls(None).await
    }

    pub(super) async fn with_tls(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let connack = ConnAck {
            session_present: false,
            reason: ReasonCode::Success,
            properties: Properties::default(),
        };
        let state = State {
            script: Mutex::new(Box::new(|_| Reply::Acknowledge(ReasonCode::Success))),
            connack: Mutex::new(connack),
            connects: Mutex::default(),
            received: Mutex::default(),
            others: watch::Sender::default(),
            is_held: watch::Sender::new(false),
            open: watch::Sender::new(0),
            answers_pings: Mutex::new(true),
        };
        let state = Arc::new(state);
        let (serving, accepting) = (state.clone(), tls.map(TlsAcceptor::from));
        let serve = move |stream| accepted(stream, accepting.clone(), serving.clone());
        let port = Port::open(serve).await.unwrap();
        Self { address: port.address(), state, port }
    }

    /// Listens again after [`Broker::stop`], at the same port.
    pub(super) async fn listen(&self) {
        self.port.set_open(true).await.unwrap();
    }

    /// Ends all connections and refuses new ones.
    pub(super) async fn stop(&self) {
        self.port.set_open(false).await.unwrap();
        self.state.open.send_replace(0);
    }

    /// Ends all connections and accepts new ones.
    pub(super) async fn cut(&self) {
        self.stop().await;
        self.listen().await;
    }

    pub(super) fn hold(&self, is_held: bool) {
        self.state.is_held.send_replace(is_held);
    }

    pub(super) fn reply(&self, script: impl Fn(&Publish) -> Reply + Send + Sync + 'static) {
        *self.state.script.lock() = Box::new(script);
    }

    /// How CONNECT is answered from now on.
    pub(super) fn answer_connect(&self, reason: ReasonCode, properties: Properties) {
        *self.state.connack.lock() = ConnAck { session_present: false, reason, properties };
    }

    pub(super) fn answer_pings(&self, answers: bool) {
        *self.state.answers_pings.lock() = answers;
    }

    /// Waits until so many publishes have no answer.
    pub(super) async fn held(&self, count: usize) {
        self.state.open.subscribe().wait_for(|open| *open == count).await.unwrap();
    }

    /// Waits for a packet other than PUBLISH.
    pub(super) async fn saw(&self, is_wanted: impl Fn(&Packet) -> bool) {
        let mut others = self.state.others.subscribe();
        others.wait_for(|packets| packets.iter().any(&is_wanted)).await.unwrap();
    }

    pub(super) fn connects(&self) -> Vec<Connect> {
        self.state.connects.lock().clone()
    }

    pub(super) fn received(&self) -> Vec<Publish> {
        self.state.received.lock().clone()
    }

    pub(super) fn payloads(&self) -> Vec<Bytes> {
        self.state.received.lock().iter().map(|publish| publish.payload.clone()).collect()
    }
}

async fn accepted(stream: TcpStream, tls: Option<TlsAcceptor>, state: Arc<State>) {
    stream.set_nodelay(true).unwrap();
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(tls) => {
            // A client that goes away or trusts nobody is part of the tests.
            let Ok(stream) = tls.accept(stream).await else { return };
            Box::new(stream)
        }
    };
    let mut connection =
        Connection { stream, version: None, read: BytesMut::new(), held: Vec::new(), open: 0, state };
    // A client that goes away is part of the tests, too.
    connection.serve().await.ok();
}

struct Connection {
    stream: Box<dyn Stream>,
    version: Option<ProtocolVersion>,
    read: BytesMut,
    /// What came while packets were held.
    held: Vec<Packet>,
    /// This connection's part of [`State::open`].
    open: usize,
    state: Arc<State>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let own = self.open;
        self.state.open.send_modify(|open| *open = open.saturating_sub(own));
    }
}

impl Connection {
    async fn serve(&mut self) -> std::io::Result<()> {
        let mut is_held = self.state.is_held.subscribe();
        loop {
            while let Some(packet) = codec::decode(&mut self.read, self.version, &Limits::default())
                .expect("the sink sends packets")
            {
                if let Packet::Connect(connect) = &packet {
                    self.version = Some(connect.version);
                }
                self.note(&packet);
                if *is_held.borrow() {
                    self.held.push(packet);
                } else if !self.answer(packet).await? {
                    return Ok(());
                }
            }
            tokio::select! {
                count = self.stream.read_buf(&mut self.read) => {
                    if count? == 0 {
                        return Ok(());
                    }
                }
                changed = is_held.changed() => {
                    changed.unwrap();
                    if !*is_held.borrow_and_update() {
                        for packet in std::mem::take(&mut self.held) {
                            if !self.answer(packet).await? {
                                return Ok(());
                            }
                        }
                    }
                }
            }
        }
    }

    fn note(&mut self, packet: &Packet) {
        match packet {
            Packet::Publish(publish) => {
                self.state.received.lock().push(publish.clone());
                if publish.qos != Qos::AtMostOnce {
                    self.open += 1;
                    self.state.open.send_modify(|open| *open += 1);
                }
            }
            Packet::Connect(connect) => self.state.connects.lock().push((**connect).clone()),
            other => self.state.others.send_modify(|others| others.push(other.clone())),
        }
    }

    fn close_one(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.state.open.send_modify(|open| *open = open.saturating_sub(1));
    }

    /// `false`: the connection is over.
    async fn answer(&mut self, packet: Packet) -> std::io::Result<bool> {
        match packet {
            Packet::Connect(_) => {
                let connack = self.state.connack.lock().clone();
                let is_accepted = connack.reason == ReasonCode::Success;
                self.send(&Packet::ConnAck(connack)).await?;
                return Ok(is_accepted);
            }
            Packet::Publish(publish) => {
                let reply = (self.state.script.lock())(&publish);
                match (reply, publish.packet_id) {
                    (Reply::Acknowledge(reason), Some(id)) => {
                        let ack = Ack::new(id, reason);
                        if publish.qos == Qos::AtLeastOnce || reason.is_error() {
                            self.close_one();
                        }
                        let ack = match publish.qos {
                            Qos::ExactlyOnce => Packet::PubRec(ack),
                            _ => Packet::PubAck(ack),
                        };
                        self.send(&ack).await?;
                    }
                    (Reply::Close, _) => return Ok(false),
                    (Reply::Disconnect(reason), _) => {
                        self.send(&Packet::Disconnect(Disconnect::new(reason))).await?;
                        return Ok(false);
                    }
                    (Reply::Acknowledge(_) | Reply::Silence, _) => {}
                }
            }
            Packet::PubRel(ack) => {
                self.close_one();
                self.send(&Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success))).await?;
            }
            Packet::PingReq if *self.state.answers_pings.lock() => self.send(&Packet::PingResp).await?,
            Packet::Disconnect(_) => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    async fn send(&mut self, packet: &Packet) -> std::io::Result<()> {
        let mut bytes = BytesMut::new();
        codec::encode(packet, self.version.expect("CONNECT is the first packet"), &mut bytes);
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await
    }
}
