//! What the `main.rs` of every plane does: arguments, configuration, telemetry, admin endpoint, start lines, signals,
//! exit codes.
//!
//! ```no_run
//! # use std::{net::SocketAddr, process::ExitCode};
//! # use tbmq_service::{config::Setting, shell::{self, Program, Running, Shell}};
//! # #[derive(Default, serde::Serialize, serde::Deserialize)] struct Config {}
//! # const SETTINGS: &[Setting] = &[];
//! # struct Plane;
//! impl Running for Plane {
//!     fn addresses(&self) -> Vec<(&'static str, SocketAddr)> { vec![] }
//!     async fn failed(&mut self) -> anyhow::Error { std::future::pending().await }
//!     async fn drain(self) {}
//! }
//!
//! async fn start(config: Config, shell: Shell) -> anyhow::Result<Plane> {
//!     let servers = shell.kafka.required_servers()?;
//!     // build the bus, then the plane
//! #   let _ = (config, servers);
//!     Ok(Plane)
//! }
//!
//! fn main() -> ExitCode {
//!     let program = Program {
//!         name: "tbmq-data-plane",
//!         about: "The MQTT broker of TBMQ",
//!         role: "data-plane",
//!         admin_port: 8081,
//!         spare_cores: 1,
//!         settings: SETTINGS,
//!     };
//!     shell::main(&program, |_, shell| shell.queue.kafka.required_servers().map(drop), start)
//! }
//! ```

use std::{
    future::Future,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU8, NonZeroUsize},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    admin::{self, Admin, Health},
    build_info,
    bus_config::KafkaSettings,
    config::{self, Loader, Setting},
    drain::{self, Drain},
    identity::Identity,
    metrics::Metrics,
    otlp_metrics::Pushing,
    telemetry::{self, LogConfig},
    trace::{Traces, config::OtelConfig},
};

/// A program that runs in the shell.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of the binary.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Its role in service ids, such as `data-plane`.
    pub role: &'static str,
    /// Default port of the admin endpoint.
    pub admin_port: u16,
    /// Cores that threads beside ours, those of Kafka clients, keep busy.
    pub spare_cores: usize,
    /// Environment names of its own configuration.
    pub settings: &'static [Setting],
}

/// What the shell gives to the program that it starts.
#[derive(Clone, Debug)]
pub struct Shell {
    /// Who we are, with `TB_SERVICE_ID` applied.
    pub identity: Identity,
    /// `TB_SERVICE_ID` and `TB_SERVICE_TYPE` as they were given.
    pub service: ServiceConfig,
    /// How to reach Kafka.
    pub kafka: KafkaSettings,
    /// The process's metrics.
    pub metrics: Metrics,
    /// The process's health.
    pub health: Health,
    /// The process's traces.
    pub traces: Traces,
    /// Begins on SIGINT, SIGTERM, or when the program fails.
    pub drain: Drain,
}

/// A started program, or a plane.
pub trait Running: Send {
    /// What it listens on: scheme and address, for the start lines.
    fn addresses(&self) -> Vec<(&'static str, SocketAddr)>;

    /// Completes only when it dies. Cancel-safe.
    fn failed(&mut self) -> impl Future<Output = anyhow::Error> + Send;

    /// Stops gracefully, within a bounded time.
    fn drain(self) -> impl Future<Output = ()> + Send;
}

/// How long threads may take to end once everything has stopped.
const LAST_THREADS: Duration = Duration::from_secs(5);

/// The configuration can't be used: the process ends with exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misconfigured(String);

impl Misconfigured {
    /// With a text that names key and value.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// The part of the configuration that the shell itself uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShellConfig {
    /// Id and type.
    pub service: ServiceConfig,
    /// The admin endpoint.
    pub server: AdminConfig,
    /// Logs.
    pub log: LogConfig,
    /// OpenTelemetry.
    pub otel: OtelConfig,
    /// The bus.
    pub queue: QueueConfig,
}

impl ShellConfig {
    /// Environment names of everything in it.
    pub const ALL_SETTINGS: [&'static [Setting]; 4] =
        [Self::SETTINGS, LogConfig::SETTINGS, OtelConfig::SETTINGS, KafkaSettings::SETTINGS];

    /// Environment names, beside those of [`LogConfig`], [`OtelConfig`] and [`KafkaSettings`].
    pub const SETTINGS: &'static [Setting] = &[
        Setting { env: "TB_SERVICE_ID", key: "service.id" },
        Setting { env: "TB_SERVICE_TYPE", key: "service.type" },
        Setting { env: "TBMQ_WORKER_THREADS", key: "service.worker-threads" },
        Setting { env: "HTTP_BIND_ADDRESS", key: "server.address" },
        Setting { env: "HTTP_BIND_PORT", key: "server.port" },
    ];
}

/// Who the process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServiceConfig {
    /// Stable id of the process: different for each, the same after a restart; of two with the same one the newer goes on.
    /// Absent: `<hostname>-<role>`. `tbmq` appends `-<role>` for each plane.
    pub id: Option<String>,
    /// Which planes `tbmq` runs: `tbmq` (control and data plane), `tbmq-integration-executor` (executor); absent: all. The programs
    /// with one plane ignore it.
    pub r#type: Option<String>,
    /// Threads that do the work of all connections and integrations, 1 to 255. Absent: as many as cores in `tbmq`; one less,
    /// but at least one, in the programs with one plane, since the threads of their Kafka clients need one as well.
    pub worker_threads: Option<NonZeroU8>,
}

