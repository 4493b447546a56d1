//! Credentials, blocked and refused clients, and providers of a control plane in memory that keeps to the contract:
//! names, etags, masks, pages of two, and no secret in any answer.

use std::sync::Arc;

use parking_lot::Mutex;
use tbmq_proto::control::{
    AccessRule, AuthProvider, AuthSettings, BasicCredentials, BlockedClient, ChangePasswordRequest,
    ClearUnauthorizedClientsRequest, ClearUnauthorizedClientsResponse, ClientType,
    CreateBlockedClientRequest, CreateCredentialsRequest, Credentials, CredentialsType,
    DeleteBlockedClientRequest, DeleteCredentialsRequest, DeleteUnauthorizedClientRequest,
    GetAuthProviderRequest, GetAuthSettingsRequest, GetBlockedClientRequest, GetCredentialsRequest,
    GetUnauthorizedClientRequest, ImportCredentialsRequest, ImportCredentialsResponse,
    ListAuthProvidersRequest, ListAuthProvidersResponse, ListBlockedClientsRequest,
    ListBlockedClientsResponse, ListCredentialsRequest, ListCredentialsResponse,
    ListUnauthorizedClientsRequest, ListUnauthorizedClientsResponse, ScramCredentials, UnauthorizedClient,
    UpdateAuthProviderRequest, UpdateAuthSettingsRequest, UpdateBlockedClientRequest,
    UpdateCredentialsRequest, X509Credentials,
    access_rule::{Action, Effect, Topic},
    auth_provider_service_server::AuthProviderService,
    blocked_client::{RegexMatchTarget, Status as BlockedStatus, Type as BlockedType},
    blocked_client_service_server::BlockedClientService,
    credentials::Proof,
    credentials_service_server::CredentialsService,
    import_credentials_response::Outcome,
    unauthorized_client_service_server::UnauthorizedClientService,
    x509_credentials::LeafRules,
};
use tonic::{Code, Request, Response, Status};
use tonic_types::FieldViolation;

use crate::fake::{at, find, page, refusal};

/// Clones share what they hold.
#[derive(Clone)]
pub(crate) struct AuthFake {
    pub(crate) credentials: Arc<Mutex<Vec<Credentials>>>,
    pub(crate) created: Arc<Mutex<Vec<CreateCredentialsRequest>>>,
    pub(crate) updated: Arc<Mutex<Vec<UpdateCredentialsRequest>>>,
    pub(crate) listed: Arc<Mutex<Vec<ListCredentialsRequest>>>,
    pub(crate) passwords: Arc<Mutex<Vec<ChangePasswordRequest>>>,
    /// Sizes of the calls, and all that was imported.
    pub(crate) imports: Arc<Mutex<Vec<usize>>>,
    pub(crate) blocked: Arc<Mutex<Vec<BlockedClient>>>,
    pub(crate) refused: Arc<Mutex<Vec<UnauthorizedClient>>>,
    pub(crate) providers: Arc<Mutex<Vec<AuthProvider>>>,
    pub(crate) order: Arc<Mutex<AuthSettings>>,
}

fn rule(effect: Effect, action: Action, topic: Topic) -> AccessRule {
    AccessRule { effect: effect.into(), action: action.into(), topic: Some(topic), ..AccessRule::default() }
}

pub(crate) const PUMPS: &str = "22222222-52c9-4a3f-8d0f-1f2e3d4c5b6a";

