//! `import tbmq` against a control plane in memory: from a server that answers as TBMQ's REST API does (spec §7.1 to §7.3;
//! TBMQ itself is a Java program that is not run here), from files, and from a real PostgreSQL with TBMQ's table (§7.5).

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::Service};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tbmq_harness::{Need, postgres::Postgres, ready};

use crate::plane::{Ended, Served, http, serve, uid};

/// In TBMQ's own form, spaces and all.
const CONFIGURATION: &str = r#"{"topicFilters":["tbmq/#"], "metadata":{},"clientConfiguration":{"restEndpointUrl":"http://h/a%20b","password":"s3cret", "x":1.50}}"#;

fn of_tbmq(number: u32, name: &str) -> String {
    format!(
        r#"{{"id":"{}","createdTime":1742554969254,"name":"{name}","type":"HTTP","enabled":true,"disconnectedTime":0,"configuration":{CONFIGURATION},"additionalInfo":{{"description":"to the warehouse"}},"status":{{"success":true}}}}"#,
        uid(number)
    )
}

/// TBMQ's login and its paged list.
#[derive(Clone)]
struct Rest {
    integrations: Arc<Vec<String>>,
    asked: Arc<Mutex<Vec<String>>>,
}

const TOKEN: &str = "eyJhbGciOiJIUzUxMiJ9.e30.x";

impl Rest {
    async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let path = request.uri().path().to_owned();
        self.asked.lock().push(format!("{} {path}?{query}", request.method()));
        let bearer = format!("Bearer {TOKEN}");
        let is_known = request.headers().get("x-authorization").is_some_and(|given| given == bearer.as_str());
        let is_post = request.method() == Method::POST;
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let (status, text) = match path.as_str() {
            "/api/auth/login" if is_post => {
                let login: Value = serde_json::from_slice(&body).expect("JSON");
                if login == json!({ "username": "admin@x", "password": "pa55" }) {
                    (StatusCode::OK, json!({ "token": TOKEN, "refreshToken": "r" }).to_string())
                } else {
                    let message = "Invalid username or password";
                    (
                        StatusCode::UNAUTHORIZED,
                        json!({ "status": 401, "message": message, "errorCode": 10 }).to_string(),
                    )
                }
            }
            "/api/integrations" if is_known => (StatusCode::OK, self.page(&query)),
            _ => (
                StatusCode::UNAUTHORIZED,
                json!({ "status": 401, "message": "Authentication failed" }).to_string(),
            ),
        };
        let answer = Response::builder().status(status).header("content-type", "application/json");
        answer.body(Full::new(text.into())).expect("a response")
    }

    fn page(&self, query: &str) -> String {
        let of = |name: &str| -> usize {
            let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).unwrap_or_default()
        };
        let (size, page) = (of("pageSize"), of("page"));
        let data: Vec<&str> =
            self.integrations.iter().skip(size * page).take(size).map(String::as_str).collect();
        let all = self.integrations.len();
        format!(
            r#"{{"data":[{}],"totalPages":{},"totalElements":{all},"hasNext":{}}}"#,
            data.join(","),
            all.div_ceil(size),
            size * (page + 1) < all
        )
    }
}

impl Service<Request<Incoming>> for Rest {
    type Response = Response<Full<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let rest = self.clone();
        Box::pin(async move { Ok(rest.answer(request).await) })
    }
}

fn serve_rest(served: &Served, integrations: Vec<String>) -> (Rest, SocketAddr) {
    serve_rest_over(served, integrations, None)
}

/// Over TLS, when there is a certificate.
fn serve_rest_over(
    served: &Served,
    integrations: Vec<String>,
    tls: Option<tokio_rustls::TlsAcceptor>,
) -> (Rest, SocketAddr) {
    let rest = Rest { integrations: Arc::new(integrations), asked: Arc::default() };
    let listener = served.runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("an address");
    let service = rest.clone();
    served.runtime().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (service, tls) = (service.clone(), tls.clone());
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new();
                // A client that does not come to terms goes away again.
                match tls {
                    None => connection.serve_connection(TokioIo::new(stream), service).await.ok(),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => connection.serve_connection(TokioIo::new(stream), service).await.ok(),
                        Err(_) => None,
                    },
                }
            });
        }
    });
    (rest, address)
}

fn report(ended: &Ended) -> Vec<(String, String, String)> {
    let report: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let lines = report["integrations"].as_array().expect("a report");
    lines
        .iter()
        .map(|line| (text(line, "displayName"), text(line, "outcome"), text(line, "reason")))
        .collect()
}

fn outcomes(ended: &Ended) -> Vec<(String, String)> {
    report(ended).into_iter().map(|(name, outcome, _)| (name, outcome)).collect()
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, outcome)| ((*name).to_owned(), (*outcome).to_owned())).collect()
}

