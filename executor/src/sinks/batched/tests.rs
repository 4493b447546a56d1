//! Batches over a sink that is scripted, in virtual time.

use std::{future::poll_fn, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::*;
use crate::{conformance::message_of, sink::payload};

/// What the scripted sink has been handed over, batch by batch.
type Handed = Arc<Mutex<Vec<Vec<Bytes>>>>;

/// Answers each batch by its content: `reject` or `retry` in one item speak for all.
#[derive(Debug, Default)]
struct Scripted {
    handed: Handed,
    /// Whether it answers.
    is_silent: bool,
    /// Batches that it takes before they are answered.
    room: usize,
    answers: VecDeque<(Ticket, Outcome)>,
}

#[async_trait]
impl Sink for Scripted {
    fn submit(&mut self, _: Message, _: Ticket) -> Result<(), Busy> {
        unreachable!("batches are submitted")
    }

    fn poll_outcome(&mut self, _: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        match self.answers.pop_front() {
            Some(answer) if !self.is_silent => Poll::Ready(answer),
            answer => {
                self.answers.extend(answer);
                Poll::Pending
            }
        }
    }

    fn state(&self) -> SinkState {
        SinkState::Ready
    }

    async fn close(self: Box<Self>, _: Duration) -> Vec<Ticket> {
        self.answers.into_iter().map(|(ticket, _)| ticket).collect()
    }
}

impl BatchSink for Scripted {
    type Item = Bytes;

    fn item(&self, message: &Message) -> Result<Bytes, Outcome> {
        match payload(message) {
            bytes if bytes == "impossible" => {
                Err(Outcome::Rejected { class: "payload", text: "impossible".to_owned() })
            }
            bytes => Ok(bytes),
        }
    }

    fn submit_batch(&mut self, items: &[Bytes], ticket: Ticket, _: Instant) -> Result<(), Busy> {
        if self.answers.len() >= self.room {
            return Err(Busy);
        }
        assert!(!items.is_empty());
        self.handed.lock().push(items.to_vec());
        let holds = |word: &str| items.iter().any(|item| item.starts_with(word.as_bytes()));
        let class = "status";
        let outcome = if holds("retry") {
            Outcome::Retry { after: Some(Duration::from_secs(7)), class, text: "later".to_owned() }
        } else if holds("reject") {
            Outcome::Rejected { class, text: format!("rejected with {}", items.len()) }
        } else {
            Outcome::Delivered
        };
        self.answers.push_back((ticket, outcome));
        Ok(())
    }
}

const DELAY: Duration = Duration::from_millis(50);

fn batched(count: usize, bytes: usize, window: usize) -> (Batched<Scripted>, Handed) {
    let sink = Scripted { room: 1000, ..Scripted::default() };
    let handed = sink.handed.clone();
    let limits = Limits { count: NonZeroUsize::new(count).unwrap(), bytes, delay: DELAY };
    (Batched::new(sink, limits, window), handed)
}

fn submit(sink: &mut impl Sink, first: Ticket, payloads: &[&'static str]) {
    for (ticket, text) in (first..).zip(payloads) {
        sink.submit(message_of(ticket, Bytes::from_static(text.as_bytes())), ticket).unwrap();
    }
}

async fn answers(sink: &mut impl Sink, count: usize) -> Vec<(Ticket, Outcome)> {
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(poll_fn(|cx| sink.poll_outcome(cx)).await);
    }
    answers.sort_unstable_by_key(|(ticket, _)| *ticket);
    answers
}

fn sizes(handed: &Handed) -> Vec<usize> {
    handed.lock().iter().map(Vec::len).collect()
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_closed_by_count_and_keeps_the_order() {
    let (mut sink, handed) = batched(3, 1000, 100);
    let start = Instant::now();
    submit(&mut sink, 0, &["a", "b", "c", "d", "e", "f"]);
    let delivered: Vec<_> = (0..6).map(|ticket| (ticket, Outcome::Delivered)).collect();
    assert_eq!(answers(&mut sink, 6).await, delivered);
    assert_eq!(start.elapsed(), Duration::ZERO, "a full batch waits for nothing");
    assert_eq!(*handed.lock(), [["a", "b", "c"], ["d", "e", "f"]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_closed_by_bytes() {
    let (mut sink, handed) = batched(100, 10, 100);
    // Each item counts one more byte than it has.
    submit(&mut sink, 0, &["1234", "1234", "12345", "1234", "a larger one goes alone", "1", "2"]);
    answers(&mut sink, 7).await;
    let expected: [&[&str]; 5] =
        [&["1234", "1234"], &["12345"], &["1234"], &["a larger one goes alone"], &["1", "2"]];
    assert_eq!(*handed.lock(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_closed_by_time_which_counts_from_its_first_message() {
    let (mut sink, handed) = batched(100, 1000, 100);
    let start = Instant::now();
    submit(&mut sink, 0, &["a"]);
    let early = timeout(DELAY * 3 / 5, poll_fn(|cx| sink.poll_outcome(cx))).await;
    assert!(early.is_err(), "{early:?}");
    submit(&mut sink, 1, &["b"]);
    answers(&mut sink, 2).await;
    assert!(start.elapsed() >= DELAY && start.elapsed() < DELAY * 6 / 5, "{:?}", start.elapsed());
    assert_eq!(*handed.lock(), [["a", "b"]]);
    // The next batch has a time of its own.
    let start = Instant::now();
    submit(&mut sink, 2, &["c"]);
    answers(&mut sink, 1).await;
    assert!(start.elapsed() >= DELAY, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_batch_does_not_wait_for_more_than_the_window() {
    let (mut sink, handed) = batched(100, 1000, 2);
    let start = Instant::now();
    submit(&mut sink, 0, &["a", "b"]);
    assert_eq!(sink.submit(message_of(2, Bytes::new()), 2), Err(Busy));
    answers(&mut sink, 2).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(sizes(&handed), [2]);
    submit(&mut sink, 2, &["c"]);
    answers(&mut sink, 1).await;
}

#[tokio::test(start_paused = true)]
async fn poison_falls_alone_and_its_neighbours_are_delivered_once() {
    let (mut sink, handed) = batched(8, 1000, 100);
    submit(&mut sink, 0, &["a", "b", "c", "d", "e", "reject", "g", "h"]);
    let mut expected: Vec<_> = (0..8).map(|ticket| (ticket, Outcome::Delivered)).collect();
    expected[5].1 = Outcome::Rejected { class: "status", text: "rejected with 1".to_owned() };
    assert_eq!(answers(&mut sink, 8).await, expected);
    assert_eq!(sizes(&handed), [8, 4, 4, 2, 2, 1, 1], "halves of what was rejected only");
    // Nothing is left behind.
    let more = timeout(DELAY * 10, poll_fn(|cx| sink.poll_outcome(cx))).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_poison_ends() {
    let (mut sink, handed) = batched(8, 1000, 100);
    submit(&mut sink, 0, &["reject"; 7]);
    let answers = answers(&mut sink, 7).await;
    assert!(answers.iter().all(|(_, outcome)| matches!(outcome, Outcome::Rejected { .. })), "{answers:?}");
    assert_eq!(sizes(&handed).len(), 13, "each message once alone, and each split once");
}

#[tokio::test(start_paused = true)]
async fn what_may_be_tried_again_is_left_to_the_driver_message_by_message() {
    let (mut sink, handed) = batched(3, 1000, 100);
    submit(&mut sink, 0, &["a", "retry", "c"]);
    let outcome =
        Outcome::Retry { after: Some(Duration::from_secs(7)), class: "status", text: "later".to_owned() };
    let expected: Vec<_> = (0..3).map(|ticket| (ticket, outcome.clone())).collect();
    assert_eq!(answers(&mut sink, 3).await, expected);
    assert_eq!(sizes(&handed), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_makes_no_item_is_answered_and_in_no_batch() {
    let (mut sink, handed) = batched(2, 1000, 100);
    submit(&mut sink, 0, &["a", "impossible", "b"]);
    let answers = answers(&mut sink, 3).await;
    assert!(matches!(answers[1], (1, Outcome::Rejected { class: "payload", .. })), "{answers:?}");
    assert_eq!(*handed.lock(), [["a", "b"]]);
}

#[tokio::test(start_paused = true)]
async fn a_busy_sink_gets_its_batches_later() {
    let (mut sink, handed) = batched(1, 1000, 100);
    sink.sink.room = 2;
    submit(&mut sink, 0, &["a", "b", "c", "d", "e"]);
    assert_eq!(answers(&mut sink, 5).await.len(), 5);
    assert_eq!(*handed.lock(), [["a"], ["b"], ["c"], ["d"], ["e"]]);
}

#[tokio::test(start_paused = true)]
async fn close_returns_what_waits_what_was_sent_and_what_was_not_polled() {
    let (mut sink, handed) = batched(2, 1000, 100);
    submit(&mut sink, 0, &["a", "b"]);
    assert_eq!(answers(&mut sink, 1).await, [(0, Outcome::Delivered)]);
    sink.sink.is_silent = true;
    sink.sink.room = 1;
    submit(&mut sink, 2, &["c", "d", "e", "f", "g"]);
    let early = timeout(DELAY, poll_fn(|cx| sink.poll_outcome(cx))).await;
    assert_eq!(early, Ok((1, Outcome::Delivered)));
    let early = timeout(DELAY / 2, poll_fn(|cx| sink.poll_outcome(cx))).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(sizes(&handed), [2, 2]);
    let mut unresolved = Box::new(sink).close(Duration::ZERO).await;
    unresolved.sort_unstable();
    assert_eq!(unresolved, [2, 3, 4, 5, 6]);
}
