//! Settings of sessions that outlive their connections, under TBMQ's names (spec §1.8, §2.5).

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_mqtt::session::NEVER_S;

use crate::session_store;

/// How long sessions live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SessionExpiryConfig {
    /// The longest session expiry interval that a 5.0 client gets, in seconds; 4294967295: whatever it wants.
    pub max_expiry_interval: u32,
    /// How long the session of a 3.x client without `clean session` outlives its connection, in seconds; 0 or less:
    /// for ever.
    pub ttl: i64,
}

impl Default for SessionExpiryConfig {
    fn default() -> Self {
        Self { max_expiry_interval: 604_800, ttl: 604_800 }
    }
}

impl SessionExpiryConfig {
    pub(crate) fn v3_s(&self) -> u32 {
        if self.ttl <= 0 { NEVER_S } else { u32::try_from(self.ttl).unwrap_or(NEVER_S) }
    }
}

/// What is kept for clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PersistentSessionConfig {
    /// Of clients of the type DEVICE.
    pub device: DeviceConfig,
}

/// What is kept for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceConfig {
    /// Its queue.
    pub persisted_messages: PersistedMessagesConfig,
}

/// The queue of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PersistedMessagesConfig {
    /// Messages that may wait for one client; at the limit the oldest that wait are dropped.
    pub limit: NonZeroU64,
    /// How long a message waits, in seconds.
    pub ttl: NonZeroU32,
    /// Bytes that may wait for one client; at the limit the oldest that wait are dropped.
    pub bytes_max: NonZeroU64,
    /// Bytes that may wait for all clients; at the limit a message that would be kept is dropped.
    pub total_bytes_max: NonZeroU64,
    /// Bytes of messages on their way into queues; at the limit a publish for one is refused (0x97).
    pub in_flight_bytes_max: NonZeroUsize,
}

impl Default for PersistedMessagesConfig {
    fn default() -> Self {
        Self {
            limit: NonZeroU64::new(10_000).expect("not 0"),
            ttl: NonZeroU32::new(604_800).expect("not 0"),
            bytes_max: NonZeroU64::new(64 << 20).expect("not 0"),
            total_bytes_max: NonZeroU64::new(1 << 30).expect("not 0"),
            in_flight_bytes_max: NonZeroUsize::new(64 << 20).expect("not 0"),
        }
    }
}

impl PersistedMessagesConfig {
    pub(crate) fn limits(&self) -> session_store::Limits {
        session_store::Limits {
            records: self.limit.get(),
            bytes: self.bytes_max.get(),
            ttl_ms: i64::from(self.ttl.get()) * 1000,
            total_bytes: self.total_bytes_max.get(),
        }
    }
}
