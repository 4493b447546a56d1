use proptest::prelude::*;

use super::*;

fn settings(strategy: AckStrategy, retries: u32) -> Settings {
    Settings {
        strategy,
        retries,
        pause: Duration::from_millis(10),
        attempt_timeout: Duration::from_millis(100),
        window_messages: 4,
        ..Settings::default()
    }
}

fn item(offset: u64) -> Item<u64> {
    Item {
        offset,
        key: offset % 3,
        weight: 10,
        timestamp_ms: 1_000 + offset as i64,
        expires_at_ms: 0,
        message: offset,
        unfit: None,
        is_watched: false,
    }
}

fn partition(settings: Settings, offsets: std::ops::Range<u64>) -> Partition<u64> {
    let mut partition = Partition::new(settings, 7);
    partition.take(Millis(0), offsets.map(item));
    partition
}

/// Submits all that may be, and returns ticket and message of each.
fn submit(partition: &mut Partition<u64>, now: Millis) -> Vec<(Ticket, u64)> {
    let mut submitted = Vec::new();
    while let Some((ticket, message)) = partition.next(now.0 as i64) {
        submitted.push((ticket, *message));
        partition.submitted(now);
    }
    submitted
}

fn messages(submitted: &[(Ticket, u64)]) -> Vec<u64> {
    submitted.iter().map(|(_, message)| *message).collect()
}

fn retry() -> Answer {
    Answer::Retry { after: None, class: "status", text: "down".to_owned() }
}

#[test]
fn the_commit_waits_for_the_oldest_and_the_window_is_kept() {
    let mut partition = partition(settings(AckStrategy::SkipAll, 0), 10..16);
    let sent = submit(&mut partition, Millis(0));
    assert_eq!(messages(&sent), [10, 11, 12, 13]);
    assert_eq!(partition.commit_position(), Some(10));
    partition.answered(Millis(1), sent[1].0, Answer::Delivered);
    assert_eq!(partition.commit_position(), Some(10));
    partition.answered(Millis(1), sent[0].0, Answer::Delivered);
    assert_eq!(partition.commit_position(), Some(12));
    assert_eq!(messages(&submit(&mut partition, Millis(1))), [14, 15]);
    assert_eq!(lane_of(sent[0].0), 7);
}

#[test]
fn skip_all_gives_each_message_one_attempt_timeouts_too() {
    let mut partition = partition(settings(AckStrategy::SkipAll, 5), 0..3);
    let sent = submit(&mut partition, Millis(0));
    partition.answered(Millis(1), sent[0].0, retry());
    partition.answered(Millis(1), sent[1].0, Answer::Delivered);
    assert_eq!(partition.next_deadline(), Some(Millis(100)));
    partition.tick(Millis(100));
    assert_eq!(partition.settled(), Settled { delivered: 1, skipped: 2, ..Settled::default() });
    assert_eq!(
        partition.processor(),
        Processor {
            total: 3,
            successful: 1,
            timeout: 1,
            failed: 1,
            failed_iterations: 1,
            ..Processor::default()
        }
    );
    let notices: Vec<_> = std::iter::from_fn(|| partition.poll_notice()).collect();
    assert_eq!(
        notices,
        [
            Notice::Failed { offset: 0, class: "status", text: "down".to_owned(), is_retried: false },
            Notice::Failed {
                offset: 2,
                class: CLASS_TIMEOUT,
                text: "no answer within 100 ms".to_owned(),
                is_retried: false
            },
        ]
    );
    assert_eq!((partition.commit_position(), partition.next_deadline()), (Some(3), None));
}

#[test]
fn no_attempt_times_out_while_the_remote_end_is_away_and_each_has_its_whole_time_afterwards() {
    let mut partition = partition(settings(AckStrategy::SkipAll, 0), 0..2);
    let sent = submit(&mut partition, Millis(0));
    partition.away(Millis(50), true);
    assert_eq!(partition.next_deadline(), None);
    partition.tick(Millis(5_000));
    assert_eq!(partition.in_flight(), 2);
    partition.away(Millis(5_000), false);
    assert_eq!(partition.next_deadline(), Some(Millis(5_100)));
    partition.answered(Millis(5_001), sent[0].0, Answer::Delivered);
    partition.tick(Millis(5_100));
    assert_eq!(partition.settled(), Settled { delivered: 1, skipped: 1, ..Settled::default() });
}

