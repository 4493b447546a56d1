//! Metrics: what running planes serve is what they have described, and what an integration's lag looks like.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use tbmq_e2e::{
    api::{http, http_with},
    deployment::{Deployment, Plane},
    work,
};
use tbmq_harness::{Need, client::Plan, http_sink::HttpSink, kafka::Kafka, postgres::Postgres, ready};
use tbmq_service::metrics::{
    Description, Kind, Metrics, Registry, Values,
    exposition::{self, Family, Value},
};

const PATIENCE: Duration = Duration::from_secs(60);

type Describe = fn(&mut Registry);

const PLANES: [(&str, Describe); 3] = [
    ("Control plane", tbmq_control_plane::describe_metrics),
    ("Data plane", tbmq_data_plane::describe_metrics),
    ("Executor", tbmq_executor::describe_metrics),
];

/// What every process has: its own registry, and what pushes it.
fn common() -> Metrics {
    let metrics = Metrics::default();
    metrics.register(tbmq_service::otlp_metrics::describe_metrics);
    metrics.register(tbmq_service::trace::describe_metrics);
    metrics
}

/// What is not as it was described.
fn differences(scraped: &[Family], described: &[Description]) -> Vec<String> {
    let mut found = Vec::new();
    let described: BTreeMap<&str, &Description> =
        described.iter().map(|metric| (metric.name.as_str(), metric)).collect();
    for family in scraped {
        let Some(metric) = described.get(family.name.as_str()) else {
            found.push(format!("{} is not described", family.name));
            continue;
        };
        if (family.kind, family.help.as_str()) != (metric.kind, format!("{}.", metric.help).as_str()) {
            found.push(format!("{} is described otherwise: {:?}, {}", family.name, family.kind, family.help));
        }
        for series in &family.series {
            let names: Vec<&str> = series.labels.iter().map(|(name, _)| name.as_str()).collect();
            let expected: Vec<&str> = metric.labels.iter().map(|label| label.name).collect();
            if names != expected {
                found.push(format!("{} has labels {names:?}, not {expected:?}", family.name));
            }
            for ((name, value), label) in series.labels.iter().zip(&metric.labels) {
                if let Values::Closed(values) = &label.values
                    && !values.contains(&value.as_str())
                {
                    found.push(format!("{}: {name} is {value}, none of {values:?}", family.name));
                }
            }
        }
    }
    let scraped: BTreeSet<&str> = scraped.iter().map(|family| family.name.as_str()).collect();
    // What has labels has no series before something happens.
    let always = described.values().filter(|metric| metric.labels.is_empty());
    found.extend(
        always
            .filter(|metric| !scraped.contains(metric.name.as_str()))
            .map(|metric| format!("{} is not served", metric.name)),
    );
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_three_planes_serve_is_what_the_page_says() -> Result<()> {
    if !ready("what_three_planes_serve", &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = Deployment::planes(Kafka::shared(), Postgres::shared())?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    api.create_active(http("measured", &["s/#"], &sink.url("in"))).await?;
    work::publish(Plan::new(deployment.mqtt(), "s/a", 20), 1).await?;
    sink.wait_for(20, PATIENCE).await?;
    let of_plane = [Plane::Control, Plane::Data, Plane::Executor];
    for ((title, describe), plane) in PLANES.into_iter().zip(of_plane) {
        let metrics = common();
        metrics.register(describe);
        let scraped = exposition::read(&deployment.metrics(plane)?)?;
        let found = differences(&scraped, &metrics.descriptions());
        // Spans are counted where they are exported.
        let found: Vec<&String> = found.iter().filter(|text| !text.starts_with("tbmq_trace_")).collect();
        assert!(found.is_empty(), "{title}: {found:#?}");
    }
    let data = exposition::read(&deployment.metrics(Plane::Data)?)?;
    let executor = exposition::read(&deployment.metrics(Plane::Executor)?)?;
    assert_eq!(number(&data, "incomingPublishMsg_published", "successfulMsgs"), Some(20.0));
    assert_eq!(count(&data, "tbmq_mqtt_puback_seconds", ""), Some(20));
    assert_eq!(count(&executor, "tbmq_executor_delivery_seconds", "HTTP"), Some(20));
    assert_eq!(count(&executor, "tbmq_executor_attempt_seconds", "delivered"), Some(20));
    deployment.drain_all()
}

/// The value of the series with this label value; an empty one: of the one without labels.
fn value<'a>(families: &'a [Family], name: &str, label: &str) -> Option<&'a Value> {
    let family = families.iter().find(|family| family.name == name)?;
    let series = family.series.iter().find(|series| {
        label.is_empty() && series.labels.is_empty() || series.labels.iter().any(|(_, value)| value == label)
    })?;
    Some(&series.value)
}

