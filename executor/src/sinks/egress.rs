//! Where sinks may connect to: `INTEGRATIONS_ALLOW_LOCAL_NETWORK_HOSTS`, `TBMQ_IE_EGRESS_ALLOW`, `TBMQ_IE_EGRESS_DENY`.
//!
//! It is for every kind (spec UP-10) and about addresses, not names: what a name means may change after a configuration
//! was checked, so each attempt to connect asks again, about the address that it is going to use.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Host;

/// Which addresses sinks may connect to. Cheap to clone.
///
/// A denied address is refused, whatever else allows it. When there is an allow list, exactly what it names is allowed;
/// else local addresses are as `allow_local` says and all others are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress(Arc<Rules>);

#[derive(Debug, PartialEq, Eq)]
struct Rules {
    allow_local: bool,
    allow: Vec<Network>,
    deny: Vec<Network>,
}

impl Default for Egress {
    /// Everything is allowed.
    fn default() -> Self {
        Self::new(true, Vec::new(), Vec::new())
    }
}

impl Egress {
    /// The rules of a process.
    pub fn new(allow_local: bool, allow: Vec<Network>, deny: Vec<Network>) -> Self {
        Self(Arc::new(Rules { allow_local, allow, deny }))
    }

    /// Whether a sink may connect to an address.
    ///
    /// # Errors
    /// A text for people that names the address and the setting.
    pub fn check(&self, address: IpAddr) -> Result<(), String> {
        let meant = meant(address);
        let refused = |why: String| Err(format!("{address} must not be connected to: {why}"));
        let is_denied = |network: &&Network| network.holds(address) || network.holds(meant);
        if let Some(network) = self.0.deny.iter().find(is_denied) {
            return refused(format!("TBMQ_IE_EGRESS_DENY holds {network}"));
        }
        if !self.0.allow.is_empty() {
            return if self.0.allow.iter().any(|network| network.holds(meant)) {
                Ok(())
            } else {
                refused("TBMQ_IE_EGRESS_ALLOW does not hold it".to_owned())
            };
        }
        if !self.0.allow_local && is_local(meant) {
            return refused("it is local, and INTEGRATIONS_ALLOW_LOCAL_NETWORK_HOSTS is false".to_owned());
        }
        Ok(())
    }

    /// Checks a host as it is written in a configuration, for people who just wrote it: an address, or `localhost`.
    /// Other names pass; they are looked up with each attempt to connect. `what` is the kind's word for what is
    /// connected to, such as `HTTP endpoint`.
    ///
    /// # Errors
    /// A text for people; TBMQ's when a local host is refused because it is local.
    pub fn check_host(&self, host: &Host<&str>, what: &str) -> Result<(), String> {
        let addresses: &[IpAddr] = match host {
            Host::Ipv4(v4) => &[IpAddr::V4(*v4)],
            Host::Ipv6(v6) => &[IpAddr::V6(*v6)],
            Host::Domain(name) if is_localhost(name) => {
                &[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            }
            Host::Domain(_) => return Ok(()),
        };
        // One address of a host is enough to connect to it.
        let Some(text) = self.refusal(addresses.iter().copied()) else { return Ok(()) };
        let is_ban = !self.0.allow_local && self.0.allow.is_empty() && is_local(meant(addresses[0]));
        Err(if is_ban { refusal(what) } else { text })
    }

    /// The addresses that a host has and that may be connected to, in the order of the resolver. `host` may be an
    /// address, also one in brackets. Waits for the resolver, which sets no limit of its own.
    ///
    /// # Errors
    /// A text for people when the host has no address, or none that may be connected to.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        self.lookup(host, port).await.map_err(|error| error.to_string())
    }

    /// As [`Egress::resolve`], for callers that tell errors apart.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn lookup(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
        let unbracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let failed = |reason: String| LookupError::Unresolved { host: host.to_owned(), reason };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((unbracketed, port))
            .await
            .map_err(|error| failed(error.to_string()))?
            .collect();
        if addresses.is_empty() {
            return Err(failed("the name has no address".to_owned()));
        }
        let allowed: Vec<_> =
            addresses.iter().copied().filter(|address| self.check(address.ip()).is_ok()).collect();
        if allowed.is_empty() {
            let text = self.refusal(addresses.iter().map(SocketAddr::ip)).unwrap_or_default();
            return Err(LookupError::Refused { text });
        }
        Ok(allowed)
    }

    /// Why none of these addresses is allowed; `None`: one is.
    fn refusal(&self, addresses: impl Iterator<Item = IpAddr>) -> Option<String> {
        let mut texts = Vec::new();
        for address in addresses {
            texts.push(self.check(address).err()?);
        }
        Some(texts.join("; "))
    }
}

