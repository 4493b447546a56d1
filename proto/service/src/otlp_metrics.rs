//! Pushes metrics to an OpenTelemetry collector: what the registry holds, as it would be scraped, every
//! `OTEL_METRIC_EXPORT_INTERVAL`.
//!
//! Values are cumulative, so that what one push has lost the next one tells. Nothing waits for a push, and a collector
//! that is away costs a warning and a counter.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_client::MetricsServiceClient,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, exemplar, metric, number_data_point,
    },
    resource::v1::Resource,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use prost::Message as _;
use tokio::{sync::oneshot, task::JoinHandle, time::MissedTickBehavior};
use tonic::metadata::MetadataMap;

use crate::{
    build_info, label_values,
    metrics::{
        Kind, Label, Metrics, Registry,
        exposition::{self, Distribution, Family as Scraped, Series, Value},
    },
    time,
    trace::{
        Transport,
        config::{OtelConfig, Target},
    },
};

/// How long the last push may take.
const LAST_PUSH: Duration = Duration::from_secs(5);

/// Pushes until it is told to finish.
#[derive(Debug)]
pub struct Pushing {
    finish: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Pushing {
    /// Begins to push what `metrics` holds, if the settings ask for it. `name` is `service.name` unless the settings
    /// give one. Must be called in a runtime; does not wait for the collector.
    ///
    /// # Errors
    /// When headers or certificates can't be used.
    pub fn start(
        config: &OtelConfig,
        name: &str,
        service_id: &str,
        metrics: &Metrics,
    ) -> anyhow::Result<Option<Self>> {
        let counters = metrics.register(Counters::register);
        if !config.metrics_are_on() {
            return Ok(None);
        }
        let target = config.metrics_target();
        let pusher = Pusher {
            link: Link::open(&target)?,
            timeout: target.timeout,
            resource: config.resource(name, service_id),
            started_ns: nanoseconds(time::now_ms() as f64 / 1e3),
            metrics: metrics.clone(),
            counters,
        };
        let interval = Duration::from_millis(config.metrics.interval.get());
        tracing::info!(endpoint = target.endpoint, ?interval, "metrics are pushed");
        let (finish, finished) = oneshot::channel();
        Ok(Some(Self { finish, task: tokio::spawn(pusher.run(interval, finished)) }))
    }

    /// Pushes once more, within a bounded time.
    pub async fn finish(self) {
        self.finish.send(()).ok();
        let abort = self.task.abort_handle();
        if tokio::time::timeout(LAST_PUSH, self.task).await.is_err() {
            abort.abort();
            tracing::warn!("the last metrics were not pushed in time");
        }
    }
}

/// What is measured of pushing.
pub fn describe_metrics(registry: &mut Registry) {
    Counters::register(registry);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PushLabel {
    outcome: Push,
}

label_values! {
    /// What became of a push.
    enum Push {
        Sent,
        /// The collector took a part of it.
        Partial,
        Failed,
    }
}

#[derive(Clone, Debug, Default)]
struct Counters(Family<PushLabel, Counter>);

impl Counters {
    fn register(registry: &mut Registry) -> Self {
        let counters = Self::default();
        registry.family(
            "tbmq_service_metric_exports",
            "Pushes of all metrics to an OpenTelemetry collector",
            vec![Label::closed("outcome", Push::NAMES)],
            counters.0.clone(),
        );
        counters
    }
}

struct Pusher {
    link: Link,
    timeout: Duration,
    resource: Vec<(String, String)>,
    started_ns: u64,
    metrics: Metrics,
    counters: Counters,
}

impl Pusher {
    async fn run(self, interval: Duration, mut finished: oneshot::Receiver<()>) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once, when there is nothing to tell yet.
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick() => self.push().await,
                _ = &mut finished => return self.push().await,
            }
        }
    }

    async fn push(&self) {
        let now_ns = nanoseconds(time::now_ms() as f64 / 1e3);
        let request = request(&self.metrics.read(), &self.resource, self.started_ns, now_ns);
        let pushed = match tokio::time::timeout(self.timeout, self.link.send(request)).await {
            Ok(pushed) => pushed,
            Err(_) => Err(anyhow::anyhow!("no answer within {} ms", self.timeout.as_millis())),
        };
        let outcome = match pushed {
            Ok(None) => Push::Sent,
            Ok(Some(complaint)) => {
                tracing::warn!(complaint, "the collector did not take all metrics");
                Push::Partial
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(
                    error,
                    "metrics were not pushed; the next push tells what this one had to tell"
                );
                Push::Failed
            }
        };
        self.counters.0.get_or_create(&PushLabel { outcome }).inc();
    }
}

/// The connection to the collector.
enum Link {
    Grpc { client: MetricsServiceClient<tonic::transport::Channel>, headers: MetadataMap },
    Http { client: reqwest::Client, target: Target },
}

impl Link {
    fn open(target: &Target) -> anyhow::Result<Self> {
        Ok(match Transport::open(target)? {
            Transport::Grpc { channel, headers } => {
                Self::Grpc { client: MetricsServiceClient::new(channel), headers }
            }
            Transport::Http { client, .. } => Self::Http { client, target: target.clone() },
        })
    }

