//! What a caller wants a credential to be: from a request, or from what is stored and an update mask.

use tbmq_auth::{
    acl::{Action, Effect, QosSet, RULES_MAX, Retained, Rule, Topics},
    credentials::{ClientType, CommonName, Credentials, Invalid, Proof},
    pattern::Pattern,
    scram::{self, Algorithm, StoredKeys},
};
use tbmq_integration::entity::Violation;
use tbmq_mqtt::packet::Qos;
use tbmq_proto::control::{
    self as proto, AccessRule, BasicCredentials, ScramCredentials, X509Credentials, access_rule,
    credentials::Proof as Given,
};
use uuid::Uuid;

use crate::auth::{
    proof::{QOS, algorithm, algorithm_name, type_of},
    record,
};

const NAME_CHARS_MAX: usize = 255;

/// Bytes of a password, as MQTT has them.
const PASSWORD_BYTES_MAX: usize = 65_535;

/// Bytes of a record: below Kafka's default limit of 1 MiB.
const RECORD_BYTES_MAX: usize = 900_000;

/// What an update may name.
const PATHS: [&str; 17] = [
    "*",
    "name",
    "etag",
    "display_name",
    "client_type",
    "basic",
    "basic.client_id",
    "basic.user_name",
    "basic.password",
    "basic.password_hash",
    "basic.rules",
    "x509",
    "scram",
    "scram.password",
    "scram.keys",
    "scram.rules",
    "x509.leaf_rules",
];

/// What a caller wants a credential to be.
#[derive(Debug)]
pub(super) struct Draft {
    /// All but what is made of `password`.
    pub(super) credentials: Credentials,
    pub(super) password: Option<Password>,
}

/// A password in the clear.
pub(super) struct Password(pub(super) String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(***)")
    }
}

/// Which fields an update is to change.
pub(super) struct Mask {
    paths: Vec<String>,
    everything: bool,
}

impl Mask {
    pub(super) fn new(mask: Option<prost_types::FieldMask>, violations: &mut Vec<Violation>) -> Self {
        let paths = mask.map(|mask| mask.paths).unwrap_or_default();
        for path in paths.iter().filter(|path| !PATHS.contains(&path.as_str())) {
            violations.push(Violation::new("update_mask", format!("{path:?} is not a writable field")));
        }
        let everything = paths.is_empty() || paths.iter().any(|path| path == "*");
        Self { paths, everything }
    }

    fn names(&self, path: &str) -> bool {
        self.paths.iter().any(|named| named == path)
    }

    /// Whether it is to be replaced, by itself or with what it is a part of.
    fn wants(&self, path: &str) -> bool {
        let parent = path.split_once('.').is_some_and(|(parent, _)| self.names(parent));
        self.everything || parent || self.names(path)
    }

