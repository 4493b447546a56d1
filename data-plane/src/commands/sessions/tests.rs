use std::{collections::BTreeSet, net::SocketAddr};

use tbmq_mqtt::packet::ProtocolVersion;
use tbmq_proto::control::SubscriptionCount;

use super::*;
use crate::{mailbox::QueueLimits, metrics::Metrics};

/// A session as it stands in the registry.
struct Given {
    id: String,
    username: &'static str,
    client_type: ClientType,
    clean_start: bool,
    peer: &'static str,
    connected_ms: i64,
    /// 0: connected.
    disconnected_ms: i64,
    filters: usize,
}

fn given(id: &str) -> Given {
    Given {
        id: id.to_owned(),
        username: "",
        client_type: ClientType::Device,
        clean_start: true,
        peer: "10.0.0.1:1",
        connected_ms: 1000,
        disconnected_ms: 0,
        filters: 0,
    }
}

fn add(registry: &Registry, number: u64, given: Given) {
    let mailbox = Arc::new(Mailbox::new(number, QueueLimits { messages: 1, bytes: 1 }));
    let id: Arc<str> = given.id.into();
    mailbox.introduce(Client {
        id: id.clone(),
        username: (!given.username.is_empty()).then(|| given.username.into()),
        version: ProtocolVersion::V5,
        clean_start: given.clean_start,
        keep_alive_s: 0,
        client_type: given.client_type,
        details: Box::default(),
        peer: Some(given.peer.parse::<SocketAddr>().unwrap()),
        session_id: Uuid::from_u128(number.into()),
        connected_ms: given.connected_ms,
        disconnected_ms: given.disconnected_ms.into(),
        filters: given.filters.into(),
    });
    if given.disconnected_ms == 0 {
        registry.admit(&id, &mailbox, false, || false, |_| {});
    } else {
        registry.restore(&id, &mailbox);
    }
}

fn registry() -> Registry {
    Registry::new(0, true, Metrics::default())
}

async fn ids(registry: &Registry, wanted: QuerySessions) -> (Vec<String>, bool) {
    let page = query(registry, QuerySessions { limit: 1000, ..wanted }).await.unwrap();
    (page.sessions.into_iter().map(|one| one.client_id).collect(), page.more)
}

#[tokio::test]
async fn each_filter_lets_through_what_it_says() {
    let registry = registry();
    let all = [
        Given { username: "Alice", filters: 1, ..given("a") },
        Given { client_type: ClientType::Application, clean_start: false, filters: 2, ..given("b") },
        Given { peer: "[::ffff:10.3.0.7]:9", connected_ms: 2000, filters: 3, ..given("c") },
        Given { disconnected_ms: 5000, filters: 4, ..given("d") },
    ];
    for (number, one) in all.into_iter().enumerate() {
        add(&registry, number as u64 + 1, one);
    }
    let time = |ms| Some(timestamp(ms));
    let count = |operator: Operator, value| {
        let subscription_count = Some(SubscriptionCount { operator: operator.into(), value });
        SessionFilter { subscription_count, ..SessionFilter::default() }
    };
    let none = SessionFilter::default;
    let cases = [
        ("abcd", none()),
        ("abc", SessionFilter { states: vec![ConnectionState::Connected.into()], ..none() }),
        ("d", SessionFilter { states: vec![ConnectionState::Disconnected.into()], ..none() }),
        ("acd", SessionFilter { client_types: vec!["DEVICE".to_owned()], ..none() }),
        ("b", SessionFilter { client_types: vec!["APPLICATION".to_owned()], ..none() }),
        ("b", SessionFilter { clean_start: Some(false), ..none() }),
        ("acd", SessionFilter { clean_start: Some(true), ..none() }),
        ("b", count(Operator::Equal, 2)),
        ("acd", count(Operator::NotEqual, 2)),
        ("cd", count(Operator::Greater, 2)),
        ("a", count(Operator::Less, 2)),
        ("bcd", count(Operator::GreaterOrEqual, 2)),
        ("ab", count(Operator::LessOrEqual, 2)),
        ("c", SessionFilter { address: "10.3.0.7".to_owned(), ..none() }),
        ("c", SessionFilter { address: "10.3.0.0/16".to_owned(), ..none() }),
        ("abcd", SessionFilter { address: "10.0.0.0/8".to_owned(), ..none() }),
        ("a", SessionFilter { username: "aLI".to_owned(), ..none() }),
        // Of those that are not connected the time is when they went.
        ("cd", SessionFilter { start_time: time(2000), ..none() }),
        ("ab", SessionFilter { end_time: time(2000), ..none() }),
        ("c", SessionFilter { start_time: time(1001), end_time: time(5000), ..none() }),
        ("", SessionFilter { clean_start: Some(false), username: "alice".to_owned(), ..none() }),
    ];
    for (expected, filter) in cases {
        let wanted = QuerySessions { filter: Some(filter.clone()), ..QuerySessions::default() };
        assert_eq!(ids(&registry, wanted).await.0.concat(), expected, "{filter:?}");
    }
    let wanted = QuerySessions { text_search: "B".to_owned(), ..QuerySessions::default() };
    assert_eq!(ids(&registry, wanted).await.0, ["b"]);
    let filter = Some(SessionFilter { address: "10.3".to_owned(), ..none() });
    let refused = query(&registry, QuerySessions { filter, ..QuerySessions::default() }).await.unwrap_err();
    assert!(refused.contains("10.3"), "{refused}");
}

