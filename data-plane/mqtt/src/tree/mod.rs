//! The subscription tree: which subscribers' filters match a topic name.
//!
//! A node stands for the levels of a filter up to its own. As long as few filters go on from there, it keeps what they go
//! on with as it is. Neither matching nor dropping recurses: a topic may have 32,768 levels. Matching reads only; a data
//! plane shares the tree behind a read-write lock, held for the match and not for what follows. Whatever is changed, the
//! lock is held for microseconds: nothing that grows is ever moved as a whole.

use std::{
    fmt,
    hash::{Hash, RandomState},
    ops::ControlFlow,
};

use smallvec::SmallVec;
use smol_str::SmolStr;

mod children;
mod node;

use children::Level;
use node::{Ending, Filters, Node, push, split, take};

use crate::small_map::SmallMap;

/// Nodes reached on one level of a name; more of them make matching allocate.
const REACHED: usize = 32;

/// Filters and who subscribed with them. A subscriber may have many filters, and one value for each.
pub struct Tree<S, V> {
    root: Node<S, V>,
    hasher: RandomState,
    filters: usize,
}

impl<S, V> Default for Tree<S, V> {
    fn default() -> Self {
        Self { root: Node::new(""), hasher: RandomState::new(), filters: 0 }
    }
}

impl<S, V> fmt::Debug for Tree<S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("filters", &self.filters).finish_non_exhaustive()
    }
}

impl<S, V> Drop for Tree<S, V> {
    fn drop(&mut self) {
        dismantle(std::mem::replace(&mut self.root, Node::new("")));
    }
}

/// Drops a node and all below it, one after the other.
fn dismantle<S, V>(mut node: Node<S, V>) {
    let mut left = Vec::new();
    loop {
        node.take_children(&mut left);
        let Some(next) = left.pop() else { return };
        node = next;
    }
}

impl<S: Eq + Hash, V> Tree<S, V> {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Pairs of subscriber and filter.
    pub fn len(&self) -> usize {
        self.filters
    }

    /// Whether nobody has subscribed.
    pub fn is_empty(&self) -> bool {
        self.filters == 0
    }

    /// Adds a valid filter of a subscriber, or replaces its value and returns the old one.
    pub fn insert(&mut self, filter: &str, subscriber: S, value: V) -> Option<V> {
        let mut node = &mut self.root;
        let mut ending = Some(filter);
        let subscribers = loop {
            node.make_room(ending, &self.hasher);
            match (&mut node.filters, ending) {
                (Filters::Few(list), _) => {
                    let place = list.iter().position(|one| one.text.as_deref() == ending);
                    let place = place.unwrap_or_else(|| {
                        let text = ending.map(SmolStr::new);
                        push(list, Ending { text, subscribers: SmallMap::default() });
                        list.len() - 1
                    });
                    break &mut list[place].subscribers;
                }
                (Filters::Many(branch), None) => break &mut **branch.here.get_or_insert_default(),
                (Filters::Many(branch), Some("#")) => break &mut **branch.below.get_or_insert_default(),
                (Filters::Many(branch), Some(text)) => {
                    let (level, rest) = split(text);
                    node = branch.child_or_add(level, &self.hasher);
                    ending = rest;
                }
            }
        };
        let old = subscribers.insert(subscriber, value);
        if old.is_none() {
            self.filters += 1;
        }
        old
    }

    /// Takes a filter of a subscriber away and returns its value; nodes that nobody needs any more go.
    pub fn remove(&mut self, filter: &str, subscriber: &S) -> Option<V> {
        let mut node = &mut self.root;
        let mut ending = Some(filter);
        let value = loop {
            match (&mut node.filters, ending) {
                (Filters::Few(list), _) => {
                    let place = list.iter().position(|one| one.text.as_deref() == ending)?;
                    let value = list[place].subscribers.remove(subscriber)?;
                    if list[place].subscribers.is_empty() {
                        take(list, place);
                    }
                    break value;
                }
                (Filters::Many(branch), None) => break leave(&mut branch.here, subscriber)?,
                (Filters::Many(branch), Some("#")) => break leave(&mut branch.below, subscriber)?,
                (Filters::Many(branch), Some(text)) => {
                    let (level, rest) = split(text);
                    node = branch.child_mut(level, &self.hasher)?;
                    ending = rest;
                }
            }
        };
        self.filters -= 1;
        self.prune(filter);
        Some(value)
    }

