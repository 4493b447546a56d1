//! Subscriptions of all clients, shared ones, and to give a client others.

use std::collections::{BTreeMap, BTreeSet};

use tbmq_integration::entity::Violation;
use tbmq_mqtt::topic::{self, Rules};
use tbmq_proto::{
    control::{
        ClientSubscription, ListSharedSubscriptionsRequest, ListSharedSubscriptionsResponse,
        SearchSubscriptionsRequest, SearchSubscriptionsResponse, SharedSubscription,
        SharedSubscriptionMember, Subscription, UpdateSubscriptionsRequest,
    },
    node::{
        ClientSubscriptionInfo, GroupInfo, QueryGroups, QuerySubscriptions, SessionReference,
        SetSubscriptions, SubscriptionInfo, SubscriptionPlace, node_reply::Reply, node_request,
    },
};
use tokio::time::Instant;
use tonic::Status;

use super::{
    CLIENT_ID_BYTES_MAX, PAGE_BYTES_MAX, SessionsApi, absent, check,
    ending::mismatch,
    paging::{Told, merge},
    state, to_subscription,
};
use crate::api::{error, page, reach};

/// Bytes of topic filters that a client can be given.
const FILTERS_BYTES_MAX: usize = 1 << 20;

/// MQTT 5.0 §3.8.2.1.2
const IDENTIFIER_MAX: u32 = 268_435_455;

impl SessionsApi {
    pub(super) async fn search_all(
        &self,
        request: SearchSubscriptionsRequest,
        until: Instant,
    ) -> Result<SearchSubscriptionsResponse, Status> {
        let size = page::size(request.page_size)? as usize;
        let filter = request.filter.unwrap_or_default();
        let texts = [
            ("filter.client_id", &filter.client_id),
            ("filter.filter", &filter.filter),
            ("filter.share_name", &filter.share_name),
        ];
        check_lengths(&texts)?;
        let question = format!("subscriptions {filter:?} {:?}", request.service_id);
        let after: Option<(String, String)> = page::place(&request.page_token, &question)?;
        self.check_node(&request.service_id).await?;
        let after = after.map(|(client_id, filter)| SubscriptionPlace { client_id, filter });
        let ask = || {
            node_request::Request::QuerySubscriptions(QuerySubscriptions {
                filter: Some(filter.clone()),
                after: after.clone(),
                limit: size as u32,
            })
        };
        let answers = self.ask_some(&request.service_id, ask, until).await?;
        let silent_nodes = answers.silent_nodes();
        let told = answers.replies.into_iter().filter_map(|(node, reply)| {
            let Reply::Subscriptions(page) = reply else { return None };
            let rows = page.subscriptions.into_iter().map(|info| to_client_subscription(&node, info));
            let through = page.next.map(|next| (next.client_id, next.filter));
            Some(Told { rows: rows.collect(), through })
        });
        let bytes = |one: &ClientSubscription| {
            one.client_id.len() + one.subscription.as_ref().map_or(0, |one| one.filter.len())
        };
        let merged = merge(told.collect(), size, PAGE_BYTES_MAX, Ord::cmp, bytes);
        let next_page_token = merged.next.map(|place| page::token(&place, &question)).unwrap_or_default();
        Ok(SearchSubscriptionsResponse { subscriptions: merged.rows, next_page_token, silent_nodes })
    }