#[test]
fn all_pages_of_the_rest_api_come_over_unchanged_and_a_second_time_nothing_does() {
    let served = serve();
    let names: Vec<String> = (0..205).map(|number| format!("n{number:03}")).collect();
    let all = (0..205).map(|number| of_tbmq(number, &names[number as usize])).collect();
    let (rest, address) = serve_rest(&served, all);
    served.write("pw", "pa55\n");
    let url = format!("http://{address}/");
    let arguments = ["import", "tbmq", "--url", &url, "--username", "admin@x", "--password-file", "pw"];
    let ended = served.run(&arguments);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr, "205 imported\n");
    assert!(
        ended.stdout.contains("  n000: escapes such as %20 in its URL stay as they are"),
        "{}",
        ended.stdout
    );
    assert_eq!(served.plane.names(), names);
    let one = served.plane.get("n007").unwrap();
    assert_eq!((one.uid, one.enabled, one.description.as_str()), (uid(7), true, "to the warehouse"));
    assert_eq!(one.configuration_json, CONFIGURATION, "byte for byte");
    let asked: Vec<String> = rest.asked.lock().drain(..).collect();
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert_eq!(asked[3], "GET /api/integrations?pageSize=100&page=2&sortProperty=id&sortOrder=ASC");

    let revision = served.plane.get("n007").unwrap().revision;
    let again = served.run(&arguments);
    assert_eq!((again.code, again.stderr.as_str()), (Some(0), "205 skipped\n"));
    assert_eq!(served.plane.get("n007").unwrap().revision, revision);
}

#[test]
fn a_wrong_password_and_a_tbmq_that_is_away_are_told() {
    let served = serve();
    let (_rest, address) = serve_rest(&served, vec![]);
    let url = format!("http://{address}");
    let with = |url: &str| {
        let mut command = served.command(&["import", "tbmq", "--url", url, "--username", "admin@x"]);
        Ended::from(command.env("TBMQCTL_TBMQ_PASSWORD", "wr0ng").output().unwrap())
    };
    let refused = with(&url);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused
            .stderr
            .starts_with("error: TBMQ refused the login: 401 Unauthorized Invalid username or password\n"),
        "{}",
        refused.stderr
    );
    assert!(!refused.stderr.contains("wr0ng"));
    let away = with(&crate::nobody());
    assert_eq!(away.code, Some(3), "{away:?}");
    assert!(
        away.stderr.contains("connection refused") || away.stderr.contains("Connection refused"),
        "{away:?}"
    );
    assert_eq!(with("tbmq:8083").code, Some(2));
    for arguments in [
        &["import", "tbmq"][..],
        &["import", "tbmq", "--url", &url],
        &["import", "tbmq", "--url", &url, "--username", "u"],
        &["import", "tbmq", "-f", "a", "--database", "postgres://x"],
        &["import", "tbmq", "--database", "mysql://root:hush@x/y"],
    ] {
        let ended = served.run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(!ended.stderr.contains("hush"), "{}", ended.stderr);
    }
}

#[test]
fn what_is_here_with_another_configuration_is_reported_and_overwritten_only_when_told() {
    let served = serve();
    served.plane.hold(1, http("mine", "http://other"));
    served.plane.hold(50, http("taken", "http://other"));
    served.write(
        "all.json",
        &format!("[{},{},{}]", of_tbmq(1, "mine"), of_tbmq(2, "taken"), of_tbmq(3, "new")),
    );
    let dry = served.run(&["import", "tbmq", "-f", "all.json", "--dry-run", "-o", "json"]);
    assert_eq!(dry.code, Some(1), "{dry:?}");
    let expected = [("mine", "differs"), ("taken", "refused"), ("new", "imported")];
    assert_eq!(outcomes(&dry), pairs(&expected));
    assert_eq!(served.plane.names(), ["mine", "taken"], "nothing was saved");

    let real = served.run(&["import", "tbmq", "-f", "all.json", "-o", "json"]);
    assert_eq!(outcomes(&real), pairs(&expected));
    let reasons: Vec<String> = report(&real).into_iter().map(|(_, _, reason)| reason).collect();
    assert_eq!(reasons, ["configuration_json, description", "the name is taken", ""]);
    assert_eq!(served.plane.names(), ["mine", "new", "taken"]);

    served.write("all.json", &format!("[{},{}]", of_tbmq(1, "mine"), of_tbmq(3, "new")));
    let differs = served.run(&["import", "tbmq", "-f", "all.json"]);
    assert_eq!(differs.code, Some(4), "{differs:?}");
    assert!(differs.stderr.contains("hint: --update overwrites them"), "{}", differs.stderr);
    let updated = served.run(&["import", "tbmq", "-f", "all.json", "--update", "-o", "json"]);
    assert_eq!(updated.code, Some(0), "{updated:?}");
    assert_eq!(outcomes(&updated), pairs(&[("mine", "updated"), ("new", "skipped")]));
    assert_eq!(served.plane.get("mine").unwrap().configuration_json, CONFIGURATION);
}

