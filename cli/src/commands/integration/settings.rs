//! The settings of a type's client that are used most, as flags. The rest is `--client`.

use std::{fs, path::PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::failure::Failure;

const HTTP: &str = "HTTP";
const MQTT: &str = "MQTT";
const KAFKA: &str = "KAFKA";

#[derive(Clone, Debug, Default, Args)]
#[group(id = "settings", multiple = true)]
#[command(next_help_heading = "Settings of a type")]
pub(super) struct Settings {
    /// HTTP: address that requests go to
    #[arg(long)]
    url: Option<String>,
    /// HTTP: method of requests; POST unless set
    #[arg(long)]
    method: Option<String>,
    /// HTTP: header of requests; may be repeated
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// HTTP: how a message's payload appears in requests; json unless set
    #[arg(long, value_enum)]
    payload: Option<Payload>,
    /// MQTT: name or address of the broker
    #[arg(long)]
    host: Option<String>,
    /// MQTT: port of the broker; 1883 unless set
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// MQTT: connect with TLS
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    tls: Option<bool>,
    /// MQTT: client id of the connection; a new one unless set
    #[arg(long, value_name = "ID")]
    mqtt_client_id: Option<String>,
    /// MQTT: quality of service of all messages, 0, 1 or 2; each message's own unless set
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: Option<u8>,
    /// KAFKA: brokers to begin with
    #[arg(long, value_name = "HOST:PORT,...")]
    bootstrap_servers: Option<String>,
    /// KAFKA: key of all records
    #[arg(long)]
    key: Option<String>,
    /// KAFKA: who confirms a record: all, 1 or 0; all unless set
    #[arg(long)]
    acks: Option<String>,
    /// KAFKA: none, gzip, snappy, lz4 or zstd; none unless set
    #[arg(long)]
    compression: Option<String>,
    /// MQTT, KAFKA: topic of all messages; over MQTT each message's own unless set
    #[arg(long)]
    topic: Option<String>,
    /// HTTP, MQTT: user name to log in with
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// HTTP, MQTT: file that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// HTTP, MQTT, KAFKA: send the payload alone, without topic, client id, time, ...
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    payload_only: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Payload {
    /// As JSON; what is not JSON goes as base64
    Json,
    /// As text
    Text,
    /// As base64
    Binary,
}

impl Settings {
    /// Flags that were given, with the types that they are for.
    fn given(&self) -> Vec<(&'static str, &'static [&'static str])> {
        [
            ("--url", self.url.is_some(), &[HTTP][..]),
            ("--method", self.method.is_some(), &[HTTP]),
            ("--header", !self.header.is_empty(), &[HTTP]),
            ("--payload", self.payload.is_some(), &[HTTP]),
            ("--host", self.host.is_some(), &[MQTT]),
            ("--port", self.port.is_some(), &[MQTT]),
            ("--tls", self.tls.is_some(), &[MQTT]),
            ("--mqtt-client-id", self.mqtt_client_id.is_some(), &[MQTT]),
            ("--qos", self.qos.is_some(), &[MQTT]),
            ("--bootstrap-servers", self.bootstrap_servers.is_some(), &[KAFKA]),
            ("--key", self.key.is_some(), &[KAFKA]),
            ("--acks", self.acks.is_some(), &[KAFKA]),
            ("--compression", self.compression.is_some(), &[KAFKA]),
            ("--topic", self.topic.is_some(), &[MQTT, KAFKA]),
            ("--username", self.username.is_some(), &[HTTP, MQTT]),
            ("--password-file", self.password_file.is_some(), &[HTTP, MQTT]),
            ("--payload-only", self.payload_only.is_some(), &[HTTP, MQTT, KAFKA]),
        ]
        .into_iter()
        .filter_map(|(flag, is_given, kinds)| is_given.then_some((flag, kinds)))
        .collect()
    }

    pub(super) fn are_given(&self) -> bool {
        !self.given().is_empty()
    }

    /// The type that the flag for the remote end's address is for.
    pub(super) fn kind(&self) -> Option<&'static str> {
        if self.url.is_some() {
            Some(HTTP)
        } else if self.host.is_some() {
            Some(MQTT)
        } else {
            self.bootstrap_servers.as_ref().map(|_| KAFKA)
        }
    }

    /// Flags that a new integration of a type needs and that are absent; nothing of a type without flags.
    pub(super) fn missing(&self, kind: &str) -> Vec<&'static str> {
        let needed = match kind {
            HTTP => vec![("--url", self.url.is_none())],
            MQTT => vec![("--host", self.host.is_none())],
            KAFKA => {
                vec![
                    ("--bootstrap-servers", self.bootstrap_servers.is_none()),
                    ("--topic", self.topic.is_none()),
                ]
            }
            _ => vec![("--client", true)],
        };
        needed.into_iter().filter_map(|(flag, is_missing)| is_missing.then_some(flag)).collect()
    }

    /// Writes what is given into a clientConfiguration.
    pub(super) fn write(&self, kind: &str, client: &mut Map<String, Value>) -> Result<(), Failure> {
        for (flag, kinds) in self.given() {
            if !kinds.contains(&kind) {
                return Err(Failure::usage(format!(
                    "{flag} is for {}, and this integration is of type {kind}",
                    kinds.join(" and ")
                ))
                .hint("--client takes the whole clientConfiguration of any type as JSON"));
            }
        }
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                client.insert(key.to_owned(), value);
            }
        };
        let text = |text: &Option<String>| text.clone().map(Value::from);
        set("restEndpointUrl", text(&self.url));
        set("requestMethod", text(&self.method));
        set(
            "payloadContentType",
            self.payload.map(|payload| match payload {
                Payload::Json => "JSON".into(),
                Payload::Text => "TEXT".into(),
                Payload::Binary => "BINARY".into(),
            }),
        );
        set("host", text(&self.host));
        set("port", self.port.map(Value::from));
        set("ssl", self.tls.map(Value::from));
        set("clientId", text(&self.mqtt_client_id));
        set("qos", self.qos.map(Value::from));
        set("useMsgQoS", self.qos.map(|_| false.into()));
        set("bootstrapServers", text(&self.bootstrap_servers));
        set("key", text(&self.key));
        set("acks", text(&self.acks));
        set("compression", text(&self.compression));
        set("sendOnlyMsgPayload", self.payload_only.map(Value::from));
        if kind == MQTT {
            set("topicName", text(&self.topic));
            set("useMsgTopicName", self.topic.as_ref().map(|_| false.into()));
        } else {
            set("topic", text(&self.topic));
        }
        if !self.header.is_empty() {
            let headers = object_in(client, "headers");
            for (name, value) in &self.header {
                headers.retain(|held, _| !held.eq_ignore_ascii_case(name));
                headers.insert(name.clone(), value.as_str().into());
            }
        }
        self.write_credentials(client)
    }

    fn write_credentials(&self, client: &mut Map<String, Value>) -> Result<(), Failure> {
        if self.username.is_none() && self.password_file.is_none() {
            return Ok(());
        }
        let credentials = object_in(client, "credentials");
        if credentials.get("type").and_then(Value::as_str) != Some("basic") {
            credentials.clear();
            credentials.insert("type".to_owned(), "basic".into());
        }
        if let Some(name) = &self.username {
            credentials.insert("username".to_owned(), name.as_str().into());
        }
        if let Some(file) = &self.password_file {
            let password = fs::read_to_string(file)
                .map_err(|error| Failure::usage(format!("can't read {}: {error}", file.display())))?;
            // Editors end the last line.
            let password = password.strip_suffix('\n').unwrap_or(&password);
            credentials.insert("password".to_owned(), password.into());
        }
        Ok(())
    }
}

