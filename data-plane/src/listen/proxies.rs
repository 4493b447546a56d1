//! Who is believed when it says where a client is.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks of proxies.
#[derive(Debug)]
pub(super) struct Proxies {
    /// None: everywhere.
    networks: Vec<IpNet>,
}

impl Proxies {
    /// Reads networks and single addresses.
    ///
    /// # Errors
    /// A text that is neither.
    pub(super) fn new(texts: &[String]) -> Result<Self, String> {
        let network = |text: &String| {
            let text = text.trim();
            text.parse()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| format!("{text:?} is neither a network, such as 10.0.0.0/8, nor an address"))
        };
        Ok(Self { networks: texts.iter().map(network).collect::<Result<_, _>>()? })
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        // A socket for both versions says `::ffff:10.0.0.1`.
        let address = address.to_canonical();
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_addresses_are_told_from_others() {
        let of =
            |texts: &[&str]| Proxies::new(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let proxies = of(&["10.0.0.0/8", " 192.0.2.7", "2001:db8::/32"]).unwrap();
        for (address, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("192.0.2.7", true),
            ("2001:db8::1", true),
            ("192.0.2.8", false),
            ("11.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(proxies.has(address.parse().unwrap()), expected, "{address}");
        }
        assert!(of(&[]).unwrap().has("192.0.2.8".parse().unwrap()));
        assert!(of(&["10.0.0.0/33"]).unwrap_err().contains("10.0.0.0/33"));
        assert!(of(&["proxy.example.com"]).is_err());
    }
}
