//! The services as a client sees them.

use std::time::{Duration, Instant};

use tbmq_integration::{validation::ASK_EVERY, wire::Change};
use tbmq_proto::{
    control::{
        CheckConnectionRequest, CreateIntegrationRequest, DeleteIntegrationRequest, Integration,
        ListEventsRequest, ListIntegrationsRequest, ListKindsRequest, ListNodesRequest,
        RestartIntegrationRequest, UpdateIntegrationRequest, event::Body,
        integration_service_client::IntegrationServiceClient,
    },
    node::{Heartbeat, Hello, NodeMessage, control_message::Message, node_message},
    wire::Role,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::support::{
    Cluster, ControlPlane, DOCUMENT, Verdict, eventually, fields, id_of, integration, phase, reason,
};

const NOBODY: &str = "integrations/00000000-0000-0000-0000-000000000001";

#[tokio::test]
async fn an_accepted_integration_is_saved_subscribed_and_running_within_a_second_or_so() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let began = Instant::now();
    let created = plane.create("one").await.unwrap();
    let id = id_of(&created);
    let topic = cluster.catalogue.messages(id, 1).name;
    assert!(cluster.exists(&topic).await, "the topic exists when the call returns");
    let subscriptions = cluster.latest(&cluster.catalogue.integration_subscriptions().name).await;
    let (revision, value) = &subscriptions[&created.uid];
    assert_eq!(*revision, Some(created.revision));
    let text = String::from_utf8_lossy(value.as_ref().unwrap()).into_owned();
    assert!(text.contains("a/#") && text.contains("b/+"));
    eventually("running", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let desired = executor.held(id).unwrap();
    assert_eq!((desired.revision, desired.generation), (created.revision, 1));
    let Change::Apply { target, .. } = desired.change else { panic!() };
    assert_eq!(&*target.configuration, DOCUMENT, "sent byte for byte");
    let read = plane.get(&created.name).await.unwrap();
    let status = read.status.unwrap();
    assert_eq!(status.lag.unwrap().messages, 0);
    assert_eq!((status.service_id.as_str(), status.holders[0].observed_revision), ("ie1", created.revision));
    assert_eq!(read.configuration_json, DOCUMENT.replace("s3cret", "********"));
}

#[tokio::test]
async fn without_an_executor_the_call_times_out_says_so_and_saves_nothing() {
    let cluster = Cluster::new();
    let plane = cluster
        .control_plane_with("cp1", |config| config.control.validation_timeout = Duration::from_millis(300))
        .await;
    let status = plane.create("one").await.unwrap_err();
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "VALIDATION_TIMEOUT".to_owned()));
    assert!(status.message().contains("No live executor serves HTTP"), "{}", status.message());
    assert!(plane.list().await.is_empty());
    let downlink = cluster.catalogue.downlink(&"HTTP".parse().unwrap()).name;
    eventually("the request's key is withdrawn", async || {
        let latest = cluster.latest(&downlink).await;
        latest.len() == 1 && latest.values().all(|(_, value)| value.is_none())
    })
    .await;
    // A live but silent one is named.
    let _executor = cluster.executor(Verdict::Silent).await;
    eventually("the executor is known", async || {
        plane.create("one").await.unwrap_err().message().contains("served by ie1")
    })
    .await;
}

#[tokio::test]
async fn a_refused_configuration_is_not_saved_and_its_violations_are_told() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Refuse).await;
    for enabled in [true, false] {
        let status = plane.create_from(Integration { enabled, ..integration("one") }).await.unwrap_err();
        assert_eq!(reason(&status), (Code::FailedPrecondition, "CONFIGURATION_REJECTED".to_owned()));
        assert_eq!(status.message(), "the URL is not to my liking");
        assert_eq!(fields(&status), ["integration.configuration_json.clientConfiguration.restEndpointUrl"]);
    }
    assert!(plane.list().await.is_empty());
}

