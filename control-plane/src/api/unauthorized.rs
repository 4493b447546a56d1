//! `UnauthorizedClientService`: clients that were refused, as data planes have told.

use std::sync::Arc;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tbmq_integration::entity::Violation;
use tbmq_proto::control::{
    ClearUnauthorizedClientsRequest, ClearUnauthorizedClientsResponse, DeleteUnauthorizedClientRequest,
    GetUnauthorizedClientRequest, ListUnauthorizedClientsRequest, ListUnauthorizedClientsResponse,
    UnauthorizedClient, unauthorized_client_service_server::UnauthorizedClientService,
};
use tonic::{Request, Response, Status};

use super::{error, integration::timestamp, page};
use crate::{
    access::audit,
    auth::digest,
    plane::Plane,
    store::{UnauthorizedListing, UnauthorizedRow},
};

/// Before the percent-encoded client id in a name.
const COLLECTION: &str = "unauthorizedClients/";

#[derive(Debug)]
pub(super) struct UnauthorizedApi {
    plane: Arc<Plane>,
}

#[tonic::async_trait]
impl UnauthorizedClientService for UnauthorizedApi {
    async fn get_unauthorized_client(
        &self,
        request: Request<GetUnauthorizedClientRequest>,
    ) -> Result<Response<UnauthorizedClient>, Status> {
        let client_id = parse_name(&request.get_ref().name)?;
        let row = self.plane.store.get_unauthorized(&client_id).await?;
        Ok(Response::new(show(row)))
    }

    async fn list_unauthorized_clients(
        &self,
        request: Request<ListUnauthorizedClientsRequest>,
    ) -> Result<Response<ListUnauthorizedClientsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        let texts = [
            ("client_id", &request.client_id),
            ("address", &request.address),
            ("user_name", &request.user_name),
            ("reason", &request.reason),
        ];
        let is_foreign = |(_, text): &&(&str, &String)| text.contains('\0');
        let violations: Vec<Violation> = texts
            .iter()
            .filter(is_foreign)
            .map(|(field, _)| Violation::new(*field, "must not contain U+0000"))
            .collect();
        if !violations.is_empty() {
            return Err(error::invalid(violations));
        }
        let question = format!("unauthorized {texts:?}");
        let listing = UnauthorizedListing {
            after: page::place(&request.page_token, &question)?,
            client_id: request.client_id,
            address: request.address,
            user_name: request.user_name,
            reason: request.reason,
            limit: size + 1,
        };
        let store = &self.plane.store;
        let (total_size, mut rows) =
            tokio::try_join!(store.count_unauthorized(&listing), store.list_unauthorized(&listing))?;
        let bytes = |row: &UnauthorizedRow| 4 * row.client_id.len() + row.user_name.len() + row.reason.len();
        let more = page::cut(&mut rows, size, bytes);
        let next_page_token = match rows.last() {
            Some(last) if more => page::token(&(last.time_ms, digest(&last.client_id)), &question),
            _ => String::new(),
        };
        let unauthorized_clients = rows.into_iter().map(show).collect();
        let total_size = total_size as i64;
        Ok(Response::new(ListUnauthorizedClientsResponse {
            unauthorized_clients,
            next_page_token,
            total_size,
        }))
    }

    async fn delete_unauthorized_client(
        &self,
        request: Request<DeleteUnauthorizedClientRequest>,
    ) -> Result<Response<()>, Status> {
        let client_id = parse_name(&request.get_ref().name)?;
        audit::note_resource(name_of(&client_id));
        self.plane.store.forget_unauthorized(&client_id).await?;
        Ok(Response::new(()))
    }

    async fn clear_unauthorized_clients(
        &self,
        _request: Request<ClearUnauthorizedClientsRequest>,
    ) -> Result<Response<ClearUnauthorizedClientsResponse>, Status> {
        audit::note_resource(format!("{COLLECTION}-"));
        let removed = self.plane.store.clear_unauthorized(None).await?;
        Ok(Response::new(ClearUnauthorizedClientsResponse { removed }))
    }
}

impl UnauthorizedApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }
}

fn name_of(client_id: &str) -> String {
    format!("{COLLECTION}{}", utf8_percent_encode(client_id, NON_ALPHANUMERIC))
}

/// Reads `unauthorizedClients/{client id}`.
fn parse_name(name: &str) -> Result<String, Status> {
    let read = || {
        let encoded = name.strip_prefix(COLLECTION)?;
        let client_id = percent_decode_str(encoded).decode_utf8().ok()?;
        (!client_id.is_empty()).then(|| client_id.into_owned())
    };
    let shown: String = name.chars().take(200).collect();
    let text = || format!("{shown:?} is not {COLLECTION}{{client id}}, percent-encoded");
    read().ok_or_else(|| error::invalid_field("name", text()))
}

fn show(row: UnauthorizedRow) -> UnauthorizedClient {
    UnauthorizedClient {
        name: name_of(&row.client_id),
        client_id: row.client_id,
        address: row.address,
        user_name: row.user_name,
        password_provided: row.password_provided,
        tls_used: row.tls_used,
        reason: row.reason,
        time: Some(timestamp(row.time_ms)),
        count: row.count,
    }
}
