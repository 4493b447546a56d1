//! `bench auth`: a data plane alone with a million credentials: how soon it serves, what they cost in memory, and how long
//! a client waits for its CONNACK once its password is known to be right; and what it means for others that passwords are
//! guessed.
//!
//! All have the same password and salt, because to make so many hashes would take hours; nothing is the cheaper for it:
//! what is remembered of a password belongs to one credential.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hdrhistogram::Histogram;
use prost::Message as _;
use tbmq_bus::{
    Bus, Header, Outgoing, Writer, WriterConfig,
    kafka::{KafkaBus, KafkaConfig},
    spec_of, write,
};
use tbmq_e2e::deployment::Plane;
use tbmq_harness::{
    client::Client,
    kafka::{Kafka, KafkaOptions},
    postgres::free_port,
    process::{Process, Usage},
};
use tbmq_mqtt::packet::{Connect, ProtocolVersion, ReasonCode};
use tbmq_proto::{
    topic::{Catalogue, REVISION_HEADER, Topic},
    wire::{
        AuthClientType, AuthProvider, AuthRule, AuthSetting, BasicProof, CredentialsRecord,
        auth_rule::{self, Action, Effect},
        auth_setting::Setting,
        credentials_record::Proof,
    },
};
use tokio::task::JoinSet;

mod refusals;
mod siege;

use refusals::Refusals;
use siege::Siege;

/// Begins the section of the page.
const HEADING: &str = "## Who may connect";

const PASSWORD: &str = "correct horse battery staple";

/// Records on their way to the bus.
const WRITING_MAX: usize = 4096;

/// First passwords that are proved at once: fewer than one address may have waiting.
const PROVING_MAX: usize = 50;

/// Seconds in which passwords are guessed.
const SIEGE_S: u32 = 10;

#[derive(Args)]
pub(crate) struct Options {
    /// Credentials that there are.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    credentials: u32,
    /// Clients that connect, again and again, each with a credential of its own.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Connects per second.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// For how many seconds; a password is remembered for a minute.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=30))]
    seconds: u32,
    /// Passwords that are guessed per second.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    guesses: u32,
    /// Writes what was measured into this file, over the section that is there: `compose/bench/RESULTS.md`.
    #[arg(long)]
    write: Option<PathBuf>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(options.clients <= options.credentials, "each client has a credential");
    let kafka = tokio::task::spawn_blocking(|| Kafka::start(KafkaOptions::default())).await??;
    let catalogue = Catalogue::default();
    let bus = KafkaBus::new(KafkaConfig::new(kafka.bootstrap()))?;
    let writer = bus.writer(WriterConfig::new("bench-auth")).await?;
    enable(&*bus, &*writer, &catalogue.auth_settings()).await?;
    let credentials = catalogue.credentials();
    bus.admin().create_topic(&spec_of(&credentials, 1)).await?;

    let (empty, _) = Broker::start(&kafka).await?;
    let before_bytes = empty.usage()?.resident_bytes;
    empty.stop().await?;
    println!("writing {} credentials", options.credentials);
    fill(&*writer, &credentials.name, options.credentials).await?;
    let (broker, start) = Broker::start(&kafka).await?;
    let resident_bytes = broker.usage()?.resident_bytes;

    for password in [None, Some("wrong")] {
        let reason = broker.connect(0, password).await?.1;
        ensure!(reason == ReasonCode::NotAuthorized, "{password:?} is answered with {reason:?}");
    }
    let connect = |number| broker.connect(number, Some(PASSWORD));
    let proved: Vec<_> =
        stream::iter(0..options.clients).map(connect).buffer_unordered(PROVING_MAX).try_collect().await?;
    let refused = proved.iter().find(|(_, reason)| *reason != ReasonCode::Success);
    ensure!(refused.is_none(), "a right password is refused: {refused:?}");
    let cpu_before = broker.usage()?.cpu;
    let took = broker.paced(&options).await?;
    let cpu = broker.usage()?.cpu.saturating_sub(cpu_before);
    let refusals = Refusals::measure(&broker, options.credentials).await?;
    let siege = Siege::lay(&broker, options.guesses, SIEGE_S, options.credentials).await?;
    broker.stop().await?;

    let report =
        Report { options: &options, start, before_bytes, resident_bytes, took, cpu, refusals, siege };
    println!("\n{report}");
    if let Some(file) = &options.write {
        crate::page::write(file, HEADING, &report)?;
    }
    Ok(())
}

