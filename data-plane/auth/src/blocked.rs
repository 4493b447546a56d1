//! Clients that may not connect at all, whatever they prove (TBMQ's blocked clients).

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::pattern::{self, Pattern};

/// Blocks by regex: all are tried at every CONNECT.
pub const PATTERNS_MAX: usize = 1000;

/// What a regex is matched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// `BY_CLIENT_ID`
    ClientId,
    /// `BY_USERNAME`
    UserName,
    /// `BY_IP_ADDRESS`
    Address,
}

/// Who is blocked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// `CLIENT_ID`
    ClientId(Box<str>),
    /// `USERNAME`
    UserName(Box<str>),
    /// `IP_ADDRESS`: an address, or a network such as `10.0.0.0/8`.
    Network(IpNet),
    /// `REGEX`, which matches the whole text.
    Regex {
        /// The regular expression.
        pattern: Box<str>,
        /// Of what.
        target: Target,
    },
}

/// Why a text can't be blocked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Neither an address nor a network.
    #[error("{0:?} is neither an address nor a network such as 10.0.0.0/8")]
    Address(String),
    /// See [`pattern::Invalid`].
    #[error(transparent)]
    Pattern(#[from] pattern::Invalid),
    /// More than [`PATTERNS_MAX`].
    #[error("{PATTERNS_MAX} regular expressions block clients already, and every CONNECT tries all of them")]
    TooMany,
}

impl Who {
    /// By address or network, of either family. An IPv4 address that is written as IPv6 is the same address.
    ///
    /// # Errors
    /// When it is neither.
    pub fn network(text: &str) -> Result<Self, Invalid> {
        let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
        let network = address.or_else(|_| text.parse::<IpNet>().map(|network| network.trunc()));
        network.map(Self::Network).map_err(|_| Invalid::Address(text.to_owned()))
    }

    /// The key of its record on TBMQ's topic `tbmq.client.blocked`.
    pub fn key(&self) -> String {
        match self {
            Self::ClientId(id) => format!("clientId:{id}"),
            Self::UserName(name) => format!("username:{name}"),
            Self::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                format!("ipAddress:{}", network.addr())
            }
            Self::Network(network) => format!("ipAddress:{network}"),
            Self::Regex { pattern, target } => {
                let target = match target {
                    Target::ClientId => "byID",
                    Target::UserName => "byUN",
                    Target::Address => "byIP",
                };
                format!("regex:{pattern}:{target}")
            }
        }
    }
}

/// A client as it connects, or is connected.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its client id.
    pub client_id: &'a str,
    /// Its user name.
    pub user_name: Option<&'a str>,
    /// Where it comes from.
    pub address: IpAddr,
}

/// Whether a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `ACTIVE`
    Active,
    /// `EXPIRED`
    Expired,
    /// `DELETING_SOON`: more than half of the time between expiry and removal is over.
    DeletingSoon,
}

/// TBMQ's status of a block that expires at `expires_at_ms` (0: never) and is removed `ttl_ms` later.
pub fn status(expires_at_ms: i64, now_ms: i64, ttl_ms: i64) -> Status {
    if holds(expires_at_ms, now_ms) {
        Status::Active
    } else if now_ms.saturating_sub(expires_at_ms) > ttl_ms / 2 {
        Status::DeletingSoon
    } else {
        Status::Expired
    }
}

fn holds(expires_at_ms: i64, now_ms: i64) -> bool {
    expires_at_ms <= 0 || now_ms < expires_at_ms
}

/// All blocks. Times are ms since 1970.
#[derive(Debug, Default)]
pub struct Blocked {
    /// Until when, 0: for ever.
    until_ms: HashMap<Who, i64>,
    patterns: BTreeMap<(Target, Box<str>), Pattern>,
    /// How many networks there are of each length, IPv4 and IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
}

impl Blocked {
    /// Number of blocks, expired ones included.
    pub fn len(&self) -> usize {
        self.until_ms.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.until_ms.is_empty()
    }

    /// Blocks, or changes until when; 0: for ever. Connected clients that [`blocks`] are to be disconnected.
    ///
    /// # Errors
    /// When it is a regex that can't be used, or one too many.
    pub fn put(&mut self, who: Who, expires_at_ms: i64) -> Result<(), Invalid> {
        if let Some(until) = self.until_ms.get_mut(&who) {
            *until = expires_at_ms;
            return Ok(());
        }
        match &who {
            Who::Regex { pattern, target } => {
                if self.patterns.len() >= PATTERNS_MAX {
                    return Err(Invalid::TooMany);
                }
                self.patterns.insert((*target, pattern.clone()), Pattern::whole(pattern)?);
            }
            Who::Network(network) => {
                *self.lengths[family(*network)].entry(network.prefix_len()).or_default() += 1;
            }
            Who::ClientId(_) | Who::UserName(_) => {}
        }
        self.until_ms.insert(who, expires_at_ms);
        Ok(())
    }

