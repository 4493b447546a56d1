//! Sessions of before the start go on, before a listener opens (architecture §4.22).
//!
//! Of the recorded sessions those that this node had last are read from the session store, in batches: what is in
//! flight to the client, which QoS 2 publishes it has not released, its will. Their queues stay where they are. A
//! session that was connected when its node ended has lost its connection now: its expiry and its will's delay begin.
//! What has expired meanwhile ends like any other session, once all are there who may get its will.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tbmq_mqtt::{
    codec::property::PropertyId,
    packet::{ProtocolVersion, Qos, Text, Will},
    session::{self, NEVER_S, Now, Stage},
};
use tbmq_service::admin::Component;

use crate::{
    connection::{Connection, KeptWill},
    group::Group,
    group_queue,
    mailbox::Client,
    plane::Plane,
    queues::READ,
    session_records::{RecordedFilter, Restored, SessionInfo},
    session_store::{self, Error, State, Stored, StoredWill, delivery},
};

/// Sessions that are opened with one call.
const BATCH: usize = 512;

/// Queues that are read at a time.
const READS_MAX: usize = 32;

/// The pause before a store that could not be read is read again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Goes on with the sessions that this node had. Waits for the session store as long as it takes, telling `component`
/// why.
pub(crate) async fn restore(plane: &Arc<Plane>, recorded: Vec<Restored>, component: &Component) {
    let now = plane.clock.now();
    // The wall clock may have gone back.
    if let Some(epoch) = recorded.iter().map(|restored| restored.info.epoch).max() {
        plane.queues.note_epoch(epoch);
    }
    let mut own = recorded.into_iter().filter(|restored| restored.info.service_id == plane.service_id);
    let mut sessions = Vec::new();
    let mut groups = HashMap::new();
    loop {
        let mut batch: Vec<Restored> = own.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            break;
        }
        let names = batch.iter_mut().map(|restored| {
            restored.info.epoch = plane.queues.epoch();
            session_store::Session::new(restored.info.client_id.clone(), restored.info.epoch)
        });
        let names: Vec<_> = names.collect();
        let states = open(plane, names, component).await;
        let mut stored = stream::iter(batch.into_iter().zip(states))
            .map(async |(restored, (name, state))| {
                let in_flight = in_flight(plane, &name, &state, component).await;
                (restored, name, state, in_flight)
            })
            .buffered(READS_MAX);
        while let Some((restored, name, state, in_flight)) = stored.next().await {
            sessions.push(go_on(plane, now, restored, name, state, in_flight, &mut groups));
        }
    }
    go_on_with_queues(plane, groups.into_values().collect(), component).await;
    component.up();
    plane.metrics.sessions_restored.inc_by(sessions.len() as u64);
    tracing::info!(sessions = sessions.len(), "sessions of before go on");
    // Now that all subscriptions are there, wills may be published.
    for session in sessions {
        plane.go_on(session);
    }
}

/// Goes on with the queues of groups.
async fn go_on_with_queues(plane: &Arc<Plane>, groups: Vec<Arc<Group>>, component: &Component) {
    for groups in groups.chunks(BATCH) {
        let names = groups
            .iter()
            .map(|group| session_store::Session::new(group_queue::name(&group.filter), plane.queues.epoch()));
        let states = open(plane, names.collect(), component).await;
        for (group, (name, state)) in groups.iter().zip(states) {
            group_queue::go_on(plane, group, name, state.records == 0);
        }
    }
}

