//! The contract, by a real Apache Kafka, and what survives when the server goes and comes back.

use std::{sync::Arc, time::Duration};

use tbmq_bus::{
    Bus, CleanupPolicy, Completion, CompletionQueue, Outgoing, ReaderConfig, ReaderEvent, Start,
    TopicPartition, TopicSpec, WriterConfig,
    kafka::{KafkaBus, KafkaConfig},
    write,
};
use tbmq_harness::{
    Need,
    kafka::{Kafka, KafkaOptions},
    ready,
};

use crate::contract::{FILLER_KEY, Fixture, contract, within};

const PATIENCE: Duration = Duration::from_secs(60);

struct Served {
    bus: Arc<KafkaBus>,
}

fn connect(kafka: &Kafka) -> Arc<KafkaBus> {
    KafkaBus::new(KafkaConfig::new(kafka.bootstrap())).unwrap()
}

impl Fixture for Served {
    async fn start() -> Option<Self> {
        if !ready("kafka contract", &[Need::Kafka]) {
            return None;
        }
        let kafka = tokio::task::spawn_blocking(Kafka::shared).await.unwrap();
        Some(Self { bus: connect(kafka) })
    }

    fn bus(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.bus) as Arc<dyn Bus>
    }

    fn compaction_settings(&self) -> Vec<(String, String)> {
        [("segment.ms", "1000"), ("min.cleanable.dirty.ratio", "0.01"), ("delete.retention.ms", "0")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec()
    }

    /// Kafka compacts what lies in closed segments, and a segment closes when a record comes after its time.
    async fn force_compaction(&self, partition: &TopicPartition) {
        let writer = self.bus.writer(WriterConfig::new("filler")).await.unwrap();
        let record = Outgoing {
            partition: Some(partition.partition),
            key: Some(FILLER_KEY),
            value: Some(b"x"),
            headers: &[],
        };
        write(&*writer, &writer.topic(&partition.topic), record).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    async fn reopen(&mut self) -> Option<Arc<dyn Bus>> {
        self.bus = connect(Kafka::shared());
        Some(self.bus())
    }
}

contract!(Served);

/// Writes until the server has been ended by `end` and launched again, and expects every acknowledged record to be there.
async fn nothing_acknowledged_is_lost(test: &str, end: fn(&Kafka)) {
    if !ready(test, &[Need::Kafka]) {
        return;
    }
    let start = || Arc::new(Kafka::start(KafkaOptions::default()).unwrap());
    let kafka = tokio::task::spawn_blocking(start).await.unwrap();
    let bus = connect(&kafka);
    let spec = TopicSpec {
        name: "t".to_owned(),
        partitions: 1,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: Vec::new(),
    };
    bus.admin().create_topic(&spec).await.unwrap();
    let config = WriterConfig { linger: Duration::from_millis(1), ..WriterConfig::new("w") };
    let writer = bus.writer(WriterConfig { deadline: Duration::from_secs(60), ..config }).await.unwrap();
    let mut reader = bus.reader(ReaderConfig::new("r", None)).await.unwrap();
    reader.add(&TopicPartition::new("t", 0), Start::Earliest);

    let handle = writer.topic("t");
    let completions = CompletionQueue::new();
    let submit = |number: u64| {
        let value = number.to_string();
        let outgoing =
            Outgoing { partition: Some(0), key: None, value: Some(value.as_bytes()), headers: &[] };
        writer.submit(&handle, outgoing, number, &completions).unwrap();
    };
    let mut acknowledged: Vec<u64> = Vec::new();
    let take = |batch: &[Completion], acknowledged: &mut Vec<u64>| {
        acknowledged.extend(batch.iter().filter(|one| one.result.is_ok()).map(|one| one.ticket));
        batch.len()
    };
    let mut batch = Vec::new();
    (0..1_000).for_each(submit);
    let mut done = 0;
    while done < 500 {
        within(PATIENCE, "acknowledgements", completions.wait(&mut batch)).await;
        done += take(&batch, &mut acknowledged);
    }
    let ending = Arc::clone(&kafka);
    tokio::task::spawn_blocking(move || end(&ending)).await.unwrap();
    (1_000..2_000).for_each(submit);
    let starting = Arc::clone(&kafka);
    tokio::task::spawn_blocking(move || starting.launch().unwrap()).await.unwrap();
    while done < 2_000 {
        within(PATIENCE, "outcomes after the restart", completions.wait(&mut batch)).await;
        done += take(&batch, &mut acknowledged);
    }
    assert!(acknowledged.len() >= 1_500, "the writer went on: {}", acknowledged.len());

    let mut read = std::collections::BTreeSet::new();
    let all = async {
        while !acknowledged.iter().all(|number| read.contains(number)) {
            if let ReaderEvent::Batch { records, .. } = reader.next().await {
                let numbers = records.iter().filter_map(|record| record.value.as_deref());
                read.extend(numbers.map(|text| std::str::from_utf8(text).unwrap().parse::<u64>().unwrap()));
            }
        }
    };
    within(PATIENCE, "every acknowledged record", all).await;
    tokio::task::spawn_blocking(move || drop(kafka)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_loses_nothing_acknowledged() {
    nothing_acknowledged_is_lost("a_restart_of_the_server_loses_nothing_acknowledged", |kafka| {
        kafka.stop().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_of_the_server_loses_nothing_acknowledged() {
    nothing_acknowledged_is_lost("a_kill_of_the_server_loses_nothing_acknowledged", |kafka| {
        kafka.kill().unwrap();
    })
    .await;
}
