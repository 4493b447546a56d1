//! All credentials in memory, found as TBMQ finds them.
//!
//! Invariant: an entry is in `by_key` if and only if it is in `by_id`; its grants are counted once in `grants`, the
//! cost of its password once in `costs`, and its pattern, if it has one, is in `patterns`.
//!
//! An entry is one piece of memory with its texts and keys in another, hashes of argon2id as bytes; rules are shared by
//! all who have the same. Credentials with a password ask for 210 bytes each at most, but for long names (see the
//! tests).

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use hashbrown::HashTable;
use regex::Regex;
use smallvec::SmallVec;
use uuid::Uuid;

use crate::{
    acl::{self, Acl, Identity, Rule, RuleSet},
    credentials::{ClientType, CommonName, Credentials, Invalid, Proof},
    password::{self, Cost, Packed},
    pattern::{self, Pattern},
    scram::{self, StoredKeys},
};

#[cfg(test)]
mod tests;

/// X.509 credentials by pattern: all are tried at a CONNECT with a certificate.
pub const PATTERNS_MAX: usize = 1000;

/// Credentials that are tried for one CONNECT.
const CANDIDATES_MAX: usize = 6;

/// Which credentials of MQTT basic are looked for (TBMQ's `authStrategy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// `CLIENT_ID`
    ClientId,
    /// `USERNAME`
    UserName,
    /// `CLIENT_ID_AND_USERNAME`: for both, then for the user name, then for the client id.
    #[default]
    Both,
}

/// What a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was new.
    Inserted,
    /// It took the place of an older revision; sessions by this credential are to be judged again.
    Replaced,
    /// It was removed; sessions by this credential are to end.
    Removed,
    /// It was older than what is there, or there was nothing to remove.
    Ignored,
}

/// A credential in the index.
#[derive(Debug)]
pub struct Entry {
    id: Uuid,
    revision: u64,
    grants: Arc<Grants>,
    /// Name, first, second, secret.
    packed: Box<[u8]>,
    name_len: u16,
    first_len: u16,
    second_len: u16,
    kind: Kind,
    client_type: ClientType,
}

/// What `first`, `second` and `secret` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// User name, client id; a password's hash as it is packed.
    Mixed,
    /// User name; a password's hash.
    UserName,
    /// Client id; a password's hash.
    ClientId,
    /// Common name.
    CommonName,
    /// Pattern of common names.
    Pattern,
    /// User name as prepared; packed keys.
    Scram,
}

/// What the clients of a credential may do; alike for many.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Grants {
    All(RuleSet),
    ByLeaf(Box<[(Box<str>, RuleSet)]>),
}

