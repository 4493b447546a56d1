//! What becomes of messages that are not delivered at once: retries, dead letters, stalls, limits, shutdown.

use std::{num::NonZeroUsize, time::Duration};

use serde_json::json;
use tbmq_bus::{Bus, Header, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};
use tbmq_integration::{
    dead_letter::DeadLetter,
    wire::{CommitMetadata, RequestType, Totals},
};
use tbmq_proto::{ids::IntegrationId, integration::ComponentLifecycleEventProto as Word};

use crate::world::{World, kind, new_id, numbers};

/// Waits for `count` dead letters of an integration.
async fn dead_letters(world: &World, id: IntegrationId, count: usize) -> Vec<Record> {
    let mut reader = world.bus.reader(ReaderConfig::new("test", None)).await.unwrap();
    reader.add(&TopicPartition::new(world.catalogue.dead_letters(id).name, 0), Start::Earliest);
    let mut found = Vec::new();
    while found.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(20), reader.next()).await;
        let event = event.unwrap_or_else(|_| panic!("only {} dead letters within 20 s", found.len()));
        if let ReaderEvent::Batch { records, .. } = event {
            found.extend(records);
        }
    }
    found
}

fn read(record: &Record) -> DeadLetter {
    DeadLetter::from_headers(|name| record.header(name)).unwrap()
}

async fn commit_of(world: &World, id: IntegrationId) -> (u64, CommitMetadata) {
    let partition = TopicPartition::new(world.catalogue.messages(id, 1).name, 0);
    let group = world.catalogue.messages_group();
    let commit = world.bus.admin().committed(&group, &[partition]).await.unwrap().remove(0);
    (commit.offset, CommitMetadata::from_text(&commit.metadata).unwrap())
}

#[tokio::test]
async fn commits_count_each_message_once_from_owner_to_owner_and_begin_anew_with_a_generation() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let topic = TopicPartition::new(world.catalogue.messages(id, 1).name, 0);
    world.publish(id, numbers(0..2)).await;
    // Never read by anybody.
    world.bus.admin().delete_records(&topic, 2).await.unwrap();
    world.publish(id, ["a", "reject it", "retry 9", "retry 1", "b"].map(ToOwned::to_owned)).await;
    let delivery = json!({ "ackStrategy": "RETRY_ALL", "retries": 2, "pauseBetweenRetriesSec": 0 });
    world.apply_with(id, true, 1, &delivery).await;
    let first = world.executor("ie1").await;
    world.until("the good ones", |state| state.delivered(id).len() == 3).await;
    let settled = async {
        while world.committed(id).await != Some((7, 1)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("all is committed");
    first.drain().await;
    let counted = Totals { delivered: 3, rejected: 1, skipped: 1, dead_lettered: 0, expired: 2, retries: 3 };
    let (offset, metadata) = commit_of(&world, id).await;
    assert_eq!((offset, metadata.totals, metadata.oldest_ms), (7, counted, None));

    // The next owner goes on, and one that hangs is not counted, nor is what was delivered above it.
    world.publish(id, ["key a".to_owned(), "hang".to_owned(), "key b".to_owned()]).await;
    let second = world.executor("ie2").await;
    world.until("what does not hang", |state| state.delivered(id).len() == 5).await;
    second.drain().await;
    let (offset, metadata) = commit_of(&world, id).await;
    assert_eq!((offset, metadata.totals), (8, Totals { delivered: 4, ..counted }));
    assert_eq!(metadata.totals.settled(), offset);
    assert!(metadata.oldest_ms.is_some_and(|at| tbmq_service::time::now_ms() - at < 60_000));

    // A new generation of the topic begins with nothing.
    world.bus.admin().delete_topic(&topic.topic).await.unwrap();
    world.create_messages(id).await;
    world.publish(id, numbers(0..1)).await;
    world.apply_with(id, true, 2, &delivery).await;
    let third = world.executor("ie3").await;
    world.until("the one", |state| state.delivered(id).len() == 6).await;
    third.drain().await;
    let (offset, metadata) = commit_of(&world, id).await;
    assert_eq!((offset, metadata.totals), (1, Totals { delivered: 1, ..Totals::default() }));
}

#[tokio::test]
async fn what_is_given_up_on_lies_in_the_dead_letters_unchanged_before_it_is_committed() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let topic = world.catalogue.messages(id, 1).name;
    world.publish(id, ["a", "retry 9", "reject it"].map(ToOwned::to_owned)).await;
    let headers = [Header::text("own", "kept"), Header::text("tbmq.dlq.version", "0")];
    world.put(&topic, b"key", b"\xff", &headers).await;
    world.publish(id, ["b".to_owned()]).await;
    let delivery = json!({
        "ackStrategy": "RETRY_ALL", "retries": 1, "pauseBetweenRetriesSec": 0, "deadLetter": true
    });
    let revision = world.apply_with(id, true, 1, &delivery).await;
    let executor = world.executor("ie1").await;
    world.until("the good ones", |state| state.delivered(id).len() == 2).await;
    let letters = dead_letters(&world, id, 3).await;
    executor.drain().await;
    assert_eq!(world.committed(id).await, Some((5, 1)));

    let mut told: Vec<_> = letters
        .iter()
        .map(|record| {
            let letter = read(record);
            assert_eq!((letter.source_topic.as_str(), letter.source_partition), (topic.as_str(), 0));
            assert_eq!((letter.generation, letter.revision), (1, revision));
            assert!(letter.first_ms <= letter.last_ms && letter.last_ms - letter.first_ms < 20_000);
            (letter.source_offset, letter.class, letter.attempts)
        })
        .collect();
    told.sort_unstable();
    let expected = [(1, "status", 2), (2, "status", 1), (3, "unreadable", 0)];
    assert_eq!(told, expected.map(|(offset, class, attempts)| (offset, class.to_owned(), attempts)));
    let unreadable = letters.iter().find(|record| read(record).source_offset == 3).unwrap();
    assert_eq!(
        (unreadable.key.as_deref(), unreadable.value.as_deref()),
        (Some(&b"key"[..]), Some(&b"\xff"[..]))
    );
    assert_eq!(unreadable.header("own"), Some("kept"));
    let versions = unreadable.headers.iter().filter(|header| &*header.name == "tbmq.dlq.version").count();
    assert_eq!(versions, 1, "the headers of an earlier dead letter are left out");
}

