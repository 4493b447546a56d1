//! What the control plane measures.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Counters and gauges of the control plane.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Records that could not be understood and were skipped.
    pub(crate) bad_records: Counter,
    /// Events stored.
    pub(crate) events: Counter,
    /// Validations that were started.
    pub(crate) validations: Counter,
    /// Validations that nobody answered.
    pub(crate) validations_expired: Counter,
    /// Validations refused because too many were pending.
    pub(crate) validations_refused: Counter,
    /// Tombstones of request keys that could not be written; the next reconciliation writes them.
    pub(crate) tombstones_dropped: Counter,
    /// Integrations whose records were written.
    pub(crate) projections: Counter,
    /// Records that differed from the store and were repaired.
    pub(crate) repairs: Counter,
    /// Writes of the relayer that failed.
    pub(crate) relay_failures: Counter,
    /// 1 while this control plane holds the lease.
    pub(crate) leading: Gauge,
    /// Integrations whose secrets are sealed, by key; on the control plane that holds the lease.
    pub(crate) sealed: Family<[(&'static str, String); 1], Gauge>,
    /// Integrations whose secrets can't be opened; on the control plane that holds the lease.
    pub(crate) unreadable: Gauge,
    /// Nodes that are not remembered because there are too many.
    pub(crate) nodes_dropped: Counter,
    /// Watches that are open.
    pub(crate) watchers: Gauge,
    /// Watches refused because too many were open.
    pub(crate) watchers_refused: Counter,
    /// Watches cut because their clients took nothing.
    pub(crate) watchers_cut: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("tbmq_control_{name}"), help, counter.clone());
        };
        counter("bad_records", "Records that could not be understood and were skipped", &metrics.bad_records);
        counter("events", "Events stored", &metrics.events);
        counter("validations", "Validations started", &metrics.validations);
        counter("validations_expired", "Validations without an answer", &metrics.validations_expired);
        counter("validations_refused", "Validations refused at the limit", &metrics.validations_refused);
        counter("tombstones_dropped", "Request keys left to the reconciler", &metrics.tombstones_dropped);
        counter("projections", "Integrations whose records were written", &metrics.projections);
        counter("repairs", "Records that differed from the store", &metrics.repairs);
        counter("relay_failures", "Failed writes of the relayer", &metrics.relay_failures);
        counter("nodes_dropped", "Nodes beyond the limit", &metrics.nodes_dropped);
        counter("watchers_refused", "Watches refused at the limit", &metrics.watchers_refused);
        counter("watchers_cut", "Watches cut because nothing was taken", &metrics.watchers_cut);
        registry.register(
            "tbmq_control_sealed_integrations",
            "Integrations whose secrets are sealed, by key",
            metrics.sealed.clone(),
        );
        registry.register(
            "tbmq_control_unreadable_integrations",
            "Integrations whose secrets can't be opened",
            metrics.unreadable.clone(),
        );
        registry.register("tbmq_control_watchers", "Open watches", metrics.watchers.clone());
        registry.register("tbmq_control_leading", "1 while holding the lease", metrics.leading.clone());
        metrics
    }
}
