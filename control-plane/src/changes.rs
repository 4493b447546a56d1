//! One follower per replica looks how far changes have come, and wakes the watches of this replica.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::plane::Plane;

/// How often to look for what other replicas have committed.
const POLL: Duration = Duration::from_millis(200);

/// How long a change is kept for those who resume.
const KEEP: Duration = Duration::from_hours(24);

/// What the watches of this replica share.
#[derive(Debug)]
pub(crate) struct Changes {
    /// The latest revision that was seen.
    head: watch::Sender<u64>,
    /// Something was committed here, or somebody has begun to watch.
    nudge: Notify,
    seats: Arc<Semaphore>,
}

/// A place among the watches of this replica, given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    _permit: OwnedSemaphorePermit,
    taken: Gauge,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.dec();
    }
}

impl Changes {
    pub(crate) fn new(watchers_max: usize) -> Self {
        Self {
            head: watch::Sender::new(0),
            nudge: Notify::new(),
            seats: Arc::new(Semaphore::new(watchers_max.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Has the follower look at once. Does not wait.
    pub(crate) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// A seat, unless all are taken.
    pub(crate) fn take_seat(&self, taken: &Gauge) -> Option<Seat> {
        let permit = self.seats.clone().try_acquire_owned().ok()?;
        taken.inc();
        Some(Seat { _permit: permit, taken: taken.clone() })
    }

    /// Follows the latest revision, which was `seen` just now. All changes up to it are in the store.
    pub(crate) fn subscribe(&self, seen: u64) -> watch::Receiver<u64> {
        let receiver = self.head.subscribe();
        self.reached(seen);
        self.nudge();
        receiver
    }

    fn reached(&self, revision: u64) {
        self.head.send_if_modified(|head| {
            let is_new = revision > *head;
            *head = revision.max(*head);
            is_new
        });
    }
}

/// Looks while somebody watches; never ends by itself.
pub(crate) async fn follow(plane: Arc<Plane>) {
    let changes = &plane.changes;
    loop {
        if changes.head.receiver_count() == 0 {
            changes.nudge.notified().await;
            continue;
        }
        match plane.store.revision().await {
            Ok(revision) => changes.reached(revision),
            Err(error) => tracing::warn!(%error, "can't look for changes; watches wait"),
        }
        // Own commits come at once, those of other replicas within the interval.
        tokio::time::timeout(POLL, changes.nudge.notified()).await.ok();
    }
}

/// Removes changes that are older than a day.
pub(crate) async fn compact(plane: &Plane) {
    let before_ms = tbmq_service::time::now_ms() - KEEP.as_millis() as i64;
    // Boxed: the jobs are a large future already.
    match Box::pin(plane.store.compact_changes(before_ms)).await {
        Ok(0) => {}
        Ok(removed) => tracing::debug!(removed, "old changes removed"),
        Err(error) => tracing::warn!(%error, "can't remove old changes"),
    }
}
