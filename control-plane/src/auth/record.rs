//! Records of who may connect, as data planes read them.

use bytes::Bytes;
use prost::Message as _;
use tbmq_auth::{
    acl::{Action, Effect, QosSet, Retained, Rule, Topics},
    blocked::{Target, Who},
    credentials::{ClientType, CommonName, Credentials, Proof},
};
use tbmq_bus::{BatchRecord, Header};
use tbmq_integration::provider;
use tbmq_proto::{
    queue::{BlockedClientProto, BlockedClientTypeProto, RegexMatchTargetProto},
    topic::{Catalogue, REVISION_HEADER},
    wire::{
        AuthClientType, AuthProvider, AuthProviders, AuthRule, AuthSecrets, AuthSetting, BasicProof,
        CredentialsRecord, ScramProof, X509Proof, auth_rule, auth_setting, credentials_record,
        x509_proof::LeafRules,
    },
};

use super::proof::{QOS, algorithm_name};
use crate::store::{AuthTopic, BlockedRow, ProviderRow};

/// Key of the setting that says which provider is asked first.
pub(crate) const PROVIDERS: &str = "providers";

/// Key of the setting of what all data planes share.
pub(crate) const SECRETS: &str = "secrets";

/// Before the type of a provider in the key of its setting.
pub(crate) const PROVIDER: &str = "provider/";

/// Name of a topic.
pub(crate) fn topic_name(catalogue: &Catalogue, topic: AuthTopic) -> String {
    match topic {
        AuthTopic::Credentials => catalogue.credentials(),
        AuthTopic::Settings => catalogue.auth_settings(),
        AuthTopic::Blocked => catalogue.blocked_clients(),
    }
    .name
}

/// A record, or without a value a tombstone.
pub(crate) fn record(
    catalogue: &Catalogue,
    topic: AuthTopic,
    key: &str,
    revision: u64,
    value: Option<Bytes>,
) -> BatchRecord {
    BatchRecord {
        topic: topic_name(catalogue, topic).into(),
        partition: None,
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value,
        headers: vec![Header::text(REVISION_HEADER, revision.to_string())],
    }
}

/// The value of a credential's record.
pub(crate) fn credentials(credentials: &Credentials) -> Bytes {
    let proof = match &credentials.proof {
        Proof::Basic { client_id, user_name, password_hash, rules } => {
            credentials_record::Proof::Basic(BasicProof {
                client_id: client_id.clone(),
                user_name: user_name.clone(),
                password_hash: password_hash.clone(),
                rules: rules_of(rules),
            })
        }
        Proof::X509 { common_name, rules } => {
            let (common_name, is_pattern) = match common_name {
                CommonName::Literal(name) => (name.clone(), false),
                CommonName::Pattern(pattern) => (pattern.clone(), true),
            };
            let leaf = |(pattern, rules): &(String, Vec<Rule>)| LeafRules {
                pattern: pattern.clone(),
                rules: rules_of(rules),
            };
            let leaf_rules = rules.iter().map(leaf).collect();
            credentials_record::Proof::X509(X509Proof { common_name, is_pattern, leaf_rules })
        }
        Proof::Scram { user_name, keys, rules } => credentials_record::Proof::Scram(ScramProof {
            user_name: user_name.clone(),
            algorithm: algorithm_name(keys.algorithm).to_owned(),
            iterations: keys.iterations,
            salt: keys.salt.clone().into(),
            stored_key: keys.stored.clone().into(),
            server_key: keys.server.clone().into(),
            rules: rules_of(rules),
        }),
    };
    let client_type = match credentials.client_type {
        ClientType::Device => AuthClientType::Device,
        ClientType::Application => AuthClientType::Application,
    };
    CredentialsRecord {
        id: credentials.id.to_string(),
        name: credentials.name.clone(),
        client_type: client_type.into(),
        revision: credentials.revision,
        proof: Some(proof),
    }
    .encode_to_vec()
    .into()
}

