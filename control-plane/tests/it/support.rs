//! A cluster of control planes, and an executor and a data plane that do what a test tells them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use tbmq_bus::{
    Bus, Outgoing, ReaderConfig, ReaderEvent, Start, TopicPartition, Writer, WriterConfig, memory::MemoryBus,
    write,
};
use tbmq_control_plane::{Config, Context, Running};
use tbmq_integration::{
    entity::Violation,
    wire::{self, Change, Desired, Downlink, RequestType, ValidationReply, ValidationRequest},
};
use tbmq_proto::{
    control::{
        Integration, event_service_client::EventServiceClient,
        integration_service_client::IntegrationServiceClient, node_service_client::NodeServiceClient,
    },
    ids::{IntegrationId, Kind, ServiceId, ShardId},
    integration::{ComponentLifecycleEventProto as Event, LifecycleEvent, NativeEvent, native_event::Body},
    node::node_session_service_client::NodeSessionServiceClient,
    topic::{Catalogue, REVISION_HEADER},
    wire::{AppliedPosition, KindAnnouncement, NodeApplied, OwnerClaim, Role},
};
use tbmq_service::{
    admin::Health,
    identity::Identity,
    metrics::Metrics,
    trace::{Recorded, Traces, config::OtelConfig},
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;
use uuid::Uuid;

pub(crate) const SCHEMA: &str = r##"{"type":"object","properties":{
    "restEndpointUrl":{"type":"string"},"credentials":{"$ref":"#/$defs/Credentials"}},
    "$defs":{"Credentials":{"oneOf":[{"properties":{"password":{"type":"string","writeOnly":true}}}]}}}"##;

/// What control planes share.
pub(crate) struct Cluster {
    pub(crate) bus: Arc<MemoryBus>,
    pub(crate) catalogue: Catalogue,
    pub(crate) folder: TempDir,
    pub(crate) traces: Traces,
    /// Whether topics may be deleted.
    pub(crate) topic_deletion: bool,
}

