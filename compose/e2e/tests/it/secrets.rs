//! Planted secrets, searched for in everything that a full run leaves behind: records and raw segments of Kafka, tables
//! and files of PostgreSQL, logs, and every answer of the API and of `tbmqctl`.

use std::{
    fmt::{Debug, Write as _},
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use prost::Message as _;
use tbmq_bus::{ReaderConfig, ReaderEvent, Start, TopicPartition};
use tbmq_harness::{
    Need,
    kafka::{Kafka, KafkaOptions},
    postgres::Postgres,
    process, ready,
};
use tbmq_proto::{
    control::{
        CheckConnectionRequest, CreateIntegrationRequest, Integration, ListIntegrationsRequest,
        RestartIntegrationRequest, WatchIntegrationsRequest, integration_status::Phase,
    },
    integration::DownlinkIntegrationMsgProto,
    wire::{AuthSetting, auth_setting::Setting},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use tbmq_e2e::{
    api::{Api, integration},
    deployment::{Deployment, Layout},
};

/// Stands in answers and logs, so that a search that finds nothing at all would show.
const USER: &str = "planted-user";

/// A failure is told once and leaves a dead letter.
const ONCE: &str = r#"{"ackStrategy":"SKIP_ALL","deadLetter":true}"#;

/// The servers, and where they keep what they are given.
struct Servers {
    kafka: Kafka,
    kafka_folder: tempfile::TempDir,
    postgres: Postgres,
}

/// In how many places something was found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    segments: usize,
    records: usize,
    tables: usize,
    database_files: usize,
    logs: usize,
    answers: usize,
}

/// What a run leaves behind.
struct Left {
    deployment: Deployment,
    logs: tempfile::TempDir,
    answers: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_secret_is_found_nowhere_and_without_a_key_it_would_be() -> Result<()> {
    let name = "a_planted_secret_is_found_nowhere_and_without_a_key_it_would_be";
    if !ready(name, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let kafka_folder = process::data_dir()?;
    let options = KafkaOptions { data_dir: Some(kafka_folder.path().to_owned()), ..KafkaOptions::default() };
    let servers = Servers { kafka: Kafka::start(options)?, kafka_folder, postgres: Postgres::start()? };

    let plain = ["clear-secret-of-http", "clear-secret-of-mqtt", "clear-secret-of-provider"];
    let left = run(&servers, plain, None).await?;
    for secret in plain {
        let Places { segments, records, tables, database_files, logs, answers } =
            search(&servers, &left, secret).await?;
        println!(
            "{secret} without a key: {segments} segments, {records} records, {tables} rows, {database_files} files"
        );
        // The second one's integration is deleted in the end.
        ensure!(tables > 0 || secret == plain[1], "{secret} was not found in the tables");
        ensure!(segments > 0 && records > 0 && database_files > 0, "{secret} was not found");
        ensure!((logs, answers) == (0, 0), "{secret} stands in {logs} logs and {answers} answers");
    }
    drop(left);

    let key = BASE64_STANDARD.encode([0x5a; 32]);
    let sealed = ["sealed-secret-of-http", "sealed-secret-of-mqtt", "sealed-secret-of-provider"];
    let left = run(&servers, sealed, Some(&format!("k1:{key}"))).await?;
    let basic = sealed.map(|secret| BASE64_STANDARD.encode(format!("{USER}:{secret}")));
    let encoded = sealed.map(|secret| BASE64_STANDARD.encode(secret).trim_end_matches('=').to_owned());
    for secret in
        sealed.iter().copied().chain(basic.iter().chain(&encoded).map(String::as_str)).chain([key.as_str()])
    {
        let places = search(&servers, &left, secret).await?;
        assert_eq!(places, Places::default(), "{secret} is to be found");
    }
    // The search looks into everything.
    let places = search(&servers, &left, USER).await?;
    ensure!(
        places.segments > 0 && places.records > 0 && places.tables > 0 && places.answers > 0,
        "{places:?}"
    );
    ensure!(search(&servers, &left, "integration started").await?.logs > 0, "the logs are empty");
    ensure!(search(&servers, &left, "********").await?.answers > 0, "secrets are shown masked");
    sealed_is_there(&servers, &left.deployment).await
}

/// Creates, changes, checks, switches, restarts, uses and deletes integrations with these secrets, and has clients judged
/// by a service that asks for the last one.
async fn run(servers: &Servers, secrets: [&str; 3], keys: Option<&str>) -> Result<Left> {
    let logs = process::data_dir()?;
    let mut layout =
        Layout::default().logs(logs.path()).setting("TBMQ_LOG", "debug,h2=info,hyper=info,tower=info");
    if let Some(keys) = keys {
        layout = layout.setting("TBMQ_SECRETS_KEYS", keys);
    }
    let deployment = layout.start(&servers.kafka, &servers.postgres)?;
    let mut api = deployment.api()?;
    let mut said = Said::default();
    let (echo, let_in) = echo(secrets[2]).await?;

    let http = serde_json::json!({
        "restEndpointUrl": format!("http://{echo}/in"), "requestMethod": "POST", "sendOnlyMsgPayload": true,
        "payloadContentType": "BINARY", "maxInMemoryBufferSizeInKb": 256,
        "credentials": { "type": "basic", "username": USER, "password": secrets[0] },
    });
    let http = integration("HTTP", "planted-http", &["planted/#"], &http, ONCE);
    let mqtt = serde_json::json!({
        "host": "127.0.0.1", "port": 9, "clientId": "planted", "connectTimeoutSec": 1, "reconnectPeriodSec": 1,
        "mqttVersion": 4, "qos": 1, "useMsgTopicName": true, "keepAliveSec": 60,
        "credentials": { "type": "basic", "username": USER, "password": secrets[1] },
    });
    let mqtt = integration("MQTT", "planted-mqtt", &["planted/#"], &mqtt, ONCE);
    said.take("check", &api.check(http.clone()).await);
    let preview = CreateIntegrationRequest {
        integration: Some(http.clone()),
        validate_only: true,
        ..Default::default()
    };
    said.take("preview", &api.integrations.create_integration(preview).await);
    let created = api.create(http.clone()).await?;
    said.take("create", &created);
    said.take("name taken", &api.create(http).await);
    let other = api.create(mqtt).await?;
    said.take("create", &other);
    api.await_phase(&created.name, Phase::Active).await?;

    use_it(&mut api, &mut said, &created).await?;
    publish(&deployment, &mut said)?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let errors = api.errors(&created.name).await?;
        if errors.iter().any(|event| format!("{event:?}").contains("401")) {
            said.take("errors", &errors);
            break;
        }
        ensure!(tokio::time::Instant::now() < deadline, "no error was told: {errors:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for one in [&created, &other] {
        said.take("lifecycle", &api.lifecycle(&one.name).await);
        said.take("get", &api.get(&one.name).await);
    }
    api.delete(&other.name).await?;
    said.take("list", &api.integrations.list_integrations(ListIntegrationsRequest::default()).await);
    said.take("nodes", &api.list_nodes().await);
    watch(&mut api, &mut said).await?;
    judge(&deployment, &mut said, &format!("http://{echo}/auth"), secrets[2])?;
    ensure!(let_in.load(Ordering::Relaxed) > 0, "the service was not asked with the password");
    for arguments in [
        &["auth", "list"][..],
        &["auth", "get", "http", "-o", "json"],
        &["integration", "list"],
        &["integration", "list", "-o", "json"],
        &["integration", "get", "planted-http", "-o", "json"],
        &["event", "list", "-o", "json"],
        &["node", "list"],
        &["audit", "list", "-o", "json"],
    ] {
        tbmqctl(&deployment, arguments, &mut said)?;
    }
    Ok(Left { deployment, logs, answers: said.0 })
}

async fn use_it(api: &mut Api, said: &mut Said, created: &Integration) -> Result<()> {
    // Masks are written back; then they are refused, for another target.
    let changed = Integration { description: "changed".to_owned(), etag: String::new(), ..created.clone() };
    said.take("update", &api.update(changed.clone()).await?);
    let configuration_json = changed.configuration_json.replace("http://127.0.0.1", "http://127.0.0.2");
    let moved = Integration { configuration_json, ..changed.clone() };
    ensure!(moved.configuration_json != changed.configuration_json, "{moved:?}");
    let refused = api.update(moved).await;
    ensure!(refused.is_err(), "a secret goes to another host");
    said.take("refused", &refused);
    let check = CheckConnectionRequest { name: created.name.clone(), ..Default::default() };
    said.take("check", &api.integrations.check_connection(check).await);
    said.take("disable", &api.disable(&created.name).await?);
    said.take("enable", &api.enable(&created.name).await?);
    let restart = RestartIntegrationRequest { name: created.name.clone(), ..Default::default() };
    said.take("restart", &api.integrations.restart_integration(restart).await?);
    let restarted = api.get(&created.name).await?.revision;
    let runs = |one: &Integration| {
        let status = one.status.as_ref();
        let holders = status.map(|status| status.holders.as_slice()).unwrap_or_default();
        holders.iter().any(|holder| holder.state == "STARTED" && holder.observed_revision >= restarted)
    };
    said.take("restarted", &api.await_integration(&created.name, Duration::from_secs(60), runs).await?);
    Ok(())
}

fn publish(deployment: &Deployment, said: &mut Said) -> Result<()> {
    let broker = deployment.mqtt().to_string();
    let arguments = ["try", "publish", "--broker", &broker, "--topic", "planted/a", "--message", USER];
    tbmqctl(deployment, &arguments, said)
}

/// Has clients judged by a service that data planes know the password of, and one of them connect.
fn judge(deployment: &Deployment, said: &mut Said, url: &str, password: &str) -> Result<()> {
    let provider = serde_json::json!({
        "restEndpointUrl": url, "credentials": { "type": "basic", "username": USER, "password": password },
        "authRules": { "pubAuthRulePatterns": [".*"] },
    });
    let folder = process::data_dir()?;
    let file = folder.path().join("http.json");
    fs::write(&file, provider.to_string())?;
    let file = file.to_str().context("a path that is no text")?;
    tbmqctl(deployment, &["auth", "update", "http", "-f", file], said)?;
    tbmqctl(deployment, &["auth", "enable", "http"], said)?;
    publish(deployment, said)
}

/// What a watch says first.
async fn watch(api: &mut Api, said: &mut Said) -> Result<()> {
    let mut stream =
        api.integrations.watch_integrations(WatchIntegrationsRequest::default()).await?.into_inner();
    let first = tokio::time::timeout(Duration::from_secs(30), stream.message()).await??;
    said.take("watch", &first.context("the watch has ended")?);
    Ok(())
}

fn tbmqctl(deployment: &Deployment, arguments: &[&str], said: &mut Said) -> Result<()> {
    let server = format!("http://{}", deployment.grpc());
    let folder = process::data_dir()?;
    let output = process::run("tbmqctl", arguments, &[("TBMQCTL_SERVER", &server)], folder.path())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{arguments:?}: {stdout}{stderr}");
    said.take("tbmqctl", &(arguments, stdout, stderr));
    Ok(())
}

/// Every answer.
#[derive(Default)]
struct Said(String);

impl Said {
    fn take(&mut self, what: &str, answer: &impl Debug) {
        writeln!(self.0, "{what}: {answer:?}").expect("writing to a String does not fail");
    }
}

/// An HTTP server that refuses everything and shows what it was sent, credentials included; but whoever asks at `/auth`
/// with this password is answered 200, and counted.
async fn echo(password: &str) -> Result<(std::net::SocketAddr, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (expected, let_in) = (format!("{USER}:{password}"), Arc::new(AtomicUsize::new(0)));
    let counted = let_in.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (expected, counted) = (expected.clone(), counted.clone());
            tokio::spawn(async move {
                let mut request = vec![0; 8192];
                let count = stream.read(&mut request).await.unwrap_or(0);
                let said = String::from_utf8_lossy(&request[..count]).into_owned();
                let sent = said
                    .lines()
                    .find_map(|line| line.strip_prefix("authorization: Basic "))
                    .unwrap_or_default();
                let known = BASE64_STANDARD.decode(sent).unwrap_or_default();
                if said.contains(" /auth ") && known == expected.as_bytes() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await.ok();
                    return;
                }
                let body = format!("refused {} and {said}", String::from_utf8_lossy(&known));
                let head = format!(
                    "HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(format!("{head}{body}").as_bytes()).await.ok();
            });
        }
    });
    Ok((address, let_in))
}

