//! `bench bus`: what a record costs, at 1 to 10,000 topics, for each adapter.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tbmq_bus::{
    Bus, CleanupPolicy, CompletionQueue, Outgoing, ReaderConfig, ReaderEvent, Start, TopicPartition,
    TopicSpec, WriterConfig, embedded, kafka, memory,
};
use tbmq_harness::{kafka::Kafka, process::Usage};

#[derive(Args)]
pub(crate) struct Options {
    /// Adapters to measure.
    #[arg(long, value_delimiter = ',', default_value = "memory,embedded,kafka")]
    adapters: Vec<String>,
    /// Numbers of topics.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,10000")]
    topics: Vec<usize>,
    /// Records per measurement.
    #[arg(long, default_value_t = 200_000)]
    records: usize,
    /// Bytes per value.
    #[arg(long, default_value_t = 256)]
    size: usize,
}

/// Topics that are created, and written to for the first time, at once.
const TOGETHER: usize = 100;

pub(crate) async fn run(options: Options) -> Result<()> {
    println!(
        "{} records of {} bytes, one partition per topic, two shared cores",
        options.records, options.size
    );
    println!(
        "{:<10} {:>7} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "adapter", "topics", "write/s", "CPU us", "read/s", "CPU us", "server us"
    );
    for adapter in &options.adapters {
        for topics in &options.topics {
            let folder = tempfile::tempdir()?;
            let mut server = None;
            let bus: Arc<dyn Bus> = match adapter.as_str() {
                "memory" => memory::MemoryBus::new(),
                "embedded" => embedded::EmbeddedBus::open(embedded::EmbeddedConfig::new(folder.path()))?,
                "kafka" => {
                    let kafka = tokio::task::spawn_blocking(|| {
                        Kafka::start(tbmq_harness::kafka::KafkaOptions::default())
                    })
                    .await??;
                    let bus = kafka::KafkaBus::new(kafka::KafkaConfig::new(kafka.bootstrap()))?;
                    server = Some(kafka);
                    bus
                }
                other => anyhow::bail!("{other:?} is not an adapter: memory, embedded, kafka"),
            };
            let line = measure(&bus, *topics, &options, server.as_ref().map(Kafka::pid)).await;
            let line = line.with_context(|| format!("{adapter} with {topics} topics"))?;
            println!("{adapter:<10} {topics:>7} {line}");
            drop(bus);
            tokio::task::spawn_blocking(move || drop(server)).await?;
        }
    }
    Ok(())
}

async fn measure(
    bus: &Arc<dyn Bus>,
    topics: usize,
    options: &Options,
    server: Option<u32>,
) -> Result<String> {
    let names: Vec<String> = (0..topics).map(|index| format!("bench-{index}")).collect();
    for some in names.chunks(TOGETHER) {
        let mut creations = tokio::task::JoinSet::new();
        for name in some {
            let spec = TopicSpec {
                name: name.clone(),
                partitions: 1,
                replication_factor: 1,
                policy: CleanupPolicy::Delete,
                settings: Vec::new(),
            };
            let admin = bus.admin();
            creations.spawn(async move { admin.create_topic(&spec).await });
        }
        while let Some(created) = creations.join_next().await {
            created??;
        }
    }
    let config = WriterConfig { linger: Duration::from_millis(1), ..WriterConfig::new("bench-writer") };
    let writer = bus.writer(config).await?;
    let handles: Vec<_> = names.iter().map(|name| writer.topic(name)).collect();
    let value = vec![b'x'; options.size];
    let completions = CompletionQueue::new();
    let mut batch = Vec::new();

    // The first record of each topic fetches metadata; it is not measured.
    for some in handles.chunks(TOGETHER) {
        for handle in some {
            submit(&*writer, handle, &value, 0, &completions).await;
        }
        let mut done = 0;
        while done < some.len() {
            completions.wait(&mut batch).await;
            done += succeeded(&batch)?;
        }
    }

    let before = Cost::now(server)?;
    let (mut submitted, mut done) = (0, 0);
    while done < options.records {
        while submitted < options.records {
            let record = Outgoing { partition: Some(0), key: None, value: Some(&value), headers: &[] };
            let handle = &handles[submitted % handles.len()];
            if writer.submit(handle, record, submitted as u64, &completions).is_err() {
                break;
            }
            submitted += 1;
        }
        completions.wait(&mut batch).await;
        done += succeeded(&batch)?;
    }
    let written = before.until_now(options.records)?;

    let mut reader = bus.reader(ReaderConfig::new("bench-reader", None)).await?;
    let total = options.records + handles.len();
    let before = Cost::now(server)?;
    for name in &names {
        reader.add(&TopicPartition::new(name.as_str(), 0), Start::Earliest);
    }
    let mut read = 0;
    while read < total {
        let event =
            tokio::time::timeout(Duration::from_secs(120), reader.next()).await.context("no event")?;
        match event {
            ReaderEvent::Batch { records, .. } => read += records.len(),
            ReaderEvent::End { .. } => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
    let consumed = before.until_now(total)?;
    let server = if server.is_some() {
        format!("{:>12.2}", written.server_us + consumed.server_us)
    } else {
        format!("{:>12}", "-")
    };
    Ok(format!(
        "{:>12.0} {:>12.2} {:>12.0} {:>12.2} {server}",
        written.rate, written.cpu_us, consumed.rate, consumed.cpu_us
    ))
}

async fn submit(
    writer: &dyn tbmq_bus::Writer,
    handle: &tbmq_bus::TopicHandle,
    value: &[u8],
    ticket: usize,
    completions: &Arc<CompletionQueue>,
) {
    let record = Outgoing { partition: Some(0), key: None, value: Some(value), headers: &[] };
    while writer.submit(handle, record, ticket as u64, completions).is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn succeeded(batch: &[tbmq_bus::Completion]) -> Result<usize> {
    for completion in batch {
        ensure!(completion.result.is_ok(), "{completion:?}");
    }
    Ok(batch.len())
}

/// CPU time and clock at one moment.
struct Cost {
    at: Instant,
    own: Duration,
    server: Option<(u32, Duration)>,
}

/// What a stretch of work cost.
struct Spent {
    rate: f64,
    cpu_us: f64,
    server_us: f64,
}

impl Cost {
    fn now(server: Option<u32>) -> Result<Self> {
        let server = server.map(|pid| anyhow::Ok((pid, Usage::of(pid)?.cpu))).transpose()?;
        Ok(Self { at: Instant::now(), own: Usage::of(std::process::id())?.cpu, server })
    }

    fn until_now(&self, records: usize) -> Result<Spent> {
        let per_record = |time: Duration| time.as_secs_f64() * 1e6 / records as f64;
        let server = match self.server {
            Some((pid, before)) => Usage::of(pid)?.cpu.saturating_sub(before),
            None => Duration::ZERO,
        };
        Ok(Spent {
            rate: records as f64 / self.at.elapsed().as_secs_f64(),
            cpu_us: per_record(Usage::of(std::process::id())?.cpu.saturating_sub(self.own)),
            server_us: per_record(server),
        })
    }
}
