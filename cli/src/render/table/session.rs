//! Connected clients and their subscriptions.

use tbmq_proto::control::{Session, Subscription};

use super::{super::Look, super::json::time, facts, grid::grid, or_dash, yes};

/// CLIENT, NODE, USER, PROTOCOL, ADDRESS, CONNECTED; wide: SUBSCRIPTIONS, CLEAN START, KEEP ALIVE.
pub(crate) fn sessions(all: &[Session], look: Look) -> String {
    let mut header = vec!["CLIENT", "NODE", "USER", "PROTOCOL", "ADDRESS", "CONNECTED"];
    if look.wide {
        header.extend(["SUBSCRIPTIONS", "CLEAN START", "KEEP ALIVE"]);
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![
            one.client_id.clone(),
            one.service_id.clone(),
            or_dash(Some(one.username.clone())),
            protocol(one.protocol_version),
            one.peer_address.clone(),
            or_dash(time(one.connect_time)),
        ];
        if look.wide {
            row.extend([
                one.subscription_count.to_string(),
                yes(one.clean_start),
                format!("{} s", one.keep_alive_seconds),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// All about one client.
pub(crate) fn session(one: &Session) -> String {
    facts([
        ("Client", one.client_id.clone()),
        ("Node", one.service_id.clone()),
        ("User", one.username.clone()),
        ("Protocol", protocol(one.protocol_version)),
        ("Clean start", yes(one.clean_start)),
        ("Keep alive", format!("{} s", one.keep_alive_seconds)),
        ("Address", one.peer_address.clone()),
        ("Connected", time(one.connect_time).unwrap_or_default()),
        ("Subscriptions", one.subscription_count.to_string()),
        ("Type", one.client_type.clone()),
        ("Let in by", or_dash(Some(one.authentication.clone()))),
    ])
}

/// FILTER, QOS, SHARE; wide: NO LOCAL, RETAIN AS PUBLISHED, RETAIN HANDLING.
pub(crate) fn subscriptions(all: &[Subscription], look: Look) -> String {
    let mut header = vec!["FILTER", "QOS", "SHARE"];
    if look.wide {
        header.extend(["NO LOCAL", "RETAIN AS PUBLISHED", "RETAIN HANDLING"]);
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![one.filter.clone(), one.qos.to_string(), or_dash(Some(one.share_name.clone()))];
        if look.wide {
            row.extend([yes(one.no_local), yes(one.retain_as_published), one.retain_handling.to_string()]);
        }
        row
    });
    grid(&header, rows, look.coloured)
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
