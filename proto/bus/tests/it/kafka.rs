//! The contract, by a real Apache Kafka, and what survives when the server goes and comes back.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use tbmq_bus::{
    BatchRecord, Bus, CleanupPolicy, Completion, CompletionQueue, Outgoing, ReaderConfig, ReaderEvent,
    Record, Start, TopicPartition, TopicSpec, WriterConfig,
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

    let mut read = BTreeSet::new();
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

/// Who hammers a server that is starting keeps it from starting.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_wait_for_a_server_that_is_away_pause_between_their_attempts() {
    let test = "clients_that_wait_for_a_server_that_is_away_pause_between_their_attempts";
    if !ready(test, &[Need::Kafka]) {
        return;
    }
    let start = || Arc::new(Kafka::start(KafkaOptions::default()).unwrap());
    let kafka = tokio::task::spawn_blocking(start).await.unwrap();
    let bus = connect(&kafka);
    let spec = |name: &str| TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        replication_factor: 1,
        policy: CleanupPolicy::Compact,
        settings: Vec::new(),
    };
    bus.admin().create_topic(&spec("t")).await.unwrap();
    bus.admin().bounds(&[TopicPartition::new("t", 0)]).await.unwrap();

    let address = kafka.bootstrap();
    let ending = Arc::clone(&kafka);
    tokio::task::spawn_blocking(move || ending.kill().unwrap()).await.unwrap();
    // Takes its place, and hangs up on everybody.
    let listener = tokio::net::TcpListener::bind(&address).await.unwrap();
    let asking = tokio::spawn(async move {
        let (admin, topic, partition) = (bus.admin(), spec("u"), [TopicPartition::new("t", 0)]);
        let answers =
            tokio::join!(admin.create_topic(&topic), admin.describe(&["t"]), admin.bounds(&partition));
        println!("{answers:?}");
    });
    // Three clients, each after 50, 100, 200, 400, 800 ms, and then once a second.
    let attempts = async {
        for _ in 0..100 {
            drop(listener.accept().await.unwrap());
        }
    };
    let hammered = tokio::time::timeout(Duration::from_secs(5), attempts).await;
    assert!(hammered.is_err(), "a hundred attempts in less than five seconds");
    drop(listener);
    let starting = Arc::clone(&kafka);
    tokio::task::spawn_blocking(move || starting.launch().unwrap()).await.unwrap();
    within(PATIENCE, "answers of whatever kind", asking).await.unwrap();
    tokio::task::spawn_blocking(move || drop(kafka)).await.unwrap();
}

/// Every client knows the topic by its former leader epochs, which the new one begins below.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_created_anew_after_restarts_is_written_and_read_by_those_who_knew_it() {
    let test = "a_topic_that_is_created_anew_after_restarts_is_written_and_read_by_those_who_knew_it";
    if !ready(test, &[Need::Kafka]) {
        return;
    }
    let start = || Arc::new(Kafka::start(KafkaOptions::default()).unwrap());
    let kafka = tokio::task::spawn_blocking(start).await.unwrap();
    let bus = connect(&kafka);
    let spec = TopicSpec {
        name: "t".to_owned(),
        partitions: 3,
        replication_factor: 1,
        policy: CleanupPolicy::Compact,
        settings: Vec::new(),
    };
    bus.admin().create_topic(&spec).await.unwrap();
    let config = WriterConfig { deadline: Duration::from_secs(60), ..WriterConfig::new("w") };
    let writer = bus.writer(config).await.unwrap();
    let mut fenced = bus.fenced_writer("f").await.unwrap();
    let handle = writer.topic("t");
    let mut reader = bus.reader(ReaderConfig::new("r", None)).await.unwrap();
    let partitions = (0..3).map(|number| TopicPartition::new("t", number)).collect::<Vec<_>>();
    for partition in &partitions {
        reader.add(partition, Start::Earliest);
    }
    for generation in 0..4_u64 {
        for round in 0..2 {
            let value = format!("{generation}/{round}");
            for partition in 0..3 {
                let outgoing = Outgoing {
                    partition: Some(partition),
                    key: Some(b"plain"),
                    value: Some(value.as_bytes()),
                    headers: &[],
                };
                within(PATIENCE, "a write", write(&*writer, &handle, outgoing)).await.unwrap();
            }
            let batch = |partition| BatchRecord {
                topic: "t".into(),
                partition: Some(partition),
                key: Some(Bytes::from_static(b"fenced")),
                value: Some(Bytes::from(value.clone())),
                headers: Vec::new(),
            };
            within(PATIENCE, "a batch", fenced.write((0..3).map(batch).collect())).await.unwrap();
            let ends = within(PATIENCE, "bounds", bus.admin().bounds(&partitions)).await.unwrap();
            let mut found = BTreeSet::new();
            let all = async {
                while found.len() < 6 {
                    match reader.next().await {
                        ReaderEvent::Batch { partition, records } => {
                            let is_new = |record: &&Record| record.value.as_deref() == Some(value.as_bytes());
                            let keys = records.iter().filter(is_new).filter_map(|record| record.key.clone());
                            found.extend(keys.map(|key| (partition.partition, key)));
                        }
                        ReaderEvent::Gone { partition, .. } => reader.add(&partition, Start::Earliest),
                        ReaderEvent::End { .. } | ReaderEvent::Gap { .. } => {}
                    }
                }
            };
            within(PATIENCE, &format!("{value} of partitions that end at {ends:?}"), all).await;
            if round == 0 {
                let server = Arc::clone(&kafka);
                tokio::task::spawn_blocking(move || server.restart().unwrap()).await.unwrap();
            }
        }
        assert!(bus.admin().delete_topic("t").await.unwrap());
        bus.admin().create_topic(&spec).await.unwrap();
    }
    tokio::task::spawn_blocking(move || drop(kafka)).await.unwrap();
}
