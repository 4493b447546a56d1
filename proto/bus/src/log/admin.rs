//! The administrator.

use async_trait::async_trait;

use super::{Log, append::Job, partition::Topic};
use crate::{
    Admin, Bounds, ClusterInfo, Commit, Error, GroupDetails, TopicDetails, TopicInfo, TopicPartition,
    TopicSpec,
};

/// The administrator of a log.
#[derive(Debug)]
pub(super) struct LogAdmin(pub(super) Log);

/// A topic's number is never given twice, and is stored with it.
fn info(topic: &Topic) -> TopicInfo {
    TopicInfo {
        name: topic.name.to_string(),
        partitions: topic.partitions.len() as u32,
        id: topic.id.to_string(),
    }
}

#[async_trait]
impl Admin for LogAdmin {
    async fn create_topics(&self, specs: &[TopicSpec]) -> Vec<Result<bool, Error>> {
        let asked = specs.to_vec();
        match self.0.ask(|reply| Job::CreateTopics { specs: asked, reply }).await {
            Ok(results) => results,
            Err(error) => vec![Err(error); specs.len()],
        }
    }

    async fn delete_topic(&self, name: &str) -> Result<bool, Error> {
        let name = name.to_owned();
        self.0.ask(|reply| Job::DeleteTopic { name, reply }).await
    }

    async fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicInfo>>, Error> {
        Ok(names.iter().map(|name| self.0.core.topic(name).map(|topic| info(&topic))).collect())
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, Error> {
        let mut found: Vec<_> = self.0.core.topics.read().values().map(|topic| info(topic)).collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>, Error> {
        let bounds = |name: &TopicPartition| {
            let positions = self.0.core.partition(name)?.positions();
            Ok(Bounds { start: positions.start, end: positions.next })
        };
        partitions.iter().map(bounds).collect()
    }

    async fn delete_records(&self, partition: &TopicPartition, before: u64) -> Result<(), Error> {
        let partition = self.0.core.partition(partition)?;
        self.0.ask(|reply| Job::AdvanceStart { partition, start: before, reply }).await
    }

    async fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        Ok(self.0.committed(group, partitions))
    }

    async fn cluster(&self) -> Result<ClusterInfo, Error> {
        self.0.look(super::Core::cluster).await
    }

    async fn topic_details(&self) -> Result<Vec<TopicDetails>, Error> {
        self.0.look(super::Core::topic_details).await
    }

    async fn groups(&self) -> Result<Vec<GroupDetails>, Error> {
        Ok(self.0.core.group_details())
    }

    async fn group_commits(&self, groups: &[&str]) -> Vec<Result<Vec<Commit>, Error>> {
        groups.iter().map(|group| Ok(self.0.core.group_commits(group))).collect()
    }

    async fn delete_group(&self, name: &str) -> Result<bool, Error> {
        let name = name.to_owned();
        self.0.ask(|reply| Job::DeleteGroup { name, reply }).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.0.ask(|reply| Job::Ping { reply }).await
    }
}
