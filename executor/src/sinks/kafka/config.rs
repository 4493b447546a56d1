//! `clientConfiguration` of Kafka integrations (spec §6.5.1).

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value};
use url::Host;

use super::{
    WHAT,
    properties::{self, Translated},
};
pub use super::{properties::OtherProperties, record::Charset};
use crate::sinks::{
    SinkSettings,
    binder::{self, Bound},
};

/// Where and how messages are produced.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["bootstrapServers", "topic", "acks"]))]
pub struct Config {
    /// Send the payload alone, as it came, instead of a JSON object with payload, topic, client id and so on.
    pub send_only_msg_payload: bool,
    /// Brokers to begin with: `host:port`, several separated by commas.
    #[schemars(length(min = 1), extend("x-error-text" = "Bootstrap servers cannot be empty"))]
    pub bootstrap_servers: String,
    /// The topic that all messages go to.
    #[schemars(length(min = 1), extend("x-error-text" = "Topic is required"))]
    pub topic: String,
    /// The key of all records, which decides about the partition as Java's clients do; none: batches go to changing
    /// partitions.
    pub key: Option<String>,
    /// The client id is this prefix and the executor's id; empty: `tbmq-ie-kafka-producer`. Integrations whose
    /// connection settings are equal, this included, share a client.
    pub client_id_prefix: Option<String>,
    /// How often the client itself tries again before the attempt has failed.
    #[schemars(range(min = 0), extend("x-error-text" = "Retries must not be less than 0"))]
    pub retries: i32,
    /// Bytes of a batch at most; 0: 16384.
    #[schemars(range(min = 0), extend("x-error-text" = "Batch size must not be less than 0"))]
    pub batch_size: i32,
    /// Milliseconds that a batch waits for further records.
    #[schemars(range(min = 0), extend("x-error-text" = "Linger ms must not be less than 0"))]
    pub linger: i32,
    /// Bytes of this integration's records without an answer at most; 0: 33554432.
    #[schemars(range(min = 0), extend("x-error-text" = "Buffer memory must not be less than 0"))]
    pub buffer_memory: i32,
    /// Who confirms a record: `all` (or `-1`): all replicas in sync, `1`: the leader, `0`: nobody, it was only written
    /// to the connection.
    #[schemars(extend("x-error-text" = "Invalid acks value", "pattern" = "^(all|-1|0|1)$"))]
    pub acks: String,
    /// How batches are compressed.
    #[schemars(extend("x-error-text" = "Invalid compression type"))]
    pub compression: Compression,
    /// Further properties under the names of Java's producer; they win over the fields. Those without a counterpart
    /// are ignored with a warning.
    pub other_properties: OtherProperties,
    /// Headers of all records, in this order.
    pub kafka_headers: Headers,
    /// How the values of headers are encoded.
    pub kafka_headers_charset: Charset,
    /// Java's class; only those that leave text as it is are known.
    pub key_serializer: Option<String>,
    /// Java's class; only those that leave bytes as they are are known.
    pub value_serializer: Option<String>,
}

/// Compressions of batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// None.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Kafka's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Headers in the order of the document. Values are not printed: they may be tokens.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, _)| (name, format_args!("***")))).finish()
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("headers by name")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Headers, M::Error> {
                let mut headers = Vec::new();
                while let Some(header) = map.next_entry()? {
                    headers.push(header);
                }
                Ok(Headers(headers))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl JsonSchema for Headers {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Headers".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": { "type": "string" } })
    }
}

/// A broker to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A configuration that was checked, in the client's words.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub config: Config,
    pub servers: Vec<Server>,
    pub translated: Translated,
}

/// Reads and checks a configuration for an executor; all its problems at once.
pub(super) fn read(
    map: &Map<String, Value>,
    settings: &SinkSettings,
    executor_id: &str,
) -> Bound<Option<Checked>> {
    let mut bound = binder::bind::<Config>(map);
    if !["all", "-1", "0", "1"].contains(&bound.config.acks.as_str()) {
        bound.refuse("acks", "Invalid acks value");
        // Already told; librdkafka need not.
        "all".clone_into(&mut bound.config.acks);
    }
    let serializers = [
        ("keySerializer", bound.config.key_serializer.clone()),
        ("valueSerializer", bound.config.value_serializer.clone()),
    ];
    for (field, class) in serializers {
        if class.is_some_and(|class| !properties::is_serializer(&class)) {
            bound.refuse(field, properties::serializer_refusal());
        }
    }
    let (translated, problems) = properties::translate(&bound.config, executor_id);
    for (field, text) in problems {
        bound.refuse(&field, text);
    }
    let servers = servers(&mut bound, &translated, settings);
    let Bound { config, violations } = bound;
    let checked = violations.is_empty().then_some(Checked { config, servers, translated });
    Bound { config: checked, violations }
}

