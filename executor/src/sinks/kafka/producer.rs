//! Clients of external clusters, shared by sinks with the same settings, and what each sink has in flight with them.
//!
//! A client has a task that hands delivery reports to the sinks, and a thread that watches whether brokers are there and
//! may be connected to. Sinks own it together; when the last one goes, both end, and whoever has the client last takes
//! it down beside everything else, because taking down a client waits.
//!
//! Sharing costs a sink nothing but bandwidth: it has a budget of its own, librdkafka keeps a queue per partition, and
//! nothing here waits. Only closing differs: what a sink has handed over can't be taken back from a client that others
//! use, so it may still arrive after the sink was closed, and again from the sink's successor.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::task::AtomicWaker;
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    ClientConfig, ClientContext,
    client::Client as NativeClient,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode as Code},
    metadata::Metadata,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig},
};
use sha2::{Digest as _, Sha256};
use tbmq_bus::kafka::{Bell, EndsAside};
use tokio::sync::Notify;

use super::{
    brokers::{self, Problem},
    outcome::Class,
    properties::{self, Hidden, Settings},
};
use crate::{
    sink::{Outcome, SinkState, Ticket},
    sinks::{credentials::Secret, egress::Egress},
};

/// Time between two looks at the cluster while all is well.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// The same while brokers are away, and while a topic is missing.
const AWAY_INTERVAL: Duration = Duration::from_millis(250);
const MISSING_INTERVAL: Duration = Duration::from_secs(1);

/// How long a look waits for an answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// Missing topics that one look asks for at most.
const MISSING_PER_LOOK: usize = 16;

/// What librdkafka has to say is taken so many events at a time; then others have their turn.
const EVENTS_PER_ROUND: usize = 64;

/// The clients of a process.
#[derive(Default)]
pub(super) struct Producers {
    open: Mutex<HashMap<Fingerprint, Weak<Producer>>>,
}

/// Stands for settings, secrets included.
type Fingerprint = [u8; 32];

impl fmt::Debug for Producers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producers").field("open", &self.open.lock().len()).finish()
    }
}

impl Producers {
    /// The client with these settings; a new one when there is none, or when it is broken. Waits for files and threads,
    /// not for brokers. To be called within a runtime.
    ///
    /// # Errors
    /// What librdkafka does not take, for people.
    pub(super) fn join(&self, settings: &Settings, egress: &Egress) -> Result<Arc<Producer>, String> {
        let fingerprint = fingerprint(settings);
        let mut open = self.open.lock();
        open.retain(|_, producer| producer.strong_count() > 0);
        if let Some(producer) = open.get(&fingerprint).and_then(Weak::upgrade)
            && !matches!(producer.state(), SinkState::Broken { .. })
        {
            return Ok(producer);
        }
        let producer = Arc::new(Producer::new(settings, egress)?);
        open.insert(fingerprint, Arc::downgrade(&producer));
        Ok(producer)
    }
}

fn fingerprint(settings: &Settings) -> Fingerprint {
    let mut hash = Sha256::new();
    for text in settings.iter().flat_map(|(name, value)| [*name, value.expose()]) {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

/// librdkafka's configuration.
pub(super) fn client_config(settings: &Settings, level: RDKafkaLogLevel) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), value.expose().to_owned())));
    config.set_log_level(level);
    config
}

/// A client, as its sinks hold it.
pub(super) struct Producer {
    client: Arc<Client>,
    reach: Arc<Reach>,
    /// Wakes the task that hands reports out.
    news: Arc<Notify>,
}

