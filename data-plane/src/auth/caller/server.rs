//! An HTTP server that answers well or badly.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// What every request is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Answer(u16, String),
    /// This body for whoever shows this as `authorization`; 401 for everyone else.
    Guarded(String, String),
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
    pub(crate) fn json(value: &serde_json::Value) -> Self {
        Self::Answer(200, value.to_string())
    }
}

/// A server on the loopback interface; it stops when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
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
    pub(crate) async fn start(reply: Reply) -> Self {
        Self::open(reply, None).await
    }

    /// Over TLS, as `localhost`: it has a certificate of this authority, and wants one of its clients.
    pub(crate) async fn secured(reply: Reply, authority: &Authority) -> Self {
        Self::open(reply, Some(authority.acceptor())).await
    }

    async fn open(reply: Reply, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reply, requests) = (Arc::new(Mutex::new(reply)), Arc::<Mutex<Vec<String>>>::default());
        let task = tokio::spawn({
            let (reply, requests) = (reply.clone(), requests.clone());
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (reply, requests) = (reply.clone(), requests.clone());
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        match acceptor {
                            None => serve(stream, reply, requests).await,
                            Some(acceptor) => {
                                if let Ok(stream) = acceptor.accept(stream).await {
                                    serve(stream, reply, requests).await;
                                }
                            }
                        }
                    });
                }
            }
        });
        Self { address, reply, requests, task }
    }

    pub(crate) fn set(&self, reply: Reply) {
        *self.reply.lock() = reply;
    }

    /// All that came, head and body.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Of one that is secured.
    pub(crate) fn secured_url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }
}

/// An authority.
pub(crate) struct Authority {
    pub(crate) pem: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

/// Certificate and key, in PEM.
pub(crate) type Pair = (String, String);

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(parameters, key) }
    }

    pub(crate) fn issue(&self, common_name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn acceptor(&self) -> TlsAcceptor {
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.pem)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let (own, key) = self.issue("server");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(
                vec![certificate(&own)],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            );
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }
}

/// Answers one request.
async fn serve(
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
    let request = String::from_utf8(request).unwrap();
    requests.lock().push(request.clone());
    let reply = reply.lock().clone();
    let head =
        |status: u16, fields: &str| format!("HTTP/1.1 {status} x\r\nconnection: close\r\n{fields}\r\n");
    let answer =
        |status, body: &str| (head(status, &format!("content-length: {}\r\n", body.len())) + body, Rest::End);
    let (text, rest) = match reply {
        Reply::Answer(status, body) => answer(status, &body),
        Reply::Guarded(shown, body) if request.contains(&format!("authorization: {shown}\r\n")) => {
            answer(200, &body)
        }
        Reply::Guarded(..) => answer(401, ""),
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
