//! Which topics a client may use: rules, and what they say about a publish and a subscription.
//!
//! A client may do what an allow rule covers and no deny rule does; the order of rules does not matter. A subscription
//! is judged by its filter, that of `$share/<name>/<filter>` by the plain one:
//!
//! | rule | allows a subscription | denies a subscription |
//! |---|---|---|
//! | filter | whose filter is within the rule's | whose filter has a topic in common with it |
//! | regex | whose filter's *text* matches, as in TBMQ | whose text matches, or whose topics might |
//!
//! Placeholders `${clientId}`, `${username}` and `${cn}` stand for text. An allow rule with one says nothing about a
//! client whose value is missing, holds `/`, `+` or `#`, or would begin a topic with `$` (in a regex: begins with it):
//! no client widens a rule by its name. A deny rule holds for such a client, too, wherever there is such a topic.

use std::{
    hash::{BuildHasher as _, Hash, Hasher, RandomState},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tbmq_mqtt::{packet::Qos, topic};

use crate::pattern::{self, Pattern};

mod filter;
#[cfg(test)]
mod tests;

use filter::Filter;

/// Rules of one set.
pub const RULES_MAX: usize = 1000;

/// Bytes of a value that fills a placeholder of a regex.
const VALUE_BYTES_MAX: usize = 1024;

/// Decisions that a connection keeps.
const DECISIONS: usize = 32;

/// Bytes of a topic whose decision is kept.
const DECISION_TOPIC_BYTES_MAX: usize = 512;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Allows.
    Allow,
    /// Denies, whatever allows.
    Deny,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// PUBLISH and wills.
    Publish,
    /// SUBSCRIBE.
    Subscribe,
    /// All of them.
    Both,
}

/// Which publishes a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Retained {
    /// All.
    #[default]
    Either,
    /// With the retain flag; such a rule says nothing about subscriptions.
    Only,
    /// Without it.
    Never,
}

/// Which qualities of service a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QosSet(u8);

impl QosSet {
    /// All three.
    pub const ALL: Self = Self(0b111);

    /// Up to this one.
    pub fn up_to(qos: Qos) -> Self {
        Self((1 << (qos.bits() + 1)) - 1)
    }

    /// Bit n stands for QoS n; `None` when there is none, or another bit.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (1..=0b111).contains(&bits).then_some(Self(bits as u8))
    }

    /// These.
    pub fn of(all: &[Qos]) -> Self {
        Self(all.iter().fold(0, |bits, qos| bits | 1 << qos.bits()))
    }

    /// Whether this one is among them.
    pub fn contains(self, qos: Qos) -> bool {
        self.0 & 1 << qos.bits() != 0
    }
}

/// Which topics a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topics {
    /// A regular expression that matches the whole text.
    Regex(Box<str>),
    /// An MQTT topic filter.
    Filter(Box<str>),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What it does.
    pub effect: Effect,
    /// What it is about.
    pub action: Action,
    /// Which qualities of service.
    pub qos: QosSet,
    /// Which publishes.
    pub retained: Retained,
    /// Which topics.
    pub topics: Topics,
}

/// Why a rule can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// See [`pattern::Invalid`].
    #[error(transparent)]
    Pattern(#[from] pattern::Invalid),
    /// See [`topic::Invalid`].
    #[error("{filter:?} is no topic filter: {reason}")]
    Filter {
        /// The filter.
        filter: Box<str>,
        /// What is wrong.
        reason: topic::Invalid,
    },
    /// The rule for the plain filter is meant.
    #[error("{0:?}: rules name plain topic filters, which hold for shared subscriptions, too")]
    Shared(Box<str>),
    /// `${` and something unknown.
    #[error("{0:?}: placeholders are ${{clientId}}, ${{username}} and ${{cn}}")]
    Placeholder(Box<str>),
    /// More than [`RULES_MAX`].
    #[error("a set has at most {RULES_MAX} rules, this one has {0}")]
    TooMany(usize),
}

/// Who a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Its client id.
    pub client_id: &'a str,
    /// The user name of its CONNECT.
    pub user_name: Option<&'a str>,
    /// The common name of its own certificate.
    pub common_name: Option<&'a str>,
}

