//! What the driver promises, seen from the bus.

use std::{collections::BTreeSet, time::Duration};

use prost::Message as _;
use serde_json::json;
use tbmq_bus::{Bus, ReaderConfig, ReaderEvent, Start, TopicPartition, spec_of};
use tbmq_integration::wire::RequestType;
use tbmq_proto::{
    integration::ComponentLifecycleEventProto as Word,
    wire::{KindAnnouncement, NodeApplied},
};

use crate::world::{World, kind, new_id, numbers};

#[tokio::test]
async fn what_was_configured_before_the_start_is_restored_and_all_messages_arrive() {
    let world = World::new().await;
    let (kept, deleted) = (new_id(), new_id());
    for id in [kept, deleted] {
        world.create_messages(id).await;
        world.apply(id, true).await;
        world.publish(id, numbers(0..50)).await;
    }
    world.delete(deleted).await;
    let revision = world.apply(kept, true).await;
    let stale = world.ask(RequestType::Validate, &json!({}), 0).await;
    let executor = world.executor("ie1").await;
    world.until("all delivered", |state| state.delivered(kept).len() == 50).await;
    world.until_word(kept, Word::Started, revision).await;
    let asked = world.ask(RequestType::Validate, &json!({}), 0).await;
    world
        .until("a new request is answered", |state| state.replies.iter().any(|reply| reply.id == asked))
        .await;
    {
        let state = world.state.borrow();
        assert_eq!(state.delivered(kept), numbers(0..50));
        assert_eq!(state.delivered(deleted), Vec::<&str>::new());
        assert!(state.replies.iter().all(|reply| reply.id != stale), "requests are history while restoring");
    }
    executor.drain().await;
}

#[tokio::test]
async fn messages_that_arrive_while_disabled_are_delivered_once_enabled() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let executor = world.executor("ie1").await;
    let revision = world.apply(id, true).await;
    world.until_word(id, Word::Started, revision).await;
    world.publish(id, numbers(0..10)).await;
    world.until("the first", |state| state.delivered(id).len() == 10).await;
    let revision = world.apply(id, false).await;
    world.until_word(id, Word::Stopped, revision).await;
    world.publish(id, numbers(10..1010)).await;
    assert_eq!(world.state.borrow().delivered(id).len(), 10);
    world.apply(id, true).await;
    world.until("the others", |state| state.delivered(id).len() >= 1010).await;
    assert_eq!(world.state.borrow().delivered(id), numbers(0..1010));
    executor.drain().await;
}

#[tokio::test]
async fn one_created_disabled_delivers_everything_from_the_earliest_on_once_enabled() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let executor = world.executor("ie1").await;
    world.apply(id, false).await;
    world.publish(id, numbers(0..1000)).await;
    world.apply(id, true).await;
    world.until("all", |state| state.delivered(id).len() >= 1000).await;
    assert_eq!(world.state.borrow().delivered(id), numbers(0..1000));
    executor.drain().await;
}

#[tokio::test]
async fn an_update_starts_the_new_state_and_repeats_nothing() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let executor = world.executor("ie1").await;
    let first = world.apply(id, true).await;
    world.until_word(id, Word::Started, first).await;
    world.publish(id, numbers(0..500)).await;
    let second = world.apply(id, true).await;
    world.publish(id, numbers(500..1000)).await;
    world.until_word(id, Word::Started, second).await;
    world.until("all", |state| state.delivered(id).len() >= 1000).await;
    let words: Vec<_> = world.state.borrow().lifecycle(id).into_iter().map(|(word, _)| word).collect();
    assert_eq!(words, [Word::Started, Word::Started]);
    assert_eq!(world.state.borrow().delivered(id), numbers(0..1000));
    executor.drain().await;
}

#[tokio::test]
async fn a_deleted_one_stops_and_says_so() {
    let world = World::new().await;
    let (running, disabled) = (new_id(), new_id());
    world.create_messages(running).await;
    let executor = world.executor("ie1").await;
    let revision = world.apply(running, true).await;
    world.apply(disabled, false).await;
    world.until_word(running, Word::Started, revision).await;
    for id in [running, disabled] {
        let revision = world.delete(id).await;
        world.until_word(id, Word::Stopped, revision).await;
    }
    executor.drain().await;
}

