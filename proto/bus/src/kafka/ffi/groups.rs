//! Asking the cluster about itself and about its consumer groups.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char},
    ptr::NonNull,
    time::{Duration, Instant},
};

use rdkafka::{
    bindings as sys,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::RDKafkaErrorCode,
};

use super::{
    NativeQueue,
    asking::{Answer, Failure, ask, options},
};
use crate::{BrokerInfo, ClusterInfo, Commit, GroupDetails, GroupMember, GroupState, TopicPartition};

/// Groups whose commits are asked for at the same time.
const ASKED_TOGETHER: usize = 100;

/// The text of a C string; empty when there is none.
///
/// # Safety
/// The pointer is null or points to a C string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as promised.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The pointers of an array of librdkafka's; none when there is no array.
///
/// # Safety
/// `array` is null or has `count` entries.
unsafe fn entries<T>(array: *mut *const T, count: usize) -> impl Iterator<Item = *const T> {
    let count = if array.is_null() { 0 } else { count };
    // SAFETY: as promised.
    (0..count).map(move |index| unsafe { *array.add(index) }).filter(|entry| !entry.is_null())
}

/// What an error of an answer says; `None` when it is none.
///
/// # Safety
/// `error` is null or of a valid answer.
unsafe fn failure(error: *const sys::rd_kafka_error_t) -> Option<Failure> {
    if error.is_null() {
        return None;
    }
    // SAFETY: as promised.
    let (code, told) = unsafe { (sys::rd_kafka_error_code(error), text(sys::rd_kafka_error_string(error))) };
    (code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| (code.into(), told))
}

/// The partitions of a list, with what was committed for each.
///
/// # Safety
/// `list` is null or of a valid answer.
unsafe fn partitions<'a>(
    list: *const sys::rd_kafka_topic_partition_list_t,
) -> impl Iterator<Item = &'a sys::rd_kafka_topic_partition_t> {
    let count = if list.is_null() {
        0
    } else {
        // SAFETY: as promised.
        unsafe { (*list).cnt }
    };
    // SAFETY: the list has so many entries.
    (0..usize::try_from(count).unwrap_or(0)).map(move |index| unsafe { &*(*list).elems.add(index) })
}

/// Asks for the brokers. Blocks.
pub(in super::super) fn describe_cluster<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    timeout: Duration,
) -> Result<ClusterInfo, Failure> {
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECLUSTER;
    // SAFETY: the request keeps nothing. The answer is one to it; all that is read from it lives as long as it.
    unsafe {
        let answer = ask(client, operation, timeout, |rk, options, queue| {
            sys::rd_kafka_DescribeCluster(rk, options, queue);
        })?;
        let result = sys::rd_kafka_event_DescribeCluster_result(answer.0.as_ptr());
        if result.is_null() {
            return Err((RDKafkaErrorCode::BadMessage, "no answer about the cluster".to_owned()));
        }
        let controller = sys::rd_kafka_DescribeCluster_result_controller(result);
        let controller = (!controller.is_null()).then(|| sys::rd_kafka_Node_id(controller));
        let mut count = 0;
        let nodes = sys::rd_kafka_DescribeCluster_result_nodes(result, &raw mut count);
        let broker = |node| {
            let id = sys::rd_kafka_Node_id(node);
            let (host, port) = (text(sys::rd_kafka_Node_host(node)), sys::rd_kafka_Node_port(node));
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            BrokerInfo {
                id,
                address: format!("{host}:{port}"),
                rack: text(sys::rd_kafka_Node_rack(node)),
                is_controller: controller == Some(id),
                size_bytes: None,
            }
        };
        let mut brokers: Vec<BrokerInfo> = entries(nodes, count).map(broker).collect();
        brokers.sort_by_key(|broker| broker.id);
        let id = text(sys::rd_kafka_DescribeCluster_result_cluster_id(result));
        Ok(ClusterInfo { id, kind: "KAFKA", brokers, sizes_unknown: String::new() })
    }
}

