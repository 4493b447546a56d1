//! An MQTT client over the workspace's codec, for load and for tests that look at packets.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use tbmq_mqtt::{
    codec::{self, Limits, property::Properties},
    packet::{
        Ack, ConnAck, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, Subscribe,
        Subscription,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::ledger::Mark;

/// A connection that sends and receives whole packets.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    version: ProtocolVersion,
    read: BytesMut,
    write: BytesMut,
}

impl Client {
    /// Connects with a clean session and waits for the CONNACK.
    ///
    /// # Errors
    /// When the broker is away or refuses.
    pub async fn connect(broker: SocketAddr, client_id: &str, version: ProtocolVersion) -> Result<Self> {
        let connect = Connect { keep_alive: 60, ..Connect::new(version, client_id) };
        let (client, connack) = Self::connect_with(broker, connect).await?;
        ensure!(connack.reason == ReasonCode::Success, "CONNECT was answered with {:?}", connack.reason);
        Ok(client)
    }

    /// Sends a CONNECT and returns the CONNACK.
    ///
    /// # Errors
    /// When the broker is away or answers something else.
    pub async fn connect_with(broker: SocketAddr, connect: Connect) -> Result<(Self, ConnAck)> {
        let stream = TcpStream::connect(broker).await?;
        stream.set_nodelay(true)?;
        let version = connect.version;
        let mut client = Self { stream, version, read: BytesMut::new(), write: BytesMut::new() };
        client.send(&Packet::Connect(Box::new(connect))).await?;
        match client.receive().await? {
            Packet::ConnAck(connack) => Ok((client, connack)),
            other => bail!("CONNECT was answered with {other:?}"),
        }
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, packet: &Packet) -> Result<()> {
        self.queue(packet);
        self.flush().await
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    fn queue(&mut self, packet: &Packet) {
        codec::encode(packet, self.version, &mut self.write);
    }

    async fn flush(&mut self) -> Result<()> {
        if !self.write.is_empty() {
            self.stream.write_all(&self.write).await?;
            self.write.clear();
        }
        Ok(())
    }

    fn decode(&mut self) -> Result<Option<Packet>> {
        Ok(codec::decode(&mut self.read, Some(self.version), &Limits::default())?)
    }

    /// Reads what is there into the buffer. Cancel-safe.
    async fn fill(&mut self) -> Result<()> {
        self.read.reserve(16 << 10);
        let count = self.stream.read_buf(&mut self.read).await?;
        ensure!(count > 0, "the broker closed the connection");
        Ok(())
    }

    /// Waits for the next packet, at most 30 s.
    ///
    /// # Errors
    /// When the connection is gone or nothing comes.
    pub async fn receive(&mut self) -> Result<Packet> {
        self.receive_within(Duration::from_secs(30)).await
    }

    /// Waits for the next packet, at most `patience`.
    ///
    /// # Errors
    /// When the connection is gone or nothing comes.
    pub async fn receive_within(&mut self, patience: Duration) -> Result<Packet> {
        let receiving = async {
            loop {
                if let Some(packet) = self.decode()? {
                    return Ok(packet);
                }
                self.fill().await?;
            }
        };
        let received = tokio::time::timeout(patience, receiving).await;
        received.with_context(|| format!("no packet within {patience:?}"))?
    }

    /// Subscribes to a filter and waits for the SUBACK.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn subscribe(&mut self, filter: &str, qos: Qos) -> Result<()> {
        let subscription = Subscription::new(filter, qos);
        let subscribe = Subscribe::new(1, vec![subscription]);
        self.send(&Packet::Subscribe(subscribe)).await?;
        match self.receive().await? {
            Packet::SubAck(suback) if suback.reasons.iter().all(|reason| !reason.is_error()) => Ok(()),
            other => bail!("SUBSCRIBE was answered with {other:?}"),
        }
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn disconnect(mut self) -> Result<()> {
        self.send(&Packet::Disconnect(Disconnect::new(ReasonCode::Success))).await?;
        Ok(self.stream.shutdown().await?)
    }
}

/// What a publisher is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    brokers: Vec<SocketAddr>,
    topic: String,
    count: u64,
    first: u64,
    publisher: u32,
    size: usize,
    window: usize,
    rate: u64,
    timed: bool,
    patience: Duration,
    answer_within: Duration,
}

impl Plan {
    /// `count` marks on a topic, 256 bytes each, 20 unacknowledged at most, as fast as it goes.
    pub fn new(broker: SocketAddr, topic: &str, count: u64) -> Self {
        Self {
            brokers: vec![broker],
            topic: topic.to_owned(),
            count,
            first: 0,
            publisher: 0,
            size: 256,
            window: 20,
            rate: 0,
            timed: false,
            patience: Duration::from_secs(120),
            answer_within: Duration::from_secs(30),
        }
    }

