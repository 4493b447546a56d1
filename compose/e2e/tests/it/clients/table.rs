//! What a client has shown, as a table, with the reasons of what is missing.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Write as _},
};

use super::{
    roads::Roads,
    scenario::{Place, Scenario},
};

/// Protocol levels, and what people call them.
pub(super) const VERSIONS: [(u8, &str); 3] = [(3, "3.1"), (4, "3.1.1"), (5, "5.0")];

/// What a client lacks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lack {
    /// A protocol level.
    Version(u8),
    /// The roads with these schemes.
    Roads(&'static [&'static str]),
    /// A part of what all others show.
    Detail,
}

impl Lack {
    pub(super) fn is_at(self, place: Place<'_>) -> bool {
        match self {
            Self::Version(version) => place.version == version,
            Self::Roads(schemes) => schemes.contains(&place.road.scheme),
            Self::Detail => false,
        }
    }
}

pub(super) struct Table<'a> {
    client: &'a str,
    roads: &'a Roads,
    gaps: &'a [(Lack, &'a str)],
    shown: BTreeSet<(Scenario, &'a str, u8)>,
}

impl<'a> Table<'a> {
    pub(super) fn new(client: &'a str, roads: &'a Roads, gaps: &'a [(Lack, &'a str)]) -> Self {
        Self { client, roads, gaps, shown: BTreeSet::new() }
    }

    pub(super) fn add(&mut self, scenario: Scenario, place: Place<'a>) {
        self.shown.insert((scenario, place.road.scheme, place.version));
    }

    /// Prints it also when the test passes, of which the harness would show nothing else.
    pub(super) fn print(&self) -> io::Result<()> {
        writeln!(io::stdout().lock(), "\n{self}")
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.roads.all.iter().map(|road| road.name).collect();
        writeln!(f, "| {} | {} |", self.client, names.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(names.len()))?;
        let scenarios: BTreeSet<Scenario> = self.shown.iter().map(|(scenario, ..)| *scenario).collect();
        for scenario in scenarios {
            write!(f, "| {} |", scenario.title())?;
            for road in &self.roads.all {
                let has = |version| self.shown.contains(&(scenario, road.scheme, version));
                let shown: Vec<&str> =
                    VERSIONS.into_iter().filter(|(version, _)| has(*version)).map(|(_, name)| name).collect();
                let shown = if shown.is_empty() { "-".to_owned() } else { shown.join(", ") };
                write!(f, " {shown} |")?;
            }
            writeln!(f)?;
        }
        self.gaps.iter().try_for_each(|(_, reason)| writeln!(f, "{}: {reason}", self.client))
    }
}
