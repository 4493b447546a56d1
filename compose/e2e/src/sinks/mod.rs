//! Faults of what integrations deliver to: one integration of each kind under load, and their peers fail.
//!
//! Between the executor and each peer is a proxy that goes down, swallows, or cuts; the peers are an HTTP server of our
//! own, Mosquitto, and a Kafka besides the one that the planes talk through. A round publishes at a steady rate,
//! strikes all peers with one fault, watches the integrations' status meanwhile, heals them, waits until everything
//! acknowledged has arrived and is committed, and has the ledger audit each kind.
//!
//! | module | what |
//! |---|---|
//! | `peer` | the peers: what integrations are told of them, striking and healing |
//! | `status` | what the control plane shows of an integration, change by change |
//! | [`run`] | the system, and all rounds |
//! | [`report`] | lines, the table, the part of `FAULTS.md` |

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use tbmq_harness::Need;

mod peer;
pub mod report;
pub mod run;
mod status;

/// What an integration delivers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An HTTP server.
    Http,
    /// Mosquitto.
    Mqtt,
    /// Kafka.
    Kafka,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Http, Self::Mqtt, Self::Kafka];

    /// As an integration's type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Mqtt => "MQTT",
            Self::Kafka => "KAFKA",
        }
    }
}

/// What befalls a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Connections end, and new ones are refused.
    Down,
    /// Connections are accepted; what is sent is swallowed, and nothing is closed or answered. A connection that fell into
    /// the hole stays in it after the healing.
    BlackHole,
    /// Half is answered with an error: HTTP every second request with 500; MQTT every second PUBLISH with the PUBACK
    /// reason Quota exceeded; Kafka, for a second of every two, everything with `TOPIC_AUTHORIZATION_FAILED` (one node
    /// does not answer `NOT_ENOUGH_REPLICAS`: it asks for no more replicas than there are).
    RefusingHalf,
    /// Each connection is cut after a second.
    Reconnecting,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 4] = [Self::Down, Self::BlackHole, Self::RefusingHalf, Self::Reconnecting];

    /// As the command line and the table name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::BlackHole => "black-hole",
            Self::RefusingHalf => "refusing-half",
            Self::Reconnecting => "reconnecting",
        }
    }

    /// Whether nothing gets through while it lasts.
    pub fn is_total(self) -> bool {
        matches!(self, Self::Down | Self::BlackHole)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(Self::ALL, Self::name, text)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(Self::ALL, Self::name, text)
    }
}

fn named<T: Copy>(
    all: impl IntoIterator<Item = T>,
    name: fn(T) -> &'static str,
    text: &str,
) -> Result<T, String> {
    let mut names = Vec::new();
    for one in all {
        if name(one).eq_ignore_ascii_case(text) {
            return Ok(one);
        }
        names.push(name(one));
    }
    Err(format!("{text:?} is none of {}", names.join(", ")))
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which peers.
    pub kinds: Vec<Kind>,
    /// Which faults, one round each.
    pub faults: Vec<Fault>,
    /// From a fault to its healing.
    pub lasting: Duration,
    /// Within this time after a total fault the status must say that the integration is stalled.
    pub stalled_within: Duration,
    /// Within this time after the healing the first message must have been delivered.
    pub recovered_within: Duration,
    /// Publishes per second in all.
    pub rate: u64,
    /// Publishers.
    pub publishers: u32,
    /// Within this time after the healing, and after the load, everything must have arrived.
    pub patience: Duration,
    /// Where the processes' logs go.
    pub logs: PathBuf,
    /// What they log (`TBMQ_LOG`); their default when absent.
    pub log_level: Option<String>,
}

impl Options {
    /// Every fault of every kind for 60 s, 10 publishers with 100 messages per second in all; stalls are to be shown
    /// within 5 s, and recovery is to take 2 s at most.
    pub fn new(logs: PathBuf) -> Self {
        Self {
            kinds: Kind::ALL.to_vec(),
            faults: Fault::ALL.to_vec(),
            lasting: Duration::from_secs(60),
            stalled_within: Duration::from_secs(5),
            recovered_within: Duration::from_secs(2),
            rate: 100,
            publishers: 10,
            patience: Duration::from_secs(90),
            logs,
            log_level: None,
        }
    }

    /// What must be there.
    pub fn needs(&self) -> &'static [Need] {
        if self.kinds.contains(&Kind::Mqtt) {
            &[Need::Kafka, Need::Postgres, Need::MosquittoBroker]
        } else {
            &[Need::Kafka, Need::Postgres]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_and_kinds_are_found_by_their_names() {
        assert_eq!("mqtt".parse(), Ok(Kind::Mqtt));
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        let error = "up".parse::<Fault>().unwrap_err();
        assert_eq!(error, "\"up\" is none of down, black-hole, refusing-half, reconnecting");
    }
}
