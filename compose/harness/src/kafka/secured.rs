//! A Kafka with logins and TLS.

use std::sync::OnceLock;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::{Kafka, KafkaOptions};
use crate::postgres::free_port;

/// A server of one broker that listens five times: in plain text, with a login, with TLS and a login, with TLS for clients
/// with a certificate, and for itself. The user [`SecuredKafka::USER`] logs in with PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
/// All addresses are `127.0.0.1:<port>`, all certificates PEM and of one authority.
#[derive(Debug)]
pub struct SecuredKafka {
    /// The server, with its address in plain text.
    pub server: Kafka,
    /// Its folder.
    pub folder: TempDir,
    /// With a login.
    pub login: String,
    /// With TLS and a login.
    pub login_tls: String,
    /// With TLS; a client needs a certificate of the authority.
    pub tls: String,
    /// The authority's certificate; the server's is for `localhost` and `127.0.0.1`.
    pub authority: String,
    /// A client's certificate.
    pub certificate: String,
    /// Its key, PKCS#8.
    pub key: String,
}

impl SecuredKafka {
    /// Who may log in.
    pub const USER: &str = "u";

    /// The password, one that has to be quoted.
    pub const PASSWORD: &str = "p\"w;\\x=";

    /// One server for all tests of a binary.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<SecuredKafka> = OnceLock::new();
        SHARED.get_or_init(|| Self::start().expect("Kafka starts"))
    }

    /// Starts one. Blocks until it answers and knows its users.
    ///
    /// # Errors
    /// When a step fails.
    pub fn start() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // By its name an issuer is told from what it issues.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let issue = |names: &[&str]| -> Result<(String, String)> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (server_certificate, server_key) = issue(&["localhost", "127.0.0.1"])?;
        let (certificate, key) = issue(&["executor"])?;

        let (plain, controller) = (free_port()?, free_port()?);
        let (login, login_tls, tls) = (free_port()?, free_port()?, free_port()?);
        let external = format!(
            "PLAINTEXT://127.0.0.1:{plain},LOGIN://127.0.0.1:{login},LOGINTLS://127.0.0.1:{login_tls},TLS://127.0.0.1:{tls}"
        );
        let line = |pem: &str| pem.replace("\r\n", "\n").replace('\n', "\\n");
        let mut properties: Vec<(String, String)> = [
            ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
            ("listeners", format!("{external},CONTROLLER://127.0.0.1:{controller}")),
            ("advertised.listeners", external),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT,LOGINTLS:SASL_SSL,TLS:SSL"
                    .to_owned(),
            ),
            ("inter.broker.listener.name", "PLAINTEXT".to_owned()),
            ("ssl.keystore.type", "PEM".to_owned()),
            ("ssl.keystore.certificate.chain", line(&server_certificate)),
            ("ssl.keystore.key", line(&server_key)),
            ("ssl.truststore.type", "PEM".to_owned()),
            ("ssl.truststore.certificates", line(&authority.pem())),
            ("listener.name.tls.ssl.client.auth", "required".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for listener in ["login", "logintls"] {
            let logins = logins().map(|(name, value)| (format!("listener.name.{listener}.{name}"), value));
            properties.extend(logins);
        }

        let folder = tempfile::tempdir()?;
        let data_dir = Some(folder.path().to_owned());
        let options = KafkaOptions { data_dir, port: Some(plain), properties, ..KafkaOptions::default() };
        let server = Kafka::start(options)?;
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let credentials = format!("{mechanism}=[password={}]", Self::PASSWORD);
            let user = [
                "--alter",
                "--entity-type",
                "users",
                "--entity-name",
                Self::USER,
                "--add-config",
                &credentials,
            ];
            server.tool("kafka.admin.ConfigCommand", &user)?;
        }
        let [login, login_tls, tls] = [login, login_tls, tls].map(|port| format!("127.0.0.1:{port}"));
        let authority = authority.pem();
        Ok(Self { server, folder, login, login_tls, tls, authority, certificate, key })
    }
}

/// What a listener with a login has configured.
fn logins() -> [(&'static str, String); 4] {
    let password = SecuredKafka::PASSWORD.replace('\\', "\\\\").replace('"', "\\\"").replace('\\', "\\\\");
    let plain = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"admin\" password=\"admin\" user_{}=\"{password}\";",
        SecuredKafka::USER
    );
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned();
    [
        ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned()),
        ("plain.sasl.jaas.config", plain),
        ("scram-sha-256.sasl.jaas.config", scram.clone()),
        ("scram-sha-512.sasl.jaas.config", scram),
    ]
}
