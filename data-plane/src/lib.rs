//! The stateless MQTT broker: listeners, one task per connection, routing to clients and integrations.
//!
//! ```text
//! listen ──► connection (one task: socket + session machine) ──► route ──► mailbox of each matched client
//!                 ▲                                                │
//!                 └── mailbox ◄── worker (outcomes, deadlines) ◄── bus: one record per matched integration
//! ```
//!
//! Nothing is kept on disk and no session outlives its connection. Before a listener opens, the filters of all
//! integrations are known ([`start`]).

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tbmq_bus::{Bus, WriterConfig};
use tbmq_proto::{ids::ServiceId, topic::Catalogue};
use tbmq_service::{
    admin::Health,
    drain::Drain,
    identity::{Identity, Superseded},
    shell::Misconfigured,
    system::Meter,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

mod applied;
mod commands;
mod config;
mod connection;
mod control_access;
mod listen;
mod mailbox;
mod metrics;
mod node_session;
mod peers;
mod plane;
mod record;
mod route;
mod subscriptions;
mod worker;

pub use config::{
    Config, ControlConfig, ControlGrpcConfig, FlowControlConfig, KeepAliveConfig, ListenerConfig, MqttConfig,
    NettyConfig, SETTINGS, SubscriptionConfig, TcpConfig, TopicConfig,
};
use plane::Plane;

/// Linger on message topics (architecture §4.13).
const LINGER: Duration = Duration::from_millis(1);

/// How long a drain waits for the last records (wills) after all connections are closed.
const LAST_RECORDS_PATIENCE: Duration = Duration::from_secs(5);

/// What the process gives to the plane.
#[derive(Clone, Debug)]
pub struct Context {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Names of topics and clients.
    pub catalogue: Catalogue,
    /// Replicas of topics that the plane creates.
    pub replication_factor: u16,
    /// Who the plane is.
    pub identity: Identity,
    /// The process's metrics.
    pub metrics: tbmq_service::metrics::Metrics,
    /// The process's health; the plane adds its components.
    pub health: Health,
}

/// A started data plane.
#[derive(Debug)]
pub struct Running {
    plane: Arc<Plane>,
    addresses: Vec<(&'static str, SocketAddr)>,
    /// Tasks that end only by failing.
    tasks: JoinSet<anyhow::Error>,
    accepting: JoinSet<()>,
    workers: JoinSet<()>,
    stop_workers: CancellationToken,
    applied: JoinHandle<()>,
    stop_applied: CancellationToken,
}

/// Starts the data plane. Waits until the filters of all integrations are known, which needs the bus, and opens the
/// listeners then.
///
/// # Errors
/// [`Misconfigured`] when the configuration can't be used; another when the bus refuses or an address can't be bound.
pub async fn start(config: Config, context: Context) -> anyhow::Result<Running> {
    let service: ServiceId = context
        .identity
        .service_id
        .parse()
        .map_err(|error| Misconfigured::new(format!("TB_SERVICE_ID: {error}")))?;
    config.check().map_err(Misconfigured::new)?;
    let metrics = metrics::Metrics::default();
    context.metrics.register(|registry| metrics.register(registry));
    let component = context.health.component("integration-subscriptions");

    let mut writer_config = WriterConfig::new(context.catalogue.client_id("ie-msg-producer", &service));
    writer_config.linger = LINGER;
    writer_config.deadline = config.mqtt.produce_deadline;
    writer_config.topic_budget_bytes = config.mqtt.topic_in_flight_bytes_max.get();
    writer_config.budget_bytes = config.mqtt.node_in_flight_bytes_max.get();
    let writer = context.bus.writer(writer_config).await?;
    let applied_config = WriterConfig::new(context.catalogue.client_id("node-applied-producer", &service));
    let applied_writer = context.bus.writer(applied_config).await?;
    let router = Arc::new(route::Router::new(writer.clone(), context.catalogue.clone()));
    let drain = Drain::new();
    let plane = Plane::new(
        &config,
        service.as_str().to_owned(),
        writer,
        router.clone(),
        metrics.clone(),
        drain.clone(),
    );
    // Bad endpoints are told before anything is served.
    let control_planes = &config.control.grpc;
    node_session::NodeSession::new(plane.clone(), context.identity.clone(), Vec::new(), control_planes)
        .map_err(|error| Misconfigured::new(format!("{error:#}")))?;

    let subscriptions =
        subscriptions::Subscriptions::open(&context, &service, router, metrics.clone(), &component).await?;

    let mut workers = JoinSet::new();
    let stop_workers = CancellationToken::new();
    for worker in &plane.workers {
        let (worker, plane, stop) = (worker.clone(), plane.clone(), stop_workers.clone());
        workers.spawn(async move { worker.run(plane.clock, &plane.metrics, stop).await });
    }

    let mut addresses = Vec::new();
    let mut accepting = JoinSet::new();
    if config.listener.tcp.enabled {
        let tcp = listen::tcp::Tcp::bind(&config.listener.tcp).await?;
        addresses.push(("mqtt", tcp.address()?));
        accepting.spawn(tcp.run(plane.clone()));
    }
    let urls: Vec<String> =
        addresses.iter().map(|(scheme, address)| format!("{scheme}://{address}")).collect();

    let stop_applied = CancellationToken::new();
    let applied = applied::Applied {
        topic: applied_writer.topic(&context.catalogue.node_applied().name),
        writer: applied_writer,
        identity: context.identity.clone(),
        addresses: urls.clone(),
        subscriptions: subscriptions.topic().to_owned(),
        positions: subscriptions.positions(),
        meter: Meter::new(),
    };
    let applied = tokio::spawn(applied.run(stop_applied.clone()));

    let mut tasks = JoinSet::new();
    let listeners = context.health.component("mqtt-listeners");
    listeners.up();
    tasks.spawn({
        let plane = plane.clone();
        async move {
            plane.retiring.begun().await;
            listeners.down("draining: no client is taken, and those that are here are sent away");
            commands::retire(&plane, config.mqtt.drain_spread).await;
            // The process stays up until it is stopped.
            std::future::pending().await
        }
    });
    let confirmation = subscriptions.confirmation();
    tasks.spawn(async move {
        subscriptions::confirm(confirmation, component, metrics.degraded).await;
        anyhow::anyhow!("positions are not confirmed any more")
    });
    tasks.spawn(async move { subscriptions.run().await.into() });
    let session =
        node_session::NodeSession::new(plane.clone(), context.identity.clone(), urls, control_planes)?;
    tasks.spawn(async move { session.run().await.into() });
    Ok(Running { plane, addresses, tasks, accepting, workers, stop_workers, applied, stop_applied })
}

impl Running {
    /// What it listens on.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        self.addresses.clone()
    }

    /// Completes only when the plane dies, or a newer incarnation took over. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => {
                let error = ended.unwrap_or_else(Into::into);
                if error.is::<Superseded>() {
                    tracing::error!(%error, "superseded");
                    // Not a word more: what we say stands where our successor speaks.
                    self.applied.abort();
                }
                error
            }
            Some(ended) = self.accepting.join_next() => anyhow::anyhow!("a listener ended: {ended:?}"),
            Some(ended) = self.workers.join_next() => anyhow::anyhow!("a worker ended: {ended:?}"),
        }
    }

    /// Stops accepting, lets publishes that are under way be acknowledged, tells 5.0 clients goodbye (0x8B), publishes
    /// wills, and tells the other nodes that this one leaves. Bounded by `mqtt.drain-timeout` and a few seconds.
    pub async fn drain(mut self) {
        self.plane.drain.begin();
        while self.accepting.join_next().await.is_some() {}
        self.plane.end_all().await;
        let begun = Instant::now();
        while self.plane.in_flight() > 0 && begun.elapsed() < LAST_RECORDS_PATIENCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let lost = self.plane.in_flight();
        if lost > 0 {
            tracing::warn!(records = lost, "stopping while the bus has not confirmed everything");
        }
        self.stop_workers.cancel();
        while self.workers.join_next().await.is_some() {}
        self.tasks.shutdown().await;
        self.stop_applied.cancel();
        if let Err(error) = self.applied.await
            && !error.is_cancelled()
        {
            tracing::error!(%error, "the task of applied positions failed");
        }
    }
}

impl tbmq_service::shell::Running for Running {
    fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        Self::addresses(self)
    }

    async fn failed(&mut self) -> anyhow::Error {
        Self::failed(self).await
    }

    async fn drain(self) {
        Self::drain(self).await;
    }
}
