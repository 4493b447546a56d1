//! `bench e2e`: MQTT QoS 1 → bus → executor → HTTP, everything on this machine.
//!
//! The sink is a process of its own and so is the floor: the bare HTTP client of the executor posting the same bodies
//! to the same sink, which no delivery over HTTP can undercut.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Args;
use tbmq_harness::{
    client::{Plan, publish_all},
    kafka::{Kafka, KafkaOptions},
    ledger::Mark,
    postgres::Postgres,
    process::{Process, Usage},
};
use tbmq_proto::control::{
    CreateIntegrationRequest, GetIntegrationRequest, Integration,
    integration_service_client::IntegrationServiceClient, integration_status::Phase,
};

use crate::{
    peer::{Peer, Role},
    sinks::floor,
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
        setting("LISTENER_WS_ENABLED", false),
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
            setting("LISTENER_WS_ENABLED", false),
            setting("CONTROL_GRPC_BIND_ADDRESS", "127.0.0.1"),
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
    let mut sink = Peer::start(Role::Http).await?;
    create_integration(grpc, &format!("http://{}/in", sink.address())).await?;
    let before: Vec<Usage> = processes.iter().map(|(_, pid)| Usage::of(*pid)).collect::<Result<_>>()?;
    let each = options.messages / u64::from(options.publishers);
    let total = each * u64::from(options.publishers);
    sink.expect(total, 0).await?;
    let (own_before, sink_before) = (Usage::of(std::process::id())?, sink.cpu()?);
    let start = Instant::now();
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
    sink.first().await?;
    let seen = sink.done().await?;
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
        per_message(sink.cpu()?.saturating_sub(sink_before))
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
        let integration = client
            .get_integration(GetIntegrationRequest { name: name.clone(), ..Default::default() })
            .await?
            .into_inner();
        if integration.status.is_some_and(|status| status.phase() == Phase::Active) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the integration does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Rate, and CPU µs per request of client and sink.
async fn floor(options: &Options) -> Result<(f64, f64, f64)> {
    let sink = Peer::start(Role::Http).await?;
    let total = options.messages.min(100_000) as usize;
    let bodies: Arc<[Bytes]> = vec![Bytes::from(Mark::new(0, 0).payload(options.size)); total].into();
    let client = floor::client()?;
    let (own_before, sink_before) = (Usage::of(std::process::id())?, sink.cpu()?);
    let start = Instant::now();
    floor::post(&client, &format!("http://{}/in", sink.address()), &bodies, 64).await?;
    let rate = total as f64 / start.elapsed().as_secs_f64();
    let per_request = |time: Duration| time.as_secs_f64() * 1e6 / total as f64;
    let own = Usage::of(std::process::id())?.cpu.saturating_sub(own_before.cpu);
    let other = sink.cpu()?.saturating_sub(sink_before);
    Ok((rate, per_request(own), per_request(other)))
}
