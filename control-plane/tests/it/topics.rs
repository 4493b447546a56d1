//! Topics that others delete while a control plane leads.

use tbmq_bus::{Bus as _, spec_of};

use crate::support::{Cluster, Verdict, eventually, id_of, phase};

#[tokio::test]
async fn a_message_topic_that_vanishes_comes_back_under_the_next_generation() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let (lost, kept) = (plane.create("lost").await.unwrap(), plane.create("kept").await.unwrap());
    let topic = cluster.catalogue.messages(id_of(&lost), 1).name;
    eventually("running", async || phase(&plane.get(&lost.name).await.unwrap()) == "PHASE_ACTIVE").await;
    cluster.bus.admin().delete_topic(&topic).await.unwrap();
    eventually("a new generation", async || executor.held(id_of(&lost)).unwrap().generation == 2).await;
    assert!(cluster.exists(&topic).await);
    let read = plane.get(&lost.name).await.unwrap();
    assert!(read.revision > lost.revision, "or executors would take it for a repetition");
    assert_eq!(executor.held(id_of(&lost)).unwrap().revision, read.revision);
    assert_eq!(executor.held(id_of(&kept)).unwrap().revision, kept.revision, "nothing happens to others");
}

#[tokio::test]
async fn configuration_that_is_lost_is_written_again_from_the_store() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let one = plane.create("one").await.unwrap();
    let two = plane.create("two").await.unwrap();
    eventually("running", async || phase(&plane.get(&two.name).await.unwrap()) == "PHASE_ACTIVE").await;
    let subscriptions = cluster.catalogue.integration_subscriptions();
    let downlink = cluster.catalogue.downlink(&"HTTP".parse().unwrap());
    // One is missing; the other was made anew by somebody, and is written to by the relayer meanwhile.
    let admin = cluster.bus.admin();
    admin.delete_topic(&downlink.name).await.unwrap();
    admin.delete_topic(&subscriptions.name).await.unwrap();
    admin.create_topic(&spec_of(&subscriptions, 1)).await.unwrap();
    plane.enable(&two.name, false).await.unwrap();
    eventually("all is there again", async || {
        let (subscriptions, downlink) = (&subscriptions.name, &downlink.name);
        if !cluster.exists(downlink).await {
            return false;
        }
        let (subscribed, desired) = (cluster.latest(subscriptions).await, cluster.latest(downlink).await);
        [&one, &two].iter().all(|integration| {
            let is_there =
                |found: Option<&(Option<u64>, Option<_>)>| found.is_some_and(|(_, value)| value.is_some());
            is_there(subscribed.get(&integration.uid)) && is_there(desired.get(&integration.uid))
        })
    })
    .await;
    drop(executor);
}
