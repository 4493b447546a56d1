//! Where clients connect: TCP, TLS, WebSocket and secure WebSocket.
//!
//! ```text
//! accept ──► [PROXY header] ──► [TLS handshake] ──► [WebSocket handshake] ──► connection
//! ```
//!
//! The handshakes run in a task of their own, which ends with them: a served connection carries nothing of it. All of
//! it, and CONNECT after it, has the time that `mqtt.connect-timeout` gives from the moment of accepting.

pub(crate) mod config;
mod proxies;
mod proxy_protocol;
pub(crate) mod stream;
mod tls;
mod web_socket;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use socket2::SockRef;
use tbmq_mqtt::session::{Limits, Now};
use tbmq_service::{
    shell::Misconfigured,
    tls::{ServerTls, Told},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use self::{
    config::{ListenerConfig, ListenersConfig},
    proxies::Proxies,
    stream::Stream,
    web_socket::WebSocket,
};
use crate::{limit::AddressPlace, metrics::Handshake, plane::Plane};

/// A pause after the system could not accept (no descriptors left): trying at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The time whose share of the accept rate may come at once.
const BURST: Duration = Duration::from_millis(100);

/// A bound listener that accepts nothing yet.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    entrance: Arc<Entrance>,
    pace: Option<Pace>,
    tls_reload_interval: Duration,
}

/// What the connections of one listener share.
#[derive(Debug)]
struct Entrance {
    limits: Arc<Limits>,
    keep_alive: bool,
    is_proxied: bool,
    proxies: Proxies,
    tls: Option<ServerTls>,
    web_socket: Option<WebSocket>,
    /// Places for connections, if the listener has a limit of its own.
    places: Option<Arc<Semaphore>>,
}

/// A connection that is ready for MQTT.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) stream: Stream,
    pub(crate) peer: Peer,
    pub(crate) limits: Arc<Limits>,
    /// When it was accepted.
    pub(crate) since: Now,
    pub(crate) place: Place,
}

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// As the socket says, a PROXY header, or a header that was forwarded; the latter knows no port: 0.
    pub(crate) address: SocketAddr,
    /// Common names along the verified path, from the client's own certificate to the authority. None when it has shown
    /// no certificate, or one without a common name.
    pub(crate) common_names: Arc<[Box<str>]>,
    /// Whether the client is on this machine: the socket says so, and so does whatever was announced.
    pub(crate) is_local: bool,
}

impl Peer {
    fn new(address: SocketAddr) -> Self {
        Self { address, common_names: Arc::default(), is_local: is_loopback(address) }
    }

    /// Somebody who speaks for the client says where it is.
    fn announced(&mut self, address: SocketAddr) {
        self.address = address;
        self.is_local &= is_loopback(address);
    }
}

/// Whether it is an address of this machine alone.
pub(crate) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// A connection's place among those that are allowed; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _of_node: OwnedSemaphorePermit,
    _of_listener: Option<OwnedSemaphorePermit>,
    /// Once the address is known.
    of_address: Option<AddressPlace>,
}

/// Why a connection did not come as far as MQTT.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0} is not among the proxies that are trusted")]
    Stranger(SocketAddr),
    #[error("no good PROXY header: {0}")]
    Proxy(#[from] proxy_protocol::Error),
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("the WebSocket handshake failed: {0}")]
    WebSocket(web_socket::Error),
    #[error("the handshake took too long")]
    TimedOut,
    #[error("there are too many connections from its address")]
    TooMany,
}

impl Failure {
    /// As what it counts; `None`: it is counted as a limit that was reached.
    fn handshake(&self) -> Option<Handshake> {
        match self {
            Self::Proxy(_) | Self::Stranger(_) => Some(Handshake::Proxy),
            Self::Tls(_) => Some(Handshake::Tls),
            Self::WebSocket(_) => Some(Handshake::WebSocket),
            Self::TimedOut => Some(Handshake::TimedOut),
            Self::TooMany => None,
        }
    }
}

impl Place {
    /// Makes it one of those of this address, too.
    fn take_from(&mut self, plane: &Plane, address: SocketAddr) -> Result<(), Failure> {
        let now_ms = plane.clock.now().monotonic_ms;
        self.of_address = plane.limiter.place_for(now_ms, address.ip()).map_err(|_| Failure::TooMany)?;
        Ok(())
    }
}