pub(crate) struct ControlPlane {
    pub(crate) running: Running,
    pub(crate) integrations: IntegrationServiceClient<Channel>,
    pub(crate) events: EventServiceClient<Channel>,
    pub(crate) nodes: NodeServiceClient<Channel>,
    pub(crate) sessions: NodeSessionServiceClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) metrics: Metrics,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            bus: MemoryBus::new(),
            catalogue: Catalogue::new("test."),
            folder: tempfile::tempdir().unwrap(),
            traces: Traces::off(),
            topic_deletion: true,
        }
    }

    /// One whose spans are kept.
    pub(crate) fn traced() -> (Self, Recorded) {
        let (traces, recorded) = Traces::record(&OtelConfig::default());
        (Self { traces, ..Self::new() }, recorded)
    }

    pub(crate) async fn control_plane(&self, id: &str) -> ControlPlane {
        self.control_plane_with(id, |_| {}).await
    }

    pub(crate) async fn control_plane_with(
        &self,
        id: &str,
        configure: impl FnOnce(&mut Config),
    ) -> ControlPlane {
        self.control_plane_on(self.bus.clone(), id, configure).await
    }

    /// One that sees the bus of the cluster through another.
    pub(crate) async fn control_plane_on(
        &self,
        bus: Arc<dyn Bus>,
        id: &str,
        configure: impl FnOnce(&mut Config),
    ) -> ControlPlane {
        let mut config = Config::default();
        config.control.grpc.bind_address = [127, 0, 0, 1].into();
        config.control.grpc.bind_port = 0;
        config.control.validation_timeout = Duration::from_secs(10);
        config.use_sqlite(&self.folder.path().join("control.db"));
        configure(&mut config);
        let metrics = Metrics::default();
        let context = Context {
            bus,
            catalogue: self.catalogue.clone(),
            replication_factor: 1,
            topic_deletion: self.topic_deletion,
            identity: Identity::of("control-plane", Some(id)),
            metrics: metrics.clone(),
            health: Health::default(),
            tracer: self.traces.tracer("control-plane", id).unwrap(),
        };
        let running = Box::pin(tbmq_control_plane::start(config, context)).await.unwrap();
        let (_, address) = running.addresses()[0];
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        ControlPlane {
            running,
            integrations: IntegrationServiceClient::new(channel.clone()),
            events: EventServiceClient::new(channel.clone()),
            nodes: NodeServiceClient::new(channel.clone()),
            sessions: NodeSessionServiceClient::new(channel.clone()),
            channel,
            metrics,
        }
    }

    /// The latest value of each key of a topic, with its revision.
    pub(crate) async fn latest(&self, topic: &str) -> BTreeMap<String, (Option<u64>, Option<Bytes>)> {
        self.places(topic).await.into_iter().map(|((key, _), record)| (key, record)).collect()
    }

    /// The latest value of each key in each partition of a topic, with its revision.
    pub(crate) async fn places(&self, topic: &str) -> BTreeMap<(String, u32), (Option<u64>, Option<Bytes>)> {
        let mut latest = BTreeMap::new();
        let partitions = self.bus.admin().topic(topic).await.unwrap().map_or(0, |info| info.partitions);
        let mut reader = self.bus.reader(ReaderConfig::new("test", None)).await.unwrap();
        for partition in 0..partitions {
            reader.add(&TopicPartition::new(topic, partition), Start::Earliest);
        }
        let mut open = partitions;
        while open > 0 {
            match reader.next().await {
                ReaderEvent::Batch { partition, records } => {
                    for record in records {
                        let key = String::from_utf8(record.key.clone().unwrap().to_vec()).unwrap();
                        let revision = record.header(REVISION_HEADER).map(|text| text.parse().unwrap());
                        latest.insert((key, partition.partition), (revision, record.value));
                    }
                }
                ReaderEvent::End { partition, .. } => {
                    reader.remove(&partition);
                    open -= 1;
                }
                ReaderEvent::Gap { .. } => {}
                ReaderEvent::Gone { .. } => open -= 1,
            }
        }
        latest
    }

    pub(crate) async fn exists(&self, topic: &str) -> bool {
        self.bus.admin().topic(topic).await.unwrap().is_some()
    }

    pub(crate) async fn executor(&self, verdict: Verdict) -> Executor {
        Executor::start(self, verdict).await
    }

    pub(crate) async fn writer(&self) -> Arc<dyn Writer> {
        self.bus.writer(WriterConfig::new("test")).await.unwrap()
    }

    pub(crate) async fn say_alive(&self, id: &str, role: Role, kinds: &[&str], position: Option<u64>) {
        let topic = self.catalogue.node_applied().name;
        let positions = position.map(|position| AppliedPosition {
            topic: self.catalogue.integration_subscriptions().name,
            partition: 0,
            position,
        });
        let applied = NodeApplied {
            service_id: id.to_owned(),
            role: role.into(),
            incarnation: "1".to_owned(),
            version: "test".to_owned(),
            positions: positions.into_iter().collect(),
            time_ms: tbmq_service::time::now_ms(),
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            ..NodeApplied::default()
        };
        self.put(&topic, id, &applied.encode_to_vec()).await;
    }

    pub(crate) async fn put(&self, topic: &str, key: &str, value: &[u8]) {
        self.put_at(topic, None, key, Some(value)).await;
    }

    pub(crate) async fn put_at(&self, topic: &str, partition: Option<u32>, key: &str, value: Option<&[u8]>) {
        let writer = self.writer().await;
        let record = Outgoing { partition, key: Some(key.as_bytes()), value, headers: &[] };
        write(&*writer, &writer.topic(topic), record).await.unwrap();
    }

    /// Claims a downlink partition; returns the epoch.
    pub(crate) async fn claim(&self, executor: &str, partition: u32) -> u64 {
        let claim = OwnerClaim {
            service_id: executor.to_owned(),
            incarnation: "1".to_owned(),
            time_ms: tbmq_service::time::now_ms(),
        };
        let writer = self.writer().await;
        let key = Catalogue::owner_key(&"HTTP".parse().unwrap(), partition);
        let value = claim.encode_to_vec();
        let record =
            Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
        write(&*writer, &writer.topic(&self.catalogue.owners().name), record).await.unwrap().offset
    }
}

impl ControlPlane {
    pub(crate) async fn create(&self, name: &str) -> Result<Integration, Status> {
        self.create_from(integration(name)).await
    }

