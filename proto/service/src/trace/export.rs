//! How spans leave the process: a bounded queue that nothing waits for, and one task that exports from it.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{sync::Notify, task::JoinHandle};
use tonic::{
    metadata::{MetadataKey, MetadataMap},
    transport::{Certificate, Channel, ClientTlsConfig},
};

use super::{
    config::{OtelConfig, Protocol, Target},
    sampler::Sampler,
    span::{Finished, Tracer},
};
use crate::{
    config::Secret,
    metrics::{Metrics, Registry},
};

/// Time between two warnings of spans that were lost.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// How long the last export may take, whatever the settings say.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// The traces of a process. Clones share the exporter; the default is off.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Inner>>);

struct Inner {
    config: OtelConfig,
    kind: Kind,
}

enum Kind {
    Export { queue: Arc<Queue>, transport: Transport, timeout: Duration, task: Mutex<Option<JoinHandle<()>>> },
    Record(Recorded),
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("is_on", &self.0.is_some()).finish()
    }
}

impl Traces {
    /// Makes no spans.
    pub const fn off() -> Self {
        Self(None)
    }

    /// What the settings ask for. Must be called in a runtime; does not wait for the collector.
    ///
    /// # Errors
    /// When certificates can't be used.
    pub fn start(config: &OtelConfig, metrics: &Metrics) -> anyhow::Result<Self> {
        if !config.traces_are_on() {
            return Ok(Self::off());
        }
        let target = config.traces_target();
        let transport = Transport::open(&target)?;
        let queue = Arc::new(Queue {
            spans: Mutex::default(),
            max: config.bsp.max_queue_size.get(),
            batch: config.bsp.max_export_batch_size.get(),
            wake: Notify::new(),
            counters: metrics.register(Counters::register),
        });
        let delay = Duration::from_millis(config.bsp.schedule_delay.get());
        let task = tokio::spawn(run(queue.clone(), delay, target.timeout));
        tracing::info!(endpoint = target.endpoint, sampler = ?config.traces.sampler, "traces are exported");
        let task = Mutex::new(Some(task));
        let kind = Kind::Export { queue, transport, timeout: target.timeout, task };
        Ok(Self(Some(Arc::new(Inner { config: config.clone(), kind }))))
    }

    /// For tests: spans are kept. Everything that the settings let is recorded.
    pub fn record(config: &OtelConfig) -> (Self, Recorded) {
        let recorded = Recorded::default();
        let inner = Inner { config: config.clone(), kind: Kind::Record(recorded.clone()) };
        (Self(Some(Arc::new(inner))), recorded)
    }

    /// What makes the spans of a plane, such as `data-plane`, of the process with this service id.
    ///
    /// # Errors
    /// When the exporter can't be made.
    pub fn tracer(&self, plane: &str, service_id: &str) -> anyhow::Result<Tracer> {
        let Some(inner) = &self.0 else { return Ok(Tracer::off()) };
        let config = &inner.config;
        let attributes = config.resource(&format!("tbmq-{plane}"), service_id);
        let name =
            attributes.iter().find(|(name, _)| name == "service.name").map(|(_, value)| value.as_str());
        let name = name.unwrap_or_default();
        let outlet = match &inner.kind {
            Kind::Record(recorded) => Outlet::Recorded { service: name.into(), to: recorded.clone() },
            Kind::Export { queue, transport, timeout, .. } => {
                let attributes =
                    attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
                let resource = Resource::builder_empty()
                    .with_attribute(KeyValue::new("tbmq.plane", plane.to_owned()))
                    .with_attributes(attributes)
                    .build();
                let mut exporter = transport.exporter(*timeout)?;
                exporter.set_resource(&resource);
                Outlet::Queue { service: Arc::new(Service { exporter }), queue: queue.clone() }
            }
        };
        Ok(Tracer::on(Sampler::new(config), outlet))
    }

