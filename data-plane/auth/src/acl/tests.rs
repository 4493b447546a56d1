use proptest::prelude::*;

use super::*;

const ALICE: Identity<'_> =
    Identity { client_id: "alice-1", user_name: Some("alice"), common_name: Some("alice.example") };

fn acl_of(rules: Vec<Rule>, identity: &Identity<'_>) -> Acl {
    Acl::new([&RuleSet::new(rules).unwrap()], identity).unwrap()
}

fn allow(filter: &str) -> Rule {
    Rule::by_filter(Effect::Allow, Action::Both, filter)
}

fn deny(filter: &str) -> Rule {
    Rule::by_filter(Effect::Deny, Action::Both, filter)
}

fn regex(effect: Effect, pattern: &str) -> Rule {
    Rule { effect, ..Rule::allow_regex(Action::Both, pattern) }
}

fn publishes(acl: &Acl, name: &str) -> bool {
    acl.may_publish(name, Qos::AtMostOnce, false)
}

fn subscribes(acl: &Acl, filter: &str) -> bool {
    acl.grant(filter, Qos::ExactlyOnce).is_some()
}

#[test]
fn without_rules_nothing_is_allowed_and_without_a_provider_everything() {
    let nothing = acl_of(vec![], &ALICE);
    assert!(!publishes(&nothing, "a") && !subscribes(&nothing, "a"));
    let everything = Acl::everything();
    assert!(publishes(&everything, "a") && subscribes(&everything, "#"));
}

#[test]
fn tbmqs_patterns_match_whole_topics_and_the_text_of_filters() {
    let acl = acl_of(
        vec![
            Rule::allow_regex(Action::Publish, "devices/[0-9]+/up"),
            Rule::allow_regex(Action::Subscribe, "devices/.*"),
        ],
        &ALICE,
    );
    assert!(publishes(&acl, "devices/17/up"));
    for name in ["devices/17/upper", "x/devices/17/up", "devices/17/up/", "devices/x/up"] {
        assert!(!publishes(&acl, name), "{name}");
    }
    assert!(!subscribes(&acl, "devices") && !subscribes(&acl, "#") && !subscribes(&acl, "+/1"));
    assert!(subscribes(&acl, "devices/#") && subscribes(&acl, "devices/+/up"));
    assert!(!publishes(&acl, "devices/17"));
}

#[test]
fn a_filter_that_is_wider_than_a_rule_is_refused() {
    let acl = acl_of(vec![allow("a/+/c"), allow("b/#")], &ALICE);
    for filter in ["a/b/c", "a/+/c", "a//c", "b", "b/#", "b/+", "b/c/+/#"] {
        assert!(subscribes(&acl, filter), "{filter}");
    }
    for filter in ["#", "+", "+/#", "+/+/c", "a/#", "a/+/#", "a/+/+", "a/b/c/#", "+/b", "/b", "b//../a"] {
        assert_eq!(subscribes(&acl, filter), filter.starts_with("b/"), "{filter}");
    }
}

#[test]
fn a_shared_subscription_is_judged_by_its_plain_filter() {
    let acl = acl_of(vec![allow("a/#")], &ALICE);
    assert!(subscribes(&acl, "$share/g/a/b"));
    for filter in
        ["$share/g/#", "$share/g/+/b", "$share/a/b", "$share/a/#", "$share/g", "$share//a/b", "$share/+/a/b"]
    {
        assert!(!subscribes(&acl, filter), "{filter}");
    }
    let by_text = acl_of(vec![regex(Effect::Allow, "a/.*"), regex(Effect::Allow, "\\$share/.*")], &ALICE);
    assert!(subscribes(&by_text, "$share/g/a/b") && !subscribes(&by_text, "$share/g/b"));
    let denied = acl_of(vec![allow("#"), deny("a/#")], &ALICE);
    assert!(!subscribes(&denied, "$share/g/a/b") && !subscribes(&denied, "$share/g/#"));
    assert!(subscribes(&denied, "$share/a/b"));
}

#[test]
fn the_servers_topics_need_a_rule_that_names_them() {
    let acl = acl_of(vec![allow("#"), allow("+/x")], &ALICE);
    for filter in ["$SYS/#", "$SYS/x", "$SYS"] {
        assert!(!subscribes(&acl, filter), "{filter}");
        assert!(!publishes(&acl, "$SYS/x"));
    }
    assert!(!subscribes(&acl, "$share/g/$SYS/#"));
    let acl = acl_of(vec![allow("$SYS/#")], &ALICE);
    assert!(subscribes(&acl, "$SYS/+/x") && !subscribes(&acl, "#") && !subscribes(&acl, "+/x"));
}

