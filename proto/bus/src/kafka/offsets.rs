//! What groups have committed, and where partitions begin and end.

use std::time::Duration;

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext},
};

use super::error;
use crate::{Bounds, Commit, Error, TopicPartition};

/// Commits and waits.
pub(super) fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    commits: &[Commit],
) -> Result<(), Error> {
    if commits.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut entry = list.add_partition(&commit.partition.topic, commit.partition.partition as i32);
        entry
            .set_offset(Offset::Offset(commit.offset as i64))
            .map_err(|failure| error("commit", &failure))?;
        entry.set_metadata(&commit.metadata);
    }
    consumer.commit(&list, CommitMode::Sync).map_err(|failure| error("commit", &failure))
}

/// Asks what is committed for the consumer's group.
pub(super) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> Result<Vec<Commit>, Error> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition as i32);
    }
    let found = consumer
        .committed_offsets(list, Duration::from_secs(30))
        .map_err(|failure| error("committed offsets", &failure))?;
    let mut commits = Vec::with_capacity(partitions.len());
    for entry in found.elements() {
        // An answer for one partition may be missing while the others are there; that is no "never committed".
        entry
            .error()
            .map_err(|failure| error(&format!("committed offset of {}", entry.topic()), &failure))?;
        if let Offset::Offset(offset) = entry.offset() {
            commits.push(Commit {
                partition: TopicPartition::new(entry.topic(), entry.partition() as u32),
                offset: offset as u64,
                metadata: entry.metadata().to_owned(),
            });
        }
    }
    Ok(commits)
}

/// First and last position, as a reader of committed records sees them.
pub(super) fn bounds<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    at: &TopicPartition,
    patience: Duration,
) -> Result<Bounds, Error> {
    let (start, end) = consumer
        .fetch_watermarks(&at.topic, at.partition as i32, patience)
        .map_err(|failure| error(&at.to_string(), &failure))?;
    Ok(Bounds { start: start.max(0) as u64, end: end.max(0) as u64 })
}
