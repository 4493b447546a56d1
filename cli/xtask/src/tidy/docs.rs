//! Links in documents resolve.

use std::path::{Component, Path, PathBuf};

use super::{File, Violation};

/// Rule `links`: every relative link of a Markdown file leads to a file that `exists`.
pub(super) fn check(files: &[File], exists: impl Fn(&str) -> bool) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| super::has_ending(&file.path, "md")) {
        let mut in_code = false;
        for (number, line) in file.text.lines().enumerate() {
            in_code ^= line.trim_start().starts_with("```");
            if in_code {
                continue;
            }
            for target in links(line) {
                let target = target.split('#').next().unwrap_or_default();
                if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let folder = Path::new(&file.path).parent().unwrap_or_else(|| Path::new(""));
                if !exists(&normalise(&folder.join(target))) {
                    let place = format!("{}:{}", file.path, number + 1);
                    violations.push(Violation::new("links", place, format!("{target} does not exist")));
                }
            }
        }
    }
    violations
}

fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
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

    #[test]
    fn a_link_to_nowhere_is_found_with_its_line() {
        let text =
            "see [a](../LICENSE) and [b](https://example.org) and\n[c](missing.md#part)\n```\n[d](x)\n```\n";
        let file = File { path: "docs/a.md".to_owned(), text: text.to_owned() };
        let found = check(&[file], |path| path == "LICENSE");
        assert_eq!(found, [Violation::new("links", "docs/a.md:2", "missing.md does not exist")]);
    }
}