#[tokio::test]
async fn a_refused_validation_is_answered_and_leaves_the_running_one_untouched() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let executor = world.executor("ie1").await;
    let revision = world.apply(id, true).await;
    world.until_word(id, Word::Started, revision).await;
    let bad = world.ask(RequestType::Validate, &json!({ "bad": 1 }), 0).await;
    let good = world.ask(RequestType::CheckConnection, &json!({}), 0).await;
    let panics = world.ask(RequestType::CheckConnection, &json!({ "panic": 1 }), 0).await;
    let expired = world.ask(RequestType::Validate, &json!({}), 1).await;
    world.until("three answers", |state| state.replies.len() == 3).await;
    {
        let state = world.state.borrow();
        let reply = |id| state.replies.iter().find(|reply| reply.id == id);
        assert_eq!(reply(bad).unwrap().error.as_deref(), Some("clientConfiguration.bad: is bad"));
        assert_eq!(reply(bad).unwrap().violations.len(), 1);
        assert_eq!((reply(good).unwrap().error.as_deref(), reply(good).unwrap().stages.len()), (None, 1));
        assert!(reply(panics).unwrap().error.as_deref().is_some_and(|text| !text.is_empty()));
        assert_eq!(reply(expired), None);
    }
    world.publish(id, numbers(0..10)).await;
    world.until("it still runs", |state| state.delivered(id).len() == 10).await;
    assert_eq!(world.state.borrow().lifecycle(id), [(Word::Started, revision)]);
    executor.drain().await;
}

#[tokio::test]
async fn a_restart_goes_on_where_the_last_one_committed() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    world.apply(id, true).await;
    let first = world.executor("ie1").await;
    world.publish(id, numbers(0..300)).await;
    world.until("the first", |state| state.delivered(id).len() == 300).await;
    first.drain().await;
    assert_eq!(world.committed(id).await, Some((300, 1)));
    world.publish(id, numbers(300..600)).await;
    let second = world.executor("ie1").await;
    world.until("the others", |state| state.delivered(id).len() >= 600).await;
    assert_eq!(world.state.borrow().delivered(id), numbers(0..600));
    second.drain().await;
}

#[tokio::test]
async fn a_crash_loses_nothing_and_what_has_no_answer_is_never_committed() {
    let mut world = World::new().await;
    world.config.integrations.destroy.graceful_timeout_ms = 10;
    let id = new_id();
    world.create_messages(id).await;
    world.apply(id, true).await;
    let first = world.executor("ie1").await;
    let mut texts = numbers(0..100);
    texts.insert(40, "hang once".to_owned());
    world.publish(id, texts).await;
    world.until("all but one", |state| state.delivered(id).len() == 100).await;
    drop(first);
    assert!(world.committed(id).await.is_none_or(|(offset, _)| offset <= 40));
    world.bus.expire(&world.catalogue.downlink_group(&kind()), "test-ie-downlink-consumer-ie1");
    let second = world.executor("ie2").await;
    world
        .until("again", |state| {
            let delivered: BTreeSet<_> = state.delivered(id).into_iter().collect();
            delivered.len() == 100 && state.delivered(id).len() > 100
        })
        .await;
    second.drain().await;
    assert_eq!(world.committed(id).await, Some((40, 1)));
}

#[tokio::test]
async fn two_executors_share_the_integrations_and_hand_them_over_without_repeating() {
    let world = World::new().await;
    let ids: Vec<_> = (0..12).map(|_| new_id()).collect();
    for id in &ids {
        world.create_messages(*id).await;
        world.apply(*id, true).await;
    }
    let first = world.executor("ie1").await;
    for id in &ids {
        world.publish(*id, numbers(0..20)).await;
    }
    world.until("all by the first", |state| state.deliveries.len() == 12 * 20).await;
    let second = world.executor("ie2").await;
    world
        .until("the second has started some", |state| {
            state.events.iter().any(|(_, event)| event.service_id == "ie2")
        })
        .await;
    for id in &ids {
        world.publish(*id, numbers(20..40)).await;
    }
    world.until("all by both", |state| state.deliveries.len() >= 12 * 40).await;
    first.drain().await;
    for id in &ids {
        world.publish(*id, numbers(40..60)).await;
    }
    world.until("all by the second", |state| state.deliveries.len() >= 12 * 60).await;
    for id in &ids {
        assert_eq!(world.state.borrow().delivered(*id), numbers(0..60));
    }
    second.drain().await;
}

#[tokio::test]
async fn an_integration_that_hangs_delays_no_other() {
    let world = World::new().await;
    let (slow, fast) = (new_id(), new_id());
    for id in [slow, fast] {
        world.create_messages(id).await;
        world.apply(id, true).await;
    }
    world.publish(slow, (0..3000).map(|n| format!("hang {n}"))).await;
    let executor = world.executor("ie1").await;
    world.publish(fast, numbers(0..3000)).await;
    world.until("the fast one", |state| state.delivered(fast).len() == 3000).await;
    drop(executor);
}

