//! `SessionService`: connected clients, as the data planes tell them at the call. A client id may be connected to
//! several data planes at once.

use std::{collections::BTreeMap, sync::Arc};

use tbmq_proto::{
    control::{
        DisconnectSessionRequest, GetSessionRequest, ListSessionsRequest, ListSessionsResponse,
        ListSubscriptionsRequest, ListSubscriptionsResponse, Session, Subscription,
        session_service_server::SessionService,
    },
    node::{
        Disconnect, GetSession, ListSessions, SessionDetail, SessionInfo, SessionList, SubscriptionInfo,
        node_reply::Reply, node_request,
    },
    wire::Role,
};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    error, page,
    reach::{self, Answers},
};
use crate::plane::Plane;

/// Bytes of a client id in MQTT.
const CLIENT_ID_BYTES_MAX: usize = 65_535;

/// Bytes of a page's client ids and user names, about: well below what gRPC clients take as one message (4 MiB).
const PAGE_BYTES_MAX: usize = 2 << 20;

#[derive(Debug)]
pub(super) struct SessionsApi {
    plane: Arc<Plane>,
}

impl SessionsApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }

    /// The session of a client, at the data plane to which it has connected last.
    async fn find(
        &self,
        metadata: &MetadataMap,
        client_id: &str,
    ) -> Result<(Session, Vec<SubscriptionInfo>), Status> {
        let until = reach::deadline(metadata);
        check(client_id)?;
        let request = || node_request::Request::GetSession(GetSession { client_id: client_id.to_owned() });
        let answers = reach::ask_all(&self.plane, None, request, until).await?;
        let found = answers.replies.iter().filter_map(|(node, reply)| match reply {
            Reply::Session(SessionDetail { session: Some(info), subscriptions }) => {
                Some((to_session(node, info.clone()), subscriptions.clone()))
            }
            _ => None,
        });
        let time = |session: &Session| session.connect_time.map(|time| (time.seconds, time.nanos));
        found.max_by_key(|(session, _)| time(session)).ok_or_else(|| absent(client_id, &answers))
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
        let wanted = request.into_inner();
        let size = page::size(wanted.page_size)? as usize;
        if wanted.text_search.len() > CLIENT_ID_BYTES_MAX {
            return Err(error::invalid_field("text_search", "is longer than a client id can be"));
        }
        let question = format!("sessions {:?} {:?}", wanted.service_id, wanted.text_search);
        let after: String = page::place(&wanted.page_token, &question)?.unwrap_or_default();
        self.check_node(&wanted.service_id).await?;
        let ask = || {
            node_request::Request::ListSessions(ListSessions {
                after: after.clone(),
                text_search: wanted.text_search.clone(),
                limit: size as u32,
            })
        };
        let only = Some(wanted.service_id.as_str()).filter(|id| !id.is_empty());
        let mut answers = reach::ask_all(&self.plane, only, ask, until).await?;
        if let Some(only) = only
            && answers.replies.is_empty()
            && answers.silent.is_empty()
        {
            // It is known, and neither lives nor has a session.
            let status = error::node_unreachable(format!("data plane {only} is not live"));
            answers.silent.insert(only.to_owned(), status);
        }
        let silent_nodes = answers.silent_nodes();
        let lists = answers.replies.into_iter().filter_map(|(node, reply)| match reply {
            Reply::Sessions(list) => Some((node, list)),
            _ => None,
        });
        let (sessions, more) = merge(lists.collect(), size);
        let next_page_token = match sessions.last() {
            Some(last) if more => page::token(&last.client_id, &question),
            _ => String::new(),
        };
        Ok(Response::new(ListSessionsResponse { sessions, next_page_token, silent_nodes }))
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<Session>, Status> {
        let (session, _) = self.find(request.metadata(), &request.get_ref().client_id).await?;
        Ok(Response::new(session))
    }

    async fn disconnect_session(
        &self,
        request: Request<DisconnectSessionRequest>,
    ) -> Result<Response<()>, Status> {
        let until = reach::deadline(request.metadata());
        let client_id = request.into_inner().client_id;
        check(&client_id)?;
        let ask = || node_request::Request::Disconnect(Disconnect { client_id: client_id.clone() });
        let answers = reach::ask_all(&self.plane, None, ask, until).await?;
        let is_found = |reply: &Reply| matches!(reply, Reply::Disconnected(done) if done.found);
        if answers.replies.values().any(is_found) {
            Ok(Response::new(()))
        } else {
            Err(absent(&client_id, &answers))
        }
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let (_, subscriptions) = self.find(request.metadata(), &request.get_ref().client_id).await?;
        let subscriptions = subscriptions.into_iter().map(to_subscription).collect();
        Ok(Response::new(ListSubscriptionsResponse { subscriptions }))
    }
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

/// One page of what each data plane told in the order of client ids, and whether there is more. The sessions of a
/// client are not parted, so that a page begins after a client id.
fn merge(lists: Vec<(String, SessionList)>, size: usize) -> (Vec<Session>, bool) {
    // Beyond the end of a list that goes on, nothing is known.
    let horizon = lists
        .iter()
        .filter(|(_, list)| list.more)
        .map(|(_, list)| list.sessions.last().map(|last| last.client_id.clone()).unwrap_or_default())
        .min();
    let mut clients: BTreeMap<String, Vec<Session>> = BTreeMap::new();
    let mut more = horizon.is_some();
    for (node, list) in lists {
        for info in list.sessions {
            if horizon.as_ref().is_some_and(|horizon| info.client_id > *horizon) {
                break;
            }
            clients.entry(info.client_id.clone()).or_default().push(to_session(&node, info));
        }
    }
    let (mut page, mut bytes) = (Vec::new(), 0);
    for sessions in clients.into_values() {
        let is_full = page.len() + sessions.len() > size || bytes >= PAGE_BYTES_MAX;
        if is_full && !page.is_empty() {
            more = true;
            break;
        }
        bytes += sessions.iter().map(|one| one.client_id.len() + one.username.len()).sum::<usize>();
        page.extend(sessions);
    }
    (page, more)
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ids: &[&str], more: bool) -> SessionList {
        let info = |id: &&str| SessionInfo { client_id: (*id).to_owned(), ..SessionInfo::default() };
        SessionList { sessions: ids.iter().map(info).collect(), more }
    }

    fn merged(lists: &[(&str, SessionList)], size: usize) -> (Vec<String>, bool) {
        let lists = lists.iter().map(|(node, list)| ((*node).to_owned(), list.clone())).collect();
        let (page, more) = merge(lists, size);
        (page.into_iter().map(|one| format!("{}@{}", one.client_id, one.service_id)).collect(), more)
    }

    #[test]
    fn a_page_holds_the_first_of_all_nodes() {
        let lists = [("n1", list(&["a", "d"], false)), ("n2", list(&["b", "c"], false))];
        assert_eq!(merged(&lists, 3), (vec!["a@n1".into(), "b@n2".into(), "c@n2".into()], true));
        assert!(!merged(&lists, 4).1);
        assert_eq!(merged(&[], 4), (vec![], false));
    }

    #[test]
    fn nothing_is_told_beyond_the_end_of_a_list_that_goes_on() {
        // n1 may have a b.
        let lists = [("n1", list(&["a"], true)), ("n2", list(&["c", "d"], false))];
        assert_eq!(merged(&lists, 10), (vec!["a@n1".into()], true));
    }

    #[test]
    fn the_sessions_of_one_client_are_on_one_page() {
        let lists = [("n1", list(&["a", "b"], false)), ("n2", list(&["b", "c"], false))];
        assert_eq!(merged(&lists, 2), (vec!["a@n1".into()], true));
        assert_eq!(merged(&lists, 1), (vec!["a@n1".into()], true));
        let only_b = [("n1", list(&["b"], false)), ("n2", list(&["b"], false))];
        assert_eq!(merged(&only_b, 1), (vec!["b@n1".into(), "b@n2".into()], false));
    }
}
