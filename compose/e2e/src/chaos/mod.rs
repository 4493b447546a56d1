//! The fault tool: a system of several processes per plane under load, and one fault after the other.
//!
//! A seed decides everything that is drawn (see [`plan`]). Each round publishes at a steady rate, lets the system run
//! for a moment, injects one fault, heals it, waits until the system works as before, ends the load, waits until
//! everything that was acknowledged has arrived, and has the ledger audit the round.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | pure: seed → rounds |
//! | [`tally`] | what publishers and sinks have seen in one round |
//! | `load` | publishers at a steady rate |
//! | `world` | the system: servers, processes, integrations, sinks |
//! | `faults` | injecting and healing |
//! | `round` | one round, from the first publish to its verdict |
//! | [`run`] | all rounds |
//! | [`report`], [`page`] | lines, tables, `FAULTS.md` |

mod disk;
mod faults;
pub(crate) mod load;
pub mod page;
pub mod plan;
pub mod report;
mod round;
pub mod run;
pub mod tally;
mod world;
