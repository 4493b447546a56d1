//! What the driver may rely on, as tests that every kind runs against a remote end of its own.
//!
//! A kind implements [`Fixture`] over a scripted remote end and writes one line: `crate::conformance::suite!(make);`
//! where `make` is an async function without arguments that gives a fixture.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tbmq_integration::wire::Target;
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    integration::PublishIntegrationMsgProto,
    queue::PublishMsgProto,
    topic::Catalogue,
};
use tbmq_service::trace::TraceContext;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing_subscriber::filter::LevelFilter;
use uuid::Uuid;

use crate::sink::{Busy, Message, Outcome, Sink, SinkContext, SinkKind, SinkState, Ticket, payload};

/// A bound for what should happen at once; only a failed test waits so long.
const SOON: Duration = Duration::from_secs(20);

/// A bound for what should not happen; each passed test waits so long.
const A_WHILE: Duration = Duration::from_millis(100);

/// A secret in a configuration.
pub(crate) const SECRET: &str = "s3cret-0f9e:7d";

/// What the remote end does with messages from now on; with what it holds too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Takes and confirms them.
    Confirm,
    /// Takes them and says nothing.
    Hold,
    /// Ends its connections and refuses new ones.
    Away,
}

/// A kind with its scripted remote end, which confirms at first.
#[async_trait]
pub(crate) trait Fixture: Send {
    /// The kind under test.
    fn kind(&self) -> Arc<dyn SinkKind>;

    /// A configuration for the remote end, without a timeout that matters here, that delivers payloads as they are.
    fn client_configuration(&self) -> Map<String, Value>;

    /// The same, where a message that is not answered fails after at most a second.
    fn impatient_configuration(&self) -> Map<String, Value>;

    /// The kind for that, if an attempt's limit is not the configuration's but the process's.
    fn impatient_kind(&self) -> Arc<dyn SinkKind> {
        self.kind()
    }

    /// The same as the impatient one, for another remote end.
    fn configuration_at(&self, address: SocketAddr) -> Map<String, Value>;

    /// As `client_configuration`, with [`SECRET`] wherever a secret may stand.
    fn secretive_configuration(&self) -> Map<String, Value> {
        let mut configuration = self.client_configuration();
        let credentials = json!({"type": "basic", "username": "user", "password": SECRET});
        configuration.insert("credentials".to_owned(), credentials);
        configuration
    }

    /// Whether the sink notices, without a message to deliver, that its remote end is away.
    fn notices_absence(&self) -> bool {
        false
    }

    /// Changes the remote end's behaviour.
    async fn behave(&mut self, behaviour: Behaviour);

    /// Waits until the remote end holds so many messages.
    async fn held(&mut self, count: usize);

    /// Payloads that the remote end has received so far, confirmed or not.
    fn received(&self) -> Vec<Bytes>;

    /// Waits until so many different payloads are among them; nothing to wait for where what is confirmed was received.
    async fn all_arrived(&mut self, _different: usize) {}
}

/// Makes the tests of a kind.
macro_rules! suite {
    ($make:path) => {
        $crate::conformance::suite! { $make;
            checks_and_describes_itself,
            probes_without_delivering,
            every_ticket_is_answered_exactly_once,
            busy_ends_with_a_wake,
            nothing_is_answered_before_the_remote_end_has,
            an_outage_in_mid_flight_is_answered_and_survived,
            a_slow_remote_end_is_waited_for,
            a_remote_end_that_never_answers_does_not_block_for_ever,
            a_remote_end_that_accepts_and_says_nothing_is_given_up,
            away_and_back_is_told_by_the_state_or_by_answers,
            order_by_key_survives_retries,
            payloads_of_every_size_and_content_arrive_as_they_are,
            secrets_are_in_no_text,
            only_the_last_task_is_woken_and_it_is,
            a_submit_is_noticed_without_another_poll,
            an_idle_sink_is_quiet,
            close_is_bounded_and_sends_nothing_more,
            close_during_delivery_returns_what_is_unresolved,
        }
    };
    ($make:path; $($name:ident,)*) => {
        mod conformance {
            $(
                #[tokio::test]
                async fn $name() {
                    $crate::conformance::$name(&mut $make().await).await;
                }
            )*
        }
    };
}
pub(crate) use suite;

