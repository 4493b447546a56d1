//! Which connected clients came by which credential, and as whom: those that a change of it is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use tbmq_auth::{
    acl::Identity,
    index::{Entry, Holder},
};
use tbmq_mqtt::packet::Text;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::mailbox::Mailbox;

/// By which credential a client came, and as whom.
#[derive(Debug)]
pub(crate) struct Bearer {
    pub(crate) credentials: Uuid,
    /// Of the credential, as it was judged by.
    pub(crate) revision: u64,
    pub(crate) client_id: Arc<str>,
    pub(crate) username: Option<Text>,
    /// Of the verified path, the client's own first.
    pub(crate) common_names: Arc<[Box<str>]>,
    /// The user name of SCRAM, as prepared.
    pub(crate) scram_user: Option<Box<str>>,
}

impl Bearer {
    /// The same client by what became of its credential.
    pub(crate) fn holder(&self) -> Holder<'_> {
        Holder {
            client_id: &self.client_id,
            user_name: self.username.as_deref(),
            common_names: &self.common_names,
            scram_user: self.scram_user.as_deref(),
        }
    }

    pub(crate) fn identity(&self) -> Identity<'_> {
        Identity {
            client_id: &self.client_id,
            user_name: self.username.as_deref(),
            common_name: self.common_names.first().map(|name| &**name),
        }
    }

    /// Whether it came by this revision of its credential.
    pub(crate) fn came_by(&self, entry: &Entry) -> bool {
        self.revision == entry.revision()
    }
}

/// All connected clients that came by a credential.
#[derive(Debug, Default)]
pub(crate) struct Bearers {
    /// By credential and the number of the session.
    clients: Mutex<BTreeMap<(Uuid, u64), Connected>>,
    /// Credentials that have changed; at most as many as clients are connected.
    changed: Mutex<BTreeSet<Uuid>>,
    wake: Notify,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    pub(crate) bearer: Arc<Bearer>,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Bearers {
    pub(crate) fn add(&self, bearer: &Arc<Bearer>, mailbox: &Arc<Mailbox>) {
        let connected = Connected { bearer: bearer.clone(), mailbox: mailbox.clone() };
        self.clients.lock().insert((bearer.credentials, mailbox.number), connected);
    }

    pub(crate) fn remove(&self, credentials: Uuid, number: u64) {
        self.clients.lock().remove(&(credentials, number));
    }

    /// A credential has changed, or is gone.
    pub(crate) fn note_changed(&self, credentials: Uuid) {
        let is_used = self.clients.lock().range(range(credentials, 0)).next().is_some();
        if is_used && self.changed.lock().insert(credentials) {
            self.wake.notify_one();
        }
    }

    /// Waits until credentials of connected clients have changed, and takes them.
    pub(crate) async fn changed(&self) -> BTreeSet<Uuid> {
        loop {
            let changed = std::mem::take(&mut *self.changed.lock());
            if !changed.is_empty() {
                return changed;
            }
            self.wake.notified().await;
        }
    }

    /// At most `max` clients that came by a credential, from this number on.
    pub(crate) fn page(&self, credentials: Uuid, from: u64, max: usize) -> Vec<Connected> {
        self.clients
            .lock()
            .range(range(credentials, from))
            .take(max)
            .map(|(_, found)| found.clone())
            .collect()
    }
}

fn range(credentials: Uuid, from: u64) -> std::ops::RangeInclusive<(Uuid, u64)> {
    (credentials, from)..=(credentials, u64::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::mailbox::QueueLimits;

    fn bearer(credentials: u128) -> Arc<Bearer> {
        Arc::new(Bearer {
            credentials: Uuid::from_u128(credentials),
            revision: 1,
            client_id: "c".into(),
            username: None,
            common_names: [].into(),
            scram_user: None,
        })
    }

    fn mailbox(number: u64) -> Arc<Mailbox> {
        Arc::new(Mailbox::new(number, QueueLimits { messages: 1, bytes: 1 }))
    }

    fn numbers(bearers: &Bearers, credentials: u128, from: u64, max: usize) -> Vec<u64> {
        let found = bearers.page(Uuid::from_u128(credentials), from, max);
        found.iter().map(|connected| connected.mailbox.number).collect()
    }

    #[test]
    fn clients_are_found_by_credential_page_by_page_until_they_leave() {
        let bearers = Bearers::default();
        for (credentials, number) in [(1, 5), (2, 6), (1, u64::MAX), (2, 1), (1, 0)] {
            bearers.add(&bearer(credentials), &mailbox(number));
        }
        assert_eq!(numbers(&bearers, 1, 0, 10), [0, 5, u64::MAX]);
        assert_eq!(numbers(&bearers, 1, 0, 2), [0, 5]);
        assert_eq!(numbers(&bearers, 1, 6, 2), [u64::MAX]);
        assert_eq!(numbers(&bearers, 2, 0, 10), [1, 6]);
        bearers.remove(Uuid::from_u128(1), 5);
        assert_eq!(numbers(&bearers, 1, 0, 10), [0, u64::MAX]);
        assert!(numbers(&bearers, 3, 0, 10).is_empty());
    }

    #[test]
    fn only_changes_of_credentials_in_use_are_told() {
        let bearers = Bearers::default();
        bearers.add(&bearer(1), &mailbox(1));
        bearers.note_changed(Uuid::from_u128(2));
        assert_eq!(bearers.changed().now_or_never(), None);
        bearers.note_changed(Uuid::from_u128(1));
        bearers.note_changed(Uuid::from_u128(1));
        assert_eq!(bearers.changed().now_or_never(), Some([Uuid::from_u128(1)].into()));
        assert_eq!(bearers.changed().now_or_never(), None);
    }
}
