//! Who may connect and what they may do, without I/O.
//!
//! | module | what |
//! |---|---|
//! | [`credentials`] | a credential, as a record brings it |
//! | [`index`] | all credentials in memory, found as TBMQ finds them |
//! | [`basic`] | CONNECT with user name and password |
//! | [`password`] | hashes of passwords, and which were verified lately |
//! | [`scram`] | SCRAM-SHA-256 and SCRAM-SHA-512, the server's side |
//! | [`acl`] | which topics a client may use |
//! | [`blocked`] | clients that may not connect at all |
//! | [`limits`] | how often something may happen |
//! | [`jwt`] | JSON Web Tokens and their keys |
//! | [`token`] | CONNECT with a JSON Web Token as password |
//! | [`http`] | CONNECT that an HTTP service judges |
//! | [`external`] | what the latter two have in common |
//! | [`provider`] | who is asked about a client, in which order |
//! | [`pattern`] | regular expressions that administrators write |
//!
//! Time and randomness are arguments. What costs time is said where it does: [`basic::Attempt::run`] hashes, and
//! belongs on a thread of its own; all else takes microseconds.
#![warn(missing_docs)]

pub mod acl;
pub mod basic;
pub mod blocked;
pub mod credentials;
pub mod external;
pub mod http;
pub mod index;
pub mod jwt;
pub mod limits;
pub mod password;
pub mod pattern;
pub mod provider;
pub mod scram;
pub mod token;
