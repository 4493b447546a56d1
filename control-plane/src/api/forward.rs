//! `NodeForwardService`: asks the data planes whose sessions are here on behalf of other control planes. One hop: what
//! is not here is refused, never passed on.

use std::{sync::Arc, time::Duration};

use tbmq_proto::node::{
    ForwardRequest, ForwardResponse, NodeReply, node_forward_service_server::NodeForwardService,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{calls::shortened, error};
use crate::plane::Plane;

#[derive(Debug)]
pub(super) struct Forwards {
    plane: Arc<Plane>,
}

impl Forwards {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }
}

#[tonic::async_trait]
impl NodeForwardService for Forwards {
    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<ForwardResponse>, Status> {
        let own = shortened(request.metadata(), Duration::MAX);
        let ForwardRequest { service_id, incarnation, request } = request.into_inner();
        let asked = request.unwrap_or_default();
        let Some(wanted) = asked.request else {
            return Err(error::invalid_field("request", "is missing, or unknown to this release"));
        };
        let patience = own.min(Duration::from_millis(asked.timeout_ms.into()));
        let until = Instant::now() + patience;
        let reply = self.plane.commands.ask(&service_id, &incarnation, wanted, until).await?;
        let reply = NodeReply { id: asked.id, reply: Some(reply) };
        Ok(Response::new(ForwardResponse { reply: Some(reply) }))
    }
}
