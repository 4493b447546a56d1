use std::time::Instant;

use serde_json::{Value, json};
use tbmq_auth::external::Outcome;

use super::{
    signer::{self, Signer},
    *,
};
use crate::auth::caller::server::{Reply, Server};

fn set(signers: &[&Signer]) -> Reply {
    Reply::json(&signer::set(signers))
}

fn config(url: &str) -> String {
    let verifier = json!({ "jwtVerifierType": "JWKS", "endpoint": url, "headers": { "x-key": "1" } });
    json!({ "jwtVerifierConfiguration": verifier, "authRules": Value::Null }).to_string()
}

/// Reads the set of this server, with this pause in between.
fn opened(server: &Server, pause: Duration) -> Jwt {
    let mut jwt = Jwt::open(&config(&server.url("/keys")), None).unwrap();
    jwt.set.as_mut().unwrap().pause = pause;
    jwt
}

fn lets_in(jwt: &Jwt, signer: &Signer) -> bool {
    let identity = Identity { client_id: "c", user_name: None, common_name: None };
    let token = signer.token(&json!({ "sub": "x" }));
    matches!(jwt.judge(Some(token.as_bytes()), &identity, 0).outcome, Outcome::Accepted(_))
}

/// Waits until it holds, while the set is followed.
async fn until(jwt: &Jwt, failures: &Counter, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = jwt.follow(failures, || ()) => {}
        result = tokio::time::timeout(Duration::from_secs(20), wait) => result.expect("it holds in time"),
    }
}

#[tokio::test]
async fn a_rotated_key_counts_when_it_is_first_shown_and_the_old_one_no_more() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let server = Server::start(set(&[&old])).await;
    let jwt = opened(&server, Duration::from_millis(20));
    let failures = Counter::default();
    assert!(!lets_in(&jwt, &old), "nothing was read yet");
    until(&jwt, &failures, || lets_in(&jwt, &old)).await;
    assert!(server.requests()[0].starts_with("GET /keys "));
    assert!(server.requests()[0].contains("x-key: 1"));

    // The set is due in five minutes: a token of the new key has it read at once.
    server.set(set(&[&new]));
    until(&jwt, &failures, || lets_in(&jwt, &new)).await;
    assert!(!lets_in(&jwt, &old));
    assert_eq!(failures.get(), 0);
}

#[tokio::test]
async fn a_set_that_cant_be_read_leaves_the_keys_and_is_counted() {
    let (own, unknown) = (Signer::new("own"), Signer::new("unknown"));
    let server = Server::start(set(&[&own])).await;
    let jwt = opened(&server, Duration::from_millis(5));
    let failures = Counter::default();
    until(&jwt, &failures, || lets_in(&jwt, &own)).await;
    let bad = [
        Reply::Answer(200, "<html>".to_owned()),
        Reply::Answer(500, String::new()),
        Reply::Answer(200, "{\"keys\":[]}".to_owned()),
        Reply::Redirect(server.url("/other")),
        Reply::Endless,
        Reply::Cut,
    ];
    for reply in bad {
        server.set(reply);
        let before = failures.get();
        until(&jwt, &failures, || {
            // Somebody asks for a key that is not there.
            assert!(!lets_in(&jwt, &unknown));
            failures.get() > before
        })
        .await;
        assert!(lets_in(&jwt, &own));
    }
}

#[tokio::test]
async fn unknown_keys_do_not_make_it_ask_more_often_than_the_pause_allows() {
    let (own, unknown) = (Signer::new("own"), Signer::new("unknown"));
    let server = Server::start(set(&[&own])).await;
    let pause = Duration::from_millis(200);
    let jwt = opened(&server, pause);
    let (failures, begun) = (Counter::default(), Instant::now());
    until(&jwt, &failures, || {
        assert!(!lets_in(&jwt, &unknown));
        server.requests().len() >= 4
    })
    .await;
    assert!(begun.elapsed() >= pause * 3, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nobody_waits_for_a_server_that_does_not_answer() {
    let (own, server) = (Signer::new("own"), Server::start(Reply::Silence).await);
    let jwt = opened(&server, Duration::from_millis(5));
    let failures = Counter::default();
    until(&jwt, &failures, || !server.requests().is_empty()).await;
    let begun = Instant::now();
    assert!(!lets_in(&jwt, &own));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn keys_outlive_a_new_configuration_with_the_same_place() {
    let own = Signer::new("own");
    let server = Server::start(set(&[&own])).await;
    let jwt = opened(&server, Duration::from_millis(5));
    until(&jwt, &Counter::default(), || lets_in(&jwt, &own)).await;
    let again = Jwt::open(&config(&server.url("/keys")), Some(&jwt)).unwrap();
    assert!(lets_in(&again, &own));
    let elsewhere = Jwt::open(&config(&server.url("/other")), Some(&jwt)).unwrap();
    assert!(!lets_in(&elsewhere, &own));
    assert!(Jwt::open("{}", None).unwrap_err().contains("jwtVerifierConfiguration"));
}
