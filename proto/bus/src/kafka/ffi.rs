//! What librdkafka can do and its Rust wrapper does not offer: producing by topic handle, delivery reports in batches,
//! consuming in batches with the offset at which a partition ended, the ids of topics, offsets of many partitions at once,
//! brokers, groups with what they have committed, and whether a member has joined or left.
//!
//! The wrapper's producer looks a topic up by name for each record, which librdkafka does by scanning all topics:
//! 0.75 µs at one topic, 38 µs at ten thousand.
#![allow(unsafe_code, reason = "the one module that calls librdkafka directly")]

mod asking;
mod groups;

use std::{
    any::Any,
    ffi::{CStr, CString, c_void},
    fmt,
    ptr::NonNull,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rdkafka::{
    bindings as sys,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::RDKafkaErrorCode,
    producer::{BaseProducer, Producer as _, ProducerContext},
};

pub(super) use self::{
    asking::{DESCRIBED_TOGETHER, Described, End, describe_topics, list_offsets},
    groups::{describe_cluster, describe_groups, group_commits, list_groups},
};
use crate::{Header, Outgoing, Record};

/// `RD_KAFKA_PARTITION_UA`: the partitioner chooses.
const PARTITION_BY_KEY: i32 = -1;

/// A topic of a producer, found once.
pub(super) struct NativeTopic {
    pointer: NonNull<sys::rd_kafka_topic_t>,
    /// The producer, which must not go before its topics; dropped after them.
    _producer: Arc<dyn Any + Send + Sync>,
}

// SAFETY: librdkafka's topic objects are reference counted and locked inside; they may be used from any thread.
unsafe impl Send for NativeTopic {}
// SAFETY: as above.
unsafe impl Sync for NativeTopic {}

impl NativeTopic {
    /// Finds or makes the topic object; `None` for a name that Kafka forbids. `owner` keeps the producer alive.
    pub(super) fn new<C: ProducerContext>(
        producer: &BaseProducer<C>,
        owner: Arc<dyn Any + Send + Sync>,
        name: &str,
    ) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: the client lives for the call, the name is a C string, and no topic configuration is given, so
        // none changes hands.
        let pointer = unsafe {
            sys::rd_kafka_topic_new(producer.client().native_ptr(), name.as_ptr(), std::ptr::null_mut())
        };
        NonNull::new(pointer).map(|pointer| Self { pointer, _producer: owner })
    }
}

impl Drop for NativeTopic {
    fn drop(&mut self) {
        // SAFETY: the reference was taken in `new` and is given back once.
        unsafe { sys::rd_kafka_topic_destroy(self.pointer.as_ptr()) }
    }
}

impl fmt::Debug for NativeTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NativeTopic")
    }
}

/// Hands a record to the producer, which copies it. On success `token` comes back with the delivery report; on failure
/// it is given back with librdkafka's error.
pub(super) fn produce<C: ProducerContext, T>(
    producer: &BaseProducer<C>,
    topic: &NativeTopic,
    record: Outgoing<'_>,
    token: Box<T>,
) -> Result<(), (RDKafkaErrorCode, Box<T>)> {
    let partition = record.partition.map_or(PARTITION_BY_KEY, |partition| partition as i32);
    let part = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) => (bytes.as_ptr().cast_mut().cast::<c_void>(), bytes.len()),
        None => (std::ptr::null_mut(), 0),
    };
    let (value, value_length) = part(record.value);
    let (key, key_length) = part(record.key);
    let opaque = Box::into_raw(token).cast::<c_void>();
    let code = if record.headers.is_empty() {
        // SAFETY: topic and producer live for the call; key and value are copied (F_COPY); `opaque` is taken back
        // below when the record was not taken.
        let result = unsafe {
            sys::rd_kafka_produce(
                topic.pointer.as_ptr(),
                partition,
                sys::RD_KAFKA_MSG_F_COPY,
                value,
                value_length,
                key,
                key_length,
                opaque,
            )
        };
        // SAFETY: reads this thread's last error.
        if result == 0 { None } else { Some(unsafe { sys::rd_kafka_last_error() }) }
    } else {
        produce_with_headers(
            producer,
            topic,
            partition,
            (value, value_length),
            (key, key_length),
            record.headers,
            opaque,
        )
    };
    match code {
        None => Ok(()),
        Some(code) => {
            // SAFETY: librdkafka did not take the record, so the token is still ours.
            let token = unsafe { Box::from_raw(opaque.cast::<T>()) };
            Err((code.into(), token))
        }
    }
}

