use std::{path::PathBuf, time::Duration};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::listen::config::CertificateConfig;

/// Whoever signs certificates.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
struct Identity {
    certificate: Certificate,
    key: KeyPair,
}

fn named(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}

fn authority(name: &str, by: Option<&Authority>) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut parameters = named(name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = match by {
        Some(by) => parameters.signed_by(&key, &by.issuer).unwrap(),
        None => parameters.self_signed(&key).unwrap(),
    };
    Authority { certificate, issuer: Issuer::new(parameters, key) }
}

impl Authority {
    fn issue(&self, name: &str) -> Identity {
        self.issue_with(named(name))
    }

    fn issue_with(&self, parameters: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        Identity { certificate: parameters.signed_by(&key, &self.issuer).unwrap(), key }
    }

    fn numbered(&self, name: &str, serial: u64) -> Identity {
        let mut parameters = named(name);
        parameters.serial_number = Some(SerialNumber::from(serial));
        self.issue_with(parameters)
    }

    /// A list with these numbers.
    fn revokes(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2025, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A server with its files, and a listener.
struct Server {
    folder: TempDir,
    authority: Authority,
    config: TlsConfig,
}

impl Server {
    /// Clients are to be of this authority.
    fn new(clients: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority("servers", None);
        let own = authority.issue("server");
        let server = Self { folder, authority, config: TlsConfig::default() };
        let config = TlsConfig {
            pem_cert: server.put("cert.pem", &own.certificate.pem()),
            pem_key: server.put("key.pem", &own.key.serialize_pem()),
            client_ca: Some(server.put("ca.pem", &clients.certificate.pem())),
            client_auth: ClientAuth::Require,
            ..TlsConfig::default()
        };
        Self { config, ..server }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn open(&self) -> ServerTls {
        open("listener.ssl", &self.config).unwrap()
    }

    /// Both ends of a connection of who shows these certificates, the first being its own.
    async fn meet(
        &self,
        tls: &ServerTls,
        host: &str,
        own: Option<&Identity>,
        others: &[&Certificate],
    ) -> io::Result<(Peer, TlsStream<TcpStream>, client::TlsStream<TcpStream>)> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            Some(own) => {
                let chain = [&own.certificate].into_iter().chain(others.iter().copied());
                let chain: Vec<CertificateDer<'static>> = chain.map(|one| one.der().clone()).collect();
                let key = PrivateKeyDer::try_from(own.key.serialize_der()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let client = async {
            let socket = TcpStream::connect(address).await?;
            TlsConnector::from(Arc::new(config)).connect(host, socket).await
        };
        let server = async {
            let (socket, address) = listener.accept().await?;
            let mut peer = Peer::new(address);
            let stream = accept(tls, socket, &mut peer).await?;
            Ok::<_, io::Error>((peer, stream))
        };
        let (client, server) = tokio::join!(client, server);
        let (peer, stream) = server?;
        Ok((peer, stream, client?))
    }

    async fn names(&self, own: &Identity, others: &[&Certificate]) -> io::Result<Vec<String>> {
        let (peer, ..) = self.meet(&self.open(), "localhost", Some(own), others).await?;
        Ok(peer.common_names.iter().map(ToString::to_string).collect())
    }

    async fn lets_in(&self, tls: &ServerTls, own: &Identity, others: &[&Certificate]) -> bool {
        self.meet(tls, "localhost", Some(own), others).await.is_ok()
    }
}

#[tokio::test]
async fn names_are_those_of_the_verified_path_and_of_no_other_certificate() {
    let root = authority("root", None);
    let middle = authority("middle", Some(&root));
    let inner = authority("inner", Some(&middle));
    let server = Server::new(&root);
    let device = inner.issue("device");
    let path = [&inner.certificate, &middle.certificate];
    assert_eq!(server.names(&device, &path).await.unwrap(), ["device", "inner", "middle", "root"]);

    // What it appends belongs to others: a device of the same authority, one that is named like the authority, an
    // authority that it has made itself, and one of the same path that has not signed it.
    let (other, admin, sibling) =
        (root.issue("other"), authority("admin", None), authority("sibling", Some(&root)));
    let foreign = [&other.certificate, &admin.certificate, &sibling.certificate];
    let direct = root.issue("direct");
    assert_eq!(server.names(&direct, &foreign).await.unwrap(), ["direct", "root"]);
    let mixed: Vec<_> = foreign.into_iter().chain(path).chain(foreign).collect();
    assert_eq!(server.names(&device, &mixed).await.unwrap(), ["device", "inner", "middle", "root"]);
}

#[tokio::test]
async fn a_certificate_without_a_common_name_gives_no_names() {
    let root = authority("root", None);
    let server = Server::new(&root);
    let nameless = || {
        let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters
    };
    assert!(server.names(&root.issue_with(nameless()), &[]).await.unwrap().is_empty());
    let mut empty = nameless();
    empty.distinguished_name.push(DnType::CommonName, "");
    assert!(server.names(&root.issue_with(empty), &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn forged_chains_are_refused() {
    let root = authority("root", None);
    let server = Server::new(&root);
    let tls = server.open();
    // An authority of the same name, shown with the true one.
    let forged = authority("root", None);
    let own = forged.issue("device");
    for others in [vec![], vec![&forged.certificate], vec![&forged.certificate, &root.certificate]] {
        assert!(!server.lets_in(&tls, &own, &others).await);
    }
    // A device that signs.
    let device = root.issue("device");
    let signer = Issuer::new(named("device"), KeyPair::try_from(device.key.serialize_der()).unwrap());
    let key = KeyPair::generate().unwrap();
    let child = Identity { certificate: named("child").signed_by(&key, &signer).unwrap(), key };
    assert!(server.lets_in(&tls, &device, &[]).await);
    assert!(!server.lets_in(&tls, &child, &[&device.certificate]).await);
    // An authority that the true one has signed, but whose key is another.
    let middle = authority("middle", Some(&root));
    let pretended = authority("middle", None).issue("device");
    assert!(!server.lets_in(&tls, &pretended, &[&middle.certificate]).await);
    assert!(server.meet(&tls, "localhost", None, &[]).await.is_err());
}

#[tokio::test]
async fn a_certificate_out_of_its_time_counts_only_if_that_is_not_looked_at() {
    let root = authority("root", None);
    let mut server = Server::new(&root);
    let timed = |name: &str, from: i32, to: i32| {
        let mut parameters = named(name);
        parameters.not_before = date_time_ymd(from, 1, 1);
        parameters.not_after = date_time_ymd(to, 1, 1);
        root.issue_with(parameters)
    };
    let (past, future) = (timed("past", 2010, 2020), timed("future", 3010, 3020));
    let forged = authority("root", None).issue("device");
    for skips in [false, true] {
        server.config.skip_validity_check_for_client_cert = skips;
        let tls = server.open();
        assert_eq!(server.lets_in(&tls, &past, &[]).await, skips);
        assert_eq!(server.lets_in(&tls, &future, &[]).await, skips);
        assert!(server.lets_in(&tls, &root.issue("device"), &[]).await);
        // All else is looked at.
        assert!(!server.lets_in(&tls, &forged, &[]).await);
    }
    server.config.client_crl = vec![server.put("crl.pem", &root.revokes(&[9]))];
    let mut revoked = named("past");
    revoked.serial_number = Some(SerialNumber::from(9_u64));
    revoked.not_after = date_time_ymd(2020, 1, 1);
    assert!(!server.lets_in(&server.open(), &root.issue_with(revoked), &[]).await);
}

#[test]
fn a_file_of_certificates_ends_with_the_first_of_its_chain() {
    let until = |year: i32, name: &str| {
        let mut parameters = named(name);
        parameters.not_after = date_time_ymd(year, 1, 1);
        parameters
    };
    let mut server = Server::new(&authority("root", None));
    let key = KeyPair::generate().unwrap();
    let mut middle = until(2090, "middle");
    middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = middle.signed_by(&key, &server.authority.issuer).unwrap();
    let middle = Authority { certificate, issuer: Issuer::new(middle, key) };
    let own = middle.issue_with(until(2100, "server"));
    server.put("cert.pem", &(own.certificate.pem() + &middle.certificate.pem()));
    server.put("key.pem", &own.key.serialize_pem());
    let other = server.authority.issue_with(until(2080, "other"));
    server.config.sni.push(CertificateConfig {
        pem_cert: server.put("other.pem", &other.certificate.pem()),
        pem_key: server.put("other.key", &other.key.serialize_pem()),
        pem_key_password: tbmq_service::config::Secret::default(),
    });
    let tls = server.open();
    let ends: Vec<_> = tls.current().ends.iter().map(|end| (end.setting.clone(), end.not_after)).collect();
    let at = |year: i32| date_time_ymd(year, 1, 1).unix_timestamp();
    let (first, second) = ("LISTENER_SSL_PEM_CERT", "listener.ssl.tls.sni[0].pem-cert");
    assert_eq!(ends, [(first.to_owned(), at(2090)), (second.to_owned(), at(2080))]);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_also_when_its_authority_is() {
    let root = authority("root", None);
    let mut server = Server::new(&root);
    let middle = {
        let mut parameters = named("middle");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.serial_number = Some(SerialNumber::from(50_u64));
        let Identity { certificate, key } = root.issue_with(parameters.clone());
        Authority { certificate, issuer: Issuer::new(parameters, key) }
    };
    let (good, bad) = (middle.numbered("good", 1), middle.numbered("bad", 2));
    let path = [&middle.certificate];
    server.config.client_crl =
        vec![server.put("root.crl", &root.revokes(&[7])), server.put("middle.crl", &middle.revokes(&[2]))];
    let tls = server.open();
    assert!(server.lets_in(&tls, &good, &path).await);
    assert!(!server.lets_in(&tls, &bad, &path).await);
    // Numbers are those of one authority.
    assert!(server.lets_in(&tls, &root.numbered("other", 2), &[]).await);
    assert!(!server.lets_in(&tls, &root.numbered("seven", 7), &[]).await);
    // An authority without a list: nobody knows.
    let unlisted = authority("unlisted", Some(&root));
    assert!(!server.lets_in(&tls, &unlisted.issue("x"), &[&unlisted.certificate]).await);
    server.put("root.crl", &root.revokes(&[50]));
    assert!(!server.lets_in(&server.open(), &good, &path).await);
    // A list that somebody else has signed under the authority's name revokes nothing, and leaves nothing known.
    server.put("root.crl", &authority("root", None).revokes(&[]));
    assert!(!server.lets_in(&server.open(), &root.numbered("other", 2), &[]).await);
}

/// Waits until it holds.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let wait = async { while !holds().await {} };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it holds in time");
}

#[tokio::test]
async fn lists_and_authorities_count_anew_without_a_restart_and_connections_go_on() {
    let (root, next) = (authority("root", None), authority("next", None));
    let mut server = Server::new(&root);
    server.config.client_crl = vec![server.put("crl.pem", &root.revokes(&[]))];
    let tls = server.open();
    let (device, stays) = (root.numbered("device", 2), root.numbered("stays", 3));
    let (_, mut server_end, mut client_end) =
        server.meet(&tls, "localhost", Some(&device), &[]).await.unwrap();
    let check = async {
        server.put("crl.pem", &root.revokes(&[2]));
        until(async || !server.lets_in(&tls, &device, &[]).await).await;
        assert!(server.lets_in(&tls, &stays, &[]).await);
        // A list that can't be read changes nothing.
        server.put("crl.pem", "no list");
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(server.lets_in(&tls, &stays, &[]).await);
        assert!(!server.lets_in(&tls, &device, &[]).await);
        // The authority is another.
        server.put("ca.pem", &next.certificate.pem());
        server.put("crl.pem", &next.revokes(&[]));
        until(async || server.lets_in(&tls, &next.issue("device"), &[]).await).await;
        assert!(!server.lets_in(&tls, &stays, &[]).await);
        // Who is connected is not asked again.
        for (payload, mut answer) in [(b"ping", [0; 4]), (b"pong", [0; 4])] {
            client_end.write_all(payload).await.unwrap();
            server_end.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, payload);
        }
    };
    tokio::select! {
        () = tls.clone().follow(Duration::from_millis(50), |_| {}) => {}
        () = check => {}
    }
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_host_that_it_means() {
    let root = authority("root", None);
    let mut server = Server::new(&root);
    server.config.client_auth = ClientAuth::None;
    let mut shown = Vec::new();
    for (index, hosts) in [vec!["a.example", "*.a.example"], vec!["b.example"]].into_iter().enumerate() {
        let hosts: Vec<_> = hosts.into_iter().map(ToOwned::to_owned).collect();
        let pair = server.authority.issue_with(CertificateParams::new(hosts).unwrap());
        server.config.sni.push(CertificateConfig {
            pem_cert: server.put(&format!("{index}.pem"), &pair.certificate.pem()),
            pem_key: server.put(&format!("{index}.key"), &pair.key.serialize_pem()),
            pem_key_password: tbmq_service::config::Secret::default(),
        });
        shown.push(pair.certificate.der().clone());
    }
    let tls = server.open();
    for (host, index) in [("a.example", 0), ("x.a.example", 0), ("B.example", 1)] {
        let (_, _, client) = server.meet(&tls, host, None, &[]).await.unwrap();
        assert_eq!(client.get_ref().1.peer_certificates().unwrap()[0], shown[index], "{host}");
    }
    let (_, _, client) = server.meet(&tls, "localhost", None, &[]).await.unwrap();
    assert!(!shown.contains(&client.get_ref().1.peer_certificates().unwrap()[0]));
    // The server's own is shown to whoever means another host, and does not fit.
    assert!(server.meet(&tls, "c.example", None, &[]).await.is_err());

    let error = |change: fn(&mut TlsConfig, &Server)| {
        let mut config = server.config.clone();
        change(&mut config, &server);
        open("listener.ssl", &config).unwrap_err()
    };
    let wrong = error(|config, server| config.sni[1].pem_key = server.folder.path().join("0.key"));
    assert!(wrong.starts_with("listener.ssl.tls.sni[1].pem-cert and"), "{wrong}");
    let missing = error(|config, _| (config.client_ca, config.client_crl) = (None, vec!["x".into()]));
    assert_eq!(missing, "TBMQ_LISTENER_SSL_CLIENT_CRL needs TBMQ_LISTENER_SSL_CLIENT_CA");
}
