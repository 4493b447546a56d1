//! The layer around all services: authentication, authorisation, audit, in this order.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Extensions, HeaderMap};
use http_body::Frame;
use tonic::{
    Code, Status,
    body::Body,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::{Layer, Service};

use super::{
    ANONYMOUS, Access, Caller, Unknown, audit, certificate,
    role::{Need, Role},
    table::{self, Method},
};

/// Puts a [`Guard`] around services.
#[derive(Clone, Debug)]
pub(crate) struct GuardLayer(Arc<Access>);

impl GuardLayer {
    pub(crate) fn new(access: Arc<Access>) -> Self {
        Self(access)
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { access: self.0.clone(), inner }
    }
}

/// Lets in who may call.
#[derive(Clone, Debug)]
pub(crate) struct Guard<S> {
    access: Arc<Access>,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        let access = self.access.clone();
        Box::pin(async move { Ok(access.handle(request, inner).await) })
    }
}

impl Access {
    async fn handle<S>(
        self: Arc<Self>,
        mut request: http::Request<Body>,
        mut inner: S,
    ) -> http::Response<Body>
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    {
        let Some(method) = table::of(request.uri().path()) else {
            return Status::unimplemented("there is no such method").into_http();
        };
        let Need::Role(least) = method.need else {
            return into_response(inner.call(request).await);
        };
        let peer = peer_address(request.extensions());
        let names = if self.is_open() { Vec::new() } else { certificate_names(request.extensions()) };
        let caller = match self.admit(method, least, request.headers(), &names, &peer).await {
            Ok(caller) => caller,
            Err(status) => return status.into_http(),
        };
        request.extensions_mut().insert(caller.clone());
        if !method.changes {
            let response = into_response(inner.call(request).await);
            return self.lease(response, method, caller);
        }
        let trail = Arc::default();
        let entry = match self.audit.begin(method, &caller, &peer, Arc::clone(&trail)) {
            Ok(entry) => entry,
            Err(status) => return status.into_http(),
        };
        let response = into_response(audit::following(trail, inner.call(request)).await);
        entry.end(failure(&response).as_ref()).await;
        self.lease(response, method, caller)
    }

    /// The caller, if it may call.
    async fn admit(
        &self,
        method: &'static Method,
        least: Role,
        headers: &HeaderMap,
        names: &[String],
        peer: &str,
    ) -> Result<Caller, Status> {
        let Some(ways) = &self.ways else {
            return Ok(Caller::new(ANONYMOUS.to_owned(), Role::Admin));
        };
        let (caller, status) = match self.identify(ways, headers, names).await {
            Ok(caller) if caller.role.reaches(least) => return Ok(caller),
            Ok(caller) => {
                let text = format!(
                    "{} needs the role {least}; {} has {}",
                    method.name, caller.principal, caller.role
                );
                (Some(caller), denied(text, least))
            }
            Err(Unknown::NoRole(principal, text)) => {
                tracing::debug!(principal, "a caller without a role");
                (None, denied(format!("{} needs the role {least}: {principal}: {text}", method.name), least))
            }
            Err(Unknown::Unauthenticated(text)) => {
                (None, unauthenticated(&format!("{text}; {} needs the role {least}", method.name)))
            }
            Err(Unknown::Away(error)) => return Err(error.into()),
        };
        self.metrics.calls_refused.inc();
        self.audit.refused(method.name, caller.as_ref(), peer, &status);
        Err(status)
    }

    /// Ends a stream when what its caller has shown does not hold any more.
    fn lease(
        self: Arc<Self>,
        response: http::Response<Body>,
        method: &Method,
        caller: Caller,
    ) -> http::Response<Body> {
        if !method.streams || caller.until == super::Until::Always {
            return response;
        }
        let ended = Box::pin(self.ended(caller));
        response.map(|body| Body::new(Leased { body, ended: Some(ended) }))
    }
}

fn into_response(result: Result<http::Response<Body>, Infallible>) -> http::Response<Body> {
    match result {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Refuses a caller that is not known.
pub(crate) fn unauthenticated(text: &str) -> Status {
    let details = ErrorDetails::with_error_info("UNAUTHENTICATED", "tbmq", HashMap::new());
    let text =
        format!("{text}. Send `authorization: Bearer <API token or JWT>` or show a client certificate");
    Status::with_error_details(Code::Unauthenticated, text, details)
}

fn denied(text: String, least: Role) -> Status {
    let metadata = HashMap::from([("role".to_owned(), least.to_string())]);
    let details = ErrorDetails::with_error_info("PERMISSION_DENIED", "tbmq", metadata);
    Status::with_error_details(Code::PermissionDenied, text, details)
}

/// The status of a response that failed before its body.
fn failure(response: &http::Response<Body>) -> Option<Status> {
    Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok)
}

fn peer_address(extensions: &Extensions) -> String {
    let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().map(TlsConnectInfo::get_ref);
    let address = tls.or_else(|| extensions.get()).and_then(TcpConnectInfo::remote_addr);
    address.map(|address| address.to_string()).unwrap_or_default()
}

fn certificate_names(extensions: &Extensions) -> Vec<String> {
    let certificates =
        extensions.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(TlsConnectInfo::peer_certs);
    let own = certificates.as_ref().and_then(|chain| chain.first());
    own.map(|certificate| certificate::names(certificate)).unwrap_or_default()
}

/// The body of a stream that ends with what its caller has shown.
struct Leased {
    body: Body,
    /// `None`: it has ended.
    ended: Option<BoxFuture<'static, Status>>,
}

impl http_body::Body for Leased {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(ended) = &mut self.ended else { return Poll::Ready(None) };
        if let Poll::Ready(status) = ended.as_mut().poll(cx) {
            self.ended = None;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
}
