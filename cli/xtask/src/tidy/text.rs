//! Rules about the text of files.

use super::{File, Violation};

/// Lines that a Rust file may have, and a function in it. Longer ones tell two stories.
const FILE_LINES: usize = 1_000;
const FUNCTION_LINES: usize = 120;

/// All rules of this module.
pub(super) fn check(files: &[File]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files {
        let generated = file.path.contains("/generated/");
        if super::has_ending(&file.path, "rs") && !generated {
            violations.extend(budgets(file));
            violations.extend(unfinished(file));
            violations.extend(unsafe_code(file));
            violations.extend(sql(file));
            violations.extend(kafka(file));
            violations.extend(topics(file));
        }
        if file.path == "Cargo.toml" {
            violations.extend(sorted_manifest(file));
        }
        if file.path == "executor/src/sinks/mod.rs" {
            violations.extend(sorted_registry(file));
        }
        if !generated {
            violations.extend(machine_paths(file));
        }
    }
    violations.extend(migrations(files));
    violations
}

fn line_of(file: &File, number: usize) -> String {
    format!("{}:{}", file.path, number + 1)
}

/// Lines that are neither comment nor documentation, with their indices.
fn code(file: &File) -> impl Iterator<Item = (usize, &str)> {
    file.text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether a path holds only tests.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.starts_with("compose/") || path.ends_with("/tests.rs")
}

/// The part of a file before its `mod tests`.
fn before_tests(file: &File) -> usize {
    file.text.lines().position(|line| line.starts_with("mod tests")).unwrap_or(usize::MAX)
}

/// Rule `budget`: files and functions stay short enough to tell one story.
fn budgets(file: &File) -> Vec<Violation> {
    let mut violations = Vec::new();
    let lines: Vec<&str> = file.text.lines().collect();
    if lines.len() > FILE_LINES {
        let text = format!("{} lines, at most {FILE_LINES}: make it a folder of the same name", lines.len());
        violations.push(Violation::new("budget", &file.path, text));
    }
    for (start, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let indent = &line[..line.len() - body.len()];
        let declares = body.split("fn ").next().is_some_and(|before| {
            body.contains("fn ")
                && before.split_whitespace().all(|word| QUALIFIERS.iter().any(|q| word.starts_with(q)))
        });
        if !declares {
            continue;
        }
        let end = format!("{indent}}}");
        let Some(length) =
            lines[start..].iter().position(|line| *line == end || line.ends_with(';') && line.is_empty())
        else {
            continue;
        };
        // A declaration without a body ends before any brace at its own indentation.
        let bodyless = lines[start..start + length].iter().find(|line| line.ends_with(['{', ';']));
        if length > FUNCTION_LINES && bodyless.is_some_and(|line| line.ends_with('{')) {
            let text = format!("a function of {length} lines, at most {FUNCTION_LINES}");
            violations.push(Violation::new("budget", line_of(file, start), text));
        }
    }
    violations
}

const QUALIFIERS: &[&str] = &["pub", "async", "const", "unsafe", "extern"];

/// Rule `unfinished`: nothing that says that it is not done.
fn unfinished(file: &File) -> Vec<Violation> {
    if file.path == "cli/xtask/src/tidy/text.rs" {
        return Vec::new();
    }
    let words = ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "TODO", "XXX"];
    let mut violations = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        if let Some(word) = words.iter().find(|word| line.contains(*word)) {
            violations.push(Violation::new(
                "unfinished",
                line_of(file, number),
                format!("{word} in the tree"),
            ));
        }
    }
    violations
}

/// Rule `unsafe`: only the Kafka adapter's ffi module.
fn unsafe_code(file: &File) -> Vec<Violation> {
    let is_ffi =
        |path: &str| path == "proto/bus/src/kafka/ffi.rs" || path.starts_with("proto/bus/src/kafka/ffi/");
    if is_ffi(&file.path) || file.path.starts_with("cli/xtask/") {
        return Vec::new();
    }
    let found =
        code(file).filter(|(_, line)| line.contains("unsafe {") || line.contains("allow(unsafe_code"));
    found
        .map(|(number, _)| {
            Violation::new("unsafe", line_of(file, number), "only the module proto/bus/src/kafka/ffi may")
        })
        .collect()
}

/// Rule `sql`: only `control-plane/src/store` speaks SQL, and the import that reads TBMQ's database.
fn sql(file: &File) -> Vec<Violation> {
    let speaks = file.path.starts_with("control-plane/src/store")
        || file.path.starts_with("migrations/")
        || file.path == "cli/src/tbmq_import/database.rs";
    if speaks || file.path.starts_with("cli/xtask/") {
        return Vec::new();
    }
    let found = code(file)
        .filter(|(_, line)| ["sea_orm::", "use sea_orm", "sqlx::"].iter().any(|word| line.contains(word)));
    found
        .map(|(number, _)| {
            Violation::new("sql", line_of(file, number), "only control-plane/src/store speaks SQL")
        })
        .collect()
}