fn produce_with_headers<C: ProducerContext>(
    producer: &BaseProducer<C>,
    topic: &NativeTopic,
    partition: i32,
    (value, value_length): (*mut c_void, usize),
    (key, key_length): (*mut c_void, usize),
    headers: &[Header],
    opaque: *mut c_void,
) -> Option<sys::rd_kafka_resp_err_t> {
    use sys::{rd_kafka_vtype_t as vtype, rd_kafka_vu_s as vu, rd_kafka_vu_s__bindgen_ty_1 as u};
    // SAFETY: the list is given to librdkafka below, or destroyed here when the record was not taken; names and values
    // are copied into it.
    let list = unsafe { sys::rd_kafka_headers_new(headers.len()) };
    for header in headers {
        // SAFETY: the list is valid, and pointers and lengths are those of live slices.
        unsafe {
            sys::rd_kafka_header_add(
                list,
                header.name.as_ptr().cast(),
                header.name.len() as isize,
                header.value.as_ptr().cast(),
                header.value.len() as isize,
            );
        }
    }
    let mem = |ptr, size| u { mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr, size } };
    let parts = [
        vu { vtype: vtype::RD_KAFKA_VTYPE_RKT, u: u { rkt: topic.pointer.as_ptr() } },
        vu { vtype: vtype::RD_KAFKA_VTYPE_PARTITION, u: u { i32_: partition } },
        vu { vtype: vtype::RD_KAFKA_VTYPE_MSGFLAGS, u: u { i: sys::RD_KAFKA_MSG_F_COPY } },
        vu { vtype: vtype::RD_KAFKA_VTYPE_VALUE, u: mem(value, value_length) },
        vu { vtype: vtype::RD_KAFKA_VTYPE_KEY, u: mem(key, key_length) },
        vu { vtype: vtype::RD_KAFKA_VTYPE_OPAQUE, u: u { ptr: opaque } },
        vu { vtype: vtype::RD_KAFKA_VTYPE_HEADERS, u: u { headers: list } },
    ];
    // SAFETY: every part is of its type and valid for the call; on success the header list belongs to librdkafka.
    let error =
        unsafe { sys::rd_kafka_produceva(producer.client().native_ptr(), parts.as_ptr(), parts.len()) };
    if error.is_null() {
        return None;
    }
    // SAFETY: the error is ours to read and destroy, and so is the list of a record that was not taken.
    unsafe {
        let code = sys::rd_kafka_error_code(error);
        sys::rd_kafka_error_destroy(error);
        sys::rd_kafka_headers_destroy(list);
        Some(code)
    }
}

/// A queue of librdkafka.
struct NativeQueue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues are locked inside.
unsafe impl Send for NativeQueue {}

impl Drop for NativeQueue {
    fn drop(&mut self) {
        // SAFETY: the reference was taken when the queue was asked for and is given back once.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

/// What became of a record.
#[derive(Debug)]
pub(super) struct Report<T> {
    /// What went in with it.
    pub(super) token: Box<T>,
    /// Partition and offset, or why not.
    pub(super) result: Result<(u32, u64), RDKafkaErrorCode>,
}

/// What a producer has to say.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// Outcomes, in the order of each partition.
    Reports(Vec<Report<T>>),
    /// Something is wrong with the client.
    Error(RDKafkaErrorCode, String),
    /// Nothing came in time.
    None,
}

/// The delivery reports of a producer whose records all carry tokens of the type `T`.
pub(super) struct Reports {
    queue: NativeQueue,
}

impl Reports {
    pub(super) fn of<C: ProducerContext>(producer: &BaseProducer<C>) -> Self {
        // SAFETY: the client is valid; its main queue always exists.
        let queue = unsafe { sys::rd_kafka_queue_get_main(producer.client().native_ptr()) };
        Self { queue: NativeQueue(NonNull::new(queue).expect("every client has a main queue")) }
    }