impl ServiceConfig {
    /// How many threads a program starts that leaves so many of the machine's cores to others.
    fn worker_threads(&self, spare_cores: usize) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let default = || cores().saturating_sub(spare_cores).max(1);
        self.worker_threads.map_or_else(default, |threads| threads.get().into())
    }
}

/// The admin endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AdminConfig {
    /// Address of `/livez`, `/readyz` and `/metrics`.
    pub address: IpAddr,
    /// Port of `/livez`, `/readyz` and `/metrics`; 0 picks a free one.
    pub port: u16,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 0 }
    }
}

/// The bus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct QueueConfig {
    /// Kafka.
    pub kafka: KafkaSettings,
}

/// No arguments beside the shell's own.
#[derive(Clone, Copy, Debug, Args)]
pub struct NoArguments {}

// Groups are named after their types, and a program's own arguments may have a type of this name.
#[derive(Debug, Parser)]
#[group(skip)]
struct Arguments<A: Args> {
    /// YAML file with the configuration; environment variables win over it
    #[arg(long, value_name = "FILE", env = "TBMQ_CONFIG")]
    config: Option<PathBuf>,
    /// Print the configuration that would be used, as YAML, and stop
    #[arg(long)]
    print_config: bool,
    /// Ask the process that runs here with the same configuration whether it is ready, and stop: exit code 0 when it is
    #[arg(long, conflicts_with = "print_config")]
    probe: bool,
    #[command(flatten)]
    own: A,
}

/// Runs a program whose configuration is one struct. `check` says what is wrong with values that are good each by
/// itself, before a port is bound. Returns 0 after a drain, 1 after a failure, 2 for a bad configuration.
pub fn main<C, R, F>(
    program: &Program,
    check: impl FnOnce(&C, &ShellConfig) -> Result<(), Misconfigured>,
    start: impl FnOnce(C, Shell) -> F,
) -> ExitCode
where
    C: DeserializeOwned + Serialize + Default,
    R: Running,
    F: Future<Output = anyhow::Result<R>>,
{
    run(
        program,
        |loader, _: &NoArguments| loader.load(C::default(), &[program.settings]),
        |config| vec![tree(config)],
        check,
        |config, _, shell| start(config, shell),
    )
}

/// As [`main`], with arguments of one's own and a configuration of several structs: `load` takes them from the
/// loader, `print` gives their [`tree`]s.
pub fn run<A, C, R, F>(
    program: &Program,
    load: impl FnOnce(&mut Loader, &A) -> C,
    print: impl FnOnce(&C) -> Vec<serde_json::Value>,
    check: impl FnOnce(&C, &ShellConfig) -> Result<(), Misconfigured>,
    start: impl FnOnce(C, A, Shell) -> F,
) -> ExitCode
where
    A: Args,
    R: Running,
    F: Future<Output = anyhow::Result<R>>,
{
    let arguments: Arguments<A> = parse(program);
    match configured(program, &arguments, load) {
        Err(error) => complain(&error.to_string(), 2),
        Ok((shell, config)) if arguments.print_config => {
            let mut trees = vec![tree(&shell)];
            trees.extend(print(&config));
            print_line(serde_norway::to_string(&merged(trees)).unwrap_or_default().trim_end());
            ExitCode::SUCCESS
        }
        Ok((shell, _)) if arguments.probe => {
            match admin::probe(SocketAddr::new(shell.server.address, shell.server.port)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => complain(&format!("not ready: {}", error.to_string().trim_end()), 1),
            }
        }
        Ok((shell, config)) => {
            if let Err(error) = check(&config, &shell) {
                return complain(&error.to_string(), 2);
            }
            let threads = shell.service.worker_threads(program.spare_cores);
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = match runtime.worker_threads(threads).enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return complain(&format!("can't start threads: {error}"), 1),
            };
            let ended = runtime.block_on(live(program, shell, |shell| start(config, arguments.own, shell)));
            // Clients of a Kafka that does not answer may take a minute to close, and nobody waits for what they do.
            runtime.shutdown_timeout(LAST_THREADS);
            match ended {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) if error.is::<Misconfigured>() || error.is::<config::Error>() => {
                    complain(&format!("{error:#}"), 2)
                }
                Err(error) => complain(&format!("{error:#}"), 1),
            }
        }
    }
}

