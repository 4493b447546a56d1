//! From a configuration with Java's property names to librdkafka's properties (spec §6.5.1).
//!
//! Only what the table [`PROPERTIES`] names reaches librdkafka: some of librdkafka's own properties run commands or load
//! libraries. No text shows the value of a property that may be secret.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use rdkafka::{ClientConfig, error::KafkaError};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    config::Config,
    jaas::{self, Module},
};
use crate::sinks::credentials::Secret;

/// Bytes of a batch when the configuration says 0.
const BATCH_SIZE: u32 = 16_384;

/// Bytes of buffer memory when the configuration says 0.
const BUFFER_MEMORY: usize = 32 << 20;

/// `client.id` without a configured prefix.
const CLIENT_ID_PREFIX: &str = "tbmq-ie-kafka-producer";

/// Kafka's serializers that leave bytes and UTF-8 text as they are.
const SERIALIZERS: &[&str] = &[
    "org.apache.kafka.common.serialization.StringSerializer",
    "org.apache.kafka.common.serialization.ByteArraySerializer",
];

/// What becomes of a property of Java's producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// librdkafka takes it under this name.
    As(&'static str),
    /// Read by [`translate`], in a way of its own.
    Own,
    /// As `Own`, and never shown.
    Secret,
}

/// The properties of Java's producer that have an effect.
const PROPERTIES: &[(&str, Rule, &str)] = &[
    ("acks", Rule::As("acks"), "Overrides `acks`."),
    ("batch.size", Rule::As("batch.size"), "Overrides `batchSize`."),
    ("bootstrap.servers", Rule::Own, "Overrides `bootstrapServers`."),
    ("buffer.memory", Rule::Own, "Overrides `bufferMemory`."),
    ("client.dns.lookup", Rule::As("client.dns.lookup"), "How names of brokers are resolved."),
    ("client.id", Rule::As("client.id"), "Overrides the client id made of `clientIdPrefix`."),
    ("compression.type", Rule::As("compression.type"), "Overrides `compression`."),
    (
        "connections.max.idle.ms",
        Rule::As("connections.max.idle.ms"),
        "Idle connections are closed after so long.",
    ),
    (
        "delivery.timeout.ms",
        Rule::Own,
        "A record fails after so long; never later than the delivery attempt.",
    ),
    (
        "enable.idempotence",
        Rule::As("enable.idempotence"),
        "Whether retries may not duplicate; `false` by default.",
    ),
    ("key.serializer", Rule::Own, "Only Kafka's String and ByteArray serializers are known."),
    ("linger.ms", Rule::As("linger.ms"), "Overrides `linger`."),
    (
        "max.in.flight.requests.per.connection",
        Rule::As("max.in.flight.requests.per.connection"),
        "Requests without an answer per connection; 5 by default.",
    ),
    ("max.request.size", Rule::As("message.max.bytes"), "Bytes of a request at most; 16 MiB by default."),
    (
        "metadata.max.age.ms",
        Rule::As("topic.metadata.refresh.interval.ms"),
        "Brokers and partitions are asked for after so long.",
    ),
    (
        "metadata.recovery.strategy",
        Rule::As("metadata.recovery.strategy"),
        "What is done when no known broker is reachable.",
    ),
    (
        "receive.buffer.bytes",
        Rule::As("socket.receive.buffer.bytes"),
        "The socket's buffer; -1: the system's.",
    ),
    (
        "reconnect.backoff.max.ms",
        Rule::As("reconnect.backoff.max.ms"),
        "The longest wait before connecting anew.",
    ),
    ("reconnect.backoff.ms", Rule::As("reconnect.backoff.ms"), "The first wait before connecting anew."),
    ("request.timeout.ms", Rule::As("socket.timeout.ms"), "A request fails after so long."),
    ("retries", Rule::As("retries"), "Overrides `retries`."),
    ("retry.backoff.max.ms", Rule::As("retry.backoff.max.ms"), "The longest wait before a retry."),
    ("retry.backoff.ms", Rule::As("retry.backoff.ms"), "The first wait before a retry."),
    (
        "sasl.jaas.config",
        Rule::Secret,
        "Java's login module: PlainLoginModule or ScramLoginModule with user and password.",
    ),
    ("sasl.mechanism", Rule::Own, "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."),
    ("security.protocol", Rule::Own, "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."),
    ("send.buffer.bytes", Rule::As("socket.send.buffer.bytes"), "The socket's buffer; -1: the system's."),
    (
        "socket.connection.setup.timeout.ms",
        Rule::As("socket.connection.setup.timeout.ms"),
        "A connection fails after so long.",
    ),
    (
        "ssl.endpoint.identification.algorithm",
        Rule::Own,
        "`https`: the certificate names the broker; empty: it need not.",
    ),
    ("ssl.key.password", Rule::Secret, "The password of the client's key."),
    ("ssl.keystore.certificate.chain", Rule::Own, "The client's certificate and its chain, as PEM."),
    ("ssl.keystore.key", Rule::Secret, "The client's key, as PEM (PKCS#8)."),
    (
        "ssl.keystore.location",
        Rule::Own,
        "A PEM file with the client's key and certificates, on the executor.",
    ),
    ("ssl.keystore.password", Rule::Secret, "Only for JKS and PKCS12, which can't be used."),
    ("ssl.keystore.type", Rule::Own, "PEM."),
    ("ssl.truststore.certificates", Rule::Own, "Certificates to trust instead of the system's, as PEM."),
    ("ssl.truststore.location", Rule::Own, "A PEM file with certificates to trust, on the executor."),
    ("ssl.truststore.password", Rule::Secret, "Only for JKS and PKCS12, which can't be used."),
    ("ssl.truststore.type", Rule::Own, "PEM."),
    ("transactional.id", Rule::Own, "Not possible here."),
    ("value.serializer", Rule::Own, "Only Kafka's String and ByteArray serializers are known."),
];

