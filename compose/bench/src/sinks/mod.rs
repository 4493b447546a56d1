//! `bench sinks`: from a filled message topic to each kind of sink, everything on this machine, with real Kafka as the bus.
//!
//! The topic is filled through the data plane while no executor runs. Then the executor is started; rates count from the
//! first arrival at the far end to the last, by the far end's clock, and CPU time over the same stretch. The floor is
//! measured before each, in the same way, against the same far end.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use serde_json::json;
use tbmq_e2e::{
    api::Api,
    deployment::{Deployment, Layout, Plane},
};
use tbmq_harness::{
    kafka::{Kafka, KafkaOptions},
    ledger::Mark,
    postgres::Postgres,
    process::Usage,
};
use tbmq_proto::control::Integration;
use tokio::task::{JoinSet, block_in_place};

use crate::{
    far_end::{FarEnd, KafkaSettings, Kind},
    floor,
    page::{self, median},
    peer::Seen,
    wire::Wire,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Where to.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "http,mqtt,mosquitto,kafka")]
    kinds: Vec<Kind>,
    /// Messages in the topic; 200,000 for HTTP and Mosquitto, 400,000 for the counting broker and 1,000,000 for Kafka when
    /// absent.
    #[arg(long, value_parser = clap::value_parser!(u64).range(PUBLISHERS..))]
    messages: Option<u64>,
    /// Bytes per payload.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// MQTT topics that the messages are spread over: sinks that keep order have one message of each in flight.
    #[arg(long, default_value_t = 10_000)]
    topics: u64,
    /// Shards, and so partitions, of the integration.
    #[arg(long, default_value_t = 1)]
    shards: u32,
    /// Messages in flight: the executor's window, and what the floors of HTTP and MQTT have in flight. The floor of Kafka
    /// has no such limit. Without it each kind has its own: Kafka 4,096, the others 128.
    #[arg(long)]
    window: Option<usize>,
    /// Measurements of each kind; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Further settings of the executor, as `NAME=value`.
    #[arg(long = "set", value_parser = assignment)]
    settings: Vec<(String, String)>,
    #[command(flatten)]
    kafka: KafkaSettings,
    /// Writes what was measured into this file, over the section that is there: `compose/bench/RESULTS.md`.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// Begins the section of the page.
const HEADING: &str = "## From a filled message topic to each kind of sink";

/// Clients that fill the topic.
const PUBLISHERS: u64 = 4;

/// What they have unacknowledged each, at most: messages, and bytes of all together (the data plane's budget of a topic is
/// 4 MiB).
const FILL_WINDOW: u64 = 200;
const FILL_BYTES: u64 = 2 << 20;

/// `NAME=value`.
pub(crate) fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The MQTT topic of a message.
pub(crate) fn topic(number: u64, topics: u64) -> String {
    format!("bench/{}", number % topics.max(1))
}

/// What one measurement says; CPU times in µs per message.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    floor_rate: f64,
    floor_us: f64,
    floor_peer_us: f64,
    rate: f64,
    executor_us: f64,
    /// The same from the start of the process.
    executor_whole_us: f64,
    executor_peak_mib: f64,
    peer_us: f64,
    subscriber_us: f64,
    bus_us: f64,
}

impl Figures {
    fn rate_ratio(&self) -> f64 {
        self.rate / self.floor_rate
    }

    fn cpu_ratio(&self) -> f64 {
        self.executor_us / self.floor_us
    }
}

struct Bench {
    options: Options,
    kafka: Kafka,
    deployment: Deployment,
    api: Api,
    /// The sequence that the next messages begin with.
    next: u64,
}

impl Options {
    fn messages(&self, kind: Kind) -> u64 {
        self.messages.unwrap_or_else(|| kind.messages())
    }
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let kafka = tokio::task::spawn_blocking(|| Kafka::start(KafkaOptions::default())).await??;
    let postgres = tokio::task::spawn_blocking(Postgres::start).await??;
    let window = options.window.map(|window| ("TBMQ_IE_MSG_WINDOW_MESSAGES".to_owned(), window.to_string()));
    let mut layout = Layout::default();
    for (name, value) in window.iter().chain(&options.settings) {
        layout = layout.own_setting(Plane::Executor, name, value);
    }
    let deployment = block_in_place(|| layout.start(&kafka, &postgres))?;
    let api = deployment.api()?;
    let mut bench = Bench { options, kafka, deployment, api, next: 0 };
    let mut medians = Vec::new();
    for kind in bench.options.kinds.clone() {
        let mut far_end = FarEnd::start(kind).await?;
        let mut rounds = Vec::new();
        for round in 1..=bench.options.rounds {
            let figures = bench.round(kind, &mut far_end).await;
            let figures = figures.with_context(|| format!("{}, round {round}", kind.title()))?;
            println!("{}, round {round}: {figures:.1?}", kind.title());
            rounds.push(figures);
        }
        medians.push((kind, rounds));
        block_in_place(|| drop(far_end));
    }
    block_in_place(|| bench.deployment.drain_all())?;
    let section = section(&bench.options, &medians)?;
    println!("\n{section}");
    if let Some(file) = &bench.options.write {
        page::write(file, HEADING, &section)?;
    }
    tokio::task::spawn_blocking(move || drop((bench.kafka, postgres))).await?;
    Ok(())
}