const PLACEHOLDERS: [&str; 3] = ["${clientId}", "${username}", "${cn}"];

impl Identity<'_> {
    /// The text with placeholders replaced by what `put` makes of their values; `None` when one is missing.
    pub(crate) fn fill(&self, text: &str, put: impl Fn(&str) -> Option<String>) -> Option<String> {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            filled.push_str(before);
            let values = [Some(self.client_id), self.user_name, self.common_name];
            let found = PLACEHOLDERS.iter().zip(values).find(|(name, _)| from.starts_with(**name));
            match found {
                Some((name, value)) => {
                    filled.push_str(&put(value?)?);
                    rest = &from[name.len()..];
                }
                None => return None,
            }
        }
        filled.push_str(rest);
        Some(filled)
    }
}

fn is_personal(text: &str) -> bool {
    PLACEHOLDERS.iter().any(|name| text.contains(name))
}

/// Whether a value may stand in a regex that allows: it is a part of one level at most, and begins no topic of the
/// server.
fn is_plain(value: &str) -> bool {
    value.len() <= VALUE_BYTES_MAX && !value.starts_with('$') && !value.contains(['/', '+', '#', '\0'])
}

impl Topics {
    fn text(&self) -> &str {
        match self {
            Self::Regex(text) | Self::Filter(text) => text,
        }
    }
}

impl Rule {
    /// A rule of TBMQ: allows what the pattern matches.
    pub fn allow_regex(action: Action, pattern: &str) -> Self {
        let topics = Topics::Regex(pattern.into());
        Self { effect: Effect::Allow, action, qos: QosSet::ALL, retained: Retained::Either, topics }
    }

    /// A rule by topic filter for every quality of service.
    pub fn by_filter(effect: Effect, action: Action, filter: &str) -> Self {
        let topics = Topics::Filter(filter.into());
        Self { effect, action, qos: QosSet::ALL, retained: Retained::Either, topics }
    }

    /// Whether it can be used; takes as long as [`Pattern::whole`].
    ///
    /// # Errors
    /// See [`Invalid`].
    pub fn check(&self) -> Result<(), Invalid> {
        let text = self.topics.text();
        let sample = Identity { client_id: "x", user_name: Some("x"), common_name: Some("x") };
        let Some(filled) = sample.fill(text, |value| Some(value.to_owned())) else {
            return Err(Invalid::Placeholder(text.into()));
        };
        match &self.topics {
            Topics::Regex(_) => Pattern::whole(&filled).map(drop)?,
            Topics::Filter(filter) => {
                if filter.starts_with("$share/") {
                    return Err(Invalid::Shared(filter.clone()));
                }
                topic::check_filter(&filled, &topic::Rules::default())
                    .map_err(|reason| Invalid::Filter { filter: filter.clone(), reason })?;
            }
        }
        Ok(())
    }

    fn publish_mask(&self) -> u8 {
        let qos = if self.action == Action::Subscribe { 0 } else { self.qos.0 };
        match self.retained {
            Retained::Either => qos | qos << 3,
            Retained::Only => qos << 3,
            Retained::Never => qos,
        }
    }

    fn subscribe_mask(&self) -> u8 {
        let covered = self.action != Action::Publish && self.retained != Retained::Only;
        if covered { self.qos.0 } else { 0 }
    }
}

/// Rules as they are written, shared by all who have the same.
#[derive(Debug)]
pub struct RuleSet {
    rules: Box<[Rule]>,
    /// As compiled for everybody while anybody uses it; rules with placeholders are compiled for each client.
    compiled: Mutex<Weak<Compiled>>,
}

impl PartialEq for RuleSet {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl Eq for RuleSet {}

impl Hash for RuleSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.rules.hash(state);
    }
}

impl RuleSet {
    /// Rules that can be used.
    ///
    /// # Errors
    /// The first that is wrong, or too many.
    pub fn new(rules: Vec<Rule>) -> Result<Self, Invalid> {
        let set = Self::unchecked(rules);
        set.check().map(|()| set)
    }

    /// To look whether there are the same already, which were checked.
    pub(crate) fn unchecked(rules: Vec<Rule>) -> Self {
        Self { rules: rules.into(), compiled: Mutex::new(Weak::new()) }
    }

