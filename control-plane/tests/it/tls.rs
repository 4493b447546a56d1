//! TLS and client certificates of the gRPC server.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tbmq_control_plane::config::ClientAuth;
use tbmq_proto::control::{
    AccessRole, Caller, GetCallerRequest, ListAuditEntriesRequest, ListNodesRequest, RevokeTokenRequest,
    WatchIntegrationsRequest, audit_service_client::AuditServiceClient,
    node_service_client::NodeServiceClient, token_service_client::TokenServiceClient,
};
use tempfile::TempDir;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::support::{Cluster, ControlPlane, eventually};

/// An authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(parameters, key) }
    }

    /// Certificate and key, in PEM.
    fn issue(&self, name: &str) -> (String, String) {
        self.issue_until(name, 2200)
    }

    /// The same, valid until that year begins.
    fn issue_until(&self, name: &str, year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.not_after = date_time_ymd(year, 1, 1);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Files of a server.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new(server: &Authority, clients: &Authority) -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap() };
        files.put(server.issue("server"));
        std::fs::write(files.path("ca.pem"), &clients.pem).unwrap();
        files
    }

    fn put(&self, (certificate, key): (String, String)) {
        std::fs::write(self.path("cert.pem"), certificate).unwrap();
        std::fs::write(self.path("key.pem"), key).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn server(&self, cluster: &Cluster, client_auth: ClientAuth, roles: &[&str]) -> ControlPlane {
        cluster
            .control_plane_with("cp1", |config| {
                let tls = &mut config.control.grpc.tls;
                tls.pem_cert = Some(self.path("cert.pem"));
                tls.pem_key = Some(self.path("key.pem"));
                tls.client_ca = Some(self.path("ca.pem"));
                tls.client_auth = client_auth;
                tls.client_roles = roles.iter().map(|role| role.parse().unwrap()).collect();
                tls.reload_interval = Duration::from_millis(50);
            })
            .await
    }
}

async fn connect(
    control: &ControlPlane,
    trusted: &Authority,
    identity: Option<(String, String)>,
) -> Result<Channel, tonic::transport::Error> {
    let (_, address) = control.running.addresses()[0];
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&trusted.pem)).domain_name("localhost");
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().connect().await
}