#[test]
fn empty_levels_are_levels() {
    let acl = acl_of(vec![allow("a/+/c"), allow("/x"), allow("y/")], &ALICE);
    assert!(publishes(&acl, "a//c") && publishes(&acl, "/x") && publishes(&acl, "y/"));
    for name in ["a/c", "x", "y", "//x", "y//", "/a/b/c"] {
        assert!(!publishes(&acl, name), "{name}");
    }
    assert!(!subscribes(&acl, "y/#") && !subscribes(&acl, "/+") && !subscribes(&acl, "y/+"));
}

#[test]
fn a_deny_rule_wins_in_every_order_and_over_wider_subscriptions() {
    for rules in [vec![allow("#"), deny("secret/#")], vec![deny("secret/#"), allow("#")]] {
        let acl = acl_of(rules, &ALICE);
        assert!(publishes(&acl, "public") && !publishes(&acl, "secret") && !publishes(&acl, "secret/a"));
        assert!(subscribes(&acl, "public/#") && subscribes(&acl, "+/a/b") == subscribes(&acl, "#"));
        for filter in ["#", "+/a", "+/#", "secret", "secret/+", "+"] {
            assert!(!subscribes(&acl, filter), "{filter}");
        }
    }
}

#[test]
fn a_denied_regex_refuses_filters_that_might_reach_its_topics() {
    let acl = acl_of(vec![regex(Effect::Allow, ".*"), regex(Effect::Deny, "secret/[0-9]+")], &ALICE);
    assert!(publishes(&acl, "secret/x") && !publishes(&acl, "secret/7"));
    for filter in ["#", "+/7", "secret/#", "secret/+", "+/+", "secret/7", "secret/7/#"] {
        assert!(!subscribes(&acl, filter), "{filter}");
    }
    for filter in ["public/#", "secret/x", "public/+", "secretary/#"] {
        assert!(subscribes(&acl, filter), "{filter}");
    }
    let parent = acl_of(vec![regex(Effect::Allow, ".*"), regex(Effect::Deny, "a")], &ALICE);
    assert!(!subscribes(&parent, "a/#"), "a/# matches a");
}

#[test]
fn placeholders_stand_for_the_client() {
    let acl = acl_of(
        vec![
            allow("devices/${clientId}/#"),
            allow("users/x-${username}-y"),
            regex(Effect::Allow, "by-name/${cn}/[a-z]+"),
        ],
        &ALICE,
    );
    assert!(publishes(&acl, "devices/alice-1/up") && subscribes(&acl, "devices/alice-1/+"));
    assert!(publishes(&acl, "users/x-alice-y"));
    assert!(publishes(&acl, "by-name/alice.example/a"));
    for name in ["devices/alice-2/up", "users/x--y", "by-name/alicexexample/a", "devices/${clientId}/up"] {
        assert!(!publishes(&acl, name), "{name}");
    }
    assert!(!subscribes(&acl, "devices/+/up") && !subscribes(&acl, "devices/#"));
}

#[test]
fn no_client_widens_a_rule_by_its_name() {
    let rules = || {
        vec![
            allow("devices/${clientId}/#"),
            allow("${clientId}/#"),
            regex(Effect::Allow, "regex/${clientId}/.*"),
            regex(Effect::Allow, "${clientId}/.*"),
            regex(Effect::Allow, "^${clientId}"),
        ]
    };
    for client_id in ["+", "#", "a/b", "a/#", "+/+", "/", "$SYS", "$SYS/broker", "a+b", "a#"] {
        let acl = acl_of(rules(), &Identity { client_id, ..ALICE });
        let filters = [
            "#".to_owned(),
            "+/#".to_owned(),
            "devices/#".to_owned(),
            "devices/+/x".to_owned(),
            "regex/+/x".to_owned(),
            "regex/#".to_owned(),
            "$SYS/#".to_owned(),
            "devices/a/b".to_owned(),
            "$SYS/broker/x".to_owned(),
            format!("{client_id}/x"),
        ];
        for filter in
            filters.iter().filter(|filter| topic::check_filter(filter, &topic::Rules::default()).is_ok())
        {
            assert!(!subscribes(&acl, filter), "{client_id} {filter}");
            assert!(!publishes(&acl, filter), "{client_id} {filter}");
        }
    }
    let acl = acl_of(rules(), &Identity { client_id: ".*", ..ALICE });
    assert!(publishes(&acl, "regex/.*/x") && !publishes(&acl, "regex/a/x"));
    let acl = acl_of(rules(), &Identity { client_id: "${username}", ..ALICE });
    assert!(!publishes(&acl, "devices/alice/x"), "a value is not filled again");
}

