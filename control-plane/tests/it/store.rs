//! The contract of the store, for every database.

use std::{collections::BTreeMap, path::Path};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tbmq_control_plane::store::{
    AuditFilter, AuditRow, Change, Error, EventBody, EventFilter, EventRow, KindRow, Listing, Mark, New,
    Options, Place, Projection, Request, Saved, SessionRow, Sort, SortKey, Store, TokenRow,
};
use tbmq_integration::{Millis, cleanup::Stage};
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

fn saved(now_ms: i64) -> Saved<'static> {
    Saved { service_id: "cp1", incarnation: "i", now_ms, request: None }
}

fn new(name: &str) -> New {
    New {
        id: IntegrationId(Uuid::new_v4()),
        name: name.to_owned(),
        kind: "HTTP".parse().unwrap(),
        enabled: true,
        configuration: "{ \"x\" : 1.0 }".to_owned(),
        labels: BTreeMap::from([("k".to_owned(), "ü".to_owned())]),
        description: "d".to_owned(),
        shards: 1,
    }
}

fn change(name: &str) -> Change {
    Change {
        name: name.to_owned(),
        enabled: true,
        configuration: "{}".to_owned(),
        labels: BTreeMap::new(),
        description: String::new(),
    }
}

fn lifecycle(id: IntegrationId, epoch: u64, seq: u64, event: &str, error: Option<&str>) -> EventRow {
    EventRow {
        event_id: Uuid::now_v7(),
        integration: id,
        time_ms: 1_000 - seq as i64,
        service_id: "ie1".to_owned(),
        shard: 0,
        revision: 1,
        epoch,
        incarnation: "i".to_owned(),
        seq,
        body: EventBody::Lifecycle {
            event: event.to_owned(),
            success: error.is_none(),
            error: error.map(ToOwned::to_owned),
        },
    }
}

async fn tokens_are_found_by_their_hash(store: &Store) {
    let token = |n: i64| TokenRow {
        id: Uuid::now_v7(),
        display_name: format!("t{n}"),
        role: "VIEWER".to_owned(),
        hash: format!("{n:064}"),
        created_ms: n,
        expires_ms: (n == 2).then_some(9),
        last_used_ms: None,
    };
    let tokens: Vec<_> = (1..=3).map(token).collect();
    for token in &tokens {
        store.create_token(token).await.unwrap();
    }
    assert!(matches!(store.create_token(&token(1)).await, Err(Error::Refused(_))), "a hash is there once");
    assert_eq!(store.token_of(&tokens[1].hash).await.unwrap().as_ref(), Some(&tokens[1]));
    assert_eq!(store.token_of("x").await.unwrap(), None);
    assert_eq!(store.tokens(None, 2).await.unwrap(), tokens[..2]);
    assert_eq!(store.tokens(Some((2, tokens[1].id)), 2).await.unwrap(), tokens[2..]);
    let used = async || store.token_of(&tokens[0].hash).await.unwrap().unwrap().last_used_ms;
    store.touch_token(tokens[0].id, 60_000).await.unwrap();
    store.touch_token(tokens[0].id, 1).await.unwrap();
    assert_eq!(used().await, Some(60_000));
    assert!(store.delete_token(tokens[0].id).await.unwrap());
    assert!(!store.delete_token(tokens[0].id).await.unwrap());
    assert_eq!(store.token_of(&tokens[0].hash).await.unwrap(), None);

    let keys = tokio::join!(store.shared_key("k", "a"), store.shared_key("k", "b"));
    assert_eq!(keys.0.unwrap(), keys.1.unwrap());
    assert!(["a", "b"].contains(&store.shared_key("k", "c").await.unwrap().as_str()));
}

