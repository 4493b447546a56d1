//! Secrets at rest and on the bus.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use tbmq_bus::{Bus as _, ReaderConfig, ReaderEvent, Start, TopicPartition};
use tbmq_control_plane::{
    Config,
    store::{Change, KindRow, New, Options, Row, Saved, Store},
    vault::Vault,
};
use tbmq_harness::{Need, ready};
use tbmq_integration::{
    seal::{Keys, Purpose},
    wire,
};
use tbmq_proto::{
    control::{
        BasicCredentials, ChangePasswordRequest, CheckConnectionRequest, CreateCredentialsRequest,
        Credentials, GetCredentialsRequest, ImportCredentialsRequest, Integration, ListCredentialsRequest,
        ListKindsRequest, ScramCredentials, credentials::Proof,
        credentials_service_client::CredentialsServiceClient,
    },
    ids::IntegrationId,
};
use tbmq_service::config::Secret;
use tonic::Code;
use uuid::Uuid;

use crate::support::{
    Cluster, ControlPlane, DOCUMENT, SCHEMA, Verdict, eventually, fields, id_of, integration, phase, reason,
};

const SECRET: &str = "s3cret";

const PASSWORD: &str = "a planted password";

/// A key that is made of its id.
fn key(id: &str) -> String {
    format!("{id}:{}A=", id.repeat(42))
}

fn keys(ids: &[&str]) -> String {
    ids.iter().map(|id| key(id)).collect::<Vec<_>>().join(",")
}

fn kind(schema: &str) -> KindRow {
    KindRow { name: "HTTP".to_owned(), json_schema: schema.to_owned(), schema_hash: "h".to_owned() }
}

async fn store(options: &Options, ids: &[&str]) -> Store {
    let vault = Arc::new(Vault::new(Keys::parse(&keys(ids)).unwrap()));
    assert!(vault.learn(&kind(SCHEMA)));
    Store::open_with(options, vault).await.unwrap()
}

fn saved(now_ms: i64) -> Saved<'static> {
    Saved { service_id: "cp1", incarnation: "i", now_ms, request: None }
}

fn new(name: &str, configuration: &str) -> New {
    New {
        id: IntegrationId(Uuid::new_v4()),
        name: name.to_owned(),
        kind: "HTTP".parse().unwrap(),
        enabled: true,
        configuration: configuration.to_owned(),
        labels: std::collections::BTreeMap::new(),
        description: String::new(),
        shards: 1,
    }
}

/// With which key, and for which revision, a row is sealed.
fn sealed_for(row: &Row) -> Option<(&str, Purpose)> {
    row.parted.as_ref().map(|parted| (parted.sealed.key_id.as_str(), parted.sealed.purpose))
}

async fn seal_all(store: &Store) -> u64 {
    let (mut after, mut sealed) = (None, 0);
    loop {
        let done = store.seal_batch(after, 1).await.unwrap();
        sealed += done.sealed;
        match done.last {
            Some(last) => after = Some(last),
            None => return sealed,
        }
    }
}

async fn contract(options: Options) {
    every_revision_is_sealed_anew(&options).await;
    what_was_plain_is_sealed_and_sent_again(&options).await;
    keys_are_rotated_without_a_new_revision(&options).await;
    a_row_without_its_key_is_told_and_can_be_replaced(&options).await;
    another_schema_has_rows_looked_through_again(&options).await;
}

