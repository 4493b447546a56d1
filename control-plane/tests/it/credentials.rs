//! Credentials by the API: saved, shown without what proves them, written to their topic in order.

use prost::Message as _;
use prost_types::FieldMask;
use tbmq_auth::{password, scram::StoredKeys};
use tbmq_control_plane::{Config, config::DatabaseUrl};
use tbmq_harness::{Need, ready};
use tbmq_proto::{
    control::{
        AccessRule, BasicCredentials, ChangePasswordRequest, ClientType, CreateCredentialsRequest,
        Credentials, CredentialsType, DeleteCredentialsRequest, GetCredentialsRequest,
        ImportCredentialsRequest, ListCredentialsRequest, ScramCredentials, UpdateCredentialsRequest,
        X509Credentials, access_rule, credentials::Proof,
        credentials_service_client::CredentialsServiceClient, scram_credentials::ScramKeys,
        x509_credentials::LeafRules,
    },
    wire::{AppliedPosition, AuthClientType, CredentialsRecord, NodeApplied, Role, credentials_record},
};
use tonic::{Code, Response, Status, transport::Channel};

use crate::support::{Cluster, ControlPlane, eventually, fields, reason};

type Client = CredentialsServiceClient<Channel>;

fn client(plane: &ControlPlane) -> Client {
    CredentialsServiceClient::new(plane.channel.clone())
}

fn allow(topic: &str) -> AccessRule {
    AccessRule { topic: Some(access_rule::Topic::Filter(topic.to_owned())), ..AccessRule::default() }
}

fn basic(user: &str, password: Option<&str>) -> Credentials {
    let proof = BasicCredentials {
        user_name: Some(user.to_owned()),
        password: password.map(ToOwned::to_owned),
        rules: vec![allow("a/#")],
        ..BasicCredentials::default()
    };
    Credentials {
        display_name: format!("of {user}"),
        proof: Some(Proof::Basic(proof)),
        ..Credentials::default()
    }
}

fn scram(user: &str, password: Option<&str>) -> Credentials {
    let proof = ScramCredentials {
        user_name: user.to_owned(),
        password: password.map(ToOwned::to_owned),
        ..ScramCredentials::default()
    };
    Credentials {
        display_name: format!("of {user}"),
        proof: Some(Proof::Scram(proof)),
        ..Credentials::default()
    }
}

fn x509(common_name: &str) -> Credentials {
    let leaf = LeafRules { pattern: ".*".to_owned(), rules: vec![allow("x/${cn}/#")] };
    let proof =
        X509Credentials { common_name: common_name.to_owned(), is_pattern: false, leaf_rules: vec![leaf] };
    let client_type = ClientType::Application.into();
    Credentials {
        display_name: format!("of {common_name}"),
        client_type,
        proof: Some(Proof::X509(proof)),
        ..Credentials::default()
    }
}

async fn create(client: &Client, credentials: Credentials) -> Result<Credentials, Status> {
    let request =
        CreateCredentialsRequest { credentials: Some(credentials), ..CreateCredentialsRequest::default() };
    client.clone().create_credentials(request).await.map(Response::into_inner)
}

async fn get(client: &Client, name: &str) -> Result<Credentials, Status> {
    let request = GetCredentialsRequest { name: name.to_owned() };
    client.clone().get_credentials(request).await.map(Response::into_inner)
}

async fn update(client: &Client, credentials: Credentials, mask: &[&str]) -> Result<Credentials, Status> {
    let paths: Vec<String> = mask.iter().map(|path| (*path).to_owned()).collect();
    let request = UpdateCredentialsRequest {
        credentials: Some(credentials),
        update_mask: (!paths.is_empty()).then_some(FieldMask { paths }),
        ..UpdateCredentialsRequest::default()
    };
    client.clone().update_credentials(request).await.map(Response::into_inner)
}

async fn names(client: &Client, request: ListCredentialsRequest) -> Vec<String> {
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListCredentialsRequest { page_token, page_size: 2, ..request.clone() };
        let page = client.clone().list_credentials(request).await.unwrap().into_inner();
        names.extend(page.credentials.into_iter().map(|one| one.credentials_id));
        assert!(names.len() as i64 <= page.total_size);
        if page.next_page_token.is_empty() {
            assert_eq!(names.len() as i64, page.total_size);
            return names;
        }
        page_token = page.next_page_token;
    }
}

