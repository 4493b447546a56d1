//! The binary as a user starts it.

#[cfg(test)]
mod metrics;
#[cfg(test)]
mod sessions;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// `tbmq` with a clean environment, a data folder, and ports that the system picks.
fn tbmq(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tbmq"));
    command.env_clear().env("TBMQ_DATA_DIR", data_dir);
    for port in
        ["LISTENER_TCP_BIND_PORT", "LISTENER_WS_BIND_PORT", "CONTROL_GRPC_BIND_PORT", "HTTP_BIND_PORT"]
    {
        command.env(port, "0");
    }
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A started process; killed (SIGKILL) if the test does not stop it.
struct Started {
    child: Child,
    lines: Vec<String>,
}

impl Started {
    /// Starts and waits for the last start line.
    fn new(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("tbmq starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut lines = Vec::new();
        while !lines.last().is_some_and(|line: &String| line.starts_with("listening http://")) {
            let mut line = String::new();
            assert!(stdout.read_line(&mut line).expect("text") > 0, "it ended after {lines:?}");
            lines.push(line.trim().to_owned());
        }
        Self { child, lines }
    }

    fn address(&self, scheme: &str) -> &str {
        let start = format!("listening {scheme}://");
        self.lines.iter().find_map(|line| line.strip_prefix(&start)).expect("a start line")
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address("http")).expect("a connection");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// SIGTERM, then the exit code.
    fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn it_starts_alone_on_loopback_becomes_ready_and_drains() {
    let folder = tempfile::tempdir().unwrap();
    let started = Started::new(&mut tbmq(folder.path()));
    assert_eq!(started.lines.len(), 4, "{:?}", started.lines);
    for scheme in ["mqtt", "ws", "grpc", "http"] {
        assert!(started.address(scheme).starts_with("127.0.0.1:"), "{:?}", started.lines);
        TcpStream::connect(started.address(scheme)).unwrap();
    }
    let since = Instant::now();
    let mut ready = started.get("/readyz");
    while ready.0 != 200 {
        assert!(since.elapsed() < Duration::from_secs(30), "{ready:?}");
        std::thread::sleep(Duration::from_millis(20));
        ready = started.get("/readyz");
    }
    let (_, metrics) = started.get("/metrics");
    let mut families: Vec<_> = metrics.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let all = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), all, "a metric is registered twice:\n{metrics}");

    let second = tbmq(folder.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(stderr(&second).contains("is in use by another tbmq (process"), "{}", stderr(&second));

    assert_eq!(started.stop(), Some(0));
    // What it kept opens again.
    assert_eq!(Started::new(&mut tbmq(folder.path())).stop(), Some(0));
}

#[test]
fn bad_configuration_stops_it_with_every_problem_before_anything_is_touched() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let file = parent.path().join("tbmq.yml");
    std::fs::write(&file, "listener:\n  tcp:\n    bind-prot: 1884\ncontrol:\n  grpc:\n    bind-port: x\n")
        .unwrap();
    let output =
        tbmq(&folder).env("LISTENER_TCP_BIND_PORT", "70000").arg("--config").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for expected in [
        "unknown key listener.tcp.bind-prot in ",
        "bad value \"x\" for control.grpc.bind-port (in ",
        "bad value \"70000\" for listener.tcp.bind-port (environment variable LISTENER_TCP_BIND_PORT)",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(stdout(&output).is_empty());
    assert!(!folder.exists());
}

#[test]
fn the_configuration_of_all_planes_is_printed_as_one_tree_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let output = tbmq(&folder.path().join("data"))
        .env("DATABASE_URL", "postgres://tbmq:hunter2@db/tbmq")
        .env("TB_IE_MSG_ACK_STRATEGY_TYPE", "RETRY_ALL")
        .arg("--print-config")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for expected in
        ["bind-address: 127.0.0.1", "type: RETRY_ALL", "tbmq:***@db", "durability: power", "port: 0"]
    {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    // What was printed is a configuration file.
    let file = folder.path().join("tbmq.yml");
    std::fs::write(&file, &text).unwrap();
    let again = tbmq(folder.path()).arg("--config").arg(&file).arg("--print-config").output().unwrap();
    assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
    assert_eq!(stdout(&again), text);
}

#[test]
fn planes_that_run_apart_need_kafka() {
    let folder = tempfile::tempdir().unwrap();
    for service_type in ["tbmq", "TBMQ_INTEGRATION_EXECUTOR"] {
        let output = tbmq(folder.path()).env("TB_SERVICE_TYPE", service_type).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("TB_KAFKA_SERVERS is not set"), "{}", stderr(&output));
    }
    let output = tbmq(folder.path()).env("TB_SERVICE_TYPE", "broker").output().unwrap();
    assert!(stderr(&output).contains("bad value \"broker\" for service.type"), "{}", stderr(&output));
}

#[test]
fn the_key_of_secrets_is_made_once_and_a_configured_one_is_added_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secrets.key");
    assert_eq!(Started::new(&mut tbmq(folder.path())).stop(), Some(0));
    let key = std::fs::read_to_string(&file).unwrap();
    let (id, _) = key.split_once(':').unwrap();
    let own = format!("own:{}=", "A".repeat(43));
    for (keys, expected) in [("", format!("[\"{id}\"]")), (own.as_str(), format!("[\"own\", \"{id}\"]"))] {
        let mut command = tbmq(folder.path());
        let mut started = Started::new(command.env("TBMQ_SECRETS_KEYS", keys).stderr(Stdio::piped()));
        let mut log = started.child.stderr.take().unwrap();
        assert_eq!(started.stop(), Some(0));
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        assert!(text.contains(&expected) && text.contains("are sealed"), "{text}");
        assert!(!text.contains(key.trim()) && !text.contains(&own), "{text}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), key);
    }
    let output = tbmq(folder.path()).env("TBMQ_SECRETS_KEYS", "own:AAAA").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("TBMQ_SECRETS_KEYS: key 1 has 3 bytes"), "{}", stderr(&output));
}

