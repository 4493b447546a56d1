//! Clients that were refused: what data planes tell of them is kept for a while.

use prost::Message as _;
use tbmq_control_plane::{
    Config,
    config::DatabaseUrl,
    store::{Options, Store, UNAUTHORIZED_MAX, UnauthorizedListing, UnauthorizedRow},
};
use tbmq_harness::{Need, ready};
use tbmq_proto::{
    control::{
        ClearUnauthorizedClientsRequest, DeleteUnauthorizedClientRequest, GetUnauthorizedClientRequest,
        ListUnauthorizedClientsRequest, UnauthorizedClient,
        unauthorized_client_service_client::UnauthorizedClientServiceClient,
    },
    wire::UnauthorizedRecord,
};
use tonic::{Code, transport::Channel};

use crate::support::{Cluster, eventually, reason};

type Client = UnauthorizedClientServiceClient<Channel>;

async fn tell(cluster: &Cluster, client_id: &str, time_ms: i64, count: u64) {
    let told = UnauthorizedRecord {
        client_id: client_id.to_owned(),
        address: "192.0.2.7".to_owned(),
        user_name: "u".to_owned(),
        password_provided: true,
        tls_used: false,
        reason: format!("MQTT_BASIC: refused at {time_ms}"),
        time_ms,
        count,
        service_id: "dp1".to_owned(),
    };
    let topic = cluster.catalogue.unauthorized_clients().name;
    cluster.put(&topic, client_id, &told.encode_to_vec()).await;
}

async fn list(client: &Client, request: ListUnauthorizedClientsRequest) -> Vec<UnauthorizedClient> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListUnauthorizedClientsRequest { page_token, page_size: 1, ..request.clone() };
        let page = client.clone().list_unauthorized_clients(request).await.unwrap().into_inner();
        all.extend(page.unauthorized_clients);
        if page.next_page_token.is_empty() {
            return all;
        }
        page_token = page.next_page_token;
    }
}

async fn ids(client: &Client) -> Vec<String> {
    let all = list(client, ListUnauthorizedClientsRequest::default()).await;
    all.into_iter().map(|one| one.client_id).collect()
}

async fn contract(configure: impl Fn(&mut Config)) {
    let cluster = Cluster::new();
    let plane = cluster.control_plane_with("cp1", configure).await;
    let client = UnauthorizedClientServiceClient::new(plane.channel.clone());
    let now_ms = tbmq_service::time::now_ms();
    tell(&cluster, "a/ü", now_ms - 3, 2).await;
    tell(&cluster, "b", now_ms - 2, 1).await;
    tell(&cluster, "c", now_ms - 1, 1).await;
    tell(&cluster, "a/ü", now_ms, 3).await;
    eventually("the latest come first", async || ids(&client).await == ["a/ü", "c", "b"]).await;
    let mut calls = client.clone();
    let name = "unauthorizedClients/a%2F%C3%BC".to_owned();
    let held = calls.get_unauthorized_client(GetUnauthorizedClientRequest { name: name.clone() }).await;
    let held = held.unwrap().into_inner();
    assert_eq!((&held.name, held.count, held.password_provided), (&name, 5, true));
    assert_eq!(held.reason, format!("MQTT_BASIC: refused at {now_ms}"));
    let first = calls.list_unauthorized_clients(ListUnauthorizedClientsRequest::default()).await.unwrap();
    assert_eq!(first.into_inner().total_size, 3);
    let by_reason =
        ListUnauthorizedClientsRequest { reason: format!("AT {}", now_ms - 2), ..Default::default() };
    assert_eq!(list(&client, by_reason).await.len(), 1);
    let by_address = ListUnauthorizedClientsRequest { address: "198.51".to_owned(), ..Default::default() };
    assert!(list(&client, by_address).await.is_empty());

    // It was let in; and refused again later.
    tell(&cluster, "b", now_ms, 0).await;
    eventually("forgotten", async || ids(&client).await == ["a/ü", "c"]).await;
    tell(&cluster, "b", now_ms + 1, 1).await;
    eventually("it begins anew", async || {
        let all = list(&client, ListUnauthorizedClientsRequest::default()).await;
        all.len() == 3 && all[0].client_id == "b" && all[0].count == 1
    })
    .await;
    // What can't be understood holds up nobody.
    let topic = cluster.catalogue.unauthorized_clients().name;
    cluster.put(&topic, "x", b"\xff\xff").await;
    tell(&cluster, "", now_ms, 1).await;
    tell(&cluster, "d", now_ms - 9, 1).await;
    eventually("the next one is there", async || ids(&client).await.contains(&"d".to_owned())).await;

    calls.delete_unauthorized_client(DeleteUnauthorizedClientRequest { name: name.clone() }).await.unwrap();
    let error = calls.delete_unauthorized_client(DeleteUnauthorizedClientRequest { name }).await.unwrap_err();
    assert_eq!(reason(&error), (Code::NotFound, "NOT_FOUND".to_owned()));
    let cleared = calls.clear_unauthorized_clients(ClearUnauthorizedClientsRequest {}).await.unwrap();
    assert_eq!(cleared.into_inner().removed, 3);
    assert!(ids(&client).await.is_empty());
}

#[tokio::test]
async fn refused_clients_keep_their_contract_on_sqlite() {
    contract(|_| {}).await;
}

#[tokio::test]
async fn refused_clients_keep_their_contract_on_postgres() {
    if ready("refused_clients_keep_their_contract_on_postgres", &[Need::Postgres]) {
        let url = DatabaseUrl::new(crate::postgres::options().url);
        contract(move |config| config.database.url = Some(url.clone())).await;
    }
}

fn row(number: u64) -> UnauthorizedRow {
    UnauthorizedRow {
        client_id: format!("c{number}"),
        address: String::new(),
        user_name: String::new(),
        password_provided: false,
        tls_used: false,
        reason: String::new(),
        time_ms: number as i64,
        count: 1,
    }
}

async fn bound(options: Options) {
    let store = Store::open(&options).await.unwrap();
    let all: Vec<_> = (1..=UNAUTHORIZED_MAX + 500).map(row).collect();
    for some in all.chunks(3_000) {
        store.store_unauthorized(some).await.unwrap();
    }
    let listing = UnauthorizedListing { limit: 1, ..UnauthorizedListing::default() };
    assert_eq!(store.count_unauthorized(&listing).await.unwrap(), UNAUTHORIZED_MAX);
    assert!(store.get_unauthorized("c500").await.is_err(), "the oldest go");
    assert!(store.get_unauthorized("c501").await.is_ok());
    assert_eq!(store.clear_unauthorized(Some(601)).await.unwrap(), 100);
}

#[tokio::test]
async fn no_more_refused_clients_are_remembered_than_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    bound(Options::sqlite(&folder.path().join("control.db"))).await;
    if ready("no_more_refused_clients_are_remembered_than_the_limit", &[Need::Postgres]) {
        bound(crate::postgres::options()).await;
    }
}
