//! MQTT clients and data planes, ruled through whichever control plane is asked.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tbmq_e2e::{
    deployment::{Deployment, Layout, Plane},
    instance::Instance,
};
use tbmq_harness::{Need, client::Client, kafka::Kafka, postgres::Postgres, ready};
use tbmq_mqtt::packet::{Packet, ProtocolVersion, ReasonCode};
use tbmq_proto::control::{
    DisconnectSessionRequest, DrainNodeRequest, GetSessionRequest,
    session_service_client::SessionServiceClient,
};
use tonic::{Code, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(60);

async fn sessions(deployment: &Deployment, instance: Instance) -> Result<SessionServiceClient<Channel>> {
    let address = deployment.address(instance, "grpc")?;
    Ok(SessionServiceClient::new(Channel::from_shared(format!("http://{address}"))?.connect().await?))
}

/// Asks until the session is found: a data plane may be looking for a control plane.
async fn found_through(deployment: &Deployment, instance: Instance, client_id: &str) -> Result<()> {
    let mut client = sessions(deployment, instance).await?;
    let began = Instant::now();
    loop {
        let request = GetSessionRequest { client_id: client_id.to_owned() };
        match client.get_session(request).await {
            Ok(session) => {
                ensure!(session.get_ref().service_id == "data-1", "{session:?}");
                return Ok(());
            }
            Err(status) if began.elapsed() > PATIENCE => return Err(status.into()),
            Err(status) => ensure!(status.code() == Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn disconnected_through(deployment: &Deployment, instance: Instance, mut client: Client) -> Result<()> {
    found_through(deployment, instance, "c").await?;
    let request = DisconnectSessionRequest { client_id: "c".to_owned(), ..Default::default() };
    sessions(deployment, instance).await?.disconnect_session(request).await?;
    match client.receive().await? {
        Packet::Disconnect(told) if told.reason == ReasonCode::AdministrativeAction => Ok(()),
        other => bail!("through {instance} the client was told {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_ruled_through_any_control_plane_also_after_one_was_killed() -> Result<()> {
    let test = "clients_are_ruled_through_any_control_plane_also_after_one_was_killed";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let mut deployment = Layout::of(2, 1, 0).start(Kafka::shared(), Postgres::shared())?;
    let [first, second] = [Plane::Control.nth(1), Plane::Control.nth(2)];
    let connect = || Client::connect(deployment.mqtt(), "c", ProtocolVersion::V5);
    // One of them does not hold the data plane's session.
    for instance in [first, second] {
        disconnected_through(&deployment, instance, connect().await?).await?;
    }

    // The data plane looks for a session at the first one at first.
    let mut client = connect().await?;
    deployment.kill(first)?;
    found_through(&deployment, second, "c").await?;
    client.send(&Packet::PingReq).await?;
    assert_eq!(client.receive().await?, Packet::PingResp, "the client has noticed nothing");
    disconnected_through(&deployment, second, client).await?;

    deployment.start(first)?;
    let mut last = Client::connect(deployment.mqtt(), "last", ProtocolVersion::V5).await?;
    let request = DrainNodeRequest { service_id: "data-1".to_owned() };
    let node = deployment.api_of(first)?.nodes.drain_node(request).await?.into_inner();
    assert!(node.draining && node.system_info.context("no system info")?.total_memory_bytes > 0);
    match last.receive().await? {
        Packet::Disconnect(told) => assert_eq!(told.reason, ReasonCode::UseAnotherServer),
        other => bail!("{other:?}"),
    }
    assert!(Client::connect(deployment.mqtt(), "late", ProtocolVersion::V5).await.is_err());
    assert!(deployment.is_running(Plane::Data)?, "it stays up until it is stopped");
    deployment.drain_all()
}
