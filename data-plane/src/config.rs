//! The data plane's configuration: TBMQ's names and units where TBMQ has them (spec §8), text durations else.

use std::{
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_integration::seal::Keys;
use tbmq_mqtt::{session::Limits, topic::Rules};
use tbmq_service::{
    config::{Secret, Setting},
    secrets_config::{self, SecretsConfig},
};

use crate::{
    auth::AuthConfig,
    limit::config::RateLimitsConfig,
    listen::config::ListenersConfig,
    retained,
    session_config::{PersistentSessionConfig, SessionExpiryConfig},
    session_store::config::RedisConfig,
};

/// The shortest deadline that leaves the bus time to answer.
const PRODUCE_DEADLINE_MIN: Duration = Duration::from_millis(100);

/// Everything that the data plane can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where clients connect.
    pub listener: ListenersConfig,
    /// What clients may do.
    pub mqtt: MqttConfig,
    /// How clients are judged.
    pub auth: AuthConfig,
    /// The keys that the secrets of authentication providers are encrypted with: those of the control plane.
    pub secrets: SecretsConfig,
    /// Where control planes are.
    pub control: ControlConfig,
    /// The Redis where a data plane that runs alone keeps sessions; without one they end with the process. `tbmq` without
    /// one keeps them in its data folder. Redis wants `maxmemory-policy noeviction` and `appendonly yes`; TBMQ's own keys
    /// are not taken over.
    pub redis: RedisConfig,
}

/// What clients may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MqttConfig {
    /// Connections of all listeners at a time; more are closed at once.
    pub connections_max: NonZeroUsize,
    /// Connections at a time from one IPv4 address, or IPv6 network of 64 bits; more are closed at once. It is the
    /// address that a PROXY or forwarded header says, where a listener heeds them. 0: no limit.
    pub address_connections_max: usize,
    /// Whether a client may take over the session, and the client id, of a client with another user name; else it is
    /// refused (0x87; 3.x: 5), as long as there is that session.
    pub takeover_by_other_users: bool,
    /// How often things may happen: `count:seconds`, several with commas between them, all of which must hold.
    pub rate_limits: RateLimitsConfig,
    /// From accepting a connection to a complete CONNECT, at most: PROXY header, TLS and WebSocket handshakes included.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// Bytes that the id of a 3.1 client may have.
    pub client_id_max_length: NonZeroUsize,
    /// Keep alive.
    pub keep_alive: KeepAliveConfig,
    /// Unacknowledged publishes that a client may have at a time; told to 5.0 clients as Receive Maximum.
    pub max_in_flight_msgs: NonZeroU16,
    /// Bytes of one client's publishes on their way to the bus; at the limit its socket is not read.
    pub in_flight_bytes_max: NonZeroUsize,
    /// Bytes of one integration's records on their way to the bus; at the limit a publish for it is refused.
    pub topic_in_flight_bytes_max: NonZeroUsize,
    /// Bytes of all records on their way to the bus; at the limit sockets that publish are not read.
    pub node_in_flight_bytes_max: NonZeroUsize,
    /// From a publish to the bus's confirmation, at most; later the publish is refused.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub produce_deadline: Duration,
    /// Unacknowledged deliveries to a client.
    pub flow_control: FlowControlConfig,
    /// Deliveries that may wait for a connection's task, in messages. At the limit those at QoS 0 are dropped, and the connection
    /// is closed for one at QoS 1 or 2 that no lasting session keeps.
    pub outbound_queue_messages_max: NonZeroUsize,
    /// Deliveries that may wait for a connection's task, in bytes; and as many of shared subscriptions that wait for its
    /// acknowledgements.
    pub outbound_queue_bytes_max: NonZeroUsize,
    /// Retained messages.
    pub retain_msg: RetainMsgConfig,
    /// Topics.
    pub topic: TopicConfig,
    /// Topic filters.
    pub subscription: SubscriptionConfig,
    /// Sessions with and without a connection, on all nodes as far as they know of each other: at the limit clients that
    /// have none on this node are refused (CONNACK 0x97; 3.x: 3). Heard every 5 s, so that it may be exceeded by a few.
    /// 0: no limit.
    pub sessions_limit: usize,
    /// Sessions of APPLICATION clients that outlive their connections on this node, and integrations, all together: at the
    /// limit an APPLICATION client that has no session here is refused (CONNACK 0x97; 3.x: 3). 0: no limit.
    pub application_clients_limit: usize,
    /// How long sessions live.
    pub client_session_expiry: SessionExpiryConfig,
    /// What is kept for clients.
    pub persistent_session: PersistentSessionConfig,
    /// Where 5.0 clients are sent when this node stops or is drained (0x9C instead of 0x8B): `host` or `host:port`,
    /// several with spaces between them; empty: they are not told.
    pub server_reference: String,
    /// Time between two publications of the broker's figures under `$SYS/broker/`; 0: there are none.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub sys_interval: Duration,
    /// Response Information for 5.0 clients that ask for it; empty: none.
    pub response_info: String,
    /// Tasks that share completions, buffers and timers; 0: one per worker thread (`TBMQ_WORKER_THREADS`).
    pub workers: usize,
    /// How long a stop waits for what is in flight.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_timeout: Duration,
    /// Over how long `tbmqctl node drain` sends the clients away.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_spread: Duration,
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            connections_max: NonZeroUsize::new(100_000).expect("not 0"),
            address_connections_max: 0,
            takeover_by_other_users: true,
            rate_limits: RateLimitsConfig::default(),
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
            retain_msg: RetainMsgConfig::default(),
            topic: TopicConfig::default(),
            subscription: SubscriptionConfig::default(),
            sessions_limit: 1_000_000,
            application_clients_limit: 0,
            client_session_expiry: SessionExpiryConfig::default(),
            persistent_session: PersistentSessionConfig::default(),
            server_reference: String::new(),
            sys_interval: Duration::from_secs(10),
            response_info: String::new(),
            workers: 0,
            drain_timeout: Duration::from_secs(5),
            drain_spread: Duration::from_secs(30),
        }
    }
}

