use proptest::prelude::*;
use tbmq_mqtt::packet::Qos;

use super::{Strategy, *};
use crate::acl::{Action, Effect};

/// From the reference implementation (phc-winner-argon2).
const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
const BCRYPT: &str = "$2a$10$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi";

fn credentials(id: u128, revision: u64, proof: Proof) -> Credentials {
    let name = format!("credential {id}");
    Credentials { id: Uuid::from_u128(id), revision, name, client_type: ClientType::Device, proof }
}

fn basic(client_id: Option<&str>, user_name: Option<&str>) -> Proof {
    let rules = vec![Rule::allow_regex(Action::Both, ".*")];
    Proof::Basic {
        client_id: client_id.map(Into::into),
        user_name: user_name.map(Into::into),
        password_hash: Some(HASH.into()),
        rules,
    }
}

fn x509(common_name: CommonName, rules: &[(&str, &str)]) -> Proof {
    let rules = rules
        .iter()
        .map(|(leaf, filter)| ((*leaf).into(), vec![Rule::by_filter(Effect::Allow, Action::Both, filter)]))
        .collect();
    Proof::X509 { common_name, rules }
}

fn literal(name: &str) -> CommonName {
    CommonName::Literal(name.into())
}

fn ids(found: &[Arc<Entry>]) -> Vec<u128> {
    found.iter().map(|entry| entry.id().as_u128()).collect()
}

fn check_empty(index: &Index) {
    assert!(index.is_empty() && index.by_key.is_empty() && index.patterns.is_empty());
    assert!(index.grants.is_empty() && index.costs.is_empty());
}

#[test]
fn a_strategy_says_which_credentials_are_looked_for() {
    let mut index = Index::default();
    index.put(credentials(1, 1, basic(Some("c"), None))).unwrap();
    index.put(credentials(2, 1, basic(None, Some("u")))).unwrap();
    index.put(credentials(3, 1, basic(Some("c"), Some("u")))).unwrap();
    for (strategy, client_id, user_name, expected) in [
        (Strategy::Both, "c", Some("u"), &[3, 2, 1][..]),
        (Strategy::Both, "c", None, &[1]),
        (Strategy::Both, "x", Some("u"), &[2]),
        (Strategy::Both, "u", Some("c"), &[]),
        (Strategy::ClientId, "c", Some("u"), &[1]),
        (Strategy::UserName, "c", Some("u"), &[2]),
        (Strategy::UserName, "c", None, &[]),
    ] {
        assert_eq!(ids(&index.basic(strategy, client_id, user_name)), expected, "{strategy:?} {client_id}");
    }
}

#[test]
fn keys_do_not_run_into_each_other() {
    let mut index = Index::default();
    index.put(credentials(1, 1, basic(Some("c"), Some("a|b")))).unwrap();
    assert!(index.basic(Strategy::Both, "b|c", Some("a")).is_empty());
    assert!(index.basic(Strategy::Both, "c", Some("a")).is_empty());
    assert_eq!(ids(&index.basic(Strategy::Both, "c", Some("a|b"))), [1]);
    index.put(credentials(2, 1, basic(None, Some("same")))).unwrap();
    assert!(index.basic(Strategy::ClientId, "same", None).is_empty());
    assert!(index.x509(["same"]).is_none() && index.scram("same").is_none());
}

#[test]
fn a_record_replaces_an_older_revision_and_nothing_else() {
    let mut index = Index::default();
    assert_eq!(index.put(credentials(1, 5, basic(None, Some("old")))), Ok(Applied::Inserted));
    assert_eq!(index.put(credentials(1, 5, basic(None, Some("again")))), Ok(Applied::Ignored));
    assert_eq!(index.put(credentials(1, 4, basic(None, Some("older")))), Ok(Applied::Ignored));
    assert_eq!(index.put(credentials(1, 6, basic(None, Some("new")))), Ok(Applied::Replaced));
    assert!(index.basic(Strategy::Both, "", Some("old")).is_empty());
    assert_eq!(ids(&index.basic(Strategy::Both, "", Some("new"))), [1]);
    assert_eq!(index.remove(Uuid::from_u128(1), 5), Applied::Ignored);
    assert_eq!(index.remove(Uuid::from_u128(2), 9), Applied::Ignored);
    assert_eq!(index.len(), 1);
    assert_eq!(index.remove(Uuid::from_u128(1), 7), Applied::Removed);
    check_empty(&index);
}

