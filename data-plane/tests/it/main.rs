//! The data plane over the bus in memory, spoken to by raw TCP.

#[cfg(test)]
mod access;
#[cfg(test)]
mod administered;
#[cfg(test)]
mod auth;
#[cfg(test)]
mod auth_changes;
#[cfg(test)]
mod auth_matrix;
#[cfg(test)]
mod auth_stuffing;
#[cfg(test)]
mod behaviours;
#[cfg(test)]
mod bus;
#[cfg(test)]
mod bus_trouble;
#[cfg(test)]
mod bystanders;
#[cfg(test)]
mod client;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod control_session;
#[cfg(test)]
mod credentials;
#[cfg(test)]
mod delivery;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod group_queue;
#[cfg(test)]
mod hostile;
#[cfg(test)]
#[path = "../../src/auth/caller/server.rs"]
#[expect(dead_code, reason = "the crate's own tests use the rest")]
mod http_server;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod integrations;
#[cfg(test)]
mod key_sets;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod listeners;
#[cfg(test)]
#[path = "../../mqtt/tests/it/mutate.rs"]
mod mutate;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod persistent;
#[cfg(test)]
mod plane;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod retained;
#[cfg(test)]
#[path = "../../src/auth/samples.rs"]
mod samples;
#[cfg(test)]
mod scram;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod shared;
#[cfg(test)]
#[path = "../../src/auth/jwks/signer.rs"]
mod signer;
#[cfg(test)]
mod sys;
#[cfg(test)]
mod takeover;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod tracing;
#[cfg(test)]
mod web_socket;
