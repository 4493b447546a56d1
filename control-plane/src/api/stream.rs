//! What the streams of all watches have in common: a seat, a bounded outbox, the patience with slow clients, and the
//! last word.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use prometheus_client::metrics::counter::Counter;
use tbmq_service::drain::Drain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::error;
use crate::{
    access::{ANONYMOUS, Caller},
    changes::{NoSeat, Seat},
    plane::Plane,
};

/// Messages that wait for the client to take them.
const OUTBOX: usize = 16;

/// The promise of the API: a client that hears nothing for longer has lost its connection.
const BOOKMARKS_MAX: Duration = Duration::from_secs(10);

/// The stream of a watch. It keeps its seat until the client has gone, however slowly it reads.
#[derive(Debug)]
pub(crate) struct Watching<M> {
    answers: ReceiverStream<Result<M, Status>>,
    _seat: Seat,
}

impl<M> Stream for Watching<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.answers).poll_next(cx)
    }
}

/// Where a watch puts its messages.
pub(super) struct Outbox<M> {
    sender: mpsc::Sender<Result<M, Status>>,
    patience: Duration,
    cut: Counter,
}

/// Why a watch ends: with a status, or without a word because the client has gone.
pub(super) enum End {
    Gone,
    Status(Status),
}

impl<E: Into<Status>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Status(error.into())
    }
}

impl<M> Outbox<M> {
    /// Hands a message over, and cuts a client that takes none for too long: `resume` names the kind of number after
    /// which it can go on, and the number.
    pub(super) async fn send(
        &self,
        message: M,
        resume: impl FnOnce() -> (&'static str, Option<u64>),
    ) -> Result<(), End> {
        match tokio::time::timeout(self.patience, self.sender.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => {
                self.cut.inc();
                let (what, place) = resume();
                Err(End::Status(error::slow_watcher(self.patience, what, place)))
            }
        }
    }
}

/// Whose watches are counted together: those of a principal, or of an address when nobody is asked who they are.
pub(super) fn client_of<T>(request: &Request<T>) -> String {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.principal != ANONYMOUS => caller.principal.clone(),
        _ => request.remote_addr().map_or_else(String::new, |peer| peer.ip().to_string()),
    }
}

/// A seat among the watches of this replica.
pub(super) fn take_seat(plane: &Plane, client: String) -> Result<Seat, Status> {
    plane.changes.take_seat(client, &plane.metrics.watchers).map_err(|none| {
        plane.metrics.watchers_refused.inc();
        let control = &plane.config.control;
        error::limit_reached(match none {
            NoSeat::Full => {
                format!("this control plane has {} watches already (TBMQ_WATCHERS_MAX)", control.watchers_max)
            }
            NoSeat::ClientFull => format!(
                "this client has {} watches here already (TBMQ_WATCHERS_PER_CLIENT_MAX)",
                control.watchers_per_client_max
            ),
        })
    })
}

/// How often a watch says how far it has come.
pub(super) fn bookmarks(plane: &Plane) -> Duration {
    plane.config.control.watch_bookmarks.clamp(Duration::from_millis(10), BOOKMARKS_MAX)
}

/// Lets a watch run until it ends, its client has gone, or the control plane stops.
pub(super) fn begin<M, F>(
    plane: &Plane,
    stopping: &Drain,
    seat: Seat,
    watch: impl FnOnce(Outbox<M>) -> F,
) -> Result<Watching<M>, Status>
where
    M: Send + 'static,
    F: Future<Output = Result<Infallible, End>> + Send + 'static,
{
    let (sender, answers) = mpsc::channel(OUTBOX);
    // So that there is room for the last word, however full the rest is.
    let last_word = sender.clone().try_reserve_owned().map_err(|_| Status::internal("no room"))?;
    let gone = sender.clone();
    let outbox = Outbox {
        sender,
        patience: plane.config.control.watch_patience,
        cut: plane.metrics.watchers_cut.clone(),
    };
    let watch = watch(outbox);
    let stopping = stopping.clone();
    tokio::spawn(async move {
        let end = tokio::select! {
            Err(end) = watch => end,
            () = gone.closed() => End::Gone,
            () = stopping.begun() => {
                End::Status(Status::unavailable("the control plane is stopping; watch at another"))
            }
        };
        if let End::Status(status) = end {
            last_word.send(Err(status));
        }
    });
    Ok(Watching { answers: ReceiverStream::new(answers), _seat: seat })
}