#[tokio::test]
async fn a_topic_of_dead_letters_that_was_deleted_is_made_anew() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply_with(id, true, 1, &json!({ "deadLetter": true, "pollIntervalMs": 20 })).await;
    let executor = world.executor("ie1").await;
    world.until_word(id, Word::Started, revision).await;
    let topic = world.catalogue.dead_letters(id).name;
    let admin = world.bus.admin();
    assert_eq!(admin.topic(&topic).await.unwrap().map(|info| info.partitions), Some(1));
    admin.delete_topic(&topic).await.unwrap();
    world.publish(id, ["reject it".to_owned()]).await;
    while admin.topic(&topic).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(read(&dead_letters(&world, id, 1).await[0]).class, "status");
    executor.drain().await;
    assert_eq!(world.committed(id).await, Some((1, 1)));
}

#[tokio::test]
async fn without_dead_letters_there_is_no_topic_of_them() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    world.apply(id, true).await;
    world.publish(id, ["reject it", "b"].map(ToOwned::to_owned)).await;
    let executor = world.executor("ie1").await;
    world.until("the good one", |state| state.delivered(id).len() == 1).await;
    executor.drain().await;
    let topic = world.catalogue.dead_letters(id).name;
    assert_eq!(world.bus.admin().topic(&topic).await.unwrap(), None);
}

#[tokio::test]
async fn one_slow_message_holds_up_its_key_and_not_the_rest() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    world.apply(id, true).await;
    world.publish(id, (0..1000).map(|n| format!("hang {n}"))).await;
    world.publish(id, (0..200).map(|_| "key a".to_owned())).await;
    let executor = world.executor("ie1").await;
    world.until("those of the other key", |state| state.delivered(id).len() == 200).await;
    drop(executor);
    assert!(world.committed(id).await.is_none_or(|(offset, _)| offset == 0));
}

