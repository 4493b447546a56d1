//! What the control plane measures.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};
use tbmq_service::{
    label_values,
    metrics::{Durations, Label, Registry},
    tls::NotAfter,
};
use tonic::Code;

use crate::{lag::Lags, plane::Plane};

/// gRPC's codes, as they are counted.
const CODES: [&str; 17] = [
    "Ok",
    "Cancelled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

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
    /// The same of authentication providers.
    pub(crate) sealed_providers: Family<[(&'static str, String); 1], Gauge>,
    /// Integrations whose secrets can't be opened; on the control plane that holds the lease.
    pub(crate) unreadable: Gauge,
    /// Nodes that are not remembered because there are too many.
    pub(crate) nodes_dropped: Counter,
    /// Integrations that were not created because there are as many as there may be.
    pub(crate) integrations_refused: Counter,
    /// Watches that are open.
    pub(crate) watchers: Gauge,
    /// Watches refused because too many were open.
    pub(crate) watchers_refused: Counter,
    /// Watches cut because their clients took nothing.
    pub(crate) watchers_cut: Counter,
    /// gRPC calls.
    pub(crate) calls: Calls,
    /// Requests to data planes whose sessions are here.
    pub(crate) node_requests: Counter,
    /// Requests to data planes refused because too many waited for an answer.
    pub(crate) node_requests_refused: Counter,
    /// Requests that other control planes were asked to pass on.
    pub(crate) node_requests_forwarded: Counter,
    /// Answers of data planes that nobody waited for any more.
    pub(crate) node_answers_dropped: Counter,
    /// Calls refused because the caller is not known or lacks the role.
    pub(crate) calls_refused: Counter,
    /// Calls that are not in the audit log: too many were refused, or the store was away for long.
    pub(crate) audit_dropped: Counter,
    /// Writes of the audit log that failed; they are tried again.
    pub(crate) audit_failures: Counter,
    /// Reads of the JWT key set that failed.
    pub(crate) jwks_failures: Counter,
    /// Changed certificates that could not be used.
    pub(crate) tls_reload_failures: Counter,
    /// Until when the certificate is valid.
    pub(crate) tls_not_after: NotAfter,
    /// TLS handshakes that failed.
    pub(crate) handshakes_failed: Counter,
    /// Validations, from the question to its end.
    pub(crate) validation: Family<ValidationEnd, Durations>,
    /// Validations that have no answer yet.
    pub(crate) validations_pending: Gauge,
    /// How far integrations are behind; on the control plane that holds the lease.
    pub(crate) lags: Lags,
    /// Changes that are not on the bus yet; on the control plane that holds the lease.
    pub(crate) relay_backlog: Gauge,
    /// Age of the oldest of them.
    pub(crate) relay_backlog_age: Gauge<f64, AtomicU64>,
    /// Connections to the database.
    pub(crate) sql_connections: Family<SqlConnection, Gauge>,
    /// As many as there may be.
    pub(crate) sql_connections_max: Gauge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ValidationEnd {
    pub(crate) outcome: Validated,
}

label_values! {
    /// How a validation ended.
    pub(crate) enum Validated {
        Accepted,
        Rejected,
        Expired,
        Undelivered,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SqlConnection {
    pub(crate) state: SqlState,
}

label_values! {
    /// What a connection to the database does.
    pub(crate) enum SqlState {
        Idle,
        Used,
    }
}

/// What is counted of gRPC calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    ended: Family<CallEnd, Counter>,
    seconds: Family<CallMethod, Durations>,
    shed: Family<CallShed, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallEnd {
    method: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallMethod {
    method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallShed {
    class: CallClass,
}

label_values! {
    /// Which limit a call was refused at.
    pub(crate) enum CallClass {
        Read,
        Write,
        Check,
    }
}

impl Calls {
    /// A call of a known method has ended, or its stream has begun.
    pub(crate) fn ended(&self, method: &str, code: Code, elapsed: Duration) {
        let method = method.trim_start_matches('/').to_owned();
        let end = CallEnd { method: method.clone(), code: format!("{code:?}") };
        self.ended.get_or_create(&end).inc();
        self.seconds.get_or_create(&CallMethod { method }).observe(elapsed);
    }

    /// A call was refused.
    pub(crate) fn shed(&self, class: CallClass) {
        self.shed.get_or_create(&CallShed { class }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        let method = || Label::bounded("method", "methods of the services that are served");
        registry.family(
            "tbmq_control_calls",
            "gRPC calls by method and code",
            vec![method(), Label::closed("code", &CODES[..])],
            self.ended.clone(),
        );
        registry.family_with_unit(
            "tbmq_control_call",
            "Time of gRPC calls; of streams, until they begin",
            Unit::Seconds,
            vec![method()],
            self.seconds.clone(),
        );
        registry.family(
            "tbmq_control_calls_shed",
            "gRPC calls refused at a limit",
            vec![Label::closed("class", CallClass::NAMES)],
            self.shed.clone(),
        );
    }
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
        counter("integrations_refused", "Creations refused at the limit", &metrics.integrations_refused);
        counter("watchers_refused", "Watches refused at the limit", &metrics.watchers_refused);
        counter("watchers_cut", "Watches cut because nothing was taken", &metrics.watchers_cut);
        counter("node_requests", "Requests to data planes", &metrics.node_requests);
        counter(
            "node_requests_refused",
            "Requests to data planes at the limit",
            &metrics.node_requests_refused,
        );
        counter("node_requests_forwarded", "Requests passed on by others", &metrics.node_requests_forwarded);
        counter(
            "node_answers_dropped",
            "Answers of data planes that came late",
            &metrics.node_answers_dropped,
        );
        counter("calls_refused", "Calls refused for want of identity or role", &metrics.calls_refused);
        counter("audit_dropped", "Calls that are not in the audit log", &metrics.audit_dropped);
        counter("audit_failures", "Failed writes of the audit log", &metrics.audit_failures);
        counter("jwks_failures", "Failed reads of the JWT key set", &metrics.jwks_failures);
        counter("tls_reload_failures", "Changed certificates not usable", &metrics.tls_reload_failures);
        counter("handshakes_failed", "Failed TLS handshakes", &metrics.handshakes_failed);
        metrics.tls_not_after.register("tbmq_control_tls_certificate_not_after", registry);
        let key = || Label::bounded("key", "ids of the keys of secrets that are configured or in use");
        registry.family(
            "tbmq_control_sealed_integrations",
            "Integrations whose secrets are sealed, by key",
            vec![key()],
            metrics.sealed.clone(),
        );
        registry.family(
            "tbmq_control_sealed_providers",
            "Authentication providers whose secrets are sealed, by key",
            vec![key()],
            metrics.sealed_providers.clone(),
        );
        registry.register(
            "tbmq_control_unreadable_integrations",
            "Integrations whose secrets can't be opened",
            metrics.unreadable.clone(),
        );
        registry.register("tbmq_control_watchers", "Open watches", metrics.watchers.clone());
        registry.register("tbmq_control_leading", "1 while holding the lease", metrics.leading.clone());
        metrics.calls.register(registry);
        metrics.register_work(registry);
        metrics.lags.register(registry);
        metrics
    }

    /// Looks up what is not kept.
    pub(crate) fn look(&self, plane: &Plane) {
        self.validations_pending.set(plane.validator.pending() as i64);
        let pool = plane.store.pool();
        let idle = pool.idle.min(pool.open);
        self.sql_connections.get_or_create(&SqlConnection { state: SqlState::Idle }).set(idle as i64);
        self.sql_connections
            .get_or_create(&SqlConnection { state: SqlState::Used })
            .set((pool.open - idle) as i64);
        self.sql_connections_max.set(pool.max as i64);
    }

    fn register_work(&self, registry: &mut Registry) {
        registry.family_with_unit(
            "tbmq_control_validation",
            "From asking executors to validate, or to check a connection, to the end of that",
            Unit::Seconds,
            vec![Label::closed("outcome", Validated::NAMES)],
            self.validation.clone(),
        );
        registry.register(
            "tbmq_control_validations_pending",
            "Validations that have no answer yet",
            self.validations_pending.clone(),
        );
        registry.register(
            "tbmq_control_relay_backlog",
            "Changes in SQL that are not on the bus yet, those of who may connect included; on the control plane that \
             holds the lease",
            self.relay_backlog.clone(),
        );
        registry.register_with_unit(
            "tbmq_control_relay_backlog_age",
            "Age of the oldest change of an integration that is not on the bus yet; on the control plane that holds \
             the lease",
            Unit::Seconds,
            self.relay_backlog_age.clone(),
        );
        registry.family(
            "tbmq_control_sql_connections",
            "Open connections to the database",
            vec![Label::closed("state", SqlState::NAMES)],
            self.sql_connections.clone(),
        );
        registry.register(
            "tbmq_control_sql_connections_max",
            "Connections to the database that there may be",
            self.sql_connections_max.clone(),
        );
    }
}