/// Looks for a text in everything.
async fn search(servers: &Servers, left: &Left, text: &str) -> Result<Places> {
    let mut tables = 0;
    let databases =
        servers.postgres.sql("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'test_%'")?;
    for database in databases.lines() {
        let names = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'";
        for table in servers.postgres.sql(database, names)?.lines() {
            let rows = servers.postgres.sql(database, &format!("SELECT t::text FROM \"{table}\" t"))?;
            tables += count(rows.as_bytes(), text);
        }
    }
    // What is dirty in its memory goes to its files.
    servers.postgres.sql("postgres", "CHECKPOINT")?;
    Ok(Places {
        // An index holds nothing but offsets and times.
        segments: in_files(&servers.kafka_folder.path().join("logs"), text, &|name| {
            !name.ends_with("index")
        })?,
        records: in_records(left, text).await?,
        tables,
        database_files: in_files(servers.postgres.data(), text, &|_| true)?,
        logs: in_files(left.logs.path(), text, &|_| true)?,
        answers: count(left.answers.as_bytes(), text),
    })
}

fn count(bytes: &[u8], text: &str) -> usize {
    // Bytes that are no text stand between texts.
    String::from_utf8_lossy(bytes).matches(text).count()
}

fn in_files(folder: &Path, text: &str, wanted: &dyn Fn(&str) -> bool) -> Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found += in_files(&path, text, wanted)?;
        } else if path.is_file() && path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())) {
            // Servers remove files meanwhile.
            found += fs::read(&path).map_or(0, |bytes| count(&bytes, text));
        }
    }
    Ok(found)
}

