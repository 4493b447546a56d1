//! Damaged packets against a broker that others use: `TBMQ_FUZZ_PACKETS` of them, from `TBMQ_FUZZ_SEED`;
//! `cargo xtask fuzz` and the gate set them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tbmq_mqtt::packet::{Qos, ReasonCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    bystanders::Bystanders,
    client::Client,
    mutate::{Mutator, corpus},
    plane::{Plane, config, until},
};

/// Clients that send damaged packets at the same time.
const ATTACKERS: u64 = 8;

/// Packets written at once on one connection.
const BURST: usize = 8;

/// What memory may grow by from the first tenth of the packets to the last: none of it is the packets'.
const GROWTH_MIB_MAX: u64 = 16;

/// Set in the process that the attack has for itself.
const ALONE: &str = "TBMQ_FUZZ_ALONE";

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// Memory of this process, in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Connects, writes a burst, and reads until the server closes or has nothing more to say.
async fn attack(plane: &Plane, mutator: &mut Mutator) -> usize {
    let name = *mutator.pick(&["v311", "v5"]);
    let (connects, others): (Vec<_>, Vec<_>) =
        corpus(name).into_iter().partition(|packet| packet[0] >> 4 == 1);
    // These end a connection even when they are whole: most bursts are to go on.
    let (last, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|packet| matches!(packet[0] >> 4, 2 | 9 | 11 | 13..));
    let mut bytes = if mutator.one_in(4) { mutator.packet(&connects) } else { connects[0].clone() };
    for _ in 0..BURST {
        let of = if mutator.one_in(16) { &last } else { &others };
        bytes.extend(mutator.packet(of));
    }
    // Who finds no room among the connections tries again.
    let Ok(mut stream) = TcpStream::connect(plane.address).await else { return 0 };
    // The server may have closed before all is written.
    if stream.write_all(&bytes).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut answers = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answers))
            .await
            .expect("the server closes a connection whose client has closed its side")
            .ok();
    }
    BURST + 1
}

/// In a process of its own, so that the memory is that of the broker and its clients alone.
#[test]
fn damaged_packets_bring_no_broker_down_leave_nothing_behind_and_disturb_nobody() {
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.unwrap().block_on(under_attack());
    }
    let name = "fuzz::damaged_packets_bring_no_broker_down_leave_nothing_behind_and_disturb_nobody";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
    println!("{}", out.lines().find(|line| line.contains("damaged packets")).expect("the figures"));
}

async fn under_attack() {
    let wanted = setting("TBMQ_FUZZ_PACKETS").unwrap_or(100_000) as usize;
    let seed = setting("TBMQ_FUZZ_SEED").unwrap_or(1);
    let mut config = config();
    // Damage makes sessions that outlive their connections, and they are to go.
    config.mqtt.client_session_expiry.max_expiry_interval = 1;
    config.mqtt.client_session_expiry.ttl = 1;
    let plane = Arc::new(Plane::with(crate::bus::TestBus::new(), config).await);
    let others = Bystanders::start(&plane).await;
    let (sent, warm) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let mut attackers = Vec::new();
    for attacker in 0..ATTACKERS {
        let (plane, sent, warm) = (plane.clone(), sent.clone(), warm.clone());
        attackers.push(tokio::spawn(async move {
            let mut mutator = Mutator::new(seed << 8 | attacker);
            while sent.load(Ordering::Relaxed) < wanted {
                let count = attack(&plane, &mut mutator).await;
                let before = sent.fetch_add(count, Ordering::Relaxed);
                if before <= wanted / 10 && before + count > wanted / 10 {
                    warm.store(resident_mib(), Ordering::Relaxed);
                }
            }
        }));
    }
    for attacker in attackers {
        attacker.await.expect("no attacker is left hanging");
    }
    let exchanges = others.end().await;
    until(|| plane.metric("tbmq_mqtt_connections") + plane.metric("tbmq_mqtt_sessions_parked") == 0).await;
    let (before, after) = (warm.load(Ordering::Relaxed), resident_mib());
    println!(
        "{} damaged packets: {before} MiB after a tenth, {after} MiB after all; {exchanges} messages of others; {} sessions \
         expired",
        sent.load(Ordering::Relaxed),
        plane.metric("tbmq_mqtt_sessions_expired_total"),
    );
    assert!(
        after <= before + GROWTH_MIB_MAX,
        "{before} MiB after a tenth of the packets, {after} MiB after all"
    );
    // What the damaged clients had subscribed to went with them.
    let mut last = Client::v5(plane.address, "last").await;
    for topic in ["a/b", "t", "x/b"] {
        last.publish(topic, Qos::AtLeastOnce, 1, "x").await;
        assert_eq!(last.puback().await.reason, ReasonCode::NoMatchingSubscribers, "{topic}");
    }
}
