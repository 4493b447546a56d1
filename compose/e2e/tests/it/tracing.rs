//! One trace from a paho client's PUBLISH to the HTTP sink's call, over the real servers, as a collector sees it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tbmq_harness::{
    Need,
    collector::{CollectedSpan, Collector},
    http_sink::{HttpSink, Received},
    kafka::Kafka,
    libraries::Library,
    postgres::Postgres,
    ready,
};
use tbmq_proto::control::CreateIntegrationRequest;

use crate::clients::agent::Program;
use tbmq_e2e::{
    api::http,
    deployment::{Deployment, Layout, Plane},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The client's own span.
const CLIENT_SPAN: &str = "b7ad6b7169203331";

const NEEDS: [Need; 3] = [Need::Kafka, Need::Postgres, Need::Library(Library::PahoPython)];

fn trace_id(number: u128) -> String {
    format!("{:032x}", 0x0af7_6519_16cd_43dd_8448_eb21_0000_0000 + number)
}

fn traceparent(number: u128) -> String {
    format!("00-{}-{CLIENT_SPAN}-01", trace_id(number))
}

/// What a deployment is told of a collector.
fn settings(protocol: &str, endpoint: &str) -> [(&'static str, String); 3] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
    ]
}

fn planes(settings: &[(&str, String)]) -> Result<Deployment> {
    let layout = settings.iter().fold(Layout::default(), |layout, (name, value)| layout.setting(name, value));
    layout.start(Kafka::shared(), Postgres::shared())
}

fn standalone(settings: &[(&str, String)]) -> Result<Deployment> {
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Deployment::standalone_with(&settings)
}

/// A paho client of MQTT 5 publishes as part of these traces, and is acknowledged. Blocks.
fn publish(deployment: &Deployment, numbers: std::ops::Range<u128>) -> Result<()> {
    let mut paho = Program::start(Library::PahoPython)?;
    let url = format!("mqtt://{}", deployment.mqtt());
    paho.ask(&json!({ "do": "connect", "client": "device", "url": url, "version": 5, "clean": true }))?;
    for number in numbers {
        let properties = json!({
            "format": 1, "expiry": 3600, "content_type": "text/plain", "response_topic": "r", "correlation": "c",
            "user": [["other", "1"], ["traceparent", traceparent(number)], ["tracestate", "vendor=x"]],
        });
        paho.ask(&json!({
            "do": "publish", "client": "device", "topic": "s/a", "payload": format!("message {number}"), "qos": 1,
            "retain": false, "properties": properties,
        }))?;
    }
    paho.ask(&json!({ "do": "disconnect", "client": "device" })).map(drop)
}

fn header<'a>(received: &'a Received, name: &str) -> Option<&'a str> {
    received.headers.get(name)?.to_str().ok()
}

fn of<'a>(spans: &'a [CollectedSpan], name: &str) -> Result<&'a CollectedSpan> {
    spans.iter().find(|span| span.name == name).with_context(|| format!("no span {name} in {spans:?}"))
}

fn has(spans: &[CollectedSpan], names: &[&str]) -> bool {
    names.iter().all(|name| spans.iter().any(|span| span.name == *name))
}

/// Follows a message from the paho client to the HTTP sink, and the question that came before it.
async fn follow(deployment: Deployment, collector: &Collector, bus_is_kafka: bool) -> Result<()> {
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;

    let mut request = tonic::Request::new(CreateIntegrationRequest {
        integration: Some(http("traced", &["s/#"], &sink.url("in"))),
        ..CreateIntegrationRequest::default()
    });
    request.metadata_mut().insert("traceparent", traceparent(0).parse()?);
    let created = api.integrations.create_integration(request).await?.into_inner();
    api.await_phase(&created.name, tbmq_proto::control::integration_status::Phase::Active).await?;
    let names = ["tbmq.control.v1.IntegrationService/CreateIntegration", "validation", "validate"];
    let question = collector.trace(&trace_id(0), PATIENCE, |spans| has(spans, &names)).await?;
    let [call, asked, judged] =
        [of(&question, names[0])?, of(&question, names[1])?, of(&question, names[2])?];
    // An executor that is slow is asked again.
    ensure!(question.iter().filter(|span| span.name != "validate").count() == 2, "{question:?}");
    ensure!((call.parent_id.as_str(), call.kind) == (CLIENT_SPAN, 2), "{call:?}");
    ensure!((&asked.parent_id, asked.kind) == (&call.span_id, 4), "{asked:?}");
    ensure!((&judged.parent_id, judged.kind) == (&asked.span_id, 5), "{judged:?}");
    ensure!(call.service == "tbmq-control-plane" && asked.service == "tbmq-control-plane", "{call:?}");
    ensure!(judged.service == "tbmq-executor", "{judged:?}");
    ensure!(
        call.attributes["rpc.system"] == "grpc" && call.attributes["rpc.grpc.status_code"] == "0",
        "{call:?}"
    );

    let _running = published(deployment, 1..2).await?;
    sink.wait_for(1, PATIENCE).await?;
    let chain = ["publish", "send", "process", "deliver"];
    let message = collector.trace(&trace_id(1), PATIENCE, |spans| has(spans, &chain)).await?;
    ensure!(message.len() == 4, "{message:?}");
    let (kinds, planes) = ([2, 4, 5, 3], ["data-plane", "data-plane", "executor", "executor"]);
    let mut parent = CLIENT_SPAN.to_owned();
    for ((name, kind), plane) in chain.into_iter().zip(kinds).zip(planes) {
        let span = of(&message, name)?;
        ensure!((&span.parent_id, span.kind, span.is_error) == (&parent, kind, false), "{message:?}");
        ensure!(span.service == format!("tbmq-{plane}") && span.resource["tbmq.plane"] == plane, "{span:?}");
        parent.clone_from(&span.span_id);
    }
    let received = &sink.received()[0];
    let place = format!("00-{}-{parent}-01", trace_id(1));
    ensure!(header(received, "traceparent") == Some(&place), "{received:?}, and not {place}");
    ensure!(header(received, "tracestate") == Some("vendor=x"), "{received:?}");
    let sent = of(&message, "send")?;
    ensure!(sent.attributes["messaging.destination.name"].contains("tbmq.msg.ie."), "{sent:?}");
    ensure!(of(&message, "process")?.attributes["tbmq.outcome"] == "delivered", "{message:?}");
    if bus_is_kafka {
        let services: BTreeMap<_, _> =
            message.iter().map(|span| (&span.service, &span.resource["service.instance.id"])).collect();
        ensure!(services.len() == 2, "{services:?}");
    }
    Ok(())
}

