//! One attempt to connect: look-up, TCP, TLS, CONNECT and CONNACK, each a stage with its time.

use std::{fmt, iter, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tbmq_mqtt::{
    codec::{self, Limits, property::PropertyId},
    packet::{ConnAck, Packet, ProtocolVersion, Qos, ReasonCode},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    config::Checked,
    publisher::{PACKET_BYTES_MAX, Peer},
    session::said,
};
use crate::sinks::{
    egress::{Egress, LookupError},
    stages::Stages,
};

/// How the text of a refused CONNECT begins in TBMQ.
const RESULT_CODE: &str = "Result code is: ";

/// The longest packet that is taken from a broker: nothing was subscribed to, and acknowledgements are short.
pub(super) const LIMITS: Limits = Limits { packet_bytes: 256 << 10 };

/// What a connection reads and writes, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection whose CONNECT was accepted.
pub(super) struct Connection {
    pub stream: Box<dyn Stream>,
    pub peer: Peer,
    /// What came after the CONNACK.
    pub read: BytesMut,
}

impl Connection {
    /// Ends it as the protocol wants, without waiting for a broker that does not read.
    pub(super) async fn end(mut self) {
        let goodbye = async {
            // DISCONNECT, the same in all versions.
            self.stream.write_all(&[0xe0, 0]).await?;
            self.stream.shutdown().await
        };
        // The broker notices the end in any case.
        drop(timeout(Duration::from_secs(1), goodbye).await);
    }
}

/// Makes connections of one integration.
pub(super) struct Dialer {
    checked: Checked,
    client_id: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    egress: Egress,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("broker", &self.broker()).finish_non_exhaustive()
    }
}

impl Dialer {
    /// # Errors
    /// A text for people when there are no TLS settings to be had.
    pub(super) fn new(checked: Checked, client_id: String, egress: Egress) -> Result<Self, String> {
        let tls = if checked.uses_tls() {
            let config = checked.config.credentials.tls_or_system()?;
            let host = checked.host().to_owned();
            let name = ServerName::try_from(host.clone())
                .map_err(|error| format!("{host} is no name for TLS: {error}"))?;
            Some((TlsConnector::from(Arc::new(config)), name))
        } else {
            None
        };
        Ok(Self { checked, client_id, tls, egress })
    }

    /// Host and port, for people.
    pub(super) fn broker(&self) -> String {
        format!("{}:{}", self.checked.config.host.trim(), self.checked.port())
    }

    /// The configured limit of an attempt.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.checked.config.connect_timeout_sec.into())
    }

    /// Connects, within the time of `stages`.
    ///
    /// # Errors
    /// A text for people that begins as TBMQ's does; the last of `stages` is the one that failed.
    pub(super) async fn dial(&self, stages: &mut Stages) -> Result<Connection, String> {
        self.connect(stages).await.map_err(|text| {
            // TBMQ's own sentence, and ours.
            let link = if text.starts_with(RESULT_CODE) { ". " } else { ": " };
            format!("Failed to connect to MQTT broker at {}{link}{text}", self.broker())
        })
    }

    async fn connect(&self, stages: &mut Stages) -> Result<Connection, String> {
        let addresses = stages.run("resolve", self.resolve()).await?;
        let deadline = stages.deadline;
        let tcp = stages.run("connect", connect(&addresses, deadline)).await?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some((connector, name)) => {
                let handshake = async {
                    let stream = connector.connect(name.clone(), tcp).await;
                    let stream = stream.map_err(|error| format!("TLS failed: {error}"))?;
                    let version = stream.get_ref().1.protocol_version();
                    let text = version.map_or_else(String::new, |version| format!("{version:?}"));
                    Ok((stream, text))
                };
                Box::new(stages.run("tls", handshake).await?)
            }
        };
        stages.run("authenticate", self.authenticate(stream)).await
    }

    /// The addresses of the host that may be connected to, looked up anew for each attempt.
    async fn resolve(&self) -> Result<(Vec<SocketAddr>, String), String> {
        let (host, port) = (self.checked.host(), self.checked.port());
        let addresses = self.egress.lookup(host, port).await.map_err(|error| match error {
            LookupError::Refused { text } => text,
            LookupError::Unresolved { host, reason } => {
                format!("Unable to resolve provided hostname: {host} ({reason})")
            }
        })?;
        let text: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
        Ok((addresses, text.join(", ")))
    }

    async fn authenticate(&self, mut stream: Box<dyn Stream>) -> Result<(Connection, String), String> {
        let connect = Packet::Connect(Box::new(self.checked.connect(&self.client_id)));
        let version = self.checked.version;
        let mut bytes = BytesMut::new();
        codec::encode(&connect, version, &mut bytes);
        let gone = |error| format!("the connection ended before the CONNACK: {error}");
        stream.write_all(&bytes).await.map_err(gone)?;
        stream.flush().await.map_err(gone)?;
        let mut read = BytesMut::new();
        let (connack, version) = loop {
            if let Some(answer) = connack(&mut read, version)? {
                break answer;
            }
            if stream.read_buf(&mut read).await.map_err(gone)? == 0 {
                return Err("the broker closed the connection without a CONNACK".to_owned());
            }
        };
        if connack.reason != ReasonCode::Success {
            let words = connack.properties.text(PropertyId::ReasonString);
            let words = words.map(|words| format!(" ({})", &*words)).unwrap_or_default();
            return Err(format!("{RESULT_CODE}{}{words}", code_name(connack.reason, version)));
        }
        let peer = Peer::of(&connack, version);
        Ok((Connection { stream, peer, read }, accepted(&peer)))
    }
}

