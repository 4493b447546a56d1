//! `SessionService`.

use std::sync::Arc;

use tbmq_proto::control::{
    DisconnectSessionRequest, GetSessionRequest, ListSessionsRequest, ListSessionsResponse,
    ListSubscriptionsRequest, ListSubscriptionsResponse, Session, session_service_server::SessionService,
};
use tonic::{Request, Response, Status};

use crate::plane::Plane;

#[derive(Debug)]
pub(super) struct SessionsApi {
    _plane: Arc<Plane>,
}

impl SessionsApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { _plane: plane }
    }
}

#[tonic::async_trait]
impl SessionService for SessionsApi {
    async fn list_sessions(
        &self,
        _request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_session(&self, _request: Request<GetSessionRequest>) -> Result<Response<Session>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn disconnect_session(
        &self,
        _request: Request<DisconnectSessionRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn list_subscriptions(
        &self,
        _request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}
