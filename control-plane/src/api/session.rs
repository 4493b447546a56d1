//! `SessionService`: sessions of clients, as the data planes tell them at the call. A client id may have sessions at
//! several data planes at once; the one that began last counts.

mod ending;
mod listing;
mod paging;
mod subscriptions;

use std::{sync::Arc, time::Duration};

use tbmq_proto::{
    control::{
        ClearSessionRequest, ClearSessionsRequest, ClearSessionsResponse, ConnectionState,
        DisconnectSessionRequest, DisconnectSessionsRequest, DisconnectSessionsResponse,
        GetSessionCountsRequest, GetSessionRequest, ListSessionsRequest, ListSessionsResponse,
        ListSharedSubscriptionsRequest, ListSharedSubscriptionsResponse, ListSubscriptionsRequest,
        ListSubscriptionsResponse, SearchSubscriptionsRequest, SearchSubscriptionsResponse, Session,
        SessionCounts, Subscription, UpdateSubscriptionsRequest, session_service_server::SessionService,
    },
    node::{
        CountSessions, Disconnect, GetSession, SessionDetail, SessionInfo, SubscriptionInfo,
        node_reply::Reply, node_request,
    },
    wire::Role,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use self::{ending::Tally, listing::Wanted};
use super::{
    calls::shortened,
    error,
    reach::{self, Answers},
};
use crate::{access::audit, plane::Plane};

/// Bytes of a client id in MQTT.
const CLIENT_ID_BYTES_MAX: usize = 65_535;

/// Bytes of a page's texts, about: well below what gRPC clients take as one message (4 MiB).
const PAGE_BYTES_MAX: usize = 2 << 20;

/// How long a call may take that ends many sessions, unless the caller waits less long.
const MANY_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct SessionsApi {
    plane: Arc<Plane>,
}

/// What data planes have of one client.
struct Found {
    sessions: Vec<Session>,
    /// Of each of them.
    subscriptions: Vec<Vec<SubscriptionInfo>>,
    answers: Answers,
}

impl Found {
    /// Which of them began last.
    fn latest_index(&self) -> Option<usize> {
        let time = |index: &usize| self.sessions[*index].connect_time.map(|time| (time.seconds, time.nanos));
        (0..self.sessions.len()).max_by_key(time)
    }

    fn latest(&self) -> Option<&Session> {
        self.latest_index().map(|index| &self.sessions[index])
    }
}

impl SessionsApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }

    /// All sessions of a client.
    async fn find_all(&self, client_id: &str, until: Instant) -> Result<Found, Status> {
        check(client_id)?;
        let request = || node_request::Request::GetSession(GetSession { client_id: client_id.to_owned() });
        let mut answers = reach::ask_all(&self.plane, None, request, until).await?;
        let (mut sessions, mut subscriptions) = (Vec::new(), Vec::new());
        for (node, reply) in &mut answers.replies {
            if let Reply::Session(SessionDetail { session, subscriptions: all }) = reply
                && let Some(info) = session.take()
            {
                sessions.push(to_session(node, info));
                subscriptions.push(std::mem::take(all));
            }
        }
        Ok(Found { sessions, subscriptions, answers })
    }

    /// The session of a client that began last.
    async fn find(
        &self,
        client_id: &str,
        until: Instant,
    ) -> Result<(Session, Vec<SubscriptionInfo>), Status> {
        let mut found = self.find_all(client_id, until).await?;
        let latest = found.latest_index().ok_or_else(|| absent(client_id, &found.answers))?;
        Ok((found.sessions.swap_remove(latest), found.subscriptions.swap_remove(latest)))
    }

    /// Asks all data planes, or the one that is named.
    async fn ask_some(
        &self,
        service_id: &str,
        request: impl Fn() -> node_request::Request,
        until: Instant,
    ) -> Result<Answers, Status> {
        let only = Some(service_id).filter(|id| !id.is_empty());
        let mut answers = reach::ask_all(&self.plane, only, request, until).await?;
        if let Some(only) = only
            && answers.replies.is_empty()
            && answers.silent.is_empty()
        {
            // It is known, and neither lives nor has a session.
            let status = error::node_unreachable(format!("data plane {only} is not live"));
            answers.silent.insert(only.to_owned(), status);
        }
        Ok(answers)
    }

    /// Refuses what no data plane can be called.
    async fn check_node(&self, service_id: &str) -> Result<(), Status> {
        if service_id.is_empty() {
            return Ok(());
        }
        match self.plane.nodes.get(service_id).map(|node| node.applied.role()) {
            Some(Role::DataPlane) => Ok(()),
            Some(role) => {
                let text = format!("{service_id} is no data plane but {}", super::node::role_name(role));
                Err(error::invalid_field("service_id", text))
            }
            None if self.plane.store.session(service_id).await?.is_some() => Ok(()),
            None => Err(error::absent("tbmq.control.v1.Node", service_id)),
        }
    }
}

