//! `compose/bench/FAULTS.md`, written from reports: the rounds, and after them the faults of sinks.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::report::Report;

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

/// Processors, memory and system, without the machine's name.
fn machine() -> Result<String> {
    let processors = std::thread::available_parallelism()?;
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    let release = std::fs::read_to_string(Path::new("/etc/os-release")).unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
    Ok(format!("{processors} processors, {} GiB, {}", kibibytes >> 20, system.trim_matches('"')))
}

/// Heading of the part about sinks.
const SINKS: &str = "## Sinks under fire\n";

/// The page with its rounds replaced; the part about sinks stays.
pub fn with_rounds(page: &str, rounds: &str) -> String {
    let sinks = page.find(SINKS).map_or("", |at| &page[at..]);
    let gap = if sinks.is_empty() { "" } else { "\n" };
    format!("{}\n{gap}{sinks}", rounds.trim_end())
}

/// The page with its part about sinks replaced; the rounds stay.
pub fn with_sinks(page: &str, sinks: &str) -> String {
    let rounds = page.find(SINKS).map_or(page, |at| &page[..at]);
    format!("{}\n\n{SINKS}\n{}\n", rounds.trim_end(), sinks.trim_end())
}

/// Day, commit, servers and machine of a run, in one line.
///
/// # Errors
/// When the machine does not tell what it is.
pub fn facts() -> Result<String> {
    Ok(format!(
        "{date}, commit {commit}, {kafka}, {postgres}, {machine}, debug build",
        date = first_line("date", &["-u", "+%Y-%m-%d"]),
        commit = first_line("git", &["rev-parse", "--short", "HEAD"]),
        kafka = "Kafka 3.9.1",
        postgres = tbmq_harness::postgres::version().unwrap_or_else(|| "PostgreSQL".to_owned()),
        machine = machine()?,
    ))
}

/// The rounds.
///
/// # Errors
/// When the machine does not tell what it is.
pub fn render(report: &Report) -> Result<String> {
    let options = &report.options;
    let count = report.outcomes.len();
    let verdict = match report.outcomes.iter().filter(|one| !one.is_clean()).count() {
        0 => "Every round was clean.".to_owned(),
        failed => format!("{failed} of {count} rounds failed; their lines are below."),
    };
    let failed: Vec<String> =
        report.outcomes.iter().filter(|one| !one.is_clean()).map(ToString::to_string).collect();
    let failed =
        if failed.is_empty() { String::new() } else { format!("\n```\n{}\n```\n", failed.join("\n")) };
    Ok(format!(
        "# Under fire\n\n\
`cargo xtask chaos --rounds {rounds} --seed {seed} --write`, {facts}.\n\n\
Two control planes, two data planes, two executors, Kafka (one node) and PostgreSQL as processes on one machine. {publishers} publishers send {rate} messages/s in all at QoS 1 over both data\n\
planes and send again what was not acknowledged within 5 s. Three HTTP integrations with RETRY_ALL without end: one gets everything, one is updated every two seconds through either\n\
control plane, one has four shards. Session timeout {session:?}. Each round injects one fault under load, heals it, waits until the system works as before, ends the load, and the ledger\n\
compares what was acknowledged with what arrived. {verdict}\n\n\
{table}\n\
Times are median / greatest, in seconds.\n\n\
* **lost**: acknowledged to a publisher and not arrived at an integration it was meant for.\n\
* **excused**: lay in a message topic when that was deleted: acknowledged before the deletion was complete, and not delivered. Nothing else is excused.\n\
* **duplicates**: arrivals of what had arrived before, at all three integrations together. Updates restart the moving integration, which makes some of them.\n\
* **refused**: publishes answered with an error; publishers sent them again.\n\
* **lasted**: from the fault to its healing: a stopped process or server answers again, a deleted topic is gone.\n\
* **first new message**: from the healing until a message sent after it had arrived at every integration.\n\
* **recovery**: from the healing until everything acknowledged before had arrived, messages of every publisher arrived, and both control planes showed every integration as running.\n\
* **longest pause**: the longest time without an arrival at an integration during the round.\n\n\
Besides, in every round: updates through both control planes are accepted afterwards and the last one is what runs, no committed offset goes back, and at rest every partition is committed\n\
to its end.\n\
{omissions}{failed}",
        rounds = options.rounds,
        seed = options.seed,
        facts = facts()?,
        publishers = options.publishers,
        rate = options.rate,
        session = options.session_timeout,
        table = report.table(),
        omissions = report.omissions(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_page_is_replaced_without_the_other() {
        let both = with_sinks(&with_rounds("", "# Under fire\n\nold"), "old sinks");
        assert_eq!(both, "# Under fire\n\nold\n\n## Sinks under fire\n\nold sinks\n");
        let newer = with_rounds(&both, "# Under fire\n\nnew\n");
        assert_eq!(newer, "# Under fire\n\nnew\n\n## Sinks under fire\n\nold sinks\n");
        assert_eq!(
            with_sinks(&newer, "new sinks\n"),
            "# Under fire\n\nnew\n\n## Sinks under fire\n\nnew sinks\n"
        );
    }
}
