//! What every adapter promises: one suite, run for each.

use std::{future::Future, sync::Arc};

use bytes::Bytes;

use super::{
    Action, Change, Error, InFlight, Limits, Outcome, Page, ReadLimit, Record, Seq, Session, SessionStore,
    Stage, State, Stored, StoredWill,
};

/// A place for sessions that a store can be opened over again and again.
pub(super) trait Place: Sized {
    /// An empty place; `None` when the machine lacks what it needs.
    fn new(test: &str) -> impl Future<Output = Option<Self>>;

    /// Opens a store over what is there. An earlier one is closed.
    fn open(&mut self, limits: Limits) -> impl Future<Output = Arc<dyn SessionStore>>;

    /// Rows or keys that lie there.
    fn leftovers(&mut self) -> impl Future<Output = usize>;
}

/// The tests, for one kind of place.
macro_rules! contract {
    ($place:ty) => {
        $crate::session_store::contract::contract!($place:
            records_come_in_the_order_in_which_they_were_appended,
            reading_goes_on_after_a_cursor_within_its_limits,
            what_is_settled_is_not_read_again,
            at_the_limit_of_records_the_oldest_that_wait_give_way_and_are_counted,
            at_the_limit_of_bytes_the_oldest_that_wait_give_way_and_are_counted,
            what_is_in_flight_never_gives_way,
            a_record_that_can_never_fit_is_refused_and_costs_no_other,
            records_expire_with_the_message_or_the_stores_time_to_live,
            what_was_sent_does_not_expire,
            a_lesser_epoch_is_fenced_and_changes_nothing,
            a_session_that_is_not_open_is_unknown,
            packet_ids_and_stages_survive,
            a_packet_id_that_comes_round_again_overwrites_nothing,
            publishes_that_were_not_released_survive,
            a_will_survives_with_its_time,
            a_clean_start_forgets_all_but_the_session,
            removal_leaves_nothing,
            nobody_sees_a_part_of_a_batch,
            a_record_moves_from_one_session_to_another_in_one_step,
            large_records_are_kept_whole,
            thousands_of_sessions_in_one_batch,
            any_client_id_has_a_session_of_its_own,
            a_closed_store_says_so,
        );
    };
    ($place:ty: $($claim:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $claim() {
            use $crate::session_store::contract::{self, Place as _};
            let Some(mut place) = <$place>::new(stringify!($claim)).await else { return };
            contract::$claim(&mut place).await;
        }
    )*};
}
pub(super) use contract;

const NOW: i64 = 1_800_000_000_000;

const ALL: ReadLimit = ReadLimit { records: usize::MAX, bytes: usize::MAX };

fn record(value: impl Into<Bytes>) -> Record {
    Record { value: value.into(), expires_at_ms: None }
}

fn append(session: &Session, value: impl Into<Bytes>) -> Change {
    change(session, Action::Append(record(value)))
}

fn change(session: &Session, action: Action) -> Change {
    Change { session: session.clone(), action }
}

fn settle(session: &Session, through: Seq, settled: &[Seq]) -> Change {
    change(session, Action::Acknowledge { through, settled: settled.to_vec(), in_flight: Vec::new() })
}

fn note(session: &Session, notes: &[(Seq, u16, Stage)]) -> Change {
    let in_flight =
        notes.iter().map(|(seq, packet_id, stage)| (*seq, InFlight { packet_id: *packet_id, stage: *stage }));
    let in_flight = in_flight.collect();
    change(session, Action::Acknowledge { through: 0, settled: Vec::new(), in_flight })
}

fn kept(seq: Seq) -> Result<Outcome, Error> {
    Ok(Outcome::Appended { seq, dropped: 0 })
}

async fn opened(store: &Arc<dyn SessionStore>, client_id: &str, epoch: u64) -> Session {
    let session = Session::new(client_id, epoch);
    state(store, &session).await;
    session
}

async fn state(store: &Arc<dyn SessionStore>, session: &Session) -> State {
    let mut states = store.open(std::slice::from_ref(session)).await;
    assert_eq!(states.len(), 1);
    states.remove(0).unwrap()
}

