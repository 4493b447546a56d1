use proptest::prelude::*;
use serde_json::json;
use tbmq_mqtt::packet::Qos;

use super::*;

fn provider(config: Value) -> Provider {
    Provider::parse(&config.to_string()).unwrap()
}

fn asker<'a>() -> Asker<'a> {
    let identity = Identity { client_id: "c-1", user_name: Some("alice"), common_name: Some("cn") };
    Asker { identity, password: Some(b"hush") }
}

fn body(template: Value, asker: &Asker<'_>) -> Value {
    let request = provider(json!({ "requestBody": template })).request(asker).unwrap();
    serde_json::from_str(&request.body.unwrap()).unwrap()
}

#[test]
fn defaults_are_those_of_tbmq() {
    let provider = provider(json!({ "type": "HTTP" }));
    assert_eq!(provider.endpoint().url.as_str(), "http://localhost:8080/");
    let limits = Limits { timeout: Duration::from_secs(5), parallel: 100, answer_bytes: 256 * 1024 };
    assert_eq!(provider.limits(), limits);
    let request = provider.request(&asker()).unwrap();
    assert_eq!(request.method, Method::Post);
    let body: Value = serde_json::from_str(&request.body.unwrap()).unwrap();
    assert_eq!(body, json!({ "clientId": "c-1", "username": "alice", "password": "hush" }));
}

#[test]
fn placeholders_are_filled_wherever_there_is_text() {
    let template = json!({
        "a": "${clientId}/${username}/${password}/${commonName}",
        "b": [{ "c": "${clientId}" }, 1, true, null],
        "d": "${other} ${",
        "${clientId}": "x",
    });
    let expected = json!({
        "a": "c-1/alice/hush/cn", "b": [{ "c": "c-1" }, 1, true, null], "d": "${other} ${", "${clientId}": "x",
    });
    assert_eq!(body(template.clone(), &asker()), expected);
    // As a text that holds JSON, which is TBMQ's form.
    assert_eq!(body(json!(template.to_string()), &asker()), expected);
}

#[test]
fn what_is_missing_is_null_or_nothing() {
    let identity = Identity { user_name: None, common_name: None, ..asker().identity };
    let nobody = Asker { identity, password: None };
    let template = json!({ "u": "${username}", "p": "${password}", "text": "-${username}-${commonName}-" });
    assert_eq!(body(template.clone(), &nobody), json!({ "u": null, "p": null, "text": "---" }));
    let provider = provider(json!({ "requestMethod": "GET", "requestBody": template }));
    assert_eq!(provider.request(&nobody).unwrap().url.query(), Some("text=---"));
}

#[test]
fn a_query_is_encoded_and_keeps_what_the_url_has() {
    let provider = provider(json!({
        "restEndpointUrl": "https://auth.example/check?tenant=1",
        "requestMethod": "GET",
        "requestBody": { "id": "${clientId}", "n": 5, "list": ["${username}"] },
    }));
    let identity = Identity { client_id: "a&admin=true#x y+é", ..asker().identity };
    let request = provider.request(&Asker { identity, ..asker() }).unwrap();
    assert_eq!(request.body, None);
    let query = "tenant=1&id=a%26admin%3Dtrue%23x+y%2B%C3%A9&n=5&list=%5B%22alice%22%5D";
    assert_eq!(request.url.query(), Some(query));
    assert_eq!(request.url.fragment(), None);
}

proptest! {
    #[test]
    fn no_client_gets_out_of_its_text(id in ".*", user in r#"([\\"{}$,:a-z]|\$\{password\}|\$\{clientId\}){0,30}"#) {
        let identity = Identity { client_id: &id, user_name: Some(&user), common_name: None };
        let asker = Asker { identity, password: Some(b"hush") };
        let template = json!({ "id": "${clientId}", "u": "user ${username}!", "admin": false });
        let expected = json!({ "id": id, "u": format!("user {user}!"), "admin": false });
        prop_assert_eq!(body(template.clone(), &asker), expected);
        let provider = provider(json!({ "requestMethod": "GET", "requestBody": template }));
        let url = provider.request(&asker).unwrap().url;
        let pairs: Vec<_> = url.query_pairs().into_owned().collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        prop_assert_eq!(pairs, [pair("id", &id), pair("u", &format!("user {user}!")), pair("admin", "false")]);
    }
}

#[test]
fn a_password_that_is_no_text_is_not_made_one() {
    let asker = Asker { password: Some(b"\xff"), ..asker() };
    assert_eq!(provider(json!({})).request(&asker), Err(NotText));
    // Nobody asks for it.
    assert!(provider(json!({ "requestBody": { "id": "${clientId}" } })).request(&asker).is_ok());
}