/// librdkafka's; whoever lets it go last does not wait for its end.
type Client = EndsAside<Reports>;

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Producer {
    fn new(settings: &Settings, egress: &Egress) -> Result<Self, String> {
        let servers = settings.get("bootstrap.servers").map_or("", Secret::expose);
        let reach = Arc::new(Reach::new(servers));
        let hidden = Hidden::of(settings);
        let context = Reports { reach: reach.clone(), hidden: hidden.clone() };
        let native: BaseProducer<Reports> = client_config(settings, RDKafkaLogLevel::Info)
            .create_with_context(context)
            .map_err(|error| hidden.hide(&properties::creation_text(&error)))?;
        let client = Arc::new(Client::new(native));
        {
            let (client, reach, egress) = (client.clone(), reach.clone(), egress.clone());
            let watch = move || watch(&client, &reach, &egress);
            let thread = std::thread::Builder::new().name("kafka-sink-watch".to_owned()).spawn(watch);
            thread.map_err(|error| format!("no thread for a Kafka client: {error}"))?;
        }
        let news = Arc::new(Notify::new());
        let rung = news.clone();
        let bell = Bell::of(&client, move || rung.notify_one());
        let reporter = Reporter { bell, client: client.clone(), reach: reach.clone(), news: news.clone() };
        tokio::spawn(reporter.run());
        Ok(Self { client, reach, news })
    }

    /// Adds a sink: its answers go to this inbox from now on.
    pub(super) fn register(&self, inbox: &Arc<Inbox>) {
        let mut inboxes = self.reach.inboxes.lock();
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.push(Arc::downgrade(inbox));
        drop(inboxes);
        // The first topic to ask for.
        self.reach.look_now();
    }

    /// Hands a record over; it is answered through the token's inbox. Never waits.
    ///
    /// # Errors
    /// When it was not taken.
    pub(super) fn send(
        &self,
        record: BaseRecord<'_, str, [u8], Box<Token>>,
    ) -> Result<(), (Code, Box<Token>)> {
        self.client.send(record).map_err(|(error, record)| {
            (error.rdkafka_error_code().unwrap_or(Code::InvalidArgument), record.delivery_opaque)
        })
    }

    /// Whether brokers are there.
    pub(super) fn state(&self) -> SinkState {
        if self.reach.is_ready.load(Ordering::Acquire) {
            return SinkState::Ready;
        }
        self.reach.known.lock().state.clone()
    }

    /// What it means for a message that it was not taken.
    pub(super) fn refused(&self, code: Code, inbox: &Inbox) -> Outcome {
        self.reach.outcome(code, inbox)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Nothing more leaves, not even until the others notice.
        self.client.purge(PurgeConfig::default().queue().inflight().non_blocking());
        self.reach.end();
        self.news.notify_one();
    }
}

/// What a sink is told.
pub(super) struct Inbox {
    pub topic: String,
    answers: Mutex<Vec<(Ticket, Outcome)>>,
    pub waker: AtomicWaker,
    /// Of records without an answer.
    bytes: AtomicUsize,
    is_topic_missing: AtomicBool,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("topic", &self.topic)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Inbox {
    pub(super) fn new(topic: String) -> Self {
        Self {
            topic,
            answers: Mutex::default(),
            waker: AtomicWaker::new(),
            bytes: AtomicUsize::new(0),
            is_topic_missing: AtomicBool::new(false),
        }
    }

    /// Bytes of records without an answer.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// All answers that are there.
    pub(super) fn take(&self) -> Vec<(Ticket, Outcome)> {
        std::mem::take(&mut *self.answers.lock())
    }

    fn answer(&self, ticket: Ticket, outcome: Outcome) {
        self.answers.lock().push((ticket, outcome));
        self.waker.wake();
    }
}

/// Travels with a record through librdkafka.
pub(super) struct Token {
    ticket: Ticket,
    cost: usize,
    inbox: Arc<Inbox>,
}

impl Token {
    /// Counts the record as in flight for as long as the token lives.
    pub(super) fn new(ticket: Ticket, cost: usize, inbox: &Arc<Inbox>) -> Self {
        inbox.bytes.fetch_add(cost, Ordering::AcqRel);
        Self { ticket, cost, inbox: inbox.clone() }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.inbox.bytes.fetch_sub(self.cost, Ordering::AcqRel);
    }
}

/// Whether the brokers can be reached.
struct Reach {
    /// Those of the configuration.
    servers: String,
    /// Copy of `known` for the hot path.
    is_ready: AtomicBool,
    known: Mutex<Known>,
    /// Something for the watching thread.
    news: Condvar,
    /// Sinks that use the client.
    inboxes: Mutex<Vec<Weak<Inbox>>>,
    /// Records that were confirmed.
    confirmed: AtomicU64,
}

struct Known {
    state: SinkState,
    was_ready: bool,
    /// The last thing that went wrong with a broker.
    last_error: Option<String>,
    /// The brokers refuse who we are, or we refuse who they are.
    refusal: Option<String>,
    are_all_down: bool,
    is_look_wanted: bool,
    has_ended: bool,
}

impl Reach {
    fn new(servers: &str) -> Self {
        let known = Known {
            state: SinkState::Away { reason: format!("connecting to {servers}") },
            was_ready: false,
            last_error: None,
            refusal: None,
            are_all_down: false,
            is_look_wanted: false,
            has_ended: false,
        };
        Self {
            servers: servers.to_owned(),
            is_ready: AtomicBool::new(false),
            known: Mutex::new(known),
            news: Condvar::new(),
            inboxes: Mutex::default(),
            confirmed: AtomicU64::new(0),
        }
    }