#[test]
fn a_record_that_cannot_be_used_leaves_nothing_of_the_one_before() {
    let mut index = Index::default();
    index.put(credentials(1, 1, basic(None, Some("u")))).unwrap();
    let bad = Proof::Basic {
        client_id: None,
        user_name: Some("u".into()),
        password_hash: Some("$2a$31$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi".into()),
        rules: vec![],
    };
    assert!(matches!(index.put(credentials(1, 2, bad)), Err(Invalid::Password(_))));
    check_empty(&index);
    let nobody = Proof::Basic { client_id: None, user_name: None, password_hash: None, rules: vec![] };
    assert_eq!(index.put(credentials(1, 3, nobody)), Err(Invalid::Nobody));
    let bad_rule = x509(literal("a"), &[(".*", "a/#/b")]);
    assert!(matches!(index.put(credentials(1, 3, bad_rule)), Err(Invalid::Rules(_))));
    let no_rule = x509(literal("a"), &[]);
    assert_eq!(index.put(credentials(1, 3, no_rule)), Err(Invalid::LeafPatterns(0)));
    let bad_leaf = x509(literal("a"), &[("(", "a")]);
    assert!(matches!(index.put(credentials(1, 3, bad_leaf)), Err(Invalid::Pattern(_))));
    let long = basic(None, Some(&"x".repeat(70_000)));
    assert_eq!(index.put(credentials(1, 3, long)), Err(Invalid::Text("the user name")));
    check_empty(&index);
}

#[test]
fn a_key_may_pass_to_another_credential_before_the_first_gives_it_up() {
    let mut index = Index::default();
    index.put(credentials(1, 1, basic(None, Some("u")))).unwrap();
    index.put(credentials(2, 2, basic(None, Some("u")))).unwrap();
    assert_eq!(ids(&index.basic(Strategy::Both, "", Some("u"))), [2, 1]);
    assert_eq!(index.remove(Uuid::from_u128(1), 3), Applied::Removed);
    assert_eq!(ids(&index.basic(Strategy::Both, "", Some("u"))), [2]);
    for id in 10..100 {
        index.put(credentials(id, id as u64, basic(None, Some("u")))).unwrap();
    }
    let found = ids(&index.basic(Strategy::Both, "", Some("u")));
    assert_eq!(found, [99, 98, 97, 96, 95, 94]);
}

#[test]
fn a_chain_is_walked_from_leaf_to_root_and_patterns_come_first() {
    let mut index = Index::default();
    index.put(credentials(1, 1, x509(literal("root"), &[(".*", "root/#")]))).unwrap();
    index.put(credentials(2, 1, x509(literal("device-7"), &[(".*", "seven/#")]))).unwrap();
    let found =
        |index: &Index, chain: &[&str]| index.x509(chain.iter().copied()).map(|entry| entry.id().as_u128());
    assert_eq!(found(&index, &["device-7", "root"]), Some(2));
    assert_eq!(found(&index, &["device-8", "intermediate", "root"]), Some(1));
    assert_eq!(found(&index, &["device-8", "ROOT"]), None);
    assert_eq!(found(&index, &[]), None);
    index.put(credentials(3, 1, x509(CommonName::Pattern("device-[0-9]".into()), &[(".*", "a")]))).unwrap();
    assert_eq!(found(&index, &["device-7", "root"]), Some(3), "a pattern is found anywhere in the name");
    assert_eq!(found(&index, &["my-device-99", "root"]), Some(3));
    assert_eq!(found(&index, &["device-[0-9]"]), None, "a pattern is not its own name");
    index.remove(Uuid::from_u128(3), 2);
    assert_eq!(found(&index, &["device-7", "root"]), Some(2));
}

