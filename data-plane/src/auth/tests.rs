use std::{collections::BTreeSet, future::poll_fn, net::SocketAddr, task::Poll};

use futures_util::FutureExt as _;
use ring::rand::SystemRandom;
use serde_json::json;
use tbmq_auth::{provider::Provider, scram::Algorithm};
use tbmq_integration::{
    provider as configuration,
    seal::{Parted, Purpose},
    secret,
};
use tbmq_mqtt::{packet::ProtocolVersion, session::Access as _};
use tbmq_proto::{
    queue::BlockedClientTypeProto,
    topic::REVISION_HEADER,
    wire::{AuthProvider, AuthProviders, auth_setting::Setting},
};
use uuid::Uuid;

use super::{
    samples::{
        KeyValue, allow, basic, blocked, blocked_client, cheap, client_final, client_first, credentials,
        provider, scram, setting, x509,
    },
    *,
};
use crate::mailbox::{Client, Mail, QueueLimits};

/// A judge who knows these records.
struct Court {
    auth: Arc<Auth>,
    names: Names,
    metrics: Metrics,
}

impl Court {
    fn new(settings: &[KeyValue], credentials: &[KeyValue]) -> Self {
        Self::with_keys(&Keys::default(), settings, credentials)
    }

    fn with_keys(keys: &Keys, settings: &[KeyValue], credentials: &[KeyValue]) -> Self {
        let (config, metrics) = (AuthConfig::default(), Metrics::default());
        let auth = Auth::new(&config, keys.clone(), "node".into(), metrics.clone()).unwrap();
        let court = Self { auth, names: Names::new(&Catalogue::default()), metrics };
        court.knows(Topic::Settings, settings);
        court.knows(Topic::Credentials, credentials);
        court
    }

    fn knows(&self, topic: Topic, records: &[KeyValue]) {
        for (key, value) in records {
            self.record(topic, key, Some(value), None);
        }
    }

    fn record(&self, topic: Topic, key: &str, value: Option<&[u8]>, revision: Option<&str>) {
        let catalogue = Catalogue::default();
        let topic = match topic {
            Topic::Credentials => catalogue.credentials(),
            Topic::Settings => catalogue.auth_settings(),
            Topic::Blocked => catalogue.blocked_clients(),
        };
        let header = |revision| tbmq_bus::Header::text(REVISION_HEADER, revision);
        let record = Record {
            offset: 0,
            timestamp_ms: 0,
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: value.map(Bytes::copy_from_slice),
            headers: revision.into_iter().map(header).collect(),
        };
        self.auth.apply(&self.names, &TopicPartition::new(topic.name, 0), &[record]);
    }

    async fn judge(&self, claim: Claim) -> Verdict {
        let mailbox = mailbox(1);
        match self.auth.judge(claim, &mailbox, &mut None) {
            Verdict::Later => later(&mailbox).await,
            verdict => verdict,
        }
    }

    /// Details of who was let in, or the reason why not.
    async fn outcome(&self, claim: Claim) -> Result<Box<str>, ReasonCode> {
        match self.judge(claim).await {
            Verdict::Accept(admission) => Ok(admission.details),
            Verdict::Refuse(refusal) => Err(refusal.reason),
            other => panic!("no verdict: {other:?}"),
        }
    }

    async fn reasons(&self, claim: Claim) -> Box<str> {
        match self.judge(claim).await {
            Verdict::Refuse(refusal) => refusal.text,
            other => panic!("not refused: {other:?}"),
        }
    }
}

fn mailbox(number: u64) -> Arc<Mailbox> {
    Arc::new(Mailbox::new(number, QueueLimits { messages: 1, bytes: 1 }))
}

