//! The examples in `clients/`, as a reader of their READMEs runs them.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tbmq_e2e::{api, deployment::Deployment};
use tbmq_harness::{Need, process, ready, toolbox};

/// Fields of the mistake that each example makes.
const WRONG: [&str; 2] = ["integration.display_name", "integration.configuration_json.topicFilters[0]"];

fn clients() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../clients")
}

/// Runs an example against a server that has another integration; returns what it prints.
async fn run(mut example: Command) -> Result<String> {
    let deployment = Deployment::standalone()?;
    let other = deployment.api()?.create(api::http("other", &["a"], "http://127.0.0.1:9/")).await?;
    example.arg(deployment.grpc().to_string());
    let output = tokio::task::spawn_blocking(move || example.output()).await??;
    let printed = String::from_utf8(output.stdout)?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the example ended with {}: {printed}{complaints}", output.status);
    // It has cleaned up, and touched nothing else.
    let left = deployment.api()?.get(&other.name).await?;
    assert_eq!(left.revision, other.revision);
    Ok(printed)
}

/// What the examples in Python and Rust print, but for the texts of what was wrong.
fn check(printed: &str, example: &str, codes: [&str; 2]) {
    let without_texts = |line: &str| match line.strip_prefix("  ").and_then(|line| line.split_once(": ")) {
        Some((field, text)) if !text.is_empty() => format!("  {field}"),
        _ => line.to_owned(),
    };
    let lines: Vec<String> = printed.lines().map(without_texts).collect();
    let mut expected = vec![
        format!("created {example} PHASE_DISABLED"),
        format!("got {example}"),
        format!("listed {example}"),
        "watched TYPE_MODIFIED changed".to_owned(),
        format!("refused {} INVALID_INTEGRATION", codes[0]),
    ];
    expected.extend(WRONG.map(|field| format!("  {field}")));
    expected.extend([format!("deleted {example}"), format!("refused {} NOT_FOUND", codes[1])]);
    assert_eq!(lines, expected, "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_client_does_what_its_readme_says() -> Result<()> {
    let printed = run(Command::new(process::binary("tbmq-client-example")?)).await?;
    check(&printed, "rust-example", ["InvalidArgument", "NotFound"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_does_what_its_readme_says() -> Result<()> {
    if !ready("the_python_client_does_what_its_readme_says", &[Need::Python]) {
        return Ok(());
    }
    let printed = run(toolbox::python(&clients().join("python/example.py"))).await?;
    check(&printed, "python-example", ["INVALID_ARGUMENT", "NOT_FOUND"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_finds_by_reflection_all_that_its_example_calls() -> Result<()> {
    if !ready("grpcurl_finds_by_reflection_all_that_its_example_calls", &[Need::Grpcurl]) {
        return Ok(());
    }
    let mut script = Command::new(clients().join("grpcurl/example.sh"));
    script.env("GRPCURL", toolbox::grpcurl());
    let printed = run(script).await?;
    let mut answers = Vec::new();
    for part in printed.split("== ").skip(1) {
        let (title, json) = part.split_once('\n').context("a title without an answer")?;
        let answer: Value = serde_json::from_str(json).with_context(|| format!("{title}: {json}"))?;
        answers.push((title, answer));
    }
    let titles: Vec<&str> = answers.iter().map(|(title, _)| *title).collect();
    assert_eq!(titles, ["created", "got", "listed", "changed", "watched", "refused", "deleted", "gone"]);
    let answers: Vec<Value> = answers.into_iter().map(|(_, answer)| answer).collect();
    let [created, got, listed, changed, watched, refused, deleted, gone] = &answers[..] else {
        unreachable!("eight titles have eight answers")
    };
    assert_eq!(created["displayName"], "grpcurl-example");
    assert_eq!(created["status"]["phase"], "PHASE_DISABLED");
    assert_eq!((&got["name"], &got["etag"]), (&created["name"], &created["etag"]));
    assert_eq!(listed["integrations"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed["integrations"][0]["name"], created["name"]);
    assert_eq!(changed["description"], "changed");
    assert_eq!(
        (&watched["type"], &watched["integration"]["description"]),
        (&"TYPE_MODIFIED".into(), &"changed".into())
    );
    assert_eq!(*deleted, Value::Object(serde_json::Map::new()));
    let detail = |status: &Value, of: &str| {
        let details = status["details"].as_array().cloned().unwrap_or_default();
        let found = details
            .into_iter()
            .find(|detail| detail["@type"] == format!("type.googleapis.com/google.rpc.{of}"));
        found.with_context(|| format!("no {of} in {status}"))
    };
    assert_eq!(detail(refused, "ErrorInfo")?["reason"], "INVALID_INTEGRATION");
    let fields: Vec<Value> = detail(refused, "BadRequest")?["fieldViolations"]
        .as_array()
        .context("no fields")?
        .iter()
        .map(|violation| violation["field"].clone())
        .collect();
    assert_eq!(fields, WRONG);
    assert_eq!(detail(gone, "ErrorInfo")?["reason"], "NOT_FOUND");
    Ok(())
}
