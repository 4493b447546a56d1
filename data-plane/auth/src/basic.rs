//! A CONNECT with client id, user name and password, judged in two steps: what is quick at once, hashing apart.

use std::sync::Arc;

use crate::{
    index::{Candidates, Entry, Index, Strategy},
    password::{self, Cost, Verified},
};

/// What a CONNECT says.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// The client id.
    pub client_id: &'a str,
    /// The user name.
    pub user_name: Option<&'a str>,
    /// The password.
    pub password: Option<&'a [u8]>,
}

/// What is known at once.
#[derive(Debug)]
pub enum Verdict {
    /// By this credential.
    Accepted(Arc<Entry>),
    /// By none: TBMQ's `SKIPPED`, the next provider may accept it.
    Refused,
    /// A password is to be hashed.
    Hash(Attempt),
}

/// A password that is to be hashed, and what it may prove.
pub struct Attempt {
    candidates: Candidates,
    password: Box<[u8]>,
    cost_of_nobody: Cost,
}

impl std::fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim")
            .field("client_id", &self.client_id)
            .field("user_name", &self.user_name)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attempt").field("candidates", &self.candidates.len()).finish_non_exhaustive()
    }
}

/// Judges a CONNECT as far as it goes without hashing; takes microseconds.
pub fn judge(
    index: &Index,
    verified: &Verified,
    strategy: Strategy,
    now_ms: u64,
    claim: Claim<'_>,
) -> Verdict {
    let candidates = index.basic(strategy, claim.client_id, claim.user_name);
    for entry in &candidates {
        let known = match (entry.password(), claim.password) {
            (None, _) => true,
            (Some(_), Some(password)) => {
                verified.knows(now_ms, &verified.fingerprint(entry.id(), entry.revision(), password))
            }
            (Some(_), None) => false,
        };
        if known {
            return Verdict::Accepted(entry.clone());
        }
    }
    match claim.password {
        // Without a password nobody hashes, whoever the client says to be.
        None => Verdict::Refused,
        Some(password) => Verdict::Hash(Attempt {
            candidates,
            password: password.into(),
            cost_of_nobody: index.cost_of_nobody(index.seed(claim.user_name.unwrap_or(claim.client_id))),
        }),
    }
}

impl Attempt {
    /// Hashes: tens of milliseconds of one core and tens of MiB, so on a thread of its own, a bounded number at a
    /// time. A client that no credential is for takes as long as one with a bad password.
    pub fn run(self, verified: &Verified, now_ms: u64) -> Option<Arc<Entry>> {
        let mut hashed = false;
        for entry in &self.candidates {
            let Some(hash) = entry.password() else { continue };
            hashed = true;
            if hash.verify(&self.password) {
                verified.remember(now_ms, verified.fingerprint(entry.id(), entry.revision(), &self.password));
                return Some(entry.clone());
            }
        }
        if !hashed {
            password::pretend(&self.password, self.cost_of_nobody);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use uuid::Uuid;

    use super::*;
    use crate::credentials::{ClientType, Credentials, Proof};

    fn verified() -> Verified {
        Verified::new([3; 32], NonZeroUsize::new(100).unwrap(), 60_000)
    }

    fn credentials(
        id: u128,
        client_id: Option<&str>,
        user_name: Option<&str>,
        hash: Option<&str>,
    ) -> Credentials {
        Credentials {
            id: Uuid::from_u128(id),
            revision: 1,
            name: format!("credential {id}"),
            client_type: ClientType::Device,
            proof: Proof::Basic {
                client_id: client_id.map(Into::into),
                user_name: user_name.map(Into::into),
                password_hash: hash.map(Into::into),
                rules: vec![],
            },
        }
    }

    /// As cheap as the limits of argon2 allow, so that tests take no time.
    fn cheap(password: &str) -> String {
        use argon2::{Argon2, Params, PasswordHasher as _};
        let argon2 = Argon2::from(Params::new(8, 1, 1, None).unwrap());
        argon2.hash_password_with_salt(password.as_bytes(), b"some salt").unwrap().to_string()
    }

    fn claim<'a>(client_id: &'a str, user_name: Option<&'a str>, password: Option<&'a str>) -> Claim<'a> {
        Claim { client_id, user_name, password: password.map(str::as_bytes) }
    }

    fn judged(index: &Index, verified: &Verified, claim: Claim<'_>) -> Option<u128> {
        let entry = match judge(index, verified, Strategy::Both, 0, claim) {
            Verdict::Accepted(entry) => Some(entry),
            Verdict::Refused => None,
            Verdict::Hash(attempt) => attempt.run(verified, 0),
        };
        entry.map(|entry| entry.id().as_u128())
    }