/// A message whose payload is its number.
pub(crate) fn message(number: u64) -> Message {
    message_of(number, number.to_string().into())
}

/// A message, number `number` of its partition; its topic is one of three.
pub(crate) fn message_of(number: u64, payload: Bytes) -> Message {
    let publish = PublishMsgProto {
        client_id: "client".into(),
        topic_name: format!("topic/{}", number % 3),
        payload,
        qos: 1,
        ..PublishMsgProto::default()
    };
    let publish = PublishIntegrationMsgProto {
        publish_msg_proto: Some(publish),
        tbmq_node: "node".into(),
        timestamp: 1_742_554_969_254,
        ..PublishIntegrationMsgProto::default()
    };
    Message { publish: Arc::new(publish), partition: 0, offset: number, trace: None }
}

/// As [`message`], as part of a trace.
pub(crate) fn traced(number: u64) -> Message {
    let context = TraceContext::parse(&traceparent(number)).expect("a good one");
    Message { trace: Some(Arc::new(context.with_state(Some("vendor=x")))), ..message(number) }
}

/// Of [`traced`].
pub(crate) fn traceparent(number: u64) -> String {
    format!("00-{:032x}-b7ad6b7169203331-01", number + 1)
}

/// A context with a window.
pub(crate) fn context(window: usize) -> SinkContext {
    let mut metadata = Map::new();
    metadata.insert("integrationName".into(), "under test".into());
    let integration = IntegrationId(Uuid::from_u128(1));
    SinkContext {
        shard: ShardId { integration, index: 0 },
        topic: Catalogue::default().messages(integration, 1).name.into(),
        target: Target { name: "under test".into(), enabled: true, configuration: "{}".into(), sealed: None },
        metadata: Arc::new(metadata),
        executor_id: "ie".into(),
        window,
    }
}

async fn connected(
    fixture: &dyn Fixture,
    configuration: &Map<String, Value>,
    window: usize,
) -> Box<dyn Sink> {
    connected_as(fixture.kind(), configuration, window).await
}

async fn impatient(fixture: &dyn Fixture, window: usize) -> Box<dyn Sink> {
    connected_as(fixture.impatient_kind(), &fixture.impatient_configuration(), window).await
}

async fn connected_as(
    kind: Arc<dyn SinkKind>,
    configuration: &Map<String, Value>,
    window: usize,
) -> Box<dyn Sink> {
    let connect = async {
        let mut sink = kind.connect(configuration, context(window)).await.expect("the fixture's are right");
        until(&mut *sink, |state| *state == SinkState::Ready).await;
        sink
    };
    timeout(SOON, connect).await.expect("the remote end is there")
}

/// The next answer, or a panic when there is none soon.
pub(crate) async fn answer(sink: &mut dyn Sink) -> (Ticket, Outcome) {
    timeout(SOON, poll_fn(|cx| sink.poll_outcome(cx))).await.expect("an answer comes")
}

/// Delivers a message that is expected to arrive; attempts go on through what an outage left behind.
async fn delivered(sink: &mut dyn Sink, number: u64) {
    let deadline = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < deadline, "message {number} is never delivered");
        if sink.submit(message(number), number).is_err() {
            answer(sink).await;
            continue;
        }
        loop {
            let (ticket, outcome) = answer(sink).await;
            if ticket == number {
                if outcome == Outcome::Delivered {
                    return;
                }
                break;
            }
        }
    }
}

