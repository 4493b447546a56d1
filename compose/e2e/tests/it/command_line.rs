//! The README's first five minutes, typed for real.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tbmq_harness::{http_sink::HttpSink, process};

use tbmq_e2e::deployment::Deployment;

fn tbmqctl(deployment: &Deployment, arguments: &[&str], folder: &Path) -> Result<(i32, String, String)> {
    let server = format!("http://{}", deployment.grpc());
    let output = process::run("tbmqctl", arguments, &[("TBMQCTL_SERVER", &server)], folder)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().context("killed")?, text(&output.stdout), text(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_commands_create_an_integration_publish_and_show_it() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let sink = HttpSink::start().await?;
    let folder = process::data_dir()?;
    let run = |arguments: &[&str]| {
        let (code, stdout, stderr) = tbmqctl(&deployment, arguments, folder.path())?;
        ensure!(code == 0, "{arguments:?} ended with {code}: {stderr}");
        anyhow::Ok(stdout)
    };
    let url = sink.url("in");
    let created = run(&[
        "integration",
        "create",
        "--name",
        "demo",
        "--type",
        "HTTP",
        "--filter",
        "sensors/#",
        "--url",
        &url,
    ])?;
    ensure!(created.contains("demo"), "{created}");
    let broker = deployment.mqtt().to_string();
    run(&["try", "publish", "--broker", &broker, "--topic", "sensors/a", "--message", r#"{"t":21}"#])?;
    sink.wait_for(1, Duration::from_secs(30)).await?;
    let body: serde_json::Value = serde_json::from_slice(&sink.received()[0].body)?;
    assert_eq!(body["topicName"], "sensors/a");
    assert_eq!(body["metadata"]["integrationName"], "demo");
    ensure!(run(&["integration", "list"])?.contains("demo"));
    let events: serde_json::Value = serde_json::from_str(&run(&["event", "list", "-o", "json"])?)?;
    ensure!(events.to_string().contains("CREATED"), "{events}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tbmq_document_loads_unchanged_and_a_bad_one_is_refused_with_every_field() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let folder = process::data_dir()?;
    // As TBMQ's own user interface exports it (spec §6.5.4, §7.3).
    let document = r#"{"name":"exported","type":"HTTP","enabled":true,"configuration":{"topicFilters":["tbmq/#"],"metadata":{},"clientConfiguration":{"sendOnlyMsgPayload":false,"restEndpointUrl":"http://127.0.0.1:9/","requestMethod":"POST","headers":{"Content-Type":"application/json"},"credentials":{"type":"anonymous"},"readTimeoutMs":0,"maxParallelRequestsCount":0,"maxInMemoryBufferSizeInKb":256,"payloadContentType":"BINARY","sendBinaryOnParseFailure":true}},"additionalInfo":{"description":"from TBMQ"}}"#;
    std::fs::write(folder.path().join("exported.json"), document)?;
    let (code, _, stderr) =
        tbmqctl(&deployment, &["integration", "create", "-f", "exported.json"], folder.path())?;
    assert_eq!(code, 0, "{stderr}");
    let (_, stdout, _) =
        tbmqctl(&deployment, &["integration", "get", "exported", "-o", "json"], folder.path())?;
    let read: serde_json::Value = serde_json::from_str(&stdout)?;
    ensure!(stdout.contains("from TBMQ"), "{read}");

    let bad = document
        .replace("exported", "bad")
        .replace("http://127.0.0.1:9/", "")
        .replace("\"readTimeoutMs\":0", "\"readTimeoutMs\":-1");
    std::fs::write(folder.path().join("bad.json"), bad)?;
    let (code, _, stderr) =
        tbmqctl(&deployment, &["integration", "create", "-f", "bad.json"], folder.path())?;
    assert_eq!(code, 1, "{stderr}");
    for expected in ["REST endpoint URL is required", "Read timeout (milliseconds) must not be less than 0"] {
        ensure!(stderr.contains(expected), "{stderr}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_command_an_unknown_name_and_a_silent_server_have_their_own_exit_codes() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let folder = process::data_dir()?;
    let code = |arguments: &[&str]| anyhow::Ok(tbmqctl(&deployment, arguments, folder.path())?.0);
    assert_eq!(code(&["integration", "get", "nobody"])?, 1);
    assert_eq!(code(&["integration", "frobnicate"])?, 2);
    assert_eq!(code(&["--server", "http://127.0.0.1:9", "integration", "list"])?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_setting_stops_the_process_before_a_port_is_bound_and_is_named() -> Result<()> {
    let folder = process::data_dir()?;
    let environment = [("LISTENER_TCP_BIND_PORT", "70000"), ("TBMQ_DATA_DIR", "d")];
    let output = process::run("tbmq", &[], &environment, folder.path())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    ensure!(stderr.contains("LISTENER_TCP_BIND_PORT") && stderr.contains("70000"), "{stderr}");
    ensure!(!String::from_utf8_lossy(&output.stdout).contains("listening"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_plane_without_kafka_says_so_before_a_port_is_bound() -> Result<()> {
    let folder = process::data_dir()?;
    // The admin port is taken: whoever tried to bind it would end with another code.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    for plane in ["tbmq-control-plane", "tbmq-data-plane", "tbmq-executor"] {
        let environment =
            [("HTTP_BIND_PORT", port.as_str()), ("DATABASE_URL", "postgres://nobody@127.0.0.1:9/none")];
        let output = process::run(plane, &[], &environment, folder.path())?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{plane}: {stderr}");
        ensure!(stderr.contains("TB_KAFKA_SERVERS"), "{plane}: {stderr}");
    }
    Ok(())
}
