//! HTTP integrations: one request per message (spec §6.3).
//!
//! | module | what |
//! |---|---|
//! | [`config`] | `clientConfiguration`, read and checked |
//! | `url` | the endpoint's URL |
//! | `body` | from a message to a request's body |
//! | `client` | one request, and what its answer means |
//! | `probe` | the connection check |
//!
//! All requests of an integration run inside [`Sink::poll_outcome`]: there is no task per message. At most
//! `maxParallelRequestsCount` of them are on their way, the others wait without being sent, at most `readTimeoutMs`
//! and never longer than the driver waits; a wait that ends too late is answered and never sent (spec UP-17). Connections are shared by all integrations of the
//! process, kept, and as many as are needed (spec UP-15).

use std::{
    collections::VecDeque,
    fmt,
    num::NonZeroUsize,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use ::http::header;
use async_trait::async_trait;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use serde_json::{Map, Value};
use tbmq_integration::entity::Violation;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use self::{body::Bodies, client::Clients, client::Endpoint};
use super::{SinkSettings, binder, envelope::Envelope};
use crate::sink::{
    Busy, ConnectError, Message, Outcome, ProbeReport, Sink, SinkContext, SinkKind, SinkState, Ticket,
};

mod body;
mod client;
pub mod config;
mod probe;
mod retry_after;
mod url;

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;

/// The longest wait for one of the connections that [`SinkSettings::http_pool_max_connections`] allows; TBMQ's.
const POOL_TIMEOUT: Duration = Duration::from_secs(45);

/// The kind `HTTP`.
#[derive(Debug)]
pub struct Http {
    settings: SinkSettings,
    clients: Clients,
}

impl Http {
    /// The kind, for the settings of this process.
    pub fn new(settings: SinkSettings) -> Self {
        let clients = Clients::new(&settings);
        Self { settings, clients }
    }
}

#[async_trait]
impl SinkKind for Http {
    fn name(&self) -> &'static str {
        "HTTP"
    }

    fn ordering(&self) -> tbmq_integration::pack::Ordering {
        // Requests run side by side, and nothing on the way keeps their order.
        tbmq_integration::pack::Ordering::None
    }

    fn schema(&self) -> Value {
        binder::schema::<config::Config>()
    }

    fn check(&self, client_configuration: &Map<String, Value>) -> Vec<Violation> {
        config::read(client_configuration, &self.settings).violations
    }

    async fn probe(
        &self,
        client_configuration: &Map<String, Value>,
        _: &SinkContext,
        deadline: Duration,
    ) -> ProbeReport {
        let bound = config::read(client_configuration, &self.settings);
        match bound.config {
            Some(checked) => {
                probe::run(&checked, &self.clients, self.settings.allow_local_network_hosts, deadline).await
            }
            None => ProbeReport { stages: Vec::new(), error: Some(joined(&bound.violations)) },
        }
    }

    /// Makes the sink; does not reach out to the endpoint.
    async fn connect(
        &self,
        client_configuration: &Map<String, Value>,
        context: SinkContext,
    ) -> Result<Box<dyn Sink>, ConnectError> {
        let bound = config::read(client_configuration, &self.settings);
        let Some(checked) = bound.config else {
            return Err(ConnectError { text: joined(&bound.violations), violations: bound.violations });
        };
        let client =
            self.clients.client(&checked).map_err(|text| ConnectError { text, violations: Vec::new() })?;
        let config = &checked.config;
        let attempt_timeout = self.settings.attempt_timeout(&context);
        let endpoint = Endpoint::new(client, config.request_method.into(), &checked, attempt_timeout);
        let bodies = config.request_method.has_body().then(|| {
            let envelope = Envelope::new(&context.executor_id, &context.metadata);
            Bodies::new(config, checked.headers.get(header::CONTENT_TYPE), envelope)
        });
        let window = context.window.max(1);
        let configured = NonZeroUsize::new(config.max_parallel_requests_count as usize);
        let pool = self.settings.http_pool_max_connections;
        let patience = match (configured, pool) {
            (Some(configured), _) if configured.get() < window => millis(config.read_timeout_ms),
            _ => Some(POOL_TIMEOUT),
        };
        Ok(Box::new(HttpSink {
            endpoint: Arc::new(endpoint),
            bodies,
            window,
            slots: [configured, pool].into_iter().flatten().map(NonZeroUsize::get).fold(window, usize::min),
            // What the driver has given up must not be sent any more.
            patience: patience.map_or(attempt_timeout, |patience| patience.min(attempt_timeout)),
            attempt_timeout,
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            answers: VecDeque::new(),
            alarm: None,
            waker: None,
        }))
    }
}