    /// Removes the empty node on a filter's way, if there is one, and those above it that only lead there.
    fn prune(&mut self, filter: &str) {
        let (mut depth, mut keep) = (0, 0);
        let mut node = &self.root;
        let mut levels = filter.split('/');
        while !node.has_only(0) {
            if !node.has_only(1) {
                keep = depth;
            }
            let Filters::Many(branch) = &node.filters else { return };
            let Some(next) = levels.next().and_then(|level| branch.child(level, &self.hasher)) else {
                return;
            };
            node = next;
            depth += 1;
        }
        let mut node = &mut self.root;
        for (level, at) in filter.split('/').zip(0..depth) {
            let Filters::Many(branch) = &mut node.filters else { return };
            if at == keep {
                if let Some(removed) = branch.remove(level, &self.hasher) {
                    dismantle(removed);
                }
                break;
            }
            let Some(next) = branch.child_mut(level, &self.hasher) else { return };
            node = next;
        }
        if self.root.has_only(0) {
            self.root.filters = Filters::default();
        }
    }

    /// Calls `found` for each filter that matches a valid topic name; a subscriber with several matching filters is
    /// found several times. A filter that begins with a wildcard does not match a name that begins with `$`.
    pub fn matching<'a>(&'a self, name: &str, mut found: impl FnMut(&'a S, &'a V)) {
        let mut current: SmallVec<[&Node<S, V>; REACHED]> = SmallVec::new();
        let mut next: SmallVec<[&Node<S, V>; REACHED]> = SmallVec::new();
        let mut tell = |subscribers: &'a SmallMap<S, V>| {
            subscribers.iter().for_each(|(subscriber, value)| found(subscriber, value));
        };
        current.push(&self.root);
        let mut wildcards = !name.starts_with('$');
        let mut rest = Some(name);
        while let Some(name) = rest {
            let (text, after) = split(name);
            let mut level = Level::new(text);
            for node in current.drain(..) {
                match &node.filters {
                    Filters::Few(list) => {
                        let matching = list.iter().filter(|one| one.matches(rest, wildcards));
                        matching.for_each(|one| tell(&one.subscribers));
                    }
                    Filters::Many(branch) => {
                        if wildcards {
                            branch.below.iter().for_each(|subscribers| tell(subscribers));
                            next.extend(branch.plus.as_deref());
                        }
                        next.extend(branch.children.get(&mut level, &self.hasher));
                    }
                }
            }
            std::mem::swap(&mut current, &mut next);
            if current.is_empty() {
                return;
            }
            wildcards = true;
            rest = after;
        }
        for node in current {
            match &node.filters {
                Filters::Few(list) => {
                    let matching = list.iter().filter(|one| one.matches(None, true));
                    matching.for_each(|one| tell(&one.subscribers));
                }
                Filters::Many(branch) => {
                    // `a/#` matches `a` (§4.7.1.2).
                    branch.here.iter().chain(&branch.below).for_each(|subscribers| tell(subscribers));
                }
            }
        }
    }

    /// As [`Tree::matching`], with each filter's text, until `found` breaks. Notes the way to each node, so it is for
    /// questions and not for messages.
    pub fn matching_filters<'a>(
        &'a self,
        name: &str,
        mut found: impl FnMut(&str, &'a S, &'a V) -> ControlFlow<()>,
    ) {
        // What was reached, each with where it was reached from: an index of this list and the level's text.
        let mut reached = vec![Step { node: &self.root, from: 0 }];
        let mut current = 0..1;
        let mut wildcards = !name.starts_with('$');
        let mut rest = Some(name);
        loop {
            let mut level = rest.map(|name| Level::new(split(name).0));
            for from in current.clone() {
                let mut tell = |ending: Option<&str>, subscribers: &'a SmallMap<S, V>| {
                    let filter = text_of(&reached, from, ending);
                    subscribers.iter().try_for_each(|(subscriber, value)| found(&filter, subscriber, value))
                };
                let told = match &reached[from].node.filters {
                    Filters::Few(list) => list
                        .iter()
                        .filter(|one| one.matches(rest, wildcards))
                        .try_for_each(|one| tell(one.text.as_deref(), &one.subscribers)),
                    Filters::Many(branch) => {
                        let here = branch.here.iter().filter(|_| level.is_none());
                        let below = branch.below.iter().filter(|_| wildcards);
                        let told = here
                            .map(|subscribers| (None, subscribers))
                            .chain(below.map(|subscribers| (Some("#"), subscribers)))
                            .try_for_each(|(ending, subscribers)| tell(ending, subscribers));
                        if let Some(level) = &mut level {
                            let plus = branch.plus.as_deref().filter(|_| wildcards);
                            let child = branch.children.get(level, &self.hasher);
                            reached.extend(plus.into_iter().chain(child).map(|node| Step { node, from }));
                        }
                        told
                    }
                };
                if told.is_break() {
                    return;
                }
            }
            let Some(name) = rest else { return };
            current = current.end..reached.len();
            wildcards = true;
            rest = split(name).1;
        }
    }
}

