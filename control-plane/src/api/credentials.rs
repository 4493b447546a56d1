//! `CredentialsService`: who may connect by what proof. No answer has a password, a hash or a key.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use sha2::Digest as _;
use tbmq_auth::credentials::{ClientType, Credentials, Proof};
use tbmq_integration::entity::Violation;
use tbmq_proto::control::{
    self as proto, ChangePasswordRequest, CreateCredentialsRequest, CredentialsType,
    DeleteCredentialsRequest, GetCredentialsRequest, ImportCredentialsRequest, ImportCredentialsResponse,
    ListCredentialsRequest, ListCredentialsResponse, UpdateCredentialsRequest, credentials::Proof as Given,
    credentials_service_server::CredentialsService, import_credentials_response::Outcome,
};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{
    applied,
    calls::{new_id, remembered, replayed},
    error,
    integration::{etag, parse_etag, timestamp},
    page,
};
use crate::{
    access::audit,
    auth::{hashing::Unable, proof::type_of},
    fault::Point,
    plane::Plane,
    store::{self, CredentialsListing, CredentialsRow, Imported, Item},
};

mod draft;

use draft::{Draft, Mask, Password};

/// Credentials of one import.
const IMPORT_MAX: usize = 1_000;

/// Passwords of one import that wait for a thread at once.
const HASHED_AT_ONCE: usize = 16;

/// Rows that are read from the database at a time: their rules may be many.
const CHUNK: u64 = 128;

/// Bytes of a page, about: well below what gRPC clients take as one message (4 MiB).
const PAGE_BYTES_MAX: usize = 3 << 20;

#[derive(Debug)]
pub(super) struct CredentialsApi {
    plane: Arc<Plane>,
}

#[tonic::async_trait]
impl CredentialsService for CredentialsApi {
    async fn create_credentials(
        &self,
        request: Request<CreateCredentialsRequest>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let request = request.into_inner();
        let remembered = remembered("CreateCredentials", &request.request_id, |hash| {
            let mut bare = request.clone();
            bare.request_id.clear();
            forget_password(bare.credentials.as_mut());
            hash.update(bare.encode_to_vec());
        })?;
        if let Some(row) = self.recall(remembered.as_ref()).await? {
            return self.answer(row).await;
        }
        let mut violations = Vec::new();
        let id = new_id("id", &request.id, &mut violations);
        audit::note_resource(resource_name(id));
        let given = request.credentials.ok_or_else(|| missing("credentials"))?;
        let draft = draft::read_new(id, given, &mut violations);
        let credentials = self.checked(draft, violations).await?;
        if request.validate_only {
            self.plane.store.check_credentials_key(&credentials).await?;
            return Ok(Response::new(show_unsaved(credentials)));
        }
        let saved = self.plane.saved(remembered.as_ref());
        let done = self.plane.store.create_credentials(credentials, saved).await;
        self.saved(done).await
    }

    async fn get_credentials(
        &self,
        request: Request<GetCredentialsRequest>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let id = parse_name("name", &request.get_ref().name)?;
        let row = self.plane.store.get_credentials(id).await?;
        let observed = applied::observed(&self.plane, &[row.item()]).await?;
        let revision = observed.get(&row.item()).copied();
        Ok(Response::new(show(row, revision)))
    }

    async fn list_credentials(
        &self,
        request: Request<ListCredentialsRequest>,
    ) -> Result<Response<ListCredentialsResponse>, Status> {
        self.list(request.into_inner()).await.map(Response::new)
    }

