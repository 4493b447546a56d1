//! Brokers, topics, consumer groups and lags.

use prost_types::Timestamp;
use tbmq_proto::control::{
    Broker, Cluster, ConsumerGroup, GroupLag, Topic, TopicPartition, consumer_group::Member,
};

use super::{
    super::{
        Look,
        json::{owner, time},
    },
    bytes, facts,
    grid::grid,
    or_dash, yes,
};

/// What is known of a size.
fn size(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), bytes)
}

/// About the cluster, and ID, ADDRESS, CONTROLLER, SIZE of its brokers; wide: RACK.
pub(crate) fn cluster(one: &Cluster, look: Look) -> String {
    let mut header = vec!["ID", "ADDRESS", "CONTROLLER", "SIZE"];
    if look.wide {
        header.push("RACK");
    }
    let row = |broker: &Broker| {
        let mut row = vec![
            broker.id.to_string(),
            or_dash(Some(broker.address.clone())),
            yes(broker.controller),
            size(broker.size_bytes),
        ];
        if look.wide {
            row.push(or_dash(Some(broker.rack.clone())));
        }
        row
    };
    let text = facts([
        ("Cluster", one.cluster_id.clone()),
        ("Kind", one.kind.clone()),
        ("Topics may be deleted", yes(one.topic_deletion_enabled)),
        ("Sizes are not known", one.sizes_unknown_reason.clone()),
    ]);
    format!("{text}\n{}", grid(&header, one.brokers.iter().map(row), look.coloured))
}

/// TOPIC, OWNER, PARTITIONS, REPLICAS, SIZE, STATE; wide: INTEGRATION, PURPOSE, CONFIGS.
pub(crate) fn topics(all: &[Topic], look: Look) -> String {
    let mut header = vec!["TOPIC", "OWNER", "PARTITIONS", "REPLICAS", "SIZE", "STATE"];
    if look.wide {
        header.extend(["INTEGRATION", "PURPOSE", "CONFIGS"]);
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![
            one.topic.clone(),
            owner(one).to_owned(),
            one.partition_count.to_string(),
            one.replication_factor.to_string(),
            size(one.size_bytes),
            state(one),
        ];
        if look.wide {
            row.extend([
                or_dash(Some(one.integration_display_name.clone())),
                or_dash(Some(one.purpose.clone())),
                or_dash(Some(configs(one))),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// One line above the topics.
pub(crate) fn topics_summary(total: i64, size: Option<u64>) -> String {
    let size = size.map(|size| format!(", {}", bytes(size))).unwrap_or_default();
    format!("{total} topics{size}")
}

fn state(one: &Topic) -> String {
    match (one.offline_count, one.under_replicated_count) {
        (0, 0) => "ok".to_owned(),
        (0, behind) => format!("{behind} under-replicated"),
        (offline, _) => format!("{offline} offline"),
    }
}

fn configs(one: &Topic) -> String {
    let mut configs: Vec<_> = one.configs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    configs.sort();
    configs.join(", ")
}

fn ids(all: &[i32]) -> String {
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    or_dash(Some(all.join(", ")))
}

/// All about one topic, and its partitions.
pub(crate) fn topic(one: &Topic, look: Look) -> String {
    let text = facts([
        ("Topic", one.topic.clone()),
        ("Id", one.topic_id.clone()),
        ("Owner", owner(one).to_owned()),
        ("Purpose", one.purpose.clone()),
        ("Integration", one.integration_display_name.clone()),
        ("Of", one.integration.clone()),
        ("Replicas", one.replication_factor.to_string()),
        ("Size", one.size_bytes.map(bytes).unwrap_or_default()),
        ("State", state(one)),
        ("Configs", configs(one)),
    ]);
    let row = |partition: &TopicPartition| {
        vec![
            partition.partition.to_string(),
            or_dash(partition.leader.map(|id| id.to_string())),
            ids(&partition.replicas),
            ids(&partition.in_sync_replicas),
            size(partition.size_bytes),
        ]
    };
    let header = ["PARTITION", "LEADER", "REPLICAS", "IN SYNC", "SIZE"];
    format!("{text}\n{}", grid(&header, one.partitions.iter().map(row), look.coloured))
}

/// GROUP, STATE, MEMBERS, LAG; wide: ASSIGNOR, COORDINATOR, PURPOSE, NOT DELETABLE.
pub(crate) fn groups(all: &[ConsumerGroup], look: Look) -> String {
    let mut header = vec!["GROUP", "STATE", "MEMBERS", "LAG"];
    if look.wide {
        header.extend(["ASSIGNOR", "COORDINATOR", "PURPOSE", "NOT DELETABLE"]);
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![
            one.group_id.clone(),
            one.state.clone(),
            one.member_count.to_string(),
            one.lag_messages.to_string(),
        ];
        if look.wide {
            row.extend([
                or_dash(Some(one.assignor.clone())),
                or_dash(one.coordinator.map(|id| id.to_string())),
                or_dash(Some(one.purpose.clone())),
                or_dash(Some(one.undeletable_reason.clone())),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// All about one group, its members and its partitions.
pub(crate) fn group(one: &ConsumerGroup, look: Look) -> String {
    let mut text = facts([
        ("Group", one.group_id.clone()),
        ("Purpose", one.purpose.clone()),
        ("State", one.state.clone()),
        ("Assignor", one.assignor.clone()),
        ("Coordinator", one.coordinator.map(|id| id.to_string()).unwrap_or_default()),
        ("Lag", one.lag_messages.to_string()),
        ("Can't be deleted", one.undeletable_reason.clone()),
    ]);
    let member = |one: &Member| {
        let held: usize = one.assignments.iter().map(|some| some.partitions.len()).sum();
        vec![
            one.client_id.clone(),
            or_dash(Some(one.host.clone())),
            held.to_string(),
            or_dash(Some(one.instance_id.clone())),
        ]
    };
    if !one.members.is_empty() {
        let header = ["MEMBER", "HOST", "PARTITIONS", "INSTANCE"];
        text = format!("{text}\n{}", grid(&header, one.members.iter().map(member), look.coloured));
    }
    let partition = |at: &tbmq_proto::control::consumer_group::PartitionLag| {
        vec![
            at.topic.clone(),
            at.partition.to_string(),
            or_dash(at.committed_offset.map(|offset| offset.to_string())),
            at.end_offset.to_string(),
            at.lag_messages.to_string(),
            or_dash(Some(at.client_id.clone())),
        ]
    };
    if !one.partitions.is_empty() {
        let header = ["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER"];
        text = format!("{text}\n{}", grid(&header, one.partitions.iter().map(partition), look.coloured));
    }
    text
}

/// LAG, AGE, INTEGRATION, TOPIC; wide: GROUP.
pub(crate) fn lags(all: &[GroupLag], look: Look) -> String {
    let mut header = vec!["LAG", "AGE", "INTEGRATION", "TOPIC"];
    if look.wide {
        header.push("GROUP");
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![
            one.lag_messages.to_string(),
            or_dash(one.lag_seconds.map(|seconds| format!("{seconds:.1} s"))),
            or_dash(Some(one.integration_display_name.clone())),
            one.topic.clone(),
        ];
        if look.wide {
            row.push(one.group_id.clone());
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// One line above the lags.
pub(crate) fn lags_summary(messages: u64, rows: i64, at: Option<Timestamp>) -> String {
    let at = time(at).map(|at| format!(" at {at}")).unwrap_or_default();
    format!("{messages} messages wait in {rows} topics{at}")
}
