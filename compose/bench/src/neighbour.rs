//! `bench neighbour`: many HTTP integrations over one executor, with and without one more whose sink hangs: it accepts
//! connections, reads requests, and never answers.
//!
//! "With" means: the hanging one is enabled, more messages than it may have in flight lie in its topic, and as many
//! requests as its window allows are open, before anything is measured. "Without" means that it is disabled. In each run the others get a
//! burst, which is timed until everything has arrived, and then a fixed rate, which gives the latency. At the end
//! the hanging one is pointed at a sink that answers, and everything that was held up has to arrive.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tbmq_e2e::{
    api::{Api, http},
    deployment::{Deployment, Layout, Plane},
};
use tbmq_harness::{
    client::{Plan, publish_all},
    kafka::{Kafka, KafkaOptions},
    postgres::Postgres,
    process::Usage,
};
use tbmq_proto::control::integration_status::Phase;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinSet, block_in_place},
};

use crate::{
    page::median,
    peer::{Peer, Role, Seen},
    sinks::assignment,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Integrations in all, the hanging one included.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..))]
    integrations: u32,
    /// Messages of a burst, for each integration.
    #[arg(long, default_value_t = 1_000)]
    messages: u64,
    /// Messages per second in all after the burst.
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    /// Seconds at that rate.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Messages that are added to the hanging one's topic before each run with it.
    #[arg(long, default_value_t = 5_000)]
    backlog: u64,
    /// Bytes per payload.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// The executor's window: messages of an integration in flight.
    #[arg(long, default_value_t = 128)]
    window: usize,
    /// Pairs of runs.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Further settings of the executor, as `NAME=value`.
    #[arg(long = "set", value_parser = assignment)]
    settings: Vec<(String, String)>,
}

/// The hanging one's sequences begin here, so that they are told from the others'.
const BACKLOG: u64 = 1 << 40;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// What the executor says of its limits.
const LIMITS: &[&str] = &[
    "tbmq_executor_limits_reached",
    "tbmq_executor_held",
    "tbmq_executor_events_dropped",
    "tbmq_executor_commands_refused",
    "tbmq_executor_panics",
];

/// One run.
struct Run {
    burst: Duration,
    seen: Seen,
}

struct Bench {
    options: Options,
    deployment: Deployment,
    api: Api,
    sink: Peer,
    hole: Hole,
    /// The hanging integration's name.
    hanging: String,
    is_hanging: bool,
    /// The sequence that the next messages begin with.
    next: u64,
    /// Messages that were published to the hanging one.
    backlog: u64,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(options.backlog >= 2 * options.window as u64, "the backlog is to be twice the window at least");
    let kafka = tokio::task::spawn_blocking(|| Kafka::start(KafkaOptions::default())).await??;
    let postgres = tokio::task::spawn_blocking(Postgres::start).await??;
    let window = ("TBMQ_IE_MSG_WINDOW_MESSAGES".to_owned(), options.window.to_string());
    let mut layout = Layout::default();
    for (name, value) in std::iter::once(&window).chain(&options.settings) {
        layout = layout.own_setting(Plane::Executor, name, value);
    }
    let deployment = block_in_place(|| layout.start(&kafka, &postgres))?;
    let api = deployment.api()?;
    let (sink, hole) = (Peer::start(Role::Http).await?, Hole::open().await?);
    let mut bench = Bench {
        options,
        deployment,
        api,
        sink,
        hole,
        hanging: String::new(),
        is_hanging: false,
        next: 0,
        backlog: 0,
    };
    bench.create().await?;
    bench.pairs().await?;
    bench.heal().await?;
    block_in_place(|| bench.deployment.drain_all())?;
    tokio::task::spawn_blocking(move || drop((kafka, postgres))).await?;
    Ok(())
}

fn topic(number: u32) -> String {
    format!("neighbour/{number}")
}

impl Bench {
    fn others(&self) -> u32 {
        self.options.integrations - 1
    }

    /// The last integration is the one that hangs.
    async fn create(&mut self) -> Result<()> {
        for number in 0..self.others() {
            let url = format!("http://{}/{number}", self.sink.address());
            let integration = http(&format!("neighbour {number}"), &[&topic(number)], &url);
            self.api.create_active(integration).await?;
        }
        let url = format!("http://{}/", self.hole.address);
        let mut hanging = http("hanging", &[&topic(self.others())], &url);
        hanging.enabled = false;
        self.hanging = self.api.create_active(hanging).await?.name;
        Ok(())
    }

