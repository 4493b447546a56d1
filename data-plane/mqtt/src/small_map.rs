//! A map that mostly has one entry, which it holds itself; a list for a few, and a table once there are many of them.

use std::{hash::Hash, slice};

use indexmap::IndexMap;

/// Entries of a list, which is searched from its beginning.
const FEW: usize = 16;

/// Entries in no order.
#[derive(Clone, Debug, Default)]
pub(crate) enum SmallMap<K, V> {
    #[default]
    None,
    One((K, V)),
    Few(Vec<(K, V)>),
    Many(Box<IndexMap<K, V>>),
}

impl<K: Eq + Hash, V> SmallMap<K, V> {
    pub(crate) fn is_empty(&self) -> bool {
        // All others are narrowed when they have one left.
        matches!(self, Self::None)
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Few(list) => list.len(),
            Self::Many(map) => map.len(),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        match self {
            Self::Many(map) => map.get(key),
            Self::None | Self::One(_) | Self::Few(_) => {
                self.iter().find(|(other, _)| *other == key).map(|(_, value)| value)
            }
        }
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let list = match self {
            Self::None => &mut [],
            Self::One(one) => slice::from_mut(one),
            Self::Few(list) => list,
            Self::Many(map) => return map.insert(key, value),
        };
        if let Some((_, old)) = list.iter_mut().find(|(other, _)| *other == key) {
            return Some(std::mem::replace(old, value));
        }
        let new = (key, value);
        *self = match std::mem::take(self) {
            Self::None => Self::One(new),
            Self::One(one) => Self::Few(vec![one, new]),
            Self::Few(mut list) if list.len() < FEW => {
                list.push(new);
                Self::Few(list)
            }
            Self::Few(list) => Self::Many(Box::new(list.into_iter().chain([new]).collect())),
            Self::Many(map) => Self::Many(map),
        };
        None
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        match self {
            Self::One((other, _)) if other == key => match std::mem::take(self) {
                Self::One((_, value)) => Some(value),
                _ => None,
            },
            Self::None | Self::One(_) => None,
            Self::Few(list) => {
                let place = list.iter().position(|(other, _)| other == key)?;
                let (_, value) = list.swap_remove(place);
                if let [_] = list[..]
                    && let Some(last) = list.pop()
                {
                    *self = Self::One(last);
                }
                Some(value)
            }
            Self::Many(map) => {
                let value = map.swap_remove(key)?;
                if map.len() <= FEW / 2 {
                    *self = Self::Few(map.drain(..).collect());
                } else if map.len() < map.capacity() / 4 {
                    map.shrink_to(map.len() * 2);
                }
                Some(value)
            }
        }
    }

    pub(crate) fn iter(&self) -> Iter<'_, K, V> {
        match self {
            Self::None => Iter::Few([].iter()),
            Self::One(one) => Iter::Few(slice::from_ref(one).iter()),
            Self::Few(list) => Iter::Few(list.iter()),
            Self::Many(map) => Iter::Many(map.iter()),
        }
    }
}

impl<K: Eq + Hash, V: PartialEq> PartialEq for SmallMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

#[derive(Debug)]
pub(crate) enum Iter<'a, K, V> {
    Few(slice::Iter<'a, (K, V)>),
    Many(indexmap::map::Iter<'a, K, V>),
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Few(list) => list.next().map(|(key, value)| (key, value)),
            Self::Many(map) => map.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::Few(list) => list.size_hint(),
            Self::Many(map) => map.size_hint(),
        }
    }
}

impl<K, V> ExactSizeIterator for Iter<'_, K, V> {}

impl<K: Eq + Hash, V> FromIterator<(K, V)> for SmallMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}