#[test]
fn a_rule_for_a_name_that_is_missing_is_about_nobody() {
    let rules = vec![allow("users/${username}/#"), regex(Effect::Allow, "names/${cn}.*"), allow("x")];
    let acl = acl_of(rules, &Identity { user_name: None, common_name: None, ..ALICE });
    assert!(publishes(&acl, "x"));
    for name in ["users//a", "users/a", "names/", "names/${cn}"] {
        assert!(!publishes(&acl, name), "{name}");
    }
}

#[test]
fn what_is_denied_is_denied_to_clients_with_any_name() {
    for denied in [deny("admin/${clientId}"), regex(Effect::Deny, "admin/${clientId}")] {
        let acl = acl_of(vec![allow("#"), denied], &Identity { client_id: "a/b", ..ALICE });
        assert!(!publishes(&acl, "admin/a/b") && publishes(&acl, "admin/a") && publishes(&acl, "admin/b"));
        assert!(!subscribes(&acl, "admin/a/+") && !subscribes(&acl, "admin/#") && !subscribes(&acl, "#"));
    }
    let rules = vec![allow("$SYS/#"), deny("${clientId}/#")];
    let acl = acl_of(rules, &Identity { client_id: "$SYS", ..ALICE });
    assert!(!subscribes(&acl, "$SYS/#"));
    let rules = RuleSet::new(vec![allow("#"), regex(Effect::Deny, "admin/${clientId}")]).unwrap();
    let long = "x".repeat(60_000);
    let refused = Acl::new([&rules], &Identity { client_id: &long, ..ALICE });
    assert!(matches!(refused, Err(Invalid::Pattern(pattern::Invalid::TooLong(_)))));
}

#[test]
fn rules_limit_the_quality_of_service_and_retained_messages() {
    let rules = vec![
        Rule { qos: QosSet::up_to(Qos::AtLeastOnce), retained: Retained::Never, ..allow("a") },
        Rule { qos: QosSet::of(&[Qos::AtMostOnce]), ..allow("b") },
        allow("c"),
        Rule { retained: Retained::Only, ..deny("c") },
        Rule { qos: QosSet::of(&[Qos::ExactlyOnce]), ..deny("c") },
    ];
    let acl = acl_of(rules, &ALICE);
    assert!(acl.may_publish("a", Qos::AtLeastOnce, false));
    assert!(!acl.may_publish("a", Qos::ExactlyOnce, false));
    assert!(!acl.may_publish("a", Qos::AtMostOnce, true));
    assert!(acl.may_publish("b", Qos::AtMostOnce, true) && !acl.may_publish("b", Qos::AtLeastOnce, true));
    assert!(acl.may_publish("c", Qos::AtLeastOnce, false) && !acl.may_publish("c", Qos::AtMostOnce, true));
    assert_eq!(acl.grant("a", Qos::ExactlyOnce), Some(Qos::AtLeastOnce));
    assert_eq!(acl.grant("b", Qos::ExactlyOnce), Some(Qos::AtMostOnce));
    assert_eq!(acl.grant("c", Qos::ExactlyOnce), Some(Qos::AtLeastOnce));
    assert_eq!(acl.grant("c", Qos::AtMostOnce), Some(Qos::AtMostOnce));
    assert_eq!(acl.grant("d", Qos::AtMostOnce), None);
}

#[test]
fn rules_are_about_their_action_alone() {
    let acl = acl_of(
        vec![
            Rule::by_filter(Effect::Allow, Action::Publish, "up"),
            Rule::by_filter(Effect::Allow, Action::Subscribe, "down"),
        ],
        &ALICE,
    );
    assert!(publishes(&acl, "up") && !subscribes(&acl, "up"));
    assert!(!publishes(&acl, "down") && subscribes(&acl, "down"));
}

#[test]
fn several_sets_are_a_union_in_which_denial_wins() {
    let [one, two] =
        [vec![allow("a/#"), deny("b/x")], vec![allow("b/#"), deny("a/x")]].map(|r| RuleSet::new(r).unwrap());
    let acl = Acl::new([&one, &two], &ALICE).unwrap();
    assert!(publishes(&acl, "a/y") && publishes(&acl, "b/y"));
    assert!(!publishes(&acl, "a/x") && !publishes(&acl, "b/x"));
}

