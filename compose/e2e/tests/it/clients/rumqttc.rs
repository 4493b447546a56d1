//! rumqttc, in both versions that it speaks, behind the commands of the other libraries.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use ::rumqttc::{self as v4, Outgoing, v5};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::mpsc, task::JoinHandle, time::timeout};
use v5::mqttbytes::{QoS as QosV5, v5 as packet_v5};

use super::agent::Agent;

const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that a packet may have.
const PACKET_BYTES: u32 = 100_000;

pub(super) struct Rumqttc {
    runtime: Runtime,
    clients: HashMap<String, Client>,
}

struct Client {
    requests: Requests,
    seen: mpsc::Receiver<Seen>,
    messages: VecDeque<Value>,
    task: JoinHandle<()>,
}

enum Requests {
    V4(v4::AsyncClient),
    V5(v5::AsyncClient),
}

/// What the library's loop tells, in either version.
#[derive(Debug)]
enum Seen {
    Connected {
        session_present: bool,
    },
    Subscribed {
        granted: u8,
    },
    /// A publish is over: written at QoS 0, acknowledged else.
    Published,
    Message(Value),
    Ended(String),
}

impl Rumqttc {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { runtime: Runtime::new()?, clients: HashMap::new() })
    }
}

impl Agent for Rumqttc {
    fn ask(&mut self, command: &Value) -> Result<Value> {
        let name = text(command, "client")?;
        let _entered = self.runtime.enter();
        let (runtime, clients) = (&self.runtime, &mut self.clients);
        runtime.block_on(async {
            match text(command, "do")?.as_str() {
                "connect" => {
                    let mut client = Client::start(&name, command)?;
                    let Seen::Connected { session_present } =
                        client.wait(|seen| matches!(seen, Seen::Connected { .. })).await?
                    else {
                        bail!("no CONNACK")
                    };
                    clients.insert(name, client);
                    Ok(json!({ "session_present": session_present }))
                }
                "break" => {
                    let client = clients.remove(&name).context("not connected")?;
                    // The loop owns the socket.
                    client.task.abort();
                    ensure!(client.task.await.is_err_and(|error| error.is_cancelled()), "it had ended");
                    Ok(json!({}))
                }
                "disconnect" => {
                    let mut client = clients.remove(&name).context("not connected")?;
                    client.disconnect().await?;
                    Ok(json!({}))
                }
                other => {
                    let client = clients.get_mut(&name).context("not connected")?;
                    match other {
                        "subscribe" => client.subscribe(command).await,
                        "publish" => client.publish(command).await,
                        _ => client.receive().await,
                    }
                }
            }
        })
    }
}

impl Client {
    fn start(name: &str, command: &Value) -> Result<Self> {
        let url = text(command, "url")?;
        let at: http::Uri = url.parse()?;
        let tls = || -> Result<_> {
            let ca = std::fs::read(text(command, "ca")?)?;
            Ok(v4::TlsConfiguration::Simple { ca, alpn: None, client_auth: None })
        };
        let host = at.host().context("no host")?.to_owned();
        // With WebSocket, what it calls the host is the whole URL.
        let (transport, host) = match at.scheme_str() {
            Some("mqtts") => (v4::Transport::tls_with_config(tls()?), host),
            Some("wss") => (v4::Transport::wss_with_config(tls()?), url),
            Some("ws") => (v4::Transport::ws(), url),
            _ => (v4::Transport::tcp(), host),
        };
        let port = at.port_u16().context("no port")?;
        let will = command.get("will").map(|will| {
            anyhow::Ok((text(will, "topic")?, text(will, "payload")?, qos(will)?, is(will, "retain")))
        });
        let will = will.transpose()?;
        let (sender, seen) = mpsc::channel(10_000);
        let (requests, task) = if command["version"] == 5 {
            let mut options = v5::MqttOptions::new(name, host, port);
            options.set_transport(transport);
            options.set_clean_start(is(command, "clean")).set_max_packet_size(Some(PACKET_BYTES));
            let expiry = command["expiry"].as_u64().unwrap_or_default() as u32;
            options.set_session_expiry_interval(Some(expiry));
            if let Some((topic, payload, qos, retain)) = will {
                let qos = qos_v5(qos);
                options.set_last_will(packet_v5::LastWill::new(topic, payload, qos, retain, None));
            }
            let (client, events) = v5::AsyncClient::new(options, 10);
            (Requests::V5(client), tokio::spawn(run_v5(events, sender)))
        } else {
            let mut options = v4::MqttOptions::new(name, host, port);
            options.set_transport(transport);
            options.set_clean_session(is(command, "clean"));
            options.set_max_packet_size(PACKET_BYTES as usize, PACKET_BYTES as usize);
            if let Some((topic, payload, qos, retain)) = will {
                options.set_last_will(v4::LastWill::new(topic, payload, qos_v4(qos), retain));
            }
            let (client, events) = v4::AsyncClient::new(options, 10);
            (Requests::V4(client), tokio::spawn(run_v4(events, sender)))
        };
        Ok(Self { requests, seen, messages: VecDeque::new(), task })
    }