fn judged(status: u16, answer: &str) -> Outcome {
    let provider =
        provider(json!({ "authRules": { "pub": ["default"] }, "defaultClientType": "APPLICATION" }));
    provider.judge(status, answer.as_bytes(), &asker().identity)
}

/// Client type, and which of two topics may be published.
fn accepted(answer: &str) -> (ClientType, [bool; 2]) {
    let Outcome::Accepted(accepted) = judged(200, answer) else { panic!("{answer}") };
    let may = ["default", "own/c-1"].map(|topic| accepted.acl.may_publish(topic, Qos::AtLeastOnce, false));
    (accepted.client_type, may)
}

#[test]
fn an_answer_says_what_the_client_is_and_may_do_or_leaves_it_to_the_configuration() {
    let default = (ClientType::Application, [true, false]);
    for answer in ["", " \n", r#"{"result":"success"}"#, r#"{"result":"success","clientType":null,"more":1}"#]
    {
        assert_eq!(accepted(answer), default, "{answer}");
    }
    let own =
        r#"{"result":"SUCCESS","clientType":"DEVICE","authRules":{"pub":["own/${clientId}"],"sub":[]}}"#;
    assert_eq!(accepted(own), (ClientType::Device, [false, true]));
    let nothing = r#"{"result":"success","authRules":{"pub":null}}"#;
    assert_eq!(accepted(nothing), (ClientType::Application, [false, false]));
}

#[test]
fn a_failure_stops_and_everything_else_is_left_to_the_next_provider() {
    assert!(matches!(judged(200, r#"{"result":"failure"}"#), Outcome::Refused(_)));
    for (status, answer) in [
        (200, r#"{"result":"skipped"}"#),
        (200, r#"{"result":"yes"}"#),
        (200, r#"{"clientType":"DEVICE"}"#),
        (200, r#"{"result":"success","clientType":"ROOT"}"#),
        (200, r#"{"result":"success","authRules":{"pub":["("]}}"#),
        (200, r#"{"result":"success","authRules":"all"}"#),
        (200, r#"{"result":"success""#),
        (200, "<html>"),
        (200, "\u{1F600}"),
        (302, ""),
        (401, r#"{"result":"failure"}"#),
        (500, ""),
        (199, ""),
    ] {
        assert!(matches!(judged(status, answer), Outcome::Skipped(_)), "{status} {answer}");
    }
}

#[test]
fn a_bad_configuration_is_told_with_its_field() {
    let invalid = |config: Value| Provider::parse(&config.to_string()).unwrap_err().to_string();
    for (field, config) in [
        ("restEndpointUrl", json!({ "restEndpointUrl": "ftp://a" })),
        ("readTimeoutMs", json!({ "readTimeoutMs": 0 })),
        ("readTimeoutMs", json!({ "readTimeoutMs": 60_001 })),
        ("maxParallelRequestsCount", json!({ "maxParallelRequestsCount": 0 })),
        ("maxInMemoryBufferSizeInKb", json!({ "maxInMemoryBufferSizeInKb": 10_241 })),
        ("requestBody", json!({ "requestBody": "{\"id\": ${clientId}}" })),
        ("requestBody", json!({ "requestBody": ["${clientId}"] })),
        ("authRules", json!({ "authRules": { "sub": ["(?=x)"] } })),
        ("headers", json!({ "headers": { "a": 1 } })),
    ] {
        let text = invalid(config);
        assert!(text.starts_with(&format!("{field}: ")), "{text}");
    }
    assert!(invalid(json!({ "requestMethod": "PUT" })).contains("PUT"));
    assert!(invalid(json!({ "readTimeout": 5 })).contains("readTimeout"));
}

#[test]
fn a_service_that_fails_is_left_alone_and_tried_by_one_call() {
    let mut breaker = Breaker::default();
    let mut now_ms = 1_000;
    // Failures that are not in a row do not count.
    for _ in 0..3 {
        for _ in 0..4 {
            assert!(breaker.may_call(now_ms) && !breaker.failed(now_ms));
        }
        breaker.succeeded();
    }
    for last in [false, false, false, false, true] {
        assert!(breaker.may_call(now_ms));
        assert_eq!(breaker.failed(now_ms), last);
    }
    for _ in 0..2 {
        assert!(!breaker.may_call(now_ms));
        assert!(!breaker.may_call(now_ms + REST_MS - 1));
        now_ms += REST_MS;
        assert!(breaker.may_call(now_ms));
        assert!(!breaker.may_call(now_ms), "one call at a time");
        assert!(!breaker.failed(now_ms), "told once");
    }
    // A call that never came to an end holds nothing up for ever.
    now_ms += REST_MS;
    assert!(breaker.may_call(now_ms) && breaker.may_call(now_ms + REST_MS));
    breaker.succeeded();
    assert!(breaker.may_call(now_ms) && breaker.may_call(now_ms));
}
