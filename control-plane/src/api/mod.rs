//! The gRPC server: the control API, sessions of nodes, reflection, health.

mod applied;
mod audit;
mod auth_provider;
mod backlog;
mod blocked;
mod calls;
mod credentials;
mod draft;
pub(crate) mod drift;
mod error;
mod event;
mod event_watch;
mod explain;
mod filter;
mod forward;
mod integration;
mod kafka;
pub(crate) mod lagging;
mod layers;
mod listing;
mod mask;
mod node;
mod node_session;
mod overload;
mod page;
mod pages;
mod rates;
mod reach;
mod retained;
mod session;
mod stats;
mod status;
mod stream;
mod token;
mod traced;
mod unauthorized;
mod watch;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tbmq_proto::{
    DESCRIPTORS,
    control::{
        audit_service_server::AuditServiceServer, auth_provider_service_server::AuthProviderServiceServer,
        blocked_client_service_server::BlockedClientServiceServer,
        credentials_service_server::CredentialsServiceServer, event_service_server::EventServiceServer,
        integration_service_server::IntegrationServiceServer, kafka_service_server::KafkaServiceServer,
        node_service_server::NodeServiceServer,
        retained_message_service_server::RetainedMessageServiceServer,
        session_service_server::SessionServiceServer, token_service_server::TokenServiceServer,
        unauthorized_client_service_server::UnauthorizedClientServiceServer,
    },
    node::{
        node_forward_service_server::NodeForwardServiceServer,
        node_session_service_server::NodeSessionServiceServer,
    },
};
use tbmq_service::drain::Drain;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{server::NamedService, transport::server::TcpIncoming};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{access::tls::Tls, config::Misconfigured, plane::Plane};

/// Interval and patience of HTTP/2 pings on idle connections.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Bytes of a request: a document of the largest size, escaped.
const REQUEST_BYTES_MAX: usize = 8 << 20;

/// Bytes of an import: a thousand credentials with some rules each.
const IMPORT_BYTES_MAX: usize = 16 << 20;

const SERVICES: [&str; 14] = [
    IntegrationServiceServer::<integration::Integrations>::NAME,
    EventServiceServer::<event::Events>::NAME,
    NodeServiceServer::<node::NodesApi>::NAME,
    SessionServiceServer::<session::SessionsApi>::NAME,
    RetainedMessageServiceServer::<retained::RetainedApi>::NAME,
    TokenServiceServer::<token::Tokens>::NAME,
    AuditServiceServer::<audit::Audit>::NAME,
    CredentialsServiceServer::<credentials::CredentialsApi>::NAME,
    BlockedClientServiceServer::<blocked::BlockedApi>::NAME,
    UnauthorizedClientServiceServer::<unauthorized::UnauthorizedApi>::NAME,
    AuthProviderServiceServer::<auth_provider::ProvidersApi>::NAME,
    KafkaServiceServer::<kafka::KafkaApi>::NAME,
    NodeSessionServiceServer::<node_session::Sessions>::NAME,
    NodeForwardServiceServer::<forward::Forwards>::NAME,
];

