//! A control plane that answers as told, and keeps what it was asked.

use std::{
    collections::{HashMap, VecDeque},
    process::Output,
    sync::Arc,
};

use parking_lot::Mutex;
use tbmq_proto::control::{
    AccessRole, AuditEntry, Caller, CheckConnectionRequest, CheckConnectionResponse, ClearEventsRequest,
    ClearEventsResponse, ClearRetainedMessagesRequest, ClearRetainedMessagesResponse, ClearSessionRequest,
    ClearSessionsRequest, ClearSessionsResponse, ClientSubscription, ConnectionState,
    CreateIntegrationRequest, CreateTokenRequest, CreateTokenResponse, DeleteIntegrationRequest,
    DeleteRetainedMessageRequest, DisableIntegrationRequest, DisconnectSessionRequest,
    DisconnectSessionsRequest, DisconnectSessionsResponse, DrainNodeRequest, EnableIntegrationRequest, Event,
    ExplainTopicRequest, ExplainTopicResponse, GetCallerRequest, GetIntegrationRequest,
    GetIntegrationStatsRequest, GetRetainedMessageRequest, GetSessionCountsRequest, GetSessionRequest,
    Holder, Integration, IntegrationStats, IntegrationStatus, IntegrationView, Kind, Lag,
    ListAuditEntriesRequest, ListAuditEntriesResponse, ListEventsRequest, ListEventsResponse,
    ListIntegrationsRequest, ListIntegrationsResponse, ListKindsRequest, ListKindsResponse, ListNodesRequest,
    ListNodesResponse, ListRetainedMessagesRequest, ListRetainedMessagesResponse, ListSessionsRequest,
    ListSessionsResponse, ListSharedSubscriptionsRequest, ListSharedSubscriptionsResponse,
    ListSubscriptionsRequest, ListSubscriptionsResponse, ListTokensRequest, ListTokensResponse, Node,
    RestartIntegrationRequest, RetainedMessage, RetainedMessageProperties, RevokeTokenRequest,
    SearchSubscriptionsRequest, SearchSubscriptionsResponse, Session, SessionCounts, SessionDetails,
    SessionWill, SharedSubscription, SharedSubscriptionMember, Subscription, SystemInfo, Token,
    UpdateIntegrationRequest, UpdateSubscriptionsRequest, UserProperty, WatchEventsRequest,
    WatchEventsResponse, WatchIntegrationsRequest, WatchIntegrationsResponse,
    audit_service_server::{AuditService, AuditServiceServer},
    auth_provider_service_server::AuthProviderServiceServer,
    blocked_client_service_server::BlockedClientServiceServer,
    credentials_service_server::CredentialsServiceServer,
    event::{Body, Error, Lifecycle, Statistics},
    event_service_server::{EventService, EventServiceServer},
    integration_service_server::{IntegrationService, IntegrationServiceServer},
    integration_stats::Counters,
    integration_status::Phase,
    kafka_service_server::KafkaServiceServer,
    node_service_server::{NodeService, NodeServiceServer},
    retained_message_service_server::{RetainedMessageService, RetainedMessageServiceServer},
    session_service_server::{SessionService, SessionServiceServer},
    token_service_server::{TokenService, TokenServiceServer},
    unauthorized_client_service_server::UnauthorizedClientServiceServer,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    service::InterceptorLayer,
    transport::{Server, ServerTlsConfig},
};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::{auth_fake::AuthFake, kafka::KafkaFake, tbmqctl};

pub(crate) const UID: &str = "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a";

