//! A span for each call that is traced, around everything else that is done for it.

use std::{
    borrow::Cow,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, Either};
use http::{HeaderMap, Request, Response};
use tbmq_service::trace::{self, Span, SpanKind, TraceContext, Tracer};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::access::table;

/// Puts a [`Traced`] around services.
#[derive(Clone, Debug)]
pub(super) struct TraceLayer(Tracer);

impl TraceLayer {
    pub(super) fn new(tracer: Tracer) -> Self {
        Self(tracer)
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner, tracer: self.0.clone() }
    }
}

/// A service whose calls are traced.
#[derive(Clone, Debug)]
pub(super) struct Traced<S> {
    inner: S,
    tracer: Tracer,
}

impl<S> Service<Request<Body>> for Traced<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(mut span) = begin(&self.tracer, &request) else {
            return Either::Left(self.inner.call(request));
        };
        let call = trace::within(span.context().clone(), self.inner.call(request));
        Either::Right(Box::pin(async move {
            let response = call.await;
            if let Ok(response) = &response {
                end(&mut span, response);
            }
            response
        }))
    }
}

/// The span of a call, from its arrival until its answer, or its stream, begins. Probes of health are not traced, unless
/// who probes traces them.
fn begin(tracer: &Tracer, request: &Request<Body>) -> Option<Span> {
    if !tracer.is_on() {
        return None;
    }
    let parent = parent(request.headers());
    let path = request.uri().path();
    if parent.is_none() && path.starts_with("/grpc.health.") {
        return None;
    }
    // What nobody serves has a name that anybody may choose.
    let name = table::of(path).map_or("unknown", |method| method.name);
    let mut span = tracer.begin(Cow::Borrowed(name), SpanKind::Server, parent.as_ref())?;
    span.set("rpc.system", "grpc");
    if let Some((service, method)) = name.split_once('/') {
        span.set("rpc.service", service);
        span.set("rpc.method", method);
    }
    Some(span)
}

fn parent(headers: &HeaderMap) -> Option<TraceContext> {
    TraceContext::read(|name| headers.get(name)?.to_str().ok())
}

fn end(span: &mut Span, response: &Response<Body>) {
    let status = Status::from_header_map(response.headers());
    let code = status.as_ref().map_or(Code::Ok, Status::code);
    span.set("rpc.grpc.status_code", code as i64);
    // The others are the caller's doing.
    let class = match code {
        Code::Unknown => "UNKNOWN",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        _ => return,
    };
    let text = status.map(|status| trace::bounded(status.message()).to_owned());
    span.fail(class, text.unwrap_or_default());
}
