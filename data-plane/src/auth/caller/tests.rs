use serde_json::json;
use tbmq_auth::http::Provider;

use super::{
    server::{Authority, Reply, Server},
    *,
};

const TIMEOUT: Duration = Duration::from_secs(10);

/// As the HTTP provider has it.
fn endpoint(config: &serde_json::Value) -> Endpoint {
    Provider::parse(&config.to_string()).unwrap().endpoint().clone()
}

#[tokio::test]
async fn headers_and_credentials_go_with_a_call_and_nothing_goes_elsewhere() {
    let elsewhere = Server::start(Reply::Answer(200, "stolen".to_owned())).await;
    let server = Server::start(Reply::Redirect(elsewhere.url("/"))).await;
    let endpoint = endpoint(&json!({
        "restEndpointUrl": server.url("/check"),
        "headers": { "x-api-key": "key" },
        "credentials": { "type": "basic", "username": "u", "password": "p" },
    }));
    let caller = Caller::open(&endpoint, TIMEOUT, 100).unwrap();
    let answer = caller.call(Method::POST, endpoint.url.clone(), Some("{}".to_owned())).await.unwrap();
    assert_eq!(answer.status, 307);
    let request = server.requests().remove(0);
    assert!(request.starts_with("POST /check HTTP/1.1\r\n") && request.ends_with("\r\n\r\n{}"), "{request}");
    for field in ["x-api-key: key", "authorization: Basic dTpw", "content-type: application/json"] {
        assert!(request.contains(field), "{field}: {request}");
    }
    assert!(elsewhere.requests().is_empty());
    server.set(Reply::Guarded("Basic dTpw".to_owned(), "well".to_owned()));
    assert_eq!(caller.get().await.unwrap().body, b"well");
}

#[tokio::test]
async fn what_is_late_too_long_or_cut_is_no_answer_and_its_reason_holds_no_secret() {
    let server = Server::start(Reply::Cut).await;
    let endpoint = endpoint(&json!({ "restEndpointUrl": server.url("/?password=hush") }));
    let get = async |timeout: Duration| {
        let answer = Caller::open(&endpoint, timeout, 1000).unwrap().get().await;
        let failed = answer.unwrap_err();
        assert!(!format!("{failed} {failed:?}").contains("hush"), "{failed:?}");
        failed
    };
    assert!(matches!(get(TIMEOUT).await, Failed::Io(_)));
    server.set(Reply::Endless);
    assert!(matches!(get(TIMEOUT).await, Failed::TooLong(1000)));
    server.set(Reply::Answer(200, "x".repeat(1001)));
    assert!(matches!(get(TIMEOUT).await, Failed::TooLong(1000)));
    for reply in [Reply::Silence, Reply::Half] {
        server.set(reply);
        assert!(matches!(get(Duration::from_millis(50)).await, Failed::TimedOut(_)));
    }
    drop(server);
    assert!(matches!(get(TIMEOUT).await, Failed::Io(_)));
}

#[tokio::test]
async fn a_server_and_its_caller_know_each_other_by_certificates() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::secured(Reply::Answer(200, "well".to_owned()), &authority).await;
    let call = async |pem: serde_json::Value| {
        let endpoint = endpoint(&json!({
            "restEndpointUrl": server.secured_url("/"),
            "credentials": pem,
        }));
        Caller::open(&endpoint, TIMEOUT, 100).unwrap().get().await
    };
    let pem = |trusted: &Authority, own: &Authority| {
        let (certificate, key) = own.issue("caller");
        json!({
            "type": "cert.PEM",
            "caCert": trusted.pem,
            "caCertFileName": "ca.pem",
            "cert": certificate,
            "privateKey": key,
        })
    };
    assert_eq!(call(pem(&authority, &authority)).await.unwrap().body, b"well");
    assert!(call(pem(&stranger, &authority)).await.is_err(), "the server is of another authority");
    assert!(call(pem(&authority, &stranger)).await.is_err(), "the caller is of another authority");
    assert!(
        call(json!({ "type": "cert.PEM", "caCert": authority.pem })).await.is_err(),
        "the caller shows nothing"
    );
    assert!(call(json!({ "type": "anonymous" })).await.is_err(), "the system does not trust the authority");

    let wrong = endpoint(&json!({ "credentials": { "type": "cert.PEM", "caCert": "hush" } }));
    let error = Caller::open(&wrong, TIMEOUT, 100).unwrap_err();
    assert_eq!(error, "credentials.caCert: no certificate in PEM");
}
