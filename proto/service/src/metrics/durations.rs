//! How long things take: a histogram that many threads observe without meeting in one cache line.
//!
//! Each thread has one of a few sets of counters; they are added up when they are read. An observation costs a search in
//! 20 bounds and two additions. Bounds are the same everywhere, so that histograms can be compared and added.
//!
//! An observation that belongs to a sampled trace may leave the trace's id as exemplar of its bucket. The encoder of
//! prometheus-client takes exemplars only from its own histogram, so `encode` writes them itself, at the ends of the
//! lines that they belong to.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, TypedMetric},
    registry::Registry,
};

use crate::{time, trace::TraceContext};

/// Upper bounds of the buckets, in microseconds; one more bucket has what takes longer.
pub const BOUNDS_US: [u64; 19] = [
    500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Sets of counters: about as many as threads that observe at the same time.
const SHARDS: usize = 8;

/// A histogram of durations, in seconds. Clones share it.
#[derive(Clone, Default)]
pub struct Durations(Arc<Inner>);

#[derive(Default)]
struct Inner {
    shards: [Shard; SHARDS],
    exemplars: Mutex<Exemplars>,
}

/// Two cache lines are fetched at once on current processors.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    counts: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

type Exemplars = [Option<Exemplar>; BUCKETS];

#[derive(Clone)]
struct Exemplar {
    trace: TraceContext,
    seconds: f64,
    at_ms: i64,
}

impl Durations {
    /// Nothing observed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes one duration.
    pub fn observe(&self, elapsed: Duration) {
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let shard = &self.0.shards[shard()];
        shard.counts[bucket(nanoseconds)].fetch_add(1, Ordering::Relaxed);
        shard.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Notes one duration; when the trace is sampled it becomes the exemplar of its bucket.
    pub fn observe_traced(&self, elapsed: Duration, trace: Option<&TraceContext>) {
        self.observe(elapsed);
        if let Some(trace) = trace.filter(|trace| trace.is_sampled()) {
            let exemplar =
                Exemplar { trace: trace.clone(), seconds: elapsed.as_secs_f64(), at_ms: time::now_ms() };
            let bucket = bucket(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
            self.0.exemplars.lock()[bucket] = Some(exemplar);
        }
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.totals().0.iter().sum()
    }

    /// Of each bucket; and the sum in seconds.
    fn totals(&self) -> ([u64; BUCKETS], f64) {
        let mut counts = [0; BUCKETS];
        let mut nanoseconds = 0_u128;
        for shard in &self.0.shards {
            for (total, count) in counts.iter_mut().zip(&shard.counts) {
                *total += count.load(Ordering::Relaxed);
            }
            nanoseconds += u128::from(shard.nanoseconds.load(Ordering::Relaxed));
        }
        (counts, nanoseconds as f64 / 1e9)
    }
}

impl fmt::Debug for Durations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durations").field("count", &self.count()).finish_non_exhaustive()
    }
}

fn bucket(nanoseconds: u64) -> usize {
    BOUNDS_US.partition_point(|bound| bound * 1_000 < nanoseconds)
}

/// The shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let (counts, sum) = self.totals();
        let bounds = BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let exemplars = self.0.exemplars.lock().clone();
        PENDING.replace(exemplars.into_iter().collect());
        let done = encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None);
        PENDING.take();
        done
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

thread_local! {
    /// Exemplars of the histogram that this thread encodes, by bucket; those of lines that were written are gone.
    static PENDING: RefCell<std::collections::VecDeque<Option<Exemplar>>> = RefCell::default();
}

/// A registry in the OpenMetrics text format, with the exemplars of [`Durations`].
pub(super) fn encode(registry: &Registry) -> String {
    let mut into = Exposition::default();
    text::encode(&mut into, registry).expect("writing to a String does not fail");
    into.text
}

/// Where the encoder writes.
#[derive(Default)]
struct Exposition {
    text: String,
    line_at: usize,
}

impl fmt::Write for Exposition {
    fn write_str(&mut self, written: &str) -> fmt::Result {
        if written == "\n" {
            if self.text[self.line_at..].contains("_bucket{") {
                let exemplar = PENDING.with_borrow_mut(|pending| pending.pop_front().flatten());
                if let Some(Exemplar { trace, seconds, at_ms }) = exemplar {
                    let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
                    let at = at_ms as f64 / 1e3;
                    write!(
                        self.text,
                        " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {seconds:?} {at:.3}"
                    )?;
                }
            }
            self.line_at = self.text.len() + 1;
        }
        self.text.push_str(written);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::family::Family;

    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_duration_is_counted_up_to_its_bound_from_every_thread() {
        let durations = Durations::new();
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    durations.observe(Duration::from_micros(500));
                    durations.observe(Duration::from_nanos(500_001));
                    durations.observe(Duration::from_nanos(500_001));
                    durations.observe(Duration::from_secs(61));
                });
            }
        });
        let (counts, sum) = durations.totals();
        let threads = 2 * SHARDS as u64;
        assert_eq!((counts[0], counts[1], counts[BUCKETS - 1]), (threads, 2 * threads, threads));
        assert_eq!(durations.count(), 4 * threads);
        assert!((sum - 61.001_500_002 * threads as f64).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn a_sampled_trace_is_the_exemplar_of_its_bucket_and_its_series() {
        let family = Family::<[(&'static str, &'static str); 1], Durations>::default();
        let mut registry = Registry::default();
        registry.register("test_seconds", "Test", family.clone());
        let trace = TraceContext::parse(TRACE).unwrap();
        let unsampled = TraceContext::parse(&TRACE.replace("-01", "-00")).unwrap();
        let http = family.get_or_create_owned(&[("type", "HTTP")]);
        let kafka = family.get_or_create_owned(&[("type", "KAFKA")]);
        http.observe_traced(Duration::from_millis(4), Some(&trace));
        kafka.observe_traced(Duration::from_millis(40), Some(&unsampled));
        kafka.observe_traced(Duration::from_secs(90), Some(&trace));
        let text = encode(&registry);
        let with: Vec<&str> = text.lines().filter(|line| line.contains(" # {")).collect();
        assert_eq!(with.len(), 2, "{text}");
        for line in with {
            let (sample, exemplar) = line.split_once(" # ").unwrap();
            assert!(exemplar.starts_with(
                "{trace_id=\"0af7651916cd43dd8448eb211c80319c\",span_id=\"b7ad6b7169203331\"} "
            ));
            let expected = if sample.contains("HTTP") { "le=\"0.005\"" } else { "le=\"+Inf\"" };
            assert!(sample.contains(expected), "{line}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    /// Not a measurement of the machine, but of what an observation must never cost: a lock, an allocation.
    #[test]
    #[ignore = "a measurement: cargo test -p tbmq-service --release -- --ignored --nocapture cost"]
    fn cost() {
        let durations = Durations::new();
        let count = 50_000_000_u64;
        let began = std::time::Instant::now();
        for n in 0..count {
            durations.observe(Duration::from_nanos(std::hint::black_box(n * 7 % 20_000_000)));
        }
        let each = began.elapsed().as_nanos() as f64 / count as f64;
        assert!(each < 20.0, "{each:.1} ns");
    }
}
