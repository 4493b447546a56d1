//! A client's network connection, which a session may outlive and which may be handed from one task to another.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use prometheus_client::metrics::gauge::Gauge;
use tbmq_mqtt::{packet::Connect, session::Limits};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};

use crate::{
    connection::Guest,
    listen::{Arrival, Peer, Place, stream::Stream},
    metrics::Metrics,
};

/// How long the last packets may take to be written, and the client to close its side.
const CLOSE: Duration = Duration::from_secs(2);

/// A connection that counts as one as long as it lives.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: Stream,
    pub(crate) peer: Peer,
    /// Those of its listener.
    pub(crate) limits: Arc<Limits>,
    /// What was written may still be held by the stream.
    must_flush: bool,
    connections: Gauge,
    /// Of those over TLS, if it is one.
    tls_connections: Option<Gauge>,
    _place: Place,
}

/// A connection that comes to the session that its CONNECT asks for.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub(crate) link: Link,
    /// An accepted CONNECT.
    pub(crate) connect: Box<Connect>,
    /// What came after it.
    pub(crate) input: Option<BytesMut>,
    /// Who the client is.
    pub(crate) guest: Box<Guest>,
}

impl Link {
    pub(crate) fn new(arrival: Arrival, metrics: &Metrics) -> Self {
        let Arrival { stream, peer, limits, since: _, place } = arrival;
        let connections = metrics.connections.clone();
        connections.inc();
        let tls_connections = stream.is_tls().then(|| metrics.tls_connections.clone());
        if let Some(tls_connections) = &tls_connections {
            tls_connections.inc();
        }
        Self { stream, peer, limits, must_flush: false, connections, tls_connections, _place: place }
    }

    /// Writes what there is, and takes it out of `output` as it goes.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, output: &mut BytesMut) -> Poll<io::Result<()>> {
        while !output.is_empty() {
            self.must_flush = true;
            match ready!(Pin::new(&mut self.stream).poll_write(cx, output)) {
                Ok(written) => output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if self.must_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.must_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is left and closes: shuts our side, and throws away what comes until the client shuts its own.
    /// Closing at once would make the system reset the connection, and the client lose our last packet.
    pub(crate) async fn close(mut self, output: Option<BytesMut>) {
        let closed = tokio::time::timeout(CLOSE, async {
            if let Some(mut output) = output {
                self.stream.write_all_buf(&mut output).await?;
            }
            self.stream.flush().await?;
            self.stream.shutdown().await?;
            let mut ignored = [0; 512];
            while self.stream.read(&mut ignored).await? > 0 {}
            io::Result::Ok(())
        });
        if let Ok(Err(error)) = closed.await {
            tracing::debug!(%error, "can't close in order");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connections.dec();
        if let Some(tls_connections) = &self.tls_connections {
            tls_connections.dec();
        }
    }
}
