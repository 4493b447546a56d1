//! The data plane's configuration: TBMQ's names and units where TBMQ has them (spec §1.1, §8), text durations else.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tbmq_mqtt::{session::Limits, topic::Rules};
use tbmq_service::config::{Secret, Setting};

/// The shortest deadline that leaves the bus time to answer.
const PRODUCE_DEADLINE_MIN: Duration = Duration::from_millis(100);

/// Everything that the data plane can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where clients connect.
    pub listener: ListenerConfig,
    /// What clients may do.
    pub mqtt: MqttConfig,
    /// Where control planes are.
    pub control: ControlConfig,
}

/// Where clients connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenerConfig {
    /// MQTT over TCP.
    pub tcp: TcpConfig,
}

/// MQTT over TCP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TcpConfig {
    /// Whether to listen at all.
    pub enabled: bool,
    /// Address to bind.
    pub bind_address: IpAddr,
    /// Port to bind; 0 picks a free one.
    pub bind_port: u16,
    /// What TBMQ calls the network's settings.
    pub netty: NettyConfig,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            bind_port: 1883,
            netty: NettyConfig::default(),
        }
    }
}

/// A listener's network settings, under TBMQ's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NettyConfig {
    /// Bytes that a packet may have after its fixed header; announced to 5.0 clients as Maximum Packet Size.
    pub max_payload_size: NonZeroU32,
    /// TCP keep alive of the system.
    pub so_keep_alive: bool,
}

impl Default for NettyConfig {
    fn default() -> Self {
        Self { max_payload_size: NonZeroU32::new(65_536).expect("not 0"), so_keep_alive: true }
    }
}

/// What clients may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MqttConfig {
    /// Connections at a time; more are closed at once.
    pub connections_max: NonZeroUsize,
    /// From the connection to a complete CONNECT.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Bytes of a 3.1 client's id.
    pub client_id_max_length: NonZeroUsize,
    /// Keep alive.
    pub keep_alive: KeepAliveConfig,
    /// Unacknowledged publishes of a client (Receive Maximum).
    pub max_in_flight_msgs: NonZeroU16,
    /// Bytes of a client's publishes on their way to the bus; at the limit its socket is not read.
    pub in_flight_bytes_max: NonZeroUsize,
    /// Bytes of one integration's records on their way to the bus; at the limit a publish for it is refused.
    pub topic_in_flight_bytes_max: NonZeroUsize,
    /// Bytes of all records on their way to the bus; at the limit sockets that publish are not read.
    pub node_in_flight_bytes_max: NonZeroUsize,
    /// From a publish to the bus's confirmation, at most; later the publish is refused.
    #[serde(with = "humantime_serde")]
    pub produce_deadline: Duration,
    /// Unacknowledged deliveries to a client.
    pub flow_control: FlowControlConfig,
    /// Deliveries that wait for a connection's task: messages.
    pub outbound_queue_messages_max: NonZeroUsize,
    /// Deliveries that wait for a connection's task: bytes.
    pub outbound_queue_bytes_max: NonZeroUsize,
    /// Topics.
    pub topic: TopicConfig,
    /// Topic filters.
    pub subscription: SubscriptionConfig,
    /// Response Information for 5.0 clients that ask for it; empty: none.
    pub response_info: String,
    /// Tasks that share completions, buffers and timers; 0: one per core.
    pub workers: usize,
    /// How long a drain waits for what is in flight.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Over how long DrainNode sends the clients away.
    #[serde(with = "humantime_serde")]
    pub drain_spread: Duration,
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            connections_max: NonZeroUsize::new(100_000).expect("not 0"),
            connect_timeout: Duration::from_secs(10),
            client_id_max_length: NonZeroUsize::new(1024).expect("not 0"),
            keep_alive: KeepAliveConfig::default(),
            max_in_flight_msgs: NonZeroU16::new(1000).expect("not 0"),
            in_flight_bytes_max: NonZeroUsize::new(4 << 20).expect("not 0"),
            topic_in_flight_bytes_max: NonZeroUsize::new(4 << 20).expect("not 0"),
            node_in_flight_bytes_max: NonZeroUsize::new(256 << 20).expect("not 0"),
            produce_deadline: Duration::from_secs(10),
            flow_control: FlowControlConfig::default(),
            outbound_queue_messages_max: NonZeroUsize::new(10_000).expect("not 0"),
            outbound_queue_bytes_max: NonZeroUsize::new(16 << 20).expect("not 0"),
            topic: TopicConfig::default(),
            subscription: SubscriptionConfig::default(),
            response_info: String::new(),
            workers: 0,
            drain_timeout: Duration::from_secs(5),
            drain_spread: Duration::from_secs(30),
        }
    }
}