/// Names of all groups. Fails when one of the brokers did not tell. Blocks.
pub(in super::super) fn list_groups<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    timeout: Duration,
) -> Result<Vec<String>, Failure> {
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPS;
    // SAFETY: as in `describe_cluster`.
    unsafe {
        let answer = ask(client, operation, timeout, |rk, options, queue| {
            sys::rd_kafka_ListConsumerGroups(rk, options, queue);
        })?;
        let result = sys::rd_kafka_event_ListConsumerGroups_result(answer.0.as_ptr());
        if result.is_null() {
            return Ok(Vec::new());
        }
        let mut count = 0;
        let errors = sys::rd_kafka_ListConsumerGroups_result_errors(result, &raw mut count);
        if let Some(failure) = entries(errors, count).find_map(|error| failure(error)) {
            return Err(failure);
        }
        let listings = sys::rd_kafka_ListConsumerGroups_result_valid(result, &raw mut count);
        Ok(entries(listings, count)
            .map(|one| text(sys::rd_kafka_ConsumerGroupListing_group_id(one)))
            .collect())
    }
}

/// Groups with their members; those that are gone are left out. Blocks.
pub(in super::super) fn describe_groups<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    names: &[String],
    timeout: Duration,
) -> Result<Vec<GroupDetails>, Failure> {
    let names: Vec<CString> = names.iter().filter_map(|name| CString::new(name.as_str()).ok()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
    // SAFETY: the names live for the call and are copied by the request. The answer is one to it; all that is read from it
    // lives as long as it.
    unsafe {
        let answer = ask(client, operation, timeout, |rk, options, queue| {
            sys::rd_kafka_DescribeConsumerGroups(rk, pointers.as_mut_ptr(), pointers.len(), options, queue);
        })?;
        let result = sys::rd_kafka_event_DescribeConsumerGroups_result(answer.0.as_ptr());
        if result.is_null() {
            return Ok(Vec::new());
        }
        let mut count = 0;
        let groups = sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
        let mut found = Vec::with_capacity(count);
        for group in entries(groups, count) {
            match failure(sys::rd_kafka_ConsumerGroupDescription_error(group)) {
                None => found.push(described(group)),
                Some((RDKafkaErrorCode::GroupIdNotFound, _)) => {}
                Some(failure) => return Err(failure),
            }
        }
        Ok(found)
    }
}

/// # Safety
/// The group must be of a valid answer.
unsafe fn described(group: *const sys::rd_kafka_ConsumerGroupDescription_t) -> GroupDetails {
    use sys::rd_kafka_consumer_group_state_t as state;
    // SAFETY: as promised; texts are C strings or null, and so is the coordinator.
    unsafe {
        let coordinator = sys::rd_kafka_ConsumerGroupDescription_coordinator(group);
        let coordinator = (!coordinator.is_null()).then(|| sys::rd_kafka_Node_id(coordinator));
        let count = sys::rd_kafka_ConsumerGroupDescription_member_count(group);
        let members = (0..count)
            .map(|index| sys::rd_kafka_ConsumerGroupDescription_member(group, index))
            .filter(|member| !member.is_null());
        GroupDetails {
            name: text(sys::rd_kafka_ConsumerGroupDescription_group_id(group)),
            state: match sys::rd_kafka_ConsumerGroupDescription_state(group) {
                state::RD_KAFKA_CONSUMER_GROUP_STATE_EMPTY => GroupState::Empty,
                state::RD_KAFKA_CONSUMER_GROUP_STATE_STABLE => GroupState::Stable,
                state::RD_KAFKA_CONSUMER_GROUP_STATE_PREPARING_REBALANCE => GroupState::PreparingRebalance,
                state::RD_KAFKA_CONSUMER_GROUP_STATE_COMPLETING_REBALANCE => GroupState::CompletingRebalance,
                state::RD_KAFKA_CONSUMER_GROUP_STATE_DEAD => GroupState::Dead,
                _ => GroupState::Unknown,
            },
            assignor: text(sys::rd_kafka_ConsumerGroupDescription_partition_assignor(group)),
            coordinator: coordinator.filter(|id| *id >= 0),
            members: members.map(|one| member(one)).collect(),
        }
    }
}

/// # Safety
/// The member must be of a valid answer.
unsafe fn member(member: *const sys::rd_kafka_MemberDescription_t) -> GroupMember {
    // SAFETY: as promised; texts are C strings or null.
    unsafe {
        let assignment = sys::rd_kafka_MemberDescription_assignment(member);
        let list = if assignment.is_null() {
            std::ptr::null()
        } else {
            sys::rd_kafka_MemberAssignment_partitions(assignment)
        };
        let mut held: Vec<TopicPartition> = partitions(list)
            .map(|one| TopicPartition::new(text(one.topic), one.partition.max(0) as u32))
            .collect();
        held.sort();
        let instance_id = text(sys::rd_kafka_MemberDescription_group_instance_id(member));
        GroupMember {
            id: text(sys::rd_kafka_MemberDescription_consumer_id(member)),
            instance_id: Some(instance_id).filter(|id| !id.is_empty()),
            client_id: text(sys::rd_kafka_MemberDescription_client_id(member)),
            host: text(sys::rd_kafka_MemberDescription_host(member)).trim_start_matches('/').to_owned(),
            partitions: held,
        }
    }
}

/// What became of the question for a group's commits.
type Commits = Result<Vec<Commit>, Failure>;

/// All that groups have committed, many groups at a time. One that got no answer is missing. Blocks.
pub(in super::super) fn group_commits<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    names: &[String],
    timeout: Duration,
) -> BTreeMap<String, Commits> {
    let deadline = Instant::now() + timeout;
    let mut all = BTreeMap::new();
    for some in names.chunks(ASKED_TOGETHER) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        all.append(&mut commits_together(client, some, left));
    }
    all
}

