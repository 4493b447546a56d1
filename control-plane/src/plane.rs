//! What the parts of a control plane share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tbmq_bus::{Admin, Bus, TopicSpec, spec_of};
use tbmq_proto::{
    ids::{IntegrationId, Kind, ServiceId},
    topic::{Catalogue, DOWNLINK_PARTITIONS, Topic},
};
use tbmq_service::{drain::Drain, identity::Identity, trace::Tracer};
use tokio::sync::Notify;

use crate::{
    access::Access,
    auth::hashing::Hashing,
    changes::Changes,
    claims::Claims,
    commands::Commands,
    config::Config,
    fault::Faults,
    metrics::Metrics,
    nodes::Nodes,
    peers::Peers,
    projected::Projected,
    store::{Item, KindRow, Request, Saved, Store},
    validate::Validator,
};

/// Kinds that the product comes with: their downlink topics exist from the start (seed 000, "Downlink topic").
pub(crate) const BUILT_IN_KINDS: [&str; 3] = ["HTTP", "MQTT", "KAFKA"];

/// Kinds that are remembered at most.
pub(crate) const KINDS_MAX: usize = 1_000;

/// What the parts of a control plane share.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) service_id: ServiceId,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) admin: Arc<dyn Admin>,
    pub(crate) catalogue: Catalogue,
    pub(crate) replication_factor: u16,
    pub(crate) topic_deletion: bool,
    pub(crate) store: Store,
    pub(crate) nodes: Nodes,
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) claims: Claims,
    pub(crate) commands: Commands,
    pub(crate) peers: Peers,
    pub(crate) validator: Validator,
    pub(crate) metrics: Metrics,
    pub(crate) access: Arc<Access>,
    pub(crate) tracer: Tracer,
    pub(crate) drain: Drain,
    pub(crate) faults: Faults,
    /// There may be dirty marks.
    pub(crate) dirty: Notify,
    /// There may be topics to move on in their lives.
    pub(crate) restless: Notify,
    pub(crate) projected: Projected<IntegrationId>,
    /// There may be dirty marks of who may connect.
    pub(crate) auth_dirty: Notify,
    pub(crate) auth_projected: Projected<Item>,
    pub(crate) hashing: Hashing,
    pub(crate) changes: Changes,
    /// Downlink topics that are known to exist.
    downlinks: Mutex<BTreeMap<Kind, Downlink>>,
    advertised: OnceLock<String>,
}

/// What is known of a downlink topic.
#[derive(Clone, Copy, Debug)]
struct Downlink {
    exists: bool,
    partitions: u32,
}

impl Plane {
    pub(crate) fn new(
        config: Config,
        context: crate::Context,
        service_id: ServiceId,
        store: Store,
        access: Arc<Access>,
        metrics: Metrics,
        faults: Faults,
    ) -> Self {
        Self {
            validator: Validator::new(
                config.control.validations_max,
                context.catalogue.clone(),
                store.vault().clone(),
                metrics.clone(),
                context.tracer.clone(),
            ),
            changes: Changes::new(
                config.control.watchers_max.get(),
                config.control.watchers_per_client_max.get(),
            ),
            config,
            identity: context.identity,
            service_id,
            admin: context.bus.admin(),
            bus: context.bus,
            catalogue: context.catalogue,
            replication_factor: context.replication_factor,
            topic_deletion: context.topic_deletion,
            kinds: store.vault().kinds(),
            store,
            nodes: Nodes::new(),
            claims: Claims::default(),
            commands: Commands::new(metrics.clone()),
            peers: Peers::new(context.tracer.clone()),
            metrics,
            access,
            tracer: context.tracer,
            drain: Drain::new(),
            faults,
            dirty: Notify::new(),
            restless: Notify::new(),
            projected: Projected::default(),
            auth_dirty: Notify::new(),
            auth_projected: Projected::default(),
            hashing: Hashing::new(),
            downlinks: Mutex::default(),
            advertised: OnceLock::new(),
        }
    }

    /// Says where other control planes reach this one; only the first time counts.
    pub(crate) fn advertise(&self, url: String) {
        self.advertised.get_or_init(|| url);
    }

    /// Where other control planes reach this one; empty before it listens.
    pub(crate) fn advertised(&self) -> &str {
        self.advertised.get().map_or("", String::as_str)
    }