    fn touches(&self, proof: &str) -> bool {
        let is_part = |path: &String| {
            path.strip_prefix(proof).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.everything || self.paths.iter().any(is_part)
    }
}

/// Reads a new credential.
pub(super) fn read_new(
    id: Uuid,
    given: proto::Credentials,
    violations: &mut Vec<Violation>,
) -> Option<Draft> {
    let name = read_name(&given.display_name, violations);
    let client_type = read_client_type(given.client_type, violations);
    let whole = Mask { paths: Vec::new(), everything: true };
    let Some(given) = given.proof else {
        violations.push(Violation::new("credentials", "one of basic, x509 and scram is missing"));
        return None;
    };
    let (proof, password) = read_proof(given, None, &whole, violations)?;
    let credentials = Credentials { id, revision: 0, name, client_type: client_type?, proof };
    Some(Draft { credentials, password })
}

/// What is stored, with what the mask names replaced by what is given.
pub(super) fn read_update(
    stored: &Credentials,
    given: proto::Credentials,
    mask: &Mask,
    violations: &mut Vec<Violation>,
) -> Option<Draft> {
    let mut draft = Draft { credentials: stored.clone(), password: None };
    if mask.wants("display_name") {
        draft.credentials.name = read_name(&given.display_name, violations);
    }
    if mask.wants("client_type") {
        draft.credentials.client_type = read_client_type(given.client_type, violations)?;
    }
    let touched = ["basic", "x509", "scram"].into_iter().any(|proof| mask.touches(proof));
    if touched {
        let Some(given) = given.proof else {
            violations.push(Violation::new("credentials", "one of basic, x509 and scram is missing"));
            return None;
        };
        (draft.credentials.proof, draft.password) = read_proof(given, Some(&stored.proof), mask, violations)?;
    }
    Some(draft)
}

/// Whether what is given is of another type than what is stored.
pub(super) fn is_other_type(stored: &Credentials, given: &proto::Credentials) -> bool {
    let given = match &given.proof {
        None => return false,
        Some(Given::Basic(_)) => "MQTT_BASIC",
        Some(Given::X509(_)) => "X_509",
        Some(Given::Scram(_)) => "SCRAM",
    };
    given != type_of(&stored.proof)
}

/// Everything that is wrong with a credential. Takes milliseconds where there are many rules.
pub(super) fn problems(credentials: &Credentials) -> Vec<Violation> {
    let Err(error) = credentials.check() else {
        let bytes = record::credentials(credentials).len();
        if bytes > RECORD_BYTES_MAX {
            let text = format!("have {bytes} bytes, more than {RECORD_BYTES_MAX}");
            return vec![Violation::new("credentials", text)];
        }
        return Vec::new();
    };
    let mut found = Vec::new();
    match &credentials.proof {
        Proof::Basic { rules, .. } => rule_problems("credentials.basic.rules", rules, &mut found),
        Proof::Scram { rules, .. } => rule_problems("credentials.scram.rules", rules, &mut found),
        Proof::X509 { rules, .. } => {
            for (at, (pattern, rules)) in rules.iter().enumerate() {
                let path = format!("credentials.x509.leaf_rules[{at}]");
                if let Err(error) = Pattern::whole(pattern) {
                    found.push(Violation::new(format!("{path}.pattern"), error.to_string()));
                }
                rule_problems(&format!("{path}.rules"), rules, &mut found);
            }
        }
    }
    if found.is_empty() {
        let part = match (&error, &credentials.proof) {
            (Invalid::Password(_), _) => "basic.password_hash",
            (Invalid::Keys(_), _) => "scram.keys",
            (Invalid::LeafPatterns(_), _) => "x509.leaf_rules",
            (_, Proof::Basic { .. }) => "basic",
            (_, Proof::X509 { .. }) => "x509.common_name",
            (_, Proof::Scram { .. }) => "scram.user_name",
        };
        found.push(Violation::new(format!("credentials.{part}"), error.to_string()));
    }
    found
}

fn rule_problems(path: &str, rules: &[Rule], found: &mut Vec<Violation>) {
    if rules.len() > RULES_MAX {
        found.push(Violation::new(path, format!("are {}, more than {RULES_MAX}", rules.len())));
        return;
    }
    for (at, rule) in rules.iter().enumerate() {
        if let Err(error) = rule.check() {
            found.push(Violation::new(format!("{path}[{at}]"), error.to_string()));
        }
    }
}

fn read_name(name: &str, violations: &mut Vec<Violation>) -> String {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        let text = "must have 1 to 255 characters, none of control";
        violations.push(Violation::new("credentials.display_name", text));
    }
    name.to_owned()
}

fn read_client_type(given: i32, violations: &mut Vec<Violation>) -> Option<ClientType> {
    match proto::ClientType::try_from(given) {
        Ok(proto::ClientType::Unspecified | proto::ClientType::Device) => Some(ClientType::Device),
        Ok(proto::ClientType::Application) => Some(ClientType::Application),
        Err(_) => {
            violations.push(Violation::new("credentials.client_type", "is DEVICE or APPLICATION"));
            None
        }
    }
}

/// Texts that the store keeps in columns; MQTT has no U+0000 either.
fn check_text(path: &str, text: &str, violations: &mut Vec<Violation>) {
    if text.contains('\0') {
        violations.push(Violation::new(path, "must not contain U+0000"));
    }
}

fn read_proof(
    given: Given,
    stored: Option<&Proof>,
    mask: &Mask,
    violations: &mut Vec<Violation>,
) -> Option<(Proof, Option<Password>)> {
    let before = violations.len();
    let read = match given {
        Given::Basic(basic) => read_basic(basic, stored, mask, violations),
        Given::X509(x509) => (read_x509(x509, stored, mask, violations), None),
        Given::Scram(scram) => read_scram(scram, stored, mask, violations)?,
    };
    (violations.len() == before).then_some(read)
}

fn read_basic(
    given: BasicCredentials,
    stored: Option<&Proof>,
    mask: &Mask,
    violations: &mut Vec<Violation>,
) -> (Proof, Option<Password>) {
    let (mut client_id, mut user_name, mut password_hash, mut rules) = match stored {
        Some(Proof::Basic { client_id, user_name, password_hash, rules }) => {
            (client_id.clone(), user_name.clone(), password_hash.clone(), rules.clone())
        }
        _ => Default::default(),
    };
    for (path, text) in [("client_id", &given.client_id), ("user_name", &given.user_name)] {
        check_text(&format!("credentials.basic.{path}"), text.as_deref().unwrap_or_default(), violations);
    }
    if mask.wants("basic.client_id") {
        client_id = given.client_id;
    }
    if mask.wants("basic.user_name") {
        user_name = given.user_name;
    }
    if mask.wants("basic.rules") {
        rules = read_rules("credentials.basic.rules", given.rules, violations);
    }
    let mut password = None;
    let is_named = mask.names("basic.password") || mask.names("basic.password_hash");
    if is_named || mask.wants("basic.password") {
        match (given.password, given.password_hash) {
            (Some(_), Some(_)) => violations.push(Violation::new(
                "credentials.basic.password_hash",
                "is given beside a password; one of them is enough",
            )),
            (Some(text), None) => {
                check_password("credentials.basic.password", &text, violations);
                password = Some(Password(text));
            }
            (None, Some(hash)) => password_hash = Some(hash),
            // Any password is accepted only where somebody says so.
            (None, None) if is_named => password_hash = None,
            (None, None) => {}
        }
    }
    if password.is_some() {
        password_hash = None;
    }
    (Proof::Basic { client_id, user_name, password_hash, rules }, password)
}

