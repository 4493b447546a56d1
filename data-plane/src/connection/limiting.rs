//! What a client may send, and get, is limited here ([`limit`](crate::limit)).

use tbmq_auth::credentials::ClientType;
use tbmq_mqtt::{
    packet::{Connect, Qos},
    session::{self, Delivery, Now},
};

use super::Connection;

impl Connection {
    /// Whether the client that has sent CONNECT is an APPLICATION with a session that outlives its connection.
    pub(super) fn is_application(&self, connect: &Connect) -> bool {
        let client_type = self.guest.as_ref().map(|guest| guest.client_type);
        client_type == Some(ClientType::Application) && session::expiry_s(connect, &self.limits) > 0
    }

    /// Whether the PUBLISH that has come is beyond a limit.
    pub(super) fn is_surplus(&mut self, now: Now) -> bool {
        self.session.is_connected()
            && !self.plane.limiter.admits_publish(self.used.as_deref_mut(), now.monotonic_ms)
    }

    /// Whether a delivery is within its limit, which only those at QoS 0 have.
    pub(super) fn admits(&mut self, now: Now, delivery: &Delivery) -> bool {
        delivery.qos != Qos::AtMostOnce
            || self.plane.limiter.admits_delivery(self.used.as_deref_mut(), now.monotonic_ms)
    }

    /// So many bytes were read.
    pub(super) fn has_read(&mut self, now: Now, bytes: usize) {
        self.plane.metrics.bytes_received.inc_by(bytes as u64);
        self.plane.limiter.read(self.used.as_deref_mut(), now.monotonic_ms, bytes);
    }

    /// When the client is read again that has sent too fast.
    pub(super) fn reads_at_ms(&mut self, now: Now) -> Option<u64> {
        self.used.as_mut()?.reads_at_ms(now.monotonic_ms)
    }
}
