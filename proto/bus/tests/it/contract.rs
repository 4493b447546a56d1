//! What every adapter promises, as tests over a [`Fixture`]; [`contract!`] instantiates them all for one adapter.
//!
//! Servers may be shared by all tests of a run: every test takes its own topics and groups ([`Fixture::unique`]),
//! expects rising and not adjacent offsets, and waits on conditions within [`within`].

use std::{future::Future, sync::Arc, time::Duration};

use tbmq_bus::{
    BatchRecord, Bounds, Bus, CleanupPolicy, Commit, Completion, CompletionQueue, Error, FencedWriter,
    Outgoing, Reader, ReaderConfig, ReaderEvent, Record, Start, SubmitError, TopicPartition, TopicSpec,
    Writer, WriterConfig, Written, write,
};

/// Key of the records that [`Fixture::force_compaction`] may write; the tests overlook them.
pub(crate) const FILLER_KEY: &[u8] = b"filler";

/// An adapter under test.
pub(crate) trait Fixture: Sized {
    /// Starts or finds the bus; `None` skips the test, after the fixture has said why.
    async fn start() -> Option<Self>;

    /// The bus.
    fn bus(&self) -> Arc<dyn Bus>;

    /// A name that no other test uses.
    fn unique(&self, what: &str) -> String {
        format!("{what}-{}", uuid::Uuid::now_v7().simple())
    }

    /// Settings of a compacted topic with which [`Fixture::force_compaction`] acts soon.
    fn compaction_settings(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Does what makes the adapter compact this partition soon. The test calls it again and again until what it
    /// reads is compacted. May write records with [`FILLER_KEY`].
    async fn force_compaction(&self, partition: &TopicPartition);

    /// Holds outcomes back, if the adapter can; otherwise the writer's linger has to do.
    fn hold_writes(&self, _held: bool) {}

    /// Makes the session of a member expire; `false` when the adapter can't.
    async fn expire_session(&self, _group: &str, _client_id: &str) -> bool {
        false
    }

    /// The same data behind a newly opened bus, after the old one was closed; `None` when the adapter keeps nothing.
    async fn reopen(&mut self) -> Option<Arc<dyn Bus>> {
        None
    }
}

/// Waits for a future, at most so long.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    let finished = tokio::time::timeout(limit, future).await;
    finished.unwrap_or_else(|_| panic!("waited {limit:?} in vain for: {what}"))
}

/// Instantiates the suite for a [`Fixture`].
macro_rules! contract {
    ($fixture:ty) => {
        crate::contract::contract! { @tests $fixture:
            records_are_read_in_the_order_of_submission
            a_record_comes_back_as_it_was_written
            keys_choose_the_partition_that_java_would
            a_topic_that_does_not_exist_is_an_outcome
            a_full_topic_leaves_room_for_others_and_empties
            a_full_bus_takes_nothing_until_it_empties
            end_is_told_once_for_each_time_of_catching_up
            a_reader_begins_where_it_is_told_to
            a_paused_partition_delays_no_other_and_goes_on_where_it_was
            a_partition_that_is_paused_after_each_batch_comes_once_and_in_order
            a_removed_partition_is_silent_and_can_be_added_again
            batches_keep_to_the_budget_and_lose_nothing
            removed_records_are_a_gap_for_who_wanted_them
            an_emptied_partition_ends_where_it_ended
            compaction_keeps_the_latest_of_each_key
            a_tail_that_was_compacted_away_still_ends
            a_compacted_topic_refuses_a_record_without_a_key
            a_fenced_batch_spans_topics_and_ends_behind_its_markers
            a_newer_fenced_writer_stops_the_older_one_without_a_trace
            a_batch_with_an_unknown_topic_writes_nothing
            commits_keep_offset_and_metadata_for_each_group
            a_deleted_topic_is_gone_and_its_successor_is_empty
            a_topic_that_was_created_anew_is_gone_though_it_has_grown
            a_topic_that_makes_no_sense_is_refused
            topics_are_created_together_and_each_has_a_result_of_its_own
            positions_of_many_partitions_come_in_the_order_of_the_question
            members_share_partitions_and_hand_them_over
            nobody_gets_a_revoked_partition_before_its_release
            a_member_commits_what_it_holds
            a_member_commits_while_it_waits_for_changes
            a_newer_member_of_the_same_id_fences_the_older_one
            a_static_member_that_leaves_gives_all_away_at_once
            a_static_member_that_vanishes_keeps_its_place_for_its_session
            an_expired_member_loses_all_and_is_fenced
            a_topic_has_another_id_when_it_is_created_anew
            topics_tell_where_they_lie_how_big_they_are_and_their_own_settings
            a_group_tells_its_members_and_commits_and_is_deleted_when_they_are_gone
            everything_is_there_after_a_restart
        }
    };
    (@tests $fixture:ty: $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(mut fixture) = <$fixture as crate::contract::Fixture>::start().await else { return };
                crate::contract::within(
                    std::time::Duration::from_secs(120),
                    "the whole test",
                    crate::contract::$name(&mut fixture),
                )
                .await;
            }
        )*
    };
}
pub(crate) use contract;

mod members;
mod overview;
mod topics;
pub(crate) use members::*;
pub(crate) use overview::*;
pub(crate) use topics::*;

const PATIENCE: Duration = Duration::from_secs(30);

