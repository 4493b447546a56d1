//! Producing by handle, with outcomes in batches.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use rdkafka::{
    ClientConfig,
    error::RDKafkaErrorCode,
    producer::{BaseProducer, DefaultProducerContext, Producer as _},
};
use tokio::sync::Notify;

use super::{
    EndsAside, KafkaConfig, by_code, error,
    ffi::{self, Event, NativeTopic, Reports},
};
use crate::{
    Completion, CompletionQueue, Error, Outgoing, SubmitError, Ticket, TopicHandle, Writer, WriterConfig,
    Written,
};

/// Delivery reports that are handed on with one wake, at most so many events of librdkafka.
const EVENTS_PER_ROUND: usize = 64;

/// Travels with a record through librdkafka.
#[derive(Debug)]
struct Token {
    ticket: Ticket,
    bytes: usize,
    topic: Arc<Topic>,
    completions: Arc<CompletionQueue>,
}

/// A topic of this writer: its budget, and its handle in the producer of the moment.
#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    in_flight: AtomicUsize,
    native: RwLock<Option<(u64, Arc<NativeTopic>)>>,
}

/// A producer, and its number among those of this writer: a fatal error calls for a new one.
struct Generation {
    number: u64,
    producer: EndsAside<DefaultProducerContext>,
    /// Somebody has something for who hands the outcomes on.
    bell: Arc<Notify>,
}

impl Generation {
    fn new(number: u64, client: &ClientConfig) -> Result<Self, Error> {
        let producer: BaseProducer = client.create().map_err(|failure| error("producer", &failure))?;
        Ok(Self { number, producer: EndsAside::new(producer), bell: Arc::default() })
    }
}

struct Shared {
    client: ClientConfig,
    config: WriterConfig,
    current: RwLock<Arc<Generation>>,
    in_flight: AtomicUsize,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Whoever hands outcomes on ends when there are none left.
        self.current.read().bell.notify_one();
    }
}

/// A writer over Kafka.
pub(super) struct KafkaWriter {
    shared: Arc<Shared>,
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
}

impl fmt::Debug for KafkaWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaWriter").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl KafkaWriter {
    pub(super) fn new(kafka: &KafkaConfig, config: WriterConfig) -> Result<Self, Error> {
        let mut client = kafka.client(&config.client_id);
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", config.linger.as_millis().to_string())
            .set("message.timeout.ms", config.deadline.as_millis().max(1).to_string())
            .set("message.max.bytes", "16777216")
            // Our budgets rule; librdkafka's own limits are out of the way.
            .set("queue.buffering.max.messages", "10000000")
            .set("queue.buffering.max.kbytes", "2097151");
        let client = kafka.finish(client);
        let generation = Arc::new(Generation::new(0, &client)?);
        let shared = Arc::new(Shared {
            client,
            config,
            current: RwLock::new(Arc::clone(&generation)),
            in_flight: AtomicUsize::new(0),
        });
        Collector::start(&shared, generation);
        Ok(Self { shared, topics: Mutex::default() })
    }
}

/// Hands the outcomes of a producer on, for as long as the writer lives or records are in flight. A task and no thread:
/// who waits for the outcomes is one as well, and each change of threads costs as much as several records.
struct Collector {
    /// Goes before its producer.
    reports: Reports,
    generation: Arc<Generation>,
    shared: Weak<Shared>,
    done: Vec<(Arc<CompletionQueue>, Vec<Completion>)>,
    is_replaced: bool,
}

impl Collector {
    fn start(shared: &Arc<Shared>, generation: Arc<Generation>) {
        let bell = Arc::clone(&generation.bell);
        let collector = Self {
            reports: Reports::of(&generation.producer, move || bell.notify_one()),
            generation,
            shared: Arc::downgrade(shared),
            done: Vec::new(),
            is_replaced: false,
        };
        tokio::spawn(collector.run());
    }

    async fn run(mut self) {
        let bell = Arc::clone(&self.generation.bell);
        loop {
            if self.hand_on() {
                // There may be more, and others want their turn.
                tokio::task::yield_now().await;
                continue;
            }
            let has_ended = self.is_replaced || self.shared.strong_count() == 0;
            if has_ended && self.generation.producer.in_flight_count() == 0 {
                return;
            }
            bell.notified().await;
        }
    }

    /// Hands on what is there; `false` when that is nothing.
    fn hand_on(&mut self) -> bool {
        let shared = self.shared.upgrade();
        let mut bytes = 0;
        let mut is_quiet = true;
        for _ in 0..EVENTS_PER_ROUND {
            match self.reports.take::<Token>() {
                Event::Reports(batch) => {
                    for report in batch {
                        bytes += report.token.bytes;
                        self.settle(report);
                    }
                }
                Event::Error(code, text) => self.trouble(code, &text),
                Event::Other => {}
                Event::None => break,
            }
            is_quiet = false;
        }
        if let Some(shared) = shared {
            shared.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        }
        for (queue, completions) in self.done.drain(..) {
            queue.push(completions);
        }
        !is_quiet
    }

    fn settle(&mut self, report: ffi::Report<Token>) {
        let Token { ticket, bytes, topic, completions } = *report.token;
        topic.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        let result = report.result.map(|(partition, offset)| Written { partition, offset }).map_err(|code| {
            if is_unknown(code) {
                look_again(&self.generation, &topic);
            }
            by_code(code, format!("{}: {code}", topic.name))
        });
        let completion = Completion { ticket, result };
        match self.done.iter_mut().find(|(queue, _)| Arc::ptr_eq(queue, &completions)) {
            Some((_, batch)) => batch.push(completion),
            None => self.done.push((completions, vec![completion])),
        }
    }

