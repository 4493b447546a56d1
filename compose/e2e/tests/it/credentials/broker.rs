//! A broker that is told by `tbmqctl` who may connect, and clients that try.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tbmq_e2e::deployment::Deployment;
use tbmq_harness::{client::Client, process};
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Connect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, Subscribe, Subscription},
};
use tbmq_proto::control::credentials_service_client::CredentialsServiceClient;
use tempfile::TempDir;
use tonic::transport::Channel;

/// How long what is written by somebody else may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two questions: nothing tells of a change but asking.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Broker {
    pub(super) deployment: Deployment,
    folder: TempDir,
}

impl Broker {
    pub(super) fn new(deployment: Deployment) -> Result<Self> {
        let folder = process::data_dir()?;
        std::fs::write(folder.path().join("pw"), "s3same\n")?;
        Ok(Self { deployment, folder })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.path().join(name), text)?)
    }

    /// Exit code, stdout and stderr of `tbmqctl`.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let server = format!("http://{}", self.deployment.grpc());
        let output = process::run("tbmqctl", arguments, &[("TBMQCTL_SERVER", &server)], self.folder())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().context("killed")?, text(&output.stdout), text(&output.stderr)))
    }

    /// The same with these rules; what is printed when it was done.
    pub(super) fn tell(&self, arguments: &[&str], rules: &[&str]) -> Result<String> {
        let rules = rules.iter().flat_map(|rule| ["--rule", rule]);
        let arguments: Vec<&str> = arguments.iter().copied().chain(rules).collect();
        let (code, stdout, stderr) = self.run(&arguments)?;
        ensure!(code == 0, "{arguments:?} ended with {code}: {stderr}");
        Ok(stdout)
    }

    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.tell(&[arguments, &["-o", "json"]].concat(), &[])?)?)
    }

    /// Asks until the answer is as it should be.
    pub(super) async fn eventually(
        &self,
        arguments: &[&str],
        is_so: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.json(arguments);
            match seen {
                Ok(value) if is_so(&value) => return Ok(value),
                seen if Instant::now() > deadline => bail!("{arguments:?} was last answered {seen:?}"),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Connects, with a user name and a password or without.
    pub(super) async fn connect(
        &self,
        client_id: &str,
        version: ProtocolVersion,
        login: Option<(&str, &str)>,
    ) -> Result<Client> {
        let connect = Connect {
            keep_alive: 60,
            username: login.map(|(name, _)| name.into()),
            password: login.map(|(_, password)| password.to_owned().into()),
            ..Connect::new(version, client_id)
        };
        let (client, connack) = Client::connect_with(self.deployment.mqtt(), connect).await?;
        if connack.reason == ReasonCode::Success { Ok(client) } else { Err(Refused(connack.reason).into()) }
    }

    /// Tries until it is let in: what lets it in is not awaited by whoever says so.
    pub(super) async fn eventually_connects(
        &self,
        client_id: &str,
        login: Option<(&str, &str)>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.connect(client_id, ProtocolVersion::V5, login).await {
                Ok(client) => return client.disconnect().await,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    pub(super) async fn credentials(&self) -> Result<CredentialsServiceClient<Channel>> {
        let server = Channel::from_shared(format!("http://{}", self.deployment.grpc()))?;
        Ok(CredentialsServiceClient::new(server.connect().await?))
    }
}

/// The reason of a CONNACK.
#[derive(Debug)]
struct Refused(ReasonCode);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CONNECT was answered with {:?}", self.0)
    }
}

impl std::error::Error for Refused {}

/// Sees that a client was refused, and why.
pub(super) fn refused_with(connected: Result<Client>, reason: ReasonCode) -> Result<()> {
    let Err(error) = connected else { bail!("it was let in") };
    match error.downcast_ref::<Refused>() {
        Some(Refused(seen)) if *seen == reason => Ok(()),
        _ => Err(error.context(format!("it was to be refused with {reason:?}"))),
    }
}

/// Publishes at QoS 1; whether that was allowed.
pub(super) async fn may_publish(client: &mut Client, topic: &str) -> Result<bool> {
    let publish = Publish {
        dup: false,
        qos: Qos::AtLeastOnce,
        retain: false,
        topic: topic.into(),
        packet_id: Some(1),
        properties: Properties::NONE,
        payload: "x".into(),
    };
    client.send(&Packet::Publish(publish)).await?;
    loop {
        match client.receive().await? {
            Packet::PubAck(ack) if ack.reason == ReasonCode::NotAuthorized => return Ok(false),
            Packet::PubAck(ack) if !ack.reason.is_error() => return Ok(true),
            // Its own, if it has subscribed to it.
            Packet::Publish(_) => {}
            other => bail!("{other:?} instead of a PUBACK"),
        }
    }
}

/// Subscribes at QoS 1; the reason of the SUBACK.
pub(super) async fn subscribed(client: &mut Client, filter: &str) -> Result<ReasonCode> {
    let subscribe = Subscribe::new(2, vec![Subscription::new(filter, Qos::AtLeastOnce)]);
    client.send(&Packet::Subscribe(subscribe)).await?;
    match client.receive().await? {
        Packet::SubAck(suback) => suback.reasons.first().copied().context("an empty SUBACK"),
        other => bail!("{other:?} instead of a SUBACK"),
    }
}
