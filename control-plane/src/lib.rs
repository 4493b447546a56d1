//! The control plane: owns integrations.
//!
//! | module | what |
//! |---|---|
//! | `access` | who may call, TLS, the audit log |
//! | `api` | gRPC services: requests in, resources and status codes out |
//! | `auth` | who may connect: credentials, providers, blocked and unauthorized clients |
//! | [`store`] | the only place that speaks SQL |
//! | `validate` | requests to executors and their replies |
//! | `relayer`, `reconcile`, `watchdog`, `jobs` | what is in the store is written to the bus, by one control plane at a time |
//! | `driver` | readers of events, replies, kinds, owners and nodes |
//! | `changes` | wakes the watches of this replica, whoever has written |
//! | `projected` | wakes the calls of this replica that wait for the relayer, whoever that is |
//! | `nodes` | who lives, and what each node has applied |
//! | `claims` | which executor has claimed which downlink partition |
//! | `commands`, `peers` | requests to data planes whose sessions are here, and to control planes that hold the others |
//! | `secret` | secrets in configuration documents |
//! | `secret`, [`vault`] | masks that are written back; secrets are sealed before they leave the process |
//! | [`config`] | settings |
//! | [`fault`] | places where tests have a control plane die |
//!
//! A change is validated by an executor, committed with a dirty mark, and from there on carried by the relayer:
//! message topic, subscription record, downlink record. Nothing but SQL and the bus is shared between control planes.
#![warn(missing_docs)]

mod access;
mod api;
mod auth;
mod changes;
mod claims;
mod commands;
pub mod config;
mod driver;
pub mod fault;
mod jobs;
mod lag;
mod metrics;
mod nodes;
mod peers;
mod plane;
mod projected;
mod reconcile;
mod relayer;
mod secret;
pub mod store;
#[cfg(test)]
mod testing;
mod validate;
pub mod vault;
mod watchdog;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tbmq_bus::{Bus, WriterConfig};
use tbmq_proto::{ids::ServiceId, topic::Catalogue};
use tbmq_service::{
    admin::{Component, Health},
    identity::Identity,
    trace::Tracer,
};
use tokio::{sync::watch, task::JoinSet};

pub use crate::config::{ADMIN_PORT, Config, SETTINGS};
use crate::{access::Access, fault::Faults, plane::Plane, relayer::only_partition, vault::Vault};

/// How long a bus that answers "not yet" is tried again at the start, counted from it.
const BUS_PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two of these tries.
const BUS_PAUSE: Duration = Duration::from_millis(500);

/// What a control plane runs on.
#[derive(Clone, Debug)]
pub struct Context {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Names of topics.
    pub catalogue: Catalogue,
    /// Replicas of the topics that are created.
    pub replication_factor: u16,
    /// Whether topics may be deleted.
    pub topic_deletion: bool,
    /// Who we are.
    pub identity: Identity,
    /// The process's metrics.
    pub metrics: tbmq_service::metrics::Metrics,
    /// The process's health.
    pub health: Health,
    /// What makes the control plane's spans.
    pub tracer: Tracer,
}

/// A running control plane.
#[derive(Debug)]
pub struct Running {
    plane: Arc<Plane>,
    address: SocketAddr,
    server: api::Server,
    tasks: JoinSet<anyhow::Result<()>>,
    component: Component,
}

/// What a control plane measures.
pub fn describe_metrics(registry: &mut tbmq_service::metrics::Registry) {
    metrics::Metrics::register(registry);
}

/// Starts a control plane: migrates the store, creates the common topics, reads what nodes and executors have
/// announced, then serves. Waits for the store, and up to 60 s for the bus.
///
/// # Errors
/// When the configuration can't be used, the store or the bus can't be reached, or the port is taken.
pub async fn start(config: Config, context: Context) -> anyhow::Result<Running> {
    start_with(config, context, Faults::default()).await
}

/// As [`start`], for tests that have it die between two steps.
///
/// # Errors
/// As [`start`].
pub async fn start_with(config: Config, context: Context, faults: Faults) -> anyhow::Result<Running> {
    // Callers need not carry the settings in their own futures twice.
    Box::pin(launch(config, context, faults)).await
}