/// Takes a subscriber away, and the last one's place.
fn leave<S: Eq + Hash, V>(place: &mut Option<Box<SmallMap<S, V>>>, subscriber: &S) -> Option<V> {
    let subscribers = place.as_mut()?;
    let value = subscribers.remove(subscriber)?;
    if subscribers.is_empty() {
        *place = None;
    }
    Some(value)
}

/// One level of a way through the tree.
#[derive(Debug)]
struct Step<'a, S, V> {
    node: &'a Node<S, V>,
    from: usize,
}

/// The filter that goes on so after an entry of `reached`.
fn text_of<S, V>(reached: &[Step<'_, S, V>], mut at: usize, ending: Option<&str>) -> String {
    let mut parts: Vec<&str> = ending.into_iter().collect();
    // The root is the first.
    while at > 0 {
        parts.push(&reached[at].node.text);
        at = reached[at].from;
    }
    parts.reverse();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tree: &Tree<u32, ()>, name: &str) -> Vec<u32> {
        let mut all = Vec::new();
        tree.matching(name, |subscriber, ()| all.push(*subscriber));
        all.sort_unstable();
        all
    }

    #[test]
    fn matching_filters_are_found_and_removed_ones_are_not() {
        let mut tree = Tree::new();
        for (subscriber, filter) in
            [(1, "a/b"), (2, "a/+"), (3, "a/#"), (4, "#"), (5, "+/b"), (6, "a"), (7, "$SYS/#")]
        {
            assert_eq!(tree.insert(filter, subscriber, ()), None);
        }
        assert_eq!(found(&tree, "a/b"), [1, 2, 3, 4, 5]);
        assert_eq!(found(&tree, "a"), [3, 4, 6]);
        assert_eq!(found(&tree, "$SYS/x"), [7]);
        assert_eq!(tree.remove("a/+", &2), Some(()));
        assert_eq!(tree.remove("a/+", &2), None);
        assert_eq!(found(&tree, "a/b"), [1, 3, 4, 5]);
        assert_eq!(tree.len(), 6);
    }

    #[test]
    fn a_question_finds_what_a_message_finds_and_tells_the_filters() {
        let mut tree = Tree::new();
        let filters = [
            "a/b", "a/+", "a/#", "a/b/#", "#", "+/b", "+/+", "+/#", "a", "/a", "/+", "+", "$SYS/#", "$SYS/+",
        ];
        for (subscriber, filter) in (0..).zip(filters) {
            tree.insert(filter, subscriber, ());
        }
        for name in ["a/b", "a", "/a", "a/b/c", "$SYS", "$SYS/x", "/", "nobody/wants/this"] {
            let mut told = Vec::new();
            tree.matching_filters(name, |filter, subscriber, ()| {
                assert_eq!(filter, filters[*subscriber as usize], "for {name}");
                told.push(*subscriber);
                ControlFlow::Continue(())
            });
            told.sort_unstable();
            assert_eq!(told, found(&tree, name), "{name}");
        }
        let mut count = 0;
        tree.matching_filters("a/b", |_, _, ()| {
            count += 1;
            if count == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(count, 2, "it ends when told");
    }

    /// Nodes below the root, and filters that end at a node on which they go on from as they are.
    fn size<S, V>(tree: &Tree<S, V>) -> (usize, usize) {
        let (mut left, mut nodes, mut endings) = (vec![&tree.root], 0, 0);
        while let Some(node) = left.pop() {
            nodes += 1;
            match &node.filters {
                Filters::Few(list) => endings += list.len(),
                Filters::Many(branch) => left.extend(branch.children.iter().chain(branch.plus.as_deref())),
            }
        }
        (nodes - 1, endings)
    }

    #[test]
    fn few_filters_need_no_nodes_and_many_share_them() {
        let mut tree = Tree::new();
        for number in 0..16 {
            tree.insert(&format!("a/{number}/x"), number, ());
        }
        assert_eq!(size(&tree), (0, 16));
        tree.insert("b", 16, ());
        assert_eq!(size(&tree), (2, 17), "a with 16, and b");
        tree.insert("a/16/x", 17, ());
        assert_eq!(size(&tree), (2 + 17, 18));
        for number in 0..16 {
            assert_eq!(found(&tree, &format!("a/{number}/x")), [number]);
        }
        assert_eq!((found(&tree, "b"), found(&tree, "a/16/x")), (vec![16], vec![17]));
    }

    #[test]
    fn a_filter_takes_its_nodes_with_it_and_leaves_those_of_others() {
        let mut tree = Tree::new();
        let long = "c/0123456789/0123456789/0123456789/#";
        let other = "c/0123456789/+/0123456789/0123456789/0";
        tree.insert(long, 1, ());
        assert_eq!(size(&tree), (2, 1), "it goes on from c/0123456789");
        tree.insert(other, 2, ());
        tree.insert("a/b", 3, ());
        assert_eq!(size(&tree), (5, 3));
        assert_eq!(found(&tree, "c/0123456789/0123456789/0123456789/x"), [1]);
        assert_eq!(found(&tree, "c/0123456789/x/0123456789/0123456789/0"), [2]);
        assert_eq!(tree.remove(other, &2), Some(()));
        assert_eq!(size(&tree), (4, 2));
        assert_eq!(tree.remove(other, &2), None);
        assert_eq!(tree.remove(long, &1), Some(()));
        assert_eq!(size(&tree), (1, 1));
        tree.insert("+", 3, ());
        assert_eq!((found(&tree, "a/b"), found(&tree, "c")), (vec![3], vec![3]));
        for filter in ["a/b", "+"] {
            assert_eq!(tree.remove(filter, &3), Some(()));
        }
        assert!(matches!(&tree.root.filters, Filters::Few(list) if list.capacity() == 0));
    }

    #[test]
    fn very_many_levels_below_one_come_and_go() {
        let mut tree = Tree::new();
        let filter = |number: u32| format!("device/{number}/x");
        for number in 0..20_000 {
            assert_eq!(tree.insert(&filter(number), number, ()), None);
        }
        for number in (0..20_000).step_by(7) {
            assert_eq!(found(&tree, &filter(number)), [number]);
        }
        assert_eq!(found(&tree, "device/20000/x"), Vec::<u32>::new());
        for number in 0..20_000 {
            assert_eq!(tree.remove(&filter(number), &number), Some(()));
            let last = 19_999;
            assert_eq!(found(&tree, &filter(last)).len(), usize::from(number < last));
        }
        assert!(tree.root.has_only(0));
    }

    #[test]
    fn very_many_subscribers_of_one_filter_come_and_go_one_by_one() {
        let mut tree = Tree::new();
        let mut seed = 1_u64;
        let mut here = std::collections::BTreeSet::new();
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let subscriber = (seed >> 33) as u32 % 3000;
            if here.insert(subscriber) {
                assert_eq!(tree.insert("a/+", subscriber, ()), None);
            } else {
                here.remove(&subscriber);
                assert_eq!(tree.remove("a/+", &subscriber), Some(()));
            }
        }
        assert_eq!(found(&tree, "a/b"), here.iter().copied().collect::<Vec<_>>());
        for subscriber in &here {
            assert_eq!(tree.remove("a/+", subscriber), Some(()));
        }
        assert!(tree.root.has_only(0));
    }

    #[test]
    fn a_name_with_every_level_there_can_be_overflows_nothing() {
        let name = "/".repeat(65_535);
        let mut tree = Tree::new();
        tree.insert(&name, 1, ());
        tree.insert("+/#", 2, ());
        assert_eq!(found(&tree, &name), [1, 2]);
        let mut told = Vec::new();
        tree.matching_filters(&name, |filter, subscriber, ()| {
            told.push((*subscriber, filter.len()));
            ControlFlow::Continue(())
        });
        assert_eq!(told, [(2, 3), (1, name.len())]);
        tree.insert(&name[1..], 3, ());
        assert_eq!(tree.remove(&name, &1), Some(()));
    }
}
