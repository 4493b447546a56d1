use proptest::prelude::*;

use super::*;

const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";

fn keys(algorithm: Algorithm) -> StoredKeys {
    StoredKeys::derive(algorithm, "pencil", &BASE64_STANDARD.decode(SALT).unwrap(), ITERATIONS).unwrap()
}

fn nobody() -> Nobody {
    Nobody::new([9; 32], ITERATIONS)
}

fn start(algorithm: Algorithm, first: &str, keys: Option<StoredKeys>) -> (Exchange, String) {
    let first = ClientFirst::parse(first.as_bytes()).unwrap();
    Exchange::start(algorithm, &first, keys, &nobody(), SERVER_NONCE)
}

/// What a client with this password answers.
fn client_final(algorithm: Algorithm, password: &str, first: &str, server_first: &str) -> String {
    let mut parts = server_first.split(',').map(|part| &part[2..]);
    let (nonce, salt, rounds) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let pbkdf2 = match algorithm {
        Algorithm::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        Algorithm::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
    };
    let mut salted = vec![0; algorithm.len()];
    let salt = BASE64_STANDARD.decode(salt).unwrap();
    pbkdf2::derive(pbkdf2, rounds.parse().unwrap(), &salt, password.as_bytes(), &mut salted);
    let client = algorithm.hmac(&salted, b"Client Key");
    let stored = digest::digest(algorithm.digest(), client.as_ref());
    let bare = first.splitn(3, ',').nth(2).unwrap();
    let header = BASE64_STANDARD.encode(&first[..first.len() - bare.len()]);
    let without_proof = format!("c={header},r={nonce}");
    let signature =
        algorithm.hmac(stored.as_ref(), format!("{bare},{server_first},{without_proof}").as_bytes());
    let proof: Vec<u8> =
        client.as_ref().iter().zip(signature.as_ref()).map(|(one, other)| one ^ other).collect();
    format!("{without_proof},p={}", BASE64_STANDARD.encode(proof))
}

/// SHA-256: RFC 7677 §3. SHA-512: no RFC has an example; computed with Python's hashlib and hmac from the same input.
#[test]
fn the_examples_of_the_rfc_come_out_to_the_byte() {
    let nonce = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    for (algorithm, proof, server_final) in [
        (
            Algorithm::Sha256,
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
        (
            Algorithm::Sha512,
            "gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==",
            "v=ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==",
        ),
    ] {
        let (exchange, server_first) = start(algorithm, CLIENT_FIRST, Some(keys(algorithm)));
        assert_eq!(server_first, format!("{nonce},s={SALT},i=4096"));
        let client_final = format!("c=biws,{nonce},p={proof}");
        assert_eq!(exchange.finish(client_final.as_bytes()).unwrap(), server_final);
    }
}

#[test]
fn a_wrong_password_an_unknown_user_and_another_mechanism_fail_alike() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let other = if algorithm == Algorithm::Sha256 { Algorithm::Sha512 } else { Algorithm::Sha256 };
        for (password, keys) in
            [("pencils", Some(keys(algorithm))), ("pencil", None), ("pencil", Some(keys(other)))]
        {
            let (exchange, server_first) = start(algorithm, CLIENT_FIRST, keys);
            let answer = client_final(algorithm, password, CLIENT_FIRST, &server_first);
            assert_eq!(exchange.finish(answer.as_bytes()), Err(Refused::Proof));
        }
    }
}

#[test]
fn an_unknown_user_has_a_salt_of_its_own_that_stays_and_looks_like_any_other() {
    let challenge = |first: &str, algorithm| start(algorithm, first, None).1;
    let one = challenge(CLIENT_FIRST, Algorithm::Sha256);
    assert_eq!(one, challenge(CLIENT_FIRST, Algorithm::Sha256));
    assert_ne!(one, challenge(CLIENT_FIRST, Algorithm::Sha512));
    assert_ne!(one, challenge("n,,n=user2,r=rOprNGfwEbeRWgbNEkqO", Algorithm::Sha256));
    let known = start(Algorithm::Sha256, CLIENT_FIRST, Some(keys(Algorithm::Sha256))).1;
    assert_eq!(one.len(), known.len());
    assert!(one.ends_with(",i=4096"));
    let first = ClientFirst::parse(CLIENT_FIRST.as_bytes()).unwrap();
    let elsewhere = Nobody::new([8; 32], ITERATIONS);
    assert_ne!(one, Exchange::start(Algorithm::Sha256, &first, None, &elsewhere, SERVER_NONCE).1);
}

