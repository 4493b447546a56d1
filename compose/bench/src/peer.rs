//! The far end as a process of its own, so that its CPU time is its own: it counts the marks that arrive.
//!
//! It prints where it listens, and is told on its input what to expect: `expect <messages> <first sequence>`. It answers
//! `ready`, then `first` when the first message has arrived, then `done …` when all have, or when nothing has come for
//! [`PATIENCE`]. It ends with its input.

use std::{
    collections::HashSet,
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tbmq_harness::{http_sink::HttpSink, ledger::Mark, process::Usage};
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Ack, ConnAck, Packet, Qos, ReasonCode},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{page, wire::Wire};

/// Without a message for so long, what is missing counts as lost.
const PATIENCE: Duration = Duration::from_mins(2);

/// What a far end is.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Role {
    /// An HTTP server that answers 200.
    Http,
    /// The least that an MQTT broker can do: it acknowledges, and delivers to nobody.
    Broker,
    /// A subscriber at QoS 1 to everything that a broker gets.
    Subscriber {
        /// The broker.
        broker: SocketAddr,
    },
}

/// What arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) arrived: u64,
    pub(crate) different: u64,
    /// From the first arrival to the last.
    pub(crate) elapsed: Duration,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
}

/// A running far end, as the benchmark sees it.
pub(crate) struct Peer {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Peer {
    pub(crate) async fn start(role: Role) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer");
        match role {
            Role::Http => command.arg("http"),
            Role::Broker => command.arg("broker"),
            Role::Subscriber { broker } => command.args(["subscriber", &broker.to_string()]),
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let input = child.stdin.take().context("stdin is piped")?;
        let mut output = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let address = output.next_line().await?.context("the far end does not start")?.parse()?;
        Ok(Self { child, input, output, address })
    }

    /// Where it listens; a subscriber's broker.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time that it has used.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        Ok(Usage::of(self.child.id().context("the far end has ended")?)?.cpu)
    }

    /// Begins a new count: so many messages, whose sequences are not below `first`.
    pub(crate) async fn expect(&mut self, messages: u64, first: u64) -> Result<()> {
        self.input.write_all(format!("expect {messages} {first}\n").as_bytes()).await?;
        let line = self.line().await?;
        ensure!(line == "ready", "the far end said {line:?}");
        Ok(())
    }

    /// Waits until the first message has arrived.
    pub(crate) async fn first(&mut self) -> Result<()> {
        let line = self.line().await?;
        ensure!(line == "first", "the far end said {line:?}");
        Ok(())
    }

    /// Waits until everything has arrived, or nothing comes any more. To be called after [`Peer::first`].
    pub(crate) async fn done(&mut self) -> Result<Seen> {
        let line = self.line().await?;
        let numbers = line.strip_prefix("done ").with_context(|| format!("the far end said {line:?}"))?;
        let numbers: Vec<f64> = numbers.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [arrived, different, seconds, p50_ms, p99_ms, p999_ms] = numbers[..] else {
            bail!("the far end said {line:?}")
        };
        Ok(Seen {
            arrived: arrived as u64,
            different: different as u64,
            elapsed: Duration::from_secs_f64(seconds),
            p50_ms,
            p99_ms,
            p999_ms,
        })
    }

    async fn line(&mut self) -> Result<String> {
        self.output.next_line().await?.context("the far end has ended")
    }
}

/// A count.
struct Tally {
    expected: u64,
    from: u64,
    arrived: u64,
    different: HashSet<(u32, u64)>,
    began: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    latency_us: Histogram<u64>,
    is_told: bool,
}

impl Tally {
    fn new(expected: u64, from: u64) -> Result<Self> {
        Ok(Self {
            expected,
            from,
            arrived: 0,
            different: HashSet::with_capacity(expected as usize),
            began: Instant::now(),
            first: None,
            last: None,
            latency_us: page::latencies_us()?,
            is_told: false,
        })
    }

    /// Takes a payload, and tells what is to be said.
    fn take(&mut self, payload: &[u8]) -> Vec<String> {
        let Some(mark) = Mark::parse(payload).filter(|mark| mark.sequence >= self.from) else {
            return Vec::new();
        };
        let mut news = Vec::new();
        let now = Instant::now();
        if self.first.replace(self.first.unwrap_or(now)).is_none() {
            news.push("first".to_owned());
        }
        self.last = Some(now);
        self.arrived += 1;
        if self.different.insert((mark.publisher, mark.sequence)) && mark.sent_ns > 0 {
            self.latency_us.saturating_record(now_ns().saturating_sub(mark.sent_ns) / 1_000);
        }
        if self.different.len() as u64 >= self.expected && !self.is_told {
            news.push(self.told());
        }
        news
    }

    /// What is to be said when nothing comes any more.
    fn silence(&mut self) -> Vec<String> {
        if self.is_told || self.last.unwrap_or(self.began).elapsed() < PATIENCE {
            return Vec::new();
        }
        let first = self.first.is_none().then(|| "first".to_owned());
        first.into_iter().chain([self.told()]).collect()
    }

