//! The executor over the bus in memory, with a scripted kind of integration; and kinds against real remote ends.

#[cfg(test)]
mod delivery;
mod driver;
#[cfg(test)]
mod kafka;
#[cfg(test)]
mod mqtt;
#[cfg(test)]
mod ownership;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod tracing;
#[cfg(test)]
mod world;