/// The section for `RESULTS.md`: medians over the rounds.
fn section(options: &Options, kinds: &[(Kind, Vec<Figures>)]) -> Result<String> {
    let Options { size, topics, shards, window, rounds, settings, kafka, .. } = options;
    let window = window.map_or("128 (Kafka: 4,096)".to_owned(), |window| window.to_string());
    let mut text = String::new();
    writeln!(
        text,
        "{HEADING}\n\n`cargo xtask bench sinks`: messages of {size} bytes on {topics} \
         MQTT topics lie in a message topic of {shards} partition(s) before the executor is started. Rates count from the first \
         arrival to the last, CPU µs are per message over the same stretch; medians of {rounds} round(s), each with its floor: reqwest, \
         a loop over the workspace's MQTT codec, or the bare Kafka producer, with the same messages to the same far end. At most {window} \
         messages in flight; the bare Kafka producer alone has no such limit. Kafka: acks {}, linger {} ms, batches of {} bytes, a topic of one \
         partition on a second server. Executor: {settings:?}. Nothing was lost.\n",
        kafka.acks, kafka.linger_ms, kafka.batch_size
    )?;
    writeln!(
        text,
        "| sink | messages | messages/s | of the floor | executor CPU µs | of the floor | executor peak MiB | far end CPU µs | \
         bus CPU µs | floor: messages/s | client CPU µs | far end CPU µs |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for (kind, rounds) in kinds {
        let median = |value: fn(&Figures) -> f64| median(rounds.iter().map(value));
        let subscriber = median(|figures| figures.subscriber_us);
        let beside = if subscriber > 0.0 { format!(" + {subscriber:.1}") } else { String::new() };
        writeln!(
            text,
            "| {} | {} | {:.0} | {:.2} | {:.1} | {:.2} | {:.0} | {:.1}{beside} | {:.1} | {:.0} | {:.1} | {:.1} |",
            kind.title(),
            options.messages(*kind),
            median(|figures| figures.rate),
            median(Figures::rate_ratio),
            median(|figures| figures.executor_us),
            median(Figures::cpu_ratio),
            median(|figures| figures.executor_peak_mib),
            median(|figures| figures.peer_us),
            median(|figures| figures.bus_us),
            median(|figures| figures.floor_rate),
            median(|figures| figures.floor_us),
            median(|figures| figures.floor_peer_us),
        )?;
    }
    Ok(text)
}

/// CPU time of everything that is looked at.
struct Sample {
    client: Duration,
    peer: [Duration; 2],
    bus: Duration,
}

impl Sample {
    fn now(client: u32, far_end: &FarEnd, bus: &Kafka) -> Result<Self> {
        let peer = far_end.cpu()?;
        Ok(Self { client: Usage::of(client)?.cpu, peer, bus: Usage::of(bus.pid())?.cpu })
    }

    /// What has been used since: client, far end, subscriber, bus; µs per message.
    fn since(&self, before: &Self, messages: u64) -> [f64; 4] {
        let spent = |now: Duration, before: Duration| us(now.saturating_sub(before), messages);
        [
            spent(self.client, before.client),
            spent(self.peer[0], before.peer[0]),
            spent(self.peer[1], before.peer[1]),
            spent(self.bus, before.bus),
        ]
    }
}

fn us(time: Duration, messages: u64) -> f64 {
    time.as_secs_f64() * 1e6 / messages as f64
}

fn rate(seen: &Seen) -> f64 {
    seen.arrived as f64 / seen.elapsed.as_secs_f64().max(1e-3)
}

fn check(what: &str, seen: &Seen, expected: u64) -> Result<()> {
    let lost = expected.saturating_sub(seen.different);
    ensure!(lost == 0, "{lost} of {expected} messages were lost: {seen:?}");
    if seen.arrived > seen.different {
        println!("  {what}: {} messages came twice", seen.arrived - seen.different);
    }
    Ok(())
}

impl Bench {
    async fn round(&mut self, kind: Kind, far_end: &mut FarEnd) -> Result<Figures> {
        let mut figures = Figures::default();
        far_end.renew().await?;
        self.floor(kind, far_end, &mut figures).await.context("the floor")?;
        far_end.renew().await?;
        self.through(kind, far_end, &mut figures).await?;
        Ok(figures)
    }