/// Rule `kafka`: only the bus and the Kafka sink speak to Kafka (architecture §5.7).
fn kafka(file: &File) -> Vec<Violation> {
    // The benchmark measures what the bare client does.
    let places = [
        "proto/bus/",
        "executor/src/sinks/kafka/",
        "executor/tests/",
        "cli/xtask/",
        "compose/bench/src/floor.rs",
    ];
    if places.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    code(file)
        .filter(|(_, line)| line.contains("rdkafka"))
        .map(|(number, _)| {
            let text = "only tbmq-bus and the Kafka sink use a Kafka client";
            Violation::new("kafka", line_of(file, number), text)
        })
        .collect()
}

/// Rule `topics`: only `tbmq-proto` names topics.
fn topics(file: &File) -> Vec<Violation> {
    if file.path.starts_with("proto/src/") || file.path.starts_with("cli/xtask/") || is_test(&file.path) {
        return Vec::new();
    }
    let names = ["\"tbmq.ie.", "\"tbmq.msg.", "\"tbmq.node.", "\"tbmq.integration.", "\"tbmq.client."];
    let limit = before_tests(file);
    // A package of gRPC services, not a topic.
    let speaks = |line: &str| {
        let line = line.replace("\"tbmq.node.v1.", "");
        names.iter().any(|name| line.contains(name))
    };
    let found = code(file).filter(|(number, line)| *number < limit && speaks(line));
    found
        .map(|(number, _)| {
            Violation::new("topics", line_of(file, number), "only tbmq-proto names topics: use its Catalogue")
        })
        .collect()
}

/// Rule `sorted`: members and dependencies of the workspace.
fn sorted_manifest(file: &File) -> Vec<Violation> {
    let Ok(manifest) = file.text.parse::<toml::Table>() else {
        return vec![Violation::new("sorted", &file.path, "is not TOML")];
    };
    let mut violations = Vec::new();
    let members = manifest.get("workspace").and_then(|workspace| workspace.get("members")?.as_array());
    let members: Vec<&str> = members.into_iter().flatten().filter_map(|member| member.as_str()).collect();
    if let Some([first, second]) = members.array_windows().find(|[first, second]| first > second) {
        let text = format!("members: {first} stands before {second}");
        violations.push(Violation::new("sorted", &file.path, text));
    }
    let lines = file.text.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1);
    let names = lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split(" =").next());
    // Ours come first; then the others.
    let (ours, others): (Vec<&str>, Vec<&str>) =
        names.filter(|name| !name.is_empty()).partition(|name| name.starts_with("tbmq"));
    for group in [ours, others] {
        if let Some([first, second]) = group.array_windows().find(|[first, second]| first > second) {
            let text = format!("dependencies: {first} stands before {second}");
            violations.push(Violation::new("sorted", &file.path, text));
        }
    }
    violations
}

/// Rule `sorted`: the modules of the sinks.
fn sorted_registry(file: &File) -> Vec<Violation> {
    let modules = file.text.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")).unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    let modules: Vec<&str> = modules.collect();
    let pair = modules.windows(2).find(|pair| pair[0] > pair[1]);
    pair.map(|pair| Violation::new("sorted", &file.path, format!("{} stands before {}", pair[0], pair[1])))
        .into_iter()
        .collect()
}

/// Rule `machine`: no path of one machine.
fn machine_paths(file: &File) -> Vec<Violation> {
    if file.path.starts_with("cli/xtask/src/tidy/") {
        return Vec::new();
    }
    let found = file.text.lines().enumerate().filter(|(_, line)| {
        ["/home/", "/root/", "/Users/"].iter().any(|path| {
            line.match_indices(path)
                .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.'))
        })
    });
    found
        .map(|(number, _)| Violation::new("machine", line_of(file, number), "names a path of one machine"))
        .collect()
}

/// Rule `migrations`: a landed migration is never changed; `migrations/landed.txt` lists each with its length and a
/// checksum of its text.
fn migrations(files: &[File]) -> Vec<Violation> {
    let Some(landed) = files.iter().find(|file| file.path == "migrations/landed.txt") else {
        return vec![Violation::new("migrations", "migrations/landed.txt", "is missing")];
    };
    let mut violations = Vec::new();
    let present = files.iter().filter(|file| file.path.starts_with("migrations/src/m"));
    for file in present {
        let name = file.path.trim_start_matches("migrations/src/");
        let line = format!("{name} {:016x}", fingerprint(&file.text));
        match landed.text.lines().find(|line| line.starts_with(name)) {
            Some(known) if known == line => {}
            Some(_) => violations.push(Violation::new(
                "migrations",
                &file.path,
                "has landed and must not change: write a new migration",
            )),
            None => {
                let text = format!("is not listed: add `{line}` to migrations/landed.txt");
                violations.push(Violation::new("migrations", &file.path, text));
            }
        }
    }
    for line in landed.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(' ').next().unwrap_or_default();
        if !files.iter().any(|file| file.path == format!("migrations/src/{name}")) {
            violations.push(Violation::new("migrations", name, "has landed and must not be removed"));
        }
    }
    violations
}

