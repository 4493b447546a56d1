//! Hashes of passwords: argon2id in PHC form, and TBMQ's bcrypt; and which passwords were verified lately.
//!
//! A hash says how much it costs to verify a password with it. What costs more than [`Cost::check`] allows is refused
//! when a credential comes in, not when a client connects. An index holds them packed: argon2id's take 56 bytes
//! instead of 97.

use std::{fmt, num::NonZeroUsize};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::phc::PasswordHash,
};
use quick_cache::sync::Cache;
use ring::hmac;

mod packed;

pub(crate) use packed::{Packed, pack};

/// Memory of an argon2id hash at most, KiB.
pub const MEMORY_KIB_MAX: u32 = 64 << 10;

/// Passes over the memory at most.
pub const PASSES_MAX: u32 = 10;

/// Memory times passes at most, KiB: about a quarter of a second.
pub const WORK_KIB_MAX: u32 = 256 << 10;

/// Lanes at most.
pub const LANES_MAX: u32 = 8;

/// Binary logarithm of bcrypt's rounds at most: about a quarter of a second. TBMQ's are 10.
pub const LOG_ROUNDS_MAX: u32 = 12;

/// Bytes of a hash's text.
pub const HASH_BYTES_MAX: usize = 256;

/// What it costs to verify a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cost {
    /// argon2id, version 1.3.
    Argon2id {
        /// Memory, KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// bcrypt.
    Bcrypt {
        /// Binary logarithm of its rounds.
        log_rounds: u32,
    },
}

/// Why a text is no hash that may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Neither of the two forms.
    #[error("a password's hash is argon2id in PHC form ($argon2id$v=19$…) or bcrypt ($2a$…, $2b$…, $2y$…)")]
    Unknown,
    /// Cut off, or with parts that are missing or can't be decoded.
    #[error("the password's hash is damaged")]
    Damaged,
    /// More than the constants of this module allow.
    #[error("the password's hash asks for too much work: {0:?}")]
    TooCostly(Cost),
}

impl Default for Cost {
    /// argon2id with 19 MiB, 2 passes, 1 lane, as OWASP recommends: about 20 ms.
    fn default() -> Self {
        Self::Argon2id {
            memory_kib: Params::DEFAULT_M_COST,
            passes: Params::DEFAULT_T_COST,
            lanes: Params::DEFAULT_P_COST,
        }
    }
}

impl Cost {
    /// # Errors
    /// [`Invalid::TooCostly`].
    pub fn check(self) -> Result<Self, Invalid> {
        let allowed = match self {
            Self::Argon2id { memory_kib, passes, lanes } => {
                memory_kib <= MEMORY_KIB_MAX
                    && passes <= PASSES_MAX
                    && lanes <= LANES_MAX
                    && memory_kib.saturating_mul(passes) <= WORK_KIB_MAX
            }
            Self::Bcrypt { log_rounds } => log_rounds <= LOG_ROUNDS_MAX,
        };
        if allowed { Ok(self) } else { Err(Invalid::TooCostly(self)) }
    }
}

/// What a hash costs; cheap.
///
/// # Errors
/// See [`Invalid`].
pub fn check(hash: &str) -> Result<Cost, Invalid> {
    parse(hash).map(|(cost, _)| cost)
}