/// The record of a credential, and its revision; `None`: it is gone.
async fn record(cluster: &Cluster, uid: &str) -> (Option<u64>, Option<CredentialsRecord>) {
    let held = cluster.latest(&cluster.catalogue.credentials().name).await.remove(uid);
    let (revision, value) = held.unwrap_or_default();
    (revision, value.map(|value| CredentialsRecord::decode(value).unwrap()))
}

async fn hash_of(cluster: &Cluster, uid: &str) -> Option<String> {
    match record(cluster, uid).await.1?.proof? {
        credentials_record::Proof::Basic(basic) => basic.password_hash,
        _ => None,
    }
}

async fn contract(configure: impl Fn(&mut Config)) {
    let cluster = Cluster::new();
    let plane = cluster.control_plane_with("cp1", configure).await;
    let client = client(&plane);
    every_type_is_saved_and_written(&cluster, &client).await;
    updates_change_what_they_name(&cluster, &client).await;
    passwords_are_changed_by_those_who_know_them(&cluster, &client).await;
    requests_are_done_once(&client).await;
    imports_tell_of_each(&cluster, &client).await;
    lists_are_filtered_and_paged(&client).await;
    what_is_deleted_is_withdrawn(&cluster, &client).await;
}

#[tokio::test]
async fn credentials_keep_their_contract_on_sqlite() {
    contract(|_| {}).await;
}

#[tokio::test]
async fn credentials_keep_their_contract_on_postgres() {
    if ready("credentials_keep_their_contract_on_postgres", &[Need::Postgres]) {
        let url = DatabaseUrl::new(crate::postgres::options().url);
        contract(move |config| config.database.url = Some(url.clone())).await;
    }
}

