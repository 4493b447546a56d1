//! What the driver may rely on, as tests that every kind runs against a remote end of its own.
//!
//! A kind implements [`Fixture`] over a scripted remote end and writes one line: `crate::conformance::suite!(make);`
//! where `make` is an async function without arguments that gives a fixture.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value};
use tbmq_integration::wire::Target;
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    integration::PublishIntegrationMsgProto,
    queue::PublishMsgProto,
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::sink::{Busy, Message, Outcome, Sink, SinkContext, SinkKind, SinkState, Ticket};

/// A bound for what should happen at once; only a failed test waits so long.
const SOON: Duration = Duration::from_secs(20);

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

    /// The kind, as told by its process that an attempt may take at most a second; for kinds whose configuration has
    /// no such limit.
    fn impatient_kind(&self) -> Arc<dyn SinkKind> {
        self.kind()
    }

    /// Whether the sink itself sends anew what lost its connection, instead of answering it.
    fn sends_anew(&self) -> bool {
        false
    }

    /// Changes the remote end's behaviour.
    async fn behave(&mut self, behaviour: Behaviour);

    /// Waits until the remote end holds so many messages.
    async fn held(&mut self, count: usize);

    /// Payloads that the remote end has received so far, confirmed or not.
    fn received(&self) -> Vec<Bytes>;
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
            a_remote_end_that_never_answers_does_not_block_for_ever,
            only_the_last_task_is_woken_and_it_is,
            a_submit_is_noticed_without_another_poll,
            an_idle_sink_is_quiet,
            close_is_bounded_and_sends_nothing_more,
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
    let publish = PublishMsgProto {
        client_id: "client".into(),
        topic_name: format!("topic/{}", number % 3),
        payload: number.to_string().into(),
        qos: 1,
        ..PublishMsgProto::default()
    };
    let publish = PublishIntegrationMsgProto {
        publish_msg_proto: Some(publish),
        tbmq_node: "node".into(),
        timestamp: 1_742_554_969_254,
        ..PublishIntegrationMsgProto::default()
    };
    Message { publish: Arc::new(publish), partition: 0, offset: number }
}

/// A context with a window.
pub(crate) fn context(window: usize) -> SinkContext {
    let mut metadata = Map::new();
    metadata.insert("integrationName".into(), "under test".into());
    SinkContext {
        shard: ShardId { integration: IntegrationId(Uuid::from_u128(1)), index: 0 },
        target: Target { name: "under test".into(), enabled: true, configuration: "{}".into() },
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

async fn connected_as(
    kind: Arc<dyn SinkKind>,
    configuration: &Map<String, Value>,
    window: usize,
) -> Box<dyn Sink> {
    let connect = async {
        let sink = kind.connect(configuration, context(window)).await.expect("the fixture's are right");
        while sink.state() != SinkState::Ready {
            tokio::task::yield_now().await;
        }
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
    let mut received: Vec<u64> =
        fixture.received().iter().map(|bytes| String::from_utf8_lossy(bytes).parse().unwrap()).collect();
    received.sort_unstable();
    assert!(received.iter().copied().eq(0..MESSAGES), "{received:?}");
    sink.close(SOON).await;
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
    let mut answered = Vec::new();
    let sends_anew = fixture.sends_anew();
    if sends_anew {
        let away = poll_fn(|cx| match (sink.poll_outcome(cx), sink.state()) {
            (Poll::Ready(answer), _) => panic!("{answer:?} during an outage"),
            (Poll::Pending, SinkState::Away { .. }) => Poll::Ready(()),
            (Poll::Pending, _) => Poll::Pending,
        });
        timeout(SOON, away).await.expect("the outage is noticed");
        fixture.behave(Behaviour::Confirm).await;
    }
    for _ in 0..8 {
        let (ticket, outcome) = answer(&mut *sink).await;
        let is_right = match &outcome {
            Outcome::Retry { .. } => !sends_anew,
            Outcome::Delivered => sends_anew,
            Outcome::Rejected { .. } => false,
        };
        assert!(is_right, "an outage says nothing about messages: {outcome:?}");
        answered.push(ticket);
    }
    answered.sort_unstable();
    assert!(answered.into_iter().eq(0..8));
    fixture.behave(Behaviour::Confirm).await;
    delivered(&mut *sink, 200).await;
    sink.close(SOON).await;
}

pub(crate) async fn a_remote_end_that_never_answers_does_not_block_for_ever(fixture: &mut impl Fixture) {
    let mut sink = connected_as(fixture.impatient_kind(), &fixture.impatient_configuration(), 4).await;
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
    timeout(SOON, sink.close(Duration::from_millis(100))).await.expect("close ends at its deadline");
    fixture.behave(Behaviour::Confirm).await;
    // Another sink's message goes through, and nothing of the closed one with it.
    let mut other = connected(fixture, &fixture.client_configuration(), 1).await;
    delivered(&mut *other, 77).await;
    assert_eq!(fixture.received().len(), before.len() + 1);
    other.close(SOON).await;
}