#[test]
fn retry_all_makes_as_many_attempts_as_it_says() {
    for retries in [1, 5] {
        let mut partition = partition(settings(AckStrategy::RetryAll, retries), 0..1);
        let mut attempts = 0;
        let mut now = Millis(0);
        while partition.unsettled() > 0 {
            for (ticket, _) in submit(&mut partition, now) {
                attempts += 1;
                partition.answered(now, ticket, retry());
            }
            now = partition.next_deadline().unwrap_or(now);
            partition.tick(now);
        }
        assert_eq!(attempts, retries + 1);
        assert_eq!(now, Millis(10 * u64::from(retries)), "a pause before each further attempt");
        let processor = partition.processor();
        assert_eq!((processor.tmp_failed, processor.failed), (u64::from(retries), 1));
        assert_eq!((processor.successful_iterations, processor.failed_iterations), (0, u64::from(attempts)));
    }
}

#[test]
fn no_limit_of_retries_goes_on_until_delivered() {
    let mut partition = partition(settings(AckStrategy::RetryAll, 0), 0..2);
    let mut now = Millis(0);
    for round in 0..70_000 {
        for (ticket, message) in submit(&mut partition, now) {
            let answer = if message == 0 || round == 69_999 { Answer::Delivered } else { retry() };
            partition.answered(now, ticket, answer);
        }
        while partition.poll_notice().is_some() {}
        assert_eq!(partition.commit_position(), Some(if round == 69_999 { 2 } else { 1 }));
        now = now + Duration::from_millis(10);
        partition.tick(now);
    }
    assert_eq!(partition.processor().successful_iterations, 1);
    assert_eq!(partition.processor().failed_iterations, 69_999);
}

#[test]
fn a_sink_may_ask_for_a_longer_pause() {
    let mut partition = partition(settings(AckStrategy::RetryAll, 1), 0..1);
    let sent = submit(&mut partition, Millis(0));
    let after = Some(Duration::from_secs(9));
    partition.answered(Millis(0), sent[0].0, Answer::Retry { after, class: "status", text: String::new() });
    assert_eq!(partition.next_deadline(), Some(Millis(9000)));
}

#[test]
fn a_rejected_message_is_never_retried() {
    let mut partition = partition(settings(AckStrategy::RetryAll, 0), 0..1);
    let sent = submit(&mut partition, Millis(0));
    partition.answered(Millis(0), sent[0].0, Answer::Rejected { class: "payload", text: "no".to_owned() });
    assert_eq!(partition.settled(), Settled { rejected: 1, ..Settled::default() });
    assert_eq!((partition.commit_position(), partition.processor().failed), (Some(1), 1));
}

#[test]
fn a_late_answer_changes_nothing_and_the_retry_has_a_new_ticket() {
    let mut partition = partition(settings(AckStrategy::RetryAll, 1), 0..1);
    let first = submit(&mut partition, Millis(0));
    partition.tick(Millis(100));
    partition.answered(Millis(101), first[0].0, Answer::Delivered);
    partition.tick(Millis(110));
    let second = submit(&mut partition, Millis(110));
    assert_ne!(first[0].0, second[0].0);
    partition.answered(Millis(111), first[0].0, Answer::Delivered);
    assert_eq!((partition.late(), partition.in_flight(), partition.commit_position()), (2, 1, Some(0)));
    partition.answered(Millis(111), second[0].0, Answer::Delivered);
    assert_eq!(partition.settled().delivered, 1);
}

#[test]
fn a_gap_is_counted_and_told_once() {
    let mut partition = partition(settings(AckStrategy::SkipAll, 0), 0..1);
    partition.gap(1, 11);
    partition.gap(5, 11);
    assert_eq!(partition.commit_position(), Some(0), "the message before the gap is not settled");
    let sent = submit(&mut partition, Millis(0));
    partition.answered(Millis(0), sent[0].0, Answer::Delivered);
    assert_eq!(partition.commit_position(), Some(11));
    assert_eq!(partition.settled(), Settled { delivered: 1, expired: 10, ..Settled::default() });
    assert_eq!(partition.poll_notice(), Some(Notice::Gap { from: 1, to: 11 }));
    assert_eq!(partition.poll_notice(), None);
}

#[test]
fn an_expired_message_is_not_submitted_again() {
    let mut partition = Partition::new(settings(AckStrategy::RetryAll, 0), 0);
    partition.take(Millis(0), (0..3).map(|offset| Item { expires_at_ms: 50, ..item(offset) }));
    let sent = submit(&mut partition, Millis(49));
    partition.answered(Millis(49), sent[0].0, retry());
    partition.answered(Millis(49), sent[1].0, retry());
    partition.answered(Millis(49), sent[2].0, Answer::Delivered);
    while partition.poll_notice().is_some() {}
    partition.tick(Millis(60));
    assert_eq!(submit(&mut partition, Millis(60)), []);
    assert_eq!(partition.settled(), Settled { delivered: 1, expired: 2, ..Settled::default() });
    assert!(matches!(partition.poll_notice(), Some(Notice::Expired { count: 2, .. })));
}