/// Its cost, and the parts of argon2id.
fn parse(hash: &str) -> Result<(Cost, Option<(PasswordHash, Params)>), Invalid> {
    if hash.len() > HASH_BYTES_MAX {
        return Err(Invalid::Damaged);
    }
    if hash.starts_with("$argon2id$") {
        let phc = PasswordHash::new(hash).map_err(|_| Invalid::Damaged)?;
        if phc.version != Some(Version::V0x13.into()) || phc.salt.is_none() || phc.hash.is_none() {
            return Err(Invalid::Damaged);
        }
        let params = Params::try_from(&phc).map_err(|_| Invalid::Damaged)?;
        let cost =
            Cost::Argon2id { memory_kib: params.m_cost(), passes: params.t_cost(), lanes: params.p_cost() };
        Ok((cost.check()?, Some((phc, params))))
    } else if ["$2a$", "$2b$", "$2y$"].iter().any(|version| hash.starts_with(version)) {
        let parts: bcrypt::HashParts = hash.parse().map_err(|_| Invalid::Damaged)?;
        let log_rounds = parts.get_cost();
        if log_rounds < 4 {
            return Err(Invalid::Damaged);
        }
        Ok((Cost::Bcrypt { log_rounds }.check()?, None))
    } else {
        Err(Invalid::Unknown)
    }
}

/// Hashes a password with argon2id and [`Cost::default`]; the salt is to be random. Takes about 20 ms.
pub fn hash(password: &[u8], salt: [u8; 16]) -> String {
    argon2(Cost::default())
        .hash_password_with_salt(password, &salt)
        .expect("16 bytes of salt, the default parameters and passwords below 4 GiB are valid")
        .to_string()
}

/// Whether the password is the one that was hashed; in constant time with respect to it. Takes as long as [`check`]
/// says; `false` at once for a hash that it refuses.
pub fn verify(password: &[u8], hash: &str) -> bool {
    pack(hash).is_ok_and(|packed| Packed::of(&packed).is_some_and(|hash| hash.verify(password)))
}

fn verify_text(password: &[u8], hash: &str) -> bool {
    match check(hash) {
        Ok(cost @ Cost::Argon2id { .. }) => {
            PasswordHash::new(hash).is_ok_and(|phc| argon2(cost).verify_password(password, &phc).is_ok())
        }
        // TBMQ's hashes are of the first 72 bytes, too.
        Ok(Cost::Bcrypt { .. }) => bcrypt::verify(password, hash).unwrap_or(false),
        Err(_) => false,
    }
}

/// Takes as long as verifying a hash of this cost, for a client that no credential is for: the time of the answer is
/// not to tell whether there is one.
pub(crate) fn pretend(password: &[u8], cost: Cost) {
    let hash = packed::of_nobody(cost);
    std::hint::black_box(Packed::of(&hash).is_some_and(|hash| hash.verify(password)));
}

fn argon2(cost: Cost) -> Argon2<'static> {
    let params = match cost {
        Cost::Argon2id { memory_kib, passes, lanes } => Params::new(memory_kib, passes, lanes, None),
        Cost::Bcrypt { .. } => Ok(Params::DEFAULT),
    };
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.unwrap_or(Params::DEFAULT))
}

/// Passwords that were verified lately, so that a client that comes back costs no hash (TBMQ:
/// `basicCredentialsPassword`, 1 minute).
///
/// It holds keyed hashes of a credential's id and revision with the password: neither passwords nor what could be
/// tried without the key. A credential that changes is forgotten with its revision. Refusals are not kept: a flood of
/// bad passwords would drive out the good ones.
pub struct Verified {
    key: hmac::Key,
    until_ms: Cache<Fingerprint, u64>,
    ttl_ms: u64,
}

/// One entry of [`Verified`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Verified {
    /// At most `limit` passwords, each for `ttl_ms`. The key is random and of this process.
    pub fn new(key: [u8; 32], limit: NonZeroUsize, ttl_ms: u64) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), until_ms: Cache::new(limit.get()), ttl_ms }
    }

    /// Of one credential and one password.
    pub fn fingerprint(&self, id: uuid::Uuid, revision: u64, password: &[u8]) -> Fingerprint {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(id.as_bytes());
        context.update(&revision.to_be_bytes());
        context.update(password);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.sign().as_ref());
        Fingerprint(bytes)
    }

    /// Whether it was verified within the time.
    pub fn knows(&self, now_ms: u64, fingerprint: &Fingerprint) -> bool {
        match self.until_ms.get(fingerprint) {
            Some(until_ms) if now_ms < until_ms => true,
            Some(_) => {
                self.until_ms.remove(fingerprint);
                false
            }
            None => false,
        }
    }

    /// It was verified just now.
    pub fn remember(&self, now_ms: u64, fingerprint: Fingerprint) {
        self.until_ms.insert(fingerprint, now_ms.saturating_add(self.ttl_ms));
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").field("entries", &self.until_ms.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(***)")
    }
}