    /// Exports what waits, within a bounded time. What is made later is lost.
    pub async fn finish(&self) {
        let Some(Kind::Export { queue, task, .. }) = self.0.as_ref().map(|inner| &inner.kind) else { return };
        let Some(task) = task.lock().take() else { return };
        let configured = self.0.as_ref().map(|inner| inner.config.bsp.export_timeout.get());
        let patience = Duration::from_millis(configured.unwrap_or_default()).min(FLUSH_MAX);
        queue.spans.lock().is_closing = true;
        queue.wake.notify_one();
        let abort = task.abort_handle();
        if tokio::time::timeout(patience, task).await.is_err() {
            abort.abort();
            let lost = queue.spans.lock().waiting.len();
            queue.counters.dropped.inc_by(lost as u64);
            tracing::warn!(spans = lost, "the last spans were not exported in time");
        }
    }
}

/// Spans of tests.
#[derive(Clone, Debug, Default)]
pub struct Recorded(Arc<Mutex<Vec<Finished>>>);

impl Recorded {
    /// Those that have ended so far, in this order.
    pub fn spans(&self) -> Vec<Finished> {
        self.0.lock().clone()
    }
}

/// Where the spans of a plane go.
#[derive(Debug)]
pub(super) enum Outlet {
    Queue { service: Arc<Service>, queue: Arc<Queue> },
    Recorded { service: Arc<str>, to: Recorded },
}

impl Outlet {
    /// Takes a span that has ended; never waits.
    pub(super) fn put(&self, data: SpanData) {
        match self {
            Self::Queue { service, queue } => queue.put(service, data),
            Self::Recorded { service, to } => to.0.lock().push(Finished { service: service.clone(), data }),
        }
    }
}

/// A plane, as the collector knows it.
#[derive(Debug)]
pub(super) struct Service {
    exporter: SpanExporter,
}

#[derive(Debug)]
pub(super) struct Queue {
    spans: Mutex<Spans>,
    max: usize,
    /// So many begin an export.
    batch: usize,
    wake: Notify,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Spans {
    waiting: VecDeque<(Arc<Service>, SpanData)>,
    is_closing: bool,
}

impl Queue {
    fn put(&self, service: &Arc<Service>, data: SpanData) {
        let mut spans = self.spans.lock();
        if spans.waiting.len() >= self.max {
            drop(spans);
            self.counters.dropped.inc();
            return;
        }
        spans.waiting.push_back((service.clone(), data));
        let is_batch = spans.waiting.len() == self.batch;
        drop(spans);
        if is_batch {
            self.wake.notify_one();
        }
    }

    /// The next batch; whether more waits.
    fn take(&self) -> (Vec<(Arc<Service>, SpanData)>, bool) {
        let mut spans = self.spans.lock();
        let count = spans.waiting.len().min(self.batch);
        let batch = spans.waiting.drain(..count).collect();
        (batch, !spans.waiting.is_empty())
    }
}

/// What is measured of the export of spans, where there is one.
pub fn describe_metrics(registry: &mut Registry) {
    Counters::register(registry);
}

#[derive(Clone, Debug, Default)]
struct Counters {
    exported: Counter,
    dropped: Counter,
    failed: Counter,
}

impl Counters {
    fn register(registry: &mut Registry) -> Self {
        let counters = Self::default();
        registry.register(
            "tbmq_trace_spans_exported",
            "Spans that the collector took",
            counters.exported.clone(),
        );
        registry.register(
            "tbmq_trace_spans_dropped",
            "Spans that found no room in the queue, or were left when the process ended",
            counters.dropped.clone(),
        );
        registry.register(
            "tbmq_trace_spans_failed",
            "Spans that the collector did not take",
            counters.failed.clone(),
        );
        counters
    }
}

/// Exports until the queue is closing and empty.
async fn run(queue: Arc<Queue>, delay: Duration, timeout: Duration) {
    let mut trouble = Trouble::default();
    loop {
        if !queue.spans.lock().is_closing {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = queue.wake.notified() => {}
            }
        }
        loop {
            let (batch, has_more) = queue.take();
            export(&queue, batch, timeout, &mut trouble).await;
            if !has_more {
                break;
            }
        }
        trouble.look(&queue.counters);
        let spans = queue.spans.lock();
        if spans.is_closing && spans.waiting.is_empty() {
            return;
        }
    }
}