/// Keep alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KeepAliveConfig {
    /// The longest that a 5.0 client gets, in seconds.
    pub max_keep_alive_sec: u16,
}

impl Default for KeepAliveConfig {
    fn default() -> Self {
        Self { max_keep_alive_sec: 600 }
    }
}

/// Unacknowledged deliveries to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FlowControlConfig {
    /// Window of a 3.x client; a 5.0 client says it itself.
    pub mqtt_3x_receive_max: NonZeroU16,
    /// Messages that wait for the window.
    pub delayed_queue_max_size: NonZeroUsize,
    /// How long they wait, in seconds.
    pub ttl: NonZeroU32,
}

impl Default for FlowControlConfig {
    fn default() -> Self {
        Self {
            mqtt_3x_receive_max: NonZeroU16::MAX,
            delayed_queue_max_size: NonZeroUsize::new(1000).expect("not 0"),
            ttl: NonZeroU32::new(600).expect("not 0"),
        }
    }
}

/// Topics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TopicConfig {
    /// Levels of a topic; 0: no limit.
    pub max_segments_count: usize,
    /// Topic aliases that a 5.0 client may use.
    pub alias_max: u16,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self { max_segments_count: 0, alias_max: 10 }
    }
}

/// Topic filters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SubscriptionConfig {
    /// Filters that one client may have.
    pub client_max: NonZeroUsize,
    /// Whether the filter `#` is allowed.
    pub root_multi_lvl_wildcard: bool,
}

impl Default for SubscriptionConfig {
    fn default() -> Self {
        Self { client_max: NonZeroUsize::new(1000).expect("not 0"), root_multi_lvl_wildcard: true }
    }
}

/// Where control planes are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlConfig {
    /// Their gRPC endpoints.
    pub grpc: ControlGrpcConfig,
}

/// The control planes' gRPC endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlGrpcConfig {
    /// `http://host:port` or `https://host:port` of each; none: run without a session.
    pub endpoints: Vec<String>,
    /// File with the authorities that their certificates are of, in PEM; absent: what the system trusts.
    pub ca_file: Option<PathBuf>,
    /// File with the certificate chain that is shown to them, in PEM.
    pub cert_file: Option<PathBuf>,
    /// File with its private key, in PEM.
    pub key_file: Option<PathBuf>,
    /// API token or JWT of the role NODE that is shown to them.
    pub token: Secret,
    /// A file that holds it, read for each session.
    pub token_file: Option<PathBuf>,
}

