//! Calls to a server that knows clients: that of a key set, or that of the HTTP provider.

use std::{sync::Arc, time::Duration};

use reqwest::{
    Client, ClientBuilder, Method,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    redirect::Policy,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tbmq_auth::external::{Credentials, Endpoint, Pem};
use tbmq_service::{config::Secret, tls};

/// Unused connections that are kept.
const IDLE_MAX: usize = 16;

/// Calls one server, in one way.
#[derive(Debug)]
pub(super) struct Caller {
    client: Client,
    endpoint: Endpoint,
    headers: HeaderMap,
    timeout: Duration,
    answer_bytes: usize,
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Why there is no answer. Says nothing of what was sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("{0}")]
    Io(String),
    #[error("there was no whole answer within {0:?}")]
    TimedOut(Duration),
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
}

impl Caller {
    /// For calls that take no longer than this, with answers that have no more bytes.
    ///
    /// # Errors
    /// Certificates can't be used.
    pub(super) fn open(endpoint: &Endpoint, timeout: Duration, answer_bytes: usize) -> Result<Self, String> {
        let headers = endpoint.headers.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no name of a header"))?;
            let mut value = HeaderValue::from_str(value.expose())
                .map_err(|_| format!("the value of the header {name} can't be sent"))?;
            value.set_sensitive(true);
            Ok((name, value))
        });
        let headers = headers.collect::<Result<HeaderMap, String>>()?;
        let client = ClientBuilder::new()
            .tls_backend_preconfigured(tls(&endpoint.credentials)?)
            // What is meant for one server is told no other.
            .redirect(Policy::none())
            .pool_max_idle_per_host(IDLE_MAX)
            .build()
            .map_err(|error| chain(&error))?;
        Ok(Self { client, endpoint: endpoint.clone(), headers, timeout, answer_bytes })
    }

    /// Gets what is at the server's address.
    pub(super) async fn get(&self) -> Result<Answer, Failed> {
        self.call(Method::GET, self.endpoint.url.clone(), None).await
    }

    /// Calls with this body, which is JSON.
    pub(super) async fn call(
        &self,
        method: Method,
        url: reqwest::Url,
        body: Option<String>,
    ) -> Result<Answer, Failed> {
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        if let Credentials::Basic { username, password } = &self.endpoint.credentials {
            request = request.basic_auth(username, Some(password.expose()));
        }
        // After the others: those that are configured take their place.
        let request = request.headers(self.headers.clone());
        let exchange = async {
            // The URL may hold a password.
            let io = |error: reqwest::Error| Failed::Io(chain(&error.without_url()));
            let mut response = request.send().await.map_err(io)?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(io)? {
                if body.len() + chunk.len() > self.answer_bytes {
                    return Err(Failed::TooLong(self.answer_bytes));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Answer { status: response.status().as_u16(), body })
        };
        let timed_out = Failed::TimedOut(self.timeout);
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or(Err(timed_out))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn tls(credentials: &Credentials) -> Result<ClientConfig, String> {
    let nothing = Pem::default();
    let pem = match credentials {
        Credentials::Pem(pem) => pem,
        Credentials::Anonymous | Credentials::Basic { .. } => &nothing,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &pem.ca_cert {
        Some(text) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("caCert", text)? {
                roots.add(certificate).map_err(|error| format!("credentials.caCert: {error}"))?;
            }
            builder.with_root_certificates(roots)
        }
        None => {
            let verifier = rustls_platform_verifier::Verifier::new(provider)
                .map_err(|error| format!("the system's trusted certificates can't be read: {error}"))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    match (&pem.cert, &pem.private_key) {
        (Some(chain), Some(key)) => {
            let password = pem.password.as_ref().map(|password| Secret::new(password.expose()));
            let key =
                tls::private_key(key.expose(), "credentials.privateKey", &password.unwrap_or_default())?;
            builder
                .with_client_auth_cert(certificates("cert", chain)?, key)
                .map_err(|error| format!("credentials.cert and credentials.privateKey don't fit: {error}"))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(field: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    all.ok()
        .filter(|all| !all.is_empty())
        .ok_or_else(|| format!("credentials.{field}: no certificate in PEM"))
}

#[cfg(test)]
pub(super) mod server;
#[cfg(test)]
mod tests;
