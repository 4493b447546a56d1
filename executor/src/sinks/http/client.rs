//! One request to the endpoint, and what becomes of it (spec §6.3.3, §6.3.5).

use std::{error::Error, fmt, io, sync::Arc, time::Duration};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::{
    Client, Request, Response,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use rustls::ClientConfig;
use serde_json::{Map, Value, json};
use tbmq_service::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{body::Body, config::Checked, idempotency, retry_after};
use crate::{
    sink::Outcome,
    sinks::{
        SinkSettings, credentials,
        egress::{Egress, LookupError},
    },
};

/// How long establishing a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an HTTP/2 connection with requests may be silent before it is asked for a sign, and how long that may take.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How much of an unexpected answer's body stands in the text of its outcome, in bytes.
const BODY_IN_TEXT_MAX: usize = 1024;

/// The HTTP clients of this process: one for all integrations whose TLS settings are the system's, so that they share
/// connections, resolver and trusted certificates.
pub(super) struct Clients {
    plain: Mutex<Option<Client>>,
    system: Mutex<Option<Client>>,
    egress: Egress,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("egress", &self.egress).finish_non_exhaustive()
    }
}

impl Clients {
    pub(super) fn new(settings: &SinkSettings) -> Self {
        Self { plain: Mutex::default(), system: Mutex::default(), egress: settings.egress.clone() }
    }

    /// The client for a configuration.
    ///
    /// # Errors
    /// A text for people when the TLS settings can't be used.
    pub(super) fn client(&self, checked: &Checked) -> Result<Client, String> {
        if checked.url.scheme() == "http" {
            // The system's certificates are not read: there may be none, and none are needed.
            return self.shared(&self.plain, || Ok(credentials::no_tls()));
        }
        match checked.config.credentials.tls()? {
            Some(tls) => self.build(tls),
            None => self.shared(&self.system, credentials::system_tls),
        }
    }

    fn shared(
        &self,
        slot: &Mutex<Option<Client>>,
        tls: impl FnOnce() -> Result<ClientConfig, String>,
    ) -> Result<Client, String> {
        let mut slot = slot.lock();
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let client = self.build(tls()?)?;
        Ok(slot.insert(client).clone())
    }

    fn build(&self, mut tls: ClientConfig) -> Result<Client, String> {
        tls.alpn_protocols = alpn();
        let builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("tbmq/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(usize::MAX)
            // All requests share an HTTP/2 connection: one that is dead must not take them all with it for long.
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE)
            .dns_resolver(Guarded(self.egress.clone()));
        builder.build().map_err(|error| chain(&error).join(": "))
    }
}

/// What is offered to a TLS peer; it chooses.
pub(super) fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

