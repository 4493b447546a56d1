//! Settings of the control plane, and their environment names (spec §5.1; architecture §4.28).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_integration::seal::Keys;
use tbmq_service::{
    config::{Secret, Setting},
    secrets_config::SecretsConfig,
};
use tonic::transport::Uri;

pub use crate::access::config::{
    AuthConfig, ClientAuth, ClientRole, InvalidClientRole, JwtConfig, TlsConfig,
};
use crate::{access, store};

/// Default port of the admin endpoint of a control plane that runs alone.
pub const ADMIN_PORT: u16 = 8083;

/// Environment names of [`Config`].
pub const SETTINGS: &[Setting] = &[
    Setting { env: "CONTROL_GRPC_BIND_ADDRESS", key: "control.grpc.bind-address" },
    Setting { env: "CONTROL_GRPC_BIND_PORT", key: "control.grpc.bind-port" },
    Setting { env: "CONTROL_GRPC_ADVERTISED_ADDRESS", key: "control.grpc.advertised-address" },
    Setting { env: "CONTROL_GRPC_MAX_CONNECTION_AGE", key: "control.grpc.max-connection-age" },
    Setting { env: "CONTROL_GRPC_MAX_CONNECTION_AGE_GRACE", key: "control.grpc.max-connection-age-grace" },
    Setting { env: "TBMQ_VALIDATION_TIMEOUT", key: "control.validation-timeout" },
    Setting { env: "TBMQ_VALIDATIONS_MAX", key: "control.validations-max" },
    Setting { env: "TBMQ_READS_MAX", key: "control.calls.reads-max" },
    Setting { env: "TBMQ_WRITES_MAX", key: "control.calls.writes-max" },
    Setting { env: "TBMQ_CHECKS_MAX", key: "control.calls.checks-max" },
    Setting { env: "TBMQ_CALL_DEADLINE", key: "control.calls.deadline" },
    Setting { env: "TBMQ_STREAMS_MAX", key: "control.calls.streams-max" },
    Setting { env: "TBMQ_INTEGRATIONS_MAX", key: "control.integrations-max" },
    Setting { env: "TBMQ_WATCHERS_MAX", key: "control.watchers-max" },
    Setting { env: "TBMQ_WATCHERS_PER_CLIENT_MAX", key: "control.watchers-per-client-max" },
    Setting { env: "TBMQ_WATCH_PATIENCE", key: "control.watch-patience" },
    Setting { env: "TBMQ_WATCH_BOOKMARKS", key: "control.watch-bookmarks" },
    SecretsConfig::KEYS,
    SecretsConfig::KEY,
    SecretsConfig::KEY_FILE,
    Setting { env: "TBMQ_AUTH_ENABLED", key: "control.auth.enabled" },
    Setting { env: "TBMQ_AUTH_INSECURE", key: "control.auth.insecure" },
    Setting { env: "TBMQ_ADMIN_TOKEN", key: "control.auth.admin-token" },
    Setting { env: "TBMQ_ADMIN_TOKEN_FILE", key: "control.auth.admin-token-file" },
    Setting { env: "TBMQ_AUTH_JWT_SECRET", key: "control.auth.jwt.secret" },
    Setting { env: "TBMQ_AUTH_JWT_SECRET_FILE", key: "control.auth.jwt.secret-file" },
    Setting { env: "TBMQ_AUTH_JWT_KEY_FILE", key: "control.auth.jwt.key-file" },
    Setting { env: "TBMQ_AUTH_JWT_JWKS", key: "control.auth.jwt.jwks" },
    Setting { env: "TBMQ_AUTH_JWT_JWKS_REFRESH", key: "control.auth.jwt.jwks-refresh" },
    Setting { env: "TBMQ_AUTH_JWT_ISSUER", key: "control.auth.jwt.issuer" },
    Setting { env: "TBMQ_AUTH_JWT_AUDIENCE", key: "control.auth.jwt.audience" },
    Setting { env: "TBMQ_AUTH_JWT_ROLE_CLAIM", key: "control.auth.jwt.role-claim" },
    Setting { env: "TBMQ_AUDIT_TTL", key: "control.auth.audit-ttl" },
    Setting { env: "CONTROL_GRPC_TLS_PEM_CERT", key: "control.grpc.tls.pem-cert" },
    Setting { env: "CONTROL_GRPC_TLS_PEM_KEY", key: "control.grpc.tls.pem-key" },
    Setting { env: "CONTROL_GRPC_TLS_CLIENT_CA", key: "control.grpc.tls.client-ca" },
    Setting { env: "CONTROL_GRPC_TLS_CLIENT_AUTH", key: "control.grpc.tls.client-auth" },
    Setting { env: "CONTROL_GRPC_TLS_CLIENT_ROLES", key: "control.grpc.tls.client-roles" },
    Setting { env: "CONTROL_GRPC_TLS_RELOAD_INTERVAL", key: "control.grpc.tls.reload-interval" },
    Setting { env: "CONTROL_GRPC_CA_FILE", key: "control.grpc.ca-file" },
    Setting { env: "DATABASE_URL", key: "database.url" },
    Setting { env: "SPRING_DATASOURCE_URL", key: "spring.datasource.url" },
    Setting { env: "SPRING_DATASOURCE_USERNAME", key: "spring.datasource.username" },
    Setting { env: "SPRING_DATASOURCE_PASSWORD", key: "spring.datasource.password" },
    Setting { env: "SPRING_DATASOURCE_MAXIMUM_POOL_SIZE", key: "spring.datasource.maximum-pool-size" },
    Setting {
        env: "INTEGRATIONS_INIT_CONNECTION_CHECK_API_REQUEST_TIMEOUT_SEC",
        key: "integrations.init.connection-check-api-request-timeout-sec",
    },
    Setting { env: "INTEGRATIONS_CLEANUP_PERIOD_SEC", key: "integrations.cleanup.period" },
    Setting { env: "INTEGRATIONS_CLEANUP_TTL_SEC", key: "integrations.cleanup.ttl" },
    Setting { env: "SQL_EVENTS_MAX_SYMBOLS", key: "sql.events.max-symbols" },
    Setting { env: "SQL_EVENTS_REGULAR_PARTITION_SIZE_HOURS", key: "sql.events.partition-size" },
    Setting { env: "SQL_TTL_EVENTS_ENABLED", key: "sql.ttl.events.enabled" },
    Setting { env: "SQL_TTL_EVENTS_EXECUTION_INTERVAL_MS", key: "sql.ttl.events.execution-interval-ms" },
    Setting { env: "SQL_TTL_EVENTS_TTL_SEC", key: "sql.ttl.events.ttl-sec" },
    Setting { env: "SQL_TTL_UNAUTHORIZED_CLIENT_ENABLED", key: "sql.ttl.unauthorized-client.enabled" },
    Setting {
        env: "SQL_TTL_UNAUTHORIZED_CLIENT_EXECUTION_INTERVAL_MS",
        key: "sql.ttl.unauthorized-client.execution-interval-ms",
    },
    Setting { env: "SQL_TTL_UNAUTHORIZED_CLIENT_TTL", key: "sql.ttl.unauthorized-client.ttl" },
    Setting { env: "BLOCKED_CLIENT_CLEANUP_PERIOD_MINUTES", key: "mqtt.blocked-client.cleanup.period" },
    Setting { env: "BLOCKED_CLIENT_CLEANUP_TTL_MINUTES", key: "mqtt.blocked-client.cleanup.ttl" },
    Setting { env: "MQTT_TOPIC_MAX_SEGMENTS_COUNT", key: "mqtt.topic.max-segments-count" },
    Setting {
        env: "MQTT_SUBSCRIPTION_ROOT_MULTI_LVL_WILDCARD",
        key: "mqtt.subscription.allow-root-multi-level-wildcard",
    },
];

