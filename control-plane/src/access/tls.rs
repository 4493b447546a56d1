//! TLS of the gRPC server.

use std::{io, path::PathBuf, time::Duration};

use futures_util::{Stream, StreamExt as _};
use tbmq_service::{
    config::Secret,
    tls::{self, Named, Pair, ServerTls, Source, Told},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::config::{ClientAuth, TlsConfig};
use crate::metrics::Metrics;

/// How long a client may take to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes at once; further connections wait.
const HANDSHAKES_MAX: usize = 512;

/// The server's TLS, as its files last held it.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    server: ServerTls,
    reload_interval: Duration,
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
        let (cert, key) = ("CONTROL_GRPC_TLS_PEM_CERT", "CONTROL_GRPC_TLS_PEM_KEY");
        if config.pem_cert.is_none() && config.pem_key.is_none() {
            return match config.client_ca {
                Some(_) => Err(format!("CONTROL_GRPC_TLS_CLIENT_CA needs {cert}")),
                None => Ok(None),
            };
        }
        let needed = |path: &Option<PathBuf>, setting: &str, other: &str| match path {
            Some(path) => Ok(Named::new(setting, path)),
            None => Err(format!("{other} needs {setting}")),
        };
        let server = ServerTls::open(Source {
            own: Pair {
                certificate: needed(&config.pem_cert, cert, key)?,
                key: needed(&config.pem_key, key, cert)?,
                key_password: Secret::default(),
            },
            more: Vec::new(),
            client_ca: config.client_ca.as_ref().map(|path| Named::new("CONTROL_GRPC_TLS_CLIENT_CA", path)),
            client_auth: match config.client_auth {
                ClientAuth::Optional => tls::ClientAuth::Optional,
                ClientAuth::Required => tls::ClientAuth::Required,
            },
            client_crls: Vec::new(),
            skips_validity: false,
            versions: rustls::DEFAULT_VERSIONS,
            cipher_suites: Vec::new(),
            alpn: vec![b"h2".to_vec()],
        })?;
        Ok(Some(Self { server, reload_interval: config.reload_interval }))
    }

    /// Takes over what changes in the files; what can't be used changes nothing. Never ends.
    pub(crate) async fn follow(self, metrics: Metrics) {
        let tell = |told: Told<'_>| match told {
            Told::InUse(current) => metrics.tls_not_after.set(current),
            Told::Refused => _ = metrics.tls_reload_failures.inc(),
            // There are no lists of revoked certificates.
            Told::Overdue(_) => {}
        };
        self.server.follow(self.reload_interval, tell).await;
    }

    /// Shakes hands with those who connect; those who can't are dropped and counted.
    pub(crate) fn accept<S: Stream<Item = io::Result<TcpStream>>>(
        &self,
        connections: S,
        metrics: Metrics,
    ) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> + use<S> {
        let server = self.server.clone();
        let shake = move |connection: io::Result<TcpStream>| {
            let acceptor = TlsAcceptor::from(server.current().config.clone());
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