#[tokio::test]
async fn the_document_says_whether_the_messages_of_a_key_keep_their_order() {
    let world = World::new().await;
    let [unordered, ordered] = [("none", new_id()), ("key", new_id())];
    for (ordering, id) in [unordered, ordered] {
        world.create_messages(id).await;
        world.apply_with(id, true, 1, &json!({ "ordering": ordering })).await;
        world.publish(id, ["hang x", "key hang", "key a"].map(ToOwned::to_owned)).await;
    }
    let executor = world.executor("ie1").await;
    world
        .until("all that may", |state| {
            state.delivered(unordered.1).len() == 2 && !state.delivered(ordered.1).is_empty()
        })
        .await;
    drop(executor);
    assert_eq!(
        world.state.borrow().delivered(ordered.1),
        ["key a"],
        "the other one waits for the one that hangs"
    );
}

#[tokio::test]
async fn a_stall_is_reported_without_dropping_anything_and_so_is_its_end() {
    let mut world = World::new().await;
    world.config.integrations.stalled_after = Duration::from_millis(100);
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply_with(id, true, 1, &json!({ "ackStrategy": "RETRY_ALL", "retries": 0 })).await;
    let executor = world.executor("ie1").await;
    world.publish(id, ["hang 0".to_owned()]).await;
    world.until_word(id, Word::Stalled, revision).await;
    world.publish(id, numbers(0..3)).await;
    world.until_word(id, Word::Resumed, revision).await;
    world.change(|state| state.is_away = true);
    let stalls = |state: &crate::world::State| {
        state.lifecycle(id).iter().filter(|(word, _)| *word == Word::Stalled).count()
    };
    world.until("it is reported as away", |state| stalls(state) >= 2).await;
    drop(executor);
    assert_eq!(world.state.borrow().delivered(id), numbers(0..3));
    assert_eq!(world.state.borrow().errors(id), []);
    assert!(world.committed(id).await.is_none_or(|(offset, _)| offset == 0), "it is still in flight");
}

#[tokio::test]
async fn a_shutdown_commits_nothing_unfinished_and_tells_the_last_statistics_and_stopped() {
    let mut world = World::new().await;
    world.config.integrations.destroy.graceful_timeout_ms = 20;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    let mut texts = numbers(0..20);
    texts.insert(10, "hang 0".to_owned());
    texts.push("reject it".to_owned());
    world.publish(id, texts).await;
    let executor = world.executor("ie1").await;
    world.until("all but one", |state| state.delivered(id).len() == 20 && state.errors(id).len() == 1).await;
    executor.drain().await;
    assert_eq!(world.committed(id).await, Some((10, 1)), "with SKIP_ALL too (UP-8)");
    world.until_word(id, Word::Stopped, revision).await;
    world.until("the statistics", |state| state.statistics(id) == [(20, 1)]).await;
}

#[tokio::test]
async fn statistics_are_told_by_time_with_zeros() {
    let mut world = World::new().await;
    world.config.integrations.statistics.persist_frequency = 50;
    let id = new_id();
    world.create_messages(id).await;
    world.apply(id, true).await;
    world.publish(id, numbers(0..7)).await;
    let executor = world.executor("ie1").await;
    world
        .until("all are told, then zeros", |state| {
            let told = state.statistics(id);
            told.iter().map(|(processed, _)| processed).sum::<u64>() == 7 && told.last() == Some(&(0, 0))
        })
        .await;
    executor.drain().await;
}

#[tokio::test]
async fn what_is_beyond_a_limit_is_given_up_on_with_its_place() {
    let mut world = World::new().await;
    world.config.queue.integration_msg.message_bytes_max = NonZeroUsize::new(1_000).unwrap();
    let id = new_id();
    world.create_messages(id).await;
    world.apply(id, true).await;
    world.publish(id, ["a".to_owned(), "x".repeat(2_000), "b".to_owned()]).await;
    let executor = world.executor("ie1").await;
    world.until("the small ones", |state| state.delivered(id).len() == 2).await;
    world.until("the error", |state| state.errors(id).len() == 1).await;
    executor.drain().await;
    let state = world.state.borrow();
    let (_, error, _) = state.errors(id)[0];
    let place =
        format!("record {}-0-1 is beyond the limit message-bytes", world.catalogue.messages(id, 1).name);
    assert!(error.starts_with(&place), "{error}");
}

