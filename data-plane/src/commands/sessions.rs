//! Sessions: which there are, how one is, and to end them.

use std::{collections::BTreeMap, ops::ControlFlow, str::FromStr as _, sync::Arc};

use futures_util::future::join_all;
use ipnet::IpNet;
use tbmq_auth::{blocked::Who, credentials::ClientType};
use tbmq_mqtt::{packet::Text, session::End};
use tbmq_proto::{
    control::{ConnectionState, SessionDetails, SessionFilter, SessionWill, subscription_count::Operator},
    node::{
        EndSessions, FindSessions, ListSessions, QuerySessions, SessionDetail, SessionInfo, SessionList,
        SessionOrder, SessionPage, SessionPlace, SessionReference, SessionTally, SessionsEnded,
        sessions_ended::Result as Ended,
    },
};
use uuid::Uuid;

use super::{ANSWER_BYTES_MAX, LIMIT_MAX, SLICE, milliseconds, subscriptions, timestamp};
use crate::{
    mailbox::{Cleared, Client, Mailbox, Question, Queued, Told},
    plane::{Plane, Registry},
    session_records::client_type_name,
};

/// Sessions that are asked to end at a time.
const ENDS_AT_ONCE: usize = 64;

/// Looks at all sessions behind a client id, a slice at a time, until `look` breaks. Connections and messages do not
/// wait for it.
async fn each(registry: &Registry, after: &str, mut look: impl FnMut(&Mailbox, &Client) -> ControlFlow<()>) {
    let mut after: Arc<str> = after.into();
    loop {
        let slice = registry.sessions_after(&after, SLICE);
        let Some(last) = slice.last().and_then(|mailbox| mailbox.client()) else { return };
        after = last.id.clone();
        for mailbox in slice {
            if let Some(client) = mailbox.client()
                && look(&mailbox, &client).is_break()
            {
                return;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// A [`SessionFilter`] that is ready for use.
struct Test {
    states: Vec<ConnectionState>,
    types: Vec<String>,
    clean_start: Option<bool>,
    count: Option<(Operator, u64)>,
    network: Option<IpNet>,
    /// In lower case; empty: any.
    username: String,
    client_id: String,
    start_ms: Option<i64>,
    end_ms: Option<i64>,
}

impl Test {
    fn new(filter: Option<SessionFilter>, text_search: &str) -> Result<Self, String> {
        let filter = filter.unwrap_or_default();
        let network = match filter.address.as_str() {
            "" => None,
            text => match Who::network(text).map_err(|error| error.to_string())? {
                Who::Network(network) => Some(network),
                _ => None,
            },
        };
        Ok(Self {
            states: filter.states().collect(),
            clean_start: filter.clean_start,
            count: filter.subscription_count.map(|count| (count.operator(), count.value)),
            network,
            username: filter.username.to_lowercase(),
            client_id: text_search.to_lowercase(),
            start_ms: filter.start_time.map(milliseconds),
            end_ms: filter.end_time.map(milliseconds),
            types: filter.client_types,
        })
    }

    fn passes(&self, client: &Client) -> bool {
        let away_since_ms = client.away_since_ms();
        let state = match away_since_ms {
            Some(_) => ConnectionState::Disconnected,
            None => ConnectionState::Connected,
        };
        let time_ms = away_since_ms.unwrap_or(client.connected_ms);
        let is_type = |name: &String| name == client_type_name(client.client_type);
        let has_address =
            |network: IpNet| client.peer.is_some_and(|peer| network.contains(&peer.ip().to_canonical()));
        let has_part = |text: &str, part: &str| part.is_empty() || text.to_lowercase().contains(part);
        (self.states.is_empty() || self.states.contains(&state))
            && (self.types.is_empty() || self.types.iter().any(is_type))
            && self.clean_start.is_none_or(|clean_start| clean_start == client.clean_start)
            && self.count.is_none_or(|(operator, value)| compares(client.filters() as u64, operator, value))
            && self.start_ms.is_none_or(|start_ms| time_ms >= start_ms)
            && self.end_ms.is_none_or(|end_ms| time_ms < end_ms)
            && self.network.is_none_or(has_address)
            && has_part(client.username.as_deref().unwrap_or_default(), &self.username)
            && has_part(&client.id, &self.client_id)
    }
}

fn compares(count: u64, operator: Operator, value: u64) -> bool {
    match operator {
        Operator::Unspecified | Operator::Equal => count == value,
        Operator::NotEqual => count != value,
        Operator::Greater => count > value,
        Operator::Less => count < value,
        Operator::GreaterOrEqual => count >= value,
        Operator::LessOrEqual => count <= value,
    }
}

/// Where a session stands; compared as it is.
type Place = (i64, String, String);

fn place(client: &Client, order: SessionOrder) -> Place {
    let (number, text) = match order {
        SessionOrder::Unspecified => (0, ""),
        SessionOrder::Username => (0, client.username.as_deref().unwrap_or_default()),
        SessionOrder::ClientType => (0, client_type_name(client.client_type)),
        SessionOrder::ConnectTime => (client.connected_ms, ""),
        SessionOrder::DisconnectTime => (client.away_since_ms().unwrap_or(0), ""),
        SessionOrder::SubscriptionCount => (client.filters() as i64, ""),
    };
    (number, text.to_owned(), client.id.to_string())
}

/// The first sessions behind a place, in any order.
///
/// # Errors
/// When the filter has no sense.
pub(super) async fn query(registry: &Registry, wanted: QuerySessions) -> Result<SessionPage, String> {
    let (order, descending) = (wanted.order(), wanted.descending);
    let limit = wanted.limit.clamp(1, LIMIT_MAX) as usize;
    let test = Test::new(wanted.filter, &wanted.text_search)?;
    let after: Option<Place> = wanted.after.map(|after| (after.number, after.text, after.client_id));
    let is_by_id = order == SessionOrder::Unspecified && !descending;
    let from = if is_by_id { after.as_ref().map_or("", |(.., id)| id) } else { "" };
    let mut found = Found { sessions: BTreeMap::new(), bytes: 0, limit, descending, more: false };
    each(registry, from, |mailbox, client| {
        if !test.passes(client) {
            return ControlFlow::Continue(());
        }
        let place = place(client, order);
        if after.as_ref().is_some_and(|after| !found.is_before(after, &place)) {
            return ControlFlow::Continue(());
        }
        if found.is_full(found.bytes) {
            found.more = true;
            if is_by_id {
                return ControlFlow::Break(());
            }
        }
        if found.wants(&place) {
            found.insert(place, info(mailbox, client));
        }
        ControlFlow::Continue(())
    })
    .await;
    let more = found.more;
    let found = found.sessions;
    let (mut places, mut sessions) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
    for ((number, text, client_id), info) in found {
        places.push(SessionPlace { number, text, client_id });
        sessions.push(info);
    }
    if descending {
        places.reverse();
        sessions.reverse();
    }
    Ok(SessionPage { sessions, places, more })
}

/// The first sessions of an order, as many as an answer takes.
struct Found {
    sessions: BTreeMap<Place, SessionInfo>,
    bytes: usize,
    limit: usize,
    descending: bool,
    /// Some were left out.
    more: bool,
}

impl Found {
    fn is_before(&self, one: &Place, other: &Place) -> bool {
        if self.descending { one > other } else { one < other }
    }

    fn last(&self) -> Option<(&Place, &SessionInfo)> {
        if self.descending { self.sessions.first_key_value() } else { self.sessions.last_key_value() }
    }

    fn is_full(&self, bytes: usize) -> bool {
        self.sessions.len() >= self.limit || bytes >= ANSWER_BYTES_MAX
    }

    fn wants(&self, place: &Place) -> bool {
        !self.is_full(self.bytes) || self.last().is_some_and(|(last, _)| self.is_before(place, last))
    }

    /// What stands at the end gives way.
    fn insert(&mut self, place: Place, info: SessionInfo) {
        self.bytes += weight(&info);
        self.sessions.insert(place, info);
        while let Some((_, last)) = self.last()
            && self.sessions.len() > 1
            && (self.sessions.len() > self.limit || self.bytes - weight(last) >= ANSWER_BYTES_MAX)
        {
            self.bytes -= weight(last);
            if self.descending {
                self.sessions.pop_first()
            } else {
                self.sessions.pop_last()
            };
            self.more = true;
        }
    }
}

fn weight(info: &SessionInfo) -> usize {
    2 * info.client_id.len() + 2 * info.username.len() + info.authentication.len() + 128
}

/// Connected clients by their ids, for control planes that know no more.
pub(super) async fn list(plane: &Plane, wanted: ListSessions) -> Result<SessionList, String> {
    let states = vec![ConnectionState::Connected.into()];
    let after = SessionPlace { client_id: wanted.after, ..SessionPlace::default() };
    let query = QuerySessions {
        filter: Some(SessionFilter { states, ..SessionFilter::default() }),
        text_search: wanted.text_search,
        after: Some(after),
        limit: wanted.limit,
        ..QuerySessions::default()
    };
    let SessionPage { sessions, more, .. } = self::query(&plane.registry, query).await?;
    Ok(SessionList { sessions, more })
}

/// Those of these clients that are here.
pub(super) fn find(plane: &Plane, wanted: &FindSessions) -> SessionList {
    let found = |client_id: &String| {
        let mailbox = plane.registry.session(client_id)?;
        let client = mailbox.client()?;
        Some(info(&mailbox, &client))
    };
    let sessions = wanted.client_ids.iter().take(LIMIT_MAX as usize).filter_map(found).collect();
    SessionList { sessions, more: false }
}

pub(super) async fn count(plane: &Plane) -> SessionTally {
    let mut tally = SessionTally::default();
    each(&plane.registry, "", |_, client| {
        let state =
            if client.away_since_ms().is_some() { &mut tally.disconnected } else { &mut tally.connected };
        *state += 1;
        let kind = match client.client_type {
            ClientType::Device => &mut tally.devices,
            ClientType::Application => &mut tally.applications,
        };
        *kind += 1;
        ControlFlow::Continue(())
    })
    .await;
    tally
}

/// All about the session of a client.
pub(super) async fn detail(plane: &Plane, client_id: &str) -> Result<SessionDetail, String> {
    let none = Ok(SessionDetail::default());
    let Some(mailbox) = plane.registry.session(client_id) else { return none };
    // One that has ended meanwhile drops the question.
    let (Some(told), Some(client)) = (mailbox.ask(Question::Tell).await, mailbox.client()) else {
        return none;
    };
    let subscriptions = subscriptions::sorted(&told.filters)?;
    let session = SessionInfo { details: Some(details(told).await), ..info(&mailbox, &client) };
    Ok(SessionDetail { session: Some(session), subscriptions })
}

async fn details(told: Told) -> SessionDetails {
    let Told { summary, will, transport, common_names, queue, filters: _ } = told;
    let queued = match queue {
        // What is not known is told as nothing.
        Some(queue) => queue.await.unwrap_or_default(),
        None => Queued::default(),
    };
    SessionDetails {
        expiry_seconds: summary.expiry_s,
        expire_time: summary.expires_at_ms.map(timestamp),
        will: will.map(|will| SessionWill {
            topic: will.topic.to_string(),
            qos: u32::from(will.qos.bits()),
            retain: will.retain,
            payload_bytes: will.payload_bytes as u64,
            due_time: will.due_at_ms.map(timestamp),
        }),
        queued_messages: queued.messages,
        queued_bytes: queued.bytes,
        in_flight: summary.in_flight as u64,
        received_in_flight: summary.received as u64,
        transport: transport.to_owned(),
        common_names: common_names.iter().map(ToString::to_string).collect(),
        receive_maximum: u32::from(summary.receive_maximum),
        maximum_packet_size: summary.packet_bytes_max,
        topic_alias_maximum: u32::from(summary.topic_aliases),
    }
}

/// Ends connections, or sessions without one.
pub(super) async fn end(plane: &Plane, wanted: EndSessions) -> SessionsEnded {
    let mut results = Vec::with_capacity(wanted.sessions.len());
    for slice in wanted.sessions.chunks(ENDS_AT_ONCE).take(LIMIT_MAX as usize / ENDS_AT_ONCE + 1) {
        if wanted.clear {
            let cleared = join_all(slice.iter().map(|session| clear(plane, session))).await;
            results.extend(cleared.into_iter().map(i32::from));
        } else {
            results.extend(slice.iter().map(|session| i32::from(disconnect(plane, session))));
        }
        tokio::task::yield_now().await;
    }
    SessionsEnded { results }
}

/// The session id that a reference names, if it names one; one that is none is nobody's.
pub(super) fn wanted_id(reference: &SessionReference) -> Option<Uuid> {
    let text = reference.session_id.as_str();
    (!text.is_empty()).then(|| Uuid::from_str(text).unwrap_or_default())
}

pub(super) fn disconnect(plane: &Plane, session: &SessionReference) -> Ended {
    let client_id = session.client_id.as_str();
    if let Some(mailbox) = plane.registry.take(client_id, wanted_id(session)) {
        mailbox.end(End::Administrative);
        tracing::info!(client_id, "disconnected by an operator");
        return Ended::Ended;
    }
    let client = plane.registry.session(client_id).and_then(|mailbox| mailbox.client());
    match client {
        Some(client) if client.away_since_ms().is_none() => Ended::Replaced,
        _ => Ended::Unspecified,
    }
}

async fn clear(plane: &Plane, session: &SessionReference) -> Ended {
    let Some(mailbox) = plane.registry.session(&session.client_id) else { return Ended::Unspecified };
    let wanted = wanted_id(session);
    match mailbox.ask(|answer| Question::Clear(wanted, answer)).await {
        Some(Cleared::Done) => {
            let client_id: Arc<str> = session.client_id.as_str().into();
            tracing::info!(client_id = &*client_id, "session cleared by an operator");
            match &plane.recorder {
                Some(recorder) if !recorder.written(&client_id).await => Ended::NotRecorded,
                _ => Ended::Ended,
            }
        }
        Some(Cleared::Connected) => Ended::Connected,
        Some(Cleared::Replaced) => Ended::Replaced,
        None => Ended::Unspecified,
    }
}

fn info(mailbox: &Mailbox, client: &Client) -> SessionInfo {
    let peer =
        client.peer.map(|peer| if peer.port() == 0 { peer.ip().to_string() } else { peer.to_string() });
    let away_since_ms = client.away_since_ms();
    SessionInfo {
        client_id: client.id.to_string(),
        username: client.username.as_ref().map(Text::to_string).unwrap_or_default(),
        protocol_version: u32::from(client.version.level()),
        clean_start: client.clean_start,
        keep_alive_seconds: u32::from(client.keep_alive_s),
        peer_address: peer.unwrap_or_default(),
        connect_time: Some(timestamp(client.connected_ms)),
        subscription_count: client.filters() as u64,
        client_type: client_type_name(client.client_type).to_owned(),
        authentication: client.details.to_string(),
        disconnected: away_since_ms.is_some(),
        session_id: client.session_id.to_string(),
        disconnect_time: away_since_ms.map(timestamp),
        persistent: mailbox.is_kept(),
        details: None,
    }
}

#[cfg(test)]
mod tests;
