//! Topic names with what is kept under each, and which of them a filter matches.
//!
//! Names lie in one ordered map, level by level: `/` comes before every other character, so that all names below a
//! level stand together. A filter is searched by jumping: at a name that does not match, the filter tells the first
//! name after it that could. A search notes where it is, so that it can be taken in portions while names come and go.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

/// Stands for `/` in keys. A topic can't have it (MQTT-4.7.3-2).
const SEPARATOR: u8 = 0;

/// Sorts after everything below a level, and before every other level that begins with its text.
const PAST: u8 = 1;

/// A value for each of many topic names.
#[derive(Clone, Debug)]
pub struct Topics<V> {
    entries: BTreeMap<Box<[u8]>, V>,
}

impl<V> Default for Topics<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<V> Topics<V> {
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Gives a valid topic name this value and returns the old one.
    pub fn insert(&mut self, name: &str, value: V) -> Option<V> {
        self.entries.insert(key(name).into(), value)
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&V> {
        self.entries.get(key(name).as_slice())
    }

    /// The value of a name, which gets the default one if it has none.
    pub fn get_or_default(&mut self, name: &str) -> &mut V
    where
        V: Default,
    {
        self.entries.entry(key(name).into()).or_default()
    }

    /// Takes a name with its value away.
    pub fn remove(&mut self, name: &str) -> Option<V> {
        self.entries.remove(key(name).as_slice())
    }

    /// Calls `found` for the next matches of a search, in the order of names, until it breaks, the search is over, or
    /// this many names were looked at. What `found` was called for is not found again.
    pub fn advance<'a>(
        &'a self,
        search: &mut Search,
        mut steps: usize,
        mut found: impl FnMut(&'a V) -> ControlFlow<()>,
    ) {
        'jump: while !search.is_over {
            let from = search.at.as_slice();
            let from = if search.is_past { Bound::Excluded(from) } else { Bound::Included(from) };
            for (key, value) in self.entries.range::<[u8], _>((from, Bound::Unbounded)) {
                if steps == 0 {
                    search.go_to(key, false);
                    return;
                }
                steps -= 1;
                match judge(&search.levels, key, &mut search.at) {
                    Verdict::Match if found(value).is_continue() => {}
                    Verdict::Match => {
                        search.go_to(key, true);
                        return;
                    }
                    Verdict::Jump => {
                        search.is_past = false;
                        continue 'jump;
                    }
                    Verdict::End => break,
                }
            }
            search.is_over = true;
        }
    }
}

/// The way of one filter through the names.
#[derive(Clone, Debug)]
pub struct Search {
    levels: Box<[Level]>,
    /// Where it goes on.
    at: Vec<u8>,
    /// Behind that name, not with it.
    is_past: bool,
    is_over: bool,
}

#[derive(Clone, Debug)]
enum Level {
    Text(Box<[u8]>),
    /// `+`
    Any,
    /// `#`
    Rest,
}

impl Search {
    /// Begins with a valid filter, not a shared one.
    pub fn new(filter: &str) -> Self {
        let level = |level| match level {
            "+" => Level::Any,
            "#" => Level::Rest,
            text => Level::Text(text.as_bytes().into()),
        };
        let levels = filter.split('/').map(level).collect();
        Self { levels, at: Vec::new(), is_past: false, is_over: false }
    }

    /// Begins behind a name.
    pub fn after(filter: &str, name: &str) -> Self {
        Self { at: key(name), is_past: true, ..Self::new(filter) }
    }

    /// Whether the filter's first level is this text, and there are others.
    pub fn is_below(&self, first: &str) -> bool {
        self.levels.len() > 1 && matches!(&self.levels[0], Level::Text(text) if **text == *first.as_bytes())
    }

    /// Whether every match was found.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    fn go_to(&mut self, key: &[u8], is_past: bool) {
        self.at.clear();
        self.at.extend_from_slice(key);
        self.is_past = is_past;
    }
}

fn key(name: &str) -> Vec<u8> {
    name.bytes().map(|byte| if byte == b'/' { SEPARATOR } else { byte }).collect()
}

enum Verdict {
    Match,
    /// The next name that could match is not before `target`, which lies behind this one.
    Jump,
    /// No later name matches.
    End,
}

fn judge(levels: &[Level], key: &[u8], target: &mut Vec<u8>) -> Verdict {
    let mut go_to = |parts: [&[u8]; 2], rest: &[Level]| {
        target.clear();
        for part in parts {
            target.extend_from_slice(part);
        }
        append(rest, target);
        Verdict::Jump
    };
    if key.starts_with(b"$") && !matches!(levels[0], Level::Text(_)) {
        // MQTT-4.7.2-1
        return go_to([&[b'$' + 1], &[]], &[]);
    }
    // Where the last level that `+` took ends: only there can a later name differ and still match.
    let mut any_end = None;
    let mut start = 0;
    for (index, level) in levels.iter().enumerate() {
        if matches!(level, Level::Rest) {
            return Verdict::Match;
        }
        if start > key.len() {
            return go_to([key, &[]], &levels[index..]);
        }
        let length = key[start..].iter().position(|byte| *byte == SEPARATOR);
        let end = length.map_or(key.len(), |length| start + length);
        match level {
            Level::Text(text) if **text > key[start..end] => {
                return go_to([&key[..start], text], &levels[index + 1..]);
            }
            Level::Text(text) if **text < key[start..end] => {
                return any_end.map_or(Verdict::End, |end| go_to([&key[..end], &[PAST]], &[]));
            }
            Level::Text(_) | Level::Rest => {}
            Level::Any => any_end = Some(end),
        }
        start = end + 1;
    }
    if start > key.len() {
        return Verdict::Match;
    }
    any_end.map_or(Verdict::End, |end| go_to([&key[..end], &[PAST]], &[]))
}

