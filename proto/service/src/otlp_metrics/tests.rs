use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess,
    metrics_service_server::{MetricsService, MetricsServiceServer},
};
use parking_lot::Mutex;
use prometheus_client::{metrics::gauge::Gauge as ScrapedGauge, registry::Unit};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{Response, Status};

use super::*;
use crate::{metrics::Durations, trace::TraceContext};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector that keeps what it gets, with the header `who`.
#[derive(Clone)]
struct Collector {
    got: mpsc::Sender<(String, ExportMetricsServiceRequest)>,
    /// How many points it does not take.
    rejects: Arc<Mutex<i64>>,
}

impl Collector {
    fn take(
        &self,
        who: Option<String>,
        request: ExportMetricsServiceRequest,
    ) -> ExportMetricsServiceResponse {
        self.got.try_send((who.unwrap_or_default(), request)).unwrap();
        let rejected_data_points = *self.rejects.lock();
        let partial_success =
            Some(ExportMetricsPartialSuccess { rejected_data_points, ..Default::default() });
        ExportMetricsServiceResponse { partial_success }
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let who = request.metadata().get("who").map(|value| value.to_str().unwrap().to_owned());
        Ok(Response::new(self.take(who, request.into_inner())))
    }
}

async fn over_http(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let who = headers.get("who").map(|value| value.to_str().unwrap().to_owned());
    collector.take(who, ExportMetricsServiceRequest::decode(body).unwrap()).encode_to_vec()
}

