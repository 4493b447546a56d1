//! A control plane in memory that keeps to the contract: versions, masks, previews, refusals. One secret is known,
//! `clientConfiguration.password` of type HTTP.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use serde_json::Value;
use tbmq_proto::control::{
    self as proto, CreateIntegrationRequest, DeleteIntegrationRequest, ExplainTopicRequest,
    ExplainTopicResponse, GetIntegrationRequest, Integration, Kind, ListIntegrationsRequest,
    ListIntegrationsResponse, ListKindsRequest, ListKindsResponse, UpdateIntegrationRequest,
    integration_service_server::{IntegrationService, IntegrationServiceServer},
};
use tokio::sync::Barrier;
use tonic::{Code, Request, Response, Status};
use tonic_types::FieldViolation;

use crate::{fake::refusal, tbmqctl};

const MASK: &str = "\"********\"";

const SCHEMA: &str = r#"{ "properties": {
    "restEndpointUrl": { "type": "string" },
    "password": { "type": "string", "writeOnly": true },
    "readTimeoutMs": { "type": "integer", "default": 0 },
    "otherProperties": { "properties": { "acks": {} } } } }"#;

/// Clones share what they hold.
#[derive(Clone, Default)]
pub(crate) struct Plane {
    held: Arc<Mutex<BTreeMap<String, Integration>>>,
    revision: Arc<AtomicUsize>,
    /// Calls that changed something, or would have.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    pub(crate) filters: Arc<Mutex<Vec<String>>>,
    pub(crate) explained: Arc<Mutex<ExplainTopicResponse>>,
    /// When set, creates wait for each other here.
    pub(crate) meeting: Arc<Mutex<Option<Arc<Barrier>>>>,
    busy: Arc<AtomicUsize>,
    pub(crate) busy_max: Arc<AtomicUsize>,
}

/// Where the password stands in a document.
fn password(document: &str) -> Option<std::ops::Range<usize>> {
    let start = document.find("\"password\":")? + "\"password\":".len();
    let end = start + 1 + document[start + 1..].find('"')? + 1;
    Some(start..end)
}

fn masked(mut integration: Integration) -> Integration {
    if let Some(span) = password(&integration.configuration_json) {
        integration.configuration_json.replace_range(span, MASK);
    }
    integration
}

fn invalid(field: &str, text: &str) -> Status {
    let violations = vec![FieldViolation::new(field, text)];
    refusal(Code::InvalidArgument, &format!("{field}: {text}"), "INVALID_INTEGRATION", violations)
}

impl Plane {
    fn next(&self) -> u64 {
        self.revision.fetch_add(1, Ordering::Relaxed) as u64 + 1
    }

    /// Puts one there, with the uid that its number makes.
    pub(crate) fn hold(&self, number: u32, integration: Integration) -> Integration {
        let uid = uid(number);
        let revision = self.next();
        let held = Integration {
            name: format!("integrations/{uid}"),
            uid: uid.clone(),
            revision,
            etag: format!("\"{revision}\""),
            ..integration
        };
        self.held.lock().insert(uid, held.clone());
        held
    }

    pub(crate) fn get(&self, name: &str) -> Option<Integration> {
        self.held.lock().values().find(|one| one.display_name == name).cloned()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.held.lock().values().map(|one| one.display_name.clone()).collect();
        names.sort();
        names
    }