/// [`publish`], away from the threads that serve.
async fn published(deployment: Deployment, numbers: std::ops::Range<u128>) -> Result<Deployment> {
    tokio::task::spawn_blocking(move || {
        publish(&deployment, numbers)?;
        Ok(deployment)
    })
    .await?
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_publish_to_sink_over_grpc() -> Result<()> {
    if !ready("one_trace_from_publish_to_sink_over_grpc", &NEEDS) {
        return Ok(());
    }
    let collector = Collector::start().await?;
    let deployment = planes(&settings("grpc", &collector.grpc()))?;
    follow(deployment, &collector, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_publish_to_sink_over_http() -> Result<()> {
    if !ready("one_trace_from_publish_to_sink_over_http", &NEEDS) {
        return Ok(());
    }
    let collector = Collector::start().await?;
    let deployment = planes(&settings("http/protobuf", &collector.http()))?;
    follow(deployment, &collector, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_publish_to_sink_in_one_process() -> Result<()> {
    if !ready("one_trace_from_publish_to_sink_in_one_process", &NEEDS[2..]) {
        return Ok(());
    }
    let collector = Collector::start().await?;
    let deployment = standalone(&settings("http/protobuf", &collector.http()))?;
    follow(deployment, &collector, false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_changes_nothing_and_what_is_lost_is_counted() -> Result<()> {
    if !ready("a_collector_that_is_away_changes_nothing_and_what_is_lost_is_counted", &NEEDS[2..]) {
        return Ok(());
    }
    // Nobody listens there.
    let away = settings("grpc", "http://127.0.0.1:9");
    let more = [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "500".to_owned()),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "64".to_owned()),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16".to_owned()),
    ];
    let deployment = standalone(&[&away[..], &more[..]].concat())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    api.create_active(http("untouched", &["s/#"], &sink.url("in"))).await?;
    let mut deployment = published(deployment, 1..101).await?;
    sink.wait_for(100, PATIENCE).await?;
    let mut traces: Vec<_> = sink
        .received()
        .iter()
        .filter_map(|one| header(one, "traceparent").map(|text| text[3..35].to_owned()))
        .collect();
    traces.sort_unstable();
    ensure!(traces == (1..101).map(trace_id).collect::<Vec<_>>(), "{traces:?}");
    let lost = |text: &str| -> u64 {
        let names = ["tbmq_trace_spans_failed_total ", "tbmq_trace_spans_dropped_total "];
        text.lines()
            .filter_map(|line| names.iter().find_map(|name| line.strip_prefix(name)?.parse::<u64>().ok()))
            .sum()
    };
    let counted = async {
        while lost(&deployment.metrics(Plane::All)?) == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, counted).await.context("nothing is counted as lost")??;
    deployment.drain_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_leave_when_a_process_is_stopped() -> Result<()> {
    if !ready("the_last_spans_leave_when_a_process_is_stopped", &NEEDS[2..]) {
        return Ok(());
    }
    let collector = Collector::start().await?;
    // Nothing leaves before the end.
    let rarely = [("OTEL_BSP_SCHEDULE_DELAY", "600000".to_owned())];
    let deployment = standalone(&[&settings("grpc", &collector.grpc())[..2], &rarely[..]].concat())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    api.create_active(http("last", &["s/#"], &sink.url("in"))).await?;
    let mut deployment = published(deployment, 1..2).await?;
    sink.wait_for(1, PATIENCE).await?;
    ensure!(collector.spans().is_empty(), "{:?}", collector.spans());
    deployment.drain_all()?;
    collector.trace(&trace_id(1), PATIENCE, |spans| spans.len() == 4).await.map(drop)
}

#[test]
fn a_bad_setting_is_told_before_anything_is_served() -> Result<()> {
    let program = tbmq_harness::process::binary("tbmq-data-plane")?;
    let output = std::process::Command::new(program)
        .env("TB_KAFKA_SERVERS", "127.0.0.1:9")
        .env("OTEL_TRACES_SAMPLER", "sometimes")
        .output()?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2), "{:?}: {text}", output.status);
    for part in ["OTEL_TRACES_SAMPLER", "sometimes", "parentbased_traceidratio"] {
        ensure!(text.contains(part), "{part} is not in {text}");
    }
    Ok(())
}