async fn every_revision_is_sealed_anew(options: &Options) {
    let store = store(options, &["a"]).await;
    let created = store.create(new("one", DOCUMENT), saved(1)).await.unwrap();
    let mut seen = BTreeSet::new();
    let mut check = |row: &Row| {
        assert_eq!(row.configuration, DOCUMENT);
        assert_eq!(sealed_for(row), Some(("a", Purpose::Revision(row.revision))));
        assert!(seen.insert(row.parted.as_ref().unwrap().sealed.nonce), "a nonce is used once");
    };
    check(&created);
    assert_eq!(store.get(created.id).await.unwrap(), created);
    check(&store.set_enabled(created.id, None, false, saved(2)).await.unwrap());
    check(&store.set_enabled(created.id, None, true, saved(2)).await.unwrap());
    check(&store.restart(created.id, None, saved(3)).await.unwrap());
    store.mark_anew(created.id, 4).await.unwrap();
    check(&store.get(created.id).await.unwrap());
    let plain = store.create(new("two", r#"{"clientConfiguration":{}}"#), saved(1)).await.unwrap();
    assert_eq!((sealed_for(&plain), seal_all(&store).await), (None, 0), "there is nothing to seal");
    let held = Store::open(options).await.unwrap().get(created.id).await.unwrap();
    assert!(held.configuration.contains("\"********\"") && !held.configuration.contains(SECRET));
    for id in [created.id, plain.id] {
        store.delete(id, None, saved(5)).await.unwrap();
    }
    store.close().await;
}

async fn what_was_plain_is_sealed_and_sent_again(options: &Options) {
    let open = Store::open(options).await.unwrap();
    let row = open.create(new("plain", DOCUMENT), saved(1)).await.unwrap();
    assert_eq!(sealed_for(&row), None);
    for mark in open.marks(100).await.unwrap() {
        open.clear_mark(mark).await.unwrap();
    }
    open.close().await;
    let store = store(options, &["a"]).await;
    assert_eq!(store.get(row.id).await.unwrap(), row, "it is read as it is");
    assert_eq!((seal_all(&store).await, seal_all(&store).await), (1, 0));
    let after = store.get(row.id).await.unwrap();
    assert_eq!(sealed_for(&after), Some(("a", Purpose::Revision(row.revision))));
    assert_eq!(Row { parted: None, ..after }, row, "nothing else has changed");
    let marks = store.marks(100).await.unwrap();
    assert_eq!(marks.iter().map(|mark| mark.integration).collect::<Vec<_>>(), [row.id]);
    assert!(marks[0].revision > row.revision, "a relayer that has read the row before does not clear it");
    store.delete(row.id, None, saved(5)).await.unwrap();
    store.close().await;
}

async fn keys_are_rotated_without_a_new_revision(options: &Options) {
    let before = store(options, &["a"]).await;
    let mut rows = Vec::new();
    for number in 0..120 {
        rows.push(before.create(new(&format!("r{number}"), DOCUMENT), saved(1)).await.unwrap());
    }
    before.close().await;
    let both = store(options, &["b", "a"]).await;
    assert_eq!(both.sealed_by_key().await.unwrap(), [("a".to_owned(), 120)].into());
    let first = both.seal_batch(None, 1).await.unwrap();
    assert!(first.sealed > 0 && first.sealed < 120, "batches are bounded: {first:?}");
    assert_eq!(first.sealed + seal_all(&both).await, 120);
    assert_eq!(both.sealed_by_key().await.unwrap(), [("b".to_owned(), 120)].into());
    both.close().await;
    let after = store(options, &["b"]).await;
    for row in &rows {
        let now = after.get(row.id).await.unwrap();
        assert_eq!(now.configuration, DOCUMENT);
        assert_eq!((now.revision, now.updated_ms), (row.revision, row.updated_ms));
        after.delete(row.id, None, saved(5)).await.unwrap();
    }
    after.close().await;
}

async fn a_row_without_its_key_is_told_and_can_be_replaced(options: &Options) {
    let with = store(options, &["a"]).await;
    let row = with.create(new("lost", DOCUMENT), saved(1)).await.unwrap();
    with.close().await;
    let without = store(options, &["b"]).await;
    let found = without.get(row.id).await.unwrap();
    let unreadable = found.unreadable.clone().unwrap().to_string();
    assert!(unreadable.contains("key \"a\"") && unreadable.contains("TBMQ_SECRETS_KEYS"), "{unreadable}");
    assert!(!found.configuration.contains(SECRET));
    assert_eq!(without.seal_batch(None, 1).await.unwrap().unreadable, 1);
    // It can be disabled, and is kept as it was.
    let disabled = without.set_enabled(row.id, None, false, saved(2)).await.unwrap();
    assert_eq!(disabled.parted, row.parted);
    let with = store(options, &["a"]).await;
    assert_eq!(with.get(row.id).await.unwrap().configuration, DOCUMENT);
    with.close().await;
    let change = Change {
        name: "lost".to_owned(),
        enabled: true,
        configuration: DOCUMENT.to_owned(),
        labels: std::collections::BTreeMap::new(),
        description: String::new(),
    };
    let replaced = without.update(row.id, disabled.revision, change, saved(3)).await.unwrap();
    assert_eq!(sealed_for(&replaced), Some(("b", Purpose::Revision(replaced.revision))));
    assert_eq!(without.get(row.id).await.unwrap(), replaced);
    without.delete(row.id, None, saved(5)).await.unwrap();
    without.close().await;
}

async fn another_schema_has_rows_looked_through_again(options: &Options) {
    let keys = Keys::parse(&key("a")).unwrap();
    let vault = Arc::new(Vault::new(keys));
    let store = Store::open_with(options, vault.clone()).await.unwrap();
    // Nothing is known of the kind: everything of it is sealed.
    let row = store.create(new("schema", DOCUMENT), saved(1)).await.unwrap();
    assert!(!row.parted.as_ref().unwrap().plain.contains("http://h:1"));
    assert_eq!(seal_all(&store).await, 0);
    assert!(vault.learn(&kind(SCHEMA)));
    store.save_kind(&kind(SCHEMA), 1).await.unwrap();
    assert_eq!((seal_all(&store).await, seal_all(&store).await), (1, 0));
    let after = store.get(row.id).await.unwrap();
    assert!(after.parted.as_ref().unwrap().plain.contains("http://h:1"));
    assert_eq!(after.configuration, DOCUMENT);
    store.delete(row.id, None, saved(5)).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn sqlite_keeps_secrets_sealed() {
    let folder = tempfile::tempdir().unwrap();
    contract(Options::sqlite(&folder.path().join("control.db"))).await;
}

#[tokio::test]
async fn postgres_keeps_secrets_sealed() {
    if ready("postgres_keeps_secrets_sealed", &[Need::Postgres]) {
        contract(crate::postgres::options()).await;
    }
}

fn with_keys(ids: &[&str]) -> impl FnOnce(&mut Config) + use<> {
    let keys = keys(ids);
    move |config| config.secrets.keys = Secret::new(keys)
}

/// How often a text stands in the files of a folder.
fn in_files(folder: &Path, text: &str) -> usize {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    files.map(|bytes| count(&bytes, text)).sum()
}

fn count(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

/// How often a text stands in the records of the bus.
async fn on_bus(cluster: &Cluster, text: &str) -> usize {
    let names = cluster.bus.admin().topics().await.unwrap();
    let mut found = 0;
    for topic in names {
        let partitions = topic.partitions;
        let mut reader = cluster.bus.reader(ReaderConfig::new("test", None)).await.unwrap();
        for partition in 0..partitions {
            reader.add(&TopicPartition::new(topic.name.as_str(), partition), Start::Earliest);
        }
        let mut open = partitions;
        while open > 0 {
            match reader.next().await {
                ReaderEvent::Batch { records, .. } => {
                    for record in records {
                        found += count(&record.value.unwrap_or_default(), text);
                    }
                }
                ReaderEvent::End { .. } | ReaderEvent::Gone { .. } => open -= 1,
                ReaderEvent::Gap { .. } => {}
            }
        }
    }
    found
}

/// Creates credentials by password, changes and imports them. Nobody but the caller sees a password, with a key or
/// without.
async fn use_passwords(control_plane: &ControlPlane) {
    let mut client = CredentialsServiceClient::new(control_plane.channel.clone());
    let password = Some(PASSWORD.to_owned());
    let basic = BasicCredentials {
        user_name: Some("basic".to_owned()),
        password: password.clone(),
        ..BasicCredentials::default()
    };
    let scram = ScramCredentials { user_name: "scram".to_owned(), password, ..ScramCredentials::default() };
    for (name, proof) in [("basic", Proof::Basic(basic)), ("scram", Proof::Scram(scram))] {
        let given =
            Credentials { display_name: name.to_owned(), proof: Some(proof), ..Credentials::default() };
        let request = CreateCredentialsRequest {
            credentials: Some(given.clone()),
            request_id: name.to_owned(),
            ..CreateCredentialsRequest::default()
        };
        let created = client.create_credentials(request).await.unwrap().into_inner();
        assert!(!format!("{created:?}").contains(PASSWORD));
        let wrong = ChangePasswordRequest {
            name: created.name.clone(),
            current_password: format!("not {PASSWORD}"),
            new_password: format!("new {PASSWORD}"),
        };
        let refused = client.change_password(wrong.clone()).await.unwrap_err();
        assert!(!format!("{refused:?}").contains(PASSWORD));
        let right = ChangePasswordRequest { current_password: PASSWORD.to_owned(), ..wrong };
        client.change_password(right).await.unwrap();
        let request = ImportCredentialsRequest {
            credentials: vec![given],
            replace: true,
            ..ImportCredentialsRequest::default()
        };
        let done = client.import_credentials(request).await.unwrap().into_inner();
        assert_eq!(done.outcomes[0].code, "OK", "{done:?}");
        let listed = client.list_credentials(ListCredentialsRequest::default()).await.unwrap();
        assert!(!format!("{listed:?}").contains(PASSWORD));
        let held = client.get_credentials(GetCredentialsRequest { name: created.name }).await.unwrap();
        let hashes = [PASSWORD, "$argon2id$"];
        assert!(hashes.iter().all(|text| !format!("{held:?}").contains(text)), "{held:?}");
    }
}

#[tokio::test]
async fn neither_the_database_nor_the_bus_sees_a_password() {
    let cluster = Cluster::new();
    let control_plane = cluster.control_plane("cp1").await;
    use_passwords(&control_plane).await;
    let topic = cluster.catalogue.credentials().name;
    eventually("both are written", async || cluster.latest(&topic).await.len() == 2).await;
    assert_eq!(on_bus(&cluster, PASSWORD).await, 0);
    assert_eq!(in_files(cluster.folder.path(), PASSWORD), 0);
    // That it would be seen.
    assert!(on_bus(&cluster, "$argon2id$").await > 0);
    assert!(in_files(cluster.folder.path(), "$argon2id$") > 0);
}

/// Creates, changes, checks and switches an integration; returns it.
async fn use_secrets(cluster: &Cluster, control_plane: &ControlPlane) -> Integration {
    let kinds = || async {
        let request = ListKindsRequest::default();
        control_plane.integrations.clone().list_kinds(request).await.unwrap().into_inner().kinds
    };
    eventually("its secrets are known", async || {
        kinds().await.iter().any(|kind| kind.name == "HTTP" && kind.json_schema.contains("writeOnly"))
    })
    .await;
    let created = control_plane.create("one").await.unwrap();
    eventually("running", async || phase(&control_plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE")
        .await;
    assert!(!created.configuration_json.contains(SECRET));
    let changed = Integration { description: "d".to_owned(), ..created.clone() };
    control_plane.update(changed, &[]).await.unwrap();
    let check = CheckConnectionRequest { name: created.name.clone(), ..Default::default() };
    let checked = control_plane.integrations.clone().check_connection(check).await.unwrap().into_inner();
    assert!(checked.ok, "{checked:?}");
    control_plane.enable(&created.name, false).await.unwrap();
    let enabled = control_plane.enable(&created.name, true).await.unwrap();
    let topic = cluster.catalogue.downlink(&"HTTP".parse().unwrap()).name;
    eventually("sent", async || {
        let revision = cluster.latest(&topic).await.get(&enabled.uid).and_then(|(revision, _)| *revision);
        revision == Some(enabled.revision)
    })
    .await;
    enabled
}

#[tokio::test]
async fn neither_the_database_nor_the_bus_sees_a_secret() {
    let cluster = Cluster::new();
    let control_plane = cluster.control_plane_with("cp1", with_keys(&["a"])).await;
    let executor = cluster.executor(Verdict::Accept).await;
    let held = use_secrets(&cluster, &control_plane).await;

    let keys = Keys::parse(&key("a")).unwrap();
    let requests = executor.requests.lock().clone();
    assert!(requests.len() >= 2, "a validation and a check");
    for request in requests {
        let sealed = request.sealed.as_ref().expect("requests are sealed");
        assert_eq!(sealed.purpose, Purpose::Request(request.id));
        assert_eq!(keys.open(request.integration, &request.configuration, sealed).unwrap(), DOCUMENT);
    }
    let desired = executor.desired.lock().values().next().cloned().unwrap();
    let wire::Change::Apply { target, .. } = desired.change else { panic!("it is there") };
    let sealed = target.sealed.as_ref().expect("the configuration is sealed");
    assert_eq!(sealed.purpose, Purpose::Revision(held.revision));
    assert_eq!(keys.open(id_of(&held), &target.configuration, sealed).unwrap(), DOCUMENT);

    assert_eq!(on_bus(&cluster, SECRET).await, 0);
    assert_eq!(in_files(cluster.folder.path(), SECRET), 0);
}

/// That the test above would see a secret if there were one.
#[tokio::test]
async fn without_a_key_both_see_it() {
    let cluster = Cluster::new();
    let control_plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    use_secrets(&cluster, &control_plane).await;
    assert!(on_bus(&cluster, SECRET).await > 0);
    assert!(in_files(cluster.folder.path(), SECRET) > 0);
}

#[tokio::test]
async fn a_restart_with_the_same_key_repairs_nothing_and_another_key_seals_and_sends_anew() {
    let cluster = Cluster::new();
    let first = cluster.control_plane_with("cp1", with_keys(&["a"])).await;
    let executor = cluster.executor(Verdict::Accept).await;
    let held = use_secrets(&cluster, &first).await;
    first.running.drain().await;
    let key_of = || {
        let desired = executor.desired.lock().values().next().cloned().unwrap();
        let wire::Change::Apply { target, .. } = desired.change else { panic!("it is there") };
        (desired.revision, target.sealed.unwrap().key_id)
    };
    let second = cluster.control_plane_with("cp1", with_keys(&["a"])).await;
    eventually("it leads", async || second.metrics.encode().contains("tbmq_control_leading 1")).await;
    eventually("it counts", async || {
        second.metrics.encode().contains("tbmq_control_sealed_integrations{key=\"a\"} 1")
    })
    .await;
    assert!(
        second.metrics.encode().contains("tbmq_control_repairs_total 0"),
        "sealed parts are sent as stored"
    );
    assert_eq!(key_of(), (held.revision, "a".to_owned()));
    second.running.drain().await;

    let third = cluster.control_plane_with("cp1", with_keys(&["b", "a"])).await;
    eventually("it is sealed and sent anew", async || key_of().1 == "b").await;
    assert_eq!(key_of().0, held.revision, "nothing has changed, so nothing is started anew");
    assert_eq!(third.get(&held.name).await.unwrap().etag, held.etag);
    eventually("the old key may go", async || {
        let metrics = third.metrics.encode();
        metrics.contains("{key=\"b\"} 1") && metrics.contains("{key=\"a\"} 0")
    })
    .await;
    third.running.drain().await;
    let fourth = cluster.control_plane_with("cp1", with_keys(&["b"])).await;
    assert_eq!(phase(&fourth.get(&held.name).await.unwrap()), "PHASE_ACTIVE");
}

#[tokio::test]
async fn one_whose_key_is_lost_fails_alone_and_its_masks_are_never_taken_for_secrets() {
    let cluster = Cluster::new();
    let first = cluster.control_plane_with("cp1", with_keys(&["a"])).await;
    let executor = cluster.executor(Verdict::Accept).await;
    let held = use_secrets(&cluster, &first).await;
    first.running.drain().await;
    let second = cluster.control_plane_with("cp1", with_keys(&["b"])).await;
    let other = second.create("other").await.unwrap();
    eventually("running", async || phase(&second.get(&other.name).await.unwrap()) == "PHASE_ACTIVE").await;
    let listed = second.list().await;
    assert_eq!(listed.len(), 2);
    let lost = listed.into_iter().find(|integration| integration.name == held.name).unwrap();
    let status = lost.status.clone().unwrap();
    assert_eq!((phase(&lost), status.reason.as_str()), ("PHASE_FAILED", "SECRETS_UNREADABLE"));
    assert!(
        status.error.contains("key \"a\"") && status.error.contains("TBMQ_SECRETS_KEYS"),
        "{}",
        status.error
    );
    assert!(lost.configuration_json.contains("********"));

    let asked = executor.requests.lock().len();
    let change = Integration { description: "new".to_owned(), ..lost.clone() };
    let refused = second.update(change, &[]).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_INTEGRATION".to_owned()));
    assert_eq!(fields(&refused), ["integration.configuration_json.clientConfiguration.credentials.password"]);
    assert!(refused.message().contains("key \"a\""), "{}", refused.message());
    let check = CheckConnectionRequest { name: held.name.clone(), ..Default::default() };
    let refused = second.integrations.clone().check_connection(check).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "SECRETS_UNREADABLE".to_owned()));
    assert_eq!(executor.requests.lock().len(), asked, "nothing was asked with masks");

    assert_eq!(phase(&second.enable(&held.name, false).await.unwrap()), "PHASE_DISABLED");
    let written = integration("one");
    let replaced = Integration { name: held.name.clone(), ..written };
    let replaced = second.update(replaced, &[]).await.unwrap();
    assert_ne!(replaced.status.unwrap().reason, "SECRETS_UNREADABLE");
    eventually("it runs", async || phase(&second.get(&held.name).await.unwrap()) == "PHASE_ACTIVE").await;
}