fn unfit(offset: u64) -> Item<u64> {
    let unfit = Unfit { class: "unreadable", text: "garbage".to_owned() };
    Item { unfit: Some(Box::new(unfit)), ..item(offset) }
}

#[test]
fn a_record_that_is_not_fit_is_given_up_without_an_attempt_and_holds_nothing_back() {
    let mut partition = Partition::new(settings(AckStrategy::RetryAll, 0), 0);
    partition.take(Millis(0), [unfit(4), unfit(5)]);
    assert_eq!((partition.commit_position(), partition.settled().skipped), (Some(6), 2));
    assert_eq!(submit(&mut partition, Millis(0)), []);
    let text = "garbage".to_owned();
    assert_eq!(partition.poll_notice(), Some(Notice::Unfit { offset: 4, class: "unreadable", text }));
    let expected = Processor { total: 2, failed: 2, failed_iterations: 1, ..Processor::default() };
    assert_eq!(partition.processor(), expected);
    partition.reached(8);
    assert_eq!(partition.commit_position(), Some(8));
}

#[test]
fn a_record_that_is_not_fit_belongs_to_no_key() {
    let settings = Settings { ordering: Ordering::Key, ..settings(AckStrategy::RetryAll, 0) };
    let mut partition = Partition::new(settings, 0);
    partition.take(Millis(0), [item(0), unfit(3), item(6)]);
    assert_eq!(messages(&submit(&mut partition, Millis(0))), [0], "6 still waits for 0");
}

fn letters(partition: &mut Partition<u64>) -> Vec<DeadLetter<u64>> {
    std::iter::from_fn(|| partition.poll_dead_letter()).collect()
}

#[test]
fn what_is_given_up_on_stays_until_its_dead_letter_is_written() {
    let settings = Settings { dead_letters: true, ..settings(AckStrategy::RetryAll, 1) };
    let mut partition = Partition::new(settings, 7);
    partition.take(Millis(0), [item(0), item(1), unfit(2), item(3)]);
    let sent = submit(&mut partition, Millis(1));
    let rejected = Answer::Rejected { class: "payload", text: "no".to_owned() };
    partition.answered(Millis(2), sent[0].0, rejected);
    partition.answered(Millis(2), sent[1].0, retry());
    partition.answered(Millis(2), sent[2].0, Answer::Delivered);
    partition.tick(Millis(12));
    for (ticket, _) in submit(&mut partition, Millis(12)) {
        partition.answered(Millis(13), ticket, retry());
    }
    let written = letters(&mut partition);
    let told: Vec<_> = written
        .iter()
        .map(|letter| {
            (letter.offset, letter.message, letter.class, letter.attempts, letter.first.0, letter.last.0)
        })
        .collect();
    assert_eq!(told, [(2, 2, "unreadable", 0, 0, 0), (0, 0, "payload", 1, 1, 2), (1, 1, "status", 2, 1, 13)]);
    assert_eq!((partition.commit_position(), partition.unsettled()), (Some(0), 3));
    let tickets: Vec<_> = written.iter().map(|letter| letter.ticket).collect();
    partition.answered(Millis(14), tickets[2], Answer::Delivered);
    assert_eq!(partition.late(), 1, "it was given up on before it was answered");
    partition.dead_lettered(tickets[2]);
    partition.dead_lettered(tickets[2]);
    assert_eq!(partition.commit_position(), Some(0));
    partition.dead_lettered(tickets[1]);
    partition.not_dead_lettered(tickets[0]);
    assert_eq!(partition.commit_position(), Some(4));
    let expected = Settled { delivered: 1, skipped: 1, dead_lettered: 2, ..Settled::default() };
    assert_eq!((partition.settled(), partition.bytes()), (expected, 0));
}