/// A struct as the tree that `--print-config` shows.
pub fn tree(config: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(config).unwrap_or_default()
}

fn parse<A: Args>(program: &Program) -> Arguments<A> {
    let command =
        Arguments::<A>::command().name(program.name).about(program.about).version(build_info::VERSION);
    Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

fn configured<A: Args, C>(
    program: &Program,
    arguments: &Arguments<A>,
    load: impl FnOnce(&mut Loader, &A) -> C,
) -> Result<(ShellConfig, C), config::Error> {
    // OpenTelemetry wants its empty variables to be as if they were absent.
    let variables =
        std::env::vars().filter(|(name, value)| !name.starts_with("OTEL_") || !value.trim().is_empty());
    let mut loader = Loader::open(arguments.config.as_deref(), variables)?;
    let command = Arguments::<A>::command();
    let names: Vec<_> = command
        .get_arguments()
        .filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned()))
        .collect();
    loader.knows(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut defaults = ShellConfig::default();
    defaults.server.port = program.admin_port;
    let shell = loader.load(defaults, &ShellConfig::ALL_SETTINGS);
    let config = load(&mut loader, &arguments.own);
    let warnings = loader.finish()?;
    shell.otel.check()?;
    let identity = Identity::of(program.role, shell.service.id.as_deref());
    telemetry::init(&shell.log, &identity.service_id, program.role)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok((shell, config))
}

async fn live<R, F>(
    program: &Program,
    config: ShellConfig,
    start: impl FnOnce(Shell) -> F,
) -> anyhow::Result<()>
where
    R: Running,
    F: Future<Output = anyhow::Result<R>>,
{
    let metrics = Metrics::default();
    let traces = Traces::start(&config.otel, &metrics)
        .map_err(|error| Misconfigured::new(format!("traces can't be exported: {error:#}")))?;
    let identity = Identity::of(program.role, config.service.id.as_deref());
    let pushing = Pushing::start(&config.otel, program.name, &identity.service_id, &metrics)
        .map_err(|error| Misconfigured::new(format!("metrics can't be pushed: {error:#}")))?;
    let shell = Shell {
        identity,
        service: config.service,
        kafka: config.queue.kafka,
        metrics,
        health: Health::default(),
        traces: traces.clone(),
        drain: Drain::new(),
    };
    let uses_kafka = shell.kafka.servers().is_some();
    let signals = drain::signalled();
    tokio::pin!(signals);
    let address = SocketAddr::new(config.server.address, config.server.port);
    let admin = Admin::bind(address, shell.metrics.clone(), shell.health.clone()).await?;
    let admin_address = admin.address();
    // Until the program has said which components it has, it is not ready.
    let started = shell.health.component("start");
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(admin.serve(shell.drain.clone()));
    let summing = tokio::spawn(telemetry::sum_up());
    let drain = shell.drain.clone();
    let mut running = tokio::select! {
        running = start(shell) => running?,
        () = &mut signals => {
            tracing::info!("stopped while starting");
            return Ok(());
        }
    };
    started.up();
    for (scheme, address) in running.addresses() {
        print_line(&format!("listening {scheme}://{address}"));
    }
    print_line(&format!("listening http://{admin_address}"));
    tracing::info!(program = program.name, version = build_info::VERSION, "started");
    let failure = tokio::select! {
        () = &mut signals => None,
        error = running.failed() => Some(error),
        ended = serving.join_next() => Some(match ended {
            Some(Ok(Err(error))) => anyhow::Error::new(error).context("the admin endpoint failed"),
            _ => anyhow::anyhow!("the admin endpoint ended"),
        }),
        back = crate::time::set_back(), if uses_kafka => {
            // The waits of librdkafka's threads end by that clock: it would stand still for so long, also when it is
            // to be closed. To be started anew is safe, as after a crash.
            complain(&format!(
                "the system's clock was set back by {} s, and the Kafka client waits by that clock; this process ends \
                 to be started anew. Keep clocks in step by slewing them",
                back.as_secs()
            ), 1);
            std::process::exit(1);
        }
    };
    drain.begin();
    tracing::info!("draining");
    tokio::select! {
        () = running.drain() => tracing::info!("stopped"),
        () = drain::signalled() => tracing::warn!("stopped before the drain was done"),
    }
    traces.finish().await;
    if let Some(pushing) = pushing {
        pushing.finish().await;
    }
    summing.abort();
    telemetry::sum_up_last();
    failure.map_or(Ok(()), Err).context("stopped after a failure")
}