    /// Unblocks; says whether it was blocked.
    pub fn remove(&mut self, who: &Who) -> bool {
        let was = self.until_ms.remove(who).is_some();
        match who {
            Who::Regex { pattern, target } => {
                self.patterns.remove(&(*target, pattern.clone()));
            }
            Who::Network(network) if was => {
                let lengths = &mut self.lengths[family(*network)];
                if let Some(count) = lengths.get_mut(&network.prefix_len()) {
                    *count -= 1;
                    if *count == 0 {
                        lengths.remove(&network.prefix_len());
                    }
                }
            }
            _ => {}
        }
        was
    }

    /// What blocks a client: client id, user name, address, then regexes, as TBMQ looks.
    pub fn find(&self, now_ms: i64, client: Client<'_>) -> Option<Who> {
        let held = |who: &Who| self.until_ms.get(who).is_some_and(|until| holds(*until, now_ms));
        let exact = [
            Some(Who::ClientId(client.client_id.into())),
            client.user_name.map(|name| Who::UserName(name.into())),
        ];
        exact
            .into_iter()
            .flatten()
            .find(held)
            .or_else(|| self.networks_of(client.address).find(held))
            .or_else(|| self.regexes_of(client).find(held))
    }

    fn networks_of(&self, address: IpAddr) -> impl Iterator<Item = Who> {
        let address = address.to_canonical();
        let lengths = &self.lengths[family(address.into())];
        let network = move |length: &u8| IpNet::new(address, *length).ok().map(|network| network.trunc());
        lengths.keys().rev().filter_map(network).map(Who::Network)
    }

    fn regexes_of(&self, client: Client<'_>) -> impl Iterator<Item = Who> {
        let address = client.address.to_canonical().to_string();
        self.patterns
            .iter()
            .filter(move |((target, _), regex)| match target {
                Target::ClientId => regex.is_match(client.client_id),
                Target::UserName => client.user_name.is_some_and(|name| regex.is_match(name)),
                Target::Address => regex.is_match(&address),
            })
            .map(|((target, pattern), _)| Who::Regex { pattern: pattern.clone(), target: *target })
    }

    /// Blocks that expired `ttl_ms` ago or earlier, which are to be removed
    /// (`BLOCKED_CLIENT_CLEANUP_TTL_MINUTES`).
    pub fn outdated(&self, now_ms: i64, ttl_ms: i64) -> impl Iterator<Item = &Who> {
        let over = move |until: i64| until > 0 && now_ms >= until.saturating_add(ttl_ms);
        self.until_ms.iter().filter(move |(_, until)| over(**until)).map(|(who, _)| who)
    }
}

/// Whether a single block is about a client: for those that are connected when it comes.
///
/// # Errors
/// When it is a regex that can't be used.
pub fn blocks(who: &Who, client: Client<'_>) -> Result<bool, Invalid> {
    let mut one = Blocked::default();
    one.put(who.clone(), 0)?;
    Ok(one.find(0, client).is_some())
}