/// Settings of the control plane.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The gRPC server and validation.
    pub control: ControlConfig,
    /// The keys that the secrets of integrations and providers are encrypted with; executors and data planes need the same.
    pub secrets: SecretsConfig,
    /// Where the store is.
    pub database: DatabaseConfig,
    /// The same under TBMQ's names.
    pub spring: SpringConfig,
    /// Integrations.
    pub integrations: IntegrationsConfig,
    /// Events in the store.
    pub sql: SqlConfig,
    /// What topic filters are allowed; the data plane has the same settings.
    pub mqtt: MqttConfig,
}

/// What topic filters are allowed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MqttConfig {
    /// Topics; the data plane has the same settings.
    pub topic: TopicConfig,
    /// Subscriptions.
    pub subscription: SubscriptionConfig,
    /// Clients that may not connect.
    pub blocked_client: BlockedClientConfig,
}

/// Clients that may not connect.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlockedClientConfig {
    /// Blocks that have expired.
    pub cleanup: BlockedCleanupConfig,
}

/// Blocks that have expired.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlockedCleanupConfig {
    /// How often to look for blocks that have expired, minutes.
    pub period: NonZeroU32,
    /// How long after it expired a block is removed, minutes.
    pub ttl: u32,
}

impl Default for BlockedCleanupConfig {
    fn default() -> Self {
        Self { period: NonZeroU32::new(5).expect("5 is not 0"), ttl: 10_080 }
    }
}

