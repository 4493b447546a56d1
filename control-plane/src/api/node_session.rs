//! `NodeSessionService`: data planes register, are told when a newer incarnation has replaced them, and answer what
//! this control plane asks ([`crate::commands`]).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tbmq_proto::{
    ids::ServiceId,
    node::{
        ControlMessage, Hello, NodeMessage, Superseded, Welcome, control_message, node_message,
        node_session_service_server::NodeSessionService,
    },
};
use tbmq_service::drain::Drain;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::error;
use crate::{
    commands::{Held, Outbox, REQUESTS_MAX, Remote},
    nodes::LIVE_FOR,
    plane::Plane,
    store::SessionRow,
};

/// Interval of heartbeats that nodes are asked for.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Sessions that one control plane holds at most.
const SESSIONS_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct Sessions {
    plane: Arc<Plane>,
    stopping: Drain,
    /// The newest incarnation of each node that has a session here.
    newest: Arc<Mutex<BTreeMap<String, watch::Sender<String>>>>,
}

impl Sessions {
    pub(super) fn new(plane: Arc<Plane>, stopping: Drain) -> Self {
        Self { plane, stopping, newest: Arc::default() }
    }
}

#[tonic::async_trait]
impl NodeSessionService for Sessions {
    type SessionStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let inbound = request.into_inner();
        let (outbox, stream) = mpsc::channel(REQUESTS_MAX + 8);
        let session = Session {
            plane: self.plane.clone(),
            stopping: self.stopping.clone(),
            newest: self.newest.clone(),
            outbox,
        };
        tokio::spawn(session.run(inbound));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

struct Session {
    plane: Arc<Plane>,
    stopping: Drain,
    newest: Arc<Mutex<BTreeMap<String, watch::Sender<String>>>>,
    outbox: Outbox,
}

impl Session {
    /// Lives as long as the stream; a node that stops reading is cut.
    async fn run(self, mut inbound: Streaming<NodeMessage>) {
        let stopping = self.stopping.clone();
        let result = tokio::select! {
            result = self.serve(&mut inbound) => result,
            // The node looks for another control plane.
            () = stopping.begun() => Err(Status::unavailable("the control plane is stopping")),
        };
        if let Err(status) = result {
            self.outbox.try_send(Err(status)).ok();
        }
    }

    async fn serve(&self, inbound: &mut Streaming<NodeMessage>) -> Result<(), Status> {
        let first = tokio::time::timeout(LIVE_FOR, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))?.map_err(error::readable)?;
        let Some(NodeMessage { message: Some(node_message::Message::Hello(hello)) }) = first else {
            return Err(error::invalid_field("hello", "must be the first message of a session"));
        };
        check(&hello)?;
        let mut row = SessionRow {
            service_id: hello.service_id.clone(),
            incarnation: hello.incarnation.clone(),
            replica: self.plane.service_id.to_string(),
            replica_incarnation: self.plane.identity.incarnation.clone(),
            replica_address: self.plane.advertised().to_owned(),
            version: hello.version.chars().take(64).collect(),
            addresses: hello.addresses,
            capabilities: hello.capabilities,
            seen_ms: tbmq_service::time::now_ms(),
            connections: 0,
            draining: false,
        };
        if let Some(newer) = self.plane.store.open_session(&row).await? {
            return self.supersede(newer);
        }
        let mut newest = self.enter(&row)?;
        let remote = Remote {
            service_id: row.service_id.clone(),
            incarnation: row.incarnation.clone(),
            version: row.version.clone(),
            capabilities: row.capabilities.clone(),
        };
        let held = self.plane.commands.hold(remote, self.outbox.clone());
        tracing::info!(
            node = row.service_id,
            incarnation = row.incarnation,
            version = row.version,
            "data plane registered"
        );
        let welcome = Welcome { service_id: row.replica.clone(), heartbeat_ms: HEARTBEAT.as_millis() as u32 };
        self.say(control_message::Message::Welcome(welcome))?;
        let result = self.attend(inbound, &mut row, &mut newest, &held).await;
        let is_latest = held.is_latest();
        drop(held);
        tracing::info!(node = row.service_id, incarnation = row.incarnation, "data plane's session ended");
        // The row of a session that has followed is like that of this one.
        if is_latest && let Err(error) = self.plane.store.close_session(&row).await {
            tracing::debug!(%error, "session not closed in the store");
        }
        result
    }