pub(super) fn check_password(path: &str, text: &str, violations: &mut Vec<Violation>) {
    if text.is_empty() || text.len() > PASSWORD_BYTES_MAX {
        let text = format!("must have 1 to {PASSWORD_BYTES_MAX} bytes");
        violations.push(Violation::new(path, text));
    }
}

fn read_x509(
    given: X509Credentials,
    stored: Option<&Proof>,
    mask: &Mask,
    violations: &mut Vec<Violation>,
) -> Proof {
    check_text("credentials.x509.common_name", &given.common_name, violations);
    let leaf = |(at, leaf): (usize, proto::x509_credentials::LeafRules)| {
        let path = format!("credentials.x509.leaf_rules[{at}].rules");
        (leaf.pattern, read_rules(&path, leaf.rules, violations))
    };
    let rules = given.leaf_rules.into_iter().enumerate().map(leaf).collect();
    match stored {
        Some(Proof::X509 { common_name, .. }) if !mask.wants("x509.common_name") => {
            Proof::X509 { common_name: common_name.clone(), rules }
        }
        _ => {
            let common_name = if given.is_pattern {
                CommonName::Pattern(given.common_name)
            } else {
                CommonName::Literal(given.common_name)
            };
            Proof::X509 { common_name, rules }
        }
    }
}

/// Keys that stand for those of a password until they are derived.
fn no_keys(algorithm: Algorithm) -> StoredKeys {
    let len = match algorithm {
        Algorithm::Sha256 => 32,
        Algorithm::Sha512 => 64,
    };
    StoredKeys {
        algorithm,
        iterations: scram::ITERATIONS,
        salt: vec![0; 16],
        stored: vec![0; len],
        server: vec![0; len],
    }
}

fn read_scram(
    given: ScramCredentials,
    stored: Option<&Proof>,
    mask: &Mask,
    violations: &mut Vec<Violation>,
) -> Option<(Proof, Option<Password>)> {
    let held = match stored {
        Some(Proof::Scram { user_name, keys, rules }) => Some((user_name, keys, rules)),
        _ => None,
    };
    check_text("credentials.scram.user_name", &given.user_name, violations);
    let user_name = match held {
        Some((user_name, ..)) if !mask.wants("scram.user_name") => user_name.clone(),
        _ => given.user_name,
    };
    let rules = match held {
        Some((.., rules)) if !mask.wants("scram.rules") => rules.clone(),
        _ => read_rules("credentials.scram.rules", given.rules, violations),
    };
    let held = held.map(|(_, keys, _)| keys);
    let algorithm = match (given.algorithm.as_str(), held) {
        ("", Some(held)) => held.algorithm,
        ("", None) => Algorithm::Sha256,
        (name, _) => match algorithm(name) {
            Some(algorithm) => algorithm,
            None => {
                violations.push(Violation::new("credentials.scram.algorithm", "is SHA_256 or SHA_512"));
                return None;
            }
        },
    };
    let may_change = mask.wants("scram.password") || mask.names("scram.keys");
    let (keys, password) = match (given.password, given.keys, held) {
        (.., Some(held)) if !may_change => (held.clone(), None),
        (Some(_), Some(_), _) => {
            let text = "are given beside a password; one of them is enough";
            violations.push(Violation::new("credentials.scram.keys", text));
            return None;
        }
        (Some(text), None, _) => {
            check_password("credentials.scram.password", &text, violations);
            if scram::prepare(&text).is_none() {
                let text = "has characters that SASLprep prohibits, or none";
                violations.push(Violation::new("credentials.scram.password", text));
            }
            (no_keys(algorithm), Some(Password(text)))
        }
        (None, Some(keys), _) => {
            let keys = StoredKeys {
                algorithm,
                iterations: keys.iterations,
                salt: keys.salt.to_vec(),
                stored: keys.stored_key.to_vec(),
                server: keys.server_key.to_vec(),
            };
            (keys, None)
        }
        (None, None, Some(held)) if held.algorithm == algorithm => (held.clone(), None),
        (None, None, held) => {
            let text = match held {
                Some(held) => format!(
                    "the password, or its keys, are needed: those that are kept are of {}",
                    algorithm_name(held.algorithm)
                ),
                None => "the password, or its keys, are missing".to_owned(),
            };
            violations.push(Violation::new("credentials.scram.password", text));
            return None;
        }
    };
    Some((Proof::Scram { user_name, keys, rules }, password))
}

