//! Runs integrations: restores them from the downlink topics, consumes their messages and delivers them.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | settings, under TBMQ's names |
//! | `driver` | one kind: membership, claims, restoration, shards |
//! | `runner` | one shard: lifecycle, sink, message partitions |
//! | `lease`, `owners` | until when what is ours may be acted upon; who has claimed what |
//! | `incarnation` | whether a newer process with our service id is at work |
//! | `lookup` | message topics and what is committed for them, for many shards in one call |
//! | `messages` | the one reader of all message topics, and their commits |
//! | `commands` | validation requests and connection checks |
//! | `traced` | spans of messages and attempts |
//! | `redact` | keeps secrets out of what sinks say |
//! | `uplink`, `announce`, `system_info` | events; what lives, what was applied, which kinds are served; the machine's load |
//! | [`sink`], [`sinks`] | the contract of a kind of integration, and the kinds |
//!
//! An executor keeps nothing: what it needs is on the bus. What runs is decided by the pure machines of
//! `tbmq-integration`; the tasks here only carry it out.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use parking_lot::Mutex;
use tbmq_bus::{Bus, ReaderConfig, Writer, WriterConfig, spec_of};
use tbmq_integration::stats::ErrorLimiter;
use tbmq_proto::{
    ids::{Kind, ServiceId},
    topic::Catalogue,
};
use tbmq_service::{
    admin::Health,
    drain::Drain,
    identity::{Identity, Superseded},
    trace::Tracer,
};
use tokio::{sync::Semaphore, task::JoinSet};

pub use crate::config::{ADMIN_PORT, Config, SETTINGS};
use crate::{
    commands::Commands,
    driver::Group,
    executor::{Applied, Served, Shared},
    lookup::Lookup,
    messages::Messages,
    metrics::Metrics,
    runner::Clock,
    sink::SinkKind,
    uplink::Uplink,
};

mod announce;
mod commands;
pub mod config;
#[cfg(test)]
mod conformance;
mod driver;
mod executor;
mod incarnation;
mod lease;
mod lookup;
mod messages;
mod metrics;
mod owners;
mod redact;
mod runner;
pub mod sink;
pub mod sinks;
mod system_info;
mod traced;
mod uplink;

/// Integrations that the limit on error events remembers as told.
const TOLD_MAX: usize = 100_000;

/// How long the last events and the last heartbeat may take when the process stops.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);

/// What an executor runs on.
#[derive(Clone, Debug)]
pub struct Context {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Names of topics.
    pub catalogue: Catalogue,
    /// Replicas of the topics that are created.
    pub replication_factor: u16,
    /// Who we are.
    pub identity: Identity,
    /// The process's metrics.
    pub metrics: tbmq_service::metrics::Metrics,
    /// The process's health.
    pub health: Health,
    /// What makes the executor's spans.
    pub tracer: Tracer,
}

/// A running executor. Dropping it ends it at once, as a crash would.
pub struct Running {
    shared: Arc<Shared>,
    writer: Arc<dyn Writer>,
    drain: Drain,
    groups: JoinSet<Result<(), Superseded>>,
    services: JoinSet<()>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("service_id", &self.shared.service_id).finish_non_exhaustive()
    }
}

/// What an executor measures.
pub fn describe_metrics(registry: &mut tbmq_service::metrics::Registry) {
    Metrics::register(registry);
}

/// How messages are read, so many records at once at the most.
fn reading_messages(client_id: String, group: Option<String>, batch_records: usize) -> ReaderConfig {
    ReaderConfig {
        batch_records,
        // librdkafka needs thrice as much memory for it. A partition whose sink is slower than its messages come has it
        // full.
        partition_budget_bytes: 384 << 10,
        // What is fetched ahead lasts for longer, so that a busy integration beside an idle one never waits.
        wait_ms: 10,
        ..ReaderConfig::new(client_id, group)
    }
}

/// Starts an executor with all kinds of [`sinks`]. Does not wait for the bus to be reachable.
///
/// # Errors
/// When the configuration can't be used, or a client of the bus can't be made.
pub async fn start(config: Config, context: Context) -> anyhow::Result<Running> {
    let kinds = sinks::kinds(&config.sinks());
    start_with(config, context, kinds).await
}

