//! The contract, by the bus in memory, and what the shared log model promises beyond it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tbmq_bus::{
    Bus, CleanupPolicy, CompletionQueue, Error, MembershipConfig, MembershipEvent, Outgoing, TopicPartition,
    TopicSpec, WriterConfig, memory::MemoryBus, write,
};

use crate::contract::{Fixture, contract, within};

struct Memory(Arc<MemoryBus>);

impl Fixture for Memory {
    async fn start() -> Option<Self> {
        Some(Self(MemoryBus::new()))
    }

    fn bus(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.0) as Arc<dyn Bus>
    }

    async fn force_compaction(&self, _partition: &TopicPartition) {
        self.0.clean_now().await.unwrap();
    }

    fn hold_writes(&self, held: bool) {
        self.0.hold(held);
    }

    async fn expire_session(&self, group: &str, client_id: &str) -> bool {
        self.0.expire(group, client_id)
    }
}

contract!(Memory);

const HOUR_MS: i64 = 3_600_000;

/// A bus whose clock the test sets.
fn clocked() -> (Arc<MemoryBus>, Arc<AtomicI64>) {
    let time = Arc::new(AtomicI64::new(1_700_000_000_000));
    let clock = Arc::clone(&time);
    (MemoryBus::with_clock(move || clock.load(Ordering::Relaxed)), time)
}

async fn topic(bus: &MemoryBus, policy: CleanupPolicy, settings: &[(&str, &str)]) -> TopicPartition {
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let spec = TopicSpec { name: "t".to_owned(), partitions: 1, replication_factor: 1, policy, settings };
    assert_eq!(bus.admin().create_topic(&spec).await, Ok(true));
    TopicPartition::new("t", 0)
}

async fn put(bus: &MemoryBus, key: &str, value: &[u8]) -> u64 {
    let writer = bus.writer(WriterConfig::new("w")).await.unwrap();
    let outgoing =
        Outgoing { partition: Some(0), key: Some(key.as_bytes()), value: Some(value), headers: &[] };
    write(&*writer, &writer.topic("t"), outgoing).await.unwrap().offset
}

async fn start_of(bus: &MemoryBus, at: &TopicPartition) -> u64 {
    bus.admin().bounds(std::slice::from_ref(at)).await.unwrap()[0].start
}

#[tokio::test]
async fn retention_removes_what_is_too_old() {
    let (bus, time) = clocked();
    let at = topic(&bus, CleanupPolicy::Delete, &[("retention.ms", "7200000")]).await;
    put(&bus, "k", b"old").await;
    time.fetch_add(HOUR_MS, Ordering::Relaxed);
    let young = put(&bus, "k", b"young").await;
    bus.clean_now().await.unwrap();
    assert_eq!(start_of(&bus, &at).await, 0);
    time.fetch_add(HOUR_MS + 1, Ordering::Relaxed);
    bus.clean_now().await.unwrap();
    assert_eq!(start_of(&bus, &at).await, young);
    time.fetch_add(HOUR_MS, Ordering::Relaxed);
    bus.clean_now().await.unwrap();
    assert_eq!(start_of(&bus, &at).await, young + 1);
}

#[tokio::test]
async fn retention_by_size_keeps_at_least_the_limit() {
    let (bus, _) = clocked();
    let at = topic(&bus, CleanupPolicy::Delete, &[("retention.bytes", "10000")]).await;
    for _ in 0..50 {
        put(&bus, "k", &[7; 1000]).await;
    }
    bus.clean_now().await.unwrap();
    let start = start_of(&bus, &at).await;
    assert!((38..=41).contains(&start), "start is {start}");
}

async fn size_of(bus: &MemoryBus, at: &TopicPartition) -> u64 {
    let topics = bus.admin().topic_details().await.unwrap();
    let topic = topics.iter().find(|topic| topic.name == *at.topic).unwrap();
    let size = topic.partitions[at.partition as usize].size_bytes.unwrap();
    assert_eq!(bus.admin().cluster().await.unwrap().brokers[0].size_bytes, Some(size), "it has one topic");
    size
}

#[tokio::test]
async fn a_size_is_that_of_the_records_that_are_kept() {
    let (bus, _) = clocked();
    let at = topic(&bus, CleanupPolicy::Delete, &[]).await;
    assert_eq!(size_of(&bus, &at).await, 0);
    put(&bus, "k", &[7; 1000]).await;
    let one = size_of(&bus, &at).await;
    assert!(one > 1000, "{one}");
    for _ in 1..10 {
        put(&bus, "k", &[7; 1000]).await;
    }
    assert_eq!(size_of(&bus, &at).await, 10 * one);
    bus.admin().delete_records(&at, 4).await.unwrap();
    assert_eq!(size_of(&bus, &at).await, 6 * one);
    bus.admin().delete_records(&at, 10).await.unwrap();
    assert_eq!(size_of(&bus, &at).await, 0);

    let (bus, _) = clocked();
    let at = topic(&bus, CleanupPolicy::Compact, &[]).await;
    for key in ["a", "b", "a", "b", "c"] {
        put(&bus, key, &[7; 1000]).await;
    }
    assert_eq!(size_of(&bus, &at).await, 5 * one);
    bus.clean_now().await.unwrap();
    assert_eq!(size_of(&bus, &at).await, 3 * one);
    put(&bus, "a", &[7; 1000]).await;
    assert_eq!(size_of(&bus, &at).await, 4 * one);
    bus.clean_now().await.unwrap();
    assert_eq!(size_of(&bus, &at).await, 3 * one);
}

