//! What the data plane counts. Labels come from closed sets; never a client or a topic.

use std::sync::atomic::Ordering;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};
use tbmq_mqtt::{
    packet::{Packet, ReasonCode},
    session,
};
use tbmq_service::{
    label_values,
    metrics::{Durations, Label, Registry},
    tls::NotAfter,
};

use crate::{auth, plane::Plane};

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EndLabel {
    reason: End,
}

label_values! {
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
        NotAuthorized,
    }
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
            session::End::NotAuthorized => End::NotAuthorized,
        };
        Self { reason }
    }
}

/// Why a delivery or a QoS 0 publish was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DropLabel {
    pub(crate) reason: Drop,
}

label_values! {
    pub(crate) enum Drop {
        TooLarge,
        Expired,
        DelayedTooLong,
        InvalidTopic,
        NotAuthorized,
        QueueFull,
        Disconnected,
        BusRefused,
        /// No member of a shared subscription had room.
        NoMember,
        /// More than a rate limit allows.
        RateLimit,
    }
}

impl From<session::Dropped> for DropLabel {
    fn from(dropped: session::Dropped) -> Self {
        let reason = match dropped {
            session::Dropped::TooLarge => Drop::TooLarge,
            session::Dropped::Expired => Drop::Expired,
            session::Dropped::Delayed => Drop::DelayedTooLong,
            session::Dropped::InvalidTopic => Drop::InvalidTopic,
            session::Dropped::NotAuthorized => Drop::NotAuthorized,
            session::Dropped::RateLimit => Drop::RateLimit,
        };
        Self { reason }
    }
}

/// Why the bus did not take, or did not keep, a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusalLabel {
    pub(crate) reason: Refusal,
}

label_values! {
    pub(crate) enum Refusal {
        TopicFull,
        Unavailable,
        UnknownTopic,
        Probing,
        StoreFull,
        BusFull,
        Other,
    }
}

/// What a client wanted more of than it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct LimitLabel {
    pub(crate) limit: Limit,
}

label_values! {
    pub(crate) enum Limit {
        /// Bytes of a packet (`…_NETTY_MAX_PAYLOAD_SIZE`).
        PacketBytes,
        /// Unacknowledged publishes of a 5.0 client (`MQTT_MAX_IN_FLIGHT_MSGS`).
        ReceiveMaximum,
        /// Topic aliases (`MQTT_TOPIC_ALIAS_MAX`).
        TopicAliases,
        /// Topic filters (`TBMQ_MQTT_SUBSCRIPTIONS_CLIENT_MAX`).
        Subscriptions,
        /// Messages that a client publishes (`MQTT_INCOMING_RATE_LIMITS_CLIENT_CONFIG`).
        IncomingRate,
        /// Messages to a client (`MQTT_OUTGOING_RATE_LIMITS_CLIENT_CONFIG`).
        OutgoingRate,
        /// Messages of all clients (`MQTT_TOTAL_RATE_LIMITS_CONFIG`).
        TotalRate,
        /// Messages put into queues (`MQTT_DEVICE_PERSISTED_MSGS_RATE_LIMITS_CONFIG`).
        DevicePersistedRate,
        /// Bytes that a client sends (`TBMQ_MQTT_INCOMING_BYTES_RATE_LIMIT`).
        IncomingBytes,
        /// Connections of the node (`TBMQ_MQTT_CONNECTION_RATE_LIMIT`).
        ConnectionRate,
        /// Connections from an address (`TBMQ_MQTT_ADDRESS_CONNECTION_RATE_LIMIT`).
        AddressConnectionRate,
        /// Connections at a time from an address (`TBMQ_MQTT_ADDRESS_CONNECTIONS_MAX`).
        AddressConnections,
        /// Lasting sessions of APPLICATION clients (`MQTT_APPLICATION_CLIENTS_LIMIT`).
        ApplicationClients,
    }
}

impl Limit {
    /// The limit that a client is told about.
    pub(crate) fn told_by(packet: &Packet) -> Option<Self> {
        match packet {
            Packet::Disconnect(goodbye) => match goodbye.reason {
                ReasonCode::ReceiveMaximumExceeded => Some(Self::ReceiveMaximum),
                ReasonCode::TopicAliasInvalid => Some(Self::TopicAliases),
                _ => None,
            },
            Packet::SubAck(suback) if suback.reasons.contains(&ReasonCode::QuotaExceeded) => {
                Some(Self::Subscriptions)
            }
            _ => None,
        }
    }
}