    fn trouble(&mut self, code: RDKafkaErrorCode, text: &str) {
        let fatal = self.generation.producer.client().fatal_error();
        tracing::warn!(%code, %text, fatal = fatal.is_some(), "the producer reports an error");
        if fatal.is_some() && !self.is_replaced {
            self.is_replaced = self.replace();
        }
    }

    /// Puts a new producer in the place of one that met a fatal error.
    fn replace(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return true };
        match Generation::new(self.generation.number + 1, &shared.client) {
            Ok(next) => {
                let next = Arc::new(next);
                *shared.current.write() = Arc::clone(&next);
                Self::start(&shared, next);
                true
            }
            Err(error) => {
                tracing::error!(%error, "no new producer after a fatal error; it is tried again");
                false
            }
        }
    }
}

fn is_unknown(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition)
}

/// Forgets a handle that found no topic: the next record looks the topic up anew, whether it was created meanwhile or
/// not.
fn look_again(generation: &Generation, topic: &Topic) {
    let mut native = topic.native.write();
    if native.as_ref().is_some_and(|(number, _)| *number == generation.number) {
        *native = None;
    }
}

impl Topic {
    /// The handle in this producer.
    fn native(&self, generation: &Arc<Generation>) -> Option<Arc<NativeTopic>> {
        if let Some((number, native)) = &*self.native.read()
            && *number == generation.number
        {
            return Some(Arc::clone(native));
        }
        let native =
            Arc::new(NativeTopic::new(&generation.producer, Arc::clone(generation) as _, &self.name)?);
        *self.native.write() = Some((generation.number, Arc::clone(&native)));
        Some(native)
    }
}

impl KafkaWriter {
    fn own(&self, name: &str) -> Arc<Topic> {
        let mut topics = self.topics.lock();
        if let Some(topic) = topics.get(name) {
            return Arc::clone(topic);
        }
        let name: Arc<str> = name.into();
        let topic =
            Topic { name: Arc::clone(&name), in_flight: AtomicUsize::new(0), native: RwLock::new(None) };
        let topic = Arc::new(topic);
        topics.insert(name, Arc::clone(&topic));
        topic
    }
}

impl Writer for KafkaWriter {
    fn topic(&self, name: &str) -> TopicHandle {
        let topic = self.own(name);
        // librdkafka begins to look for the topic's leaders now, and not only when the first record waits for them.
        drop(topic.native(&self.shared.current.read()));
        TopicHandle::new(Arc::clone(&topic.name), Arc::new(topic))
    }

    fn submit(
        &self,
        handle: &TopicHandle,
        record: Outgoing<'_>,
        ticket: Ticket,
        completions: &Arc<CompletionQueue>,
    ) -> Result<(), SubmitError> {
        let topic = handle.state::<Arc<Topic>>().map_or_else(|| self.own(handle.name()), Arc::clone);
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + 64;
        let config = &self.shared.config;
        // A record that is larger than a budget passes when nothing else is in flight.
        let of_topic = topic.in_flight.fetch_add(bytes, Ordering::Relaxed);
        if of_topic > 0 && of_topic + bytes > config.topic_budget_bytes {
            topic.in_flight.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SubmitError::TopicFull);
        }
        let of_writer = self.shared.in_flight.fetch_add(bytes, Ordering::Relaxed);
        let release = || {
            topic.in_flight.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        };
        if of_writer > 0 && of_writer + bytes > config.budget_bytes {
            release();
            return Err(SubmitError::BusFull);
        }
        // Held until the record is on its way: who replaces a producer waits for it, and so sees every record that the
        // old one has.
        let generation = self.shared.current.read();
        let fail = |code: RDKafkaErrorCode| {
            release();
            let error = by_code(code, format!("{}: {code}", topic.name));
            completions.push([Completion { ticket, result: Err(error) }]);
            Ok(())
        };
        let Some(native) = topic.native(&generation) else { return fail(RDKafkaErrorCode::InvalidTopic) };
        let token = Token { ticket, bytes, topic: Arc::clone(&topic), completions: Arc::clone(completions) };
        match ffi::produce(&generation.producer, &native, record, Box::new(token)) {
            Ok(()) => Ok(()),
            Err((RDKafkaErrorCode::QueueFull, _)) => {
                release();
                Err(SubmitError::BusFull)
            }
            Err((code, _)) => {
                if is_unknown(code) {
                    look_again(&generation, &topic);
                }
                fail(code)
            }
        }
    }

    fn in_flight_bytes(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::write;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fatal_error_of_the_producer_is_healed() {
        let cluster: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let kafka = KafkaConfig::new(cluster.bootstrap_servers());
        let writer = KafkaWriter::new(&kafka, WriterConfig::new("w")).unwrap();
        let handle = writer.topic("t");
        let outgoing = Outgoing { partition: Some(0), key: None, value: Some(b"v"), headers: &[] };
        for round in 0..3_u64 {
            let written = write(&writer, &handle, outgoing).await.unwrap();
            assert_eq!(written, Written { partition: 0, offset: round });
            ffi::break_producer(&writer.shared.current.read().producer);
            let healed = async {
                while writer.shared.current.read().number == round {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), healed).await.unwrap();
        }
        write(&writer, &handle, outgoing).await.unwrap();
        assert_eq!(writer.in_flight_bytes(), 0);
    }
}
