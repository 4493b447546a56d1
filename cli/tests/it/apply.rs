//! `apply`, `diff`, `export`, `edit` and `explain` against a control plane in memory: what is asked, exit codes, streams.

use std::sync::{Arc, atomic::Ordering};

use serde_json::Value;
use tbmq_proto::control::{ExplainTopicResponse, explain_topic_response as explained};
use tokio::sync::Barrier;

use crate::plane::{Ended, Served, http, serve, uid};

fn yaml(name: &str, url: &str, secret: &str) -> String {
    format!(
        "displayName: {name}\ntype: HTTP\nconfiguration:\n  topicFilters: [a/#]\n  clientConfiguration:\n    \
         restEndpointUrl: {url}\n    readTimeoutMs: 0\n    password: '{secret}'\n"
    )
}

fn ok(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn apply_creates_then_leaves_alone_then_changes_only_what_differs() {
    let served = serve();
    served
        .write("in/b.yaml", &format!("{}---\n{}", yaml("b1", "http://b", "x"), yaml("b2", "http://b", "y")));
    served.write("in/deep/a.json", r#"{"displayName":"a","type":"HTTP","configuration":{"topicFilters":["a"],"clientConfiguration":{}}}"#);
    let first = served.run(&["apply", "-f", "in"]);
    ok(&first);
    assert_eq!(first.stdout, "created     b1\ncreated     b2\ncreated     a\n");
    assert_eq!(first.stderr, "3 created\n");
    assert!(served.plane.get("b1").unwrap().configuration_json.contains("\"password\":\"x\""));
    served.plane.take_calls();

    let again = served.run(&["apply", "-f", "in"]);
    ok(&again);
    assert_eq!(again.stdout, "unchanged   b1\nunchanged   b2\nunchanged   a\n");
    // Whether its secrets are the saved ones only the server can tell, and nothing is saved for that.
    let asked =
        ["update b1: configuration_json (validate only)", "update b2: configuration_json (validate only)"];
    assert_eq!(served.plane.take_calls(), asked);

    let before = served.plane.get("b2").unwrap().revision;
    served.write(
        "in/b.yaml",
        &format!(
            "{}---\n{}enabled: false\n",
            yaml("b1", "http://b", "z"),
            yaml("b2", "http://b", "********")
        ),
    );
    let changed = served.run(&["apply", "-f", "in", "-o", "json"]);
    ok(&changed);
    let lines: Vec<Value> = changed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["action"], &lines[0]["fields"][0]),
        (&"configured".into(), &"configuration_json".into())
    );
    assert_eq!(
        (&lines[1]["action"], &lines[1]["fields"]),
        (&"configured".into(), &serde_json::json!(["enabled"]))
    );
    assert_eq!(lines[2]["action"], "unchanged");
    assert!(served.plane.get("b1").unwrap().configuration_json.contains("\"password\":\"z\""));
    let b2 = served.plane.get("b2").unwrap();
    assert!(b2.revision > before && !b2.enabled && b2.configuration_json.contains("\"password\":\"y\""));
}

#[test]
fn a_uid_finds_its_integration_under_another_name_and_a_name_under_another_uid() {
    let served = serve();
    served.plane.hold(1, http("old", "http://x"));
    served.plane.hold(2, http("kept", "http://x"));
    served.write("a.yaml", &format!("uid: {}\n{}", uid(1), yaml("new", "http://x", "********")));
    served.write("b.yaml", &format!("uid: {}\n{}", uid(77), yaml("kept", "http://y", "********")));
    let ended = served.run(&["apply", "-f", "a.yaml", "-f", "b.yaml"]);
    ok(&ended);
    assert_eq!(ended.stdout, "configured  new (display_name)\nconfigured  kept (configuration_json)\n");
    assert_eq!(served.plane.names(), ["kept", "new"]);
    assert_eq!(served.plane.get("kept").unwrap().uid, uid(2));
}