fn commits_together<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    names: &[String],
    timeout: Duration,
) -> BTreeMap<String, Commits> {
    let (rk, operation) =
        (client.client().native_ptr(), sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS);
    let names: Vec<CString> = names.iter().filter_map(|name| CString::new(name.as_str()).ok()).collect();
    let deadline = Instant::now() + timeout + Duration::from_secs(1);
    let mut all = BTreeMap::new();
    // SAFETY: the client lives for the call; names and options are copied by each request and are destroyed here, and so is
    // the queue, which librdkafka keeps until its answers have come. Each answer is one to such a request.
    unsafe {
        let queue = sys::rd_kafka_queue_new(rk);
        let queue = NativeQueue(NonNull::new(queue).expect("librdkafka always makes a queue"));
        for name in &names {
            let mut request = sys::rd_kafka_ListConsumerGroupOffsets_new(name.as_ptr(), std::ptr::null());
            let options = options(rk, operation, timeout);
            sys::rd_kafka_ListConsumerGroupOffsets(rk, &raw mut request, 1, options, queue.0.as_ptr());
            sys::rd_kafka_AdminOptions_destroy(options);
            sys::rd_kafka_ListConsumerGroupOffsets_destroy(request);
        }
        for _ in &names {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(answer) = Answer::of(&queue, left) else { break };
            let (name, commits) = commits(&answer);
            all.insert(name, commits);
        }
    }
    all
}

/// # Safety
/// The answer must be one to a question for the commits of a group.
unsafe fn commits(answer: &Answer) -> (String, Commits) {
    if let Some(failure) = answer.failure() {
        // It does not say which group it is about, and those without an answer are told as such.
        return (String::new(), Err(failure));
    }
    // SAFETY: as promised; all that is read lives as long as the answer.
    unsafe {
        let result = sys::rd_kafka_event_ListConsumerGroupOffsets_result(answer.0.as_ptr());
        if result.is_null() {
            return (String::new(), Ok(Vec::new()));
        }
        let mut count = 0;
        let groups = sys::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &raw mut count);
        let Some(group) = entries(groups, count).next() else { return (String::new(), Ok(Vec::new())) };
        let name = text(sys::rd_kafka_group_result_name(group));
        match failure(sys::rd_kafka_group_result_error(group)) {
            None => {}
            Some((RDKafkaErrorCode::GroupIdNotFound, _)) => return (name, Ok(Vec::new())),
            Some(failure) => return (name, Err(failure)),
        }
        let commit = |one: &sys::rd_kafka_topic_partition_t| {
            let metadata = if one.metadata.is_null() {
                &[]
            } else {
                std::slice::from_raw_parts(one.metadata.cast::<u8>(), one.metadata_size)
            };
            Some(Commit {
                partition: TopicPartition::new(text(one.topic), u32::try_from(one.partition).ok()?),
                offset: u64::try_from(one.offset).ok()?,
                metadata: String::from_utf8_lossy(metadata).trim_end_matches('\0').to_owned(),
            })
        };
        let list = sys::rd_kafka_group_result_partitions(group);
        let mut commits: Vec<Commit> = partitions(list).filter_map(commit).collect();
        commits.sort_by(|one, other| one.partition.cmp(&other.partition));
        (name, Ok(commits))
    }
}
