//! Kafka integrations: one record per message (spec §6.5).
//!
//! | module | what |
//! |---|---|
//! | [`config`] | `clientConfiguration`, read and checked |
//! | `properties`, `jaas` | Java's property names and login modules in librdkafka's words |
//! | `record` | from a message to a record |
//! | `producer` | the clients, shared by sinks with the same settings |
//! | `outcome` | what an error means for a message |
//! | `brokers` | which brokers may be connected to |
//! | `probe` | the connection check |
//!
//! `Delivered` means what `acks` says: confirmed by all replicas in sync, or by the leader; with `acks=0` nothing
//! confirms, the record was written to a connection. librdkafka's own retries (`retries`) happen within one delivery
//! attempt: it gives a record up shortly before the driver gives the attempt up. While no broker can be reached the sink
//! is away, and comes back by itself.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    num::NonZeroUsize,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::poll_fn;
use parking_lot::Mutex;
use rdkafka::producer::BaseRecord;
use serde_json::{Map, Value};
use tbmq_integration::entity::Violation;
use tokio::{task::spawn_blocking, time::timeout};

use self::{
    brokers::Problem,
    config::Checked,
    outcome::Class,
    producer::{Inbox, Producer, Producers, Token},
    properties::Settings,
    record::Records,
};
use super::{SinkSettings, binder, credentials::Secret, envelope::Envelope};
use crate::sink::{
    Busy, ConnectError, Message, Outcome, ProbeReport, Sink, SinkContext, SinkKind, SinkState, Ticket,
};

mod brokers;
pub mod config;
mod jaas;
mod outcome;
mod probe;
mod producer;
mod properties;
mod record;

#[cfg(test)]
mod proxy;
#[cfg(test)]
mod tests;

/// What is connected to, in texts about local hosts.
const WHAT: &str = "Kafka broker";

/// Names of ignored properties that are remembered as told.
const TOLD_MAX: usize = 1000;

/// The kind `KAFKA`.
#[derive(Debug)]
pub struct Kafka {
    settings: SinkSettings,
    producers: Arc<Producers>,
    /// Properties without a counterpart that were warned about.
    told: Mutex<HashSet<String>>,
}

impl Kafka {
    /// The kind, for the settings of this process.
    pub fn new(settings: SinkSettings) -> Self {
        Self { settings, producers: Arc::default(), told: Mutex::default() }
    }

    /// Warns once about each property that has no counterpart.
    fn tell_ignored(&self, ignored: &[String], context: &SinkContext) {
        let mut told = self.told.lock();
        for property in ignored {
            if told.len() < TOLD_MAX && told.insert(property.clone()) {
                tracing::warn!(shard = %context.shard, property, "a property of Kafka's Java client has no counterpart and is ignored");
            }
        }
    }

    /// Makes sure that the brokers to begin with may be connected to, and can be found.
    async fn resolve(&self, checked: &Checked) -> Result<String, String> {
        let (egress, servers) = (self.settings.egress.clone(), checked.servers.clone());
        let looked = spawn_blocking(move || {
            servers.iter().map(|server| brokers::look(&egress, &server.host, server.port)).collect::<Vec<_>>()
        });
        let mut addresses = Vec::new();
        let mut unresolved = None;
        for found in looked.await.map_err(|error| error.to_string())? {
            match found {
                Ok(found) => addresses.extend(found.iter().map(|address| address.ip().to_string())),
                Err(refused @ Problem::Refused(_)) => return Err(refused.into_text()),
                Err(Problem::Unresolved(text)) => unresolved = Some(text),
            }
        }
        match unresolved {
            // One that can be found will name the others.
            Some(text) if addresses.is_empty() => Err(text),
            _ => Ok(addresses.join(", ")),
        }
    }
}

