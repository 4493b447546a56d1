//! `bench e2e`: MQTT QoS 1 → bus → executor → HTTP or Kafka, everything on this machine.
//!
//! Each round measures each sink in turn: the floor (the bare client library with the same bodies against the same far
//! end, which no delivery can undercut), then as fast as it goes, then at fixed rates for latencies. What is not yet
//! compiled, connected or grown is so after a warm-up that does not count.

mod load;
mod report;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
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

use self::{
    load::{Load, Spread},
    report::{Paced, Report, Round, Row},
};
use crate::{
    far_end::{FarEnd, KafkaSettings, Kind, Topic},
    floor, page,
    sinks::assignment,
};

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// What the messages go through.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kafka,embedded")]
    bus: Vec<Through>,
    /// What they go to.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "http,kafka")]
    sinks: Vec<Kind>,
    /// Numbers of integrations, rising: up to ten have the same load, more have one after Zipf. Latencies are measured with
    /// the first.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    integrations: Vec<u32>,
    /// Messages in all as fast as it goes; 200,000 for HTTP and 400,000 for Kafka when absent.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1_000..))]
    messages: Option<u64>,
    /// Messages before that, which do not count.
    #[arg(long, default_value_t = 200_000)]
    warm_up: u64,
    /// Bytes per payload.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Publishers.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    publishers: u32,
    /// Unacknowledged messages of each.
    #[arg(long, default_value_t = 50)]
    window: usize,
    /// MQTT topics that the messages are spread over: Kafka integrations have one message of each in flight.
    #[arg(long, default_value_t = 10_000)]
    topics: u64,
    /// Messages per second for latencies.
    #[arg(long, value_delimiter = ',', default_value = "500,12500,22500")]
    rates: Vec<f64>,
    /// Seconds at each rate; 0: none.
    #[arg(long, default_value_t = 20.0)]
    paced_s: f64,
    /// Seconds at each of those rates that do not count, before a sink's first round: Kafka's virtual machine compiles for
    /// minutes.
    #[arg(long, default_value_t = 20.0)]
    warm_up_s: f64,
    /// Rounds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long records of the Kafka sink, and of its floor, wait for others, ms.
    #[arg(long, default_value_t = 1)]
    linger_ms: u32,
    /// Further settings of all planes, as `NAME=value`.
    #[arg(long = "set", value_parser = assignment)]
    settings: Vec<(String, String)>,
    /// Writes what was measured into this file, over the section that is there: `compose/bench/RESULTS.md`.
    #[arg(long)]
    write: Option<PathBuf>,
}

impl Options {
    /// How the Kafka sink and its floor produce.
    fn kafka(&self) -> KafkaSettings {
        KafkaSettings { acks: "all".to_owned(), linger_ms: self.linger_ms, batch_size: 131_072 }
    }
}

/// A bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Through {
    /// Real Kafka; planes apart.
    Kafka,
    /// The embedded log of the all-in-one.
    Embedded,
}

impl Through {
    fn title(self) -> &'static str {
        match self {
            Self::Kafka => "Kafka",
            Self::Embedded => "embedded",
        }
    }
}

/// How long the data plane lets a message wait for others on its way to Kafka.
const LINGER_MS: u64 = 1;

/// Up to so many integrations, each gets the same load.
const SAME_LOAD: u32 = 10;

/// Create calls in flight.
const CREATING: usize = 32;

pub(crate) async fn run(options: Options) -> Result<()> {
    let mut report = Report::new(&options);
    for through in options.bus.clone() {
        let mut bench = Bench::start(options.clone(), through).await?;
        let rows = bench.measure().await;
        report.rows.extend(rows?);
        bench.end().await?;
    }
    println!("\n{report}");
    if let Some(file) = &options.write {
        page::write(file, report::HEADING, &report)?;
    }
    ensure!(report.lost() == 0, "{} messages were lost", report.lost());
    Ok(())
}

struct Bench {
    options: Options,
    through: Through,
    /// The Kafka server, which is also what a Kafka sink writes to.
    kafka: Option<Arc<Kafka>>,
    postgres: Option<Postgres>,
    deployment: Deployment,
    api: Api,
    /// The sequence that the next messages begin with.
    next: u64,
    warm: Vec<Kind>,
}