    /// Waits for something; messages that come before are kept.
    async fn wait(&mut self, is_it: impl Fn(&Seen) -> bool) -> Result<Seen> {
        loop {
            let seen = timeout(PATIENCE, self.seen.recv()).await.context("nothing came")?;
            match seen.context("the loop has ended")? {
                seen if is_it(&seen) => return Ok(seen),
                Seen::Message(message) => self.messages.push_back(message),
                Seen::Ended(error) => bail!("the connection has ended: {error}"),
                other => bail!("{other:?} came"),
            }
        }
    }

    async fn subscribe(&mut self, command: &Value) -> Result<Value> {
        let (filter, qos) = (text(command, "filter")?, qos(command)?);
        match &self.requests {
            Requests::V4(client) => client.subscribe(filter, qos_v4(qos)).await?,
            Requests::V5(client) => {
                let id = command["identifier"].as_u64().map(|id| id as usize);
                let properties = packet_v5::SubscribeProperties { id, user_properties: Vec::new() };
                client.subscribe_with_properties(filter, qos_v5(qos), properties).await?;
            }
        }
        match self.wait(|seen| matches!(seen, Seen::Subscribed { .. })).await? {
            Seen::Subscribed { granted } => Ok(json!({ "granted": granted })),
            other => bail!("{other:?} instead of a SUBACK"),
        }
    }

    async fn publish(&mut self, command: &Value) -> Result<Value> {
        let (topic, payload, qos) = (text(command, "topic")?, text(command, "payload")?, qos(command)?);
        let retain = is(command, "retain");
        match &self.requests {
            Requests::V4(client) => client.publish(topic, qos_v4(qos), retain, payload).await?,
            Requests::V5(client) => match command.get("properties") {
                Some(given) => {
                    let given = properties(given)?;
                    client.publish_with_properties(topic, qos_v5(qos), retain, payload, given).await?;
                }
                None => client.publish(topic, qos_v5(qos), retain, payload).await?,
            },
        }
        self.wait(|seen| matches!(seen, Seen::Published)).await?;
        Ok(json!({}))
    }

    async fn receive(&mut self) -> Result<Value> {
        if let Some(message) = self.messages.pop_front() {
            return Ok(message);
        }
        match self.wait(|seen| matches!(seen, Seen::Message(_))).await? {
            Seen::Message(message) => Ok(message),
            other => bail!("{other:?} instead of a message"),
        }
    }

    async fn disconnect(&mut self) -> Result<()> {
        match &self.requests {
            Requests::V4(client) => client.disconnect().await?,
            Requests::V5(client) => client.disconnect().await?,
        }
        self.wait(|seen| matches!(seen, Seen::Ended(_))).await.map(drop)
    }
}

