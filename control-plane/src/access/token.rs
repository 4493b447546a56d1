//! API tokens: made, and known again by the hash of their secret.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use rand::TryRngCore as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::role::Role;
use crate::store::{self, Store, TokenRow};

/// What every secret of a token begins with, so that people and scanners know one when they see it.
pub(crate) const PREFIX: &str = "tbmq_";

/// How long a token that was found in the store is taken for valid: a revocation elsewhere counts here after this.
pub(crate) const CACHE_FOR: Duration = Duration::from_secs(5);

/// Tokens that are remembered at most.
const CACHED_MAX: usize = 10_000;

/// SHA-256 of a secret. Secrets are compared by it alone, so that time tells nothing of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Hash([u8; 32]);

impl Hash {
    pub(crate) fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    pub(crate) fn hex(self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            use std::fmt::Write as _;
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
            text
        })
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A text of 256 random bits.
pub(crate) fn random() -> String {
    let mut bytes = [0_u8; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the system has random numbers");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A new secret of a token.
pub(crate) fn secret() -> String {
    format!("{PREFIX}{}", random())
}

/// A token that is valid now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) id: Uuid,
    pub(crate) display_name: String,
    pub(crate) role: Role,
}

/// The tokens of the store, remembered for [`CACHE_FOR`].
#[derive(Debug)]
pub(crate) struct Tokens {
    store: Store,
    cache: Mutex<Cache>,
    /// Uses that are not in the store yet: token and minute, epoch ms.
    used: Mutex<HashMap<Uuid, i64>>,
}

#[derive(Debug, Default)]
struct Cache {
    /// Counts revocations: what was read before one is not remembered after it.
    revocations: u64,
    found: HashMap<Hash, (TokenRow, Instant)>,
}

impl Tokens {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, cache: Mutex::default(), used: Mutex::default() }
    }

    /// The token with this secret, if it is valid. Waits for the store when it was not seen within 5 s.
    pub(crate) async fn find(&self, hash: Hash, now_ms: i64) -> Result<Option<Known>, store::Error> {
        let held = {
            let cache = self.cache.lock();
            let fresh = |(_, read): &&(TokenRow, Instant)| read.elapsed() < CACHE_FOR;
            cache.found.get(&hash).filter(fresh).map(|(row, _)| row.clone()).ok_or(cache.revocations)
        };
        let row = match held {
            Ok(row) => row,
            Err(revocations) => {
                let asked = Instant::now();
                let Some(row) = self.store.token_of(&hash.hex()).await? else {
                    self.cache.lock().found.remove(&hash);
                    return Ok(None);
                };
                self.remember(hash, &row, asked, revocations);
                row
            }
        };
        if row.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
            return Ok(None);
        }
        let role =
            row.role.parse().map_err(|_| store::Error::Corrupt(format!("token role {:?}", row.role)))?;
        self.note_use(&row, now_ms);
        Ok(Some(Known { id: row.id, display_name: row.display_name, role }))
    }

    fn remember(&self, hash: Hash, row: &TokenRow, asked: Instant, revocations: u64) {
        let mut cache = self.cache.lock();
        if cache.revocations != revocations {
            return;
        }
        if cache.found.len() >= CACHED_MAX {
            cache.found.retain(|_, (_, read)| read.elapsed() < CACHE_FOR);
        }
        if cache.found.len() < CACHED_MAX {
            cache.found.insert(hash, (row.clone(), asked));
        }
    }

    /// Ends the use of a token here at once; `false`: there is none of this id.
    pub(crate) async fn revoke(&self, id: Uuid) -> Result<bool, store::Error> {
        let found = self.store.delete_token(id).await?;
        let mut cache = self.cache.lock();
        cache.revocations += 1;
        cache.found.retain(|_, (row, _)| row.id != id);
        Ok(found)
    }

    fn note_use(&self, row: &TokenRow, now_ms: i64) {
        let minute_ms = now_ms - now_ms.rem_euclid(60_000);
        if row.last_used_ms.is_some_and(|used_ms| used_ms >= minute_ms) {
            return;
        }
        let mut used = self.used.lock();
        if used.len() < CACHED_MAX || used.contains_key(&row.id) {
            used.insert(row.id, minute_ms);
        }
    }

    /// Writes down which tokens were used; what can't be written now is written later.
    pub(crate) async fn flush(&self) {
        let mut used = std::mem::take(&mut *self.used.lock());
        while let Some((&id, &minute_ms)) = used.iter().next() {
            if let Err(error) = self.store.touch_token(id, minute_ms).await {
                tracing::debug!(%error, "the use of a token was not noted");
                let mut newer = self.used.lock();
                for (id, minute_ms) in used {
                    newer.entry(id).or_insert(minute_ms);
                }
                return;
            }
            used.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Options;

    async fn tokens(folder: &std::path::Path) -> Tokens {
        Tokens::new(Store::open(&Options::sqlite(&folder.join("a.db"))).await.unwrap())
    }

    async fn given(tokens: &Tokens, secret: &str, expires_ms: Option<i64>) -> Uuid {
        let row = TokenRow {
            id: Uuid::now_v7(),
            display_name: "t".to_owned(),
            role: "EDITOR".to_owned(),
            hash: Hash::of(secret).hex(),
            created_ms: 1,
            expires_ms,
            last_used_ms: None,
        };
        tokens.store.create_token(&row).await.unwrap();
        row.id
    }

    #[tokio::test]
    async fn a_token_is_known_until_it_expires_or_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path()).await;
        let secret = secret();
        assert!(secret.starts_with("tbmq_") && secret.len() == 48, "{secret}");
        let id = given(&tokens, &secret, Some(100)).await;
        let hash = Hash::of(&secret);
        let known = tokens.find(hash, 99).await.unwrap().unwrap();
        assert_eq!((known.id, known.role), (id, Role::Editor));
        assert_eq!(tokens.find(hash, 100).await.unwrap(), None);
        assert_eq!(tokens.find(Hash::of("tbmq_other"), 1).await.unwrap(), None);
        assert!(tokens.revoke(id).await.unwrap());
        assert_eq!(tokens.find(hash, 1).await.unwrap(), None);
        assert!(!tokens.revoke(id).await.unwrap());
    }

    #[tokio::test]
    async fn what_was_read_before_a_revocation_is_not_remembered_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path()).await;
        let id = given(&tokens, "tbmq_x", None).await;
        let row = tokens.store.token_of(&Hash::of("tbmq_x").hex()).await.unwrap().unwrap();
        let before = tokens.cache.lock().revocations;
        tokens.revoke(id).await.unwrap();
        tokens.remember(Hash::of("tbmq_x"), &row, Instant::now(), before);
        assert_eq!(tokens.find(Hash::of("tbmq_x"), 1).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_use_of_a_token_is_noted_to_the_minute() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path()).await;
        given(&tokens, "tbmq_x", None).await;
        tokens.find(Hash::of("tbmq_x"), 125_000).await.unwrap().unwrap();
        tokens.flush().await;
        let row = tokens.store.token_of(&Hash::of("tbmq_x").hex()).await.unwrap().unwrap();
        assert_eq!(row.last_used_ms, Some(120_000));
    }
}
