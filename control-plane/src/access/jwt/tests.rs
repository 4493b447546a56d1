use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;
use tbmq_service::config::Secret;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

const SECRET: &str = "a secret of thirty-two bytes, or more";

fn now_sec() -> i64 {
    tbmq_service::time::now_ms() / 1_000
}

fn claims() -> Value {
    json!({ "sub": "alice", "exp": now_sec() + 600, "tbmq_role": "editor" })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn signed(algorithm: Algorithm, id: Option<&str>, key: &EncodingKey, claims: &Value) -> String {
    let header = Header { kid: id.map(ToOwned::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn hs256(claims: &Value) -> String {
    signed(Algorithm::HS256, None, &EncodingKey::from_secret(SECRET.as_bytes()), claims)
}

fn by_secret(configure: impl FnOnce(&mut JwtConfig)) -> Jwt {
    let mut config = JwtConfig { secret: Secret::new(SECRET), ..JwtConfig::default() };
    configure(&mut config);
    Jwt::open(&config).unwrap()
}

/// Algorithm, private key, and public key in PEM.
fn pairs() -> Vec<(Algorithm, EncodingKey, String)> {
    let pair = || {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let private = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
        (Algorithm::ES256, private, key.public_key_pem())
    };
    vec![pair(), pair()]
}

fn written(folder: &TempDir, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_good_token_tells_who_calls_and_as_what() {
    let claims = claims();
    let expected = Claims {
        subject: "alice".to_owned(),
        role: Some(Role::Editor),
        expires_sec: claims["exp"].as_i64().unwrap(),
    };
    assert_eq!(by_secret(|_| {}).check(&hs256(&claims)).unwrap(), expected);
}

#[test]
fn times_signature_and_form_are_checked() {
    let jwt = by_secret(|_| {});
    let refused = |claims: &Value| jwt.check(&hs256(claims)).unwrap_err();
    assert_eq!(refused(&with("exp", json!(now_sec() - 60))), "it has expired");
    assert_eq!(refused(&with("nbf", json!(now_sec() + 600))), "it is not valid yet");
    assert!(refused(&json!({ "sub": "alice", "tbmq_role": "admin" })).contains("exp"));
    let foreign = EncodingKey::from_secret(b"another secret of thirty-two bytes");
    assert_eq!(
        jwt.check(&signed(Algorithm::HS256, None, &foreign, &claims())).unwrap_err(),
        "its signature is not of the key"
    );
    for text in ["", "a.b.c", "tbmq_x", &hs256(&claims())[1..]] {
        assert_eq!(jwt.check(text).unwrap_err(), "it can't be read", "{text}");
    }
    // `none` is no algorithm.
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIiwiZXhwIjo5OTk5OTk5OTk5fQ.";
    assert!(jwt.check(none).is_err());
}

#[test]
fn issuer_and_audience_are_checked_when_they_are_set() {
    let jwt = by_secret(|config| {
        config.issuer = Some("https://issuer".to_owned());
        config.audience = vec!["tbmq".to_owned(), "other".to_owned()];
    });
    let claims = |issuer: &str, audience: Value| {
        let mut claims = with("iss", json!(issuer));
        claims["aud"] = audience;
        claims
    };
    assert!(jwt.check(&hs256(&claims("https://issuer", json!("tbmq")))).is_ok());
    assert!(jwt.check(&hs256(&claims("https://issuer", json!(["x", "other"])))).is_ok());
    assert_eq!(
        jwt.check(&hs256(&claims("https://evil", json!("tbmq")))).unwrap_err(),
        "its issuer is another"
    );
    assert_eq!(
        jwt.check(&hs256(&claims("https://issuer", json!("x")))).unwrap_err(),
        "it is for another audience"
    );
    assert!(jwt.check(&hs256(&with("iss", json!("https://issuer")))).is_err(), "without aud");
    assert!(jwt.check(&hs256(&with("aud", json!("tbmq")))).is_err(), "without iss");
}

#[test]
fn the_role_is_the_highest_that_the_claim_names() {
    let role = |claim: &str, claims: &Value| {
        by_secret(|config| claim.clone_into(&mut config.role_claim)).check(&hs256(claims)).unwrap().role
    };
    assert_eq!(role("tbmq_role", &with("tbmq_role", json!(["VIEWER", "admin", "x"]))), Some(Role::Admin));
    assert_eq!(role("tbmq_role", &with("tbmq_role", json!(["node", "viewer"]))), Some(Role::Viewer));
    assert_eq!(role("tbmq_role", &with("tbmq_role", json!("NODE"))), Some(Role::Node));
    assert_eq!(role("tbmq_role", &with("tbmq_role", json!("root"))), None);
    assert_eq!(role("missing", &claims()), None);
    let nested = with("realm_access", json!({ "roles": ["operator"] }));
    assert_eq!(role("realm_access.roles", &nested), Some(Role::Operator));
}

#[test]
fn a_public_key_checks_what_its_private_key_signs_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    for (algorithm, private, public) in pairs() {
        let path = written(&folder, "key.pem", &public);
        let jwt = Jwt::open(&JwtConfig { key_file: Some(path), ..JwtConfig::default() }).unwrap();
        let good = signed(algorithm, Some("any"), &private, &claims());
        assert_eq!(jwt.check(&good).unwrap().subject, "alice", "{algorithm:?}");
        // The public key is no secret of HS256.
        let forged = signed(Algorithm::HS256, None, &EncodingKey::from_secret(public.as_bytes()), &claims());
        assert!(jwt.check(&forged).unwrap_err().starts_with("there is no key"), "{algorithm:?}");
    }
    for text in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        let path = written(&folder, "bad.pem", text);
        let error = Jwt::open(&JwtConfig { key_file: Some(path), ..JwtConfig::default() }).unwrap_err();
        assert!(error.starts_with("TBMQ_AUTH_JWT_KEY_FILE"), "{error}");
    }
}

/// A key set of these keys under their numbers.
fn key_set(pairs: &[(Algorithm, EncodingKey, String)]) -> String {
    let keys: Vec<Value> = pairs
        .iter()
        .enumerate()
        .map(|(i, (algorithm, private, _))| {
            let mut jwk = Jwk::from_encoding_key(private, *algorithm).unwrap();
            jwk.common.key_id = Some(i.to_string());
            serde_json::to_value(jwk).unwrap()
        })
        .collect();
    json!({ "keys": keys }).to_string()
}

#[test]
fn a_key_set_in_a_file_finds_keys_by_id() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = pairs();
    let path = written(&folder, "jwks.json", &key_set(&pairs));
    let config = JwtConfig { jwks: Some(path.display().to_string()), ..JwtConfig::default() };
    let jwt = Jwt::open(&config).unwrap();
    for (i, (algorithm, private, _)) in pairs.iter().enumerate() {
        let token = |id: Option<&str>| signed(*algorithm, id, private, &claims());
        assert!(jwt.check(&token(Some(&i.to_string()))).is_ok(), "{algorithm:?}");
        assert!(jwt.check(&token(None)).is_ok(), "{algorithm:?}");
        assert!(jwt.check(&token(Some("unknown"))).unwrap_err().contains("\"unknown\""), "{algorithm:?}");
    }
}

/// Serves what it is told to as often as it is asked.
async fn serve(listener: TcpListener, body: Arc<ArcSwap<String>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        if stream.read(&mut request).await.is_err() {
            continue;
        }
        let body = body.load_full();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.ok();
    }
}

#[tokio::test]
async fn a_set_at_a_url_is_read_anew_and_a_bad_one_changes_nothing() {
    let mut pairs = pairs();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let body = Arc::new(ArcSwap::from_pointee(key_set(&pairs[..1])));
    let server = tokio::spawn(serve(listener, body.clone()));
    let config =
        JwtConfig { jwks: Some(url), jwks_refresh: Duration::from_millis(1), ..JwtConfig::default() };
    let jwt = Jwt::open(&config).unwrap();
    let set = jwt.set.as_ref().unwrap();

    let (algorithm, private, _) = pairs.remove(0);
    let token = signed(algorithm, Some("0"), &private, &claims());
    assert!(jwt.check(&token).is_err(), "nothing was read yet");
    set.keys.store(Arc::new(set.source.read().await.unwrap()));
    assert!(jwt.check(&token).is_ok());

    body.store(Arc::new("<html>".to_owned()));
    assert!(set.source.read().await.is_err());
    body.store(Arc::new(" ".repeat(SET_BYTES_MAX + 1)));
    assert!(set.source.read().await.err().unwrap().contains("more than"));

    // Rotated: the follower takes the new set over.
    body.store(Arc::new(key_set(&pairs[..1])));
    let (algorithm, private, _) = &pairs[0];
    let rotated = signed(*algorithm, Some("0"), private, &claims());
    let failures = std::sync::atomic::AtomicU32::new(0);
    let taken_over = async {
        while jwt.check(&rotated).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = jwt.follow(|| _ = failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) => {}
        result = tokio::time::timeout(Duration::from_secs(20), taken_over) => result.unwrap(),
    }
    assert!(jwt.check(&token).is_err(), "the old key is gone");
    server.abort();
}