#[tokio::test]
async fn it_waits_for_the_message_topic() {
    let world = World::new().await;
    let id = new_id();
    let executor = world.executor("ie1").await;
    let revision = world.apply(id, true).await;
    // Another one that starts afterwards shows that the first had its chance.
    let other = new_id();
    world.create_messages(other).await;
    let other_revision = world.apply(other, true).await;
    world.until_word(other, Word::Started, other_revision).await;
    assert_eq!(world.state.borrow().lifecycle(id), []);
    world.create_messages(id).await;
    world.publish(id, numbers(0..5)).await;
    world.until_word(id, Word::Started, revision).await;
    world.until("all", |state| state.delivered(id).len() == 5).await;
    executor.drain().await;
}

#[tokio::test]
async fn a_topic_of_a_new_generation_is_read_from_its_earliest_record() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    world.publish(id, numbers(0..5)).await;
    world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until("generation 1", |state| state.delivered(id).len() == 5).await;
    let revision = world.apply(id, false).await;
    world.until_word(id, Word::Stopped, revision).await;
    let topic = world.catalogue.messages(id, 1);
    world.bus.admin().delete_topic(&topic.name).await.unwrap();
    world.create_topic(&topic).await;
    world.publish(id, numbers(5..25)).await;
    world.apply_with(id, true, 2, &json!({})).await;
    world.until("generation 2", |state| state.delivered(id).len() >= 25).await;
    assert_eq!(world.state.borrow().delivered(id), numbers(0..25));
    executor.drain().await;
    assert_eq!(world.committed(id).await, Some((20, 2)));
}

#[tokio::test]
async fn a_topic_that_is_made_anew_under_a_running_integration_is_found_again() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    world.publish(id, numbers(0..5)).await;
    world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until("before", |state| state.delivered(id).len() == 5).await;
    let topic = world.catalogue.messages(id, 1);
    world.bus.admin().delete_topic(&topic.name).await.unwrap();
    world.create_topic(&topic).await;
    world.publish(id, numbers(5..10)).await;
    world.until("after", |state| state.delivered(id).len() >= 10).await;
    assert_eq!(world.state.borrow().delivered(id), numbers(0..10));
    executor.drain().await;
}

#[tokio::test]
async fn failures_are_retried_rejected_or_skipped_and_told() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let delivery = json!({ "ackStrategy": "RETRY_ALL", "retries": 2, "pauseBetweenRetriesSec": 0 });
    world.apply_with(id, true, 1, &delivery).await;
    let texts = ["a", "retry 2", "retry 3", "reject it", "b"].map(ToOwned::to_owned);
    world.publish(id, texts).await;
    let executor = world.executor("ie1").await;
    world.until("all settled", |state| state.delivered(id).len() == 3 && state.errors(id).len() == 6).await;
    executor.drain().await;
    assert_eq!(world.committed(id).await, Some((5, 1)));
    let state = world.state.borrow();
    let count = |text| state.errors(id).iter().filter(|(_, error, _)| *error == text).count();
    assert_eq!((count("retry 2"), count("retry 3"), count("reject it")), (2, 3, 1));
}

#[tokio::test]
async fn an_unreadable_message_is_skipped_and_a_gap_is_told_once() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    world.publish(id, numbers(0..10)).await;
    let topic = world.catalogue.messages(id, 1).name;
    world.put(&topic, b"t", b"\xff\xff", &[]).await;
    world.publish(id, numbers(10..12)).await;
    world.apply(id, false).await;
    let executor = world.executor("ie1").await;
    world.apply(id, true).await;
    world.until("all that can be read", |state| state.delivered(id).len() == 12).await;
    world.apply(id, false).await;
    world.until("stopped", |state| state.lifecycle(id).iter().any(|(word, _)| *word == Word::Stopped)).await;
    assert_eq!(world.committed(id).await, Some((13, 1)));
    world.publish(id, numbers(12..20)).await;
    let partition = TopicPartition::new(topic, 0);
    world.bus.admin().delete_records(&partition, 18).await.unwrap();
    world.apply(id, true).await;
    world.until("what retention left", |state| state.delivered(id).len() == 15).await;
    world.until("both are told", |state| state.errors(id).len() >= 2).await;
    executor.drain().await;
    let state = world.state.borrow();
    let errors = state.errors(id);
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert_eq!((errors[0].0, errors[0].2), ("onMsgProcess", 1));
    let place = format!("record {partition}-10 can't be understood");
    assert!(errors[0].1.starts_with(&place), "{}", errors[0].1);
    assert_eq!((errors[1].0, errors[1].2), ("expired", 5));
    assert!(errors[1].1.contains("13 to 17"), "{}", errors[1].1);
}