fn read_rules(path: &str, given: Vec<AccessRule>, violations: &mut Vec<Violation>) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(given.len());
    for (at, rule) in given.into_iter().enumerate() {
        match read_rule(rule) {
            Ok(rule) => rules.push(rule),
            Err(text) => violations.push(Violation::new(format!("{path}[{at}]"), text)),
        }
    }
    rules
}

fn read_rule(given: AccessRule) -> Result<Rule, &'static str> {
    let effect = match access_rule::Effect::try_from(given.effect) {
        Ok(access_rule::Effect::Unspecified | access_rule::Effect::Allow) => Effect::Allow,
        Ok(access_rule::Effect::Deny) => Effect::Deny,
        Err(_) => return Err("effect is ALLOW or DENY"),
    };
    let action = match access_rule::Action::try_from(given.action) {
        Ok(access_rule::Action::Unspecified | access_rule::Action::Both) => Action::Both,
        Ok(access_rule::Action::Publish) => Action::Publish,
        Ok(access_rule::Action::Subscribe) => Action::Subscribe,
        Err(_) => return Err("action is PUBLISH, SUBSCRIBE or BOTH"),
    };
    let topics = match given.topic {
        Some(access_rule::Topic::Regex(text)) => Topics::Regex(text.into()),
        Some(access_rule::Topic::Filter(text)) => Topics::Filter(text.into()),
        None => return Err("one of regex and filter is missing"),
    };
    let qos = if given.qos.is_empty() {
        QosSet::ALL
    } else {
        let read = |bits: u32| QOS.into_iter().find(|qos| u32::from(qos.bits()) == bits);
        let all: Option<Vec<Qos>> = given.qos.into_iter().map(read).collect();
        QosSet::of(&all.ok_or("qos is 0, 1 or 2")?)
    };
    let retained = match given.retain {
        None => Retained::Either,
        Some(true) => Retained::Only,
        Some(false) => Retained::Never,
    };
    Ok(Rule { effect, action, qos, retained, topics })
}

/// A proof as it is shown: without hashes, keys and secrets.
pub(super) fn show(proof: Proof) -> Given {
    match proof {
        Proof::Basic { client_id, user_name, password_hash, rules } => Given::Basic(BasicCredentials {
            client_id,
            user_name,
            has_password: password_hash.is_some(),
            rules: show_rules(rules),
            ..BasicCredentials::default()
        }),
        Proof::X509 { common_name, rules } => {
            let (common_name, is_pattern) = match common_name {
                CommonName::Literal(name) => (name, false),
                CommonName::Pattern(pattern) => (pattern, true),
            };
            let leaf =
                |(pattern, rules)| proto::x509_credentials::LeafRules { pattern, rules: show_rules(rules) };
            let leaf_rules = rules.into_iter().map(leaf).collect();
            Given::X509(X509Credentials { common_name, is_pattern, leaf_rules })
        }
        Proof::Scram { user_name, keys, rules } => Given::Scram(ScramCredentials {
            user_name,
            algorithm: algorithm_name(keys.algorithm).to_owned(),
            rules: show_rules(rules),
            ..ScramCredentials::default()
        }),
    }
}

fn show_rules(rules: Vec<Rule>) -> Vec<AccessRule> {
    let show = |rule: Rule| {
        let qos = QOS.into_iter().filter(|qos| rule.qos.contains(*qos)).map(|qos| u32::from(qos.bits()));
        AccessRule {
            effect: match rule.effect {
                Effect::Allow => access_rule::Effect::Allow,
                Effect::Deny => access_rule::Effect::Deny,
            }
            .into(),
            action: match rule.action {
                Action::Publish => access_rule::Action::Publish,
                Action::Subscribe => access_rule::Action::Subscribe,
                Action::Both => access_rule::Action::Both,
            }
            .into(),
            qos: if rule.qos == QosSet::ALL { Vec::new() } else { qos.collect() },
            retain: match rule.retained {
                Retained::Either => None,
                Retained::Only => Some(true),
                Retained::Never => Some(false),
            },
            topic: Some(match rule.topics {
                Topics::Regex(text) => access_rule::Topic::Regex(text.into()),
                Topics::Filter(text) => access_rule::Topic::Filter(text.into()),
            }),
        }
    };
    rules.into_iter().map(show).collect()
}
