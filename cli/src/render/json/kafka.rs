//! Brokers, topics, consumer groups and lags.

use std::collections::BTreeMap;

use serde::Serialize;
use tbmq_proto::control::{self, TopicOwner};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cluster {
    cluster_id: String,
    kind: String,
    topic_deletion_enabled: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    sizes_unknown_reason: String,
    brokers: Vec<Broker>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Broker {
    id: i32,
    address: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    rack: String,
    controller: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
}

impl From<&control::Cluster> for Cluster {
    fn from(from: &control::Cluster) -> Self {
        let broker = |broker: &control::Broker| Broker {
            id: broker.id,
            address: broker.address.clone(),
            rack: broker.rack.clone(),
            controller: broker.controller,
            size_bytes: broker.size_bytes,
        };
        Self {
            cluster_id: from.cluster_id.clone(),
            kind: from.kind.clone(),
            topic_deletion_enabled: from.topic_deletion_enabled,
            sizes_unknown_reason: from.sizes_unknown_reason.clone(),
            brokers: from.brokers.iter().map(broker).collect(),
        }
    }
}

/// The word for an owner.
pub(crate) fn owner(topic: &control::Topic) -> &'static str {
    match topic.owner() {
        TopicOwner::System => "SYSTEM",
        TopicOwner::Integration => "INTEGRATION",
        TopicOwner::Orphan => "ORPHAN",
        TopicOwner::Foreign => "FOREIGN",
        TopicOwner::Kafka => "KAFKA",
        TopicOwner::Unspecified => "UNKNOWN",
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Topic {
    name: String,
    topic: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    topic_id: String,
    owner: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    purpose: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    integration: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    integration_display_name: String,
    partition_count: u32,
    replication_factor: u32,
    under_replicated_count: u32,
    offline_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    configs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    partitions: Vec<Partition>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Partition {
    partition: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<i32>,
    replicas: Vec<i32>,
    in_sync_replicas: Vec<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
}

impl From<&control::Topic> for Topic {
    fn from(from: &control::Topic) -> Self {
        let partition = |partition: &control::TopicPartition| Partition {
            partition: partition.partition,
            leader: partition.leader,
            replicas: partition.replicas.clone(),
            in_sync_replicas: partition.in_sync_replicas.clone(),
            size_bytes: partition.size_bytes,
        };
        Self {
            name: from.name.clone(),
            topic: from.topic.clone(),
            topic_id: from.topic_id.clone(),
            owner: owner(from),
            purpose: from.purpose.clone(),
            integration: from.integration.clone(),
            integration_display_name: from.integration_display_name.clone(),
            partition_count: from.partition_count,
            replication_factor: from.replication_factor,
            under_replicated_count: from.under_replicated_count,
            offline_count: from.offline_count,
            size_bytes: from.size_bytes,
            configs: from.configs.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            partitions: from.partitions.iter().map(partition).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Group {
    name: String,
    group_id: String,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    assignor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    coordinator: Option<i32>,
    member_count: u32,
    lag_messages: u64,
    system: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    purpose: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    undeletable_reason: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<Member>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    partitions: Vec<PartitionLag>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    member_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    instance_id: String,
    client_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    host: String,
    assignments: Vec<Assignment>,
}

#[derive(Debug, Serialize)]
struct Assignment {
    topic: String,
    partitions: Vec<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PartitionLag {
    topic: String,
    partition: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_offset: Option<u64>,
    start_offset: u64,
    end_offset: u64,
    lag_messages: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    client_id: String,
}

impl From<&control::ConsumerGroup> for Group {
    fn from(from: &control::ConsumerGroup) -> Self {
        let assignment = |one: &control::consumer_group::Assignment| Assignment {
            topic: one.topic.clone(),
            partitions: one.partitions.clone(),
        };
        let member = |one: &control::consumer_group::Member| Member {
            member_id: one.member_id.clone(),
            instance_id: one.instance_id.clone(),
            client_id: one.client_id.clone(),
            host: one.host.clone(),
            assignments: one.assignments.iter().map(assignment).collect(),
        };
        let partition = |one: &control::consumer_group::PartitionLag| PartitionLag {
            topic: one.topic.clone(),
            partition: one.partition,
            committed_offset: one.committed_offset,
            start_offset: one.start_offset,
            end_offset: one.end_offset,
            lag_messages: one.lag_messages,
            client_id: one.client_id.clone(),
        };
        Self {
            name: from.name.clone(),
            group_id: from.group_id.clone(),
            state: from.state.clone(),
            assignor: from.assignor.clone(),
            coordinator: from.coordinator,
            member_count: from.member_count,
            lag_messages: from.lag_messages,
            system: from.system,
            purpose: from.purpose.clone(),
            undeletable_reason: from.undeletable_reason.clone(),
            members: from.members.iter().map(member).collect(),
            partitions: from.partitions.iter().map(partition).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GroupLag {
    group_id: String,
    topic: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    integration: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    integration_display_name: String,
    lag_messages: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_seconds: Option<f64>,
}

impl From<&control::GroupLag> for GroupLag {
    fn from(from: &control::GroupLag) -> Self {
        Self {
            group_id: from.group_id.clone(),
            topic: from.topic.clone(),
            integration: from.integration.clone(),
            integration_display_name: from.integration_display_name.clone(),
            lag_messages: from.lag_messages,
            lag_seconds: from.lag_seconds,
        }
    }
}