/// Where a connection failed before MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HandshakeLabel {
    reason: Handshake,
}

label_values! {
    pub(crate) enum Handshake {
        Proxy,
        Tls,
        WebSocket,
        TimedOut,
    }
}

/// The data plane's metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) auth: auth::metrics::Metrics,
    pub(crate) connections: Gauge,
    pub(crate) accepted: Counter,
    pub(crate) connection_limit_reached: Counter,
    pub(crate) accept_failures: Counter,
    pub(crate) accept_rate_reached: Counter,
    pub(crate) handshakes_failed: Family<HandshakeLabel, Counter>,
    pub(crate) tls_reload_failures: Counter,
    pub(crate) tls_not_after: NotAfter,
    pub(crate) tls_revocation_lists_overdue: Gauge,
    pub(crate) ended: Family<EndLabel, Counter>,
    pub(crate) client_limits_reached: Family<LimitLabel, Counter>,
    pub(crate) bytes_received: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) packets_received: Counter,
    pub(crate) packets_sent: Counter,
    pub(crate) published: Counter,
    pub(crate) unmatched: Counter,
    pub(crate) delivered: Counter,
    pub(crate) delivered_again: Counter,
    pub(crate) queued: Counter,
    pub(crate) session_store_failures: Counter,
    pub(crate) session_record_failures: Counter,
    pub(crate) session_bad_records: Counter,
    pub(crate) sessions_restored: Counter,
    pub(crate) sessions_limit_reached: Counter,
    pub(crate) sessions_parked: Gauge,
    pub(crate) sessions_resumed: Counter,
    pub(crate) sessions_expired: Counter,
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
    pub(crate) retained_messages: Gauge,
    pub(crate) retained_bytes: Gauge,
    pub(crate) retained_degraded: Gauge,
    pub(crate) retained_sent: Counter,
    pub(crate) retained_expired: Counter,
    pub(crate) retained_limit_reached: Counter,
    pub(crate) retained_bad_records: Counter,
    pub(crate) node_sessions_lost: Counter,
    pub(crate) node_requests: Counter,
    pub(crate) node_requests_refused: Counter,
    pub(crate) peers: Gauge,
    pub(crate) tls_connections: Gauge,
    pub(crate) last_wills: Gauge,
    /// From reading a PUBLISH at QoS 1 or 2 to handing its PUBACK or PUBREC to the socket.
    pub(crate) puback: Durations,
    looked_up: LookedUp,
}

/// What is looked up when metrics are read: under TBMQ's names where it has one.
#[derive(Clone, Debug, Default)]
struct LookedUp {
    connected_sessions: Gauge,
    all_sessions: Gauge,
    subscriptions: Gauge,
    retained: Gauge,
    tree_size: Gauge,
    retained_topics: Gauge,
    bus_in_flight_bytes: Gauge,
    bus_in_flight_records: Gauge,
    published: Family<[(&'static str, &'static str); 1], Counter>,
}

/// What TBMQ counts of what is handed to the bus.
const PUBLISHED: [&str; 3] = ["totalMsgs", "successfulMsgs", "failedMsgs"];

impl LookedUp {
    fn gauges(&self) -> [(&'static str, &'static str, &Gauge); 8] {
        [
            ("connectedSessions", "Sessions with a connection", &self.connected_sessions),
            ("allClientSessions", "Sessions, with and without a connection", &self.all_sessions),
            ("clientSubscriptions", "Subscriptions of clients, shared ones included", &self.subscriptions),
            ("retainedMessages", "Topics with a retained message, those of $SYS included", &self.retained),
            (
                "subscriptionTopicTrieSize",
                "Pairs of subscriber and filter in the tree: of clients, groups and integrations",
                &self.tree_size,
            ),
            (
                "retainMsgTrieSize",
                "Names of topics in the map of retained messages, those that are being removed included",
                &self.retained_topics,
            ),
            (
                "tbmq_mqtt_bus_in_flight_bytes",
                "Bytes of messages that the bus has not confirmed",
                &self.bus_in_flight_bytes,
            ),
            (
                "tbmq_mqtt_bus_in_flight_records",
                "Records of messages that the bus has not confirmed",
                &self.bus_in_flight_records,
            ),
        ]
    }
}