/// Appends the least that these levels can match.
fn append(levels: &[Level], to: &mut Vec<u8>) {
    for level in levels {
        match level {
            Level::Text(text) => {
                to.push(SEPARATOR);
                to.extend_from_slice(text);
            }
            Level::Any => {
                to.push(SEPARATOR);
                return;
            }
            Level::Rest => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::matches;

    fn topics(names: &[&str]) -> Topics<String> {
        let mut topics = Topics::default();
        for name in names {
            topics.insert(name, (*name).to_owned());
        }
        topics
    }

    /// What a filter finds when it is taken in portions of so many matches and steps.
    fn found(topics: &Topics<String>, filter: &str, max: usize, steps: usize) -> Vec<String> {
        let (mut search, mut all) = (Search::new(filter), Vec::new());
        while !search.is_over() {
            let mut room = max;
            topics.advance(&mut search, steps, |name| {
                all.push(name.clone());
                room -= 1;
                if room == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
        all
    }

    fn looked_at(topics: &Topics<String>, filter: &str) -> usize {
        let (mut search, mut steps) = (Search::new(filter), 0);
        while !search.is_over() {
            topics.advance(&mut search, 1, |_| ControlFlow::Continue(()));
            steps += 1;
        }
        steps
    }

    /// [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.2-1] [MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT5-4.7.2-1]
    #[test]
    fn a_filter_finds_the_names_that_it_matches() {
        let topics = topics(&["a", "a/", "a/b", "a!", "a/b/c", "b/b", "/b", "$SYS/b", "ab/b", "%"]);
        for (filter, expected) in [
            ("a", vec!["a"]),
            ("a/#", vec!["a", "a/", "a/b", "a/b/c"]),
            ("+/b", vec!["/b", "a/b", "ab/b", "b/b"]),
            ("+", vec!["%", "a", "a!"]),
            ("a/+", vec!["a/", "a/b"]),
            ("+/+/c", vec!["a/b/c"]),
            ("$SYS/#", vec!["$SYS/b"]),
            ("+/#", vec!["/b", "%", "a", "a/", "a/b", "a/b/c", "a!", "ab/b", "b/b"]),
            ("#", vec!["/b", "%", "a", "a/", "a/b", "a/b/c", "a!", "ab/b", "b/b"]),
            ("c/#", vec![]),
        ] {
            assert_eq!(found(&topics, filter, 2, 3), expected, "{filter}");
        }
    }

    #[test]
    fn a_search_looks_at_few_names_that_do_not_match() {
        let names: Vec<String> = (0..100)
            .flat_map(|device| (0..100).map(move |sensor| format!("devices/{device}/{sensor}")))
            .collect();
        let topics = topics(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for (filter, matches) in
            [("devices/7/8", 1), ("devices/7/+", 100), ("devices/+/8", 100), ("nobody/#", 0), ("+/+/+/x", 0)]
        {
            assert_eq!(found(&topics, filter, usize::MAX, usize::MAX).len(), matches, "{filter}");
        }
        assert!(looked_at(&topics, "devices/7/8") <= 4);
        assert!(looked_at(&topics, "devices/7/+") <= 104);
        assert!(looked_at(&topics, "devices/+/8") <= 304, "at most three for each device");
        assert!(looked_at(&topics, "nobody/#") <= 2);
    }

    #[test]
    fn a_search_goes_on_where_it_was_while_names_come_and_go() {
        let mut topics = topics(&["a/1", "a/3", "a/5"]);
        let (mut search, mut all) = (Search::new("a/#"), Vec::new());
        let mut one = |topics: &Topics<String>, search: &mut Search| {
            topics.advance(search, 10, |name| {
                all.push(name.clone());
                ControlFlow::Break(())
            });
        };
        one(&topics, &mut search);
        topics.remove("a/1");
        topics.remove("a/3");
        topics.insert("a/0", "a/0".to_owned());
        topics.insert("a/2", "a/2".to_owned());
        one(&topics, &mut search);
        one(&topics, &mut search);
        one(&topics, &mut search);
        assert_eq!(all, ["a/1", "a/2", "a/5"]);
        assert!(search.is_over());
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "a", "b", "ab", "a!", "!", "$", "$a", "\u{1}", "a\u{1}", "ä"])
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

        #[test]
        fn a_search_finds_what_comparing_with_every_name_finds(
            names in prop::collection::btree_set(prop::collection::vec(level(), 1..4), 0..40),
            filter in prop::collection::vec(prop_oneof![3 => level(), 2 => Just("+")], 1..4),
            is_multi in any::<bool>(),
            max in 1_usize..4,
            steps in 1_usize..4,
        ) {
            let names: Vec<String> =
                names.iter().map(|levels| levels.join("/")).filter(|name| !name.is_empty()).collect();
            let mut filter = filter.join("/");
            if is_multi {
                filter.push_str("/#");
            }
            prop_assume!(!filter.is_empty());
            let mut topics = Topics::default();
            for name in &names {
                topics.insert(name, name.clone());
            }
            let mut expected: Vec<&String> = names.iter().filter(|name| matches(&filter, name)).collect();
            expected.sort_by_key(|name| key(name));
            let found = found(&topics, &filter, max, steps);
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        }
    }
}
