//! Secrets of configuration documents, encrypted: what leaves a process holds masks in their places, and apart from it
//! a JSON object from JSON Pointer to secret, sealed with AES-256-GCM.
//!
//! The associated data names the integration, what the document was sealed for (a revision, or a request) and the key:
//! a sealed part fits nothing else. Randomness comes in as an argument.

use std::{collections::BTreeMap, fmt, sync::Arc};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    rand::SecureRandom,
};
use serde_json::value::RawValue;
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

use crate::secret::{self, Found};

/// Where keys are configured, as errors say it.
const SETTINGS: &str = "TBMQ_SECRETS_KEYS or the file of TBMQ_SECRETS_KEY_FILE";

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// Characters of a key's id, at most.
const ID_CHARS_MAX: usize = 64;

/// Begins the associated data: another layout gets another name.
const LAYOUT: &[u8] = b"tbmq secrets 1";

/// With padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The keys of a process: all of them open, the first one seals. Clones share them.
#[derive(Clone, Default)]
pub struct Keys(Arc<[Key]>);

struct Key {
    id: String,
    key: LessSafeKey,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

/// Keys that can't be used. No text shows a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// The id can't be one.
    #[error("key {number} has the id {id:?}: expected 1 to 64 letters, digits, '.', '_' or '-'")]
    Id {
        /// Counted from 1.
        number: usize,
        /// The id.
        id: String,
    },
    /// No base64.
    #[error("key {number} is not base64")]
    Base64 {
        /// Counted from 1.
        number: usize,
    },
    /// Not 32 bytes.
    #[error("key {number} has {bytes} bytes instead of 32")]
    Length {
        /// Counted from 1.
        number: usize,
        /// What it has.
        bytes: usize,
    },
    /// Two keys have one id.
    #[error("two keys have the id {id:?}")]
    Twice {
        /// The id.
        id: String,
    },
}

/// What a document was sealed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A revision of an integration.
    Revision(u64),
    /// A request to an executor, by its id.
    Request(Uuid),
}

/// Secrets, encrypted.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The key.
    pub key_id: String,
    /// What for.
    pub purpose: Purpose,
    /// Drawn at random, for one message only.
    pub nonce: [u8; NONCE_LEN],
    /// Ends with the tag.
    pub ciphertext: Bytes,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key_id, purpose, .. } = self;
        f.debug_struct("Sealed").field("key_id", key_id).field("purpose", purpose).finish_non_exhaustive()
    }
}

/// A document that may leave the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parted {
    /// The document, with masks in the places of what is sealed.
    pub plain: Arc<str>,
    /// What stands in these places.
    pub sealed: Sealed,
}

/// The system gave no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secrets can't be sealed: the system gives no random numbers")]
pub struct NoRandomness;

/// Why secrets can't be opened, for people; says nothing of their content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// There is no such key here.
    #[error(
        "the secrets are sealed with key {key_id:?}, which is not configured here: add it to {SETTINGS}; {known}"
    )]
    UnknownKey {
        /// The key.
        key_id: String,
        /// Which ones there are.
        known: String,
    },
    /// Another key, or another record.
    #[error(
        "the secrets can't be opened with key {key_id:?}: another key has this id in {SETTINGS}, or the record was \
         changed"
    )]
    Refused {
        /// The key.
        key_id: String,
    },
    /// They were sealed for another document.
    #[error(
        "the secrets that are sealed with key {key_id:?} don't fit the document: no mask stands at {pointer}"
    )]
    Misfit {
        /// The key.
        key_id: String,
        /// Where one should stand.
        pointer: String,
    },
    /// What was stored is no sealed part.
    #[error("the sealed secrets can't be read: {0}")]
    Malformed(String),
}