#[test]
fn patterns_of_common_names_have_a_bound() {
    let mut index = Index::default();
    let pattern = |n: usize| x509(CommonName::Pattern(format!("^device-{n}$")), &[(".*", "a")]);
    for n in 0..PATTERNS_MAX {
        index.put(credentials(n as u128, 1, pattern(n))).unwrap();
    }
    let more = index.put(credentials(5000, 1, pattern(5000)));
    assert_eq!(more, Err(Invalid::TooManyPatterns(PATTERNS_MAX)));
    assert_eq!(index.put(credentials(7, 2, pattern(7))), Ok(Applied::Replaced));
}

#[test]
fn a_certificate_has_the_rules_of_all_patterns_that_match_its_own_name() {
    let mut index = Index::default();
    let rules = [("device-.*", "devices/${cn}/#"), (".*-7", "seven/#"), ("device", "never/#")];
    index.put(credentials(1, 1, x509(literal("root"), &rules))).unwrap();
    let entry = index.x509(["x", "root"]).unwrap();
    let identity = |common_name| Identity { client_id: "c", user_name: None, common_name };
    let acl = entry.acl(&identity(Some("device-7"))).unwrap();
    for (topic, allowed) in
        [("devices/device-7/x", true), ("seven/x", true), ("never/x", false), ("devices/device-8/x", false)]
    {
        assert_eq!(acl.may_publish(topic, Qos::AtMostOnce, false), allowed, "{topic}");
    }
    assert_eq!(entry.acl(&identity(Some("other"))).unwrap_err(), NoGrant::Leaf);
    assert_eq!(entry.acl(&identity(None)).unwrap_err(), NoGrant::Leaf);
}

#[test]
fn an_entry_says_what_the_record_said() {
    let mut index = Index::default();
    let keys = StoredKeys::derive(scram::Algorithm::Sha512, "pencil", &[7; 16], scram::ITERATIONS).unwrap();
    let proof = Proof::Scram { user_name: "\u{2168}".into(), keys: keys.clone(), rules: vec![] };
    let name = "Zähler".to_owned();
    let client_type = ClientType::Application;
    index.put(Credentials { id: Uuid::from_u128(9), revision: 3, name, client_type, proof }).unwrap();
    let entry = index.scram("IX").unwrap();
    assert_eq!((entry.id().as_u128(), entry.revision(), entry.name()), (9, 3, "Zähler"));
    assert_eq!(entry.client_type(), ClientType::Application);
    assert_eq!(entry.scram_keys(), Some(keys));
    assert!(entry.password().is_none());
    index.put(credentials(1, 1, basic(Some("c"), Some("u")))).unwrap();
    let entry = index.get(Uuid::from_u128(1)).unwrap();
    assert_eq!((entry.first(), entry.second()), ("u", "c"));
    assert_eq!(entry.secret(), password::pack(HASH).unwrap());
    assert_eq!(entry.password().and_then(Packed::cost), password::check(HASH).ok());
    assert_eq!(entry.scram_keys(), None);
}

#[test]
fn rules_that_are_alike_are_held_once() {
    let mut index = Index::default();
    for id in 0..100 {
        index.put(credentials(id, 1, basic(None, Some(&format!("u{id}"))))).unwrap();
    }
    assert_eq!(index.rule_sets(), 1);
    index.put(credentials(100, 1, x509(literal("a"), &[(".*", "a")]))).unwrap();
    assert_eq!(index.rule_sets(), 2);
    for id in 0..=100 {
        assert_eq!(index.remove(Uuid::from_u128(id), 1), Applied::Removed);
    }
    check_empty(&index);
}