/// Starts an executor with these kinds: [`start`] for those who bring their own.
///
/// # Errors
/// As [`start`].
pub async fn start_with(
    config: Config,
    context: Context,
    kinds: Vec<Arc<dyn SinkKind>>,
) -> anyhow::Result<Running> {
    config.check_values()?;
    let keys = config.keys()?;
    let Context { bus, catalogue, replication_factor, identity, metrics, health, tracer } = context;
    let service_id: ServiceId = identity.service_id.parse()?;
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    let served = config.served(&names)?;
    let kinds: Vec<_> = kinds.into_iter().filter(|kind| served.contains(&kind.name())).collect();
    let kinds = kinds
        .into_iter()
        .map(|kind| Ok((kind.name().parse::<Kind>()?, Served::new(kind))))
        .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let registry = metrics;
    let metrics = registry.register(Metrics::register);
    metrics.serve(&served);

    let client = |what: &str| catalogue.client_id(what, &service_id);
    let writer =
        bus.writer(WriterConfig::new(client("ie-uplink-producer"))).await.context("can't open a writer")?;
    let group = Some(catalogue.messages_group());
    let messages = &config.queue.integration_msg;
    let reader = reading_messages(client("ie-msg-consumer"), group.clone(), messages.pack_messages.get());
    let reader = bus.reader(reader).await.context("can't open the reader of messages")?;
    let committer = ReaderConfig::new(client("ie-msg-committer"), group);
    let committer = bus.reader(committer).await.context("can't open the committer")?;
    let kinds_reader = ReaderConfig::new(client("ie-kinds-consumer"), None);
    let kinds_reader = bus.reader(kinds_reader).await.context("can't open the reader of kinds")?;
    let owners_reader = ReaderConfig::new(client("ie-owner-consumer"), None);
    let owners_reader = bus.reader(owners_reader).await.context("can't open the reader of owners")?;

    let nodes_reader = ReaderConfig::new(client("node-applied-consumer"), None);
    let nodes_reader = bus.reader(nodes_reader).await.context("can't open the reader of nodes")?;

    let mut services = JoinSet::new();
    let (messages, dispatching, committing) =
        Messages::new(reader, committer, messages.commit_interval, metrics.clone());
    services.spawn(dispatching);
    services.spawn(committing);
    let uplink =
        Uplink::new(config.queue.integration_uplink.buffer_events.get(), identity.clone(), metrics.clone());
    let admin = bus.admin();
    services.spawn(uplink.clone().run(
        writer.clone(),
        admin.clone(),
        spec_of(&catalogue.uplink(), replication_factor),
    ));
    let quiet = Duration::from_secs(config.event.error.rate_limits.ttl_minutes.saturating_mul(60));
    let limiter = config.rates()?.map(|rates| Mutex::new(ErrorLimiter::new(&rates, quiet, TOLD_MAX)));
    let (lookup, looking) = Lookup::new(admin.clone(), catalogue.messages_group());
    services.spawn(looking);
    let owners = owners::Owners::new(kinds.keys().cloned());
    let connects = Semaphore::new(config.integrations.manage.lifecycle_threads_count.get());
    let shared = Arc::new(Shared {
        executor_id: identity.service_id.as_str().into(),
        identity,
        service_id,
        catalogue,
        replication_factor,
        admin,
        writer: writer.clone(),
        kinds,
        keys,
        messages,
        uplink,
        metrics,
        limiter,
        clock: Clock::new(),
        lookup,
        tracer,
        connects,
        owners,
        newer: incarnation::Newer::default(),
        applied: Applied::default(),
        config,
    });
    look_when_read(&registry, &shared);
    let (commands, working) = Commands::new(shared.clone(), writer.clone());
    services.spawn(working);
    services.spawn({
        let (shared, writer) = (shared.clone(), writer.clone());
        async move {
            ensure_topics(&shared).await;
            tokio::join!(
                announce::follow_applied(shared.clone(), writer.clone()),
                announce::follow_kinds(shared.clone(), writer, kinds_reader),
                owners::follow(shared.clone(), owners_reader),
                incarnation::follow(shared, nodes_reader),
            );
        }
    });
    services.spawn(system_info::follow(shared.clone()));
    if shared.config.stats.ie.enabled {
        services.spawn(print_statistics(shared.clone()));
    }
    let drain = Drain::new();
    let mut groups = JoinSet::new();
    for kind in shared.kinds.keys() {
        let group = Group {
            shared: shared.clone(),
            bus: bus.clone(),
            writer: writer.clone(),
            kind: kind.clone(),
            commands: commands.clone(),
            health: health.component(&format!("executor.{}", kind.as_str().to_ascii_lowercase())),
            drain: drain.clone(),
        };
        groups.spawn(group.run());
    }
    if shared.kinds.is_empty() {
        tracing::warn!("no kind of integration is served");
    }
    Ok(Running { shared, writer, drain, groups, services })
}

