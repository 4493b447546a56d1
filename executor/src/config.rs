//! Settings of an executor, under TBMQ's names and with TBMQ's units (spec §5.1).

use std::{num::NonZeroUsize, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_integration::{
    entity::{AckStrategy, Delivery, Document},
    pack::{self, Ordering},
    seal::Keys,
    stats::{InvalidRates, Rates},
};
use tbmq_service::{config::Setting, secrets_config::SecretsConfig};

use crate::{
    sink::SinkKind,
    sinks::{
        self, SinkSettings,
        egress::{Egress, Network},
    },
};

macro_rules! settings {
    ($($env:literal => $key:literal,)*) => {
        &[
            SecretsConfig::KEYS,
            SecretsConfig::KEY,
            SecretsConfig::KEY_FILE,
            $(Setting { env: $env, key: $key }),*
        ]
    };
}

/// Default port of the admin endpoint of an executor that runs alone.
pub const ADMIN_PORT: u16 = 8082;

/// Environment names of [`Config`].
pub const SETTINGS: &[Setting] = settings! {
    "TB_SERVICE_INTEGRATIONS_SUPPORTED" => "service.integrations.supported",
    "TB_SERVICE_INTEGRATIONS_EXCLUDED" => "service.integrations.excluded",
    "TB_IE_MSG_POLL_INTERVAL" => "queue.integration-msg.poll-interval",
    "TB_IE_MSG_PACK_PROCESSING_TIMEOUT" => "queue.integration-msg.pack-processing-timeout",
    "TB_IE_MSG_ACK_STRATEGY_TYPE" => "queue.integration-msg.ack-strategy.type",
    "TB_IE_MSG_ACK_STRATEGY_RETRIES" => "queue.integration-msg.ack-strategy.retries",
    "TB_IE_MSG_ACK_STRATEGY_PAUSE_BETWEEN_RETRIES" => "queue.integration-msg.ack-strategy.pause-between-retries",
    "TBMQ_IE_MSG_PACK_MESSAGES" => "queue.integration-msg.pack-messages",
    "TBMQ_IE_MSG_WINDOW_MESSAGES" => "queue.integration-msg.window-messages",
    "TBMQ_IE_MSG_WINDOW_BYTES" => "queue.integration-msg.window-bytes",
    "TBMQ_IE_MSG_BUDGET_BYTES" => "queue.integration-msg.budget-bytes",
    "TBMQ_IE_MSG_COMMIT_INTERVAL" => "queue.integration-msg.commit-interval",
    "TBMQ_IE_MSG_MESSAGE_BYTES_MAX" => "queue.integration-msg.message-bytes-max",
    "TBMQ_IE_MSG_MESSAGE_HEADERS_MAX" => "queue.integration-msg.message-headers-max",
    "TBMQ_IE_DLQ_RETENTION" => "queue.integration-dlq.retention",
    "TBMQ_IE_DLQ_RETENTION_BYTES" => "queue.integration-dlq.retention-bytes",
    "TBMQ_IE_UPLINK_BUFFER_EVENTS" => "queue.integration-uplink.buffer-events",
    "TBMQ_IE_SESSION_TIMEOUT" => "queue.integration-downlink.session-timeout",
    "TBMQ_IE_SHARDS_PER_PARTITION_MAX" => "queue.integration-downlink.shards-per-partition-max",
    "INTEGRATIONS_INIT_CONNECTION_CHECK_API_REQUEST_TIMEOUT_SEC" => "integrations.init.connection-check-api-request-timeout-sec",
    "INTEGRATIONS_STATISTICS_ENABLED" => "integrations.statistics.enabled",
    "INTEGRATIONS_STATISTICS_PERSIST_FREQUENCY" => "integrations.statistics.persist-frequency",
    "INTEGRATIONS_INIT_CONNECTION_TIMEOUT_SEC" => "integrations.init.connection-timeout-sec",
    "INTEGRATIONS_REINIT_ENABLED" => "integrations.reinit.enabled",
    "INTEGRATIONS_REINIT_FREQUENCY_MS" => "integrations.reinit.frequency",
    "TBMQ_IE_REINIT_BACKOFF" => "integrations.reinit.backoff",
    "TBMQ_IE_STALLED_AFTER" => "integrations.stalled-after",
    "INTEGRATIONS_DESTROY_TIMEOUT_MS" => "integrations.destroy.graceful-timeout-ms",
    "INTEGRATIONS_DESTROY_COUNT" => "integrations.destroy.count",
    "INTEGRATIONS_DESTROY_FORCED_SHUTDOWN_TIMEOUT_MS" => "integrations.destroy.forced-shutdown-timeout-ms",
    "INTEGRATIONS_ALLOW_LOCAL_NETWORK_HOSTS" => "integrations.allow-local-network-hosts",
    "TBMQ_IE_EGRESS_ALLOW" => "integrations.egress.allow",
    "TBMQ_IE_EGRESS_DENY" => "integrations.egress.deny",
    "INTEGRATIONS_MANAGE_LIFECYCLE_THREADS" => "integrations.manage.lifecycle-threads-count",
    "INTEGRATIONS_MANAGE_COMMAND_THREADS" => "integrations.manage.command-threads-count",
    "TBMQ_IE_COMMAND_QUEUE" => "integrations.manage.command-queue",
    "TB_IE_HTTP_CLIENT_POOL_MAX_CONNECTIONS" => "integrations.http.pool-max-connections",
    "TBMQ_IE_HTTP_MAX_IN_MEMORY_BUFFER_KB" => "integrations.http.max-in-memory-buffer-kb",
    "EVENT_ERROR_RATE_LIMITS_ENABLED" => "event.error.rate-limits.enabled",
    "EVENT_ERROR_RATE_LIMITS_INTEGRATION" => "event.error.rate-limits.integration",
    "EVENT_ERROR_RATE_LIMITS_TTL" => "event.error.rate-limits.ttl-minutes",
    "STATS_IE_ENABLED" => "stats.ie.enabled",
    "STATS_IE_PRINT_INTERVAL_MS" => "stats.ie.print-interval-ms",
    "STATS_SYSTEM_INFO_PERSIST_FREQUENCY_SEC" => "stats.system-info.persist-frequency",
};

macro_rules! tree {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    )*};
}

