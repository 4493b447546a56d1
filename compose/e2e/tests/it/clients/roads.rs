//! The ways to the broker: TCP, TLS, WebSocket, secure WebSocket.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tbmq_harness::postgres::free_port;
use tempfile::TempDir;

/// A way to the broker.
pub(super) struct Road {
    pub(super) name: &'static str,
    /// `mqtt`, `mqtts`, `ws` or `wss`.
    pub(super) scheme: &'static str,
    pub(super) address: SocketAddr,
    /// The file with the authority that the broker's certificate is of, for TLS.
    pub(super) authority: Option<String>,
}

impl Road {
    pub(super) fn url(&self) -> String {
        let path = if self.scheme.starts_with("ws") { "/mqtt" } else { "" };
        format!("{}://{}{path}", self.scheme, self.address)
    }
}

/// All of them, with what the broker is told about them.
pub(super) struct Roads {
    pub(super) all: Vec<Road>,
    settings: Vec<(String, String)>,
    _folder: TempDir,
}

impl Roads {
    /// Takes a free port for each listener, and makes an authority and a certificate.
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        certify(folder.path())?;
        let file = |name: &str| folder.path().join(name).display().to_string();
        let (mut all, mut settings) = (Vec::new(), Vec::new());
        for (listener, name, scheme, is_secure) in [
            ("TCP", "TCP", "mqtt", false),
            ("SSL", "TLS", "mqtts", true),
            ("WS", "WebSocket", "ws", false),
            ("WSS", "secure WebSocket", "wss", true),
        ] {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            let mut set = |key: &str, value: String| {
                settings.push((format!("LISTENER_{listener}_{key}"), value));
            };
            set("ENABLED", "true".to_owned());
            set("BIND_ADDRESS", address.ip().to_string());
            set("BIND_PORT", address.port().to_string());
            if is_secure {
                set("PEM_CERT", file("server.pem"));
                set("PEM_KEY", file("key.pem"));
            }
            let authority = is_secure.then(|| file("authority.pem"));
            all.push(Road { name, scheme, address, authority });
        }
        Ok(Self { all, settings, _folder: folder })
    }

    /// What the broker is told.
    pub(super) fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }
}

/// Writes `authority.pem`, and `server.pem` and `key.pem` of a server on the loopback interface.
fn certify(folder: &Path) -> Result<()> {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    fs::write(folder.join("authority.pem"), parameters.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(parameters, key);
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new([Ipv4Addr::LOCALHOST.to_string()])?;
    // Under the authority's name it would look like its own issuer.
    parameters.distinguished_name.push(DnType::CommonName, "broker");
    let certificate = parameters.signed_by(&key, &issuer)?;
    fs::write(folder.join("server.pem"), certificate.pem())?;
    fs::write(folder.join("key.pem"), key.serialize_pem())?;
    Ok(())
}
