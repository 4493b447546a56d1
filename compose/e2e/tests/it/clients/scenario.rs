//! What a client is asked to do, where, and who does it.

use anyhow::Result;

use super::roads::Road;

/// What a client shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scenario {
    EveryPair,
    AnyPayload,
    Will,
    Properties,
    Retained,
    Shared,
    KeptSession,
    /// What [`Scenario::AfterRestart`] needs.
    BeforeRestart,
    AfterRestart,
}

impl Scenario {
    /// Those that one broker is enough for, in the order in which they are played.
    pub(super) const UNDISTURBED: [Self; 7] = [
        Self::EveryPair,
        Self::AnyPayload,
        Self::Will,
        Self::Properties,
        Self::Retained,
        Self::Shared,
        Self::KeptSession,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::EveryPair => "every pair of qualities of service",
            Self::AnyPayload => "any payload",
            Self::Will => "a will",
            Self::Properties => "properties",
            Self::Retained => "retained messages",
            Self::Shared => "a shared subscription",
            Self::KeptSession => "a session that outlives its connection",
            Self::BeforeRestart => "a session, before a restart of the broker",
            Self::AfterRestart => "a session that outlives the broker",
        }
    }

    /// The first version that has what it shows.
    pub(super) fn since(self) -> u8 {
        match self {
            Self::Properties => 5,
            _ => 3,
        }
    }
}

/// A road, and the protocol level that is spoken there: 3 is 3.1, 4 is 3.1.1, 5 is 5.0.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) road: &'a Road,
    pub(super) version: u8,
}

impl Place<'_> {
    /// What client ids and topics begin with, so that no scenario meets another but that before the restart.
    pub(super) fn prefix(&self, scenario: Scenario) -> String {
        let name = match scenario {
            Scenario::BeforeRestart | Scenario::AfterRestart => "Restart".to_owned(),
            _ => format!("{scenario:?}"),
        };
        format!("{}-{}-{name}", self.road.scheme, self.version)
    }
}

/// A client that plays.
pub(super) trait Player: Send {
    /// Blocks until the scenario is over.
    ///
    /// # Errors
    /// When anything is not as it has to be.
    fn play(&mut self, scenario: Scenario, place: Place<'_>) -> Result<()>;
}
