//! What librdkafka can do and its Rust wrapper does not offer: producing by topic handle, delivery reports in batches,
//! consuming in batches, of one partition and with the offset at which it ended, the ids of topics, offsets of many partitions at once,
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
    /// Something else, as a line for the log.
    Other,
    /// Nothing: the bell rings with the next.
    None,
}

/// The delivery reports of a producer whose records all carry tokens of the type `T`. Must go before the producer.
pub(super) struct Reports {
    queue: Ringing,
}

impl Reports {
    /// The bell rings when there is something after there was nothing.
    pub(super) fn of<C: ProducerContext>(
        producer: &BaseProducer<C>,
        bell: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { queue: Ringing::new(main_queue(producer), bell) }
    }

    /// The next event, without waiting. `T` must be what [`produce`] was given for every record of this producer.
    pub(super) fn take<T>(&self) -> Event<T> {
        // SAFETY: the queue is valid; the event is destroyed below.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.pointer().as_ptr(), 0) };
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
                _ => Event::Other,
            };
            sys::rd_kafka_event_destroy(event);
            result
        }
    }
}

/// Tells a task when a producer that is polled has something to say, so that no thread of ours waits in librdkafka for it.
/// Must go before the producer.
pub struct Bell {
    queue: Ringing,
}

impl Bell {
    /// `ring` is called when there is something after there was nothing, by a thread of librdkafka that holds a lock: it
    /// must not wait and not use the producer.
    pub fn of<C: ProducerContext>(
        producer: &BaseProducer<C>,
        ring: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { queue: Ringing::new(main_queue(producer), ring) }
    }

    /// Whether [`BaseProducer::poll`] would find something now.
    pub fn has_rung(&self) -> bool {
        // SAFETY: the queue is valid.
        unsafe { sys::rd_kafka_queue_length(self.queue.pointer().as_ptr()) > 0 }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}

/// Where a producer's delivery reports and troubles come.
fn main_queue<C: ProducerContext>(producer: &BaseProducer<C>) -> NativeQueue {
    // SAFETY: the client is valid; its main queue always exists.
    let queue = unsafe { sys::rd_kafka_queue_get_main(producer.client().native_ptr()) };
    NativeQueue(NonNull::new(queue).expect("every client has a main queue"))
}

/// What a consumer finds in a partition.
#[derive(Debug)]
pub(super) enum Found {
    Record(Record),
    /// The end: the offset that would come next.
    End(u64),
    Error(RDKafkaErrorCode),
}

/// Called when an empty queue has got something, by a thread of librdkafka that holds the queue's lock: it must not wait
/// and not touch the queue.
type Ring = Box<dyn Fn() + Send + Sync>;

/// A queue with its bell.
struct Ringing {
    queue: NativeQueue,
    /// What the callback is given; it stays where it is until the callback is taken away.
    _bell: Arc<Ring>,
}

impl Ringing {
    fn new(queue: NativeQueue, bell: impl Fn() + Send + Sync + 'static) -> Self {
        let bell: Arc<Ring> = Arc::new(Box::new(bell));
        let opaque = Arc::as_ptr(&bell).cast_mut().cast::<c_void>();
        // SAFETY: the queue is valid. The callback is taken away in `drop`, before what it is given goes.
        unsafe { sys::rd_kafka_queue_cb_event_enable(queue.0.as_ptr(), Some(ring), opaque) }
        Self { queue, _bell: bell }
    }

    fn pointer(&self) -> NonNull<sys::rd_kafka_queue_t> {
        self.queue.0
    }
}

impl Drop for Ringing {
    fn drop(&mut self) {
        // SAFETY: the queue is valid. This takes the lock under which the callback is called: afterwards none runs.
        unsafe { sys::rd_kafka_queue_cb_event_enable(self.queue.0.as_ptr(), None, std::ptr::null_mut()) }
    }
}

/// What a consumer has fetched of one partition.
///
/// Left to itself, librdkafka mixes all partitions in one queue: one that nobody takes from would hold up the others,
/// and the limits for a partition would count what is there of all.
pub(super) struct PartitionQueue {
    queue: Ringing,
}

impl PartitionQueue {
    /// Gives a partition its queue, before it is assigned; `None` for a name that Kafka forbids. From then on its records
    /// come here only, also when it is assigned again. Must go before the consumer.
    pub(super) fn of<C: ConsumerContext>(
        consumer: &BaseConsumer<C>,
        topic: &str,
        partition: u32,
        bell: impl Fn() + Send + Sync + 'static,
    ) -> Option<Self> {
        let name = CString::new(topic).ok()?;
        // SAFETY: the client is a consumer and valid, and the name is a C string.
        let queue = unsafe {
            let client = consumer.client().native_ptr();
            let queue = sys::rd_kafka_queue_get_partition(client, name.as_ptr(), partition as i32);
            let queue = NativeQueue(NonNull::new(queue)?);
            sys::rd_kafka_queue_forward(queue.0.as_ptr(), std::ptr::null_mut());
            queue
        };
        Some(Self { queue: Ringing::new(queue, bell) })
    }
}

impl fmt::Debug for PartitionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartitionQueue")
    }
}

extern "C" fn ring(_: *mut sys::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: set in `Ringing::new` together with the callback, which goes first.
    let bell = unsafe { &*opaque.cast::<Ring>() };
    bell();
}

/// What a consumer has to say that belongs to no partition: its own troubles. Must go before the consumer.
pub(super) struct ClientQueue(NativeQueue);

impl ClientQueue {
    pub(super) fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Self {
        // SAFETY: the client is a consumer and valid.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        Self(NativeQueue(NonNull::new(queue).expect("every consumer has a queue")))
    }
}

/// Takes what a consumer has found, many at a time.
pub(super) struct Batches {
    messages: Vec<*mut sys::rd_kafka_message_t>,
}

// SAFETY: the pointers are only used within one call.
unsafe impl Send for Batches {}

impl Batches {
    /// Up to `size` records at a time.
    pub(super) fn of(size: usize) -> Self {
        Self { messages: vec![std::ptr::null_mut(); size.max(1)] }
    }

    /// Appends what is there of a partition, without waiting. When that is nothing, the bell rings with the next.
    pub(super) fn take(&mut self, partition: &PartitionQueue, into: &mut Vec<Found>) {
        self.take_from(partition.queue.pointer(), into);
    }

    /// Appends what is there of the client itself, without waiting.
    pub(super) fn take_of_client(&mut self, client: &ClientQueue, into: &mut Vec<Found>) {
        self.take_from(client.0.0, into);
    }

    fn take_from(&mut self, queue: NonNull<sys::rd_kafka_queue_t>, into: &mut Vec<Found>) {
        // SAFETY: the queue and the array are valid, and the array has the length that is told.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(
                queue.as_ptr(),
                0,
                self.messages.as_mut_ptr(),
                self.messages.len(),
            )
        };
        for pointer in &self.messages[..usize::try_from(count).unwrap_or(0)] {
            // SAFETY: librdkafka has filled the first `count` entries; each is destroyed once, after it was read.
            unsafe {
                if let Some(message) = pointer.as_ref() {
                    into.push(found(message));
                }
                sys::rd_kafka_message_destroy(*pointer);
            }
        }
    }
}

fn found(message: &sys::rd_kafka_message_t) -> Found {
    match message.err {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Found::Record(Record {
            offset: message.offset.max(0) as u64,
            timestamp_ms: timestamp(message),
            key: copy(message.key, message.key_len),
            value: copy(message.payload, message.len),
            headers: headers(message),
        }),
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
            Found::End(message.offset.max(0) as u64)
        }
        error => Found::Error(error.into()),
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