/// `otherProperties`: further properties of Java's producer by name. Values are never printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct OtherProperties(BTreeMap<String, Secret>);

impl OtherProperties {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::expose)
    }
}

impl fmt::Debug for OtherProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0).finish()
    }
}

impl JsonSchema for OtherProperties {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "OtherProperties".into()
    }

    /// What is known is described; what is not is a secret.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let known = PROPERTIES.iter().map(|(name, rule, about)| {
            let mut schema = json!({ "type": "string", "description": about });
            if *rule == Rule::Secret {
                schema["writeOnly"] = Value::Bool(true);
            }
            ((*name).to_owned(), schema)
        });
        let mut schema = Map::new();
        schema.insert("type".to_owned(), "object".into());
        schema.insert("properties".to_owned(), known.collect::<Map<_, _>>().into());
        schema.insert("additionalProperties".to_owned(), json!({ "type": "string", "writeOnly": true }));
        schema.into()
    }
}

/// librdkafka's properties.
pub(super) type Settings = BTreeMap<&'static str, Secret>;

/// Texts that are kept out of everything that librdkafka says.
#[derive(Clone)]
pub(super) struct Hidden(Vec<Secret>);

impl Hidden {
    pub(super) fn of(settings: &Settings) -> Self {
        let secrets = ["sasl.password", "ssl.key.password", "ssl.key.pem"];
        Self(secrets.iter().filter_map(|name| settings.get(name)).cloned().collect())
    }

    /// The text without them.
    pub(super) fn hide(&self, text: &str) -> String {
        let secrets = self.0.iter().map(Secret::expose).filter(|secret| !secret.is_empty());
        secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }
}

/// A configuration in librdkafka's words.
#[derive(Clone, Debug, Default)]
pub(super) struct Translated {
    pub settings: Settings,
    /// `host:port,host:port`.
    pub bootstrap: String,
    /// Where `bootstrap` stands in the configuration.
    pub bootstrap_field: &'static str,
    /// Bytes that the integration may have in flight.
    pub buffer_memory: usize,
    /// A record fails after so long, if the attempt does not end before.
    pub delivery_timeout: Option<Duration>,
    /// Names of properties without a counterpart.
    pub ignored: Vec<String>,
}

