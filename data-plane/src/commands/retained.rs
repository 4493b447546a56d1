//! Retained messages: which there are, and to delete them.

use std::ops::ControlFlow;

use tbmq_mqtt::{
    codec::property::{Properties, PropertyId, Value},
    packet::Text,
    retained::Search,
    topic::{self, Rules},
};
use tbmq_proto::{
    control::{RetainedMessage, RetainedMessageFilter, RetainedMessageProperties, UserProperty},
    node::{ClearRetained, GetRetained, QueryRetained, RetainedCleared, RetainedFound, RetainedPage},
};

use super::{ANSWER_BYTES_MAX, LIMIT_MAX, milliseconds, timestamp};
use crate::{plane::Plane, retained::Kept};

/// Bytes of a payload that is told as a whole: well below what gRPC takes as one message (4 MiB).
const PAYLOAD_BYTES_MAX: usize = 2 << 20;

/// A [`RetainedMessageFilter`] that is ready for use.
struct Test {
    wanted: RetainedMessageFilter,
    /// In lower case.
    part: String,
    start_ms: Option<i64>,
    end_ms: Option<i64>,
}

impl Test {
    fn new(filter: Option<RetainedMessageFilter>) -> Result<Self, String> {
        let mut wanted = filter.unwrap_or_default();
        if wanted.topic_filter.is_empty() {
            "#".clone_into(&mut wanted.topic_filter);
        }
        topic::check_filter(&wanted.topic_filter, &Rules::default()).map_err(|error| error.to_string())?;
        Ok(Self {
            part: wanted.text_search.to_lowercase(),
            start_ms: wanted.start_time.map(milliseconds),
            end_ms: wanted.end_time.map(milliseconds),
            wanted,
        })
    }

    fn search(&self, after: &str) -> Search {
        let filter = &self.wanted.topic_filter;
        if after.is_empty() { Search::new(filter) } else { Search::after(filter, after) }
    }

    fn passes(&self, kept: &Kept) -> bool {
        let message = &kept.message;
        let has_payload =
            |part: &[u8]| part.is_empty() || message.payload.windows(part.len()).any(|is| is == part);
        let has_time = self.start_ms.is_none_or(|start_ms| kept.created_ms >= start_ms)
            && self.end_ms.is_none_or(|end_ms| kept.created_ms < end_ms);
        (self.wanted.qos.is_empty() || self.wanted.qos.contains(&u32::from(message.qos.bits())))
            && has_time
            && (self.part.is_empty() || message.topic.to_lowercase().contains(&self.part))
            && has_payload(self.wanted.payload.as_bytes())
    }
}

/// Calls `found` for the messages behind a topic that are wanted, in slices, until it breaks.
async fn each(plane: &Plane, test: &Test, after: &str, mut found: impl FnMut(Kept) -> ControlFlow<()>) {
    let mut search = test.search(after);
    let mut is_over = false;
    while !is_over && !search.is_over() {
        // Payloads are looked at without the lock.
        let mut slice = Vec::new();
        plane.retained.advance_kept(&mut search, plane.clock.now().epoch_ms, |kept| {
            slice.push(kept.clone());
            ControlFlow::Continue(())
        });
        let mut wanted = slice.into_iter().filter(|kept| test.passes(kept));
        is_over = wanted.any(|kept| found(kept).is_break());
        tokio::task::yield_now().await;
    }
}

/// Retained messages in the order of their topics.
///
/// # Errors
/// When the filter is none.
pub(super) async fn query(plane: &Plane, wanted: QueryRetained) -> Result<RetainedPage, String> {
    let limit = wanted.limit.clamp(1, LIMIT_MAX) as usize;
    let test = Test::new(wanted.filter)?;
    let mut page = RetainedPage::default();
    let mut bytes = 0;
    each(plane, &test, &wanted.after, |kept| {
        if page.messages.len() >= limit || bytes >= ANSWER_BYTES_MAX {
            page.more = true;
            return ControlFlow::Break(());
        }
        let shown = show(&kept, wanted.payload_bytes as usize);
        bytes += shown.topic.len() + shown.payload.len() + shown.publisher.len() + 64;
        page.messages.push(shown);
        ControlFlow::Continue(())
    })
    .await;
    Ok(page)
}

/// The retained message of a topic.
pub(super) fn get(plane: &Plane, wanted: &GetRetained) -> RetainedFound {
    let kept = plane.retained.get(&wanted.topic, plane.clock.now().epoch_ms);
    let message = kept.map(|kept| RetainedMessage {
        properties: Some(properties(&kept.message.properties)),
        ..show(&kept, PAYLOAD_BYTES_MAX)
    });
    RetainedFound { message }
}

/// Deletes retained messages, on the bus as well, before it returns.
///
/// # Errors
/// When the filter is none, or the bus has not taken all of it: how many are gone is not told then.
pub(super) async fn clear(plane: &Plane, wanted: ClearRetained) -> Result<RetainedCleared, String> {
    let limit = wanted.limit.clamp(1, LIMIT_MAX) as usize;
    let test = Test::new(wanted.filter)?;
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut next = None;
    each(plane, &test, &wanted.after, |kept| {
        bytes += kept.message.topic.len();
        found.push(kept.message);
        if found.len() < limit && bytes < ANSWER_BYTES_MAX {
            return ControlFlow::Continue(());
        }
        next = found.last().map(|message| message.topic.to_string());
        ControlFlow::Break(())
    })
    .await;
    let count =
        if wanted.validate_only { found.len() } else { plane.retained.remove(&*plane.writer, found).await? };
    Ok(RetainedCleared { count: count as u64, next: next.unwrap_or_default() })
}

fn show(kept: &Kept, payload_bytes_max: usize) -> RetainedMessage {
    let Kept { message, created_ms, .. } = kept;
    RetainedMessage {
        topic: message.topic.to_string(),
        qos: u32::from(message.qos.bits()),
        payload: message.payload.slice(..message.payload.len().min(payload_bytes_max)),
        payload_bytes: message.payload.len() as u64,
        publish_time: (*created_ms != 0).then(|| timestamp(*created_ms)),
        expire_time: message.expires_at_ms.map(timestamp),
        publisher: message.publisher.to_string(),
        properties: None,
    }
}

fn properties(properties: &Properties) -> RetainedMessageProperties {
    let mut told = RetainedMessageProperties::default();
    for (id, value) in properties.iter() {
        match (id, value) {
            (PropertyId::PayloadFormatIndicator, Value::Number(number)) => {
                told.payload_format_indicator = Some(number);
            }
            (PropertyId::ContentType, Value::Text(text)) => told.content_type = text.to_string(),
            (PropertyId::ResponseTopic, Value::Text(text)) => told.response_topic = text.to_string(),
            (PropertyId::CorrelationData, Value::Binary(bytes)) => told.correlation_data = bytes,
            _ => {}
        }
    }
    let user = |(key, value): (Text, Text)| UserProperty { key: key.to_string(), value: value.to_string() };
    told.user_properties = properties.user_properties().map(user).collect();
    told
}
