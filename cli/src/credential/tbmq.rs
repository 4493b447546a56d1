//! Credentials as TBMQ holds them (broker spec §4.3): `credentialsValue` is JSON within JSON, rules are lists of Java's
//! regular expressions, passwords are bcrypt hashes, keys of SCRAM are base64.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tbmq_proto::control::{
    AccessRule,
    access_rule::{Action, Effect, Topic},
};
use uuid::Uuid;

use super::{
    document::{Basic, Document, Keys, Leaf, Scram, Secret, Type, X509},
    java,
    rule::Rule,
};

/// Of all of TBMQ's keys of SCRAM.
const ITERATIONS: u32 = 4096;

/// Its web page's own credential, by which anyone may connect: the user name is known and there is no password.
const WEB_PAGE: &str = "tbmq_websockets_username";

/// What became of one of TBMQ's credentials.
#[derive(Debug, PartialEq)]
pub(crate) enum Entry {
    /// Can be imported.
    Credential(Box<Document>),
    /// Should not be.
    LeftOut {
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },
}

/// Why one can't be imported.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Its name, as far as it is known.
    pub(crate) name: String,
    /// What is wrong.
    pub(crate) reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    id: Option<Uuid>,
    name: Option<String>,
    client_type: Option<Type>,
    credentials_type: Option<String>,
    credentials_value: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireBasic {
    client_id: Option<String>,
    user_name: Option<String>,
    password: Option<String>,
    auth_rules: Option<WireRules>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireX509 {
    cert_cn_pattern: Option<String>,
    /// Of before there were patterns.
    cert_common_name: Option<String>,
    #[serde(default)]
    cert_cn_is_regex: bool,
    auth_rules_mapping: Option<BTreeMap<String, WireRules>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireScram {
    user_name: Option<String>,
    salt: Option<String>,
    server_key: Option<String>,
    stored_key: Option<String>,
    algorithm: Option<String>,
    auth_rules: Option<WireRules>,
}

/// A list that is missing or empty allows nothing.
#[derive(Default, Deserialize)]
struct WireRules {
    #[serde(rename = "pubAuthRulePatterns", alias = "pub")]
    publish: Option<Vec<String>>,
    #[serde(rename = "subAuthRulePatterns", alias = "sub")]
    subscribe: Option<Vec<String>>,
}

/// Reads one credential.
pub(crate) fn read(value: Value) -> Result<Entry, Problem> {
    let named = value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let problem = |reason: String| Problem { name: named.clone(), reason };
    let wire: Wire = serde_json::from_value(value)
        .map_err(|error| problem(format!("it is not a credential of TBMQ: {error}")))?;
    let mut document = Document {
        uid: wire.id,
        display_name: wire.name.unwrap_or_default(),
        client_type: wire.client_type.unwrap_or_default(),
        ..Document::default()
    };
    let value = wire.credentials_value.unwrap_or_default();
    match wire.credentials_type.as_deref() {
        Some("MQTT_BASIC") => {
            let basic = basic(&value).map_err(&problem)?;
            if basic.user_name.as_deref() == Some(WEB_PAGE) && basic.password_hash.is_none() {
                return Ok(Entry::LeftOut {
                    name: document.display_name,
                    reason: "anyone may connect by it: TBMQ makes it for its web page, with a known user name and no \
                             password",
                });
            }
            document.basic = Some(basic);
        }
        Some("X_509" | "SSL") => document.x509 = Some(x509(&value).map_err(&problem)?),
        Some("SCRAM") => document.scram = Some(scram(&value).map_err(&problem)?),
        Some(other) => return Err(problem(format!("{other} is not a type of credentials"))),
        None => {
            let reason = if wire.id.is_some() || document.basic.is_none() {
                "it has no credentialsType; TBMQ's lists leave out what an import needs: get each by its id"
            } else {
                "it has no credentialsType"
            };
            return Err(problem(reason.to_owned()));
        }
    }
    Ok(Entry::Credential(Box::new(document)))
}

/// The value, which is JSON as text, or JSON where somebody has unpacked it.
fn inner<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    let read = match value {
        Value::String(text) => serde_json::from_str(text),
        Value::Null => return Err("it has no credentialsValue".to_owned()),
        other => serde_json::from_value(other.clone()),
    };
    read.map_err(|error| format!("its credentialsValue can't be read: {error}"))
}

fn basic(value: &Value) -> Result<Basic, String> {
    let wire: WireBasic = inner(value)?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Basic {
        client_id: given(wire.client_id),
        user_name: given(wire.user_name),
        password_hash: given(wire.password).map(Secret),
        rules: rules(wire.auth_rules)?,
        ..Basic::default()
    })
}