    async fn update_credentials(
        &self,
        request: Request<UpdateCredentialsRequest>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let request = request.into_inner();
        let remembered = remembered("UpdateCredentials", &request.request_id, |hash| {
            let mut bare = request.clone();
            bare.request_id.clear();
            forget_password(bare.credentials.as_mut());
            hash.update(bare.encode_to_vec());
        })?;
        if let Some(row) = self.recall(remembered.as_ref()).await? {
            return self.answer(row).await;
        }
        let given = request.credentials.ok_or_else(|| missing("credentials"))?;
        let id = parse_name("credentials.name", &given.name)?;
        audit::note_resource(resource_name(id));
        let stored = self.plane.store.get_credentials(id).await?;
        let revision = stored.credentials.revision;
        audit::note_before(resource_name(id), etag(revision));
        if parse_etag(&given.etag)?.is_some_and(|seen| seen != revision) {
            return Err(error::stale());
        }
        let mut violations = Vec::new();
        let mask = Mask::new(request.update_mask, &mut violations);
        if draft::is_other_type(&stored.credentials, &given) {
            let text = format!("are of type {}, which does not change", type_of(&stored.credentials.proof));
            return Err(error::invalid_because("TYPE_IMMUTABLE", vec![Violation::new("credentials", text)]));
        }
        let draft = draft::read_update(&stored.credentials, given, &mask, &mut violations);
        let credentials = self.checked(draft, violations).await?;
        if request.validate_only {
            self.plane.store.check_credentials_key(&credentials).await?;
            return Ok(Response::new(show_unsaved(credentials)));
        }
        let saved = self.plane.saved(remembered.as_ref());
        let done = self.plane.store.update_credentials(revision, credentials, saved).await;
        self.saved(done).await
    }

