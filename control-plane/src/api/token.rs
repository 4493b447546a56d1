//! `TokenService`.

use std::sync::Arc;

use tbmq_proto::control::{
    Caller, CreateTokenRequest, CreateTokenResponse, GetCallerRequest, ListTokensRequest, ListTokensResponse,
    RevokeTokenRequest, token_service_server::TokenService,
};
use tonic::{Request, Response, Status};

use crate::plane::Plane;

#[derive(Debug)]
pub(super) struct Tokens {
    _plane: Arc<Plane>,
}

impl Tokens {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { _plane: plane }
    }
}

#[tonic::async_trait]
impl TokenService for Tokens {
    async fn create_token(
        &self,
        _request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn list_tokens(
        &self,
        _request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn revoke_token(&self, _request: Request<RevokeTokenRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_caller(&self, _request: Request<GetCallerRequest>) -> Result<Response<Caller>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}
