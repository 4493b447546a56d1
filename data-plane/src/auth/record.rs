//! Records of who may connect, as what judges them knows them.
//!
//! What can't be read says why; what it allowed before is over then.

use tbmq_auth::{
    acl::{Action, Effect, QosSet, Retained, Rule, Topics},
    blocked::{Target, Who},
    credentials::{ClientType, CommonName, Credentials, Proof},
    scram::{Algorithm, StoredKeys},
};
use tbmq_proto::{
    queue::{BlockedClientProto, BlockedClientTypeProto, RegexMatchTargetProto},
    wire::{
        AuthClientType, AuthRule, BasicProof, CredentialsRecord, ScramProof, X509Proof,
        auth_rule::{self, Topic},
        credentials_record,
    },
};

/// Why a record can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} is {value:?}, which this release does not know")]
    Unknown { what: &'static str, value: String },
    #[error(transparent)]
    Blocked(#[from] tbmq_auth::blocked::Invalid),
}

fn unknown(what: &'static str, value: impl ToString) -> Invalid {
    Invalid::Unknown { what, value: value.to_string() }
}

/// A credential; whether it can be used is for the index to say.
pub(crate) fn credentials(record: CredentialsRecord) -> Result<Credentials, Invalid> {
    let id = record.id.parse().map_err(|_| unknown("the id", &record.id))?;
    let client_type = match AuthClientType::try_from(record.client_type) {
        Ok(AuthClientType::Unspecified | AuthClientType::Device) => ClientType::Device,
        Ok(AuthClientType::Application) => ClientType::Application,
        Err(_) => return Err(unknown("the client type", record.client_type)),
    };
    let proof = match record.proof.ok_or(Invalid::Missing("the proof"))? {
        credentials_record::Proof::Basic(basic) => self::basic(basic)?,
        credentials_record::Proof::X509(x509) => self::x509(x509)?,
        credentials_record::Proof::Scram(scram) => self::scram(scram)?,
    };
    Ok(Credentials { id, revision: record.revision, name: record.name, client_type, proof })
}

fn basic(basic: BasicProof) -> Result<Proof, Invalid> {
    let BasicProof { client_id, user_name, password_hash, rules } = basic;
    // Absent: any password. What is there and empty is damaged, and never that.
    if password_hash.as_deref() == Some("") {
        return Err(Invalid::Missing("the text of the password's hash"));
    }
    Ok(Proof::Basic { client_id, user_name, password_hash, rules: self::rules(rules)? })
}

fn x509(x509: X509Proof) -> Result<Proof, Invalid> {
    let common_name = if x509.is_pattern {
        CommonName::Pattern(x509.common_name)
    } else {
        CommonName::Literal(x509.common_name)
    };
    let leaf_rules = x509.leaf_rules.into_iter().map(|leaf| Ok((leaf.pattern, rules(leaf.rules)?)));
    Ok(Proof::X509 { common_name, rules: leaf_rules.collect::<Result<_, Invalid>>()? })
}

fn scram(scram: ScramProof) -> Result<Proof, Invalid> {
    let algorithm = match &*scram.algorithm {
        "SHA_256" => Algorithm::Sha256,
        "SHA_512" => Algorithm::Sha512,
        other => return Err(unknown("the algorithm", other)),
    };
    let keys = StoredKeys {
        algorithm,
        iterations: scram.iterations,
        salt: scram.salt.into(),
        stored: scram.stored_key.into(),
        server: scram.server_key.into(),
    };
    Ok(Proof::Scram { user_name: scram.user_name, keys, rules: rules(scram.rules)? })
}

/// Not collected in place: what that leaves of the list, shrunk, lies between two credentials of the index and is of no
/// use to anybody when it is freed (48 bytes for each credential).
fn rules(told: Vec<AuthRule>) -> Result<Vec<Rule>, Invalid> {
    let mut rules = Vec::with_capacity(told.len());
    for one in told {
        rules.push(rule(one)?);
    }
    Ok(rules)
}

fn rule(rule: AuthRule) -> Result<Rule, Invalid> {
    use auth_rule::{Action as ActionOf, Effect as EffectOf};
    let effect = match EffectOf::try_from(rule.effect) {
        Ok(EffectOf::Allow) => Effect::Allow,
        Ok(EffectOf::Deny) => Effect::Deny,
        Ok(EffectOf::Unspecified) => return Err(Invalid::Missing("a rule's effect")),
        Err(_) => return Err(unknown("a rule's effect", rule.effect)),
    };
    let action = match ActionOf::try_from(rule.action) {
        Ok(ActionOf::Publish) => Action::Publish,
        Ok(ActionOf::Subscribe) => Action::Subscribe,
        Ok(ActionOf::Both) => Action::Both,
        Ok(ActionOf::Unspecified) => return Err(Invalid::Missing("a rule's action")),
        Err(_) => return Err(unknown("a rule's action", rule.action)),
    };
    let qos = match rule.qos_mask {
        0 => QosSet::ALL,
        bits => QosSet::from_bits(bits).ok_or_else(|| unknown("a rule's set of QoS", bits))?,
    };
    let retained = match rule.retained {
        None => Retained::Either,
        Some(true) => Retained::Only,
        Some(false) => Retained::Never,
    };
    let topics = match rule.topic.ok_or(Invalid::Missing("a rule's topic"))? {
        Topic::Regex(text) => Topics::Regex(text.into()),
        Topic::Filter(text) => Topics::Filter(text.into()),
    };
    Ok(Rule { effect, action, qos, retained, topics })
}

/// Who is blocked, and until when: ms since 1970; 0: for ever.
pub(crate) fn blocked(record: BlockedClientProto) -> Result<(Who, i64), Invalid> {
    let value = record.value;
    let who = match BlockedClientTypeProto::try_from(record.r#type) {
        Ok(BlockedClientTypeProto::BlockedClientTypeClientId) => Who::ClientId(value.into()),
        Ok(BlockedClientTypeProto::BlockedClientTypeUsername) => Who::UserName(value.into()),
        Ok(BlockedClientTypeProto::BlockedClientTypeIpAddress) => Who::network(&value)?,
        Ok(BlockedClientTypeProto::BlockedClientTypeRegex) => {
            let target =
                record.regex_match_target.ok_or(Invalid::Missing("what the regex is matched with"))?;
            let target = match RegexMatchTargetProto::try_from(target) {
                Ok(RegexMatchTargetProto::RegexMatchTargetByClientId) => Target::ClientId,
                Ok(RegexMatchTargetProto::RegexMatchTargetByUsername) => Target::UserName,
                Ok(RegexMatchTargetProto::RegexMatchTargetByIpAddress) => Target::Address,
                _ => return Err(unknown("what the regex is matched with", target)),
            };
            Who::Regex { pattern: value.into(), target }
        }
        _ => return Err(unknown("what is blocked", record.r#type)),
    };
    Ok((who, record.expiration_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> AuthRule {
        AuthRule {
            effect: auth_rule::Effect::Deny as i32,
            action: auth_rule::Action::Subscribe as i32,
            qos_mask: 0b101,
            retained: Some(true),
            topic: Some(Topic::Regex("a.*".to_owned())),
        }
    }

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        let expected = Rule {
            effect: Effect::Deny,
            action: Action::Subscribe,
            qos: QosSet::from_bits(0b101).unwrap(),
            retained: Retained::Only,
            topics: Topics::Regex("a.*".into()),
        };
        assert_eq!(rule(told()), Ok(expected.clone()));
        let with = |qos_mask, retained| rule(AuthRule { qos_mask, retained, ..told() }).unwrap();
        assert_eq!(with(0, None), Rule { qos: QosSet::ALL, retained: Retained::Either, ..expected.clone() });
        assert_eq!(with(0b101, Some(false)), Rule { retained: Retained::Never, ..expected });
    }

    #[test]
    fn rules_leave_nothing_of_the_list_that_was_decoded() {
        let mut list = Vec::with_capacity(4);
        list.push(told());
        let decoded_at = list.as_ptr().addr();
        let rules = rules(list).unwrap();
        assert_ne!(rules.as_ptr().addr(), decoded_at);
    }

    #[test]
    fn a_rule_that_says_too_little_or_what_nobody_knows_is_refused() {
        for (bad, reason) in [
            (AuthRule { effect: 0, ..told() }, "a rule's effect is missing"),
            (AuthRule { effect: 9, ..told() }, "a rule's effect is \"9\", which this release does not know"),
            (AuthRule { action: 0, ..told() }, "a rule's action is missing"),
            (AuthRule { action: 9, ..told() }, "a rule's action is \"9\", which this release does not know"),
            (
                AuthRule { qos_mask: 8, ..told() },
                "a rule's set of QoS is \"8\", which this release does not know",
            ),
            (AuthRule { topic: None, ..told() }, "a rule's topic is missing"),
        ] {
            assert_eq!(rule(bad).unwrap_err().to_string(), reason);
        }
    }

    #[test]
    fn blocks_are_read_with_tbmqs_types_and_targets() {
        use BlockedClientTypeProto as Kind;
        use RegexMatchTargetProto as On;
        let read = |kind: Kind, target: Option<On>, value: &str| {
            blocked(BlockedClientProto {
                r#type: kind as i32,
                expiration_time: 7,
                description: None,
                value: value.to_owned(),
                regex_match_target: target.map(|target| target as i32),
            })
        };
        let key = |kind, target, value| read(kind, target, value).map(|(who, until)| (who.key(), until));
        let regex = Kind::BlockedClientTypeRegex;
        for (kind, target, value, expected) in [
            (Kind::BlockedClientTypeClientId, None, "c", "clientId:c"),
            (Kind::BlockedClientTypeUsername, None, "u", "username:u"),
            (Kind::BlockedClientTypeIpAddress, None, "10.1.0.0/8", "ipAddress:10.0.0.0/8"),
            (regex, Some(On::RegexMatchTargetByClientId), "x+", "regex:x+:byID"),
            (regex, Some(On::RegexMatchTargetByUsername), "x+", "regex:x+:byUN"),
            (regex, Some(On::RegexMatchTargetByIpAddress), "x+", "regex:x+:byIP"),
        ] {
            assert_eq!(key(kind, target, value), Ok((expected.to_owned(), 7)));
        }
        assert!(read(Kind::BlockedClientTypeUnknown, None, "c").is_err());
        assert!(read(Kind::BlockedClientTypeIpAddress, None, "c").is_err());
        assert_eq!(read(regex, None, "x"), Err(Invalid::Missing("what the regex is matched with")));
        assert!(read(regex, Some(On::RegexMatchTargetUnknown), "x").is_err());
    }
}