    fn end(&self) {
        self.known.lock().has_ended = true;
        self.news.notify_all();
    }

    fn has_ended(&self) -> bool {
        self.known.lock().has_ended
    }

    fn look_now(&self) {
        self.known.lock().is_look_wanted = true;
        self.news.notify_all();
    }

    fn nobody(&self) -> String {
        format!("no broker of {} answers", self.servers)
    }

    /// Notes a state; sinks are woken when it is a new one. What is broken stays so.
    fn set(&self, known: &mut Known, state: SinkState) {
        if known.state == state || matches!(known.state, SinkState::Broken { .. }) {
            return;
        }
        let is_change = std::mem::discriminant(&known.state) != std::mem::discriminant(&state);
        self.is_ready.store(state == SinkState::Ready, Ordering::Release);
        known.was_ready |= state == SinkState::Ready;
        known.state = state;
        if is_change {
            for inbox in self.inboxes.lock().iter().filter_map(Weak::upgrade) {
                inbox.waker.wake();
            }
        }
    }

    /// Takes an error that is about the brokers and not about a message.
    fn failed(&self, code: Code, reason: String, is_fatal: bool) {
        let mut known = self.known.lock();
        match code {
            _ if is_fatal => self.set(&mut known, SinkState::Broken { reason: reason.clone() }),
            Code::AllBrokersDown => known.are_all_down = true,
            Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL => {
                known.refusal = Some(reason.clone());
                known.last_error = Some(reason.clone());
            }
            _ => known.last_error = Some(reason.clone()),
        }
        if !known.are_all_down {
            return;
        }
        let state = match (&known.refusal, known.was_ready) {
            // Wrong from the start: somebody has to act, and is to see it.
            (Some(refusal), false) => SinkState::Broken { reason: refusal.clone() },
            _ => SinkState::Away { reason: known.last_error.clone().unwrap_or_else(|| self.nobody()) },
        };
        self.set(&mut known, state);
        known.is_look_wanted = true;
        self.news.notify_all();
    }

    /// What an error means for a message, and what follows from it for the watching thread.
    fn outcome(&self, code: Code, inbox: &Inbox) -> Outcome {
        let class = Class::of(code);
        let mut text = format!("{}: {code}", inbox.topic);
        if class == Class::Topic && !inbox.is_topic_missing.swap(true, Ordering::AcqRel) {
            self.look_now();
        }
        if class.is_suspicious() {
            let mut known = self.known.lock();
            if known.state == SinkState::Ready {
                known.is_look_wanted = true;
                self.news.notify_all();
            } else if let Some(error) = &known.last_error {
                text = format!("{text}; {error}");
            }
        }
        class.outcome(text)
    }
}

/// Gets everything that librdkafka tells.
struct Reports {
    reach: Arc<Reach>,
    hidden: Hidden,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let message = self.hidden.hide(message);
        match level {
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::trace!(facility, message, "librdkafka");
            }
            // Errors come again through `error`, once, and the state says what follows.
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        let reason = self.hidden.hide(reason);
        tracing::debug!(%code, reason, "an external Kafka cluster reports an error");
        self.reach.failed(code, reason, code == Code::Fatal);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Token>;

    fn delivery(&self, result: &DeliveryResult<'_>, token: Box<Token>) {
        let outcome = match result {
            Ok(_) => {
                self.reach.confirmed.fetch_add(1, Ordering::Relaxed);
                Outcome::Delivered
            }
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                self.reach.outcome(code, &token.inbox)
            }
        };
        let (ticket, inbox) = (token.ticket, token.inbox.clone());
        // Whoever is woken finds the room.
        drop(token);
        inbox.answer(ticket, outcome);
    }
}

