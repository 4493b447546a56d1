//! Which spans a call has, here and where it is passed on to.

use tbmq_proto::control::{GetSessionRequest, session_service_client::SessionServiceClient};
use tbmq_service::trace::{Finished, Recorded, SpanKind, TraceContext};
use tonic::Request;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    nodes::{data_plane, five, grpc, registered},
    support::{Cluster, Verdict, eventually, integration},
};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", CALLER.parse().unwrap());
    request
}

/// The spans of the caller's trace, once this one is among them.
async fn trace(recorded: &Recorded, last: &str) -> Vec<Finished> {
    let caller = TraceContext::parse(CALLER).unwrap();
    let own = || {
        let spans = recorded.spans().into_iter();
        spans.filter(|span| span.context().trace_id() == caller.trace_id()).collect::<Vec<_>>()
    };
    eventually(last, async || own().last().is_some_and(|span| span.data.name == last)).await;
    let spans = own();
    assert_eq!(spans.last().unwrap().data.parent_span_id, caller.span_id());
    spans
}

fn told(spans: &[Finished]) -> Vec<(&str, SpanKind)> {
    spans.iter().map(|span| (&*span.data.name, span.data.span_kind.clone())).collect()
}

#[tokio::test]
async fn a_call_that_asks_an_executor_has_a_span_for_the_question() {
    let (cluster, recorded) = Cluster::traced();
    let mut plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let request = tbmq_proto::control::CreateIntegrationRequest {
        integration: Some(integration("a")),
        ..Default::default()
    };
    plane.integrations.create_integration(traced(request)).await.unwrap();
    let name = "tbmq.control.v1.IntegrationService/CreateIntegration";
    let spans = trace(&recorded, name).await;
    assert_eq!(told(&spans), [("validation", SpanKind::Producer), (name, SpanKind::Server)]);
    assert_eq!(spans[0].data.parent_span_id, spans[1].context().span_id());
    assert_eq!(spans[1].attribute("rpc.method"), "CreateIntegration");
    assert_eq!(spans[1].attribute("rpc.grpc.status_code"), "0");
    assert!(!spans[0].is_error());
    assert_eq!(executor.requests.lock().len(), 1);
}

#[tokio::test]
async fn a_call_that_another_control_plane_answers_stays_one_trace() {
    let (cluster, recorded) = Cluster::traced();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let node = data_plane(&cluster, "dp1", grpc(&first)).await;
    registered(&second, "dp1").await;
    let _client = five(&node, "a").await;
    let request = traced(GetSessionRequest { client_id: "a".to_owned() });
    SessionServiceClient::new(second.channel.clone()).get_session(request).await.unwrap();
    let (name, forward) =
        ("tbmq.control.v1.SessionService/GetSession", "tbmq.node.v1.NodeForwardService/Forward");
    let spans = trace(&recorded, name).await;
    let expected = [(forward, SpanKind::Server), (forward, SpanKind::Client), (name, SpanKind::Server)];
    assert_eq!(told(&spans), expected);
    for (child, parent) in spans.iter().zip(&spans[1..]) {
        assert_eq!(child.data.parent_span_id, parent.context().span_id());
    }
}

#[tokio::test]
async fn probes_of_health_are_not_traced_and_calls_without_a_trace_begin_one() {
    let (cluster, recorded) = Cluster::traced();
    let mut plane = cluster.control_plane("cp1").await;
    let mut health = HealthClient::new(plane.channel.clone());
    health.check(HealthCheckRequest::default()).await.unwrap();
    let request =
        tbmq_proto::control::GetIntegrationRequest { name: "nonsense".to_owned(), ..Default::default() };
    let status = plane.integrations.get_integration(request).await.unwrap_err();
    let name = "tbmq.control.v1.IntegrationService/GetIntegration";
    eventually(name, async || recorded.spans().iter().any(|span| span.data.name == name)).await;
    let spans = recorded.spans();
    let own = spans.iter().find(|span| span.data.name == name).unwrap();
    // The caller's mistake is no failure of ours.
    assert_eq!(own.attribute("rpc.grpc.status_code"), (status.code() as i32).to_string());
    assert!(!own.is_error(), "{own:?}");
    assert!(!spans.iter().any(|span| span.data.name.contains("health")), "{spans:?}");
}