/// Applies one change.
async fn apply(store: &Arc<dyn SessionStore>, change: Change) -> Result<Outcome, Error> {
    let mut results = store.apply(NOW, vec![change]).await;
    assert_eq!(results.len(), 1);
    results.remove(0)
}

/// Appends records, which nothing gives way to; their numbers.
async fn fill<V: Into<Bytes>>(
    store: &Arc<dyn SessionStore>,
    session: &Session,
    values: impl IntoIterator<Item = V>,
) {
    let changes: Vec<_> = values.into_iter().map(|value| append(session, value)).collect();
    for result in store.apply(NOW, changes).await {
        assert!(matches!(result, Ok(Outcome::Appended { dropped: 0, .. })), "{result:?}");
    }
}

async fn read(store: &Arc<dyn SessionStore>, session: &Session) -> Page {
    store.read(NOW, session, 0, ALL).await.unwrap()
}

/// Number and value of all records.
async fn records(store: &Arc<dyn SessionStore>, session: &Session) -> Vec<(Seq, Bytes)> {
    let page = read(store, session).await;
    assert_eq!((page.expired, page.next_after), (0, None));
    page.records.into_iter().map(|stored| (stored.seq, stored.value)).collect()
}

fn texts(from: u64, to: u64) -> Vec<(Seq, Bytes)> {
    (from..=to).map(|seq| (seq, Bytes::from(seq.to_string()))).collect()
}

pub(super) async fn records_come_in_the_order_in_which_they_were_appended(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let [a, b] = [opened(&store, "a", 1).await, opened(&store, "b", 1).await];
    let changes = vec![append(&a, "1"), append(&b, "x"), append(&a, "2"), append(&b, "y")];
    assert_eq!(store.apply(NOW, changes).await, [kept(1), kept(1), kept(2), kept(2)]);
    for number in 3..300_u64 {
        assert_eq!(apply(&store, append(&a, number.to_string())).await, kept(number));
    }
    assert_eq!(records(&store, &a).await, texts(1, 299));
    assert_eq!(records(&store, &b).await, [(1, "x".into()), (2, "y".into())]);
    let state = state(&store, &a).await;
    assert_eq!((state.is_present, state.last, state.records, state.bytes), (true, 299, 299, 9 + 180 + 600));
    let store = place.open(Limits::default()).await;
    assert_eq!(records(&store, &a).await, texts(1, 299));
    assert_eq!(apply(&store, append(&a, "300")).await, kept(300));
}

pub(super) async fn reading_goes_on_after_a_cursor_within_its_limits(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 1).await;
    fill(&store, &session, (1..=10_u32).map(|number| vec![number as u8; 100])).await;
    let page = async |after, records, bytes| {
        let page = store.read(NOW, &session, after, ReadLimit { records, bytes }).await.unwrap();
        (page.records.iter().map(|stored| stored.seq).collect::<Vec<_>>(), page.next_after)
    };
    assert_eq!(page(0, 4, usize::MAX).await, (vec![1, 2, 3, 4], Some(4)));
    assert_eq!(page(4, 4, usize::MAX).await, (vec![5, 6, 7, 8], Some(8)));
    assert_eq!(page(8, 4, usize::MAX).await, (vec![9, 10], None));
    assert_eq!(page(10, 4, usize::MAX).await, (vec![], None));
    assert_eq!(page(0, 10, 250).await, (vec![1, 2], Some(2)));
    assert_eq!(page(2, 10, 1).await, (vec![3], Some(3)), "one is read whatever its size");
}

