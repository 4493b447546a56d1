//! A credential's proof as the store keeps it: JSON with hashes and keys, never a password.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use tbmq_auth::{
    acl::{Action, Effect, QosSet, Retained, Rule, Topics},
    credentials::{CommonName, Proof},
    scram::{Algorithm, StoredKeys},
};
use tbmq_mqtt::packet::Qos;

/// Every quality of service.
pub(crate) const QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

/// Name of a proof's type, as TBMQ's API has it.
pub(crate) fn type_of(proof: &Proof) -> &'static str {
    match proof {
        Proof::Basic { .. } => "MQTT_BASIC",
        Proof::X509 { .. } => "X_509",
        Proof::Scram { .. } => "SCRAM",
    }
}

/// Name of an algorithm, as TBMQ's API has it.
pub(crate) fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Sha256 => "SHA_256",
        Algorithm::Sha512 => "SHA_512",
    }
}

/// The algorithm of a name.
pub(crate) fn algorithm(name: &str) -> Option<Algorithm> {
    [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|one| algorithm_name(*one) == name)
}

/// What the store keeps of a proof.
pub(crate) fn to_json(proof: &Proof) -> String {
    let json = match proof {
        Proof::Basic { client_id, user_name, password_hash, rules } => serde_json::to_string(&Basic {
            client_id: client_id.clone(),
            user_name: user_name.clone(),
            password_hash: password_hash.clone(),
            rules: rules_to(rules),
        }),
        Proof::X509 { common_name, rules } => {
            let (common_name, is_pattern) = match common_name {
                CommonName::Literal(name) => (name.clone(), false),
                CommonName::Pattern(pattern) => (pattern.clone(), true),
            };
            let leaf = |(pattern, rules): &(String, Vec<Rule>)| Leaf {
                pattern: pattern.clone(),
                rules: rules_to(rules),
            };
            serde_json::to_string(&X509 {
                common_name,
                is_pattern,
                leaf_rules: rules.iter().map(leaf).collect(),
            })
        }
        Proof::Scram { user_name, keys, rules } => serde_json::to_string(&Scram {
            user_name: user_name.clone(),
            algorithm: algorithm_name(keys.algorithm).to_owned(),
            iterations: keys.iterations,
            salt: BASE64_STANDARD.encode(&keys.salt),
            stored_key: BASE64_STANDARD.encode(&keys.stored),
            server_key: BASE64_STANDARD.encode(&keys.server),
            rules: rules_to(rules),
        }),
    };
    json.expect("texts, numbers and lists are always JSON")
}