#[tokio::test]
async fn the_problems_of_a_document_are_answered_all_at_once() {
    let world = World::new().await;
    let executor = world.executor("ie1").await;
    // An instance runs as soon as it has restored; before that a request is history.
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    world.until_word(id, Word::Started, revision).await;
    let delivery = json!({ "retries": -1, "ordering": "any" });
    let asked = world.ask_with(RequestType::Validate, &json!({ "bad": 1 }), &delivery, 0).await;
    world.until("an answer", |state| state.replies.iter().any(|reply| reply.id == asked)).await;
    executor.drain().await;
    let state = world.state.borrow();
    let reply = state.replies.iter().find(|reply| reply.id == asked).unwrap();
    let paths: Vec<_> = reply.violations.iter().map(|violation| violation.path.as_str()).collect();
    assert_eq!(paths, ["delivery.retries", "delivery.ordering", "clientConfiguration.bad"]);
}

#[tokio::test]
async fn a_bad_record_of_configuration_is_told_with_its_place_and_stops_nothing() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let executor = world.executor("ie1").await;
    let revision = world.apply(id, true).await;
    world.until_word(id, Word::Started, revision).await;
    let topic = world.catalogue.downlink(&kind()).name;
    world.put(&topic, id.to_string().as_bytes(), b"\xff", &[]).await;
    world.until("the error", |state| state.errors(id).len() == 1).await;
    let revision = world.apply(id, true).await;
    world.until_word(id, Word::Started, revision).await;
    executor.drain().await;
    let state = world.state.borrow();
    let (method, error, _) = state.errors(id)[0];
    assert!(method == "onDownlink" && error.starts_with(&format!("record {topic}-")), "{method}: {error}");
}

#[tokio::test]
async fn only_the_kinds_that_are_not_excluded_are_served_and_an_unknown_one_stops_the_start() {
    let mut world = World::new().await;
    world.config.service.integrations.excluded = "TEST".to_owned();
    let id = new_id();
    world.create_messages(id).await;
    world.apply(id, true).await;
    world.publish(id, numbers(0..3)).await;
    let idle = world.executor("ie1").await;
    // It lives and says so.
    world.until("its service", |state| !state.services.is_empty()).await;
    world.config.service.integrations.excluded = "NONE".to_owned();
    let serving = world.executor("ie2").await;
    world.until("the other one delivers", |state| state.delivered(id).len() == 3).await;
    assert!(world.state.borrow().events.iter().all(|(_, event)| event.service_id == "ie2"));
    idle.drain().await;
    serving.drain().await;
    world.config.service.integrations.supported = "TEST,SMTP".to_owned();
    let refusal = world.refusal().await;
    assert_eq!(refusal, "service.integrations.supported names \"SMTP\"; known are TEST, ALL and NONE");
}

#[tokio::test]
async fn an_executor_tells_that_it_lives_and_its_load() {
    let mut world = World::new().await;
    world.config.stats.system_info.persist_frequency = 1;
    let executor = world.executor("ie1").await;
    world
        .until("both kinds of heartbeat", |state| {
            let has = |with: bool| state.services.iter().any(|info| info.system_info.is_some() == with);
            has(true) && has(false)
        })
        .await;
    executor.drain().await;
    let state = world.state.borrow();
    let info = state.services.iter().find_map(|info| Some((info, info.system_info.as_ref()?)));
    let (info, system) = info.unwrap();
    assert_eq!((info.service_id.as_str(), info.service_type()), ("ie1", "TBMQ_INTEGRATION_EXECUTOR"));
    assert!(system.cpu_count() > 0 && system.total_memory() > 0 && system.total_disk_space() > 0);
    assert!((0..=100).contains(&system.memory_usage()) && (0..=100).contains(&system.disk_usage()));
}