pub(super) async fn what_is_settled_is_not_read_again(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 1).await;
    fill(&store, &session, (1..=6).map(|number: u32| number.to_string())).await;
    let numbers =
        async |store: &_| records(store, &session).await.iter().map(|(seq, _)| *seq).collect::<Vec<_>>();
    assert_eq!(apply(&store, settle(&session, 0, &[2, 4])).await, Ok(Outcome::Done));
    assert_eq!(numbers(&store).await, [1, 3, 5, 6]);
    assert_eq!(apply(&store, settle(&session, 3, &[])).await, Ok(Outcome::Done));
    assert_eq!(numbers(&store).await, [5, 6]);
    // Again, and beyond the end: nothing that is not there yet goes.
    assert_eq!(apply(&store, settle(&session, 99, &[4, 5, 77])).await, Ok(Outcome::Done));
    assert_eq!(apply(&store, append(&session, "7")).await, kept(7));
    let store = place.open(Limits::default()).await;
    assert_eq!(numbers(&store).await, [7]);
    let state = state(&store, &session).await;
    assert_eq!((state.last, state.records, state.bytes), (7, 1, 1));
}

pub(super) async fn at_the_limit_of_records_the_oldest_that_wait_give_way_and_are_counted(
    place: &mut impl Place,
) {
    let store = place.open(Limits { records: 3, ..Limits::default() }).await;
    let session = opened(&store, "a", 1).await;
    fill(&store, &session, ["1", "2", "3"]).await;
    let dropped_one = |seq| Ok(Outcome::Appended { seq, dropped: 1 });
    assert_eq!(apply(&store, append(&session, "4")).await, dropped_one(4));
    let batch = (5..=9).map(|number: u32| append(&session, number.to_string())).collect();
    assert_eq!(store.apply(NOW, batch).await, [5, 6, 7, 8, 9].map(dropped_one), "within one batch, too");
    assert_eq!(records(&store, &session).await, texts(7, 9));
    assert_eq!(state(&store, &session).await.records, 3);
}

pub(super) async fn at_the_limit_of_bytes_the_oldest_that_wait_give_way_and_are_counted(
    place: &mut impl Place,
) {
    let store = place.open(Limits { bytes: 100, ..Limits::default() }).await;
    let session = opened(&store, "a", 1).await;
    fill(&store, &session, [30, 30, 30].map(|length| vec![7; length])).await;
    assert_eq!(
        apply(&store, append(&session, vec![8; 45])).await,
        Ok(Outcome::Appended { seq: 4, dropped: 2 })
    );
    let lengths: Vec<_> = records(&store, &session).await.iter().map(|(_, value)| value.len()).collect();
    assert_eq!(lengths, [30, 45]);
    assert_eq!(state(&store, &session).await.bytes, 75);
}

pub(super) async fn what_is_in_flight_never_gives_way(place: &mut impl Place) {
    let store = place.open(Limits { records: 3, ..Limits::default() }).await;
    let session = opened(&store, "a", 1).await;
    fill(&store, &session, ["1", "2", "3"]).await;
    apply(&store, note(&session, &[(1, 11, Stage::Publish), (2, 12, Stage::Publish)])).await.unwrap();
    assert_eq!(apply(&store, append(&session, "4")).await, Ok(Outcome::Appended { seq: 4, dropped: 1 }));
    apply(&store, note(&session, &[(4, 14, Stage::Publish)])).await.unwrap();
    assert_eq!(apply(&store, append(&session, "5")).await, Ok(Outcome::Full));
    let found = read(&store, &session).await.records;
    let found: Vec<_> =
        found.iter().map(|stored| (stored.seq, stored.in_flight.map(|note| note.packet_id))).collect();
    assert_eq!(found, [(1, Some(11)), (2, Some(12)), (4, Some(14))]);
    apply(&store, settle(&session, 1, &[])).await.unwrap();
    assert!(matches!(apply(&store, append(&session, "6")).await, Ok(Outcome::Appended { dropped: 0, .. })));
}

pub(super) async fn a_record_that_can_never_fit_is_refused_and_costs_no_other(place: &mut impl Place) {
    let store = place.open(Limits { bytes: 100, ..Limits::default() }).await;
    let session = opened(&store, "a", 1).await;
    fill(&store, &session, ["1", "2"]).await;
    assert_eq!(apply(&store, append(&session, vec![0; 101])).await, Ok(Outcome::Full));
    assert_eq!(records(&store, &session).await, texts(1, 2));
    apply(&store, note(&session, &[(1, 1, Stage::Publish)])).await.unwrap();
    assert_eq!(apply(&store, append(&session, vec![0; 100])).await, Ok(Outcome::Full));
    assert_eq!(records(&store, &session).await, texts(1, 2), "what waits does not go in vain");
}