impl Metrics {
    fn counters(&self) -> [(&'static str, &'static str, &Counter); 27] {
        [
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
            ("tbmq_mqtt_bytes_received", "Bytes that clients sent", &self.bytes_received),
            ("tbmq_mqtt_bytes_sent", "Bytes that were sent to clients", &self.bytes_sent),
            ("tbmq_mqtt_packets_received", "Packets of all kinds that clients sent", &self.packets_received),
            ("tbmq_mqtt_packets_sent", "Packets of all kinds that were sent to clients", &self.packets_sent),
            (
                "tbmq_mqtt_accept_rate_reached",
                "Times that a listener waited because connections came too fast",
                &self.accept_rate_reached,
            ),
            (
                "tbmq_mqtt_tls_reload_failures",
                "Changed certificates of listeners not usable",
                &self.tls_reload_failures,
            ),
            (
                "tbmq_mqtt_messages_published",
                "Messages that clients published, wills included",
                &self.published,
            ),
            ("tbmq_mqtt_messages_unmatched", "Published messages that nobody gets", &self.unmatched),
            ("tbmq_mqtt_messages_delivered", "Messages handed to connected clients", &self.delivered),
            (
                "tbmq_mqtt_messages_delivered_again",
                "Messages of shared subscriptions handed to another member because the first one left",
                &self.delivered_again,
            ),
            (
                "tbmq_mqtt_messages_queued",
                "Messages put into queues of sessions that outlive their connections",
                &self.queued,
            ),
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
                "tbmq_mqtt_retained_sent",
                "Retained messages sent because of a new subscription",
                &self.retained_sent,
            ),
            (
                "tbmq_mqtt_retained_expired",
                "Retained messages removed because their time was over",
                &self.retained_expired,
            ),
            (
                "tbmq_mqtt_retained_limit_reached",
                "Messages not retained because there was no room",
                &self.retained_limit_reached,
            ),
            (
                "tbmq_mqtt_retained_bad_records",
                "Records of retained messages that were skipped",
                &self.retained_bad_records,
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
        ]
    }

    fn session_counters(&self) -> [(&'static str, &'static str, &Counter); 7] {
        [
            (
                "tbmq_mqtt_session_store_failures",
                "Calls of the session store that failed",
                &self.session_store_failures,
            ),
            (
                "tbmq_mqtt_session_record_failures",
                "Records of sessions that the bus did not take, each try",
                &self.session_record_failures,
            ),
            (
                "tbmq_mqtt_session_bad_records",
                "Records of sessions that were skipped",
                &self.session_bad_records,
            ),
            (
                "tbmq_mqtt_sessions_restored",
                "Sessions of before the start that go on",
                &self.sessions_restored,
            ),
            (
                "tbmq_mqtt_sessions_limit_reached",
                "Clients refused because there were too many sessions",
                &self.sessions_limit_reached,
            ),
            (
                "tbmq_mqtt_sessions_resumed",
                "Sessions that went on with another connection",
                &self.sessions_resumed,
            ),
            ("tbmq_mqtt_sessions_expired", "Sessions that expired", &self.sessions_expired),
        ]
    }

    /// Looks up what is not kept.
    pub(crate) fn look(&self, plane: &Plane) {
        let looked_up = &self.looked_up;
        for (gauge, value) in [
            (&looked_up.connected_sessions, plane.registry.len()),
            (&looked_up.all_sessions, plane.registry.sessions()),
            (&looked_up.subscriptions, plane.router.subscriptions()),
            (&looked_up.retained, plane.retained.len()),
            (&looked_up.tree_size, plane.router.tree_size()),
            (&looked_up.retained_topics, plane.retained.topics()),
            (&looked_up.bus_in_flight_bytes, plane.writer.in_flight_bytes()),
            (&looked_up.bus_in_flight_records, plane.in_flight()),
        ] {
            gauge.set(value as i64);
        }
        let refused: u64 = Refusal::ALL
            .iter()
            .map(|reason| self.records_refused.get_or_create(&RefusalLabel { reason: *reason }).get())
            .sum();
        let written = self.records_written.get();
        // What was not submitted was refused, too.
        let counts = [self.records_submitted.get().max(written + refused), written, refused];
        for (name, count) in PUBLISHED.into_iter().zip(counts) {
            let counter = looked_up.published.get_or_create(&[("statsName", name)]);
            counter.inner().store(count, Ordering::Relaxed);
        }
    }

