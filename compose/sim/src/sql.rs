//! A model of the store of the control planes (`control-plane/src/store`): shared by the replicas, transactional.
//!
//! Every method is one transaction.

use std::collections::{BTreeMap, BTreeSet};

use tbmq_integration::{
    Millis,
    cleanup::{Stage, TopicLife},
    wire::Cause,
};
use tbmq_proto::ids::{IntegrationId, ShardId};

use crate::settings::PARK_AFTER;

/// A saved integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: IntegrationId,
    pub(crate) enabled: bool,
    pub(crate) configuration: String,
    pub(crate) revision: u64,
    pub(crate) cause: Cause,
    pub(crate) disconnected: Option<Millis>,
}

/// The stored life of a message topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) id: IntegrationId,
    pub(crate) life: TopicLife,
    /// Of the deletion.
    pub(crate) revision: u64,
    pub(crate) shards: u32,
    version: u64,
}

/// A dirty mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) id: IntegrationId,
    pub(crate) revision: u64,
}

/// The latest known state of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Empty when it is void.
    pub(crate) event: String,
    pub(crate) service: String,
    pub(crate) revision: u64,
    /// Epoch, incarnation and number: the order of events.
    pub(crate) order: (u64, String, u64),
}

/// The lease as it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) holder: String,
    pub(crate) fencing: u64,
    pub(crate) beat: u64,
}

/// Why nothing was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    IdTaken,
    NotFound,
    Disabled,
}

/// The store.
#[derive(Debug, Default)]
pub(crate) struct Sql {
    pub(crate) is_down: bool,
    pub(crate) revision: u64,
    rows: BTreeMap<IntegrationId, Row>,
    lives: BTreeMap<IntegrationId, Life>,
    marks: BTreeMap<IntegrationId, u64>,
    projections: BTreeMap<IntegrationId, u64>,
    statuses: BTreeMap<ShardId, Status>,
    events: BTreeSet<u128>,
    lease: Lease,
}

impl Sql {
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    pub(crate) fn row(&self, id: IntegrationId) -> Option<&Row> {
        self.rows.get(&id)
    }

    pub(crate) fn life(&self, id: IntegrationId) -> Option<&Life> {
        self.lives.get(&id)
    }

    pub(crate) fn lives(&self) -> impl Iterator<Item = &Life> {
        self.lives.values()
    }

    pub(crate) fn projected(&self, id: IntegrationId) -> Option<u64> {
        self.projections.get(&id).copied()
    }

    pub(crate) fn status(&self, shard: ShardId) -> Option<&Status> {
        self.statuses.get(&shard)
    }

    pub(crate) fn create(
        &mut self,
        now: Millis,
        id: IntegrationId,
        enabled: bool,
        configuration: String,
        shards: u32,
    ) -> Result<u64, Refused> {
        if self.rows.contains_key(&id) || self.lives.contains_key(&id) {
            return Err(Refused::IdTaken);
        }
        let revision = self.next_revision();
        let disconnected = (!enabled).then_some(now);
        self.rows
            .insert(id, Row { id, enabled, configuration, revision, cause: Cause::Created, disconnected });
        self.lives.insert(id, Life { id, life: TopicLife::new(), revision, shards, version: 0 });
        self.marks.insert(id, revision);
        Ok(revision)
    }

    pub(crate) fn change(
        &mut self,
        id: IntegrationId,
        change: impl FnOnce(&mut Row) -> Result<bool, Refused>,
    ) -> Result<u64, Refused> {
        let before = self.rows.get(&id).ok_or(Refused::NotFound)?.clone();
        let mut row = before.clone();
        if !change(&mut row)? {
            return Ok(before.revision);
        }
        row.revision = self.next_revision();
        if row.enabled && !before.enabled {
            self.change_life(id, |life| life.life.keep());
        }
        if row.enabled != before.enabled || row.cause == Cause::Reinit {
            for (_, status) in self.statuses.iter_mut().filter(|(shard, _)| shard.integration == id) {
                status.event.clear();
            }
        }
        let revision = row.revision;
        self.marks.insert(id, revision);
        self.rows.insert(id, row);
        Ok(revision)
    }

    pub(crate) fn delete(&mut self, id: IntegrationId) -> Result<u64, Refused> {
        self.rows.remove(&id).ok_or(Refused::NotFound)?;
        let revision = self.next_revision();
        self.change_life(id, |life| {
            life.life.remove();
            life.revision = revision;
        });
        self.marks.insert(id, revision);
        Ok(revision)
    }

