//! What integrations deliver to fails, for a short time.

use std::time::Duration;

use anyhow::Result;
use tbmq_e2e::sinks::{Options, run};
use tbmq_harness::ready;

/// Tests run beside each other on few processors: times are for people to read here, and generous to judge.
const GENEROUS: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn sinks_that_are_down_silent_refusing_or_cut_off_lose_nothing_and_are_shown_as_stalled() -> Result<()>
{
    let logs = tempfile::tempdir()?;
    let mut options = Options::new(logs.path().to_owned());
    if !ready(
        "sinks_that_are_down_silent_refusing_or_cut_off_lose_nothing_and_are_shown_as_stalled",
        options.needs(),
    ) {
        return Ok(());
    }
    options.lasting = Duration::from_secs(8);
    (options.stalled_within, options.recovered_within) = (GENEROUS, GENEROUS);
    let report = run::run(&options, |outcome| println!("{outcome}")).await?;
    assert_eq!(report.outcomes.len(), options.kinds.len() * options.faults.len());
    let unclean = report.outcomes.iter().filter(|one| !one.is_clean()).map(ToString::to_string);
    assert_eq!(unclean.collect::<Vec<_>>(), Vec::<String>::new());
    Ok(())
}