/// Keep alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FlowControlConfig {
    /// Messages that a 3.x client may have without having acknowledged them; a 5.0 client says its Receive Maximum itself.
    pub mqtt_3x_receive_max: NonZeroU16,
    /// Messages that may wait until a client that has as many as it may has acknowledged some. Further
    /// ones stay in its outbound queue.
    pub delayed_queue_max_size: NonZeroUsize,
    /// How long such a message waits, in seconds.
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

/// Retained messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RetainMsgConfig {
    /// Whether messages are retained; told to 5.0 clients as Retain Available. Without, a 5.0 client that tries is
    /// disconnected (0x9A), and those of 3.x clients are ordinary messages.
    pub available: bool,
    /// Topics that may have a retained message. Beyond, a publish is answered 0x97, the connection of a 3.x client is closed, and
    /// at QoS 0 the message is only delivered.
    pub messages_max: NonZeroUsize,
    /// Bytes of all retained messages in memory, about; beyond, as with `messages-max`.
    pub bytes_max: NonZeroUsize,
    /// Time between two removals of those that have expired, in ms. They are not sent meanwhile.
    pub expiry_processing_period_ms: NonZeroU32,
}

impl Default for RetainMsgConfig {
    fn default() -> Self {
        Self {
            available: true,
            messages_max: NonZeroUsize::new(1_000_000).expect("not 0"),
            bytes_max: NonZeroUsize::new(512 << 20).expect("not 0"),
            expiry_processing_period_ms: NonZeroU32::new(60_000).expect("not 0"),
        }
    }
}

impl RetainMsgConfig {
    pub(crate) fn limits(&self) -> retained::Limits {
        retained::Limits { messages: self.messages_max, bytes: self.bytes_max }
    }

    pub(crate) fn expiry_processing_period(&self) -> Duration {
        Duration::from_millis(u64::from(self.expiry_processing_period_ms.get()))
    }
}

/// Topics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TopicConfig {
    /// Levels that a topic or filter may have; 0: no limit.
    pub max_segments_count: usize,
    /// Topic aliases that a 5.0 client may use, and the most that are used towards one.
    pub alias_max: u16,
    /// Bytes of a topic from which on an alias is used towards a 5.0 client that takes aliases.
    pub min_length_for_alias_replacement: usize,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self { max_segments_count: 0, alias_max: 10, min_length_for_alias_replacement: 50 }
    }
}

/// Topic filters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlConfig {
    /// The control planes' gRPC endpoints.
    pub grpc: ControlGrpcConfig,
}

/// The control planes' gRPC endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// Default port of the admin endpoint of a data plane that runs alone.
pub const ADMIN_PORT: u16 = 8081;

