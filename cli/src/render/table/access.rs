//! Tokens, callers, the audit log, and contexts.

use tbmq_proto::control::{AuditEntry, Caller, CreateTokenResponse, Token};

use super::{
    super::{
        Look,
        json::{role, time},
    },
    facts,
    grid::grid,
    or_dash, table,
};
use crate::commands::context::Row;

/// NAME, ROLE, CREATED, EXPIRES, LAST USED, ID.
pub(crate) fn tokens(all: &[Token]) -> String {
    let rows = all.iter().map(|token| {
        vec![
            token.display_name.clone(),
            role(token.role).to_owned(),
            or_dash(time(token.create_time)),
            time(token.expire_time).unwrap_or_else(|| "never".to_owned()),
            time(token.last_used_time).unwrap_or_else(|| "never".to_owned()),
            token.name.clone(),
        ]
    });
    table(&["NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED", "ID"], rows)
}

/// A new token and its secret.
pub(crate) fn created_token(created: &CreateTokenResponse) -> String {
    let token = created.token.clone().unwrap_or_default();
    facts([
        ("Name", token.display_name),
        ("ID", token.name),
        ("Role", role(token.role).to_owned()),
        ("Expires", time(token.expire_time).unwrap_or_else(|| "never".to_owned())),
        ("Secret", created.secret.clone()),
    ])
}

/// Who calls.
pub(crate) fn caller(caller: &Caller, server: &str) -> String {
    facts([
        ("Caller", caller.principal.clone()),
        ("Role", role(caller.role).to_owned()),
        ("Server", server.to_owned()),
    ])
}

/// TIME, CALLER, METHOD, RESOURCE, RESULT, ERROR; wide: ROLE, ADDRESS, ETAG BEFORE, ETAG AFTER, SERVICE.
pub(crate) fn audit(all: &[AuditEntry], look: Look) -> String {
    let mut header = vec!["TIME", "CALLER", "METHOD", "RESOURCE", "RESULT", "ERROR"];
    if look.wide {
        header.extend(["ROLE", "ADDRESS", "ETAG BEFORE", "ETAG AFTER", "SERVICE"]);
    }
    let rows = all.iter().map(|entry| {
        let method = entry.method.rsplit('/').next().unwrap_or(&entry.method);
        let mut row = vec![
            or_dash(time(entry.time)),
            entry.principal.clone(),
            method.to_owned(),
            or_dash(Some(entry.resource.clone())),
            entry.result.clone(),
            entry.error.clone(),
        ];
        if look.wide {
            row[5] = or_dash(Some(entry.error.clone()));
            row.extend([
                role(entry.role).to_owned(),
                or_dash(Some(entry.peer_address.clone())),
                or_dash(Some(entry.etag_before.clone())),
                or_dash(Some(entry.etag_after.clone())),
                entry.service_id.clone(),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// CURRENT, NAME, SERVER, TOKEN, OUTPUT, TIMEOUT.
pub(crate) fn contexts(all: &[Row]) -> String {
    let rows = all.iter().map(|one| {
        vec![
            if one.is_current { "*" } else { "" }.to_owned(),
            one.name.clone(),
            or_dash(Some(one.server.clone())),
            or_dash(Some(one.token.clone())),
            or_dash(output(one)),
            or_dash(Some(one.timeout.clone())),
        ]
    });
    table(&["CURRENT", "NAME", "SERVER", "TOKEN", "OUTPUT", "TIMEOUT"], rows)
}

/// What a call would use.
pub(crate) fn context(one: &Row) -> String {
    facts([
        ("Context", one.name.clone()),
        ("Server", one.server.clone()),
        ("Token", if one.token.is_empty() { "none".to_owned() } else { one.token.clone() }),
        ("CA file", one.ca_file.clone()),
        ("Certificate", one.cert_file.clone()),
        ("Key", one.key_file.clone()),
        ("Output", output(one).unwrap_or_default()),
        ("Timeout", one.timeout.clone()),
    ])
}

fn output(one: &Row) -> Option<String> {
    use clap::ValueEnum as _;
    Some(one.output?.to_possible_value()?.get_name().to_owned())
}
