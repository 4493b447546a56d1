//! What unit tests share: control planes without their tasks, over the bus in memory and SQLite.

use std::{collections::BTreeMap, num::NonZeroU32, path::Path, sync::Arc};

use tbmq_bus::memory::MemoryBus;
use tbmq_proto::{ids::IntegrationId, topic::Catalogue};
use tbmq_service::{admin::Health, identity::Identity, trace::Tracer};

use crate::{
    Config, Context,
    access::Access,
    fault::Faults,
    metrics::Metrics,
    plane::Plane,
    relayer::Relayer,
    store::{New, Store},
};

pub(crate) async fn plane(folder: &Path, bus: &Arc<MemoryBus>, id: &str) -> Arc<Plane> {
    let mut config = Config::default();
    config.use_sqlite(&folder.join("control.db"));
    config.spring.datasource.maximum_pool_size = NonZeroU32::MIN;
    let store = Store::open(&config.store_options().unwrap()).await.unwrap();
    let context = Context {
        bus: bus.clone(),
        catalogue: Catalogue::new(""),
        replication_factor: 1,
        topic_deletion: true,
        identity: Identity::of("control-plane", Some(id)),
        metrics: tbmq_service::metrics::Metrics::default(),
        health: Health::default(),
        tracer: Tracer::off(),
    };
    let metrics = Metrics::default();
    let access = Arc::new(Access::open(&config.control, id, &store, &metrics).await.unwrap());
    let id = id.parse().unwrap();
    Arc::new(Plane::new(config, context, id, store, access, metrics, Faults::default()))
}

pub(crate) async fn relayer(plane: &Arc<Plane>) -> Relayer {
    plane.ensure(&plane.catalogue.integration_subscriptions()).await.unwrap();
    let writer = plane.bus.fenced_writer(&plane.catalogue.relayer()).await.unwrap();
    Relayer::new(plane.clone(), writer)
}

pub(crate) fn new(name: &str) -> New {
    New {
        id: IntegrationId(uuid::Uuid::new_v4()),
        name: name.to_owned(),
        kind: "HTTP".parse().unwrap(),
        enabled: true,
        configuration: r#"{"topicFilters":["a"],"clientConfiguration":{}}"#.to_owned(),
        labels: BTreeMap::new(),
        description: String::new(),
        shards: 1,
    }
}
