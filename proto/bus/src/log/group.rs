//! Consumer groups: who owns which partition, and the orderly way from one owner to the next.
//!
//! Invariant: a partition has at most one owner, and gets a new one only after the old one has released it, left,
//! or lost it. Time comes in as an argument; what members are to be told goes to their queues.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{GroupMember, GroupState, TopicPartition};

/// One group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    members: BTreeMap<MemberId, Member>,
    owners: BTreeMap<TopicPartition, Owner>,
    next_member: MemberId,
    next_grant: u64,
}

/// Number of a member within its group.
pub(crate) type MemberId = u64;

/// A partition and the number of the grant that gave it, so that a late release touches no later owner.
pub(crate) type Grant = (TopicPartition, u64);

#[derive(Debug)]
struct Member {
    client_id: String,
    instance_id: Option<String>,
    topics: Vec<String>,
    session: Duration,
    /// Where it listens; `None` while a static member is away.
    queue: Option<Arc<MemberQueue>>,
    away_since: Option<Instant>,
}

#[derive(Debug)]
struct Owner {
    member: MemberId,
    grant: u64,
    revoked_at: Option<Instant>,
}

/// What a member is to be told.
#[derive(Debug)]
pub(crate) enum Notice {
    Assigned(Vec<TopicPartition>),
    Revoked(Vec<Grant>),
    Lost(Vec<TopicPartition>),
    /// All is lost for good: another member has taken over this one's instance id.
    Replaced,
}

/// Where a member listens.
#[derive(Debug)]
pub(crate) struct MemberQueue {
    notices: Mutex<VecDeque<Notice>>,
    waker: AtomicWaker,
    opened: Instant,
    /// When the member was last heard of, in ms after `opened`.
    seen_ms: AtomicU64,
}

impl MemberQueue {
    pub(crate) fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            notices: Mutex::default(),
            waker: AtomicWaker::new(),
            opened: now,
            seen_ms: AtomicU64::new(0),
        })
    }

    pub(crate) fn pop(&self) -> Option<Notice> {
        self.notices.lock().pop_front()
    }

    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    /// Notes that the member is alive.
    pub(crate) fn seen(&self, now: Instant) {
        self.seen_ms.store((now - self.opened).as_millis() as u64, Ordering::Relaxed);
    }

    fn last_seen(&self) -> Instant {
        self.opened + Duration::from_millis(self.seen_ms.load(Ordering::Relaxed))
    }

    fn push(&self, notice: Notice) {
        self.notices.lock().push_back(notice);
        self.waker.wake();
    }
}

impl Group {
    /// A group whose numbers begin after this one.
    pub(crate) fn after(number: u64) -> Self {
        Self { next_member: number, next_grant: number, ..Self::default() }
    }

    /// The highest number that was given.
    pub(crate) fn last_number(&self) -> u64 {
        self.next_member.max(self.next_grant)
    }

    /// Adds a member, or lets it take the place of the one with the same instance id.
    pub(crate) fn join(
        &mut self,
        client_id: &str,
        instance_id: Option<&str>,
        topics: &[String],
        session: Duration,
        queue: &Arc<MemberQueue>,
    ) -> MemberId {
        let known = instance_id.and_then(|id| {
            let same = |member: &Member| member.instance_id.as_deref() == Some(id);
            self.members.iter().find_map(|(number, member)| same(member).then_some(*number))
        });
        let member = Member {
            client_id: client_id.to_owned(),
            instance_id: instance_id.map(str::to_owned),
            topics: topics.to_vec(),
            session,
            queue: Some(Arc::clone(queue)),
            away_since: None,
        };
        self.next_member += 1;
        let id = self.next_member;
        if let Some(old) = known {
            let held = self.owned_by(old);
            if let Some(old_queue) = self.members.remove(&old).and_then(|member| member.queue) {
                old_queue.push(Notice::Replaced);
            }
            for partition in &held {
                self.next_grant += 1;
                let owner = Owner { member: id, grant: self.next_grant, revoked_at: None };
                self.owners.insert(partition.clone(), owner);
            }
            if !held.is_empty() {
                queue.push(Notice::Assigned(held));
            }
        }
        self.members.insert(id, member);
        id
    }

