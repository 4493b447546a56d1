//! A bus, a scripted kind, and what can be seen from outside: deliveries, events, replies.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use prost::Message as _;
use serde_json::{Map, Value, json};
use tbmq_bus::{
    Bus, Commit, Header, Outgoing, Reader, ReaderConfig, ReaderEvent, Start, TopicPartition, Writer,
    WriterConfig, memory::MemoryBus, spec_of,
};
use tbmq_executor::{
    Config, Running,
    sink::{
        Busy, ConnectError, Message, Outcome, ProbeReport, Sink, SinkContext, SinkKind, SinkState, Ticket,
        payload,
    },
};
use tbmq_integration::{
    entity::Violation,
    seal::{Keys, Parted, Purpose},
    secret,
    wire::{
        self, Cause, Change, CommitMetadata, Desired, RequestType, Stage, Target, ValidationReply,
        ValidationRequest,
    },
};
use tbmq_proto::{
    ids::{IntegrationId, Kind, ShardId},
    integration::{
        ComponentLifecycleEventProto as Word, NativeEvent, PublishIntegrationMsgProto,
        UplinkIntegrationMsgProto, native_event::Body,
    },
    queue::{PublishMsgProto, ServiceInfo},
    topic::{Catalogue, REVISION_HEADER, Topic},
};
use tbmq_service::{admin::Health, identity::Identity, metrics::Metrics, trace::Tracer};
use tokio::{sync::watch, task::JoinSet};
use uuid::Uuid;

pub(crate) const CONTROL_PLANE: &str = "cp1";

/// What was seen, and what sinks are told to do.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) deliveries: Vec<(IntegrationId, u64, String)>,
    pub(crate) events: Vec<(IntegrationId, NativeEvent)>,
    pub(crate) replies: Vec<ValidationReply>,
    /// What executors tell about themselves on the uplink.
    pub(crate) services: Vec<ServiceInfo>,
    /// Sinks say that their remote end is away.
    pub(crate) is_away: bool,
    /// Why connecting fails.
    pub(crate) refuse: Option<String>,
    pub(crate) connects: Vec<(IntegrationId, Map<String, Value>)>,
    /// The places in traces that attempts were handed over with: offset and `traceparent`.
    pub(crate) traced: Vec<(u64, String)>,
    wakers: Vec<Waker>,
}

impl State {
    /// Texts of what was delivered for an integration.
    pub(crate) fn delivered(&self, id: IntegrationId) -> Vec<&str> {
        self.deliveries.iter().filter(|(other, ..)| *other == id).map(|(.., text)| text.as_str()).collect()
    }

    /// Lifecycle events of an integration: word and revision.
    pub(crate) fn lifecycle(&self, id: IntegrationId) -> Vec<(Word, u64)> {
        let own = self.events.iter().filter(|(other, _)| *other == id);
        own.filter_map(|(_, event)| match &event.body {
            Some(Body::Lifecycle(lifecycle)) => Some((lifecycle.event(), event.revision)),
            _ => None,
        })
        .collect()
    }

    /// Statistics events of an integration: processed, errors.
    pub(crate) fn statistics(&self, id: IntegrationId) -> Vec<(u64, u64)> {
        let own = self.events.iter().filter(|(other, _)| *other == id);
        own.filter_map(|(_, event)| match &event.body {
            Some(Body::Statistics(told)) => Some((told.messages_processed, told.errors_occurred)),
            _ => None,
        })
        .collect()
    }

    /// Error events of an integration: method, text, count.
    pub(crate) fn errors(&self, id: IntegrationId) -> Vec<(&str, &str, u64)> {
        let own = self.events.iter().filter(|(other, _)| *other == id);
        own.filter_map(|(_, event)| match &event.body {
            Some(Body::Error(error)) => Some((error.method.as_str(), error.error.as_str(), error.count)),
            _ => None,
        })
        .collect()
    }
}