/// Connects to the first address that answers; each gets its share of the time that is left.
async fn connect(addresses: &[SocketAddr], deadline: Instant) -> Result<(TcpStream, String), String> {
    let mut text = String::new();
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - index) as u32;
        text = match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A failure would only cost time.
                stream.set_nodelay(true).ok();
                return Ok((stream, address.to_string()));
            }
            Ok(Err(error)) => format!("no connection to {address}: {error}"),
            Err(_) => format!("no connection to {address} within {} ms", share.as_millis()),
        };
    }
    Err(text)
}

/// The answer to a CONNECT, when it is complete, and the version that it is written in.
fn connack(
    read: &mut BytesMut,
    version: ProtocolVersion,
) -> Result<Option<(ConnAck, ProtocolVersion)>, String> {
    // A broker that does not know MQTT 5 answers in the only form that it knows.
    let version = if read.starts_with(&[0x20, 2]) { version.min(ProtocolVersion::V311) } else { version };
    match codec::decode(read, Some(version), &LIMITS) {
        Ok(None) => Ok(None),
        Ok(Some(Packet::ConnAck(connack))) => Ok(Some((connack, version))),
        Ok(Some(Packet::Disconnect(disconnect))) => {
            let words = disconnect.properties.text(PropertyId::ReasonString);
            Err(format!("the broker disconnected: {}", said(disconnect.reason, words)))
        }
        Ok(Some(Packet::Auth(_))) => Err("the broker wants enhanced authentication".to_owned()),
        Ok(Some(_)) => Err("the broker answered CONNECT with another packet than CONNACK".to_owned()),
        Err(error) => Err(format!("the broker's answer to CONNECT can't be understood: {error}")),
    }
}

/// What an accepted CONNECT told, where it limits the sink.
fn accepted(peer: &Peer) -> String {
    let limit = |is_given: bool, text: &str, number: usize| is_given.then(|| format!("{text} {number}"));
    let (receive_maximum, qos_max) = (peer.receive_maximum, peer.qos_max);
    let limits = [
        limit(receive_maximum < u16::MAX, "receive maximum", receive_maximum.into()),
        limit(peer.packet_bytes_max < PACKET_BYTES_MAX, "maximum packet size", peer.packet_bytes_max),
        limit(qos_max < Qos::ExactlyOnce, "maximum QoS", qos_max.bits().into()),
        (!peer.retains).then(|| "no retained messages".to_owned()),
    ];
    let told = iter::once("CONNECTION_ACCEPTED".to_owned()).chain(limits.into_iter().flatten());
    told.collect::<Vec<_>>().join(", ")
}

/// The names that TBMQ shows for refusals.
fn code_name(reason: ReasonCode, version: ProtocolVersion) -> String {
    let name = match (reason, version.is_v5()) {
        (ReasonCode::UnsupportedProtocolVersion, false) => "UNACCEPTABLE_PROTOCOL_VERSION",
        (ReasonCode::ClientIdentifierNotValid, false) => "IDENTIFIER_REJECTED",
        (ReasonCode::ServerUnavailable, false) => "SERVER_UNAVAILABLE",
        (ReasonCode::BadUserNameOrPassword, false) => "BAD_USER_NAME_OR_PASSWORD",
        (ReasonCode::NotAuthorized, false) => "NOT_AUTHORIZED",
        (ReasonCode::UnspecifiedError, _) => "UNSPECIFIED_ERROR",
        (ReasonCode::MalformedPacket, _) => "MALFORMED_PACKET",
        (ReasonCode::ProtocolError, _) => "PROTOCOL_ERROR",
        (ReasonCode::ImplementationSpecificError, _) => "IMPLEMENTATION_SPECIFIC",
        (ReasonCode::UnsupportedProtocolVersion, true) => "UNSUPPORTED_PROTOCOL_VERSION",
        (ReasonCode::ClientIdentifierNotValid, true) => "CLIENT_IDENTIFIER_NOT_VALID",
        (ReasonCode::BadUserNameOrPassword, true) => "BAD_USERNAME_OR_PASSWORD",
        (ReasonCode::NotAuthorized, true) => "NOT_AUTHORIZED_5",
        (ReasonCode::ServerUnavailable, true) => "SERVER_UNAVAILABLE_5",
        (ReasonCode::ServerBusy, _) => "SERVER_BUSY",
        (ReasonCode::Banned, _) => "BANNED",
        (ReasonCode::BadAuthenticationMethod, _) => "BAD_AUTHENTICATION_METHOD",
        (ReasonCode::TopicNameInvalid, _) => "TOPIC_NAME_INVALID",
        (ReasonCode::PacketTooLarge, _) => "PACKET_TOO_LARGE",
        (ReasonCode::QuotaExceeded, _) => "QUOTA_EXCEEDED",
        (ReasonCode::PayloadFormatInvalid, _) => "PAYLOAD_FORMAT_INVALID",
        (ReasonCode::RetainNotSupported, _) => "RETAIN_NOT_SUPPORTED",
        (ReasonCode::QosNotSupported, _) => "QOS_NOT_SUPPORTED",
        (ReasonCode::UseAnotherServer, _) => "USE_ANOTHER_SERVER",
        (ReasonCode::ServerMoved, _) => "SERVER_MOVED",
        (ReasonCode::ConnectionRateExceeded, _) => "CONNECTION_RATE_EXCEEDED",
        (other, _) => return format!("{other:?}"),
    };
    format!("CONNECTION_REFUSED_{name}")
}
