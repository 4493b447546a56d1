//! Every provider on every kind of listener in every version of MQTT: who is let in, who is refused and who is blocked,
//! by the exact code of CONNACK.

use bytes::Bytes;
use tbmq_auth::scram::Algorithm;
use tbmq_data_plane::{ClientAuth, Config};
use tbmq_harness::http_sink::{HttpSink, Mode};
use tbmq_mqtt::packet::{ConnAck, Connect, Packet, ProtocolVersion, ReasonCode};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};

use crate::{
    auth::{answer, auth, challenge, known, put, put_credentials, put_settings, told, with_method},
    bus::TestBus,
    client::{Client, VERSIONS, connect_packet},
    outside::{claims, http, jwt, token},
    plane::{Plane, until},
    samples::{blocked_client, client_final, client_first, provider},
    tls::{Files, shake_over},
    web_socket,
};
use tbmq_proto::topic::Catalogue;

/// Schemes of listeners, and whether they see certificates.
const LISTENERS: [(&str, bool); 4] = [("mqtt", false), ("mqtts", true), ("ws", false), ("wss", true)];

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Connected = Client<Box<dyn Stream>>;

/// What a client shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// What the provider knows.
    Right,
    /// Something else of the same kind.
    Wrong,
    /// Nothing.
    Absent,
}

struct Site {
    plane: Plane,
    files: Files,
}

impl Site {
    /// A broker with all kinds of listeners and this provider alone.
    async fn start(provider: Option<(&str, String)>) -> Self {
        let files = Files::new();
        let bus = TestBus::new();
        put_credentials(&bus, &known()).await;
        if let Some((name, configuration)) = &provider {
            put_settings(&bus, &[self::provider(name, configuration)]).await;
        }
        let plane = Plane::with(bus, Self::config(&files)).await;
        Self { plane, files }
    }

    fn config(files: &Files) -> Config {
        let mut config = files.config(|_| ());
        config.listener.wss = files.listener();
        config.listener.wss.web_socket = web_socket::listener().web_socket;
        for listener in [&mut config.listener.ssl, &mut config.listener.wss] {
            let tls = listener.tls.as_mut().unwrap();
            tls.client_auth = ClientAuth::Want;
            tls.client_ca = Some(files.path("ca.pem"));
        }
        config.listener.ws = web_socket::listener();
        config
    }

    /// A connection to the listener of this scheme, with a certificate of this name.
    async fn open(&self, scheme: &str, version: ProtocolVersion, name: Option<&str>) -> Connected {
        let address = self.plane.at(scheme);
        let socket = TcpStream::connect(address).await.unwrap();
        let secured = async |socket| {
            let identity = name.map(|name| self.files.clients.issue(name));
            shake_over(socket, &self.files.server, identity, rustls::ALL_VERSIONS).await.unwrap()
        };
        let stream: Box<dyn Stream> = match scheme {
            "mqtt" => Box::new(socket),
            "mqtts" => Box::new(secured(socket).await),
            "ws" => Box::new(web(socket).await),
            _ => Box::new(web(secured(socket).await).await),
        };
        Client::over(stream, version)
    }

    async fn block(&self, client_id: &str) {
        let before = self.plane.metric("tbmq_auth_blocked");
        let (key, value) = blocked_client(client_id, 0);
        put(&self.plane.bus, &Catalogue::default().blocked_clients(), &key, Some(&value)).await;
        until(|| self.plane.metric("tbmq_auth_blocked") > before).await;
    }
}

async fn web<S: Stream + 'static>(socket: S) -> DuplexStream {
    let offer = &[("sec-websocket-protocol", "mqtt")];
    web_socket::stream(web_socket::open_over(socket, "/mqtt", offer).await.unwrap().0)
}

/// Asserts what a client is told, and that it is served or disconnected then.
async fn is_told(mut client: Connected, connack: ConnAck, expected: ReasonCode, case: &str) {
    assert_eq!(connack.reason, expected, "{case}");
    assert!(!connack.session_present, "{case}");
    if expected == ReasonCode::Success {
        client.hears_nothing().await;
    } else {
        assert_eq!(client.next().await, None, "{case}");
    }
}

/// Connects on all listeners in all versions, and asserts the code of 5.0 or what 3.x has for it.
async fn all_are_told(
    site: &Site,
    client_id: &str,
    expected: ReasonCode,
    show: impl Fn(Connect) -> Connect,
    name: Option<&str>,
) {
    for (scheme, has_certificates) in LISTENERS {
        for version in VERSIONS {
            let case = format!("{scheme} {version:?} {client_id} {name:?}");
            let expected = match name {
                // Where no certificate can be shown nobody comes in by one.
                Some(_) if !has_certificates && expected == ReasonCode::Success => ReasonCode::NotAuthorized,
                _ => expected,
            };
            let mut client = site.open(scheme, version, name.filter(|_| has_certificates)).await;
            let connack = answer(&mut client, show(connect_packet(version, client_id))).await;
            is_told(client, connack, told(version, expected), &case).await;
        }
    }
}