async fn put(writer: &dyn Writer, topic: &str, key: &str, value: &[u8]) -> Result<()> {
    let headers = [Header::text(REVISION_HEADER, "1")];
    let record =
        Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(value), headers: &headers };
    write(writer, &writer.topic(topic), record).await?;
    Ok(())
}

/// Has clients asked for user name and password.
async fn enable(bus: &dyn Bus, writer: &dyn Writer, topic: &Topic) -> Result<()> {
    bus.admin().create_topic(&spec_of(topic, 1)).await?;
    let provider = AuthProvider {
        r#type: "MQTT_BASIC".to_owned(),
        enabled: true,
        configuration_json: r#"{"type":"MQTT_BASIC","authStrategy":"CLIENT_ID_AND_USERNAME"}"#.to_owned(),
        sealed: None,
    };
    let setting = AuthSetting { revision: 1, setting: Some(Setting::Provider(provider)) };
    put(writer, &topic.name, "provider/MQTT_BASIC", &setting.encode_to_vec()).await
}

fn user_name(number: u32) -> String {
    format!("device-{number:07}")
}

/// Writes credentials as a control plane does.
async fn fill(writer: &dyn Writer, topic: &str, count: u32) -> Result<()> {
    let hash = tbmq_auth::password::hash(PASSWORD.as_bytes(), *b"16 bytes of salt");
    let rule = AuthRule {
        effect: Effect::Allow.into(),
        action: Action::Both.into(),
        qos_mask: 0,
        retained: None,
        topic: Some(auth_rule::Topic::Filter("devices/${clientId}/#".to_owned())),
    };
    let one = |number: u32| {
        let proof = BasicProof {
            client_id: None,
            user_name: Some(user_name(number)),
            password_hash: Some(hash.clone()),
            rules: vec![rule.clone()],
        };
        let id = format!("00000000-0000-4000-8000-{number:012x}");
        let record = CredentialsRecord {
            id: id.clone(),
            name: format!("Device {number}"),
            client_type: AuthClientType::Device.into(),
            revision: 1,
            proof: Some(Proof::Basic(proof)),
        };
        async move { put(writer, topic, &id, &record.encode_to_vec()).await }
    };
    stream::iter(0..count).map(one).buffer_unordered(WRITING_MAX).try_for_each(|()| async { Ok(()) }).await
}

/// A data plane.
struct Broker {
    process: Process,
    address: SocketAddr,
}

impl Broker {
    /// Starts it, and says how long it took until it served clients.
    async fn start(kafka: &Kafka) -> Result<(Self, Duration)> {
        let bootstrap = kafka.bootstrap();
        tokio::task::spawn_blocking(move || {
            let (mqtt, http) = (free_port()?.to_string(), free_port()?.to_string());
            let environment = [
                ("TB_KAFKA_SERVERS", &*bootstrap),
                ("TB_SERVICE_ID", "bench"),
                ("LISTENER_TCP_BIND_ADDRESS", "127.0.0.1"),
                ("LISTENER_TCP_BIND_PORT", &*mqtt),
                ("LISTENER_WS_ENABLED", "false"),
                ("HTTP_BIND_ADDRESS", "127.0.0.1"),
                ("HTTP_BIND_PORT", &*http),
            ];
            let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let began = Instant::now();
            let process = Process::start(Plane::Data.binary(), &[], &environment, Plane::Data.schemes())?;
            let address = process.address("mqtt");
            Ok((Self { process, address }, began.elapsed()))
        })
        .await?
    }

    fn usage(&self) -> Result<Usage> {
        self.process.usage()
    }

    async fn stop(self) -> Result<()> {
        tokio::task::spawn_blocking(move || self.process.drain(Duration::from_secs(30))).await?
    }

    /// From the beginning of a connection to its CONNACK, and what that says.
    async fn connect(&self, number: u32, password: Option<&str>) -> Result<(Duration, ReasonCode)> {
        connect(self.address, number, password).await
    }

    /// Connects at a fixed rate, whether or not those before have their answers.
    async fn paced(&self, options: &Options) -> Result<Histogram<u64>> {
        let mut took = Histogram::new(3)?;
        let (address, clients) = (self.address, options.clients);
        let attempt = move |number: u32| connect(address, number % clients, Some(PASSWORD));
        paced(options.rate, options.seconds, attempt, |(elapsed, reason)| {
            ensure!(reason == ReasonCode::Success, "a known password is answered with {reason:?}");
            Ok(took.record(elapsed.as_micros() as u64)?)
        })
        .await?;
        Ok(took)
    }
}

