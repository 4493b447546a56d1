//! Group membership: a consumer that fetches nothing and only says which partitions are ours.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    ClientContext, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    types::RDKafkaRespErr,
};
use tokio::sync::mpsc;

use super::{KafkaConfig, blocking, error, ffi, offsets};
use crate::{Commit, Error, Membership, MembershipConfig, MembershipEvent, Release, TopicPartition};

/// A hand-over may take so long; Kafka would take the partitions by force later (`max.poll.interval.ms`).
const HAND_OVER: Duration = Duration::from_secs(120);

/// How long the thread waits for changes before it looks around.
const TICK: Duration = Duration::from_millis(50);

/// Changes that wait for the caller: an assignment or revocation each.
const EVENTS: usize = 1024;

struct Context {
    events: mpsc::Sender<MembershipEvent>,
    /// The last event was sent.
    ended: AtomicBool,
}

/// Opens when the caller has let go.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Context {
    fn send(&self, event: MembershipEvent) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        // Nobody listens any more when the member is leaving; a release that is dropped here opens its gate.
        drop(self.events.blocking_send(event));
    }

    /// Waits until a gate opens; no longer when nobody listens any more, or there is nothing left to hand over.
    fn wait_for(&self, gate: &Gate, consumer: &BaseConsumer<Self>) -> bool {
        let deadline = Instant::now() + HAND_OVER;
        let mut open = gate.open.lock();
        while !*open && !self.events.is_closed() && !consumer.assignment_lost() {
            if Instant::now() >= deadline {
                return false;
            }
            gate.opened.wait_for(&mut open, TICK);
        }
        true
    }

    fn end(&self, reason: String) {
        self.send(MembershipEvent::Fenced { reason });
        self.ended.store(true, Ordering::Release);
    }
}

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<TopicPartition> = list
            .elements()
            .iter()
            .map(|entry| TopicPartition::new(entry.topic(), entry.partition() as u32))
            .collect();
        let result = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                // Paused at once: this consumer carries no data.
                let result = consumer.incremental_assign(list).and_then(|()| consumer.pause(list));
                if !partitions.is_empty() {
                    self.send(MembershipEvent::Assigned(partitions));
                }
                result
            }
            _ => {
                if consumer.assignment_lost() {
                    if !partitions.is_empty() {
                        self.send(MembershipEvent::Lost(partitions));
                    }
                } else if !partitions.is_empty() {
                    let gate = Arc::new(Gate::default());
                    let opener = Arc::clone(&gate);
                    let release = Release::new(move || {
                        *opener.open.lock() = true;
                        opener.opened.notify_all();
                    });
                    self.send(MembershipEvent::Revoked { partitions, release });
                    if !self.wait_for(&gate, consumer) {
                        tracing::warn!("revoked partitions were not let go in time");
                    }
                }
                consumer.incremental_unassign(list)
            }
        };
        if let Err(error) = result {
            tracing::error!(%error, "a rebalance could not be followed");
        }
    }
}

/// A member of a group of Kafka.
pub(super) struct KafkaMembership {
    group: String,
    consumer: Arc<BaseConsumer<Context>>,
    events: mpsc::Receiver<MembershipEvent>,
    leaving: Arc<AtomicBool>,
    poller: Option<std::thread::JoinHandle<()>>,
}

impl fmt::Debug for KafkaMembership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaMembership").field("group", &self.group).finish_non_exhaustive()
    }
}

