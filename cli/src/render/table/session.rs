//! Sessions of clients and their subscriptions.

use tbmq_proto::control::{
    ClientSubscription, ConnectionState, Session, SessionCounts, SharedSubscription,
    SharedSubscriptionMember, Subscription,
};

use super::{super::Look, super::json::time, facts, grid::grid, or_dash, yes};

/// CLIENT, STATE, NODE, USER, PROTOCOL, ADDRESS, CONNECTED; wide: DISCONNECTED, TYPE, SUBSCRIPTIONS, CLEAN START, KEEP
/// ALIVE, SESSION.
pub(crate) fn sessions(all: &[Session], look: Look) -> String {
    let mut header = vec!["CLIENT", "STATE", "NODE", "USER", "PROTOCOL", "ADDRESS", "CONNECTED"];
    if look.wide {
        header.extend(["DISCONNECTED", "TYPE", "SUBSCRIPTIONS", "CLEAN START", "KEEP ALIVE", "SESSION"]);
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![
            one.client_id.clone(),
            state(one.state()).to_owned(),
            one.service_id.clone(),
            or_dash(Some(one.username.clone())),
            protocol(one.protocol_version),
            or_dash(Some(one.peer_address.clone())),
            or_dash(time(one.connect_time)),
        ];
        if look.wide {
            row.extend([
                or_dash(time(one.disconnect_time)),
                or_dash(Some(one.client_type.clone())),
                one.subscription_count.to_string(),
                yes(one.clean_start),
                format!("{} s", one.keep_alive_seconds),
                or_dash(Some(one.session_id.clone())),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// All about one client.
pub(crate) fn session(one: &Session) -> String {
    let details = one.details.clone().unwrap_or_default();
    let of_details = |text: String| if one.details.is_some() { text } else { String::new() };
    let above_zero = |number: u32| if number > 0 { number.to_string() } else { String::new() };
    let will = details.will.as_ref().map(|will| {
        let retain = if will.retain { ", retained" } else { "" };
        let due = time(will.due_time).map(|time| format!(", due {time}")).unwrap_or_default();
        format!("{}, QoS {}{retain}, {} bytes{due}", will.topic, will.qos, will.payload_bytes)
    });
    facts([
        ("Client", one.client_id.clone()),
        ("State", state(one.state()).to_owned()),
        ("Session", one.session_id.clone()),
        ("Node", one.service_id.clone()),
        ("User", one.username.clone()),
        ("Protocol", protocol(one.protocol_version)),
        ("Clean start", yes(one.clean_start)),
        ("Keep alive", format!("{} s", one.keep_alive_seconds)),
        ("Address", one.peer_address.clone()),
        ("Transport", details.transport),
        ("Common names", details.common_names.join(", ")),
        ("Connected", time(one.connect_time).unwrap_or_default()),
        ("Disconnected", time(one.disconnect_time).unwrap_or_default()),
        ("Persistent", of_details(yes(one.persistent))),
        ("Expiry", of_details(expiry(details.expiry_seconds))),
        ("Ends", time(details.expire_time).unwrap_or_default()),
        (
            "Queued",
            of_details(format!("{} messages, {} bytes", details.queued_messages, details.queued_bytes)),
        ),
        ("In flight", of_details(details.in_flight.to_string())),
        ("Unreleased", of_details(details.received_in_flight.to_string())),
        ("Will", will.unwrap_or_default()),
        ("Receive maximum", above_zero(details.receive_maximum)),
        ("Packet bytes", above_zero(details.maximum_packet_size)),
        ("Topic aliases", above_zero(details.topic_alias_maximum)),
        ("Subscriptions", one.subscription_count.to_string()),
        ("Type", one.client_type.clone()),
        ("Let in by", or_dash(Some(one.authentication.clone()))),
    ])
}

fn expiry(seconds: u32) -> String {
    match seconds {
        0 => "with the connection".to_owned(),
        u32::MAX => "never".to_owned(),
        seconds => format!("{seconds} s"),
    }
}

fn state(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Connected => "connected",
        ConnectionState::Disconnected => "disconnected",
        ConnectionState::Unspecified => "-",
    }
}

/// How many sessions there are.
pub(crate) fn session_counts(counts: &SessionCounts) -> String {
    facts([
        ("Connected", counts.connected.to_string()),
        ("Disconnected", counts.disconnected.to_string()),
        ("Total", counts.total.to_string()),
        ("Devices", counts.devices.to_string()),
        ("Applications", counts.applications.to_string()),
    ])
}

/// CLIENT, STATE, NODE, and as [`subscriptions`].
pub(crate) fn client_subscriptions(all: &[ClientSubscription], look: Look) -> String {
    let mut header = vec!["CLIENT", "STATE", "NODE"];
    header.extend(subscription_header(look));
    let rows = all.iter().map(|one| {
        let mut row = vec![one.client_id.clone(), state(one.state()).to_owned(), one.service_id.clone()];
        row.extend(subscription_row(&one.subscription.clone().unwrap_or_default(), look));
        row
    });
    grid(&header, rows, look.coloured)
}

/// SHARE, FILTER, MEMBERS, CONNECTED; wide: CLIENTS.
pub(crate) fn shared_subscriptions(all: &[SharedSubscription], look: Look) -> String {
    let mut header = vec!["SHARE", "FILTER", "MEMBERS", "CONNECTED"];
    if look.wide {
        header.push("CLIENTS");
    }
    let rows = all.iter().map(|one| {
        let connected = one.members.iter().filter(|member| member.state() == ConnectionState::Connected);
        let mut row = vec![
            one.share_name.clone(),
            one.filter.clone(),
            one.member_count.to_string(),
            connected.count().to_string(),
        ];
        if look.wide {
            let name = |member: &SharedSubscriptionMember| {
                format!("{}@{} ({})", member.client_id, member.service_id, state(member.state()))
            };
            row.push(one.members.iter().map(name).collect::<Vec<_>>().join(", "));
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// FILTER, QOS, SHARE; wide: NO LOCAL, RETAIN AS PUBLISHED, RETAIN HANDLING, IDENTIFIER.
pub(crate) fn subscriptions(all: &[Subscription], look: Look) -> String {
    grid(&subscription_header(look), all.iter().map(|one| subscription_row(one, look)), look.coloured)
}

fn subscription_header(look: Look) -> Vec<&'static str> {
    let mut header = vec!["FILTER", "QOS", "SHARE"];
    if look.wide {
        header.extend(["NO LOCAL", "RETAIN AS PUBLISHED", "RETAIN HANDLING", "IDENTIFIER"]);
    }
    header
}

fn subscription_row(one: &Subscription, look: Look) -> Vec<String> {
    let mut row = vec![one.filter.clone(), one.qos.to_string(), or_dash(Some(one.share_name.clone()))];
    if look.wide {
        row.extend([
            yes(one.no_local),
            yes(one.retain_as_published),
            one.retain_handling.to_string(),
            or_dash(one.identifier.map(|identifier| identifier.to_string())),
        ]);
    }
    row
}

/// The name of a protocol level.
fn protocol(level: u32) -> String {
    match level {
        3 => "3.1".to_owned(),
        4 => "3.1.1".to_owned(),
        5 => "5.0".to_owned(),
        other => other.to_string(),
    }
}
