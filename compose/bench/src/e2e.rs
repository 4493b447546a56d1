//! `bench e2e`: MQTT QoS 1 → bus → executor → HTTP, everything on this machine.
//!
//! The sink is a process of its own and so is the floor: the bare HTTP client of the executor posting the same bodies
//! to the same sink, which no delivery over HTTP can undercut.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use tbmq_harness::{
    client::{Plan, publish_all},
    http_sink::HttpSink,
    kafka::{Kafka, KafkaOptions},
    ledger::Mark,
    postgres::Postgres,
    process::{Process, Usage},
};
use tbmq_proto::control::{
    CreateIntegrationRequest, GetIntegrationRequest, Integration,
    integration_service_client::IntegrationServiceClient, integration_status::Phase,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Where the messages go through.
    #[arg(long, value_delimiter = ',', default_value = "embedded,kafka")]
    bus: Vec<String>,
    /// Messages in all.
    #[arg(long, default_value_t = 200_000)]
    messages: u64,
    /// Bytes per payload.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Publishers.
    #[arg(long, default_value_t = 10)]
    publishers: u32,
    /// Unacknowledged messages per publisher.
    #[arg(long, default_value_t = 50)]
    window: usize,
    /// Messages per second in all; 0 is as fast as it goes.
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    println!(
        "{} messages of {} bytes at QoS 1 from {} publishers with a window of {}, rate {}",
        options.messages,
        options.size,
        options.publishers,
        options.window,
        if options.rate == 0 { "unlimited".to_owned() } else { format!("{}/s", options.rate) }
    );
    let floor = floor(&options).await?;
    println!(
        "floor: bare HTTP client, 64 in flight: {:.0}/s, client {:.1} us, sink {:.1} us CPU per request",
        floor.0, floor.1, floor.2
    );
    for bus in &options.bus {
        match bus.as_str() {
            "embedded" => embedded(&options).await?,
            "kafka" => kafka(&options).await?,
            other => anyhow::bail!("{other:?} is not a bus: embedded, kafka"),
        }
    }
    Ok(())
}

fn setting(key: &str, value: impl ToString) -> (String, String) {
    (key.to_owned(), value.to_string())
}

async fn embedded(options: &Options) -> Result<()> {
    let data = tempfile::tempdir()?;
    let environment = vec![
        setting("TBMQ_DATA_DIR", data.path().display()),
        setting("LISTENER_TCP_BIND_PORT", 0),
        setting("CONTROL_GRPC_BIND_PORT", 0),
        setting("HTTP_BIND_PORT", 0),
    ];
    let tbmq = Process::start("tbmq", &[], &environment, &["mqtt", "grpc"])?;
    let processes = [("tbmq", tbmq.pid())];
    measure("embedded", options, tbmq.address("mqtt"), tbmq.address("grpc"), &processes).await?;
    tbmq.drain(Duration::from_secs(30))
}

async fn kafka(options: &Options) -> Result<()> {
    let kafka = tokio::task::spawn_blocking(|| Kafka::start(KafkaOptions::default())).await??;
    let postgres = tokio::task::spawn_blocking(Postgres::start).await??;
    let common = |role: &str| {
        vec![
            setting("TB_KAFKA_SERVERS", kafka.bootstrap()),
            setting("TB_SERVICE_ID", role),
            setting("HTTP_BIND_PORT", 0),
            setting("LISTENER_TCP_BIND_PORT", 0),
            setting("CONTROL_GRPC_BIND_PORT", 0),
        ]
    };
    let mut control = common("control");
    control.push(setting("DATABASE_URL", postgres.create_database()?));
    let control = Process::start("tbmq-control-plane", &[], &control, &["grpc"])?;
    let executor = Process::start("tbmq-executor", &[], &common("executor"), &["http"])?;
    let data = Process::start("tbmq-data-plane", &[], &common("data"), &["mqtt"])?;
    let processes = [
        ("data plane", data.pid()),
        ("executor", executor.pid()),
        ("control plane", control.pid()),
        ("kafka", kafka.pid()),
    ];
    let loopback =
        |address: std::net::SocketAddr| std::net::SocketAddr::from(([127, 0, 0, 1], address.port()));
    measure("kafka", options, loopback(data.address("mqtt")), loopback(control.address("grpc")), &processes)
        .await?;
    for process in [data, executor, control] {
        process.drain(Duration::from_secs(30))?;
    }
    tokio::task::spawn_blocking(move || drop((kafka, postgres))).await?;
    Ok(())
}