impl KafkaMembership {
    pub(super) fn join(kafka: &KafkaConfig, config: MembershipConfig) -> Result<Self, Error> {
        let session_ms = config.session_timeout.as_millis();
        let mut client = kafka.client(&config.client_id);
        client
            .set("group.id", &config.group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session_ms.to_string())
            // The answer to a heartbeat is how a member hears that the group changes.
            .set("heartbeat.interval.ms", (session_ms / 4).clamp(50, 250).to_string())
            .set("max.poll.interval.ms", session_ms.max(300_000).to_string())
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "latest")
            .set("queued.max.messages.kbytes", "1")
            .set("topic.metadata.refresh.interval.ms", "5000");
        if let Some(instance) = &config.instance_id {
            client.set("group.instance.id", instance);
        }
        let (sender, events) = mpsc::channel(EVENTS);
        let consumer: BaseConsumer<Context> = kafka
            .finish(client)
            .create_with_context(Context { events: sender, ended: AtomicBool::new(false) })
            .map_err(|failure| error("group member", &failure))?;
        let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|failure| error("subscribing", &failure))?;
        let consumer = Arc::new(consumer);
        let leaving = Arc::new(AtomicBool::new(false));
        let (polled, leave) = (Arc::clone(&consumer), Arc::clone(&leaving));
        let patience = config.session_timeout;
        let poller = std::thread::Builder::new()
            .name("kafka-member".to_owned())
            .spawn(move || poll(&polled, &leave, patience))
            .map_err(|error| Error::Unavailable(format!("no thread for the group member: {error}")))?;
        Ok(Self { group: config.group, consumer, events, leaving, poller: Some(poller) })
    }
}

/// Polls until nobody else has the consumer, whose last handle closes it then.
///
/// Polling is what keeps the member alive and runs the callbacks; partitions are paused, so that the only results are
/// errors. librdkafka gets over all but fatal ones by itself.
fn poll(consumer: &Arc<BaseConsumer<Context>>, leaving: &AtomicBool, patience: Duration) {
    let mut leave_until = None;
    loop {
        if let Some(Err(error)) = consumer.poll(TICK) {
            tracing::warn!(%error, "the group member reports an error");
            if let Some((_, reason)) = consumer.client().fatal_error() {
                consumer.context().end(reason);
            }
        }
        if leaving.load(Ordering::Acquire) && leave_until.is_none() {
            // Closing does not make a static member leave; unsubscribing does, once all is handed over.
            consumer.unsubscribe();
            leave_until = Some(Instant::now() + patience);
        }
        let is_over = || ffi::has_left(consumer) || consumer.client().fatal_error().is_some();
        let has_left = || leave_until.is_none_or(|until| is_over() || Instant::now() >= until);
        if Arc::strong_count(consumer) == 1 && has_left() {
            return;
        }
    }
}

/// librdkafka would commit for a partition that was taken away; the group has the last word only on the generation.
fn holds(consumer: &BaseConsumer<Context>, commits: &[Commit]) -> Result<(), Error> {
    if consumer.assignment_lost() {
        return Err(Error::Fenced("the group has moved on without this member".to_owned()));
    }
    let owned = consumer.assignment().map_err(|failure| error("assignment", &failure))?;
    let is_foreign = |commit: &&Commit| {
        owned.find_partition(&commit.partition.topic, commit.partition.partition as i32).is_none()
    };
    match commits.iter().find(is_foreign) {
        Some(commit) => Err(Error::Fenced(format!("{} is not ours", commit.partition))),
        None => Ok(()),
    }
}

#[async_trait]
impl Membership for KafkaMembership {
    async fn next(&mut self) -> MembershipEvent {
        match self.events.recv().await {
            Some(event) => event,
            // The sender lives as long as the consumer, and that as long as this.
            None => std::future::pending().await,
        }
    }

    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<(), Error>> {
        let consumer = Arc::clone(&self.consumer);
        Box::pin(blocking(move || {
            holds(&consumer, &commits)?;
            let committed = offsets::commit(&consumer, &commits);
            if let Some((_, reason)) = consumer.client().fatal_error() {
                return Err(Error::Fenced(reason));
            }
            committed?;
            // A commit that had to wait for the group's coordinator may have been made by a later membership.
            holds(&consumer, &commits)
        }))
    }

    async fn leave(mut self: Box<Self>) {
        // What waits to be handed over is handed over by being dropped.
        self.events.close();
        while self.events.try_recv().is_ok() {}
        self.leaving.store(true, Ordering::Release);
        let poller = self.poller.take();
        drop(self);
        let left = blocking(move || {
            if poller.is_some_and(|poller| poller.join().is_err()) {
                tracing::error!("the group member's thread panicked");
            }
            Ok(())
        });
        if let Err(error) = left.await {
            tracing::warn!(%error, "leaving the group failed");
        }
    }
}
