//! What an administrator sees of a bus: brokers, topics as they lie there, groups and their members.

use crate::TopicPartition;

/// The brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    /// The cluster's id; empty when it has none.
    pub id: String,
    /// Which adapter it is: `KAFKA`, `EMBEDDED` or `MEMORY`.
    pub kind: &'static str,
    /// Brokers by their ids.
    pub brokers: Vec<BrokerInfo>,
    /// Why sizes are not known, here and in [`TopicDetails`]; empty when they are.
    pub sizes_unknown: String,
}

/// A broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its id.
    pub id: i32,
    /// `host:port`; empty when it has none.
    pub address: String,
    /// Where it stands, if it says so.
    pub rack: String,
    /// Whether it is the controller, as far as clients are told.
    pub is_controller: bool,
    /// Bytes of all replicas on it.
    pub size_bytes: Option<u64>,
}

/// A topic as it lies in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicDetails {
    /// Its name.
    pub name: String,
    /// As in [`crate::TopicInfo::id`].
    pub id: String,
    /// Whether it is the bus's own.
    pub is_internal: bool,
    /// Partitions by index.
    pub partitions: Vec<PartitionDetails>,
    /// Settings of its own, which override the cluster's defaults, by name.
    pub settings: Vec<(String, String)>,
}

/// A partition as it lies in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionDetails {
    /// Id of the broker that leads it.
    pub leader: Option<i32>,
    /// Ids of the brokers that have it.
    pub replicas: Vec<i32>,
    /// Ids of those whose replica is up to date.
    pub in_sync: Vec<i32>,
    /// Bytes of all replicas.
    pub size_bytes: Option<u64>,
}

/// A consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDetails {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: GroupState,
    /// How partitions are shared, such as `cooperative-sticky`; empty when it has no members.
    pub assignor: String,
    /// Id of the broker that keeps it.
    pub coordinator: Option<i32>,
    /// Its members; none of a group that only keeps commits.
    pub members: Vec<GroupMember>,
}

/// How a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members.
    Empty,
    /// Its members know what they hold.
    Stable,
    /// Members come or go.
    PreparingRebalance,
    /// Partitions are being shared anew.
    CompletingRebalance,
    /// It is being removed.
    Dead,
    /// The cluster does not say.
    Unknown,
}

impl GroupState {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::Empty,
        Self::Stable,
        Self::PreparingRebalance,
        Self::CompletingRebalance,
        Self::Dead,
        Self::Unknown,
    ];

    /// Its name, such as `PREPARING_REBALANCE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "EMPTY",
            Self::Stable => "STABLE",
            Self::PreparingRebalance => "PREPARING_REBALANCE",
            Self::CompletingRebalance => "COMPLETING_REBALANCE",
            Self::Dead => "DEAD",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// A member of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id within the group.
    pub id: String,
    /// Its own id, if it is a static member.
    pub instance_id: Option<String>,
    /// Client id.
    pub client_id: String,
    /// Where it connects from; empty within a process.
    pub host: String,
    /// What it holds, in order.
    pub partitions: Vec<TopicPartition>,
}