async fn topic_with(f: &impl Fixture, spec: TopicSpec) -> String {
    let name = spec.name.clone();
    assert_eq!(within(PATIENCE, "a topic", f.bus().admin().create_topic(&spec)).await, Ok(true));
    name
}

async fn topic(f: &impl Fixture, partitions: u32) -> String {
    let (policy, settings) = (CleanupPolicy::Delete, Vec::new());
    topic_with(f, TopicSpec { name: f.unique("t"), partitions, replication_factor: 1, policy, settings })
        .await
}

async fn compacted_topic(f: &impl Fixture) -> TopicPartition {
    let (policy, settings) = (CleanupPolicy::Compact, f.compaction_settings());
    let spec = TopicSpec { name: f.unique("c"), partitions: 1, replication_factor: 1, policy, settings };
    TopicPartition::new(topic_with(f, spec).await, 0)
}

async fn writer(f: &impl Fixture) -> Arc<dyn Writer> {
    f.bus().writer(WriterConfig { linger: Duration::ZERO, ..WriterConfig::new("writer") }).await.unwrap()
}

async fn reader(f: &impl Fixture, group: Option<&str>) -> Box<dyn Reader> {
    f.bus().reader(ReaderConfig::new("reader", group.map(str::to_owned))).await.unwrap()
}

fn record<'a>(partition: u32, key: &'a str, value: &'a str) -> Outgoing<'a> {
    let value = (!value.is_empty()).then_some(value.as_bytes());
    Outgoing { partition: Some(partition), key: Some(key.as_bytes()), value, headers: &[] }
}

/// Writes values one after the other into a partition and returns where they are.
async fn put(writer: &dyn Writer, at: &TopicPartition, pairs: &[(&str, &str)]) -> Vec<u64> {
    let handle = writer.topic(&at.topic);
    let mut offsets = Vec::new();
    for (key, value) in pairs {
        let written = write(writer, &handle, record(at.partition, key, value));
        offsets.push(within(PATIENCE, "a write", written).await.unwrap().offset);
    }
    offsets
}

async fn outcomes(queue: &Arc<CompletionQueue>, count: usize) -> Vec<Completion> {
    let (mut all, mut batch) = (Vec::new(), Vec::new());
    while all.len() < count {
        within(PATIENCE, "outcomes", queue.wait(&mut batch)).await;
        all.append(&mut batch);
    }
    assert_eq!(all.len(), count, "an outcome too many");
    all
}

/// Writes the numbers up to `count` into the partitions in turn, without waiting in between; tickets are the numbers.
async fn put_numbers(f: &impl Fixture, topic: &str, partitions: u64, count: u64) -> Vec<Completion> {
    let (writer, queue) = (writer(f).await, CompletionQueue::new());
    let handle = writer.topic(topic);
    for number in 0..count {
        let value = number.to_string();
        writer.submit(&handle, record((number % partitions) as u32, "k", &value), number, &queue).unwrap();
    }
    outcomes(&queue, count as usize).await
}

async fn next(reader: &mut dyn Reader) -> ReaderEvent {
    within(PATIENCE, "an event of the reader", reader.next()).await
}

/// Reads a partition up to its first end; the records and that end.
async fn read_all(f: &impl Fixture, at: &TopicPartition, start: Start) -> (Vec<Record>, u64) {
    let mut reader = reader(f, None).await;
    reader.add(at, start);
    let mut all = Vec::new();
    loop {
        match next(&mut *reader).await {
            ReaderEvent::Batch { records, .. } => all.extend(records),
            ReaderEvent::End { position, .. } => return (all, position),
            other => panic!("{other:?} while reading {at}"),
        }
    }
}

fn text(bytes: Option<&bytes::Bytes>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn values(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| text(record.value.as_ref())).collect()
}

fn pairs(records: &[Record]) -> Vec<(String, String)> {
    let kept = records.iter().filter(|record| record.key.as_deref() != Some(FILLER_KEY));
    kept.map(|record| (text(record.key.as_ref()), text(record.value.as_ref()))).collect()
}

fn assert_rising(records: &[Record]) {
    assert!(records.windows(2).all(|pair| pair[0].offset < pair[1].offset), "offsets don't rise");
}

pub(crate) async fn records_are_read_in_the_order_of_submission<F: Fixture>(f: &mut F) {
    let name = topic(f, 3).await;
    let mut written = put_numbers(f, &name, 3, 300).await;
    for partition in 0..3_u64 {
        let tickets: Vec<_> =
            written.iter().map(|done| done.ticket).filter(|ticket| ticket % 3 == partition).collect();
        assert!(tickets.is_sorted(), "outcomes of a partition come in its order");
    }
    written.sort_by_key(|done| done.ticket);
    for partition in 0..3 {
        let at = TopicPartition::new(name.as_str(), partition);
        let (records, end) = read_all(f, &at, Start::Earliest).await;
        assert_rising(&records);
        let expected: Vec<_> =
            (0..300).filter(|number| number % 3 == partition).map(|n| n.to_string()).collect();
        assert_eq!(values(&records), expected);
        assert!(end > records.last().unwrap().offset);
        for (record, number) in records.iter().zip((0..300_usize).filter(|n| *n % 3 == partition as usize)) {
            assert_eq!(written[number].result, Ok(Written { partition, offset: record.offset }));
        }
    }
}

