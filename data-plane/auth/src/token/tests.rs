use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;
use tbmq_mqtt::packet::Qos;

use super::*;

const SECRET: &str = "a secret of thirty-two bytes, or more";
const NOW_MS: i64 = 1_800_000_000_000;

fn identity<'a>() -> Identity<'a> {
    Identity { client_id: "meter-1", user_name: Some("alice"), common_name: None }
}

fn config() -> Value {
    json!({
        "type": "JWT",
        "defaultClientType": "DEVICE",
        "jwtVerifierConfiguration": {
            "jwtVerifierType": "ALGORITHM_BASED",
            "jwtSignAlgorithmConfiguration": { "algorithm": "HMAC_BASED", "secret": SECRET },
        },
        "authRules": { "pubAuthRulePatterns": ["out/.*"], "subAuthRulePatterns": ["in/${clientId}/.*"] },
    })
}

fn provider(change: impl FnOnce(&mut Value)) -> Provider {
    let mut config = config();
    change(&mut config);
    Provider::parse(&config.to_string()).unwrap()
}

fn invalid(change: impl FnOnce(&mut Value)) -> String {
    let mut config = config();
    change(&mut config);
    Provider::parse(&config.to_string()).unwrap_err().to_string()
}

fn token(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::default(), claims, &key).unwrap()
}

fn judged_as(provider: &Provider, claims: &Value, identity: &Identity<'_>) -> Result<Accepted, String> {
    let Keys::Fixed(keys) = provider.keys() else { panic!("a set") };
    match provider.judge(Some(token(claims).as_bytes()), keys, identity, NOW_MS).outcome {
        Outcome::Accepted(accepted) => Ok(accepted),
        Outcome::Skipped(reason) => Err(reason.into()),
        Outcome::Refused(reason) => panic!("{reason}"),
    }
}

fn judged(provider: &Provider, claims: &Value) -> Result<Accepted, String> {
    judged_as(provider, claims, &identity())
}

fn may(accepted: &Accepted, publish: &str, subscribe: &str) -> (bool, bool) {
    let acl = &accepted.acl;
    (acl.may_publish(publish, Qos::AtMostOnce, false), acl.grant(subscribe, Qos::AtMostOnce).is_some())
}

#[test]
fn a_token_of_another_implementation_lets_its_client_in() {
    let vectors: Value = serde_json::from_str(include_str!("../jwt/vectors.json")).unwrap();
    let mut count = 0;
    for good in vectors["good"].as_array().unwrap() {
        let name = good["key"].as_str().unwrap();
        let provider = provider(|config| {
            let algorithm = match vectors["pems"].get(name) {
                Some(pem) => json!({
                    "algorithm": "PEM_KEY", "publicPemKeyFileName": "key.pem", "publicPemKey": pem,
                }),
                None => json!({ "algorithm": "HMAC_BASED", "secret": vectors["secret"] }),
            };
            config["jwtVerifierConfiguration"]["jwtSignAlgorithmConfiguration"] = algorithm;
            config["authClaims"] = json!({ "sub": "${clientId}", "user": "${username}" });
            config["issuer"] = json!("https://issuer.example");
            config["audience"] = json!(["tbmq"]);
            config["pubAuthRuleClaim"] = json!("pub");
            config["disconnectAtExpiry"] = json!(true);
        });
        let Keys::Fixed(keys) = provider.keys() else { panic!("a set") };
        let token = good["token"].as_str().unwrap().as_bytes();
        let outcome = provider.judge(Some(token), keys, &identity(), NOW_MS).outcome;
        let Outcome::Accepted(accepted) = outcome else { panic!("{good}: {outcome:?}") };
        assert_eq!(accepted.expires_at_ms, Some(2_000_000_060_000));
        assert_eq!(may(&accepted, "meters/1/x", "in/meter-1/x"), (true, true));
        assert_eq!(may(&accepted, "out/x", "in/meter-2/x"), (false, false));
        count += 1;
    }
    assert_eq!(count, 12);
}