    /// Returns what the collector has to complain about, if it took only a part.
    async fn send(&self, request: ExportMetricsServiceRequest) -> anyhow::Result<Option<String>> {
        let response = match self {
            Self::Grpc { client, headers } => {
                let mut call = tonic::Request::new(request);
                *call.metadata_mut() = headers.clone();
                let answer = client.clone().export(call).await;
                answer
                    .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))?
                    .into_inner()
            }
            Self::Http { client, target } => {
                let mut post = client
                    .post(&target.endpoint)
                    .header(reqwest::header::CONTENT_TYPE, "application/x-protobuf")
                    .body(request.encode_to_vec());
                for (name, value) in &target.headers {
                    post = post.header(name, value.expose());
                }
                // Its text repeats the URL, which may hold a password.
                let answer = post.send().await.map_err(reqwest::Error::without_url)?;
                anyhow::ensure!(answer.status().is_success(), "the collector answered {}", answer.status());
                let body = answer.bytes().await.map_err(reqwest::Error::without_url)?;
                ExportMetricsServiceResponse::decode(body)
                    .context("the collector's answer can't be understood")?
            }
        };
        Ok(response
            .partial_success
            .filter(|partial| partial.rejected_data_points > 0)
            .map(|partial| format!("{} points: {}", partial.rejected_data_points, partial.error_message)))
    }
}

/// What is pushed.
fn request(
    families: &[Scraped],
    resource: &[(String, String)],
    started_ns: u64,
    now_ns: u64,
) -> ExportMetricsServiceRequest {
    let metrics = families.iter().map(|family| metric(family, started_ns, now_ns)).collect();
    let scope = InstrumentationScope {
        name: "tbmq".to_owned(),
        version: build_info::VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let of_scope = ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() };
    let resource = Resource { attributes: attributes(resource), ..Resource::default() };
    let resource_metrics = ResourceMetrics {
        resource: Some(resource),
        scope_metrics: vec![of_scope],
        ..ResourceMetrics::default()
    };
    ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] }
}

fn metric(family: &Scraped, started_ns: u64, now_ns: u64) -> Metric {
    let numbers = |start_time_unix_nano: u64| {
        let point = |series: &Series| {
            let Value::Number(number) = series.value else { return None };
            Some(NumberDataPoint {
                attributes: attributes(&series.labels),
                start_time_unix_nano,
                time_unix_nano: now_ns,
                value: Some(number_data_point::Value::AsDouble(number)),
                ..NumberDataPoint::default()
            })
        };
        family.series.iter().filter_map(point).collect::<Vec<_>>()
    };
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let (name, data) = match family.kind {
        Kind::Counter => {
            let sum = Sum { data_points: numbers(started_ns), aggregation_temporality, is_monotonic: true };
            (family.name.clone(), metric::Data::Sum(sum))
        }
        Kind::Gauge => (family.name.clone(), metric::Data::Gauge(Gauge { data_points: numbers(0) })),
        // As OpenTelemetry has it for OpenMetrics' infos.
        Kind::Info => {
            (format!("{}_info", family.name), metric::Data::Gauge(Gauge { data_points: numbers(0) }))
        }
        Kind::Histogram => {
            let point = |series: &Series| {
                let Value::Distribution(distribution) = &series.value else { return None };
                Some(histogram_point(&series.labels, distribution, started_ns, now_ns))
            };
            let data_points = family.series.iter().filter_map(point).collect();
            (family.name.clone(), metric::Data::Histogram(Histogram { data_points, aggregation_temporality }))
        }
    };
    Metric {
        name,
        description: family.help.clone(),
        unit: unit(&family.name).to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn histogram_point(
    labels: &[(String, String)],
    distribution: &Distribution,
    started_ns: u64,
    now_ns: u64,
) -> HistogramDataPoint {
    let buckets = &distribution.buckets;
    let below = std::iter::once(0).chain(buckets.iter().map(|bucket| bucket.cumulative));
    HistogramDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: started_ns,
        time_unix_nano: now_ns,
        count: distribution.count,
        sum: Some(distribution.sum),
        bucket_counts: buckets.iter().zip(below).map(|(bucket, below)| bucket.cumulative - below).collect(),
        explicit_bounds: buckets
            .iter()
            .map(|bucket| bucket.bound)
            .filter(|bound| bound.is_finite())
            .collect(),
        exemplars: buckets.iter().filter_map(|bucket| bucket.exemplar.as_ref()).map(exemplar).collect(),
        ..HistogramDataPoint::default()
    }
}

fn exemplar(of: &exposition::Exemplar) -> Exemplar {
    let id = |name: &str| {
        let label = of.labels.iter().find(|(label, _)| label == name);
        label.and_then(|(_, digits)| bytes_of(digits)).unwrap_or_default()
    };
    Exemplar {
        trace_id: id("trace_id"),
        span_id: id("span_id"),
        time_unix_nano: of.at.map(nanoseconds).unwrap_or_default(),
        value: Some(exemplar::Value::AsDouble(of.value)),
        ..Exemplar::default()
    }
}

/// The bytes of hexadecimal digits.
fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let pairs = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok());
    pairs.collect()
}

/// OpenTelemetry's word (UCUM) for the unit that a name ends in.
fn unit(name: &str) -> &'static str {
    match name.rsplit_once('_').map(|(_, last)| last) {
        Some("seconds") => "s",
        Some("milliseconds") => "ms",
        Some("bytes") => "By",
        _ => "",
    }
}

fn attributes(pairs: &[(String, String)]) -> Vec<KeyValue> {
    let attribute = |(name, value): &(String, String)| KeyValue {
        key: name.clone(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.clone())) }),
        ..KeyValue::default()
    };
    pairs.iter().map(attribute).collect()
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e3).round() as u64 * 1_000_000
}

#[cfg(test)]
mod tests;
