//! `bench scale`: thousands of integrations. How fast they are created, how soon an executor that was killed runs them
//! all again, and what they cost while nothing happens.
//!
//! Nothing is taken from what a process says of itself alone: at the end each integration delivers one message.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use prost::Message as _;
use tbmq_bus::{
    Bus as _, ReaderConfig, ReaderEvent, Start, TopicPartition,
    kafka::{KafkaBus, KafkaConfig},
};
use tbmq_e2e::storm::{self, Storm};
use tbmq_harness::{
    client::Client,
    http_sink::HttpSink,
    kafka::{Kafka, KafkaOptions},
    postgres::{Postgres, free_port},
    process::{Process, Usage},
};
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Packet, ProtocolVersion, Publish, Qos},
};
use tbmq_proto::{
    control::{
        CreateIntegrationRequest, Integration, ListIntegrationsRequest,
        integration_service_client::IntegrationServiceClient, integration_status::Phase,
    },
    topic::{Catalogue, DOWNLINK_PARTITIONS},
    wire::{NodeApplied, OwnerClaim},
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::{Code, transport::Channel};

#[derive(Args)]
pub(crate) struct Options {
    /// Where configuration and messages go through.
    #[arg(long, value_enum, default_value_t = Backend::Kafka)]
    backend: Backend,
    /// HTTP integrations.
    #[arg(long, default_value_t = 2_000)]
    integrations: u32,
    /// Create calls in flight.
    #[arg(long, default_value_t = 64)]
    callers: u32,
    /// Seconds over which the idle system is watched.
    #[arg(long, default_value_t = 30)]
    idle_secs: u64,
    /// Restarts of the executor.
    #[arg(long, default_value_t = 3)]
    restarts: u32,
    /// Instead: create them while three executors over Kafka are killed, added, drained and started again in turn.
    #[arg(long)]
    storm: bool,
    /// Decides who is struck by the storm, and when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// Three processes over Kafka and PostgreSQL; the executor alone is restarted.
    Kafka,
    /// `tbmq` over the embedded log and SQLite, restarted as a whole.
    Embedded,
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(15);

pub(crate) async fn run(options: Options) -> Result<()> {
    // A second installation finds the first, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    if options.storm {
        return run_storm(&options).await;
    }
    let sink = HttpSink::start().await?;
    let mut system = System::start(options.backend).await?;
    system.ready().await?;
    println!("{} HTTP integrations, {:?}", options.integrations, options.backend);
    for (name, usage) in system.usages()? {
        println!("  before the first: {name}: {}", told(usage));
    }

    create(&system, &sink, &options).await?;
    let began = Instant::now();
    system.await_active(options.integrations, None).await?;
    println!("  all ACTIVE {:.2} s after the last call returned", began.elapsed().as_secs_f64());
    probe(&system, &sink, options.integrations).await?;
    idle(&system, &options).await?;

    for restart in 1..=options.restarts {
        restore(&mut system, &options, restart).await?;
        probe(&system, &sink, options.integrations).await?;
    }
    idle(&system, &options).await?;
    system.stop().await
}

/// The storm, which fails unless each integration has one owner at the end.
async fn run_storm(options: &Options) -> Result<()> {
    let kafka = tokio::task::spawn_blocking(|| Kafka::start(KafkaOptions::default())).await??;
    let postgres = tokio::task::spawn_blocking(Postgres::start).await??;
    let storm = Storm {
        integrations: options.integrations,
        callers: options.callers,
        pause_ms: 1_000..3_000,
        seed: options.seed,
    };
    let report = storm::run(&kafka, &postgres, &storm).await?;
    println!(
        "{} HTTP integrations created in {:.1} s while {} executors were killed, {} added, {} drained, {} started again; \
         {} calls were repeated",
        storm.integrations,
        report.created_in.as_secs_f64(),
        report.killed,
        report.added,
        report.drained,
        report.started_again,
        report.repeated_calls
    );
    println!(
        "  one owner each {:.2} s after the storm: {:?}; {} duplicates of what was published in the storm, none after it",
        report.settled_in.as_secs_f64(),
        report.owned,
        report.duplicates
    );
    tokio::task::spawn_blocking(move || drop((kafka, postgres))).await?;
    Ok(())
}

/// The processes under measurement.
struct System {
    /// By what is printed for them; the executor, or all in one, comes first.
    processes: Vec<(&'static str, Process)>,
    environment: Vec<(String, String)>,
    servers: Option<(Kafka, Postgres)>,
    mqtt: SocketAddr,
    grpc: SocketAddr,
    /// Goes with the system.
    data: Option<TempDir>,
}

fn setting(key: &str, value: impl ToString) -> (String, String) {
    (key.to_owned(), value.to_string())
}

impl System {
    async fn start(backend: Backend) -> Result<Self> {
        let (mqtt, grpc) = (free_port()?, free_port()?);
        let common = [
            setting("LISTENER_TCP_BIND_ADDRESS", "127.0.0.1"),
            setting("LISTENER_TCP_BIND_PORT", mqtt),
            setting("LISTENER_WS_ENABLED", false),
            setting("CONTROL_GRPC_BIND_ADDRESS", "127.0.0.1"),
            setting("CONTROL_GRPC_BIND_PORT", grpc),
            setting("HTTP_BIND_ADDRESS", "127.0.0.1"),
            setting("HTTP_BIND_PORT", 0),
        ];
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut system = Self {
            processes: Vec::new(),
            environment: common.to_vec(),
            servers: None,
            mqtt: address(mqtt),
            grpc: address(grpc),
            data: None,
        };
        match backend {
            Backend::Embedded => {
                let data = tempfile::tempdir()?;
                system.environment.push(setting("TBMQ_DATA_DIR", data.path().display()));
                system.data = Some(data);
                system.processes.push(("tbmq", system.spawn_executor()?));
            }
            Backend::Kafka => {
                let kafka = tokio::task::spawn_blocking(|| Kafka::start(KafkaOptions::default())).await??;
                let postgres = tokio::task::spawn_blocking(Postgres::start).await??;
                system.environment.push(setting("TB_KAFKA_SERVERS", kafka.bootstrap()));
                let with = |id: &str, more: Option<(String, String)>| {
                    let own = std::iter::once(setting("TB_SERVICE_ID", id)).chain(more);
                    system.environment.iter().cloned().chain(own).collect::<Vec<_>>()
                };
                let database = setting("DATABASE_URL", postgres.create_database()?);
                let control =
                    Process::start("tbmq-control-plane", &[], &with("control", Some(database)), &["grpc"])?;
                let data = Process::start("tbmq-data-plane", &[], &with("data", None), &["mqtt"])?;
                system.servers = Some((kafka, postgres));
                let executor = system.spawn_executor()?;
                system.processes =
                    vec![("executor", executor), ("control plane", control), ("data plane", data)];
            }
        }
        Ok(system)
    }

    /// Starts the executor, or all in one, and waits until its admin endpoint listens.
    fn spawn_executor(&self) -> Result<Process> {
        let mut environment = self.environment.clone();
        if self.servers.is_none() {
            return Process::start("tbmq", &[], &environment, &["http"]);
        }
        environment.push(setting("TB_SERVICE_ID", "executor"));
        Process::start("tbmq-executor", &[], &environment, &["http"])
    }

    fn executor(&self) -> &Process {
        &self.processes[0].1
    }

    fn client(&self) -> Result<IntegrationServiceClient<Channel>> {
        let channel = Channel::from_shared(format!("http://{}", self.grpc))?.connect_lazy();
        Ok(IntegrationServiceClient::new(channel).max_decoding_message_size(64 << 20))
    }

    /// Waits until the kind is served.
    async fn ready(&self) -> Result<()> {
        let mut client = self.client()?;
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let kinds = client.list_kinds(tbmq_proto::control::ListKindsRequest {}).await;
            if kinds.is_ok_and(|kinds| {
                kinds
                    .into_inner()
                    .kinds
                    .iter()
                    .any(|kind| kind.name == "HTTP" && !kind.service_ids.is_empty())
            }) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no executor serves HTTP");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn usages(&self) -> Result<Vec<(&'static str, Usage)>> {
        let mut all = Vec::new();
        for (name, process) in &self.processes {
            all.push((*name, process.usage()?));
        }
        if let Some((kafka, _)) = &self.servers {
            all.push(("kafka", Usage::of(kafka.pid())?));
        }
        Ok(all)
    }

    /// What the executor's admin endpoint says of the first line that begins and goes on like this; 0 without one.
    async fn metric(&self, name: &str, label: &str) -> Result<u32> {
        let url = format!("http://{}/metrics", self.executor().address("http"));
        let text = reqwest::get(url).await?.text().await?;
        let line = text.lines().find(|line| line.starts_with(name) && line.contains(label));
        Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
    }

    /// Integrations that the executor says are started.
    async fn started(&self) -> Result<u32> {
        self.metric("integration_stats_gauge{", r#"state="success""#).await
    }

    async fn await_started(&self, count: u32) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let started = self.started().await.unwrap_or(0);
            if started == count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{started} of {count} integrations are started");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the control plane says that all run, reported by their executor after `since` (s, epoch).
    async fn await_active(&self, count: u32, since: Option<f64>) -> Result<()> {
        let mut client = self.client()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (mut active, mut page_token) = (0, String::new());
            loop {
                let request = ListIntegrationsRequest { page_size: 1_000, page_token, ..Default::default() };
                let page = client.list_integrations(request).await;
                let page = match page {
                    Ok(page) => page.into_inner(),
                    Err(status) if status.code() == Code::Unavailable => break,
                    Err(status) => return Err(status.into()),
                };
                active += page.integrations.iter().filter(|one| is_active(one, since)).count();
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            if active == count as usize {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{active} of {count} integrations are ACTIVE");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn stop(self) -> Result<()> {
        for (_, process) in self.processes {
            process.drain(Duration::from_mins(1))?;
        }
        tokio::task::spawn_blocking(move || drop(self.servers)).await?;
        Ok(())
    }
}

fn is_active(integration: &Integration, since: Option<f64>) -> bool {
    let Some(status) = &integration.status else { return false };
    let is_recent = |since: f64| {
        let mut told = status.holders.iter().filter(|holder| holder.role.eq_ignore_ascii_case("executor"));
        told.any(|holder| {
            holder.update_time.is_some_and(|at| at.seconds as f64 + f64::from(at.nanos) / 1e9 >= since)
        })
    };
    status.phase() == Phase::Active && since.is_none_or(is_recent)
}

fn told(usage: Usage) -> String {
    format!("{} MiB resident, {} threads", usage.resident_bytes >> 20, usage.threads)
}

async fn create(system: &System, sink: &HttpSink, options: &Options) -> Result<()> {
    let next = Arc::new(AtomicU32::new(0));
    let client = system.client()?;
    let before = system.usages()?;
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..options.callers {
        let (next, mut client, url, count) =
            (next.clone(), client.clone(), sink.url(""), options.integrations);
        callers.spawn(async move {
            let mut took = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(took);
                }
                let called = Instant::now();
                client.create_integration(request(number, &url)).await?;
                took.push(called.elapsed());
            }
        });
    }
    let mut latency = Histogram::<u64>::new_with_bounds(1, 3_600_000, 3)?;
    while let Some(caller) = callers.join_next().await {
        for took in caller?? {
            latency.saturating_record(took.as_millis() as u64);
        }
    }
    let elapsed = began.elapsed();
    println!(
        "created in {:.1} s, {:.0}/s with {} callers; a call ms p50 {}, p99 {}, max {}",
        elapsed.as_secs_f64(),
        f64::from(options.integrations) / elapsed.as_secs_f64(),
        options.callers,
        latency.value_at_quantile(0.5),
        latency.value_at_quantile(0.99),
        latency.max()
    );
    for ((name, now), (_, before)) in system.usages()?.into_iter().zip(before) {
        let cpu_ms = now.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e3;
        println!(
            "  {name}: {:.1} ms CPU an integration, {}",
            cpu_ms / f64::from(options.integrations),
            told(now)
        );
    }
    Ok(())
}

fn request(number: u32, url: &str) -> CreateIntegrationRequest {
    let integration = Integration {
        display_name: format!("scale {number:06}"),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json: format!(
            r#"{{"topicFilters":["scale/{number}"],"clientConfiguration":{{"restEndpointUrl":"{url}{number}","sendOnlyMsgPayload":true,"maxInMemoryBufferSizeInKb":256}},"delivery":{{"ackStrategy":"RETRY_ALL","retries":0}}}}"#
        ),
        ..Integration::default()
    };
    CreateIntegrationRequest { integration: Some(integration), ..Default::default() }
}

/// Sends every integration one message and waits until all have arrived.
async fn probe(system: &System, sink: &HttpSink, count: u32) -> Result<()> {
    /// Publishes that wait for their PUBACK.
    const WINDOW: u32 = 64;
    let seen = sink.count();
    let began = Instant::now();
    let mut client = Client::connect(system.mqtt, "scale", ProtocolVersion::V5).await?;
    let mut numbers = 0..count;
    loop {
        let some: Vec<_> = numbers.by_ref().take(WINDOW as usize).collect();
        for (index, number) in some.iter().enumerate() {
            let publish = Publish {
                dup: false,
                qos: Qos::AtLeastOnce,
                retain: false,
                topic: format!("scale/{number}").as_str().into(),
                packet_id: Some(index as u16 + 1),
                properties: Properties::NONE,
                payload: format!("probe {number}").into(),
            };
            client.send(&Packet::Publish(publish)).await?;
        }
        for _ in &some {
            match client.receive().await? {
                Packet::PubAck(ack) if !ack.reason.is_error() => {}
                other => bail!("{other:?} instead of a PUBACK"),
            }
        }
        if some.is_empty() {
            break;
        }
    }
    let acknowledged = began.elapsed();
    client.disconnect().await?;
    let different = |received: &[tbmq_harness::http_sink::Received]| {
        received[seen..].iter().map(|one| one.path.clone()).collect::<HashSet<_>>().len()
    };
    sink.wait_for(seen + count as usize, PATIENCE).await?;
    sink.wait_until(PATIENCE, |received| different(received) == count as usize).await?;
    println!(
        "  one message each: acknowledged after {:.2} s, all delivered after {:.2} s, {} duplicates",
        acknowledged.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        sink.count() - seen - count as usize
    );
    Ok(())
}

async fn idle(system: &System, options: &Options) -> Result<()> {
    // What the work before has left to do is not idleness.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = system.usages()?;
    tokio::time::sleep(Duration::from_secs(options.idle_secs)).await;
    println!("idle for {} s:", options.idle_secs);
    for ((name, now), (_, before)) in system.usages()?.into_iter().zip(before) {
        let cpu = now.cpu.saturating_sub(before.cpu).as_secs_f64() / options.idle_secs as f64;
        println!("  {name}: {:.1} % of a core, {}", cpu * 100.0, told(now));
    }
    Ok(())
}

/// Kills the executor, or all in one, starts it again, and waits until it runs everything.
async fn restore(system: &mut System, options: &Options, restart: u32) -> Result<()> {
    let (name, process) = system.processes.remove(0);
    process.kill()?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let began = Instant::now();
    let restored =
        system.servers.as_ref().map(|(kafka, _)| tokio::spawn(restored(kafka.bootstrap(), since, began)));
    let process = tokio::task::block_in_place(|| system.spawn_executor())?;
    system.processes.insert(0, (name, process));
    let listening = began.elapsed();
    let active = async {
        system.await_active(options.integrations, Some(since)).await?;
        anyhow::Ok(began.elapsed())
    };
    let started = async {
        system.await_started(options.integrations).await?;
        anyhow::Ok(began.elapsed())
    };
    let mqtt = async {
        while Client::connect(system.mqtt, "gate", ProtocolVersion::V5).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(began.elapsed())
    };
    let (started, active, mqtt) = tokio::try_join!(started, active, mqtt)?;
    print!("restart {restart} after kill -9: listening {:.2} s", listening.as_secs_f64());
    match restored {
        Some(restored) => {
            let (claimed, known) = restored.await??;
            print!(
                ", claimed {:.2} s, configuration known {:.2} s",
                claimed.as_secs_f64(),
                known.as_secs_f64()
            );
        }
        None => print!(", MQTT serves {:.2} s", mqtt.as_secs_f64()),
    }
    println!(", all started {:.2} s, all ACTIVE {:.2} s", started.as_secs_f64(), active.as_secs_f64());
    let restore_ms = system.metric("tbmq_executor_restore_milliseconds{", r#"type="HTTP""#).await?;
    println!(
        "  {name}: says that from the assignment to the known configuration it took {restore_ms} ms; {}",
        told(system.executor().usage()?)
    );
    Ok(())
}

/// When the executor's claims were on the bus (its partitions are assigned then), and when it had said that every
/// downlink partition is applied.
async fn restored(bootstrap: String, since: f64, began: Instant) -> Result<(Duration, Duration)> {
    let bus = KafkaBus::new(KafkaConfig::new(&bootstrap))?;
    let catalogue = Catalogue::default();
    let mut reader = bus.reader(ReaderConfig::new("bench-scale", None)).await?;
    let [claims, applied] = [catalogue.owners().name, catalogue.node_applied().name];
    reader.add(&TopicPartition::new(claims.as_str(), 0), Start::Earliest);
    reader.add(&TopicPartition::new(applied.as_str(), 0), Start::Earliest);
    let since_ms = (since * 1e3) as i64;
    let mut claimed = None;
    let waiting = async {
        loop {
            let ReaderEvent::Batch { partition, records } = reader.next().await else { continue };
            for record in records.into_iter().filter(|record| record.timestamp_ms >= since_ms) {
                let value = record.value.unwrap_or_default();
                if *partition.topic == *claims {
                    OwnerClaim::decode(value)?;
                    claimed.get_or_insert_with(|| began.elapsed());
                } else {
                    let node = NodeApplied::decode(value)?;
                    let downlink = |topic: &str| topic.contains("downlink.http");
                    let known = node.positions.iter().filter(|position| downlink(&position.topic)).count();
                    if known == DOWNLINK_PARTITIONS as usize && node.service_id == "executor" {
                        return anyhow::Ok(began.elapsed());
                    }
                }
            }
        }
    };
    let known = tokio::time::timeout(PATIENCE, waiting).await.context("nothing is restored")??;
    Ok((claimed.context("applied without a claim")?, known))
}
