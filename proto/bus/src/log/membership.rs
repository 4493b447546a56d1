//! Memberships: how a member hears of its group and answers.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Poll,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{
    Log,
    append::Job,
    group::{Grant, Group, MemberId, MemberQueue, Notice},
};
use crate::{Commit, Error, Membership, MembershipConfig, MembershipEvent, Release};

/// A member of a group of the log.
#[derive(Debug)]
pub(super) struct LogMembership {
    log: Log,
    config: MembershipConfig,
    member: MemberId,
    queue: Arc<MemberQueue>,
    /// Everything was lost: the next call joins again.
    rejoin: bool,
}

impl LogMembership {
    pub(super) fn join(log: Log, config: MembershipConfig) -> Self {
        let (member, queue) = enter(&log, &config);
        Self { log, config, member, queue, rejoin: false }
    }

    fn release(&self, grants: Vec<Grant>) -> Release {
        let (log, name, member) = (self.log.clone(), self.config.group.clone(), self.member);
        let queue = Arc::clone(&self.queue);
        Release::new(move || {
            queue.seen(Instant::now());
            let mut groups = log.core.groups.lock();
            if let Some(group) = groups.get_mut(&name) {
                group.release(member, &grants);
                log.core.rebalance(group);
            }
        })
    }
}

fn enter(log: &Log, config: &MembershipConfig) -> (MemberId, Arc<MemberQueue>) {
    let queue = MemberQueue::new(Instant::now());
    let mut groups = log.core.groups.lock();
    let group = groups
        .entry(config.group.clone())
        .or_insert_with(|| Group::after(log.core.group_numbers.load(Ordering::Relaxed)));
    let instance_id = config.instance_id.as_deref();
    let member = group.join(&config.client_id, instance_id, &config.topics, config.session_timeout, &queue);
    log.core.rebalance(group);
    (member, queue)
}

#[async_trait]
impl Membership for LogMembership {
    async fn next(&mut self) -> MembershipEvent {
        if std::mem::take(&mut self.rejoin) {
            (self.member, self.queue) = enter(&self.log, &self.config);
        }
        let notice = std::future::poll_fn(|cx| {
            self.queue.register(cx.waker());
            self.queue.seen(Instant::now());
            self.queue.pop().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        match notice {
            Notice::Assigned(partitions) => MembershipEvent::Assigned(partitions),
            Notice::Revoked(grants) => {
                let partitions = grants.iter().map(|(partition, _)| partition.clone()).collect();
                MembershipEvent::Revoked { partitions, release: self.release(grants) }
            }
            Notice::Lost(partitions) => {
                let is_member = self
                    .log
                    .core
                    .groups
                    .lock()
                    .get(&self.config.group)
                    .is_some_and(|group| group.is_member(self.member));
                self.rejoin = !is_member;
                MembershipEvent::Lost(partitions)
            }
            // Nothing is pushed to the queue after this.
            Notice::Replaced => {
                let instance = self.config.instance_id.as_deref().unwrap_or_default();
                MembershipEvent::Fenced { reason: format!("another member has taken over the id {instance}") }
            }
        }
    }

    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<(), Error>> {
        let (log, group, queue) = (self.log.clone(), self.config.group.clone(), Arc::clone(&self.queue));
        let member = self.member;
        Box::pin(async move {
            queue.seen(Instant::now());
            log.ask(|reply| Job::Commit { group, commits, member: Some((member, queue)), reply }).await
        })
    }

    async fn leave(self: Box<Self>) {
        let mut groups = self.log.core.groups.lock();
        if let Some(group) = groups.get_mut(&self.config.group)
            && group.holds(self.member, &self.queue, &[])
        {
            group.leave(self.member);
            self.log.core.rebalance(group);
        }
    }
}

impl Drop for LogMembership {
    fn drop(&mut self) {
        let mut groups = self.log.core.groups.lock();
        if let Some(group) = groups.get_mut(&self.config.group)
            && group.holds(self.member, &self.queue, &[])
        {
            group.dropped(self.member, Instant::now());
            self.log.core.rebalance(group);
        }
    }
}