fn x509(value: &Value) -> Result<X509, String> {
    let wire: WireX509 = inner(value)?;
    let name = wire.cert_cn_pattern.or(wire.cert_common_name).ok_or("it has no certCnPattern")?;
    let leaf = |(pattern, of_leaf): (String, WireRules)| {
        Ok::<_, String>(Leaf { pattern: translated(&pattern)?, rules: rules(Some(of_leaf))? })
    };
    let leaf_rules: Result<_, _> =
        wire.auth_rules_mapping.unwrap_or_default().into_iter().map(leaf).collect();
    Ok(X509 {
        common_name: if wire.cert_cn_is_regex { translated(&name)? } else { name },
        is_pattern: wire.cert_cn_is_regex,
        leaf_rules: leaf_rules?,
    })
}

fn scram(value: &Value) -> Result<Scram, String> {
    let wire: WireScram = inner(value)?;
    let key = |text: Option<String>, what: &str| text.map(Secret).ok_or_else(|| format!("it has no {what}"));
    Ok(Scram {
        user_name: wire.user_name.ok_or("it has no userName")?,
        algorithm: wire.algorithm.ok_or("it has no algorithm")?,
        keys: Some(Keys {
            iterations: ITERATIONS,
            salt: key(wire.salt, "salt")?,
            stored_key: key(wire.stored_key, "storedKey")?,
            server_key: key(wire.server_key, "serverKey")?,
        }),
        rules: rules(wire.auth_rules)?,
        ..Scram::default()
    })
}

/// A pattern that both lists have becomes one rule for both.
fn rules(wire: Option<WireRules>) -> Result<Vec<Rule>, String> {
    let wire = wire.unwrap_or_default();
    let mut subscribe = wire.subscribe.unwrap_or_default();
    let mut rules = Vec::new();
    for pattern in wire.publish.unwrap_or_default() {
        let both = subscribe.iter().position(|other| *other == pattern);
        let action = if both.is_some() { Action::Both } else { Action::Publish };
        if let Some(index) = both {
            subscribe.remove(index);
        }
        rules.push(rule(action, &pattern)?);
    }
    for pattern in subscribe {
        rules.push(rule(Action::Subscribe, &pattern)?);
    }
    Ok(rules)
}

fn rule(action: Action, pattern: &str) -> Result<Rule, String> {
    Ok(Rule(AccessRule {
        effect: Effect::Allow.into(),
        action: action.into(),
        topic: Some(Topic::Regex(translated(pattern)?)),
        ..AccessRule::default()
    }))
}

