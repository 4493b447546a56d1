use std::collections::BTreeMap;

use proptest::prelude::*;
use tbmq_integration::wire::Cause;
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

use super::*;

fn row() -> Row {
    Row {
        parted: None,
        unreadable: None,
        id: IntegrationId(Uuid::nil()),
        name: "Plant 7".to_owned(),
        kind: "HTTP".parse().unwrap(),
        enabled: true,
        configuration: String::new(),
        labels: [("site", "berlin"), ("empty", ""), ("a.b", "dotted"), ("x-y/z", "1")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        description: "says \"hi\" and 2*2".to_owned(),
        revision: 42,
        cause: Cause::Created,
        created_ms: 1_700_000_000_500,
        updated_ms: 1_700_000_001_000,
        disconnected_ms: None,
    }
}

fn passes_row(filter: &str, row: &Row) -> bool {
    let filters = ["a/#".to_owned(), "b/+/c".to_owned()];
    let subject = Subject { row, topic_filters: &filters, status: Some((Phase::Active, "RUNNING")) };
    Filter::parse(filter).unwrap_or_else(|problem| panic!("{filter}: {problem}")).passes(subject)
}

fn passes(filter: &str) -> bool {
    passes_row(filter, &row())
}

fn problem(filter: &str) -> String {
    Filter::parse(filter).expect_err(filter).to_string()
}

#[test]
fn each_field_is_compared_as_its_type_is() {
    for (filter, expected) in [
        ("", true),
        ("  ", true),
        (r#"display_name = "Plant 7""#, true),
        (r#"display_name = "plant 7""#, false),
        (r#"display_name:"plant""#, true),
        (r#"display_name = "Plant*""#, true),
        ("display_name = *7", true),
        ("display_name = *lan*", true),
        ("display_name = lan*", false),
        ("display_name != Plant*", false),
        ("display_name = *", true),
        (r#"display_name >= "Plant" AND display_name < "Plantz""#, true),
        ("type = HTTP", true),
        ("type != HTTP", false),
        ("enabled = true", true),
        ("enabled != true", false),
        (r#"description:"SAYS \"hi\"""#, true),
        (r#"description = "*2\*2""#, true),
        (r#"description = "*2\*3""#, false),
        ("description:*", true),
        ("labels:site", true),
        ("labels:other", false),
        ("labels:*", true),
        ("labels.site = berlin", true),
        ("labels.site = 'berlin'", true),
        ("labels.site:*", true),
        ("labels.empty:*", true),
        ("labels.other:*", false),
        ("labels.other != x", false),
        ("NOT labels.other = x", true),
        (r#"labels."a.b" = dotted"#, true),
        ("labels.x-y/z = 1", true),
        ("revision = 42", true),
        ("revision > 42", false),
        ("revision>=42", true),
        ("revision != 42", false),
        ("create_time = 2023-11-14T22:13:20.500Z", true),
        (r#"create_time > "2023-11-14T22:13:20.4999Z""#, true),
        (r#"create_time < "2023-11-15T00:00:00+01:00""#, true),
        ("update_time >= 2023-11-14T22:13:21Z", true),
        ("disconnected_time:*", false),
        ("disconnected_time != 2023-11-14T22:13:21Z", false),
        ("create_time:*", true),
        (r#"topic_filters:"a/#""#, true),
        ("topic_filters:b/+/c", true),
        ("topic_filters:b/*", true),
        ("topic_filters:c/*", false),
        ("status.phase = ACTIVE", true),
        ("status.phase = phase_failed", false),
        ("status.phase != FAILED", true),
        ("status.phase:PHASE_ACTIVE", true),
        ("status.reason = RUN*", true),
    ] {
        assert_eq!(passes(filter), expected, "{filter}");
    }
    let disabled = Row { disconnected_ms: Some(5), ..row() };
    assert!(passes_row("disconnected_time:* AND disconnected_time < 2000-01-01T00:00:00Z", &disabled));
    let bare = Row { labels: BTreeMap::new(), ..row() };
    assert!(!passes_row("labels:*", &bare));
}

#[test]
fn or_binds_tighter_than_and_and_what_stands_side_by_side_is_joined() {
    for (filter, expected) in [
        // (false OR true) AND false, not false OR (true AND false).
        ("type = A OR type = HTTP AND enabled = false", false),
        ("enabled = false AND type = HTTP OR type = A", false),
        ("(enabled = false AND type = HTTP) OR type = HTTP", true),
        ("type = HTTP enabled = true", true),
        ("type = HTTP enabled = false", false),
        ("-type = A", true),
        ("-(type = A OR type = HTTP)", false),
        ("NOT (type = A) AND NOT(enabled = false)", true),
        ("((((type = HTTP))))", true),
        ("type=HTTP AND(enabled=true)", true),
    ] {
        assert_eq!(passes(filter), expected, "{filter}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_a_way_out() {
    for (filter, expected) in [
        ("nmae = x", "at character 1: there is no field nmae to filter by; known are display_name,"),
        ("type = A and type = B", "at character 10: write AND in capitals"),
        ("plant", "at character 1: plant is not compared with anything"),
        (r#""plant""#, "at character 1: a comparison is missing"),
        ("type =", "at character 7: a value is missing"),
        ("type == A", "at character 7: one of = != < <= > >= : is enough"),
        ("type = A AND", "at character 10: a comparison is missing"),
        ("OR type = A", "at character 1: a comparison is missing"),
        ("= A", "at character 1: a field is missing"),
        ("(type = A", "at character 1: this `(` is never closed"),
        ("type = A)", "at character 9: this `)` closes nothing"),
        ("type = (A OR B)", "at character 8: a value can't be a list"),
        (r#"type = "A"#, "at character 8: this \" is never closed"),
        ("display_name = a*b", "at character 16: a * stands for anything only at"),
        ("enabled = yes", "at character 11: this field knows only = and != with true or false"),
        ("enabled:*", "at character 9: this field knows only"),
        ("revision = -1", "at character 12: this field knows only"),
        ("create_time > yesterday", "at character 15: this field knows only"),
        ("labels = x", "at character 10: this field knows only the comparison :"),
        ("labels.a.b = x", "at character 1: write labels.\"a.b\""),
        ("labels. = x", "at character 8: a name is missing after the dot"),
        ("topic_filters = x", "at character 17: this field knows only the comparison :"),
        ("status.phase = RUNNING", "at character 16: this field knows only = and !="),
        ("matches(x)", "at character 1: functions are not known here"),
        ("type = \"\u{0}\"", "at character 8: a value can't have U+0000"),
        ("type = ü AND ö = 1", "at character 14: there is no field ö"),
    ] {
        let told = problem(filter);
        assert!(told.starts_with(expected), "{filter}: {told}");
    }
}

#[test]
fn length_depth_and_count_are_limited() {
    let nested = |depth: usize| format!("{}type = A{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Filter::parse(&nested(DEPTH_MAX)).is_ok());
    assert!(problem(&nested(DEPTH_MAX + 1)).contains("more than 16 levels"));
    assert!(problem(&"(".repeat(BYTES_MAX)).contains("more than 16 levels"));
    let joined = |count: usize| vec!["type = A"; count].join(" OR ");
    assert!(Filter::parse(&joined(TESTS_MAX)).is_ok());
    assert!(problem(&joined(TESTS_MAX + 1)).contains("more than 64 comparisons"));
    assert!(problem(&" ".repeat(BYTES_MAX + 1)).contains("more than 4096"));
}

#[test]
fn the_database_takes_what_it_can_look_at_alone() {
    let pushed = |filter: &str| Filter::parse(filter).unwrap().pushed();
    let all = pushed(r#"type = HTTP AND enabled != true AND display_name = "x""#);
    let expected = Pushed {
        name: Some("x".to_owned()),
        kind: Some("HTTP".to_owned()),
        enabled: Some(false),
        is_whole: true,
    };
    assert_eq!(all, expected);
    assert!(pushed("").is_whole);
    let some = pushed("type = HTTP AND type = KAFKA AND revision > 1");
    assert_eq!((some.kind.as_deref(), some.is_whole), (Some("HTTP"), false));
    for none in ["type = HTTP OR enabled = true", "NOT type = HTTP", "type = H*", "type > H", "type:HTTP"] {
        assert_eq!(pushed(none), Pushed::default(), "{none}");
    }
    let needs = |filter: &str| {
        let filter = Filter::parse(filter).unwrap();
        (filter.needs_status(), filter.needs_topic_filters())
    };
    assert_eq!(needs("type = A"), (false, false));
    assert_eq!(needs("type = A OR NOT (status.reason = X)"), (true, false));
    assert_eq!(needs("type = A topic_filters:x"), (false, true));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}") {
        if let Ok(filter) = Filter::parse(&text) {
            filter.pushed();
        }
    }

    #[test]
    fn nor_does_one_of_its_own_words(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "(", ")", "AND", "OR", "NOT", "-", "type", "labels", ".", ":", "=", "<", "!=", "*", "\"", "'", "\\",
                "enabled", "status.phase", "ACTIVE", "true", " ", " ", "ü", "create_time", "9999-99-99T99:99:99Z",
            ]),
            0..40,
        ),
    ) {
        if let Ok(filter) = Filter::parse(&words.concat()) {
            let row = row();
            filter.passes(Subject { row: &row, topic_filters: &[], status: None });
        }
    }
}
