//! TLS of a listener.

use std::{io, sync::Arc};

use rustls::SupportedProtocolVersion;
use tbmq_service::tls::{self, Named, Pair, ServerTls, Source};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::{prelude::FromDer as _, x509::X509Name};

use super::{
    Peer,
    config::{ClientAuth, TlsConfig, TlsProtocol},
};
use crate::config::SETTINGS;

const FROM_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
const FROM_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Reads the files of the listener at this path of the configuration.
///
/// # Errors
/// A text that names the setting.
pub(super) fn open(path: &str, config: &TlsConfig) -> Result<ServerTls, String> {
    let setting = |name: &str| {
        let key = format!("{path}.tls.{name}");
        SETTINGS.iter().find(|setting| setting.key == key).map_or(key, |setting| setting.env.to_owned())
    };
    if config.client_auth == ClientAuth::Require && config.client_ca.is_none() {
        return Err(format!("{} needs {}", setting("client-auth"), setting("client-ca")));
    }
    if !config.client_crl.is_empty() && config.client_ca.is_none() {
        return Err(format!("{} needs {}", setting("client-crl"), setting("client-ca")));
    }
    let more = config.sni.iter().enumerate().map(|(index, pair)| Pair {
        certificate: Named::new(setting(&format!("sni[{index}].pem-cert")), &pair.pem_cert),
        key: Named::new(setting(&format!("sni[{index}].pem-key")), &pair.pem_key),
        key_password: pair.pem_key_password.clone(),
    });
    ServerTls::open(Source {
        own: Pair {
            certificate: Named::new(setting("pem-cert"), &config.pem_cert),
            key: Named::new(setting("pem-key"), &config.pem_key),
            key_password: config.pem_key_password.clone(),
        },
        more: more.collect(),
        client_ca: config.client_ca.as_ref().map(|file| Named::new(setting("client-ca"), file)),
        client_auth: match config.client_auth {
            ClientAuth::None => tls::ClientAuth::None,
            ClientAuth::Want => tls::ClientAuth::Optional,
            ClientAuth::Require => tls::ClientAuth::Required,
        },
        client_crls: config.client_crl.iter().map(|file| Named::new(setting("client-crl"), file)).collect(),
        skips_validity: config.skip_validity_check_for_client_cert,
        versions: match config.protocol {
            TlsProtocol::V12 => FROM_12,
            TlsProtocol::V13 => FROM_13,
        },
        cipher_suites: config.enabled_cipher_suites.clone(),
        // Clients that name a protocol at all name many things.
        alpn: Vec::new(),
    })
}

/// Shakes hands, and notes along which names the client's certificate was verified.
pub(super) async fn accept(
    tls: &ServerTls,
    socket: TcpStream,
    peer: &mut Peer,
) -> io::Result<TlsStream<TcpStream>> {
    let current = tls.current();
    let stream = TlsAcceptor::from(current.config.clone()).accept(socket).await?;
    if let (Some(chain), Some(trust)) = (stream.get_ref().1.peer_certificates(), &current.trust) {
        // Of a resumed session, too, whose certificate may have ended since.
        let subjects =
            trust.subjects(chain).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        peer.common_names = common_names(subjects.iter().map(AsRef::as_ref));
    }
    Ok(stream)
}

/// The first common name of each subject, from the client's own to the authority's; none without the client's own.
fn common_names<'a>(subjects: impl Iterator<Item = &'a [u8]>) -> Arc<[Box<str>]> {
    let mut names = subjects.map(common_name);
    match names.next() {
        Some(Some(own)) => [own].into_iter().chain(names.flatten()).collect(),
        _ => Arc::default(),
    }
}

fn common_name(subject: &[u8]) -> Option<Box<str>> {
    let (_, subject) = X509Name::from_der(subject).ok()?;
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    (!name.is_empty()).then(|| name.into())
}

#[cfg(test)]
mod tests;
