//! MQTT integrations: messages are published to another broker (spec §6.4).
//!
//! | module | what |
//! |---|---|
//! | [`config`] | `clientConfiguration`, read and checked |
//! | `publisher` | from a message to a PUBLISH, within what the broker allows |
//! | `session` | the client's side of the protocol, without I/O: what is sent, and which message an answer is for |
//! | `dial` | one attempt to connect, in stages; the connection check is such an attempt |
//! | `sink` | runs the session on a socket |
//!
//! One client serves MQTT 3.1, 3.1.1 and 5.0, over the workspace's own codec, so that each acknowledgement is matched to
//! its message by packet id. A message is delivered when PUBACK (QoS 1) or PUBCOMP (QoS 2) came; nothing confirms QoS 0,
//! which is delivered when the socket has taken it. While the broker is away the sink is `Away`: its message topic is
//! paused, and what was on its way is sent anew on the next connection (spec UP-19). The broker's Receive Maximum and
//! Maximum Packet Size are kept; topic aliases are not used.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Map, Value};
use tbmq_integration::entity::Violation;
use tbmq_mqtt::packet::ProtocolVersion;
use uuid::Uuid;

use self::{config::Checked, dial::Dialer, publisher::Publisher, session::Settings, sink::MqttSink};
use super::{SinkSettings, binder, envelope::Envelope, stages::Stages};
use crate::sink::{ConnectError, ProbeReport, Sink, SinkContext, SinkKind};

pub mod config;
mod dial;
mod publisher;
mod session;
mod sink;

#[cfg(test)]
mod broker;
#[cfg(test)]
mod tests;

/// The kind `MQTT`.
#[derive(Debug)]
pub struct Mqtt {
    settings: SinkSettings,
}

impl Mqtt {
    /// The kind, for the settings of this process.
    pub fn new(settings: SinkSettings) -> Self {
        Self { settings }
    }

    fn dialer(&self, checked: Checked, client_id: String) -> Result<Dialer, String> {
        Dialer::new(checked, client_id, self.settings.egress.clone())
    }
}

#[async_trait]
impl SinkKind for Mqtt {
    fn name(&self) -> &'static str {
        "MQTT"
    }

    fn schema(&self) -> Value {
        binder::schema::<config::Config>()
    }

    /// One connection, and what one leaves without an answer is sent anew before anything younger.
    fn keeps_order(&self, _: &Map<String, Value>) -> bool {
        true
    }

    fn check(&self, client_configuration: &Map<String, Value>) -> Vec<Violation> {
        config::read(client_configuration, &self.settings).violations
    }

    /// Connects and disconnects. With a client id of its own, so that a running connection is not ended, unless the
    /// configuration says `checkWithClientId`.
    async fn probe(
        &self,
        client_configuration: &Map<String, Value>,
        _: &SinkContext,
        deadline: Duration,
    ) -> ProbeReport {
        let dialer = config::read(client_configuration, &self.settings).accepted().and_then(|checked| {
            let client_id = probe_client_id(&checked);
            Ok(self.dialer(checked, client_id)?)
        });
        let dialer = match dialer {
            Ok(dialer) => dialer,
            Err(error) => return error.into(),
        };
        let mut stages = Stages::new(deadline.min(dialer.timeout()).min(self.settings.check_timeout));
        let result = dialer.dial(&mut stages).await;
        let error = match result {
            Ok(connection) => {
                connection.end().await;
                None
            }
            Err(text) => Some(text),
        };
        ProbeReport { error, ..stages.report }
    }

    /// Waits for the broker's CONNACK, at most `connectTimeoutSec`.
    async fn connect(
        &self,
        client_configuration: &Map<String, Value>,
        context: SinkContext,
    ) -> Result<Box<dyn Sink>, ConnectError> {
        let checked = config::read(client_configuration, &self.settings).accepted()?;
        let settings = Settings {
            window: context.window.max(1),
            attempt_timeout: self.settings.attempt_timeout(&context),
            reconnect: seconds(checked.config.reconnect_period_sec),
            keep_alive: seconds(checked.config.keep_alive_sec).unwrap_or_default(),
            ping_timeout: Duration::from_secs(checked.config.connect_timeout_sec.into()),
        };
        let envelope = Envelope::new(&context.executor_id, &context.metadata);
        let publisher = Publisher::new(&checked, envelope);
        let mut client_id = checked.config.client_id.clone();
        if context.shard.index > 0 {
            // The shards of an integration are clients of their own.
            client_id = format!("{client_id}-{}", context.shard.index);
        }
        let dialer = Arc::new(self.dialer(checked, client_id)?);
        let connection = dialer.dial(&mut Stages::new(dialer.timeout())).await?;
        Ok(Box::new(MqttSink::new(settings, publisher, dialer, connection)))
    }
}

/// The client id of a connection check.
fn probe_client_id(checked: &Checked) -> String {
    let configured = &checked.config.client_id;
    if checked.config.check_with_client_id {
        return configured.clone();
    }
    let number = Uuid::new_v4().simple().to_string();
    let suffix = format!("-check-{}", &number[..8]);
    // MQTT 3.1 allows 23 characters; for others the whole id may have to match a rule of the broker.
    let length = match checked.version {
        ProtocolVersion::V31 => 23 - suffix.len(),
        ProtocolVersion::V311 | ProtocolVersion::V5 => usize::MAX,
    };
    configured.chars().take(length).chain(suffix.chars()).collect()
}

/// Seconds of a configuration; 0 means none.
fn seconds(number: u32) -> Option<Duration> {
    (number > 0).then(|| Duration::from_secs(number.into()))
}