fn translated(pattern: &str) -> Result<String, String> {
    java::translated(pattern)
        .map_err(|reason| format!("the pattern {pattern:?} can't be taken over: {reason}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a";

    fn entry(kind: &str, value: &Value) -> Result<Entry, Problem> {
        read(
            json!({ "id": ID, "createdTime": 1, "name": "n", "clientType": "APPLICATION", "credentialsType": kind,
            "credentialsId": "x", "credentialsValue": value.to_string(), "additionalInfo": null }),
        )
    }

    fn document(kind: &str, value: &Value) -> Document {
        match entry(kind, value) {
            Ok(Entry::Credential(document)) => *document,
            other => panic!("{other:?}"),
        }
    }

    fn lines(rules: &[Rule]) -> Vec<String> {
        rules.iter().map(Rule::to_string).collect()
    }

    #[test]
    fn basic_keeps_its_id_its_hash_and_its_rules() {
        let value = json!({ "clientId": null, "userName": "u", "password": "$2a$10$abc",
            "authRules": { "pubAuthRulePatterns": [".*", "a/\\d+"], "subAuthRulePatterns": ["b", ".*"] } });
        let document = document("MQTT_BASIC", &value);
        assert_eq!(document.uid.unwrap().to_string(), ID);
        assert_eq!((document.display_name.as_str(), document.client_type), ("n", Type::Application));
        let basic = document.basic.unwrap();
        assert_eq!((basic.client_id, basic.user_name.as_deref()), (None, Some("u")));
        assert_eq!(basic.password_hash, Some(Secret("$2a$10$abc".to_owned())));
        assert_eq!(
            lines(&basic.rules),
            ["allow both regex:.*", "allow publish regex:a/[0-9]+", "allow subscribe regex:b"]
        );
    }

    #[test]
    fn lists_that_are_missing_allow_nothing_and_short_names_are_known() {
        for rules in
            [json!(null), json!({}), json!({ "pubAuthRulePatterns": [], "subAuthRulePatterns": null })]
        {
            let basic =
                document("MQTT_BASIC", &json!({ "clientId": "c", "authRules": rules })).basic.unwrap();
            assert_eq!(basic.rules, []);
            assert_eq!(basic.password_hash, None, "any password, as in TBMQ");
        }
        let value = json!({ "clientId": "c", "authRules": { "pub": ["a"], "sub": ["b"] } });
        let basic = document("MQTT_BASIC", &value).basic.unwrap();
        assert_eq!(lines(&basic.rules), ["allow publish regex:a", "allow subscribe regex:b"]);
    }

    #[test]
    fn a_certificate_has_rules_by_the_name_of_its_leaf() {
        let value = json!({ "certCnPattern": "dev-\\d+", "certCnIsRegex": true,
            "authRulesMapping": { ".*": { "pubAuthRulePatterns": ["d/${cn}/.*"] } } });
        let x509 = document("X_509", &value).x509.unwrap();
        assert_eq!((x509.common_name.as_str(), x509.is_pattern), ("dev-[0-9]+", true));
        assert_eq!(x509.leaf_rules[0].pattern, ".*");
        assert_eq!(lines(&x509.leaf_rules[0].rules), ["allow publish regex:d/${cn}/.*"]);
        let literal =
            document("X_509", &json!({ "certCnPattern": "a\\d", "authRulesMapping": {} })).x509.unwrap();
        assert_eq!(literal.common_name, "a\\d", "a name is no pattern");
    }

    #[test]
    fn scram_has_the_iterations_of_tbmq() {
        let value = json!({ "userName": "u", "salt": "AAE=", "serverKey": "AQ==", "storedKey": "Ag==",
            "algorithm": "SHA_512", "authRules": null });
        let scram = document("SCRAM", &value).scram.unwrap();
        let keys = scram.keys.unwrap();
        assert_eq!(
            (keys.iterations, keys.stored_key.0.as_str(), scram.algorithm.as_str()),
            (4096, "Ag==", "SHA_512")
        );
    }

    #[test]
    fn a_value_that_was_unpacked_is_read_as_well() {
        let value =
            json!({ "name": "n", "credentialsType": "MQTT_BASIC", "credentialsValue": { "userName": "u" } });
        assert!(matches!(read(value), Ok(Entry::Credential(_))));
    }

    #[test]
    fn what_cant_be_taken_over_is_told_by_name_pattern_and_reason() {
        let value = json!({ "userName": "u", "authRules": { "pubAuthRulePatterns": ["a*+b"] } });
        let problem = entry("MQTT_BASIC", &value).unwrap_err();
        assert_eq!(problem.name, "n");
        assert!(problem.reason.contains("\"a*+b\"") && problem.reason.contains("possessive"), "{problem:?}");
        for (kind, value, reason) in [
            ("KERBEROS", json!({}), "not a type"),
            ("SCRAM", json!({ "userName": "u", "algorithm": "SHA_256" }), "no salt"),
            ("X_509", json!({}), "no certCnPattern"),
            ("MQTT_BASIC", json!([]), "can't be read"),
        ] {
            let problem = entry(kind, &value).unwrap_err();
            assert!(problem.reason.contains(reason), "{kind}: {problem:?}");
        }
        let short = read(json!({ "id": ID, "name": "n", "clientType": "DEVICE" })).unwrap_err();
        assert!(short.reason.contains("get each by its id"), "{short:?}");
    }

    #[test]
    fn the_credential_by_which_anyone_may_connect_is_left_out() {
        let value =
            json!({ "userName": WEB_PAGE, "password": null, "authRules": { "pub": [".*"], "sub": [".*"] } });
        assert!(matches!(entry("MQTT_BASIC", &value), Ok(Entry::LeftOut { .. })));
        let own = json!({ "userName": WEB_PAGE, "password": "$2a$10$x" });
        assert!(matches!(entry("MQTT_BASIC", &own), Ok(Entry::Credential(_))));
    }
}