impl Bench {
    async fn start(options: Options, through: Through) -> Result<Self> {
        if through == Through::Embedded {
            let settings: Vec<(&str, &str)> =
                options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let deployment = block_in_place(|| Deployment::standalone_with(&settings))?;
            let api = deployment.api()?;
            return Ok(Self {
                options,
                through,
                kafka: None,
                postgres: None,
                deployment,
                api,
                next: 0,
                warm: vec![],
            });
        }
        let kafka = block_in_place(|| Kafka::start(KafkaOptions::as_deployed()))?;
        let postgres = block_in_place(Postgres::start)?;
        let mut layout = Layout::default();
        for (name, value) in &options.settings {
            layout = layout.setting(name, value);
        }
        let deployment = block_in_place(|| layout.start(&kafka, &postgres))?;
        let api = deployment.api()?;
        let (kafka, postgres) = (Some(Arc::new(kafka)), Some(postgres));
        Ok(Self { options, through, kafka, postgres, deployment, api, next: 0, warm: vec![] })
    }

    async fn end(mut self) -> Result<()> {
        block_in_place(|| self.deployment.drain_all())?;
        block_in_place(|| drop((self.deployment, self.kafka, self.postgres)));
        Ok(())
    }

    fn processes(&self) -> Result<Vec<(&'static str, u32)>> {
        let pid = |plane| Ok::<_, anyhow::Error>(self.deployment.process(plane)?.pid());
        let Some(kafka) = &self.kafka else { return Ok(vec![("tbmq", pid(Plane::All)?)]) };
        Ok(vec![
            ("data plane", pid(Plane::Data)?),
            ("executor", pid(Plane::Executor)?),
            ("control plane", pid(Plane::Control)?),
            ("Kafka", kafka.pid()),
        ])
    }

    /// All numbers of integrations; for each the rounds, in each of which every sink has its turn.
    async fn measure(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for count in self.options.integrations.clone() {
            let mut sinks = Vec::new();
            for kind in self.options.sinks.clone() {
                let far_end = match (kind, &self.kafka) {
                    (Kind::Kafka, Some(kafka)) => FarEnd::Kafka(Topic::on(kafka.clone(), "bench").await?),
                    // There is no server that it could write to.
                    (Kind::Kafka, None) => continue,
                    _ => FarEnd::start(kind).await?,
                };
                let prefix = format!("bench/{kind:?}/{count}");
                let spread = Spread::new(&prefix, count, self.options.topics);
                let names = self.create(kind, &far_end, &spread, count).await?;
                sinks.push((kind, far_end, spread, names, Vec::new()));
            }
            for round in 1..=self.options.rounds {
                for (kind, far_end, spread, _, rounds) in &mut sinks {
                    let title = format!("{} through {}", kind.title(), self.through.title());
                    let figures = self.round(*kind, far_end, spread, count).await;
                    let figures =
                        figures.with_context(|| format!("{title}, {count} integrations, round {round}"))?;
                    println!("{title}, {count} integrations, round {round}: {figures}");
                    rounds.push(figures);
                }
            }
            for (kind, far_end, _, names, rounds) in sinks {
                for name in names {
                    self.api.delete(&name).await?;
                }
                block_in_place(|| drop(far_end));
                rows.push(Row { sink: kind.title(), bus: self.through.title(), integrations: count, rounds });
            }
        }
        Ok(rows)
    }

    /// Creates integrations and waits until all are active.
    async fn create(&self, kind: Kind, far_end: &FarEnd, spread: &Spread, count: u32) -> Result<Vec<String>> {
        let client = far_end.client_configuration(kind, &self.options.kafka())?;
        let mut creating = JoinSet::new();
        let mut names = Vec::new();
        for number in 0..count {
            if creating.len() >= CREATING {
                names.push(creating.join_next().await.context("some are under way")???);
            }
            let integration = Integration {
                display_name: format!("bench {kind:?} {count} {number}"),
                r#type: kind.name().to_owned(),
                enabled: true,
                configuration_json: json!({
                    "topicFilters": [spread.filter(number)],
                    "clientConfiguration": client,
                    "delivery": { "ackStrategy": "RETRY_ALL", "retries": 0 },
                })
                .to_string(),
                ..Integration::default()
            };
            let mut api = self.api.clone();
            creating.spawn(async move {
                let created = api.create_active(integration).await?;
                anyhow::Ok(created.name)
            });
        }
        while let Some(created) = creating.join_next().await {
            names.push(created??);
        }
        Ok(names)
    }