#[tokio::test]
async fn a_rejected_update_leaves_the_integration_untouched() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    eventually("held", async || executor.held(id_of(&created)).is_some()).await;
    let downlink = cluster.catalogue.downlink(&"HTTP".parse().unwrap()).name;
    let before = cluster.latest(&downlink).await[&created.uid].clone();
    executor.decide(Verdict::Refuse);
    let document = DOCUMENT.replace("/x", "/y");
    let update =
        Integration { name: created.name.clone(), configuration_json: document, ..integration("two") };
    let status = plane.update(update, &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let read = plane.get(&created.name).await.unwrap();
    assert_eq!((read.revision, read.display_name.as_str()), (created.revision, "one"));
    assert_eq!(cluster.latest(&downlink).await[&created.uid], before);
}

#[tokio::test]
async fn an_executor_that_missed_the_first_request_answers_the_second() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::AcceptSecond).await;
    let began = Instant::now();
    plane.create("one").await.unwrap();
    assert!(began.elapsed() >= ASK_EVERY);
    let requests = executor.requests.lock().clone();
    assert_eq!(requests.len(), 2);
    assert_ne!(requests[0].id, requests[1].id);
    let apart = (requests[0].deadline_ms - requests[1].deadline_ms).abs();
    assert!(apart < 100, "one deadline for both, {apart} ms apart");
}

#[tokio::test]
async fn a_malformed_request_is_answered_with_all_its_problems_at_once() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let document = r#"{"topicFilters":["a/#/b",1,"ok"],"clientConfiguration":{},"extra":1}"#;
    let bad = Integration {
        display_name: " ".to_owned(),
        r#type: "http".to_owned(),
        configuration_json: document.to_owned(),
        ..Integration::default()
    };
    let status = plane.create_from(bad).await.unwrap_err();
    assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_INTEGRATION".to_owned()));
    assert_eq!(
        fields(&status),
        [
            "integration.type",
            "integration.display_name",
            "integration.configuration_json.topicFilters[1]",
            "integration.configuration_json.extra",
        ]
    );
    let bad = Integration { configuration_json: DOCUMENT.replace("b/+", "b/+c"), ..integration("x") };
    let status = plane.create_from(bad).await.unwrap_err();
    assert_eq!(fields(&status), ["integration.configuration_json.topicFilters[1]"]);
    let unknown = Integration { r#type: "PULSAR".to_owned(), ..integration("x") };
    assert_eq!(fields(&plane.create_from(unknown).await.unwrap_err()), ["integration.type"]);
    for name in ["", "x", "integrations/1"] {
        assert_eq!(plane.get(name).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let request = ListIntegrationsRequest { page_token: "x".to_owned(), ..Default::default() };
    let status = plane.integrations.clone().list_integrations(request).await.unwrap_err();
    assert_eq!(fields(&status), ["page_token"]);
}

#[tokio::test]
async fn conflicts_have_the_codes_of_the_table() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let one = plane.create("one").await.unwrap();
    let two = plane.create("two").await.unwrap();
    let taken = (Code::AlreadyExists, "NAME_TAKEN".to_owned());
    assert_eq!(reason(&plane.create("one").await.unwrap_err()), taken);
    let rename = Integration { display_name: "one".to_owned(), ..two.clone() };
    assert_eq!(reason(&plane.update(rename, &["display_name"]).await.unwrap_err()), taken);

    let changed = plane
        .update(Integration { description: "d".to_owned(), ..one.clone() }, &["description"])
        .await
        .unwrap();
    assert_ne!(changed.etag, one.etag);
    let stale = (Code::Aborted, "ETAG_MISMATCH".to_owned());
    assert_eq!(reason(&plane.update(one.clone(), &["description"]).await.unwrap_err()), stale);
    let request =
        DeleteIntegrationRequest { name: one.name.clone(), etag: one.etag.clone(), ..Default::default() };
    assert_eq!(reason(&plane.integrations.clone().delete_integration(request).await.unwrap_err()), stale);

    let retyped = Integration { r#type: "KAFKA".to_owned(), ..changed.clone() };
    let status = plane.update(retyped, &[]).await.unwrap_err();
    assert_eq!(reason(&status), (Code::InvalidArgument, "TYPE_IMMUTABLE".to_owned()));
    assert_eq!(fields(&plane.update(changed, &["status"]).await.unwrap_err()), ["update_mask"]);

    let missing = (Code::NotFound, "NOT_FOUND".to_owned());
    let status = plane.get(NOBODY).await.unwrap_err();
    assert_eq!(status.get_error_details().resource_info().unwrap().resource_name, NOBODY);
    assert_eq!(reason(&status), missing);
    assert_eq!(reason(&plane.delete(NOBODY).await.unwrap_err()), missing);
    assert_eq!(reason(&plane.enable(NOBODY, true).await.unwrap_err()), missing);
    assert_eq!(
        reason(&plane.update(Integration { name: NOBODY.to_owned(), ..one }, &[]).await.unwrap_err()),
        missing
    );

    plane.enable(&two.name, false).await.unwrap();
    let request = RestartIntegrationRequest { name: two.name, ..Default::default() };
    let status = plane.integrations.clone().restart_integration(request).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "INTEGRATION_DISABLED".to_owned()));
}