/// Polls the sink until its state is as wanted; returns what was answered meanwhile.
async fn until(sink: &mut dyn Sink, is_wanted: impl Fn(&SinkState) -> bool) -> Vec<(Ticket, Outcome)> {
    let mut answers = Vec::new();
    let wanted = poll_fn(|cx| {
        while let Poll::Ready(answer) = sink.poll_outcome(cx) {
            answers.push(answer);
        }
        if is_wanted(&sink.state()) { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(SOON, wanted).await.expect("the state changes, and the task is woken");
    answers
}

/// As [`noticed`], when nothing has arrived: an outage says nothing about messages, so all answers are `Retry`.
async fn outage(sink: &mut dyn Sink, open: &mut BTreeSet<Ticket>) -> Vec<(Ticket, Outcome)> {
    let answers = noticed(sink, open).await;
    for (ticket, outcome) in &answers {
        assert!(matches!(outcome, Outcome::Retry { .. }), "{ticket}: {outcome:?}");
    }
    answers
}

/// Polls the sink until every open ticket is answered, or until it tells that its remote end is away: then it may keep
/// what it took until it is back.
async fn noticed(sink: &mut dyn Sink, open: &mut BTreeSet<Ticket>) -> Vec<(Ticket, Outcome)> {
    let mut answers = Vec::new();
    let noticed = poll_fn(|cx| {
        while let Poll::Ready((ticket, outcome)) = sink.poll_outcome(cx) {
            assert!(open.remove(&ticket), "{ticket} is answered once");
            answers.push((ticket, outcome));
        }
        if open.is_empty() || sink.state() != SinkState::Ready { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(SOON, noticed).await.expect("the outage is answered or told, and the task is woken");
    answers
}

/// Ends the sink; the unresolved tickets in order.
async fn closed(sink: Box<dyn Sink>, deadline: Duration) -> Vec<Ticket> {
    let mut unresolved = timeout(SOON, sink.close(deadline)).await.expect("close ends at its deadline");
    unresolved.sort_unstable();
    unresolved
}

/// Ends a sink that has answered everything.
async fn all_answered(sink: Box<dyn Sink>) {
    assert_eq!(closed(sink, SOON).await, Vec::<Ticket>::new());
}

/// The numbers that the remote end has received as payloads.
fn numbers(fixture: &impl Fixture) -> Vec<u64> {
    fixture.received().iter().map(|bytes| String::from_utf8_lossy(bytes).parse().unwrap()).collect()
}

fn submit(sink: &mut dyn Sink, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        sink.submit(message(number), number).expect("there is room");
    }
}

/// Polls the sink, which works only then, until the remote end holds so many messages.
async fn held(fixture: &mut impl Fixture, sink: &mut dyn Sink, count: usize) {
    tokio::select! {
        () = fixture.held(count) => {}
        (ticket, outcome) = poll_fn(|cx| sink.poll_outcome(cx)) => panic!("{ticket} was answered: {outcome:?}"),
        () = tokio::time::sleep(SOON) => panic!("the remote end got too little"),
    }
}

/// Counts its wakes.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    async fn woken(&self) {
        timeout(SOON, async {
            while self.count() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the task is woken");
    }
}

fn poll_with(sink: &mut dyn Sink, wakes: &Arc<Wakes>) -> Poll<(Ticket, Outcome)> {
    let waker = Waker::from(wakes.clone());
    sink.poll_outcome(&mut Context::from_waker(&waker))
}

pub(crate) async fn checks_and_describes_itself(fixture: &mut impl Fixture) {
    let kind = fixture.kind();
    assert_eq!(kind.name(), kind.name().to_uppercase());
    for configuration in [fixture.client_configuration(), fixture.impatient_configuration()] {
        assert_eq!(kind.check(&configuration), []);
    }
    let mut wrong = fixture.client_configuration();
    wrong.insert("no such field".into(), 1.into());
    wrong.insert("nor this".into(), Value::Null);
    let violations = kind.check(&wrong);
    assert_eq!(violations.len(), 2, "{violations:?}");
    assert!(violations.iter().all(|violation| violation.path.starts_with("clientConfiguration.")));
    assert!(!kind.check(&Map::new()).is_empty(), "nothing is no configuration");
    let schema = kind.schema();
    let properties = schema["properties"].as_object().expect("a schema has properties");
    for field in fixture.client_configuration().keys() {
        assert!(properties.contains_key(field), "{field} is in the schema");
    }
    let error = kind.connect(&wrong, context(1)).await.expect_err("what is refused is not connected");
    assert_eq!(error.violations, violations);
}

pub(crate) async fn probes_without_delivering(fixture: &mut impl Fixture) {
    let kind = fixture.kind();
    let configuration = fixture.client_configuration();
    let report = kind.probe(&configuration, &context(1), SOON).await;
    assert_eq!(report.error, None, "{:?}", report.stages);
    assert!(!report.stages.is_empty() && report.stages.iter().all(|stage| stage.ok), "{:?}", report.stages);
    fixture.behave(Behaviour::Away).await;
    let report = kind.probe(&configuration, &context(1), SOON).await;
    assert!(report.error.is_some(), "{:?}", report.stages);
    assert_eq!(report.stages.iter().filter(|stage| !stage.ok).count(), 1, "{:?}", report.stages);
    assert!(!report.stages.last().expect("at least the failed one").ok);
    fixture.behave(Behaviour::Hold).await;
    let start = Instant::now();
    let report = kind.probe(&configuration, &context(1), Duration::from_millis(300)).await;
    assert!(report.error.is_some(), "{:?}", report.stages);
    assert!(start.elapsed() < SOON, "a probe is bounded by its deadline");
    assert_eq!(fixture.received(), Vec::<Bytes>::new(), "a probe delivers nothing");
}

pub(crate) async fn every_ticket_is_answered_exactly_once(fixture: &mut impl Fixture) {
    const MESSAGES: u64 = 300;
    let mut sink = connected(fixture, &fixture.client_configuration(), 16).await;
    let mut answers: BTreeMap<Ticket, usize> = BTreeMap::new();
    let mut next = 0;
    while (answers.len() as u64) < MESSAGES {
        while next < MESSAGES && sink.submit(message(next), next).is_ok() {
            next += 1;
        }
        let (ticket, outcome) = answer(&mut *sink).await;
        assert_eq!(outcome, Outcome::Delivered, "{ticket}");
        *answers.entry(ticket).or_default() += 1;
    }
    assert!(answers.values().all(|count| *count == 1), "{answers:?}");
    assert!(answers.keys().copied().eq(0..MESSAGES));
    let mut received = numbers(fixture);
    received.sort_unstable();
    assert!(received.iter().copied().eq(0..MESSAGES), "{received:?}");
    all_answered(sink).await;
}

pub(crate) async fn busy_ends_with_a_wake(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 4).await;
    fixture.behave(Behaviour::Hold).await;
    let mut taken = 0;
    while sink.submit(message(taken), taken) != Err(Busy) {
        taken += 1;
        assert!(taken <= 1000, "a sink whose remote end holds everything says Busy");
    }
    assert!(taken >= 4, "the window fits");
    let wakes = Arc::new(Wakes::default());
    assert_eq!(poll_with(&mut *sink, &wakes), Poll::Pending);
    assert_eq!(sink.submit(message(taken), taken), Err(Busy), "Busy changes nothing");
    fixture.behave(Behaviour::Confirm).await;
    wakes.woken().await;
    let (_, outcome) = answer(&mut *sink).await;
    assert_eq!(outcome, Outcome::Delivered);
    assert_eq!(sink.submit(message(taken), taken), Ok(()), "an answer made room");
    for _ in 0..taken {
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
    }
    sink.close(SOON).await;
}

pub(crate) async fn nothing_is_answered_before_the_remote_end_has(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 8).await;
    fixture.behave(Behaviour::Hold).await;
    submit(&mut *sink, 0..8);
    held(fixture, &mut *sink, 8).await;
    let wakes = Arc::new(Wakes::default());
    assert_eq!(poll_with(&mut *sink, &wakes), Poll::Pending);
    fixture.behave(Behaviour::Confirm).await;
    for _ in 0..8 {
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
    }
    sink.close(SOON).await;
}

pub(crate) async fn an_outage_in_mid_flight_is_answered_and_survived(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 8).await;
    delivered(&mut *sink, 100).await;
    fixture.behave(Behaviour::Hold).await;
    submit(&mut *sink, 0..8);
    held(fixture, &mut *sink, 8).await;
    fixture.behave(Behaviour::Away).await;
    let mut open = (0..8).collect();
    outage(&mut *sink, &mut open).await;
    fixture.behave(Behaviour::Confirm).await;
    while !open.is_empty() {
        let (ticket, outcome) = answer(&mut *sink).await;
        assert!(!matches!(outcome, Outcome::Rejected { .. }), "{outcome:?}");
        assert!(open.remove(&ticket), "{ticket} is answered once");
    }
    delivered(&mut *sink, 200).await;
    sink.close(SOON).await;
}

pub(crate) async fn a_remote_end_that_never_answers_does_not_block_for_ever(fixture: &mut impl Fixture) {
    let mut sink = impatient(fixture, 4).await;
    fixture.behave(Behaviour::Hold).await;
    submit(&mut *sink, 0..4);
    for _ in 0..4 {
        let (_, outcome) = answer(&mut *sink).await;
        assert!(matches!(outcome, Outcome::Retry { class: "timeout", .. }), "{outcome:?}");
    }
    fixture.behave(Behaviour::Confirm).await;
    delivered(&mut *sink, 9).await;
    sink.close(SOON).await;
}

pub(crate) async fn only_the_last_task_is_woken_and_it_is(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 4).await;
    fixture.behave(Behaviour::Hold).await;
    submit(&mut *sink, 0..1);
    held(fixture, &mut *sink, 1).await;
    let (first, last) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
    assert_eq!(poll_with(&mut *sink, &first), Poll::Pending);
    assert_eq!(poll_with(&mut *sink, &last), Poll::Pending);
    let before = first.count();
    fixture.behave(Behaviour::Confirm).await;
    last.woken().await;
    assert_eq!(first.count(), before, "a task that went away is not woken");
    assert_eq!(answer(&mut *sink).await, (0, Outcome::Delivered));
    sink.close(SOON).await;
}

pub(crate) async fn a_submit_is_noticed_without_another_poll(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 4).await;
    let wakes = Arc::new(Wakes::default());
    assert_eq!(poll_with(&mut *sink, &wakes), Poll::Pending);
    submit(&mut *sink, 0..1);
    wakes.woken().await;
    assert_eq!(answer(&mut *sink).await, (0, Outcome::Delivered));
    sink.close(SOON).await;
}

