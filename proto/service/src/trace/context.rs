//! What of a trace travels: W3C Trace Context (<https://www.w3.org/TR/trace-context/>), versions 00 and later.

use std::{fmt, str::FromStr as _, sync::Arc};

use opentelemetry::trace::{SpanId, TraceId, TraceState};

/// Name of the header (HTTP, gRPC, Kafka) and of the MQTT user property.
pub const TRACEPARENT: &str = "traceparent";

/// Name of the header, or user property, with what other vendors' systems pass on.
pub const TRACESTATE: &str = "tracestate";

/// Bytes of a `traceparent` as it is written.
pub const TRACEPARENT_LENGTH: usize = 55;

/// Bytes of a `tracestate` that are passed on; the standard asks for 512 at least.
const TRACESTATE_MAX: usize = 512;

/// The place of a span in its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: TraceId,
    span_id: SpanId,
    is_sampled: bool,
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// Of ids that are not 0; `None` otherwise.
    pub fn new(trace_id: TraceId, span_id: SpanId, is_sampled: bool) -> Option<Self> {
        let is_valid = trace_id != TraceId::INVALID && span_id != SpanId::INVALID;
        is_valid.then_some(Self { trace_id, span_id, is_sampled, state: None })
    }

    /// Reads a `traceparent`. `None` for everything that the standard calls invalid: upper case, ids of zeros, version
    /// `ff`, and more than four fields in version 00.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let bytes = traceparent.as_bytes();
        let version = *hex::<1>(bytes.get(..2)?)?.first()?;
        let fields = bytes.get(..TRACEPARENT_LENGTH)?;
        let has_dashes = [2, 35, 52].iter().all(|at| fields[*at] == b'-');
        let ends_well = match version {
            0xff => false,
            0 => bytes.len() == TRACEPARENT_LENGTH,
            _ => bytes.get(TRACEPARENT_LENGTH).is_none_or(|byte| *byte == b'-'),
        };
        if !has_dashes || !ends_well {
            return None;
        }
        let trace_id = TraceId::from_bytes(hex(&fields[3..35])?);
        let span_id = SpanId::from_bytes(hex(&fields[36..52])?);
        let [flags] = hex::<1>(&fields[53..])?;
        Self::new(trace_id, span_id, flags & 1 == 1)
    }

    /// With a `tracestate`, which is left out when it is empty, too long (512 bytes) or invalid.
    #[must_use]
    pub fn with_state(mut self, tracestate: Option<&str>) -> Self {
        self.state = tracestate
            .filter(|text| {
                !text.is_empty() && text.len() <= TRACESTATE_MAX && TraceState::from_str(text).is_ok()
            })
            .map(Arc::from);
        self
    }

    /// From the fields that are looked up by name: [`TRACEPARENT`] and [`TRACESTATE`].
    pub fn read<T: AsRef<str>>(field: impl Fn(&str) -> Option<T>) -> Option<Self> {
        let context = Self::parse(field(TRACEPARENT)?.as_ref())?;
        Some(context.with_state(field(TRACESTATE).as_ref().map(AsRef::as_ref)))
    }

    /// The fields by which it travels, with their names.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        let state = self.state().map(|state| (TRACESTATE, state.to_owned()));
        std::iter::once((TRACEPARENT, self.traceparent())).chain(state)
    }

    /// The context of a span below this one.
    #[must_use]
    pub fn child(&self, span_id: SpanId) -> Self {
        Self { span_id, ..self.clone() }
    }

    /// The id of the trace; 32 digits when displayed.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// The id of the span; 16 digits when displayed.
    pub fn span_id(&self) -> SpanId {
        self.span_id
    }

    /// Whether the trace's spans are recorded.
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// The `tracestate`, if there is one.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// What gives log lines their `trace_id` and `span_id`, for as long as they are written within it.
    pub fn log_span(&self) -> tracing::Span {
        tracing::info_span!("traced", trace_id = %self.trace_id, span_id = %self.span_id)
    }

    /// The `traceparent`, version 00.
    pub fn traceparent(&self) -> String {
        self.to_string()
    }
}

/// As a `traceparent`, version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.is_sampled))
    }
}

/// Bytes of twice as many lower-case hexadecimal digits.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_read_is_written_again() {
        for flags in ["00", "01"] {
            let text = format!("{}{flags}", &GOOD[..53]);
            let context = TraceContext::parse(&text).unwrap();
            assert_eq!(context.traceparent(), text);
            assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
            assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
            assert_eq!(context.is_sampled(), flags == "01");
        }
        assert_eq!(GOOD.len(), TRACEPARENT_LENGTH);
    }

    #[test]
    fn what_the_standard_calls_invalid_is_no_context() {
        let bad = [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 ",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-101",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-é1",
        ];
        for text in bad {
            assert_eq!(TraceContext::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = GOOD.replacen("00", "cc", 1);
        for text in [later.clone(), format!("{later}-what-comes-next")] {
            assert_eq!(TraceContext::parse(&text).unwrap().traceparent(), GOOD);
        }
        let other_flags = format!("{}03", &GOOD[..53]);
        assert_eq!(TraceContext::parse(&other_flags).unwrap().traceparent(), GOOD);
    }

    #[test]
    fn a_state_that_can_not_be_passed_on_is_left_out() {
        let state = |text: &str| {
            let context = TraceContext::parse(GOOD).unwrap().with_state(Some(text));
            context.state().map(ToOwned::to_owned)
        };
        let two = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";
        assert_eq!(state(two).as_deref(), Some(two));
        assert_eq!(state(""), None);
        assert_eq!(state("no key"), None);
        assert_eq!(state(&format!("a={}", "x".repeat(TRACESTATE_MAX))), None);
    }
}