#[async_trait]
impl SinkKind for Kafka {
    fn name(&self) -> &'static str {
        "KAFKA"
    }

    fn schema(&self) -> Value {
        binder::schema::<config::Config>()
    }

    /// A producer fills batches while others are on their way.
    fn window(&self) -> NonZeroUsize {
        NonZeroUsize::new(4_096).expect("4,096 is not 0")
    }

    fn check(&self, client_configuration: &Map<String, Value>) -> Vec<Violation> {
        config::read(client_configuration, &self.settings, "").violations
    }

    async fn probe(
        &self,
        client_configuration: &Map<String, Value>,
        context: &SinkContext,
        deadline: Duration,
    ) -> ProbeReport {
        match config::read(client_configuration, &self.settings, &context.executor_id).accepted() {
            Ok(checked) => probe::run(self, checked, deadline).await,
            Err(error) => error.into(),
        }
    }

    /// Makes the sink; does not wait for the brokers. It is away until they have answered.
    async fn connect(
        &self,
        client_configuration: &Map<String, Value>,
        context: SinkContext,
    ) -> Result<Box<dyn Sink>, ConnectError> {
        let checked = config::read(client_configuration, &self.settings, &context.executor_id).accepted()?;
        self.tell_ignored(&checked.translated.ignored, &context);
        self.resolve(&checked).await?;
        let settings = settings(&checked, self.settings.attempt_timeout(&context));
        let (producers, egress) = (self.producers.clone(), self.settings.egress.clone());
        let producer = spawn_blocking(move || producers.join(&settings, &egress))
            .await
            .map_err(|error| error.to_string())??;
        let config = checked.config;
        let envelope =
            (!config.send_only_msg_payload).then(|| Envelope::new(&context.executor_id, &context.metadata));
        let headers = config.kafka_headers.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let records = Records::new(config.key.as_deref(), headers, config.kafka_headers_charset, envelope);
        let inbox = Arc::new(Inbox::new(config.topic));
        producer.register(&inbox);
        Ok(Box::new(KafkaSink {
            producer,
            inbox,
            records,
            window: context.window.max(1),
            buffer_memory: checked.translated.buffer_memory,
            open: HashSet::new(),
            answers: VecDeque::new(),
        }))
    }
}

/// What the client of a configuration is made of: sinks with the same share one.
fn settings(checked: &Checked, attempt_timeout: Duration) -> Settings {
    // librdkafka looks for what is late once a second, and the driver does not wait longer than it said.
    let margin = (attempt_timeout / 4).min(Duration::from_millis(1500));
    let within = attempt_timeout.saturating_sub(margin);
    let timeout = checked.translated.delivery_timeout.map_or(within, |own| own.min(within));
    let mut settings = checked.translated.settings.clone();
    settings.insert("bootstrap.servers", Secret::new(listed(&checked.servers)));
    settings.insert("message.timeout.ms", Secret::new(timeout.as_millis().max(1).to_string()));
    settings
}

fn listed(servers: &[config::Server]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A running Kafka integration.
struct KafkaSink {
    producer: Arc<Producer>,
    inbox: Arc<Inbox>,
    records: Records,
    /// Messages that have no answer, or one that was not polled, at most.
    window: usize,
    /// Bytes of records without an answer at most.
    buffer_memory: usize,
    /// Messages without an answer, or with one that was not polled.
    open: HashSet<Ticket>,
    /// Answers to be polled.
    answers: VecDeque<(Ticket, Outcome)>,
}

impl fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSink")
            .field("producer", &self.producer)
            .field("inbox", &self.inbox)
            .field("open", &self.open.len())
            .finish_non_exhaustive()
    }
}

impl KafkaSink {
    /// Answers a message that was not handed over.
    fn answer(&mut self, ticket: Ticket, outcome: Outcome) {
        self.open.insert(ticket);
        self.answers.push_back((ticket, outcome));
        self.inbox.waker.wake();
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn submit(&mut self, message: Message, ticket: Ticket) -> Result<(), Busy> {
        if self.open.len() >= self.window {
            return Err(Busy);
        }
        let value = self.records.value(&message);
        let cost = self.records.cost(&value);
        if cost > self.buffer_memory {
            let text =
                format!("The message is {cost} bytes, more than the buffer memory of {}", self.buffer_memory);
            self.answer(ticket, Class::Rejected("payload").outcome(text));
            return Ok(());
        }
        // What is in flight is answered, and the answer wakes.
        if self.inbox.bytes() + cost > self.buffer_memory {
            return Err(Busy);
        }
        let token = Box::new(Token::new(ticket, cost, &self.inbox));
        let mut record = BaseRecord::with_opaque_to(&self.inbox.topic, token).payload(&value[..]);
        if let Some(key) = self.records.key() {
            record = record.key(key);
        }
        if let Some(headers) = self.records.headers(message.trace.as_deref()) {
            record = record.headers(headers);
        }
        match self.producer.send(record) {
            Ok(()) => {
                self.open.insert(ticket);
            }
            Err((code, token)) => {
                drop(token);
                let outcome = self.producer.refused(code, &self.inbox);
                self.answer(ticket, outcome);
            }
        }
        Ok(())
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        if self.answers.is_empty() {
            self.inbox.waker.register(cx.waker());
            self.answers.extend(self.inbox.take());
        }
        match self.answers.pop_front() {
            Some(answer) => {
                self.open.remove(&answer.0);
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }

    fn state(&self) -> SinkState {
        self.producer.state()
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Vec<Ticket> {
        let unresolved = self.open.iter().copied().collect();
        let answered = async {
            while !self.open.is_empty() {
                poll_fn(|cx| self.poll_outcome(cx)).await;
            }
        };
        // What is still on its way is abandoned with the sink.
        drop(timeout(deadline, answered).await);
        unresolved
    }
}
