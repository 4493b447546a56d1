//! What all parts of an executor share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::Value;
use tbmq_bus::{Admin, Writer, spec_of};
use tbmq_integration::{
    seal::Keys,
    stats::{Admission, ErrorLimiter},
    wire::Target,
};
use tbmq_proto::{
    ids::{IntegrationId, Kind, ServiceId},
    topic::{Catalogue, Topic},
};
use tbmq_service::{identity::Identity, trace::Tracer};
use tokio::sync::{Notify, Semaphore};

use crate::{
    config::Config, incarnation::Newer, lookup::Lookup, messages::Messages, metrics::Metrics, owners::Owners,
    redact::Redactor, runner::Clock, sink::SinkKind, uplink::Uplink,
};

/// Pause between two tries to make a topic anew.
const PAUSE: Duration = Duration::from_millis(500);

/// What all parts of an executor share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) service_id: ServiceId,
    pub(crate) executor_id: Arc<str>,
    pub(crate) catalogue: Catalogue,
    pub(crate) replication_factor: u16,
    pub(crate) admin: Arc<dyn Admin>,
    pub(crate) writer: Arc<dyn Writer>,
    pub(crate) kinds: BTreeMap<Kind, Served>,
    /// The keys of secrets.
    pub(crate) keys: Keys,
    pub(crate) messages: Messages,
    pub(crate) uplink: Uplink,
    pub(crate) metrics: Metrics,
    /// `None`: no limit on error events.
    pub(crate) limiter: Option<Mutex<ErrorLimiter>>,
    pub(crate) clock: Clock,
    pub(crate) lookup: Lookup,
    pub(crate) tracer: Tracer,
    /// Integrations that connect at a time.
    pub(crate) connects: Semaphore,
    pub(crate) owners: Owners,
    pub(crate) newer: Newer,
    pub(crate) applied: Applied,
}

/// A kind that is served.
pub(crate) struct Served {
    pub(crate) kind: Arc<dyn SinkKind>,
    /// Of its `clientConfiguration`.
    pub(crate) schema: Value,
}

impl Served {
    pub(crate) fn new(kind: Arc<dyn SinkKind>) -> Self {
        Self { schema: kind.schema(), kind }
    }
}

impl Shared {
    /// The target with its whole configuration, or a text for people.
    pub(crate) fn open(&self, integration: IntegrationId, target: &Target) -> Result<Target, String> {
        let Some(sealed) = &target.sealed else { return Ok(target.clone()) };
        let whole = self.keys.open(integration, &target.configuration, sealed);
        let configuration = whole.map_err(|error| error.to_string())?.into();
        Ok(Target { configuration, sealed: None, ..target.clone() })
    }

    /// What keeps the secrets of an opened configuration out of texts.
    pub(crate) fn redactor(&self, kind: &Kind, configuration: &str) -> Redactor {
        let schema = self.kinds.get(kind).map_or(&Value::Null, |served| &served.schema);
        Redactor::new(schema, configuration)
    }

    /// A served kind, or a text for people.
    pub(crate) fn kind(&self, kind: &Kind) -> Result<&Arc<dyn SinkKind>, String> {
        self.kinds
            .get(kind)
            .map(|served| &served.kind)
            .ok_or_else(|| format!("integration type {kind} is not served by this executor"))
    }

    /// Makes a topic that was deleted anew. Tries until it succeeds.
    pub(crate) async fn make_anew(&self, topic: &Topic) {
        let spec = spec_of(topic, self.replication_factor);
        while let Err(error) = self.admin.create_topic(&spec).await {
            tracing::warn!(%error, topic = topic.name, "can't create topic; trying again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether an error event may be written.
    pub(crate) fn admit(&self, integration: IntegrationId) -> Admission {
        match &self.limiter {
            Some(limiter) => limiter.lock().admit(self.clock.now(), integration),
            None => Admission::Pass,
        }
    }
}

/// Positions of downlink partitions up to which everything was applied.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    positions: Mutex<BTreeMap<(String, u32), u64>>,
    pub(crate) changed: Notify,
}

impl Applied {
    pub(crate) fn set(&self, topic: &str, partition: u32, position: u64) {
        self.positions.lock().insert((topic.to_owned(), partition), position);
        self.changed.notify_one();
    }

    pub(crate) fn remove(&self, topic: &str, partition: u32) {
        self.positions.lock().remove(&(topic.to_owned(), partition));
        self.changed.notify_one();
    }

    pub(crate) fn all(&self) -> BTreeMap<(String, u32), u64> {
        self.positions.lock().clone()
    }
}