pub(crate) struct World {
    pub(crate) bus: Arc<MemoryBus>,
    pub(crate) catalogue: Catalogue,
    pub(crate) state: watch::Sender<State>,
    pub(crate) config: Config,
    pub(crate) health: Health,
    /// Of executors that are started from now on.
    pub(crate) tracer: Tracer,
    writer: Arc<dyn Writer>,
    revision: std::sync::atomic::AtomicU64,
    _followers: JoinSet<()>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let bus = MemoryBus::new();
        let catalogue = Catalogue::default();
        let writer = bus.writer(WriterConfig::new("test")).await.unwrap();
        let state = watch::Sender::new(State::default());
        let notifications = catalogue.uplink_notifications(&CONTROL_PLANE.parse().unwrap());
        let mut followers = JoinSet::new();
        for topic in [catalogue.uplink(), notifications] {
            bus.admin().create_topic(&spec_of(&topic, 1)).await.unwrap();
            let reader = bus.reader(ReaderConfig::new("test", None)).await.unwrap();
            followers.spawn(follow(reader, topic, state.clone()));
        }
        let mut config = Config::default();
        config.queue.integration_msg.commit_interval = Duration::from_millis(20);
        config.queue.integration_downlink.session_timeout = Duration::from_secs(3);
        Self {
            bus,
            catalogue,
            state,
            config,
            health: Health::default(),
            tracer: Tracer::off(),
            writer,
            revision: 0.into(),
            _followers: followers,
        }
    }

    pub(crate) async fn executor(&self, service_id: &str) -> Running {
        self.executor_on(self.bus.clone(), service_id).await
    }

    pub(crate) async fn executor_on(&self, bus: Arc<dyn Bus>, service_id: &str) -> Running {
        let context = self.context(bus, service_id);
        self.try_start(context).await.unwrap()
    }

    fn context(&self, bus: Arc<dyn Bus>, service_id: &str) -> tbmq_executor::Context {
        tbmq_executor::Context {
            bus,
            catalogue: self.catalogue.clone(),
            replication_factor: 1,
            identity: Identity::of("executor", Some(service_id)),
            metrics: Metrics::default(),
            health: self.health.clone(),
            tracer: self.tracer.clone(),
        }
    }

    async fn try_start(&self, context: tbmq_executor::Context) -> anyhow::Result<Running> {
        let kind = Arc::new(TestKind(self.state.clone()));
        tbmq_executor::start_with(self.config.clone(), context, vec![kind]).await
    }

    /// Why an executor does not start.
    pub(crate) async fn refusal(&self) -> String {
        let started = self.try_start(self.context(self.bus.clone(), "ie1")).await;
        started.map(drop).unwrap_err().to_string()
    }

    /// Waits until a claim about what was seen holds.
    pub(crate) async fn until(&self, what: &str, holds: impl FnMut(&State) -> bool) {
        let mut seen = self.state.subscribe();
        let waiting = tokio::time::timeout(Duration::from_secs(20), seen.wait_for(holds)).await;
        if waiting.is_err() {
            let state = self.state.borrow();
            let events: Vec<_> = state.events.iter().map(|(id, event)| (id, &event.body)).collect();
            panic!("not within 20 s: {what}; {} deliveries, events {events:?}", state.deliveries.len());
        }
    }

    pub(crate) async fn until_word(&self, id: IntegrationId, word: Word, revision: u64) {
        let what = format!("{word:?} of {id} with revision {revision}");
        self.until(&what, |state| state.lifecycle(id).contains(&(word, revision))).await;
    }

    pub(crate) async fn create_topic(&self, topic: &Topic) {
        self.bus.admin().create_topic(&spec_of(topic, 1)).await.unwrap();
    }

    pub(crate) async fn create_messages(&self, id: IntegrationId) {
        self.create_topic(&self.catalogue.messages(id, 1)).await;
    }

    /// Writes a desired state under the next revision, which it returns.
    pub(crate) async fn apply(&self, id: IntegrationId, enabled: bool) -> u64 {
        self.apply_with(id, enabled, 1, &json!({})).await
    }

    pub(crate) async fn apply_with(
        &self,
        id: IntegrationId,
        enabled: bool,
        generation: u64,
        delivery: &Value,
    ) -> u64 {
        let configuration = document(&json!({}), delivery);
        let target =
            Target { name: "test".into(), enabled, configuration: configuration.into(), sealed: None };
        self.desire(id, generation, Change::Apply { cause: Cause::Updated, target }).await
    }

    /// Writes this as the desired state under the next revision, which it returns.
    pub(crate) async fn apply_target(&self, id: IntegrationId, target: Target) -> u64 {
        self.desire(id, 1, Change::Apply { cause: Cause::Updated, target }).await
    }

    pub(crate) async fn delete(&self, id: IntegrationId) -> u64 {
        self.desire(id, 1, Change::Deleted).await
    }

    async fn desire(&self, id: IntegrationId, generation: u64, change: Change) -> u64 {
        self.desire_shard(ShardId::first(id), 1, generation, change).await
    }

    /// Writes the desired state of each of `count` shards.
    pub(crate) async fn apply_shards(&self, id: IntegrationId, count: u32) {
        for index in 0..count {
            let configuration = document(&json!({}), &json!({})).into();
            let target = Target { name: "test".into(), enabled: true, configuration, sealed: None };
            let change = Change::Apply { cause: Cause::Created, target };
            self.desire_shard(ShardId { integration: id, index }, count, 1, change).await;
        }
    }

    async fn desire_shard(&self, shard: ShardId, shard_count: u32, generation: u64, change: Change) -> u64 {
        let revision = self.revision.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let desired = Desired { shard, shard_count, kind: kind(), revision, generation, change };
        let header = tbmq_bus::Header::text(REVISION_HEADER, revision.to_string());
        let value = wire::encode_desired(&desired);
        let topic = self.catalogue.downlink(&kind());
        self.create_topic(&topic).await;
        self.put(&topic.name, shard.downlink_key().as_bytes(), &value, &[header]).await;
        revision
    }

    /// Asks the executors; the answer is seen in [`State::replies`].
    pub(crate) async fn ask(&self, request_type: RequestType, client: &Value, deadline_ms: i64) -> Uuid {
        self.ask_with(request_type, client, &json!({}), deadline_ms).await
    }

    /// As [`World::ask`], with a `delivery`.
    pub(crate) async fn ask_with(
        &self,
        request_type: RequestType,
        client: &Value,
        delivery: &Value,
        deadline_ms: i64,
    ) -> Uuid {
        self.send(request(request_type, document(client, delivery), deadline_ms)).await
    }

    /// As [`World::ask`], with the secrets of the request sealed.
    pub(crate) async fn ask_sealed(&self, request_type: RequestType, key: &str, client: &Value) -> Uuid {
        let mut request = request(request_type, document(client, &json!({})), 0);
        let secrets = secret::find(Some(&schema()), &request.configuration);
        let (keys, purpose) = (Keys::parse(key).unwrap(), Purpose::Request(request.id));
        let random = ring::rand::SystemRandom::new();
        let parted = keys.part(&random, request.integration, purpose, &request.configuration, &secrets);
        let Parted { plain, sealed } = parted.unwrap().unwrap();
        request.configuration = plain.to_string();
        request.sealed = Some(sealed);
        self.send(request).await
    }

    async fn send(&self, request: ValidationRequest) -> Uuid {
        self.send_with(request, &[]).await
    }

    /// Asks as part of a trace; the answer is seen in [`State::replies`].
    pub(crate) async fn ask_traced(
        &self,
        request_type: RequestType,
        client: &Value,
        traceparent: &str,
    ) -> Uuid {
        let request = request(request_type, document(client, &json!({})), 0);
        self.send_with(request, &[Header::text("traceparent", traceparent)]).await
    }

    async fn send_with(&self, request: ValidationRequest, headers: &[Header]) -> Uuid {
        let topic = self.catalogue.downlink(&kind());
        self.create_topic(&topic).await;
        let value = wire::encode_request(&request);
        self.put(&topic.name, request.id.to_string().as_bytes(), &value, headers).await;
        request.id
    }

    pub(crate) async fn publish(&self, id: IntegrationId, texts: impl IntoIterator<Item = String>) {
        let topic = self.catalogue.messages(id, 1).name;
        for text in texts {
            // One that hangs holds back its own key only.
            let key: &[u8] = match text.split_once(' ') {
                Some(("key", key)) => key.as_bytes(),
                Some(("hang", _)) => b"hang",
                _ => b"t",
            };
            let key = &key.to_vec()[..];
            let publish =
                PublishMsgProto { payload: text.into(), topic_name: "t".into(), ..Default::default() };
            let message =
                PublishIntegrationMsgProto { publish_msg_proto: Some(publish), ..Default::default() };
            self.put(&topic, key, &message.encode_to_vec(), &[]).await;
        }
    }

    /// As [`World::publish`], as part of a trace.
    pub(crate) async fn publish_traced(&self, id: IntegrationId, text: &str, traceparent: &str) {
        let publish =
            PublishMsgProto { payload: text.to_owned().into(), topic_name: "t".into(), ..Default::default() };
        let message = PublishIntegrationMsgProto { publish_msg_proto: Some(publish), ..Default::default() };
        let headers = [Header::text("traceparent", traceparent), Header::text("tracestate", "vendor=x")];
        let topic = self.catalogue.messages(id, 1).name;
        self.put(&topic, text.as_bytes(), &message.encode_to_vec(), &headers).await;
    }

    pub(crate) async fn put(&self, topic: &str, key: &[u8], value: &[u8], headers: &[tbmq_bus::Header]) {
        let record = Outgoing { partition: None, key: Some(key), value: Some(value), headers };
        tbmq_bus::write(&*self.writer, &self.writer.topic(topic), record).await.unwrap();
    }

    /// What is committed for an integration, with the generation.
    pub(crate) async fn committed(&self, id: IntegrationId) -> Option<(u64, u64)> {
        let partition = TopicPartition::new(self.catalogue.messages(id, 1).name, 0);
        let group = self.catalogue.messages_group();
        let commits = self.bus.admin().committed(&group, &[partition]).await.unwrap();
        let Commit { offset, metadata, .. } = commits.into_iter().next()?;
        Some((offset, CommitMetadata::from_text(&metadata).unwrap().generation))
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            change(state);
            state.wakers.drain(..).for_each(Waker::wake);
        });
    }
}