async fn audit_entries_are_kept_once_filtered_and_forgotten(store: &Store) {
    let row = |time_ms: i64, method: &str| AuditRow {
        id: Uuid::now_v7(),
        time_ms,
        principal: "token:Ci_1".to_owned(),
        method: method.to_owned(),
        result: "OK".to_owned(),
        ..AuditRow::default()
    };
    let rows: Vec<_> = [(1, "s/A"), (2, "s/B"), (2, "s/C"), (3, "s/A")].map(|(time, m)| row(time, m)).into();
    store.add_audit(&rows).await.unwrap();
    store.add_audit(&rows[2..]).await.unwrap();
    store.add_audit(&[]).await.unwrap();
    let found = async |filter: AuditFilter| store.audit(&AuditFilter { limit: 10, ..filter }).await.unwrap();
    let newest_first: Vec<_> = rows.iter().rev().cloned().collect();
    assert_eq!(found(AuditFilter::default()).await, newest_first);
    let place = Some((2, rows[2].id));
    assert_eq!(found(AuditFilter { before: place, ..AuditFilter::default() }).await, newest_first[2..]);
    let times = AuditFilter { from_ms: Some(2), to_ms: Some(3), ..AuditFilter::default() };
    assert_eq!(found(times).await, newest_first[1..3]);
    let count = async |filter: AuditFilter| found(filter).await.len();
    assert_eq!(count(AuditFilter { method: "s/a".to_owned(), ..AuditFilter::default() }).await, 2);
    assert_eq!(count(AuditFilter { principal: "ci_".to_owned(), ..AuditFilter::default() }).await, 4);
    assert_eq!(count(AuditFilter { principal: "ci%".to_owned(), ..AuditFilter::default() }).await, 0);
    assert_eq!(count(AuditFilter { result: "ABORTED".to_owned(), ..AuditFilter::default() }).await, 0);
    assert_eq!(store.delete_audit_before(2).await.unwrap(), 1);
    assert_eq!(store.delete_audit_before(2).await.unwrap(), 0);
    assert_eq!(count(AuditFilter::default()).await, 3);
}

/// Everything that the control plane relies on.
pub(crate) async fn contract(options: Options) {
    let store = Store::open(&options).await.unwrap();
    revisions_rise_and_rows_survive(&store).await;
    names_are_unique_and_stale_writes_fail(&store).await;
    requests_are_done_once(&store).await;
    marks_are_cleared_only_when_unchanged(&store).await;
    pages_follow_names(&store).await;
    pages_follow_every_order_and_leave_nothing_out(&store).await;
    no_more_are_created_than_may_be(&store).await;
    events_are_stored_once_and_ordered_by_owner(&store).await;
    reordered_and_repeated_events_end_in_the_same_status_whatever_their_clocks(&store).await;
    lives_go_on_and_park(&store).await;
    many_lives_are_saved_at_once_but_those_that_others_have_changed(&store).await;
    leases_have_one_holder(&store).await;
    sessions_belong_to_the_newest_incarnation(&store).await;
    kinds_are_kept(&store).await;
    tokens_are_found_by_their_hash(&store).await;
    audit_entries_are_kept_once_filtered_and_forgotten(&store).await;
    concurrent_writers_get_distinct_revisions(&store).await;
    a_large_batch_moves_each_status_on_once(&store).await;
    crate::event_log::contract(&store).await;
    store.close().await;
    // A second opening finds everything.
    let store = Store::open(&options).await.unwrap();
    assert!(store.revision().await.unwrap() > 0);
    assert!(!store.kinds().await.unwrap().is_empty());
    store.close().await;
}