pub(super) async fn records_expire_with_the_message_or_the_stores_time_to_live(place: &mut impl Place) {
    let store = place.open(Limits { ttl_ms: 5_000, ..Limits::default() }).await;
    let session = opened(&store, "a", 1).await;
    let expiring = |text: &'static str, expires_at_ms| {
        change(&session, Action::Append(Record { value: text.into(), expires_at_ms }))
    };
    let changes = vec![
        expiring("1", Some(NOW + 1_000)),
        expiring("2", None),
        expiring("3", Some(NOW + 2_000)),
        expiring("4", Some(NOW + 60_000)),
    ];
    assert_eq!(store.apply(NOW, changes).await, [1, 2, 3, 4].map(kept));
    let at = async |now_ms| {
        let page = store.read(now_ms, &session, 0, ALL).await.unwrap();
        (page.records.iter().map(|stored| stored.seq).collect::<Vec<_>>(), page.expired)
    };
    assert_eq!(at(NOW + 999).await, (vec![1, 2, 3, 4], 0));
    assert_eq!(at(NOW + 1_000).await, (vec![2, 3, 4], 1));
    assert_eq!(at(NOW + 2_000).await, (vec![2, 4], 2));
    assert_eq!(at(NOW + 5_000).await, (vec![], 4));
    let end = store.read(NOW + 5_000, &session, 0, ALL).await.unwrap();
    assert_eq!(end.next_after, None);
}

pub(super) async fn what_was_sent_does_not_expire(place: &mut impl Place) {
    let store = place.open(Limits { ttl_ms: 5_000, ..Limits::default() }).await;
    let session = opened(&store, "a", 1).await;
    fill(&store, &session, ["1", "2", "3"]).await;
    apply(&store, note(&session, &[(1, 1, Stage::Publish), (2, 2, Stage::Pubrel)])).await.unwrap();
    let page = store.read(NOW + 3_600_000, &session, 0, ALL).await.unwrap();
    let found: Vec<_> = page.records.iter().map(|stored| stored.seq).collect();
    assert_eq!((found, page.expired), (vec![1, 2], 1));
}

pub(super) async fn a_lesser_epoch_is_fenced_and_changes_nothing(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let old = opened(&store, "a", 7).await;
    let other = opened(&store, "b", 1).await;
    fill(&store, &old, ["1"]).await;
    let new = opened(&store, "a", 9).await;
    let fenced = || Err(Error::Fenced { epoch: 9 });
    let changes = vec![
        append(&old, "x"),
        append(&other, "1"),
        settle(&old, 1, &[]),
        change(&old, Action::Remove),
        change(&old, Action::Clear),
        append(&new, "2"),
    ];
    assert_eq!(
        store.apply(NOW, changes).await,
        [fenced(), kept(1), fenced(), fenced(), fenced(), kept(2)],
        "the others' changes are made"
    );
    assert_eq!(store.read(NOW, &old, 0, ALL).await, Err(Error::Fenced { epoch: 9 }));
    assert_eq!(store.open(std::slice::from_ref(&old)).await, [Err(Error::Fenced { epoch: 9 })]);
    assert_eq!(records(&store, &new).await, texts(1, 2));
    // An epoch counts from its first change on, and for good.
    let newest = Session::new("a", 12);
    assert_eq!(apply(&store, append(&newest, "3")).await, kept(3));
    let store = place.open(Limits::default()).await;
    assert_eq!(apply(&store, append(&new, "x")).await, Err(Error::Fenced { epoch: 12 }));
    assert_eq!(records(&store, &newest).await, texts(1, 3));
}