    /// What has been asked since the last time.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        let mut calls: Vec<_> = self.calls.lock().drain(..).collect();
        calls.sort();
        calls
    }

    fn of(&self, name: &str) -> Result<Integration, Status> {
        let held = self.held.lock();
        let found = held.get(name.trim_start_matches("integrations/")).cloned();
        found.ok_or_else(|| refusal(Code::NotFound, "no such integration", "NOT_FOUND", vec![]))
    }

    fn check(&self, one: &Integration) -> Result<(), Status> {
        if one.configuration_json.contains(MASK) {
            return Err(invalid("integration.configuration_json", "is the mask of a secret"));
        }
        let document: Value = serde_json::from_str(&one.configuration_json)
            .map_err(|error| invalid("integration.configuration_json", &error.to_string()))?;
        if document["topicFilters"].as_array().is_none_or(Vec::is_empty) {
            return Err(invalid("integration.configuration_json.topicFilters", "are missing"));
        }
        let taken = self
            .held
            .lock()
            .values()
            .any(|held| held.display_name == one.display_name && held.uid != one.uid);
        if taken {
            return Err(refusal(Code::AlreadyExists, "the name is taken", "NAME_TAKEN", vec![]));
        }
        Ok(())
    }

    fn save(&self, mut one: Integration) -> Integration {
        one.revision = self.next();
        one.etag = format!("\"{}\"", one.revision);
        self.held.lock().insert(one.uid.clone(), one.clone());
        one
    }
}

pub(crate) fn uid(number: u32) -> String {
    format!("0e2ffa8e-52c9-4a3f-8d0f-{number:012}")
}

