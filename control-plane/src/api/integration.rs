//! `IntegrationService`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
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
        Holder, Integration, IntegrationStatus, ListIntegrationsRequest, ListIntegrationsResponse,
        ListKindsRequest, ListKindsResponse, RestartIntegrationRequest, UpdateIntegrationRequest,
        integration_service_server::IntegrationService, integration_status::Phase,
    },
    ids::{IntegrationId, Kind},
};
use tbmq_service::drain::Drain;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use uuid::Uuid;

use super::{error, page, status};
use crate::{
    plane::{BUILT_IN_KINDS, Plane},
    secret,
    store::{self, Change, Filter, New, Projection, Row, StatusRow},
};

const NAME_CHARS_MAX: usize = 255;
const DESCRIPTION_CHARS_MAX: usize = 4_096;
const LABELS_MAX: usize = 64;
const LABEL_CHARS_MAX: usize = 255;

/// Bytes of a document: its downlink record must stay below Kafka's default limit of 1 MiB.
const DOCUMENT_BYTES_MAX: usize = 900_000;

/// Metadata of a response that names live data planes which have not applied the change in time.
const SILENT_NODES: &str = "tbmq-silent-nodes";

/// How long the lag of one integration may take to be read.
const LAG_PATIENCE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub(super) struct Integrations {
    pub(super) plane: Arc<Plane>,
    /// Begins when streams are to end.
    pub(super) stopping: Drain,
}

impl Integrations {
    pub(super) fn new(plane: Arc<Plane>, stopping: Drain) -> Self {
        Self { plane, stopping }
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
        let id = match request.integration_id.as_str() {
            "" => IntegrationId(Uuid::new_v4()),
            text => text.parse().unwrap_or_else(|_| {
                violations.push(Violation::new("integration_id", "is not a UUID"));
                IntegrationId(Uuid::nil())
            }),
        };
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
        if self.plane.store.is_name_taken(&draft.name, None).await? {
            return Err(error::name_taken(&draft.name));
        }
        if self.plane.store.life(id).await?.is_some() {
            return Err(store::Error::IdTaken(id).into());
        }
        self.validate(id, &kind, &draft, patience).await?;
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
        match self.plane.store.create(new, self.plane.saved(remembered.as_ref())).await {
            Ok(row) => {
                self.plane.committed();
                self.await_applied(row).await
            }
            Err(error) => self.replay_or(error).await,
        }
    }

    async fn get_integration(
        &self,
        request: Request<GetIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let id = parse_name("name", &request.into_inner().name)?;
        let row = self.plane.store.get(id).await?;
        let kind = row.kind.clone();
        let mut integration = self.resource(row).await?;
        if let Some(status) = &mut integration.status {
            let life = self.plane.store.life(id).await?;
            if let Some(life) = life {
                let lag = status::lag(&self.plane, &life);
                status.lag = tokio::time::timeout(LAG_PATIENCE, lag).await.ok().flatten();
            }
            if status.phase() == Phase::Pending
                && status.reason != status::EXECUTOR_SILENT
                && self.plane.nodes.executors_of(&kind).is_empty()
            {
                "NO_EXECUTOR".clone_into(&mut status.reason);
            }
        }
        Ok(Response::new(integration))
    }

