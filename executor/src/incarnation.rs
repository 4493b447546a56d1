//! Whether a newer process with our service id is at work (architecture §4.27): of two the newer goes on, whichever of
//! them the group has heard last.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tbmq_bus::{Reader, ReaderEvent, Start, TopicPartition, spec_of};
use tbmq_proto::wire::{NodeApplied, Role};
use tokio::sync::watch;

use crate::executor::Shared;

/// Pause between two tries to make the topic anew.
const PAUSE: Duration = Duration::from_millis(500);

/// A newer process with our service id is at work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "incarnation {incarnation} of service id {service_id} has taken over from this one, {own}; if they are two \
     processes, give each a TB_SERVICE_ID of its own"
)]
pub(crate) struct Replaced {
    service_id: String,
    own: String,
    incarnation: String,
}

/// What is known of a newer one.
#[derive(Debug, Default)]
pub(crate) struct Newer(watch::Sender<Option<Replaced>>);

impl Newer {
    /// Completes when a newer one was seen. Cancel-safe.
    pub(crate) async fn seen(&self) -> Replaced {
        let mut newer = self.0.subscribe();
        loop {
            let seen = newer.borrow_and_update().clone();
            if let Some(replaced) = seen {
                return replaced;
            }
            if newer.changed().await.is_err() {
                // The sender is ours.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Follows what nodes write about themselves from now on: what lies there already may be of a dead one whose clock was
/// ahead.
pub(crate) async fn follow(shared: Arc<Shared>, mut reader: Box<dyn Reader>) {
    let topic = shared.catalogue.node_applied();
    let partition = TopicPartition::new(topic.name.as_str(), 0);
    reader.add(&partition, Start::Latest);
    let own = &shared.identity;
    loop {
        match reader.next().await {
            ReaderEvent::Batch { records, .. } => {
                let nodes = records.into_iter().filter_map(|record| NodeApplied::decode(record.value?).ok());
                let newer =
                    nodes.filter(|node| node.service_id == own.service_id && node.role() == Role::Executor);
                if let Some(newer) = newer.max_by(|one, other| one.incarnation.cmp(&other.incarnation))
                    && newer.incarnation > own.incarnation
                {
                    let (service_id, own) = (own.service_id.clone(), own.incarnation.clone());
                    let replaced = Replaced { service_id, own, incarnation: newer.incarnation };
                    shared.newer.0.send_replace(Some(replaced));
                }
            }
            ReaderEvent::End { .. } | ReaderEvent::Gap { .. } => {}
            ReaderEvent::Gone { .. } => {
                let spec = spec_of(&topic, shared.replication_factor);
                while let Err(error) = shared.admin.create_topic(&spec).await {
                    tracing::warn!(%error, topic = topic.name, "can't create topic");
                    tokio::time::sleep(PAUSE).await;
                }
                reader.add(&partition, Start::Earliest);
            }
        }
    }
}