/// Has what is not kept looked up each time that metrics are read.
fn look_when_read(registry: &tbmq_service::metrics::Metrics, shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    registry.before_reading(move || {
        if let Some(shared) = shared.upgrade() {
            shared.metrics.uplink_backlog.set(shared.uplink.waiting() as i64);
            shared.metrics.bus_in_flight_bytes.set(shared.writer.in_flight_bytes() as i64);
        }
    });
}

impl Running {
    /// An executor listens on nothing.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        Vec::new()
    }

    /// Completes only when it dies, or another process with its service id has taken over. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            // What serves the groups ends with them.
            biased;
            superseded = self.shared.newer.seen() => return superseded.into(),
            Some(ended) = self.groups.join_next() => match ended {
                Ok(Err(replaced)) => return replaced.into(),
                Ok(Ok(())) => Ok(()),
                Err(error) => Err(error),
            },
            Some(ended) = self.services.join_next() => ended,
        };
        match ended {
            Ok(()) => anyhow::anyhow!("a part of the executor ended"),
            Err(error) => anyhow::Error::new(error).context("a part of the executor ended"),
        }
    }

    /// Stops reading, waits a bounded time for what is in flight, commits, tells STOPPED, and leaves its groups.
    pub async fn drain(mut self) {
        self.shared.metrics.end();
        self.drain.begin();
        while let Some(ended) = self.groups.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(replaced)) => tracing::error!(%replaced, "a group ended"),
                Err(error) => tracing::error!(%error, "a group ended"),
            }
        }
        let last_words = async {
            while !self.shared.uplink.is_written() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            announce::write_applied(&self.shared, &*self.writer, true, None).await
        };
        match tokio::time::timeout(LAST_WORDS_TIMEOUT, last_words).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "can't say goodbye"),
            Err(_) => tracing::warn!("the last events were not written in time"),
        }
        self.services.shutdown().await;
    }
}

impl tbmq_service::shell::Running for Running {
    fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        self.addresses()
    }

    async fn failed(&mut self) -> anyhow::Error {
        self.failed().await
    }

    async fn drain(self) {
        self.drain().await;
    }
}

/// Makes the topics that are written here. Tries until it succeeds.
async fn ensure_topics(shared: &Shared) {
    let catalogue = &shared.catalogue;
    for topic in [catalogue.uplink(), catalogue.node_applied(), catalogue.kinds(), catalogue.owners()] {
        let spec = spec_of(&topic, shared.replication_factor);
        let mut pause = Duration::from_millis(100);
        while let Err(error) = shared.admin.create_topic(&spec).await {
            tracing::warn!(%error, topic = topic.name, "can't create topic; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}

async fn print_statistics(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(shared.config.stats.ie.print_interval_ms));
    ticks.tick().await;
    loop {
        ticks.tick().await;
        tracing::info!("----------------------------------------------------------------");
        for line in shared.metrics.lines(shared.uplink.waiting()) {
            tracing::info!(target: tbmq_service::telemetry::EVERY_LINE, "{line}");
        }
    }
}
