//! What every adapter promises about memberships.

use std::{collections::BTreeSet, time::Duration};

use tbmq_bus::{Error, Membership, MembershipConfig, MembershipEvent, TopicPartition};

use super::{Fixture, PATIENCE, commit, topic, within};

/// A member and what it believes to hold.
struct Member {
    membership: Box<dyn Membership>,
    held: BTreeSet<TopicPartition>,
    lost: usize,
    fenced: bool,
}

impl Member {
    async fn join(f: &impl Fixture, group: &str, topic: &str, client_id: &str) -> Self {
        Self::join_as(f, group, topic, client_id, None).await
    }

    async fn join_as(
        f: &impl Fixture,
        group: &str,
        topic: &str,
        client_id: &str,
        instance_id: Option<&str>,
    ) -> Self {
        let config = MembershipConfig {
            group: group.to_owned(),
            client_id: client_id.to_owned(),
            instance_id: instance_id.map(str::to_owned),
            topics: vec![topic.to_owned()],
            session_timeout: Duration::from_secs(6),
        };
        let membership = within(PATIENCE, "a membership", f.bus().membership(config)).await.unwrap();
        Self { membership, held: BTreeSet::new(), lost: 0, fenced: false }
    }

    async fn step(&mut self) {
        match self.membership.next().await {
            MembershipEvent::Assigned(partitions) => {
                for partition in partitions {
                    assert!(self.held.insert(partition.clone()), "{partition} was assigned twice");
                }
            }
            MembershipEvent::Revoked { partitions, release } => {
                for partition in &partitions {
                    assert!(self.held.remove(partition), "{partition} was revoked but not held");
                }
                drop(release);
            }
            MembershipEvent::Lost(partitions) => {
                self.lost += partitions.len();
                for partition in partitions {
                    self.held.remove(&partition);
                }
            }
            MembershipEvent::Fenced { .. } => {
                self.held.clear();
                self.fenced = true;
            }
        }
    }
}

/// Lets members act until they hold so many partitions each.
async fn settle(members: &mut [Member], sizes: &[usize]) {
    let settled = async {
        let mut sorted: Vec<usize>;
        while {
            sorted = members.iter().map(|member| member.held.len()).collect();
            sorted.sort_unstable();
            sorted != sizes
        } {
            let steps = members.iter_mut().map(|member| Box::pin(member.step()));
            futures_util::future::select_all(steps).await;
            let all: Vec<_> = members.iter().flat_map(|member| &member.held).collect();
            let distinct: BTreeSet<_> = all.iter().collect();
            assert_eq!(all.len(), distinct.len(), "a partition has two owners");
        }
    };
    within(Duration::from_secs(60), &format!("shares of {sizes:?}"), settled).await;
}

pub(crate) async fn members_share_partitions_and_hand_them_over<F: Fixture>(f: &mut F) {
    let (name, group) = (topic(f, 6).await, f.unique("g"));
    let mut members = vec![Member::join(f, &group, &name, "one").await];
    settle(&mut members, &[6]).await;
    let before = members[0].held.clone();
    members.push(Member::join(f, &group, &name, "two").await);
    settle(&mut members, &[3, 3]).await;
    assert!(members[0].held.is_subset(&before), "what stays is not touched");
    members.push(Member::join(f, &group, &name, "three").await);
    settle(&mut members, &[2, 2, 2]).await;
    let gone = members.remove(1);
    within(PATIENCE, "leaving", gone.membership.leave()).await;
    settle(&mut members, &[3, 3]).await;
    assert_eq!(members.iter().map(|member| member.lost).sum::<usize>(), 0);
}

