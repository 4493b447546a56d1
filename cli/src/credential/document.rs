//! A credential as a document: what `-o json` prints, `export` writes, and `create`, `update`, `edit` and `import` read.
//! Passwords, hashes and keys are only ever read.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tbmq_proto::control::{
    self, BasicCredentials, ClientType, Credentials, CredentialsType, ScramCredentials, X509Credentials,
    credentials::Proof, scram_credentials::ScramKeys, x509_credentials::LeafRules,
};
use uuid::Uuid;

use super::rule::Rule;
use crate::{failure::Failure, render::json::time};

/// What a document looks like, for messages.
pub(crate) const FORM: &str = "a document is {displayName, clientType, basic | x509 | scram}, as `tbmqctl credentials get -o yaml` prints it";

/// A credential.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Document {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<Uuid>,
    pub(crate) display_name: String,
    pub(crate) client_type: Type,
    /// Told by the server, and of no effect when read, as all below but the proof and the etag.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) r#type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) credentials_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) basic: Option<Basic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) x509: Option<X509>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scram: Option<Scram>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) observed_revision: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) update_time: Option<String>,
}

/// What a client is treated as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "lower")]
pub(crate) enum Type {
    /// Many of them, each with few messages
    #[default]
    Device,
    /// Few of them, each with many messages
    Application,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Basic {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_name: Option<String>,
    #[serde(skip_serializing)]
    pub(crate) password: Option<Secret>,
    #[serde(skip_serializing)]
    pub(crate) password_hash: Option<Secret>,
    /// Without one any password is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) has_password: Option<bool>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct X509 {
    pub(crate) common_name: String,
    pub(crate) is_pattern: bool,
    pub(crate) leaf_rules: Vec<Leaf>,
}

/// What clients may do whose own common name matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Leaf {
    pub(crate) pattern: String,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Scram {
    pub(crate) user_name: String,
    /// `SHA_256` (the default) or `SHA_512`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) algorithm: String,
    #[serde(skip_serializing)]
    pub(crate) password: Option<Secret>,
    #[serde(skip_serializing)]
    pub(crate) keys: Option<Keys>,
    pub(crate) rules: Vec<Rule>,
}

/// Keys of SCRAM, in base64.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Keys {
    pub(crate) iterations: u32,
    pub(crate) salt: Secret,
    pub(crate) stored_key: Secret,
    pub(crate) server_key: Secret,
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl From<Type> for ClientType {
    fn from(from: Type) -> Self {
        match from {
            Type::Device => Self::Device,
            Type::Application => Self::Application,
        }
    }
}

impl From<ClientType> for Type {
    fn from(from: ClientType) -> Self {
        match from {
            ClientType::Application => Self::Application,
            ClientType::Device | ClientType::Unspecified => Self::Device,
        }
    }
}

/// The type without the enum's prefix.
pub(crate) fn type_name(number: i32) -> &'static str {
    CredentialsType::try_from(number)
        .unwrap_or_default()
        .as_str_name()
        .trim_start_matches("CREDENTIALS_TYPE_")
}

/// The client type without the enum's prefix.
pub(crate) fn client_type_name(one: &Credentials) -> &'static str {
    match one.client_type() {
        ClientType::Application => "APPLICATION",
        ClientType::Device | ClientType::Unspecified => "DEVICE",
    }
}

