//! Seals the secrets of integrations and providers before they leave this process, and opens what comes back from the store.
//!
//! Which fields are secret is told by the schemas of the kinds; keys come from the configuration. Without a key nothing
//! is sealed.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::rand::SystemRandom;
use serde::{Deserialize, Serialize};
use tbmq_integration::{
    seal::{Keys, NoRandomness, Parted, Purpose, Sealed, Unreadable},
    secret,
    wire::ValidationRequest,
};
use tbmq_proto::ids::{IntegrationId, Kind};

use crate::{plane::Kinds, store::KindRow};

/// Keys and schemas.
#[derive(Debug, Default)]
pub struct Vault {
    keys: Keys,
    kinds: Arc<Kinds>,
    random: Random,
}

/// The system's random numbers.
#[derive(Debug)]
struct Random(SystemRandom);

impl Default for Random {
    fn default() -> Self {
        Self(SystemRandom::new())
    }
}

/// A new key, as `TBMQ_SECRETS_KEYS` takes it.
///
/// # Errors
/// When the system gives no random numbers.
pub fn new_key() -> Result<String, NoRandomness> {
    Keys::generate(&SystemRandom::new())
}

impl Vault {
    /// A vault that knows no kind yet.
    pub fn new(keys: Keys) -> Self {
        Self { keys, ..Self::default() }
    }

    /// Takes a kind, whose secrets are told apart from then on; `false` when its schema is no JSON, or there are too many
    /// kinds.
    pub fn learn(&self, kind: &KindRow) -> bool {
        self.kinds.put(kind)
    }

    pub(crate) fn kinds(&self) -> Arc<Kinds> {
        self.kinds.clone()
    }

    /// The id of the key that seals.
    pub(crate) fn first(&self) -> Option<&str> {
        self.keys.first()
    }

    pub(crate) fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.ids()
    }

    /// The document with its secrets sealed; `None` without a key, or without a secret.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub(crate) fn part(
        &self,
        integration: IntegrationId,
        kind: &Kind,
        purpose: Purpose,
        document: &str,
    ) -> Result<Option<Arc<Parted>>, NoRandomness> {
        let schema = self.kinds.get(kind.as_str()).map(|known| known.schema);
        self.part_by(schema.as_deref(), integration, purpose, document)
    }

    /// As [`Vault::part`], by a schema; `integration` stands for what the document is of.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub(crate) fn part_by(
        &self,
        schema: Option<&serde_json::Value>,
        integration: IntegrationId,
        purpose: Purpose,
        document: &str,
    ) -> Result<Option<Arc<Parted>>, NoRandomness> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let secrets = secret::find(schema, document);
        let parted = self.keys.part(&self.random.0, integration, purpose, document, &secrets)?;
        Ok(parted.map(Arc::new))
    }

    /// A request with its secrets sealed, for its id.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub(crate) fn sealed(&self, request: &ValidationRequest) -> Result<ValidationRequest, NoRandomness> {
        let purpose = Purpose::Request(request.id);
        let parted = self.part(request.integration, &request.kind, purpose, &request.configuration)?;
        let mut sealed = request.clone();
        if let Some(parted) = parted {
            sealed.configuration = parted.plain.to_string();
            sealed.sealed = Some(parted.sealed.clone());
        }
        Ok(sealed)
    }

    /// The whole document.
    ///
    /// # Errors
    /// When its key is not here, or does not open it.
    pub(crate) fn open(&self, integration: IntegrationId, parted: &Parted) -> Result<String, Unreadable> {
        self.keys.open(integration, &parted.plain, &parted.sealed)
    }
}

/// A sealed part as the store keeps it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    key_id: String,
    revision: u64,
    nonce: String,
    ciphertext: String,
}

/// What the store keeps of a sealed part.
pub(crate) fn to_text(sealed: &Sealed) -> String {
    let revision = match sealed.purpose {
        Purpose::Revision(revision) => revision,
        Purpose::Request(_) => 0,
    };
    let stored = Stored {
        key_id: sealed.key_id.clone(),
        revision,
        nonce: BASE64_STANDARD.encode(sealed.nonce),
        ciphertext: BASE64_STANDARD.encode(&sealed.ciphertext),
    };
    serde_json::to_string(&stored).expect("texts and a number are always JSON")
}

/// What [`to_text`] has written.
///
/// # Errors
/// When it was something else.
pub(crate) fn from_text(text: &str) -> Result<Sealed, Unreadable> {
    let malformed = |what: &str| Unreadable::Malformed(what.to_owned());
    let stored: Stored =
        serde_json::from_str(text).map_err(|error| Unreadable::Malformed(error.to_string()))?;
    let nonce = BASE64_STANDARD.decode(stored.nonce).ok().and_then(|nonce| nonce.try_into().ok());
    let ciphertext = BASE64_STANDARD.decode(stored.ciphertext).map_err(|_| malformed("no base64"))?;
    Ok(Sealed {
        key_id: stored.key_id,
        purpose: Purpose::Revision(stored.revision),
        nonce: nonce.ok_or_else(|| malformed("the nonce has not 12 bytes"))?,
        ciphertext: ciphertext.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_part_survives_the_store() {
        let sealed = Sealed {
            key_id: "k".to_owned(),
            purpose: Purpose::Revision(u64::MAX >> 1),
            nonce: [9; 12],
            ciphertext: vec![0, 255, 7].into(),
        };
        assert_eq!(from_text(&to_text(&sealed)), Ok(sealed.clone()));
        for text in ["", "{}", &to_text(&sealed).replace("\"nonce\":\"", "\"nonce\":\"AAAA")] {
            assert!(matches!(from_text(text), Err(Unreadable::Malformed(_))), "{text}");
        }
    }
}
