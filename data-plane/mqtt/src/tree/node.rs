//! A node: the filters that begin with its levels.

use std::hash::{Hash, RandomState};

use smol_str::SmolStr;

use super::children::{Children, Level};
use crate::{small_map::SmallMap, topic};

/// Filters that a node keeps as they are; when there are more, each level below it becomes a node.
pub(super) const FEW: usize = 16;

/// Bytes of several levels that are kept as they are: what fits into an [`Ending`] itself.
const ENDING_BYTES: usize = 23;

#[derive(Debug)]
pub(super) struct Node<S, V> {
    /// Of its level.
    pub(super) text: SmolStr,
    pub(super) filters: Filters<S, V>,
}

#[derive(Debug)]
pub(super) enum Filters<S, V> {
    /// A few, side by side: what matching waits for is memory that is in no cache.
    Few(Vec<Ending<S, V>>),
    Many(Box<Branch<S, V>>),
}

/// What comes after a node's levels in a filter.
#[derive(Debug)]
pub(super) struct Ending<S, V> {
    /// `None`: nothing.
    pub(super) text: Option<SmolStr>,
    pub(super) subscribers: SmallMap<S, V>,
}

#[derive(Debug)]
pub(super) struct Branch<S, V> {
    pub(super) children: Children<S, V>,
    /// The child `+`.
    pub(super) plus: Option<Box<Node<S, V>>>,
    /// Subscribers of the filter that ends here.
    pub(super) here: Option<Box<SmallMap<S, V>>>,
    /// Subscribers of the filter that ends here and then `/#` (at the root: `#`).
    pub(super) below: Option<Box<SmallMap<S, V>>>,
}

impl<S, V> Default for Filters<S, V> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl<S, V> Default for Branch<S, V> {
    fn default() -> Self {
        Self { children: Children::default(), plus: None, here: None, below: None }
    }
}

impl<S, V> Branch<S, V> {
    pub(super) fn child(&self, text: &str, hasher: &RandomState) -> Option<&Node<S, V>> {
        if text == "+" { self.plus.as_deref() } else { self.children.get(&mut Level::new(text), hasher) }
    }

    pub(super) fn child_mut(&mut self, text: &str, hasher: &RandomState) -> Option<&mut Node<S, V>> {
        if text == "+" { self.plus.as_deref_mut() } else { self.children.get_mut(text, hasher) }
    }

    /// The child with this text, which is made if it is not there.
    pub(super) fn child_or_add(&mut self, text: &str, hasher: &RandomState) -> &mut Node<S, V> {
        if text == "+" {
            self.plus.get_or_insert_with(|| Box::new(Node::new(text)))
        } else {
            self.children.get_or_add(text, hasher)
        }
    }

    /// Takes a child out.
    pub(super) fn remove(&mut self, text: &str, hasher: &RandomState) -> Option<Node<S, V>> {
        if text == "+" { self.plus.take().map(|plus| *plus) } else { self.children.remove(text, hasher) }
    }
}

/// The first level of a filter or name, and what comes after it.
pub(super) fn split(text: &str) -> (&str, Option<&str>) {
    let end = text.bytes().position(|byte| byte == b'/');
    end.map_or((text, None), |end| (&text[..end], Some(&text[end + 1..])))
}

fn is_wildcard(byte: u8) -> bool {
    matches!(byte, b'+' | b'#')
}

impl<S, V> Ending<S, V> {
    /// Whether a filter that ends so matches a name that goes on so; `wildcards`: even if a wildcard comes first.
    pub(super) fn matches(&self, name: Option<&str>, wildcards: bool) -> bool {
        match (self.text.as_deref(), name) {
            // `a/#` matches `a` (§4.7.1.2).
            (None | Some("#"), None) => true,
            (Some(text), Some(name)) => {
                (wildcards || !text.bytes().next().is_some_and(is_wildcard))
                    && topic::levels_match(text, name)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}

impl<S, V> Node<S, V> {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.into(), filters: Filters::default() }
    }

    /// Takes all children out.
    pub(super) fn take_children(&mut self, into: &mut Vec<Self>) {
        if let Filters::Many(branch) = &mut self.filters {
            branch.children.take(into);
            into.extend(branch.plus.take().map(|plus| *plus));
        }
    }
}

impl<S: Eq + Hash, V> Node<S, V> {
    /// Whether there is nothing to it but `children` nodes below.
    pub(super) fn has_only(&self, children: usize) -> bool {
        match &self.filters {
            Filters::Few(list) => list.is_empty() && children == 0,
            Filters::Many(branch) => {
                branch.children.len() + usize::from(branch.plus.is_some()) == children
                    && branch.here.is_none()
                    && branch.below.is_none()
            }
        }
    }

    /// Makes a branch of it, if it can't keep a filter that ends so as it is.
    pub(super) fn make_room(&mut self, ending: Option<&str>, hasher: &RandomState) {
        let Filters::Few(list) = &mut self.filters else { return };
        let is_there = list.iter().any(|one| one.text.as_deref() == ending);
        let is_short = ending.is_none_or(|text| text.len() <= ENDING_BYTES || !text.contains('/'));
        if is_there || is_short && list.len() < FEW {
            return;
        }
        let mut branch = Branch::default();
        for Ending { text, subscribers } in std::mem::take(list) {
            match text.as_deref() {
                None => branch.here = Some(Box::new(subscribers)),
                Some("#") => branch.below = Some(Box::new(subscribers)),
                Some(text) => {
                    let (level, rest) = split(text);
                    if let Filters::Few(list) = &mut branch.child_or_add(level, hasher).filters {
                        push(list, Ending { text: rest.map(SmolStr::new), subscribers });
                    }
                }
            }
        }
        self.filters = Filters::Many(Box::new(branch));
    }
}

/// Adds one to a list that has no more room than it needs, as most lists stay as they are.
pub(super) fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len().div_ceil(2).max(1));
    }
    list.push(item);
}

/// Takes one out of such a list.
pub(super) fn take<T>(list: &mut Vec<T>, place: usize) -> T {
    let item = list.swap_remove(place);
    if list.len() <= list.capacity() / 2 {
        list.shrink_to_fit();
    }
    item
}
