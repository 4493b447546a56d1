//! What changes mean for clients that are connected: done on a thread apart, in portions.

use std::sync::Arc;

use tbmq_auth::{
    blocked::{self, Blocked},
    provider::Provider,
};
use tbmq_mqtt::session::End;

use super::{
    Access, Auth, Bearer,
    bearers::{Change, Proof},
    settings::{Provided, Settings},
};
use crate::{
    mailbox::{Client, Mailbox, Regrant},
    plane::{Plane, Registry},
};

/// Clients that are looked at while others wait for the registry.
const SLICE: usize = 256;

/// What becomes of a connected client.
enum Fate {
    /// Nothing: what it may do stays.
    Stays,
    /// It may do this from now on, until then (ms since 1970).
    May(Access, Option<i64>),
    /// What it came by would not let it in now, and why.
    Ends(String),
}

impl Auth {
    /// Gives connected clients what their changed credentials and providers say, and ends those who would not be let in
    /// any more by what they came by; does not return.
    pub(crate) async fn follow_credentials(self: Arc<Self>) {
        loop {
            let changed = self.bearers.changed().await;
            let auth = self.clone();
            let judged = tokio::task::spawn_blocking(move || {
                for change in changed {
                    auth.judge_all_again(change);
                }
            });
            if let Err(error) = judged.await {
                tracing::error!(%error, "can't judge connected clients again");
            }
        }
    }

    pub(super) fn judge_all_again(&self, change: Change) {
        let mut after = None;
        loop {
            let page = self.bearers.page(change, after, SLICE);
            for connected in &page.found {
                self.judge_again(&connected.bearer, &connected.mailbox);
            }
            match page.last {
                None => return,
                last => after = last,
            }
        }
    }

    /// Judges a connected client by what became of its credential, or of the provider that has let it in.
    pub(super) fn judge_again(&self, bearer: &Arc<Bearer>, mailbox: &Mailbox) {
        match self.fate(&self.settings(), bearer) {
            Fate::Stays => {}
            Fate::May(access, until_ms) => {
                self.metrics.judged_again.inc();
                mailbox.regrant(Regrant { bearer: bearer.clone(), access, until_ms });
            }
            Fate::Ends(reason) => {
                let (client_id, provider) = (&*bearer.client_id, bearer.provider.name());
                tracing::info!(
                    client_id,
                    provider,
                    reason,
                    "a connected client would not be let in any more"
                );
                self.end(mailbox, End::NotAuthorized);
            }
        }
    }

    fn fate(&self, settings: &Settings, bearer: &Bearer) -> Fate {
        if settings.is_disabled(bearer.provider) {
            return Fate::Ends("its provider is not enabled".to_owned());
        }
        match &bearer.proof {
            Proof::Credentials { id, .. } => {
                let index = self.index.read();
                let found = index.get(*id).filter(|entry| index.is_for(entry, &bearer.holder()));
                let found = found.filter(|entry| match (bearer.provider, &settings.basic) {
                    (Provider::Basic, Provided::Enabled(strategy)) => {
                        let user_name = bearer.username.as_deref();
                        let asked = index.basic(*strategy, &bearer.client_id, user_name);
                        asked.iter().any(|asked| asked.id() == entry.id())
                    }
                    _ => true,
                });
                let entry = found.cloned();
                drop(index);
                match entry.map(|entry| entry.acl(&bearer.identity())) {
                    None => Fate::Ends("its credential is gone, or for others".to_owned()),
                    Some(Ok(acl)) => Fate::May(acl.into(), None),
                    Some(Err(nothing)) => Fate::Ends(nothing.to_string()),
                }
            }
            Proof::Token(kept) => match &settings.jwt {
                Provided::Enabled(jwt) => match jwt.judge_again(kept, &bearer.identity()) {
                    // The keys are awaited.
                    None => Fate::Stays,
                    Some(Ok(accepted)) => Fate::May(accepted.acl.into(), accepted.expires_at_ms),
                    Some(Err(reason)) => Fate::Ends(reason),
                },
                // Nobody has taken back what let it in.
                Provided::Broken(_) | Provided::Disabled => Fate::Stays,
            },
            // To ask about all of them at once would be too much, and without passwords in vain.
            Proof::Answer => Fate::Stays,
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
