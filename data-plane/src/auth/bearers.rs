//! Which connected clients came by what, and as whom: those that a change of it is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use parking_lot::Mutex;
use tbmq_auth::{acl::Identity, index::Holder, provider::Provider, token};
use tbmq_mqtt::packet::Text;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::mailbox::Mailbox;

/// By what a client came, and as whom.
#[derive(Debug)]
pub(crate) struct Bearer {
    /// Who has let it in.
    pub(crate) provider: Provider,
    /// Of the provider's settings, as it was judged by.
    pub(crate) generation: u64,
    pub(crate) proof: Proof,
    pub(crate) client_id: Arc<str>,
    pub(crate) username: Option<Text>,
    /// Of the verified path, the client's own first.
    pub(crate) common_names: Arc<[Box<str>]>,
    /// The user name of SCRAM, as prepared.
    pub(crate) scram_user: Option<Box<str>>,
}

/// What a client has shown.
#[derive(Debug)]
pub(crate) enum Proof {
    /// What a credential asks for.
    Credentials {
        id: Uuid,
        /// As it was judged by.
        revision: u64,
    },
    Token(token::Kept),
    /// What a service has accepted; nothing of it is kept.
    Answer,
}

/// What bearers are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ticket {
    Credentials(Uuid),
    Token,
    Answer,
}

/// What connected clients are judged again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    /// The credential has changed, or is gone.
    Credentials(Uuid),
    /// The provider's settings have.
    Provider(Provider),
}

impl Change {
    /// Among which tickets those are whom it is about.
    fn tickets(self) -> (Ticket, Ticket) {
        match self {
            Self::Credentials(id) => (Ticket::Credentials(id), Ticket::Credentials(id)),
            Self::Provider(Provider::Jwt) => (Ticket::Token, Ticket::Token),
            Self::Provider(Provider::Http) => (Ticket::Answer, Ticket::Answer),
            Self::Provider(Provider::Basic | Provider::X509 | Provider::Scram) => {
                (Ticket::Credentials(Uuid::nil()), Ticket::Credentials(Uuid::max()))
            }
        }
    }

    fn is_about(self, bearer: &Bearer) -> bool {
        match self {
            Self::Credentials(_) => true,
            Self::Provider(provider) => bearer.provider == provider,
        }
    }
}

impl Bearer {
    pub(crate) fn ticket(&self) -> Ticket {
        match &self.proof {
            Proof::Credentials { id, .. } => Ticket::Credentials(*id),
            Proof::Token(_) => Ticket::Token,
            Proof::Answer => Ticket::Answer,
        }
    }

    /// The credential by which it came, if it was one.
    pub(crate) fn credentials(&self) -> Option<Uuid> {
        match &self.proof {
            Proof::Credentials { id, .. } => Some(*id),
            Proof::Token(_) | Proof::Answer => None,
        }
    }

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
}

/// All connected clients that somebody was asked about.
#[derive(Debug, Default)]
pub(crate) struct Bearers {
    clients: Mutex<BTreeMap<Place, Connected>>,
    /// What has changed for clients that are connected; at most as much as there are clients, and providers.
    changed: Mutex<BTreeSet<Change>>,
    wake: Notify,
}

/// Ticket and number of the session.
pub(crate) type Place = (Ticket, u64);

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    pub(crate) bearer: Arc<Bearer>,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// Some of those that a change is about.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) found: Vec<Connected>,
    /// After which the next page begins; `None`: this was the last one.
    pub(crate) last: Option<Place>,
}

impl Bearers {
    pub(crate) fn add(&self, bearer: &Arc<Bearer>, mailbox: &Arc<Mailbox>) {
        let connected = Connected { bearer: bearer.clone(), mailbox: mailbox.clone() };
        self.clients.lock().insert((bearer.ticket(), mailbox.number), connected);
    }

    pub(crate) fn remove(&self, ticket: Ticket, number: u64) {
        self.clients.lock().remove(&(ticket, number));
    }

    /// Something has changed.
    pub(crate) fn note_changed(&self, change: Change) {
        let is_used = self.clients.lock().range(range(change, None)).next().is_some();
        if is_used && self.changed.lock().insert(change) {
            self.wake.notify_one();
        }
    }

    /// Waits until something has changed for connected clients, and takes what.
    pub(crate) async fn changed(&self) -> BTreeSet<Change> {
        loop {
            let changed = std::mem::take(&mut *self.changed.lock());
            if !changed.is_empty() {
                return changed;
            }
            self.wake.notified().await;
        }
    }

