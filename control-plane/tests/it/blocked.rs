//! Blocked clients by the API: on their topic as TBMQ has them, until they are removed.

use prost::Message as _;
use tbmq_control_plane::{
    Config,
    config::DatabaseUrl,
    store::{Options, Store},
};
use tbmq_harness::{Need, ready};
use tbmq_proto::{
    control::{
        BlockedClient, CreateBlockedClientRequest, DeleteBlockedClientRequest, GetBlockedClientRequest,
        ListBlockedClientsRequest, UpdateBlockedClientRequest,
        blocked_client::{RegexMatchTarget, Status as Held, Type},
        blocked_client_service_client::BlockedClientServiceClient,
    },
    queue::{BlockedClientProto, BlockedClientTypeProto, RegexMatchTargetProto},
};
use tonic::{Code, Response, Status, transport::Channel};

use crate::support::{Cluster, eventually, fields, reason};

type Client = BlockedClientServiceClient<Channel>;

fn blocked(kind: Type, value: &str) -> BlockedClient {
    BlockedClient { r#type: kind.into(), value: value.to_owned(), ..BlockedClient::default() }
}

fn in_seconds(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: tbmq_service::time::now_ms() / 1_000 + seconds, nanos: 0 })
}

async fn create(client: &Client, blocked: BlockedClient) -> Result<BlockedClient, Status> {
    let request = CreateBlockedClientRequest { blocked_client: Some(blocked) };
    client.clone().create_blocked_client(request).await.map(Response::into_inner)
}

async fn values(client: &Client, request: ListBlockedClientsRequest) -> Vec<String> {
    let (mut values, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListBlockedClientsRequest { page_token, page_size: 2, ..request.clone() };
        let page = client.clone().list_blocked_clients(request).await.unwrap().into_inner();
        values.extend(page.blocked_clients.into_iter().map(|one| one.value));
        if page.next_page_token.is_empty() {
            return values;
        }
        page_token = page.next_page_token;
    }
}

async fn record(cluster: &Cluster, key: &str) -> Option<BlockedClientProto> {
    let held = cluster.latest(&cluster.catalogue.blocked_clients().name).await.remove(key);
    held.and_then(|(_, value)| value).map(|value| BlockedClientProto::decode(value).unwrap())
}

