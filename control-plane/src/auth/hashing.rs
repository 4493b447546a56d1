//! Passwords are hashed on threads of their own, as many at once as there are cores: each hash takes about 20 ms and
//! 19 MiB.

use ring::rand::{SecureRandom as _, SystemRandom};
use subtle::ConstantTimeEq as _;
use tbmq_auth::{
    password,
    scram::{self, Algorithm, InvalidKeys, StoredKeys},
};
use tokio::sync::Semaphore;

/// Hashes passwords. Those who wait are calls, whose number is limited.
#[derive(Debug)]
pub(crate) struct Hashing {
    threads: Semaphore,
    random: SystemRandom,
}

/// The system gave no random numbers for a salt, or is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password can't be hashed: the system gives no random numbers")]
pub(crate) struct Unable;

impl Hashing {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self { threads: Semaphore::new(cores), random: SystemRandom::new() }
    }

    /// The argon2id hash of a password.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Unable> {
        let salt = self.salt()?;
        self.run(move || password::hash(password.as_bytes(), salt)).await
    }

    /// Whether the password is the one that was hashed.
    pub(crate) async fn verify(&self, password: String, hash: String) -> Result<bool, Unable> {
        self.run(move || password::verify(password.as_bytes(), &hash)).await
    }

    /// The keys of a password.
    pub(crate) async fn derive(
        &self,
        algorithm: Algorithm,
        password: String,
    ) -> Result<Result<StoredKeys, InvalidKeys>, Unable> {
        let salt = self.salt()?;
        self.run(move || StoredKeys::derive(algorithm, &password, &salt, scram::ITERATIONS)).await
    }

    /// Whether the keys are of this password.
    pub(crate) async fn fits(&self, password: String, keys: StoredKeys) -> Result<bool, Unable> {
        self.run(move || {
            let derived = StoredKeys::derive(keys.algorithm, &password, &keys.salt, keys.iterations);
            derived.is_ok_and(|derived| derived.stored.ct_eq(&keys.stored).into())
        })
        .await
    }

    fn salt(&self) -> Result<[u8; 16], Unable> {
        let mut salt = [0; 16];
        self.random.fill(&mut salt).map(|()| salt).map_err(|_| Unable)
    }

    /// Does what takes milliseconds where it holds up nobody.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unable> {
        let _thread = self.threads.acquire().await.map_err(|_| Unable)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Unable)
    }
}