/// One of each type, with all that may be known of one.
fn examples() -> Vec<Credentials> {
    let publish = rule(Effect::Allow, Action::Publish, Topic::Filter("pumps/${clientId}/#".to_owned()));
    let secret = AccessRule {
        qos: vec![1, 2],
        retain: Some(true),
        ..rule(Effect::Deny, Action::Both, Topic::Regex(".*/secret".to_owned()))
    };
    let basic = BasicCredentials {
        user_name: Some("pumps".to_owned()),
        has_password: true,
        rules: vec![publish.clone(), secret],
        ..BasicCredentials::default()
    };
    let pumps = Credentials {
        name: format!("credentials/{PUMPS}"),
        uid: PUMPS.to_owned(),
        display_name: "pumps".to_owned(),
        client_type: ClientType::Device.into(),
        r#type: CredentialsType::MqttBasic.into(),
        credentials_id: "username|pumps".to_owned(),
        proof: Some(Proof::Basic(basic)),
        revision: 7,
        etag: "e7".to_owned(),
        create_time: at(0),
        update_time: at(1),
        observed_revision: 7,
    };
    let x509 = X509Credentials {
        common_name: "gw-[0-9]+".to_owned(),
        is_pattern: true,
        leaf_rules: vec![
            LeafRules { pattern: "gw-1.*".to_owned(), rules: vec![publish] },
            LeafRules { pattern: ".*".to_owned(), rules: vec![] },
        ],
    };
    let scram = ScramCredentials {
        user_name: "ops".to_owned(),
        algorithm: "SHA_512".to_owned(),
        ..ScramCredentials::default()
    };
    let other = |number: u8, name: &str, kind: CredentialsType, id: &str, proof| Credentials {
        name: format!("credentials/{number:08}-52c9-4a3f-8d0f-1f2e3d4c5b6a"),
        uid: format!("{number:08}-52c9-4a3f-8d0f-1f2e3d4c5b6a"),
        display_name: name.to_owned(),
        client_type: ClientType::Application.into(),
        r#type: kind.into(),
        credentials_id: id.to_owned(),
        proof: Some(proof),
        observed_revision: 6,
        ..pumps.clone()
    };
    let gateways = other(3, "gateways", CredentialsType::X509, "ssl|gw-[0-9]+", Proof::X509(x509));
    let ops = other(4, "ops", CredentialsType::Scram, "scram|ops", Proof::Scram(scram));
    vec![pumps, gateways, ops]
}

