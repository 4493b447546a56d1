//! Drives the control plane's end of the validation exchange: requests onto the downlink topics, replies from the
//! notifications topic, both through [`Validations`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tbmq_bus::{CompletionQueue, Header, Outgoing, Writer};
use tbmq_integration::{
    Millis,
    validation::{End, ExchangeId, Step, TooManyPending, Validations},
    wire::{self, ValidationReply, ValidationRequest},
};
use tbmq_proto::topic::Catalogue;
use tbmq_service::trace::{self, Span, SpanKind, Tracer, bounded};
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use crate::{
    fault::{Faults, Point},
    metrics::{Metrics, Validated, ValidationEnd},
    vault::Vault,
};

/// Tombstones that wait for room in the writer, at most.
const TOMBSTONES_MAX: usize = 4_096;

/// Asks executors and waits for their answers.
pub(crate) struct Validator {
    state: Mutex<State>,
    changed: Notify,
    began: Instant,
    catalogue: Catalogue,
    vault: Arc<Vault>,
    metrics: Metrics,
    tracer: Tracer,
}

struct State {
    machine: Validations,
    /// One per pending exchange; the machine limits them.
    callers: BTreeMap<ExchangeId, Caller>,
    /// Kind and key of requests whose tombstones found no room in the writer.
    tombstones: VecDeque<(String, Uuid)>,
}

struct Caller {
    request: ValidationRequest,
    answer: Option<oneshot::Sender<End>>,
    /// From the question to the answer, if who asks is traced.
    span: Option<Span>,
}

/// What the driver's loop is to write.
enum Write {
    Request(Box<ValidationRequest>, Vec<Header>),
    Tombstone(String, Uuid),
}

impl std::fmt::Debug for Validator {
    // Requests may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator").finish_non_exhaustive()
    }
}