#[tokio::test]
async fn too_many_validations_are_refused_with_a_time_to_come_back() {
    let cluster = Cluster::new();
    let plane = cluster
        .control_plane_with("cp1", |config| config.control.validations_max = std::num::NonZeroUsize::MIN)
        .await;
    let executor = cluster.executor(Verdict::Silent).await;
    let waiting = {
        let mut client = plane.integrations.clone();
        let request =
            CreateIntegrationRequest { integration: Some(integration("one")), ..Default::default() };
        tokio::spawn(async move { client.create_integration(request).await })
    };
    eventually("the first is asked", async || !executor.requests.lock().is_empty()).await;
    let status = plane.create("two").await.unwrap_err();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
    // A cancelled call saves nothing and makes room.
    waiting.abort();
    executor.decide(Verdict::Accept);
    eventually("there is room", async || plane.create("three").await.is_ok()).await;
    let names: Vec<String> =
        plane.list().await.into_iter().map(|integration| integration.display_name).collect();
    assert_eq!(names, ["three"]);
}

#[tokio::test]
async fn the_callers_deadline_shortens_the_wait_and_the_answer_still_comes() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let mut request = tonic::Request::new(CreateIntegrationRequest {
        integration: Some(integration("one")),
        ..Default::default()
    });
    request.set_timeout(Duration::from_secs(2));
    let began = Instant::now();
    let status = plane.integrations.clone().create_integration(request).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "VALIDATION_TIMEOUT".to_owned()));
}

