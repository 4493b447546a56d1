//! Streams of changes that are begun again where they ended, at whichever control plane answers.

use std::{ops::ControlFlow, time::Duration};

use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    failure::{ExitKind, Failure, UNREACHABLE_HINT},
    render::note,
};

/// A server says something every 10 s; who hears nothing for so long has lost it.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The first wait before a lost stream is begun again, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What follows a stream.
pub(crate) trait Follower {
    type Message;

    /// Begins the stream after what was taken.
    async fn begin(&mut self) -> Result<Streaming<Self::Message>, End>;

    /// Takes the next message, and says whether it was the last that is wanted.
    fn take(&mut self, message: Self::Message) -> Result<ControlFlow<()>, Failure>;

    /// What came after what was taken is not kept any more: the next stream is to begin anew.
    fn forget(&mut self);
}

/// Why a stream is over.
#[derive(Debug)]
pub(crate) enum End {
    /// It can be begun again where it ended.
    Lost(Failure),
    /// What came after its last place is not kept any more.
    Compacted,
    /// It would end so again.
    Refused(Failure),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
        let lost = match reason.as_deref() {
            Some(_) if status.code() == Code::OutOfRange => return Self::Compacted,
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

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        // A wrong address does not become right.
        if failure.kind == ExitKind::Unreachable { Self::Lost(failure) } else { Self::Refused(failure) }
    }
}

/// Follows until the follower has enough, or until the server refuses; `patience` is the longest wait for a beginning.
pub(crate) async fn follow<F: Follower>(follower: &mut F, patience: Duration) -> Result<(), Failure> {
    let mut was_heard = false;
    let mut pause = PAUSE_MIN;
    loop {
        let mut heard = false;
        let end = match stream(follower, patience, &mut heard).await {
            Ok(()) => return Ok(()),
            Err(end) => end,
        };
        was_heard |= heard;
        if heard {
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
            End::Compacted => follower.forget(),
        }
    }
}

/// Hands over what one stream brings until it is over.
async fn stream<F: Follower>(follower: &mut F, patience: Duration, heard: &mut bool) -> Result<(), End> {
    let silent = |waited: Duration| {
        End::Lost(Failure::unreachable(format!("nothing was heard for {waited:?}")).hint(UNREACHABLE_HINT))
    };
    let begun = tokio::time::timeout(patience, follower.begin()).await;
    let mut stream = begun.map_err(|_| silent(patience))??;
    loop {
        let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await;
        let message = message.map_err(|_| silent(SILENCE_MAX))??;
        let Some(message) = message else {
            return Err(End::Lost(Failure::unreachable("the server has ended it")));
        };
        *heard = true;
        if follower.take(message).map_err(End::Refused)?.is_break() {
            return Ok(());
        }
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
