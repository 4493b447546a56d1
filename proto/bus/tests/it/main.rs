//! Tests of the bus: one contract for every adapter, and what only one of them promises.

#![allow(clippy::unwrap_used, reason = "a panic fails the test, also outside of the test functions")]

mod contract;
mod embedded;
mod fault;
mod kafka;
mod memory;
mod secured;