pub(crate) async fn an_idle_sink_is_quiet(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 4).await;
    delivered(&mut *sink, 0).await;
    let wakes = Arc::new(Wakes::default());
    for _ in 0..100 {
        assert_eq!(poll_with(&mut *sink, &wakes), Poll::Pending);
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.received().len(), 1);
    sink.close(SOON).await;
}

pub(crate) async fn close_is_bounded_and_sends_nothing_more(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 8).await;
    fixture.behave(Behaviour::Hold).await;
    submit(&mut *sink, 0..8);
    held(fixture, &mut *sink, 8).await;
    let before = fixture.received();
    assert!(closed(sink, A_WHILE).await.into_iter().eq(0..8), "nothing was answered");
    fixture.behave(Behaviour::Confirm).await;
    // Another sink's message goes through, and nothing of the closed one with it.
    let mut other = connected(fixture, &fixture.client_configuration(), 1).await;
    delivered(&mut *other, 77).await;
    assert_eq!(fixture.received().len(), before.len() + 1);
    other.close(SOON).await;
}

pub(crate) async fn close_during_delivery_returns_what_is_unresolved(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 8).await;
    submit(&mut *sink, 0..8);
    let mut tickets = Vec::new();
    for _ in 0..3 {
        let (ticket, outcome) = answer(&mut *sink).await;
        assert_eq!(outcome, Outcome::Delivered);
        tickets.push(ticket);
    }
    let unresolved = closed(sink, SOON).await;
    assert_eq!(unresolved.len(), 5);
    tickets.extend(unresolved);
    tickets.sort_unstable();
    assert!(tickets.into_iter().eq(0..8), "each ticket was answered or is returned");
}