    pub(super) async fn list_shared(
        &self,
        request: ListSharedSubscriptionsRequest,
        until: Instant,
    ) -> Result<ListSharedSubscriptionsResponse, Status> {
        let size = page::size(request.page_size)? as usize;
        let texts = [
            ("share_name", &request.share_name),
            ("filter", &request.filter),
            ("client_id", &request.client_id),
        ];
        check_lengths(&texts)?;
        let question = format!("groups {texts:?}");
        let after: String = page::place(&request.page_token, &question)?.unwrap_or_default();
        let ask = || {
            node_request::Request::QueryGroups(QueryGroups {
                share_name: request.share_name.clone(),
                filter: request.filter.clone(),
                client_id: request.client_id.clone(),
                after: after.clone(),
                limit: size as u32,
            })
        };
        let answers = self.ask_some("", ask, until).await?;
        let silent_nodes = answers.silent_nodes();
        let told = answers.replies.into_iter().filter_map(|(node, reply)| {
            let Reply::Groups(page) = reply else { return None };
            let rows: Vec<_> =
                page.groups.into_iter().map(|info| (info.filter.clone(), (node.clone(), info))).collect();
            let through = rows.last().filter(|_| page.more).map(|(place, _)| place.clone());
            Some(Told { rows, through })
        });
        let bytes = |(_, info): &(String, GroupInfo)| {
            info.filter.len() + info.members.iter().map(|member| member.client_id.len() + 64).sum::<usize>()
        };
        let merged = merge(told.collect(), size, PAGE_BYTES_MAX, Ord::cmp, bytes);
        // The parts of one stand together.
        let mut groups: BTreeMap<String, SharedSubscription> = BTreeMap::new();
        for (node, info) in merged.rows {
            let (share_name, filter) = topic::parts(&info.filter);
            let group = groups.entry(info.filter.clone()).or_insert_with(|| SharedSubscription {
                share_name: share_name.unwrap_or_default().to_owned(),
                filter: filter.to_owned(),
                ..SharedSubscription::default()
            });
            group.member_count += info.member_count;
            group.members.extend(info.members.into_iter().map(|member| SharedSubscriptionMember {
                client_id: member.client_id,
                service_id: node.clone(),
                client_type: member.client_type,
                state: state(member.disconnected).into(),
                qos: member.qos,
            }));
        }
        let next_page_token = merged.next.map(|place| page::token(&place, &question)).unwrap_or_default();
        let shared_subscriptions = groups.into_values().collect();
        Ok(ListSharedSubscriptionsResponse { shared_subscriptions, next_page_token, silent_nodes })
    }

    /// Gives a client subscriptions in place of those that it has, and returns what it has then.
    pub(super) async fn update(
        &self,
        request: UpdateSubscriptionsRequest,
        until: Instant,
    ) -> Result<Vec<Subscription>, Status> {
        let UpdateSubscriptionsRequest { client_id, subscriptions, session_id } = request;
        check(&client_id)?;
        let violations = violations(&subscriptions);
        if !violations.is_empty() {
            return Err(error::invalid(violations));
        }
        let found = self.find_all(&client_id, until).await?;
        let Some(latest) = found.latest() else { return Err(absent(&client_id, &found.answers)) };
        if !session_id.is_empty() && session_id != latest.session_id {
            return Err(mismatch(&client_id));
        }
        let session =
            SessionReference { client_id: client_id.clone(), session_id: latest.session_id.clone() };
        let subscriptions = subscriptions.into_iter().map(to_info).collect();
        let request = node_request::Request::SetSubscriptions(SetSubscriptions {
            session: Some(session),
            subscriptions,
        });
        match reach::ask(&self.plane, &latest.service_id, request, until).await? {
            Reply::Session(detail) if detail.session.is_some() => {
                Ok(detail.subscriptions.into_iter().map(to_subscription).collect())
            }
            _ => Err(mismatch(&client_id)),
        }
    }
}

fn check_lengths(texts: &[(&str, &String)]) -> Result<(), Status> {
    let too_long = texts.iter().filter(|(_, text)| text.len() > CLIENT_ID_BYTES_MAX);
    let violations: Vec<Violation> =
        too_long.map(|(field, _)| Violation::new(*field, "is longer than it can be in MQTT")).collect();
    if violations.is_empty() { Ok(()) } else { Err(error::invalid(violations)) }
}