    /// Further brokers: after each failure it is the next one's turn.
    #[must_use]
    pub fn or(mut self, brokers: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.brokers.extend(brokers);
        self
    }

    /// A broker that leaves a CONNECT or a publish without an answer for so long counts as gone.
    #[must_use]
    pub fn answer_within(mut self, patience: Duration) -> Self {
        self.answer_within = patience;
        self
    }

    /// Without any acknowledgement for so long the publisher gives up.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// As this publisher.
    #[must_use]
    pub fn by(mut self, publisher: u32) -> Self {
        self.publisher = publisher;
        self
    }

    /// Sequences count up from here.
    #[must_use]
    pub fn first(mut self, first: u64) -> Self {
        self.first = first;
        self
    }

    /// Bytes per payload.
    #[must_use]
    pub fn size(mut self, size: usize) -> Self {
        self.size = size;
        self
    }

    /// Unacknowledged publishes at most.
    #[must_use]
    pub fn window(mut self, window: usize) -> Self {
        self.window = window.max(1);
        self
    }

    /// Publishes per second; 0: as fast as it goes. What was missed while there was no connection is not made up for.
    #[must_use]
    pub fn rate(mut self, rate: u64) -> Self {
        self.rate = rate;
        self
    }

    /// Marks carry the time of sending.
    #[must_use]
    pub fn timed(mut self) -> Self {
        self.timed = true;
        self
    }
}

/// Sees what a publisher sees.
pub trait Observer: Send + Sync {
    /// Whether the publisher shall begin nothing new; it ends when everything begun is acknowledged.
    fn is_stopped(&self) -> bool {
        false
    }

    /// Whether the system is held down on purpose: the publisher's patience begins when that is over.
    fn is_held_down(&self) -> bool {
        false
    }

    /// The broker acknowledged a publish.
    fn acknowledged(&self, mark: Mark);

    /// The broker refused a publish; it will be sent again.
    fn refused(&self, _mark: Mark, _reason: ReasonCode) {}

    /// The connection ended; what is not acknowledged will be sent again on the next one.
    fn disconnected(&self, _error: &anyhow::Error) {}
}

/// Keeps what was acknowledged.
#[derive(Default)]
struct Kept(parking_lot::Mutex<Vec<Mark>>);

impl Observer for Kept {
    fn acknowledged(&self, mark: Mark) {
        self.0.lock().push(mark);
    }
}

/// Shortest and longest pause before a publisher connects again; each attempt without progress doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(320);

/// Publishes a plan's marks at QoS 1. When the connection goes or a publish is refused, connects again and sends
/// everything unacknowledged anew, in order, until all is acknowledged.
///
/// # Errors
/// When that takes longer than two minutes without progress.
pub async fn publish_all(plan: Plan) -> Result<Vec<Mark>> {
    let kept = Kept::default();
    publish_observed(plan, &kept).await?;
    Ok(kept.0.into_inner())
}

/// The same; tells `observer` what happens, and stops when it says so. Returns the sequence that would be next.
///
/// # Errors
/// When nothing is acknowledged for longer than the plan's patience, while the system is not held down.
pub async fn publish_observed(plan: Plan, observer: &dyn Observer) -> Result<u64> {
    let mut state = Progress::new(plan, observer);
    let mut last_error = None;
    let mut pause = PAUSE_MIN;
    while !state.is_done() {
        if observer.is_held_down() {
            state.progress = Instant::now();
        } else if state.progress.elapsed() > state.plan.patience {
            let error = last_error.unwrap_or_else(|| anyhow::anyhow!("nothing was acknowledged"));
            return Err(error.context(format!("publisher {} makes no progress", state.plan.publisher)));
        }
        let begun = state.progress;
        if let Err(error) = state.session().await {
            if state.progress > begun {
                pause = PAUSE_MIN;
            }
            observer.disconnected(&error);
            last_error = Some(error);
            state.plan.brokers.rotate_left(1);
            // The broker may be starting; nothing tells when it is there but trying.
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }
    Ok(state.next)
}

struct Progress<'a> {
    plan: Plan,
    observer: &'a dyn Observer,
    /// Not acknowledged, in order; those beyond `sent` were not sent on this connection.
    open: VecDeque<Mark>,
    next: u64,
    progress: Instant,
    /// Beginning of this connection, and what was next then.
    start: (Instant, u64),
}

impl<'a> Progress<'a> {
    fn new(plan: Plan, observer: &'a dyn Observer) -> Self {
        let now = Instant::now();
        Self {
            next: plan.first,
            start: (now, plan.first),
            plan,
            observer,
            open: VecDeque::new(),
            progress: now,
        }
    }

    fn has_begun_all(&self) -> bool {
        self.next - self.plan.first == self.plan.count || self.observer.is_stopped()
    }

    fn is_done(&self) -> bool {
        self.open.is_empty() && self.has_begun_all()
    }