async fn in_records(left: &Left, text: &str) -> Result<usize> {
    let mut found = 0;
    for record in records(&left.deployment, "").await? {
        found += count(&record.value.unwrap_or_default(), text);
        found += count(&record.key.unwrap_or_default(), text);
        found += record.headers.iter().map(|header| count(&header.value, text)).sum::<usize>();
    }
    Ok(found)
}

/// All records of the deployment's topics whose names go on like this.
async fn records(deployment: &Deployment, topic: &str) -> Result<Vec<tbmq_bus::Record>> {
    let bus = deployment.bus()?;
    let own = deployment.catalogue().uplink().name;
    let prefix = own.strip_suffix("tbmq.ie.uplink").context("the uplink's name")?.to_owned();
    let mut reader = bus.reader(ReaderConfig::new("search", None)).await?;
    let mut open = 0;
    for info in bus.admin().topics().await? {
        if info.name.starts_with(&format!("{prefix}{topic}")) {
            for partition in 0..info.partitions {
                reader.add(&TopicPartition::new(info.name.as_str(), partition), Start::Earliest);
                open += 1;
            }
        }
    }
    ensure!(open > 0, "there is no topic {prefix}{topic}");
    let mut all = Vec::new();
    while open > 0 {
        match reader.next().await {
            ReaderEvent::Batch { records, .. } => all.extend(records),
            ReaderEvent::End { partition, .. } => {
                reader.remove(&partition);
                open -= 1;
            }
            ReaderEvent::Gone { .. } => open -= 1,
            ReaderEvent::Gap { .. } => {}
        }
    }
    Ok(all)
}

