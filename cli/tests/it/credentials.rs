//! Credentials against a control plane that keeps to the contract: flags, files, passwords, imports.

use std::{
    io::Write,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::json;
use tbmq_proto::control::{ClientType, credentials::Proof};

use crate::{
    auth_fake::PUMPS,
    fake::{Served, serve, stdout},
    stderr, tbmqctl,
};

/// Runs with something on stdin.
fn run_with(served: &Served, arguments: &[&str], input: &str) -> Output {
    let mut child = tbmqctl(arguments)
        .env("TBMQCTL_SERVER", &served.address)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tbmqctl starts");
    // One that is refused at once reads nothing.
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).ok();
    child.wait_with_output().expect("it ends")
}

fn ok(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

#[test]
fn flags_make_a_credential_of_each_type_and_passwords_come_from_elsewhere() {
    let served = serve();
    let arguments =
        "credentials create basic n --username u --client-id c --password-file - --client-type application";
    let mut arguments: Vec<_> = arguments.split(' ').collect();
    arguments.extend(["--rule", "allow publish a/${clientId}/#", "--rule", "deny both regex:.*x"]);
    ok(&run_with(&served, &arguments, "s3same\n"));
    let request = served.auth.created.lock().remove(0);
    assert!(!request.request_id.is_empty());
    let one = request.credentials.unwrap();
    assert_eq!((one.display_name.as_str(), one.client_type()), ("n", ClientType::Application));
    let Some(Proof::Basic(basic)) = one.proof else { panic!("another proof") };
    assert_eq!((basic.client_id.as_deref(), basic.user_name.as_deref()), (Some("c"), Some("u")));
    assert_eq!((basic.password.as_deref(), basic.password_hash), (Some("s3same"), None));
    assert_eq!(basic.rules.len(), 2);

    let hash = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";
    let arguments = ["credentials", "create", "basic", "n", "--client-id", "c", "--password-hash-file", "-"];
    ok(&run_with(&served, &arguments, hash));
    let Some(Proof::Basic(basic)) = served.auth.created.lock().remove(0).credentials.unwrap().proof else {
        panic!("another proof")
    };
    assert_eq!((basic.password, basic.password_hash.as_deref()), (None, Some(hash)));

    let arguments = [
        "credentials",
        "create",
        "x509",
        "n",
        "--cn-pattern",
        "gw-.*",
        "--leaf",
        "gw-1",
        "--rule",
        "allow both #",
    ];
    ok(&served.run(&arguments));
    let Some(Proof::X509(x509)) = served.auth.created.lock().remove(0).credentials.unwrap().proof else {
        panic!("another proof")
    };
    assert_eq!((x509.common_name.as_str(), x509.is_pattern), ("gw-.*", true));
    assert_eq!((x509.leaf_rules[0].pattern.as_str(), x509.leaf_rules[0].rules.len()), ("gw-1", 1));

    let arguments = [
        "credentials",
        "create",
        "scram",
        "n",
        "--username",
        "u",
        "--algorithm",
        "sha-512",
        "--password-file",
        "-",
    ];
    ok(&run_with(&served, &arguments, "pw"));
    let Some(Proof::Scram(scram)) = served.auth.created.lock().remove(0).credentials.unwrap().proof else {
        panic!("another proof")
    };
    assert_eq!((scram.algorithm.as_str(), scram.password.as_deref()), ("SHA_512", Some("pw")));
}

#[test]
fn without_a_password_nothing_is_created_unless_that_is_meant() {
    let served = serve();
    let output = run_with(&served, &["credentials", "create", "basic", "n", "--username", "u"], "");
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("--password-file FILE") && text.contains("--any-password accepts any"), "{text}");
    assert!(served.auth.created.lock().is_empty());
    ok(&served.run(&["credentials", "create", "basic", "n", "--username", "u", "--any-password"]));
    for arguments in [
        &["credentials", "create"][..],
        &["credentials", "create", "basic", "n", "--any-password"],
        &["credentials", "create", "x509", "n"],
        &["credentials", "create", "basic", "n", "--username", "u", "--any-password", "--rule", "allow"],
        &["credentials", "create", "basic", "n", "--username", "u", "--password", "p"],
        &["credentials", "update", "pumps"],
        &["credentials", "delete", "pumps", "gateways", "--etag", "e", "--yes"],
    ] {
        let output = served.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_document_is_created_and_one_that_hides_its_password_is_not() {
    let served = serve();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, ok(&served.run(&["credentials", "get", "pumps", "-o", "yaml"]))).unwrap();
    let output = served.run(&["credentials", "create", "-f", path]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("add `password` or `passwordHash`"), "{}", stderr(&output));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("hasPassword: true", "password: new")).unwrap();
    let created = ok(&served.run(&["credentials", "create", "-f", path, "-o", "json"]));
    assert!(created.contains(PUMPS) && created.contains("\"hasPassword\": true"), "{created}");
    assert!(!created.contains("new"), "{created}");
    let request = served.auth.created.lock().remove(0);
    assert_eq!((request.id.as_str(), request.credentials.unwrap().etag.as_str()), (PUMPS, ""));
}

