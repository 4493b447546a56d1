use std::collections::BTreeSet;

use prost_types::FieldMask;
use tbmq_bus::memory::MemoryBus;
use tbmq_service::drain::Drain;
use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::{
    store::{New, Saved},
    testing,
};

/// The service over a store with integrations named `n00`, `n01`, ...
async fn service(count: usize, make: impl Fn(usize) -> New) -> (TempDir, Integrations) {
    let folder = tempfile::tempdir().unwrap();
    let plane = testing::plane(folder.path(), &MemoryBus::new(), "cp1").await;
    for i in 0..count {
        let saved = Saved { now_ms: 1_000 * (i as i64 / 3), ..plane.saved(None) };
        plane.store.create(make(i), saved).await.unwrap();
    }
    (folder, Integrations::new(plane, Drain::new()))
}

/// Kinds in turn, every fourth disabled, two sites.
fn various(i: usize) -> New {
    let labels = [("site".to_owned(), if i.is_multiple_of(2) { "a" } else { "b" }.to_owned())];
    New {
        kind: ["HTTP", "KAFKA", "MQTT"][i % 3].parse().unwrap(),
        enabled: !i.is_multiple_of(4),
        labels: if i.is_multiple_of(5) { labels.into() } else { [].into() },
        configuration: format!(r#"{{"topicFilters":["t/{i}"],"clientConfiguration":{{}}}}"#),
        ..testing::new(&format!("n{i:02}"))
    }
}

fn request(filter: &str, order_by: &str, page_size: i32) -> ListIntegrationsRequest {
    ListIntegrationsRequest {
        filter: filter.to_owned(),
        order_by: order_by.to_owned(),
        page_size,
        ..ListIntegrationsRequest::default()
    }
}

/// Names on all pages, and what each page says of the total.
async fn walk(service: &Integrations, mut request: ListIntegrationsRequest) -> (Vec<String>, BTreeSet<i64>) {
    let (mut names, mut totals) = (Vec::new(), BTreeSet::new());
    loop {
        let page = service.list(request.clone()).await.unwrap();
        assert!(page.integrations.len() <= request.page_size as usize);
        totals.insert(page.total_size);
        names.extend(page.integrations.into_iter().map(|integration| integration.display_name));
        if page.next_page_token.is_empty() {
            return (names, totals);
        }
        request.page_token = page.next_page_token;
    }
}

fn problem(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    status.message().to_owned()
}

#[tokio::test]
async fn pages_of_a_filter_hold_what_passes_in_the_order_that_was_asked_for() {
    const COUNT: usize = 30;
    let (_folder, service) = service(COUNT, various).await;
    let all = |wanted: &dyn Fn(usize) -> bool| (0..COUNT).filter(|i| wanted(*i)).collect::<Vec<_>>();
    for (filter, wanted, total) in [
        ("", all(&|_| true), 30),
        ("type = KAFKA", all(&|i| i % 3 == 1), 10),
        ("type = KAFKA AND enabled = false", all(&|i| i % 3 == 1 && i % 4 == 0), 3),
        ("labels.site = a", all(&|i| i % 10 == 0), NOT_COUNTED),
        ("labels:site OR display_name = n07", all(&|i| i % 5 == 0 || i == 7), NOT_COUNTED),
        ("NOT labels:site", all(&|i| i % 5 != 0), NOT_COUNTED),
        ("topic_filters:t/1*", all(&|i| i == 1 || (10..20).contains(&i)), NOT_COUNTED),
        ("status.phase = DISABLED", all(&|i| i % 4 == 0), NOT_COUNTED),
        ("status.reason = WAITS*", all(&|i| i % 4 != 0), NOT_COUNTED),
        ("create_time >= 1970-01-01T00:00:09Z", all(&|i| i >= 27), NOT_COUNTED),
        ("disconnected_time:* type = HTTP", all(&|i| i % 12 == 0), NOT_COUNTED),
        ("type = PULSAR", Vec::new(), 0),
    ] {
        for page_size in [1, 4, 1000] {
            for (order_by, descending) in
                [("", false), ("revision desc", true), ("create_time, display_name", false)]
            {
                let (names, totals) = walk(&service, request(filter, order_by, page_size)).await;
                let mut expected: Vec<String> = wanted.iter().map(|i| format!("n{i:02}")).collect();
                if descending {
                    expected.reverse();
                }
                assert_eq!(names, expected, "{filter:?} by {order_by:?} in pages of {page_size}");
                assert_eq!(totals, BTreeSet::from([total]), "{filter:?}");
            }
        }
    }
    let searched = ListIntegrationsRequest { text_search: "N1".to_owned(), ..request("type = HTTP", "", 2) };
    assert_eq!(walk(&service, searched).await.0, ["n12", "n15", "n18"]);
}

#[tokio::test]
async fn a_call_looks_at_a_limited_number_of_rows_and_says_where_to_go_on() {
    let (_folder, service) = service(300, |i| testing::new(&format!("n{i:03}"))).await;
    let mut question = Question::read(request("display_name >= n290", "", 5)).unwrap();
    question.looked_max = 100;
    let page = service.page(&question).await.unwrap();
    assert!(page.rows.is_empty());
    question.listing.after = page.next;
    assert!(question.listing.after.is_some(), "it was not at the end");
    question.looked_max = usize::MAX;
    let page = service.page(&question).await.unwrap();
    let names: Vec<&str> = page.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["n290", "n291", "n292", "n293", "n294"]);
}

