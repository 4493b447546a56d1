//! Retention and compaction, under Kafka's names and defaults.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use super::{
    Core,
    append::Job,
    partition::{Limits, Lookup, Partition, bytes_before},
    record,
    storage::Range,
};
use crate::{CleanupPolicy, Error};

/// Records that are looked at, or removed, together.
const STEP: usize = 4096;
const STEP_BYTES: usize = 8 << 20;

impl Core {
    /// Applies retention and compaction to all partitions; to those with too little to gain only if `now`.
    pub(super) fn clean(&self, now: bool) -> Result<(), Error> {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        for topic in topics {
            for partition in &topic.partitions {
                if *self.stopped.lock() {
                    return Ok(());
                }
                match topic.limits.policy {
                    CleanupPolicy::Delete => self.retain(partition, &topic.limits)?,
                    CleanupPolicy::Compact => self.compact_partition(partition, &topic.limits, now)?,
                }
            }
        }
        if now {
            self.collect_garbage();
        }
        Ok(())
    }

    fn retain(&self, partition: &Arc<Partition>, limits: &Limits) -> Result<(), Error> {
        let positions = partition.positions();
        if positions.start == positions.next
            || (limits.retention_ms.is_none() && limits.retention_bytes.is_none())
        {
            return Ok(());
        }
        let too_old = limits.retention_ms.map(|age| (self.clock)().saturating_sub(age));
        let newest = self.newest(partition)?;
        let mut start = positions.start;
        while start < positions.next {
            let records = self.read(partition, start, positions.next, STEP)?;
            let Some((last, _)) = records.last() else {
                start = positions.next;
                break;
            };
            let after_last = last + 1;
            let keeps = |bytes: &Bytes| {
                let young = too_old.is_none_or(|limit| record::timestamp_ms(bytes) >= limit);
                // As with Kafka, what remains is never less than the limit.
                let after = newest.saturating_sub(record::cumulative(bytes));
                let needed = limits.retention_bytes.is_none_or(|limit| after < limit);
                young && needed
            };
            if let Some((first, _)) = records.iter().find(|(_, bytes)| keeps(bytes)) {
                start = *first;
                break;
            }
            start = after_last;
        }
        if start == positions.start {
            return Ok(());
        }
        tracing::debug!(partition = %partition.name, from = positions.start, to = start, "retention removes records");
        let partition = Arc::clone(partition);
        self.wait_for(|reply| Job::AdvanceStart { partition, start, reply })
    }

    fn compact_partition(&self, partition: &Arc<Partition>, limits: &Limits, now: bool) -> Result<(), Error> {
        let positions = partition.positions();
        if positions.start == positions.next || (!now && !self.is_dirty(partition, limits)?) {
            return Ok(());
        }
        let mut latest: HashMap<Bytes, u64> = HashMap::new();
        self.each(partition, positions.start, positions.next, |records| {
            for (offset, bytes) in records {
                if let Some(key) = record::key(bytes) {
                    match latest.get_mut(key) {
                        Some(found) => *found = *offset,
                        None => drop(latest.insert(Bytes::copy_from_slice(key), *offset)),
                    }
                }
            }
            Ok(())
        })?;
        let old = (self.clock)().saturating_sub(limits.tombstone_ms);
        self.each(partition, positions.start, positions.next, |records| {
            let is_removed = |offset: u64, bytes: &Bytes| {
                let is_latest = record::key(bytes).is_some_and(|key| latest.get(key) == Some(&offset));
                !is_latest || (record::is_tombstone(bytes) && record::timestamp_ms(bytes) <= old)
            };
            let removed: Vec<u64> = records
                .iter()
                .filter(|(offset, bytes)| is_removed(*offset, bytes))
                .map(|(offset, _)| *offset)
                .collect();
            if removed.is_empty() {
                return Ok(());
            }
            let (partition, cleaned_to) = (Arc::clone(partition), positions.cleaned_to);
            self.wait_for(|reply| Job::Compact { partition, removed, cleaned_to, reply })
        })?;
        let (partition, cleaned_to) = (Arc::clone(partition), positions.next);
        self.wait_for(|reply| Job::Compact { partition, removed: Vec::new(), cleaned_to, reply })
    }

    /// Whether enough has been written since the last compaction, or something of it is old.
    fn is_dirty(&self, partition: &Arc<Partition>, limits: &Limits) -> Result<bool, Error> {
        let positions = partition.positions();
        if positions.cleaned_to >= positions.next {
            return Ok(false);
        }
        let first_of = |from: u64| self.read(partition, from, positions.next, 1);
        let (first, dirty) =
            (first_of(positions.start)?, first_of(positions.cleaned_to.max(positions.start))?);
        let (Some((_, first)), Some((_, dirty))) = (first.first(), dirty.first()) else { return Ok(false) };
        let newest = self.newest(partition)?;
        let of = |from: &Bytes| newest.saturating_sub(bytes_before(from)) as f64;
        let age = (self.clock)().saturating_sub(record::timestamp_ms(dirty));
        let is_old = limits.compaction_lag_ms.is_some_and(|lag| age >= lag);
        Ok(is_old || of(dirty) / of(first).max(1.0) >= limits.dirty_ratio)
    }

    /// The cumulative bytes at the end of a partition.
    pub(super) fn newest(&self, partition: &Arc<Partition>) -> Result<u64, Error> {
        let end = partition.positions().next;
        let last = self.read(partition, end.saturating_sub(1), end, 1)?;
        // The last record may be compacted away; then the partition's own count is as good.
        Ok(last.first().map_or_else(|| partition.cumulative(), |(_, bytes)| record::cumulative(bytes)))
    }

    pub(super) fn each(
        &self,
        partition: &Arc<Partition>,
        mut from: u64,
        to: u64,
        mut look: impl FnMut(&[(u64, Bytes)]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while from < to {
            let records = self.read(partition, from, to, STEP)?;
            let Some((last, _)) = records.last() else { return Ok(()) };
            from = last + 1;
            look(&records)?;
        }
        Ok(())
    }

    /// Reads records below `to`, from memory or the storage; none means that there are no more.
    pub(super) fn read(
        &self,
        partition: &Arc<Partition>,
        mut from: u64,
        to: u64,
        count: usize,
    ) -> Result<Vec<(u64, Bytes)>, Error> {
        while from < to {
            match partition.lookup(from, count, STEP_BYTES) {
                Lookup::Records(mut records) => {
                    records.retain(|(offset, _)| *offset < to);
                    return Ok(records);
                }
                Lookup::Cold(until) => {
                    let (topic, index) = (partition.topic, partition.name.partition);
                    let until = until.min(to);
                    let range =
                        Range { topic, partition: index, from, to: until, records: count, bytes: STEP_BYTES };
                    let records = self.storage.read(range).map_err(Error::Unavailable)?;
                    if !records.is_empty() {
                        return Ok(records);
                    }
                    from = until;
                }
                Lookup::Gap(start) => from = start,
                Lookup::End(_) | Lookup::Gone(_) => break,
            }
        }
        Ok(Vec::new())
    }

    /// Has a job done from a thread that may block.
    fn wait_for<T: Send + 'static>(
        &self,
        job: impl FnOnce(super::append::Reply<T>) -> Job,
    ) -> Result<T, Error> {
        let (sender, answer) = std::sync::mpsc::sync_channel(1);
        // Whoever asked may have gone.
        self.dispatch(job(Box::new(move |result| drop(sender.send(result)))));
        answer
            .recv_timeout(super::PATIENCE)
            .unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
    }
}
