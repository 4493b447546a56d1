//! `IntegrationService`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use sha2::Digest as _;
use tbmq_integration::{
    entity::{Document, Violation},
    validation::End,
    wire::{RequestType, ValidationReply, ValidationRequest},
};
use tbmq_mqtt::topic::{Rules, check_filter};
use tbmq_proto::{
    control::{
        self as proto, CheckConnectionRequest, CheckConnectionResponse, CreateIntegrationRequest,
        DeleteIntegrationRequest, DisableIntegrationRequest, EnableIntegrationRequest, GetIntegrationRequest,
        Holder, Integration, IntegrationStatus, Lag, ListIntegrationsRequest, ListIntegrationsResponse,
        ListKindsRequest, ListKindsResponse, RestartIntegrationRequest, UpdateIntegrationRequest,
        integration_service_server::IntegrationService, integration_status::Phase,
    },
    ids::{IntegrationId, Kind},
};
use tbmq_service::drain::Drain;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use uuid::Uuid;

use super::{
    backlog::Backlogs,
    calls::{hash_request, new_id, remembered, replayed, shortened},
    draft::{Draft, apply_mask, check_texts},
    error,
    mask::{LAG, ReadMask},
    pages::Pages,
    status, stream,
};
use crate::{
    access::audit,
    fault::Point,
    plane::{BUILT_IN_KINDS, Plane},
    secret,
    store::{self, Change, New, Projection, Row, StatusRow},
};

/// Bytes of a document: its downlink record must stay below Kafka's default limit of 1 MiB.
const DOCUMENT_BYTES_MAX: usize = 900_000;

/// Metadata of a response that names live data planes which have not applied the change in time.
pub(super) const SILENT_NODES: &str = "tbmq-silent-nodes";

/// How long the backlog of one integration may take to be read.
const LAG_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct Integrations {
    pub(super) plane: Arc<Plane>,
    /// Begins when streams are to end.
    pub(super) stopping: Drain,
    pub(super) backlogs: Arc<Backlogs>,
    pub(super) pages: Arc<Pages>,
}

impl Integrations {
    pub(super) fn new(plane: Arc<Plane>, stopping: Drain) -> Self {
        Self { plane, stopping, backlogs: Arc::new(Backlogs::new()), pages: Arc::default() }
    }
}