#[test]
fn the_default_rules_hold_when_the_token_brings_none() {
    let accepted = judged(&provider(|_| {}), &json!({ "pub": ["x"] })).unwrap();
    assert_eq!((accepted.client_type, accepted.expires_at_ms), (ClientType::Device, None));
    assert_eq!(may(&accepted, "out/1", "in/meter-1/1"), (true, true));
    assert_eq!(may(&accepted, "x", "in/meter-2/1"), (false, false));
    // Without rules nothing is allowed.
    let bare = provider(|config| _ = config.as_object_mut().unwrap().remove("authRules"));
    assert_eq!(may(&judged(&bare, &json!({})).unwrap(), "out/1", "in/meter-1/1"), (false, false));
}

#[test]
fn claims_with_rules_take_the_place_of_the_defaults_each_for_itself() {
    let provider = provider(|config| {
        config["pubAuthRuleClaim"] = json!("p");
        config["subAuthRuleClaim"] = json!("s");
    });
    let of = |claims: Value| {
        judged(&provider, &claims)
            .map(|accepted| (may(&accepted, "out/1", "in/meter-1/1"), may(&accepted, "mine", "yours")))
    };
    assert_eq!(of(json!({ "p": ["mine"] })), Ok(((false, true), (true, false))));
    assert_eq!(of(json!({ "s": ["yours"] })), Ok(((true, false), (false, true))));
    assert_eq!(of(json!({ "p": [], "s": [] })), Ok(((false, false), (false, false))));
    // What can't be read is not passed over.
    let many = vec!["x"; PATTERNS_MAX + 1];
    for rules in [json!("mine"), json!(null), json!(["("]), json!([1]), json!({}), json!(many)] {
        assert!(of(json!({ "p": rules })).is_err(), "{rules}");
    }
}

#[test]
fn every_claim_must_be_as_wanted() {
    let provider = provider(|config| {
        config["authClaims"] =
            json!({ "u": "${username}", "id": "dev:${clientId}", "tier": 3, "on": "true" });
    });
    let good = json!({ "u": "alice", "id": "dev:meter-1", "tier": "3", "on": true });
    assert!(judged(&provider, &good).is_ok());
    for (name, value) in [
        ("u", json!("bob")),
        ("u", json!(["alice"])),
        ("id", json!("dev:meter-2")),
        ("tier", json!(4)),
        ("on", json!(null)),
    ] {
        let mut claims = good.clone();
        claims[name] = value;
        assert_eq!(
            judged(&provider, &claims).unwrap_err(),
            format!("the token's claim {name:?} is not as wanted")
        );
    }
    let mut claims = good.clone();
    claims.as_object_mut().unwrap().remove("u");
    assert!(judged(&provider, &claims).is_err());
    // A client without a user name is not meant by a token for one, not even for an empty one.
    let nameless = Identity { user_name: None, ..identity() };
    claims["u"] = json!("");
    assert!(judged_as(&provider, &claims, &nameless).is_err());
    // Nor does a user name that reads as a placeholder stand for anything else.
    let sly = Identity { user_name: Some("${clientId}"), ..identity() };
    claims["u"] = json!("meter-1");
    assert!(judged_as(&provider, &claims, &sly).is_err());
}

#[test]
fn claims_turn_the_client_type_round() {
    for (default, other) in [("DEVICE", ClientType::Application), ("APPLICATION", ClientType::Device)] {
        let provider = provider(|config| {
            config["defaultClientType"] = json!(default);
            config["clientTypeClaims"] = json!({ "kind": "app", "u": "${username}" });
        });
        let of = |claims: Value| judged(&provider, &claims).unwrap().client_type == other;
        assert!(of(json!({ "kind": "app", "u": "alice" })), "{default}");
        assert!(!of(json!({ "kind": "app" })), "{default}");
        assert!(!of(json!({})), "{default}");
    }
    let none = provider(|config| config["clientTypeClaims"] = json!({}));
    assert_eq!(judged(&none, &json!({})).unwrap().client_type, ClientType::Device);
}

