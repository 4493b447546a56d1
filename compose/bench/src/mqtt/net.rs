//! One thread over epoll with thousands of MQTT connections: what is queued leaves when everything that was read is
//! dealt with.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BytesMut};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use tbmq_mqtt::{
    codec::{self, Limits},
    packet::{Connect, Disconnect, Packet, ProtocolVersion, Qos, ReasonCode, Subscribe, Subscription},
};

/// What the clients speak.
pub(super) const VERSION: ProtocolVersion = ProtocolVersion::V5;

/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// Connections that are being made at once: less than the listen queue of any broker.
const CONNECTING_MAX: usize = 64;

/// How long nothing may happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Connections by number, in the order in which they were made.
pub(super) struct Net {
    poll: Poll,
    events: Events,
    /// Connections with events: number, and whether it is writable.
    ready: Vec<(usize, bool)>,
    connections: Vec<Connection>,
    read: Box<[u8]>,
    input: BytesMut,
    dirty: Vec<usize>,
}

struct Connection {
    stream: TcpStream,
    /// The beginning of a packet.
    rest: BytesMut,
    output: BytesMut,
    is_open: bool,
    is_dirty: bool,
}

impl Net {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            ready: Vec::new(),
            connections: Vec::new(),
            read: vec![0; READ_BYTES].into(),
            input: BytesMut::new(),
            dirty: Vec::new(),
        })
    }

    /// Connects clients with clean sessions and without keep alive, several at once, and subscribes each to its filter
    /// if it has one; returns when the last has its answer.
    pub(super) fn connect(
        &mut self,
        broker: SocketAddr,
        count: usize,
        client_id: impl Fn(usize) -> String,
        filter: impl Fn(usize) -> Option<(String, Qos)>,
    ) -> Result<()> {
        let first = self.connections.len();
        let (mut begun, mut done) = (0, 0);
        while done < count {
            while begun < count && begun - done < CONNECTING_MAX {
                self.open(broker, &client_id(begun))?;
                begun += 1;
            }
            let mut handle = |net: &mut Self, number: usize, packet: Packet| {
                match packet {
                    Packet::ConnAck(connack) if connack.reason == ReasonCode::Success => {
                        match filter(number - first) {
                            Some((filter, qos)) => net.send(number, &subscribe(&filter, qos)),
                            None => done += 1,
                        }
                    }
                    Packet::SubAck(suback) if suback.reasons.iter().all(|reason| !reason.is_error()) => {
                        done += 1;
                    }
                    other => bail!("client {number} got {other:?}"),
                }
                Ok(())
            };
            let is_alive = self.turn(PATIENCE, &mut handle)?;
            ensure!(is_alive, "nothing from the broker for {PATIENCE:?}, {done} of {count} are connected");
        }
        Ok(())
    }

    fn open(&mut self, broker: SocketAddr, client_id: &str) -> Result<()> {
        let mut stream = TcpStream::connect(broker).context("can't connect")?;
        let number = self.connections.len();
        self.poll.registry().register(
            &mut stream,
            Token(number),
            Interest::READABLE.add(Interest::WRITABLE),
        )?;
        self.connections.push(Connection {
            stream,
            rest: BytesMut::new(),
            output: BytesMut::new(),
            is_open: false,
            is_dirty: false,
        });
        self.send(number, &Packet::Connect(Box::new(Connect::new(VERSION, client_id))));
        Ok(())
    }

    /// Queues a packet; it leaves with the next [`Net::turn`].
    pub(super) fn send(&mut self, number: usize, packet: &Packet) {
        codec::encode(packet, VERSION, self.output(number));
    }

    /// Where bytes for a connection are queued.
    pub(super) fn output(&mut self, number: usize) -> &mut BytesMut {
        let connection = &mut self.connections[number];
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(number);
        }
        &mut connection.output
    }

    /// Writes what is queued, waits for something to read, at most `patience`, and handles all of it. Returns whether
    /// anything happened.
    pub(super) fn turn(
        &mut self,
        patience: Duration,
        handle: &mut impl FnMut(&mut Self, usize, Packet) -> Result<()>,
    ) -> Result<bool> {
        self.flush()?;
        match self.poll.poll(&mut self.events, Some(patience)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            result => result?,
        }
        self.ready.clear();
        self.ready.extend(self.events.iter().map(|event| (event.token().0, event.is_writable())));
        for at in 0..self.ready.len() {
            let (number, is_writable) = self.ready[at];
            if is_writable {
                let connection = &mut self.connections[number];
                if !connection.is_open {
                    if let Some(error) = connection.stream.take_error()? {
                        return Err(error).with_context(|| format!("client {number} can't connect"));
                    }
                    connection.stream.set_nodelay(true)?;
                    connection.is_open = true;
                }
                // Marks it.
                self.output(number);
            }
            self.read(number, handle)?;
        }
        Ok(!self.ready.is_empty())
    }

    fn read(
        &mut self,
        number: usize,
        handle: &mut impl FnMut(&mut Self, usize, Packet) -> Result<()>,
    ) -> Result<()> {
        loop {
            let connection = &mut self.connections[number];
            let count = match connection.stream.read(&mut self.read) {
                Ok(0) => bail!("the broker closed the connection of client {number}"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(|| format!("client {number} can't read")),
            };
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(&std::mem::take(&mut connection.rest));
            input.extend_from_slice(&self.read[..count]);
            while let Some(packet) = codec::decode(&mut input, Some(VERSION), &Limits::default())? {
                handle(self, number, packet)?;
            }
            if !input.is_empty() {
                self.connections[number].rest = BytesMut::from(&input[..]);
                input.clear();
            }
            self.input = input;
            if count < self.read.len() {
                // Nothing is left, and the next byte is an event.
                return Ok(());
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        for number in self.dirty.drain(..) {
            let connection = &mut self.connections[number];
            connection.is_dirty = false;
            while connection.is_open && !connection.output.is_empty() {
                match connection.stream.write(&connection.output) {
                    Ok(count) => connection.output.advance(count),
                    // An event tells when there is room.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).with_context(|| format!("client {number} can't write")),
                }
            }
        }
        Ok(())
    }

    /// Says goodbye for all clients, and waits until the broker has closed every connection.
    pub(super) fn disconnect(mut self) -> Result<()> {
        for number in 0..self.connections.len() {
            self.send(number, &Packet::Disconnect(Disconnect::new(ReasonCode::Success)));
        }
        self.flush()?;
        let by = Instant::now() + PATIENCE;
        for connection in &mut self.connections {
            // The broker has to close first, so that no port of ours waits.
            loop {
                match connection.stream.read(&mut self.read) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        ensure!(Instant::now() < by, "the broker does not close after DISCONNECT");
                        self.poll.poll(&mut self.events, Some(Duration::from_millis(10)))?;
                    }
                    Err(_) => break,
                }
            }
        }
        Ok(())
    }
}

fn subscribe(filter: &str, qos: Qos) -> Packet {
    let subscription = Subscription::new(filter, qos);
    Packet::Subscribe(Subscribe::new(1, vec![subscription]))
}
