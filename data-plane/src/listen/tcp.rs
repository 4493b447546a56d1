//! MQTT over TCP.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use crate::{config::TcpConfig, plane::Plane};

/// A pause after the system could not accept (no descriptors left): trying at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound listener that accepts nothing yet.
#[derive(Debug)]
pub(crate) struct Tcp {
    listener: TcpListener,
    keep_alive: bool,
}

impl Tcp {
    /// Binds the address; port 0 picks a free one.
    pub(crate) async fn bind(config: &TcpConfig) -> anyhow::Result<Self> {
        let address = SocketAddr::new(config.bind_address, config.bind_port);
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("can't bind MQTT address {address}"))?;
        Ok(Self { listener, keep_alive: config.netty.so_keep_alive })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until the node takes none any more: then the port is closed. Ends with the process.
    pub(crate) async fn run(self, plane: Arc<Plane>) {
        self.accept(&plane).await;
        plane.drain.begun().await;
    }

    async fn accept(self, plane: &Arc<Plane>) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = plane.retiring.begun() => return,
                () = plane.drain.begun() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    self.prepare(&stream);
                    plane.serve(stream);
                }
                Err(error) => {
                    plane.metrics.accept_failures.inc();
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn prepare(&self, stream: &TcpStream) {
        // Answers are written once per turn: there is nothing to collect them with.
        let outcome =
            stream.set_nodelay(true).and_then(|()| SockRef::from(stream).set_keepalive(self.keep_alive));
        if let Err(error) = outcome {
            tracing::debug!(%error, "can't set socket options");
        }
    }
}
