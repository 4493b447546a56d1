//! The sink contract: what a kind of integration implements, and what the driver may rely on (architecture §4.20).
//!
//! A sink never waits and answers per message: [`Sink::submit`] takes a message or says [`Busy`];
//! [`Sink::poll_outcome`] returns answers in any order, exactly one per ticket. Retries, order, windows, commits and
//! events are the driver's.

use std::{
    fmt,
    num::NonZeroUsize,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value};
use tbmq_integration::{
    entity::Violation,
    pack::Ordering,
    wire::{Stage, Target},
};
use tbmq_proto::{ids::ShardId, integration::PublishIntegrationMsgProto};
use tbmq_service::trace::TraceContext;

/// The driver's number for a submitted message; it comes back with the outcome.
pub type Ticket = u64;

/// A message to be delivered, decoded once and shared by its attempts.
#[derive(Clone, Debug)]
pub struct Message {
    /// What the data plane wrote.
    pub publish: Arc<PublishIntegrationMsgProto>,
    /// Where it lies: partition of the message topic and offset.
    pub partition: u32,
    /// See `partition`.
    pub offset: u64,
    /// The attempt's place in its trace, to be passed on if the remote end can take it; `None`: it is not traced.
    pub trace: Option<Arc<TraceContext>>,
}

/// The sink has no room; it will wake the task of the last `poll_outcome` when it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The remote end confirmed.
    Delivered,
    /// Not delivered; another attempt may succeed.
    Retry {
        /// Wait at least so long.
        after: Option<Duration>,
        /// A word for metrics: `timeout`, `connect`, `status`, ...
        class: &'static str,
        /// What happened, for people.
        text: String,
    },
    /// Not delivered, and no further attempt can succeed.
    Rejected {
        /// A word for metrics: `payload`, `status`, ...
        class: &'static str,
        /// What happened, for people.
        text: String,
    },
}

/// Whether it makes sense to submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkState {
    /// It does.
    Ready,
    /// The remote end is known to be away; the driver pauses the message topic.
    Away {
        /// Why.
        reason: String,
    },
    /// The sink can't go on and is to be closed and connected anew.
    Broken {
        /// Why.
        reason: String,
    },
}

/// A running connection to an external system.
#[async_trait]
pub trait Sink: Send + fmt::Debug {
    /// Takes a message or says [`Busy`]; never waits.
    fn submit(&mut self, message: Message, ticket: Ticket) -> Result<(), Busy>;

    /// The next answer, in any order. Pending also means: wake me when an answer, room or a new state is there.
    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)>;

    /// Whether it makes sense to submit.
    fn state(&self) -> SinkState;

    /// Ends: waits at most `deadline` for what is in flight, then abandons it. Returns what is unresolved, in any order:
    /// the tickets that [`Sink::poll_outcome`] has not answered, also those whose answer it only had not given yet. They
    /// are delivered again later.
    async fn close(self: Box<Self>, deadline: Duration) -> Vec<Ticket>;
}

/// What a sink is told about where it runs.
#[derive(Clone, Debug)]
pub struct SinkContext {
    /// The shard.
    pub shard: ShardId,
    /// The topic that the messages lie in.
    pub topic: Arc<str>,
    /// Name, enabled, and the whole configuration document.
    pub target: Target,
    /// `metadata` of the document, with `integrationName` first (spec §4.3).
    pub metadata: Arc<Map<String, Value>>,
    /// Service id of this executor.
    pub executor_id: Arc<str>,
    /// Messages that the driver has in flight at most; a sink's own queues need not hold more.
    pub window: usize,
}

/// Why a sink could not be connected, or a check failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ConnectError {
    /// For people.
    pub text: String,
    /// Problems by field, when the configuration is to blame.
    pub violations: Vec<Violation>,
}

impl From<String> for ConnectError {
    fn from(text: String) -> Self {
        Self { text, violations: Vec::new() }
    }
}

impl From<Vec<Violation>> for ConnectError {
    fn from(violations: Vec<Violation>) -> Self {
        let texts: Vec<&str> = violations.iter().map(|violation| violation.text.as_str()).collect();
        Self { text: texts.join("; "), violations }
    }
}

/// What a connection check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// What was tried, in order.
    pub stages: Vec<Stage>,
    /// Why it failed; `None`: it did not.
    pub error: Option<String>,
}

/// Of a check that could not begin.
impl From<ConnectError> for ProbeReport {
    fn from(error: ConnectError) -> Self {
        Self { stages: Vec::new(), error: Some(error.text) }
    }
}

/// A kind of integration. One file `sinks/<kind>.rs` and one line in `sinks/mod.rs`.
#[async_trait]
pub trait SinkKind: Send + Sync + fmt::Debug {
    /// The kind's name, upper case: `HTTP`.
    fn name(&self) -> &'static str;

    /// JSON Schema of `clientConfiguration`, from the kind's `Config`; secret fields carry `"writeOnly": true`.
    fn schema(&self) -> Value;

    /// What must not overtake what, unless the document's `delivery.ordering` says otherwise: by default the messages of
    /// one key keep their order (architecture §4.21).
    fn ordering(&self) -> Ordering {
        Ordering::Key
    }

    /// Messages in flight per partition, at most, unless `TBMQ_IE_MSG_WINDOW_MESSAGES` says otherwise: enough to keep the
    /// remote end busy over one round trip.
    fn window(&self) -> NonZeroUsize {
        NonZeroUsize::new(128).expect("128 is not 0")
    }

    /// Checks `clientConfiguration`; connects to nothing. Lists all problems at once; paths begin with
    /// `clientConfiguration.`.
    fn check(&self, client_configuration: &Map<String, Value>) -> Vec<Violation>;

    /// Tries the connection in stages, without delivering anything. Bounded by `deadline`.
    async fn probe(
        &self,
        client_configuration: &Map<String, Value>,
        context: &SinkContext,
        deadline: Duration,
    ) -> ProbeReport;

    /// Makes a sink. May wait for the remote end where the kind says so.
    async fn connect(
        &self,
        client_configuration: &Map<String, Value>,
        context: SinkContext,
    ) -> Result<Box<dyn Sink>, ConnectError>;
}

/// The payload bytes of a message.
pub fn payload(message: &Message) -> Bytes {
    message.publish.publish_msg_proto.as_ref().map(|publish| publish.payload.clone()).unwrap_or_default()
}
