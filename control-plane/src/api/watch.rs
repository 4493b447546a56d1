//! `WatchIntegrations`: a reader of the store's changes for each stream, so that it does not matter which replica
//! wrote them.
//!
//! A watch holds its place and one page, whatever happens: several changes of an integration within a page become one
//! message, and what the client does not take in time is not kept for it. Watches that are at one place, as all are that
//! wait for the next change, share their page.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use tbmq_proto::{
    control::{
        Integration, WatchIntegrationsRequest, WatchIntegrationsResponse, watch_integrations_response::Type,
    },
    ids::IntegrationId,
};
use tokio::{sync::watch, time::Instant};
use tonic::{Response, Status};

use super::{
    error,
    integration::{Integrations, parse_name},
    pages::{Page, Told},
    stream::{self, End, Outbox},
};
use crate::store::{ChangeKind, ChangeRow};

/// Changes read at once.
const PAGE_CHANGES: u64 = 500;

/// Integrations loaded at once; each may have a document of 900 KB.
const CHUNK: usize = 50;

/// Bytes of a page at most, unless one chunk alone has more.
const PAGE_BYTES: usize = 4 << 20;

/// The stream of a watch.
pub(crate) type Watching = stream::Watching<WatchIntegrationsResponse>;

impl Integrations {
    /// Begins to watch. What can be refused is refused here; afterwards only the stream speaks.
    pub(super) async fn watch(
        &self,
        request: WatchIntegrationsRequest,
        client: String,
    ) -> Result<Response<Watching>, Status> {
        let of = match request.name.as_str() {
            "" => None,
            name => Some(parse_name("name", name)?),
        };
        let plane = &self.plane;
        let seat = stream::take_seat(plane, client)?;
        // Before anything is listed: what changes from now on comes as a change.
        let present = plane.store.revision().await?;
        if let Some(after) = request.after_revision {
            if after > present {
                let text = format!("is {after}, greater than the present revision {present}");
                return Err(error::invalid_field("after_revision", text));
            }
            plane.store.check_place(after).await?;
        }
        let (place, resume) = (request.after_revision.unwrap_or(present), request.after_revision);
        let head = plane.changes.integrations.subscribe(present);
        let bookmarks = stream::bookmarks(plane);
        let api = self.clone();
        let watching = stream::begin(plane, &self.stopping, seat, |outbox| async move {
            Watcher { api, of, place, resume, head, outbox, bookmarks }.serve().await
        })?;
        Ok(Response::new(watching))
    }
}

impl Integrations {
    /// Reads changes after `place`, to `head` at least, unless there is more than a page may hold.
    async fn read(&self, of: Option<IntegrationId>, place: u64, head: u64) -> Result<Page, Status> {
        let rows = self.plane.store.changes_after(place, of, PAGE_CHANGES).await?;
        let last = rows.last().map_or(place, |row| row.seq);
        // Every change up to the head was there to be read.
        let through = if rows.len() as u64 == PAGE_CHANGES { last } else { last.max(head) };
        let mut page = Page { told: Vec::new(), through };
        let changes = coalesce(&rows);
        let mut chunks = changes.chunks(CHUNK);
        while let Some(chunk) = chunks.next() {
            self.tell(chunk, &mut page.told).await?;
            if page.bytes() > PAGE_BYTES && chunks.len() > 0 {
                page.through = chunk.last().map_or(place, |change| change.seq);
                break;
            }
        }
        Ok(page)
    }

    async fn tell(&self, changes: &[Coalesced], told: &mut Vec<Told>) -> Result<(), Status> {
        let ids: Vec<IntegrationId> =
            changes.iter().filter(|change| change.what != Type::Deleted).map(|change| change.id).collect();
        let rows = if ids.is_empty() { Vec::new() } else { self.plane.store.find_all(&ids).await? };
        let mut found: HashMap<String, Integration> = HashMap::with_capacity(rows.len());
        for integration in self.resources(rows).await? {
            found.insert(integration.uid.clone(), integration);
        }
        for Coalesced { id, what, seq } in changes.iter().copied() {
            let uid = id.to_string();
            let integration = if what == Type::Deleted {
                Integration { name: format!("integrations/{uid}"), uid, ..Integration::default() }
            } else {
                // Deleted since: that is a later change.
                let Some(integration) = found.get(&uid) else { continue };
                integration.clone()
            };
            told.push(Told { what, integration, seq });
        }
        Ok(())
    }
}

struct Watcher {
    api: Integrations,
    of: Option<IntegrationId>,
    /// All changes up to here have been looked at.
    place: u64,
    /// Where the client can resume after all that it was sent; `None` while the list is not complete.
    resume: Option<u64>,
    head: watch::Receiver<u64>,
    outbox: Outbox<WatchIntegrationsResponse>,
    bookmarks: Duration,
}

impl Watcher {
    async fn serve(mut self) -> Result<Infallible, End> {
        if self.resume.is_none() {
            self.list().await?;
            self.bookmark().await?;
        }
        let mut next_bookmark = Instant::now() + self.bookmarks;
        loop {
            let head = *self.head.borrow_and_update();
            self.catch_up(head).await?;
            if Instant::now() >= next_bookmark {
                self.bookmark().await?;
                next_bookmark = Instant::now() + self.bookmarks;
            }
            tokio::select! {
                changed = self.head.changed() => if changed.is_err() { return Err(End::Gone) },
                () = tokio::time::sleep_until(next_bookmark) => {}
            }
        }
    }