    /// Registers all of them.
    pub(crate) fn register(&self, registry: &mut Registry) {
        for (name, help, gauge) in self.looked_up.gauges() {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "connectedSslSessions",
            "Connections over TLS, secure WebSocket included",
            self.tls_connections.clone(),
        );
        registry.register(
            "lastWillClients",
            "Sessions with a will that may still be published",
            self.last_wills.clone(),
        );
        registry.family(
            "incomingPublishMsg_published",
            "Records of messages handed to the bus, confirmed by it, refused or not kept",
            vec![Label::closed("statsName", &PUBLISHED[..])],
            self.looked_up.published.clone(),
        );
        registry.register_with_unit(
            "tbmq_mqtt_puback",
            "From reading a PUBLISH at QoS 1 or 2 to handing its PUBACK or PUBREC to the socket",
            Unit::Seconds,
            self.puback.clone(),
        );
        for (name, help, counter) in self.counters().into_iter().chain(self.session_counters()) {
            registry.register(name, help, counter.clone());
        }
        self.auth.register(registry);
        registry.register("tbmq_mqtt_connections", "Connections now", self.connections.clone());
        self.tls_not_after.register("tbmq_mqtt_tls_certificate_not_after", registry);
        registry.register(
            "tbmq_mqtt_tls_revocation_lists_overdue",
            "Lists of revoked certificates of listeners that count although the next one is overdue",
            self.tls_revocation_lists_overdue.clone(),
        );
        registry.register(
            "tbmq_mqtt_sessions_parked",
            "Sessions without a connection",
            self.sessions_parked.clone(),
        );
        registry.family(
            "tbmq_mqtt_connections_ended",
            "Connections that ended",
            vec![Label::closed("reason", End::NAMES)],
            self.ended.clone(),
        );
        registry.family(
            "tbmq_mqtt_client_limits_reached",
            "Times that clients wanted more than they may have, each message or connection once",
            vec![Label::closed("limit", Limit::NAMES)],
            self.client_limits_reached.clone(),
        );
        registry.family(
            "tbmq_mqtt_handshakes_failed",
            "Connections that did not come as far as MQTT",
            vec![Label::closed("reason", Handshake::NAMES)],
            self.handshakes_failed.clone(),
        );
        registry.family(
            "tbmq_mqtt_messages_dropped",
            "Messages that were not delivered, by why",
            vec![Label::closed("reason", Drop::NAMES)],
            self.dropped.clone(),
        );
        registry.family(
            "tbmq_mqtt_records_refused",
            "Records not kept by the bus",
            vec![Label::closed("reason", Refusal::NAMES)],
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
        registry.register(
            "tbmq_mqtt_retained_messages",
            "Topics with a retained message",
            self.retained_messages.clone(),
        );
        registry.register(
            "tbmq_mqtt_retained_bytes",
            "Memory of retained messages, about",
            self.retained_bytes.clone(),
        );
        registry.register(
            "tbmq_mqtt_retained_degraded",
            "1 while it is not confirmed that retained messages are up to date",
            self.retained_degraded.clone(),
        );
        registry.register("tbmq_node_data_plane_peers", "Other live data planes", self.peers.clone());
    }

    pub(crate) fn dropped(&self, reason: Drop) {
        self.dropped.get_or_create(&DropLabel { reason }).inc();
    }

    /// All that was dropped, for whatever reason.
    pub(crate) fn dropped_in_all(&self) -> u64 {
        let count = |reason: &Drop| self.dropped.get_or_create(&DropLabel { reason: *reason }).get();
        Drop::ALL.iter().map(count).sum()
    }

    pub(crate) fn dropped_by(&self, reason: Drop, count: usize) {
        if count > 0 {
            self.dropped.get_or_create(&DropLabel { reason }).inc_by(count as u64);
        }
    }

    pub(crate) fn client_limit_reached(&self, limit: Limit) {
        self.client_limit_reached_by(limit, 1);
    }

    pub(crate) fn client_limit_reached_by(&self, limit: Limit, count: usize) {
        self.client_limits_reached.get_or_create(&LimitLabel { limit }).inc_by(count as u64);
    }

    pub(crate) fn handshake_failed(&self, reason: Handshake) {
        self.handshakes_failed.get_or_create(&HandshakeLabel { reason }).inc();
    }

    pub(crate) fn refused(&self, reason: Refusal) {
        self.records_refused.get_or_create(&RefusalLabel { reason }).inc();
    }
}
