//! One request to the endpoint, and what becomes of it (spec §6.3.3, §6.3.5).

use std::{
    collections::HashMap,
    error::Error,
    fmt, io,
    sync::{Arc, Weak},
    time::Duration,
};

use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde_json::{Map, Value, json};
use tbmq_service::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use tokio::time::{Instant, timeout_at};

use super::{
    body::Body,
    config::Checked,
    connections::{Answer, Failure, Origin, Target},
    connector::{Connector, TimedOut},
    idempotency, retry_after,
};
use crate::{
    sink::Outcome,
    sinks::{
        SinkSettings, credentials,
        egress::{Egress, LookupError},
    },
};

/// What is sent unless the configuration has it otherwise.
const HEADERS: [(header::HeaderName, HeaderValue); 2] = [
    (header::ACCEPT, HeaderValue::from_static("*/*")),
    (header::USER_AGENT, HeaderValue::from_static(concat!("tbmq/", env!("CARGO_PKG_VERSION")))),
];
/// How much of an unexpected answer's body stands in the text of its outcome, in bytes.
const BODY_IN_TEXT_MAX: usize = 1024;

/// Where this process sends requests to. Integrations that send to the same host and port and whose TLS settings are the
/// system's share connections, resolver and trusted certificates.
pub(super) struct Origins {
    plain: Mutex<Option<Connector>>,
    system: Mutex<Option<Connector>>,
    /// By scheme, host and port.
    shared: Mutex<HashMap<String, Weak<Origin>>>,
    egress: Egress,
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origins").field("egress", &self.egress).finish_non_exhaustive()
    }
}

impl Origins {
    pub(super) fn new(settings: &SinkSettings) -> Self {
        Self {
            plain: Mutex::default(),
            system: Mutex::default(),
            shared: Mutex::default(),
            egress: settings.egress.clone(),
        }
    }

    /// Where requests with a configuration go.
    ///
    /// # Errors
    /// A text for people when the TLS settings can't be used.
    pub(super) fn origin(&self, checked: &Checked) -> Result<Arc<Origin>, String> {
        let connector = if checked.url.scheme() == "http" {
            // The system's certificates are not read: there may be none, and none are needed.
            self.connector(&self.plain, || Ok(credentials::no_tls()))?
        } else if let Some(tls) = checked.config.credentials.tls()? {
            let connector = Connector::new(&self.egress, tls);
            return Ok(Arc::new(Origin::new(checked.uri.clone(), connector)));
        } else {
            self.connector(&self.system, credentials::system_tls)?
        };
        let name = checked.url.origin().ascii_serialization();
        let mut shared = self.shared.lock();
        if let Some(origin) = shared.get(&name).and_then(Weak::upgrade) {
            return Ok(origin);
        }
        if shared.len() == shared.capacity() {
            shared.retain(|_, origin| origin.strong_count() > 0);
        }
        let origin = Arc::new(Origin::new(checked.uri.clone(), connector));
        shared.insert(name, Arc::downgrade(&origin));
        Ok(origin)
    }

    fn connector(
        &self,
        slot: &Mutex<Option<Connector>>,
        tls: impl FnOnce() -> Result<ClientConfig, String>,
    ) -> Result<Connector, String> {
        let mut slot = slot.lock();
        if let Some(connector) = &*slot {
            return Ok(connector.clone());
        }
        let connector = Connector::new(&self.egress, tls()?);
        Ok(slot.insert(connector).clone())
    }
}

/// Adds a place in a trace, unless the configured headers set one.
fn trace_headers(headers: &mut HeaderMap, trace: &TraceContext) {
    if headers.contains_key(TRACEPARENT) || headers.contains_key(TRACESTATE) {
        return;
    }
    for (name, text) in trace.fields() {
        // What was read as a tracestate has no character that a header can't hold.
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
}

/// What a request carries besides the configured headers.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub body: Option<Body>,
    /// The value of `Idempotency-Key`.
    pub key: Option<HeaderValue>,
    /// Of the first message that is traced.
    pub trace: Option<Arc<TraceContext>>,
}