    async fn pairs(&mut self) -> Result<()> {
        // What runs first warms everything up.
        self.run(false).await.context("warming up")?;
        let (mut bursts, mut latencies, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 1..=self.options.pairs {
            // The order alternates, so that a drift favours neither.
            let with_first = pair % 2 == 0;
            let first = self.run(with_first).await.with_context(|| format!("pair {pair}"))?;
            let second = self.run(!with_first).await.with_context(|| format!("pair {pair}"))?;
            let (with, without) = if with_first { (first, second) } else { (second, first) };
            let burst = with.burst.as_secs_f64() / without.burst.as_secs_f64();
            let latency = with.seen.p99_ms / without.seen.p99_ms;
            let row = format!(
                "| {pair} | {:.2} | {:.1} / {:.1} | {:.2} | {:.1} / {:.1} | {burst:.2} | {latency:.2} |",
                without.burst.as_secs_f64(),
                without.seen.p50_ms,
                without.seen.p99_ms,
                with.burst.as_secs_f64(),
                with.seen.p50_ms,
                with.seen.p99_ms
            );
            println!("{row}");
            rows.push(row);
            bursts.push(burst);
            latencies.push(latency);
        }
        let told = |ratios: &[f64]| {
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            format!("{:.2} ({least:.2} to {most:.2})", median(ratios.iter().copied()))
        };
        let options = &self.options;
        println!(
            "\n## A neighbour that hangs\n\n`cargo xtask bench neighbour`: {} HTTP integrations over one executor, beside one whose sink \
             accepts and never answers, with its window of {} requests open and a backlog behind it, or without that one. Each \
             run: a burst of {} messages for each, timed until all have arrived, then {}/s in all for {} s; {} bytes. Executor: \
             {:?}. Nothing was lost.\n\nWith to without, median of {} pairs (least to most): time to deliver **{}**, p99 latency \
             **{}**.\n\n| pair | without: burst s | p50 / p99 ms | with: burst s | p50 / p99 ms | burst ratio | p99 ratio |\n\
             |---|---|---|---|---|---|---|\n{}\n",
            self.others(),
            options.window,
            options.messages,
            options.rate,
            options.seconds,
            options.size,
            options.settings,
            options.pairs,
            told(&bursts),
            told(&latencies),
            rows.join("\n")
        );
        Ok(())
    }

    /// A burst and a stretch at the fixed rate, to all but the hanging one; everything has to arrive.
    async fn run(&mut self, with_hanging: bool) -> Result<Run> {
        self.set_hanging(with_hanging).await?;
        let began = Instant::now();
        self.deliver(self.options.messages, 0).await?;
        let burst = began.elapsed();
        let rate = (self.options.rate / u64::from(self.others())).max(1);
        let seen = self.deliver(rate * self.options.seconds, rate).await?;
        if with_hanging {
            self.check_limits()?;
        }
        Ok(Run { burst, seen })
    }

    /// Publishes so many messages to each but the hanging one, and waits until all have arrived.
    async fn deliver(&mut self, each: u64, rate: u64) -> Result<Seen> {
        let first = self.next;
        self.next += each;
        let expected = each * u64::from(self.others());
        self.sink.expect(expected, first).await?;
        let mut publishers = JoinSet::new();
        for number in 0..self.others() {
            let plan = Plan::new(self.deployment.mqtt(), &topic(number), each).by(number).first(first);
            publishers.spawn(publish_all(plan.size(self.options.size).rate(rate).timed()));
        }
        while let Some(result) = publishers.join_next().await {
            result??;
        }
        self.sink.first().await?;
        let seen = self.sink.done().await?;
        let lost = expected.saturating_sub(seen.different);
        ensure!(lost == 0, "{lost} of {expected} messages were lost: {seen:?}");
        Ok(seen)
    }

    async fn set_hanging(&mut self, is_hanging: bool) -> Result<()> {
        if !is_hanging {
            if self.is_hanging {
                self.api.disable(&self.hanging).await?;
                self.api.await_phase(&self.hanging, Phase::Disabled).await?;
                self.hole.wait_until("closed", |open| open == 0).await?;
            }
            self.is_hanging = false;
            return Ok(());
        }
        if !self.is_hanging {
            self.api.enable(&self.hanging).await?;
            self.api.await_phase(&self.hanging, Phase::Active).await?;
        }
        self.is_hanging = true;
        let plan = Plan::new(self.deployment.mqtt(), &topic(self.others()), self.options.backlog)
            .by(self.others())
            .first(BACKLOG + self.backlog)
            .size(self.options.size);
        self.backlog += publish_all(plan).await?.len() as u64;
        let window = self.options.window.min(self.options.backlog as usize);
        self.hole.wait_until("open", |open| open >= window).await
    }

    /// What the executor holds for the hanging one is within its limits.
    fn check_limits(&self) -> Result<()> {
        let peak = self.hole.peak.load(Ordering::Relaxed);
        ensure!(
            peak <= self.options.window,
            "{peak} requests were open to the sink that hangs, more than the window"
        );
        let metrics = block_in_place(|| self.deployment.metrics(Plane::Executor))?;
        let limits = metrics.lines().filter(|line| LIMITS.iter().any(|name| line.starts_with(name)));
        let reached: Vec<_> = limits.filter(|line| !line.ends_with(" 0")).collect();
        // A backlog without a limit that holds it back would lie in the executor's memory.
        let is_held_back = reached.iter().any(|line| line.starts_with("tbmq_executor_limits_reached"));
        ensure!(is_held_back, "no limit was reached: {reached:?}");
        let usage = Usage::of(self.deployment.process(Plane::Executor)?.pid())?;
        println!(
            "  hanging: at most {peak} requests open, of {}; executor {} MiB resident, at most {}; {reached:?}",
            self.options.window,
            usage.resident_bytes >> 20,
            usage.peak_bytes >> 20
        );
        Ok(())
    }

    /// What was held up arrives once the sink answers.
    async fn heal(&mut self) -> Result<()> {
        self.sink.expect(self.backlog, BACKLOG).await?;
        let mut hanging = self.api.get(&self.hanging).await?;
        let healthy = format!("http://{}/healed", self.sink.address());
        let configuration = &hanging.configuration_json;
        hanging.configuration_json =
            configuration.replace(&format!("http://{}/", self.hole.address), &healthy);
        ensure!(hanging.configuration_json.contains(&healthy), "{}", hanging.configuration_json);
        self.api.update(hanging).await?;
        let began = Instant::now();
        if !self.is_hanging {
            self.api.enable(&self.hanging).await?;
        }
        self.sink.first().await?;
        let seen = self.sink.done().await?;
        let lost = self.backlog.saturating_sub(seen.different);
        ensure!(lost == 0, "{lost} of {} messages of the hanging one were lost: {seen:?}", self.backlog);
        println!(
            "healed: all {} messages of the hanging one arrived within {:.2?}, {} of them twice",
            self.backlog,
            began.elapsed(),
            seen.arrived - seen.different
        );
        Ok(())
    }
}

/// A server that reads requests and never answers one.
struct Hole {
    address: SocketAddr,
    /// Connections that have sent something and are still there.
    open: watch::Receiver<usize>,
    /// The most of them that there were.
    peak: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

impl Hole {
    async fn open() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let peak = Arc::new(AtomicUsize::new(0));
        let (count, open) = watch::channel(0_usize);
        let mut connections = JoinSet::new();
        connections.spawn({
            let peak = Arc::clone(&peak);
            async move {
                let count = Arc::new(count);
                let mut swallowing = JoinSet::new();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let Ok((stream, _)) = accepted else { continue };
                            swallowing.spawn(swallow(stream, Arc::clone(&count), Arc::clone(&peak)));
                        }
                        Some(_) = swallowing.join_next() => {}
                    }
                }
            }
        });
        Ok(Self { address, open, peak, _connections: connections })
    }

    async fn wait_until(&self, what: &str, done: impl Fn(usize) -> bool) -> Result<()> {
        let mut open = self.open.clone();
        let waiting = tokio::time::timeout(PATIENCE, open.wait_for(|open| done(*open))).await;
        let waited = waiting.with_context(|| {
            format!("not {what}: {} requests are at the sink that hangs", *self.open.borrow())
        })?;
        waited?;
        Ok(())
    }
}

/// Reads until the other end closes.
async fn swallow(mut stream: TcpStream, open: Arc<watch::Sender<usize>>, peak: Arc<AtomicUsize>) {
    let mut buffer = vec![0; 16 << 10];
    let mut has_request = false;
    while let Ok(1..) = stream.read(&mut buffer).await {
        if !has_request {
            has_request = true;
            open.send_modify(|open| {
                *open += 1;
                peak.fetch_max(*open, Ordering::Relaxed);
            });
        }
    }
    if has_request {
        open.send_modify(|open| *open -= 1);
    }
}