async fn export(
    queue: &Queue,
    batch: Vec<(Arc<Service>, SpanData)>,
    timeout: Duration,
    trouble: &mut Trouble,
) {
    // A process has three planes at most.
    let mut by_service: Vec<(Arc<Service>, Vec<SpanData>)> = Vec::new();
    for (service, data) in batch {
        match by_service.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &service)) {
            Some((_, spans)) => spans.push(data),
            None => by_service.push((service, vec![data])),
        }
    }
    for (service, spans) in by_service {
        let count = spans.len() as u64;
        let exported = tokio::time::timeout(timeout, service.exporter.export(spans)).await;
        let error = match exported {
            Ok(Ok(())) => {
                queue.counters.exported.inc_by(count);
                trouble.error = None;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", timeout.as_millis()),
        };
        queue.counters.failed.inc_by(count);
        trouble.error = Some(error);
    }
}

/// Warns of lost spans, not too often.
#[derive(Debug, Default)]
struct Trouble {
    /// What the last export said.
    error: Option<String>,
    /// Lost spans that were told.
    told: u64,
    warned: Option<Instant>,
}

impl Trouble {
    fn look(&mut self, counters: &Counters) {
        let lost = counters.failed.get() + counters.dropped.get();
        if lost == self.told || self.warned.is_some_and(|at| at.elapsed() < WARN_EVERY) {
            return;
        }
        let spans = lost - std::mem::replace(&mut self.told, lost);
        self.warned = Some(Instant::now());
        let error = self.error.as_deref().unwrap_or("the queue was full");
        tracing::warn!(spans, error, "spans were lost; messages are not affected");
    }
}

/// The connection to the collector.
pub(crate) enum Transport {
    Grpc { channel: Channel, headers: MetadataMap },
    Http { client: reqwest::Client, endpoint: String, headers: HashMap<String, String> },
}

impl Transport {
    pub(crate) fn open(target: &Target) -> anyhow::Result<Self> {
        let pem = match &target.certificate {
            None => None,
            Some(file) => Some(std::fs::read(file).with_context(|| {
                format!(
                    "OTEL_EXPORTER_OTLP_CERTIFICATE: can't read {}; give a PEM file, or unset it for the system's",
                    file.display()
                )
            })?),
        };
        match target.protocol {
            Protocol::Grpc => {
                let mut endpoint =
                    Channel::from_shared(target.endpoint.clone())?.connect_timeout(target.timeout);
                if target.endpoint.starts_with("https:") {
                    let tls = match pem {
                        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                        None => ClientTlsConfig::new().with_native_roots(),
                    };
                    endpoint = endpoint.tls_config(tls).context("OTEL_EXPORTER_OTLP_CERTIFICATE")?;
                }
                let mut headers = MetadataMap::new();
                for (name, value) in &target.headers {
                    let name: MetadataKey<_> = name.parse().context("OTEL_EXPORTER_OTLP_HEADERS")?;
                    headers.insert(name, value.expose().parse().context("OTEL_EXPORTER_OTLP_HEADERS")?);
                }
                Ok(Self::Grpc { channel: endpoint.connect_lazy(), headers })
            }
            Protocol::Http => {
                let client = reqwest::Client::builder()
                    .tls_backend_preconfigured(tls(pem.as_deref())?)
                    .redirect(reqwest::redirect::Policy::none())
                    .build()?;
                let headers = target.headers.iter();
                // The exporter decodes them.
                let encoded =
                    |value: &Secret| utf8_percent_encode(value.expose(), NON_ALPHANUMERIC).to_string();
                let headers = headers.map(|(name, value)| (name.clone(), encoded(value)));
                Ok(Self::Http { client, endpoint: target.endpoint.clone(), headers: headers.collect() })
            }
        }
    }