/// Environment names of [`Config`].
pub const SETTINGS: &[Setting] = &[
    SecretsConfig::KEYS,
    SecretsConfig::KEY,
    SecretsConfig::KEY_FILE,
    Setting { env: "LISTENER_TCP_ENABLED", key: "listener.tcp.enabled" },
    Setting { env: "LISTENER_TCP_BIND_ADDRESS", key: "listener.tcp.bind-address" },
    Setting { env: "LISTENER_TCP_BIND_PORT", key: "listener.tcp.bind-port" },
    Setting { env: "TCP_NETTY_MAX_PAYLOAD_SIZE", key: "listener.tcp.netty.max-payload-size" },
    Setting { env: "TCP_NETTY_SO_KEEPALIVE", key: "listener.tcp.netty.so-keep-alive" },
    Setting { env: "MQTT_TCP_PROXY_PROTOCOL_ENABLED", key: "listener.tcp.proxy-protocol-enabled" },
    Setting { env: "TBMQ_LISTENER_TCP_CONNECTIONS_MAX", key: "listener.tcp.connections-max" },
    Setting { env: "TBMQ_LISTENER_TCP_ACCEPT_RATE_MAX", key: "listener.tcp.accept-rate-max" },
    Setting { env: "LISTENER_SSL_ENABLED", key: "listener.ssl.enabled" },
    Setting { env: "LISTENER_SSL_BIND_ADDRESS", key: "listener.ssl.bind-address" },
    Setting { env: "LISTENER_SSL_BIND_PORT", key: "listener.ssl.bind-port" },
    Setting { env: "SSL_NETTY_MAX_PAYLOAD_SIZE", key: "listener.ssl.netty.max-payload-size" },
    Setting { env: "SSL_NETTY_SO_KEEPALIVE", key: "listener.ssl.netty.so-keep-alive" },
    Setting { env: "MQTT_SSL_PROXY_PROTOCOL_ENABLED", key: "listener.ssl.proxy-protocol-enabled" },
    Setting { env: "TBMQ_LISTENER_SSL_CONNECTIONS_MAX", key: "listener.ssl.connections-max" },
    Setting { env: "TBMQ_LISTENER_SSL_ACCEPT_RATE_MAX", key: "listener.ssl.accept-rate-max" },
    Setting { env: "LISTENER_SSL_PROTOCOL", key: "listener.ssl.tls.protocol" },
    Setting { env: "LISTENER_SSL_ENABLED_CIPHER_SUITES", key: "listener.ssl.tls.enabled-cipher-suites" },
    Setting { env: "LISTENER_SSL_CREDENTIALS_TYPE", key: "listener.ssl.tls.credentials-type" },
    Setting { env: "LISTENER_SSL_PEM_CERT", key: "listener.ssl.tls.pem-cert" },
    Setting { env: "LISTENER_SSL_PEM_KEY", key: "listener.ssl.tls.pem-key" },
    Setting { env: "LISTENER_SSL_PEM_KEY_PASSWORD", key: "listener.ssl.tls.pem-key-password" },
    Setting { env: "TBMQ_LISTENER_SSL_CLIENT_CA", key: "listener.ssl.tls.client-ca" },
    Setting { env: "TBMQ_LISTENER_SSL_CLIENT_AUTH", key: "listener.ssl.tls.client-auth" },
    Setting { env: "TBMQ_LISTENER_SSL_CLIENT_CRL", key: "listener.ssl.tls.client-crl" },
    Setting {
        env: "TBMQ_LISTENER_SSL_SKIP_VALIDITY_CHECK_FOR_CLIENT_CERT",
        key: "listener.ssl.tls.skip-validity-check-for-client-cert",
    },
    Setting { env: "LISTENER_WS_ENABLED", key: "listener.ws.enabled" },
    Setting { env: "LISTENER_WS_BIND_ADDRESS", key: "listener.ws.bind-address" },
    Setting { env: "LISTENER_WS_BIND_PORT", key: "listener.ws.bind-port" },
    Setting { env: "WS_NETTY_MAX_PAYLOAD_SIZE", key: "listener.ws.netty.max-payload-size" },
    Setting { env: "WS_NETTY_SO_KEEPALIVE", key: "listener.ws.netty.so-keep-alive" },
    Setting { env: "MQTT_WS_PROXY_PROTOCOL_ENABLED", key: "listener.ws.proxy-protocol-enabled" },
    Setting { env: "TBMQ_LISTENER_WS_CONNECTIONS_MAX", key: "listener.ws.connections-max" },
    Setting { env: "TBMQ_LISTENER_WS_ACCEPT_RATE_MAX", key: "listener.ws.accept-rate-max" },
    Setting { env: "WS_NETTY_SUB_PROTOCOLS", key: "listener.ws.web-socket.sub-protocols" },
    Setting { env: "MQTT_WS_FORWARD_HEADERS_ENABLED", key: "listener.ws.web-socket.forward-headers-enabled" },
    Setting { env: "LISTENER_WSS_ENABLED", key: "listener.wss.enabled" },
    Setting { env: "LISTENER_WSS_BIND_ADDRESS", key: "listener.wss.bind-address" },
    Setting { env: "LISTENER_WSS_BIND_PORT", key: "listener.wss.bind-port" },
    Setting { env: "WSS_NETTY_MAX_PAYLOAD_SIZE", key: "listener.wss.netty.max-payload-size" },
    Setting { env: "WSS_NETTY_SO_KEEPALIVE", key: "listener.wss.netty.so-keep-alive" },
    Setting { env: "MQTT_WSS_PROXY_PROTOCOL_ENABLED", key: "listener.wss.proxy-protocol-enabled" },
    Setting { env: "TBMQ_LISTENER_WSS_CONNECTIONS_MAX", key: "listener.wss.connections-max" },
    Setting { env: "TBMQ_LISTENER_WSS_ACCEPT_RATE_MAX", key: "listener.wss.accept-rate-max" },
    Setting { env: "LISTENER_WSS_PROTOCOL", key: "listener.wss.tls.protocol" },
    Setting { env: "LISTENER_WSS_ENABLED_CIPHER_SUITES", key: "listener.wss.tls.enabled-cipher-suites" },
    Setting { env: "LISTENER_WSS_CREDENTIALS_TYPE", key: "listener.wss.tls.credentials-type" },
    Setting { env: "LISTENER_WSS_PEM_CERT", key: "listener.wss.tls.pem-cert" },
    Setting { env: "LISTENER_WSS_PEM_KEY", key: "listener.wss.tls.pem-key" },
    Setting { env: "LISTENER_WSS_PEM_KEY_PASSWORD", key: "listener.wss.tls.pem-key-password" },
    Setting { env: "TBMQ_LISTENER_WSS_CLIENT_CA", key: "listener.wss.tls.client-ca" },
    Setting { env: "TBMQ_LISTENER_WSS_CLIENT_AUTH", key: "listener.wss.tls.client-auth" },
    Setting { env: "TBMQ_LISTENER_WSS_CLIENT_CRL", key: "listener.wss.tls.client-crl" },
    Setting {
        env: "TBMQ_LISTENER_WSS_SKIP_VALIDITY_CHECK_FOR_CLIENT_CERT",
        key: "listener.wss.tls.skip-validity-check-for-client-cert",
    },
    Setting { env: "WSS_NETTY_SUB_PROTOCOLS", key: "listener.wss.web-socket.sub-protocols" },
    Setting {
        env: "MQTT_WSS_FORWARD_HEADERS_ENABLED",
        key: "listener.wss.web-socket.forward-headers-enabled",
    },
    Setting { env: "MQTT_PROXY_PROTOCOL_ENABLED", key: "listener.proxy-protocol-enabled" },
    Setting { env: "TBMQ_LISTENER_TRUSTED_PROXIES", key: "listener.trusted-proxies" },
    Setting { env: "NETTY_SO_RECEIVE_BUFFER", key: "listener.so-receive-buffer" },
    Setting { env: "TBMQ_LISTENER_TLS_RELOAD_INTERVAL", key: "listener.tls-reload-interval" },
    Setting { env: "TBMQ_MQTT_CONNECTIONS_MAX", key: "mqtt.connections-max" },
    Setting { env: "TBMQ_MQTT_ADDRESS_CONNECTIONS_MAX", key: "mqtt.address-connections-max" },
    Setting { env: "TBMQ_MQTT_TAKEOVER_BY_OTHER_USERS", key: "mqtt.takeover-by-other-users" },
    Setting { env: "MQTT_INCOMING_RATE_LIMITS_ENABLED", key: "mqtt.rate-limits.incoming-publish.enabled" },
    Setting {
        env: "MQTT_INCOMING_RATE_LIMITS_CLIENT_CONFIG",
        key: "mqtt.rate-limits.incoming-publish.client-config",
    },
    Setting { env: "MQTT_OUTGOING_RATE_LIMITS_ENABLED", key: "mqtt.rate-limits.outgoing-publish.enabled" },
    Setting {
        env: "MQTT_OUTGOING_RATE_LIMITS_CLIENT_CONFIG",
        key: "mqtt.rate-limits.outgoing-publish.client-config",
    },
    Setting { env: "MQTT_TOTAL_RATE_LIMITS_ENABLED", key: "mqtt.rate-limits.total.enabled" },
    Setting { env: "MQTT_TOTAL_RATE_LIMITS_CONFIG", key: "mqtt.rate-limits.total.config" },
    Setting {
        env: "MQTT_DEVICE_PERSISTED_MSGS_RATE_LIMITS_ENABLED",
        key: "mqtt.rate-limits.device-persisted-messages.enabled",
    },
    Setting {
        env: "MQTT_DEVICE_PERSISTED_MSGS_RATE_LIMITS_CONFIG",
        key: "mqtt.rate-limits.device-persisted-messages.config",
    },
    Setting { env: "TBMQ_MQTT_INCOMING_BYTES_RATE_LIMIT", key: "mqtt.rate-limits.incoming-bytes" },
    Setting { env: "TBMQ_MQTT_CONNECTION_RATE_LIMIT", key: "mqtt.rate-limits.connections" },
    Setting { env: "TBMQ_MQTT_ADDRESS_CONNECTION_RATE_LIMIT", key: "mqtt.rate-limits.address-connections" },
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
    Setting { env: "TBMQ_MQTT_RETAIN_AVAILABLE", key: "mqtt.retain-msg.available" },
    Setting { env: "TBMQ_MQTT_RETAIN_MESSAGES_MAX", key: "mqtt.retain-msg.messages-max" },
    Setting { env: "TBMQ_MQTT_RETAIN_BYTES_MAX", key: "mqtt.retain-msg.bytes-max" },
    Setting {
        env: "MQTT_RETAIN_MSG_EXPIRY_PROCESSING_PERIOD_MS",
        key: "mqtt.retain-msg.expiry-processing-period-ms",
    },
    Setting { env: "MQTT_TOPIC_MAX_SEGMENTS_COUNT", key: "mqtt.topic.max-segments-count" },
    Setting { env: "MQTT_TOPIC_ALIAS_MAX", key: "mqtt.topic.alias-max" },
    Setting { env: "TBMQ_MQTT_SUBSCRIPTIONS_CLIENT_MAX", key: "mqtt.subscription.client-max" },
    Setting {
        env: "MQTT_SUBSCRIPTION_ROOT_MULTI_LVL_WILDCARD",
        key: "mqtt.subscription.root-multi-lvl-wildcard",
    },
    Setting { env: "MQTT_SESSIONS_LIMIT", key: "mqtt.sessions-limit" },
    Setting { env: "MQTT_APPLICATION_CLIENTS_LIMIT", key: "mqtt.application-clients-limit" },
    Setting { env: "TBMQ_MQTT_SERVER_REFERENCE", key: "mqtt.server-reference" },
    Setting {
        env: "MQTT_CLIENT_SESSION_EXPIRY_MAX_EXPIRY_INTERVAL",
        key: "mqtt.client-session-expiry.max-expiry-interval",
    },
    Setting { env: "MQTT_CLIENT_SESSION_EXPIRY_TTL", key: "mqtt.client-session-expiry.ttl" },
    Setting {
        env: "MQTT_TOPIC_MIN_LENGTH_FOR_ALIAS_REPLACEMENT",
        key: "mqtt.topic.min-length-for-alias-replacement",
    },
    Setting {
        env: "MQTT_PERSISTENT_SESSION_DEVICE_PERSISTED_MESSAGES_LIMIT",
        key: "mqtt.persistent-session.device.persisted-messages.limit",
    },
    Setting {
        env: "MQTT_PERSISTENT_SESSION_DEVICE_PERSISTED_MESSAGES_TTL",
        key: "mqtt.persistent-session.device.persisted-messages.ttl",
    },
    Setting {
        env: "TBMQ_MQTT_PERSISTED_MESSAGES_BYTES_MAX",
        key: "mqtt.persistent-session.device.persisted-messages.bytes-max",
    },
    Setting {
        env: "TBMQ_MQTT_PERSISTED_MESSAGES_TOTAL_BYTES_MAX",
        key: "mqtt.persistent-session.device.persisted-messages.total-bytes-max",
    },
    Setting {
        env: "TBMQ_MQTT_PERSISTED_MESSAGES_IN_FLIGHT_BYTES_MAX",
        key: "mqtt.persistent-session.device.persisted-messages.in-flight-bytes-max",
    },
    Setting { env: "TBMQ_MQTT_SYS_INTERVAL", key: "mqtt.sys-interval" },
    Setting { env: "MQTT_RESPONSE_INFO", key: "mqtt.response-info" },
    Setting { env: "TBMQ_MQTT_WORKERS", key: "mqtt.workers" },
    Setting { env: "TBMQ_MQTT_DRAIN_TIMEOUT", key: "mqtt.drain-timeout" },
    Setting { env: "TBMQ_MQTT_DRAIN_SPREAD", key: "mqtt.drain-spread" },
    Setting { env: "TBMQ_AUTH_HASH_THREADS", key: "auth.hash-threads" },
    Setting { env: "TBMQ_AUTH_HASH_QUEUE_MAX", key: "auth.hash-queue-max" },
    Setting { env: "TBMQ_AUTH_HASH_QUEUE_ADDRESS_MAX", key: "auth.hash-queue-address-max" },
    Setting { env: "CACHE_SPECS_BASIC_CREDENTIALS_PASSWORD_TTL", key: "auth.basic-credentials-password-ttl" },
    Setting { env: "TBMQ_AUTH_BASIC_CREDENTIALS_PASSWORD_MAX", key: "auth.basic-credentials-password-max" },
    Setting { env: "SECURITY_UNAUTH_CLIENTS_ENABLED", key: "auth.unauth-clients-enabled" },
    Setting { env: "SECURITY_MQTT_ANONYMOUS_ENABLED", key: "auth.mqtt-anonymous-enabled" },
    Setting { env: "CONTROL_GRPC_ENDPOINTS", key: "control.grpc.endpoints" },
    Setting { env: "CONTROL_GRPC_CA_FILE", key: "control.grpc.ca-file" },
    Setting { env: "CONTROL_GRPC_CERT_FILE", key: "control.grpc.cert-file" },
    Setting { env: "CONTROL_GRPC_KEY_FILE", key: "control.grpc.key-file" },
    Setting { env: "CONTROL_GRPC_TOKEN", key: "control.grpc.token" },
    Setting { env: "CONTROL_GRPC_TOKEN_FILE", key: "control.grpc.token-file" },
    Setting { env: "REDIS_CONNECTION_TYPE", key: "redis.connection.type" },
    Setting { env: "REDIS_HOST", key: "redis.host" },
    Setting { env: "REDIS_PORT", key: "redis.port" },
    Setting { env: "REDIS_DB", key: "redis.db" },
    Setting { env: "REDIS_NODES", key: "redis.nodes" },
    Setting { env: "REDIS_USERNAME", key: "redis.username" },
    Setting { env: "REDIS_PASSWORD", key: "redis.password" },
    Setting { env: "CACHE_PREFIX", key: "redis.key-prefix" },
    Setting { env: "TBMQ_REDIS_TIMEOUT", key: "redis.timeout" },
];