/// Topics.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TopicConfig {
    /// Levels that the filter of an integration may have; 0: no limit.
    pub max_segments_count: usize,
}

/// Subscriptions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SubscriptionConfig {
    /// Whether the filter `#` is allowed.
    pub allow_root_multi_level_wildcard: bool,
}

impl Default for SubscriptionConfig {
    fn default() -> Self {
        Self { allow_root_multi_level_wildcard: true }
    }
}

/// The gRPC server and validation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlConfig {
    /// Where to listen.
    pub grpc: GrpcConfig,
    /// How much may be asked at once.
    pub calls: CallsConfig,
    /// Who may call.
    pub auth: AuthConfig,
    /// How long Create and Update wait for an executor's answer.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub validation_timeout: Duration,
    /// Validations that may be pending at once; more are refused with `RESOURCE_EXHAUSTED`.
    pub validations_max: NonZeroUsize,
    /// Integrations that may exist; more are refused with `RESOURCE_EXHAUSTED`. 0: no limit.
    pub integrations_max: u64,
    /// Watches that may be open at once; more are refused with `RESOURCE_EXHAUSTED`.
    pub watchers_max: NonZeroUsize,
    /// Watches of one client that may be open at once: of a token, a certificate or a JWT's subject; of an address when
    /// nobody is asked who they are.
    pub watchers_per_client_max: NonZeroUsize,
    /// How long the client of a watch may take nothing before it is cut.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub watch_patience: Duration,
    /// How often a watch says how far it has come; at most 10 s, which clients count on.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub watch_bookmarks: Duration,
    /// How long Create and Update wait for data planes to apply the subscription.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub apply_timeout: Duration,
    /// How long a stop waits for calls.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_timeout: Duration,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            grpc: GrpcConfig::default(),
            calls: CallsConfig::default(),
            auth: AuthConfig::default(),
            validation_timeout: Duration::from_secs(30),
            validations_max: NonZeroUsize::new(1_000).expect("1000 is not 0"),
            integrations_max: 100_000,
            watchers_max: NonZeroUsize::new(1_000).expect("1000 is not 0"),
            watchers_per_client_max: NonZeroUsize::new(200).expect("200 is not 0"),
            watch_patience: Duration::from_secs(10),
            watch_bookmarks: Duration::from_secs(5),
            apply_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// How much may be asked at once, over all connections; more is refused with `RESOURCE_EXHAUSTED`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CallsConfig {
    /// Calls in work at once that read.
    pub reads_max: NonZeroUsize,
    /// Calls in work at once that change something.
    pub writes_max: NonZeroUsize,
    /// Connection checks in work at once. Fewer than validations, so that they leave some of those to Create and Update.
    pub checks_max: NonZeroUsize,
    /// How long a call may take, whatever its caller allows; streams may stay.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub deadline: Duration,
    /// Streams of one HTTP/2 connection, at most.
    pub streams_max: NonZeroU32,
}

impl Default for CallsConfig {
    fn default() -> Self {
        Self {
            reads_max: NonZeroUsize::new(1_000).expect("1000 is not 0"),
            writes_max: NonZeroUsize::new(1_000).expect("1000 is not 0"),
            checks_max: NonZeroUsize::new(200).expect("200 is not 0"),
            deadline: Duration::from_secs(60),
            streams_max: NonZeroU32::new(2_000).expect("2000 is not 0"),
        }
    }
}

