//! One registry per process; every part registers its own struct of metrics in it.
//!
//! Names are `tbmq_<part>_<what>_<unit>`; the exporter adds `_total` to counters. Labels come from closed sets.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::text,
    metrics::{gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use crate::{build_info, time};

/// The process's registry. Clones share it.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// The content type of [`Metrics::encode`].
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Lets a part register what it measures, and hands back what the closure returns.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock())
    }

    /// All metrics in the OpenMetrics text format, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut into = String::new();
        text::encode(&mut into, &self.0.lock()).expect("writing to a String does not fail");
        into
    }
}

impl Default for Metrics {
    /// A registry that knows the program's version and when it started.
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register(
            "tbmq_service_build",
            "What is running",
            Info::new(vec![("version", build_info::VERSION)]),
        );
        registry.register_with_unit(
            "tbmq_service_start_time",
            "When the process started, since 1970",
            Unit::Seconds,
            ConstGauge::new(time::now_ms() as f64 / 1000.0),
        );
        Self(Arc::new(Mutex::new(registry)))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn what_is_registered_is_exported_with_its_value() {
        let metrics = Metrics::default();
        let drops = metrics.register(|registry| {
            let drops = Counter::<u64>::default();
            registry.register("tbmq_test_drops", "Drops", drops.clone());
            drops
        });
        drops.inc_by(3);
        let text = metrics.encode();
        assert!(text.contains("tbmq_test_drops_total 3"), "{text}");
        assert!(
            text.contains(&format!("tbmq_service_build_info{{version=\"{}\"}} 1", build_info::VERSION)),
            "{text}"
        );
    }
}
