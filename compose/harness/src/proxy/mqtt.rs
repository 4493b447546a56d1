//! A proxy that understands MQTT, so that it can refuse publishes and keep answers back.

use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use bytes::BytesMut;
use tbmq_mqtt::{
    codec::{self, Limits},
    packet::{Ack, Packet, ProtocolVersion, Qos, ReasonCode},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Mode, Shared};

/// Passes packets on in both directions until either side ends, and answers publishes itself as the mode says.
pub(super) async fn relay(client: &mut TcpStream, server: &mut TcpStream, shared: &Shared) -> Result<()> {
    let (mut from_client, mut from_server) = (BytesMut::new(), BytesMut::new());
    let (mut to_client, mut to_server) = (BytesMut::new(), BytesMut::new());
    let mut version: Option<ProtocolVersion> = None;
    let mut mode = shared.mode.subscribe();
    loop {
        server.write_all_buf(&mut to_server).await?;
        // Going down must not release what was held.
        if !matches!(*mode.borrow_and_update(), Mode::HoldingAnswers | Mode::Down) {
            client.write_all_buf(&mut to_client).await?;
        }
        tokio::select! {
            count = client.read_buf(&mut from_client) => ensure!(count? > 0, "the client ended the connection"),
            count = server.read_buf(&mut from_server) => ensure!(count? > 0, "the broker ended the connection"),
            changed = mode.changed() => changed?,
        }
        while let Some(packet) = codec::decode(&mut from_client, version, &Limits::default())? {
            if let Packet::Connect(connect) = &packet {
                version = Some(connect.version);
            }
            let speaks = version.unwrap_or(ProtocolVersion::V5);
            match refused(&packet, shared) {
                Some(packet_id) => {
                    let refusal = Ack::new(packet_id, ReasonCode::QuotaExceeded);
                    codec::encode(&Packet::PubAck(refusal), speaks, &mut to_client);
                }
                None => codec::encode(&packet, speaks, &mut to_server),
            }
        }
        while let Some(packet) = codec::decode(&mut from_server, version, &Limits::default())? {
            if matches!(&packet, Packet::PubAck(ack) if !ack.reason.is_error()) {
                shared.acknowledged.send_modify(|count| *count += 1);
            }
            codec::encode(&packet, version.unwrap_or(ProtocolVersion::V5), &mut to_client);
        }
    }
}

/// The packet id of a publish that is to be refused: every second one.
fn refused(packet: &Packet, shared: &Shared) -> Option<u16> {
    let Packet::Publish(publish) = packet else { return None };
    let packet_id = publish.packet_id.filter(|_| publish.qos == Qos::AtLeastOnce)?;
    let is_refusing = *shared.mode.borrow() == Mode::RefusingHalf;
    let is_next = || shared.publishes.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
    (is_refusing && is_next()).then_some(packet_id)
}