/// The store and the downlink hold it, sealed.
async fn sealed_is_there(servers: &Servers, deployment: &Deployment) -> Result<()> {
    let databases =
        servers.postgres.sql("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'test_%'")?;
    let database = databases.lines().max().context("there is a database")?;
    let stored =
        servers.postgres.sql(database, "SELECT sealed FROM integration WHERE name = 'planted-http'")?;
    ensure!(stored.contains("\"keyId\":\"k1\""), "stored is {stored:?}");
    let downlink = records(deployment, "tbmq.ie.downlink.http").await?;
    let sealed = downlink.into_iter().filter_map(|record| {
        let message = DownlinkIntegrationMsgProto::decode(record.value?).ok()?.integration_msg?;
        message.sealed.filter(|_| message.configuration.is_some_and(|text| text.contains("********")))
    });
    let sealed: Vec<_> = sealed.collect();
    ensure!(!sealed.is_empty() && sealed.iter().all(|sealed| sealed.key_id == "k1"), "{sealed:?}");
    let settings = records(deployment, "tbmq.auth.settings").await?;
    let sealed =
        settings.into_iter().filter_map(|record| match AuthSetting::decode(record.value?).ok()?.setting? {
            Setting::Provider(provider) if provider.r#type == "HTTP" => provider.sealed,
            _ => None,
        });
    let sealed: Vec<_> = sealed.collect();
    ensure!(!sealed.is_empty() && sealed.iter().all(|sealed| sealed.key_id == "k1"), "{sealed:?}");
    Ok(())
}
