//! Whom a status names, as executors claim, die and come back.

use tbmq_bus::fault::FaultBus;
use tbmq_proto::{
    control::Holder, ids::ShardId, integration::ComponentLifecycleEventProto as Event, partition, wire::Role,
};

use crate::support::{Cluster, ControlPlane, Verdict, eventually, id_of, phase};

/// Phase, reason, and of the holder: who, state, epoch.
async fn seen(plane: &ControlPlane, name: &str) -> (String, String, Vec<(String, String, u64)>) {
    let integration = plane.get(name).await.unwrap();
    let phase = phase(&integration).to_owned();
    let status = integration.status.unwrap();
    let holder = |holder: Holder| (holder.service_id, holder.state, holder.ownership_epoch);
    (phase, status.reason, status.holders.into_iter().map(holder).collect())
}

fn expected(
    phase: &str,
    reason: &str,
    by: &str,
    state: &str,
    epoch: u64,
) -> (String, String, Vec<(String, String, u64)>) {
    (phase.to_owned(), reason.to_owned(), vec![(by.to_owned(), state.to_owned(), epoch)])
}

#[tokio::test]
async fn a_status_never_shows_an_owner_that_a_later_claim_replaced_on_any_replica() {
    let cluster = Cluster::new();
    let first = cluster.control_plane("cp1").await;
    let second = cluster.control_plane("cp2").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = first.create("one").await.unwrap();
    let shard = ShardId::first(id_of(&created));
    let home = partition::for_shard(&shard, 1, 48);
    let shown = async |expected: (String, String, Vec<(String, String, u64)>)| {
        for plane in [&first, &second] {
            eventually(&format!("{expected:?}"), async || seen(plane, &created.name).await == expected).await;
        }
    };
    // The executor of the tests reports under epoch 5.
    let mut epoch = 0;
    while epoch < 5 {
        epoch = cluster.claim("ie1", home).await;
    }
    shown(expected("PHASE_ACTIVE", "RUNNING", "ie1", "STARTED", 5)).await;
    // Of another partition.
    cluster.claim("ie2", (home + 1) % 48).await;
    cluster.say_alive("ie2", Role::Executor, &["HTTP"], None).await;
    let epoch = cluster.claim("ie2", home).await;
    shown(expected("PHASE_PENDING", "WAITS_FOR_EXECUTOR", "ie2", "PENDING", epoch)).await;
    // A former owner's word is void; the new owner's counts (the executor of the tests signs as ie1 throughout).
    executor.events().lifecycle(shard.integration, created.revision, Event::Started, None).await;
    executor.events().report(shard, epoch, created.revision, Event::Started, None).await;
    shown(expected("PHASE_ACTIVE", "RUNNING", "ie1", "STARTED", epoch)).await;
    let epoch = cluster.claim("ie3", home).await;
    shown(expected("PHASE_PENDING", "EXECUTOR_SILENT", "ie3", "SILENT", epoch)).await;
    cluster.say_alive("ie3", Role::Executor, &["HTTP"], None).await;
    shown(expected("PHASE_PENDING", "WAITS_FOR_EXECUTOR", "ie3", "PENDING", epoch)).await;
}

#[tokio::test]
async fn a_control_plane_that_was_fenced_by_no_newer_process_reads_events_again() {
    let cluster = Cluster::new();
    let bus = FaultBus::new(cluster.bus.clone(), 1);
    let plane = cluster.control_plane_on(bus.clone(), "cp1", |_| {}).await;
    let _executor = cluster.executor(Verdict::Accept).await;
    bus.fence_memberships(&cluster.catalogue.uplink_group(), "cp1");
    let created = plane.create("one").await.unwrap();
    eventually("what its executor said is known", async || {
        phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE"
    })
    .await;
}