#[test]
fn a_client_that_knows_the_keys_of_nobody_does_not_get_in() {
    // As with keys that leaked: the proof fits, and the user is still none.
    let (exchange, server_first) = start(Algorithm::Sha256, CLIENT_FIRST, Some(keys(Algorithm::Sha256)));
    let answer = client_final(Algorithm::Sha256, "pencil", CLIENT_FIRST, &server_first);
    let nobody = Exchange { is_known: false, ..exchange };
    assert_eq!(nobody.finish(answer.as_bytes()), Err(Refused::Proof));
}

#[test]
fn a_client_final_that_is_not_of_this_exchange_is_refused() {
    let algorithm = Algorithm::Sha256;
    let (_, server_first) = start(algorithm, CLIENT_FIRST, Some(keys(algorithm)));
    let good = client_final(algorithm, "pencil", CLIENT_FIRST, &server_first);
    let proof = good.split_once(",p=").unwrap().1;
    for (answer, problem) in [
        (String::new(), "no proof"),
        ("c=biws,r=x".to_owned(), "no proof"),
        (good.replace("c=biws", "c=eSws"), "channel binding is not that"),
        (good.replace("c=biws", "c=!"), "channel binding is not that"),
        (good.replace("c=biws,", ""), "no channel binding"),
        (good.replace("r=rOpr", "r=ropr"), "nonce is not that"),
        (good.replace("hNlF$k0,", "hNlF$k,"), "nonce is not that"),
        (good.replace(proof, ""), "as long as the digest"),
        (good.replace(proof, "AAAA"), "as long as the digest"),
        (good.replace(proof, "*"), "not base64"),
        (format!("{good},x=y"), "not base64"),
        ("x".repeat(MESSAGE_BYTES_MAX + 1), "too long"),
    ] {
        let (exchange, _) = start(algorithm, CLIENT_FIRST, Some(keys(algorithm)));
        let error = exchange.finish(answer.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(problem), "{answer}: {error}");
    }
    let (exchange, _) = start(algorithm, CLIENT_FIRST, Some(keys(algorithm)));
    assert!(exchange.finish(&[0xff, 0xfe]).is_err());
    let (exchange, _) = start(algorithm, CLIENT_FIRST, Some(keys(algorithm)));
    assert!(exchange.finish(good.as_bytes()).is_ok());
}

#[test]
fn an_answer_does_not_fit_another_exchange() {
    let algorithm = Algorithm::Sha256;
    let (_, server_first) = start(algorithm, CLIENT_FIRST, Some(keys(algorithm)));
    let answer = client_final(algorithm, "pencil", CLIENT_FIRST, &server_first);
    let first = ClientFirst::parse(CLIENT_FIRST.as_bytes()).unwrap();
    let (other, _) = Exchange::start(algorithm, &first, Some(keys(algorithm)), &nobody(), &nonce([1; 18]));
    assert!(matches!(other.finish(answer.as_bytes()), Err(Refused::Malformed(_))));
}

