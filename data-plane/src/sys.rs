//! What the broker tells of itself under `$SYS/broker/`, with Mosquitto's names and meanings where Mosquitto has them. The
//! figures are this node's. New subscriptions get all of them, established ones what has changed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tbmq_mqtt::{codec::property::Properties, packet::Qos, session::Message};

use crate::{
    plane::Plane,
    route::{Matches, Router},
};

/// Publishes the figures.
#[derive(Debug)]
pub(crate) struct Figures {
    plane: Arc<Plane>,
    started: Instant,
    clients_maximum: usize,
    /// What was published last.
    published: HashMap<&'static str, String>,
    matches: Matches,
}

impl Figures {
    pub(crate) fn new(plane: Arc<Plane>) -> Self {
        Self {
            plane,
            started: Instant::now(),
            clients_maximum: 0,
            published: HashMap::new(),
            matches: Matches::default(),
        }
    }

    /// Publishes them at each interval; does not return.
    pub(crate) async fn run(mut self, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            self.publish();
        }
    }

    /// Publishes those that have changed.
    pub(crate) fn publish(&mut self) {
        for (topic, value) in self.current() {
            if self.published.get(topic) != Some(&value) {
                self.route(topic, &value);
                self.published.insert(topic, value);
            }
        }
    }

    fn route(&mut self, topic: &str, value: &str) {
        let message = Arc::new(Message {
            publisher: "".into(),
            packet_id: 0,
            // The next one is as good: nobody is to be cut for figures.
            qos: Qos::AtMostOnce,
            retain: true,
            topic: topic.into(),
            payload: value.to_owned().into(),
            properties: Properties::NONE,
            expires_at_ms: None,
        });
        self.plane.retained.show_figure(message.clone());
        self.plane.router.matching(topic, "", &mut self.matches);
        // The broker's own messages are nobody's surplus.
        Router::deliver(&message, &mut self.matches, None, &self.plane.metrics);
    }

    fn current(&mut self) -> [(&'static str, String); 16] {
        let Plane { metrics, router, registry, retained, .. } = &*self.plane;
        let connected = registry.len();
        self.clients_maximum = self.clients_maximum.max(connected);
        [
            ("$SYS/broker/version", concat!("TBMQ version ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("$SYS/broker/uptime", format!("{} seconds", self.started.elapsed().as_secs())),
            // Who is not connected has no session.
            ("$SYS/broker/clients/total", connected.to_string()),
            ("$SYS/broker/clients/connected", connected.to_string()),
            ("$SYS/broker/clients/disconnected", "0".to_owned()),
            ("$SYS/broker/clients/maximum", self.clients_maximum.to_string()),
            ("$SYS/broker/messages/received", metrics.packets_received.get().to_string()),
            ("$SYS/broker/messages/sent", metrics.packets_sent.get().to_string()),
            ("$SYS/broker/publish/messages/received", metrics.published.get().to_string()),
            ("$SYS/broker/publish/messages/sent", metrics.delivered.get().to_string()),
            ("$SYS/broker/publish/messages/dropped", metrics.dropped_in_all().to_string()),
            ("$SYS/broker/bytes/received", metrics.bytes_received.get().to_string()),
            ("$SYS/broker/bytes/sent", metrics.bytes_sent.get().to_string()),
            ("$SYS/broker/subscriptions/count", router.subscriptions().to_string()),
            ("$SYS/broker/shared_subscriptions/count", router.groups().to_string()),
            ("$SYS/broker/retained messages/count", retained.len().to_string()),
        ]
    }
}
