//! Records as the control plane writes them, and a client's half of SCRAM: for tests within the crate and from outside.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use prost::Message as _;
use ring::{digest, hmac, pbkdf2};
use tbmq_auth::scram::{Algorithm, StoredKeys};
use tbmq_proto::{
    queue::{BlockedClientProto, BlockedClientTypeProto},
    wire::{
        AuthClientType, AuthProvider, AuthRule, AuthSetting, BasicProof, CredentialsRecord, ScramProof,
        X509Proof, auth_rule, auth_setting::Setting, credentials_record::Proof, x509_proof,
    },
};
use uuid::Uuid;

/// Key and value of a record.
pub(crate) type KeyValue = (String, Vec<u8>);

/// A rule by topic filter for everything.
pub(crate) fn allow(filter: &str) -> AuthRule {
    AuthRule {
        effect: auth_rule::Effect::Allow as i32,
        action: auth_rule::Action::Both as i32,
        qos_mask: 0,
        retained: None,
        topic: Some(auth_rule::Topic::Filter(filter.to_owned())),
    }
}

/// As cheap as the limits of argon2 allow, so that tests take no time.
pub(crate) fn cheap(password: &str) -> String {
    hash(password, 8)
}

/// A hash that takes this much memory, KiB.
pub(crate) fn hash(password: &str, memory_kib: u32) -> String {
    use argon2::{Argon2, Params, PasswordHasher as _};
    let argon2 = Argon2::from(Params::new(memory_kib, 1, 1, None).unwrap());
    argon2.hash_password_with_salt(password.as_bytes(), b"some salt").unwrap().to_string()
}

/// A credential of MQTT basic, by user name.
pub(crate) fn basic(user_name: &str, password_hash: Option<String>, rules: Vec<AuthRule>) -> Proof {
    let user_name = Some(user_name.to_owned());
    Proof::Basic(BasicProof { client_id: None, user_name, password_hash, rules })
}

/// An X.509 credential for a common name, whose rules hold for all leaf names.
pub(crate) fn x509(common_name: &str, rules: Vec<AuthRule>) -> Proof {
    let leaf_rules = vec![x509_proof::LeafRules { pattern: ".*".to_owned(), rules }];
    Proof::X509(X509Proof { common_name: common_name.to_owned(), is_pattern: false, leaf_rules })
}

/// A SCRAM credential.
pub(crate) fn scram(algorithm: Algorithm, user_name: &str, password: &str, rules: Vec<AuthRule>) -> Proof {
    let keys = StoredKeys::derive(algorithm, password, b"some salt of 16.", 4096).unwrap();
    let name = if algorithm == Algorithm::Sha256 { "SHA_256" } else { "SHA_512" };
    Proof::Scram(ScramProof {
        user_name: user_name.to_owned(),
        algorithm: name.to_owned(),
        iterations: keys.iterations,
        salt: keys.salt.into(),
        stored_key: keys.stored.into(),
        server_key: keys.server.into(),
        rules,
    })
}

pub(crate) fn credentials(id: u128, revision: u64, proof: Proof) -> KeyValue {
    let id = Uuid::from_u128(id).to_string();
    let record = CredentialsRecord {
        id: id.clone(),
        name: "sample".to_owned(),
        client_type: AuthClientType::Device as i32,
        revision,
        proof: Some(proof),
    };
    (id, record.encode_to_vec())
}

/// An enabled provider.
pub(crate) fn provider(name: &str, configuration_json: &str) -> KeyValue {
    let provider = AuthProvider {
        r#type: name.to_owned(),
        enabled: true,
        configuration_json: configuration_json.to_owned(),
        sealed: None,
    };
    setting(&format!("provider/{name}"), 1, Setting::Provider(provider))
}

pub(crate) fn setting(key: &str, revision: u64, setting: Setting) -> KeyValue {
    (key.to_owned(), AuthSetting { revision, setting: Some(setting) }.encode_to_vec())
}

/// A client id that is blocked until a time, ms since 1970; 0: for ever.
pub(crate) fn blocked_client(client_id: &str, until_ms: i64) -> KeyValue {
    blocked(
        BlockedClientTypeProto::BlockedClientTypeClientId,
        client_id,
        &format!("clientId:{client_id}"),
        until_ms,
    )
}

pub(crate) fn blocked(kind: BlockedClientTypeProto, value: &str, key: &str, until_ms: i64) -> KeyValue {
    let record = BlockedClientProto {
        r#type: kind as i32,
        expiration_time: until_ms,
        description: None,
        value: value.to_owned(),
        regex_match_target: None,
    };
    (key.to_owned(), record.encode_to_vec())
}

/// What a client says first.
pub(crate) fn client_first(user_name: &str) -> String {
    format!("n,,n={user_name},r=rOprNGfwEbeRWgbNEkqO")
}

/// What a client with this password answers to server-first, and the server-final that it expects.
pub(crate) fn client_final(
    algorithm: Algorithm,
    password: &str,
    first: &str,
    server_first: &str,
) -> (String, String) {
    let mut parts = server_first.split(',').map(|part| &part[2..]);
    let (nonce, salt, rounds) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let (pbkdf2, by_hmac, by_digest) = match algorithm {
        Algorithm::Sha256 => (pbkdf2::PBKDF2_HMAC_SHA256, hmac::HMAC_SHA256, &digest::SHA256),
        Algorithm::Sha512 => (pbkdf2::PBKDF2_HMAC_SHA512, hmac::HMAC_SHA512, &digest::SHA512),
    };
    let sign = |key: &[u8], data: &[u8]| hmac::sign(&hmac::Key::new(by_hmac, key), data);
    let mut salted = vec![0; by_digest.output_len()];
    let salt = BASE64_STANDARD.decode(salt).unwrap();
    pbkdf2::derive(pbkdf2, rounds.parse().unwrap(), &salt, password.as_bytes(), &mut salted);
    let client = sign(&salted, b"Client Key");
    let stored = digest::digest(by_digest, client.as_ref());
    let bare = first.splitn(3, ',').nth(2).unwrap();
    let header = BASE64_STANDARD.encode(&first[..first.len() - bare.len()]);
    let without_proof = format!("c={header},r={nonce}");
    let transcript = format!("{bare},{server_first},{without_proof}");
    let signature = sign(stored.as_ref(), transcript.as_bytes());
    let proof: Vec<u8> =
        client.as_ref().iter().zip(signature.as_ref()).map(|(one, other)| one ^ other).collect();
    let server = sign(sign(&salted, b"Server Key").as_ref(), transcript.as_bytes());
    let expected = format!("v={}", BASE64_STANDARD.encode(server));
    (format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)), expected)
}
