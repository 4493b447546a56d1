use super::*;

fn part(partition: u32, start: u64, end: u64, commit: Option<(u64, Totals, Option<i64>)>) -> Part {
    let commit = commit.map(|(offset, totals, oldest_ms)| {
        (offset, CommitMetadata { totals, oldest_ms, ..CommitMetadata::default() })
    });
    Part { at: TopicPartition::new("t", partition), bounds: Bounds { start, end }, commit }
}

fn topic(parts: Vec<Part>) -> Topic {
    Topic { id: "a".into(), generation: 1, parts }
}

#[test]
fn everything_written_is_settled_or_in_the_backlog() {
    let totals = Totals { delivered: 4, rejected: 1, skipped: 2, dead_lettered: 3, expired: 5, retries: 9 };
    for (parts, messages, expired) in [
        // Never committed; retention has removed some.
        (vec![part(0, 0, 7, None)], 7, 0),
        (vec![part(0, 3, 7, None)], 4, 3),
        (vec![part(0, 7, 7, None)], 0, 7),
        (vec![part(0, 0, 20, Some((15, totals, None)))], 5, 5),
        (vec![part(0, 9, 15, Some((15, totals, None)))], 0, 5),
        // Retention has overtaken the commit.
        (vec![part(0, 18, 20, Some((15, totals, None)))], 2, 8),
        (vec![part(0, 20, 20, Some((15, totals, None)))], 0, 10),
        (vec![part(0, 18, 20, Some((15, totals, None))), part(1, 1, 4, None), part(2, 0, 0, None)], 5, 9),
        (vec![], 0, 0),
    ] {
        let backlog = topic(parts.clone()).backlog(|_| None);
        let counters = backlog.counters();
        assert_eq!((backlog.messages, counters.expired), (messages, expired), "{parts:?}");
        let settled = counters.delivered
            + counters.rejected
            + counters.skipped
            + counters.dead_lettered
            + counters.expired;
        assert_eq!(counters.written, settled + backlog.messages, "{parts:?}");
    }
}

#[test]
fn the_oldest_is_told_by_the_commit_or_read_and_only_where_something_waits() {
    let none = Totals::default();
    let at = |parts: Vec<Part>, read: &[(u32, u64, i64)]| {
        let time = |(_, partition, offset): &RecordKey| {
            let found = read.iter().find(|(p, o, _)| (p, o) == (partition, offset));
            found.map(|(.., time)| *time)
        };
        topic(parts).backlog(time).oldest_ms
    };
    assert_eq!(at(vec![part(0, 0, 9, Some((5, none, Some(50))))], &[(0, 5, 77)]), Some(50));
    assert_eq!(at(vec![part(0, 0, 9, Some((5, none, None)))], &[(0, 5, 77)]), Some(77));
    assert_eq!(at(vec![part(0, 0, 9, Some((5, none, None)))], &[]), None, "it was not to be read");
    assert_eq!(at(vec![part(0, 6, 9, Some((5, none, Some(50))))], &[(0, 6, 66)]), Some(66), "it is gone");
    assert_eq!(at(vec![part(0, 0, 5, Some((5, none, Some(50))))], &[]), None, "nothing waits");
    let parts = vec![part(0, 0, 9, Some((5, none, Some(50)))), part(1, 0, 1, None), part(2, 0, 0, None)];
    assert_eq!(at(parts, &[(1, 0, 20), (2, 0, 1)]), Some(20), "the oldest of all partitions");
}

#[test]
fn time_to_drain_needs_a_backlog_that_shrinks() {
    let rates = |written_per_second, settled_per_second| Rates { written_per_second, settled_per_second };
    let seconds = |messages, rates| time_to_drain(messages, rates).map(|time| (time.seconds, time.nanos));
    assert_eq!(seconds(90, rates(10.0, 30.0)), Some((4, 500_000_000)));
    assert_eq!(seconds(90, rates(10.0, 10.0)), None);
    assert_eq!(seconds(90, rates(10.0, 5.0)), None);
    assert_eq!(seconds(0, rates(0.0, 5.0)), None);
    assert_eq!(seconds(u64::MAX, rates(0.0, f64::MIN_POSITIVE)), Some((315_576_000_000, 0)));
}

#[test]
fn a_topic_is_to_be_removed_while_it_is_there_and_its_integration_disabled() {
    assert_eq!(removal_ms(10, Some(5), Stage::Live), Some(10_005));
    assert_eq!(removal_ms(10, None, Stage::Live), None);
    assert_eq!(removal_ms(10, Some(5), Stage::Parked), None);
    for never in [0, -1, i64::MAX] {
        assert_eq!(removal_ms(never, Some(5), Stage::Live), None, "{never}");
    }
}