#[tonic::async_trait]
impl IntegrationService for Integrations {
    async fn create_integration(
        &self,
        request: Request<CreateIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let patience = self.save_patience(request.metadata());
        let request = request.into_inner();
        let remembered = remembered("Create", &request.request_id, |hash| {
            let mut bare = request.clone();
            bare.request_id.clear();
            let labels = bare.integration.as_mut().map(|integration| std::mem::take(&mut integration.labels));
            hash_request(hash, &bare, labels);
        })?;
        if let Some(row) = self.recall(remembered.as_ref()).await? {
            return self.answer(row).await;
        }
        let Some(integration) = request.integration else {
            return Err(error::invalid_field("integration", "is missing"));
        };
        let mut violations = Vec::new();
        let id = IntegrationId(new_id("integration_id", &request.integration_id, &mut violations));
        audit::note_resource(resource_name(id));
        let kind = self.read_kind(&integration.r#type, &mut violations);
        let draft = Draft {
            name: integration.display_name,
            enabled: integration.enabled,
            configuration: integration.configuration_json,
            labels: integration.labels.into_iter().collect(),
            description: integration.description,
        };
        let (draft, document) = self.check(draft, kind.as_ref(), None, &mut violations);
        let (Some(kind), Some(document), true) = (kind, document, violations.is_empty()) else {
            return Err(error::invalid(violations));
        };
        let max = self.plane.config.control.integrations_max;
        let max = (max > 0).then_some(max);
        // Before an executor is troubled; it counts again when it is saved.
        self.plane.store.check_room(max).await.inspect_err(|error| self.count_refusal(error))?;
        if self.plane.store.is_name_taken(&draft.name, None).await? {
            return Err(error::name_taken(&draft.name));
        }
        if self.plane.store.life(id).await?.is_some() {
            return Err(store::Error::IdTaken(id).into());
        }
        self.plane.faults.pass(Point::Checked).await;
        self.validate(id, &kind, &draft, patience).await?;
        self.plane.faults.pass(Point::Validated).await;
        let new = New {
            id,
            name: draft.name,
            kind,
            enabled: draft.enabled,
            configuration: draft.configuration,
            labels: draft.labels,
            description: draft.description,
            shards: document.shards,
        };
        if request.validate_only {
            return Ok(Response::new(self.preview(new)));
        }
        match self.plane.store.create_within(max, new, self.plane.saved(remembered.as_ref())).await {
            Ok(row) => {
                self.plane.faults.pass(Point::Saved).await;
                self.plane.committed();
                self.await_applied(row).await
            }
            Err(error) => {
                self.count_refusal(&error);
                self.replay_or(error).await
            }
        }
    }

    async fn get_integration(
        &self,
        request: Request<GetIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        let id = parse_name("name", &request.name)?;
        let mask = ReadMask::parse(request.read_mask)?;
        let row = self.plane.store.get(id).await?;
        let kind = row.kind.clone();
        let lag = if mask.wants(LAG) { self.lag(&row).await? } else { None };
        let mut integration = self.resource(row).await?;
        if let Some(status) = &mut integration.status {
            status.lag = lag;
            if status.phase() == Phase::Pending
                && status.reason != status::EXECUTOR_SILENT
                && self.plane.nodes.executors_of(&kind).is_empty()
            {
                "NO_EXECUTOR".clone_into(&mut status.reason);
            }
        }
        Ok(Response::new(mask.apply(integration)))
    }

    async fn list_integrations(
        &self,
        request: Request<ListIntegrationsRequest>,
    ) -> Result<Response<ListIntegrationsResponse>, Status> {
        self.list(request.into_inner()).await.map(Response::new)
    }

    async fn update_integration(
        &self,
        request: Request<UpdateIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let patience = self.save_patience(request.metadata());
        let request = request.into_inner();
        let remembered = remembered("Update", &request.request_id, |hash| {
            let mut bare = request.clone();
            bare.request_id.clear();
            let labels = bare.integration.as_mut().map(|integration| std::mem::take(&mut integration.labels));
            hash_request(hash, &bare, labels);
        })?;
        if let Some(row) = self.recall(remembered.as_ref()).await? {
            return self.answer(row).await;
        }
        let Some(integration) = request.integration else {
            return Err(error::invalid_field("integration", "is missing"));
        };
        let id = parse_name("integration.name", &integration.name)?;
        audit::note_resource(resource_name(id));
        let stored = self.plane.store.get(id).await?;
        audit::note_before(resource_name(id), etag(stored.revision));
        if parse_etag(&integration.etag)?.is_some_and(|seen| seen != stored.revision) {
            return Err(error::stale());
        }
        let mask = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let mut violations = Vec::new();
        let type_given = mask.iter().any(|path| path == "type") || !integration.r#type.is_empty();
        let draft = apply_mask(&stored, integration, &mask, &mut violations, type_given)?;
        let (draft, document) = self.check(draft, Some(&stored.kind), Some(&stored), &mut violations);
        if let (Some(document), Some(life)) = (&document, self.plane.store.life(id).await?)
            && document.shards != life.shards
        {
            // Messages of one publisher would be divided anew, and their order would be lost.
            let text = format!("can not be changed from {} to {}!", life.shards, document.shards);
            violations.push(Violation::new(format!("{}.shards", error::DOCUMENT), text));
        }
        if !violations.is_empty() {
            return Err(error::invalid(violations));
        }
        if draft.name != stored.name && self.plane.store.is_name_taken(&draft.name, Some(id)).await? {
            return Err(error::name_taken(&draft.name));
        }
        // Skipped only when the executor has accepted the same already.
        let accepted = Document::parse(&stored.configuration).ok().map(|held| held.client_configuration);
        if document.map(|document| document.client_configuration) != accepted {
            self.plane.faults.pass(Point::Checked).await;
            self.validate(id, &stored.kind, &draft, patience).await?;
            self.plane.faults.pass(Point::Validated).await;
        }
        let change = Change {
            name: draft.name,
            enabled: draft.enabled,
            configuration: draft.configuration,
            labels: draft.labels,
            description: draft.description,
        };
        if request.validate_only {
            let changes = stored.differs(&change);
            let row = Row {
                name: change.name,
                enabled: change.enabled,
                configuration: change.configuration,
                labels: change.labels,
                description: change.description,
                ..stored
            };
            let mut preview = self.resource(row).await?;
            if changes {
                // What is not saved has no version yet.
                preview.revision = 0;
                preview.etag.clear();
            }
            return Ok(Response::new(preview));
        }
        let saved = self.plane.saved(remembered.as_ref());
        match self.plane.store.update(id, stored.revision, change, saved).await {
            Ok(row) => {
                self.plane.faults.pass(Point::Saved).await;
                self.plane.committed();
                self.await_applied(row).await
            }
            Err(error) => self.replay_or(error).await,
        }
    }

    async fn delete_integration(
        &self,
        request: Request<DeleteIntegrationRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let remembered = remembered("Delete", &request.request_id, |hash| {
            hash.update(&request.name);
            hash.update(&request.etag);
        })?;
        if replayed(&self.plane.store, remembered.as_ref()).await?.is_some() {
            return Ok(Response::new(()));
        }
        let id = parse_name("name", &request.name)?;
        self.note_before(id).await;
        let base = parse_etag(&request.etag)?;
        match self.plane.store.delete(id, base, self.plane.saved(remembered.as_ref())).await {
            Ok(()) => {
                self.plane.faults.pass(Point::Saved).await;
                self.plane.committed();
            }
            Err(store::Error::Replayed(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.plane.faults.pass(Point::Answering).await;
        Ok(Response::new(()))
    }

    async fn enable_integration(
        &self,
        request: Request<EnableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        self.turn(Turn::Enable, &request.name, &request.etag, &request.request_id).await
    }

    async fn disable_integration(
        &self,
        request: Request<DisableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        self.turn(Turn::Disable, &request.name, &request.etag, &request.request_id).await
    }

    async fn restart_integration(
        &self,
        request: Request<RestartIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        self.turn(Turn::Restart, &request.name, &request.etag, &request.request_id).await
    }

    async fn check_connection(
        &self,
        request: Request<CheckConnectionRequest>,
    ) -> Result<Response<CheckConnectionResponse>, Status> {
        let wait = self.plane.config.integrations.init.connection_check_api_request_timeout_sec;
        let patience = shortened(request.metadata(), Duration::from_secs(wait.get()));
        let request = request.into_inner();
        let (id, kind, draft) = self.to_be_checked(request).await?;
        let began = Instant::now();
        let reply = self.ask(RequestType::CheckConnection, id, &kind, &draft, patience).await?;
        let to_stage = |stage: tbmq_integration::wire::Stage| proto::CheckStage {
            name: stage.name,
            ok: stage.ok,
            elapsed_ms: stage.elapsed_ms,
            text: stage.text,
        };
        let to_violation =
            |violation: Violation| proto::Violation { path: violation.path, text: violation.text };
        Ok(Response::new(CheckConnectionResponse {
            ok: reply.error.is_none(),
            error: reply.error.unwrap_or_default(),
            stages: reply.stages.into_iter().map(to_stage).collect(),
            executor_id: reply.executor,
            elapsed_ms: began.elapsed().as_millis() as u64,
            violations: reply.violations.into_iter().map(to_violation).collect(),
        }))
    }

    async fn list_kinds(
        &self,
        _request: Request<ListKindsRequest>,
    ) -> Result<Response<ListKindsResponse>, Status> {
        let kind = |kind: Kind| {
            let known = self.plane.kinds.get(kind.as_str());
            proto::Kind {
                name: kind.to_string(),
                json_schema: known.map(|known| known.json_schema.to_string()).unwrap_or_default(),
                service_ids: self.plane.nodes.executors_of(&kind),
            }
        };
        let announced = |kind: &Kind| self.plane.kinds.get(kind.as_str()).is_some();
        let kinds = self.plane.all_kinds().into_iter().filter(announced).map(kind).collect();
        Ok(Response::new(ListKindsResponse { kinds }))
    }

    async fn get_integration_stats(
        &self,
        request: Request<proto::GetIntegrationStatsRequest>,
    ) -> Result<Response<proto::IntegrationStats>, Status> {
        self.stats(request).await.map(Response::new)
    }

    async fn explain_topic(
        &self,
        request: Request<proto::ExplainTopicRequest>,
    ) -> Result<Response<proto::ExplainTopicResponse>, Status> {
        super::explain::explain(&self.plane, request).await.map(Response::new)
    }

    type WatchIntegrationsStream = super::watch::Watching;

    async fn watch_integrations(
        &self,
        request: Request<proto::WatchIntegrationsRequest>,
    ) -> Result<Response<Self::WatchIntegrationsStream>, Status> {
        let client = stream::client_of(&request);
        self.watch(request.into_inner(), client).await
    }
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    Enable,
    Disable,
    Restart,
}

impl Integrations {
    fn count_refusal(&self, error: &store::Error) {
        if matches!(error, store::Error::LimitReached { .. }) {
            self.plane.metrics.integrations_refused.inc();
        }
    }

    fn save_patience(&self, metadata: &MetadataMap) -> Duration {
        shortened(metadata, self.plane.config.control.validation_timeout)
    }

    fn read_kind(&self, text: &str, violations: &mut Vec<Violation>) -> Option<Kind> {
        let mut refuse = |problem: String| violations.push(Violation::new("integration.type", problem));
        if text.is_empty() {
            refuse("Integration type should be specified!".to_owned());
            return None;
        }
        match text.parse::<Kind>() {
            Ok(kind) if BUILT_IN_KINDS.contains(&kind.as_str()) || self.plane.kinds.get(text).is_some() => {
                Some(kind)
            }
            Ok(kind) => {
                let known: Vec<String> = self.plane.all_kinds().iter().map(ToString::to_string).collect();
                refuse(format!("no executor has announced {kind}; known are {}", known.join(", ")));
                None
            }
            Err(error) => {
                refuse(error.to_string());
                None
            }
        }
    }

    fn schema(&self, kind: &Kind) -> Option<Arc<Value>> {
        self.plane.kinds.get(kind.as_str()).map(|known| known.schema)
    }

    /// Checks everything that is not the executor's to check, and puts stored secrets where masks stand.
    fn check(
        &self,
        mut draft: Draft,
        kind: Option<&Kind>,
        stored: Option<&Row>,
        violations: &mut Vec<Violation>,
    ) -> (Draft, Option<Document>) {
        let name = draft.name.trim().to_owned();
        draft.name = name;
        check_texts(&draft, violations);
        if draft.configuration.len() > DOCUMENT_BYTES_MAX {
            let text = format!("has {} bytes, more than {DOCUMENT_BYTES_MAX}", draft.configuration.len());
            violations.push(Violation::new(error::DOCUMENT, text));
            return (draft, None);
        }
        if let Some(kind) = kind {
            match secret::unmask(self.schema(kind).as_deref(), &draft.configuration, stored) {
                Ok(whole) => draft.configuration = whole,
                Err(problems) => violations.extend(error::in_document(problems)),
            }
        }
        let document = match Document::parse(&draft.configuration) {
            Ok(document) => document,
            Err(problems) => {
                violations.extend(error::in_document(problems));
                return (draft, None);
            }
        };
        let mqtt = &self.plane.config.mqtt;
        let rules = Rules {
            segments_max: mqtt.topic.max_segments_count,
            root_wildcard: mqtt.subscription.allow_root_multi_level_wildcard,
        };
        for (i, filter) in document.topic_filters.iter().enumerate() {
            if let Err(problem) = check_filter(filter, &rules) {
                let path = format!("{}.topicFilters[{i}]", error::DOCUMENT);
                violations.push(Violation::new(path, problem.to_string()));
            }
        }
        (draft, Some(document))
    }

    /// Has an executor accept the configuration.
    async fn validate(
        &self,
        id: IntegrationId,
        kind: &Kind,
        draft: &Draft,
        patience: Duration,
    ) -> Result<(), Status> {
        let reply = self.ask(RequestType::Validate, id, kind, draft, patience).await?;
        match reply.error {
            None if reply.violations.is_empty() => Ok(()),
            None => Err(error::rejected("the executor refused the configuration", reply.violations)),
            Some(text) => Err(error::rejected(&text, reply.violations)),
        }
    }

    async fn ask(
        &self,
        request_type: RequestType,
        id: IntegrationId,
        kind: &Kind,
        draft: &Draft,
        patience: Duration,
    ) -> Result<ValidationReply, Status> {
        let began = Instant::now();
        let ensured = tokio::time::timeout(patience, self.plane.ensure_downlink(kind)).await;
        ensured.map_err(|_| self.unanswered(request_type, kind, patience))?.map_err(error::unavailable)?;
        let request = ValidationRequest {
            id: Uuid::nil(),
            reply_to: self.plane.service_id.to_string(),
            request_type,
            integration: id,
            kind: kind.clone(),
            name: draft.name.clone(),
            enabled: draft.enabled,
            configuration: draft.configuration.clone(),
            sealed: None,
            created_ms: 0,
            deadline_ms: 0,
        };
        let left = patience.saturating_sub(began.elapsed());
        match self.plane.validator.ask(request, left).await {
            Ok(End::Answered(reply)) => Ok(reply),
            Ok(End::Expired) => Err(self.unanswered(request_type, kind, patience)),
            Ok(End::Undelivered(reason)) => {
                self.plane.forget_downlinks();
                Err(error::unavailable(format!("the request could not be sent: {reason}")))
            }
            Err(error) => Err(error::overloaded(error)),
        }
    }

    fn unanswered(&self, request_type: RequestType, kind: &Kind, patience: Duration) -> Status {
        let what = match request_type {
            RequestType::Validate => "Timeout to validate the configuration!",
            RequestType::CheckConnection => "Timeout to process the request!",
        };
        let executors = self.plane.nodes.executors_of(kind);
        let text = if executors.is_empty() {
            format!("{what} No live executor serves {kind}")
        } else {
            let ids = executors.join(", ");
            format!("{what} No answer within {patience:?}, though {kind} is served by {ids}")
        };
        error::status(Code::DeadlineExceeded, "VALIDATION_TIMEOUT", text)
    }

    async fn to_be_checked(
        &self,
        request: CheckConnectionRequest,
    ) -> Result<(IntegrationId, Kind, Draft), Status> {
        let inline = request.integration;
        let name = match &inline {
            Some(integration) if request.name.is_empty() => integration.name.clone(),
            _ => request.name,
        };
        let stored = match name.as_str() {
            "" => None,
            name => Some(self.plane.store.get(parse_name("name", name)?).await?),
        };
        let Some(integration) = inline else {
            let Some(row) = stored else {
                return Err(error::invalid_field(
                    "integration",
                    "neither an integration nor a name is given",
                ));
            };
            if let Some(unreadable) = row.unreadable {
                return Err(store::Error::Unreadable(row.id, unreadable).into());
            }
            let draft = Draft {
                name: row.name,
                enabled: row.enabled,
                configuration: row.configuration,
                labels: row.labels,
                description: row.description,
            };
            return Ok((row.id, row.kind, draft));
        };
        let mut violations = Vec::new();
        let kind = match &stored {
            Some(row) if integration.r#type.is_empty() => Some(row.kind.clone()),
            _ => self.read_kind(&integration.r#type, &mut violations),
        };
        let mut draft = Draft {
            name: integration.display_name,
            enabled: integration.enabled,
            configuration: integration.configuration_json,
            labels: BTreeMap::new(),
            description: String::new(),
        };
        if draft.configuration.len() > DOCUMENT_BYTES_MAX {
            let text = format!("has {} bytes, more than {DOCUMENT_BYTES_MAX}", draft.configuration.len());
            violations.push(Violation::new(error::DOCUMENT, text));
        } else if let Some(kind) = &kind {
            match secret::unmask(self.schema(kind).as_deref(), &draft.configuration, stored.as_ref()) {
                Ok(whole) => draft.configuration = whole,
                Err(problems) => violations.extend(error::in_document(problems)),
            }
            // Topic filters have no part in a check (spec §3.3).
            let is_document = serde_json::from_str::<Value>(&draft.configuration)
                .is_ok_and(|document| document["clientConfiguration"].is_object());
            if !is_document {
                let text = "should be a JSON object with the object clientConfiguration";
                violations.push(Violation::new(error::DOCUMENT, text));
            }
        }
        match kind {
            Some(kind) if violations.is_empty() => {
                let id = stored.map_or_else(|| IntegrationId(Uuid::new_v4()), |row| row.id);
                Ok((id, kind, draft))
            }
            _ => Err(error::invalid(violations)),
        }
    }

    /// What is done to an integration without a document.
    async fn turn(
        &self,
        turn: Turn,
        name: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<Response<Integration>, Status> {
        let method = match turn {
            Turn::Enable => "Enable",
            Turn::Disable => "Disable",
            Turn::Restart => "Restart",
        };
        let remembered = remembered(method, request_id, |hash| {
            hash.update(name);
            hash.update(etag);
        })?;
        if let Some(row) = self.recall(remembered.as_ref()).await? {
            return self.answer(row).await;
        }
        let id = parse_name("name", name)?;
        self.note_before(id).await;
        let base = parse_etag(etag)?;
        let saved = self.plane.saved(remembered.as_ref());
        let store = &self.plane.store;
        let done = match turn {
            Turn::Enable => store.set_enabled(id, base, true, saved).await,
            Turn::Disable => store.set_enabled(id, base, false, saved).await,
            Turn::Restart => store.restart(id, base, saved).await,
        };
        match done {
            Ok(row) => {
                self.plane.committed();
                self.answer(row).await
            }
            Err(error) => self.replay_or(error).await,
        }
    }

    /// The integration of a request that was done already.
    async fn recall(&self, remembered: Option<&store::Request>) -> Result<Option<Row>, Status> {
        match replayed(&self.plane.store, remembered).await? {
            Some(id) => Ok(Some(self.plane.store.get(IntegrationId(id)).await?)),
            None => Ok(None),
        }
    }

    /// Answers a request whose twin was faster.
    async fn replay_or(&self, error: store::Error) -> Result<Response<Integration>, Status> {
        match error {
            store::Error::Replayed(id) => self.answer(self.plane.store.get(IntegrationId(id)).await?).await,
            error => Err(error.into()),
        }
    }

    /// Tells the audit log what is about to change, as it is now.
    async fn note_before(&self, id: IntegrationId) {
        audit::note_resource(resource_name(id));
        // The call itself says what is wrong.
        if let Ok(row) = self.plane.store.get(id).await {
            audit::note_before(resource_name(id), etag(row.revision));
        }
    }

    async fn answer(&self, row: Row) -> Result<Response<Integration>, Status> {
        audit::note_after(resource_name(row.id), etag(row.revision));
        self.resource(row).await.map(Response::new)
    }

    fn preview(&self, new: New) -> Integration {
        let masked = secret::mask(self.schema(&new.kind).as_deref(), &new.configuration);
        Integration {
            name: resource_name(new.id),
            uid: new.id.to_string(),
            display_name: new.name,
            r#type: new.kind.to_string(),
            enabled: new.enabled,
            configuration_json: masked,
            labels: new.labels.into_iter().collect(),
            description: new.description,
            ..Integration::default()
        }
    }

    /// Waits, within bounds, until every live data plane has applied the saved change, and names the silent ones.
    async fn await_applied(&self, row: Row) -> Result<Response<Integration>, Status> {
        let deadline = tokio::time::Instant::now() + self.plane.config.control.apply_timeout;
        let (id, revision) = (row.id, row.revision);
        audit::note_after(resource_name(id), etag(revision));
        // What is saved is saved: from here on nothing makes the call fail.
        let projection =
            tokio::time::timeout_at(deadline, self.plane.projected.reached(id, revision)).await.ok();
        let silent = match projection {
            Some(projection) => {
                let topic = self.plane.catalogue.integration_subscriptions().name;
                self.plane.nodes.applied(&topic, 0, projection.position, deadline).await
            }
            None => {
                self.plane.nodes.live_data_planes().into_iter().map(|node| node.applied.service_id).collect()
            }
        };
        self.plane.faults.pass(Point::Answering).await;
        let mut integration = self.resource(row).await?;
        for holder in integration.status.iter_mut().flat_map(|status| &mut status.holders) {
            if silent.contains(&holder.service_id) {
                "SILENT".clone_into(&mut holder.state);
            }
        }
        let mut response = Response::new(integration);
        if !silent.is_empty() {
            tracing::warn!(integration = %id, revision, ?silent, "data planes have not applied the change in time");
            if let Ok(text) = silent.join(",").parse() {
                response.metadata_mut().insert(SILENT_NODES, text);
            }
        }
        Ok(response)
    }

    async fn resource(&self, row: Row) -> Result<Integration, Status> {
        let mut resources = self.resources(vec![row]).await?;
        resources.pop().ok_or_else(|| Status::internal("no resource"))
    }

    pub(super) async fn resources(&self, rows: Vec<Row>) -> Result<Vec<Integration>, Status> {
        let statuses = self.statuses(&rows).await?;
        let build = |(row, status)| self.show_one(row, Some(status), true);
        Ok(rows.into_iter().zip(statuses).map(build).collect())
    }

    /// A row as it is shown: its secrets masked.
    pub(super) fn show_one(
        &self,
        row: Row,
        status: Option<IntegrationStatus>,
        with_configuration: bool,
    ) -> Integration {
        let masked = if with_configuration {
            secret::mask(self.schema(&row.kind).as_deref(), &row.configuration)
        } else {
            String::new()
        };
        to_resource(row, masked, status)
    }

    /// The status of each of these rows, without backlogs: three statements however many they are.
    pub(super) async fn statuses(&self, rows: &[Row]) -> Result<Vec<IntegrationStatus>, Status> {
        let ids: Vec<IntegrationId> = rows.iter().map(|row| row.id).collect();
        let store = &self.plane.store;
        let (events, projections, lives) =
            tokio::try_join!(store.statuses(&ids), store.projections(&ids), store.lives(&ids))?;
        let mut of_shards: HashMap<IntegrationId, Vec<StatusRow>> = HashMap::new();
        for event in events {
            of_shards.entry(event.integration).or_default().push(event);
        }
        let projections: HashMap<IntegrationId, Projection> = projections.into_iter().collect();
        let shards: HashMap<IntegrationId, u32> =
            lives.into_iter().map(|life| (life.integration, life.shards)).collect();
        let nodes = self.plane.nodes.live_data_planes();
        let executors = self.plane.nodes.live_executors();
        let topic = self.plane.catalogue.integration_subscriptions().name;
        let status = |row: &Row| {
            let events = of_shards.remove(&row.id).unwrap_or_default();
            let projection = projections.get(&row.id).copied();
            let count = shards.get(&row.id).copied().unwrap_or(1);
            let mut status = status::of_executors(&self.plane, row, &events, count, &executors, projection);
            for node in &nodes {
                let applied = projection.filter(|at| node.position(&topic, 0) >= at.position);
                status.holders.push(Holder {
                    service_id: node.applied.service_id.clone(),
                    role: "DATA_PLANE".to_owned(),
                    observed_revision: applied.map_or(0, |at| at.revision),
                    state: if applied.is_some() { "APPLIED" } else { "BEHIND" }.to_owned(),
                    error: String::new(),
                    update_time: Some(timestamp(node.seen_ms)),
                    shard: 0,
                    ownership_epoch: 0,
                });
            }
            status
        };
        Ok(rows.iter().map(status).collect())
    }

    /// The backlog of one integration, if the bus tells it soon.
    async fn lag(&self, row: &Row) -> Result<Option<Lag>, Status> {
        let Some(life) = self.plane.store.life(row.id).await? else { return Ok(None) };
        let found = self.backlogs.of(&self.plane, std::slice::from_ref(&life), LAG_PATIENCE).await;
        let backlog = found.ok().and_then(|mut found| found.remove(&row.id));
        let now_ms = tbmq_service::time::now_ms();
        Ok(backlog.map(|backlog| backlog.lag(&self.plane, row, &life, now_ms)))
    }
}

fn resource_name(id: IntegrationId) -> String {
    format!("integrations/{id}")
}

fn to_resource(row: Row, configuration_json: String, status: Option<IntegrationStatus>) -> Integration {
    Integration {
        name: resource_name(row.id),
        uid: row.id.to_string(),
        display_name: row.name,
        r#type: row.kind.to_string(),
        enabled: row.enabled,
        configuration_json,
        labels: row.labels.into_iter().collect(),
        description: row.description,
        status,
        revision: row.revision,
        etag: etag(row.revision),
        create_time: Some(timestamp(row.created_ms)),
        update_time: Some(timestamp(row.updated_ms)),
        disconnected_time: row.disconnected_ms.map(timestamp),
    }
}

/// Revisions are given out once, so they are versions.
pub(super) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

pub(super) fn parse_etag(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let revision =
        text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(|text| text.parse().ok());
    // An etag that was never given out is of another version for sure.
    revision.map(Some).ok_or_else(error::stale)
}

/// Reads `integrations/{uuid}`; a uuid alone is understood too.
pub(super) fn parse_name(field: &str, name: &str) -> Result<IntegrationId, Status> {
    let text = name.strip_prefix("integrations/").unwrap_or(name);
    text.parse().map_err(|_| error::invalid_field(field, format!("{name:?} is not integrations/{{uuid}}")))
}

pub(super) fn timestamp(ms: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: ms.div_euclid(1_000), nanos: (ms.rem_euclid(1_000) * 1_000_000) as i32 }
}

pub(super) fn to_ms(timestamp: &prost_types::Timestamp) -> i64 {
    timestamp.seconds.saturating_mul(1_000).saturating_add(i64::from(timestamp.nanos) / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_also_before_1970() {
        for ms in [0, 1_234, -1, -1_500] {
            assert_eq!(to_ms(&timestamp(ms)), ms);
        }
    }
}