    async fn list_integrations(
        &self,
        request: Request<ListIntegrationsRequest>,
    ) -> Result<Response<ListIntegrationsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        if request.text_search.contains('\0') {
            return Err(error::invalid_field("text_search", "must not contain U+0000"));
        }
        let question = format!("integrations {:?}", request.text_search);
        let after = page::place::<String>(&request.page_token, &question)?;
        let filter = Filter { text: request.text_search, after, limit: size + 1 };
        let (mut rows, total) = self.plane.store.list(&filter).await?;
        let more = rows.len() as u64 > size;
        rows.truncate(size as usize);
        let next_page_token = match rows.last() {
            Some(last) if more => page::token(&last.name, &question),
            _ => String::new(),
        };
        let integrations = self.resources(rows).await?;
        Ok(Response::new(ListIntegrationsResponse {
            integrations,
            next_page_token,
            total_size: total as i64,
        }))
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
        let stored = self.plane.store.get(id).await?;
        if !integration.etag.is_empty() && integration.etag != etag(stored.revision) {
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
            self.validate(id, &stored.kind, &draft, patience).await?;
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
        if let Some(remembered) = &remembered {
            match self.plane.store.recall(remembered, tbmq_service::time::now_ms()).await {
                Err(store::Error::Replayed(_)) => return Ok(Response::new(())),
                other => other?,
            }
        }
        let id = parse_name("name", &request.name)?;
        let base = parse_etag(&request.etag)?;
        match self.plane.store.delete(id, base, self.plane.saved(remembered.as_ref())).await {
            Ok(()) => self.plane.committed(),
            Err(store::Error::Replayed(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Response::new(()))
    }

    async fn enable_integration(
        &self,
        request: Request<EnableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        self.switch("Enable", &request.name, &request.etag, &request.request_id, true).await
    }

    async fn disable_integration(
        &self,
        request: Request<DisableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        self.switch("Disable", &request.name, &request.etag, &request.request_id, false).await
    }

    async fn restart_integration(
        &self,
        request: Request<RestartIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let id = parse_name("name", &request.into_inner().name)?;
        let row = self.plane.store.restart(id, self.plane.saved(None)).await?;
        self.plane.committed();
        self.answer(row).await
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
        _request: Request<proto::GetIntegrationStatsRequest>,
    ) -> Result<Response<proto::IntegrationStats>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn explain_topic(
        &self,
        _request: Request<proto::ExplainTopicRequest>,
    ) -> Result<Response<proto::ExplainTopicResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    type WatchIntegrationsStream = super::watch::Watching;

    async fn watch_integrations(
        &self,
        request: Request<proto::WatchIntegrationsRequest>,
    ) -> Result<Response<Self::WatchIntegrationsStream>, Status> {
        self.watch(request.into_inner()).await
    }
}

/// What a caller wants an integration to be.
struct Draft {
    name: String,
    enabled: bool,
    configuration: String,
    labels: BTreeMap<String, String>,
    description: String,
}

impl Integrations {
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

    async fn switch(
        &self,
        method: &'static str,
        name: &str,
        etag: &str,
        request_id: &str,
        enabled: bool,
    ) -> Result<Response<Integration>, Status> {
        let remembered = remembered(method, request_id, |hash| {
            hash.update(name);
            hash.update(etag);
        })?;
        if let Some(row) = self.recall(remembered.as_ref()).await? {
            return self.answer(row).await;
        }
        let id = parse_name("name", name)?;
        let base = parse_etag(etag)?;
        let saved = self.plane.saved(remembered.as_ref());
        match self.plane.store.set_enabled(id, base, enabled, saved).await {
            Ok(row) => {
                self.plane.committed();
                self.answer(row).await
            }
            Err(error) => self.replay_or(error).await,
        }
    }

    /// The integration of a request that was done already.
    async fn recall(&self, remembered: Option<&store::Request>) -> Result<Option<Row>, Status> {
        let Some(remembered) = remembered else { return Ok(None) };
        match self.plane.store.recall(remembered, tbmq_service::time::now_ms()).await {
            Ok(()) => Ok(None),
            Err(store::Error::Replayed(id)) => Ok(Some(self.plane.store.get(id).await?)),
            Err(error) => Err(error.into()),
        }
    }

    /// Answers a request whose twin was faster.
    async fn replay_or(&self, error: store::Error) -> Result<Response<Integration>, Status> {
        match error {
            store::Error::Replayed(id) => self.answer(self.plane.store.get(id).await?).await,
            error => Err(error.into()),
        }
    }

    async fn answer(&self, row: Row) -> Result<Response<Integration>, Status> {
        self.resource(row).await.map(Response::new)
    }

    fn preview(&self, new: New) -> Integration {
        let masked = secret::mask(self.schema(&new.kind).as_deref(), &new.configuration);
        Integration {
            name: format!("integrations/{}", new.id),
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
        let mut rounds = self.plane.projected.subscribe();
        let projection = loop {
            rounds.borrow_and_update();
            // What is saved is saved: from here on nothing makes the call fail.
            let found = self.plane.store.projection(id).await.ok().flatten();
            match found.filter(|projection| projection.revision >= revision) {
                Some(projection) => break Some(projection),
                None if tokio::time::Instant::now() >= deadline => break None,
                None => {}
            }
            let check = deadline.min(tokio::time::Instant::now() + Duration::from_millis(50));
            tokio::select! {
                changed = rounds.changed() => if changed.is_err() { break None },
                // The relayer may be another control plane.
                () = tokio::time::sleep_until(check) => {}
            }
        };
        let silent = match projection {
            Some(projection) => {
                let topic = self.plane.catalogue.integration_subscriptions().name;
                self.plane.nodes.applied(&topic, 0, projection.position, deadline).await
            }
            None => {
                self.plane.nodes.live_data_planes().into_iter().map(|node| node.applied.service_id).collect()
            }
        };
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
        let ids: Vec<IntegrationId> = rows.iter().map(|row| row.id).collect();
        let mut statuses: HashMap<IntegrationId, Vec<StatusRow>> = HashMap::new();
        for status in self.plane.store.statuses(&ids).await? {
            statuses.entry(status.integration).or_default().push(status);
        }
        let projections: HashMap<IntegrationId, Projection> =
            self.plane.store.projections(&ids).await?.into_iter().collect();
        let shards: HashMap<IntegrationId, u32> = self
            .plane
            .store
            .lives(&ids)
            .await?
            .into_iter()
            .map(|life| (life.integration, life.shards))
            .collect();
        let nodes = self.plane.nodes.live_data_planes();
        let executors = self.plane.nodes.live_executors();
        let topic = self.plane.catalogue.integration_subscriptions().name;
        let build = |row: Row| {
            let statuses = statuses.remove(&row.id).unwrap_or_default();
            let projection = projections.get(&row.id).copied();
            let count = shards.get(&row.id).copied().unwrap_or(1);
            let mut status =
                status::of_executors(&self.plane, &row, &statuses, count, &executors, projection);
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
            let masked = secret::mask(self.schema(&row.kind).as_deref(), &row.configuration);
            to_resource(row, masked, status)
        };
        Ok(rows.into_iter().map(build).collect())
    }
}

fn check_texts(draft: &Draft, violations: &mut Vec<Violation>) {
    let mut refuse =
        |field: &str, text: &str| violations.push(Violation::new(format!("integration.{field}"), text));
    let name_chars = draft.name.chars().count();
    if draft.name.is_empty() {
        refuse("display_name", "Integration name should be specified!");
    } else if name_chars > NAME_CHARS_MAX {
        refuse("display_name", "name length must be equal or less than 255");
    } else if draft.name.chars().any(char::is_control) {
        refuse("display_name", "name is malformed");
    }
    if draft.description.chars().count() > DESCRIPTION_CHARS_MAX || draft.description.contains('\0') {
        refuse("description", "must have at most 4096 characters, without U+0000");
    }
    let label_ok = |text: &str| text.chars().count() <= LABEL_CHARS_MAX && !text.contains('\0');
    let labels_ok =
        draft.labels.iter().all(|(key, value)| !key.is_empty() && label_ok(key) && label_ok(value));
    if draft.labels.len() > LABELS_MAX || !labels_ok {
        refuse("labels", "must be at most 64, with keys and values of at most 255 characters");
    }
    if draft.configuration.contains('\0') {
        refuse("configuration_json", "must not contain U+0000");
    }
}

fn apply_mask(
    stored: &Row,
    given: Integration,
    mask: &[String],
    violations: &mut Vec<Violation>,
    type_given: bool,
) -> Result<Draft, Status> {
    let everything = mask.is_empty() || mask.iter().any(|path| path == "*");
    let wants = |field: &str| everything || mask.iter().any(|path| path == field);
    for path in mask {
        let known = [
            "*",
            "display_name",
            "type",
            "enabled",
            "configuration_json",
            "labels",
            "description",
            "name",
            "etag",
        ];
        if !known.contains(&path.as_str()) {
            violations.push(Violation::new("update_mask", format!("{path:?} is not a writable field")));
        }
    }
    if type_given && wants("type") && given.r#type != stored.kind.as_str() {
        return Err(error::invalid_because(
            "TYPE_IMMUTABLE",
            vec![Violation::new("integration.type", "Integration type can not be changed!")],
        ));
    }
    Ok(Draft {
        name: if wants("display_name") { given.display_name } else { stored.name.clone() },
        enabled: if wants("enabled") { given.enabled } else { stored.enabled },
        configuration: if wants("configuration_json") {
            given.configuration_json
        } else {
            stored.configuration.clone()
        },
        labels: if wants("labels") { given.labels.into_iter().collect() } else { stored.labels.clone() },
        description: if wants("description") { given.description } else { stored.description.clone() },
    })
}

fn to_resource(row: Row, configuration_json: String, status: IntegrationStatus) -> Integration {
    Integration {
        name: format!("integrations/{}", row.id),
        uid: row.id.to_string(),
        display_name: row.name,
        r#type: row.kind.to_string(),
        enabled: row.enabled,
        configuration_json,
        labels: row.labels.into_iter().collect(),
        description: row.description,
        status: Some(status),
        revision: row.revision,
        etag: etag(row.revision),
        create_time: Some(timestamp(row.created_ms)),
        update_time: Some(timestamp(row.updated_ms)),
        disconnected_time: row.disconnected_ms.map(timestamp),
    }
}

/// Revisions are given out once, so they are versions.
fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

fn parse_etag(text: &str) -> Result<Option<u64>, Status> {
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

fn remembered(
    method: &'static str,
    id: &str,
    hash: impl FnOnce(&mut Sha256),
) -> Result<Option<store::Request>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    if id.len() > 128 || id.chars().any(char::is_control) {
        return Err(error::invalid_field("request_id", "must have at most 128 characters, none of control"));
    }
    let mut sha = Sha256::new();
    hash(&mut sha);
    let fingerprint = sha.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        use std::fmt::Write as _;
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    });
    Ok(Some(store::Request { method, id: id.to_owned(), fingerprint }))
}

