//! One file per noun.

pub(crate) mod apply;
pub(crate) mod completion;
pub(crate) mod diff;
pub(crate) mod edit;
pub(crate) mod event;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod integration;
pub(crate) mod node;
pub(crate) mod try_it;
