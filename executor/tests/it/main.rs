//! The executor over the bus in memory, with a scripted kind of integration.

mod driver;
mod world;