    async fn round(
        &mut self,
        kind: Kind,
        far_end: &mut FarEnd,
        spread: &Spread,
        count: u32,
    ) -> Result<Round> {
        let load = Load {
            publishers: self.options.publishers,
            window: self.options.window,
            size: self.options.size,
            spread: spread.clone(),
        };
        if !self.warm.contains(&kind) {
            self.warm.push(kind);
            self.through(far_end, &load, self.options.warm_up, None).await.context("the warm-up")?;
            if self.is_paced(count) {
                for rate in self.options.rates.clone() {
                    let messages = (rate * self.options.warm_up_s) as u64;
                    self.through(far_end, &load, messages, Some(rate)).await.context("the warm-up")?;
                }
            }
        }
        let messages = self.options.messages.unwrap_or(if kind == Kind::Kafka { 400_000 } else { 200_000 });
        let floor = self.floor(far_end, messages).await.context("the floor")?;
        let bus_us = self.bus_floor(count, messages).await.context("the bus's floor")?;
        let flat_out = self.through(far_end, &load, messages, None).await.context("as fast as it goes")?;
        let mut paced = Vec::new();
        if self.is_paced(count) {
            for rate in self.options.rates.clone() {
                let messages = (rate * self.options.paced_s) as u64;
                let floor_us = self.acknowledged(count, rate, messages).await.context("the bare producer")?;
                let pass = self.through(far_end, &load, messages, Some(rate)).await;
                paced.push(Paced { rate, floor_us, pass: pass.with_context(|| format!("at {rate:.0}/s"))? });
            }
        }
        Ok(Round { floor, bus_us, flat_out, paced })
    }

    /// Publishes so many messages and waits until they have arrived.
    async fn through(
        &mut self,
        far_end: &mut FarEnd,
        load: &Load,
        messages: u64,
        rate: Option<f64>,
    ) -> Result<Pass> {
        let each = (messages / u64::from(load.publishers)).max(1);
        let messages = each * u64::from(load.publishers);
        let first = self.next;
        self.next += each;
        let processes = self.processes()?;
        let usage = || processes.iter().map(|(_, pid)| Usage::of(*pid)).collect::<Result<Vec<_>>>();
        let own = std::process::id();
        far_end.expect(messages, first).await?;
        let before = (usage()?, Usage::of(own)?.cpu, far_end.cpu()?[0]);
        let start = Instant::now();
        let published = load::publish(self.deployment.mqtt(), load, first, each, rate).await?;
        far_end.first().await?;
        let seen = far_end.done().await?;
        let elapsed = start.elapsed();
        let after = (usage()?, Usage::of(own)?.cpu, far_end.cpu()?[0]);
        let us = |now: Duration, before: Duration| us_each(now.saturating_sub(before), messages);
        let spent = processes.iter().zip(before.0.iter().zip(&after.0)).map(|((name, _), (before, now))| {
            Spent { name, us: us(now.cpu, before.cpu), resident_bytes: now.resident_bytes }
        });
        Ok(Pass {
            messages,
            elapsed,
            acknowledged: published.elapsed,
            spent: spent.collect(),
            generator_us: us(after.1, before.1),
            far_end_us: us(after.2, before.2),
            end_to_end_ms: [seen.p50_ms, seen.p99_ms, seen.p999_ms],
            puback_us: published.puback,
            lost: messages.saturating_sub(seen.different),
            repeated: seen.arrived.saturating_sub(seen.different),
        })
    }

    /// Whether latencies are measured with so many integrations.
    fn is_paced(&self, count: u32) -> bool {
        self.options.paced_s > 0.0 && self.options.integrations.first() == Some(&count)
    }

    /// How long Kafka lets the bare producer wait at a rate with as many topics, µs; nothing when the bus is another one.
    async fn acknowledged(&self, topics: u32, rate: f64, messages: u64) -> Result<Option<Histogram<u64>>> {
        let Some(kafka) = &self.kafka else { return Ok(None) };
        let topic = Topic::on(kafka.clone(), "bench-acknowledged").await?;
        let topics = topic.siblings(0, topics).await?;
        let value = Mark::new(0, 0).payload(self.options.size);
        let times = tokio::task::spawn_blocking(move || {
            floor::acknowledged(&topic.server(), &topics, &value, messages, rate, LINGER_MS)
        });
        Ok(Some(times.await??))
    }