#[tonic::async_trait]
impl SessionService for SessionsApi {
    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let until = reach::deadline(request.metadata());
        self.list(request.into_inner(), until).await.map(Response::new)
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<Session>, Status> {
        let until = reach::deadline(request.metadata());
        let (session, _) = self.find(&request.get_ref().client_id, until).await?;
        Ok(Response::new(session))
    }

    async fn get_session_counts(
        &self,
        request: Request<GetSessionCountsRequest>,
    ) -> Result<Response<SessionCounts>, Status> {
        let until = reach::deadline(request.metadata());
        let ask = || node_request::Request::CountSessions(CountSessions {});
        let answers = reach::ask_all(&self.plane, None, ask, until).await?;
        let mut counts = SessionCounts { silent_nodes: answers.silent_nodes(), ..SessionCounts::default() };
        for reply in answers.replies.into_values() {
            let Reply::Tally(tally) = reply else { continue };
            counts.connected += tally.connected;
            counts.disconnected += tally.disconnected;
            counts.total += tally.connected + tally.disconnected;
            counts.devices += tally.devices;
            counts.applications += tally.applications;
        }
        Ok(Response::new(counts))
    }

    async fn disconnect_session(
        &self,
        request: Request<DisconnectSessionRequest>,
    ) -> Result<Response<()>, Status> {
        let until = reach::deadline(request.metadata());
        let DisconnectSessionRequest { client_id, session_id } = request.into_inner();
        check(&client_id)?;
        note_client(&client_id);
        if !session_id.is_empty() {
            self.disconnect(&client_id, &session_id, until).await?;
            return Ok(Response::new(()));
        }
        let ask = || node_request::Request::Disconnect(Disconnect { client_id: client_id.clone() });
        let answers = reach::ask_all(&self.plane, None, ask, until).await?;
        let is_found = |reply: &Reply| matches!(reply, Reply::Disconnected(done) if done.found);
        if answers.replies.values().any(is_found) {
            Ok(Response::new(()))
        } else {
            Err(absent(&client_id, &answers))
        }
    }

    async fn disconnect_sessions(
        &self,
        request: Request<DisconnectSessionsRequest>,
    ) -> Result<Response<DisconnectSessionsResponse>, Status> {
        let until = Instant::now() + shortened(request.metadata(), MANY_PATIENCE);
        let DisconnectSessionsRequest { filter, text_search, service_id, validate_only } =
            request.into_inner();
        audit::note_resource("sessions/-");
        let wanted = Wanted::new(filter, text_search, service_id)?;
        let Tally { count, more, silent_nodes } = self.end_all(wanted, false, validate_only, until).await?;
        Ok(Response::new(DisconnectSessionsResponse { count, more, silent_nodes }))
    }

    async fn clear_session(&self, request: Request<ClearSessionRequest>) -> Result<Response<()>, Status> {
        let until = reach::deadline(request.metadata());
        let ClearSessionRequest { client_id, session_id } = request.into_inner();
        note_client(&client_id);
        self.clear(&client_id, &session_id, until).await?;
        Ok(Response::new(()))
    }

