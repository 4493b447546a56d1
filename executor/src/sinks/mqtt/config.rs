//! `clientConfiguration` of MQTT integrations (spec §6.4.1).

use std::net::IpAddr;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Connect, ProtocolVersion, Qos, Text},
};
use url::Host;

use crate::sinks::{
    SinkSettings,
    binder::{self, Bound},
    credentials::{Credentials, Secret},
};

/// What is connected to, in texts about local hosts.
const WHAT: &str = "MQTT broker connection";

/// The broker, the session, and how messages are published.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["host", "port", "clientId", "connectTimeoutSec", "mqttVersion"]))]
pub struct Config {
    /// Send the payload alone instead of a JSON object with payload, topic, client id and so on.
    pub send_only_msg_payload: bool,
    /// Name or address of the broker.
    #[schemars(length(min = 1), extend("x-error-text" = "Host cannot be empty"))]
    pub host: String,
    /// TCP port of the broker.
    #[schemars(range(min = 1, max = 65535), extend("x-error-text" = "Port must be between 1 and 65535"))]
    pub port: u32,
    /// The topic of all messages; needed and used only when `useMsgTopicName` is false.
    pub topic_name: String,
    /// Publish each message to the topic that it was published to here.
    pub use_msg_topic_name: bool,
    /// Client identifier of the connection. Of an integration with several shards, all but the first append `-` and
    /// their number: two connections of one identifier would end each other.
    #[schemars(length(min = 1), extend("x-error-text" = "Client ID is required"))]
    pub client_id: String,
    /// Let the connection check use `clientId` itself, for brokers that know their clients by it. That ends a running
    /// connection of this identifier; without it the check has an identifier of its own.
    pub check_with_client_id: bool,
    /// How the sink shows who it is; `cert.PEM` means TLS, whatever `ssl` says.
    pub credentials: Credentials,
    /// Connect with TLS.
    pub ssl: bool,
    /// Seconds for one attempt to connect, from the look-up of the host to the CONNACK; also the longest wait for the
    /// answer to a PINGREQ.
    #[schemars(range(min = 1), extend("x-error-text" = "Connection timeout (seconds) must be greater than 0"))]
    pub connect_timeout_sec: u32,
    /// Seconds between the loss of a connection, or a failed attempt, and the next attempt; 0: no attempt, the
    /// integration fails and is started anew by the executor's own period.
    #[schemars(range(min = 0), extend("x-error-text" = "Reconnect period (seconds) must not be less than 0"))]
    pub reconnect_period_sec: u32,
    /// 3 for MQTT 3.1, 4 for MQTT 3.1.1, 5 for MQTT 5.0.
    #[schemars(
        range(min = 3, max = 5),
        extend("x-error-text" = "Invalid MQTT version. Allowed values: 3 (MQTT_3_1), 4 (MQTT_3_1_1), 5 (MQTT_5)")
    )]
    pub mqtt_version: u32,
    /// The quality of service of all messages, used only when `useMsgQoS` is false. A broker that says that it takes
    /// less gets less.
    #[schemars(
        range(min = 0, max = 2),
        extend("x-error-text" = "Invalid MQTT Quality of Service (QoS). Allowed values: 0 (AT_MOST_ONCE), 1 (AT_LEAST_ONCE), 2 (EXACTLY_ONCE)")
    )]
    pub qos: u32,
    /// Publish each message with the quality of service that it was published with here.
    #[serde(rename = "useMsgQoS")]
    pub use_msg_qos: bool,
    /// The retain flag of all messages, used only when `useMsgRetain` is false. A broker that says that it retains
    /// nothing gets messages without it.
    pub retained: bool,
    /// Publish each message with the retain flag that it was published with here.
    pub use_msg_retain: bool,
    /// Seconds without a packet after which a PINGREQ is sent; 0: never.
    #[schemars(range(min = 0), extend("x-error-text" = "Keep Alive (seconds) must not be less than 0"))]
    pub keep_alive_sec: u32,
}

/// A configuration that was checked, in the client's words.
#[derive(Clone)]
pub(super) struct Checked {
    pub config: Config,
    pub version: ProtocolVersion,
    /// The quality of service of all messages; `None`: each message's own.
    pub qos: Option<Qos>,
}

