//! `docs/metrics.md`: every metric, from what the planes register.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{Description, Kind, Label, Values, durations::BOUNDS_US};

/// The instruments of one part of TBMQ.
#[derive(Clone, Debug)]
pub struct Part {
    /// The heading.
    pub title: &'static str,
    /// What it registers.
    pub metrics: Vec<Description>,
}

/// TBMQ's meters that have no equivalent here, and what tells the same.
const ABSENT: &[(&str, &str)] = &[
    (
        "incomingPublishMsg.consumed, deviceProcessor, appProcessor, clientSubscriptionsConsumer, clientSessionEvent, retainedMsgConsumer",
        "There are no packs between a publish and its subscribers: `tbmq_mqtt_puback_seconds`, `tbmq_mqtt_records_refused_total`, `tbmq_mqtt_messages_dropped_total`, `tbmq_mqtt_messages_queued_total`, \
         `tbmq_subscriptions_bad_records_total`",
    ),
    (
        "appProcessor.latency, activeAppProcessors, activeSharedAppProcessors",
        "Sessions of APPLICATION clients are kept as those of other clients: `tbmq_mqtt_sessions_parked`",
    ),
    (
        "clientActor, clientActor.msgInQueueTime, clientActor.processing.time, runningActors",
        "There are no actors: `tbmq_mqtt_connections`, `tbmq_mqtt_puback_seconds`",
    ),
    (
        "nonWritableClients",
        "A slow client is bounded by its queue: `tbmq_mqtt_messages_dropped_total{reason=\"QueueFull\"}`, `tbmq_mqtt_connections_ended_total{reason=\"SlowConsumer\"}`",
    ),
    (
        "subscriptionLookup, retainedMsgLookup, clientSessionsLookup, notPersistentMessagesProcessing, persistentMessagesProcessing, delivery",
        "Steps of microseconds are not timed one by one: `tbmq_mqtt_puback_seconds` and `tbmq_executor_delivery_seconds` time what is waited for; traces show where",
    ),
    (
        "subscriptionTrieNodes, retainMsgTrieNodes",
        "Nodes of our trees are not those of a trie: `subscriptionTopicTrieSize`, `retainMsgTrieSize`, `tbmq_mqtt_retained_bytes`",
    ),
    (
        "producer, consumer, kafka.*",
        "`tbmq_mqtt_bus_in_flight_bytes`, `tbmq_mqtt_bus_in_flight_records`, `tbmq_executor_bus_in_flight_bytes`, `tbmq_executor_commits_failed_total`, `tbmq_integration_lag_messages`",
    ),
    (
        "sqlQueue.*, hikaricp.*",
        "There are no queues of SQL: `tbmq_control_relay_backlog`, `tbmq_control_sql_connections`",
    ),
    (
        "jvm.*",
        "There is no JVM: `process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_threads`",
    ),
    (
        "inflightCount, delayedQueueSize, dropsOverflow, dropsTtl, unknownAck",
        "`tbmq_mqtt_messages_dropped_total{reason}`, `tbmq_mqtt_client_limits_reached_total{limit}`",
    ),
];