#[cfg(test)]
mod tests {
    use argon2::{AssociatedData, KeyId, ParamsBuilder};
    use uuid::Uuid;

    use super::*;

    /// Of `password`, by the reference implementation (phc-winner-argon2, test.c).
    const ARGON2ID: &str =
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";

    /// Of `abc`, from the tests of jBCrypt, which TBMQ's library is made from.
    const BCRYPT: &str = "$2a$10$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi";

    #[test]
    fn hashes_of_other_implementations_verify() {
        assert!(verify(b"password", ARGON2ID));
        assert!(!verify(b"Password", ARGON2ID));
        assert!(verify(b"abc", BCRYPT));
        assert!(!verify(b"abd", BCRYPT));
        assert!(!verify(b"", BCRYPT));
    }

    #[test]
    fn a_packed_hash_verifies_what_its_text_does_and_costs_the_same() {
        for (hash, password, len) in [(ARGON2ID, "password", 48), (BCRYPT, "abc", 60)] {
            let packed = pack(hash).unwrap();
            let read = Packed::of(&packed).unwrap();
            assert_eq!((packed.len(), read.cost()), (len, check(hash).ok()), "{hash}");
            assert!(read.verify(password.as_bytes()) && !read.verify(b"other"), "{hash}");
        }
        assert!(Packed::of(&[]).is_none());
    }

    #[test]
    fn what_another_hash_has_left_in_memory_does_not_matter() {
        let hash = |password: &[u8], memory_kib| {
            let argon2 = Argon2::from(Params::new(memory_kib, 2, 1, None).unwrap());
            argon2.hash_password_with_salt(password, b"some salt").unwrap().to_string()
        };
        let hashes = [(b"one", hash(b"one", 64)), (b"two", hash(b"two", 8)), (b"six", hash(b"six", 256))];
        for _ in 0..2 {
            for (password, hash) in &hashes {
                assert!(!verify(b"other", hash) && verify(*password, hash) && !verify(b"", hash));
            }
        }
    }

    #[test]
    fn a_hash_of_any_shape_verifies() {
        let params = |output, keyid: &[u8], data: &[u8]| {
            let mut params = ParamsBuilder::new();
            params.m_cost(64).t_cost(3).p_cost(2).output_len(output);
            params.keyid(KeyId::new(keyid).unwrap()).data(AssociatedData::new(data).unwrap());
            params.build().unwrap()
        };
        for (params, salt, is_packed) in [
            (params(10, b"", b""), "8 bytes.", true),
            (params(64, b"", b""), "the longest salt that there is has as much as 48", true),
            (params(32, b"key", b""), "some salt", false),
            (params(32, b"", b"data"), "some salt", false),
        ] {
            let argon2 = Argon2::from(params);
            let hash = argon2.hash_password_with_salt(b"password", salt.as_bytes()).unwrap().to_string();
            assert!(verify(b"password", &hash) && !verify(b"Password", &hash), "{hash}");
            assert_eq!(pack(&hash).unwrap() != hash.as_bytes(), is_packed, "{hash}");
        }
    }

    #[test]
    fn a_password_verifies_with_its_own_hash_alone() {
        let hash = hash("pässword".as_bytes(), [7; 16]);
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_eq!(check(&hash), Ok(Cost::default()));
        assert!(verify("pässword".as_bytes(), &hash));
        assert!(!verify(b"password", &hash));
        assert!(!verify(b"", &hash));
    }

