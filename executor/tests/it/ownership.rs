//! Claims, the lease, shards: who may run what, and until when (architecture §4.17-18).

use std::{collections::BTreeSet, time::Duration};

use prost::Message as _;
use tbmq_bus::{
    Bus, Commit, TopicPartition,
    fault::{Fault, FaultBus},
    spec_of,
};
use tbmq_integration::wire::CommitMetadata;
use tbmq_proto::{
    ids::IntegrationId,
    integration::{ComponentLifecycleEventProto as Word, NativeEvent, native_event::Body},
    topic::{Catalogue, DOWNLINK_PARTITIONS},
    wire::OwnerClaim,
};

use crate::world::{State, World, kind, new_id, numbers};

/// STARTED events of an integration, oldest first.
fn starts(state: &State, id: IntegrationId) -> Vec<&NativeEvent> {
    let is_start = |event: &NativeEvent| matches!(&event.body, Some(Body::Lifecycle(lifecycle)) if lifecycle.event() == Word::Started);
    let own = state.events.iter().filter(|(other, event)| *other == id && is_start(event));
    own.map(|(_, event)| event).collect()
}

async fn commit_of(world: &World, id: IntegrationId) -> Option<(u64, CommitMetadata)> {
    let partition = TopicPartition::new(world.catalogue.messages(id, 1).name, 0);
    let commits = world.bus.admin().committed(&world.catalogue.messages_group(), &[partition]).await.unwrap();
    let Commit { offset, metadata, .. } = commits.into_iter().next()?;
    Some((offset, CommitMetadata::from_text(&metadata).unwrap()))
}

/// How many claims an executor has written.
async fn claims_of(world: &World, service_id: &str) -> usize {
    let mut reader = world.bus.reader(tbmq_bus::ReaderConfig::new("claims", None)).await.unwrap();
    reader.add(&TopicPartition::new(world.catalogue.owners().name, 0), tbmq_bus::Start::Earliest);
    let mut count = 0;
    loop {
        match reader.next().await {
            tbmq_bus::ReaderEvent::Batch { records, .. } => {
                let claims = records.into_iter().filter_map(|record| OwnerClaim::decode(record.value?).ok());
                count += claims.filter(|claim| claim.service_id == service_id).count();
            }
            _ => return count,
        }
    }
}

async fn until_health(world: &World, is_up: bool) {
    let component = |health: Vec<(String, String)>| health.iter().any(|(name, _)| name == "executor.test");
    let waiting = async {
        while component(world.health.down()) == is_up {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the health changes");
}

#[tokio::test]
async fn without_a_lease_nothing_is_handed_over_and_nothing_committed_until_it_is_renewed() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    let bus = FaultBus::new(world.bus.clone(), 1);
    let executor = world.executor_on(bus.clone(), "ie1").await;
    world.until_word(id, Word::Started, revision).await;
    world.publish(id, numbers(0..10)).await;
    world.until("the first", |state| state.delivered(id).len() == 10).await;
    bus.plant(Fault::FailCommits);
    until_health(&world, false).await;
    world.publish(id, numbers(10..20)).await;
    // Long enough for what would be wrong: a hand-over takes a millisecond.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.state.borrow().delivered(id).len(), 10);
    bus.clear();
    until_health(&world, true).await;
    world.until("the others", |state| state.delivered(id).len() == 20).await;
    assert_eq!(world.state.borrow().delivered(id), numbers(0..20));
    assert_eq!(starts(&world.state.borrow(), id).len(), 1, "it only waited");
    executor.drain().await;
    assert_eq!(commit_of(&world, id).await.map(|(offset, _)| offset), Some(20));
}

#[tokio::test]
async fn a_later_claim_stops_what_runs_and_who_is_in_the_group_claims_anew() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until_word(id, Word::Started, revision).await;
    let first = starts(&world.state.borrow(), id)[0].ownership_epoch;
    // One that was assigned these before, and whose claims come late.
    let claim = OwnerClaim { service_id: "ie9".into(), incarnation: "old".into(), time_ms: 0 };
    for partition in 0..DOWNLINK_PARTITIONS {
        let key = Catalogue::owner_key(&kind(), partition);
        world.put(&world.catalogue.owners().name, key.as_bytes(), &claim.encode_to_vec(), &[]).await;
    }
    world.until("it starts under a later epoch", |state| starts(state, id).len() == 2).await;
    let second = starts(&world.state.borrow(), id)[1].ownership_epoch;
    assert!(second > first + u64::from(DOWNLINK_PARTITIONS), "{second} comes after the late claims");
    world.publish(id, numbers(0..10)).await;
    world.until("all", |state| state.delivered(id).len() == 10).await;
    executor.drain().await;
    let (offset, metadata) = commit_of(&world, id).await.expect("committed");
    assert_eq!((offset, metadata.epoch), (10, second));
}