    /// Checks all rules.
    ///
    /// # Errors
    /// The first that is wrong, or too many.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if self.rules.len() > RULES_MAX {
            return Err(Invalid::TooMany(self.rules.len()));
        }
        self.rules.iter().try_for_each(Rule::check)
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn compile(&self, identity: &Identity<'_>) -> Result<Arc<Compiled>, Invalid> {
        if self.rules.iter().any(|rule| is_personal(rule.topics.text())) {
            return Ok(Arc::new(Compiled::new(&self.rules, identity)?));
        }
        let mut shared = self.compiled.lock();
        if let Some(compiled) = shared.upgrade() {
            return Ok(compiled);
        }
        let compiled = Arc::new(Compiled::new(&self.rules, identity)?);
        *shared = Arc::downgrade(&compiled);
        Ok(compiled)
    }
}

#[derive(Debug)]
struct Compiled {
    /// Deny rules first: they leave less to look at.
    rules: Box<[CompiledRule]>,
    has_regex: bool,
}

#[derive(Debug)]
struct CompiledRule {
    effect: Effect,
    publish: u8,
    subscribe: u8,
    topics: CompiledTopics,
}

#[derive(Debug)]
enum CompiledTopics {
    Regex(Pattern),
    Filter(Filter),
}

impl Compiled {
    fn new(rules: &[Rule], identity: &Identity<'_>) -> Result<Self, Invalid> {
        let mut compiled = Vec::with_capacity(rules.len());
        for rule in rules {
            let topics = match &rule.topics {
                Topics::Filter(template) => {
                    let fill = |text: &str| identity.fill(text, |value| Some(value.to_owned()));
                    Filter::fill(template, rule.effect, &fill).map(CompiledTopics::Filter)
                }
                Topics::Regex(template) => {
                    let quoted = |value: &str| {
                        let usable = is_plain(value) || rule.effect == Effect::Deny;
                        usable.then(|| regex_syntax::escape(value))
                    };
                    let filled = identity.fill(template, quoted);
                    filled.map(|text| Pattern::whole(&text)).transpose()?.map(CompiledTopics::Regex)
                }
            };
            let (publish, subscribe) = (rule.publish_mask(), rule.subscribe_mask());
            compiled.extend(topics.map(|topics| CompiledRule {
                effect: rule.effect,
                publish,
                subscribe,
                topics,
            }));
        }
        compiled.sort_by_key(|rule| rule.effect == Effect::Allow);
        let has_regex = compiled.iter().any(|rule| matches!(rule.topics, CompiledTopics::Regex(_)));
        Ok(Self { rules: compiled.into(), has_regex })
    }
}

impl CompiledTopics {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Regex(pattern) => pattern.is_match(name),
            Self::Filter(filter) => filter.matches(name),
        }
    }

    fn allow_subscription(&self, filter: &str) -> bool {
        match self {
            Self::Regex(pattern) => pattern.is_match(filter),
            Self::Filter(own) => own.contains(filter),
        }
    }

    fn deny_subscription(&self, filter: &str) -> bool {
        match self {
            Self::Regex(pattern) => {
                let wildcard = filter.find(['+', '#']);
                // `a/#` matches `a`, too.
                let prefix = wildcard.map(|at| filter[..at].trim_end_matches('/'));
                pattern.is_match(filter) || prefix.is_some_and(|prefix| pattern.may_match_below(prefix))
            }
            Self::Filter(own) => own.touches(filter),
        }
    }
}

/// What one client may do; cheap to clone.
#[derive(Clone, Debug)]
pub struct Acl {
    /// `None`: everything.
    parts: Option<SmallVec<[Arc<Compiled>; 1]>>,
}

impl Acl {
    /// For clients that nobody restricts: TBMQ's when no provider is enabled.
    pub fn everything() -> Self {
        Self { parts: None }
    }

