//! What end-to-end tests share: a system of real processes, its API, and load that the ledger can judge.
//!
//! | module | what |
//! |---|---|
//! | [`instance`] | the names of a system's processes: `control-1`, `data-2`, `executor-3` |
//! | [`deployment`] | a system: start, kill -9, drain, freeze and thaw by instance; a second process under one id |
//! | [`api`] | the control plane's gRPC services, and waiting for what they report |
//! | [`storm`] | executors come and go while integrations are created |
//! | [`work`] | load with marks, and everything that the ledger wants to know about it |
//! | [`chaos`] | the fault tool, `cargo xtask chaos` |
//! | [`sinks`] | its other part, `cargo xtask chaos sinks`: what integrations deliver to fails |
//!
//! The tests are in `tests/it`. Nothing here is part of the product.

#![allow(clippy::print_stderr, reason = "test infrastructure speaks on stderr")]

pub mod api;
pub mod chaos;
pub mod deployment;
pub mod instance;
pub mod sinks;
pub mod storm;
pub mod work;
