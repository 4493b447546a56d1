//! Taking clients down without waiting.

use std::{fmt, ops::Deref};

use rdkafka::producer::{BaseProducer, ProducerContext};

/// A producer whose owner does not wait for its end: a thread that is made when it is dropped does. What the producer has
/// not sent by then goes with it: purge or count it before, if that matters.
pub struct EndsAside<C: ProducerContext + 'static> {
    /// `None` only while it is dropped.
    producer: Option<BaseProducer<C>>,
}

impl<C: ProducerContext + 'static> EndsAside<C> {
    /// Takes the producer over.
    pub fn new(producer: BaseProducer<C>) -> Self {
        Self { producer: Some(producer) }
    }
}

impl<C: ProducerContext + 'static> Deref for EndsAside<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        self.producer.as_ref().expect("it is taken by `drop` alone")
    }
}

impl<C: ProducerContext + 'static> Drop for EndsAside<C> {
    fn drop(&mut self) {
        end(self.producer.take());
    }
}

impl<C: ProducerContext + 'static> fmt::Debug for EndsAside<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndsAside")
    }
}

/// Drops a client on a thread of its own: to take one down is to wait for its threads. Without a thread this waits.
pub(super) fn end(client: impl Send + 'static) {
    let ending = std::thread::Builder::new().name("kafka-end".to_owned());
    // A closure that is not run is dropped here, with what it owns.
    if let Err(error) = ending.spawn(move || drop(client)) {
        tracing::warn!(%error, "no thread for closing a Kafka client");
    }
}
