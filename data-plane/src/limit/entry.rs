//! Who may connect: how many connections in a second, how many from one address, and how many of those in a second.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    net::IpAddr,
    num::NonZeroUsize,
    sync::Arc,
};

use parking_lot::Mutex;
use tbmq_auth::limits::{Each, RateLimit, Taken};

use crate::metrics::Limit;

/// Addresses whose connection rate is known at a time; of the least busy ones it is forgotten.
const ADDRESSES_MAX: NonZeroUsize = NonZeroUsize::new(1 << 16).expect("not 0");

/// Limits of those who come.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    node: Option<(RateLimit, Mutex<Taken>)>,
    each_address: Option<Mutex<Each<Address>>>,
    /// Connections at a time from each address that has one.
    here: Option<Arc<Here>>,
}

#[derive(Debug)]
struct Here {
    max: NonZeroUsize,
    counts: Mutex<HashMap<Address, usize>>,
}

/// Whose connections count together: an IPv4 address, or an IPv6 network of 64 bits, which is what one household has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Address(u128);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            // Below 2⁶⁴, and no network is.
            IpAddr::V4(address) => Self(u128::from(address.to_bits()) | 1 << 63),
            IpAddr::V6(address) => Self(address.to_bits() >> 64 << 64),
        }
    }
}

/// A connection's place among those of its address; free again when dropped. In one piece of memory of its own: most
/// connections have none.
#[derive(Debug)]
pub(crate) struct AddressPlace(Box<(Arc<Here>, Address)>);

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let (here, address) = &*self.0;
        if let Slot::Occupied(mut count) = here.counts.lock().entry(*address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Entry {
    /// 0 connections of an address: no limit.
    pub(super) fn new(node: Option<RateLimit>, address: Option<RateLimit>, address_max: usize) -> Self {
        Self {
            node: node.map(|limit| (limit, Mutex::default())),
            each_address: address.map(|limit| Mutex::new(Each::new(limit, ADDRESSES_MAX))),
            here: NonZeroUsize::new(address_max).map(|max| Arc::new(Here { max, counts: Mutex::default() })),
        }
    }

    /// Takes a connection, from wherever it comes.
    pub(super) fn take(&self, now_ms: u64) -> Result<(), Limit> {
        match &self.node {
            Some((limit, taken)) if !limit.take(&mut taken.lock(), now_ms) => Err(Limit::ConnectionRate),
            _ => Ok(()),
        }
    }

    /// Takes a connection from this address. Its place, where such are counted.
    pub(super) fn take_from(&self, now_ms: u64, address: IpAddr) -> Result<Option<AddressPlace>, Limit> {
        let address = Address::from(address);
        if let Some(each) = &self.each_address
            && !each.lock().take(address, now_ms)
        {
            return Err(Limit::AddressConnectionRate);
        }
        let Some(here) = &self.here else { return Ok(None) };
        let mut counts = here.counts.lock();
        let count = counts.entry(address).or_default();
        if *count >= here.max.get() {
            return Err(Limit::AddressConnections);
        }
        *count += 1;
        Ok(Some(AddressPlace(Box::new((here.clone(), address)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(node: Option<&str>, address: Option<&str>, address_max: usize) -> Entry {
        let limit = |text: &str| text.parse().unwrap();
        Entry::new(node.map(limit), address.map(limit), address_max)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv4_address_counts_alone_and_an_ipv6_one_with_its_network() {
        let same = |one: &str, other: &str| Address::from(address(one)) == Address::from(address(other));
        assert!(same("192.0.2.1", "192.0.2.1"));
        assert!(same("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
        assert!(same("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert!(!same("2001:db8:0:1::1", "2001:db8:0:2::1"));
        assert!(!same("0.0.0.0", "::"));
        assert!(!same("192.0.2.1", "::192.0.2.1"));
    }

    #[test]
    fn each_address_has_its_places_and_gives_them_back() {
        let entry = entry(None, None, 2);
        let take = |text| entry.take_from(0, address(text));
        let mut places = vec![take("192.0.2.1").unwrap(), take("192.0.2.1").unwrap()];
        assert_eq!(take("192.0.2.1").unwrap_err(), Limit::AddressConnections);
        places.push(take("192.0.2.2").unwrap());
        places.remove(0);
        places.push(take("192.0.2.1").unwrap());
        assert_eq!(take("192.0.2.1").unwrap_err(), Limit::AddressConnections);
        drop(places);
        assert!(entry.here.as_ref().unwrap().counts.lock().is_empty(), "nobody is remembered");
    }

    #[test]
    fn each_address_has_its_rate() {
        let entry = entry(None, Some("2:10"), 0);
        let take = |now_ms, text| entry.take_from(now_ms, address(text)).map(drop);
        for _ in 0..2 {
            assert_eq!(take(0, "192.0.2.1"), Ok(()));
        }
        assert_eq!(take(0, "192.0.2.1"), Err(Limit::AddressConnectionRate));
        assert_eq!(take(4999, "192.0.2.1"), Err(Limit::AddressConnectionRate));
        assert_eq!(take(4999, "192.0.2.2"), Ok(()));
        assert_eq!(take(5000, "192.0.2.1"), Ok(()));
    }

    #[test]
    fn the_node_has_a_rate_whoever_comes() {
        let limited = entry(Some("3:1"), None, 0);
        for _ in 0..3 {
            assert_eq!(limited.take(0), Ok(()));
        }
        assert_eq!(limited.take(333), Err(Limit::ConnectionRate));
        assert_eq!(limited.take(334), Ok(()));
        assert_eq!(entry(None, None, 0).take(0), Ok(()));
    }
}