/// Keeps integrations in memory, two to a page; refuses the name `bad`.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    pub(crate) held: Arc<Mutex<Vec<Integration>>>,
    pub(crate) created: Arc<Mutex<Vec<CreateIntegrationRequest>>>,
    pub(crate) updated: Arc<Mutex<Vec<UpdateIntegrationRequest>>>,
    pub(crate) listed: Arc<Mutex<Vec<ListIntegrationsRequest>>>,
    pub(crate) restarted: Arc<Mutex<Vec<RestartIntegrationRequest>>>,
    pub(crate) deadlines: Arc<Mutex<Vec<String>>>,
    /// What each watch is told, in turn.
    pub(crate) told: Arc<Mutex<VecDeque<Vec<Told>>>>,
    pub(crate) watched: Arc<Mutex<Vec<WatchIntegrationsRequest>>>,
    /// A watch of which nothing more is told stays open.
    pub(crate) is_patient: Arc<Mutex<bool>>,
    pub(crate) events_listed: Arc<Mutex<Vec<ListEventsRequest>>>,
    pub(crate) events_cleared: Arc<Mutex<Vec<ClearEventsRequest>>>,
    pub(crate) events_told: Arc<Mutex<VecDeque<Vec<EventTold>>>>,
    pub(crate) events_watched: Arc<Mutex<Vec<WatchEventsRequest>>>,
    /// What was ended, cleared or deleted.
    pub(crate) ended: Arc<Mutex<Vec<String>>>,
    pub(crate) disconnected: Arc<Mutex<Vec<String>>>,
    pub(crate) drained: Arc<Mutex<Vec<String>>>,
    pub(crate) tokens_created: Arc<Mutex<Vec<CreateTokenRequest>>>,
    pub(crate) revoked: Arc<Mutex<Vec<String>>>,
    pub(crate) audit_listed: Arc<Mutex<Vec<ListAuditEntriesRequest>>>,
    /// Counters grow by so much with each look.
    pub(crate) step: Arc<Mutex<u64>>,
    looks: Arc<Mutex<u64>>,
    /// The header of each call.
    pub(crate) authorizations: Arc<Mutex<Vec<Option<String>>>>,
    /// What it must be, if anything.
    pub(crate) wanted: Arc<Mutex<Option<String>>>,
}

pub(crate) type Told = Result<WatchIntegrationsResponse, Status>;
pub(crate) type EventTold = Result<WatchEventsResponse, Status>;

pub(crate) fn refusal(code: Code, text: &str, reason: &str, violations: Vec<FieldViolation>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "tbmq", HashMap::new());
    details.set_bad_request(violations);
    Status::with_error_details(code, text, details)
}

/// The one that is wanted; what it is goes into the refusal.
pub(crate) fn find<T: Clone>(
    held: &Mutex<Vec<T>>,
    what: &str,
    is_wanted: impl Fn(&T) -> bool,
) -> Result<T, Status> {
    let found = held.lock().iter().find(|one| is_wanted(one)).cloned();
    found.ok_or_else(|| refusal(Code::NotFound, &format!("no such {what}"), "NOT_FOUND", vec![]))
}

/// A page of two, and the token of the next one.
pub(crate) fn page<T>(all: Vec<T>, token: &str) -> (Vec<T>, String) {
    let from: usize = token.parse().unwrap_or_default();
    let next = if all.len() > from + 2 { (from + 2).to_string() } else { String::new() };
    (all.into_iter().skip(from).take(2).collect(), next)
}

impl Fake {
    fn find(&self, name: &str) -> Result<Response<Integration>, Status> {
        find(&self.held, "integration", |one| one.name == name).map(Response::new)
    }

    fn admit(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let given =
            request.metadata().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
        self.authorizations.lock().push(given.clone());
        let wanted = self.wanted.lock().clone();
        if wanted.is_some() && wanted != given {
            return Err(refusal(Code::Unauthenticated, "a token is needed", "UNAUTHENTICATED", vec![]));
        }
        Ok(request)
    }
}

/// 2025-03-21T11:02:49.254Z and so many seconds.
pub(crate) fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: 1_742_554_969 + seconds, nanos: 254_000_000 })
}