    /// What the bare Kafka clients take to carry a message from here to here, with as many topics and as many unacknowledged,
    /// CPU µs; nothing when the bus is another one, or the load is not the same for each.
    async fn bus_floor(&self, topics: u32, messages: u64) -> Result<Option<f64>> {
        let Some(kafka) = self.kafka.clone().filter(|_| topics <= SAME_LOAD) else { return Ok(None) };
        let topic = Topic::on(kafka, "bench-floor").await?;
        // Nothing of an earlier round is in them.
        let topics = topic.siblings(self.next, topics).await?;
        let value = Bytes::from(Mark::new(0, 0).payload(self.options.size));
        let values = vec![value; messages as usize];
        let in_flight = self.options.window * self.options.publishers as usize;
        let before = Usage::of(std::process::id())?.cpu;
        tokio::task::spawn_blocking(move || {
            floor::produce_and_consume(&topic.server(), &topics, &values, in_flight, LINGER_MS)
        })
        .await??;
        let cpu = Usage::of(std::process::id())?.cpu.saturating_sub(before);
        Ok(Some(us_each(cpu, messages)))
    }

    /// What the bare client does with as many messages.
    async fn floor(&mut self, far_end: &mut FarEnd, messages: u64) -> Result<Floor> {
        let first = self.next;
        self.next += messages;
        let size = self.options.size;
        let bodies: Arc<[Bytes]> = (first..first + messages)
            .map(|sequence| Bytes::from(Mark::new(0, sequence).payload(size)))
            .collect();
        far_end.expect(messages, first).await?;
        let client = floor::client()?;
        let before = Usage::of(std::process::id())?.cpu;
        let start = Instant::now();
        if let FarEnd::Kafka(topic) = far_end {
            let (server, name) = (topic.server(), topic.name.clone());
            let settings = self.options.kafka();
            tokio::task::spawn_blocking(move || floor::produce(&server, &name, &bodies, &settings)).await??;
        } else {
            let url = format!("http://{}/in", far_end.address()?);
            floor::post(&client, &url, &bodies, 128).await?;
        }
        let elapsed = start.elapsed();
        let cpu = Usage::of(std::process::id())?.cpu.saturating_sub(before);
        far_end.first().await?;
        far_end.done().await?;
        Ok(Floor { rate: messages as f64 / elapsed.as_secs_f64(), us: us_each(cpu, messages) })
    }
}

/// The bare client.
#[derive(Clone, Copy, Debug)]
struct Floor {
    /// Messages per second.
    rate: f64,
    /// Its CPU µs per message.
    us: f64,
}

/// What a process has used for each message, CPU µs, and its memory afterwards.
#[derive(Clone, Copy, Debug)]
struct Spent {
    name: &'static str,
    us: f64,
    resident_bytes: u64,
}

/// Messages that went all the way.
struct Pass {
    messages: u64,
    /// From the first PUBLISH to the last arrival.
    elapsed: Duration,
    /// Until the last PUBACK.
    acknowledged: Duration,
    spent: Vec<Spent>,
    generator_us: f64,
    far_end_us: f64,
    /// p50, p99, p99.9.
    end_to_end_ms: [f64; 3],
    puback_us: Histogram<u64>,
    lost: u64,
    repeated: u64,
}

impl Pass {
    /// Messages per second end to end.
    fn rate(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64()
    }

    fn acknowledged_rate(&self) -> f64 {
        self.messages as f64 / self.acknowledged.as_secs_f64()
    }

    /// What data plane and executor used together, µs per message; what all of `tbmq` used.
    fn own_us(&self) -> f64 {
        let own = ["data plane", "executor", "tbmq"];
        self.spent.iter().filter(|spent| own.contains(&spent.name)).map(|spent| spent.us).sum()
    }

    /// p50, p99, p99.9.
    fn puback_ms(&self) -> [f64; 3] {
        quantiles_ms(&self.puback_us)
    }
}

/// CPU µs per message.
fn us_each(cpu: Duration, messages: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / messages as f64
}

/// p50, p99 and p99.9 of µs, in ms.
fn quantiles_ms(us: &Histogram<u64>) -> [f64; 3] {
    [0.5, 0.99, 0.999].map(|quantile| us.value_at_quantile(quantile) as f64 / 1e3)
}