#[test]
fn rules_that_cannot_be_used_are_refused_with_the_reason() {
    for (rule, text) in [
        (allow("a/#/b"), "'#' must be the last"),
        (allow("a+"), "'+' must fill a whole level"),
        (allow("+${clientId}"), "'+' must fill a whole level"),
        (allow(""), "at least one character"),
        (allow("$share/g/a"), "plain topic filters"),
        (allow("a/${clientid}"), "placeholders are ${clientId}"),
        (regex(Effect::Allow, "a/${user}"), "placeholders are"),
        (regex(Effect::Allow, "(a"), "no regular expression"),
        (regex(Effect::Allow, "(a{1000}){1000}"), "too large"),
    ] {
        let error = RuleSet::new(vec![rule.clone()]).unwrap_err().to_string();
        assert!(error.contains(text), "{rule:?}: {error}");
    }
    let many = RuleSet::new(vec![allow("a"); RULES_MAX + 1]).unwrap_err();
    assert_eq!(many, Invalid::TooMany(RULES_MAX + 1));
}

#[test]
fn what_is_alike_for_everybody_is_compiled_once_and_while_it_is_used() {
    let common = RuleSet::new(vec![regex(Effect::Allow, "a/.+")]).unwrap();
    let bob = Identity { client_id: "bob", ..ALICE };
    let [one, other] = [ALICE, bob].map(|identity| Acl::new([&common], &identity).unwrap());
    assert!(Arc::ptr_eq(&one.parts.as_ref().unwrap()[0], &other.parts.as_ref().unwrap()[0]));
    drop((one, other));
    assert!(common.compiled.lock().upgrade().is_none());
}

#[test]
fn decisions_are_the_same_when_they_are_remembered_and_have_a_bound() {
    let acl = acl_of(vec![regex(Effect::Allow, "a/[0-9]*[02468]")], &ALICE);
    let mut permissions = Permissions::new(acl.clone());
    for round in 0..3 {
        for n in 0..1000 {
            let name = format!("a/{n}");
            let allowed = permissions.may_publish(&name, Qos::AtLeastOnce, false);
            assert_eq!(allowed, n % 2 == 0, "{round} {name}");
        }
    }
    assert_eq!(permissions.decisions.len(), DECISIONS);
    let long = format!("a/{}2", "0".repeat(60_000));
    assert!(permissions.may_publish(&long, Qos::AtMostOnce, true));
    assert!(permissions.decisions.iter().flatten().all(|(name, _)| name.len() <= DECISION_TOPIC_BYTES_MAX));
    permissions.replace(acl_of(vec![], &ALICE));
    assert!(!permissions.may_publish("a/998", Qos::AtLeastOnce, false));
}

#[test]
fn a_decision_about_a_known_topic_allocates_nothing() {
    let mut permissions = Permissions::new(acl_of(vec![regex(Effect::Allow, "a/[0-9]+")], &ALICE));
    assert!(permissions.may_publish("a/1", Qos::AtLeastOnce, false));
    let info = allocation_counter::measure(|| {
        assert!(permissions.may_publish("a/1", Qos::AtLeastOnce, false));
        assert!(permissions.may_publish("a/1", Qos::ExactlyOnce, true));
    });
    assert_eq!(info.count_total, 0);
}

fn some_filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![Just("a"), Just("b"), Just("+"), Just("")];
    (prop::collection::vec(level, 1..=3), any::<bool>())
        .prop_map(|(mut levels, open)| {
            if open {
                let last = levels.len() - 1;
                levels[last] = "#";
            }
            levels.join("/")
        })
        .prop_filter("not empty", |filter| !filter.is_empty())
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let regexes = vec!["a", "a/.*", "[ab]/b", ".*/a", "(a|b/a)/?.*", "b?/.+"];
    prop_oneof![
        3 => some_filter().prop_map(|filter| allow(&filter)),
        1 => some_filter().prop_map(|filter| deny(&filter)),
        1 => prop::sample::select(regexes).prop_map(|pattern| regex(Effect::Deny, pattern)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_subscription_that_is_granted_reaches_only_topics_that_are_allowed(
        rules in prop::collection::vec(some_rule(), 0..6), filter in some_filter()
    ) {
        let acl = acl_of(rules.clone(), &ALICE);
        let levels = ["", "a", "b", "c"];
        let two = levels.iter().flat_map(|one| levels.map(|other| format!("{one}/{other}")));
        let three = two.clone().flat_map(|two| levels.map(|other| format!("{two}/{other}")));
        let names = levels.iter().map(|one| (*one).to_owned()).chain(two).chain(three);
        if subscribes(&acl, &filter) {
            for name in names.filter(|name| !name.is_empty() && topic::matches(&filter, name)) {
                prop_assert!(publishes(&acl, &name), "{} reaches {} in spite of {:?}", filter, name, rules);
            }
        }
    }
}