impl Keys {
    /// Reads keys, one per line or separated by commas: `id:base64`, or the base64 alone, which gets an id that is made
    /// from the key. No text: no keys.
    ///
    /// # Errors
    /// The first one that can't be used.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        let mut keys: Vec<Key> = Vec::new();
        let entries = text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
        for (number, entry) in (1..).zip(entries) {
            let (id, encoded) = match entry.split_once(':') {
                Some((id, encoded)) => (Some(id.trim()), encoded.trim()),
                None => (None, entry),
            };
            let bytes = BASE64.decode(encoded).map_err(|_| InvalidKeys::Base64 { number })?;
            let length = InvalidKeys::Length { number, bytes: bytes.len() };
            let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| length)?;
            let id = id.map_or_else(|| fingerprint(&bytes), ToOwned::to_owned);
            let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if id.is_empty() || id.len() > ID_CHARS_MAX || !id.chars().all(is_word) {
                return Err(InvalidKeys::Id { number, id });
            }
            if keys.iter().any(|key| key.id == id) {
                return Err(InvalidKeys::Twice { id });
            }
            keys.push(Key { id, key: LessSafeKey::new(key) });
        }
        Ok(Self(keys.into()))
    }

    /// A new key as [`Keys::parse`] reads it.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn generate(random: &dyn SecureRandom) -> Result<String, NoRandomness> {
        let mut bytes = [0; KEY_BYTES];
        random.fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(format!("{}:{}", fingerprint(&bytes), BASE64.encode(bytes)))
    }

    /// Whether there is none: nothing is sealed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The id of the key that seals.
    pub fn first(&self) -> Option<&str> {
        self.0.first().map(|key| key.id.as_str())
    }

    /// The ids of all keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.id.as_str())
    }

    /// Parts a document from these of its places. `None` without a key, or without a secret.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn part(
        &self,
        random: &dyn SecureRandom,
        integration: IntegrationId,
        purpose: Purpose,
        document: &str,
        secrets: &[Found],
    ) -> Result<Option<Parted>, NoRandomness> {
        let Some(Key { id, key }) = self.0.first().filter(|_| !secrets.is_empty()) else { return Ok(None) };
        // Of a field that is written twice the last one counts.
        let texts: BTreeMap<&str, &RawValue> = secrets
            .iter()
            .filter_map(|found| {
                Some((&*found.pointer, serde_json::from_str(&document[found.span.clone()]).ok()?))
            })
            .collect();
        let mut text = serde_json::to_vec(&texts).expect("JSON texts by name are always JSON");
        let mut nonce = [0; NONCE_LEN];
        random.fill(&mut nonce).map_err(|_| NoRandomness)?;
        let associated = Aad::from(associated(integration, purpose, id));
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), associated, &mut text)
            .expect("a document is far smaller than 64 GiB");
        let sealed = Sealed { key_id: id.clone(), purpose, nonce, ciphertext: text.into() };
        Ok(Some(Parted { plain: secret::masked(document, secrets).into(), sealed }))
    }

    /// The whole document, byte for byte.
    ///
    /// # Errors
    /// When the key is not here, or does not open this.
    pub fn open(
        &self,
        integration: IntegrationId,
        plain: &str,
        sealed: &Sealed,
    ) -> Result<String, Unreadable> {
        let Sealed { key_id, purpose, nonce, ciphertext } = sealed;
        let Some(Key { key, .. }) = self.0.iter().find(|key| key.id == *key_id) else {
            let known: Vec<&str> = self.ids().collect();
            let known = match known.as_slice() {
                [] => "no key is".to_owned(),
                ids => format!("configured: {}", ids.join(", ")),
            };
            return Err(Unreadable::UnknownKey { key_id: key_id.clone(), known });
        };
        let refused = || Unreadable::Refused { key_id: key_id.clone() };
        let mut text = ciphertext.to_vec();
        let associated = Aad::from(associated(integration, *purpose, key_id));
        let text = key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), associated, &mut text)
            .map_err(|_| refused())?;
        let texts: BTreeMap<String, &RawValue> = serde_json::from_slice(text).map_err(|_| refused())?;
        let mut places = Vec::with_capacity(texts.len());
        for (pointer, text) in texts {
            match secret::locate(plain, &pointer).filter(|span| plain[span.clone()] == secret::quoted_mask())
            {
                Some(span) => places.push((span, text.get())),
                None => return Err(Unreadable::Misfit { key_id: key_id.clone(), pointer }),
            }
        }
        places.sort_by_key(|(span, _)| span.start);
        let mut whole = plain.to_owned();
        for (span, text) in places.into_iter().rev() {
            whole.replace_range(span, text);
        }
        Ok(whole)
    }
}

