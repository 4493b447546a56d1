//! Publishers and subscribers of one case: as fast as the broker goes, or at a fixed rate for latencies.
//!
//! Every payload says who published it, as which message and when, so that what is lost, doubled or out of order is
//! found by each subscriber.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tbmq_harness::process::Usage;
use tbmq_mqtt::{
    codec::{EncodedPublish, property::Properties},
    packet::{Ack, Packet, Publish, Qos, ReasonCode},
};

use super::net::{Net, PATIENCE, VERSION};

/// Who publishes to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Publishers with one subscriber each.
    Pairs(usize),
    /// Publishers with one subscriber for all, by a wildcard.
    FanIn(usize),
    /// One publisher, and many subscribers of its topic.
    FanOut(usize),
}

/// What is measured.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) qos: Qos,
    pub(super) shape: Shape,
    /// Messages in all, as fast as the broker goes.
    pub(super) messages: u64,
    /// Unacknowledged messages of a publisher (QoS 1 and 2).
    pub(super) window: u64,
    /// Messages of a publisher that not all subscribers have.
    pub(super) credit: u64,
    /// Messages per second for latencies.
    pub(super) rate: u64,
}

impl Case {
    fn publishers(&self) -> usize {
        match self.shape {
            Shape::Pairs(count) | Shape::FanIn(count) => count,
            Shape::FanOut(_) => 1,
        }
    }

    fn subscribers(&self) -> usize {
        match self.shape {
            Shape::Pairs(count) | Shape::FanOut(count) => count,
            Shape::FanIn(_) => 1,
        }
    }

    /// Subscribers of each message.
    pub(super) fn copies(&self) -> u64 {
        match self.shape {
            Shape::Pairs(_) | Shape::FanIn(_) => 1,
            Shape::FanOut(count) => count as u64,
        }
    }

    fn topic(&self, publisher: usize) -> String {
        format!("bench/{}/{publisher}", self.name)
    }

    fn filter(&self, subscriber: usize) -> String {
        match self.shape {
            Shape::Pairs(_) => self.topic(subscriber),
            Shape::FanIn(_) => format!("bench/{}/+", self.name),
            Shape::FanOut(_) => self.topic(0),
        }
    }
}

/// How one run ended.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Messages that came to a subscriber.
    pub(super) deliveries: u64,
    pub(super) elapsed: Duration,
    /// CPU time of the broker.
    pub(super) broker: Duration,
    /// CPU time of this process.
    pub(super) generator: Duration,
    pub(super) lost: u64,
    /// Deliveries that were not the next message of their publisher.
    pub(super) misplaced: u64,
    /// From the write to the read, ns; empty when it goes as fast as it can.
    pub(super) latency: Histogram<u64>,
}

/// Publishes the case's messages as fast as the broker goes, after a tenth of them that does not count.
pub(super) fn flat_out(case: &Case, broker: (SocketAddr, u32), size: usize, scale: f64) -> Result<Outcome> {
    let each = ((case.messages as f64 * scale) as u64 / case.publishers() as u64).max(10);
    let mut load = Load::new(case, broker, size)?;
    load.run(each / 10, None)?;
    let outcome = load.run(each, None)?;
    load.net.disconnect()?;
    Ok(outcome)
}

/// Publishes at the case's rate for some time, after half a second that does not count.
pub(super) fn paced(case: &Case, broker: (SocketAddr, u32), size: usize, time: Duration) -> Result<Outcome> {
    let each = |time: Duration| {
        ((case.rate as f64 * time.as_secs_f64()) as u64).div_ceil(case.publishers() as u64).max(1)
    };
    let mut load = Load::new(case, broker, size)?;
    load.run(each(Duration::from_millis(500)), Some(case.rate))?;
    let outcome = load.run(each(time), Some(case.rate))?;
    load.net.disconnect()?;
    Ok(outcome)
}

struct Load<'c> {
    case: &'c Case,
    broker: u32,
    net: Net,
    state: State,
}

struct State {
    /// Their connections come after those of the subscribers.
    publishers: Vec<Publisher>,
    subscribers: usize,
    /// Bytes of a payload.
    size: usize,
    /// The sequence that comes next, by subscriber and publisher.
    next: Vec<u64>,
    origin: Instant,
    is_timed: bool,
    deliveries: u64,
    acknowledgements: u64,
    misplaced: u64,
    latency: Histogram<u64>,
}