/// What [`to_json`] has written of a proof of this type; `None` when it was something else.
pub(crate) fn from_json(kind: &str, json: &str) -> Option<Proof> {
    Some(match kind {
        "MQTT_BASIC" => {
            let Basic { client_id, user_name, password_hash, rules } = serde_json::from_str(json).ok()?;
            Proof::Basic { client_id, user_name, password_hash, rules: rules_from(rules)? }
        }
        "X_509" => {
            let X509 { common_name, is_pattern, leaf_rules } = serde_json::from_str(json).ok()?;
            let common_name =
                if is_pattern { CommonName::Pattern(common_name) } else { CommonName::Literal(common_name) };
            let leaf = |Leaf { pattern, rules }| Some((pattern, rules_from(rules)?));
            Proof::X509 { common_name, rules: leaf_rules.into_iter().map(leaf).collect::<Option<_>>()? }
        }
        "SCRAM" => {
            let scram: Scram = serde_json::from_str(json).ok()?;
            let bytes = |text: &str| BASE64_STANDARD.decode(text).ok();
            let keys = StoredKeys {
                algorithm: algorithm(&scram.algorithm)?,
                iterations: scram.iterations,
                salt: bytes(&scram.salt)?,
                stored: bytes(&scram.stored_key)?,
                server: bytes(&scram.server_key)?,
            };
            Proof::Scram { user_name: scram.user_name, keys, rules: rules_from(scram.rules)? }
        }
        _ => return None,
    })
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Basic {
    client_id: Option<String>,
    user_name: Option<String>,
    password_hash: Option<String>,
    rules: Vec<StoredRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct X509 {
    common_name: String,
    is_pattern: bool,
    leaf_rules: Vec<Leaf>,
}

#[derive(Serialize, Deserialize)]
struct Leaf {
    pattern: String,
    rules: Vec<StoredRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Scram {
    user_name: String,
    algorithm: String,
    iterations: u32,
    salt: String,
    stored_key: String,
    server_key: String,
    rules: Vec<StoredRule>,
}

/// A rule; what is absent is as in most rules.
#[derive(Serialize, Deserialize)]
struct StoredRule {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deny: bool,
    action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    qos: Option<Vec<u8>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retained: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
}

fn rules_to(rules: &[Rule]) -> Vec<StoredRule> {
    let to = |rule: &Rule| {
        let (regex, filter) = match &rule.topics {
            Topics::Regex(text) => (Some(text.to_string()), None),
            Topics::Filter(text) => (None, Some(text.to_string())),
        };
        let qos = || QOS.into_iter().filter(|qos| rule.qos.contains(*qos)).map(Qos::bits).collect();
        StoredRule {
            deny: rule.effect == Effect::Deny,
            action: match rule.action {
                Action::Publish => "PUBLISH",
                Action::Subscribe => "SUBSCRIBE",
                Action::Both => "BOTH",
            }
            .to_owned(),
            qos: (rule.qos != QosSet::ALL).then(qos),
            retained: match rule.retained {
                Retained::Either => None,
                Retained::Only => Some(true),
                Retained::Never => Some(false),
            },
            regex,
            filter,
        }
    };
    rules.iter().map(to).collect()
}

fn rules_from(rules: Vec<StoredRule>) -> Option<Vec<Rule>> {
    let from = |rule: StoredRule| {
        let topics = match (rule.regex, rule.filter) {
            (Some(text), None) => Topics::Regex(text.into()),
            (None, Some(text)) => Topics::Filter(text.into()),
            _ => return None,
        };
        let qos = match rule.qos {
            None => QosSet::ALL,
            Some(bits) => {
                let all: Vec<Qos> = QOS.into_iter().filter(|qos| bits.contains(&qos.bits())).collect();
                QosSet::of(&all)
            }
        };
        Some(Rule {
            effect: if rule.deny { Effect::Deny } else { Effect::Allow },
            action: match rule.action.as_str() {
                "PUBLISH" => Action::Publish,
                "SUBSCRIBE" => Action::Subscribe,
                "BOTH" => Action::Both,
                _ => return None,
            },
            qos,
            retained: match rule.retained {
                None => Retained::Either,
                Some(true) => Retained::Only,
                Some(false) => Retained::Never,
            },
            topics,
        })
    };
    rules.into_iter().map(from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Vec<Rule> {
        vec![
            Rule::allow_regex(Action::Publish, "a/.*"),
            Rule {
                effect: Effect::Deny,
                action: Action::Subscribe,
                qos: QosSet::of(&[Qos::AtMostOnce, Qos::ExactlyOnce]),
                retained: Retained::Only,
                topics: Topics::Filter("b/${clientId}/#".into()),
            },
            Rule { retained: Retained::Never, ..Rule::by_filter(Effect::Allow, Action::Both, "c") },
        ]
    }

    #[test]
    fn every_proof_survives_the_store() {
        let keys = |algorithm, len| StoredKeys {
            algorithm,
            iterations: 4096,
            salt: vec![0, 255, 7, 1, 2, 3, 4, 5],
            stored: vec![1; len],
            server: vec![2; len],
        };
        let leaf = vec![("d.*".to_owned(), rules()), ("e".to_owned(), Vec::new())];
        for proof in [
            Proof::Basic {
                client_id: Some("ü\"".into()),
                user_name: None,
                password_hash: None,
                rules: vec![],
            },
            Proof::Basic {
                client_id: None,
                user_name: Some("u".into()),
                password_hash: Some("$2a$".into()),
                rules: rules(),
            },
            Proof::X509 { common_name: CommonName::Literal("cn".into()), rules: leaf.clone() },
            Proof::X509 { common_name: CommonName::Pattern("c.".into()), rules: leaf },
            Proof::Scram { user_name: "u".into(), keys: keys(Algorithm::Sha256, 32), rules: rules() },
            Proof::Scram { user_name: "u".into(), keys: keys(Algorithm::Sha512, 64), rules: vec![] },
        ] {
            let json = to_json(&proof);
            assert_eq!(from_json(type_of(&proof), &json).as_ref(), Some(&proof), "{json}");
        }
        for (kind, json) in [("MQTT_BASIC", "{}"), ("X_509", ""), ("OTHER", "{}")] {
            assert_eq!(from_json(kind, json), None, "{kind} {json}");
        }
    }
}