    #[test]
    fn hashes_that_would_cost_too_much_are_refused() {
        for (hash, cost) in [
            (
                "$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
                Cost::Argon2id { memory_kib: 4_194_304, passes: 2, lanes: 1 },
            ),
            (
                "$argon2id$v=19$m=64,t=4294967295,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
                Cost::Argon2id { memory_kib: 64, passes: u32::MAX, lanes: 1 },
            ),
            (
                "$argon2id$v=19$m=65536,t=5,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
                Cost::Argon2id { memory_kib: 65_536, passes: 5, lanes: 1 },
            ),
            ("$2a$31$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi", Cost::Bcrypt { log_rounds: 31 }),
        ] {
            assert_eq!(check(hash), Err(Invalid::TooCostly(cost)));
            assert!(!verify(b"password", hash));
        }
    }

    #[test]
    fn what_nobody_has_is_hashed_as_what_somebody_has() {
        for cost in [
            Cost::default(),
            Cost::Argon2id { memory_kib: 64, passes: 3, lanes: 2 },
            Cost::Bcrypt { log_rounds: 4 },
            Cost::Bcrypt { log_rounds: LOG_ROUNDS_MAX },
        ] {
            let hash = packed::of_nobody(cost);
            assert_eq!(Packed::of(&hash).and_then(Packed::cost), Some(cost));
        }
        let hash = packed::of_nobody(Cost::default());
        assert!(!Packed::of(&hash).unwrap().verify(b""));
        let ours = super::hash(b"password", [7; 16]);
        assert_eq!(hash.len(), pack(&ours).unwrap().len(), "salt and output are as long as others'");
    }

    #[test]
    fn what_is_no_hash_is_refused_and_never_verifies() {
        for (hash, error) in [
            ("", Invalid::Unknown),
            ("password", Invalid::Unknown),
            (
                "$argon2d$v=19$m=64,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
                Invalid::Unknown,
            ),
            ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ", Invalid::Damaged),
            (
                "$argon2id$v=16$m=64,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
                Invalid::Damaged,
            ),
            (
                "$argon2id$v=19$m=0,t=0,p=0$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
                Invalid::Damaged,
            ),
            ("$2a$10$short", Invalid::Damaged),
            ("$2a$01$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi", Invalid::Damaged),
            ("$2a$10$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5Mtaö", Invalid::Damaged),
        ] {
            assert_eq!(check(hash), Err(error), "{hash}");
            assert!(!verify(b"", hash) && !verify(hash.as_bytes(), hash));
        }
        assert_eq!(check(&format!("$argon2id${}", "a".repeat(10_000))), Err(Invalid::Damaged));
    }

    #[test]
    fn a_verified_password_is_known_for_its_time_and_its_revision() {
        let verified = Verified::new([1; 32], NonZeroUsize::new(100).unwrap(), 60_000);
        let id = Uuid::from_u128(1);
        let good = verified.fingerprint(id, 7, b"secret");
        assert!(!verified.knows(0, &good));
        verified.remember(1_000, good);
        assert!(verified.knows(60_999, &good));
        assert!(!verified.knows(60_999, &verified.fingerprint(id, 8, b"secret")));
        assert!(!verified.knows(60_999, &verified.fingerprint(id, 7, b"secret2")));
        assert!(!verified.knows(60_999, &verified.fingerprint(Uuid::from_u128(2), 7, b"secret")));
        assert!(!verified.knows(61_000, &good));
        assert!(!verified.knows(1_000, &good), "forgotten when it had expired");
    }

    #[test]
    fn verified_passwords_have_a_bound() {
        let verified = Verified::new([1; 32], NonZeroUsize::new(100).unwrap(), 60_000);
        for n in 0..10_000_u64 {
            verified.remember(0, verified.fingerprint(Uuid::from_u128(1), n, b"secret"));
        }
        assert!(verified.until_ms.len() <= 100, "{verified:?}");
    }
}
