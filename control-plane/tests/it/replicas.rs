//! Two control planes on one PostgreSQL and one bus.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use tbmq_control_plane::{Config, config::DatabaseUrl};
use tbmq_harness::{Need, ready};
use tbmq_proto::{
    control::{CreateIntegrationRequest, ListEventsRequest, ListNodesRequest},
    integration::{ComponentLifecycleEventProto as Lifecycle, NativeEvent},
    wire::Role,
};
use uuid::Uuid;

use crate::{
    postgres::options,
    support::{Cluster, ControlPlane, Verdict, eventually, id_of, integration, phase},
};

/// Starts `cp1`, which leads, and `cp2`.
async fn replicas(
    cluster: &Cluster,
    first: impl FnOnce(&mut Config),
    second: impl FnOnce(&mut Config),
) -> (ControlPlane, ControlPlane) {
    let url = DatabaseUrl::new(options().url);
    let on = |config: &mut Config| config.database.url = Some(url.clone());
    let configure = |config: &mut Config| {
        on(config);
        first(config);
    };
    let leader = cluster.control_plane_with("cp1", configure).await;
    // It leads when it has written something.
    let _executor = cluster.executor(Verdict::Accept).await;
    let probe = leader.create("probe").await.unwrap();
    let subscriptions = cluster.catalogue.integration_subscriptions().name;
    eventually("the first leads", async || cluster.latest(&subscriptions).await.contains_key(&probe.uid))
        .await;
    leader.delete(&probe.name).await.unwrap();
    let configure = |config: &mut Config| {
        on(config);
        second(config);
    };
    let other = cluster.control_plane_with("cp2", configure).await;
    (leader, other)
}

#[tokio::test]
async fn replies_reach_the_replica_that_asked() {
    if !ready("replies_reach_the_replica_that_asked", &[Need::Postgres]) {
        return;
    }
    let cluster = Cluster::new();
    let (first, second) = replicas(&cluster, |_| {}, |_| {}).await;
    let executor = cluster.executor(Verdict::Accept).await;
    let create = async |plane: &ControlPlane, id: &str| {
        for i in 0..10 {
            plane.create(&format!("{id} {i}")).await.unwrap();
        }
    };
    tokio::join!(create(&first, "cp1"), create(&second, "cp2"));
    let mut requests = executor.requests.lock().clone();
    requests.retain(|request| request.name != "probe");
    for request in &requests {
        assert!(request.name.starts_with(&request.reply_to), "{} for {}", request.reply_to, request.name);
    }
    let of = |id: &str| requests.iter().filter(|request| request.reply_to == id).count();
    assert_eq!((of("cp1"), of("cp2")), (10, 10), "each was asked once");
    assert_eq!(first.list().await, second.list().await);
}