async fn measure(
    bus: &str,
    options: &Options,
    mqtt: std::net::SocketAddr,
    grpc: std::net::SocketAddr,
    processes: &[(&str, u32)],
) -> Result<()> {
    let mut sink = SinkProcess::start()?;
    create_integration(grpc, &sink.url).await?;
    let before: Vec<Usage> = processes.iter().map(|(_, pid)| Usage::of(*pid)).collect::<Result<_>>()?;
    let (own_before, sink_before) = (Usage::of(std::process::id())?, Usage::of(sink.child.id())?);
    let start = Instant::now();
    let each = options.messages / u64::from(options.publishers);
    let total = each * u64::from(options.publishers);
    let mut tasks = tokio::task::JoinSet::new();
    for publisher in 0..options.publishers {
        let plan = Plan::new(mqtt, &format!("bench/{publisher}"), each).by(publisher).timed();
        let rate = options.rate / u64::from(options.publishers);
        tasks.spawn(publish_all(plan.size(options.size).window(options.window).rate(rate)));
    }
    let mut acknowledged = 0;
    while let Some(result) = tasks.join_next().await {
        acknowledged += result??.len() as u64;
    }
    let published = start.elapsed();
    let seen = sink.finish(total)?;
    let elapsed = start.elapsed();
    ensure!(acknowledged == total, "{acknowledged} of {total} were acknowledged");

    let lost = total - seen.different;
    println!(
        "\n{bus}: {total} acknowledged at {:.0}/s, {} lost, {} duplicates",
        total as f64 / published.as_secs_f64(),
        lost,
        seen.arrived - seen.different
    );
    println!(
        "  end to end {:.0}/s; latency ms p50 {:.1}, p99 {:.1}, p99.9 {:.1}",
        total as f64 / elapsed.as_secs_f64(),
        seen.p50_ms,
        seen.p99_ms,
        seen.p999_ms
    );
    let per_message = |time: Duration| time.as_secs_f64() * 1e6 / total as f64;
    for ((name, pid), before) in processes.iter().zip(before) {
        let now = Usage::of(*pid)?;
        println!(
            "  {name}: {:.1} us CPU per message, {} MiB resident",
            per_message(now.cpu.saturating_sub(before.cpu)),
            now.resident_bytes >> 20
        );
    }
    let own = Usage::of(std::process::id())?.cpu.saturating_sub(own_before.cpu);
    println!(
        "  generator: {:.1} us, sink: {:.1} us CPU per message",
        per_message(own),
        per_message(seen.cpu.saturating_sub(sink_before.cpu))
    );
    ensure!(lost == 0, "{lost} messages were lost");
    Ok(())
}