/// Where the gRPC server listens.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GrpcConfig {
    /// Address to bind.
    pub bind_address: IpAddr,
    /// Port to bind; 0 picks a free one.
    pub bind_port: u16,
    /// Where other control planes reach this one: `host`, `host:port` or a URL. Absent: the address that is bound, or
    /// the host's name when that is every address.
    pub advertised_address: Option<AdvertisedAddress>,
    /// TLS.
    pub tls: TlsConfig,
    /// File with the authorities that the other control planes' certificates are of, in PEM; absent: what the system
    /// trusts.
    pub ca_file: Option<PathBuf>,
    /// After how long a client is asked to connect anew, so that load spreads over replicas; 0: never.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub max_connection_age: Duration,
    /// How long calls in work may go on after this before they are cut; 0: as long as they like.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub max_connection_age_grace: Duration,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            bind_port: 9090,
            advertised_address: None,
            tls: TlsConfig::default(),
            ca_file: None,
            max_connection_age: Duration::ZERO,
            max_connection_age_grace: Duration::ZERO,
        }
    }
}

impl GrpcConfig {
    /// The URL under which other control planes reach this one, which listens on `bound`.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> String {
        let scheme = if self.tls.pem_cert.is_some() { "https" } else { "http" };
        match &self.advertised_address {
            Some(AdvertisedAddress { scheme: own, authority, has_port }) => {
                let scheme = own.as_deref().unwrap_or(scheme);
                if *has_port {
                    format!("{scheme}://{authority}")
                } else {
                    format!("{scheme}://{authority}:{}", bound.port())
                }
            }
            None if bound.ip().is_unspecified() => {
                format!("{scheme}://{}:{}", tbmq_service::identity::host_name(), bound.port())
            }
            None => format!("{scheme}://{bound}"),
        }
    }
}

/// Bytes of an advertised address; the store keeps it.
const ADDRESS_BYTES_MAX: usize = 512 - ":65535".len();

/// A host with or without a port, which others can connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct AdvertisedAddress {
    /// Absent: as this one is served.
    scheme: Option<String>,
    /// Host, and port if it has one.
    authority: String,
    has_port: bool,
}

impl TryFrom<String> for AdvertisedAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let text = text.trim();
        let wrong = |why: &str| format!("{text:?} is not an address like control-plane-1:9090: {why}");
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = url.parse().map_err(|error| wrong(&format!("{error}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("the scheme is http or https"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("it has a path"));
        }
        let host = uri.host().unwrap_or_default();
        if host.is_empty() || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
            return Err(wrong("others can't connect to it"));
        }
        if url.len() > ADDRESS_BYTES_MAX {
            return Err(wrong("it is too long"));
        }
        let (scheme, authority) = url.split_once("://").unwrap_or_default();
        Ok(Self {
            scheme: text.contains("://").then(|| scheme.to_owned()),
            authority: authority.trim_end_matches('/').to_owned(),
            has_port: uri.port().is_some(),
        })
    }
}

impl From<AdvertisedAddress> for String {
    fn from(address: AdvertisedAddress) -> Self {
        match address.scheme {
            Some(scheme) => format!("{scheme}://{}", address.authority),
            None => address.authority,
        }
    }
}

/// Where the store is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DatabaseConfig {
    /// `postgres://user:password@host/database` or `sqlite://path?mode=rwc`; absent: TBMQ's names are looked at.
    pub url: Option<DatabaseUrl>,
}

/// TBMQ's names for the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SpringConfig {
    /// The database, under TBMQ's names; `database.url` wins.
    pub datasource: DatasourceConfig,
}

/// TBMQ's data source.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DatasourceConfig {
    /// `jdbc:postgresql://host:port/database`.
    pub url: Option<DatabaseUrl>,
    /// User of the database, unless the URL names one.
    pub username: Option<String>,
    /// Password of that user.
    pub password: Secret,
    /// Connections to the database, at most; SQLite takes 4 of them at most.
    pub maximum_pool_size: NonZeroU32,
}

impl Default for DatasourceConfig {
    fn default() -> Self {
        Self {
            url: None,
            username: None,
            password: Secret::default(),
            maximum_pool_size: NonZeroU32::new(16).expect("16 is not 0"),
        }
    }
}

