//! Asking the cluster about many topics or partitions at once.

use std::{
    ffi::{CStr, CString},
    ptr::NonNull,
    time::Duration,
};

use rdkafka::{
    bindings as sys,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::RDKafkaErrorCode,
};

use super::NativeQueue;
use crate::{PartitionDetails, TopicPartition};

/// Why there is no answer at all.
pub(in super::super) type Failure = (RDKafkaErrorCode, String);

/// A topic as the cluster describes it.
#[derive(Debug)]
pub(in super::super) struct Described {
    pub(in super::super) name: String,
    pub(in super::super) partitions: u32,
    /// Whether every partition has a leader.
    pub(in super::super) is_led: bool,
    /// Empty when the cluster is too old to give topics ids.
    pub(in super::super) id: String,
    pub(in super::super) is_internal: bool,
    /// Where its partitions lie, by index; without sizes.
    pub(in super::super) places: Vec<PartitionDetails>,
    pub(in super::super) error: Option<RDKafkaErrorCode>,
}

/// A partition, and the position that was asked for.
pub(in super::super) type Position = (TopicPartition, Result<u64, RDKafkaErrorCode>);

/// Which end of a partition is meant.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum End {
    First,
    /// The one after the last committed record.
    Next,
}

/// An answer.
pub(super) struct Answer(pub(super) NonNull<sys::rd_kafka_event_t>);

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: the event is ours and destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

impl Answer {
    /// Waits for the next answer; `None` when none came.
    pub(super) fn of(queue: &NativeQueue, timeout: Duration) -> Option<Self> {
        // SAFETY: the queue is valid, and the event is ours.
        let event = unsafe { sys::rd_kafka_queue_poll(queue.0.as_ptr(), timeout.as_millis() as i32) };
        NonNull::new(event).map(Self)
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        // SAFETY: the event is valid; its text, if there is any, is a C string that lives as long as it.
        unsafe {
            let code = sys::rd_kafka_event_error(self.0.as_ptr());
            if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            let text = sys::rd_kafka_event_error_string(self.0.as_ptr());
            let text = (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
            Some((code.into(), text.unwrap_or_default()))
        }
    }
}

/// Options with a timeout, to be destroyed by the caller.
///
/// # Safety
/// `rk` must be valid.
pub(super) unsafe fn options(
    rk: *mut sys::rd_kafka_t,
    operation: sys::rd_kafka_admin_op_t,
    timeout: Duration,
) -> *mut sys::rd_kafka_AdminOptions_t {
    let (mut text, timeout_ms) = ([0; 256], timeout.as_millis() as i32);
    // SAFETY: as promised; the buffer has the length that is told.
    unsafe {
        let options = sys::rd_kafka_AdminOptions_new(rk, operation);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text.as_mut_ptr(), text.len());
        options
    }
}

/// Asks and waits for the answer, at most as long as `timeout` and a little more. Blocks.
///
/// # Safety
/// `request` must keep neither of its arguments.
pub(super) unsafe fn ask<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    operation: sys::rd_kafka_admin_op_t,
    timeout: Duration,
    request: impl FnOnce(*mut sys::rd_kafka_t, *mut sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
) -> Result<Answer, Failure> {
    let rk = client.client().native_ptr();
    // SAFETY: the client lives for the call; the options are destroyed here, and so is the queue, which librdkafka keeps
    // until its answer has come; neither is ever null.
    let answer = unsafe {
        let queue = sys::rd_kafka_queue_new(rk);
        let queue = NativeQueue(NonNull::new(queue).expect("librdkafka always makes a queue"));
        let options = options(rk, operation, timeout);
        request(rk, options, queue.0.as_ptr());
        sys::rd_kafka_AdminOptions_destroy(options);
        // The answer comes within the timeout, which librdkafka keeps.
        Answer::of(&queue, timeout + Duration::from_secs(1))
    };
    let no_answer = || (RDKafkaErrorCode::OperationTimedOut, "no answer".to_owned());
    let answer = answer.ok_or_else(no_answer)?;
    match answer.failure() {
        Some(failure) => Err(failure),
        None => Ok(answer),
    }
}

/// Topics that one request asks for: librdkafka compares each with each.
pub(in super::super) const DESCRIBED_TOGETHER: usize = 500;

/// Asks for distinct topics, up to [`DESCRIBED_TOGETHER`] of them in one request. Blocks, for each at most as long as
/// `timeout`.
pub(in super::super) fn describe_topics<'a, C: ConsumerContext>(
    client: &BaseConsumer<C>,
    names: impl IntoIterator<Item = &'a str>,
    timeout: Duration,
) -> Result<Vec<Described>, Failure> {
    // No topic has a name with a zero byte.
    let names: Vec<CString> = names.into_iter().filter_map(|name| CString::new(name).ok()).collect();
    let mut all = Vec::with_capacity(names.len());
    for some in names.chunks(DESCRIBED_TOGETHER) {
        all.extend(describe_together(client, some, timeout)?);
    }
    Ok(all)
}

