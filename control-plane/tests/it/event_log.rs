//! Events in the store: filters, the order of storing, clearing and retention. Part of the contract of the store.

use std::{collections::BTreeSet, time::Duration};

use tbmq_control_plane::store::{
    Error, EventBody, EventFilter, EventRow, Expired, Number, Options, Saved, Store,
};
use tbmq_harness::{Need, postgres::Postgres, ready};
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

const HOUR_MS: i64 = 3_600_000;

pub(crate) fn event(integration: IntegrationId, time_ms: i64, body: EventBody) -> EventRow {
    EventRow {
        event_id: Uuid::now_v7(),
        integration,
        time_ms,
        service_id: "ie1".to_owned(),
        shard: 0,
        revision: 1,
        epoch: 1,
        incarnation: "i".to_owned(),
        seq: 1,
        body,
    }
}

pub(crate) fn failure(error: &str) -> EventBody {
    EventBody::Error { method: "onMsgProcess".to_owned(), error: error.to_owned(), count: 1 }
}

fn lifecycle(event: &str, error: Option<&str>) -> EventBody {
    EventBody::Lifecycle {
        event: event.to_owned(),
        success: error.is_none(),
        error: error.map(ToOwned::to_owned),
    }
}

fn statistics(messages_processed: u64, errors_occurred: u64) -> EventBody {
    EventBody::Statistics { messages_processed, errors_occurred }
}

fn anybody() -> IntegrationId {
    IntegrationId(Uuid::new_v4())
}

pub(crate) async fn contract(store: &Store) {
    filters_hold_all_at_once(store).await;
    events_have_numbers_in_the_order_of_storing(store).await;
    a_reader_misses_nothing_of_concurrent_writers(store).await;
    what_is_cleared_is_gone_and_nothing_else(store).await;
}

async fn filters_hold_all_at_once(store: &Store) {
    let id = anybody();
    let mut events = vec![
        event(id, 1, lifecycle("STARTED", None)),
        event(id, 2, lifecycle("FAILED", Some("Connection refused: 100%"))),
        event(id, 3, statistics(10, 0)),
        event(id, 4, statistics(u64::MAX, 7)),
        event(id, 5, failure("refused by \u{c4}RGER_1")),
        event(anybody(), 6, failure("refused")),
    ];
    "IE2".clone_into(&mut events[4].service_id);
    store.store_events(&events).await.unwrap();
    let check = async |filter: EventFilter, expected: &[usize]| {
        let filter = EventFilter { integration: Some(id), ..filter };
        let found = store.events(&filter, None, 100).await.unwrap();
        let mut places: Vec<usize> = found
            .iter()
            .map(|found| events.iter().position(|event| event.event_id == found.event_id).unwrap())
            .collect();
        places.reverse();
        assert_eq!(places, expected, "{filter:?}");
        // A watch tells of the same.
        let page = store.events_after(0, u64::MAX >> 1, &filter, 1_000).await.unwrap();
        let watched: Vec<Uuid> = page.events.iter().map(|(_, row)| row.event_id).collect();
        let listed: Vec<Uuid> = found.iter().rev().map(|row| row.event_id).collect();
        assert_eq!(watched, listed, "{filter:?}");
    };
    let nothing = EventFilter::default;
    let text = ToOwned::to_owned;
    let number = |min, max| Number { min, max };
    check(nothing(), &[0, 1, 2, 3, 4]).await;
    check(EventFilter { event_type: Some(2), ..nothing() }, &[2, 3]).await;
    check(EventFilter { error: text("REFUSED"), ..nothing() }, &[1, 4]).await;
    check(EventFilter { error: text("REFUSED"), event_type: Some(3), ..nothing() }, &[4]).await;
    check(EventFilter { error: text("100%"), ..nothing() }, &[1]).await;
    check(EventFilter { error: text("%refused%"), ..nothing() }, &[]).await;
    check(EventFilter { error: text("\u{c4}rger_"), ..nothing() }, &[4]).await;
    check(EventFilter { error: text("rgerx"), ..nothing() }, &[]).await;
    check(EventFilter { service_id: text("ie2"), ..nothing() }, &[4]).await;
    check(EventFilter { service_id: text("E"), ..nothing() }, &[0, 1, 2, 3, 4]).await;
    check(EventFilter { lifecycle: text("start"), ..nothing() }, &[0]).await;
    check(EventFilter { success: Some(true), ..nothing() }, &[0]).await;
    check(EventFilter { success: Some(false), ..nothing() }, &[1]).await;
    check(EventFilter { success: Some(false), lifecycle: text("STARTED"), ..nothing() }, &[]).await;
    check(EventFilter { method: text("ONMSG"), ..nothing() }, &[4]).await;
    check(EventFilter { messages_processed: number(Some(10), None), ..nothing() }, &[2, 3]).await;
    check(EventFilter { messages_processed: number(None, Some(10)), ..nothing() }, &[]).await;
    check(EventFilter { messages_processed: number(Some(10), Some(11)), ..nothing() }, &[2]).await;
    check(EventFilter { messages_processed: number(None, Some(u64::MAX)), ..nothing() }, &[2, 3]).await;
    check(EventFilter { messages_processed: number(Some(u64::MAX), None), ..nothing() }, &[3]).await;
    check(EventFilter { errors_occurred: number(Some(1), None), ..nothing() }, &[3]).await;
    check(EventFilter { errors_occurred: number(None, Some(7)), ..nothing() }, &[2]).await;
    check(EventFilter { start_ms: Some(2), end_ms: Some(4), ..nothing() }, &[1, 2, 3]).await;
}

