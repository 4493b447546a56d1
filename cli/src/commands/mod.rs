//! One file per noun.

pub(crate) mod completion;
pub(crate) mod event;
pub(crate) mod integration;
pub(crate) mod node;
pub(crate) mod try_it;