#[tokio::test]
async fn of_two_with_one_service_id_the_newer_goes_on_and_the_older_ends_with_a_word() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    let mut older = world.executor("ie1").await;
    world.until_word(id, Word::Started, revision).await;
    let newer = world.executor("ie1").await;
    let error = tokio::time::timeout(Duration::from_secs(20), older.failed()).await.expect("it ends");
    let text = format!("{error:#}");
    assert!(text.contains("service id ie1") && text.contains("TB_SERVICE_ID"), "{text}");
    drop(older);
    world.until("the newer starts it", |state| starts(state, id).len() == 2).await;
    world.publish(id, numbers(0..10)).await;
    world.until("all", |state| state.delivered(id).len() == 10).await;
    newer.drain().await;
}

#[tokio::test]
async fn shards_are_spread_over_executors_and_only_those_of_a_crashed_one_move() {
    let mut world = World::new().await;
    world.config.queue.integration_downlink.session_timeout = Duration::from_millis(600);
    let id = new_id();
    world.create_topic(&world.catalogue.messages(id, 8)).await;
    let (one, two) = (world.executor("ie1").await, world.executor("ie2").await);
    world.apply_shards(id, 8).await;
    let shards_of = |state: &State, service_id: &str| -> BTreeSet<u32> {
        let own = starts(state, id).into_iter().filter(|event| event.service_id == service_id);
        own.map(|event| event.shard).collect()
    };
    world
        .until("all shards run", |state| {
            let (first, second) = (shards_of(state, "ie1"), shards_of(state, "ie2"));
            first.union(&second).count() == 8
        })
        .await;
    let texts: Vec<String> = (0..200).map(|n| format!("key {n:04}")).collect();
    world.publish(id, texts.clone()).await;
    world.until("all", |state| state.delivered(id).len() == 200).await;
    let delivered = |world: &World| -> BTreeSet<String> {
        world.state.borrow().delivered(id).into_iter().map(str::to_owned).collect()
    };
    assert_eq!(delivered(&world), texts.into_iter().collect::<BTreeSet<_>>(), "each once");
    let before: usize = starts(&world.state.borrow(), id).iter().filter(|e| e.service_id == "ie2").count();
    drop(one);
    world.until("the other has all", |state| shards_of(state, "ie2").len() == 8).await;
    let texts: Vec<String> = (200..400).map(|n| format!("key {n:04}")).collect();
    world.publish(id, texts).await;
    world.until("all", |state| state.delivered(id).into_iter().collect::<BTreeSet<_>>().len() == 400).await;
    let state = world.state.borrow();
    let after = starts(&state, id).iter().filter(|event| event.service_id == "ie2").count();
    let moved = 8 - before;
    assert_eq!(after, before + moved, "those that ran where they were were not disturbed");
    drop(state);
    two.drain().await;
}