tree! {
    /// Everything an executor can be told.
    Config {
        /// Which kinds are served.
        service: Service = Service::default(),
        /// The keys that the secrets of integrations are encrypted with: those of the control plane.
        secrets: SecretsConfig = SecretsConfig::default(),
        /// Message processing, uplink and downlink.
        queue: Queue = Queue::default(),
        /// Lifecycle, statistics, commands, sinks.
        integrations: Integrations = Integrations::default(),
        /// Events.
        event: Events = Events::default(),
        /// Printed statistics.
        stats: Stats = Stats::default(),
    }
    /// Which kinds are served.
    Service {
        /// Kinds that this executor runs, by name.
        integrations: Kinds = Kinds::default(),
    }
    /// Kinds by name.
    Kinds {
        /// Kinds that this executor runs: `ALL`, `NONE`, or names separated by commas.
        supported: String = "ALL".to_owned(),
        /// Kinds that are taken away from `supported`, written in the same way.
        excluded: String = "NONE".to_owned(),
    }
    /// Message processing, uplink and downlink.
    Queue {
        /// Messages of integrations.
        integration_msg: IntegrationMsg = IntegrationMsg::default(),
        /// Dead letters of integrations.
        integration_dlq: DeadLetters = DeadLetters::default(),
        /// Events to the control plane.
        integration_uplink: Uplink = Uplink::default(),
        /// Configuration from the control plane.
        integration_downlink: Downlink = Downlink::default(),
    }
    /// Messages of integrations.
    IntegrationMsg {
        /// Messages come as they are written, without a poll; this is the pause between two attempts to reach the bus (to
        /// find a message topic, to write a dead letter); ms. Per integration: `delivery.pollIntervalMs`.
        poll_interval: u64 = 1_000,
        /// From submission of a message to the sink's answer, at most; ms. Per integration: `delivery.packProcessingTimeoutMs`.
        pack_processing_timeout: u64 = 30_000,
        /// What happens to messages that fail or time out.
        ack_strategy: Strategy = Strategy::default(),
        /// Records of one pack (one poll), at most.
        pack_messages: NonZeroUsize = NonZeroUsize::new(500).expect("500 is not 0"),
        /// Messages in flight per partition, at most; 16 times as many are held while one of them has no outcome. Absent:
        /// what the kind asks for (Kafka 4,096, others 128).
        window_messages: Option<NonZeroUsize> = None,
        /// Bytes held per partition above which no further pack is taken.
        window_bytes: NonZeroUsize = NonZeroUsize::new(4 << 20).expect("4 MiB is not 0"),
        /// Bytes held by all integrations above which one with messages in hand takes no further pack.
        budget_bytes: NonZeroUsize = NonZeroUsize::new(256 << 20).expect("256 MiB is not 0"),
        /// Bytes of one record, at most; a greater one is given up on without an attempt.
        message_bytes_max: NonZeroUsize = NonZeroUsize::new(16 << 20).expect("16 MiB is not 0"),
        /// User properties of one message, at most; one with more is given up on without an attempt.
        message_headers_max: usize = 1_024,
        /// Time between two commits of all integrations together.
        #[serde(with = "humantime_serde")]
        #[schemars(with = "String")]
        commit_interval: Duration = Duration::from_secs(1),
    }
    /// Dead letters of integrations whose document says `delivery.deadLetter: true`.
    DeadLetters {
        /// How long dead letters are kept. Counts when the topic is made.
        #[serde(with = "humantime_serde")]
        #[schemars(with = "String")]
        retention: Duration = Duration::from_secs(30 * 86_400),
        /// Bytes of one integration's dead letters above which the oldest go; absent: no limit. Counts when the topic is
        /// made.
        retention_bytes: Option<u64> = None,
    }
    /// Strategy, unless the integration's document names its own.
    Strategy {
        /// What becomes of a message that fails or times out. Per integration: `delivery.ackStrategy`.
        r#type: StrategyType = StrategyType::SkipAll,
        /// Further attempts with `RETRY_ALL`; 0: without end. Per integration: `delivery.retries`.
        retries: u32 = 5,
        /// Wait before each further attempt; s. Per integration: `delivery.pauseBetweenRetriesSec`.
        pause_between_retries: u64 = 1,
    }
    /// Events to the control plane.
    Uplink {
        /// Events that wait for the bus, at most; beyond, the oldest error events are dropped and counted.
        buffer_events: NonZeroUsize = NonZeroUsize::new(10_000).expect("10,000 is not 0"),
    }
    /// Configuration from the control plane.
    Downlink {
        /// An executor that is silent for so long loses its integrations to others.
        #[serde(with = "humantime_serde")]
        #[schemars(with = "String")]
        session_timeout: Duration = Duration::from_secs(10),
        /// Integrations in one downlink partition, at most; further ones are refused and counted.
        shards_per_partition_max: NonZeroUsize = NonZeroUsize::new(100_000).expect("100,000 is not 0"),
    }
    /// Lifecycle, statistics, commands, sinks.
    Integrations {
        /// Checks of connections.
        init: Init = Init::default(),
        /// Statistics events.
        statistics: Statistics = Statistics::default(),
        /// Attempts to start failed integrations.
        reinit: Reinit = Reinit::default(),
        /// An integration that has something to deliver and whose remote end has confirmed nothing for so long is reported as
        /// stalled; the status shows it a moment later, within 5 s.
        #[serde(with = "humantime_serde")]
        #[schemars(with = "String")]
        stalled_after: Duration = Duration::from_secs(4),
        /// Waiting for what is in flight.
        destroy: Destroy = Destroy::default(),
        /// Whether sinks may reach addresses that are not public: loopback, link-local, private, multicast and so on.
        allow_local_network_hosts: bool = true,
        /// Which networks sinks may reach.
        egress: EgressLists = EgressLists::default(),
        /// Concurrency.
        manage: Manage = Manage::default(),
        /// HTTP integrations.
        http: Http = Http::default(),
    }
    /// Checks of connections.
    Init {
        /// A connection check takes at most so long; s.
        connection_check_api_request_timeout_sec: u64 = 20,
        /// The check of an MQTT connection takes at most so long, if its `connectTimeoutSec` says more; 0: no limit; s.
        connection_timeout_sec: u64 = 15,
    }
    /// Statistics events.
    Statistics {
        /// Whether statistics events are written.
        enabled: bool = true,
        /// Time between two statistics events of an integration; ms.
        persist_frequency: u64 = 3_600_000,
    }
    /// Attempts to start failed integrations.
    Reinit {
        /// Whether failed integrations are tried anew; otherwise only an update or a restart tries again.
        enabled: bool = true,
        /// The longest pause between two attempts of one integration; ms.
        frequency: u64 = 300_000,
        /// The pause before the first attempt; it doubles with each, up to `frequency`, and is shortened by up to a half at
        /// random.
        #[serde(with = "humantime_serde")]
        #[schemars(with = "String")]
        backoff: Duration = Duration::from_secs(1),
    }
    /// Waiting for what is in flight: `count` times `graceful-timeout-ms`, at most `forced-shutdown-timeout-ms`.
    Destroy {
        /// How long one turn of waiting takes; ms.
        graceful_timeout_ms: u64 = 1_000,
        /// Turns of waiting.
        count: u64 = 10,
        /// The outer bound when the process stops; ms.
        forced_shutdown_timeout_ms: u64 = 15_000,
    }
    /// Networks by prefix (`10.0.0.0/8`) or address; `public` stands for all addresses that are not local. They are
    /// matched with the address that is connected to, with each attempt.
    EgressLists {
        /// Networks that sinks may reach. If any: nothing else may be reached, and these may be although they are local.
        allow: Vec<Network> = Vec::new(),
        /// Networks that are never to be reached, whatever else allows them.
        deny: Vec<Network> = Vec::new(),
    }
    /// Concurrency.
    Manage {
        /// Integrations that connect at a time.
        lifecycle_threads_count: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0"),
        /// Validations and connection checks at a time.
        command_threads_count: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0"),
        /// Validations and checks that wait, at most; further ones are answered with an error.
        command_queue: NonZeroUsize = NonZeroUsize::new(1_024).expect("1,024 is not 0"),
    }
    /// HTTP integrations.
    Http {
        /// Connections per integration; absent: as many as its window.
        pool_max_connections: Option<NonZeroUsize> = None,
        /// What an integration's `maxInMemoryBufferSizeInKb` may ask for, at most.
        max_in_memory_buffer_kb: u32 = 25_000,
    }
    /// Events.
    Events {
        /// Error events.
        error: ErrorEvents = ErrorEvents::default(),
    }
    /// Error events.
    ErrorEvents {
        /// The limit of the whole process.
        rate_limits: RateLimits = RateLimits::default(),
    }
    /// The limit on error events.
    RateLimits {
        /// Whether there is a limit on error events.
        enabled: bool = true,
        /// Error events of the whole process: `count:seconds` pairs separated by commas, all of which must admit one.
        integration: String = "5000:3600,100:60".to_owned(),
        /// An integration is told of the limit once per so many minutes.
        ttl_minutes: u64 = 60,
    }
    /// Printed statistics.
    Stats {
        /// Printed statistics.
        ie: PrintedStats = PrintedStats::default(),
        /// Load of the machine, as told to the control plane.
        system_info: SystemInfo = SystemInfo::default(),
    }
    /// Load of the machine, as told to the control plane.
    SystemInfo {
        /// How often the load of the machine is told; s.
        persist_frequency: u64 = 60,
    }
    /// Printed statistics.
    PrintedStats {
        /// Whether statistics are logged.
        enabled: bool = true,
        /// How often statistics are logged; ms.
        print_interval_ms: u64 = 60_000,
    }
}