struct Publisher {
    message: EncodedPublish,
    goal: u64,
    sent: u64,
    acknowledged: u64,
    /// Of all copies.
    delivered: u64,
}

impl<'c> Load<'c> {
    fn new(case: &'c Case, (address, broker): (SocketAddr, u32), size: usize) -> Result<Self> {
        ensure!(size >= Stamp::BYTES, "a payload needs {} bytes", Stamp::BYTES);
        let (publishers, subscribers) = (case.publishers(), case.subscribers());
        let mut net = Net::new()?;
        let filter = |subscriber| Some((case.filter(subscriber), case.qos));
        net.connect(address, subscribers, |number| format!("{}-in-{number}", case.name), filter)?;
        net.connect(address, publishers, |number| format!("{}-out-{number}", case.name), |_| None)?;
        let publisher = |number| Publisher {
            message: EncodedPublish::new(
                &Publish {
                    dup: false,
                    qos: case.qos,
                    retain: false,
                    topic: case.topic(number).as_str().into(),
                    packet_id: (case.qos != Qos::AtMostOnce).then_some(1),
                    properties: Properties::NONE,
                    payload: Bytes::from(vec![0; size]),
                },
                VERSION,
            ),
            goal: 0,
            sent: 0,
            acknowledged: 0,
            delivered: 0,
        };
        let state = State {
            publishers: (0..publishers).map(publisher).collect(),
            subscribers,
            size,
            next: vec![0; publishers * subscribers],
            origin: Instant::now(),
            is_timed: false,
            deliveries: 0,
            acknowledgements: 0,
            misplaced: 0,
            latency: Histogram::new(3)?,
        };
        Ok(Self { case, broker, net, state })
    }

    /// Lets each publisher publish so many, and waits until all have arrived and are acknowledged, or nothing has come
    /// for a while.
    fn run(&mut self, each: u64, rate: Option<u64>) -> Result<Outcome> {
        let state = &mut self.state;
        for publisher in &mut state.publishers {
            publisher.goal += each;
        }
        state.is_timed = rate.is_some();
        state.latency.reset();
        let (before, misplaced) = (state.deliveries, state.misplaced);
        let used = [Usage::of(self.broker)?.cpu, Usage::of(std::process::id())?.cpu];
        let began = Instant::now();
        let (mut progress, mut seen) = (began, 0);
        while !self.state.is_done(self.case) {
            let patience = match rate {
                None => {
                    self.state.fill(self.case, &mut self.net);
                    PATIENCE
                }
                Some(rate) => self.state.fill_until_now(began.elapsed(), each, rate, &mut self.net),
            };
            let state = &mut self.state;
            self.net.turn(patience, &mut |net, number, packet| state.handle(net, number, packet))?;
            let now_seen = state.deliveries + state.acknowledgements;
            if now_seen > seen {
                (progress, seen) = (Instant::now(), now_seen);
            } else if progress.elapsed() > PATIENCE {
                break;
            }
        }
        let elapsed = began.elapsed();
        let state = &self.state;
        let deliveries = state.deliveries - before;
        let expected = each * state.publishers.len() as u64 * self.case.copies();
        Ok(Outcome {
            deliveries,
            elapsed,
            broker: Usage::of(self.broker)?.cpu.saturating_sub(used[0]),
            generator: Usage::of(std::process::id())?.cpu.saturating_sub(used[1]),
            lost: expected.saturating_sub(deliveries),
            misplaced: state.misplaced - misplaced,
            latency: state.latency.clone(),
        })
    }
}

impl State {
    fn is_done(&self, case: &Case) -> bool {
        self.publishers.iter().all(|one| {
            one.sent == one.goal
                && one.delivered == one.sent * case.copies()
                && (case.qos == Qos::AtMostOnce || one.acknowledged == one.sent)
        })
    }

    /// Publishes what windows and credits allow.
    fn fill(&mut self, case: &Case, net: &mut Net) {
        for number in 0..self.publishers.len() {
            loop {
                let one = &self.publishers[number];
                let is_within_window =
                    case.qos == Qos::AtMostOnce || one.sent - one.acknowledged < case.window;
                let has_credit = one.sent * case.copies() - one.delivered < case.credit * case.copies();
                if one.sent == one.goal || !is_within_window || !has_credit {
                    break;
                }
                self.publish(number, net);
            }
        }
    }