#[tonic::async_trait]
impl IntegrationService for Fake {
    async fn create_integration(
        &self,
        request: Request<CreateIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        if let Some(deadline) = request.metadata().get("grpc-timeout") {
            self.deadlines.lock().push(deadline.to_str().unwrap_or_default().to_owned());
        }
        let request = request.into_inner();
        self.created.lock().push(request.clone());
        let mut integration = request.integration.unwrap_or_default();
        if integration.display_name == "bad" {
            let violations = vec![
                FieldViolation::new("configuration.topicFilters[0]", "is empty"),
                FieldViolation::new("configuration.clientConfiguration.restEndpointUrl", "has no host"),
            ];
            return Err(refusal(
                Code::InvalidArgument,
                "the integration is not valid",
                "INVALID_INTEGRATION",
                violations,
            ));
        }
        integration.uid =
            if request.integration_id.is_empty() { UID.to_owned() } else { request.integration_id.clone() };
        integration.name = format!("integrations/{}", integration.uid);
        integration.revision = 1;
        self.held.lock().push(integration.clone());
        Ok(Response::new(integration))
    }

    async fn get_integration(
        &self,
        request: Request<GetIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        self.find(&request.into_inner().name)
    }

    async fn list_integrations(
        &self,
        request: Request<ListIntegrationsRequest>,
    ) -> Result<Response<ListIntegrationsResponse>, Status> {
        let request = request.into_inner();
        self.listed.lock().push(request.clone());
        let mut found = self.held.lock().clone();
        found.retain(|one| one.display_name.contains(&request.text_search));
        let total_size = found.len() as i64;
        let (mut integrations, next_page_token) = page(found, &request.page_token);
        if request.view() != IntegrationView::Full {
            for status in integrations.iter_mut().filter_map(|one| one.status.as_mut()) {
                status.lag = None;
            }
        }
        Ok(Response::new(ListIntegrationsResponse { integrations, next_page_token, total_size }))
    }

    async fn update_integration(
        &self,
        request: Request<UpdateIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        self.updated.lock().push(request.clone());
        Ok(Response::new(request.integration.unwrap_or_default()))
    }

    async fn delete_integration(
        &self,
        request: Request<DeleteIntegrationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.find(&name)?;
        self.held.lock().retain(|one| one.name != name);
        Ok(Response::new(()))
    }

    async fn enable_integration(
        &self,
        request: Request<EnableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        self.find(&request.into_inner().name)
    }

    async fn disable_integration(
        &self,
        request: Request<DisableIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        self.find(&request.into_inner().name)
    }

    async fn restart_integration(
        &self,
        request: Request<RestartIntegrationRequest>,
    ) -> Result<Response<Integration>, Status> {
        let request = request.into_inner();
        self.restarted.lock().push(request.clone());
        self.find(&request.name)
    }

    async fn check_connection(
        &self,
        _: Request<CheckConnectionRequest>,
    ) -> Result<Response<CheckConnectionResponse>, Status> {
        Ok(Response::new(CheckConnectionResponse {
            error: "connection refused".to_owned(),
            executor_id: "ie1".to_owned(),
            ..CheckConnectionResponse::default()
        }))
    }

    async fn get_integration_stats(
        &self,
        request: Request<GetIntegrationStatsRequest>,
    ) -> Result<Response<IntegrationStats>, Status> {
        let one = self.find(&request.into_inner().name)?.into_inner();
        let mut looks = self.looks.lock();
        *looks += 1;
        let grown = *looks * *self.step.lock();
        Ok(Response::new(IntegrationStats {
            name: one.name,
            counters: Some(Counters {
                written: 1200 + grown,
                delivered: 1100 + grown,
                rejected: 2,
                skipped: 40,
                dead_lettered: 3,
                expired: 5,
                retries: 17,
            }),
            lag: Some(lag()),
            written_per_second: Some(12.5),
            settled_per_second: Some(25.0),
            time: at(9),
        }))
    }

    async fn explain_topic(
        &self,
        _: Request<ExplainTopicRequest>,
    ) -> Result<Response<ExplainTopicResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    type WatchIntegrationsStream = tokio_stream::wrappers::ReceiverStream<Told>;

    async fn watch_integrations(
        &self,
        request: Request<WatchIntegrationsRequest>,
    ) -> Result<Response<Self::WatchIntegrationsStream>, Status> {
        assert!(request.metadata().get("grpc-timeout").is_none(), "a watch has no end");
        self.watched.lock().push(request.into_inner());
        let told = self.told.lock().pop_front();
        let told = told.ok_or_else(|| refusal(Code::InvalidArgument, "enough", "ENOUGH", vec![]))?;
        Ok(Response::new(stream(told, *self.is_patient.lock())))
    }