async fn revisions_rise_and_rows_survive(store: &Store) {
    let row = store.create(new("first"), saved(7)).await.unwrap();
    assert_eq!(store.get(row.id).await.unwrap(), row);
    assert_eq!((row.created_ms, row.updated_ms, row.disconnected_ms), (7, 7, None));
    let disabled = store.set_enabled(row.id, None, false, saved(8)).await.unwrap();
    assert!(disabled.revision > row.revision);
    assert_eq!(disabled.disconnected_ms, Some(8));
    let again = store.set_enabled(row.id, None, false, saved(9)).await.unwrap();
    assert_eq!(again, disabled, "what is so already stays as it is");
    assert_eq!(store.restart(row.id, None, saved(9)).await.unwrap_err(), Error::Disabled);
    let enabled = store.set_enabled(row.id, Some(disabled.revision), true, saved(10)).await.unwrap();
    assert_eq!((enabled.disconnected_ms, enabled.created_ms), (None, 7));
    store.delete(row.id, None, saved(11)).await.unwrap();
    assert_eq!(store.get(row.id).await.unwrap_err(), Error::NotFound(row.id));
    assert_eq!(store.delete(row.id, None, saved(11)).await.unwrap_err(), Error::NotFound(row.id));
    let filter = EventFilter { integration: Some(row.id), ..EventFilter::default() };
    let names: Vec<String> = store
        .events(&filter, None, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|event| match event.body {
            EventBody::Lifecycle { event, .. } => event,
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["DELETED", "UPDATED", "UPDATED", "CREATED"]);
    let twin = New { id: row.id, ..new("twin") };
    assert_eq!(
        store.create(twin, saved(12)).await.unwrap_err(),
        Error::IdTaken(row.id),
        "it is being removed"
    );
}

async fn names_are_unique_and_stale_writes_fail(store: &Store) {
    let one = store.create(new("one"), saved(1)).await.unwrap();
    let two = store.create(new("two"), saved(1)).await.unwrap();
    assert_eq!(store.create(new("one"), saved(1)).await.unwrap_err(), Error::NameTaken("one".to_owned()));
    let taken = store.update(two.id, two.revision, change("one"), saved(2)).await.unwrap_err();
    assert_eq!(taken, Error::NameTaken("one".to_owned()));
    assert!(store.is_name_taken("one", Some(two.id)).await.unwrap());
    assert!(!store.is_name_taken("one", Some(one.id)).await.unwrap());
    assert_eq!(store.get(two.id).await.unwrap(), two, "a refused change leaves nothing");
    let stale = store.update(two.id, two.revision - 1, change("x"), saved(2)).await.unwrap_err();
    assert_eq!(stale, Error::Stale { expected: two.revision - 1, actual: two.revision });
    store.delete(one.id, Some(one.revision), saved(3)).await.unwrap();
    store.update(two.id, two.revision, change("one"), saved(4)).await.unwrap();
}

async fn requests_are_done_once(store: &Store) {
    let request = Request { method: "Create", id: "r1".to_owned(), fingerprint: "f".to_owned() };
    let saved = |now_ms| Saved { request: Some(&request), ..saved(now_ms) };
    store.recall(&request, 0).await.unwrap();
    let row = store.create(new("once"), saved(0)).await.unwrap();
    assert_eq!(store.recall(&request, 599_999).await.unwrap_err(), Error::Replayed(row.id.0));
    assert_eq!(store.create(new("twice"), saved(10)).await.unwrap_err(), Error::Replayed(row.id.0));
    assert!(!store.is_name_taken("twice", None).await.unwrap());
    let other = Request { fingerprint: "g".to_owned(), ..request.clone() };
    assert_eq!(store.recall(&other, 10).await.unwrap_err(), Error::RequestReused("r1".to_owned()));
    store.recall(&other, 600_000).await.unwrap();
    assert_eq!(store.forget_requests(600_001).await.unwrap(), 1);
}

async fn marks_are_cleared_only_when_unchanged(store: &Store) {
    let row = store.create(new("marked"), saved(1)).await.unwrap();
    let old = Mark { integration: row.id, revision: row.revision };
    let newer = store.restart(row.id, None, saved(2)).await.unwrap();
    let projection = Projection { revision: row.revision, partition: 0, position: 9 };
    store.projected(&[(old, projection)], 3).await.unwrap();
    assert_eq!(store.projection(row.id).await.unwrap(), Some(projection));
    let mark = Mark { integration: row.id, revision: newer.revision };
    assert!(store.marks(100).await.unwrap().contains(&mark), "the renewed mark stays");
    store
        .projected(&[(mark, Projection { revision: newer.revision, partition: 0, position: 10 })], 3)
        .await
        .unwrap();
    assert!(!store.marks(100).await.unwrap().contains(&mark));
    // A former leader that was stalled after its write.
    store.projected(&[(old, projection)], 4).await.unwrap();
    let held = store.projection(row.id).await.unwrap();
    assert_eq!(
        held,
        Some(Projection { revision: newer.revision, partition: 0, position: 10 }),
        "nothing goes back"
    );
    let revisions: Vec<u64> = store.marks(100).await.unwrap().iter().map(|mark| mark.revision).collect();
    assert!(revisions.is_sorted());
    // A repair takes a new revision only where the bus has seen a greater one.
    store.mark_again(row.id, newer.revision, 4).await.unwrap();
    assert_eq!(store.get(row.id).await.unwrap().revision, newer.revision);
    let seen = store.revision().await.unwrap() + 100;
    store.raise_revision(seen).await.unwrap();
    store.raise_revision(3).await.unwrap();
    store.mark_again(row.id, seen, 4).await.unwrap();
    assert!(store.get(row.id).await.unwrap().revision > seen);
}

async fn pages_follow_names(store: &Store) {
    for name in ["page b", "page a", "page C", "50% page_"] {
        store.create(new(name), saved(1)).await.unwrap();
    }
    let listing = Listing { text: "PAGE".to_owned(), limit: 2, ..by(&[(SortKey::Name, false)]) };
    assert_eq!(store.count(&listing).await.unwrap(), 4);
    let mut names = walk(store, listing).await;
    names.sort();
    assert_eq!(names, ["50% page_", "page C", "page a", "page b"]);
    let wild = Listing { text: "0% PAGE_".to_owned(), limit: 9, ..Listing::default() };
    assert_eq!(store.count(&wild).await.unwrap(), 1, "wildcards of SQL are plain text");
    let all = Listing { limit: 1000, ..Listing::default() };
    assert_eq!(store.scan(None).await.unwrap().len(), store.list(&all).await.unwrap().len());
}

fn by(order: &[(SortKey, bool)]) -> Listing {
    let order = order.iter().map(|(key, descending)| Sort { key: *key, descending: *descending }).collect();
    Listing { order, ..Listing::default() }
}

/// Names on all pages, in their order.
async fn walk(store: &Store, mut listing: Listing) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let page = store.list(&listing).await.unwrap();
        assert!(page.len() as u64 <= listing.limit);
        let Some(last) = page.last() else { return names };
        let place = Place::of(last, &listing.order);
        assert!(place.fits(&listing.order));
        listing.after = Some(place);
        names.extend(page.into_iter().map(|row| row.name));
    }
}