impl Config {
    /// Checks what types can't say: names the key, the variable and the value.
    pub(crate) fn check(&self) -> Result<(), String> {
        let deadline = self.mqtt.produce_deadline;
        if deadline < PRODUCE_DEADLINE_MIN {
            return Err(format!(
                "bad value {deadline:?} for mqtt.produce-deadline (TBMQ_MQTT_PRODUCE_DEADLINE): at least \
                 {PRODUCE_DEADLINE_MIN:?}"
            ));
        }
        self.mqtt.rate_limits.check()?;
        self.redis.check()
    }

    /// The keys of secrets; reads their file.
    ///
    /// # Errors
    /// When they can't be read or used.
    pub fn keys(&self) -> Result<Keys, secrets_config::Invalid> {
        self.secrets.read(Keys::parse)
    }

    /// The session machine's limits; a listener has its own limit of packets.
    pub(crate) fn limits(&self) -> Limits {
        let mqtt = &self.mqtt;
        Limits {
            connect_timeout_ms: mqtt.connect_timeout.as_millis() as u64,
            keep_alive_max_s: mqtt.keep_alive.max_keep_alive_sec,
            receive_maximum: mqtt.max_in_flight_msgs.get(),
            packet_bytes: self.listener.tcp.packet_bytes(),
            topic_alias_max: mqtt.topic.alias_max,
            receive_maximum_v3: mqtt.flow_control.mqtt_3x_receive_max.get(),
            shared_bytes_max: mqtt.outbound_queue_bytes_max.get(),
            delayed_max: mqtt.flow_control.delayed_queue_max_size.get(),
            delayed_ttl_ms: u64::from(mqtt.flow_control.ttl.get()) * 1000,
            subscriptions_max: mqtt.subscription.client_max.get(),
            client_id_v31_max: mqtt.client_id_max_length.get(),
            rules: Rules {
                segments_max: mqtt.topic.max_segments_count,
                root_wildcard: mqtt.subscription.root_multi_lvl_wildcard,
            },
            retain_available: mqtt.retain_msg.available,
            response_information: mqtt.response_info.clone(),
            session_expiry_max_s: mqtt.client_session_expiry.max_expiry_interval,
            session_expiry_v3_s: mqtt.client_session_expiry.v3_s(),
            alias_topic_bytes_min: mqtt.topic.min_length_for_alias_replacement,
            server_reference: mqtt.server_reference.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tbmq_service::config::load_from;

    use super::*;

    /// Each variable with a value that isn't its default.
    const VALUES: &[(&str, &str)] = &[
        ("TBMQ_SECRETS_KEYS", "a,b"),
        ("TBMQ_SECRETS_KEY", "a"),
        ("TBMQ_SECRETS_KEY_FILE", "/a"),
        ("LISTENER_TCP_ENABLED", "false"),
        ("LISTENER_TCP_BIND_ADDRESS", "127.0.0.1"),
        ("LISTENER_TCP_BIND_PORT", "0"),
        ("TCP_NETTY_MAX_PAYLOAD_SIZE", "1000"),
        ("TCP_NETTY_SO_KEEPALIVE", "false"),
        ("MQTT_TCP_PROXY_PROTOCOL_ENABLED", "true"),
        ("TBMQ_LISTENER_TCP_CONNECTIONS_MAX", "9"),
        ("TBMQ_LISTENER_TCP_ACCEPT_RATE_MAX", "8"),
        ("LISTENER_SSL_ENABLED", "true"),
        ("LISTENER_SSL_BIND_ADDRESS", "127.0.0.1"),
        ("LISTENER_SSL_BIND_PORT", "0"),
        ("SSL_NETTY_MAX_PAYLOAD_SIZE", "1000"),
        ("SSL_NETTY_SO_KEEPALIVE", "false"),
        ("MQTT_SSL_PROXY_PROTOCOL_ENABLED", "true"),
        ("TBMQ_LISTENER_SSL_CONNECTIONS_MAX", "9"),
        ("TBMQ_LISTENER_SSL_ACCEPT_RATE_MAX", "8"),
        ("LISTENER_SSL_PROTOCOL", "TLSv1.3"),
        ("LISTENER_SSL_ENABLED_CIPHER_SUITES", "TLS_AES_128_GCM_SHA256"),
        ("LISTENER_SSL_CREDENTIALS_TYPE", "PEM"),
        ("LISTENER_SSL_PEM_CERT", "a.pem"),
        ("LISTENER_SSL_PEM_KEY", "b.pem"),
        ("LISTENER_SSL_PEM_KEY_PASSWORD", "c"),
        ("TBMQ_LISTENER_SSL_CLIENT_CA", "d.pem"),
        ("TBMQ_LISTENER_SSL_CLIENT_AUTH", "require"),
        ("TBMQ_LISTENER_SSL_CLIENT_CRL", "e.pem,f.pem"),
        ("TBMQ_LISTENER_SSL_SKIP_VALIDITY_CHECK_FOR_CLIENT_CERT", "true"),
        ("LISTENER_WS_ENABLED", "false"),
        ("LISTENER_WS_BIND_ADDRESS", "127.0.0.1"),
        ("LISTENER_WS_BIND_PORT", "0"),
        ("WS_NETTY_MAX_PAYLOAD_SIZE", "1000"),
        ("WS_NETTY_SO_KEEPALIVE", "false"),
        ("MQTT_WS_PROXY_PROTOCOL_ENABLED", "true"),
        ("TBMQ_LISTENER_WS_CONNECTIONS_MAX", "9"),
        ("TBMQ_LISTENER_WS_ACCEPT_RATE_MAX", "8"),
        ("WS_NETTY_SUB_PROTOCOLS", "mqtt"),
        ("MQTT_WS_FORWARD_HEADERS_ENABLED", "true"),
        ("LISTENER_WSS_ENABLED", "true"),
        ("LISTENER_WSS_BIND_ADDRESS", "127.0.0.1"),
        ("LISTENER_WSS_BIND_PORT", "0"),
        ("WSS_NETTY_MAX_PAYLOAD_SIZE", "1000"),
        ("WSS_NETTY_SO_KEEPALIVE", "false"),
        ("MQTT_WSS_PROXY_PROTOCOL_ENABLED", "true"),
        ("TBMQ_LISTENER_WSS_CONNECTIONS_MAX", "9"),
        ("TBMQ_LISTENER_WSS_ACCEPT_RATE_MAX", "8"),
        ("LISTENER_WSS_PROTOCOL", "TLSv1.3"),
        ("LISTENER_WSS_ENABLED_CIPHER_SUITES", "TLS_AES_128_GCM_SHA256"),
        ("LISTENER_WSS_CREDENTIALS_TYPE", "PEM"),
        ("LISTENER_WSS_PEM_CERT", "a.pem"),
        ("LISTENER_WSS_PEM_KEY", "b.pem"),
        ("LISTENER_WSS_PEM_KEY_PASSWORD", "c"),
        ("TBMQ_LISTENER_WSS_CLIENT_CA", "d.pem"),
        ("TBMQ_LISTENER_WSS_CLIENT_AUTH", "require"),
        ("TBMQ_LISTENER_WSS_CLIENT_CRL", "e.pem,f.pem"),
        ("TBMQ_LISTENER_WSS_SKIP_VALIDITY_CHECK_FOR_CLIENT_CERT", "true"),
        ("WSS_NETTY_SUB_PROTOCOLS", "mqtt"),
        ("MQTT_WSS_FORWARD_HEADERS_ENABLED", "true"),
        ("MQTT_PROXY_PROTOCOL_ENABLED", "true"),
        ("TBMQ_LISTENER_TRUSTED_PROXIES", "10.0.0.0/8,192.0.2.7"),
        ("NETTY_SO_RECEIVE_BUFFER", "64"),
        ("TBMQ_LISTENER_TLS_RELOAD_INTERVAL", "1s"),
        ("TBMQ_MQTT_CONNECTIONS_MAX", "7"),
        ("TBMQ_MQTT_ADDRESS_CONNECTIONS_MAX", "7"),
        ("TBMQ_MQTT_TAKEOVER_BY_OTHER_USERS", "false"),
        ("MQTT_INCOMING_RATE_LIMITS_ENABLED", "true"),
        ("MQTT_INCOMING_RATE_LIMITS_CLIENT_CONFIG", "1:2"),
        ("MQTT_OUTGOING_RATE_LIMITS_ENABLED", "true"),
        ("MQTT_OUTGOING_RATE_LIMITS_CLIENT_CONFIG", "1:2"),
        ("MQTT_TOTAL_RATE_LIMITS_ENABLED", "true"),
        ("MQTT_TOTAL_RATE_LIMITS_CONFIG", "1:2,3:4"),
        ("MQTT_DEVICE_PERSISTED_MSGS_RATE_LIMITS_ENABLED", "true"),
        ("MQTT_DEVICE_PERSISTED_MSGS_RATE_LIMITS_CONFIG", "1:2,3:4"),
        ("TBMQ_MQTT_INCOMING_BYTES_RATE_LIMIT", "1000:1"),
        ("TBMQ_MQTT_CONNECTION_RATE_LIMIT", "1:2"),
        ("TBMQ_MQTT_ADDRESS_CONNECTION_RATE_LIMIT", "1:2"),
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
        ("TBMQ_MQTT_RETAIN_AVAILABLE", "false"),
        ("TBMQ_MQTT_RETAIN_MESSAGES_MAX", "15"),
        ("TBMQ_MQTT_RETAIN_BYTES_MAX", "16"),
        ("MQTT_RETAIN_MSG_EXPIRY_PROCESSING_PERIOD_MS", "17"),
        ("MQTT_TOPIC_MAX_SEGMENTS_COUNT", "12"),
        ("MQTT_TOPIC_ALIAS_MAX", "13"),
        ("TBMQ_MQTT_SUBSCRIPTIONS_CLIENT_MAX", "14"),
        ("MQTT_SUBSCRIPTION_ROOT_MULTI_LVL_WILDCARD", "false"),
        ("MQTT_SESSIONS_LIMIT", "15"),
        ("MQTT_APPLICATION_CLIENTS_LIMIT", "15"),
        ("TBMQ_MQTT_SERVER_REFERENCE", "other:1883"),
        ("MQTT_CLIENT_SESSION_EXPIRY_MAX_EXPIRY_INTERVAL", "16"),
        ("MQTT_CLIENT_SESSION_EXPIRY_TTL", "-1"),
        ("MQTT_TOPIC_MIN_LENGTH_FOR_ALIAS_REPLACEMENT", "17"),
        ("MQTT_PERSISTENT_SESSION_DEVICE_PERSISTED_MESSAGES_LIMIT", "18"),
        ("MQTT_PERSISTENT_SESSION_DEVICE_PERSISTED_MESSAGES_TTL", "19"),
        ("TBMQ_MQTT_PERSISTED_MESSAGES_BYTES_MAX", "20"),
        ("TBMQ_MQTT_PERSISTED_MESSAGES_TOTAL_BYTES_MAX", "21"),
        ("TBMQ_MQTT_PERSISTED_MESSAGES_IN_FLIGHT_BYTES_MAX", "22"),
        ("TBMQ_MQTT_SYS_INTERVAL", "0s"),
        ("MQTT_RESPONSE_INFO", "responses/"),
        ("TBMQ_MQTT_WORKERS", "1"),
        ("TBMQ_MQTT_DRAIN_TIMEOUT", "1s"),
        ("TBMQ_MQTT_DRAIN_SPREAD", "2s"),
        ("TBMQ_AUTH_HASH_THREADS", "3"),
        ("TBMQ_AUTH_HASH_QUEUE_MAX", "20"),
        ("TBMQ_AUTH_HASH_QUEUE_ADDRESS_MAX", "21"),
        ("CACHE_SPECS_BASIC_CREDENTIALS_PASSWORD_TTL", "0"),
        ("TBMQ_AUTH_BASIC_CREDENTIALS_PASSWORD_MAX", "22"),
        ("SECURITY_UNAUTH_CLIENTS_ENABLED", "false"),
        ("SECURITY_MQTT_ANONYMOUS_ENABLED", "true"),
        ("CONTROL_GRPC_ENDPOINTS", "http://a:1,http://b:2"),
        ("CONTROL_GRPC_CA_FILE", "a"),
        ("CONTROL_GRPC_CERT_FILE", "b"),
        ("CONTROL_GRPC_KEY_FILE", "c"),
        ("CONTROL_GRPC_TOKEN", "d"),
        ("CONTROL_GRPC_TOKEN_FILE", "e"),
        ("REDIS_CONNECTION_TYPE", "cluster"),
        ("REDIS_HOST", "redis"),
        ("REDIS_PORT", "6380"),
        ("REDIS_DB", "2"),
        ("REDIS_NODES", "a:6379,b:6379"),
        ("REDIS_USERNAME", "f"),
        ("REDIS_PASSWORD", "g"),
        ("CACHE_PREFIX", "h:"),
        ("TBMQ_REDIS_TIMEOUT", "1s"),
    ];

    #[test]
    fn every_environment_name_reaches_its_field() {
        assert_eq!(VALUES.len(), SETTINGS.len());
        let default = serde_json(&Config::default());
        for &(name, value) in VALUES {
            let one = [(name.to_owned(), value.to_owned())];
            let config: Config = load_from(&[SETTINGS], None, one.into_iter()).unwrap();
            // TBMQ's other choice, key stores, is refused.
            assert!(serde_json(&config) != default || name.ends_with("_CREDENTIALS_TYPE"), "{name}");
        }
        let all = VALUES.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let config: Config = load_from(&[SETTINGS], None, all).unwrap();
        assert_eq!(config.control.grpc.endpoints, ["http://a:1", "http://b:2"]);
        assert_eq!(config.limits().connect_timeout_ms, 3000);
        assert_eq!(config.limits().packet_bytes, 1005);
        assert_eq!(config.limits().session_expiry_max_s, 16);
        assert_eq!(config.limits().session_expiry_v3_s, tbmq_mqtt::session::NEVER_S);
        assert_eq!(config.limits().alias_topic_bytes_min, 17);
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
