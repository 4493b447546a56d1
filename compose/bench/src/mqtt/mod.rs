//! `bench mqtt`: the broker alone, without integrations, beside Mosquitto: one generator, rounds in turn.

mod connections;
mod load;
mod matching;
mod net;
mod report;

use std::{any::Any, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use tbmq_e2e::deployment::{Deployment, Plane};
use tbmq_harness::mosquitto::{self, BrokerOptions};
use tbmq_mqtt::packet::Qos;

use self::{
    connections::{Idle, Storm},
    load::{Case, Outcome, Shape},
    report::Report,
};

/// What can be measured alone: the cases by name, and what is not about messages.
const WHAT: [&str; 10] =
    ["qos0", "qos1", "qos2", "pairs", "fan-in", "fan-out-100", "fan-out-1000", "storm", "idle", "match"];

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// What to measure, everything unless told.
    #[arg(long, value_delimiter = ',', value_parser = WHAT)]
    only: Vec<String>,
    /// Rounds, in each of which both brokers have their turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Bytes per payload, at least 20.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Times as many messages as usual.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Seconds at a fixed rate, in each round, for latencies; 0: none.
    #[arg(long, default_value_t = 2.0)]
    paced_s: f64,
    /// Clients of a storm.
    #[arg(long, default_value_t = 5_000)]
    connects: usize,
    /// Numbers of idle connections, rising.
    #[arg(long, value_delimiter = ',', default_value = "10000,18000")]
    idle: Vec<usize>,
    /// Filters to match with.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100_000..))]
    filters: u64,
    /// Only our broker.
    #[arg(long)]
    alone: bool,
    /// Instead of Mosquitto, a broker that runs already, without limits that the load would meet: `name=address@pid`.
    #[arg(long, conflicts_with = "alone", value_parser = running)]
    beside: Option<(String, SocketAddr, u32)>,
    /// Writes what was measured into this file, over the section that is there: `compose/bench/RESULTS.md`.
    #[arg(long)]
    write: Option<PathBuf>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// What is measured with messages.
fn cases() -> Vec<Case> {
    let case = |name, title, qos, shape, messages, credit, rate| Case {
        name,
        title,
        qos,
        shape,
        messages,
        window: 20,
        credit,
        rate,
    };
    let (qos0, qos1, qos2) = (Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce);
    vec![
        case("qos0", "QoS 0, 1 → 1", qos0, Shape::Pairs(1), 400_000, 400, 1_000),
        case("qos1", "QoS 1, 1 → 1, window 20", qos1, Shape::Pairs(1), 200_000, 20, 1_000),
        case("qos2", "QoS 2, 1 → 1, window 20", qos2, Shape::Pairs(1), 80_000, 20, 1_000),
        case("pairs", "QoS 1, 8 pairs, window 20", qos1, Shape::Pairs(8), 200_000, 20, 2_000),
        case("fan-in", "QoS 1, 50 → 1", qos1, Shape::FanIn(50), 150_000, 10, 2_000),
        case("fan-out-100", "QoS 0, 1 → 100", qos0, Shape::FanOut(100), 5_000, 20, 100),
        case("fan-out-1000", "QoS 0, 1 → 1,000", qos0, Shape::FanOut(1_000), 500, 4, 20),
    ]
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let wanted = options.clone();
    // The generator is one thread, and waits for nobody else.
    let report = tokio::task::spawn_blocking(move || measure(&wanted)).await??;
    println!("\n{report}");
    if let Some(file) = &options.write {
        crate::page::write(file, report::HEADING, &report)?;
    }
    ensure!(report.lost() == 0, "our broker has lost {} messages, or mixed them up", report.lost());
    Ok(())
}

/// Reads `name=address@pid`.
fn running(text: &str) -> Result<(String, SocketAddr, u32)> {
    let (name, rest) = text.split_once('=').context("no name")?;
    let (address, pid) = rest.split_once('@').context("no pid")?;
    Ok((name.to_owned(), address.parse()?, pid.parse()?))
}

/// A broker that runs.
struct Broker {
    name: String,
    address: SocketAddr,
    pid: u32,
    /// Stops it when dropped.
    _running: Box<dyn Any>,
}

impl Broker {
    fn ours() -> Result<Self> {
        let deployment = Deployment::standalone()?;
        let pid = deployment.process(Plane::All)?.pid();
        let address = deployment.mqtt();
        Ok(Self { name: "tbmq".to_owned(), address, pid, _running: Box::new(deployment) })
    }

    /// As Debian has it, but it writes no line for each client and drops nothing: 2.0.11 counts some of what it has
    /// delivered as queued.
    fn mosquitto() -> Result<Self> {
        let lines = ["log_type error", "connection_messages false", "max_queued_messages 0"];
        let options = BrokerOptions { lines: lines.map(str::to_owned).to_vec(), ..BrokerOptions::default() };
        let broker = mosquitto::Broker::start(&options)?;
        let (address, pid) = (broker.address(), broker.pid());
        let version = mosquitto::broker_version().context("Mosquitto does not tell its version")?;
        Ok(Self { name: format!("Mosquitto {version}"), address, pid, _running: Box::new(broker) })
    }

    fn all(options: &Options) -> Result<Vec<Self>> {
        let mut all = vec![Self::ours()?];
        match options.beside.clone() {
            Some((name, address, pid)) => all.push(Self { name, address, pid, _running: Box::new(()) }),
            None if options.alone => {}
            None => all.push(Self::mosquitto()?),
        }
        Ok(all)
    }

    fn target(&self) -> (SocketAddr, u32) {
        (self.address, self.pid)
    }
}

/// One case with one broker.
struct Measured {
    rounds: Vec<Outcome>,
    /// Of all rounds at a fixed rate, ns.
    latency: Histogram<u64>,
    /// At a fixed rate; those of rounds as fast as it goes are in the rounds.
    lost: u64,
}

fn measure(options: &Options) -> Result<Report> {
    allow_many_files()?;
    let mut report = Report::new(options);
    if options.wants("match") {
        report.matched = Some(matching::run(options.filters)?);
    }
    if options.wants("idle") {
        for broker in Broker::all(options)? {
            println!("{}: {:?} idle connections", broker.name, options.idle);
            report.idle.push(connections::idle(broker.target(), &options.idle)?);
        }
    }
    let brokers = Broker::all(options)?;
    report.brokers = brokers.iter().map(|broker| broker.name.clone()).collect();
    for case in cases().into_iter().filter(|case| options.wants(case.name)) {
        let measured = rounds(&case, &brokers, options)?;
        report.cases.push((case, measured));
    }
    if options.wants("storm") {
        report.storms = vec![Vec::new(); brokers.len()];
        for _ in 0..options.rounds {
            for (broker, storms) in brokers.iter().zip(&mut report.storms) {
                storms.push(connections::storm(broker.target(), options.connects)?);
            }
        }
    }
    Ok(report)
}

fn rounds(case: &Case, brokers: &[Broker], options: &Options) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for _ in brokers {
        all.push(Measured { rounds: Vec::new(), latency: Histogram::new(3)?, lost: 0 });
    }
    for _ in 0..options.rounds {
        for (broker, measured) in brokers.iter().zip(&mut all) {
            let outcome = load::flat_out(case, broker.target(), options.size, options.scale)?;
            println!("{}: {}: {}", case.name, broker.name, report::line(&outcome));
            measured.rounds.push(outcome);
        }
        for (broker, measured) in brokers.iter().zip(&mut all) {
            if options.paced_s > 0.0 {
                let time = Duration::from_secs_f64(options.paced_s);
                let outcome = load::paced(case, broker.target(), options.size, time)?;
                measured.latency.add(&outcome.latency)?;
                measured.lost += outcome.lost + outcome.misplaced;
            }
        }
    }
    Ok(all)
}

/// This process and those that it starts may have as many open files as the system allows.
fn allow_many_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("limit of open files")
}
