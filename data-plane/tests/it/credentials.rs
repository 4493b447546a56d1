//! The control plane's half of who may connect: what it writes.

use std::sync::Arc;

use prost::Message as _;
use tbmq_auth::scram::{Algorithm, StoredKeys};
use tbmq_mqtt::packet::{Connect, ProtocolVersion, Qos};
use tbmq_proto::{
    topic::Catalogue,
    wire::{
        AuthClientType, AuthProvider, AuthRule, AuthSetting, BasicProof, CredentialsRecord, ScramProof,
        auth_rule::{self, Action, Effect},
        auth_setting::Setting,
        credentials_record::Proof,
    },
};
use uuid::Uuid;

use crate::{bus::TestBus, client::connect_packet, plane::put};

/// Iterations of SCRAM.
pub(crate) const ITERATIONS: u32 = 4096;

/// A bus on which these providers are enabled.
pub(crate) async fn bus_with(providers: &[&str]) -> Arc<TestBus> {
    let bus = TestBus::new();
    for provider in providers {
        let setting =
            AuthProvider { r#type: (*provider).to_owned(), enabled: true, ..AuthProvider::default() };
        let value = AuthSetting { revision: 1, setting: Some(Setting::Provider(setting)) }.encode_to_vec();
        let topic = Catalogue::default().auth_settings();
        put(&bus, &topic, &format!("provider/{provider}"), Some(&value), Some("1")).await;
    }
    bus
}

/// Lets whoever says this user name do what the rules allow; without a hash, with any password or none.
pub(crate) async fn basic(
    bus: &TestBus,
    user_name: &str,
    revision: u64,
    password_hash: Option<String>,
    rules: &[AuthRule],
) {
    let proof = BasicProof {
        client_id: None,
        user_name: Some(user_name.to_owned()),
        password_hash,
        rules: rules.to_vec(),
    };
    credential(bus, user_name, revision, AuthClientType::Device, Proof::Basic(proof)).await;
}

/// Lets whoever says this user name do everything, as an application.
pub(crate) async fn application(bus: &TestBus, user_name: &str) {
    let proof =
        BasicProof { user_name: Some(user_name.to_owned()), rules: vec![all("#")], ..BasicProof::default() };
    credential(bus, user_name, 1, AuthClientType::Application, Proof::Basic(proof)).await;
}

/// Lets whoever proves to know the password do what the rules allow.
pub(crate) async fn scram(bus: &TestBus, user_name: &str, revision: u64, password: &str, rules: &[AuthRule]) {
    let keys = StoredKeys::derive(Algorithm::Sha256, password, b"16 bytes of salt", ITERATIONS).unwrap();
    let proof = ScramProof {
        user_name: user_name.to_owned(),
        algorithm: "SHA_256".to_owned(),
        iterations: ITERATIONS,
        salt: keys.salt.into(),
        stored_key: keys.stored.into(),
        server_key: keys.server.into(),
        rules: rules.to_vec(),
    };
    credential(bus, user_name, revision, AuthClientType::Device, Proof::Scram(proof)).await;
}

/// As whose id the credential of a user stands.
fn id(user_name: &str) -> String {
    let mut bytes = [0; 16];
    bytes[..user_name.len()].copy_from_slice(user_name.as_bytes());
    Uuid::from_bytes(bytes).to_string()
}

async fn credential(
    bus: &TestBus,
    user_name: &str,
    revision: u64,
    client_type: AuthClientType,
    proof: Proof,
) {
    let id = id(user_name);
    let record = CredentialsRecord {
        id: id.clone(),
        name: format!("of {user_name}"),
        client_type: client_type.into(),
        revision,
        proof: Some(proof),
    };
    let (topic, value) = (Catalogue::default().credentials(), record.encode_to_vec());
    put(bus, &topic, &id, Some(&value), Some(&revision.to_string())).await;
}

/// Takes the credential of a user away.
pub(crate) async fn removed(bus: &TestBus, user_name: &str, revision: u64) {
    let topic = Catalogue::default().credentials();
    put(bus, &topic, &id(user_name), None, Some(&revision.to_string())).await;
}

fn rule(action: Action, filter: &str, max: Qos) -> AuthRule {
    AuthRule {
        effect: Effect::Allow.into(),
        action: action.into(),
        qos_mask: (1 << (max.bits() + 1)) - 1,
        retained: None,
        topic: Some(auth_rule::Topic::Filter(filter.to_owned())),
    }
}

/// May publish and subscribe to this.
pub(crate) fn all(filter: &str) -> AuthRule {
    rule(Action::Both, filter, Qos::ExactlyOnce)
}

/// May subscribe to this up to a quality of service.
pub(crate) fn subscribe(filter: &str, max: Qos) -> AuthRule {
    rule(Action::Subscribe, filter, max)
}

/// May publish to this.
pub(crate) fn publish(filter: &str) -> AuthRule {
    rule(Action::Publish, filter, Qos::ExactlyOnce)
}

/// A CONNECT that says a user name, which is the client id, too.
pub(crate) fn of(user_name: &str, version: ProtocolVersion) -> Connect {
    Connect { username: Some(user_name.into()), ..connect_packet(version, user_name) }
}
