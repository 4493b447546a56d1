//! MQTT 3.1, 3.1.1 and 5.0 without I/O.
//!
//! | module | what |
//! |---|---|
//! | [`packet`] | packets of all versions in one form |
//! | [`codec`] | bytes ⇄ packets |
//! | [`topic`] | names and filters |
//! | [`tree`] | which filters match a name |
//! | [`retained`] | which names a filter matches |
//! | [`session`] | what a server does with packets |
#![warn(missing_docs)]

pub mod codec;
pub mod packet;
pub mod retained;
pub mod session;
mod small_map;
pub mod topic;
pub mod tree;
