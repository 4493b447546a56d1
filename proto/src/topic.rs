//! The one table of topics: names, keys, values, partitions, policies, groups and client ids.
//!
//! | topic | key | value | written by | read by |
//! |---|---|---|---|---|
//! | `tbmq.ie.downlink.<kind>` (compact) | `<id>` or `<id>/<shard>`; a validation request: its request id | `DownlinkIntegrationMsgProto` | control plane | executors |
//! | `tbmq.ie.uplink` | `<id>` | `UplinkIntegrationMsgProto` | executors | control planes, shared |
//! | `tbmq.ie.uplink.notifications.<service id>` | request id | `UplinkIntegrationNotificationMsgProto` | executors | that control plane |
//! | `tbmq.msg.ie.<integration id>` | MQTT topic | `PublishIntegrationMsgProto` | data planes | the shard's executor |
//! | `tbmq.ie.dlq.<integration id>` | as the message | as the message | executors | operators |
//! | `tbmq.integration.subscriptions` (compact) | `<id>` | `ClientSubscriptionsProto` | control plane | data planes |
//! | `tbmq.node.applied` (compact) | service id | `NodeApplied` | every node | control planes |
//! | `tbmq.ie.kinds` (compact) | kind | `KindAnnouncement` | executors | control planes |
//! | `tbmq.msg.retained` (compact) | MQTT topic | `RetainedMsgProto` | data planes | data planes |
//! | `tbmq.ie.owner` (compact) | `<kind>/<partition>` | `OwnerClaim` | executors | executors, control planes |
//! | `tbmq.client.session` (compact) | client id | `ClientSessionInfoProto` | data planes | data planes |
//! | `tbmq.client.subscriptions` (compact) | client id | `ClientSubscriptionsProto` | data planes | data planes |
//! | `tbmq.client.blocked` (compact) | type, target and value | `BlockedClientProto` | control plane | data planes |
//! | `tbmq.auth.credentials` (compact) | `<id>` | `CredentialsRecord` | control plane | data planes |
//! | `tbmq.auth.settings` (compact) | `providers`, `provider/<TYPE>`, `secrets` | `AuthSetting` | control plane | data planes |
//! | `tbmq.auth.unauthorized` | client id | `UnauthorizedRecord` | data planes | control planes |
//!
//! Records of configuration carry the header [`REVISION_HEADER`]. Names come with the prefix of
//! `TB_KAFKA_PREFIX`, which [`Catalogue`] holds.

mod role;

use crate::ids::{IntegrationId, Kind, ServiceId};

pub use self::role::{GroupRole, Role};

/// Header of every configuration record: the revision in decimal text.
pub const REVISION_HEADER: &str = "revision";

/// Header of a record of a retained message that expires: seconds from its `createdTime`, 4 bytes, big-endian.
pub const MESSAGE_EXPIRY_HEADER: &str = "messageExpiryInterval";

/// Header of records that data planes write for each other: the service id of the one that wrote it.
pub const SERVICE_ID_HEADER: &str = "serviceId";

/// Partitions of a downlink topic.
pub const DOWNLINK_PARTITIONS: u32 = 48;

/// Partitions of `tbmq.ie.uplink`.
pub const UPLINK_PARTITIONS: u32 = 6;

/// Partitions of `tbmq.auth.credentials`: a million records are read in parallel.
pub const CREDENTIALS_PARTITIONS: u32 = 12;

/// How a topic keeps its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// By age and size.
    Delete,
    /// The latest record of each key.
    Compact,
}

/// A topic as it is to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Full name, prefix included.
    pub name: String,
    /// Number of partitions.
    pub partitions: u32,
    /// How it keeps its records.
    pub policy: Policy,
    /// Further settings under Kafka's names.
    pub settings: Vec<(&'static str, &'static str)>,
}

const WEEK: (&str, &str) = ("retention.ms", "604800000");
const SEGMENT: (&str, &str) = ("segment.bytes", "26214400");
const COMPACT_SEGMENT: (&str, &str) = ("segment.ms", "3600000");
const COMPACT_LAG: (&str, &str) = ("max.compaction.lag.ms", "86400000");

/// Names of topics, groups and clients under one prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    prefix: String,
}

impl Catalogue {
    /// The catalogue under a prefix (`TB_KAFKA_PREFIX`; empty by default).
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// Configuration and validation requests for executors of a kind.
    pub fn downlink(&self, kind: &Kind) -> Topic {
        self.compact(&format!("tbmq.ie.downlink.{}", kind.as_str().to_ascii_lowercase()), DOWNLINK_PARTITIONS)
    }