pub(crate) async fn a_record_comes_back_as_it_was_written<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let writer = writer(f).await;
    let handle = writer.topic(&at.topic);
    let headers = [
        tbmq_bus::Header::text("revision", "7"),
        tbmq_bus::Header { name: "raw".into(), value: vec![0, 255].into() },
    ];
    let full =
        Outgoing { partition: Some(0), key: Some(b"key"), value: Some(&[0, 1, 254]), headers: &headers };
    let bare = Outgoing { partition: Some(0), key: None, value: None, headers: &[] };
    let empty = Outgoing { partition: Some(0), key: Some(b""), value: Some(b""), headers: &[] };
    for outgoing in [full, bare, empty] {
        within(PATIENCE, "a write", write(&*writer, &handle, outgoing)).await.unwrap();
    }
    let (records, _) = read_all(f, &at, Start::Earliest).await;
    assert_eq!(records.len(), 3);
    assert_eq!(records[0].key.as_deref(), Some(&b"key"[..]));
    assert_eq!(records[0].value.as_deref(), Some(&[0, 1, 254][..]));
    assert_eq!(records[0].headers, headers);
    assert_eq!(records[0].header("revision"), Some("7"));
    assert!(records[0].timestamp_ms > 1_600_000_000_000);
    assert_eq!((records[1].key.as_deref(), records[1].value.as_deref()), (None, None));
    assert_eq!(records[2].key.as_deref(), Some(&b""[..]));
    assert_eq!(records[2].value.as_deref(), Some(&b""[..]));
}

pub(crate) async fn keys_choose_the_partition_that_java_would<F: Fixture>(f: &mut F) {
    let name = topic(f, 6).await;
    let writer = writer(f).await;
    let handle = writer.topic(&name);
    for key in ["00112233-4455-6677-8899-aabbccddeeff", "tbmq/mqtt-integration", "a/b/c", "sensors/7"] {
        let outgoing =
            Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(b"v"), headers: &[] };
        let written = within(PATIENCE, "a write", write(&*writer, &handle, outgoing)).await.unwrap();
        assert_eq!(written.partition, tbmq_proto::partition::for_key(key.as_bytes(), 6), "{key}");
    }
    let outgoing = Outgoing { partition: None, key: None, value: Some(b"v"), headers: &[] };
    let written = within(PATIENCE, "a write", write(&*writer, &handle, outgoing)).await.unwrap();
    assert!(written.partition < 6);
}

pub(crate) async fn a_topic_that_does_not_exist_is_an_outcome<F: Fixture>(f: &mut F) {
    let writer = writer(f).await;
    let known = topic(f, 1).await;
    let missing = writer.topic(&f.unique("missing"));
    let result = within(PATIENCE, "an outcome", write(&*writer, &missing, record(0, "k", "v"))).await;
    assert!(matches!(result, Err(Error::UnknownTopic(_))), "{result:?}");
    let result =
        within(PATIENCE, "an outcome", write(&*writer, &writer.topic(&known), record(9, "k", "v"))).await;
    assert!(matches!(result, Err(Error::UnknownTopic(_))), "{result:?}");
    assert_eq!(writer.in_flight_bytes(), 0);
}

pub(crate) async fn a_full_topic_leaves_room_for_others_and_empties<F: Fixture>(f: &mut F) {
    let (full, other) = (topic(f, 1).await, topic(f, 1).await);
    let config = WriterConfig {
        linger: Duration::from_millis(500),
        topic_budget_bytes: 4096,
        ..WriterConfig::new("writer")
    };
    let (writer, queue) = (f.bus().writer(config).await.unwrap(), CompletionQueue::new());
    f.hold_writes(true);
    let (handle, value) = (writer.topic(&full), "x".repeat(256));
    let mut taken = 0;
    let refused = loop {
        match writer.submit(&handle, record(0, "k", &value), taken, &queue) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100, "the topic's budget has no end");
    };
    assert_eq!(refused, SubmitError::TopicFull);
    assert!(writer.in_flight_bytes() <= 4096);
    writer.submit(&writer.topic(&other), record(0, "k", &value), taken, &queue).unwrap();
    f.hold_writes(false);
    let done = outcomes(&queue, taken as usize + 1).await;
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    assert_eq!(writer.in_flight_bytes(), 0);
    writer.submit(&handle, record(0, "k", &value), 0, &queue).unwrap();
    outcomes(&queue, 1).await;
}

pub(crate) async fn a_full_bus_takes_nothing_until_it_empties<F: Fixture>(f: &mut F) {
    let names = [topic(f, 1).await, topic(f, 1).await];
    let config = WriterConfig {
        linger: Duration::from_millis(500),
        budget_bytes: 4096,
        ..WriterConfig::new("writer")
    };
    let (writer, queue) = (f.bus().writer(config).await.unwrap(), CompletionQueue::new());
    f.hold_writes(true);
    let (handles, value) = (names.map(|name| writer.topic(&name)), "x".repeat(256));
    let mut taken = 0;
    while writer.submit(&handles[taken % 2], record(0, "k", &value), taken as u64, &queue).is_ok() {
        taken += 1;
        assert!(taken < 100, "the writer's budget has no end");
    }
    for handle in &handles {
        let refused = writer.submit(handle, record(0, "k", &value), 0, &queue);
        assert_eq!(refused, Err(SubmitError::BusFull));
    }
    f.hold_writes(false);
    assert!(outcomes(&queue, taken).await.iter().all(|done| done.result.is_ok()));
    writer.submit(&handles[0], record(0, "k", &value), 0, &queue).unwrap();
    outcomes(&queue, 1).await;
}