async fn pages_follow_every_order_and_leave_nothing_out(store: &Store) {
    // Equal in kind and in times by pairs.
    for (i, kind) in ["KAFKA", "HTTP", "KAFKA", "MQTT", "HTTP", "HTTP"].into_iter().enumerate() {
        let enabled = i % 3 != 0;
        let new = New { kind: kind.parse().unwrap(), enabled, ..new(&format!("order {i}")) };
        store.create(new, saved(100 - (i / 2) as i64)).await.unwrap();
    }
    use SortKey::{Created, Kind, Name, Revision, Updated};
    for (order, expected) in [
        (vec![(Name, true)], Some([5, 4, 3, 2, 1, 0])),
        (vec![(Revision, false)], Some([0, 1, 2, 3, 4, 5])),
        (vec![(Kind, false), (Name, true)], Some([5, 4, 1, 2, 0, 3])),
        (vec![(Kind, true), (Created, false), (Revision, true)], Some([3, 2, 0, 5, 4, 1])),
        (vec![(Updated, true), (Name, false), (Kind, true)], Some([0, 1, 2, 3, 4, 5])),
        // By ids, which are by chance.
        (vec![(Kind, false)], None),
        (vec![(Created, true), (Kind, false)], None),
        (vec![], None),
    ] {
        for limit in [1, 2, 4, 100] {
            let listing = Listing { text: "order ".to_owned(), limit, ..by(&order) };
            let names = walk(store, listing.clone()).await;
            if let Some(expected) = expected {
                assert_eq!(names, expected.map(|i| format!("order {i}")), "{order:?} by {limit}");
            }
            let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
            assert_eq!((names.len(), distinct.len()), (6, 6), "{order:?} by {limit}");
            assert_eq!(names, walk(store, Listing { limit: 1000, ..listing }).await);
        }
    }
    let some = Listing {
        text: "order".to_owned(),
        kind: Some("HTTP".to_owned()),
        enabled: Some(true),
        limit: 9,
        ..by(&[(Name, false)])
    };
    assert_eq!(store.count(&some).await.unwrap(), 3);
    assert_eq!(walk(store, some.clone()).await, ["order 1", "order 4", "order 5"]);
    let one = Listing { name: Some("order 4".to_owned()), ..some };
    assert_eq!(walk(store, one).await, ["order 4"]);
}