fn describe_together<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    names: &[CString],
    timeout: Duration,
) -> Result<Vec<Described>, Failure> {
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: the names live for the call; the collection is copied by the request and destroyed here. The answer is one
    // to this request; all that is read from it lives as long as it.
    unsafe {
        let answer = ask(client, operation, timeout, |rk, options, queue| {
            let topics = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            sys::rd_kafka_DescribeTopics(rk, topics, options, queue);
            sys::rd_kafka_TopicCollection_destroy(topics);
        })?;
        let result = sys::rd_kafka_event_DescribeTopics_result(answer.0.as_ptr());
        if result.is_null() {
            return Ok(Vec::new());
        }
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        let topics = (0..count).map(|index| *topics.add(index)).filter(|topic| !topic.is_null());
        Ok(topics.map(|topic| described(topic)).collect())
    }
}

/// # Safety
/// The topic must be of a valid answer.
unsafe fn described(topic: *const sys::rd_kafka_TopicDescription_t) -> Described {
    // SAFETY: as promised; texts are C strings, an array has the length that is told, and an error may be null.
    unsafe {
        let mut count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(topic, &raw mut count);
        let places: Vec<_> = (0..count).map(|index| place(*partitions.add(index))).collect();
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let is_known = sys::rd_kafka_Uuid_most_significant_bits(id) != 0
            || sys::rd_kafka_Uuid_least_significant_bits(id) != 0;
        let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
        let error = sys::rd_kafka_TopicDescription_error(topic);
        let code = if error.is_null() { None } else { Some(sys::rd_kafka_error_code(error)) };
        Described {
            name: text(sys::rd_kafka_TopicDescription_name(topic)),
            partitions: count as u32,
            is_led: places.iter().all(|place| place.leader.is_some()),
            places,
            is_internal: sys::rd_kafka_TopicDescription_is_internal(topic) != 0,
            id: if is_known { text(sys::rd_kafka_Uuid_base64str(id)) } else { String::new() },
            error: code
                .filter(|code| *code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR)
                .map(Into::into),
        }
    }
}

/// # Safety
/// The partition must be of a valid answer.
unsafe fn place(partition: *const sys::rd_kafka_TopicPartitionInfo_t) -> PartitionDetails {
    let mut count = 0;
    // SAFETY: as promised; the leader may be null, and an array has the length that is told.
    unsafe {
        let ids = |nodes: *mut *const sys::rd_kafka_Node_t, count: usize| -> Vec<i32> {
            (0..count).map(|index| sys::rd_kafka_Node_id(*nodes.add(index))).collect()
        };
        let leader = sys::rd_kafka_TopicPartitionInfo_leader(partition);
        let replicas = sys::rd_kafka_TopicPartitionInfo_replicas(partition, &raw mut count);
        let replicas = ids(replicas, count);
        let in_sync = sys::rd_kafka_TopicPartitionInfo_isr(partition, &raw mut count);
        PartitionDetails {
            leader: (!leader.is_null()).then(|| sys::rd_kafka_Node_id(leader)),
            replicas,
            in_sync: ids(in_sync, count),
            size_bytes: None,
        }
    }
}

/// Asks where distinct partitions begin or end, in one request to each leader. Fails as a whole when no partition has a
/// leader. Blocks.
pub(in super::super) fn list_offsets<'a, C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    end: End,
    timeout: Duration,
) -> Result<Vec<Position>, Failure> {
    let named: Vec<(CString, i32)> = partitions
        .into_iter()
        .filter(|at| !at.topic.is_empty())
        .filter_map(|at| Some((CString::new(&*at.topic).ok()?, i32::try_from(at.partition).ok()?)))
        .collect();
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let spec = match end {
        End::First => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_EARLIEST,
        End::Next => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST,
    };
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
    // SAFETY: the list is copied by the request and destroyed here; an entry that was added is valid until the next is;
    // an error may be null and is ours. The answer is one to this request; all that is read from it lives as long as it.
    unsafe {
        let answer = ask(client, operation, timeout, |rk, options, queue| {
            let committed = sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
            let error = sys::rd_kafka_AdminOptions_set_isolation_level(options, committed);
            if !error.is_null() {
                sys::rd_kafka_error_destroy(error);
            }
            let list = sys::rd_kafka_topic_partition_list_new(named.len() as i32);
            for (topic, partition) in &named {
                let entry = sys::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), *partition);
                (*entry).offset = spec as i64;
            }
            sys::rd_kafka_ListOffsets(rk, list, options, queue);
            sys::rd_kafka_topic_partition_list_destroy(list);
        })?;
        let result = sys::rd_kafka_event_ListOffsets_result(answer.0.as_ptr());
        if result.is_null() {
            return Ok(Vec::new());
        }
        let mut count = 0;
        let infos = sys::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        let found = (0..count).map(|index| {
            let entry = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index));
            let topic = CStr::from_ptr(entry.topic).to_string_lossy();
            let offset = match entry.err {
                // Of a leader that gave no answer, nothing is known, and nothing is said of an error either.
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                    u64::try_from(entry.offset).map_err(|_| RDKafkaErrorCode::NoOffset)
                }
                error => Err(error.into()),
            };
            (TopicPartition::new(&*topic, entry.partition as u32), offset)
        });
        Ok(found.collect())
    }
}
