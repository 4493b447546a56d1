//! Tells the others what this node has applied (architecture §4.9): on change, at most every 20 ms, and every 5 s.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tbmq_bus::{Outgoing, TopicHandle, Writer, write};
use tbmq_proto::wire::{NodeApplied, Role};
use tbmq_service::{identity::Identity, system::Meter, time};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{plane::Plane, positions::Positions};

/// Time between two records at least.
const PAUSE: Duration = Duration::from_millis(20);

/// Time between two records at most.
const PERIOD: Duration = Duration::from_secs(5);

/// How long the last record may take.
const LEAVING_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) writer: Arc<dyn Writer>,
    pub(crate) topic: TopicHandle,
    pub(crate) identity: Identity,
    pub(crate) addresses: Vec<String>,
    pub(crate) positions: Vec<Positions>,
    pub(crate) changed: watch::Receiver<()>,
    pub(crate) meter: Meter,
    pub(crate) plane: Arc<Plane>,
}

impl Applied {
    /// Writes until it is stopped, and then that the node leaves.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            // Whoever stops must not wait for a bus that does not answer.
            tokio::select! {
                () = self.write(false) => {}
                () = stop.cancelled() => break,
            }
            let next = async {
                tokio::time::sleep(PAUSE).await;
                let change = tokio::time::timeout(PERIOD.saturating_sub(PAUSE), self.changed.changed());
                if let Ok(Err(_)) = change.await {
                    // Nothing changes any more; the node still lives.
                    tokio::time::sleep(PERIOD).await;
                }
            };
            tokio::select! {
                () = next => {}
                () = stop.cancelled() => break,
            }
        }
        if tokio::time::timeout(LEAVING_PATIENCE, self.write(true)).await.is_err() {
            tracing::warn!("can't tell that this node leaves");
        }
    }

    async fn write(&mut self, leaving: bool) {
        self.changed.mark_unchanged();
        let record = NodeApplied {
            service_id: self.identity.service_id.clone(),
            role: Role::DataPlane as i32,
            incarnation: self.identity.incarnation.clone(),
            version: self.identity.version.to_owned(),
            positions: self.positions.iter().flat_map(Positions::applied).collect(),
            time_ms: time::now_ms(),
            started_ms: self.identity.started_ms,
            addresses: self.addresses.clone(),
            kinds: Vec::new(),
            leaving,
            system_info: Some(self.meter.load().into()),
            sessions: self.plane.registry.sessions() as u64,
        };
        let value = record.encode_to_vec();
        let outgoing = Outgoing {
            partition: None,
            key: Some(self.identity.service_id.as_bytes()),
            value: Some(&value),
            headers: &[],
        };
        if let Err(error) = write(&*self.writer, &self.topic, outgoing).await {
            tracing::warn!(%error, "can't tell what this node has applied");
        }
    }
}