impl Checked {
    /// The host without the brackets of an IPv6 address.
    pub(super) fn host(&self) -> &str {
        let host = self.config.host.trim();
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    pub(super) fn port(&self) -> u16 {
        u16::try_from(self.config.port).expect("the port was checked")
    }

    /// TLS is on with certificates, even if a form hid the switch and left it off (spec UP-14).
    pub(super) fn uses_tls(&self) -> bool {
        self.config.ssl || matches!(self.config.credentials, Credentials::Pem { .. })
    }

    /// The CONNECT of a client: a clean session without will and properties (spec §6.4.2).
    pub(super) fn connect(&self, client_id: &str) -> Connect {
        let (username, password) = match &self.config.credentials {
            Credentials::Basic { username, password } => {
                (given(username.as_deref()), exposed(password.as_ref()))
            }
            Credentials::Anonymous | Credentials::Pem { .. } => (None, None),
        };
        Connect {
            version: self.version,
            clean_start: true,
            keep_alive: u16::try_from(self.config.keep_alive_sec).expect("the keep alive was checked"),
            client_id: client_id.into(),
            will: None,
            username: username.map(Text::from),
            password: password.map(|password| Bytes::copy_from_slice(password.as_bytes())),
            properties: Properties::NONE,
        }
    }
}

/// What a form left empty is not given.
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn exposed(secret: Option<&Secret>) -> Option<&str> {
    given(secret.map(Secret::expose))
}

/// Reads and checks a configuration; all its problems at once.
pub(super) fn read(map: &Map<String, Value>, settings: &SinkSettings) -> Bound<Option<Checked>> {
    let mut bound = binder::bind::<Config>(map);
    let config = bound.config.clone();
    check_host(&mut bound, config.host.trim(), settings);
    if !config.use_msg_topic_name {
        check_topic(&mut bound, &config.topic_name);
    }
    // Room for the number of a shard, or the word that a check appends.
    if config.client_id.len() > usize::from(u16::MAX) - 32 || config.client_id.contains('\0') {
        bound.refuse("clientId", "is longer than MQTT allows, or holds the character U+0000");
    }
    if config.keep_alive_sec > u32::from(u16::MAX) {
        bound.refuse("keepAliveSec", "Keep Alive (seconds) must not be greater than 65535");
    }
    if let Credentials::Basic { username, password } = &config.credentials {
        let (username, password) = (given(username.as_deref()), exposed(password.as_ref()));
        if username.is_some_and(|text| text.len() > usize::from(u16::MAX) || text.contains('\0')) {
            bound.refuse("credentials.username", "is longer than MQTT allows, or holds the character U+0000");
        }
        if password.is_some_and(|text| text.len() > usize::from(u16::MAX)) {
            bound.refuse("credentials.password", "is longer than MQTT allows");
        } else if password.is_some() && username.is_none() && config.mqtt_version < 5 {
            // MQTT-3.1.2-22 of 3.1.1
            bound.refuse("credentials.username", "is needed with a password before MQTT 5");
        }
    }
    for violation in config.credentials.check(&format!("{}.credentials", binder::ROOT)) {
        bound.violations.push(violation);
    }
    let version = match config.mqtt_version {
        3 => ProtocolVersion::V31,
        5 => ProtocolVersion::V5,
        _ => ProtocolVersion::V311,
    };
    let qos = if config.use_msg_qos { None } else { Qos::from_bits(config.qos as u8) };
    let is_accepted = bound.violations.is_empty();
    Bound { config: is_accepted.then_some(Checked { config, version, qos }), violations: bound.violations }
}

fn check_host(bound: &mut Bound<Config>, host: &str, settings: &SinkSettings) {
    let parsed = match host.parse() {
        Ok(IpAddr::V4(v4)) => Ok(Host::Ipv4(v4)),
        Ok(IpAddr::V6(v6)) => Ok(Host::Ipv6(v6)),
        Err(_) => Host::parse(host),
    };
    match parsed {
        Ok(host) => {
            let host = match &host {
                Host::Domain(name) => Host::Domain(name.as_str()),
                Host::Ipv4(v4) => Host::Ipv4(*v4),
                Host::Ipv6(v6) => Host::Ipv6(*v6),
            };
            if let Err(text) = settings.egress.check_host(&host, WHAT) {
                bound.refuse("host", text);
            }
        }
        Err(_) => bound.refuse("host", format!("{host:?} is neither the name of a host nor an address")),
    }
}

fn check_topic(bound: &mut Bound<Config>, topic: &str) {
    if topic.trim().is_empty() {
        bound.refuse("topicName", "Topic name is required when Dynamic topic name option is disabled");
    } else if topic.contains(['#', '+']) {
        bound.refuse("topicName", "Topic name cannot contain wildcard characters");
    } else if topic.starts_with('$') {
        bound.refuse("topicName", "Topic name cannot start with $ character");
    } else if Text::from_bytes(Bytes::copy_from_slice(topic.as_bytes())).is_none() {
        bound.refuse("topicName", "is longer than MQTT allows, or holds the character U+0000");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sinks::egress::Egress;

    fn texts(value: Value, settings: &SinkSettings) -> Vec<String> {
        read(value.as_object().unwrap(), settings).violations.iter().map(ToString::to_string).collect()
    }

    fn accepted(value: Value) -> Checked {
        let bound = read(value.as_object().unwrap(), &SinkSettings::default());
        assert_eq!(bound.violations, []);
        bound.config.unwrap()
    }

    /// The document that TBMQ's form writes (spec §6.4.7).
    fn form() -> Value {
        json!({
            "sendOnlyMsgPayload": false, "host": "10.7.3.148", "port": 1883, "topicName": "tbmq/messages",
            "useMsgTopicName": true, "clientId": "tbmq_AbCd1234", "credentials": {"type": "anonymous"}, "ssl": false,
            "connectTimeoutSec": 10, "reconnectPeriodSec": 5, "mqttVersion": 4, "qos": 1, "useMsgQoS": true,
            "retained": false, "useMsgRetain": true, "keepAliveSec": 60
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
        assert_eq!((checked.host(), checked.port()), ("10.7.3.148", 1883));
        assert_eq!((checked.version, checked.qos), (ProtocolVersion::V311, None));
        assert!(!checked.uses_tls());
        let connect = checked.connect("id");
        assert!(connect.clean_start && connect.will.is_none() && connect.properties.is_empty());
        assert_eq!((connect.keep_alive, connect.username, connect.password), (60, None, None));
    }

    #[test]
    fn all_problems_are_told_at_once_in_tbmqs_words() {
        let value = json!({
            "host": " ", "port": 70_000, "topicName": "", "clientId": "", "connectTimeoutSec": 0,
            "reconnectPeriodSec": -1, "mqttVersion": 6, "qos": 3, "keepAliveSec": -1, "cleanSession": true,
        });
        assert_eq!(
            texts(value, &SinkSettings::default()),
            [
                "clientConfiguration.host: Host cannot be empty",
                "clientConfiguration.port: Port must be between 1 and 65535",
                "clientConfiguration.clientId: Client ID is required",
                "clientConfiguration.connectTimeoutSec: Connection timeout (seconds) must be greater than 0",
                "clientConfiguration.reconnectPeriodSec: Reconnect period (seconds) must not be less than 0",
                "clientConfiguration.mqttVersion: Invalid MQTT version. Allowed values: 3 (MQTT_3_1), 4 (MQTT_3_1_1), 5 (MQTT_5)",
                "clientConfiguration.qos: Invalid MQTT Quality of Service (QoS). Allowed values: 0 (AT_MOST_ONCE), 1 (AT_LEAST_ONCE), 2 (EXACTLY_ONCE)",
                "clientConfiguration.keepAliveSec: Keep Alive (seconds) must not be less than 0",
                "clientConfiguration.cleanSession: unknown field; known are sendOnlyMsgPayload, host, port, topicName, useMsgTopicName, clientId, checkWithClientId, credentials, ssl, connectTimeoutSec, reconnectPeriodSec, mqttVersion, qos, useMsgQoS, retained, useMsgRetain, keepAliveSec",
                "clientConfiguration.topicName: Topic name is required when Dynamic topic name option is disabled",
            ]
        );
    }

    #[test]
    fn an_empty_document_lacks_what_has_no_default() {
        assert_eq!(
            texts(json!({}), &SinkSettings::default()),
            [
                "clientConfiguration.host: Host cannot be empty",
                "clientConfiguration.port: Port must be between 1 and 65535",
                "clientConfiguration.clientId: Client ID is required",
                "clientConfiguration.connectTimeoutSec: Connection timeout (seconds) must be greater than 0",
                "clientConfiguration.mqttVersion: Invalid MQTT version. Allowed values: 3 (MQTT_3_1), 4 (MQTT_3_1_1), 5 (MQTT_5)",
                "clientConfiguration.topicName: Topic name is required when Dynamic topic name option is disabled",
            ]
        );
    }

    #[test]
    fn a_fixed_topic_is_checked_and_a_dynamic_one_is_not() {
        for (topic, text) in [
            ("a/+", "Topic name cannot contain wildcard characters"),
            ("#", "Topic name cannot contain wildcard characters"),
            ("$SYS/a", "Topic name cannot start with $ character"),
            ("a\0", "is longer than MQTT allows, or holds the character U+0000"),
        ] {
            let fixed = changed(json!({"topicName": topic, "useMsgTopicName": false}));
            assert_eq!(
                texts(fixed, &SinkSettings::default()),
                [format!("clientConfiguration.topicName: {text}")]
            );
            accepted(changed(json!({"topicName": topic})));
        }
    }

    #[test]
    fn what_a_connect_packet_cannot_hold_is_refused() {
        let basic = |username: &str, password: &str| json!({"type": "basic", "username": username, "password": password});
        let long = "x".repeat(65_536);
        for (changes, path) in [
            (json!({"clientId": long}), "clientId"),
            (json!({"clientId": "a\0"}), "clientId"),
            (json!({"keepAliveSec": 65_536}), "keepAliveSec"),
            (json!({"host": "tcp://h"}), "host"),
            (json!({"credentials": basic(&long, "")}), "credentials.username"),
            (json!({"credentials": basic("u", &long)}), "credentials.password"),
            (json!({"credentials": basic("", "p")}), "credentials.username"),
        ] {
            let texts = texts(changed(changes), &SinkSettings::default());
            assert_eq!(texts.len(), 1, "{texts:?}");
            assert!(texts[0].starts_with(&format!("clientConfiguration.{path}: ")), "{texts:?}");
        }
        accepted(changed(json!({"credentials": basic("", "p"), "mqttVersion": 5})));
    }

    #[test]
    fn what_a_form_left_empty_is_not_sent() {
        for (username, password, sent) in [
            (json!(""), json!(""), None),
            (Value::Null, Value::Null, None),
            (json!("u"), json!(""), Some("u")),
        ] {
            let credentials = json!({"type": "basic", "username": username, "password": password});
            let connect = accepted(changed(json!({"credentials": credentials}))).connect("id");
            assert_eq!((connect.username.as_deref(), connect.password), (sent, None));
        }
    }

    #[test]
    fn certificates_mean_tls() {
        assert!(accepted(changed(json!({"credentials": {"type": "cert.PEM"}}))).uses_tls());
        assert!(accepted(changed(json!({"ssl": true}))).uses_tls());
        let texts = texts(
            changed(json!({"credentials": {"type": "cert.PEM", "caCert": "x"}})),
            &SinkSettings::default(),
        );
        assert_eq!(
            texts,
            [
                "clientConfiguration.credentials.caCert: Creating TLS factory failed! there is no `BEGIN CERTIFICATE` in the text"
            ]
        );
    }

    #[test]
    fn hosts_may_be_names_and_addresses() {
        for (host, plain) in [("broker_1.example", "broker_1.example"), ("::1", "::1"), ("[::1]", "::1")] {
            assert_eq!(accepted(changed(json!({"host": host}))).host(), plain);
        }
    }

    #[test]
    fn local_hosts_are_refused_when_the_executor_forbids_them() {
        let egress = Egress::new(false, Vec::new(), Vec::new());
        let settings = SinkSettings { egress, ..SinkSettings::default() };
        for host in ["127.0.0.1", "localhost", "::1", "[::1]", "10.0.0.1", "2130706433"] {
            assert_eq!(
                texts(changed(json!({"host": host})), &settings),
                [
                    "clientConfiguration.host: Usage of local network host for MQTT broker connection is not allowed!"
                ],
                "{host}"
            );
        }
    }

    #[test]
    fn coercions_are_tbmqs() {
        let checked = accepted(changed(json!({
            "port": "1883", "keepAliveSec": "", "reconnectPeriodSec": 7.9, "useMsgQoS": "false", "qos": "2",
            "ssl": "true", "clientId": 7,
        })));
        let config = checked.config.clone();
        assert_eq!((config.port, config.keep_alive_sec, config.reconnect_period_sec), (1883, 0, 7));
        assert_eq!((checked.qos, config.client_id.as_str()), (Some(Qos::ExactlyOnce), "7"));
        assert!(checked.uses_tls());
    }

    #[test]
    fn the_schema_describes_every_field_in_tbmqs_spelling() {
        let schema = binder::schema::<Config>();
        let properties = schema["properties"].as_object().unwrap();
        for (name, field) in properties {
            assert!(field["description"].is_string(), "{name}: {field}");
        }
        for field in form().as_object().unwrap().keys() {
            assert!(properties.contains_key(field), "{field}");
        }
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn nothing_secret_is_printed() {
        let credentials = json!({"type": "basic", "username": "u", "password": "s3cret"});
        let checked = accepted(changed(json!({"credentials": credentials})));
        let text = format!("{:?} {:?}", checked.config, checked.connect("id"));
        assert!(!text.contains("s3cret") && text.contains("***"), "{text}");
    }
}
