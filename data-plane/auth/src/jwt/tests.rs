use jsonwebtoken::{EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;

use super::*;

/// When the tokens of the vectors are good.
const NOW_S: i64 = 1_800_000_000;

/// Made by PyJWT, see `vectors.py`.
fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

/// Every key that a provider may have, by its name.
fn keys(vectors: &Value) -> Vec<(String, Key)> {
    let pems = vectors["pems"].as_object().unwrap().iter();
    let public =
        pems.map(|(name, pem)| (name.clone(), Key::public(pem.as_str().unwrap().as_bytes()).unwrap()));
    let secret = Key::secret(text(vectors, "secret").as_bytes()).unwrap();
    public.chain([("secret".to_owned(), secret)]).collect()
}

fn set(vectors: &Value) -> Vec<Key> {
    Key::set(vectors["jwks"].to_string().as_bytes()).unwrap()
}

fn checked(token: &str, keys: &[Key]) -> Result<Claims, Refused> {
    check(token, keys, &Rules::default(), NOW_S)
}

/// By HS256, without an id.
fn signed(secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

#[test]
fn tokens_of_another_implementation_are_good_by_their_key_alone() {
    let vectors = vectors();
    let keys = keys(&vectors);
    let set = set(&vectors);
    for good in vectors["good"].as_array().unwrap() {
        let (alg, token) = (text(good, "alg"), text(good, "token"));
        for (name, key) in &keys {
            let checked = check(token, [key], &Rules::default(), NOW_S);
            if name == text(good, "key") {
                let expected = Claims { all: vectors["claims"].clone(), expires_s: Some(2_000_000_000) };
                assert_eq!(checked, Ok(expected), "{alg} by {name}");
            } else {
                assert!(
                    matches!(checked, Err(Refused::NoKey { .. } | Refused::Signature)),
                    "{alg} by {name}: {checked:?}"
                );
            }
        }
        // A set of public keys knows no secret.
        assert_eq!(checked(token, &set).is_ok(), text(good, "key") != "secret", "{alg} by the set");
    }
}

#[test]
fn forged_tokens_are_refused_by_every_key() {
    let vectors = vectors();
    let keys: Vec<Key> = keys(&vectors).into_iter().map(|(_, key)| key).collect();
    let set = set(&vectors);
    for forged in vectors["forged"].as_array().unwrap() {
        for keys in [&keys, &set] {
            let refused = checked(text(forged, "token"), keys);
            assert!(refused.is_err(), "{}", text(forged, "what"));
        }
    }
    let what = |what: &str| {
        let mut all = vectors["forged"].as_array().unwrap().iter();
        let forged = all.find(|forged| text(forged, "what").starts_with(what)).unwrap();
        checked(text(forged, "token"), &set).unwrap_err()
    };
    assert_eq!(what("alg 'none'"), Refused::Unreadable);
    assert_eq!(what("an extension"), Refused::Extended);
    assert_eq!(what("other claims"), Refused::Signature);
    assert_eq!(what("a signature of zeros"), Refused::Signature);
    // The first that looks for `HS256` finds no key that does that.
    assert!(matches!(what("HS256 with the public key"), Refused::NoKey { .. }));
}

#[test]
fn times_are_judged_by_the_callers_clock() {
    let secret = "a secret of thirty-two bytes, or more";
    let key = Key::secret(secret.as_bytes()).unwrap();
    let at = |claims: Value, now_s: i64| {
        let rules = Rules { leeway_s: 30, ..Rules::default() };
        check(&signed(secret, &claims), [&key], &rules, now_s).map(|claims| claims.expires_s)
    };
    let expires = json!({ "exp": 1000 });
    assert_eq!(at(expires.clone(), 1029), Ok(Some(1000)));
    assert_eq!(at(expires, 1030), Err(Refused::Expired));
    let begins = json!({ "nbf": 1000.5 });
    assert_eq!(at(begins.clone(), 970), Ok(None));
    assert_eq!(at(begins, 969), Err(Refused::TooEarly));
    assert_eq!(at(json!({}), 0), Ok(None));
    // What is there and can't be read is not passed over.
    for claims in [json!({ "exp": "1000" }), json!({ "exp": null }), json!({ "nbf": [] })] {
        assert!(matches!(at(claims.clone(), 0), Err(Refused::Claim(_))), "{claims}");
    }
    assert_eq!(at(json!([1]), 0), Err(Refused::Unreadable));
    // No overflow.
    assert_eq!(at(json!({ "exp": i64::MAX }), 0), Ok(Some(i64::MAX)));
    assert_eq!(at(json!({ "exp": -1e300 }), 0), Err(Refused::Expired));
    assert_eq!(at(json!({ "nbf": 1e300 }), 0), Err(Refused::TooEarly));
}

#[test]
fn issuer_audience_and_expiry_are_needed_when_they_are_asked_for() {
    let secret = "a secret of thirty-two bytes, or more";
    let key = Key::secret(secret.as_bytes()).unwrap();
    let rules = Rules {
        issuer: Some("https://issuer".to_owned()),
        audience: vec!["tbmq".to_owned(), "other".to_owned()],
        leeway_s: 0,
        expiry_required: true,
    };
    let good = json!({ "iss": "https://issuer", "aud": ["x", "other"], "exp": 10 });
    // Whoever has come by other rules is judged in the same way by these.
    let checked = |claims: Value| {
        let token = signed(secret, &claims);
        let now = check(&token, [&key], &rules, 0).map(drop);
        // What nobody can read lets nobody in, whatever the rules.
        if let Ok((claims, by)) = check_signed(&token, [&key], &Rules::default(), 0) {
            assert_eq!(check_again(claims.all, &by, [&key], &rules).map(drop), now);
        }
        now
    };
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        checked(claims)
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        checked(claims)
    };
    assert_eq!(with("aud", json!("tbmq")), Ok(()));
    assert_eq!(with("aud", json!(["x", "other"])), Ok(()));
    assert_eq!(with("aud", json!("x")), Err(Refused::Audience));
    assert_eq!(with("aud", json!([])), Err(Refused::Audience));
    assert_eq!(with("iss", json!("https://issuer/")), Err(Refused::Issuer));
    for name in ["iss", "aud", "exp"] {
        assert_eq!(without(name), Err(Refused::Claim(name.to_owned())));
        assert!(with(name, json!({ "x": 1 })).is_err(), "{name}");
    }
}

#[test]
fn keys_are_told_apart_by_id_and_a_rotated_key_is_no_more() {
    let vectors = vectors();
    let token = |key: &str| {
        let good = vectors["good"].as_array().unwrap().iter().find(|good| text(good, "key") == key).unwrap();
        text(good, "token").to_owned()
    };
    let mut keys = vectors["jwks"]["keys"].as_array().unwrap().clone();
    let of = |keys: &[Value]| Key::set(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
    assert!(checked(&token("p256"), &of(&keys)).is_ok());
    // Its key has gone, another has come under another id, and then under the same.
    let next = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let next = EncodingKey::from_ec_pem(next.serialize_pem().as_bytes()).unwrap();
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&next, Algorithm::ES256).unwrap()).unwrap();
    jwk["kid"] = json!("next");
    keys[1] = jwk.clone();
    let unknown = Refused::NoKey { id: Some("p256".to_owned()), algorithm: Algorithm::ES256 };
    assert_eq!(checked(&token("p256"), &of(&keys)), Err(unknown));
    keys[1]["kid"] = json!("p256");
    assert_eq!(checked(&token("p256"), &of(&keys)), Err(Refused::Signature));
    // The others go on.
    assert!(checked(&token("rsa"), &of(&keys)).is_ok());
    // A key that is for one algorithm, or for encryption, is for nothing else.
    keys[0]["alg"] = json!("RS512");
    assert!(matches!(checked(&token("rsa"), &of(&keys)), Err(Refused::NoKey { .. })));
    keys[0]["alg"] = json!("RS256");
    assert!(checked(&token("rsa"), &of(&keys)).is_ok());
    keys[0]["use"] = json!("enc");
    assert!(matches!(checked(&token("rsa"), &of(&keys)), Err(Refused::NoKey { .. })));
}

