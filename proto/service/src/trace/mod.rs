//! OpenTelemetry traces: what travels, who decides what is recorded, and how spans leave the process.
//!
//! * [`TraceContext`]: what travels with a message or a call, by W3C Trace Context.
//! * [`config`]: the standard's `OTEL_*` variables.
//! * [`Tracer`], [`Span`]: what a plane records. A tracer that is off is an empty field, and asking it is one branch.
//! * [`Traces`]: the process's one exporter. Spans wait in a bounded queue, which nothing ever waits for: what has no room
//!   there is dropped and counted.

pub mod config;
mod context;
mod current;
mod export;
mod sampler;
mod span;

pub use opentelemetry::trace::SpanKind;

pub(crate) use self::export::Transport;
pub use self::{
    context::{TRACEPARENT, TRACEPARENT_LENGTH, TRACESTATE, TraceContext},
    current::{current, within},
    export::{Recorded, Traces, describe_metrics},
    span::{Finished, Span, Tracer},
};

/// A text that came from outside, cut to what an attribute may have.
pub fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(ATTRIBUTE_BYTES_MAX)]
}

/// Bytes of an attribute whose text comes from outside, such as a topic.
pub const ATTRIBUTE_BYTES_MAX: usize = 256;