/// A resolver that gives only addresses which may be connected to. A host that is written as an address is not resolved:
/// it was checked with the configuration, and neither it nor the rules change.
#[derive(Debug)]
struct Guarded(Egress);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = self.0.clone();
        Box::pin(async move {
            let addresses = egress.lookup(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
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
    client: Client,
    method: Method,
    url: Url,
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
    pub(super) fn new(client: Client, method: Method, checked: &Checked, attempt_timeout: Duration) -> Self {
        let Checked { config, url, headers } = checked;
        let mut shown = url.clone();
        // A query may hold a token.
        shown.set_query(None);
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        Self {
            client,
            label: format!("{method} {shown}"),
            method,
            authority: format!("{host}:{port}"),
            url: url.clone(),
            headers: headers.clone(),
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
    pub(super) fn request(&self, load: Load) -> Request {
        let mut request = Request::new(self.method.clone(), self.url.clone());
        *request.headers_mut() = self.headers.clone();
        if let Some(key) = load.key {
            request.headers_mut().insert(idempotency::HEADER, key);
        }
        if let Some(trace) = load.trace {
            trace_headers(request.headers_mut(), &trace);
        }
        if let Some(Body { bytes, content_type }) = load.body {
            if let Some(content_type) = content_type {
                request.headers_mut().insert(header::CONTENT_TYPE, content_type);
            }
            *request.body_mut() = Some(bytes.into());
        }
        request
    }

    /// Sends a request and reads the whole answer, so that its connection can be used again. Ends at the deadline,
    /// which is one attempt's timeout after the message was submitted.
    pub(super) async fn send(&self, request: Request, deadline: Instant) -> Outcome {
        match self.ask(request, deadline).await {
            Ok(response) => self.judge(response, deadline).await,
            Err(outcome) => outcome,
        }
    }

    /// Sends a request and waits for the head of the answer, until the deadline.
    pub(super) async fn ask(&self, request: Request, deadline: Instant) -> Result<Response, Outcome> {
        match timeout_at(self.next_limit(deadline), self.client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.failure(&error)),
            Err(_) => Err(self.silence(deadline)),
        }
    }

    /// Reads the rest of an answer, until the deadline, and says what it means.
    pub(super) async fn judge(&self, mut response: Response, deadline: Instant) -> Outcome {
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            let text = self.refusal(&response);
            let after = retry_after::of(response.headers());
            // The status says it all; a body that is too long, late or torn costs the connection only.
            drop(self.read(&mut response, deadline, None).await);
            return match status.as_u16() {
                400 | 405 | 411 | 413..=415 | 422 | 431 => Outcome::Rejected { class: "status", text },
                _ => Outcome::Retry { after, class: "status", text },
            };
        }
        let mut body = Vec::new();
        let kept = (!status.is_success()).then_some(&mut body);
        if let Err(outcome) = self.read(&mut response, deadline, kept).await {
            return outcome;
        }
        if status.is_success() { Outcome::Delivered } else { unexpected(&response, &body) }
    }

    /// Reads the body, at most as much as allowed.
    async fn read(
        &self,
        response: &mut Response,
        deadline: Instant,
        mut kept: Option<&mut Vec<u8>>,
    ) -> Result<(), Outcome> {
        // What the head announces counts before the first byte of it came.
        let mut size = usize::MAX;
        if response.content_length().is_none_or(|length| length <= self.response_max as u64) {
            size = 0;
        }
        while size <= self.response_max {
            let chunk: Option<Bytes> = match timeout_at(self.next_limit(deadline), response.chunk()).await {
                Ok(Ok(chunk)) => chunk,
                Ok(Err(error)) => return Err(self.failure(&error)),
                Err(_) => return Err(self.silence(deadline)),
            };
            let Some(chunk) = chunk else { return Ok(()) };
            size += chunk.len();
            if let Some(kept) = &mut kept {
                let room = BODY_IN_TEXT_MAX.saturating_sub(kept.len()).min(chunk.len());
                kept.extend_from_slice(&chunk[..room]);
            }
        }
        let text = format!(
            "{} from {}, but response failed with cause: Exceeded limit on max bytes to buffer : {}",
            words(response.status()),
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
    pub(super) fn refusal(&self, response: &Response) -> String {
        format!("{} from {}", words(response.status()), self.label)
    }

    /// What a request without an answer means.
    fn failure(&self, error: &reqwest::Error) -> Outcome {
        let (class, text) = self.explain(error);
        Outcome::Retry { after: None, class, text }
    }

    fn explain(&self, error: &reqwest::Error) -> (&'static str, String) {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(error) = cause.downcast_ref::<io::Error>() {
                if let Some(tls) = tls_error(error) {
                    return ("tls", format!("TLS with {} failed: {tls}", self.authority));
                }
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    return ("connect", format!("Connection refused: /{}", self.authority));
                }
            }
            match cause.downcast_ref::<LookupError>() {
                Some(error @ LookupError::Unresolved { .. }) => return ("resolve", error.to_string()),
                Some(error @ LookupError::Refused { .. }) => return ("egress", error.to_string()),
                None => source = cause.source(),
            }
        }
        let causes = chain(error);
        let words = causes.join(": ");
        if error.is_connect() && error.is_timeout() {
            return ("connect", format!("connection timed out: /{}", self.authority));
        }
        if error.is_connect() {
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

/// The causes of an error without the error's own words: these name the whole URL.
fn chain(error: &reqwest::Error) -> Vec<String> {
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        source = cause.source();
    }
    if causes.is_empty() {
        // A reqwest error without cause names its kind and URL only.
        causes.push("the request failed".to_owned());
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
fn unexpected(response: &Response, body: &[u8]) -> Outcome {
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