/// Integrations.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct IntegrationsConfig {
    /// Connection checks.
    pub init: InitConfig,
    /// Topics of long-disabled integrations.
    pub cleanup: CleanupConfig,
}

/// Connection checks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct InitConfig {
    /// How long CheckConnection waits for an executor's answer, seconds.
    pub connection_check_api_request_timeout_sec: NonZeroU64,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self { connection_check_api_request_timeout_sec: NonZeroU64::new(20).expect("20 is not 0") }
    }
}

/// Topics of long-disabled integrations (seed 000, "What Happens If an Integration Stays Disabled").
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CleanupConfig {
    /// How often to look for integrations that were disabled for long, seconds.
    pub period: NonZeroU64,
    /// How long an integration may be disabled before its topic is deleted, seconds; 0 or negative: for ever.
    pub ttl: i64,
}

impl Default for CleanupConfig {
    fn default() -> Self {
        Self { period: NonZeroU64::new(10_800).expect("10800 is not 0"), ttl: 604_800 }
    }
}

/// Events in the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SqlConfig {
    /// What is stored of events.
    pub events: EventsConfig,
    /// How long things are stored.
    pub ttl: TtlConfig,
}

/// What is stored of events.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EventsConfig {
    /// Symbols kept of an error text; 0 or negative: all.
    pub max_symbols: i64,
    /// How much time a partition of events holds on PostgreSQL, hours. Partitions are dropped whole: an event lives up
    /// to so much longer than its TTL. Those that are there stay as they are.
    pub partition_size: NonZeroU32,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { max_symbols: 4096, partition_size: NonZeroU32::new(168).expect("168 is not 0") }
    }
}

/// How long things are stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TtlConfig {
    /// Events.
    pub events: EventsTtlConfig,
    /// Clients that were refused.
    pub unauthorized_client: UnauthorizedTtlConfig,
}

/// How long refused clients are remembered.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UnauthorizedTtlConfig {
    /// Whether old refusals are deleted at all.
    pub enabled: bool,
    /// How often old refusals are deleted, ms.
    pub execution_interval_ms: NonZeroU64,
    /// How long a refused client is kept after its latest refusal, seconds; 0 or negative: for ever.
    pub ttl: i64,
}

impl Default for UnauthorizedTtlConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            execution_interval_ms: NonZeroU64::new(86_400_000).expect("a day is not 0"),
            ttl: 259_200,
        }
    }
}

/// How long events are stored.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EventsTtlConfig {
    /// Whether old events are deleted at all.
    pub enabled: bool,
    /// How often old events are deleted, ms.
    pub execution_interval_ms: NonZeroU64,
    /// How long an event is kept, seconds; 0 or negative: for ever.
    pub ttl_sec: i64,
}

impl Default for EventsTtlConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            execution_interval_ms: NonZeroU64::new(3_600_000).expect("an hour is not 0"),
            ttl_sec: 1_209_600,
        }
    }
}

/// The settings can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misconfigured {
    /// No store is named.
    #[error(
        "no database: set DATABASE_URL, or SPRING_DATASOURCE_URL, to postgres://user:password@host/database"
    )]
    NoDatabase,
    /// The store's URL is of no known kind.
    #[error("{key} {url} is neither postgres://…, jdbc:postgresql://… nor sqlite://…")]
    UnknownDatabase {
        /// Key of the setting.
        key: &'static str,
        /// The URL, its password hidden.
        url: String,
    },
    /// The keys of secrets.
    #[error(transparent)]
    Secrets(#[from] tbmq_service::secrets_config::Invalid),
    /// Other machines would be served, and nobody asked who they are.
    #[error(
        "the control API would be open to other machines on {0}, without authentication. Set TBMQ_ADMIN_TOKEN (or \
         TBMQ_AUTH_JWT_KEY_FILE, TBMQ_AUTH_JWT_JWKS, CONTROL_GRPC_TLS_CLIENT_ROLES), or listen on this machine alone with \
         CONTROL_GRPC_BIND_ADDRESS=127.0.0.1; TBMQ_AUTH_INSECURE=true opens it all the same"
    )]
    Public(IpAddr),
    /// What says who may call, or secures connections, can't be used.
    #[error("{0}")]
    Access(String),
}

