//! Atomic batches: one Kafka transaction each, under a transactional id that fences older writers.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::{
    ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header as NativeHeader, Message as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
};

use super::{KafkaConfig, blocking, by_code, error};
use crate::{BatchRecord, Error, FencedWriter, Written};

/// How long a step of a transaction may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often to look for the outcomes of a batch.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Outcomes of one batch: an entry for each record.
type Outcomes = Arc<Mutex<Vec<Option<Result<Written, RDKafkaErrorCode>>>>>;

struct Context;

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<(usize, Outcomes)>;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: Self::DeliveryOpaque) {
        let (index, outcomes) = *opaque;
        let outcome = match result {
            Ok(message) => {
                Ok(Written { partition: message.partition() as u32, offset: message.offset().max(0) as u64 })
            }
            Err((failure, _)) => Err(failure.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        if let Some(entry) = outcomes.lock().get_mut(index) {
            *entry = Some(outcome);
        }
    }
}

/// The only writer of its name.
pub(super) struct KafkaFencedWriter {
    name: String,
    producer: Arc<BaseProducer<Context>>,
    /// The last transaction could not be aborted: that comes before the next one.
    unclean: Arc<AtomicBool>,
    /// Why it can't write any more.
    ended: Option<Error>,
}

impl fmt::Debug for KafkaFencedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaFencedWriter")
            .field("name", &self.name)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl KafkaFencedWriter {
    pub(super) async fn open(kafka: &KafkaConfig, name: &str) -> Result<Self, Error> {
        let mut client = kafka.client(name);
        client
            .set("transactional.id", name)
            .set("transaction.timeout.ms", "15000")
            .set("message.timeout.ms", "9000")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "0");
        let client = kafka.finish(client);
        let producer: BaseProducer<Context> = client
            .create_with_context(Context)
            .map_err(|failure| error("transactional producer", &failure))?;
        let producer = Arc::new(producer);
        let opening = Arc::clone(&producer);
        blocking(move || {
            opening
                .init_transactions(Duration::from_secs(30))
                .map_err(|failure| error("opening the transactional writer", &failure))
        })
        .await?;
        Ok(Self { name: name.to_owned(), producer, unclean: Arc::default(), ended: None })
    }
}

fn send(producer: &BaseProducer<Context>, batch: &[BatchRecord], outcomes: &Outcomes) -> Result<(), Error> {
    for (index, record) in batch.iter().enumerate() {
        let mut native: BaseRecord<'_, [u8], [u8], Box<(usize, Outcomes)>> =
            BaseRecord::with_opaque_to(&record.topic, Box::new((index, Arc::clone(outcomes))));
        if let Some(partition) = record.partition {
            native = native.partition(partition as i32);
        }
        if let Some(key) = &record.key {
            native = native.key(key);
        }
        if let Some(value) = &record.value {
            native = native.payload(value);
        }
        if !record.headers.is_empty() {
            let headers = record
                .headers
                .iter()
                .fold(OwnedHeaders::new_with_capacity(record.headers.len()), |all, one| {
                    all.insert(NativeHeader { key: &one.name, value: Some(&*one.value) })
                });
            native = native.headers(headers);
        }
        producer.send(native).map_err(|(failure, _)| error(&record.topic, &failure))?;
    }
    // `flush` would look every 100 ms only. What has no outcome in the end is told as such.
    let deadline = Instant::now() + PATIENCE;
    while outcomes.lock().iter().any(Option::is_none) && Instant::now() < deadline {
        producer.poll(LOOK_EVERY);
    }
    Ok(())
}

/// One transaction.
fn transact(
    producer: &BaseProducer<Context>,
    unclean: &AtomicBool,
    batch: &[BatchRecord],
) -> Result<Vec<Written>, Error> {
    let step = |what: &'static str| move |failure: KafkaError| error(what, &failure);
    if unclean.load(Ordering::Acquire) {
        producer.abort_transaction(PATIENCE).map_err(step("aborting the batch before"))?;
        unclean.store(false, Ordering::Release);
    }
    producer.begin_transaction().map_err(step("beginning a batch"))?;
    let outcomes: Outcomes = Arc::new(Mutex::new(vec![None; batch.len()]));
    let written = send(producer, batch, &outcomes).and_then(|()| {
        let outcomes = outcomes.lock();
        let each = outcomes.iter().zip(batch).map(|(outcome, record)| match outcome {
            Some(Ok(written)) => Ok(*written),
            Some(Err(code)) => Err(by_code(*code, format!("{}: {code}", record.topic))),
            None => Err(Error::Unavailable(format!("{}: no outcome in time", record.topic))),
        });
        each.collect::<Result<Vec<Written>, Error>>()
    });
    match written {
        Ok(written) => {
            // An unknown result of a commit may be asked for again (Kafka answers the same).
            let mut result = producer.commit_transaction(PATIENCE);
            if matches!(&result, Err(KafkaError::Transaction(failure)) if failure.is_retriable()) {
                result = producer.commit_transaction(PATIENCE);
            }
            match result {
                Ok(()) => Ok(written),
                Err(failure) => {
                    let problem = error("committing a batch", &failure);
                    abort(producer, unclean);
                    Err(problem)
                }
            }
        }
        Err(problem) => {
            abort(producer, unclean);
            Err(problem)
        }
    }
}

fn abort(producer: &BaseProducer<Context>, unclean: &AtomicBool) {
    if let Err(failure) = producer.abort_transaction(PATIENCE) {
        unclean.store(true, Ordering::Release);
        tracing::warn!(error = %failure, "a batch could not be aborted; that is tried again before the next one");
    }
}

#[async_trait]
impl FencedWriter for KafkaFencedWriter {
    async fn write(&mut self, batch: Vec<BatchRecord>) -> Result<Vec<Written>, Error> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let (producer, unclean) = (Arc::clone(&self.producer), Arc::clone(&self.unclean));
        let result = blocking(move || transact(&producer, &unclean, &batch)).await;
        if let Some((code, text)) = self.producer.client().fatal_error() {
            let problem = by_code(code, format!("{}: {text}", self.name));
            // Whatever was fatal, only a new writer can go on; to open one is the caller's decision, since it fences.
            self.ended = Some(Error::Fenced(format!("{problem}; this writer has ended")));
            return result.map_err(|_| problem);
        }
        if matches!(&result, Err(Error::Fenced(_))) {
            self.ended = result.as_ref().err().cloned();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};

    use super::*;

    fn record(value: &'static str) -> BatchRecord {
        BatchRecord {
            topic: "t".into(),
            partition: Some(0),
            key: Some(Bytes::from_static(b"k")),
            value: Some(Bytes::from_static(value.as_bytes())),
            headers: Vec::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_writer_goes_on_once_the_bus_answers_again() {
        let cluster: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let mut config = KafkaConfig::new(cluster.bootstrap_servers());
        config.properties.push(("message.timeout.ms".to_owned(), "1000".to_owned()));
        let mut writer = KafkaFencedWriter::open(&config, "w").await.unwrap();
        writer.write(vec![record("first")]).await.unwrap();
        cluster.broker_down(1).unwrap();
        for _ in 0..2 {
            let result = writer.write(vec![record("lost")]).await;
            assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
        }
        cluster.broker_up(1).unwrap();
        let recovered = async {
            loop {
                match writer.write(vec![record("second")]).await {
                    Ok(written) => return written,
                    Err(error) => assert!(matches!(error, Error::Unavailable(_)), "{error}"),
                }
            }
        };
        let written = tokio::time::timeout(Duration::from_secs(60), recovered).await.unwrap();
        assert_eq!(written[0].partition, 0);
    }
}
