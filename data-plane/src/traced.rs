//! What is traced of a publish: the PUBLISH until all its records have an outcome, and each record until it has one.

use std::sync::Arc;

use tbmq_bus::{Error, Header, SubmitError};
use tbmq_mqtt::{codec::property::Properties, session::Message};
use tbmq_service::trace::{Span, SpanKind, TraceContext, Tracer, bounded};

/// The span of a PUBLISH, or of a will, if it is recorded. It ends with the last [`Sending`] below it.
pub(crate) fn publish(tracer: &Tracer, message: &Message) -> Option<Arc<Span>> {
    if !tracer.is_on() {
        return None;
    }
    let parent = parent(&message.properties);
    let mut span = tracer.begin("publish", SpanKind::Server, parent.as_ref())?;
    span.set("messaging.system", "mqtt");
    span.set("messaging.operation.name", "publish");
    span.set("messaging.operation.type", "receive");
    span.set("messaging.destination.name", bounded(&message.topic).to_owned());
    span.set("messaging.client.id", bounded(&message.publisher).to_owned());
    span.set("messaging.message.body.size", message.payload.len() as i64);
    span.set("tbmq.mqtt.qos", i64::from(message.qos.bits()));
    span.set("tbmq.mqtt.retain", message.retain);
    Some(Arc::new(span))
}

/// What an MQTT 5 client says of its own trace: the first user property of each name counts.
fn parent(properties: &Properties) -> Option<TraceContext> {
    TraceContext::read(|wanted| {
        let found = properties.user_properties().find(|(name, _)| &**name == wanted);
        found.map(|(_, value)| value.to_string())
    })
}

/// A record of a traced publish on its way to the bus.
#[derive(Debug)]
pub(crate) struct Sending {
    // Ends before the publish does.
    span: Span,
    publish: Arc<Span>,
}

impl Sending {
    /// A record for this topic of the bus.
    pub(crate) fn begin(publish: &Arc<Span>, topic: &str) -> Self {
        let mut span = publish.child("send", SpanKind::Producer);
        span.set("messaging.system", "kafka");
        span.set("messaging.operation.name", "send");
        span.set("messaging.operation.type", "send");
        span.set("messaging.destination.name", topic.to_owned());
        Self { span, publish: publish.clone() }
    }

    /// What the record carries.
    pub(crate) fn headers(&self) -> Vec<Header> {
        self.span.context().fields().map(|(name, text)| Header::text(name, text)).collect()
    }

    /// The bus had no room for it.
    pub(crate) fn refused(mut self, error: SubmitError) {
        let class = match error {
            SubmitError::TopicFull => "topic_full",
            SubmitError::BusFull => "bus_full",
        };
        self.span.fail(class, error.to_string());
    }

    /// It is durable, or never will be.
    pub(crate) fn settled(mut self, result: &Result<(), Error>) {
        if let Err(error) = result {
            let class = match error {
                Error::UnknownTopic(_) => "unknown_topic",
                Error::Unavailable(_) => "unavailable",
                Error::Fenced(_) => "fenced",
                Error::Refused(_) => "refused",
            };
            self.span.fail(class, error.to_string());
            tracing::debug!(
                trace_id = %self.publish.context().trace_id(), span_id = %self.span.context().span_id(), %error,
                "a traced record was not written"
            );
        }
    }
}