#[test]
fn an_end_is_told_only_if_it_is_wanted_and_is_needed_then() {
    let ends = provider(|config| {
        config["disconnectAtExpiry"] = json!(true);
        config["leeway"] = json!(0);
    });
    let exp = NOW_MS / 1000 + 5;
    assert_eq!(judged(&ends, &json!({ "exp": exp })).unwrap().expires_at_ms, Some(exp * 1000));
    assert_eq!(judged(&ends, &json!({})).unwrap_err(), "the token: it has no exp that can be read");
    assert_eq!(judged(&ends, &json!({ "exp": exp - 5 })).unwrap_err(), "the token: it has expired");
    assert_eq!(judged(&provider(|_| {}), &json!({ "exp": exp })).unwrap().expires_at_ms, None);
}

#[test]
fn what_is_no_token_is_left_to_the_next_provider() {
    let provider = provider(|_| {});
    let Keys::Fixed(keys) = provider.keys() else { panic!("a set") };
    for password in [None, Some(b"hush".as_slice()), Some(b"\xff"), Some(b"")] {
        let judgement = provider.judge(password, keys, &identity(), NOW_MS);
        assert!(matches!(judgement.outcome, Outcome::Skipped(_)), "{password:?}");
        assert!(!judgement.key_is_unknown, "{password:?}");
    }
    let judgement = provider.judge(Some(token(&json!({})).as_bytes()), &[], &identity(), NOW_MS);
    assert!(judgement.key_is_unknown);
}

#[test]
fn a_secret_is_neither_short_nor_the_published_one() {
    let with = |secret: &str| {
        invalid(|config| {
            config["jwtVerifierConfiguration"]["jwtSignAlgorithmConfiguration"]["secret"] = json!(secret);
        })
    };
    assert!(with("please-change-this-32-char-jwt-secret").ends_with("published default"));
    let short = with("hush");
    assert!(short.contains("at least 32 bytes") && !short.contains("hush"), "{short}");
}

#[test]
fn a_bad_configuration_is_told_with_its_field() {
    let jwks = |change: Value| {
        invalid(|config| {
            let verifier = &mut config["jwtVerifierConfiguration"];
            *verifier =
                json!({ "jwtVerifierType": "JWKS", "endpoint": "https://a/keys", "refreshInterval": 300 });
            for (name, value) in change.as_object().unwrap() {
                verifier[name] = value.clone();
            }
        })
    };
    assert_eq!(
        jwks(json!({ "refreshInterval": 299 })),
        "jwtVerifierConfiguration.refreshInterval: 300 seconds at least"
    );
    for url in ["file:///etc/passwd", "keys", "https://", "https://u:p@a/keys"] {
        assert!(jwks(json!({ "endpoint": url })).starts_with("jwtVerifierConfiguration.endpoint: "), "{url}");
    }
    assert!(jwks(json!({ "headers": { "a b": "x" } })).starts_with("headers: "));
    assert!(jwks(json!({ "headers": { "a": "x\r\nb: c" } })).starts_with("headers: "));
    assert!(jwks(json!({ "credentials": { "type": "cert.PEM", "cert": "x" } })).starts_with("credentials: "));
    assert!(invalid(|config| config["authClaims"] = json!({ "a": "${user}" })).starts_with("authClaims: "));
    assert!(invalid(|config| config["authRules"]["pub"] = json!(["("])).contains("duplicate field"));
    assert!(invalid(|config| config["authRules"] = json!({ "pub": ["("] })).starts_with("authRules: "));
    assert!(invalid(|config| config["leeway"] = json!(601)).starts_with("leeway: "));
    // A misspelt restriction is not passed over.
    assert!(invalid(|config| config["isuer"] = json!("x")).contains("isuer"));
}