pub(crate) async fn nobody_gets_a_revoked_partition_before_its_release<F: Fixture>(f: &mut F) {
    let (name, group) = (topic(f, 2).await, f.unique("g"));
    let mut first = Member::join(f, &group, &name, "one").await;
    settle(std::slice::from_mut(&mut first), &[2]).await;
    let mut second = Member::join(f, &group, &name, "two").await;
    let revoked = async {
        tokio::select! {
            event = first.membership.next() => match event {
                MembershipEvent::Revoked { partitions, release } => (partitions, release),
                other => panic!("{other:?}"),
            },
            event = second.membership.next() => panic!("{event:?} before the release"),
        }
    };
    let (partitions, release) = within(PATIENCE, "a revocation", revoked).await;
    assert_eq!(partitions.len(), 1);
    let last_words = vec![commit(&partitions[0], 5, "last")];
    within(PATIENCE, "a commit", first.membership.commit(last_words.clone())).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), second.membership.next()).await;
    assert!(early.is_err(), "{early:?} before the release");
    drop(release);
    let assigned = async {
        tokio::select! {
            event = first.membership.next() => panic!("{event:?}"),
            event = second.membership.next() => event,
        }
    };
    let event = within(PATIENCE, "the assignment", assigned).await;
    assert!(matches!(&event, MembershipEvent::Assigned(got) if *got == partitions), "{event:?}");
    let found = f.bus().admin().committed(&group, &partitions).await;
    assert_eq!(found, Ok(last_words));
}

pub(crate) async fn a_member_commits_what_it_holds<F: Fixture>(f: &mut F) {
    let (name, group) = (topic(f, 1).await, f.unique("g"));
    let at = TopicPartition::new(name.as_str(), 0);
    let mut member = Member::join(f, &group, &name, "one").await;
    settle(std::slice::from_mut(&mut member), &[1]).await;
    let commits = vec![commit(&at, 1, "meta")];
    within(PATIENCE, "a commit", member.membership.commit(commits.clone())).await.unwrap();
    assert_eq!(within(PATIENCE, "commits", f.bus().admin().committed(&group, &[at])).await, Ok(commits));
}

pub(crate) async fn a_member_commits_while_it_waits_for_changes<F: Fixture>(f: &mut F) {
    let (name, group) = (topic(f, 2).await, f.unique("g"));
    let mut member = Member::join(f, &group, &name, "one").await;
    settle(std::slice::from_mut(&mut member), &[2]).await;
    let [one, two] = [0, 1].map(|partition| TopicPartition::new(name.as_str(), partition));
    let commits = [commit(&one, 3, "a"), commit(&two, 4, "b")];
    let under_way = commits.clone().map(|commit| member.membership.commit(vec![commit]));
    let results = async {
        tokio::select! {
            event = member.membership.next() => panic!("{event:?}"),
            results = futures_util::future::join_all(under_way) => results,
        }
    };
    assert_eq!(within(PATIENCE, "two commits", results).await, [Ok(()), Ok(())]);
    let mut found =
        within(PATIENCE, "commits", f.bus().admin().committed(&group, &[one, two])).await.unwrap();
    found.sort_by_key(|commit| commit.partition.partition);
    assert_eq!(found, commits);
    let foreign = TopicPartition::new(name.as_str(), 2);
    let refused =
        within(PATIENCE, "an answer", member.membership.commit(vec![commit(&foreign, 1, "")])).await;
    assert!(matches!(refused, Err(Error::Fenced(_))), "{refused:?}");
}

