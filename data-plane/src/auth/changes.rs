//! What changes mean for clients that are connected: done on a thread apart, in portions.

use std::sync::Arc;

use tbmq_auth::blocked::{self, Blocked};
use tbmq_mqtt::session::End;
use uuid::Uuid;

use super::{Access, Auth, Bearer};
use crate::{
    mailbox::{Client, Mailbox},
    plane::{Plane, Registry},
};

/// Clients that are looked at while others wait for the registry.
const SLICE: usize = 256;

impl Auth {
    /// Gives connected clients what their changed credentials say, and ends those whose credential is gone; does not
    /// return.
    pub(crate) async fn follow_credentials(self: Arc<Self>) {
        loop {
            let changed = self.bearers.changed().await;
            let auth = self.clone();
            let judged = tokio::task::spawn_blocking(move || {
                for credentials in changed {
                    auth.judge_all_again(credentials);
                }
            });
            if let Err(error) = judged.await {
                tracing::error!(%error, "can't judge connected clients again");
            }
        }
    }

    pub(super) fn judge_all_again(&self, credentials: Uuid) {
        let mut from = 0;
        loop {
            let page = self.bearers.page(credentials, from, SLICE);
            for connected in &page {
                self.judge_again(&connected.bearer, &connected.mailbox);
            }
            match page.last().and_then(|last| last.mailbox.number.checked_add(1)) {
                Some(next) => from = next,
                None => return,
            }
        }
    }

    /// Judges a connected client by its credential as it is now.
    pub(super) fn judge_again(&self, bearer: &Bearer, mailbox: &Mailbox) {
        let entry = {
            let index = self.index.read();
            index.get(bearer.credentials).filter(|entry| index.is_for(entry, &bearer.holder())).cloned()
        };
        match entry.and_then(|entry| entry.acl(&bearer.identity()).ok()) {
            Some(acl) => {
                self.metrics.judged_again.inc();
                mailbox.regrant(bearer.credentials, Access::from(acl));
            }
            None => self.end(mailbox, End::NotAuthorized),
        }
    }

    /// Ends connected clients that come to be blocked; does not return.
    pub(crate) async fn follow_blocks(self: Arc<Self>, plane: Arc<Plane>) {
        loop {
            let new = self.blocks.noted().await;
            let (auth, plane) = (self.clone(), plane.clone());
            let looked = tokio::task::spawn_blocking(move || auth.end_blocked(new.as_ref(), &plane.registry));
            if let Err(error) = looked.await {
                tracing::error!(%error, "can't look for connected clients that are blocked");
            }
        }
    }

    /// By these blocks, or by all there are.
    fn end_blocked(&self, new: Option<&Blocked>, registry: &Registry) {
        let now_ms = self.clock.now().epoch_ms;
        let is_blocked = |client: &Client| {
            let Some(peer) = client.peer else { return false };
            let user_name = client.username.as_deref();
            let client = blocked::Client { client_id: &client.id, user_name, address: peer.ip() };
            let found = match new {
                Some(new) => new.find(now_ms, client),
                None => self.blocks.find(now_ms, client),
            };
            found.is_some()
        };
        let mut after: Option<Arc<str>> = None;
        loop {
            let page = registry.page(after.as_deref().unwrap_or_default(), SLICE);
            for mailbox in &page {
                let Some(client) = mailbox.client() else { continue };
                if is_blocked(&client) {
                    tracing::info!(client_id = &*client.id, "a connected client is blocked");
                    self.end(mailbox, End::Administrative);
                }
            }
            match page.last().and_then(|last| last.client()) {
                Some(last) => after = Some(last.id.clone()),
                None => return,
            }
        }
    }
}