/// An id that tells keys apart and says nothing about them: they are too random to be guessed from it.
fn fingerprint(key: &[u8]) -> String {
    let hash = digest(&SHA256, key);
    let (first, _) = hash.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    format!("{:08x}", u32::from_be_bytes(*first))
}

/// Every part with its length before it, so that no two lists of parts make the same bytes.
fn associated(integration: IntegrationId, purpose: Purpose, key_id: &str) -> Vec<u8> {
    let (word, number) = match purpose {
        Purpose::Revision(revision) => ("revision", revision.to_be_bytes().to_vec()),
        Purpose::Request(id) => ("request", id.as_bytes().to_vec()),
    };
    let parts = [LAYOUT, integration.0.as_bytes(), word.as_bytes(), &number, key_id.as_bytes()];
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::rand::SystemRandom;

    use super::*;
    use crate::secret::tests::{DOCUMENT, schema};

    const ID: IntegrationId = IntegrationId(Uuid::from_u128(7));
    const FOR: Purpose = Purpose::Revision(42);

    fn encoded(byte: u8) -> String {
        BASE64.encode([byte; KEY_BYTES])
    }

    fn keys(ids: &[&str]) -> Keys {
        let entry = |id: &&str| format!("{id}:{}", encoded(id.as_bytes()[0]));
        Keys::parse(&ids.iter().map(entry).collect::<Vec<_>>().join(",")).unwrap()
    }

    fn parted(keys: &Keys, document: &str) -> Parted {
        let secrets = secret::find(Some(&schema()), document);
        keys.part(&SystemRandom::new(), ID, FOR, document, &secrets).unwrap().expect("it has secrets")
    }

    #[test]
    fn what_is_sealed_is_opened_byte_for_byte_and_is_not_to_be_seen_before() {
        let keys = keys(&["a"]);
        let parted = parted(&keys, DOCUMENT);
        assert_eq!(&*parted.plain, secret::mask(Some(&schema()), DOCUMENT));
        assert!(!String::from_utf8_lossy(&parted.sealed.ciphertext).contains("3cret"));
        assert_eq!(keys.open(ID, &parted.plain, &parted.sealed).unwrap(), DOCUMENT);
    }

    #[test]
    fn nothing_is_sealed_without_a_key_or_without_a_secret() {
        let random = SystemRandom::new();
        let secrets = secret::find(Some(&schema()), DOCUMENT);
        assert_eq!(Keys::default().part(&random, ID, FOR, DOCUMENT, &secrets), Ok(None));
        assert_eq!(keys(&["a"]).part(&random, ID, FOR, DOCUMENT, &[]), Ok(None));
    }

    #[test]
    fn the_first_key_seals_and_all_of_them_open() {
        let (old, both) = (keys(&["a"]), keys(&["b", "a"]));
        let before = parted(&old, DOCUMENT);
        let after = parted(&both, DOCUMENT);
        assert_eq!((before.sealed.key_id.as_str(), after.sealed.key_id.as_str()), ("a", "b"));
        assert_eq!(both.open(ID, &before.plain, &before.sealed).unwrap(), DOCUMENT);
        let text = old.open(ID, &after.plain, &after.sealed).unwrap_err().to_string();
        assert!(text.contains("\"b\"") && text.contains("TBMQ_SECRETS_KEYS"), "{text}");
        assert!(text.ends_with("configured: a"), "{text}");
    }

    #[test]
    fn a_sealed_part_fits_nothing_else() {
        let keys = keys(&["a", "c"]);
        let Parted { plain, sealed } = parted(&keys, DOCUMENT);
        let other = IntegrationId(Uuid::from_u128(8));
        assert!(keys.open(other, &plain, &sealed).is_err(), "another integration");
        let request = Purpose::Request(Uuid::from_u128(42));
        for purpose in [Purpose::Revision(43), request] {
            assert!(keys.open(ID, &plain, &Sealed { purpose, ..sealed.clone() }).is_err(), "{purpose:?}");
        }
        let key = Sealed { key_id: "c".to_owned(), ..sealed.clone() };
        assert!(matches!(keys.open(ID, &plain, &key), Err(Unreadable::Refused { .. })), "another key");
        let mut changed = sealed.ciphertext.to_vec();
        changed[3] ^= 1;
        let changed = Sealed { ciphertext: changed.into(), ..sealed.clone() };
        assert!(matches!(keys.open(ID, &plain, &changed), Err(Unreadable::Refused { .. })), "changed bytes");
        let short = Sealed { ciphertext: Bytes::from_static(b"x"), ..sealed.clone() };
        assert!(keys.open(ID, &plain, &short).is_err(), "too few bytes");
        let elsewhere = plain.replace("\"password\"", "\"word\"");
        let error = keys.open(ID, &elsewhere, &sealed).unwrap_err();
        assert!(matches!(error, Unreadable::Misfit { .. }), "{error}");
        let overwritten = plain.replacen("********", "guess", 1);
        assert!(keys.open(ID, &overwritten, &sealed).is_err(), "something else stands there");
        keys.open(ID, &plain, &sealed).unwrap();
    }

    #[test]
    fn the_parts_of_the_associated_data_can_not_be_confused() {
        let revision = |key: &str| associated(ID, Purpose::Revision(1), key);
        assert_ne!(revision("ab"), revision("a"));
        assert_ne!(revision("a"), associated(ID, Purpose::Request(Uuid::from_u128(1)), "a"));
    }

    #[test]
    fn keys_are_read_from_a_list_or_from_lines_and_are_never_shown() {
        let text = format!(" new:{} ,\n old : {}\n\n", encoded(1), encoded(2).trim_end_matches('='));
        let keys = Keys::parse(&text).unwrap();
        assert_eq!(format!("{keys:?}"), r#"["new", "old"]"#);
        assert_eq!(keys.first(), Some("new"));
        assert!(Keys::parse(" \n").unwrap().is_empty());
        let bare = Keys::parse(&encoded(1)).unwrap();
        assert_eq!(bare.first(), Some(fingerprint(&[1; KEY_BYTES]).as_str()));
        let generated = Keys::generate(&SystemRandom::new()).unwrap();
        assert_eq!(Keys::parse(&generated).unwrap().first(), generated.split(':').next());
    }

    #[test]
    fn a_bad_key_is_told_by_its_number_and_not_shown() {
        let error = |text: String| Keys::parse(&text).unwrap_err();
        let good = encoded(1);
        assert_eq!(error(format!("a:{good},b:s3cret!")), InvalidKeys::Base64 { number: 2 });
        assert_eq!(error("a:AAAA".to_owned()), InvalidKeys::Length { number: 1, bytes: 3 });
        assert_eq!(error(format!("a b:{good}")), InvalidKeys::Id { number: 1, id: "a b".to_owned() });
        assert_eq!(error(format!(":{good}")), InvalidKeys::Id { number: 1, id: String::new() });
        assert_eq!(error(format!("a:{good},a:{}", encoded(2))), InvalidKeys::Twice { id: "a".to_owned() });
    }

    proptest! {
        #[test]
        fn any_document_is_opened_as_it_was(password in ".*", key in ".{0,8}", value in ".*", space in "[ \n\t]{0,3}") {
            let text = |text: &str| serde_json::to_string(text).unwrap();
            let document = format!(
                r#"{{"topicFilters":[],{space}"clientConfiguration":{{"credentials":{space}{{"password":{}}},"other":{{{}:{space}{}}},"keys":[{{"k":{{"a":[1.0]}}}}]}}}}"#,
                text(&password), text(&key), text(&value),
            );
            let keys = keys(&["a"]);
            let Parted { plain, sealed } = parted(&keys, &document);
            prop_assert_eq!(keys.open(ID, &plain, &sealed), Ok(document));
        }
    }
}
