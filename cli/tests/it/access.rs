//! Contexts, tokens and TLS: who is called, as whom, and what never leaves.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Output, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::{
    fake::{serve, serve_with, stdout},
    stderr, tbmqctl,
};

/// Runs with a folder of its own for contexts.
fn run(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = tbmqctl(arguments);
    command.env_remove("TBMQCTL_CONFIG").env_remove("XDG_CONFIG_HOME").env("HOME", folder);
    command.envs(variables.iter().copied()).output().expect("tbmqctl starts")
}

fn ok(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

#[test]
fn contexts_name_servers_and_keep_tokens_to_themselves() {
    let served = serve();
    *served.fake.wanted.lock() = Some("Bearer s3same".to_owned());
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let mut set =
        tbmqctl(&["context", "set", "near", "--server", &served.address, "--token-stdin", "-o", "wide"])
            .env_remove("TBMQCTL_CONFIG")
            .env("HOME", home)
            .env("XDG_CONFIG_HOME", "")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    set.stdin.take().unwrap().write_all(b"s3same\n").unwrap();
    assert_eq!(set.wait_with_output().unwrap().status.code(), Some(0));
    let file = home.join(".config/tbmqctl/config.yaml");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    assert!(ok(&run(home, &["whoami"], &[])).contains("Caller:  token:ops"));
    assert!(
        ok(&run(home, &["node", "list"], &[])).contains("CONNECTIONS"),
        "its form of output is the context's"
    );
    for arguments in [&["context", "list"][..], &["context", "show"], &["context", "show", "-o", "json"]] {
        let output = run(home, arguments, &[]);
        let text = ok(&output) + &stderr(&output);
        assert!(text.contains(&served.address) && !text.contains("s3same"), "{text}");
    }

    ok(&run(home, &["context", "set", "far", "--server", "https://far.example"], &[]));
    assert_eq!(ok(&run(home, &["context", "list", "-o", "name"], &[])), "far\nnear\n");
    ok(&run(home, &["context", "use", "far"], &[]));
    assert!(ok(&run(home, &["context", "show"], &[])).contains("https://far.example"));
    ok(&run(home, &["whoami", "--context", "near"], &[]));
    ok(&run(home, &["whoami"], &[("TBMQCTL_CONTEXT", "near")]));
    ok(&run(home, &["context", "delete", "far"], &[]));
    assert!(ok(&run(home, &["context", "show"], &[])).contains("http://127.0.0.1:9090"));
}

#[test]
fn a_contexts_token_is_not_sent_to_another_server() {
    let own = serve();
    let other = serve();
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    std::fs::write(&token, "s3same\n").unwrap();
    let token = token.to_str().unwrap();
    ok(&run(home.path(), &["context", "set", "own", "--server", &own.address, "--token-file", token], &[]));
    ok(&run(home.path(), &["whoami"], &[]));
    ok(&run(home.path(), &["whoami", "--server", &other.address], &[]));
    ok(&run(home.path(), &["whoami"], &[("TBMQCTL_SERVER", &other.address)]));
    assert_eq!(*own.fake.authorizations.lock(), [Some("Bearer s3same".to_owned())]);
    assert_eq!(*other.fake.authorizations.lock(), [None, None]);
    ok(&run(home.path(), &["whoami", "--server", &other.address], &[("TBMQCTL_TOKEN", "mine")]));
    assert_eq!(other.fake.authorizations.lock().last(), Some(&Some("Bearer mine".to_owned())));
}

#[test]
fn tokens_that_others_can_read_are_warned_about() {
    let served = serve();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("config.yaml");
    std::fs::write(&file, format!("contexts: {{ a: {{ server: '{}', token: t }} }}", served.address))
        .unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let output =
        run(home.path(), &["whoami", "--context", "a"], &[("TBMQCTL_CONFIG", file.to_str().unwrap())]);
    assert!(stderr(&output).starts_with("warning: others can read the tokens in "), "{}", stderr(&output));
}

#[test]
fn who_may_not_call_is_told_why_and_what_to_do() {
    let served = serve();
    *served.fake.wanted.lock() = Some("Bearer s3same".to_owned());
    let output = served.run(&["integration", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.starts_with("error: a token is needed\nreason: UNAUTHENTICATED\nhint: --token-file, "),
        "{text}"
    );
}

#[test]
fn a_token_does_not_travel_readable_to_another_machine() {
    let output =
        tbmqctl(&["whoami", "--server", "http://192.0.2.1:9090"]).env("TBMQCTL_TOKEN", "s3same").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("could read the token") && text.contains("--plaintext-token"), "{text}");
    assert!(!text.contains("s3same"), "{text}");
}

/// PEM texts of a certificate and its key.
struct Pair {
    certificate: String,
    key: String,
}

fn authority(name: &str) -> (CertifiedIssuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let issuer =
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
    let pem = issuer.pem();
    (issuer, pem)
}

fn issued(by: &CertifiedIssuer<'static, KeyPair>, name: &str) -> Pair {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .expect("a name")
        .signed_by(&key, by)
        .expect("a signature");
    Pair { certificate: certificate.pem(), key: key.serialize_pem() }
}

#[test]
fn a_server_with_tls_is_called_with_its_authority_and_a_certificate() {
    let (issuer, ca) = authority("ours");
    let server = issued(&issuer, "127.0.0.1");
    let client = issued(&issuer, "ops");
    let (_, stranger) = authority("stranger");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&server.certificate, &server.key))
        .client_ca_root(Certificate::from_pem(&ca));
    let served = serve_with(Some(tls));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let ca = file("ca.pem", &ca);
    let stranger = file("stranger.pem", &stranger);
    let certificate = file("client.pem", &client.certificate);
    let key = file("client.key", &client.key);

    let whole = ["whoami", "--ca-file", &ca, "--cert-file", &certificate, "--key-file", &key];
    assert!(ok(&served.run(&whole)).contains("token:ops"));
    let variables = [
        ("TBMQCTL_CA_FILE", &ca),
        ("TBMQCTL_CERT_FILE", &certificate),
        ("TBMQCTL_KEY_FILE", &key),
        ("TBMQCTL_SERVER", &served.address),
    ];
    assert!(ok(&tbmqctl(&["whoami"]).envs(variables).output().unwrap()).contains("token:ops"));

    for (arguments, code, text) in [
        (&["whoami"][..], 3, "hint: --ca-file names the authority"),
        (&["whoami", "--ca-file", &stranger], 3, "UnknownIssuer"),
        (&["whoami", "--ca-file", &key], 2, "holds no certificate in PEM"),
        (&["whoami", "--ca-file", "/nonexistent/ca.pem"], 2, "can't read /nonexistent/ca.pem"),
        (&["whoami", "--ca-file", &ca], 3, "--cert-file"),
    ] {
        let output = served.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_wrong_scheme_is_told() {
    let served = serve();
    let output = served.run(&["whoami", "--server", &served.address.replace("http", "https")]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("its address begins with http://"), "{}", stderr(&output));
    let (issuer, _) = authority("ours");
    let server = issued(&issuer, "127.0.0.1");
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(&server.certificate, &server.key));
    let secure = serve_with(Some(tls));
    let output = secure.run(&["whoami", "--server", &secure.address.replace("https", "http")]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("https://"), "{}", stderr(&output));
}
