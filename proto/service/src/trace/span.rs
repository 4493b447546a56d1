//! Spans, and who makes them.

use std::{borrow::Cow, fmt, sync::Arc, time::SystemTime};

use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    trace::{SpanId, SpanKind, Status},
};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use super::{TraceContext, export::Outlet, sampler::Sampler};
use crate::build_info;

/// Makes the spans of one plane. Clones share it; the default is off.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Plane>>);

#[derive(Debug)]
struct Plane {
    sampler: Sampler,
    outlet: Outlet,
}

impl Tracer {
    /// Makes no spans.
    pub const fn off() -> Self {
        Self(None)
    }

    pub(super) fn on(sampler: Sampler, outlet: Outlet) -> Self {
        Self(Some(Arc::new(Plane { sampler, outlet })))
    }

    /// Whether spans may be made.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a trace, or goes on with the one that something from outside belongs to. `None`: it is not recorded.
    pub fn begin(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        parent: Option<&TraceContext>,
    ) -> Option<Span> {
        match parent {
            Some(parent) => self.follow(name, kind, parent),
            None => self.root(name, kind),
        }
    }

    /// Goes on with a trace. `None`: it is not recorded.
    pub fn follow(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        parent: &TraceContext,
    ) -> Option<Span> {
        let plane = self.0.as_ref()?;
        if !plane.sampler.child(parent) {
            return None;
        }
        let ids = RandomIdGenerator::default();
        let context = TraceContext::new(parent.trace_id(), ids.new_span_id(), true)?;
        Some(Span::new(plane.clone(), name, kind, context.with_state(parent.state()), parent.span_id(), true))
    }

    fn root(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Option<Span> {
        let plane = self.0.as_ref()?;
        let ids = RandomIdGenerator::default();
        let trace_id = ids.new_trace_id();
        if !plane.sampler.root(trace_id) {
            return None;
        }
        let context = TraceContext::new(trace_id, ids.new_span_id(), true)?;
        Some(Span::new(plane.clone(), name, kind, context, SpanId::INVALID, false))
    }
}

/// Something that lasts, and is recorded. It ends when it is dropped.
pub struct Span(Box<Inner>);

struct Inner {
    plane: Arc<Plane>,
    context: TraceContext,
    parent: SpanId,
    is_parent_remote: bool,
    name: Cow<'static, str>,
    kind: SpanKind,
    start: SystemTime,
    attributes: Vec<KeyValue>,
    status: Status,
    is_discarded: bool,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span")
            .field("name", &self.0.name)
            .field("context", &self.0.context)
            .finish_non_exhaustive()
    }
}

impl Span {
    fn new(
        plane: Arc<Plane>,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        context: TraceContext,
        parent: SpanId,
        is_parent_remote: bool,
    ) -> Self {
        Self(Box::new(Inner {
            plane,
            context,
            parent,
            is_parent_remote,
            name: name.into(),
            kind,
            start: SystemTime::now(),
            attributes: Vec::new(),
            status: Status::Unset,
            is_discarded: false,
        }))
    }

    /// Its place, for what follows it.
    pub fn context(&self) -> &TraceContext {
        &self.0.context
    }

    /// Begins a span below this one.
    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Self {
        let Inner { plane, context, .. } = &*self.0;
        let child = context.child(RandomIdGenerator::default().new_span_id());
        Self::new(plane.clone(), name, kind, child, context.span_id(), false)
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.attributes.push(KeyValue::new(key, value));
    }

    /// It failed; `class` is a word from a closed set, `text` is for people.
    pub fn fail(&mut self, class: &'static str, text: impl Into<Cow<'static, str>>) {
        self.set("error.type", class);
        self.0.status = Status::Error { description: text.into() };
    }

    /// It was nothing: it is not recorded.
    pub fn discard(mut self) {
        self.0.is_discarded = true;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let inner = &mut *self.0;
        if inner.is_discarded {
            return;
        }
        let data = SpanData {
            span_context: opentelemetry::trace::SpanContext::new(
                inner.context.trace_id(),
                inner.context.span_id(),
                opentelemetry::TraceFlags::SAMPLED,
                false,
                inner.context.state().and_then(|state| state.parse().ok()).unwrap_or_default(),
            ),
            parent_span_id: inner.parent,
            parent_span_is_remote: inner.is_parent_remote,
            span_kind: inner.kind.clone(),
            name: std::mem::take(&mut inner.name),
            start_time: inner.start,
            // The clock may have been set back meanwhile.
            end_time: SystemTime::now().max(inner.start),
            attributes: std::mem::take(&mut inner.attributes),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: std::mem::replace(&mut inner.status, Status::Unset),
            instrumentation_scope: InstrumentationScope::builder("tbmq")
                .with_version(build_info::VERSION)
                .build(),
        };
        inner.plane.outlet.put(data);
    }
}

/// A span that has ended, for tests: what was recorded under which service's name.
#[derive(Clone, Debug)]
pub struct Finished {
    /// `service.name`.
    pub service: Arc<str>,
    /// What was recorded.
    pub data: SpanData,
}

impl Finished {
    /// Its place.
    pub fn context(&self) -> TraceContext {
        let context = &self.data.span_context;
        TraceContext::new(context.trace_id(), context.span_id(), true).expect("a recorded span has ids")
    }

    /// An attribute as text; empty when it is not there.
    pub fn attribute(&self, key: &str) -> String {
        let found = self.data.attributes.iter().rev().find(|attribute| attribute.key.as_str() == key);
        found.map(|attribute| attribute.value.to_string()).unwrap_or_default()
    }

    /// Whether it failed.
    pub fn is_error(&self) -> bool {
        matches!(self.data.status, Status::Error { .. })
    }
}
