//! What an executor measures: TBMQ's names (spec §8) and our own counters of drops and limits.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};
use tbmq_integration::{pack::Settled, stats::Processor};
use tbmq_proto::ids::IntegrationId;
use tbmq_service::{
    metrics::{Durations, Label, Registry},
    trace::TraceContext,
};

use crate::sink::Outcome;

/// What is counted per kind: the label, and TBMQ's word in the log.
const ACTIVITIES: [(&str, &str); 4] =
    [("start", "START"), ("stop", "STOP"), ("msgUplink", "MSGS_UPLINK"), ("msgDownlink", "MSGS_DOWNLINK")];

/// What is counted of the uplink.
const PUBLISHED: [&str; 3] = ["totalMsgs", "successfulMsgs", "failedMsgs"];

/// What an attempt can come to.
const ANSWERS: [&str; 3] = ["delivered", "retry", "rejected"];

/// How a message can leave.
const OUTCOMES: [&str; 5] = ["delivered", "rejected", "skipped", "dead-lettered", "expired"];

/// Topics of which records may be skipped.
const TOPICS: [&str; 4] = ["downlink", "kinds", "msg", "owner"];

/// Limits that may be reached.
const LIMITS: [&str; 7] = [
    "connects",
    "budget-bytes",
    "window-messages",
    "window-bytes",
    "held-messages",
    "message-bytes",
    "message-headers",
];

/// Words of sinks for what went wrong; others count as the last one.
const CLASSES: [&str; 21] = [
    "authentication",
    "authorization",
    "broker",
    "configuration",
    "connect",
    "connection",
    "content-type",
    "disconnected",
    "egress",
    "limit",
    "payload",
    "refused",
    "resolve",
    "response",
    "size",
    "status",
    "timeout",
    "tls",
    "topic",
    "unreadable",
    "other",
];

/// Labels of `integration_stats_counter` and `integration_stats_gauge`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatsLabels {
    name: &'static str,
    state: &'static str,
    r#type: String,
}