    /// Those whom a change is about, among at most `max` after this place.
    pub(crate) fn page(&self, change: Change, after: Option<Place>, max: usize) -> Page {
        let clients = self.clients.lock();
        let mut page = Page::default();
        for (place, connected) in clients.range(range(change, after)).take(max) {
            page.last = Some(*place);
            if change.is_about(&connected.bearer) {
                page.found.push(connected.clone());
            }
        }
        page
    }
}

fn range(change: Change, after: Option<Place>) -> (Bound<Place>, Bound<Place>) {
    let (first, last) = change.tickets();
    let from = after.map_or(Bound::Included((first, 0)), Bound::Excluded);
    (from, Bound::Included((last, u64::MAX)))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::mailbox::QueueLimits;

    fn bearer(credentials: u128) -> Arc<Bearer> {
        let provider = if credentials == 1 { Provider::Basic } else { Provider::X509 };
        by(provider, Proof::Credentials { id: Uuid::from_u128(credentials), revision: 1 })
    }

    fn by(provider: Provider, proof: Proof) -> Arc<Bearer> {
        Arc::new(Bearer {
            provider,
            generation: 0,
            proof,
            client_id: "c".into(),
            username: None,
            common_names: [].into(),
            scram_user: None,
        })
    }

    fn mailbox(number: u64) -> Arc<Mailbox> {
        Arc::new(Mailbox::new(number, QueueLimits { messages: 1, bytes: 1 }))
    }

    fn of(credentials: u128) -> Change {
        Change::Credentials(Uuid::from_u128(credentials))
    }

    /// Numbers of all whom a change is about, and how many pages it takes.
    fn numbers(bearers: &Bearers, change: Change, max: usize) -> (Vec<u64>, usize) {
        let (mut found, mut pages, mut after) = (Vec::new(), 0, None);
        loop {
            let page = bearers.page(change, after, max);
            found.extend(page.found.iter().map(|connected| connected.mailbox.number));
            match page.last {
                None => return (found, pages),
                last => (after, pages) = (last, pages + 1),
            }
        }
    }

    #[test]
    fn clients_are_found_by_credential_page_by_page_until_they_leave() {
        let bearers = Bearers::default();
        for (credentials, number) in [(1, 5), (2, 6), (1, u64::MAX), (2, 1), (1, 0)] {
            bearers.add(&bearer(credentials), &mailbox(number));
        }
        assert_eq!(numbers(&bearers, of(1), 10), (vec![0, 5, u64::MAX], 1));
        assert_eq!(numbers(&bearers, of(1), 2), (vec![0, 5, u64::MAX], 2));
        assert_eq!(numbers(&bearers, of(2), 1), (vec![1, 6], 2));
        bearers.remove(Ticket::Credentials(Uuid::from_u128(1)), 5);
        assert_eq!(numbers(&bearers, of(1), 10), (vec![0, u64::MAX], 1));
        assert_eq!(numbers(&bearers, of(3), 10), (vec![], 0));
    }

    #[test]
    fn clients_are_found_by_the_provider_that_has_let_them_in() {
        let bearers = Bearers::default();
        for (bearer, number) in [
            (bearer(1), 1),
            (bearer(2), 2),
            (by(Provider::Http, Proof::Answer), 3),
            (bearer(1), 4),
            (by(Provider::Http, Proof::Answer), 5),
        ] {
            bearers.add(&bearer, &mailbox(number));
        }
        let found = |provider| numbers(&bearers, Change::Provider(provider), 2);
        assert_eq!(found(Provider::Basic), (vec![1, 4], 2));
        assert_eq!(found(Provider::X509), (vec![2], 2));
        assert_eq!(found(Provider::Http), (vec![3, 5], 1));
        assert_eq!(found(Provider::Jwt), (vec![], 0));
        bearers.remove(Ticket::Answer, 5);
        bearers.remove(Ticket::Answer, 3);
        bearers.note_changed(Change::Provider(Provider::Http));
        assert_eq!(bearers.changed().now_or_never(), None, "nobody is connected by it");
    }

    #[test]
    fn only_changes_of_credentials_in_use_are_told() {
        let bearers = Bearers::default();
        bearers.add(&bearer(1), &mailbox(1));
        bearers.note_changed(of(2));
        assert_eq!(bearers.changed().now_or_never(), None);
        bearers.note_changed(of(1));
        bearers.note_changed(of(1));
        assert_eq!(bearers.changed().now_or_never(), Some([of(1)].into()));
        assert_eq!(bearers.changed().now_or_never(), None);
    }
}