#[test]
fn nobody_costs_what_somebody_does_as_often_and_always_the_same() {
    let mut index = Index::default();
    assert_eq!(index.cost_of_nobody(17), Cost::default());
    for id in 0..100 {
        let hash = if id < 75 { BCRYPT } else { HASH };
        let proof = Proof::Basic {
            client_id: Some(format!("c{id}")),
            user_name: None,
            password_hash: Some(hash.into()),
            rules: vec![],
        };
        index.put(credentials(id, 1, proof)).unwrap();
    }
    let bcrypt =
        (0..1000).filter(|seed| index.cost_of_nobody(*seed) == Cost::Bcrypt { log_rounds: 10 }).count();
    assert_eq!(bcrypt, 750);
    assert_eq!(index.cost_of_nobody(u64::MAX), index.cost_of_nobody(u64::MAX));
    for id in 0..75 {
        index.remove(Uuid::from_u128(id), 1);
    }
    assert_eq!(index.cost_of_nobody(5), Cost::default());
}

#[test]
fn a_control_plane_refuses_what_an_index_would() {
    for proof in [
        Proof::Basic { client_id: None, user_name: None, password_hash: None, rules: vec![] },
        x509(literal("a"), &[("(", "a")]),
        x509(literal("a"), &[(".*", "a/#/b")]),
        x509(literal(""), &[(".*", "a")]),
        x509(CommonName::Pattern("(".into()), &[(".*", "a")]),
    ] {
        let bad = credentials(1, 1, proof);
        let error = bad.check().unwrap_err();
        assert_eq!(Index::default().put(bad), Err(error));
    }
    assert_eq!(credentials(1, 1, basic(Some("c"), None)).check(), Ok(()));
}

#[test]
fn keys_of_credentials_are_tbmqs() {
    let keys = StoredKeys::derive(scram::Algorithm::Sha256, "pencil", &[7; 16], scram::ITERATIONS).unwrap();
    for (proof, key) in [
        (basic(None, Some("u")), "username|u"),
        (basic(Some("c"), None), "client_id|c"),
        (basic(Some("c"), Some("u")), "mixed|u|c"),
        (x509(literal("a.example"), &[]), "ssl|a.example"),
        (x509(CommonName::Pattern("a.*".into()), &[]), "ssl|a.*"),
        (Proof::Scram { user_name: "u".into(), keys, rules: vec![] }, "scram|u"),
    ] {
        assert_eq!(credentials(1, 1, proof).unique_key(), key);
    }
}

proptest! {
    #[test]
    fn whatever_comes_and_goes_the_index_says_what_the_latest_records_say(
        steps in prop::collection::vec((0_u128..6, 0_u64..8, 0_usize..7), 0..60)
    ) {
        let names = ["a", "b"];
        let mut index = Index::default();
        let mut model: BTreeMap<u128, (u64, usize)> = BTreeMap::new();
        for (id, revision, what) in steps {
            let there = model.get(&id).map(|(revision, _)| *revision);
            if what == 6 {
                let expected = there.is_some_and(|there| there <= revision);
                prop_assert_eq!(index.remove(Uuid::from_u128(id), revision) == Applied::Removed, expected);
                if expected {
                    model.remove(&id);
                }
                continue;
            }
            let name = names[what % 2];
            let proof = match what / 2 {
                0 => basic(None, Some(name)),
                1 => basic(Some(name), None),
                _ => x509(CommonName::Pattern(format!("^{name}$")), &[(".*", "x")]),
            };
            let newer = there.is_none_or(|there| there < revision);
            prop_assert_eq!(index.put(credentials(id, revision, proof)).unwrap() != Applied::Ignored, newer);
            if newer {
                model.insert(id, (revision, what));
            }
        }
        let with = |kind: usize, name: usize| {
            let mut found: Vec<(u64, u128)> = model
                .iter()
                .filter(|(_, (_, what))| (what / 2, what % 2) == (kind, name))
                .map(|(id, (revision, _))| (*revision, *id))
                .collect();
            found.sort_unstable();
            found.into_iter().rev().map(|(_, id)| id).collect::<Vec<_>>()
        };
        for (at, name) in names.iter().enumerate() {
            prop_assert_eq!(ids(&index.basic(Strategy::UserName, "", Some(name))), with(0, at));
            prop_assert_eq!(ids(&index.basic(Strategy::ClientId, name, None)), with(1, at));
            let first = index.x509([*name]).map(|entry| entry.id().as_u128());
            prop_assert_eq!(first, with(2, at).into_iter().min());
        }
        prop_assert_eq!(index.len(), model.len());
        prop_assert_eq!(index.by_key.len(), model.len());
        prop_assert_eq!(index.grants.values().map(|count| *count as usize).sum::<usize>(), model.len());
        for id in model.into_keys() {
            index.remove(Uuid::from_u128(id), 9);
        }
        check_empty(&index);
    }
}