#[test]
fn a_refusal_names_the_field_and_the_pattern() {
    let served = serve();
    let rule = "allow publish regex:a(?=b)";
    let arguments =
        ["credentials", "create", "basic", "n", "--username", "u", "--any-password", "--rule", rule];
    let output = served.run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("credentials.basic.rules[0]: \"a(?=b)\" is no regular expression"), "{text}");
}

#[test]
fn an_update_says_which_fields_it_changes() {
    let served = serve();
    let update = |arguments: &[&str]| {
        let output = served.run(&[&["credentials", "update", "pumps"], arguments].concat());
        ok(&output);
        let request = served.auth.updated.lock().remove(0);
        let Some(Proof::Basic(basic)) = request.credentials.clone().unwrap().proof else {
            panic!("another proof")
        };
        (request.credentials.unwrap(), basic, request.update_mask.unwrap().paths)
    };
    let (one, _, paths) = update(&["--name", "n2", "--client-type", "application"]);
    assert_eq!((one.display_name.as_str(), one.etag.as_str()), ("n2", "e7"));
    assert_eq!(paths, ["display_name", "client_type"]);
    let (_, basic, paths) =
        update(&["--add-rule", "allow subscribe x", "--remove-rule", "allow pub pumps/${clientId}/#"]);
    assert_eq!((basic.rules.len(), paths), (2, vec!["basic.rules".to_owned()]));
    let (_, basic, _) = update(&["--rule", "allow both #"]);
    assert_eq!(basic.rules.len(), 1);
    let (_, basic, _) = update(&["--no-rules"]);
    assert_eq!(basic.rules.len(), 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3same\n").unwrap();
    let (_, basic, paths) = update(&["--password-file", file.path().to_str().unwrap()]);
    assert_eq!((basic.password.as_deref(), paths), (Some("s3same"), vec!["basic.password".to_owned()]));

    let (_, basic, paths) = update(&["--any-password"]);
    assert_eq!((basic.password, paths), (None, vec!["basic.password".to_owned()]));
    assert_eq!(served.run(&["credentials", "update", "ops", "--any-password"]).status.code(), Some(2));

    let output = served.run(&["credentials", "update", "pumps", "--remove-rule", "allow both nothing"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("it has no rule"), "{}", stderr(&output));
    let output = served.run(&["credentials", "update", "gateways", "--add-rule", "allow both a"]);
    assert!(stderr(&output).contains("hint: patterns are gw-1.*, .*"), "{}", stderr(&output));
    ok(&served.run(&["credentials", "update", "gateways", "--add-rule", "allow both a", "--leaf", "gw-9"]));
    let Some(Proof::X509(x509)) = served.auth.updated.lock().remove(0).credentials.unwrap().proof else {
        panic!("another proof")
    };
    assert_eq!(x509.leaf_rules[2].pattern, "gw-9");
}

#[test]
fn a_password_is_changed_by_one_who_knows_it() {
    let served = serve();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new");
    std::fs::write(&file, "new\n").unwrap();
    let mut arguments = vec!["credentials", "passwd", "pumps", "--current-password-file", "-"];
    arguments.extend(["--new-password-file", file.to_str().unwrap()]);
    let output = run_with(&served, &arguments, "old\n");
    assert_eq!(stderr(&output), "the password of pumps was changed\n");
    let request = served.auth.passwords.lock().remove(0);
    assert_eq!((request.name, request.new_password), (format!("credentials/{PUMPS}"), "new".to_owned()));
    let output = run_with(&served, &arguments, "wrong\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("reason: WRONG_PASSWORD\nhint: `tbmqctl credentials update --set-password`")
    );
}

#[test]
fn a_credential_is_deleted_only_when_that_was_meant() {
    let served = serve();
    let output = served.run(&["credentials", "delete", "pumps"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("Clients that are connected by it are disconnected."),
        "{}",
        stderr(&output)
    );
    assert_eq!(served.auth.credentials.lock().len(), 3);
    let output = served.run(&["credentials", "delete", "pumps", "gateways", "--yes"]);
    assert_eq!(stderr(&output), "deleted pumps\ndeleted gateways\n");
    assert_eq!(served.auth.credentials.lock().len(), 1);
}

#[test]
fn an_edit_changes_what_was_written_in_the_editor() {
    let served = serve();
    let edit = |editor: &str| {
        let output = tbmqctl(&["credentials", "edit", "pumps"])
            .env("TBMQCTL_SERVER", &served.address)
            .env_remove("VISUAL")
            .env("EDITOR", editor)
            .output()
            .unwrap();
        ok(&output);
        stderr(&output)
    };
    assert_eq!(edit("true"), "cancelled; nothing was changed\n");
    edit("sed -i 's/deny both/deny publish/'");
    let one = served.auth.updated.lock().remove(0).credentials.unwrap();
    assert_eq!(one.etag, "e7");
    let Some(Proof::Basic(basic)) = one.proof else { panic!("another proof") };
    assert_eq!(basic.rules.len(), 2);
    assert_eq!(basic.password, None);
}

/// TBMQ's own form.
fn of_tbmq(name: &str, user: &str, pattern: &str) -> serde_json::Value {
    let value = json!({ "userName": user, "password": "$2a$10$x", "authRules": { "pubAuthRulePatterns": [pattern] } });
    json!({ "name": name, "clientType": "DEVICE", "credentialsType": "MQTT_BASIC", "credentialsValue": value.to_string() })
}

fn written(folder: &Path, name: &str, text: &str) -> String {
    let file = folder.join(name);
    std::fs::write(&file, text).expect("it is written");
    file.to_str().expect("it is text").to_owned()
}

#[test]
fn what_tbmq_has_is_imported_and_what_cant_be_is_told_by_name_pattern_and_reason() {
    let served = serve();
    let folder = tempfile::tempdir().unwrap();
    let web = json!({ "name": "web", "credentialsType": "MQTT_BASIC",
        "credentialsValue": json!({ "userName": "tbmq_websockets_username" }).to_string() });
    let all = json!([
        of_tbmq("good", "a", "\\Qa.b\\E/\\d+"),
        of_tbmq("look-around", "b", "a(?=b)"),
        of_tbmq("possessive", "c", "a*+"),
        of_tbmq("twin", "pumps", ".*"),
        web,
        7
    ]);
    let file = written(folder.path(), "tbmq.json", &all.to_string());
    let output = served.run(&["credentials", "import", "--from", "tbmq", &file]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    for line in [
        "refused  possessive  ",
        "[3]): the pattern \"a*+\" can't be taken over: possessive",
        "refused  look-around  ",
        "[2]): \"a(?=b)\" is no regular expression of linear time: look-around",
        "exists  twin  ",
        "left out  web  ",
        "[6]): it is not a credential of TBMQ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(
        stderr(&output),
        "1 imported, 1 here already, 1 left out, 3 refused\nerror: 3 were refused, as told above\n"
    );
    let held = served.auth.credentials.lock();
    let Some(Proof::Basic(basic)) = &held.last().unwrap().proof else { panic!("another proof") };
    assert_eq!(basic.password_hash.as_deref(), Some("$2a$10$x"));
    let rule = &basic.rules[0];
    assert_eq!(rule.topic, Some(tbmq_proto::control::access_rule::Topic::Regex("a\\.b/[0-9]+".to_owned())));
}

#[test]
fn a_dry_run_saves_nothing_and_an_import_may_be_repeated() {
    let served = serve();
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "tbmq.json", &of_tbmq("n", "a", ".*").to_string());
    let import = |flags: &[&str]| {
        let output = served.run(&[&["credentials", "import", "--from", "tbmq", &file], flags].concat());
        (output.status.code(), stderr(&output), served.auth.credentials.lock().len())
    };
    assert_eq!(import(&["--dry-run"]), (Some(0), "1 imported; dry run: nothing was saved\n".to_owned(), 3));
    assert_eq!(import(&[]), (Some(0), "1 imported\n".to_owned(), 4));
    let (code, text, _) = import(&[]);
    assert_eq!(code, Some(4));
    assert!(
        text.starts_with("1 here already\n") && text.contains("hint: --replace overwrites them"),
        "{text}"
    );
    assert_eq!(import(&["--replace"]), (Some(0), "1 imported\n".to_owned(), 4));
}

#[test]
fn thousands_go_in_calls_of_a_thousand_and_passwords_in_fewer() {
    let served = serve();
    let lines = |from: usize, to: usize, password: &str| -> String {
        let line =
            |n| format!("{{\"displayName\":\"n{n}\",\"basic\":{{\"clientId\":\"c{n}\"{password}}}}}\n");
        (from..to).map(line).collect::<Vec<_>>().concat()
    };
    let output = run_with(&served, &["credentials", "import", "-", "-o", "json"], &lines(0, 2500, ""));
    let summary: serde_json::Value = serde_json::from_str(&ok(&output)).unwrap();
    assert_eq!((&summary["imported"], &summary["anyPassword"]), (&json!(2500), &json!(2500)));
    assert!(stderr(&output).contains("warning: 2500 of them accept any password"), "{}", stderr(&output));
    let mut sizes: Vec<_> = served.auth.imports.lock().drain(..).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [500, 1000, 1000]);
    ok(&run_with(&served, &["credentials", "import", "-"], &lines(3000, 3060, ",\"password\":\"p\"")));
    let mut sizes: Vec<_> = served.auth.imports.lock().drain(..).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [10, 50], "the server hashes them");
}

#[test]
fn what_is_exported_is_imported_again_once_its_password_is_there() {
    let served = serve();
    let exported = ok(&served.run(&["credentials", "export"]));
    assert_eq!(exported.matches("---\n").count(), 3, "{exported}");
    let output = run_with(&served, &["credentials", "import", "-", "--replace"], &exported);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("refused  pumps  (- [1]): it has a password"), "{}", stdout(&output));
    let whole = exported.replace("hasPassword: true", "password: new");
    ok(&run_with(&served, &["credentials", "import", "-", "--replace"], &whole));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.jsonl");
    let output =
        served.run(&["credentials", "export", "--search", "ops", "-o", "json", "-f", file.to_str().unwrap()]);
    ok(&output);
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1);
    let wrong = run_with(&served, &["credentials", "import", "-"], &of_tbmq("n", "z", ".*").to_string());
    assert!(stdout(&wrong).contains("--from tbmq reads it"), "{}", stdout(&wrong));
}

#[test]
fn a_list_is_asked_for_as_the_flags_say() {
    let served = serve();
    let arguments =
        "credentials list --search p --type x509 --client-type application --client-id c --username u --cn n";
    ok(&served.run(&arguments.split(' ').collect::<Vec<_>>()));
    let asked = served.auth.listed.lock().remove(0);
    assert_eq!((asked.text_search.as_str(), asked.client_id.as_str()), ("p", "c"));
    assert_eq!((asked.user_name.as_str(), asked.common_name.as_str()), ("u", "n"));
    assert_eq!(
        (asked.r#type(), asked.client_type()),
        (tbmq_proto::control::CredentialsType::X509, ClientType::Application)
    );
    let cut = served.run(&["credentials", "list", "--limit", "2"]);
    assert_eq!(stderr(&cut), "there are more than these 2; --limit shows them\n");
}