    async fn attend(
        &self,
        inbound: &mut Streaming<NodeMessage>,
        row: &mut SessionRow,
        newest: &mut watch::Receiver<String>,
        held: &Held<'_>,
    ) -> Result<(), Status> {
        loop {
            tokio::select! {
                message = tokio::time::timeout(LIVE_FOR, inbound.message()) => {
                    let message = message.map_err(|_| Status::deadline_exceeded("no heartbeat"))?.map_err(error::readable)?;
                    let Some(NodeMessage { message }) = message else { return Ok(()) };
                    match message {
                        Some(node_message::Message::Heartbeat(heartbeat)) => {
                            row.seen_ms = tbmq_service::time::now_ms();
                            row.connections = heartbeat.connections;
                            row.draining = heartbeat.draining;
                            if let Some(newer) = self.note(row).await {
                                return self.supersede(newer);
                            }
                        }
                        Some(node_message::Message::Reply(reply)) => held.answer(reply),
                        // A newer data plane may say more.
                        Some(node_message::Message::Hello(_)) | None => {}
                    }
                }
                changed = newest.changed() => {
                    let newer = newest.borrow().clone();
                    if changed.is_err() || newer > row.incarnation {
                        return self.supersede(newer);
                    }
                }
            }
        }
    }

    /// Keeps a heartbeat; tells of a newer incarnation that has its session elsewhere. Losing the store costs no
    /// session.
    async fn note(&self, row: &SessionRow) -> Option<String> {
        let noted = match self.plane.store.touch_session(row).await {
            Ok(Some(newer)) if newer > row.incarnation => return Some(newer),
            // The row was lost, or tells of a session that this one has followed.
            Ok(Some(_)) => self.plane.store.open_session(row).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        noted.unwrap_or_else(|error| {
            tracing::debug!(%error, "heartbeat not stored");
            None
        })
    }

    /// Takes the place of an older incarnation that has its session here.
    fn enter(&self, row: &SessionRow) -> Result<watch::Receiver<String>, Status> {
        let mut newest = self.newest.lock();
        newest.retain(|_, sender| sender.receiver_count() > 0);
        if let Some(sender) = newest.get(&row.service_id) {
            let receiver = sender.subscribe();
            sender.send_replace(row.incarnation.clone());
            return Ok(receiver);
        }
        if newest.len() >= SESSIONS_MAX {
            return Err(error::overloaded(format!("{SESSIONS_MAX} sessions are open already")));
        }
        let (sender, receiver) = watch::channel(row.incarnation.clone());
        newest.insert(row.service_id.clone(), sender);
        Ok(receiver)
    }

    fn supersede(&self, incarnation: String) -> Result<(), Status> {
        self.say(control_message::Message::Superseded(Superseded { incarnation }))
    }

    fn say(&self, message: control_message::Message) -> Result<(), Status> {
        self.outbox
            .try_send(Ok(ControlMessage { message: Some(message) }))
            .map_err(|_| Status::resource_exhausted("the node does not read"))
    }
}

fn check(hello: &Hello) -> Result<(), Status> {
    if let Err(problem) = hello.service_id.parse::<ServiceId>() {
        return Err(error::invalid_field("hello.service_id", problem.to_string()));
    }
    if Uuid::parse_str(&hello.incarnation).is_err() || hello.incarnation.len() > 64 {
        return Err(error::invalid_field("hello.incarnation", "is not a UUID"));
    }
    let bytes: usize = hello.addresses.iter().chain(&hello.capabilities).map(String::len).sum();
    if bytes > 16 << 10 {
        return Err(error::invalid_field("hello", "addresses and capabilities are too long"));
    }
    Ok(())
}
