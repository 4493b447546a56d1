//! What no delivery can undercut: the bare client library with the same messages, against the same far end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hdrhistogram::Histogram;
use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
};

use crate::{far_end::KafkaSettings, page, wire::Wire};

/// reqwest without what costs and is not needed. Reads the system's certificates.
pub(crate) fn client() -> Result<reqwest::Client> {
    // A second installation finds the first, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .tcp_nodelay(true);
    Ok(builder.build()?)
}

/// Posts all bodies, so many at a time; each is to be answered 2xx. All from one task: a task for each request in flight
/// costs more.
pub(crate) async fn post(
    client: &reqwest::Client,
    url: &str,
    bodies: &Arc<[Bytes]>,
    in_flight: usize,
) -> Result<()> {
    let (client, url, bodies) = (client.clone(), reqwest::Url::parse(url)?, Arc::clone(bodies));
    let ask = async move {
        let answers = (0..bodies.len()).map(|number| {
            let mut request = reqwest::Request::new(reqwest::Method::POST, url.clone());
            *request.body_mut() = Some(bodies[number].clone().into());
            let answer = client.execute(request);
            async {
                let mut response = answer.await?;
                ensure!(response.status().is_success(), "{}", response.status());
                while response.chunk().await?.is_some() {}
                Ok(())
            }
        });
        stream::iter(answers).buffer_unordered(in_flight).try_collect::<()>().await
    };
    tokio::spawn(ask).await?
}

/// Publishes all payloads at QoS 1 over one connection, so many unacknowledged at a time: a loop over the workspace's codec,
/// which is what the MQTT sink is built on.
pub(crate) async fn publish(
    broker: std::net::SocketAddr,
    payloads: &[Bytes],
    in_flight: usize,
    topics: u64,
) -> Result<()> {
    let mut wire = Wire::connect(broker, "bench-floor").await?;
    let message = |number: u64| (crate::sinks::topic(number, topics), payloads[number as usize].clone());
    wire.publish(payloads.len() as u64, in_flight as u64, message).await
}

/// When a record was handed to the bare producer, and how long its acknowledgement took.
struct Timing(parking_lot::Mutex<(Histogram<u64>, Option<KafkaError>)>);

impl ClientContext for Timing {}

impl ProducerContext for Timing {
    type DeliveryOpaque = Box<Instant>;

    fn delivery(&self, result: &DeliveryResult<'_>, since: Box<Instant>) {
        let mut timed = self.0.lock();
        match result {
            Ok(_) => timed.0.saturating_record(since.elapsed().as_micros() as u64),
            Err((error, _)) => drop(timed.1.get_or_insert_with(|| error.clone())),
        }
    }
}

/// A producer as the data plane's.
fn as_of_data_plane(servers: &str, linger_ms: u64) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", servers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", linger_ms.to_string());
    config
}

/// Produces so many records at a fixed rate (an open loop), as the data plane does, to topics in turn, and tells how long
/// each waited for its acknowledgement, µs. Blocks.
pub(crate) fn acknowledged(
    servers: &str,
    topics: &[String],
    value: &[u8],
    count: u64,
    rate: f64,
    linger_ms: u64,
) -> Result<Histogram<u64>> {
    let timing = Timing(parking_lot::Mutex::new((page::latencies_us()?, None)));
    let producer: ThreadedProducer<Timing> =
        as_of_data_plane(servers, linger_ms).create_with_context(timing)?;
    let flush = || producer.flush(Duration::from_mins(1)).context("not everything was acknowledged");
    let send = |topic: &String, due| {
        let record = BaseRecord::<(), [u8], _>::with_opaque_to(topic, Box::new(due)).payload(value);
        producer.send(record).map_err(|(error, _)| error)
    };
    // The first ones wait for the connection and for what leads their topics.
    for topic in topics {
        send(topic, Instant::now())?;
    }
    flush()?;
    producer.context().0.lock().0.reset();
    let start = Instant::now();
    for (number, topic) in (0..count).zip(topics.iter().cycle()) {
        let due = start + Duration::from_secs_f64(number as f64 / rate);
        // The pace itself; nothing is waited for.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        send(topic, due)?;
    }
    flush()?;
    let (times, failure) = &mut *producer.context().0.lock();
    match failure.take() {
        Some(error) => bail!(error),
        None => Ok(times.clone()),
    }
}

/// Passes every outcome on.
struct Outcomes(SyncSender<Result<(), KafkaError>>);

impl ClientContext for Outcomes {}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let outcome = result.as_ref().map(|_| ()).map_err(|(error, _)| error.clone());
        // Nobody listens after a failure.
        drop(self.0.send(outcome));
    }
}

/// What a message costs between data plane and executor at least: bare clients produce the values as the data plane does,
/// so many unacknowledged at a time, to topics in turn, and consume them as they come. Blocks.
pub(crate) fn produce_and_consume(
    servers: &str,
    topics: &[String],
    values: &[Bytes],
    in_flight: usize,
    linger_ms: u64,
) -> Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "bench-floor")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    for topic in topics {
        partitions.add_partition_offset(topic, 0, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    std::thread::scope(|scope| {
        let consuming = scope.spawn(|| {
            for number in 0..values.len() {
                let message = consumer.poll(Duration::from_mins(1));
                message.with_context(|| format!("no record after {number} of {}", values.len()))??;
            }
            anyhow::Ok(())
        });
        let (sender, outcomes) = sync_channel(in_flight);
        let producer: ThreadedProducer<Outcomes> =
            as_of_data_plane(servers, linger_ms).create_with_context(Outcomes(sender))?;
        let mut unacknowledged = 0;
        for (value, topic) in values.iter().zip(topics.iter().cycle()) {
            while unacknowledged == in_flight {
                outcomes.recv()??;
                unacknowledged -= 1;
            }
            let record = BaseRecord::<(), [u8]>::to(topic).payload(&value[..]);
            producer.send(record).map_err(|(error, _)| error)?;
            unacknowledged += 1;
        }
        producer.flush(Duration::from_mins(1)).context("not everything was acknowledged")?;
        consuming.join().map_err(|_| anyhow!("the consumer panicked"))?
    })
}

/// Counts what was acknowledged, and keeps the first failure.
#[derive(Default)]
struct Reports {
    delivered: AtomicU64,
    failed: parking_lot::Mutex<Option<KafkaError>>,
}

struct Context(Arc<Reports>);

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.0.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => {
                self.0.failed.lock().get_or_insert_with(|| error.clone());
            }
        }
    }
}

/// Produces all values with librdkafka, as much at a time as it takes, and waits until all are acknowledged. Blocks.
pub(crate) fn produce(servers: &str, topic: &str, values: &[Bytes], settings: &KafkaSettings) -> Result<()> {
    let reports = Arc::new(Reports::default());
    let producer: ThreadedProducer<Context> = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("acks", &settings.acks)
        .set("linger.ms", settings.linger_ms.to_string())
        .set("batch.size", settings.batch_size.to_string())
        .set("queue.buffering.max.kbytes", "32768")
        .create_with_context(Context(Arc::clone(&reports)))?;
    for value in values {
        let mut record = BaseRecord::<(), [u8]>::to(topic).payload(&value[..]);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    record = refused;
                    // librdkafka has no call that waits for room.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => bail!(error),
            }
        }
    }
    producer.flush(Duration::from_mins(1)).context("not everything was acknowledged")?;
    if let Some(error) = reports.failed.lock().take() {
        bail!(error);
    }
    let delivered = reports.delivered.load(Ordering::Relaxed);
    ensure!(delivered == values.len() as u64, "{delivered} of {} were acknowledged", values.len());
    Ok(())
}
