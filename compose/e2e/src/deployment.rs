//! A system of processes: all planes in one, or several of each over Kafka and PostgreSQL.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tbmq_bus::{
    Bus,
    embedded::{EmbeddedBus, EmbeddedConfig},
    kafka::{KafkaBus, KafkaConfig},
};
use tbmq_harness::{
    kafka::Kafka,
    postgres::{Postgres, free_port},
    process::{Process, Signal, data_dir},
};
use tbmq_proto::topic::Catalogue;
use tempfile::TempDir;

pub use crate::instance::Plane;
use crate::{api::Api, instance::Instance};

/// How long a process may take to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(30);

/// How long a scrape may take.
const SCRAPE: Duration = Duration::from_secs(2);

/// What a deployment over Kafka and PostgreSQL consists of: one process per plane unless told otherwise.
#[derive(Clone, Debug)]
pub struct Layout {
    counts: BTreeMap<Plane, u32>,
    settings: Vec<(String, String)>,
    own: BTreeMap<Instance, Vec<(String, String)>>,
    logs: Option<PathBuf>,
}

impl Default for Layout {
    fn default() -> Self {
        let counts = [(Plane::Control, 1), (Plane::Data, 1), (Plane::Executor, 1)];
        Self { counts: BTreeMap::from(counts), settings: Vec::new(), own: BTreeMap::new(), logs: None }
    }
}

impl Layout {
    /// How many control planes, data planes and executors.
    pub fn of(control_planes: u32, data_planes: u32, executors: u32) -> Self {
        let counts =
            [(Plane::Control, control_planes), (Plane::Data, data_planes), (Plane::Executor, executors)];
        Self { counts: BTreeMap::from(counts), ..Self::default() }
    }

    /// A variable of the environment of every process.
    #[must_use]
    pub fn setting(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push(setting(key, value));
        self
    }

    /// A variable of one process's environment; it wins over [`Layout::setting`].
    #[must_use]
    pub fn own_setting(mut self, instance: impl Into<Instance>, key: &str, value: impl ToString) -> Self {
        self.own.entry(instance.into()).or_default().push(setting(key, value));
        self
    }

    /// What the processes print is appended to `<folder>/<instance>.log`.
    #[must_use]
    pub fn logs(mut self, folder: &Path) -> Self {
        self.logs = Some(folder.to_owned());
        self
    }

    /// Creates a database, chooses a prefix of topics and all ports, and starts nothing.
    ///
    /// # Errors
    /// When the database can't be created or no port is free.
    pub fn prepare(self, kafka: &Kafka, postgres: &Postgres) -> Result<Deployment> {
        let prefix = format!("t{}.", uuid::Uuid::now_v7().simple());
        let mut deployment = Deployment {
            servers: Some(Servers {
                bootstrap: kafka.bootstrap(),
                database: postgres.create_database()?,
                prefix,
                layout: self.clone(),
            }),
            data: None,
            logs: self.logs,
            members: BTreeMap::new(),
        };
        // Data planes are told where all control planes are.
        for (plane, count) in self.counts {
            for _ in 0..count {
                deployment.add(plane)?;
            }
        }
        Ok(deployment)
    }

    /// As [`Layout::prepare`], and starts every process.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start(self, kafka: &Kafka, postgres: &Postgres) -> Result<Deployment> {
        let mut deployment = self.prepare(kafka, postgres)?;
        deployment.start_all()?;
        Ok(deployment)
    }
}

/// The servers that the planes talk through.
#[derive(Debug)]
struct Servers {
    bootstrap: String,
    database: String,
    prefix: String,
    layout: Layout,
}

/// One process: its environment and ports stay over restarts.
#[derive(Debug)]
struct Member {
    environment: Vec<(String, String)>,
    ports: BTreeMap<&'static str, u16>,
    process: Option<Process>,
}

/// A running system. Dropping it kills its processes.
#[derive(Debug)]
pub struct Deployment {
    servers: Option<Servers>,
    data: Option<TempDir>,
    logs: Option<PathBuf>,
    members: BTreeMap<Instance, Member>,
}

