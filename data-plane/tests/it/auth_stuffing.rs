//! Many who guess passwords: hashing is bounded, and those who are let in notice nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tbmq_mqtt::packet::{ProtocolVersion, Qos, ReasonCode};
use tokio::{net::TcpSocket, task::JoinSet};

use crate::{
    auth::{answer, put_credentials, put_settings, with_password},
    bus::TestBus,
    client::Client,
    plane::{Plane, config, until},
    samples::{allow, basic, credentials, hash, provider},
};

/// Guesses, made by so many at a time, from so many addresses.
const GUESSES: usize = 2000;
const GUESSERS: usize = 60;
const ADDRESSES: usize = 6;

/// What may wait: less than there are guessers, in all and from one address.
const QUEUE_MAX: usize = 20;
const ADDRESS_MAX: usize = 5;

const MESSAGES: usize = 300;

/// A connection from one of the addresses of this machine.
async fn connection(to: SocketAddr, number: usize) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    let from = SocketAddr::from(([127, 0, 0, 2 + (number % ADDRESSES) as u8], 0));
    socket.bind(from).unwrap();
    Client::over(socket.connect(to).await.unwrap(), ProtocolVersion::V5)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_passwords_are_guessed_hashing_is_bounded_and_the_messages_of_others_all_arrive() {
    let bus = TestBus::new();
    // Costly enough that the queue fills, and not so much that who waits in it is late: tests are not optimized.
    let hash = hash("secret", 1 << 10);
    let rules = || vec![allow("#")];
    let known =
        [credentials(1, 1, basic("u", Some(hash), rules())), credentials(2, 1, basic("open", None, rules()))];
    put_credentials(&bus, &known).await;
    put_settings(&bus, &[provider("MQTT_BASIC", "")]).await;
    let mut config = config();
    config.auth.hash_threads = 1;
    config.auth.hash_queue_max = QUEUE_MAX;
    config.auth.hash_queue_address_max = ADDRESS_MAX;
    let plane = Plane::with(bus, config).await;
    let by_password = || with_password(ProtocolVersion::V5, "known", "u", Some("secret"));
    Client::with(plane.address, by_password()).await.0.leave().await;

    let left = Arc::new(AtomicUsize::new(GUESSES));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut guessers = JoinSet::new();
    for number in 0..GUESSERS {
        let (left, address) = (left.clone(), plane.address);
        guessers.spawn(async move {
            let mut told = [0; 2];
            let is_left = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_left).is_ok() {
                let user = if number % 2 == 0 { "u" } else { "nobody" };
                let guess =
                    with_password(ProtocolVersion::V5, &format!("guess{number}"), user, Some("guess"));
                let mut client = connection(address, number).await;
                match answer(&mut client, guess).await.reason {
                    ReasonCode::NotAuthorized => told[0] += 1,
                    ReasonCode::QuotaExceeded => told[1] += 1,
                    other => panic!("{other:?}"),
                }
            }
            told
        });
    }
    let connect = |id| with_password(ProtocolVersion::V5, id, "open", None);
    let exchange = async {
        let mut subscriber = Client::with(plane.address, connect("subscriber")).await.0;
        subscriber.subscribed("a", Qos::AtLeastOnce).await;
        let mut publisher = Client::with(plane.address, connect("publisher")).await.0;
        for number in 1..=MESSAGES {
            publisher.publish("a", Qos::AtLeastOnce, number as u16, "x").await;
            assert_eq!(publisher.puback().await.reason, ReasonCode::Success);
            let message = subscriber.message().await;
            let ack = tbmq_mqtt::packet::Ack::new(message.packet_id.unwrap(), ReasonCode::Success);
            subscriber.send(tbmq_mqtt::packet::Packet::PubAck(ack)).await;
        }
        // Who was verified lately is let in without a hash.
        Client::with(plane.address, by_password()).await.0.leave().await;
        is_over.store(true, Ordering::Relaxed);
    };
    let watch = async {
        let mut deepest = 0;
        while !is_over.load(Ordering::Relaxed) || plane.metric("tbmq_auth_hash_queue") > 0 {
            deepest = deepest.max(plane.metric("tbmq_auth_hash_queue"));
            tokio::task::yield_now().await;
        }
        deepest
    };
    let ((), deepest) = tokio::join!(exchange, watch);
    let all = guessers.join_all().await;
    let (wrong, busy) = all.into_iter().fold((0, 0), |sum, told| (sum.0 + told[0], sum.1 + told[1]));
    assert_eq!(wrong + busy, GUESSES as u64);
    assert!(wrong > 0 && busy > 0, "{wrong} {busy}");
    assert!((1..=QUEUE_MAX as u64).contains(&deepest), "{deepest}");
    // One for the client that is known, and one for each guess that was judged.
    assert_eq!(plane.metric("tbmq_auth_hashes_total"), wrong + 1);
    let refused = |reason: &str| plane.metric(&format!("tbmq_auth_refused_total{{reason=\"{reason}\"}}"));
    assert_eq!(refused("QueueFull") + refused("AddressQueueFull"), busy);
    assert!(refused("AddressQueueFull") > 0);
    until(|| plane.metric("tbmq_auth_hash_queue") == 0).await;
}