async fn launch(config: Config, context: Context, faults: Faults) -> anyhow::Result<Running> {
    let service_id: ServiceId = context.identity.service_id.parse()?;
    let options = config.store_options()?;
    config.check_access()?;
    let component = context.health.component("control-plane");
    component.down("starting");
    let keys = config.keys()?;
    if keys.is_empty() {
        tracing::warn!(
            "no key is configured (TBMQ_SECRETS_KEYS): secrets of integrations and providers are stored and sent in plain text"
        );
    } else {
        tracing::info!(
            ?keys,
            "secrets of integrations and providers are sealed with the first of these keys"
        );
    }
    let vault = Arc::new(Vault::new(keys));
    let store = store::Store::open_with(&options, vault.clone()).await.context("can't open the store")?;
    let store = store.with_faults(faults.clone());
    for kind in store.kinds().await? {
        vault.learn(&kind);
    }
    let registry = context.metrics.clone();
    let metrics = registry.register(metrics::Metrics::register);
    let access = Access::open(&config.control, &context.identity.service_id, &store, &metrics).await?;
    let plane = Arc::new(Plane::new(config, context, service_id, store, Arc::new(access), metrics, faults));

    look_when_read(&registry, &plane);
    let started = Instant::now();
    let replies_from = loop {
        match prepare(&plane).await {
            Ok(position) => break position,
            // A bus that is coming up answers one question and not yet the next.
            Err(error) if is_passing(&error) && started.elapsed() < BUS_PATIENCE => {
                tracing::warn!(error = format!("{error:#}"), "the bus is not ready; trying again");
                component.down(format!("{error:#}"));
                tokio::time::sleep(BUS_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    };

    let mut tasks = JoinSet::new();
    let (nodes_known, mut nodes_caught_up) = watch::channel(false);
    let (kinds_known, mut kinds_caught_up) = watch::channel(false);
    let (owners_known, mut owners_caught_up) = watch::channel(false);
    tasks.spawn(driver::follow_nodes(plane.clone(), nodes_known));
    tasks.spawn(driver::follow_kinds(plane.clone(), kinds_known));
    tasks.spawn(driver::follow_owners(plane.clone(), owners_known));
    tasks.spawn(driver::follow_replies(plane.clone(), replies_from));
    tasks.spawn(driver::follow_uplink(plane.clone()));
    tasks.spawn({
        let plane = plane.clone();
        async move {
            relayer::run(plane).await;
            Ok(())
        }
    });
    tasks.spawn({
        let plane = plane.clone();
        async move {
            changes::follow(plane).await;
            Ok(())
        }
    });
    tasks.spawn({
        let plane = plane.clone();
        async move {
            plane.access.run(&plane.drain).await;
            Ok(())
        }
    });
    tasks.spawn({
        let plane = plane.clone();
        async move {
            projected::follow(plane).await;
            Ok(())
        }
    });
    tasks.spawn(driver::follow_unauthorized(plane.clone()));
    let client = plane.catalogue.client_id("ie-downlink-producer", &plane.service_id);
    let mut writer = WriterConfig::new(client);
    writer.linger = Duration::from_millis(1);
    // Before the second request goes out: a bus that is away is told apart from a silent executor.
    writer.deadline = Duration::from_secs(4);
    let writer = plane.bus.writer(writer).await?;
    tasks.spawn({
        let plane = plane.clone();
        async move {
            plane.validator.run(writer, &plane.faults).await;
            Ok(())
        }
    });
    // Without them nodes look silent, secrets can't be masked, and former owners pass for owners. They are read within this time or later.
    let caught_up = async {
        nodes_caught_up.wait_for(|known| *known).await.ok();
        kinds_caught_up.wait_for(|known| *known).await.ok();
        owners_caught_up.wait_for(|known| *known).await.ok();
    };
    if tokio::time::timeout(Duration::from_secs(10), caught_up).await.is_err() {
        tracing::warn!("nodes, kinds and owners were not read within 10 s; serving without them");
    }

    let server = api::Server::start(plane.clone()).await?;
    let address = server.address();
    tasks.spawn({
        let plane = plane.clone();
        async move {
            tokio::join!(api::drift::follow(plane.clone()), api::lagging::follow(plane));
            Ok(())
        }
    });
    tasks.spawn(driver::announce(plane.clone(), plane.advertised().to_owned()));
    component.up();
    Ok(Running { plane, address, server, tasks, component })
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

/// Creates the topics that every control plane needs; returns where the replies to this one will begin.
async fn prepare(plane: &Plane) -> anyhow::Result<u64> {
    let catalogue = &plane.catalogue;
    let notifications = catalogue.uplink_notifications(&plane.service_id);
    let replies = only_partition(&notifications.name);
    let common = [
        catalogue.uplink(),
        notifications,
        catalogue.integration_subscriptions(),
        catalogue.node_applied(),
        catalogue.kinds(),
        catalogue.owners(),
    ];
    for topic in &common {
        plane.ensure(topic).await.with_context(|| format!("can't create topic {}", topic.name))?;
    }
    plane.ensure_auth().await.context("can't create the topics of who may connect")?;
    for kind in plane.all_kinds() {
        plane.ensure_downlink(&kind).await.with_context(|| format!("can't create the downlink of {kind}"))?;
    }
    let bounds = plane.admin.bounds(&[replies]).await.context("can't find the end of the replies")?;
    Ok(bounds.first().map_or(0, |bounds| bounds.end))
}

/// Whether trying again may help.
fn is_passing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(tbmq_bus::Error::Unavailable(_)))
}

impl Running {
    /// What it listens on.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        vec![("grpc", self.address)]
    }

    /// What a data plane in this process shows to this control plane; good as long as this process lives, and not to be
    /// shown to anybody.
    pub fn node_token(&self) -> String {
        self.plane.access.local_token().to_owned()
    }

    /// Whether it is to be called by TLS.
    pub fn serves_tls(&self) -> bool {
        self.plane.config.control.grpc.tls.pem_cert.is_some()
    }

    /// Completes only if the control plane dies. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.server.failed() => error,
            task = self.tasks.join_next() => match task {
                Some(Ok(Ok(()))) | None => anyhow::anyhow!("a task of the control plane has ended"),
                Some(Ok(Err(error))) => error,
                Some(Err(error)) => anyhow::anyhow!("a task of the control plane has died: {error}"),
            },
        }
    }

    /// Stops gracefully: no new calls, calls in work are finished, the lease is given back. Bounded by the setting
    /// `control.drain-timeout`.
    pub async fn drain(mut self) {
        self.component.down("draining");
        let patience = self.plane.config.control.drain_timeout;
        self.server.drain(patience).await;
        self.plane.drain.begin();
        // Those that listen for the drain end by themselves; the readers have nothing to finish.
        let ended = async {
            let listening = 5;
            for _ in 0..listening {
                self.tasks.join_next().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), ended).await.is_err() {
            tracing::warn!("tasks of the control plane did not end in time and are stopped");
        }
        self.tasks.shutdown().await;
        self.plane.store.clone().close().await;
    }
}
