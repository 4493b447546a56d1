//! What is recorded of sessions, on its way to the bus: one write of a client at a time, and what is wanted meanwhile is
//! written after it, the latest only.
//!
//! What could not be written is tried again until it is, or something else is wanted, so that the record of a client
//! becomes what was wanted last. Who waits for a write is told of its failure at once.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::Metrics,
    queues::Waiter,
    session_records::{SessionRecords, Wanted},
};

/// Clients that are written at a time.
const WRITES_MAX: usize = 1024;

/// Clients that wait; new sessions are refused then.
const CLIENTS_MAX: usize = 100_000;

/// The pause before a write that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Records sessions.
#[derive(Debug)]
pub(crate) struct Recorder {
    records: SessionRecords,
    metrics: Metrics,
    next_wait: AtomicU64,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Clients of which something is wanted, or being written.
    clients: HashMap<Arc<str>, Entry>,
    /// Those that nobody writes.
    ready: VecDeque<Arc<str>>,
}

#[derive(Debug, Default)]
struct Entry {
    wanted: Wanted,
    waiters: Vec<Waiter>,
    /// Who wants to know when all is written, of those who are no session.
    watchers: Vec<oneshot::Sender<bool>>,
    /// It is among those that are ready, or being written.
    is_taken: bool,
}

impl Recorder {
    pub(crate) fn new(records: SessionRecords, metrics: Metrics) -> Self {
        Self {
            records,
            metrics,
            next_wait: AtomicU64::new(0),
            waiting: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// A number to wait under that nobody has.
    pub(crate) fn next_wait(&self) -> u64 {
        self.next_wait.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a session can begin.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.lock().clients.len() < CLIENTS_MAX
    }

    /// Whether something is not written yet.
    pub(crate) fn is_busy(&self) -> bool {
        !self.waiting.lock().clients.is_empty()
    }

    /// Records what is wanted of a client; who waits is told when it is done, or could not be.
    pub(crate) fn save(&self, client_id: &Arc<str>, wanted: Wanted, waiter: Option<Waiter>) {
        let mut waiting = self.waiting.lock();
        let Waiting { clients, ready } = &mut *waiting;
        let entry = clients.entry(client_id.clone()).or_default();
        entry.wanted = wanted.or(std::mem::take(&mut entry.wanted));
        entry.waiters.extend(waiter);
        if !entry.is_taken {
            entry.is_taken = true;
            ready.push_back(client_id.clone());
            drop(waiting);
            self.wake.notify_one();
        }
    }

    /// Waits until all that was wanted of a client is written; `false` if it could not be.
    pub(crate) async fn written(&self, client_id: &Arc<str>) -> bool {
        let (watcher, told) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            let Some(entry) = waiting.clients.get_mut(client_id) else { return true };
            entry.watchers.push(watcher);
        }
        told.await.unwrap_or(false)
    }

    /// Writes until it is stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut writes: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send + '_>>> =
            FuturesUnordered::new();
        loop {
            while writes.len() < WRITES_MAX
                && let Some(client_id) = self.next()
            {
                writes.push(Box::pin(self.write(client_id)));
            }
            tokio::select! {
                () = self.wake.notified() => {}
                Some(()) = writes.next() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn next(&self) -> Option<Arc<str>> {
        self.waiting.lock().ready.pop_front()
    }

    async fn write(&self, client_id: Arc<str>) {
        let (wanted, waiters, watchers) = {
            let mut waiting = self.waiting.lock();
            let Some(Entry { wanted, waiters, watchers, .. }) = waiting.clients.get_mut(&client_id) else {
                return;
            };
            (std::mem::take(wanted), std::mem::take(waiters), std::mem::take(watchers))
        };
        let written = self.records.write(&client_id, &wanted).await;
        for waiter in waiters {
            waiter.tell(written.is_ok());
        }
        for watcher in watchers {
            // It may have gone away.
            watcher.send(written.is_ok()).ok();
        }
        if let Err(error) = written {
            self.metrics.session_record_failures.inc();
            tracing::warn!(%error, client_id = &*client_id, "can't record a session");
            tokio::time::sleep(RETRY_PAUSE).await;
            if let Some(entry) = self.waiting.lock().clients.get_mut(&client_id) {
                entry.wanted = std::mem::take(&mut entry.wanted).or(wanted);
            }
        }
        let mut waiting = self.waiting.lock();
        let Waiting { clients, ready } = &mut *waiting;
        let is_done = |entry: &Entry| entry.wanted.is_nothing() && entry.watchers.is_empty();
        if clients.get(&client_id).is_some_and(is_done) {
            clients.remove(&client_id);
        } else {
            ready.push_back(client_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use tbmq_bus::{Bus as _, TopicPartition, memory::MemoryBus};
    use tbmq_mqtt::session::Options;
    use tbmq_proto::topic::Catalogue;

    use super::*;
    use crate::{
        mailbox::{Mail, Mailbox, Outcome, QueueLimits},
        session_records::{self, RecordedFilter, Restored, SessionInfo, tests::start},
    };

    fn info(connected_at_ms: i64) -> SessionInfo {
        SessionInfo { connected_at_ms, ..session_records::tests::info("c") }
    }

    fn filters(name: &str) -> [RecordedFilter; 1] {
        [RecordedFilter::new(name, Options::default())]
    }

    #[tokio::test]
    async fn what_is_wanted_last_is_written_once_and_all_who_wait_for_it_are_told() {
        let bus = MemoryBus::new();
        let recorder = Arc::new(Recorder::new(start(&bus).await.0, Metrics::default()));
        let mailbox = Arc::new(Mailbox::new(1, QueueLimits { messages: 1, bytes: 1 }));
        let client_id: Arc<str> = "c".into();
        let wishes = [
            Wanted::session(&info(1)),
            Wanted::end(),
            Wanted::filters(&filters("a")),
            Wanted::session(&info(2)),
            Wanted::filters(&filters("b")),
        ];
        for (wait, wanted) in wishes.into_iter().enumerate() {
            let waiter = Waiter { mailbox: mailbox.clone(), wait: wait as u64 };
            recorder.save(&client_id, wanted, Some(waiter));
        }
        recorder.save(&"other".into(), Wanted::end(), None);
        assert!(recorder.is_busy());
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (recorder, stop) = (recorder.clone(), stop.clone());
            async move { recorder.run(stop).await }
        });
        while recorder.is_busy() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        running.await.unwrap();
        let mut mail = Mail::default();
        mailbox.take(&mut mail);
        let told = mail.outcomes.iter().map(|outcome| match outcome {
            Outcome::Kept(kept) => (kept.wait, kept.is_kept),
            other @ Outcome::Record { .. } => panic!("{other:?}"),
        });
        assert!(told.eq((0..5).map(|wait| (wait, true))));
        let catalogue = Catalogue::default();
        let partitions = [catalogue.client_sessions(), catalogue.client_subscriptions()]
            .map(|topic| TopicPartition::new(topic.name, 0));
        let bounds = bus.admin().bounds(&partitions).await.unwrap();
        assert!(bounds.iter().all(|bounds| bounds.end == 2), "one for each client: {bounds:?}");
        assert_eq!(start(&bus).await.1, [Restored { info: info(2), filters: filters("b").to_vec() }]);
    }
}
