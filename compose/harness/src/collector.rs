//! A collector of OpenTelemetry that keeps the spans it is sent, over gRPC and over HTTP.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, status::StatusCode},
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::{
    hex,
    http_sink::{HttpSink, Received},
};

/// A span as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectedSpan {
    /// `service.name` of the process.
    pub service: String,
    /// Other attributes of the process.
    pub resource: BTreeMap<String, String>,
    /// Its name.
    pub name: String,
    /// As in the protocol: 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits; empty for a root.
    pub parent_id: String,
    /// Its attributes as texts.
    pub attributes: BTreeMap<String, String>,
    /// Whether it failed.
    pub is_error: bool,
}

/// A running collector; it stops when dropped.
#[derive(Debug)]
pub struct Collector {
    grpc: SocketAddr,
    http: HttpSink,
    spans: Arc<watch::Sender<Vec<CollectedSpan>>>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Collector {
    /// Starts a collector on free ports of the loopback interface.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let spans = Arc::new(watch::Sender::new(Vec::new()));
        let http = HttpSink::observed({
            let spans = spans.clone();
            move |received: Received| {
                // What is no export of traces shows as spans that are missing.
                if received.path == "/v1/traces"
                    && let Ok(request) = ExportTraceServiceRequest::decode(received.body)
                {
                    keep(&spans, request);
                }
            }
        });
        let http = http.await?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let grpc = listener.local_addr()?;
        let service = TraceServiceServer::new(Keeper(spans.clone()));
        let router = tonic::transport::Server::builder().add_service(service);
        let serving = tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
        Ok(Self { grpc, http, spans, serving })
    }

    /// Where gRPC is served.
    pub fn grpc(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where HTTP is served.
    pub fn http(&self) -> String {
        format!("http://{}", self.http.address())
    }

    /// Everything that has arrived.
    pub fn spans(&self) -> Vec<CollectedSpan> {
        self.spans.borrow().clone()
    }

    /// Waits until the spans of this trace are as `done` wants them, and returns them.
    ///
    /// # Errors
    /// When they are not within `patience`; says which there are.
    pub async fn trace(
        &self,
        trace_id: &str,
        patience: Duration,
        done: impl Fn(&[CollectedSpan]) -> bool,
    ) -> Result<Vec<CollectedSpan>> {
        let of_trace = |spans: &[CollectedSpan]| -> Vec<CollectedSpan> {
            spans.iter().filter(|span| span.trace_id == trace_id).cloned().collect()
        };
        let mut spans = self.spans.subscribe();
        let waited = tokio::time::timeout(patience, spans.wait_for(|spans| done(&of_trace(spans)))).await;
        let found = of_trace(&self.spans.borrow());
        match waited {
            Ok(_) => Ok(found),
            Err(_) => {
                let names: Vec<_> =
                    found.iter().map(|span| format!("{}: {}", span.service, span.name)).collect();
                Err(anyhow::anyhow!("trace {trace_id} has only {names:?} after {patience:?}"))
            }
        }
        .context("the collector waits in vain")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Debug)]
struct Keeper(Arc<watch::Sender<Vec<CollectedSpan>>>);

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        keep(&self.0, request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn keep(spans: &watch::Sender<Vec<CollectedSpan>>, request: ExportTraceServiceRequest) {
    let arrived = request.resource_spans.into_iter().flat_map(|of_resource| {
        let resource = texts(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let service = resource.get("service.name").cloned().unwrap_or_default();
        of_resource
            .scope_spans
            .into_iter()
            .flat_map(|of_scope| of_scope.spans)
            .map(move |span| collected(service.clone(), resource.clone(), span))
    });
    spans.send_modify(|spans| spans.extend(arrived));
}

fn collected(service: String, resource: BTreeMap<String, String>, span: Span) -> CollectedSpan {
    let is_error = span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
    CollectedSpan {
        service,
        resource,
        name: span.name,
        kind: span.kind,
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_id: hex(&span.parent_span_id),
        attributes: texts(span.attributes),
        is_error,
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}
