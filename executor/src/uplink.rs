//! Events to the control plane: buffered, so that telling never slows delivery, and written until the bus took them.
//!
//! When the buffer is full the oldest error event or heartbeat gives way; every drop is counted. Events carry their order
//! (epoch, seq), so that a repeated write may overtake another.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use tbmq_bus::{Admin, CompletionQueue, Error, Outgoing, TopicSpec, Writer};
use tbmq_integration::wire;
use tbmq_proto::{
    ids::ShardId,
    integration::{NativeEvent, UplinkIntegrationMsgProto, native_event::Body},
    queue::ServiceInfo,
};
use tbmq_service::identity::Identity;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::metrics::Metrics;

/// Events written at a time.
const BATCH: usize = 256;

/// Where events are put. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
    limit: usize,
    identity: Identity,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Queue {
    others: VecDeque<Event>,
    errors: VecDeque<Event>,
    in_hand: usize,
}

#[derive(Debug)]
struct Event {
    key: String,
    value: Bytes,
    /// Errors and heartbeats, before other events.
    gives_way: bool,
}

impl Uplink {
    pub(crate) fn new(limit: usize, identity: Identity, metrics: Metrics) -> Self {
        let queue = Mutex::default();
        Self { shared: Arc::new(Shared { queue, changed: Notify::new(), limit, identity, metrics }) }
    }

    /// One who tells about a shard under an ownership epoch. Its counter may be shared with a successor.
    pub(crate) fn teller(&self, shard: ShardId, epoch: u64, seq: Arc<AtomicU64>) -> Teller {
        Teller { uplink: self.clone(), shard, epoch, seq }
    }

    /// Tells what is known of this process, as TBMQ's executors do (spec §4.7).
    pub(crate) fn tell_service_info(&self, info: ServiceInfo) {
        let message = UplinkIntegrationMsgProto { event_proto: None, service_info_proto: Some(info) };
        let key = Uuid::new_v4().to_string();
        self.push(Event { key, value: message.encode_to_vec().into(), gives_way: true });
    }

    fn push(&self, event: Event) {
        let mut queue = self.shared.queue.lock();
        if queue.others.len() + queue.errors.len() >= self.shared.limit {
            if queue.errors.pop_front().is_none() {
                queue.others.pop_front();
            }
            self.shared.metrics.events_dropped.inc();
        }
        if event.gives_way { &mut queue.errors } else { &mut queue.others }.push_back(event);
        drop(queue);
        self.shared.changed.notify_one();
    }

    fn take(&self) -> Vec<Event> {
        let mut queue = self.shared.queue.lock();
        let Queue { others, errors, in_hand } = &mut *queue;
        let count = others.len().min(BATCH);
        let mut batch: Vec<_> = others.drain(..count).collect();
        let count = errors.len().min(BATCH - batch.len());
        batch.extend(errors.drain(..count));
        *in_hand = batch.len();
        batch
    }

    /// Events that are not written yet.
    pub(crate) fn waiting(&self) -> usize {
        let queue = self.shared.queue.lock();
        queue.others.len() + queue.errors.len() + queue.in_hand
    }

    /// Whether everything told was written.
    pub(crate) fn is_written(&self) -> bool {
        self.waiting() == 0
    }

    /// Writes for ever.
    pub(crate) async fn run(self, writer: Arc<dyn Writer>, admin: Arc<dyn Admin>, topic: TopicSpec) {
        let handle = writer.topic(&topic.name);
        let completions = CompletionQueue::new();
        let metrics = &self.shared.metrics;
        let mut outcomes = Vec::new();
        let mut pause = Duration::ZERO;
        loop {
            let batch = self.take();
            if batch.is_empty() {
                self.shared.changed.notified().await;
                continue;
            }
            let mut batch: Vec<_> = batch.into_iter().map(Some).collect();
            let mut submitted = 0;
            for (ticket, event) in batch.iter().flatten().enumerate() {
                let record = Outgoing {
                    partition: None,
                    key: Some(event.key.as_bytes()),
                    value: Some(&event.value),
                    headers: &[],
                };
                if writer.submit(&handle, record, ticket as u64, &completions).is_err() {
                    break;
                }
                submitted += 1;
            }
            metrics.published("totalMsgs", submitted);
            let mut is_topic_missing = false;
            let mut answered = 0;
            while answered < submitted {
                completions.wait(&mut outcomes).await;
                for outcome in outcomes.drain(..) {
                    answered += 1;
                    let event = batch.get_mut(outcome.ticket as usize);
                    match outcome.result {
                        Ok(_) => {
                            metrics.published("successfulMsgs", 1);
                            event.map(Option::take);
                        }
                        Err(Error::Refused(reason)) => {
                            tracing::error!(reason, "the bus refused an event");
                            metrics.published("failedMsgs", 1);
                            metrics.events_dropped.inc();
                            event.map(Option::take);
                        }
                        Err(error) => {
                            tracing::debug!(%error, "an event was not written; trying again");
                            metrics.published("failedMsgs", 1);
                            is_topic_missing |= matches!(error, Error::UnknownTopic(_));
                        }
                    }
                }
            }
            let failed: Vec<_> = batch.into_iter().flatten().collect();
            let is_done = failed.is_empty();
            {
                let mut queue = self.shared.queue.lock();
                queue.in_hand = 0;
                for event in failed.into_iter().rev() {
                    if event.gives_way { &mut queue.errors } else { &mut queue.others }.push_front(event);
                }
            }
            if is_done {
                pause = Duration::ZERO;
                continue;
            }
            if is_topic_missing && let Err(error) = admin.create_topic(&topic).await {
                tracing::warn!(%error, topic = topic.name, "can't create topic");
            }
            pause = (pause * 2).clamp(Duration::from_millis(50), Duration::from_secs(2));
            tokio::time::sleep(pause).await;
        }
    }
}

/// Tells about one shard.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    uplink: Uplink,
    shard: ShardId,
    epoch: u64,
    seq: Arc<AtomicU64>,
}

impl Teller {
    pub(crate) fn tell(&self, revision: u64, body: Body) {
        let identity = &self.uplink.shared.identity;
        let gives_way = matches!(body, Body::Error(_));
        let event = NativeEvent {
            event_id: Bytes::copy_from_slice(Uuid::now_v7().as_bytes()),
            shard: self.shard.index,
            revision,
            ownership_epoch: self.epoch,
            incarnation: identity.incarnation.clone(),
            seq: self.seq.fetch_add(1, Ordering::Relaxed),
            time_ms: tbmq_service::time::now_ms(),
            service_id: identity.service_id.clone(),
            body: Some(body),
        };
        let value = wire::encode_event(self.shard.integration, event);
        self.uplink.push(Event { key: self.shard.integration.to_string(), value, gives_way });
    }
}