#[tokio::test]
async fn a_bus_that_is_away_makes_calls_unavailable_and_saves_nothing() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    cluster.bus.hold(true);
    let status = plane.create("one").await.unwrap_err();
    cluster.bus.hold(false);
    assert_eq!(reason(&status), (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
    assert!(plane.list().await.is_empty());
}

#[tokio::test]
async fn a_failed_connection_check_is_an_answer_and_not_an_error() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let by_name = CheckConnectionRequest { name: created.name.clone(), ..Default::default() };
    let check = async |request: &CheckConnectionRequest| {
        plane.integrations.clone().check_connection(request.clone()).await.map(tonic::Response::into_inner)
    };
    let report = check(&by_name).await.unwrap();
    assert!(report.ok && report.stages[0].ok);
    assert_eq!(report.executor_id, "ie1");
    assert!(executor.requests.lock().last().unwrap().configuration.contains("s3cret"));
    executor.decide(Verdict::Refuse);
    let report = check(&by_name).await.unwrap();
    assert_eq!((report.ok, report.error.as_str()), (false, "the URL is not to my liking"));
    assert_eq!(report.violations[0].path, "clientConfiguration.restEndpointUrl");
    // Topic filters have no part in it.
    let document = r#"{"clientConfiguration":{}}"#.to_owned();
    let inline = Integration { configuration_json: document, ..integration("unsaved") };
    let report =
        check(&CheckConnectionRequest { integration: Some(inline), ..Default::default() }).await.unwrap();
    assert!(!report.ok);
    let status = check(&CheckConnectionRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_request_id_makes_a_call_happen_once() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let labels = (0..20).map(|i| (format!("k{i}"), "v".to_owned())).collect();
    let request = CreateIntegrationRequest {
        integration: Some(Integration { labels, ..integration("one") }),
        request_id: "r1".to_owned(),
        ..Default::default()
    };
    let create = async |request: &CreateIntegrationRequest| {
        plane.integrations.clone().create_integration(request.clone()).await.map(tonic::Response::into_inner)
    };
    let first = create(&request).await.unwrap();
    let asked = executor.requests.lock().len();
    let again = create(&request).await.unwrap();
    assert_eq!((again.uid, again.revision), (first.uid.clone(), first.revision));
    assert_eq!(executor.requests.lock().len(), asked, "not validated again");
    let other = CreateIntegrationRequest { integration: Some(integration("two")), ..request };
    assert_eq!(fields(&create(&other).await.unwrap_err()), ["request_id"]);
    let delete =
        DeleteIntegrationRequest { name: first.name, request_id: "r2".to_owned(), ..Default::default() };
    for _ in 0..2 {
        plane.integrations.clone().delete_integration(delete.clone()).await.unwrap();
    }
}

#[tokio::test]
async fn validate_only_does_everything_but_save() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let request = CreateIntegrationRequest {
        integration: Some(integration("one")),
        validate_only: true,
        ..Default::default()
    };
    let previewed =
        plane.integrations.clone().create_integration(request.clone()).await.unwrap().into_inner();
    assert!(!previewed.configuration_json.contains("s3cret"));
    assert!(plane.list().await.is_empty());
    assert_eq!(executor.requests.lock().len(), 1);
    executor.decide(Verdict::Refuse);
    let status = plane.integrations.clone().create_integration(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    executor.decide(Verdict::Accept);
    let created = plane.create("one").await.unwrap();
    let update = UpdateIntegrationRequest {
        integration: Some(Integration { name: created.name.clone(), ..integration("two") }),
        validate_only: true,
        ..Default::default()
    };
    let previewed = plane.integrations.clone().update_integration(update).await.unwrap().into_inner();
    assert_eq!(previewed.display_name, "two");
    assert_eq!((previewed.revision, previewed.etag.as_str()), (0, ""), "it has no version yet");
    assert_eq!(plane.get(&created.name).await.unwrap().display_name, "one");
}

#[tokio::test]
async fn an_update_that_changes_nothing_makes_no_revision_and_its_preview_says_so() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let asked = executor.requests.lock().len();
    let update = async |configuration_json: String, validate_only| {
        let integration =
            Integration { name: created.name.clone(), configuration_json, ..integration("one") };
        let request =
            UpdateIntegrationRequest { integration: Some(integration), validate_only, ..Default::default() };
        plane.integrations.clone().update_integration(request).await.unwrap().into_inner()
    };
    let secret = integration("one").configuration_json;
    assert!(secret.contains("s3cret"));
    for same in [&secret, &created.configuration_json] {
        for validate_only in [true, false] {
            let answer = update(same.clone(), validate_only).await;
            assert_eq!((answer.revision, &answer.etag), (created.revision, &created.etag));
        }
    }
    assert_eq!(executor.requests.lock().len(), asked, "nothing was to be validated");
    let other = secret.replace("s3cret", "an0ther");
    assert_eq!(update(other.clone(), true).await.etag, "", "another secret is a change");
    assert!(update(other, false).await.revision > created.revision);
}

