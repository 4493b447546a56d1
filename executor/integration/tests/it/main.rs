//! The machines together, over a model of the bus.

#[cfg(test)]
mod sim;