impl Translated {
    /// Whether records of a partition are written in the order in which they are handed over, as long as the client has
    /// several requests under way: it retries nothing, or its batches are numbered.
    pub(super) fn keeps_order(&self) -> bool {
        let is = |name: &str, value: &str| {
            self.settings.get(name).is_some_and(|held| held.expose().trim().eq_ignore_ascii_case(value))
        };
        is("retries", "0")
            || is("enable.idempotence", "true")
            || is("max.in.flight.requests.per.connection", "1")
    }
}

/// Translates a configuration, with the problems of all properties by field.
pub(super) fn translate(config: &Config, executor_id: &str) -> (Translated, Vec<(String, String)>) {
    let mut translation = Translation {
        other: &config.other_properties,
        done: Translated {
            bootstrap: config.bootstrap_servers.clone(),
            bootstrap_field: "bootstrapServers",
            buffer_memory: positive(config.buffer_memory).map_or(BUFFER_MEMORY, |bytes| bytes as usize),
            ..Translated::default()
        },
        problems: Vec::new(),
    };
    translation.fields(config, executor_id);
    translation.others();
    translation.own();
    translation.security();
    (translation.done, translation.problems)
}

/// `None` for 0, which means the default.
fn positive(number: i32) -> Option<u32> {
    u32::try_from(number).ok().filter(|number| *number > 0)
}

struct Translation<'a> {
    other: &'a OtherProperties,
    done: Translated,
    problems: Vec<(String, String)>,
}