impl Listener {
    /// Reads the certificates and binds the address; port 0 picks a free one. `path` is where the configuration has it.
    ///
    /// # Errors
    /// [`Misconfigured`], or the address can't be bound.
    pub(crate) async fn bind(
        path: &str,
        config: &ListenerConfig,
        all: &ListenersConfig,
        limits: &Limits,
    ) -> anyhow::Result<Self> {
        let tls = config.tls.as_ref().map(|tls| tls::open(path, tls)).transpose();
        let limits = Limits { packet_bytes: config.packet_bytes(), ..limits.clone() };
        let is_proxied = config.proxy_protocol_enabled.unwrap_or(all.proxy_protocol_enabled);
        let web_socket =
            config.web_socket.as_ref().map(|config| WebSocket::new(config, &limits, is_proxied)).transpose();
        let proxies = Proxies::new(&all.trusted_proxies)
            .map_err(|error| Misconfigured::new(format!("TBMQ_LISTENER_TRUSTED_PROXIES: {error}")))?;
        let entrance = Entrance {
            limits: Arc::new(limits),
            keep_alive: config.netty.so_keep_alive,
            is_proxied,
            proxies,
            tls: tls.map_err(Misconfigured::new)?,
            web_socket: web_socket.map_err(|error| Misconfigured::new(format!("{path}: {error}")))?,
            places: match config.connections_max {
                0 => None,
                max => Some(Arc::new(Semaphore::new(max as usize))),
            },
        };
        let address = SocketAddr::new(config.bind_address, config.bind_port);
        let bind = || async {
            let socket = TcpListener::bind(address).await?;
            if all.so_receive_buffer > 0 {
                SockRef::from(&socket).set_recv_buffer_size(all.so_receive_buffer as usize * 1024)?;
            }
            io::Result::Ok(socket)
        };
        let socket = bind().await.with_context(|| format!("can't bind MQTT address {address} ({path})"))?;
        Ok(Self {
            socket,
            entrance: Arc::new(entrance),
            pace: Pace::new(config.accept_rate_max),
            tls_reload_interval: all.tls_reload_interval,
        })
    }