    /// Removes a member with all it holds.
    pub(crate) fn leave(&mut self, member: MemberId) {
        self.members.remove(&member);
        self.owners.retain(|_, owner| owner.member != member);
    }

    /// The member's handle is gone: a static member may come back within its session, another has left.
    pub(crate) fn dropped(&mut self, member: MemberId, now: Instant) {
        match self.members.get_mut(&member) {
            Some(found) if found.instance_id.is_some() => {
                found.queue = None;
                found.away_since = Some(now);
            }
            Some(_) => self.leave(member),
            None => {}
        }
    }

    /// Hands partitions over.
    pub(crate) fn release(&mut self, member: MemberId, grants: &[Grant]) {
        for (partition, grant) in grants {
            if self.owners.get(partition).is_some_and(|owner| owner.member == member && owner.grant == *grant)
            {
                self.owners.remove(partition);
            }
        }
    }

    /// Takes everything from a member whose session has expired.
    pub(crate) fn expire(&mut self, member: MemberId) {
        let held = self.owned_by(member);
        let queue = self.members.get(&member).and_then(|found| found.queue.clone());
        self.leave(member);
        if let Some(queue) = queue {
            queue.push(Notice::Lost(held));
        }
    }

    /// The members with this client id.
    pub(crate) fn members_named(&self, client_id: &str) -> Vec<MemberId> {
        let named = self.members.iter().filter(|(_, member)| member.client_id == client_id);
        named.map(|(id, _)| *id).collect()
    }

    /// Expires members that are away for too long, and those that were not heard of for a session while others wait
    /// for what they hold. `true` when there were any.
    pub(crate) fn tick(&mut self, now: Instant) -> bool {
        let late = |id: MemberId, member: &Member| {
            let over = |since: Instant| now.saturating_duration_since(since) >= member.session;
            let away = member.away_since.is_some_and(over);
            let silent = member.queue.as_ref().is_some_and(|queue| over(queue.last_seen()));
            let awaited = |owner: &Owner| owner.member == id && owner.revoked_at.is_some_and(over);
            away || (silent && self.owners.values().any(awaited))
        };
        let expired: Vec<_> =
            self.members.iter().filter(|(id, member)| late(**id, member)).map(|(id, _)| *id).collect();
        for member in &expired {
            self.expire(*member);
        }
        !expired.is_empty()
    }

    /// Whether this membership holds, and all of these partitions with it.
    pub(crate) fn holds(
        &self,
        member: MemberId,
        queue: &Arc<MemberQueue>,
        partitions: &[TopicPartition],
    ) -> bool {
        let listening = self.members.get(&member).and_then(|found| found.queue.as_ref());
        listening.is_some_and(|found| Arc::ptr_eq(found, queue))
            && partitions
                .iter()
                .all(|partition| self.owners.get(partition).is_some_and(|owner| owner.member == member))
    }

