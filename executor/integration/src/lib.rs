//! The integration protocol, both ends, without I/O.
//!
//! | module | what |
//! |---|---|
//! | [`entity`] | the configuration document, and problems found in it |
//! | [`wire`] | records of the integration topics ⇄ our own types |
//! | [`secret`], [`seal`] | where the secrets of a document stand; how they are encrypted |
//! | [`provider`] | the same for configurations of authentication providers |
//! | [`validation`] | control plane: requests, asked again, replies, deadlines |
//! | [`cleanup`] | control plane: the life of an integration's message topic |
//! | [`restore`] | executor: from a compacted downlink partition to real time |
//! | [`ownership`] | executor: claims and the lease: which downlink partitions are ours, and until when |
//! | [`lifecycle`] | executor: one shard, from desired to running state |
//! | [`pack`] | executor: one message partition, from records to outcomes and commits |
//! | [`stall`] | executor: whether anything gets through a running sink |
//! | [`dead_letter`] | executor: what the dead letter of a message says |
//! | [`stats`] | executor: counters and the limit on error events |
//!
//! A machine gets time and randomness as arguments, keeps deadlines as data, returns what is to be done, and has a
//! limit for everything that can grow.
#![warn(missing_docs)]

pub mod cleanup;
pub mod dead_letter;
pub mod entity;
pub mod lifecycle;
pub mod ownership;
pub mod pack;
pub mod provider;
pub mod restore;
pub mod seal;
pub mod secret;
pub mod stall;
pub mod stats;
pub mod validation;
pub mod wire;

/// Milliseconds of whatever clock the driver uses; machines only compare and add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl std::ops::Add<std::time::Duration> for Millis {
    type Output = Self;

    fn add(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }
}

impl Millis {
    /// Time from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