/// Why a host can't be connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// It has no address, or nobody says which.
    #[error("Failed to resolve '{host}': {reason}")]
    Unresolved {
        /// As it was asked for.
        host: String,
        /// The resolver's words.
        reason: String,
    },
    /// It has addresses, and all are refused.
    #[error("{text}")]
    Refused {
        /// For people.
        text: String,
    },
}

/// Some addresses, as `10.0.0.0/8`, `192.168.1.7`, `fd00::/8`, or `public` for all that are not local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub enum Network {
    /// All addresses that are not local.
    Public,
    /// One prefix. An IPv4 prefix also holds its addresses in their IPv6 forms.
    Prefix(IpNet),
}

impl Network {
    /// Whether it holds an address that went through [`meant`].
    fn holds(self, address: IpAddr) -> bool {
        match self {
            Self::Public => !is_local(address),
            Self::Prefix(prefix) => prefix.contains(&address),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

/// A text that names no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a network such as 10.0.0.0/8, nor an address, nor `public`")]
pub struct InvalidNetwork(String);

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("public") {
            return Ok(Self::Public);
        }
        let prefix = text
            .parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| InvalidNetwork(text.to_owned()))?;
        // Addresses are compared in the form that they mean.
        let prefix = match prefix {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
                Some(v4) => Ipv4Net::new_assert(v4, v6.prefix_len() - 96).into(),
                None => prefix,
            },
            _ => prefix,
        };
        Ok(Self::Prefix(prefix.trunc()))
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

/// TBMQ's text, with the kind's word for what is connected to, such as `HTTP endpoint`.
pub fn refusal(what: &str) -> String {
    format!("Usage of local network host for {what} is not allowed!")
}

/// The IPv4 address that an IPv6 address stands for, if it does: mapped (RFC 4291), or behind the well-known prefix of
/// a translator (RFC 6052).
fn meant(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let [0x64, 0xff9b, 0, 0, 0, 0, _, _] = v6.segments() {
        let [.., a, b, c, d] = v6.octets();
        return Ipv4Addr::new(a, b, c, d).into();
    }
    address.to_canonical()
}

/// Whether an address is not one of a single host in the public network: unspecified, loopback, link-local, private
/// (RFC 1918, RFC 4193, `fec0::/10`), shared by a carrier (RFC 6598), multicast or broadcast.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // "This network" (RFC 1122), which Linux takes for the own host, holds the unspecified address.
            a == 0
                || (a == 100 && b & 0xc0 == 64)
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_private()
                || v4.is_multicast()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unique_local()
                || v6.is_multicast()
                // Deprecated (RFC 3879), but refused by TBMQ.
                || v6.segments()[0] & 0xffc0 == 0xfec0
        }
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: [&str; 20] = [
        "127.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "fd00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:0.0.0.0",
        "64:ff9b::7f00:1",
    ];
    const PUBLIC: [&str; 6] =
        ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8", "64:ff9b::808:808"];

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn egress(allow_local: bool, allow: &[&str], deny: &[&str]) -> Egress {
        Egress::new(allow_local, networks(allow), networks(deny))
    }

    fn allows(egress: &Egress, address: &str) -> bool {
        egress.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn local_addresses_are_known_in_all_their_shapes() {
        let strict = egress(false, &[], &[]);
        for address in LOCAL {
            assert!(!allows(&strict, address), "{address}");
            assert!(allows(&Egress::default(), address), "{address}");
        }
        for address in PUBLIC {
            assert!(allows(&strict, address), "{address}");
        }
    }

    #[test]
    fn an_allow_list_holds_all_that_is_allowed() {
        let listed = egress(true, &["10.0.0.0/8", "2001:db8::7"], &[]);
        for (address, is_allowed) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("2001:db8::7", true),
            ("2001:db8::8", false),
            ("11.0.0.1", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(allows(&listed, address), is_allowed, "{address}");
        }
        // What is listed may be local although local addresses are not allowed.
        let public_and_one = egress(false, &["public", "10.0.0.7"], &[]);
        for (address, is_allowed) in [("10.0.0.7", true), ("10.0.0.8", false), ("8.8.8.8", true)] {
            assert_eq!(allows(&public_and_one, address), is_allowed, "{address}");
        }
    }

    #[test]
    fn deny_wins() {
        let denied = egress(true, &["10.0.0.0/8"], &["10.6.0.0/16"]);
        assert!(allows(&denied, "10.7.0.1"));
        for address in ["10.6.1.1", "::ffff:10.6.1.1", "64:ff9b::a06:101"] {
            assert!(!allows(&denied, address), "{address}");
        }
        assert!(!allows(&egress(true, &[], &["64:ff9b::/96"]), "64:ff9b::808:808"));
        assert!(!allows(&egress(true, &[], &["public"]), "8.8.8.8"));
        assert!(allows(&egress(true, &[], &["public"]), "10.0.0.1"));
        assert!(!allows(&egress(true, &[], &["::ffff:10.0.0.0/104"]), "10.0.0.1"));
    }

    #[test]
    fn a_refusal_names_address_and_setting() {
        let text = |egress: &Egress| egress.check("10.0.0.1".parse().unwrap()).unwrap_err();
        assert_eq!(
            text(&egress(false, &[], &[])),
            "10.0.0.1 must not be connected to: it is local, and INTEGRATIONS_ALLOW_LOCAL_NETWORK_HOSTS is false"
        );
        assert_eq!(
            text(&egress(true, &["11.0.0.0/8"], &[])),
            "10.0.0.1 must not be connected to: TBMQ_IE_EGRESS_ALLOW does not hold it"
        );
        assert_eq!(
            text(&egress(true, &[], &["10.0.0.1/8"])),
            "10.0.0.1 must not be connected to: TBMQ_IE_EGRESS_DENY holds 10.0.0.0/8"
        );
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "10.0.0.0/33", "example.org", "10.0.0", "fd00::/129", "10.0.0.0-10.0.0.9"] {
            assert_eq!(text.parse::<Network>(), Err(InvalidNetwork(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn hosts_are_checked_as_they_are_written() {
        let host = |egress: &Egress, host: &str| {
            egress.check_host(&Host::parse(host).unwrap().as_ref_str(), "HTTP endpoint")
        };
        let strict = egress(false, &[], &[]);
        for name in ["localhost", "LOCALHOST.", "a.localhost", "127.1", "[::1]"] {
            assert_eq!(host(&strict, name), Err(refusal("HTTP endpoint")), "{name}");
        }
        for name in ["localhost.example.org", "8.8.8.8"] {
            assert_eq!(host(&strict, name), Ok(()), "{name}");
        }
        assert_eq!(host(&egress(false, &["127.0.0.1"], &[]), "localhost"), Ok(()));
        let denied = host(&egress(true, &[], &["127.0.0.0/8", "::1"]), "localhost").unwrap_err();
        assert!(denied.contains("TBMQ_IE_EGRESS_DENY holds ::1/128"), "{denied}");
    }

    trait AsRefStr {
        fn as_ref_str(&self) -> Host<&str>;
    }

    impl AsRefStr for Host<String> {
        fn as_ref_str(&self) -> Host<&str> {
            match self {
                Host::Domain(name) => Host::Domain(name),
                Host::Ipv4(v4) => Host::Ipv4(*v4),
                Host::Ipv6(v6) => Host::Ipv6(*v6),
            }
        }
    }

    #[tokio::test]
    async fn resolving_keeps_what_is_allowed() {
        let strict = egress(false, &[], &[]);
        let error = strict.resolve("localhost", 1).await.unwrap_err();
        assert!(error.contains("127.0.0.1 must not be connected to: it is local"), "{error}");
        let open = Egress::default();
        assert!(!open.resolve("localhost", 1).await.unwrap().is_empty());
        for (host, address) in [("127.0.0.1", "127.0.0.1:7"), ("[::1]", "[::1]:7"), ("::1", "[::1]:7")] {
            assert_eq!(open.resolve(host, 7).await, Ok(vec![address.parse().unwrap()]));
            assert!(strict.resolve(host, 7).await.is_err(), "{host}");
        }
        let one = egress(false, &["127.0.0.1"], &[]);
        assert_eq!(one.resolve("localhost", 7).await, Ok(vec!["127.0.0.1:7".parse().unwrap()]));
        let unknown = open.resolve("no-such-host.invalid", 7).await.unwrap_err();
        assert!(unknown.starts_with("Failed to resolve 'no-such-host.invalid': "), "{unknown}");
    }
}