#[test]
fn what_is_no_key_is_refused() {
    assert_eq!(Key::secret(&[b'x'; 31]).unwrap_err(), InvalidKey::ShortSecret);
    for pem in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        assert_eq!(Key::public(pem.as_bytes()).unwrap_err(), InvalidKey::NotPublic);
    }
    let secret = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }] }).to_string();
    assert!(matches!(Key::set(secret.as_bytes()), Err(InvalidSet::NoKeys)));
    assert!(matches!(Key::set(b"{"), Err(InvalidSet::Unreadable(_))));
}

#[test]
fn a_short_secret_serves_no_long_hash() {
    let vectors = vectors();
    let short = Key::secret(&text(&vectors, "secret").as_bytes()[..32]).unwrap();
    for good in vectors["good"].as_array().unwrap().iter().filter(|good| text(good, "key") == "secret") {
        let refused = check(text(good, "token"), [&short], &Rules::default(), NOW_S).unwrap_err();
        let expected_signature = text(good, "alg") == "HS256";
        assert_eq!(refused == Refused::Signature, expected_signature, "{refused}");
    }
}

#[test]
fn no_text_makes_it_panic() {
    let vectors = vectors();
    let keys = set(&vectors);
    let token = text(&vectors["good"][0], "token");
    for end in 0..token.len() {
        assert!(checked(&token[..end], &keys).is_err());
        assert!(checked(&token[end + 1..], &keys).is_err());
    }
    for text in ["", ".", "..", "...", "é.é.é", "a.b.c"] {
        assert_eq!(checked(text, &keys), Err(Refused::Unreadable), "{text}");
    }
}

