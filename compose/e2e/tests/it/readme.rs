//! The pages that a newcomer types along with, typed: each command in an empty folder, by a user without a home or
//! settings, with nothing but our binaries to find; what it prints has to be what the page says.
//!
//! A block ```` ```console NAME ```` is what the terminal NAME shows: `$ command`, then its output; a block that begins
//! without a command is what a command that still runs shows next; `^C` stops it. `…` is anything within a line, alone on
//! a line any number of lines. Runs of spaces count as one. The terminal `build` is what the reader did before. A block
//! ```` ```yaml FILE ```` is saved as that file.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tbmq_harness::{postgres::free_port, process};

/// How long a page's output may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the reader does next, and where.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    terminal: String,
    act: Act,
    /// What the terminal shows then.
    shown: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Act {
    Type(String),
    Watch,
    Interrupt,
    /// Of what is shown, in the file that stands in the terminal's place.
    Save,
}

/// The steps of a page, in their order.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut place = None;
    let mut is_new = false;
    for line in page.lines() {
        if let Some(info) = line.strip_prefix("```") {
            let block = info.split_once(' ').filter(|_| place.is_none());
            place = block.filter(|(kind, _)| ["console", "yaml"].contains(kind));
            is_new = place.is_some();
            continue;
        }
        let Some((kind, place)) = place else { continue };
        let act = match line.strip_prefix("$ ") {
            _ if kind == "yaml" => is_new.then_some(Act::Save),
            Some(command) => Some(Act::Type(command.to_owned())),
            None if line == "^C" => Some(Act::Interrupt),
            None => is_new.then_some(Act::Watch),
        };
        is_new = false;
        match (act, steps.last_mut()) {
            (Some(act), _) => {
                let begins = matches!(act, Act::Watch | Act::Save);
                let shown = if begins { vec![line.to_owned()] } else { Vec::new() };
                steps.push(Step { terminal: place.to_owned(), act, shown });
            }
            (None, Some(step)) => step.shown.push(line.to_owned()),
            (None, None) => unreachable!("the first line of a block is a step"),
        }
    }
    for step in &mut steps {
        // The empty line before the next command.
        while step.shown.last().is_some_and(String::is_empty) {
            step.shown.pop();
        }
    }
    steps
}

/// Whether a line is what the page shows.
fn line_fits(shown: &str, line: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (shown, line) = (words(shown), words(line));
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether lines are what the page shows. Without `is_all` more may come.
fn fit(shown: &[String], lines: &[String], is_all: bool) -> bool {
    match (shown.split_first(), lines.split_first()) {
        (None, _) => lines.is_empty() || !is_all,
        (Some((first, rest)), _) if first.trim() == "…" => {
            (0..=lines.len()).any(|skipped| fit(rest, &lines[skipped..], is_all))
        }
        (Some((first, rest)), Some((line, more))) => line_fits(first, line) && fit(rest, more, is_all),
        (Some(_), None) => false,
    }
}

/// What was printed, and whether that is all.
type Lines = Arc<(Mutex<(Vec<String>, bool)>, Condvar)>;

/// A command in a terminal; killed if the page does not stop it.
struct Typed {
    command: String,
    child: Child,
    lines: Lines,
    /// Lines that earlier steps have shown.
    seen: usize,
}

impl Drop for Typed {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn collect(stream: impl Read + Send + 'static, lines: Lines) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            lines.0.lock().unwrap().0.push(line);
            lines.1.notify_all();
        }
        lines.0.lock().unwrap().1 = true;
        lines.1.notify_all();
    });
}

