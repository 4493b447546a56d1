//! Against a control plane that answers as told: what is asked, and how answers and refusals appear.

use std::{
    collections::{HashMap, VecDeque},
    io::Write,
    process::Output,
    sync::Arc,
};

use parking_lot::Mutex;
use tbmq_proto::control::{
    CheckConnectionRequest, CheckConnectionResponse, CreateIntegrationRequest, DeleteIntegrationRequest,
    DisableIntegrationRequest, EnableIntegrationRequest, GetIntegrationRequest, Integration, Kind,
    ListIntegrationsRequest, ListIntegrationsResponse, ListKindsRequest, ListKindsResponse,
    RestartIntegrationRequest, UpdateIntegrationRequest, WatchIntegrationsRequest, WatchIntegrationsResponse,
    integration_service_server::{IntegrationService, IntegrationServiceServer},
    watch_integrations_response::Type,
};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::{stderr, tbmqctl};

const UID: &str = "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a";

/// Keeps integrations in memory, two to a page; refuses the name `bad`.
#[derive(Clone, Default)]
struct Fake {
    held: Arc<Mutex<Vec<Integration>>>,
    created: Arc<Mutex<Vec<CreateIntegrationRequest>>>,
    updated: Arc<Mutex<Vec<UpdateIntegrationRequest>>>,
    deadlines: Arc<Mutex<Vec<String>>>,
    /// What each watch is told, in turn.
    told: Arc<Mutex<VecDeque<Vec<Told>>>>,
    watched: Arc<Mutex<Vec<WatchIntegrationsRequest>>>,
}

type Told = Result<WatchIntegrationsResponse, Status>;

pub(crate) fn refusal(code: Code, text: &str, reason: &str, violations: Vec<FieldViolation>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "tbmq", HashMap::new());
    details.set_bad_request(violations);
    Status::with_error_details(code, text, details)
}

impl Fake {
    fn find(&self, name: &str) -> Result<Response<Integration>, Status> {
        let held = self.held.lock();
        let found = held.iter().find(|one| one.name == name).cloned();
        found
            .map(Response::new)
            .ok_or_else(|| refusal(Code::NotFound, "no such integration", "NOT_FOUND", vec![]))
    }
}

#[tonic::async_trait]
impl IntegrationService for Fake {
    async fn create_integration(
        &self,
        request: Request<CreateIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        if let Some(deadline) = request.metadata().get("grpc-timeout") {
            self.deadlines.lock().push(deadline.to_str().unwrap_or_default().to_owned());
        }
        let request = request.into_inner();
        self.created.lock().push(request.clone());
        let mut integration = request.integration.unwrap_or_default();
        if integration.display_name == "bad" {
            let violations = vec![
                FieldViolation::new("configuration.topicFilters[0]", "is empty"),
                FieldViolation::new("configuration.clientConfiguration.restEndpointUrl", "has no host"),
            ];
            return Err(refusal(
                Code::InvalidArgument,
                "the integration is not valid",
                "INVALID_INTEGRATION",
                violations,
            ));
        }
        integration.uid =
            if request.integration_id.is_empty() { UID.to_owned() } else { request.integration_id.clone() };
        integration.name = format!("integrations/{}", integration.uid);
        integration.revision = 1;
        self.held.lock().push(integration.clone());
        Ok(Response::new(integration))
    }

    async fn get_integration(
        &self,
        request: Request<GetIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        self.find(&request.into_inner().name)
    }

    async fn list_integrations(
        &self,
        request: Request<ListIntegrationsRequest>,
    ) -> Result<Response<ListIntegrationsResponse>, Status> {
        let request = request.into_inner();
        let from: usize = request.page_token.parse().unwrap_or_default();
        let held = self.held.lock();
        let found: Vec<_> =
            held.iter().filter(|one| one.display_name.contains(&request.text_search)).cloned().collect();
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
        self.updated.lock().push(request.clone());
        Ok(Response::new(request.integration.unwrap_or_default()))
    }

    async fn delete_integration(
        &self,
        request: Request<DeleteIntegrationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.find(&name)?;
        self.held.lock().retain(|one| one.name != name);
        Ok(Response::new(()))
    }

    async fn enable_integration(
        &self,
        request: Request<EnableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        self.find(&request.into_inner().name)
    }

    async fn disable_integration(
        &self,
        request: Request<DisableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        self.find(&request.into_inner().name)
    }

    async fn restart_integration(
        &self,
        request: Request<RestartIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        self.find(&request.into_inner().name)
    }

    async fn check_connection(
        &self,
        _: Request<CheckConnectionRequest>,
    ) -> Result<Response<CheckConnectionResponse>, Status> {
        Ok(Response::new(CheckConnectionResponse {
            error: "connection refused".to_owned(),
            executor_id: "ie1".to_owned(),
            ..CheckConnectionResponse::default()
        }))
    }

