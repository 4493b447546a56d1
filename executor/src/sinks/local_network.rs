//! Hosts that `INTEGRATIONS_ALLOW_LOCAL_NETWORK_HOSTS=false` refuses, for every kind (spec UP-10).
//!
//! A literal address and `localhost` are refused by `check`; a name is refused when it is resolved for a connection,
//! because what it means may change after the check.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use url::Host;

/// TBMQ's text, with the kind's word for what is connected to, such as `HTTP endpoint`.
pub fn refusal(what: &str) -> String {
    format!("Usage of local network host for {what} is not allowed!")
}

/// Whether an address is unspecified, loopback, link-local or private (RFC 1918, RFC 4193, `fec0::/10`).
pub fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_loopback() || v4.is_link_local() || v4.is_private(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_local(IpAddr::V4(v4)),
            None => {
                v6.is_unspecified()
                    || v6.is_loopback()
                    || v6.is_unicast_link_local()
                    || v6.is_unique_local()
                    || is_site_local(v6)
            }
        },
    }
}

/// `fec0::/10`: deprecated (RFC 3879), but refused by TBMQ.
fn is_site_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfec0
}

/// Whether a host is local as it is written; a name other than `localhost` is not.
pub fn is_local_host(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(v4) => is_local(IpAddr::V4(*v4)),
        Host::Ipv6(v6) => is_local(IpAddr::V6(*v6)),
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// Resolves a name; with `allow_local` false an answer that has a local address is an error of kind
/// `PermissionDenied` with the text of [`refusal`].
///
/// # Errors
/// When the name can't be resolved, or means a local host.
pub async fn resolve(host: &str, port: u16, allow_local: bool, what: &str) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    if !allow_local && addresses.iter().any(|address| is_local(address.ip())) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal(what)));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_known_in_all_their_shapes() {
        for text in
            ["127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.0.9", "::1", "::"]
                .into_iter()
                .chain(["fe80::1", "fec0::1", "fd00::1", "::ffff:10.0.0.1"])
        {
            assert!(is_local(text.parse().unwrap()), "{text}");
        }
        for text in ["8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_local(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn localhost_is_local_in_every_spelling() {
        for name in ["localhost", "LOCALHOST.", "a.localhost"] {
            assert!(is_local_host(&Host::Domain(name)), "{name}");
        }
        assert!(!is_local_host(&Host::Domain("localhost.example.org")));
    }

    #[tokio::test]
    async fn a_name_of_a_local_host_is_refused_when_resolved() {
        let error = resolve("localhost", 1, false, "HTTP endpoint").await.unwrap_err();
        assert_eq!(error.to_string(), "Usage of local network host for HTTP endpoint is not allowed!");
        assert!(!resolve("localhost", 1, true, "HTTP endpoint").await.unwrap().is_empty());
    }
}
