//! Groups, what they have committed, and what lies behind it.
//!
//! Of a partition `lag = end - max(committed, start)`. The executors commit all message topics under one group, each commit
//! for one creation of its topic: one of another creation does not count, and all that is there waits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tbmq_bus::{Bounds, Commit, Error, GroupDetails, TopicInfo, TopicPartition};
use tbmq_integration::wire::CommitMetadata;
use tbmq_proto::{
    control::{
        ConsumerGroup, GroupLag,
        consumer_group::{Assignment, Member, PartitionLag},
    },
    topic::{Catalogue, GroupRole, Role},
};
use tonic::Status;

use super::{super::backlog::RecordKey, bus_failure, group_name, owners::Owners};
use crate::plane::Plane;

/// How often a look begins anew because a topic was deleted meanwhile.
const LOOKS_AGAIN: usize = 3;

/// Partitions that are told of one group.
const PARTITIONS_MAX: usize = 10_000;

/// Groups at one time.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) at_ms: i64,
    /// By id, with members and partitions.
    pub(super) groups: Vec<ConsumerGroup>,
    /// By group and topic.
    pub(super) lags: Vec<TopicLag>,
}

/// What waits in a topic for a group.
#[derive(Clone, Debug)]
pub(super) struct TopicLag {
    /// Without its age.
    pub(super) lag: GroupLag,
    /// The first records that wait.
    pub(super) fronts: Vec<Front>,
}

/// The first record of a partition that waits.
#[derive(Clone, Debug)]
pub(super) struct Front {
    pub(super) key: RecordKey,
    pub(super) at: TopicPartition,
    /// When it was written, if the commit says so.
    pub(super) written_ms: Option<i64>,
}

/// What is known of a partition and a group.
#[derive(Clone, Debug, Default)]
struct Part {
    topic_id: Arc<str>,
    committed: Option<u64>,
    oldest_ms: Option<i64>,
    bounds: Option<Bounds>,
}

impl Part {
    fn bounds(&self) -> Bounds {
        self.bounds.unwrap_or(Bounds { start: 0, end: 0 })
    }

    /// Everything below is settled or gone.
    fn front(&self) -> u64 {
        self.committed.unwrap_or(0).max(self.bounds().start)
    }

    fn lag(&self) -> u64 {
        self.bounds().end.saturating_sub(self.front())
    }
}

/// The partitions of each group.
type Parts = BTreeMap<String, BTreeMap<TopicPartition, Part>>;

pub(super) async fn look(plane: Arc<Plane>) -> Result<Groups, Status> {
    let mut again = 0;
    loop {
        match look_once(&plane).await? {
            Ok(groups) => return Ok(groups),
            // A topic was deleted meanwhile.
            Err(Error::UnknownTopic(_)) if again < LOOKS_AGAIN => again += 1,
            Err(error) => return Err(bus_failure(error)),
        }
    }
}

async fn look_once(plane: &Plane) -> Result<Result<Groups, Error>, Status> {
    let owners = Owners::read(&plane.store).await?;
    Ok(ask(plane, &owners).await)
}

async fn ask(plane: &Plane, owners: &Owners) -> Result<Groups, Error> {
    let admin = &*plane.admin;
    let (groups, topics) = tokio::try_join!(admin.groups(), admin.topics())?;
    let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    let mut commits = BTreeMap::new();
    for (name, found) in names.iter().zip(admin.group_commits(&names).await) {
        match found {
            Ok(found) => drop(commits.insert((*name).to_owned(), found)),
            Err(error @ Error::Unavailable(_)) => return Err(error),
            // What we may not see of one group leaves us the others.
            Err(error) => tracing::debug!(group = name, %error, "commits can't be read"),
        }
    }
    let at_ms = tbmq_service::time::now_ms();
    let mut parts = parts(&plane.catalogue, owners, &topics, commits);
    let distinct: BTreeSet<&TopicPartition> = parts.values().flat_map(BTreeMap::keys).collect();
    let distinct: Vec<TopicPartition> = distinct.into_iter().cloned().collect();
    let bounds = if distinct.is_empty() { Vec::new() } else { admin.bounds(&distinct).await? };
    let bounds: HashMap<TopicPartition, Bounds> = distinct.into_iter().zip(bounds).collect();
    for (at, part) in parts.values_mut().flatten() {
        part.bounds = bounds.get(at).copied();
    }
    let none = BTreeMap::new();
    let shown =
        groups.iter().map(|group| show(plane, owners, group, parts.get(&group.name).unwrap_or(&none)));
    Ok(Groups { at_ms, groups: shown.collect(), lags: lags(&plane.catalogue, owners, &parts) })
}

/// What was committed, as far as it counts, and the partitions of message topics that nobody has committed yet.
fn parts(
    catalogue: &Catalogue,
    owners: &Owners,
    topics: &[TopicInfo],
    commits: BTreeMap<String, Vec<Commit>>,
) -> Parts {
    let messages = catalogue.messages_group();
    let lives = owners.message_topics(catalogue);
    let topics: HashMap<&str, (Arc<str>, u32)> = topics
        .iter()
        .map(|topic| (topic.name.as_str(), (topic.id.as_str().into(), topic.partitions)))
        .collect();
    let mut parts = Parts::new();
    for (group, commits) in commits {
        let is_messages = group == messages;
        let of_group = parts.entry(group).or_default();
        for commit in commits {
            let Some((topic_id, count)) = topics.get(&*commit.partition.topic) else { continue };
            if commit.partition.partition >= *count {
                continue;
            }
            let mut part = Part { topic_id: Arc::clone(topic_id), ..Part::default() };
            match lives.get(&*commit.partition.topic).filter(|_| is_messages) {
                None => part.committed = Some(commit.offset),
                Some(life) => {
                    let metadata = CommitMetadata::from_text(&commit.metadata);
                    if let Some(metadata) =
                        metadata.filter(|found| found.is_of(life.life.generation, topic_id))
                    {
                        (part.committed, part.oldest_ms) = (Some(commit.offset), metadata.oldest_ms);
                    }
                }
            }
            of_group.insert(commit.partition, part);
        }
    }
    for name in lives.keys() {
        let Some((topic_id, count)) = topics.get(name.as_str()) else { continue };
        let name: Arc<str> = name.as_str().into();
        let of_group = parts.entry(messages.clone()).or_default();
        for partition in 0..*count {
            let part = || Part { topic_id: Arc::clone(topic_id), ..Part::default() };
            of_group.entry(TopicPartition::new(Arc::clone(&name), partition)).or_insert_with(part);
        }
    }
    parts
}

