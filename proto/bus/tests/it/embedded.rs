//! The contract, by the embedded bus, and what only it promises: nothing acknowledged is lost by kill -9.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tbmq_bus::{
    BatchRecord, Bus, CleanupPolicy, CompletionQueue, Error, Outgoing, ReaderConfig, ReaderEvent, Record,
    Start, TopicPartition, TopicSpec, WriterConfig,
    embedded::{Durability, EmbeddedBus, EmbeddedConfig},
};

use crate::contract::{Fixture, contract, within};

struct Embedded {
    bus: Arc<EmbeddedBus>,
    folder: tempfile::TempDir,
}

fn open(path: &Path) -> Arc<EmbeddedBus> {
    EmbeddedBus::open(EmbeddedConfig::new(path)).unwrap()
}

impl Fixture for Embedded {
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        Some(Self { bus: open(folder.path()), folder })
    }

    fn bus(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.bus) as Arc<dyn Bus>
    }

    async fn force_compaction(&self, _partition: &TopicPartition) {
        self.bus.clean_now().await.unwrap();
    }

    fn hold_writes(&self, held: bool) {
        self.bus.hold(held);
    }

    async fn expire_session(&self, group: &str, client_id: &str) -> bool {
        self.bus.expire(group, client_id)
    }

    async fn reopen(&mut self) -> Option<Arc<dyn Bus>> {
        self.bus.close().await;
        self.bus = open(self.folder.path());
        Some(self.bus())
    }
}

contract!(Embedded);

/// The suite once more where nothing stays in memory: every read asks the storage.
mod without_cache {
    use super::*;

    struct Uncached(Embedded);

    fn config(path: &Path) -> EmbeddedConfig {
        EmbeddedConfig { cache_bytes: 0, durability: Durability::Process, ..EmbeddedConfig::new(path) }
    }

    impl Fixture for Uncached {
        async fn start() -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let bus = EmbeddedBus::open(config(folder.path())).unwrap();
            Some(Self(Embedded { bus, folder }))
        }

        fn bus(&self) -> Arc<dyn Bus> {
            self.0.bus()
        }

        async fn force_compaction(&self, partition: &TopicPartition) {
            self.0.force_compaction(partition).await;
        }

        fn hold_writes(&self, held: bool) {
            self.0.hold_writes(held);
        }

        async fn expire_session(&self, group: &str, client_id: &str) -> bool {
            self.0.expire_session(group, client_id).await
        }

        async fn reopen(&mut self) -> Option<Arc<dyn Bus>> {
            self.0.bus.close().await;
            self.0.bus = EmbeddedBus::open(config(self.0.folder.path())).unwrap();
            Some(self.bus())
        }
    }

    contract!(Uncached);
}

fn spec(name: &str, policy: CleanupPolicy) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions: 1, replication_factor: 1, policy, settings: Vec::new() }
}

async fn read_all(bus: &dyn Bus, name: &str) -> Vec<Record> {
    let mut reader = bus.reader(ReaderConfig::new("r", None)).await.unwrap();
    reader.add(&TopicPartition::new(name, 0), Start::Earliest);
    let mut all = Vec::new();
    loop {
        match within(Duration::from_secs(30), "an event", reader.next()).await {
            ReaderEvent::Batch { records, .. } => all.extend(records),
            ReaderEvent::End { .. } => return all,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_folder_that_is_in_use_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path());
    let error = EmbeddedBus::open(EmbeddedConfig::new(folder.path())).unwrap_err();
    let Error::Unavailable(text) = error else { panic!("{error:?}") };
    assert!(text.contains("another process has it open"), "{text}");
    bus.close().await;
    open(folder.path()).close().await;
}

#[tokio::test]
async fn a_closed_bus_answers_everything() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path());
    bus.admin().create_topic(&spec("t", CleanupPolicy::Delete)).await.unwrap();
    let (writer, queue) = (bus.writer(WriterConfig::new("w")).await.unwrap(), CompletionQueue::new());
    let outgoing = Outgoing { partition: None, key: None, value: Some(b"v"), headers: &[] };
    writer.submit(&writer.topic("t"), outgoing, 1, &queue).unwrap();
    bus.close().await;
    writer.submit(&writer.topic("t"), outgoing, 2, &queue).unwrap();
    let mut batch = Vec::new();
    within(Duration::from_secs(5), "outcomes", queue.wait(&mut batch)).await;
    assert!(batch[0].ticket == 1 && batch[0].result.is_ok(), "{batch:?}");
    assert!(matches!(batch[1].result, Err(Error::Unavailable(_))), "{batch:?}");
    assert!(matches!(bus.admin().ping().await, Err(Error::Unavailable(_))));
}

const CHILD: &str = "TBMQ_BUS_TEST_CHILD";

/// Not a test by itself: what [`kill_9_loses_nothing_acknowledged`] kills. Writes for ever and prints every acknowledged
/// value, and beside that fenced batches over two topics.
#[tokio::test]
async fn child_that_writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let bus = open(Path::new(&folder));
    for name in ["plain", "left", "right"] {
        bus.admin().create_topic(&spec(name, CleanupPolicy::Delete)).await.unwrap();
    }
    let mut fenced = bus.fenced_writer("fenced").await.unwrap();
    let fenced = tokio::spawn(async move {
        for number in 0_u64.. {
            let record = |topic: &str| BatchRecord {
                topic: topic.into(),
                partition: Some(0),
                key: None,
                value: Some(number.to_string().into()),
                headers: Vec::new(),
            };
            fenced.write(vec![record("left"), record("right")]).await.unwrap();
            println!("\nfenced {number}");
        }
    });
    let writer = bus.writer(WriterConfig { linger: Duration::ZERO, ..WriterConfig::new("w") }).await.unwrap();
    let (handle, queue, mut batch) = (writer.topic("plain"), CompletionQueue::new(), Vec::new());
    let mut number = 0;
    while !fenced.is_finished() {
        for _ in 0..50 {
            let value = number.to_string();
            let outgoing =
                Outgoing { partition: Some(0), key: None, value: Some(value.as_bytes()), headers: &[] };
            writer.submit(&handle, outgoing, number, &queue).unwrap();
            number += 1;
        }
        queue.wait(&mut batch).await;
        for done in &batch {
            println!("\nplain {} {}", done.ticket, done.result.as_ref().unwrap().offset);
        }
    }
}