pub(super) async fn a_session_that_is_not_open_is_unknown(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = Session::new("a", 1);
    let before = place.leftovers().await;
    assert_eq!(apply(&store, append(&session, "1")).await, Err(Error::Unknown));
    assert_eq!(store.read(NOW, &session, 0, ALL).await, Err(Error::Unknown));
    assert_eq!(place.leftovers().await, before);
    let [Ok(state)] = &store.open(std::slice::from_ref(&session)).await[..] else { panic!("not opened") };
    assert_eq!(*state, State::default());
    assert!(self::state(&store, &session).await.is_present);
    assert_eq!(records(&store, &session).await, []);
}

pub(super) async fn packet_ids_and_stages_survive(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 1).await;
    fill(&store, &session, ["1", "2", "3", "4"]).await;
    let notes = [(1, 500, Stage::Publish), (2, 501, Stage::Publish), (3, 502, Stage::Publish)];
    apply(&store, note(&session, &notes)).await.unwrap();
    let progress = Action::Acknowledge {
        through: 1,
        settled: vec![],
        in_flight: vec![
            (2, InFlight { packet_id: 501, stage: Stage::Pubrel }),
            (77, InFlight { packet_id: 9, stage: Stage::Publish }),
        ],
    };
    apply(&store, change(&session, progress)).await.unwrap();
    let store = place.open(Limits::default()).await;
    let stored = |seq, value: &'static str, in_flight: Option<(u16, Stage)>| Stored {
        seq,
        value: value.into(),
        in_flight: in_flight.map(|(packet_id, stage)| InFlight { packet_id, stage }),
    };
    let expected = [
        stored(2, "", Some((501, Stage::Pubrel))),
        stored(3, "3", Some((502, Stage::Publish))),
        stored(4, "4", None),
    ];
    assert_eq!(read(&store, &session).await.records, expected);
    let state = state(&store, &session).await;
    assert_eq!((state.records, state.bytes), (3, 2), "a message whose PUBREL was sent is not needed");
    apply(&store, settle(&session, 0, &[2])).await.unwrap();
    assert_eq!(read(&store, &session).await.records, expected[1..]);
}

/// Broker spec §2.5: TBMQ lost a message whose packet id came round again.
pub(super) async fn a_packet_id_that_comes_round_again_overwrites_nothing(place: &mut impl Place) {
    let limits = Limits { records: 200_000, ..Limits::default() };
    let store = place.open(limits).await;
    let session = opened(&store, "a", 1).await;
    let mut packet_id = 0_u16;
    let mut last = 0;
    for _ in 0..70 {
        let mut changes: Vec<_> = (0..1000).map(|_| append(&session, "m")).collect();
        let notes: Vec<_> = (last + 1..=last + 1000)
            .map(|seq| {
                packet_id = packet_id.checked_add(1).unwrap_or(1);
                (seq, packet_id, Stage::Publish)
            })
            .collect();
        changes.push(note(&session, &notes));
        last += 1000;
        for result in store.apply(NOW, changes).await {
            result.unwrap();
        }
    }
    let found = read(&store, &session).await.records;
    let of_one: Vec<_> =
        found.iter().filter(|stored| stored.in_flight.is_some_and(|note| note.packet_id == 1)).collect();
    assert_eq!(of_one.iter().map(|stored| stored.seq).collect::<Vec<_>>(), [1, 65_536]);
    assert!(found.iter().map(|stored| stored.seq).eq(1..=70_000));
    apply(&store, settle(&session, 0, &[65_536])).await.unwrap();
    let first = store.read(NOW, &session, 0, ReadLimit { records: 1, bytes: 100 }).await.unwrap();
    assert_eq!(
        first.records,
        [Stored {
            seq: 1,
            value: "m".into(),
            in_flight: Some(InFlight { packet_id: 1, stage: Stage::Publish })
        }]
    );
}