    pub(crate) fn marks(&self) -> Vec<Mark> {
        let mut marks: Vec<_> =
            self.marks.iter().map(|(id, revision)| Mark { id: *id, revision: *revision }).collect();
        marks.sort_by_key(|mark| mark.revision);
        marks
    }

    /// Leaves a mark for records that are to be written again; under a new revision when the stored one is less than
    /// `seen`. A former leader may still clear marks of the stored revision.
    pub(crate) fn mark_again(&mut self, id: IntegrationId, seen: u64) {
        let next = self.next_revision();
        let Some(row) = self.rows.get_mut(&id) else { return };
        if row.revision < seen {
            row.revision = next;
        }
        self.marks.insert(id, row.revision);
    }

    pub(crate) fn set_projected(&mut self, done: &[(Mark, u64)]) {
        for (mark, revision) in done {
            // A former leader may say so late.
            let held = self.projections.entry(mark.id).or_default();
            *held = (*held).max(*revision);
            self.clear_mark(*mark);
        }
    }

    pub(crate) fn clear_mark(&mut self, mark: Mark) {
        if self.marks.get(&mark.id) == Some(&mark.revision) {
            self.marks.remove(&mark.id);
        }
    }

    pub(crate) fn raise_revision(&mut self, seen: u64) {
        self.revision = self.revision.max(seen);
    }

    /// Saves a life that was read before; `false` when somebody else has changed it since.
    pub(crate) fn save_life(&mut self, life: &mut Life) -> bool {
        let Some(stored) = self.lives.get_mut(&life.id).filter(|stored| stored.version == life.version)
        else {
            return false;
        };
        life.version += 1;
        *stored = life.clone();
        true
    }

    pub(crate) fn restless_lives(&self) -> Vec<Life> {
        let is_restless =
            |life: &&Life| !matches!(life.life.stage, Stage::Live | Stage::Parked | Stage::Create);
        self.lives.values().filter(is_restless).cloned().collect()
    }

    pub(crate) fn park_disabled(&mut self, now: Millis) {
        let is_due =
            |row: &&Row| !row.enabled && row.disconnected.is_some_and(|since| now.since(since) > PARK_AFTER);
        let due: Vec<_> = self.rows.values().filter(is_due).map(|row| row.id).collect();
        for id in due {
            if self.lives.get(&id).is_some_and(|life| life.life.stage == Stage::Live) {
                self.change_life(id, |life| life.life.park());
            }
        }
    }

    pub(crate) fn bury(&mut self, id: IntegrationId) {
        self.lives.remove(&id);
        self.projections.remove(&id);
        self.statuses.retain(|shard, _| shard.integration != id);
    }

    /// Stores an event once, and moves the status of its shard on.
    pub(crate) fn store_event(&mut self, event_id: u128, shard: ShardId, status: Option<Status>) {
        if !self.events.insert(event_id) {
            return;
        }
        let Some(status) = status else { return };
        match self.statuses.get(&shard) {
            Some(held) if status.order <= held.order => return,
            None if !self.lives.contains_key(&shard.integration) => return,
            _ => {}
        }
        self.statuses.insert(shard, status);
    }

    pub(crate) fn statuses_of(&self, id: IntegrationId) -> Vec<&Status> {
        self.statuses.iter().filter(|(shard, _)| shard.integration == id).map(|(_, status)| status).collect()
    }

    pub(crate) fn lease(&self) -> Lease {
        self.lease.clone()
    }

    /// Takes a lease that still stands as it was seen.
    pub(crate) fn take_lease(&mut self, seen: &Lease, holder: &str) -> Option<u64> {
        if self.lease != *seen {
            return None;
        }
        self.lease = Lease { holder: holder.to_owned(), fencing: seen.fencing + 1, beat: seen.beat + 1 };
        Some(self.lease.fencing)
    }

    /// Renews a lease; `false` when it was taken by another.
    pub(crate) fn renew_lease(&mut self, fencing: u64) -> bool {
        if self.lease.fencing == fencing {
            self.lease.beat += 1;
        }
        self.lease.fencing == fencing
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn change_life(&mut self, id: IntegrationId, change: impl Fn(&mut Life)) {
        if let Some(life) = self.lives.get_mut(&id) {
            change(life);
            life.version += 1;
        }
    }
}