async fn no_more_are_created_than_may_be(store: &Store) {
    let count = store.count(&Listing::default()).await.unwrap();
    let max = count + 3;
    let creating = (0..8).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { store.create_within(Some(max), new(&format!("room {i}")), saved(1)).await })
    });
    let mut created = Vec::new();
    for result in creating.collect::<Vec<_>>() {
        match result.await.unwrap() {
            Ok(row) => created.push(row),
            Err(error) => assert_eq!(error, Error::LimitReached { max }),
        }
    }
    assert_eq!(created.len(), 3, "however many ask at a time");
    assert_eq!(store.check_room(Some(max)).await, Err(Error::LimitReached { max }));
    store.delete(created[0].id, None, saved(2)).await.unwrap();
    assert_eq!(store.check_room(Some(max)).await, Ok(()));
    assert_eq!(store.check_room(None).await, Ok(()));
}

async fn events_are_stored_once_and_ordered_by_owner(store: &Store) {
    let row = store.create(new("events"), saved(1)).await.unwrap();
    let status = async || {
        let statuses = store.statuses(&[row.id]).await.unwrap();
        statuses.first().map(|status| (status.event.clone(), status.epoch))
    };
    let started = lifecycle(row.id, 5, 1, "STARTED", None);
    store.store_events(&[started.clone(), started.clone()]).await.unwrap();
    store.store_events(std::slice::from_ref(&started)).await.unwrap();
    let filter = EventFilter { integration: Some(row.id), event_type: Some(1), ..EventFilter::default() };
    let all = store.events(&filter, None, 100).await.unwrap();
    assert_eq!(all.iter().filter(|e| e.event_id == started.event_id).count(), 1);
    // A later owner wins whatever its clock says; the earlier one's stragglers change nothing.
    store.store_events(&[lifecycle(row.id, 6, 1, "FAILED", Some("no"))]).await.unwrap();
    store.store_events(&[lifecycle(row.id, 5, 9, "STOPPED", None)]).await.unwrap();
    assert_eq!(status().await, Some(("FAILED".to_owned(), 6)));
    store
        .store_events(&[lifecycle(row.id, 6, 3, "STARTED", None), lifecycle(row.id, 6, 2, "STOPPED", None)])
        .await
        .unwrap();
    assert_eq!(status().await, Some(("STARTED".to_owned(), 6)));
    store.restart(row.id, None, saved(2)).await.unwrap();
    assert_eq!(status().await, Some((String::new(), 6)), "void until the next event");
    store.reset_epochs(3).await.unwrap();
    store.store_events(&[lifecycle(row.id, 1, 1, "STARTED", None)]).await.unwrap();
    assert_eq!(status().await, Some(("STARTED".to_owned(), 1)));
    let stranger = IntegrationId(Uuid::new_v4());
    store.store_events(&[lifecycle(stranger, 1, 1, "STARTED", None)]).await.unwrap();
    assert!(store.statuses(&[stranger]).await.unwrap().is_empty(), "stragglers of the gone have no status");
    // Pages, newest first.
    let ids = |rows: &[EventRow]| rows.iter().map(|event| event.event_id).collect::<Vec<_>>();
    let all = ids(&store.events(&filter, None, 100).await.unwrap());
    let mut paged = store.events(&filter, None, 3).await.unwrap();
    let last = paged.last().unwrap();
    let before = Some((last.time_ms, last.event_id));
    paged.extend(store.events(&filter, before, 100).await.unwrap());
    assert_eq!(ids(&paged), all);
}

