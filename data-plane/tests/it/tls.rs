//! MQTT over TLS.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, SerialNumber, date_time_ymd};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tbmq_data_plane::{ClientAuth, Config, ListenerConfig, TlsConfig, TlsProtocol};
use tbmq_mqtt::packet::{Packet, ProtocolVersion, Qos, ReasonCode};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    bus::TestBus,
    client::{Client, connect_packet, text},
    http_server::{Authority, Pair},
    plane::{Plane, config, context, until},
};

/// Files of a server, whose clients' authority is another one.
pub(crate) struct Files {
    folder: TempDir,
    pub(crate) server: Authority,
    pub(crate) clients: Authority,
}

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
            server: Authority::new(),
            clients: Authority::new(),
        };
        files.put(files.server.issue("server"));
        std::fs::write(files.path("ca.pem"), &files.clients.pem).unwrap();
        files
    }

    fn put(&self, (certificate, key): Pair) {
        std::fs::write(self.path("cert.pem"), certificate).unwrap();
        std::fs::write(self.path("key.pem"), key).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds a listener on a free port of the loopback interface.
    pub(crate) fn listener(&self) -> ListenerConfig {
        ListenerConfig {
            bind_address: "127.0.0.1".parse().unwrap(),
            bind_port: 0,
            tls: Some(TlsConfig {
                pem_cert: self.path("cert.pem"),
                pem_key: self.path("key.pem"),
                ..TlsConfig::default()
            }),
            ..ListenerConfig::default()
        }
    }

    pub(crate) fn config(&self, change: impl FnOnce(&mut TlsConfig)) -> Config {
        let mut config = config();
        config.listener.ssl = self.listener();
        config.listener.tls_reload_interval = Duration::from_millis(50);
        change(config.listener.ssl.tls.as_mut().unwrap());
        config
    }

    /// A TLS connection over this socket, without a certificate.
    pub(crate) async fn shake_over(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        shake_over(socket, &self.server, None, rustls::ALL_VERSIONS).await
    }

    async fn plane(&self, change: impl FnOnce(&mut TlsConfig)) -> Plane {
        Plane::with(TestBus::new(), self.config(change)).await
    }
}

/// A TLS connection to this machine. With 1.3 a client learns only from the first read that it was refused.
pub(crate) async fn shake(
    address: std::net::SocketAddr,
    trusted: &Authority,
    identity: Option<Pair>,
) -> std::io::Result<TlsStream<TcpStream>> {
    shake_over(TcpStream::connect(address).await?, trusted, identity, rustls::ALL_VERSIONS).await
}

