//! How far integrations are behind, as metrics.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::Mutex;
use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Unit,
};
use tbmq_proto::ids::IntegrationId;
use tbmq_service::metrics::{Label, Registry};

type Labels = [(&'static str, String); 1];
type Seconds = Gauge<f64, AtomicU64>;

/// What is told of an integration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lag {
    /// Messages that are not settled.
    pub(crate) messages: u64,
    /// Age of the oldest of them.
    pub(crate) seconds: f64,
    /// At the rates of the last minutes; `None`: it does not shrink, or there is nothing.
    pub(crate) seconds_to_drain: Option<f64>,
    /// Messages that are neither here nor there.
    pub(crate) unaccounted: u64,
}

/// The gauges.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lags {
    messages: Family<Labels, Gauge>,
    seconds: Family<Labels, Seconds>,
    drain: Family<Labels, Seconds>,
    unaccounted: Family<Labels, Gauge>,
    told: Arc<Mutex<BTreeSet<IntegrationId>>>,
}

impl Lags {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let integration = || vec![Label::integration("integration")];
        registry.family(
            "tbmq_integration_lag_messages",
            "Messages in the integration's topic that are not settled, as committed; looked at every 15 s by the \
             control plane that holds the lease",
            integration(),
            self.messages.clone(),
        );
        registry.family_with_unit(
            "tbmq_integration_lag",
            "Age of the integration's oldest message that is not settled; 0 without one",
            Unit::Seconds,
            integration(),
            self.seconds.clone(),
        );
        registry.family_with_unit(
            "tbmq_integration_time_to_drain",
            "Lag in messages, by what is settled less what is written per second; no series while it does not shrink",
            Unit::Seconds,
            integration(),
            self.drain.clone(),
        );
        registry.family(
            "tbmq_integration_unaccounted_messages",
            "Messages below the committed offsets less those that were delivered, rejected, skipped, dead-lettered or \
             expired, whichever are more; must be 0",
            integration(),
            self.unaccounted.clone(),
        );
    }

    /// Tells of these integrations, and of no others.
    pub(crate) fn tell(&self, lags: impl IntoIterator<Item = (IntegrationId, Lag)>) {
        let mut gone = std::mem::take(&mut *self.told.lock());
        for (id, lag) in lags {
            let labels = [("integration", id.to_string())];
            self.messages.get_or_create(&labels).set(lag.messages as i64);
            self.seconds.get_or_create(&labels).set(lag.seconds);
            self.unaccounted.get_or_create(&labels).set(lag.unaccounted as i64);
            if let Some(seconds) = lag.seconds_to_drain {
                self.drain.get_or_create(&labels).set(seconds);
            } else {
                self.drain.remove(&labels);
            }
            gone.remove(&id);
            self.told.lock().insert(id);
        }
        for id in gone {
            let labels = [("integration", id.to_string())];
            self.messages.remove(&labels);
            self.seconds.remove(&labels);
            self.drain.remove(&labels);
            self.unaccounted.remove(&labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use tbmq_service::metrics::Metrics;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_integration_that_is_not_told_of_any_more_has_no_series() {
        let registry = Metrics::default();
        let lags = Lags::default();
        registry.register(|registry| lags.register(registry));
        let (one, other) = (IntegrationId(Uuid::from_u128(1)), IntegrationId(Uuid::from_u128(2)));
        let lag = Lag { messages: 3, seconds: 1.5, seconds_to_drain: Some(2.0), unaccounted: 0 };
        lags.tell([(one, lag), (other, lag)]);
        let text = registry.encode();
        for value in ["lag_messages{", "lag_seconds{", "time_to_drain_seconds{", "unaccounted_messages{"] {
            assert_eq!(text.matches(value).count(), 2, "{value}: {text}");
        }
        lags.tell([(other, Lag { seconds_to_drain: None, ..lag })]);
        let text = registry.encode();
        assert!(!text.contains(&one.to_string()), "{text}");
        assert!(text.contains(&other.to_string()) && !text.contains("time_to_drain_seconds{"), "{text}");
    }
}
