//! Providers and settings of authentication: off until somebody turns them on, their secrets never shown.

use prost::Message as _;
use tbmq_control_plane::{Config, config::DatabaseUrl};
use tbmq_harness::{Need, ready};
use tbmq_integration::seal::{Keys, Unreadable};
use tbmq_proto::{
    control::{
        AuthProvider, AuthSettings, GetAuthProviderRequest, GetAuthSettingsRequest, ListAuthProvidersRequest,
        UpdateAuthProviderRequest, UpdateAuthSettingsRequest,
        auth_provider_service_client::AuthProviderServiceClient,
    },
    wire::{AuthProvider as Record, AuthSetting, auth_setting::Setting},
};
use tbmq_service::config::Secret;
use tonic::{Code, Response, Status, transport::Channel};

use crate::support::{Cluster, eventually, fields, reason};

type Client = AuthProviderServiceClient<Channel>;

const JWT: &str = r#"{"type":"JWT","defaultClientType":"DEVICE","jwtVerifierConfiguration":{"jwtVerifierType":"ALGORITHM_BASED","jwtSignAlgorithmConfiguration":{"algorithm":"HMAC_BASED","secret":"planted-secret-of-32-bytes-and-more"}}}"#;

const PLANTED: &str = "planted-secret";

async fn update(client: &Client, provider: AuthProvider) -> Result<AuthProvider, Status> {
    let request = UpdateAuthProviderRequest { provider: Some(provider) };
    client.clone().update_auth_provider(request).await.map(Response::into_inner)
}

fn provider(kind: &str, enabled: bool, configuration: &str) -> AuthProvider {
    AuthProvider {
        name: format!("authProviders/{kind}"),
        enabled,
        configuration_json: configuration.to_owned(),
        ..AuthProvider::default()
    }
}

async fn setting(cluster: &Cluster, key: &str) -> Option<(u64, Setting)> {
    let held = cluster.latest(&cluster.catalogue.auth_settings().name).await.remove(key);
    let (revision, value) = held?;
    let setting = AuthSetting::decode(value?).unwrap();
    assert_eq!(revision, Some(setting.revision));
    Some((setting.revision, setting.setting.unwrap()))
}