    fn exporter(&self, timeout: Duration) -> anyhow::Result<SpanExporter> {
        let exporter = match self {
            Self::Grpc { channel, headers } => SpanExporter::builder()
                .with_tonic()
                .with_channel(channel.clone())
                .with_metadata(headers.clone())
                .with_protocol(opentelemetry_otlp::Protocol::Grpc)
                .with_timeout(timeout)
                .build(),
            Self::Http { client, endpoint, headers } => SpanExporter::builder()
                .with_http()
                .with_http_client(client.clone())
                .with_headers(headers.clone())
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(endpoint)
                .with_timeout(timeout)
                .build(),
        };
        exporter.context("the exporter of traces can't be made")
    }
}

fn tls(pem: Option<&[u8]>) -> anyhow::Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let Some(pem) = pem else {
        let verifier = rustls_platform_verifier::Verifier::new(provider)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        return Ok(builder.with_no_client_auth());
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.context("OTEL_EXPORTER_OTLP_CERTIFICATE is no PEM file with certificates")?)?;
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::{config::load_from, trace::SpanKind};

    #[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Tree {
        otel: OtelConfig,
    }

    fn config(variables: &[(&str, &str)]) -> OtelConfig {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load_from::<Tree>(&[OtelConfig::SETTINGS], None, variables).unwrap().otel
    }

    /// A counter's value.
    fn counted(metrics: &Metrics, name: &str) -> u64 {
        let text = metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("_total "));
        line.map_or(0, |value| value.parse().unwrap())
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted_and_the_end_does_not_wait_for_a_silent_collector() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for protocol in ["grpc", "http/protobuf"] {
            let endpoint = format!("http://{}", silent.local_addr().unwrap());
            let mut config = config(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"),
                ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
                ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4"),
            ]);
            config.bsp.export_timeout = NonZeroU64::new(50).unwrap();
            let metrics = Metrics::default();
            let traces = Traces::start(&config, &metrics).unwrap();
            let tracer = traces.tracer("test", "t1").unwrap();
            // Nothing else runs meanwhile.
            for _ in 0..7 {
                drop(tracer.begin("x", SpanKind::Internal, None).unwrap());
            }
            assert_eq!(counted(&metrics, "tbmq_trace_spans_dropped"), 3, "{protocol}");
            let began = Instant::now();
            traces.finish().await;
            assert!(began.elapsed() < FLUSH_MAX, "{protocol}: {:?}", began.elapsed());
            assert_eq!(counted(&metrics, "tbmq_trace_spans_exported"), 0);
        }
    }

    #[tokio::test]
    async fn planes_have_names_of_their_own_unless_one_is_given() {
        let (traces, recorded) = Traces::record(&OtelConfig::default());
        drop(traces.tracer("executor", "x").unwrap().begin("a", SpanKind::Internal, None));
        let named =
            config(&[("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other")]);
        let (given, more) = Traces::record(&named);
        drop(given.tracer("executor", "x").unwrap().begin("a", SpanKind::Internal, None));
        let names: Vec<_> =
            recorded.spans().into_iter().chain(more.spans()).map(|span| span.service).collect();
        assert_eq!(names, ["tbmq-executor".into(), "mine".into()] as [Arc<str>; 2]);
    }

    #[tokio::test]
    async fn without_an_endpoint_nothing_is_made() {
        let traces =
            Traces::start(&config(&[("OTEL_TRACES_SAMPLER", "always_on")]), &Metrics::default()).unwrap();
        let tracer = traces.tracer("test", "t1").unwrap();
        assert!(!tracer.is_on() && tracer.begin("x", SpanKind::Internal, None).is_none());
        traces.finish().await;
    }

    #[tokio::test]
    async fn a_certificate_that_can_not_be_read_is_named() {
        let config = config(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
        ]);
        let error = format!("{:#}", Traces::start(&config, &Metrics::default()).unwrap_err());
        assert!(
            error.contains("OTEL_EXPORTER_OTLP_CERTIFICATE") && error.contains("/no/such/file"),
            "{error}"
        );
    }
}