    async fn list_kinds(&self, _: Request<ListKindsRequest>) -> Result<Response<ListKindsResponse>, Status> {
        let json_schema = r#"{ "type": "object" }"#.to_owned();
        let kind = Kind { name: "HTTP".to_owned(), json_schema, service_ids: vec![] };
        Ok(Response::new(ListKindsResponse { kinds: vec![kind] }))
    }
}

#[tonic::async_trait]
impl EventService for Fake {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        self.events_listed.lock().push(request.into_inner());
        Ok(Response::new(ListEventsResponse { events: events(), next_page_token: String::new() }))
    }

    type WatchEventsStream = tokio_stream::wrappers::ReceiverStream<EventTold>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        assert!(request.metadata().get("grpc-timeout").is_none(), "a watch has no end");
        self.events_watched.lock().push(request.into_inner());
        let told = self.events_told.lock().pop_front();
        let told = told.ok_or_else(|| refusal(Code::InvalidArgument, "enough", "ENOUGH", vec![]))?;
        Ok(Response::new(stream(told, false)))
    }

    async fn clear_events(
        &self,
        request: Request<ClearEventsRequest>,
    ) -> Result<Response<ClearEventsResponse>, Status> {
        self.events_cleared.lock().push(request.into_inner());
        Ok(Response::new(ClearEventsResponse { removed_count: 12 }))
    }
}

#[tonic::async_trait]
impl NodeService for Fake {
    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        Ok(Response::new(ListNodesResponse { nodes: nodes() }))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<Node>, Status> {
        let service_id = request.into_inner().service_id;
        let node = nodes().into_iter().find(|node| node.service_id == service_id);
        let node = node.ok_or_else(|| refusal(Code::NotFound, "no such node", "NOT_FOUND", vec![]))?;
        self.drained.lock().push(service_id);
        Ok(Response::new(Node { draining: true, ..node }))
    }
}

#[tonic::async_trait]
impl SessionService for Fake {
    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let request = request.into_inner();
        let mut sessions = sessions();
        sessions.retain(|one| one.client_id.contains(&request.text_search));
        let silent_nodes = vec!["dp2".to_owned()];
        Ok(Response::new(ListSessionsResponse { sessions, next_page_token: String::new(), silent_nodes }))
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<Session>, Status> {
        let client_id = request.into_inner().client_id;
        let found = sessions().into_iter().find(|one| one.client_id == client_id);
        let will = SessionWill { topic: "w".to_owned(), qos: 1, payload_bytes: 4, ..SessionWill::default() };
        let details = SessionDetails {
            expiry_seconds: 3600,
            will: Some(will),
            queued_messages: 3,
            queued_bytes: 300,
            in_flight: 1,
            transport: "TLS".to_owned(),
            common_names: vec!["device".to_owned()],
            receive_maximum: 100,
            ..SessionDetails::default()
        };
        found
            .map(|session| Response::new(Session { details: Some(details), ..session }))
            .ok_or_else(|| refusal(Code::NotFound, "no such client has a session", "NOT_FOUND", vec![]))
    }

    async fn get_session_counts(
        &self,
        _: Request<GetSessionCountsRequest>,
    ) -> Result<Response<SessionCounts>, Status> {
        let silent_nodes = vec!["dp2".to_owned()];
        let (connected, disconnected, total, devices, applications) = (5, 2, 7, 6, 1);
        let counts = SessionCounts { connected, disconnected, total, devices, applications, silent_nodes };
        Ok(Response::new(counts))
    }

    async fn disconnect_sessions(
        &self,
        request: Request<DisconnectSessionsRequest>,
    ) -> Result<Response<DisconnectSessionsResponse>, Status> {
        self.ended.lock().push(format!("{:?}", request.into_inner()));
        Ok(Response::new(DisconnectSessionsResponse { count: 4, ..Default::default() }))
    }