#[test]
fn a_client_first_is_read_as_the_grammar_says() {
    for (message, user) in [
        ("n,,n=user,r=abc", "user"),
        ("y,,n=user,r=abc", "user"),
        ("n,,n=a=2Cb=3Dc,r=abc", "a,b=c"),
        ("n,a=user,n=user,r=abc", "user"),
        ("n,,n=user,r=abc,x=extension", "user"),
        // RFC 4013 §3: soft hyphens vanish, compatibility forms become the plain ones.
        ("n,,n=I\u{ad}X,r=abc", "IX"),
        ("n,,n=\u{2168},r=abc", "IX"),
        ("n,,n=\u{aa},r=abc", "a"),
    ] {
        assert_eq!(ClientFirst::parse(message.as_bytes()).unwrap().user_name(), user, "{message}");
    }
    for message in [
        "",
        "n",
        "n,,",
        "n,,n=,r=abc",
        "n,,n=user",
        "n,,n=user,r=",
        "n,,n=user,r=a b",
        "n,,n=user,r=aé",
        "n,,r=abc,n=user",
        "n,,n=us=er,r=abc",
        "n,,n=us=2cer,r=abc",
        "n,,n=us=,r=abc",
        "n,,m=x,n=user,r=abc",
        "n,a=root,n=user,r=abc",
        "n,user,n=user,r=abc",
        "p=tls-unique,,n=user,r=abc",
        "x,,n=user,r=abc",
        "n,,n=\u{7},r=abc",
        "n,,n=\u{627}1,r=abc",
        "n,,n=\u{e000},r=abc",
    ] {
        assert!(ClientFirst::parse(message.as_bytes()).is_err(), "{message}");
    }
    assert!(ClientFirst::parse(&[b'n', 0xff]).is_err());
    assert!(
        ClientFirst::parse(format!("n,,n=user,r={}", "a".repeat(NONCE_BYTES_MAX + 1)).as_bytes()).is_err()
    );
}

#[test]
fn a_password_is_prepared_before_it_is_hashed() {
    let salt = [1; 16];
    let [one, other] = ["\u{2168}", "IX"]
        .map(|password| StoredKeys::derive(Algorithm::Sha256, password, &salt, ITERATIONS).unwrap());
    assert_eq!(one, other);
    for password in ["", "\u{7}"] {
        let refused = StoredKeys::derive(Algorithm::Sha256, password, &salt, ITERATIONS);
        assert_eq!(refused.unwrap_err(), InvalidKeys::Password);
    }
}

#[test]
fn keys_that_cannot_be_used_are_refused() {
    let good = keys(Algorithm::Sha256);
    assert_eq!(good.check(), Ok(()));
    for (keys, error) in [
        (StoredKeys { iterations: 1, ..good.clone() }, InvalidKeys::Iterations(1)),
        (StoredKeys { iterations: u32::MAX, ..good.clone() }, InvalidKeys::Iterations(u32::MAX)),
        (StoredKeys { salt: vec![], ..good.clone() }, InvalidKeys::Salt(0)),
        (
            StoredKeys { stored: vec![0; 31], ..good.clone() },
            InvalidKeys::Length { method: "SCRAM-SHA-256", expected: 32 },
        ),
        (
            StoredKeys { algorithm: Algorithm::Sha512, ..good.clone() },
            InvalidKeys::Length { method: "SCRAM-SHA-512", expected: 64 },
        ),
    ] {
        assert_eq!(keys.check(), Err(error));
    }
    assert!(!format!("{good:?}").contains("stored"));
}

#[test]
fn keys_come_back_from_their_bytes() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let keys = keys(algorithm);
        assert_eq!(StoredKeys::unpack(&keys.pack()), Some(keys));
    }
    assert_eq!(StoredKeys::unpack(&[]), None);
    assert_eq!(StoredKeys::unpack(&[1; 70]), None);
}

proptest! {
    #[test]
    fn no_message_breaks_it_and_none_without_the_password_is_accepted(
        first in "(n|y|p=x|),(a=user|),(n=[a=,2CD\\x{ad}é]{0,6}|m=x),?(r=[ -~]{0,8})?(,.{0,4})?",
        last in "(c=[A-Za-z+/=]{0,8})?,?(r=[ -~]{0,60})?(,.{0,4})?(,p=[A-Za-z+/=]{0,90})?",
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let parsed = [&bytes, first.as_bytes(), CLIENT_FIRST.as_bytes()].map(ClientFirst::parse);
        prop_assert!(parsed[2].is_ok());
        for first in parsed.into_iter().flatten() {
            for message in [last.as_bytes(), &bytes] {
                let keys = StoredKeys {
                    algorithm: Algorithm::Sha256,
                    iterations: ITERATIONS,
                    salt: vec![1; 16],
                    stored: vec![2; 32],
                    server: vec![3; 32],
                };
                let (exchange, _) = Exchange::start(Algorithm::Sha256, &first, Some(keys), &nobody(), SERVER_NONCE);
                prop_assert!(exchange.finish(message).is_err());
            }
        }
    }
}