/// Opens sessions, each with an epoch above all that the store knows.
async fn open(
    plane: &Plane,
    mut names: Vec<session_store::Session>,
    component: &Component,
) -> Vec<(session_store::Session, State)> {
    loop {
        let mut states = Vec::with_capacity(names.len());
        let mut failure = None;
        let results = plane.queues.store().open(&names).await;
        for (name, result) in names.iter_mut().zip(results) {
            match result {
                Ok(state) => states.push(state),
                // Somebody else began a session and has not recorded it.
                Err(Error::Fenced { epoch }) => {
                    plane.queues.note_epoch(epoch);
                    name.epoch = plane.queues.epoch();
                    failure.get_or_insert(Error::Fenced { epoch });
                }
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            None => return names.into_iter().zip(states).collect(),
            Some(Error::Fenced { .. }) => {}
            Some(error) => wait(component, &error).await,
        }
    }
}

/// What was sent to the client and is not settled, in its order.
async fn in_flight(
    plane: &Plane,
    name: &session_store::Session,
    state: &State,
    component: &Component,
) -> Vec<session::InFlight> {
    let mut in_flight = Vec::new();
    let mut next = (state.records > 0 && state.sent > 0).then_some(0);
    while let Some(after) = next {
        let page = loop {
            match plane.queues.store().read(plane.clock.now().epoch_ms, name, after, READ).await {
                Ok(page) => break page,
                Err(error @ Error::Unavailable(_)) => wait(component, &error).await,
                // Somebody else has the session now.
                Err(Error::Fenced { .. } | Error::Unknown) => return in_flight,
            }
        };
        next = page.next_after.filter(|after| *after < state.sent);
        in_flight.extend(page.records.into_iter().filter_map(|record| sent(plane, record)));
    }
    in_flight
}

fn sent(plane: &Plane, record: Stored) -> Option<session::InFlight> {
    let Stored { seq, value, in_flight } = record;
    let session_store::InFlight { packet_id, stage } = in_flight?;
    if stage == session_store::Stage::Pubrel {
        return Some(session::InFlight { packet_id, stage: Stage::Pubcomp, seq: Some(seq), delivery: None });
    }
    let delivery = plane.queues.decoded(seq, value)?;
    let stage = if delivery.qos == Qos::ExactlyOnce { Stage::Pubrec } else { Stage::Puback };
    Some(session::InFlight { packet_id, stage, seq: Some(seq), delivery: Some(delivery) })
}

async fn wait(component: &Component, error: &Error) {
    tracing::warn!(%error, "can't read sessions");
    component.down(format!("reading the sessions of clients: {error}"));
    tokio::time::sleep(RETRY_PAUSE).await;
}

/// Puts a session into its place, without a connection, and notes its shared subscriptions.
fn go_on(
    plane: &Arc<Plane>,
    now: Now,
    Restored { mut info, filters }: Restored,
    name: session_store::Session,
    state: State,
    in_flight: Vec<session::InFlight>,
    groups: &mut HashMap<u64, Arc<Group>>,
) -> Connection {
    let limits = plane.limits.clone();
    info.epoch = name.epoch;
    let was_connected = info.is_connected;
    if was_connected {
        info.is_connected = false;
        info.disconnected_at_ms = now.epoch_ms;
    }
    let expiry_s = info.expiry_s.unwrap_or(limits.session_expiry_v3_s);
    let due_ms = |seconds: u32| info.disconnected_at_ms.saturating_add(i64::from(seconds) * 1000);
    let will = state.will.as_ref().and_then(|stored| match delivery::decode_will(stored.value.clone()) {
        Ok(will) => {
            let delay_s = will_delay_s(&will).min(expiry_s);
            let due_at_ms = stored.due_at_ms.unwrap_or_else(|| due_ms(delay_s));
            Some((will, due_at_ms))
        }
        Err(error) => {
            plane.metrics.session_store_failures.inc();
            tracing::error!(%error, "a stored will is skipped");
            None
        }
    });
    let whole = |recorded: &RecordedFilter| (Text::from(&*recorded.whole()), recorded.options);
    let filters: Vec<_> = filters.iter().map(whole).collect();
    let session = session::Session::restored(
        limits,
        now,
        session::State {
            client_id: info.client_id.clone(),
            filters: filters.iter().cloned().collect(),
            in_flight,
            received: state.received,
            will,
            expiry_s,
            expires_at_ms: (expiry_s != NEVER_S).then(|| due_ms(expiry_s)),
        },
    );
    let kept_will = match (&state.will, session.will()) {
        (None, _) => KeptWill::None,
        (Some(StoredWill { due_at_ms: Some(_), .. }), Some((_, Some(due_ms)))) => KeptWill::Due(due_ms),
        // It has become due, or can't be read.
        (Some(_), _) => KeptWill::Unknown,
    };
    let (worker, mailbox) = plane.seat();
    mailbox.keep_away(name);
    mailbox.introduce(client(&info, filters.len()));
    plane.registry.restore(&info.client_id, &mailbox);
    for (filter, options) in &filters {
        if let Some(group) = plane.router.subscribe(&mailbox, filter, *options) {
            groups.insert(group.number, group);
        }
    }
    let connection = Connection::restored(plane.clone(), worker, mailbox.clone(), session, info, kept_will);
    // What is due comes before the client.
    mailbox.due();
    if was_connected {
        connection.record_restored();
    }
    connection
}

fn will_delay_s(will: &Will) -> u32 {
    will.properties.number(PropertyId::WillDelayInterval).unwrap_or(0)
}

fn client(info: &SessionInfo, filters: usize) -> Client {
    Client {
        id: info.client_id.clone(),
        username: info.username.clone(),
        version: ProtocolVersion::from_level(info.protocol_level).unwrap_or(ProtocolVersion::V5),
        clean_start: info.clean_start,
        keep_alive_s: info.keep_alive_s,
        client_type: info.client_type,
        details: Box::default(),
        // Its port is not known any more.
        peer: info.address.map(|address| SocketAddr::new(address, 0)),
        session_id: info.session_id,
        connected_ms: info.connected_at_ms,
        disconnected_ms: info.disconnected_at_ms.into(),
        filters: filters.into(),
    }
}