    async fn clear_session(&self, request: Request<ClearSessionRequest>) -> Result<Response<()>, Status> {
        if request.get_ref().client_id == "c1" {
            return Err(refusal(Code::FailedPrecondition, "c1 is connected", "SESSION_CONNECTED", vec![]));
        }
        self.ended.lock().push(format!("{:?}", request.into_inner()));
        Ok(Response::new(()))
    }

    async fn clear_sessions(
        &self,
        request: Request<ClearSessionsRequest>,
    ) -> Result<Response<ClearSessionsResponse>, Status> {
        self.ended.lock().push(format!("{:?}", request.into_inner()));
        Ok(Response::new(ClearSessionsResponse { count: 2, more: true, ..Default::default() }))
    }

    async fn search_subscriptions(
        &self,
        _: Request<SearchSubscriptionsRequest>,
    ) -> Result<Response<SearchSubscriptionsResponse>, Status> {
        let one = |client_id: &str, filter: &str| ClientSubscription {
            client_id: client_id.to_owned(),
            service_id: "dp1".to_owned(),
            state: ConnectionState::Connected.into(),
            subscription: Some(Subscription {
                filter: filter.to_owned(),
                qos: 2,
                identifier: Some(7),
                ..Subscription::default()
            }),
        };
        let subscriptions = vec![one("c1", "a/#"), one("c2", "b")];
        Ok(Response::new(SearchSubscriptionsResponse { subscriptions, ..Default::default() }))
    }

    async fn update_subscriptions(
        &self,
        request: Request<UpdateSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let subscriptions = request.into_inner().subscriptions;
        Ok(Response::new(ListSubscriptionsResponse { subscriptions }))
    }

    async fn list_shared_subscriptions(
        &self,
        _: Request<ListSharedSubscriptionsRequest>,
    ) -> Result<Response<ListSharedSubscriptionsResponse>, Status> {
        let member = |client_id: &str, state: ConnectionState| SharedSubscriptionMember {
            client_id: client_id.to_owned(),
            service_id: "dp1".to_owned(),
            client_type: "DEVICE".to_owned(),
            state: state.into(),
            qos: 1,
        };
        let group = SharedSubscription {
            share_name: "workers".to_owned(),
            filter: "jobs/+".to_owned(),
            member_count: 2,
            members: vec![
                member("c1", ConnectionState::Connected),
                member("c2", ConnectionState::Disconnected),
            ],
        };
        let shared_subscriptions = vec![group];
        Ok(Response::new(ListSharedSubscriptionsResponse { shared_subscriptions, ..Default::default() }))
    }

    async fn disconnect_session(
        &self,
        request: Request<DisconnectSessionRequest>,
    ) -> Result<Response<()>, Status> {
        self.disconnected.lock().push(request.into_inner().client_id);
        Ok(Response::new(()))
    }

    async fn list_subscriptions(
        &self,
        _: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let one = |filter: &str, share_name: &str| Subscription {
            filter: filter.to_owned(),
            qos: 1,
            share_name: share_name.to_owned(),
            ..Subscription::default()
        };
        let subscriptions = vec![one("sensors/#", ""), one("jobs/+", "workers")];
        Ok(Response::new(ListSubscriptionsResponse { subscriptions }))
    }
}

#[tonic::async_trait]
impl RetainedMessageService for Fake {
    async fn list_retained_messages(
        &self,
        _: Request<ListRetainedMessagesRequest>,
    ) -> Result<Response<ListRetainedMessagesResponse>, Status> {
        let binary = RetainedMessage {
            topic: "b".to_owned(),
            payload: vec![0, 159, 146, 150].into(),
            payload_bytes: 4,
            ..RetainedMessage::default()
        };
        let retained_messages = vec![retained("a"), binary];
        Ok(Response::new(ListRetainedMessagesResponse { retained_messages, ..Default::default() }))
    }