/// Makes attempts at a fixed rate, whether or not those before have ended.
async fn paced<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
    rate: u32,
    seconds: u32,
    attempt: impl Fn(u32) -> F,
    mut record: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let mut attempts = JoinSet::new();
    let began = tokio::time::Instant::now();
    for number in 0..rate * seconds {
        tokio::time::sleep_until(began + Duration::from_secs(1) * number / rate).await;
        attempts.spawn(attempt(number));
        while let Some(ended) = attempts.try_join_next() {
            record(ended??)?;
        }
    }
    while let Some(ended) = attempts.join_next().await {
        record(ended??)?;
    }
    Ok(())
}

fn login(number: u32, password: Option<&str>) -> Connect {
    let name = user_name(number);
    Connect {
        username: Some(name.as_str().into()),
        password: password.map(|password| password.as_bytes().to_vec().into()),
        ..Connect::new(ProtocolVersion::V5, &*name)
    }
}

async fn connect(address: SocketAddr, number: u32, password: Option<&str>) -> Result<(Duration, ReasonCode)> {
    let began = Instant::now();
    let (client, connack) = Client::connect_with(address, login(number, password)).await?;
    let elapsed = began.elapsed();
    if connack.reason == ReasonCode::Success {
        client.disconnect().await?;
    }
    Ok((elapsed, connack.reason))
}

struct Report<'a> {
    options: &'a Options,
    start: Duration,
    before_bytes: u64,
    resident_bytes: u64,
    took: Histogram<u64>,
    cpu: Duration,
    refusals: Refusals,
    siege: Siege,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, start, before_bytes, resident_bytes, took, cpu, refusals, siege } = self;
        let grown = resident_bytes.saturating_sub(*before_bytes);
        let each = grown as f64 / f64::from(options.credentials);
        let ms = |quantile| took.value_at_quantile(quantile) as f64 / 1e3;
        writeln!(
            f,
            "{HEADING}\n\n`cargo xtask bench auth`: a data plane alone over Kafka with {} credentials of user name, password \
             (argon2id) and a rule with the client id. *Start* is from the start of the process until it serves clients, with all of \
             them read. Then {} of them connect in turn, {} a second for {} s, each over a connection of its own and whether or \
             not those before have their answers, after each has connected once; the time is from the beginning of the \
             TCP connection to CONNACK. A wrong password, and none, were refused before. Then passwords are guessed: one at a time and \
             of no user twice, which tells whether a refusal takes as long where there is no such user; and many at once.\n",
            options.credentials, options.clients, options.rate, options.seconds
        )?;
        writeln!(f, "| | target, of 1,000,000 credentials | |\n|---|---|---|")?;
        writeln!(f, "| start | 30 s | **{:.1} s** |", start.as_secs_f64())?;
        writeln!(
            f,
            "| memory of each | 300 bytes | **{each:.0} bytes** ({} MiB resident) |",
            resident_bytes >> 20
        )?;
        writeln!(
            f,
            "| CONNECT to CONNACK, {} connects/s | p99 5 ms | p50 {:.1}, **p99 {:.1}**, max {:.1} ms |",
            options.rate,
            ms(0.5),
            ms(0.99),
            took.max() as f64 / 1e3
        )?;
        writeln!(
            f,
            "| CPU of the broker for each | | {:.0} µs |",
            cpu.as_secs_f64() * 1e6 / took.len().max(1) as f64
        )?;
        write!(f, "{refusals}")?;
        let Siege { wrong, busy, quiet, during, grown_bytes } = siege;
        let p99 = |took: &Histogram<u64>| took.value_at_quantile(0.99) as f64 / 1e3;
        writeln!(
            f,
            "| guesses of passwords, {}/s for {SIEGE_S} s | others lose nothing | {wrong} hashed, {busy} answered 0x97; memory grew by \
             {} MiB at most |",
            options.guesses,
            grown_bytes >> 20
        )?;
        writeln!(
            f,
            "| another client's messages meanwhile | all arrive | **all {}**, p99 {:.1} ms (before: {:.1} ms) |",
            during.len(),
            p99(during),
            p99(quiet)
        )
    }
}
