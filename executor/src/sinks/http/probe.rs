//! The connection check (spec §6.3.6), in stages: resolve, connect, tls, authenticate, response.
//!
//! The first three use a connection of their own; then HEAD is sent as messages are. `authenticate` ends with the head of
//! the answer and fails with 401 and 403; `response` fails with all other answers that are no success.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ::http::{HeaderValue, Method, StatusCode, header};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;
use url::Url;

use super::{
    client::{Endpoint, Load, Origins},
    config::Checked,
    connections::Answer,
};
use crate::{
    sink::{Outcome, ProbeReport},
    sinks::{egress::Egress, stages::Stages},
};

/// Tries the endpoint of a checked configuration.
pub(super) async fn run(
    checked: &Checked,
    origins: &Origins,
    egress: &Egress,
    deadline: Duration,
) -> ProbeReport {
    let mut stages = Stages::new(deadline);
    // A failed stage has put its text into the report.
    drop(try_all(&mut stages, checked, origins, egress).await);
    stages.report
}

async fn try_all(
    stages: &mut Stages,
    checked: &Checked,
    origins: &Origins,
    egress: &Egress,
) -> Result<(), String> {
    let url = &checked.url;
    let addresses = stages.run("resolve", resolve(url, egress)).await?;
    let stream = stages.run("connect", connect(url, &addresses)).await?;
    if url.scheme() == "https" {
        stages.run("tls", handshake(checked, stream)).await?;
    }
    let deadline = stages.deadline;
    let left = deadline.saturating_duration_since(Instant::now());
    let endpoint = origins.origin(checked).map(|origin| Endpoint::new(origin, Method::HEAD, checked, left));
    let answer = stages.run("authenticate", ask(endpoint.as_ref(), deadline)).await?;
    stages.run("response", judge(&endpoint?, answer, deadline)).await
}

fn port(url: &Url) -> u16 {
    url.port_or_known_default().unwrap_or_default()
}

async fn resolve(url: &Url, egress: &Egress) -> Result<(Vec<SocketAddr>, String), String> {
    let addresses = egress.resolve(url.host_str().unwrap_or_default(), port(url)).await?;
    let text: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    Ok((addresses, text.join(", ")))
}

async fn connect(url: &Url, addresses: &[SocketAddr]) -> Result<(TcpStream, String), String> {
    let name = url.domain().unwrap_or_default();
    let mut text = format!("{} has no address", url.host_str().unwrap_or_default());
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok((stream, address.to_string())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                text = format!("Connection refused: {name}/{address}");
            }
            Err(error) => text = format!("no connection to {name}/{address}: {error}"),
        }
    }
    Err(text)
}

async fn handshake(checked: &Checked, stream: TcpStream) -> Result<((), String), String> {
    let mut config = checked.config.credentials.tls_or_system()?;
    // As the client offers them.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let host = checked.url.host_str().unwrap_or_default();
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).map_err(|error| format!("{host} is no name for TLS: {error}"))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS with {host}:{} failed: {error}", port(&checked.url)))?;
    let (_, session) = stream.get_ref();
    let version = session.protocol_version().map_or_else(String::new, |version| format!("{version:?}"));
    let protocol = session.alpn_protocol().map(|name| format!(", {}", String::from_utf8_lossy(name)));
    Ok(((), version + &protocol.unwrap_or_default()))
}

/// Sends HEAD with all headers and credentials; fails when the answer is that these are not enough.
async fn ask(endpoint: Result<&Endpoint, &String>, deadline: Instant) -> Result<(Answer, String), String> {
    let endpoint = endpoint?;
    let answer = endpoint.ask(endpoint.request(Load::default()), deadline).await.map_err(text)?;
    let response = answer.head();
    let status = response.status();
    if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Ok((answer, "not refused".to_owned()));
    }
    let challenge = response.headers().get(header::WWW_AUTHENTICATE).map(HeaderValue::as_bytes);
    let challenge =
        challenge.map(|bytes| format!(": {}", String::from_utf8_lossy(bytes))).unwrap_or_default();
    Err(format!("{}{challenge}", endpoint.refusal(response)))
}

/// Reads the answer and says whether it would have been a success.
async fn judge(endpoint: &Endpoint, answer: Answer, deadline: Instant) -> Result<((), String), String> {
    let (status, version) = (answer.head().status(), answer.head().version());
    match endpoint.judge(answer, deadline).await {
        Outcome::Delivered => Ok(((), format!("{status} ({version:?}) from {}", endpoint.label()))),
        refusal => {
            let refuses_head =
                [StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED].contains(&status);
            let hint = if refuses_head {
                " (the check sends HEAD; the endpoint may still take messages)"
            } else {
                ""
            };
            Err(format!("{}{hint}", text(refusal)))
        }
    }
}

fn text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Delivered => String::new(),
        Outcome::Retry { text, .. } | Outcome::Rejected { text, .. } => text,
    }
}
