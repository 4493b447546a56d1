//! The names of a system's processes.

use std::fmt;

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plane {
    /// `tbmq`, the three planes in one process.
    All,
    /// `tbmq-control-plane`.
    Control,
    /// `tbmq-data-plane`.
    Data,
    /// `tbmq-executor`.
    Executor,
}

impl Plane {
    /// Its n-th process, from 1.
    pub fn nth(self, number: u32) -> Instance {
        Instance { plane: self, number }
    }

    /// `control`, `data`, `executor`; `all` for the all-in-one.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Control => "control",
            Self::Data => "data",
            Self::Executor => "executor",
        }
    }

    /// The binary's name.
    pub fn binary(self) -> &'static str {
        match self {
            Self::All => "tbmq",
            Self::Control => "tbmq-control-plane",
            Self::Data => "tbmq-data-plane",
            Self::Executor => "tbmq-executor",
        }
    }

    /// What it listens for: `mqtt`, `grpc`, and `http` (the admin endpoint).
    pub fn schemes(self) -> &'static [&'static str] {
        match self {
            Self::All => &["mqtt", "grpc", "http"],
            Self::Control => &["grpc", "http"],
            Self::Data => &["mqtt", "http"],
            Self::Executor => &["http"],
        }
    }
}

/// One process of a system; `executor-2` as text and as `TB_SERVICE_ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// What it is.
    pub plane: Plane,
    /// Which one, from 1.
    pub number: u32,
}

impl From<Plane> for Instance {
    /// The first of its plane.
    fn from(plane: Plane) -> Self {
        plane.nth(1)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.plane.name(), self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_named_after_its_plane_and_number() {
        assert_eq!(Plane::Executor.nth(2).to_string(), "executor-2");
        assert_eq!(Instance::from(Plane::Control), Plane::Control.nth(1));
    }
}