#[tokio::test]
async fn a_page_of_large_documents_ends_early() {
    let large =
        format!(r#"{{"topicFilters":["a"],"clientConfiguration":{{"x":"{}"}}}}"#, "x".repeat(800_000));
    let document = |i| if i == 5 { "{}".to_owned() } else { large.clone() };
    let (_folder, service) =
        service(6, |i| New { configuration: document(i), ..testing::new(&format!("n{i}")) }).await;
    let page = service.list(request("", "", 100)).await.unwrap();
    assert_eq!((page.integrations.len(), page.total_size), (3, 6));
    let (names, _) = walk(&service, request("", "", 100)).await;
    assert_eq!(names, ["n0", "n1", "n2", "n3", "n4", "n5"]);
}

#[tokio::test]
async fn a_token_answers_only_the_question_that_it_came_from() {
    let (_folder, service) = service(9, various).await;
    let asked = request("enabled = true", "type", 2);
    let token = service.list(asked.clone()).await.unwrap().next_page_token;
    let with = |change: &dyn Fn(&mut ListIntegrationsRequest)| {
        let mut request = ListIntegrationsRequest { page_token: token.clone(), ..asked.clone() };
        change(&mut request);
        request
    };
    for (what, other) in [
        ("filter", with(&|request| request.filter = "enabled = false".to_owned())),
        ("order", with(&|request| request.order_by = "type desc".to_owned())),
        ("search", with(&|request| request.text_search = "n".to_owned())),
        ("made up", with(&|request| request.page_token = "e30".to_owned())),
        ("cut", with(&|request| request.page_token.truncate(5))),
    ] {
        let status = service.list(other).await.expect_err(what);
        assert!(problem(&status).contains("page_token: is not a token of this listing"), "{what}: {status}");
    }
    // What no token depends on.
    let other = with(&|request| (request.page_size, request.view) = (3, IntegrationView::Full.into()));
    assert_eq!(service.list(other).await.unwrap().integrations.len(), 3);
    // Well-formed, and with keys of another type or with what no database takes.
    let text = format!("integrations {:?} {:?} {:?}", "", asked.filter, asked.order_by);
    let id = uuid::Uuid::nil();
    use crate::store::PlaceKey::{Number, Text};
    for keys in [vec![Number(1)], vec![Text("\0".to_owned())], vec![], vec![Text("a".to_owned()), Number(1)]]
    {
        let page_token = page::token(&Place { keys, id }, &text);
        let status = service.list(with(&|request| request.page_token.clone_from(&page_token))).await;
        problem(&status.unwrap_err());
    }
}

#[tokio::test]
async fn every_problem_of_a_request_is_told_at_once() {
    let (_folder, service) = service(0, various).await;
    let bad = ListIntegrationsRequest {
        text_search: "\0".to_owned(),
        view: 77,
        ..request("type =", "type, type", 10)
    };
    let text = problem(&service.list(bad).await.unwrap_err());
    for part in [
        "text_search: must not contain U+0000",
        "view: 77 is not a view",
        "filter: at character 7: a value is missing",
        "order_by: \"type\" stands twice",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let read_mask = Some(FieldMask { paths: vec!["nmae".to_owned()] });
    let bad = ListIntegrationsRequest { read_mask, ..ListIntegrationsRequest::default() };
    assert!(problem(&service.list(bad).await.unwrap_err()).contains("read_mask: \"nmae\" is not a field"));
    let status = service.list(request("", "", -1)).await.unwrap_err();
    assert!(problem(&status).contains("page_size"));
}

#[tokio::test]
async fn the_view_and_the_mask_say_what_is_shown() {
    let (_folder, service) = service(3, various).await;
    let first = async |view: IntegrationView, paths: &[&str]| {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let read_mask = Some(FieldMask { paths });
        let request = ListIntegrationsRequest { view: view.into(), read_mask, ..request("", "", 1) };
        service.list(request).await.unwrap().integrations.remove(0)
    };
    let whole = first(IntegrationView::Unspecified, &[]).await;
    assert!(whole.status.as_ref().is_some_and(|status| status.lag.is_none() && !status.reason.is_empty()));
    assert!(whole.configuration_json.contains("t/0"));
    let full = first(IntegrationView::Full, &[]).await;
    assert_eq!(full.status.unwrap().lag.map(|lag| lag.messages), Some(0), "its topic is not made yet");
    let lean = first(IntegrationView::Full, &["display_name", "status.phase"]).await;
    let status = IntegrationStatus { phase: whole.status.unwrap().phase, ..IntegrationStatus::default() };
    let expected =
        Integration { display_name: "n00".to_owned(), status: Some(status), ..Integration::default() };
    assert_eq!(lean, expected);
}

#[test]
fn an_order_is_read_or_refused_with_a_way_out() {
    let sort = |key, descending| Sort { key, descending };
    assert_eq!(read_order(" "), Ok(vec![sort(SortKey::Name, false)]));
    assert_eq!(
        read_order("type desc , create_time,revision  asc"),
        Ok(vec![sort(SortKey::Kind, true), sort(SortKey::Created, false), sort(SortKey::Revision, false)])
    );
    for (bad, expected) in [
        ("nmae", "can't order by \"nmae\""),
        ("type,", "can't order by \"\""),
        ("type up", "neither a field"),
        ("type desc desc", "neither a field"),
        ("type, type desc", "stands twice"),
    ] {
        let problem = read_order(bad).unwrap_err();
        assert!(problem.contains(expected), "{bad}: {problem}");
    }
}