    pub(crate) async fn create_from(&self, integration: Integration) -> Result<Integration, Status> {
        let request = tbmq_proto::control::CreateIntegrationRequest {
            integration: Some(integration),
            ..Default::default()
        };
        self.integrations.clone().create_integration(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Integration, Status> {
        let request =
            tbmq_proto::control::GetIntegrationRequest { name: name.to_owned(), ..Default::default() };
        self.integrations.clone().get_integration(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn update(
        &self,
        integration: Integration,
        mask: &[&str],
    ) -> Result<Integration, Status> {
        let update_mask = (!mask.is_empty())
            .then(|| prost_types::FieldMask { paths: mask.iter().map(|path| (*path).to_owned()).collect() });
        let request = tbmq_proto::control::UpdateIntegrationRequest {
            integration: Some(integration),
            update_mask,
            ..Default::default()
        };
        self.integrations.clone().update_integration(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn list(&self) -> Vec<Integration> {
        let request = tbmq_proto::control::ListIntegrationsRequest::default();
        self.integrations.clone().list_integrations(request).await.unwrap().into_inner().integrations
    }

    pub(crate) async fn enable(&self, name: &str, enabled: bool) -> Result<Integration, Status> {
        let mut client = self.integrations.clone();
        let name = name.to_owned();
        let response = if enabled {
            let request = tbmq_proto::control::EnableIntegrationRequest { name, ..Default::default() };
            client.enable_integration(request).await
        } else {
            let request = tbmq_proto::control::DisableIntegrationRequest { name, ..Default::default() };
            client.disable_integration(request).await
        };
        response.map(tonic::Response::into_inner)
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), Status> {
        let request =
            tbmq_proto::control::DeleteIntegrationRequest { name: name.to_owned(), ..Default::default() };
        self.integrations.clone().delete_integration(request).await.map(|_| ())
    }
}

pub(crate) const DOCUMENT: &str = r#"{"topicFilters":["a/#","b/+"],"metadata":{},
    "clientConfiguration":{"restEndpointUrl":"http://h:1/x","credentials":{"type":"basic","password":"s3cret"}}}"#;

pub(crate) fn integration(name: &str) -> Integration {
    Integration {
        display_name: name.to_owned(),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json: DOCUMENT.to_owned(),
        ..Integration::default()
    }
}

pub(crate) fn id_of(integration: &Integration) -> IntegrationId {
    integration.uid.parse().unwrap()
}

pub(crate) fn phase(integration: &Integration) -> &'static str {
    integration.status.as_ref().unwrap().phase().as_str_name()
}

/// Code and reason of an error.
pub(crate) fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    let info = details.error_info().cloned().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "tbmq", "{status:?}");
    (status.code(), info.reason)
}

/// Fields of an error.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|request| request.field_violations.clone());
    violations.into_iter().flatten().map(|violation| violation.field).collect()
}

/// Waits until a condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let began = std::time::Instant::now();
    while !condition().await {
        assert!(began.elapsed() < Duration::from_secs(20), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How an executor answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Refuse,
    /// Answers only second requests.
    AcceptSecond,
    Silent,
}

/// An executor that reads the HTTP downlink, answers requests, and reports what it would run.
pub(crate) struct Executor {
    pub(crate) desired: Arc<Mutex<BTreeMap<ShardId, Desired>>>,
    pub(crate) requests: Arc<Mutex<Vec<ValidationRequest>>>,
    verdict: Arc<Mutex<Verdict>>,
    ignored: Arc<Mutex<BTreeSet<ShardId>>>,
    events: Events,
    task: JoinHandle<()>,
}

#[derive(Clone)]
pub(crate) struct Events {
    writer: Arc<dyn Writer>,
    topic: String,
    seq: Arc<AtomicU64>,
}

impl Events {
    pub(crate) async fn lifecycle(
        &self,
        id: IntegrationId,
        revision: u64,
        event: Event,
        error: Option<&str>,
    ) -> NativeEvent {
        self.report(ShardId::first(id), 5, revision, event, error).await
    }

    pub(crate) async fn report(
        &self,
        shard: ShardId,
        epoch: u64,
        revision: u64,
        event: Event,
        error: Option<&str>,
    ) -> NativeEvent {
        let native = NativeEvent {
            event_id: Bytes::copy_from_slice(Uuid::now_v7().as_bytes()),
            shard: shard.index,
            revision,
            ownership_epoch: epoch,
            incarnation: "1".to_owned(),
            seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1,
            time_ms: tbmq_service::time::now_ms(),
            service_id: "ie1".to_owned(),
            body: Some(Body::Lifecycle(LifecycleEvent {
                event: event.into(),
                success: error.is_none(),
                error: error.map(ToOwned::to_owned),
            })),
        };
        self.send(shard.integration, native.clone()).await;
        native
    }

    pub(crate) async fn send(&self, id: IntegrationId, event: NativeEvent) {
        let value = wire::encode_event(id, event);
        let key = id.to_string();
        let record =
            Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
        write(&*self.writer, &self.writer.topic(&self.topic), record).await.unwrap();
    }
}

impl Executor {
    async fn start(cluster: &Cluster, verdict: Verdict) -> Self {
        let kind: Kind = "HTTP".parse().unwrap();
        let downlink = cluster.catalogue.downlink(&kind);
        let announcement = KindAnnouncement {
            kind: "HTTP".to_owned(),
            json_schema: SCHEMA.to_owned(),
            schema_hash: String::new(),
            service_ids: vec!["ie1".to_owned()],
        };
        cluster.put(&cluster.catalogue.kinds().name, "HTTP", &announcement.encode_to_vec()).await;
        cluster.say_alive("ie1", Role::Executor, &["HTTP"], None).await;
        let events = Events {
            writer: cluster.writer().await,
            topic: cluster.catalogue.uplink().name,
            seq: Arc::default(),
        };
        let mut reader = cluster.bus.reader(ReaderConfig::new("ie1", None)).await.unwrap();
        for partition in 0..downlink.partitions {
            reader.add(&TopicPartition::new(downlink.name.as_str(), partition), Start::Earliest);
        }
        let desired: Arc<Mutex<BTreeMap<ShardId, Desired>>> = Arc::default();
        let requests: Arc<Mutex<Vec<ValidationRequest>>> = Arc::default();
        let verdict = Arc::new(Mutex::new(verdict));
        let ignored: Arc<Mutex<BTreeSet<ShardId>>> = Arc::default();
        let task = tokio::spawn({
            let (desired, requests, verdict, events) =
                (desired.clone(), requests.clone(), verdict.clone(), events.clone());
            let ignored = ignored.clone();
            let catalogue = cluster.catalogue.clone();
            async move {
                loop {
                    let ReaderEvent::Batch { records, .. } = reader.next().await else { continue };
                    for record in records {
                        let revision = record.header(REVISION_HEADER);
                        match wire::decode_downlink(record.value.as_ref(), revision).unwrap() {
                            Downlink::Request(request) => {
                                let verdict = *verdict.lock();
                                let count = {
                                    let mut requests = requests.lock();
                                    requests.push(request.clone());
                                    requests.len()
                                };
                                let answers = match verdict {
                                    Verdict::Accept | Verdict::Refuse => true,
                                    Verdict::AcceptSecond => count == 2,
                                    Verdict::Silent => false,
                                };
                                if answers {
                                    answer(&events, &catalogue, &request, verdict == Verdict::Refuse).await;
                                }
                            }
                            Downlink::Desired(state) if ignored.lock().contains(&state.shard) => {}
                            Downlink::Desired(state) => obey(&events, &desired, state).await,
                            Downlink::Withdrawn => {}
                        }
                    }
                }
            }
        });
        Self { desired, requests, verdict, ignored, events, task }
    }

    pub(crate) fn decide(&self, verdict: Verdict) {
        *self.verdict.lock() = verdict;
    }

    /// Takes no more notice of a shard.
    pub(crate) fn ignore(&self, shard: ShardId) {
        self.ignored.lock().insert(shard);
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    pub(crate) fn held(&self, id: IntegrationId) -> Option<Desired> {
        self.held_shard(ShardId::first(id))
    }

    pub(crate) fn held_shard(&self, shard: ShardId) -> Option<Desired> {
        self.desired.lock().get(&shard).cloned()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(events: &Events, catalogue: &Catalogue, request: &ValidationRequest, refuse: bool) {
    let violation = Violation::new("clientConfiguration.restEndpointUrl", "is not to my liking");
    let reply = ValidationReply {
        id: request.id,
        error: refuse.then(|| "the URL is not to my liking".to_owned()),
        violations: if refuse { vec![violation] } else { Vec::new() },
        stages: match request.request_type {
            RequestType::CheckConnection => {
                vec![wire::Stage { name: "connect".into(), ok: !refuse, elapsed_ms: 1, text: String::new() }]
            }
            RequestType::Validate => Vec::new(),
        },
        executor: "ie1".to_owned(),
    };
    let reply_to: ServiceId = request.reply_to.parse().unwrap();
    let topic = catalogue.uplink_notifications(&reply_to).name;
    let value = wire::encode_reply(&reply);
    let record = Outgoing { partition: None, key: None, value: Some(&value), headers: &[] };
    write(&*events.writer, &events.writer.topic(&topic), record).await.unwrap();
}

async fn obey(events: &Events, desired: &Mutex<BTreeMap<ShardId, Desired>>, state: Desired) {
    let (shard, revision) = (state.shard, state.revision);
    let before = desired.lock().insert(shard, state.clone());
    let ran = before.is_some_and(|before| runs(&before));
    if ran {
        events.report(shard, 5, revision, Event::Stopped, None).await;
    }
    if runs(&state) {
        events.report(shard, 5, revision, Event::Started, None).await;
    }
}

fn runs(desired: &Desired) -> bool {
    matches!(&desired.change, Change::Apply { target, .. } if target.enabled)
}
