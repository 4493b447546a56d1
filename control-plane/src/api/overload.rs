//! Keeps the control plane answering under overload: limits of calls in work by class, a deadline for each call, and
//! what is counted of calls (control-api, "Transport").
//!
//! A class that is full refuses at once and takes nothing from the others: a flood of connection checks leaves reading
//! as it was.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::error;
use crate::{
    config::CallsConfig,
    metrics::{CallClass, Calls},
};

/// What a call costs, and so which limit it counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Read,
    Write,
    Check,
    /// Bounded where they are served, and without a deadline.
    Stream,
    /// Health: answered as long as anything is.
    Free,
}

/// The limits of all connections together.
#[derive(Clone, Debug)]
pub(super) struct OverloadLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    checks: Arc<Semaphore>,
    limits: CallsConfig,
    /// Every method that is served, by its path, with its class.
    methods: BTreeMap<String, Class>,
    metrics: Calls,
}

impl OverloadLayer {
    pub(super) fn new(limits: CallsConfig, metrics: Calls) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        let shared = Shared {
            reads: places(limits.reads_max.get()),
            writes: places(limits.writes_max.get()),
            checks: places(limits.checks_max.get()),
            limits,
            methods: methods(),
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }
}

/// The methods of all services that are described.
fn methods() -> BTreeMap<String, Class> {
    let sets = [tbmq_proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let sets = sets.map(|bytes| {
        prost_types::FileDescriptorSet::decode(bytes).expect("descriptors were written by the generator")
    });
    let mut methods = BTreeMap::new();
    for file in sets.into_iter().flat_map(|set| set.file) {
        let package = file.package().to_owned();
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{package}.{}/{}", service.name(), method.name());
                let class = class_of(&package, method);
                methods.insert(path, class);
            }
        }
    }
    methods
}

fn class_of(package: &str, method: &prost_types::MethodDescriptorProto) -> Class {
    let name = method.name();
    if package.starts_with("grpc.health") {
        Class::Free
    } else if method.server_streaming() || method.client_streaming() {
        Class::Stream
    } else if name == "CheckConnection" {
        Class::Check
    } else if ["Get", "List", "Explain", "Forward"].iter().any(|verb| name.starts_with(verb)) {
        Class::Read
    } else {
        Class::Write
    }
}

impl Shared {
    /// A place among the calls of a class, as long as it is held.
    fn admit(&self, class: Class) -> Result<Option<OwnedSemaphorePermit>, Status> {
        let (places, limit, name, label) = match class {
            Class::Read => (&self.reads, self.limits.reads_max, "calls that read", CallClass::Read),
            Class::Write => (&self.writes, self.limits.writes_max, "calls that write", CallClass::Write),
            Class::Check => (&self.checks, self.limits.checks_max, "connection checks", CallClass::Check),
            Class::Stream | Class::Free => return Ok(None),
        };
        places.clone().try_acquire_owned().map(Some).map_err(|_| {
            self.metrics.shed(label);
            error::overloaded(format!("{limit} {name} are in work already; try again later"))
        })
    }
}

impl<S> Layer<S> for OverloadLayer {
    type Service = Overload<S>;

    fn layer(&self, inner: S) -> Overload<S> {
        Overload { inner, shared: self.shared.clone() }
    }
}

/// A service behind the limits.
#[derive(Clone, Debug)]
pub(super) struct Overload<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Overload<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The service that was polled ready is the one to be called.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let shared = self.shared.clone();
        Box::pin(async move {
            let Some((method, class)) = shared.methods.get_key_value(request.uri().path()) else {
                return inner.call(request).await;
            };
            let began = Instant::now();
            let response = match shared.admit(*class) {
                Err(status) => status.into_http(),
                Ok(permit) => {
                    let call = inner.call(request);
                    let response = match deadline(*class, &shared.limits) {
                        None => call.await?,
                        Some(patience) => match tokio::time::timeout(patience, call).await {
                            Ok(response) => response?,
                            Err(_) => too_late(patience).into_http(),
                        },
                    };
                    drop(permit);
                    readable(response)
                }
            };
            shared.metrics.ended(method, code_of(&response), began.elapsed());
            Ok(response)
        })
    }
}

/// How long a call may take. The caller's own deadline is looked at by tonic and by whoever waits.
fn deadline(class: Class, limits: &CallsConfig) -> Option<Duration> {
    match class {
        Class::Read | Class::Write | Class::Check => Some(limits.deadline),
        Class::Stream | Class::Free => None,
    }
}

fn too_late(patience: Duration) -> Status {
    let text = format!("the call took longer than {patience:?} (TBMQ_CALL_DEADLINE)");
    error::status(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", text)
}

/// The response, its status [`error::readable`].
fn readable(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::Internal => error::readable(status).into_http(),
        _ => response,
    }
}

/// The code of a call that has ended, or of a stream that has begun.
fn code_of(response: &Response<Body>) -> Code {
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_counts_against_the_limit_of_what_it_costs() {
        let methods = methods();
        let class = |path: &str| methods.get(path).copied();
        for (path, expected) in [
            ("/tbmq.control.v1.IntegrationService/CheckConnection", Class::Check),
            ("/tbmq.control.v1.IntegrationService/CreateIntegration", Class::Write),
            ("/tbmq.control.v1.IntegrationService/ListIntegrations", Class::Read),
            ("/tbmq.control.v1.IntegrationService/WatchIntegrations", Class::Stream),
            ("/tbmq.control.v1.EventService/ClearEvents", Class::Write),
            ("/tbmq.control.v1.NodeService/DrainNode", Class::Write),
            ("/tbmq.node.v1.NodeSessionService/Session", Class::Stream),
            ("/grpc.health.v1.Health/Check", Class::Free),
        ] {
            assert_eq!(class(path), Some(expected), "{path}");
        }
        assert_eq!(class("/tbmq.control.v1.IntegrationService/Nothing"), None);
    }
}