impl Translation<'_> {
    fn fields(&mut self, config: &Config, executor_id: &str) {
        let prefix = config.client_id_prefix.as_deref().filter(|prefix| !prefix.is_empty());
        let defaults = [
            ("partitioner", "murmur2_random"),
            ("message.max.bytes", "16777216"),
            ("max.in.flight.requests.per.connection", "5"),
            ("reconnect.backoff.ms", "50"),
            ("reconnect.backoff.max.ms", "1000"),
            // A topic that was just created is found soon, and one that is missing is told within 2 s.
            ("topic.metadata.propagation.max.ms", "2000"),
            ("log.connection.close", "false"),
            // The budgets of the integrations rule.
            ("queue.buffering.max.messages", "10000000"),
            ("queue.buffering.max.kbytes", "2097151"),
        ];
        for (name, value) in defaults {
            self.done.settings.insert(name, Secret::new(value));
        }
        for (field, name, value) in [
            // No integration's id: sinks with the same settings are one client to the brokers.
            ("clientIdPrefix", "client.id", format!("{}-{executor_id}", prefix.unwrap_or(CLIENT_ID_PREFIX))),
            ("retries", "retries", config.retries.to_string()),
            ("batchSize", "batch.size", positive(config.batch_size).unwrap_or(BATCH_SIZE).to_string()),
            ("linger", "linger.ms", config.linger.to_string()),
            ("acks", "acks", config.acks.clone()),
            ("compression", "compression.type", config.compression.as_str().to_owned()),
        ] {
            self.set(field, name, value);
        }
    }

    /// Those that librdkafka takes as they are.
    fn others(&mut self) {
        let other = self.other;
        for (name, value) in &other.0 {
            let value = value.expose();
            match PROPERTIES.iter().find(|(known, ..)| known == name) {
                Some((_, Rule::As(target), _)) => {
                    let value = match (name.as_str(), value.trim()) {
                        // What Java's clients call no batching, and the system's size.
                        ("batch.size", "0") => "1",
                        ("send.buffer.bytes" | "receive.buffer.bytes", "-1") => "0",
                        (_, value) => value,
                    };
                    self.set(&format!("otherProperties.{name}"), target, value.to_owned());
                }
                Some(_) => {}
                None => self.done.ignored.push(name.clone()),
            }
        }
    }

    /// Those that are ours to understand.
    fn own(&mut self) {
        let other = self.other;
        if let Some(servers) = other.get("bootstrap.servers") {
            servers.clone_into(&mut self.done.bootstrap);
            self.done.bootstrap_field = "otherProperties.bootstrap.servers";
        }
        if let Some(bytes) = self.number("buffer.memory") {
            self.done.buffer_memory = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        self.done.delivery_timeout = self.number("delivery.timeout.ms").map(Duration::from_millis);
        for name in ["key.serializer", "value.serializer"] {
            if other.get(name).is_some_and(|class| !is_serializer(class)) {
                self.refuse(name, serializer_refusal());
            }
        }
        if other.get("transactional.id").is_some() {
            self.refuse(
                "transactional.id",
                "transactions are not possible: each message is delivered by itself",
            );
        }
    }

    /// A whole number above 0.
    fn number(&mut self, name: &str) -> Option<u64> {
        let text = self.other.get(name)?;
        let number = text.trim().parse().ok().filter(|number| *number > 0);
        if number.is_none() {
            self.refuse(name, "is not a whole number above 0");
        }
        number
    }

    fn security(&mut self) {
        let other = self.other;
        let Some(protocol) = other.get("security.protocol") else {
            if other.0.keys().any(|name| name.contains("ssl.")) {
                let text = "Detected SSL-related configurations, but 'security.protocol' is missing. The default \
                            protocol is 'PLAINTEXT'. Please ensure 'security.protocol' is set correctly";
                self.problems.push(("otherProperties".to_owned(), text.to_owned()));
            }
            return;
        };
        let protocol = protocol.trim().to_ascii_lowercase();
        if !["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"].contains(&protocol.as_str()) {
            self.refuse("security.protocol", "is not one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL");
            return;
        }
        let (is_sasl, is_tls) = (protocol.starts_with("sasl"), protocol.ends_with("ssl"));
        self.done.settings.insert("security.protocol", Secret::new(protocol));
        if is_sasl {
            self.sasl();
        }
        if is_tls {
            self.tls();
        }
    }

    fn sasl(&mut self) {
        let other = self.other;
        let mechanism = other.get("sasl.mechanism").map(str::trim).unwrap_or_default();
        let module = match mechanism {
            "PLAIN" => Module::Plain,
            "SCRAM-SHA-256" | "SCRAM-SHA-512" => Module::Scram,
            "" => {
                return self
                    .refuse("sasl.mechanism", "is required; one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512");
            }
            _ => return self.refuse("sasl.mechanism", "is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        };
        let Some(text) = other.get("sasl.jaas.config") else {
            return self.refuse("sasl.jaas.config", format!("is required for {mechanism}"));
        };
        match jaas::parse(text) {
            Err(text) => self.refuse("sasl.jaas.config", text),
            Ok(login) if login.module != module => {
                let text = format!("{mechanism} needs {module}, not {}", login.module);
                self.refuse("sasl.jaas.config", text);
            }
            Ok(login) => {
                let settings = &mut self.done.settings;
                settings.insert("sasl.mechanisms", Secret::new(mechanism));
                settings.insert("sasl.username", Secret::new(login.username));
                settings.insert("sasl.password", login.password);
            }
        }
    }

    fn tls(&mut self) {
        let other = self.other;
        match other.get("ssl.endpoint.identification.algorithm").map(str::trim) {
            // Java's default.
            None | Some("https" | "HTTPS") => self.put("ssl.endpoint.identification.algorithm", "https"),
            Some("" | "none") => self.put("ssl.endpoint.identification.algorithm", "none"),
            Some(_) => self.refuse("ssl.endpoint.identification.algorithm", "is neither https nor empty"),
        }
        if self.is_pem_store("ssl.truststore", "ssl.truststore.certificates")
            && let Some(path) = other.get("ssl.truststore.location")
        {
            self.put("ssl.ca.location", path);
        }
        if let Some(pem) = other.get("ssl.truststore.certificates") {
            let pem = lines(pem);
            match certificates(&pem) {
                Ok(()) => self.put("ssl.ca.pem", pem),
                Err(text) => self.refuse("ssl.truststore.certificates", text),
            }
        }
        let own = "ssl.keystore.certificate.chain and ssl.keystore.key";
        if self.is_pem_store("ssl.keystore", own)
            && let Some(path) = other.get("ssl.keystore.location")
        {
            self.put("ssl.certificate.location", path);
            self.put("ssl.key.location", path);
        }
        let (chain, key) = (other.get("ssl.keystore.certificate.chain"), other.get("ssl.keystore.key"));
        match (chain, key) {
            (Some(_), None) => {
                self.refuse("ssl.keystore.key", "is required with ssl.keystore.certificate.chain");
            }
            (None, Some(_)) => {
                self.refuse("ssl.keystore.certificate.chain", "is required with ssl.keystore.key");
            }
            _ => {}
        }
        if let Some(pem) = chain {
            let pem = lines(pem);
            match certificates(&pem) {
                Ok(()) => self.put("ssl.certificate.pem", pem),
                Err(text) => self.refuse("ssl.keystore.certificate.chain", text),
            }
        }
        if let Some(pem) = key {
            let pem = lines(pem);
            if pem.contains("-----BEGIN ") && pem.contains("PRIVATE KEY-----") {
                self.put("ssl.key.pem", pem);
            } else {
                self.refuse("ssl.keystore.key", "has no private key in PEM format");
            }
        }
        if let Some(password) = other.get("ssl.key.password") {
            self.put("ssl.key.password", password);
        }
    }

    /// Whether a store, if there is any, is PEM. Java's default is JKS.
    fn is_pem_store(&mut self, store: &str, instead: &str) -> bool {
        let other = self.other;
        let named = other.get(&format!("{store}.type")).map(|kind| kind.trim().to_ascii_uppercase());
        let (field, kind) = match named {
            None if other.get(&format!("{store}.location")).is_none() => return true,
            None => ("location", "JKS".to_owned()),
            Some(kind) if kind == "PEM" => return true,
            // Anything else might be a slip of a password.
            Some(kind) if ["JKS", "PKCS12"].contains(&kind.as_str()) => ("type", kind),
            Some(_) => ("type", "such a".to_owned()),
        };
        let text = format!(
            "{kind} store can't be read here; export it as PEM (keytool -importkeystore to PKCS12, then openssl \
             pkcs12 -nodes), set {store}.type to PEM and {instead} to the PEM text"
        );
        self.refuse(&format!("{store}.{field}"), text);
        false
    }

    fn put(&mut self, name: &'static str, value: impl Into<String>) {
        self.done.settings.insert(name, Secret::new(value));
    }

    /// Takes what librdkafka accepts.
    fn set(&mut self, field: &str, name: &'static str, value: String) {
        match accepts(name, &value) {
            Ok(()) => self.put(name, value),
            Err(text) => self.problems.push((field.to_owned(), text)),
        }
    }

    fn refuse(&mut self, name: &str, text: impl Into<String>) {
        self.problems.push((format!("otherProperties.{name}"), text.into()));
    }
}

/// Whether a serializer leaves text and bytes as they are.
pub(super) fn is_serializer(class: &str) -> bool {
    class.is_empty() || SERIALIZERS.contains(&class.trim())
}

pub(super) fn serializer_refusal() -> String {
    format!("is not known; payloads and keys are sent as they are, as with {}", SERIALIZERS.join(" or "))
}

/// The two characters `\n` mean a new line: forms hold PEM texts in one line.
fn lines(pem: &str) -> String {
    pem.replace("\\n", "\n")
}

fn certificates(pem: &str) -> Result<(), String> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        certificate.map_err(|_| "is not valid PEM".to_owned())?;
        count += 1;
    }
    if count == 0 { Err("has no certificate in PEM format".to_owned()) } else { Ok(()) }
}

