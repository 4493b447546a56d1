//! The data plane over the bus in memory, spoken to by raw TCP.

mod bus;
mod client;
mod plane;

mod bus_trouble;
mod delivery;
mod gate;
mod integrations;
mod sessions;