/// What becomes of a message that fails or times out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StrategyType {
    /// One attempt, then an error event.
    SkipAll,
    /// Further attempts.
    RetryAll,
}

/// A setting that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A list of kinds names one that there is not.
    #[error("service.integrations.{list} names {name:?}; known are {known}, ALL and NONE")]
    Kind {
        /// `supported` or `excluded`.
        list: &'static str,
        /// The name.
        name: String,
        /// All known ones.
        known: String,
    },
    /// The limit on error events can't be read.
    #[error("event.error.rate-limits.integration: {0}")]
    Rates(#[from] InvalidRates),
    /// A period of 0.
    #[error("{0} must be greater than 0")]
    Zero(&'static str),
    /// The keys of secrets.
    #[error(transparent)]
    Secrets(#[from] tbmq_service::secrets_config::Invalid),
}

impl Config {
    /// Checks what types can't say.
    ///
    /// # Errors
    /// Names the first setting that can't be used.
    pub fn check(&self) -> Result<(), Invalid> {
        self.check_values()?;
        self.keys()?;
        self.served(&sinks::names()).map(drop)
    }

    /// The keys of secrets; reads their file.
    ///
    /// # Errors
    /// When they can't be read or used.
    pub fn keys(&self) -> Result<Keys, Invalid> {
        Ok(self.secrets.read(Keys::parse)?)
    }

    /// As [`Config::check`], without the kinds.
    pub(crate) fn check_values(&self) -> Result<(), Invalid> {
        self.rates()?;
        let periods = [
            (
                "queue.integration-msg.pack-processing-timeout",
                self.queue.integration_msg.pack_processing_timeout,
            ),
            ("integrations.statistics.persist-frequency", self.integrations.statistics.persist_frequency),
            ("integrations.reinit.frequency", self.integrations.reinit.frequency),
            ("stats.ie.print-interval-ms", self.stats.ie.print_interval_ms),
            ("stats.system-info.persist-frequency", self.stats.system_info.persist_frequency),
            ("queue.integration-msg.poll-interval", self.queue.integration_msg.poll_interval),
        ];
        let zero = periods.iter().find(|(_, period)| *period == 0).map(|(name, _)| *name);
        let durations = [
            ("queue.integration-msg.commit-interval", self.queue.integration_msg.commit_interval),
            ("queue.integration-dlq.retention", self.queue.integration_dlq.retention),
            ("integrations.reinit.backoff", self.integrations.reinit.backoff),
            ("integrations.stalled-after", self.integrations.stalled_after),
        ];
        let zero =
            zero.or_else(|| durations.iter().find(|(_, duration)| duration.is_zero()).map(|(name, _)| *name));
        zero.map_or(Ok(()), |name| Err(Invalid::Zero(name)))
    }

    /// Of these kinds, the ones to be served.
    ///
    /// # Errors
    /// When a list names an unknown kind.
    pub fn served<'a>(&self, known: &[&'a str]) -> Result<Vec<&'a str>, Invalid> {
        let kinds = &self.service.integrations;
        let supported = named("supported", &kinds.supported, known)?;
        let excluded = named("excluded", &kinds.excluded, known)?;
        Ok(supported.into_iter().filter(|kind| !excluded.contains(kind)).collect())
    }

    /// The limit on error events; `None`: there is none.
    pub(crate) fn rates(&self) -> Result<Option<Rates>, InvalidRates> {
        let limits = &self.event.error.rate_limits;
        limits.enabled.then(|| limits.integration.parse()).transpose()
    }

    /// How long to wait for what is in flight when an integration stops.
    pub(crate) fn destroy_timeout(&self) -> Duration {
        let destroy = &self.integrations.destroy;
        let turns = destroy.graceful_timeout_ms.saturating_mul(destroy.count);
        Duration::from_millis(turns.min(destroy.forced_shutdown_timeout_ms))
    }

    /// The pause between two attempts to reach the bus for an integration.
    pub(crate) fn poll_interval(&self, delivery: &Delivery) -> Duration {
        let ours = Duration::from_millis(self.queue.integration_msg.poll_interval);
        delivery.poll_interval.unwrap_or(ours)
    }

    /// How an integration's messages are delivered: its own settings before ours, and ours before its kind's.
    pub(crate) fn pack(&self, document: &Document, kind: &dyn SinkKind) -> pack::Settings {
        let delivery = &document.delivery;
        let ours = &self.queue.integration_msg;
        let strategy = match ours.ack_strategy.r#type {
            StrategyType::SkipAll => AckStrategy::SkipAll,
            StrategyType::RetryAll => AckStrategy::RetryAll,
        };
        let pause = Duration::from_secs(ours.ack_strategy.pause_between_retries);
        let timeout = Duration::from_millis(ours.pack_processing_timeout);
        let strategy = delivery.ack_strategy.unwrap_or(strategy);
        let ordering = match delivery.ordering.unwrap_or_else(|| kind.ordering()) {
            // Nothing is tried again, and what is under way arrives in order: there is nothing to wait for.
            Ordering::Key
                if strategy == AckStrategy::SkipAll && kind.keeps_order(&document.client_configuration) =>
            {
                Ordering::None
            }
            ordering => ordering,
        };
        pack::Settings {
            strategy,
            retries: delivery.retries.unwrap_or(ours.ack_strategy.retries),
            pause: delivery.pause_between_retries.unwrap_or(pause),
            attempt_timeout: delivery.pack_processing_timeout.unwrap_or(timeout),
            ordering,
            dead_letters: delivery.dead_letter,
            window_messages: ours.window_messages.unwrap_or_else(|| kind.window()).get(),
            window_bytes: ours.window_bytes.get(),
        }
    }

    /// What sinks are told.
    pub(crate) fn sinks(&self) -> SinkSettings {
        SinkSettings {
            egress: Egress::new(
                self.integrations.allow_local_network_hosts,
                self.integrations.egress.allow.clone(),
                self.integrations.egress.deny.clone(),
            ),
            http_max_in_memory_buffer_kb: self.integrations.http.max_in_memory_buffer_kb,
            http_pool_max_connections: self.integrations.http.pool_max_connections,
            attempt_timeout: Duration::from_millis(self.queue.integration_msg.pack_processing_timeout),
            check_timeout: match self.integrations.init.connection_timeout_sec {
                0 => Duration::MAX,
                seconds => Duration::from_secs(seconds),
            },
        }
    }
}