    /// How many more may be begun by now, at the plan's rate, and how long until the next.
    fn allowed(&self) -> (u64, Duration) {
        if self.plan.rate == 0 {
            return (u64::MAX, Duration::MAX);
        }
        let begun = self.next - self.start.1;
        let elapsed = self.start.0.elapsed().as_secs_f64();
        let allowed = ((elapsed * self.plan.rate as f64) as u64).saturating_sub(begun);
        let next = (begun + allowed + 1) as f64 / self.plan.rate as f64;
        (allowed, Duration::from_secs_f64((next - elapsed).max(0.001)))
    }

    async fn session(&mut self) -> Result<()> {
        let client_id = format!("publisher-{}-{}", self.plan.publisher, self.plan.topic.replace('/', "-"));
        let patience = self.plan.answer_within;
        let connecting = Client::connect(self.plan.brokers[0], &client_id, ProtocolVersion::V5);
        let mut client =
            tokio::time::timeout(patience, connecting).await.context("no answer to CONNECT")??;
        let mut in_flight: BTreeMap<u16, Mark> = BTreeMap::new();
        let mut again: VecDeque<Mark> = self.open.clone();
        let mut packet_id: u16 = 0;
        self.start = (Instant::now(), self.next);
        let mut answered = Instant::now();
        while !self.is_done() {
            let (mut may_begin, next_in) = self.allowed();
            while in_flight.len() < self.plan.window {
                let mark = match again.pop_front() {
                    Some(mark) => mark,
                    None if !self.has_begun_all() && may_begin > 0 => {
                        may_begin -= 1;
                        let sent_ns = if self.plan.timed { now_ns() } else { 0 };
                        let mark = Mark { publisher: self.plan.publisher, sequence: self.next, sent_ns };
                        self.next += 1;
                        self.open.push_back(mark);
                        mark
                    }
                    None => break,
                };
                if in_flight.is_empty() {
                    answered = Instant::now();
                }
                packet_id = packet_id % u16::MAX + 1;
                in_flight.insert(packet_id, mark);
                client.queue(&Packet::Publish(self.publish(mark, packet_id)));
            }
            client.flush().await?;
            let waiting = async {
                loop {
                    if let Some(packet) = client.decode()? {
                        return anyhow::Ok(packet);
                    }
                    client.fill().await?;
                }
            };
            // Waiting ends when the next publish is due, too.
            let due = if in_flight.len() < self.plan.window { next_in.min(patience) } else { patience };
            let mut packet = match tokio::time::timeout(due, waiting).await {
                Ok(packet) => Some(packet?),
                Err(_) => None,
            };
            if packet.is_some() {
                answered = Instant::now();
            }
            ensure!(
                in_flight.is_empty() || answered.elapsed() < patience,
                "no acknowledgement within {patience:?}"
            );
            while let Some(received) = packet {
                self.received(&received, &mut in_flight)?;
                packet = client.decode()?;
            }
        }
        client.disconnect().await
    }

    fn publish(&self, mark: Mark, packet_id: u16) -> Publish {
        Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: self.plan.topic.as_str().into(),
            packet_id: Some(packet_id),
            properties: Properties::NONE,
            payload: Bytes::from(mark.payload(self.plan.size)),
        }
    }

    fn received(&mut self, packet: &Packet, in_flight: &mut BTreeMap<u16, Mark>) -> Result<()> {
        let Packet::PubAck(Ack { packet_id, reason, .. }) = packet else {
            bail!("{packet:?} instead of a PUBACK");
        };
        let mark = in_flight.remove(packet_id).with_context(|| format!("PUBACK for {packet_id}"))?;
        if reason.is_error() {
            self.observer.refused(mark, *reason);
            bail!("a publish was refused: {reason:?}");
        }
        let position = self.open.iter().position(|open| *open == mark).context("acknowledged twice")?;
        self.open.remove(position);
        self.observer.acknowledged(mark);
        self.progress = Instant::now();
        Ok(())
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Held down until the third attempt to connect has failed.
    #[derive(Default)]
    struct Fault(AtomicU32);

    impl Observer for Fault {
        fn is_held_down(&self) -> bool {
            self.0.load(Ordering::Relaxed) < 3
        }

        fn acknowledged(&self, mark: Mark) {
            panic!("nobody is there to acknowledge {mark:?}");
        }

        fn disconnected(&self, _error: &anyhow::Error) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_publisher_s_patience_begins_when_the_system_is_not_held_down_any_more() {
        let nobody = SocketAddr::from(([127, 0, 0, 1], crate::postgres::free_port().unwrap()));
        let fault = Fault::default();
        let plan = Plan::new(nobody, "t", 1).patience(Duration::ZERO);
        let error = publish_observed(plan, &fault).await.unwrap_err();
        assert!(error.to_string().contains("makes no progress"), "{error:#}");
        assert_eq!(fault.0.load(Ordering::Relaxed), 3);
    }
}
