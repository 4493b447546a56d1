//! Where a log keeps its data: the one thing in which `memory` and `embedded` differ.

use std::fmt;

use bytes::Bytes;

use crate::TopicSpec;

/// Number of a topic; one that is deleted and created anew gets another.
pub(crate) type TopicId = u64;

/// One step of a group of changes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Adds a record.
    Record { topic: TopicId, partition: u32, offset: u64, bytes: Bytes },
    /// Removes a record.
    Remove { topic: TopicId, partition: u32, offset: u64 },
    /// Adds a topic.
    Topic { id: TopicId, spec: TopicSpec },
    /// Removes a topic and its commits. Its records are to be purged later.
    RemoveTopic { id: TopicId },
    /// Sets the positions of a partition that its records don't tell.
    Positions { topic: TopicId, partition: u32, positions: Positions },
    /// Sets what a group has committed.
    Commit { group: String, topic: TopicId, partition: u32, offset: u64, metadata: String },
    /// Removes what a group has committed.
    RemoveCommit { group: String, topic: TopicId, partition: u32 },
}

/// Positions of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Lowest offset kept.
    pub(crate) start: u64,
    /// Offset of the next record; counts when it is higher than the last record's.
    pub(crate) next: u64,
    /// Compacted up to here.
    pub(crate) cleaned_to: u64,
}

/// A partition as found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FoundPartition {
    /// Its positions, `next` being true.
    pub(crate) positions: Positions,
    /// Bytes ever written, as its last record says.
    pub(crate) cumulative: u64,
}

/// A commit as found.
#[derive(Clone, Debug)]
pub(crate) struct FoundCommit {
    pub(crate) group: String,
    pub(crate) topic: TopicId,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) metadata: String,
}

/// Everything but the records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    /// Topics with their partitions.
    pub(crate) topics: Vec<(TopicId, TopicSpec, Vec<FoundPartition>)>,
    /// What groups have committed.
    pub(crate) commits: Vec<FoundCommit>,
    /// Deleted topics whose records are still to be purged.
    pub(crate) garbage: Vec<TopicId>,
    /// The next topic's id.
    pub(crate) next_topic: TopicId,
}

/// Which records to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    /// The topic.
    pub(crate) topic: TopicId,
    /// The partition.
    pub(crate) partition: u32,
    /// From this offset.
    pub(crate) from: u64,
    /// Below this one.
    pub(crate) to: u64,
    /// At most so many.
    pub(crate) records: usize,
    /// At most so many bytes, but one record at least.
    pub(crate) bytes: usize,
}

/// A storage. Every method may block on a disk; errors are texts for people.
pub(crate) trait Storage: Send + Sync + fmt::Debug {
    /// Whether it keeps anything; if not, the log's tail cache is all there is.
    fn is_durable(&self) -> bool;

    /// Applies all changes or none, and returns when they are durable. An error leaves open which of both.
    fn apply(&self, changes: Vec<Change>) -> Result<(), String>;

    /// Whether `apply` can't work before `recover`.
    fn is_broken(&self) -> bool;

    /// Opens the storage again after an error; `None` when nothing was to be done.
    fn recover(&self) -> Result<Option<Image>, String>;

    /// Reads records in order.
    fn read(&self, range: Range) -> Result<Vec<(u64, Bytes)>, String>;

    /// Removes all records from `from` to below `to`, little by little.
    fn remove(&self, topic: TopicId, partition: u32, from: u64, to: u64) -> Result<(), String>;

    /// Removes all records of a deleted topic, little by little.
    fn purge(&self, topic: TopicId) -> Result<(), String>;

    /// Bytes that it takes on a disk, with what is still to be removed; `None` when it has none.
    fn disk_bytes(&self) -> Result<Option<u64>, String>;

    /// Releases all files; afterwards everything fails.
    fn close(&self);
}

/// The storage of a log that lives in its cache only.
#[derive(Debug)]
pub(crate) struct Nothing;

impl Storage for Nothing {
    fn is_durable(&self) -> bool {
        false
    }

    fn apply(&self, _changes: Vec<Change>) -> Result<(), String> {
        Ok(())
    }

    fn is_broken(&self) -> bool {
        false
    }

    fn recover(&self) -> Result<Option<Image>, String> {
        Ok(None)
    }

    fn read(&self, _range: Range) -> Result<Vec<(u64, Bytes)>, String> {
        Ok(Vec::new())
    }

    fn remove(&self, _topic: TopicId, _partition: u32, _from: u64, _to: u64) -> Result<(), String> {
        Ok(())
    }

    fn purge(&self, _topic: TopicId) -> Result<(), String> {
        Ok(())
    }

    fn disk_bytes(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }

    fn close(&self) {}
}