#[tonic::async_trait]
impl IntegrationService for Plane {
    async fn create_integration(
        &self,
        request: Request<CreateIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        let mut one = request.integration.unwrap_or_default();
        let how = if request.validate_only { " (validate only)" } else { "" };
        self.calls.lock().push(format!("create {}{how}", one.display_name));
        self.busy_max.fetch_max(self.busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let meeting = self.meeting.lock().clone();
        if let Some(meeting) = meeting {
            meeting.wait().await;
        }
        self.busy.fetch_sub(1, Ordering::SeqCst);
        one.uid = match request.integration_id.as_str() {
            "" => uid(900 + self.next() as u32),
            given => given.to_owned(),
        };
        one.name = format!("integrations/{}", one.uid);
        self.check(&one)?;
        let answer = if request.validate_only { one } else { self.save(one) };
        Ok(Response::new(masked(answer)))
    }

    async fn get_integration(
        &self,
        request: Request<GetIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        self.of(&request.into_inner().name).map(masked).map(Response::new)
    }

    async fn list_integrations(
        &self,
        request: Request<ListIntegrationsRequest>,
    ) -> Result<Response<ListIntegrationsResponse>, Status> {
        let request = request.into_inner();
        self.filters.lock().push(request.filter);
        let from: usize = request.page_token.parse().unwrap_or_default();
        let held = self.held.lock();
        let found = held.values().filter(|one| one.display_name.contains(&request.text_search));
        let found: Vec<_> = found.cloned().map(masked).collect();
        let next_page_token = if found.len() > from + 2 { (from + 2).to_string() } else { String::new() };
        let total_size = found.len() as i64;
        let integrations = found.into_iter().skip(from).take(2).collect();
        Ok(Response::new(ListIntegrationsResponse { integrations, next_page_token, total_size }))
    }

    async fn update_integration(
        &self,
        request: Request<UpdateIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        let given = request.integration.unwrap_or_default();
        let held = self.of(&given.name)?;
        let mask = request.update_mask.unwrap_or_default().paths;
        let how = if request.validate_only { " (validate only)" } else { "" };
        self.calls.lock().push(format!("update {}: {}{how}", held.display_name, mask.join(", ")));
        if !given.etag.is_empty() && given.etag != held.etag {
            return Err(refusal(Code::Aborted, "it has changed", "ETAG_MISMATCH", vec![]));
        }
        let mut new = held.clone();
        for path in &mask {
            match path.as_str() {
                "display_name" => new.display_name.clone_from(&given.display_name),
                "enabled" => new.enabled = given.enabled,
                "labels" => new.labels.clone_from(&given.labels),
                "description" => new.description.clone_from(&given.description),
                "configuration_json" => {
                    new.configuration_json.clone_from(&given.configuration_json);
                    let stored = password(&held.configuration_json);
                    if let (Some(span), Some(stored)) = (password(&given.configuration_json), stored)
                        && given.configuration_json[span.clone()] == *MASK
                    {
                        new.configuration_json.replace_range(span, &held.configuration_json[stored]);
                    }
                }
                "type" => return Err(refusal(Code::InvalidArgument, "its type", "TYPE_IMMUTABLE", vec![])),
                other => return Err(invalid("update_mask", other)),
            }
        }
        self.check(&new)?;
        let answer = match (new == held, request.validate_only) {
            (true, _) => held,
            (false, true) => Integration { revision: 0, etag: String::new(), ..new },
            (false, false) => self.save(new),
        };
        Ok(Response::new(masked(answer)))
    }

    async fn delete_integration(
        &self,
        request: Request<DeleteIntegrationRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let held = self.of(&request.name)?;
        self.calls.lock().push(format!("delete {} {}", held.display_name, request.etag));
        self.held.lock().remove(&held.uid);
        Ok(Response::new(()))
    }

    async fn list_kinds(&self, _: Request<ListKindsRequest>) -> Result<Response<ListKindsResponse>, Status> {
        let kind = |name: &str| Kind {
            name: name.to_owned(),
            json_schema: SCHEMA.to_owned(),
            service_ids: vec!["ie1".to_owned()],
        };
        Ok(Response::new(ListKindsResponse { kinds: ["HTTP", "KAFKA", "MQTT"].map(kind).into() }))
    }

    async fn explain_topic(
        &self,
        request: Request<ExplainTopicRequest>,
    ) -> Result<Response<ExplainTopicResponse>, Status> {
        self.calls.lock().push(format!("explain {}", request.into_inner().topic));
        Ok(Response::new(self.explained.lock().clone()))
    }

    async fn enable_integration(
        &self,
        _: Request<proto::EnableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn disable_integration(
        &self,
        _: Request<proto::DisableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn restart_integration(
        &self,
        _: Request<proto::RestartIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn check_connection(
        &self,
        _: Request<proto::CheckConnectionRequest>,
    ) -> Result<Response<proto::CheckConnectionResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn get_integration_stats(
        &self,
        _: Request<proto::GetIntegrationStatsRequest>,
    ) -> Result<Response<proto::IntegrationStats>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    type WatchIntegrationsStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<proto::WatchIntegrationsResponse, Status>>>;

    async fn watch_integrations(
        &self,
        _: Request<proto::WatchIntegrationsRequest>,
    ) -> Result<Response<Self::WatchIntegrationsStream>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

/// The plane on a port, and a folder for files.
pub(crate) struct Served {
    pub(crate) plane: Plane,
    pub(crate) folder: tempfile::TempDir,
    address: String,
    runtime: tokio::runtime::Runtime,
}

pub(crate) fn serve() -> Served {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("a bound address"));
    let plane = Plane::default();
    let server =
        tonic::transport::Server::builder().add_service(IntegrationServiceServer::new(plane.clone()));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    runtime.spawn(server.serve_with_incoming(incoming));
    Served { plane, folder: tempfile::tempdir().expect("a folder"), address, runtime }
}

/// How a command has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Served {
    /// Runs in the folder.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().expect("tbmqctl starts").into()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tbmqctl(arguments);
        command.env("TBMQCTL_SERVER", &self.address).current_dir(self.folder.path());
        command.stdin(std::process::Stdio::null());
        command
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }

    pub(crate) fn read(&self, path: impl AsRef<Path>) -> String {
        std::fs::read_to_string(self.folder.path().join(path)).expect("a file")
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }
}

/// An integration as the server would hold it.
pub(crate) fn http(name: &str, url: &str) -> Integration {
    Integration {
        display_name: name.to_owned(),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json: format!(
            r#"{{ "topicFilters": ["a/#"], "clientConfiguration": {{"restEndpointUrl":"{url}", "password":"s3cret"}} }}"#
        ),
        ..Integration::default()
    }
}
