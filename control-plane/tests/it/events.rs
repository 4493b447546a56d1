//! `EventService`: lists, watches and clears, on one replica what was stored through another.

use std::{collections::BTreeSet, num::NonZeroUsize, time::Duration};

use tbmq_control_plane::store::{EventBody, EventRow};
use tbmq_harness::{Need, ready};
use tbmq_proto::{
    control::{
        ClearEventsRequest, Event, EventFilter, EventType, ListEventsRequest, WatchEventsRequest,
        WatchEventsResponse, WatchIntegrationsRequest, event::Body, event_service_client::EventServiceClient,
    },
    ids::IntegrationId,
    integration::{
        ComponentLifecycleEventProto as Lifecycle, ErrorEvent, NativeEvent, native_event::Body as Native,
    },
};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    event_log::{event, failure},
    support::{ControlPlane, Verdict, eventually, fields, id_of, phase, reason},
    watch::Shared,
};

/// The messages of a watch.
struct Watch(Streaming<WatchEventsResponse>);

impl Watch {
    async fn begin(plane: &ControlPlane, request: WatchEventsRequest) -> Result<Self, Status> {
        plane.events.clone().watch_events(request).await.map(|answer| Self(answer.into_inner()))
    }

    async fn after(plane: &ControlPlane, after_sequence: Option<u64>) -> Result<Self, Status> {
        Self::begin(plane, WatchEventsRequest { after_sequence, ..Default::default() }).await
    }

    async fn next(&mut self) -> Result<WatchEventsResponse, Status> {
        let message = tokio::time::timeout(Duration::from_secs(20), self.0.message()).await;
        message
            .expect("a message or the end")?
            .ok_or_else(|| Status::unknown("the watch ended without a word"))
    }

    /// The next event with its number.
    async fn event(&mut self) -> Result<(Event, u64), Status> {
        loop {
            let WatchEventsResponse { event, sequence } = self.next().await?;
            if let Some(event) = event {
                return Ok((event, sequence));
            }
        }
    }

    async fn told(&mut self) -> (Event, u64) {
        tokio::time::timeout(Duration::from_secs(20), self.event()).await.expect("another event").unwrap()
    }

    async fn bookmark(&mut self) -> u64 {
        loop {
            let message = self.next().await.unwrap();
            if message.event.is_none() {
                return message.sequence;
            }
        }
    }
}

fn anybody() -> IntegrationId {
    IntegrationId(Uuid::new_v4())
}

fn now_ms() -> i64 {
    tbmq_service::time::now_ms()
}

fn errors(of: IntegrationId, count: usize, text: &str) -> Vec<EventRow> {
    (0..count).map(|_| event(of, now_ms(), failure(text))).collect()
}

fn uid(event: &Event) -> Uuid {
    event.uid.parse().unwrap()
}

fn uids(events: &[EventRow]) -> Vec<Uuid> {
    events.iter().map(|event| event.event_id).collect()
}

async fn list(plane: &ControlPlane, request: ListEventsRequest) -> Vec<Event> {
    plane.events.clone().list_events(request).await.unwrap().into_inner().events
}

