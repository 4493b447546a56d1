//! Clients that use the broker all the time, and that nothing may disturb.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tbmq_mqtt::packet::{Ack, Packet, ProtocolVersion, Qos, ReasonCode};
use tokio::task::JoinHandle;

use crate::{
    client::{Client, publish, text},
    plane::{Plane, until},
};

/// One publishes numbers, and two others get each of them, in their order: at QoS 1, acknowledged, and at QoS 0.
pub(crate) struct Bystanders {
    task: JoinHandle<()>,
    exchanges: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Bystanders {
    /// Waits until they have begun.
    pub(crate) async fn start(plane: &Arc<Plane>) -> Self {
        let (exchanges, is_over) = (Arc::default(), Arc::default());
        let task = tokio::spawn(exchange(plane.clone(), Arc::clone(&exchanges), Arc::clone(&is_over)));
        let bystanders = Self { task, exchanges, is_over };
        bystanders.go_on().await;
        bystanders
    }

    /// Waits until they have exchanged some messages more.
    pub(crate) async fn go_on(&self) {
        let before = self.exchanges.load(Ordering::Relaxed);
        until(|| self.task.is_finished() || self.exchanges.load(Ordering::Relaxed) >= before + 10).await;
    }

    /// Asserts that they lose nothing, also now. Returns how many messages there were.
    pub(crate) async fn end(self) -> u64 {
        self.go_on().await;
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.expect("nobody is disturbed");
        self.exchanges.load(Ordering::Relaxed)
    }
}

async fn exchange(plane: Arc<Plane>, exchanges: Arc<AtomicU64>, is_over: Arc<AtomicBool>) {
    let mut publisher = Client::v5(plane.address, "good publisher").await;
    let mut exact = Client::connected(plane.address, ProtocolVersion::V311, "good exact").await;
    exact.subscribed("good/news", Qos::AtLeastOnce).await;
    let mut wild = Client::v5(plane.address, "good wild").await;
    wild.subscribed("good/+", Qos::AtMostOnce).await;
    let mut sent = 0_u64;
    while !is_over.load(Ordering::Relaxed) {
        sent += 1;
        let mut message = publish("good/news", Qos::AtLeastOnce, (sent % 60_000 + 1) as u16, "");
        message.payload = sent.to_string().into();
        publisher.send(Packet::Publish(message)).await;
        assert_eq!(publisher.puback().await.reason, ReasonCode::Success);
        let message = exact.message().await;
        assert_eq!(text(&message), sent.to_string());
        exact.send(Packet::PubAck(Ack::new(message.packet_id.unwrap(), ReasonCode::Success))).await;
        assert_eq!(text(&wild.message().await), sent.to_string());
        exchanges.store(sent, Ordering::Relaxed);
    }
}