fn setting(key: &str, value: impl ToString) -> (String, String) {
    (key.to_owned(), value.to_string())
}

/// The variables that bind each scheme to the loopback interface.
fn bindings(ports: &BTreeMap<&'static str, u16>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (scheme, port) in ports {
        let stem = match *scheme {
            "mqtt" => "LISTENER_TCP_BIND",
            "grpc" => "CONTROL_GRPC_BIND",
            _ => "HTTP_BIND",
        };
        all.push(setting(&format!("{stem}_ADDRESS"), "127.0.0.1"));
        all.push(setting(&format!("{stem}_PORT"), port));
    }
    // Its default port is one for the whole machine.
    all.push(setting("LISTENER_WS_ENABLED", false));
    all
}

fn ports(plane: Plane) -> Result<BTreeMap<&'static str, u16>> {
    plane.schemes().iter().map(|scheme| Ok((*scheme, free_port()?))).collect()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Deployment {
    /// `tbmq` with a data folder of its own, running.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn standalone() -> Result<Self> {
        Self::standalone_with(&[])
    }

    /// The same with further variables in its environment.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn standalone_with(extra: &[(&str, &str)]) -> Result<Self> {
        let data = data_dir()?;
        let ports = ports(Plane::All)?;
        let mut environment = bindings(&ports);
        environment.push(setting("TBMQ_DATA_DIR", data.path().display()));
        environment.extend(extra.iter().map(|(key, value)| setting(key, value)));
        let member = Member { environment, ports, process: None };
        let members = BTreeMap::from([(Plane::All.into(), member)]);
        let mut deployment = Self { servers: None, data: Some(data), logs: None, members };
        deployment.start(Plane::All)?;
        Ok(deployment)
    }

    /// One process per plane over real servers, with topics and a database of their own, running.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn planes(kafka: &Kafka, postgres: &Postgres) -> Result<Self> {
        Layout::default().start(kafka, postgres)
    }

    /// As [`Deployment::planes`], with nothing started.
    ///
    /// # Errors
    /// As [`Layout::prepare`].
    pub fn planes_stopped(kafka: &Kafka, postgres: &Postgres) -> Result<Self> {
        Layout::default().prepare(kafka, postgres)
    }

    /// Adds a process, the next one of its plane, without starting it. Data planes know the control planes that were
    /// there when they were added.
    ///
    /// # Errors
    /// For the all-in-one, and when no port is free.
    pub fn add(&mut self, plane: Plane) -> Result<Instance> {
        let number = self.instances(plane).last().map_or(1, |last| last.number + 1);
        let instance = plane.nth(number);
        let ports = ports(plane)?;
        let environment = self.environment(instance, &ports)?;
        self.members.insert(instance, Member { environment, ports, process: None });
        Ok(instance)
    }

    fn environment(
        &self,
        instance: Instance,
        ports: &BTreeMap<&'static str, u16>,
    ) -> Result<Vec<(String, String)>> {
        let servers = self.servers.as_ref().context("the all-in-one is alone")?;
        let mut all = bindings(ports);
        all.extend([
            setting("TB_KAFKA_SERVERS", &servers.bootstrap),
            setting("TB_KAFKA_PREFIX", &servers.prefix),
            setting("TB_SERVICE_ID", instance),
        ]);
        match instance.plane {
            Plane::Control => all.push(setting("DATABASE_URL", &servers.database)),
            Plane::Data => {
                let control_planes = self.instances(Plane::Control).into_iter();
                let endpoints: Vec<String> = control_planes
                    .map(|control| Ok(format!("http://{}", self.address(control, "grpc")?)))
                    .collect::<Result<_>>()?;
                all.push(setting("CONTROL_GRPC_ENDPOINTS", endpoints.join(",")));
            }
            Plane::Executor => {}
            Plane::All => bail!("the all-in-one is alone"),
        }
        let own = servers.layout.own.get(&instance).into_iter().flatten();
        all.extend(servers.layout.settings.iter().chain(own).cloned());
        Ok(all)
    }

    /// The processes of a plane, running or not, in the order of their numbers.
    pub fn instances(&self, plane: Plane) -> Vec<Instance> {
        self.members.keys().filter(|instance| instance.plane == plane).copied().collect()
    }

    fn member(&self, instance: Instance) -> Result<&Member> {
        self.members.get(&instance).with_context(|| format!("{instance} is not in this deployment"))
    }

    fn member_mut(&mut self, instance: Instance) -> Result<&mut Member> {
        self.members.get_mut(&instance).with_context(|| format!("{instance} is not in this deployment"))
    }

    fn taken(&mut self, instance: Instance) -> Result<Process> {
        self.member_mut(instance)?.process.take().with_context(|| format!("{instance} is not running"))
    }

    /// The process of an instance.
    ///
    /// # Errors
    /// When it was not started, or was stopped.
    pub fn process(&self, instance: impl Into<Instance>) -> Result<&Process> {
        let instance = instance.into();
        self.member(instance)?.process.as_ref().with_context(|| format!("{instance} is not running"))
    }

    fn launch(&self, instance: Instance, environment: &[(String, String)]) -> Result<Process> {
        let plane = instance.plane;
        let log = self.logs.as_ref().map(|folder| folder.join(format!("{instance}.log")));
        Process::start_logged(plane.binary(), &[], environment, plane.schemes(), log.as_deref())
    }

    /// Starts a process and blocks until it listens, at most 60 s. One that has ended by itself is forgotten.
    ///
    /// # Errors
    /// When it runs already, or does not come up.
    pub fn start(&mut self, instance: impl Into<Instance>) -> Result<()> {
        let instance = instance.into();
        let member = self.member_mut(instance)?;
        if let Some(process) = &mut member.process {
            ensure!(process.has_ended()?, "{instance} is running");
            member.process = None;
        }
        let environment = member.environment.clone();
        let process = self.launch(instance, &environment)?;
        self.member_mut(instance)?.process = Some(process);
        Ok(())
    }

    /// Sets a variable of a process's environment from its next start on; `None` takes it away.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn set(&mut self, instance: impl Into<Instance>, key: &str, value: Option<&str>) -> Result<()> {
        let environment = &mut self.member_mut(instance.into())?.environment;
        environment.retain(|(name, _)| name != key);
        environment.extend(value.map(|value| setting(key, value)));
        Ok(())
    }

    /// Starts every process that does not run: control planes, executors, data planes.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start_all(&mut self) -> Result<()> {
        for plane in [Plane::Control, Plane::Executor, Plane::Data] {
            for instance in self.instances(plane) {
                if !self.is_running(instance)? {
                    self.start(instance)?;
                }
            }
        }
        Ok(())
    }

    /// What an instance's `/metrics` says.
    ///
    /// # Errors
    /// When it does not answer within 2 s.
    pub fn metrics(&self, instance: impl Into<Instance>) -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(instance, "http")?, SCRAPE)?;
        stream.set_read_timeout(Some(SCRAPE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        Ok(body.to_owned())
    }

    /// A second process under the same service id as `instance`, with ports of its own; blocks until it listens.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn twin(&self, instance: impl Into<Instance>) -> Result<Process> {
        let instance = instance.into();
        let environment = self.environment(instance, &ports(instance.plane)?)?;
        self.launch(instance, &environment)
    }

    /// kill -9, and waits for the end.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self, instance: impl Into<Instance>) -> Result<()> {
        self.taken(instance.into())?.kill()
    }

    /// SIGTERM, and a clean exit within 30 s.
    ///
    /// # Errors
    /// When it is not running, or does not end so.
    pub fn drain(&mut self, instance: impl Into<Instance>) -> Result<()> {
        self.taken(instance.into())?.drain(DRAIN)
    }

    /// Drains every process that runs: data planes, executors, control planes.
    ///
    /// # Errors
    /// As [`Deployment::drain`].
    pub fn drain_all(&mut self) -> Result<()> {
        for plane in [Plane::Data, Plane::Executor, Plane::Control, Plane::All] {
            for instance in self.instances(plane) {
                if self.member(instance)?.process.is_some() {
                    self.drain(instance)?;
                }
            }
        }
        Ok(())
    }

    /// SIGSTOP: the process stands still until [`Deployment::thaw`].
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze(&self, instance: impl Into<Instance>) -> Result<()> {
        self.process(instance)?.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it is not running.
    pub fn thaw(&self, instance: impl Into<Instance>) -> Result<()> {
        self.process(instance)?.signal(Signal::CONT)
    }

    /// Whether the process was started and has not ended, by itself or otherwise.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn is_running(&mut self, instance: impl Into<Instance>) -> Result<bool> {
        match &mut self.member_mut(instance.into())?.process {
            Some(process) => Ok(!process.has_ended()?),
            None => Ok(false),
        }
    }

    /// Blocks until the process ends by itself. Returns how, and its last lines.
    ///
    /// # Errors
    /// When it was not running or does not end within `patience`.
    pub fn await_end(
        &mut self,
        instance: impl Into<Instance>,
        patience: Duration,
    ) -> Result<(ExitStatus, String)> {
        let mut process = self.taken(instance.into())?;
        let status = process.await_end(patience)?;
        Ok((status, process.output()))
    }

    /// Where an instance listens for `mqtt`, `grpc` or `http`, running or not.
    ///
    /// # Errors
    /// When its plane does not listen for that.
    pub fn address(&self, instance: impl Into<Instance>, scheme: &str) -> Result<SocketAddr> {
        let instance = instance.into();
        let port = self.member(instance)?.ports.get(scheme);
        Ok(loopback(*port.with_context(|| format!("{instance} does not listen for {scheme}"))?))
    }

    fn first(&self, scheme: &str) -> SocketAddr {
        let port = self.members.values().find_map(|member| member.ports.get(scheme));
        loopback(*port.expect("a deployment has at least one of each plane"))
    }

    /// The first data plane's MQTT address.
    ///
    /// # Panics
    /// In a deployment without a data plane.
    pub fn mqtt(&self) -> SocketAddr {
        self.first("mqtt")
    }

    /// The first control plane's gRPC address.
    ///
    /// # Panics
    /// In a deployment without a control plane.
    pub fn grpc(&self) -> SocketAddr {
        self.first("grpc")
    }

    /// The API of the first control plane.
    ///
    /// # Errors
    /// Never in practice: the connection is made with the first call.
    pub fn api(&self) -> Result<Api> {
        Api::connect(self.grpc())
    }

    /// The API of one control plane.
    ///
    /// # Errors
    /// When `instance` has none.
    pub fn api_of(&self, instance: impl Into<Instance>) -> Result<Api> {
        Api::connect(self.address(instance, "grpc")?)
    }

    /// Runs a statement on the database of the control planes, as [`Postgres::sql`] does.
    ///
    /// # Errors
    /// For the all-in-one, and when `psql` fails.
    pub fn sql(&self, postgres: &Postgres, statement: &str) -> Result<String> {
        let servers = self.servers.as_ref().context("the all-in-one has SQLite")?;
        let database = servers.database.rsplit('/').next().context("no name in the URL")?;
        postgres.sql(database, statement)
    }

    /// The names of this deployment's topics.
    pub fn catalogue(&self) -> Catalogue {
        self.servers
            .as_ref()
            .map_or_else(Catalogue::default, |servers| Catalogue::new(servers.prefix.clone()))
    }

    /// The embedded bus, while nothing runs on it.
    ///
    /// # Errors
    /// When this deployment runs over Kafka, or the bus is open elsewhere.
    pub fn embedded_bus(&self) -> Result<Arc<EmbeddedBus>> {
        let folder = self.data.as_ref().context("this deployment runs over Kafka")?;
        Ok(EmbeddedBus::open(EmbeddedConfig::new(folder.path().join("bus")))?)
    }

    /// The bus itself, for the ledger. The embedded one can be opened only while nothing runs on it.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(match &self.servers {
            None => self.embedded_bus()?,
            Some(servers) => KafkaBus::new(KafkaConfig::new(&servers.bootstrap))?,
        })
    }
}