pub(crate) async fn shake_over(
    socket: TcpStream,
    trusted: &Authority,
    identity: Option<Pair>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

async fn client(plane: &Plane, files: &Files, identity: Option<Pair>) -> Client<TlsStream<TcpStream>> {
    let stream = shake(plane.at("mqtts"), &files.server, identity).await.unwrap();
    let mut client = Client::over(stream, ProtocolVersion::V5);
    client.connect(connect_packet(ProtocolVersion::V5, "secured")).await;
    client
}

/// Whether the server lets this client in.
async fn is_let_in(plane: &Plane, files: &Files, identity: Option<Pair>) -> bool {
    let Ok(stream) = shake(plane.at("mqtts"), &files.server, identity).await else { return false };
    let mut client = Client::over(stream, ProtocolVersion::V5);
    let connect = Packet::Connect(Box::new(connect_packet(ProtocolVersion::V5, "secured")));
    client.send(connect).await;
    client.next().await.is_some()
}

#[tokio::test]
async fn messages_cross_tls_in_both_directions_whatever_their_size() {
    let files = Files::new();
    let plane = files.plane(|_| {}).await;
    let mut plain = Client::v5(plane.address, "plain").await;
    plain.subscribed("up", Qos::AtLeastOnce).await;
    let mut secured = client(&plane, &files, None).await;
    secured.subscribed("down", Qos::AtLeastOnce).await;
    let big: &'static str = "x".repeat(60_000).leak();
    for payload in ["small", big] {
        secured.publish("up", Qos::AtLeastOnce, 1, payload).await;
        assert_eq!(secured.puback().await.reason, ReasonCode::Success);
        assert_eq!(text(&plain.message().await), payload);
        plain.publish("down", Qos::AtMostOnce, 0, payload).await;
        assert_eq!(text(&secured.message().await), payload);
    }
    // More than the sockets hold: what is written waits for the client, and all of it comes.
    for _ in 0..100 {
        plain.publish("down", Qos::AtMostOnce, 0, big).await;
    }
    for _ in 0..100 {
        assert_eq!(text(&secured.message().await).len(), big.len());
    }
}

#[tokio::test]
async fn a_client_that_is_sent_away_reads_its_disconnect_and_a_proper_end() {
    let files = Files::new();
    let plane = files.plane(|_| {}).await;
    let mut first = client(&plane, &files, None).await;
    let _second = client(&plane, &files, None).await;
    assert!(matches!(first.next().await, Some(Packet::Disconnect(_))));
    // Without close_notify this would be an error.
    assert_eq!(first.stream.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn garbage_instead_of_tls_is_cut_and_others_are_unaffected() {
    let files = Files::new();
    let plane = files.plane(|_| {}).await;
    let mut bystander = client(&plane, &files, None).await;
    for garbage in
        [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", &[0xff; 9000]]
    {
        let mut stream = TcpStream::connect(plane.at("mqtts")).await.unwrap();
        // The server may have cut the connection before everything was written.
        stream.write_all(garbage).await.ok();
        // What comes is an alert at most.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        assert!(answer.len() < 16, "{answer:?}");
    }
    until(|| plane.metric("tbmq_mqtt_handshakes_failed_total{reason=\"Tls\"}") == 3).await;
    bystander.hears_nothing().await;
}

#[tokio::test]
async fn an_unfinished_handshake_is_cut_at_the_connect_timeout() {
    let files = Files::new();
    let mut config = files.config(|_| {});
    config.mqtt.connect_timeout = Duration::from_secs(1);
    let plane = Plane::with(TestBus::new(), config).await;
    let mut silent = TcpStream::connect(plane.at("mqtts")).await.unwrap();
    let mut half = TcpStream::connect(plane.at("mqtts")).await.unwrap();
    half.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(half.read(&mut [0; 1]).await.unwrap(), 0);
    // Who has shaken hands has no more time for CONNECT than was left.
    let mut shaken = shake(plane.at("mqtts"), &files.server, None).await.unwrap();
    assert_eq!(shaken.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(plane.metric("tbmq_mqtt_handshakes_failed_total{reason=\"TimedOut\"}"), 2);
    assert_eq!(plane.metric("tbmq_mqtt_connections_ended_total{reason=\"ConnectTimeout\"}"), 1);
}

#[tokio::test]
async fn who_must_show_a_certificate_gets_in_with_a_good_one_alone() {
    let files = Files::new();
    let stranger = Authority::new().issue("stranger");
    for (auth, nothing, wrong) in
        [(ClientAuth::Require, false, false), (ClientAuth::Want, true, false), (ClientAuth::None, true, true)]
    {
        let plane = files
            .plane(|tls| {
                tls.client_ca = Some(files.path("ca.pem"));
                tls.client_auth = auth;
            })
            .await;
        assert_eq!(is_let_in(&plane, &files, None).await, nothing, "{auth:?}");
        assert_eq!(is_let_in(&plane, &files, Some(stranger.clone())).await, wrong, "{auth:?}");
        assert!(is_let_in(&plane, &files, Some(files.clients.issue("meter-7"))).await, "{auth:?}");
    }
}

#[tokio::test]
async fn a_clients_common_name_goes_into_the_records_of_its_messages() {
    let files = Files::new();
    let plane = files.plane(|tls| tls.client_ca = Some(files.path("ca.pem"))).await;
    let id = plane.integration(1, &["a"]).await;
    for identity in [Some(files.clients.issue("meter-7")), None] {
        let mut client = client(&plane, &files, identity).await;
        client.publish("a", Qos::AtLeastOnce, 1, "x").await;
        client.puback().await;
    }
    let records = plane.records(id, 2).await;
    let names = records.into_iter().map(|(_, record)| record.publish_msg_proto.unwrap().client_cert_cn);
    assert_eq!(names.collect::<Vec<_>>(), [Some("meter-7".to_owned()), None]);
}

#[tokio::test]
async fn a_new_certificate_counts_without_a_restart_and_a_bad_one_never() {
    let files = Files::new();
    let plane = files.plane(|_| {}).await;
    let stream = files.shake_over(TcpStream::connect(plane.at("mqtts")).await.unwrap()).await.unwrap();
    let mut before = Client::over(stream, ProtocolVersion::V5);
    before.connect(connect_packet(ProtocolVersion::V5, "before")).await;

    std::fs::write(files.path("cert.pem"), "no certificate").unwrap();
    until(|| plane.metric("tbmq_mqtt_tls_reload_failures_total") > 0).await;
    assert!(is_let_in(&plane, &files, None).await, "the old one stays");

    let other = Authority::new();
    files.put(other.issue("server"));
    let is_new = async { while shake(plane.at("mqtts"), &other, None).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(20), is_new).await.expect("the new certificate counts");
    assert!(shake(plane.at("mqtts"), &files.server, None).await.is_err());
    before.hears_nothing().await;
}

/// A list of this authority that names nobody, in PEM.
fn revokes_nobody(authority: &Authority, next_year: i32) -> String {
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(next_year, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&authority.issuer).unwrap().pem().unwrap()
}

#[tokio::test]
async fn a_revocation_list_whose_successor_is_overdue_is_told_and_counts() {
    let files = Files::new();
    let list = files.path("crl.pem");
    std::fs::write(&list, revokes_nobody(&files.clients, 2021)).unwrap();
    let plane = files
        .plane(|tls| {
            (tls.client_auth, tls.client_ca) = (ClientAuth::Require, Some(files.path("ca.pem")));
            tls.client_crl = vec![list.clone()];
        })
        .await;
    let overdue = || plane.metric("tbmq_mqtt_tls_revocation_lists_overdue");
    until(|| overdue() == 1).await;
    assert!(is_let_in(&plane, &files, Some(files.clients.issue("device"))).await);
    std::fs::write(&list, revokes_nobody(&files.clients, 4000)).unwrap();
    until(|| overdue() == 0).await;
    assert!(is_let_in(&plane, &files, Some(files.clients.issue("device"))).await);
    std::fs::write(&list, revokes_nobody(&files.clients, 2021)).unwrap();
    until(|| overdue() == 1).await;
}

#[tokio::test]
async fn versions_below_the_lowest_are_refused() {
    let files = Files::new();
    let old: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
    for (protocol, is_spoken) in [(TlsProtocol::V12, true), (TlsProtocol::V13, false)] {
        let plane = files.plane(|tls| tls.protocol = protocol).await;
        let socket = TcpStream::connect(plane.at("mqtts")).await.unwrap();
        let shaken = shake_over(socket, &files.server, None, old).await;
        assert_eq!(shaken.is_ok(), is_spoken, "{protocol:?}");
        assert!(is_let_in(&plane, &files, None).await);
    }
    let plane = files
        .plane(|tls| tls.enabled_cipher_suites = vec!["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned()])
        .await;
    let stream = shake(plane.at("mqtts"), &files.server, None).await.unwrap();
    let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap();
    assert_eq!(suite.suite(), rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256);
}

#[tokio::test]
async fn what_cant_be_used_is_told_by_its_setting_before_anything_is_served() {
    type Change = fn(&mut TlsConfig);
    let changes: [(Change, &str); 4] = [
        (|tls| tls.pem_cert = "/nowhere".into(), "LISTENER_SSL_PEM_CERT: can't read /nowhere"),
        (|tls| tls.pem_key = tls.pem_cert.clone(), "LISTENER_SSL_PEM_KEY: the file holds no private key"),
        (
            |tls| tls.client_auth = ClientAuth::Require,
            "TBMQ_LISTENER_SSL_CLIENT_AUTH needs TBMQ_LISTENER_SSL_CLIENT_CA",
        ),
        (
            |tls| tls.enabled_cipher_suites = vec!["TLS_RSA_WITH_RC4_128_MD5".into()],
            "TLS_RSA_WITH_RC4_128_MD5",
        ),
    ];
    let files = Files::new();
    for (change, expected) in changes {
        let error = tbmq_data_plane::start(files.config(change), context(&TestBus::new())).await.unwrap_err();
        assert!(error.is::<tbmq_service::shell::Misconfigured>(), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut config = config();
    config.listener.more = vec![files.listener()];
    config.listener.more[0].tls.as_mut().unwrap().pem_cert = "/nowhere".into();
    let error = tbmq_data_plane::start(config, context(&TestBus::new())).await.unwrap_err();
    assert!(error.to_string().contains("listener.more[0].tls.pem-cert: can't read"), "{error}");
}