fn violations(subscriptions: &[Subscription]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut seen = BTreeSet::new();
    let bytes: usize = subscriptions.iter().map(|one| one.filter.len() + one.share_name.len()).sum();
    if bytes > FILTERS_BYTES_MAX {
        violations.push(Violation::new("subscriptions", "the topic filters are too long"));
    }
    for (index, one) in subscriptions.iter().enumerate() {
        let mut refuse = |field: &str, text: &str| {
            violations.push(Violation::new(format!("subscriptions[{index}].{field}"), text));
        };
        let whole = whole(one);
        // How many levels a filter may have is the data planes' own setting.
        match topic::shared(&whole) {
            Ok(None) if one.share_name.is_empty() => {}
            Ok(Some(_)) if !one.share_name.is_empty() => {}
            Ok(Some(_)) => refuse("filter", "the share name stands in a field of its own"),
            _ => refuse("share_name", "is no share name"),
        }
        if let Err(problem) = topic::check_filter(&one.filter, &Rules::default()) {
            refuse("filter", &problem.to_string());
        }
        if one.qos > 2 {
            refuse("qos", "is none of 0, 1 and 2");
        }
        if one.retain_handling > 2 {
            refuse("retain_handling", "is none of 0, 1 and 2");
        }
        if one.no_local && !one.share_name.is_empty() {
            // MQTT-3.8.3-4
            refuse("no_local", "can't be set for a shared subscription");
        }
        if one.identifier.is_some_and(|identifier| identifier == 0 || identifier > IDENTIFIER_MAX) {
            refuse("identifier", "is not from 1 to 268435455");
        }
        if !seen.insert(whole) {
            refuse("filter", "stands twice");
        }
    }
    violations
}

/// The filter as the client has it.
fn whole(one: &Subscription) -> String {
    let Subscription { share_name, filter, .. } = one;
    if share_name.is_empty() { filter.clone() } else { format!("$share/{share_name}/{filter}") }
}

fn to_info(one: Subscription) -> SubscriptionInfo {
    SubscriptionInfo {
        filter: one.filter,
        qos: one.qos,
        share_name: one.share_name,
        no_local: one.no_local,
        retain_as_published: one.retain_as_published,
        retain_handling: one.retain_handling,
        identifier: one.identifier,
    }
}

fn to_client_subscription(
    node: &str,
    info: ClientSubscriptionInfo,
) -> ((String, String), ClientSubscription) {
    let subscription = to_subscription(info.subscription.unwrap_or_default());
    let place = (info.client_id.clone(), whole(&subscription));
    let told = ClientSubscription {
        client_id: info.client_id,
        service_id: node.to_owned(),
        state: state(info.disconnected).into(),
        subscription: Some(subscription),
    };
    (place, told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_that_nobody_can_have_are_refused_all_at_once() {
        let plain = |filter: &str| Subscription { filter: filter.to_owned(), ..Subscription::default() };
        let shared = |name: &str| Subscription { share_name: name.to_owned(), ..plain("a/#") };
        let good = [plain("a"), plain("a/#"), shared("g"), shared("h")];
        assert_eq!(violations(&good), []);
        let bad = [
            plain("a/#/b"),
            plain("$share/g/a"),
            shared("g/h"),
            Subscription { qos: 3, ..plain("q") },
            Subscription { retain_handling: 3, ..plain("r") },
            Subscription { no_local: true, ..shared("n") },
            Subscription { identifier: Some(0), ..plain("i") },
            plain("a"),
            plain("a"),
        ];
        let fields: BTreeSet<String> = violations(&bad).into_iter().map(|violation| violation.path).collect();
        let expected = [
            "subscriptions[0].filter",
            "subscriptions[1].filter",
            "subscriptions[3].qos",
            "subscriptions[4].retain_handling",
            "subscriptions[5].no_local",
            "subscriptions[6].identifier",
            "subscriptions[8].filter",
        ];
        for field in expected {
            assert!(fields.contains(field), "{field} is not among {fields:?}");
        }
    }
}
