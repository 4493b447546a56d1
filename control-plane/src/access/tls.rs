//! TLS of the gRPC server: read from files, and read again when they change.

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt as _};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    config::{ClientAuth, TlsConfig},
    file,
};
use crate::metrics::Metrics;

/// How long a client may take to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes at once; further connections wait.
const HANDSHAKES_MAX: usize = 512;

/// What the files hold.
#[derive(Clone, PartialEq, Eq)]
struct Material {
    chain: String,
    key: String,
    client_ca: Option<String>,
}

/// The server's TLS settings, as the files last held them.
#[derive(Clone)]
pub(crate) struct Tls {
    config: TlsConfig,
    current: Arc<ArcSwap<ServerConfig>>,
    read: Material,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files; `None`: no certificate is set.
    ///
    /// # Errors
    /// A text that names the setting.
    pub(crate) fn open(config: &TlsConfig) -> Result<Option<Self>, String> {
        if config.client_ca.is_none() && !config.client_roles.is_empty() {
            return Err("CONTROL_GRPC_TLS_CLIENT_ROLES needs CONTROL_GRPC_TLS_CLIENT_CA".to_owned());
        }
        if config.pem_cert.is_none() && config.pem_key.is_none() {
            return match config.client_ca {
                Some(_) => Err("CONTROL_GRPC_TLS_CLIENT_CA needs CONTROL_GRPC_TLS_PEM_CERT".to_owned()),
                None => Ok(None),
            };
        }
        let read = Material::read(config)?;
        let current = Arc::new(ArcSwap::from_pointee(read.build(config.client_auth)?));
        Ok(Some(Self { config: config.clone(), current, read }))
    }

    /// Takes over what changes in the files; what can't be used changes nothing. Never ends.
    pub(crate) async fn follow(mut self, metrics: Metrics) {
        let mut refused = None;
        loop {
            tokio::time::sleep(self.config.reload_interval.max(Duration::from_millis(50))).await;
            let config = self.config.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || Material::read(&config)).await else {
                return;
            };
            let built = match &found {
                Ok(found) if *found == self.read => {
                    refused = None;
                    continue;
                }
                Ok(found) => found.build(self.config.client_auth),
                Err(error) => Err(error.clone()),
            };
            match (built, found) {
                (Ok(built), Ok(found)) => {
                    self.current.store(Arc::new(built));
                    self.read = found;
                    refused = None;
                    tracing::info!("the certificates of the gRPC server were read anew");
                }
                (Err(error), _) if refused.as_ref() != Some(&error) => {
                    metrics.tls_reload_failures.inc();
                    tracing::warn!(
                        error,
                        "the new certificates of the gRPC server can't be used; the old ones stay"
                    );
                    refused = Some(error);
                }
                _ => {}
            }
        }
    }

    /// Shakes hands with those who connect; those who can't are dropped and counted.
    pub(crate) fn accept<S: Stream<Item = io::Result<TcpStream>>>(
        &self,
        connections: S,
        metrics: Metrics,
    ) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> + use<S> {
        let current = self.current.clone();
        let shake = move |connection: io::Result<TcpStream>| {
            let acceptor = TlsAcceptor::from(current.load_full());
            let metrics = metrics.clone();
            async move {
                let shaken = match connection {
                    Ok(connection) => {
                        tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(connection)).await
                    }
                    // The server says so and goes on.
                    Err(error) => return Some(Err(error)),
                };
                match shaken {
                    Ok(Ok(connection)) => return Some(Ok(connection)),
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
                metrics.handshakes_failed.inc();
                None
            }
        };
        connections.map(shake).buffer_unordered(HANDSHAKES_MAX).filter_map(std::future::ready)
    }
}

impl Material {
    fn read(config: &TlsConfig) -> Result<Self, String> {
        let needed = |path: &Option<std::path::PathBuf>, setting: &str, other: &str| match path {
            Some(path) => file::text(path, setting),
            None => Err(format!("{other} needs {setting}")),
        };
        let (cert, key) = ("CONTROL_GRPC_TLS_PEM_CERT", "CONTROL_GRPC_TLS_PEM_KEY");
        let client_ca = config.client_ca.as_ref();
        Ok(Self {
            chain: needed(&config.pem_cert, cert, key)?,
            key: needed(&config.pem_key, key, cert)?,
            client_ca: client_ca.map(|path| file::text(path, "CONTROL_GRPC_TLS_CLIENT_CA")).transpose()?,
        })
    }

    fn build(&self, client_auth: ClientAuth) -> Result<ServerConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&self.chain, "CONTROL_GRPC_TLS_PEM_CERT")?;
        // Not the error's own text: it may hold parts of what was read.
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|_| "CONTROL_GRPC_TLS_PEM_KEY: the file holds no private key in PEM".to_owned())?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(text) => {
                let unusable = |error: &dyn std::fmt::Display| format!("CONTROL_GRPC_TLS_CLIENT_CA: {error}");
                let mut roots = RootCertStore::empty();
                for certificate in certificates(text, "CONTROL_GRPC_TLS_CLIENT_CA")? {
                    roots.add(certificate).map_err(|error| unusable(&error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match client_auth {
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                    ClientAuth::Required => verifier,
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(&error))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            format!("CONTROL_GRPC_TLS_PEM_CERT and CONTROL_GRPC_TLS_PEM_KEY don't fit: {error}")
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(text: &str, setting: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{setting}: not a certificate in PEM: {error:?}"))?;
    if all.is_empty() {
        return Err(format!("{setting}: the file holds no certificate in PEM"));
    }
    Ok(all)
}
