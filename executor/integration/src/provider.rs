//! Configurations of authentication providers, whose secrets are sealed as those of integrations are: what the control
//! plane seals, and data planes open.

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use tbmq_proto::{
    ids::IntegrationId,
    wire::{AuthProvider, SealedConfiguration},
};
use uuid::Uuid;

use crate::{
    seal::{Keys, Purpose, Sealed, Unreadable},
    secret::ROOT,
};

/// Who a configuration is sealed for, by the provider's type: no integration has this id.
pub fn sealed_for(kind: &str) -> IntegrationId {
    let hash = digest(&SHA256, format!("authProviders/{kind}").as_bytes());
    let (first, _) = hash.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    IntegrationId(Uuid::from_u128(u128::from_be_bytes(*first)))
}

/// The configuration as a document whose secrets can be found.
pub fn wrap(configuration: &str) -> String {
    format!("{{\"{ROOT}\":{configuration}}}")
}

/// What [`wrap`] was given.
pub fn unwrap(document: &str) -> &str {
    let inner = document.strip_prefix("{\"").and_then(|rest| rest.strip_prefix(ROOT));
    inner
        .and_then(|rest| rest.strip_prefix("\":"))
        .and_then(|rest| rest.strip_suffix('}'))
        .unwrap_or(document)
}

/// The sealed part of a provider's record.
pub fn encode(sealed: &Sealed) -> SealedConfiguration {
    SealedConfiguration {
        key_id: sealed.key_id.clone(),
        revision: match sealed.purpose {
            Purpose::Revision(revision) => revision,
            Purpose::Request(_) => 0,
        },
        nonce: Bytes::copy_from_slice(&sealed.nonce),
        ciphertext: sealed.ciphertext.clone(),
    }
}

/// The configuration of a provider's record with its secrets in their places. One that is not sealed is as it stands.
///
/// # Errors
/// When its key is not among these, or does not open it.
pub fn open(keys: &Keys, provider: &AuthProvider) -> Result<String, Unreadable> {
    let Some(SealedConfiguration { key_id, revision, nonce, ciphertext }) = &provider.sealed else {
        return Ok(provider.configuration_json.clone());
    };
    let nonce = nonce
        .as_ref()
        .try_into()
        .map_err(|_| Unreadable::Malformed(format!("the nonce has {} bytes instead of 12", nonce.len())))?;
    let sealed = Sealed {
        key_id: key_id.clone(),
        purpose: Purpose::Revision(*revision),
        nonce,
        ciphertext: ciphertext.clone(),
    };
    let document = keys.open(sealed_for(&provider.r#type), &wrap(&provider.configuration_json), &sealed)?;
    Ok(unwrap(&document).to_owned())
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use serde_json::json;

    use super::*;
    use crate::secret;

    const CONFIGURATION: &str = r#"{"type":"HTTP","credentials":{"password":"planted"}}"#;

    fn keys(id: char) -> Keys {
        Keys::parse(&format!("{id}:{}A=", id.to_string().repeat(42))).unwrap()
    }

    fn record(keys: &Keys) -> AuthProvider {
        let schema = json!({
            "properties": { "password": { "writeOnly": true } },
            "additionalProperties": { "$ref": "#" },
        });
        let document = wrap(CONFIGURATION);
        let secrets = secret::find(Some(&schema), &document);
        let id = sealed_for("HTTP");
        let parted =
            keys.part(&SystemRandom::new(), id, Purpose::Revision(7), &document, &secrets).unwrap().unwrap();
        AuthProvider {
            r#type: "HTTP".to_owned(),
            enabled: true,
            configuration_json: unwrap(&parted.plain).to_owned(),
            sealed: Some(encode(&parted.sealed)),
        }
    }

    #[test]
    fn a_sealed_configuration_is_opened_byte_for_byte_with_its_key_alone() {
        let sealed = record(&keys('a'));
        assert!(!format!("{sealed:?}").contains("planted"));
        assert_eq!(open(&keys('a'), &sealed).unwrap(), CONFIGURATION);
        let error = open(&keys('b'), &sealed).unwrap_err().to_string();
        assert!(error.contains("key \"a\"") && error.contains("TBMQ_SECRETS_KEYS"), "{error}");
        let other = AuthProvider { r#type: "JWT".to_owned(), ..sealed.clone() };
        assert!(matches!(open(&keys('a'), &other), Err(Unreadable::Refused { .. })), "of another provider");
        let mut cut = sealed;
        cut.sealed.as_mut().unwrap().nonce.truncate(11);
        assert!(matches!(open(&keys('a'), &cut), Err(Unreadable::Malformed(_))));
    }

    #[test]
    fn a_configuration_that_is_not_sealed_is_as_it_stands() {
        let configuration_json = "no document".to_owned();
        let plain =
            AuthProvider { configuration_json: configuration_json.clone(), ..AuthProvider::default() };
        assert_eq!(open(&Keys::default(), &plain).unwrap(), configuration_json);
    }

    #[test]
    fn each_provider_has_an_id_of_its_own_that_never_changes() {
        assert_ne!(sealed_for("JWT"), sealed_for("HTTP"));
        // What is in databases was sealed for it.
        let id = sealed_for("JWT").to_string();
        assert_eq!(id, "b5862691-8571-8e09-02d2-884206fa9622");
    }
}
