//! What an executor measures: TBMQ's names (spec §8) and our own counters of drops and limits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tbmq_integration::{pack::Settled, stats::Processor};
use tbmq_proto::ids::IntegrationId;

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
    /// Since the last print.
    interval: Arc<Mutex<BTreeMap<IntegrationId, Processor>>>,
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
    settled: Family<SettledLabels, Counter>,
    restore_ms: Family<[(&'static str, String); 1], Gauge>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics;
        registry.register("integration_stats_counter", "Starts, stops and messages", m.stats.clone());
        registry.register("integration_stats_gauge", "Integrations by state", m.states.clone());
        registry.register("ie_uplink_published", "Events written to the uplink", m.published.clone());
        registry.register("integrationProcessor", "Message processing by integration", m.processor.clone());
        registry.register("tbmq_executor_bad_records", "Records skipped", m.bad_records.clone());
        let counters = [
            ("tbmq_executor_error_events_suppressed", "Over the rate limit", &m.error_events_suppressed),
            ("tbmq_executor_events_dropped", "Events dropped, the buffer being full", &m.events_dropped),
            ("tbmq_executor_late_answers", "Answers of sinks after their timeout", &m.late_answers),
            ("tbmq_executor_expired_messages", "Too old, or removed by retention", &m.expired_messages),
            ("tbmq_executor_commits_failed", "Commits that the bus did not take", &m.commits_failed),
            ("tbmq_executor_commands_refused", "Requests over the queue's limit", &m.commands_refused),
            ("tbmq_executor_commands_expired", "Requests past their deadline", &m.commands_expired),
            ("tbmq_executor_panics", "Integrations that were started anew", &m.restarts_after_panic),
            (
                "tbmq_executor_lease_renewals_failed",
                "Renewals that the group did not take",
                &m.renewals_failed,
            ),
            (
                "tbmq_executor_superseded_claims",
                "Partitions that another executor claimed",
                &m.superseded_claims,
            ),
        ];
        registry.register(
            "tbmq_executor_settled_messages",
            "Messages that have left their partition, by how they did",
            m.settled.clone(),
        );
        registry.register(
            "tbmq_executor_restore_milliseconds",
            "From the last assignment until all configuration was known",
            m.restore_ms.clone(),
        );
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        metrics
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

    /// Adds what has been counted since `before`.
    pub(crate) fn processor(&self, integration: IntegrationId, before: &Processor, after: &Processor) {
        self.interval.lock().entry(integration).or_default().add_difference(before, after);
        for ((name, before), (_, after)) in before.named().into_iter().zip(after.named()) {
            if after > before {
                self.processor.get_or_create(&processor_labels(integration, name)).inc_by(after - before);
            }
        }
    }

    /// Adds what has been settled since `before`.
    pub(crate) fn settled(&self, integration: IntegrationId, before: &Settled, after: &Settled) {
        for ((outcome, before), (_, after)) in outcomes(before).into_iter().zip(outcomes(after)) {
            if after > before {
                let labels = SettledLabels { integration: integration.to_string(), outcome };
                self.settled.get_or_create(&labels).inc_by(after - before);
            }
        }
        self.expired_messages.inc_by(after.expired - before.expired);
    }

    /// Logs what integrations have processed since the last time, as TBMQ does.
    pub(crate) fn print(&self) {
        let interval = std::mem::take(&mut *self.interval.lock());
        for (integration, processor) in interval {
            let counters: Vec<_> =
                processor.named().into_iter().map(|(name, value)| format!("{name} = [{value}]")).collect();
            tracing::info!(%integration, counters = counters.join(" "), "integration message processing stats");
        }
    }

    /// Forgets a deleted integration (UP-26).
    pub(crate) fn forget(&self, integration: IntegrationId) {
        for (name, _) in Processor::default().named() {
            self.processor.remove(&processor_labels(integration, name));
        }
        for (outcome, _) in outcomes(&Settled::default()) {
            self.settled.remove(&SettledLabels { integration: integration.to_string(), outcome });
        }
    }
}

fn outcomes(settled: &Settled) -> [(&'static str, u64); 4] {
    let Settled { delivered, rejected, skipped, expired } = *settled;
    [("delivered", delivered), ("rejected", rejected), ("skipped", skipped), ("expired", expired)]
}

fn labels(name: &'static str, is_success: bool, kind: &str) -> StatsLabels {
    StatsLabels { name, state: if is_success { "success" } else { "failed" }, r#type: kind.to_owned() }
}

fn processor_labels(integration: IntegrationId, name: &'static str) -> ProcessorLabels {
    vec![("integrationId", integration.to_string()), ("statsName", name.to_owned())]
}
