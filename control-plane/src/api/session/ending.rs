//! Sessions and connections are ended: one, or all of a filter.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use tbmq_proto::{
    control::{ConnectionState, Session},
    node::{EndSessions, SessionReference, node_reply::Reply, node_request, sessions_ended::Result as Ended},
};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{SessionsApi, absent, listing::Wanted};
use crate::api::{error, reach};

/// Sessions that are ended with one round of requests.
const SLICE: usize = 500;

/// Data planes that are asked at a time.
const NODES_AT_ONCE: usize = 16;

/// What became of many.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) count: u64,
    /// There was no time for all.
    pub(super) more: bool,
    pub(super) silent_nodes: Vec<String>,
}

/// A session that is not the one that the caller means.
pub(super) fn mismatch(client_id: &str) -> Status {
    let shown: String = client_id.chars().take(200).collect();
    let text = format!("client {shown} has another session by now; read it again");
    error::status(Code::Aborted, "SESSION_MISMATCH", text)
}

fn connected(client_id: &str) -> Status {
    let shown: String = client_id.chars().take(200).collect();
    let text = format!(
        "client {shown} is connected: disconnect it first (`tbmqctl session disconnect`), then its session can be \
         cleared"
    );
    error::status(Code::FailedPrecondition, "SESSION_CONNECTED", text)
}

fn not_recorded() -> Status {
    error::unavailable("the session has ended, and it is open whether that is recorded: the bus is away")
}

impl SessionsApi {
    /// Disconnects a client, if it has this session.
    pub(super) async fn disconnect(
        &self,
        client_id: &str,
        session_id: &str,
        until: Instant,
    ) -> Result<(), Status> {
        let found = self.find_all(client_id, until).await?;
        let connected = found.sessions.iter().filter(|one| one.state() == ConnectionState::Connected);
        let Some(session) = connected.clone().find(|one| one.session_id == session_id) else {
            return Err(match connected.count() {
                0 => absent(client_id, &found.answers),
                _ => mismatch(client_id),
            });
        };
        match self.end_one(session, false, until).await? {
            Ended::Ended => Ok(()),
            _ => Err(mismatch(client_id)),
        }
    }

    /// Ends the session of a client that is not connected, and what other data planes still have of it.
    pub(super) async fn clear(
        &self,
        client_id: &str,
        session_id: &str,
        until: Instant,
    ) -> Result<(), Status> {
        let found = self.find_all(client_id, until).await?;
        let Some(latest) = found.latest() else { return Err(absent(client_id, &found.answers)) };
        if found.sessions.iter().any(|one| one.state() == ConnectionState::Connected) {
            return Err(connected(client_id));
        }
        if !session_id.is_empty() && latest.session_id != session_id {
            return Err(mismatch(client_id));
        }
        if !found.answers.silent.is_empty() {
            let silent = found.answers.silent_nodes().join(", ");
            return Err(error::node_unreachable(format!(
                "the client may be connected to a data plane that did not answer: {silent}"
            )));
        }
        for session in &found.sessions {
            match self.end_one(session, true, until).await? {
                Ended::Ended | Ended::Unspecified => {}
                Ended::Connected => return Err(connected(client_id)),
                Ended::Replaced => return Err(mismatch(client_id)),
                Ended::NotRecorded => return Err(not_recorded()),
            }
        }
        Ok(())
    }

    async fn end_one(&self, session: &Session, clear: bool, until: Instant) -> Result<Ended, Status> {
        let results = self.end(&session.service_id, &[session], clear, until).await?;
        Ok(results.first().copied().unwrap_or(Ended::Unspecified))
    }

    async fn end(
        &self,
        node: &str,
        sessions: &[&Session],
        clear: bool,
        until: Instant,
    ) -> Result<Vec<Ended>, Status> {
        let reference = |session: &&Session| SessionReference {
            client_id: session.client_id.clone(),
            session_id: session.session_id.clone(),
        };
        let sessions = sessions.iter().map(reference).collect();
        let request = node_request::Request::EndSessions(EndSessions { sessions, clear });
        match reach::ask(&self.plane, node, request, until).await? {
            Reply::Ended(ended) => Ok(ended.results().collect()),
            other => Err(error::node_unreachable(format!("data plane {node} answered {other:?}"))),
        }
    }

    /// Ends all sessions of a filter, slice by slice, as long as there is time; or only counts them.
    pub(super) async fn end_all(
        &self,
        mut wanted: Wanted,
        clear: bool,
        validate_only: bool,
        until: Instant,
    ) -> Result<Tally, Status> {
        let state = if clear { ConnectionState::Disconnected } else { ConnectionState::Connected };
        if wanted.filter.states().any(|other| other != state) {
            let text = format!("only {} is known here", state.as_str_name());
            return Err(error::invalid_field("filter.states", text));
        }
        wanted.filter.states = vec![state.into()];
        self.check_node(&wanted.service_id).await?;
        let mut tally = Tally::default();
        let mut after = None;
        loop {
            let found = self.found(&wanted, after, SLICE, until.min(reach::patience())).await?;
            tally.note_silent(found.silent_nodes);
            if validate_only {
                tally.count += found.sessions.len() as u64;
            } else {
                self.end_slice(&found.sessions, clear, until, &mut tally).await;
            }
            after = found.next;
            if after.is_none() {
                return Ok(tally);
            }
            if Instant::now() >= until {
                tally.more = true;
                return Ok(tally);
            }
        }
    }

    async fn end_slice(&self, sessions: &[Session], clear: bool, until: Instant, tally: &mut Tally) {
        let mut nodes: BTreeMap<&str, Vec<&Session>> = BTreeMap::new();
        for session in sessions {
            nodes.entry(&session.service_id).or_default().push(session);
        }
        let asked = nodes.into_iter().map(|(node, sessions)| async move {
            let until = until.min(reach::patience());
            (node, self.end(node, &sessions, clear, until).await)
        });
        // Futures of their own, which name no lifetime of the closure above.
        let asked: Vec<_> = asked.collect();
        let mut asked = stream::iter(asked).buffer_unordered(NODES_AT_ONCE);
        while let Some((node, answer)) = asked.next().await {
            match answer {
                Ok(results) => {
                    let ended = results.iter().filter(|result| **result == Ended::Ended);
                    tally.count += ended.count() as u64;
                    tally.more |= results.contains(&Ended::NotRecorded);
                }
                Err(status) => {
                    tracing::debug!(node, error = status.message(), "sessions were ended in vain");
                    tally.note_silent(vec![node.to_owned()]);
                }
            }
        }
    }
}

impl Tally {
    fn note_silent(&mut self, nodes: Vec<String>) {
        for node in nodes {
            if !self.silent_nodes.contains(&node) {
                self.silent_nodes.push(node);
            }
        }
    }
}