pub(super) async fn publishes_that_were_not_released_survive(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 1).await;
    let received = |taken: &[u16], released: &[u16]| {
        change(&session, Action::Received { taken: taken.to_vec(), released: released.to_vec() })
    };
    apply(&store, received(&[65_535, 1, 300], &[])).await.unwrap();
    apply(&store, received(&[2, 1], &[300, 4])).await.unwrap();
    let store = place.open(Limits::default()).await;
    assert_eq!(state(&store, &session).await.received, [1, 2, 65_535]);
    apply(&store, received(&[], &[1, 2, 65_535])).await.unwrap();
    assert!(state(&store, &session).await.received.is_empty());
}

pub(super) async fn a_will_survives_with_its_time(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 1).await;
    for due_at_ms in [None, Some(NOW + 60_000), Some(0)] {
        let will = StoredWill { value: Bytes::from_static(b"\0gone\xff"), due_at_ms };
        let store = place.open(Limits::default()).await;
        apply(&store, change(&session, Action::SetWill(Some(will.clone())))).await.unwrap();
        let store = place.open(Limits::default()).await;
        assert_eq!(state(&store, &session).await.will, Some(will));
    }
    let store = place.open(Limits::default()).await;
    apply(&store, change(&session, Action::SetWill(None))).await.unwrap();
    assert_eq!(state(&store, &session).await.will, None);
}

/// Puts something of each kind into a session.
async fn stuff(store: &Arc<dyn SessionStore>, session: &Session) {
    fill(store, session, ["1", "2", "3"]).await;
    apply(store, note(session, &[(1, 1, Stage::Pubrel), (2, 2, Stage::Publish)])).await.unwrap();
    apply(store, change(session, Action::Received { taken: vec![5, 6], released: vec![] })).await.unwrap();
    let will = StoredWill { value: "gone".into(), due_at_ms: None };
    apply(store, change(session, Action::SetWill(Some(will)))).await.unwrap();
}

pub(super) async fn a_clean_start_forgets_all_but_the_session(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 3).await;
    stuff(&store, &session).await;
    let changes = vec![change(&session, Action::Clear), append(&session, "4")];
    assert_eq!(store.apply(NOW, changes).await, [Ok(Outcome::Done), kept(4)], "no number is given twice");
    let store = place.open(Limits::default()).await;
    let expected = State { is_present: true, last: 4, sent: 3, records: 1, bytes: 1, ..State::default() };
    assert_eq!(state(&store, &session).await, expected);
    assert_eq!(read(&store, &session).await.records, [Stored { seq: 4, value: "4".into(), in_flight: None }]);
    assert_eq!(apply(&store, append(&Session::new("a", 2), "x")).await, Err(Error::Fenced { epoch: 3 }));
}

pub(super) async fn removal_leaves_nothing(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let before = place.leftovers().await;
    let other = opened(&store, "ab", 1).await;
    fill(&store, &other, ["1"]).await;
    let with_other = place.leftovers().await;
    assert!(with_other > before);
    let session = opened(&store, "a", 1).await;
    stuff(&store, &session).await;
    assert!(place.leftovers().await > with_other);
    let changes = vec![append(&session, "4"), change(&session, Action::Remove), append(&session, "5")];
    assert_eq!(store.apply(NOW, changes).await, [kept(4), Ok(Outcome::Done), Err(Error::Unknown)]);
    assert_eq!(place.leftovers().await, with_other);
    let [Ok(state)] = &store.open(std::slice::from_ref(&session)).await[..] else { panic!("not opened") };
    assert_eq!(*state, State::default());
    let results =
        store.apply(NOW, [&session, &other].map(|session| change(session, Action::Remove)).into()).await;
    assert_eq!(results, [Ok(Outcome::Done), Ok(Outcome::Done)]);
    assert_eq!(place.leftovers().await, before);
}

pub(super) async fn nobody_sees_a_part_of_a_batch(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 1).await;
    let reading = tokio::spawn({
        let (store, session) = (store.clone(), session.clone());
        async move {
            let mut sizes = Vec::new();
            while sizes.last() != Some(&500) {
                sizes.push(read(&store, &session).await.records.len());
            }
            sizes
        }
    });
    for _ in 0..10 {
        fill(&store, &session, ["m"; 50]).await;
    }
    let sizes = reading.await.unwrap();
    assert!(sizes.iter().all(|size| size % 50 == 0), "{sizes:?}");
}

