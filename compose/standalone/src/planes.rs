//! Starts the planes over one bus, and stops them in the order that loses nothing.

use std::{convert::Infallible, future::pending, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use tbmq_bus::{
    Bus,
    embedded::{self, EmbeddedBus, EmbeddedConfig},
    kafka::{KafkaBus, KafkaConfig},
};
use tbmq_control_plane::vault::new_key;
use tbmq_proto::{
    ids::{InvalidServiceId, ServiceId},
    topic::Catalogue,
};
use tbmq_service::{
    bus_config::KafkaSettings,
    config::Secret,
    identity::Identity,
    secrets_config::SecretsConfig,
    shell::{Misconfigured, Running, Shell, ShellConfig},
};

use crate::{
    config::{Arguments, Config, Durability, Roles},
    data_dir::DataDir,
};

/// The planes that run.
#[derive(Debug)]
pub(crate) struct Planes {
    control_plane: Option<tbmq_control_plane::Running>,
    executor: Option<tbmq_executor::Running>,
    data_plane: Option<tbmq_data_plane::Running>,
    log: Log,
    /// Held until everything else has ended.
    data_dir: Option<DataDir>,
}

/// Where the records are.
#[derive(Clone, Debug)]
enum Log {
    Kafka(Arc<KafkaBus>),
    Embedded(Arc<EmbeddedBus>),
}

impl Log {
    fn bus(&self) -> Arc<dyn Bus> {
        match self {
            Self::Kafka(bus) => bus.clone(),
            Self::Embedded(bus) => bus.clone(),
        }
    }
}

/// Says what does not fit together, before a port is bound.
pub(crate) fn check(config: &Config, shell: &ShellConfig) -> Result<(), Misconfigured> {
    let roles = Roles::of(shell.service.r#type.as_deref())?;
    let kafka_settings = &shell.queue.kafka;
    match kafka_settings.servers() {
        Some(servers) => drop(kafka(servers, kafka_settings)?),
        None if roles != Roles::All => {
            let text = "TB_KAFKA_SERVERS is not set: planes that run apart (TB_SERVICE_TYPE) meet in Kafka, for the \
                        embedded log serves one process";
            return Err(Misconfigured::new(text));
        }
        None => {}
    }
    if roles != Roles::Executor {
        let misconfigured =
            |error: tbmq_control_plane::config::Misconfigured| Misconfigured::new(error.to_string());
        if config.control_plane.names_store() {
            config.control_plane.store_options().map_err(misconfigured)?;
        }
        config.control_plane.check_access().map_err(misconfigured)?;
    }
    config.control_plane.keys().map_err(|error| Misconfigured::new(error.to_string()))?;
    Ok(())
}

/// Starts what the configuration asks for. When a part can't start, those that were started stop again.
pub(crate) async fn start(mut config: Config, arguments: Arguments, shell: Shell) -> anyhow::Result<Planes> {
    let roles = Roles::of(shell.service.r#type.as_deref())?;
    let servers = shell.kafka.servers();
    let sqlite = roles != Roles::Executor && !config.control_plane.names_store();
    let data_dir = if servers.is_none() || sqlite { Some(DataDir::open(&arguments.data_dir)?) } else { None };
    if let (true, Some(data_dir)) = (sqlite, &data_dir) {
        config.control_plane.use_sqlite(&data_dir.database());
    }
    if let (None, Some(data_dir)) = (servers, &data_dir) {
        seal_secrets(&mut config, data_dir)?;
    }
    let log = match (servers, &data_dir) {
        (Some(servers), _) => Log::Kafka(KafkaBus::new(kafka(servers, &shell.kafka)?)?),
        (None, Some(data_dir)) => Log::Embedded(embedded(data_dir, config.own.bus.durability)?),
        (None, None) => anyhow::bail!("neither Kafka nor a data directory"),
    };
    let mut planes = Planes { control_plane: None, executor: None, data_plane: None, log, data_dir };
    match Box::pin(planes.fill(config, roles, &shell)).await {
        Ok(()) => Ok(planes),
        Err(error) => {
            planes.drain().await;
            Err(error)
        }
    }
}

/// What keeps everything in one folder keeps the key of secrets there, too, unless one is configured. A key from before
/// that still opens what it has sealed.
fn seal_secrets(config: &mut Config, data_dir: &DataDir) -> anyhow::Result<()> {
    let file = data_dir.secrets_key();
    let configured = &config.control_plane.secrets;
    let secrets = if configured.is_empty() {
        if !file.exists() {
            let written = data_dir.write_secrets_key(&new_key()?);
            written.with_context(|| format!("can't write the key of secrets to {}", file.display()))?;
        }
        tracing::info!(file = %file.display(), "the key of secrets is in this file; without it they are lost");
        SecretsConfig { key_file: Some(file), ..SecretsConfig::default() }
    } else if file.exists() {
        let own = std::fs::read_to_string(&file)
            .with_context(|| format!("can't read the key of secrets in {}", file.display()))?;
        let given = configured.read(|text| Ok::<_, Infallible>(text.to_owned()))?;
        let own = if given.contains(own.trim()) { "" } else { own.trim() };
        SecretsConfig { keys: Secret::new(format!("{given}\n{own}")), ..SecretsConfig::default() }
    } else {
        return Ok(());
    };
    config.control_plane.secrets = secrets.clone();
    config.data_plane.secrets = secrets.clone();
    config.executor.secrets = secrets;
    Ok(())
}

fn kafka(servers: &str, settings: &KafkaSettings) -> Result<KafkaConfig, Misconfigured> {
    KafkaConfig::parse(servers, settings.properties()).map_err(|error| {
        Misconfigured::new(format!("bad value for TB_KAFKA_DEFAULT_PRODUCER_CONSUMER_CONFIG: {error}"))
    })
}

fn embedded(data_dir: &DataDir, durability: Durability) -> anyhow::Result<Arc<EmbeddedBus>> {
    let durability = match durability {
        Durability::Power => embedded::Durability::Power,
        Durability::Process => embedded::Durability::Process,
    };
    let path = data_dir.bus();
    let config = EmbeddedConfig { durability, ..EmbeddedConfig::new(path.clone()) };
    EmbeddedBus::open(config).with_context(|| format!("can't open the embedded log in {}", path.display()))
}

/// The context of a plane: each plane has a type of its own for the same things.
macro_rules! context {
    ($plane:ident, $role:literal, $roles:expr, $shell:expr, $log:expr $(, $field:ident: $value:expr)?) => {
        $plane::Context {
            $($field: $value,)?
            bus: $log.bus(),
            catalogue: Catalogue::new(&$shell.kafka.kafka_prefix),
            replication_factor: $shell.kafka.replication_factor,
            identity: identity($role, $roles, $shell)?,
            metrics: $shell.metrics.clone(),
            health: $shell.health.scoped($role),
            tracer: $shell.traces.tracer($role, &identity($role, $roles, $shell)?.service_id)?,
        }
    };
}

impl Planes {
    /// The control plane comes first, for it creates the topics that the others read; the data plane last, for it lets
    /// clients in.
    async fn fill(&mut self, config: Config, roles: Roles, shell: &Shell) -> anyhow::Result<()> {
        let Config { own, control_plane, mut data_plane, executor } = config;
        if roles != Roles::Executor {
            let context = {
                let topic_deletion = shell.kafka.enable_topic_deletion;
                context!(tbmq_control_plane, "control-plane", roles, shell, self.log, topic_deletion: topic_deletion)
            };
            let running = tbmq_control_plane::start(control_plane, context).await;
            let running = running.map_err(misconfigured).context("the control plane can't start")?;
            if data_plane.control.grpc.endpoints.is_empty() {
                let scheme = if running.serves_tls() { "https" } else { "http" };
                data_plane.control.grpc.endpoints = running
                    .addresses()
                    .iter()
                    .map(|(_, address)| format!("{scheme}://{}", reachable(*address)))
                    .collect();
                data_plane.control.grpc.token = Secret::new(running.node_token());
            }
            self.control_plane = Some(running);
        }
        if roles != Roles::Broker {
            let context = context!(tbmq_executor, "executor", roles, shell, self.log);
            let running = tbmq_executor::start(executor, context).await;
            self.executor = Some(running.map_err(misconfigured).context("the executor can't start")?);
        }
        if roles != Roles::Executor {
            let sessions = self.data_dir.as_ref().map(|data_dir| {
                let durability = match own.bus.durability {
                    Durability::Power => tbmq_data_plane::Durability::Power,
                    Durability::Process => tbmq_data_plane::Durability::Process,
                };
                (data_dir.sessions(), durability)
            });
            let context = context!(tbmq_data_plane, "data-plane", roles, shell, self.log, sessions: sessions);
            let running = tbmq_data_plane::start(data_plane, context).await;
            self.data_plane = Some(running.map_err(misconfigured).context("the data plane can't start")?);
        }
        Ok(())
    }
}

impl Running for Planes {
    fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let mut all = self.data_plane.as_ref().map(tbmq_data_plane::Running::addresses).unwrap_or_default();
        all.extend(
            self.control_plane.as_ref().map(tbmq_control_plane::Running::addresses).unwrap_or_default(),
        );
        all.extend(self.executor.as_ref().map(tbmq_executor::Running::addresses).unwrap_or_default());
        all
    }

    async fn failed(&mut self) -> anyhow::Error {
        let control_plane = async {
            match &mut self.control_plane {
                Some(running) => running.failed().await,
                None => pending().await,
            }
        };
        let executor = async {
            match &mut self.executor {
                Some(running) => running.failed().await,
                None => pending().await,
            }
        };
        let data_plane = async {
            match &mut self.data_plane {
                Some(running) => running.failed().await,
                None => pending().await,
            }
        };
        tokio::select! {
            error = control_plane => error.context("the control plane failed"),
            error = executor => error.context("the executor failed"),
            error = data_plane => error.context("the data plane failed"),
        }
    }

    /// Clients first, so that nothing new comes; then what is on its way to sinks; then what stores the events of that.
    async fn drain(self) {
        if let Some(running) = self.data_plane {
            running.drain().await;
        }
        if let Some(running) = self.executor {
            running.drain().await;
        }
        if let Some(running) = self.control_plane {
            running.drain().await;
        }
        if let Log::Embedded(bus) = self.log {
            bus.close().await;
        }
    }
}

/// Who a plane is. Planes that share a process share no id (architecture §4.27).
fn identity(role: &str, roles: Roles, shell: &Shell) -> Result<Identity, Misconfigured> {
    let configured = shell.service.id.as_deref();
    let identity = if roles == Roles::Executor {
        Identity::of(role, configured)
    } else {
        Identity::of_shared(role, configured)
    };
    identity.service_id.parse::<ServiceId>().map_err(|error: InvalidServiceId| {
        Misconfigured::new(format!("bad value for TB_SERVICE_ID: {error}"))
    })?;
    Ok(identity)
}

/// An address that this process can connect to: one that means "all interfaces" is none.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    address
}

/// Tells a bad configuration from other failures, for the exit code.
fn misconfigured(error: anyhow::Error) -> anyhow::Error {
    let control_plane = error.downcast_ref().map(tbmq_control_plane::config::Misconfigured::to_string);
    let executor = error.downcast_ref().map(tbmq_executor::config::Invalid::to_string);
    match control_plane.or(executor) {
        Some(text) => Misconfigured::new(text).into(),
        None => error,
    }
}