async fn every_type_is_saved_and_written(cluster: &Cluster, client: &Client) {
    let created = create(client, basic("u", Some("s3cret"))).await.unwrap();
    assert_eq!(created.credentials_id, "username|u");
    assert_eq!(created.r#type(), CredentialsType::MqttBasic);
    assert_eq!(created.client_type(), ClientType::Device);
    assert_eq!(created.name, format!("credentials/{}", created.uid));
    let Some(Proof::Basic(shown)) = &created.proof else { panic!("{created:?}") };
    assert_eq!((shown.password.as_deref(), shown.password_hash.as_deref()), (None, None));
    assert!(shown.has_password);
    let rule = AccessRule {
        effect: access_rule::Effect::Allow.into(),
        action: access_rule::Action::Both.into(),
        ..allow("a/#")
    };
    assert_eq!(shown.rules, [rule]);
    let (revision, held) = record(cluster, &created.uid).await;
    let held = held.expect("an answered call was written");
    assert_eq!((revision, held.revision), (Some(created.revision), created.revision));
    assert_eq!(held.client_type(), AuthClientType::Device);
    let hash = hash_of(cluster, &created.uid).await.unwrap();
    assert!(hash.starts_with("$argon2id$") && password::verify(b"s3cret", &hash));

    let created = create(client, scram("s", Some("s3cret"))).await.unwrap();
    assert_eq!(created.credentials_id, "scram|s");
    let Some(Proof::Scram(shown)) = &created.proof else { panic!("{created:?}") };
    assert_eq!((shown.algorithm.as_str(), &shown.password, &shown.keys), ("SHA_256", &None, &None));
    let Some(credentials_record::Proof::Scram(held)) = record(cluster, &created.uid).await.1.unwrap().proof
    else {
        panic!("no SCRAM");
    };
    let derived =
        StoredKeys::derive(tbmq_auth::scram::Algorithm::Sha256, "s3cret", &held.salt, held.iterations)
            .unwrap();
    assert_eq!((derived.stored, derived.server), (held.stored_key.to_vec(), held.server_key.to_vec()));

    let created = create(client, x509("device-1")).await.unwrap();
    assert_eq!(
        (created.credentials_id.as_str(), created.client_type()),
        ("ssl|device-1", ClientType::Application)
    );
    let held = record(cluster, &created.uid).await.1.unwrap();
    assert_eq!(held.client_type(), AuthClientType::Application);

    let taken = create(client, basic("u", None)).await.unwrap_err();
    assert_eq!(reason(&taken), (Code::AlreadyExists, "CREDENTIALS_TAKEN".to_owned()));
    let both = BasicCredentials {
        client_id: Some("c".into()),
        user_name: Some("u".into()),
        ..BasicCredentials::default()
    };
    let both =
        Credentials { display_name: "b".into(), proof: Some(Proof::Basic(both)), ..Default::default() };
    assert_eq!(create(client, both).await.unwrap().credentials_id, "mixed|u|c");
    bad_ones_are_refused(client).await;
}

async fn bad_ones_are_refused(client: &Client) {
    let with_basic = |change: &dyn Fn(&mut BasicCredentials)| {
        let mut proof = BasicCredentials { user_name: Some("bad".to_owned()), ..BasicCredentials::default() };
        change(&mut proof);
        Credentials { display_name: "bad".into(), proof: Some(Proof::Basic(proof)), ..Credentials::default() }
    };
    let weak = ScramKeys { iterations: 1, ..ScramKeys::default() };
    let weak = ScramCredentials { user_name: "u".into(), keys: Some(weak), ..ScramCredentials::default() };
    let bad_filter =
        AccessRule { topic: Some(access_rule::Topic::Filter("a/#/b".into())), ..AccessRule::default() };
    let bad_regex =
        AccessRule { topic: Some(access_rule::Topic::Regex("(".into())), ..AccessRule::default() };
    for (credentials, paths) in [
        (Credentials::default(), &["credentials.display_name", "credentials"][..]),
        (with_basic(&|proof| proof.user_name = None), &["credentials.basic"]),
        (with_basic(&|proof| proof.user_name = Some(String::new())), &["credentials.basic"]),
        (with_basic(&|proof| proof.user_name = Some("\0".into())), &["credentials.basic.user_name"]),
        (with_basic(&|proof| proof.password = Some(String::new())), &["credentials.basic.password"]),
        (
            with_basic(&|proof| proof.password_hash = Some("plain".into())),
            &["credentials.basic.password_hash"],
        ),
        (
            with_basic(&|proof| {
                proof.password_hash =
                    Some("$2a$31$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi".into());
            }),
            &["credentials.basic.password_hash"],
        ),
        (
            with_basic(&|proof| proof.rules = vec![allow("a"), bad_filter.clone(), bad_regex.clone()]),
            &["credentials.basic.rules[1]", "credentials.basic.rules[2]"],
        ),
        (with_basic(&|proof| proof.rules = vec![AccessRule::default()]), &["credentials.basic.rules[0]"]),
        (
            with_basic(&|proof| proof.rules = vec![AccessRule { qos: vec![3], ..allow("a") }]),
            &["credentials.basic.rules[0]"],
        ),
        (scram("x", None), &["credentials.scram.password"]),
        (
            Credentials { display_name: "w".into(), proof: Some(Proof::Scram(weak)), ..Default::default() },
            &["credentials.scram.keys"],
        ),
    ] {
        let refused = create(client, credentials.clone()).await.expect_err(&format!("{credentials:?}"));
        assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_CREDENTIALS".to_owned()), "{refused}");
        assert_eq!(fields(&refused), paths, "{refused}");
    }
}

async fn updates_change_what_they_name(cluster: &Cluster, client: &Client) {
    let created = create(client, basic("changes", Some("first"))).await.unwrap();
    let hash = hash_of(cluster, &created.uid).await.unwrap();
    // Without a password the old one stays, also where everything else is replaced.
    let mut given = basic("changes", None);
    given.name.clone_from(&created.name);
    "renamed".clone_into(&mut given.display_name);
    let renamed = update(client, given.clone(), &[]).await.unwrap();
    assert!(renamed.revision > created.revision);
    assert_eq!(renamed.display_name, "renamed");
    assert_eq!(hash_of(cluster, &created.uid).await.as_deref(), Some(hash.as_str()));
    let same = update(client, given.clone(), &[]).await.unwrap();
    assert_eq!(same.revision, renamed.revision, "nothing has changed");

    let Some(Proof::Basic(proof)) = &mut given.proof else { panic!() };
    proof.rules = vec![allow("b")];
    proof.user_name = Some("other".to_owned());
    let changed = update(client, given.clone(), &["basic.rules"]).await.unwrap();
    let Some(Proof::Basic(shown)) = &changed.proof else { panic!() };
    assert_eq!(shown.user_name.as_deref(), Some("changes"), "only the rules are named");
    assert_eq!(shown.rules[0].topic, allow("b").topic);
    assert!(shown.has_password);

    let stale = Credentials { etag: created.etag.clone(), ..given.clone() };
    let error = update(client, stale, &["display_name"]).await.unwrap_err();
    assert_eq!(reason(&error), (Code::Aborted, "ETAG_MISMATCH".to_owned()));
    let error = update(client, given.clone(), &["nonsense"]).await.unwrap_err();
    assert_eq!(fields(&error), ["update_mask"]);
    let other = Credentials { name: created.name.clone(), ..x509("y") };
    let error = update(client, other, &[]).await.unwrap_err();
    assert_eq!(reason(&error), (Code::InvalidArgument, "TYPE_IMMUTABLE".to_owned()));
    let taken = update(client, Credentials { name: created.name.clone(), ..basic("u", None) }, &[]).await;
    assert_eq!(reason(&taken.unwrap_err()), (Code::AlreadyExists, "CREDENTIALS_TAKEN".to_owned()));

    // Any password is accepted only where somebody says so.
    let opened = update(client, given, &["basic.password"]).await.unwrap();
    let Some(Proof::Basic(shown)) = &opened.proof else { panic!() };
    assert!(!shown.has_password);
    assert_eq!(hash_of(cluster, &created.uid).await, None);
    let absent = update(
        client,
        Credentials { name: format!("credentials/{}", uuid::Uuid::nil()), ..basic("q", None) },
        &[],
    )
    .await;
    assert_eq!(reason(&absent.unwrap_err()), (Code::NotFound, "NOT_FOUND".to_owned()));
}

async fn passwords_are_changed_by_those_who_know_them(cluster: &Cluster, client: &Client) {
    for credentials in [basic("pw", Some("old")), scram("pw", Some("old"))] {
        let created = create(client, credentials).await.unwrap();
        let change = |current: &str, new: &str| {
            let request = ChangePasswordRequest {
                name: created.name.clone(),
                current_password: current.to_owned(),
                new_password: new.to_owned(),
            };
            let mut client = client.clone();
            async move { client.change_password(request).await.map(Response::into_inner) }
        };
        let before = record(cluster, &created.uid).await;
        for (current, expected) in [("", "WRONG_PASSWORD"), ("new", "WRONG_PASSWORD")] {
            let error = change(current, "new").await.unwrap_err();
            assert_eq!(reason(&error), (Code::FailedPrecondition, expected.to_owned()));
        }
        assert_eq!(fields(&change("old", "").await.unwrap_err()), ["new_password"]);
        assert_eq!(record(cluster, &created.uid).await, before);
        let changed = change("old", "new").await.unwrap();
        assert!(changed.revision > created.revision);
        assert!(change("old", "other").await.is_err(), "it is not the password any more");
        change("new", "newer").await.unwrap();
    }
    let created = create(client, x509("no-password")).await.unwrap();
    let request =
        ChangePasswordRequest { name: created.name, new_password: "x".to_owned(), ..Default::default() };
    let error = client.clone().change_password(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

async fn requests_are_done_once(client: &Client) {
    let request = CreateCredentialsRequest {
        credentials: Some(basic("once", Some("p"))),
        request_id: "r1".to_owned(),
        ..CreateCredentialsRequest::default()
    };
    let mut client = client.clone();
    let first = client.create_credentials(request.clone()).await.unwrap().into_inner();
    let again = client.create_credentials(request.clone()).await.unwrap().into_inner();
    assert_eq!((again.uid, again.revision), (first.uid.clone(), first.revision));
    let other = CreateCredentialsRequest { credentials: Some(basic("twice", Some("p"))), ..request.clone() };
    assert_eq!(fields(&client.create_credentials(other).await.unwrap_err()), ["request_id"]);
    let preview = CreateCredentialsRequest {
        credentials: Some(basic("preview", Some("p"))),
        validate_only: true,
        ..CreateCredentialsRequest::default()
    };
    let shown = client.create_credentials(preview).await.unwrap().into_inner();
    assert_eq!((shown.revision, shown.etag.as_str()), (0, ""));
    assert!(get(&client, &shown.name).await.is_err(), "nothing was saved");
    let taken = CreateCredentialsRequest {
        credentials: Some(basic("other id", None)),
        id: first.uid,
        ..CreateCredentialsRequest::default()
    };
    let error = client.create_credentials(taken).await.unwrap_err();
    assert_eq!(reason(&error), (Code::AlreadyExists, "ID_TAKEN".to_owned()));
}

async fn imports_tell_of_each(cluster: &Cluster, client: &Client) {
    let mut client = client.clone();
    let mut import = async |credentials: Vec<Credentials>, replace| {
        let request = ImportCredentialsRequest { credentials, replace, validate_only: false };
        client.import_credentials(request).await.unwrap().into_inner().outcomes
    };
    let hashed = |user: &str| {
        let mut credentials = basic(user, None);
        let Some(Proof::Basic(proof)) = &mut credentials.proof else { panic!() };
        proof.password_hash = Some("$2a$10$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi".to_owned());
        credentials
    };
    let mut all: Vec<Credentials> = (0..300).map(|number| hashed(&format!("import-{number}"))).collect();
    all.push(Credentials::default());
    all.push(hashed("import-0"));
    all.push(basic("import-p", Some("p")));
    let outcomes = import(all, false).await;
    let codes: Vec<&str> = outcomes.iter().map(|outcome| outcome.code.as_str()).collect();
    assert!(codes[..300].iter().all(|code| *code == "OK"), "{outcomes:?}");
    assert_eq!(codes[300..], ["INVALID_ARGUMENT", "ALREADY_EXISTS", "OK"], "{:?}", &outcomes[300..]);
    assert!(outcomes[300].error.contains("display_name") && outcomes[301].name.is_empty());
    let uid = |at: usize| outcomes[at].name.trim_start_matches("credentials/").to_owned();
    eventually("all are written", async || {
        let held = cluster.latest(&cluster.catalogue.credentials().name).await;
        (0..300).chain([302]).all(|at| held.contains_key(&uid(at)))
    })
    .await;

    let again = import(vec![hashed("import-0"), basic("import-1", None)], false).await;
    assert!(again.iter().all(|outcome| outcome.code == "ALREADY_EXISTS"));
    let mut changed = basic("import-1", None);
    "replaced".clone_into(&mut changed.display_name);
    let again = import(vec![hashed("import-0"), changed], true).await;
    assert_eq!((again[0].code.as_str(), &again[0].name), ("OK", &outcomes[0].name));
    let replaced = get(&client, &outcomes[1].name).await.unwrap();
    let Some(Proof::Basic(shown)) = &replaced.proof else { panic!() };
    assert!(replaced.display_name == "replaced" && shown.has_password, "the old password stays");
    let too_many = vec![Credentials::default(); 1_001];
    let request = ImportCredentialsRequest { credentials: too_many, ..ImportCredentialsRequest::default() };
    assert_eq!(fields(&client.import_credentials(request).await.unwrap_err()), ["credentials"]);
}

async fn lists_are_filtered_and_paged(client: &Client) {
    let request = ListCredentialsRequest::default;
    let found = names(client, ListCredentialsRequest { text_search: "OF DEVICE".into(), ..request() }).await;
    assert_eq!(found, ["ssl|device-1"]);
    let scram =
        names(client, ListCredentialsRequest { r#type: CredentialsType::Scram.into(), ..request() }).await;
    assert_eq!(scram, ["scram|pw", "scram|s"], "by their names");
    let of_user = ListCredentialsRequest { user_name: "PW".into(), ..request() };
    assert_eq!(names(client, of_user).await.len(), 2);
    let applications =
        names(client, ListCredentialsRequest { client_type: ClientType::Application.into(), ..request() })
            .await;
    assert_eq!(applications, ["ssl|device-1", "ssl|no-password"]);
    let of_client = ListCredentialsRequest { client_id: "c".into(), ..request() };
    assert_eq!(names(client, of_client).await, ["mixed|u|c"]);
    let none = ListCredentialsRequest { common_name: "100%".into(), ..request() };
    assert_eq!(names(client, none).await, Vec::<String>::new());
    let page = client.clone().list_credentials(ListCredentialsRequest { page_size: 1, ..request() }).await;
    let foreign = ListCredentialsRequest {
        page_token: page.unwrap().into_inner().next_page_token,
        text_search: "x".into(),
        ..request()
    };
    assert_eq!(fields(&client.clone().list_credentials(foreign).await.unwrap_err()), ["page_token"]);
}

async fn what_is_deleted_is_withdrawn(cluster: &Cluster, client: &Client) {
    let created = create(client, basic("gone", None)).await.unwrap();
    let delete = |etag: &str| DeleteCredentialsRequest {
        name: created.name.clone(),
        etag: etag.to_owned(),
        ..DeleteCredentialsRequest::default()
    };
    let stale = client.clone().delete_credentials(delete("\"1\"")).await.unwrap_err();
    assert_eq!(reason(&stale), (Code::Aborted, "ETAG_MISMATCH".to_owned()));
    client.clone().delete_credentials(delete(&created.etag)).await.unwrap();
    assert_eq!(get(client, &created.name).await.unwrap_err().code(), Code::NotFound);
    eventually("withdrawn", async || {
        let (revision, held) = record(cluster, &created.uid).await;
        held.is_none() && revision > Some(created.revision)
    })
    .await;
    let again = create(client, basic("gone", None)).await.unwrap();
    assert_ne!(again.uid, created.uid, "its key is free again");
}

/// Says what a data plane has applied of the credentials' topic: in each partition so much.
async fn say_applied(cluster: &Cluster, position: u64) {
    let topic = cluster.catalogue.credentials();
    let at = |partition| AppliedPosition { topic: topic.name.clone(), partition, position };
    let applied = NodeApplied {
        service_id: "dp1".to_owned(),
        role: Role::DataPlane.into(),
        incarnation: "1".to_owned(),
        positions: (0..topic.partitions).map(at).collect(),
        time_ms: tbmq_service::time::now_ms(),
        ..NodeApplied::default()
    };
    cluster.put(&cluster.catalogue.node_applied().name, "dp1", &applied.encode_to_vec()).await;
}

#[tokio::test]
async fn a_call_waits_for_data_planes_that_follow_the_topic_and_names_the_silent() {
    let cluster = Cluster::new();
    let plane = cluster
        .control_plane_with("cp1", |config| {
            config.control.apply_timeout = std::time::Duration::from_millis(300);
        })
        .await;
    let mut client = client(&plane);
    // One that knows nothing of credentials is not waited for.
    cluster.say_alive("dp-old", Role::DataPlane, &[], Some(1_000)).await;
    let created = create(&client, basic("a", None)).await.unwrap();
    assert_eq!(created.observed_revision, 0, "nobody has applied it");
    say_applied(&cluster, 1_000).await;
    eventually("applied", async || {
        get(&client, &created.name).await.unwrap().observed_revision == created.revision
    })
    .await;
    let second = create(&client, basic("b", None)).await.unwrap();
    assert_eq!(second.observed_revision, second.revision);
    say_applied(&cluster, 0).await;
    let request = CreateCredentialsRequest {
        credentials: Some(basic("c", None)),
        ..CreateCredentialsRequest::default()
    };
    eventually("it is seen to lag", async || {
        get(&client, &created.name).await.unwrap().observed_revision == 0
    })
    .await;
    let response = client.create_credentials(request).await.unwrap();
    assert_eq!(response.metadata().get("tbmq-silent-nodes").unwrap(), "dp1");
}

#[tokio::test]
async fn after_the_loss_of_the_topic_or_the_store_the_bus_agrees_with_the_store() {
    let mut cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let kept = create(&client(&plane), basic("kept", Some("p"))).await.unwrap();
    let hash = hash_of(&cluster, &kept.uid).await;
    plane.running.drain().await;
    // Another bus, the same store.
    cluster.bus = tbmq_bus::memory::MemoryBus::new();
    let plane = cluster.control_plane("cp1").await;
    eventually("written again", async || {
        let (revision, held) = record(&cluster, &kept.uid).await;
        revision == Some(kept.revision) && held.is_some()
    })
    .await;
    assert_eq!(hash_of(&cluster, &kept.uid).await, hash);
    plane.running.drain().await;
    // The same bus, another store.
    let new = Cluster { bus: cluster.bus.clone(), ..Cluster::new() };
    let plane = new.control_plane("cp1").await;
    eventually("withdrawn", async || record(&new, &kept.uid).await.1.is_none()).await;
    let created = create(&client(&plane), basic("new", None)).await.unwrap();
    assert!(created.revision > kept.revision, "revisions go on above what nodes have seen");
}
