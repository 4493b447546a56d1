//! What every adapter promises about many topics at once.

use tbmq_bus::{Bounds, CleanupPolicy, Error, Outgoing, TopicPartition, TopicSpec, write};

use super::{Fixture, PATIENCE, put, topic, within, writer};

fn spec(name: &str, partitions: u32, settings: &[(&str, &str)]) -> TopicSpec {
    TopicSpec {
        name: name.to_owned(),
        partitions,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

pub(crate) async fn topics_are_created_together_and_each_has_a_result_of_its_own<F: Fixture>(f: &mut F) {
    let [first, second, bad] = ["first", "second", "bad"].map(|name| f.unique(name));
    let known = topic(f, 1).await;
    let specs = [
        spec(&first, 3, &[]),
        spec("a/b", 1, &[]),
        spec(&known, 1, &[]),
        spec("", 1, &[]),
        spec(&second, 1, &[("retention.ms", "60000")]),
        spec(&first, 3, &[]),
        spec(&bad, 1, &[("retention.ms", "week")]),
        spec(&bad, 0, &[]),
    ];
    let admin = f.bus().admin();
    let results = within(PATIENCE, "topics", admin.create_topics(&specs)).await;
    let expected = [Some(true), None, Some(false), None, Some(true), Some(false), None, None];
    assert_eq!(results.len(), expected.len());
    for ((spec, result), expected) in specs.iter().zip(&results).zip(expected) {
        match expected {
            Some(created) => assert_eq!(*result, Ok(created), "{spec:?}"),
            None => assert!(matches!(result, Err(Error::Refused(_))), "{spec:?}: {result:?}"),
        }
    }
    // They can be written and read at once.
    let partitions: Vec<_> = [(&first, 0), (&first, 1), (&first, 2), (&second, 0)]
        .map(|(name, partition)| TopicPartition::new(name.as_str(), partition))
        .to_vec();
    assert_eq!(admin.bounds(&partitions).await, Ok(vec![Bounds { start: 0, end: 0 }; 4]));
    let writer = writer(f).await;
    for at in &partitions {
        let record = Outgoing { partition: Some(at.partition), key: None, value: Some(b"x"), headers: &[] };
        let written = write(&*writer, &writer.topic(&at.topic), record).await;
        assert_eq!(written.map(|written| written.offset), Ok(0), "{at}");
    }
    let again = within(PATIENCE, "topics", admin.create_topics(&specs[..1])).await;
    assert_eq!(again, [Ok(false)]);
    assert_eq!(admin.create_topics(&[]).await, []);
}

pub(crate) async fn positions_of_many_partitions_come_in_the_order_of_the_question<F: Fixture>(f: &mut F) {
    let (one, other, missing) = (topic(f, 3).await, topic(f, 1).await, f.unique("missing"));
    let [first, second, third] = [0, 1, 2].map(|partition| TopicPartition::new(one.as_str(), partition));
    let alone = TopicPartition::new(other.as_str(), 0);
    let writer = writer(f).await;
    put(&*writer, &first, &[("k", "1"), ("k", "2"), ("k", "3")]).await;
    put(&*writer, &third, &[("k", "1")]).await;
    put(&*writer, &alone, &[("k", "1"), ("k", "2")]).await;
    let admin = f.bus().admin();
    within(PATIENCE, "a removal", admin.delete_records(&first, 2)).await.unwrap();
    let asked = [&alone, &first, &third, &second, &first].map(Clone::clone);
    let found = within(PATIENCE, "positions", admin.bounds(&asked)).await.unwrap();
    let found: Vec<_> = found.iter().map(|bounds| (bounds.start, bounds.end)).collect();
    assert_eq!(found, [(0, 2), (2, 3), (0, 1), (0, 0), (2, 3)]);
    for wrong in [TopicPartition::new(missing.as_str(), 0), TopicPartition::new(one.as_str(), 3)] {
        let found =
            within(PATIENCE, "an answer", admin.bounds(&[first.clone(), wrong, second.clone()])).await;
        assert!(matches!(found, Err(Error::UnknownTopic(_))), "{found:?}");
    }
    // What was asked for in vain may exist a moment later.
    let late = TopicPartition::new(missing.as_str(), 1);
    within(PATIENCE, "a topic", admin.create_topic(&spec(&missing, 2, &[]))).await.unwrap();
    let found = within(PATIENCE, "positions", admin.bounds(&[late, first])).await;
    assert_eq!(found, Ok(vec![Bounds { start: 0, end: 0 }, Bounds { start: 2, end: 3 }]));
}
