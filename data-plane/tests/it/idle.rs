//! What a connection costs while nothing happens on it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
};

use allocation_counter::measure;
use bytes::BytesMut;
use tbmq_mqtt::{
    codec::{self, property::Properties},
    packet::{Packet, ProtocolVersion, Qos, Subscribe},
};
use tokio::runtime;

use crate::{
    client::{connect_packet, subscription},
    plane::{Plane, until},
};

/// Clients with one subscription each, made by a thread of its own, whose memory does not count.
struct Clients {
    wanted: mpsc::SyncSender<usize>,
}

impl Clients {
    fn of(broker: SocketAddr) -> Self {
        let (wanted, orders) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let mut open = Vec::new();
            for count in orders {
                for number in open.len()..count {
                    open.push(client(broker, number));
                }
            }
        });
        Self { wanted }
    }

    /// Waits until there are so many, and the broker is done with them.
    async fn reach(&self, count: usize, plane: &Plane) {
        self.wanted.send(count).unwrap();
        until(|| plane.metric("tbmq_mqtt_packets_sent_total") == 2 * count as u64).await;
    }
}

fn client(broker: SocketAddr, number: usize) -> TcpStream {
    let version = ProtocolVersion::V5;
    let subscribe = Packet::Subscribe(Subscribe {
        packet_id: 1,
        subscriptions: vec![subscription(&format!("idle/{number}/commands"), Qos::AtLeastOnce)],
        properties: Properties::NONE,
    });
    let connect = Packet::Connect(Box::new(connect_packet(version, &format!("idle-{number}"))));
    let mut stream = TcpStream::connect(broker).unwrap();
    for packet in [connect, subscribe] {
        let mut bytes = BytesMut::new();
        codec::encode(&packet, version, &mut bytes);
        stream.write_all(&bytes).unwrap();
        assert!(stream.read(&mut [0; 256]).unwrap() > 0);
    }
    stream
}

/// The target is 4 KiB of resident memory (architecture §4.23); the allocator's own share comes on top of this.
#[test]
fn an_idle_connection_with_a_subscription_owns_less_than_two_and_a_half_kib() {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let plane = runtime.block_on(Plane::start());
    let clients = Clients::of(plane.address);
    // Tables double: they are as full before as after.
    runtime.block_on(clients.reach(100, &plane));
    let memory = measure(|| runtime.block_on(clients.reach(400, &plane)));
    let bytes = memory.bytes_current / 300;
    assert!((1..2560).contains(&bytes), "{bytes} bytes");
    runtime.block_on(plane.running.drain());
}
