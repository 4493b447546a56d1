//! One follower per replica looks how far changes and events have come, and wakes the watches of this replica.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, watch};

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
    seats: Arc<Seats>,
}

/// The places for watches, and how many each client has.
#[derive(Debug)]
struct Seats {
    max: usize,
    per_client_max: usize,
    taken: Mutex<BTreeMap<String, usize>>,
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
    seats: Arc<Seats>,
    client: String,
    taken: Gauge,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSeat {
    /// All are taken.
    Full,
    /// This client has as many as one may have.
    ClientFull,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.dec();
        let mut taken = self.seats.taken.lock();
        if let Some(count) = taken.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

impl Changes {
    pub(crate) fn new(max: usize, per_client_max: usize) -> Self {
        Self {
            integrations: Head::new(),
            events: Head::new(),
            seats: Arc::new(Seats { max, per_client_max, taken: Mutex::default() }),
        }
    }

    /// Has the followers look at once. Does not wait.
    pub(crate) fn nudge(&self) {
        self.integrations.nudge();
        self.events.nudge();
    }

    /// A seat for a client, which is given back when it is dropped. Does not wait.
    pub(crate) fn take_seat(&self, client: String, gauge: &Gauge) -> Result<Seat, NoSeat> {
        let mut taken = self.seats.taken.lock();
        if taken.values().sum::<usize>() >= self.seats.max {
            return Err(NoSeat::Full);
        }
        let count = taken.entry(client.clone()).or_default();
        if *count >= self.seats.per_client_max {
            return Err(NoSeat::ClientFull);
        }
        *count += 1;
        drop(taken);
        gauge.inc();
        Ok(Seat { seats: self.seats.clone(), client, taken: gauge.clone() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_takes_the_seats_of_all() {
        let (changes, gauge) = (Changes::new(3, 2), Gauge::default());
        let take = |client: &str| changes.take_seat(client.to_owned(), &gauge);
        let first = take("a").unwrap();
        let _second = take("a").unwrap();
        assert_eq!(take("a").err(), Some(NoSeat::ClientFull));
        let _other = take("b").unwrap();
        assert_eq!((take("b").err(), gauge.get()), (Some(NoSeat::Full), 3));
        drop(first);
        assert_eq!(gauge.get(), 2);
        take("a").unwrap();
    }
}
