//! `AuthProviderService`: how clients prove who they are, and who is asked first. Until somebody enables a provider, none
//! is.

use std::sync::Arc;

use tbmq_integration::entity::Violation;
use tbmq_proto::control::{
    AuthProvider, AuthSettings, GetAuthProviderRequest, GetAuthSettingsRequest, ListAuthProvidersRequest,
    ListAuthProvidersResponse, UpdateAuthProviderRequest, UpdateAuthSettingsRequest,
    auth_provider_service_server::AuthProviderService,
};
use tonic::{Code, Request, Response, Status};

use super::{
    applied, error,
    integration::{etag, parse_etag},
};
use crate::{
    access::audit,
    auth::{provider, record},
    fault::Point,
    plane::Plane,
    store::{self, ProviderRow},
};

/// Name of the settings.
const SETTINGS: &str = "authSettings";

#[derive(Debug)]
pub(super) struct ProvidersApi {
    plane: Arc<Plane>,
}

#[tonic::async_trait]
impl AuthProviderService for ProvidersApi {
    async fn get_auth_provider(
        &self,
        request: Request<GetAuthProviderRequest>,
    ) -> Result<Response<AuthProvider>, Status> {
        let kind = parse_name("name", &request.get_ref().name)?;
        Ok(Response::new(show(self.find(kind).await?)))
    }

    async fn list_auth_providers(
        &self,
        _request: Request<ListAuthProvidersRequest>,
    ) -> Result<Response<ListAuthProvidersResponse>, Status> {
        let rows = self.plane.store.providers().await?;
        let row = |kind: &str| {
            rows.iter().find(|row| row.kind == kind).cloned().unwrap_or_else(|| ProviderRow::new(kind))
        };
        let providers = provider::TYPES.into_iter().map(|kind| show(row(kind))).collect();
        Ok(Response::new(ListAuthProvidersResponse { providers }))
    }

    async fn update_auth_provider(
        &self,
        request: Request<UpdateAuthProviderRequest>,
    ) -> Result<Response<AuthProvider>, Status> {
        let given = request.into_inner().provider;
        let given = given.ok_or_else(|| invalid(vec![Violation::new("provider", "is missing")]))?;
        let kind = parse_name("provider.name", &given.name)?;
        audit::note_resource(name_of(kind));
        let stored = self.find(kind).await?;
        audit::note_before(name_of(kind), etag(stored.revision));
        if parse_etag(&given.etag)?.is_some_and(|seen| seen != stored.revision) {
            return Err(error::stale());
        }
        let configuration = match given.configuration_json.trim() {
            "" => "{}".to_owned(),
            text => text.to_owned(),
        };
        let place = |violation: Violation| {
            let path = match violation.path.as_str() {
                "" => "provider.configuration_json".to_owned(),
                path => format!("provider.configuration_json.{path}"),
            };
            Violation::new(path, violation.text)
        };
        let violations = provider::check(kind, &configuration);
        if !violations.is_empty() {
            return Err(invalid(violations.into_iter().map(place).collect()));
        }
        let held = stored.unreadable.is_none().then_some(stored.configuration.as_str());
        let configuration = match (provider::unmask(&configuration, held), &stored.unreadable) {
            (Ok(whole), _) => whole,
            (Err(_), Some(unreadable)) => {
                let text = format!("the stored secrets are out of reach, write them: {unreadable}");
                return Err(error::status(Code::FailedPrecondition, "SECRETS_UNREADABLE", text));
            }
            (Err(violations), None) => {
                return Err(invalid(violations.into_iter().map(place).collect()));
            }
        };
        let enabled = given.enabled;
        let check = move || (provider::check_whole(kind, enabled, &configuration), configuration);
        let (violations, configuration) = self.plane.hashing.run(check).await.map_err(error::unavailable)?;
        if !violations.is_empty() {
            return Err(invalid(violations.into_iter().map(place).collect()));
        }
        let row = ProviderRow { enabled, configuration, unreadable: None, ..stored };
        let (base, now_ms) = (row.revision, tbmq_service::time::now_ms());
        let row = self.plane.store.set_provider(base, row, now_ms).await?;
        self.plane.faults.pass(Point::Saved).await;
        self.plane.auth_committed();
        audit::note_after(name_of(kind), etag(row.revision));
        let (item, revision) = (row.item(), row.revision);
        if revision == 0 {
            // It is as it was before anybody touched it: there is nothing to be applied.
            return Ok(Response::new(show(row)));
        }
        Ok(applied::answer(&self.plane, item, revision, show(row)).await)
    }

    async fn get_auth_settings(
        &self,
        _request: Request<GetAuthSettingsRequest>,
    ) -> Result<Response<AuthSettings>, Status> {
        let (revision, priorities) = self.plane.store.priorities().await?;
        Ok(Response::new(AuthSettings { priorities, etag: etag(revision) }))
    }

    async fn update_auth_settings(
        &self,
        request: Request<UpdateAuthSettingsRequest>,
    ) -> Result<Response<AuthSettings>, Status> {
        let given = request.into_inner().settings;
        let given = given.ok_or_else(|| invalid(vec![Violation::new("settings", "is missing")]))?;
        audit::note_resource(SETTINGS);
        if let Some(problem) = provider::check_priorities(&given.priorities) {
            return Err(invalid(vec![Violation::new("settings.priorities", problem)]));
        }
        let base = parse_etag(&given.etag)?;
        let now_ms = tbmq_service::time::now_ms();
        let (revision, priorities) = self.plane.store.set_priorities(base, given.priorities, now_ms).await?;
        self.plane.faults.pass(Point::Saved).await;
        self.plane.auth_committed();
        audit::note_after(SETTINGS, etag(revision));
        let settings = AuthSettings { priorities, etag: etag(revision) };
        let item = store::setting_item(record::PROVIDERS);
        Ok(applied::answer(&self.plane, item, revision, settings).await)
    }
}

impl ProvidersApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }

    async fn find(&self, kind: &'static str) -> Result<ProviderRow, Status> {
        let rows = self.plane.store.providers().await?;
        Ok(rows.into_iter().find(|row| row.kind == kind).unwrap_or_else(|| ProviderRow::new(kind)))
    }
}

fn invalid(violations: Vec<Violation>) -> Status {
    error::invalid_because("INVALID_AUTH_PROVIDER", violations)
}

fn name_of(kind: &str) -> String {
    format!("authProviders/{kind}")
}

/// Reads `authProviders/{type}`; a type alone is understood too.
fn parse_name(field: &str, name: &str) -> Result<&'static str, Status> {
    let text = name.strip_prefix("authProviders/").unwrap_or(name);
    let found = provider::TYPES.into_iter().find(|kind| *kind == text);
    found.ok_or_else(|| {
        let known = provider::TYPES.join(", ");
        invalid(vec![Violation::new(field, format!("{name:?} is not authProviders/ and one of {known}"))])
    })
}

fn show(row: ProviderRow) -> AuthProvider {
    AuthProvider {
        name: name_of(&row.kind),
        enabled: row.enabled,
        configuration_json: provider::mask(&row.configuration),
        revision: row.revision,
        etag: etag(row.revision),
    }
}
