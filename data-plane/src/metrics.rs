//! What the data plane counts. Labels come from closed sets; never a client or a topic.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tbmq_mqtt::session;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EndLabel {
    reason: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum End {
    Client,
    Network,
    Refused,
    ConnectTimeout,
    KeepAlive,
    TakenOver,
    Protocol,
    PublishRefused,
    SlowConsumer,
    ShuttingDown,
    Moved,
    Administrative,
}

impl From<session::End> for EndLabel {
    fn from(end: session::End) -> Self {
        let reason = match end {
            session::End::Client => End::Client,
            session::End::Network => End::Network,
            session::End::Refused => End::Refused,
            session::End::ConnectTimeout => End::ConnectTimeout,
            session::End::KeepAlive => End::KeepAlive,
            session::End::TakenOver => End::TakenOver,
            session::End::Protocol => End::Protocol,
            session::End::PublishRefused => End::PublishRefused,
            session::End::SlowConsumer => End::SlowConsumer,
            session::End::ShuttingDown => End::ShuttingDown,
            session::End::Moved => End::Moved,
            session::End::Administrative => End::Administrative,
        };
        Self { reason }
    }
}

/// Why a delivery or a QoS 0 publish was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DropLabel {
    pub(crate) reason: Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Drop {
    TooLarge,
    Expired,
    DelayedTooLong,
    InvalidTopic,
    QueueFull,
    Disconnected,
    BusRefused,
}

impl From<session::Dropped> for DropLabel {
    fn from(dropped: session::Dropped) -> Self {
        let reason = match dropped {
            session::Dropped::TooLarge => Drop::TooLarge,
            session::Dropped::Expired => Drop::Expired,
            session::Dropped::Delayed => Drop::DelayedTooLong,
            session::Dropped::InvalidTopic => Drop::InvalidTopic,
        };
        Self { reason }
    }
}

/// Why the bus did not take, or did not keep, a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusalLabel {
    pub(crate) reason: Refusal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Refusal {
    TopicFull,
    Unavailable,
    UnknownTopic,
    Probing,
    Other,
}

/// The data plane's metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) connections: Gauge,
    pub(crate) accepted: Counter,
    pub(crate) connection_limit_reached: Counter,
    pub(crate) accept_failures: Counter,
    pub(crate) ended: Family<EndLabel, Counter>,
    pub(crate) published: Counter,
    pub(crate) unmatched: Counter,
    pub(crate) delivered: Counter,
    pub(crate) dropped: Family<DropLabel, Counter>,
    pub(crate) records_submitted: Counter,
    pub(crate) records_written: Counter,
    pub(crate) records_refused: Family<RefusalLabel, Counter>,
    pub(crate) bus_full: Counter,
    pub(crate) sick_topics: Gauge,
    pub(crate) in_flight_limit_reached: Counter,
    pub(crate) integrations: Gauge,
    pub(crate) bad_records: Counter,
    pub(crate) stale_records: Counter,
    pub(crate) degraded: Gauge,
    pub(crate) node_sessions_lost: Counter,
    pub(crate) node_requests: Counter,
    pub(crate) node_requests_refused: Counter,
    pub(crate) peers: Gauge,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let counters: [(&str, &str, &Counter); 15] = [
            ("tbmq_mqtt_connections_accepted", "Connections accepted", &self.accepted),
            (
                "tbmq_mqtt_connection_limit_reached",
                "Connections closed at once because there were too many",
                &self.connection_limit_reached,
            ),
            (
                "tbmq_mqtt_accept_failures",
                "Connections that the system could not accept",
                &self.accept_failures,
            ),
            (
                "tbmq_mqtt_messages_published",
                "Messages that clients published, wills included",
                &self.published,
            ),
            ("tbmq_mqtt_messages_unmatched", "Published messages that nobody gets", &self.unmatched),
            ("tbmq_mqtt_messages_delivered", "Messages handed to connected clients", &self.delivered),
            ("tbmq_mqtt_records_submitted", "Records handed to the bus", &self.records_submitted),
            ("tbmq_mqtt_records_written", "Records that the bus confirmed", &self.records_written),
            (
                "tbmq_mqtt_bus_full",
                "Times that a socket was not read because the bus was full",
                &self.bus_full,
            ),
            (
                "tbmq_mqtt_in_flight_limit_reached",
                "Times that a socket was not read because too much of its own was in flight",
                &self.in_flight_limit_reached,
            ),
            (
                "tbmq_subscriptions_bad_records",
                "Records of integration filters that were skipped",
                &self.bad_records,
            ),
            (
                "tbmq_subscriptions_stale_records",
                "Records of integration filters older than what was held",
                &self.stale_records,
            ),
            (
                "tbmq_node_sessions_lost",
                "Sessions to a control plane that ended or failed",
                &self.node_sessions_lost,
            ),
            ("tbmq_node_requests", "Requests of control planes that were taken up", &self.node_requests),
            (
                "tbmq_node_requests_refused",
                "Requests of control planes refused because too many waited",
                &self.node_requests_refused,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("tbmq_mqtt_connections", "Connections now", self.connections.clone());
        registry.register("tbmq_mqtt_connections_ended", "Connections that ended", self.ended.clone());
        registry.register("tbmq_mqtt_messages_dropped", "Messages dropped", self.dropped.clone());
        registry.register(
            "tbmq_mqtt_records_refused",
            "Records not kept by the bus",
            self.records_refused.clone(),
        );
        registry.register(
            "tbmq_mqtt_sick_topics",
            "Message topics that are only probed",
            self.sick_topics.clone(),
        );
        registry.register(
            "tbmq_subscriptions_integrations",
            "Integrations with filters",
            self.integrations.clone(),
        );
        registry.register(
            "tbmq_subscriptions_degraded",
            "1 while it is not confirmed that the filters of integrations are up to date",
            self.degraded.clone(),
        );
        registry.register("tbmq_node_data_plane_peers", "Other live data planes", self.peers.clone());
    }

    pub(crate) fn dropped(&self, reason: Drop) {
        self.dropped.get_or_create(&DropLabel { reason }).inc();
    }

    pub(crate) fn dropped_by(&self, reason: Drop, count: usize) {
        if count > 0 {
            self.dropped.get_or_create(&DropLabel { reason }).inc_by(count as u64);
        }
    }

    pub(crate) fn refused(&self, reason: Refusal) {
        self.records_refused.get_or_create(&RefusalLabel { reason }).inc();
    }
}
