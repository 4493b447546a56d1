//! What is told of messages that were not delivered.

use std::sync::Arc;

use tbmq_bus::TopicPartition;
use tbmq_integration::{
    pack::Notice,
    stats::{Admission, LIMIT_TEXT},
};
use tbmq_proto::{
    ids::ShardId,
    integration::{ErrorEvent, native_event::Body},
};

use tracing::field::display;

use super::running::Lane;
use crate::{executor::Shared, traced::Traced, uplink::Teller};

/// Tells what a lane has noticed, within the limit on error events; returns the text of the last attempt that failed.
pub(super) fn tell_notices(
    shared: &Shared,
    shard: ShardId,
    kind: &str,
    revision: u64,
    teller: &Teller,
    lane: &mut Lane,
    traced: &[Arc<Traced>],
) -> Option<String> {
    let mut last_failure = None;
    while let Some(notice) = lane.pack.poll_notice() {
        if let Notice::Failed { class, text, .. } = &notice {
            shared.metrics.failed_attempt(kind, class);
            last_failure = Some(text.clone());
        }
        let is_final = !matches!(notice, Notice::Failed { is_retried: true, .. });
        let (offset, event) = event_of(lane.registration.partition(), notice);
        let admission = shared.admit(shard.integration);
        let partition = lane.registration.partition();
        let context = traced.iter().find(|trace| trace.offset == offset).map(|trace| trace.context());
        let trace_id = context.as_ref().map(|context| display(context.trace_id()));
        let span_id = context.as_ref().map(|context| display(context.span_id()));
        // The log of what is given up on is limited as the events are.
        if is_final && admission != Admission::Suppress {
            tracing::warn!(%shard, %partition, offset, error = event.error, trace_id, span_id, "not delivered");
        } else {
            let error = &event.error;
            tracing::debug!(%shard, %partition, offset, error, is_final, trace_id, span_id, "not delivered");
        }
        let event = match admission {
            Admission::Pass => event,
            Admission::PassNotice => ErrorEvent { error: LIMIT_TEXT.to_owned(), ..event },
            Admission::Suppress => {
                shared.metrics.error_events_suppressed.inc();
                continue;
            }
        };
        teller.tell(revision, Body::Error(event));
    }
    last_failure
}

/// The first offset that a notice speaks of, and its event.
fn event_of(partition: &TopicPartition, notice: Notice) -> (u64, ErrorEvent) {
    let event =
        |method: &str, error: String, count: u64| ErrorEvent { method: method.to_owned(), error, count };
    match notice {
        Notice::Failed { offset, text, .. } | Notice::Unfit { offset, text, .. } => {
            (offset, event("onMsgProcess", text, 1))
        }
        Notice::Expired { first, count } => {
            let text =
                format!("{count} messages of {partition}, from offset {first} on, expired before delivery");
            (first, event("expired", text, count))
        }
        Notice::Gap { from, to } => {
            let text = format!(
                "retention removed offsets {from} to {} of {partition} before delivery",
                to.saturating_sub(1)
            );
            (from, event("expired", text, to - from))
        }
    }
}