    /// The union of sets of rules, for one client. Compiles what is not compiled yet.
    ///
    /// # Errors
    /// When a pattern gets too large by the client's name; then it is not to be let in, for a deny rule may be lost.
    pub fn new<'a>(
        sets: impl IntoIterator<Item = &'a RuleSet>,
        identity: &Identity<'_>,
    ) -> Result<Self, Invalid> {
        let parts = sets.into_iter().map(|set| set.compile(identity)).collect::<Result<_, _>>()?;
        Ok(Self { parts: Some(parts) })
    }

    /// Bits of what is allowed, of `masks` per rule, for rules that apply.
    fn judge(&self, mask: impl Fn(&CompiledRule) -> u8, applies: impl Fn(&CompiledRule) -> bool) -> u8 {
        let Some(parts) = &self.parts else { return u8::MAX };
        let (mut allowed, mut denied) = (0, 0);
        for effect in [Effect::Deny, Effect::Allow] {
            for rule in parts.iter().flat_map(|part| &part.rules).filter(|rule| rule.effect == effect) {
                let adds = mask(rule) & !(allowed | denied);
                if adds != 0 && applies(rule) {
                    match effect {
                        Effect::Allow => allowed |= adds,
                        Effect::Deny => denied |= adds,
                    }
                }
            }
        }
        allowed
    }

    fn publish_mask(&self, name: &str) -> u8 {
        self.judge(|rule| rule.publish, |rule| rule.topics.matches(name))
    }

    /// Whether it may publish to a valid topic name, whose alias is resolved.
    pub fn may_publish(&self, name: &str, qos: Qos, retain: bool) -> bool {
        self.publish_mask(name) & publish_bit(qos, retain) != 0
    }

    /// The highest quality of service up to `qos` that it may subscribe to a valid filter with; `None`: it may not.
    pub fn grant(&self, filter: &str, qos: Qos) -> Option<Qos> {
        let filter = match topic::shared(filter) {
            Ok(Some((_, plain))) => plain,
            Ok(None) => filter,
            Err(_) => return None,
        };
        let allowed = self.judge(
            |rule| rule.subscribe,
            |rule| match rule.effect {
                Effect::Allow => rule.topics.allow_subscription(filter),
                Effect::Deny => rule.topics.deny_subscription(filter),
            },
        );
        (0..=qos.bits()).rev().find(|bits| allowed & (1 << bits) != 0).and_then(Qos::from_bits)
    }
}

fn publish_bit(qos: Qos, retain: bool) -> u8 {
    1 << (qos.bits() + if retain { 3 } else { 0 })
}

/// An [`Acl`] with the latest decisions about publishes, of one connection.
#[derive(Debug)]
pub struct Permissions {
    acl: Acl,
    /// By the topic's hash; empty until a decision by regex is kept.
    decisions: Vec<Option<(Box<str>, u8)>>,
    hash: RandomState,
}

impl Permissions {
    /// Without decisions.
    pub fn new(acl: Acl) -> Self {
        Self { acl, decisions: Vec::new(), hash: RandomState::new() }
    }

    /// As [`Acl::may_publish`]. Allocates only for a topic that is new to it, and only when rules are regexes.
    pub fn may_publish(&mut self, name: &str, qos: Qos, retain: bool) -> bool {
        let by_regex = self.acl.parts.iter().flatten().any(|part| part.has_regex);
        let mask = if by_regex && name.len() <= DECISION_TOPIC_BYTES_MAX {
            self.remembered(name)
        } else {
            self.acl.publish_mask(name)
        };
        mask & publish_bit(qos, retain) != 0
    }

    fn remembered(&mut self, name: &str) -> u8 {
        let slot = (self.hash.hash_one(name) % DECISIONS as u64) as usize;
        if let Some(Some((known, mask))) = self.decisions.get(slot)
            && **known == *name
        {
            return *mask;
        }
        let mask = self.acl.publish_mask(name);
        self.decisions.resize(DECISIONS, None);
        self.decisions[slot] = Some((name.into(), mask));
        mask
    }

    /// As [`Acl::grant`].
    pub fn grant(&self, filter: &str, qos: Qos) -> Option<Qos> {
        self.acl.grant(filter, qos)
    }

    /// From now on these rules hold; the caller is to judge the client's subscriptions again.
    pub fn replace(&mut self, acl: Acl) {
        self.acl = acl;
        self.decisions.clear();
    }
}
