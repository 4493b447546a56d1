//! Subscriptions: which there are, who gets a topic, who shares one, and to give a client others.

use std::sync::Arc;

use futures_util::future::join_all;
use tbmq_mqtt::{
    packet::{Qos, RetainHandling, Text},
    session::Options,
    topic,
};
use tbmq_proto::{
    control::SubscriptionFilter,
    node::{
        ClientMatch, ClientSubscriptionInfo, GroupInfo, GroupMember, GroupPage, Match, MatchList,
        QueryGroups, QuerySubscriptions, SessionDetail, SetSubscriptions, SubscriptionInfo, SubscriptionPage,
        SubscriptionPlace,
    },
};
use tokio::time::{Duration, sleep};

use super::{ANSWER_BYTES_MAX, LIMIT_MAX, sessions};
use crate::{
    mailbox::{Assigned, Filters, Mailbox, Question},
    plane::Plane,
    session_records::{RecordedFilter, client_type_name},
};

/// Sessions that are asked at a time.
const SLICE: usize = 64;

/// Sessions that one answer looks at: each is woken for it.
const LOOKED_MAX: usize = 10_000;

/// Behind all filters of a client.
const END: &str = "\u{10ffff}";

/// Members of a group that are told.
const MEMBERS_MAX: usize = 1000;

/// Groups that are looked at in one go.
const GROUPS_SLICE: usize = 256;

/// The pause before a session of which something is being kept is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// As they are told, by their filters.
///
/// # Errors
/// When they are too long for an answer.
pub(super) fn sorted(filters: &Filters) -> Result<Vec<SubscriptionInfo>, String> {
    let bytes: usize = filters.iter().map(|(filter, _)| filter.len()).sum();
    if bytes > ANSWER_BYTES_MAX {
        return Err(format!("its {} topic filters are too long to be told", filters.len()));
    }
    let mut filters: Vec<_> = filters.iter().collect();
    filters.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Ok(filters.into_iter().map(|(filter, options)| info(filter, *options)).collect())
}

/// Subscriptions of all sessions, by client id and filter.
pub(super) async fn query(plane: &Plane, wanted: QuerySubscriptions) -> SubscriptionPage {
    let limit = wanted.limit.clamp(1, LIMIT_MAX) as usize;
    let test = Test::new(wanted.filter.unwrap_or_default());
    let SubscriptionPlace { client_id, filter } = wanted.after.unwrap_or_default();
    let mut subscriptions = Vec::new();
    let (mut bytes, mut looked) = (0, 0);
    // The rest of a client that was told in part comes first.
    let mut slice: Vec<_> =
        plane.registry.session(&client_id).filter(|_| !filter.is_empty()).into_iter().collect();
    let begun = (client_id.clone(), filter);
    let mut last: Arc<str> = client_id.into();
    loop {
        let asked = slice.iter().map(async |mailbox| {
            let client = mailbox.client()?;
            let is_wanted = client.filters() > 0 && test.has_client(&client.id);
            let filters = if is_wanted { mailbox.ask(Question::Filters).await } else { None };
            Some((client, filters.unwrap_or_default()))
        });
        for (client, mut filters) in join_all(asked).await.into_iter().flatten() {
            filters.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            for (filter, options) in filters {
                let is_told = *begun.0 == *client.id && *filter <= *begun.1;
                if is_told || !test.passes(&filter, options) {
                    continue;
                }
                if subscriptions.len() >= limit || bytes >= ANSWER_BYTES_MAX {
                    let next = subscriptions.last().map(place);
                    return SubscriptionPage { subscriptions, next };
                }
                bytes += client.id.len() + filter.len() + 64;
                subscriptions.push(ClientSubscriptionInfo {
                    client_id: client.id.to_string(),
                    disconnected: client.away_since_ms().is_some(),
                    subscription: Some(info(&filter, options)),
                });
            }
        }
        looked += slice.len();
        if looked >= LOOKED_MAX {
            let next = SubscriptionPlace { client_id: last.to_string(), filter: END.to_owned() };
            return SubscriptionPage { subscriptions, next: Some(next) };
        }
        slice = plane.registry.sessions_after(&last, SLICE);
        let Some(client) = slice.last().and_then(|mailbox| mailbox.client()) else {
            return SubscriptionPage { subscriptions, next: None };
        };
        last = client.id.clone();
        tokio::task::yield_now().await;
    }
}

