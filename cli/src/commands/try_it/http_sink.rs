//! `tbmqctl try http-sink`: an HTTP server that shows what integrations send.

use std::{
    convert::Infallible,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use clap::Args;
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};

use crate::{
    duration,
    failure::Failure,
    render::{Format, Output, note, write},
};

/// Larger bodies are answered with 413.
const BODY_BYTES_MAX: usize = 32 << 20;

/// Connections served at a time.
const CONNECTIONS_MAX: usize = 256;

/// Requests that wait to be printed.
const QUEUE_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Arguments {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8099)]
    port: u16,
    /// Status of every answer
    #[arg(long, value_name = "STATUS", default_value = "200", value_parser = status)]
    answer: StatusCode,
    /// Wait so long before each answer
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    delay: Option<Duration>,
    /// Stop after so many requests
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// One request as it arrived.
#[derive(Debug)]
struct Arrived {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let address = SocketAddr::new(arguments.address, arguments.port);
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::usage(format!("can't listen on {address}: {error}")).hint("--port 0 picks a free one")
    })?;
    let address = listener.local_addr().map_err(|error| Failure::bug(error.to_string()))?;
    let (queue, mut arrivals) = mpsc::channel(QUEUE_MAX);
    let mut accepting = tokio::spawn(accept(listener, queue, arguments));
    let listening = format!("listening http://{address}");
    // In JSON every line of stdout is a request.
    if matches!(output.format, Format::Table | Format::Wide) {
        write(&(listening + "\n"))?;
    } else {
        note(&listening);
    }
    let mut seen = 0;
    let ended = loop {
        if arguments.count.is_some_and(|count| seen >= count) {
            break Ok(());
        }
        tokio::select! {
            arrived = arrivals.recv() => {
                let Some((arrived, printed)) = arrived else {
                    break Err(Failure::bug("the server ended"));
                };
                seen += 1;
                output.print_item(|| text(&arrived), || None, || Some(value(&arrived)))?;
                drop(printed);
            }
            _ = tokio::signal::ctrl_c() => break Ok(()),
            _ = &mut accepting => break Err(Failure::bug("the server ended")),
        }
    };
    // Lets the last answer leave.
    accepting.abort();
    tokio::time::timeout(Duration::from_secs(1), async { while arrivals.recv().await.is_some() {} })
        .await
        .ok();
    note(&format!("{seen} {}", if seen == 1 { "request" } else { "requests" }));
    ended
}

type Queue = mpsc::Sender<(Arrived, tokio::sync::oneshot::Sender<Infallible>)>;

async fn accept(listener: TcpListener, queue: Queue, arguments: Arguments) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: they come back when connections close.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let queue = queue.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &queue, arguments));
            // A peer that goes away in the middle is no concern of this tool.
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
            drop(permit);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    queue: &Queue,
    arguments: Arguments,
) -> Result<Response<NoBody>, Infallible> {
    let answered = |status| {
        let mut response = Response::new(NoBody);
        *response.status_mut() = status;
        Ok(response)
    };
    let (head, body) = request.into_parts();
    let Some(body) = read(body).await else {
        return answered(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let header = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let arrived = Arrived {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: head.headers.iter().map(header).collect(),
        body,
    };
    // The answer leaves after the request was printed, so that what the sender counts can be seen.
    let (printed, wait) = tokio::sync::oneshot::channel();
    if queue.send((arrived, printed)).await.is_err() {
        return answered(StatusCode::SERVICE_UNAVAILABLE);
    }
    wait.await.ok();
    if let Some(delay) = arguments.delay {
        tokio::time::sleep(delay).await;
    }
    answered(arguments.answer)
}

/// The whole body, or `None` when it is too large or breaks off.
async fn read(body: Incoming) -> Option<Bytes> {
    let mut body = pin!(body);
    let mut whole = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            if whole.len() + data.len() > BODY_BYTES_MAX {
                return None;
            }
            whole.extend_from_slice(&data);
        }
    }
    Some(whole.into())
}

fn text(arrived: &Arrived) -> String {
    let mut text = format!("{} {}\n", arrived.method, arrived.path);
    // The rest says how it came here, not what.
    let boring = [
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "transfer-encoding",
    ];
    for (name, value) in arrived.headers.iter().filter(|(name, _)| !boring.contains(&name.as_str())) {
        writeln!(text, "  {name}: {}", printable(value)).expect("writing to a String does not fail");
    }
    match std::str::from_utf8(&arrived.body) {
        Ok("") => {}
        Ok(body) => writeln!(text, "  {}", printable(body)).expect("writing to a String does not fail"),
        Err(_) => writeln!(text, "  {} bytes: {}", arrived.body.len(), hex(&arrived.body))
            .expect("writing to a String does not fail"),
    }
    text
}

fn value(arrived: &Arrived) -> serde_json::Value {
    let headers: serde_json::Map<_, _> =
        arrived.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let mut value = serde_json::json!({ "method": arrived.method, "path": arrived.path, "headers": headers });
    match std::str::from_utf8(&arrived.body) {
        Ok(body) => value["body"] = body.into(),
        Err(_) => value["bodyHex"] = hex(&arrived.body).into(),
    }
    value
}

/// Without what moves the cursor or rings the bell.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

fn status(text: &str) -> Result<StatusCode, String> {
    // 1xx is no answer.
    text.parse()
        .ok()
        .filter(|status: &StatusCode| status.as_u16() >= 200)
        .ok_or_else(|| format!("{text:?} is not a status such as 200 or 503"))
}

/// An answer has a status and nothing else.
#[derive(Debug)]
struct NoBody;

impl Body for NoBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(body: &'static [u8]) -> Arrived {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Arrived {
            method: "POST".to_owned(),
            path: "/in?x=1".to_owned(),
            headers: vec![header("host", "localhost"), header("content-type", "application/json")],
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn a_request_is_shown_with_the_headers_that_say_what_it_is() {
        let expected = "POST /in?x=1\n  content-type: application/json\n  {\"t\":21.5}\n";
        assert_eq!(text(&arrived(b"{\"t\":21.5}")), expected);
    }

    #[test]
    fn what_is_not_text_is_shown_in_hex_and_escapes_are_disarmed() {
        assert!(text(&arrived(b"\xff\x00")).ends_with("  2 bytes: ff00\n"));
        assert!(text(&arrived(b"\x1b[2J")).ends_with("  \u{fffd}[2J\n"));
        assert_eq!(value(&arrived(b"\xff"))["bodyHex"], "ff");
    }

    #[test]
    fn an_answer_has_a_final_status() {
        assert_eq!(status("503"), Ok(StatusCode::SERVICE_UNAVAILABLE));
        for text in ["", "99", "100", "1000", "ok"] {
            assert!(status(text).is_err(), "{text}");
        }
    }
}
