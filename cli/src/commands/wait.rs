//! `tbmqctl wait`.

use std::{ops::ControlFlow, str::FromStr, time::Duration};

use clap::Args;
use tbmq_proto::control::{
    IntegrationStatus, WatchIntegrationsRequest, WatchIntegrationsResponse, integration_status::Phase,
    watch_integrations_response::Type,
};
use tokio::time::Instant;
use tonic::Streaming;

use crate::{
    client::Target,
    failure::Failure,
    following::{End, Follower, follow},
    progress,
    render::{json, note},
};

#[derive(Debug, Args)]
#[command(
    after_help = "It watches and does not ask again and again. Exit code 5: it was not so within --timeout.\n\n\
                  Examples:\n  tbmqctl wait demo --for=phase=ACTIVE --timeout 2m\n  tbmqctl wait demo --for=delete"
)]
pub(crate) struct Arguments {
    /// Names or uids
    #[arg(required = true, value_name = "INTEGRATION")]
    integrations: Vec<String>,
    /// What to wait for: phase=DISABLED, phase=PENDING, phase=ACTIVE, phase=FAILED, or delete
    #[arg(long, value_name = "CONDITION", default_value = "phase=ACTIVE")]
    r#for: Condition,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Phase(Phase),
    Deleted,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("delete") {
            return Ok(Self::Deleted);
        }
        let phase = text.strip_prefix("phase=").map(str::to_ascii_uppercase);
        match phase.as_deref() {
            Some("DISABLED") => Ok(Self::Phase(Phase::Disabled)),
            Some("PENDING") => Ok(Self::Phase(Phase::Pending)),
            Some("ACTIVE") => Ok(Self::Phase(Phase::Active)),
            Some("FAILED") => Ok(Self::Phase(Phase::Failed)),
            _ => Err("it is phase=DISABLED, phase=PENDING, phase=ACTIVE, phase=FAILED or delete".to_owned()),
        }
    }
}

pub(crate) async fn run(arguments: Arguments, target: &Target) -> Result<(), Failure> {
    let deadline = Instant::now() + target.timeout;
    let condition = arguments.r#for;
    for given in &arguments.integrations {
        let found = target.find_name(&mut target.integrations().await?, given).await?;
        let name = match (found, condition) {
            (Some(name), _) => name,
            (None, Condition::Deleted) => {
                note(&format!("{given} does not exist"));
                continue;
            }
            (None, Condition::Phase(_)) => {
                return Err(Failure::refused(format!("there is no integration named {given:?}"))
                    .hint("`tbmqctl integration list` shows what exists"));
            }
        };
        let mut wait = Wait { target, name, condition, after: None, exists: false, last: None };
        let what = format!("waiting until {given} is {}", condition.word());
        // Half a second more for the server's own time to answer: what is told then is better than a lost call.
        let followed = follow(&mut wait, target.timeout + Duration::from_millis(500));
        let followed = tokio::time::timeout_at(deadline, progress::during(&what, followed)).await;
        match followed {
            Ok(ended) => ended?,
            Err(_) => return Err(wait.too_late(given)),
        }
        note(&format!("{given} is {}", condition.word()));
    }
    Ok(())
}

impl Condition {
    /// What an integration is when it holds.
    fn word(self) -> &'static str {
        match self {
            Self::Phase(phase) => phase.as_str_name().trim_start_matches("PHASE_"),
            Self::Deleted => "deleted",
        }
    }
}

struct Wait<'a> {
    target: &'a Target,
    name: String,
    condition: Condition,
    after: Option<u64>,
    /// Whether it was seen.
    exists: bool,
    /// What was told last.
    last: Option<IntegrationStatus>,
}

impl Follower for Wait<'_> {
    type Message = WatchIntegrationsResponse;

    async fn begin(&mut self) -> Result<Streaming<WatchIntegrationsResponse>, End> {
        let request = WatchIntegrationsRequest { after_revision: self.after, name: self.name.clone() };
        let mut client = self.target.integrations().await?;
        Ok(client.watch_integrations(self.target.endless_request(request)).await?.into_inner())
    }

    fn take(&mut self, message: WatchIntegrationsResponse) -> Result<ControlFlow<()>, Failure> {
        if message.revision > 0 {
            self.after = Some(message.revision);
        }
        let is_gone = match message.r#type() {
            Type::Deleted => true,
            // The first bookmark ends the list of what exists.
            Type::Bookmark => !self.exists,
            _ => {
                self.exists = true;
                false
            }
        };
        match self.condition {
            Condition::Deleted if is_gone => return Ok(ControlFlow::Break(())),
            Condition::Phase(_) if is_gone => {
                let text = if self.exists { "was deleted meanwhile" } else { "does not exist" };
                return Err(Failure::refused(format!("{} {text}", self.name))
                    .hint("`tbmqctl integration list` shows what exists"));
            }
            _ => {}
        }
        if let Some(one) = message.integration {
            let status = one.status.unwrap_or_default();
            let holds = self.condition == Condition::Phase(status.phase());
            self.last = Some(status);
            if holds {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn forget(&mut self) {
        self.after = None;
        self.exists = false;
    }
}

impl Wait<'_> {
    fn too_late(&self, given: &str) -> Failure {
        let how = self.last.as_ref().map_or_else(String::new, |last| {
            let known = [json::phase(last), &last.reason, &last.error];
            let known: Vec<_> = known.into_iter().filter(|text| !text.is_empty()).collect();
            format!(": it is {}", known.join(", "))
        });
        let text = format!("{given} was not {} within {:?}{how}", self.condition.word(), self.target.timeout);
        let hint = match self.condition {
            Condition::Phase(_) => {
                format!("`tbmqctl event list --integration {given}` shows what happened to it")
            }
            Condition::Deleted => format!("`tbmqctl integration delete {given}` deletes it"),
        };
        Failure::timed_out(text).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_a_phase_or_the_end() {
        assert_eq!("phase=active".parse(), Ok(Condition::Phase(Phase::Active)));
        assert_eq!("delete".parse(), Ok(Condition::Deleted));
        for wrong in ["", "phase", "phase=", "phase=STALLED", "ACTIVE"] {
            assert!(wrong.parse::<Condition>().is_err(), "{wrong}");
        }
    }
}
