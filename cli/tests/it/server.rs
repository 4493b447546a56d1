//! Integrations against a control plane that answers as told: what is asked, and how answers and refusals appear.

use std::io::Write;

use tbmq_proto::control::{Integration, WatchIntegrationsResponse, watch_integrations_response::Type};
use tonic::{Code, Status};

use crate::{
    fake::{Told, UID, refusal, serve, stdout},
    stderr,
};

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
