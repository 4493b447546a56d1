//! The admin endpoint: liveness, readiness and metrics over plain HTTP.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 as long as the process serves requests at all |
//! | `/readyz` | 200 when every component is up and no drain has begun, else 503 |
//! | `/metrics`, `/actuator/prometheus` | all metrics |
//! | `/actuator/health` | the components, in TBMQ's form; 200 or 503 |

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    drain::Drain,
    metrics::{Metrics, Registry},
};

/// Connections served at a time; more wait in the system's backlog.
const CONNECTIONS_MAX: usize = 64;

/// How long each step of a [`probe`] may take, and what is read of the answer.
const PROBE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// The bound endpoint.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    metrics: Metrics,
    health: Health,
}

impl Admin {
    /// Binds the address; port 0 picks a free one. Nothing is served before [`Admin::serve`].
    pub async fn bind(address: SocketAddr, metrics: Metrics, health: Health) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            io::Error::new(error.kind(), format!("can't bind admin address {address}: {error}"))
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, metrics, health })
    }

    /// The address with the port that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped, during a drain as well, when `/readyz` answers 503.
    pub async fn serve(self, drain: Drain) -> io::Result<()> {
        let gauge = self.metrics.register(register);
        let readiness = Readiness { health: self.health, drain };
        let measured = readiness.clone();
        self.metrics.before_reading(move || _ = gauge.set(measured.obstacles().is_none().into()));
        let state = Served { metrics: self.metrics, readiness };
        let router = Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/actuator/prometheus", get(metrics))
            .route("/actuator/health", get(health))
            .with_state(state);
        let listener = Limited { inner: self.listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
        axum::serve(listener, router).await
    }
}

/// Registers what an endpoint measures, for the page of metrics.
pub fn describe_metrics(registry: &mut Registry) {
    register(registry);
}

fn register(registry: &mut Registry) -> Gauge {
    let ready = Gauge::default();
    let help = "1 when every component is up and no drain has begun, as /readyz says";
    registry.register("tbmq_service_ready", help, ready.clone());
    ready
}

#[derive(Clone)]
struct Served {
    metrics: Metrics,
    readiness: Readiness,
}

#[derive(Clone)]
struct Readiness {
    health: Health,
    drain: Drain,
}

impl Readiness {
    /// Why the process is not ready, a line each; `None`: it is.
    fn obstacles(&self) -> Option<String> {
        if self.drain.is_draining() {
            return Some("draining\n".to_owned());
        }
        let down = self.health.down();
        let lines = down.iter().map(|(name, reason)| format!("{name}: {reason}\n"));
        (!down.is_empty()).then(|| lines.collect())
    }
}

async fn metrics(State(served): State<Served>) -> Response {
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], served.metrics.encode()).into_response()
}

async fn ready(State(served): State<Served>) -> Response {
    match served.readiness.obstacles() {
        Some(obstacles) => (StatusCode::SERVICE_UNAVAILABLE, obstacles).into_response(),
        None => "ok\n".into_response(),
    }
}

async fn health(State(served): State<Served>) -> Response {
    let state = |up: bool| if up { "UP" } else { "DOWN" };
    let health = &served.readiness.health;
    let components: serde_json::Map<String, serde_json::Value> = health
        .all()
        .into_iter()
        .map(|(name, down)| {
            let mut component = serde_json::json!({ "status": state(down.is_none()) });
            if let Some(reason) = down {
                component["details"] = serde_json::json!({ "error": reason });
            }
            (name, component)
        })
        .collect();
    let up = health.is_up();
    let code = if up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "status": state(up), "components": components });
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// Asks the endpoint at `address` whether it is ready, for health checks where there is no other HTTP client. An address
/// that means all interfaces stands for loopback. Blocks, at most 5 s a step; an error says who is down.
pub fn probe(mut address: SocketAddr) -> io::Result<()> {
    if address.ip().is_unspecified() {
        let is_ipv4 = address.is_ipv4();
        address.set_ip(if is_ipv4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    let mut stream = std::net::TcpStream::connect_timeout(&address, PROBE)?;
    stream.set_read_timeout(Some(PROBE))?;
    stream.set_write_timeout(Some(PROBE))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(io::Error::other(answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body).to_owned()))
}

/// The components that a process needs to do its work. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<String, Option<String>>>>,
    scope: Option<Arc<str>>,
}

impl Health {
    /// Adds a component, down (`starting`) until it says otherwise. The same name gives the same component.
    pub fn component(&self, name: &str) -> Component {
        let name = match &self.scope {
            Some(scope) => format!("{scope}.{name}"),
            None => name.to_owned(),
        };
        self.components.lock().entry(name.clone()).or_insert_with(|| Some("starting".to_owned()));
        Component { name: name.into(), components: self.components.clone() }
    }