    async fn get_retained_message(
        &self,
        request: Request<GetRetainedMessageRequest>,
    ) -> Result<Response<RetainedMessage>, Status> {
        let properties = RetainedMessageProperties {
            content_type: "text/plain".to_owned(),
            user_properties: vec![UserProperty { key: "k".to_owned(), value: "v".to_owned() }],
            ..RetainedMessageProperties::default()
        };
        let message = retained(&request.into_inner().topic);
        Ok(Response::new(RetainedMessage { properties: Some(properties), ..message }))
    }

    async fn delete_retained_message(
        &self,
        request: Request<DeleteRetainedMessageRequest>,
    ) -> Result<Response<()>, Status> {
        self.ended.lock().push(format!("{:?}", request.into_inner()));
        Ok(Response::new(()))
    }

    async fn clear_retained_messages(
        &self,
        request: Request<ClearRetainedMessagesRequest>,
    ) -> Result<Response<ClearRetainedMessagesResponse>, Status> {
        self.ended.lock().push(format!("{:?}", request.into_inner()));
        Ok(Response::new(ClearRetainedMessagesResponse { count: 9, more: false }))
    }
}

fn retained(topic: &str) -> RetainedMessage {
    RetainedMessage {
        topic: topic.to_owned(),
        qos: 1,
        payload: "on\nline".into(),
        payload_bytes: 7,
        publish_time: at(0),
        publisher: "c1".to_owned(),
        ..RetainedMessage::default()
    }
}

#[tonic::async_trait]
impl TokenService for Fake {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let request = request.into_inner();
        self.tokens_created.lock().push(request.clone());
        let token =
            Token { name: "tokens/7".to_owned(), create_time: at(0), ..request.token.unwrap_or_default() };
        Ok(Response::new(CreateTokenResponse { token: Some(token), secret: "tbmq_s3cret".to_owned() }))
    }

    async fn list_tokens(
        &self,
        _: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let token = |name: &str, display_name: &str, role: AccessRole| Token {
            name: name.to_owned(),
            display_name: display_name.to_owned(),
            role: role.into(),
            create_time: at(0),
            ..Token::default()
        };
        let tokens = vec![
            Token { last_used_time: at(60), ..token("tokens/1", "ops", AccessRole::Admin) },
            Token { expire_time: at(86_400), ..token("tokens/2", "ci", AccessRole::Editor) },
            token("tokens/3", "twin", AccessRole::Viewer),
            token("tokens/4", "twin", AccessRole::Viewer),
        ];
        Ok(Response::new(ListTokensResponse { tokens, next_page_token: String::new() }))
    }

    async fn revoke_token(&self, request: Request<RevokeTokenRequest>) -> Result<Response<()>, Status> {
        self.revoked.lock().push(request.into_inner().name);
        Ok(Response::new(()))
    }

    async fn get_caller(&self, _: Request<GetCallerRequest>) -> Result<Response<Caller>, Status> {
        Ok(Response::new(Caller { principal: "token:ops".to_owned(), role: AccessRole::Admin.into() }))
    }
}

#[tonic::async_trait]
impl AuditService for Fake {
    async fn list_audit_entries(
        &self,
        request: Request<ListAuditEntriesRequest>,
    ) -> Result<Response<ListAuditEntriesResponse>, Status> {
        self.audit_listed.lock().push(request.into_inner());
        let entry = AuditEntry {
            uid: "01960000-0000-7000-8000-000000000001".to_owned(),
            time: at(5),
            principal: "token:ci".to_owned(),
            role: AccessRole::Editor.into(),
            peer_address: "10.0.0.7:51234".to_owned(),
            method: "tbmq.control.v1.IntegrationService/UpdateIntegration".to_owned(),
            resource: format!("integrations/{UID}"),
            etag_before: "e1".to_owned(),
            etag_after: "e2".to_owned(),
            result: "OK".to_owned(),
            error: String::new(),
            service_id: "cp1".to_owned(),
        };
        let denied = AuditEntry {
            uid: "01960000-0000-7000-8000-000000000000".to_owned(),
            time: at(1),
            principal: "anonymous".to_owned(),
            role: AccessRole::Unspecified.into(),
            method: "tbmq.control.v1.TokenService/CreateToken".to_owned(),
            resource: String::new(),
            etag_before: String::new(),
            etag_after: String::new(),
            result: "UNAUTHENTICATED".to_owned(),
            error: "a token is needed".to_owned(),
            ..entry.clone()
        };
        let entries = vec![entry, denied];
        Ok(Response::new(ListAuditEntriesResponse { entries, next_page_token: String::new() }))
    }
}