pub(crate) async fn a_slow_remote_end_is_waited_for(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 8).await;
    let (mut next, mut answered) = (0, BTreeSet::new());
    for _ in 0..4 {
        fixture.behave(Behaviour::Hold).await;
        while sink.submit(message(next), next).is_ok() {
            next += 1;
            assert!(next <= 4000, "a sink whose remote end is slow says Busy");
        }
        let early = timeout(A_WHILE, poll_fn(|cx| sink.poll_outcome(cx))).await;
        assert!(early.is_err(), "nothing is answered before the remote end has: {early:?}");
        fixture.behave(Behaviour::Confirm).await;
        while (answered.len() as u64) < next {
            let (ticket, outcome) = answer(&mut *sink).await;
            assert_eq!(outcome, Outcome::Delivered, "{ticket}");
            assert!(answered.insert(ticket), "{ticket} is answered once");
        }
    }
    assert!(next >= 32, "each round fills the window: {next}");
    let mut received = numbers(fixture);
    received.sort_unstable();
    assert!(received.into_iter().eq(0..next), "each message is sent once");
    all_answered(sink).await;
}

pub(crate) async fn a_remote_end_that_accepts_and_says_nothing_is_given_up(fixture: &mut impl Fixture) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let configuration = fixture.configuration_at(listener.local_addr().expect("it is bound"));
    // It ends with the test.
    let mut silent = JoinSet::new();
    silent.spawn(async move {
        let mut streams = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            streams.push(stream);
        }
    });
    let kind = fixture.kind();
    let probe_context = context(1);
    let probe = kind.probe(&configuration, &probe_context, Duration::from_millis(500));
    let report = timeout(SOON, probe).await.expect("a probe is bounded");
    assert!(report.error.is_some(), "{report:?}");
    assert_eq!(report.stages.iter().filter(|stage| !stage.ok).count(), 1, "{report:?}");
    assert!(report.stages.last().is_some_and(|stage| !stage.ok), "{report:?}");
    let connect = kind.connect(&configuration, context(4));
    let mut sink = match timeout(SOON, connect).await.expect("connecting is bounded") {
        Ok(sink) => sink,
        Err(error) => {
            assert_eq!(error.violations, [], "the configuration is right");
            assert_ne!(error.text, "");
            return;
        }
    };
    let mut open: BTreeSet<Ticket> = (0..4).filter(|n| sink.submit(message(*n), *n).is_ok()).collect();
    outage(&mut *sink, &mut open).await;
    assert!(closed(sink, A_WHILE).await.into_iter().eq(open));
}

