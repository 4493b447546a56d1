//! The MQTT broker: listeners, one task per session, routing to clients and integrations.
//!
//! ```text
//! listen ──► connection (one task: socket + session machine) ──► route ──► mailbox of each matched client
//!                 ▲                                                │   └─► queues ──► session store
//!                 └── mailbox ◄── worker (outcomes, deadlines) ◄── bus: one record per matched integration
//! ```
//!
//! A session that outlives its connection stays in its task, and what comes at QoS 1 and 2 for it waits in the session
//! store, whether the client is away or slow (`queues.rs`). Before a listener opens, the filters of all integrations are
//! known ([`start`]).

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tbmq_bus::{Bus, Record, Writer, WriterConfig};
use tbmq_proto::{ids::ServiceId, topic::Catalogue};
use tbmq_service::{
    admin::{Component, Health},
    identity::{Identity, Superseded},
    shell::Misconfigured,
    system::Meter,
    trace::Tracer,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

mod applied;
mod auth;
mod backlog;
mod commands;
mod config;
mod connection;
mod control_access;
mod feed;
mod group;
mod group_queue;
mod limit;
mod link;
mod listen;
mod mailbox;
mod metrics;
mod node_session;
mod peers;
mod plane;
mod positions;
mod queues;
mod record;
mod recorder;
mod restore;
mod retained;
mod route;
mod session_config;
pub mod session_records;
pub mod session_store;
mod subscriptions;
mod sys;
mod traced;
mod worker;

use auth::Auth;
pub use auth::AuthConfig;
pub use config::{
    ADMIN_PORT, Config, ControlConfig, ControlGrpcConfig, FlowControlConfig, KeepAliveConfig, MqttConfig,
    RetainMsgConfig, SETTINGS, SubscriptionConfig, TopicConfig,
};
use feed::{About, Feed};
pub use limit::config::{ClientRateLimitConfig, RateLimitConfig, RateLimitsConfig};
use listen::Listener;
pub use listen::config::{
    CertificateConfig, ClientAuth, CredentialsType, ListenerConfig, ListenersConfig, NettyConfig, TlsConfig,
    TlsProtocol, WebSocketConfig,
};
use plane::{Known, Plane, Sessions};
use positions::Changed;
use retained::Retained;
pub use session_config::{
    DeviceConfig, PersistedMessagesConfig, PersistentSessionConfig, SessionExpiryConfig,
};
use session_records::{Restored, SessionRecords};
pub use session_store::embedded::Durability;

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
    /// What makes the plane's spans.
    pub tracer: Tracer,
    /// A folder where sessions are kept, and what they survive there; absent, and without Redis, they end with the
    /// process.
    pub sessions: Option<(PathBuf, Durability)>,
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

/// What a data plane measures.
pub fn describe_metrics(registry: &mut tbmq_service::metrics::Registry) {
    metrics::Metrics::default().register(registry);
}

/// Starts the data plane. Waits until the filters of all integrations are known, which needs the bus, and opens the
/// listeners then.
///
/// # Errors
/// [`Misconfigured`] when the configuration can't be used; another when the bus refuses or an address can't be bound.
pub async fn start(config: Config, context: Context) -> anyhow::Result<Running> {
    // Whoever waits for it need not hold all that it holds.
    Box::pin(start_all(config, context)).await
}

async fn start_all(config: Config, context: Context) -> anyhow::Result<Running> {
    let service = service_id(&context.identity)?;
    config.check().map_err(Misconfigured::new)?;
    let keys = config.keys().map_err(|error| Misconfigured::new(error.to_string()))?;
    let metrics = metrics::Metrics::default();
    context.metrics.register(|registry| metrics.register(registry));
    let component = context.health.component("integration-subscriptions");

    let writer = context.bus.writer(messages(&config.mqtt, &context, &service)).await?;
    let applied_config = WriterConfig::new(context.catalogue.client_id("node-applied-producer", &service));
    let applied_writer = context.bus.writer(applied_config).await?;
    let auth_config = WriterConfig::new(context.catalogue.client_id("unauthorized-producer", &service));
    let auth_writer = context.bus.writer(auth_config).await?;
    let router = Arc::new(route::Router::new(writer.clone(), context.catalogue.clone()));
    let retained = Arc::new(Retained::new(
        writer.topic(&context.catalogue.retained().name),
        service.as_str(),
        config.mqtt.retain_msg.limits(),
        metrics.clone(),
    ));
    let auth = Auth::new(&config.auth, keys, service.as_str().into(), metrics.auth.clone())?;
    let sessions_component = context.health.component("sessions");
    let (sessions, recorded) =
        open_sessions(&config, &context, &service, &sessions_component, &metrics).await?;
    let plane = Plane::new(
        &config,
        service.as_str().into(),
        writer,
        Known { router: router.clone(), retained: retained.clone(), auth: auth.clone() },
        sessions,
        metrics.clone(),
        context.tracer.clone(),
    );
    look_when_read(&context.metrics, &plane);
    // Bad endpoints are told before anything is served.
    let control_planes = &config.control.grpc;
    node_session::NodeSession::new(plane.clone(), context.identity.clone(), Vec::new(), control_planes)
        .map_err(|error| Misconfigured::new(format!("{error:#}")))?;

    let changed = Changed::new(());
    let subscriptions =
        subscriptions::Subscriptions::open(&context, &service, &plane, &changed, &component).await?;
    let retained_component = context.health.component("retained-messages");
    let feed = open_retained(&context, &service, retained, &changed, &retained_component).await?;
    let auth_component = context.health.component("auth");
    let auth_feed = auth.open(&context, &service, &changed, &auth_component).await?;

    if plane.recorder.is_some() {
        restore::restore(&plane, recorded, &sessions_component).await;
    }
    sessions_component.up();

    let stop_workers = CancellationToken::new();
    let workers = work(&plane, &stop_workers);

    let mut figures = sys::Figures::new(plane.clone());
    let sys_interval = config.mqtt.sys_interval;
    if !sys_interval.is_zero() {
        figures.publish();
    }

    let (addresses, bound) = bind(&config, &plane).await?;
    tell_who_may_come(&auth, config.auth.mqtt_anonymous_enabled, &addresses);
    let mut accepting = JoinSet::new();
    for listener in bound {
        accepting.spawn(listener.run(plane.clone()));
    }
    let urls: Vec<String> =
        addresses.iter().map(|(scheme, address)| format!("{scheme}://{address}")).collect();

    let stop_applied = CancellationToken::new();
    let applied = applied::Applied {
        topic: applied_writer.topic(&context.catalogue.node_applied().name),
        writer: applied_writer,
        identity: context.identity.clone(),
        addresses: urls.clone(),
        positions: vec![subscriptions.positions(), auth_feed.positions()],
        changed: changed.subscribe(),
        meter: Meter::new(),
        plane: plane.clone(),
    };
    let applied = tokio::spawn(applied.run(stop_applied.clone()));

    let mut tasks = JoinSet::new();
    let listeners = context.health.component("mqtt-listeners");
    listeners.up();
    tasks.spawn(retire_when_told(plane.clone(), listeners, config.mqtt.drain_spread));
    let sweep_period = config.mqtt.retain_msg.expiry_processing_period();
    for (positions, component, degraded) in [
        (subscriptions.positions(), component, metrics.degraded),
        (auth_feed.positions(), auth_component, metrics.auth.degraded),
        (feed.positions(), retained_component, metrics.retained_degraded),
    ] {
        let confirmed = positions::confirm(context.bus.admin(), positions, component, degraded);
        tasks.spawn(async move {
            confirmed.await;
            anyhow::anyhow!("positions are not confirmed any more")
        });
    }
    follow_auth(&mut tasks, &plane, auth_feed, auth_writer, context.clone());
    follow_retained(&mut tasks, &plane, feed, sweep_period);
    tasks.spawn(async move { subscriptions.run().await.into() });
    if !sys_interval.is_zero() {
        tasks.spawn(async move {
            figures.run(sys_interval).await;
            anyhow::anyhow!("figures are not published any more")
        });
    }
    let session =
        node_session::NodeSession::new(plane.clone(), context.identity.clone(), urls, control_planes)?;
    tasks.spawn(async move { session.run().await.into() });
    Ok(Running { plane, addresses, tasks, accepting, workers, stop_workers, applied, stop_applied })
}

fn service_id(identity: &Identity) -> Result<ServiceId, Misconfigured> {
    identity.service_id.parse().map_err(|error| Misconfigured::new(format!("TB_SERVICE_ID: {error}")))
}

/// Has what is not kept looked up each time that metrics are read.
fn look_when_read(registry: &tbmq_service::metrics::Metrics, plane: &Arc<Plane>) {
    let plane = Arc::downgrade(plane);
    registry.before_reading(move || {
        if let Some(plane) = plane.upgrade() {
            plane.metrics.look(&plane);
        }
    });
}

/// Binds the listeners; returns their schemes and addresses as well.
async fn bind(
    config: &Config,
    plane: &Plane,
) -> anyhow::Result<(Vec<(&'static str, SocketAddr)>, Vec<Listener>)> {
    let (mut addresses, mut bound) = (Vec::new(), Vec::new());
    for (path, listener) in config.listener.enabled() {
        let listener = Listener::bind(&path, listener, &config.listener, &plane.limits).await?;
        addresses.push((listener.scheme(), listener.address()?));
        bound.push(listener);
    }
    Ok((addresses, bound))
}

/// The writer of messages.
fn messages(config: &MqttConfig, context: &Context, service: &ServiceId) -> WriterConfig {
    let mut messages = WriterConfig::new(context.catalogue.client_id("ie-msg-producer", service));
    messages.linger = LINGER;
    messages.deadline = config.produce_deadline;
    messages.topic_budget_bytes = config.topic_in_flight_bytes_max.get();
    messages.budget_bytes = config.node_in_flight_bytes_max.get();
    messages
}

/// Reads all retained messages.
async fn open_retained(
    context: &Context,
    service: &ServiceId,
    retained: Arc<Retained>,
    changed: &Changed,
    component: &Component,
) -> anyhow::Result<Feed> {
    let about = About {
        what: "retained messages",
        consumer: "retained-msg-consumer",
        topics: vec![context.catalogue.retained()],
    };
    let apply = Box::new(move |partition: &_, records: &[Record]| {
        for record in records {
            retained.apply(partition, record);
        }
    });
    Feed::open(context, service, about, apply, changed, component).await
}

/// Sends all clients away when that is wanted; does not return: the process stays up until it is stopped.
async fn retire_when_told(plane: Arc<Plane>, listeners: Component, spread: Duration) -> anyhow::Error {
    plane.retiring.begun().await;
    listeners.down("draining: no client is taken, and those that are here are sent away");
    commands::retire(&plane, spread).await;
    std::future::pending().await
}

/// Starts what connections give their work to.
fn work(plane: &Arc<Plane>, stop: &CancellationToken) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    for worker in &plane.workers {
        let (worker, plane, stop) = (worker.clone(), plane.clone(), stop.clone());
        workers.spawn(async move { worker.run(plane.clock, &plane.metrics, &plane.retained, stop).await });
    }
    workers.spawn({
        let (plane, stop) = (plane.clone(), stop.clone());
        async move { plane.queues.run(stop).await }
    });
    if plane.recorder.is_some() {
        let (plane, stop) = (plane.clone(), stop.clone());
        workers.spawn(async move {
            if let Some(recorder) = &plane.recorder {
                recorder.run(stop).await;
            }
        });
    }
    workers
}

/// Opens where sessions are kept, and reads what is recorded of them, where they outlive the process.
async fn open_sessions(
    config: &Config,
    context: &Context,
    service: &ServiceId,
    component: &Component,
    metrics: &metrics::Metrics,
) -> anyhow::Result<(Sessions, Vec<Restored>)> {
    let limits = config.mqtt.persistent_session.device.persisted_messages.limits();
    let (redis, folder) = (config.redis.clone(), context.sessions.clone());
    let is_lasting = redis.is_used() || folder.is_some();
    let store = if redis.is_used() {
        session_store::config::open(&redis, limits, None)
            .map_err(|error| Misconfigured::new(format!("redis: {error}")))?
    } else {
        // To recover a folder blocks.
        tokio::task::spawn_blocking(move || session_store::config::open(&redis, limits, folder)).await??
    };
    if !is_lasting {
        tracing::warn!("sessions are kept in memory and end with the process: set REDIS_HOST to keep them");
        return Ok((Sessions { store, records: None }, Vec::new()));
    }
    let bad_records = &metrics.session_bad_records;
    let (records, recorded) = SessionRecords::open(context, service, component, bad_records).await?;
    Ok((Sessions { store, records: Some(records) }, recorded))
}

/// Says who may connect while nobody is asked for anything.
fn tell_who_may_come(auth: &Auth, is_public: bool, addresses: &[(&str, SocketAddr)]) {
    if !auth.is_open() {
        return;
    }
    let reachable = addresses.iter().filter(|(_, address)| !listen::is_loopback(*address));
    let listeners: Vec<String> = reachable.map(|(scheme, address)| format!("{scheme}://{address}")).collect();
    // Those that others reach, if any.
    let listeners = (!listeners.is_empty()).then(|| listeners.join(" "));
    if is_public && listeners.is_some() {
        tracing::warn!(
            listeners,
            "no authentication provider is enabled, and SECURITY_MQTT_ANONYMOUS_ENABLED is true: everybody may \
             connect, and do everything"
        );
    } else {
        tracing::info!(
            listeners,
            "no authentication provider is enabled: clients without credentials are accepted from this machine \
             alone; for others enable a provider, or set SECURITY_MQTT_ANONYMOUS_ENABLED=true"
        );
    }
}

/// Keeps up to date who may connect, and tells who might not.
fn follow_auth(
    tasks: &mut JoinSet<anyhow::Error>,
    plane: &Arc<Plane>,
    feed: Feed,
    writer: Arc<dyn Writer>,
    context: Context,
) {
    tasks.spawn(async move {
        feed.run().await;
        anyhow::anyhow!("it is not read any more who may connect")
    });
    tasks.spawn({
        let auth = plane.auth.clone();
        async move {
            auth.follow_credentials().await;
            anyhow::anyhow!("changes of credentials are not followed any more")
        }
    });
    tasks.spawn({
        let (auth, plane) = (plane.auth.clone(), plane.clone());
        async move {
            auth.follow_blocks(plane).await;
            anyhow::anyhow!("blocks are not followed any more")
        }
    });
    tasks.spawn({
        let auth = plane.auth.clone();
        async move {
            auth.follow_keys().await;
            anyhow::anyhow!("keys of JWTs are not followed any more")
        }
    });
    tasks.spawn({
        let auth = plane.auth.clone();
        async move {
            auth.ask_services().await;
            anyhow::anyhow!("services are not asked about clients any more")
        }
    });
    let auth = plane.auth.clone();
    tasks.spawn(async move {
        auth.tell_of_refusals(&context, &*writer).await;
        anyhow::anyhow!("it is not told any more who was refused")
    });
}

/// Keeps retained messages up to date.
fn follow_retained(
    tasks: &mut JoinSet<anyhow::Error>,
    plane: &Arc<Plane>,
    feed: Feed,
    sweep_period: Duration,
) {
    tasks.spawn(async move {
        feed.run().await;
        anyhow::anyhow!("retained messages are not read any more")
    });
    let plane = plane.clone();
    tasks.spawn(async move {
        loop {
            tokio::time::sleep(sweep_period).await;
            plane.retained.sweep(&*plane.writer, plane.clock.now().epoch_ms).await;
        }
    });
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
    /// the wills that are due, and tells the other nodes that this one leaves. Bounded by `mqtt.drain-timeout` and a few
    /// seconds.
    pub async fn drain(mut self) {
        self.plane.drain.begin();
        while self.accepting.join_next().await.is_some() {}
        self.plane.end_all().await;
        let begun = Instant::now();
        while (self.plane.in_flight() > 0 || self.plane.is_keeping())
            && begun.elapsed() < LAST_RECORDS_PATIENCE
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let lost = self.plane.in_flight();
        if lost > 0 {
            tracing::warn!(records = lost, "stopping while the bus has not confirmed everything");
        }
        self.stop_workers.cancel();
        while self.workers.join_next().await.is_some() {}
        self.tasks.shutdown().await;
        self.plane.queues.store().close().await;
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