async fn contract(configure: impl Fn(&mut Config)) {
    let cluster = Cluster::new();
    let plane = cluster.control_plane_with("cp1", configure).await;
    let client = BlockedClientServiceClient::new(plane.channel.clone());

    let by_id = create(&client, blocked(Type::ClientId, "a/b c")).await.unwrap();
    assert_eq!((by_id.name.as_str(), by_id.status()), ("blockedClients/clientId:a%2Fb%20c", Held::Active));
    let held = record(&cluster, "clientId:a/b c").await.expect("an answered call was written");
    let expected = BlockedClientProto {
        r#type: BlockedClientTypeProto::BlockedClientTypeClientId.into(),
        value: "a/b c".to_owned(),
        ..BlockedClientProto::default()
    };
    assert_eq!(held, expected);
    let regex = BlockedClient {
        regex_match_target: RegexMatchTarget::ByUsername.into(),
        description: "why".to_owned(),
        expire_time: in_seconds(3_600),
        ..blocked(Type::Regex, "guest.*")
    };
    let by_regex = create(&client, regex).await.unwrap();
    let held = record(&cluster, "regex:guest.*:byUN").await.unwrap();
    assert_eq!(held.regex_match_target(), RegexMatchTargetProto::RegexMatchTargetByUsername);
    assert_eq!(held.expiration_time, by_regex.expire_time.unwrap().seconds * 1_000);
    assert_eq!(held.description.as_deref(), Some("why"));
    let network = create(&client, blocked(Type::IpAddress, "10.1.2.3/8")).await.unwrap();
    assert_eq!(network.value, "10.0.0.0/8", "as it is matched");
    create(&client, blocked(Type::Username, "mallory")).await.unwrap();

    let again = create(&client, blocked(Type::ClientId, "a/b c")).await.unwrap_err();
    assert_eq!(reason(&again), (Code::AlreadyExists, "ALREADY_BLOCKED".to_owned()));
    for (bad, field) in [
        (blocked(Type::Unspecified, "x"), "blocked_client.type"),
        (blocked(Type::ClientId, ""), "blocked_client.value"),
        (blocked(Type::IpAddress, "10.0.0.0/99"), "blocked_client.value"),
        (blocked(Type::Regex, "x"), "blocked_client.regex_match_target"),
        (
            BlockedClient {
                regex_match_target: RegexMatchTarget::ByClientId.into(),
                ..blocked(Type::Regex, "(")
            },
            "blocked_client.value",
        ),
    ] {
        let refused = create(&client, bad).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_BLOCKED_CLIENT".to_owned()));
        assert_eq!(fields(&refused), [field]);
    }

    let over = BlockedClient { expire_time: in_seconds(-60), ..by_id.clone() };
    let mut calls = client.clone();
    let over = calls.update_blocked_client(UpdateBlockedClientRequest { blocked_client: Some(over) }).await;
    assert_eq!(over.unwrap().into_inner().status(), Held::Expired);
    assert!(record(&cluster, "clientId:a/b c").await.unwrap().expiration_time > 0);
    let request = ListBlockedClientsRequest::default;
    assert_eq!(values(&client, request()).await, ["a/b c", "guest.*", "10.0.0.0/8", "mallory"]);
    let first = calls.list_blocked_clients(ListBlockedClientsRequest { page_size: 1, ..request() }).await;
    assert_eq!(first.unwrap().into_inner().total_size, 4);
    let expired = ListBlockedClientsRequest { status: Held::Expired.into(), ..request() };
    assert_eq!(values(&client, expired).await, ["a/b c"]);
    let active = ListBlockedClientsRequest { status: Held::Active.into(), ..request() };
    assert_eq!(values(&client, active).await, ["guest.*", "10.0.0.0/8", "mallory"]);
    let by_text = ListBlockedClientsRequest { text_search: "MALL".into(), ..request() };
    assert_eq!(values(&client, by_text).await, ["mallory"]);
    let by_type = ListBlockedClientsRequest { r#type: Type::Regex.into(), ..request() };
    assert_eq!(values(&client, by_type).await, ["guest.*"]);
    // One that has expired may be blocked anew.
    create(&client, blocked(Type::ClientId, "a/b c")).await.unwrap();

    calls.delete_blocked_client(DeleteBlockedClientRequest { name: by_id.name.clone() }).await.unwrap();
    let error =
        calls.get_blocked_client(GetBlockedClientRequest { name: by_id.name.clone() }).await.unwrap_err();
    assert_eq!(reason(&error), (Code::NotFound, "NOT_FOUND".to_owned()));
    let error =
        calls.delete_blocked_client(DeleteBlockedClientRequest { name: by_id.name }).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    eventually("withdrawn", async || record(&cluster, "clientId:a/b c").await.is_none()).await;
    assert!(record(&cluster, "username:mallory").await.is_some());
}

#[tokio::test]
async fn blocks_keep_their_contract_on_sqlite() {
    contract(|_| {}).await;
}

#[tokio::test]
async fn blocks_keep_their_contract_on_postgres() {
    if ready("blocks_keep_their_contract_on_postgres", &[Need::Postgres]) {
        let url = DatabaseUrl::new(crate::postgres::options().url);
        contract(move |config| config.database.url = Some(url.clone())).await;
    }
}

#[tokio::test]
async fn a_block_that_expired_long_ago_is_removed() {
    let cluster = Cluster::new();
    let options = Options::sqlite(&cluster.folder.path().join("control.db"));
    let store = Store::open(&options).await.unwrap();
    let who = |id: &str| tbmq_auth::blocked::Who::ClientId(id.into());
    let now_ms = tbmq_service::time::now_ms();
    let week_ms = 7 * 24 * 3_600_000;
    for (id, expires_ms) in [("old", now_ms - week_ms), ("young", now_ms - week_ms / 2), ("for ever", 0)] {
        store.block(who(id), expires_ms, String::new(), now_ms).await.unwrap();
    }
    // The first look is at the beginning of the lease.
    let plane = cluster.control_plane("cp1").await;
    let client = BlockedClientServiceClient::new(plane.channel.clone());
    eventually("only the old one goes", async || {
        let mut left = values(&client, ListBlockedClientsRequest::default()).await;
        left.sort();
        left == ["for ever", "young"]
    })
    .await;
    eventually("the others are written", async || {
        record(&cluster, "clientId:young").await.is_some()
            && record(&cluster, "clientId:for ever").await.is_some()
            && record(&cluster, "clientId:old").await.is_none()
    })
    .await;
}
