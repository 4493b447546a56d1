//! An HTTP server that answers well or badly.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

/// What every request is answered.
#[derive(Clone, Debug)]
pub(in crate::auth) enum Reply {
    Answer(u16, String),
    /// To another place.
    Redirect(String),
    /// Nothing, ever.
    Silence,
    /// The head, and no body, ever.
    Half,
    /// A body that does not end.
    Endless,
    /// The connection ends.
    Cut,
}

impl Reply {
    pub(in crate::auth) fn json(value: &serde_json::Value) -> Self {
        Self::Answer(200, value.to_string())
    }
}

/// A server on the loopback interface; it stops when dropped.
pub(in crate::auth) struct Server {
    pub(in crate::auth) address: SocketAddr,
    reply: Arc<Mutex<Reply>>,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(in crate::auth) async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reply, requests) = (Arc::new(Mutex::new(reply)), Arc::<Mutex<Vec<String>>>::default());
        let task = tokio::spawn({
            let (reply, requests) = (reply.clone(), requests.clone());
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (reply, requests) = (reply.clone(), requests.clone());
                    tokio::spawn(serve(stream, reply, requests));
                }
            }
        });
        Self { address, reply, requests, task }
    }

    pub(in crate::auth) fn set(&self, reply: Reply) {
        *self.reply.lock() = reply;
    }

    /// All that came, head and body.
    pub(in crate::auth) fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }

    pub(in crate::auth) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Answers one request.
pub(in crate::auth) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    reply: Arc<Mutex<Reply>>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        match stream.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    requests.lock().push(String::from_utf8(request).unwrap());
    let reply = reply.lock().clone();
    let head =
        |status: u16, fields: &str| format!("HTTP/1.1 {status} x\r\nconnection: close\r\n{fields}\r\n");
    let (text, rest) = match reply {
        Reply::Answer(status, body) => {
            (head(status, &format!("content-length: {}\r\n", body.len())) + &body, Rest::End)
        }
        Reply::Redirect(to) => (head(307, &format!("location: {to}\r\ncontent-length: 0\r\n")), Rest::End),
        Reply::Silence => (String::new(), Rest::Nothing),
        Reply::Half => (head(200, "content-length: 10\r\n"), Rest::Nothing),
        Reply::Endless => (head(200, ""), Rest::More),
        Reply::Cut => (String::new(), Rest::End),
    };
    // The other end may have gone.
    stream.write_all(text.as_bytes()).await.ok();
    match rest {
        Rest::End => drop(stream.shutdown().await.ok()),
        Rest::Nothing => std::future::pending().await,
        Rest::More => while stream.write_all(&[b'x'; 4096]).await.is_ok() {},
    }
}

/// What comes after the first part of an answer.
enum Rest {
    End,
    Nothing,
    More,
}

fn is_whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = str::from_utf8(&request[..end]).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    request.len() >= end + 4 + length.map_or(0, |length| length.parse().unwrap())
}
