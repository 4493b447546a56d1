//! `tbmqctl integration watch`.

use std::{collections::HashMap, time::Duration};

use clap::Args;
use tbmq_proto::control::{
    WatchIntegrationsRequest, WatchIntegrationsResponse, watch_integrations_response::Type,
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    client::Target,
    failure::{ExitKind, Failure, UNREACHABLE_HINT},
    render::{Output, json as view, note, table},
};

/// A server says something every 10 s; who hears nothing for so long has lost it.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The first wait before a lost watch is begun again, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name or uid; all integrations when absent
    integration: Option<String>,
    /// Show what has changed after this revision instead of all that exists
    #[arg(long, value_name = "N")]
    after_revision: Option<u64>,
}

/// Why a stream is over.
enum End {
    /// It can be begun again where it ended.
    Lost(Failure),
    /// What came after the last revision is not kept any more.
    Compacted,
    /// It would end so again.
    Refused(Failure),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
        let lost = match reason.as_deref() {
            Some("REVISION_COMPACTED") => return Self::Compacted,
            Some(reason) => {
                matches!(reason, "SLOW_WATCHER" | "LIMIT_REACHED" | "OVERLOADED" | "DEPENDENCY_UNAVAILABLE")
            }
            None => !matches!(
                status.code(),
                Code::Unimplemented | Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied
            ),
        };
        let failure = Failure::from(status);
        if lost { Self::Lost(failure) } else { Self::Refused(failure) }
    }
}

pub(super) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let name = match &arguments.integration {
        Some(given) => target.name_of(&mut target.integrations().await?, given).await?,
        None => String::new(),
    };
    let watch = Watch {
        target,
        name,
        output,
        after: arguments.after_revision,
        heard: false,
        titled: false,
        names: HashMap::new(),
    };
    tokio::select! {
        ended = watch.run() => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

struct Watch<'a> {
    target: &'a Target,
    /// Empty: all.
    name: String,
    output: Output,
    /// Where to resume; `None`: with a list of what exists.
    after: Option<u64>,
    /// Whether the server has said something since the watch was begun last.
    heard: bool,
    /// Whether the columns have their names.
    titled: bool,
    /// Display names by uid, for what is deleted.
    names: HashMap<String, String>,
}

impl Watch<'_> {
    async fn run(mut self) -> Result<(), Failure> {
        let mut was_heard = false;
        let mut pause = PAUSE_MIN;
        loop {
            let Err(end) = self.stream().await;
            was_heard |= self.heard;
            if std::mem::take(&mut self.heard) {
                pause = PAUSE_MIN;
            }
            match end {
                End::Refused(failure) => return Err(failure),
                // As with other commands, a server that is not there at all is told at once.
                End::Lost(failure) if !was_heard => return Err(failure),
                End::Lost(failure) => {
                    let wait = jittered(pause);
                    note(&format!("the watch was lost: {}; resuming in {wait:.1?}", failure.message));
                    tokio::time::sleep(wait).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                End::Compacted => {
                    note("the changes since then are not kept any more; listing what exists");
                    self.after = None;
                    self.names.clear();
                }
            }
        }
    }

    /// Shows what one stream brings until it is over.
    async fn stream(&mut self) -> Result<std::convert::Infallible, End> {
        let request = WatchIntegrationsRequest { after_revision: self.after, name: self.name.clone() };
        let begin = async {
            let mut client = self.target.integrations().await.map_err(|failure| {
                // A wrong address does not become right.
                if failure.kind == ExitKind::Unreachable { End::Lost(failure) } else { End::Refused(failure) }
            })?;
            // Without a deadline: it would be that of the whole stream.
            Ok::<_, End>(client.watch_integrations(Request::new(request)).await?.into_inner())
        };
        let silent = |waited: Duration| {
            End::Lost(
                Failure::unreachable(format!("nothing was heard for {waited:?}")).hint(UNREACHABLE_HINT),
            )
        };
        let patience = self.target.timeout;
        let mut stream = tokio::time::timeout(patience, begin).await.map_err(|_| silent(patience))??;
        loop {
            let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await;
            let message = message.map_err(|_| silent(SILENCE_MAX))??;
            let Some(message) = message else {
                return Err(End::Lost(Failure::unreachable("the server has ended it")));
            };
            self.heard = true;
            self.show(&message).map_err(End::Refused)?;
            // A list that is not complete can't be resumed.
            if message.revision > 0 {
                self.after = Some(message.revision);
            }
        }
    }

    fn show(&mut self, message: &WatchIntegrationsResponse) -> Result<(), Failure> {
        if !std::mem::replace(&mut self.titled, true) {
            self.output.print_item(table::change_header, || None::<()>)?;
        }
        let mut shown = message.clone();
        if let Some(one) = &mut shown.integration {
            if message.r#type() == Type::Deleted {
                one.display_name = self.names.remove(&one.uid).unwrap_or_default();
            } else {
                self.names.insert(one.uid.clone(), one.display_name.clone());
            }
        }
        self.output.print_item(|| table::change(&shown), || Some(view::Change::from(message)))
    }
}

/// Between half of a pause and all of it, so that those who were cut together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = Uuid::new_v4().as_u128() as u32;
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_within_their_bounds() {
        let pauses: Vec<Duration> = (0..20).map(|_| jittered(PAUSE_MAX)).collect();
        assert!(pauses.iter().all(|pause| (PAUSE_MAX / 2..=PAUSE_MAX).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