    /// The sequence that the next so many messages begin with.
    fn take(&mut self, sequences: u64) -> u64 {
        let first = self.next;
        self.next += sequences;
        first
    }

    async fn floor(&mut self, kind: Kind, far_end: &mut FarEnd, figures: &mut Figures) -> Result<()> {
        let count = self.options.messages(kind);
        let first = self.take(count);
        let size = self.options.size;
        let payload = |sequence| Bytes::from(Mark::new(0, sequence).payload(size));
        let payloads: Arc<[Bytes]> = (first..first + count).map(payload).collect();
        let (address, window) = (far_end.address()?, self.options.window.unwrap_or(128));
        far_end.expect(count, first).await?;
        let client = floor::client()?;
        let own = std::process::id();
        let before = Sample::now(own, far_end, &self.kafka)?;
        match far_end {
            FarEnd::Kafka(topic) => {
                let (name, settings) = (topic.name.clone(), self.options.kafka.clone());
                let produce = move || floor::produce(&address.to_string(), &name, &payloads, &settings);
                tokio::task::spawn_blocking(produce).await??;
            }
            _ if kind == Kind::Http => {
                floor::post(&client, &format!("http://{address}/in"), &payloads, window).await?;
            }
            _ => floor::publish(address, &payloads, window, self.options.topics).await?,
        }
        // The client has every acknowledgement; what a subscriber still lacks is no work of its.
        let client = Usage::of(own)?.cpu;
        far_end.first().await?;
        let seen = far_end.done().await?;
        let after = Sample { client, ..Sample::now(own, far_end, &self.kafka)? };
        check("floor", &seen, count)?;
        figures.floor_rate = rate(&seen);
        [figures.floor_us, figures.floor_peer_us, _, _] = after.since(&before, count);
        Ok(())
    }

    /// From the message topic through the executor.
    async fn through(&mut self, kind: Kind, far_end: &mut FarEnd, figures: &mut Figures) -> Result<()> {
        let integration = Integration {
            display_name: format!("bench {}", self.next),
            r#type: kind.name().to_owned(),
            enabled: true,
            configuration_json: json!({
                "topicFilters": ["bench/#"],
                "shards": self.options.shards,
                "clientConfiguration": far_end.client_configuration(kind, &self.options.kafka)?,
                "delivery": { "ackStrategy": "RETRY_ALL", "retries": 0 },
            })
            .to_string(),
            ..Integration::default()
        };
        let integration = self.api.create_active(integration).await?;
        block_in_place(|| self.deployment.drain(Plane::Executor))?;
        let each = self.options.messages(kind) / PUBLISHERS;
        let count = each * PUBLISHERS;
        let first = self.take(each);
        fill(self.deployment.mqtt(), first, each, &self.options).await.context("filling the topic")?;

        far_end.expect(count, first).await?;
        let began = Instant::now();
        block_in_place(|| self.deployment.start(Plane::Executor))?;
        let pid = self.deployment.process(Plane::Executor)?.pid();
        let early = far_end.first().await?;
        let before = Sample::now(pid, far_end, &self.kafka)?;
        let lead = began.elapsed();
        let seen = far_end.done().await?;
        let after = Sample::now(pid, far_end, &self.kafka)?;
        check("executor", &seen, count)?;
        println!(
            "  the first message arrived {lead:.2?} after the start of the process, the last {:.2?} later",
            seen.elapsed
        );
        figures.rate = rate(&seen);
        [figures.executor_us, figures.peer_us, figures.subscriber_us, figures.bus_us] =
            after.since(&before, count.saturating_sub(early).max(1));
        figures.executor_whole_us = us(after.client, count);
        figures.executor_peak_mib = Usage::of(pid)?.peak_bytes as f64 / f64::from(1 << 20);
        self.api.delete(&integration.name).await?;
        Ok(())
    }
}

/// Publishes so many messages from each publisher, and waits until all are acknowledged: they are in the topic then.
async fn fill(broker: SocketAddr, first: u64, each: u64, options: &Options) -> Result<()> {
    let (size, topics) = (options.size, options.topics);
    let window = (FILL_BYTES / PUBLISHERS / size.max(1) as u64).clamp(1, FILL_WINDOW);
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        publishers.spawn(async move {
            let mut wire = Wire::connect(broker, &format!("bench-fill-{publisher}")).await?;
            let message = |number: u64| {
                let mark = Mark::new(publisher as u32, first + number);
                // Publishers use different topics.
                (topic(number * PUBLISHERS + publisher, topics), Bytes::from(mark.payload(size)))
            };
            wire.publish(each, window, message).await
        });
    }
    while let Some(result) = publishers.join_next().await {
        result??;
    }
    Ok(())
}
