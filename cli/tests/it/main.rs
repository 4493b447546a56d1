//! The binary as a user runs it: exit codes, and what goes to stdout and to stderr.

mod access;
mod apply;
mod auth_fake;
mod credentials;
mod doors;
mod fake;
mod golden;
mod import;
mod kafka;
mod mqtt;
mod plane;
mod resources;
mod server;
mod terminal;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Output, Stdio},
};

fn tbmqctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tbmqctl"));
    command.args(arguments);
    // Whoever runs the tests may have a server and contexts of their own.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TBMQCTL_") {
            command.env_remove(name);
        }
    }
    command.env("TBMQCTL_CONFIG", "/nonexistent/config.yaml");
    command
}

fn run(arguments: &[&str]) -> Output {
    tbmqctl(arguments).output().expect("tbmqctl starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("a bound address"))
}

#[test]
fn a_server_that_is_away_is_exit_code_3_with_a_hint_on_stderr() {
    for command in ["list", "watch"] {
        let output = run(&["integration", command, "--server", &nobody()]);
        assert_eq!(output.status.code(), Some(3), "{command}");
        assert!(output.stdout.is_empty(), "{command}");
        assert!(stderr(&output).contains("hint: is a control plane running there?"), "{}", stderr(&output));
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let server = nobody();
    for arguments in [
        &["integration", "frobnicate"][..],
        &["integration", "create"],
        &["integration", "create", "-f", "/nowhere/x.json"],
        &["integration", "list", "--server", "ftp://localhost"],
        &["integration", "list", "--context", "nobody"],
        &["integration", "restart", "a", "b", "--etag", "e"],
        &["integration", "check", "a", "-o", "name"],
        &["top", "--interval", "1ms"],
        &["wait", "a", "--for", "phase=GREEN"],
        &["event", "clear", "a"],
        &["token", "create", "a", "--role", "god"],
        &["integration", "list", "--timeout", "soon"],
        &["event", "list", "--since", "yesterday"],
    ] {
        let output = tbmqctl(arguments).env("TBMQCTL_SERVER", &server).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_bad_document_names_every_field() {
    let mut child = tbmqctl(&["integration", "create", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(br#"{"displayName":"x","configuration":1}"#).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("  type: is missing\n  configuration: is not an object\n"), "{text}");
}

#[test]
fn the_version_and_a_completion_go_to_stdout() {
    let version = run(&["--version"]);
    assert_eq!(version.stdout, concat!("tbmqctl ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    let script = run(&["completion", "bash"]);
    assert_eq!(script.status.code(), Some(0));
    assert!(String::from_utf8(script.stdout).unwrap().contains("_tbmqctl"));
}

#[test]
fn the_http_sink_prints_a_request_and_answers_as_told() {
    let mut child = tbmqctl(&["try", "http-sink", "--port", "0", "--answer", "503", "--count", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request =
        "POST /in HTTP/1.1\r\nhost: x\r\nx-kind: demo\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let mut printed = String::new();
    stdout.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "POST /in\n  x-kind: demo\n  hello\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