fn rules_of(rules: &[Rule]) -> Vec<AuthRule> {
    let bits = |set: QosSet| QOS.iter().filter(|qos| set.contains(**qos)).map(|qos| 1 << qos.bits()).sum();
    let one = |rule: &Rule| AuthRule {
        effect: match rule.effect {
            Effect::Allow => auth_rule::Effect::Allow,
            Effect::Deny => auth_rule::Effect::Deny,
        }
        .into(),
        action: match rule.action {
            Action::Publish => auth_rule::Action::Publish,
            Action::Subscribe => auth_rule::Action::Subscribe,
            Action::Both => auth_rule::Action::Both,
        }
        .into(),
        qos_mask: if rule.qos == QosSet::ALL { 0 } else { bits(rule.qos) },
        retained: match rule.retained {
            Retained::Either => None,
            Retained::Only => Some(true),
            Retained::Never => Some(false),
        },
        topic: Some(match &rule.topics {
            Topics::Regex(text) => auth_rule::Topic::Regex(text.to_string()),
            Topics::Filter(text) => auth_rule::Topic::Filter(text.to_string()),
        }),
    };
    rules.iter().map(one).collect()
}

/// The value of the setting of a provider: as it is stored, so that what is sealed there is sealed here, too.
pub(crate) fn provider(row: &ProviderRow) -> Bytes {
    let parted = row.parted.as_deref();
    let configuration = parted.map_or(&*row.configuration, |parted| provider::unwrap(&parted.plain));
    let provider = AuthProvider {
        r#type: row.kind.clone(),
        enabled: row.enabled,
        configuration_json: configuration.to_owned(),
        sealed: parted.map(|parted| provider::encode(&parted.sealed)),
    };
    setting(row.revision, auth_setting::Setting::Provider(provider))
}

/// The value of the setting that says which provider is asked first.
pub(crate) fn providers(revision: u64, priorities: Vec<String>) -> Bytes {
    setting(revision, auth_setting::Setting::Providers(AuthProviders { priorities }))
}

/// The value of the setting of what all data planes share.
pub(crate) fn secrets(revision: u64, pretence_key: Vec<u8>) -> Bytes {
    let secrets = AuthSecrets { pretence_key: pretence_key.into() };
    setting(revision, auth_setting::Setting::Secrets(secrets))
}

fn setting(revision: u64, setting: auth_setting::Setting) -> Bytes {
    AuthSetting { revision, setting: Some(setting) }.encode_to_vec().into()
}

/// The value of the record of a block.
pub(crate) fn blocked(row: &BlockedRow) -> Bytes {
    let (kind, target) = match &row.who {
        Who::ClientId(_) => (BlockedClientTypeProto::BlockedClientTypeClientId, None),
        Who::UserName(_) => (BlockedClientTypeProto::BlockedClientTypeUsername, None),
        Who::Network(_) => (BlockedClientTypeProto::BlockedClientTypeIpAddress, None),
        Who::Regex { target, .. } => {
            let target = match target {
                Target::ClientId => RegexMatchTargetProto::RegexMatchTargetByClientId,
                Target::UserName => RegexMatchTargetProto::RegexMatchTargetByUsername,
                Target::Address => RegexMatchTargetProto::RegexMatchTargetByIpAddress,
            };
            (BlockedClientTypeProto::BlockedClientTypeRegex, Some(target.into()))
        }
    };
    BlockedClientProto {
        r#type: kind.into(),
        expiration_time: row.expires_ms,
        description: (!row.description.is_empty()).then(|| row.description.clone()),
        value: value_of(&row.who),
        regex_match_target: target,
    }
    .encode_to_vec()
    .into()
}

/// The text of who is blocked.
pub(crate) fn value_of(who: &Who) -> String {
    match who {
        Who::ClientId(text) | Who::UserName(text) | Who::Regex { pattern: text, .. } => text.to_string(),
        Who::Network(network) if network.prefix_len() == network.max_prefix_len() => {
            network.addr().to_string()
        }
        Who::Network(network) => network.to_string(),
    }
}
