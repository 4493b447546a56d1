//! Who may connect: what is kept of it in the store, and how it reaches the data planes.
//!
//! | module | what |
//! |---|---|
//! | `proof` | a credential's proof as the store keeps it |
//! | `record` | records of `tbmq.auth.credentials`, `tbmq.auth.settings` and `tbmq.client.blocked` |
//! | `relay`, `reconcile` | what is in the store is written to these topics |
//! | `provider` | which providers there are, and which of their fields are secret |
//! | `hashing` | passwords are hashed on threads of their own, some at once |
//! | `unauthorized` | what data planes tell of refused clients |

pub(crate) mod hashing;
pub(crate) mod proof;
pub(crate) mod provider;
pub(crate) mod reconcile;
pub(crate) mod record;
pub(crate) mod relay;
pub(crate) mod unauthorized;

use sha2::{Digest as _, Sha256};

/// SHA-256, lower-case hex: what rows are found by whose texts are too long for an index.
pub(crate) fn digest(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::with_capacity(64), |mut hex, byte| {
        use std::fmt::Write as _;
        write!(hex, "{byte:02x}").expect("writing to a String does not fail");
        hex
    })
}
