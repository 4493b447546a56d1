//! What the main commands print, both streams, in all forms: golden files that `UPDATE_GOLDEN=1` writes anew.

use std::path::Path;

use tbmq_proto::control::{
    WatchEventsResponse, WatchIntegrationsResponse, watch_integrations_response::Type,
};

use crate::{
    fake::{UID, events, examples, serve, stdout},
    stderr,
};

const FORMS: [&str; 5] = ["table", "wide", "json", "yaml", "name"];

/// Runs a command in all forms against a server of its own, and compares.
fn check(name: &str, command: &str) {
    check_forms(name, command, &FORMS);
}

fn check_forms(name: &str, command: &str, forms: &[&str]) {
    let seen: String = forms.iter().map(|form| seen(&format!("{command} -o {form}"))).collect();
    assert!(!seen.contains('\u{1b}'), "there are colours without a terminal:\n{seen}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &seen).expect("the golden file is written");
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        golden == seen,
        "{} is old; UPDATE_GOLDEN=1 cargo test -p tbmqctl writes it anew. Now it is:\n{seen}",
        file.display()
    );
}

/// What a user sees of a command against a server of its own.
fn seen(command: &str) -> String {
    let served = serve();
    served.fake.held.lock().extend(examples());
    let added = examples().into_iter().next();
    let told = |what: Type, integration, revision| {
        Ok(WatchIntegrationsResponse { r#type: what.into(), integration, revision })
    };
    served.fake.told.lock().push_back(vec![
        told(Type::Added, added.clone(), 0),
        told(Type::Bookmark, None, 8),
        told(Type::Deleted, added, 9),
    ]);
    let event = |event, sequence| Ok(WatchEventsResponse { event, sequence });
    served.fake.events_told.lock().push_back(vec![event(events().pop(), 4), event(None, 5)]);
    let arguments: Vec<_> = command.split(' ').collect();
    let output = served.run(&arguments);
    let stream = |name: &str, text: String| {
        // What differs from run to run: the server's port, and pauses.
        let text = text.replace(&served.address, "http://SERVER");
        let lines = text.lines().map(|line| line.split_once("; resuming in").map_or(line, |(line, _)| line));
        let lines: String = lines.map(|line| line.to_owned() + "\n").collect();
        if lines.is_empty() { lines } else { format!("--- {name}\n{lines}") }
    };
    let code = output.status.code().map_or_else(|| "none".to_owned(), |code| code.to_string());
    format!(
        "$ tbmqctl {command}\n{}{}--- exit code {code}\n\n",
        stream("stdout", stdout(&output)),
        stream("stderr", stderr(&output)),
    )
}

#[test]
fn integrations_are_shown_in_all_forms() {
    check("integration_list", "integration list");
    check("integration_get", "integration get sensors");
    check("integration_stats", "integration stats sensors");
    check("integration_restart", "integration restart sensors");
    check("integration_create", "integration create --name n --filter a/# --url http://h/");
    check("integration_refused", "integration create --name bad --filter a/# --url http://h/");
    check("integration_check", &format!("integration check {UID}"));
    check("integration_not_found", "integration get nobody");
}

#[test]
fn changes_are_shown_in_all_forms() {
    check("watch", "watch");
    check("event_watch", "event watch");
    check("top", "top --once --interval 200ms --sort name");
}

#[test]
fn kinds_are_shown_in_all_forms() {
    check("kind_list", "kind list");
    check("kind_schema", "kind schema http");
}

#[test]
fn events_are_shown_in_all_forms() {
    check("event_list", "event list --integration sensors");
    check("event_clear", "event clear sensors --yes");
    check_forms("event_clear_all", "event clear --all-integrations --yes", &["table", "json"]);
}

#[test]
fn nodes_and_sessions_are_shown_in_all_forms() {
    check("node_list", "node list");
    check("node_drain", "node drain dp1");
    check("session_list", "session list");
    check("session_get", "session get c1");
    check("session_counts", "session counts");
    check("session_subscriptions", "session subscriptions c1");
    check_forms("session_disconnect_many", "session disconnect --search c --yes", &["table", "json"]);
    check_forms("session_clear_dry", "session clear --until 1d --dry-run", &["table", "json"]);
    check("subscription_list", "subscription list");
    check("subscription_set", "subscription set c1 --filter a/# --filter $share/g/b --qos 1 --yes");
    check("subscription_groups", "subscription groups");
    check("retained_list", "retained list");
    check("retained_get", "retained get a");
    check_forms("retained_clear", "retained clear a/# --yes", &["table", "json"]);
}

#[test]
fn what_lies_in_kafka_is_shown_in_all_forms() {
    check("kafka_cluster", "kafka cluster");
    check("kafka_topics", "kafka topics");
    check("kafka_topic", "kafka topics tbmq.msg.ie.0e2ffa8e-52c9-4a3f-8d0f-000000000001");
    check("kafka_groups", "kafka groups");
    check("kafka_group", "kafka groups a/b");
    check("kafka_group_without_members", "kafka groups ie-msg-consumer-group");
    check("kafka_lag", "kafka lag");
    check("kafka_delete_group_refused", "kafka delete-group my-group --yes");
}

#[test]
fn access_is_shown_in_all_forms() {
    check("whoami", "whoami");
    check("token_list", "token list");
    check("token_create", "token create ci --role editor --expires 2030-01-01T00:00:00Z");
    check("audit_list", "audit list");
}

#[test]
fn who_may_connect_is_shown_in_all_forms() {
    check("credentials_list", "credentials list");
    check("credentials_get", "credentials get pumps");
    check_forms("credentials_get_x509", "credentials get gateways", &["table", "yaml"]);
    check_forms("credentials_get_scram", "credentials get ops", &["table", "yaml"]);
    check("credentials_create", "credentials create basic n --username u --any-password");
    check_forms("credentials_export", "credentials export", &["yaml", "json"]);
    check("blocked_list", "blocked list");
    check("unauthorized_list", "unauthorized list");
    check("unauthorized_get", "unauthorized get pump-7");
    check("auth_list", "auth list");
    check("auth_get", "auth get basic");
    check("auth_order", "auth order get");
}

#[test]
fn what_has_no_form_is_the_same_in_all() {
    check_forms("integration_delete", "integration delete sensors", &["table", "json"]);
    check_forms("session_disconnect", "session disconnect c1 c2", &["table"]);
    check_forms("token_revoke", "token revoke ci tokens/9", &["table"]);
    check_forms("token_revoke_twin", "token revoke twin", &["table"]);
}