impl Default for AuthFake {
    fn default() -> Self {
        let blocked = |kind: BlockedType, key: &str, value: &str| BlockedClient {
            name: format!("blockedClients/{key}"),
            r#type: kind.into(),
            value: value.to_owned(),
            status: BlockedStatus::Active.into(),
            ..BlockedClient::default()
        };
        let pattern = BlockedClient {
            regex_match_target: RegexMatchTarget::ByClientId.into(),
            expire_time: at(3600),
            description: "load test".to_owned(),
            status: BlockedStatus::Expired.into(),
            ..blocked(BlockedType::Regex, "REGEX%7CBY_CLIENT_ID%7Ctest%2D.%2A", "test-.*")
        };
        let refused = UnauthorizedClient {
            name: "unauthorizedClients/pump%2D7".to_owned(),
            client_id: "pump-7".to_owned(),
            address: "10.0.0.9".to_owned(),
            user_name: "pumps".to_owned(),
            password_provided: true,
            tls_used: false,
            reason: "MQTT_BASIC: the password is wrong".to_owned(),
            time: at(9),
            count: 12,
        };
        let provider = |kind: &str, enabled, configuration_json: &str| AuthProvider {
            name: format!("authProviders/{kind}"),
            enabled,
            configuration_json: configuration_json.to_owned(),
            revision: 3,
            etag: format!("e-{kind}"),
        };
        let order = ["MQTT_BASIC", "X_509", "JWT", "HTTP"].map(str::to_owned).to_vec();
        Self {
            credentials: Arc::new(Mutex::new(examples())),
            created: Arc::default(),
            updated: Arc::default(),
            listed: Arc::default(),
            passwords: Arc::default(),
            imports: Arc::default(),
            blocked: Arc::new(Mutex::new(vec![
                blocked(BlockedType::ClientId, "CLIENT_ID%7Cpump%2D7", "pump-7"),
                pattern,
                blocked(BlockedType::Username, "USERNAME%7Ctwin", "twin"),
                blocked(BlockedType::ClientId, "CLIENT_ID%7Ctwin", "twin"),
            ])),
            refused: Arc::new(Mutex::new(vec![refused])),
            providers: Arc::new(Mutex::new(vec![
                provider(
                    "MQTT_BASIC",
                    true,
                    r#"{"type":"MQTT_BASIC","authStrategy":"CLIENT_ID_AND_USERNAME"}"#,
                ),
                provider("JWT", false, r#"{"type":"JWT","secret":"***"}"#),
                provider("SCRAM", true, r#"{"type":"SCRAM"}"#),
            ])),
            order: Arc::new(Mutex::new(AuthSettings { priorities: order, etag: "e-order".to_owned() })),
        }
    }
}

/// As the server answers it: with what it is known by, and without its secrets.
fn answered(mut one: Credentials) -> Credentials {
    let (kind, id) = match &mut one.proof {
        Some(Proof::Basic(basic)) => {
            basic.has_password |= basic.password.take().is_some() | basic.password_hash.take().is_some();
            let id = match (&basic.user_name, &basic.client_id) {
                (Some(user), Some(client)) => format!("mixed|{user}|{client}"),
                (Some(user), None) => format!("username|{user}"),
                (None, client) => format!("client_id|{}", client.clone().unwrap_or_default()),
            };
            (CredentialsType::MqttBasic, id)
        }
        Some(Proof::X509(x509)) => (CredentialsType::X509, format!("ssl|{}", x509.common_name)),
        Some(Proof::Scram(scram)) => {
            (scram.password, scram.keys) = (None, None);
            (CredentialsType::Scram, format!("scram|{}", scram.user_name))
        }
        None => (CredentialsType::Unspecified, String::new()),
    };
    one.r#type = kind.into();
    one.credentials_id = id;
    one
}

/// What is wrong with a credential: look-around.
fn problem(one: &Credentials) -> Option<String> {
    let rules: Vec<&AccessRule> = match &one.proof {
        Some(Proof::Basic(basic)) => basic.rules.iter().collect(),
        Some(Proof::X509(x509)) => x509.leaf_rules.iter().flat_map(|leaf| &leaf.rules).collect(),
        Some(Proof::Scram(scram)) => scram.rules.iter().collect(),
        None => return Some("it has no proof".to_owned()),
    };
    rules.iter().find_map(|rule| match &rule.topic {
        Some(Topic::Regex(regex)) if regex.contains("(?=") => {
            Some(format!("{regex:?} is no regular expression of linear time: look-around"))
        }
        _ => None,
    })
}

impl AuthFake {
    fn find(&self, name: &str) -> Result<Credentials, Status> {
        find(&self.credentials, "credential", |one| one.name == name)
    }

    fn provider(&self, name: &str) -> Result<AuthProvider, Status> {
        find(&self.providers, "provider", |one| one.name == name)
    }

    fn import(&self, one: &Credentials, replace: bool, validate_only: bool) -> Outcome {
        let outcome = |code: &str, error: String| Outcome {
            name: if error.is_empty() { one.name.clone() } else { String::new() },
            code: code.to_owned(),
            error,
        };
        if let Some(problem) = problem(one) {
            return outcome("INVALID_ARGUMENT", problem);
        }
        let credentials_id = answered(one.clone()).credentials_id;
        let one = Credentials { credentials_id, ..one.clone() };
        let mut held = self.credentials.lock();
        let twin = held.iter().position(|other| other.credentials_id == one.credentials_id);
        match twin {
            Some(_) if !replace => {
                let error = format!("there is a credential for {} already", one.credentials_id);
                return outcome("ALREADY_EXISTS", error);
            }
            _ if validate_only => {}
            Some(index) => held[index] = one,
            None => held.push(one),
        }
        outcome("OK", String::new())
    }
}

#[tonic::async_trait]
impl CredentialsService for AuthFake {
    async fn create_credentials(
        &self,
        request: Request<CreateCredentialsRequest>,
    ) -> Result<Response<Credentials>, Status> {
        let request = request.into_inner();
        self.created.lock().push(request.clone());
        let one = request.credentials.unwrap_or_default();
        if let Some(problem) = problem(&one) {
            let violations = vec![FieldViolation::new("credentials.basic.rules[0]", problem)];
            return Err(refusal(Code::InvalidArgument, "not valid", "INVALID_CREDENTIALS", violations));
        }
        let uid = if request.id.is_empty() { PUMPS.to_owned() } else { request.id };
        let created = Credentials { name: format!("credentials/{uid}"), uid, revision: 1, ..answered(one) };
        Ok(Response::new(created))
    }

    async fn get_credentials(
        &self,
        request: Request<GetCredentialsRequest>,
    ) -> Result<Response<Credentials>, Status> {
        self.find(&request.into_inner().name).map(Response::new)
    }

    async fn list_credentials(
        &self,
        request: Request<ListCredentialsRequest>,
    ) -> Result<Response<ListCredentialsResponse>, Status> {
        let request = request.into_inner();
        self.listed.lock().push(request.clone());
        let mut found = self.credentials.lock().clone();
        found.retain(|one| one.display_name.contains(&request.text_search));
        let total_size = found.len() as i64;
        let (found, next_page_token) = page(found, &request.page_token);
        let credentials = found.into_iter().map(answered).collect();
        Ok(Response::new(ListCredentialsResponse { credentials, next_page_token, total_size }))
    }

    async fn update_credentials(
        &self,
        request: Request<UpdateCredentialsRequest>,
    ) -> Result<Response<Credentials>, Status> {
        let request = request.into_inner();
        self.updated.lock().push(request.clone());
        let one = request.credentials.unwrap_or_default();
        let saved = self.find(&one.name)?;
        if !one.etag.is_empty() && one.etag != saved.etag {
            return Err(refusal(Code::Aborted, "it was changed meanwhile", "ETAG_MISMATCH", vec![]));
        }
        Ok(Response::new(answered(Credentials { revision: saved.revision + 1, ..one })))
    }

    async fn delete_credentials(
        &self,
        request: Request<DeleteCredentialsRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.find(&name)?;
        self.credentials.lock().retain(|one| one.name != name);
        Ok(Response::new(()))
    }

    async fn change_password(
        &self,
        request: Request<ChangePasswordRequest>,
    ) -> Result<Response<Credentials>, Status> {
        let request = request.into_inner();
        self.passwords.lock().push(request.clone());
        if request.current_password != "old" {
            return Err(refusal(
                Code::PermissionDenied,
                "the current password is another one",
                "WRONG_PASSWORD",
                vec![],
            ));
        }
        self.find(&request.name).map(Response::new)
    }

    async fn import_credentials(
        &self,
        request: Request<ImportCredentialsRequest>,
    ) -> Result<Response<ImportCredentialsResponse>, Status> {
        let ImportCredentialsRequest { credentials, replace, validate_only } = request.into_inner();
        self.imports.lock().push(credentials.len());
        if credentials.len() > 1000 {
            return Err(Status::invalid_argument("too many"));
        }
        let outcomes = credentials.iter().map(|one| self.import(one, replace, validate_only)).collect();
        Ok(Response::new(ImportCredentialsResponse { outcomes }))
    }
}

#[tonic::async_trait]
impl BlockedClientService for AuthFake {
    async fn create_blocked_client(
        &self,
        request: Request<CreateBlockedClientRequest>,
    ) -> Result<Response<BlockedClient>, Status> {
        let mut one = request.into_inner().blocked_client.unwrap_or_default();
        one.name = format!("blockedClients/{}", one.value);
        one.status = BlockedStatus::Active.into();
        self.blocked.lock().push(one.clone());
        Ok(Response::new(one))
    }

    async fn get_blocked_client(
        &self,
        request: Request<GetBlockedClientRequest>,
    ) -> Result<Response<BlockedClient>, Status> {
        let name = request.into_inner().name;
        find(&self.blocked, "blocked client", |one| one.name == name).map(Response::new)
    }

    async fn list_blocked_clients(
        &self,
        request: Request<ListBlockedClientsRequest>,
    ) -> Result<Response<ListBlockedClientsResponse>, Status> {
        let request = request.into_inner();
        let (kind, status) = (request.r#type(), request.status());
        let mut blocked_clients = self.blocked.lock().clone();
        blocked_clients.retain(|one| {
            (kind == BlockedType::Unspecified || one.r#type() == kind)
                && (status == BlockedStatus::Unspecified || one.status() == status)
                && one.value.contains(&request.text_search)
        });
        let total_size = blocked_clients.len() as i64;
        let next_page_token = String::new();
        Ok(Response::new(ListBlockedClientsResponse { blocked_clients, next_page_token, total_size }))
    }

    async fn update_blocked_client(
        &self,
        request: Request<UpdateBlockedClientRequest>,
    ) -> Result<Response<BlockedClient>, Status> {
        Ok(Response::new(request.into_inner().blocked_client.unwrap_or_default()))
    }

    async fn delete_blocked_client(
        &self,
        request: Request<DeleteBlockedClientRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.blocked.lock().retain(|one| one.name != name);
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl UnauthorizedClientService for AuthFake {
    async fn get_unauthorized_client(
        &self,
        request: Request<GetUnauthorizedClientRequest>,
    ) -> Result<Response<UnauthorizedClient>, Status> {
        let name = request.into_inner().name;
        find(&self.refused, "refused client", |one| one.name == name).map(Response::new)
    }

    async fn list_unauthorized_clients(
        &self,
        request: Request<ListUnauthorizedClientsRequest>,
    ) -> Result<Response<ListUnauthorizedClientsResponse>, Status> {
        let request = request.into_inner();
        let mut unauthorized_clients = self.refused.lock().clone();
        unauthorized_clients
            .retain(|one| one.reason.contains(&request.reason) && one.address.contains(&request.address));
        let total_size = unauthorized_clients.len() as i64;
        let next_page_token = String::new();
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
        let name = request.into_inner().name;
        self.refused.lock().retain(|one| one.name != name);
        Ok(Response::new(()))
    }

    async fn clear_unauthorized_clients(
        &self,
        _: Request<ClearUnauthorizedClientsRequest>,
    ) -> Result<Response<ClearUnauthorizedClientsResponse>, Status> {
        let removed = self.refused.lock().drain(..).count() as u64;
        Ok(Response::new(ClearUnauthorizedClientsResponse { removed }))
    }
}

#[tonic::async_trait]
impl AuthProviderService for AuthFake {
    async fn get_auth_provider(
        &self,
        request: Request<GetAuthProviderRequest>,
    ) -> Result<Response<AuthProvider>, Status> {
        self.provider(&request.into_inner().name).map(Response::new)
    }

    async fn list_auth_providers(
        &self,
        _: Request<ListAuthProvidersRequest>,
    ) -> Result<Response<ListAuthProvidersResponse>, Status> {
        Ok(Response::new(ListAuthProvidersResponse { providers: self.providers.lock().clone() }))
    }

    async fn update_auth_provider(
        &self,
        request: Request<UpdateAuthProviderRequest>,
    ) -> Result<Response<AuthProvider>, Status> {
        let one = request.into_inner().provider.unwrap_or_default();
        let saved = self.provider(&one.name)?;
        if one.etag != saved.etag {
            return Err(refusal(Code::Aborted, "it was changed meanwhile", "ETAG_MISMATCH", vec![]));
        }
        let changed = AuthProvider { revision: saved.revision + 1, ..one };
        for held in self.providers.lock().iter_mut().filter(|held| held.name == changed.name) {
            *held = changed.clone();
        }
        Ok(Response::new(changed))
    }

    async fn get_auth_settings(
        &self,
        _: Request<GetAuthSettingsRequest>,
    ) -> Result<Response<AuthSettings>, Status> {
        Ok(Response::new(self.order.lock().clone()))
    }

    async fn update_auth_settings(
        &self,
        request: Request<UpdateAuthSettingsRequest>,
    ) -> Result<Response<AuthSettings>, Status> {
        let settings = request.into_inner().settings.unwrap_or_default();
        *self.order.lock() = settings.clone();
        Ok(Response::new(settings))
    }
}
