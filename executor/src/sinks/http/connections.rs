//! The connections to an origin: kept for a while, and used by all integrations of the process that send there.
//!
//! A connection that speaks HTTP/1 belongs to the request that uses it, whose future drives it: it has no task, so
//! nothing wakes another thread on a request's way out and back. Between requests nobody drives it; whether the other
//! end has closed it is looked at before it is used again, and every [`LOOK_EVERY`]. One that speaks HTTP/2 carries all
//! requests at once, and has a task.

use std::{
    error::Error,
    fmt,
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use ::http::{
    HeaderValue, Request, Response, Uri, header,
    uri::{Authority, PathAndQuery},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::{
    client::legacy::connect::Connection as _,
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tower_service::Service as _;

use super::connector::{Connector, Stream};

/// How long a connection is kept without a request.
pub(super) const KEPT: Duration = Duration::from_secs(90);
/// How often connections without a request are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long an HTTP/2 connection with requests may be silent before it is asked for a sign, and how long that may take:
/// all requests share it, and one that is dead must not take them all with it for long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Why a request has no answer, or only the beginning of one.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no connection")]
    Connect(#[source] Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Exchange(#[from] hyper::Error),
}

/// A URL as the two versions of HTTP want it in a request.
#[derive(Debug)]
pub(super) struct Target {
    whole: Uri,
    /// Path and query.
    path: Uri,
    host: HeaderValue,
}

impl Target {
    pub(super) fn new(whole: Uri) -> Self {
        let path = whole.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let authority = whole.authority().map_or("", Authority::as_str);
        // An authority has only characters that a header may have, and no port where it is the scheme's.
        let host = HeaderValue::from_str(authority).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self { whole, path: path.into(), host }
    }
}

/// Scheme, host and port, and the connections to it.
pub(super) struct Origin {
    uri: Uri,
    connector: Connector,
    kept: Mutex<Kept>,
    /// Whose turn it is to connect to an origin that speaks HTTP/2: one connection is enough.
    turn: tokio::sync::Mutex<()>,
}

/// What is there to be used.
#[derive(Default)]
struct Kept {
    /// Without a request since then, the last one last.
    idle: Vec<(Single, Instant)>,
    shared: Option<(http2::SendRequest<Full<Bytes>>, Instant)>,
    speaks_http2: bool,
    /// A task looks at them.
    is_watched: bool,
}

/// A connection to use.
enum Lane {
    Single { single: Single, is_new: bool },
    Shared { sender: http2::SendRequest<Full<Bytes>>, is_new: bool },
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.authority().map_or("", Authority::as_str))
    }
}

impl Origin {
    /// `uri`: scheme and authority count.
    pub(super) fn new(uri: Uri, connector: Connector) -> Self {
        Self { uri, connector, kept: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Sends a request, over a connection that is there or over a new one, and waits for the head of its answer. A request
    /// that found its connection closed before any of it was sent takes another one.
    pub(super) async fn ask(
        self: &Arc<Self>,
        target: &Target,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Answer, Failure> {
        loop {
            let lane = match self.take() {
                Some(lane) => lane,
                // Rarely, and large: in a box the others need not be as large.
                None => Box::pin(self.connect()).await?,
            };
            let (sent, is_new) = match lane {
                Lane::Single { mut single, is_new } => {
                    *request.uri_mut() = target.path.clone();
                    request.headers_mut().entry(header::HOST).or_insert_with(|| target.host.clone());
                    let asked = single.sender.try_send_request(request);
                    let sent = single.drive(asked).await;
                    let single = Some(single);
                    (sent.map(|response| Answer { response, single, origin: Arc::clone(self) }), is_new)
                }
                Lane::Shared { mut sender, is_new } => {
                    *request.uri_mut() = target.whole.clone();
                    let sent = sender.try_send_request(request).await;
                    if sent.as_ref().is_err_and(|error| error.message().is_some()) {
                        self.forget_shared();
                    }
                    (sent.map(|response| Answer { response, single: None, origin: Arc::clone(self) }), is_new)
                }
            };
            request = match sent {
                Ok(answer) => return Ok(answer),
                Err(error) => unsent(error, is_new)?,
            };
        }
    }

    fn take(&self) -> Option<Lane> {
        let mut kept = self.kept.lock();
        if let Some((sender, used)) = &mut kept.shared {
            if !sender.is_closed() {
                *used = Instant::now();
                return Some(Lane::Shared { sender: sender.clone(), is_new: false });
            }
            kept.shared = None;
        }
        loop {
            let (mut single, _) = kept.idle.pop()?;
            if single.is_idle() {
                return Some(Lane::Single { single, is_new: false });
            }
        }
    }

    /// Has the next request connect anew, should this connection not know yet that it is over.
    fn forget_shared(&self) {
        self.kept.lock().shared = None;
    }

    async fn connect(self: &Arc<Self>) -> Result<Lane, Failure> {
        let turn = if self.kept.lock().speaks_http2 { Some(self.turn.lock().await) } else { None };
        if turn.is_some()
            && let Some(lane) = self.take()
        {
            return Ok(lane);
        }
        let stream = self.connector.clone().call(self.uri.clone()).await.map_err(Failure::Connect)?;
        let speaks_http2 = stream.connected().is_negotiated_h2();
        self.kept.lock().speaks_http2 = speaks_http2;
        if !speaks_http2 {
            let (sender, connection) = http1::handshake(stream).await?;
            let single = Single { sender, connection: Box::new(connection), has_ended: false };
            return Ok(Lane::Single { single, is_new: true });
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .handshake(stream)
            .await?;
        // It tells its requests of its end, and ends with the last sender.
        tokio::spawn(async move { drop(connection.await) });
        self.keep(|kept, now| kept.shared = Some((sender.clone(), now)));
        Ok(Lane::Shared { sender, is_new: true })
    }

    /// How many connections could take a request now.
    #[cfg(test)]
    pub(super) fn usable(&self) -> usize {
        let mut kept = self.kept.lock();
        let singles = kept.idle.iter_mut().filter_map(|(single, _)| single.is_idle().then_some(())).count();
        singles + usize::from(kept.shared.as_ref().is_some_and(|(sender, _)| !sender.is_closed()))
    }

    fn keep(self: &Arc<Self>, put: impl FnOnce(&mut Kept, Instant)) {
        let mut kept = self.kept.lock();
        put(&mut kept, Instant::now());
        if !mem::replace(&mut kept.is_watched, true) {
            tokio::spawn(watch(Arc::downgrade(self)));
        }
    }
}

/// Lets go of connections that are closed or were not used for long, as long as there are any.
async fn watch(origin: Weak<Origin>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(origin) = origin.upgrade() else { return };
        let mut kept = origin.kept.lock();
        let is_recent = |used: Instant| used.elapsed() < KEPT;
        kept.idle.retain_mut(|(single, used)| is_recent(*used) && single.is_idle());
        kept.shared = kept.shared.take().filter(|(sender, used)| is_recent(*used) && !sender.is_closed());
        if kept.idle.is_empty() && kept.shared.is_none() {
            kept.is_watched = false;
            return;
        }
    }
}

/// The request, for another connection, when one that was there before turned out to be closed.
fn unsent(
    mut error: TrySendError<Request<Full<Bytes>>>,
    is_new: bool,
) -> Result<Request<Full<Bytes>>, Failure> {
    match error.take_message() {
        Some(request) if !is_new => Ok(request),
        _ => Err(error.into_error().into()),
    }
}

/// An HTTP/1 connection, which goes on only while it is polled.
struct Single {
    sender: http1::SendRequest<Full<Bytes>>,
    connection: Box<http1::Connection<Stream, Full<Bytes>>>,
    has_ended: bool,
}

impl Single {
    fn poll(&mut self, cx: &mut Context<'_>) {
        // Why it ended is told to its request.
        if !self.has_ended && Pin::new(&mut *self.connection).poll(cx).is_ready() {
            self.has_ended = true;
        }
    }

    /// Drives the connection until something that happens over it is done.
    async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.poll(cx);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Whether it can take a request, as far as is known here: the other end may just be closing it.
    fn is_idle(&mut self) -> bool {
        self.poll(&mut Context::from_waker(Waker::noop()));
        !self.has_ended && self.sender.is_ready()
    }
}

/// The answer to a request, as it comes.
pub(super) struct Answer {
    response: Response<Incoming>,
    /// `None`: over HTTP/2.
    single: Option<Single>,
    origin: Arc<Origin>,
}

impl Answer {
    pub(super) fn head(&self) -> &Response<Incoming> {
        &self.response
    }

    /// The next piece of the body; `None` at its end.
    pub(super) async fn frame(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        let frame = self.response.body_mut().frame();
        match &mut self.single {
            Some(single) => single.drive(frame).await,
            None => frame.await,
        }
    }

    /// Lets another request have the connection, if the answer was read to its end.
    pub(super) fn release(self) {
        if let Some(mut single) = self.single
            && single.is_idle()
        {
            self.origin.keep(|kept, now| kept.idle.push((single, now)));
        }
    }
}
