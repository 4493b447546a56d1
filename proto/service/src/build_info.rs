//! What was built.

/// The version of the workspace, as `--version` prints it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