#[test]
fn imported_disabled_and_labelled_since_is_no_difference() {
    let served = serve();
    served.write(
        "page.json",
        &format!(r#"{{"data":[{}],"totalPages":1,"totalElements":1,"hasNext":false}}"#, of_tbmq(1, "x")),
    );
    let ended = served.run(&["import", "tbmq", "-f", "page.json", "--disabled"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut held = served.plane.get("x").unwrap();
    assert!(!held.enabled);
    held.enabled = true;
    held.labels.insert("zone".to_owned(), "a".to_owned());
    served.plane.hold(1, held);
    let again = served.run(&["import", "tbmq", "-f", "page.json", "--disabled"]);
    assert_eq!((again.code, again.stderr.as_str()), (Some(0), "1 skipped\n"));
}

#[test]
fn what_is_no_integration_is_refused_and_the_others_come_over() {
    let served = serve();
    served.write("all.json", &format!("[{},{}]", r#"{"name":"empty","type":"HTTP"}"#, of_tbmq(3, "new")));
    let ended = served.run(&["import", "tbmq", "-f", "all.json", "-o", "json"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(report(&ended)[0].2, "\"empty\" has no configuration");
    assert_eq!(served.plane.names(), ["new"]);
}

#[test]
fn a_database_of_tbmq_is_read_without_being_written() {
    if !ready("a_database_of_tbmq_is_read_without_being_written", &[Need::Postgres]) {
        return;
    }
    let postgres = Postgres::shared();
    let url = postgres.create_database().unwrap();
    let database = url.rsplit('/').next().unwrap();
    let served = serve();
    let missing = served.run(&["import", "tbmq", "--database", &url]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stderr.contains("that is not a database of TBMQ"), "{}", missing.stderr);

    let sql = |statement: &str| postgres.sql(database, statement).unwrap();
    sql(
        "CREATE TABLE integration (id uuid NOT NULL CONSTRAINT integration_pkey PRIMARY KEY, created_time bigint NOT NULL, \
         disconnected_time bigint, additional_info varchar, configuration varchar(10000000), enabled boolean, \
         name varchar(255), type varchar(255), status varchar)",
    );
    sql(&format!(
        "INSERT INTO integration VALUES ('{}', 2, 0, '{{\"description\":\"to the warehouse\",\"color\":\"red\"}}', '{CONFIGURATION}', true, \
         'second', 'HTTP', '{{\"success\":true}}'), ('{}', 1, 5, NULL, '{CONFIGURATION}', NULL, 'first', 'HTTP', NULL)",
        uid(2),
        uid(1)
    ));
    // Whoever writes fails.
    sql(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on"));
    let before = sql("SELECT xmin, * FROM integration ORDER BY id");
    let ended = served.run(&["import", "tbmq", "--database", &url, "-o", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(outcomes(&ended), pairs(&[("first", "imported"), ("second", "imported")]));
    assert!(ended.stdout.contains("left out: color"), "{}", ended.stdout);
    let (first, second) = (served.plane.get("first").unwrap(), served.plane.get("second").unwrap());
    assert_eq!((first.uid, first.enabled, first.description.as_str()), (uid(1), false, ""));
    assert_eq!((second.uid, second.enabled, second.description.as_str()), (uid(2), true, "to the warehouse"));
    assert_eq!(second.configuration_json, CONFIGURATION, "byte for byte");
    assert_eq!(sql("SELECT xmin, * FROM integration ORDER BY id"), before);
    let again = served.run(&["import", "tbmq", "--database", &url]);
    assert_eq!((again.code, again.stderr.as_str()), (Some(0), "2 skipped\n"));
}

#[test]
fn a_database_that_is_away_is_exit_code_3() {
    let served = serve();
    let url = format!("postgres://tbmq:hush@{}/tbmq", crate::nobody().trim_start_matches("http://"));
    let ended = served.run(&["import", "tbmq", "--database", &url]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(!ended.stderr.contains("hush"), "{}", ended.stderr);
}

#[test]
fn a_certificate_is_trusted_when_it_is_named_and_only_then() {
    let served = serve();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (_rest, address) = serve_rest_over(&served, vec![of_tbmq(1, "x")], Some(tls));
    served.write("ca.pem", &made.cert.pem());
    served.write("pw", "pa55");
    let url = format!("https://{address}");
    let arguments = ["import", "tbmq", "--url", &url, "--username", "admin@x", "--password-file", "pw"];
    let unknown = served.run(&arguments);
    assert_eq!(unknown.code, Some(3), "{unknown:?}");
    assert!(unknown.stderr.contains("certificate"), "{}", unknown.stderr);
    let named = served.run(&[&arguments[..], &["--tbmq-ca-file", "ca.pem"]].concat());
    assert_eq!((named.code, named.stderr.as_str()), (Some(0), "1 imported\n"));
}