    /// Events of executors.
    pub fn uplink(&self) -> Topic {
        self.delete("tbmq.ie.uplink", UPLINK_PARTITIONS)
    }

    /// Replies to one control plane.
    pub fn uplink_notifications(&self, control_plane: &ServiceId) -> Topic {
        self.delete(&format!("tbmq.ie.uplink.notifications.{control_plane}"), 1)
    }

    /// Messages of one integration; one partition per shard. Kept for 7 days without a limit of bytes.
    pub fn messages(&self, integration: IntegrationId, shards: u32) -> Topic {
        self.delete(&Self::messages_stem(integration), shards.max(1))
    }

    /// The integration whose messages this topic holds, if it is a message topic.
    pub fn integration_of_messages(&self, topic: &str) -> Option<IntegrationId> {
        topic.strip_prefix(&self.prefix)?.strip_prefix("tbmq.msg.ie.")?.parse().ok()
    }

    fn messages_stem(integration: IntegrationId) -> String {
        format!("tbmq.msg.ie.{integration}")
    }

    /// Dead letters of one integration.
    pub fn dead_letters(&self, integration: IntegrationId) -> Topic {
        self.delete(&format!("tbmq.ie.dlq.{integration}"), 1)
    }

    /// Topic filters of integrations.
    pub fn integration_subscriptions(&self) -> Topic {
        self.compact("tbmq.integration.subscriptions", 1)
    }

    /// Sessions of clients.
    pub fn client_sessions(&self) -> Topic {
        self.compact("tbmq.client.session", 1)
    }

    /// Topic filters of clients.
    pub fn client_subscriptions(&self) -> Topic {
        self.compact("tbmq.client.subscriptions", 1)
    }

    /// Retained messages.
    pub fn retained(&self) -> Topic {
        self.compact("tbmq.msg.retained", 1)
    }

    /// Clients that may not connect.
    pub fn blocked_clients(&self) -> Topic {
        self.compact("tbmq.client.blocked", 1)
    }

    /// Credentials of clients.
    pub fn credentials(&self) -> Topic {
        self.compact("tbmq.auth.credentials", CREDENTIALS_PARTITIONS)
    }

    /// How clients prove who they are.
    pub fn auth_settings(&self) -> Topic {
        self.compact("tbmq.auth.settings", 1)
    }

    /// Clients that were refused.
    pub fn unauthorized_clients(&self) -> Topic {
        self.delete("tbmq.auth.unauthorized", 1)
    }

    /// What nodes have applied.
    pub fn node_applied(&self) -> Topic {
        self.compact("tbmq.node.applied", 1)
    }

    /// Kinds that executors announce.
    pub fn kinds(&self) -> Topic {
        self.compact("tbmq.ie.kinds", 1)
    }

    /// Ownership claims.
    pub fn owners(&self) -> Topic {
        self.compact("tbmq.ie.owner", 1)
    }

    /// Key of an ownership claim.
    pub fn owner_key(kind: &Kind, partition: u32) -> String {
        format!("{kind}/{partition}")
    }

    /// Group of the executors of a kind.
    pub fn downlink_group(&self, kind: &Kind) -> String {
        self.named(&format!("{}-ie-downlink-consumer-group", kind.as_str().to_ascii_lowercase()))
    }

    /// The one group under which executors commit message offsets.
    pub fn messages_group(&self) -> String {
        self.named("ie-msg-consumer-group")
    }

    /// Group of the control planes on `tbmq.ie.uplink`.
    pub fn uplink_group(&self) -> String {
        self.named("ie-uplink-consumer-group")
    }

    /// A client id: `<prefix><what>-<service id>`, such as `ie-msg-producer-tbmq1`.
    pub fn client_id(&self, what: &str, service: &ServiceId) -> String {
        self.named(&format!("{what}-{service}"))
    }

    /// Group of the control planes on `tbmq.auth.unauthorized`.
    pub fn unauthorized_group(&self) -> String {
        self.named("unauthorized-client-consumer-group")
    }

    /// The name of the relayer's fenced writer.
    pub fn relayer(&self) -> String {
        self.named("integration-relayer")
    }

    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn delete(&self, name: &str, partitions: u32) -> Topic {
        Topic { name: self.named(name), partitions, policy: Policy::Delete, settings: vec![WEEK, SEGMENT] }
    }

    fn compact(&self, name: &str, partitions: u32) -> Topic {
        let settings = vec![SEGMENT, COMPACT_SEGMENT, COMPACT_LAG];
        Topic { name: self.named(name), partitions, policy: Policy::Compact, settings }
    }
}