#[test]
fn an_address_that_is_taken_ends_it_with_the_address() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for name in ["LISTENER_TCP_BIND_PORT", "CONTROL_GRPC_BIND_PORT", "HTTP_BIND_PORT"] {
        let output = tbmq(folder.path()).env(name, &port).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(&port), "{name}: {}", stderr(&output));
    }
}

#[test]
fn it_serves_this_machine_without_authentication_and_says_so_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut started = Started::new(tbmq(folder.path()).stderr(Stdio::piped()));
    let mut stderr = started.child.stderr.take().expect("piped");
    assert_eq!(started.stop(), Some(0));
    let mut text = String::new();
    stderr.read_to_string(&mut text).expect("text");
    assert_eq!(text.matches("no authentication: everyone on this machine").count(), 1, "{text}");
}

#[test]
fn it_does_not_serve_other_machines_without_authentication() {
    let folder = tempfile::tempdir().unwrap();
    let output = tbmq(folder.path()).env("CONTROL_GRPC_BIND_ADDRESS", "0.0.0.0").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    for setting in ["TBMQ_ADMIN_TOKEN", "TBMQ_AUTH_INSECURE=true", "CONTROL_GRPC_BIND_ADDRESS=127.0.0.1"] {
        assert!(stderr(&output).contains(setting), "{}", stderr(&output));
    }
    assert!(stdout(&output).is_empty(), "{}", stdout(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_and_a_token_its_planes_find_each_other_and_nobody_else_gets_in() {
    use tbmq_proto::control::{ListNodesRequest, node_service_client::NodeServiceClient};
    use tonic::{
        Code, Request,
        transport::{Certificate, ClientTlsConfig, Endpoint},
    };
    const TOKEN: &str = "the-first-token-of-all";
    let folder = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let mut command = tbmq(&folder.path().join("data"));
    command
        .env("CONTROL_GRPC_TLS_PEM_CERT", &certificate)
        .env("CONTROL_GRPC_TLS_PEM_KEY", &key)
        .env("CONTROL_GRPC_CA_FILE", &certificate)
        .env("TBMQ_ADMIN_TOKEN", TOKEN);
    let started = tokio::task::spawn_blocking(move || Started::new(&mut command)).await.unwrap();

    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certified.cert.pem()));
    let address = format!("https://{}", started.address("grpc"));
    let channel = Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
    let mut nodes = NodeServiceClient::new(channel);
    let status = nodes.list_nodes(ListNodesRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut request = Request::new(ListNodesRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        let listed = nodes.list_nodes(request).await.unwrap().into_inner().nodes;
        if listed.iter().any(|node| node.role == "DATA_PLANE" && node.session) {
            break;
        }
        assert!(Instant::now() < deadline, "the data plane has no session: {listed:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(tokio::task::spawn_blocking(|| started.stop()).await.unwrap(), Some(0));
}
