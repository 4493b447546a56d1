//! Links in documents resolve, and each page of `docs/` can be found.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use super::{File, Violation};

/// Where a reader of `docs/` begins.
const INDEX: &str = "docs/README.md";

/// Rules `links` and `reachable`: every relative link of a Markdown file leads to a file that `exists`, and to a heading of
/// it where it names one; every page of `docs/` is reached from its index.
pub(super) fn check(files: &[File], exists: impl Fn(&str) -> bool) -> Vec<Violation> {
    let pages: BTreeMap<&str, Page> = files
        .iter()
        .filter(|file| super::has_ending(&file.path, "md"))
        .map(|file| (file.path.as_str(), Page::of(file)))
        .collect();
    let mut violations = Vec::new();
    for (path, page) in &pages {
        for link in &page.links {
            let place = || format!("{path}:{}", link.line);
            if !exists(&link.file) {
                let text = format!("{} does not exist", link.text);
                violations.push(Violation::new("links", place(), text));
            } else if let (Some(anchor), Some(target)) = (&link.anchor, pages.get(link.file.as_str()))
                && !target.anchors.contains(anchor)
            {
                let text = format!("{} has no heading #{anchor}", link.file);
                violations.push(Violation::new("links", place(), text));
            }
        }
    }
    let reached = reached(&pages);
    let lost = pages.keys().filter(|path| path.starts_with("docs/") && !reached.contains(*path));
    violations.extend(
        lost.map(|path| Violation::new("reachable", *path, format!("no link leads here from {INDEX}"))),
    );
    violations
}

/// A Markdown file, as far as links are concerned.
struct Page {
    links: Vec<Link>,
    anchors: BTreeSet<String>,
}

struct Link {
    line: usize,
    /// As it is written.
    text: String,
    /// From the root.
    file: String,
    anchor: Option<String>,
}

impl Page {
    fn of(file: &File) -> Self {
        let mut page = Self { links: Vec::new(), anchors: BTreeSet::new() };
        let mut fence: Option<&str> = None;
        for (number, line) in file.text.lines().enumerate() {
            let trimmed = line.trim_start();
            let marks = &trimmed[..trimmed.len() - trimmed.trim_start_matches('`').len()];
            if marks.len() >= 3 {
                // A fence ends with as many marks as it began with, or more.
                match fence {
                    Some(open) if marks.len() >= open.len() => fence = None,
                    None => fence = Some(marks),
                    Some(_) => {}
                }
                continue;
            }
            if fence.is_some() {
                continue;
            }
            if let Some(title) = heading(line) {
                page.add_anchor(&slug(title));
            }
            for id in line.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                page.anchors.insert(id.to_owned());
            }
            for target in targets(line) {
                page.links.extend(Link::of(&file.path, number + 1, target));
            }
        }
        page
    }

    /// Headings of the same text get numbers.
    fn add_anchor(&mut self, slug: &str) {
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let free = std::iter::once(slug.to_owned()).chain(numbered).find(|slug| !self.anchors.contains(slug));
        self.anchors.extend(free);
    }
}

impl Link {
    /// A link within the tree; `None` for others.
    fn of(page: &str, line: usize, target: &str) -> Option<Self> {
        if target.contains("://") || target.starts_with("mailto:") {
            return None;
        }
        let (file, anchor) = match target.split_once('#') {
            Some((file, anchor)) => (file, Some(anchor.to_owned())),
            None => (target, None),
        };
        let folder = Path::new(page).parent().unwrap_or_else(|| Path::new(""));
        let path = if file.is_empty() { page.to_owned() } else { normalise(&folder.join(file)) };
        Some(Self { line, text: file.to_owned(), file: path, anchor })
    }
}

/// The text of a heading.
fn heading(line: &str) -> Option<&str> {
    let title = line.trim_start_matches('#');
    let level = line.len() - title.len();
    ((1..=6).contains(&level) && title.starts_with(' ')).then(|| title.trim())
}

/// What a heading is linked to by: small letters, hyphens for spaces, no other punctuation than hyphens and underscores.
fn slug(title: &str) -> String {
    // Of a link its text is shown.
    let mut shown = String::new();
    let mut rest = title;
    while let Some((before, after)) = rest.split_once("](") {
        shown.push_str(before);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    shown.push_str(rest);
    let kept = shown.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Targets of inline links, images and definitions in a line; what stands between backticks is none.
fn targets(line: &str) -> Vec<&str> {
    let definition =
        line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target.trim());
    let mut found: Vec<&str> = definition.into_iter().collect();
    for (at, _) in line.match_indices("](") {
        // A link's text may hold code, so that an even number of backticks stands before its end.
        if line[..at].matches('`').count().is_multiple_of(2) {
            let target = line[at + 2..].split([')', ' ']).next();
            found.extend(target.filter(|target| !target.is_empty()));
        }
    }
    found
}

/// All pages that links lead to from the index.
fn reached<'a>(pages: &BTreeMap<&'a str, Page>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = vec![INDEX];
    while let Some(path) = next.pop() {
        if let Some((path, page)) = pages.get_key_value(path)
            && reached.insert(*path)
        {
            next.extend(page.links.iter().map(|link| link.file.as_str()));
        }
    }
    reached
}

fn normalise(path: &Path) -> String {
    let mut parts = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir => {}
            other => parts.push(other),
        }
    }
    parts.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pages: &[(&str, &str)]) -> Vec<Violation> {
        let files: Vec<File> = pages
            .iter()
            .map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        check(&files, |path| path == "LICENSE" || files.iter().any(|file| file.path == path))
    }

    #[test]
    fn a_link_to_nowhere_is_found_with_its_line() {
        let text = "see [a](LICENSE) and [b](https://example.org) and\n[c](missing.md#part) `[e](y)`\n```\n[d](x)\n```\n\
                    ````\n```\n[f](z)\n````\n[g]: gone.md\n";
        assert_eq!(
            found(&[("a.md", text)]),
            [
                Violation::new("links", "a.md:2", "missing.md does not exist"),
                Violation::new("links", "a.md:10", "gone.md does not exist")
            ]
        );
    }

    #[test]
    fn an_anchor_is_a_heading_of_the_page_it_is_on() {
        let b = "# Title\n## What's `new`, in 2.0?\n## Twice\n## Twice\n```\n# no heading\n```\n<a id=\"here\"></a>\n";
        let good =
            "[1](b.md#title) [2](b.md#whats-new-in-20) [3](b.md#twice-1) [4](b.md#here) [5](#own)\n# Own\n";
        assert_eq!(found(&[("a.md", good), ("b.md", b)]), []);
        let bad = "[1](b.md#no-heading) [2](b.md#twice-2)\n[3](#title)\n";
        assert_eq!(
            found(&[("a.md", bad), ("b.md", b)]),
            [
                Violation::new("links", "a.md:1", "b.md has no heading #no-heading"),
                Violation::new("links", "a.md:1", "b.md has no heading #twice-2"),
                Violation::new("links", "a.md:2", "a.md has no heading #title")
            ]
        );
    }

    #[test]
    fn a_page_that_nothing_leads_to_is_lost() {
        let pages = [
            ("docs/README.md", "[a](a.md) [up](../README.md)"),
            ("docs/a.md", "[b](errors/b.md)"),
            ("docs/errors/b.md", ""),
            ("docs/c.md", "[a](a.md)"),
            ("README.md", ""),
        ];
        assert_eq!(
            found(&pages),
            [Violation::new("reachable", "docs/c.md", "no link leads here from docs/README.md")]
        );
    }
}