fn request(request_type: RequestType, configuration: String, deadline_ms: i64) -> ValidationRequest {
    ValidationRequest {
        id: Uuid::now_v7(),
        reply_to: CONTROL_PLANE.to_owned(),
        request_type,
        integration: new_id(),
        kind: kind(),
        name: "test".to_owned(),
        enabled: true,
        configuration,
        sealed: None,
        created_ms: 0,
        deadline_ms,
    }
}

/// Of [`TestKind`].
pub(crate) fn schema() -> Value {
    json!({ "type": "object", "properties": { "password": { "type": "string", "writeOnly": true } } })
}

pub(crate) fn kind() -> Kind {
    "TEST".parse().unwrap()
}

pub(crate) fn new_id() -> IntegrationId {
    IntegrationId(Uuid::new_v4())
}

pub(crate) fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("{n:04}")).collect()
}

fn document(client: &Value, delivery: &Value) -> String {
    json!({ "topicFilters": ["a/#"], "clientConfiguration": client, "delivery": delivery }).to_string()
}

async fn follow(mut reader: Box<dyn Reader>, topic: Topic, state: watch::Sender<State>) {
    for partition in 0..topic.partitions {
        reader.add(&TopicPartition::new(topic.name.clone(), partition), Start::Earliest);
    }
    loop {
        let ReaderEvent::Batch { records, .. } = reader.next().await else { continue };
        for value in records.into_iter().filter_map(|record| record.value) {
            if topic.name.contains("notifications") {
                let reply = wire::decode_reply(&value).unwrap();
                state.send_modify(|state| state.replies.push(reply));
            } else if let Some(event) = wire::decode_event(&value).unwrap() {
                state.send_modify(|state| state.events.push(event));
            } else if let Some(info) = UplinkIntegrationMsgProto::decode(value).unwrap().service_info_proto {
                state.send_modify(|state| state.services.push(info));
            }
        }
    }
}