/// The object under a key; what else is there is replaced.
fn object_in<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made one")
}

/// What TBMQ's own form fills in (spec §6.3.1, §6.4.7, §6.5.4), but payloads as JSON where they are JSON.
pub(super) fn defaults(kind: &str) -> Map<String, Value> {
    let value = match kind {
        HTTP => json!({
            "restEndpointUrl": "",
            "requestMethod": "POST",
            "headers": { "Content-Type": "application/json" },
            "credentials": { "type": "anonymous" },
            "sendOnlyMsgPayload": false,
            "payloadContentType": "JSON",
            "sendBinaryOnParseFailure": true,
            "readTimeoutMs": 0,
            "maxParallelRequestsCount": 0,
            "maxInMemoryBufferSizeInKb": 256,
        }),
        MQTT => json!({
            "sendOnlyMsgPayload": false,
            "host": "",
            "port": 1883,
            "topicName": "tbmq/messages",
            "useMsgTopicName": true,
            "clientId": format!("tbmq_{}", &Uuid::new_v4().simple().to_string()[..8]),
            "credentials": { "type": "anonymous" },
            "ssl": false,
            "connectTimeoutSec": 10,
            "reconnectPeriodSec": 5,
            "mqttVersion": 4,
            "qos": 1,
            "useMsgQoS": true,
            "retained": false,
            "useMsgRetain": true,
            "keepAliveSec": 60,
        }),
        KAFKA => json!({
            "sendOnlyMsgPayload": false,
            "topic": "",
            "key": null,
            "bootstrapServers": "",
            "clientIdPrefix": null,
            "retries": 0,
            "batchSize": 16384,
            "linger": 0,
            "bufferMemory": 33_554_432,
            "compression": "none",
            "acks": "-1",
            "otherProperties": null,
            "kafkaHeaders": null,
            "kafkaHeadersCharset": "UTF-8",
        }),
        _ => json!({}),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not \"NAME: VALUE\""))?;
    if name.trim().is_empty() {
        return Err("the name is empty".to_owned());
    }
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
