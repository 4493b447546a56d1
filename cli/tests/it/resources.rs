//! Statistics, waits, events, sessions and nodes against a control plane that answers as told.

use std::time::Instant;

use tbmq_proto::control::{
    EventType, Integration, IntegrationStatus, IntegrationView, WatchEventsResponse,
    WatchIntegrationsResponse, integration_status::Phase, watch_integrations_response::Type,
};
use tonic::Code;

use crate::{
    fake::{Served, Told, UID, events, examples, refusal, serve, stdout},
    stderr, tbmqctl,
};

fn told(what: Type, phase: Phase, revision: u64) -> Told {
    let status =
        IntegrationStatus { phase: phase.into(), error: "no route".to_owned(), ..Default::default() };
    let integration = (what != Type::Bookmark).then(|| Integration {
        name: format!("integrations/{UID}"),
        uid: UID.to_owned(),
        status: Some(status),
        ..Integration::default()
    });
    Ok(WatchIntegrationsResponse { r#type: what.into(), integration, revision })
}

fn patient() -> Served {
    let served = serve();
    served.fake.held.lock().extend(examples());
    *served.fake.is_patient.lock() = true;
    served
}

#[test]
fn a_list_is_asked_for_as_the_flags_say() {
    let served = serve();
    let filter = "type = \"HTTP\" AND labels.site:*";
    let output = served.run(&[
        "integration",
        "list",
        "--filter",
        filter,
        "--order-by",
        "update_time desc",
        "-o",
        "wide",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let asked = served.fake.listed.lock().remove(0);
    assert_eq!((asked.filter.as_str(), asked.order_by.as_str()), (filter, "update_time desc"));
    assert_eq!(asked.view(), IntegrationView::Full, "what waits is a column of the wide table");
    served.run(&["integration", "list"]);
    assert_eq!(served.fake.listed.lock().remove(0).view(), IntegrationView::Basic);
}

#[test]
fn a_list_that_was_cut_says_so() {
    let served = serve();
    served.hold(&["a", "b", "c"]);
    let output = served.run(&["integration", "list", "--limit", "2"]);
    assert_eq!(stderr(&output), "there are more than these 2; --limit shows them\n");
    assert_eq!(stderr(&served.run(&["integration", "list", "--limit", "3"])), "");
}

#[test]
fn a_restart_carries_its_etag_and_a_request_id() {
    let served = patient();
    assert_eq!(served.run(&["integration", "restart", "sensors", "--etag", "e1"]).status.code(), Some(0));
    let asked = served.fake.restarted.lock().remove(0);
    assert_eq!(asked.etag, "e1");
    assert!(!asked.request_id.is_empty());
}

#[test]
fn a_wait_ends_as_soon_as_it_is_so() {
    let served = patient();
    served.fake.told.lock().push_back(vec![
        told(Type::Added, Phase::Pending, 0),
        told(Type::Bookmark, Phase::Unspecified, 5),
        told(Type::Modified, Phase::Failed, 6),
        told(Type::Modified, Phase::Active, 7),
    ]);
    let output = served.run(&["wait", "sensors"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("", "sensors is ACTIVE\n"));
    let asked = served.fake.watched.lock().remove(0);
    assert_eq!((asked.name, asked.after_revision), (format!("integrations/{UID}"), None));
}

#[test]
fn a_wait_that_was_too_short_is_exit_code_5_and_tells_how_it_is() {
    let served = patient();
    served
        .fake
        .told
        .lock()
        .push_back(vec![told(Type::Added, Phase::Failed, 0), told(Type::Bookmark, Phase::Unspecified, 5)]);
    let begin = Instant::now();
    let output = served.run(&["wait", "sensors", "--for=phase=active", "--timeout", "1s"]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(begin.elapsed().as_millis() >= 1000);
    let text = stderr(&output);
    assert!(
        text.starts_with("error: sensors was not ACTIVE within 1s: it is FAILED, no route\nhint: "),
        "{text}"
    );
}

#[test]
fn a_wait_for_the_end_ends_with_it() {
    let served = patient();
    served.fake.told.lock().push_back(vec![
        told(Type::Added, Phase::Active, 0),
        told(Type::Bookmark, Phase::Unspecified, 5),
        told(Type::Deleted, Phase::Unspecified, 6),
    ]);
    let output = served.run(&["wait", "sensors", "nobody", "--for=delete"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "sensors is deleted\nnobody does not exist\n");
    // By its uid it is not known beforehand that it is gone.
    served.fake.told.lock().push_back(vec![told(Type::Bookmark, Phase::Unspecified, 7)]);
    assert_eq!(stderr(&served.run(&["wait", UID, "--for=delete"])), format!("{UID} is deleted\n"));
}

#[test]
fn a_wait_for_what_is_deleted_meanwhile_is_refused() {
    let served = patient();
    served.fake.told.lock().push_back(vec![
        told(Type::Added, Phase::Pending, 0),
        told(Type::Bookmark, Phase::Unspecified, 5),
        told(Type::Deleted, Phase::Unspecified, 6),
    ]);
    let output = served.run(&["wait", "sensors", "--for=phase=ACTIVE"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("was deleted meanwhile"), "{}", stderr(&output));
}

#[test]
fn top_shows_the_difference_of_two_looks() {
    let served = patient();
    *served.fake.step.lock() = 500;
    let output = served.run(&["top", "--interval", "500ms", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout(&output)).unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["displayName"].as_str().unwrap()).collect();
    assert_eq!(names, ["lake", "sensors"], "the lag is the same");
    // Both together grew by 500 with each of four looks: 1000 each, in somewhat more than half a second.
    for row in &rows {
        let rate = row["writtenPerSecond"].as_f64().unwrap();
        assert!((1.0..=2000.0).contains(&rate), "{row}");
        assert_eq!(row["failedPerSecond"], 0.0);
    }
}

#[test]
fn events_are_asked_for_with_every_filter() {
    let served = patient();
    let arguments = "event list --integration sensors --type error --service ie --error refused --method on --since 1h --limit 7";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let output = served.run(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let asked = served.fake.events_listed.lock().remove(0);
    let filter = asked.filter.clone().unwrap();
    assert_eq!(
        (asked.integration.as_str(), asked.r#type()),
        (&*format!("integrations/{UID}"), EventType::Error)
    );
    assert_eq!((asked.page_size, asked.start_time.is_some()), (7, true));
    assert_eq!([filter.service_id, filter.error, filter.method], ["ie", "refused", "on"]);
}

#[test]
fn events_are_removed_only_when_that_was_meant() {
    let served = patient();
    let output = served.run(&["event", "clear", "sensors"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("hint: --yes answers in advance"), "{}", stderr(&output));
    assert!(served.fake.events_cleared.lock().is_empty());
    let output = served.run(&["event", "clear", "sensors", "--type", "statistics", "--until", "7d", "--yes"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "removed 12 events of sensors\n"));
    let asked = served.fake.events_cleared.lock().remove(0);
    assert_eq!((asked.r#type(), asked.end_time.is_some()), (EventType::Statistics, true));
}

#[test]
fn a_lost_watch_of_events_resumes_where_it_was() {
    let served = serve();
    let event = |sequence| Ok(WatchEventsResponse { event: events().pop(), sequence });
    let bookmark = |sequence| Ok(WatchEventsResponse { event: None, sequence });
    served.fake.events_told.lock().extend([
        vec![event(4), bookmark(6)],
        vec![event(7), Err(refusal(Code::OutOfRange, "old", "SEQUENCE_COMPACTED", vec![]))],
    ]);
    let output =
        served.run(&["event", "watch", "--type", "lifecycle", "--after-sequence", "3", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let after: Vec<_> = served.fake.events_watched.lock().iter().map(|asked| asked.after_sequence).collect();
    assert_eq!(after, [Some(3), Some(6), None]);
    let sequences: Vec<_> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence"].clone())
        .collect();
    assert_eq!(sequences, [4, 7]);
    assert!(stderr(&output).contains("some events since then are not kept any more"), "{}", stderr(&output));
}

#[test]
fn clients_and_nodes_are_acted_upon() {
    let served = serve();
    assert_eq!(
        stderr(&served.run(&["session", "disconnect", "c1", "c2"])),
        "disconnected c1\ndisconnected c2\n"
    );
    assert_eq!(*served.fake.disconnected.lock(), ["c1", "c2"]);
    // Nothing is ended in bulk without saying which, or without somebody who says yes.
    for refused in [
        &["session", "disconnect"][..],
        &["session", "clear", "--search", "c"],
        &["session", "clear", "c1", "--all"],
        &["retained", "clear", "a/#"],
        &["subscription", "set", "c1", "--none"],
    ] {
        assert_eq!(served.run(refused).status.code(), Some(2), "{refused:?}");
    }
    let asked: Vec<String> = std::mem::take(&mut *served.fake.ended.lock());
    assert!(asked.iter().all(|one| one.contains("validate_only: true")), "{asked:?}");
    assert_eq!(served.run(&["session", "clear", "c1"]).status.code(), Some(1));
    let cleared = served.run(&["session", "clear", "--subscriptions", ">=5", "--type", "device", "--yes"]);
    assert_eq!(stdout(&cleared), "cleared 2 sessions\n");
    assert!(stderr(&cleared).contains("run it again"), "{}", stderr(&cleared));
    let ended = std::mem::take(&mut *served.fake.ended.lock());
    assert!(ended[1].contains("validate_only: false") && ended[1].contains("GreaterOrEqual"), "{ended:?}");
    assert_eq!(stderr(&served.run(&["retained", "delete", "a"])), "deleted the retained message of a\n");
    let output = served.run(&["node", "drain", "dp1", "-o", "json"]);
    assert!(stdout(&output).contains("\"draining\": true"), "{}", stdout(&output));
    assert_eq!(*served.fake.drained.lock(), ["dp1"]);
    let executors = served.run(&["node", "list", "--role", "executor", "-o", "name"]);
    assert_eq!(stdout(&executors), "ie1\n");
    assert_eq!(stdout(&served.run(&["node", "list", "--live", "-o", "name"])), "dp1\n");
}

#[test]
fn man_pages_are_written_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let output = tbmqctl(&["man", pages.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let page = std::fs::read_to_string(pages.join("tbmqctl-wait.1")).unwrap();
    assert!(page.contains("phase=ACTIVE"), "{page}");
    assert!(pages.join("tbmqctl-integration-list.1").exists());
    let main = tbmqctl(&["man"]).output().unwrap();
    assert!(stdout(&main).starts_with(".ie"), "{}", stdout(&main));
}
