//! The nodes below a node, by the texts of their levels. Some nodes have a million, which lie in many small tables: when
//! such a node grows or shrinks, one of them is moved at a time, so that nobody waits for all.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use super::node::{FEW, Node, push, take};

/// Nodes of one table; more are spread over [`PARTS`].
const TABLE_MAX: usize = 1024;

/// Nodes at which one table is enough again.
const SPREAD_MIN: usize = TABLE_MAX / 4;

/// A power of 2.
const PARTS: usize = 256;

type Table<S, V> = HashTable<Node<S, V>>;

#[derive(Debug)]
pub(super) enum Children<S, V> {
    Few(Vec<Node<S, V>>),
    Table(Table<S, V>),
    Spread(Box<Spread<S, V>>),
}

#[derive(Debug)]
pub(super) struct Spread<S, V> {
    parts: Box<[Table<S, V>]>,
    len: usize,
}

/// A level's text, hashed when a table wants it.
#[derive(Debug)]
pub(super) struct Level<'t> {
    pub(super) text: &'t str,
    hash: Option<u64>,
}

impl<'t> Level<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, hash: None }
    }

    fn hash(&mut self, hasher: &RandomState) -> u64 {
        *self.hash.get_or_insert_with(|| hasher.hash_one(self.text))
    }
}

impl<S, V> Default for Children<S, V> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl<S, V> Children<S, V> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(list) => list.len(),
            Self::Table(table) => table.len(),
            Self::Spread(spread) => spread.len,
        }
    }

    pub(super) fn get(&self, level: &mut Level<'_>, hasher: &RandomState) -> Option<&Node<S, V>> {
        let table = match self {
            Self::Few(list) => return list.iter().find(|node| node.text == *level.text),
            Self::Table(table) => table,
            Self::Spread(spread) => &spread.parts[part(level.hash(hasher))],
        };
        table.find(level.hash(hasher), |node| node.text == *level.text)
    }

    pub(super) fn get_mut(&mut self, text: &str, hasher: &RandomState) -> Option<&mut Node<S, V>> {
        let hash = || hasher.hash_one(text);
        let (table, hash) = match self {
            Self::Few(list) => return list.iter_mut().find(|node| node.text == *text),
            Self::Table(table) => (table, hash()),
            Self::Spread(spread) => {
                let hash = hash();
                (&mut spread.parts[part(hash)], hash)
            }
        };
        table.find_mut(hash, |node| node.text == *text)
    }

    /// The node with this text, which is made if it is not there.
    pub(super) fn get_or_add(&mut self, text: &str, hasher: &RandomState) -> &mut Node<S, V> {
        if self.get(&mut Level::new(text), hasher).is_none() {
            self.add(Node::new(text), hasher);
        }
        self.get_mut(text, hasher).expect("it is there, or was just added")
    }

    fn add(&mut self, node: Node<S, V>, hasher: &RandomState) {
        self.widen(hasher);
        match self {
            Self::Few(list) => push(list, node),
            Self::Table(table) => insert(table, node, hasher),
            Self::Spread(spread) => spread.insert(node, hasher),
        }
    }

    /// Takes the node with this text out.
    pub(super) fn remove(&mut self, text: &str, hasher: &RandomState) -> Option<Node<S, V>> {
        let hash = || hasher.hash_one(text);
        let (table, hash) = match self {
            Self::Few(list) => {
                let place = list.iter().position(|node| node.text == *text)?;
                return Some(take(list, place));
            }
            Self::Table(table) => (table, hash()),
            Self::Spread(spread) => {
                let hash = hash();
                (&mut spread.parts[part(hash)], hash)
            }
        };
        let (node, _) = table.find_entry(hash, |node| node.text == *text).ok()?.remove();
        if table.len() < table.capacity() / 4 {
            table.shrink_to(table.len() * 2, |node| hasher.hash_one(&*node.text));
        }
        if let Self::Spread(spread) = self {
            spread.len -= 1;
        }
        self.narrow(hasher);
        Some(node)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = &Node<S, V>> + '_> {
        match self {
            Self::Few(list) => Box::new(list.iter()),
            Self::Table(table) => Box::new(table.iter()),
            Self::Spread(spread) => Box::new(spread.parts.iter().flatten()),
        }
    }

    /// Takes all nodes out.
    pub(super) fn take(&mut self, into: &mut Vec<Node<S, V>>) {
        match std::mem::take(self) {
            Self::Few(list) => into.extend(list),
            Self::Table(table) => into.extend(table),
            Self::Spread(spread) => into.extend(spread.parts.into_iter().flatten()),
        }
    }

    /// Makes room for one more.
    fn widen(&mut self, hasher: &RandomState) {
        match self {
            Self::Few(list) if list.len() == FEW => {
                let mut table = HashTable::with_capacity(FEW + 1);
                list.drain(..).for_each(|node| insert(&mut table, node, hasher));
                *self = Self::Table(table);
            }
            Self::Table(table) if table.len() == TABLE_MAX => {
                let parts = (0..PARTS).map(|_| HashTable::new()).collect();
                let mut spread = Spread { parts, len: 0 };
                table.drain().for_each(|node| spread.insert(node, hasher));
                *self = Self::Spread(Box::new(spread));
            }
            _ => {}
        }
    }

    /// Takes a simpler form where that is enough.
    fn narrow(&mut self, hasher: &RandomState) {
        match self {
            Self::Table(table) if table.len() <= FEW / 2 => {
                *self = Self::Few(table.drain().collect());
            }
            Self::Spread(spread) if spread.len <= SPREAD_MIN => {
                let mut table = HashTable::with_capacity(spread.len);
                let nodes = spread.parts.iter_mut().flat_map(HashTable::drain);
                nodes.for_each(|node| insert(&mut table, node, hasher));
                *self = Self::Table(table);
            }
            _ => {}
        }
    }
}

impl<S, V> Spread<S, V> {
    /// Adds a node that is not there.
    fn insert(&mut self, node: Node<S, V>, hasher: &RandomState) {
        self.len += 1;
        insert(&mut self.parts[part(hasher.hash_one(&*node.text))], node, hasher);
    }
}

/// Adds a node that is not there.
fn insert<S, V>(table: &mut Table<S, V>, node: Node<S, V>, hasher: &RandomState) {
    let hash = |node: &Node<S, V>| hasher.hash_one(&*node.text);
    table.insert_unique(hash(&node), node, hash);
}

// A table itself uses the lowest and the highest bits.
fn part(hash: u64) -> usize {
    (hash >> 40) as usize % PARTS
}