/// A kind whose messages say what becomes of them: `retry …`, `reject …`, `hang …`, `panic …`, anything else is
/// delivered. `clientConfiguration.bad` is a problem.
#[derive(Debug)]
struct TestKind(watch::Sender<State>);

#[async_trait]
impl SinkKind for TestKind {
    fn name(&self) -> &'static str {
        "TEST"
    }

    fn schema(&self) -> Value {
        schema()
    }

    fn check(&self, client_configuration: &Map<String, Value>) -> Vec<Violation> {
        let bad =
            client_configuration.get("bad").map(|_| Violation::new("clientConfiguration.bad", "is bad"));
        bad.into_iter().collect()
    }

    async fn probe(&self, client: &Map<String, Value>, _: &SinkContext, _: Duration) -> ProbeReport {
        assert!(!client.contains_key("panic"), "the probe panics");
        let text = client.get("password").and_then(Value::as_str).map(|password| format!("with {password}"));
        let text = text.unwrap_or_default();
        let stages = vec![Stage { name: "connect".into(), ok: true, elapsed_ms: 1, text }];
        ProbeReport { stages, error: None }
    }

    async fn connect(
        &self,
        client_configuration: &Map<String, Value>,
        context: SinkContext,
    ) -> Result<Box<dyn Sink>, ConnectError> {
        let id = context.shard.integration;
        self.0.send_modify(|state| state.connects.push((id, client_configuration.clone())));
        if let Some(text) = self.0.borrow().refuse.clone() {
            return Err(ConnectError { text, violations: Vec::new() });
        }
        Ok(Box::new(TestSink {
            state: self.0.clone(),
            id,
            queue: VecDeque::new(),
            hung: Vec::new(),
            attempts: BTreeMap::new(),
        }))
    }
}