fn place(last: &ClientSubscriptionInfo) -> SubscriptionPlace {
    let subscription = last.subscription.clone().unwrap_or_default();
    SubscriptionPlace { client_id: last.client_id.clone(), filter: whole(&subscription) }
}

/// A [`SubscriptionFilter`] that is ready for use.
struct Test {
    /// With the client id in lower case.
    wanted: SubscriptionFilter,
}

impl Test {
    fn new(wanted: SubscriptionFilter) -> Self {
        Self { wanted: SubscriptionFilter { client_id: wanted.client_id.to_lowercase(), ..wanted } }
    }

    fn has_client(&self, client_id: &str) -> bool {
        let part = &self.wanted.client_id;
        part.is_empty() || client_id.to_lowercase().contains(part)
    }

    fn passes(&self, filter: &str, options: Options) -> bool {
        let wanted = &self.wanted;
        let one = info(filter, options);
        let is_any = |wanted: &[u32], is: u32| wanted.is_empty() || wanted.contains(&is);
        one.filter.contains(&wanted.filter)
            && (wanted.share_name.is_empty() || one.share_name.contains(&wanted.share_name))
            && is_any(&wanted.qos, one.qos)
            && is_any(&wanted.retain_handling, one.retain_handling)
            && wanted.no_local.is_none_or(|no_local| no_local == one.no_local)
            && wanted.retain_as_published.is_none_or(|is| is == one.retain_as_published)
            && wanted.identifier.is_none_or(|identifier| Some(identifier) == one.identifier)
    }
}

/// Gives a client these subscriptions in place of those that it has.
///
/// # Errors
/// When it can't have them.
pub(super) async fn set(plane: &Plane, wanted: SetSubscriptions) -> Result<SessionDetail, String> {
    let session = wanted.session.unwrap_or_default();
    let id = sessions::wanted_id(&session);
    let filters = wanted.subscriptions.iter().map(read).collect::<Result<Filters, String>>()?;
    loop {
        let Some(mailbox) = plane.registry.session(&session.client_id) else { break };
        match mailbox.ask(|answer| Question::Assign(id, filters.clone(), answer)).await {
            Some(Assigned::Done) => {
                tracing::info!(client_id = session.client_id, "subscriptions set by an operator");
                return sessions::detail(plane, &session.client_id).await;
            }
            Some(Assigned::Replaced) | None => break,
            // Until the caller waits no longer.
            Some(Assigned::Busy) => sleep(BUSY_PAUSE).await,
            Some(Assigned::Refused(text)) => return Err(text),
        }
    }
    Ok(SessionDetail::default())
}