/// The bytes that are asked of the allocator for one credential, and in how many pieces: each costs it up to 24 more.
fn cost_each(count: u128, proof: impl Fn(u128) -> Proof) -> (u64, u64) {
    let mut index = Index::default();
    let info = allocation_counter::measure(|| {
        for id in 0..count {
            index.put(credentials(id, 1, proof(id))).unwrap();
        }
    });
    assert_eq!(index.len() as u128, count);
    let each = |all: i64| all.unsigned_abs() / count as u64;
    (each(info.bytes_current), each(info.count_current))
}

#[test]
fn credentials_take_210_bytes_each_in_two_pieces() {
    // Just above a power of two times 7/8 the tables are as empty as they get.
    let count = 60_000;
    let by_user = cost_each(count, |id| basic(None, Some(&format!("user-name-{id:06}"))));
    let mixed =
        cost_each(count, |id| basic(Some(&format!("client-{id:06}")), Some(&format!("user-{id:06}"))));
    let x509 =
        cost_each(count, |id| x509(literal(&format!("device-{id:06}.example.com")), &[(".*", "d/${cn}/#")]));
    for (bytes, pieces) in [by_user, mixed, x509] {
        assert!(bytes <= 210 && pieces == 2, "{by_user:?} {mixed:?} {x509:?}");
    }
}

/// `cargo test -p tbmq-auth --release -- --ignored --nocapture a_million`
#[test]
#[ignore = "a measurement: takes a second in release, half a minute without"]
#[allow(clippy::print_stdout, reason = "it is a measurement")]
fn a_million_credentials() {
    let start = std::time::Instant::now();
    let (bytes, pieces) = cost_each(1_000_000, |id| basic(None, Some(&format!("user-name-{id:06}"))));
    println!("{bytes} bytes each in {pieces} pieces, {:?} to read them", start.elapsed());
    assert!(bytes <= 210);
}

#[test]
fn a_credential_is_for_those_whom_it_names_whatever_its_password_is() {
    let names: [Box<str>; 2] = ["leaf".into(), "authority".into()];
    let holder = Holder { client_id: "c", user_name: Some("u"), common_names: &names, scram_user: Some("s") };
    let scram = |user: &str| Proof::Scram {
        user_name: user.to_owned(),
        keys: StoredKeys::derive(scram::Algorithm::Sha256, "x", b"some salt", 4096).unwrap(),
        rules: vec![],
    };
    let pattern = |text: &str| x509(CommonName::Pattern(text.to_owned()), &[(".*", "#")]);
    for (proof, expected) in [
        (basic(Some("c"), None), true),
        (basic(Some("u"), None), false),
        (basic(None, Some("u")), true),
        (basic(None, Some("c")), false),
        (basic(Some("c"), Some("u")), true),
        (basic(Some("x"), Some("u")), false),
        (basic(Some("c"), Some("x")), false),
        (x509(literal("authority"), &[(".*", "#")]), true),
        (x509(literal("auth"), &[(".*", "#")]), false),
        (pattern("^auth"), true),
        (pattern("^ority"), false),
        (scram("s"), true),
        (scram("u"), false),
    ] {
        let mut index = Index::default();
        index.put(credentials(1, 1, proof.clone())).unwrap();
        let entry = index.get(Uuid::from_u128(1)).unwrap();
        assert_eq!(index.is_for(entry, &holder), expected, "{proof:?}");
        let nobody = Holder { client_id: "", user_name: None, common_names: &[], scram_user: None };
        assert!(!index.is_for(entry, &nobody), "{proof:?}");
    }
}
