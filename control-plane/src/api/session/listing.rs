//! Which sessions there are: filters, order, pages.

use std::{cmp::Ordering, collections::BTreeMap};

use tbmq_auth::blocked::Who;
use tbmq_integration::entity::Violation;
use tbmq_proto::{
    control::{ConnectionState, ListSessionsRequest, ListSessionsResponse, Session, SessionFilter},
    node::{
        FindSessions, QuerySessions, SessionInfo, SessionOrder, SessionPlace, node_reply::Reply, node_request,
    },
};
use tokio::time::Instant;
use tonic::Status;

use super::{
    CLIENT_ID_BYTES_MAX, PAGE_BYTES_MAX, SessionsApi,
    paging::{Told, merge},
    to_session,
};
use crate::api::{error, page, reach};

/// Where a session stands in an order.
pub(super) type Place = (i64, String, String);

/// Sessions as somebody wants them.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) filter: SessionFilter,
    pub(super) text_search: String,
    /// Empty: of all data planes.
    pub(super) service_id: String,
    order: SessionOrder,
    descending: bool,
}

/// Some of them.
pub(super) struct Found {
    pub(super) sessions: Vec<Session>,
    /// Where it goes on.
    pub(super) next: Option<Place>,
    pub(super) silent_nodes: Vec<String>,
}

impl Wanted {
    /// By client id.
    pub(super) fn new(
        filter: Option<SessionFilter>,
        text_search: String,
        service_id: String,
    ) -> Result<Self, Status> {
        let filter = filter.unwrap_or_default();
        let mut violations = violations(&filter);
        for (field, text) in [("text_search", &text_search), ("filter.username", &filter.username)] {
            if text.len() > CLIENT_ID_BYTES_MAX {
                violations.push(Violation::new(field, "is longer than it can be in MQTT"));
            }
        }
        if !violations.is_empty() {
            return Err(error::invalid(violations));
        }
        Ok(Self { filter, text_search, service_id, ..Self::default() })
    }

    fn ordered(self, order_by: &str) -> Result<Self, Status> {
        let mut words = order_by.split_whitespace();
        let order = match words.next().unwrap_or("client_id") {
            "client_id" => SessionOrder::Unspecified,
            "username" => SessionOrder::Username,
            "client_type" => SessionOrder::ClientType,
            "connect_time" => SessionOrder::ConnectTime,
            "disconnect_time" => SessionOrder::DisconnectTime,
            "subscription_count" => SessionOrder::SubscriptionCount,
            other => {
                let known =
                    "client_id, username, client_type, connect_time, disconnect_time, subscription_count";
                let text = format!("can't order by {other:?}; known are {known}, each with an optional desc");
                return Err(error::invalid_field("order_by", text));
            }
        };
        let descending = match (words.next(), words.next()) {
            (None, _) | (Some("asc"), None) => false,
            (Some("desc"), None) => true,
            _ => return Err(error::invalid_field("order_by", "is neither a field nor a field and desc")),
        };
        Ok(Self { order, descending, ..self })
    }

    fn compare(&self, one: &Place, other: &Place) -> Ordering {
        let order = one.cmp(other);
        if self.descending { order.reverse() } else { order }
    }
}

fn violations(filter: &SessionFilter) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut refuse = |field: &str, text: String| violations.push(Violation::new(field, text));
    for state in &filter.states {
        let is_known = matches!(
            ConnectionState::try_from(*state),
            Ok(ConnectionState::Connected | ConnectionState::Disconnected)
        );
        if !is_known {
            refuse("filter.states", format!("{state} is no state of a connection"));
        }
    }
    for kind in &filter.client_types {
        if !["DEVICE", "APPLICATION"].contains(&kind.as_str()) {
            refuse("filter.client_types", format!("{kind:?} is neither DEVICE nor APPLICATION"));
        }
    }
    if !filter.address.is_empty()
        && let Err(problem) = Who::network(&filter.address)
    {
        refuse("filter.address", problem.to_string());
    }
    if let Some(count) = &filter.subscription_count {
        use tbmq_proto::control::subscription_count::Operator;
        if !matches!(Operator::try_from(count.operator), Ok(operator) if operator != Operator::Unspecified) {
            refuse("filter.subscription_count.operator", format!("{} is no operator", count.operator));
        }
    }
    violations
}

