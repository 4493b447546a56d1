//! `TokenService`.

use std::sync::Arc;

use tbmq_proto::control::{
    AccessRole, Caller, CreateTokenRequest, CreateTokenResponse, GetCallerRequest, ListTokensRequest,
    ListTokensResponse, RevokeTokenRequest, Token, token_service_server::TokenService,
};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{
    error,
    integration::{timestamp, to_ms},
    page,
};
use crate::{
    access::{
        self, audit,
        role::Role,
        token::{Hash, secret},
    },
    plane::Plane,
    store::TokenRow,
};

const NAME_CHARS_MAX: usize = 255;

#[derive(Debug)]
pub(super) struct Tokens {
    plane: Arc<Plane>,
}

impl Tokens {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }
}

#[tonic::async_trait]
impl TokenService for Tokens {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let now_ms = tbmq_service::time::now_ms();
        let Some(asked) = request.into_inner().token else {
            return Err(error::invalid_field("token", "is missing"));
        };
        let name = asked.display_name.trim();
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(error::invalid_field(
                "token.display_name",
                "must have 1 to 255 characters, none of control",
            ));
        }
        let role = AccessRole::try_from(asked.role).ok().and_then(Role::from_proto);
        let Some(role) = role else {
            return Err(error::invalid_field(
                "token.role",
                "must be VIEWER, OPERATOR, EDITOR, ADMIN or NODE",
            ));
        };
        let expires_ms = asked.expire_time.as_ref().map(to_ms);
        if expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
            return Err(error::invalid_field("token.expire_time", "is over already"));
        }
        let secret = secret();
        let row = TokenRow {
            id: Uuid::now_v7(),
            display_name: name.to_owned(),
            role: role.to_string(),
            hash: Hash::of(&secret).hex(),
            created_ms: now_ms,
            expires_ms,
            last_used_ms: None,
        };
        audit::note_resource(resource_name(row.id));
        self.plane.store.create_token(&row).await?;
        Ok(Response::new(CreateTokenResponse { token: Some(resource(row)), secret }))
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        let after = page::place::<(i64, Uuid)>(&request.page_token, "tokens")?;
        let mut rows = self.plane.store.tokens(after, size + 1).await?;
        let more = rows.len() as u64 > size;
        rows.truncate(size as usize);
        let next_page_token = match rows.last() {
            Some(last) if more => page::token(&(last.created_ms, last.id), "tokens"),
            _ => String::new(),
        };
        let tokens = rows.into_iter().map(resource).collect();
        Ok(Response::new(ListTokensResponse { tokens, next_page_token }))
    }

    async fn revoke_token(&self, request: Request<RevokeTokenRequest>) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        let id: Uuid = name
            .strip_prefix("tokens/")
            .unwrap_or(&name)
            .parse()
            .map_err(|_| error::invalid_field("name", "is not tokens/{uuid}"))?;
        audit::note_resource(resource_name(id));
        if self.plane.access.tokens().revoke(id).await? {
            Ok(Response::new(()))
        } else {
            Err(error::status(Code::NotFound, "NOT_FOUND", format!("{} does not exist", resource_name(id))))
        }
    }

    async fn get_caller(&self, request: Request<GetCallerRequest>) -> Result<Response<Caller>, Status> {
        let caller = request.extensions().get::<access::Caller>();
        let caller = caller.ok_or_else(|| Status::internal("the caller was not noted"))?;
        Ok(Response::new(Caller { principal: caller.principal.clone(), role: caller.role.to_proto().into() }))
    }
}

fn resource_name(id: Uuid) -> String {
    format!("tokens/{id}")
}

fn resource(row: TokenRow) -> Token {
    let role = row.role.parse::<Role>().map_or(AccessRole::Unspecified, Role::to_proto);
    Token {
        name: resource_name(row.id),
        display_name: row.display_name,
        role: role.into(),
        create_time: Some(timestamp(row.created_ms)),
        expire_time: row.expires_ms.map(timestamp),
        last_used_time: row.last_used_ms.map(timestamp),
    }
}
