//! What the relayer has written, for the calls of this replica that wait for it.
//!
//! A relayer in this process tells at once. What another replica writes is found in the store, by one question for all
//! calls that wait, and by none while no call does.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    plane::Plane,
    store::{self, Projection},
};

/// How often to look for what another replica has written.
const LOOK: Duration = Duration::from_millis(20);

/// Integrations that one question asks for.
const ASKED_TOGETHER: usize = 500;

/// Who waits for what.
#[derive(Debug)]
pub(crate) struct Projected<K: Key> {
    /// One entry a call at the most, whose number is limited.
    waiting: Mutex<HashMap<K, watch::Sender<Option<Projection>>>>,
    begun: Notify,
}

/// What is written.
pub(crate) trait Key: Clone + Eq + Hash {}

impl<K: Clone + Eq + Hash> Key for K {}

impl<K: Key> Default for Projected<K> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), begun: Notify::new() }
    }
}

impl<K: Key> Projected<K> {
    /// Completes when this revision, or a later one, has been written. Cancel-safe.
    pub(crate) async fn reached(&self, id: K, revision: u64) -> Projection {
        // Dropped after what listens.
        let _waiting = Waiting { projected: self, id: id.clone() };
        let mut latest = match self.waiting.lock().entry(id.clone()) {
            Entry::Occupied(entry) => entry.get().subscribe(),
            Entry::Vacant(entry) => entry.insert(watch::Sender::new(None)).subscribe(),
        };
        self.begun.notify_one();
        let guard = Waiting { projected: self, id };
        let reached =
            latest.wait_for(|latest| latest.is_some_and(|latest| latest.revision >= revision)).await;
        // Its sender stays as long as somebody listens.
        let reached = reached.ok().and_then(|latest| *latest);
        drop((latest, guard));
        match reached {
            Some(reached) => reached,
            None => std::future::pending().await,
        }
    }

    /// This has been written.
    pub(crate) fn told(&self, written: impl IntoIterator<Item = (K, Projection)>) {
        let waiting = self.waiting.lock();
        for (id, projection) in written {
            if let Some(latest) = waiting.get(&id) {
                latest.send_replace(Some(projection));
            }
        }
    }

    fn ids(&self) -> Vec<K> {
        self.waiting.lock().keys().cloned().collect()
    }

    /// Looks while calls wait; never ends by itself.
    async fn follow<F: Future<Output = Result<Vec<(K, Projection)>, store::Error>>>(
        &self,
        look: impl Fn(Vec<K>) -> F,
    ) {
        loop {
            let ids = self.ids();
            if ids.is_empty() {
                self.begun.notified().await;
                continue;
            }
            for some in ids.chunks(ASKED_TOGETHER) {
                match look(some.to_vec()).await {
                    Ok(found) => self.told(found),
                    Err(error) => tracing::warn!(%error, "can't look for what was written; calls wait"),
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Forgets it with the last call that waits for it.
struct Waiting<'a, K: Key> {
    projected: &'a Projected<K>,
    id: K,
}

impl<K: Key> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        let mut waiting = self.projected.waiting.lock();
        if waiting.get(&self.id).is_some_and(|latest| latest.receiver_count() == 0) {
            waiting.remove(&self.id);
        }
    }
}

/// Looks while calls wait; never ends by itself.
pub(crate) async fn follow(plane: Arc<Plane>) {
    let store = &plane.store;
    tokio::join!(
        plane.projected.follow(|ids| async move { store.projections(&ids).await }),
        plane.auth_projected.follow(|items| async move { store.auth_projections(&items).await }),
    );
}

#[cfg(test)]
mod tests {
    use tbmq_proto::ids::IntegrationId;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn calls_hear_of_their_revision_or_a_later_one_and_leave_nothing_behind() {
        let (projected, id) = (Arc::new(Projected::default()), IntegrationId(Uuid::nil()));
        let at = |revision| Projection { revision, partition: 0, position: 10 * revision };
        let wait = |revision| {
            let projected = projected.clone();
            tokio::spawn(async move { projected.reached(id, revision).await })
        };
        let (early, late, cut) = (wait(2), wait(4), wait(9));
        while projected.ids().is_empty() {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        projected.told([(id, at(1)), (IntegrationId(Uuid::max()), at(9))]);
        projected.told([(id, at(3))]);
        assert_eq!(early.await.unwrap(), at(3));
        projected.told([(id, at(4))]);
        assert_eq!(late.await.unwrap(), at(4));
        assert_eq!(projected.ids(), [id]);
        cut.abort();
        assert!(cut.await.unwrap_err().is_cancelled());
        assert!(projected.ids().is_empty());
    }
}