/// A running HTTP integration.
struct HttpSink {
    endpoint: client::Shared,
    /// `None`: requests carry no body.
    bodies: Option<Bodies>,
    /// Messages that are waiting, on their way, or answered and not yet polled, at most.
    window: usize,
    /// Messages on their way at most.
    slots: usize,
    /// How long a message may wait for a slot.
    patience: Duration,
    /// How long after its submission a message is answered at the latest.
    attempt_timeout: Duration,
    /// In the order of submission, which is that of their deadlines too.
    waiting: VecDeque<Waiting>,
    running: FuturesUnordered<BoxFuture<'static, (Ticket, Outcome)>>,
    /// Answers that needed no request.
    answers: VecDeque<(Ticket, Outcome)>,
    /// Rings at the deadline of the first that waits.
    alarm: Option<Pin<Box<Sleep>>>,
    /// The task of the last pending poll.
    waker: Option<Waker>,
}

struct Waiting {
    message: Message,
    ticket: Ticket,
    submitted: Instant,
}

impl fmt::Debug for HttpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSink")
            .field("endpoint", &self.endpoint)
            .field("running", &self.running.len())
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl HttpSink {
    /// Sends a message, or answers it at once.
    fn start(&mut self, message: &Message, ticket: Ticket, submitted: Instant) {
        let body = match self.bodies.as_ref().map(|bodies| bodies.body(message)).transpose() {
            Ok(body) => body,
            Err(outcome) => return self.answers.push_back((ticket, outcome)),
        };
        let endpoint = self.endpoint.clone();
        let request = endpoint.request(body);
        let deadline = submitted + self.attempt_timeout;
        self.running.push(Box::pin(async move { (ticket, endpoint.send(request, deadline).await) }));
    }

    /// Gives free slots to those that wait.
    fn fill(&mut self) {
        while self.running.len() < self.slots
            && let Some(next) = self.waiting.pop_front()
        {
            if next.submitted + self.patience <= Instant::now() {
                self.answers.push_back((next.ticket, self.too_late()));
            } else {
                self.start(&next.message, next.ticket, next.submitted);
            }
        }
    }

    /// Takes out the first that waits when its time is over.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        let Some(deadline) = self.waiting.front().map(|first| first.submitted + self.patience) else {
            self.alarm = None;
            return Poll::Pending;
        };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        if alarm.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        match self.waiting.pop_front() {
            Some(first) => Poll::Ready((first.ticket, self.too_late())),
            None => Poll::Pending,
        }
    }

    fn too_late(&self) -> Outcome {
        let waited = self.patience.as_millis();
        let text = format!(
            "Timeout during waiting for reply! {} was not sent: no free slot within {waited} ms",
            self.endpoint.label()
        );
        Outcome::Retry { after: None, class: "timeout", text }
    }
}

#[async_trait]
impl Sink for HttpSink {
    fn submit(&mut self, message: Message, ticket: Ticket) -> Result<(), Busy> {
        if self.running.len() + self.waiting.len() + self.answers.len() >= self.window {
            return Err(Busy);
        }
        let submitted = Instant::now();
        if self.waiting.is_empty() && self.running.len() < self.slots {
            self.start(&message, ticket, submitted);
        } else {
            self.waiting.push_back(Waiting { message, ticket, submitted });
        }
        // A request begins when it is polled.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Poll::Ready(answer);
            }
            if let Poll::Ready(Some(answer)) = self.running.poll_next_unpin(cx) {
                self.fill();
                return Poll::Ready(answer);
            }
            if let Poll::Ready(answer) = self.poll_late(cx) {
                return Poll::Ready(answer);
            }
            if self.waiting.is_empty() || self.running.len() >= self.slots {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // Messages that were answered without a request left their slots free.
            self.fill();
        }
    }

    fn state(&self) -> SinkState {
        SinkState::Ready
    }

    async fn close(mut self: Box<Self>, deadline: Duration) {
        self.waiting.clear();
        let ended = async { while self.running.next().await.is_some() {} };
        // What is still on its way is abandoned with the sink.
        drop(timeout(deadline, ended).await);
    }
}

/// All problems in one text.
fn joined(violations: &[Violation]) -> String {
    violations.iter().map(|violation| violation.text.as_str()).collect::<Vec<_>>().join("; ")
}

/// Milliseconds of a configuration; 0 means none.
fn millis(number: u32) -> Option<Duration> {
    (number > 0).then(|| Duration::from_millis(u64::from(number)))
}