fn family(network: IpNet) -> usize {
    usize::from(matches!(network, IpNet::V6(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    fn client<'a>(client_id: &'a str, user_name: Option<&'a str>, address: &str) -> Client<'a> {
        Client { client_id, user_name, address: address.parse().unwrap() }
    }

    fn regex(pattern: &str, target: Target) -> Who {
        Who::Regex { pattern: pattern.into(), target }
    }

    fn blocked(all: &[Who]) -> Blocked {
        let mut blocked = Blocked::default();
        for who in all {
            blocked.put(who.clone(), 0).unwrap();
        }
        blocked
    }

    #[test]
    fn a_client_is_blocked_by_each_of_its_names_and_by_none_that_is_only_alike() {
        let all = [
            Who::ClientId("bad".into()),
            Who::UserName("mallory".into()),
            Who::network("192.0.2.7").unwrap(),
            Who::network("10.1.0.0/16").unwrap(),
            Who::network("2001:db8::/32").unwrap(),
            regex("test-[0-9]+", Target::ClientId),
            regex("guest.*", Target::UserName),
            regex("203\\.0\\.113\\..*", Target::Address),
        ];
        let blocked = blocked(&all);
        for (client, expected) in [
            (client("bad", None, "127.0.0.1"), Some(0)),
            (client("x", Some("mallory"), "127.0.0.1"), Some(1)),
            (client("x", None, "192.0.2.7"), Some(2)),
            (client("x", None, "::ffff:192.0.2.7"), Some(2)),
            (client("x", None, "10.1.255.1"), Some(3)),
            (client("x", None, "2001:db8:1::1"), Some(4)),
            (client("test-17", None, "127.0.0.1"), Some(5)),
            (client("x", Some("guest9"), "127.0.0.1"), Some(6)),
            (client("x", None, "203.0.113.9"), Some(7)),
            (client("bad", Some("mallory"), "192.0.2.7"), Some(0)),
            (client("Bad", Some("Mallory"), "192.0.2.8"), None),
            (client("mallory", Some("bad"), "10.2.0.1"), None),
            (client("a-test-17", None, "2001:db9::1"), None),
            (client("guest", None, "::1"), None),
        ] {
            assert_eq!(blocked.find(NOW, client), expected.map(|at| all[at].clone()), "{client:?}");
            for (at, who) in all.iter().enumerate() {
                let found = blocks(who, client).unwrap();
                assert!(!found || expected.is_some(), "{at} {client:?}");
                assert!(found || expected != Some(at), "{at} {client:?}");
            }
        }
    }

    #[test]
    fn a_block_holds_until_it_expires_and_is_outdated_later() {
        let mut blocked = Blocked::default();
        let who = Who::ClientId("bad".into());
        let bad = client("bad", None, "127.0.0.1");
        blocked.put(who.clone(), NOW + 1000).unwrap();
        assert!(blocked.find(NOW + 999, bad).is_some());
        assert!(blocked.find(NOW + 1000, bad).is_none());
        assert_eq!(blocked.outdated(NOW + 1499, 500).count(), 0);
        assert_eq!(blocked.outdated(NOW + 1500, 500).collect::<Vec<_>>(), [&who]);
        let of = |now| status(NOW + 1000, now, 500);
        assert_eq!(
            [of(NOW), of(NOW + 1000), of(NOW + 1300)],
            [Status::Active, Status::Expired, Status::DeletingSoon]
        );
        assert_eq!(status(0, NOW, 500), Status::Active);
        blocked.put(who.clone(), 0).unwrap();
        assert!(blocked.find(i64::MAX, bad).is_some());
        assert_eq!(blocked.outdated(i64::MAX, 500).count(), 0);
    }

    #[test]
    fn an_expired_block_hides_no_other() {
        let mut blocked = blocked(&[Who::network("10.0.0.0/8").unwrap()]);
        blocked.put(Who::ClientId("bad".into()), NOW - 1).unwrap();
        blocked.put(Who::network("10.0.0.1").unwrap(), NOW - 1).unwrap();
        let found = blocked.find(NOW, client("bad", None, "10.0.0.1"));
        assert_eq!(found, Some(Who::network("10.0.0.0/8").unwrap()));
    }

    #[test]
    fn what_is_removed_blocks_nobody_and_leaves_nothing() {
        let all = [
            Who::ClientId("bad".into()),
            Who::network("10.0.0.0/8").unwrap(),
            Who::network("11.0.0.0/8").unwrap(),
            regex(".*", Target::UserName),
        ];
        let mut blocked = blocked(&all);
        assert!(!blocked.remove(&Who::network("12.0.0.0/8").unwrap()));
        for who in &all {
            assert!(blocked.remove(who) && !blocked.remove(who));
        }
        assert!(blocked.is_empty() && blocked.patterns.is_empty());
        assert!(blocked.lengths.iter().all(BTreeMap::is_empty));
        assert!(blocked.find(NOW, client("bad", Some("x"), "10.0.0.1")).is_none());
    }

    #[test]
    fn keys_are_tbmqs() {
        for (who, key) in [
            (Who::ClientId("a:b".into()), "clientId:a:b"),
            (Who::UserName("u".into()), "username:u"),
            (Who::network("192.0.2.7").unwrap(), "ipAddress:192.0.2.7"),
            (Who::network("::ffff:192.0.2.7").unwrap(), "ipAddress:192.0.2.7"),
            (Who::network("10.1.2.3/8").unwrap(), "ipAddress:10.0.0.0/8"),
            (regex("a.*", Target::ClientId), "regex:a.*:byID"),
            (regex("a.*", Target::UserName), "regex:a.*:byUN"),
            (regex("a.*", Target::Address), "regex:a.*:byIP"),
        ] {
            assert_eq!(who.key(), key);
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_changes_nothing() {
        let mut blocked = Blocked::default();
        assert!(matches!(blocked.put(regex("(", Target::ClientId), 0), Err(Invalid::Pattern(_))));
        for text in ["", "10.0.0", "10.0.0.0/33", "example.org", "10.0.0.1-10.0.0.9"] {
            assert_eq!(Who::network(text), Err(Invalid::Address(text.to_owned())));
        }
        assert!(blocked.is_empty());
        for n in 0..PATTERNS_MAX {
            blocked.put(regex(&format!("a{n}"), Target::ClientId), 0).unwrap();
        }
        assert_eq!(blocked.put(regex("b", Target::ClientId), 0), Err(Invalid::TooMany));
        blocked.put(regex("a7", Target::ClientId), 5).unwrap();
        assert_eq!(blocked.len(), PATTERNS_MAX);
    }
}
