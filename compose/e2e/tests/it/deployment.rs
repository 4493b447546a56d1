//! The planes as processes: all in one, or each alone over Kafka and PostgreSQL.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tbmq_bus::{Bus, embedded::EmbeddedBus, kafka::KafkaBus};
use tbmq_harness::{
    kafka::Kafka,
    postgres::{Postgres, free_port},
    process::{Process, data_dir},
};
use tbmq_proto::topic::Catalogue;
use tempfile::TempDir;

use crate::api::Api;

/// One process of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Plane {
    All,
    Control,
    Data,
    Executor,
}

impl Plane {
    fn binary(self) -> &'static str {
        match self {
            Self::All => "tbmq",
            Self::Control => "tbmq-control-plane",
            Self::Data => "tbmq-data-plane",
            Self::Executor => "tbmq-executor",
        }
    }

    fn schemes(self) -> &'static [&'static str] {
        match self {
            Self::All => &["mqtt", "grpc", "http"],
            Self::Control => &["grpc", "http"],
            Self::Data => &["mqtt", "http"],
            Self::Executor => &["http"],
        }
    }
}

/// What the planes talk through.
#[derive(Debug)]
enum Backing {
    Embedded(TempDir),
    Servers { bootstrap: String, prefix: String },
}

/// A running system. Its ports stay the same over restarts.
#[derive(Debug)]
pub(crate) struct Deployment {
    backing: Backing,
    environment: BTreeMap<Plane, Vec<(String, String)>>,
    processes: BTreeMap<Plane, Process>,
    mqtt: SocketAddr,
    grpc: SocketAddr,
}

fn setting(key: &str, value: impl ToString) -> (String, String) {
    (key.to_owned(), value.to_string())
}

impl Deployment {
    /// `tbmq` with a data folder of its own.
    pub(crate) fn standalone() -> Result<Self> {
        Self::standalone_with(&[])
    }

    pub(crate) fn standalone_with(extra: &[(&str, &str)]) -> Result<Self> {
        let data = data_dir()?;
        let (mqtt, grpc, http) = (free_port()?, free_port()?, free_port()?);
        let mut environment = vec![
            setting("TBMQ_DATA_DIR", data.path().display()),
            setting("LISTENER_TCP_BIND_PORT", mqtt),
            setting("CONTROL_GRPC_BIND_PORT", grpc),
            setting("HTTP_BIND_PORT", http),
        ];
        environment.extend(extra.iter().map(|(key, value)| setting(key, value)));
        let mut deployment = Self {
            backing: Backing::Embedded(data),
            environment: BTreeMap::from([(Plane::All, environment)]),
            processes: BTreeMap::new(),
            mqtt: SocketAddr::from(([127, 0, 0, 1], mqtt)),
            grpc: SocketAddr::from(([127, 0, 0, 1], grpc)),
        };
        deployment.start(Plane::All)?;
        Ok(deployment)
    }

    /// The three planes as processes over real servers, with topics and a database of their own.
    pub(crate) fn planes(kafka: &Kafka, postgres: &Postgres) -> Result<Self> {
        let mut deployment = Self::planes_stopped(kafka, postgres)?;
        for plane in [Plane::Control, Plane::Executor, Plane::Data] {
            deployment.start(plane)?;
        }
        Ok(deployment)
    }

    /// As `planes`, with nothing started.
    pub(crate) fn planes_stopped(kafka: &Kafka, postgres: &Postgres) -> Result<Self> {
        let prefix = format!("t{}.", uuid::Uuid::now_v7().simple());
        let (mqtt, grpc) = (free_port()?, free_port()?);
        let common = |role: &str| {
            vec![
                setting("TB_KAFKA_SERVERS", kafka.bootstrap()),
                setting("TB_KAFKA_PREFIX", &prefix),
                setting("TB_SERVICE_ID", role),
                setting("HTTP_BIND_ADDRESS", "127.0.0.1"),
                setting("HTTP_BIND_PORT", 0),
            ]
        };
        let mut control = common("control");
        control.extend([
            setting("DATABASE_URL", postgres.create_database()?),
            setting("CONTROL_GRPC_BIND_ADDRESS", "127.0.0.1"),
            setting("CONTROL_GRPC_BIND_PORT", grpc),
        ]);
        let mut data = common("data");
        data.extend([
            setting("LISTENER_TCP_BIND_ADDRESS", "127.0.0.1"),
            setting("LISTENER_TCP_BIND_PORT", mqtt),
            setting("CONTROL_GRPC_ENDPOINTS", format!("http://127.0.0.1:{grpc}")),
        ]);
        let executor = common("executor");
        Ok(Self {
            backing: Backing::Servers { bootstrap: kafka.bootstrap(), prefix },
            environment: BTreeMap::from([
                (Plane::Control, control),
                (Plane::Data, data),
                (Plane::Executor, executor),
            ]),
            processes: BTreeMap::new(),
            mqtt: SocketAddr::from(([127, 0, 0, 1], mqtt)),
            grpc: SocketAddr::from(([127, 0, 0, 1], grpc)),
        })
    }

    /// Starts a process and blocks until it listens.
    pub(crate) fn start(&mut self, plane: Plane) -> Result<()> {
        let environment = self.environment.get(&plane).context("not in this deployment")?;
        let process = Process::start(plane.binary(), &[], environment, plane.schemes())?;
        self.processes.insert(plane, process);
        Ok(())
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, plane: Plane) -> Result<()> {
        self.processes.remove(&plane).context("not running")?.kill()
    }

    /// SIGTERM, and a clean exit within 30 s.
    pub(crate) fn drain(&mut self, plane: Plane) -> Result<()> {
        self.processes.remove(&plane).context("not running")?.drain(Duration::from_secs(30))
    }

    pub(crate) fn drain_all(&mut self) -> Result<()> {
        for plane in [Plane::Data, Plane::Executor, Plane::Control, Plane::All] {
            if self.processes.contains_key(&plane) {
                self.drain(plane)?;
            }
        }
        Ok(())
    }

    pub(crate) fn mqtt(&self) -> SocketAddr {
        self.mqtt
    }

    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    pub(crate) fn api(&self) -> Result<Api> {
        Api::connect(self.grpc)
    }

    pub(crate) fn catalogue(&self) -> Catalogue {
        match &self.backing {
            Backing::Embedded(_) => Catalogue::default(),
            Backing::Servers { prefix, .. } => Catalogue::new(prefix.clone()),
        }
    }

    /// The embedded bus, while nothing runs on it.
    pub(crate) fn embedded_bus(&self) -> Result<Arc<EmbeddedBus>> {
        match &self.backing {
            Backing::Embedded(folder) => Ok(EmbeddedBus::open(embedded_config(folder.path().join("bus")))?),
            Backing::Servers { .. } => anyhow::bail!("this deployment runs over Kafka"),
        }
    }

    /// The bus itself, for the ledger. The embedded one can be opened only while nothing runs on it.
    pub(crate) fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(match &self.backing {
            Backing::Embedded(folder) => EmbeddedBus::open(embedded_config(folder.path().join("bus")))?,
            Backing::Servers { bootstrap, .. } => KafkaBus::new(kafka_config(bootstrap))?,
        })
    }
}

fn embedded_config(path: PathBuf) -> tbmq_bus::embedded::EmbeddedConfig {
    tbmq_bus::embedded::EmbeddedConfig::new(path)
}

fn kafka_config(bootstrap: &str) -> tbmq_bus::kafka::KafkaConfig {
    tbmq_bus::kafka::KafkaConfig::new(bootstrap)
}
