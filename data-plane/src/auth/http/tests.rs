use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::*;
use crate::auth::caller::server::{Reply, Server};

fn asker<'a>() -> Asker<'a> {
    let identity = Identity { client_id: "c", user_name: Some("u"), common_name: None };
    Asker { identity, password: Some(b"hush") }
}

fn opened(server: &Server, change: impl FnOnce(&mut Value)) -> Http {
    let mut config = json!({ "restEndpointUrl": server.url("/check"), "readTimeoutMs": 10_000 });
    change(&mut config);
    Http::open(&config.to_string()).unwrap()
}

async fn asked(http: &Http) -> Result<Outcome, Call> {
    let answer = http.ask(&asker(), || 0).await;
    answer.map(|answer| http.judge(&answer, &asker().identity)).map_err(|none| {
        assert!(!none.reason.contains("hush"), "{}", none.reason);
        none.call
    })
}

#[tokio::test]
async fn the_service_decides() {
    let server =
        Server::start(Reply::json(&json!({ "result": "success", "clientType": "APPLICATION" }))).await;
    let http = opened(&server, |_| {});
    let Ok(Outcome::Accepted(accepted)) = asked(&http).await else { panic!("not accepted") };
    assert_eq!(accepted.client_type, tbmq_auth::credentials::ClientType::Application);
    let request = server.requests().remove(0);
    assert!(request.ends_with(r#"{"clientId":"c","username":"u","password":"hush"}"#), "{request}");
    server.set(Reply::json(&json!({ "result": "failure" })));
    assert!(matches!(asked(&http).await, Ok(Outcome::Refused(_))));
    server.set(Reply::Answer(204, String::new()));
    assert!(matches!(asked(&http).await, Ok(Outcome::Accepted(_))));

    let get = opened(&server, |config| {
        config["requestMethod"] = json!("GET");
        config["requestBody"] = json!({ "p": "${password}&x" });
    });
    asked(&get).await.unwrap();
    assert!(server.requests()[3].starts_with("GET /check?p=hush%26x HTTP/1.1\r\n"));
}

#[tokio::test]
async fn whatever_else_happens_nobody_is_let_in_and_nobody_is_refused() {
    let server = Server::start(Reply::Cut).await;
    let http = |timeout_ms: u64| {
        opened(&server, |config| {
            config["readTimeoutMs"] = json!(timeout_ms);
            config["maxInMemoryBufferSizeInKb"] = json!(1);
            config["requestMethod"] = json!("GET");
        })
    };
    assert!(matches!(asked(&http(10_000)).await, Err(Call::Failed)));
    server.set(Reply::Endless);
    assert!(matches!(asked(&http(10_000)).await, Err(Call::TooLong)));
    let begun = Instant::now();
    for reply in [Reply::Silence, Reply::Half] {
        server.set(reply);
        assert!(matches!(asked(&http(50)).await, Err(Call::TimedOut)));
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    let elsewhere = Server::start(Reply::json(&json!({ "result": "success" }))).await;
    for reply in [
        Reply::Redirect(elsewhere.url("/check")),
        Reply::Answer(200, "<html>success</html>".to_owned()),
        Reply::Answer(403, r#"{"result":"success"}"#.to_owned()),
        Reply::Answer(500, String::new()),
    ] {
        server.set(reply.clone());
        assert!(matches!(asked(&http(10_000)).await, Ok(Outcome::Skipped(_))), "{reply:?}");
    }
    assert!(elsewhere.requests().is_empty());
    let not_text = Asker { password: Some(b"\xff"), ..asker() };
    let unsent = opened(&server, |_| {}).ask(&not_text, || 0).await.unwrap_err();
    assert_eq!(unsent.call, Call::Unsent);
}

#[tokio::test]
async fn a_service_that_fails_is_left_alone_and_tried_again() {
    let server = Server::start(Reply::Answer(503, String::new())).await;
    let http = opened(&server, |_| {});
    let now_ms = AtomicI64::new(1_000);
    let ask = async || http.ask(&asker(), || now_ms.load(Ordering::Relaxed)).await;
    for _ in 0..5 {
        assert_eq!(ask().await.unwrap().status, 503);
    }
    let resting = ask().await.unwrap_err();
    assert_eq!(resting.call, Call::Resting);
    assert_eq!(server.requests().len(), 5);
    server.set(Reply::Answer(200, String::new()));
    now_ms.fetch_add(10_000, Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(ask().await.unwrap().status, 200);
    }
    // Answers that let nobody in are well, too.
    server.set(Reply::Answer(401, String::new()));
    for _ in 0..7 {
        assert_eq!(ask().await.unwrap().status, 401);
    }
}
