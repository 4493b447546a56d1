//! Records of the uplink that come twice, late, or with the time of a clock that jumped.

use bytes::Bytes;
use tbmq_proto::{
    control::{ListEventsRequest, event::Body as Shown},
    integration::{
        ComponentLifecycleEventProto as Event, LifecycleEvent, NativeEvent, native_event::Body as Native,
    },
};
use uuid::Uuid;

use crate::support::{Cluster, ControlPlane, Verdict, eventually, id_of, phase};

const DAY_MS: i64 = 86_400_000;

async fn names(plane: &ControlPlane, name: &str) -> Vec<String> {
    let request = ListEventsRequest { integration: name.to_owned(), page_size: 100, ..Default::default() };
    let events = plane.events.clone().list_events(request).await.unwrap().into_inner().events;
    let name = |body| match body {
        Shown::Lifecycle(lifecycle) => lifecycle.event,
        other => panic!("{other:?}"),
    };
    events.into_iter().filter_map(|event| event.body).map(name).collect()
}

#[tokio::test]
async fn a_delayed_event_never_overwrites_a_newer_one_whatever_clocks_say() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.control_plane("cp1").await, cluster.control_plane("cp2").await);
    let executor = cluster.executor(Verdict::Accept).await;
    let created = first.create("one").await.unwrap();
    let id = id_of(&created);
    eventually("running", async || phase(&first.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;

    let now_ms = tbmq_service::time::now_ms();
    let event = |epoch: u64, seq: u64, age_ms: i64, event: Event, error: Option<&str>| NativeEvent {
        event_id: Bytes::copy_from_slice(Uuid::now_v7().as_bytes()),
        shard: 0,
        revision: created.revision,
        ownership_epoch: epoch,
        incarnation: "1".to_owned(),
        seq,
        time_ms: now_ms - age_ms,
        service_id: "ie1".to_owned(),
        body: Some(Native::Lifecycle(LifecycleEvent {
            event: event.into(),
            success: error.is_none(),
            error: error.map(ToOwned::to_owned),
        })),
    };
    // The newest comes first, from a clock that has gone back by ten days; what it replaced comes later, dated ahead.
    let newest = event(9, 2, 10 * DAY_MS, Event::Failed, Some("the newest"));
    let older = [
        event(9, 1, -DAY_MS, Event::Started, None),
        event(8, 700, -2 * DAY_MS, Event::Stopped, None),
        event(5, 900, 0, Event::Started, None),
    ];
    executor.events().send(id, newest.clone()).await;
    for delayed in older.iter().chain([&newest]).chain(older.iter().rev()) {
        executor.events().send(id, delayed.clone()).await;
    }
    // One more, so that all of them were read.
    let last = event(7, 1, 0, Event::Reinit, None);
    executor.events().send(id, last).await;
    for plane in [&first, &second] {
        eventually("all are stored", async || {
            names(plane, &created.name).await.contains(&"REINIT".to_owned())
        })
        .await;
        let shown = plane.get(&created.name).await.unwrap();
        let status = shown.status.clone().unwrap();
        assert_eq!((phase(&shown), status.error.as_str()), ("PHASE_FAILED", "the newest"));
        assert_eq!((status.holders[0].ownership_epoch, status.holders[0].state.as_str()), (9, "FAILED"));
        assert_eq!(status.holders[0].update_time.unwrap().seconds, (now_ms - 10 * DAY_MS).div_euclid(1_000));
        // Created and started by the executor of the tests, and each of these once.
        let mut names = names(plane, &created.name).await;
        names.sort_unstable();
        assert_eq!(names, ["CREATED", "FAILED", "REINIT", "STARTED", "STARTED", "STARTED", "STOPPED"]);
    }
    // Only what is newer moves it on.
    executor.events().send(id, event(9, 3, 20 * DAY_MS, Event::Started, None)).await;
    eventually("it runs", async || phase(&second.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
}
