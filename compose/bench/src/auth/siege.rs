//! Passwords are guessed at a fixed rate, while a client that is connected publishes to itself.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use tbmq_harness::client::Client;
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Ack, Packet, Publish, Qos, ReasonCode},
};

use super::{Broker, PASSWORD, connect, login, paced, user_name};

/// How long messages are exchanged before the first guess.
const QUIET: Duration = Duration::from_secs(3);

/// What came of it.
pub(super) struct Siege {
    /// Guesses that were answered with 0x87, after a hash.
    pub(super) wrong: u64,
    /// Guesses that were answered with 0x97: no room to hash.
    pub(super) busy: u64,
    /// From PUBLISH until it is acknowledged and delivered, µs: before, and during the guesses.
    pub(super) quiet: Histogram<u64>,
    pub(super) during: Histogram<u64>,
    /// Bytes that the broker's memory grew by at most.
    pub(super) grown_bytes: u64,
}

impl Siege {
    /// Guesses `rate` passwords a second, half of them of users that there are. No message of the other client may be
    /// missing, refused or another than is due.
    pub(super) async fn lay(broker: &Broker, rate: u32, seconds: u32, users: u32) -> Result<Self> {
        let (mut client, connack) = Client::connect_with(broker.address, login(0, Some(PASSWORD))).await?;
        ensure!(connack.reason == ReasonCode::Success, "{:?}", connack.reason);
        client.subscribe(&topic(), Qos::AtLeastOnce).await?;
        let quiet = exchange(&mut client, &AtomicBool::new(false), Some(QUIET)).await?;
        let before_bytes = broker.usage()?.resident_bytes;
        let is_over = AtomicBool::new(false);
        let guessing = async {
            let outcome = guess(broker.address, rate, seconds, users).await;
            is_over.store(true, Ordering::Relaxed);
            outcome
        };
        let (guessed, during) = tokio::join!(guessing, exchange(&mut client, &is_over, None));
        let ((wrong, busy), during) = (guessed?, during?);
        let grown_bytes = broker.usage()?.peak_bytes.saturating_sub(before_bytes);
        client.disconnect().await?;
        Ok(Self { wrong, busy, quiet, during, grown_bytes })
    }
}

async fn guess(address: SocketAddr, rate: u32, seconds: u32, users: u32) -> Result<(u64, u64)> {
    let (mut wrong, mut busy) = (0, 0);
    // Every other user is unknown.
    let attempt = move |number: u32| {
        let user = if number.is_multiple_of(2) { number % users } else { users + number };
        connect(address, user, Some("a guess"))
    };
    paced(rate, seconds, attempt, |(_, reason)| {
        match reason {
            ReasonCode::NotAuthorized => wrong += 1,
            ReasonCode::QuotaExceeded => busy += 1,
            other => bail!("a guess is answered with {other:?}"),
        }
        Ok(())
    })
    .await?;
    Ok((wrong, busy))
}

fn topic() -> String {
    format!("devices/{}/x", user_name(0))
}

/// Publishes numbers, each when the one before was acknowledged and has come back.
async fn exchange(
    client: &mut Client,
    is_over: &AtomicBool,
    time: Option<Duration>,
) -> Result<Histogram<u64>> {
    let mut took = Histogram::new(3)?;
    let began = Instant::now();
    let mut number = 0_u64;
    while !is_over.load(Ordering::Relaxed) && time.is_none_or(|time| began.elapsed() < time) {
        number += 1;
        let packet_id = (number % 60_000 + 1) as u16;
        let payload = number.to_string();
        let publish = Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: topic().as_str().into(),
            packet_id: Some(packet_id),
            properties: Properties::NONE,
            payload: payload.clone().into(),
        };
        let sent = Instant::now();
        client.send(&Packet::Publish(publish)).await?;
        let (mut is_acknowledged, mut is_back) = (false, false);
        while !is_acknowledged || !is_back {
            match client.receive().await? {
                Packet::PubAck(ack) if ack.packet_id == packet_id && !ack.reason.is_error() => {
                    is_acknowledged = true;
                }
                Packet::Publish(message) if message.payload == payload && !is_back => {
                    is_back = true;
                    let id = message.packet_id.unwrap_or_default();
                    client.send(&Packet::PubAck(Ack::new(id, ReasonCode::Success))).await?;
                }
                other => bail!("message {number}: {other:?}"),
            }
        }
        took.record(sent.elapsed().as_micros() as u64)?;
        // As a device does, and not as fast as it goes.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(took)
}
