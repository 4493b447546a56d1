//! `cargo xtask instructions`: how many instructions single steps of a message's road take, counted by callgrind, and
//! whether they are what `compose/bench/instructions.txt` says. Unlike times, they do not depend on what else the
//! machine does.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

/// The counts that are held, one step a line.
const FILE: &str = "compose/bench/instructions.txt";

/// Each step is done so often, and twice as often; the difference leaves out everything around it.
const TIMES: u64 = 20_000;

/// A step may differ by so much: hash tables are seeded at random.
const TOLERANCE: f64 = 0.05;

/// The C library chooses its loops by the processor, which is 7 % of a step: with this it takes those that every
/// x86-64 has, as `GLIBC_TUNABLES` of glibc 2.26 and later.
const BASELINE: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-SSE4_2,-SSE4_1,-SSSE3,\
                        -ERMS,-FSRM,-Fast_Unaligned_Copy,-Fast_Copy_Backward,-Fast_Unaligned_Load";

const HEAD: &str =
    "# Instructions of single steps of a message's road, by `cargo xtask instructions --write`.\n";

/// Counts, and compares or writes.
pub(crate) fn run(root: &Path, write: bool) -> Result<()> {
    let build = Command::new("cargo")
        .args(["build", "--release", "--locked", "--quiet", "--package", "tbmq-steps"])
        .current_dir(root)
        .status()?;
    ensure!(build.success(), "tbmq-steps could not be built");
    let target = crate::target(root);
    let program = target.join("release/tbmq-steps");
    let mut counts = BTreeMap::new();
    for step in steps(&program)? {
        let [once, twice] = [count(&program, &step, TIMES)?, count(&program, &step, 2 * TIMES)?];
        let each = twice.saturating_sub(once) as f64 / TIMES as f64;
        println!("{step:<26} {each:>8.0}");
        counts.insert(step, each);
    }
    let file = root.join(FILE);
    if write {
        let mut text = HEAD.to_owned();
        for (step, each) in &counts {
            writeln!(text, "{step} {each:.0}")?;
        }
        return std::fs::write(&file, text).with_context(|| format!("can't write {FILE}"));
    }
    let held = std::fs::read_to_string(&file).with_context(|| format!("can't read {FILE}"))?;
    let problems = compared(&held, &counts)?;
    ensure!(
        problems.is_empty(),
        "{}\nIf that is meant: cargo xtask instructions --write",
        problems.join("\n")
    );
    Ok(())
}

/// The program lists its steps when it is called without any.
fn steps(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program).output().context("tbmq-steps could not be started")?;
    ensure!(output.status.success(), "tbmq-steps: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

fn count(program: &Path, step: &str, times: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([step, &times.to_string()])
        .env("GLIBC_TUNABLES", BASELINE)
        .output()
        .context("valgrind could not be started: apt-get install -y valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{step}: {text}");
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let (_, collected) = line.with_context(|| format!("{step}: callgrind said {text:?}"))?;
    Ok(collected.trim().parse()?)
}

/// What differs from what is held.
fn compared(held: &str, counts: &BTreeMap<String, f64>) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut expected = BTreeMap::new();
    for line in held.lines().filter(|line| !line.starts_with('#')) {
        let Some((step, each)) = line.split_once(' ') else { bail!("{FILE}: {line:?} is not a step") };
        expected.insert(step, each.parse::<f64>().with_context(|| format!("{FILE}: {line:?}"))?);
    }
    for (step, each) in counts {
        match expected.remove(step.as_str()) {
            None => problems.push(format!("{step} is not in {FILE}")),
            Some(held) if (each / held - 1.0).abs() > TOLERANCE => {
                let percent = 100.0 * (each / held - 1.0);
                problems.push(format!("{step} takes {each:.0} instructions, {percent:+.0} % of {held:.0}"));
            }
            Some(_) => {}
        }
    }
    problems.extend(expected.into_keys().map(|step| format!("{step} of {FILE} is not a step any more")));
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_dearer_cheaper_new_or_old_is_told() {
        let held = "# head\ndecode 100\nencode 200\ngone 5\nsame 50\n";
        let counts = [("decode", 106.0), ("encode", 180.0), ("new", 1.0), ("same", 52.0)];
        let counts = counts.map(|(step, each)| (step.to_owned(), each)).into();
        assert_eq!(
            compared(held, &counts).unwrap(),
            [
                "decode takes 106 instructions, +6 % of 100",
                "encode takes 180 instructions, -10 % of 200",
                "new is not in compose/bench/instructions.txt",
                "gone of compose/bench/instructions.txt is not a step any more"
            ]
        );
    }
}