fn with(connect: Connect, user: &str, password: String) -> Connect {
    Connect { username: Some(user.into()), password: Some(Bytes::from(password)), ..connect }
}

/// Right and wrong proofs, none, and a blocked client with a right one.
async fn matrix(provider: Option<(&str, String)>, show: impl Fn(Proof, Connect) -> Connect) {
    let is_open = provider.is_none();
    let site = Site::start(provider).await;
    for proof in [Proof::Right, Proof::Wrong, Proof::Absent] {
        let is_in = is_open || proof == Proof::Right;
        let expected = if is_in { ReasonCode::Success } else { ReasonCode::NotAuthorized };
        all_are_told(&site, "c", expected, |connect| show(proof, connect), None).await;
    }
    site.block("blocked").await;
    all_are_told(&site, "blocked", ReasonCode::Banned, |connect| show(Proof::Right, connect), None).await;
}

#[tokio::test]
async fn without_a_provider() {
    matrix(None, |_, connect| connect).await;
}

#[tokio::test]
async fn by_password() {
    matrix(Some(("MQTT_BASIC", String::new())), |proof, connect| match proof {
        Proof::Right => with(connect, "u", "secret".to_owned()),
        Proof::Wrong => with(connect, "u", "Secret".to_owned()),
        Proof::Absent => connect,
    })
    .await;
}

#[tokio::test]
async fn by_token() {
    matrix(Some(("JWT", jwt().to_string())), |proof, connect| match proof {
        Proof::Right => {
            let right = token(&claims(&connect.client_id));
            with(connect, "u", right)
        }
        Proof::Wrong => with(connect, "u", token(&claims("somebody else"))),
        Proof::Absent => connect,
    })
    .await;
}

#[tokio::test]
async fn by_certificate() {
    let site = Site::start(Some(("X_509", "{}".to_owned()))).await;
    for (name, expected) in [
        (Some("device"), ReasonCode::Success),
        (Some("other"), ReasonCode::NotAuthorized),
        (None, ReasonCode::NotAuthorized),
    ] {
        all_are_told(&site, "c", expected, |connect| connect, name).await;
    }
    site.block("blocked").await;
    all_are_told(&site, "blocked", ReasonCode::Banned, |connect| connect, Some("device")).await;
}

#[tokio::test]
async fn by_a_service() {
    let sink = HttpSink::start().await.unwrap();
    let site = Site::start(Some(("HTTP", http(&sink).to_string()))).await;
    let show = |connect| with(connect, "u", "hush".to_owned());
    all_are_told(&site, "c", ReasonCode::Success, show, None).await;
    site.block("blocked").await;
    all_are_told(&site, "blocked", ReasonCode::Banned, show, None).await;
    sink.set_mode(Mode::Answering(reqwest::StatusCode::FORBIDDEN)).await.unwrap();
    all_are_told(&site, "c", ReasonCode::NotAuthorized, show, None).await;
}

/// 3.x has no methods; of 5.0 each step is told by its code.
#[tokio::test]
async fn by_scram() {
    let site = Site::start(Some(("SCRAM", String::new()))).await;
    let (algorithm, v5) = (Algorithm::Sha256, ProtocolVersion::V5);
    site.block("blocked").await;
    for (scheme, _) in LISTENERS {
        for (user, password, expected) in [
            ("s256", "pencil", ReasonCode::Success),
            ("s256", "Pencil", ReasonCode::NotAuthorized),
            ("nobody", "pencil", ReasonCode::NotAuthorized),
        ] {
            let first = client_first(user);
            let mut client = site.open(scheme, v5, None).await;
            let connect = with_method("c", algorithm.method(), Some(&first));
            client.send(Packet::Connect(Box::new(connect))).await;
            let server_first = challenge(&mut client).await;
            let (last, _) = client_final(algorithm, password, &first, &server_first);
            client.send(auth(ReasonCode::ContinueAuthentication, algorithm.method(), &last)).await;
            match client.next().await {
                Some(Packet::ConnAck(connack)) => {
                    is_told(client, connack, expected, &format!("{scheme} {user} {password}")).await;
                }
                other => panic!("no CONNACK: {other:?}"),
            }
        }
        for (client_id, method, data, expected) in [
            ("blocked", algorithm.method(), Some(&*client_first("s256")), ReasonCode::Banned),
            ("c", "SCRAM-SHA-1", Some("x"), ReasonCode::BadAuthenticationMethod),
            ("c", algorithm.method(), None, ReasonCode::UnspecifiedError),
            ("c", algorithm.method(), Some("x"), ReasonCode::NotAuthorized),
        ] {
            let mut client = site.open(scheme, v5, None).await;
            let connack = answer(&mut client, with_method(client_id, method, data)).await;
            is_told(client, connack, expected, &format!("{scheme} {client_id} {method}")).await;
        }
    }
    let show = |connect| with(connect, "s256", "pencil".to_owned());
    all_are_told(&site, "c", ReasonCode::NotAuthorized, show, None).await;
}
