//! Which brokers may be connected to.
//!
//! librdkafka has no hook at connect, and resolves names by itself. So brokers are looked at beforehand: those of the
//! configuration before a client is made, those that the cluster's metadata names before the first message and every
//! [`super::producer::LOOK_INTERVAL`]. What that leaves open: a name may mean another address a moment later, and a
//! broker that joins the cluster may be connected to before the next look finds it, after which the integration fails.

use std::net::{SocketAddr, ToSocketAddrs as _};

use crate::sinks::egress::Egress;

/// Why a broker is not to be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Its name has no address now.
    Unresolved(String),
    /// It is not allowed.
    Refused(String),
}

impl Problem {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Unresolved(text) | Self::Refused(text) => text,
        }
    }
}

/// The addresses of a broker, if every one of them may be connected to: which one librdkafka takes is its choice. Waits
/// for the resolver.
pub(super) fn look(egress: &Egress, host: &str, port: u16) -> Result<Vec<SocketAddr>, Problem> {
    let unresolved = |text: String| Problem::Unresolved(format!("Failed to resolve '{host}': {text}"));
    let addresses: Vec<_> =
        (host, port).to_socket_addrs().map_err(|error| unresolved(error.to_string()))?.collect();
    if addresses.is_empty() {
        return Err(unresolved("the name has no address".to_owned()));
    }
    for address in &addresses {
        egress
            .check(address.ip())
            .map_err(|text| Problem::Refused(format!("Kafka broker {host}:{port}: {text}")))?;
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_with_a_forbidden_address_is_refused() {
        assert_eq!(look(&Egress::default(), "127.0.0.1", 9), Ok(vec!["127.0.0.1:9".parse().unwrap()]));
        let closed = Egress::new(false, Vec::new(), Vec::new());
        let Err(Problem::Refused(text)) = look(&closed, "127.0.0.1", 9) else { panic!("it is local") };
        assert!(text.starts_with("Kafka broker 127.0.0.1:9: 127.0.0.1 must not be connected to"), "{text}");
        assert!(matches!(look(&closed, "no such host", 9), Err(Problem::Unresolved(_))));
    }
}