impl Validator {
    pub(crate) fn new(
        limit: std::num::NonZeroUsize,
        catalogue: Catalogue,
        vault: Arc<Vault>,
        metrics: Metrics,
        tracer: Tracer,
    ) -> Self {
        let state =
            State { machine: Validations::new(limit), callers: BTreeMap::new(), tombstones: VecDeque::new() };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            began: Instant::now(),
            catalogue,
            vault,
            metrics,
            tracer,
        }
    }

    fn now(&self) -> Millis {
        Millis(self.began.elapsed().as_millis() as u64)
    }

    /// Asks, and waits at most `patience`. Dropping the future ends the exchange. Ids and times of `request` are set
    /// here.
    pub(crate) async fn ask(
        &self,
        request: ValidationRequest,
        patience: Duration,
    ) -> Result<End, TooManyPending> {
        let (answer, answered) = oneshot::channel();
        let span = self.begin(&request);
        let exchange = {
            let mut state = self.state.lock();
            let exchange = state.machine.request(self.now(), Uuid::new_v4(), patience).inspect_err(|_| {
                self.metrics.validations_refused.inc();
            })?;
            state.callers.insert(exchange, Caller { request, answer: Some(answer), span });
            exchange
        };
        self.metrics.validations.inc();
        self.changed.notify_one();
        let _cancel = Cancel { validator: self, exchange };
        // The machine lets every exchange leave, so the sender is dropped only with the whole process.
        let began = Instant::now();
        let end = answered.await.unwrap_or(End::Expired);
        let outcome = match &end {
            End::Answered(reply) if reply.error.is_none() => Validated::Accepted,
            End::Answered(_) => Validated::Rejected,
            End::Expired => Validated::Expired,
            End::Undelivered(_) => Validated::Undelivered,
        };
        self.metrics.validation.get_or_create(&ValidationEnd { outcome }).observe(began.elapsed());
        Ok(end)
    }

    /// Validations that have no answer yet.
    pub(crate) fn pending(&self) -> usize {
        self.state.lock().machine.pending()
    }

    /// The span of an exchange, below that of the call that it is for.
    fn begin(&self, request: &ValidationRequest) -> Option<Span> {
        if !self.tracer.is_on() {
            return None;
        }
        let mut span = self.tracer.follow("validation", SpanKind::Producer, &trace::current()?)?;
        span.set("messaging.system", "kafka");
        span.set("messaging.operation.name", "validation");
        span.set("messaging.operation.type", "send");
        span.set("tbmq.integration_id", request.integration.to_string());
        span.set("tbmq.integration_kind", request.kind.as_str().to_owned());
        Some(span)
    }

    /// Takes a reply from the notifications topic.
    pub(crate) fn reply(&self, reply: ValidationReply) {
        let id = reply.id;
        if self.state.lock().machine.reply(reply) {
            self.changed.notify_one();
        } else {
            tracing::debug!(request = %id, "reply that nobody waits for");
        }
    }

    /// Writes requests and tombstones, and lets time pass. Runs for ever; cancel-safe.
    pub(crate) async fn run(&self, writer: Arc<dyn Writer>, faults: &Faults) {
        let completions = CompletionQueue::new();
        let mut outcomes = Vec::new();
        // One entry per record in flight, which the writer's budget limits.
        let mut tickets: BTreeMap<u64, Uuid> = BTreeMap::new();
        let mut next_ticket = 0_u64;
        let mut handles = BTreeMap::new();
        loop {
            let (writes, deadline) = self.advance();
            let mut full = false;
            for write in writes {
                let (kind, id, value) = match &write {
                    Write::Request(request, _) => match self.vault.sealed(request) {
                        Ok(sealed) => {
                            (request.kind.as_str(), request.id, Some(wire::encode_request(&sealed)))
                        }
                        Err(error) => {
                            self.failed(request.id, &error.to_string());
                            continue;
                        }
                    },
                    Write::Tombstone(kind, id) => (kind.as_str(), *id, None),
                };
                if !handles.contains_key(kind) {
                    let Ok(parsed) = kind.parse() else { continue };
                    handles.insert(kind.to_owned(), writer.topic(&self.catalogue.downlink(&parsed).name));
                }
                let handle = &handles[kind];
                let key = id.to_string();
                let record = Outgoing {
                    partition: None,
                    key: Some(key.as_bytes()),
                    value: value.as_deref(),
                    headers: match &write {
                        Write::Request(_, headers) => headers,
                        Write::Tombstone(..) => &[],
                    },
                };
                next_ticket += 1;
                match writer.submit(handle, record, next_ticket, &completions) {
                    Ok(()) if value.is_some() => {
                        tickets.insert(next_ticket, id);
                    }
                    Ok(()) => {}
                    Err(error) => {
                        full = true;
                        match write {
                            Write::Request(request, _) => self.failed(request.id, &error.to_string()),
                            Write::Tombstone(kind, id) => self.keep_tombstone(kind, id),
                        }
                    }
                }
            }
            let pause = match deadline {
                Some(deadline) => deadline.since(self.now()),
                None => Duration::from_hours(1),
            };
            let pause = if full { pause.min(Duration::from_millis(50)) } else { pause };
            tokio::select! {
                () = self.changed.notified() => {}
                () = completions.wait(&mut outcomes) => {
                    for outcome in outcomes.drain(..) {
                        let request = tickets.remove(&outcome.ticket);
                        match (outcome.result, request) {
                            (Err(error), Some(request)) => self.failed(request, &error.to_string()),
                            (Err(error), None) => {
                                // The reconciler finds what was left.
                                tracing::debug!(%error, "tombstone of a request was not written");
                                self.metrics.tombstones_dropped.inc();
                            }
                            (Ok(_), Some(request)) => {
                                faults.pass(Point::Asked).await;
                                self.state.lock().machine.written(request);
                            }
                            (Ok(_), None) => {}
                        }
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn failed(&self, request: Uuid, reason: &str) {
        self.state.lock().machine.undelivered(request, reason);
        // The permit stays until the loop looks again.
        self.changed.notify_one();
    }

    fn keep_tombstone(&self, kind: String, id: Uuid) {
        let mut state = self.state.lock();
        if state.tombstones.len() < TOMBSTONES_MAX {
            state.tombstones.push_back((kind, id));
        } else {
            self.metrics.tombstones_dropped.inc();
        }
    }

    fn advance(&self) -> (Vec<Write>, Option<Millis>) {
        let now = self.now();
        let now_ms = tbmq_service::time::now_ms();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.machine.tick(now, Uuid::new_v4);
        let mut writes: Vec<Write> =
            state.tombstones.drain(..).map(|(kind, id)| Write::Tombstone(kind, id)).collect();
        while let Some(step) = state.machine.poll() {
            match step {
                Step::Send { exchange, request, deadline } => {
                    let Some(caller) = state.callers.get(&exchange) else { continue };
                    let request = ValidationRequest {
                        id: request,
                        created_ms: now_ms,
                        deadline_ms: now_ms + deadline.since(now).as_millis() as i64,
                        ..caller.request.clone()
                    };
                    writes.push(Write::Request(Box::new(request), headers(caller.span.as_ref())));
                }
                Step::Withdraw { exchange, request } => {
                    let Some(caller) = state.callers.get(&exchange) else { continue };
                    writes.push(Write::Tombstone(caller.request.kind.to_string(), request));
                }
                Step::Ended { exchange, end } => {
                    if end == End::Expired {
                        self.metrics.validations_expired.inc();
                    }
                    let caller = state.callers.remove(&exchange);
                    let (answer, span) = caller.map_or((None, None), |caller| (caller.answer, caller.span));
                    if let Some(span) = span {
                        ended(span, &end);
                    }
                    // Nobody listens when the caller has gone away.
                    if let Some(answer) = answer {
                        answer.send(end).ok();
                    }
                }
            }
        }
        (writes, state.machine.next_deadline())
    }
}

/// What a request carries of its trace.
fn headers(span: Option<&Span>) -> Vec<Header> {
    let fields = span.into_iter().flat_map(|span| span.context().fields());
    fields.map(|(name, text)| Header::text(name, text)).collect()
}

fn ended(mut span: Span, end: &End) {
    match end {
        End::Answered(reply) => {
            span.set("tbmq.executor.id", reply.executor.clone());
            if let Some(error) = &reply.error {
                span.fail("refused", bounded(error).to_owned());
            }
        }
        End::Expired => span.fail("expired", "nobody answered in time, or the caller went away"),
        End::Undelivered(reason) => span.fail("undelivered", bounded(reason).to_owned()),
    }
}

/// Ends an exchange whose caller has gone away.
struct Cancel<'a> {
    validator: &'a Validator,
    exchange: ExchangeId,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        let mut state = self.validator.state.lock();
        if state.callers.contains_key(&self.exchange) {
            state.machine.cancel(self.exchange);
            drop(state);
            self.validator.changed.notify_one();
        }
    }
}
