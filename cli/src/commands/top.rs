//! `tbmqctl top`.

mod rates;

use std::{
    io::{self, IsTerminal},
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use tbmq_proto::control::{
    GetIntegrationStatsRequest, Integration, IntegrationStats, IntegrationView,
    integration_service_client::IntegrationServiceClient,
};
use tokio::task::JoinSet;
use tonic::{Code, transport::Channel};

use crate::{
    client::{Target, Wanted},
    duration,
    failure::{ExitKind, Failure},
    progress,
    render::{Format, Output, json, note, table},
    screen::Screen,
};

pub(crate) use rates::Row;
use rates::Samples;

/// Integrations that are looked at before the greatest are chosen: by lag, which comes with the list, and by rate, for which
/// each is asked.
const BY_LAG_MAX: usize = 10_000;
const BY_RATE_MAX: usize = 200;

/// Integrations asked for their counters at the same time.
const CALLS_MAX: usize = 8;

/// The least time between two looks.
const INTERVAL_MIN: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(
    after_help = "Where stdout is not a terminal, and with -o json, yaml or name, it looks twice and prints once.\n\n\
                        Examples:\n  tbmqctl top --sort written\n  tbmqctl top --once --filter 'labels.site = \"north\"'"
)]
pub(crate) struct Arguments {
    /// Which come first: the greatest, or by name
    #[arg(long, value_enum, default_value_t = Sort::Lag)]
    sort: Sort,
    /// Time between two looks, 200ms or more
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "2s")]
    interval: Duration,
    /// Look twice, print what happened in between, and end
    #[arg(long)]
    once: bool,
    /// Only those for which this holds, as for `tbmqctl integration list`
    #[arg(long, value_name = "FILTER")]
    filter: Option<String>,
    /// Show at most so many
    #[arg(long, value_name = "N", default_value = "30")]
    limit: NonZeroUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Messages that wait
    Lag,
    /// Messages written per second
    Written,
    /// Messages delivered per second
    Delivered,
    /// Messages given up per second
    Failed,
    /// The name
    Name,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < INTERVAL_MIN {
        return Err(format!("it is at least {INTERVAL_MIN:?}"));
    }
    Ok(interval)
}

pub(crate) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let is_for_people = matches!(output.format, Format::Table | Format::Wide);
    let top = Top {
        client: target.integrations().await?,
        target,
        samples: Samples::default(),
        more: false,
        arguments,
    };
    if top.arguments.once || !is_for_people || !io::stdout().is_terminal() {
        return top.once(output).await;
    }
    tokio::select! {
        ended = top.live(output) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

struct Top<'a> {
    arguments: Arguments,
    target: &'a Target,
    client: IntegrationServiceClient<Channel>,
    samples: Samples,
    /// There are integrations that were not looked at.
    more: bool,
}

impl Top<'_> {
    async fn once(mut self, output: Output) -> Result<(), Failure> {
        let interval = self.arguments.interval;
        let looks = async {
            self.look().await?;
            tokio::time::sleep(interval).await;
            self.look().await
        };
        let rows = progress::during("looking twice", looks).await?;
        output.print_named(
            || table::top(&rows, output.look),
            || rows.iter().map(|row| row.name.clone()).collect(),
            || rows.iter().map(json::Top::from).collect::<Vec<_>>(),
        )?;
        if self.more {
            note(NARROWER);
        }
        Ok(())
    }

    async fn live(mut self, output: Output) -> Result<(), Failure> {
        let mut ticks = tokio::time::interval(self.arguments.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first look tells at once what is wrong, outside of the screen that is gone afterwards.
        let mut rows = self.look().await?;
        let mut screen = Screen::enter()?;
        let mut trouble = String::new();
        ticks.reset();
        loop {
            let summary = rates::summary(&rows, self.arguments.interval);
            let more = if self.more { NARROWER } else { "" };
            let head = [summary.as_str(), more, trouble.as_str()];
            screen.draw(head.into_iter().filter(|line| !line.is_empty()), &table::top(&rows, output.look))?;
            ticks.tick().await;
            match self.look().await {
                Ok(now) => {
                    rows = now;
                    trouble.clear();
                }
                Err(failure) if failure.kind == ExitKind::Unreachable => trouble = failure.message,
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Looks at all that may be among the greatest, and gives those that are.
    async fn look(&mut self) -> Result<Vec<Row>, Failure> {
        let by_rate = matches!(self.arguments.sort, Sort::Written | Sort::Delivered | Sort::Failed);
        let wanted = Wanted {
            filter: self.arguments.filter.clone().unwrap_or_default(),
            view: IntegrationView::Full,
            ..Wanted::default()
        };
        let max = match self.arguments.sort {
            Sort::Name => self.arguments.limit.get(),
            Sort::Lag => BY_LAG_MAX,
            _ => BY_RATE_MAX,
        };
        let listed = self.target.list_wanted(&mut self.client, &wanted, max).await?;
        self.more = listed.more && self.arguments.sort != Sort::Name;
        let mut candidates = listed.items;
        if !by_rate {
            rates::choose(&mut candidates, self.arguments.sort, self.arguments.limit.get());
        }
        let stats = self.stats(&candidates).await?;
        let mut rows = self.samples.rows(candidates, stats);
        rates::sort(&mut rows, self.arguments.sort);
        rows.truncate(self.arguments.limit.get());
        Ok(rows)
    }

    /// The counters of each; of one that was deleted meanwhile there are none.
    async fn stats(&self, all: &[Integration]) -> Result<Vec<(IntegrationStats, Instant)>, Failure> {
        let mut found = Vec::with_capacity(all.len());
        for some in all.chunks(CALLS_MAX) {
            let mut calls = JoinSet::new();
            for one in some {
                let mut client = self.client.clone();
                let request = GetIntegrationStatsRequest { name: one.name.clone() };
                let request = self.target.request(request);
                calls.spawn(async move { (client.get_integration_stats(request).await, Instant::now()) });
            }
            while let Some(call) = calls.join_next().await {
                match call.map_err(|error| Failure::bug(error.to_string()))? {
                    (Ok(stats), at) => found.push((stats.into_inner(), at)),
                    (Err(status), _) if status.code() == Code::NotFound => {}
                    (Err(status), _) => return Err(status.into()),
                }
            }
        }
        Ok(found)
    }
}

const NARROWER: &str = "there are more integrations than were looked at; --filter chooses among them";