/// Listens with both protocols: gRPC first, then HTTP.
async fn collector()
-> (Collector, mpsc::Receiver<(String, ExportMetricsServiceRequest)>, [(&'static str, SocketAddr); 2]) {
    let (got, receiver) = mpsc::channel(1024);
    let collector = Collector { got, rejects: Arc::default() };
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [("grpc", grpc.local_addr().unwrap()), ("http/protobuf", http.local_addr().unwrap())];
    let served = MetricsServiceServer::new(collector.clone());
    let incoming = tonic::transport::server::TcpIncoming::from(grpc);
    tokio::spawn(tonic::transport::Server::builder().add_service(served).serve_with_incoming(incoming));
    let router = Router::new().route("/v1/metrics", post(over_http)).with_state(collector.clone());
    tokio::spawn(async move { axum::serve(http, router).await });
    (collector, receiver, addresses)
}

fn config(protocol: &str, address: SocketAddr, interval_ms: u64) -> OtelConfig {
    serde_json::from_value(serde_json::json!({
        "otlp": { "endpoint": format!("http://{address}"), "protocol": protocol, "headers": "who=me", "timeout": 5000 },
        "metrics": { "interval": interval_ms },
        "resource-attributes": "place=here",
    }))
    .unwrap()
}

/// A registry with one of each.
fn measured() -> Metrics {
    let metrics = Metrics::default();
    let counter = Family::<[(&'static str, &'static str); 1], Counter>::default();
    let gauge = ScrapedGauge::<f64, std::sync::atomic::AtomicU64>::default();
    let durations = Durations::new();
    metrics.register(|registry| {
        let labels = vec![Label::closed("colour", &["red", "blue"][..])];
        registry.family("test_balls", "Balls", labels, counter.clone());
        registry.register_with_unit("test_heat", "Heat", Unit::Bytes, gauge.clone());
        registry.register_with_unit("test_wait", "Waits", Unit::Seconds, durations.clone());
    });
    counter.get_or_create(&[("colour", "red")]).inc_by(7);
    counter.get_or_create(&[("colour", "blue")]).inc();
    gauge.set(-1.5);
    durations.observe_traced(Duration::from_millis(4), TraceContext::parse(TRACE).as_ref());
    durations.observe(Duration::from_millis(4));
    durations.observe(Duration::from_secs(100));
    metrics
}

/// Names with attributes, and what is told of them: numbers, or counts and sum.
fn told(request: &ExportMetricsServiceRequest) -> BTreeMap<String, Vec<f64>> {
    let mut all = BTreeMap::new();
    let text = |attributes: &[KeyValue]| {
        let pairs =
            attributes.iter().map(|pair| format!("{}={:?}", pair.key, pair.value.as_ref().unwrap().value));
        pairs.collect::<Vec<_>>().join(",")
    };
    for metric in &request.resource_metrics[0].scope_metrics[0].metrics {
        let mut tell = |attributes: &[KeyValue], values: Vec<f64>| {
            assert!(all.insert(format!("{}{{{}}}", metric.name, text(attributes)), values).is_none());
        };
        let number = |point: &NumberDataPoint| match point.value {
            Some(number_data_point::Value::AsDouble(value)) => vec![value],
            ref other => panic!("{other:?}"),
        };
        match metric.data.as_ref().unwrap() {
            metric::Data::Gauge(gauge) => {
                gauge.data_points.iter().for_each(|point| tell(&point.attributes, number(point)));
            }
            metric::Data::Sum(sum) => {
                assert!(sum.is_monotonic);
                sum.data_points.iter().for_each(|point| tell(&point.attributes, number(point)));
            }
            metric::Data::Histogram(histogram) => {
                for point in &histogram.data_points {
                    let mut values: Vec<f64> =
                        point.bucket_counts.iter().map(|count| *count as f64).collect();
                    values.extend([point.count as f64, point.sum.unwrap()]);
                    tell(&point.attributes, values);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    all
}

fn pushed<'a>(request: &'a ExportMetricsServiceRequest, name: &str) -> &'a Metric {
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    metrics.iter().find(|metric| metric.name == name).unwrap()
}

/// The series that nothing but this test changes from one look to the next. Lines of the log are the whole process's, and
/// so of the tests that run beside it.
fn is_steady(name: &str) -> bool {
    !["process_", "tbmq_service_metric_exports", "tbmq_service_log_repeats"]
        .iter()
        .any(|changing| name.starts_with(changing))
}

#[tokio::test]
async fn what_is_pushed_is_what_is_scraped_over_both_protocols() {
    let (_collector, mut got, addresses) = collector().await;
    for (protocol, address) in addresses {
        let metrics = measured();
        let config = config(protocol, address, 20);
        let pushing = Pushing::start(&config, "tbmq-test", "node-1", &metrics).unwrap().unwrap();
        let (who, request) = got.recv().await.unwrap();
        assert_eq!(who, "me", "{protocol}");

        let scraped = super::request(&metrics.read(), &[], 0, 0);
        let steady = |request: &ExportMetricsServiceRequest| {
            let mut all = told(request);
            all.retain(|name, _| is_steady(name));
            all
        };
        let (pushed_values, scraped) = (steady(&request), steady(&scraped));
        assert_eq!(pushed_values, scraped, "{protocol}");
        assert_eq!(pushed_values["test_balls{colour=Some(StringValue(\"red\"))}"], [7.0]);
        assert_eq!(pushed_values["test_heat_bytes{}"], [-1.5]);

        let resource = request.resource_metrics[0].resource.as_ref().unwrap();
        for (name, value) in
            [("service.name", "tbmq-test"), ("service.instance.id", "node-1"), ("place", "here")]
        {
            let expected = attributes(&[(name.to_owned(), value.to_owned())]).remove(0);
            assert!(resource.attributes.contains(&expected), "{name} is not in {resource:?}");
        }
        let waits = pushed(&request, "test_wait_seconds");
        assert_eq!(waits.unit, "s");
        let Some(metric::Data::Histogram(histogram)) = &waits.data else { panic!("{waits:?}") };
        let point = &histogram.data_points[0];
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 3);
        assert!(point.start_time_unix_nano > 0 && point.time_unix_nano >= point.start_time_unix_nano);
        let exemplar = &point.exemplars[0];
        assert_eq!(exemplar.trace_id, bytes_of("0af7651916cd43dd8448eb211c80319c").unwrap());
        assert_eq!(exemplar.span_id, bytes_of("b7ad6b7169203331").unwrap());
        assert_eq!(exemplar.value, Some(exemplar::Value::AsDouble(0.004)));
        pushing.finish().await;
        // The last push is still to come.
        while got.try_recv().is_ok() {}
    }
}

#[tokio::test]
async fn a_process_that_ends_pushes_once_more() {
    let (_collector, mut got, [(protocol, address), _]) = collector().await;
    let metrics = measured();
    let hour = config(protocol, address, 3_600_000);
    let pushing = Pushing::start(&hour, "tbmq-test", "node-1", &metrics).unwrap().unwrap();
    pushing.finish().await;
    let (_, request) = got.recv().await.unwrap();
    assert!(told(&request).contains_key("test_heat_bytes{}"));
    assert!(got.try_recv().is_err(), "and only once");
}

#[tokio::test]
async fn what_the_collector_does_not_take_is_counted() {
    let (collector, mut got, addresses) = collector().await;
    let count = |metrics: &Metrics, outcome: &str| {
        metrics.encode().contains(&format!("tbmq_service_metric_exports_total{{outcome=\"{outcome}\"}} 1"))
    };
    for (protocol, address) in addresses {
        *collector.rejects.lock() = 3;
        let metrics = measured();
        let hour = config(protocol, address, 3_600_000);
        Pushing::start(&hour, "tbmq-test", "node-1", &metrics).unwrap().unwrap().finish().await;
        got.recv().await.unwrap();
        assert!(count(&metrics, "Partial"), "{protocol}: {}", metrics.encode());
    }
    // Nobody listens there any more.
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for protocol in ["grpc", "http/protobuf"] {
        let metrics = measured();
        let hour = config(protocol, unused, 3_600_000);
        Pushing::start(&hour, "tbmq-test", "node-1", &metrics).unwrap().unwrap().finish().await;
        assert!(count(&metrics, "Failed"), "{protocol}: {}", metrics.encode());
    }
}

#[tokio::test]
async fn nothing_is_pushed_unless_it_is_asked_for() {
    let metrics = Metrics::default();
    assert!(Pushing::start(&OtelConfig::default(), "tbmq", "node-1", &metrics).unwrap().is_none());
}