impl SessionsApi {
    pub(super) async fn list(
        &self,
        request: ListSessionsRequest,
        until: Instant,
    ) -> Result<ListSessionsResponse, Status> {
        let size = page::size(request.page_size)? as usize;
        let ListSessionsRequest { filter, text_search, service_id, order_by, .. } = request;
        let wanted = Wanted::new(filter, text_search, service_id)?.ordered(&order_by)?;
        let question = format!("sessions {wanted:?}");
        let after = page::place(&request.page_token, &question)?;
        self.check_node(&wanted.service_id).await?;
        let Found { sessions, next, silent_nodes } = self.found(&wanted, after, size, until).await?;
        let next_page_token = next.map(|place| page::token(&place, &question)).unwrap_or_default();
        Ok(ListSessionsResponse { sessions, next_page_token, silent_nodes })
    }

    /// At most `size` sessions behind a place.
    pub(super) async fn found(
        &self,
        wanted: &Wanted,
        after: Option<Place>,
        size: usize,
        until: Instant,
    ) -> Result<Found, Status> {
        let after = after.map(|(number, text, client_id)| SessionPlace { number, text, client_id });
        let ask = || {
            node_request::Request::QuerySessions(QuerySessions {
                filter: Some(wanted.filter.clone()),
                text_search: wanted.text_search.clone(),
                order: wanted.order.into(),
                descending: wanted.descending,
                after: after.clone(),
                limit: size as u32,
            })
        };
        let answers = self.ask_some(&wanted.service_id, ask, until).await?;
        let mut silent_nodes = answers.silent_nodes();
        let told = answers.replies.into_iter().filter_map(|(node, reply)| {
            let Reply::SessionPage(page) = reply else { return None };
            let place = |place: SessionPlace| (place.number, place.text, place.client_id);
            let session = |info: SessionInfo| to_session(&node, info);
            let rows: Vec<(Place, Session)> =
                page.places.into_iter().map(place).zip(page.sessions.into_iter().map(session)).collect();
            let through = rows.last().filter(|_| page.more).map(|(place, _)| place.clone());
            Some(Told { rows, through })
        });
        let bytes = |one: &Session| 2 * one.client_id.len() + one.username.len();
        let merged =
            merge(told.collect(), size, PAGE_BYTES_MAX, |one, other| wanted.compare(one, other), bytes);
        let mut sessions = merged.rows;
        self.drop_superseded(&mut sessions, &mut silent_nodes, until).await?;
        Ok(Found { sessions, next: merged.next, silent_nodes })
    }

    /// Drops sessions without a connection of which another data plane has a later one: what is left behind there is of
    /// no use any more.
    async fn drop_superseded(
        &self,
        sessions: &mut Vec<Session>,
        silent_nodes: &mut Vec<String>,
        until: Instant,
    ) -> Result<(), Status> {
        let is_away = |one: &&Session| one.state() == ConnectionState::Disconnected;
        let client_ids: Vec<String> =
            sessions.iter().filter(is_away).map(|one| one.client_id.clone()).collect();
        if client_ids.is_empty() || self.plane.nodes.live_data_planes().len() < 2 {
            return Ok(());
        }
        let ask = || node_request::Request::FindSessions(FindSessions { client_ids: client_ids.clone() });
        let answers = reach::ask_all(&self.plane, None, ask, until).await?;
        for node in answers.silent_nodes() {
            if !silent_nodes.contains(&node) {
                silent_nodes.push(node);
            }
        }
        let mut latest: BTreeMap<String, (i64, i32, String)> = BTreeMap::new();
        for (node, reply) in answers.replies {
            let Reply::Sessions(list) = reply else { continue };
            for info in list.sessions {
                let session = to_session(&node, info);
                let age = age(&session);
                let held = latest.entry(session.client_id).or_insert_with(|| age.clone());
                if *held < age {
                    *held = age;
                }
            }
        }
        sessions.retain(|one| {
            let is_older = |latest: &(i64, i32, String)| age(one) < *latest;
            one.state() != ConnectionState::Disconnected || !latest.get(&one.client_id).is_some_and(is_older)
        });
        Ok(())
    }
}

/// Greater when it began later.
fn age(session: &Session) -> (i64, i32, String) {
    let time = session.connect_time.unwrap_or_default();
    (time.seconds, time.nanos, session.service_id.clone())
}