fn named<'a>(list: &'static str, text: &str, known: &[&'a str]) -> Result<Vec<&'a str>, Invalid> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("ALL") {
        return Ok(known.to_vec());
    }
    if text.is_empty() || text.eq_ignore_ascii_case("NONE") {
        return Ok(Vec::new());
    }
    let find = |name: &str| {
        known.iter().copied().find(|kind| *kind == name).ok_or_else(|| Invalid::Kind {
            list,
            name: name.to_owned(),
            known: known.join(", "),
        })
    };
    text.split(',').map(str::trim).map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> sinks::http::Http {
        sinks::http::Http::new(SinkSettings::default())
    }

    fn document(delivery: Delivery) -> Document {
        let bare = r#"{"topicFilters":["a"],"clientConfiguration":{}}"#;
        Document { delivery, ..Document::parse_with(bare, |_| Vec::new()).unwrap() }
    }

    fn served(supported: &str, excluded: &str) -> Result<Vec<&'static str>, Invalid> {
        let mut config = Config::default();
        supported.clone_into(&mut config.service.integrations.supported);
        excluded.clone_into(&mut config.service.integrations.excluded);
        config.served(&["HTTP", "KAFKA"])
    }

    #[test]
    fn kinds_are_chosen_as_in_tbmq() {
        assert_eq!(served("all", "none"), Ok(vec!["HTTP", "KAFKA"]));
        assert_eq!(served("ALL", "KAFKA"), Ok(vec!["HTTP"]));
        assert_eq!(served(" KAFKA , HTTP", ""), Ok(vec!["KAFKA", "HTTP"]));
        assert_eq!(served("", "NONE"), Ok(vec![]));
        assert!(served("http", "").unwrap_err().to_string().contains("\"http\"; known are HTTP, KAFKA"));
    }

    #[test]
    fn every_environment_name_sets_a_key_of_the_tree() {
        let tree = serde_json::to_value(Config::default()).unwrap();
        for setting in SETTINGS {
            let pointer = format!("/{}", setting.key.replace('.', "/"));
            assert!(tree.pointer(&pointer).is_some(), "{}", setting.key);
        }
    }

    #[test]
    fn tbmqs_variables_are_read_with_their_units() {
        let environment =
            [("TB_IE_MSG_ACK_STRATEGY_TYPE", "RETRY_ALL"), ("TB_IE_MSG_PACK_PROCESSING_TIMEOUT", "500")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config: Config =
            tbmq_service::config::load_from(&[SETTINGS], None, environment.into_iter()).unwrap();
        let settings = config.pack(&document(Delivery::default()), &http());
        assert_eq!(settings.strategy, AckStrategy::RetryAll);
        assert_eq!(settings.attempt_timeout, Duration::from_millis(500));
        assert_eq!((settings.ordering, settings.dead_letters), (Ordering::None, false));
        let own = Delivery {
            ack_strategy: Some(AckStrategy::SkipAll),
            retries: Some(0),
            pause_between_retries: Some(Duration::from_secs(9)),
            pack_processing_timeout: Some(Duration::from_millis(7)),
            poll_interval: Some(Duration::from_millis(3)),
            ordering: Some(Ordering::Key),
            dead_letter: true,
        };
        let expected = pack::Settings {
            strategy: AckStrategy::SkipAll,
            retries: 0,
            pause: Duration::from_secs(9),
            attempt_timeout: Duration::from_millis(7),
            ordering: Ordering::Key,
            dead_letters: true,
            ..settings
        };
        assert_eq!(config.pack(&document(own.clone()), &http()), expected);
        assert_eq!(config.poll_interval(&own), Duration::from_millis(3));
        assert_eq!(config.poll_interval(&Delivery::default()), Duration::from_secs(1));
    }

    #[test]
    fn messages_of_a_key_wait_for_each_other_only_where_one_could_overtake() {
        let mqtt = sinks::mqtt::Mqtt::new(SinkSettings::default());
        let config = Config::default();
        let ordering = |strategy, kind: &dyn SinkKind| {
            let own = Delivery {
                ack_strategy: Some(strategy),
                ordering: Some(Ordering::Key),
                ..Delivery::default()
            };
            config.pack(&document(own), kind).ordering
        };
        assert_eq!(ordering(AckStrategy::SkipAll, &mqtt), Ordering::None);
        assert_eq!(ordering(AckStrategy::RetryAll, &mqtt), Ordering::Key);
        assert_eq!(ordering(AckStrategy::SkipAll, &http()), Ordering::Key);
    }

    #[test]
    fn networks_are_lists_and_bad_ones_are_named() {
        let read = |name: &str, value: &str| {
            let environment = [(name.to_owned(), value.to_owned())];
            tbmq_service::config::load_from::<Config>(&[SETTINGS], None, environment.into_iter())
        };
        let egress = read("TBMQ_IE_EGRESS_DENY", "10.0.0.0/8, fd00::1").unwrap().sinks().egress;
        assert!(egress.check("10.1.1.1".parse().unwrap()).is_err());
        assert!(egress.check("fd00::2".parse().unwrap()).is_ok());
        let error = format!(
            "{:#}",
            anyhow::Error::from(read("TBMQ_IE_EGRESS_ALLOW", "10.0.0.0/8,here").unwrap_err())
        );
        assert!(error.contains("TBMQ_IE_EGRESS_ALLOW") && error.contains("here"), "{error}");
    }

    #[test]
    fn bad_values_are_named() {
        let mut config = Config::default();
        config.event.error.rate_limits.integration = "x".to_owned();
        assert!(config.check().unwrap_err().to_string().starts_with("event.error.rate-limits.integration"));
        let mut config = Config::default();
        config.integrations.reinit.frequency = 0;
        assert_eq!(config.check(), Err(Invalid::Zero("integrations.reinit.frequency")));
        let mut config = Config::default();
        config.integrations.stalled_after = Duration::ZERO;
        assert_eq!(config.check(), Err(Invalid::Zero("integrations.stalled-after")));
        let mut config = Config::default();
        config.service.integrations.excluded = "SMTP".to_owned();
        assert!(config.check().unwrap_err().to_string().starts_with("service.integrations.excluded"));
        assert_eq!(Config::default().check(), Ok(()));
    }
}
