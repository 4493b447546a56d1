//! Who may call what, by which proof, and what the audit log tells of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use prost::Message;
use prost_types::FileDescriptorSet;
use tbmq_control_plane::Config;
use tbmq_proto::control::{
    AccessRole, AuditEntry, Caller, CreateTokenRequest, CreateTokenResponse, DeleteIntegrationRequest,
    GetCallerRequest, Integration, ListAuditEntriesRequest, ListAuditEntriesResponse, ListTokensRequest,
    ListTokensResponse, RevokeTokenRequest, Token, UpdateIntegrationRequest, WatchIntegrationsRequest,
    WatchIntegrationsResponse,
};
use tbmq_service::config::Secret;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::support::{Cluster, ControlPlane, Verdict, eventually, integration, reason};

const ADMIN: &str = "the-first-token-of-all";

/// The least role of each method, as the API's contract says; `None`: open to all.
const CONTRACT: &[(&str, Option<AccessRole>)] = {
    use AccessRole::{Admin, Editor, Node, Operator, Viewer};
    &[
        ("tbmq.control.v1.IntegrationService/GetIntegration", Some(Viewer)),
        ("tbmq.control.v1.IntegrationService/ListIntegrations", Some(Viewer)),
        ("tbmq.control.v1.IntegrationService/ListKinds", Some(Viewer)),
        ("tbmq.control.v1.IntegrationService/GetIntegrationStats", Some(Viewer)),
        ("tbmq.control.v1.IntegrationService/ExplainTopic", Some(Viewer)),
        ("tbmq.control.v1.IntegrationService/WatchIntegrations", Some(Viewer)),
        ("tbmq.control.v1.IntegrationService/EnableIntegration", Some(Operator)),
        ("tbmq.control.v1.IntegrationService/DisableIntegration", Some(Operator)),
        ("tbmq.control.v1.IntegrationService/RestartIntegration", Some(Operator)),
        ("tbmq.control.v1.IntegrationService/CheckConnection", Some(Operator)),
        ("tbmq.control.v1.IntegrationService/CreateIntegration", Some(Editor)),
        ("tbmq.control.v1.IntegrationService/UpdateIntegration", Some(Editor)),
        ("tbmq.control.v1.IntegrationService/DeleteIntegration", Some(Editor)),
        ("tbmq.control.v1.EventService/ListEvents", Some(Viewer)),
        ("tbmq.control.v1.EventService/WatchEvents", Some(Viewer)),
        ("tbmq.control.v1.EventService/ClearEvents", Some(Editor)),
        ("tbmq.control.v1.NodeService/ListNodes", Some(Viewer)),
        ("tbmq.control.v1.NodeService/DrainNode", Some(Operator)),
        ("tbmq.control.v1.SessionService/ListSessions", Some(Viewer)),
        ("tbmq.control.v1.SessionService/GetSession", Some(Viewer)),
        ("tbmq.control.v1.SessionService/ListSubscriptions", Some(Viewer)),
        ("tbmq.control.v1.SessionService/DisconnectSession", Some(Operator)),
        ("tbmq.control.v1.SessionService/GetSessionCounts", Some(Viewer)),
        ("tbmq.control.v1.SessionService/DisconnectSessions", Some(Operator)),
        ("tbmq.control.v1.SessionService/ClearSession", Some(Operator)),
        ("tbmq.control.v1.SessionService/ClearSessions", Some(Operator)),
        ("tbmq.control.v1.SessionService/SearchSubscriptions", Some(Viewer)),
        ("tbmq.control.v1.SessionService/UpdateSubscriptions", Some(Editor)),
        ("tbmq.control.v1.SessionService/ListSharedSubscriptions", Some(Viewer)),
        ("tbmq.control.v1.RetainedMessageService/ListRetainedMessages", Some(Viewer)),
        ("tbmq.control.v1.RetainedMessageService/GetRetainedMessage", Some(Viewer)),
        ("tbmq.control.v1.RetainedMessageService/DeleteRetainedMessage", Some(Operator)),
        ("tbmq.control.v1.RetainedMessageService/ClearRetainedMessages", Some(Operator)),
        ("tbmq.control.v1.TokenService/GetCaller", Some(Viewer)),
        ("tbmq.control.v1.TokenService/CreateToken", Some(Admin)),
        ("tbmq.control.v1.TokenService/ListTokens", Some(Admin)),
        ("tbmq.control.v1.TokenService/RevokeToken", Some(Admin)),
        ("tbmq.control.v1.AuditService/ListAuditEntries", Some(Admin)),
        ("tbmq.control.v1.CredentialsService/CreateCredentials", Some(Editor)),
        ("tbmq.control.v1.CredentialsService/GetCredentials", Some(Viewer)),
        ("tbmq.control.v1.CredentialsService/ListCredentials", Some(Viewer)),
        ("tbmq.control.v1.CredentialsService/UpdateCredentials", Some(Editor)),
        ("tbmq.control.v1.CredentialsService/DeleteCredentials", Some(Editor)),
        ("tbmq.control.v1.CredentialsService/ChangePassword", Some(Editor)),
        ("tbmq.control.v1.CredentialsService/ImportCredentials", Some(Editor)),
        ("tbmq.control.v1.BlockedClientService/CreateBlockedClient", Some(Operator)),
        ("tbmq.control.v1.BlockedClientService/GetBlockedClient", Some(Viewer)),
        ("tbmq.control.v1.BlockedClientService/ListBlockedClients", Some(Viewer)),
        ("tbmq.control.v1.BlockedClientService/UpdateBlockedClient", Some(Operator)),
        ("tbmq.control.v1.BlockedClientService/DeleteBlockedClient", Some(Operator)),
        ("tbmq.control.v1.UnauthorizedClientService/GetUnauthorizedClient", Some(Viewer)),
        ("tbmq.control.v1.UnauthorizedClientService/ListUnauthorizedClients", Some(Viewer)),
        ("tbmq.control.v1.UnauthorizedClientService/DeleteUnauthorizedClient", Some(Operator)),
        ("tbmq.control.v1.UnauthorizedClientService/ClearUnauthorizedClients", Some(Operator)),
        ("tbmq.control.v1.AuthProviderService/GetAuthProvider", Some(Viewer)),
        ("tbmq.control.v1.AuthProviderService/ListAuthProviders", Some(Viewer)),
        ("tbmq.control.v1.AuthProviderService/UpdateAuthProvider", Some(Admin)),
        ("tbmq.control.v1.AuthProviderService/GetAuthSettings", Some(Viewer)),
        ("tbmq.control.v1.AuthProviderService/UpdateAuthSettings", Some(Admin)),
        ("tbmq.control.v1.KafkaService/GetCluster", Some(Viewer)),
        ("tbmq.control.v1.KafkaService/GetTopic", Some(Viewer)),
        ("tbmq.control.v1.KafkaService/ListTopics", Some(Viewer)),
        ("tbmq.control.v1.KafkaService/DeleteOrphanTopics", Some(Admin)),
        ("tbmq.control.v1.KafkaService/GetConsumerGroup", Some(Viewer)),
        ("tbmq.control.v1.KafkaService/ListConsumerGroups", Some(Viewer)),
        ("tbmq.control.v1.KafkaService/DeleteConsumerGroup", Some(Admin)),
        ("tbmq.control.v1.KafkaService/ListGroupLags", Some(Viewer)),
        ("tbmq.node.v1.NodeSessionService/Session", Some(Node)),
        ("tbmq.node.v1.NodeForwardService/Forward", Some(Node)),
        ("grpc.health.v1.Health/Check", None),
        ("grpc.health.v1.Health/Watch", None),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Some(Viewer)),
        ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Some(Viewer)),
    ]
};

