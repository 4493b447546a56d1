//! A credential, as a record brings it: who may connect by what proof, as which type of client, and what it may do.

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    acl::{self, Rule, RuleSet},
    password,
    pattern::{self, Pattern},
    scram,
};

/// Bytes of a name, user name, client id or common name.
pub const TEXT_BYTES_MAX: usize = u16::MAX as usize;

/// Patterns of leaf names of an X.509 credential.
pub const LEAF_PATTERNS_MAX: usize = 100;

/// What a client is treated as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ClientType {
    /// TBMQ's `DEVICE`.
    #[default]
    Device,
    /// TBMQ's `APPLICATION`.
    Application,
}

/// A credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its id, which stays when everything else changes.
    pub id: Uuid,
    /// Grows with every change.
    pub revision: u64,
    /// For people; sessions show it.
    pub name: String,
    /// What its clients are treated as.
    pub client_type: ClientType,
    /// How a client proves that it is meant.
    pub proof: Proof,
}

/// How a client proves that it is meant, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// TBMQ's `MQTT_BASIC`: by client id, by user name, or by both.
    Basic {
        /// Absent: any.
        client_id: Option<String>,
        /// Absent: any.
        user_name: Option<String>,
        /// See [`password`]; absent: any password, or none, is accepted.
        password_hash: Option<String>,
        /// What it may do.
        rules: Vec<Rule>,
    },
    /// A certificate that an authority of the listener has signed.
    X509 {
        /// Of a certificate of the client's chain.
        common_name: CommonName,
        /// What may be done by clients whose *own* common name matches the whole pattern; all that match count. A
        /// client that none matches is refused.
        rules: Vec<(String, Vec<Rule>)>,
    },
    /// SCRAM, as MQTT 5.0 enhanced authentication.
    Scram {
        /// The user name.
        user_name: String,
        /// The keys; the password is nowhere.
        keys: scram::StoredKeys,
        /// What it may do.
        rules: Vec<Rule>,
    },
}

/// Which common names an X.509 credential is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommonName {
    /// This one.
    Literal(String),
    /// Those in which this regular expression is found anywhere (TBMQ's `certCnIsRegex`).
    Pattern(String),
}

/// Why a credential can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A text that is empty or longer than [`TEXT_BYTES_MAX`].
    #[error("{0} has 1 to {TEXT_BYTES_MAX} bytes")]
    Text(&'static str),
    /// Neither client id nor user name.
    #[error("a credential of MQTT basic names a client id, a user name, or both")]
    Nobody,
    /// See [`password::Invalid`].
    #[error(transparent)]
    Password(#[from] password::Invalid),
    /// See [`scram::InvalidKeys`].
    #[error(transparent)]
    Keys(#[from] scram::InvalidKeys),
    /// See [`pattern::Invalid`].
    #[error(transparent)]
    Pattern(#[from] pattern::Invalid),
    /// See [`acl::Invalid`].
    #[error(transparent)]
    Rules(#[from] acl::Invalid),
    /// More than [`LEAF_PATTERNS_MAX`], or none.
    #[error("an X.509 credential has 1 to {LEAF_PATTERNS_MAX} patterns with rules, this one has {0}")]
    LeafPatterns(usize),
    /// More than the index takes.
    #[error("there are {0} X.509 credentials by pattern already, and every CONNECT tries all of them")]
    TooManyPatterns(usize),
}

fn check_text(what: &'static str, text: &str) -> Result<(), Invalid> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX { Err(Invalid::Text(what)) } else { Ok(()) }
}

impl Credentials {
    /// Whether it can be used: for a control plane that is to store it. The index checks what it is given, too.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        self.check_proof()?;
        match &self.proof {
            Proof::Basic { rules, .. } | Proof::Scram { rules, .. } => {
                RuleSet::new(rules.clone())?;
            }
            Proof::X509 { rules, .. } => {
                for (leaf, rules) in rules {
                    Pattern::whole(leaf)?;
                    RuleSet::new(rules.clone())?;
                }
            }
        }
        Ok(())
    }

    /// All but rules and the patterns that they are for, which many credentials have in common.
    pub(crate) fn check_proof(&self) -> Result<(), Invalid> {
        check_text("the name", &self.name)?;
        match &self.proof {
            Proof::Basic { client_id, user_name, password_hash, .. } => {
                if client_id.is_none() && user_name.is_none() {
                    return Err(Invalid::Nobody);
                }
                client_id.iter().try_for_each(|id| check_text("the client id", id))?;
                user_name.iter().try_for_each(|name| check_text("the user name", name))?;
                password_hash.iter().try_for_each(|hash| password::check(hash).map(drop))?;
            }
            Proof::X509 { common_name, rules } => {
                match common_name {
                    CommonName::Literal(name) => check_text("the common name", name)?,
                    CommonName::Pattern(text) => {
                        check_text("the pattern of common names", text)?;
                        pattern::anywhere(text)?;
                    }
                }
                if rules.is_empty() || rules.len() > LEAF_PATTERNS_MAX {
                    return Err(Invalid::LeafPatterns(rules.len()));
                }
            }
            Proof::Scram { user_name, keys, .. } => {
                check_text("the user name", user_name)?;
                keys.check()?;
            }
        }
        Ok(())
    }

    /// TBMQ's `credentialsId`, by which no two credentials may be alike: `username|u`, `client_id|c`, `mixed|u|c`,
    /// `ssl|cn`, `scram|u`.
    pub fn unique_key(&self) -> String {
        match &self.proof {
            Proof::Basic { client_id: Some(client), user_name: Some(user), .. } => {
                format!("mixed|{user}|{client}")
            }
            Proof::Basic { client_id: Some(client), .. } => format!("client_id|{client}"),
            Proof::Basic { user_name, .. } => {
                format!("username|{}", user_name.as_deref().unwrap_or_default())
            }
            Proof::X509 { common_name: CommonName::Literal(name) | CommonName::Pattern(name), .. } => {
                format!("ssl|{name}")
            }
            Proof::Scram { user_name, .. } => format!("scram|{user_name}"),
        }
    }
}