#[tokio::test]
async fn kill_9_loses_nothing_acknowledged_and_shows_no_half_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mut known = (0, 0);
    for round in 1..=3_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "embedded::child_that_writes_until_it_is_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (mut plain, mut fenced) = (Vec::new(), 0);
        let mut is_killed = false;
        for line in output.lines().map_while(Result::ok) {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["plain", number, offset] => {
                    plain.push((number.to_owned(), offset.parse::<u64>().unwrap()));
                }
                ["fenced", _] => fenced += 1,
                _ => {}
            }
            // What it had printed until then is read to the end.
            if !is_killed && plain.len() > 300 * round && fenced > 5 {
                child.kill().unwrap();
                is_killed = true;
            }
        }
        child.wait().unwrap();
        assert!(is_killed, "the child has ended by itself");
        let bus = open(folder.path());
        let kept = read_all(&*bus, "plain").await;
        for (number, offset) in &plain {
            let record = kept.iter().find(|record| record.offset == *offset);
            let record = record.unwrap_or_else(|| panic!("offset {offset} was acknowledged and is lost"));
            assert_eq!(record.value.as_deref(), Some(number.as_bytes()));
        }
        assert!(kept.len() >= known.0 + plain.len());
        let values =
            async |name| -> Vec<_> { read_all(&*bus, name).await.into_iter().map(|r| r.value).collect() };
        let (left, right) = (values("left").await, values("right").await);
        assert_eq!(left, right, "half of a batch is there");
        assert!(left.len() >= known.1 + fenced);
        known = (kept.len(), left.len());
        bus.close().await;
    }
}

#[tokio::test]
async fn retention_frees_the_storage_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(folder.path());
    let limited = TopicSpec {
        settings: vec![("retention.bytes".to_owned(), "20000".to_owned())],
        ..spec("t", CleanupPolicy::Delete)
    };
    bus.admin().create_topic(&limited).await.unwrap();
    let (writer, queue, mut batch) =
        (bus.writer(WriterConfig::new("w")).await.unwrap(), CompletionQueue::new(), vec![]);
    let handle = writer.topic("t");
    for number in 0..10_000_u64 {
        let outgoing = Outgoing { partition: None, key: None, value: Some(&[1; 100]), headers: &[] };
        writer.submit(&handle, outgoing, number, &queue).unwrap();
    }
    let mut done = 0;
    while done < 10_000 {
        within(Duration::from_secs(30), "outcomes", queue.wait(&mut batch)).await;
        done += batch.len();
    }
    bus.clean_now().await.unwrap();
    let at = TopicPartition::new("t", 0);
    let bounds = bus.admin().bounds(std::slice::from_ref(&at)).await.unwrap();
    assert!(bounds[0].start > 9_800 && bounds[0].end == 10_000, "{bounds:?}");
    let kept = read_all(&*bus, "t").await.len() as u64;
    assert_eq!(kept, bounds[0].end - bounds[0].start);
    bus.close().await;
    let bus = open(folder.path());
    assert_eq!(bus.admin().bounds(&[at]).await.unwrap(), bounds);
    assert_eq!(read_all(&*bus, "t").await.len() as u64, kept);
}

/// A file system of its own with little room; `None` where this process may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.path().display());
    }
}

#[tokio::test]
async fn a_full_disk_fails_its_records_and_is_used_again_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        println!("skipped: only root can mount a small file system");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 4 << 20]).unwrap();
    let bus = open(&disk.0.path().join("log"));
    bus.admin().create_topic(&spec("t", CleanupPolicy::Delete)).await.unwrap();
    let config = WriterConfig { linger: Duration::ZERO, ..WriterConfig::new("w") };
    let writer = bus.writer(config).await.unwrap();
    let (handle, value) = (writer.topic("t"), vec![7; 100_000]);
    let outgoing = Outgoing { partition: Some(0), key: None, value: Some(&value), headers: &[] };
    let mut acknowledged = Vec::new();
    let error = within(Duration::from_secs(30), "a full disk", async {
        loop {
            match tbmq_bus::write(&*writer, &handle, outgoing).await {
                Ok(written) => acknowledged.push(written.offset),
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(!acknowledged.is_empty());
    std::fs::remove_file(&ballast).unwrap();
    let offset = within(Duration::from_secs(30), "room", async {
        loop {
            if let Ok(written) = tbmq_bus::write(&*writer, &handle, outgoing).await {
                return written.offset;
            }
        }
    })
    .await;
    acknowledged.push(offset);
    let offsets = |records: Vec<Record>| -> Vec<u64> { records.iter().map(|record| record.offset).collect() };
    let kept = offsets(read_all(&*bus, "t").await);
    assert!(acknowledged.iter().all(|offset| kept.contains(offset)), "{acknowledged:?} {kept:?}");
    bus.close().await;
    let bus = open(&disk.0.path().join("log"));
    assert_eq!(offsets(read_all(&*bus, "t").await), kept);
    bus.close().await;
}