async fn reordered_and_repeated_events_end_in_the_same_status_whatever_their_clocks(store: &Store) {
    let seed = 7;
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..20 {
        let row = store.create(new(&format!("reordered {round}")), saved(1)).await.unwrap();
        let mut events = Vec::new();
        for epoch in 1..=3 {
            for seq in 1..=4 {
                let event = ["STARTED", "FAILED", "STOPPED"][random.random_range(0..3)];
                // Clocks jump, by years and in either direction.
                let time_ms = random.random_range(0..4_000_000_000_000);
                events.push(EventRow { time_ms, ..lifecycle(row.id, epoch, seq, event, None) });
            }
        }
        let newest = events.last().unwrap().clone();
        let EventBody::Lifecycle { event, .. } = &newest.body else { unreachable!() };
        // Everything comes twice, in any order, in batches of any size.
        let mut sent = [events.clone(), events].concat();
        sent.shuffle(&mut random);
        let mut rest = sent.as_slice();
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(random.random_range(1..=rest.len()));
            store.store_events(batch).await.unwrap();
            rest = later;
        }
        let status = store.statuses(&[row.id]).await.unwrap().remove(0);
        assert_eq!(
            (status.event.as_str(), status.epoch, status.time_ms),
            (event.as_str(), 3, newest.time_ms),
            "seed {seed}, round {round}: {sent:?}"
        );
        let filter = EventFilter { integration: Some(row.id), ..EventFilter::default() };
        let stored = store.events(&filter, None, 100).await.unwrap();
        assert_eq!(stored.iter().filter(|event| event.epoch > 0).count(), 12, "each once");
    }
}

async fn a_large_batch_moves_each_status_on_once(store: &Store) {
    // More than one statement holds.
    let mut ids = Vec::new();
    for i in 0..520 {
        ids.push(store.create(new(&format!("batch {i}")), saved(1)).await.unwrap().id);
    }
    let gone = IntegrationId(Uuid::new_v4());
    let mut batch = vec![lifecycle(gone, 1, 1, "STARTED", None)];
    batch.extend(ids.iter().map(|id| lifecycle(*id, 1, 1, "STARTED", None)));
    batch.extend(ids.iter().map(|id| lifecycle(*id, 2, 1, "FAILED", Some("no"))));
    batch.extend(ids.iter().map(|id| lifecycle(*id, 1, 2, "STOPPED", None)));
    batch.extend(ids.iter().map(|id| EventRow { shard: 1, ..lifecycle(*id, 1, 1, "STARTED", None) }));
    let before = store.revision().await.unwrap();
    store.store_events(&batch).await.unwrap();
    let statuses = store.statuses(&ids).await.unwrap();
    let of_shard = |shard: u32| -> Vec<_> {
        let rows = statuses.iter().filter(|status| status.shard == shard);
        rows.map(|status| (status.event.as_str(), status.success, status.epoch)).collect()
    };
    assert_eq!(of_shard(0), vec![("FAILED", false, 2); ids.len()]);
    assert_eq!(of_shard(1), vec![("STARTED", true, 1); ids.len()]);
    // One change for each integration, under numbers without a gap.
    let changes = store.changes_after(before, None, 1_000).await.unwrap();
    let numbers: Vec<u64> = changes.iter().map(|change| change.seq).collect();
    assert_eq!(numbers, (before + 1..=before + ids.len() as u64).collect::<Vec<_>>());
    assert_eq!(store.revision().await.unwrap(), *numbers.last().unwrap());
    ids.sort();
    assert_eq!(changes.iter().map(|change| change.integration).collect::<Vec<_>>(), ids);
    // Read again, it changes nothing.
    store.store_events(&batch).await.unwrap();
    assert_eq!(store.changes_after(before, None, 1_000).await.unwrap(), changes);
    assert_eq!(store.statuses(&ids).await.unwrap().len(), 2 * ids.len());
}

