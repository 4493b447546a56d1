//! Runs a [`Session`] on a socket, inside [`Sink::poll_outcome`]: there is no task and no queue between the driver and
//! the socket, and what is submitted at once leaves in one write.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::future::BoxFuture;
use tbmq_integration::Millis;
use tbmq_mqtt::{codec, packet::ProtocolVersion};
use tokio::{
    io::ReadBuf,
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{
    dial::{Connection, Dialer, LIMITS, Stream},
    publisher::Publisher,
    session::{Session, Settings},
};
use crate::{
    sink::{Busy, Message, Outcome, Sink, SinkState, Ticket},
    sinks::stages::Stages,
};

/// Bytes read at once; they lie on the stack, so that an idle connection owns no buffer.
const READ_BYTES: usize = 8 << 10;

/// A running MQTT integration.
pub(super) struct MqttSink {
    session: Session,
    version: ProtocolVersion,
    dialer: Arc<Dialer>,
    link: Link,
    /// The session's zero.
    epoch: Instant,
    /// Rings at the session's next deadline.
    alarm: Pin<Box<Sleep>>,
    /// The task of the last pending poll.
    waker: Option<Waker>,
}

enum Link {
    Down,
    Dialing(BoxFuture<'static, Result<Connection, String>>),
    Up(Wire),
}

struct Wire {
    stream: Box<dyn Stream>,
    /// The beginning of a packet.
    read: BytesMut,
    is_flushed: bool,
}

impl fmt::Debug for MqttSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MqttSink")
            .field("dialer", &self.dialer)
            .field("state", &self.session.state())
            .finish_non_exhaustive()
    }
}

impl MqttSink {
    /// A sink on a connection; further ones come from `dialer`.
    pub(super) fn new(
        settings: Settings,
        publisher: Publisher,
        dialer: Arc<Dialer>,
        connection: Connection,
    ) -> Self {
        let epoch = Instant::now();
        let version = publisher.version;
        let session = Session::new(settings, publisher, Millis(0), connection.peer);
        let link = Link::Up(Wire::new(connection));
        let alarm = Box::pin(sleep_until(epoch));
        Self { session, version, dialer, link, epoch, alarm, waker: None }
    }

    fn now(&self) -> Millis {
        Millis(self.epoch.elapsed().as_millis() as u64)
    }

    /// Does what can be done: connects, writes, reads, looks at the clock. Afterwards the task of `cx` is woken when
    /// there is more.
    fn poll_work(&mut self, cx: &mut Context<'_>) {
        loop {
            let now = self.now();
            self.session.tick(now);
            match &mut self.link {
                Link::Down if self.session.begins_attempt(now) => {
                    let dialer = self.dialer.clone();
                    self.link = Link::Dialing(Box::pin(async move {
                        dialer.dial(&mut Stages::new(dialer.timeout())).await
                    }));
                    continue;
                }
                Link::Down => {}
                Link::Dialing(dialing) => match dialing.as_mut().poll(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(connection)) => {
                        tracing::debug!(broker = self.dialer.broker(), "connected again");
                        self.session.connected(now, connection.peer);
                        self.link = Link::Up(Wire::new(connection));
                        continue;
                    }
                    Poll::Ready(Err(text)) => {
                        tracing::debug!(error = text, "the broker is still away");
                        self.session.refused(now, text);
                        self.link = Link::Down;
                        continue;
                    }
                },
                Link::Up(wire) => {
                    if self.session.is_online()
                        && let Poll::Ready(Err(reason)) = wire.poll(cx, &mut self.session, self.version, now)
                    {
                        self.session.lost(now, reason);
                    }
                    if !self.session.is_online() {
                        self.link = Link::Down;
                        continue;
                    }
                }
            }
            if self.poll_alarm(cx).is_pending() {
                return;
            }
        }
    }

    /// Ready when the session's deadline has come.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Millis(deadline)) = self.session.next_deadline() else { return Poll::Pending };
        let deadline = self.epoch + Duration::from_millis(deadline);
        if self.alarm.deadline() != deadline {
            self.alarm.as_mut().reset(deadline);
        }
        self.alarm.as_mut().poll(cx)
    }
}

impl Wire {
    fn new(connection: Connection) -> Self {
        Self { stream: connection.stream, read: connection.read, is_flushed: true }
    }

    /// Writes and reads until neither goes on; ready only with the reason why the connection is over.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        version: ProtocolVersion,
        now: Millis,
    ) -> Poll<Result<(), String>> {
        let lost = |error: io::Error| format!("the connection was lost: {error}");
        loop {
            while let Some(packet) = codec::decode(&mut self.read, Some(version), &LIMITS)
                .map_err(|error| format!("the broker sent what is no packet: {error}"))?
            {
                session.received(now, packet);
                if !session.is_online() {
                    return Poll::Pending;
                }
            }
            if self.poll_write(cx, session, now)?.is_pending() && !session.reads() {
                return Poll::Pending;
            }
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *self.stream).poll_read(cx, &mut buffer)).map_err(lost)?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err("the broker closed the connection".to_owned()));
            }
            self.read.extend_from_slice(buffer.filled());
        }
    }

    /// Ready when everything is written and has left the process.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        now: Millis,
    ) -> Poll<Result<(), String>> {
        let lost = |error: io::Error| format!("the connection was lost: {error}");
        loop {
            while !session.output().is_empty() {
                let count =
                    ready!(Pin::new(&mut *self.stream).poll_write(cx, session.output())).map_err(lost)?;
                if count == 0 {
                    return Poll::Ready(Err("the connection takes no more bytes".to_owned()));
                }
                session.wrote(now, count);
                self.is_flushed = false;
            }
            if self.is_flushed {
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut *self.stream).poll_flush(cx)).map_err(lost)?;
            self.is_flushed = true;
            session.flushed(now);
        }
    }
}

#[async_trait]
impl Sink for MqttSink {
    fn submit(&mut self, message: Message, ticket: Ticket) -> Result<(), Busy> {
        let now = self.now();
        self.session.submit(now, message, ticket)?;
        // It is written when the sink is polled.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        if let Some(answer) = self.session.poll_outcome() {
            return Poll::Ready(answer);
        }
        self.poll_work(cx);
        match self.session.poll_outcome() {
            Some(answer) => Poll::Ready(answer),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn state(&self) -> SinkState {
        self.session.state()
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Vec<Ticket> {
        self.session.finish();
        let acknowledged = std::future::poll_fn(|cx| {
            self.poll_work(cx);
            if self.session.waits() { Poll::Pending } else { Poll::Ready(()) }
        });
        // What is without an answer by then is abandoned with the connection.
        drop(timeout(deadline, acknowledged).await);
        let now = self.now();
        if self.session.say_goodbye(now)
            && let Link::Up(mut wire) = self.link
        {
            // Not waited for: a socket that has no room now has a broker that does not read.
            std::future::poll_fn(|cx| {
                if wire.poll_write(cx, &mut self.session, now).is_ready() {
                    drop(Pin::new(&mut *wire.stream).poll_shutdown(cx));
                }
                Poll::Ready(())
            })
            .await;
        }
        self.session.unresolved()
    }
}