#[tokio::test]
async fn when_the_leader_dies_the_other_leads_within_15_s_and_does_all_its_work() {
    if !ready("when_the_leader_dies_the_other_leads_within_15_s_and_does_all_its_work", &[Need::Postgres]) {
        return;
    }
    let cluster = Cluster::new();
    // What the first never does shows that the other leads.
    let (first, second) = replicas(
        &cluster,
        |config| {
            config.integrations.cleanup.ttl = -1;
            config.sql.ttl.events.enabled = false;
        },
        |config| {
            config.integrations.cleanup.period = NonZeroU64::MIN;
            config.integrations.cleanup.ttl = 1;
            config.sql.ttl.events.enabled = true;
            config.sql.ttl.events.ttl_sec = 1;
            config.sql.ttl.events.execution_interval_ms = NonZeroU64::new(500).unwrap();
        },
    )
    .await;
    let executor = cluster.executor(Verdict::Accept).await;
    let kept = first.create("kept").await.unwrap();
    let lost = first.create("lost").await.unwrap();
    let parked = first.create("parked").await.unwrap();
    for created in [&kept, &lost, &parked] {
        eventually("running", async || phase(&second.get(&created.name).await.unwrap()) == "PHASE_ACTIVE")
            .await;
    }
    let disabled = first.enable(&parked.name, false).await.unwrap();
    eventually("it has stopped", async || {
        executor.held(id_of(&parked)).is_some_and(|held| held.revision == disabled.revision)
    })
    .await;
    let id = id_of(&kept);
    let old = executor.events().lifecycle(id, kept.revision, Lifecycle::Started, None).await;
    let event_id = Uuid::now_v7();
    let old = NativeEvent { event_id: event_id.as_bytes().to_vec().into(), time_ms: 5, ..old };
    executor.events().send(id, old).await;
    let has_old_event = async || {
        let request = ListEventsRequest { integration: kept.name.clone(), ..ListEventsRequest::default() };
        let events = second.events.clone().list_events(request).await.unwrap().into_inner().events;
        events.iter().any(|event| event.uid == event_id.to_string())
    };
    eventually("there is an old event", has_old_event).await;
    let topic = cluster.catalogue.messages(id_of(&parked), 1).name;
    assert!(cluster.exists(&topic).await);

    let died = Instant::now();
    drop(first);
    // Somebody's mistake that only reconciliation finds.
    let subscriptions = cluster.catalogue.integration_subscriptions().name;
    cluster.put_at(&subscriptions, Some(0), &lost.uid, None).await;
    let changed = second.enable(&kept.name, false).await.unwrap();
    eventually("changes are relayed", async || {
        executor.held(id_of(&kept)).is_some_and(|held| held.revision == changed.revision)
    })
    .await;
    let took = died.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    eventually("parked", async || !cluster.exists(&topic).await).await;
    eventually("old events are deleted", async || !has_old_event().await).await;
    eventually("reconciled", async || cluster.latest(&subscriptions).await[&lost.uid].1.is_some()).await;
}

#[tokio::test]
async fn creating_waits_for_every_live_data_plane_and_names_the_silent_one() {
    if !ready("creating_waits_for_every_live_data_plane_and_names_the_silent_one", &[Need::Postgres]) {
        return;
    }
    let cluster = Cluster::new();
    let patient = |config: &mut Config| config.control.apply_timeout = Duration::from_secs(2);
    // The one that does not relay is asked.
    let (first, second) = replicas(&cluster, patient, patient).await;
    let _executor = cluster.executor(Verdict::Accept).await;
    for id in ["dp1", "dp2"] {
        cluster.say_alive(id, Role::DataPlane, &[], Some(0)).await;
    }
    for plane in [&first, &second] {
        eventually("known", async || {
            let nodes = plane.nodes.clone().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes;
            nodes.iter().filter(|node| node.role == "DATA_PLANE" && node.live).count() == 2
        })
        .await;
    }
    let subscriptions = cluster.catalogue.integration_subscriptions().name;
    let create = async |name: &str, applying: &[&str]| {
        let request = CreateIntegrationRequest { integration: Some(integration(name)), ..Default::default() };
        let mut client = second.integrations.clone();
        let creating = tokio::spawn(async move { client.create_integration(request).await });
        let known = async || cluster.latest(&subscriptions).await.len();
        let before = known().await;
        eventually("written", async || known().await > before).await;
        assert!(!creating.is_finished(), "nobody has applied it");
        for id in applying {
            cluster.say_alive(id, Role::DataPlane, &[], Some(1_000)).await;
        }
        let began = Instant::now();
        let response = creating.await.unwrap().unwrap();
        let silent =
            response.metadata().get("tbmq-silent-nodes").map(|text| text.to_str().unwrap().to_owned());
        (silent, began.elapsed())
    };
    let (silent, took) = create("one", &["dp1"]).await;
    assert_eq!(silent.as_deref(), Some("dp2"));
    assert!(took > Duration::from_secs(1), "{took:?}");
    cluster.say_alive("dp1", Role::DataPlane, &[], Some(0)).await;
    let (silent, took) = create("two", &["dp1", "dp2"]).await;
    assert_eq!(silent, None);
    assert!(took < Duration::from_secs(2), "{took:?}");
}