#[test]
fn a_key_set_is_read_with_credentials_that_are_not_shown() {
    let provider = provider(|config| {
        config["jwtVerifierConfiguration"] = json!({
            "jwtVerifierType": "JWKS",
            "endpoint": "https://a/keys",
            "headers": { "x-api-key": "hush" },
            "credentials": { "type": "basic", "username": "u", "password": "hush" },
        });
    });
    let Keys::Set { endpoint, refresh } = provider.keys() else { panic!("no set") };
    assert_eq!((endpoint.url.as_str(), *refresh), ("https://a/keys", Duration::from_secs(300)));
    assert_eq!(endpoint.headers, [("x-api-key".to_owned(), Hidden::new("hush"))]);
    let basic = Credentials::Basic { username: "u".to_owned(), password: Hidden::new("hush") };
    assert_eq!(endpoint.credentials, basic);
    assert!(!format!("{provider:?}").contains("hush"));
}

/// What the provider before has let in, judged by another one.
fn judged_again(before: &Provider, claims: &Value, after: &Provider) -> Result<Accepted, String> {
    let (Keys::Fixed(old), Keys::Fixed(new)) = (before.keys(), after.keys()) else { panic!("a set") };
    let judgement = before.judge(Some(token(claims).as_bytes()), old, &identity(), NOW_MS);
    after.judge_again(&judgement.kept.expect("it is accepted"), new, &identity())
}

#[test]
fn a_client_is_judged_again_by_what_its_token_said() {
    let before = provider(|_| {});
    let claims = json!({ "sub": "meter-1", "iss": "a", "exp": 1_800_000_100, "pub": ["new/.*"] });
    let by = |change: &dyn Fn(&mut Value)| judged_again(&before, &claims, &provider(|config| change(config)));
    let same = by(&|_| {}).unwrap();
    assert_eq!((may(&same, "out/a", "in/meter-1/a"), same.expires_at_ms), ((true, true), None));
    let other = by(&|config| {
        config["pubAuthRuleClaim"] = json!("pub");
        config["disconnectAtExpiry"] = json!(true);
        config["leeway"] = json!(0);
    });
    let other = other.unwrap();
    assert_eq!((may(&other, "out/a", "in/meter-1/a"), may(&other, "new/a", "x").0), ((false, true), true));
    assert_eq!(other.expires_at_ms, Some(1_800_000_100_000));
    by(&|config| config["authClaims"] = json!({ "sub": "${clientId}" })).unwrap();
    by(&|config| config["issuer"] = json!("a")).unwrap();
    let key = |config: &mut Value| {
        let algorithm = json!({ "algorithm": "HMAC_BASED", "secret": format!("{SECRET}!") });
        config["jwtVerifierConfiguration"]["jwtSignAlgorithmConfiguration"] = algorithm;
    };
    for (change, reason) in [
        (&key as &dyn Fn(&mut Value), "the token: its signature is not of the key"),
        (&|config| config["issuer"] = json!("b"), "the token: its issuer is another"),
        (&|config| config["audience"] = json!(["b"]), "the token: it has no aud that can be read"),
        (
            &|config| config["authClaims"] = json!({ "sub": "meter-2" }),
            "the token's claim \"sub\" is not as wanted",
        ),
    ] {
        assert_eq!(by(change).map(drop).unwrap_err(), reason);
    }
}

#[test]
fn claims_that_are_too_long_are_not_kept() {
    let provider = provider(|_| {});
    let long = |bytes| json!({ "x": "y".repeat(bytes) });
    let frame = long(0).to_string().len();
    assert!(judged_again(&provider, &long(CLAIMS_BYTES_MAX - frame), &provider).is_ok());
    let error = judged_again(&provider, &long(CLAIMS_BYTES_MAX - frame + 1), &provider).unwrap_err();
    assert_eq!(error, "the token's claims had more than 4096 bytes");
}
