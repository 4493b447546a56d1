//! `AuditService`.

use std::sync::Arc;

use tbmq_integration::entity::Violation;
use tbmq_proto::control::{
    AccessRole, AuditEntry, ListAuditEntriesRequest, ListAuditEntriesResponse,
    audit_service_server::AuditService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    error,
    integration::{timestamp, to_ms},
    page,
};
use crate::{
    access::role::Role,
    plane::Plane,
    store::{AuditFilter, AuditRow},
};

const TEXT_CHARS_MAX: usize = 255;

#[derive(Debug)]
pub(super) struct Audit {
    plane: Arc<Plane>,
}

impl Audit {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_audit_entries(
        &self,
        request: Request<ListAuditEntriesRequest>,
    ) -> Result<Response<ListAuditEntriesResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        let question = question(&request);
        let before = page::place::<(i64, Uuid)>(&request.page_token, &question)?;
        check(&request)?;
        let filter = AuditFilter {
            from_ms: request.start_time.as_ref().map(to_ms),
            to_ms: request.end_time.as_ref().map(to_ms),
            principal: request.principal,
            method: request.method,
            resource: request.resource,
            result: request.result.to_ascii_uppercase(),
            before,
            limit: size + 1,
        };
        let mut rows = self.plane.store.audit(&filter).await?;
        let more = rows.len() as u64 > size;
        rows.truncate(size as usize);
        let next_page_token = match rows.last() {
            Some(last) if more => page::token(&(last.time_ms, last.id), &question),
            _ => String::new(),
        };
        let entries = rows.into_iter().map(entry).collect();
        Ok(Response::new(ListAuditEntriesResponse { entries, next_page_token }))
    }
}

/// What a page token belongs to.
fn question(request: &ListAuditEntriesRequest) -> String {
    let times = [&request.start_time, &request.end_time].map(|time| time.as_ref().map(to_ms));
    let texts = [&request.principal, &request.method, &request.resource, &request.result];
    format!("audit {times:?} {texts:?}")
}

fn check(request: &ListAuditEntriesRequest) -> Result<(), Status> {
    let fields = [
        ("principal", &request.principal),
        ("method", &request.method),
        ("resource", &request.resource),
        ("result", &request.result),
    ];
    let bad = |text: &str| text.chars().count() > TEXT_CHARS_MAX || text.contains('\0');
    let violations: Vec<Violation> = fields
        .into_iter()
        .filter(|(_, text)| bad(text))
        .map(|(field, _)| Violation::new(field, "must have at most 255 characters, without U+0000"))
        .collect();
    if violations.is_empty() { Ok(()) } else { Err(error::invalid(violations)) }
}

fn entry(row: AuditRow) -> AuditEntry {
    let role = row.role.parse::<Role>().map_or(AccessRole::Unspecified, Role::to_proto);
    AuditEntry {
        uid: row.id.to_string(),
        time: Some(timestamp(row.time_ms)),
        principal: row.principal,
        role: role.into(),
        peer_address: row.peer,
        method: row.method,
        resource: row.resource,
        etag_before: row.etag_before,
        etag_after: row.etag_after,
        result: row.result,
        error: row.error,
        service_id: row.service_id,
    }
}