const ROLES: [AccessRole; 5] =
    [AccessRole::Viewer, AccessRole::Operator, AccessRole::Editor, AccessRole::Admin, AccessRole::Node];

fn with_admin(config: &mut Config) {
    config.control.auth.admin_token = Secret::new(ADMIN);
}

/// Opens any method with one message; the status is what came before the first answer.
async fn open<Q, A>(
    channel: &Channel,
    method: &str,
    token: Option<&str>,
    message: Q,
) -> Result<Streaming<A>, Status>
where
    Q: Message + Default + Clone + 'static,
    A: Message + Default + 'static,
{
    let mut request = Request::new(tokio_stream::once(message));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let path = format!("/{method}").parse().unwrap();
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let opened = client.streaming(request, path, ProstCodec::<Q, A>::default());
    let opened = tokio::time::timeout(Duration::from_secs(20), opened).await;
    opened.unwrap_or_else(|_| panic!("{method} does not answer")).map(tonic::Response::into_inner)
}

async fn call<Q, A>(channel: &Channel, method: &str, token: &str, message: Q) -> Result<A, Status>
where
    Q: Message + Default + Clone + 'static,
    A: Message + Default + 'static,
{
    let method = format!("tbmq.control.v1.{method}");
    let mut answers = open(channel, &method, Some(token), message).await?;
    Ok(answers.message().await?.unwrap())
}

