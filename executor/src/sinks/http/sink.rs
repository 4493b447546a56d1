//! A running HTTP integration: which requests wait, which are on their way, and what was answered.

use std::{
    collections::{BTreeSet, VecDeque},
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
use tbmq_service::trace::TraceContext;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{
    body::{Bodies, Body},
    client::{self, Load},
    config::Checked,
    idempotency::Keys,
    millis,
    slots::{Crowd, Slots},
};
use crate::{
    sink::{Busy, Message, Outcome, Sink, SinkContext, SinkState, Ticket},
    sinks::{batched::BatchSink, envelope::Envelope},
};

/// The longest wait for one of the connections that a process's pool allows; TBMQ's.
const POOL_TIMEOUT: Duration = Duration::from_secs(45);

/// A running HTTP integration.
pub(super) struct HttpSink {
    endpoint: client::Shared,
    /// `None`: requests carry no body.
    bodies: Option<Bodies>,
    /// `None`: requests carry no key.
    keys: Option<Keys>,
    /// Requests that are waiting, on their way, or answered and not yet polled, at most.
    window: usize,
    /// Requests on their way at most.
    slots: Slots,
    crowd: Arc<Crowd>,
    /// How long a request may wait for a slot.
    patience: Duration,
    /// How long after the submission of its message a request is answered at the latest.
    attempt_timeout: Duration,
    /// In the order of submission, which is that of their deadlines too, but for halves of a rejected batch.
    waiting: VecDeque<Waiting>,
    /// With how long it took.
    running: FuturesUnordered<BoxFuture<'static, (Ticket, Outcome, Duration)>>,
    /// Tickets that were not answered.
    taken: BTreeSet<Ticket>,
    /// Answers that needed no request.
    answers: VecDeque<(Ticket, Outcome)>,
    /// Rings at the deadline of the first that waits.
    alarm: Option<Pin<Box<Sleep>>>,
    /// The task of the last pending poll.
    waker: Option<Waker>,
}

struct Waiting {
    load: Load,
    ticket: Ticket,
    submitted: Instant,
}

/// A message as it stands in a batch.
pub(super) struct Item {
    bytes: bytes::Bytes,
    key: Option<String>,
    trace: Option<Arc<TraceContext>>,
}

impl AsRef<[u8]> for Item {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
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
    /// A sink that sends to `endpoint`. `pool`: requests at once at most, whatever the configuration says; `crowd`: how
    /// busy the executor is; `attempt_timeout`: what the driver gives a message.
    pub(super) fn new(
        checked: &Checked,
        endpoint: client::Shared,
        context: &SinkContext,
        pool: Option<NonZeroUsize>,
        crowd: Arc<Crowd>,
        attempt_timeout: Duration,
    ) -> Self {
        let config = &checked.config;
        let bodies = config.request_method.has_body().then(|| {
            let envelope = Envelope::new(&context.executor_id, &context.metadata);
            Bodies::new(config, checked.headers.get(header::CONTENT_TYPE), envelope)
        });
        let window = context.window.max(1);
        let configured = NonZeroUsize::new(config.max_parallel_requests_count as usize);
        let patience = match configured {
            Some(configured) if configured.get() < window => millis(config.read_timeout_ms),
            _ => Some(POOL_TIMEOUT),
        };
        // What the driver has given up must not be sent any more.
        let patience = patience.map_or(attempt_timeout, |patience| patience.min(attempt_timeout));
        let slots = [configured, pool].into_iter().flatten().map(NonZeroUsize::get).fold(window, usize::min);
        Self {
            endpoint,
            bodies,
            keys: config.idempotency_key.then(|| Keys::new(context)),
            window,
            slots: Slots::new(slots, patience, Instant::now()),
            crowd,
            patience,
            attempt_timeout,
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            taken: BTreeSet::new(),
            answers: VecDeque::new(),
            alarm: None,
            waker: None,
        }
    }

    /// What the request of a message carries, or the rejection of the message.
    fn load(&self, message: &Message) -> Result<Load, Outcome> {
        let body = self.bodies.as_ref().map(|bodies| bodies.body(message)).transpose()?;
        let key = self.keys.as_ref().map(|keys| keys.of(message));
        Ok(Load { body, key, trace: message.trace.clone() })
    }

    /// Takes a request, or what needs none.
    fn take(&mut self, load: Result<Load, Outcome>, ticket: Ticket, submitted: Instant) -> Result<(), Busy> {
        if self.taken.len() >= self.window {
            return Err(Busy);
        }
        self.taken.insert(ticket);
        match load {
            Err(outcome) => self.answers.push_back((ticket, outcome)),
            Ok(load) => {
                self.waiting.push_back(Waiting { load, ticket, submitted });
                self.fill();
            }
        }
        // A request begins when it is polled.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    /// Gives free slots to those that wait.
    fn fill(&mut self) {
        let Some(first) = self.waiting.front().map(|first| first.submitted) else { return };
        let now = Instant::now();
        let slots = self.slots.number(now, self.running.len(), first, || self.crowd.share());
        while self.running.len() < slots
            && let Some(Waiting { load, ticket, submitted }) = self.waiting.pop_front()
        {
            if submitted + self.patience <= now {
                self.answers.push_back((ticket, self.too_late()));
                continue;
            }
            let endpoint = self.endpoint.clone();
            let request = endpoint.request(load);
            let deadline = submitted + self.attempt_timeout;
            self.running.push(Box::pin(async move {
                let outcome = endpoint.send(request, deadline).await;
                (ticket, outcome, now.elapsed())
            }));
        }
    }

    /// Takes out the first that waits when its time is over; `None` when there may be slots again.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Ticket, Outcome)>> {
        let Some(late) = self.waiting.front().map(|first| first.submitted + self.patience) else {
            self.alarm = None;
            return Poll::Pending;
        };
        let deadline = self.slots.next_look().map_or(late, |look| look.min(late));
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        if alarm.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if deadline < late {
            self.fill();
            return Poll::Ready(None);
        }
        match self.waiting.pop_front() {
            Some(first) => Poll::Ready(Some((first.ticket, self.too_late()))),
            None => Poll::Pending,
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Poll::Ready(answer);
            }
            if let Poll::Ready(Some((ticket, outcome, took))) = self.running.poll_next_unpin(cx) {
                if outcome == Outcome::Delivered {
                    self.slots.answered(took);
                }
                self.fill();
                return Poll::Ready((ticket, outcome));
            }
            match self.poll_waiting(cx) {
                Poll::Ready(Some(answer)) => return Poll::Ready(answer),
                // Requests that have just got a slot begin when they are polled.
                Poll::Ready(None) => {}
                Poll::Pending => break,
            }
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
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
        if self.taken.len() >= self.window {
            return Err(Busy);
        }
        self.take(self.load(&message), ticket, Instant::now())
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        let answer = self.poll_answer(cx);
        if let Poll::Ready((ticket, _)) = &answer {
            self.taken.remove(ticket);
        }
        answer
    }

    fn state(&self) -> SinkState {
        SinkState::Ready
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Vec<Ticket> {
        self.waiting.clear();
        let ended = async { while self.running.next().await.is_some() {} };
        // What is still on its way is abandoned with the sink.
        drop(timeout(deadline, ended).await);
        self.taken.into_iter().collect()
    }
}

impl BatchSink for HttpSink {
    type Item = Item;

    fn item(&self, message: &Message) -> Result<Item, Outcome> {
        let bytes = self.bodies.as_ref().map(|bodies| bodies.part(message)).transpose()?;
        let key = self.keys.as_ref().map(|keys| keys.text(message));
        Ok(Item { bytes: bytes.unwrap_or_default(), key, trace: message.trace.clone() })
    }

    fn submit_batch(&mut self, items: &[Item], ticket: Ticket, since: Instant) -> Result<(), Busy> {
        if self.taken.len() >= self.window {
            return Err(Busy);
        }
        let parts = items.iter().map(|item| &item.bytes);
        let body: Option<Body> = self.bodies.as_ref().map(|bodies| bodies.join(parts));
        let names: Vec<&str> = items.iter().filter_map(|item| item.key.as_deref()).collect();
        let key = self.keys.as_ref().map(|keys| keys.of_all(&names));
        let trace = items.iter().find_map(|item| item.trace.clone());
        self.take(Ok(Load { body, key, trace }), ticket, since)
    }
}