fn number(families: &[Family], name: &str, label: &str) -> Option<f64> {
    match value(families, name, label)? {
        Value::Number(number) => Some(*number),
        Value::Distribution(_) => None,
    }
}

fn count(families: &[Family], name: &str, label: &str) -> Option<u64> {
    match value(families, name, label)? {
        Value::Number(_) => None,
        Value::Distribution(distribution) => Some(distribution.count),
    }
}

/// Reads the metrics of the process until they say so.
async fn until(
    deployment: &Deployment,
    what: &str,
    holds: impl Fn(&[Family]) -> bool,
) -> Result<Vec<Family>> {
    let began = Instant::now();
    loop {
        let families = exposition::read(&deployment.metrics(Plane::All)?)?;
        if holds(&families) {
            return Ok(families);
        }
        let lags: Vec<&Family> =
            families.iter().filter(|family| family.name.starts_with("tbmq_integration_")).collect();
        ensure!(began.elapsed() < PATIENCE, "in vain: {what}; {lags:#?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_hangs_shows_as_lag_and_nothing_is_unaccounted() -> Result<()> {
    let mut deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let (hang, hangs) = tokio::sync::watch::channel(false);
    sink.script(move |_, _, _| {
        (StatusCode::OK, if *hangs.borrow() { Duration::from_secs(600) } else { Duration::ZERO })
    });
    let delivery = r#"{"ackStrategy":"RETRY_ALL","retries":0,"pauseBetweenRetriesSec":0,"packProcessingTimeoutMs":5000}"#;
    let integration = api.create_active(http_with("slow", &["s/#"], &sink.url("in"), delivery)).await?;
    let id = integration.name.strip_prefix("integrations/").context("a name")?.to_owned();
    work::publish(Plan::new(deployment.mqtt(), "s/a", 10), 1).await?;
    sink.wait_for(10, PATIENCE).await?;
    hang.send_replace(true);
    work::publish(Plan::new(deployment.mqtt(), "s/a", 30).first(10), 1).await?;

    let families = until(&deployment, "30 messages wait, for a while", |families| {
        number(families, "tbmq_integration_lag_messages", &id) == Some(30.0)
            && number(families, "tbmq_integration_lag_seconds", &id).is_some_and(|seconds| seconds > 5.0)
    })
    .await?;
    for name in ["tbmq_integration_unaccounted_messages", "tbmq_executor_unaccounted_messages"] {
        assert_eq!(number(&families, name, &id), Some(0.0), "{name}");
    }
    let in_hand = ["tbmq_executor_in_flight_messages", "tbmq_executor_waiting_messages"]
        .map(|name| number(&families, name, &id).unwrap_or_default());
    assert!((in_hand.iter().sum::<f64>() - 30.0).abs() < 0.5, "{in_hand:?}");
    assert_eq!(number(&families, "tbmq_integration_time_to_drain_seconds", &id), None, "it does not shrink");

    hang.send_replace(false);
    let families = until(&deployment, "nothing waits", |families| {
        number(families, "tbmq_integration_lag_messages", &id) == Some(0.0)
    })
    .await?;
    assert_eq!(number(&families, "tbmq_integration_lag_seconds", &id), Some(0.0));
    assert_eq!(number(&families, "tbmq_integration_unaccounted_messages", &id), Some(0.0));

    api.delete(&integration.name).await?;
    until(&deployment, "its series are gone", |families| {
        number(families, "tbmq_integration_lag_messages", &id).is_none()
    })
    .await?;
    deployment.drain_all()
}

#[test]
fn a_metric_that_is_not_described_is_noticed() {
    let text = "# HELP a A.\n# TYPE a gauge\na{b=\"c\"} 1\n# HELP d D.\n# TYPE d gauge\nd 1\n# EOF\n";
    let scraped = exposition::read(text).unwrap();
    let describe = |name: &str, label: Option<tbmq_service::metrics::Label>| Description {
        name: name.to_owned(),
        kind: Kind::Gauge,
        unit: None,
        help: name.to_uppercase(),
        labels: label.into_iter().collect(),
    };
    let label = |value: &'static str| Some(tbmq_service::metrics::Label::closed("b", vec![value]));
    assert_eq!(
        differences(&scraped, &[describe("a", label("c")), describe("d", None)]),
        Vec::<String>::new()
    );
    assert_eq!(differences(&scraped, &[describe("a", label("x")), describe("d", None)]).len(), 1);
    assert_eq!(differences(&scraped, &[describe("a", label("c"))]), ["d is not described"]);
    let more = [describe("a", label("c")), describe("d", None), describe("e", None)];
    assert_eq!(differences(&scraped, &more), ["e is not served"]);
}