#[tokio::test]
async fn every_order_is_stable_and_can_be_paged() {
    let registry = registry();
    for number in 0..100_u64 {
        let client_type = if number % 2 == 0 { ClientType::Device } else { ClientType::Application };
        let one = Given {
            username: ["", "x", "y"][number as usize % 3],
            client_type,
            connected_ms: 1000 + number as i64 % 7,
            disconnected_ms: number as i64 % 2 * (2000 + number as i64 % 5),
            filters: number as usize % 11,
            ..given(&format!("c{number:03}"))
        };
        add(&registry, number + 1, one);
    }
    let orders = [
        SessionOrder::Unspecified,
        SessionOrder::Username,
        SessionOrder::ClientType,
        SessionOrder::ConnectTime,
        SessionOrder::DisconnectTime,
        SessionOrder::SubscriptionCount,
    ];
    for order in orders {
        for descending in [false, true] {
            let mut listed = Vec::new();
            let mut after = None;
            loop {
                let wanted = QuerySessions {
                    order: order.into(),
                    descending,
                    after,
                    limit: 7,
                    ..QuerySessions::default()
                };
                let page = query(&registry, wanted).await.unwrap();
                assert!(page.sessions.len() <= 7 && page.sessions.len() == page.places.len());
                let key = |place: &SessionPlace| (place.number, place.text.clone(), place.client_id.clone());
                listed.extend(page.places.iter().map(key));
                after = page.places.last().cloned();
                if !page.more {
                    break;
                }
            }
            let mut expected = listed.clone();
            expected.sort();
            expected.dedup();
            if descending {
                expected.reverse();
            }
            assert_eq!(listed, expected, "{order:?} {descending}");
            assert_eq!(listed.len(), 100, "{order:?} {descending}");
        }
    }
}

#[tokio::test]
async fn of_100_000_sessions_each_is_on_one_page_while_others_come_and_go() {
    const SESSIONS: u64 = 100_000;
    let registry = registry();
    for number in 0..SESSIONS {
        // Every other one has no connection.
        let disconnected_ms = number as i64 % 2;
        add(&registry, number + 1, Given { disconnected_ms, ..given(&format!("c{number:06}")) });
    }
    let mut listed = BTreeSet::new();
    let mut after = None;
    let mut number = SESSIONS;
    loop {
        let page =
            query(&registry, QuerySessions { after, limit: 1000, ..QuerySessions::default() }).await.unwrap();
        for one in &page.sessions {
            let is_new = listed.insert(one.client_id.clone());
            assert!(is_new, "{} is listed twice", one.client_id);
        }
        // Guests come before and behind the place, and those of the page before go.
        number += 1;
        for name in ["a", "c05", "z"] {
            add(&registry, number, given(&format!("{name}-guest-{number}")));
            registry.remove(&format!("{name}-guest-{}", number - 1), number - 1, || {});
        }
        after = page.places.last().cloned();
        if !page.more {
            break;
        }
    }
    let stayed = listed.iter().filter(|id| !id.contains("guest")).count();
    assert_eq!(stayed as u64, SESSIONS);
}

#[tokio::test]
async fn an_answer_stays_bounded_in_every_order() {
    let registry = registry();
    for number in 0..40 {
        let id = format!("{number:02}{}", "x".repeat(60_000));
        add(&registry, number + 1, Given { filters: (number * 7 % 40) as usize, ..given(&id) });
    }
    for order in [SessionOrder::Unspecified, SessionOrder::SubscriptionCount] {
        let (mut listed, mut after) = (BTreeSet::new(), None);
        loop {
            let wanted =
                QuerySessions { order: order.into(), after, limit: 1000, ..QuerySessions::default() };
            let page = query(&registry, wanted).await.unwrap();
            let bytes: usize = page.sessions.iter().map(weight).sum();
            assert!(bytes < ANSWER_BYTES_MAX + 200_000, "{bytes}");
            listed.extend(page.sessions.into_iter().map(|one| one.client_id));
            after = page.places.last().cloned();
            if !page.more {
                break;
            }
        }
        assert_eq!(listed.len(), 40, "{order:?}");
    }
}