/// Labels apart, since their order on the wire is by chance.
fn hash_request(hash: &mut Sha256, bare: &impl prost::Message, labels: Option<HashMap<String, String>>) {
    hash.update(bare.encode_to_vec());
    let labels: BTreeMap<String, String> = labels.into_iter().flatten().collect();
    for (key, value) in labels {
        hash.update(key.len().to_be_bytes());
        hash.update(key);
        hash.update(value.len().to_be_bytes());
        hash.update(value);
    }
}

/// The wait, shortened by the caller's own deadline, so that he gets our answer and not his timeout.
fn shortened(metadata: &MetadataMap, patience: Duration) -> Duration {
    let Some(own) = metadata.get("grpc-timeout").and_then(|text| text.to_str().ok()).and_then(parse_timeout)
    else {
        return patience;
    };
    let margin = (own / 10).min(Duration::from_millis(500));
    patience.min(own.saturating_sub(margin))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3_600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_shortens_the_wait() {
        let with = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            shortened(&metadata, Duration::from_secs(30))
        };
        assert_eq!(with("1000m"), Duration::from_millis(900));
        assert_eq!(with("20S"), Duration::from_millis(19_500));
        assert_eq!(with("1H"), Duration::from_secs(30));
        assert_eq!(with("x"), Duration::from_secs(30));
        assert_eq!(shortened(&MetadataMap::new(), Duration::from_secs(30)), Duration::from_secs(30));
    }

    #[test]
    fn times_survive_also_before_1970() {
        for ms in [0, 1_234, -1, -1_500] {
            assert_eq!(to_ms(&timestamp(ms)), ms);
        }
    }
}
