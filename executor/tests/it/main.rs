//! The executor over the bus in memory, with a scripted kind of integration.

#[cfg(test)]
mod delivery;
mod driver;
#[cfg(test)]
mod kafka;
#[cfg(test)]
mod ownership;
#[cfg(test)]
mod world;
