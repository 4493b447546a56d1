//! Topics as they lie in the cluster, with their owners.

use std::sync::Arc;

use tbmq_bus::{PartitionDetails, TopicDetails};
use tbmq_proto::{
    control::{Topic, TopicOwner, TopicPartition},
    topic::Catalogue,
};
use tonic::Status;

use super::{bus_failure, owners::Owners, topic_name};
use crate::plane::Plane;

/// All topics by name, with their partitions.
pub(super) async fn look(plane: Arc<Plane>) -> Result<Vec<Topic>, Status> {
    // Owners last: an integration is in SQL before its topic is made.
    let topics = plane.admin.topic_details().await.map_err(bus_failure)?;
    let owners = Owners::read(&plane.store).await?;
    Ok(topics.into_iter().map(|topic| show(topic, &owners, &plane.catalogue)).collect())
}

fn show(topic: TopicDetails, owners: &Owners, catalogue: &Catalogue) -> Topic {
    let role = catalogue.role_of(&topic.name);
    let owner = if topic.is_internal { TopicOwner::Kafka } else { owners.of(role.as_ref()) };
    let integration = role.as_ref().and_then(tbmq_proto::topic::Role::integration);
    let count = |holds: fn(&PartitionDetails) -> bool| {
        topic.partitions.iter().filter(|partition| holds(partition)).count() as u32
    };
    Topic {
        name: topic_name(&topic.name),
        partition_count: topic.partitions.len() as u32,
        replication_factor: topic.partitions.first().map_or(0, |first| first.replicas.len() as u32),
        under_replicated_count: count(|partition| partition.in_sync.len() < partition.replicas.len()),
        offline_count: count(|partition| partition.leader.is_none()),
        // Of a sum, every part must be known.
        size_bytes: topic.partitions.iter().map(|partition| partition.size_bytes).sum(),
        owner: owner.into(),
        purpose: role.map(|role| role.purpose()).unwrap_or_default(),
        integration: integration.map(|id| format!("integrations/{id}")).unwrap_or_default(),
        integration_display_name: integration
            .and_then(|id| owners.names.get(&id).cloned())
            .unwrap_or_default(),
        partitions: (0..)
            .zip(&topic.partitions)
            .map(|(index, partition)| show_partition(index, partition))
            .collect(),
        configs: topic.settings.into_iter().collect(),
        topic_id: topic.id,
        topic: topic.name,
    }
}

fn show_partition(index: u32, partition: &PartitionDetails) -> TopicPartition {
    TopicPartition {
        partition: index,
        leader: partition.leader,
        replicas: partition.replicas.clone(),
        in_sync_replicas: partition.in_sync.clone(),
        size_bytes: partition.size_bytes,
    }
}
