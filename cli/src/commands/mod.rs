//! One file per noun.

pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod blocked;
pub(crate) mod completion;
pub(crate) mod context;
pub(crate) mod credentials;
pub(crate) mod diff;
pub(crate) mod edit;
pub(crate) mod event;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod integration;
pub(crate) mod kafka;
pub(crate) mod kind;
pub(crate) mod man;
pub(crate) mod node;
pub(crate) mod retained;
pub(crate) mod session;
pub(crate) mod subscription;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod try_it;
pub(crate) mod unauthorized;
pub(crate) mod wait;