    /// Waits for the next event. `T` must be what [`produce`] was given for every record of this producer.
    pub(super) fn poll<T>(&self, timeout: Duration) -> Event<T> {
        // SAFETY: the queue is valid; the event is destroyed below.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.0.as_ptr(), timeout.as_millis() as i32) };
        if event.is_null() {
            return Event::None;
        }
        // SAFETY: the event is valid until destroyed; messages live as long as it; each token was made by
        // `Box::into_raw` in `produce` and comes back exactly once.
        unsafe {
            let result = match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_DR => {
                    let mut reports = Vec::with_capacity(sys::rd_kafka_event_message_count(event));
                    loop {
                        let message = sys::rd_kafka_event_message_next(event);
                        let Some(message) = message.as_ref() else { break };
                        let token = Box::from_raw(message._private.cast::<T>());
                        let result = match message.err {
                            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                                Ok((message.partition as u32, message.offset.max(0) as u64))
                            }
                            error => Err(error.into()),
                        };
                        reports.push(Report { token, result });
                    }
                    Event::Reports(reports)
                }
                sys::RD_KAFKA_EVENT_ERROR => {
                    let text = sys::rd_kafka_event_error_string(event);
                    let text = if text.is_null() {
                        String::new()
                    } else {
                        CStr::from_ptr(text).to_string_lossy().into_owned()
                    };
                    Event::Error(sys::rd_kafka_event_error(event).into(), text)
                }
                _ => Event::None,
            };
            sys::rd_kafka_event_destroy(event);
            result
        }
    }
}

/// What a consumer finds.
#[derive(Debug)]
pub(super) enum Found {
    /// A record of a partition.
    Record { topic: Arc<str>, partition: u32, record: Record },
    /// The end of a partition: the offset that would come next.
    End { topic: Arc<str>, partition: u32, position: u64 },
    /// An error, of a partition if it names one.
    Error { at: Option<(Arc<str>, u32)>, error: RDKafkaErrorCode },
}

/// Takes records of all assigned partitions off a consumer, many at a time.
pub(super) struct Batches {
    queue: NativeQueue,
    messages: Vec<*mut sys::rd_kafka_message_t>,
    /// The last topic object and its name: neighbours mostly share it.
    last: Option<(*mut sys::rd_kafka_topic_t, Arc<str>)>,
}

// SAFETY: the pointers are only compared or used within one call.
unsafe impl Send for Batches {}