    /// The same health for one of several planes in a process: its components are named `<scope>.<name>`.
    pub fn scoped(&self, scope: &str) -> Self {
        Self { components: self.components.clone(), scope: Some(scope.into()) }
    }

    /// Whether every component is up.
    pub fn is_up(&self) -> bool {
        self.components.lock().values().all(Option::is_none)
    }

    /// Components that are down, with the reason.
    pub fn down(&self) -> Vec<(String, String)> {
        self.all().into_iter().filter_map(|(name, down)| Some((name, down?))).collect()
    }

    fn all(&self) -> Vec<(String, Option<String>)> {
        self.components.lock().iter().map(|(name, down)| (name.clone(), down.clone())).collect()
    }
}

/// One component of a [`Health`].
#[derive(Clone)]
pub struct Component {
    name: Arc<str>,
    components: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

impl Component {
    /// It works.
    pub fn up(&self) {
        self.set(None);
    }

    /// It does not work, and why.
    pub fn down(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, down: Option<String>) {
        if let Some(held) = self.components.lock().get_mut(&*self.name) {
            *held = down;
        }
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Component").field(&self.name).finish()
    }
}

/// A listener that holds a permit for each connection.
struct Limited {
    inner: TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener for Limited {
    type Io = Permitted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Permitted, SocketAddr) {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        // axum's own accept logs and retries.
        let (stream, address) = Listener::accept(&mut self.inner).await;
        (Permitted { stream, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

struct Permitted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Permitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Permitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn serving(health: &Health) -> (SocketAddr, Drain, tokio::task::JoinHandle<io::Result<()>>) {
        let any = "127.0.0.1:0".parse().unwrap();
        let admin = Admin::bind(any, Metrics::default(), health.clone()).await.unwrap();
        let (address, drain) = (admin.address(), Drain::new());
        (address, drain.clone(), tokio::spawn(admin.serve(drain)))
    }

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    #[tokio::test]
    async fn readiness_waits_for_every_component_and_ends_with_the_drain() {
        let health = Health::default();
        let (bus, store) = (health.component("bus"), health.component("store"));
        let (address, drain, task) = serving(&health).await;
        let measured = async |ready: i64| {
            let (_, metrics) = get(address, "/metrics").await;
            assert!(metrics.contains(&format!("\ntbmq_service_ready {ready}\n")), "{metrics}");
        };
        assert_eq!(get(address, "/livez").await, (200, "ok\n".to_owned()));
        bus.up();
        assert_eq!(get(address, "/readyz").await, (503, "store: starting\n".to_owned()));
        measured(0).await;
        store.up();
        assert_eq!(get(address, "/readyz").await, (200, "ok\n".to_owned()));
        measured(1).await;
        bus.down("no broker answers");
        let (status, text) = get(address, "/actuator/health").await;
        assert_eq!(status, 503);
        let body: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["status"], "DOWN");
        assert_eq!(body["components"]["bus"]["details"]["error"], "no broker answers");
        assert_eq!(body["components"]["store"]["status"], "UP");
        bus.up();
        drain.begin();
        assert_eq!(get(address, "/readyz").await, (503, "draining\n".to_owned()));
        measured(0).await;
        assert_eq!(get(address, "/livez").await.0, 200);
        task.abort();
    }

    #[tokio::test]
    async fn a_probe_tells_who_is_down_also_of_an_endpoint_on_all_interfaces() {
        let health = Health::default();
        let store = health.component("store");
        let (address, _drain, task) = serving(&health).await;
        let everywhere = SocketAddr::from(([0, 0, 0, 0], address.port()));
        let ask = move || tokio::task::spawn_blocking(move || probe(everywhere));
        assert_eq!(ask().await.unwrap().unwrap_err().to_string(), "store: starting\n");
        store.up();
        ask().await.unwrap().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(ask().await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn metrics_are_served_under_both_names() {
        let (address, _drain, task) = serving(&Health::default()).await;
        for path in ["/metrics", "/actuator/prometheus"] {
            let (status, text) = get(address, path).await;
            assert_eq!(status, 200);
            assert!(text.ends_with("# EOF\n"), "{text}");
        }
        assert_eq!(get(address, "/nothing").await.0, 404);
        task.abort();
    }

    #[test]
    fn planes_that_share_a_process_have_their_own_components() {
        let health = Health::default();
        health.scoped("executor").component("bus").up();
        health.scoped("data-plane").component("bus").down("away");
        assert_eq!(health.down(), [("data-plane.bus".to_owned(), "away".to_owned())]);
    }
}