#[test]
fn one_slow_message_holds_up_its_key_and_not_the_rest() {
    let settings = Settings { ordering: Ordering::Key, ..settings(AckStrategy::RetryAll, 0) };
    let mut partition = Partition::new(settings, 0);
    let of_key = |offset: u64, key: u64| Item { key, ..item(offset) };
    partition.take(Millis(0), (0..500).map(|offset| of_key(offset, 7)));
    assert_eq!(submit(&mut partition, Millis(0)).len(), 1, "it hangs");
    let mut delivered = 0;
    for offset in 500..700 {
        assert!(partition.wants_more(), "{offset}");
        partition.take(Millis(0), [of_key(offset, offset % 5)]);
        for (ticket, _) in submit(&mut partition, Millis(0)) {
            partition.answered(Millis(0), ticket, Answer::Delivered);
            delivered += 1;
        }
    }
    assert_eq!((delivered, partition.commit_position()), (200, Some(0)));
    partition.take(Millis(0), (700..2000).map(|offset| of_key(offset, 7)));
    assert_eq!(partition.limit_reached(), Some(Limit::Held), "but not without a bound");
}

#[test]
fn with_key_order_one_of_a_key_is_in_flight_and_a_retry_blocks_its_key_only() {
    let mut settings = settings(AckStrategy::RetryAll, 0);
    settings.ordering = Ordering::Key;
    let mut partition = partition(settings, 0..6);
    let sent = submit(&mut partition, Millis(0));
    assert_eq!(messages(&sent), [0, 1, 2]);
    partition.answered(Millis(0), sent[0].0, retry());
    partition.answered(Millis(0), sent[1].0, Answer::Delivered);
    assert_eq!(messages(&submit(&mut partition, Millis(0))), [4]);
    partition.tick(Millis(10));
    assert_eq!(messages(&submit(&mut partition, Millis(10))), [0], "the failed one goes before 3");
}

#[test]
fn a_commit_counts_only_what_lies_below_it() {
    let mut partition = partition(settings(AckStrategy::SkipAll, 0), 0..4);
    let sent = submit(&mut partition, Millis(0));
    partition.gap(4, 7);
    partition.answered(Millis(1), sent[1].0, Answer::Delivered);
    partition.answered(Millis(1), sent[3].0, Answer::Delivered);
    let seen = |partition: &Partition<u64>| {
        (partition.commit_position(), partition.settled_in_order(), partition.oldest_ms())
    };
    assert_eq!(seen(&partition), (Some(0), Settled::default(), Some(1_000)));
    partition.answered(Millis(1), sent[0].0, retry());
    let counted = Settled { delivered: 1, skipped: 1, ..Settled::default() };
    assert_eq!(seen(&partition), (Some(2), counted, Some(1_002)));
    partition.answered(Millis(1), sent[2].0, Answer::Rejected { class: "status", text: String::new() });
    let counted = Settled { delivered: 2, skipped: 1, rejected: 1, expired: 3, ..counted };
    assert_eq!(seen(&partition), (Some(7), counted, None), "the gap comes last");
}

#[test]
fn it_wants_no_more_than_fits() {
    let mut partition = Partition::new(Settings { window_bytes: 25, ..settings(AckStrategy::SkipAll, 0) }, 0);
    assert!(partition.wants_more());
    partition.take(Millis(0), (0..3).map(item));
    assert!(!partition.wants_more(), "bytes");
    let sent = submit(&mut partition, Millis(0));
    partition.answered(Millis(0), sent[0].0, Answer::Delivered);
    assert!(partition.wants_more());
}

#[derive(Clone, Debug)]
enum Action {
    Take(u64),
    Gap(u64),
    Submit,
    Answer { which: usize, kind: u8 },
    Late { which: usize },
    Pass(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (1..8_u64).prop_map(Action::Take),
        1 => (1..5_u64).prop_map(Action::Gap),
        3 => Just(Action::Submit),
        5 => (any::<usize>(), 0..4_u8).prop_map(|(which, kind)| Action::Answer { which, kind }),
        1 => any::<usize>().prop_map(|which| Action::Late { which }),
        2 => (1..150_u64).prop_map(Action::Pass),
    ]
}