    pub(crate) fn is_member(&self, member: MemberId) -> bool {
        self.members.contains_key(&member)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// How it is, and who its members are.
    pub(crate) fn describe(&self) -> (GroupState, Vec<GroupMember>) {
        let member = |(id, member): (&MemberId, &Member)| GroupMember {
            id: id.to_string(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            host: String::new(),
            partitions: self.owned_by(*id),
        };
        let state = if self.members.is_empty() {
            GroupState::Empty
        } else if self.owners.values().any(|owner| owner.revoked_at.is_some()) {
            GroupState::PreparingRebalance
        } else {
            GroupState::Stable
        };
        (state, self.members.iter().map(member).collect())
    }

    /// Brings owners nearer to an even share: grants what is free, revokes what is to move. `partitions` tells how
    /// many partitions a topic has, if it exists.
    pub(crate) fn rebalance(&mut self, now: Instant, partitions: impl Fn(&str) -> Option<u32>) {
        let topics: BTreeSet<&str> =
            self.members.values().flat_map(|member| &member.topics).map(String::as_str).collect();
        let mut all = BTreeSet::new();
        for topic in topics {
            let name: Arc<str> = topic.into();
            let count = partitions(topic).unwrap_or(0);
            all.extend((0..count).map(|index| TopicPartition::new(Arc::clone(&name), index)));
        }
        let mut notices: BTreeMap<MemberId, Notices> = BTreeMap::new();
        let owners = std::mem::take(&mut self.owners);
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            owners.into_iter().partition(|(partition, _)| all.contains(partition));
        self.owners = kept;
        for (partition, owner) in gone {
            notices.entry(owner.member).or_default().lost.push(partition);
        }
        for (partition, target) in self.targets(&all) {
            match self.owners.get_mut(&partition) {
                None => {
                    self.next_grant += 1;
                    let owner = Owner { member: target, grant: self.next_grant, revoked_at: None };
                    self.owners.insert(partition.clone(), owner);
                    notices.entry(target).or_default().assigned.push(partition);
                }
                Some(owner) if owner.member != target && owner.revoked_at.is_none() => {
                    owner.revoked_at = Some(now);
                    notices.entry(owner.member).or_default().revoked.push((partition, owner.grant));
                }
                Some(_) => {}
            }
        }
        for (member, notices) in notices {
            if let Some(queue) = self.members.get(&member).and_then(|found| found.queue.as_ref()) {
                notices.push_to(queue);
            }
        }
        self.release_for_absent();
    }

    /// Nobody can answer a revocation for a member that is away, and nothing of it runs: what is to move is free.
    fn release_for_absent(&mut self) {
        let members = &self.members;
        self.owners.retain(|_, owner| {
            owner.revoked_at.is_none()
                || members.get(&owner.member).is_some_and(|member| member.queue.is_some())
        });
    }

    /// Who should own what: each as much as the others, everyone keeping what it has as far as possible.
    fn targets(&self, all: &BTreeSet<TopicPartition>) -> Vec<(TopicPartition, MemberId)> {
        if self.members.is_empty() {
            return Vec::new();
        }
        let eligible = |member: &Member, partition: &TopicPartition| {
            member.topics.iter().any(|topic| **topic == *partition.topic)
        };
        let (share, mut extra) = (all.len() / self.members.len(), all.len() % self.members.len());
        let mut load: BTreeMap<MemberId, usize> = self.members.keys().map(|id| (*id, 0)).collect();
        let mut targets = Vec::with_capacity(all.len());
        let mut free = Vec::new();
        for partition in all {
            let owner = self.owners.get(partition).filter(|owner| {
                self.members.get(&owner.member).is_some_and(|member| eligible(member, partition))
            });
            match owner.and_then(|owner| load.get_mut(&owner.member).map(|held| (owner.member, held))) {
                Some((member, held)) if *held < share => {
                    *held += 1;
                    targets.push((partition.clone(), member));
                }
                Some((member, held)) if *held == share && extra > 0 => {
                    extra -= 1;
                    *held += 1;
                    targets.push((partition.clone(), member));
                }
                _ => free.push(partition),
            }
        }
        for partition in free {
            let candidates = load.iter_mut().filter(|(id, _)| eligible(&self.members[*id], partition));
            if let Some((member, held)) = candidates.min_by_key(|(id, held)| (**held, **id)) {
                *held += 1;
                targets.push((partition.clone(), *member));
            }
        }
        targets
    }

    fn owned_by(&self, member: MemberId) -> Vec<TopicPartition> {
        let owned = self.owners.iter().filter(|(_, owner)| owner.member == member);
        owned.map(|(partition, _)| partition.clone()).collect()
    }
}

#[derive(Default)]
struct Notices {
    lost: Vec<TopicPartition>,
    revoked: Vec<Grant>,
    assigned: Vec<TopicPartition>,
}

impl Notices {
    fn push_to(self, queue: &MemberQueue) {
        if !self.lost.is_empty() {
            queue.push(Notice::Lost(self.lost));
        }
        if !self.revoked.is_empty() {
            queue.push(Notice::Revoked(self.revoked));
        }
        if !self.assigned.is_empty() {
            queue.push(Notice::Assigned(self.assigned));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SESSION: Duration = Duration::from_secs(10);

    /// A member's own belief, kept from its notices.
    struct Believer {
        id: MemberId,
        queue: Arc<MemberQueue>,
        held: BTreeSet<TopicPartition>,
        to_release: Vec<Grant>,
    }

    impl Believer {
        fn join(group: &mut Group, now: Instant) -> Self {
            let queue = MemberQueue::new(now);
            let id = group.join("client", None, &["topic".to_owned()], SESSION, &queue);
            Self { id, queue, held: BTreeSet::new(), to_release: Vec::new() }
        }

        fn listen(&mut self) {
            while let Some(notice) = self.queue.pop() {
                match notice {
                    Notice::Assigned(partitions) => self.held.extend(partitions),
                    Notice::Revoked(grants) => self.to_release.extend(grants),
                    Notice::Replaced => self.held.clear(),
                    Notice::Lost(partitions) => {
                        for partition in partitions {
                            self.held.remove(&partition);
                        }
                    }
                }
            }
        }

        fn release(&mut self, group: &mut Group) {
            for (partition, _) in &self.to_release {
                self.held.remove(partition);
            }
            group.release(self.id, &std::mem::take(&mut self.to_release));
        }
    }

    proptest! {
        #[test]
        fn a_partition_never_has_two_owners_and_shares_become_even(
            steps in proptest::collection::vec((0_u8..4, 0_usize..6), 1..40),
        ) {
            let now = Instant::now();
            let mut group = Group::default();
            let mut members: Vec<Believer> = Vec::new();
            let balance = |group: &mut Group| group.rebalance(now, |_| Some(7));
            for (step, index) in steps {
                match step {
                    0 => members.push(Believer::join(&mut group, now)),
                    1 if !members.is_empty() => {
                        let member = members.remove(index % members.len());
                        group.leave(member.id);
                    }
                    2 if !members.is_empty() => {
                        let index = index % members.len();
                        members[index].listen();
                        members[index].release(&mut group);
                    }
                    _ => {}
                }
                balance(&mut group);
                members.iter_mut().for_each(Believer::listen);
                let mut seen = BTreeSet::new();
                for member in &members {
                    for partition in &member.held {
                        prop_assert!(seen.insert(partition.clone()), "{partition} has two owners");
                    }
                }
            }
            for _ in 0..3 {
                for member in &mut members {
                    member.listen();
                    member.release(&mut group);
                }
                balance(&mut group);
            }
            members.iter_mut().for_each(Believer::listen);
            if !members.is_empty() {
                let sizes: Vec<_> = members.iter().map(|member| member.held.len()).collect();
                prop_assert_eq!(sizes.iter().sum::<usize>(), 7);
                prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", sizes);
            }
        }
    }

    #[test]
    fn a_static_member_that_returns_in_time_keeps_its_partitions() {
        let now = Instant::now();
        let mut group = Group::default();
        let topics = ["topic".to_owned()];
        let first = MemberQueue::new(now);
        let id = group.join("a", Some("a"), &topics, SESSION, &first);
        group.rebalance(now, |_| Some(2));
        group.dropped(id, now);
        assert!(!group.tick(now + SESSION / 2));
        let second = MemberQueue::new(now);
        group.join("a", Some("a"), &topics, SESSION, &second);
        assert!(matches!(second.pop(), Some(Notice::Assigned(partitions)) if partitions.len() == 2));
        assert!(!group.tick(now + SESSION * 2));
    }

    #[test]
    fn a_member_that_does_not_answer_a_revocation_loses_all_after_its_session() {
        let now = Instant::now();
        let mut group = Group::default();
        let mut silent = Believer::join(&mut group, now);
        group.rebalance(now, |_| Some(2));
        silent.listen();
        let mut other = Believer::join(&mut group, now);
        group.rebalance(now, |_| Some(2));
        assert!(!group.tick(now + SESSION / 2));
        assert!(group.tick(now + SESSION));
        group.rebalance(now, |_| Some(2));
        silent.listen();
        other.listen();
        assert_eq!((silent.held.len(), other.held.len()), (0, 2));
        assert!(!group.is_member(silent.id));
    }
}
