//! An HTTP server that records what arrives, for integrations to deliver to.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::watch};

use crate::port::Port;

/// A request that arrived, in order of arrival.
#[derive(Clone, Debug)]
pub struct Received {
    /// When its body was complete.
    pub at: Instant,
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What it was answered.
    pub status: StatusCode,
}

type Script = dyn Fn(&Method, &str, &Bytes) -> (StatusCode, Duration) + Send + Sync;

/// How a sink behaves towards everyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answers what the script says.
    Serving,
    /// The listener and every connection are closed.
    Down,
    /// Accepts connections and requests, and never answers. What it took in this mode is not answered later either.
    BlackHole,
    /// Answers every request with this status.
    Answering(StatusCode),
    /// As `Serving`, after this time more.
    Slow(Duration),
}

/// What takes the requests of a sink that does not keep them.
type Observer = dyn Fn(Received) + Send + Sync;

struct Shared {
    received: Mutex<Vec<Received>>,
    observer: Option<Box<Observer>>,
    count: watch::Sender<usize>,
    script: Mutex<Arc<Script>>,
    mode: watch::Sender<Mode>,
}

/// A running server; it stops when dropped.
pub struct HttpSink {
    port: Port,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for HttpSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpSink").field("address", &self.port.address()).finish_non_exhaustive()
    }
}

impl HttpSink {
    /// Starts a server on a free port of the loopback interface; it answers 200 to everything and keeps it.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        Self::start_with(None).await
    }

    /// The same; requests are handed to `observer` when they are answered, and not kept.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn observed(observer: impl Fn(Received) + Send + Sync + 'static) -> Result<Self> {
        Self::start_with(Some(Box::new(observer))).await
    }

    async fn start_with(observer: Option<Box<Observer>>) -> Result<Self> {
        let shared = Arc::new(Shared {
            received: Mutex::default(),
            observer,
            count: watch::Sender::new(0),
            script: Mutex::new(Arc::new(|_, _, _| (StatusCode::OK, Duration::ZERO))),
            mode: watch::Sender::new(Mode::Serving),
        });
        let serving = Arc::clone(&shared);
        let port = Port::open(move |stream| serve(stream, Arc::clone(&serving))).await?;
        Ok(Self { port, shared })
    }

    /// From now on behaves like this; waits until the listener is closed or open as the mode wants it.
    ///
    /// # Errors
    /// When the server has ended.
    pub async fn set_mode(&self, mode: Mode) -> Result<()> {
        self.shared.mode.send_replace(mode);
        self.port.set_open(mode != Mode::Down).await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// `http://127.0.0.1:<port>/<path>`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.port.address())
    }

    /// From now on answers what the script says, after the time that it says.
    pub fn script(
        &self,
        script: impl Fn(&Method, &str, &Bytes) -> (StatusCode, Duration) + Send + Sync + 'static,
    ) {
        *self.shared.script.lock() = Arc::new(script);
    }

    /// Everything that has arrived.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().clone()
    }

    /// How many requests have arrived.
    pub fn count(&self) -> usize {
        *self.shared.count.borrow()
    }

    /// Waits until at least `count` requests have arrived.
    ///
    /// # Errors
    /// When they have not within `patience`.
    pub async fn wait_for(&self, count: usize, patience: Duration) -> Result<()> {
        let mut changes = self.shared.count.subscribe();
        let wait = changes.wait_for(|seen| *seen >= count);
        match tokio::time::timeout(patience, wait).await {
            Ok(result) => result.map(drop).map_err(Into::into),
            Err(_) => anyhow::bail!("{} of {count} requests arrived within {patience:?}", self.count()),
        }
    }

    /// Waits until `done` holds for what has arrived.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub async fn wait_until(&self, patience: Duration, done: impl Fn(&[Received]) -> bool) -> Result<()> {
        let mut changes = self.shared.count.subscribe();
        let wait = async {
            while !done(&self.shared.received.lock()) {
                changes.changed().await?;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(patience, wait).await {
            Ok(result) => result,
            Err(_) => anyhow::bail!("not done within {patience:?}; {} requests have arrived", self.count()),
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        eprintln!("the sink's connection is gone: {error}");
        return;
    }
    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
    // A client that goes away in the middle of a request is part of many tests.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return Ok(response(StatusCode::BAD_REQUEST));
    };
    let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let script = Arc::clone(&shared.script.lock());
    let mode = *shared.mode.borrow();
    let (status, pause) = match mode {
        Mode::BlackHole => return std::future::pending().await,
        Mode::Answering(status) => (status, Duration::ZERO),
        Mode::Serving | Mode::Down => script(&head.method, &path, &body),
        Mode::Slow(more) => {
            let (status, pause) = script(&head.method, &path, &body);
            (status, pause + more)
        }
    };
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    let received =
        Received { at: Instant::now(), method: head.method, path, headers: head.headers, body, status };
    if let Some(observer) = &shared.observer {
        observer(received);
        shared.count.send_modify(|seen| *seen += 1);
        return Ok(response(status));
    }
    let count = {
        let mut all = shared.received.lock();
        all.push(received);
        all.len()
    };
    shared.count.send_if_modified(|seen| {
        let grown = count > *seen;
        *seen = count.max(*seen);
        grown
    });
    Ok(response(status))
}

fn response(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    /// Posts a body on a connection of its own and reads the status.
    async fn post(sink: &HttpSink) -> Result<u16> {
        let mut stream = TcpStream::connect(sink.address()).await?;
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text.split(' ').nth(1).unwrap_or_default().parse()?)
    }

    #[tokio::test]
    async fn a_sink_fails_goes_down_and_comes_back_on_its_port() {
        let sink = HttpSink::start().await.unwrap();
        assert_eq!(post(&sink).await.unwrap(), 200);
        sink.set_mode(Mode::Answering(StatusCode::INTERNAL_SERVER_ERROR)).await.unwrap();
        assert_eq!(post(&sink).await.unwrap(), 500);
        sink.set_mode(Mode::Down).await.unwrap();
        post(&sink).await.unwrap_err();
        sink.set_mode(Mode::Serving).await.unwrap();
        assert_eq!(post(&sink).await.unwrap(), 200);
        let statuses: Vec<u16> = sink.received().iter().map(|one| one.status.as_u16()).collect();
        assert_eq!(statuses, [200, 500, 200]);
    }

    #[tokio::test]
    async fn a_request_that_fell_into_the_black_hole_is_never_answered() {
        let sink = HttpSink::start().await.unwrap();
        sink.set_mode(Mode::BlackHole).await.unwrap();
        let swallowed = post(&sink);
        tokio::pin!(swallowed);
        let patience = Duration::from_millis(200);
        tokio::time::timeout(patience, &mut swallowed).await.unwrap_err();
        sink.set_mode(Mode::Serving).await.unwrap();
        assert_eq!(post(&sink).await.unwrap(), 200);
        tokio::time::timeout(patience, &mut swallowed).await.unwrap_err();
        assert_eq!(sink.count(), 1);
    }
}
