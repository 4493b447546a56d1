//! Sizes and times of the simulated deployment: small, so that limits are reached and time is short.

use std::time::Duration;

/// The wall clock at virtual time 0, epoch ms.
pub(crate) const EPOCH_MS: i64 = 1_700_000_000_000;

/// A member of a group that is silent for so long loses its partitions.
pub(crate) const SESSION: Duration = Duration::from_secs(6);

/// Partitions of the downlink topic.
pub(crate) const DOWNLINK_PARTITIONS: u32 = 4;

/// Partitions of the topic of events.
pub(crate) const UPLINK_PARTITIONS: u32 = 2;

/// Integrations that the operator plays with.
pub(crate) const INTEGRATIONS: usize = 3;

/// Validations that a control plane has pending, at most.
pub(crate) const VALIDATIONS_MAX: usize = 4;

/// Messages of a partition in flight, at most.
pub(crate) const WINDOW: usize = 4;

/// Deliveries that a lane has waiting, at most; then its partition is paused.
pub(crate) const CREDITS: usize = 3;

/// Shards of a downlink partition, at most.
pub(crate) const SHARDS_MAX: usize = 16;

/// Events of an executor that wait, at most.
pub(crate) const EVENTS_MAX: usize = 256;

/// Requests of control planes that wait at an executor, at most.
pub(crate) const REQUESTS_MAX: usize = 4;

/// A request of one process to the bus is carried out within this time, unless the process is frozen.
pub(crate) const CALL_MAX: Duration = Duration::from_millis(1000);

/// How long a shard may take to stop.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A shard through which nothing gets for so long is reported.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(5);

/// A disabled integration is parked after this time.
pub(crate) const PARK_AFTER: Duration = Duration::from_secs(15);