async fn another_replica_tells_each_event_once(shared: Shared) {
    let storing = shared.replica("cp1", |_| {}).await;
    let watching = shared.replica("cp2", |_| {}).await;
    let executor = shared.cluster.executor(Verdict::Accept).await;
    let mut watch = Watch::after(&watching, None).await.unwrap();
    let begin = watch.bookmark().await;
    let created = storing.create("one").await.unwrap();
    let id = id_of(&created);
    eventually("running", async || phase(&storing.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    // The uplink brings events again and out of order, of two owners.
    let report = |epoch, seq, event: Lifecycle, ago: i64| NativeEvent {
        event_id: Uuid::now_v7().as_bytes().to_vec().into(),
        shard: 0,
        revision: created.revision,
        ownership_epoch: epoch,
        incarnation: "1".to_owned(),
        seq,
        time_ms: now_ms() - ago,
        service_id: format!("ie{epoch}"),
        body: Some(Native::Lifecycle(tbmq_proto::integration::LifecycleEvent {
            event: event.into(),
            success: event != Lifecycle::Failed,
            error: (event == Lifecycle::Failed).then(|| "no route".to_owned()),
        })),
    };
    let stopped = report(7, 1_000, Lifecycle::Stopped, 5_000);
    let started = report(8, 1, Lifecycle::Started, 9_000);
    let failed = report(8, 2, Lifecycle::Failed, 1_000);
    for event in [&failed, &started, &failed, &stopped, &started, &stopped] {
        executor.events().send(id, event.clone()).await;
    }
    let mut told = Vec::new();
    let mut last = begin;
    while told.len() < 5 {
        let (event, sequence) = watch.told().await;
        assert!(sequence > last, "{sequence} comes after {last}");
        last = sequence;
        told.push(event);
    }
    let word = |event: &Event| match &event.body {
        Some(Body::Lifecycle(body)) => body.event.clone(),
        other => panic!("{other:?}"),
    };
    let words: Vec<String> = told.iter().map(word).collect();
    assert_eq!(words, ["CREATED", "STARTED", "FAILED", "STARTED", "STOPPED"], "as they came, each once");
    eventually("the last owner's last word", async || {
        let status = watching.get(&created.name).await.unwrap().status.unwrap();
        (status.error.as_str(), status.service_id.as_str()) == ("no route", "ie8")
    })
    .await;
    // By time in the list, and nothing twice there.
    let listed =
        list(&storing, ListEventsRequest { integration: created.name.clone(), ..Default::default() }).await;
    let mut by_time = told.clone();
    by_time.sort_by_key(|event| {
        let time = event.time.unwrap();
        std::cmp::Reverse((time.seconds, time.nanos, event.uid.clone()))
    });
    assert_eq!(listed, by_time);
    // Whoever resumes anywhere is told of the rest.
    for plane in [&storing, &watching] {
        let mut resumed = Watch::after(plane, Some(begin)).await.unwrap();
        for event in &told {
            assert_eq!(resumed.told().await.0, *event);
        }
    }
}

#[tokio::test]
async fn a_watch_on_another_replica_tells_each_event_once() {
    another_replica_tells_each_event_once(Shared::sqlite()).await;
}

#[tokio::test]
async fn a_watch_on_another_replica_tells_each_event_once_on_postgres() {
    if ready("a_watch_on_another_replica_tells_each_event_once_on_postgres", &[Need::Postgres]) {
        another_replica_tells_each_event_once(Shared::postgres()).await;
    }
}

#[tokio::test]
async fn a_watch_tells_only_of_what_was_asked_for_and_how_far_it_has_come() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let store = shared.store().await;
    let (one, two) = (anybody(), anybody());
    let request = WatchEventsRequest {
        integration: format!("integrations/{one}"),
        r#type: EventType::Error.into(),
        filter: Some(EventFilter { error: "REFUSED".to_owned(), ..EventFilter::default() }),
        after_sequence: None,
    };
    let mut watch = Watch::begin(&plane, request.clone()).await.unwrap();
    let begin = watch.bookmark().await;
    let statistics = EventBody::Statistics { messages_processed: 1, errors_occurred: 1 };
    store.store_events(&[event(one, now_ms(), statistics)]).await.unwrap();
    store.store_events(&errors(one, 250, "timeout")).await.unwrap();
    store.store_events(&errors(two, 1, "refused")).await.unwrap();
    let wanted = errors(one, 250, "Connection refused");
    store.store_events(&wanted).await.unwrap();
    store.store_events(&errors(two, 3, "refused")).await.unwrap();
    let end = store.event_sequence().await.unwrap();
    for event in &wanted {
        assert_eq!(uid(&watch.told().await.0), event.event_id);
    }
    // Numbers of others are passed.
    while watch.bookmark().await < end {}
    let mut resumed =
        Watch::begin(&plane, WatchEventsRequest { after_sequence: Some(begin), ..request }).await.unwrap();
    let mut again = Vec::new();
    while again.len() < wanted.len() {
        again.push(uid(&resumed.told().await.0));
    }
    assert_eq!(again, uids(&wanted));
}

#[tokio::test]
async fn a_slow_watcher_of_events_is_cut_and_resumes_without_loss() {
    const COUNT: usize = 1_500;
    let shared = Shared::sqlite();
    let patience = |config: &mut tbmq_control_plane::Config| {
        config.control.watch_patience = Duration::from_millis(200);
    };
    let slow = shared.replica("cp1", patience).await;
    let other = shared.replica("cp2", |_| {}).await;
    let store = shared.store().await;
    let all = errors(anybody(), COUNT, &"x".repeat(4_000));
    store.store_events(&all).await.unwrap();
    // Windows that are soon full.
    let (_, address) = slow.running.addresses()[0];
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let channel =
        channel.initial_stream_window_size(65_535).initial_connection_window_size(65_535).connect_lazy();
    let request = WatchEventsRequest { after_sequence: Some(0), ..Default::default() };
    let answer = EventServiceClient::new(channel).watch_events(request).await.unwrap();
    let mut watch = Watch(answer.into_inner());
    eventually("cut", async || slow.metrics.encode().contains("tbmq_control_watchers_cut_total 1")).await;
    let mut seen = Vec::new();
    let mut last = 0;
    let end = loop {
        match watch.event().await {
            Ok((event, sequence)) => {
                last = sequence;
                seen.push(uid(&event));
            }
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&end), (Code::ResourceExhausted, "SLOW_WATCHER".to_owned()));
    assert!(!seen.is_empty() && seen.len() < COUNT, "{}", seen.len());
    let resume = end.get_error_details().error_info().unwrap().metadata["resume_sequence"].clone();
    assert_eq!(resume, last.to_string());
    let mut resumed = Watch::after(&other, Some(last)).await.unwrap();
    while seen.len() < COUNT {
        seen.push(uid(&resumed.told().await.0));
    }
    assert_eq!(seen, uids(&all));
    drop(watch);
    eventually("the seat is free", async || slow.metrics.encode().contains("tbmq_control_watchers 0")).await;
}

#[tokio::test]
async fn a_place_among_events_that_is_not_kept_or_not_there_yet_is_refused() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |config| config.sql.ttl.events.enabled = false).await;
    let store = shared.store().await;
    let mut old = errors(anybody(), 3, "x");
    for event in &mut old {
        event.time_ms = 5;
    }
    store.store_events(&old).await.unwrap();
    let present = store.event_sequence().await.unwrap();
    let mut open = Watch::after(&plane, Some(present)).await.unwrap();
    assert_eq!(store.expire_events(6).await.unwrap().events, 3);
    let status = Watch::after(&plane, Some(present - 1)).await.err().unwrap();
    assert_eq!(reason(&status), (Code::OutOfRange, "REVISION_COMPACTED".to_owned()));
    assert!(status.message().contains("watch without after_sequence"), "{}", status.message());
    let status = Watch::after(&plane, Some(present + 1)).await.err().unwrap();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["after_sequence".to_owned()]));
    // Whoever has seen everything that has expired goes on.
    let mut resumed = Watch::after(&plane, Some(present)).await.unwrap();
    let next = errors(anybody(), 1, "y");
    store.store_events(&next).await.unwrap();
    for watch in [&mut open, &mut resumed] {
        assert_eq!(uid(&watch.told().await.0), next[0].event_id);
    }
}