impl Batches {
    /// Up to `size` records at a time.
    pub(super) fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>, size: usize) -> Self {
        // SAFETY: the client is a consumer and valid.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        let queue = NativeQueue(NonNull::new(queue).expect("every consumer has a queue"));
        Self { queue, messages: vec![std::ptr::null_mut(); size.max(1)], last: None }
    }

    /// Waits until there is something, and appends it.
    pub(super) fn poll(&mut self, timeout: Duration, into: &mut Vec<Found>) {
        // A topic object may be gone, and its address taken by another, once no message refers to it.
        self.last = None;
        // librdkafka waits until the array is full or the time is up: one record is waited for, the others are taken
        // as they are there.
        let mut count = self.fill(0..1, timeout);
        if count == 1 {
            count += self.fill(1..self.messages.len(), Duration::ZERO);
        }
        for index in 0..count {
            let pointer = self.messages[index];
            // SAFETY: librdkafka has filled the first `count` entries; each is destroyed once, below.
            unsafe {
                if let Some(message) = pointer.as_ref() {
                    into.push(self.read(message));
                }
            }
        }
        for pointer in &self.messages[..count] {
            // SAFETY: as above.
            unsafe { sys::rd_kafka_message_destroy(*pointer) }
        }
    }

    /// Fills a part of the array from its beginning on and tells how much of it.
    fn fill(&mut self, part: std::ops::Range<usize>, timeout: Duration) -> usize {
        let part = &mut self.messages[part];
        // SAFETY: the queue and the part are valid, and the part has the length that is told.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(
                self.queue.0.as_ptr(),
                timeout.as_millis() as i32,
                part.as_mut_ptr(),
                part.len(),
            )
        };
        usize::try_from(count).unwrap_or(0)
    }

    fn topic(&mut self, topic: *mut sys::rd_kafka_topic_t) -> Option<Arc<str>> {
        if topic.is_null() {
            return None;
        }
        if let Some((last, name)) = &self.last
            && *last == topic
        {
            return Some(Arc::clone(name));
        }
        // SAFETY: a message's topic is valid as long as the message, and its name is a C string.
        let name: Arc<str> =
            unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(topic)) }.to_string_lossy().into();
        self.last = Some((topic, Arc::clone(&name)));
        Some(name)
    }

    fn read(&mut self, message: &sys::rd_kafka_message_t) -> Found {
        let topic = self.topic(message.rkt);
        let partition = message.partition.max(0) as u32;
        match (message.err, topic) {
            (sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR, Some(topic)) => {
                let record = Record {
                    offset: message.offset.max(0) as u64,
                    timestamp_ms: timestamp(message),
                    key: copy(message.key, message.key_len),
                    value: copy(message.payload, message.len),
                    headers: headers(message),
                };
                Found::Record { topic, partition, record }
            }
            (sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF, Some(topic)) => {
                Found::End { topic, partition, position: message.offset.max(0) as u64 }
            }
            (error, topic) => Found::Error { at: topic.map(|topic| (topic, partition)), error: error.into() },
        }
    }
}

fn copy(pointer: *mut c_void, length: usize) -> Option<Bytes> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: librdkafka says that so many bytes are there, for as long as the message lives.
    Some(Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) }))
}

fn timestamp(message: &sys::rd_kafka_message_t) -> i64 {
    let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the message is valid and `kind` may be written.
    unsafe { sys::rd_kafka_message_timestamp(message, &raw mut kind) }
}

fn headers(message: &sys::rd_kafka_message_t) -> Vec<Header> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the message is valid; the list stays its own.
    let error = unsafe { sys::rd_kafka_message_headers(message, &raw mut list) };
    let mut headers = Vec::new();
    if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return headers;
    }
    for index in 0.. {
        let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: the list is valid as long as the message; out-pointers may be written.
        let error = unsafe {
            sys::rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut size)
        };
        if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            break;
        }
        // SAFETY: a header's name is a C string that lives as long as the message.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into();
        headers.push(Header { name, value: copy(value.cast_mut(), size).unwrap_or_default() });
    }
    headers
}

/// Whether a group member has sent its farewell, or never had anything to leave.
pub(super) fn has_left<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> bool {
    // SAFETY: the client is valid; the text, if there is any, is a C string that is ours to free.
    unsafe {
        let member = sys::rd_kafka_memberid(consumer.client().native_ptr());
        if member.is_null() {
            return true;
        }
        let has_left = CStr::from_ptr(member).is_empty();
        sys::rd_kafka_mem_free(std::ptr::null_mut(), member.cast());
        has_left
    }
}

/// Makes a producer believe that it met a fatal error.
#[cfg(test)]
pub(super) fn break_producer<C: ProducerContext>(producer: &BaseProducer<C>) {
    let code = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    // SAFETY: the client is valid and the reason is a C string.
    unsafe { sys::rd_kafka_test_fatal_error(producer.client().native_ptr(), code, c"a test".as_ptr()) };
}