#[tokio::test]
async fn a_topic_that_was_made_anew_meanwhile_is_read_from_its_beginning() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until_word(id, Word::Started, revision).await;
    world.publish(id, numbers(0..10)).await;
    world.until("the first", |state| state.delivered(id).len() == 10).await;
    executor.drain().await;
    let old = commit_of(&world, id).await.expect("committed");
    let topic = world.catalogue.messages(id, 1);
    let admin = world.bus.admin();
    admin.delete_topic(&topic.name).await.unwrap();
    admin.create_topic(&spec_of(&topic, 1)).await.unwrap();
    world.publish(id, numbers(100..130)).await;
    // A bus that keeps the offsets of deleted topics, or an executor whose last commit came after the deletion.
    let mut reader = world
        .bus
        .reader(tbmq_bus::ReaderConfig::new("t", Some(world.catalogue.messages_group())))
        .await
        .unwrap();
    let partition = TopicPartition::new(topic.name.clone(), 0);
    reader.commit(vec![Commit { partition, offset: old.0, metadata: old.1.to_text() }]).await.unwrap();
    let executor = world.executor("ie1").await;
    world.until("all of the new topic", |state| state.delivered(id).len() >= 40).await;
    assert_eq!(world.state.borrow().delivered(id)[10..], numbers(100..130));
    executor.drain().await;
}

#[tokio::test]
async fn what_was_lost_while_it_was_handed_over_and_assigned_again_runs_again() {
    let mut world = World::new().await;
    world.config.integrations.destroy.graceful_timeout_ms = 100;
    let ids: Vec<IntegrationId> = (0..8).map(|_| new_id()).collect();
    for id in &ids {
        world.create_messages(*id).await;
        world.apply(*id, true).await;
        // In flight for ever: handing over takes as long as it may.
        world.publish(*id, ["hang it".to_owned()]).await;
    }
    let bus = FaultBus::new(world.bus.clone(), 1);
    let one = world.executor_on(bus.clone(), "ie1").await;
    world.until("all run", |state| ids.iter().all(|id| starts(state, *id).len() == 1)).await;
    let two = world.executor("ie2").await;
    for _ in 0..5 {
        let before = claims_of(&world, "ie1").await;
        bus.lose_memberships(&world.catalogue.downlink_group(&kind()));
        let again = async {
            while claims_of(&world, "ie1").await == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.expect("it claims again");
    }
    for id in &ids {
        world.publish(*id, numbers(0..3)).await;
    }
    world.until("each delivers", |state| ids.iter().all(|id| state.delivered(*id).len() >= 3)).await;
    drop(two);
    drop(one);
}

#[tokio::test(start_paused = true)]
async fn an_offset_that_a_late_commit_set_back_is_committed_anew() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    let executor = world.executor("ie1").await;
    world.until_word(id, Word::Started, revision).await;
    world.publish(id, numbers(0..10)).await;
    let until_committed = async || {
        let committed = async {
            while commit_of(&world, id).await.is_none_or(|(offset, _)| offset != 10) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), committed).await.expect("all is committed");
    };
    until_committed().await;
    let partition = TopicPartition::new(world.catalogue.messages(id, 1).name, 0);
    let group = Some(world.catalogue.messages_group());
    let mut frozen = world.bus.reader(tbmq_bus::ReaderConfig::new("frozen", group)).await.unwrap();
    let metadata = CommitMetadata { generation: 1, ..CommitMetadata::default() }.to_text();
    frozen.commit(vec![Commit { partition, offset: 3, metadata }]).await.unwrap();
    until_committed().await;
    executor.drain().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_was_fenced_by_no_newer_process_joins_again() {
    let world = World::new().await;
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    let bus = FaultBus::new(world.bus.clone(), 1);
    let executor = world.executor_on(bus.clone(), "ie1").await;
    world.until_word(id, Word::Started, revision).await;
    bus.fence_memberships(&world.catalogue.downlink_group(&kind()), "ie1");
    world.until("it starts again", |state| starts(state, id).len() == 2).await;
    world.publish(id, numbers(0..10)).await;
    world.until("all", |state| state.delivered(id).len() == 10).await;
    executor.drain().await;
}