async fn events_have_numbers_in_the_order_of_storing(store: &Store) {
    let (one, two) = (anybody(), anybody());
    let begin = store.event_sequence().await.unwrap();
    // Late ones last, whatever their time; repetitions are not there.
    let first = event(one, 50, failure("a"));
    let second = event(two, 40, failure("b"));
    let third = event(one, 10, failure("c"));
    store.store_events(&[first.clone(), second.clone()]).await.unwrap();
    store.store_events(&[second.clone(), third.clone(), first.clone(), third.clone()]).await.unwrap();
    let head = store.event_sequence().await.unwrap();
    assert_eq!(head, begin + 6, "repetitions take numbers as well");
    let all = EventFilter::default();
    let page = store.events_after(begin, head, &all, 10).await.unwrap();
    let rows: Vec<EventRow> = page.events.iter().map(|(_, row)| row.clone()).collect();
    assert_eq!((rows.as_slice(), page.through), ([first.clone(), second, third.clone()].as_slice(), head));
    assert!(page.events.is_sorted_by_key(|(number, _)| *number));
    assert!(page.events.iter().all(|(number, _)| (begin + 1..=head).contains(number)));
    // A full page goes as far as its last event.
    let short = store.events_after(begin, head, &all, 2).await.unwrap();
    assert_eq!((short.events.as_slice(), short.through), (&page.events[..2], page.events[1].0));
    let rest = store.events_after(short.through, head, &all, 2).await.unwrap();
    assert_eq!((rest.events.as_slice(), rest.through), (&page.events[2..], head));
    let of_one = EventFilter { integration: Some(one), ..EventFilter::default() };
    let of_one = store.events_after(begin, head, &of_one, 10).await.unwrap();
    assert_eq!(of_one.events.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), [first, third]);
}

