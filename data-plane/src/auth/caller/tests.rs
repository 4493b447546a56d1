use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use serde_json::json;
use tbmq_auth::http::Provider;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{
    server::{Reply, Server, serve},
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
    let authority = || {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        (certificate, Issuer::new(parameters, key))
    };
    let ((ca, issuer), (stranger, _)) = (authority(), authority());
    let issued = || {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (parameters.signed_by(&key, &issuer).unwrap(), key)
    };
    let ((server, server_key), (client, client_key)) = (issued(), issued());
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(
            vec![server.der().clone()],
            PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(socket).await else { continue };
            let reply = Arc::new(parking_lot::Mutex::new(Reply::Answer(200, "well".to_owned())));
            serve(stream, reply, Arc::default()).await;
        }
    });
    let call = async |pem: serde_json::Value| {
        let endpoint = endpoint(&json!({
            "restEndpointUrl": format!("https://localhost:{port}/"),
            "credentials": pem,
        }));
        Caller::open(&endpoint, TIMEOUT, 100).unwrap().get().await
    };
    let pem = |ca: &rcgen::Certificate| {
        json!({
            "type": "cert.PEM",
            "caCert": ca.pem(),
            "caCertFileName": "ca.pem",
            "cert": client.pem(),
            "privateKey": client_key.serialize_pem(),
        })
    };
    assert_eq!(call(pem(&ca)).await.unwrap().body, b"well");
    assert!(call(pem(&stranger)).await.is_err(), "the server is of another authority");
    assert!(
        call(json!({ "type": "cert.PEM", "caCert": ca.pem() })).await.is_err(),
        "the caller shows nothing"
    );
    assert!(call(json!({ "type": "anonymous" })).await.is_err(), "the system does not trust the authority");
    task.abort();

    let wrong = endpoint(&json!({ "credentials": { "type": "cert.PEM", "caCert": "hush" } }));
    let error = Caller::open(&wrong, TIMEOUT, 100).unwrap_err();
    assert_eq!(error, "credentials.caCert: no certificate in PEM");
}