#[tokio::test]
async fn pages_cover_everything_once() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    for i in 0..5 {
        plane.create(&format!("Name {i}")).await.unwrap();
    }
    plane.create("other").await.unwrap();
    let mut request =
        ListIntegrationsRequest { page_size: 2, text_search: "name".to_owned(), ..Default::default() };
    let mut names = Vec::new();
    loop {
        let page = plane.integrations.clone().list_integrations(request.clone()).await.unwrap().into_inner();
        assert_eq!(page.total_size, 5);
        names.extend(page.integrations.into_iter().map(|integration| integration.display_name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names, ["Name 0", "Name 1", "Name 2", "Name 3", "Name 4"]);
}

#[tokio::test]
async fn enabling_disabling_and_changes_beside_the_client_need_no_executor() {
    let cluster = Cluster::new();
    let plane = cluster
        .control_plane_with("cp1", |config| config.control.validation_timeout = Duration::from_millis(300))
        .await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let id = id_of(&created);
    eventually("running", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    executor.decide(Verdict::Silent);
    let disabled = plane.enable(&created.name, false).await.unwrap();
    assert_eq!(phase(&disabled), "PHASE_DISABLED");
    assert!(disabled.disconnected_time.is_some());
    let topic = cluster.catalogue.integration_subscriptions().name;
    eventually("disabled on the bus", async || {
        executor.held(id).is_some_and(|held| held.revision == disabled.revision)
    })
    .await;
    assert!(cluster.latest(&topic).await[&created.uid].1.is_some(), "messages go on to be kept");
    // The same document, with its secret masked, another filter, and other white space.
    let document = DOCUMENT.replace("s3cret", "********").replace("\"a/#\"", " \"c/#\"");
    let update =
        Integration { name: created.name.clone(), configuration_json: document, ..Integration::default() };
    let updated = plane.update(update, &["configuration_json"]).await.unwrap();
    assert!(!updated.enabled);
    eventually("the new filter is on the bus", async || {
        let latest = cluster.latest(&topic).await;
        let (revision, value) = &latest[&created.uid];
        *revision == Some(updated.revision)
            && String::from_utf8_lossy(value.as_ref().unwrap()).contains("c/#")
    })
    .await;
    eventually("the secret is kept", async || match executor.held(id).map(|held| held.change) {
        Some(Change::Apply { target, .. }) => {
            target.configuration.contains("s3cret") && target.configuration.contains("c/#")
        }
        _ => false,
    })
    .await;
    plane.enable(&created.name, true).await.unwrap();
    eventually("running again", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE")
        .await;
    let moved = DOCUMENT.replace("s3cret", "********").replace("http://h:1", "http://evil:1");
    let update = Integration { name: created.name, configuration_json: moved, ..Integration::default() };
    let status = plane.update(update, &["configuration_json"]).await.unwrap_err();
    assert_eq!(fields(&status), ["integration.configuration_json.clientConfiguration.credentials.password"]);
}

#[tokio::test]
async fn failures_show_in_the_status_and_all_events_are_listed() {
    use tbmq_proto::integration::ComponentLifecycleEventProto as Event;
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let id = id_of(&created);
    eventually("running", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    // Records that nobody understands are skipped.
    let uplink = cluster.catalogue.uplink().name;
    cluster.put(&uplink, &created.uid, b"\xff\xff").await;
    let failed =
        executor.events().lifecycle(id, created.revision, Event::Failed, Some(&"x".repeat(5_000))).await;
    executor.events().send(id, failed).await;
    eventually("failed", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_FAILED").await;
    let status = plane.get(&created.name).await.unwrap().status.unwrap();
    assert!(status.error.ends_with("...[truncated 904 symbols]"));
    let request = ListEventsRequest { integration: created.name.clone(), page_size: 2, ..Default::default() };
    let first = plane.events.clone().list_events(request.clone()).await.unwrap().into_inner();
    let rest = ListEventsRequest { page_token: first.next_page_token, ..request };
    let rest = plane.events.clone().list_events(rest).await.unwrap().into_inner();
    let names: Vec<String> = first
        .events
        .into_iter()
        .chain(rest.events)
        .map(|event| match event.body {
            Some(Body::Lifecycle(lifecycle)) => lifecycle.event,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["FAILED", "STARTED", "CREATED"], "newest first, each once");
    let restart = RestartIntegrationRequest { name: created.name.clone(), ..Default::default() };
    let restarted = plane.integrations.clone().restart_integration(restart).await.unwrap().into_inner();
    // Its executor may have started it already.
    assert_ne!(phase(&restarted), "PHASE_FAILED", "that was the revision before");
    eventually("running", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
}

#[tokio::test]
async fn a_stalled_integration_stays_active_and_says_why_until_it_resumes() {
    use tbmq_proto::integration::ComponentLifecycleEventProto as Event;
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let id = id_of(&created);
    let shows = async |reason: &str, error: &str| {
        eventually(reason, async || {
            let integration = plane.get(&created.name).await.unwrap();
            let status = integration.status.clone().unwrap();
            phase(&integration) == "PHASE_ACTIVE"
                && (status.reason.as_str(), status.error.as_str()) == (reason, error)
        })
        .await;
    };
    shows("RUNNING", "").await;
    let report = async |event, error| {
        executor.events().lifecycle(id, created.revision, event, error).await;
    };
    report(Event::Stalled, Some("no message was confirmed for 5 s")).await;
    shows("STALLED", "no message was confirmed for 5 s").await;
    report(Event::Resumed, None).await;
    shows("RUNNING", "").await;
}

#[tokio::test]
async fn a_deleted_integration_leaves_in_order() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let id = id_of(&created);
    let topic = cluster.catalogue.messages(id, 1).name;
    let subscriptions = cluster.catalogue.integration_subscriptions().name;
    eventually("running", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    // A data plane that has applied nothing since.
    cluster.say_alive("dp1", Role::DataPlane, &[], Some(1)).await;
    eventually("the data plane is known", async || {
        plane.get(&created.name).await.unwrap().status.unwrap().holders.len() == 2
    })
    .await;
    plane.delete(&created.name).await.unwrap();
    assert_eq!(plane.get(&created.name).await.unwrap_err().code(), Code::NotFound);
    eventually("withdrawn", async || cluster.latest(&subscriptions).await[&created.uid].1.is_none()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(matches!(executor.held(id).unwrap().change, Change::Apply { .. }), "nodes come first");
    assert!(cluster.exists(&topic).await);
    cluster.say_alive("dp1", Role::DataPlane, &[], Some(100)).await;
    eventually("dismissed", async || executor.held(id).unwrap().change == Change::Deleted).await;
    eventually("the topic is gone", async || !cluster.exists(&topic).await).await;
    plane.create("one").await.unwrap();
}

#[tokio::test]
async fn silent_data_planes_are_named_and_live_ones_waited_for() {
    let cluster = Cluster::new();
    let plane = cluster
        .control_plane_with("cp1", |config| config.control.apply_timeout = Duration::from_millis(500))
        .await;
    let _executor = cluster.executor(Verdict::Accept).await;
    cluster.say_alive("quick", Role::DataPlane, &[], Some(1_000)).await;
    cluster.say_alive("slow", Role::DataPlane, &[], Some(0)).await;
    eventually("known", async || {
        plane.nodes.clone().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes.len() == 4
    })
    .await;
    let request = CreateIntegrationRequest { integration: Some(integration("one")), ..Default::default() };
    let response = plane.integrations.clone().create_integration(request).await.unwrap();
    assert_eq!(response.metadata().get("tbmq-silent-nodes").unwrap(), "slow");
    let created = response.into_inner();
    let holders: Vec<(String, String, u64)> = created
        .status
        .unwrap()
        .holders
        .into_iter()
        .filter(|holder| holder.role == "DATA_PLANE")
        .map(|holder| (holder.service_id, holder.state, holder.observed_revision))
        .collect();
    assert_eq!(
        holders,
        [
            ("quick".to_owned(), "APPLIED".to_owned(), created.revision),
            ("slow".to_owned(), "SILENT".to_owned(), 0)
        ]
    );
}

#[tokio::test]
async fn kinds_and_nodes_are_listed() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    eventually("the kind is known", async || {
        let kinds =
            plane.integrations.clone().list_kinds(ListKindsRequest {}).await.unwrap().into_inner().kinds;
        kinds.len() == 1 && kinds[0].service_ids == ["ie1"] && kinds[0].json_schema.contains("writeOnly")
    })
    .await;
    let nodes = plane.nodes.clone().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes;
    let nodes: Vec<(String, String, bool)> =
        nodes.into_iter().map(|node| (node.service_id, node.role, node.live)).collect();
    assert_eq!(
        nodes,
        [
            ("cp1".to_owned(), "CONTROL_PLANE".to_owned(), true),
            ("ie1".to_owned(), "EXECUTOR".to_owned(), true)
        ]
    );
}

async fn session(
    plane: &ControlPlane,
    incarnation: Uuid,
) -> (mpsc::Sender<NodeMessage>, tonic::Streaming<tbmq_proto::node::ControlMessage>) {
    let (sender, receiver) = mpsc::channel(4);
    let hello = Hello {
        service_id: "dp1".to_owned(),
        incarnation: incarnation.to_string(),
        version: "1".to_owned(),
        ..Hello::default()
    };
    sender.send(NodeMessage { message: Some(node_message::Message::Hello(hello)) }).await.unwrap();
    let stream = plane.sessions.clone().session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    (sender, stream)
}

#[tokio::test]
async fn a_newer_incarnation_of_a_data_plane_replaces_the_older_also_on_another_replica() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let other = cluster.control_plane("cp2").await;
    let (oldest, middle, newest) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let (first, mut first_stream) = session(&plane, middle).await;
    let Some(Message::Welcome(welcome)) = first_stream.message().await.unwrap().unwrap().message else {
        panic!()
    };
    assert_eq!((welcome.service_id.as_str(), welcome.heartbeat_ms), ("cp1", 5_000));
    let nodes = plane.nodes.clone().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes;
    assert!(nodes.iter().any(|node| node.service_id == "dp1" && node.session));
    let (_sender, mut late) = session(&plane, oldest).await;
    let Some(Message::Superseded(by)) = late.message().await.unwrap().unwrap().message else { panic!() };
    assert_eq!(by.incarnation, middle.to_string());
    let (_other_sender, mut other_stream) = session(&other, newest).await;
    assert!(matches!(other_stream.message().await.unwrap().unwrap().message, Some(Message::Welcome(_))));
    let beat = NodeMessage { message: Some(node_message::Message::Heartbeat(Heartbeat::default())) };
    first.send(beat).await.unwrap();
    let Some(Message::Superseded(by)) = first_stream.message().await.unwrap().unwrap().message else {
        panic!()
    };
    assert_eq!(by.incarnation, newest.to_string());
    assert!(first_stream.message().await.unwrap().is_none(), "and the session ends");
}

#[tokio::test]
async fn reflection_and_health_are_on_and_a_drained_plane_refuses() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    for service in ["", "tbmq.control.v1.IntegrationService", "tbmq.node.v1.NodeSessionService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let health = HealthClient::new(plane.channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(health.status, 1, "{service} serves");
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(plane.channel.clone())
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else { panic!() };
    let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"tbmq.control.v1.EventService".to_owned()), "{names:?}");
    drop(answers);
    let channel: Channel = plane.channel.clone();
    tokio::time::timeout(Duration::from_secs(15), plane.running.drain()).await.expect("the drain is bounded");
    let mut client = IntegrationServiceClient::new(channel);
    let status = client.list_integrations(ListIntegrationsRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}