pub(crate) async fn end_is_told_once_for_each_time_of_catching_up<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let mut reader = reader(f, None).await;
    reader.add(&at, Start::Earliest);
    assert_eq!(next(&mut *reader).await, ReaderEvent::End { partition: at.clone(), position: 0 });
    let writer = writer(f).await;
    for value in ["a", "b"] {
        let offset = put(&*writer, &at, &[("k", value)]).await[0];
        let ReaderEvent::Batch { records, partition } = next(&mut *reader).await else { panic!("no batch") };
        assert_eq!((values(&records), partition), (vec![value.to_owned()], at.clone()));
        let end = next(&mut *reader).await;
        assert_eq!(end, ReaderEvent::End { partition: at.clone(), position: offset + 1 });
    }
}

pub(crate) async fn a_reader_begins_where_it_is_told_to<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let writer = writer(f).await;
    let offsets = put(&*writer, &at, &[("k", "a"), ("k", "b"), ("k", "c")]).await;
    let (records, _) = read_all(f, &at, Start::Offset(offsets[1])).await;
    assert_eq!(values(&records), ["b", "c"]);
    let (records, end) = read_all(f, &at, Start::Offset(offsets[2] + 1)).await;
    assert_eq!((records.len(), end), (0, offsets[2] + 1));
    let mut reader = reader(f, None).await;
    reader.add(&at, Start::Latest);
    assert_eq!(
        next(&mut *reader).await,
        ReaderEvent::End { partition: at.clone(), position: offsets[2] + 1 }
    );
    put(&*writer, &at, &[("k", "d")]).await;
    let ReaderEvent::Batch { records, .. } = next(&mut *reader).await else { panic!("no batch") };
    assert_eq!(values(&records), ["d"]);
}

pub(crate) async fn a_paused_partition_delays_no_other_and_goes_on_where_it_was<F: Fixture>(f: &mut F) {
    let name = topic(f, 2).await;
    let [paused, other] = [0, 1].map(|partition| TopicPartition::new(name.as_str(), partition));
    let (writer, mut reader) = (writer(f).await, reader(f, None).await);
    reader.add(&paused, Start::Earliest);
    reader.add(&other, Start::Earliest);
    let mut ends = 0;
    while ends < 2 {
        ends += usize::from(matches!(next(&mut *reader).await, ReaderEvent::End { .. }));
    }
    reader.pause(&paused);
    put(&*writer, &paused, &[("k", "1"), ("k", "2")]).await;
    put(&*writer, &other, &[("k", "a")]).await;
    // What the other partition tells, and its next record after that, come; nothing of the paused one does.
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match next(&mut *reader).await {
            ReaderEvent::Batch { partition, records } => {
                assert_eq!(partition, other);
                seen.extend(values(&records));
                if seen.len() == 1 {
                    put(&*writer, &other, &[("k", "b")]).await;
                }
            }
            event => assert!(
                matches!(&event, ReaderEvent::End { partition, .. } if *partition == other),
                "{event:?}"
            ),
        }
    }
    reader.resume(&paused);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        if let ReaderEvent::Batch { partition, records } = next(&mut *reader).await {
            assert_eq!(partition, paused);
            seen.extend(values(&records));
        }
    }
    assert_eq!(seen, ["1", "2"]);
}

pub(crate) async fn a_partition_that_is_paused_after_each_batch_comes_once_and_in_order<F: Fixture>(
    f: &mut F,
) {
    const RECORDS: u64 = 3_000;
    let name = topic(f, 2).await;
    assert!(put_numbers(f, &name, 2, RECORDS).await.iter().all(|done| done.result.is_ok()));
    // With room for what was read of paused ones, and without any.
    for budget_bytes in [256 << 20, 1] {
        let config = ReaderConfig { budget_bytes, batch_records: 100, ..ReaderConfig::new("reader", None) };
        let mut reader = f.bus().reader(config).await.unwrap();
        let partitions = [0, 1].map(|partition| TopicPartition::new(name.as_str(), partition));
        for at in &partitions {
            reader.add(at, Start::Earliest);
        }
        let (mut seen, mut paused) = ([0, 1], None);
        while seen.iter().any(|next| *next < RECORDS) {
            let ReaderEvent::Batch { partition, records } = next(&mut *reader).await else { continue };
            assert_ne!(Some(&partition), paused.as_ref());
            let next = &mut seen[partition.partition as usize];
            for value in values(&records) {
                assert_eq!(value, next.to_string());
                *next += 2;
            }
            reader.pause(&partition);
            if let Some(before) = paused.replace(partition) {
                reader.resume(&before);
            }
            // The other one has nothing more.
            if seen.iter().any(|next| *next >= RECORDS)
                && let Some(last) = paused.take()
            {
                reader.resume(&last);
            }
        }
    }
}

pub(crate) async fn a_removed_partition_is_silent_and_can_be_added_again<F: Fixture>(f: &mut F) {
    let name = topic(f, 2).await;
    let [removed, other] = [0, 1].map(|partition| TopicPartition::new(name.as_str(), partition));
    let (writer, mut reader) = (writer(f).await, reader(f, None).await);
    let offsets = put(&*writer, &removed, &[("k", "1"), ("k", "2")]).await;
    reader.add(&removed, Start::Earliest);
    reader.add(&other, Start::Earliest);
    reader.remove(&removed);
    put(&*writer, &other, &[("k", "a")]).await;
    loop {
        match next(&mut *reader).await {
            ReaderEvent::Batch { partition, .. } => {
                assert_eq!(partition, other);
                break;
            }
            event => assert!(
                matches!(&event, ReaderEvent::End { partition, .. } if *partition == other),
                "{event:?}"
            ),
        }
    }
    reader.add(&removed, Start::Offset(offsets[1]));
    loop {
        if let ReaderEvent::Batch { partition, records } = next(&mut *reader).await
            && partition == removed
        {
            assert_eq!(values(&records), ["2"]);
            break;
        }
    }
}