async fn create_token(channel: &Channel, name: &str, role: AccessRole) -> CreateTokenResponse {
    let token = Token { display_name: name.to_owned(), role: role.into(), ..Token::default() };
    let request = CreateTokenRequest { token: Some(token) };
    call(channel, "TokenService/CreateToken", ADMIN, request).await.unwrap()
}

async fn audit(channel: &Channel, request: ListAuditEntriesRequest) -> ListAuditEntriesResponse {
    call(channel, "AuditService/ListAuditEntries", ADMIN, request).await.unwrap()
}

async fn entries_of(channel: &Channel, method: &str) -> Vec<AuditEntry> {
    let request = ListAuditEntriesRequest { method: method.to_owned(), ..ListAuditEntriesRequest::default() };
    audit(channel, request).await.entries
}

/// Every method that the server's own descriptors name.
fn described() -> BTreeSet<String> {
    let sets = [
        tbmq_proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut names = BTreeSet::new();
    for set in sets {
        for file in FileDescriptorSet::decode(set).unwrap().file {
            for service in &file.service {
                for method in &service.method {
                    names.insert(format!("{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
    }
    names
}

fn is_enough(held: AccessRole, least: AccessRole) -> bool {
    if held == AccessRole::Node || least == AccessRole::Node { held == least } else { held >= least }
}

#[tokio::test]
async fn every_method_answers_every_role_as_the_contract_says() {
    let listed: BTreeSet<String> = CONTRACT.iter().map(|(method, _)| (*method).to_owned()).collect();
    assert_eq!(listed, described(), "the contract lists every method");
    let cluster = Cluster::new();
    let control = cluster.control_plane_with("cp1", with_admin).await;
    let mut callers: BTreeMap<String, Option<AccessRole>> = BTreeMap::new();
    for role in ROLES {
        let made = create_token(&control.channel, role.as_str_name(), role).await;
        callers.insert(made.secret, Some(role));
    }
    callers.insert(ADMIN.to_owned(), Some(AccessRole::Admin));
    for bad in ["tbmq_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "the-first-token-of-al", "a.b.c", ""] {
        callers.insert(bad.to_owned(), None);
    }
    let credentials =
        callers.iter().map(|(secret, role)| (Some(secret.as_str()), *role)).chain([(None, None)]);
    let mut checked = 0;
    for (secret, held) in credentials {
        for (method, least) in CONTRACT {
            let answer = open::<(), ()>(&control.channel, method, secret, ()).await;
            let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
            let refused = matches!(code, Code::Unauthenticated | Code::PermissionDenied);
            let place = format!("{method} as {held:?}: {:?}", answer.as_ref().err());
            match (held, least) {
                (_, None) => assert_eq!(code, Code::Ok, "{place}"),
                (None, Some(_)) => assert_eq!(code, Code::Unauthenticated, "{place}"),
                (Some(held), Some(least)) if is_enough(held, *least) => assert!(!refused, "{place}"),
                (Some(_), Some(_)) => assert_eq!(code, Code::PermissionDenied, "{place}"),
            }
            if let (true, Err(status), Some(least)) = (refused, &answer, least) {
                let expected = if held.is_none() { "UNAUTHENTICATED" } else { "PERMISSION_DENIED" };
                assert_eq!(reason(status), (code, expected.to_owned()), "{place}");
                let role = least.as_str_name().trim_start_matches("ACCESS_ROLE_");
                assert!(status.message().contains(&format!("the role {role}")), "{place}");
            }
            checked += 1;
        }
    }
    assert_eq!(checked, CONTRACT.len() * 11);
    // A method that is not there is no way around the table.
    let status = open::<(), ()>(&control.channel, "tbmq.control.v1.TokenService/Nothing", None, ()).await;
    assert_eq!(status.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn without_settings_everybody_may_do_everything_and_is_anonymous() {
    let cluster = Cluster::new();
    let control = cluster.control_plane("cp1").await;
    for (method, _) in CONTRACT {
        let code =
            open::<(), ()>(&control.channel, method, None, ()).await.map_or_else(|s| s.code(), |_| Code::Ok);
        assert!(!matches!(code, Code::Unauthenticated | Code::PermissionDenied), "{method}: {code:?}");
    }
    let caller: Caller =
        call(&control.channel, "TokenService/GetCaller", "whatever", GetCallerRequest {}).await.unwrap();
    assert_eq!((caller.principal.as_str(), caller.role()), ("anonymous", AccessRole::Admin));
}

#[tokio::test]
async fn a_token_is_shown_once_listed_without_its_secret_and_tells_who_calls() {
    let cluster = Cluster::new();
    let control = cluster.control_plane_with("cp1", with_admin).await;
    let channel = &control.channel;
    let made = create_token(channel, "ci", AccessRole::Editor).await;
    assert!(made.secret.starts_with("tbmq_") && made.secret.len() == 48, "{}", made.secret);
    let caller: Caller =
        call(channel, "TokenService/GetCaller", &made.secret, GetCallerRequest {}).await.unwrap();
    assert_eq!((caller.principal.as_str(), caller.role()), ("token:ci", AccessRole::Editor));

    for n in 0..3 {
        create_token(channel, &format!("t{n}"), AccessRole::Viewer).await;
    }
    let mut names = Vec::new();
    let mut request = ListTokensRequest { page_size: 3, ..ListTokensRequest::default() };
    loop {
        let page: ListTokensResponse =
            call(channel, "TokenService/ListTokens", ADMIN, request.clone()).await.unwrap();
        assert!(!format!("{page:?}").contains(&made.secret));
        names.extend(page.tokens.into_iter().map(|token| token.display_name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names, ["ci", "t0", "t1", "t2"]);
    let listed = async || {
        let request = ListTokensRequest::default();
        let page: ListTokensResponse =
            call(channel, "TokenService/ListTokens", ADMIN, request).await.unwrap();
        page.tokens.into_iter().find(|token| token.display_name == "ci").unwrap()
    };
    eventually("the use is noted", async || listed().await.last_used_time.is_some()).await;
    assert_eq!(listed().await.last_used_time.unwrap().seconds % 60, 0, "to the minute");
}

#[tokio::test]
async fn tokens_that_make_no_sense_are_refused_with_their_field() {
    let cluster = Cluster::new();
    let control = cluster.control_plane_with("cp1", with_admin).await;
    let good = Token { display_name: "a".to_owned(), role: AccessRole::Viewer.into(), ..Token::default() };
    let cases = [
        (None, "token"),
        (Some(Token { display_name: " ".to_owned(), ..good.clone() }), "token.display_name"),
        (Some(Token { display_name: "a\0".to_owned(), ..good.clone() }), "token.display_name"),
        (Some(Token { role: 0, ..good.clone() }), "token.role"),
        (Some(Token { role: 77, ..good.clone() }), "token.role"),
        (
            Some(Token { expire_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }), ..good }),
            "token.expire_time",
        ),
    ];
    for (token, field) in cases {
        let request = CreateTokenRequest { token };
        let answer =
            call::<_, CreateTokenResponse>(&control.channel, "TokenService/CreateToken", ADMIN, request);
        let status = answer.await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(crate::support::fields(&status), [field]);
    }
    let revoke = async |name: &str| {
        let request = RevokeTokenRequest { name: name.to_owned() };
        call::<_, ()>(&control.channel, "TokenService/RevokeToken", ADMIN, request).await.unwrap_err().code()
    };
    assert_eq!(revoke("tokens/x").await, Code::InvalidArgument);
    assert_eq!(revoke("tokens/00000000-0000-0000-0000-000000000000").await, Code::NotFound);
}

#[tokio::test]
async fn a_revoked_token_ends_at_once_here_and_within_5_s_elsewhere_also_in_open_streams() {
    let cluster = Cluster::new();
    let first = cluster.control_plane_with("cp1", with_admin).await;
    let second = cluster.control_plane_with("cp2", with_admin).await;
    let made = create_token(&first.channel, "ci", AccessRole::Viewer).await;
    let caller = async |control: &ControlPlane| {
        call::<_, Caller>(&control.channel, "TokenService/GetCaller", &made.secret, GetCallerRequest {}).await
    };
    caller(&first).await.unwrap();
    caller(&second).await.unwrap();
    let method = "tbmq.control.v1.IntegrationService/WatchIntegrations";
    let request = WatchIntegrationsRequest::default();
    let mut watch: Streaming<WatchIntegrationsResponse> =
        open(&second.channel, method, Some(&made.secret), request).await.unwrap();

    let revoke = RevokeTokenRequest { name: made.token.unwrap().name };
    call::<_, ()>(&first.channel, "TokenService/RevokeToken", ADMIN, revoke).await.unwrap();
    let revoked = Instant::now();
    assert_eq!(caller(&first).await.unwrap_err().code(), Code::Unauthenticated);
    eventually("refused elsewhere", async || caller(&second).await.is_err()).await;
    assert!(revoked.elapsed() < Duration::from_secs(7), "{:?}", revoked.elapsed());
    let end = tokio::time::timeout(Duration::from_secs(15), async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        }
    });
    let status = end.await.unwrap().unwrap_err();
    assert_eq!(reason(&status), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()));
}

#[tokio::test]
async fn the_audit_log_tells_who_changed_what_from_which_to_which_etag() {
    let cluster = Cluster::new();
    let control = cluster.control_plane_with("cp1", with_admin).await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let channel = &control.channel;
    let editor = create_token(channel, "ci", AccessRole::Editor).await.secret;
    let viewer = create_token(channel, "eye", AccessRole::Viewer).await.secret;

    let request = tbmq_proto::control::CreateIntegrationRequest {
        integration: Some(integration("one")),
        ..Default::default()
    };
    let created: Integration =
        call(channel, "IntegrationService/CreateIntegration", &editor, request).await.unwrap();
    let update = |integration: Integration| UpdateIntegrationRequest {
        integration: Some(integration),
        ..UpdateIntegrationRequest::default()
    };
    let changed = Integration { description: "new".to_owned(), ..created.clone() };
    let updated: Integration =
        call(channel, "IntegrationService/UpdateIntegration", &editor, update(changed)).await.unwrap();
    let stale = Integration { description: "x".to_owned(), ..created.clone() };
    call::<_, Integration>(channel, "IntegrationService/UpdateIntegration", &editor, update(stale))
        .await
        .unwrap_err();
    let delete = DeleteIntegrationRequest { name: created.name.clone(), ..Default::default() };
    call::<_, ()>(channel, "IntegrationService/DeleteIntegration", &viewer, delete.clone())
        .await
        .unwrap_err();
    call::<_, ()>(channel, "IntegrationService/DeleteIntegration", &editor, delete).await.unwrap();

    // Refused calls are written a moment later.
    eventually("all are told", async || entries_of(channel, "integrationservice").await.len() == 5).await;
    let mut told = entries_of(channel, "integrationservice").await;
    told.sort_by(|a, b| a.uid.cmp(&b.uid));
    let shown: Vec<_> = told
        .iter()
        .map(|entry| {
            let (_, method) = entry.method.split_once('/').unwrap();
            let principal = entry.principal.as_str();
            (principal, method, entry.etag_before.as_str(), entry.etag_after.as_str(), entry.result.as_str())
        })
        .collect();
    let (first, second) = (created.etag.as_str(), updated.etag.as_str());
    assert_eq!(
        shown,
        [
            ("token:ci", "CreateIntegration", "", first, "OK"),
            ("token:ci", "UpdateIntegration", first, second, "OK"),
            ("token:ci", "UpdateIntegration", second, "", "ABORTED"),
            ("token:eye", "DeleteIntegration", "", "", "PERMISSION_DENIED"),
            ("token:ci", "DeleteIntegration", second, "", "OK"),
        ]
    );
    for (i, entry) in told.iter().enumerate() {
        let expected = if i == 3 { "" } else { created.name.as_str() };
        assert_eq!(entry.resource, expected);
        assert!(entry.peer_address.starts_with("127.0.0.1:"), "{entry:?}");
        assert_eq!((entry.service_id.as_str(), entry.error.is_empty()), ("cp1", entry.result == "OK"));
    }
    let everything = format!("{:?}", audit(channel, ListAuditEntriesRequest::default()).await);
    for secret in [editor.as_str(), viewer.as_str(), ADMIN, "s3cret"] {
        assert!(!everything.contains(secret), "{everything}");
    }
}

#[tokio::test]
async fn the_audit_log_is_filtered_and_read_in_pages() {
    let cluster = Cluster::new();
    let control = cluster.control_plane_with("cp1", with_admin).await;
    let channel = &control.channel;
    for n in 0..5 {
        create_token(channel, &format!("t{n}"), AccessRole::Viewer).await;
    }
    let refused = open::<(), ()>(channel, "tbmq.control.v1.TokenService/ListTokens", Some("x"), ()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let all = async || audit(channel, ListAuditEntriesRequest::default()).await.entries;
    eventually("the refused call is told", async || all().await.len() == 6).await;
    let all = all().await;

    let mut paged = Vec::new();
    let mut request = ListAuditEntriesRequest { page_size: 4, ..ListAuditEntriesRequest::default() };
    loop {
        let page = audit(channel, request.clone()).await;
        paged.extend(page.entries);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(paged, all);
    assert!(all.is_sorted_by(|a, b| {
        let time = |entry: &AuditEntry| entry.time.map(|time| (time.seconds, time.nanos));
        time(a) >= time(b)
    }));

    let count = async |request: ListAuditEntriesRequest| audit(channel, request).await.entries.len();
    let none = ListAuditEntriesRequest::default();
    assert_eq!(
        count(ListAuditEntriesRequest { result: "unauthenticated".to_owned(), ..none.clone() }).await,
        1
    );
    assert_eq!(count(ListAuditEntriesRequest { principal: "TOKEN:adm".to_owned(), ..none.clone() }).await, 5);
    assert_eq!(count(ListAuditEntriesRequest { resource: "tokens/".to_owned(), ..none.clone() }).await, 5);
    assert_eq!(count(ListAuditEntriesRequest { method: "100%".to_owned(), ..none.clone() }).await, 0);
    let newest = all[0].time;
    assert_eq!(count(ListAuditEntriesRequest { start_time: newest, ..none.clone() }).await, {
        all.iter().filter(|entry| entry.time == newest).count()
    });
    assert_eq!(count(ListAuditEntriesRequest { end_time: all[5].time, ..none.clone() }).await, 0);

    // A token belongs to its question.
    let other =
        ListAuditEntriesRequest { page_token: request.page_token, method: "x".to_owned(), ..none.clone() };
    let status =
        call::<_, ListAuditEntriesResponse>(channel, "AuditService/ListAuditEntries", ADMIN, other).await;
    assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
    let nul = ListAuditEntriesRequest { principal: "\0".to_owned(), ..none };
    let status =
        call::<_, ListAuditEntriesResponse>(channel, "AuditService/ListAuditEntries", ADMIN, nul).await;
    assert_eq!(crate::support::fields(&status.unwrap_err()), ["principal"]);
}

#[tokio::test]
async fn a_jwt_gives_the_role_that_it_names_and_none_without_one() {
    use jsonwebtoken::{EncodingKey, Header};
    const SECRET: &str = "a secret of thirty-two bytes, or more";
    let cluster = Cluster::new();
    let control = cluster
        .control_plane_with("cp1", |config| config.control.auth.jwt.secret = Secret::new(SECRET))
        .await;
    let token = |role: &str, life_sec: i64| {
        let exp = tbmq_service::time::now_ms() / 1_000 + life_sec;
        let claims = serde_json::json!({ "sub": "alice", "exp": exp, "tbmq_role": role });
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes()))
            .unwrap()
    };
    let caller = async |token: String| {
        call::<_, Caller>(&control.channel, "TokenService/GetCaller", &token, GetCallerRequest {}).await
    };
    let known = caller(token("OPERATOR", 600)).await.unwrap();
    assert_eq!((known.principal.as_str(), known.role()), ("jwt:alice", AccessRole::Operator));
    assert_eq!(caller(token("root", 600)).await.unwrap_err().code(), Code::PermissionDenied);
    let expired = caller(token("ADMIN", -600)).await.unwrap_err();
    assert_eq!(expired.code(), Code::Unauthenticated);
    assert!(expired.message().contains("it has expired"), "{expired:?}");
    assert!(expired.get_error_details().error_info().is_some());
}
