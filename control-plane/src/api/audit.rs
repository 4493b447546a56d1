//! `AuditService`.

use std::sync::Arc;

use tbmq_proto::control::{
    ListAuditEntriesRequest, ListAuditEntriesResponse, audit_service_server::AuditService,
};
use tonic::{Request, Response, Status};

use crate::plane::Plane;

#[derive(Debug)]
pub(super) struct Audit {
    _plane: Arc<Plane>,
}

impl Audit {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { _plane: plane }
    }
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_audit_entries(
        &self,
        _request: Request<ListAuditEntriesRequest>,
    ) -> Result<Response<ListAuditEntriesResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}
