//! What the topics say about who may connect, in memory.

use std::collections::HashMap;

use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use tbmq_auth::{
    blocked::{self, Blocked, Who},
    index::{Applied, Index},
};
use tbmq_bus::Record;
use tbmq_integration::seal::Keys;
use tbmq_proto::{queue::BlockedClientProto, topic::REVISION_HEADER, wire::CredentialsRecord};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{record, settings::Settings};

/// New blocks that wait to be applied to connected clients; of more, all blocks are.
const NEW_MAX: usize = 1000;

/// The key as text, the revision of the header, and the value unless it means deleted.
struct Parts<'a> {
    key: &'a str,
    revision: Option<u64>,
    value: Option<&'a [u8]>,
}

fn parts(record: &Record) -> Result<Parts<'_>, String> {
    let key = record.key.as_deref().ok_or("no key")?;
    let key = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8")?;
    let revision = match record.headers.iter().find(|header| &*header.name == REVISION_HEADER) {
        Some(_) => {
            let number = record.header(REVISION_HEADER).and_then(|text| text.parse().ok());
            Some(number.ok_or("the header revision is not a number")?)
        }
        None => None,
    };
    Ok(Parts { key, revision, value: record.value.as_deref().filter(|value| !value.is_empty()) })
}

/// Takes a record of a credential. Says of which credential clients are to be judged again.
///
/// # Errors
/// Why it can't be used. What the credential allowed before is gone then, and its clients are to be judged again, too.
pub(super) fn apply_credentials(
    index: &RwLock<Index>,
    record: &Record,
) -> (Option<Uuid>, Result<(), String>) {
    let parts = match parts(record) {
        Ok(parts) => parts,
        Err(reason) => return (None, Err(reason)),
    };
    let Ok(id) = parts.key.parse::<Uuid>() else {
        return (None, Err(format!("the key {:?} is no id", parts.key)));
    };
    // Without a revision: by its place in the topic.
    let remove = || index.write().remove(id, parts.revision.unwrap_or(u64::MAX)) == Applied::Removed;
    let Some(value) = parts.value else {
        return (remove().then_some(id), Ok(()));
    };
    let decoded = CredentialsRecord::decode(value).map_err(|error| error.to_string()).and_then(|record| {
        let credentials = record::credentials(record).map_err(|error| error.to_string())?;
        if credentials.id == id { Ok(credentials) } else { Err(format!("it is of {}", credentials.id)) }
    });
    match decoded {
        Err(reason) => (remove().then_some(id), Err(reason)),
        Ok(credentials) => {
            let mut index = index.write();
            let was_known = index.get(id).is_some();
            match index.put(credentials) {
                Ok(Applied::Replaced) => (Some(id), Ok(())),
                Ok(Applied::Inserted | Applied::Removed | Applied::Ignored) => (None, Ok(())),
                Err(invalid) => (was_known.then_some(id), Err(invalid.to_string())),
            }
        }
    }
}

/// Blocked clients.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    known: RwLock<Blocked>,
    /// By the key of its record: a record of a block that is over has no value.
    by_key: Mutex<HashMap<Box<str>, (Who, i64)>>,
    /// Of which connected clients were not looked through.
    new: Mutex<New>,
    wake: Notify,
}

#[derive(Debug, Default)]
enum New {
    #[default]
    None,
    Some(Blocked),
    TooMany,
}

impl Blocks {
    pub(super) fn len(&self) -> usize {
        self.known.read().len()
    }

    /// Takes a record.
    ///
    /// # Errors
    /// Why it can't be used. What stood under its key before holds on.
    pub(super) fn apply(&self, record: &Record, now_ms: i64) -> Result<(), String> {
        let Parts { key, value, .. } = parts(record)?;
        let mut by_key = self.by_key.lock();
        let put = match value {
            None => None,
            Some(value) => {
                let decoded = BlockedClientProto::decode(value).map_err(|error| error.to_string())?;
                let (who, until_ms) = record::blocked(decoded).map_err(|error| error.to_string())?;
                let mut known = self.known.write();
                known.put(who.clone(), until_ms).map_err(|error| error.to_string())?;
                Some((who, until_ms))
            }
        };
        let old = match &put {
            Some(put) => by_key.insert(key.into(), put.clone()),
            None => by_key.remove(key),
        };
        if let Some((old, _)) = old
            && put.as_ref().is_none_or(|(who, _)| *who != old)
        {
            // Another record may say the same.
            match by_key.values().find(|(who, _)| *who == old) {
                Some((who, until_ms)) => {
                    self.known.write().put(who.clone(), *until_ms).map_err(|error| error.to_string())?;
                }
                None => drop(self.known.write().remove(&old)),
            }
        }
        drop(by_key);
        if let Some((who, until_ms)) = put
            && (until_ms <= 0 || now_ms < until_ms)
        {
            self.note(who, until_ms);
        }
        Ok(())
    }

    fn note(&self, who: Who, until_ms: i64) {
        let mut new = self.new.lock();
        let blocked = match &mut *new {
            New::TooMany => return,
            New::Some(blocked) => blocked,
            none @ New::None => {
                *none = New::Some(Blocked::default());
                let New::Some(blocked) = none else { return };
                blocked
            }
        };
        if blocked.len() >= NEW_MAX || blocked.put(who, until_ms).is_err() {
            *new = New::TooMany;
        }
        drop(new);
        self.wake.notify_one();
    }

    /// What blocks a client.
    pub(super) fn find(&self, now_ms: i64, client: blocked::Client<'_>) -> Option<Who> {
        let known = self.known.read();
        if known.is_empty() { None } else { known.find(now_ms, client) }
    }

    /// Forgets what is new: nobody is connected yet.
    pub(super) fn begin(&self) {
        *self.new.lock() = New::None;
    }

    /// Waits until something is blocked that was not, and says which blocks are new; `None`: too many to say.
    pub(super) async fn noted(&self) -> Option<Blocked> {
        loop {
            match std::mem::take(&mut *self.new.lock()) {
                New::None => {}
                New::Some(blocked) => return Some(blocked),
                New::TooMany => return None,
            }
            self.wake.notified().await;
        }
    }
}

/// Settings, and which revision of each is held.
#[derive(Debug, Default)]
pub(super) struct Revisions(HashMap<Box<str>, u64>);

/// Takes a record of the settings. Says what they are now; `None`: it is older than what is held.
///
/// # Errors
/// Why it can't be used; what is safe is taken all the same.
pub(super) fn apply_setting(
    revisions: &mut Revisions,
    settings: &Settings,
    keys: &Keys,
    record: &Record,
) -> (Option<Settings>, Result<(), String>) {
    let parts = match parts(record) {
        Ok(parts) => parts,
        Err(reason) => return (None, Err(reason)),
    };
    let decoded = parts.value.map(super::settings::decoded);
    let told = decoded.as_ref().and_then(|decoded| decoded.as_ref().ok()).map(|(revision, _)| *revision);
    if let Some(revision) = parts.revision.or(told) {
        let held = revisions.0.entry(parts.key.into()).or_default();
        if revision < *held {
            return (None, Ok(()));
        }
        *held = revision;
    }
    let setting = decoded.map(|decoded| decoded.map(|(_, setting)| setting));
    let mut changed = settings.clone();
    let result = changed.apply(parts.key, setting, keys);
    (Some(changed), result)
}
