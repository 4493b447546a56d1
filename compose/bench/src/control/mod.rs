//! `bench control`: a control plane with thousands of integrations. How fast they are created, listed, watched and
//! changed, how soon a change is applied everywhere, and how soon a control plane that was killed serves again.
//!
//! Everything is asked of real processes through the API. Several data planes and executors have to apply each change
//! over Kafka; embedded, all is one process.

mod create;
mod propagate;
mod report;
mod watchers;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use tbmq_e2e::{
    api::Api,
    deployment::{Deployment, Layout, Plane},
    instance::Instance,
};
use tbmq_harness::{
    http_sink::HttpSink,
    kafka::{Kafka, KafkaOptions},
    postgres::Postgres,
    process::Usage,
};
use tbmq_proto::control::{Integration, ListIntegrationsRequest};
use tokio::task::block_in_place;

use self::report::Report;

#[derive(Args)]
pub(crate) struct Options {
    /// HTTP integrations.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..))]
    integrations: u32,
    /// Create calls in flight.
    #[arg(long, default_value_t = 128)]
    callers: u32,
    /// Calls for a page of 100.
    #[arg(long, default_value_t = 1_000)]
    lists: u32,
    /// Updates, one after the other, of which each is followed until it is applied everywhere.
    #[arg(long, default_value_t = 500)]
    updates: u32,
    /// Watches that are open at once.
    #[arg(long, default_value_t = 100)]
    watchers: u32,
    /// Updates that they are told of, and how many of them a second.
    #[arg(long, default_value_t = 200)]
    watched_updates: u32,
    #[arg(long, default_value_t = 20)]
    watched_rate: u32,
    /// Times that a control plane is killed and started again.
    #[arg(long, default_value_t = 5)]
    restarts: u32,
    /// Data planes over Kafka.
    #[arg(long, default_value_t = 2)]
    data_planes: u32,
    /// Executors over Kafka.
    #[arg(long, default_value_t = 2)]
    executors: u32,
    /// Only over Kafka and PostgreSQL.
    #[arg(long, conflicts_with = "only_embedded")]
    only_kafka: bool,
    /// Only over the embedded log and SQLite.
    #[arg(long)]
    only_embedded: bool,
    /// Writes what was measured into this file, over the section that is there: `compose/bench/RESULTS.md`.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(10);

pub(crate) async fn run(options: Options) -> Result<()> {
    let mut report = Report::new(&options);
    if !options.only_embedded {
        let kafka = block_in_place(|| Kafka::start(KafkaOptions::as_deployed()))?;
        let postgres = block_in_place(Postgres::start)?;
        let layout = Layout::of(1, options.data_planes, options.executors);
        let deployment = block_in_place(|| layout.start(&kafka, &postgres))?;
        let mut others = vec![("Kafka", kafka.pid())];
        others.push(("PostgreSQL", postgres.pid()));
        report.add("Kafka and PostgreSQL", measure(deployment, others, &options).await?);
        block_in_place(|| drop((kafka, postgres)));
    }
    if !options.only_kafka {
        let deployment = block_in_place(Deployment::standalone)?;
        report.add("embedded, SQLite", measure(deployment, Vec::new(), &options).await?);
    }
    println!("\n{report}");
    match &options.write {
        Some(file) => crate::page::write(file, report::HEADING, &report),
        None => Ok(()),
    }
}

/// What was measured over one backend.
struct Measured {
    created: create::Created,
    /// µs.
    lists: Histogram<u64>,
    propagated: propagate::Propagated,
    watched: watchers::Watched,
    /// From the start of the process to the first answered list.
    starts: Vec<Duration>,
    /// Of the control plane, or all in one: just started again, and after everything.
    resident_bytes: [u64; 2],
}

struct System {
    deployment: Deployment,
    /// Servers that are not ours, by pid.
    others: Vec<(&'static str, u32)>,
    sink: HttpSink,
    api: Api,
}

async fn measure(
    deployment: Deployment,
    others: Vec<(&'static str, u32)>,
    options: &Options,
) -> Result<Measured> {
    let api = deployment.api()?;
    let mut system = System { deployment, others, sink: HttpSink::start().await?, api };
    system.await_executors().await?;
    let created = create::run(&system, options).await?;
    let resident_after = system.usage_of(system.control())?.resident_bytes;
    let lists = system.lists(options).await?;
    let propagated = propagate::run(&system, options).await?;
    let watched = watchers::run(&system, options).await?;
    let mut starts = Vec::new();
    let resident_before = system.usage_of(system.control())?.resident_bytes.max(resident_after);
    for _ in 0..options.restarts {
        starts.push(system.restart().await?);
    }
    system.all(options.integrations).await?;
    let resident_bytes = [system.usage_of(system.control())?.resident_bytes, resident_before];
    block_in_place(|| system.deployment.drain_all())?;
    Ok(Measured { created, lists, propagated, watched, starts, resident_bytes })
}

impl System {
    /// The process with the control plane.
    fn control(&self) -> Instance {
        let alone = self.deployment.instances(Plane::Control).into_iter().next();
        alone.unwrap_or_else(|| Plane::All.into())
    }

    fn usage_of(&self, instance: Instance) -> Result<Usage> {
        self.deployment.process(instance)?.usage()
    }

    /// CPU time of each plane's processes, and of the servers.
    fn cpu(&self) -> Result<Vec<(&'static str, Duration)>> {
        let mut all = Vec::new();
        for plane in [Plane::All, Plane::Control, Plane::Data, Plane::Executor] {
            let instances = self.deployment.instances(plane);
            if instances.is_empty() {
                continue;
            }
            let mut cpu = Duration::ZERO;
            for instance in instances {
                cpu += self.usage_of(instance)?.cpu;
            }
            all.push((plane.name(), cpu));
        }
        for (name, pid) in &self.others {
            all.push((name, cpu_with_children(*pid)?));
        }
        Ok(all)
    }

    /// Waits until executors have taken and read every partition of the downlink topic.
    async fn await_executors(&self) -> Result<()> {
        let downlink = self.deployment.catalogue().downlink(&"HTTP".parse()?);
        let mut api = self.api.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let nodes = api.list_nodes().await.unwrap_or_default();
            let live = nodes.iter().filter(|node| node.live && node.role == "EXECUTOR");
            let applied = live.flat_map(|node| &node.applied).filter(|at| at.topic == downlink.name).count();
            if applied == downlink.partitions as usize {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "executors have read {applied} partitions");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every integration, of which there have to be so many.
    async fn all(&self, count: u32) -> Result<Vec<Integration>> {
        let mut api = self.api.clone();
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListIntegrationsRequest { page_size: 100, page_token, ..Default::default() };
            let page = api.integrations.list_integrations(request).await?.into_inner();
            all.extend(page.integrations);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        ensure!(all.len() == count as usize, "{} of {count} integrations are listed", all.len());
        Ok(all)
    }

    /// How long pages of 100 take, one after the other through the whole list; µs.
    async fn lists(&self, options: &Options) -> Result<Histogram<u64>> {
        let mut api = self.api.clone();
        let mut took = Histogram::new(3)?;
        let mut page_token = String::new();
        for _ in 0..options.lists {
            let request = ListIntegrationsRequest { page_size: 100, page_token, ..Default::default() };
            let began = Instant::now();
            let page = api.integrations.list_integrations(request).await?.into_inner();
            took.record(began.elapsed().as_micros() as u64)?;
            ensure!(page.integrations.len() == 100 || page.next_page_token.is_empty(), "a page is not full");
            page_token = page.next_page_token;
        }
        println!("  lists: {}", report::millis(&took));
        Ok(took)
    }

    /// Kills the control plane, starts it again, and waits until it has answered a list.
    async fn restart(&mut self) -> Result<Duration> {
        let control = self.control();
        block_in_place(|| self.deployment.kill(control))?;
        let address = self.deployment.address(control, "grpc")?;
        let began = Instant::now();
        let answered = tokio::spawn(async move {
            loop {
                let mut api = Api::connect(address)?;
                let request = ListIntegrationsRequest { page_size: 100, ..Default::default() };
                if let Ok(page) = api.integrations.list_integrations(request).await {
                    ensure!(page.into_inner().integrations.len() == 100, "the list is not full");
                    return Ok(began.elapsed());
                }
                ensure!(began.elapsed() < PATIENCE, "no list after {PATIENCE:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        block_in_place(|| self.deployment.start(control))?;
        let took = answered.await??;
        println!("  start: first list after {took:.2?}");
        Ok(took)
    }
}

/// PostgreSQL works in children of the process that was started.
fn cpu_with_children(pid: u32) -> Result<Duration> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut cpu = Usage::of(pid)?.cpu;
    for child in children.split_whitespace() {
        // One may have ended since.
        cpu += Usage::of(child.parse()?).map(|usage| usage.cpu).unwrap_or_default();
    }
    Ok(cpu)
}