    #[test]
    fn the_first_credential_that_verifies_is_taken_and_the_mixed_one_is_tried_first() {
        let mut index = Index::default();
        index.put(credentials(1, Some("c"), Some("u"), Some(&cheap("mixed")))).unwrap();
        index.put(credentials(2, None, Some("u"), Some(&cheap("user")))).unwrap();
        index.put(credentials(3, Some("c"), None, Some(&cheap("client")))).unwrap();
        index.put(credentials(4, None, Some("open"), None)).unwrap();
        let verified = verified();
        for (claim, expected) in [
            (claim("c", Some("u"), Some("mixed")), Some(1)),
            (claim("c", Some("u"), Some("user")), Some(2)),
            (claim("c", Some("u"), Some("client")), Some(3)),
            (claim("c", None, Some("client")), Some(3)),
            (claim("x", Some("u"), Some("user")), Some(2)),
            (claim("x", Some("u"), Some("mixed")), None),
            (claim("c", Some("u"), None), None),
            (claim("c", Some("u"), Some("")), None),
            (claim("x", Some("x"), Some("user")), None),
            (claim("x", Some("open"), None), Some(4)),
            (claim("x", Some("open"), Some("whatever")), Some(4)),
        ] {
            assert_eq!(judged(&index, &verified, claim), expected, "{claim:?}");
        }
    }

    #[test]
    fn a_verified_password_is_not_hashed_again_until_the_credential_changes() {
        let mut index = Index::default();
        let first = credentials(1, None, Some("u"), Some(&cheap("secret")));
        index.put(first.clone()).unwrap();
        let verified = verified();
        let good = claim("c", Some("u"), Some("secret"));
        assert!(matches!(judge(&index, &verified, Strategy::Both, 0, good), Verdict::Hash(_)));
        assert_eq!(judged(&index, &verified, good), Some(1));
        assert!(matches!(judge(&index, &verified, Strategy::Both, 1, good), Verdict::Accepted(_)));
        let bad = claim("c", Some("u"), Some("Secret"));
        assert!(matches!(judge(&index, &verified, Strategy::Both, 1, bad), Verdict::Hash(_)));
        index.put(Credentials { revision: 2, ..first }).unwrap();
        assert!(matches!(judge(&index, &verified, Strategy::Both, 1, good), Verdict::Hash(_)));
    }

    #[test]
    fn a_client_that_nobody_knows_is_hashed_for_like_one_with_a_bad_password() {
        let mut index = Index::default();
        let hash = password::hash(b"secret", [1; 16]);
        index.put(credentials(1, None, Some("u"), Some(&hash))).unwrap();
        let Verdict::Hash(unknown) =
            judge(&index, &verified(), Strategy::Both, 0, claim("c", Some("nobody"), Some("x")))
        else {
            panic!("it is told at once that the user is unknown")
        };
        assert!(unknown.candidates.is_empty());
        assert_eq!(unknown.cost_of_nobody, Cost::default());
        // Both hash 19 MiB; a thousandth of that would do to tell a shortcut from noise. Each on a thread of its own:
        // one keeps what it hashes in.
        let allocated = |attempt: Attempt| {
            let run = || assert!(attempt.run(&verified(), 0).is_none());
            std::thread::scope(|scope| {
                scope.spawn(|| allocation_counter::measure(run).bytes_max).join().expect("it hashes")
            })
        };
        let Verdict::Hash(known) =
            judge(&index, &verified(), Strategy::Both, 0, claim("c", Some("u"), Some("x")))
        else {
            panic!("a password is hashed")
        };
        let (unknown, known) = (allocated(unknown), allocated(known));
        assert!(known > 19 << 20 && unknown.abs_diff(known) < 19 << 10, "{unknown} {known}");
        let without = judge(&index, &verified(), Strategy::Both, 0, claim("c", Some("u"), None));
        assert!(matches!(without, Verdict::Refused));
    }

    /// `cargo test -p tbmq-auth -- --ignored --nocapture time_of`
    #[test]
    #[ignore = "a measurement: a machine that does other things, too, makes it worthless"]
    #[allow(clippy::print_stdout, reason = "it is a measurement")]
    fn the_time_of_a_refusal_does_not_tell_whether_there_is_such_a_user() {
        let mut index = Index::default();
        index.put(credentials(1, None, Some("u"), Some(&password::hash(b"secret", [1; 16])))).unwrap();
        let verified = verified();
        let refuse = |user: &str| {
            let start = std::time::Instant::now();
            assert_eq!(judged(&index, &verified, claim("c", Some(user), Some("bad"))), None);
            start.elapsed()
        };
        // The quickest of each is what it takes when nothing is in the way. Which comes first matters by more than that.
        let mut quickest = [std::time::Duration::MAX; 2];
        for turn in 0..400 {
            let at = usize::from(turn % 4 == 1 || turn % 4 == 2);
            quickest[at] = quickest[at].min(refuse(["u", "v"][at]));
        }
        let [known, unknown] = quickest;
        println!("bad password {known:?}, unknown user {unknown:?}");
        assert!(known.abs_diff(unknown) < known / 20);
    }

    #[test]
    fn passwords_are_not_printed() {
        let claim = claim("c", Some("u"), Some("secret"));
        let verdict = judge(&Index::default(), &verified(), Strategy::Both, 0, claim);
        assert!(!format!("{claim:?} {verdict:?}").contains("secret"));
    }
}