impl Grants {
    /// Not checked yet.
    fn of(proof: Proof) -> Self {
        match proof {
            Proof::Basic { rules, .. } | Proof::Scram { rules, .. } => Self::All(RuleSet::unchecked(rules)),
            Proof::X509 { rules, .. } => {
                let set = |(leaf, rules): (String, Vec<Rule>)| (leaf.into(), RuleSet::unchecked(rules));
                Self::ByLeaf(rules.into_iter().map(set).collect())
            }
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::All(rules) => rules.check()?,
            Self::ByLeaf(all) => {
                for (leaf, rules) in all {
                    Pattern::whole(leaf)?;
                    rules.check()?;
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    fn text(&self, from: usize, len: u16) -> &str {
        str::from_utf8(&self.packed[from..from + usize::from(len)]).expect("it was packed from a text")
    }

    /// Its id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Its revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.text(0, self.name_len)
    }

    /// What its clients are treated as.
    pub fn client_type(&self) -> ClientType {
        self.client_type
    }

    fn first(&self) -> &str {
        self.text(usize::from(self.name_len), self.first_len)
    }

    fn second(&self) -> &str {
        self.text(usize::from(self.name_len) + usize::from(self.first_len), self.second_len)
    }

    fn secret(&self) -> &[u8] {
        let texts = [self.name_len, self.first_len, self.second_len];
        &self.packed[texts.map(usize::from).iter().sum()..]
    }

    /// The hash of a credential of MQTT basic; `None`: any password is accepted.
    pub(crate) fn password(&self) -> Option<Packed<'_>> {
        let basic = matches!(self.kind, Kind::Mixed | Kind::UserName | Kind::ClientId);
        basic.then(|| Packed::of(self.secret())).flatten()
    }

    /// Of a SCRAM credential.
    pub fn scram_keys(&self) -> Option<StoredKeys> {
        (self.kind == Kind::Scram).then(|| StoredKeys::unpack(self.secret())).flatten()
    }

    /// What a client that proved to be meant may do. Compiles rules that nobody uses yet.
    ///
    /// # Errors
    /// When the client is not to be let in after all: no pattern of an X.509 credential matches its common name, or a
    /// rule can't be compiled for it.
    pub fn acl(&self, identity: &Identity<'_>) -> Result<Acl, NoGrant> {
        match &*self.grants {
            Grants::All(rules) => Ok(Acl::new([rules], identity)?),
            Grants::ByLeaf(all) => {
                let leaf = identity.common_name.ok_or(NoGrant::Leaf)?;
                let mut sets = SmallVec::<[&RuleSet; 2]>::new();
                for (pattern, rules) in all {
                    if Pattern::whole(pattern)?.is_match(leaf) {
                        sets.push(rules);
                    }
                }
                if sets.is_empty() { Err(NoGrant::Leaf) } else { Ok(Acl::new(sets, identity)?) }
            }
        }
    }
}

/// Why a credential gives a client nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGrant {
    /// No pattern of the credential matches.
    #[error("no rules of the credential are for this common name")]
    Leaf,
    /// See [`acl::Invalid`].
    #[error(transparent)]
    Rules(#[from] acl::Invalid),
    /// See [`pattern::Invalid`].
    #[error(transparent)]
    Pattern(#[from] pattern::Invalid),
}

/// All credentials.
#[derive(Debug, Default)]
pub struct Index {
    by_id: HashTable<Arc<Entry>>,
    /// By kind, first and second. Two credentials may be alike for a while: the record that frees a key may come after
    /// the one that takes it.
    by_key: HashTable<Arc<Entry>>,
    hash: RandomState,
    /// Tried in the order of ids, which is that of creation for UUIDs of version 7.
    patterns: BTreeMap<Uuid, (Regex, Arc<Entry>)>,
    grants: HashMap<Arc<Grants>, u32>,
    costs: BTreeMap<Cost, u64>,
}

/// As whom a client has come by a credential.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// Its client id.
    pub client_id: &'a str,
    /// The user name of its CONNECT.
    pub user_name: Option<&'a str>,
    /// Of its verified chain.
    pub common_names: &'a [Box<str>],
    /// Of its SCRAM exchange, as prepared.
    pub scram_user: Option<&'a str>,
}

/// Several credentials.
pub type Candidates = SmallVec<[Arc<Entry>; 3]>;

impl Index {
    /// Number of credentials.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Number of distinct sets of rules.
    pub fn rule_sets(&self) -> usize {
        self.grants.len()
    }

    /// Takes a credential; an older revision than the one that is there is ignored.
    ///
    /// # Errors
    /// When it can't be used. Then an older revision is gone, too: what it allowed is no longer meant.
    pub fn put(&mut self, credentials: Credentials) -> Result<Applied, Invalid> {
        let Credentials { id, revision, .. } = credentials;
        if self.get(id).is_some_and(|there| there.revision >= revision) {
            return Ok(Applied::Ignored);
        }
        let old = self.take(id);
        let (entry, regex) = self.build(credentials)?;
        self.add(entry, regex);
        Ok(if old { Applied::Replaced } else { Applied::Inserted })
    }

    /// Removes a credential up to a revision.
    pub fn remove(&mut self, id: Uuid, revision: u64) -> Applied {
        let there = self.get(id).is_some_and(|there| there.revision <= revision);
        if there && self.take(id) { Applied::Removed } else { Applied::Ignored }
    }

    /// By id.
    pub fn get(&self, id: Uuid) -> Option<&Arc<Entry>> {
        self.by_id.find(self.hash.hash_one(id), |entry| entry.id == id)
    }

    /// Credentials of MQTT basic for a client, in the order in which they are to be tried.
    pub fn basic(&self, strategy: Strategy, client_id: &str, user_name: Option<&str>) -> Candidates {
        let mut found = Candidates::new();
        if let (Strategy::Both, Some(user)) = (strategy, user_name) {
            self.find(Kind::Mixed, user, client_id, &mut found);
        }
        if let (Strategy::Both | Strategy::UserName, Some(user)) = (strategy, user_name) {
            self.find(Kind::UserName, user, "", &mut found);
        }
        if let Strategy::Both | Strategy::ClientId = strategy {
            self.find(Kind::ClientId, client_id, "", &mut found);
        }
        found
    }

    /// The credential for a chain of common names, leaf first: for each name the patterns, then the name itself.
    ///
    /// The chain is that from the client's certificate to the authority, as it was verified: a client may send further
    /// certificates, of which it has no key.
    pub fn x509<'a>(&self, chain: impl IntoIterator<Item = &'a str>) -> Option<Arc<Entry>> {
        let mut found = Candidates::new();
        for name in chain {
            let by_pattern = self.patterns.values().find(|(regex, _)| regex.is_match(name));
            if let Some((_, entry)) = by_pattern {
                return Some(entry.clone());
            }
            self.find(Kind::CommonName, name, "", &mut found);
            if let Some(entry) = found.first() {
                return Some(entry.clone());
            }
        }
        None
    }

    /// Whether a credential is still for a client that has come by it, whatever the password is now.
    pub fn is_for(&self, entry: &Entry, holder: &Holder<'_>) -> bool {
        let mut names = holder.common_names.iter();
        match entry.kind {
            Kind::Mixed => holder.user_name == Some(entry.first()) && holder.client_id == entry.second(),
            Kind::UserName => holder.user_name == Some(entry.first()),
            Kind::ClientId => holder.client_id == entry.first(),
            Kind::CommonName => names.any(|name| **name == *entry.first()),
            Kind::Pattern => {
                self.patterns.get(&entry.id).is_some_and(|(regex, _)| names.any(|name| regex.is_match(name)))
            }
            Kind::Scram => holder.scram_user == Some(entry.first()),
        }
    }

    /// The SCRAM credential of a user name as [`scram::prepare`] gives it.
    pub fn scram(&self, user_name: &str) -> Option<Arc<Entry>> {
        let mut found = Candidates::new();
        self.find(Kind::Scram, user_name, "", &mut found);
        found.first().cloned()
    }

    /// What verifying the password of a client that no credential is for is to cost: as much as for one of those that
    /// there are, always the same for one name, as often as there are such. `seed` is a keyed hash of the name.
    pub fn cost_of_nobody(&self, seed: u64) -> Cost {
        let all: u64 = self.costs.values().sum();
        let mut at = seed.checked_rem(all).unwrap_or_default();
        for (cost, count) in &self.costs {
            match at.checked_sub(*count) {
                Some(rest) => at = rest,
                None => return *cost,
            }
        }
        Cost::default()
    }

    /// A keyed hash of a text, other in every process.
    pub(crate) fn seed(&self, text: &str) -> u64 {
        self.hash.hash_one(text)
    }

    fn find(&self, kind: Kind, first: &str, second: &str, found: &mut Candidates) {
        let hash = self.hash.hash_one((kind, first, second));
        let start = found.len();
        let alike = self.by_key.iter_hash(hash);
        let fits =
            |entry: &&Arc<Entry>| entry.kind == kind && entry.first() == first && entry.second() == second;
        found.extend(alike.filter(fits).cloned());
        // The latest first: the order of the table is that of chance.
        found[start..].sort_by_key(|entry| std::cmp::Reverse((entry.revision, entry.id)));
        found.truncate(CANDIDATES_MAX);
    }

    fn build(&mut self, credentials: Credentials) -> Result<(Arc<Entry>, Option<Regex>), Invalid> {
        credentials.check_proof()?;
        let Credentials { id, revision, name, client_type, proof } = credentials;
        let mut regex = None;
        let (kind, first, second, secret) = match &proof {
            Proof::Basic { client_id, user_name, password_hash, .. } => {
                let secret = password_hash.as_deref().map(password::pack).transpose()?.unwrap_or_default();
                match (user_name, client_id) {
                    (Some(user), Some(client)) => (Kind::Mixed, user.clone(), client.clone(), secret),
                    (Some(user), None) => (Kind::UserName, user.clone(), String::new(), secret),
                    (None, client) => {
                        (Kind::ClientId, client.clone().unwrap_or_default(), String::new(), secret)
                    }
                }
            }
            Proof::X509 { common_name: CommonName::Literal(name), .. } => {
                (Kind::CommonName, name.clone(), String::new(), Vec::new())
            }
            Proof::X509 { common_name: CommonName::Pattern(text), .. } => {
                if self.patterns.len() >= PATTERNS_MAX {
                    return Err(Invalid::TooManyPatterns(self.patterns.len()));
                }
                regex = Some(pattern::anywhere(text)?);
                (Kind::Pattern, text.clone(), String::new(), Vec::new())
            }
            Proof::Scram { user_name, keys, .. } => {
                let user_name =
                    scram::prepare(user_name).ok_or(Invalid::Text("a user name that can be prepared"))?;
                (Kind::Scram, user_name.into_owned(), String::new(), keys.pack())
            }
        };
        let grants = Grants::of(proof);
        let grants = match self.grants.get_key_value(&grants) {
            Some((shared, _)) => shared.clone(),
            None => {
                grants.check()?;
                Arc::new(grants)
            }
        };
        let [name_len, first_len, second_len] =
            [&name, &first, &second].map(|text| u16::try_from(text.len()).unwrap_or(u16::MAX));
        let packed = [name.as_bytes(), first.as_bytes(), second.as_bytes(), &secret].concat().into();
        let entry =
            Entry { id, revision, grants, packed, name_len, first_len, second_len, kind, client_type };
        Ok((Arc::new(entry), regex))
    }

    fn add(&mut self, entry: Arc<Entry>, regex: Option<Regex>) {
        *self.grants.entry(entry.grants.clone()).or_default() += 1;
        if let Some(cost) = entry.password().and_then(Packed::cost) {
            *self.costs.entry(cost).or_default() += 1;
        }
        if let Some(regex) = regex {
            self.patterns.insert(entry.id, (regex, entry.clone()));
        }
        let Self { by_id, by_key, hash, .. } = self;
        let of_key = |entry: &Arc<Entry>| hash.hash_one((entry.kind, entry.first(), entry.second()));
        by_key.insert_unique(of_key(&entry), entry.clone(), of_key);
        by_id.insert_unique(hash.hash_one(entry.id), entry, |entry| hash.hash_one(entry.id));
    }

    /// Takes an entry out of everything.
    fn take(&mut self, id: Uuid) -> bool {
        let Ok(found) = self.by_id.find_entry(self.hash.hash_one(id), |entry| entry.id == id) else {
            return false;
        };
        let (entry, _) = found.remove();
        let of_key = self.hash.hash_one((entry.kind, entry.first(), entry.second()));
        if let Ok(found) = self.by_key.find_entry(of_key, |other| Arc::ptr_eq(other, &entry)) {
            found.remove();
        }
        self.patterns.remove(&id);
        if let Some(count) = self.grants.get_mut(&entry.grants) {
            *count -= 1;
            if *count == 0 {
                self.grants.remove(&entry.grants);
            }
        }
        if let Some(cost) = entry.password().and_then(Packed::cost)
            && let Some(count) = self.costs.get_mut(&cost)
        {
            *count -= 1;
            if *count == 0 {
                self.costs.remove(&cost);
            }
        }
        true
    }
}