/// Whether librdkafka knows the property and takes the value. Connects to nothing.
fn accepts(name: &str, value: &str) -> Result<(), String> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => Ok(()),
        // Its text may have another name of the property.
        Err(KafkaError::ClientConfig(_, text, ..)) => Err(match text.split_once("outside allowed range ") {
            Some((_, range)) => format!("{value} is outside the range {}", range.trim_end()),
            None => "has a value that it can't have".to_owned(),
        }),
        // The value has a NUL.
        Err(_) => Err("has a character that can't be".to_owned()),
    }
}

/// Why a client could not be made, without the values that the error carries.
pub(super) fn creation_text(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, name, _) => format!("the value of {name} can't be used"),
        KafkaError::ClientCreation(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::binder;

    const PLAIN: &str = "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"u\" password=\"hunter2\";";
    const SCRAM: &str = "org.apache.kafka.common.security.scram.ScramLoginModule required username=\"u\" password=\"hunter2\";";

    fn bound(changes: Value) -> Config {
        let mut document = json!({"bootstrapServers": "k:9092", "topic": "t", "acks": "-1"});
        for (field, value) in changes.as_object().unwrap() {
            document[field] = value.clone();
        }
        let bound = binder::bind::<Config>(document.as_object().unwrap());
        assert_eq!(bound.violations, []);
        bound.config
    }

    fn settings(changes: Value) -> BTreeMap<&'static str, String> {
        let (translated, problems) = translate(&bound(changes), "ie1");
        assert_eq!(problems, []);
        translated.settings.iter().map(|(name, value)| (*name, value.expose().to_owned())).collect()
    }

    fn with(other: Value) -> BTreeMap<&'static str, String> {
        settings(json!({ "otherProperties": other }))
    }

    fn problems(other: Value) -> Vec<String> {
        let (_, problems) = translate(&bound(json!({ "otherProperties": other })), "ie1");
        problems.into_iter().map(|(field, text)| format!("{field}: {text}")).collect()
    }

    fn pem() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn order_is_kept_unless_a_batch_may_be_tried_again_behind_another() {
        let keeps = |changes: Value| {
            let mut document = json!({ "bootstrapServers": "a:1", "topic": "t", "acks": "all" });
            document.as_object_mut().unwrap().append(&mut changes.as_object().unwrap().clone());
            let config: Config = serde_json::from_value(document).unwrap();
            translate(&config, "ie").0.keeps_order()
        };
        assert!(keeps(json!({})));
        assert!(!keeps(json!({ "retries": 3 })));
        assert!(keeps(json!({ "retries": 3, "otherProperties": { "enable.idempotence": "true" } })));
        let one = json!({ "max.in.flight.requests.per.connection": "1" });
        assert!(keeps(json!({ "retries": 3, "otherProperties": one })));
        assert!(!keeps(json!({ "otherProperties": { "retries": "2" } })));
    }

    #[test]
    fn fields_become_librdkafkas_properties() {
        let found = settings(json!({
            "clientIdPrefix": "mine", "retries": 3, "batchSize": 100, "linger": 7, "acks": "1", "compression": "zstd",
        }));
        for (name, value) in [
            ("client.id", "mine-ie1"),
            ("retries", "3"),
            ("batch.size", "100"),
            ("linger.ms", "7"),
            ("acks", "1"),
            ("compression.type", "zstd"),
            ("partitioner", "murmur2_random"),
        ] {
            assert_eq!(found[name], value, "{name}");
        }
        let found = settings(json!({"clientIdPrefix": "", "batchSize": 0}));
        assert_eq!((&*found["client.id"], &*found["batch.size"]), ("tbmq-ie-kafka-producer-ie1", "16384"));
    }

    #[test]
    fn other_properties_override_the_fields() {
        let found = with(json!({
            "client.id": "c", "acks": "0", "retries": "9", "batch.size": "0", "linger.ms": 5, "compression.type": "lz4",
            "max.request.size": "2000000", "request.timeout.ms": "4000", "send.buffer.bytes": "-1",
        }));
        for (name, value) in [
            ("client.id", "c"),
            ("acks", "0"),
            ("retries", "9"),
            ("batch.size", "1"),
            ("linger.ms", "5"),
            ("compression.type", "lz4"),
            ("message.max.bytes", "2000000"),
            ("socket.timeout.ms", "4000"),
            ("socket.send.buffer.bytes", "0"),
        ] {
            assert_eq!(found[name], value, "{name}");
        }
        let other =
            json!({"bootstrap.servers": "x:1", "buffer.memory": "1000", "delivery.timeout.ms": "1500"});
        let (translated, _) = translate(&bound(json!({ "otherProperties": other })), "ie1");
        assert_eq!((&*translated.bootstrap, translated.buffer_memory), ("x:1", 1000));
        assert_eq!(translated.delivery_timeout, Some(Duration::from_millis(1500)));
        let (translated, _) = translate(&bound(json!({"bufferMemory": 0})), "ie1");
        assert_eq!(translated.buffer_memory, 33_554_432);
    }

    #[test]
    fn logins_of_java_become_those_of_librdkafka() {
        for (mechanism, jaas) in [("PLAIN", PLAIN), ("SCRAM-SHA-256", SCRAM), ("SCRAM-SHA-512", SCRAM)] {
            let found = with(json!({
                "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": mechanism, "sasl.jaas.config": jaas
            }));
            for (name, value) in [
                ("security.protocol", "sasl_plaintext"),
                ("sasl.mechanisms", mechanism),
                ("sasl.username", "u"),
                ("sasl.password", "hunter2"),
            ] {
                assert_eq!(found[name], value, "{name}");
            }
        }
        for (other, problem) in [
            (json!({"sasl.mechanism": "PLAIN"}), "sasl.jaas.config: is required for PLAIN"),
            (
                json!({"sasl.jaas.config": PLAIN}),
                "sasl.mechanism: is required; one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
            ),
            (
                json!({"sasl.mechanism": "GSSAPI", "sasl.jaas.config": PLAIN}),
                "sasl.mechanism: is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
            ),
            (
                json!({"sasl.mechanism": "SCRAM-SHA-256", "sasl.jaas.config": PLAIN}),
                "sasl.jaas.config: SCRAM-SHA-256 needs ScramLoginModule, not PlainLoginModule",
            ),
        ] {
            let mut other = other;
            other["security.protocol"] = "SASL_SSL".into();
            assert_eq!(problems(other), [format!("otherProperties.{problem}")]);
        }
    }

    #[test]
    fn pem_stores_are_taken_also_in_one_line() {
        let (certificate, key) = pem();
        let one_line = |text: &str| text.trim_end().replace("\r\n", "\n").replace('\n', "\\n");
        for (certificate, key) in
            [(certificate.clone(), key.clone()), (one_line(&certificate), one_line(&key))]
        {
            let found = with(json!({
                "security.protocol": "SSL", "ssl.truststore.type": "PEM", "ssl.truststore.certificates": certificate,
                "ssl.keystore.type": "PEM", "ssl.keystore.certificate.chain": certificate, "ssl.keystore.key": key,
                "ssl.key.password": "p", "ssl.endpoint.identification.algorithm": "",
            }));
            assert_eq!(certificates(&found["ssl.ca.pem"]), Ok(()));
            assert_eq!(found["ssl.ca.pem"], found["ssl.certificate.pem"]);
            assert!(found["ssl.key.pem"].lines().count() > 2);
            assert_eq!(found["ssl.key.password"], "p");
            assert_eq!(found["ssl.endpoint.identification.algorithm"], "none");
        }
        let found = with(json!({
            "security.protocol": "ssl", "ssl.truststore.type": "PEM", "ssl.truststore.location": "/ca.pem",
            "ssl.keystore.type": "PEM", "ssl.keystore.location": "/me.pem",
        }));
        assert_eq!(found["ssl.endpoint.identification.algorithm"], "https");
        assert_eq!(
            ["ssl.ca.location", "ssl.certificate.location", "ssl.key.location"].map(|name| &*found[name]),
            ["/ca.pem", "/me.pem", "/me.pem"]
        );
    }

    #[test]
    fn stores_that_cant_be_read_are_refused_with_what_to_do() {
        let found = problems(json!({
            "security.protocol": "SSL", "ssl.truststore.location": "/t.jks", "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": "/k.p12", "ssl.truststore.password": "hunter2",
        }));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("otherProperties.ssl.truststore.location: JKS store can't be read here")
        );
        assert!(
            found[0]
                .ends_with("set ssl.truststore.type to PEM and ssl.truststore.certificates to the PEM text")
        );
        assert!(found[1].starts_with("otherProperties.ssl.keystore.type: PKCS12 store can't be read here"));
        assert!(found.iter().all(|text| !text.contains("hunter2")));
        let (certificate, _) = pem();
        assert_eq!(
            problems(json!({
                "security.protocol": "SSL", "ssl.truststore.certificates": "x",
                "ssl.keystore.certificate.chain": certificate, "ssl.endpoint.identification.algorithm": "ldap",
            })),
            [
                "otherProperties.ssl.endpoint.identification.algorithm: is neither https nor empty",
                "otherProperties.ssl.truststore.certificates: has no certificate in PEM format",
                "otherProperties.ssl.keystore.key: is required with ssl.keystore.certificate.chain",
            ]
        );
    }

    #[test]
    fn tls_without_a_protocol_is_refused_in_tbmqs_words() {
        assert_eq!(
            problems(json!({"ssl.truststore.type": "PEM"})),
            [
                "otherProperties: Detected SSL-related configurations, but 'security.protocol' is missing. The default protocol is 'PLAINTEXT'. Please ensure 'security.protocol' is set correctly"
            ]
        );
        assert_eq!(
            problems(json!({"security.protocol": "TLS"})),
            ["otherProperties.security.protocol: is not one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"]
        );
    }

    #[test]
    fn values_that_librdkafka_does_not_take_are_told_by_field() {
        assert_eq!(
            problems(json!({
                "retries": "x", "linger.ms": "900001", "buffer.memory": "0", "transactional.id": "t",
                "key.serializer": "com.example.Avro"
            })),
            [
                "otherProperties.linger.ms: 900001 is outside the range 0..900000",
                "otherProperties.retries: has a value that it can't have",
                "otherProperties.buffer.memory: is not a whole number above 0",
                "otherProperties.key.serializer: is not known; payloads and keys are sent as they are, as with org.apache.kafka.common.serialization.StringSerializer or org.apache.kafka.common.serialization.ByteArraySerializer",
                "otherProperties.transactional.id: transactions are not possible: each message is delivered by itself",
            ]
        );
    }

    #[test]
    fn what_has_no_counterpart_does_not_reach_librdkafka() {
        let other = json!({
            "plugin.library.paths": "/evil.so", "sasl.kerberos.kinit.cmd": "rm", "metric.reporters": "x", "debug": "all",
            "ssl.enabled.protocols": "TLSv1.3", "security.protocol": "SSL"
        });
        let (translated, problems) = translate(&bound(json!({ "otherProperties": other })), "ie1");
        assert_eq!(problems, []);
        assert_eq!(
            translated.ignored,
            [
                "debug",
                "metric.reporters",
                "plugin.library.paths",
                "sasl.kerberos.kinit.cmd",
                "ssl.enabled.protocols"
            ]
        );
        assert!(
            translated.settings.values().all(|value| !["/evil.so", "rm", "all"].contains(&value.expose()))
        );
    }

    #[test]
    fn the_five_compressions_and_the_logins_are_built_in() {
        for (name, value) in
            ["none", "gzip", "snappy", "lz4", "zstd"].map(|codec| ("compression.type", codec))
        {
            assert_eq!(accepts(name, value), Ok(()), "{value}");
        }
        assert_eq!(accepts("builtin.features", "ssl,sasl_plain,sasl_scram"), Ok(()));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let other =
            json!({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.jaas.config": PLAIN});
        let config = bound(json!({ "otherProperties": other }));
        let shown = format!("{config:?}{:?}", translate(&config, "ie1"));
        assert!(!shown.contains("hunter2") && shown.contains("sasl.jaas.config"), "{shown}");
    }
}
