//! Looks once, or again and again.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use crate::{
    duration,
    failure::Failure,
    render::{Format, Output, note},
    screen::Screen,
};

/// The least time between two looks: answers are a second old at most, and Kafka is not asked more often.
const INTERVAL_MIN: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Watch {
    /// Look again and again, until it is interrupted
    #[arg(long)]
    watch: bool,
    /// Time between two looks, 200ms or more
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "2s", requires = "watch")]
    interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < INTERVAL_MIN {
        return Err(format!("it is at least {INTERVAL_MIN:?}"));
    }
    Ok(interval)
}

/// What one look has seen, in all forms.
pub(super) struct Block<V> {
    /// For people, above the table of a look that is not the only one.
    pub(super) head: String,
    pub(super) table: String,
    pub(super) names: Vec<String>,
    pub(super) view: V,
    /// To be said once.
    pub(super) note: Option<String>,
}

/// Prints what is seen: once; or on a screen, or block after block, until the user interrupts it.
pub(super) async fn run<V: Serialize>(
    watch: Watch,
    output: Output,
    mut look: impl AsyncFnMut() -> Result<Block<V>, Failure>,
) -> Result<(), Failure> {
    if !watch.watch {
        let Block { table, names, view, note: told, .. } = look().await?;
        output.print_named(|| table, || names, || view)?;
        if let Some(told) = told {
            note(&told);
        }
        return Ok(());
    }
    let is_for_people = matches!(output.format, Format::Table | Format::Wide);
    let watching = async {
        if is_for_people && io::stdout().is_terminal() {
            live(watch.interval, look).await
        } else {
            blocks(watch.interval, output, look).await
        }
    };
    tokio::select! {
        ended = watching => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn ticks(interval: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    ticks
}

async fn live<V>(
    interval: Duration,
    mut look: impl AsyncFnMut() -> Result<Block<V>, Failure>,
) -> Result<(), Failure> {
    // The first look tells at once what is wrong, outside of the screen that is gone afterwards.
    let mut block = look().await?;
    let mut screen = Screen::enter()?;
    let mut trouble = String::new();
    let mut ticks = ticks(interval);
    loop {
        let more = block.note.as_deref().unwrap_or_default();
        let head = [block.head.as_str(), more, trouble.as_str()];
        screen.draw(head.into_iter().filter(|line| !line.is_empty()), &block.table)?;
        ticks.tick().await;
        match look().await {
            Ok(now) => {
                block = now;
                trouble.clear();
            }
            Err(failure) if failure.may_pass() => trouble = failure.message,
            Err(failure) => return Err(failure),
        }
    }
}

async fn blocks<V: Serialize>(
    interval: Duration,
    output: Output,
    mut look: impl AsyncFnMut() -> Result<Block<V>, Failure>,
) -> Result<(), Failure> {
    let mut ticks = ticks(interval);
    let mut is_first = true;
    loop {
        match look().await {
            Ok(Block { head, table, names, view, .. }) => output.print_item(
                || [head.as_str(), if head.is_empty() { "" } else { "\n" }, &table, "\n"].concat(),
                || (!names.is_empty()).then(|| names.join("\n")),
                || Some(view),
            )?,
            Err(failure) if failure.may_pass() && !is_first => note(&failure.message),
            Err(failure) => return Err(failure),
        }
        is_first = false;
        ticks.tick().await;
    }
}