/// Shared subscriptions with their members.
pub(super) async fn groups(plane: &Plane, wanted: QueryGroups) -> GroupPage {
    let limit = wanted.limit.clamp(1, LIMIT_MAX) as usize;
    let part = wanted.client_id.to_lowercase();
    let mut after: Arc<str> = wanted.after.as_str().into();
    let mut groups = Vec::new();
    let mut bytes = 0;
    loop {
        let slice = plane.router.groups_after(&after, GROUPS_SLICE);
        let Some(last) = slice.last() else { return GroupPage { groups, more: false } };
        after = last.filter.clone();
        for group in slice {
            let (share_name, filter) = topic::parts(&group.filter);
            if !share_name.unwrap_or_default().contains(&wanted.share_name)
                || !filter.contains(&wanted.filter)
            {
                continue;
            }
            let (member_count, members) = group.first_members(MEMBERS_MAX);
            let mut members: Vec<GroupMember> =
                members.iter().filter_map(|(mailbox, options)| member(mailbox, *options)).collect();
            let has_part = |member: &GroupMember| member.client_id.to_lowercase().contains(&part);
            if !part.is_empty() && !members.iter().any(has_part) {
                continue;
            }
            if groups.len() >= limit || bytes >= ANSWER_BYTES_MAX {
                return GroupPage { groups, more: true };
            }
            members.sort_unstable_by(|one, other| one.client_id.cmp(&other.client_id));
            let mut left = ANSWER_BYTES_MAX;
            members.retain(|member| {
                let room = left;
                left = left.saturating_sub(member.client_id.len());
                room > 0
            });
            bytes +=
                group.filter.len() + members.iter().map(|member| member.client_id.len() + 32).sum::<usize>();
            groups.push(GroupInfo {
                filter: group.filter.to_string(),
                member_count: member_count as u64,
                members,
            });
        }
        tokio::task::yield_now().await;
    }
}

fn member(mailbox: &Mailbox, options: Options) -> Option<GroupMember> {
    let client = mailbox.client()?;
    Some(GroupMember {
        client_id: client.id.to_string(),
        client_type: client_type_name(client.client_type).to_owned(),
        disconnected: client.away_since_ms().is_some(),
        qos: u32::from(options.qos.bits()),
    })
}

/// Who gets a topic.
///
/// # Errors
/// When it is none.
pub(super) fn matches(plane: &Plane, wanted: &Match) -> Result<MatchList, topic::Invalid> {
    topic::check_name(&wanted.topic, &plane.limits.rules)?;
    let limit = wanted.limit.clamp(1, LIMIT_MAX) as usize;
    let (found, more) = plane.router.subscribers(&wanted.topic, limit, ANSWER_BYTES_MAX);
    let to_match = |(mailbox, filter, options): (Arc<Mailbox>, String, Options)| {
        let client_id = mailbox.client()?.id.to_string();
        let (share_name, filter) = topic::parts(&filter);
        Some(ClientMatch {
            client_id,
            filter: filter.to_owned(),
            qos: u32::from(options.qos.bits()),
            share_name: share_name.unwrap_or_default().to_owned(),
        })
    };
    let mut matches: Vec<ClientMatch> = found.into_iter().filter_map(to_match).collect();
    matches
        .sort_unstable_by(|one, other| (&one.client_id, &one.filter).cmp(&(&other.client_id, &other.filter)));
    Ok(MatchList { matches, more })
}

fn info(filter: &str, options: Options) -> SubscriptionInfo {
    let (share_name, filter) = topic::parts(filter);
    SubscriptionInfo {
        filter: filter.to_owned(),
        qos: u32::from(options.qos.bits()),
        share_name: share_name.unwrap_or_default().to_owned(),
        no_local: options.no_local,
        retain_as_published: options.retain_as_published,
        retain_handling: match options.retain_handling {
            RetainHandling::Send => 0,
            RetainHandling::SendIfNew => 1,
            RetainHandling::DoNotSend => 2,
        },
        identifier: options.identifier,
    }
}

/// The filter as the client has it.
fn whole(info: &SubscriptionInfo) -> String {
    let share_name = (!info.share_name.is_empty()).then(|| info.share_name.clone());
    RecordedFilter { filter: info.filter.clone(), share_name, options: Options::default() }.whole()
}

fn read(info: &SubscriptionInfo) -> Result<(Text, Options), String> {
    let options = Options {
        qos: u8::try_from(info.qos)
            .ok()
            .and_then(Qos::from_bits)
            .ok_or_else(|| format!("{} is no quality of service", info.qos))?,
        no_local: info.no_local,
        retain_as_published: info.retain_as_published,
        retain_handling: match info.retain_handling {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            other => return Err(format!("{other} is no retain handling")),
        },
        identifier: info.identifier,
    };
    Ok((Text::from(&*whole(info)), options))
}
