//! The page of results, `RESULTS.md`: each benchmark has a section of its own there.

use std::{fmt::Display, path::Path};

use anyhow::{Context as _, Result};

/// Replaces the section under `heading` (`## …`), or adds it. `section` begins with the heading.
pub(crate) fn write(file: &Path, heading: &str, section: &dyn Display) -> Result<()> {
    let page = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    let page = replaced(&page, heading, &section.to_string());
    std::fs::write(file, page).with_context(|| format!("can't write {}", file.display()))
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
    fn a_section_is_replaced_where_it_stands_and_else_added() {
        let page = "# Results\n\n## A\n\none\n\n## B\n\ntwo\n";
        assert_eq!(replaced(page, "## A", "## A\n\nnew\n"), "# Results\n\n## A\n\nnew\n\n## B\n\ntwo\n");
        assert_eq!(replaced(page, "## B", "## B\n\nnew\n"), "# Results\n\n## A\n\none\n\n## B\n\nnew\n");
        assert_eq!(replaced(page, "## C", "## C\n\nnew\n"), format!("{page}\n## C\n\nnew\n"));
    }
}
