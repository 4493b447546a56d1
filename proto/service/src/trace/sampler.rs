//! Which traces are recorded.

use opentelemetry::trace::{SpanKind, TraceId};
use opentelemetry_sdk::trace::{Sampler as Ratio, SamplingDecision, ShouldSample as _};

use super::{
    TraceContext,
    config::{OtelConfig, Sampler as Name},
};

/// Decides for a root by its id, and for what has a parent as the parent says, unless it is not to be asked.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    root: Ratio,
    is_parent_based: bool,
}

impl Sampler {
    pub(super) fn new(config: &OtelConfig) -> Self {
        let ratio = || Ratio::TraceIdRatioBased(config.traces.sampler_arg.map_or(1.0, |ratio| ratio.0));
        let (root, is_parent_based) = match config.traces.sampler {
            Name::AlwaysOn => (Ratio::AlwaysOn, false),
            Name::AlwaysOff => (Ratio::AlwaysOff, false),
            Name::TraceIdRatio => (ratio(), false),
            Name::ParentBasedAlwaysOn => (Ratio::AlwaysOn, true),
            Name::ParentBasedAlwaysOff => (Ratio::AlwaysOff, true),
            Name::ParentBasedTraceIdRatio => (ratio(), true),
        };
        Self { root, is_parent_based }
    }

    /// Whether a trace that begins here is recorded.
    pub(super) fn root(&self, trace_id: TraceId) -> bool {
        let result = self.root.should_sample(None, trace_id, "", &SpanKind::Internal, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }

    /// Whether what follows this is recorded.
    pub(super) fn child(&self, parent: &TraceContext) -> bool {
        if self.is_parent_based { parent.is_sampled() } else { self.root(parent.trace_id()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::config::Fraction;

    const LOW: &str = "00-00000000000000001000000000000000-b7ad6b7169203331-0";
    const HIGH: &str = "00-0000000000000000f000000000000000-b7ad6b7169203331-0";

    /// Whether these are recorded: a root with a low id and one with a high id, then children of such parents, the first
    /// not sampled and the second sampled.
    fn decisions(name: Name, ratio: Option<f64>) -> [bool; 4] {
        let mut config = OtelConfig::default();
        config.traces.sampler = name;
        config.traces.sampler_arg = ratio.map(Fraction);
        let sampler = Sampler::new(&config);
        let parent = |text: &str, flag: &str| TraceContext::parse(&format!("{text}{flag}")).unwrap();
        let (low, high) = (parent(LOW, "0"), parent(HIGH, "1"));
        [
            sampler.root(low.trace_id()),
            sampler.root(high.trace_id()),
            sampler.child(&low),
            sampler.child(&high),
        ]
    }

    #[test]
    fn each_sampler_decides_as_the_specification_says() {
        assert_eq!(decisions(Name::AlwaysOn, None), [true, true, true, true]);
        assert_eq!(decisions(Name::AlwaysOff, None), [false, false, false, false]);
        assert_eq!(decisions(Name::TraceIdRatio, Some(0.5)), [true, false, true, false]);
        assert_eq!(decisions(Name::TraceIdRatio, Some(0.0)), [false, false, false, false]);
        assert_eq!(decisions(Name::TraceIdRatio, None), [true, true, true, true]);
        assert_eq!(decisions(Name::ParentBasedAlwaysOn, None), [true, true, false, true]);
        assert_eq!(decisions(Name::ParentBasedAlwaysOff, None), [false, false, false, true]);
        assert_eq!(decisions(Name::ParentBasedTraceIdRatio, Some(0.5)), [true, false, false, true]);
    }
}