    /// Publishes what is due by now, the publishers in turn; returns how long nothing will be.
    fn fill_until_now(&mut self, elapsed: Duration, each: u64, rate: u64, net: &mut Net) -> Duration {
        let count = self.publishers.len() as u64;
        let sent: u64 = self.publishers.iter().map(|one| one.sent + each - one.goal).sum();
        let due = ((elapsed.as_secs_f64() * rate as f64) as u64 + 1).min(each * count);
        for message in sent..due {
            self.publish((message % count) as usize, net);
        }
        if due == each * count {
            return PATIENCE;
        }
        Duration::from_secs_f64(due as f64 / rate as f64).saturating_sub(elapsed)
    }

    fn publish(&mut self, number: usize, net: &mut Net) {
        let one = &mut self.publishers[number];
        let sent_ns = if self.is_timed { self.origin.elapsed().as_nanos() as u64 } else { 0 };
        let output = net.output(self.subscribers + number);
        let start = output.len();
        let packet_id = (one.sent % u64::from(u16::MAX)) as u16 + 1;
        one.message.write(packet_id, false, output);
        let payload_at = start + one.message.len() - self.size;
        let stamp = Stamp { publisher: number as u32, sequence: one.sent, sent_ns };
        stamp.write(&mut output[payload_at..]);
        one.sent += 1;
    }

    fn handle(&mut self, net: &mut Net, number: usize, packet: Packet) -> Result<()> {
        let answer = |packet_id| Ack::new(packet_id, ReasonCode::Success);
        match packet {
            Packet::Publish(publish) => {
                self.delivered(number, &publish)?;
                let packet_id = publish.packet_id.unwrap_or_default();
                match publish.qos {
                    Qos::AtMostOnce => {}
                    Qos::AtLeastOnce => net.send(number, &Packet::PubAck(answer(packet_id))),
                    Qos::ExactlyOnce => net.send(number, &Packet::PubRec(answer(packet_id))),
                }
            }
            Packet::PubRel(ack) => net.send(number, &Packet::PubComp(answer(ack.packet_id))),
            Packet::PubRec(ack) if !ack.reason.is_error() => {
                net.send(number, &Packet::PubRel(answer(ack.packet_id)));
            }
            Packet::PubAck(ack) | Packet::PubComp(ack) if !ack.reason.is_error() => {
                let publisher = number.checked_sub(self.subscribers);
                let publisher = publisher.and_then(|number| self.publishers.get_mut(number));
                publisher.context("an acknowledgement for a subscriber")?.acknowledged += 1;
                self.acknowledgements += 1;
            }
            other => bail!("client {number} got {other:?}"),
        }
        Ok(())
    }

    fn delivered(&mut self, subscriber: usize, publish: &Publish) -> Result<()> {
        let stamp = Stamp::read(&publish.payload).context("a payload without a stamp")?;
        let number = stamp.publisher as usize;
        let publisher = self.publishers.get_mut(number).context("nobody has published this")?;
        let next = &mut self.next[number * self.subscribers + subscriber];
        self.misplaced += u64::from(stamp.sequence != *next);
        *next = stamp.sequence + 1;
        publisher.delivered += 1;
        self.deliveries += 1;
        if self.is_timed {
            let now_ns = self.origin.elapsed().as_nanos() as u64;
            self.latency.record(now_ns.saturating_sub(stamp.sent_ns))?;
        }
        Ok(())
    }
}

/// The first bytes of each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    publisher: u32,
    sequence: u64,
    sent_ns: u64,
}

impl Stamp {
    const BYTES: usize = 20;

    fn write(self, into: &mut [u8]) {
        into[..4].copy_from_slice(&self.publisher.to_be_bytes());
        into[4..12].copy_from_slice(&self.sequence.to_be_bytes());
        into[12..20].copy_from_slice(&self.sent_ns.to_be_bytes());
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let number =
            |range: std::ops::Range<usize>| payload.get(range)?.try_into().ok().map(u64::from_be_bytes);
        Some(Self {
            publisher: u32::from_be_bytes(payload.get(..4)?.try_into().ok()?),
            sequence: number(4..12)?,
            sent_ns: number(12..20)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let stamp = Stamp { publisher: 3, sequence: 1 << 40, sent_ns: 77 };
        let mut payload = [0; 32];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert_eq!(Stamp::read(&payload[..19]), None);
    }
}