/// What is told, and then the end; or, if patient, nothing more.
fn stream<T: Send + 'static>(told: Vec<T>, is_patient: bool) -> tokio_stream::wrappers::ReceiverStream<T> {
    let (sender, receiver) = tokio::sync::mpsc::channel(told.len().max(1));
    for one in told {
        assert!(sender.try_send(one).is_ok(), "there is room");
    }
    if is_patient {
        tokio::spawn(async move { sender.closed().await });
    }
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

fn lag() -> Lag {
    Lag {
        messages: 50,
        seconds: 75.25,
        time_to_drain: Some(prost_types::Duration { seconds: 4, nanos: 0 }),
        kept_until: at(604_800),
        expired: 5,
        topic_removal_time: None,
    }
}

/// Two integrations with all that may be known of one.
pub(crate) fn examples() -> Vec<Integration> {
    let http = Integration {
        name: format!("integrations/{UID}"),
        uid: UID.to_owned(),
        display_name: "sensors".to_owned(),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json:
            r#"{"topicFilters":["sensors/#","a"],"clientConfiguration":{"restEndpointUrl":"http://h/"}}"#
                .to_owned(),
        labels: [("zone".to_owned(), "a".to_owned()), ("site".to_owned(), "north".to_owned())].into(),
        description: "to the warehouse".to_owned(),
        status: Some(IntegrationStatus {
            phase: Phase::Active.into(),
            service_id: "ie1".to_owned(),
            holders: vec![Holder {
                service_id: "ie1".to_owned(),
                role: "EXECUTOR".to_owned(),
                observed_revision: 7,
                state: "STARTED".to_owned(),
                update_time: at(2),
                ownership_epoch: 12,
                ..Holder::default()
            }],
            lag: Some(lag()),
            ..IntegrationStatus::default()
        }),
        revision: 7,
        etag: "e1".to_owned(),
        create_time: at(0),
        update_time: at(1),
        disconnected_time: None,
    };
    let kafka = Integration {
        name: "integrations/11111111-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
        uid: "11111111-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
        display_name: "lake".to_owned(),
        r#type: "KAFKA".to_owned(),
        configuration_json: r##"{"topicFilters":["#"],"clientConfiguration":{"topic":"t"}}"##.to_owned(),
        labels: HashMap::new(),
        description: String::new(),
        status: Some(IntegrationStatus {
            phase: Phase::Failed.into(),
            reason: "START_FAILED".to_owned(),
            error: "no broker answers".to_owned(),
            ..IntegrationStatus::default()
        }),
        revision: 8,
        ..http.clone()
    };
    vec![http, kafka]
}

pub(crate) fn events() -> Vec<Event> {
    let event = |uid: &str, seconds, body| Event {
        uid: format!("01960000-0000-7000-8000-{uid:0>12}"),
        integration: format!("integrations/{UID}"),
        time: at(seconds),
        service_id: "ie1".to_owned(),
        shard: 0,
        revision: 7,
        body: Some(body),
    };
    let error = Error { method: "onMsgProcess".to_owned(), error: "404 Not Found".to_owned(), count: 3 };
    let started = Lifecycle { event: "STARTED".to_owned(), success: true, error: String::new() };
    vec![
        event("3", 9, Body::Error(error)),
        event("2", 5, Body::Statistics(Statistics { messages_processed: 120, errors_occurred: 3 })),
        event("1", 1, Body::Lifecycle(started)),
    ]
}