#[tokio::test]
async fn a_tombstone_goes_after_its_own_retention() {
    let (bus, time) = clocked();
    let at = topic(&bus, CleanupPolicy::Compact, &[("delete.retention.ms", "1000")]).await;
    put(&bus, "a", b"1").await;
    put(&bus, "b", b"1").await;
    let end = put(&bus, "a", b"").await + 1;
    bus.clean_now().await.unwrap();
    let count = async |bus: &MemoryBus| {
        let mut reader = bus.reader(tbmq_bus::ReaderConfig::new("r", None)).await.unwrap();
        reader.add(&at, tbmq_bus::Start::Earliest);
        let mut count = 0;
        loop {
            match within(Duration::from_secs(5), "an event", reader.next()).await {
                tbmq_bus::ReaderEvent::Batch { records, .. } => count += records.len(),
                tbmq_bus::ReaderEvent::End { position, .. } => return (count, position),
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(count(&bus).await, (2, end));
    time.fetch_add(1001, Ordering::Relaxed);
    bus.clean_now().await.unwrap();
    assert_eq!(count(&bus).await, (1, end), "the end stays though the tail is gone");
}

#[tokio::test]
async fn a_record_that_is_held_past_its_deadline_is_unavailable_and_never_written() {
    let bus = MemoryBus::new();
    let at = topic(&bus, CleanupPolicy::Delete, &[]).await;
    let config = WriterConfig { deadline: Duration::from_millis(50), ..WriterConfig::new("w") };
    let (writer, queue) = (bus.writer(config).await.unwrap(), CompletionQueue::new());
    bus.hold(true);
    let outgoing = Outgoing { partition: Some(0), key: None, value: Some(b"v"), headers: &[] };
    writer.submit(&writer.topic("t"), outgoing, 7, &queue).unwrap();
    let mut batch = Vec::new();
    within(Duration::from_secs(5), "an outcome", queue.wait(&mut batch)).await;
    assert_eq!(batch.len(), 1);
    assert!(matches!(batch[0].result, Err(Error::Unavailable(_))), "{batch:?}");
    bus.hold(false);
    assert_eq!(bus.admin().bounds(&[at]).await.unwrap()[0].end, 0);
    assert_eq!(writer.in_flight_bytes(), 0);
}

/// Several groups come and go on one thread, and what their members are told is written down.
async fn simulated() -> Vec<String> {
    let begun = tokio::time::Instant::now();
    let bus = MemoryBus::with_clock(move || 1_000_000 + begun.elapsed().as_millis() as i64);
    let at = topic(&bus, CleanupPolicy::Delete, &[("retention.ms", "60000")]).await;
    put(&bus, "k", b"v").await;
    let log = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16_u64 {
        let (bus, log) = (Arc::clone(&bus), Arc::clone(&log));
        tasks.spawn(async move {
            let config = MembershipConfig {
                group: format!("group {}", number / 2),
                client_id: "c".to_owned(),
                instance_id: Some(format!("instance {number}")),
                topics: vec!["t".to_owned()],
                session_timeout: Duration::from_secs(10 + number),
            };
            let mut member = bus.membership(config).await.unwrap();
            let ends = tokio::time::Instant::now() + Duration::from_secs(20 * (1 + number % 3));
            while let Ok(event) = tokio::time::timeout_at(ends, member.next()).await {
                log.lock().push(format!("{:?} {number} {event:?}", begun.elapsed()));
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    bus.admin().delete_topic("t").await.unwrap();
    topic(&bus, CleanupPolicy::Delete, &[("retention.ms", "60000")]).await;
    put(&bus, "k", b"v").await;
    while tasks.join_next().await.is_some() {}
    tokio::time::sleep(Duration::from_mins(2)).await;
    let last = format!("{:?} start {}", begun.elapsed(), start_of(&bus, &at).await);
    log.lock().push(last);
    Arc::into_inner(log).unwrap().into_inner()
}

#[test]
fn sessions_and_retention_follow_virtual_time_the_same_way_every_time() {
    let run = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(simulated())
    };
    let begun = std::time::Instant::now();
    let first = run();
    // Instance 0 went at 20 s and had a session of 10 s.
    assert!(first.iter().any(|line| line.starts_with("30s 1 Assigned")), "{first:#?}");
    assert_eq!(first.last().unwrap(), "180s start 1");
    for _ in 0..5 {
        assert_eq!(first, run());
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "this took {:?} of real time", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lost_member_is_not_taken_for_one_of_the_next_group_of_that_name() {
    let bus = MemoryBus::new();
    let at = topic(&bus, CleanupPolicy::Delete, &[]).await;
    let config = |client: &str| MembershipConfig {
        group: "g".to_owned(),
        client_id: client.to_owned(),
        instance_id: None,
        topics: vec!["t".to_owned()],
        session_timeout: Duration::from_secs(10),
    };
    let mut lost = bus.membership(config("lost")).await.unwrap();
    assert!(matches!(lost.next().await, MembershipEvent::Assigned(_)));
    assert!(bus.expire("g", "lost"));
    // The group is empty, and forgotten.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut next = bus.membership(config("next")).await.unwrap();
    assert!(matches!(next.next().await, MembershipEvent::Assigned(_)));
    assert!(matches!(lost.next().await, MembershipEvent::Lost(_)));
    // It joins again, and waits for its turn.
    let waiting = tokio::spawn(async move { lost.next().await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    next.leave().await;
    let event = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(matches!(event, Ok(Ok(MembershipEvent::Assigned(partitions))) if partitions == [at]));
}
