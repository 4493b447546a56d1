//! What people get: one line per thing, columns apart by spaces.

mod access;
mod auth;
mod grid;
mod kafka;
mod retained;
mod session;
mod stats;

use crossterm::style::Stylize as _;
use tbmq_proto::control::{
    CheckConnectionResponse, Event, Integration, IntegrationStatus, Kind, Node, WatchIntegrationsResponse,
    event::Body,
};

use self::grid::grid;
pub(crate) use self::{
    access::{audit, caller, context, contexts, created_token, tokens},
    auth::{blocked, credential, credentials, provider, providers, unauthorized, unauthorized_one},
    kafka::{cluster, group, groups, lags, lags_summary, topic, topics, topics_summary},
    retained::{retained, retained_one},
    session::{client_subscriptions, session, session_counts, sessions, shared_subscriptions, subscriptions},
    stats::{stats, top},
};
use super::{
    Look,
    json::{self, phase, time},
};

/// NAME, TYPE, ENABLED, PHASE, REVISION, LAG, UID; wide: EXECUTOR, FILTERS, LABELS, UPDATED.
pub(crate) fn integrations(all: &[Integration], look: Look) -> String {
    let mut header = vec!["NAME", "TYPE", "ENABLED", "PHASE", "REVISION", "LAG", "UID"];
    if look.wide {
        header.extend(["EXECUTOR", "FILTERS", "LABELS", "UPDATED"]);
    }
    let rows = all.iter().map(|one| {
        let status = one.status.clone().unwrap_or_default();
        let lag = status.lag.as_ref().map_or_else(|| "-".to_owned(), |lag| lag.messages.to_string());
        let mut row = vec![
            one.display_name.clone(),
            one.r#type.clone(),
            yes(one.enabled),
            shown(&status).to_owned(),
            one.revision.to_string(),
            lag,
            one.uid.clone(),
        ];
        if look.wide {
            row.extend([
                or_dash(Some(status.service_id)),
                or_dash(Some(filters(one))),
                or_dash(Some(labels(one))),
                or_dash(time(one.update_time)),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// Its topic filters, separated by commas.
fn filters(one: &Integration) -> String {
    let configuration: serde_json::Value = serde_json::from_str(&one.configuration_json).unwrap_or_default();
    let filters = configuration["topicFilters"].as_array();
    let filters = filters.into_iter().flatten().map(|filter| filter.as_str().unwrap_or_default());
    filters.collect::<Vec<_>>().join(", ")
}

/// Its labels in their order, separated by commas.
fn labels(one: &Integration) -> String {
    let mut labels: Vec<_> = one.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    labels.join(", ")
}

/// The phase; STALLED for one that is ACTIVE and gets nothing confirmed.
fn shown(status: &IntegrationStatus) -> &'static str {
    if status.reason == "STALLED" { "STALLED" } else { phase(status) }
}

/// CHANGE, NAME, TYPE, ENABLED, PHASE, REVISION, UID: of lines that come one by one.
pub(crate) fn change_header() -> String {
    change_line(["CHANGE", "NAME", "TYPE", "ENABLED", "PHASE", "REVISION", "UID"])
}

/// One line, or nothing of a bookmark.
pub(crate) fn change(from: &WatchIntegrationsResponse, look: Look) -> String {
    let Some(one) = &from.integration else { return String::new() };
    // Of what is deleted only name and uid are known.
    let status = one.status.as_ref();
    let revision = if from.revision == 0 { "-".to_owned() } else { from.revision.to_string() };
    let line = change_line([
        json::change(from),
        if one.display_name.is_empty() { "-" } else { &one.display_name },
        if one.r#type.is_empty() { "-" } else { &one.r#type },
        status.map_or("-", |_| if one.enabled { "yes" } else { "no" }),
        status.map_or("-", shown),
        &revision,
        &one.uid,
    ]);
    let phase = status.map_or("-", shown);
    match grid::colour(phase).filter(|_| look.coloured) {
        // Only the phase is between two spaces and in upper case.
        Some(colour) => line.replacen(&format!(" {phase} "), &format!(" {} ", phase.with(colour)), 1),
        None => line,
    }
}

/// Columns of a width that was chosen before it was known what comes.
fn change_line(cells: [&str; 7]) -> String {
    let cells = cells.map(|cell| cell.replace(|c: char| c.is_control(), " "));
    let [change, name, kind, enabled, phase, revision, uid] = cells;
    format!("{change:<8}  {name:<24}  {kind:<6}  {enabled:<7}  {phase:<8}  {revision:<8}  {uid}\n")
}

/// All about one integration.
pub(crate) fn integration(one: &Integration, look: Look) -> String {
    let status = one.status.clone().unwrap_or_default();
    let lag = status.lag.unwrap_or_default();
    let mut text = facts([
        ("Name", one.display_name.clone()),
        ("UID", one.uid.clone()),
        ("Type", one.r#type.clone()),
        ("Enabled", yes(one.enabled)),
        ("Phase", phase(&status).to_owned()),
        ("Reason", status.reason),
        ("Error", status.error),
        ("Executor", status.service_id),
        ("Lag", status.lag.as_ref().map(stats::backlog).unwrap_or_default()),
        ("Oldest kept until", time(lag.kept_until).unwrap_or_default()),
        ("Topic removed", time(lag.topic_removal_time).unwrap_or_default()),
        ("Filters", filters(one)),
        ("Description", one.description.clone()),
        ("Labels", labels(one)),
        ("Revision", one.revision.to_string()),
        ("Created", time(one.create_time).unwrap_or_default()),
        ("Updated", time(one.update_time).unwrap_or_default()),
        ("Disabled since", time(one.disconnected_time).unwrap_or_default()),
    ]);
    if !status.holders.is_empty() {
        let rows = status.holders.iter().map(|holder| {
            // Only executors own shards.
            let own = |number: String| if holder.role == "EXECUTOR" { number } else { "-".to_owned() };
            vec![
                holder.service_id.clone(),
                holder.role.clone(),
                own(holder.shard.to_string()),
                own(holder.ownership_epoch.to_string()),
                holder.observed_revision.to_string(),
                holder.state.clone(),
                holder.error.clone(),
            ]
        });
        text.push('\n');
        let header = ["HOLDER", "ROLE", "SHARD", "EPOCH", "REVISION", "STATE", "ERROR"];
        text.push_str(&grid(&header, rows, look.coloured));
    }
    text
}

/// TIME, INTEGRATION, TYPE, WHAT, SERVICE; wide: SHARD, REVISION, UID.
pub(crate) fn events(all: &[Event], look: Look) -> String {
    let mut header = EVENT_HEADER.to_vec();
    if look.wide {
        header.extend(["SHARD", "REVISION", "UID"]);
    }
    let rows = all.iter().map(|event| {
        let mut row = event_cells(event).to_vec();
        if look.wide {
            row.extend([event.shard.to_string(), event.revision.to_string(), event.uid.clone()]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

const EVENT_HEADER: [&str; 5] = ["TIME", "INTEGRATION", "TYPE", "WHAT", "SERVICE"];

fn event_cells(event: &Event) -> [String; 5] {
    let (kind, what) = match &event.body {
        Some(Body::Lifecycle(body)) if body.error.is_empty() => ("lifecycle", body.event.clone()),
        Some(Body::Lifecycle(body)) if body.success => {
            ("lifecycle", format!("{}: {}", body.event, body.error))
        }
        Some(Body::Lifecycle(body)) => ("lifecycle", format!("{} failed: {}", body.event, body.error)),
        Some(Body::Statistics(body)) => {
            ("statistics", format!("{} processed, {} errors", body.messages_processed, body.errors_occurred))
        }
        Some(Body::Error(body)) => {
            ("error", format!("{} ({}×): {}", body.method, body.count.max(1), body.error))
        }
        None => ("unknown", String::new()),
    };
    let integration = event.integration.strip_prefix("integrations/").unwrap_or(&event.integration);
    [
        time(event.time).unwrap_or_default(),
        integration.to_owned(),
        kind.to_owned(),
        what,
        event.service_id.clone(),
    ]
}

/// TIME, INTEGRATION, TYPE, SERVICE, WHAT: of lines that come one by one.
pub(crate) fn event_header() -> String {
    event_cells_line(EVENT_HEADER.map(str::to_owned))
}

/// One line.
pub(crate) fn event_line(event: &Event) -> String {
    event_cells_line(event_cells(event))
}

/// Columns of a width that was chosen before it was known what comes; what has no limit is last.
fn event_cells_line(cells: [String; 5]) -> String {
    let cells = cells.map(|cell| cell.replace(|c: char| c.is_control(), " "));
    let [time, integration, kind, what, service] = cells;
    format!("{time:<24}  {integration:<36}  {kind:<10}  {service:<20}  {what}\n")
}

/// SERVICE, ROLE, VERSION, LIVE, LAST SEEN, ADDRESSES, KINDS; wide: SESSION, DRAINING, CONNECTIONS, CPU, MEMORY, DISK,
/// STARTED.
pub(crate) fn nodes(all: &[Node], look: Look) -> String {
    let mut header = vec!["SERVICE", "ROLE", "VERSION", "LIVE", "LAST SEEN", "ADDRESSES", "KINDS"];
    if look.wide {
        header.extend(["SESSION", "DRAINING", "CONNECTIONS", "CPU", "MEMORY", "DISK", "STARTED"]);
    }
    let rows = all.iter().map(|node| {
        let mut row = vec![
            node.service_id.clone(),
            node.role.clone(),
            node.version.clone(),
            yes(node.live),
            time(node.last_seen_time).unwrap_or_default(),
            node.addresses.join(", "),
            node.kinds.join(", "),
        ];
        if look.wide {
            row[5] = or_dash(Some(node.addresses.join(", ")));
            row[6] = or_dash(Some(node.kinds.join(", ")));
            let info = node.system_info.as_ref();
            let part = |percent: u32, total: u64| format!("{percent}% of {}", bytes(total));
            // Only data planes have clients.
            let own = |text: String| or_dash((node.role == "DATA_PLANE").then_some(text));
            row.extend([
                own(yes(node.session)),
                own(yes(node.draining)),
                own(node.connections.to_string()),
                or_dash(info.map(|info| format!("{}% of {}", info.cpu_percent, info.cpu_count))),
                or_dash(info.map(|info| part(info.memory_percent, info.total_memory_bytes))),
                or_dash(info.map(|info| part(info.disk_percent, info.total_disk_bytes))),
                or_dash(time(node.start_time)),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// In the greatest binary unit that leaves a whole part.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (number.max(1).ilog2() / 10).min(UNITS.len() as u32 - 1);
    if unit == 0 {
        return format!("{number} B");
    }
    format!("{:.1} {}", number as f64 / f64::from(1_u32 << 10).powi(unit as i32), UNITS[unit as usize])
}

/// TYPE, SERVED BY.
pub(crate) fn kinds(all: &[Kind]) -> String {
    let rows = all.iter().map(|kind| {
        let by =
            if kind.service_ids.is_empty() { "nobody now".to_owned() } else { kind.service_ids.join(", ") };
        vec![kind.name.clone(), by]
    });
    table(&["TYPE", "SERVED BY"], rows)
}

/// STAGE, RESULT, MS, TEXT, and who checked.
pub(crate) fn check(answer: &CheckConnectionResponse, look: Look) -> String {
    let rows = answer.stages.iter().map(|stage| {
        let result = if stage.ok { "ok" } else { "failed" };
        vec![stage.name.clone(), result.to_owned(), stage.elapsed_ms.to_string(), stage.text.clone()]
    });
    let result = if answer.ok { "ok" } else { "failed" };
    let summary = format!("{result}, checked by {} in {} ms\n", answer.executor_id, answer.elapsed_ms);
    if answer.stages.is_empty() {
        summary
    } else {
        grid(&["STAGE", "RESULT", "MS", "TEXT"], rows, look.coloured) + &summary
    }
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// One line per row under the header, if there is one.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    grid(header, rows, false)
}

/// One thing: what is known of it, a line each.
fn facts<const N: usize>(rows: [(&str, String); N]) -> String {
    let known = rows.into_iter().filter(|(_, value)| !value.is_empty());
    table(&[], known.map(|(key, value)| vec![format!("{key}:"), value]))
}

#[cfg(test)]
mod tests {
    use tbmq_proto::control::{
        CheckStage, Holder, IntegrationStatus, Lag, event::Lifecycle, integration_status::Phase,
    };

    use super::*;

    fn sensors() -> Integration {
        Integration {
            uid: "0e2f".to_owned(),
            display_name: "sensors".to_owned(),
            r#type: "HTTP".to_owned(),
            enabled: true,
            configuration_json: r#"{"topicFilters":["a/#","b"]}"#.to_owned(),
            revision: 7,
            status: Some(IntegrationStatus {
                phase: Phase::Active.into(),
                lag: Some(Lag { messages: 3, seconds: 1.25, ..Lag::default() }),
                holders: vec![
                    Holder {
                        service_id: "ie1".to_owned(),
                        role: "EXECUTOR".to_owned(),
                        observed_revision: 7,
                        state: "STARTED".to_owned(),
                        shard: 1,
                        ownership_epoch: 12,
                        ..Holder::default()
                    },
                    Holder {
                        service_id: "dp1".to_owned(),
                        role: "DATA_PLANE".to_owned(),
                        observed_revision: 7,
                        state: "APPLIED".to_owned(),
                        ..Holder::default()
                    },
                ],
                ..IntegrationStatus::default()
            }),
            ..Integration::default()
        }
    }

    #[test]
    fn a_list_has_one_line_per_integration() {
        let second = Integration { display_name: "b\nad".to_owned(), ..Integration::default() };
        let expected = "\
NAME     TYPE  ENABLED  PHASE    REVISION  LAG  UID
sensors  HTTP  yes      ACTIVE   7         3    0e2f
b ad           no       UNKNOWN  0         -
";
        assert_eq!(integrations(&[sensors(), second], Look::default()), expected);
    }

    #[test]
    fn one_that_is_stalled_is_shown_so_in_a_list() {
        let mut stalled = sensors();
        stalled.status.as_mut().unwrap().reason = "STALLED".to_owned();
        assert!(integrations(&[stalled], Look::default()).contains("yes      STALLED  7"));
    }

    #[test]
    fn changes_are_lines_under_their_header() {
        use tbmq_proto::control::watch_integrations_response::Type;
        let change = |what: Type, integration, revision| {
            change(&WatchIntegrationsResponse { r#type: what.into(), integration, revision }, Look::default())
        };
        let gone = Integration { uid: "0e2f".to_owned(), ..Integration::default() };
        let text = change_header()
            + &change(Type::Added, Some(sensors()), 0)
            + &change(Type::Bookmark, None, 8)
            + &change(Type::Deleted, Some(gone), 9);
        let expected = "\
CHANGE    NAME                      TYPE    ENABLED  PHASE     REVISION  UID
ADDED     sensors                   HTTP    yes      ACTIVE    -         0e2f
DELETED   -                         -       -        -         9         0e2f
";
        assert_eq!(text, expected);
    }

    #[test]
    fn one_integration_shows_what_is_known_and_who_holds_it() {
        let expected = "\
Name:      sensors
UID:       0e2f
Type:      HTTP
Enabled:   yes
Phase:     ACTIVE
Lag:       3 messages, the oldest 1.2 s old
Filters:   a/#, b
Revision:  7

HOLDER  ROLE        SHARD  EPOCH  REVISION  STATE    ERROR
ie1     EXECUTOR    1      12     7         STARTED
dp1     DATA_PLANE  -      -      7         APPLIED
";
        assert_eq!(integration(&sensors(), Look::default()), expected);
    }

    #[test]
    fn a_failed_event_says_why() {
        let body = Lifecycle { event: "STARTED".to_owned(), success: false, error: "no route".to_owned() };
        let event = Event {
            integration: "integrations/0e2f".to_owned(),
            service_id: "ie1".to_owned(),
            body: Some(Body::Lifecycle(body)),
            ..Event::default()
        };
        let text = events(&[event], Look::default());
        assert!(
            text.lines().nth(1).unwrap().contains("0e2f         lifecycle  STARTED failed: no route  ie1"),
            "{text}"
        );
    }

    #[test]
    fn a_check_shows_its_stages_and_who_did_it() {
        let stage = |name: &str, ok, text: &str| CheckStage {
            name: name.to_owned(),
            ok,
            elapsed_ms: 2,
            text: text.to_owned(),
        };
        let answer = CheckConnectionResponse {
            stages: vec![stage("resolve", true, ""), stage("connect", false, "refused")],
            executor_id: "ie1".to_owned(),
            elapsed_ms: 4,
            ..CheckConnectionResponse::default()
        };
        let expected = "\
STAGE    RESULT  MS  TEXT
resolve  ok      2
connect  failed  2   refused
failed, checked by ie1 in 4 ms
";
        assert_eq!(check(&answer, Look::default()), expected);
    }
}
