//! The tree finds what a walk through all filters finds.

use std::{collections::BTreeMap, ops::ControlFlow};

use proptest::{collection::vec, prelude::*, sample::select};
use tbmq_mqtt::{
    topic::{self, Rules},
    tree::Tree,
};

/// Longer than what the tree keeps as it is.
const LONG: &str = "abcdefghijklmnopqrstuvwxyz";

/// Names of few levels and few words, so that filters and names meet.
fn name() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "", "$s", LONG]), 1..5)
        .prop_map(|levels| levels.join("/"))
        .prop_filter("a name has a character", |name| !name.is_empty())
}

fn filter() -> impl Strategy<Value = String> {
    (vec(select(vec!["a", "b", "", "$s", LONG, "+"]), 0..4), any::<bool>())
        .prop_map(|(mut levels, is_multi)| {
            if is_multi {
                levels.push("#");
            }
            levels.join("/")
        })
        .prop_filter("a filter has a character", |filter| !filter.is_empty())
}

#[derive(Clone, Debug)]
enum Step {
    Insert(String, u8, u32),
    Remove(String, u8),
    Match(String),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (filter(), 0..4_u8, any::<u32>()).prop_map(|(filter, who, value)| Step::Insert(filter, who, value)),
        2 => (filter(), 0..4_u8).prop_map(|(filter, who)| Step::Remove(filter, who)),
        3 => name().prop_map(Step::Match),
    ]
}

/// §4.7, level by level.
fn levels_match(filter: &[&str], name: &[&str]) -> bool {
    match (filter, name) {
        (["#"], _) | ([], []) => true,
        (["+", filter @ ..], [_, name @ ..]) => levels_match(filter, name),
        ([level, filter @ ..], [other, name @ ..]) => level == other && levels_match(filter, name),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn a_filter_matches_a_name_level_by_level(filter in filter(), name in name()) {
        let (own, others): (Vec<&str>, Vec<&str>) = (filter.split('/').collect(), name.split('/').collect());
        let is_hidden = name.starts_with('$') && filter.starts_with(['+', '#']);
        prop_assert_eq!(topic::matches(&filter, &name), !is_hidden && levels_match(&own, &others));
    }

    #[test]
    fn the_tree_is_a_map_of_filters(steps in vec(step(), 0..120), names in vec(name(), 1..8)) {
        let mut tree = Tree::new();
        let mut model: BTreeMap<(String, u8), u32> = BTreeMap::new();
        for step in steps.into_iter().chain(names.into_iter().map(Step::Match)) {
            match step {
                Step::Insert(filter, who, value) => {
                    prop_assert_eq!(topic::check_filter(&filter, &Rules::default()), Ok(()));
                    prop_assert_eq!(tree.insert(&filter, who, value), model.insert((filter, who), value));
                }
                Step::Remove(filter, who) => {
                    prop_assert_eq!(tree.remove(&filter, &who), model.remove(&(filter, who)));
                }
                Step::Match(name) => {
                    let mut found = Vec::new();
                    tree.matching(&name, |who, value| found.push((*who, *value)));
                    found.sort_unstable();
                    let all = model.iter().filter(|((filter, _), _)| topic::matches(filter, &name));
                    let mut expected: Vec<(u8, u32)> = all.map(|((_, who), value)| (*who, *value)).collect();
                    expected.sort_unstable();
                    prop_assert_eq!(&found, &expected, "{}", name);
                    let mut told = Vec::new();
                    tree.matching_filters(&name, |filter, who, value| {
                        told.push((filter.to_owned(), *who, *value));
                        ControlFlow::Continue(())
                    });
                    for (filter, who, value) in told {
                        prop_assert_eq!(model.get(&(filter, who)), Some(&value));
                        found.retain(|one| *one != (who, value));
                    }
                    prop_assert_eq!(found, [], "a question finds what a message finds: {}", name);
                }
            }
            prop_assert_eq!((tree.len(), tree.is_empty()), (model.len(), model.is_empty()));
        }
        for ((filter, who), value) in std::mem::take(&mut model) {
            prop_assert_eq!(tree.remove(&filter, &who), Some(value));
        }
        prop_assert!(tree.is_empty());
    }
}