impl Config {
    /// Says what does not fit together, or can't be read, of who may call.
    ///
    /// # Errors
    /// The first problem.
    pub fn check_access(&self) -> Result<(), Misconfigured> {
        let address = self.control.grpc.bind_address;
        if !address.is_loopback() && !access::is_on(&self.control) && !self.control.auth.insecure {
            return Err(Misconfigured::Public(address));
        }
        access::Ways::open(&self.control).map_err(Misconfigured::Access)?;
        access::tls::Tls::open(&self.control.grpc.tls).map_err(Misconfigured::Access)?;
        Ok(())
    }

    /// How long after it expired a block is removed, ms.
    pub(crate) fn blocked_ttl_ms(&self) -> i64 {
        i64::from(self.mqtt.blocked_client.cleanup.ttl) * 60_000
    }

    /// Whether a store is named.
    pub fn names_store(&self) -> bool {
        self.database.url.is_some() || self.spring.datasource.url.is_some()
    }

    /// Names a SQLite file as the store.
    pub fn use_sqlite(&mut self, path: &Path) {
        self.database.url = Some(DatabaseUrl(store::Options::sqlite(path).url));
    }

    /// The keys of secrets; reads their file.
    ///
    /// # Errors
    /// When they can't be read or used.
    pub fn keys(&self) -> Result<Keys, Misconfigured> {
        Ok(self.secrets.read(Keys::parse)?)
    }

    /// How to open the store.
    ///
    /// # Errors
    /// When no store is named, or an unknown kind of one.
    pub fn store_options(&self) -> Result<store::Options, Misconfigured> {
        let datasource = &self.spring.datasource;
        let (key, given) = match (&self.database.url, &datasource.url) {
            (Some(url), _) => ("database.url", url),
            (None, Some(url)) => ("spring.datasource.url", url),
            (None, None) => return Err(Misconfigured::NoDatabase),
        };
        let url = given.0.strip_prefix("jdbc:").unwrap_or(&given.0);
        let unknown = || Misconfigured::UnknownDatabase { key, url: given.shown() };
        let connections = datasource.maximum_pool_size.get();
        if url.starts_with("sqlite:") {
            return Ok(store::Options {
                url: url.to_owned(),
                connections: connections.min(4),
                patience: Duration::from_secs(5),
            });
        }
        let rest = url
            .strip_prefix("postgresql://")
            .or_else(|| url.strip_prefix("postgres://"))
            .ok_or_else(unknown)?;
        let url = match &datasource.username {
            Some(user) if !rest.split('/').next().unwrap_or_default().contains('@') => {
                format!("postgres://{}:{}@{rest}", escape(user), escape(datasource.password.expose()))
            }
            _ => format!("postgres://{rest}"),
        };
        Ok(store::Options { url, connections, patience: Duration::from_secs(5) })
    }
}

fn escape(text: &str) -> String {
    use fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("writing to a String does not fail");
        }
    }
    escaped
}