pub(crate) async fn a_newer_member_of_the_same_id_fences_the_older_one<F: Fixture>(f: &mut F) {
    let (name, group) = (topic(f, 2).await, f.unique("g"));
    let mut older = Member::join_as(f, &group, &name, "one", Some("id")).await;
    settle(std::slice::from_mut(&mut older), &[2]).await;
    let at = TopicPartition::new(name.as_str(), 0);
    within(PATIENCE, "a commit", older.membership.commit(vec![commit(&at, 1, "old")])).await.unwrap();
    let mut newer = Member::join_as(f, &group, &name, "two", Some("id")).await;
    settle(std::slice::from_mut(&mut newer), &[2]).await;
    let stale = vec![commit(&at, 2, "stale")];
    let fenced = within(PATIENCE, "an answer", older.membership.commit(stale.clone())).await;
    assert!(matches!(fenced, Err(Error::Fenced(_))), "{fenced:?}");
    let told = async {
        while !older.fenced {
            older.step().await;
        }
    };
    within(PATIENCE, "the end of the membership", told).await;
    let fenced = within(PATIENCE, "an answer", older.membership.commit(stale)).await;
    assert!(matches!(fenced, Err(Error::Fenced(_))), "{fenced:?}");
    let more = tokio::time::timeout(Duration::from_millis(300), older.membership.next()).await;
    assert!(more.is_err(), "{more:?} after the end");
    let fresh = vec![commit(&at, 3, "new")];
    within(PATIENCE, "a commit", newer.membership.commit(fresh.clone())).await.unwrap();
    within(PATIENCE, "leaving", older.membership.leave()).await;
    within(PATIENCE, "a commit", newer.membership.commit(fresh.clone())).await.unwrap();
    let found = within(PATIENCE, "commits", f.bus().admin().committed(&group, &[at])).await;
    assert_eq!(found, Ok(fresh));
}

pub(crate) async fn a_static_member_that_leaves_gives_all_away_at_once<F: Fixture>(f: &mut F) {
    let (name, group) = (topic(f, 4).await, f.unique("g"));
    let mut members = vec![Member::join_as(f, &group, &name, "one", Some("one")).await];
    settle(&mut members, &[4]).await;
    members.push(Member::join_as(f, &group, &name, "two", Some("two")).await);
    settle(&mut members, &[2, 2]).await;
    let gone = members.remove(0);
    let all_moved = async {
        gone.membership.leave().await;
        settle(&mut members, &[4]).await;
    };
    // The session would last for 6 s more.
    within(Duration::from_secs(2), "all partitions", all_moved).await;
    members.push(Member::join_as(f, &group, &name, "one", Some("one")).await);
    settle(&mut members, &[2, 2]).await;
}

pub(crate) async fn a_static_member_that_vanishes_keeps_its_place_for_its_session<F: Fixture>(f: &mut F) {
    let (name, group) = (topic(f, 4).await, f.unique("g"));
    let mut members = vec![Member::join_as(f, &group, &name, "one", Some("one")).await];
    settle(&mut members, &[4]).await;
    members.push(Member::join_as(f, &group, &name, "two", Some("two")).await);
    settle(&mut members, &[2, 2]).await;
    let vanished = members.remove(0);
    let held = vanished.held.clone();
    drop(vanished);
    let early = tokio::time::timeout(Duration::from_secs(2), members[0].membership.next()).await;
    assert!(early.is_err(), "{early:?} though the other may come back");
    members.push(Member::join_as(f, &group, &name, "one", Some("one")).await);
    settle(&mut members, &[2, 2]).await;
    assert_eq!(members[1].held, held);
}

pub(crate) async fn an_expired_member_loses_all_and_is_fenced<F: Fixture>(f: &mut F) {
    let (name, group) = (topic(f, 2).await, f.unique("g"));
    let mut member = Member::join(f, &group, &name, "one").await;
    settle(std::slice::from_mut(&mut member), &[2]).await;
    if !f.expire_session(&group, "one").await {
        return;
    }
    let commits = vec![commit(&TopicPartition::new(name.as_str(), 0), 1, "")];
    let fenced = within(PATIENCE, "an answer", member.membership.commit(commits.clone())).await;
    assert!(matches!(fenced, Err(Error::Fenced(_))), "{fenced:?}");
    let event = within(PATIENCE, "the loss", member.membership.next()).await;
    assert!(matches!(&event, MembershipEvent::Lost(lost) if lost.len() == 2), "{event:?}");
    // It comes back by itself.
    member.held.clear();
    settle(std::slice::from_mut(&mut member), &[2]).await;
    within(PATIENCE, "a commit", member.membership.commit(commits)).await.unwrap();
}