pub(crate) async fn batches_keep_to_the_budget_and_lose_nothing<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let (writer, queue, value) = (writer(f).await, CompletionQueue::new(), "x".repeat(1000));
    let handle = writer.topic(&at.topic);
    for number in 0..200 {
        let value = format!("{number}-{value}");
        writer.submit(&handle, record(0, "k", &value), number, &queue).unwrap();
    }
    outcomes(&queue, 200).await;
    let config = ReaderConfig {
        partition_budget_bytes: 16 << 10,
        batch_records: 7,
        ..ReaderConfig::new("reader", None)
    };
    let mut reader = f.bus().reader(config).await.unwrap();
    reader.add(&at, Start::Earliest);
    let mut all = Vec::new();
    loop {
        match next(&mut *reader).await {
            ReaderEvent::Batch { records, .. } => {
                assert!((1..=7).contains(&records.len()), "{} records in a batch", records.len());
                all.extend(records);
            }
            ReaderEvent::End { .. } if all.len() >= 200 => break,
            ReaderEvent::End { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_rising(&all);
    assert_eq!(all.len(), 200);
}

pub(crate) async fn removed_records_are_a_gap_for_who_wanted_them<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let writer = writer(f).await;
    let offsets = put(&*writer, &at, &[("k", "a"), ("k", "b"), ("k", "c")]).await;
    let admin = f.bus().admin();
    within(PATIENCE, "a removal", admin.delete_records(&at, offsets[2])).await.unwrap();
    assert_eq!(
        admin.bounds(std::slice::from_ref(&at)).await.unwrap(),
        [Bounds { start: offsets[2], end: offsets[2] + 1 }]
    );
    let mut reader = reader(f, None).await;
    reader.add(&at, Start::Offset(offsets[0]));
    let (from, to) = (offsets[0], offsets[2]);
    assert_eq!(next(&mut *reader).await, ReaderEvent::Gap { partition: at.clone(), from, to });
    let ReaderEvent::Batch { records, .. } = next(&mut *reader).await else { panic!("no batch") };
    assert_eq!(values(&records), ["c"]);
    let (records, _) = read_all(f, &at, Start::Earliest).await;
    assert_eq!(values(&records), ["c"], "the earliest record needs no gap");
    let beyond = admin.delete_records(&at, offsets[2] + 100).await;
    assert!(matches!(beyond, Err(Error::Refused(_))), "{beyond:?}");
}

pub(crate) async fn an_emptied_partition_ends_where_it_ended<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let writer = writer(f).await;
    let end = put(&*writer, &at, &[("k", "a"), ("k", "b")]).await[1] + 1;
    let admin = f.bus().admin();
    within(PATIENCE, "a removal", admin.delete_records(&at, end)).await.unwrap();
    assert_eq!(read_all(f, &at, Start::Earliest).await, (vec![], end));
    assert_eq!(read_all(f, &at, Start::Latest).await, (vec![], end));
    assert_eq!(admin.bounds(std::slice::from_ref(&at)).await.unwrap(), [Bounds { start: end, end }]);
    assert_eq!(put(&*writer, &at, &[("k", "c")]).await, [end]);
    assert_eq!(values(&read_all(f, &at, Start::Earliest).await.0), ["c"]);
}

