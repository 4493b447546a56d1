//! Blocked and refused clients, and providers, against a control plane that answers as told.

use serde_json::Value;
use tbmq_proto::control::blocked_client::{RegexMatchTarget, Type};

use crate::{
    fake::{serve, stdout},
    stderr,
};

#[test]
fn clients_are_blocked_by_each_kind_of_who_they_are() {
    let served = serve();
    for (flags, kind, target, value) in [
        ("--client-id c", Type::ClientId, RegexMatchTarget::Unspecified, "c"),
        ("--username u --expires 2h", Type::Username, RegexMatchTarget::Unspecified, "u"),
        ("--address 10.3.0.0/16", Type::IpAddress, RegexMatchTarget::Unspecified, "10.3.0.0/16"),
        ("--pattern t.* --of username", Type::Regex, RegexMatchTarget::ByUsername, "t.*"),
    ] {
        let command = format!("blocked add {flags} --description why");
        let output = served.run(&command.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(0), "{flags}: {}", stderr(&output));
        let one = served.auth.blocked.lock().pop().unwrap();
        assert_eq!((one.r#type(), one.regex_match_target(), one.value.as_str()), (kind, target, value));
        assert_eq!(
            (one.description.as_str(), one.expire_time.is_some()),
            ("why", flags.contains("--expires"))
        );
    }
    for flags in ["", "--client-id c --username u", "--pattern x", "--client-id c --of username"] {
        let command = format!("blocked create {flags}");
        let output = served.run(&command.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{flags}");
    }
}

#[test]
fn a_blocked_client_is_found_by_its_value_changed_and_let_in_again() {
    let served = serve();
    let output =
        served.run(&["blocked", "update", "pump-7", "--expires", "2030-01-01T00:00:00Z", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("2030-01-01T00:00:00Z"), "{}", stdout(&output));
    let output = served.run(&["blocked", "remove", "pump-7", "test-.*"]);
    assert_eq!(stderr(&output), "pump-7 may connect again\ntest-.* may connect again\n");
    assert_eq!(served.auth.blocked.lock().len(), 2);
    let output = served.run(&["blocked", "delete", "twin"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("hint: `tbmqctl blocked list -o wide`"), "{}", stderr(&output));
    let output = served.run(&["blocked", "delete", "blockedClients/CLIENT_ID%7Ctwin"]);
    assert_eq!((output.status.code(), served.auth.blocked.lock().len()), (Some(0), 1));
    let output = served.run(&["blocked", "get", "nobody"]);
    assert!(stderr(&output).starts_with("error: \"nobody\" is not blocked\nhint: "), "{}", stderr(&output));
}

#[test]
fn refused_clients_are_looked_for_and_forgotten() {
    let served = serve();
    assert_eq!(
        stdout(&served.run(&["unauthorized", "list", "--reason", "password", "-o", "name"])),
        "pump-7\n"
    );
    assert_eq!(stdout(&served.run(&["unauthorized", "list", "--address", "192.", "-o", "name"])), "");
    let output = served.run(&["unauthorized", "clear"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("hint: --yes answers in advance"), "{}", stderr(&output));
    assert_eq!(stdout(&served.run(&["unauthorized", "clear", "--yes"])), "forgot 1 clients\n");
    let served = serve();
    assert_eq!(stderr(&served.run(&["unauthorized", "delete", "pump-7"])), "forgot pump-7\n");
    assert_eq!(served.auth.refused.lock().len(), 0);
    assert_eq!(served.run(&["unauthorized", "get", "pump-7"]).status.code(), Some(1));
}

#[test]
fn a_provider_is_switched_with_its_configuration_as_it_is() {
    let served = serve();
    let output = served.run(&["auth", "enable", "jwt", "basic"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "MQTT_BASIC is enabled already\n");
    let jwt = served.auth.providers.lock()[1].clone();
    assert_eq!((jwt.enabled, jwt.configuration_json.as_str()), (true, r#"{"type":"JWT","secret":"***"}"#));
    let output = served.run(&["auth", "disable", "jwt"]);
    assert_eq!(output.status.code(), Some(0), "others stay: {}", stderr(&output));
    let output = served.run(&["auth", "disable", "basic"]);
    assert_eq!(output.status.code(), Some(0), "SCRAM stays: {}", stderr(&output));
}

#[test]
fn the_last_provider_is_not_disabled_without_a_question() {
    let served = serve();
    let output = served.run(&["auth", "disable", "basic", "scram"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("everyone may connect"), "{}", stderr(&output));
    assert!(served.auth.providers.lock()[0].enabled);
    assert_eq!(served.run(&["auth", "disable", "basic", "scram", "--yes"]).status.code(), Some(0));
    assert!(!served.auth.providers.lock()[0].enabled);
}

#[test]
fn a_configuration_comes_from_a_file_and_an_old_etag_is_refused() {
    let served = serve();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "type: MQTT_BASIC\nauthStrategy: USERNAME\n").unwrap();
    let path = file.path().to_str().unwrap();
    let output = served.run(&["auth", "update", "basic", "-f", path, "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(shown["configuration"]["authStrategy"], "USERNAME");
    assert_eq!(shown["enabled"], true);
    let output = served.run(&["auth", "update", "basic", "-f", path, "--etag", "old"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("reason: ETAG_MISMATCH"), "{}", stderr(&output));
    std::fs::write(file.path(), "- a\n").unwrap();
    assert_eq!(served.run(&["auth", "update", "basic", "-f", path]).status.code(), Some(2));
}

#[test]
fn the_order_is_set_and_has_no_place_for_scram() {
    let served = serve();
    let output = served.run(&["auth", "order", "set", "jwt", "basic"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "JWT, MQTT_BASIC, X_509, HTTP\n"));
    assert_eq!(served.auth.order.lock().etag, "e-order");
    let output = served.run(&["auth", "order", "set", "scram"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("hint: a client that wants it says so"), "{}", stderr(&output));
}