async fn mail(mailbox: &Mailbox) -> Mail {
    let mut mail = Mail::default();
    let came = poll_fn(|cx| {
        mailbox.register(cx.waker());
        if mailbox.take(&mut mail) { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::time::timeout(std::time::Duration::from_secs(20), came).await.expect("mail in time");
    mail
}

async fn later(mailbox: &Mailbox) -> Verdict {
    *mail(mailbox).await.verdict.expect("a verdict")
}

fn peer() -> SocketAddr {
    "10.0.0.1:4000".parse().unwrap()
}

fn claim(user_name: Option<&str>, password: Option<&str>) -> Claim {
    Claim {
        client_id: "c".into(),
        username: user_name.map(Into::into),
        password: password.map(|password| Bytes::copy_from_slice(password.as_bytes())),
        common_names: [].into(),
        peer: peer(),
        is_local: false,
        is_tls: false,
        method: None,
    }
}

fn with_names(names: &[&str]) -> Claim {
    let common_names = names.iter().map(|name| Box::from(*name)).collect();
    Claim { common_names, ..claim(None, None) }
}

fn with_method(method: &str, data: &str) -> Claim {
    let method = Some((method.into(), Bytes::copy_from_slice(data.as_bytes())));
    Claim { method, ..claim(None, None) }
}

fn providers(names: &[&str]) -> KeyValue {
    let priorities = names.iter().map(|name| (*name).to_owned()).collect();
    setting("providers", 1, Setting::Providers(AuthProviders { priorities }))
}

fn basic_provider() -> KeyValue {
    provider("MQTT_BASIC", "")
}

fn known() -> Vec<KeyValue> {
    vec![
        credentials(1, 1, basic("u", Some(cheap("secret")), vec![allow("a/#")])),
        credentials(2, 1, basic("open", None, vec![])),
        credentials(3, 1, x509("device", vec![allow("b/#")])),
        credentials(4, 1, scram(Algorithm::Sha256, "s", "pencil", vec![allow("c/#")])),
    ]
}

#[tokio::test]
async fn without_a_provider_everyone_on_this_machine_may_do_everything_as_a_device() {
    let court = Court::new(&[], &known());
    let claim = |is_local| Claim { is_local, ..claim(Some("u"), Some("wrong")) };
    assert_eq!(court.outcome(claim(false)).await, Err(ReasonCode::NotAuthorized));
    match court.judge(claim(true)).await {
        Verdict::Accept(admission) => {
            assert_eq!((admission.client_type, &*admission.details), (ClientType::Device, ""));
            assert!(matches!(admission.access, Access::Everything) && admission.bearer.is_none());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_provider_lets_in_who_proves_to_be_meant_and_with_the_rights_of_the_credential() {
    let court = Court::new(&[basic_provider(), provider("X_509", "{}")], &known());
    for (claim, expected) in [
        (claim(Some("u"), Some("secret")), Ok("MQTT_BASIC: sample")),
        (claim(Some("u"), Some("secret")), Ok("MQTT_BASIC: sample")),
        (claim(Some("u"), Some("Secret")), Err(ReasonCode::NotAuthorized)),
        (claim(Some("u"), None), Err(ReasonCode::NotAuthorized)),
        (claim(Some("unknown"), Some("secret")), Err(ReasonCode::NotAuthorized)),
        (claim(None, None), Err(ReasonCode::NotAuthorized)),
        (claim(Some("open"), None), Ok("MQTT_BASIC: sample")),
        (with_names(&["device", "authority"]), Ok("X_509: sample")),
        (with_names(&["other", "device"]), Ok("X_509: sample")),
        (with_names(&["other"]), Err(ReasonCode::NotAuthorized)),
    ] {
        let said = format!("{:?} {:?} {:?}", claim.username, claim.password, claim.common_names);
        assert_eq!(court.outcome(claim).await.as_deref().map_err(|reason| *reason), expected, "{said}");
    }
    assert_eq!(court.metrics.hashes.get(), 3, "the second time it was known");
    let Verdict::Accept(mut admission) = court.judge(claim(Some("u"), Some("secret"))).await else {
        panic!("refused")
    };
    assert!(admission.access.may_publish("a/b", Qos::AtLeastOnce, false));
    assert!(!admission.access.may_publish("b", Qos::AtLeastOnce, false));
    assert_eq!(admission.bearer.unwrap().credentials(), Some(Uuid::from_u128(1)));
}

#[tokio::test]
async fn providers_are_asked_in_their_order_and_all_their_reasons_are_told() {
    let both = [basic_provider(), provider("X_509", "")];
    let court = Court::new(&both, &[]);
    let basic_first =
        "MQTT_BASIC: no credential without a password | X_509: no client certificate with a common name";
    assert_eq!(&*court.reasons(claim(None, None)).await, basic_first);
    court.knows(Topic::Settings, &[providers(&["X_509", "MQTT_BASIC"])]);
    assert!(court.reasons(claim(None, None)).await.starts_with("X_509: "));
    court.record(Topic::Settings, "providers", None, None);
    assert_eq!(&*court.reasons(claim(None, None)).await, basic_first);
    let only_x509 = AuthProvider { r#type: "MQTT_BASIC".to_owned(), ..AuthProvider::default() };
    court.knows(Topic::Settings, &[setting("provider/MQTT_BASIC", 2, Setting::Provider(only_x509))]);
    assert!(court.reasons(claim(None, None)).await.starts_with("X_509: "));
    court.knows(Topic::Settings, &[basic_provider()]);
    assert!(court.reasons(claim(None, None)).await.starts_with("X_509: "), "of an older revision");
}

#[tokio::test]
async fn a_provider_whose_settings_cant_be_used_lets_nobody_in_and_leaves_the_door_shut() {
    for broken in [
        provider("MQTT_BASIC", "{\"authStrategy\": \"ANY\"}"),
        provider("MQTT_BASIC", "not JSON"),
        ("provider/MQTT_BASIC".to_owned(), vec![0xFF]),
        ("provider/MQTT_BASIC".to_owned(), provider("X_509", "").1),
        provider("HTTP", ""),
    ] {
        let court = Court::new(&[broken], &known());
        let refused = Err(ReasonCode::NotAuthorized);
        assert_eq!(court.outcome(claim(Some("u"), Some("secret"))).await, refused);
        assert_eq!(court.outcome(claim(None, None)).await, refused);
    }
}

const SECRETS: [&str; 2] =
    ["one secret of thirty-two bytes, or more", "two secrets of thirty-two bytes, or more"];

fn key(id: char) -> Keys {
    Keys::parse(&format!("{id}:{}A=", id.to_string().repeat(42))).unwrap()
}

/// The provider of JWTs with a secret that is sealed with a key.
fn sealed(revision: u64, enabled: bool, secret: &str, id: char) -> KeyValue {
    let schema = json!({
        "properties": { "secret": { "writeOnly": true } },
        "additionalProperties": { "$ref": "#" },
    });
    let algorithm = json!({ "algorithm": "HMAC_BASED", "secret": secret });
    let verifier =
        json!({ "jwtVerifierType": "ALGORITHM_BASED", "jwtSignAlgorithmConfiguration": algorithm });
    let rules = json!({ "pubAuthRulePatterns": [".*"] });
    let document = json!({ "jwtVerifierConfiguration": verifier, "authRules": rules }).to_string();
    let document = configuration::wrap(&document);
    let secrets = secret::find(Some(&schema), &document);
    let (random, purpose) = (SystemRandom::new(), Purpose::Revision(revision));
    let provider = configuration::sealed_for("JWT");
    let parted = key(id).part(&random, provider, purpose, &document, &secrets).unwrap();
    let Parted { plain, sealed } = parted.expect("there is a secret");
    assert!(!plain.contains(secret), "{plain}");
    let provider = AuthProvider {
        r#type: "JWT".to_owned(),
        enabled,
        configuration_json: configuration::unwrap(&plain).to_owned(),
        sealed: Some(configuration::encode(&sealed)),
    };
    setting("provider/JWT", revision, Setting::Provider(provider))
}

fn token(secret: &str) -> Claim {
    let (header, key) = (jsonwebtoken::Header::default(), secret.as_bytes());
    let key = jsonwebtoken::EncodingKey::from_secret(key);
    let token = jsonwebtoken::encode(&header, &json!({ "sub": "c" }), &key).unwrap();
    claim(Some("u"), Some(&token))
}

/// Somebody who is let in while nobody is asked for anything.
fn local() -> Claim {
    Claim { is_local: true, ..claim(None, None) }
}

#[tokio::test]
async fn a_sealed_provider_is_opened_with_its_key_and_without_it_lets_nobody_in() {
    let record = sealed(1, true, SECRETS[0], 'a');
    let court = Court::with_keys(&key('a'), std::slice::from_ref(&record), &[]);
    assert_eq!(court.outcome(token(SECRETS[0])).await.as_deref(), Ok("JWT"));
    assert_eq!(court.outcome(token(SECRETS[1])).await, Err(ReasonCode::NotAuthorized));
    for keys in [Keys::default(), key('b')] {
        let court = Court::with_keys(&keys, std::slice::from_ref(&record), &known());
        for claim in [token(SECRETS[0]), token(secret::MASK), local()] {
            let reasons = court.reasons(claim).await;
            assert!(reasons.contains("key \"a\"") && reasons.contains("TBMQ_SECRETS_KEYS"), "{reasons}");
        }
        assert!(court.auth.settings().problems.contains_key(&Provider::Jwt));
    }
}

#[tokio::test]
async fn settings_that_cant_be_opened_leave_those_from_before_and_never_open_the_door() {
    let has_problem = |court: &Court| court.auth.settings().problems.contains_key(&Provider::Jwt);
    let court = Court::with_keys(&key('a'), &[sealed(1, true, SECRETS[0], 'a')], &[]);
    court.knows(Topic::Settings, &[sealed(2, true, SECRETS[1], 'b')]);
    assert_eq!(court.outcome(token(SECRETS[0])).await.as_deref(), Ok("JWT"));
    assert_eq!(court.outcome(token(SECRETS[1])).await, Err(ReasonCode::NotAuthorized));
    assert!(has_problem(&court));
    // The same again, with a key that is here.
    court.knows(Topic::Settings, &[sealed(2, true, SECRETS[1], 'a')]);
    assert_eq!(court.outcome(token(SECRETS[1])).await.as_deref(), Ok("JWT"));
    assert!(!has_problem(&court));
    // No key is needed to disable it.
    court.knows(Topic::Settings, &[sealed(3, false, SECRETS[1], 'b')]);
    assert!(court.outcome(local()).await.is_ok() && !has_problem(&court));
    court.knows(Topic::Settings, &[sealed(4, true, SECRETS[1], 'b')]);
    assert_eq!(court.outcome(local()).await, Err(ReasonCode::NotAuthorized));
    assert!(has_problem(&court));
}

#[tokio::test]
async fn a_strategy_says_by_what_credentials_are_found() {
    let by_client = provider("MQTT_BASIC", "{\"type\":\"MQTT_BASIC\",\"authStrategy\":\"CLIENT_ID\"}");
    let court = Court::new(&[by_client], &known());
    assert_eq!(court.outcome(claim(Some("open"), None)).await, Err(ReasonCode::NotAuthorized));
    let court = Court::new(&[provider("MQTT_BASIC", "null")], &known());
    assert!(court.outcome(claim(Some("open"), None)).await.is_ok());
}

#[tokio::test]
async fn who_is_blocked_is_refused_whatever_it_proves_until_the_block_is_over() {
    let court = Court::new(&[basic_provider()], &known());
    let good = || claim(Some("u"), Some("secret"));
    let address = BlockedClientTypeProto::BlockedClientTypeIpAddress;
    let user = BlockedClientTypeProto::BlockedClientTypeUsername;
    for (key, value) in [
        blocked_client("c", 0),
        blocked(address, "10.0.0.0/8", "ipAddress:10.0.0.0/8", i64::MAX),
        blocked(user, "u", "username:u", 0),
    ] {
        court.record(Topic::Blocked, &key, Some(&value), None);
        assert_eq!(court.outcome(good()).await, Err(ReasonCode::Banned), "{key}");
        let with_scram = Claim { username: Some("u".into()), ..with_method("SCRAM-SHA-256", "x") };
        assert_eq!(court.outcome(with_scram).await, Err(ReasonCode::Banned), "{key}");
        // An empty value means deleted, too.
        court.record(Topic::Blocked, &key, Some(&[]), None);
        assert!(court.outcome(good()).await.is_ok(), "{key}");
    }
    court.knows(Topic::Blocked, &[blocked_client("c", 1)]);
    assert!(court.outcome(good()).await.is_ok(), "it expired long ago");
    court.knows(Topic::Blocked, &[blocked_client("c", 0), ("clientId:c".to_owned(), vec![0xFF])]);
    assert_eq!(court.outcome(good()).await, Err(ReasonCode::Banned), "what can't be read changes nothing");
}

#[tokio::test]
async fn scram_is_for_those_who_name_it_and_its_mistakes_have_their_codes() {
    let court = Court::new(&[provider("SCRAM", "")], &known());
    let first = client_first("s");
    for (claim, reason) in [
        (with_method("PLAIN", "x"), ReasonCode::BadAuthenticationMethod),
        (with_method("SCRAM-SHA-256", ""), ReasonCode::UnspecifiedError),
        (with_method("SCRAM-SHA-256", "nonsense"), ReasonCode::NotAuthorized),
        (with_method("SCRAM-SHA-256", "p=tls,,n=s,r=x"), ReasonCode::NotAuthorized),
        // TBMQ would let it in: no other provider is enabled.
        (claim(Some("s"), Some("pencil")), ReasonCode::NotAuthorized),
    ] {
        assert_eq!(court.outcome(claim).await, Err(reason));
    }
    let disabled = Court::new(&[basic_provider()], &known());
    assert_eq!(disabled.outcome(with_method("SCRAM-SHA-256", &first)).await, Err(ReasonCode::NotAuthorized));
    let unknown = disabled.outcome(with_method("PLAIN", "")).await;
    assert_eq!(unknown, Err(ReasonCode::BadAuthenticationMethod));
}

/// What comes of a SCRAM exchange, and whether server-final was right.
fn exchange(
    court: &Court,
    again: Option<&Arc<Bearer>>,
    user: &str,
    password: &str,
    between: impl FnOnce(),
) -> (Result<Arc<Bearer>, ReasonCode>, bool) {
    let (mailbox, mut exchange) = (mailbox(1), None);
    let first = client_first(user);
    let claim = Claim { username: Some("root".into()), ..with_method("SCRAM-SHA-256", &first) };
    let begun = match again {
        Some(_) => court.auth.begin_again(claim, again, &mailbox, &mut exchange),
        None => court.auth.judge(claim, &mailbox, &mut exchange),
    };
    let Verdict::Challenge(server_first) = begun else { panic!("no challenge: {begun:?}") };
    let server_first = std::str::from_utf8(&server_first).unwrap();
    let (answer, expected) = client_final(Algorithm::Sha256, password, &first, server_first);
    between();
    let verdict = court.auth.proceed(&mut exchange, "SCRAM-SHA-256", answer.as_bytes(), &mailbox);
    assert!(exchange.is_none(), "an exchange is used once");
    match verdict {
        Verdict::Accept(admission) => {
            let is_right = admission.server_final.as_deref() == Some(expected.as_bytes());
            assert_eq!(&*admission.details, "SCRAM: sample");
            (Ok(admission.bearer.unwrap()), is_right)
        }
        Verdict::Refuse(refusal) => (Err(refusal.reason), false),
        other => panic!("{other:?}"),
    }
}

#[test]
fn scram_lets_in_who_knows_the_password_and_proves_the_server_to_it() {
    let court = Court::new(&[provider("SCRAM", "")], &known());
    let (bearer, server_is_right) = exchange(&court, None, "s", "pencil", || ());
    let bearer = bearer.unwrap();
    assert!(server_is_right);
    assert_eq!((bearer.credentials(), bearer.scram_user.as_deref()), (Some(Uuid::from_u128(4)), Some("s")));
    assert_eq!(bearer.identity().user_name, Some("s"), "not who CONNECT says it is");
    let refused = Err(ReasonCode::NotAuthorized);
    assert_eq!(exchange(&court, None, "s", "pencils", || ()).0.map(drop), refused);
    assert_eq!(exchange(&court, None, "nobody", "pencil", || ()).0.map(drop), refused);
}

#[test]
fn a_user_that_is_blocked_is_refused_with_scram_too() {
    let court = Court::new(&[provider("SCRAM", "")], &known());
    let kind = BlockedClientTypeProto::BlockedClientTypeUsername;
    court.knows(Topic::Blocked, &[blocked(kind, "s", "username:s", 0)]);
    let claim = with_method("SCRAM-SHA-256", &client_first("s"));
    match court.auth.judge(claim, &mailbox(1), &mut None) {
        Verdict::Refuse(refusal) => assert_eq!(refusal.reason, ReasonCode::Banned),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_credential_that_changes_during_an_exchange_is_not_used_as_it_was() {
    let court = Court::new(&[provider("SCRAM", "")], &known());
    let change = || {
        court.knows(Topic::Credentials, &[credentials(4, 2, scram(Algorithm::Sha256, "s", "other", vec![]))]);
    };
    assert_eq!(exchange(&court, None, "s", "pencil", change).0.map(drop), Err(ReasonCode::NotAuthorized));
    assert!(exchange(&court, None, "s", "other", || ()).1);
    let remove = || court.record(Topic::Credentials, &Uuid::from_u128(4).to_string(), None, Some("3"));
    assert_eq!(exchange(&court, None, "s", "other", remove).0.map(drop), Err(ReasonCode::NotAuthorized));
}

#[test]
fn who_proves_again_who_it_is_must_be_who_it_was() {
    let other = credentials(5, 1, scram(Algorithm::Sha256, "t", "pencil", vec![]));
    let court = Court::new(&[provider("SCRAM", "")], &[known(), vec![other]].concat());
    let bearer = exchange(&court, None, "s", "pencil", || ()).0.unwrap();
    assert!(exchange(&court, Some(&bearer), "s", "pencil", || ()).1);
    let refused = Err(ReasonCode::NotAuthorized);
    assert_eq!(exchange(&court, Some(&bearer), "t", "pencil", || ()).0.map(drop), refused);
    assert_eq!(exchange(&court, Some(&bearer), "s", "pencils", || ()).0.map(drop), refused);
    let begin = |method, data| {
        let claim = with_method(method, data);
        court.auth.begin_again(claim, Some(&bearer), &mailbox(1), &mut None)
    };
    for (method, data) in [("PLAIN", "x"), ("SCRAM-SHA-256", ""), ("SCRAM-SHA-256", "nonsense")] {
        let Verdict::Refuse(refusal) = begin(method, data) else { panic!("not refused") };
        assert_eq!(refusal.reason, ReasonCode::NotAuthorized, "{method} {data}");
    }
}

#[test]
fn the_mistakes_of_an_answer_have_their_codes() {
    let court = Court::new(&[provider("SCRAM", "")], &known());
    for (method, data, reason) in [
        ("SCRAM-SHA-512", "c=biws,r=x,p=eA==", ReasonCode::BadAuthenticationMethod),
        ("SCRAM-SHA-256", "", ReasonCode::UnspecifiedError),
        ("SCRAM-SHA-256", "nonsense", ReasonCode::NotAuthorized),
    ] {
        let mut exchange = None;
        let claim = with_method("SCRAM-SHA-256", &client_first("s"));
        let challenge = court.auth.judge(claim, &mailbox(1), &mut exchange);
        assert!(matches!(challenge, Verdict::Challenge(_)));
        let Verdict::Refuse(refusal) =
            court.auth.proceed(&mut exchange, method, data.as_bytes(), &mailbox(1))
        else {
            panic!("not refused")
        };
        assert_eq!(refusal.reason, reason, "{method} {data}");
    }
    let Verdict::Refuse(refusal) = court.auth.proceed(&mut None, "SCRAM-SHA-256", b"x", &mailbox(1)) else {
        panic!("not refused")
    };
    assert_eq!(refusal.reason, ReasonCode::UnspecifiedError);
}

#[tokio::test]
async fn a_credential_that_cant_be_used_lets_nobody_in_although_the_one_before_did() {
    let id = Uuid::from_u128(1).to_string();
    let damaged = credentials(1, 2, basic("u", Some("plain".to_owned()), vec![])).1;
    let of_another = credentials(2, 2, basic("u", Some(cheap("secret")), vec![])).1;
    let without_hash = credentials(1, 2, basic("u", Some(String::new()), vec![])).1;
    for value in [damaged, of_another, without_hash, vec![0xFF]] {
        let court = Court::new(&[basic_provider()], &known());
        let good = || claim(Some("u"), Some("secret"));
        assert!(court.outcome(good()).await.is_ok());
        court.record(Topic::Credentials, &id, Some(&value), Some("2"));
        assert_eq!(court.outcome(good()).await, Err(ReasonCode::NotAuthorized), "{value:?}");
        assert_eq!(court.metrics.credentials.get(), 3);
    }
}

#[tokio::test]
async fn a_record_older_than_what_is_known_changes_nothing() {
    let court = Court::new(&[basic_provider()], &known());
    let id = Uuid::from_u128(1).to_string();
    court.knows(Topic::Credentials, &[credentials(1, 5, basic("u", Some(cheap("new")), vec![]))]);
    court.knows(Topic::Credentials, &[credentials(1, 4, basic("u", Some(cheap("secret")), vec![]))]);
    court.record(Topic::Credentials, &id, None, Some("4"));
    assert!(court.outcome(claim(Some("u"), Some("new"))).await.is_ok());
    assert!(court.outcome(claim(Some("u"), Some("secret"))).await.is_err());
    court.record(Topic::Credentials, &id, None, Some("6"));
    assert!(court.outcome(claim(Some("u"), Some("new"))).await.is_err());
}

/// A client that was let in and is connected.
async fn connected(court: &Court, number: u64) -> (Arc<Bearer>, Arc<Mailbox>) {
    connected_as(court, claim(Some("u"), Some("secret")), number).await
}

async fn connected_as(court: &Court, claim: Claim, number: u64) -> (Arc<Bearer>, Arc<Mailbox>) {
    let Verdict::Accept(admission) = court.judge(claim).await else { panic!("refused") };
    (admission.bearer.unwrap(), introduced(number))
}

fn introduced(number: u64) -> Arc<Mailbox> {
    let mailbox = mailbox(number);
    mailbox.introduce(Client {
        id: "c".into(),
        username: Some("u".into()),
        version: ProtocolVersion::V5,
        clean_start: true,
        keep_alive_s: 0,
        client_type: ClientType::Device,
        details: Box::default(),
        peer: Some(peer()),
        session_id: Uuid::nil(),
        connected_ms: 0,
        disconnected_ms: 0.into(),
        filters: 0.into(),
    });
    mailbox
}

/// What the connection has been told.
fn told(mailbox: &Mailbox) -> (Option<bool>, Option<End>) {
    let mut mail = Mail::default();
    mailbox.take(&mut mail);
    let may = mail.access.map(|mut granted| granted.access.may_publish("new", Qos::AtMostOnce, false));
    (may, mail.command)
}

fn changed(court: &Court) {
    let changed: BTreeSet<_> = court.auth.bearers.changed().now_or_never().unwrap_or_default();
    for change in changed {
        court.auth.judge_all_again(change);
    }
}

#[tokio::test]
async fn connected_clients_get_the_rules_of_their_changed_credential_and_end_with_it() {
    let court = Court::new(&[basic_provider()], &known());
    let (bearer, mailbox) = connected(&court, 1).await;
    court.auth.admitted(Some(&bearer), &mailbox);
    let (other, gone) = connected(&court, 2).await;
    court.auth.admitted(Some(&other), &gone);
    court.auth.left(&other, 2);
    assert_eq!(told(&mailbox), (None, None));
    let new_rules = |revision| credentials(1, revision, basic("u", Some(cheap("x")), vec![allow("new")]));
    court.knows(Topic::Credentials, &[new_rules(2)]);
    changed(&court);
    assert_eq!(told(&mailbox), (Some(true), None));
    court.knows(Topic::Credentials, &[credentials(1, 3, basic("another", None, vec![]))]);
    changed(&court);
    assert_eq!(told(&mailbox), (None, Some(End::NotAuthorized)), "it is for somebody else now");
    court.knows(Topic::Credentials, &[new_rules(4)]);
    changed(&court);
    court.record(Topic::Credentials, &Uuid::from_u128(1).to_string(), None, Some("5"));
    changed(&court);
    assert_eq!(told(&mailbox).1, Some(End::NotAuthorized));
    assert_eq!(told(&gone), (None, None), "it has left before");
}

/// The provider of JWTs, with these fields besides.
fn jwt(fields: &serde_json::Value) -> KeyValue {
    let algorithm = json!({ "algorithm": "HMAC_BASED", "secret": SECRETS[0] });
    let mut configuration = json!({
        "jwtVerifierConfiguration": {
            "jwtVerifierType": "ALGORITHM_BASED", "jwtSignAlgorithmConfiguration": algorithm,
        },
    });
    for (name, value) in fields.as_object().unwrap() {
        configuration[name] = value.clone();
    }
    provider("JWT", &configuration.to_string())
}

fn disabled(name: &str) -> KeyValue {
    let provider = AuthProvider { r#type: name.to_owned(), ..AuthProvider::default() };
    setting(&format!("provider/{name}"), 1, Setting::Provider(provider))
}

#[tokio::test]
async fn connected_clients_end_with_the_provider_that_has_let_them_in_and_others_stay() {
    let court = Court::new(&[basic_provider(), jwt(&json!({}))], &known());
    let (basic, by_basic) = connected(&court, 1).await;
    let (bearer, by_token) = connected_as(&court, token(SECRETS[0]), 2).await;
    court.auth.admitted(Some(&basic), &by_basic);
    court.auth.admitted(Some(&bearer), &by_token);
    court.knows(Topic::Settings, &[("provider/JWT".to_owned(), vec![0xFF]), provider("X_509", "")]);
    changed(&court);
    assert_eq!(told(&by_token), (None, None), "what can't be read takes nothing back");
    court.record(Topic::Settings, "provider/JWT", None, None);
    changed(&court);
    assert_eq!((told(&by_basic), told(&by_token).1), ((None, None), Some(End::NotAuthorized)));
    court.knows(Topic::Settings, &[disabled("MQTT_BASIC")]);
    changed(&court);
    assert_eq!(told(&by_basic), (None, Some(End::NotAuthorized)));
}

#[tokio::test]
async fn clients_of_tokens_are_judged_again_by_changed_settings() {
    let court = Court::new(&[jwt(&json!({}))], &[]);
    let (bearer, mailbox) = connected_as(&court, token(SECRETS[0]), 1).await;
    court.auth.admitted(Some(&bearer), &mailbox);
    court.knows(Topic::Settings, &[jwt(&json!({ "authRules": { "pubAuthRulePatterns": ["new"] } }))]);
    changed(&court);
    assert_eq!(told(&mailbox), (Some(true), None));
    court.knows(Topic::Settings, &[jwt(&json!({ "authRules": { "pubAuthRulePatterns": ["old"] } }))]);
    changed(&court);
    assert_eq!(told(&mailbox), (Some(false), None));
    // The keys are to come from somewhere else, and were not read yet.
    let verifier = json!({ "jwtVerifierType": "JWKS", "endpoint": "http://127.0.0.1:9/keys" });
    court.knows(Topic::Settings, &[jwt(&json!({ "jwtVerifierConfiguration": verifier }))]);
    changed(&court);
    assert_eq!(told(&mailbox), (None, None));
    court.knows(Topic::Settings, &[jwt(&json!({ "issuer": "another" }))]);
    changed(&court);
    assert_eq!(told(&mailbox), (None, Some(End::NotAuthorized)));
}

#[tokio::test]
async fn clients_of_passwords_are_judged_again_by_another_strategy() {
    let court = Court::new(&[basic_provider()], &known());
    let (bearer, mailbox) = connected(&court, 1).await;
    court.auth.admitted(Some(&bearer), &mailbox);
    for (strategy, end) in [("USERNAME", None), ("CLIENT_ID", Some(End::NotAuthorized))] {
        let text = json!({ "authStrategy": strategy }).to_string();
        court.knows(Topic::Settings, &[provider("MQTT_BASIC", &text)]);
        changed(&court);
        assert_eq!(told(&mailbox).1, end, "{strategy}");
    }
}

#[tokio::test]
async fn a_provider_that_changes_between_the_verdict_and_the_session_is_not_missed() {
    let court = Court::new(&[jwt(&json!({}))], &[]);
    for (record, end) in [
        (jwt(&json!({})), None),
        (jwt(&json!({ "issuer": "another" })), Some(End::NotAuthorized)),
        (disabled("JWT"), Some(End::NotAuthorized)),
    ] {
        court.knows(Topic::Settings, &[jwt(&json!({}))]);
        let (bearer, mailbox) = connected_as(&court, token(SECRETS[0]), 1).await;
        court.knows(Topic::Settings, &[record]);
        assert_eq!(told(&mailbox), (None, None));
        court.auth.admitted(Some(&bearer), &mailbox);
        assert_eq!(told(&mailbox).1, end);
        court.auth.left(&bearer, 1);
    }
}

#[tokio::test]
async fn what_changes_between_the_verdict_and_the_session_is_not_missed() {
    let court = Court::new(&[basic_provider()], &known());
    let (bearer, mailbox) = connected(&court, 1).await;
    court.knows(Topic::Credentials, &[credentials(1, 2, basic("u", None, vec![allow("new")]))]);
    court.auth.admitted(Some(&bearer), &mailbox);
    assert_eq!(told(&mailbox), (Some(true), None));
    let again = introduced(2);
    court.record(Topic::Credentials, &Uuid::from_u128(1).to_string(), None, Some("3"));
    court.auth.admitted(Some(&bearer), &again);
    assert_eq!(told(&again).1, Some(End::NotAuthorized));
    let anybody = introduced(3);
    court.knows(Topic::Blocked, &[blocked_client("c", 0)]);
    court.auth.admitted(None, &anybody);
    assert_eq!(told(&anybody).1, Some(End::Administrative));
}

#[tokio::test]
async fn new_blocks_are_told_and_those_of_before_the_start_are_not() {
    let court = Court::new(&[], &[]);
    court.knows(Topic::Blocked, &[blocked_client("before", 0)]);
    court.auth.blocks.begin();
    assert!(court.auth.blocks.noted().now_or_never().is_none());
    court.knows(Topic::Blocked, &[blocked_client("c", 0), blocked_client("expired", 1)]);
    let new = court.auth.blocks.noted().now_or_never().flatten().expect("new blocks");
    assert_eq!(new.len(), 1);
    for number in 0..2000 {
        court.knows(Topic::Blocked, &[blocked_client(&number.to_string(), 0)]);
    }
    assert!(court.auth.blocks.noted().now_or_never().expect("new blocks").is_none(), "too many to say");
}

#[tokio::test]
async fn who_finds_no_place_in_the_queue_is_told_to_come_again_and_nothing_of_it_is_noted() {
    let metrics = Metrics::default();
    let config =
        AuthConfig { hash_threads: 1, hash_queue_max: 1, hash_queue_address_max: 1, ..AuthConfig::default() };
    let auth = Auth::new(&config, Keys::default(), "node".into(), metrics.clone()).unwrap();
    let court = Court { auth, names: Names::new(&Catalogue::default()), metrics };
    court.knows(Topic::Settings, &[basic_provider()]);
    court.knows(Topic::Credentials, &known());
    let (hold, held) = std::sync::mpsc::sync_channel::<()>(1);
    let site = hashing::Site::from(peer().ip());
    court.auth.hashing.submit(site, Box::new(move || assert!(held.recv().is_err()))).unwrap();
    assert_eq!(court.outcome(claim(Some("u"), Some("secret"))).await, Err(ReasonCode::QuotaExceeded));
    assert!(court.outcome(claim(Some("open"), None)).await.is_ok(), "who needs no hash is let in");
    drop(hold);
    assert_eq!(court.metrics.hashes.get(), 0);
}

#[tokio::test]
async fn nobody_hashes_for_a_connection_that_is_gone() {
    let court = Court::new(&[basic_provider()], &known());
    let gone = mailbox(1);
    gone.close();
    let verdict = court.auth.judge(claim(Some("u"), Some("secret")), &gone, &mut None);
    assert!(matches!(verdict, Verdict::Later));
    assert!(court.outcome(claim(Some("u"), Some("secret"))).await.is_ok());
    assert_eq!(court.metrics.hashes.get(), 1, "the second one's");
}