/// An endpoint as all requests of an integration see it.
pub(super) struct Endpoint {
    origin: Arc<Origin>,
    target: Target,
    method: Method,
    headers: HeaderMap,
    /// Method and URL without query: what TBMQ's texts name.
    label: String,
    /// `host:port`.
    authority: String,
    read_timeout: Option<Duration>,
    attempt_timeout: Duration,
    response_max: usize,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl Endpoint {
    pub(super) fn new(
        origin: Arc<Origin>,
        method: Method,
        checked: &Checked,
        attempt_timeout: Duration,
    ) -> Self {
        let Checked { config, url, uri, headers } = checked;
        let mut headers = headers.clone();
        for (name, value) in HEADERS {
            headers.entry(name).or_insert(value);
        }
        let mut shown = url.clone();
        // A query may hold a token.
        shown.set_query(None);
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        Self {
            origin,
            target: Target::new(uri.clone()),
            label: format!("{method} {shown}"),
            method,
            authority: format!("{host}:{port}"),
            headers,
            read_timeout: super::millis(config.read_timeout_ms),
            attempt_timeout,
            response_max: config.max_in_memory_buffer_size_in_kb as usize * 1024,
        }
    }

    /// Method and URL without query.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// A request with the configured headers.
    pub(super) fn request(&self, load: Load) -> Request<Full<Bytes>> {
        let mut headers = self.headers.clone();
        if let Some(key) = load.key {
            headers.insert(idempotency::HEADER, key);
        }
        if let Some(trace) = load.trace {
            trace_headers(&mut headers, &trace);
        }
        let mut bytes = Bytes::new();
        if let Some(body) = load.body {
            if let Some(content_type) = body.content_type {
                headers.insert(header::CONTENT_TYPE, content_type);
            }
            bytes = body.bytes;
        }
        let mut request = Request::new(Full::new(bytes));
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = headers;
        request
    }

    /// Sends a request and reads the whole answer, so that its connection can be used again. Ends at the deadline,
    /// which is one attempt's timeout after the message was submitted.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>, deadline: Instant) -> Outcome {
        match self.ask(request, deadline).await {
            Ok(answer) => self.judge(answer, deadline).await,
            Err(outcome) => outcome,
        }
    }

    /// Sends a request and waits for the head of the answer, until the deadline.
    pub(super) async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Answer, Outcome> {
        match timeout_at(self.next_limit(deadline), self.origin.ask(&self.target, request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(&error)),
            Err(_) => Err(self.silence(deadline)),
        }
    }

    /// Reads the rest of an answer, until the deadline, and says what it means.
    pub(super) async fn judge(&self, mut answer: Answer, deadline: Instant) -> Outcome {
        let outcome = self.read_and_judge(&mut answer, deadline).await;
        answer.release();
        outcome
    }

    async fn read_and_judge(&self, answer: &mut Answer, deadline: Instant) -> Outcome {
        let status = answer.head().status();
        if status.is_client_error() || status.is_server_error() {
            let text = self.refusal(answer.head());
            let after = retry_after::of(answer.head().headers());
            // The status says it all; a body that is too long, late or torn costs the connection only.
            drop(self.read(answer, deadline, None).await);
            return match status.as_u16() {
                400 | 405 | 411 | 413..=415 | 422 | 431 => Outcome::Rejected { class: "status", text },
                _ => Outcome::Retry { after, class: "status", text },
            };
        }
        let mut body = Vec::new();
        let kept = (!status.is_success()).then_some(&mut body);
        if let Err(outcome) = self.read(answer, deadline, kept).await {
            return outcome;
        }
        if status.is_success() { Outcome::Delivered } else { unexpected(answer.head(), &body) }
    }

