//! `NodeForwardService`.

use std::sync::Arc;

use tbmq_proto::node::{ForwardRequest, ForwardResponse, node_forward_service_server::NodeForwardService};
use tonic::{Request, Response, Status};

use crate::plane::Plane;

#[derive(Debug)]
pub(super) struct Forwards {
    _plane: Arc<Plane>,
}

impl Forwards {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { _plane: plane }
    }
}

#[tonic::async_trait]
impl NodeForwardService for Forwards {
    async fn forward(&self, _request: Request<ForwardRequest>) -> Result<Response<ForwardResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}
