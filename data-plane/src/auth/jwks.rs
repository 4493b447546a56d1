//! JSON Web Tokens, and the key set that they are signed by, which is read again from time to time.
//!
//! No CONNECT waits for it: a token is judged by the keys that are there. One that names another key has the set read
//! again, and the client that comes again with it finds its key.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use prometheus_client::metrics::counter::Counter;
use tbmq_auth::{
    acl::Identity,
    external::Accepted,
    jwt::Key,
    token::{Judgement, Kept, Keys, Provider},
};
use tokio::sync::Notify;

use super::caller::Caller;

/// Bytes of a key set.
const SET_BYTES_MAX: usize = 1 << 20;

/// How long a key set may take to be fetched.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two fetches of a set at least, whatever asks for them.
const FETCH_PAUSE: Duration = Duration::from_secs(5);

/// The JWT provider.
#[derive(Debug)]
pub(crate) struct Jwt {
    provider: Provider,
    set: Option<Set>,
}

/// A key set somewhere else.
#[derive(Debug)]
struct Set {
    url: String,
    caller: Caller,
    keys: ArcSwap<Vec<Key>>,
    refresh: Duration,
    pause: Duration,
    /// A token named a key that is not known.
    wanted: Notify,
}

impl Jwt {
    /// Reads TBMQ's configuration. Keys that `before` has read from the same place go on to count until they are read
    /// again.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn open(json: &str, before: Option<&Self>) -> Result<Self, String> {
        let provider = Provider::parse(json).map_err(|error| error.to_string())?;
        let set = match provider.keys() {
            Keys::Fixed(_) => None,
            Keys::Set { endpoint, refresh } => {
                let url = endpoint.url.to_string();
                let before = before.and_then(|before| before.set.as_ref()).filter(|set| set.url == url);
                Some(Set {
                    url,
                    caller: Caller::open(endpoint, FETCH_TIMEOUT, SET_BYTES_MAX)?,
                    keys: before.map_or_else(ArcSwap::default, |set| ArcSwap::new(set.keys.load_full())),
                    refresh: *refresh,
                    pause: FETCH_PAUSE,
                    wanted: Notify::new(),
                })
            }
        };
        Ok(Self { provider, set })
    }

    fn with_keys<T>(&self, work: impl FnOnce(&[Key]) -> T) -> T {
        match (&self.set, self.provider.keys()) {
            (Some(set), _) => work(&set.keys.load_full()),
            (None, Keys::Fixed(keys)) => work(keys),
            (None, Keys::Set { .. }) => work(&[]),
        }
    }

    /// Judges a password; see [`Provider::judge`]. Does not wait for keys.
    pub(crate) fn judge(&self, password: Option<&[u8]>, identity: &Identity<'_>, now_ms: i64) -> Judgement {
        let judgement = self.with_keys(|keys| self.provider.judge(password, keys, identity, now_ms));
        if judgement.key_is_unknown
            && let Some(set) = &self.set
        {
            set.wanted.notify_one();
        }
        judgement
    }

    /// Judges a client again; see [`Provider::judge_again`]. `None`: the key set was never read.
    pub(crate) fn judge_again(
        &self,
        kept: &Kept,
        identity: &Identity<'_>,
    ) -> Option<Result<Accepted, String>> {
        self.with_keys(|keys| (!keys.is_empty()).then(|| self.provider.judge_again(kept, keys, identity)))
    }

    /// Keeps the key set up to date, and tells when it was read for the first time; never ends.
    pub(crate) async fn follow(&self, failures: &Counter, known: impl Fn()) {
        let Some(set) = &self.set else { return std::future::pending().await };
        let mut told = None;
        loop {
            match set.fetch().await {
                Ok(keys) => {
                    tracing::debug!(url = set.url, keys = keys.len(), "keys of JWTs were read");
                    let before = set.keys.swap(Arc::new(keys));
                    if before.is_empty() {
                        known();
                    }
                    told = None;
                }
                Err(error) => {
                    failures.inc();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(
                            url = set.url,
                            error,
                            "the keys of JWTs can't be read; the old ones stay"
                        );
                        told = Some(error);
                    }
                }
            }
            tokio::time::sleep(set.pause).await;
            let again = if set.keys.load().is_empty() { Duration::ZERO } else { set.refresh };
            tokio::select! {
                () = tokio::time::sleep(again.saturating_sub(set.pause)) => {}
                () = set.wanted.notified() => {}
            }
        }
    }
}

impl Set {
    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let answer = self.caller.get().await.map_err(|error| error.to_string())?;
        match answer.status {
            200..=299 => Key::set(&answer.body).map_err(|error| error.to_string()),
            status => Err(format!("the server answered {status}")),
        }
    }
}

#[cfg(test)]
mod signer;
#[cfg(test)]
mod tests;