async fn lives_go_on_and_park(store: &Store) {
    let row = store.create(new("parked"), saved(1)).await.unwrap();
    let mut life = store.life(row.id).await.unwrap().unwrap();
    let mut stale = life.clone();
    life.life.created();
    assert!(store.save_life(&mut life).await.unwrap());
    stale.life.created();
    assert!(!store.save_life(&mut stale).await.unwrap(), "two writers notice each other");
    store.set_enabled(row.id, None, false, saved(100)).await.unwrap();
    assert_eq!(store.park_disabled(100).await.unwrap(), 0);
    assert_eq!(store.park_disabled(101).await.unwrap(), 1);
    assert_eq!(store.park_disabled(101).await.unwrap(), 0, "it is on its way already");
    let mut life =
        store.restless_lives().await.unwrap().into_iter().find(|life| life.integration == row.id).unwrap();
    for stage in [
        Stage::AwaitNodes { position: 7 },
        Stage::AwaitStop { deadline: Millis(9) },
        Stage::Delete,
        Stage::Parked,
    ] {
        life.life.stage = stage;
        assert!(store.save_life(&mut life).await.unwrap());
        assert_eq!(store.life(row.id).await.unwrap().unwrap(), life);
    }
    store.set_enabled(row.id, None, true, saved(200)).await.unwrap();
    let life = store.life(row.id).await.unwrap().unwrap().life;
    assert_eq!((life.stage, life.generation), (Stage::Create, 2));
    store.delete(row.id, None, saved(201)).await.unwrap();
    store.bury(row.id).await.unwrap();
    assert_eq!(store.life(row.id).await.unwrap(), None);
}

async fn many_lives_are_saved_at_once_but_those_that_others_have_changed(store: &Store) {
    let mut lives = Vec::new();
    for i in 0..450 {
        let row = store.create(new(&format!("many {i}")), saved(1)).await.unwrap();
        lives.push(store.life(row.id).await.unwrap().unwrap());
    }
    let gone = [3, 449];
    for index in gone {
        store.delete(lives[index].integration, None, saved(2)).await.unwrap();
    }
    for life in &mut lives {
        life.life.created();
    }
    lives[7].life.stage = Stage::AwaitNodes { position: 7 };
    let is_saved = store.save_lives(&mut lives).await.unwrap();
    let refused: Vec<usize> = (0..lives.len()).filter(|index| !is_saved[*index]).collect();
    assert_eq!((is_saved.len(), refused), (lives.len(), gone.to_vec()));
    for (index, life) in lives.iter_mut().enumerate().filter(|(index, _)| !gone.contains(index)) {
        assert_eq!(store.life(life.integration).await.unwrap().as_ref(), Some(&*life), "{index}");
        // It may be saved on.
        life.life.stage = Stage::Live;
    }
    let again = store.save_lives(&mut lives).await.unwrap();
    assert_eq!(again, is_saved);
    let marks = store.marks(1_000).await.unwrap();
    let projection = |revision| Projection { revision, partition: 0, position: 1 };
    let done: Vec<_> = marks.iter().map(|mark| (*mark, projection(mark.revision))).collect();
    store.projected(&done, 1).await.unwrap();
    assert!(store.marks(1_000).await.unwrap().is_empty());
    let ids: Vec<IntegrationId> = marks.iter().map(|mark| mark.integration).collect();
    assert_eq!(store.projections(&ids).await.unwrap().len(), marks.len());
    for life in &lives {
        store.delete(life.integration, None, saved(2)).await.ok();
        store.bury(life.integration).await.unwrap();
    }
    for mark in store.marks(1_000).await.unwrap() {
        store.clear_mark(mark).await.unwrap();
    }
}

async fn leases_have_one_holder(store: &Store) {
    let free = store.observe_lease("test").await.unwrap();
    assert_eq!(free.holder, "");
    let mut first = store.take_lease("test", &free, "a").await.unwrap().unwrap();
    assert_eq!(store.take_lease("test", &free, "b").await.unwrap(), None, "it does not stand so any more");
    assert!(store.renew_lease("test", &mut first, "a").await.unwrap());
    let seen = store.observe_lease("test").await.unwrap();
    let second = store.take_lease("test", &seen, "b").await.unwrap().unwrap();
    assert!(second.fencing > first.fencing);
    assert!(!store.renew_lease("test", &mut first, "a").await.unwrap());
    store.release_lease("test", first).await.unwrap();
    assert_eq!(store.observe_lease("test").await.unwrap().holder, "b", "only the holder gives back");
    store.release_lease("test", second).await.unwrap();
    assert_eq!(store.observe_lease("test").await.unwrap().holder, "");
}

