//! One downlink partition on the executor: from a compacted log to real time (spec §4.2, architecture §4.19).
//!
//! While restoring, only the latest record of each shard is kept; validation requests are history and are skipped.
//! At the bus's end, at or beyond the end taken at assignment, everything kept is handed out; from there on each
//! record is handed out as it comes.
//!
//! Invariant: what is handed out for a shard never goes back to a lower revision.

use std::collections::BTreeMap;

use bytes::Bytes;
use tbmq_proto::ids::ShardId;

use crate::wire::{self, Change, Desired, Downlink, ValidationRequest};

/// What is to be done with a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// This is the shard's latest desired state.
    Apply(Desired),
    /// The shard's record is withdrawn: it is to be stopped and forgotten.
    Withdraw(ShardId),
    /// A request is to be answered.
    Answer(ValidationRequest),
}

/// A record that is to be logged, counted and skipped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// It can't be understood.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// Key and value name different shards, or the key names none.
    #[error("the key {key:?} does not name the shard {shard} of the value")]
    Key {
        /// The key as text.
        key: String,
        /// The shard of the value.
        shard: ShardId,
    },
    /// The limit of shards per partition is reached.
    #[error("{limit} shards are held in this partition already")]
    Limit {
        /// The limit.
        limit: usize,
    },
}

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that were understood or were tombstones.
    pub read: u64,
    /// Records that could not be used.
    pub bad: u64,
    /// Records with a lower revision than the one held.
    pub stale: u64,
    /// Validation requests that were history.
    pub skipped_requests: u64,
}

/// One assigned downlink partition.
#[derive(Clone, Debug)]
pub struct Partition {
    wanted_end: u64,
    position: u64,
    is_restored: bool,
    is_gone: bool,
    held: BTreeMap<ShardId, Held>,
    limit: usize,
    counts: Counts,
}

#[derive(Clone, Debug)]
struct Held {
    revision: u64,
    /// Only while restoring.
    desired: Option<Desired>,
}

impl Partition {
    /// A partition whose end was at `wanted_end` when it was assigned. It holds `limit` shards at most.
    pub fn new(wanted_end: u64, limit: usize) -> Self {
        Self {
            wanted_end,
            position: 0,
            is_restored: false,
            is_gone: false,
            held: BTreeMap::new(),
            limit,
            counts: Counts::default(),
        }
    }

    /// Whether the history was read.
    pub fn is_restored(&self) -> bool {
        self.is_restored
    }

    /// The next offset: everything below it was handed out, once the partition is restored.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What was seen so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The topic is gone; nothing is read until [`Partition::made_anew`].
    pub fn gone(&mut self) {
        self.is_gone = true;
    }

    /// The topic was made anew. If this partition has gone with it, it begins from nothing and `true` says that it is
    /// to be read again. Otherwise it was assigned after the topic had gone, and is being read already: its records and
    /// its end come only once.
    pub fn made_anew(&mut self) -> bool {
        let is_gone = self.is_gone;
        if is_gone {
            *self = Self::new(0, self.limit);
        }
        is_gone
    }

    /// Reads one record. Offsets below [`Partition::position`] are repetitions and change nothing.
    ///
    /// # Errors
    /// When the record is to be skipped; it is counted already, and the machine goes on.
    pub fn record(
        &mut self,
        offset: u64,
        key: Option<&[u8]>,
        value: Option<&Bytes>,
        revision: Option<&str>,
    ) -> Result<Option<Step>, BadRecord> {
        if offset < self.position {
            return Ok(None);
        }
        self.position = offset + 1;
        let result = self.read(key, value, revision);
        match &result {
            Ok(_) => self.counts.read += 1,
            Err(_) => self.counts.bad += 1,
        }
        result
    }

    /// The bus says that everything below `position` was handed out. Ends the restoration when that is at or beyond
    /// the end taken at assignment, and then returns everything that is to be started. Deleted integrations are not
    /// among them: they ended before we came.
    pub fn end(&mut self, position: u64) -> Vec<Step> {
        self.position = self.position.max(position);
        if self.is_restored || position < self.wanted_end {
            return Vec::new();
        }
        self.is_restored = true;
        let held = self.held.values_mut().filter_map(|held| held.desired.take());
        held.filter(|desired| matches!(desired.change, Change::Apply { .. })).map(Step::Apply).collect()
    }