#[tokio::test]
async fn watches_of_events_and_of_integrations_share_the_seats() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |config| config.control.watchers_max = NonZeroUsize::MIN).await;
    let mut first = Watch::after(&plane, None).await.unwrap();
    first.bookmark().await;
    let status = Watch::after(&plane, None).await.err().unwrap();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "LIMIT_REACHED".to_owned()));
    let status = plane
        .integrations
        .clone()
        .watch_integrations(WatchIntegrationsRequest::default())
        .await
        .err()
        .unwrap();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "LIMIT_REACHED".to_owned()));
    drop(first);
    eventually("there is room", async || Watch::after(&plane, None).await.is_ok()).await;
}

#[tokio::test]
async fn a_replica_that_stops_ends_its_watches_of_events_at_once() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let mut watch = Watch::after(&plane, None).await.unwrap();
    watch.bookmark().await;
    let draining = tokio::spawn(plane.running.drain());
    assert_eq!(watch.event().await.unwrap_err().code(), Code::Unavailable);
    drop(watch);
    draining.await.unwrap();
}

#[tokio::test]
async fn lists_page_through_what_was_asked_for() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let store = shared.store().await;
    let id = anybody();
    let mut wanted = errors(id, 7, "refused");
    // Several of one time.
    let time_ms = now_ms();
    for event in &mut wanted {
        event.time_ms = time_ms;
    }
    store.store_events(&wanted).await.unwrap();
    store.store_events(&errors(id, 7, "timeout")).await.unwrap();
    let mut request = ListEventsRequest {
        page_size: 2,
        filter: Some(EventFilter { error: "REF".to_owned(), ..EventFilter::default() }),
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page = plane.events.clone().list_events(request.clone()).await.unwrap().into_inner();
        assert!(page.events.len() <= 2);
        found.extend(page.events.iter().map(uid));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
        // A token is of one question.
        let other = ListEventsRequest { filter: None, ..request.clone() };
        let status = plane.events.clone().list_events(other).await.unwrap_err();
        assert_eq!(fields(&status), ["page_token"]);
    }
    assert_eq!(found.len(), wanted.len());
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), uids(&wanted).into_iter().collect());
}

