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
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

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

struct Shared {
    received: Mutex<Vec<Received>>,
    count: watch::Sender<usize>,
    script: Mutex<Arc<Script>>,
}

/// A running server; it stops when dropped.
pub struct HttpSink {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for HttpSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpSink").field("address", &self.address).finish_non_exhaustive()
    }
}

impl HttpSink {
    /// Starts a server on a free port of the loopback interface; it answers 200 to everything.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            received: Mutex::default(),
            count: watch::Sender::new(0),
            script: Mutex::new(Arc::new(|_, _, _| (StatusCode::OK, Duration::ZERO))),
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// `http://127.0.0.1:<port>/<path>`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
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

impl Drop for HttpSink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the set, and the set with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                if let Err(error) = stream.set_nodelay(true) {
                    eprintln!("the sink's connection is gone: {error}");
                    continue;
                }
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                    // A client that goes away in the middle of a request is part of many tests.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
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
    let (status, pause) = script(&head.method, &path, &body);
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    let received =
        Received { at: Instant::now(), method: head.method, path, headers: head.headers, body, status };
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
