//! Integrations from files, against the real all-in-one: apply, list, diff, apply with --prune; and an import from TBMQ.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tbmq_e2e::deployment::Deployment;
use tbmq_harness::{http_sink::HttpSink, process};

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

struct CommandLine<'a> {
    deployment: &'a Deployment,
    folder: &'a Path,
}

impl CommandLine<'_> {
    fn run(&self, arguments: &[&str]) -> Result<Ended> {
        let server = format!("http://{}", self.deployment.grpc());
        let output = process::run("tbmqctl", arguments, &[("TBMQCTL_SERVER", &server)], self.folder)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().context("killed")?;
        Ok(Ended { code, stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// As [`CommandLine::run`], and it must end so.
    fn expect(&self, code: i32, arguments: &[&str]) -> Result<Ended> {
        let ended = self.run(arguments)?;
        ensure!(
            ended.code == code,
            "{arguments:?} ended with {}: {}{}",
            ended.code,
            ended.stdout,
            ended.stderr
        );
        Ok(ended)
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.folder.join(path);
        std::fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        Ok(std::fs::write(path, text)?)
    }

    fn names(&self) -> Result<Vec<String>> {
        let listed = self.expect(0, &["integration", "list", "-o", "json"])?;
        let listed: Vec<Value> = serde_json::from_str(&listed.stdout)?;
        let mut names: Vec<String> =
            listed.iter().map(|one| one["displayName"].as_str().unwrap_or_default().to_owned()).collect();
        names.sort();
        Ok(names)
    }

    fn revision(&self, name: &str) -> Result<u64> {
        let got = self.expect(0, &["integration", "get", name, "-o", "json"])?;
        let got: Value = serde_json::from_str(&got.stdout)?;
        got["revision"].as_u64().context("a revision")
    }
}

fn yaml(name: &str, filter: &str, url: &str, password: &str) -> String {
    format!(
        "displayName: {name}
type: HTTP
labels: {{ team: core }}
configuration:
  topicFilters: ['{filter}']
  clientConfiguration:
    restEndpointUrl: {url}
    maxInMemoryBufferSizeInKb: 256
    credentials: {{ type: basic, username: u, password: {password} }}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_applied_compared_changed_and_pruned() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let sink = HttpSink::start().await?;
    let folder = process::data_dir()?;
    let line = CommandLine { deployment: &deployment, folder: folder.path() };
    let url = sink.url("in");
    line.write("in/one.yaml", &yaml("one", "one/#", &url, "s3cret"))?;
    line.write("in/more/two.yaml", &yaml("two", "two/#", &url, "s3cret"))?;
    let dry = line.expect(0, &["apply", "-f", "in", "--dry-run"])?;
    ensure!(dry.stderr == "2 created; nothing was saved\n", "{}", dry.stderr);
    ensure!(line.names()?.is_empty());
    let diff = line.expect(4, &["diff", "-f", "in"])?;
    ensure!(diff.stdout.contains("+++ files/one") && !diff.stdout.contains("s3cret"), "{}", diff.stdout);

    line.expect(0, &["apply", "-f", "in"])?;
    ensure!(line.names()? == ["one", "two"]);
    let broker = deployment.mqtt().to_string();
    line.expect(0, &["try", "publish", "--broker", &broker, "--topic", "one/a", "--message", "{}"])?;
    sink.wait_for(1, Duration::from_secs(30)).await?;

    let same = line.expect(0, &["diff", "-f", "in"])?;
    ensure!(same.stdout.is_empty(), "{}", same.stdout);
    let revision = line.revision("one")?;
    let again = line.expect(0, &["apply", "-f", "in"])?;
    ensure!(again.stderr == "2 unchanged\n", "{}", again.stderr);
    ensure!(line.revision("one")? == revision, "what is unchanged is not disturbed");

    // A filter, a secret, a document that is gone, a new one and one that is no good.
    line.write("in/one.yaml", &yaml("one", "other/#", &url, "s3cret"))?;
    let drift = line.expect(4, &["diff", "-f", "in"])?;
    ensure!(drift.stdout.contains("\n-  - one/#\n+  - other/#\n"), "{}", drift.stdout);
    line.write("in/more/two.yaml", &yaml("two", "two/#", &url, "an0ther"))?;
    let drift = line.expect(4, &["diff", "-f", "in/more"])?;
    ensure!(drift.stdout.contains("(another one)"), "{}", drift.stdout);
    line.write("in/three.yaml", &yaml("three", "three/#", "no-url", "s3cret"))?;
    let failed = line.expect(1, &["apply", "-f", "in"])?;
    ensure!(failed.stderr.contains("2 configured, 1 failed\n"), "{}", failed.stderr);
    ensure!(failed.stderr.contains("in/three.yaml: "), "{}", failed.stderr);
    line.write("in/three.yaml", &yaml("three", "three/#", &url, "s3cret"))?;
    std::fs::remove_file(folder.path().join("in/one.yaml"))?;
    let prune = ["apply", "-f", "in", "--prune", "--selector", "team=core", "--yes"];
    let pruned = line.expect(0, &prune)?;
    ensure!(pruned.stderr == "1 created, 1 unchanged, 1 pruned\n", "{}", pruned.stderr);
    ensure!(line.names()? == ["three", "two"]);

    // What is exported is what is there, and it is read back as that.
    let exported = line.expect(0, &["export", "-f", "out"])?;
    ensure!(exported.stderr.contains("shown as ********"), "{}", exported.stderr);
    let text = std::fs::read_to_string(folder.path().join("out/two.yaml"))?;
    ensure!(!text.contains("an0ther"), "{text}");
    line.expect(0, &["diff", "-f", "out", "--prune", "--all"])?;
    let again = line.expect(0, &["apply", "-f", "out", "--prune", "--all", "--yes"])?;
    ensure!(again.stderr == "2 unchanged\n", "{}", again.stderr);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn integrations_of_tbmq_come_over_with_their_ids_and_bytes() -> Result<()> {
    let deployment = Deployment::standalone()?;
    let folder = process::data_dir()?;
    let line = CommandLine { deployment: &deployment, folder: folder.path() };
    // As TBMQ's own forms write them (spec §6.3.1, §6.4.7, §6.5.4, §7.3).
    let http = r#"{"topicFilters":["tbmq/#"],"metadata":{},"clientConfiguration":{"sendOnlyMsgPayload":false,"restEndpointUrl":"http://127.0.0.1:9/","requestMethod":"POST","headers":{"Content-Type":"application/json"},"credentials":{"type":"anonymous"},"readTimeoutMs":0,"maxParallelRequestsCount":0,"maxInMemoryBufferSizeInKb":256,"payloadContentType":"BINARY","sendBinaryOnParseFailure":true}}"#;
    let mqtt = r#"{"topicFilters":["tbmq/#"],"metadata":{},"clientConfiguration":{"sendOnlyMsgPayload":false,"host":"127.0.0.1","port":1883,"topicName":"tbmq/messages","useMsgTopicName":true,"clientId":"tbmq_AbCd1234","credentials":{"type":"anonymous"},"ssl":false,"connectTimeoutSec":10,"reconnectPeriodSec":5,"mqttVersion":4,"qos":1,"useMsgQoS":true,"retained":false,"useMsgRetain":true,"keepAliveSec":60}}"#;
    let kafka = r#"{"topicFilters":["tbmq/#"],"metadata":{},"clientConfiguration":{"sendOnlyMsgPayload":false,"topic":"tbmq.messages","key":null,"bootstrapServers":"localhost:9","clientIdPrefix":null,"retries":0,"batchSize":16384,"linger":0,"bufferMemory":33554432,"compression":"none","acks":"-1","otherProperties":{"interceptor.classes":"x"},"kafkaHeaders":null,"kafkaHeadersCharset":"UTF-8"}}"#;
    let all = [("HTTP", http), ("MQTT", mqtt), ("KAFKA", kafka)];
    let uid = |number: usize| format!("0e2ffa8e-52c9-4a3f-8d0f-{number:012}");
    let documents: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(number, (kind, configuration))| {
            format!(
                r#"{{"id":"{}","createdTime":1,"name":"from {kind}","type":"{kind}","enabled":false,"disconnectedTime":1,"configuration":{configuration},"additionalInfo":null,"status":null}}"#,
                uid(number)
            )
        })
        .collect();
    let bad = r#"{"id":null,"name":"bad","type":"HTTP","enabled":true,"configuration":{"topicFilters":[],"clientConfiguration":{"nonsense":1}}}"#;
    line.write(
        "tbmq.json",
        &format!(
            r#"{{"data":[{},{bad}],"totalPages":1,"totalElements":4,"hasNext":false}}"#,
            documents.join(",")
        ),
    )?;
    let ended = line.expect(1, &["import", "tbmq", "-f", "tbmq.json"])?;
    ensure!(ended.stderr.starts_with("3 imported, 1 refused\n"), "{}", ended.stderr);
    for told in ["nonsense", "from KAFKA: otherProperties that have no effect here: interceptor.classes"] {
        ensure!(ended.stdout.contains(told), "{told} in {}", ended.stdout);
    }
    for (number, (kind, configuration)) in all.iter().enumerate() {
        let got = line.expect(0, &["integration", "get", &uid(number), "-o", "json"])?;
        // A property that nobody knows may be a secret.
        let shown =
            configuration.replace(r#""interceptor.classes":"x""#, r#""interceptor.classes":"********""#);
        ensure!(got.stdout.contains(&shown), "{kind}: {}", got.stdout);
        ensure!(got.stdout.contains(&format!("\"displayName\": \"from {kind}\"")), "{}", got.stdout);
    }
    line.write("tbmq.json", &format!("[{}]", documents.join(",")))?;
    let again = line.expect(0, &["import", "tbmq", "-f", "tbmq.json"])?;
    ensure!(again.stderr == "3 skipped\n", "{}", again.stderr);
    Ok(())
}