/// FNV-1a: stable over versions of Rust, unlike the standard library's hasher.
fn fingerprint(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        let landed = File { path: "migrations/landed.txt".to_owned(), text: String::new() };
        let file = File { path: path.to_owned(), text: text.to_owned() };
        check(&[landed, file]).into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn a_file_or_a_function_that_is_too_long_is_found() {
        assert_eq!(rules("a/src/b.rs", &"// x\n".repeat(FILE_LINES + 1)), ["budget"]);
        let function = format!("pub async fn f() {{\n{}}}\n", "    x();\n".repeat(FUNCTION_LINES + 1));
        assert_eq!(rules("a/src/b.rs", &function), ["budget"]);
        assert_eq!(rules("a/src/b.rs", "fn f() {\n}\n"), [""; 0]);
    }

    #[test]
    fn unfinished_work_is_found() {
        assert_eq!(rules("a/src/b.rs", "fn f() { todo!() }"), ["unfinished"]);
        assert_eq!(rules("a/src/b.rs", "// FIXME later"), ["unfinished"]);
    }

    #[test]
    fn unsafe_code_outside_the_ffi_module_is_found() {
        assert_eq!(rules("a/src/b.rs", "fn f() { unsafe { g() } }"), ["unsafe"]);
        for of_module in ["proto/bus/src/kafka/ffi.rs", "proto/bus/src/kafka/ffi/asking.rs"] {
            assert_eq!(rules(of_module, "fn f() { unsafe { g() } }"), [""; 0]);
        }
        assert_eq!(rules("proto/bus/src/kafka/ffi_of_others.rs", "fn f() { unsafe { g() } }"), ["unsafe"]);
    }

    #[test]
    fn sql_outside_the_store_is_found() {
        assert_eq!(rules("control-plane/src/api/a.rs", "use sea_orm::Set;"), ["sql"]);
        assert_eq!(rules("control-plane/src/store/a.rs", "use sea_orm::Set;"), [""; 0]);
    }

    #[test]
    fn a_kafka_client_outside_the_bus_and_the_sink_is_found() {
        assert_eq!(rules("executor/src/runner.rs", "use rdkafka::ClientConfig;"), ["kafka"]);
        assert_eq!(rules("executor/src/sinks/kafka/a.rs", "use rdkafka::ClientConfig;"), [""; 0]);
    }

    #[test]
    fn a_topic_named_outside_the_catalogue_is_found() {
        assert_eq!(rules("executor/src/a.rs", "let t = \"tbmq.ie.uplink\";"), ["topics"]);
        assert_eq!(rules("executor/src/a.rs", "// writes \"tbmq.ie.uplink\""), [""; 0]);
    }

    #[test]
    fn disorder_in_a_registry_is_found() {
        let manifest =
            "[workspace]\nmembers = [\"b\", \"a\"]\n\n[workspace.dependencies]\nb = \"1\"\na = \"1\"\n";
        assert_eq!(rules("Cargo.toml", manifest), ["sorted", "sorted"]);
        assert_eq!(rules("executor/src/sinks/mod.rs", "pub mod mqtt;\npub mod http;\n"), ["sorted"]);
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        assert_eq!(rules("README.md", "run /home/me/tbmq"), ["machine"]);
        assert_eq!(rules("README.md", "see data-plane/home/x and https://a.b/home/"), [""; 0]);
    }

    #[test]
    fn a_changed_an_unlisted_and_a_removed_migration_are_found() {
        assert_eq!(rules("migrations/src/m1.rs", "fn up() {}"), ["migrations"]);
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let landed = file("migrations/landed.txt", "m1.rs 0000000000000000\nm2.rs 0000000000000000\n");
        let found = check(&[landed, file("migrations/src/m1.rs", "fn up() {}")]);
        let places: Vec<_> = found.iter().map(|violation| violation.place.as_str()).collect();
        assert_eq!(places, ["migrations/src/m1.rs", "m2.rs"]);
        let listed = file("migrations/landed.txt", &format!("m1.rs {:016x}\n", fingerprint("x")));
        assert_eq!(check(&[listed, file("migrations/src/m1.rs", "x")]), []);
    }
}
