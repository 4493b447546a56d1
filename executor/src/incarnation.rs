//! Whether a newer process with our service id is at work (architecture §4.27): of two the newer goes on, whichever of
//! them the group has heard last.

use std::sync::Arc;

use prost::Message as _;
use tbmq_bus::{Reader, ReaderEvent, Start, TopicPartition};
use tbmq_proto::wire::{NodeApplied, Role};
use tbmq_service::identity::Superseded;
use tokio::sync::watch;

use crate::executor::Shared;

/// What is known of a newer one.
#[derive(Debug, Default)]
pub(crate) struct Newer(watch::Sender<Option<Superseded>>);

impl Newer {
    /// Completes when a newer one was seen. Cancel-safe.
    pub(crate) async fn seen(&self) -> Superseded {
        let mut newer = self.0.subscribe();
        loop {
            let seen = newer.borrow_and_update().clone();
            if let Some(superseded) = seen {
                return superseded;
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
                if let Some(newer) = newer.map(|node| node.incarnation).max()
                    && newer > own.incarnation
                {
                    shared.newer.0.send_replace(Some(own.superseded_by(newer)));
                }
            }
            ReaderEvent::End { .. } | ReaderEvent::Gap { .. } => {}
            ReaderEvent::Gone { .. } => {
                shared.make_anew(&topic).await;
                reader.add(&partition, Start::Earliest);
            }
        }
    }
}
