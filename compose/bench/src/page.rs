//! The page of results, `RESULTS.md`: each benchmark has a section of its own there, and medians of its rounds.

use std::{fmt::Display, path::Path};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;

/// Replaces the section under `heading` (`## …`), or adds it. `section` begins with the heading.
pub(crate) fn write(file: &Path, heading: &str, section: &dyn Display) -> Result<()> {
    let page = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    let page = replaced(&page, heading, &section.to_string());
    std::fs::write(file, page).with_context(|| format!("can't write {}", file.display()))
}

/// For µs up to an hour; longer ones count as that.
pub(crate) fn latencies_us() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 3_600_000_000, 3)?)
}

/// The middle of what is there; without anything: not a number.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

fn replaced(page: &str, heading: &str, section: &str) -> String {
    let (before, rest) = page.split_once(heading).unwrap_or((page, ""));
    let after = rest.find("\n## ").map_or("", |at| &rest[at + 1..]);
    let end = if after.is_empty() { "" } else { "\n" };
    format!("{}\n\n{}\n{end}{after}", before.trim_end(), section.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < f64::EPSILON);
        assert!((median([4.0, 1.0, 2.0, 3.0].into_iter()) - 2.5).abs() < f64::EPSILON);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_section_is_replaced_where_it_stands_and_else_added() {
        let page = "# Results\n\n## A\n\none\n\n## B\n\ntwo\n";
        assert_eq!(replaced(page, "## A", "## A\n\nnew\n"), "# Results\n\n## A\n\nnew\n\n## B\n\ntwo\n");
        assert_eq!(replaced(page, "## B", "## B\n\nnew\n"), "# Results\n\n## A\n\none\n\n## B\n\nnew\n");
        assert_eq!(replaced(page, "## C", "## C\n\nnew\n"), format!("{page}\n## C\n\nnew\n"));
    }
}
