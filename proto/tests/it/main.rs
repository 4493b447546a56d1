//! The wire, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod golden;
mod topics;
