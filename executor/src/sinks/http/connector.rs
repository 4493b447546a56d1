//! How the HTTP client connects: only where it may, and not for ever.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use ::http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{HttpConnector, dns::Name},
    rt::TokioIo,
};
use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};
use tower_service::Service;

use crate::sinks::egress::{Egress, LookupError};

/// How long establishing a connection may take, from the question for addresses to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection may be silent before the system asks whether the other end is there, how long until it asks
/// again, and how often.
const TCP_KEEP_ALIVE: (Duration, u32) = (Duration::from_secs(15), 3);
/// How long what was sent may go without the other end's acknowledgement, before the connection counts as lost.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects with TCP, and with TLS where the URL says so.
#[derive(Clone)]
pub(super) struct Connector(HttpsConnector<HttpConnector<Guarded>>);

/// What it connects with.
pub(super) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// [`CONNECT_TIMEOUT`] was over.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("connection timed out")]
pub(super) struct TimedOut;

impl Connector {
    pub(super) fn new(egress: &Egress, tls: ClientConfig) -> Self {
        let mut http = HttpConnector::new_with_resolver(Guarded(egress.clone()));
        http.enforce_http(false);
        http.set_nodelay(true);
        let (silence, questions) = TCP_KEEP_ALIVE;
        http.set_keepalive(Some(silence));
        http.set_keepalive_interval(Some(silence));
        http.set_keepalive_retries(Some(questions));
        http.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(http);
        Self(https)
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.0.call(to);
        Box::pin(async move { timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| TimedOut)? })
    }
}

/// A resolver that gives only addresses which may be connected to. A host that is written as an address is not resolved:
/// it was checked with the configuration, and neither it nor the rules change.
#[derive(Clone, Debug)]
struct Guarded(Egress);

impl Service<Name> for Guarded {
    type Response = std::vec::IntoIter<std::net::SocketAddr>;
    type Error = LookupError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, LookupError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LookupError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let egress = self.0.clone();
        Box::pin(async move { Ok(egress.lookup(name.as_str(), 0).await?.into_iter()) })
    }
}
