//! Settings of the control plane, and their environment names (spec §5.1; architecture §4.28).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tbmq_integration::seal::Keys;
use tbmq_service::{
    config::{Secret, Setting},
    secrets_config::SecretsConfig,
};

use crate::store;

/// Environment names of [`Config`].
pub const SETTINGS: &[Setting] = &[
    Setting { env: "CONTROL_GRPC_BIND_ADDRESS", key: "control.grpc.bind-address" },
    Setting { env: "CONTROL_GRPC_BIND_PORT", key: "control.grpc.bind-port" },
    Setting { env: "TBMQ_VALIDATION_TIMEOUT", key: "control.validation-timeout" },
    Setting { env: "TBMQ_VALIDATIONS_MAX", key: "control.validations-max" },
    Setting { env: "TBMQ_WATCHERS_MAX", key: "control.watchers-max" },
    Setting { env: "TBMQ_WATCH_PATIENCE", key: "control.watch-patience" },
    Setting { env: "TBMQ_WATCH_BOOKMARKS", key: "control.watch-bookmarks" },
    SecretsConfig::KEYS,
    SecretsConfig::KEY,
    SecretsConfig::KEY_FILE,
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
    Setting { env: "SQL_TTL_EVENTS_ENABLED", key: "sql.ttl.events.enabled" },
    Setting { env: "SQL_TTL_EVENTS_EXECUTION_INTERVAL_MS", key: "sql.ttl.events.execution-interval-ms" },
    Setting { env: "SQL_TTL_EVENTS_TTL_SEC", key: "sql.ttl.events.ttl-sec" },
    Setting { env: "MQTT_TOPIC_MAX_SEGMENTS_COUNT", key: "mqtt.topic.max-segments-count" },
    Setting {
        env: "MQTT_SUBSCRIPTION_ROOT_MULTI_LVL_WILDCARD",
        key: "mqtt.subscription.allow-root-multi-level-wildcard",
    },
];

/// Settings of the control plane.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The gRPC server and validation.
    pub control: ControlConfig,
    /// The keys that the secrets of integrations are encrypted with; the executors need the same.
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MqttConfig {
    /// Topics.
    pub topic: TopicConfig,
    /// Subscriptions.
    pub subscription: SubscriptionConfig,
}

/// Topics.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TopicConfig {
    /// Levels at most; 0: no limit.
    pub max_segments_count: usize,
}

/// Subscriptions.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlConfig {
    /// Where to listen.
    pub grpc: GrpcConfig,
    /// How long Create and Update wait for an executor's answer.
    #[serde(with = "humantime_serde")]
    pub validation_timeout: Duration,
    /// Validations that may be pending at once; more are refused with `RESOURCE_EXHAUSTED`.
    pub validations_max: NonZeroUsize,
    /// Watches that may be open at once; more are refused with `RESOURCE_EXHAUSTED`.
    pub watchers_max: NonZeroUsize,
    /// How long the client of a watch may take nothing before it is cut.
    #[serde(with = "humantime_serde")]
    pub watch_patience: Duration,
    /// How often a watch says how far it has come; at most 10 s, which clients count on.
    #[serde(with = "humantime_serde")]
    pub watch_bookmarks: Duration,
    /// How long Create and Update wait for data planes to apply the subscription.
    #[serde(with = "humantime_serde")]
    pub apply_timeout: Duration,
    /// How long a stop waits for calls.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            grpc: GrpcConfig::default(),
            validation_timeout: Duration::from_secs(30),
            validations_max: NonZeroUsize::new(1_000).expect("1000 is not 0"),
            watchers_max: NonZeroUsize::new(1_000).expect("1000 is not 0"),
            watch_patience: Duration::from_secs(10),
            watch_bookmarks: Duration::from_secs(5),
            apply_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Where the gRPC server listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GrpcConfig {
    /// Address to bind.
    pub bind_address: IpAddr,
    /// Port to bind; 0 picks a free one.
    pub bind_port: u16,
    /// Calls in work at once over all connections; more are refused with `RESOURCE_EXHAUSTED`.
    pub calls_max: NonZeroUsize,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            bind_port: 9090,
            calls_max: NonZeroUsize::new(2_000).expect("2000 is not 0"),
        }
    }
}

/// Where the store is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DatabaseConfig {
    /// `postgres://user:password@host/database` or `sqlite://path?mode=rwc`; absent: TBMQ's names are looked at.
    pub url: Option<DatabaseUrl>,
}

/// TBMQ's names for the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SpringConfig {
    /// The data source.
    pub datasource: DatasourceConfig,
}

/// TBMQ's data source.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DatasourceConfig {
    /// `jdbc:postgresql://host:port/database`.
    pub url: Option<DatabaseUrl>,
    /// User.
    pub username: Option<String>,
    /// Password.
    pub password: Secret,
    /// Connections at most.
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct IntegrationsConfig {
    /// Connection checks.
    pub init: InitConfig,
    /// Topics of long-disabled integrations.
    pub cleanup: CleanupConfig,
}

/// Connection checks.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CleanupConfig {
    /// How often to look, seconds.
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SqlConfig {
    /// What is stored.
    pub events: EventsConfig,
    /// How long.
    pub ttl: TtlConfig,
}

/// What is stored of events.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EventsConfig {
    /// Symbols kept of an error text; 0 or negative: all.
    pub max_symbols: i64,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { max_symbols: 4096 }
    }
}

/// How long things are stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TtlConfig {
    /// Events.
    pub events: EventsTtlConfig,
}

/// How long events are stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EventsTtlConfig {
    /// Whether old events are deleted at all.
    pub enabled: bool,
    /// How often, ms.
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
}

impl Config {
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
#[derive(Clone, PartialEq, Eq, Deserialize)]
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
