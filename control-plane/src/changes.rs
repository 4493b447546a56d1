//! One follower per replica looks how far changes and events have come, and wakes the watches of this replica.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::{plane::Plane, store};

/// How often to look for what other replicas have committed.
const POLL: Duration = Duration::from_millis(200);

/// How long a change is kept for those who resume.
const KEEP: Duration = Duration::from_hours(24);

/// What the watches of this replica share.
#[derive(Debug)]
pub(crate) struct Changes {
    /// How far changes of integrations have come.
    pub(crate) integrations: Head,
    /// How far events have come.
    pub(crate) events: Head,
    seats: Arc<Semaphore>,
}

/// How far something has come whose numbers count up.
#[derive(Debug)]
pub(crate) struct Head {
    /// The latest number that was seen.
    latest: watch::Sender<u64>,
    /// Something was committed here, or somebody has begun to watch.
    nudge: Notify,
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
            integrations: Head::new(),
            events: Head::new(),
            seats: Arc::new(Semaphore::new(watchers_max.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Has the followers look at once. Does not wait.
    pub(crate) fn nudge(&self) {
        self.integrations.nudge();
        self.events.nudge();
    }

    /// A seat, unless all are taken.
    pub(crate) fn take_seat(&self, taken: &Gauge) -> Option<Seat> {
        let permit = self.seats.clone().try_acquire_owned().ok()?;
        taken.inc();
        Some(Seat { _permit: permit, taken: taken.clone() })
    }
}

impl Head {
    fn new() -> Self {
        Self { latest: watch::Sender::new(0), nudge: Notify::new() }
    }

    /// Has the follower look at once. Does not wait.
    pub(crate) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Follows the latest number, which was `seen` just now. All that was numbered up to it is in the store.
    pub(crate) fn subscribe(&self, seen: u64) -> watch::Receiver<u64> {
        let receiver = self.latest.subscribe();
        self.reached(seen);
        self.nudge();
        receiver
    }

    fn reached(&self, number: u64) {
        self.latest.send_if_modified(|latest| {
            let is_new = number > *latest;
            *latest = number.max(*latest);
            is_new
        });
    }

    /// Looks while somebody watches; never ends by itself.
    async fn follow<F: Future<Output = Result<u64, store::Error>>>(&self, look: impl Fn() -> F) {
        loop {
            if self.latest.receiver_count() == 0 {
                self.nudge.notified().await;
                continue;
            }
            match look().await {
                Ok(number) => self.reached(number),
                Err(error) => tracing::warn!(%error, "can't look for changes; watches wait"),
            }
            // Own commits come at once, those of other replicas within the interval.
            tokio::time::timeout(POLL, self.nudge.notified()).await.ok();
        }
    }
}

/// Looks while somebody watches; never ends by itself.
pub(crate) async fn follow(plane: Arc<Plane>) {
    tokio::join!(
        plane.changes.integrations.follow(|| plane.store.revision()),
        plane.changes.events.follow(|| plane.store.event_sequence()),
    );
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
