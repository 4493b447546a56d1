//! `RetainedMessageService`: retained messages, of which every data plane has all: one that lives is asked.

use std::{sync::Arc, time::Duration};

use tbmq_integration::entity::Violation;
use tbmq_mqtt::topic::{self, Rules};
use tbmq_proto::{
    control::{
        ClearRetainedMessagesRequest, ClearRetainedMessagesResponse, DeleteRetainedMessageRequest,
        GetRetainedMessageRequest, ListRetainedMessagesRequest, ListRetainedMessagesResponse,
        RetainedMessage, RetainedMessageFilter, retained_message_service_server::RetainedMessageService,
    },
    node::{ClearRetained, GetRetained, QueryRetained, RetainedCleared, node_reply::Reply, node_request},
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{calls::shortened, error, page, reach};
use crate::{access::audit, plane::Plane};

/// Bytes of a payload that a list tells.
const PREVIEW_BYTES: u32 = 256;
const PREVIEW_BYTES_MAX: u32 = 4096;

/// Messages that are deleted with one request.
const SLICE: u32 = 1000;

/// Bytes of a topic in MQTT.
const TOPIC_BYTES_MAX: usize = 65_535;

/// How long a call may take that deletes many, unless the caller waits less long.
const MANY_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct RetainedApi {
    plane: Arc<Plane>,
}

impl RetainedApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }

    async fn clear(
        &self,
        filter: &RetainedMessageFilter,
        after: String,
        validate_only: bool,
        until: Instant,
    ) -> Result<RetainedCleared, Status> {
        let ask = || {
            node_request::Request::ClearRetained(ClearRetained {
                filter: Some(filter.clone()),
                after: after.clone(),
                limit: SLICE,
                validate_only,
            })
        };
        match reach::ask_any(&self.plane, ask, until).await? {
            Reply::RetainedCleared(cleared) => Ok(cleared),
            _ => Err(strange()),
        }
    }
}

#[tonic::async_trait]
impl RetainedMessageService for RetainedApi {
    async fn list_retained_messages(
        &self,
        request: Request<ListRetainedMessagesRequest>,
    ) -> Result<Response<ListRetainedMessagesResponse>, Status> {
        let until = reach::deadline(request.metadata());
        let request = request.into_inner();
        let limit = page::size(request.page_size)? as u32;
        let filter = checked(request.filter)?;
        let payload_bytes = request.payload_bytes.unwrap_or(PREVIEW_BYTES);
        if payload_bytes > PREVIEW_BYTES_MAX {
            return Err(error::invalid_field("payload_bytes", "must not be greater than 4096"));
        }
        let question = format!("retained {filter:?}");
        let after: String = page::place(&request.page_token, &question)?.unwrap_or_default();
        let ask = || {
            node_request::Request::QueryRetained(QueryRetained {
                filter: Some(filter.clone()),
                after: after.clone(),
                limit,
                payload_bytes,
            })
        };
        let Reply::Retained(found) = reach::ask_any(&self.plane, ask, until).await? else {
            return Err(strange());
        };
        let retained_messages = found.messages;
        let next_page_token = match retained_messages.last() {
            Some(last) if found.more => page::token(&last.topic, &question),
            _ => String::new(),
        };
        Ok(Response::new(ListRetainedMessagesResponse { retained_messages, next_page_token }))
    }

    async fn get_retained_message(
        &self,
        request: Request<GetRetainedMessageRequest>,
    ) -> Result<Response<RetainedMessage>, Status> {
        let until = reach::deadline(request.metadata());
        let topic = checked_topic(request.into_inner().topic)?;
        let ask = || node_request::Request::GetRetained(GetRetained { topic: topic.clone() });
        match reach::ask_any(&self.plane, ask, until).await? {
            Reply::RetainedFound(found) => found.message.map(Response::new).ok_or_else(|| absent(&topic)),
            _ => Err(strange()),
        }
    }

    async fn delete_retained_message(
        &self,
        request: Request<DeleteRetainedMessageRequest>,
    ) -> Result<Response<()>, Status> {
        let until = reach::deadline(request.metadata());
        let topic = checked_topic(request.into_inner().topic)?;
        if topic.starts_with("$SYS/") {
            return Err(error::invalid_field(
                "topic",
                "is a figure of the broker itself, which can't be deleted",
            ));
        }
        note(&topic);
        // A topic is a filter that matches itself alone.
        let filter =
            RetainedMessageFilter { topic_filter: topic.clone(), ..RetainedMessageFilter::default() };
        let cleared = self.clear(&filter, String::new(), false, until).await?;
        if cleared.count > 0 { Ok(Response::new(())) } else { Err(absent(&topic)) }
    }

    async fn clear_retained_messages(
        &self,
        request: Request<ClearRetainedMessagesRequest>,
    ) -> Result<Response<ClearRetainedMessagesResponse>, Status> {
        let until = Instant::now() + shortened(request.metadata(), MANY_PATIENCE);
        let ClearRetainedMessagesRequest { filter, validate_only } = request.into_inner();
        let filter = checked(filter)?;
        note(&filter.topic_filter);
        let (mut count, mut after) = (0, String::new());
        loop {
            let until_now = until.min(reach::patience());
            let cleared = self.clear(&filter, after, validate_only, until_now).await?;
            count += cleared.count;
            let is_over = cleared.next.is_empty();
            if is_over || Instant::now() >= until {
                return Ok(Response::new(ClearRetainedMessagesResponse { count, more: !is_over }));
            }
            after = cleared.next;
        }
    }
}

fn note(topic: &str) {
    let shown: String = topic.chars().take(200).collect();
    audit::note_resource(format!("retainedMessages/{shown}"));
}

/// A filter with a topic filter.
fn checked(filter: Option<RetainedMessageFilter>) -> Result<RetainedMessageFilter, Status> {
    let mut filter = filter.unwrap_or_default();
    if filter.topic_filter.is_empty() {
        "#".clone_into(&mut filter.topic_filter);
    }
    let mut violations = Vec::new();
    if let Err(problem) = topic::check_filter(&filter.topic_filter, &Rules::default()) {
        violations.push(Violation::new("filter.topic_filter", problem.to_string()));
    }
    if filter.qos.iter().any(|qos| *qos > 2) {
        violations.push(Violation::new("filter.qos", "is none of 0, 1 and 2"));
    }
    for (field, text) in [("filter.text_search", &filter.text_search), ("filter.payload", &filter.payload)] {
        if text.len() > TOPIC_BYTES_MAX {
            violations.push(Violation::new(field, "is longer than 65535 bytes"));
        }
    }
    if violations.is_empty() { Ok(filter) } else { Err(error::invalid(violations)) }
}

fn checked_topic(topic: String) -> Result<String, Status> {
    match topic::check_name(&topic, &Rules::default()) {
        Ok(()) => Ok(topic),
        Err(problem) => Err(error::invalid_field("topic", problem.to_string())),
    }
}

fn absent(topic: &str) -> Status {
    let shown: String = topic.chars().take(200).collect();
    error::absent("tbmq.control.v1.RetainedMessage", &shown)
}

fn strange() -> Status {
    error::node_unreachable("a data plane has answered another question")
}