/// The running server.
pub(crate) struct Server {
    address: SocketAddr,
    stopping: Drain,
    health: HealthReporter,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds and serves.
    pub(crate) async fn start(plane: Arc<Plane>) -> anyhow::Result<Self> {
        let grpc = &plane.config.control.grpc;
        let calls = &plane.config.control.calls;
        let wanted = SocketAddr::new(grpc.bind_address, grpc.bind_port);
        let listener = TcpListener::bind(wanted).await.with_context(|| {
            format!("can't listen on {wanted} (CONTROL_GRPC_BIND_ADDRESS, CONTROL_GRPC_BIND_PORT)")
        })?;
        let address = listener.local_addr()?;
        plane.advertise(grpc.advertised(address));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE));

        let health = HealthReporter::new();
        for service in SERVICES {
            health.set_service_status(service, ServingStatus::Serving).await;
        }
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that who knows us by reflection alone can read the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let stopping = Drain::new();
        let integrations =
            IntegrationServiceServer::new(integration::Integrations::new(plane.clone(), stopping.clone()))
                .max_decoding_message_size(REQUEST_BYTES_MAX)
                .max_encoding_message_size(usize::MAX);
        let credentials = CredentialsServiceServer::new(credentials::CredentialsApi::new(plane.clone()))
            .max_decoding_message_size(IMPORT_BYTES_MAX);
        let mut server = tonic::transport::Server::builder();
        if !grpc.max_connection_age.is_zero() {
            server = server.max_connection_age(grpc.max_connection_age);
            if !grpc.max_connection_age_grace.is_zero() {
                server = server.max_connection_age_grace(grpc.max_connection_age_grace);
            }
        }
        let router = server
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(Some(calls.streams_max.get()))
            .layer(layers::stack(&plane))
            .add_service(integrations)
            .add_service(EventServiceServer::new(event::Events::new(plane.clone(), stopping.clone())))
            .add_service(NodeServiceServer::new(node::NodesApi::new(plane.clone())))
            .add_service(SessionServiceServer::new(session::SessionsApi::new(plane.clone())))
            .add_service(RetainedMessageServiceServer::new(retained::RetainedApi::new(plane.clone())))
            .add_service(TokenServiceServer::new(token::Tokens::new(plane.clone())))
            .add_service(AuditServiceServer::new(audit::Audit::new(plane.clone())))
            .add_service(credentials)
            .add_service(BlockedClientServiceServer::new(blocked::BlockedApi::new(plane.clone())))
            .add_service(UnauthorizedClientServiceServer::new(unauthorized::UnauthorizedApi::new(
                plane.clone(),
            )))
            .add_service(AuthProviderServiceServer::new(auth_provider::ProvidersApi::new(plane.clone())))
            .add_service(KafkaServiceServer::new(kafka::KafkaApi::new(plane.clone())))
            .add_service(NodeForwardServiceServer::new(forward::Forwards::new(plane.clone())))
            .add_service(NodeSessionServiceServer::new(node_session::Sessions::new(
                plane.clone(),
                stopping.clone(),
            )))
            .add_service(HealthServer::new(HealthService::from_health_reporter(health.clone())))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let tls = Tls::open(&grpc.tls).map_err(Misconfigured::Access)?;
        say_who_may_call(&plane, address, tls.is_some());
        let stopped = stopping.clone();
        let stopped = async move { stopped.begun().await };
        let task = match tls {
            None => tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped)),
            Some(tls) => {
                let incoming = Box::pin(tls.accept(incoming, plane.metrics.clone()));
                let metrics = plane.metrics.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        result = router.serve_with_incoming_shutdown(incoming, stopped) => result,
                        () = tls.follow(metrics) => Ok(()),
                    }
                })
            }
        };
        Ok(Self { address, stopping, health, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Completes only if the server dies.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => anyhow::anyhow!("the gRPC server has ended"),
            Ok(Err(error)) => anyhow::Error::new(error).context("the gRPC server has failed"),
            Err(error) => anyhow::Error::new(error).context("the gRPC server has died"),
        }
    }

    /// Says NOT_SERVING, takes no new calls, and waits at most `patience` for those in work.
    pub(crate) async fn drain(self, patience: Duration) {
        for service in SERVICES.into_iter().chain([""]) {
            self.health.set_service_status(service, ServingStatus::NotServing).await;
        }
        self.stopping.begin();
        let mut task = self.task;
        if tokio::time::timeout(patience, &mut task).await.is_err() {
            tracing::warn!(?patience, "calls did not end in time and are cut");
            task.abort();
        }
    }
}

/// One line at the start.
fn say_who_may_call(plane: &Plane, address: SocketAddr, tls: bool) {
    let local = address.ip().is_loopback();
    match (plane.access.is_open(), local) {
        (true, true) => tracing::info!(
            "no authentication: everyone on this machine may do everything through {address} (TBMQ_ADMIN_TOKEN turns it on)"
        ),
        (true, false) => tracing::warn!(
            "no authentication: everyone who reaches {address} may do everything (TBMQ_AUTH_INSECURE is set)"
        ),
        (false, false) if !tls => tracing::warn!(
            "tokens travel in the clear to {address}: set CONTROL_GRPC_TLS_PEM_CERT and CONTROL_GRPC_TLS_PEM_KEY"
        ),
        (false, _) => tracing::info!("callers of {address} must show who they are"),
    }
}
