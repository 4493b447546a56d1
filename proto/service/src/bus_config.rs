//! The settings of Kafka that every plane shares, under TBMQ's names and in TBMQ's tree.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{config::Setting, shell::Misconfigured};

/// How to reach Kafka, at key `queue.kafka`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KafkaSettings {
    /// Where the brokers are.
    pub bootstrap: Bootstrap,
    /// Text before every topic, group and client id; must be the same on all planes.
    pub kafka_prefix: String,
    /// Properties for every client.
    pub default: DefaultProperties,
    /// Replicas of each partition of the topics that are created; with 1 (warned about) the loss of a broker loses records.
    pub replication_factor: u16,
    /// Whether TBMQ may delete topics: those of integrations that were deleted or are disabled for too long, and orphans
    /// by `KafkaService`. `false` keeps them all, with what they hold.
    pub enable_topic_deletion: bool,
}

impl KafkaSettings {
    /// Environment names.
    pub const SETTINGS: &'static [Setting] = &[
        Setting { env: "TB_KAFKA_SERVERS", key: "queue.kafka.bootstrap.servers" },
        Setting { env: "TB_KAFKA_PREFIX", key: "queue.kafka.kafka-prefix" },
        Setting { env: "TB_KAFKA_DEFAULT_PRODUCER_CONSUMER_CONFIG", key: "queue.kafka.default.config" },
        Setting { env: "TBMQ_REPLICATION_FACTOR", key: "queue.kafka.replication-factor" },
        Setting { env: "TB_KAFKA_ENABLE_TOPIC_DELETION", key: "queue.kafka.enable-topic-deletion" },
    ];

    /// The brokers as `host:port,...`, if Kafka is to be used.
    pub fn servers(&self) -> Option<&str> {
        self.bootstrap.servers.as_deref().map(str::trim).filter(|servers| !servers.is_empty())
    }

    /// The brokers, for a program that can't do without.
    pub fn required_servers(&self) -> Result<&str, Misconfigured> {
        self.servers().ok_or_else(|| {
            Misconfigured::new(
                "TB_KAFKA_SERVERS is not set: a single plane needs Kafka, such as \
                 TB_KAFKA_SERVERS=localhost:9092; `tbmq` runs all planes in one process without it",
            )
        })
    }

    /// Properties for every client in TBMQ's form `name:value;name:value`.
    pub fn properties(&self) -> &str {
        &self.default.config
    }
}

impl Default for KafkaSettings {
    fn default() -> Self {
        Self {
            bootstrap: Bootstrap::default(),
            kafka_prefix: String::new(),
            default: DefaultProperties::default(),
            replication_factor: 1,
            enable_topic_deletion: true,
        }
    }
}

/// Where the brokers are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bootstrap {
    /// Kafka's brokers, `host:port,...`; absent: no Kafka, which only `tbmq` can do without.
    pub servers: Option<String>,
}

/// Properties for every client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DefaultProperties {
    /// Properties of librdkafka for every client: `name:value;name:value`, `\;` for a semicolon within a value.
    pub config: String,
}