    /// Reads the body, at most as much as allowed.
    async fn read(
        &self,
        answer: &mut Answer,
        deadline: Instant,
        mut kept: Option<&mut Vec<u8>>,
    ) -> Result<(), Outcome> {
        // What the head announces counts before the first byte of it came.
        let mut size = usize::MAX;
        if answer.head().body().size_hint().exact().is_none_or(|length| length <= self.response_max as u64) {
            size = 0;
        }
        while size <= self.response_max {
            // Mostly there is none, and nothing to wait for.
            if answer.head().body().is_end_stream() {
                return Ok(());
            }
            let chunk = match timeout_at(self.next_limit(deadline), answer.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => return Err(self.failure(&error)),
                Ok(None) => return Ok(()),
                Err(_) => return Err(self.silence(deadline)),
            };
            size += chunk.len();
            if let Some(kept) = &mut kept {
                let room = BODY_IN_TEXT_MAX.saturating_sub(kept.len()).min(chunk.len());
                kept.extend_from_slice(&chunk[..room]);
            }
        }
        let text = format!(
            "{} from {}, but response failed with cause: Exceeded limit on max bytes to buffer : {}",
            words(answer.head().status()),
            self.label,
            self.response_max
        );
        Err(Outcome::Retry { after: None, class: "response", text })
    }

    fn next_limit(&self, deadline: Instant) -> Instant {
        self.read_timeout.map_or(deadline, |read_timeout| deadline.min(Instant::now() + read_timeout))
    }

    fn silence(&self, deadline: Instant) -> Outcome {
        let waited = match self.read_timeout {
            Some(read_timeout) if Instant::now() < deadline => read_timeout,
            _ => self.attempt_timeout,
        };
        let text = format!("no answer from {} within {} ms", self.label, waited.as_millis());
        Outcome::Retry { after: None, class: "timeout", text }
    }

    /// `404 Not Found from POST http://host/path`.
    pub(super) fn refusal(&self, response: &Response<Incoming>) -> String {
        format!("{} from {}", words(response.status()), self.label)
    }

    /// What a request without an answer means.
    fn failure(&self, error: &(dyn Error + 'static)) -> Outcome {
        let (class, text) = self.explain(error);
        Outcome::Retry { after: None, class, text }
    }

    fn explain(&self, error: &(dyn Error + 'static)) -> (&'static str, String) {
        let mut source = Some(error);
        while let Some(cause) = source {
            if let Some(error) = cause.downcast_ref::<io::Error>() {
                if let Some(tls) = tls_error(error) {
                    return ("tls", format!("TLS with {} failed: {tls}", self.authority));
                }
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    return ("connect", format!("Connection refused: /{}", self.authority));
                }
            }
            if cause.is::<TimedOut>() {
                return ("connect", format!("connection timed out: /{}", self.authority));
            }
            match cause.downcast_ref::<LookupError>() {
                Some(error @ LookupError::Unresolved { .. }) => return ("resolve", error.to_string()),
                Some(error @ LookupError::Refused { .. }) => return ("egress", error.to_string()),
                None => source = cause.source(),
            }
        }
        let words = chain(error).join(": ");
        if matches!(error.downcast_ref(), Some(Failure::Connect(_))) {
            return ("connect", format!("no connection to {}: {words}", self.authority));
        }
        ("connection", format!("{words} from {}", self.label))
    }
}

/// The TLS error that an I/O error carries, however often it was wrapped.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref().or_else(|| inner.downcast_ref().and_then(tls_error))
}

/// The words of an error and of its causes.
fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = Vec::new();
    let mut source = Some(error);
    while let Some(cause) = source {
        let text = cause.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        source = cause.source();
    }
    causes
}

/// `404 Not Found`.
fn words(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// A status that is neither success nor refusal: a redirect that is not followed. The text is TBMQ's JSON.
fn unexpected(response: &Response<Incoming>, body: &[u8]) -> Outcome {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let headers: Map<String, Value> = response
        .headers()
        .iter()
        // A cookie is a secret between endpoint and client.
        .filter(|(name, _)| *name != header::SET_COOKIE)
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let mut text = json!({
        "metadata": headers,
        "status": reason.to_ascii_uppercase().replace(' ', "_"),
        "statusCode": status.as_str(),
        "statusReason": reason,
    });
    if !body.is_empty() {
        text["error_body"] = String::from_utf8_lossy(body).into();
    }
    Outcome::Retry { after: retry_after::of(response.headers()), class: "status", text: text.to_string() }
}

/// An endpoint shared by its requests.
pub(super) type Shared = Arc<Endpoint>;