pub(crate) async fn away_and_back_is_told_by_the_state_or_by_answers(fixture: &mut impl Fixture) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 8).await;
    for round in 0..2 {
        delivered(&mut *sink, 100 + round).await;
        fixture.behave(Behaviour::Away).await;
        if fixture.notices_absence() {
            until(&mut *sink, |state| matches!(state, SinkState::Away { reason } if !reason.is_empty()))
                .await;
        } else {
            submit(&mut *sink, [round]);
            let (ticket, outcome) = answer(&mut *sink).await;
            assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
            assert_eq!((ticket, sink.state()), (round, SinkState::Ready));
        }
        fixture.behave(Behaviour::Confirm).await;
        until(&mut *sink, |state| *state == SinkState::Ready).await;
        delivered(&mut *sink, 200 + round).await;
    }
    all_answered(sink).await;
}

/// Delivers as the driver does with `ordering: key`: one message in flight per key, a retry before the next.
struct ByKey {
    /// The next message of each key, or the one that is to be tried again.
    next: [u64; 3],
    open: BTreeMap<Ticket, u64>,
    attempts: Ticket,
    delivered: usize,
    retried: usize,
}

impl ByKey {
    fn submit(&mut self, sink: &mut dyn Sink, end: u64) {
        for number in self.next {
            let is_open = self.open.values().any(|open| *open == number);
            if number < end && !is_open && sink.submit(message(number), self.attempts).is_ok() {
                self.open.insert(self.attempts, number);
                self.attempts += 1;
            }
        }
    }