/// A URL whose password is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// A URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    fn shown(&self) -> String {
        let hidden = || {
            let (scheme, rest) = self.0.split_once("://")?;
            let authority = rest.split('/').next()?;
            let (user, host) = authority.rsplit_once('@')?;
            let (user, _) = user.split_once(':')?;
            Some(format!("{scheme}://{user}:***@{host}{}", &rest[authority.len()..]))
        };
        let shown = hidden().unwrap_or_else(|| self.0.clone());
        // JDBC puts the password into the query.
        match shown.split_once("password=") {
            Some((before, after)) => {
                let rest = after.find('&').map_or("", |end| &after[end..]);
                format!("{before}password=***{rest}")
            }
            None => shown,
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(url: Option<&str>, spring: Option<&str>) -> Config {
        let mut config = Config::default();
        config.database.url = url.map(DatabaseUrl::new);
        config.spring.datasource.url = spring.map(DatabaseUrl::new);
        config
    }

    #[test]
    fn tbmqs_names_make_a_postgres_url() {
        let mut config = with(None, Some("jdbc:postgresql://db:5432/thingsboard_mqtt_broker"));
        config.spring.datasource.username = Some("postgres".to_owned());
        config.spring.datasource.password = Secret::new("p@ss/w");
        assert_eq!(
            config.store_options().unwrap().url,
            "postgres://postgres:p%40ss%2Fw@db:5432/thingsboard_mqtt_broker"
        );
    }

    #[test]
    fn database_url_wins_and_a_missing_or_foreign_one_is_named() {
        let config = with(Some("sqlite://a.db"), Some("jdbc:postgresql://db/x"));
        assert_eq!(config.store_options().unwrap().url, "sqlite://a.db");
        assert_eq!(with(None, None).store_options().unwrap_err(), Misconfigured::NoDatabase);
        let error = with(Some("mysql://u:secret@h/d"), None).store_options().unwrap_err().to_string();
        assert!(error.contains("mysql://u:***@h/d") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn passwords_in_urls_are_not_shown() {
        for url in ["postgres://u:secret@h:1/d", "jdbc:postgresql://h/d?user=u&password=secret&x=1"] {
            let shown = format!("{:?}", DatabaseUrl::new(url));
            assert!(!shown.contains("secret") && shown.contains("***"), "{shown}");
        }
    }

    #[test]
    fn others_are_told_an_address_that_they_can_use() {
        let advertised = |text: Option<&str>, bound: &str| {
            let advertised_address = text.map(|text| text.to_owned().try_into().unwrap());
            GrpcConfig { advertised_address, ..GrpcConfig::default() }.advertised(bound.parse().unwrap())
        };
        assert_eq!(advertised(None, "127.0.0.1:9090"), "http://127.0.0.1:9090");
        assert_eq!(advertised(None, "[::1]:9090"), "http://[::1]:9090");
        let host = tbmq_service::identity::host_name();
        assert_eq!(advertised(None, "0.0.0.0:7"), format!("http://{host}:7"));
        assert_eq!(advertised(Some("cp1"), "0.0.0.0:7"), "http://cp1:7");
        assert_eq!(advertised(Some("cp1:443"), "0.0.0.0:7"), "http://cp1:443");
        assert_eq!(advertised(Some("https://cp1/"), "0.0.0.0:7"), "https://cp1:7");
        assert_eq!(advertised(Some("[::1]:5"), "0.0.0.0:7"), "http://[::1]:5");
        for bad in ["", "0.0.0.0:9090", "ftp://x", "cp1:9090/path", "a b"] {
            let error = AdvertisedAddress::try_from(bad.to_owned()).unwrap_err();
            assert!(error.contains("control-plane-1:9090"), "{error}");
        }
    }

    #[test]
    fn a_bad_advertised_address_is_named_with_its_variable() {
        let one = [("CONTROL_GRPC_ADVERTISED_ADDRESS".to_owned(), "0.0.0.0".to_owned())];
        let error =
            tbmq_service::config::load_from::<Config>(&[SETTINGS], None, one.into_iter()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("CONTROL_GRPC_ADVERTISED_ADDRESS") && text.contains("0.0.0.0"), "{text}");
    }

    #[test]
    fn other_machines_are_served_only_with_authentication_or_when_forced() {
        let refused = |configure: &dyn Fn(&mut Config)| {
            let mut config = Config::default();
            configure(&mut config);
            config.check_access().err()
        };
        let error = refused(&|_| {}).unwrap();
        let text = error.to_string();
        for setting in ["TBMQ_ADMIN_TOKEN", "CONTROL_GRPC_BIND_ADDRESS", "TBMQ_AUTH_INSECURE"] {
            assert!(text.contains(setting), "{text}");
        }
        assert_eq!(refused(&|config| config.control.grpc.bind_address = [127, 0, 0, 1].into()), None);
        assert_eq!(refused(&|config| config.control.auth.insecure = true), None);
        assert_eq!(refused(&|config| config.control.auth.enabled = Some(true)), None);
        assert_eq!(
            refused(&|config| config.control.auth.admin_token = Secret::new("0123456789abcdef")),
            None
        );
        let with_token_but_off = |config: &mut Config| {
            config.control.auth.admin_token = Secret::new("0123456789abcdef");
            config.control.auth.enabled = Some(false);
        };
        assert_eq!(refused(&with_token_but_off), Some(error));
    }

    #[test]
    fn settings_of_access_that_do_not_fit_are_told_by_name() {
        type Configure = fn(&mut ControlConfig);
        let cases: [(Configure, &str); 7] = [
            (|control| control.auth.admin_token = Secret::new("short"), "TBMQ_ADMIN_TOKEN"),
            (|control| control.auth.admin_token_file = Some("/nowhere".into()), "TBMQ_ADMIN_TOKEN_FILE"),
            (|control| control.auth.jwt.secret = Secret::new("short"), "TBMQ_AUTH_JWT_SECRET"),
            (|control| control.auth.jwt.jwks = Some("/nowhere".to_owned()), "TBMQ_AUTH_JWT_JWKS"),
            (|control| control.grpc.tls.pem_cert = Some("/nowhere".into()), "CONTROL_GRPC_TLS_PEM_CERT"),
            (|control| control.grpc.tls.client_ca = Some("/nowhere".into()), "CONTROL_GRPC_TLS_PEM_CERT"),
            (
                |control| control.grpc.tls.client_roles = vec!["a=ADMIN".parse().unwrap()],
                "CONTROL_GRPC_TLS_CLIENT_CA",
            ),
        ];
        for (configure, setting) in cases {
            let mut config = Config::default();
            config.control.grpc.bind_address = [127, 0, 0, 1].into();
            configure(&mut config.control);
            let text = config.check_access().unwrap_err().to_string();
            assert!(text.contains(setting) && !text.contains("short"), "{text}");
        }
    }

    #[test]
    fn every_environment_name_of_access_reaches_its_field() {
        let values = [
            ("TBMQ_AUTH_ENABLED", "true"),
            ("TBMQ_AUTH_INSECURE", "true"),
            ("TBMQ_ADMIN_TOKEN", "0123456789abcdef"),
            ("TBMQ_ADMIN_TOKEN_FILE", "a"),
            ("TBMQ_AUTH_JWT_SECRET", "b"),
            ("TBMQ_AUTH_JWT_SECRET_FILE", "c"),
            ("TBMQ_AUTH_JWT_KEY_FILE", "d"),
            ("TBMQ_AUTH_JWT_JWKS", "https://x/jwks"),
            ("TBMQ_AUTH_JWT_JWKS_REFRESH", "1m"),
            ("TBMQ_AUTH_JWT_ISSUER", "e"),
            ("TBMQ_AUTH_JWT_AUDIENCE", "f,g"),
            ("TBMQ_AUTH_JWT_ROLE_CLAIM", "h"),
            ("TBMQ_AUDIT_TTL", "1d"),
            ("CONTROL_GRPC_TLS_PEM_CERT", "i"),
            ("CONTROL_GRPC_TLS_PEM_KEY", "j"),
            ("CONTROL_GRPC_TLS_CLIENT_CA", "k"),
            ("CONTROL_GRPC_TLS_CLIENT_AUTH", "optional"),
            ("CONTROL_GRPC_TLS_CLIENT_ROLES", "dp*=NODE,*=VIEWER"),
            ("CONTROL_GRPC_TLS_RELOAD_INTERVAL", "1s"),
            ("CONTROL_GRPC_CA_FILE", "l"),
        ];
        let default = tbmq_service::shell::tree(&Config::default());
        for (name, value) in values {
            let one = [(name.to_owned(), value.to_owned())];
            let config: Config = tbmq_service::config::load_from(&[SETTINGS], None, one.into_iter()).unwrap();
            assert_ne!(tbmq_service::shell::tree(&config), default, "{name}");
        }
    }

    #[test]
    fn defaults_and_settings_fit_together() {
        let environment = [
            ("CONTROL_GRPC_BIND_PORT", "0"),
            ("TBMQ_VALIDATION_TIMEOUT", "3s"),
            ("TBMQ_WATCHERS_MAX", "7"),
            ("TBMQ_WATCH_BOOKMARKS", "2s"),
            ("INTEGRATIONS_CLEANUP_TTL_SEC", "-1"),
            ("DATABASE_URL", "sqlite://x"),
        ];
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let config: Config = tbmq_service::config::load_from(&[SETTINGS], None, environment).unwrap();
        assert_eq!(config.control.grpc.bind_port, 0);
        assert_eq!(config.control.validation_timeout, Duration::from_secs(3));
        assert_eq!((config.control.watchers_max.get(), config.control.watch_bookmarks.as_secs()), (7, 2));
        assert_eq!(config.integrations.cleanup.ttl, -1);
        assert!(config.names_store());
    }
}