proptest! {
    #[test]
    fn every_offset_leaves_once_and_the_commit_never_passes_one_that_has_not(
        actions in prop::collection::vec(action(), 1..200),
        retry_all in any::<bool>(),
        by_key in any::<bool>(),
        dead_letters in any::<bool>(),
        retries in prop::sample::select(vec![0_u32, 1, 5]),
    ) {
        let strategy = if retry_all { AckStrategy::RetryAll } else { AckStrategy::SkipAll };
        let mut settings = settings(strategy, retries);
        settings.ordering = if by_key { Ordering::Key } else { Ordering::None };
        settings.dead_letters = dead_letters;
        let mut partition = Partition::new(settings, 1);
        let mut unwritten: Vec<(Ticket, u64)> = Vec::new();
        let mut lettered: Vec<u64> = Vec::new();
        let mut now = Millis(0);
        let mut end = 0;
        let mut open: Vec<(Ticket, u64)> = Vec::new();
        let mut answered: Vec<Ticket> = Vec::new();
        let mut delivered: Vec<u64> = Vec::new();
        let mut attempts: HashMap<u64, u32> = HashMap::new();
        let finish = actions.len();
        for step in 0.. {
            let action = match actions.get(step) {
                Some(action) => action.clone(),
                // Then everything is delivered, until nothing is left.
                None if partition.unsettled() == 0 => break,
                None if step > finish + 5_000 => return Err(TestCaseError::fail("it never ends")),
                None => match step % 3 {
                    0 => Action::Submit,
                    1 => Action::Answer { which: 0, kind: 0 },
                    _ => Action::Pass(1),
                },
            };
            match action {
                Action::Take(count) if partition.wants_more() => {
                    let record = |offset| if offset % 11 == 5 { unfit(offset) } else { item(offset) };
                    partition.take(now, (end..end + count).map(record));
                    end += count;
                }
                Action::Gap(count) => {
                    partition.gap(end, end + count);
                    end += count;
                }
                Action::Submit => {
                    for (ticket, message) in submit(&mut partition, now) {
                        prop_assert!(!answered.contains(&ticket) && open.iter().all(|(t, _)| *t != ticket));
                        if by_key {
                            prop_assert!(open.iter().all(|(_, other)| other % 3 != message % 3));
                        }
                        let attempts = attempts.entry(message).or_default();
                        *attempts += 1;
                        let limit = match (retry_all, retries) {
                            (false, _) => 1,
                            (true, 0) => u32::MAX,
                            (true, retries) => retries + 1,
                        };
                        prop_assert!(*attempts <= limit);
                        open.push((ticket, message));
                    }
                }
                Action::Answer { which, kind } if !open.is_empty() => {
                    let (ticket, message) = open.remove(which % open.len());
                    let answer = match kind {
                        0 | 1 => Answer::Delivered,
                        2 => retry(),
                        _ => Answer::Rejected { class: "payload", text: String::new() },
                    };
                    if answer == Answer::Delivered {
                        prop_assert!(!delivered.contains(&message));
                        delivered.push(message);
                    }
                    answered.push(ticket);
                    partition.answered(now, ticket, answer);
                }
                Action::Late { which } if !answered.is_empty() => {
                    let late = partition.late();
                    partition.answered(now, answered[which % answered.len()], Answer::Delivered);
                    prop_assert_eq!(partition.late(), late + 1);
                }
                Action::Pass(millis) => {
                    now = now + Duration::from_millis(millis);
                    partition.tick(now);
                    // Those that timed out get no answer that counts any more.
                    let timed_out: Vec<_> = open.iter().filter(|(t, _)| partition.under_way(*t).is_none()).copied().collect();
                    open.retain(|entry| !timed_out.contains(entry));
                    answered.extend(timed_out.iter().map(|(ticket, _)| *ticket));
                }
                _ => {}
            }
            while partition.poll_notice().is_some() {}
            for letter in letters(&mut partition) {
                prop_assert!(dead_letters && !lettered.contains(&letter.offset));
                lettered.push(letter.offset);
                unwritten.push((letter.ticket, letter.offset));
            }
            if step % 3 == 1 && !unwritten.is_empty() {
                let (ticket, _) = unwritten.remove(0);
                partition.dead_lettered(ticket);
            }
            prop_assert_eq!(partition.in_flight(), open.len());
            prop_assert_eq!(partition.seen(), end);
            prop_assert_eq!(partition.settled().total() + partition.unsettled() as u64, end);
            prop_assert_eq!(partition.settled().delivered, delivered.len() as u64);
            let commit = partition.commit_position().unwrap_or(0);
            prop_assert!(commit <= end && open.iter().chain(&unwritten).all(|(_, message)| commit <= *message));
            prop_assert_eq!(partition.settled_in_order().total(), commit, "what a commit counts is what it covers");
            prop_assert_eq!(partition.oldest_ms(), (partition.unsettled() > 0).then_some(1_000 + commit as i64));
            let settled = partition.settled();
            prop_assert_eq!(settled.dead_lettered as usize, lettered.len() - unwritten.len());
            prop_assert!(!dead_letters || settled.skipped + settled.rejected == 0);
        }
        prop_assert_eq!(partition.commit_position().unwrap_or(0), end);
        prop_assert_eq!(partition.settled_in_order(), partition.settled());
        prop_assert_eq!(partition.bytes(), 0);
        let p = partition.processor();
        prop_assert_eq!(p.total, p.successful + p.tmp_failed + p.tmp_timeout + p.failed + p.timeout);
    }
}
