//! The subscription tree: which subscribers' filters match a topic name.
//!
//! Nodes live in one vector and are found by index, so that neither matching nor dropping recurses: a topic may have
//! 32,768 levels. Matching reads only; a data plane shares the tree behind a read-write lock, held for the match and
//! not for what follows.

use std::{collections::HashMap, ops::ControlFlow};

/// Where the root lies.
const ROOT: usize = 0;

/// Filters and who subscribed with them. A subscriber may have many filters, and one value for each.
#[derive(Clone, Debug)]
pub struct Tree<S, V> {
    nodes: Vec<Node<S, V>>,
    free: Vec<usize>,
    filters: usize,
}

#[derive(Clone, Debug)]
struct Node<S, V> {
    children: HashMap<Box<str>, usize>,
    /// The child `+`.
    plus: Option<usize>,
    /// Subscribers of the filter that ends here.
    here: Vec<(S, V)>,
    /// Subscribers of the filter that ends here and then `/#` (at the root: `#`).
    below: Vec<(S, V)>,
}

impl<S, V> Default for Node<S, V> {
    fn default() -> Self {
        Self { children: HashMap::new(), plus: None, here: Vec::new(), below: Vec::new() }
    }
}

impl<S, V> Node<S, V> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plus.is_none() && self.here.is_empty() && self.below.is_empty()
    }
}

impl<S, V> Default for Tree<S, V> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], free: Vec::new(), filters: 0 }
    }
}

/// Space that matching needs; keep one per worker, so that a match allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    current: Vec<usize>,
    next: Vec<usize>,
}

impl<S: PartialEq, V> Tree<S, V> {
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
        let mut at = ROOT;
        let (levels, is_multi) = split(filter);
        for level in levels {
            at = self.child_or_new(at, level);
        }
        let node = &mut self.nodes[at];
        let list = if is_multi { &mut node.below } else { &mut node.here };
        if let Some((_, old)) = list.iter_mut().find(|(other, _)| *other == subscriber) {
            return Some(std::mem::replace(old, value));
        }
        list.push((subscriber, value));
        self.filters += 1;
        None
    }

    /// Takes a filter of a subscriber away and returns its value; nodes that nobody needs any more go.
    pub fn remove(&mut self, filter: &str, subscriber: &S) -> Option<V> {
        let (levels, is_multi) = split(filter);
        let levels: Vec<&str> = levels.collect();
        let mut path = Vec::with_capacity(levels.len() + 1);
        path.push(ROOT);
        for level in &levels {
            path.push(self.child(path[path.len() - 1], level)?);
        }
        let node = &mut self.nodes[path[path.len() - 1]];
        let list = if is_multi { &mut node.below } else { &mut node.here };
        let index = list.iter().position(|(other, _)| other == subscriber)?;
        let (_, value) = list.swap_remove(index);
        self.filters -= 1;
        for depth in (1..path.len()).rev() {
            if !self.nodes[path[depth]].is_empty() {
                break;
            }
            let parent = &mut self.nodes[path[depth - 1]];
            match levels[depth - 1] {
                "+" => parent.plus = None,
                level => drop(parent.children.remove(level)),
            }
            self.nodes[path[depth]] = Node::default();
            self.free.push(path[depth]);
        }
        Some(value)
    }

    /// Calls `found` for each filter that matches a valid topic name; a subscriber with several matching filters is
    /// found several times. A filter that begins with a wildcard does not match a name that begins with `$`.
    pub fn matching<'a>(&'a self, name: &str, scratch: &mut Scratch, mut found: impl FnMut(&'a S, &'a V)) {
        let Scratch { current, next } = scratch;
        current.clear();
        current.push(ROOT);
        let is_dollar = name.starts_with('$');
        for (depth, level) in name.split('/').enumerate() {
            let wildcards = depth > 0 || !is_dollar;
            next.clear();
            for at in current.iter() {
                let node = &self.nodes[*at];
                if wildcards {
                    node.below.iter().for_each(|(subscriber, value)| found(subscriber, value));
                    next.extend(node.plus);
                }
                if !node.children.is_empty() {
                    next.extend(node.children.get(level));
                }
            }
            std::mem::swap(current, next);
            if current.is_empty() {
                return;
            }
        }
        for at in current.iter() {
            let node = &self.nodes[*at];
            // `a/#` matches `a` (§4.7.1.2).
            node.here.iter().chain(&node.below).for_each(|(subscriber, value)| found(subscriber, value));
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
        let mut reached = vec![Step { node: ROOT, from: 0, level: "" }];
        let mut current = 0..1;
        let is_dollar = name.starts_with('$');
        for (depth, level) in name.split('/').enumerate() {
            let wildcards = depth > 0 || !is_dollar;
            for from in current.clone() {
                let node = &self.nodes[reached[from].node];
                if wildcards {
                    let text = || text_of(&reached, from, true);
                    if tell(&node.below, text, &mut found).is_break() {
                        return;
                    }
                    reached.extend(node.plus.map(|node| Step { node, from, level: "+" }));
                }
                reached.extend(node.children.get(level).map(|node| Step { node: *node, from, level }));
            }
            current = current.end..reached.len();
        }
        for from in current {
            let node = &self.nodes[reached[from].node];
            let here = tell(&node.here, || text_of(&reached, from, false), &mut found);
            if here.is_break() || tell(&node.below, || text_of(&reached, from, true), &mut found).is_break() {
                return;
            }
        }
    }

    fn child(&self, at: usize, level: &str) -> Option<usize> {
        let node = &self.nodes[at];
        if level == "+" { node.plus } else { node.children.get(level).copied() }
    }

    fn child_or_new(&mut self, at: usize, level: &str) -> usize {
        if let Some(child) = self.child(at, level) {
            return child;
        }
        let child = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            self.nodes.len() - 1
        });
        let node = &mut self.nodes[at];
        if level == "+" {
            node.plus = Some(child);
        } else {
            node.children.insert(level.into(), child);
        }
        child
    }
}