    fn read(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&Bytes>,
        revision: Option<&str>,
    ) -> Result<Option<Step>, BadRecord> {
        let shard_of_key = key.and_then(|key| ShardId::from_downlink_key(std::str::from_utf8(key).ok()?));
        match wire::decode_downlink(value, revision)? {
            Downlink::Request(_) if !self.is_restored => {
                self.counts.skipped_requests += 1;
                Ok(None)
            }
            Downlink::Request(request) => Ok(Some(Step::Answer(request))),
            // The key of an ended request is a UUID as well, but no shard is held under it.
            Downlink::Withdrawn => match shard_of_key {
                Some(shard) if self.held.remove(&shard).is_some() && self.is_restored => {
                    Ok(Some(Step::Withdraw(shard)))
                }
                _ => Ok(None),
            },
            Downlink::Desired(desired) => {
                if shard_of_key != Some(desired.shard) {
                    let key = String::from_utf8_lossy(key.unwrap_or_default()).into_owned();
                    return Err(BadRecord::Key { key, shard: desired.shard });
                }
                self.desired(desired)
            }
        }
    }

    fn desired(&mut self, desired: Desired) -> Result<Option<Step>, BadRecord> {
        let is_restored = self.is_restored;
        if let Some(held) = self.held.get_mut(&desired.shard) {
            if desired.revision < held.revision {
                self.counts.stale += 1;
                return Ok(None);
            }
            held.revision = desired.revision;
            if is_restored {
                return Ok(Some(Step::Apply(desired)));
            }
            held.desired = Some(desired);
            return Ok(None);
        }
        if self.held.len() >= self.limit {
            return Err(BadRecord::Limit { limit: self.limit });
        }
        let revision = desired.revision;
        let (kept, step) = if is_restored {
            (None, Some(Step::Apply(desired.clone())))
        } else {
            (Some(desired.clone()), None)
        };
        self.held.insert(desired.shard, Held { revision, desired: kept });
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use tbmq_proto::ids::IntegrationId;
    use uuid::Uuid;

    use super::*;
    use crate::wire::{Cause, RequestType, Target, encode_desired, encode_request};

    fn desired(id: u128, revision: u64, change: Change) -> Desired {
        let shard = ShardId::first(IntegrationId(Uuid::from_u128(id)));
        Desired { shard, shard_count: 1, kind: "HTTP".parse().unwrap(), revision, generation: 1, change }
    }

    fn apply(name: &str) -> Change {
        let target = Target { name: name.into(), enabled: true, configuration: "{}".into(), sealed: None };
        Change::Apply { cause: Cause::Updated, target }
    }

    fn request(id: u128) -> ValidationRequest {
        ValidationRequest {
            id: Uuid::from_u128(id),
            reply_to: "cp".to_owned(),
            request_type: RequestType::Validate,
            integration: IntegrationId(Uuid::from_u128(1)),
            kind: "HTTP".parse().unwrap(),
            name: String::new(),
            enabled: true,
            configuration: "{}".to_owned(),
            sealed: None,
            created_ms: 0,
            deadline_ms: 0,
        }
    }

    /// Writes records one after the other into a machine.
    struct Log(Partition, u64);

    impl Log {
        fn new(wanted_end: u64) -> Self {
            Self(Partition::new(wanted_end, 3), 0)
        }

        fn put(&mut self, desired: &Desired) -> Result<Option<Step>, BadRecord> {
            let key = desired.shard.downlink_key();
            let revision = desired.revision.to_string();
            self.raw(Some(key.as_bytes()), Some(&encode_desired(desired)), Some(&revision))
        }

        fn raw(
            &mut self,
            key: Option<&[u8]>,
            value: Option<&Bytes>,
            revision: Option<&str>,
        ) -> Result<Option<Step>, BadRecord> {
            self.1 += 1;
            self.0.record(self.1 - 1, key, value, revision)
        }
    }

    #[test]
    fn restoration_hands_out_only_the_latest_of_each_key_at_the_end() {
        let mut log = Log::new(4);
        for record in [desired(1, 1, apply("a")), desired(2, 2, apply("b")), desired(1, 3, apply("c"))] {
            assert_eq!(log.put(&record), Ok(None));
        }
        assert_eq!(log.put(&desired(2, 4, Change::Deleted)), Ok(None));
        assert_eq!(log.0.end(3), [], "the end taken at assignment is not reached");
        assert_eq!(log.0.end(4), [Step::Apply(desired(1, 3, apply("c")))]);
        assert_eq!(log.0.end(4), []);
        assert!(log.0.is_restored());
    }

    #[test]
    fn an_empty_partition_and_a_tail_without_records_are_restored_by_the_end_alone() {
        let mut empty = Partition::new(0, 1);
        assert_eq!(empty.end(0), []);
        assert!(empty.is_restored());
        let mut tail = Log::new(9);
        tail.put(&desired(1, 1, apply("a"))).unwrap();
        assert_eq!(tail.0.end(9).len(), 1, "transaction markers count by position");
        assert_eq!(tail.0.position(), 9);
    }

    #[test]
    fn requests_are_history_while_restoring_and_work_afterwards() {
        let mut log = Log::new(1);
        let value = encode_request(&request(7));
        assert_eq!(log.raw(Some(b"x"), Some(&value), None), Ok(None));
        log.0.end(1);
        assert_eq!(log.raw(Some(b"x"), Some(&value), None), Ok(Some(Step::Answer(request(7)))));
        assert_eq!(log.0.counts().skipped_requests, 1);
    }

    #[test]
    fn a_lower_revision_is_ignored_before_and_after_the_end() {
        let mut log = Log::new(2);
        log.put(&desired(1, 5, apply("new"))).unwrap();
        log.put(&desired(1, 4, apply("old"))).unwrap();
        assert_eq!(log.0.end(2), [Step::Apply(desired(1, 5, apply("new")))]);
        assert_eq!(log.put(&desired(1, 4, apply("old"))), Ok(None));
        assert_eq!(
            log.put(&desired(1, 6, Change::Deleted)),
            Ok(Some(Step::Apply(desired(1, 6, Change::Deleted))))
        );
        assert_eq!(log.put(&desired(1, 5, apply("new"))), Ok(None), "a deletion holds its revision");
        assert_eq!(log.0.counts().stale, 3);
    }

    #[test]
    fn tombstones_withdraw_what_is_held_and_nothing_else() {
        let mut log = Log::new(2);
        let record = desired(1, 1, apply("a"));
        let key = record.shard.downlink_key();
        log.put(&record).unwrap();
        log.raw(Some(key.as_bytes()), Some(&Bytes::new()), None).unwrap();
        assert_eq!(log.0.end(2), []);
        log.put(&record).unwrap();
        assert_eq!(log.raw(Some(key.as_bytes()), None, None), Ok(Some(Step::Withdraw(record.shard))));
        assert_eq!(log.raw(Some(key.as_bytes()), None, None), Ok(None));
    }

    #[test]
    fn bad_records_are_counted_and_skipped() {
        let mut log = Log::new(0);
        log.0.end(0);
        assert!(matches!(log.raw(None, Some(&Bytes::from_static(b"\xff")), None), Err(BadRecord::Wire(_))));
        let record = encode_desired(&desired(1, 1, apply("a")));
        assert!(matches!(log.raw(Some(b"other"), Some(&record), None), Err(BadRecord::Key { .. })));
        for id in 1..=3 {
            log.put(&desired(id, 1, apply("a"))).unwrap();
        }
        assert_eq!(log.put(&desired(4, 1, apply("a"))), Err(BadRecord::Limit { limit: 3 }));
        assert_eq!((log.0.counts().bad, log.0.position()), (3, 6));
    }

    #[test]
    fn a_partition_that_has_gone_with_its_topic_begins_from_nothing_once_that_is_made_anew() {
        let mut log = Log::new(1);
        log.put(&desired(1, 5, apply("a"))).unwrap();
        log.0.end(1);
        log.0.gone();
        assert!(log.0.made_anew(), "it is to be read again");
        assert!(!log.0.is_restored());
        log.1 = 0;
        log.put(&desired(1, 6, apply("b"))).unwrap();
        assert_eq!(log.0.end(1), [Step::Apply(desired(1, 6, apply("b")))]);
    }

    #[test]
    fn a_partition_that_was_assigned_after_its_topic_had_gone_keeps_what_it_has_read() {
        let mut log = Log::new(1);
        log.put(&desired(1, 5, apply("a"))).unwrap();
        assert!(!log.0.made_anew(), "it is being read");
        assert_eq!(log.0.end(1), [Step::Apply(desired(1, 5, apply("a")))]);
        log.0.gone();
        assert!(log.0.made_anew());
        assert!(!log.0.made_anew(), "one creation is enough");
    }

    #[test]
    fn a_repeated_offset_changes_nothing() {
        let mut log = Log::new(1);
        log.put(&desired(1, 1, apply("a"))).unwrap();
        log.0.end(1);
        log.1 = 0;
        assert_eq!(log.put(&desired(1, 9, apply("b"))), Ok(None));
        assert_eq!(log.0.counts().read, 1);
    }
}