    fn answered(&mut self, ticket: Ticket, outcome: &Outcome) {
        let number = self.open.remove(&ticket).expect("a ticket is answered once");
        match outcome {
            Outcome::Delivered => {
                self.next[number as usize % 3] += 3;
                self.delivered += 1;
            }
            Outcome::Retry { .. } => self.retried += 1,
            Outcome::Rejected { .. } => panic!("{number}: {outcome:?}"),
        }
    }

    /// Goes on until the condition holds; submits while the sink is there, as the driver does.
    async fn until(&mut self, sink: &mut dyn Sink, end: u64, is_reached: impl Fn(&Self, &SinkState) -> bool) {
        let deadline = Instant::now() + SOON;
        while !is_reached(self, &sink.state()) {
            assert!(
                Instant::now() < deadline,
                "{:?}, {} delivered, {} retried",
                self.next,
                self.delivered,
                self.retried
            );
            if sink.state() == SinkState::Ready {
                self.submit(sink, end);
            }
            // The state is looked at again although nothing was answered.
            if let Ok((ticket, outcome)) = timeout(A_WHILE, poll_fn(|cx| sink.poll_outcome(cx))).await {
                self.answered(ticket, &outcome);
            }
        }
    }
}

pub(crate) async fn order_by_key_survives_retries(fixture: &mut impl Fixture) {
    const MESSAGES: u64 = 30;
    let mut sink = impatient(fixture, 3).await;
    let mut keys = ByKey { next: [0, 1, 2], open: BTreeMap::new(), attempts: 0, delivered: 0, retried: 0 };
    for (delivered, fault) in [(6, Behaviour::Hold), (15, Behaviour::Away)] {
        keys.until(&mut *sink, MESSAGES, |keys, _| keys.delivered >= delivered).await;
        fixture.behave(fault).await;
        let before = keys.retried;
        keys.until(&mut *sink, MESSAGES, |keys, state| keys.retried > before || *state != SinkState::Ready)
            .await;
        fixture.behave(Behaviour::Confirm).await;
    }
    keys.until(&mut *sink, MESSAGES, |keys, _| keys.delivered as u64 == MESSAGES).await;
    all_answered(sink).await;
    fixture.all_arrived(MESSAGES as usize).await;
    // What was sent twice counts when it came first.
    let received = numbers(fixture);
    for key in 0..3 {
        let mut seen = BTreeSet::new();
        let first = received.iter().copied().filter(|number| number % 3 == key && seen.insert(*number));
        assert!(first.eq((key..MESSAGES).step_by(3)), "key {key}: {received:?}");
    }
    if fixture.kind().keeps_order(&fixture.client_configuration()) {
        bursts_arrive_in_order(fixture, MESSAGES as usize).await;
    }
}

/// Although none was waited for; and also when the remote end goes away in between, unless one is submitted again.
async fn bursts_arrive_in_order(fixture: &mut impl Fixture, before: usize) {
    let mut sink = connected(fixture, &fixture.client_configuration(), 64).await;
    let burst = (1000..).step_by(3).take(60);
    submit(&mut *sink, burst.clone());
    for _ in 0..60 {
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
    }
    fixture.all_arrived(before + 60).await;
    assert!(numbers(fixture).into_iter().filter(|number| *number >= 1000).eq(burst));
    all_answered(sink).await;
    let mut sink = impatient(fixture, 64).await;
    submit(&mut *sink, 2000..2020);
    let mut open: BTreeSet<Ticket> = (2000..2020).collect();
    for _ in 0..5 {
        open.remove(&answer(&mut *sink).await.0);
    }
    // Some of the others may have arrived already, and some of those may be answered yet.
    fixture.behave(Behaviour::Away).await;
    if sink.state() == SinkState::Ready {
        submit(&mut *sink, 2020..2025);
        open.extend(2020..2025);
    }
    noticed(&mut *sink, &mut open).await;
    fixture.behave(Behaviour::Confirm).await;
    while !open.is_empty() {
        let (ticket, outcome) = answer(&mut *sink).await;
        assert!(!matches!(outcome, Outcome::Rejected { .. }), "{outcome:?}");
        assert!(open.remove(&ticket), "{ticket} is answered once");
    }
    until(&mut *sink, |state| *state == SinkState::Ready).await;
    submit(&mut *sink, 2025..2030);
    for _ in 0..5 {
        answer(&mut *sink).await;
    }
    sink.close(SOON).await;
    let mut seen = BTreeSet::new();
    let first = numbers(fixture).into_iter().filter(|number| *number >= 2000 && seen.insert(*number));
    assert!(first.is_sorted(), "{:?}", numbers(fixture));
}