fn lags(catalogue: &Catalogue, owners: &Owners, parts: &Parts) -> Vec<TopicLag> {
    let mut lags: Vec<TopicLag> = Vec::new();
    for (group, parts) in parts {
        for (at, part) in parts {
            // Those of one topic stand together.
            let is_next =
                lags.last().is_some_and(|last| last.lag.group_id == *group && *last.lag.topic == *at.topic);
            if !is_next {
                let integration = catalogue.role_of(&at.topic).as_ref().and_then(Role::integration);
                let display_name = integration.and_then(|id| owners.names.get(&id).cloned());
                let lag = GroupLag {
                    group_id: group.clone(),
                    topic: at.topic.to_string(),
                    lag_messages: 0,
                    lag_seconds: None,
                    integration: integration.map(|id| format!("integrations/{id}")).unwrap_or_default(),
                    integration_display_name: display_name.unwrap_or_default(),
                };
                lags.push(TopicLag { lag, fronts: Vec::new() });
            }
            let (lag, front) = (part.lag(), part.front());
            if let Some(last) = lags.last_mut().filter(|_| lag > 0) {
                last.lag.lag_messages = last.lag.lag_messages.saturating_add(lag);
                last.fronts.push(Front {
                    key: (Arc::clone(&part.topic_id), at.partition, front),
                    at: at.clone(),
                    written_ms: part.oldest_ms.filter(|_| part.committed == Some(front)),
                });
            }
        }
    }
    lags
}

fn show(
    plane: &Plane,
    owners: &Owners,
    group: &GroupDetails,
    parts: &BTreeMap<TopicPartition, Part>,
) -> ConsumerGroup {
    let role = plane.catalogue.group_role_of(&group.name);
    let mut holders: HashMap<&TopicPartition, &str> = HashMap::new();
    for member in &group.members {
        holders.extend(member.partitions.iter().map(|at| (at, member.client_id.as_str())));
    }
    let partition = |(at, part): (&TopicPartition, &Part)| PartitionLag {
        topic: at.topic.to_string(),
        partition: at.partition,
        committed_offset: part.committed,
        start_offset: part.bounds().start,
        end_offset: part.bounds().end,
        lag_messages: part.lag(),
        client_id: holders.get(at).copied().unwrap_or_default().to_owned(),
    };
    let mut members: Vec<Member> = group.members.iter().map(show_member).collect();
    members.sort_by(|one, other| (&one.client_id, &one.member_id).cmp(&(&other.client_id, &other.member_id)));
    ConsumerGroup {
        name: group_name(&group.name),
        group_id: group.name.clone(),
        state: group.state.name().to_owned(),
        assignor: group.assignor.clone(),
        coordinator: group.coordinator,
        member_count: members.len() as u32,
        lag_messages: parts.values().map(Part::lag).fold(0, u64::saturating_add),
        system: role.is_some(),
        undeletable_reason: undeletable(plane, group, role.as_ref(), owners.names.len()).unwrap_or_default(),
        purpose: role.map(|role| role.purpose()).unwrap_or_default(),
        members,
        partitions: parts.iter().take(PARTITIONS_MAX).map(partition).collect(),
    }
}

fn show_member(member: &tbmq_bus::GroupMember) -> Member {
    let mut assignments: Vec<Assignment> = Vec::new();
    for at in &member.partitions {
        match assignments.last_mut() {
            Some(last) if *last.topic == *at.topic => last.partitions.push(at.partition),
            _ => assignments.push(Assignment { topic: at.topic.to_string(), partitions: vec![at.partition] }),
        }
    }
    Member {
        member_id: member.id.clone(),
        instance_id: member.instance_id.clone().unwrap_or_default(),
        client_id: member.client_id.clone(),
        host: member.host.clone(),
        assignments,
    }
}

/// Why a group can't be deleted now. One of ours may have no members for a moment while its processes live.
pub(super) fn undeletable(
    plane: &Plane,
    group: &GroupDetails,
    role: Option<&GroupRole>,
    integrations: usize,
) -> Option<String> {
    match (group.members.len(), role) {
        (0, None) => None,
        (0, Some(GroupRole::Messages)) if integrations == 0 => None,
        (0, Some(GroupRole::Messages)) => Some(format!(
            "it holds how far the messages of integrations ({integrations}) were delivered; without it all that is \
             kept would be delivered again"
        )),
        (0, Some(GroupRole::Uplink | GroupRole::Unauthorized)) => Some("control planes use it".to_owned()),
        (0, Some(GroupRole::Downlink(kind))) => {
            let executors = plane.nodes.executors_of(kind);
            (!executors.is_empty()).then(|| format!("live executors use it: {}", executors.join(", ")))
        }
        (1, _) => Some("it has a member".to_owned()),
        (members, _) => Some(format!("it has {members} members")),
    }
}