/// Environment names of [`Config`].
pub const SETTINGS: &[Setting] = &[
    Setting { env: "LISTENER_TCP_ENABLED", key: "listener.tcp.enabled" },
    Setting { env: "LISTENER_TCP_BIND_ADDRESS", key: "listener.tcp.bind-address" },
    Setting { env: "LISTENER_TCP_BIND_PORT", key: "listener.tcp.bind-port" },
    Setting { env: "TCP_NETTY_MAX_PAYLOAD_SIZE", key: "listener.tcp.netty.max-payload-size" },
    Setting { env: "TCP_NETTY_SO_KEEPALIVE", key: "listener.tcp.netty.so-keep-alive" },
    Setting { env: "TBMQ_MQTT_CONNECTIONS_MAX", key: "mqtt.connections-max" },
    Setting { env: "TBMQ_MQTT_CONNECT_TIMEOUT", key: "mqtt.connect-timeout" },
    Setting { env: "MQTT_3_1_MAX_CLIENT_ID_LENGTH", key: "mqtt.client-id-max-length" },
    Setting { env: "MQTT_KEEP_ALIVE_MAX_KEEP_ALIVE_SEC", key: "mqtt.keep-alive.max-keep-alive-sec" },
    Setting { env: "MQTT_MAX_IN_FLIGHT_MSGS", key: "mqtt.max-in-flight-msgs" },
    Setting { env: "TBMQ_MQTT_IN_FLIGHT_BYTES_MAX", key: "mqtt.in-flight-bytes-max" },
    Setting { env: "TBMQ_MQTT_TOPIC_IN_FLIGHT_BYTES_MAX", key: "mqtt.topic-in-flight-bytes-max" },
    Setting { env: "TBMQ_MQTT_NODE_IN_FLIGHT_BYTES_MAX", key: "mqtt.node-in-flight-bytes-max" },
    Setting { env: "TBMQ_MQTT_PRODUCE_DEADLINE", key: "mqtt.produce-deadline" },
    Setting { env: "MQTT_FLOW_CONTROL_MQTT_3X_RECEIVE_MAX", key: "mqtt.flow-control.mqtt-3x-receive-max" },
    Setting {
        env: "MQTT_FLOW_CONTROL_DELAYED_QUEUE_MAX_SIZE",
        key: "mqtt.flow-control.delayed-queue-max-size",
    },
    Setting { env: "MQTT_FLOW_CONTROL_TTL", key: "mqtt.flow-control.ttl" },
    Setting { env: "TBMQ_MQTT_OUTBOUND_QUEUE_MESSAGES_MAX", key: "mqtt.outbound-queue-messages-max" },
    Setting { env: "TBMQ_MQTT_OUTBOUND_QUEUE_BYTES_MAX", key: "mqtt.outbound-queue-bytes-max" },
    Setting { env: "MQTT_TOPIC_MAX_SEGMENTS_COUNT", key: "mqtt.topic.max-segments-count" },
    Setting { env: "MQTT_TOPIC_ALIAS_MAX", key: "mqtt.topic.alias-max" },
    Setting { env: "TBMQ_MQTT_SUBSCRIPTIONS_CLIENT_MAX", key: "mqtt.subscription.client-max" },
    Setting {
        env: "MQTT_SUBSCRIPTION_ROOT_MULTI_LVL_WILDCARD",
        key: "mqtt.subscription.root-multi-lvl-wildcard",
    },
    Setting { env: "MQTT_RESPONSE_INFO", key: "mqtt.response-info" },
    Setting { env: "TBMQ_MQTT_WORKERS", key: "mqtt.workers" },
    Setting { env: "TBMQ_MQTT_DRAIN_TIMEOUT", key: "mqtt.drain-timeout" },
    Setting { env: "TBMQ_MQTT_DRAIN_SPREAD", key: "mqtt.drain-spread" },
    Setting { env: "CONTROL_GRPC_ENDPOINTS", key: "control.grpc.endpoints" },
    Setting { env: "CONTROL_GRPC_CA_FILE", key: "control.grpc.ca-file" },
    Setting { env: "CONTROL_GRPC_CERT_FILE", key: "control.grpc.cert-file" },
    Setting { env: "CONTROL_GRPC_KEY_FILE", key: "control.grpc.key-file" },
    Setting { env: "CONTROL_GRPC_TOKEN", key: "control.grpc.token" },
    Setting { env: "CONTROL_GRPC_TOKEN_FILE", key: "control.grpc.token-file" },
];

impl Config {
    /// Bytes of a whole packet: TBMQ's limit counts without the fixed header, which has at most 5.
    pub(crate) fn packet_bytes(&self) -> u32 {
        self.listener.tcp.netty.max_payload_size.get().saturating_add(5)
    }

    /// Checks what types can't say: names the key, the variable and the value.
    pub(crate) fn check(&self) -> Result<(), String> {
        let deadline = self.mqtt.produce_deadline;
        if deadline < PRODUCE_DEADLINE_MIN {
            return Err(format!(
                "bad value {deadline:?} for mqtt.produce-deadline (TBMQ_MQTT_PRODUCE_DEADLINE): at least \
                 {PRODUCE_DEADLINE_MIN:?}"
            ));
        }
        Ok(())
    }

