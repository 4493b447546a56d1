//! MQTT over WebSocket: its messages as a stream of bytes (MQTT-6.0.0).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tbmq_mqtt::session::Limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{
    self, Message,
    error::{CapacityError, ProtocolError},
    handshake::server::{ErrorResponse, Request, Response},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_PROTOCOL},
    },
    protocol::{CloseFrame, WebSocketConfig as Protocol, frame::coding::CloseCode},
};

use super::{Peer, config::WebSocketConfig};

/// Where MQTT is, as with TBMQ.
const PATH: &str = "/mqtt";

/// The sub-protocol that the standards ask for.
const MQTT: &str = "mqtt";

/// Bytes that a frame may have at least, whatever a packet may have.
const FRAME_BYTES_MIN: usize = 64 << 10;

/// Bytes that are read at once; an idle connection holds them.
const READ_BYTES: usize = 4 << 10;

/// Bytes of a frame that we write.
const WRITE_BYTES: usize = 16 << 10;

/// What the library may hold when a client does not read: a frame, and answers to pings.
const OUTPUT_BYTES_MAX: usize = 4 * WRITE_BYTES;

pub(super) type Error = Box<tungstenite::Error>;

/// How a listener speaks WebSocket.
#[derive(Debug)]
pub(super) struct WebSocket {
    /// The best first.
    sub_protocols: Vec<HeaderValue>,
    heeds_forward_headers: bool,
    protocol: Protocol,
}

impl WebSocket {
    /// # Errors
    /// A sub-protocol's name can't be one.
    pub(super) fn new(config: &WebSocketConfig, limits: &Limits, is_proxied: bool) -> Result<Self, String> {
        let mut names: Vec<_> = config.sub_protocols.iter().map(String::as_str).collect();
        names.sort_by_key(|name| *name != MQTT);
        let name = |name: &str| HeaderValue::from_str(name).map_err(|error| format!("{name:?}: {error}"));
        let frame_bytes = FRAME_BYTES_MIN.max(limits.packet_bytes as usize);
        Ok(Self {
            sub_protocols: names.into_iter().map(name).collect::<Result<_, _>>()?,
            heeds_forward_headers: config.forward_headers_enabled && !is_proxied,
            protocol: Protocol::default()
                .read_buffer_size(READ_BYTES)
                .write_buffer_size(0)
                .max_write_buffer_size(OUTPUT_BYTES_MAX)
                .max_frame_size(Some(frame_bytes))
                .max_message_size(Some(frame_bytes)),
        })
    }

    /// Whether a header may say what the client's address is.
    pub(super) fn heeds_forward_headers(&self) -> bool {
        self.heeds_forward_headers
    }

    /// Shakes hands. `is_trusted`: the other end of the socket may say where the client is.
    pub(super) async fn accept<S>(
        &self,
        stream: S,
        peer: &mut Peer,
        is_trusted: bool,
    ) -> Result<WebSocketStream<S>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        #[expect(clippy::result_large_err, reason = "the library's own signature")]
        let answer = |request: &Request, mut response: Response| {
            if request.uri().path() != PATH {
                return Err(not_found());
            }
            if self.heeds_forward_headers
                && is_trusted
                && let Some(address) = forwarded(request.headers())
            {
                peer.announced(address);
            }
            if let Some(name) = self.choose(request.headers()) {
                response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name.clone());
            }
            Ok(response)
        };
        let inner = tokio_tungstenite::accept_hdr_async_with_config(stream, answer, Some(self.protocol));
        let inner = inner.await.map_err(Box::new)?;
        Ok(WebSocketStream { inner, rest: Bytes::new(), farewell: CloseCode::Normal, is_closing: false })
    }

    /// The sub-protocol to agree to. `None`: the client goes on without one, or not at all (RFC 6455 §4.2.2).
    fn choose(&self, headers: &HeaderMap) -> Option<&HeaderValue> {
        let offers = |name: &HeaderValue| {
            let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
            let mut offered = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
            offered.any(|offer| offer.trim_ascii() == name.as_bytes())
        };
        self.sub_protocols.iter().find(|name| offers(name))
    }
}

