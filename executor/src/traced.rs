//! What is traced of a message here: from its arrival until it has left, and each attempt to deliver it.

use std::sync::Arc;

use parking_lot::Mutex;
use tbmq_bus::{Record, TopicPartition};
use tbmq_integration::pack::{Exit, Sighting, Ticket};
use tbmq_proto::ids::{Kind, ShardId};
use tbmq_service::trace::{Span, SpanKind, TraceContext, Tracer, bounded};

/// What a record says of its trace.
pub(crate) fn parent(record: &Record) -> Option<TraceContext> {
    TraceContext::read(|name| record.header(name))
}

/// Who traces: a shard, as its spans tell it.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) tracer: Tracer,
    pub(crate) shard: ShardId,
    pub(crate) kind: Kind,
    pub(crate) group: Arc<str>,
}

impl Origin {
    /// Begins the span of a record that is traced. Who publishes decides: nothing begins here.
    pub(crate) fn arrived(&self, record: &Record, partition: &TopicPartition) -> Option<Arc<Traced>> {
        if !self.tracer.is_on() {
            return None;
        }
        let mut span = self.tracer.follow("process", SpanKind::Consumer, &parent(record)?)?;
        span.set("messaging.system", "kafka");
        span.set("messaging.operation.name", "process");
        span.set("messaging.operation.type", "process");
        span.set("messaging.destination.name", partition.topic.to_string());
        span.set("messaging.destination.partition.id", partition.partition.to_string());
        span.set("messaging.consumer.group.name", self.group.to_string());
        span.set("messaging.kafka.offset", record.offset as i64);
        self.name(&mut span);
        let origin = self.clone();
        let open = Mutex::new(Open { attempt: None, failure: None, outcome: "abandoned", span });
        Some(Arc::new(Traced { origin, offset: record.offset, open }))
    }

    fn name(&self, span: &mut Span) {
        span.set("tbmq.integration_id", self.shard.integration.to_string());
        span.set("tbmq.integration_shard", i64::from(self.shard.index));
        span.set("tbmq.integration_kind", self.kind.as_str().to_owned());
    }
}

/// A message that is traced. Its span ends with it.
#[derive(Debug)]
pub(crate) struct Traced {
    origin: Origin,
    pub(crate) offset: u64,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    // Ends before the message does.
    attempt: Option<Span>,
    /// Of the last attempt.
    failure: Option<(&'static str, String)>,
    outcome: &'static str,
    span: Span,
}

impl Traced {
    /// The message's place in its trace.
    pub(crate) fn context(&self) -> TraceContext {
        self.open.lock().span.context().clone()
    }

    /// An attempt begins; its place goes out with the message.
    pub(crate) fn attempt(&self, ticket: Ticket) -> Arc<TraceContext> {
        let mut open = self.open.lock();
        let mut attempt = open.span.child("deliver", SpanKind::Client);
        self.origin.name(&mut attempt);
        attempt.set("tbmq.attempt.number", (ticket & 0xffff) as i64);
        let context = Arc::new(attempt.context().clone());
        open.attempt = Some(attempt);
        context
    }

    /// The sink did not take it.
    pub(crate) fn not_attempted(&self) {
        if let Some(attempt) = self.open.lock().attempt.take() {
            attempt.discard();
        }
    }

    /// Takes note of what became of it.
    pub(crate) fn saw(&self, sighting: Sighting) {
        let mut open = self.open.lock();
        match sighting {
            Sighting::Failed { class, text, is_retried } => {
                let text = bounded(&text).to_owned();
                if let Some(mut attempt) = open.attempt.take() {
                    attempt.set("tbmq.attempt.outcome", if is_retried { "retried" } else { "given_up" });
                    attempt.fail(class, text.clone());
                }
                open.failure = Some((class, text));
            }
            Sighting::Left(exit) => {
                if let Some(mut attempt) = open.attempt.take() {
                    attempt.set("tbmq.attempt.outcome", "delivered");
                }
                open.outcome = match exit {
                    Exit::Delivered => "delivered",
                    Exit::Rejected => "rejected",
                    Exit::Skipped => "skipped",
                    Exit::DeadLettered => "dead_lettered",
                    Exit::Expired => "expired",
                };
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let Open { failure, outcome, span, .. } = self.open.get_mut();
        span.set("tbmq.outcome", *outcome);
        match (*outcome, failure.take()) {
            ("delivered", _) => {}
            (_, Some((class, text))) => span.fail(class, text),
            (outcome, None) => span.fail(outcome, ""),
        }
    }
}