async fn contract(configure: impl Fn(&mut Config)) {
    let cluster = Cluster::new();
    let plane = cluster.control_plane_with("cp1", configure).await;
    let client = AuthProviderServiceClient::new(plane.channel.clone());
    let mut calls = client.clone();
    let listed = calls.list_auth_providers(ListAuthProvidersRequest {}).await.unwrap().into_inner().providers;
    let names: Vec<&str> = listed.iter().map(|one| one.name.as_str()).collect();
    let expected =
        ["MQTT_BASIC", "X_509", "JWT", "HTTP", "SCRAM"].map(|kind| format!("authProviders/{kind}"));
    assert_eq!(names, expected);
    assert!(listed.iter().all(|one| !one.enabled && one.revision == 0 && one.configuration_json == "{}"));
    eventually("the secrets are made", async || setting(&cluster, "secrets").await.is_some()).await;
    assert_eq!(
        setting(&cluster, "provider/MQTT_BASIC").await,
        None,
        "nothing is said of what nobody has set"
    );
    assert_eq!(setting(&cluster, "providers").await, None);

    let basic =
        update(&client, provider("MQTT_BASIC", true, r#"{"authStrategy":"USERNAME"}"#)).await.unwrap();
    let (revision, held) =
        setting(&cluster, "provider/MQTT_BASIC").await.expect("an answered call was written");
    let Setting::Provider(held) = held else { panic!("{held:?}") };
    assert_eq!((revision, held.enabled, held.r#type.as_str()), (basic.revision, true, "MQTT_BASIC"));
    assert_eq!(held.configuration_json, r#"{"authStrategy":"USERNAME"}"#);

    let jwt = update(&client, provider("JWT", true, JWT)).await.unwrap();
    assert!(!jwt.configuration_json.contains(PLANTED), "{jwt:?}");
    // What is shown can be sent back.
    let off = update(&client, AuthProvider { enabled: false, ..jwt.clone() }).await.unwrap();
    let Some((_, Setting::Provider(held))) = setting(&cluster, "provider/JWT").await else { panic!() };
    assert_eq!((held.configuration_json.as_str(), held.enabled), (JWT, false));
    let same = update(&client, off.clone()).await.unwrap();
    assert_eq!(same.revision, off.revision, "nothing has changed");
    let stale = update(&client, AuthProvider { enabled: true, ..jwt }).await.unwrap_err();
    assert_eq!(reason(&stale), (Code::Aborted, "ETAG_MISMATCH".to_owned()));
    for (bad, field) in [
        (provider("NONE", true, "{}"), "provider.name"),
        (provider("JWT", true, "[]"), "provider.configuration_json"),
        (provider("JWT", true, ""), "provider.configuration_json"),
        (provider("HTTP", true, r#"{"type":"JWT"}"#), "provider.configuration_json.type"),
        (
            provider("HTTP", true, r#"{"credentials":{"password":"********"}}"#),
            "provider.configuration_json.credentials.password",
        ),
    ] {
        let refused = update(&client, bad).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_AUTH_PROVIDER".to_owned()));
        assert_eq!(fields(&refused), [field]);
    }

    let settings = calls.get_auth_settings(GetAuthSettingsRequest {}).await.unwrap().into_inner();
    assert_eq!(settings.priorities, ["MQTT_BASIC", "X_509", "JWT", "HTTP"]);
    let priorities: Vec<String> = ["HTTP", "JWT", "X_509", "MQTT_BASIC"].map(ToOwned::to_owned).to_vec();
    let changed = AuthSettings { priorities: priorities.clone(), etag: settings.etag.clone() };
    let request = UpdateAuthSettingsRequest { settings: Some(changed.clone()) };
    calls.update_auth_settings(request.clone()).await.unwrap();
    let Some((_, Setting::Providers(held))) = setting(&cluster, "providers").await else { panic!() };
    assert_eq!(held.priorities, priorities);
    let stale = calls.update_auth_settings(request).await.unwrap_err();
    assert_eq!(reason(&stale), (Code::Aborted, "ETAG_MISMATCH".to_owned()));
    let bad = AuthSettings { priorities: vec!["HTTP".to_owned()], etag: String::new() };
    let request = UpdateAuthSettingsRequest { settings: Some(bad) };
    let refused = calls.update_auth_settings(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["settings.priorities"]);
}

#[tokio::test]
async fn providers_keep_their_contract_on_sqlite() {
    contract(|_| {}).await;
}

#[tokio::test]
async fn providers_keep_their_contract_on_postgres() {
    if ready("providers_keep_their_contract_on_postgres", &[Need::Postgres]) {
        let url = DatabaseUrl::new(crate::postgres::options().url);
        contract(move |config| config.database.url = Some(url.clone())).await;
    }
}

/// A key that is made of its id.
fn key(id: &str) -> String {
    format!("{id}:{}A=", id.repeat(42))
}

fn in_files(cluster: &Cluster) -> usize {
    let files = std::fs::read_dir(cluster.folder.path()).unwrap();
    let bytes = files.map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let count =
        |bytes: &[u8]| bytes.windows(PLANTED.len()).filter(|window| *window == PLANTED.as_bytes()).count();
    bytes.map(|bytes| count(&bytes)).sum()
}

#[tokio::test]
async fn the_secrets_of_providers_are_sealed_in_the_store_and_sealed_anew_with_the_first_key() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane_with("cp1", |config| config.secrets.keys = Secret::new(key("a"))).await;
    let client = AuthProviderServiceClient::new(plane.channel.clone());
    let set = update(&client, provider("JWT", true, JWT)).await.unwrap();
    let held = record(&cluster).await;
    assert_eq!(sealed_with(&held).as_deref(), Some("a"));
    assert!(!format!("{held:?}").contains(PLANTED), "{held:?}");
    assert_eq!(opened(&held, "a").unwrap(), JWT);
    assert_eq!(in_files(&cluster), 0);
    plane.running.drain().await;

    let both = format!("{},{}", key("b"), key("a"));
    let plane = cluster.control_plane_with("cp1", |config| config.secrets.keys = Secret::new(both)).await;
    let options = tbmq_control_plane::store::Options::sqlite(&cluster.folder.path().join("control.db"));
    let keys = Keys::parse(&key("b")).unwrap();
    let vault = std::sync::Arc::new(tbmq_control_plane::vault::Vault::new(keys));
    let store = tbmq_control_plane::store::Store::open_with(&options, vault).await.unwrap();
    eventually("it can be read with the new key alone", async || {
        let rows = store.providers().await.unwrap();
        rows[0].unreadable.is_none() && rows[0].configuration == JWT && rows[0].revision == set.revision
    })
    .await;
    eventually("data planes are sent it sealed with the new key", async || {
        let held = record(&cluster).await;
        sealed_with(&held).as_deref() == Some("b") && opened(&held, "b").unwrap() == JWT
    })
    .await;
    assert_eq!(in_files(&cluster), 0);
    plane.running.drain().await;

    // Without its key it is told, and what was sent before stays.
    let plane = cluster.control_plane_with("cp1", |config| config.secrets.keys = Secret::new(key("c"))).await;
    let client = AuthProviderServiceClient::new(plane.channel.clone());
    let request = GetAuthProviderRequest { name: "authProviders/JWT".to_owned() };
    let shown = client.clone().get_auth_provider(request).await.unwrap().into_inner();
    let refused = update(&client, AuthProvider { enabled: false, ..shown }).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "SECRETS_UNREADABLE".to_owned()));
    update(&client, provider("SCRAM", true, "")).await.unwrap();
    let held = record(&cluster).await;
    assert_eq!((opened(&held, "b").unwrap().as_str(), held.enabled), (JWT, true));
}

#[tokio::test]
async fn a_provider_that_was_sent_in_plain_text_is_sent_sealed_once_there_is_a_key() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let client = AuthProviderServiceClient::new(plane.channel.clone());
    let set = update(&client, provider("JWT", true, JWT)).await.unwrap();
    let held = record(&cluster).await;
    assert_eq!((held.configuration_json.as_str(), held.sealed), (JWT, None));
    plane.running.drain().await;
    let _plane =
        cluster.control_plane_with("cp1", |config| config.secrets.keys = Secret::new(key("a"))).await;
    eventually("it is sealed", async || sealed_with(&record(&cluster).await).as_deref() == Some("a")).await;
    assert_eq!(opened(&record(&cluster).await, "a").unwrap(), JWT);
    let (revision, _) = setting(&cluster, "provider/JWT").await.unwrap();
    assert_eq!(revision, set.revision, "nothing of it has changed");
}

/// What data planes are sent of the provider of JWTs.
async fn record(cluster: &Cluster) -> Record {
    let Some((_, Setting::Provider(held))) = setting(cluster, "provider/JWT").await else { panic!() };
    held
}

fn sealed_with(record: &Record) -> Option<String> {
    record.sealed.as_ref().map(|sealed| sealed.key_id.clone())
}

fn opened(record: &Record, id: &str) -> Result<String, Unreadable> {
    tbmq_integration::provider::open(&Keys::parse(&key(id)).unwrap(), record)
}

#[tokio::test]
async fn what_data_planes_share_is_made_once_for_ever() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    eventually("it is made", async || setting(&cluster, "secrets").await.is_some()).await;
    let made = setting(&cluster, "secrets").await;
    let Some((_, Setting::Secrets(secrets))) = &made else { panic!("{made:?}") };
    assert_eq!(secrets.pretence_key.len(), 32);
    plane.running.drain().await;
    let plane = cluster.control_plane("cp2").await;
    let client = AuthProviderServiceClient::new(plane.channel.clone());
    update(&client, provider("SCRAM", true, "{}")).await.unwrap();
    assert_eq!(setting(&cluster, "secrets").await, made);
}