#[test]
fn two_documents_of_one_integration_are_refused_before_anything_is_changed() {
    let served = serve();
    served.plane.hold(1, http("old", "http://x"));
    served.write("a.yaml", &format!("uid: {}\n{}", uid(1), yaml("new", "http://x", "********")));
    served.write("b.yaml", &yaml("old", "http://y", "********"));
    for command in ["apply", "diff"] {
        let ended = served.run(&[command, "-f", "a.yaml", "-f", "b.yaml"]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(
            ended.stderr.contains("a.yaml and b.yaml describe the same integration, \"old\""),
            "{ended:?}"
        );
    }
    assert!(served.plane.take_calls().is_empty());
}

#[test]
fn a_failure_does_not_stop_the_others_and_prevents_pruning() {
    let served = serve();
    served.plane.hold(1, http("gone", "http://x"));
    served.write(
        "in/a.yaml",
        "displayName: a\ntype: HTTP\nconfiguration: { topicFilters: [], clientConfiguration: {} }\n",
    );
    served.write("in/b.yaml", "displayName: b\ntyp: HTTP\n");
    served.write("in/c.yaml", &yaml("c", "http://x", "x"));
    let ended = served.run(&["apply", "-f", "in", "--prune", "--all", "--yes"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(served.plane.names(), ["c", "gone"]);
    assert!(ended.stdout.ends_with("failed      a\ncreated     c\n"), "{}", ended.stdout);
    for told in [
        "error: in/a.yaml: integration.configuration_json.topicFilters: are missing\n",
        "error: in/b.yaml does not describe an integration\n  typ: is not known",
        "1 were not pruned, since something failed\n",
        "1 created, 2 failed\n",
    ] {
        assert!(ended.stderr.contains(told), "{told:?} in {}", ended.stderr);
    }
}

#[test]
fn a_dry_run_has_everything_validated_and_saves_nothing() {
    let served = serve();
    served.plane.hold(1, http("b", "http://x"));
    served.plane.hold(2, http("gone", "http://x"));
    served.write("a.yaml", &yaml("a", "http://x", "x"));
    served.write("b.yaml", &yaml("b", "http://other", "********"));
    let ended = served.run(&["apply", "-f", ".", "--dry-run", "--prune", "--all"]);
    ok(&ended);
    assert_eq!(
        ended.stdout,
        "created     a (dry run)\nconfigured  b (configuration_json) (dry run)\npruned      gone (dry run)\n"
    );
    assert_eq!(ended.stderr, "1 created, 1 configured, 1 pruned; nothing was saved\n");
    let calls = ["create a (validate only)", "update b: configuration_json (validate only)"];
    assert_eq!(served.plane.take_calls(), calls);
    assert_eq!(served.plane.names(), ["b", "gone"]);
}

#[test]
fn pruning_keeps_to_its_selector_and_does_not_delete_unasked() {
    let served = serve();
    let labelled = |name: &str, team: &str| {
        let mut one = http(name, "http://x");
        one.labels.insert("team".to_owned(), team.to_owned());
        one
    };
    served.plane.hold(1, labelled("kept", "core"));
    let gone = served.plane.hold(2, labelled("gone", "core"));
    served.plane.hold(3, labelled("theirs", "other"));
    served.write("kept.yaml", &format!("{}labels: {{ team: core }}\n", yaml("kept", "http://x", "********")));
    for wrong in [&["--prune"][..], &["--selector", "team=core"], &["--prune", "--all", "--selector", "a"]] {
        let ended = served.run(&[&["apply", "-f", "kept.yaml"][..], wrong].concat());
        assert_eq!(ended.code, Some(2), "{wrong:?}: {ended:?}");
    }
    let unasked = served.run(&["apply", "-f", "kept.yaml", "--prune", "--selector", "team=core"]);
    assert_eq!(unasked.code, Some(2), "{unasked:?}");
    assert!(unasked.stderr.contains("--yes deletes it without asking"), "{}", unasked.stderr);
    assert_eq!(served.plane.names().len(), 3);
    let ended = served.run(&["apply", "-f", "kept.yaml", "--prune", "--selector", "team=core", "--yes"]);
    ok(&ended);
    assert_eq!(ended.stdout, "unchanged   kept\npruned      gone\n");
    assert_eq!(served.plane.names(), ["kept", "theirs"]);
    assert_eq!(served.plane.take_calls(), [format!("delete gone {}", gone.etag)]);
}

#[test]
fn as_many_are_worked_on_at_once_as_told() {
    let served = serve();
    // Creates come back by twos only.
    *served.plane.meeting.lock() = Some(Arc::new(Barrier::new(2)));
    for number in 0..6 {
        served.write(&format!("{number}.yaml"), &yaml(&format!("n{number}"), "http://x", "x"));
    }
    ok(&served.run(&["apply", "-f", ".", "--concurrency", "2"]));
    assert_eq!(served.plane.busy_max.load(Ordering::SeqCst), 2);
    assert_eq!(served.plane.names().len(), 6);
    assert_eq!(served.run(&["apply", "-f", ".", "--concurrency", "0"]).code, Some(2));
}

#[test]
fn a_document_from_stdin_is_applied() {
    use std::{io::Write as _, process::Stdio};
    let served = serve();
    let mut child = served
        .command(&["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(yaml("piped", "http://x", "x").as_bytes()).unwrap();
    ok(&child.wait_with_output().unwrap().into());
    assert_eq!(served.plane.names(), ["piped"]);
}

#[test]
fn diff_is_0_without_and_4_with_a_difference_and_shows_no_secret() {
    let served = serve();
    served.plane.hold(1, http("a", "http://x"));
    served.write("a.yaml", &yaml("a", "http://x", "s3cret"));
    let same = served.run(&["diff", "-f", "a.yaml"]);
    ok(&same);
    assert_eq!((same.stdout.as_str(), same.stderr.as_str()), ("", ""));

    served.write("a.yaml", &yaml("a", "http://y", "an0ther"));
    served.write("b.yaml", &yaml("b", "http://z", "th1rd"));
    served.plane.hold(2, http("gone", "http://x"));
    let ended = served.run(&["diff", "-f", ".", "--prune", "--all"]);
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert_eq!(ended.stderr, "3 of the integrations differ\n");
    for line in [
        "--- saved/a\n+++ files/a\n",
        "\n-    restEndpointUrl: http://x\n",
        "\n+    restEndpointUrl: http://y\n",
        "\n-    password: '********'\n",
        "\n+    password: '******** (another one)'\n",
        "--- /dev/null\n+++ files/b\n",
        "--- saved/gone\n+++ /dev/null\n",
    ] {
        assert!(ended.stdout.contains(line), "{line:?} in {}", ended.stdout);
    }
    for secret in ["s3cret", "an0ther", "th1rd"] {
        assert!(!ended.stdout.contains(secret), "{}", ended.stdout);
    }
    assert_eq!(served.plane.names(), ["a", "gone"], "nothing was saved");

    served.write("c.yaml", "displayName: c\n");
    let failed = served.run(&["diff", "-f", "."]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stdout.contains("+++ files/b"), "the others are compared all the same");
}

#[test]
fn what_is_exported_is_applied_without_a_change() {
    let served = serve();
    let mut one = http("with/slash", "http://x");
    one.labels.insert("zone".to_owned(), "a".to_owned());
    served.plane.hold(1, one);
    served.plane.hold(2, http("plain", "http://x"));
    let into = served.run(&["export", "-f", "out"]);
    ok(&into);
    assert_eq!(into.stdout, "");
    assert!(into.stderr.contains("2 integrations were written to out\n"), "{}", into.stderr);
    assert!(into.stderr.contains("secrets of 2 of them are shown as ********"), "{}", into.stderr);
    let text = served.read("out/plain.yaml");
    assert!(
        text.contains("password: '********'") && !text.contains("etag") && !text.contains("s3cret"),
        "{text}"
    );
    assert!(served.read(format!("out/with_slash-{}.yaml", uid(1))).contains("zone: a"));
    let ended = served.run(&["apply", "-f", "out"]);
    ok(&ended);
    assert_eq!(ended.stderr, "2 unchanged\n");
    assert!(served.plane.take_calls().is_empty());

    for (format, count) in [("yaml", 2), ("json", 2)] {
        let printed = served.run(&["export", "-o", format]);
        served.write("all.out", &printed.stdout);
        let again = served.run(&["apply", "-f", "all.out"]);
        assert_eq!(again.stderr, format!("{count} unchanged\n"), "{format}");
    }
    let selected =
        served.run(&["export", "--selector", "zone=a", "--filter", "type = \"HTTP\"", "-o", "json"]);
    let selected: Value = serde_json::from_str(&selected.stdout).unwrap();
    assert_eq!((selected.as_array().unwrap().len(), &selected[0]["displayName"]), (1, &"with/slash".into()));
    assert_eq!(served.plane.filters.lock().last().unwrap(), "type = \"HTTP\"");
}

/// Runs `edit` with a script as the editor; the file is `$1`.
fn edit(served: &Served, script: &str) -> Ended {
    served.write("editor.sh", script);
    let mut command = served.command(&["edit", "demo"]);
    command.env_remove("VISUAL").env("EDITOR", "sh editor.sh").env("TMPDIR", served.folder.path());
    command.output().expect("tbmqctl starts").into()
}

/// The file that a failure says it has kept.
fn kept(ended: &Ended) -> String {
    let path = ended.stderr.split("your document is kept in ").nth(1).unwrap_or_else(|| panic!("{ended:?}"));
    path.split(": ").next().expect("a path").to_owned()
}

fn drafts(served: &Served) -> usize {
    let files = std::fs::read_dir(served.folder.path()).expect("a folder");
    files
        .filter(|file| {
            file.as_ref().expect("a file").file_name().to_string_lossy().starts_with("tbmqctl-edit-")
        })
        .count()
}

#[test]
fn edit_saves_what_was_changed_and_keeps_the_masked_secret() {
    let served = serve();
    served.plane.hold(1, http("demo", "http://x"));
    let ended = edit(&served, "sed -i 's#http://x#http://y#' \"$1\"");
    ok(&ended);
    assert!(ended.stdout.contains("demo"), "{}", ended.stdout);
    let saved = served.plane.get("demo").unwrap().configuration_json;
    assert!(saved.contains("http://y") && saved.contains("s3cret"), "{saved}");
    assert_eq!(drafts(&served), 0);
}

#[test]
fn edit_without_a_change_saves_nothing() {
    let served = serve();
    let before = served.plane.hold(1, http("demo", "http://x"));
    for script in ["true", ": > \"$1\"", "echo '# remark' >> \"$1\""] {
        let ended = edit(&served, script);
        ok(&ended);
        assert!(ended.stderr.contains("nothing was changed"), "{ended:?}");
    }
    assert_eq!(served.plane.get("demo").unwrap(), before);
    assert_eq!(drafts(&served), 0);
}

#[test]
fn a_refused_document_is_opened_again_with_the_reason_and_kept_when_it_is_given_up() {
    let served = serve();
    served.plane.hold(1, http("demo", "http://x"));
    // First it empties the filters, then, when told why that won't do, puts one there.
    let ended = edit(
        &served,
        "if grep -q 'topicFilters: are missing' \"$1\"; then sed -i 's/^  topicFilters: .*/  topicFilters: [b]/' \"$1\"; \
         else sed -i -e '/^  - a/d' -e 's/^  topicFilters:.*/  topicFilters: []/' \"$1\"; fi",
    );
    ok(&ended);
    assert!(served.plane.get("demo").unwrap().configuration_json.contains("\"topicFilters\":[\"b\"]"));
    assert_eq!(drafts(&served), 0);

    let ended = edit(&served, "grep -q 'It was not saved' \"$1\" || echo 'typo: 1' >> \"$1\"");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let text = std::fs::read_to_string(kept(&ended)).unwrap();
    assert!(text.contains("#     typo: is not known") && text.contains("\ntypo: 1\n"), "{text}");
}

#[test]
fn nothing_is_overwritten_and_nothing_lost_when_somebody_else_was_faster() {
    let served = serve();
    served.plane.hold(1, http("demo", "http://x"));
    served.write("theirs.yaml", &format!("{}description: theirs\n", yaml("demo", "http://x", "********")));
    let tbmqctl = env!("CARGO_BIN_EXE_tbmqctl");
    let script = format!("{tbmqctl} apply -f theirs.yaml >&2 && echo 'description: ours' >> \"$1\"");
    let ended = edit(&served, &script);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("reason: ETAG_MISMATCH"), "{}", ended.stderr);
    assert!(std::fs::read_to_string(kept(&ended)).unwrap().contains("description: ours"));
    assert_eq!(served.plane.get("demo").unwrap().description, "theirs");
}

#[test]
fn an_editor_that_fails_is_named_and_the_file_kept() {
    let served = serve();
    served.plane.hold(1, http("demo", "http://x"));
    let ended = edit(&served, "echo 'description: ours' >> \"$1\"; exit 3");
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended.stderr.contains("the editor \"sh editor.sh\" ended with exit status: 3"),
        "{}",
        ended.stderr
    );
    assert!(std::fs::read_to_string(kept(&ended)).unwrap().contains("description: ours"));
}

#[test]
fn explain_shows_who_gets_a_message_and_which_nodes_said_nothing() {
    let served = serve();
    let nobody = served.run(&["explain", "a/b"]);
    ok(&nobody);
    assert_eq!(nobody.stdout, "nobody gets a message that is published to a/b\n");
    *served.plane.explained.lock() = ExplainTopicResponse {
        integrations: vec![explained::IntegrationMatch {
            name: format!("integrations/{}", uid(1)),
            display_name: "demo".to_owned(),
            enabled: false,
            filters: vec!["a/#".to_owned(), "+/b".to_owned()],
        }],
        clients: vec![explained::ClientMatch {
            service_id: "dp1".to_owned(),
            client_id: "c1".to_owned(),
            filter: "a/b".to_owned(),
            qos: 1,
            share_name: "g".to_owned(),
        }],
        silent_nodes: vec!["dp2".to_owned()],
    };
    let ended = served.run(&["explain", "a/b"]);
    ok(&ended);
    assert_eq!(
        ended.stdout,
        "INTEGRATION  ENABLED                FILTERS\ndemo         no, messages are kept  a/#, +/b\n\n\
         CLIENT  FILTER  QOS  SHARED IN  NODE\nc1      a/b     1    g          dp1\n"
    );
    assert!(ended.stderr.contains("clients of these nodes are missing") && ended.stderr.ends_with(": dp2\n"));
    let json: Value = serde_json::from_str(&served.run(&["explain", "a/b", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["integrations"][0]["filters"][1], "+/b");
    assert_eq!(json["clients"][0]["shareName"], "g");
    assert_eq!(json["silentNodes"][0], "dp2");
}