/// One level of a way through the tree.
#[derive(Clone, Copy, Debug)]
struct Step<'n> {
    node: usize,
    from: usize,
    level: &'n str,
}

/// The filter whose way ends at an entry of `reached`.
fn text_of(reached: &[Step<'_>], mut at: usize, is_multi: bool) -> String {
    let mut levels = Vec::new();
    if is_multi {
        levels.push("#");
    }
    // The root is the first.
    while at > 0 {
        levels.push(reached[at].level);
        at = reached[at].from;
    }
    levels.reverse();
    levels.join("/")
}

fn tell<'a, S, V>(
    list: &'a [(S, V)],
    text: impl FnOnce() -> String,
    found: &mut impl FnMut(&str, &'a S, &'a V) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if list.is_empty() {
        return ControlFlow::Continue(());
    }
    let text = text();
    list.iter().try_for_each(|(subscriber, value)| found(&text, subscriber, value))
}

/// The levels of a filter without a closing `#`, and whether there was one.
fn split(filter: &str) -> (impl Iterator<Item = &str>, bool) {
    let (rest, is_multi) = if filter == "#" {
        (None, true)
    } else {
        match filter.strip_suffix("/#") {
            Some(rest) => (Some(rest), true),
            None => (Some(filter), false),
        }
    };
    (rest.into_iter().flat_map(|rest| rest.split('/')), is_multi)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tree: &Tree<u32, ()>, name: &str) -> Vec<u32> {
        let mut all = Vec::new();
        tree.matching(name, &mut Scratch::default(), |subscriber, ()| all.push(*subscriber));
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

    #[test]
    fn an_emptied_tree_reuses_its_nodes() {
        let mut tree = Tree::new();
        for round in 0..3 {
            tree.insert("a/b/c/+/d", round, ());
            assert_eq!(tree.remove("a/b/c/+/d", &round), Some(()));
        }
        assert_eq!((tree.nodes.len(), tree.free.len(), tree.len()), (6, 5, 0));
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
        assert_eq!(tree.remove(&name, &1), Some(()));
    }
}
