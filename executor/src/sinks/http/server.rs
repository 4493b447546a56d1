//! A scripted HTTP server for tests.

use std::{convert::Infallible, future::poll_fn, net::SocketAddr, pin::Pin, sync::Arc};

use ::http::{HeaderMap, Method, StatusCode, Uri, Version};
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Body as _, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tbmq_harness::port::Port;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Client certificates that were shown.
    pub client_certificates: usize,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

impl Reply {
    pub(super) fn of(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }
}

type Script = Box<dyn Fn(&Received) -> Reply + Send + Sync>;

/// Shared by all connections.
struct State {
    script: Script,
    received: Mutex<Vec<Received>>,
    /// Whether requests wait for their answers.
    is_held: watch::Sender<bool>,
    /// How many messages a request holds.
    weigh: Mutex<fn(&Received) -> usize>,
    /// Messages that have no answer yet, now and at most.
    open: watch::Sender<(usize, usize)>,
    connections: Mutex<usize>,
}

pub(super) struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
    uses_tls: bool,
    port: Port,
}

impl Server {
    /// Listens on a free port of the loopback.
    pub(super) async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::with_tls(script, None).await
    }

    pub(super) async fn with_tls(
        script: impl Fn(&Received) -> Reply + Send + Sync + 'static,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let state = State {
            script: Box::new(script),
            received: Mutex::default(),
            weigh: Mutex::new(|_| 1),
            is_held: watch::Sender::new(false),
            open: watch::Sender::new((0, 0)),
            connections: Mutex::default(),
        };
        let state = Arc::new(state);
        let (serving, tls) = (state.clone(), tls.map(TlsAcceptor::from));
        let uses_tls = tls.is_some();
        let serve = move |stream| {
            *serving.connections.lock() += 1;
            connection(stream, tls.clone(), serving.clone())
        };
        let port = Port::open(serve).await.unwrap();
        Self { address: port.address(), state, uses_tls, port }
    }

    /// Listens again after [`Server::stop`], at the same port.
    pub(super) async fn listen(&self) {
        self.port.set_open(true).await.unwrap();
    }

    /// Ends all connections and refuses new ones.
    pub(super) async fn stop(&self) {
        self.port.set_open(false).await.unwrap();
    }

    pub(super) fn hold(&self, is_held: bool) {
        self.state.is_held.send_replace(is_held);
    }

    /// Says how many messages a request holds; else one.
    pub(super) fn weigh(&self, weigh: fn(&Received) -> usize) {
        *self.state.weigh.lock() = weigh;
    }

    /// Waits until so many messages have no answer.
    pub(super) async fn held(&self, count: usize) {
        self.state.open.subscribe().wait_for(|(open, _)| *open == count).await.unwrap();
    }

    /// The most requests that were open at once.
    pub(super) fn open_max(&self) -> usize {
        self.state.open.borrow().1
    }

    pub(super) fn connections(&self) -> usize {
        *self.state.connections.lock()
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.state.received.lock().clone()
    }

    pub(super) fn url(&self, path: &str) -> String {
        let scheme = if self.uses_tls { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.address)
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, state: Arc<State>) {
    stream.set_nodelay(true).unwrap();
    match tls {
        None => serve(stream, 0, state).await,
        Some(tls) => {
            // A client that goes away or trusts nobody is part of the tests.
            let Ok(stream) = tls.accept(stream).await else { return };
            let certificates = stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let service = service_fn(move |request| handle(request, certificates, state.clone()));
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            } else {
                serve(stream, certificates, state).await;
            }
        }
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client_certificates: usize,
    state: Arc<State>,
) {
    let service =
        service_fn(move |request: Request<Incoming>| handle(request, client_certificates, state.clone()));
    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

/// Counts a request's messages as open for as long as it lives.
struct Open<'a>(&'a State, usize);

impl<'a> Open<'a> {
    fn new(state: &'a State, messages: usize) -> Self {
        state.open.send_modify(|(open, most)| {
            *open += messages;
            *most = (*open).max(*most);
        });
        Self(state, messages)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.send_modify(|(open, _)| *open -= self.1);
    }
}

async fn handle(
    request: Request<Incoming>,
    client_certificates: usize,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut incoming) = request.into_parts();
    let mut body = BytesMut::new();
    while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
        body.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    let received = Received {
        method: head.method,
        uri: head.uri,
        version: head.version,
        headers: head.headers,
        body: body.freeze(),
        client_certificates,
    };
    let reply = (state.script)(&received);
    let weigh = *state.weigh.lock();
    let messages = if received.method == Method::HEAD { 0 } else { weigh(&received) };
    state.received.lock().push(received);
    let open = Open::new(&state, messages);
    state.is_held.subscribe().wait_for(|is_held| !is_held).await.unwrap();
    drop(open);
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap();
    for (name, value) in reply.headers {
        response.headers_mut().append(name, value.parse().unwrap());
    }
    Ok(response)
}