#[derive(Debug)]
struct TestSink {
    state: watch::Sender<State>,
    id: IntegrationId,
    queue: VecDeque<(Ticket, Message)>,
    hung: Vec<Ticket>,
    attempts: BTreeMap<u64, u32>,
}

#[async_trait]
impl Sink for TestSink {
    fn submit(&mut self, message: Message, ticket: Ticket) -> Result<(), Busy> {
        if self.queue.len() >= 10 {
            return Err(Busy);
        }
        if let Some(trace) = &message.trace {
            let handed = (message.offset, trace.traceparent());
            self.state.send_modify(|state| state.traced.push(handed));
        }
        self.queue.push_back((ticket, message));
        Ok(())
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        while let Some((ticket, message)) = self.queue.pop_front() {
            let text = String::from_utf8(payload(&message).to_vec()).unwrap();
            let attempts = self.attempts.entry(message.offset).or_default();
            *attempts += 1;
            let retries = text.strip_prefix("retry ").and_then(|count| count.parse().ok()).unwrap_or(0);
            let class = "status";
            return Poll::Ready((
                ticket,
                match text.split(' ').next().unwrap() {
                    "reject" => Outcome::Rejected { class, text },
                    "retry" if *attempts <= retries => Outcome::Retry { after: None, class, text },
                    "hang" => {
                        self.hung.push(ticket);
                        continue;
                    }
                    "panic" => panic!("told to"),
                    _ => {
                        self.state
                            .send_modify(|state| state.deliveries.push((self.id, message.offset, text)));
                        Outcome::Delivered
                    }
                },
            ));
        }
        self.state.send_if_modified(|state| {
            state.wakers.push(cx.waker().clone());
            false
        });
        Poll::Pending
    }

    fn state(&self) -> SinkState {
        if self.state.borrow().is_away {
            SinkState::Away { reason: "told to".to_owned() }
        } else {
            SinkState::Ready
        }
    }

    async fn close(self: Box<Self>, _: Duration) -> Vec<Ticket> {
        self.hung.into_iter().chain(self.queue.into_iter().map(|(ticket, _)| ticket)).collect()
    }
}