/// Hands delivery reports out until nobody uses the client. A task and no thread: those who wait for the reports are tasks
/// as well, and each change of threads costs as much as several records.
struct Reporter {
    /// Goes before its client.
    bell: Bell,
    client: Arc<Client>,
    reach: Arc<Reach>,
    news: Arc<Notify>,
}

impl Reporter {
    async fn run(self) {
        while !self.reach.has_ended() {
            for _ in 0..EVENTS_PER_ROUND {
                if !self.bell.has_rung() {
                    break;
                }
                self.client.poll(Duration::ZERO);
            }
            if self.bell.has_rung() {
                tokio::task::yield_now().await;
            } else {
                self.news.notified().await;
            }
        }
    }
}

/// Looks at the cluster again and again until nobody uses the client.
fn watch(client: &Client, reach: &Reach, egress: &Egress) {
    loop {
        let interval = match topics(reach) {
            // Nobody has registered yet.
            None => LOOK_INTERVAL,
            Some(topics) => {
                look(client, reach, egress, &topics);
                let is_missing = || topics_missing(reach).next().is_some();
                let state = reach.known.lock().state.clone();
                match state {
                    SinkState::Ready if is_missing() => MISSING_INTERVAL,
                    SinkState::Ready | SinkState::Broken { .. } => LOOK_INTERVAL,
                    SinkState::Away { .. } => AWAY_INTERVAL,
                }
            }
        };
        let mut known = reach.known.lock();
        if !known.has_ended && !known.is_look_wanted {
            reach.news.wait_for(&mut known, interval);
        }
        if known.has_ended {
            return;
        }
        known.is_look_wanted = false;
    }
}

/// What to ask for: the topics that are missing, or any.
fn topics(reach: &Reach) -> Option<Vec<Arc<Inbox>>> {
    let missing: Vec<_> = topics_missing(reach).take(MISSING_PER_LOOK).collect();
    if !missing.is_empty() {
        return Some(missing);
    }
    let any = reach.inboxes.lock().iter().find_map(Weak::upgrade)?;
    Some(vec![any])
}

fn topics_missing(reach: &Reach) -> impl Iterator<Item = Arc<Inbox>> {
    let inboxes: Vec<_> = reach.inboxes.lock().iter().filter_map(Weak::upgrade).collect();
    inboxes.into_iter().filter(|inbox| inbox.is_topic_missing.load(Ordering::Acquire))
}

fn look(client: &Client, reach: &Reach, egress: &Egress, topics: &[Arc<Inbox>]) {
    for inbox in topics {
        if reach.known.lock().has_ended {
            return;
        }
        let confirmed = reach.confirmed.load(Ordering::Relaxed);
        let native: &NativeClient<Reports> = client.client();
        let state = match native.fetch_metadata(Some(&inbox.topic), LOOK_TIMEOUT) {
            Ok(metadata) => {
                let is_there = metadata
                    .topics()
                    .iter()
                    .any(|topic| topic.error().is_none() && topic.name() == inbox.topic);
                if is_there {
                    inbox.is_topic_missing.store(false, Ordering::Release);
                }
                match refused(&metadata, egress) {
                    None => SinkState::Ready,
                    Some(reason) => SinkState::Broken { reason },
                }
            }
            // Slow, but alive.
            Err(_) if reach.confirmed.load(Ordering::Relaxed) != confirmed => continue,
            Err(error) => {
                let code =
                    error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string());
                let known = reach.known.lock();
                let reason =
                    known.last_error.clone().unwrap_or_else(|| format!("{}: {code}", reach.nobody()));
                SinkState::Away { reason }
            }
        };
        let mut known = reach.known.lock();
        if state == SinkState::Ready {
            (known.last_error, known.refusal, known.are_all_down) = (None, None, false);
        }
        let is_away = matches!(state, SinkState::Away { .. });
        reach.set(&mut known, state);
        if is_away {
            return;
        }
    }
}

/// Why a broker that the cluster names may not be connected to.
fn refused(metadata: &Metadata, egress: &Egress) -> Option<String> {
    metadata.brokers().iter().find_map(|broker| {
        let port = u16::try_from(broker.port()).unwrap_or_default();
        match brokers::look(egress, broker.host(), port) {
            Err(Problem::Refused(text)) => Some(text),
            // Who can't be found can't be connected to.
            Ok(_) | Err(Problem::Unresolved(_)) => None,
        }
    })
}