impl Document {
    /// Reads one document as JSON or YAML.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let document: Self = serde_norway::from_str(text).map_err(|error| {
            Failure::usage(format!("this does not describe a credential: {error}")).hint(FORM)
        })?;
        document.checked()
    }

    /// Reads one document of a stream.
    pub(crate) fn of_value(value: serde_json::Value) -> Result<Self, String> {
        let document: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        document.checked().map_err(|failure| failure.message)
    }

    fn checked(self) -> Result<Self, Failure> {
        let proofs = [self.basic.is_some(), self.x509.is_some(), self.scram.is_some()];
        if proofs.iter().filter(|is_there| **is_there).count() != 1 {
            return Err(Failure::usage(format!(
                "{:?} has one of basic, x509 and scram, not none and not several",
                self.display_name
            ))
            .hint(FORM));
        }
        Ok(self)
    }

    /// Sees that a credential that has a password brings it along: without one, any would be accepted.
    pub(crate) fn brings_its_password(&self) -> Result<(), String> {
        match &self.basic {
            Some(Basic { has_password: Some(true), password: None, password_hash: None, .. }) => Err(
                "it has a password, which an export does not show: add `password` or `passwordHash`, or remove \
                 `hasPassword` to have any password accepted"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// The resource to be written.
    ///
    /// # Errors
    /// When a key is not base64.
    pub(crate) fn into_credentials(self) -> Result<Credentials, String> {
        let lines = |rules: Vec<Rule>| rules.into_iter().map(|Rule(rule)| rule).collect();
        let proof = if let Some(basic) = self.basic {
            Some(Proof::Basic(BasicCredentials {
                client_id: basic.client_id,
                user_name: basic.user_name,
                password: basic.password.map(|Secret(text)| text),
                password_hash: basic.password_hash.map(|Secret(text)| text),
                has_password: false,
                rules: lines(basic.rules),
            }))
        } else if let Some(x509) = self.x509 {
            let leaf = |leaf: Leaf| LeafRules { pattern: leaf.pattern, rules: lines(leaf.rules) };
            Some(Proof::X509(X509Credentials {
                common_name: x509.common_name,
                is_pattern: x509.is_pattern,
                leaf_rules: x509.leaf_rules.into_iter().map(leaf).collect(),
            }))
        } else if let Some(scram) = self.scram {
            Some(Proof::Scram(ScramCredentials {
                user_name: scram.user_name,
                algorithm: scram.algorithm,
                password: scram.password.map(|Secret(text)| text),
                keys: scram.keys.map(ScramKeys::try_from).transpose()?,
                rules: lines(scram.rules),
            }))
        } else {
            None
        };
        Ok(Credentials {
            name: self.uid.map(|uid| format!("credentials/{uid}")).unwrap_or(self.name),
            display_name: self.display_name,
            client_type: ClientType::from(self.client_type).into(),
            proof,
            etag: self.etag,
            ..Credentials::default()
        })
    }

    /// What can be imported again: without what the server adds.
    pub(crate) fn portable(from: &Credentials) -> Self {
        Self {
            name: String::new(),
            r#type: String::new(),
            credentials_id: String::new(),
            revision: None,
            observed_revision: None,
            etag: String::new(),
            create_time: None,
            update_time: None,
            ..Self::from(from)
        }
    }

    /// As YAML.
    pub(crate) fn yaml(&self) -> Result<String, Failure> {
        serde_norway::to_string(self).map_err(|error| Failure::bug(error.to_string()))
    }
}

impl From<&Credentials> for Document {
    fn from(from: &Credentials) -> Self {
        let lines = |rules: &[control::AccessRule]| rules.iter().cloned().map(Rule).collect::<Vec<_>>();
        let mut document = Self {
            name: from.name.clone(),
            uid: from.uid.parse().ok(),
            display_name: from.display_name.clone(),
            client_type: from.client_type().into(),
            r#type: type_name(from.r#type).to_owned(),
            credentials_id: from.credentials_id.clone(),
            revision: Some(from.revision),
            observed_revision: Some(from.observed_revision),
            etag: from.etag.clone(),
            create_time: time(from.create_time),
            update_time: time(from.update_time),
            ..Self::default()
        };
        match &from.proof {
            Some(Proof::Basic(basic)) => {
                document.basic = Some(Basic {
                    client_id: basic.client_id.clone(),
                    user_name: basic.user_name.clone(),
                    has_password: Some(basic.has_password),
                    rules: lines(&basic.rules),
                    ..Basic::default()
                });
            }
            Some(Proof::X509(x509)) => {
                let leaf =
                    |leaf: &LeafRules| Leaf { pattern: leaf.pattern.clone(), rules: lines(&leaf.rules) };
                document.x509 = Some(X509 {
                    common_name: x509.common_name.clone(),
                    is_pattern: x509.is_pattern,
                    leaf_rules: x509.leaf_rules.iter().map(leaf).collect(),
                });
            }
            Some(Proof::Scram(scram)) => {
                document.scram = Some(Scram {
                    user_name: scram.user_name.clone(),
                    algorithm: scram.algorithm.clone(),
                    rules: lines(&scram.rules),
                    ..Scram::default()
                });
            }
            None => {}
        }
        document
    }
}

impl TryFrom<Keys> for ScramKeys {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Self, Self::Error> {
        let bytes = |what: &str, Secret(text): &Secret| match BASE64_STANDARD.decode(text) {
            Ok(bytes) => Ok(Bytes::from(bytes)),
            Err(error) => Err(format!("{what} is not base64: {error}")),
        };
        Ok(Self {
            iterations: keys.iterations,
            salt: bytes("the salt", &keys.salt)?,
            stored_key: bytes("the stored key", &keys.stored_key)?,
            server_key: bytes("the server key", &keys.server_key)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "\
displayName: pump 7
clientType: APPLICATION
basic:
  clientId: pump-7
  userName: pumps
  password: s3same
  rules:
  - allow publish pumps/${clientId}/#
  - deny both regex:.*/secret
";

    #[test]
    fn a_document_becomes_a_credential_and_a_credential_a_document_without_its_secrets() {
        let document = Document::parse(YAML).unwrap();
        assert!(!format!("{document:?}").contains("s3same"));
        let mut credentials = document.into_credentials().unwrap();
        let Some(Proof::Basic(basic)) = &mut credentials.proof else { panic!("{credentials:?}") };
        assert_eq!((basic.user_name.as_deref(), basic.password.as_deref()), (Some("pumps"), Some("s3same")));
        assert_eq!(basic.rules.len(), 2);
        basic.has_password = true;
        let again = Document::portable(&credentials).yaml().unwrap();
        assert_eq!(again, YAML.replace("  password: s3same\n", "  hasPassword: true\n"));
        let again = Document::parse(&again).unwrap();
        assert!(again.brings_its_password().unwrap_err().contains("`passwordHash`"));
        assert_eq!(Document::parse(YAML).unwrap().brings_its_password(), Ok(()));
    }

    #[test]
    fn all_that_the_server_tells_loads_again() {
        let scram = ScramCredentials {
            user_name: "u".to_owned(),
            algorithm: "SHA_512".to_owned(),
            ..ScramCredentials::default()
        };
        let from = Credentials {
            name: "credentials/0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
            uid: "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
            display_name: "n".to_owned(),
            r#type: CredentialsType::Scram.into(),
            credentials_id: "scram|u".to_owned(),
            proof: Some(Proof::Scram(scram.clone())),
            revision: 7,
            etag: "e".to_owned(),
            create_time: Some(prost_types::Timestamp { seconds: 1_742_554_969, nanos: 0 }),
            ..Credentials::default()
        };
        let printed = serde_json::to_string(&Document::from(&from)).unwrap();
        let read = Document::parse(&printed).unwrap().into_credentials().unwrap();
        assert_eq!((read.name, read.etag, read.proof), (from.name, from.etag, Some(Proof::Scram(scram))));
    }

    #[test]
    fn keys_are_base64() {
        let document = |salt: &str| {
            Document::parse(&format!(
                "displayName: n\nscram: {{ userName: u, keys: {{ iterations: 4096, salt: {salt}, storedKey: AQI=, \
                 serverKey: AwQ= }} }}"
            ))
            .unwrap()
            .into_credentials()
        };
        let Some(Proof::Scram(scram)) = document("AAE=").unwrap().proof else { panic!("another proof") };
        let keys = scram.keys.unwrap();
        assert_eq!((keys.iterations, &keys.salt[..], &keys.server_key[..]), (4096, &[0, 1][..], &[3, 4][..]));
        assert!(document("'!'").unwrap_err().starts_with("the salt is not base64"));
    }

    #[test]
    fn what_describes_no_credential_is_refused() {
        for text in [
            "displayName: n",
            "displayName: n\nbasic: {}\nscram: { userName: u }",
            "displayName: n\nbasic: { usrName: u }",
            "displayName: n\nbasic: { userName: u, rules: [a] }",
            "[",
        ] {
            assert!(Document::parse(text).is_err(), "{text}");
        }
    }
}