    fn told(&mut self) -> String {
        self.is_told = true;
        let ms = |quantile: f64| self.latency_us.value_at_quantile(quantile) as f64 / 1e3;
        let elapsed = self.first.zip(self.last).map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        let (arrived, different) = (self.arrived, self.different.len());
        format!("done {arrived} {different} {elapsed} {} {} {}", ms(0.5), ms(0.99), ms(0.999))
    }
}

/// Nanoseconds since the epoch: the clock that publishers share.
fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// To be called while the count is locked, so that lines keep their order.
fn say(news: Vec<String>) {
    for line in news {
        println!("{line}");
    }
}

/// The far end's own process.
pub(crate) async fn run(role: Role) -> Result<()> {
    let tally = Arc::new(Mutex::new(Tally::new(0, u64::MAX)?));
    let observe = {
        let tally = Arc::clone(&tally);
        move |payload: &[u8]| {
            let mut tally = tally.lock();
            let news = tally.take(payload);
            say(news);
        }
    };
    match role {
        Role::Http => {
            let server = HttpSink::observed(move |request| observe(&request.body)).await?;
            println!("{}", server.url("").trim_start_matches("http://").trim_end_matches('/'));
            listen_to_input(&tally).await
        }
        Role::Broker => {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            println!("{}", listener.local_addr()?);
            tokio::select! {
                ended = accept(listener, observe) => ended,
                ended = listen_to_input(&tally) => ended,
            }
        }
        Role::Subscriber { broker } => {
            let mut wire = Wire::connect(broker, "bench-subscriber").await?;
            wire.subscribe("#").await?;
            println!("{broker}");
            tokio::select! {
                ended = receive(wire, observe) => ended,
                ended = listen_to_input(&tally) => ended,
            }
        }
    }
}

async fn listen_to_input(tally: &Mutex<Tally>) -> Result<()> {
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    loop {
        // `next_line` may be given up and called again.
        let Ok(line) = tokio::time::timeout(Duration::from_secs(1), input.next_line()).await else {
            let mut tally = tally.lock();
            let news = tally.silence();
            say(news);
            continue;
        };
        let Some(line) = line? else { return Ok(()) };
        let numbers = line.strip_prefix("expect ").and_then(|numbers| numbers.split_once(' '));
        let (expected, from) = numbers.with_context(|| format!("{line:?} is not understood"))?;
        let mut tally = tally.lock();
        *tally = Tally::new(expected.parse()?, from.parse()?)?;
        println!("ready");
    }
}

async fn accept(listener: TcpListener, observe: impl Fn(&[u8]) + Clone + Send + 'static) -> Result<()> {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(acknowledge(accepted?.0, observe.clone()));
            }
            Some(ended) = connections.join_next() => ended??,
        }
    }
}

/// A broker's side of one connection.
async fn acknowledge(stream: TcpStream, observe: impl Fn(&[u8])) -> Result<()> {
    let mut wire = Wire::accepted(stream)?;
    // A client may also go without a word.
    while let Ok(Some(packet)) = wire.next().await {
        let answer = match packet {
            Packet::Connect(_) => Packet::ConnAck(ConnAck {
                session_present: false,
                reason: ReasonCode::Success,
                properties: Properties::NONE,
            }),
            Packet::Publish(publish) => {
                observe(&publish.payload);
                let Some(packet_id) = publish.packet_id else { continue };
                let ack = Ack::new(packet_id, ReasonCode::Success);
                if publish.qos == Qos::ExactlyOnce { Packet::PubRec(ack) } else { Packet::PubAck(ack) }
            }
            Packet::PubRel(ack) => Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success)),
            Packet::PingReq => Packet::PingResp,
            Packet::Disconnect(_) => break,
            other => bail!("a publisher sent {other:?}"),
        };
        wire.queue(&answer);
    }
    Ok(())
}

async fn receive(mut wire: Wire, observe: impl Fn(&[u8])) -> Result<()> {
    loop {
        match wire.next().await?.context("the broker closed the subscriber's connection")? {
            Packet::Publish(publish) => {
                observe(&publish.payload);
                if let Some(packet_id) = publish.packet_id {
                    wire.queue(&Packet::PubAck(Ack::new(packet_id, ReasonCode::Success)));
                }
            }
            other => bail!("the broker sent {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(sequence: u64) -> Vec<u8> {
        Mark::new(1, sequence).payload(64)
    }

    #[test]
    fn duplicates_and_earlier_sequences_do_not_complete_a_count() {
        let mut tally = Tally::new(2, 10).unwrap();
        assert_eq!(tally.take(&payload(9)), [""; 0]);
        assert_eq!(tally.take(&payload(10)), ["first"]);
        assert_eq!(tally.take(&payload(10)), [""; 0]);
        let news = tally.take(&payload(11));
        assert!(news[0].starts_with("done 3 2 "), "{news:?}");
        assert_eq!(tally.take(&payload(12)), [""; 0]);
    }
}