    /// Who saves, and when.
    pub(crate) fn saved<'a>(&'a self, request: Option<&'a Request>) -> Saved<'a> {
        Saved {
            service_id: &self.identity.service_id,
            incarnation: &self.identity.incarnation,
            now_ms: tbmq_service::time::now_ms(),
            request,
        }
    }

    /// Wakes the relayer and the watches after a commit.
    pub(crate) fn committed(&self) {
        self.changes.nudge();
        self.dirty.notify_one();
        self.restless.notify_one();
    }

    /// As [`Plane::committed`], of who may connect.
    pub(crate) fn auth_committed(&self) {
        self.auth_dirty.notify_one();
    }

    /// Creates a topic if it does not exist.
    pub(crate) async fn ensure(&self, topic: &Topic) -> Result<(), tbmq_bus::Error> {
        self.admin.create_topic(&self.spec_of(topic)).await.map(|_| ())
    }

    /// Creates the topics of who may connect that do not exist.
    pub(crate) async fn ensure_auth(&self) -> Result<(), tbmq_bus::Error> {
        let catalogue = &self.catalogue;
        for topic in [
            catalogue.credentials(),
            catalogue.auth_settings(),
            catalogue.blocked_clients(),
            catalogue.unauthorized_clients(),
        ] {
            self.ensure(&topic).await?;
        }
        Ok(())
    }

    /// How a topic is created here.
    pub(crate) fn spec_of(&self, topic: &Topic) -> TopicSpec {
        spec_of(topic, self.replication_factor)
    }

    /// Creates the downlink topic of a kind if it does not exist; returns how many partitions it has.
    pub(crate) async fn ensure_downlink(&self, kind: &Kind) -> Result<u32, tbmq_bus::Error> {
        let known = self.downlinks.lock().get(kind).copied();
        if let Some(Downlink { exists: true, partitions }) = known {
            return Ok(partitions);
        }
        let topic = self.catalogue.downlink(kind);
        self.ensure(&topic).await?;
        // It may have been created by others, with another number of partitions.
        let info = self.admin.topic(&topic.name).await?;
        let partitions = info.ok_or(tbmq_bus::Error::UnknownTopic(topic.name))?.partitions;
        let mut downlinks = self.downlinks.lock();
        if known.is_some() || downlinks.len() < KINDS_MAX {
            downlinks.insert(kind.clone(), Downlink { exists: true, partitions });
        }
        Ok(partitions)
    }

    /// How many partitions the downlink topic of a kind has, as far as is known. Does not wait.
    pub(crate) fn downlink_partitions(&self, kind: &Kind) -> u32 {
        self.downlinks.lock().get(kind).map_or(DOWNLINK_PARTITIONS, |downlink| downlink.partitions)
    }

    /// A downlink topic was found missing or changed.
    pub(crate) fn forget_downlinks(&self) {
        self.downlinks.lock().values_mut().for_each(|downlink| downlink.exists = false);
    }

    /// Every kind that has or may have a downlink topic.
    pub(crate) fn all_kinds(&self) -> Vec<Kind> {
        let mut kinds: BTreeSet<Kind> =
            BUILT_IN_KINDS.iter().map(|kind| kind.parse().expect("built-in kinds are kinds")).collect();
        kinds.extend(self.kinds.names().iter().filter_map(|name| name.parse().ok()));
        kinds.into_iter().collect()
    }
}

/// The kinds that were announced, as kept in the store.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    kinds: RwLock<BTreeMap<String, KnownKind>>,
}

/// A kind with its schema read.
#[derive(Clone, Debug)]
pub(crate) struct KnownKind {
    pub(crate) json_schema: Arc<str>,
    pub(crate) schema: Arc<Value>,
}

impl Kinds {
    /// Takes a kind; `false` when its schema is no JSON, or there are too many kinds.
    pub(crate) fn put(&self, row: &KindRow) -> bool {
        let Ok(schema) = serde_json::from_str::<Value>(&row.json_schema) else { return false };
        let mut kinds = self.kinds.write();
        if kinds.len() >= KINDS_MAX && !kinds.contains_key(&row.name) {
            return false;
        }
        let known = KnownKind { json_schema: row.json_schema.as_str().into(), schema: Arc::new(schema) };
        kinds.insert(row.name.clone(), known);
        true
    }

    pub(crate) fn get(&self, name: &str) -> Option<KnownKind> {
        self.kinds.read().get(name).cloned()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.kinds.read().keys().cloned().collect()
    }
}
