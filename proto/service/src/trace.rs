//! OpenTelemetry traces.

mod context;

pub use self::context::{TRACEPARENT, TRACEPARENT_LENGTH, TRACESTATE, TraceContext};