async fn sessions_belong_to_the_newest_incarnation(store: &Store) {
    let session = |incarnation: &str| SessionRow {
        service_id: "dp1".to_owned(),
        incarnation: incarnation.to_owned(),
        replica: "cp1".to_owned(),
        version: "1".to_owned(),
        addresses: vec!["mqtt://h:1883".to_owned()],
        capabilities: vec!["commands".to_owned()],
        replica_incarnation: "a".to_owned(),
        replica_address: "http://cp1:9090".to_owned(),
        seen_ms: 10,
        connections: 0,
        draining: false,
    };
    assert_eq!(store.open_session(&session("2")).await.unwrap(), None);
    assert_eq!(store.open_session(&session("1")).await.unwrap(), Some("2".to_owned()));
    let beat = SessionRow { seen_ms: 20, connections: 7, draining: true, ..session("2") };
    assert_eq!(store.touch_session(&beat).await.unwrap(), None);
    assert_eq!(store.session("dp1").await.unwrap(), Some(beat));
    assert_eq!(store.open_session(&session("3")).await.unwrap(), None);
    assert_eq!(store.touch_session(&session("2")).await.unwrap(), Some("3".to_owned()));
    store.close_session(&session("2")).await.unwrap();
    assert_eq!(store.sessions(0).await.unwrap(), [session("3")]);
    assert!(store.sessions(11).await.unwrap().is_empty());
    // The same process goes to another control plane; the former one ends its session late.
    let moved = SessionRow {
        replica: "cp2".to_owned(),
        replica_incarnation: "b".to_owned(),
        replica_address: "http://cp2:9090".to_owned(),
        ..session("3")
    };
    assert_eq!(store.open_session(&moved).await.unwrap(), None);
    store.close_session(&session("3")).await.unwrap();
    assert_eq!(store.touch_session(&session("3")).await.unwrap(), Some("3".to_owned()));
    assert_eq!(store.session("dp1").await.unwrap(), Some(moved.clone()));
    store.close_session(&moved).await.unwrap();
    assert_eq!(store.touch_session(&moved).await.unwrap(), Some(String::new()));
    assert_eq!(store.session("dp1").await.unwrap(), None);
}

async fn kinds_are_kept(store: &Store) {
    let kind = |schema: &str| KindRow {
        name: "HTTP".to_owned(),
        json_schema: schema.to_owned(),
        schema_hash: "h".to_owned(),
    };
    store.save_kind(&kind("{}"), 1).await.unwrap();
    store.save_kind(&kind("true"), 2).await.unwrap();
    assert_eq!(store.kinds().await.unwrap(), [kind("true")]);
}

async fn concurrent_writers_get_distinct_revisions(store: &Store) {
    let row = store.create(new("busy"), saved(1)).await.unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|i| {
            let (store, id) = (store.clone(), row.id);
            tokio::spawn(
                async move { store.set_enabled(id, None, i % 2 == 0, saved(i)).await.unwrap().revision },
            )
        })
        .collect();
    let mut last = 0;
    for task in tasks {
        last = last.max(task.await.unwrap());
    }
    assert_eq!(store.get(row.id).await.unwrap().revision, last, "the last revision is the last change");
}

fn sqlite(folder: &Path) -> Options {
    Options::sqlite(&folder.join("store.db"))
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    contract(sqlite(folder.path())).await;
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable() {
    let options =
        Options { url: "postgres://nobody@127.0.0.1:1/x".to_owned(), ..sqlite(Path::new("/nowhere")) };
    assert!(matches!(Store::open(&options).await.unwrap_err(), Error::Unavailable(_)));
}