/// The page.
pub fn render(parts: &[Part]) -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Every plane serves its metrics in the OpenMetrics text format at `/metrics` of its admin endpoint (also at TBMQ's `/actuator/prometheus`). The same numbers are pushed to an OpenTelemetry collector when \
         `OTEL_EXPORTER_OTLP_ENDPOINT` is set.\n\n\
         Names are those that are scraped. A histogram `x` has `x_bucket{le}`, `x_sum` and `x_count`. Names in camel case, and those that begin with `integration_` or `ie_`, are TBMQ's, with TBMQ's meaning.\n\
         A label is one of the values given, or is bounded by what is said in parentheses; no label holds a client or a topic of clients. A series of an integration goes with it.\n\n",
    );
    let bounds: Vec<String> = BOUNDS_US.iter().map(|bound| format!("{}", *bound as f64 / 1e6)).collect();
    writeln!(page, "All histograms have the same bounds, in seconds: {}.\n", bounds.join(", "))
        .expect("writing to a String does not fail");
    page.push_str(
        "This page is written from what the planes register, and a test compares it with what they serve.\n",
    );
    for Part { title, metrics } in parts {
        write!(page, "\n## {title}\n\n| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n")
            .expect("writing to a String does not fail");
        let mut metrics: Vec<&Description> = metrics.iter().collect();
        metrics.sort_by(|one, other| one.name.cmp(&other.name));
        for metric in metrics {
            page.push_str(&row(metric));
        }
    }
    page.push_str("\n## TBMQ's meters without an equivalent\n\n| TBMQ | here |\n|---|---|\n");
    for (names, instead) in ABSENT {
        let names: Vec<String> = names.split(", ").map(|name| format!("`{name}`")).collect();
        writeln!(page, "| {} | {instead} |", names.join(", ")).expect("writing to a String does not fail");
    }
    page
}

fn row(metric: &Description) -> String {
    let labels: Vec<String> = metric.labels.iter().map(label).collect();
    format!(
        "| `{}` | {} | {} | {} | {} |\n",
        metric.scraped(),
        metric.kind.as_str(),
        metric.unit.as_deref().unwrap_or_default(),
        labels.join("; "),
        metric.help.replace('|', "\\|"),
    )
}

fn label(label: &Label) -> String {
    match &label.values {
        Values::Closed(values) => {
            let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("`{}`: {}", label.name, values.join(", "))
        }
        Values::Bounded(by) => format!("`{}` ({by})", label.name),
    }
}

impl Description {
    /// Its name in a query.
    pub fn scraped(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Info => format!("{}_info", self.name),
            Kind::Gauge | Kind::Histogram => self.name.clone(),
        }
    }

    /// What is wrong with it, if anything is.
    pub fn problem(&self) -> Option<String> {
        let is_name = |text: &str| {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            !text.is_empty() && !text.as_bytes()[0].is_ascii_digit() && text.bytes().all(is_part)
        };
        let name = &self.name;
        if !is_name(name) {
            return Some(format!("{name}: no name for a metric"));
        }
        if self.help.trim().is_empty() || self.help.ends_with('.') {
            return Some(format!("{name}: no help, or a full stop, which the encoder adds"));
        }
        for label in &self.labels {
            let (is_open, is_doubled) = match &label.values {
                Values::Closed(values) => {
                    let different: BTreeSet<_> = values.iter().collect();
                    (values.is_empty(), different.len() < values.len())
                }
                Values::Bounded(by) => (by.trim().is_empty(), false),
            };
            if !is_name(label.name) || is_open || is_doubled {
                return Some(format!("{name}: the values of label {} are not a closed set", label.name));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(name: &str, help: &str, labels: Vec<Label>) -> Description {
        Description { name: name.to_owned(), kind: Kind::Counter, unit: None, help: help.to_owned(), labels }
    }

    #[test]
    fn a_metric_without_help_or_with_an_open_label_is_a_problem() {
        let closed = || vec![Label::closed("colour", &["red"][..])];
        assert_eq!(description("balls", "Balls", closed()).problem(), None);
        for bad in [
            description("balls", " ", closed()),
            description("balls", "Balls.", closed()),
            description("9balls", "Balls", closed()),
            description("balls", "Balls", vec![Label::closed("colour", &[][..])]),
            description("balls", "Balls", vec![Label::closed("colour", &["red", "red"][..])]),
            description("balls", "Balls", vec![Label::bounded("colour", "")]),
        ] {
            assert!(bad.problem().is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_row_says_what_is_scraped() {
        let labels = vec![Label::closed("colour", &["red", "blue"][..]), Label::integration("integration")];
        assert_eq!(
            row(&description("balls", "Balls", labels)),
            "| `balls_total` | counter |  | `colour`: `red`, `blue`; `integration` (ids of integrations) | Balls |\n"
        );
    }
}