async fn create_integration(grpc: std::net::SocketAddr, url: &str) -> Result<()> {
    let channel = tonic::transport::Channel::from_shared(format!("http://{grpc}"))?.connect_lazy();
    let mut client = IntegrationServiceClient::new(channel);
    let integration = Integration {
        display_name: "bench".to_owned(),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json: format!(
            r#"{{"topicFilters":["bench/#"],"clientConfiguration":{{"restEndpointUrl":"{url}","sendOnlyMsgPayload":true,"maxInMemoryBufferSizeInKb":256}},"delivery":{{"ackStrategy":"RETRY_ALL","retries":0}}}}"#
        ),
        ..Integration::default()
    };
    let request = CreateIntegrationRequest { integration: Some(integration), ..Default::default() };
    let name = client.create_integration(request).await?.into_inner().name;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let integration =
            client.get_integration(GetIntegrationRequest { name: name.clone() }).await?.into_inner();
        if integration.status.is_some_and(|status| status.phase() == Phase::Active) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the integration does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nanoseconds since the epoch: the clock that publishers and sink share.
fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// What the sink saw.
struct Seen {
    arrived: u64,
    different: u64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    cpu: Duration,
}

struct SinkProcess {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    url: String,
}

impl SinkProcess {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("sink")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("stdout is piped")?);
        let mut url = String::new();
        output.read_line(&mut url)?;
        Ok(Self { child, output, url: url.trim().to_owned() })
    }

    /// Waits until so many different marks have arrived, at most 120 s after the last one came.
    fn finish(&mut self, expected: u64) -> Result<Seen> {
        let input = self.child.stdin.as_mut().context("stdin is piped")?;
        writeln!(input, "{expected}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let cpu = Usage::of(self.child.id())?.cpu;
        let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(numbers.len() == 5, "the sink said {line:?}");
        Ok(Seen {
            arrived: numbers[0] as u64,
            different: numbers[1] as u64,
            p50_ms: numbers[2],
            p99_ms: numbers[3],
            p999_ms: numbers[4],
            cpu,
        })
    }
}

impl Drop for SinkProcess {
    fn drop(&mut self) {
        if self.child.kill().and_then(|()| self.child.wait()).is_err() {
            println!("the sink is gone already");
        }
    }
}

/// The sink's own process.
pub(crate) async fn sink() -> Result<()> {
    let server = HttpSink::start().await?;
    println!("{}", server.url("in"));
    let expected: usize = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        anyhow::Ok(line.trim().parse()?)
    })
    .await??;
    // Duplicates may have come first: wait on until enough are different, or nothing comes any more.
    let mut wanted = expected;
    let mut different = std::collections::HashSet::new();
    let mut latency = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3)?;
    let mut looked = 0;
    loop {
        let more = server.wait_for(wanted, Duration::from_secs(120)).await.is_ok();
        let received = server.received();
        let (wall, clock) = (now_ns(), Instant::now());
        for one in &received[looked..] {
            let Some(mark) = Mark::parse(&one.body) else { continue };
            if different.insert((mark.publisher, mark.sequence)) {
                let arrived_ns = wall.saturating_sub(clock.duration_since(one.at).as_nanos() as u64);
                latency.saturating_record(arrived_ns.saturating_sub(mark.sent_ns) / 1_000);
            }
        }
        looked = received.len();
        if different.len() >= expected || !more {
            break;
        }
        wanted = looked + expected - different.len();
    }
    let ms = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e3;
    println!("{looked} {} {} {} {}", different.len(), ms(0.5), ms(0.99), ms(0.999));
    // The parent reads our CPU time before it lets us go.
    std::future::pending().await
}

/// Rate, and CPU µs per request of client and sink.
async fn floor(options: &Options) -> Result<(f64, f64, f64)> {
    // A second installation finds the first, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let sink = SinkProcess::start()?;
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
    let body = Mark::new(0, 0).payload(options.size);
    let left = Arc::new(AtomicUsize::new(options.messages.min(100_000) as usize));
    let total = left.load(Ordering::Relaxed);
    let (own_before, sink_before) = (Usage::of(std::process::id())?, Usage::of(sink.child.id())?);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (client, body, left, url) = (client.clone(), body.clone(), Arc::clone(&left), sink.url.clone());
        tasks.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                let response = client.post(&url).body(body.clone()).send().await?;
                ensure!(response.status().is_success(), "{}", response.status());
                response.bytes().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    let rate = total as f64 / start.elapsed().as_secs_f64();
    let per_request = |time: Duration| time.as_secs_f64() * 1e6 / total as f64;
    let own = Usage::of(std::process::id())?.cpu.saturating_sub(own_before.cpu);
    let other = Usage::of(sink.child.id())?.cpu.saturating_sub(sink_before.cpu);
    Ok((rate, per_request(own), per_request(other)))
}
