//! `EventService`.

use std::sync::Arc;

use tbmq_proto::control::{
    self as proto, ListEventsRequest, ListEventsResponse, event_service_server::EventService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{error, integration, page};
use crate::{
    plane::Plane,
    store::{EventBody, EventFilter, EventRow},
};

#[derive(Debug)]
pub(super) struct Events {
    plane: Arc<Plane>,
}

impl Events {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
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
        let integration = match request.integration.as_str() {
            "" => None,
            name => Some(integration::parse_name("integration", name)?),
        };
        let event_type = match proto::EventType::try_from(request.r#type) {
            Ok(proto::EventType::Unspecified) => None,
            Ok(proto::EventType::Lifecycle) => Some(1),
            Ok(proto::EventType::Statistics) => Some(2),
            Ok(proto::EventType::Error) => Some(3),
            Err(_) => return Err(error::invalid_field("type", "is not a type of event")),
        };
        let start_ms = request.start_time.as_ref().map(integration::to_ms);
        let end_ms = request.end_time.as_ref().map(integration::to_ms);
        let question = format!("events {:?} {event_type:?} {start_ms:?} {end_ms:?}", request.integration);
        let before = page::place::<(i64, Uuid)>(&request.page_token, &question)?;
        let filter = EventFilter { integration, event_type, start_ms, end_ms, before, limit: size + 1 };
        let mut rows = self.plane.store.events(&filter).await?;
        let more = rows.len() as u64 > size;
        rows.truncate(size as usize);
        let next_page_token = match rows.last() {
            Some(last) if more => page::token(&(last.time_ms, last.event_id), &question),
            _ => String::new(),
        };
        let events = rows.into_iter().map(to_event).collect();
        Ok(Response::new(ListEventsResponse { events, next_page_token }))
    }

    type WatchEventsStream =
        tokio_stream::wrappers::ReceiverStream<Result<proto::WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        _request: Request<proto::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn clear_events(
        &self,
        _request: Request<proto::ClearEventsRequest>,
    ) -> Result<Response<proto::ClearEventsResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}

fn to_event(row: EventRow) -> proto::Event {
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