    async fn clear_sessions(
        &self,
        request: Request<ClearSessionsRequest>,
    ) -> Result<Response<ClearSessionsResponse>, Status> {
        let until = Instant::now() + shortened(request.metadata(), MANY_PATIENCE);
        let ClearSessionsRequest { filter, text_search, service_id, validate_only } = request.into_inner();
        audit::note_resource("sessions/-");
        let wanted = Wanted::new(filter, text_search, service_id)?;
        let Tally { count, more, silent_nodes } = self.end_all(wanted, true, validate_only, until).await?;
        Ok(Response::new(ClearSessionsResponse { count, more, silent_nodes }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let until = reach::deadline(request.metadata());
        let (_, subscriptions) = self.find(&request.get_ref().client_id, until).await?;
        let subscriptions = subscriptions.into_iter().map(to_subscription).collect();
        Ok(Response::new(ListSubscriptionsResponse { subscriptions }))
    }

    async fn search_subscriptions(
        &self,
        request: Request<SearchSubscriptionsRequest>,
    ) -> Result<Response<SearchSubscriptionsResponse>, Status> {
        let until = reach::deadline(request.metadata());
        self.search_all(request.into_inner(), until).await.map(Response::new)
    }

    async fn update_subscriptions(
        &self,
        request: Request<UpdateSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let until = reach::deadline(request.metadata());
        let request = request.into_inner();
        note_client(&request.client_id);
        let subscriptions = self.update(request, until).await?;
        Ok(Response::new(ListSubscriptionsResponse { subscriptions }))
    }

    async fn list_shared_subscriptions(
        &self,
        request: Request<ListSharedSubscriptionsRequest>,
    ) -> Result<Response<ListSharedSubscriptionsResponse>, Status> {
        let until = reach::deadline(request.metadata());
        self.list_shared(request.into_inner(), until).await.map(Response::new)
    }
}

fn note_client(client_id: &str) {
    let shown: String = client_id.chars().take(200).collect();
    audit::note_resource(format!("sessions/{shown}"));
}

fn check(client_id: &str) -> Result<(), Status> {
    let problem = match client_id.len() {
        0 => "is missing".to_owned(),
        len if len > CLIENT_ID_BYTES_MAX => "is longer than a client id can be".to_owned(),
        _ => return Ok(()),
    };
    Err(error::invalid_field("client_id", problem))
}

/// No data plane that answered has the client. Those that did not, or have not reported yet, may have it.
fn absent(client_id: &str, answers: &Answers) -> Status {
    let shown: String = client_id.chars().take(200).collect();
    let Some((_, reason)) = answers.silent.first_key_value() else {
        if answers.replies.is_empty() {
            let text = format!("no data plane is known that could tell whether it has a client {shown}");
            return error::node_unreachable(text);
        }
        return error::absent("tbmq.control.v1.Session", &shown);
    };
    let silent = answers.silent_nodes().join(", ");
    let text = format!(
        "no data plane that answered has a client {shown}, and these did not answer: {silent}; {}",
        reason.message()
    );
    error::node_unreachable(text)
}

fn state(disconnected: bool) -> ConnectionState {
    if disconnected { ConnectionState::Disconnected } else { ConnectionState::Connected }
}

fn to_session(node: &str, info: SessionInfo) -> Session {
    Session {
        client_id: info.client_id,
        service_id: node.to_owned(),
        username: info.username,
        protocol_version: info.protocol_version,
        clean_start: info.clean_start,
        keep_alive_seconds: info.keep_alive_seconds,
        peer_address: info.peer_address,
        connect_time: info.connect_time,
        subscription_count: info.subscription_count,
        client_type: info.client_type,
        authentication: info.authentication,
        state: state(info.disconnected).into(),
        session_id: info.session_id,
        disconnect_time: info.disconnect_time,
        persistent: info.persistent,
        details: info.details,
    }
}

fn to_subscription(info: SubscriptionInfo) -> Subscription {
    Subscription {
        filter: info.filter,
        qos: info.qos,
        share_name: info.share_name,
        no_local: info.no_local,
        retain_as_published: info.retain_as_published,
        retain_handling: info.retain_handling,
        identifier: info.identifier,
    }
}
