//! What lies in the log: topics with their sizes, groups with their members.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Core,
    partition::{Measured, Partition, Topic, bytes_before},
};
use crate::{
    BrokerInfo, CleanupPolicy, ClusterInfo, Commit, Error, GroupDetails, GroupState, PartitionDetails,
    TopicDetails,
};

/// The one broker's id.
const BROKER: i32 = 0;

/// How [`super::group`] shares partitions, by the name of what it is like.
const ASSIGNOR: &str = "cooperative-sticky";

impl Core {
    pub(super) fn cluster(&self) -> Result<ClusterInfo, Error> {
        let size = match self.storage.disk_bytes().map_err(Error::Unavailable)? {
            Some(bytes) => bytes,
            None => self
                .topic_details()?
                .iter()
                .flat_map(|topic| &topic.partitions)
                .filter_map(|one| one.size_bytes)
                .sum(),
        };
        let broker =
            BrokerInfo { id: BROKER, is_controller: true, size_bytes: Some(size), ..BrokerInfo::default() };
        let kind = if self.storage.is_durable() { "EMBEDDED" } else { "MEMORY" };
        Ok(ClusterInfo { kind, brokers: vec![broker], ..ClusterInfo::default() })
    }

    pub(super) fn topic_details(&self) -> Result<Vec<TopicDetails>, Error> {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        topics.iter().map(|topic| self.details(topic)).collect()
    }

    fn details(&self, topic: &Topic) -> Result<TopicDetails, Error> {
        let partition = |partition: &Arc<Partition>| {
            Ok(PartitionDetails {
                leader: Some(BROKER),
                replicas: vec![BROKER],
                in_sync: vec![BROKER],
                size_bytes: Some(self.size(partition, topic.limits.policy)?),
            })
        };
        let policy = match topic.limits.policy {
            CleanupPolicy::Delete => "delete",
            CleanupPolicy::Compact => "compact",
        };
        let mut settings: BTreeMap<String, String> = topic.settings.iter().cloned().collect();
        settings.insert("cleanup.policy".to_owned(), policy.to_owned());
        Ok(TopicDetails {
            name: topic.name.to_string(),
            id: topic.id.to_string(),
            is_internal: false,
            partitions: topic.partitions.iter().map(partition).collect::<Result<_, Error>>()?,
            settings: settings.into_iter().collect(),
        })
    }

    /// Bytes of the records that are kept. Those of a compacted partition are added up once after each compaction.
    fn size(&self, partition: &Arc<Partition>, policy: CleanupPolicy) -> Result<u64, Error> {
        let positions = partition.positions();
        if positions.start == positions.next {
            return Ok(0);
        }
        let (removals, measured) = partition.measured();
        let written = self.newest(partition)?;
        if policy == CleanupPolicy::Delete {
            let first = self.read(partition, positions.start, positions.next, 1)?;
            return Ok(first.first().map_or(0, |(_, bytes)| written.saturating_sub(bytes_before(bytes))));
        }
        let size = if let Some(known) = measured {
            known.size + written.saturating_sub(known.written)
        } else {
            let mut size = 0;
            self.each(partition, positions.start, positions.next, |records| {
                size += records.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
                Ok(())
            })?;
            size
        };
        partition.remember(Measured { removals, written, size });
        Ok(size)
    }

    pub(super) fn group_details(&self) -> Vec<GroupDetails> {
        let empty = |name: &String| GroupDetails {
            name: name.clone(),
            state: GroupState::Empty,
            assignor: String::new(),
            coordinator: Some(BROKER),
            members: Vec::new(),
        };
        let commits = self.commits.lock();
        let with_commits = commits.iter().filter(|(_, commits)| !commits.is_empty());
        let mut found: BTreeMap<String, GroupDetails> =
            with_commits.map(|(name, _)| (name.clone(), empty(name))).collect();
        drop(commits);
        for (name, group) in self.groups.lock().iter().filter(|(_, group)| !group.is_empty()) {
            let details = found.entry(name.clone()).or_insert_with(|| empty(name));
            ASSIGNOR.clone_into(&mut details.assignor);
            (details.state, details.members) = group.describe();
        }
        found.into_values().collect()
    }

    pub(super) fn group_commits(&self, group: &str) -> Vec<Commit> {
        let commits = self.commits.lock();
        let Some(commits) = commits.get(group) else { return Vec::new() };
        let topics = self.topics.read();
        let by_id: BTreeMap<_, _> = topics.values().map(|topic| (topic.id, topic)).collect();
        let mut found: Vec<Commit> = commits
            .iter()
            .filter_map(|((topic, partition), (offset, metadata))| {
                let partition = by_id.get(topic)?.partitions.get(*partition as usize)?.name.clone();
                Some(Commit { partition, offset: *offset, metadata: metadata.clone() })
            })
            .collect();
        found.sort_by(|one, other| one.partition.cmp(&other.partition));
        found
    }
}
