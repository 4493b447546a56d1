//! Connections: how fast they are made, and what an idle one costs.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use tbmq_harness::process::Usage;
use tbmq_mqtt::packet::Qos;

use super::net::Net;

/// One storm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storm {
    pub(super) connects: usize,
    pub(super) elapsed: Duration,
    /// CPU time of the broker.
    pub(super) broker: Duration,
}

/// Connects so many clients as fast as the broker takes them.
pub(super) fn storm((address, pid): (SocketAddr, u32), connects: usize) -> Result<Storm> {
    let mut net = Net::new()?;
    let before = Usage::of(pid)?.cpu;
    let began = Instant::now();
    net.connect(address, connects, |number| format!("storm-{number}"), |_| None)?;
    let elapsed = began.elapsed();
    let broker = Usage::of(pid)?.cpu.saturating_sub(before);
    net.disconnect()?;
    Ok(Storm { connects, elapsed, broker })
}

/// Resident memory of a broker that was just started, by the number of connections that do nothing.
#[derive(Clone, Debug)]
pub(super) struct Idle {
    /// Before the first.
    pub(super) before_bytes: u64,
    /// Connections, and resident bytes.
    pub(super) at: Vec<(usize, u64)>,
}

impl Idle {
    /// What each connection costs at each number of them.
    pub(super) fn bytes_each(&self) -> impl Iterator<Item = (usize, f64)> {
        self.at.iter().map(|(count, bytes)| {
            (*count, bytes.saturating_sub(self.before_bytes) as f64 / (*count).max(1) as f64)
        })
    }
}

/// Connects clients with one subscription each, step by step.
pub(super) fn idle((address, pid): (SocketAddr, u32), steps: &[usize]) -> Result<Idle> {
    // What the first connections cost is not what each costs.
    let mut net = Net::new()?;
    let filter = |number: usize| Some((format!("idle/{number}/commands"), Qos::AtLeastOnce));
    net.connect(address, 100, |number| format!("warm-{number}"), |number| filter(1_000_000 + number))?;
    net.disconnect()?;
    let mut net = Net::new()?;
    let mut idle = Idle { before_bytes: Usage::of(pid)?.resident_bytes, at: Vec::new() };
    let mut connected = 0;
    for step in steps {
        let more = step.saturating_sub(connected);
        let from = connected;
        net.connect(
            address,
            more,
            |number| format!("idle-{}", from + number),
            |number| filter(from + number),
        )?;
        connected += more;
        idle.at.push((connected, Usage::of(pid)?.resident_bytes));
    }
    net.disconnect()?;
    Ok(idle)
}