#[tokio::test]
async fn what_retention_removed_before_the_first_start_is_told_as_a_gap() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    world.publish(id, numbers(0..10)).await;
    let partition = TopicPartition::new(world.catalogue.messages(id, 1).name, 0);
    world.bus.admin().delete_records(&partition, 4).await.unwrap();
    world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until("the rest", |state| state.delivered(id).len() == 6).await;
    world
        .until("the gap", |state| {
            state.errors(id).iter().any(|(method, _, count)| (*method, *count) == ("expired", 4))
        })
        .await;
    executor.drain().await;
}

#[tokio::test]
async fn while_the_remote_end_is_away_nothing_is_submitted_and_nothing_fails() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    world.change(|state| state.is_away = true);
    let revision = world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until_word(id, Word::Started, revision).await;
    world.publish(id, numbers(0..2000)).await;
    assert_eq!(world.state.borrow().deliveries, []);
    world.change(|state| state.is_away = false);
    world.until("all", |state| state.delivered(id).len() == 2000).await;
    assert_eq!(world.state.borrow().errors(id), []);
    executor.drain().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_when_the_remote_end_goes_away_is_not_given_up_before_it_is_back() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until_word(id, Word::Started, revision).await;
    world.publish(id, ["hang it".to_owned()]).await;
    // The clock stands still until everybody waits: the message is in flight.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.change(|state| state.is_away = true);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.state.borrow().errors(id), []);
    world.change(|state| state.is_away = false);
    // The timeout of an attempt, anew.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(world.state.borrow().errors(id), []);
    world.until("it times out", |state| state.errors(id).len() == 1).await;
    executor.drain().await;
}

#[tokio::test]
async fn a_failed_start_is_told_and_tried_anew() {
    let mut world = World::new().await;
    world.config.integrations.reinit.frequency = 50;
    let id = new_id();
    world.create_messages(id).await;
    world.change(|state| state.refuse = Some("no way".to_owned()));
    let revision = world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until_word(id, Word::Failed, revision).await;
    world.until_word(id, Word::Reinit, revision).await;
    world.change(|state| state.refuse = None);
    world.until_word(id, Word::Started, revision).await;
    executor.drain().await;
}

#[tokio::test]
async fn a_sink_that_panics_fails_alone_and_is_tried_anew() {
    let mut world = World::new().await;
    world.config.integrations.reinit.frequency = 50;
    let (bad, good) = (new_id(), new_id());
    for id in [bad, good] {
        world.create_messages(id).await;
        world.apply(id, true).await;
    }
    world.publish(bad, ["panic".to_owned()]).await;
    let executor = world.executor("ie1").await;
    world
        .until("it failed and was tried anew", |state| {
            let words: Vec<_> = state.lifecycle(bad).into_iter().map(|(word, _)| word).collect();
            words.contains(&Word::Failed) && words.contains(&Word::Reinit)
        })
        .await;
    world.publish(good, numbers(0..100)).await;
    world.until("the other one runs", |state| state.delivered(good).len() == 100).await;
    executor.drain().await;
}

#[tokio::test]
async fn executors_announce_their_kinds_together_and_say_that_they_live_and_leave() {
    let world = World::new().await;
    let first = world.executor("ie1").await;
    let second = world.executor("ie2").await;
    let kinds = world.catalogue.kinds();
    world.create_topic(&kinds).await;
    let applied = world.catalogue.node_applied();
    world.bus.admin().create_topic(&spec_of(&applied, 1)).await.unwrap();
    let mut reader = world.bus.reader(ReaderConfig::new("test", None)).await.unwrap();
    for topic in [&kinds.name, &applied.name] {
        reader.add(&TopicPartition::new(topic.clone(), 0), Start::Earliest);
    }
    let mut announced = BTreeSet::new();
    let mut positions = BTreeSet::new();
    let mut left = false;
    let mut first = Some(first);
    while announced.len() < 2 || positions.len() < 48 || !left {
        if announced.len() == 2
            && positions.len() == 48
            && let Some(first) = first.take()
        {
            first.drain().await;
        }
        let ReaderEvent::Batch { partition, records } = reader.next().await else { continue };
        for record in records {
            let value = record.value.unwrap();
            if *partition.topic == *kinds.name {
                let announcement = KindAnnouncement::decode(value).unwrap();
                assert_eq!((announcement.kind.as_str(), announcement.schema_hash.len()), ("TEST", 64));
                announced = announcement.service_ids.into_iter().collect();
            } else {
                let applied = NodeApplied::decode(value).unwrap();
                assert_eq!(applied.kinds, ["TEST"]);
                positions.extend(applied.positions.iter().map(|position| position.partition));
                left |= applied.leaving && applied.service_id == "ie1";
            }
        }
    }
    second.drain().await;
}