pub(crate) async fn payloads_of_every_size_and_content_arrive_as_they_are(fixture: &mut impl Fixture) {
    let sizes = [0, 1, 2, 127, 128, 16_383, 65_535, 65_536, 1 << 20];
    let patterns = sizes.map(|size: usize| (0..size).map(|i| (i * 31 + size) as u8).collect());
    let texts =
        [&b"\xff\xfe\x00\xc3\x28"[..], b"\r\n\r\n", b" {\"a\": [1 ,2]} ", "\u{fc}\u{1f980}".as_bytes()];
    let mut payloads: Vec<Bytes> = patterns.into_iter().chain(texts.map(Bytes::from_static)).collect();
    let mut sink = connected(fixture, &fixture.client_configuration(), 4).await;
    for (number, bytes) in (0..).zip(&payloads) {
        let message = message_of(number, bytes.clone());
        assert_eq!(payload(&message), bytes);
        sink.submit(message, number).expect("there is room");
        assert_eq!(answer(&mut *sink).await, (number, Outcome::Delivered), "{} bytes", bytes.len());
    }
    let mut received = fixture.received();
    received.sort_unstable();
    payloads.sort_unstable();
    let sizes = |all: &[Bytes]| all.iter().map(Bytes::len).collect::<Vec<_>>();
    assert!(received == payloads, "{:?} instead of {:?}", sizes(&received), sizes(&payloads));
    all_answered(sink).await;
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) async fn secrets_are_in_no_text(fixture: &mut impl Fixture) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    tracing::trace!("the log is read");
    let mut texts: Vec<String> = Vec::new();
    let mut note = |shown: &dyn Debug| texts.push(format!("{shown:?}"));
    let kind = fixture.kind();
    let configuration = fixture.secretive_configuration();
    assert!(Value::Object(configuration.clone()).to_string().contains(SECRET), "there is a secret");
    assert_eq!(kind.check(&configuration), []);
    // What people put where it does not belong.
    let mut wrong = configuration.clone();
    wrong.insert("credentials".to_owned(), SECRET.into());
    wrong.insert("no such field".to_owned(), SECRET.into());
    assert!(!kind.check(&wrong).is_empty());
    note(&kind.check(&wrong));
    note(&kind.connect(&wrong, context(1)).await.err());
    note(&kind.probe(&wrong, &context(1), SOON).await);
    note(&kind.probe(&configuration, &context(1), SOON).await);
    let mut sink = connected(fixture, &configuration, 4).await;
    delivered(&mut *sink, 100).await;
    fixture.behave(Behaviour::Hold).await;
    submit(&mut *sink, 0..2);
    held(fixture, &mut *sink, 2).await;
    note(&sink);
    fixture.behave(Behaviour::Away).await;
    note(&outage(&mut *sink, &mut (0..2).collect()).await);
    note(&(&kind, &sink, sink.state()));
    note(&kind.probe(&configuration, &context(1), SOON).await);
    sink.close(A_WHILE).await;
    let log = String::from_utf8_lossy(&log.0.lock()).into_owned();
    assert!(log.contains("the log is read"));
    texts.push(log);
    let encoded = [STANDARD.encode(format!("user:{SECRET}")), STANDARD.encode(SECRET)];
    for text in &texts {
        for secret in [SECRET, &encoded[0], &encoded[1]] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
}
