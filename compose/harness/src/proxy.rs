//! A TCP proxy on the loopback interface, for faults of whatever lies between a client and a server.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, copy_bidirectional},
    net::TcpStream,
    sync::watch,
    time::Instant,
};

use crate::port::Port;

mod mqtt;

/// How a proxy behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Passing,
    /// The listener and every connection are closed.
    Down,
    /// Accepts connections, swallows what is sent in either direction, and closes nothing. A connection that fell into
    /// the hole stays there, whatever the mode is later: only its client can end it.
    BlackHole,
    /// Cuts each connection after this time.
    Cutting(Duration),
    /// A proxy of MQTT answers every second publish of QoS 1 itself, with Quota exceeded, and does not pass it on.
    RefusingHalf,
    /// A proxy of MQTT passes on what clients send, and keeps back what the broker says until it is passing again.
    HoldingAnswers,
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Any,
    Mqtt,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    protocol: Protocol,
    mode: watch::Sender<Mode>,
    /// Publishes that came while half of them were to be refused.
    publishes: AtomicU64,
    /// Publishes that the broker took.
    acknowledged: watch::Sender<u64>,
}

/// A running proxy; it ends with its connections when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy of a server, which need not run yet, on a free port of the loopback interface.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        Self::of(upstream, Protocol::Any).await
    }

    /// The same for an MQTT broker: it can refuse publishes.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn mqtt(upstream: SocketAddr) -> Result<Self> {
        Self::of(upstream, Protocol::Mqtt).await
    }

    async fn of(upstream: SocketAddr, protocol: Protocol) -> Result<Self> {
        let shared = Arc::new(Shared {
            upstream,
            protocol,
            mode: watch::Sender::new(Mode::Passing),
            publishes: AtomicU64::new(0),
            acknowledged: watch::Sender::new(0),
        });
        let serving = Arc::clone(&shared);
        let serve = move |client| {
            let shared = Arc::clone(&serving);
            // Either side may go away at any time; then the other one is let go, too.
            async move { drop(connection(client, &shared).await) }
        };
        Ok(Self { port: Port::open(serve).await?, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Publishes of QoS 1 that the broker behind a proxy of MQTT took so far (PUBACK without an error), told to the
    /// client or not.
    pub fn acknowledged(&self) -> watch::Receiver<u64> {
        self.shared.acknowledged.subscribe()
    }

    /// From now on behaves like this; waits until the listener is closed or open as the mode wants it.
    ///
    /// # Errors
    /// When the proxy has ended.
    pub async fn set_mode(&self, mode: Mode) -> Result<()> {
        self.shared.mode.send_replace(mode);
        self.port.set_open(mode != Mode::Down).await
    }
}

async fn connection(mut client: TcpStream, shared: &Shared) -> Result<()> {
    let mut mode = shared.mode.subscribe();
    if *mode.borrow_and_update() == Mode::BlackHole {
        swallow(&mut client, None).await;
        return Ok(());
    }
    let mut server = TcpStream::connect(shared.upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let since = Instant::now();
    {
        let relay = async {
            match shared.protocol {
                Protocol::Any => copy_bidirectional(&mut client, &mut server).await.map(|_| ())?,
                Protocol::Mqtt => mqtt::relay(&mut client, &mut server, shared).await?,
            }
            anyhow::Ok(())
        };
        tokio::pin!(relay);
        loop {
            let cut_at = match *mode.borrow_and_update() {
                Mode::BlackHole => break,
                Mode::Cutting(after) => Some(since + after),
                Mode::Passing | Mode::Down | Mode::RefusingHalf | Mode::HoldingAnswers => None,
            };
            tokio::select! {
                ended = &mut relay => return ended,
                changed = mode.changed() => changed?,
                () = tokio::time::sleep_until(cut_at.unwrap_or(since)), if cut_at.is_some() => return Ok(()),
            }
        }
    }
    swallow(&mut client, Some(&mut server)).await;
    Ok(())
}

/// Takes what comes from either side, until the client ends the connection.
async fn swallow(client: &mut TcpStream, server: Option<&mut TcpStream>) {
    let silent = async {
        if let Some(server) = server {
            drain(server).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = drain(client) => {}
        () = silent => {}
    }
}

/// Reads until the end.
async fn drain(stream: &mut TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    /// A server that sends back what it gets, behind a proxy.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    drop(tokio::io::copy(&mut read, &mut write).await);
                });
            }
        });
        Proxy::start(upstream).await.unwrap()
    }

    async fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn a_proxy_passes_on_goes_down_and_comes_back_on_its_port() {
        let proxy = echo().await;
        let mut first = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut first).await.unwrap(), b'x');
        proxy.set_mode(Mode::Down).await.unwrap();
        ask(&mut first).await.unwrap_err();
        TcpStream::connect(proxy.address()).await.unwrap_err();
        proxy.set_mode(Mode::Passing).await.unwrap();
        let mut second = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut second).await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn connections_that_fell_into_the_black_hole_stay_there() {
        let proxy = echo().await;
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut old).await.unwrap(), b'x');
        proxy.set_mode(Mode::BlackHole).await.unwrap();
        let mut young = TcpStream::connect(proxy.address()).await.unwrap();
        for stream in [&mut old, &mut young] {
            tokio::time::timeout(PATIENCE, ask(stream)).await.unwrap_err();
        }
        proxy.set_mode(Mode::Passing).await.unwrap();
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut new).await.unwrap(), b'x');
        for stream in [&mut old, &mut young] {
            tokio::time::timeout(PATIENCE, ask(stream)).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn connections_old_and_new_are_cut_after_the_time() {
        let proxy = echo().await;
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut old).await.unwrap(), b'x');
        proxy.set_mode(Mode::Cutting(PATIENCE)).await.unwrap();
        let mut young = TcpStream::connect(proxy.address()).await.unwrap();
        for stream in [&mut old, &mut young] {
            let end = tokio::time::timeout(20 * PATIENCE, stream.read_u8()).await.unwrap();
            end.unwrap_err();
        }
        proxy.set_mode(Mode::Passing).await.unwrap();
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut new).await.unwrap(), b'x');
        tokio::time::timeout(2 * PATIENCE, new.read_u8()).await.unwrap_err();
    }
}
