//! The data plane over the bus in memory, spoken to by raw TCP.

#[cfg(test)]
mod bus;
#[cfg(test)]
mod bus_trouble;
#[cfg(test)]
mod client;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod control_session;
#[cfg(test)]
mod delivery;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod integrations;
#[cfg(test)]
mod plane;
#[cfg(test)]
mod sessions;
