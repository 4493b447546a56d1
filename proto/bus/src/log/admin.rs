//! The administrator.

use async_trait::async_trait;

use super::{Log, append::Job};
use crate::{Admin, Bounds, Commit, Error, TopicInfo, TopicPartition, TopicSpec};

/// Partitions of a topic, at most.
const PARTITIONS: u32 = 10_000;

/// The administrator of a log.
#[derive(Debug)]
pub(super) struct LogAdmin(pub(super) Log);

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

    async fn topic(&self, name: &str) -> Result<Option<TopicInfo>, Error> {
        let topic = self.0.core.topic(name);
        Ok(topic.map(|topic| TopicInfo { name: name.to_owned(), partitions: topic.partitions.len() as u32 }))
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, Error> {
        let topics = self.0.core.topics.read();
        let info = |name: &str, partitions: usize| TopicInfo {
            name: name.to_owned(),
            partitions: partitions as u32,
        };
        let mut found: Vec<_> =
            topics.iter().map(|(name, topic)| info(name, topic.partitions.len())).collect();
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
