//! `EventService`.

use std::sync::Arc;

use tbmq_integration::entity::Violation;
use tbmq_proto::{
    control::{
        self as proto, ClearEventsRequest, ClearEventsResponse, ListEventsRequest, ListEventsResponse,
        WatchEventsRequest, event_service_server::EventService,
    },
    ids::IntegrationId,
};
use tbmq_service::drain::Drain;
use tonic::{Request, Response, Status};

use super::{error, event_watch, integration, page};
use crate::{
    plane::Plane,
    store::{EventBody, EventFilter, EventPlace, EventRow, Number},
};

/// Characters of a text in a filter.
const TEXT_CHARS_MAX: usize = 256;

/// Stands for all integrations (AIP-159).
const ALL: &str = "integrations/-";

#[derive(Debug)]
pub(super) struct Events {
    pub(super) plane: Arc<Plane>,
    pub(super) stopping: Drain,
}

impl Events {
    pub(super) fn new(plane: Arc<Plane>, stopping: Drain) -> Self {
        Self { plane, stopping }
    }
}

#[tonic::async_trait]
impl EventService for Events {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        let mut filter = filter(&request.integration, request.r#type, request.filter)?;
        filter.start_ms = request.start_time.as_ref().map(integration::to_ms);
        filter.end_ms = request.end_time.as_ref().map(integration::to_ms);
        let question = format!("{filter:?}");
        let before = page::place::<EventPlace>(&request.page_token, &question)?;
        let mut rows = self.plane.store.events(&filter, before, size + 1).await?;
        let more = rows.len() as u64 > size;
        rows.truncate(size as usize);
        let next_page_token = match rows.last() {
            Some(last) if more => page::token(&(last.time_ms, last.event_id), &question),
            _ => String::new(),
        };
        let events = rows.into_iter().map(to_event).collect();
        Ok(Response::new(ListEventsResponse { events, next_page_token }))
    }

    type WatchEventsStream = event_watch::Watching;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let client = super::stream::client_of(&request);
        self.watch(request.into_inner(), client).await
    }

    async fn clear_events(
        &self,
        request: Request<ClearEventsRequest>,
    ) -> Result<Response<ClearEventsResponse>, Status> {
        let request = request.into_inner();
        if request.integration.is_empty() {
            let text = format!("is missing; {ALL} clears the events of all integrations");
            return Err(error::invalid_field("integration", text));
        }
        let mut filter = filter(&request.integration, request.r#type, request.filter)?;
        filter.start_ms = request.start_time.as_ref().map(integration::to_ms);
        filter.end_ms = request.end_time.as_ref().map(integration::to_ms);
        let removed_count = self.plane.store.clear_events(&filter).await?;
        tracing::info!(removed_count, integration = request.integration, "events cleared");
        Ok(Response::new(ClearEventsResponse { removed_count }))
    }
}

/// What events are asked for, or all that is wrong with the question.
pub(super) fn filter(
    integration: &str,
    event_type: i32,
    filter: Option<proto::EventFilter>,
) -> Result<EventFilter, Status> {
    let filter = filter.unwrap_or_default();
    let mut violations = Vec::new();
    let integration = match integration {
        "" | ALL => None,
        name => {
            let id = name.strip_prefix("integrations/").unwrap_or(name).parse::<IntegrationId>().ok();
            if id.is_none() {
                violations
                    .push(Violation::new("integration", format!("{name:?} is not integrations/{{uuid}}")));
            }
            id
        }
    };
    let event_type = match proto::EventType::try_from(event_type) {
        Ok(proto::EventType::Unspecified) => None,
        Ok(proto::EventType::Lifecycle) => Some(1),
        Ok(proto::EventType::Statistics) => Some(2),
        Ok(proto::EventType::Error) => Some(3),
        Err(_) => {
            violations.push(Violation::new("type", "is not a type of event"));
            None
        }
    };
    let texts = [
        ("filter.service_id", &filter.service_id),
        ("filter.error", &filter.error),
        ("filter.lifecycle", &filter.lifecycle),
        ("filter.method", &filter.method),
    ];
    for (field, text) in texts {
        if text.chars().count() > TEXT_CHARS_MAX {
            violations.push(Violation::new(field, format!("has more than {TEXT_CHARS_MAX} characters")));
        }
        if text.contains('\0') {
            violations.push(Violation::new(field, "must not contain U+0000"));
        }
    }
    if !violations.is_empty() {
        return Err(error::invalid(violations));
    }
    Ok(EventFilter {
        integration,
        event_type,
        start_ms: None,
        end_ms: None,
        service_id: filter.service_id,
        error: filter.error,
        lifecycle: filter.lifecycle,
        success: filter.success,
        method: filter.method,
        messages_processed: Number { min: filter.min_messages_processed, max: filter.max_messages_processed },
        errors_occurred: Number { min: filter.min_errors_occurred, max: filter.max_errors_occurred },
    })
}

pub(super) fn to_event(row: EventRow) -> proto::Event {
    use proto::event::{Body, Error, Lifecycle, Statistics};
    let body = match row.body {
        EventBody::Lifecycle { event, success, error } => {
            Body::Lifecycle(Lifecycle { event, success, error: error.unwrap_or_default() })
        }
        EventBody::Statistics { messages_processed, errors_occurred } => {
            Body::Statistics(Statistics { messages_processed, errors_occurred })
        }
        EventBody::Error { method, error, count } => Body::Error(Error { method, error, count }),
    };
    proto::Event {
        uid: row.event_id.to_string(),
        integration: format!("integrations/{}", row.integration),
        time: Some(integration::timestamp(row.time_ms)),
        service_id: row.service_id,
        shard: row.shard,
        revision: row.revision,
        body: Some(body),
    }
}
