//! Credentials, providers, and clients that are not let in.

use tbmq_proto::control::{
    AccessRule, AuthProvider, AuthSettings, BlockedClient, Credentials, UnauthorizedClient,
    credentials::Proof,
};

use super::{
    super::{
        Look,
        json::{blocked_status, blocked_type, match_target, provider_type, time},
    },
    facts,
    grid::grid,
    or_dash, table, yes,
};
use crate::credential::{
    Rule,
    document::{client_type_name, type_name},
};

/// NAME, TYPE, FOR, CLIENT TYPE, UID; wide: RULES, PASSWORD, REVISION, APPLIED, UPDATED.
pub(crate) fn credentials(all: &[Credentials], look: Look) -> String {
    let mut header = vec!["NAME", "TYPE", "FOR", "CLIENT TYPE", "UID"];
    if look.wide {
        header.extend(["RULES", "PASSWORD", "REVISION", "APPLIED", "UPDATED"]);
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![
            one.display_name.clone(),
            type_name(one.r#type).to_owned(),
            one.credentials_id.clone(),
            client_type_name(one).to_owned(),
            one.uid.clone(),
        ];
        if look.wide {
            row.extend([
                rules(one).len().to_string(),
                password(one).unwrap_or("-").to_owned(),
                one.revision.to_string(),
                one.observed_revision.to_string(),
                or_dash(time(one.update_time)),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// All about one credential.
pub(crate) fn credential(one: &Credentials) -> String {
    let (client_id, user_name, common_name) = match &one.proof {
        Some(Proof::Basic(basic)) => (basic.client_id.clone(), basic.user_name.clone(), None),
        Some(Proof::Scram(scram)) => (None, Some(scram.user_name.clone()), None),
        Some(Proof::X509(x509)) => {
            let kind = if x509.is_pattern { " (pattern)" } else { "" };
            (None, None, Some(format!("{}{kind}", x509.common_name)))
        }
        None => (None, None, None),
    };
    let algorithm = match &one.proof {
        Some(Proof::Scram(scram)) => scram.algorithm.clone(),
        _ => String::new(),
    };
    let mut text = facts([
        ("Name", one.display_name.clone()),
        ("UID", one.uid.clone()),
        ("Type", type_name(one.r#type).to_owned()),
        ("Client type", client_type_name(one).to_owned()),
        ("Client id", client_id.unwrap_or_default()),
        ("User", user_name.unwrap_or_default()),
        ("Common name", common_name.unwrap_or_default()),
        ("Password", password(one).unwrap_or_default().to_owned()),
        ("Algorithm", algorithm),
        ("Revision", one.revision.to_string()),
        ("Applied", one.observed_revision.to_string()),
        ("Created", time(one.create_time).unwrap_or_default()),
        ("Updated", time(one.update_time).unwrap_or_default()),
    ]);
    let rules = rules(one);
    text.push('\n');
    if rules.is_empty() {
        text.push_str("no rules: its clients may do nothing\n");
        return text;
    }
    let is_by_leaf = matches!(one.proof, Some(Proof::X509(_)));
    let line = |(leaf, rule): (&str, &AccessRule)| {
        let mut row = vec![Rule(rule.clone()).to_string()];
        if is_by_leaf {
            row.insert(0, leaf.to_owned());
        }
        row
    };
    let header: &[&str] = if is_by_leaf { &["LEAF", "RULE"] } else { &["RULE"] };
    text.push_str(&table(header, rules.into_iter().map(line)));
    text
}

/// Its rules, each with the pattern of the leafs that it is for.
fn rules(one: &Credentials) -> Vec<(&str, &AccessRule)> {
    match &one.proof {
        Some(Proof::Basic(basic)) => basic.rules.iter().map(|rule| ("", rule)).collect(),
        Some(Proof::Scram(scram)) => scram.rules.iter().map(|rule| ("", rule)).collect(),
        Some(Proof::X509(x509)) => x509
            .leaf_rules
            .iter()
            .flat_map(|leaf| leaf.rules.iter().map(|rule| (leaf.pattern.as_str(), rule)))
            .collect(),
        None => Vec::new(),
    }
}

fn password(one: &Credentials) -> Option<&'static str> {
    match &one.proof {
        Some(Proof::Basic(basic)) => Some(if basic.has_password { "yes" } else { "any" }),
        Some(Proof::Scram(_)) => Some("yes"),
        Some(Proof::X509(_)) | None => None,
    }
}

/// TYPE, VALUE, STATE, EXPIRES, DESCRIPTION; wide: NAME.
pub(crate) fn blocked(all: &[BlockedClient], look: Look) -> String {
    let mut header = vec!["TYPE", "VALUE", "STATE", "EXPIRES", "DESCRIPTION"];
    if look.wide {
        header.push("NAME");
    }
    let rows = all.iter().map(|one| {
        let kind = match match_target(one) {
            Some(target) => format!("{} {target}", blocked_type(one)),
            None => blocked_type(one).to_owned(),
        };
        let mut row = vec![
            kind,
            one.value.clone(),
            blocked_status(one).to_owned(),
            time(one.expire_time).unwrap_or_else(|| "never".to_owned()),
            or_dash(Some(one.description.clone())),
        ];
        if look.wide {
            row.push(one.name.clone());
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// CLIENT, USER, ADDRESS, TIMES, LAST, REASON; wide: PASSWORD, TLS.
pub(crate) fn unauthorized(all: &[UnauthorizedClient], look: Look) -> String {
    let mut header = vec!["CLIENT", "USER", "ADDRESS", "TIMES", "LAST", "REASON"];
    if look.wide {
        header.extend(["PASSWORD", "TLS"]);
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![
            one.client_id.clone(),
            or_dash(Some(one.user_name.clone())),
            one.address.clone(),
            one.count.to_string(),
            or_dash(time(one.time)),
            one.reason.clone(),
        ];
        if look.wide {
            row.extend([yes(one.password_provided), yes(one.tls_used)]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// All about one client that was refused.
pub(crate) fn unauthorized_one(one: &UnauthorizedClient) -> String {
    facts([
        ("Client", one.client_id.clone()),
        ("User", one.user_name.clone()),
        ("Address", one.address.clone()),
        ("Password", yes(one.password_provided)),
        ("TLS", yes(one.tls_used)),
        ("Times", one.count.to_string()),
        ("Last", time(one.time).unwrap_or_default()),
        ("Reason", one.reason.clone()),
    ])
}

/// PROVIDER, ENABLED, PLACE, REVISION.
pub(crate) fn providers(all: &[AuthProvider], settings: &AuthSettings, look: Look) -> String {
    let rows = all.iter().map(|one| {
        let kind = provider_type(one);
        let place = settings.priorities.iter().position(|other| other == kind);
        vec![
            kind.to_owned(),
            yes(one.enabled),
            place.map_or_else(|| "-".to_owned(), |place| (place + 1).to_string()),
            one.revision.to_string(),
        ]
    });
    grid(&["PROVIDER", "ENABLED", "PLACE", "REVISION"], rows, look.coloured)
}

/// All about one provider.
pub(crate) fn provider(one: &AuthProvider) -> String {
    let mut text = facts([
        ("Provider", provider_type(one).to_owned()),
        ("Enabled", yes(one.enabled)),
        ("Revision", one.revision.to_string()),
    ]);
    // For people, with its lines apart; what can't be taken apart as it is.
    let configuration = serde_json::from_str::<serde_json::Value>(&one.configuration_json)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| one.configuration_json.clone());
    if !configuration.is_empty() {
        text.extend(["\n", &configuration, "\n"]);
    }
    text
}