fn merged(trees: Vec<serde_json::Value>) -> serde_json::Value {
    fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }
    let mut all = serde_json::Value::Object(serde_json::Map::new());
    for tree in trees {
        merge(&mut all, tree);
    }
    all
}

fn print_line(line: &str) {
    // A closed stdout is no reason to stop a broker.
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        tracing::debug!(%error, "can't print");
    }
}

fn complain(text: &str, code: u8) -> ExitCode {
    if let Err(error) = writeln!(std::io::stderr(), "error: {text}") {
        tracing::debug!(%error, "can't print");
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    struct Fails(Arc<AtomicBool>);

    impl Running for Fails {
        fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
            vec![]
        }

        async fn failed(&mut self) -> anyhow::Error {
            anyhow::anyhow!("the store is gone")
        }

        async fn drain(self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    const PROGRAM: Program =
        Program { name: "tbmq-test", about: "", role: "test", admin_port: 0, spare_cores: 0, settings: &[] };

    #[test]
    fn worker_threads_are_what_is_set_or_follow_from_the_cores() {
        let cores = std::thread::available_parallelism().unwrap().get();
        let mut service = ServiceConfig::default();
        assert_eq!(service.worker_threads(0), cores);
        assert_eq!(service.worker_threads(1), (cores - 1).max(1));
        assert_eq!(service.worker_threads(cores + 1), 1, "there is always one");
        service.worker_threads = NonZeroU8::new(7);
        assert_eq!(service.worker_threads(1), 7);
    }

    #[tokio::test]
    async fn a_program_that_fails_is_drained_and_its_reason_told() {
        let drained = Arc::new(AtomicBool::new(false));
        let fails = Fails(drained.clone());
        let mut seen = None;
        let config = ShellConfig {
            service: ServiceConfig { id: Some("tbmq1".to_owned()), ..ServiceConfig::default() },
            ..ShellConfig::default()
        };
        let ended = live(&PROGRAM, config, async |shell: Shell| {
            seen = Some(shell);
            Ok(fails)
        })
        .await;
        assert_eq!(format!("{:#}", ended.unwrap_err()), "stopped after a failure: the store is gone");
        assert!(drained.load(Ordering::SeqCst));
        let shell = seen.unwrap();
        assert_eq!(shell.identity.service_id, "tbmq1");
        assert!(shell.drain.is_draining() && shell.health.is_up());
    }

    #[tokio::test]
    async fn a_program_that_can_not_start_ends_at_once() {
        let ended = live(&PROGRAM, ShellConfig::default(), async |shell: Shell| {
            shell.kafka.required_servers()?;
            Ok(Fails(Arc::default()))
        });
        assert!(ended.await.unwrap_err().is::<Misconfigured>());
    }

    #[test]
    fn a_programs_own_arguments_join_those_of_the_shell() {
        #[derive(Debug, Args)]
        struct Arguments {
            #[arg(long)]
            data_dir: PathBuf,
        }
        super::Arguments::<Arguments>::command().debug_assert();
        let parsed = super::Arguments::<Arguments>::parse_from(["x", "--data-dir", "y", "--config", "z"]);
        assert_eq!((parsed.own.data_dir, parsed.config), (PathBuf::from("y"), Some(PathBuf::from("z"))));
    }

    #[test]
    fn trees_that_share_keys_are_printed_as_one() {
        let trees = vec![
            serde_json::json!({ "queue": { "kafka": 1 }, "log": 2 }),
            serde_json::json!({ "queue": { "msg": 3 } }),
        ];
        assert_eq!(merged(trees).to_string(), r#"{"queue":{"kafka":1,"msg":3},"log":2}"#);
    }
}