async fn a_reader_misses_nothing_of_concurrent_writers(store: &Store) {
    const WRITERS: usize = 8;
    const BATCHES: usize = 15;
    let id = anybody();
    let begin = store.event_sequence().await.unwrap();
    let shared = event(id, 7, failure("of all"));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, shared) = (store.clone(), shared.clone());
            tokio::spawn(async move {
                let mut ids = BTreeSet::from([shared.event_id]);
                for batch in 0..BATCHES {
                    // Some take revisions as well, some repeat what others write at the same time.
                    let mut events = vec![shared.clone(), event(id, batch as i64, failure("x"))];
                    if writer % 2 == 0 {
                        events.push(event(id, 1, lifecycle("STARTED", None)));
                    }
                    ids.extend(events.iter().map(|event| event.event_id));
                    store.store_events(&events).await.unwrap();
                }
                ids
            })
        })
        .collect();
    let filter = EventFilter { integration: Some(id), ..EventFilter::default() };
    let mut seen = Vec::new();
    let mut place = begin;
    let mut read = async || {
        let head = store.event_sequence().await.unwrap();
        while place < head {
            let page = store.events_after(place, head, &filter, 5).await.unwrap();
            seen.extend(page.events.into_iter().map(|(_, row)| row.event_id));
            place = page.through;
        }
    };
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        read().await;
        tokio::task::yield_now().await;
    }
    read().await;
    let mut written = BTreeSet::new();
    for writer in writers {
        written.extend(writer.await.unwrap());
    }
    assert_eq!(seen.len(), written.len(), "each once");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), written);
}

async fn what_is_cleared_is_gone_and_nothing_else(store: &Store) {
    // More than a batch, with one time for many.
    const COUNT: usize = 2_100;
    let (one, two) = (anybody(), anybody());
    let begin = store.event_sequence().await.unwrap();
    let mut events: Vec<EventRow> =
        (0..COUNT).map(|i| event(one, (i / 50) as i64, failure("refused"))).collect();
    events.push(event(one, 3, failure("kept")));
    events.push(event(two, 3, failure("refused")));
    store.store_events(&events).await.unwrap();
    let of = |id| EventFilter { integration: Some(id), ..EventFilter::default() };
    let refused = EventFilter { error: "refused".to_owned(), ..of(one) };
    let early = EventFilter { end_ms: Some(1), ..refused.clone() };
    assert_eq!(store.clear_events(&early).await.unwrap(), 100);
    assert_eq!(store.clear_events(&refused).await.unwrap(), COUNT as u64 - 100);
    assert_eq!(store.clear_events(&refused).await.unwrap(), 0);
    assert_eq!(store.events(&of(one), None, 10).await.unwrap(), [events[COUNT].clone()]);
    assert_eq!(store.events(&of(two), None, 10).await.unwrap(), [events[COUNT + 1].clone()]);
    // Whoever resumes is told of what is left.
    let head = store.event_sequence().await.unwrap();
    let page = store.events_after(begin, head, &EventFilter::default(), 10).await.unwrap();
    assert_eq!(page.events.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), events[COUNT..]);
    let other = EventFilter { event_type: Some(2), ..of(two) };
    assert_eq!(store.clear_events(&other).await.unwrap(), 0, "of another type");
}

#[tokio::test]
async fn old_events_expire_on_sqlite_and_readers_that_missed_them_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&Options::sqlite(&folder.path().join("store.db"))).await.unwrap();
    assert_eq!(store.make_event_partitions(0, Duration::from_hours(1), Duration::ZERO).await, Ok(0));
    let id = anybody();
    let mut events: Vec<EventRow> = (0..1_200).map(|i| event(id, i, failure("x"))).collect();
    events.push(event(id, 5_000, failure("young")));
    store.store_events(&events).await.unwrap();
    let expired = store.expire_events(1_200).await.unwrap();
    assert_eq!(expired, Expired { partitions: 0, events: 1_200 });
    assert_eq!(store.expire_events(1_200).await.unwrap(), Expired::default());
    assert_eq!(store.events(&EventFilter::default(), None, 10).await.unwrap(), events[1_200..]);
    floor_is(&store, 1_200).await;
}