#[tokio::test]
async fn events_are_cleared_as_asked() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let store = shared.store().await;
    let (one, two) = (anybody(), anybody());
    store.store_events(&errors(one, 3, "refused")).await.unwrap();
    store.store_events(&errors(one, 2, "timeout")).await.unwrap();
    let kept = errors(two, 4, "refused");
    store.store_events(&kept).await.unwrap();
    let clear = async |request: ClearEventsRequest| plane.events.clone().clear_events(request).await;
    let removed = async |request| clear(request).await.unwrap().into_inner().removed_count;
    let of_one = ClearEventsRequest { integration: format!("integrations/{one}"), ..Default::default() };
    let refused = Some(EventFilter { error: "refused".to_owned(), ..EventFilter::default() });
    let statistics = ClearEventsRequest { r#type: EventType::Statistics.into(), ..of_one.clone() };
    assert_eq!(removed(statistics).await, 0);
    let early = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    assert_eq!(removed(ClearEventsRequest { end_time: early, ..of_one.clone() }).await, 0);
    assert_eq!(removed(ClearEventsRequest { filter: refused, ..of_one.clone() }).await, 3);
    assert_eq!(removed(of_one.clone()).await, 2);
    assert_eq!(list(&plane, ListEventsRequest::default()).await.len(), kept.len());
    let status = clear(ClearEventsRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["integration".to_owned()]));
    assert!(status.message().contains("integrations/-"), "{}", status.message());
    assert_eq!(list(&plane, ListEventsRequest::default()).await.len(), kept.len());
    let all = ClearEventsRequest { integration: "integrations/-".to_owned(), ..Default::default() };
    assert_eq!(removed(all).await, 4);
    assert!(list(&plane, ListEventsRequest::default()).await.is_empty());
}

#[tokio::test]
async fn all_that_is_wrong_with_a_question_is_said_at_once() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let filter = EventFilter {
        service_id: "a\0".to_owned(),
        error: "x".repeat(257),
        method: "\u{fc}".repeat(256),
        ..EventFilter::default()
    };
    let wrong = ["integration", "type", "filter.service_id", "filter.error"];
    let request = ListEventsRequest {
        integration: "integrations/x".to_owned(),
        r#type: 77,
        filter: Some(filter.clone()),
        ..Default::default()
    };
    let status = plane.events.clone().list_events(request).await.unwrap_err();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, wrong.map(String::from).to_vec()));
    let request = WatchEventsRequest {
        integration: "integrations/x".to_owned(),
        r#type: 77,
        filter: Some(filter.clone()),
        after_sequence: Some(u64::MAX),
    };
    let status = Watch::begin(&plane, request).await.err().unwrap();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, wrong.map(String::from).to_vec()));
    let request = ClearEventsRequest {
        integration: "integrations/x".to_owned(),
        r#type: 77,
        filter: Some(filter),
        ..Default::default()
    };
    let status = plane.events.clone().clear_events(request).await.unwrap_err();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, wrong.map(String::from).to_vec()));
    // Times from the ends of the world are no fault.
    let far = |seconds| Some(prost_types::Timestamp { seconds, nanos: 999_999_999 });
    let request =
        ListEventsRequest { start_time: far(i64::MIN), end_time: far(i64::MAX), ..Default::default() };
    assert!(list(&plane, request).await.is_empty());
}

#[tokio::test]
async fn texts_of_events_fit_the_store_and_impossible_times_are_skipped() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |config| config.sql.events.max_symbols = 10).await;
    let executor = shared.cluster.executor(Verdict::Accept).await;
    let id = anybody();
    let report = |method: &str, error: &str, time_ms| NativeEvent {
        event_id: Uuid::now_v7().as_bytes().to_vec().into(),
        time_ms,
        service_id: "ie1".to_owned(),
        body: Some(Native::Error(ErrorEvent {
            method: method.to_owned(),
            error: error.to_owned(),
            count: 1,
        })),
        ..NativeEvent::default()
    };
    for time_ms in [i64::MIN, -1, i64::MAX] {
        executor.events().send(id, report("m", "x", time_ms)).await;
    }
    let long = "\u{1f980}".repeat(12);
    executor.events().send(id, report(&"\u{fc}\0".repeat(300), &format!("\0{long}\0"), now_ms())).await;
    eventually("stored", async || !list(&plane, ListEventsRequest::default()).await.is_empty()).await;
    let events = list(&plane, ListEventsRequest::default()).await;
    let [event] = &events[..] else { panic!("{events:?}") };
    let Some(Body::Error(body)) = &event.body else { panic!("{event:?}") };
    assert_eq!(body.error, format!("{}...[truncated 2 symbols]", "\u{1f980}".repeat(10)));
    assert_eq!(body.method, "\u{fc}".repeat(255));
    assert!(plane.metrics.encode().contains("tbmq_control_bad_records_total 3"));
}
