//! One registry per process; every part registers its own struct of metrics in it.
//!
//! Names are TBMQ's where it has one, else `tbmq_<part>_<what>_<unit>`; the exporter adds `_total` to counters. Every
//! family says what its labels can be ([`Label`]): a closed set, or what bounds it; never a client or a topic. From that
//! `docs/metrics.md` is made ([`page`]), and a test compares it with what running planes expose.

pub mod durations;
pub mod exposition;
pub mod page;
mod process;

use std::{borrow::Cow, fmt, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    metrics::{
        MetricType, TypedMetric,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::{Metric, Registry as Instruments, Unit},
};

pub use self::durations::Durations;
use crate::{build_info, telemetry, time};

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

    /// Calls this before each time that values are read, to set gauges that are looked up rather than kept. It must not
    /// wait, nor touch this registry.
    pub fn before_reading(&self, look: impl FnMut() + Send + 'static) {
        self.0.lock().looks.push(Box::new(look));
    }

    /// All metrics in the OpenMetrics text format, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut registry = self.0.lock();
        registry.looks.iter_mut().for_each(|look| look());
        durations::encode(&registry.instruments)
    }

    /// All metrics as [`Metrics::encode`] says, taken apart.
    pub fn read(&self) -> Vec<exposition::Family> {
        exposition::read(&self.encode()).expect("what the encoder writes can be read")
    }

    /// What is registered, in the order of registration.
    pub fn descriptions(&self) -> Vec<Description> {
        self.0.lock().descriptions.clone()
    }
}

impl Default for Metrics {
    /// A registry that knows the program's version, when it started, and what the process uses.
    fn default() -> Self {
        let metrics = Self(Arc::default());
        let usage = metrics.register(|registry| {
            registry.register_info(
                "tbmq_service_build",
                "The version that runs",
                vec![Label::bounded("version", "one, that of the process")],
                Info::new(vec![("version", build_info::VERSION)]),
            );
            registry.register_with_unit(
                "tbmq_service_start_time",
                "When the process started, since 1970",
                Unit::Seconds,
                ConstGauge::new(time::now_ms() as f64 / 1000.0),
            );
            telemetry::register(registry);
            process::Usage::register(registry)
        });
        metrics.before_reading(move || usage.look());
        metrics
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Where instruments are registered, with what they mean.
#[derive(Default)]
pub struct Registry {
    instruments: Instruments,
    descriptions: Vec<Description>,
    looks: Vec<Box<dyn FnMut() + Send>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("descriptions", &self.descriptions).finish_non_exhaustive()
    }
}

/// An instrument that is one series: what has labels is a [`Family`].
pub trait Single: Metric + TypedMetric {}

impl<N, A> Single for Counter<N, A> where Self: Metric {}
impl<N, A> Single for Gauge<N, A> where Self: Metric {}
impl<N> Single for ConstGauge<N> where Self: Metric {}
impl Single for Durations {}

impl Registry {
    /// Registers an instrument without labels. `help` has no full stop: the encoder adds one.
    pub fn register(&mut self, name: impl Into<String>, help: &str, metric: impl Single) {
        self.add(name.into(), help, None, Vec::new(), metric);
    }

    /// As [`Registry::register`]; the unit is appended to the name.
    pub fn register_with_unit(
        &mut self,
        name: impl Into<String>,
        help: &str,
        unit: Unit,
        metric: impl Single,
    ) {
        self.add(name.into(), help, Some(unit), Vec::new(), metric);
    }

    /// Registers instruments that labels tell apart.
    pub fn family<S, M, C>(&mut self, name: &str, help: &str, labels: Vec<Label>, family: Family<S, M, C>)
    where
        Family<S, M, C>: Metric + TypedMetric,
    {
        self.add(name.to_owned(), help, None, labels, family);
    }

    /// As [`Registry::family`]; the unit is appended to the name.
    pub fn family_with_unit<S, M, C>(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        labels: Vec<Label>,
        family: Family<S, M, C>,
    ) where
        Family<S, M, C>: Metric + TypedMetric,
    {
        self.add(name.to_owned(), help, Some(unit), labels, family);
    }

    fn register_info<S>(&mut self, name: &str, help: &str, labels: Vec<Label>, info: Info<S>)
    where
        Info<S>: Metric,
    {
        self.add(name.to_owned(), help, None, labels, info);
    }