/// Whoever has seen less than this number may have missed what expired.
async fn floor_is(store: &Store, floor: u64) {
    assert_eq!(store.check_event_place(floor - 1).await, Err(Error::Expired { floor }));
    assert_eq!(store.check_event_place(floor).await, Ok(()));
    let all = EventFilter::default();
    let head = store.event_sequence().await.unwrap();
    let late = store.events_after(floor - 1, head, &all, 10).await;
    assert_eq!(late, Err(Error::Expired { floor }));
    assert!(store.events_after(floor, head, &all, 10).await.is_ok());
}

#[tokio::test]
async fn partitions_are_made_ahead_and_dropped_whole_on_postgres() {
    if !ready("partitions_are_made_ahead_and_dropped_whole_on_postgres", &[Need::Postgres]) {
        return;
    }
    let options = crate::postgres::options();
    let database = options.url.rsplit('/').next().unwrap().to_owned();
    let sql = |statement: &str| Postgres::shared().sql(&database, statement).unwrap();
    let count = |table: &str| sql(&format!("SELECT count(*) FROM {table}"));
    let store = Store::open(&options).await.unwrap();
    let id = anybody();
    let at = |hour: i64| event(id, 1_000 * HOUR_MS + hour * HOUR_MS, failure("x"));
    let now_ms = at(0).time_ms + 1;
    // Before there are partitions, and from clocks that are far away.
    let early = [at(-30), at(0), at(1), at(9_000)];
    store.store_events(&early).await.unwrap();
    assert_eq!(count("event_log_default"), "4");
    let (width, ahead) = (Duration::from_hours(10), Duration::from_hours(15));
    assert_eq!(store.make_event_partitions(now_ms, width, ahead).await, Ok(2));
    assert_eq!(store.make_event_partitions(now_ms, width, ahead).await, Ok(0));
    let first = format!("event_log_{}_{}", 1_000 * HOUR_MS, 1_010 * HOUR_MS);
    let second = format!("event_log_{}_{}", 1_010 * HOUR_MS, 1_020 * HOUR_MS);
    assert_eq!((count(&first), count(&second)), ("2".to_owned(), "0".to_owned()), "moved there");
    // A smaller width from now on.
    let (width, later_ms) = (Duration::from_hours(4), now_ms + 10 * HOUR_MS);
    assert_eq!(store.make_event_partitions(later_ms, width, ahead).await, Ok(2));
    let late = [at(3), at(11), at(21), at(1)];
    store.store_events(&late).await.unwrap();
    // Repetitions are known in each partition.
    store.store_events(&[&early[..], &late[..]].concat()).await.unwrap();
    assert_eq!(count("event_log"), "8");
    assert_eq!(
        (count(&first), count(&second), count("event_log_default")),
        ("4".into(), "1".into(), "2".into())
    );
    let all = EventFilter::default();
    let mut expected: Vec<i64> = early.iter().chain(&late).map(|event| event.time_ms).collect();
    expected.sort_by_key(|time_ms| std::cmp::Reverse(*time_ms));
    let listed = store.events(&all, None, 100).await.unwrap();
    assert_eq!(listed.iter().map(|event| event.time_ms).collect::<Vec<_>>(), expected);

    // What is old in the default partition goes one by one; a partition that holds younger ones stays.
    let expired = store.expire_events(at(9).time_ms).await.unwrap();
    assert_eq!(expired, Expired { partitions: 0, events: 1 });
    floor_is(&store, 1).await;
    let expired = store.expire_events(at(10).time_ms).await.unwrap();
    assert_eq!(expired, Expired { partitions: 1, events: 0 });
    // The last number of what was dropped.
    floor_is(&store, 8).await;
    assert_eq!(sql(&format!("SELECT to_regclass('{first}') IS NULL")), "t");
    let left: Vec<i64> =
        store.events(&all, None, 100).await.unwrap().iter().map(|event| event.time_ms).collect();
    assert_eq!(left, [at(9_000).time_ms, at(21).time_ms, at(11).time_ms]);
    // What comes too late for its partition is taken all the same.
    store.store_events(&[at(2)]).await.unwrap();
    assert_eq!(count("event_log_default"), "2");
}