    async fn delete_credentials(
        &self,
        request: Request<DeleteCredentialsRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let remembered = remembered("DeleteCredentials", &request.request_id, |hash| {
            hash.update(&request.name);
            hash.update(&request.etag);
        })?;
        if replayed(&self.plane.store, remembered.as_ref()).await?.is_some() {
            return Ok(Response::new(()));
        }
        let id = parse_name("name", &request.name)?;
        audit::note_resource(resource_name(id));
        // The call itself says what is wrong.
        if let Ok(row) = self.plane.store.get_credentials(id).await {
            audit::note_before(resource_name(id), etag(row.credentials.revision));
        }
        let base = parse_etag(&request.etag)?;
        match self.plane.store.delete_credentials(id, base, self.plane.saved(remembered.as_ref())).await {
            Ok(()) => {
                self.plane.faults.pass(Point::Saved).await;
                self.plane.auth_committed();
            }
            Err(store::Error::Replayed(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.plane.faults.pass(Point::Answering).await;
        Ok(Response::new(()))
    }

    async fn change_password(
        &self,
        request: Request<ChangePasswordRequest>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let request = request.into_inner();
        let id = parse_name("name", &request.name)?;
        audit::note_resource(resource_name(id));
        let mut credentials = self.plane.store.get_credentials(id).await?.credentials;
        let revision = credentials.revision;
        audit::note_before(resource_name(id), etag(revision));
        let mut violations = Vec::new();
        draft::check_password("new_password", &request.new_password, &mut violations);
        if !violations.is_empty() {
            return Err(invalid(violations));
        }
        if !self.knows(&credentials.proof, request.current_password).await? {
            let text = "the current password is another one";
            return Err(error::status(Code::FailedPrecondition, "WRONG_PASSWORD", text));
        }
        self.set_password(&mut credentials.proof, Password(request.new_password)).await?;
        let done = self.plane.store.update_credentials(revision, credentials, self.plane.saved(None)).await;
        self.saved(done).await
    }

    async fn import_credentials(
        &self,
        request: Request<ImportCredentialsRequest>,
    ) -> Result<Response<ImportCredentialsResponse>, Status> {
        let request = request.into_inner();
        audit::note_resource(format!("credentials/- ({} of them)", request.credentials.len()));
        if request.credentials.len() > IMPORT_MAX {
            let text = format!("are {}, more than {IMPORT_MAX}", request.credentials.len());
            return Err(invalid(vec![Violation::new("credentials", text)]));
        }
        let outcomes = self.import(request).await?;
        Ok(Response::new(ImportCredentialsResponse { outcomes }))
    }
}

impl CredentialsApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }

    /// The credential of a request that was done already.
    async fn recall(&self, remembered: Option<&store::Request>) -> Result<Option<CredentialsRow>, Status> {
        match replayed(&self.plane.store, remembered).await? {
            Some(id) => Ok(Some(self.plane.store.get_credentials(id).await?)),
            None => Ok(None),
        }
    }

    async fn answer(&self, row: CredentialsRow) -> Result<Response<proto::Credentials>, Status> {
        audit::note_after(resource_name(row.credentials.id), etag(row.credentials.revision));
        let observed = applied::observed(&self.plane, &[row.item()]).await?;
        let revision = observed.get(&row.item()).copied();
        Ok(Response::new(show(row, revision)))
    }

    /// Answers what was saved when data planes have applied it, or a request whose twin was faster.
    async fn saved(
        &self,
        done: Result<CredentialsRow, store::Error>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let row = match done {
            Ok(row) => row,
            Err(store::Error::Replayed(id)) => {
                return self.answer(self.plane.store.get_credentials(id).await?).await;
            }
            Err(error) => return Err(error.into()),
        };
        self.plane.faults.pass(Point::Saved).await;
        self.plane.auth_committed();
        let (item, revision) = (row.item(), row.credentials.revision);
        audit::note_after(resource_name(row.credentials.id), etag(revision));
        let mut response = applied::answer(&self.plane, item.clone(), revision, show(row, None)).await;
        // What is saved is saved: without the database it is only not known who has applied it.
        if let Ok(observed) = applied::observed(&self.plane, std::slice::from_ref(&item)).await {
            response.get_mut().observed_revision = observed.get(&item).copied().unwrap_or(0);
        }
        Ok(response)
    }

    /// What a draft comes to, its password hashed, if nothing is wrong with it.
    async fn checked(&self, draft: Option<Draft>, violations: Vec<Violation>) -> Result<Credentials, Status> {
        match draft {
            Some(draft) if violations.is_empty() => self.resolve(draft).await?.map_err(invalid),
            _ => Err(invalid(violations)),
        }
    }

    /// Checks, then hashes: what is refused costs no hash.
    async fn resolve(&self, draft: Draft) -> Result<Result<Credentials, Vec<Violation>>, Status> {
        let Draft { credentials, password } = draft;
        let check = move || (draft::problems(&credentials), credentials);
        let (violations, mut credentials) = self.plane.hashing.run(check).await.map_err(unable)?;
        if !violations.is_empty() {
            return Ok(Err(violations));
        }
        if let Some(password) = password {
            self.set_password(&mut credentials.proof, password).await?;
        }
        Ok(Ok(credentials))
    }

    async fn set_password(&self, proof: &mut Proof, password: Password) -> Result<(), Status> {
        match proof {
            Proof::Basic { password_hash, .. } => {
                *password_hash = Some(self.plane.hashing.hash(password.0).await.map_err(unable)?);
            }
            Proof::Scram { keys, .. } => {
                let derived = self.plane.hashing.derive(keys.algorithm, password.0).await.map_err(unable)?;
                *keys = derived.map_err(|error| {
                    invalid(vec![Violation::new("credentials.scram.password", error.to_string())])
                })?;
            }
            Proof::X509 { .. } => {}
        }
        Ok(())
    }

    /// Whether somebody knows the password.
    async fn knows(&self, proof: &Proof, password: String) -> Result<bool, Status> {
        let hashing = &self.plane.hashing;
        match proof {
            Proof::Basic { password_hash: Some(hash), .. } => {
                hashing.verify(password, hash.clone()).await.map_err(unable)
            }
            // There is none to be known.
            Proof::Basic { password_hash: None, .. } => Ok(password.is_empty()),
            Proof::Scram { keys, .. } => hashing.fits(password, keys.clone()).await.map_err(unable),
            Proof::X509 { .. } => {
                Err(invalid(vec![Violation::new("name", "are of type X_509, which has no password")]))
            }
        }
    }

    async fn import(&self, request: ImportCredentialsRequest) -> Result<Vec<Outcome>, Status> {
        let read = |given: proto::Credentials| async {
            let mut violations = Vec::new();
            let id = match given.name.as_str() {
                "" => Uuid::new_v4(),
                name => parse(name).unwrap_or_else(|| {
                    violations.push(Violation::new("name", format!("{name:?} is not credentials/{{uuid}}")));
                    Uuid::nil()
                }),
            };
            match draft::read_new(id, given, &mut violations) {
                Some(draft) if violations.is_empty() => self.resolve(draft).await,
                _ => Ok(Err(violations)),
            }
        };
        let resolved: Vec<_> =
            stream::iter(request.credentials).map(read).buffered(HASHED_AT_ONCE).collect().await;
        let mut outcomes = Vec::with_capacity(resolved.len());
        let (mut usable, mut places) = (Vec::new(), Vec::new());
        for resolved in resolved {
            outcomes.push(match resolved? {
                Ok(credentials) => {
                    places.push(outcomes.len());
                    usable.push(credentials);
                    Outcome::default()
                }
                Err(violations) => {
                    let text = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                    refused(Code::InvalidArgument, &text)
                }
            });
        }
        let keys: Vec<String> = usable.iter().map(Credentials::unique_key).collect();
        let store = &self.plane.store;
        let imported = if request.validate_only {
            store.would_import(&usable, request.replace).await?
        } else {
            let now_ms = tbmq_service::time::now_ms();
            let imported = store.import_credentials(usable, request.replace, now_ms).await?;
            self.plane.auth_committed();
            imported
        };
        for ((place, key), imported) in places.into_iter().zip(keys).zip(imported) {
            outcomes[place] = match imported {
                Imported::Saved(id) => Outcome {
                    name: resource_name(id),
                    code: audit::code_name(Code::Ok).to_owned(),
                    error: String::new(),
                },
                Imported::Taken => refused(Code::AlreadyExists, &store::Error::KeyTaken(key).to_string()),
                Imported::IdTaken => refused(Code::AlreadyExists, "other credentials have this id already"),
            };
        }
        Ok(outcomes)
    }

    async fn list(&self, request: ListCredentialsRequest) -> Result<ListCredentialsResponse, Status> {
        let size = page::size(request.page_size)? as usize;
        let mut violations = Vec::new();
        let texts = [
            ("text_search", &request.text_search),
            ("client_id", &request.client_id),
            ("user_name", &request.user_name),
            ("common_name", &request.common_name),
        ];
        for (field, _) in texts.iter().filter(|(_, text)| text.contains('\0')) {
            violations.push(Violation::new(*field, "must not contain U+0000"));
        }
        let kind = match CredentialsType::try_from(request.r#type) {
            Ok(CredentialsType::Unspecified) => None,
            Ok(CredentialsType::MqttBasic) => Some("MQTT_BASIC"),
            Ok(CredentialsType::X509) => Some("X_509"),
            Ok(CredentialsType::Scram) => Some("SCRAM"),
            Err(_) => {
                violations.push(Violation::new("type", format!("{} is not a type", request.r#type)));
                None
            }
        };
        let client_type = match proto::ClientType::try_from(request.client_type) {
            Ok(proto::ClientType::Unspecified) => None,
            Ok(proto::ClientType::Device) => Some(ClientType::Device),
            Ok(proto::ClientType::Application) => Some(ClientType::Application),
            Err(_) => {
                let text = format!("{} is not a client type", request.client_type);
                violations.push(Violation::new("client_type", text));
                None
            }
        };
        if !violations.is_empty() {
            return Err(invalid(violations));
        }
        let question = format!("credentials {texts:?} {kind:?} {client_type:?}");
        let mut listing = CredentialsListing {
            after: page::place::<(String, Uuid)>(&request.page_token, &question)?,
            text: request.text_search,
            kind,
            client_type,
            client_id: request.client_id,
            user_name: request.user_name,
            common_name: request.common_name,
            limit: CHUNK.min(size as u64 + 1),
        };
        let total_size = self.plane.store.count_credentials(&listing).await? as i64;
        let (rows, more) = self.page(&mut listing, size).await?;
        let next_page_token = match rows.last() {
            Some(last) if more => page::token(&(&last.credentials.name, last.credentials.id), &question),
            _ => String::new(),
        };
        let items: Vec<Item> = rows.iter().map(CredentialsRow::item).collect();
        let observed = applied::observed(&self.plane, &items).await?;
        let credentials =
            rows.into_iter().zip(&items).map(|(row, item)| show(row, observed.get(item).copied()));
        Ok(ListCredentialsResponse { credentials: credentials.collect(), next_page_token, total_size })
    }

    /// The rows of a page, and whether there are more.
    async fn page(
        &self,
        listing: &mut CredentialsListing,
        size: usize,
    ) -> Result<(Vec<CredentialsRow>, bool), Status> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        loop {
            let rows = self.plane.store.list_credentials(listing).await?;
            let is_last = (rows.len() as u64) < listing.limit;
            for row in rows {
                // Not far from what it takes as a resource.
                let own = crate::auth::record::credentials(&row.credentials).len();
                if page.len() == size || (bytes + own > PAGE_BYTES_MAX && !page.is_empty()) {
                    return Ok((page, true));
                }
                bytes += own;
                listing.after = Some((row.credentials.name.clone(), row.credentials.id));
                page.push(row);
            }
            if is_last {
                return Ok((page, false));
            }
        }
    }
}

/// Passwords have no part in what tells requests apart: their plain digest would be easy to guess from.
fn forget_password(credentials: Option<&mut proto::Credentials>) {
    match credentials.and_then(|credentials| credentials.proof.as_mut()) {
        Some(Given::Basic(basic)) => basic.password = None,
        Some(Given::Scram(scram)) => scram.password = None,
        Some(Given::X509(_)) | None => {}
    }
}

fn invalid(violations: Vec<Violation>) -> Status {
    error::invalid_because("INVALID_CREDENTIALS", violations)
}

fn missing(field: &str) -> Status {
    invalid(vec![Violation::new(field, "is missing")])
}

fn unable(error: Unable) -> Status {
    error::unavailable(error)
}

fn refused(code: Code, text: &str) -> Outcome {
    let text: String = text.chars().take(1_000).collect();
    Outcome { name: String::new(), code: audit::code_name(code).to_owned(), error: text }
}

fn resource_name(id: Uuid) -> String {
    format!("credentials/{id}")
}

fn parse(name: &str) -> Option<Uuid> {
    name.strip_prefix("credentials/").unwrap_or(name).parse().ok()
}

fn parse_name(field: &str, name: &str) -> Result<Uuid, Status> {
    let text = || format!("{name:?} is not credentials/{{uuid}}");
    parse(name).ok_or_else(|| invalid(vec![Violation::new(field, text())]))
}

/// What is not saved has no version yet.
fn show_unsaved(credentials: Credentials) -> proto::Credentials {
    let row = CredentialsRow { credentials, created_ms: 0, updated_ms: 0 };
    proto::Credentials {
        revision: 0,
        etag: String::new(),
        create_time: None,
        update_time: None,
        ..show(row, None)
    }
}

fn show(row: CredentialsRow, observed: Option<u64>) -> proto::Credentials {
    let credentials = row.credentials;
    let kind = match &credentials.proof {
        Proof::Basic { .. } => CredentialsType::MqttBasic,
        Proof::X509 { .. } => CredentialsType::X509,
        Proof::Scram { .. } => CredentialsType::Scram,
    };
    let client_type = match credentials.client_type {
        ClientType::Device => proto::ClientType::Device,
        ClientType::Application => proto::ClientType::Application,
    };
    proto::Credentials {
        name: resource_name(credentials.id),
        uid: credentials.id.to_string(),
        client_type: client_type.into(),
        r#type: kind.into(),
        credentials_id: credentials.unique_key(),
        revision: credentials.revision,
        etag: etag(credentials.revision),
        create_time: Some(timestamp(row.created_ms)),
        update_time: Some(timestamp(row.updated_ms)),
        observed_revision: observed.unwrap_or(0),
        display_name: credentials.name,
        proof: Some(draft::show(credentials.proof)),
    }
}
