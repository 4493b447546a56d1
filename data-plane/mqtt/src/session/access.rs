//! What a client may do with topics.

use std::fmt;

use crate::packet::Qos;

/// Answers for one client; asked before anything is done.
pub trait Access: fmt::Debug + Send {
    /// Whether it may publish to a valid topic name, whose alias is resolved.
    fn may_publish(&mut self, topic: &str, qos: Qos, retain: bool) -> bool;

    /// The highest quality of service up to `qos` that it may subscribe to a valid filter with, which may be that of a
    /// shared subscription; `None`: it may not.
    fn grant(&mut self, filter: &str, qos: Qos) -> Option<Qos>;
}

/// May do nothing.
#[derive(Debug)]
pub(super) struct Nothing;

impl Access for Nothing {
    fn may_publish(&mut self, _: &str, _: Qos, _: bool) -> bool {
        false
    }

    fn grant(&mut self, _: &str, _: Qos) -> Option<Qos> {
        None
    }
}