    /// Sends everything that exists. Its messages carry no revision to resume from: it is complete or begins anew.
    async fn list(&mut self) -> Result<(), End> {
        let mut after = None;
        loop {
            let rows = match self.of {
                Some(id) => self.api.plane.store.find_all(&[id]).await?,
                None => self.api.plane.store.page_by_id(after, CHUNK as u64).await?,
            };
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.id);
            for integration in self.api.resources(rows).await? {
                self.send(Type::Added, Some(integration), 0).await?;
            }
            if self.of.is_some() {
                return Ok(());
            }
        }
    }

    /// Sends all changes up to `head`, and those after it that are seen on the way.
    async fn catch_up(&mut self, head: u64) -> Result<(), End> {
        while self.place < head {
            let read = || self.api.read(self.of, self.place, head);
            let page = match self.of {
                None => self.api.pages.at(self.place, head, read).await?,
                Some(_) => Arc::new(read().await?),
            };
            for told in &page.told {
                self.send(told.what, Some(told.integration.clone()), told.seq).await?;
            }
            self.place = page.through;
        }
        Ok(())
    }

    async fn bookmark(&mut self) -> Result<(), End> {
        self.send(Type::Bookmark, None, self.place).await
    }

    /// Hands a message over, and cuts a client that takes none for too long.
    async fn send(&mut self, what: Type, integration: Option<Integration>, revision: u64) -> Result<(), End> {
        let message = WatchIntegrationsResponse { r#type: what.into(), integration, revision };
        self.outbox.send(message, || ("revision", self.resume)).await?;
        if revision > 0 {
            self.resume = Some(revision);
        }
        Ok(())
    }
}

/// What is told of an integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Coalesced {
    id: IntegrationId,
    what: Type,
    seq: u64,
}

/// Makes one message of several changes of an integration, at the place of the last one. A creation moves only over
/// changes of its own integration: whoever resumes after a message has been told of everything created before it.
fn coalesce(rows: &[ChangeRow]) -> Vec<Coalesced> {
    let mut messages: Vec<Option<Coalesced>> = Vec::with_capacity(rows.len());
    let mut latest: HashMap<IntegrationId, usize> = HashMap::new();
    for row in rows {
        let held = latest.get(&row.integration).copied();
        let before = held.and_then(|at| messages[at]).map(|message| message.what);
        let is_last = held.is_some_and(|at| at + 1 == messages.len());
        let (what, replaces) = match (row.kind, before) {
            (ChangeKind::Deleted, _) => (Type::Deleted, true),
            (ChangeKind::Created, _) => (Type::Added, true),
            // Nothing comes after a deletion but a creation.
            (ChangeKind::Modified, Some(Type::Deleted)) => continue,
            (ChangeKind::Modified, Some(Type::Added)) if is_last => (Type::Added, true),
            (ChangeKind::Modified, Some(Type::Added)) => (Type::Modified, false),
            (ChangeKind::Modified, _) => (Type::Modified, true),
        };
        if let Some(at) = held.filter(|_| replaces) {
            messages[at] = None;
        }
        latest.insert(row.integration, messages.len());
        messages.push(Some(Coalesced { id: row.integration, what, seq: row.seq }));
    }
    messages.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(letter: char) -> IntegrationId {
        IntegrationId(Uuid::from_u128(letter as u128))
    }

    /// Changes such as `+a` (created), `a` (modified), `-a` (deleted), numbered from 1; messages as `+a2`.
    fn check(changes: &str, expected: &str) {
        let row = |(i, text): (usize, &str)| {
            let (kind, letter) = match text.split_at(text.len() - 1) {
                ("+", letter) => (ChangeKind::Created, letter),
                ("-", letter) => (ChangeKind::Deleted, letter),
                (_, letter) => (ChangeKind::Modified, letter),
            };
            ChangeRow { seq: i as u64 + 1, integration: id(letter.chars().next().unwrap()), kind }
        };
        let rows: Vec<ChangeRow> = changes.split_whitespace().enumerate().map(row).collect();
        let text = |message: &Coalesced| {
            let sign = match message.what {
                Type::Added => "+",
                Type::Deleted => "-",
                _ => "",
            };
            let letter = char::from_u32(message.id.0.as_u128() as u32).unwrap();
            format!("{sign}{letter}{}", message.seq)
        };
        let messages: Vec<String> = coalesce(&rows).iter().map(text).collect();
        assert_eq!(messages.join(" "), expected, "{changes}");
    }

    #[test]
    fn changes_of_one_integration_become_one_message_at_the_last_place() {
        check("a a b a", "b3 a4");
        check("+a a a", "+a3");
        check("a b -a", "b2 -a3");
        check("+a -a", "-a2");
        check("-a +a a", "+a3");
        check("-a a", "-a1");
        check("", "");
    }

    #[test]
    fn a_creation_does_not_move_over_changes_of_others() {
        check("+a b a b a", "+a1 b4 a5");
        check("+a +b a b", "+a1 +b2 a3 b4");
        check("+a b -a", "b2 -a3");
    }
}