    /// The scheme of its addresses.
    pub(crate) fn scheme(&self) -> &'static str {
        match (&self.entrance.tls, &self.entrance.web_socket) {
            (None, None) => "mqtt",
            (Some(_), None) => "mqtts",
            (None, Some(_)) => "ws",
            (Some(_), Some(_)) => "wss",
        }
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections until the node takes none any more: then the port is closed. Ends with the process.
    pub(crate) async fn run(self, plane: Arc<Plane>) {
        let tls = self.entrance.tls.clone();
        let interval = self.tls_reload_interval;
        let follow = async {
            match tls {
                Some(tls) => {
                    let metrics = &plane.metrics;
                    let tell = |told: Told<'_>| match told {
                        Told::InUse(current) => metrics.tls_not_after.set(current),
                        Told::Refused => _ = metrics.tls_reload_failures.inc(),
                        Told::Overdue(more) => _ = metrics.tls_revocation_lists_overdue.inc_by(more),
                    };
                    tls.follow(interval, tell).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.accept(&plane) => {}
            () = follow => {}
            () = plane.retiring.begun() => {}
            () = plane.drain.begun() => {}
        }
        plane.drain.begun().await;
    }

    async fn accept(mut self, plane: &Arc<Plane>) {
        loop {
            match self.socket.accept().await {
                Ok((socket, address)) => {
                    if let Some(pace) = &mut self.pace {
                        pace.keep(plane).await;
                    }
                    self.entrance.admit(plane, socket, address);
                }
                Err(error) => {
                    plane.metrics.accept_failures.inc();
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Entrance {
    /// Gives the connection a place and serves it, or closes it at once when there is none.
    fn admit(self: &Arc<Self>, plane: &Arc<Plane>, socket: TcpStream, address: SocketAddr) {
        plane.metrics.accepted.inc();
        let (since, peer) = (plane.clock.now(), Peer::new(address));
        if !plane.limiter.admits_connection(since.monotonic_ms) {
            return;
        }
        let Some(mut place) = self.place(plane) else {
            plane.metrics.connection_limit_reached.inc();
            return;
        };
        if !self.is_proxied && !self.is_forwarded(address) && place.take_from(plane, address).is_err() {
            return;
        }
        self.prepare(&socket);
        if self.is_proxied || self.tls.is_some() || self.web_socket.is_some() {
            plane.track(self.clone().welcome(plane.clone(), socket, peer, since, place));
        } else {
            let limits = self.limits.clone();
            plane.serve(Arrival { stream: Stream::Tcp(socket), peer, limits, since, place });
        }
    }

    fn place(&self, plane: &Plane) -> Option<Place> {
        let of_listener = match &self.places {
            Some(places) => Some(places.clone().try_acquire_owned().ok()?),
            None => None,
        };
        Some(Place { _of_node: plane.place()?, _of_listener: of_listener, of_address: None })
    }

    /// Whether a header of the WebSocket handshake may say what the client's address is, if this one is the other end's.
    fn is_forwarded(&self, address: SocketAddr) -> bool {
        let is_heeded = self.web_socket.as_ref().is_some_and(WebSocket::heeds_forward_headers);
        is_heeded && self.proxies.has(address.ip())
    }

    fn prepare(&self, socket: &TcpStream) {
        // Answers are written once per turn: there is nothing to collect them with.
        let outcome =
            socket.set_nodelay(true).and_then(|()| SockRef::from(socket).set_keepalive(self.keep_alive));
        if let Err(error) = outcome {
            tracing::debug!(%error, "can't set socket options");
        }
    }

    /// Shakes hands and serves the connection after that.
    async fn welcome(
        self: Arc<Self>,
        plane: Arc<Plane>,
        socket: TcpStream,
        mut peer: Peer,
        since: Now,
        mut place: Place,
    ) {
        let patience = Duration::from_millis(self.limits.connect_timeout_ms);
        let opened = tokio::select! {
            opened = tokio::time::timeout(patience, self.open(&plane, socket, &mut peer, &mut place)) => opened,
            // Who is not yet served is told nothing.
            () = plane.retiring.begun() => return,
            () = plane.drain.begun() => return,
        };
        match opened.unwrap_or(Err(Failure::TimedOut)) {
            Ok(stream) => {
                plane.serve(Arrival { stream, peer, limits: self.limits.clone(), since, place });
            }
            Err(failure) => {
                if let Some(handshake) = failure.handshake() {
                    plane.metrics.handshake_failed(handshake);
                }
                tracing::debug!(error = %failure, peer = %peer.address, "a connection was refused");
            }
        }
    }

    async fn open(
        &self,
        plane: &Plane,
        mut socket: TcpStream,
        peer: &mut Peer,
        place: &mut Place,
    ) -> Result<Stream, Failure> {
        let is_trusted = self.proxies.has(peer.address.ip());
        if self.is_proxied {
            if !is_trusted {
                return Err(Failure::Stranger(peer.address));
            }
            peer.announced(proxy_protocol::read(&mut socket).await?);
            // Before the work of TLS.
            place.take_from(plane, peer.address)?;
        }
        let is_forwarded = self.is_forwarded(peer.address);
        let stream = self.shake(socket, peer, is_trusted).await?;
        if is_forwarded {
            place.take_from(plane, peer.address)?;
        }
        Ok(stream)
    }

    async fn shake(&self, socket: TcpStream, peer: &mut Peer, is_trusted: bool) -> Result<Stream, Failure> {
        let Some(tls) = &self.tls else {
            return match &self.web_socket {
                Some(web_socket) => {
                    let stream =
                        web_socket.accept(socket, peer, is_trusted).await.map_err(Failure::WebSocket)?;
                    Ok(Stream::WebSocket(Box::new(stream)))
                }
                None => Ok(Stream::Tcp(socket)),
            };
        };
        let socket = tls::accept(tls, socket, peer).await.map_err(Failure::Tls)?;
        match &self.web_socket {
            Some(web_socket) => {
                let stream = web_socket.accept(socket, peer, is_trusted).await.map_err(Failure::WebSocket)?;
                Ok(Stream::SecureWebSocket(Box::new(stream)))
            }
            None => Ok(Stream::Tls(Box::new(socket))),
        }
    }
}

/// Spreads accepting over time.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    /// When the next connection is due, had none come early.
    next: Instant,
}

impl Pace {
    /// For this many a second; 0: `None`.
    fn new(per_second: u32) -> Option<Self> {
        let interval = Duration::from_secs(1).checked_div(per_second)?;
        Some(Self { interval, next: Instant::now() })
    }

    /// How long the connection that comes now has to wait.
    fn wait(&mut self, now: Instant) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let wait = self.next.saturating_duration_since(now);
        self.next = self.next.max(earliest) + self.interval;
        wait
    }

    async fn keep(&mut self, plane: &Plane) {
        let wait = self.wait(Instant::now());
        if !wait.is_zero() {
            plane.metrics.accept_rate_reached.inc();
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_lets_a_few_through_at_once_and_spreads_the_rest() {
        assert!(Pace::new(0).is_none());
        let mut pace = Pace::new(50).unwrap();
        let begun = pace.next + Duration::from_secs(60);
        // What was not used for a minute is not saved up: a tenth of a second's worth comes at once.
        let waits: Vec<_> = (0..8).map(|_| pace.wait(begun).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 20, 40]);
    }
}