async fn caller(channel: Channel) -> Result<Caller, Status> {
    TokenServiceClient::new(channel).get_caller(GetCallerRequest {}).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_client_certificate_tells_who_calls_and_its_name_gives_the_role() {
    let (server, clients) = (Authority::new("server-ca"), Authority::new("client-ca"));
    let files = Files::new(&server, &clients);
    let cluster = Cluster::new();
    let control = files.server(&cluster, ClientAuth::Required, &["ops-*=OPERATOR", "dp*=NODE"]).await;
    let as_client = async |name: &str| {
        let channel = connect(&control, &server, Some(clients.issue(name))).await.unwrap();
        caller(channel).await
    };
    let known = as_client("ops-anna").await.unwrap();
    assert_eq!((known.principal.as_str(), known.role()), ("cert:ops-anna", AccessRole::Operator));
    assert_eq!(as_client("dp1").await.unwrap_err().code(), Code::PermissionDenied, "a node is no viewer");
    let nobody = as_client("stranger").await.unwrap_err();
    assert_eq!(nobody.code(), Code::PermissionDenied);
    assert!(nobody.message().contains("CONTROL_GRPC_TLS_CLIENT_ROLES"), "{nobody:?}");

    // Without a certificate of the authority nothing is answered.
    for identity in [None, Some(server.issue("ops-anna"))] {
        let refused = match connect(&control, &server, identity).await {
            // TLS 1.3: the client learns it with the first answer.
            Ok(channel) => caller(channel).await.is_err_and(|status| status.code() != Code::PermissionDenied),
            Err(_) => true,
        };
        assert!(refused);
    }
    eventually("failed handshakes are counted", async || {
        let text = control.metrics.encode();
        text.contains("tbmq_control_handshakes_failed_total 2")
    })
    .await;
    let plain = NodeServiceClient::new(control.channel.clone()).list_nodes(ListNodesRequest {}).await;
    assert!(plain.is_err(), "plain text is not understood");
}

#[tokio::test]
async fn with_optional_certificates_a_token_does_as_well_and_wins() {
    let (server, clients) = (Authority::new("server-ca"), Authority::new("client-ca"));
    let files = Files::new(&server, &clients);
    let cluster = Cluster::new();
    let admin = "the-first-token-of-all";
    let control = cluster
        .control_plane_with("cp1", |config| {
            let tls = &mut config.control.grpc.tls;
            tls.pem_cert = Some(files.path("cert.pem"));
            tls.pem_key = Some(files.path("key.pem"));
            tls.client_ca = Some(files.path("ca.pem"));
            tls.client_auth = ClientAuth::Optional;
            tls.client_roles = vec!["*=VIEWER".parse().unwrap()];
            config.control.auth.admin_token = tbmq_service::config::Secret::new(admin);
        })
        .await;
    let bare = connect(&control, &server, None).await.unwrap();
    assert_eq!(caller(bare.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let with_token = async |channel: Channel, token: &str| {
        let mut request = Request::new(GetCallerRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        TokenServiceClient::new(channel).get_caller(request).await.map(|answer| answer.into_inner().role())
    };
    assert_eq!(with_token(bare, admin).await.unwrap(), AccessRole::Admin);
    let certified = connect(&control, &server, Some(clients.issue("eye"))).await.unwrap();
    assert_eq!(caller(certified.clone()).await.unwrap().role(), AccessRole::Viewer);
    assert_eq!(with_token(certified.clone(), admin).await.unwrap(), AccessRole::Admin);
    // A bad token is not forgiven for the certificate's sake.
    assert_eq!(with_token(certified, "nonsense").await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn new_certificates_count_without_a_restart_and_bad_ones_change_nothing() {
    let (old, new, clients) = (Authority::new("old"), Authority::new("new"), Authority::new("client-ca"));
    let files = Files::new(&old, &clients);
    let cluster = Cluster::new();
    let control = files.server(&cluster, ClientAuth::Required, &["*=VIEWER"]).await;
    let trusts =
        async |authority: &Authority| match connect(&control, authority, Some(clients.issue("a"))).await {
            Ok(channel) => caller(channel).await.is_ok(),
            Err(_) => false,
        };
    assert!(trusts(&old).await && !trusts(&new).await);
    let ends = |year: i32| {
        let setting = "CONTROL_GRPC_TLS_PEM_CERT";
        let at = date_time_ymd(year, 1, 1).unix_timestamp();
        let line = format!("tbmq_control_tls_certificate_not_after_seconds{{setting=\"{setting}\"}} {at}\n");
        control.metrics.encode().contains(&line)
    };
    assert!(ends(2200));
    let open = connect(&control, &old, Some(clients.issue("a"))).await.unwrap();

    // A key that does not belong to the certificate, then nothing that could be one.
    let failures = async |count: usize| {
        control.metrics.encode().contains(&format!("tbmq_control_tls_reload_failures_total {count}"))
    };
    std::fs::write(files.path("key.pem"), new.issue("server").1).unwrap();
    eventually("the wrong key is noticed", async || failures(1).await).await;
    assert!(trusts(&old).await);
    std::fs::write(files.path("cert.pem"), "nonsense").unwrap();
    eventually("the nonsense is noticed", async || failures(2).await).await;
    assert!(trusts(&old).await);

    files.put(new.issue_until("server", 2100));
    eventually("the new certificate is taken over", async || trusts(&new).await).await;
    assert!(!trusts(&old).await);
    assert!(caller(open).await.is_ok(), "what is open stays open");
    assert!(ends(2100));

    // So is another authority for clients.
    let others = Authority::new("other-clients");
    std::fs::write(files.path("ca.pem"), &others.pem).unwrap();
    let other = async || match connect(&control, &new, Some(others.issue("a"))).await {
        Ok(channel) => caller(channel).await.is_ok(),
        Err(_) => false,
    };
    eventually("the new authority counts", other).await;
    assert!(!trusts(&new).await);
}

#[tokio::test]
async fn an_old_connection_is_left_for_a_new_one_and_its_streams_go_on() {
    let cluster = Cluster::new();
    let control = cluster
        .control_plane_with("cp1", |config| {
            config.control.grpc.max_connection_age = Duration::from_millis(300);
            config.control.watch_bookmarks = Duration::from_millis(50);
        })
        .await;
    let request = WatchIntegrationsRequest::default();
    let mut watch = control.integrations.clone().watch_integrations(request).await.unwrap().into_inner();
    // The audit log tells from which connections the calls came.
    let mut tokens = TokenServiceClient::new(control.channel.clone());
    let mut log = AuditServiceClient::new(control.channel.clone());
    let began = std::time::Instant::now();
    let mut peers = BTreeSet::new();
    while peers.len() < 3 {
        assert!(began.elapsed() < Duration::from_secs(20), "{peers:?}");
        let name = "tokens/00000000-0000-0000-0000-000000000000".to_owned();
        // A call that was about to leave by the old connection is told to come again.
        tokens.revoke_token(RevokeTokenRequest { name }).await.unwrap_err();
        if let Ok(answer) = log.list_audit_entries(ListAuditEntriesRequest::default()).await {
            peers.extend(answer.into_inner().entries.into_iter().map(|entry| entry.peer_address));
        }
    }
    for _ in 0..20 {
        watch.message().await.unwrap().unwrap();
    }
}