pub(super) async fn a_record_moves_from_one_session_to_another_in_one_step(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let [group, member] = [opened(&store, "$share/g/t", 1).await, opened(&store, "a", 1).await];
    fill(&store, &group, ["1", "2"]).await;
    let moved = vec![append(&member, "1"), settle(&group, 1, &[])];
    assert_eq!(store.apply(NOW, moved).await, [kept(1), Ok(Outcome::Done)]);
    assert_eq!(records(&store, &group).await, [(2, "2".into())]);
    assert_eq!(records(&store, &member).await, texts(1, 1));
}

pub(super) async fn large_records_are_kept_whole(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 1).await;
    let values: Vec<Bytes> =
        (1..=4_u8).map(|seed| (0..8_u32 << 20).map(|at| (at as u8).wrapping_mul(seed)).collect()).collect();
    fill(&store, &session, values.clone()).await;
    fill(&store, &session, [Bytes::new()]).await;
    let store = place.open(Limits::default()).await;
    let found = records(&store, &session).await;
    // Not compared as a whole: a failure would print them.
    assert_eq!(found.len(), 5);
    for ((_, found), expected) in found.iter().zip(values.iter().chain([&Bytes::new()])) {
        assert!(found == expected, "a value of {} bytes came back with {}", expected.len(), found.len());
    }
}

pub(super) async fn thousands_of_sessions_in_one_batch(place: &mut impl Place) {
    const SESSIONS: usize = 5_000;
    let store = place.open(Limits::default()).await;
    let sessions: Vec<_> = (0..SESSIONS).map(|number| Session::new(format!("client-{number}"), 1)).collect();
    for result in store.open(&sessions).await {
        assert_eq!(result, Ok(State::default()));
    }
    let changes = sessions.iter().map(|session| append(session, session.client_id.to_string())).collect();
    assert_eq!(store.apply(NOW, changes).await, vec![kept(1); SESSIONS]);
    let store = place.open(Limits::default()).await;
    for session in sessions.iter().step_by(97) {
        assert_eq!(records(&store, session).await, [(1, session.client_id.to_string().into())]);
    }
    let states = store.open(&sessions).await;
    assert!(states.iter().all(|state| state.as_ref().is_ok_and(|state| state.records == 1)));
    let removals = sessions.iter().map(|session| change(session, Action::Remove)).collect();
    assert_eq!(store.apply(NOW, removals).await, vec![Ok(Outcome::Done); SESSIONS]);
}

pub(super) async fn any_client_id_has_a_session_of_its_own(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let long = "x".repeat(65_535);
    let ids = ["}", "{}", "}{", "a}", "{a", "{a}", "%7D", "ü \"'*?[]\\", "_messages", &long, &long[1..]];
    let sessions: Vec<_> = ids.iter().map(|id| Session::new(*id, 1)).collect();
    for result in store.open(&sessions).await {
        assert_eq!(result, Ok(State::default()));
    }
    let changes = sessions.iter().enumerate().map(|(index, session)| append(session, index.to_string()));
    assert_eq!(store.apply(NOW, changes.collect()).await, vec![kept(1); ids.len()]);
    for (index, session) in sessions.iter().enumerate() {
        assert_eq!(records(&store, session).await, [(1, index.to_string().into())], "{index}");
    }
}

pub(super) async fn a_closed_store_says_so(place: &mut impl Place) {
    let store = place.open(Limits::default()).await;
    let session = opened(&store, "a", 1).await;
    store.close().await;
    store.close().await;
    let results = store.apply(NOW, vec![append(&session, "1"), append(&session, "2")]).await;
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|result| matches!(result, Err(Error::Unavailable(_)))), "{results:?}");
    let page = store.read(NOW, &session, 0, ALL).await;
    assert!(matches!(page, Err(Error::Unavailable(_))), "{page:?}");
    let states = store.open(&[session]).await;
    assert!(matches!(states[..], [Err(Error::Unavailable(_))]), "{states:?}");
}