/// TBMQ's label names are in camel case.
type PublishedLabels = [(&'static str, &'static str); 1];
type ProcessorLabels = Vec<(&'static str, String)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabels {
    topic: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabels {
    r#type: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    r#type: String,
    outcome: &'static str,
}

/// By integration.
type IntegrationLabels = [(&'static str, String); 1];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SettledLabels {
    integration: String,
    outcome: &'static str,
}

/// All metrics of an executor. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    stats: Family<StatsLabels, Counter>,
    states: Family<StatsLabels, Gauge>,
    published: Family<PublishedLabels, Counter>,
    processor: Family<ProcessorLabels, Counter>,
    bad_records: Family<TopicLabels, Counter>,
    failed_attempts: Family<ClassLabels, Counter>,
    limits_reached: Family<LimitLabels, Counter>,
    /// Bytes of messages that all shards hold.
    pub(crate) held_bytes: Gauge,
    stalled: Family<[(&'static str, String); 1], Gauge>,
    books: Arc<Mutex<Books>>,
    pub(crate) error_events_suppressed: Counter,
    pub(crate) events_dropped: Counter,
    pub(crate) late_answers: Counter,
    expired_messages: Counter,
    pub(crate) commits_failed: Counter,
    pub(crate) commands_refused: Counter,
    pub(crate) commands_expired: Counter,
    pub(crate) restarts_after_panic: Counter,
    pub(crate) renewals_failed: Counter,
    pub(crate) superseded_claims: Counter,
    pub(crate) dead_letters_repeated: Counter,
    pub(crate) dead_letters_refused: Counter,
    settled: Family<SettledLabels, Counter>,
    restore_ms: Family<[(&'static str, String); 1], Gauge>,
    attempts: Family<AttemptLabels, Durations>,
    deliveries: Family<[(&'static str, String); 1], Durations>,
    in_flight: Family<IntegrationLabels, Gauge>,
    waiting: Family<IntegrationLabels, Gauge>,
    unaccounted: Family<IntegrationLabels, Gauge>,
    /// Events that are not written yet.
    pub(crate) uplink_backlog: Gauge,
    /// Bytes of records that the bus has not confirmed.
    pub(crate) bus_in_flight_bytes: Gauge,
}

/// What the log lines are made of.
#[derive(Debug, Default)]
struct Books {
    kinds: Vec<&'static str>,
    /// By integration, since the last print.
    interval: BTreeMap<IntegrationId, Processor>,
    /// Values of counters at the last print.
    printed: HashMap<(&'static str, bool, &'static str), u64>,
    printed_uplink: [u64; PUBLISHED.len()],
    /// Shards of each integration that are here.
    shards: HashMap<IntegrationId, usize>,
    /// The process ends: what was counted stays for whoever asks last.
    is_ending: bool,
}

/// A shard whose integration is measured. When the last one of an integration goes, its series go (UP-26).
#[derive(Debug)]
pub(crate) struct Tracked {
    metrics: Metrics,
    integration: IntegrationId,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let mut books = self.metrics.books.lock();
        if let Some(shards) = books.shards.get_mut(&self.integration) {
            *shards -= 1;
            if *shards == 0 {
                books.shards.remove(&self.integration);
                if !books.is_ending {
                    self.metrics.forget(self.integration);
                }
            }
        }
    }
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        metrics.register_tbmqs(registry);
        metrics.register_messages(registry);
        let m = &metrics;
        registry.register("tbmq_executor_held_bytes", "Bytes of messages in hand", m.held_bytes.clone());
        registry.family(
            "tbmq_executor_bad_records",
            "Records that can't be understood and are skipped",
            vec![Label::closed("topic", &TOPICS[..])],
            m.bad_records.clone(),
        );
        registry.family(
            "tbmq_executor_limits_reached",
            "Times that a limit was reached",
            vec![Label::closed("limit", &LIMITS[..])],
            m.limits_reached.clone(),
        );
        registry.family(
            "tbmq_executor_restore_milliseconds",
            "From the last assignment until all configuration was known",
            vec![kind()],
            m.restore_ms.clone(),
        );
        registry.register(
            "tbmq_executor_uplink_backlog",
            "Events that are not written to the uplink yet",
            m.uplink_backlog.clone(),
        );
        registry.register(
            "tbmq_executor_bus_in_flight_bytes",
            "Bytes of events and dead letters that the bus has not confirmed",
            m.bus_in_flight_bytes.clone(),
        );
        for (name, help, counter) in m.counters() {
            registry.register(name, help, counter.clone());
        }
        metrics
    }

    fn counters(&self) -> [(&'static str, &'static str, &Counter); 12] {
        [
            (
                "tbmq_executor_error_events_suppressed",
                "Error events that are not written, being over the rate limit",
                &self.error_events_suppressed,
            ),
            ("tbmq_executor_events_dropped", "Events dropped, the buffer being full", &self.events_dropped),
            ("tbmq_executor_late_answers", "Answers of sinks after their timeout", &self.late_answers),
            (
                "tbmq_executor_expired_messages",
                "Messages that were too old, or removed by retention",
                &self.expired_messages,
            ),
            ("tbmq_executor_commits_failed", "Commits that the bus did not take", &self.commits_failed),
            (
                "tbmq_executor_commands_refused",
                "Validation requests over the queue's limit",
                &self.commands_refused,
            ),
            (
                "tbmq_executor_commands_expired",
                "Validation requests past their deadline",
                &self.commands_expired,
            ),
            (
                "tbmq_executor_panics",
                "Integrations that were started anew after a panic",
                &self.restarts_after_panic,
            ),
            (
                "tbmq_executor_lease_renewals_failed",
                "Renewals that the group did not take",
                &self.renewals_failed,
            ),
            (
                "tbmq_executor_superseded_claims",
                "Partitions that another executor claimed",
                &self.superseded_claims,
            ),
            (
                "tbmq_executor_dead_letters_repeated",
                "Dead letters that the bus did not take at once",
                &self.dead_letters_repeated,
            ),
            (
                "tbmq_executor_dead_letters_refused",
                "Dead letters that the bus will never take; their messages are skipped",
                &self.dead_letters_refused,
            ),
        ]
    }

    /// TBMQ's own (spec §8).
    fn register_tbmqs(&self, registry: &mut Registry) {
        let activities: Vec<&'static str> = ACTIVITIES.iter().map(|(name, _)| *name).collect();
        let state = || Label::closed("state", &["success", "failed"][..]);
        registry.family(
            "integration_stats_counter",
            "Starts and stops of integrations, messages that were forwarded or failed; msgDownlink stays 0",
            vec![Label::closed("name", activities), state(), kind()],
            self.stats.clone(),
        );
        registry.family(
            "integration_stats_gauge",
            "Integrations of this executor that are started, or have failed",
            vec![Label::closed("name", &["start"][..]), state(), kind()],
            self.states.clone(),
        );
        registry.family(
            "ie_uplink_published",
            "Events and service info written to the uplink",
            vec![Label::closed("statsName", &PUBLISHED[..])],
            self.published.clone(),
        );
        let counters: Vec<&'static str> =
            Processor::default().named().into_iter().map(|(name, _)| name).collect();
        registry.family(
            "integrationProcessor",
            "Attempts by what they came to, and rounds of packs",
            vec![Label::integration("integrationId"), Label::closed("statsName", counters)],
            self.processor.clone(),
        );
    }

    fn register_messages(&self, registry: &mut Registry) {
        registry.family(
            "tbmq_executor_settled_messages",
            "Messages that have left their partition, by how they did",
            vec![Label::integration("integration"), Label::closed("outcome", &OUTCOMES[..])],
            self.settled.clone(),
        );
        registry.family(
            "tbmq_executor_failed_attempts",
            "Attempts that failed, by class",
            vec![kind(), Label::closed("class", &CLASSES[..])],
            self.failed_attempts.clone(),
        );
        registry.family(
            "tbmq_executor_stalled_integrations",
            "Integrations through which nothing gets at present",
            vec![kind()],
            self.stalled.clone(),
        );
        registry.family_with_unit(
            "tbmq_executor_attempt",
            "From handing a message to the sink to the sink's answer; attempts that time out are not in it",
            Unit::Seconds,
            vec![kind(), Label::closed("outcome", &ANSWERS[..])],
            self.attempts.clone(),
        );
        registry.family_with_unit(
            "tbmq_executor_delivery",
            "From PUBLISH, as the data plane's clock says, to the confirmation of the remote end, in steps of 1 ms",
            Unit::Seconds,
            vec![kind()],
            self.deliveries.clone(),
        );
        registry.family(
            "tbmq_executor_in_flight_messages",
            "Messages that were handed to the sink and have no answer",
            vec![Label::integration("integration")],
            self.in_flight.clone(),
        );
        registry.family(
            "tbmq_executor_waiting_messages",
            "Messages in hand that wait for their attempt, for another one of their key, or for their dead letter",
            vec![Label::integration("integration")],
            self.waiting.clone(),
        );
        registry.family(
            "tbmq_executor_unaccounted_messages",
            "Messages taken that are neither settled nor in flight nor waiting; must be 0",
            vec![Label::integration("integration")],
            self.unaccounted.clone(),
        );
    }

    /// Makes the series of these kinds, all of them 0.
    pub(crate) fn serve(&self, kinds: &[&'static str]) {
        for kind in kinds {
            for is_success in [true, false] {
                for (name, _) in ACTIVITIES {
                    drop(self.stats.get_or_create(&labels(name, is_success, kind)));
                }
                drop(self.states.get_or_create(&labels("start", is_success, kind)));
            }
            drop(self.stalled.get_or_create(&[("type", (*kind).to_owned())]));
        }
        for name in PUBLISHED {
            drop(self.published.get_or_create(&[("statsName", name)]));
        }
        kinds.clone_into(&mut self.books.lock().kinds);
    }

    /// A shard of this integration is here, until what is returned is dropped.
    pub(crate) fn track(&self, integration: IntegrationId) -> Tracked {
        *self.books.lock().shards.entry(integration).or_default() += 1;
        Tracked { metrics: self.clone(), integration }
    }

    /// The process ends; the series of its integrations stay.
    pub(crate) fn end(&self) {
        self.books.lock().is_ending = true;
    }

    /// Number of integrations of a kind that are stalled.
    pub(crate) fn stalled(&self, kind: &str, by: i64) {
        self.stalled.get_or_create(&[("type", kind.to_owned())]).inc_by(by);
    }

    pub(crate) fn failed_attempt(&self, kind: &str, class: &'static str) {
        let class = if CLASSES.contains(&class) { class } else { "other" };
        self.failed_attempts.get_or_create(&ClassLabels { r#type: kind.to_owned(), class }).inc();
    }

    pub(crate) fn limit_reached(&self, limit: &'static str) {
        self.limits_reached.get_or_create(&LimitLabels { limit }).inc();
    }

    /// Counts a start, stop or messages, as TBMQ names them.
    pub(crate) fn count(&self, name: &'static str, is_success: bool, kind: &str, by: u64) {
        if by > 0 {
            self.stats.get_or_create(&labels(name, is_success, kind)).inc_by(by);
        }
    }

    /// Number of started (`is_success`) or failed integrations of a kind.
    pub(crate) fn states(&self, is_success: bool, kind: &str, by: i64) {
        self.states.get_or_create(&labels("start", is_success, kind)).inc_by(by);
    }

    /// All configuration of a kind is known, so long after it was assigned.
    pub(crate) fn restored(&self, kind: &str, elapsed: Duration) {
        self.restore_ms.get_or_create(&[("type", kind.to_owned())]).set(elapsed.as_millis() as i64);
    }

    pub(crate) fn published(&self, name: &'static str, by: u64) {
        self.published.get_or_create(&[("statsName", name)]).inc_by(by);
    }

    pub(crate) fn bad_record(&self, topic: &'static str) {
        self.bad_records.get_or_create(&TopicLabels { topic }).inc();
    }

    /// What has happened since the last time, in the form of TBMQ's log (seed 000, "Integration Metrics Overview").
    /// Integrations that had no message are left out.
    pub(crate) fn lines(&self, uplink_queue: usize) -> Vec<String> {
        let mut books = self.books.lock();
        let Books { kinds, interval, printed, printed_uplink, .. } = &mut *books;
        let entry = |word: &str, is_success: bool, kind: &str, value: String| {
            format!(
                "IntegrationStatisticsKey(integrationStatisticsMetricName={word}, success={is_success}, \
                 integrationType={kind}) = [{value}]"
            )
        };
        let mut activity = vec!["Current Integration Activity:".to_owned()];
        let mut summary = vec!["Integration State Summary:".to_owned()];
        for kind in &*kinds {
            for (name, word) in ACTIVITIES {
                for is_success in [true, false] {
                    let now = self.stats.get_or_create(&labels(name, is_success, kind)).get();
                    let before = printed.insert((name, is_success, kind), now).unwrap_or_default();
                    activity.push(entry(word, is_success, kind, (now - before).to_string()));
                }
            }
            for is_success in [true, false] {
                let now = self.states.get_or_create(&labels("start", is_success, kind)).get();
                summary.push(entry("START", is_success, kind, now.to_string()));
            }
        }
        let mut uplink = vec![format!(
            "[ie.uplink.published] Integration Uplink Queue Stats: queueSize = [{uplink_queue}]"
        )];
        for (name, printed) in PUBLISHED.into_iter().zip(printed_uplink) {
            let now = self.published.get_or_create(&[("statsName", name)]).get();
            uplink.push(format!("{name} = [{}]", now - std::mem::replace(printed, now)));
        }
        let mut lines = vec![activity.join(" "), summary.join(" "), uplink.join(" ")];
        for (integration, processor) in std::mem::take(interval) {
            let counters: Vec<_> =
                processor.named().into_iter().map(|(name, value)| format!("{name} = [{value}]")).collect();
            lines.push(format!(
                "[integrationProcessor][{integration}] Integration Message Processing Stats: {}",
                counters.join(" ")
            ));
        }
        lines
    }

    /// What times the attempts of sinks of a kind.
    pub(crate) fn timings(&self, kind: &str) -> Timings {
        let attempts = ANSWERS.map(|outcome| {
            self.attempts.get_or_create_owned(&AttemptLabels { r#type: kind.to_owned(), outcome })
        });
        Timings { attempts, delivery: self.deliveries.get_or_create_owned(&[("type", kind.to_owned())]) }
    }

    /// What a shard of this integration has in hand, nothing yet.
    pub(crate) fn in_hand(&self, integration: IntegrationId) -> InHand {
        let labels = integration_labels(integration);
        let gauges = [&self.in_flight, &self.waiting, &self.unaccounted];
        InHand { gauges: gauges.map(|family| family.get_or_create_owned(&labels)), told: [0; 3] }
    }

    fn forget(&self, integration: IntegrationId) {
        for family in [&self.in_flight, &self.waiting, &self.unaccounted] {
            family.remove(&integration_labels(integration));
        }
        for (name, _) in Processor::default().named() {
            self.processor.remove(&processor_labels(integration, name));
        }
        for (outcome, _) in outcomes(&Settled::default()) {
            self.settled.remove(&SettledLabels { integration: integration.to_string(), outcome });
        }
    }
}

/// Times what sinks of one kind do.
#[derive(Clone, Debug)]
pub(crate) struct Timings {
    attempts: [Durations; ANSWERS.len()],
    delivery: Durations,
}

impl Timings {
    /// An attempt was answered so long after it began, and so long after the message was published.
    pub(crate) fn answered(
        &self,
        outcome: &Outcome,
        attempt: Duration,
        since_publish: Duration,
        trace: Option<&TraceContext>,
    ) {
        let [delivered, retry, rejected] = &self.attempts;
        match outcome {
            Outcome::Delivered => {
                delivered.observe_traced(attempt, trace);
                self.delivery.observe_traced(since_publish, trace);
            }
            Outcome::Retry { .. } => retry.observe_traced(attempt, trace),
            Outcome::Rejected { .. } => rejected.observe_traced(attempt, trace),
        }
    }
}

/// Counts what becomes of a shard's messages, for as long as it lives. A counter is looked up when there is something to
/// count for the first time, and kept.
#[derive(Debug)]
pub(crate) struct Tally {
    integration: IntegrationId,
    kind: String,
    processor: [Option<Counter>; PROCESSOR],
    settled: [Option<Counter>; OUTCOMES.len()],
    uplink: [Option<Counter>; 2],
}

/// How many counts a [`Processor`] has.
const PROCESSOR: usize = 8;

impl Tally {
    /// Of a shard of this integration, of a kind.
    pub(crate) fn new(integration: IntegrationId, kind: &str) -> Self {
        Self {
            integration,
            kind: kind.to_owned(),
            processor: Default::default(),
            settled: Default::default(),
            uplink: Default::default(),
        }
    }

    /// Adds what has been processed since `before`.
    pub(crate) fn processed(&mut self, metrics: &Metrics, before: &Processor, after: &Processor) {
        let integration = self.integration;
        metrics.books.lock().interval.entry(integration).or_default().add_difference(before, after);
        let names: [_; PROCESSOR] = before.named();
        for (counter, ((name, before), (_, after))) in
            self.processor.iter_mut().zip(names.into_iter().zip(after.named()))
        {
            add(counter, after.saturating_sub(before), || {
                metrics.processor.get_or_create_owned(&processor_labels(integration, name))
            });
        }
    }

    /// Adds messages that were delivered, and attempts that were not.
    pub(crate) fn uplink(&mut self, metrics: &Metrics, delivered: u64, errors: u64) {
        for (counter, (is_success, by)) in self.uplink.iter_mut().zip([(true, delivered), (false, errors)]) {
            add(counter, by, || {
                metrics.stats.get_or_create_owned(&labels("msgUplink", is_success, &self.kind))
            });
        }
    }

    /// Adds what has been settled since `before`.
    pub(crate) fn settled(&mut self, metrics: &Metrics, before: &Settled, after: &Settled) {
        for (counter, ((outcome, before), (_, after))) in
            self.settled.iter_mut().zip(outcomes(before).into_iter().zip(outcomes(after)))
        {
            add(counter, after.saturating_sub(before), || {
                let labels = SettledLabels { integration: self.integration.to_string(), outcome };
                metrics.settled.get_or_create_owned(&labels)
            });
        }
        metrics.expired_messages.inc_by(after.expired - before.expired);
    }
}

fn add(counter: &mut Option<Counter>, by: u64, find: impl FnOnce() -> Counter) {
    if by > 0 {
        counter.get_or_insert_with(find).inc_by(by);
    }
}

/// What a shard has in hand: its part of its integration's gauges, as long as it lives.
#[derive(Debug)]
pub(crate) struct InHand {
    gauges: [Gauge; 3],
    told: [i64; 3],
}

impl InHand {
    /// It has so many now, of so many that were taken.
    pub(crate) fn tell(&mut self, taken: u64, settled: u64, in_flight: usize, unsettled: usize) {
        let (in_flight, unsettled) = (in_flight as i64, unsettled as i64);
        self.set([in_flight, unsettled - in_flight, taken as i64 - settled as i64 - unsettled]);
    }

    fn set(&mut self, now: [i64; 3]) {
        for ((gauge, told), now) in self.gauges.iter().zip(&mut self.told).zip(now) {
            if *told != now {
                gauge.inc_by(now - *told);
                *told = now;
            }
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.set([0; 3]);
    }
}

fn integration_labels(integration: IntegrationId) -> IntegrationLabels {
    [("integration", integration.to_string())]
}

fn kind() -> Label {
    Label::bounded("type", "kinds of integrations that the executor serves: `HTTP`, `MQTT`, `KAFKA`")
}

fn outcomes(settled: &Settled) -> [(&'static str, u64); 5] {
    let Settled { delivered, rejected, skipped, dead_lettered, expired } = *settled;
    let counts = [delivered, rejected, skipped, dead_lettered, expired];
    std::array::from_fn(|index| (OUTCOMES[index], counts[index]))
}

fn labels(name: &'static str, is_success: bool, kind: &str) -> StatsLabels {
    StatsLabels { name, state: if is_success { "success" } else { "failed" }, r#type: kind.to_owned() }
}

fn processor_labels(integration: IntegrationId, name: &'static str) -> ProcessorLabels {
    vec![("integrationId", integration.to_string()), ("statsName", name.to_owned())]
}

#[cfg(test)]
mod tests {
    use tbmq_service::metrics;
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> IntegrationId {
        IntegrationId(Uuid::from_u128(n))
    }

    fn processed(total: u64) -> Processor {
        Processor { total, successful: total, successful_iterations: 1, ..Processor::default() }
    }

    #[test]
    fn the_series_have_tbmqs_names_from_the_start() {
        let registry = metrics::Metrics::default();
        let metrics = registry.register(Metrics::register);
        metrics.serve(&["HTTP"]);
        Tally::new(id(1), "HTTP").processed(&metrics, &Processor::default(), &processed(3));
        let text = registry.encode();
        for line in [
            r#"integration_stats_counter_total{name="start",state="success",type="HTTP"} 0"#,
            r#"integration_stats_counter_total{name="stop",state="failed",type="HTTP"} 0"#,
            r#"integration_stats_counter_total{name="msgUplink",state="success",type="HTTP"} 0"#,
            r#"integration_stats_gauge{name="start",state="success",type="HTTP"} 0"#,
            r#"ie_uplink_published_total{statsName="totalMsgs"} 0"#,
            r#"integrationProcessor_total{integrationId="00000000-0000-0000-0000-000000000001",statsName="successfulMsgs"} 3"#,
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_series_of_an_integration_go_with_its_last_shard() {
        let registry = metrics::Metrics::default();
        let metrics = registry.register(Metrics::register);
        let shards = [metrics.track(id(1)), metrics.track(id(1))];
        let other = metrics.track(id(2));
        for n in [1, 2] {
            let mut tally = Tally::new(id(n), "HTTP");
            tally.processed(&metrics, &Processor::default(), &processed(1));
            let settled = Settled { delivered: 1, ..Settled::default() };
            tally.settled(&metrics, &Settled::default(), &settled);
        }
        let has = |n: u128| registry.encode().contains(&id(n).to_string());
        let [first, second] = shards;
        drop(first);
        assert!(has(1) && has(2));
        drop(second);
        assert!(!has(1) && has(2));
        metrics.end();
        drop(other);
        assert!(has(2), "of a process that ends they stay");
    }

    #[test]
    fn what_a_shard_has_in_hand_is_its_integrations_until_it_ends() {
        let registry = metrics::Metrics::default();
        let metrics = registry.register(Metrics::register);
        let (mut one, mut other) = (metrics.in_hand(id(1)), metrics.in_hand(id(1)));
        one.tell(10, 4, 2, 6);
        other.tell(5, 1, 1, 3);
        let values = || {
            [&metrics.in_flight, &metrics.waiting, &metrics.unaccounted]
                .map(|family| family.get_or_create(&integration_labels(id(1))).get())
        };
        assert_eq!(values(), [3, 6, 1], "one of the second shard's five is missing");
        drop(other);
        assert_eq!(values(), [2, 4, 0]);
    }

    #[test]
    fn a_word_that_is_not_known_does_not_open_the_set_of_classes() {
        let registry = metrics::Metrics::default();
        let metrics = registry.register(Metrics::register);
        metrics.failed_attempt("HTTP", "status");
        metrics.failed_attempt("HTTP", "of a sink of somebody else");
        let text = registry.encode();
        assert!(text.contains(r#"failed_attempts_total{type="HTTP",class="other"} 1"#), "{text}");
        assert!(text.contains(r#"failed_attempts_total{type="HTTP",class="status"} 1"#), "{text}");
    }

    #[test]
    fn the_log_has_the_seeds_form_and_counts_since_the_last_time() {
        let metrics = Metrics::default();
        metrics.serve(&["MQTT"]);
        let mut tally = Tally::new(id(1), "MQTT");
        tally.uplink(&metrics, 38, 0);
        metrics.states(true, "MQTT", 1);
        metrics.published("totalMsgs", 2);
        tally.processed(&metrics, &Processor::default(), &processed(38));
        let lines = metrics.lines(5);
        let key = |word: &str, is_success: bool| {
            format!(
                "IntegrationStatisticsKey(integrationStatisticsMetricName={word}, success={is_success}, integrationType=MQTT)"
            )
        };
        assert!(lines[0].starts_with("Current Integration Activity: "), "{}", lines[0]);
        assert!(lines[0].contains(&format!(" {} = [38]", key("MSGS_UPLINK", true))), "{}", lines[0]);
        assert!(lines[0].contains(&format!(" {} = [0]", key("START", true))), "{}", lines[0]);
        let summary =
            format!("Integration State Summary: {} = [1] {} = [0]", key("START", true), key("START", false));
        assert_eq!(lines[1], summary);
        assert_eq!(
            lines[2],
            "[ie.uplink.published] Integration Uplink Queue Stats: queueSize = [5] totalMsgs = [2] successfulMsgs = [0] \
             failedMsgs = [0]"
        );
        assert_eq!(
            lines[3],
            "[integrationProcessor][00000000-0000-0000-0000-000000000001] Integration Message Processing Stats: \
             totalMsgs = [38] successfulMsgs = [38] tmpTimeout = [0] tmpFailed = [0] timeoutMsgs = [0] failedMsgs = [0] \
             successfulIterations = [1] failedIterations = [0]"
        );
        let again = metrics.lines(0);
        assert_eq!(again.len(), 3, "nothing has happened since");
        assert!(again[0].contains(&format!(" {} = [0]", key("MSGS_UPLINK", true))), "{}", again[0]);
        assert_eq!(again[1], summary);
    }
}
