//! The wire between the planes: one port, [`Bus`], and its adapters.
//!
//! | adapter | where | durable |
//! |---|---|---|
//! | [`kafka`] | Apache Kafka through librdkafka | yes |
//! | [`embedded`] | one process, files below a data folder | yes |
//! | [`memory`] | one process, tests and simulation | no |
//! | [`fault`] | wraps any of them and plants faults | as the wrapped one |
//!
//! The port has four parts, and each has one job: a [`Writer`] or [`FencedWriter`] appends, a [`Reader`] reads
//! partitions that it is told to read, a [`Membership`] says which partitions of a group are ours and carries no
//! data, and [`Admin`] creates, deletes and describes. One contract suite (`tests/it/contract.rs`) holds for
//! every adapter.
//!
//! Words: an *offset* is the position of a record in its partition; a *position* is the offset to be read next;
//! *end* is the position after the last record that a reader of committed records can see; *start* is the lowest
//! offset that is kept. In compacted topics a null value and an empty value both mean "deleted".

pub mod embedded;
pub mod fault;
pub mod kafka;
mod log;
pub mod memory;
mod overview;
mod port;

pub use overview::*;
pub use port::*;
