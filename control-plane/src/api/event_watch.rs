//! `WatchEvents`: a reader of stored events for each stream, so that it does not matter which replica stored them.
//!
//! A watch holds its place and one page. Each event comes once, in the order of storing; its number and those of
//! bookmarks are where to resume.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tbmq_proto::control::{Event, WatchEventsRequest, WatchEventsResponse};
use tokio::{sync::watch, time::Instant};
use tonic::{Response, Status};

use super::{
    error,
    event::{Events, filter, to_event},
    stream::{self, End, Outbox},
};
use crate::{plane::Plane, store::EventFilter};

/// Events read at once; each may have a text of 4,096 symbols, or of whatever the setting allows.
const PAGE_EVENTS: u64 = 100;

/// The stream of a watch.
pub(crate) type Watching = stream::Watching<WatchEventsResponse>;

impl Events {
    /// Begins to watch. What can be refused is refused here; afterwards only the stream speaks.
    pub(super) async fn watch(
        &self,
        request: WatchEventsRequest,
        client: String,
    ) -> Result<Response<Watching>, Status> {
        let filter = filter(&request.integration, request.r#type, request.filter)?;
        let plane = self.plane.clone();
        let seat = stream::take_seat(&plane, client)?;
        let present = plane.store.event_sequence().await?;
        if let Some(after) = request.after_sequence {
            if after > present {
                let text = format!("is {after}, greater than the present sequence {present}");
                return Err(error::invalid_field("after_sequence", text));
            }
            plane.store.check_event_place(after).await?;
        }
        let place = request.after_sequence.unwrap_or(present);
        let head = plane.changes.events.subscribe(present);
        let bookmarks = stream::bookmarks(&plane);
        let watching = stream::begin(&self.plane, &self.stopping, seat, |outbox| async move {
            Watcher { plane, filter, place, head, outbox, bookmarks }.serve().await
        })?;
        Ok(Response::new(watching))
    }
}

struct Watcher {
    plane: Arc<Plane>,
    filter: EventFilter,
    /// All events up to here were sent, or are not asked for.
    place: u64,
    head: watch::Receiver<u64>,
    outbox: Outbox<WatchEventsResponse>,
    bookmarks: Duration,
}

impl Watcher {
    async fn serve(mut self) -> Result<Infallible, End> {
        // Says where the watch begins: a client that never hears of an event can resume as well.
        self.send(None, self.place).await?;
        let mut next_bookmark = Instant::now() + self.bookmarks;
        loop {
            let head = *self.head.borrow_and_update();
            while self.place < head {
                self.catch_up(head).await?;
                self.remind(&mut next_bookmark).await?;
            }
            self.remind(&mut next_bookmark).await?;
            tokio::select! {
                changed = self.head.changed() => if changed.is_err() { return Err(End::Gone) },
                () = tokio::time::sleep_until(next_bookmark) => {}
            }
        }
    }

    /// Sends a page of what there is up to `head`.
    async fn catch_up(&mut self, head: u64) -> Result<(), End> {
        let page = self.plane.store.events_after(self.place, head, &self.filter, PAGE_EVENTS).await?;
        for (sequence, row) in page.events {
            self.send(Some(to_event(row)), sequence).await?;
        }
        self.place = page.through;
        Ok(())
    }

    /// Sends a bookmark when it is time.
    async fn remind(&mut self, next: &mut Instant) -> Result<(), End> {
        if Instant::now() >= *next {
            self.send(None, self.place).await?;
            *next = Instant::now() + self.bookmarks;
        }
        Ok(())
    }

    /// Hands an event or a bookmark over, and cuts a client that takes none for too long.
    async fn send(&mut self, event: Option<Event>, sequence: u64) -> Result<(), End> {
        self.outbox.send(WatchEventsResponse { event, sequence }, || ("sequence", Some(self.place))).await?;
        // What was handed over need not come again.
        self.place = sequence;
        Ok(())
    }
}