    async fn get_integration_stats(
        &self,
        _: Request<tbmq_proto::control::GetIntegrationStatsRequest>,
    ) -> Result<Response<tbmq_proto::control::IntegrationStats>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn explain_topic(
        &self,
        _: Request<tbmq_proto::control::ExplainTopicRequest>,
    ) -> Result<Response<tbmq_proto::control::ExplainTopicResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    type WatchIntegrationsStream = tokio_stream::Iter<std::vec::IntoIter<Told>>;

    async fn watch_integrations(
        &self,
        request: Request<WatchIntegrationsRequest>,
    ) -> Result<Response<Self::WatchIntegrationsStream>, Status> {
        assert!(request.metadata().get("grpc-timeout").is_none(), "a watch has no end");
        self.watched.lock().push(request.into_inner());
        let told = self.told.lock().pop_front();
        let told = told.ok_or_else(|| refusal(Code::InvalidArgument, "enough", "ENOUGH", vec![]))?;
        Ok(Response::new(tokio_stream::iter(told)))
    }

    async fn list_kinds(&self, _: Request<ListKindsRequest>) -> Result<Response<ListKindsResponse>, Status> {
        let json_schema = r#"{ "type": "object" }"#.to_owned();
        let kind = Kind { name: "HTTP".to_owned(), json_schema, service_ids: vec![] };
        Ok(Response::new(ListKindsResponse { kinds: vec![kind] }))
    }
}

struct Served {
    fake: Fake,
    address: String,
    _runtime: tokio::runtime::Runtime,
}

fn serve() -> Served {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("a bound address"));
    let fake = Fake::default();
    let server = tonic::transport::Server::builder().add_service(IntegrationServiceServer::new(fake.clone()));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    runtime.spawn(server.serve_with_incoming(incoming));
    Served { fake, address, _runtime: runtime }
}

impl Served {
    fn run(&self, arguments: &[&str]) -> Output {
        tbmqctl(arguments).env("TBMQCTL_SERVER", &self.address).output().expect("tbmqctl starts")
    }

