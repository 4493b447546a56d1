//! The words of TBMQ: messages on the wire, topics, ids, partitioning.
//!
//! * [`queue`] and [`integration`]: TBMQ's own protobuf packages; field numbers below 1000 are TBMQ's and frozen,
//!   ours begin at 1000.
//! * [`wire`]: native records without a counterpart in TBMQ.
//! * [`control`] and [`node`]: the gRPC services (servers and clients behind the feature `grpc`).
//! * [`topic`]: the one table of topics; nothing else in the workspace names one.
//! * [`ids`], [`partition`], [`properties`]: ids as newtypes, Java's partitioner, TBMQ's property strings.
//!
//! Everything under `generated/` is written by `cargo xtask gen` from `proto/proto/`.
#![warn(missing_docs)]

pub mod ids;
pub mod partition;
pub mod properties;
pub mod topic;

macro_rules! generated {
    ($($(#[$doc:meta])* $visibility:vis mod $name:ident = $file:literal;)*) => {$(
        $(#[$doc])*
        #[allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            elided_lifetimes_in_paths,
            missing_debug_implementations,
            clippy::all,
            clippy::pedantic,
            clippy::allow_attributes_without_reason,
            reason = "generated"
        )]
        $visibility mod $name {
            include!(concat!("generated/", $file));
        }
    )*};
}

generated! {
    /// TBMQ's package `queue`.
    pub mod queue = "queue.rs";
    /// TBMQ's package `integration`.
    pub mod integration = "integration.rs";
    /// Package `tbmq.wire.v1`: native records.
    pub mod wire = "tbmq.wire.v1.rs";
}

/// As the packages lie, which name each other.
#[allow(unreachable_pub, reason = "it is reached by other names")]
mod packages {
    pub mod control {
        generated! {
            /// Package `tbmq.control.v1`: the control plane's services.
            pub mod v1 = "tbmq.control.v1.rs";
        }
    }
    pub mod node {
        generated! {
            /// Package `tbmq.node.v1`: the session between data plane and control plane.
            pub mod v1 = "tbmq.node.v1.rs";
        }
    }
}

pub use packages::{control::v1 as control, node::v1 as node};

/// All descriptors as an encoded `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
