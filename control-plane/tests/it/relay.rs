//! What is in the store reaches the bus, whoever relays and whatever was lost.

use std::{num::NonZeroU64, time::Duration};

use tbmq_bus::memory::MemoryBus;
use tbmq_integration::wire::Change;

use crate::support::{Cluster, Verdict, eventually, id_of, phase};

#[tokio::test]
async fn another_control_plane_takes_over_and_serves_the_same_integrations() {
    let cluster = Cluster::new();
    let first = cluster.control_plane("cp1").await;
    let second = cluster.control_plane("cp2").await;
    let executor = cluster.executor(Verdict::Accept).await;
    // The second replica validates and saves; the first relays.
    let created = second.create("one").await.unwrap();
    eventually("running", async || phase(&first.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    first.running.drain().await;
    let disabled = second.enable(&created.name, false).await.unwrap();
    eventually("the successor relays", async || {
        executor.held(id_of(&created)).is_some_and(|held| held.revision == disabled.revision)
    })
    .await;
}

#[tokio::test]
async fn a_long_disabled_integration_loses_its_topic_and_gets_a_new_one_when_enabled() {
    let cluster = Cluster::new();
    let plane = cluster
        .control_plane_with("cp1", |config| {
            config.integrations.cleanup.period = NonZeroU64::MIN;
            config.integrations.cleanup.ttl = 1;
        })
        .await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let id = id_of(&created);
    let topic = cluster.catalogue.messages(id, 1).name;
    let subscriptions = cluster.catalogue.integration_subscriptions().name;
    eventually("running", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    plane.enable(&created.name, false).await.unwrap();
    eventually("parked", async || !cluster.exists(&topic).await).await;
    assert!(cluster.latest(&subscriptions).await[&created.uid].1.is_none());
    plane.enable(&created.name, true).await.unwrap();
    eventually("running", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    assert!(cluster.exists(&topic).await);
    assert!(cluster.latest(&subscriptions).await[&created.uid].1.is_some());
    assert_eq!(executor.held(id).unwrap().generation, 2);
}

#[tokio::test]
async fn after_the_loss_of_the_bus_everything_is_projected_anew() {
    let mut cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let kept = plane.create("kept").await.unwrap();
    plane.running.drain().await;
    drop(executor);
    cluster.bus = MemoryBus::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    eventually("held again", async || executor.held(id_of(&kept)).is_some()).await;
    assert_eq!(executor.held(id_of(&kept)).unwrap().generation, 2, "another topic, another generation");
    assert!(cluster.exists(&cluster.catalogue.messages(id_of(&kept), 1).name).await);
    let subscriptions = cluster.catalogue.integration_subscriptions().name;
    assert!(cluster.latest(&subscriptions).await[&kept.uid].1.is_some());
    assert_eq!(plane.list().await.len(), 1);
}

#[tokio::test]
async fn what_lies_on_the_bus_without_standing_in_the_store_is_withdrawn() {
    let old = Cluster::new();
    let plane = old.control_plane("cp1").await;
    let executor = old.executor(Verdict::Accept).await;
    let orphan = plane.create("orphan").await.unwrap();
    let id = id_of(&orphan);
    eventually("running", async || phase(&plane.get(&orphan.name).await.unwrap()) == "PHASE_ACTIVE").await;
    plane.running.drain().await;
    // The same bus, an empty store.
    let new = Cluster { bus: old.bus.clone(), ..Cluster::new() };
    let plane = new.control_plane("cp1").await;
    eventually("dismissed", async || executor.held(id).unwrap().change == Change::Deleted).await;
    let subscriptions = new.catalogue.integration_subscriptions().name;
    assert!(new.latest(&subscriptions).await[&orphan.uid].1.is_none());
    assert!(new.exists(&new.catalogue.messages(id, 1).name).await, "messages are not deleted");
    let created = tokio::time::timeout(Duration::from_secs(10), plane.create("new")).await.unwrap().unwrap();
    assert!(created.revision > orphan.revision, "revisions go on above what nodes have seen");
}

#[tokio::test]
async fn the_older_of_two_control_planes_with_one_id_ends_and_says_why() {
    let cluster = Cluster::new();
    let mut older = cluster.control_plane("cp1").await;
    let newer = cluster.control_plane("cp1").await;
    let error = tokio::time::timeout(Duration::from_secs(10), older.running.failed()).await.unwrap();
    for part in ["service id cp1 ", "TB_SERVICE_ID of its own"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    older.running.drain().await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let created = newer.create("one").await.unwrap();
    eventually("running", async || phase(&newer.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
}