    fn hold(&self, names: &[&str]) {
        let mut held = self.fake.held.lock();
        held.extend(names.iter().enumerate().map(|(index, name)| {
            let uid = format!("0e2ffa8e-52c9-4a3f-8d0f-{index:012}");
            Integration {
                name: format!("integrations/{uid}"),
                uid,
                display_name: (*name).to_owned(),
                r#type: "HTTP".to_owned(),
                etag: "e1".to_owned(),
                configuration_json: r#"{"topicFilters":["a"],"clientConfiguration":{}}"#.to_owned(),
                ..Integration::default()
            }
        }));
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_json_document_arrives_with_its_configuration_byte_for_byte_and_a_deadline() {
    let served = serve();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let configuration = "{ \"topicFilters\" : [\"a/#\"],\n  \"clientConfiguration\":{\"x\": 1.50} }";
    write!(
        file,
        r#"{{"id":"{UID}","name":"n","type":"HTTP","enabled":true,"configuration":{configuration}}}"#
    )
    .unwrap();
    let output =
        served.run(&["integration", "create", "-f", file.path().to_str().unwrap(), "--timeout", "7s"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("NAME  TYPE"), "{}", stdout(&output));
    let created = served.fake.created.lock().remove(0);
    assert_eq!(created.integration_id, UID);
    assert_eq!(created.integration.unwrap().configuration_json, configuration);
    assert!(!created.request_id.is_empty());
    assert_eq!(*served.fake.deadlines.lock(), ["7000000u"]);
}

#[test]
fn a_refusal_shows_every_field_and_is_exit_code_1() {
    let served = serve();
    let output =
        served.run(&["integration", "create", "--name", "bad", "--filter", "", "--url", "http:///x"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "error: the integration is not valid\n  configuration.topicFilters[0]: is empty\n  \
         configuration.clientConfiguration.restEndpointUrl: has no host\nreason: INVALID_INTEGRATION\n"
    );
}

#[test]
fn integrations_are_found_by_name_beyond_the_first_page() {
    let served = serve();
    served.hold(&["demo1", "demo2", "demo3", "demo4", "demo"]);
    let output = served.run(&["integration", "get", "demo", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(found["uid"], "0e2ffa8e-52c9-4a3f-8d0f-000000000004");
    let all = served.run(&["integration", "list", "-o", "json"]);
    let all: Vec<serde_json::Value> = serde_json::from_str(&stdout(&all)).unwrap();
    assert_eq!(all.len(), 5);
    assert_eq!(stdout(&served.run(&["integration", "list", "--limit", "3"])).lines().count(), 4);
    let nobody = served.run(&["integration", "get", "dem"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(stderr(&nobody).contains("there is no integration named \"dem\""), "{}", stderr(&nobody));
}

#[test]
fn a_flag_changes_only_its_field_and_guards_against_lost_updates() {
    let served = serve();
    served.hold(&["demo"]);
    let output = served.run(&["integration", "update", "demo", "--filter", "b/#"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let updated = served.fake.updated.lock().remove(0);
    assert_eq!(updated.update_mask.unwrap().paths, ["configuration_json"]);
    let integration = updated.integration.unwrap();
    assert_eq!(integration.etag, "e1");
    assert_eq!(integration.configuration_json, r#"{"topicFilters":["b/#"],"clientConfiguration":{}}"#);
}

#[test]
fn a_printed_document_updates_the_integration_that_it_came_from() {
    let served = serve();
    served.hold(&["demo"]);
    let printed = served.run(&["integration", "get", "demo", "-o", "yaml"]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&printed.stdout).unwrap();
    let output = served.run(&["integration", "update", "-f", file.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let updated = served.fake.updated.lock().remove(0);
    assert_eq!(updated.update_mask, None);
    let integration = updated.integration.unwrap();
    assert_eq!(integration.name, "integrations/0e2ffa8e-52c9-4a3f-8d0f-000000000000");
    assert_eq!(integration.etag, "e1");
}

#[test]
fn what_was_done_is_shown_even_when_a_later_one_fails() {
    let served = serve();
    served.hold(&["demo"]);
    let output = served.run(&["integration", "enable", "demo", UID]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("demo"), "{}", stdout(&output));
    assert!(stderr(&output).contains("reason: NOT_FOUND"), "{}", stderr(&output));
    let output = served.run(&["integration", "delete", "demo"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), ""));
    assert_eq!(stderr(&output), "deleted demo\n");
}

#[test]
fn a_negative_check_is_data_on_stdout_and_exit_code_1() {
    let served = serve();
    let output = served.run(&["integration", "check", UID]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "failed, checked by ie1 in 0 ms\n");
    assert_eq!(stderr(&output), "error: connection refused\n");
    let kinds = served.run(&["integration", "kinds", "-o", "json"]);
    let kinds: serde_json::Value = serde_json::from_str(&stdout(&kinds)).unwrap();
    assert_eq!(kinds[0]["jsonSchema"]["type"], "object");
}

fn told(what: Type, name: &str, revision: u64) -> Told {
    let integration = (what != Type::Bookmark).then(|| Integration {
        name: format!("integrations/{UID}"),
        uid: UID.to_owned(),
        display_name: name.to_owned(),
        configuration_json: "{}".to_owned(),
        ..Integration::default()
    });
    Ok(WatchIntegrationsResponse { r#type: what.into(), integration, revision })
}

#[test]
fn a_lost_watch_resumes_where_it_was_and_lists_again_when_it_is_too_late() {
    let served = serve();
    served.fake.told.lock().extend([
        vec![
            told(Type::Added, "demo", 0),
            told(Type::Bookmark, "", 5),
            told(Type::Modified, "demo2", 7),
            Err(Status::unavailable("stopping")),
        ],
        vec![told(Type::Bookmark, "", 9)],
        vec![Err(refusal(Code::OutOfRange, "old", "REVISION_COMPACTED", vec![]))],
        vec![
            told(Type::Added, "demo2", 0),
            Err(refusal(Code::ResourceExhausted, "slow", "SLOW_WATCHER", vec![])),
        ],
        vec![told(Type::Bookmark, "", 12), told(Type::Deleted, "", 13)],
    ]);
    let output = served.run(&["integration", "watch", UID, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let watched: Vec<_> = served.fake.watched.lock().drain(..).collect();
    let after: Vec<_> = watched.iter().map(|request| request.after_revision).collect();
    // The last watch but two ended within its list.
    assert_eq!(after, [None, Some(7), Some(9), None, None, Some(13)]);
    assert!(watched.iter().all(|request| request.name == format!("integrations/{UID}")));
    let lines: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> =
        lines.iter().map(|line| format!("{} {}", line["type"].as_str().unwrap(), line["revision"])).collect();
    let expected =
        ["ADDED 0", "BOOKMARK 5", "MODIFIED 7", "BOOKMARK 9", "ADDED 0", "BOOKMARK 12", "DELETED 13"];
    assert_eq!(shown, expected);
    assert_eq!(lines[2]["integration"]["displayName"], "demo2");
    let name = format!("integrations/{UID}");
    assert_eq!(lines[6]["integration"], serde_json::json!({ "name": name, "uid": UID }));
    let text = stderr(&output);
    assert_eq!(text.matches("the watch was lost: ").count(), 4, "{text}");
    assert!(
        text.contains("not kept any more; listing what exists") && text.contains("reason: ENOUGH"),
        "{text}"
    );
}

#[test]
fn a_watch_shows_people_one_line_per_change() {
    let served = serve();
    served.fake.told.lock().push_back(vec![
        told(Type::Added, "demo", 0),
        told(Type::Bookmark, "", 5),
        told(Type::Deleted, "", 6),
    ]);
    let output = served.run(&["integration", "watch", "--after-revision", "4"]);
    assert_eq!(served.fake.watched.lock()[0].after_revision, Some(4));
    let text = stdout(&output);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["CHANGE", "NAME", "TYPE", "ENABLED", "PHASE", "REVISION", "UID"]);
    assert_eq!(lines[1], ["ADDED", "demo", "-", "-", "-", "-", UID]);
    assert_eq!(lines[2], ["DELETED", "demo", "-", "-", "-", "6", UID], "its name is remembered");
    assert_eq!(lines.len(), 3);
}