pub(crate) async fn compaction_keeps_the_latest_of_each_key<F: Fixture>(f: &mut F) {
    let at = compacted_topic(f).await;
    let writer = writer(f).await;
    put(&*writer, &at, &[("a", "1"), ("b", "1"), ("a", "2"), ("c", "1"), ("b", "2"), ("a", "3")]).await;
    let wanted = [("c", "1"), ("b", "2"), ("a", "3")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let compacted = async {
        loop {
            f.force_compaction(&at).await;
            let (records, end) = read_all(f, &at, Start::Earliest).await;
            assert_rising(&records);
            if pairs(&records) == wanted {
                return end;
            }
        }
    };
    let end = within(Duration::from_secs(60), "compaction", compacted).await;
    let bounds = f.bus().admin().bounds(std::slice::from_ref(&at)).await.unwrap();
    assert!(bounds[0].end >= end);
    // A position that was compacted away is no gap.
    let (records, _) = read_all(f, &at, Start::Offset(0)).await;
    assert_eq!(pairs(&records), wanted);
}

pub(crate) async fn a_tail_that_was_compacted_away_still_ends<F: Fixture>(f: &mut F) {
    let at = compacted_topic(f).await;
    let writer = writer(f).await;
    put(&*writer, &at, &[("a", "1"), ("a", "2")]).await;
    let end = put(&*writer, &at, &[("b", "1"), ("b", "")]).await[1] + 1;
    f.force_compaction(&at).await;
    let (records, position) = read_all(f, &at, Start::Earliest).await;
    assert!(position >= end, "the end {position} lies before {end}");
    assert_eq!(pairs(&records).iter().rfind(|(key, _)| key == "a").unwrap().1, "2");
    let mut reader = reader(f, None).await;
    reader.add(&at, Start::Offset(end));
    loop {
        match next(&mut *reader).await {
            ReaderEvent::End { position, .. } => break assert!(position >= end),
            ReaderEvent::Batch { records, .. } => assert!(pairs(&records).is_empty(), "{records:?}"),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn a_compacted_topic_refuses_a_record_without_a_key<F: Fixture>(f: &mut F) {
    let at = compacted_topic(f).await;
    let writer = writer(f).await;
    let outgoing = Outgoing { partition: Some(0), key: None, value: Some(b"v"), headers: &[] };
    let result = within(PATIENCE, "an outcome", write(&*writer, &writer.topic(&at.topic), outgoing)).await;
    assert!(matches!(result, Err(Error::Refused(_))), "{result:?}");
}

fn batch_record(at: &TopicPartition, value: &str) -> BatchRecord {
    BatchRecord {
        topic: Arc::clone(&at.topic),
        partition: Some(at.partition),
        key: Some("k".into()),
        value: Some(value.to_owned().into()),
        headers: Vec::new(),
    }
}

async fn fenced_write(
    writer: &mut Box<dyn FencedWriter>,
    batch: Vec<BatchRecord>,
) -> Result<Vec<Written>, Error> {
    within(PATIENCE, "a fenced write", writer.write(batch)).await
}

pub(crate) async fn a_fenced_batch_spans_topics_and_ends_behind_its_markers<F: Fixture>(f: &mut F) {
    let [one, two] = [topic(f, 1).await, topic(f, 1).await].map(|name| TopicPartition::new(name, 0));
    let mut fenced =
        within(PATIENCE, "a fenced writer", f.bus().fenced_writer(&f.unique("w"))).await.unwrap();
    let batch = vec![batch_record(&one, "1"), batch_record(&two, "2"), batch_record(&one, "3")];
    let written = fenced_write(&mut fenced, batch).await.unwrap();
    assert_eq!(written.len(), 3);
    let (records, end) = read_all(f, &one, Start::Earliest).await;
    assert_eq!(values(&records), ["1", "3"]);
    assert_eq!([records[0].offset, records[1].offset], [written[0].offset, written[2].offset]);
    // Read again behind the last record: nothing but, perhaps, a marker.
    let (rest, again) = read_all(f, &one, Start::Offset(written[2].offset + 1)).await;
    assert_eq!((rest.len(), again), (0, end));
    assert_eq!(f.bus().admin().bounds(std::slice::from_ref(&one)).await.unwrap()[0].end, end);
    assert_eq!(values(&read_all(f, &two, Start::Earliest).await.0), ["2"]);
    assert_eq!(fenced_write(&mut fenced, vec![batch_record(&two, "4")]).await.unwrap().len(), 1);
    assert_eq!(values(&read_all(f, &two, Start::Earliest).await.0), ["2", "4"]);
}

pub(crate) async fn a_newer_fenced_writer_stops_the_older_one_without_a_trace<F: Fixture>(f: &mut F) {
    let [one, two] = [topic(f, 1).await, topic(f, 1).await].map(|name| TopicPartition::new(name, 0));
    let name = f.unique("w");
    let bus = f.bus();
    let mut older = within(PATIENCE, "a fenced writer", bus.fenced_writer(&name)).await.unwrap();
    fenced_write(&mut older, vec![batch_record(&one, "old")]).await.unwrap();
    let mut newer = within(PATIENCE, "a fenced writer", bus.fenced_writer(&name)).await.unwrap();
    let stale = vec![batch_record(&one, "stale"), batch_record(&two, "stale")];
    let result = fenced_write(&mut older, stale.clone()).await;
    assert!(matches!(result, Err(Error::Fenced(_))), "{result:?}");
    fenced_write(&mut newer, vec![batch_record(&one, "new")]).await.unwrap();
    let result = fenced_write(&mut older, stale).await;
    assert!(matches!(result, Err(Error::Fenced(_))), "{result:?}");
    assert_eq!(values(&read_all(f, &one, Start::Earliest).await.0), ["old", "new"]);
    let (records, _) = read_all(f, &two, Start::Earliest).await;
    assert_eq!(records, [], "nothing of the fenced writer can be seen");
}

pub(crate) async fn a_batch_with_an_unknown_topic_writes_nothing<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let missing = TopicPartition::new(f.unique("missing"), 0);
    let mut fenced =
        within(PATIENCE, "a fenced writer", f.bus().fenced_writer(&f.unique("w"))).await.unwrap();
    let batch = vec![batch_record(&at, "1"), batch_record(&missing, "2")];
    let result = within(Duration::from_secs(60), "an outcome", fenced.write(batch)).await;
    assert!(result.is_err(), "{result:?}");
    assert_eq!(read_all(f, &at, Start::Earliest).await.0, []);
    assert_eq!(fenced_write(&mut fenced, vec![batch_record(&at, "3")]).await.unwrap().len(), 1);
    assert_eq!(values(&read_all(f, &at, Start::Earliest).await.0), ["3"]);
}

fn commit(at: &TopicPartition, offset: u64, metadata: &str) -> Commit {
    Commit { partition: at.clone(), offset, metadata: metadata.to_owned() }
}

pub(crate) async fn commits_keep_offset_and_metadata_for_each_group<F: Fixture>(f: &mut F) {
    let name = topic(f, 2).await;
    let [one, two] = [0, 1].map(|partition| TopicPartition::new(name.as_str(), partition));
    put(&*writer(f).await, &one, &[("k", "a"), ("k", "b")]).await;
    let group = f.unique("g");
    let mut first = reader(f, Some(&group)).await;
    let both = [one.clone(), two.clone()];
    assert_eq!(within(PATIENCE, "commits", first.committed(&both)).await, Ok(vec![]));
    let wanted = vec![commit(&one, 2, r#"{"generation":"3"}"#)];
    within(PATIENCE, "a commit", first.commit(wanted.clone())).await.unwrap();
    assert_eq!(within(PATIENCE, "commits", first.committed(&both)).await, Ok(wanted.clone()));
    let mut second = reader(f, Some(&group)).await;
    within(PATIENCE, "a commit", second.commit(vec![commit(&one, 1, ""), commit(&two, 0, "x")]))
        .await
        .unwrap();
    let admin = f.bus().admin();
    let mut found = within(PATIENCE, "commits", admin.committed(&group, &both)).await.unwrap();
    found.sort_by_key(|commit| commit.partition.partition);
    assert_eq!(found, [commit(&one, 1, ""), commit(&two, 0, "x")]);
    assert_eq!(within(PATIENCE, "commits", admin.committed(&f.unique("g"), &both)).await, Ok(vec![]));
}

pub(crate) async fn a_deleted_topic_is_gone_and_its_successor_is_empty<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let (bus, group) = (f.bus(), f.unique("g"));
    let (writer, admin) = (writer(f).await, bus.admin());
    let handle = writer.topic(&at.topic);
    put(&*writer, &at, &[("k", "a"), ("k", "b")]).await;
    let mut reader = reader(f, Some(&group)).await;
    within(PATIENCE, "a commit", reader.commit(vec![commit(&at, 2, "")])).await.unwrap();
    reader.add(&at, Start::Earliest);
    while !matches!(next(&mut *reader).await, ReaderEvent::End { .. }) {}
    assert_eq!(within(PATIENCE, "a deletion", admin.delete_topic(&at.topic)).await, Ok(true));
    assert_eq!(within(PATIENCE, "a deletion", admin.delete_topic(&at.topic)).await, Ok(false));
    assert_eq!(within(PATIENCE, "a description", admin.topic(&at.topic)).await, Ok(None));
    let gone = next(&mut *reader).await;
    assert!(matches!(&gone, ReaderEvent::Gone { partition, .. } if *partition == at), "{gone:?}");
    let unknown = async {
        // What is on its way to the deleted topic may still be taken.
        while !matches!(write(&*writer, &handle, record(0, "k", "v")).await, Err(Error::UnknownTopic(_))) {}
    };
    within(PATIENCE, "an unknown topic", unknown).await;
    let bounds = admin.bounds(std::slice::from_ref(&at)).await;
    assert!(matches!(bounds, Err(Error::UnknownTopic(_))), "{bounds:?}");
    let spec = TopicSpec {
        name: at.topic.to_string(),
        partitions: 1,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: Vec::new(),
    };
    assert_eq!(within(PATIENCE, "a topic", admin.create_topic(&spec)).await, Ok(true));
    assert_eq!(within(PATIENCE, "a topic", admin.create_topic(&spec)).await, Ok(false));
    assert_eq!(read_all(f, &at, Start::Earliest).await, (vec![], 0));
    let forgotten = async {
        // Kafka forgets them a little later.
        while admin.committed(&group, std::slice::from_ref(&at)).await != Ok(vec![]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, "no commits of the deleted topic", forgotten).await;
    let written = async {
        // The handle is as good for the successor, once its news have spread.
        loop {
            if let Ok(written) = write(&*writer, &handle, record(0, "k", "new")).await {
                return written;
            }
        }
    };
    within(PATIENCE, "a write to the successor", written).await;
    assert_eq!(values(&read_all(f, &at, Start::Earliest).await.0), ["new"]);
    reader.add(&at, Start::Offset(100));
    let gone = next(&mut *reader).await;
    assert!(matches!(&gone, ReaderEvent::Gone { partition, .. } if *partition == at), "{gone:?}");
    let found = within(PATIENCE, "topics", admin.topics()).await.unwrap();
    assert!(found.is_sorted_by_key(|topic| &topic.name));
    assert!(found.iter().any(|topic| *topic.name == *at.topic && topic.partitions == 1));
    assert_eq!(within(PATIENCE, "an answer", admin.ping()).await, Ok(()));
}

pub(crate) async fn a_topic_that_was_created_anew_is_gone_though_it_has_grown<F: Fixture>(f: &mut F) {
    let name = topic(f, 2).await;
    let [at, paused] = [0, 1].map(|partition| TopicPartition::new(name.as_str(), partition));
    let mut reader = reader(f, None).await;
    for partition in [&at, &paused] {
        put(&*writer(f).await, partition, &[("k", "old")]).await;
        reader.add(partition, Start::Earliest);
        while !matches!(next(&mut *reader).await, ReaderEvent::End { .. }) {}
    }
    reader.pause(&paused);
    let admin = f.bus().admin();
    within(PATIENCE, "a deletion", admin.delete_topic(&name)).await.unwrap();
    let spec = TopicSpec {
        name,
        partitions: 2,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: Vec::new(),
    };
    within(PATIENCE, "a topic", admin.create_topic(&spec)).await.unwrap();
    let fresh = [("k", "1"), ("k", "2"), ("k", "3")];
    for partition in [&at, &paused] {
        put(&*writer(f).await, partition, &fresh).await;
    }
    let mut gone = std::collections::BTreeSet::new();
    while gone.len() < 2 {
        match next(&mut *reader).await {
            ReaderEvent::Gone { partition, .. } => assert!(gone.insert(partition), "told twice"),
            ReaderEvent::Gap { .. } => panic!("nothing was removed"),
            ReaderEvent::Batch { .. } | ReaderEvent::End { .. } => {}
        }
    }
    reader.add(&at, Start::Earliest);
    let mut all = Vec::new();
    while all.len() < fresh.len() {
        match next(&mut *reader).await {
            ReaderEvent::Batch { records, .. } => all.extend(values(&records)),
            ReaderEvent::End { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(all, fresh.map(|(_, value)| value));
}

pub(crate) async fn a_topic_has_another_id_when_it_is_created_anew<F: Fixture>(f: &mut F) {
    let (name, other) = (topic(f, 1).await, topic(f, 2).await);
    let missing = f.unique("missing");
    let admin = f.bus().admin();
    let names = [&*name, &*missing, &*other, &*name];
    let found = within(PATIENCE, "a description", admin.describe(&names)).await.unwrap();
    let [Some(first), None, Some(second), Some(again)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((first, second.partitions), (again, 2));
    assert!(!first.id.is_empty() && first.id != second.id, "{first:?} {second:?}");
    assert_eq!(within(PATIENCE, "a description", admin.topic(&name)).await, Ok(Some(first.clone())));
    assert!(within(PATIENCE, "topics", admin.topics()).await.unwrap().contains(first));
    let reopened = f.reopen().await;
    let admin = f.bus().admin();
    if reopened.is_some() {
        assert_eq!(within(PATIENCE, "a description", admin.topic(&name)).await, Ok(Some(first.clone())));
    }
    let spec = TopicSpec {
        name: name.clone(),
        partitions: 1,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: Vec::new(),
    };
    within(PATIENCE, "a deletion", admin.delete_topic(&name)).await.unwrap();
    within(PATIENCE, "a topic", admin.create_topic(&spec)).await.unwrap();
    let anew = within(PATIENCE, "a description", admin.topic(&name)).await.unwrap().unwrap();
    assert!(!anew.id.is_empty() && anew.id != first.id, "{anew:?} after {first:?}");
}

pub(crate) async fn a_topic_that_makes_no_sense_is_refused<F: Fixture>(f: &mut F) {
    let admin = f.bus().admin();
    let spec = |name: &str, partitions, settings: &[(&str, &str)]| TopicSpec {
        name: name.to_owned(),
        partitions,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    let name = f.unique("t");
    for bad in [
        spec("a/b", 1, &[]),
        spec("", 1, &[]),
        spec(&name, 0, &[]),
        spec(&name, 1, &[("retention.ms", "week")]),
    ] {
        let result = within(PATIENCE, "an answer", admin.create_topic(&bad)).await;
        assert!(matches!(result, Err(Error::Refused(_))), "{bad:?}: {result:?}");
    }
    assert_eq!(within(PATIENCE, "a description", admin.topic(&name)).await, Ok(None));
}

pub(crate) async fn everything_is_there_after_a_restart<F: Fixture>(f: &mut F) {
    let at = TopicPartition::new(topic(f, 1).await, 0);
    let emptied = TopicPartition::new(topic(f, 1).await, 0);
    let deleted = topic(f, 1).await;
    let group = f.unique("g");
    let end = {
        let (bus, writer) = (f.bus(), writer(f).await);
        put(&*writer, &at, &[("k", "a"), ("k", "b"), ("k", "c")]).await;
        let end = put(&*writer, &emptied, &[("k", "a")]).await[0] + 1;
        put(&*writer, &TopicPartition::new(deleted.as_str(), 0), &[("k", "a")]).await;
        let mut fenced = within(PATIENCE, "a fenced writer", bus.fenced_writer(&group)).await.unwrap();
        fenced_write(&mut fenced, vec![batch_record(&at, "d")]).await.unwrap();
        let admin = bus.admin();
        within(PATIENCE, "a removal", admin.delete_records(&emptied, end)).await.unwrap();
        within(PATIENCE, "a removal", admin.delete_records(&at, 1)).await.unwrap();
        within(PATIENCE, "a deletion", admin.delete_topic(&deleted)).await.unwrap();
        let mut reader = reader(f, Some(&group)).await;
        within(PATIENCE, "a commit", reader.commit(vec![commit(&at, 2, "meta")])).await.unwrap();
        end
    };
    if f.reopen().await.is_none() {
        return;
    }
    let (records, _) = read_all(f, &at, Start::Earliest).await;
    assert_eq!(values(&records), ["b", "c", "d"]);
    assert_eq!(read_all(f, &emptied, Start::Earliest).await, (vec![], end));
    let admin = f.bus().admin();
    assert_eq!(within(PATIENCE, "a description", admin.topic(&deleted)).await, Ok(None));
    let found = within(PATIENCE, "commits", admin.committed(&group, std::slice::from_ref(&at))).await;
    assert_eq!(found, Ok(vec![commit(&at, 2, "meta")]));
    let offset = put(&*writer(f).await, &at, &[("k", "e")]).await[0];
    assert!(offset > records[2].offset);
    assert_eq!(put(&*writer(f).await, &emptied, &[("k", "e")]).await, [end]);
}
