//! The administrator.

use async_trait::async_trait;

use super::{Log, append::Job, partition::Topic};
use crate::{Admin, Bounds, Commit, Error, TopicInfo, TopicPartition, TopicSpec};

/// Partitions of a topic, at most.
const PARTITIONS: u32 = 10_000;

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
    async fn create_topic(&self, spec: &TopicSpec) -> Result<bool, Error> {
        let is_legal = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if spec.name.is_empty() || spec.name.len() > 249 || !spec.name.chars().all(is_legal) {
            let text = "1 to 249 letters, digits, dots, underscores and hyphens";
            return Err(Error::Refused(format!("the name of a topic has {text}, not {:?}", spec.name)));
        }
        if spec.partitions == 0 || spec.partitions > PARTITIONS {
            let text =
                format!("topic {} can't have {} partitions: 1 to {PARTITIONS}", spec.name, spec.partitions);
            return Err(Error::Refused(text));
        }
        let spec = spec.clone();
        self.0.ask(|reply| Job::CreateTopic { spec, reply }).await
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

    async fn ping(&self) -> Result<(), Error> {
        self.0.ask(|reply| Job::Ping { reply }).await
    }
}