    fn add<M: Metric + TypedMetric>(
        &mut self,
        name: String,
        help: &str,
        unit: Option<Unit>,
        labels: Vec<Label>,
        metric: M,
    ) {
        let unit_text = unit.as_ref().map(Unit::as_str);
        let kind = Kind::from(M::TYPE);
        let full = unit_text.map_or_else(|| name.clone(), |unit| format!("{name}_{unit}"));
        self.descriptions.push(Description {
            unit: unit_text.map(ToOwned::to_owned).or_else(|| unit_in(&full).map(ToOwned::to_owned)),
            name: full,
            kind,
            help: help.to_owned(),
            labels,
        });
        match unit {
            Some(unit) => self.instruments.register_with_unit(name, help, unit, metric),
            None => self.instruments.register(name, help, metric),
        }
    }
}

/// The unit that a name ends in.
fn unit_in(name: &str) -> Option<&str> {
    let (_, last) = name.rsplit_once('_')?;
    ["bytes", "seconds", "milliseconds", "messages", "records"].contains(&last).then_some(last)
}

/// What kind of numbers an instrument gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many observations were at most how large.
    Histogram,
    /// Always 1; what is told is in the labels.
    Info,
}

impl Kind {
    /// OpenMetrics' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }

    /// By OpenMetrics' word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Counter, Self::Gauge, Self::Histogram, Self::Info]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

impl From<MetricType> for Kind {
    fn from(r#type: MetricType) -> Self {
        match r#type {
            MetricType::Counter => Self::Counter,
            MetricType::Histogram => Self::Histogram,
            MetricType::Info => Self::Info,
            _ => Self::Gauge,
        }
    }
}

/// What a registered instrument means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// As it is registered, with its unit: what is scraped has `_total` behind it (counters), `_info`, or `_bucket`,
    /// `_sum` and `_count` (histograms).
    pub name: String,
    /// What kind of numbers it gives.
    pub kind: Kind,
    /// What is counted, if the name says so.
    pub unit: Option<String>,
    /// What it means.
    pub help: String,
    /// What tells its series apart.
    pub labels: Vec<Label>,
}

/// A label and what it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it can be.
    pub values: Values,
}

/// What a label can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// One of these.
    Closed(Cow<'static, [&'static str]>),
    /// As many as there are of something that has a limit.
    Bounded(&'static str),
}

impl Label {
    /// A label with one of these values.
    pub fn closed(name: &'static str, values: impl Into<Cow<'static, [&'static str]>>) -> Self {
        Self { name, values: Values::Closed(values.into()) }
    }

    /// A label whose values are known only when the process runs; `by` says what bounds their number.
    pub fn bounded(name: &'static str, by: &'static str) -> Self {
        Self { name, values: Values::Bounded(by) }
    }

    /// An integration's id. Its series go with it.
    pub fn integration(name: &'static str) -> Self {
        Self::bounded(name, "ids of integrations")
    }
}

/// Makes an enumeration whose variants are a closed set of label values: `NAMES` has them as they are scraped.
#[macro_export]
macro_rules! label_values {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $($(#[$of:meta])* $variant:ident),* $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelValue)]
        $vis enum $name { $($(#[$of])* $variant),* }

        impl $name {
            /// As they are scraped.
            pub(crate) const NAMES: &'static [&'static str] = &[$(stringify!($variant)),*];

            /// Each of them.
            #[allow(dead_code, reason = "not every set is gone through")]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),*];
        }
    };
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn what_is_looked_up_is_fresh_each_time() {
        let metrics = Metrics::default();
        let gauge = Gauge::<i64>::default();
        metrics.register(|registry| registry.register("tbmq_test_looks", "Looks", gauge.clone()));
        metrics.before_reading(move || {
            gauge.inc();
        });
        assert!(metrics.encode().contains("tbmq_test_looks 1\n"));
        assert!(metrics.encode().contains("tbmq_test_looks 2\n"));
    }

    #[test]
    fn a_family_without_series_is_described_all_the_same() {
        let metrics = Metrics::default();
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        metrics.register(|registry| {
            let labels = vec![Label::closed("colour", &["red", "blue"][..])];
            registry.family("tbmq_test_balls", "Balls", labels, family);
        });
        assert!(!metrics.encode().contains("tbmq_test_balls"));
        let described = metrics.descriptions();
        let last = described.last().unwrap();
        assert_eq!((last.name.as_str(), last.kind), ("tbmq_test_balls", Kind::Counter));
    }
}