fn servers(bound: &mut Bound<Config>, translated: &Translated, settings: &SinkSettings) -> Vec<Server> {
    let mut servers = Vec::new();
    let mut problems = Vec::new();
    for text in translated.bootstrap.split(',').map(str::trim) {
        match server(text) {
            None => problems.push(format!("Invalid bootstrap server format: {text}")),
            Some(server) => {
                let checked = Host::parse(&server.host)
                    .map_or(Ok(()), |host| settings.egress.check_host(&borrowed(&host), WHAT));
                problems.extend(checked.err());
                servers.push(server);
            }
        }
    }
    if !problems.is_empty() {
        problems.dedup();
        bound.refuse(translated.bootstrap_field, problems.join("; "));
    }
    servers
}

fn borrowed(host: &Host<String>) -> Host<&str> {
    match host {
        Host::Domain(name) => Host::Domain(name),
        Host::Ipv4(v4) => Host::Ipv4(*v4),
        Host::Ipv6(v6) => Host::Ipv6(*v6),
    }
}

fn server(text: &str) -> Option<Server> {
    let (host, port) = text.split_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    // librdkafka would take what stands before `://` as a protocol.
    let is_host = !host.is_empty() && !host.contains('/');
    is_host.then(|| Server { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sinks::egress::Egress;

    fn texts(value: Value, settings: &SinkSettings) -> Vec<String> {
        let bound = read(value.as_object().unwrap(), settings, "ie");
        bound.violations.iter().map(ToString::to_string).collect()
    }

    fn accepted(value: Value) -> Checked {
        let bound = read(value.as_object().unwrap(), &SinkSettings::default(), "ie");
        assert_eq!(bound.violations, []);
        bound.config.unwrap()
    }

    /// The document that TBMQ's form writes (spec §6.5.4).
    fn form() -> Value {
        json!({
            "sendOnlyMsgPayload": false, "topic": "tbmq.messages", "key": null, "bootstrapServers": "localhost:9092",
            "clientIdPrefix": null, "retries": 0, "batchSize": 16384, "linger": 0, "bufferMemory": 33_554_432,
            "compression": "none", "acks": "-1", "otherProperties": null, "kafkaHeaders": null,
            "kafkaHeadersCharset": "UTF-8"
        })
    }

    fn changed(changes: Value) -> Value {
        let mut document = form();
        for (field, value) in changes.as_object().unwrap() {
            document[field] = value.clone();
        }
        document
    }

    #[test]
    fn a_document_of_tbmqs_form_is_accepted() {
        let checked = accepted(form());
        assert_eq!(checked.servers, [Server { host: "localhost".into(), port: 9092 }]);
        assert_eq!(checked.config.key, None);
        assert_eq!(checked.translated.buffer_memory, 33_554_432);
    }

    #[test]
    fn all_problems_are_told_at_once_in_tbmqs_words() {
        let value = json!({
            "bootstrapServers": "a:1,b,c:d, [::1]:9,:5,e:0", "topic": "", "retries": -1, "batchSize": -1, "linger": -1,
            "bufferMemory": -1, "acks": "2", "compression": "brotli", "kafkaHeadersCharset": "UTF-32",
            "keySerializer": "com.example.Avro", "port": 1, "otherProperties": {"ssl.key.password": "x"}
        });
        assert_eq!(
            texts(value, &SinkSettings::default()),
            [
                "clientConfiguration.topic: Topic is required",
                "clientConfiguration.retries: Retries must not be less than 0",
                "clientConfiguration.batchSize: Batch size must not be less than 0",
                "clientConfiguration.linger: Linger ms must not be less than 0",
                "clientConfiguration.bufferMemory: Buffer memory must not be less than 0",
                "clientConfiguration.compression: Invalid compression type",
                "clientConfiguration.kafkaHeadersCharset: \"UTF-32\" is not one of US-ASCII, ISO-8859-1, UTF-8, UTF-16BE, UTF-16LE, UTF-16",
                "clientConfiguration.port: unknown field; known are sendOnlyMsgPayload, bootstrapServers, topic, key, clientIdPrefix, retries, batchSize, linger, bufferMemory, acks, compression, otherProperties, kafkaHeaders, kafkaHeadersCharset, keySerializer, valueSerializer",
                "clientConfiguration.acks: Invalid acks value",
                "clientConfiguration.keySerializer: is not known; payloads and keys are sent as they are, as with org.apache.kafka.common.serialization.StringSerializer or org.apache.kafka.common.serialization.ByteArraySerializer",
                "clientConfiguration.otherProperties: Detected SSL-related configurations, but 'security.protocol' is missing. The default protocol is 'PLAINTEXT'. Please ensure 'security.protocol' is set correctly",
                "clientConfiguration.bootstrapServers: Invalid bootstrap server format: b; Invalid bootstrap server format: c:d; Invalid bootstrap server format: [::1]:9; Invalid bootstrap server format: :5; Invalid bootstrap server format: e:0",
            ]
        );
    }

    #[test]
    fn an_empty_document_lacks_servers_topic_and_acks() {
        assert_eq!(
            texts(json!({}), &SinkSettings::default()),
            [
                "clientConfiguration.bootstrapServers: Bootstrap servers cannot be empty",
                "clientConfiguration.topic: Topic is required",
                "clientConfiguration.acks: Invalid acks value",
            ]
        );
    }

    #[test]
    fn coercions_and_defaults_are_tbmqs() {
        let checked = accepted(changed(json!({
            "acks": 1, "retries": "4", "linger": "", "batchSize": 7.9, "sendOnlyMsgPayload": "true",
            "compression": "", "kafkaHeadersCharset": "", "otherProperties": {"linger.ms": 8},
            "bootstrapServers": " a:1 , b:2 ", "keySerializer": "org.apache.kafka.common.serialization.StringSerializer"
        })));
        let config = &checked.config;
        assert_eq!((&*config.acks, config.retries, config.linger, config.batch_size), ("1", 4, 0, 7));
        assert_eq!((config.compression, config.kafka_headers_charset), (Compression::None, Charset::Utf8));
        assert!(config.send_only_msg_payload);
        assert_eq!(checked.translated.settings["linger.ms"].expose(), "8");
        assert_eq!(checked.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "b:2"]);
    }

    #[test]
    fn headers_keep_the_order_of_the_document() {
        let checked = accepted(changed(json!({"kafkaHeaders": {"z": "1", "a": 2, "m": ""}})));
        let names: Vec<_> = checked.config.kafka_headers.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["z", "a", "m"]);
    }

    #[test]
    fn local_servers_are_refused_when_the_executor_forbids_them() {
        let egress = Egress::new(false, Vec::new(), Vec::new());
        let settings = SinkSettings { egress, ..SinkSettings::default() };
        let text = "Usage of local network host for Kafka broker is not allowed!";
        for (other, field) in [
            (json!({}), "bootstrapServers"),
            (json!({"bootstrap.servers": "10.0.0.1:1"}), "otherProperties.bootstrap.servers"),
        ] {
            assert_eq!(
                texts(changed(json!({"otherProperties": other})), &settings),
                [format!("clientConfiguration.{field}: {text}")]
            );
        }
        assert_eq!(texts(changed(json!({"bootstrapServers": "k.example.org:1"})), &settings), [""; 0]);
    }

    #[test]
    fn the_schema_marks_secrets_and_describes_every_field() {
        let schema = binder::schema::<Config>();
        for (name, field) in schema["properties"].as_object().unwrap() {
            assert!(field["description"].is_string(), "{name}: {field}");
        }
        let other = &schema["properties"]["otherProperties"];
        assert_eq!(other["additionalProperties"]["writeOnly"], true);
        let secrets: Vec<_> = other["properties"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, field)| field["writeOnly"] == true)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            secrets,
            [
                "sasl.jaas.config",
                "ssl.key.password",
                "ssl.keystore.key",
                "ssl.keystore.password",
                "ssl.truststore.password"
            ]
        );
        assert_eq!(schema["additionalProperties"], false);
    }
}