impl Typed {
    fn new(command: &str, reader: &Reader) -> Result<Self> {
        // A shell's own command can't take its place.
        let exec = if command.starts_with("tbmq") { "exec " } else { "" };
        let script = format!("exec 2>&1; {exec}{command}");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script])
            .env_clear()
            .env("HOME", reader.folder.path())
            .env("PATH", reader.folder.path().join("bin"))
            .envs(&reader.settings)
            .current_dir(reader.folder.path().join("work"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command} could not be started"))?;
        let lines = Lines::default();
        collect(child.stdout.take().context("piped")?, lines.clone());
        Ok(Self { command: command.to_owned(), child, lines, seen: 0 })
    }

    /// Waits until it shows this; with `is_all`, until it has ended and has shown nothing else.
    fn shows(&mut self, shown: &[String], is_all: bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let (lines, changed) = &*self.lines;
        let mut lines = lines.lock().unwrap();
        loop {
            let has_ended = lines.1;
            if (has_ended || !is_all) && fit(shown, &lines.0[self.seen..], is_all) {
                self.seen = lines.0.len();
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if has_ended || left.is_zero() {
                let (page, it) = (shown.join("\n"), lines.0[self.seen..].join("\n"));
                bail!("{}: the page shows\n{page}\n--- it was\n{it}", self.command);
            }
            lines = changed.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// Who follows a page.
struct Reader {
    folder: tempfile::TempDir,
    settings: BTreeMap<&'static str, String>,
    /// Ports of the page, and those that are used instead.
    ports: Vec<(&'static str, u16)>,
}

impl Reader {
    /// With other ports, in the way that the README gives to whom a port is taken.
    fn new() -> Result<Self> {
        let folder = process::data_dir()?;
        for name in ["bin", "work"] {
            fs::create_dir(folder.path().join(name))?;
        }
        for name in ["tbmq", "tbmqctl"] {
            symlink(process::binary(name)?, folder.path().join("bin").join(name))?;
        }
        let mut reader = Self { folder, settings: BTreeMap::new(), ports: Vec::new() };
        let readme = fs::read_to_string(root().join("README.md"))?;
        let (_, taken) = readme.split_once("**A port is taken?**").context("the README says how")?;
        for (port, variable) in [
            ("1883", "LISTENER_TCP_BIND_PORT"),
            ("8084", "LISTENER_WS_BIND_PORT"),
            ("9090", "CONTROL_GRPC_BIND_PORT"),
            ("8083", "HTTP_BIND_PORT"),
            ("8099", "--port"),
        ] {
            ensure!(taken.contains(&format!("`{variable}`")), "the README does not say {variable}");
            let free = free_port()?;
            reader.ports.push((port, free));
            match variable {
                "--port" => {}
                _ => drop(reader.settings.insert(variable, free.to_string())),
            }
        }
        for (variable, default) in
            [("TBMQCTL_SERVER", "http://127.0.0.1:9090"), ("TBMQCTL_BROKER", "127.0.0.1:1883")]
        {
            ensure!(
                taken.contains(&format!("`{variable}` (`{default}`)")),
                "the README does not say {variable}"
            );
            reader.settings.insert(variable, reader.moved(default));
        }
        Ok(reader)
    }

    /// A text of the page with this reader's ports.
    fn moved(&self, text: &str) -> String {
        let text = match text {
            "tbmqctl try http-sink" => "tbmqctl try http-sink --port 8099",
            other => other,
        };
        self.ports.iter().fold(text.to_owned(), |text, (port, free)| {
            text.replace(&format!(":{port}"), &format!(":{free}"))
                .replace(&format!("--port {port}"), &format!("--port {free}"))
        })
    }

    /// Follows a page to its end. What only looks is typed again until it shows what the page does: whoever types is
    /// slower than this.
    fn follow(&self, page: &str) -> Result<()> {
        let steps = steps(&fs::read_to_string(root().join(page))?);
        ensure!(steps.len() > 5, "{page} has only {} steps", steps.len());
        let mut terminals: BTreeMap<&str, Typed> = BTreeMap::new();
        for (index, step) in steps.iter().enumerate() {
            if step.terminal == "build" {
                continue;
            }
            let shown: Vec<String> = step.shown.iter().map(|line| self.moved(line)).collect();
            let terminal = step.terminal.as_str();
            match &step.act {
                Act::Type(command) => {
                    ensure!(!terminals.contains_key(terminal), "{command}: {terminal} is busy");
                    let command = self.moved(command);
                    let next = steps[index + 1..].iter().find(|next| next.terminal == step.terminal);
                    if next.is_some_and(|next| !matches!(next.act, Act::Type(_))) {
                        let mut typed = Typed::new(&command, self)?;
                        typed.shows(&shown, false)?;
                        terminals.insert(terminal, typed);
                    } else {
                        self.ends_with(&command, &shown)?;
                    }
                }
                Act::Save => {
                    let file = self.folder.path().join("work").join(terminal);
                    fs::write(file, shown.join("\n") + "\n")?;
                }
                Act::Watch => {
                    terminals.get_mut(terminal).context("nothing runs")?.shows(&shown, false)?;
                }
                Act::Interrupt => {
                    let mut typed = terminals.remove(terminal).context("nothing runs")?;
                    let pid =
                        rustix::process::Pid::from_raw(typed.child.id().cast_signed()).context("a pid")?;
                    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
                    typed.shows(&shown, true)?;
                }
            }
        }
        ensure!(terminals.is_empty(), "{page} leaves {:?} running", terminals.keys());
        Ok(())
    }

    /// Types a command that ends, and compares.
    fn ends_with(&self, command: &str, shown: &[String]) -> Result<()> {
        let looks = ["list", "get", "stats"].iter().any(|word| command.split(' ').any(|part| part == *word));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Typed::new(command, self)?.shows(shown, true) {
                Err(_) if looks && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                result => return result,
            }
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn whoever_types_what_the_readme_says_sees_what_it_shows() -> Result<()> {
    Reader::new()?.follow("README.md")
}

#[test]
fn whoever_goes_on_with_getting_started_sees_what_it_shows() -> Result<()> {
    Reader::new()?.follow("docs/getting-started.md")
}

#[test]
fn a_page_is_read_as_it_is_written() {
    let page = "```console a\n$ x 1\nout\n\n$ y\n```\n```\n$ no\n```\n```yaml c.yaml\na:\n  b\n```\n```console b\nmore …\n```\n```console a\n^C\n```\n";
    let step = |terminal: &str, act, shown: &[&str]| Step {
        terminal: terminal.to_owned(),
        act,
        shown: shown.iter().map(|line| (*line).to_owned()).collect(),
    };
    assert_eq!(
        steps(page),
        [
            step("a", Act::Type("x 1".to_owned()), &["out"]),
            step("a", Act::Type("y".to_owned()), &[]),
            step("c.yaml", Act::Save, &["a:", "  b"]),
            step("b", Act::Watch, &["more …"]),
            step("a", Act::Interrupt, &[]),
        ]
    );
}

#[test]
fn what_is_shown_is_what_the_page_says_and_nothing_else() {
    let lines = |text: &str| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>();
    let check = |shown: &str, it: &str, is_all| fit(&lines(shown), &lines(it), is_all);
    assert!(check("a  b", "a b", true));
    assert!(check("id-…, end", "id-12, end", true));
    assert!(!check("id-…, end", "id-12, other", true));
    assert!(check("…\nready\n…", "log\nlog\nready", true));
    assert!(!check("…\nready", "log\nready\nlog", true));
    assert!(check("…\nready", "log\nready\nlog", false));
    assert!(!check("one", "", true));
    assert!(!check("", "one", true));
}