#[tokio::test]
async fn partitions_are_made_and_dropped_under_load_on_postgres() {
    if !ready("partitions_are_made_and_dropped_under_load_on_postgres", &[Need::Postgres]) {
        return;
    }
    let store = Store::open(&crate::postgres::options()).await.unwrap();
    let id = anybody();
    let filter = EventFilter { integration: Some(id), ..EventFilter::default() };
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (store, filter) = (store.clone(), filter.clone());
            tokio::spawn(async move {
                for i in 0..60 {
                    let events: Vec<_> =
                        (0..20).map(|j| event(id, (i + j) * HOUR_MS, failure("x"))).collect();
                    store.store_events(&events).await.unwrap();
                    store.events(&filter, None, 10).await.unwrap();
                    if i % 20 == 0 {
                        let old = EventFilter { end_ms: Some(HOUR_MS), ..filter.clone() };
                        store.clear_events(&old).await.unwrap();
                    }
                }
            })
        })
        .collect();
    // Two that take themselves for the leader.
    let leaders: Vec<_> = (0..2)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for hour in 0..60 {
                    let now_ms = hour * HOUR_MS;
                    let hours = Duration::from_hours;
                    store.make_event_partitions(now_ms, hours(2), hours(6)).await.unwrap();
                    store.expire_events(now_ms - 10 * HOUR_MS).await.unwrap();
                }
            })
        })
        .collect();
    for task in writers.into_iter().chain(leaders) {
        task.await.unwrap();
    }
    store.expire_events(50 * HOUR_MS).await.unwrap();
    let left = store.events(&filter, None, 1_000).await.unwrap();
    assert!(!left.is_empty() && left.iter().all(|event| event.time_ms >= 50 * HOUR_MS));
}

#[tokio::test]
async fn no_reader_misses_an_event_while_it_is_moved_to_a_partition_on_postgres() {
    if !ready("no_reader_misses_an_event_while_it_is_moved_to_a_partition_on_postgres", &[Need::Postgres]) {
        return;
    }
    const HOURS: i64 = 100;
    let store = Store::open(&crate::postgres::options()).await.unwrap();
    let id = anybody();
    let events: Vec<_> = (0..HOURS).map(|hour| event(id, hour * HOUR_MS, failure("x"))).collect();
    store.store_events(&events).await.unwrap();
    let head = store.event_sequence().await.unwrap();
    let (moved, is_moved) = tokio::sync::watch::channel(false);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (store, is_moved) = (store.clone(), is_moved.clone());
            let filter = EventFilter { integration: Some(id), ..EventFilter::default() };
            tokio::spawn(async move {
                while !*is_moved.borrow() {
                    let listed = store.events(&filter, None, 1_000).await.unwrap();
                    assert_eq!(listed.len() as i64, HOURS, "listed");
                    let read = store.events_after(0, head, &filter, 1_000).await.unwrap();
                    assert_eq!(read.events.len() as i64, HOURS, "read in the order of storing");
                }
            })
        })
        .collect();
    for hour in 0..HOURS {
        let width = Duration::from_hours(1);
        assert_eq!(store.make_event_partitions(hour * HOUR_MS, width, Duration::ZERO).await, Ok(1));
    }
    moved.send_replace(true);
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn events_of_the_control_plane_itself_have_numbers_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&Options::sqlite(&folder.path().join("store.db"))).await.unwrap();
    let saved = Saved { service_id: "cp1", incarnation: "i", now_ms: 5, request: None };
    let row = store.create(crate::watch::new("one", 0), saved).await.unwrap();
    store.delete(row.id, None, saved).await.unwrap();
    let head = store.event_sequence().await.unwrap();
    let page = store.events_after(0, head, &EventFilter::default(), 10).await.unwrap();
    let told: Vec<(u64, EventBody)> =
        page.events.into_iter().map(|(number, row)| (number, row.body)).collect();
    assert_eq!(told, [(1, lifecycle("CREATED", None)), (2, lifecycle("DELETED", None))]);
}
