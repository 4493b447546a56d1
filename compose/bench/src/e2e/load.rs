//! Publishers at QoS 1: as fast as the acknowledgements come, or at a fixed rate (an open loop), spread over the topics of
//! many devices and over integrations.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tbmq_harness::ledger::Mark;
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Packet, Publish, Qos},
};
use tokio::{task::JoinSet, time::Instant};

use crate::{page, wire::Wire};

/// Integrations up to which all get the same share; with more the n-th gets 1/n of what the first gets (Zipf).
const EVEN_MAX: u32 = 10;

/// What all publishers do.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) publishers: u32,
    /// Unacknowledged messages of each.
    pub(super) window: usize,
    /// Bytes of a payload.
    pub(super) size: usize,
    pub(super) spread: Spread,
}

/// How messages are spread over integrations and MQTT topics.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    prefix: String,
    /// The share of all integrations up to each.
    up_to: Vec<f64>,
    /// MQTT topics in all.
    topics: u64,
}

impl Spread {
    /// Below `<prefix>/<integration>/`, on so many MQTT topics in all.
    pub(super) fn new(prefix: &str, integrations: u32, topics: u64) -> Self {
        let weight = |rank: u32| if integrations <= EVEN_MAX { 1.0 } else { 1.0 / f64::from(rank) };
        let all: f64 = (1..=integrations).map(weight).sum();
        let mut sum = 0.0;
        let up_to = (1..=integrations)
            .map(|rank| {
                sum += weight(rank) / all;
                sum
            })
            .collect();
        Self { prefix: prefix.to_owned(), up_to, topics: topics.max(1) }
    }

    /// The filter of an integration, counted from 0.
    pub(super) fn filter(&self, integration: u32) -> String {
        format!("{}/{integration}/#", self.prefix)
    }

    fn topic(&self, device: u64, random: &mut StdRng) -> String {
        let at: f64 = random.random();
        let integration = self.up_to.partition_point(|share| *share <= at).min(self.up_to.len() - 1);
        format!("{}/{integration}/{}", self.prefix, device % self.topics)
    }
}

/// What came of it.
pub(super) struct Published {
    /// Until the last acknowledgement.
    pub(super) elapsed: Duration,
    /// From the write of a PUBLISH, or from when it was due if the window held it back, to its PUBACK; µs.
    pub(super) puback: Histogram<u64>,
}

/// Lets each publisher publish `each` messages with sequences from `first` on, at `rate` messages per second in all if
/// there is one, and waits until all are acknowledged.
pub(super) async fn publish(
    broker: SocketAddr,
    load: &Load,
    first: u64,
    each: u64,
    rate: Option<f64>,
) -> Result<Published> {
    let mut connected = Vec::new();
    for number in 0..load.publishers {
        connected.push(Wire::connect(broker, &format!("bench-{first}-{number}")).await?);
    }
    let start = Instant::now();
    let mut publishers = JoinSet::new();
    for (number, wire) in connected.into_iter().enumerate() {
        let pace = rate.map(|rate| {
            let pause = Duration::from_secs_f64(f64::from(load.publishers) / rate);
            // Not all at once.
            Pace { from: start + pause.mul_f64(number as f64 / f64::from(load.publishers)), pause }
        });
        let publisher = Publisher {
            number: number as u32,
            load: load.clone(),
            random: StdRng::seed_from_u64(first + number as u64),
            first,
            count: each,
            pace,
            sent: VecDeque::new(),
            begun: 0,
            puback: page::latencies_us()?,
        };
        publishers.spawn(publisher.run(wire));
    }
    let mut puback = page::latencies_us()?;
    while let Some(ended) = publishers.join_next().await {
        puback.add(ended??)?;
    }
    Ok(Published { elapsed: start.elapsed(), puback })
}

/// When messages are due.
#[derive(Clone, Copy)]
struct Pace {
    from: Instant,
    pause: Duration,
}

struct Publisher {
    number: u32,
    load: Load,
    random: StdRng,
    first: u64,
    count: u64,
    pace: Option<Pace>,
    /// When those without an acknowledgement were sent.
    sent: VecDeque<u64>,
    begun: u64,
    puback: Histogram<u64>,
}

impl Publisher {
    async fn run(mut self, mut wire: Wire) -> Result<Histogram<u64>> {
        let mut was_full = false;
        while self.begun < self.count || !self.sent.is_empty() {
            let due = loop {
                if self.begun == self.count || self.sent.len() >= self.load.window {
                    was_full = self.begun < self.count;
                    break None;
                }
                let due = self.pace.map(|pace| pace.from + pace.pause.mul_f64(self.begun as f64));
                if due.is_some_and(|due| due > Instant::now()) {
                    was_full = false;
                    break due;
                }
                // What the window held back was due earlier: others would have sent it then.
                let late = due.filter(|_| was_full).map_or(Duration::ZERO, |due| due.elapsed());
                self.begin(&mut wire, now_ns().saturating_sub(late.as_nanos() as u64));
            };
            wire.flush().await?;
            tokio::select! {
                read = wire.fill() => read?,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            while let Some(packet) = wire.buffered()? {
                self.acknowledged(&packet)?;
            }
        }
        Ok(self.puback)
    }

    fn begin(&mut self, wire: &mut Wire, sent_ns: u64) {
        let device = self.begun * u64::from(self.load.publishers) + u64::from(self.number);
        let topic = self.load.spread.topic(device, &mut self.random);
        let mark = Mark { publisher: self.number, sequence: self.first + self.begun, sent_ns };
        wire.queue(&Packet::Publish(Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: topic.as_str().into(),
            packet_id: Some((self.begun % u64::from(u16::MAX)) as u16 + 1),
            properties: Properties::NONE,
            payload: Bytes::from(mark.payload(self.load.size)),
        }));
        self.begun += 1;
        self.sent.push_back(sent_ns);
    }

    /// The broker acknowledges in the order of the publishes.
    fn acknowledged(&mut self, packet: &Packet) -> Result<()> {
        let Packet::PubAck(ack) = packet else { bail!("{packet:?} instead of a PUBACK") };
        ensure!(!ack.reason.is_error(), "a publish was refused: {ack:?}");
        let sent_ns = self.sent.pop_front().context("an acknowledgement of nothing")?;
        self.puback.saturating_record(now_ns().saturating_sub(sent_ns) / 1_000);
        Ok(())
    }
}

/// Nanoseconds since the epoch: the clock that the far ends share.
fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(integrations: u32) -> Vec<u32> {
        let spread = Spread::new("p", integrations, 7);
        let mut random = StdRng::seed_from_u64(1);
        let mut counts = vec![0; integrations as usize];
        for device in 0..100_000 {
            let topic = spread.topic(device, &mut random);
            let parts: Vec<&str> = topic.split('/').collect();
            assert_eq!((parts[0], parts[2].parse::<u64>().unwrap()), ("p", device % 7));
            counts[parts[1].parse::<usize>().unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn a_few_integrations_get_the_same_and_many_as_zipf_says() {
        for count in shares(10) {
            assert!((9_500..10_500).contains(&count), "{count}");
        }
        let many = shares(100);
        // 1 + 1/2 + … + 1/100 = 5.187
        assert!((18_500..20_000).contains(&many[0]), "{}", many[0]);
        assert!((9_000..10_300).contains(&many[1]), "{}", many[1]);
        assert!((130..260).contains(&many[99]), "{}", many[99]);
    }
}