    /// The session machine's limits.
    pub(crate) fn limits(&self) -> Limits {
        let mqtt = &self.mqtt;
        Limits {
            connect_timeout_ms: mqtt.connect_timeout.as_millis() as u64,
            keep_alive_max_s: mqtt.keep_alive.max_keep_alive_sec,
            receive_maximum: mqtt.max_in_flight_msgs.get(),
            packet_bytes: self.packet_bytes(),
            topic_alias_max: mqtt.topic.alias_max,
            receive_maximum_v3: mqtt.flow_control.mqtt_3x_receive_max.get(),
            delayed_max: mqtt.flow_control.delayed_queue_max_size.get(),
            delayed_ttl_ms: u64::from(mqtt.flow_control.ttl.get()) * 1000,
            subscriptions_max: mqtt.subscription.client_max.get(),
            client_id_v31_max: mqtt.client_id_max_length.get(),
            rules: Rules {
                segments_max: mqtt.topic.max_segments_count,
                root_wildcard: mqtt.subscription.root_multi_lvl_wildcard,
            },
            response_information: mqtt.response_info.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tbmq_service::config::load_from;

    use super::*;

    #[test]
    fn every_environment_name_reaches_its_field() {
        let values = [
            ("LISTENER_TCP_ENABLED", "false"),
            ("LISTENER_TCP_BIND_ADDRESS", "127.0.0.1"),
            ("LISTENER_TCP_BIND_PORT", "0"),
            ("TCP_NETTY_MAX_PAYLOAD_SIZE", "1000"),
            ("TCP_NETTY_SO_KEEPALIVE", "false"),
            ("TBMQ_MQTT_CONNECTIONS_MAX", "7"),
            ("TBMQ_MQTT_CONNECT_TIMEOUT", "3s"),
            ("MQTT_3_1_MAX_CLIENT_ID_LENGTH", "23"),
            ("MQTT_KEEP_ALIVE_MAX_KEEP_ALIVE_SEC", "60"),
            ("MQTT_MAX_IN_FLIGHT_MSGS", "5"),
            ("TBMQ_MQTT_IN_FLIGHT_BYTES_MAX", "99"),
            ("TBMQ_MQTT_TOPIC_IN_FLIGHT_BYTES_MAX", "98"),
            ("TBMQ_MQTT_NODE_IN_FLIGHT_BYTES_MAX", "97"),
            ("TBMQ_MQTT_PRODUCE_DEADLINE", "2s"),
            ("MQTT_FLOW_CONTROL_MQTT_3X_RECEIVE_MAX", "6"),
            ("MQTT_FLOW_CONTROL_DELAYED_QUEUE_MAX_SIZE", "8"),
            ("MQTT_FLOW_CONTROL_TTL", "9"),
            ("TBMQ_MQTT_OUTBOUND_QUEUE_MESSAGES_MAX", "10"),
            ("TBMQ_MQTT_OUTBOUND_QUEUE_BYTES_MAX", "11"),
            ("MQTT_TOPIC_MAX_SEGMENTS_COUNT", "12"),
            ("MQTT_TOPIC_ALIAS_MAX", "13"),
            ("TBMQ_MQTT_SUBSCRIPTIONS_CLIENT_MAX", "14"),
            ("MQTT_SUBSCRIPTION_ROOT_MULTI_LVL_WILDCARD", "false"),
            ("MQTT_RESPONSE_INFO", "responses/"),
            ("TBMQ_MQTT_WORKERS", "1"),
            ("TBMQ_MQTT_DRAIN_TIMEOUT", "1s"),
            ("TBMQ_MQTT_DRAIN_SPREAD", "2s"),
            ("CONTROL_GRPC_ENDPOINTS", "http://a:1,http://b:2"),
            ("CONTROL_GRPC_CA_FILE", "a"),
            ("CONTROL_GRPC_CERT_FILE", "b"),
            ("CONTROL_GRPC_KEY_FILE", "c"),
            ("CONTROL_GRPC_TOKEN", "d"),
            ("CONTROL_GRPC_TOKEN_FILE", "e"),
        ];
        assert_eq!(values.len(), SETTINGS.len());
        let default = serde_json(&Config::default());
        for (name, value) in values {
            let one = [(name.to_owned(), value.to_owned())];
            let config: Config = load_from(&[SETTINGS], None, one.into_iter()).unwrap();
            assert_ne!(serde_json(&config), default, "{name}");
        }
        let all = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config: Config = load_from(&[SETTINGS], None, all.into_iter()).unwrap();
        assert_eq!(config.control.grpc.endpoints, ["http://a:1", "http://b:2"]);
        assert_eq!(config.limits().connect_timeout_ms, 3000);
        assert_eq!(config.limits().packet_bytes, 1005);
    }

    #[test]
    fn a_bad_value_is_named_with_its_variable() {
        let one = [("LISTENER_TCP_BIND_PORT".to_owned(), "70000".to_owned())];
        let error = load_from::<Config>(&[SETTINGS], None, one.into_iter()).unwrap_err().to_string();
        assert!(error.contains("LISTENER_TCP_BIND_PORT") && error.contains("70000"), "{error}");
    }

    fn serde_json(config: &Config) -> String {
        tbmq_service::shell::tree(config).to_string()
    }
}
