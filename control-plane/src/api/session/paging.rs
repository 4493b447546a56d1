//! Pages of what several data planes tell, each in the same order.

use std::cmp::Ordering;

/// What one data plane told: rows in their order, each with its place, and the place up to which it has told all, if it
/// has more.
pub(super) struct Told<P, T> {
    pub(super) rows: Vec<(P, T)>,
    pub(super) through: Option<P>,
}

/// One page.
pub(super) struct Page<P, T> {
    pub(super) rows: Vec<T>,
    /// Where the next one begins; `None`: this was the last.
    pub(super) next: Option<P>,
}

/// One page of what each data plane told, at most `size` rows and about `bytes_max`. Rows of one place are not parted.
pub(super) fn merge<P: Clone, T>(
    told: Vec<Told<P, T>>,
    size: usize,
    bytes_max: usize,
    compare: impl Fn(&P, &P) -> Ordering,
    bytes_of: impl Fn(&T) -> usize,
) -> Page<P, T> {
    // Beyond the end of a list that goes on, nothing is known.
    let horizon = told.iter().filter_map(|told| told.through.clone()).min_by(&compare);
    let is_known = |(place, _): &(P, T)| {
        horizon.as_ref().is_none_or(|horizon| compare(place, horizon) != Ordering::Greater)
    };
    let mut all: Vec<(P, T)> = told.into_iter().flat_map(|told| told.rows).collect();
    all.sort_by(|(one, _), (other, _)| compare(one, other));
    let (mut rows, mut bytes, mut last) = (Vec::new(), 0, None);
    let mut all = all.into_iter().filter(is_known).peekable();
    while let Some((place, _)) = all.peek() {
        let place = place.clone();
        let is_same = |(other, _): &(P, T)| compare(other, &place) == Ordering::Equal;
        let mut group = Vec::new();
        while let Some((_, row)) = all.next_if(is_same) {
            group.push(row);
        }
        let is_full = rows.len() + group.len() > size || bytes >= bytes_max;
        if is_full && !rows.is_empty() {
            return Page { rows, next: last };
        }
        bytes += group.iter().map(&bytes_of).sum::<usize>();
        rows.extend(group);
        last = Some(place);
    }
    Page { rows, next: horizon }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(node: &str, ids: &[&str], through: Option<&str>) -> Told<String, String> {
        let row = |id: &&str| ((*id).to_owned(), format!("{id}@{node}"));
        Told { rows: ids.iter().map(row).collect(), through: through.map(str::to_owned) }
    }

    fn merged(told: Vec<Told<String, String>>, size: usize) -> (Vec<String>, Option<String>) {
        let page = merge(told, size, 1000, Ord::cmp, String::len);
        (page.rows, page.next)
    }

    fn rows(rows: &[&str]) -> Vec<String> {
        rows.iter().map(|row| (*row).to_owned()).collect()
    }

    #[test]
    fn a_page_holds_the_first_of_all_nodes() {
        let lists = || vec![told("n1", &["a", "d"], None), told("n2", &["b", "c"], None)];
        assert_eq!(merged(lists(), 3), (rows(&["a@n1", "b@n2", "c@n2"]), Some("c".to_owned())));
        assert_eq!(merged(lists(), 4).1, None);
        assert_eq!(merged(Vec::new(), 4), (Vec::new(), None));
    }

    #[test]
    fn nothing_is_told_beyond_the_end_of_a_list_that_goes_on() {
        // n1 may have a b.
        let lists = vec![told("n1", &["a"], Some("a")), told("n2", &["c", "d"], None)];
        assert_eq!(merged(lists, 10), (rows(&["a@n1"]), Some("a".to_owned())));
        // It has looked at all up to b and found none.
        let lists = vec![told("n1", &["a"], Some("b")), told("n2", &["a", "c"], None)];
        assert_eq!(merged(lists, 10), (rows(&["a@n1", "a@n2"]), Some("b".to_owned())));
    }

    #[test]
    fn rows_of_one_place_are_on_one_page() {
        let lists = || vec![told("n1", &["a", "b"], None), told("n2", &["b", "c"], None)];
        for size in [1, 2] {
            assert_eq!(merged(lists(), size), (rows(&["a@n1"]), Some("a".to_owned())));
        }
        let only_b = vec![told("n1", &["b"], None), told("n2", &["b"], None)];
        assert_eq!(merged(only_b, 1), (rows(&["b@n1", "b@n2"]), None));
    }

    #[test]
    fn a_page_has_at_least_one_row_however_long() {
        let page = merge(vec![told("n1", &["a", "b"], None)], 9, 1, Ord::cmp, String::len);
        assert_eq!((page.rows, page.next), (rows(&["a@n1"]), Some("a".to_owned())));
    }
}
