//! What every adapter tells of brokers, topics and groups.

use std::time::Duration;

use tbmq_bus::{
    CleanupPolicy, Commit, Error, GroupDetails, GroupState, MembershipConfig, MembershipEvent, ReaderConfig,
    TopicDetails, TopicPartition, TopicSpec,
};

use super::{Fixture, PATIENCE, commit, put, topic_with, within, writer};

/// Asks until it holds.
async fn until<T>(what: &str, ask: impl AsyncFn() -> T, holds: impl Fn(&T) -> bool) -> T {
    let asking = async {
        loop {
            let found = ask().await;
            if holds(&found) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, what, asking).await
}

async fn details(f: &impl Fixture, name: &str) -> Option<TopicDetails> {
    let all = within(PATIENCE, "topics", f.bus().admin().topic_details()).await.unwrap();
    assert!(all.is_sorted_by(|one, other| one.name < other.name), "by name");
    all.into_iter().find(|topic| topic.name == name)
}

async fn group(f: &impl Fixture, name: &str) -> Option<GroupDetails> {
    let all = within(PATIENCE, "groups", f.bus().admin().groups()).await.unwrap();
    assert!(all.is_sorted_by(|one, other| one.name < other.name), "by name");
    all.into_iter().find(|group| group.name == name)
}

async fn commits(f: &impl Fixture, groups: &[&str]) -> Vec<Result<Vec<Commit>, Error>> {
    within(PATIENCE, "commits", f.bus().admin().group_commits(groups)).await
}

pub(crate) async fn topics_tell_where_they_lie_how_big_they_are_and_their_own_settings<F: Fixture>(
    f: &mut F,
) {
    let spec = TopicSpec {
        name: f.unique("t"),
        partitions: 2,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: vec![("retention.ms".to_owned(), "3600000".to_owned())],
    };
    let name = topic_with(f, spec).await;
    let admin = f.bus().admin();
    let cluster = within(PATIENCE, "the cluster", admin.cluster()).await.unwrap();
    let [broker] = cluster.brokers.as_slice() else { panic!("one broker, not {cluster:?}") };
    assert!(broker.is_controller && !cluster.kind.is_empty(), "{cluster:?}");
    assert_eq!(cluster.sizes_unknown, "");

    // Whoever has just made a topic may know of its files a moment later.
    let sizes = |topic: &Option<TopicDetails>| -> Vec<Option<u64>> {
        topic.iter().flat_map(|topic| &topic.partitions).map(|one| one.size_bytes).collect()
    };
    let found = until(
        "a topic without records",
        async || details(f, &name).await,
        |found| sizes(found) == [Some(0), Some(0)],
    );
    let found = found.await.unwrap();
    assert_eq!(Some(&found.id), admin.topic(&name).await.unwrap().map(|info| info.id).as_ref());
    assert!(!found.is_internal);
    let own = [("cleanup.policy", "delete"), ("retention.ms", "3600000")];
    assert_eq!(found.settings, own.map(|(key, value)| (key.to_owned(), value.to_owned())));
    for partition in &found.partitions {
        assert_eq!(partition.leader, Some(broker.id), "{found:?}");
        assert_eq!(partition.replicas, [broker.id], "{found:?}");
        assert_eq!(partition.in_sync, [broker.id], "{found:?}");
    }

    let text = "x".repeat(1_000);
    put(&*writer(f).await, &TopicPartition::new(name.as_str(), 1), &[("k", &text), ("k", &text)]).await;
    let found = details(f, &name).await;
    let [Some(first), Some(second)] = sizes(&found)[..] else { panic!("{found:?}") };
    assert!(first == 0 && (2_000..4_000).contains(&second), "{found:?}");
    let cluster = within(PATIENCE, "the cluster", admin.cluster()).await.unwrap();
    assert!(cluster.brokers[0].size_bytes.is_some_and(|size| size >= 2_000), "{cluster:?}");

    within(PATIENCE, "a deletion", admin.delete_topic(&name)).await.unwrap();
    assert_eq!(details(f, &name).await, None);
}

pub(crate) async fn a_group_tells_its_members_and_commits_and_is_deleted_when_they_are_gone<F: Fixture>(
    f: &mut F,
) {
    let spec = TopicSpec {
        name: f.unique("t"),
        partitions: 2,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: Vec::new(),
    };
    let name = topic_with(f, spec).await;
    let [one, two] = [0, 1].map(|partition| TopicPartition::new(name.as_str(), partition));
    put(&*writer(f).await, &one, &[("k", "a"), ("k", "b")]).await;
    let (joined, alone, missing) = (f.unique("g-joined"), f.unique("g-alone"), f.unique("g-missing"));
    let config = MembershipConfig {
        group: joined.clone(),
        client_id: "client".to_owned(),
        instance_id: Some("service".to_owned()),
        topics: vec![name.clone()],
        session_timeout: Duration::from_secs(10),
    };
    let mut membership = within(PATIENCE, "a membership", f.bus().membership(config)).await.unwrap();
    let mut held = Vec::new();
    while held.len() < 2 {
        match within(PATIENCE, "an assignment", membership.next()).await {
            MembershipEvent::Assigned(some) => held.extend(some),
            other => panic!("{other:?}"),
        }
    }
    within(PATIENCE, "a commit", membership.commit(vec![commit(&one, 1, "m")])).await.unwrap();
    let mut reader = f.bus().reader(ReaderConfig::new("reader", Some(alone.clone()))).await.unwrap();
    within(PATIENCE, "a commit", reader.commit(vec![commit(&two, 0, ""), commit(&one, 2, "{}")]))
        .await
        .unwrap();

    let stable = until(
        "a stable group",
        async || group(f, &joined).await,
        |found| found.as_ref().is_some_and(|found| found.state == GroupState::Stable),
    );
    let stable = stable.await.unwrap();
    let [member] = stable.members.as_slice() else { panic!("one member, not {stable:?}") };
    assert_eq!((member.client_id.as_str(), member.instance_id.as_deref()), ("client", Some("service")));
    assert!(!member.id.is_empty() && !stable.assignor.is_empty(), "{stable:?}");
    assert_eq!(member.partitions, [one.clone(), two.clone()]);
    let found = group(f, &alone).await.unwrap();
    assert_eq!((found.state, found.members.len(), found.assignor.as_str()), (GroupState::Empty, 0, ""));
    assert_eq!(group(f, &missing).await, None);
    let expected =
        [Ok(vec![commit(&one, 1, "m")]), Ok(vec![]), Ok(vec![commit(&one, 2, "{}"), commit(&two, 0, "")])];
    assert_eq!(commits(f, &[&joined, &missing, &alone]).await, expected);
    assert_eq!(commits(f, &[]).await, []);

    let admin = f.bus().admin();
    let delete = async |name: &str| within(PATIENCE, "a deletion", admin.delete_group(name)).await;
    let refused = delete(&joined).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert_eq!(commits(f, &[&joined]).await, expected[..1]);
    assert_eq!(delete(&missing).await, Ok(false));
    assert_eq!(delete(&alone).await, Ok(true));
    assert_eq!(delete(&alone).await, Ok(false));
    assert_eq!(group(f, &alone).await, None);
    assert_eq!(commits(f, &[&alone]).await, [Ok(vec![])]);
    within(PATIENCE, "a farewell", membership.leave()).await;
    let gone = until("a group without members", async || delete(&joined).await, Result::is_ok).await;
    assert_eq!(gone, Ok(true));
    assert_eq!(commits(f, &[&joined]).await, [Ok(vec![])]);
    // Others have lost nothing.
    assert_eq!(admin.topic(&name).await.unwrap().map(|info| info.partitions), Some(2));
}