fn not_found() -> ErrorResponse {
    let mut response = ErrorResponse::new(None);
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The client's address as proxies forward it: the first of `X-Forwarded-For`, else `X-Real-IP`.
fn forwarded(headers: &HeaderMap) -> Option<SocketAddr> {
    let read = |name: &str| {
        let text = headers.get(name)?.to_str().ok()?.split(',').next()?.trim();
        let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
        bare.or_else(|_| text.parse()).ok()
    };
    read("x-forwarded-for").or_else(|| read("x-real-ip"))
}

/// The bytes in a client's messages. Where a message or frame ends means nothing (MQTT-6.0.0-2).
#[derive(Debug)]
pub(crate) struct WebSocketStream<S> {
    inner: tokio_tungstenite::WebSocketStream<S>,
    /// What was not yet taken of a message.
    rest: Bytes,
    /// What the client is told at the end.
    farewell: CloseCode,
    is_closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketStream<S> {
    /// An end that the client is to blame for, which it is told in the close frame.
    fn refuse(
        &mut self,
        code: CloseCode,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> io::Error {
        self.farewell = code;
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketStream<S> {
    /// [`io::ErrorKind::InvalidData`]: the client does what it must not.
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            // Its memory goes back to the library.
            this.rest = Bytes::new();
            match ready!(Pin::new(&mut this.inner).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => this.rest = bytes,
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(this.refuse(CloseCode::Unsupported, "a text frame")));
                }
                // The library answers them when it is asked for the next message.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => {}
                Some(Err(error)) => {
                    let code = match &error {
                        tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseCode::Size,
                        tungstenite::Error::Utf8(_) => CloseCode::Unsupported,
                        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                            return Poll::Ready(Ok(()));
                        }
                        tungstenite::Error::Protocol(_) => CloseCode::Protocol,
                        _ => return Poll::Ready(Err(into_io(error))),
                    };
                    return Poll::Ready(Err(this.refuse(code, error)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..length]);
        this.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = Pin::new(&mut self.get_mut().inner);
        ready!(inner.as_mut().poll_ready(cx)).map_err(into_io)?;
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES)];
        inner.start_send(Message::Binary(Bytes::copy_from_slice(bytes))).map_err(into_io)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx).map_err(into_io)
    }

    /// Says goodbye and closes our side. What the client still sends can be read until it says goodbye, too.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut inner = Pin::new(&mut this.inner);
        if !this.is_closing {
            ready!(inner.as_mut().poll_ready(cx)).map_err(into_io)?;
            let close = CloseFrame { code: this.farewell, reason: "".into() };
            inner.as_mut().start_send(Message::Close(Some(close))).map_err(into_io)?;
            this.is_closing = true;
        }
        ready!(inner.as_mut().poll_flush(cx)).map_err(into_io)?;
        Pin::new(inner.get_mut().get_mut()).poll_shutdown(cx)
    }
}

fn into_io(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn mqtt_is_agreed_to_first_and_older_names_after_it() {
        let limits = crate::Config::default().limits();
        let web_socket = WebSocket::new(&WebSocketConfig::default(), &limits, false).unwrap();
        for (offered, agreed) in [
            ("mqtt", Some("mqtt")),
            ("mqttv3.1,mqtt", Some("mqtt")),
            ("mqttv5 , mqttv3.1", Some("mqttv3.1")),
            ("mqttv5", Some("mqttv5")),
            ("mqt, MQTT", None),
            ("", None),
        ] {
            let headers = headers(&[("sec-websocket-protocol", offered)]);
            assert_eq!(
                web_socket.choose(&headers),
                agreed.map(HeaderValue::from_static).as_ref(),
                "{offered}"
            );
        }
        assert_eq!(web_socket.choose(&HeaderMap::new()), None);
    }

    #[test]
    fn the_first_address_that_was_forwarded_is_the_clients() {
        let (many, real) = ("x-forwarded-for", "x-real-ip");
        for (lines, expected) in [
            (vec![(many, "192.0.2.7, 192.0.2.8"), (real, "192.0.2.9")], Some("192.0.2.7:0")),
            (vec![(many, "192.0.2.7:99")], Some("192.0.2.7:99")),
            (vec![(many, "2001:db8::7")], Some("[2001:db8::7]:0")),
            (vec![(many, "unknown"), (real, " 192.0.2.9 ")], Some("192.0.2.9:0")),
            (vec![(many, "unknown")], None),
            (vec![], None),
        ] {
            assert_eq!(forwarded(&headers(&lines)), expected.map(|text| text.parse().unwrap()), "{lines:?}");
        }
    }
}