#[test]
fn a_token_is_judged_again_by_its_key_and_not_by_its_times() {
    let vectors = vectors();
    let (keys, set) = (keys(&vectors), set(&vectors));
    for good in vectors["good"].as_array().unwrap() {
        let (alg, token) = (text(good, "alg"), text(good, "token"));
        let own = |name: &str| name == text(good, "key");
        let (_, key) = keys.iter().find(|(name, _)| own(name)).unwrap();
        let (claims, by) = check_signed(token, [key], &Rules::default(), NOW_S).unwrap();
        for (name, key) in &keys {
            let again = check_again(claims.all.clone(), &by, [key], &Rules::default());
            match again {
                Ok(again) => assert!(own(name) && again == claims, "{alg} by {name}"),
                Err(Refused::NoKey { .. } | Refused::Signature) => assert!(!own(name), "{alg} by {name}"),
                Err(other) => panic!("{alg} by {name}: {other}"),
            }
        }
        assert!(check_again(claims.all, &by, &set[..0], &Rules::default()).is_err(), "there is no key");
    }
    for good in vectors["good"].as_array().unwrap() {
        let Ok((claims, by)) = check_signed(text(good, "token"), &set, &Rules::default(), NOW_S) else {
            continue;
        };
        assert!(check_again(claims.all, &by, &set, &Rules::default()).is_ok());
    }
    let secret = "a secret of thirty-two bytes, or more";
    let key = Key::secret(secret.as_bytes()).unwrap();
    let token = signed(secret, &json!({ "exp": 1000 }));
    let (claims, by) = check_signed(&token, [&key], &Rules::default(), 0).unwrap();
    assert_eq!(check(&token, [&key], &Rules::default(), 2000), Err(Refused::Expired));
    assert_eq!(check_again(claims.all.clone(), &by, [&key], &Rules::default()), Ok(claims));
    assert!(!format!("{by:?}").contains("key"), "{by:?}");
}