/// Runs the loop until the connection ends: polled again it would connect again.
async fn run_v4(mut events: v4::EventLoop, sender: mpsc::Sender<Seen>) {
    use v4::{Event, Packet, SubscribeReasonCode};
    loop {
        let seen = match events.poll().await {
            Err(error) => Seen::Ended(error.to_string()),
            Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                Seen::Connected { session_present: connack.session_present }
            }
            Ok(Event::Incoming(Packet::SubAck(suback))) => match suback.return_codes[..] {
                [SubscribeReasonCode::Success(qos)] => Seen::Subscribed { granted: qos as u8 },
                _ => Seen::Subscribed { granted: 0x80 },
            },
            Ok(Event::Incoming(Packet::Publish(publish))) => Seen::Message(json!({
                "topic": publish.topic,
                "payload": String::from_utf8_lossy(&publish.payload),
                "qos": publish.qos as u8,
                "retain": publish.retain,
            })),
            Ok(Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => Seen::Published,
            Ok(Event::Outgoing(Outgoing::Publish(0))) => Seen::Published,
            Ok(_) => continue,
        };
        let is_over = matches!(seen, Seen::Ended(_));
        if sender.send(seen).await.is_err() || is_over {
            return;
        }
    }
}

async fn run_v5(mut events: v5::EventLoop, sender: mpsc::Sender<Seen>) {
    use packet_v5::{Packet, SubscribeReasonCode};
    use v5::Event;
    loop {
        let seen = match events.poll().await {
            Err(error) => Seen::Ended(error.to_string()),
            Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                Seen::Connected { session_present: connack.session_present }
            }
            Ok(Event::Incoming(Packet::SubAck(suback))) => match suback.return_codes[..] {
                [SubscribeReasonCode::Success(qos)] => Seen::Subscribed { granted: qos as u8 },
                _ => Seen::Subscribed { granted: 0x80 },
            },
            Ok(Event::Incoming(Packet::Publish(publish))) => Seen::Message(described(&publish)),
            Ok(Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => Seen::Published,
            Ok(Event::Outgoing(Outgoing::Publish(0))) => Seen::Published,
            Ok(_) => continue,
        };
        let is_over = matches!(seen, Seen::Ended(_));
        if sender.send(seen).await.is_err() || is_over {
            return;
        }
    }
}

fn described(publish: &packet_v5::Publish) -> Value {
    let given = publish.properties.clone().unwrap_or_default();
    let correlation = given.correlation_data.unwrap_or_default();
    json!({
        "topic": String::from_utf8_lossy(&publish.topic),
        "payload": String::from_utf8_lossy(&publish.payload),
        "qos": publish.qos as u8,
        "retain": publish.retain,
        "properties": {
            "format": given.payload_format_indicator,
            "expiry": given.message_expiry_interval,
            "content_type": given.content_type,
            "response_topic": given.response_topic,
            "correlation": String::from_utf8_lossy(&correlation),
            "user": given.user_properties,
            "identifiers": given.subscription_identifiers,
        },
    })
}

fn properties(given: &Value) -> Result<packet_v5::PublishProperties> {
    Ok(packet_v5::PublishProperties {
        payload_format_indicator: given["format"].as_u64().map(|format| format as u8),
        message_expiry_interval: given["expiry"].as_u64().map(|expiry| expiry as u32),
        content_type: Some(text(given, "content_type")?),
        response_topic: Some(text(given, "response_topic")?),
        correlation_data: Some(Bytes::from(text(given, "correlation")?)),
        user_properties: serde_json::from_value(given["user"].clone())?,
        ..Default::default()
    })
}

fn text(of: &Value, key: &str) -> Result<String> {
    Ok(of[key].as_str().with_context(|| format!("no {key} in {of}"))?.to_owned())
}

fn is(of: &Value, key: &str) -> bool {
    of[key] == true
}

fn qos(of: &Value) -> Result<u8> {
    Ok(of["qos"].as_u64().with_context(|| format!("no qos in {of}"))? as u8)
}

fn qos_v4(qos: u8) -> v4::QoS {
    [v4::QoS::AtMostOnce, v4::QoS::AtLeastOnce, v4::QoS::ExactlyOnce][usize::from(qos)]
}

fn qos_v5(qos: u8) -> QosV5 {
    [QosV5::AtMostOnce, QosV5::AtLeastOnce, QosV5::ExactlyOnce][usize::from(qos)]
}
