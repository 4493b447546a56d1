//! Who signs tokens, and the set of their keys: for tests within the crate and from outside.

use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

/// A key under an id.
pub(crate) struct Signer {
    id: &'static str,
    key: EncodingKey,
}

impl Signer {
    pub(crate) fn new(id: &'static str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self { id, key: EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap() }
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

/// A key set with the public half of each.
pub(crate) fn set(signers: &[&Signer]) -> Value {
    let keys = signers.iter().map(|signer| {
        let mut jwk = Jwk::from_encoding_key(&signer.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(signer.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    });
    json!({ "keys": keys.collect::<Vec<_>>() })
}