fn nodes() -> Vec<Node> {
    let node = |service_id: &str, role: &str| Node {
        service_id: service_id.to_owned(),
        role: role.to_owned(),
        incarnation: "i".to_owned(),
        version: "0.1.0".to_owned(),
        addresses: vec!["10.0.0.1:1883".to_owned()],
        start_time: at(-60),
        last_seen_time: at(0),
        live: true,
        ..Node::default()
    };
    let system_info = SystemInfo {
        cpu_percent: 12,
        cpu_count: 8,
        memory_percent: 40,
        total_memory_bytes: 16 << 30,
        disk_percent: 50,
        total_disk_bytes: 100 << 30,
    };
    vec![
        Node { session: true, connections: 42, system_info: Some(system_info), ..node("dp1", "DATA_PLANE") },
        Node { kinds: vec!["HTTP".to_owned(), "KAFKA".to_owned()], live: false, ..node("ie1", "EXECUTOR") },
    ]
}

fn sessions() -> Vec<Session> {
    let session = |client_id: &str, username: &str| Session {
        client_id: client_id.to_owned(),
        service_id: "dp1".to_owned(),
        username: username.to_owned(),
        protocol_version: 5,
        clean_start: true,
        keep_alive_seconds: 60,
        peer_address: "10.0.0.9:40000".to_owned(),
        connect_time: at(0),
        subscription_count: 2,
        client_type: "DEVICE".to_owned(),
        authentication: if username.is_empty() { String::new() } else { "MQTT_BASIC: ours".to_owned() },
        state: ConnectionState::Connected.into(),
        session_id: UID.to_owned(),
        ..Session::default()
    };
    let away = Session {
        state: ConnectionState::Disconnected.into(),
        disconnect_time: at(60),
        persistent: true,
        ..session("c2", "")
    };
    vec![session("c1", "alice"), away]
}

pub(crate) struct Served {
    pub(crate) fake: Fake,
    pub(crate) auth: AuthFake,
    pub(crate) kafka: KafkaFake,
    pub(crate) address: String,
    _runtime: tokio::runtime::Runtime,
}

pub(crate) fn serve() -> Served {
    serve_with(None)
}

pub(crate) fn serve_with(tls: Option<ServerTlsConfig>) -> Served {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = format!("{scheme}://{}", listener.local_addr().expect("a bound address"));
    let (fake, auth, kafka) = (Fake::default(), AuthFake::default(), KafkaFake::default());
    let gate = fake.clone();
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = runtime.block_on(async { server.tls_config(tls) }).expect("TLS works");
    }
    let server = server
        .layer(InterceptorLayer::new(move |request| gate.admit(request)))
        .add_service(IntegrationServiceServer::new(fake.clone()))
        .add_service(EventServiceServer::new(fake.clone()))
        .add_service(NodeServiceServer::new(fake.clone()))
        .add_service(SessionServiceServer::new(fake.clone()))
        .add_service(RetainedMessageServiceServer::new(fake.clone()))
        .add_service(KafkaServiceServer::new(kafka.clone()))
        .add_service(TokenServiceServer::new(fake.clone()))
        .add_service(AuditServiceServer::new(fake.clone()))
        .add_service(CredentialsServiceServer::new(auth.clone()))
        .add_service(BlockedClientServiceServer::new(auth.clone()))
        .add_service(UnauthorizedClientServiceServer::new(auth.clone()))
        .add_service(AuthProviderServiceServer::new(auth.clone()));
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Served { fake, auth, kafka, address, _runtime: runtime }
}

impl Served {
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        tbmqctl(arguments).env("TBMQCTL_SERVER", &self.address).output().expect("tbmqctl starts")
    }

    pub(crate) fn hold(&self, names: &[&str]) {
        let mut held = self.fake.held.lock();
        held.extend(names.iter().enumerate().map(|(index, name)| {
            let uid = format!("0e2ffa8e-52c9-4a3f-8d0f-{index:012}");
            Integration {
                name: format!("integrations/{uid}"),
                uid,
                display_name: (*name).to_owned(),
                r#type: "HTTP".to_owned(),
                etag: "e1".to_owned(),
                configuration_json: r#"{"topicFilters":["a"],"clientConfiguration":{}}"#.to_owned(),
                ..Integration::default()
            }
        }));
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
